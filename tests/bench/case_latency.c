/* bag-latency: a small bag, against a bare gRPC echo of as many bytes to as many servers, and
 * against its bound: that echo, then a plain loop over the same rows in memory of our own. */
#include "peers/peers.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { QUERIES = 16, READS = 128, CALLS = 400, CALLS_QUICK = 100 };

typedef struct latency_context {
    bench_service service;
    mn_table *table;
    peer_echo *echo;
    uint32_t rows, dim;
    double share; /* the quantile that this case is about */
    double *seconds;
} latency_context;

static uint32_t calls_of_round(void) { return bench_quick ? CALLS_QUICK : CALLS; }

static void draw(const latency_context *context, uint64_t *seed, uint32_t *indices)
{
    for (uint32_t i = 0; i < QUERIES * READS; i++)
        indices[i] = (uint32_t)(bench_random(seed) % context->rows);
}

/* One call, of new indices; its seconds. */
static double call_mneme(latency_context *context, uint64_t *seed)
{
    static uint32_t indices[QUERIES * READS];
    static float weights[QUERIES * READS], bags[QUERIES * MN_DIM_MAX / 64];
    mn_error error;
    draw(context, seed, indices);
    for (uint32_t i = 0; i < QUERIES * READS; i++)
        weights[i] = 1.0f / READS;
    mn_queries queries = {QUERIES, READS, mn_u32(indices), mn_f32(weights)};
    double start = bench_now();
    mn_future *bag = mn_bag(context->table, MN_LATEST, &queries, mn_f32(bags));
    bench_check(mn_wait(bag, &error), &error, "bag");
    return bench_now() - start;
}

static double round_mneme(void *opaque, uint64_t round)
{
    latency_context *context = opaque;
    uint64_t seed = round;
    for (uint32_t call = 0; call < calls_of_round(); call++)
        context->seconds[call] = call_mneme(context, &seed);
    return bench_at_share(context->seconds, calls_of_round(), context->share);
}

static double round_echo(void *opaque, uint64_t round)
{
    latency_context *context = opaque;
    (void)round;
    return peer_echo_calls(context->echo, calls_of_round(), context->share, false);
}

static double round_bound(void *opaque, uint64_t round)
{
    latency_context *context = opaque;
    (void)round;
    return peer_echo_calls(context->echo, calls_of_round(), context->share, true);
}

static void latency_case(uint32_t dim, uint32_t shards, double least)
{
    latency_context context = {.rows = 512 * 512, .dim = dim};
    mn_table_spec spec = {.name = "small", .rows = context.rows, .dim = dim};
    char name[96];
    uint64_t seed = 1;
    uint32_t cores = (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);
    context.seconds = malloc(CALLS * sizeof *context.seconds);
    bench_apart(shards);
    bench_service_start(&context.service, shards);
    context.table = bench_table(context.service.client, &spec);
    mn_client_counters before = mn_client_counted(context.service.client);
    (void)call_mneme(&context, &seed);
    mn_client_counters after = mn_client_counted(context.service.client);
    peer_echo_options echo = {
        .servers = shards,
        .request_bytes = (after.bytes_sent - before.bytes_sent) / shards,
        .reply_bytes = (after.bytes_received - before.bytes_received) / shards,
        .rows = context.rows,
        .columns = dim / shards * ((shards + cores - 1) / cores), /* what one core reads of all */
        .reads = QUERIES * READS};
    context.echo = peer_echo_start(&echo);
    for (int tail = 0; tail < 2; tail++) {
        context.share = tail ? 0.99 : 0.5;
        (void)snprintf(name, sizeof name, "queries=%d reads=%d dim=%u rows=%u shards=%u %s",
                       QUERIES, READS, dim, context.rows, shards, tail ? "p99" : "p50");
        bench_case latency = {.bench = "bag-latency",
                              .name = name,
                              .unit = "s",
                              .mneme = {"mneme", round_mneme, &context, 0, 0},
                              .peers = {{"echo", round_echo, &context, least, 0},
                                        {"echo+read", round_bound, &context, 0, 0}},
                              .peer_count = 2};
        bench_run(&latency);
    }
    peer_echo_stop(context.echo);
    bench_service_stop(&context.service);
    bench_apart(0);
    free(context.seconds);
}

void bench_bag_latency(void)
{
    latency_case(16, 1, 0.6); /* a shard's part of 1,024 columns on 64 shards */
    latency_case(64, 1, 0.6); /* a tile, or a shard's part of 512 on 8 */
    latency_case(128, 1, 0.6);
    latency_case(512, 4, 0.6);
}
