/* How a table is read: what its shards counted, as metrics. */
#include "cli.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static enum mn_status measure(mn_client *client, const char *name, mn_usage *usage,
                              mn_usage_metrics *out_metrics, mn_error *error)
{
    mn_table *table;
    enum mn_status failed = mn_table_find(client, name, &table, error);
    if (!failed)
        failed = mn_table_usage(table, usage, error);
    if (failed || !usage->rows)
        return failed;
    uint64_t *scratch = malloc(usage->rows * sizeof *scratch);
    usage->counts = malloc(usage->rows * sizeof *usage->counts);
    usage->weights = malloc(usage->rows * sizeof *usage->weights);
    if (!scratch || !usage->counts || !usage->weights)
        failed = mn_fail(error, MN_NO_MEMORY, "usage", "no memory for %" PRIu64 " counters",
                         usage->rows);
    if (!failed)
        failed = mn_table_usage(table, usage, error);
    if (!failed)
        *out_metrics = mn_usage_measure(usage, scratch);
    free(scratch);
    free(usage->counts);
    free(usage->weights);
    return failed;
}

static void print_json(const mn_usage_metrics *m)
{
    (void)printf(",\"usage\":{\"reads\":%" PRIu64 ",\"rows\":%" PRIu64
                 ",\"used_percent\":%.17g,\"kl_count\":%.17g,\"kl_weight\":%.17g,\"gini\":%.17g,"
                 "\"top50\":%" PRIu64 ",\"top90\":%" PRIu64 ",\"top99\":%" PRIu64 "}",
                 m->reads, m->rows, m->used_percent, m->kl_count, m->kl_weight, m->gini, m->top50,
                 m->top90, m->top99);
}

static void print_text(const mn_usage *usage, const mn_usage_metrics *m)
{
    (void)printf("reads      %" PRIu64, m->reads);
    if (usage->rows < usage->table_rows)
        (void)printf(" (of a sample of %" PRIu64 " rows)", usage->rows);
    (void)printf(": %.2f %% of rows used, KL %.4f by count, %.4f by weight, Gini %.4f\n",
                 m->used_percent, m->kl_count, m->kl_weight, m->gini);
    (void)printf("           50, 90, 99 %% of reads are of %" PRIu64 ", %" PRIu64 ", %" PRIu64
                 " rows\n",
                 m->top50, m->top90, m->top99);
}

int cli_usage(const cli_flags *flags, mn_client *client, const char *table)
{
    mn_usage usage = {0};
    mn_usage_metrics metrics;
    mn_error error;
    if (measure(client, table, &usage, &metrics, &error))
        return cli_complain(flags, &error);
    if (usage.rows && flags->json)
        print_json(&metrics);
    else if (usage.rows)
        print_text(&usage, &metrics);
    else if (!flags->json)
        (void)printf("reads      not counted (mneme-shard --usage-budget)\n");
    return CLI_OK;
}
