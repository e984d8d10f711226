/* mneme-shard's flags: each value that is refused names its flag and says what would do, and the
 * least and the most that are taken, are. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <getopt.h>
#include <stdio.h>

#include "server_flags.h"

static enum mn_status parse(const char *flag, const char *value, mn_server_flags *out_flags,
                            mn_error *out_error)
{
    char own[64], given[4200], data[] = "--data", folder[] = "d", program[] = "mneme-shard";
    char *arguments[] = {program, data, folder, own, given, NULL};
    (void)snprintf(own, sizeof own, "%s", flag);
    (void)snprintf(given, sizeof given, "%s", value ? value : "");
    if (!value)
        arguments[4] = NULL;
    optind = 0; /* getopt begins anew */
    memset(out_error, 0, sizeof *out_error);
    enum mn_status status = mn_server_flags_parse(value ? 5 : 4, arguments, out_flags, out_error);
    out_flags->data = out_flags->listen = out_flags->token = out_flags->port_file = NULL;
    return status;
}

/* One that no call could bring would keep all out; and it is a secret. */
static void tokens_are_what_a_call_can_bring(void **state)
{
    (void)state;
    mn_server_flags flags;
    mn_error error;
    char token[4096] = {0};
    memset(token, 't', 4089);
    assert_int_equal(parse("--token", token, &flags, &error), MN_INVALID);
    assert_string_equal(error.message, "4089 bytes are more than 4088");
    token[4088] = 0;
    assert_int_equal(parse("--token", token, &flags, &error), MN_OK);
    assert_int_equal(parse("--token", "secret\n", &flags, &error), MN_INVALID);
    assert_string_equal(error.field, "--token");
    assert_null(strstr(error.message, "secret"));
}

static void values_are_checked(void **state)
{
    (void)state;
    static const struct {
        const char *flag;
        const char *good[3], *bad[6]; /* the least and the most; what is one too short, too long */
        const char *says;
    } cases[] = {
        {"--shard", {"0"}, {"", "-1", "1", "1024", "x", "0x"}, NULL},
        {"--shards",
         {"1", "1024"},
         {"", "0", "1025", "1 ", "18446744073709551616", "one"},
         "1 to 1024"},
        {"--calls-max",
         {"1", "1000000"},
         {"", "0", "1000001", "4096k", " 1", "-1"},
         "1 to 1000000"},
        {"--connections-max", {"1", "1000000"}, {"", "0", "1000001"}, "1 to 1000000"},
        {"--groups-max", {"1", "64"}, {"", "0", "65"}, "1 to 64"},
        {"--tables-max", {"1", "64"}, {"", "0", "65"}, "1 to 64"},
        {"--saves-kept", {"1", "8"}, {"", "0", "9"}, "1 to 8"},
        {"--info-seconds", {"0", "86400"}, {"", "86401", "1.5"}, "0 to 86400"},
        {"--read-budget",
         {"1", "1B", "1024TiB"},
         {"", "0", "1025TiB", "1MB", "MiB", "1 MiB"},
         "such as 256MiB, from 1 bytes"},
        {"--change-budget", {"1", "4GiB"}, {"", "0", "1125899906842625"}, "from 1 bytes"},
        {"--reply-budget", {"8388608", "8MiB"}, {"", "8388607", "7MiB"}, "from 8388608 bytes"},
        {"--usage-budget", {"0", "64MiB"}, {"", "-1", "1025TiB"}, "from 0 bytes"},
        {"--table-budget", {"1", "16TiB"}, {"", "0", "16PiB"}, "from 1 bytes"},
        {"--receive-budget",
         {"16777216", "16MiB"},
         {"", "16777215", "8MiB"},
         "from 16777216 bytes"},
        {"--log-cut-bytes", {"1", "256MiB"}, {"", "0", "1m"}, "from 1 bytes"},
        {"--image-rate", {"1", "16MiB"}, {"", "0", "16MiB/s"}, "from 1 bytes"},
        {"--durability",
         {"none", "process", "sync"},
         {"", "syn", "synch", "default", "SYNC"},
         "none of none, process, sync"},
        {"--log-level",
         {"debug", "warning", "none"},
         {"", "warn", "warnings", "0"},
         "none of debug, info, warning, none"},
        {"--listen", {"0.0.0.0:0", "[::]:7700"}, {"", "7700", "localhost"}, "is not HOST:PORT"},
        {"--token", {"t"}, {""}, "is empty"},
        {"--port-file", {"f"}, {""}, "is empty"},
        {"--data", {"d"}, {""}, "is empty"},
    };
    mn_server_flags flags;
    mn_error error;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int n = 0; n < 3 && cases[i].good[n]; n++)
            if (parse(cases[i].flag, cases[i].good[n], &flags, &error))
                fail_msg("%s %s: %s", cases[i].flag, cases[i].good[n], error.message);
        for (int n = 0; n < 6 && cases[i].bad[n]; n++) {
            const char *bad = cases[i].bad[n];
            enum mn_status status = parse(cases[i].flag, bad, &flags, &error);
            if (status != MN_INVALID || strcmp(error.field, cases[i].flag) ||
                !strstr(error.message, bad) ||
                (cases[i].says && !strstr(error.message, cases[i].says)))
                fail_msg("%s \"%s\": %s: %s: %s", cases[i].flag, bad, mn_status_name(status),
                         error.field, error.message);
        }
        assert_int_equal(parse(cases[i].flag, NULL, &flags, &error), MN_INVALID);
        assert_string_equal(error.field, cases[i].flag);
        assert_non_null(strstr(error.message, "needs a value"));
    }
}

/* A value of any length is quoted in part. */
static void long_values_are_quoted_in_part(void **state)
{
    static char text[4000];
    mn_server_flags flags;
    mn_error error;
    (void)state;
    memset(text, '7', sizeof text - 1);
    assert_int_equal(parse("--calls-max", text, &flags, &error), MN_INVALID);
    assert_string_equal(error.field, "--calls-max");
    assert_true(strlen(error.message) < sizeof error.message - 1);
}

static void flags_that_are_none(void **state)
{
    mn_server_flags flags;
    mn_error error;
    (void)state;
    assert_int_equal(parse("--frob", NULL, &flags, &error), MN_INVALID);
    assert_string_equal(error.field, "--frob");
    assert_int_equal(parse("frob", NULL, &flags, &error), MN_INVALID);
    assert_string_equal(error.field, "frob");
    assert_int_equal(parse("--help", NULL, &flags, &error), MN_OK);
    assert_true(flags.only_answer);
}

/* What one flag needs of another. */
static void flags_agree(void **state)
{
    static const struct {
        const char *words[6];
        const char *field; /* NULL: they do */
    } cases[] = {
        {{"mneme-shard", "--durability", "none"}, NULL},
        {{"mneme-shard", "--durability", "process"}, "--durability"},
        {{"mneme-shard", "--durability", "sync"}, "--durability"},
        {{"mneme-shard", "--shard", "1", "--shards", "2"}, NULL},
        {{"mneme-shard", "--shard", "2", "--shards", "2"}, "--shard"},
        {{"mneme-shard", "--shard", "1"}, "--shard"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mn_server_flags flags;
        mn_error error = {0};
        char words[6][32], *arguments[7] = {NULL};
        int count = 0;
        for (; count < 6 && cases[i].words[count]; count++) {
            (void)snprintf(words[count], sizeof words[count], "%s", cases[i].words[count]);
            arguments[count] = words[count];
        }
        optind = 0;
        enum mn_status status = mn_server_flags_parse(count, arguments, &flags, &error);
        assert_int_equal(status, cases[i].field ? MN_INVALID : MN_OK);
        if (cases[i].field)
            assert_string_equal(error.field, cases[i].field);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_are_what_a_call_can_bring),
        cmocka_unit_test(values_are_checked),
        cmocka_unit_test(long_values_are_quoted_in_part),
        cmocka_unit_test(flags_that_are_none),
        cmocka_unit_test(flags_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
