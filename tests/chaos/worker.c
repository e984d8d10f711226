/* A small trainer for the chaos rounds, over <mneme.h> alone. What it changes is a function of
 * (seed, step, rank) and of what it read, so the same steps leave the same tables whatever happened
 * on the way. It makes a failed call again while a retry may help, checks that each call ends by
 * its deadline, and goes on until the file LAST names its last step, which moves every row: so the
 * optimizer's states count too. It prints one line an event: "joined STEP", "step N",
 * "retry CALL STATUS", "failed CALL STATUS FIELD: MESSAGE", "late CALL MS", "done STEP HASH". */
#include "support/worker.h"

enum { DIM = 64, QUERIES = 4, PER_QUERY = 6, PUSHED = 8, PARTS = 2, STORED = 4 };
enum { STORE_EVERY = 5 }; /* steps */
enum { LATE_MS = 5000, PATIENCE_MS = 60000, REST_MS = 20 };

/* ---- What a step's numbers are made of */

static uint64_t seed;

static uint64_t mix(uint64_t step, uint64_t kind, uint64_t i)
{
    uint64_t z = seed * UINT64_C(0x9e3779b97f4a7c15) + step * 1000003 + kind * 10007 + i + 1;
    return scramble(z);
}

static float number(uint64_t step, uint64_t kind, uint64_t i)
{
    return number_of(mix(step, kind, i));
}

/* The kinds of one rank's part of a step are its own. */
static uint64_t kind_of(uint32_t rank, uint32_t part, uint32_t what)
{
    return (rank * 8 + part) * 8 + what;
}

/* ---- A step */

static void play_part(worker *w, uint64_t step, uint32_t part)
{
    static uint32_t indices[QUERIES * PER_QUERY];
    static float weights[QUERIES * PER_QUERY], weight_grads[QUERIES * PER_QUERY];
    static float bag[QUERIES * DIM], grads[PUSHED * DIM];
    for (uint32_t i = 0; i < QUERIES * PER_QUERY; i++) {
        indices[i] = (uint32_t)(mix(step, kind_of(w->rank, part, 0), i) % ROWS);
        weights[i] = number(step, kind_of(w->rank, part, 1), i);
    }
    mn_queries queries = {QUERIES, PER_QUERY, mn_u32(indices), mn_f32(weights)};
    mn_rows rows = {PUSHED, mn_u32(indices)};
    CALL("bag", mn_wait(mn_bag(w->bags, step, &queries, mn_f32(bag)), &call_error));
    for (uint32_t i = 0; i < QUERIES * DIM; i++) /* so that what was read decides */
        bag[i] = bag[i] * 0.1f + number(step, kind_of(w->rank, part, 2), i);
    CALL("bag_grad",
         mn_wait(mn_bag_grad(w->bags, step, part, &queries, mn_f32(bag), mn_f32(weight_grads)),
                 &call_error));
    for (uint32_t i = 0; i < PUSHED * DIM; i++)
        grads[i] =
            number(step, kind_of(w->rank, part, 3), i) + weight_grads[i % (QUERIES * PER_QUERY)];
    CALL("push", mn_wait(mn_push(w->rows, step, part, &rows, mn_f32(grads)), &call_error));
}

static void store_some(worker *w, uint64_t step)
{
    uint32_t indices[STORED];
    float values[STORED * DIM];
    for (uint32_t i = 0; i < STORED; i++)
        indices[i] = (uint32_t)(mix(step, kind_of(w->rank, 0, 4), i) % ROWS);
    for (uint32_t i = 0; i < STORED * DIM; i++)
        values[i] = number(step, kind_of(w->rank, 0, 5), i);
    mn_rows rows = {STORED, mn_u32(indices)};
    CALL("store",
         mn_wait(mn_store(w->rows, step, PARTS, &rows, mn_f32(values), NULL), &call_error));
}

static float all_values[ROWS * DIM];

static void push_every_row(worker *w, uint64_t step)
{
    mn_rows rows = all_rows();
    for (uint32_t i = 0; i < ROWS * DIM; i++)
        all_values[i] = number(step, kind_of(w->rank, 0, 6), i);
    mn_array gradients = mn_f32(all_values);
    CALL("push", mn_wait(mn_push(w->bags, step, PARTS + 1, &rows, gradients), &call_error));
    CALL("push", mn_wait(mn_push(w->rows, step, PARTS + 1, &rows, gradients), &call_error));
}

static void play_step(worker *w, uint64_t step, bool is_last)
{
    mn_commit_options options = {.learning_rate = 0.05f, .weight_decay = 0.01f, .clip_norm = 3};
    double sum = number(step, kind_of(w->rank, 0, 7), 0), expected = 0;
    for (uint32_t part = 0; part < PARTS; part++)
        play_part(w, step, part);
    if (step % STORE_EVERY == w->rank)
        store_some(w, step);
    if (is_last)
        push_every_row(w, step);
    for (uint32_t rank = 0; rank < w->ranks; rank++)
        expected += number(step, kind_of(rank, 0, 7), 0);
    CALL("reduce", mn_reduce(w->client, step, "loss", &sum, 1, &call_error));
    if (sum != expected) {
        say("failed reduce: %.17g is not %.17g", sum, expected);
        exit(EXIT_CALL_FAILED);
    }
    CALL("commit", mn_commit(w->client, step, &options, NULL, &call_error));
    say("step %llu", (unsigned long long)step);
}

/* ---- The whole */

/* What LAST says; UINT64_MAX while it is not there. */
static uint64_t last_step(const char *last_file)
{
    unsigned long long step = UINT64_MAX;
    FILE *file = fopen(last_file, "r");
    if (!file)
        return step;
    if (fscanf(file, "%llu", &step) != 1)
        step = UINT64_MAX;
    (void)fclose(file);
    return step;
}

int main(int count, char **arguments)
{
    if (count != 8) {
        (void)fprintf(stderr, "usage: worker TARGET RANK RANKS SEED LAST DEADLINE_MS PAUSE_MS\n");
        return 2;
    }
    worker state = {.target = arguments[1],
                    .rank = (uint32_t)strtoul(arguments[2], NULL, 10),
                    .ranks = (uint32_t)strtoul(arguments[3], NULL, 10),
                    .trying = {.deadline_ms = strtoull(arguments[6], NULL, 10),
                               .late_ms = LATE_MS,
                               .patience_ms = PATIENCE_MS,
                               .rest_ms = REST_MS},
                    .pause_ms = strtoull(arguments[7], NULL, 10)};
    const char *last_file = arguments[5];
    worker *w = &state;
    seed = strtoull(arguments[4], NULL, 10);
    open_all(w, "chaos", DIM);
    for (uint64_t last; mn_client_step(w->client) < (last = last_step(last_file));
         rest(w->pause_ms)) {
        uint64_t step = mn_client_step(w->client) + 1;
        play_step(w, step, step == last);
    }
    say("done %llu %016llx", (unsigned long long)mn_client_step(w->client),
        (unsigned long long)hash_tables(w, DIM, all_values));
    mn_client_close(w->client);
    return 0;
}
