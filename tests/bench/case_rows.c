/* fetch and push: rows over the wire, against plain C sockets, the socket alone, and redis. */
#include "peers/peers.h"

#include <stdio.h>
#include <stdlib.h>

enum { BATCH = 8192, BATCHES = 8, PUSH_ROWS = 65536, PUSH_SHARDS = 2 };

typedef struct rows_context {
    bench_service service;
    mn_table *table;
    uint64_t rows;
    uint32_t dim;
    uint32_t *indices; /* [BATCHES][BATCH], new every round */
    float *out;        /* [BATCHES][BATCH][dim] */
    peer_tcp tcp;
    peer_redis redis;
} rows_context;

static void draw(rows_context *context, uint64_t round)
{
    uint64_t seed = round + 1;
    for (uint32_t i = 0; i < BATCHES * BATCH; i++)
        context->indices[i] = (uint32_t)(bench_random(&seed) % context->rows);
}

/* Fetches a round's batches, all asked for before the first has come, as a trainer that reads ahead
 * does; redis has its own window of commands in flight. */
typedef void (*fetch_function)(rows_context *context);

static double fetch_round(rows_context *context, uint64_t round, fetch_function fetch, bool check)
{
    draw(context, round);
    double start = bench_now();
    fetch(context);
    double seconds = bench_now() - start;
    if (check)
        bench_rows_check(context->out, context->indices, BATCHES * BATCH, context->dim);
    return seconds;
}

static void fetch_mneme(rows_context *context)
{
    mn_error error;
    mn_future *batches[BATCHES];
    uint64_t step = mn_client_step(context->service.client) + 1;
    for (uint64_t i = 0; i < BATCHES; i++) {
        mn_rows which = {BATCH, mn_u32(context->indices + i * BATCH)};
        mn_array out = mn_f32(context->out + i * BATCH * context->dim);
        batches[i] = mn_fetch(context->table, step, &which, out, NULL);
    }
    for (uint64_t i = 0; i < BATCHES; i++)
        bench_check(mn_wait(batches[i], &error), &error, "fetch");
}

static void fetch_tcp(rows_context *context, enum peer_operation operation)
{
    for (uint64_t i = 0; i < BATCHES; i++)
        peer_tcp_ask(&context->tcp, operation, context->indices + i * BATCH, BATCH);
    peer_tcp_take(&context->tcp, BATCHES * BATCH, context->out);
}

static void fetch_plain(rows_context *context) { fetch_tcp(context, PEER_GATHER); }

static void fetch_raw(rows_context *context) { fetch_tcp(context, PEER_SOURCE); }

static void fetch_redis(rows_context *context)
{
    peer_redis_rows(&context->redis, context->indices, BATCHES * BATCH, context->out);
}

static double round_mneme(void *c, uint64_t n) { return fetch_round(c, n, fetch_mneme, true); }
static double round_plain(void *c, uint64_t n) { return fetch_round(c, n, fetch_plain, true); }
static double round_raw(void *c, uint64_t n) { return fetch_round(c, n, fetch_raw, false); }
static double round_redis(void *c, uint64_t n) { return fetch_round(c, n, fetch_redis, true); }

static void fetch_case(uint32_t dim, const double least[3], const double goal[3])
{
    rows_context context = {.dim = dim, .rows = (bench_quick ? 1u << 26 : 1u << 28) / dim};
    mn_table_spec spec = {.name = "rows", .rows = context.rows, .dim = dim, .split = MN_ROWS};
    char name[64];
    (void)snprintf(name, sizeof name, "dim=%u batch=%u", dim, BATCH);
    context.indices = malloc(BATCHES * BATCH * sizeof *context.indices);
    context.out = bench_huge((uint64_t)BATCHES * BATCH * dim * sizeof *context.out);
    bench_apart(1);
    bench_service_start(&context.service, 1);
    context.table = bench_table(context.service.client, &spec);
    peer_tcp_start(&context.tcp, context.rows, dim);
    peer_redis_start(&context.redis, context.rows, dim);
    bench_case fetch = {.bench = "fetch",
                        .name = name,
                        .unit = "rows/s",
                        .work = (double)BATCH * BATCHES,
                        .mneme = {"mneme", round_mneme, &context, 0, 0},
                        .peers = {{"plain-c", round_plain, &context, least[0], goal[0]},
                                  {"raw-tcp", round_raw, &context, least[1], goal[1]},
                                  {"redis", context.redis.installed ? round_redis : NULL, &context,
                                   least[2], goal[2]}},
                        .peer_count = 3};
    bench_run(&fetch);
    peer_redis_stop(&context.redis);
    peer_tcp_stop(&context.tcp);
    bench_service_stop(&context.service);
    bench_apart(0);
    free(context.indices);
}

void bench_fetch(void)
{
    fetch_case(1024, (double[]){0.9, 0.65, 2}, (double[]){1.1, 0.8, 3});
    fetch_case(128, (double[]){0.9, 0.45, 5.5}, (double[]){1.1, 0.7, 10});
}

/* ---- push ---- */

typedef struct push_context {
    bench_service service;
    mn_table *table;
    uint64_t rows;
    uint32_t dim;
    uint32_t *indices; /* [PUSH_ROWS], distinct */
    float *gradients;
    peer_tcp tcp;
} push_context;

static double push_mneme(void *opaque, uint64_t round)
{
    push_context *context = opaque;
    mn_error error;
    mn_client *client = context->service.client;
    uint64_t step = mn_client_step(client) + 1, stride = context->rows / PUSH_ROWS;
    for (uint64_t i = 0; i < PUSH_ROWS; i++) /* distinct rows in no order the table likes */
        context->indices[i] =
            (uint32_t)(((i * 40503) % PUSH_ROWS * stride + round) % context->rows);
    mn_rows which = {PUSH_ROWS, mn_u32(context->indices)};
    mn_commit_options commit = {.learning_rate = 0.01f};
    double start = bench_now();
    mn_future *push = mn_push(context->table, step, 0, &which, mn_f32(context->gradients));
    bench_check(mn_wait(push, &error), &error, "push");
    bench_check(mn_commit(client, step, &commit, NULL, &error), &error, "commit");
    return bench_now() - start;
}

static double push_raw(void *opaque, uint64_t round)
{
    push_context *context = opaque;
    (void)round;
    double start = bench_now();
    peer_tcp_sink(&context->tcp, context->gradients, PUSH_ROWS);
    return bench_now() - start;
}

static void push_check(push_context *context)
{
    /* Adagrad's first step moves a fresh row by lr * g / (|g| + eps): the pushed rows must have
     * moved, others not. */
    mn_error error;
    uint32_t moved = context->indices[1], still = moved + 1; /* strides exceed the rounds */
    float *rows = malloc(2 * context->dim * sizeof *rows);
    uint32_t both[2] = {moved, still};
    mn_rows which = {2, mn_u32(both)};
    uint64_t step = mn_client_step(context->service.client) + 1;
    mn_future *fetched = mn_fetch(context->table, step, &which, mn_f32(rows), NULL);
    bench_check(mn_wait(fetched, &error), &error, "fetch");
    for (uint32_t column = 0; column < context->dim; column++)
        if (rows[column] == bench_value(moved, column))
            bench_die("push: row %u column %u did not move", moved, column);
    free(rows);
}

static void push_case(uint32_t dim, double least, double goal)
{
    push_context context = {.dim = dim, .rows = (bench_quick ? 1u << 27 : 1u << 28) / dim};
    mn_table_spec spec = {.name = "rows",
                          .rows = context.rows,
                          .dim = dim,
                          .split = MN_ROWS,
                          .optimizer = mn_adagrad(1e-10f)};
    char name[64];
    (void)snprintf(name, sizeof name, "dim=%u rows=%u optimizer=adagrad shards=%d", dim, PUSH_ROWS,
                   PUSH_SHARDS);
    context.indices = malloc(PUSH_ROWS * sizeof *context.indices);
    context.gradients = bench_huge((uint64_t)PUSH_ROWS * dim * sizeof *context.gradients);
    for (uint64_t i = 0; i < (uint64_t)PUSH_ROWS * dim; i++)
        context.gradients[i] = (float)(i % 17 + 1) * 0.125f;
    bench_service_start(&context.service, PUSH_SHARDS);
    context.table = bench_table(context.service.client, &spec);
    peer_tcp_start(&context.tcp, 1, dim);
    bench_case push = {.bench = "push",
                       .name = name,
                       .unit = "rows/s",
                       .work = PUSH_ROWS,
                       .mneme = {"mneme", push_mneme, &context, 0, 0},
                       .peers = {{"raw-tcp", push_raw, &context, least, goal}},
                       .peer_count = 1};
    bench_run(&push);
    push_check(&context);
    peer_tcp_stop(&context.tcp);
    bench_service_stop(&context.service);
    free(context.indices);
}

void bench_push(void)
{
    push_case(1024, 0.45, 0.7);
    push_case(128, 0.3, 0.5);
}
