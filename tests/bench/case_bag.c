/* bag and bag-grad: the weighted sum at the shards, against fetching (pushing) the distinct rows
 * and summing (merging) at the client, as every parameter server must. Time, and bytes both
 * ways. */
#include "peers/peers.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { QUERIES = 4096, READS = 128, DIM = 512, SHARDS = 4 };
enum { ALL_READS = QUERIES * READS };

typedef struct bag_context {
    bench_service service;
    mn_table *table;
    uint32_t rows;
    uint32_t *indices;  /* [QUERIES][READS] */
    float *weights;     /* [QUERIES][READS] */
    float *bags;        /* [QUERIES][DIM]; output gradients in bag-grad */
    float *dots;        /* [QUERIES][READS] weight gradients */
    uint32_t *distinct; /* [distinct_count], ascending */
    uint32_t *place;    /* [rows]: a row's place among the distinct */
    uint32_t *starts;   /* [distinct_count + 1] into `order` */
    uint32_t *order;    /* [ALL_READS] reads sorted by row, in reading order */
    float *distinct_rows;
    uint32_t distinct_count;
    double bytes[2]; /* of the last round: mneme, peer */
} bag_context;

static double bytes_so_far(const bag_context *context)
{
    mn_client_counters counters = mn_client_counted(context->service.client);
    return (double)(counters.bytes_sent + counters.bytes_received);
}

static void draw(bag_context *context, uint64_t round)
{
    uint64_t seed = round + 77;
    for (uint32_t i = 0; i < ALL_READS; i++) {
        context->indices[i] = (uint32_t)(bench_random(&seed) % context->rows);
        context->weights[i] = (float)(bench_random(&seed) % 8) * 0.125f; /* sums stay exact */
    }
}

/* The client's own de-duplication: part of the peer's work, so inside its clock. */
static void find_distinct(bag_context *context)
{
    memset(context->place, 0, context->rows * sizeof *context->place);
    for (uint32_t i = 0; i < ALL_READS; i++)
        context->place[context->indices[i]]++;
    uint32_t count = 0, start = 0;
    for (uint32_t row = 0; row < context->rows; row++) {
        if (!context->place[row])
            continue;
        context->distinct[count] = row;
        context->starts[count] = start;
        start += context->place[row];
        context->place[row] = count++;
    }
    context->starts[count] = start;
    context->distinct_count = count;
}

static void sort_reads(bag_context *context)
{
    for (uint32_t i = 0; i < ALL_READS; i++)
        context->order[context->starts[context->place[context->indices[i]]]++] = i;
    for (uint32_t i = context->distinct_count; i; i--)
        context->starts[i] = context->starts[i - 1];
    context->starts[0] = 0;
}

static double bag_mneme(void *opaque, uint64_t round)
{
    bag_context *context = opaque;
    mn_error error;
    draw(context, round);
    mn_queries queries = {QUERIES, READS, mn_u32(context->indices), mn_f32(context->weights)};
    double bytes = bytes_so_far(context), start = bench_now();
    mn_future *bags = mn_bag(context->table, MN_LATEST, &queries, mn_f32(context->bags));
    bench_check(mn_wait(bags, &error), &error, "bag");
    double seconds = bench_now() - start;
    context->bytes[0] = bytes_so_far(context) - bytes;
    return seconds;
}

static void sum_at_client(bag_context *context)
{
    for (uint32_t query = 0; query < QUERIES; query++) {
        float *bag = context->bags + (size_t)query * DIM;
        memset(bag, 0, DIM * sizeof *bag);
        for (uint32_t read = query * READS; read < (query + 1) * READS; read++) {
            uint32_t ahead = read + 4 < ALL_READS ? read + 4 : read;
            const float *next =
                context->distinct_rows + (size_t)context->place[context->indices[ahead]] * DIM;
            for (uint32_t column = 0; column < DIM; column += 16)
                __builtin_prefetch(next + column);
            const float *row =
                context->distinct_rows + (size_t)context->place[context->indices[read]] * DIM;
            float weight = context->weights[read];
            for (uint32_t column = 0; column < DIM; column++)
                bag[column] += weight * row[column];
        }
    }
}

static double bag_fetch(void *opaque, uint64_t round)
{
    bag_context *context = opaque;
    mn_error error;
    draw(context, round);
    double bytes = bytes_so_far(context), start = bench_now();
    find_distinct(context);
    mn_rows which = {context->distinct_count, mn_u32(context->distinct)};
    mn_future *rows =
        mn_fetch(context->table, MN_LATEST, &which, mn_f32(context->distinct_rows), NULL);
    bench_check(mn_wait(rows, &error), &error, "fetch");
    sum_at_client(context);
    double seconds = bench_now() - start;
    context->bytes[1] = bytes_so_far(context) - bytes;
    return seconds;
}

static void bag_check(bag_context *context)
{
    float *sums = malloc((size_t)QUERIES * DIM * sizeof *sums);
    (void)bag_fetch(context, 3);
    memcpy(sums, context->bags, (size_t)QUERIES * DIM * sizeof *sums);
    (void)bag_mneme(context, 3);
    if (memcmp(sums, context->bags, (size_t)QUERIES * DIM * sizeof *sums) != 0)
        bench_die("bag: the shards' sums differ from the client's");
    free(sums);
}

static void prepare(bag_context *context, mn_optimizer optimizer)
{
    memset(context, 0, sizeof *context);
    context->rows = bench_quick ? 1u << 18 : 1u << 20;
    context->indices = malloc(ALL_READS * sizeof *context->indices);
    context->weights = malloc(ALL_READS * sizeof *context->weights);
    context->dots = malloc(ALL_READS * sizeof *context->dots);
    context->order = malloc(ALL_READS * sizeof *context->order);
    context->bags = bench_huge((uint64_t)QUERIES * DIM * sizeof *context->bags);
    context->distinct = malloc(ALL_READS * sizeof *context->distinct);
    context->starts = malloc((ALL_READS + 1) * sizeof *context->starts);
    context->place = malloc(context->rows * sizeof *context->place);
    context->distinct_rows =
        bench_huge((uint64_t)(ALL_READS < context->rows ? ALL_READS : context->rows) * DIM * 4);
    mn_table_spec spec = {
        .name = "bags", .rows = context->rows, .dim = DIM, .optimizer = optimizer};
    bench_service_start(&context->service, SHARDS);
    context->table = bench_table(context->service.client, &spec);
}

static void finish(bag_context *context)
{
    bench_service_stop(&context->service);
    free(context->place);
    free(context->starts);
    free(context->distinct);
    free(context->order);
    free(context->dots);
    free(context->weights);
    free(context->indices);
}

static void name_case(const bag_context *context, char name[96])
{
    (void)snprintf(name, 96, "dim=%d queries=%d reads=%d rows=%u shards=%d", DIM, QUERIES, READS,
                   context->rows, SHARDS);
}

void bench_bag(void)
{
    bag_context context;
    char name[96];
    prepare(&context, mn_sgd());
    name_case(&context, name);
    bench_case bag = {.bench = "bag",
                      .name = name,
                      .unit = "queries/s",
                      .work = QUERIES,
                      .mneme = {"mneme", bag_mneme, &context, 0, 0},
                      .peers = {{"fetch", bag_fetch, &context, 2, 0}},
                      .peer_count = 1};
    bench_run(&bag);
    bag_check(&context);
    bench_report("bag-bytes", name, context.bytes[0], "bytes", "fetch",
                 context.bytes[1] / context.bytes[0], 30, 0);
    finish(&context);
}

/* ---- bag-grad ---- */

static void draw_gradients(bag_context *context, uint64_t round)
{
    uint64_t seed = round + 5;
    draw(context, round);
    for (uint32_t i = 0; i < QUERIES * DIM; i++)
        context->bags[i] = (float)(bench_random(&seed) % 16) - 7.5f;
}

static void commit(bag_context *context, uint64_t step)
{
    mn_error error;
    mn_commit_options options = {.learning_rate = 0.001f};
    bench_check(mn_commit(context->service.client, step, &options, NULL, &error), &error, "commit");
}

static double grad_mneme(void *opaque, uint64_t round)
{
    bag_context *context = opaque;
    mn_error error;
    draw_gradients(context, round);
    uint64_t step = mn_client_step(context->service.client) + 1;
    mn_queries queries = {QUERIES, READS, mn_u32(context->indices), mn_f32(context->weights)};
    double bytes = bytes_so_far(context), start = bench_now();
    mn_future *grads = mn_bag_grad(context->table, step, 0, &queries, mn_f32(context->bags),
                                   mn_f32(context->dots));
    bench_check(mn_wait(grads, &error), &error, "bag-grad");
    commit(context, step);
    double seconds = bench_now() - start;
    context->bytes[0] = bytes_so_far(context) - bytes;
    return seconds;
}

static void merge_at_client(bag_context *context)
{
    sort_reads(context);
    for (uint32_t row = 0; row < context->distinct_count; row++) {
        float *merged = context->distinct_rows + (size_t)row * DIM;
        memset(merged, 0, DIM * sizeof *merged);
        for (uint32_t i = context->starts[row]; i < context->starts[row + 1]; i++) {
            uint32_t read = context->order[i];
            const float *gradient = context->bags + (size_t)(read / READS) * DIM;
            float weight = context->weights[read];
            for (uint32_t column = 0; column < DIM; column++)
                merged[column] += weight * gradient[column];
        }
    }
}

static double grad_push(void *opaque, uint64_t round)
{
    bag_context *context = opaque;
    mn_error error;
    draw_gradients(context, round);
    uint64_t step = mn_client_step(context->service.client) + 1;
    double bytes = bytes_so_far(context), start = bench_now();
    find_distinct(context);
    merge_at_client(context);
    mn_rows which = {context->distinct_count, mn_u32(context->distinct)};
    mn_future *pushed = mn_push(context->table, step, 0, &which, mn_f32(context->distinct_rows));
    bench_check(mn_wait(pushed, &error), &error, "push");
    commit(context, step);
    double seconds = bench_now() - start;
    context->bytes[1] = bytes_so_far(context) - bytes;
    return seconds;
}

static void grad_check(bag_context *context)
{
    /* dots against rows fetched before the step: small integers and eighths, so f32 sums of 512
     * products are near exact. */
    mn_error error;
    draw_gradients(context, 9);
    float row[DIM];
    mn_rows which = {1, mn_u32(context->indices)};
    mn_future *fetched = mn_fetch(context->table, MN_LATEST, &which, mn_f32(row), NULL);
    bench_check(mn_wait(fetched, &error), &error, "fetch");
    (void)grad_mneme(context, 9);
    double expected = 0, size = 0;
    for (uint32_t column = 0; column < DIM; column++) {
        expected += (double)row[column] * (double)context->bags[column];
        size += fabs((double)row[column] * (double)context->bags[column]);
    }
    if (!(fabs(expected - (double)context->dots[0]) <= 1e-6 * size))
        bench_die("bag-grad: <g, row> is %g, not %g", (double)context->dots[0], expected);
}

void bench_bag_grad(void)
{
    bag_context context;
    char name[96];
    prepare(&context, mn_adagrad(1e-10f));
    name_case(&context, name);
    bench_case grad = {.bench = "bag-grad",
                       .name = name,
                       .unit = "queries/s",
                       .work = QUERIES,
                       .mneme = {"mneme", grad_mneme, &context, 0, 0},
                       .peers = {{"push", grad_push, &context, 1.5, 0}},
                       .peer_count = 1};
    bench_run(&grad);
    grad_check(&context);
    bench_report("bag-grad-bytes", name, context.bytes[0], "bytes", "push",
                 context.bytes[1] / context.bytes[0], 20, 0);
    finish(&context);
}
