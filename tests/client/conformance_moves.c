/* Tiles move between steps and during them: the same bits as without, whoever knows which map. */
#include "conformance.h"
#include "harness.h"
#include "mn_proto.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROWS = 600, DIM = 448, QUERIES = 20, READS = 6, PUSHED = 40, PARTS = 3, STEPS = 40 };

static const mn_table_spec specs[2] = {
    {.name = "bags",
     .rows = ROWS,
     .dim = DIM,
     .seed = 4,
     .init = {MN_INIT_NORMAL, 1, 0},
     .optimizer = {MN_OPTIMIZER_ADAMW, 0.9f, 0.95f, 1e-8f, MN_F32, false}},
    {.name = "rows",
     .rows = ROWS,
     .dim = 64,
     .split = MN_ROWS,
     .tiles = 16,
     .seed = 5,
     .init = {MN_INIT_UNIFORM, -1, 1},
     .optimizer = {MN_OPTIMIZER_ADAGRAD, 0, 0, 1e-6f, MN_F32, false}},
};

typedef struct part {
    uint32_t indices[QUERIES * READS], rows[PUSHED];
    float weights[QUERIES * READS], bags[QUERIES * DIM], gradients[QUERIES * DIM];
    float weight_gradients[QUERIES * READS], pushed[PUSHED * 64], fetched[PUSHED * 64];
    mn_future *futures[5];
} part;

typedef struct run {
    part parts[2][PARTS]; /* of two steps at once */
    float rows[ROWS * DIM];
    uint8_t state[ROWS * DIM * 2 * sizeof(float)];
    mn_client *client;
    mn_table *tables[2];
    mn_future *move;
    uint64_t chance; /* 0: nothing moves */
    uint32_t moved;
    uint64_t print;
} run;

static void blend(run *it, const void *bytes, size_t count)
{
    it->print = mn_checksum(bytes, count, it->print);
}

/* One move at a time, of whichever table, to and fro, also where no tile can be spared. */
static void keep_moving(run *it)
{
    mn_error error;
    uint32_t shards = mn_client_shards(it->client);
    if (!it->chance || shards == 1 || !mn_ready(it->move))
        return;
    if (it->move) {
        enum mn_status status = mn_wait(it->move, &error);
        assert_true(status == MN_OK || (status == MN_INVALID && !strcmp(error.field, "tiles")));
        it->moved += status == MN_OK;
    }
    uint32_t from = (uint32_t)(draw(&it->chance) % (shards - 1)), to = from + 1;
    bool back = draw(&it->chance) % 2;
    it->move = mn_move_start(it->tables[draw(&it->chance) % 2], back ? to : from, back ? from : to,
                             1 + (uint32_t)(draw(&it->chance) % 3));
}

static void begin_part(run *it, uint64_t step, uint32_t number)
{
    part *p = &it->parts[step % 2][number];
    uint64_t seed = step * PARTS + number;
    for (uint32_t i = 0; i < QUERIES * READS; i++) {
        p->indices[i] = (uint32_t)(draw(&seed) % ROWS);
        p->weights[i] = draw_float(&seed);
    }
    for (uint32_t i = 0; i < QUERIES * DIM; i++)
        p->gradients[i] = draw_float(&seed);
    for (uint32_t i = 0; i < PUSHED; i++)
        p->rows[i] = (uint32_t)(draw(&seed) % ROWS);
    for (uint32_t i = 0; i < PUSHED * 64; i++)
        p->pushed[i] = draw_float(&seed);
    mn_queries queries = {QUERIES, READS, mn_u32(p->indices), mn_f32(p->weights)};
    mn_rows rows = {PUSHED, mn_u32(p->rows)}, few = {3, mn_u32(p->rows)};
    p->futures[0] = mn_bag(it->tables[0], step, &queries, mn_f32(p->bags));
    p->futures[1] = mn_fetch(it->tables[1], step, &rows, mn_f32(p->fetched), NULL);
    p->futures[2] = mn_bag_grad(it->tables[0], step, number, &queries, mn_f32(p->gradients),
                                mn_f32(p->weight_gradients));
    p->futures[3] = mn_push(it->tables[1], step, number, &rows, mn_f32(p->pushed));
    p->futures[4] = mn_store(it->tables[1], step, PARTS + number, &few, mn_f32(p->pushed), NULL);
    keep_moving(it);
}

static void end_part(run *it, uint64_t step, uint32_t number)
{
    mn_error error;
    part *p = &it->parts[step % 2][number];
    for (uint32_t i = 0; i < 5; i++) {
        must_wait(p->futures[i]);
        keep_moving(it);
    }
    blend(it, p->bags, sizeof p->bags);
    blend(it, p->fetched, sizeof p->fetched);
    blend(it, p->weight_gradients, sizeof p->weight_gradients);
}

static void fetch_all(mn_table *table, uint64_t step, run *it)
{
    mn_error error;
    uint32_t indices[ROWS];
    for (uint32_t i = 0; i < ROWS; i++)
        indices[i] = i;
    mn_rows rows = {ROWS, mn_u32(indices)};
    memset(it->state, 0, sizeof it->state);
    must_wait(mn_fetch(table, step, &rows, mn_f32(it->rows), it->state));
    blend(it, it->rows, ROWS * mn_table_spec_of(table)->dim * sizeof(float));
    blend(it, it->state, sizeof it->state);
}

static void begin_step(run *it, uint64_t step)
{
    for (uint32_t number = 0; step <= STEPS && number < PARTS; number++)
        begin_part(it, step, number);
}

/* While no step is open a move has nothing to wait for. */
static void let_move(run *it)
{
    const struct timespec pause = {.tv_nsec = 1000000};
    for (uint32_t moves = 0; it->move && moves < 2; moves++) {
        while (!mn_ready(it->move))
            nanosleep(&pause, NULL);
        keep_moving(it);
    }
}

/* Mostly the next step is begun before the last one is committed. */
static void train(run *it)
{
    mn_error error;
    double norm;
    begin_step(it, 1);
    for (uint64_t step = 1; step <= STEPS; step++) {
        bool rests = step % 4 == 0;
        for (uint32_t number = 0; number < PARTS; number++)
            end_part(it, step, number);
        if (!rests)
            begin_step(it, step + 1);
        must(mn_commit(it->client, step,
                       &(mn_commit_options){.learning_rate = 0.01f, .clip_norm = 2}, &norm,
                       &error));
        blend(it, &norm, sizeof norm);
        keep_moving(it);
        if (rests) {
            let_move(it);
            begin_step(it, step + 1);
        }
    }
    if (it->move)
        (void)mn_wait(it->move, NULL); /* whether it was made or not */
    for (uint32_t t = 0; t < 2; t++)
        fetch_all(it->tables[t], MN_LATEST, it);
}

static mn_client *open_reader(const struct service *service, const char *group)
{
    mn_client *client;
    mn_error error;
    const mn_client_options options = {
        .target = service->target, .group = group, .reader = true, .deadline_ms = 30000};
    must(mn_client_open(&options, &client, &error));
    return client;
}

/* With and without moves; whoever has learnt the map before, reads the same after. */
static uint64_t run_group(const struct service *service, const char *group, uint64_t chance)
{
    mn_error error;
    run *it = calloc(1, sizeof *it);
    assert_non_null(it);
    it->client = service_open(service, group, 0, 1);
    for (uint32_t t = 0; t < 2; t++)
        must(mn_table_open(it->client, &specs[t], &it->tables[t], &error));
    mn_client *reader = service->kind.processes ? open_reader(service, group) : NULL;
    mn_table *found[2] = {NULL, NULL};
    for (uint32_t t = 0; reader && t < 2; t++)
        must(mn_table_find(reader, specs[t].name, &found[t], &error));
    it->chance = chance;
    train(it);
    uint64_t print = it->print;
    if (chance && service->kind.shards > 1) {
        print_message("%s: %u moves\n", service_name(service), it->moved);
        mn_table_status tables[4];
        uint32_t count = 4;
        must(mn_shard_tables(it->client, 0, tables, &count, &error));
        assert_true(it->moved >= 3 && tables[0].moved + tables[1].moved > 0);
    }
    it->print = 0;
    for (uint32_t t = 0; t < 2; t++)
        fetch_all(it->tables[t], MN_LATEST, it);
    uint64_t latest = it->print;
    it->print = 0;
    for (uint32_t t = 0; reader && t < 2; t++)
        fetch_all(found[t], MN_LATEST, it);
    assert_true(!reader || it->print == latest);
    mn_client_close(reader);
    mn_client_close(it->client);
    free(it);
    return print;
}

void moves_keep_the_bits(void **state)
{
    uint64_t expected = 0;
    (void)state;
    for (uint32_t k = 0; k < conformance_kind_count; k++) {
        struct service service;
        service_start(&service, conformance_kinds[k], NULL);
        for (uint32_t chance = 0; chance < 2; chance++) {
            if (chance && service.kind.device)
                continue; /* tiles in a device's memory stay */
            uint64_t print = run_group(&service, chance ? "moved" : "still", chance);
            if (!expected)
                expected = print;
            if (print != expected)
                fail_msg("other bits with %s%s", service_name(&service),
                         chance ? ", whose tiles move" : "");
        }
        service_stop(&service);
    }
}

static enum mn_status move(mn_table *table, uint32_t from, uint32_t to, uint32_t tiles,
                           mn_error *error)
{
    memset(error, 0, sizeof *error);
    return mn_move(table, from, to, tiles, error);
}

void moves_that_cannot_be(void **state)
{
    (void)state;
    for (uint32_t k = 0; k < conformance_kind_count; k++) {
        struct service service;
        mn_error error;
        mn_table *table;
        service_start(&service, conformance_kinds[k], NULL);
        uint32_t shards = service.kind.shards;
        mn_client *client = service_open(&service, "refused", 0, 1);
        must(mn_table_open(client, &specs[1], &table, &error));
        assert_int_equal(move(table, shards, 0, 1, &error), MN_INVALID);
        assert_string_equal(error.field, "from");
        assert_int_equal(move(table, 0, 0, 1, &error), MN_INVALID);
        assert_string_equal(error.field, "to");
        assert_int_equal(move(table, 0, shards > 2 ? 2 : shards, 1, &error), MN_INVALID);
        assert_string_equal(error.field, "to");
        if (shards > 1) {
            assert_int_equal(move(table, 0, 1, 0, &error), MN_INVALID);
            assert_string_equal(error.field, "tiles");
            assert_int_equal(move(table, 0, 1, 16, &error), MN_INVALID);
            assert_string_equal(error.field, "tiles");
            assert_int_equal(move(table, 0, 1, 1, &error),
                             service.kind.device ? MN_UNSUPPORTED : MN_OK);
        }
        must(mn_table_drop(client, specs[1].name, &error));
        assert_int_equal(move(table, 0, 1, 1, &error), MN_NOT_FOUND);
        mn_client_close(client);
        service_stop(&service);
    }
}
