/* The model reads its memories through the client; evaluation may put zeros or shuffled rows in
 * their place. A GPU's reads are first copied to the host, and the answers back, beside what it
 * computes meanwhile; or the values are in its memory too, and nothing is copied. */
#include "mn_proto.h"
#include "train.h"

#include <stdlib.h>
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

/* An array of the model's. The client only reads those that are const here. */
static mn_array array_of(const mn_training *training, enum mn_dtype dtype, const void *data)
{
    mn_array array = {.data = (void *)(uintptr_t)data, .dtype = dtype, .memory = MN_MEMORY_HOST};
    if (training->near) {
        array.memory = MN_MEMORY_CUDA;
        array.stream = training->nn->memory->stream(training->nn);
    }
    return array;
}

static mn_queries queries_of(const mn_training *training, const mn_memory_reads *reads)
{
    /* Rows are far below 2^63, so u64 and i64 are the same bytes. */
    return (mn_queries){.queries = reads->queries,
                        .per_query = reads->per_query,
                        .indices = array_of(training, MN_I64, reads->rows),
                        .weights = array_of(training, MN_F32, reads->weights)};
}

static uint64_t row_bytes(const mn_training *training, uint32_t table)
{
    return (uint64_t)mn_table_spec_of(training->values[table])->dim * sizeof(float);
}

/* A ticket is a future, or one of these for what was answered here. */
static char answered, failed;

/* Other rows in the place of those read: in host memory, wherever these are. */
static enum mn_status rows_shuffle(const mn_training *training, const mn_memory_reads *reads,
                                   uint64_t *out_rows, mn_error *error)
{
    const mn_nn *nn = training->near ? training->nn : mn_nn_cpu();
    uint64_t count = reads->queries * reads->per_query;
    uint64_t table_rows = mn_table_spec_of(training->values[reads->table])->rows;
    enum mn_status status = nn->read(nn, out_rows, reads->rows, count * sizeof *out_rows, error);
    for (uint64_t i = 0; i < count && !status; i++)
        out_rows[i] = mn_row_shuffled(out_rows[i], table_rows);
    return status;
}

static void *bag_shuffled(mn_training *training, const mn_memory_reads *reads, float *out_bags)
{
    uint64_t *rows = malloc(reads->queries * reads->per_query * sizeof *rows);
    if (!rows) {
        (void)mn_fail(&training->failure, MN_NO_MEMORY, "ablation", "no memory"); /* told by wait */
        return &failed;
    }
    enum mn_status status = rows_shuffle(training, reads, rows, &training->failure);
    if (!status) {
        mn_queries queries = queries_of(training, reads);
        queries.indices = mn_i64((int64_t *)rows);
        mn_future *future = mn_bag(training->values[reads->table], training->step, &queries,
                                   array_of(training, MN_F32, out_bags));
        /* The rows must stay until the answer: wait here, for evaluation has time. */
        status = mn_wait(future, &training->failure);
    }
    free(rows);
    return status ? &failed : &answered;
}

static void *bag_zeros(const mn_training *training, const mn_memory_reads *reads, float *out_bags)
{
    const mn_nn *nn = training->near ? training->nn : mn_nn_cpu();
    nn->zero(nn, out_bags, reads->queries * row_bytes(training, reads->table));
    return &answered;
}

static void *bag_start(void *context, const mn_memory_reads *reads, mn_real *out_bags)
{
    mn_training *training = context;
    if (training->ablation == MN_ABLATION_ZEROS)
        return bag_zeros(training, reads, out_bags);
    if (training->ablation == MN_ABLATION_SHUFFLED)
        return bag_shuffled(training, reads, out_bags);
    mn_queries queries = queries_of(training, reads);
    return mn_bag(training->values[reads->table], training->step, &queries,
                  array_of(training, MN_F32, out_bags));
}

static void *bag_grad_start(void *context, const mn_memory_reads *reads,
                            const mn_real *output_gradients, mn_real *out_weight_gradients)
{
    mn_training *training = context;
    mn_queries queries = queries_of(training, reads);
    return mn_bag_grad(training->values[reads->table], training->step, reads->part, &queries,
                       array_of(training, MN_F32, output_gradients),
                       array_of(training, MN_F32, out_weight_gradients));
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

/* Bytes of the answer. */
static uint64_t answer_bytes(const mn_training *training, const mn_transit *transit)
{
    const mn_memory_reads *reads = &transit->reads;
    return transit->gradient ? reads->queries * reads->per_query * sizeof(float)
                             : vector_bytes(training, reads);
}

static mn_transit *transit_begin(mn_training *training, const mn_memory_reads *reads, float *out,
                                 bool gradient)
{
    mn_transit *transit = &training->transits[memory_of(training, reads)];
    transit->reads = *reads;
    transit->out = out;
    transit->gradient = gradient;
    return transit;
}

static void *gpu_bag_start(void *context, const mn_memory_reads *reads, mn_real *out_bags)
{
    mn_training *training = context;
    const mn_nn *nn = training->nn;
    mn_transit *transit = transit_begin(training, reads, out_bags, false);
    uint64_t count = reads->queries * reads->per_query;
    if (training->near)
        transit->ticket = bag_start(training, reads, out_bags);
    if (!training->near || training->counting) {
        nn->memory->copy_out(nn, transit->rows, reads->rows, count * sizeof *transit->rows);
        nn->memory->copy_out(nn, transit->weights, reads->weights,
                             count * sizeof *transit->weights);
    }
    return transit;
}

/* Of what the last bag of this memory has read: its rows and weights are here still. */
static void *gpu_bag_grad_start(void *context, const mn_memory_reads *reads,
                                const mn_real *output_gradients, mn_real *out_weight_gradients)
{
    mn_training *training = context;
    const mn_nn *nn = training->nn;
    mn_transit *transit = transit_begin(training, reads, out_weight_gradients, true);
    if (training->near)
        transit->ticket = bag_grad_start(training, reads, output_gradients, out_weight_gradients);
    else
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

/* The call was made at its start, in the stream. */
static enum mn_status near_wait(mn_training *training, const mn_transit *transit,
                                const mn_memory_reads *reads, mn_error *error)
{
    const mn_nn *nn = training->nn;
    enum mn_status status = MN_OK;
    if (!transit->gradient && training->counting) {
        status = nn->memory->copies_wait(nn, error);
        if (!status)
            selected(training, memory_of(training, reads), reads);
    }
    enum mn_status answer = ticket_wait(training, transit->ticket, status ? NULL : error);
    if (!status)
        status = answer;
    if (!status)
        nn->memory->written(nn, transit->out, answer_bytes(training, transit));
    return status;
}

/* All that the model computes beside the memory is queued by now: the GPU goes on with it while the
 * call travels. */
static enum mn_status gpu_ticket_wait(void *context, void *ticket, mn_error *error)
{
    mn_training *training = context;
    const mn_nn *nn = training->nn;
    mn_transit *transit = ticket;
    mn_memory_reads reads = transit->reads;
    reads.rows = transit->rows;
    reads.weights = transit->weights;
    if (training->near)
        return near_wait(training, transit, &reads, error);
    enum mn_status status = nn->memory->copies_wait(nn, error);
    if (status)
        return status;
    void *of_host = host_start(training, transit, &reads);
    if (!transit->gradient)
        selected(training, memory_of(training, &reads), &reads);
    status = ticket_wait(training, of_host, error);
    if (!status)
        nn->memory->copy_in(nn, transit->out,
                            transit->gradient ? transit->weight_gradients : transit->vectors,
                            answer_bytes(training, transit));
    return status;
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
