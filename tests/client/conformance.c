/* One suite, every transport: the same calls give the same bits and the same refusals, embedded or
 * over gRPC, with 1, 2, 3 or 5 shards. The first service's results are the ones the others must
 * equal. */
#include "conformance.h"
#include "harness.h"
#include "mn_proto.h"
#include "service.h"

#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 3000, DIM = 512, QUERIES = 150, READS = 12, PUSHED = 900, STEPS = 3 };

/* ---- What is done to a table, and the fingerprint of all that came back ---- */

struct variant {
    const char *name;
    mn_table_spec spec;
    enum mn_dtype values; /* of bags, gradients, fetched rows */
    float clip_norm;
    bool bags;
};

static struct variant columns_variant(enum mn_dtype dtype, enum mn_dtype state, float clip_norm)
{
    struct variant variant = {
        .name = dtype == MN_F32 ? "columns f32" : "columns bf16",
        .spec = {.name = "values",
                 .rows = ROWS,
                 .dim = DIM,
                 .dtype = dtype,
                 .seed = 11,
                 .init = mn_init_normal(0.5f),
                 .optimizer = mn_adamw(0.9f, 0.95f, 1e-8f)},
        .values = dtype,
        .clip_norm = clip_norm,
        .bags = true,
    };
    variant.spec.optimizer.state_dtype = state;
    return variant;
}

static struct variant rows_variant(void)
{
    struct variant variant = {
        .name = "rows f32",
        .spec = {.name = "values",
                 .rows = ROWS,
                 .dim = DIM,
                 .split = MN_ROWS,
                 .seed = 5,
                 .init = mn_init_uniform(-1, 1),
                 .optimizer = mn_rowwise_adagrad(1e-6f)},
        .clip_norm = 2,
    };
    return variant;
}

typedef struct arrays {
    uint32_t indices[QUERIES * READS], rows[ROWS];
    int64_t wide[QUERIES * READS];
    float weights[QUERIES * READS], weight_gradients[QUERIES * READS];
    uint16_t weights_bf16[QUERIES * READS];
    float values[PUSHED * DIM], fetched[ROWS * DIM];
    uint8_t state[ROWS * 2 * DIM * sizeof(float)];
} arrays;

static mn_array values_of(enum mn_dtype dtype, void *data)
{
    return dtype == MN_F32 ? mn_f32(data) : mn_bf16(data);
}

static void fill(arrays *it, uint64_t seed, enum mn_dtype dtype)
{
    uint64_t state = seed;
    for (uint32_t i = 0; i < QUERIES * READS; i++) {
        it->indices[i] = (uint32_t)(draw(&state) % (i % 3 ? ROWS : 40)); /* repeats on purpose */
        it->wide[i] = it->indices[i];
        it->weights[i] = draw_float(&state);
        it->weights_bf16[i] = mn_f32_to_bf16(it->weights[i]);
    }
    for (uint32_t i = 0; i < PUSHED * DIM; i++) {
        float value = draw_float(&state);
        if (dtype == MN_F32)
            it->values[i] = value;
        else
            ((uint16_t *)it->values)[i] = mn_f32_to_bf16(value);
    }
}

static void blend(uint64_t *print, const void *bytes, size_t count)
{
    *print = mn_checksum(bytes, count, *print);
}

static void read_all(mn_table *table, uint64_t step, enum mn_dtype dtype, arrays *it,
                     uint64_t *print)
{
    mn_error error;
    const mn_table_spec *spec = mn_table_spec_of(table);
    uint64_t state_bytes = spec->split == MN_ROWS
                               ? sizeof(float)
                               : 2 * DIM * mn_dtype_bytes(spec->optimizer.state_dtype);
    for (uint32_t i = 0; i < ROWS; i++)
        it->rows[i] = (i * 7) % ROWS;
    mn_rows rows = {ROWS, mn_u32(it->rows)};
    must_wait(mn_fetch(table, step, &rows, values_of(dtype, it->fetched), it->state));
    blend(print, it->fetched, (size_t)ROWS * DIM * mn_dtype_bytes(dtype));
    blend(print, it->state, ROWS * state_bytes);
}

static void bag_step(mn_table *table, uint64_t step, const struct variant *variant, arrays *it,
                     uint64_t *print)
{
    mn_error error;
    mn_queries queries = {QUERIES, READS, mn_u32(it->indices), mn_f32(it->weights)};
    mn_queries packed = {QUERIES, READS, mn_i64(it->wide), mn_bf16(it->weights_bf16)};
    size_t bag_bytes = (size_t)QUERIES * DIM * mn_dtype_bytes(variant->values);
    must_wait(mn_bag(table, step, &queries, values_of(variant->values, it->fetched)));
    blend(print, it->fetched, bag_bytes);
    must_wait(mn_bag(table, step, &packed, mn_f32(it->fetched)));
    blend(print, it->fetched, QUERIES * DIM * sizeof(float));
    for (uint32_t part = 0; part < 2; part++) {
        must_wait(mn_bag_grad(table, step, part, part ? &packed : &queries,
                              values_of(variant->values, it->values),
                              mn_f32(it->weight_gradients)));
        blend(print, it->weight_gradients, sizeof it->weight_gradients);
    }
}

static uint64_t run_variant(const struct service *service, const struct variant *variant,
                            const char *group)
{
    mn_error error;
    arrays *it = calloc(1, sizeof *it);
    mn_client *client = service_open(service, group, 0, 1);
    mn_table *table;
    uint64_t print = 0, first = mn_client_step(client) + 1;
    assert_non_null(it);
    must(mn_table_open(client, &variant->spec, &table, &error));
    for (uint64_t step = first; step < first + STEPS; step++) {
        double norm = 0;
        fill(it, step - first, variant->values);
        if (variant->bags)
            bag_step(table, step, variant, it, &print);
        for (uint32_t i = 0; i < PUSHED; i++)
            it->rows[i] = (i * 31 + (uint32_t)step * 17) % (ROWS / 2);
        mn_rows rows = {PUSHED, mn_u32(it->rows)};
        must_wait(mn_push(table, step, 7, &rows, values_of(variant->values, it->values)));
        rows.count = 20;
        must_wait(mn_store(table, step, 8, &rows, values_of(variant->values, it->values), NULL));
        mn_commit_options options = {
            .learning_rate = 0.01f, .weight_decay = 0.1f, .clip_norm = variant->clip_norm};
        must(mn_commit(client, step, &options, &norm, &error));
        assert_int_equal(mn_client_step(client), step);
        assert_true(variant->clip_norm > 0 ? norm > 0 : norm == 0);
        blend(&print, &norm, sizeof norm);
    }
    read_all(table, first + STEPS, variant->values, it, &print);
    mn_client_close(client);
    free(it);
    return print;
}

/* ---- The same bits everywhere ---- */

static void same_bits(void **state)
{
    const struct variant variants[] = {
        columns_variant(MN_F32, MN_F32, 0), columns_variant(MN_F32, MN_F32, 3),
        columns_variant(MN_BF16, MN_F32, 0), columns_variant(MN_BF16, MN_BF16, 3), rows_variant()};
    enum { VARIANTS = sizeof variants / sizeof *variants };
    uint64_t expected[VARIANTS] = {0};
    (void)state;
    for (uint32_t k = 0; k < conformance_kind_count; k++) {
        struct service service;
        service_start(&service, conformance_kinds[k], NULL);
        for (uint32_t v = 0; v < VARIANTS; v++) {
            char group[16]; /* of its own, so that all begin at step 1 */
            (void)snprintf(group, sizeof group, "variant-%u", v);
            uint64_t print = run_variant(&service, &variants[v], group);
            if (k == 0)
                expected[v] = print;
            if (print != expected[v])
                fail_msg("%s: other bits with %s", variants[v].name, service_name(&service));
        }
        service_stop(&service);
    }
    for (uint32_t v = 1; v < VARIANTS; v++) /* a fingerprint that tells nothing apart is none */
        assert_true(expected[v] != expected[v - 1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bits),
        cmocka_unit_test(refusals),
        cmocka_unit_test(waits_end),
        cmocka_unit_test(tables_come_and_go),
        cmocka_unit_test(reads_and_steps),
        cmocka_unit_test(two_ranks_are_one),
        cmocka_unit_test(saved_and_loaded),
        cmocka_unit_test(threads_share_a_client),
        cmocka_unit_test(values_are_the_oracles),
        cmocka_unit_test(a_change_made_again_counts_once),
        cmocka_unit_test(readers_look_on),
        cmocka_unit_test(reads_are_counted),
        cmocka_unit_test(wide_rows_go_as_they_lie),
        cmocka_unit_test(every_way_to_wait),
        cmocka_unit_test(steps_in_flight),
        cmocka_unit_test(moves_keep_the_bits),
        cmocka_unit_test(moves_that_cannot_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
