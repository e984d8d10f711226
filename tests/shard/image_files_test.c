/* The files of an image: none of their bytes can be changed or cut off unseen, none can be missing,
 * and those of earlier format versions are read for ever. */
#include "image_case.h"

#include <stdio.h>

enum { FILE_BYTES_MAX = 1 << 16, STEP = 6 };

/* An image stands, and beside it a log with the records of a step and a half. */
static void make(struct image_case *it)
{
    mn_shard_options options = image_case_options(MN_DURABILITY_PROCESS);
    options.image_bytes_a_second = 0;
    image_case_start(it, &options);
    for (uint64_t step = 1; step < STEP; step++) {
        assert_int_equal(image_case_play(it, step, 0), step);
        image_case_settle(it);
    }
    mem_storage_fail_at(it->f.storage, 12); /* the next image is given up */
    assert_int_equal(image_case_play(it, STEP, 1), STEP);
    mem_storage_fail_at(it->f.storage, 0);
    (void)mn_shard_tick(it->f.shards[0], it->f.world.now_ns);
    assert_int_equal(image_case_count(it, ".image"), 1);
}

/* A file's bytes as they should be. */
struct copy {
    char path[2 * MN_PATH_BYTES];
    uint8_t bytes[FILE_BYTES_MAX];
    uint64_t count;
};

static void copy_file(const struct image_case *it, const char *path, struct copy *out_copy)
{
    const uint8_t *bytes = mem_storage_bytes(it->f.storage, path, &out_copy->count);
    assert_non_null(bytes);
    assert_true(out_copy->count < FILE_BYTES_MAX);
    (void)snprintf(out_copy->path, sizeof out_copy->path, "%s", path);
    memcpy(out_copy->bytes, bytes, out_copy->count);
}

/* It does not start, and says which file is wrong. */
static void expect_refused(struct image_case *it, const char *path, const char *what, uint64_t at)
{
    mn_error error = {0};
    enum mn_status status = fixture_come_back(&it->f, &it->options, &error);
    if (status != MN_CORRUPT && status != MN_UNSUPPORTED && status != MN_NOT_FOUND)
        fail_msg("%s %s at %u: %s", path, what, (unsigned)at, mn_status_name(status));
    if (!strstr(error.message, path))
        fail_msg("%s %s at %u: \"%s\" names another file", path, what, (unsigned)at, error.message);
}

static void put_back(struct image_case *it, const struct copy *copy)
{
    mem_storage_put(it->f.storage, copy->path, copy->bytes, copy->count);
}

static void damage(struct image_case *it, const char *end)
{
    static struct copy copy;
    uint64_t count;
    copy_file(it, image_case_path(it, end), &copy);
    for (uint64_t at = 0; at < copy.count; at++) {
        mem_storage_bytes(it->f.storage, copy.path, &count)[at] ^= 0x20;
        expect_refused(it, copy.path, "changed", at);
        mem_storage_restore(it->f.storage, copy.path, copy.bytes, copy.count);
    }
    copy.bytes[copy.count++] = 0;
    put_back(it, &copy); /* a byte too long */
    expect_refused(it, copy.path, "longer", copy.count--);
    put_back(it, &copy);
    for (uint64_t at = 0; at < copy.count; at++) {
        mem_storage_truncate(it->f.storage, copy.path, at);
        expect_refused(it, copy.path, "cut", at);
        mem_storage_restore(it->f.storage, copy.path, copy.bytes, copy.count);
    }
}

static void damage_is_found(void **state)
{
    (void)state;
    struct image_case it;
    make(&it);
    damage(&it, ".image");
    damage(&it, ".base");
    damage(&it, ".tile");
    image_case_go_on(&it, STEP);
    image_case_end(&it);
}

/* A table all of whose rows are written: its chunks are read to where they belong. */
static void damage_of_a_whole_table_is_found(void **state)
{
    (void)state;
    struct image_case it;
    static float rows[CASE_VALUES / 2], values[CASE_VALUES], again[CASE_VALUES];
    uint64_t indices[CASE_ROWS], pieces[1][FIXTURE_SHARDS_MAX] = {{0}};
    const mn_shard_options options = image_case_options(MN_DURABILITY_PROCESS);
    const struct fixture_piece piece = {.step = 1};
    const mn_proposal proposal = fixture_proposal(1);
    image_case_start(&it, &options);
    for (uint64_t i = 0; i < CASE_ROWS; i++)
        indices[i] = i;
    for (uint32_t i = 0; i < CASE_VALUES / 2; i++)
        rows[i] = (float)i + 1;
    assert_int_equal(fixture_store(&it.f, &it.columns, &piece, indices, CASE_ROWS, rows, pieces[0]),
                     MN_OK);
    fixture_commit(&it.f, 1, &proposal, 1, pieces);
    image_case_settle(&it);
    assert_int_equal(image_case_count(&it, ".image"), 1);
    image_case_read(&it, values);
    damage(&it, "-1-0.tile");
    assert_int_equal(fixture_come_back(&it.f, &options, NULL), MN_OK);
    image_case_read(&it, again);
    assert_memory_equal(values, again, sizeof values);
    assert_memory_equal(values, rows, sizeof rows);
    image_case_end(&it);
}

static void missing_files_are_named(void **state)
{
    (void)state;
    static const char *const ends[] = {".log", ".base", ".tile"};
    static struct copy copy;
    struct image_case it;
    make(&it);
    copy_file(&it, image_case_path(&it, ".image"), &copy);
    assert_true(mem_storage_remove(it.f.storage, copy.path));
    expect_refused(&it, image_case_path(&it, ".log"), "without its image", 0);
    put_back(&it, &copy);
    for (uint32_t i = 0; i < 3; i++) {
        copy_file(&it, image_case_path(&it, ends[i]), &copy);
        assert_true(mem_storage_remove(it.f.storage, copy.path));
        expect_refused(&it, i ? copy.path : image_case_path(&it, ".log"), "missing", 0);
        put_back(&it, &copy);
    }
    static struct copy logs[2];
    for (uint32_t i = 0; i < 2; i++) { /* both */
        copy_file(&it, image_case_path(&it, ".log"), &logs[i]);
        assert_true(mem_storage_remove(it.f.storage, logs[i].path));
    }
    expect_refused(&it, "@0-of-1/g@1-6.log", "missing", 0);
    put_back(&it, &logs[0]);
    put_back(&it, &logs[1]);
    image_case_go_on(&it, STEP);
    image_case_end(&it);
}

static void another_images_files_are_refused(void **state)
{
    (void)state;
    static struct copy copy;
    struct image_case it, other;
    make(&it);
    make(&other);
    const uint64_t step = fixture_committed(&other.f);
    image_case_settle(&other);
    for (uint64_t more = 1; more <= 4; more++) {
        assert_int_equal(image_case_play(&other, step + more, 1), step + more);
        image_case_settle(&other);
    }
    assert_string_not_equal(image_case_path(&other, ".image"), image_case_path(&it, ".image"));
    static const char *const ends[] = {".base", ".tile", ".image"};
    for (uint32_t i = 0; i < 3; i++) { /* under the names of this one's */
        static struct copy own;
        copy_file(&it, image_case_path(&it, ends[i]), &own);
        copy_file(&other, image_case_path(&other, ends[i]), &copy);
        (void)snprintf(copy.path, sizeof copy.path, "%s", own.path);
        put_back(&it, &copy);
        expect_refused(&it, own.path, "exchanged", 0);
        put_back(&it, &own);
    }
    image_case_go_on(&it, STEP);
    image_case_end(&it);
    image_case_end(&other);
}

/* ---- The format, as each version was first written */

enum {
    GOLDEN_VERSION = 3,
    GOLDEN_FILES_MAX = 16,
    NAME_BYTES = 96,
    FOLDER_BYTES = 8 /* "@0-of-1/" */
};

static const char *golden_name(int version, const char *file)
{
    static char name[NAME_BYTES + 16];
    (void)snprintf(name, sizeof name, "image-v%d/%s", version, file);
    return name;
}

static uint32_t paths_of(const struct image_case *it, char out_paths[][NAME_BYTES])
{
    uint32_t count = 0;
    const char *path;
    for (uint32_t i = 0; (path = mem_storage_path(it->f.storage, i)) != NULL; i++)
        if (path[0] == '@' && !strstr(path, "/lock") && count < GOLDEN_FILES_MAX)
            (void)snprintf(out_paths[count++], NAME_BYTES, "%s", path);
    return count;
}

static void the_golden_image_is_written(void **state)
{
    (void)state;
    static uint8_t golden[FILE_BYTES_MAX];
    static struct copy copy;
    char paths[GOLDEN_FILES_MAX][NAME_BYTES];
    struct image_case it;
    make(&it);
    uint32_t count = paths_of(&it, paths);
    assert_true(count >= 8);
    for (uint32_t i = 0; i < count; i++) {
        copy_file(&it, paths[i], &copy);
        assert_int_equal(fixture_golden(golden_name(GOLDEN_VERSION, paths[i] + FOLDER_BYTES),
                                        golden, sizeof golden),
                         copy.count);
        assert_memory_equal(golden, copy.bytes, copy.count);
    }
    image_case_end(&it);
}

/* Nothing but the files leads to these bits. */
static void golden_loads(int version)
{
    static struct copy copy;
    static float golden[CASE_VALUES + 1], values[CASE_VALUES];
    char paths[GOLDEN_FILES_MAX][NAME_BYTES];
    struct image_case it, empty;
    make(&it);
    uint32_t count = paths_of(&it, paths);
    memset(&empty, 0, sizeof empty);
    empty = it;
    fixture_init(&empty.f, 1, &it.options);
    empty.f.ranks = 1;
    empty.f.incarnations[0] = it.f.incarnations[0];
    for (uint32_t i = 0; i < count; i++) {
        copy.count = fixture_golden(golden_name(version, paths[i] + FOLDER_BYTES), copy.bytes,
                                    sizeof copy.bytes);
        (void)snprintf(copy.path, sizeof copy.path, "%.*s", NAME_BYTES - 1, paths[i]);
        put_back(&empty, &copy);
    }
    image_case_end(&it);
    assert_int_equal(fixture_come_back(&empty.f, &empty.options, NULL), MN_OK);
    assert_int_equal(fixture_committed(&empty.f), STEP);
    image_case_read(&empty, values);
    assert_int_equal(fixture_golden(golden_name(version, "values.f32"), golden, sizeof golden),
                     sizeof values);
    assert_memory_equal(values, golden, sizeof values);
    image_case_go_on(&empty, STEP);
    image_case_end(&empty);
}

/* Version 1: an image did not tell its tiles' states; 2: nor its base where they lie. */
static void the_golden_image_is_loaded(void **state)
{
    (void)state;
    for (int version = 1; version <= GOLDEN_VERSION; version++)
        golden_loads(version);
}

static int write_golden(void)
{
    static struct copy copy;
    static float values[CASE_VALUES];
    char paths[GOLDEN_FILES_MAX][NAME_BYTES];
    struct image_case it;
    bool written = true;
    make(&it);
    uint32_t count = paths_of(&it, paths);
    for (uint32_t i = 0; i < count; i++) {
        copy_file(&it, paths[i], &copy);
        written &= fixture_golden_write(golden_name(GOLDEN_VERSION, paths[i] + FOLDER_BYTES),
                                        copy.bytes, copy.count);
    }
    image_case_read(&it, values);
    image_case_end(&it);
    return !written ||
           !fixture_golden_write(golden_name(GOLDEN_VERSION, "values.f32"), values, sizeof values);
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "--write-golden"))
        return write_golden();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(damage_is_found),
        cmocka_unit_test(damage_of_a_whole_table_is_found),
        cmocka_unit_test(missing_files_are_named),
        cmocka_unit_test(another_images_files_are_refused),
        cmocka_unit_test(the_golden_image_is_written),
        cmocka_unit_test(the_golden_image_is_loaded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
