/* move: half of a table's tiles from one shard to the other and back, against the same bytes
 * through a plain socket and copied in memory; and how long a step waits meanwhile. */
#include "peers/peers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { TILES = 16, HALF = TILES / 2, DIM = 1024, AT_ONCE = 4096, LOOKED_AT = 512 };
enum { STEP_ROWS = 64, CALM_STEPS = 64 };

typedef struct mover {
    bench_service service;
    mn_table *table;
    uint64_t rows, bytes; /* of half of the table: values, state, update counts */
    uint32_t at;          /* the shard that has the half; the other one keeps one tile, or seven */
    uint32_t *indices;    /* [AT_ONCE] */
    float *ones;          /* [AT_ONCE][DIM] */
    float *fetched, *state;
    char *carried, *copied; /* [bytes], the peers' */
    peer_tcp tcp;
} mover;

/* A rate of 0: values stay as they are, Adagrad's state counts the gradients. */
static void push_ones(mover *it, uint32_t count)
{
    mn_error error;
    mn_client *client = it->service.client;
    uint64_t step = mn_client_step(client) + 1;
    mn_rows which = {count, mn_u32(it->indices)};
    mn_future *push = mn_push(it->table, step, 0, &which, mn_f32(it->ones));
    bench_check(mn_wait(push, &error), &error, "push");
    mn_commit_options commit = {.learning_rate = 0};
    bench_check(mn_commit(client, step, &commit, NULL, &error), &error, "commit");
}

static void check(mover *it, uint64_t round)
{
    mn_error error;
    mn_table_status held;
    uint32_t count = 1;
    uint64_t seed = round + 5;
    bench_check(mn_shard_tables(it->service.client, 0, &held, &count, &error), &error, "tables");
    if (held.tile_count != (it->at ? 1 : 1 + HALF))
        bench_die("move: shard 0 holds %u tiles", held.tile_count);
    for (uint32_t i = 0; i < LOOKED_AT; i++)
        it->indices[i] = (uint32_t)(bench_random(&seed) % it->rows);
    mn_rows which = {LOOKED_AT, mn_u32(it->indices)};
    mn_future *fetch = mn_fetch(it->table, MN_LATEST, &which, mn_f32(it->fetched), it->state);
    bench_check(mn_wait(fetch, &error), &error, "fetch");
    bench_rows_check(it->fetched, it->indices, LOOKED_AT, DIM);
    for (uint32_t i = 0; i < LOOKED_AT * DIM; i++)
        if (it->state[i] < 1)
            bench_die("move: the state of row %u is lost", it->indices[i / DIM]);
}

static double move_half(void *opaque, uint64_t round)
{
    mover *it = opaque;
    mn_error error;
    double start = bench_now();
    bench_check(mn_move(it->table, it->at, 1 - it->at, HALF, &error), &error, "move");
    double seconds = bench_now() - start;
    it->at = 1 - it->at;
    check(it, round);
    return seconds;
}

static double through_socket(void *opaque, uint64_t round)
{
    mover *it = opaque;
    (void)round;
    double start = bench_now();
    peer_tcp_sink(&it->tcp, (float *)(void *)it->carried,
                  (uint32_t)(it->bytes / (DIM * sizeof(float))));
    return bench_now() - start;
}

static double in_memory(void *opaque, uint64_t round)
{
    mover *it = opaque;
    (void)round;
    double start = bench_now();
    memcpy(it->copied, it->carried, it->bytes);
    return bench_now() - start;
}

/* ---- What a step waits */

static double step_seconds(mover *it, uint64_t seed)
{
    for (uint32_t i = 0; i < STEP_ROWS; i++)
        it->indices[i] = (uint32_t)(bench_random(&seed) % it->rows);
    double start = bench_now();
    push_ones(it, STEP_ROWS);
    return bench_now() - start;
}

/* The median of some while nothing moves. */
static double calm_step(void *opaque, uint64_t round)
{
    double seconds[CALM_STEPS];
    for (uint32_t i = 0; i < CALM_STEPS; i++)
        seconds[i] = step_seconds(opaque, round * CALM_STEPS + i);
    return bench_at_share(seconds, CALM_STEPS, 0.5);
}

/* The longest from when `mneme move` starts until it has ended: a process of its own, as operators
 * have it. */
static double longest_step(void *opaque, uint64_t round)
{
    mover *it = opaque;
    char from[4], to[4], tiles[4];
    (void)snprintf(from, sizeof from, "%u", it->at);
    (void)snprintf(to, sizeof to, "%u", 1 - it->at);
    (void)snprintf(tiles, sizeof tiles, "%d", HALF);
    const char *const arguments[] = {MN_BENCH_MNEME, "--target", it->service.target,
                                     "--group",      "bench",    "move",
                                     "table",        "--from",   from,
                                     "--to",         to,         "--tiles",
                                     tiles,          NULL};
    bench_child moving = bench_start(arguments, false, false);
    double longest = 0;
    int status = 0;
    for (uint64_t step = 0; waitpid(moving.process, &status, WNOHANG) != moving.process; step++) {
        double seconds = step_seconds(it, round * 100000 + step);
        longest = seconds > longest ? seconds : longest;
    }
    if (status)
        bench_die("mneme move ended with %d", status);
    it->at = 1 - it->at;
    check(it, round);
    return longest;
}

/* ---- A table of each split */

static void start(mover *it, enum mn_split split)
{
    mn_table_spec spec = {.name = "table",
                          .rows = it->rows,
                          .dim = DIM,
                          .split = split,
                          .tiles = TILES,
                          .optimizer = mn_adagrad(1e-10f)};
    mn_error error;
    it->bytes = it->rows * (DIM * 2 * sizeof(float) + sizeof(uint32_t)) / 2;
    it->indices = malloc(AT_ONCE * sizeof *it->indices);
    it->ones = malloc((size_t)AT_ONCE * DIM * sizeof *it->ones);
    it->fetched = malloc((size_t)LOOKED_AT * DIM * sizeof *it->fetched);
    it->state = malloc((size_t)LOOKED_AT * DIM * sizeof *it->state);
    if (!it->indices || !it->ones || !it->fetched || !it->state)
        bench_die("no memory");
    for (uint32_t i = 0; i < AT_ONCE * DIM; i++)
        it->ones[i] = 1;
    it->carried = bench_huge(it->bytes);
    it->copied = bench_huge(it->bytes);
    bench_service_start(&it->service, 2);
    it->table = bench_table(it->service.client, &spec);
    for (uint64_t first = 0; first < it->rows; first += AT_ONCE) {
        for (uint32_t i = 0; i < AT_ONCE; i++)
            it->indices[i] = (uint32_t)first + i;
        push_ones(it, AT_ONCE);
    }
    bench_check(mn_move(it->table, 0, 1, HALF - 1, &error), &error, "move"); /* one stays */
    it->at = 1;
    peer_tcp_start(&it->tcp, 1, DIM);
}

static void stop(mover *it)
{
    peer_tcp_stop(&it->tcp);
    bench_service_stop(&it->service);
    (void)munmap(it->carried, it->bytes);
    (void)munmap(it->copied, it->bytes);
    free(it->indices);
    free(it->ones);
    free(it->fetched);
    free(it->state);
}

static void move_case(enum mn_split split)
{
    mover it = {.rows = bench_quick ? 1 << 13 : 1 << 15};
    char name[96];
    start(&it, split);
    int used = snprintf(name, sizeof name, "%s dim=%d rows=%u moved=%.0fMB shards=2",
                        split == MN_ROWS ? "rows" : "columns", DIM, (uint32_t)it.rows,
                        (double)it.bytes * 1e-6);
    bench_case move = {
        .bench = "move",
        .name = name,
        .unit = "bytes/s",
        .work = (double)it.bytes,
        .mneme = {"mneme", move_half, &it, 0, 0},
        .peers = {{"raw-tcp", through_socket, &it, 0, 0}, {"memcpy", in_memory, &it, 0, 0}},
        .peer_count = 2};
    bench_run(&move);
    (void)snprintf(name + used, sizeof name - (size_t)used, ", longest step");
    bench_case wait = {
        .bench = "move",
        .name = name,
        .unit = "s",
        .mneme = {"mneme", longest_step, &it, 0, 0},
        .peers = {{"median-step", calm_step, &it, 0, 0}, {"the-move-alone", move_half, &it, 0, 0}},
        .peer_count = 2};
    bench_run(&wait);
    stop(&it);
}

void bench_move(void)
{
    move_case(MN_COLUMNS);
    move_case(MN_ROWS);
}
