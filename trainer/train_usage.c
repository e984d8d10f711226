/* How the memories' rows are read: counted by every rank, summed over ranks, then measured. */
#include "train.h"

#include <stdlib.h>
#include <string.h>

/* A counter takes 16 bytes: of one set of them at most 128 MiB. Larger tables are sampled. */
enum { COUNTERS_MAX = 1 << 23 };

void mn_read_counts_destroy(mn_read_counts *counts)
{
    for (uint32_t i = 0; counts->usages && i < counts->memories * counts->heads; i++) {
        free(counts->usages[i].counts);
        free(counts->usages[i].weights);
    }
    free(counts->usages);
    *counts = (mn_read_counts){0};
}

enum mn_status mn_read_counts_create(const mn_model *model, uint32_t heads,
                                     mn_read_counts *out_counts, mn_error *error)
{
    mn_read_counts counts = {.memories = model->options.placement_count, .heads = heads};
    uint64_t table_rows = (uint64_t)model->options.memory.keys * model->options.memory.keys;
    uint64_t most = COUNTERS_MAX / ((uint64_t)counts.memories * heads);
    uint64_t rows = table_rows < most ? table_rows : most;
    uint32_t count = counts.memories * heads;
    bool room = (counts.usages = calloc(count, sizeof *counts.usages)) != NULL;
    for (uint32_t i = 0; room && i < count; i++) {
        counts.usages[i] = (mn_usage){.rows = rows,
                                      .table_rows = table_rows,
                                      .counts = calloc(rows, sizeof(uint64_t)),
                                      .weights = calloc(rows, sizeof(double))};
        room = counts.usages[i].counts && counts.usages[i].weights;
    }
    if (!room) {
        mn_read_counts_destroy(&counts);
        return mn_fail(error, MN_NO_MEMORY, "keys", "no memory to count the reads of %llu rows",
                       (unsigned long long)rows);
    }
    *out_counts = counts;
    return MN_OK;
}

/* Over ranks. Counts are exact in f64 up to 2^53. */
static enum mn_status usage_sum(mn_training *training, mn_usage *usage, double *sums,
                                mn_error *error)
{
    for (uint64_t first = 0; training->access.reduce && first < usage->rows;
         first += MN_REDUCE_VALUES_MAX) {
        uint64_t left = usage->rows - first;
        uint32_t count = left < MN_REDUCE_VALUES_MAX ? (uint32_t)left : MN_REDUCE_VALUES_MAX;
        for (uint32_t i = 0; i < count; i++)
            sums[i] = (double)usage->counts[first + i];
        enum mn_status status = mn_training_sum(training, sums, count, error);
        for (uint32_t i = 0; i < count; i++)
            usage->counts[first + i] = (uint64_t)sums[i];
        if (!status)
            status = mn_training_sum(training, usage->weights + first, count, error);
        if (status)
            return status;
    }
    return MN_OK;
}

/* Heads first; then their sums, which lie in the first head's counters: layers; then tables. */
static void measure(const mn_model *model, mn_read_counts *counts, void *scratch,
                    mn_usage_table *out_usage)
{
    for (uint32_t m = 0; m < counts->memories; m++) {
        mn_usage *heads = counts->usages + (size_t)m * counts->heads;
        for (uint32_t h = 0; h < counts->heads; h++)
            out_usage->heads[m][h] = mn_usage_measure(&heads[h], scratch);
        for (uint32_t h = 1; h < counts->heads; h++)
            mn_usage_sum(&heads[h], heads);
        out_usage->layers[m] = mn_usage_measure(heads, scratch);
    }
    for (uint32_t m = 1; model->table_count == 1 && m < counts->memories; m++)
        mn_usage_sum(&counts->usages[(size_t)m * counts->heads], counts->usages);
    for (uint32_t t = 0; t < model->table_count; t++)
        out_usage->tables[t] =
            mn_usage_measure(&counts->usages[(size_t)t * counts->heads], scratch);
}

enum mn_status mn_training_usage(mn_training *training, mn_read_counts *counts,
                                 mn_usage_table *out_usage, mn_error *error)
{
    uint64_t rows = counts->usages[0].rows; /* the same for all */
    uint64_t scratch_rows = rows > MN_REDUCE_VALUES_MAX ? rows : MN_REDUCE_VALUES_MAX;
    void *scratch = malloc(scratch_rows * sizeof(uint64_t));
    if (!scratch)
        return mn_fail(error, MN_NO_MEMORY, "keys", "no memory to measure the reads of %llu rows",
                       (unsigned long long)rows);
    enum mn_status status = MN_OK;
    for (uint32_t i = 0; i < counts->memories * counts->heads && !status; i++)
        status = usage_sum(training, &counts->usages[i], scratch, error);
    if (!status) {
        measure(training->model, counts, scratch, out_usage);
        for (uint32_t i = 0; i < counts->memories * counts->heads; i++) {
            memset(counts->usages[i].counts, 0, rows * sizeof(uint64_t));
            memset(counts->usages[i].weights, 0, rows * sizeof(double));
        }
    }
    free(scratch);
    return status;
}
