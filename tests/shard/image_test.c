/* Images of a group's log: whatever dies or fails while one is written, the bits are those of a
 * shard that never died; what an image replaces goes, and nothing that a rank relies on with it. */
#include "files_format.h"
#include "image_case.h"

#include <stdio.h>
#include <stdlib.h>

enum { HEAD_BYTES = 128 }; /* of a log file without a record */

/* ---- Deaths */

/* The process dies at its k-th operation on the disk, for every k. */
static void die_everywhere(enum mn_durability level, bool power)
{
    const mn_shard_options options = image_case_options(level);
    struct image_case it;
    uint64_t deaths = 0, images = 0;
    for (bool died = true; died;) {
        image_case_start(&it, &options);
        it.f.gives_up = true; /* what waits for a dead disk */
        mem_storage_die_at(it.f.storage, ++deaths);
        uint64_t acknowledged = image_case_play(&it, CASE_STEPS, 0);
        died = mem_storage_operations(it.f.storage) >= deaths;
        images += image_case_count(&it, ".image") > 0;
        mem_storage_fail_at(it.f.storage, 0);
        if (power)
            mem_storage_crash(it.f.storage);
        image_case_go_on(&it, acknowledged);
        image_case_end(&it);
    }
    print_message("%u deaths, after %u of them an image stands\n", (unsigned)deaths,
                  (unsigned)images);
    assert_true(images > deaths / 4);
}

static void dies_at_every_operation(void **state)
{
    (void)state;
    die_everywhere(MN_DURABILITY_PROCESS, false);
}

static void loses_power_at_every_operation(void **state)
{
    (void)state;
    die_everywhere(MN_DURABILITY_SYNC, true);
}

/* Dies twice: the second time while it recovers, or tidies up after that. */
static void dies_again(void **state)
{
    (void)state;
    const mn_shard_options options = image_case_options(MN_DURABILITY_SYNC);
    uint64_t operation = 0;
    for (bool died = true; died;) {
        struct image_case it;
        image_case_start(&it, &options);
        uint64_t acknowledged = image_case_play(&it, 5, 0);
        mem_storage_crash(it.f.storage);
        mem_storage_die_at(it.f.storage, ++operation);
        bool back = !fixture_come_back(&it.f, &options, NULL);
        for (int tick = 0; back && tick < 20; tick++)
            (void)mn_shard_tick(it.f.shards[0], it.f.world.now_ns += UINT64_C(1000000000));
        died = mem_storage_operations(it.f.storage) >= operation;
        mem_storage_fail_at(it.f.storage, 0);
        mem_storage_crash(it.f.storage);
        image_case_go_on(&it, acknowledged);
        image_case_end(&it);
    }
    assert_true(operation > 50);
}

/* ---- Trouble */

/* One operation fails, any of them: the image is given up, the log goes on, nothing is lost, and in
 * the end an image stands and no more files than it needs. */
static void gives_up_and_tries_again(void **state)
{
    (void)state;
    const mn_shard_options options = image_case_options(MN_DURABILITY_PROCESS);
    uint64_t operation = 0;
    for (bool failed = true; failed;) {
        struct image_case it;
        float values[CASE_VALUES];
        image_case_start(&it, &options);
        mem_storage_fail_at(it.f.storage, ++operation);
        assert_int_equal(image_case_play(&it, CASE_STEPS, 3), CASE_STEPS);
        failed = mem_storage_operations(it.f.storage) >= operation;
        mem_storage_fail_at(it.f.storage, 0);
        image_case_read(&it, values);
        assert_memory_equal(values, image_case_values(), sizeof values);
        image_case_settle(&it);
        it.tick_ns = UINT64_C(20000000000); /* an image in one go */
        (void)image_case_play(&it, CASE_STEPS + 3, 3);
        image_case_settle(&it);
        assert_int_equal(image_case_count(&it, ".image"), 1);
        assert_int_equal(image_case_count(&it, ".base"), 1);
        assert_int_equal(image_case_count(&it, ".tile"), 5);
        assert_int_equal(image_case_count(&it, ".new"), 0);
        assert_true(image_case_count(&it, ".log") <= 2);
        image_case_end(&it);
    }
    assert_true(operation > 100);
}

/* ---- Files that are written over */

/* The log file with the least number, or the highest one. */
static const char *log_path(const struct image_case *it, bool highest)
{
    const char *found = NULL, *path;
    unsigned long least = 0, number = 0;
    for (uint32_t i = 0; (path = mem_storage_path(it->f.storage, i)) != NULL; i++) {
        const char *end = strstr(path, ".log"), *dash = end ? strrchr(path, '-') : NULL;
        if (!dash || sscanf(dash, "-%lu", &number) != 1)
            continue;
        if (!found || (highest ? number > least : number < least)) {
            found = path;
            least = number;
        }
    }
    return found;
}

static uint64_t chain_of(const struct image_case *it, bool highest)
{
    struct file_log_head head;
    uint64_t chain = 0, count;
    const uint8_t *bytes = mem_storage_bytes(it->f.storage, log_path(it, highest), &count);
    assert_non_null(bytes);
    assert_true(mn_file_decode_log_head(bytes, &chain, &head));
    return chain;
}

/* Where the last log file's records end, if it is written over a longer one, a record stands now
 * that has the next one's sequence, and cannot be replayed: of the file's own life, or of another.
 */
static bool put_record_next(const struct image_case *it, bool own)
{
    const uint64_t chain = chain_of(it, true), other = own ? chain : chain_of(it, false);
    struct file_log_record record = {0}, next;
    uint64_t count = 0, end = HEAD_BYTES;
    uint8_t *bytes = mem_storage_bytes(it->f.storage, log_path(it, true), &count);
    for (uint64_t seed = chain; end + FILE_BYTES_log_record <= count &&
                                mn_file_decode_log_record(bytes + end, &seed, &next);
         seed = chain) {
        record = next;
        end += FILE_BYTES_log_record + record.body_bytes;
    }
    if (end + FILE_BYTES_log_record > count || !record.sequence)
        return false;
    record.sequence++;
    record.verb = MN_VERB_FETCH; /* no log holds one */
    record.body_bytes = 0;
    record.body_checksum = mn_checksum("", 0, 0);
    uint64_t seed = other;
    mn_file_encode_log_record(&record, &seed, bytes + end);
    return true;
}

static void an_earlier_life_counts_for_nothing(void **state)
{
    (void)state;
    for (int own = 0; own < 2; own++) {
        struct image_case it;
        mn_shard_options options = image_case_options(MN_DURABILITY_SYNC);
        mn_error error = {0};
        options.image_bytes_a_second = 0;
        image_case_start(&it, &options);
        uint64_t step = 4;
        assert_int_equal(image_case_play(&it, step, 0), step);
        while (!put_record_next(&it, own)) {
            assert_true(++step < CASE_STEPS);
            assert_int_equal(image_case_play(&it, step, 0), step);
        }
        mem_storage_crash(it.f.storage);
        if (own) { /* what the other one must not be taken for */
            assert_int_equal(fixture_come_back(&it.f, &options, &error), MN_CORRUPT);
            assert_non_null(strstr(error.message, "cannot be read"));
        } else {
            image_case_go_on(&it, step);
        }
        image_case_end(&it);
    }
}

/* Power went while a file was written over, and gave it its old name back. */
static void a_needless_file_may_be_anything(void **state)
{
    (void)state;
    struct image_case it;
    mn_shard_options options = image_case_options(MN_DURABILITY_SYNC);
    options.image_bytes_a_second = 0;
    image_case_start(&it, &options);
    assert_int_equal(image_case_play(&it, 12, 0), 12);
    image_case_settle(&it);
    uint64_t count;
    const uint32_t files = image_case_count(&it, ".log");
    assert_true(files > 2);
    memset(mem_storage_bytes(it.f.storage, log_path(&it, false), &count), 0x5a, HEAD_BYTES);
    image_case_go_on(&it, 12);
    image_case_end(&it);
}

/* Such a file may hold the head that the next one will have, too, with records behind it that would
 * then pass for the new file's: none that an earlier process left is written over. */
static void what_was_left_is_not_written_over(void **state)
{
    (void)state;
    struct image_case it;
    mn_shard_options options = image_case_options(MN_DURABILITY_SYNC);
    mn_error error = {0};
    const char *path;
    uint64_t count;
    options.image_bytes_a_second = 0;
    image_case_start(&it, &options);
    assert_int_equal(image_case_play(&it, 12, 0), 12);
    image_case_settle(&it);
    uint8_t *bytes = mem_storage_bytes(it.f.storage, log_path(&it, false), &count);
    memset(bytes, 0x5a, count);
    assert_int_equal(fixture_come_back(&it.f, &options, &error), MN_OK);
    image_case_settle(&it);
    for (uint32_t i = 0; (path = mem_storage_path(it.f.storage, i)) != NULL; i++) {
        bytes = mem_storage_bytes(it.f.storage, path, &count);
        assert_false(strstr(path, ".log") && count && bytes[count - 1] == 0x5a);
    }
    image_case_end(&it);
}

/* What a file held before it was written over may be long: the shard answers meanwhile. */
static void a_long_tail_is_looked_through_in_pieces(void **state)
{
    enum { TAIL_BYTES = 40 << 20, TICKS_LEAST = 3 };
    (void)state;
    struct image_case it;
    mn_shard_options options = image_case_options(MN_DURABILITY_SYNC);
    image_case_start(&it, &options);
    assert_int_equal(image_case_play(&it, 3, 0), 3);
    mn_storage *storage = it.f.world.env.storage;
    uint8_t *tail = calloc(1, TAIL_BYTES);
    mn_file *file = NULL;
    uint32_t ticks = 0;
    assert_non_null(tail);
    assert_int_equal(storage->open(storage, log_path(&it, true), &file, NULL), MN_OK);
    assert_int_equal(storage->append(file, tail, TAIL_BYTES, NULL), MN_OK);
    storage->close(file);
    free(tail);
    options.shards = it.f.count;
    options.message_bytes_max = 1 << 20;
    mn_shard_destroy(it.f.shards[0]);
    assert_int_equal(mn_shard_create(&options, &it.f.world.env, &it.f.shards[0], NULL), MN_OK);
    for (; mn_shard_state(it.f.shards[0], NULL) == MN_UNAVAILABLE; ticks++)
        (void)mn_shard_tick(it.f.shards[0], it.f.world.now_ns);
    assert_int_equal(mn_shard_state(it.f.shards[0], NULL), MN_OK);
    assert_true(ticks >= TICKS_LEAST);
    image_case_go_on(&it, 3);
    image_case_end(&it);
}

/* ---- What is kept, and what goes */

static void the_log_is_cut(void **state)
{
    (void)state;
    struct image_case it;
    mn_shard_options options = image_case_options(MN_DURABILITY_SYNC);
    options.image_bytes_a_second = 0;
    image_case_start(&it, &options);
    for (uint64_t step = 1; step <= 40; step++) {
        assert_int_equal(image_case_play(&it, step, 0), step);
        assert_true(image_case_count(&it, ".log") <= 16); /* as many again to be written over */
        assert_true(image_case_count(&it, ".image") <= 2);
        assert_true(image_case_count(&it, ".tile") <= 15);
    }
    image_case_settle(&it);
    assert_null(strstr(image_case_path(&it, ".log"), "@1-1.log"));
    image_case_end(&it);
    options.log_cut_percent = 0; /* the default: half as much is written of images as of logs */
    image_case_start(&it, &options);
    uint32_t images = 0;
    uint64_t log_bytes = 0;
    char last[256] = "";
    for (uint64_t step = 1; step <= 40; step++) {
        assert_int_equal(image_case_play(&it, step, 0), step);
        image_case_settle(&it);
        const char *path = image_case_path(&it, ".image");
        if (path && strcmp(last, path) != 0) {
            (void)snprintf(last, sizeof last, "%.255s", path);
            images++;
        }
        assert_non_null(mem_storage_bytes(it.f.storage, image_case_path(&it, ".log"), &log_bytes));
        assert_true(log_bytes < 32768);
    }
    assert_true(images > 2 && images < 15);
    image_case_end(&it);
    options.log_cut_bytes = 0; /* the default: none is made of so little */
    image_case_start(&it, &options);
    assert_int_equal(image_case_play(&it, 40, 0), 40);
    assert_int_equal(image_case_count(&it, ".base"), 0);
    assert_int_equal(image_case_count(&it, ".log"), 1);
    image_case_end(&it);
}

/* What ranks were told, they are told again by a shard that has nothing but the image. */
static void a_rank_is_remembered(void **state)
{
    (void)state;
    struct image_case it;
    struct fixture *f = &it.f;
    mn_error error = {0};
    const double value = 4, other = 5;
    mn_shard_options options = image_case_options(MN_DURABILITY_PROCESS);
    options.image_bytes_a_second = 0;
    image_case_start(&it, &options);
    const mn_table_spec spec = fixture_spec("gone", 10, 16);
    const uint64_t gone = fixture_create(f, &spec);
    mn_request request = fixture_request(f, MN_VERB_DROP, 0, 0);
    request.table = gone;
    assert_int_equal(fixture_ask(f, 0, &request, NULL, 0, NULL), MN_OK);
    (void)fixture_join_rank(f, 0, false);
    request = fixture_request(f, MN_VERB_JOIN, 0, 0);
    request.join = MN_JOIN_ASSIGN;
    request.context.incarnation = 0;
    assert_int_equal(fixture_ask(f, 0, &request, NULL, 0, NULL), MN_OK);
    for (uint64_t step = 1; step <= 4; step++) {
        assert_int_equal(image_case_play(&it, step, 0), step);
        image_case_settle(&it);
    }
    assert_int_equal(image_case_count(&it, ".log"), 1);
    uint64_t log_bytes;
    assert_non_null(mem_storage_bytes(f->storage, image_case_path(&it, ".log"), &log_bytes));
    assert_int_equal(log_bytes, HEAD_BYTES);
    assert_int_equal(fixture_come_back(f, &options, NULL), MN_OK);

    request = fixture_request(f, MN_VERB_REDUCE, 0, 4);
    memcpy(request.name, "loss", 5);
    struct answer *answer = fixture_send(f, 0, &request, &value, sizeof value);
    assert_int_equal(answer->call.reply.status, MN_OK);
    assert_memory_equal(answer->bytes, &value, sizeof value);
    fixture_free(answer);
    assert_int_equal(fixture_ask(f, 0, &request, &other, sizeof other, NULL), MN_CONFLICT);
    request = fixture_request(f, MN_VERB_COMMIT, 0, 3);
    request.proposal = fixture_proposal(0.5f);
    request.factors[0] = 1.0f;
    assert_int_equal(fixture_ask(f, 0, &request, NULL, 0, NULL), MN_OK);
    request.factors[0] = 2.0f;
    assert_int_equal(fixture_ask(f, 0, &request, NULL, 0, NULL), MN_CONFLICT);
    request = fixture_request(f, MN_VERB_COMMIT, 0, 5);
    request.context.incarnation--;
    assert_int_equal(fixture_ask(f, 0, &request, NULL, 0, NULL), MN_FENCED);
    request = fixture_request(f, MN_VERB_JOIN, 0, 4);
    request.join = MN_JOIN_FENCE;
    answer = fixture_send(f, 0, &request, NULL, 0);
    assert_float_equal(answer->call.reply.proposal.sets[0].learning_rate, 0.5f, 0);
    assert_float_equal(answer->call.reply.factors[0], 1.0f, 0);
    assert_int_equal(answer->call.reply.incarnation_sum, 2);
    fixture_free(answer);
    request = fixture_request(f, MN_VERB_SEAL, 0, 5); /* with the pieces that came ahead */
    request.proposal = fixture_proposal(0.5f);
    request.pieces = 2;
    assert_int_equal(fixture_ask(f, 0, &request, NULL, 0, &error), MN_INCOMPLETE);
    assert_non_null(strstr(error.message, "but 3 of rank 0"));
    assert_true(fixture_create(f, &spec) > gone); /* no id twice */
    request = fixture_request(f, MN_VERB_JOIN, 0, 4);
    request.join = MN_JOIN_ASSIGN;
    request.context.incarnation = 0;
    answer = fixture_send(f, 0, &request, NULL, 0);
    assert_int_equal(answer->call.reply.incarnation, 4); /* 3 was assigned, and never came */
    fixture_free(answer);
    image_case_end(&it);
}

/* The CreateTable of a dropped table may come late, to a shard that has come back since. */
static void a_drop_is_remembered(void **state)
{
    (void)state;
    struct fixture f;
    mn_shard_options options = {.durability = MN_DURABILITY_PROCESS, .log_cut_bytes = 1};
    uint64_t pieces[1][FIXTURE_SHARDS_MAX] = {{0}};
    const mn_proposal proposal = fixture_proposal(1);
    const mn_table_spec spec = fixture_spec("gone", 10, 16);
    fixture_joined(&f, 2, &options);
    mn_request request = fixture_request(&f, MN_VERB_DROP, 0, 0);
    request.table = fixture_create(&f, &spec);
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(fixture_ask(&f, i, &request, NULL, 0, NULL), MN_OK);
    fixture_commit(&f, 1, &proposal, 1, pieces);
    for (int tick = 0; tick < 50; tick++)
        (void)mn_shard_tick(f.shards[1], f.world.now_ns += 1000000000);
    assert_false(mem_storage_remove(f.storage, "@1-of-2/g@1-1.log")); /* it went */
    options.shard = 1;
    assert_int_equal(fixture_come_back(&f, &options, NULL), MN_OK);
    request.verb = MN_VERB_CREATE_TABLE;
    request.spec = spec;
    assert_int_equal(fixture_ask(&f, 1, &request, NULL, 0, NULL), MN_NOT_FOUND);
    fixture_deinit(&f);
}

static enum mn_status files_call(struct image_case *it, enum mn_verb verb,
                                 enum mn_files_phase phase, uint64_t step, const char *path)
{
    mn_request request = fixture_request(&it->f, verb, 0, step);
    request.context.incarnation = 0;
    request.files = phase;
    memcpy(request.path, path, strlen(path));
    struct answer *answer = fixture_send(&it->f, 0, &request, NULL, 0);
    fixture_tick(&it->f);
    enum mn_status status = answer->call.reply.status;
    fixture_free(answer);
    return status;
}

static void save(struct image_case *it, const char *path)
{
    uint64_t step = fixture_committed(&it->f);
    assert_int_equal(files_call(it, MN_VERB_SNAPSHOT, MN_FILES_WRITE, step, path), MN_OK);
    assert_int_equal(files_call(it, MN_VERB_SNAPSHOT, MN_FILES_MANIFEST, step, path), MN_OK);
}

/* A log that begins with a restore needs the snapshot, until an image stands; what earlier epochs
 * left goes at once. */
static void a_restored_group_is_cut_too(void **state)
{
    (void)state;
    struct image_case it;
    mn_shard_options options = image_case_options(MN_DURABILITY_PROCESS);
    options.image_bytes_a_second = 0;
    image_case_start(&it, &options);
    assert_int_equal(image_case_play(&it, 3, 0), 3);
    save(&it, "snap");
    it.f.epoch = FIXTURE_RESTORED;
    assert_int_equal(files_call(&it, MN_VERB_RESTORE, MN_FILES_LOAD, 0, "snap"), MN_OK);
    fixture_join(&it.f, 1);
    image_case_settle(&it);
    assert_int_equal(image_case_count(&it, "@100000000-1.log"), 1);
    assert_int_equal(image_case_count(&it, ".log"), 1);
    assert_int_equal(image_case_count(&it, ".image"), 0);
    assert_int_equal(files_call(&it, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 3, "snap"), MN_CONFLICT);
    for (uint64_t step = 4; !image_case_count(&it, ".image"); step++) {
        assert_int_equal(image_case_play(&it, step, 0), step);
        image_case_settle(&it);
    }
    save(&it, "snap");
    for (const char *path; (path = image_case_path(&it, "manifest"));)
        assert_true(mem_storage_remove(it.f.storage, path));
    const uint64_t step = fixture_committed(&it.f);
    assert_true(step < CASE_STEPS);
    image_case_go_on(&it, step);
    image_case_end(&it);
}

/* ---- Beside an image */

static void a_save_goes_on_beside_it(void **state)
{
    (void)state;
    struct image_case it;
    float at_cut[CASE_VALUES], again[CASE_VALUES];
    const mn_shard_options options = image_case_options(MN_DURABILITY_PROCESS);
    image_case_start(&it, &options);
    assert_int_equal(image_case_play(&it, 4, 0), 4);
    assert_int_equal(image_case_count(&it, ".base.new"), 1); /* being written */
    image_case_read(&it, at_cut);
    mn_request request = fixture_request(&it.f, MN_VERB_SNAPSHOT, 0, 4);
    request.context.incarnation = 0;
    request.files = MN_FILES_WRITE;
    request.rate = 3000;
    memcpy(request.path, "snap", 5);
    struct answer *answer = fixture_send(&it.f, 0, &request, NULL, 0);
    assert_false(answer->finished);
    assert_int_equal(image_case_play(&it, CASE_STEPS, 0), CASE_STEPS); /* both keep rows */
    image_case_settle(&it);
    assert_true(answer->finished);
    assert_int_equal(answer->call.reply.status, MN_OK);
    fixture_free(answer);
    assert_int_equal(files_call(&it, MN_VERB_SNAPSHOT, MN_FILES_MANIFEST, 4, "snap"), MN_OK);
    image_case_go_on(&it, CASE_STEPS);
    it.f.epoch = FIXTURE_RESTORED;
    assert_int_equal(files_call(&it, MN_VERB_RESTORE, MN_FILES_LOAD, 0, "snap"), MN_OK);
    fixture_join(&it.f, 1);
    image_case_read(&it, again);
    assert_memory_equal(at_cut, again, sizeof again);
    image_case_end(&it);
}

/* A table comes and goes while an image is written: it is given up, and a later one stands. */
static void a_drop_ends_it(void **state)
{
    (void)state;
    struct image_case it;
    const mn_shard_options options = image_case_options(MN_DURABILITY_PROCESS);
    image_case_start(&it, &options);
    uint64_t id = 0;
    for (uint64_t step = 2; step <= 4; step++) {
        assert_int_equal(image_case_play(&it, step, 0), step);
        const mn_table_spec spec = fixture_spec(step % 2 ? "odd" : "even", 10, 16);
        mn_request drop = fixture_request(&it.f, MN_VERB_DROP, 0, 0);
        drop.table = id;
        if (id)
            assert_int_equal(fixture_ask(&it.f, 0, &drop, NULL, 0, NULL), MN_OK);
        id = fixture_create(&it.f, &spec); /* in the place of the one before */
    }
    assert_int_equal(image_case_play(&it, 5, 0), 5);
    image_case_settle(&it);
    assert_int_equal(image_case_play(&it, 6, 0), 6);
    image_case_settle(&it);
    assert_int_equal(image_case_count(&it, ".image"), 1);
    image_case_go_on(&it, 6);
    image_case_end(&it);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dies_at_every_operation),
        cmocka_unit_test(loses_power_at_every_operation),
        cmocka_unit_test(dies_again),
        cmocka_unit_test(gives_up_and_tries_again),
        cmocka_unit_test(an_earlier_life_counts_for_nothing),
        cmocka_unit_test(a_needless_file_may_be_anything),
        cmocka_unit_test(what_was_left_is_not_written_over),
        cmocka_unit_test(a_long_tail_is_looked_through_in_pieces),
        cmocka_unit_test(the_log_is_cut),
        cmocka_unit_test(a_rank_is_remembered),
        cmocka_unit_test(a_drop_is_remembered),
        cmocka_unit_test(a_restored_group_is_cut_too),
        cmocka_unit_test(a_save_goes_on_beside_it),
        cmocka_unit_test(a_drop_ends_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
