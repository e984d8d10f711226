/* Tables in a device's memory (tests/gpu/emulator) beside tables in the host's: every optimizer,
 * what is refused, files both ways, saves while steps are committed, and a device that has no more
 * memory or fails. CMake renames the calls with arrays: device_arrays.c makes them. */
#include "device_test.h"

#include "device_machine.h"
#include "harness.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const struct service_kind on_host = {.shards = 1};
static const struct service_kind on_device = {.shards = 1, .device = 1, .arrays = true};

/* ---- Every optimizer, with norms ---- */

static mn_optimizer optimizer_number(int i)
{
    mn_optimizer all[OPTIMIZERS] = {mn_sgd(),
                                    mn_adagrad(1e-6f),
                                    mn_adam(0.9f, 0.99f, 1e-6f),
                                    mn_adamw(0.9f, 0.95f, 1e-6f),
                                    mn_adamw(0.9f, 0.95f, 1e-6f),
                                    mn_rowwise_adagrad(1e-6f)};
    all[4].row_correction = true;
    return all[i];
}

mn_table_spec numbered_spec(int number)
{
    const int optimizer = number % OPTIMIZERS, dtypes = number / OPTIMIZERS;
    mn_table_spec spec = {.rows = ROWS,
                          .dim = DIM,
                          .seed = (uint64_t)number,
                          .dtype = dtypes & 1 ? MN_BF16 : MN_F32,
                          .split = dtypes & 4 || optimizer == 5 ? MN_ROWS : MN_COLUMNS,
                          .init = mn_init_normal(0.5f),
                          .optimizer = optimizer_number(optimizer)};
    (void)snprintf(spec.name, sizeof spec.name, "t%d", number);
    if (optimizer != 5)
        spec.optimizer.state_dtype = dtypes & 2 ? MN_BF16 : MN_F32;
    return spec;
}

void batch_fill(struct batch *it, uint64_t seed, enum mn_dtype dtype)
{
    for (uint32_t i = 0; i < QUERIES * READS; i++) {
        it->indices[i] = (uint32_t)(draw(&seed) % (i % 3 ? ROWS : 7));
        it->weights[i] = draw_float(&seed) / 3; /* so that sums depend on their order */
    }
    for (uint32_t i = 0; i < QUERIES; i++)
        it->rows[i] = (uint32_t)(draw(&seed) % (ROWS / 2)); /* some twice */
    for (uint32_t i = 0; i < QUERIES * DIM; i++) {
        const float value = draw_float(&seed) / 7;
        it->values[i] = value;
        if (dtype == MN_BF16)
            ((uint16_t *)it->values)[i] = mn_f32_to_bf16(value);
    }
    for (uint32_t i = 0; i < QUERIES * 2 * DIM; i++)
        it->states[i] = 0.25f; /* two bf16 are as good */
}

static mn_array values_of(struct batch *it, enum mn_dtype dtype)
{
    return dtype == MN_F32 ? mn_f32(it->values) : mn_bf16((uint16_t *)it->values);
}

enum mn_status try_step(mn_client *client, mn_table *table, uint64_t step, struct batch *it,
                        uint64_t *print, mn_error *error)
{
    const mn_table_spec *spec = mn_table_spec_of(table);
    const enum mn_dtype dtype = step % 2 ? MN_F32 : MN_BF16;
    double norm = 0;
    batch_fill(it, step, dtype);
    mn_queries queries = {QUERIES, READS, mn_u32(it->indices), mn_f32(it->weights)};
    mn_rows rows = {QUERIES, mn_u32(it->rows)};
    memset(it->out, 0, sizeof it->out);
    enum mn_status status = mn_wait(mn_bag(table, step, &queries, mn_f32(it->out)), error);
    *print = mn_checksum(it->out, sizeof it->out, *print);
    if (!status)
        status = mn_wait(mn_bag_grad(table, step, 0, &queries, values_of(it, dtype),
                                     mn_f32(it->weight_gradients)),
                         error);
    *print = mn_checksum(it->weight_gradients, sizeof it->weight_gradients, *print);
    batch_fill(it, step + 1000, dtype);
    if (!status)
        status = mn_wait(mn_push(table, step, 1, &rows, values_of(it, dtype)), error);
    const bool stateful = spec->optimizer.kind != MN_OPTIMIZER_SGD;
    if (!status)
        status = mn_wait(mn_store(table, step, 2, &rows, values_of(it, dtype),
                                  stateful && step == 2 ? it->states : NULL),
                         error);
    const mn_commit_options options = {
        .learning_rate = 0.01f, .weight_decay = 0.1f, .clip_norm = step == 3 ? 0 : 2};
    if (!status)
        status = mn_commit(client, step, &options, &norm, error);
    *print = mn_checksum(&norm, sizeof norm, *print);
    return status;
}

void train(mn_client *client, mn_table *table, uint64_t step, uint64_t *print)
{
    static struct batch it;
    mn_error error;
    must(try_step(client, table, step, &it, print, &error));
}

uint64_t all_of(mn_table *table, uint64_t step)
{
    static float rows[ROWS * DIM];
    static uint8_t states[ROWS * 2 * DIM * sizeof(float)];
    uint32_t all[ROWS];
    mn_error error;
    const mn_table_spec *spec = mn_table_spec_of(table);
    const bool stateful = spec->optimizer.kind != MN_OPTIMIZER_SGD;
    memset(states, 0, sizeof states);
    for (uint32_t i = 0; i < ROWS; i++)
        all[i] = (i * 7) % ROWS;
    mn_rows wanted = {ROWS, mn_u32(all)};
    must_wait(mn_fetch(table, step, &wanted, mn_f32(rows), stateful ? states : NULL));
    return mn_checksum(states, sizeof states, mn_checksum(rows, sizeof rows, 0));
}

static uint64_t print_of(const struct service *service, int number)
{
    const mn_table_spec spec = numbered_spec(number);
    char group[16];
    mn_error error;
    mn_table *table;
    uint64_t print = 0;
    (void)snprintf(group, sizeof group, "g%d", number);
    mn_client *client = service_open(service, group, 0, 1);
    must(mn_table_open(client, &spec, &table, &error));
    for (uint64_t step = 1; step <= 4; step++)
        train(client, table, step, &print);
    print = print * 31 + all_of(table, 5);
    mn_table_status told;
    uint32_t count = 1;
    must(mn_shard_tables(client, 0, &told, &count, &error));
    print = print * 31 + told.rows_written;
    mn_client_close(client);
    return print;
}

/* bf16 rows of an odd number of elements leave states of f32 askew behind them: on a GPU that is an
 * error which no context survives (here the undefined-behaviour sanitizer tells of it). */
static void states_behind_odd_rows(void **state)
{
    enum { ODD = 3 };
    static uint8_t answers[2][ODD * (2 + 2 * 4)];
    (void)state;
    for (int side = 0; side < 2; side++) {
        struct service service;
        mn_error error;
        mn_table *table;
        service_start(&service, side ? on_device : on_host, NULL);
        mn_client *client = service_open(&service, "odd", 0, 1);
        const mn_table_spec spec = {.name = "odd",
                                    .rows = 16,
                                    .dim = 1,
                                    .init = mn_init_normal(1),
                                    .optimizer = mn_adam(0.9f, 0.99f, 1e-6f)};
        must(mn_table_open(client, &spec, &table, &error));
        uint32_t some[ODD] = {1, 5, 11};
        float gradients[ODD] = {0.5f, -2, 0.25f};
        const mn_rows rows = {ODD, mn_u32(some)};
        must_wait(mn_push(table, 1, 0, &rows, mn_f32(gradients)));
        must(mn_commit(client, 1, &(mn_commit_options){.learning_rate = 0.1f}, NULL, &error));
        uint16_t *values = (uint16_t *)(void *)answers[side];
        must_wait(mn_fetch(table, 2, &rows, mn_bf16(values), answers[side] + ODD * 2));
        mn_client_close(client);
        service_stop(&service);
    }
    assert_memory_equal(answers[0], answers[1], sizeof answers[0]);
    assert_int_not_equal(answers[0][ODD * 2 + 3], 0); /* a moment of a gradient */
}

static void every_optimizer_has_the_hosts_bits(void **state)
{
    static uint64_t expected[SPECS];
    (void)state;
    for (int side = 0; side < 2; side++) {
        struct service service;
        service_start(&service, side ? on_device : on_host, NULL);
        for (int number = 0; number < SPECS; number++) {
            const uint64_t print = print_of(&service, number);
            if (side == 0)
                expected[number] = print;
            else if (print != expected[number])
                fail_msg("optimizer %d, dtypes %d: other bits", number % OPTIMIZERS,
                         number / OPTIMIZERS);
            for (int other = 0; side == 0 && other < number; other++)
                assert_true(expected[other] != print); /* what tells nothing apart is no print */
        }
        service_stop(&service);
    }
}

/* ---- Refusals, word for word ---- */

enum { REFUSALS = 15 };

/* Each is a step's first call, so that nothing stands in its way. */
static mn_future *refused_call(mn_table *table, int number, struct batch *it, int64_t *wide)
{
    const uint64_t step = 1;
    uint16_t *narrow = (uint16_t *)it->out;
    mn_queries queries = {QUERIES, READS, mn_u32(it->indices), mn_f32(it->weights)};
    mn_rows rows = {QUERIES, mn_u32(it->rows)};
    mn_array values = mn_f32(it->values), gradients = mn_f32(it->weight_gradients);
    for (uint32_t i = 0; i < QUERIES * READS; i++)
        wide[i] = it->indices[i], narrow[i] = mn_f32_to_bf16(it->weights[i]);
    const int kind = number % 5;
    if (number < 5) { /* an index */
        it->indices[kind == 4 ? 3 : 50] = kind == 1 ? UINT32_MAX : ROWS;
        wide[51] = -1;
        it->rows[QUERIES - 1] = ROWS + 3;
        if (kind >= 2 && kind < 4)
            queries.indices = mn_i64(wide);
    } else if (number < 10) { /* a weight, or a row */
        it->weights[33] = kind ? NAN : INFINITY;
        narrow[34] = 0xff80;
        it->values[DIM * 5 + 3] = -INFINITY;
        if (kind == 2)
            queries.weights = mn_bf16(narrow);
    } else { /* several things at once: the first one in the order of the looks is said */
        it->weights[33] = NAN;
        it->indices[77] = kind < 2 ? ROWS : it->indices[77];
        it->rows[3] = kind == 3 ? ROWS : it->rows[3];
        it->values[DIM * 2] = it->values[DIM * 2 + 1] = NAN;
    }
    switch (kind) {
    case 0:
    case 2:
        return mn_bag(table, step, &queries, mn_f32(it->values));
    case 1:
        return mn_bag_grad(table, step, 0, &queries, values, gradients);
    case 3:
        return mn_push(table, step, 1, &rows, values);
    default:
        return number < 5 ? mn_fetch(table, step, &rows, mn_f32(it->out), NULL)
                          : mn_store(table, step, 2, &rows, values, NULL);
    }
}

static void what_is_refused_is_said_alike(void **state)
{
    static struct batch it;
    static int64_t wide[QUERIES * READS];
    mn_error error, words[REFUSALS];
    (void)state;
    for (int side = 0; side < 2; side++) {
        struct service service;
        mn_table *table;
        mn_table_spec spec = numbered_spec(0);
        service_start(&service, side ? on_device : on_host, NULL);
        mn_client *client = service_open(&service, "g", 0, 1);
        must(mn_table_open(client, &spec, &table, &error));
        const uint64_t before = all_of(table, 1);
        for (int number = 0; number < REFUSALS; number++) {
            batch_fill(&it, 7, MN_F32);
            memset(&error, 0, sizeof error);
            assert_int_equal(mn_wait(refused_call(table, number, &it, wide), &error), MN_INVALID);
            if (side == 0)
                words[number] = error;
            assert_string_equal(error.field, words[number].field);
            assert_string_equal(error.message, words[number].message);
        }
        const mn_commit_options any = {.learning_rate = 1};
        assert_int_equal(mn_commit(client, 1, &any, NULL, &error), MN_INCOMPLETE);
        must(mn_discard(client, 1, &error));
        assert_true(all_of(table, 2) == before); /* nothing was changed */
        mn_client_close(client);
        service_stop(&service);
    }
}

/* ---- Files ---- */

/* Saves both sides at one step; either is loaded into the other, and goes on with the same bits. */
static void files_are_the_hosts(void **state)
{
    struct service services[2];
    uint64_t prints[2] = {0};
    mn_error error;
    mn_table *tables[2][SPECS];
    mn_client *clients[2];
    (void)state;
    for (int side = 0; side < 2; side++) {
        service_start(&services[side], side ? on_device : on_host, NULL);
        clients[side] = service_open(&services[side], "g", 0, 1);
        for (int number = 0; number < SPECS; number += 5) {
            const mn_table_spec spec = numbered_spec(number);
            must(mn_table_open(clients[side], &spec, &tables[side][number], &error));
        }
        uint64_t step = 1;
        for (int number = 0; number < SPECS; number += 5)
            train(clients[side], tables[side][number], step++, &prints[side]);
        must(mn_save(clients[side], "a", 0, NULL, &error));
        train(clients[side], tables[side][0], step++, &prints[side]);
        train(clients[side], tables[side][5], step++, &prints[side]);
        must(mn_save(clients[side], "a", 0, NULL, &error)); /* what has changed alone is written */
    }
    assert_true(prints[0] == prints[1]);
    assert_true(same_tiles(services[0].folder, services[1].folder, "a"));
    for (int side = 0; side < 2; side++) { /* the other's files */
        move_folder(services[1 - side].folder, services[side].folder, "a", "b");
        service_started = &services[side].kind;
        must(mn_load(clients[side], "b", 0, &error));
        uint64_t step = mn_client_step(clients[side]) + 1;
        prints[side] = 0;
        for (int number = 0; number < SPECS; number += 5)
            train(clients[side], tables[side][number], step++, &prints[side]);
        for (int number = 0; number < SPECS; number += 5)
            prints[side] = prints[side] * 31 + all_of(tables[side][number], step);
    }
    assert_true(prints[0] == prints[1]);
    for (int side = 0; side < 2; side++) {
        mn_client_close(clients[side]);
        service_stop(&services[side]);
    }
}

static void saves_are_of_one_step(void **state)
{
    (void)state;
    for (int split = 0; split < 2; split++) {
        struct service service;
        struct saver saver = {0};
        uint64_t prints[STEPS_MAX] = {0}, ignored = 0;
        mn_error error;
        mn_table *table;
        const mn_table_spec spec = numbered_spec(split ? 5 : 3);
        service_start(&service, on_device, NULL);
        mn_client *client = service_open(&service, "g", 0, 1);
        must(mn_table_open(client, &spec, &table, &error));
        train(client, table, 1, &ignored);
        prints[1] = all_of(table, 2);
        saver_start(&saver, client, "a", 400000); /* most of a second */
        uint64_t step = 2;
        for (; step < STEPS_MAX && (step < 6 || !saver_ended(&saver)); step++) {
            train(client, table, step, &ignored);
            prints[step] = all_of(table, step + 1);
        }
        const uint64_t saved = saver_join(&saver);
        assert_true(saved >= 1 && saved + 2 < step); /* steps were committed meanwhile */
        must(mn_load(client, "a", 0, &error));
        assert_int_equal(mn_client_step(client), saved);
        assert_true(all_of(table, saved + 1) == prints[saved]);
        mn_client_close(client);
        service_stop(&service);
    }
}

static void __attribute__((constructor)) start(void) { machine_start(); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_optimizer_has_the_hosts_bits),
        cmocka_unit_test(states_behind_odd_rows),
        cmocka_unit_test(what_is_refused_is_said_alike),
        cmocka_unit_test(files_are_the_hosts),
        cmocka_unit_test(saves_are_of_one_step),
        cmocka_unit_test(limits_have_names),
        cmocka_unit_test(other_devices_are_left_alone),
        cmocka_unit_test(arrays_of_any_memory),
        cmocka_unit_test(later_work_is_not_waited_for),
        cmocka_unit_test(streams_are_refused),
        cmocka_unit_test(large_calls_are_cut),
        cmocka_unit_test(memory_ends),
        cmocka_unit_test(a_device_is_at_fault),
        cmocka_unit_test(a_device_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
