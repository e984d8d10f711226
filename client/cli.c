/* mneme: the operator's command. A reader of the group: it fences nobody. */
#include "cli.h"
#include "mn_proto.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { INFOS_MAX = 64, FETCH_ROWS_MAX = 4096, SHOWN_COLUMNS = 8, LONG_DEADLINE_MS = 600000 };

/* ---- Status: each shard is asked by a client of its own, so that one that is down hides no other
 * ---- */

static void print_group(const cli_flags *flags, uint32_t shard, const mn_group_status *group,
                        const mn_files_status *files, bool first)
{
    cli_line line;
    cli_line_begin(&line, flags->json, first);
    cli_number(&line, "shard", 5, shard);
    cli_text(&line, "group", 16, group->name);
    cli_number(&line, "step", 8, group->committed_step);
    cli_number(&line, "ranks", 5, group->ranks);
    cli_number(&line, "tables", 6, group->tables);
    cli_number(&line, "map_epoch", 9, group->map_epoch);
    cli_number(&line, "parked", 6, group->parked);
    cli_bytes(&line, "read_bytes", 10, group->read_bytes);
    cli_bytes(&line, "read_bytes_max", 14, group->read_bytes_max);
    cli_bytes(&line, "change_bytes", 12, group->change_bytes);
    cli_bytes(&line, "change_bytes_max", 16, group->change_bytes_max);
    cli_files_fields(&line, files);
    cli_line_end(&line);
    cli_files_line(flags, shard, files);
}

static int ask_shard(const cli_flags *flags, const mn_client_options *options, uint32_t shard,
                     bool *in_out_first)
{
    mn_group_status groups[INFOS_MAX];
    mn_files_status files[MN_FILES_STATUS_MAX] = {{.ended_ms = 1}};
    uint32_t count = INFOS_MAX, files_count = MN_FILES_STATUS_MAX;
    mn_client *client = NULL;
    mn_error error;
    enum mn_status failed = mn_client_open(options, &client, &error);
    if (!failed)
        failed = mn_shard_status(client, 0, groups, &count, &error);
    if (!failed)
        failed = mn_shard_files(client, 0, files, &files_count, &error);
    mn_client_close(client);
    if (failed) {
        static const char only[] = "shard 0: "; /* its place in a list of one */
        mn_error whose = error;
        (void)snprintf(whose.field, sizeof whose.field, "shard %u", shard);
        if (!strncmp(error.message, only, strlen(only)))
            (void)snprintf(whose.message, sizeof whose.message, "%s", error.message + strlen(only));
        return cli_complain(flags, &whose);
    }
    for (uint32_t i = 0; i < count; i++) {
        print_group(flags, shard, &groups[i], files, *in_out_first);
        *in_out_first = false;
    }
    if (!count && !flags->json)
        (void)printf("shard %u serves no group\n", shard);
    if (!count)
        cli_files_alone(flags, shard, files);
    return CLI_OK;
}

static int status(const cli_flags *flags, const mn_client_options *options)
{
    static const char prefix[] = "static:";
    const char *next = options->target + strlen(prefix);
    int result = CLI_OK;
    bool first = true;
    if (strncmp(options->target, prefix, strlen(prefix)) != 0)
        return ask_shard(flags, options, 0, &first);
    for (uint32_t shard = 0; next; shard++) {
        char target[300];
        mn_client_options one = *options;
        size_t length = strcspn(next, ",");
        (void)snprintf(target, sizeof target, "%s%.*s", prefix, (int)length, next);
        one.target = target;
        next = next[length] ? next + length + 1 : NULL;
        if (ask_shard(flags, &one, shard, &first))
            result = CLI_FAILED;
    }
    return result;
}

/* ---- Tables ---- */

static const char *const optimizers[] = {"none", "sgd",  "adagrad", "rowwise-adagrad",
                                         "adam", "adamw"};
static const char *const inits[] = {"zero", "constant", "normal", "uniform"};

static const char *word(const char *const *words, size_t count, unsigned index)
{
    return index < count ? words[index] : "?";
}
#define WORD(words, index) word(words, sizeof(words) / sizeof *(words), (unsigned)(index))

static const char *split_name(const mn_table_spec *spec)
{
    return spec->split == MN_ROWS ? "rows" : "columns";
}

/* The tables as each shard lists them: [shard][INFOS_MAX]. */
typedef struct listing {
    mn_table_status *tables;
    uint32_t *counts;
    uint32_t shards;
} listing;

static void listing_free(listing *list)
{
    free(list->tables);
    free(list->counts);
}

static int list_all(const cli_flags *flags, mn_client *client, listing *out_list)
{
    uint32_t shards = mn_client_shards(client);
    listing list = {calloc((size_t)shards * INFOS_MAX, sizeof *list.tables),
                    calloc(shards, sizeof *list.counts), shards};
    mn_error error = {0};
    (void)mn_fail(&error, MN_NO_MEMORY, "shards", "no memory to list %u shards", shards);
    enum mn_status failed = list.tables && list.counts ? MN_OK : MN_NO_MEMORY;
    for (uint32_t shard = 0; shard < shards && !failed; shard++) {
        list.counts[shard] = INFOS_MAX;
        failed = mn_shard_tables(client, shard, list.tables + (size_t)shard * INFOS_MAX,
                                 &list.counts[shard], &error);
    }
    if (failed) {
        listing_free(&list);
        return cli_complain(flags, &error);
    }
    *out_list = list;
    return CLI_OK;
}

static const mn_table_status *find(const listing *list, uint32_t shard, const char *name)
{
    for (uint32_t i = 0; i < list->counts[shard]; i++) {
        const mn_table_status *table = &list->tables[(size_t)shard * INFOS_MAX + i];
        if (!strcmp(table->spec.name, name))
            return table;
    }
    return NULL;
}

static void sum_shards(const listing *list, const char *name, uint64_t *out_written,
                       uint64_t *out_resident)
{
    uint64_t written = 0, resident = 0;
    for (uint32_t shard = 0; shard < list->shards; shard++) {
        const mn_table_status *table = find(list, shard, name);
        if (!table)
            continue;
        resident += table->resident_bytes;
        if (table->spec.split == MN_ROWS)
            written += table->rows_written; /* each shard has rows of its own */
        else if (table->rows_written > written)
            written = table->rows_written; /* each has its columns of all rows */
    }
    *out_written = written;
    *out_resident = resident;
}

static int tables(const cli_flags *flags, mn_client *client)
{
    listing list;
    int failed = list_all(flags, client, &list);
    if (failed)
        return failed;
    for (uint32_t i = 0; i < list.counts[0]; i++) {
        const mn_table_status *table = &list.tables[i];
        uint64_t written, resident;
        cli_line line;
        sum_shards(&list, table->spec.name, &written, &resident);
        cli_line_begin(&line, flags->json, i == 0);
        cli_text(&line, "name", 20, table->spec.name);
        cli_number(&line, "id", 4, table->table);
        cli_number(&line, "rows", 12, table->spec.rows);
        cli_number(&line, "dim", 6, table->spec.dim);
        cli_text(&line, "dtype", 5, mn_dtype_name(table->spec.dtype));
        cli_text(&line, "split", 7, split_name(&table->spec));
        cli_number(&line, "tiles", 5, table->spec.tiles);
        if (flags->json)
            cli_number(&line, "moved", 0, table->moved);
        else
            cli_text(&line, "moved", 5, table->moved ? "yes" : "no");
        cli_text(&line, "optimizer", 15, WORD(optimizers, table->spec.optimizer.kind));
        cli_number(&line, "rows_written", 12, written);
        cli_bytes(&line, "resident_bytes", 14, resident);
        cli_line_end(&line);
    }
    if (!list.counts[0] && !flags->json)
        (void)printf("group %s has no tables\n", flags->group);
    listing_free(&list);
    return CLI_OK;
}

static void describe_json(const mn_table_status *table)
{
    const mn_table_spec *spec = &table->spec;
    (void)printf("{\"name\":\"%s\",\"id\":%" PRIu64 ",\"rows\":%" PRIu64
                 ",\"dim\":%u,\"dtype\":\"%s\",\"split\":\"%s\",\"tiles\":%u,\"seed\":%" PRIu64,
                 spec->name, table->table, spec->rows, spec->dim, mn_dtype_name(spec->dtype),
                 split_name(spec), spec->tiles, spec->seed);
    (void)printf(",\"moved\":%" PRIu64 ",\"init\":{\"kind\":\"%s\",\"a\":", table->moved,
                 WORD(inits, spec->init.kind));
    cli_json_float(spec->init.a);
    (void)printf(",\"b\":");
    cli_json_float(spec->init.b);
    (void)printf("},\"optimizer\":{\"kind\":\"%s\",\"beta1\":",
                 WORD(optimizers, spec->optimizer.kind));
    cli_json_float(spec->optimizer.beta1);
    (void)printf(",\"beta2\":");
    cli_json_float(spec->optimizer.beta2);
    (void)printf(",\"eps\":");
    cli_json_float(spec->optimizer.eps);
    (void)printf(",\"state_dtype\":\"%s\",\"row_correction\":%s}",
                 mn_dtype_name(spec->optimizer.state_dtype),
                 spec->optimizer.row_correction ? "true" : "false");
}

static void describe_text(const mn_table_status *table)
{
    const mn_table_spec *spec = &table->spec;
    (void)printf("table      %s (id %" PRIu64 ")\n", spec->name, table->table);
    (void)printf("shape      %" PRIu64 " rows x %u columns, %s\n", spec->rows, spec->dim,
                 mn_dtype_name(spec->dtype));
    (void)printf("split      by %s, %u tiles", split_name(spec), spec->tiles);
    if (table->moved)
        (void)printf(", moved since they were made");
    (void)puts("");
    (void)printf("init       %s (a %g, b %g), seed %" PRIu64 "\n", WORD(inits, spec->init.kind),
                 (double)spec->init.a, (double)spec->init.b, spec->seed);
    (void)printf("optimizer  %s (beta1 %g, beta2 %g, eps %g), state %s%s\n",
                 WORD(optimizers, spec->optimizer.kind), (double)spec->optimizer.beta1,
                 (double)spec->optimizer.beta2, (double)spec->optimizer.eps,
                 mn_dtype_name(spec->optimizer.state_dtype),
                 spec->optimizer.row_correction ? ", corrected by the row's own count" : "");
}

static int describe(const cli_flags *flags, mn_client *client)
{
    listing list;
    int failed = list_all(flags, client, &list);
    if (failed)
        return failed;
    const mn_table_status *table = find(&list, 0, flags->words[1]);
    if (!table) {
        mn_error error;
        (void)mn_fail(&error, MN_NOT_FOUND, "table", "group %s has no table \"%.63s\"",
                      flags->group, flags->words[1]);
        listing_free(&list);
        return cli_complain(flags, &error);
    }
    if (flags->json)
        describe_json(table);
    else
        describe_text(table);
    failed = cli_usage(flags, client, flags->words[1]);
    (void)puts(flags->json ? "}" : "");
    for (uint32_t shard = 0; shard < list.shards; shard++) {
        const mn_table_status *here = find(&list, shard, flags->words[1]);
        cli_line line;
        cli_line_begin(&line, flags->json, shard == 0);
        cli_number(&line, "shard", 5, shard);
        cli_number(&line, "tile_first", 10, here ? here->tile_first : 0);
        cli_number(&line, "tile_count", 10, here ? here->tile_count : 0);
        cli_number(&line, "rows_written", 12, here ? here->rows_written : 0);
        cli_bytes(&line, "resident_bytes", 14, here ? here->resident_bytes : 0);
        cli_line_end(&line);
    }
    listing_free(&list);
    return failed;
}

/* ---- Fetch ---- */

static bool parse_number(const char *text, const char **out_end, uint64_t *out_value)
{
    uint64_t value = 0;
    const char *c = text;
    for (; *c >= '0' && *c <= '9'; c++) {
        if (value > (UINT64_MAX - 9) / 10)
            return false;
        value = value * 10 + (uint64_t)(*c - '0');
    }
    *out_end = c;
    *out_value = value;
    return c > text;
}

/* "7" or "7-9", appended; false when it is neither, or too many rows. */
static bool parse_rows(const char *text, int64_t *rows, uint64_t *in_out_count)
{
    uint64_t first, last;
    const char *end;
    if (!parse_number(text, &end, &first))
        return false;
    last = first;
    if (*end == '-' && !parse_number(end + 1, &end, &last))
        return false;
    if (*end || last < first || last > INT64_MAX || last - first >= FETCH_ROWS_MAX - *in_out_count)
        return false;
    for (uint64_t row = first; row <= last; row++)
        rows[(*in_out_count)++] = (int64_t)row;
    return true;
}

static void print_row(const cli_flags *flags, int64_t row, uint64_t step, const float *values,
                      uint32_t dim)
{
    if (flags->json) {
        (void)printf("{\"row\":%" PRId64 ",\"step\":%" PRIu64 ",\"values\":[", row, step);
        for (uint32_t c = 0; c < dim; c++) {
            if (c)
                (void)putchar(',');
            cli_json_float(values[c]);
        }
        (void)puts("]}");
        return;
    }
    (void)printf("row %-10" PRId64 " step %-8" PRIu64, row, step);
    for (uint32_t c = 0; c < dim && c < SHOWN_COLUMNS; c++)
        (void)printf(" %12.6g", (double)values[c]);
    (void)puts(dim > SHOWN_COLUMNS ? " ..." : "");
}

/* Waits without taking the future's end away, so that its step can be asked. */
static void wait_ready(const mn_future *future)
{
    const struct timespec pause = {.tv_nsec = 1000000};
    while (future && !mn_ready(future))
        (void)nanosleep(&pause, NULL); /* cut short by a signal: no harm */
}

static enum mn_status fetch_rows(const cli_flags *flags, mn_client *client, int64_t *rows,
                                 uint64_t count, mn_error *error)
{
    mn_table *table;
    enum mn_status failed = mn_table_find(client, flags->words[1], &table, error);
    if (failed)
        return failed;
    uint32_t dim = mn_table_spec_of(table)->dim;
    float *values = calloc(count * dim, sizeof *values);
    if (!values)
        return mn_fail(error, MN_NO_MEMORY, "rows", "no memory for %" PRIu64 " rows", count);
    mn_rows wanted = {count, mn_i64(rows)};
    mn_future *future = mn_fetch(table, MN_LATEST, &wanted, mn_f32(values), NULL);
    wait_ready(future);
    uint64_t step = mn_answered_step(future);
    failed = mn_wait(future, error);
    for (uint64_t i = 0; i < count && !failed; i++)
        print_row(flags, rows[i], step, values + i * dim, dim);
    free(values);
    return failed;
}

static int fetch(const cli_flags *flags, mn_client *client)
{
    int64_t rows[FETCH_ROWS_MAX];
    uint64_t count = 0;
    mn_error error;
    for (int i = 2; i < flags->word_count; i++) {
        if (!parse_rows(flags->words[i], rows, &count)) {
            (void)fprintf(stderr,
                          "mneme: \"%s\" is neither a row nor FIRST-LAST, %d rows at most\n",
                          flags->words[i], FETCH_ROWS_MAX);
            return CLI_USAGE;
        }
    }
    return fetch_rows(flags, client, rows, count, &error) ? cli_complain(flags, &error) : CLI_OK;
}

/* ---- The program ---- */

static const struct {
    const char *name;
    int (*run)(const cli_flags *flags, mn_client *client); /* NULL: status, with its own clients */
    uint64_t deadline_ms;
} commands[] = {
    {"status", NULL, 3000},
    {"tables", tables, 10000},
    {"describe", describe, 10000},
    {"fetch", fetch, 10000},
    {"save", cli_save, LONG_DEADLINE_MS},
    {"load", cli_load, LONG_DEADLINE_MS},
    {"move", cli_move, LONG_DEADLINE_MS},
};

mn_client_options cli_client_options(const cli_flags *flags, uint64_t deadline_ms)
{
    static char bearer[8192]; /* more than a client takes: too long a token is not cut */
    (void)snprintf(bearer, sizeof bearer, "Bearer %s",
                   flags->authorization ? flags->authorization : "");
    return (mn_client_options){
        .target = flags->target,
        .group = flags->group,
        .reader = true,
        .authorization = flags->authorization ? bearer : NULL,
        .traceparent = mn_traceparent_usable(getenv("TRACEPARENT")),
        .deadline_ms = deadline_ms,
        .log_level = MN_LOG_SILENT,
    };
}

static int run(const cli_flags *flags)
{
    size_t at = 0;
    if (!strcmp(flags->words[0], "freeze"))
        return cli_freeze(flags);
    mn_client *client;
    mn_error error;
    while (strcmp(commands[at].name, flags->words[0]) != 0)
        at++; /* the flags were checked: it is there */
    const uint64_t deadline_ms = flags->deadline_ms;
    const mn_client_options options =
        cli_client_options(flags, deadline_ms ? deadline_ms : commands[at].deadline_ms);
    if (!commands[at].run)
        return status(flags, &options);
    if (mn_client_open(&options, &client, &error))
        return cli_complain(flags, &error);
    int result = commands[at].run(flags, client);
    mn_client_close(client);
    return result;
}

int main(int count, char **arguments)
{
    cli_flags flags;
    int failed = cli_flags_parse(count, arguments, &flags);
    if (failed)
        return failed;
    if (flags.help) {
        cli_help();
        return CLI_OK;
    }
    if (flags.version) {
        (void)printf("mneme %s\n", mn_version());
        return CLI_OK;
    }
    return run(&flags);
}
