/* A shard that comes back from its log: the same bits as one that never died, at every record; and
 * no byte of the log can be cut off or changed unseen. */
#include "fixture.h"

#include <stdio.h>

enum { ROWS = 40, DIM = 8, RANKS = 2, STEPS = 4, LOG_BYTES_MAX = 1 << 16 };
enum { HEAD_BYTES = 128, RECORD_BYTES = 48 }; /* files_format.h */

static const mn_shard_options logged = {.durability = MN_DURABILITY_PROCESS};

/* ---- The same bits */

struct script {
    struct fixture fixture;
    struct fixture_table table;
    bool dies; /* after every request */
};

static void maybe_die(struct script *script)
{
    if (script->dies)
        assert_int_equal(fixture_come_back(&script->fixture, &logged, NULL), MN_OK);
}

static void push(struct script *script, uint32_t rank, uint64_t step, uint64_t *pieces)
{
    uint64_t indices[6];
    float gradients[6 * DIM];
    for (uint32_t i = 0; i < 6; i++)
        indices[i] = (rank * 7 + step * 5 + i * 3) % ROWS;
    for (uint32_t i = 0; i < 6 * DIM; i++)
        gradients[i] = (float)(rank + 1) / (float)(step * 6 + i + 1);
    struct fixture_piece piece = {.rank = rank, .step = step};
    assert_int_equal(
        fixture_push(&script->fixture, &script->table, &piece, indices, 6, gradients, pieces),
        MN_OK);
    maybe_die(script);
    uint64_t again[FIXTURE_SHARDS_MAX] = {0}; /* a repeat finds it there */
    assert_int_equal(
        fixture_push(&script->fixture, &script->table, &piece, indices, 6, gradients, again),
        MN_OK);
}

static void play(struct script *script, bool dies, float out_rows[ROWS * DIM])
{
    mn_table_spec spec = fixture_spec("t", ROWS, DIM);
    mn_proposal proposal = fixture_proposal(0.5f);
    memset(script, 0, sizeof *script);
    fixture_init(&script->fixture, 1, &logged);
    script->dies = dies;
    fixture_join(&script->fixture, RANKS);
    maybe_die(script);
    script->table = fixture_table(&script->fixture, &spec);
    maybe_die(script);
    for (uint64_t step = 1; step <= STEPS; step++) {
        uint64_t pieces[RANKS][FIXTURE_SHARDS_MAX] = {{0}};
        for (uint32_t rank = 0; rank < RANKS; rank++)
            push(script, rank, step, pieces[rank]);
        fixture_commit(&script->fixture, step, &proposal, 1.0f, pieces);
        maybe_die(script);
        assert_int_equal(fixture_committed(&script->fixture), step);
    }
    fixture_fetch_all(&script->fixture, &script->table, STEPS + 1, out_rows);
}

static void same_bits_after_every_death(void **state)
{
    static struct script lives, dies;
    static float lived[ROWS * DIM], died[ROWS * DIM];
    (void)state;
    play(&lives, false, lived);
    play(&dies, true, died);
    assert_memory_equal(lived, died, sizeof lived);
    assert_true(lived[0] != lived[1]); /* something was trained */
    fixture_deinit(&lives.fixture);
    fixture_deinit(&dies.fixture);
}

static void without_a_log_all_is_lost(void **state)
{
    struct fixture fixture;
    const mn_shard_options none = {.durability = MN_DURABILITY_NONE};
    (void)state;
    fixture_joined(&fixture, 1, &none);
    assert_int_equal(fixture_come_back(&fixture, &none, NULL), MN_OK);
    mn_request request = fixture_request(&fixture, MN_VERB_LIST, 0, 0);
    assert_int_equal(fixture_ask(&fixture, 0, &request, NULL, 0, NULL), MN_LOST);
    fixture_deinit(&fixture);
}

/* ---- Damage */

/* A log's only file, and its bytes. */
static const char *log_of(struct script *script, uint8_t *out_bytes, uint64_t *out_count)
{
    static char path[2 * MN_PATH_BYTES];
    (void)snprintf(path, sizeof path, "%s", mem_storage_path(script->fixture.storage, 0));
    const uint8_t *bytes = mem_storage_bytes(script->fixture.storage, path, out_count);
    assert_non_null(bytes);
    assert_null(mem_storage_path(script->fixture.storage, 1));
    assert_true(*out_count < LOG_BYTES_MAX);
    memcpy(out_bytes, bytes, *out_count);
    return path;
}

static void cuts_are_found(void **state)
{
    static struct script script;
    static float rows[ROWS * DIM];
    static uint8_t log[LOG_BYTES_MAX];
    uint64_t count, before = 0;
    (void)state;
    play(&script, false, rows);
    const char *path = log_of(&script, log, &count);
    uint64_t first_body;
    memcpy(&first_body, log + HEAD_BYTES + 24, sizeof first_body);
    for (uint64_t cut = HEAD_BYTES + RECORD_BYTES + first_body; cut <= count; cut++) {
        mem_storage_restore(script.fixture.storage, path, log, count);
        mem_storage_truncate(script.fixture.storage, path, cut);
        assert_int_equal(fixture_come_back(&script.fixture, &logged, NULL), MN_OK);
        uint64_t step = fixture_committed(&script.fixture);
        assert_true(step == before || step == before + 1);
        before = step;
    }
    assert_int_equal(before, STEPS);
    for (uint64_t cut = 0; cut < HEAD_BYTES; cut++) {
        mn_error error = {0};
        char bytes[24];
        mem_storage_restore(script.fixture.storage, path, log, count);
        mem_storage_truncate(script.fixture.storage, path, cut);
        assert_int_equal(fixture_come_back(&script.fixture, &logged, &error), MN_CORRUPT);
        (void)snprintf(bytes, sizeof bytes, " %u bytes", (unsigned)cut);
        assert_non_null(strstr(error.message, path));
        assert_non_null(strstr(error.message, bytes));
    }
    fixture_deinit(&script.fixture);
}

/* Every record but the last is known to have been promised by the next one. */
static void changed_bytes_are_found(void **state)
{
    static struct script script;
    static float rows[ROWS * DIM];
    static uint8_t log[LOG_BYTES_MAX];
    uint64_t count, found = 0, cut = 0;
    (void)state;
    play(&script, false, rows);
    const char *path = log_of(&script, log, &count);
    for (uint64_t at = 0; at < count; at += 3) {
        mn_error error = {0};
        mem_storage_restore(script.fixture.storage, path, log, count);
        uint64_t bytes;
        mem_storage_bytes(script.fixture.storage, path, &bytes)[at] ^= 0x10;
        enum mn_status status = fixture_come_back(&script.fixture, &logged, &error);
        if (status) {
            assert_true(status == MN_CORRUPT || status == MN_UNSUPPORTED);
            assert_non_null(strstr(error.message, ".log"));
            found++;
        } else {
            assert_int_equal(fixture_committed(&script.fixture),
                             STEPS - 1); /* the last one was cut */
            cut++;
        }
    }
    assert_true(found > 10 * cut && cut > 0);
    mem_storage_restore(script.fixture.storage, path, log, count);
    assert_int_equal(fixture_come_back(&script.fixture, &logged, NULL), MN_OK);
    assert_int_equal(fixture_committed(&script.fixture), STEPS);
    fixture_deinit(&script.fixture);
}

/* A record that passes its checksum, but that no shard has written. */
static void forge(uint8_t *log, uint64_t record_at, uint64_t field_at, uint32_t value)
{
    uint64_t chain; /* the checksum of the file's head */
    memcpy(&chain, log + HEAD_BYTES - sizeof chain, sizeof chain);
    memcpy(log + record_at + field_at, &value, sizeof value);
    chain = mn_checksum(log + record_at, RECORD_BYTES - sizeof chain, chain);
    memcpy(log + record_at + RECORD_BYTES - sizeof chain, &chain, sizeof chain);
}

static void forged_records_are_refused(void **state)
{
    static struct script script;
    static float rows[ROWS * DIM];
    static uint8_t log[LOG_BYTES_MAX], forged[LOG_BYTES_MAX];
    const uint32_t never_logged[] = {MN_VERB_MAP, MN_VERB_STATUS, MN_VERB_LIST, MN_VERB_SNAPSHOT};
    uint64_t count, body_bytes, last = HEAD_BYTES;
    mn_error error;
    (void)state;
    play(&script, false, rows);
    const char *path = log_of(&script, log, &count);
    for (uint32_t i = 0; i < 4; i++) {
        memcpy(forged, log, count);
        forge(forged, HEAD_BYTES, 4, never_logged[i]);
        mem_storage_restore(script.fixture.storage, path, forged, count);
        assert_int_equal(fixture_come_back(&script.fixture, &logged, &error), MN_CORRUPT);
        assert_non_null(strstr(error.message, "cannot be read"));
    }
    for (uint64_t at = HEAD_BYTES; at < count; at += RECORD_BYTES + body_bytes) {
        memcpy(&body_bytes, log + at + 24, sizeof body_bytes);
        last = at;
    }
    memcpy(forged, log, count);
    forge(forged, last, 4, MN_VERB_COMMIT); /* as it is: so forged ones pass the checksum */
    assert_memory_equal(forged, log, count);
    forge(forged, last, 16, UINT32_MAX); /* more is promised than is written */
    mem_storage_restore(script.fixture.storage, path, forged, count);
    assert_int_equal(fixture_come_back(&script.fixture, &logged, NULL), MN_OK);
    assert_int_equal(fixture_committed(&script.fixture), STEPS - 1); /* it is none */
    fixture_deinit(&script.fixture);
}

/* ---- Format version 1, as it was first written */

/* The log of play(), and the rows it leads to. */
#define GOLDEN_LOG  "log-v1/g@1-1.log"
#define GOLDEN_ROWS "log-v1/rows.f32"

static void the_golden_log_is_written(void **state)
{
    static struct script script;
    static float rows[ROWS * DIM];
    static uint8_t log[LOG_BYTES_MAX], golden[LOG_BYTES_MAX];
    uint64_t count;
    (void)state;
    play(&script, false, rows);
    (void)log_of(&script, log, &count);
    assert_int_equal(fixture_golden(GOLDEN_LOG, golden, sizeof golden), count);
    assert_memory_equal(log, golden, count);
    fixture_deinit(&script.fixture);
}

/* Nothing but the file leads to these bits. */
static void the_golden_log_is_replayed(void **state)
{
    static uint8_t log[LOG_BYTES_MAX];
    static float rows[ROWS * DIM], golden[ROWS * DIM + 1];
    struct fixture fixture;
    const uint64_t count = fixture_golden(GOLDEN_LOG, log, sizeof log);
    (void)state;
    assert_int_equal(fixture_golden(GOLDEN_ROWS, golden, sizeof golden), sizeof rows);
    fixture_init(&fixture, 1, &logged);
    mem_storage_put(fixture.storage, "@0-of-1/g@1-1.log", log, count);
    assert_int_equal(fixture_come_back(&fixture, &logged, NULL), MN_OK);
    assert_int_equal(fixture_committed(&fixture), STEPS);
    fixture_join(&fixture, RANKS);
    mn_table_spec spec = fixture_spec("t", ROWS, DIM);
    struct fixture_table table = fixture_table(&fixture, &spec); /* the one that came back */
    fixture_fetch_all(&fixture, &table, STEPS + 1, rows);
    assert_memory_equal(rows, golden, sizeof rows);
    fixture_deinit(&fixture);
}

static int write_golden(void)
{
    static struct script script;
    static float rows[ROWS * DIM];
    static uint8_t log[LOG_BYTES_MAX];
    uint64_t count;
    play(&script, false, rows);
    (void)log_of(&script, log, &count);
    fixture_deinit(&script.fixture);
    return !fixture_golden_write(GOLDEN_LOG, log, count) ||
           !fixture_golden_write(GOLDEN_ROWS, rows, sizeof rows);
}

/* ---- Trouble with the disk */

static void a_failed_write_changes_nothing(void **state)
{
    struct fixture fixture;
    mn_error error = {0};
    (void)state;
    fixture_joined(&fixture, 1, &logged);
    mn_request request = fixture_request(&fixture, MN_VERB_CREATE_TABLE, 0, 0);
    request.spec = fixture_spec("t", ROWS, DIM);
    mem_storage_fail_at(fixture.storage, 1);
    assert_int_equal(fixture_ask(&fixture, 0, &request, NULL, 0, &error), MN_STORAGE);
    assert_string_equal(error.field, "log");
    assert_int_equal(fixture_ask(&fixture, 0, &request, NULL, 0, &error), MN_STORAGE); /* a while */
    fixture.world.now_ns += UINT64_C(1000000000);
    assert_int_equal(fixture_ask(&fixture, 0, &request, NULL, 0, NULL), MN_OK);
    assert_int_equal(fixture_come_back(&fixture, &logged, NULL), MN_OK);
    request = fixture_request(&fixture, MN_VERB_DESCRIBE, 0, 0);
    memcpy(request.spec.name, "t", 2);
    assert_int_equal(fixture_ask(&fixture, 0, &request, NULL, 0, NULL), MN_OK);
    fixture_deinit(&fixture);
}

static void a_level_is_chosen_once(void **state)
{
    struct fixture fixture;
    mn_error error = {0};
    (void)state;
    fixture_joined(&fixture, 1, &logged);
    mn_request request = fixture_request(&fixture, MN_VERB_JOIN, 0, 0);
    request.join = MN_JOIN_FENCE;
    request.durability = MN_DURABILITY_SYNC;
    assert_int_equal(fixture_ask(&fixture, 0, &request, NULL, 0, &error), MN_CONFLICT);
    assert_string_equal(error.field, "durability");
    request.durability = MN_DURABILITY_PROCESS;
    assert_int_equal(fixture_ask(&fixture, 0, &request, NULL, 0, NULL), MN_OK);
    fixture_deinit(&fixture);
}

static enum mn_status assign(struct fixture *f)
{
    mn_request request = fixture_request(f, MN_VERB_JOIN, 0, 0);
    request.context.incarnation = 0;
    request.join = MN_JOIN_ASSIGN;
    f->world.now_ns += 1000000000; /* so that a new file is tried */
    return fixture_ask(f, 0, &request, NULL, 0, NULL);
}

static void expect_none_half(const struct fixture *f)
{
    for (uint32_t i = 0; mem_storage_path(f->storage, i); i++)
        assert_null(strstr(mem_storage_path(f->storage, i), ".new"));
}

/* Each try to begin a new file fails at another operation: none of them leaves one behind. */
static void tries_leave_nothing(void **state)
{
    (void)state;
    struct fixture f;
    uint32_t failures = 0;
    fixture_joined(&f, 1, &logged);
    for (uint64_t operation = 1; operation <= 5; operation++)
        for (int tries = 0; tries < 3; tries++) {
            mem_storage_fail_at(f.storage, 1); /* the file that stands */
            assert_int_equal(assign(&f), MN_STORAGE);
            mem_storage_fail_at(f.storage, operation); /* the new one, or its first record */
            failures += assign(&f) == MN_STORAGE;
            expect_none_half(&f);
        }
    assert_true(failures > 9);
    mem_storage_fail_at(f.storage, 0);
    assert_int_equal(assign(&f), MN_OK);
    assert_int_equal(fixture_come_back(&f, &logged, NULL), MN_OK);
    fixture_deinit(&f);
}

/* ---- Whose the folder is */

/* Another shard on the same files. */
static enum mn_status beside(struct fixture *f, uint32_t shard, uint32_t shards, bool ignore,
                             mn_error *out_error)
{
    const mn_shard_options options = {.shard = shard,
                                      .shards = shards,
                                      .message_bytes_max = 1 << 20,
                                      .claim_data = true,
                                      .ignore_other_logs = ignore};
    mn_shard *other = NULL;
    enum mn_status status = mn_shard_create(&options, &f->world.env, &other, out_error);
    mn_shard_destroy(other);
    return status;
}

static void a_folder_has_one_shard(void **state)
{
    struct fixture f;
    mn_error error = {0};
    (void)state;
    fixture_init(&f, 1, &logged);
    assert_int_equal(beside(&f, 0, 1, false, &error), MN_OK); /* nothing is logged yet */
    fixture_join(&f, 1);
    assert_int_equal(beside(&f, 0, 1, false, &error), MN_CONFLICT);
    assert_string_equal(error.field, "lock");
    assert_non_null(strstr(error.message, "@0-of-1/lock"));
    assert_int_equal(fixture_come_back(&f, &logged, NULL), MN_OK); /* a dead shard's is free */
    fixture_deinit(&f);
}

static void other_logs_are_not_passed_over(void **state)
{
    struct fixture f;
    mn_error error = {0};
    (void)state;
    fixture_joined(&f, 1, &logged);
    assert_int_equal(beside(&f, 0, 2, false, &error), MN_CONFLICT);
    assert_string_equal(error.field, "data");
    assert_non_null(strstr(error.message, "@0-of-1 holds a log of group"));
    assert_non_null(strstr(error.message, "shard 0 of 2"));
    assert_int_equal(beside(&f, 1, 2, false, &error), MN_CONFLICT);
    assert_int_equal(beside(&f, 0, 2, true, &error), MN_OK);
    fixture_deinit(&f);
    const mn_shard_options two = {.shards = 2, .durability = MN_DURABILITY_PROCESS};
    fixture_init(&f, 1, &logged);
    mn_shard_destroy(f.shards[0]);
    mn_shard_options own = two;
    own.message_bytes_max = 1 << 20;
    assert_int_equal(mn_shard_create(&own, &f.world.env, &f.shards[0], NULL), MN_OK);
    fixture_join(&f, 1);
    assert_int_equal(beside(&f, 1, 2, false, &error), MN_OK); /* both are at home here */
    mn_shard_destroy(f.shards[0]);
    f.shards[0] = NULL;
    assert_int_equal(beside(&f, 1, 2, false, &error), MN_CONFLICT); /* another shard's volume? */
    assert_non_null(strstr(error.message, "@0-of-2"));
    fixture_deinit(&f);
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "--write-golden"))
        return write_golden();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bits_after_every_death),
        cmocka_unit_test(without_a_log_all_is_lost),
        cmocka_unit_test(cuts_are_found),
        cmocka_unit_test(changed_bytes_are_found),
        cmocka_unit_test(forged_records_are_refused),
        cmocka_unit_test(the_golden_log_is_written),
        cmocka_unit_test(the_golden_log_is_replayed),
        cmocka_unit_test(a_failed_write_changes_nothing),
        cmocka_unit_test(tries_leave_nothing),
        cmocka_unit_test(a_level_is_chosen_once),
        cmocka_unit_test(a_folder_has_one_shard),
        cmocka_unit_test(other_logs_are_not_passed_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
