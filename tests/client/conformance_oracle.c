/* Values, on every transport: small whole numbers, so that sums are exact in any order, against
 * plain arrays and obvious loops. Readers, staleness, and a change made again after it was
 * cancelled. */
#include "conformance.h"
#include "harness.h"
#include "mn_proto.h"

#include <stdio.h>
#include <string.h>

enum { ROWS = 64, DIM = 160, QUERIES = 10, READS = 5 };

typedef struct oracle {
    double rows[ROWS][DIM];
    uint32_t indices[QUERIES * READS], all[ROWS];
    float weights[QUERIES * READS], weight_gradients[QUERIES * READS];
    float gradients[QUERIES][DIM], bags[QUERIES][DIM], fetched[ROWS][DIM];
} oracle;

static float whole(uint64_t *state) { return (float)(draw(state) % 9) - 4; }

static void oracle_fill(oracle *it)
{
    uint64_t state = 1;
    for (uint32_t i = 0; i < QUERIES * READS; i++) {
        it->indices[i] = (uint32_t)(draw(&state) % ROWS);
        it->weights[i] = whole(&state);
    }
    for (uint32_t r = 0; r < ROWS; r++) {
        it->all[r] = r;
        for (uint32_t c = 0; c < DIM; c++)
            it->rows[r][c] = it->fetched[r][c] = whole(&state);
    }
    for (uint32_t q = 0; q < QUERIES; q++)
        for (uint32_t c = 0; c < DIM; c++)
            it->gradients[q][c] = whole(&state);
}

/* Places where the table's answers are not the oracle's. */
static uint32_t wrong_bags(const oracle *it)
{
    uint32_t wrong = 0;
    for (uint32_t q = 0; q < QUERIES; q++)
        for (uint32_t c = 0; c < DIM; c++) {
            double sum = 0;
            for (uint32_t j = q * READS; j < (q + 1) * READS; j++)
                sum += (double)it->weights[j] * it->rows[it->indices[j]][c];
            wrong += !(it->bags[q][c] == sum); /* so that NaN is wrong */
        }
    return wrong;
}

static uint32_t wrong_weight_gradients(const oracle *it)
{
    uint32_t wrong = 0;
    for (uint32_t j = 0; j < QUERIES * READS; j++) {
        double sum = 0;
        for (uint32_t c = 0; c < DIM; c++)
            sum += (double)it->gradients[j / READS][c] * it->rows[it->indices[j]][c];
        wrong += !(it->weight_gradients[j] == sum);
    }
    return wrong;
}

static uint32_t wrong_rows(const oracle *it)
{
    uint32_t wrong = 0;
    for (uint32_t r = 0; r < ROWS; r++)
        for (uint32_t c = 0; c < DIM; c++)
            wrong += !(it->fetched[r][c] == it->rows[r][c]);
    return wrong;
}

/* SGD with rate 1/2 and scale 2: row -= gradient. */
static void oracle_step(oracle *it)
{
    for (uint32_t j = 0; j < QUERIES * READS; j++)
        for (uint32_t c = 0; c < DIM; c++)
            it->rows[it->indices[j]][c] -= (double)it->weights[j] * it->gradients[j / READS][c];
}

static void agree(mn_client *client, enum mn_split split)
{
    static oracle it;
    mn_error error;
    mn_table *table;
    mn_table_spec spec = {.rows = ROWS, .dim = DIM, .split = split, .optimizer = mn_sgd()};
    (void)snprintf(spec.name, sizeof spec.name, "split-%d", (int)split);
    must(mn_table_open(client, &spec, &table, &error));
    oracle_fill(&it);
    mn_rows all = {ROWS, mn_u32(it.all)};
    mn_queries queries = {QUERIES, READS, mn_u32(it.indices), mn_f32(it.weights)};
    mn_commit_options half = {.learning_rate = 0.5f, .scale = 2};
    uint64_t step = mn_client_step(client) + 1;
    must_wait(mn_store(table, step, 0, &all, mn_f32(it.fetched[0]), NULL));
    must(mn_commit(client, step, &half, NULL, &error));
    must_wait(mn_bag(table, ++step, &queries, mn_f32(it.bags[0])));
    assert_int_equal(wrong_bags(&it), 0);
    must_wait(mn_bag_grad(table, step, 0, &queries, mn_f32(it.gradients[0]),
                          mn_f32(it.weight_gradients)));
    assert_int_equal(wrong_weight_gradients(&it), 0);
    must(mn_commit(client, step, &half, NULL, &error));
    oracle_step(&it);
    must_wait(mn_fetch(table, ++step, &all, mn_f32(it.fetched[0]), NULL));
    assert_int_equal(wrong_rows(&it), 0);
    it.bags[3][7] += 1; /* the comparisons do see what is wrong */
    it.weight_gradients[4] += 1;
    it.fetched[5][6] += 1;
    assert_true(wrong_bags(&it) > 0 && wrong_weight_gradients(&it) > 0 && wrong_rows(&it) == 1);
}

void values_are_the_oracles(void **state)
{
    (void)state;
    for (uint32_t k = 0; k < conformance_kind_count; k++) {
        struct service service;
        service_start(&service, conformance_kinds[k], NULL);
        mn_client *client = service_open(&service, "oracle", 0, 1);
        agree(client, MN_COLUMNS);
        agree(client, MN_ROWS);
        mn_client_close(client);
        service_stop(&service);
    }
}

/* ---- A change that was cancelled, and made again ---- */

static void change_once(const struct service *service, const char *group, bool cancelled,
                        oracle *it)
{
    mn_error error;
    mn_table *table;
    mn_client *client = service_open(service, group, 0, 1);
    mn_table_spec spec = {.name = "t", .rows = ROWS, .dim = DIM, .optimizer = mn_adagrad(1e-6f)};
    must(mn_table_open(client, &spec, &table, &error));
    oracle_fill(it);
    mn_queries queries = {QUERIES, READS, mn_u32(it->indices), mn_f32(it->weights)};
    mn_rows all = {ROWS, mn_u32(it->all)};
    for (uint64_t step = 1; step <= 5; step++) {
        for (int attempt = cancelled ? 0 : 1; attempt < 2; attempt++) {
            mn_future *change = mn_bag_grad(table, step, 0, &queries, mn_f32(it->gradients[0]),
                                            mn_f32(it->weight_gradients));
            if (attempt == 0)
                mn_cancel(change); /* it may or may not have been staged */
            else
                must_wait(change);
        }
        must(mn_commit(client, step, &(mn_commit_options){.learning_rate = 0.5f}, NULL, &error));
    }
    must_wait(mn_fetch(table, 6, &all, mn_f32(it->fetched[0]), NULL));
    mn_client_close(client);
}

void a_change_made_again_counts_once(void **state)
{
    static oracle once, again;
    (void)state;
    for (uint32_t k = 0; k < conformance_kind_count; k++) {
        struct service service;
        service_start(&service, conformance_kinds[k], NULL);
        change_once(&service, "once", false, &once);
        change_once(&service, "again", true, &again);
        assert_memory_equal(once.fetched, again.fetched, sizeof once.fetched);
        service_stop(&service);
    }
}

/* ---- Readers and staleness: over a service that outlives its clients ---- */

void readers_look_on(void **state)
{
    (void)state;
    for (uint32_t k = 0; k < conformance_kind_count; k++) {
        if (!conformance_kinds[k].processes)
            continue;
        static oracle it;
        struct service service;
        mn_error error;
        mn_client *reader = NULL;
        mn_table *table, *seen;
        service_start(&service, conformance_kinds[k], NULL);
        mn_client_options options = {.target = service.target, .group = "watched", .reader = true};
        must(mn_client_open(&options, &reader, &error)); /* before there is such a group */
        assert_int_equal(mn_table_find(reader, "t", &seen, &error), MN_NOT_FOUND);
        assert_string_equal(error.field, "group");
        mn_client *trainer = service_open(&service, "watched", 0, 1);
        mn_table_spec spec = {.name = "t", .rows = ROWS, .dim = DIM, .optimizer = mn_sgd()};
        must(mn_table_open(trainer, &spec, &table, &error));
        must(mn_table_find(reader, "t", &seen, &error));
        oracle_fill(&it);
        mn_rows all = {ROWS, mn_u32(it.all)};
        must_wait(mn_store(table, 1, 0, &all, mn_f32(it.fetched[0]), NULL));
        must(mn_commit(trainer, 1, &(mn_commit_options){.learning_rate = 1}, NULL, &error));
        memset(it.fetched, 0, sizeof it.fetched);
        must_wait(mn_fetch(seen, MN_LATEST, &all, mn_f32(it.fetched[0]), NULL));
        assert_int_equal(wrong_rows(&it), 0);
        assert_int_equal(mn_wait(mn_push(seen, 2, 0, &all, mn_f32(it.fetched[0])), &error),
                         MN_INVALID);
        assert_string_equal(error.field, "reader");
        must(mn_save(reader, "seen", 0, NULL, &error)); /* fencing nobody */
        must(mn_load(trainer, "seen", 0, &error));
        assert_int_equal(
            mn_wait(mn_fetch(seen, MN_LATEST, &all, mn_f32(it.fetched[0]), NULL), &error),
            MN_EPOCH);
        must(mn_table_find(reader, "t", &seen, &error));
        must_wait(mn_fetch(seen, MN_LATEST, &all, mn_f32(it.fetched[0]), NULL));
        must(mn_commit(trainer, 2, &(mn_commit_options){.learning_rate = 1}, NULL, &error));
        mn_client_close(reader); /* and the trainer was not fenced */
        options.reader = false;
        options.staleness = 2;
        must(mn_client_open(&options, &reader, &error)); /* a later incarnation: fences it */
        must(mn_table_find(reader, "t", &seen, &error));
        must_wait(mn_fetch(seen, 5, &all, mn_f32(it.fetched[0]), NULL)); /* sees step 2 */
        assert_int_equal(mn_commit(trainer, 3, &(mn_commit_options){0}, NULL, &error), MN_FENCED);
        mn_client_close(reader);
        mn_client_close(trainer);
        service_stop(&service);
    }
}
