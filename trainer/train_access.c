/* The model reads its memories through the client; evaluation may put zeros or shuffled rows in
 * their place. A GPU's reads are first copied to the host, and the answers back, beside what it
 * computes meanwhile. */
#include "mn_proto.h"
#include "train.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "nn.h"

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
    const mn_training *training = context;
    mn_read_counts *counts = training->counting;
    if (!counts)
        return;
    uint32_t run = reads->per_query / counts->heads; /* heads lie one after the other */
    for (uint64_t i = 0; i < reads->queries * counts->heads; i++)
        mn_usage_add(&counts->usages[memory * counts->heads + i % counts->heads],
                     reads->rows + i * run, reads->weights + i * run, run);
}

/* ---- From a GPU ---- */

/* Each memory has a transit of its own, which is its ticket. */
static uint32_t memory_of(const mn_training *training, const mn_memory_reads *reads)
{
    return reads->part % training->model->options.placement_count;
}

static uint64_t vector_bytes(const mn_training *training, const mn_memory_reads *reads)
{
    return reads->queries * row_bytes(training, reads->table);
}

static void *gpu_bag_start(void *context, const mn_memory_reads *reads, mn_real *out_bags)
{
    mn_training *training = context;
    const mn_nn *nn = training->nn;
    mn_transit *transit = &training->transits[memory_of(training, reads)];
    uint64_t count = reads->queries * reads->per_query;
    transit->reads = *reads;
    transit->out = out_bags;
    transit->gradient = false;
    nn->memory->copy_out(nn, transit->rows, reads->rows, count * sizeof *transit->rows);
    nn->memory->copy_out(nn, transit->weights, reads->weights, count * sizeof *transit->weights);
    return transit;
}

/* Of what the last bag of this memory has read: its rows and weights are here still. */
static void *gpu_bag_grad_start(void *context, const mn_memory_reads *reads,
                                const mn_real *output_gradients, mn_real *out_weight_gradients)
{
    mn_training *training = context;
    const mn_nn *nn = training->nn;
    mn_transit *transit = &training->transits[memory_of(training, reads)];
    transit->reads = *reads;
    transit->out = out_weight_gradients;
    transit->gradient = true;
    nn->memory->copy_out(nn, transit->vectors, output_gradients, vector_bytes(training, reads));
    return transit;
}

/* As the CPU's reads would be asked for. */
static void *host_start(mn_training *training, const mn_transit *transit,
                        const mn_memory_reads *reads)
{
    return transit->gradient
               ? bag_grad_start(training, reads, transit->vectors, transit->weight_gradients)
               : bag_start(training, reads, transit->vectors);
}

/* All that the model computes beside the memory is queued by now: the GPU goes on with it while the
 * call travels. */
static enum mn_status gpu_ticket_wait(void *context, void *ticket, mn_error *error)
{
    mn_training *training = context;
    const mn_nn *nn = training->nn;
    mn_transit *transit = ticket;
    mn_memory_reads reads = transit->reads;
    enum mn_status status = nn->memory->copies_wait(nn, error);
    if (status)
        return status;
    reads.rows = transit->rows;
    reads.weights = transit->weights;
    void *of_host = host_start(training, transit, &reads);
    if (!transit->gradient)
        selected(training, memory_of(training, &reads), &reads);
    status = ticket_wait(training, of_host, error);
    if (status)
        return status;
    if (transit->gradient)
        nn->memory->copy_in(nn, transit->out, transit->weight_gradients,
                            reads.queries * reads.per_query * sizeof *transit->weight_gradients);
    else
        nn->memory->copy_in(nn, transit->out, transit->vectors, vector_bytes(training, &reads));
    return MN_OK;
}

void mn_training_access_init(mn_training *training)
{
    bool gpu = training->gpu != NULL;
    training->access =
        (mn_memory_access){.context = training,
                           .bag_start = gpu ? gpu_bag_start : bag_start,
                           .bag_grad_start = gpu ? gpu_bag_grad_start : bag_grad_start,
                           .wait = gpu ? gpu_ticket_wait : ticket_wait,
                           .reduce = training->options->ranks > 1 ? reduce : NULL,
                           .now_ns = mn_train_now_ns,
                           .selected = gpu ? NULL : selected};
}
