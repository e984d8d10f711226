/* A snapshot written while steps are committed: it holds the state of its step, whatever they
 * change before, between and after its pieces. */
#include "fixture.h"

#include <stdlib.h>

enum { ROWS = 12000, DIM = 48, TOUCHED = 700, STEPS_MORE = 6 };

struct tables {
    struct fixture_table columns, rows;
};

static struct tables open_tables(struct fixture *f)
{
    struct tables tables;
    mn_table_spec columns = fixture_spec("columns", ROWS, DIM); /* three chunks a tile */
    columns.tiles = 3;
    columns.optimizer = mn_adamw(0.9f, 0.99f, 1e-8f);
    mn_table_spec rows = fixture_spec("rows", ROWS, DIM); /* a chunk a tile */
    rows.split = MN_ROWS;
    rows.tiles = 8;
    rows.dtype = MN_BF16;
    rows.optimizer = mn_rowwise_adagrad(1e-8f);
    tables.columns = fixture_table(f, &columns);
    tables.rows = fixture_table(f, &rows);
    return tables;
}

/* Changes that are a function of the step: pushed to rows here and there, some for the first time,
 * and stored to a few. */
static void play(struct fixture *f, const struct tables *tables, uint64_t step)
{
    static uint64_t indices[TOUCHED];
    static float numbers[TOUCHED * DIM];
    uint64_t pieces[1][FIXTURE_SHARDS_MAX] = {0};
    f->random = step;
    for (int i = 0; i < TOUCHED; i++)
        indices[i] = fixture_random(f, ROWS);
    for (int i = 0; i < TOUCHED * DIM; i++)
        numbers[i] = fixture_float(f);
    struct fixture_piece push = {.step = step}, store = {.step = step, .part = 1};
    const struct fixture_table *each[] = {&tables->columns, &tables->rows};
    for (int t = 0; t < 2; t++) {
        assert_int_equal(fixture_push(f, each[t], &push, indices, TOUCHED, numbers, pieces[0]),
                         MN_OK);
        assert_int_equal(fixture_store(f, each[t], &store, indices + 5, 20, numbers, pieces[0]),
                         MN_OK);
    }
    mn_proposal proposal = fixture_proposal(0.01f);
    fixture_commit(f, step, &proposal, 1.0f, pieces);
}

static float *read_all(struct fixture *f, const struct tables *tables, uint64_t step)
{
    static uint64_t indices[ROWS];
    float *out = malloc(2 * sizeof *out * ROWS * DIM);
    assert_non_null(out);
    for (uint64_t first = 0; first < ROWS; first += 1000) {
        for (uint64_t i = 0; i < 1000; i++)
            indices[i] = first + i;
        assert_int_equal(fixture_fetch(f, &tables->columns, step, indices, 1000, out + first * DIM),
                         MN_OK);
        assert_int_equal(
            fixture_fetch(f, &tables->rows, step, indices, 1000, out + (ROWS + first) * DIM),
            MN_OK);
    }
    return out;
}

static mn_request files_request(struct fixture *f, enum mn_verb verb, enum mn_files_phase phase,
                                uint64_t step, uint64_t rate)
{
    mn_request request = fixture_request(f, verb, 0, step);
    request.context.incarnation = 0;
    request.files = phase;
    request.rate = rate;
    memcpy(request.path, "snap", 5);
    return request;
}

static enum mn_status files_call(struct fixture *f, uint32_t shard, enum mn_verb verb,
                                 enum mn_files_phase phase, uint64_t step)
{
    mn_request request = files_request(f, verb, phase, step, 0);
    struct answer *answer = fixture_send(f, shard, &request, NULL, 0);
    fixture_tick(f);
    enum mn_status status = answer->call.reply.status;
    fixture_free(answer);
    return status;
}

static void restore(struct fixture *f, struct fixture *old, uint32_t shards)
{
    fixture_successor(f, old, shards);
    assert_int_equal(files_call(f, 0, MN_VERB_RESTORE, MN_FILES_CHECK, 0), MN_OK);
    for (uint32_t i = 0; i < shards; i++)
        assert_int_equal(files_call(f, i, MN_VERB_RESTORE, MN_FILES_LOAD, 0), MN_OK);
    fixture_join(f, 1);
}

/* Saves step `cut` of a service of three shards while STEPS_MORE steps are committed, `ticks`
 * pieces between two of them; restores it on two. Returns whether both the rows and the states,
 * seen by the step that follows, are those of the cut. */
static bool cut_is_whole(uint64_t cut, uint64_t asked_at, uint32_t ticks, uint32_t plants)
{
    struct fixture f, again;
    mn_shard_options options = {.plants = plants, .message_bytes_max = 1 << 20};
    struct answer *answers[3];
    fixture_joined(&f, 3, &options);
    struct tables tables = open_tables(&f);
    float *at_cut = NULL, *after = NULL;
    for (uint64_t step = 1; step <= asked_at; step++)
        play(&f, &tables, step);
    mn_request write = files_request(&f, MN_VERB_SNAPSHOT, MN_FILES_WRITE, cut, 1000000);
    for (uint32_t i = 0; i < 3; i++) {
        answers[i] = fixture_send(&f, i, &write, NULL, 0);
        assert_false(answers[i]->finished);
    }
    for (uint64_t step = asked_at + 1; step <= cut + STEPS_MORE; step++) {
        if (step == cut + 1)
            at_cut = read_all(&f, &tables, step);
        if (step == cut + 2)
            after = read_all(&f, &tables, step);
        play(&f, &tables, step);
        for (uint32_t tick = 0; tick < ticks; tick++) {
            f.world.now_ns += 1000000000;
            for (uint32_t i = 0; i < 3; i++)
                (void)mn_shard_tick(f.shards[i], f.world.now_ns);
        }
    }
    for (int tick = 0; tick < 100; tick++) {
        f.world.now_ns += 1000000000;
        fixture_tick(&f);
    }
    for (uint32_t i = 0; i < 3; i++) {
        assert_true(answers[i]->finished);
        assert_int_equal(answers[i]->call.reply.status, MN_OK);
        fixture_free(answers[i]);
    }
    assert_int_equal(files_call(&f, 0, MN_VERB_SNAPSHOT, MN_FILES_MANIFEST, cut), MN_OK);

    restore(&again, &f, 2);
    float *restored = read_all(&again, &tables, cut + 1);
    bool same = !memcmp(restored, at_cut, 2 * sizeof *restored * ROWS * DIM);
    free(restored);
    play(&again, &tables, cut + 1);
    restored = read_all(&again, &tables, cut + 2);
    same = same && !memcmp(restored, after, 2 * sizeof *restored * ROWS * DIM);
    free(restored);
    free(at_cut);
    free(after);
    fixture_deinit(&again);
    fixture_deinit(&f);
    return same;
}

/* Asked for at its step: the first commits come before any piece, or after some. */
static void test_one_cut(void **state)
{
    (void)state;
    for (uint32_t ticks = 0; ticks < 4; ticks++)
        assert_true(cut_is_whole(2, 2, ticks, 0));
}

static void test_cut_to_come(void **state)
{
    (void)state;
    assert_true(cut_is_whole(4, 2, 1, 0));
}

static void test_a_torn_one_is_seen(void **state)
{
    (void)state;
    assert_false(cut_is_whole(2, 2, 1, MN_PLANT_NO_KEEP));
}

/* A step that has passed, or lies too far off, or never comes. */
static void test_steps(void **state)
{
    (void)state;
    struct fixture f;
    fixture_joined(&f, 1, NULL);
    struct tables tables = open_tables(&f);
    play(&f, &tables, 1);
    play(&f, &tables, 2);
    assert_int_equal(files_call(&f, 0, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 1), MN_STEP);
    assert_int_equal(files_call(&f, 0, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 7), MN_STEP);
    assert_int_equal(files_call(&f, 0, MN_VERB_SNAPSHOT, MN_FILES_MANIFEST, 3), MN_STEP);
    mn_request write = files_request(&f, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 3, 0);
    struct answer *answer = fixture_send(&f, 0, &write, NULL, 0);
    fixture_tick(&f);
    assert_false(answer->finished);
    f.world.now_ns += 3000000000;
    fixture_tick(&f);
    assert_true(answer->finished);
    assert_int_equal(answer->call.reply.status, MN_STEP);
    fixture_free(answer);
    mn_request create = fixture_request(&f, MN_VERB_CREATE_TABLE, 0, 2);
    create.spec = fixture_spec("new", 10, 16);
    answer = fixture_send(&f, 0, &write, NULL, 0);
    assert_int_equal(fixture_ask(&f, 0, &create, NULL, 0, NULL), MN_BUSY);
    mn_shard_abandon(f.shards[0], &answer->call);
    fixture_free(answer);
    assert_int_equal(fixture_ask(&f, 0, &create, NULL, 0, NULL), MN_OK);
    fixture_deinit(&f);
}

/* A second save of a step that is saved, given up after a commit has kept rows for it: the first
 * one stands; also where storage fails at any of its operations, as when it looks for files. */
static void save_twice(uint64_t fails_at)
{
    struct fixture f, again;
    fixture_joined(&f, 1, NULL);
    struct tables tables = open_tables(&f);
    play(&f, &tables, 1);
    float *at_cut = read_all(&f, &tables, 2);
    assert_int_equal(files_call(&f, 0, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 1), MN_OK);
    assert_int_equal(files_call(&f, 0, MN_VERB_SNAPSHOT, MN_FILES_MANIFEST, 1), MN_OK);
    mn_request write = files_request(&f, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 1, 64000000);
    struct answer *answer = fixture_send(&f, 0, &write, NULL, 0);
    mem_storage_fail_at(f.storage, fails_at);
    play(&f, &tables, 2);
    for (int tick = 0; tick < 3 && !answer->finished; tick++)
        (void)mn_shard_tick(f.shards[0], f.world.now_ns += 1000000000);
    if (!answer->finished)
        mn_shard_abandon(f.shards[0], &answer->call);
    mem_storage_fail_at(f.storage, 0);
    fixture_free(answer);
    restore(&again, &f, 2);
    float *restored = read_all(&again, &tables, 2);
    assert_memory_equal(restored, at_cut, 2 * sizeof *restored * ROWS * DIM);
    free(restored);
    free(at_cut);
    fixture_deinit(&again);
    fixture_deinit(&f);
}

static void test_saved_twice(void **state)
{
    (void)state;
    for (uint64_t fails_at = 0; fails_at < 40; fails_at++)
        save_twice(fails_at);
}

/* The disk fills while a commit keeps rows: the save fails and says why, the step is committed. */
static void test_disk_fails(void **state)
{
    (void)state;
    struct fixture f;
    fixture_joined(&f, 1, NULL);
    struct tables tables = open_tables(&f);
    play(&f, &tables, 1);
    mn_request write = files_request(&f, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 1, 0);
    struct answer *answer = fixture_send(&f, 0, &write, NULL, 0);
    mem_storage_fail_at(f.storage, 3);
    play(&f, &tables, 2);
    fixture_tick(&f);
    assert_true(answer->finished);
    assert_int_equal(answer->call.reply.status, MN_STORAGE);
    fixture_free(answer);
    free(read_all(&f, &tables, 3));
    fixture_deinit(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_cut),
        cmocka_unit_test(test_cut_to_come),
        cmocka_unit_test(test_a_torn_one_is_seen),
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_disk_fails),
        cmocka_unit_test(test_saved_twice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
