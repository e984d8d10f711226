/* Commit, Discard and Reduce as futures, on every transport: two ranks in one thread, which no
 * blocking call allows. */
#include "conformance.h"
#include "harness.h"
#include "mn_proto.h"

#include <string.h>
#include <time.h>

enum { ROWS = 32, DIM = 64, READS = 8, RANKS = 2 };

typedef struct trainer {
    mn_client *client;
    mn_table *table;
    uint32_t indices[READS];
    float gradients[READS * DIM];
} trainer;

static void begin(trainer *it, const struct service *service, const char *group, uint32_t rank,
                  uint32_t ranks)
{
    mn_error error;
    const mn_table_spec spec = {
        .name = "values", .rows = ROWS, .dim = DIM, .optimizer = mn_adagrad(1e-6f)};
    it->client = service_open(service, group, rank, ranks);
    must(mn_table_open(it->client, &spec, &it->table, &error));
    for (uint32_t i = 0; i < READS; i++)
        it->indices[i] = i * 3;
    for (uint32_t i = 0; i < READS * DIM; i++)
        it->gradients[i] = (float)(i % 7) - (float)rank;
}

static void push(trainer *it, uint64_t step)
{
    mn_error error;
    mn_rows rows = {READS, mn_u32(it->indices)};
    must_wait(mn_push(it->table, step, 0, &rows, mn_f32(it->gradients)));
}

static mn_future *fetch(trainer *it, uint64_t step, float *out_rows)
{
    mn_rows rows = {READS, mn_u32(it->indices)};
    return mn_fetch(it->table, step, &rows, mn_f32(out_rows), NULL);
}

/* What is wrong before anything is sent is in the future, like every other failure. */
static void refused(mn_future *future, const char *field, const char *says)
{
    mn_error error;
    assert_true(mn_ready(future));
    assert_int_equal(mn_wait(future, &error), MN_INVALID);
    assert_string_equal(error.field, field);
    assert_non_null(strstr(error.message, says));
}

/* Too late: it undoes nothing. */
static void cancel_ended(mn_future *future)
{
    const struct timespec pause = {.tv_nsec = 1000000};
    while (!mn_ready(future))
        (void)nanosleep(&pause, NULL); /* cut short by a signal: no harm */
    mn_cancel(future);
}

static void one_rank(const struct service *service)
{
    trainer it;
    mn_error error;
    double sum = 4, norm = -1;
    float before[READS * DIM], after[READS * DIM];
    char name[MN_NAME_BYTES + 1];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = 0;
    begin(&it, service, "alone", 0, 1);
    refused(mn_reduce_start(it.client, 1, name, &sum, 1), "name", "more than 63 bytes");
    refused(mn_commit_start(it.client, 1, &(mn_commit_options){.set_count = 9}, NULL), "sets", "9");
    must_wait(mn_reduce_start(it.client, 1, "sum", &sum, 1));
    assert_true(sum == 4);
    must_wait(fetch(&it, 1, before));
    push(&it, 1);
    mn_commit_options options = {.learning_rate = 0.5f, .clip_norm = 9};
    mn_future *commit = mn_commit_start(it.client, 1, &options, &norm);
    memset(&options, 0xff, sizeof options); /* it was looked at */
    must_wait(fetch(&it, 2, after));        /* the next step's read is on its way meanwhile */
    must_wait(commit);
    assert_true(norm > 0 && mn_client_step(it.client) == 1);
    assert_memory_not_equal(before, after, sizeof before);
    push(&it, 2);
    must_wait(mn_discard_start(it.client, 2));
    must_wait(fetch(&it, 3, before));
    assert_memory_equal(before, after, sizeof before);
    assert_int_equal(mn_wait(mn_discard_start(it.client, 2), &error), MN_STEP);
    cancel_ended(mn_discard_start(it.client, 3));
    assert_int_equal(mn_client_step(it.client), 3);
    assert_int_equal(mn_discard(it.client, 3, &error), MN_STEP);
    mn_client_close(it.client);
}

static void reduce_both(trainer both[RANKS])
{
    mn_error error;
    double values[RANKS][2] = {{1, -2}, {0.5, 8}};
    mn_future *futures[RANKS];
    futures[0] = mn_reduce_start(both[0].client, 1, "sum", values[0], 2);
    assert_int_equal(mn_wait_until(futures[0], 20, &error), MN_TIMEOUT);
    futures[1] = mn_reduce_start(both[1].client, 1, "sum", values[1], 2);
    for (int r = 0; r < RANKS; r++) {
        must_wait(futures[r]);
        assert_true(values[r][0] == 1.5 && values[r][1] == 6);
    }
    double own[2] = {1, -2};
    cancel_ended(mn_reduce_start(both[0].client, 1, "sum", own, 2));
    assert_memory_equal(own, values[0], sizeof own);
    assert_int_equal(mn_reduce(both[0].client, 1, "sum", own, 2, &error), MN_CONFLICT);
    assert_string_equal(error.field, "payload");
    memcpy(own, (const double[]){1, -2}, sizeof own); /* as first given */
    must(mn_reduce(both[0].client, 1, "sum", own, 2, &error));
    assert_memory_equal(own, values[0], sizeof own);
}

/* One rank's commit is cancelled while it waits for the other's, and made again: the step is
 * committed once. */
static void commit_both(trainer both[RANKS])
{
    mn_error error;
    double norms[RANKS] = {0};
    float rows[RANKS][READS * DIM];
    const mn_commit_options options = {.learning_rate = 0.5f, .clip_norm = 9};
    mn_future *commits[RANKS], *reads[RANKS];
    for (int r = 0; r < RANKS; r++) {
        push(&both[r], 1);
        reads[r] = fetch(&both[r], 2, rows[r]);
    }
    commits[0] = mn_commit_start(both[0].client, 1, &options, &norms[0]);
    assert_int_equal(mn_wait_until(commits[0], 20, &error), MN_TIMEOUT);
    assert_false(mn_ready(commits[0]) || mn_ready(reads[0]));
    mn_cancel(commits[0]);
    assert_int_equal(mn_client_step(both[0].client), 0);
    for (int r = 0; r < RANKS; r++)
        commits[r] = mn_commit_start(both[r].client, 1, &options, &norms[r]);
    for (int r = 0; r < RANKS; r++) {
        must_wait(commits[r]);
        must_wait(reads[r]);
        assert_int_equal(mn_client_step(both[r].client), 1);
    }
    assert_true(norms[0] > 0 && norms[0] == norms[1]);
    assert_memory_equal(rows[0], rows[1], sizeof rows[0]);
}

static void discard_one(trainer both[RANKS])
{
    mn_error error;
    const mn_commit_options options = {.learning_rate = 0.5f};
    mn_future *vote = mn_discard_start(both[0].client, 2);
    mn_future *commit = mn_commit_start(both[1].client, 2, &options, NULL);
    must_wait(vote);
    assert_int_equal(mn_wait(commit, &error), MN_DISCARDED);
}

void steps_in_flight(void **state)
{
    (void)state;
    for (uint32_t k = 0; k < conformance_kind_count; k++) {
        struct service service;
        service_start(&service, conformance_kinds[k], NULL);
        one_rank(&service);
        if (conformance_kinds[k].processes) { /* embedded shards have one rank */
            trainer both[RANKS];
            for (uint32_t r = 0; r < RANKS; r++)
                begin(&both[r], &service, "both", r, RANKS);
            reduce_both(both);
            commit_both(both);
            discard_one(both);
            for (int r = 0; r < RANKS; r++)
                mn_client_close(both[r].client);
        }
        service_stop(&service);
    }
}
