/* Snapshot and Restore: onto another shard count, repeated, interrupted, damaged. */
#include "fixture.h"

#include <stdlib.h>

enum { ROWS = 64, DIM = 48 };

struct saved {
    struct fixture_table columns, rows;
    float columns_values[ROWS * DIM], rows_values[ROWS * DIM];
};

static void read_all(struct fixture *f, const struct fixture_table *table, uint64_t step,
                     float *out_values)
{
    uint64_t indices[ROWS];
    for (uint64_t i = 0; i < ROWS; i++)
        indices[i] = i;
    assert_int_equal(fixture_fetch(f, table, step, indices, ROWS, out_values), MN_OK);
}

/* Two tables with a history of two steps; the last third of the rows is never written. */
static void train(struct fixture *f, struct saved *out_saved)
{
    mn_table_spec columns = fixture_spec("columns", ROWS, DIM);
    columns.tiles = 3;
    columns.optimizer = mn_adamw(0.9f, 0.99f, 1e-8f);
    mn_table_spec rows = fixture_spec("rows", ROWS, DIM);
    rows.split = MN_ROWS;
    rows.tiles = 8;
    rows.dtype = MN_BF16;
    rows.optimizer = mn_rowwise_adagrad(1e-8f);
    out_saved->columns = fixture_table(f, &columns);
    out_saved->rows = fixture_table(f, &rows);
    for (uint64_t step = 1; step <= 2; step++) {
        uint64_t indices[40];
        float gradients[40 * DIM];
        for (int i = 0; i < 40; i++)
            indices[i] = (uint64_t)(i * 7 + (int)step) % 43;
        for (int i = 0; i < 40 * DIM; i++)
            gradients[i] = fixture_float(f);
        uint64_t pieces[1][FIXTURE_SHARDS_MAX] = {0};
        struct fixture_piece piece = {.step = step};
        assert_int_equal(
            fixture_push(f, &out_saved->columns, &piece, indices, 40, gradients, pieces[0]), MN_OK);
        assert_int_equal(
            fixture_push(f, &out_saved->rows, &piece, indices, 40, gradients, pieces[0]), MN_OK);
        mn_proposal proposal = fixture_proposal(0.01f);
        fixture_commit(f, step, &proposal, 1.0f, pieces);
    }
    read_all(f, &out_saved->columns, 3, out_saved->columns_values);
    read_all(f, &out_saved->rows, 3, out_saved->rows_values);
}

static enum mn_status files_call(struct fixture *f, uint32_t shard, enum mn_verb verb,
                                 enum mn_files_phase phase, uint64_t step, mn_error *out_error)
{
    mn_request request = fixture_request(f, verb, 0, step);
    request.context.incarnation = 0;
    request.files = phase;
    memcpy(request.path, "snap", 5);
    struct answer *answer = fixture_send(f, shard, &request, NULL, 0);
    fixture_tick(f);
    enum mn_status status = answer->call.reply.status;
    if (status && out_error)
        *out_error = answer->call.reply.error;
    fixture_free(answer);
    return status;
}

static void save(struct fixture *f, uint64_t step)
{
    for (uint32_t i = 0; i < f->count; i++)
        assert_int_equal(files_call(f, i, MN_VERB_SNAPSHOT, MN_FILES_WRITE, step, NULL), MN_OK);
    assert_int_equal(files_call(f, 0, MN_VERB_SNAPSHOT, MN_FILES_MANIFEST, step, NULL), MN_OK);
}

/* A fresh service on the same files. */
static void successor(struct fixture *f, struct fixture *old, uint32_t shards)
{
    fixture_init(f, shards, NULL);
    mem_storage *storage = f->storage;
    f->storage = old->storage;
    old->storage = storage;
    for (uint32_t i = 0; i < shards; i++) {
        mn_shard_options options = {.shard = i, .shards = shards, .message_bytes_max = 1 << 20};
        mn_shard_destroy(f->shards[i]);
        f->world.env.storage = mem_storage_interface(f->storage);
        assert_int_equal(mn_shard_create(&options, &f->world.env, &f->shards[i], NULL), MN_OK);
    }
    f->epoch = 2;
}

static enum mn_status load(struct fixture *f, mn_error *out_error)
{
    enum mn_status status = files_call(f, 0, MN_VERB_RESTORE, MN_FILES_CHECK, 0, out_error);
    for (uint32_t i = 0; !status && i < f->count; i++)
        status = files_call(f, i, MN_VERB_RESTORE, MN_FILES_LOAD, 0, out_error);
    return status;
}

static void test_other_shard_counts(void **state)
{
    (void)state;
    static const uint32_t counts[] = {1, 5, 3};
    struct fixture first;
    struct saved saved;
    fixture_init(&first, 3, NULL);
    fixture_join(&first, 1);
    train(&first, &saved);
    save(&first, 2);
    for (int i = 0; i < 3; i++) {
        struct fixture f;
        float values[ROWS * DIM];
        successor(&f, &first, counts[i]);
        assert_int_equal(load(&f, NULL), MN_OK);
        assert_int_equal(load(&f, NULL), MN_OK); /* a repeat is acknowledged */
        f.ranks = 1;
        fixture_join(&f, 1);
        read_all(&f, &saved.columns, 3, values);
        assert_memory_equal(values, saved.columns_values, sizeof values);
        read_all(&f, &saved.rows, 3, values);
        assert_memory_equal(values, saved.rows_values, sizeof values);
        mn_table_spec spec = fixture_spec("new", 10, 16);
        assert_int_equal(fixture_create(&f, &spec), 3); /* ids go on where they were */
        mem_storage *storage = f.storage;
        f.storage = first.storage;
        first.storage = storage;
        fixture_deinit(&f);
    }
    fixture_deinit(&first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_other_shard_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
