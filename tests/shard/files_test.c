/* Snapshot and Restore: onto another shard count, repeated, interrupted, damaged. */
#include "fixture.h"

#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 64, DIM = 48 };

struct saved {
    struct fixture_table columns, rows;
    float columns_values[ROWS * DIM], rows_values[ROWS * DIM];
};

/* A joined rank's two tables with a history of two steps; the last third of the rows is never
 * written. */
static void train(struct fixture *f, uint32_t shards, const mn_shard_options *options,
                  struct saved *out_saved)
{
    fixture_joined(f, shards, options);
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
    fixture_fetch_all(f, &out_saved->columns, 3, out_saved->columns_values);
    fixture_fetch_all(f, &out_saved->rows, 3, out_saved->rows_values);
}

static const char *folder = "snap"; /* which all calls name */

static enum mn_status files_call(struct fixture *f, uint32_t shard, enum mn_verb verb,
                                 enum mn_files_phase phase, uint64_t step, mn_error *out_error)
{
    mn_request request = fixture_request(f, verb, 0, step);
    request.context.incarnation = 0;
    request.files = phase;
    memcpy(request.path, folder, strlen(folder) + 1);
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

static void discard(struct fixture *f, uint64_t step)
{
    const mn_proposal nothing = {.discard = true};
    uint64_t pieces[1][FIXTURE_SHARDS_MAX] = {{0}};
    fixture_commit(f, step, &nothing, 0, pieces);
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
    train(&first, 3, NULL, &saved);
    save(&first, 2);
    for (int i = 0; i < 3; i++) {
        struct fixture f;
        float values[ROWS * DIM];
        fixture_successor(&f, &first, counts[i]);
        assert_int_equal(load(&f, NULL), MN_OK);
        assert_int_equal(load(&f, NULL), MN_OK); /* a repeat is acknowledged */
        f.ranks = 1;
        fixture_join(&f, 1);
        fixture_fetch_all(&f, &saved.columns, 3, values);
        assert_memory_equal(values, saved.columns_values, sizeof values);
        fixture_fetch_all(&f, &saved.rows, 3, values);
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

static void expect_stands(struct fixture *f, uint64_t epoch, uint64_t step)
{
    for (uint32_t shard = 0; shard < f->count; shard++) {
        mn_request map = fixture_request(f, MN_VERB_MAP, 0, 0);
        struct answer *answer = fixture_send(f, shard, &map, NULL, 0);
        assert_int_equal(answer->call.reply.map_epoch, epoch);
        assert_int_equal(answer->call.reply.step, step);
        fixture_free(answer);
    }
}

/* Two load different snapshots at once: each reaches one shard first. The higher epoch wins at
 * both, and nobody of the lower one is served anywhere. */
static void test_two_loads_at_once(void **state)
{
    (void)state;
    struct fixture f;
    struct saved saved;
    float values[ROWS * DIM];
    train(&f, 2, NULL, &saved);
    save(&f, 2);
    discard(&f, 3);
    folder = "other";
    save(&f, 3);
    const uint64_t lower = mn_epoch_above(f.epoch, 7), higher = mn_epoch_above(f.epoch, 8);
    assert_true(lower < higher);
    f.epoch = lower;
    folder = "snap";
    assert_int_equal(files_call(&f, 0, MN_VERB_RESTORE, MN_FILES_LOAD, 0, NULL), MN_OK);
    f.epoch = higher;
    folder = "other";
    assert_int_equal(files_call(&f, 1, MN_VERB_RESTORE, MN_FILES_LOAD, 0, NULL), MN_OK);
    f.epoch = lower;
    folder = "snap";
    assert_int_equal(files_call(&f, 1, MN_VERB_RESTORE, MN_FILES_LOAD, 0, NULL), MN_EPOCH);
    f.epoch = higher;
    folder = "other";
    assert_int_equal(files_call(&f, 0, MN_VERB_RESTORE, MN_FILES_LOAD, 0, NULL), MN_OK);
    expect_stands(&f, higher, 3);
    f.epoch = lower;
    for (uint32_t shard = 0; shard < 2; shard++) {
        mn_request list = fixture_request(&f, MN_VERB_LIST, 0, 0);
        assert_int_equal(fixture_ask(&f, shard, &list, NULL, 0, NULL), MN_EPOCH);
    }
    f.epoch = higher;
    fixture_join(&f, 1);
    fixture_fetch_all(&f, &saved.columns, 4, values);
    assert_memory_equal(values, saved.columns_values, sizeof values);
    folder = "snap";
    fixture_deinit(&f);
}

/* One snapshot on fresh shards, twice: a client of the first restoration is refused by the second,
 * whose epoch counts as many restores. */
static void test_restored_twice(void **state)
{
    (void)state;
    struct fixture first, again, old;
    struct saved saved;
    train(&first, 1, NULL, &saved);
    save(&first, 2);
    fixture_successor(&again, &first, 1);
    again.epoch = mn_epoch_above(1, 5);
    assert_int_equal(load(&again, NULL), MN_OK);
    fixture_join(&again, 1);
    old = again; /* what the client knows */
    mn_shard_destroy(again.shards[0]);
    mn_shard_options options = {.shards = 1, .message_bytes_max = 1 << 20};
    assert_int_equal(mn_shard_create(&options, &again.world.env, &again.shards[0], NULL), MN_OK);
    again.epoch = mn_epoch_above(1, 6);
    assert_int_equal(load(&again, NULL), MN_OK);
    fixture_join(&again, 1);
    assert_int_equal(old.incarnations[0], again.incarnations[0]); /* which fences nobody */
    mn_request seal = fixture_request(&old, MN_VERB_SEAL, 0, 3);
    assert_int_equal(fixture_ask(&again, 0, &seal, NULL, 0, NULL), MN_EPOCH);
    seal.context.map_epoch = again.epoch;
    assert_int_equal(fixture_ask(&again, 0, &seal, NULL, 0, NULL), MN_OK);
    fixture_deinit(&again);
    fixture_deinit(&first);
}

static uint32_t files_in(const struct fixture *f, const char *path)
{
    uint32_t count = 0;
    for (uint32_t i = 0; mem_storage_path(f->storage, i); i++)
        count += !strncmp(mem_storage_path(f->storage, i), path, strlen(path));
    return count;
}

/* A folder holds one snapshot: what a save finds there of earlier ones and of half ones goes. What
 * is not ours, or what another save of the group may be writing, stays. */
static void test_old_files_go(void **state)
{
    (void)state;
    static const char *const stay[] = {
        "snap/1-0-1-4.tile",  "snap/1-0-1-4.tile.new", "snap/readme",
        "snap/1-0-1.tile",    "snap/01-0-1-2.tile",    "snap/1-0-1-2.tile.old",
        "snap/+1-0-1-2.tile", "snapshot/1-0-1-2.tile",
    };
    static const char *const go[] = {"snap/1-0-1-1.tile.new",
                                     "snap/77-4000-ffffffffffffffff-9.tile"};
    struct fixture f;
    struct saved saved;
    train(&f, 2, NULL, &saved);
    save(&f, 2);
    uint32_t files =
        files_in(&f, "snap/"); /* a manifest, and tiles that are few enough for a tick */
    discard(&f, 3);
    for (size_t i = 0; i < sizeof stay / sizeof *stay; i++)
        mem_storage_put(f.storage, stay[i], "", 0);
    for (size_t i = 0; i < sizeof go / sizeof *go; i++)
        mem_storage_put(f.storage, go[i], "", 0);
    for (int i = 0; i < 40; i++) {
        char path[64];
        (void)snprintf(path, sizeof path, "snap/9-%d-1-1.tile", i);
        mem_storage_put(f.storage, path, "", 0);
    }
    save(&f, 3);
    assert_int_equal(files_in(&f, "snap/"), files + 7);
    for (size_t i = 0; i < sizeof stay / sizeof *stay; i++)
        if (mem_storage_remove(f.storage, stay[i]) == 0)
            fail_msg("%s went", stay[i]);
    f.epoch = FIXTURE_RESTORED;
    assert_int_equal(load(&f, NULL), MN_OK);
    fixture_deinit(&f);
}

/* A group with a log was loaded: replaying it needs the snapshot as it was. */
static void test_the_log_needs_what_was_loaded(void **state)
{
    (void)state;
    struct fixture f;
    struct saved saved;
    mn_error error;
    mn_shard_options options = {.durability = MN_DURABILITY_PROCESS, .message_bytes_max = 1 << 20};
    train(&f, 1, &options, &saved);
    save(&f, 2);
    save(&f, 2); /* not loaded from: may be saved again */
    f.epoch = FIXTURE_RESTORED;
    assert_int_equal(load(&f, NULL), MN_OK);
    assert_int_equal(files_call(&f, 0, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 2, &error), MN_CONFLICT);
    assert_string_equal(error.field, "path");
    folder = "elsewhere";
    save(&f, 2);
    folder = "snap";
    fixture_deinit(&f);
}

/* A group goes back and comes to a step anew: its half save touches no file of the first one. */
static void test_save_after_going_back(void **state)
{
    (void)state;
    struct fixture f;
    struct saved saved;
    float values[ROWS * DIM], again[ROWS * DIM];
    mn_proposal proposal = fixture_proposal(1);
    uint64_t index = 5;
    float gradient[DIM] = {1};
    train(&f, 1, NULL, &saved);
    folder = "base";
    save(&f, 2);
    for (int life = 0; life < 2; life++) {
        uint64_t pieces[1][FIXTURE_SHARDS_MAX] = {{0}};
        struct fixture_piece piece = {.step = 3};
        folder = "snap";
        assert_int_equal(fixture_push(&f, &saved.columns, &piece, &index, 1, gradient, pieces[0]),
                         MN_OK);
        fixture_commit(&f, 3, &proposal, life ? 1.0f : -1.0f, pieces);
        if (life) {
            fixture_fetch_all(&f, &saved.columns, 4, again);
            assert_int_equal(files_call(&f, 0, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 3, NULL), MN_OK);
            break; /* it dies before its manifest */
        }
        fixture_fetch_all(&f, &saved.columns, 4, values);
        save(&f, 3);
        folder = "base";
        f.epoch = FIXTURE_RESTORED;
        assert_int_equal(load(&f, NULL), MN_OK);
        fixture_join(&f, 1);
    }
    assert_memory_not_equal(values, again, sizeof values);
    folder = "snap";
    f.epoch = 2 * FIXTURE_RESTORED;
    assert_int_equal(load(&f, NULL), MN_OK);
    fixture_join(&f, 1);
    fixture_fetch_all(&f, &saved.columns, 4, again);
    assert_memory_equal(values, again, sizeof values);
    fixture_deinit(&f);
}

/* ---- What must be refused, with nothing changed */

static void test_refusals(void **state)
{
    (void)state;
    struct fixture f;
    struct saved saved;
    mn_error error;
    train(&f, 2, NULL, &saved);
    assert_int_equal(files_call(&f, 0, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 1, NULL), MN_STEP);
    assert_int_equal(files_call(&f, 1, MN_VERB_SNAPSHOT, MN_FILES_MANIFEST, 2, NULL), MN_INVALID);
    assert_int_equal(files_call(&f, 0, MN_VERB_SNAPSHOT, MN_FILES_LOAD, 2, NULL), MN_UNSUPPORTED);
    assert_int_equal(files_call(&f, 0, MN_VERB_RESTORE, MN_FILES_WRITE, 2, NULL), MN_UNSUPPORTED);
    assert_int_equal(files_call(&f, 0, MN_VERB_RESTORE, MN_FILES_CHECK, 2, NULL), MN_NOT_FOUND);
    assert_int_equal(files_call(&f, 0, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 2, NULL), MN_OK);
    assert_int_equal(files_call(&f, 0, MN_VERB_SNAPSHOT, MN_FILES_MANIFEST, 2, NULL),
                     MN_STEP); /* shard 1 has not written */
    assert_null(mem_storage_bytes(f.storage, "snap/manifest", &(uint64_t){0}));
    save(&f, 2);
    f.epoch = 1; /* not above */
    assert_int_equal(load(&f, &error), MN_EPOCH);
    assert_string_equal(error.field, "map_epoch");
    f.epoch = 2; /* above, but of no restore */
    assert_int_equal(load(&f, &error), MN_INVALID);
    assert_string_equal(error.field, "map_epoch");
    f.epoch = 1;
    static const char *const paths[] = {"", "/etc", "..", "a/../b", "a\nb"};
    for (int i = 0; i < 5; i++) {
        mn_request request = fixture_request(&f, MN_VERB_SNAPSHOT, 0, 2);
        memcpy(request.path, paths[i], strlen(paths[i]) + 1);
        assert_int_equal(fixture_ask(&f, 0, &request, NULL, 0, &error), MN_INVALID);
        assert_string_equal(error.field, "path");
    }
    fixture_deinit(&f);
}

static struct answer *start_files(struct fixture *f, enum mn_verb verb, enum mn_files_phase phase,
                                  uint64_t step)
{
    mn_request request = fixture_request(f, verb, 0, step);
    request.files = phase;
    memcpy(request.path, "snap", 5);
    return fixture_send(f, 0, &request, NULL, 0);
}

/* A commit does not wait for the snapshot; another job is refused meanwhile; a job ends with its
 * call. */
static void test_jobs(void **state)
{
    (void)state;
    struct fixture f;
    struct saved saved;
    train(&f, 1, NULL, &saved);
    struct answer *job = start_files(&f, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 2);
    assert_false(job->finished);
    fixture_tick(&f);
    assert_true(job->finished);
    assert_true(job->call.reply.bytes > 0);
    fixture_free(job);

    job = start_files(&f, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 2);
    struct answer *second = start_files(&f, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 2);
    assert_int_equal(second->call.reply.status, MN_BUSY);
    fixture_free(second);
    mn_request seal = fixture_request(&f, MN_VERB_SEAL, 0, 3);
    seal.proposal = fixture_proposal(1);
    assert_int_equal(fixture_ask(&f, 0, &seal, NULL, 0, NULL), MN_OK);
    mn_request commit = fixture_request(&f, MN_VERB_COMMIT, 0, 3);
    commit.proposal = fixture_proposal(1);
    commit.incarnation_sum = 1;
    assert_int_equal(fixture_ask(&f, 0, &commit, NULL, 0, NULL), MN_OK);
    assert_false(job->finished);
    fixture_tick(&f);
    assert_true(job->finished);
    assert_int_equal(job->call.reply.status, MN_OK);
    fixture_free(job);

    job = start_files(&f, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 3);
    mn_shard_abandon(f.shards[0], &job->call);
    assert_int_equal(job->call.reply.status, MN_CANCELLED);
    fixture_free(job);
    job = start_files(&f, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 3);
    f.world.now_ns += UINT64_C(20) << 30;
    fixture_tick(&f);
    assert_int_equal(job->call.reply.status, MN_DEADLINE);
    fixture_free(job);
    job = start_files(&f, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 3);
    mn_shard_destroy(f.shards[0]);
    f.shards[0] = NULL;
    assert_int_equal(job->call.reply.status, MN_UNAVAILABLE);
    fixture_free(job);
    fixture_deinit(&f);
}

/* ---- Storage that fails, tears and lies */

static void test_storage_fails(void **state)
{
    (void)state;
    struct fixture f;
    struct saved saved;
    train(&f, 1, NULL, &saved);
    uint64_t operation, failures = 0;
    char anew[32]; /* where no earlier try has left a whole tile */
    folder = anew;
    for (operation = 1; operation < 200; operation++) {
        (void)snprintf(anew, sizeof anew, "snap-%d", (int)operation);
        mem_storage_fail_at(f.storage, operation);
        enum mn_status status = files_call(&f, 0, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 2, NULL);
        if (!status)
            status = files_call(&f, 0, MN_VERB_SNAPSHOT, MN_FILES_MANIFEST, 2, NULL);
        assert_true(status == MN_OK || status == MN_STORAGE);
        assert_int_equal(mem_storage_open_handles(f.storage), 0);
        failures += status != MN_OK; /* what ends after the manifest may fail unseen */
    }
    assert_true(failures > 50);
    f.epoch = FIXTURE_RESTORED;
    operation = 1;
    for (enum mn_status status = MN_STORAGE; status; operation++) {
        mem_storage_fail_at(f.storage, operation);
        status = load(&f, NULL);
        assert_true(status == MN_OK || status == MN_STORAGE);
    }
    assert_true(operation > 30);
    fixture_join(&f, 1);
    float values[ROWS * DIM];
    fixture_fetch_all(&f, &saved.columns, 3, values);
    assert_memory_equal(values, saved.columns_values, sizeof values);
    folder = "snap";
    fixture_deinit(&f);
}

/* Power goes at each operation of a second snapshot under the same path: the first one, or the
 * second, is there and whole. */
static void test_power_loss(void **state)
{
    (void)state;
    uint64_t operation = 1, outcomes[2] = {0};
    for (bool done = false; !done; operation++) {
        struct fixture f, after;
        struct saved saved;
        train(&f, 1, NULL, &saved);
        save(&f, 2);
        discard(&f, 3);
        mem_storage_fail_at(f.storage, operation);
        enum mn_status status = files_call(&f, 0, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 3, NULL);
        if (!status)
            status = files_call(&f, 0, MN_VERB_SNAPSHOT, MN_FILES_MANIFEST, 3, NULL);
        done = mem_storage_operations(f.storage) < operation;
        mem_storage_crash(f.storage);
        mem_storage_fail_at(f.storage, 0);
        fixture_successor(&after, &f, 1);
        assert_int_equal(load(&after, NULL), MN_OK);
        fixture_join(&after, 1);
        mn_request map = fixture_request(&after, MN_VERB_MAP, 0, 0);
        struct answer *answer = fixture_send(&after, 0, &map, NULL, 0);
        assert_true(answer->call.reply.step == 2 || answer->call.reply.step == 3);
        outcomes[answer->call.reply.step - 2]++;
        if (!status)
            assert_int_equal(answer->call.reply.step, 3);
        fixture_free(answer);
        fixture_deinit(&after);
        fixture_deinit(&f);
    }
    assert_true(outcomes[0] > 20 && outcomes[1] > 0);
}

/* Each byte of each file, turned over: refused by a name, and the group that stands is untouched.
 * A missing or a cut file likewise. */
static void test_damage(void **state)
{
    (void)state;
    struct fixture f;
    struct saved saved;
    float values[ROWS * DIM];
    mn_error error;
    train(&f, 1, NULL, &saved);
    save(&f, 2);
    f.epoch = FIXTURE_RESTORED;
    static char paths[32][MN_PATH_BYTES];
    uint32_t files = 0;
    for (; mem_storage_path(f.storage, files); files++)
        (void)snprintf(paths[files], MN_PATH_BYTES, "%s", mem_storage_path(f.storage, files));
    for (uint32_t i = 0; i < files; i++) {
        const char *path = paths[i];
        uint64_t count;
        const bool whole = strstr(path, "manifest") != NULL;
        uint8_t *bytes = mem_storage_bytes(f.storage, path, &count);
        for (uint64_t at = 0; at < count; at += at < 400 || at + 100 > count ? 1 : 97) {
            bytes[at] ^= 0x10;
            enum mn_status status = load(&f, &error);
            if (status != MN_CORRUPT && status != MN_UNSUPPORTED)
                fail_msg("byte %llu of %s: %s", (unsigned long long)at, path,
                         mn_status_name(status));
            bytes[at] ^= 0x10;
        }
        uint8_t *copy = calloc(1, count + 1);
        assert_non_null(copy);
        memcpy(copy, bytes, count);
        for (uint64_t cut = 0; cut < count;
             cut += whole || cut < 400 || cut + 100 > count ? 1 : 61) {
            mem_storage_truncate(f.storage, path, cut);
            if (load(&f, &error) != MN_CORRUPT || !strstr(error.message, path))
                fail_msg("%s of %u bytes: %s", path, (unsigned)cut, error.message);
            mem_storage_restore(f.storage, path, copy, count);
        }
        mem_storage_put(f.storage, path, copy, count + 1); /* a byte more is damage, too */
        assert_int_equal(load(&f, &error), MN_CORRUPT);
        assert_non_null(strstr(error.message, path));
        mem_storage_put(f.storage, path, copy, count);
        free(copy);
    }
    f.epoch = 1;
    fixture_fetch_all(&f, &saved.columns, 3, values);
    assert_memory_equal(values, saved.columns_values, sizeof values);
    f.epoch = FIXTURE_RESTORED;
    assert_int_equal(load(&f, NULL), MN_OK); /* undamaged, it loads */
    f.epoch = 2 * FIXTURE_RESTORED;
    const char *tile = NULL;
    for (uint32_t i = 0; !tile; i++)
        if (!strncmp(mem_storage_path(f.storage, i), "snap/1-2-", 9))
            tile = mem_storage_path(f.storage, i);
    assert_true(mem_storage_remove(f.storage, tile));
    assert_int_equal(load(&f, &error), MN_NOT_FOUND);
    fixture_deinit(&f);
}

static void test_memory_fails(void **state)
{
    (void)state;
    struct fixture f;
    struct saved saved;
    train(&f, 1, NULL, &saved);
    save(&f, 2);
    f.epoch = FIXTURE_RESTORED;
    uint64_t n = 0;
    for (enum mn_status status = MN_NO_MEMORY; status; n++) {
        uint64_t blocks = f.world.live_blocks, reserves = f.world.live_reserves;
        f.world.allocations = 0;
        f.world.fail_at = n + 1;
        status = load(&f, NULL);
        assert_true(status == MN_OK || status == MN_NO_MEMORY);
        if (status)
            assert_true(f.world.live_blocks == blocks && f.world.live_reserves == reserves);
    }
    assert_true(n > 15);
    fixture_deinit(&f);
}

/* ---- Format version 3, as it was first written */

static void write_golden_group(struct fixture *f)
{
    fixture_joined(f, 1, NULL);
    mn_table_spec spec = fixture_spec("golden", 20, 16);
    spec.init = mn_init_zero();
    spec.optimizer = mn_adagrad(1e-6f);
    struct fixture_table table = fixture_table(f, &spec);
    float rows[3 * 16];
    uint64_t indices[3] = {2, 3, 17}, pieces[1][FIXTURE_SHARDS_MAX] = {{0}};
    for (int i = 0; i < 48; i++)
        rows[i] = (float)i;
    struct fixture_piece piece = {.step = 1};
    assert_int_equal(fixture_store(f, &table, &piece, indices, 3, rows, pieces[0]), MN_OK);
    mn_proposal proposal = fixture_proposal(1);
    fixture_commit(f, 1, &proposal, 1, pieces);
    save(f, 1);
}

enum { GOLDEN_FILES = 2 }; /* no part is left once the manifest stands */
enum { GOLDEN_VERSION = 3 };

static const char *golden_name(int version, int i)
{
    if (i)
        return "manifest";
    return version < 3 ? "1-0-1-1.tile" : "1-0-1-1-232382ba09f0940b.tile";
}

/* Where it lies below tests/golden, and in the snapshot. */
static void golden_paths(int version, int i, char out_golden[96], char out_path[64])
{
    (void)snprintf(out_golden, 96, "shard-v%d/%s", version, golden_name(version, i));
    (void)snprintf(out_path, 64, "snap/%s", golden_name(version, i));
}

static void test_golden(void **state)
{
    (void)state;
    struct fixture f;
    write_golden_group(&f);
    for (int i = 0; i < GOLDEN_FILES; i++) {
        char name[96], path[64];
        uint8_t golden[4096];
        uint64_t count;
        golden_paths(GOLDEN_VERSION, i, name, path);
        const uint8_t *bytes = mem_storage_bytes(f.storage, path, &count);
        assert_non_null(bytes);
        assert_int_equal(fixture_golden(name, golden, sizeof golden), count);
        assert_memory_equal(bytes, golden, count);
    }
    fixture_deinit(&f);
}

/* What a version wrote loads, and is not written again by a save to where it lies. */
static void golden_loads(int version)
{
    struct fixture f;
    uint64_t tile_bytes;
    char paths[GOLDEN_FILES][64];
    fixture_init(&f, 1, NULL);
    for (int i = 0; i < GOLDEN_FILES; i++) {
        char name[96];
        uint8_t golden[4096];
        golden_paths(version, i, name, paths[i]);
        mem_storage_put(f.storage, paths[i], golden, fixture_golden(name, golden, sizeof golden));
    }
    f.epoch = FIXTURE_RESTORED;
    assert_int_equal(load(&f, NULL), MN_OK);
    f.ranks = 1;
    fixture_join(&f, 1);
    mn_table_spec spec = fixture_spec("golden", 20, 16);
    spec.init = mn_init_zero();
    spec.optimizer = mn_adagrad(1e-6f);
    struct fixture_table table = fixture_table(&f, &spec);
    uint64_t indices[4] = {2, 3, 17, 0};
    float rows[4 * 16];
    assert_int_equal(fixture_fetch(&f, &table, 2, indices, 4, rows), MN_OK);
    for (int i = 0; i < 64; i++)
        assert_true(rows[i] == (i < 48 ? (float)i : 0));
    save(&f, 1);
    assert_non_null(mem_storage_bytes(f.storage, paths[0], &tile_bytes));
    uint32_t tiles = 0;
    for (uint32_t i = 0; mem_storage_path(f.storage, i); i++)
        tiles += strstr(mem_storage_path(f.storage, i), ".tile") != NULL;
    assert_int_equal(tiles, 1);
    f.epoch += FIXTURE_RESTORED;
    assert_int_equal(load(&f, NULL), MN_OK);
    fixture_deinit(&f);
}

/* Version 1: tiles are all of the manifest's step; 2: their files are named by steps alone. */
static void test_golden_of_before(void **state)
{
    (void)state;
    for (int version = 1; version <= GOLDEN_VERSION; version++)
        golden_loads(version);
}

static int write_golden(void)
{
    struct fixture f;
    bool written = true;
    write_golden_group(&f);
    for (int i = 0; i < GOLDEN_FILES; i++) {
        char name[96], path[64];
        uint64_t count;
        golden_paths(GOLDEN_VERSION, i, name, path);
        const uint8_t *bytes = mem_storage_bytes(f.storage, path, &count);
        written &= fixture_golden_write(name, bytes, count);
    }
    fixture_deinit(&f);
    return !written;
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "--write-golden"))
        return write_golden();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_other_shard_counts),
        cmocka_unit_test(test_two_loads_at_once),
        cmocka_unit_test(test_restored_twice),
        cmocka_unit_test(test_old_files_go),
        cmocka_unit_test(test_save_after_going_back),
        cmocka_unit_test(test_the_log_needs_what_was_loaded),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_jobs),
        cmocka_unit_test(test_storage_fails),
        cmocka_unit_test(test_power_loss),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_memory_fails),
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_golden_of_before),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
