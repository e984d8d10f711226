/* A small trainer for the process tests, over <mneme.h> alone: the same steps whatever happens to
 * it or to the shards. It makes a failed call again while a retry may help, checks that each call
 * ends by its deadline, and prints one line an event: "joined STEP", "step N", "retry CALL STATUS",
 * "failed CALL STATUS FIELD: MESSAGE", "late CALL MS", "done HASH". */
#include "support/worker.h"

#include <string.h>

enum { ROWS = 96, DIM = 128, QUERIES = 8, PER_QUERY = 6, PUSHED = 16, PARTS = 2 };
enum { LATE_MS = 2000, REST_MS = 50 };

typedef struct worker {
    const char *target, *group;
    uint32_t rank, ranks;
    uint64_t steps, pause_ms;
    trying trying;
    mn_client *client;
    mn_table *bags, *rows;
} worker;

/* What a step's numbers are made of. */
static uint64_t mix(uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    uint64_t z = a * 1000003 + b * 10007 + c * 101 + d + 1;
    return scramble(z);
}

static float number(uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    return number_of(mix(a, b, c, d));
}

static void open_all(worker *w)
{
    mn_client_options options = {.target = w->target,
                                 .group = w->group,
                                 .rank = w->rank,
                                 .ranks = w->ranks,
                                 .deadline_ms = w->trying.deadline_ms,
                                 .log_level = MN_LOG_SILENT};
    mn_table_spec bags = {.name = "bags",
                          .rows = ROWS,
                          .dim = DIM,
                          .tiles = 4,
                          .seed = 1,
                          .init = mn_init_normal(0.5f),
                          .optimizer = mn_adamw(0.9f, 0.95f, 1e-8f)};
    mn_table_spec rows = bags;
    bags.tiles = DIM / 32;
    rows.split = MN_ROWS;
    rows.tiles = 16;
    rows.optimizer = mn_adagrad(1e-6f);
    memcpy(rows.name, "rows", sizeof "rows");
    CALL("open", mn_client_open(&options, &w->client, &call_error));
    say("joined %llu", (unsigned long long)mn_client_step(w->client));
    CALL("table", mn_table_open(w->client, &bags, &w->bags, &call_error));
    CALL("table", mn_table_open(w->client, &rows, &w->rows, &call_error));
}

static void play_part(worker *w, uint64_t step, uint32_t part)
{
    static uint32_t indices[QUERIES * PER_QUERY];
    static float weights[QUERIES * PER_QUERY], bag[QUERIES * DIM],
        weight_grads[QUERIES * PER_QUERY];
    static float grads[PUSHED * DIM];
    uint64_t seed = step * 100 + w->rank * 10 + part;
    for (uint32_t i = 0; i < QUERIES * PER_QUERY; i++) {
        indices[i] = (uint32_t)(mix(seed, i, 1, 0) % ROWS);
        weights[i] = number(seed, i, 2, 0);
    }
    mn_queries queries = {QUERIES, PER_QUERY, mn_u32(indices), mn_f32(weights)};
    mn_rows rows = {PUSHED, mn_u32(indices)};
    CALL("bag", mn_wait(mn_bag(w->bags, step, &queries, mn_f32(bag)), &call_error));
    for (uint32_t i = 0; i < QUERIES * DIM; i++)
        bag[i] = bag[i] * 0.1f + number(seed, i, 3, 0); /* so that what was read decides */
    CALL("bag_grad",
         mn_wait(mn_bag_grad(w->bags, step, part, &queries, mn_f32(bag), mn_f32(weight_grads)),
                 &call_error));
    for (uint32_t i = 0; i < PUSHED * DIM; i++)
        grads[i] = number(seed, i, 4, 0) + weight_grads[i % (QUERIES * PER_QUERY)];
    CALL("push", mn_wait(mn_push(w->rows, step, part, &rows, mn_f32(grads)), &call_error));
}

static void play_step(worker *w, uint64_t step)
{
    mn_commit_options options = {.learning_rate = 0.05f, .weight_decay = 0.01f, .clip_norm = 3};
    double sum = number(step, w->rank, 5, 0);
    for (uint32_t part = 0; part < PARTS; part++)
        play_part(w, step, part);
    CALL("reduce", mn_reduce(w->client, step, "loss", &sum, 1, &call_error));
    CALL("commit", mn_commit(w->client, step, &options, NULL, &call_error));
    say("step %llu", (unsigned long long)step);
}

/* FNV-1a over every value of both tables. */
static uint64_t hash_tables(worker *w)
{
    static uint32_t indices[ROWS];
    static float values[ROWS * DIM];
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (uint32_t i = 0; i < ROWS; i++)
        indices[i] = i;
    mn_rows all = {ROWS, mn_u32(indices)};
    mn_table *tables[] = {w->bags, w->rows};
    for (int t = 0; t < 2; t++) {
        CALL("fetch",
             mn_wait(mn_fetch(tables[t], MN_LATEST, &all, mn_f32(values), NULL), &call_error));
        for (size_t i = 0; i < sizeof values; i++)
            hash = (hash ^ ((const unsigned char *)values)[i]) * UINT64_C(0x100000001b3);
    }
    return hash;
}

int main(int count, char **arguments)
{
    if (count != 9) {
        (void)fprintf(stderr, "usage: worker TARGET GROUP RANK RANKS STEPS DEADLINE_MS PAUSE_MS "
                              "PATIENCE_MS\n");
        return 2;
    }
    worker state = {.target = arguments[1],
                    .group = arguments[2],
                    .rank = (uint32_t)strtoul(arguments[3], NULL, 10),
                    .ranks = (uint32_t)strtoul(arguments[4], NULL, 10),
                    .steps = strtoull(arguments[5], NULL, 10),
                    .trying = {.deadline_ms = strtoull(arguments[6], NULL, 10),
                               .late_ms = LATE_MS,
                               .patience_ms = strtoull(arguments[8], NULL, 10),
                               .patience_from_ms = now_ms(),
                               .rest_ms = REST_MS},
                    .pause_ms = strtoull(arguments[7], NULL, 10)};
    worker *w = &state;
    open_all(w);
    while (mn_client_step(w->client) < w->steps) {
        play_step(w, mn_client_step(w->client) + 1);
        rest(w->pause_ms);
    }
    say("done %016llx", (unsigned long long)hash_tables(w));
    mn_client_close(w->client);
    return 0;
}
