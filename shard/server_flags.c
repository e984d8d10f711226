/* Flags of mneme-shard: one table of names, one struct of checked values. */
#include "server_flags.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: mneme-shard [--listen HOST:PORT] [--shard I --shards N] [options]\n"
    "\n"
    "One memory server of a Mneme service: it holds its share of every table's values and\n"
    "optimizer state, and answers trainers over gRPC. Start N of them, with --shard 0 to N-1,\n"
    "and give trainers all their addresses in that order (static:HOST:PORT,HOST:PORT,...).\n"
    "\n"
    "  --listen HOST:PORT     address to serve on; port 0 picks a free one  [0.0.0.0:7700]\n"
    "  --shard I --shards N   this server's place among N                   [0 of 1]\n"
    "  --data DIR             holds the logs and snapshots                  [nothing is kept]\n"
    "  --durability LEVEL     when changes of groups that ask for no level are acknowledged:\n"
    "                         none: at once; process: once in the log, kill -9 loses nothing;\n"
    "                         sync: once on disk, power loss loses nothing  [process with --data]\n"
    "  --log-cut-bytes SIZE   a log is cut when it holds so much, and twice\n"
    "                         the last image: a new one then replaces it    [256MiB]\n"
    "  --image-rate SIZE      bytes of it written a second, beside twice\n"
    "                         what the log takes meanwhile                  [16MiB]\n"
    "  --saves-kept COUNT     in a folder that is saved to again, the newest included,\n"
    "                         for mneme load --step; at most 8              [1]\n"
    "  --ignore-other-logs    start though --data holds logs of another shard or\n"
    "                         another --shards, which are then not read     [refuse]\n"
    "  --token TOKEN          admit only calls with the metadata\n"
    "                         \"authorization: Bearer TOKEN\"                 [admit all]\n"
    "\n"
    "memory (SIZE: bytes, or with KiB, MiB, GiB, TiB), full means that callers hear BUSY:\n"
    "  --read-budget SIZE     indices of reads that run or wait             [256MiB]\n"
    "  --change-budget SIZE   gradients and rows staged until commit        [4GiB]\n"
    "  --reply-budget SIZE    answers on their way out; at least 8MiB       [256MiB]\n"
    "  --usage-budget SIZE    counters of how rows are read, 16 bytes a row;\n"
    "                         for more rows than fit, a sample; 0: none     [64MiB]\n"
    "  --table-budget SIZE    address space of all tables: memory as rows are written [16TiB]\n"
    "  --receive-budget SIZE  gRPC's own buffers: messages on their way in, and what\n"
    "                         each connection takes; at least 16MiB         [1GiB]\n"
    "  --groups-max COUNT     groups, at most 64                            [16]\n"
    "  --tables-max COUNT     tables of a group, at most 64                 [64]\n"
    "  --calls-max COUNT      reads held at once, waiting ones included,\n"
    "                         and as many changes and other calls           [4096]\n"
    "  --connections-max COUNT  connections; others are cut off within a second,\n"
    "                         whose callers hear UNAVAILABLE                [4096]\n"
    "\n"
    "running it:\n"
    "  --port-file FILE       write the port served on to FILE once it is open\n"
    "  --info-seconds S       one line of counters every S seconds, 0: none [60]\n"
    "  --log-level LEVEL      debug, info, warning or none, to stderr       [info]\n"
    "  --version, --help\n"
    "\n"
    "SIGTERM and SIGINT answer waiting calls UNAVAILABLE and exit 0; a second one exits at once.\n"
    "Kubernetes' gRPC probe works: grpc.health.v1.Health/Check.\n"
    "Exit status: 0 stopped by a signal, 1 could not serve, 2 bad flags.\n";

enum flag {
    FLAG_LISTEN = 1,
    FLAG_SHARD,
    FLAG_SHARDS,
    FLAG_DATA,
    FLAG_DURABILITY,
    FLAG_SAVES_KEPT,
    FLAG_IGNORE_OTHER_LOGS,
    FLAG_LOG_CUT_BYTES,
    FLAG_IMAGE_RATE,
    FLAG_TOKEN,
    FLAG_READ_BUDGET,
    FLAG_CHANGE_BUDGET,
    FLAG_REPLY_BUDGET,
    FLAG_USAGE_BUDGET,
    FLAG_TABLE_BUDGET,
    FLAG_RECEIVE_BUDGET,
    FLAG_GROUPS_MAX,
    FLAG_TABLES_MAX,
    FLAG_CALLS_MAX,
    FLAG_CONNECTIONS_MAX,
    FLAG_PORT_FILE,
    FLAG_INFO_SECONDS,
    FLAG_LOG_LEVEL,
    FLAG_VERSION,
    FLAG_HELP
};

static const struct option options[] = {
    {"listen", required_argument, NULL, FLAG_LISTEN},
    {"shard", required_argument, NULL, FLAG_SHARD},
    {"shards", required_argument, NULL, FLAG_SHARDS},
    {"data", required_argument, NULL, FLAG_DATA},
    {"durability", required_argument, NULL, FLAG_DURABILITY},
    {"saves-kept", required_argument, NULL, FLAG_SAVES_KEPT},
    {"ignore-other-logs", no_argument, NULL, FLAG_IGNORE_OTHER_LOGS},
    {"log-cut-bytes", required_argument, NULL, FLAG_LOG_CUT_BYTES},
    {"image-rate", required_argument, NULL, FLAG_IMAGE_RATE},
    {"token", required_argument, NULL, FLAG_TOKEN},
    {"read-budget", required_argument, NULL, FLAG_READ_BUDGET},
    {"change-budget", required_argument, NULL, FLAG_CHANGE_BUDGET},
    {"reply-budget", required_argument, NULL, FLAG_REPLY_BUDGET},
    {"usage-budget", required_argument, NULL, FLAG_USAGE_BUDGET},
    {"table-budget", required_argument, NULL, FLAG_TABLE_BUDGET},
    {"receive-budget", required_argument, NULL, FLAG_RECEIVE_BUDGET},
    {"groups-max", required_argument, NULL, FLAG_GROUPS_MAX},
    {"tables-max", required_argument, NULL, FLAG_TABLES_MAX},
    {"calls-max", required_argument, NULL, FLAG_CALLS_MAX},
    {"connections-max", required_argument, NULL, FLAG_CONNECTIONS_MAX},
    {"port-file", required_argument, NULL, FLAG_PORT_FILE},
    {"info-seconds", required_argument, NULL, FLAG_INFO_SECONDS},
    {"log-level", required_argument, NULL, FLAG_LOG_LEVEL},
    {"version", no_argument, NULL, FLAG_VERSION},
    {"help", no_argument, NULL, FLAG_HELP},
    {NULL, 0, NULL, 0},
};

static enum mn_status parse_count(const char *flag, const char *text, uint64_t least, uint64_t most,
                                  uint32_t *out_count, mn_error *error)
{
    char *end;
    unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || value < least || value > most)
        return mn_fail(error, MN_INVALID, flag, "\"%.60s\" is not a number from %llu to %llu", text,
                       (unsigned long long)least, (unsigned long long)most);
    *out_count = (uint32_t)value;
    return MN_OK;
}

static enum mn_status parse_size(const char *flag, const char *text, uint64_t least,
                                 uint64_t *out_bytes, mn_error *error)
{
    static const struct {
        const char *unit;
        uint32_t shift;
    } units[] = {{"", 0}, {"B", 0}, {"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}};
    char *end;
    unsigned long long value = strtoull(text, &end, 10);
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (text[0] < '0' || text[0] > '9' || strcmp(end, units[i].unit))
            continue;
        if (value > UINT64_C(1) << 50 >> units[i].shift || value << units[i].shift < least)
            break;
        *out_bytes = value << units[i].shift;
        return MN_OK;
    }
    return mn_fail(error, MN_INVALID, flag,
                   "\"%.60s\" is not a size such as 256MiB, from %llu bytes to 1024TiB", text,
                   (unsigned long long)least);
}

static enum mn_status parse_level(const char *text, int *out_level, mn_error *error)
{
    static const char *const names[] = {"debug", "info", "warning", "none"};
    for (int i = 0; i < 4; i++)
        if (!strcmp(text, names[i])) {
            *out_level = i;
            return MN_OK;
        }
    return mn_fail(error, MN_INVALID, "--log-level",
                   "\"%.60s\" is none of debug, info, warning, none", text);
}

static enum mn_status parse_durability(const char *text, enum mn_durability *out_durability,
                                       mn_error *error)
{
    for (int i = MN_DURABILITY_NONE; i <= MN_DURABILITY_SYNC; i++)
        if (!strcmp(text, mn_durability_name((enum mn_durability)i))) {
            *out_durability = (enum mn_durability)i;
            return MN_OK;
        }
    return mn_fail(error, MN_INVALID, "--durability", "\"%.60s\" is none of none, process, sync",
                   text);
}

static enum mn_status parse_text(const char *flag, const char *text, const char **out_text,
                                 mn_error *error)
{
    if (!text[0])
        return mn_fail(error, MN_INVALID, flag, "is empty");
    *out_text = text;
    return MN_OK;
}

/* One that a call can bring. */
static enum mn_status parse_token(const char *text, const char **out_token, mn_error *error)
{
    static const uint32_t scheme_bytes = sizeof "Bearer " - 1;
    enum mn_status status =
        mn_authorization_check("--token", text, MN_AUTHORIZATION_BYTES_MAX - scheme_bytes, error);
    return status ? status : parse_text("--token", text, out_token, error);
}

static enum mn_status parse_flag(enum flag flag, const char *text, mn_server_flags *flags,
                                 mn_error *error)
{
    switch (flag) {
    case FLAG_LISTEN:
        if (!strchr(text, ':'))
            return mn_fail(error, MN_INVALID, "--listen", "\"%.60s\" is not HOST:PORT", text);
        flags->listen = text;
        return MN_OK;
    case FLAG_SHARD:
        return parse_count("--shard", text, 0, MN_SHARDS_MAX - 1, &flags->shard, error);
    case FLAG_SHARDS:
        return parse_count("--shards", text, 1, MN_SHARDS_MAX, &flags->shards, error);
    case FLAG_DATA:
        return parse_text("--data", text, &flags->data, error);
    case FLAG_DURABILITY:
        return parse_durability(text, &flags->durability, error);
    case FLAG_SAVES_KEPT:
        return parse_count("--saves-kept", text, 1, 8, &flags->saves_kept, error);
    case FLAG_IGNORE_OTHER_LOGS:
        flags->ignore_other_logs = true;
        return MN_OK;
    case FLAG_LOG_CUT_BYTES:
        return parse_size("--log-cut-bytes", text, 1, &flags->log_cut_bytes, error);
    case FLAG_IMAGE_RATE:
        return parse_size("--image-rate", text, 1, &flags->image_bytes_a_second, error);
    case FLAG_TOKEN:
        return parse_token(text, &flags->token, error);
    case FLAG_READ_BUDGET:
        return parse_size("--read-budget", text, 1, &flags->read_bytes_max, error);
    case FLAG_CHANGE_BUDGET:
        return parse_size("--change-budget", text, 1, &flags->change_bytes_max, error);
    case FLAG_REPLY_BUDGET:
        return parse_size("--reply-budget", text, MN_MESSAGE_BYTES_MAX, &flags->reply_bytes_max,
                          error);
    case FLAG_USAGE_BUDGET:
        return parse_size("--usage-budget", text, 0, &flags->usage_bytes_max, error);
    case FLAG_TABLE_BUDGET:
        return parse_size("--table-budget", text, 1, &flags->table_bytes_max, error);
    case FLAG_RECEIVE_BUDGET:
        return parse_size("--receive-budget", text, 2 * MN_MESSAGE_BYTES_MAX,
                          &flags->receive_bytes_max, error);
    case FLAG_GROUPS_MAX:
        return parse_count("--groups-max", text, 1, MN_INFO_MAX, &flags->groups_max, error);
    case FLAG_TABLES_MAX:
        return parse_count("--tables-max", text, 1, MN_COMMIT_TABLES_MAX, &flags->tables_max,
                           error);
    case FLAG_CALLS_MAX:
        return parse_count("--calls-max", text, 1, 1000000, &flags->calls_max, error);
    case FLAG_CONNECTIONS_MAX:
        return parse_count("--connections-max", text, 1, 1000000, &flags->connections_max, error);
    case FLAG_PORT_FILE:
        return parse_text("--port-file", text, &flags->port_file, error);
    case FLAG_INFO_SECONDS:
        return parse_count("--info-seconds", text, 0, 86400, &flags->info_seconds, error);
    case FLAG_LOG_LEVEL:
        return parse_level(text, &flags->log_level, error);
    case FLAG_VERSION:
        flags->only_answer = true;
        flags->answer = "mneme-shard " MN_VERSION "\n";
        return MN_OK;
    case FLAG_HELP:
        flags->only_answer = true;
        flags->answer = usage;
        return MN_OK;
    }
    return MN_OK; /* getopt_long returns no other */
}

enum mn_status mn_server_flags_parse(int count, char **arguments, mn_server_flags *out_flags,
                                     mn_error *error)
{
    mn_server_flags flags = {.listen = "0.0.0.0:7700",
                             .shards = 1,
                             .calls_max = 4096,
                             .connections_max = 4096,
                             .groups_max = 16,
                             .saves_kept = 1,
                             .tables_max = MN_COMMIT_TABLES_MAX,
                             .table_bytes_max = UINT64_C(16) << 40,
                             .receive_bytes_max = UINT64_C(1) << 30,
                             .info_seconds = 60,
                             .read_bytes_max = UINT64_C(256) << 20,
                             .change_bytes_max = UINT64_C(4) << 30,
                             .usage_bytes_max = UINT64_C(64) << 20,
                             .log_cut_bytes = UINT64_C(256) << 20,
                             .image_bytes_a_second = UINT64_C(16) << 20,
                             .reply_bytes_max = UINT64_C(256) << 20,
                             .log_level = 1};
    opterr = 0; /* the caller words it */
    for (int found; (found = getopt_long(count, arguments, ":", options, NULL)) != -1;) {
        if (found == '?' || found == ':')
            return mn_fail(error, MN_INVALID, arguments[optind - 1], "%s; see --help",
                           found == '?' ? "no such flag" : "needs a value");
        enum mn_status status = parse_flag((enum flag)found, optarg, &flags, error);
        if (status)
            return status;
    }
    if (optind < count)
        return mn_fail(error, MN_INVALID, arguments[optind], "no such argument; see --help");
    if (flags.shard >= flags.shards)
        return mn_fail(error, MN_INVALID, "--shard", "%u is not below --shards %u", flags.shard,
                       flags.shards);
    if (!flags.durability)
        flags.durability = flags.data ? MN_DURABILITY_PROCESS : MN_DURABILITY_NONE;
    if (flags.durability > MN_DURABILITY_NONE && !flags.data)
        return mn_fail(error, MN_INVALID, "--durability", "%s needs --data",
                       mn_durability_name(flags.durability));
    *out_flags = flags;
    return MN_OK;
}

void mn_server_flags_text(const mn_server_flags *flags, char *out_text, size_t bytes_max)
{
    (void)snprintf(
        out_text, bytes_max,
        "version=%s listen=%s shard=%u shards=%u data=%s durability=%s log_cut_bytes=%llu "
        "image_rate=%llu token=%s read_budget=%llu "
        "change_budget=%llu reply_budget=%llu usage_budget=%llu table_budget=%llu "
        "receive_budget=%llu groups_max=%u tables_max=%u calls_max=%u connections_max=%u "
        "info_seconds=%u",
        MN_VERSION, flags->listen, flags->shard, flags->shards, flags->data ? flags->data : "none",
        mn_durability_name(flags->durability), (unsigned long long)flags->log_cut_bytes,
        (unsigned long long)flags->image_bytes_a_second, flags->token ? "given" : "none",
        (unsigned long long)flags->read_bytes_max, (unsigned long long)flags->change_bytes_max,
        (unsigned long long)flags->reply_bytes_max, (unsigned long long)flags->usage_bytes_max,
        (unsigned long long)flags->table_bytes_max, (unsigned long long)flags->receive_bytes_max,
        flags->groups_max, flags->tables_max, flags->calls_max, flags->connections_max,
        flags->info_seconds); /* cut when too long */
}
