/* The harness on subjects whose costs are known: medians, missing peers, noise. */
#include "bench.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char printed[8192];

static double costs_two(void *context, uint64_t round)
{
    (void)context;
    return round == 4 ? 100 : 2; /* one outlier must not move a median */
}

static double costs_one(void *context, uint64_t round)
{
    (void)context, (void)round;
    return 1;
}

static double swings(void *context, uint64_t round)
{
    (void)context;
    return round % 2 ? 1 : 3;
}

static void run_captured(const bench_case *bench)
{
    FILE *file = tmpfile();
    assert_non_null(file);
    (void)fflush(stdout);
    int saved = dup(STDOUT_FILENO);
    assert_true(saved >= 0 && dup2(fileno(file), STDOUT_FILENO) >= 0);
    bench_run(bench);
    (void)fflush(stdout);
    assert_true(dup2(saved, STDOUT_FILENO) >= 0);
    (void)close(saved);
    rewind(file);
    size_t size = fread(printed, 1, sizeof printed - 1, file);
    printed[size] = 0;
    (void)fclose(file);
}

static uint32_t lines(void)
{
    uint32_t count = 0;
    for (const char *c = printed; *c; c++)
        count += *c == '\n';
    return count;
}

static void ratio_is_median_of_rounds(void **state)
{
    (void)state;
    bench_case bench = {
        .bench = "b",
        .name = "c",
        .unit = "u/s",
        .work = 10,
        .mneme = {"mneme", costs_one, NULL, 0, 0},
        .peers = {{"twice", costs_two, NULL, 1.5, 3}, {"missing", NULL, NULL, 1, 1}},
        .peer_count = 2};
    run_captured(&bench);
    assert_int_equal(lines(), 1);
    assert_non_null(strstr(printed, "\"value\":10,"));
    assert_non_null(strstr(printed, "\"against\":\"twice\",\"ratio\":2.000,\"q1\":2.000"));
    assert_non_null(strstr(printed, "\"least\":1.5,\"goal\":3}"));
}

static void slower_is_below_one(void **state)
{
    (void)state;
    bench_case bench = {.bench = "b",
                        .name = "c",
                        .unit = "s",
                        .mneme = {"mneme", costs_two, NULL, 0, 0},
                        .peers = {{"faster", costs_one, NULL, 1, 0}},
                        .peer_count = 1};
    run_captured(&bench);
    assert_non_null(strstr(printed, "\"value\":2,"));
    assert_non_null(strstr(printed, "\"ratio\":0.500"));
}

static void swinging_socket_is_noisy_and_repeated(void **state)
{
    (void)state;
    bench_case bench = {.bench = "b",
                        .name = "c",
                        .unit = "s",
                        .mneme = {"mneme", costs_one, NULL, 0, 0},
                        .peers = {{"raw-tcp", swings, NULL, 1, 0}},
                        .peer_count = 1};
    run_captured(&bench);
    assert_int_equal(lines(), 3);
    assert_non_null(strstr(printed, "\"noisy\":true"));
    bench.peers[0].name = "other"; /* only the socket tells of noise */
    run_captured(&bench);
    assert_int_equal(lines(), 1);
    assert_null(strstr(printed, "noisy"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ratio_is_median_of_rounds),
        cmocka_unit_test(slower_is_below_one),
        cmocka_unit_test(swinging_socket_is_noisy_and_repeated),
    };
    return cmocka_run_group_tests_name("bench harness", tests, NULL, NULL);
}
