/* Rows wide enough to be sent from the caller's memory, neighbours of the array going to one shard
 * here and to several there: what arrives is what was given. */
#include "conformance.h"
#include "harness.h"
#include "mn_proto.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 600, DIM_MAX = 1040 };

typedef struct wide {
    uint32_t indices[ROWS];
    float values[ROWS * DIM_MAX], sums[ROWS * DIM_MAX], gradients[ROWS * DIM_MAX];
    float rows[ROWS * DIM_MAX], states[ROWS * DIM_MAX]; /* read back */
} wide;

/* Every row once, in an order that has runs and jumps. */
static void wide_fill(wide *it, uint32_t dim, uint64_t seed)
{
    for (uint32_t i = 0; i < ROWS; i++)
        it->indices[i] = i;
    for (uint32_t i = ROWS / 2; i < ROWS; i++) {
        uint32_t j = ROWS / 2 + (uint32_t)(draw(&seed) % (ROWS / 2)), kept = it->indices[i];
        it->indices[i] = it->indices[j];
        it->indices[j] = kept;
    }
    for (uint32_t i = 0; i < ROWS * dim; i++) {
        it->values[i] = draw_float(&seed);
        it->sums[i] = draw_float(&seed) * draw_float(&seed) + 1;
        it->gradients[i] = draw_float(&seed);
    }
}

static void fetch_all(mn_table *table, uint64_t step, wide *it)
{
    mn_error error;
    mn_rows rows = {ROWS, mn_u32(it->indices)};
    must_wait(mn_fetch(table, step, &rows, mn_f32(it->rows), it->states));
}

/* Stored values and states come back as they are; a push moves them as SGD's formula has it. */
static void go_there_and_back(const struct service *service, enum mn_split split, uint32_t dim)
{
    mn_error error;
    char group[32];
    (void)snprintf(group, sizeof group, "%s-%u", split == MN_ROWS ? "rows" : "columns", dim);
    mn_table_spec plain = {.name = "plain", .rows = ROWS, .dim = dim, .split = split};
    mn_table_spec state = plain;
    plain.optimizer = mn_sgd();
    memcpy(state.name, "state", sizeof "state");
    state.optimizer = mn_adagrad(1e-6f);
    mn_client *client = service_open(service, group, 0, 1);
    mn_table *moved, *kept;
    wide *it = malloc(sizeof *it);
    assert_non_null(it);
    wide_fill(it, dim, dim);
    must(mn_table_open(client, &plain, &moved, &error));
    must(mn_table_open(client, &state, &kept, &error));
    mn_rows rows = {ROWS, mn_u32(it->indices)};
    must_wait(mn_store(kept, 1, 0, &rows, mn_f32(it->values), it->sums));
    must_wait(mn_store(moved, 1, 0, &rows, mn_f32(it->values), NULL));
    must_wait(mn_push(moved, 1, 1, &rows, mn_f32(it->gradients)));
    must(mn_commit(client, 1, &(mn_commit_options){.learning_rate = 0.5f}, NULL, &error));
    fetch_all(kept, 2, it);
    assert_memory_equal(it->rows, it->values, (size_t)ROWS * dim * sizeof *it->rows);
    assert_memory_equal(it->states, it->sums, (size_t)ROWS * dim * sizeof *it->rows);
    must_wait(mn_fetch(moved, 2, &rows, mn_f32(it->rows), NULL));
    for (uint32_t i = 0; i < ROWS * dim; i++)
        assert_true(it->rows[i] == it->values[i] - 0.5f * it->gradients[i]);
    mn_client_close(client);
    free(it);
}

void wide_rows_go_as_they_lie(void **state)
{
    (void)state;
    for (uint32_t k = 0; k < conformance_kind_count; k++) {
        struct service service;
        service_start(&service, conformance_kinds[k], NULL);
        for (int split = MN_COLUMNS; split <= MN_ROWS; split++) {
            go_there_and_back(&service, (enum mn_split)split, MN_SPAN_BYTES_MIN / sizeof(float));
            go_there_and_back(&service, (enum mn_split)split, DIM_MAX);
        }
        service_stop(&service);
    }
}
