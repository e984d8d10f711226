/* The model reads its memories through the client; evaluation may put zeros or shuffled rows in
 * their place. */
#include "mn_proto.h"
#include "train.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

uint64_t mn_train_now_ns(void *unused)
{
    (void)unused;
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail with this clock */
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t mn_train_cpu_ns(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now); /* cannot fail with this clock */
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static mn_queries queries_of(const mn_memory_reads *reads, const uint64_t *rows)
{
    /* Rows are far below 2^63, so u64 and i64 are the same bytes; the client only reads them. */
    return (mn_queries){.queries = reads->queries,
                        .per_query = reads->per_query,
                        .indices = mn_i64((int64_t *)(uintptr_t)rows),
                        .weights = mn_f32((float *)(uintptr_t)reads->weights)};
}

static uint64_t row_bytes(const mn_training *training, uint32_t table)
{
    return (uint64_t)mn_table_spec_of(training->values[table])->dim * sizeof(float);
}

/* A ticket is a future, or one of these for what was answered here. */
static char answered, failed;

static void *bag_shuffled(mn_training *training, const mn_memory_reads *reads, float *out_bags)
{
    uint64_t count = reads->queries * reads->per_query;
    uint64_t *rows = malloc(count * sizeof *rows);
    if (!rows) {
        (void)mn_fail(&training->failure, MN_NO_MEMORY, "ablation", "no memory"); /* told by wait */
        return &failed;
    }
    uint64_t table_rows = mn_table_spec_of(training->values[reads->table])->rows;
    for (uint64_t i = 0; i < count; i++)
        rows[i] = mn_row_shuffled(reads->rows[i], table_rows);
    mn_queries queries = queries_of(reads, rows);
    mn_future *future =
        mn_bag(training->values[reads->table], training->step, &queries, mn_f32(out_bags));
    /* The rows must stay until the answer: wait here, for evaluation has time. */
    enum mn_status status = mn_wait(future, &training->failure);
    free(rows);
    return status ? &failed : &answered;
}

static void *bag_start(void *context, const mn_memory_reads *reads, mn_real *out_bags)
{
    mn_training *training = context;
    if (training->ablation == MN_ABLATION_ZEROS) {
        memset(out_bags, 0, reads->queries * row_bytes(training, reads->table));
        return &answered;
    }
    if (training->ablation == MN_ABLATION_SHUFFLED)
        return bag_shuffled(training, reads, out_bags);
    mn_queries queries = queries_of(reads, reads->rows);
    return mn_bag(training->values[reads->table], training->step, &queries, mn_f32(out_bags));
}

static void *bag_grad_start(void *context, const mn_memory_reads *reads,
                            const mn_real *output_gradients, mn_real *out_weight_gradients)
{
    mn_training *training = context;
    mn_queries queries = queries_of(reads, reads->rows);
    return mn_bag_grad(training->values[reads->table], training->step, reads->part, &queries,
                       mn_f32((float *)(uintptr_t)output_gradients), mn_f32(out_weight_gradients));
}

static enum mn_status ticket_wait(void *context, void *ticket, mn_error *error)
{
    const mn_training *training = context;
    if (ticket == &answered)
        return MN_OK;
    if (ticket != &failed)
        return mn_wait(ticket, error);
    if (error)
        *error = training->failure;
    return training->failure.status;
}

static enum mn_status reduce(void *context, const char *name, double *values, uint32_t count,
                             mn_error *error)
{
    mn_training *training = context;
    return mn_reduce(training->client, training->step, name, values, count, error);
}

static void selected(void *context, uint32_t memory, const mn_memory_reads *reads)
{
    mn_training *training = context;
    mn_read_counts *counts = training->counting;
    if (!counts)
        return;
    uint32_t run = reads->per_query / counts->heads; /* heads lie one after the other */
    for (uint64_t i = 0; i < reads->queries * counts->heads; i++)
        mn_usage_add(&counts->usages[memory * counts->heads + i % counts->heads],
                     reads->rows + i * run, reads->weights + i * run, run);
}

void mn_training_access_init(mn_training *training)
{
    training->access = (mn_memory_access){.context = training,
                                          .bag_start = bag_start,
                                          .bag_grad_start = bag_grad_start,
                                          .wait = ticket_wait,
                                          .reduce = training->options->ranks > 1 ? reduce : NULL,
                                          .now_ns = mn_train_now_ns,
                                          .selected = selected};
}
