/* Saves into a folder that holds an earlier one write the tiles that have changed, and no others;
 * what they load is what a save of everything loads. */
#include "fixture.h"

#include <stdio.h>

enum { ROWS = 256, DIM = 48, BLOCKS = 8 };

struct job {
    struct fixture f;
    struct fixture_table columns, rows;
    uint64_t step, wanted; /* to be loaded; 0: the newest */
};

static void setup_with(struct job *job, uint32_t shards, const mn_shard_options *options)
{
    mn_table_spec columns = fixture_spec("columns", ROWS, DIM),
                  rows = fixture_spec("rows", ROWS, DIM);
    memset(job, 0, sizeof *job);
    fixture_joined(&job->f, shards, options);
    columns.tiles = 3;
    rows.split = MN_ROWS;
    rows.tiles = BLOCKS;
    rows.optimizer = mn_adagrad(1e-6f);
    job->columns = fixture_table(&job->f, &columns);
    job->rows = fixture_table(&job->f, &rows);
}

static void setup(struct job *job, uint32_t shards) { setup_with(job, shards, NULL); }

/* A step that changes `count` rows of one table; without a table, none. */
static void train(struct job *job, const struct fixture_table *table, const uint64_t *indices,
                  uint64_t count, bool store)
{
    float values[16 * DIM];
    uint64_t pieces[1][FIXTURE_SHARDS_MAX] = {{0}};
    struct fixture_piece piece = {.step = ++job->step};
    mn_proposal proposal = fixture_proposal(0.5f);
    for (uint64_t i = 0; i < count * DIM; i++)
        values[i] = fixture_float(&job->f);
    if (count && store)
        assert_int_equal(fixture_store(&job->f, table, &piece, indices, count, values, pieces[0]),
                         MN_OK);
    else if (count)
        assert_int_equal(fixture_push(&job->f, table, &piece, indices, count, values, pieces[0]),
                         MN_OK);
    fixture_commit(&job->f, job->step, &proposal, 1.0f, pieces);
}

static enum mn_status ask(struct job *job, uint32_t shard, enum mn_verb verb,
                          enum mn_files_phase phase, const char *path, uint64_t *out_bytes)
{
    bool saves = verb == MN_VERB_SNAPSHOT;
    mn_request request = fixture_request(&job->f, verb, 0, saves ? job->step : 0);
    request.context.incarnation = 0;
    request.files = phase;
    memcpy(request.path, path, strlen(path) + 1);
    request.saved_step = saves ? 0 : job->wanted;
    struct answer *answer = fixture_send(&job->f, shard, &request, NULL, 0);
    fixture_tick(&job->f);
    enum mn_status status = answer->call.reply.status;
    *out_bytes += status ? 0 : answer->call.reply.bytes;
    fixture_free(answer);
    return status;
}

/* Bytes of tiles written. */
static uint64_t save(struct job *job, const char *path)
{
    uint64_t bytes = 0, manifest = 0;
    for (uint32_t i = 0; i < job->f.count; i++)
        assert_int_equal(ask(job, i, MN_VERB_SNAPSHOT, MN_FILES_WRITE, path, &bytes), MN_OK);
    assert_int_equal(ask(job, 0, MN_VERB_SNAPSHOT, MN_FILES_MANIFEST, path, &manifest), MN_OK);
    return bytes;
}

static void load(struct job *job, const char *path)
{
    uint64_t bytes = 0;
    job->f.epoch += FIXTURE_RESTORED;
    for (uint32_t i = 0; i < job->f.count; i++)
        assert_int_equal(ask(job, i, MN_VERB_RESTORE, MN_FILES_LOAD, path, &bytes), MN_OK);
    fixture_join(&job->f, 1);
}

static void read_all(struct job *job, float out_values[2 * ROWS * DIM])
{
    fixture_fetch_all(&job->f, &job->columns, job->step + 1, out_values);
    fixture_fetch_all(&job->f, &job->rows, job->step + 1, out_values + ROWS * DIM);
}

/* What is saved now loads. */
static void save_and_load(struct job *job)
{
    static float trained[2 * ROWS * DIM], loaded[2 * ROWS * DIM];
    (void)save(job, "snap");
    read_all(job, trained);
    load(job, "snap");
    read_all(job, loaded);
    assert_memory_equal(trained, loaded, sizeof trained);
}

static uint32_t files_of(const struct job *job, const char *path, const char *holds)
{
    uint32_t count = 0;
    for (uint32_t i = 0; mem_storage_path(job->f.storage, i); i++) {
        const char *name = mem_storage_path(job->f.storage, i);
        count +=
            !strncmp(name, path, strlen(path)) && name[strlen(path)] == '/' && strstr(name, holds);
    }
    return count;
}

/* Tiles whose last change the step is, as their files' names tell. */
static uint32_t tiles_of(const struct job *job, unsigned step)
{
    uint32_t count = 0;
    for (uint32_t i = 0; mem_storage_path(job->f.storage, i); i++) {
        unsigned table, tile, epoch, changed = 0;
        count += sscanf(mem_storage_path(job->f.storage, i), "snap/%u-%u-%x-%u-", &table, &tile,
                        &epoch, &changed) == 4 &&
                 changed == step;
    }
    return count;
}

/* Rows of one block of the rows table. */
static void block_rows(const struct job *job, uint32_t block, uint64_t *out_indices, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        out_indices[i] = mn_row_of(&job->rows.geometry, block, i);
}

static void only_what_changed_is_written(void **state)
{
    struct job job;
    uint64_t indices[16];
    (void)state;
    setup(&job, 2);
    for (uint64_t i = 0; i < 16; i++)
        indices[i] = i * 16;
    train(&job, &job.columns, indices, 16, true);
    train(&job, &job.rows, indices, 16, true);
    uint64_t all = save(&job, "snap");
    assert_true(all > 16 * DIM * 4 * 2);
    assert_int_equal(tiles_of(&job, 1), 3);
    assert_int_equal(tiles_of(&job, 2), BLOCKS);
    train(&job, NULL, NULL, 0, false);
    assert_int_equal(save(&job, "snap"), 0); /* of a later step, in the files of the earlier one */
    assert_int_equal(files_of(&job, "snap", ".tile"), 3 + BLOCKS);
    block_rows(&job, 5, indices, 4);
    train(&job, &job.rows, indices, 4, false);
    uint64_t some = save(&job, "snap");
    assert_true(some > 0 && some < all / 4);
    assert_int_equal(tiles_of(&job, 4), 1);
    assert_int_equal(tiles_of(&job, 2), BLOCKS - 1); /* the old one is gone */
    assert_int_equal(files_of(&job, "snap", "part-"), 0);
    train(&job, &job.columns, indices, 1, false);
    assert_true(save(&job, "snap") > 0); /* a row lies in all tiles of a columns table */
    assert_int_equal(tiles_of(&job, 5), 3);
    assert_int_equal(files_of(&job, "snap", ".tile"), 3 + BLOCKS);
    fixture_deinit(&job.f);
}

/* Any history of saves and loads: what a folder of many saves loads is what a new folder does. */
static void any_history_loads_alike(void **state)
{
    (void)state;
    for (uint32_t round = 0; round < 20; round++) {
        struct job job;
        setup(&job, 1 + round % 3);
        job.f.random += round;
        for (uint32_t i = 0; i < 12; i++) {
            uint64_t indices[16], count = fixture_random(&job.f, 3);
            bool columns = fixture_random(&job.f, 3) == 0;
            block_rows(&job, (uint32_t)fixture_random(&job.f, BLOCKS), indices, count);
            train(&job, columns ? &job.columns : &job.rows, indices, count,
                  fixture_random(&job.f, 4) == 0);
            if (fixture_random(&job.f, 2))
                (void)save(&job, "snap");
            if (fixture_random(&job.f, 4) || !files_of(&job, "snap", "manifest"))
                continue;
            save_and_load(&job);
        }
        fixture_deinit(&job.f);
    }
}

/* Of five saves three are kept, each loadable by its step, none that has gone. */
static void earlier_saves_are_kept(void **state)
{
    static float trained[5][2 * ROWS * DIM], loaded[2 * ROWS * DIM];
    const mn_shard_options options = {.saves_kept = 3};
    struct job job;
    uint64_t bytes = 0;
    (void)state;
    setup_with(&job, 2, &options);
    for (uint32_t i = 0; i < 5; i++) {
        uint64_t indices[4];
        block_rows(&job, i, indices, 4);
        train(&job, &job.rows, indices, 4, false);
        (void)save(&job, "snap");
        read_all(&job, trained[i]);
    }
    assert_int_equal(files_of(&job, "snap", "manifest-"), 3);
    assert_int_equal(files_of(&job, "snap", ".tile"),
                     3 + BLOCKS + 2); /* two blocks changed since */
    for (uint64_t step = 5; step >= 3; step--) {
        job.wanted = job.step = step;
        load(&job, "snap");
        read_all(&job, loaded);
        assert_memory_equal(loaded, trained[step - 1], sizeof loaded);
    }
    job.wanted = 2;
    job.f.epoch += FIXTURE_RESTORED;
    assert_int_equal(ask(&job, 0, MN_VERB_RESTORE, MN_FILES_LOAD, "snap", &bytes), MN_NOT_FOUND);
    fixture_deinit(&job.f);
}

/* ---- How far a save or load is */

/* What the shard says of it; false: nothing. */
static bool progress_of(struct job *job, const char *group, mn_files_info *out_info)
{
    mn_request request = fixture_request(&job->f, MN_VERB_STATUS, 0, 0);
    request.context.incarnation = request.context.map_epoch = 0;
    memset(request.context.group, 0, sizeof request.context.group);
    memcpy(request.context.group, group, strlen(group));
    struct answer *answer = fixture_send(&job->f, 0, &request, NULL, 0);
    assert_true(answer->finished);
    bool told = answer->call.reply.files_count > 0;
    assert_true(!answer->call.reply.status || !told);
    if (told)
        *out_info = answer->files[0];
    fixture_free(answer);
    return told;
}

/* Ticks the shard until the answer is there, a piece at a time; what is told grows, up to what is
 * due. Returns how often it was told. */
static uint32_t watch(struct job *job, const mn_request *request, uint64_t *out_bytes)
{
    mn_files_info now = {.bytes = 0};
    uint32_t told = 0;
    uint64_t before = 0;
    struct answer *answer = fixture_send(&job->f, 0, request, NULL, 0);
    for (; !answer->finished; told++) {
        assert_true(progress_of(job, request->context.group, &now));
        assert_int_equal(now.phase, request->files);
        assert_string_equal(now.path, request->path);
        assert_string_equal(now.group, request->context.group);
        assert_int_equal(now.ended_ms, 0);
        assert_true(now.bytes >= before && (!now.bytes_due || now.bytes <= now.bytes_due));
        before = now.bytes;
        mem_env *world = &job->f.world;
        world->now_ns += 5000000;
        (void)mn_shard_tick(job->f.shards[0], world->now_ns);
    }
    assert_int_equal(answer->call.reply.status, MN_OK);
    assert_true(progress_of(job, request->context.group, &now));
    assert_int_equal(now.ended_ms, 1);
    assert_int_equal(now.elapsed_ms, told * 5);
    assert_int_equal(now.bytes, answer->call.reply.bytes);
    assert_int_equal(now.bytes_due, now.bytes);
    job->f.world.now_ns += 7000000;
    assert_true(progress_of(job, request->context.group, &now));
    assert_int_equal(now.ended_ms, 8);
    *out_bytes = now.bytes;
    fixture_free(answer);
    return told;
}

static void status_tells_how_far(void **state)
{
    struct job job, after;
    mn_files_info info;
    uint64_t indices[16], saved, again, loaded, manifest = 0;
    (void)state;
    setup(&job, 1);
    for (uint64_t i = 0; i < 16; i++)
        indices[i] = i * 16;
    train(&job, &job.columns, indices, 16, true);
    train(&job, &job.rows, indices, 16, false);
    assert_false(progress_of(&job, "", &info));
    mn_request request = fixture_request(&job.f, MN_VERB_SNAPSHOT, 0, job.step);
    request.context.incarnation = 0;
    request.files = MN_FILES_WRITE;
    request.rate = 100000;
    (void)snprintf(request.path, sizeof request.path, "snap");
    assert_true(watch(&job, &request, &saved) > 8);
    assert_int_equal(ask(&job, 0, MN_VERB_SNAPSHOT, MN_FILES_MANIFEST, "snap", &manifest), MN_OK);
    assert_true(progress_of(&job, "", &info) && info.phase == MN_FILES_WRITE); /* of the tiles */
    assert_false(progress_of(&job, "another", &info));
    train(&job, &job.columns, indices, 1, false);
    request.files = MN_FILES_WRITE;
    request.context.step = job.step;
    (void)watch(&job, &request, &again);
    assert_true(again > 0 && again < saved); /* the blocks of `rows` stand already */
    assert_int_equal(ask(&job, 0, MN_VERB_SNAPSHOT, MN_FILES_MANIFEST, "snap", &manifest), MN_OK);

    memset(&after, 0, sizeof after);
    fixture_successor(&after.f, &job.f, 1);
    request = fixture_request(&after.f, MN_VERB_RESTORE, 0, 0);
    request.context.incarnation = 0;
    request.files = MN_FILES_LOAD;
    (void)snprintf(request.path, sizeof request.path, "snap");
    assert_true(watch(&after, &request, &loaded) > 0); /* of a group that is not there yet */
    assert_int_equal(loaded, saved);
    fixture_deinit(&after.f);
    fixture_deinit(&job.f);
}

/* ---- A life that was lost: level process, without power */

static const char *log_path(const struct job *job)
{
    const char *path = NULL;
    for (uint32_t i = 0; mem_storage_path(job->f.storage, i); i++) {
        const char *name = mem_storage_path(job->f.storage, i);
        if (name[0] == '@' && strstr(name, ".log"))
            path = name; /* the newest */
    }
    return path;
}

static void train_a_block(struct job *job)
{
    uint64_t indices[16], count = 1 + fixture_random(&job->f, 3);
    bool columns = fixture_random(&job->f, 3) == 0;
    block_rows(job, (uint32_t)fixture_random(&job->f, BLOCKS), indices, count);
    train(job, columns ? &job->columns : &job->rows, indices, count,
          fixture_random(&job->f, 4) == 0);
}

/* Of `steps` steps the log keeps `kept`; the folder keeps the saves. */
static void lose(struct job *job, const mn_shard_options *options, uint64_t kept, uint64_t steps)
{
    uint64_t bytes = 0, now;
    for (uint64_t i = 0; i < steps; i++) {
        if (i == kept)
            assert_non_null(mem_storage_bytes(job->f.storage, log_path(job), &bytes));
        train_a_block(job);
        if (i >= kept)
            (void)save(job, "snap");
    }
    assert_non_null(mem_storage_bytes(job->f.storage, log_path(job), &now));
    assert_true(bytes && bytes < now);
    mem_storage_truncate(job->f.storage, log_path(job), bytes);
    assert_int_equal(fixture_come_back(&job->f, options, NULL), MN_OK);
    job->step -= steps - kept;
    assert_int_equal(fixture_committed(&job->f), job->step);
}

/* Its steps are played again, in another way: what is saved into the folder of its saves is this
 * life, whole, though epoch and steps are the same. */
static void a_lost_life_is_not_mixed_in(void **state)
{
    const mn_shard_options options = {.durability = MN_DURABILITY_PROCESS};
    (void)state;
    for (uint32_t round = 0; round < 40; round++) {
        struct job job;
        setup_with(&job, 1, &options);
        job.f.random += round;
        lose(&job, &options, 1 + round % 3, 5);
        job.f.random += 1000; /* another way */
        for (uint32_t i = 0; i < 2 + round % 4; i++)
            train_a_block(&job);
        save_and_load(&job);
        fixture_deinit(&job.f);
    }
}

/* Played again in the same way, with the same messages, they are the same steps: nothing is
 * written. So the test before has tested what it says. */
static void the_same_life_is_known_again(void **state)
{
    const mn_shard_options options = {.durability = MN_DURABILITY_PROCESS};
    struct job job;
    (void)state;
    setup_with(&job, 1, &options);
    job.f.random = 7;
    train_a_block(&job);
    uint64_t random = job.f.random;
    lose(&job, &options, 0, 3);
    job.f.random = random;
    for (uint32_t i = 0; i < 3; i++)
        train_a_block(&job);
    assert_int_equal(save(&job, "snap"), 0);
    fixture_deinit(&job.f);
}

/* A save of a life that was lost, of a later step than those after it, is kept whole beside them,
 * until it is one too many. */
static void a_lost_lifes_saves_are_kept_whole(void **state)
{
    static float lost[2 * ROWS * DIM], trained[2 * ROWS * DIM], loaded[2 * ROWS * DIM];
    const mn_shard_options options = {.durability = MN_DURABILITY_PROCESS, .saves_kept = 2};
    struct job job;
    uint64_t log_bytes, bytes = 0;
    (void)state;
    setup_with(&job, 1, &options);
    train_a_block(&job);
    assert_non_null(mem_storage_bytes(job.f.storage, log_path(&job), &log_bytes));
    for (uint32_t i = 0; i < 5; i++)
        train_a_block(&job);
    (void)save(&job, "snap"); /* of step 6 */
    read_all(&job, lost);
    mem_storage_truncate(job.f.storage, log_path(&job), log_bytes);
    assert_int_equal(fixture_come_back(&job.f, &options, NULL), MN_OK);
    job.step = 1;
    job.f.random += 1000;
    train_a_block(&job);
    (void)save(&job, "snap"); /* of step 2 */
    read_all(&job, trained);
    assert_int_equal(files_of(&job, "snap", "manifest-"), 2);
    load(&job, "snap");
    read_all(&job, loaded);
    assert_memory_equal(trained, loaded, sizeof trained);
    job.wanted = job.step = 6;
    load(&job, "snap");
    read_all(&job, loaded);
    assert_memory_equal(lost, loaded, sizeof lost);
    train_a_block(&job);
    (void)save(&job, "other");
    job.f.epoch += FIXTURE_RESTORED;
    assert_int_equal(ask(&job, 0, MN_VERB_RESTORE, MN_FILES_LOAD, "other", &bytes), MN_NOT_FOUND);
    fixture_deinit(&job.f);
}

/* ---- Parts */

/* The manifest is made of one save's parts. */
static void parts_are_of_one_save(void **state)
{
    struct job job;
    uint64_t indices[4] = {1, 2, 3, 4};
    mn_error error;
    (void)state;
    setup(&job, 2);
    train(&job, &job.rows, indices, 4, true);
    mn_request request = fixture_request(&job.f, MN_VERB_SNAPSHOT, 0, job.step);
    request.context.incarnation = 0;
    (void)snprintf(request.path, sizeof request.path, "snap");
    static const struct {
        uint64_t parts[2], manifest;
        enum mn_status status;
    } cases[] = {{{7, 7}, 7, MN_OK},   {{7, 7}, 0, MN_OK},   {{7, 8}, 7, MN_STEP},
                 {{7, 7}, 8, MN_STEP}, {{7, 8}, 0, MN_STEP}, {{0, 0}, 0, MN_OK},
                 {{0, 0}, 7, MN_STEP}, {{7, 0}, 0, MN_STEP}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (uint32_t phase = 0; phase < 3; phase++) {
            request.files = phase < 2 ? MN_FILES_WRITE : MN_FILES_MANIFEST;
            request.save = phase < 2 ? cases[i].parts[phase] : cases[i].manifest;
            struct answer *answer = fixture_send(&job.f, phase % 2, &request, NULL, 0);
            fixture_tick(&job.f);
            assert_true(answer->finished);
            assert_int_equal(answer->call.reply.status, phase < 2 ? MN_OK : cases[i].status);
            error = answer->call.reply.error;
            fixture_free(answer);
        }
        if (cases[i].status)
            assert_string_equal(error.field, "save");
    }
    (void)snprintf(request.path, sizeof request.path, "elsewhere"); /* where no part is */
    request.files = MN_FILES_MANIFEST;
    struct answer *answer = fixture_send(&job.f, 0, &request, NULL, 0);
    fixture_tick(&job.f);
    assert_int_equal(answer->call.reply.status, MN_STEP);
    assert_string_equal(answer->call.reply.error.field, "save");
    fixture_free(answer);
    fixture_deinit(&job.f);
}

/* A part that names what is not there, or something else, ends in no manifest. */
static void parts_are_doubted(void **state)
{
    struct job job;
    uint64_t indices[4] = {1, 2, 3, 4}, bytes = 0;
    (void)state;
    setup(&job, 1);
    train(&job, &job.rows, indices, 4, true);
    (void)save(&job, "snap");
    train(&job, NULL, NULL, 0, false);
    assert_int_equal(ask(&job, 0, MN_VERB_SNAPSHOT, MN_FILES_WRITE, "snap", &bytes), MN_OK);
    const char *part = NULL, *tile = NULL;
    for (uint32_t i = 0; mem_storage_path(job.f.storage, i); i++) {
        part = strstr(mem_storage_path(job.f.storage, i), "part-")
                   ? mem_storage_path(job.f.storage, i)
                   : part;
        tile = strstr(mem_storage_path(job.f.storage, i), ".tile")
                   ? mem_storage_path(job.f.storage, i)
                   : tile;
    }
    uint64_t count, tile_count;
    uint8_t *at = mem_storage_bytes(job.f.storage, part, &count);
    assert_non_null(mem_storage_bytes(job.f.storage, tile, &tile_count));
    for (uint64_t i = 0; i < count; i += 7) {
        at[i] ^= 1;
        enum mn_status status = ask(&job, 0, MN_VERB_SNAPSHOT, MN_FILES_MANIFEST, "snap", &bytes);
        assert_true(status == MN_CORRUPT || status == MN_UNSUPPORTED);
        at[i] ^= 1;
    }
    static uint8_t whole[8192];
    assert_true(count < sizeof whole);
    memcpy(whole, at, count);
    for (uint64_t left = 0; left < count; left++) { /* at each length that is checked, and others */
        mem_storage_truncate(job.f.storage, part, left);
        assert_int_equal(ask(&job, 0, MN_VERB_SNAPSHOT, MN_FILES_MANIFEST, "snap", &bytes),
                         MN_CORRUPT);
        mem_storage_restore(job.f.storage, part, whole, count);
    }
    char name[MN_PATH_BYTES];
    (void)snprintf(name, sizeof name, "%s", part);
    mem_storage_put(job.f.storage, name, whole, count + 1); /* a byte too long */
    assert_int_equal(ask(&job, 0, MN_VERB_SNAPSHOT, MN_FILES_MANIFEST, "snap", &bytes), MN_CORRUPT);
    mem_storage_truncate(job.f.storage, name, count);
    mem_storage_truncate(job.f.storage, tile, tile_count - 1);
    assert_int_equal(ask(&job, 0, MN_VERB_SNAPSHOT, MN_FILES_MANIFEST, "snap", &bytes), MN_CORRUPT);
    fixture_deinit(&job.f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_what_changed_is_written),
        cmocka_unit_test(any_history_loads_alike),
        cmocka_unit_test(earlier_saves_are_kept),
        cmocka_unit_test(status_tells_how_far),
        cmocka_unit_test(a_lost_life_is_not_mixed_in),
        cmocka_unit_test(the_same_life_is_known_again),
        cmocka_unit_test(a_lost_lifes_saves_are_kept_whole),
        cmocka_unit_test(parts_are_of_one_save),
        cmocka_unit_test(parts_are_doubted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
