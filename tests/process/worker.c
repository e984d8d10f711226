/* A small trainer for the process tests, over <mneme.h> alone: the same steps whatever happens to
 * it or to the shards. It makes a failed call again while a retry may help, checks that each call
 * ends by its deadline, and prints one line an event: "joined STEP", "step N", "retry CALL STATUS",
 * "failed CALL STATUS FIELD: MESSAGE", "late CALL MS", "done HASH". */
#include "support/worker.h"

enum { DIM = 128, QUERIES = 8, PER_QUERY = 6, PUSHED = 16, PARTS = 2 };
enum { LATE_MS = 2000, REST_MS = 50 };

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

int main(int count, char **arguments)
{
    if (count != 9) {
        (void)fprintf(stderr, "usage: worker TARGET GROUP RANK RANKS STEPS DEADLINE_MS PAUSE_MS "
                              "PATIENCE_MS\n");
        return 2;
    }
    worker state = {.target = arguments[1],
                    .rank = (uint32_t)strtoul(arguments[3], NULL, 10),
                    .ranks = (uint32_t)strtoul(arguments[4], NULL, 10),
                    .trying = {.deadline_ms = strtoull(arguments[6], NULL, 10),
                               .late_ms = LATE_MS,
                               .patience_ms = strtoull(arguments[8], NULL, 10),
                               .patience_from_ms = now_ms(),
                               .rest_ms = REST_MS},
                    .pause_ms = strtoull(arguments[7], NULL, 10)};
    const uint64_t steps = strtoull(arguments[5], NULL, 10);
    static float values[ROWS * DIM];
    worker *w = &state;
    open_all(w, arguments[2], DIM);
    while (mn_client_step(w->client) < steps) {
        play_step(w, mn_client_step(w->client) + 1);
        rest(w->pause_ms);
    }
    say("done %016llx", (unsigned long long)hash_tables(w, DIM, values));
    mn_client_close(w->client);
    return 0;
}
