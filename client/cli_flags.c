/* Flags and help of the operator's command. */
#include "cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "mneme: look at memory shards, read rows, move tiles, save and load a group\n"
    "\n"
    "usage: mneme [FLAGS] COMMAND\n"
    "\n"
    "  status              every shard: its groups, their steps, budgets and waiting calls, and\n"
    "                      the save or load that it is at\n"
    "  tables              the group's tables, summed over the shards\n"
    "  describe NAME       one table: its spec, which tiles each shard holds, and how its rows "
    "were\n"
    "                      read, if the shards count that (mneme-shard --usage-budget)\n"
    "  fetch NAME ROW ...  rows of the newest committed step; ROW is a number or FIRST-LAST\n"
    "  save DIR            writes the group to DIR below the shards' --data folder, as it is at "
    "one\n"
    "                      step; trainers go on meanwhile. Into the folder of an earlier save\n"
    "                      goes what has changed since. --rate bounds what that takes of disks\n"
    "  load DIR            replaces the group by the one saved in DIR, on however many shards\n"
    "                      there are; trainers of before are refused and have to start again\n"
    "  move NAME           moves tiles of the table from shard --from to its neighbour --to: to "
    "the\n"
    "                      next one the last --tiles (1) that it holds, to the one before the "
    "first\n"
    "                      ones. Trainers go on; the table's changes wait while its rows are "
    "copied\n"
    "  freeze DIR OUT [NAME ...]  writes the group saved in the folder DIR of this machine to the\n"
    "                      folder OUT, as mn_open_frozen maps it; asks no shard. With --dtype, "
    "the\n"
    "                      tables named (all, when none is) become f32, bf16 or int8\n"
    "\n"
    "  --target T          static:HOST:PORT,HOST:PORT,... in the order of the shards' --shard\n"
    "                      numbers (default static:127.0.0.1:7700); local:DIR for a folder\n"
    "  --group G           default \"default\"\n"
    "  --json              one JSON object a line, for programs; bytes are exact\n"
    "  --deadline SECONDS  of each call (default 10; status 3, save, load, move and freeze 600)\n"
    "  --rate MB           save: each shard writes this many megabytes a second at most\n"
    "  --step N            load: the save of step N in DIR, if it is kept (mneme-shard\n"
    "                      --saves-kept); default: the newest\n"
    "  --from A --to B     move: shards, by their --shard numbers; --tiles N: how many\n"
    "  --dtype D           freeze: f32, bf16 or int8 (default: each table its own)\n"
    "  --token TOKEN       sent to the shards as \"Bearer TOKEN\"\n"
    "  --help, --version\n"
    "\n"
    "TRACEPARENT in the environment (W3C Trace Context) goes to the shards, which log it.\n"
    "save, load and move show how far they are: on a terminal at once, else every 5 seconds, both\n"
    "on standard error; with --json an object every second on standard output.\n"
    "The command joins no group and fences no trainer. It exits with 0 when all went well, 1 when\n"
    "a call failed or a shard did not answer, 2 when the command line is wrong.\n"
    "\n"
    "examples:\n"
    "  mneme --target static:10.0.0.1:7700,10.0.0.2:7700 status\n"
    "  mneme --group run-7 fetch layer4 0 17 100-103\n"
    "  mneme --group run-7 --json tables | jq .resident_bytes\n";

void cli_help(void) { (void)fputs(help, stdout); }

static int usage(const char *format, const char *word)
{
    (void)fprintf(stderr, "mneme: ");
    (void)fprintf(stderr, format, word);
    (void)fprintf(stderr, "; mneme --help tells more\n");
    return CLI_USAGE;
}

/* How many words follow each command: [least, most]. */
static const struct {
    const char *name, *wants;
    int least, most;
} commands[] = {
    {"status", "nothing", 0, 0},
    {"tables", "nothing", 0, 0},
    {"describe", "NAME", 1, 1},
    {"fetch", "NAME ROW ...", 2, 1 << 20},
    {"save", "DIR", 1, 1},
    {"load", "DIR", 1, 1},
    {"move", "NAME --from A --to B", 1, 1},
    {"freeze", "DIR OUT [NAME ...]", 2, 66},
};

static int check_command(const cli_flags *flags)
{
    char text[160];
    if (!flags->word_count)
        return usage("no command%s", "");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        int given = flags->word_count - 1;
        if (strcmp(commands[i].name, flags->words[0]) != 0)
            continue;
        bool shards = strcmp(commands[i].name, "move") != 0 || (flags->from && flags->to);
        if (given >= commands[i].least && given <= commands[i].most && shards)
            return CLI_OK;
        (void)snprintf(text, sizeof text, "%s takes %s", commands[i].name, commands[i].wants);
        return usage("%s", text);
    }
    return usage("\"%s\" is no command", flags->words[0]);
}

/* A number from 0.001 up to `most`, told in units of 1 / `units`. */
static int parse_number(const char *value, double most, double units, const char *refusal,
                        uint64_t *out_units)
{
    char *end;
    double number = strtod(value, &end);
    if (end == value || *end || !(number >= 0.001 && number <= most))
        return usage(refusal, value);
    *out_units = (uint64_t)(number * units);
    return CLI_OK;
}

static int parse_deadline(const char *value, uint64_t *out_ms)
{
    return parse_number(value, 86400, 1000,
                        "--deadline \"%s\" is not a number of seconds, 0.001 to 86400", out_ms);
}

static int parse_rate(const char *value, uint64_t *out_bytes)
{
    return parse_number(value, 1e6, 1e6,
                        "--rate \"%s\" is not a number of megabytes, 0.001 to 1000000", out_bytes);
}

static int parse_step(const char *value, uint64_t *out_step)
{
    char *end;
    *out_step = strtoull(value, &end, 10);
    if (value[0] < '0' || value[0] > '9' || *end || !*out_step)
        return usage("--step \"%s\" is not a step, from 1 on", value);
    return CLI_OK;
}

/* `first` and above; *out_number counts from 1. */
static int parse_count(const char *flag, const char *value, unsigned long first,
                       uint32_t *out_number)
{
    char *end, text[160];
    unsigned long number = strtoul(value, &end, 10);
    (void)snprintf(text, sizeof text, "%s \"%.100s\" is not a number from %lu on", flag, value,
                   first);
    if (value[0] < '0' || value[0] > '9' || *end || number < first || number >= UINT32_MAX)
        return usage("%s", text);
    *out_number = (uint32_t)(number - first + 1);
    return CLI_OK;
}

/* A flag of numbers, if it is one. */
static int parse_numbers(const char *flag, const char *value, cli_flags *flags, bool *out_is)
{
    const struct {
        const char *name;
        unsigned long first;
        uint32_t *to;
    } numbers[] = {
        {"--from", 0, &flags->from}, {"--to", 0, &flags->to}, {"--tiles", 1, &flags->tiles}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        *out_is = !strcmp(flag, numbers[i].name);
        if (*out_is && !value)
            return usage("%s needs a value", flag);
        if (*out_is)
            return parse_count(flag, value, numbers[i].first, numbers[i].to);
    }
    return CLI_OK;
}

/* A flag and its value; *out_used: arguments taken, 0 when it is no flag. */
static int parse_flag(char **arguments, int left, cli_flags *flags, int *out_used)
{
    const char *flag = arguments[0], *value = left > 1 ? arguments[1] : NULL;
    const struct {
        const char *name;
        const char **to;
    } texts[] = {{"--target", &flags->target},
                 {"--group", &flags->group},
                 {"--token", &flags->authorization},
                 {"--dtype", &flags->dtype}};
    const struct {
        const char *name;
        bool *to;
    } switches[] = {
        {"--json", &flags->json}, {"--help", &flags->help}, {"--version", &flags->version}};
    *out_used = 1;
    for (size_t i = 0; i < sizeof switches / sizeof *switches; i++) {
        if (!strcmp(flag, switches[i].name)) {
            *switches[i].to = true;
            return CLI_OK;
        }
    }
    bool deadline = !strcmp(flag, "--deadline"), rate = !strcmp(flag, "--rate");
    bool step = !strcmp(flag, "--step");
    *out_used = 2;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (!strcmp(flag, texts[i].name) && value) {
            *texts[i].to = value;
            return CLI_OK;
        }
        if (!strcmp(flag, texts[i].name))
            return usage("%s needs a value", flag);
    }
    bool number;
    int failed = parse_numbers(flag, value, flags, &number);
    if (failed || number)
        return failed;
    if ((deadline || rate || step) && !value)
        return usage("%s needs a value", flag);
    if (deadline)
        return parse_deadline(value, &flags->deadline_ms);
    if (rate)
        return parse_rate(value, &flags->bytes_per_second);
    if (step)
        return parse_step(value, &flags->step);
    *out_used = 0;
    return flag[0] == '-' && flag[1] == '-' ? usage("%s is no flag", flag) : CLI_OK;
}

int cli_flags_parse(int count, char **arguments, cli_flags *out_flags)
{
    cli_flags flags = {.target = "static:127.0.0.1:7700", .group = "default", .tiles = 1};
    int at = 1, used = 1, words = 1;
    for (; at < count; at += used) {
        int failed = parse_flag(arguments + at, count - at, &flags, &used);
        if (failed)
            return failed;
        if (!used) { /* flags may follow the command: words move to the front */
            arguments[words++] = arguments[at];
            used = 1;
        }
    }
    flags.words = (const char *const *)arguments + 1;
    flags.word_count = words - 1;
    int failed = flags.help || flags.version ? CLI_OK : check_command(&flags);
    if (!failed)
        *out_flags = flags;
    return failed;
}
