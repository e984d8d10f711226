/* Every verb, on every transport: tables, reads, steps, ranks, files, waits, threads. */
#include "conformance.h"
#include "harness.h"
#include "mn_proto.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { ROWS = 256, DIM = 192, QUERIES = 24, READS = 4 };

static const mn_table_spec spec = {.name = "values",
                                   .rows = ROWS,
                                   .dim = DIM,
                                   .seed = 3,
                                   .init = {MN_INIT_NORMAL, 1, 0},
                                   .optimizer = {MN_OPTIMIZER_ADAGRAD, 0, 0, 1e-6f, MN_F32, false}};

typedef struct batch {
    uint32_t indices[QUERIES * READS];
    float weights[QUERIES * READS], weight_gradients[QUERIES * READS];
    float gradients[QUERIES * DIM], bags[QUERIES * DIM];
} batch;

static void batch_fill(batch *it, uint64_t seed)
{
    for (uint32_t i = 0; i < QUERIES * READS; i++) {
        it->indices[i] = (uint32_t)(draw(&seed) % ROWS);
        it->weights[i] = draw_float(&seed);
    }
    for (uint32_t i = 0; i < QUERIES * DIM; i++)
        it->gradients[i] = draw_float(&seed);
}

static mn_queries batch_queries(batch *it, uint32_t first, uint32_t count)
{
    mn_queries queries = {count, READS, mn_u32(it->indices + first * READS),
                          mn_f32(it->weights + first * READS)};
    return queries;
}

static void fetch_all(mn_table *table, uint64_t step, float *out_rows)
{
    mn_error error;
    uint32_t indices[ROWS];
    for (uint32_t i = 0; i < ROWS; i++)
        indices[i] = i;
    mn_rows rows = {ROWS, mn_u32(indices)};
    must_wait(mn_fetch(table, step, &rows, mn_f32(out_rows), NULL));
}

static mn_table *open_table(mn_client *client)
{
    mn_table *table;
    mn_error error;
    must(mn_table_open(client, &spec, &table, &error));
    return table;
}

/* Both halves of a batch, as parts 0 and 1. */
static void train_step(mn_client *client, mn_table *table, uint64_t step)
{
    static batch it;
    mn_error error;
    batch_fill(&it, step);
    for (uint32_t part = 0; part < 2; part++) {
        uint32_t first = part * QUERIES / 2;
        mn_queries queries = batch_queries(&it, first, QUERIES / 2);
        must_wait(mn_bag_grad(table, step, part, &queries, mn_f32(it.gradients + first * DIM),
                              mn_f32(it.weight_gradients)));
    }
    must(mn_commit(client, step, &(mn_commit_options){.learning_rate = 0.1f, .clip_norm = 5}, NULL,
                   &error));
}

/* ---- Tables ---- */

void tables_come_and_go(void **state)
{
    (void)state;
    for (uint32_t k = 0; k < conformance_kind_count; k++) {
        struct service service;
        mn_error error;
        service_start(&service, conformance_kinds[k], NULL);
        mn_client *client = service_open(&service, "tables", 0, 1);
        mn_table *table = open_table(client), *found;
        assert_ptr_equal(open_table(client), table); /* idempotent */
        must(mn_table_find(client, "values", &found, &error));
        assert_ptr_equal(found, table);
        assert_int_equal(mn_table_spec_of(table)->tiles, 3);
        assert_int_equal(mn_client_shards(client), service.kind.shards);
        mn_table_status tables[4];
        mn_group_status groups[4];
        uint32_t tiles = 0;
        for (uint32_t shard = 0; shard < service.kind.shards; shard++) {
            uint32_t table_count = 4, group_count = 4;
            must(mn_shard_tables(client, shard, tables, &table_count, &error));
            must(mn_shard_status(client, shard, groups, &group_count, &error));
            assert_true(table_count == 1 && group_count == 1);
            assert_int_equal(tables[0].table, mn_table_id_of(table));
            assert_string_equal(groups[0].name, "tables");
            tiles += tables[0].tile_count;
        }
        assert_int_equal(tiles, 3);
        uint64_t id = mn_table_id_of(table);
        must(mn_table_drop(client, "values", &error));
        assert_int_equal(mn_table_find(client, "values", &found, &error), MN_NOT_FOUND);
        float row[DIM];
        uint32_t index = 0;
        mn_rows rows = {1, mn_u32(&index)};
        assert_int_equal(mn_wait(mn_fetch(table, MN_LATEST, &rows, mn_f32(row), NULL), &error),
                         MN_NOT_FOUND);
        assert_true(mn_table_id_of(open_table(client)) != id); /* never reused */
        mn_client_close(client);
        service_stop(&service);
    }
}

/* ---- Steps ---- */

void reads_and_steps(void **state)
{
    static float rows0[ROWS * DIM], rows1[ROWS * DIM], latest[ROWS * DIM];
    (void)state;
    for (uint32_t k = 0; k < conformance_kind_count; k++) {
        struct service service;
        mn_error error;
        service_start(&service, conformance_kinds[k], NULL);
        mn_client *client = service_open(&service, "steps", 0, 1);
        mn_table *table = open_table(client);
        static batch it;
        batch_fill(&it, 1);
        mn_queries queries = batch_queries(&it, 0, QUERIES),
                   none = {0, READS, queries.indices, queries.weights};
        fetch_all(table, 1, rows0);
        must_wait(
            mn_bag_grad(table, 1, 0, &queries, mn_f32(it.gradients), mn_f32(it.weight_gradients)));
        fetch_all(table, MN_LATEST, latest); /* nothing of an open step is visible */
        assert_memory_equal(latest, rows0, sizeof rows0);
        must(mn_discard(client, 1, &error));
        fetch_all(table, 2, rows1);
        assert_memory_equal(rows1, rows0, sizeof rows0);
        mn_future *early = mn_bag(table, 3, &queries, mn_f32(it.bags)); /* waits for step 2 */
        assert_int_equal(mn_wait_until(early, 20, &error), MN_TIMEOUT);
        assert_false(mn_ready(early));
        train_step(client, table, 2);
        must_wait(early);
        fetch_all(table, 3, rows1);
        assert_true(memcmp(rows1, rows0, sizeof rows0) != 0);
        mn_future *newest = mn_bag(table, MN_LATEST, &queries, mn_f32(it.bags));
        while (!mn_ready(newest))
            ;
        assert_int_equal(mn_answered_step(newest), 2);
        must_wait(newest);
        must_wait(mn_bag(table, 3, &none, mn_f32(it.bags)));
        double values[3] = {1, -2, 0.5};
        must(mn_reduce(client, 3, "tokens", values, 3, &error)); /* of one rank: itself */
        assert_true(values[0] == 1 && values[1] == -2 && values[2] == 0.5);
        mn_client_counters counters = mn_client_counted(client);
        assert_true(counters.bytes_sent > sizeof it.gradients && counters.exchanges > 10);
        mn_client_close(client);
        service_stop(&service);
    }
}

/* ---- Waits ---- */

void waits_end(void **state)
{
    (void)state;
    for (uint32_t k = 0; k < conformance_kind_count; k++) {
        struct service service;
        mn_error error;
        service_start(&service, conformance_kinds[k], NULL);
        mn_client *client;
        mn_client_options options = {.target = service.target,
                                     .group = "waits",
                                     .deadline_ms = 1500,
                                     .calls_max = 3,
                                     .device = service.kind.device,
                                     .local_shards =
                                         service.kind.processes ? 0 : service.kind.shards};
        must(mn_client_open(&options, &client, &error));
        mn_table *table = open_table(client);
        static batch it;
        batch_fill(&it, 1);
        mn_queries queries = batch_queries(&it, 0, QUERIES);
        mn_future *parked[3];
        for (int i = 0; i < 3; i++)
            parked[i] = mn_bag(table, 2, &queries, mn_f32(it.bags));
        assert_null(mn_bag(table, 2, &queries, mn_f32(it.bags))); /* calls_max */
        assert_int_equal(mn_wait(NULL, &error), MN_BUSY);
        mn_cancel(parked[1]);
        assert_int_equal(mn_wait(parked[0], &error), MN_DEADLINE);
        assert_non_null(strstr(error.message, "rank")); /* names whom it waited for */
        assert_int_equal(mn_wait(parked[2], &error), MN_DEADLINE);
        must_wait(mn_bag(table, 1, &queries, mn_f32(it.bags))); /* and life goes on */
        (void)mn_bag(table, 2, &queries, mn_f32(it.bags));      /* closing ends what is in flight */
        mn_client_close(client);
        service_stop(&service);
    }
}

/* ---- Ranks ---- */

typedef struct rank_run {
    const struct service *service;
    uint32_t rank, ranks;
    double sums[2];
} rank_run;

/* A rank's consecutive slice of each micro-batch, for three steps. */
static void *run_rank(void *argument)
{
    rank_run *run = argument;
    mn_error error;
    char group[16];
    batch it;
    (void)snprintf(group, sizeof group, "ranks-%u", run->ranks);
    mn_client *client = service_open(run->service, group, run->rank, run->ranks);
    mn_table *table = open_table(client);
    for (uint64_t step = 1; step <= 3; step++) {
        batch_fill(&it, step);
        for (uint32_t part = 0; part < 2; part++) {
            uint32_t micro = QUERIES / 2, slice = micro / run->ranks;
            uint32_t first = part * micro + run->rank * slice;
            mn_queries queries = batch_queries(&it, first, slice);
            must_wait(mn_bag(table, step, &queries, mn_f32(it.bags)));
            must_wait(mn_bag_grad(table, step, part, &queries, mn_f32(it.gradients + first * DIM),
                                  mn_f32(it.weight_gradients)));
        }
        run->sums[0] = run->rank + 1;
        run->sums[1] = 0.5;
        must(mn_reduce(client, step, "sums", run->sums, 2, &error));
        must(mn_commit(client, step, &(mn_commit_options){.learning_rate = 0.1f, .clip_norm = 5},
                       NULL, &error));
    }
    mn_client_close(client);
    return NULL;
}

void two_ranks_are_one(void **state)
{
    static float one[ROWS * DIM], two[ROWS * DIM];
    (void)state;
    for (uint32_t k = 0; k < conformance_kind_count; k++) {
        if (!conformance_kinds[k].processes)
            continue; /* embedded shards have one rank */
        struct service service;
        service_start(&service, conformance_kinds[k], NULL);
        rank_run alone = {&service, 0, 1, {0}},
                 pair[2] = {{&service, 0, 2, {0}}, {&service, 1, 2, {0}}};
        pthread_t threads[2];
        run_rank(&alone);
        for (int i = 0; i < 2; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, run_rank, &pair[i]), 0);
        for (int i = 0; i < 2; i++) {
            assert_int_equal(pthread_join(threads[i], NULL), 0);
            assert_true(pair[i].sums[0] == 3 && pair[i].sums[1] == 1);
        }
        mn_client *clients[2] = {service_open(&service, "ranks-1", 0, 1),
                                 service_open(&service, "ranks-2", 0, 2)};
        fetch_all(open_table(clients[0]), 4, one);
        fetch_all(open_table(clients[1]), 4, two);
        assert_memory_equal(one, two, sizeof one);
        mn_client_close(clients[0]);
        mn_client_close(clients[1]);
        service_stop(&service);
    }
}

/* ---- Files ---- */

/* What has ended is told as done at all shards; what ended before, or lies elsewhere, is not. */
static void watch_ended(mn_client *client, const char *path, bool loads, uint32_t shards)
{
    const mn_files_progress all = mn_files_watch(client, path, loads, 600000);
    assert_int_equal(all.shards, shards);
    assert_true(all.bytes > 0 && all.bytes == all.bytes_due);
    assert_int_equal(mn_files_watch(client, path, loads, 0).shards, 0);
    assert_int_equal(mn_files_watch(client, path, !loads, 600000).shards, 0);
    assert_int_equal(mn_files_watch(client, "runs/b", loads, 600000).shards, 0);
}

/* Saved on one number of shards, loaded on another: training goes on with the same bits. */
void saved_and_loaded(void **state)
{
    static float straight[ROWS * DIM], resumed[ROWS * DIM];
    (void)state;
    struct service_kind kind = conformance_kinds[conformance_kind_count - 1];
    struct service three;
    mn_error error;
    kind.shards = kind.arrays ? 1 : 3;
    service_start(&three, kind, NULL);
    mn_client *client = service_open(&three, "files", 0, 1);
    mn_table *table = open_table(client);
    train_step(client, table, 1);
    train_step(client, table, 2);
    mn_future *saving = mn_save_start(client, "runs/a", 0);
    while (!mn_ready(saving))
        assert_true(mn_files_watch(client, "runs/a", false, 600000).shards <= 3);
    assert_int_equal(mn_answered_step(saving), 2);
    must(mn_wait(saving, &error));
    watch_ended(client, "runs/a", false, kind.shards);
    train_step(client, table, 3);
    fetch_all(table, 4, straight);
    assert_int_equal(mn_load(client, "runs/a", 3, &error), MN_NOT_FOUND);
    assert_string_equal(error.field, "saved_step");
    assert_non_null(strstr(error.message, "runs/a/manifest is of step 2, not of step 3"));
    assert_int_equal(mn_client_step(client), 3); /* nothing has changed */
    must(mn_load(client, "runs/a", 2, &error));  /* back to it, the handle stays valid */
    assert_int_equal(mn_client_step(client), 2);
    train_step(client, table, 3);
    fetch_all(table, 4, resumed);
    assert_memory_equal(straight, resumed, sizeof straight);
    mn_client_close(client);
    for (uint32_t shards = 1; shards <= 5; shards += 4) {
        struct service other;
        char folder[sizeof other.folder];
        kind.shards = shards;
        kind.arrays = kind.arrays && shards == 1;
        service_start(&other, kind, &three);
        client = service_open(&other, "files", 0, 1);
        must(mn_wait(mn_load_start(client, "runs/a", 0), &error));
        watch_ended(client, "runs/a", true, shards);
        must(mn_table_find(client, "values", &table, &error));
        memset(resumed, 0, sizeof resumed);
        train_step(client, table, 3);
        fetch_all(table, 4, resumed);
        assert_memory_equal(straight, resumed, sizeof straight);
        mn_client_close(client);
        memcpy(folder, other.folder, sizeof folder);
        (void)snprintf(other.folder, sizeof other.folder, "nothing"); /* the folder is not its */
        service_stop(&other);
    }
    service_stop(&three);
}

/* ---- Threads ---- */

enum { THREADS = 4, CALLS = 3 };

typedef struct worker {
    mn_table *table;
    uint64_t step;
    uint32_t number;
    batch batches[CALLS];
} worker;

static void *work(void *argument)
{
    worker *it = argument;
    mn_error error;
    mn_future *bags[CALLS], *changes[CALLS];
    for (uint32_t i = 0; i < CALLS; i++) {
        batch_fill(&it->batches[i], it->number * CALLS + i);
        mn_queries queries = batch_queries(&it->batches[i], 0, QUERIES);
        bags[i] = mn_bag(it->table, it->step, &queries, mn_f32(it->batches[i].bags));
        changes[i] =
            mn_bag_grad(it->table, it->step, it->number * CALLS + i, &queries,
                        mn_f32(it->batches[i].gradients), mn_f32(it->batches[i].weight_gradients));
    }
    for (uint32_t i = CALLS; i-- > 0;) {
        must_wait(changes[i]);
        must_wait(bags[i]);
    }
    return NULL;
}

void threads_share_a_client(void **state)
{
    static worker workers[THREADS];
    static float rows[2][ROWS * DIM];
    (void)state;
    for (uint32_t k = 0; k < conformance_kind_count; k++) {
        struct service service;
        mn_error error;
        service_start(&service, conformance_kinds[k], NULL);
        for (int threaded = 0; threaded < 2; threaded++) {
            mn_client *client = service_open(&service, threaded ? "threaded" : "serial", 0, 1);
            mn_table *table = open_table(client);
            for (uint64_t step = 1; step <= 3; step++) {
                pthread_t threads[THREADS];
                for (uint32_t i = 0; i < THREADS; i++) {
                    workers[i].table = table;
                    workers[i].step = step;
                    workers[i].number = i;
                    if (threaded)
                        assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
                    else
                        work(&workers[i]);
                }
                for (uint32_t i = 0; threaded && i < THREADS; i++)
                    assert_int_equal(pthread_join(threads[i], NULL), 0);
                must(mn_commit(client, step, &(mn_commit_options){.learning_rate = 0.1f}, NULL,
                               &error));
            }
            fetch_all(table, 4, rows[threaded]);
            mn_client_close(client);
        }
        assert_memory_equal(rows[0], rows[1], sizeof rows[0]);
        service_stop(&service);
    }
}
