/* Moves: every refusal and the field it names, damaged payloads, memory that fails, and what ends a
 * move: a Drop, a Restore. Nothing is changed by what is refused. */
#include "files_format.h"
#include "move_case.h"

#include <stdio.h>
#include <stdlib.h>

static struct move_answer answer, chunk;

static void refused(enum mn_status got, const mn_error *error, enum mn_status due,
                    const char *field)
{
    if (got != due || (due && strcmp(error->field, field) != 0))
        fail_msg("got %s %s \"%s\", due %s %s", mn_status_name(got), error->field, error->message,
                 mn_status_name(due), field);
    if (due)
        assert_true(strlen(error->message) > 5);
}

static void expect(struct move_case *it, const struct move_plan *plan, uint32_t shard,
                   enum mn_move_phase phase, uint64_t number, enum mn_status due, const char *field)
{
    refused(move_case_ask(it, plan, shard, phase, number, &answer), &answer.error, due, field);
}

/* The last tile of shard 0's [0, 6) goes to shard 1, which has [6, 11). */
static const struct move_plan right = {1, 0, 5, 1, 0, 1, 0};

#define WRONG(change, phase, shard, due_status, due_field)                                         \
    do {                                                                                           \
        struct move_plan wrong = right;                                                            \
        change;                                                                                    \
        expect(&it, &wrong, shard, phase, 0, due_status, due_field);                               \
    } while (0)

static void holds_are_checked(void **state)
{
    (void)state;
    struct move_case it;
    move_case_start(&it, NULL);
    struct fixture_table unknown = it.tables[0];
    unknown.id = 99;
    WRONG(wrong.from = 3, MN_MOVE_HOLD, 0, MN_INVALID, "move_from");
    WRONG(wrong.from = UINT32_MAX, MN_MOVE_HOLD, 0, MN_INVALID, "move_from");
    WRONG(wrong.to = 2, MN_MOVE_HOLD, 0, MN_INVALID, "move_to");
    WRONG(wrong.to = 0, MN_MOVE_HOLD, 0, MN_INVALID, "move_to");
    WRONG((wrong.from = 2, wrong.to = 3), MN_MOVE_HOLD, 0, MN_INVALID, "move_to");
    WRONG(wrong.tile_count = 0, MN_MOVE_HOLD, 0, MN_INVALID, "tile_count");
    WRONG(wrong.tile_count = UINT32_MAX, MN_MOVE_HOLD, 0, MN_INVALID, "tile_count");
    WRONG((wrong.tile_first = 15, wrong.tile_count = 2), MN_MOVE_HOLD, 0, MN_INVALID, "tile_count");
    WRONG(wrong.tile_first = 4, MN_MOVE_HOLD, 0, MN_INVALID, "tile_first"); /* not the last one */
    WRONG(wrong.tile_first = 4, MN_MOVE_HOLD, 1, MN_INVALID, "tile_first");
    WRONG(wrong.tile_first = 11, MN_MOVE_HOLD, 2, MN_INVALID, "tile_first"); /* of a third */
    WRONG((wrong.tile_first = 0, wrong.tile_count = 6), MN_MOVE_HOLD, 0, MN_INVALID, "tile_first");
    WRONG((wrong.from = 1, wrong.to = 0), MN_MOVE_HOLD, 0, MN_INVALID, "tile_first");
    WRONG((wrong.from = 1, wrong.to = 0, wrong.tile_first = 7), MN_MOVE_HOLD, 1, MN_INVALID,
          "tile_first");
    WRONG((wrong.from = 1, wrong.to = 2), MN_MOVE_HOLD, 1, MN_INVALID, "tile_first");
    WRONG(wrong.number = 0, MN_MOVE_TAKE, 1, MN_INVALID, "move");
    WRONG(wrong.number = UINT64_MAX, MN_MOVE_HOLD, 1, MN_INVALID, "move");
    WRONG(wrong.number = UINT64_MAX, MN_MOVE_CANCEL, 1, MN_INVALID, "move");
    WRONG(wrong.number = (UINT64_C(1) << 40) + 1, MN_MOVE_CANCEL, 1, MN_INVALID, "move");
    expect(&it, &right, 0, MN_MOVE_HOLD, 100, MN_INVALID, "step");
    WRONG((void)wrong, (enum mn_move_phase)7, 1, MN_UNSUPPORTED, "move_phase");
    const struct fixture_table known = it.tables[0];
    it.tables[0] = unknown;
    WRONG((void)wrong, MN_MOVE_HOLD, 0, MN_NOT_FOUND, "table");
    it.tables[0] = known;
    it.f.epoch++;
    WRONG((void)wrong, MN_MOVE_HOLD, 0, MN_EPOCH, "map_epoch");
    it.f.epoch = 0;
    WRONG((void)wrong, MN_MOVE_HOLD, 0, MN_EPOCH, "map_epoch");
    it.f.epoch = 1;
    for (int phase = MN_MOVE_READ; phase <= MN_MOVE_DONE; phase++)
        WRONG((void)wrong, (enum mn_move_phase)phase, 0,
              phase < MN_MOVE_RELEASE ? MN_CONFLICT : MN_LOST, "move");
    move_case_play(&it, 1); /* none of them keeps anything waiting */
    move_case_expect(&it, 1);
    move_case_end(&it);
}

/* Tables of fewer tiles than shards: one each, which has to stay. */
static void the_last_tile_stays(void **state)
{
    (void)state;
    struct move_case it;
    move_case_start(&it, NULL);
    mn_table_spec spec = fixture_spec("two", MOVE_ROWS, 32);
    spec.tiles = 2;
    it.tables[0] = fixture_table(&it.f, &spec);
    WRONG((wrong.tile_first = 0), MN_MOVE_HOLD, 0, MN_INVALID, "tile_first");
    WRONG((wrong.tile_first = 1, wrong.from = 1, wrong.to = 2), MN_MOVE_HOLD, 2, MN_INVALID,
          "tile_first"); /* which never had one */
    move_case_end(&it);
}

static void phases_are_checked(void **state)
{
    (void)state;
    struct move_case it;
    move_case_start(&it, NULL);
    move_case_play(&it, 1);
    struct move_plan plan = right, other = right;
    (void)move_case_hold(&it, &plan);
    other.number = 2;
    expect(&it, &other, 0, MN_MOVE_HOLD, 0, MN_BUSY, "move");
    it.f.world.now_ns += UINT64_C(11000000000);
    expect(&it, &other, 0, MN_MOVE_HOLD, 0, MN_MOVED, "move");
    WRONG(wrong.table = 1, MN_MOVE_HOLD, 0, MN_CONFLICT, "table");
    WRONG(wrong.from = 2, MN_MOVE_READ, 0, MN_CONFLICT, "move_from");
    WRONG(wrong.to = 2, MN_MOVE_RELEASE, 0, MN_CONFLICT, "move_to");
    WRONG(wrong.tile_first = 4, MN_MOVE_READ, 0, MN_CONFLICT, "tile_first");
    WRONG(wrong.tile_count = 2, MN_MOVE_DONE, 2, MN_CONFLICT, "tile_count");
    WRONG(wrong.tile_count = 0, MN_MOVE_READ, 0, MN_CONFLICT, "tile_count");
    expect(&it, &plan, 1, MN_MOVE_READ, 0, MN_INVALID, "move_from");
    expect(&it, &plan, 0, MN_MOVE_READ, MOVE_ROWS + 1, MN_INVALID, "position");
    expect(&it, &plan, 0, MN_MOVE_READ, MOVE_ROWS, MN_OK, ""); /* nothing is left there */
    assert_true(!answer.bytes && answer.position == MOVE_ROWS && answer.rows == MOVE_ROWS);
    expect(&it, &plan, 0, MN_MOVE_TAKE, 0, MN_INVALID, "move_to");
    expect(&it, &plan, 2, MN_MOVE_RELEASE, 0, MN_INVALID, "move_from");
    expect(&it, &plan, 0, MN_MOVE_DONE, 0, MN_LOST, "move"); /* not released */
    expect(&it, &plan, 1, MN_MOVE_DONE, 0, MN_LOST, "move"); /* not taken */
    it.f.no_reply_buffer = true;
    expect(&it, &plan, 0, MN_MOVE_READ, 0, MN_BUSY, "reply_bytes_max");
    it.f.no_reply_buffer = false;
    expect(&it, &plan, 0, MN_MOVE_READ, 0, MN_OK, "");
    chunk = answer;
    move_case_carry(&it, &plan);
    expect(&it, &plan, 1, MN_MOVE_TAKE, plan.position + 1, MN_INCOMPLETE, "count");
    expect(&it, &plan, 1, MN_MOVE_TAKE, 0, MN_INCOMPLETE, "count");
    plan.to = 1;
    refused(move_case_write(&it, &plan, &chunk, &answer), &answer.error, MN_OK, ""); /* again */
    plan.from = 1, plan.to = 2;
    refused(move_case_write(&it, &plan, &chunk, &answer), &answer.error, MN_CONFLICT, "move_from");
    move_case_end(&it);
}

/* ---- Payloads */

static void shards_agree(struct move_case *it, struct move_plan *plan)
{
    expect(it, plan, plan->to, MN_MOVE_TAKE, plan->position, MN_OK, "");
    move_case_finish(it, plan);
    fixture_look(&it->f, &it->tables[plan->table]);
    move_case_expect(it, 3);
}

/* Every byte counts, and none may be missing or one too many. */
static void damaged_chunks_are_refused(void **state)
{
    (void)state;
    const mn_shard_options options = {.message_bytes_max = 20000};
    for (uint32_t table = 0; table < MOVE_TABLES; table++) {
        struct move_case it;
        move_case_start(&it, &options);
        for (uint64_t step = 1; step <= 3; step++)
            move_case_play(&it, step);
        struct move_plan plan = right;
        plan.table = table;
        (void)move_case_hold(&it, &plan);
        expect(&it, &plan, 0, MN_MOVE_READ, 0, MN_OK, "");
        chunk = answer;
        for (uint64_t at = 0; at < chunk.bytes; at++) {
            chunk.payload[at] ^= 0x20;
            refused(move_case_write(&it, &plan, &chunk, &answer), &answer.error, MN_CORRUPT,
                    "payload");
            chunk.payload[at] ^= 0x20;
        }
        const uint64_t whole = chunk.bytes;
        for (chunk.bytes = 0; chunk.bytes < whole + 2; chunk.bytes++)
            if (chunk.bytes != whole) /* shorter than a head, it is no chunk at all */
                refused(move_case_write(&it, &plan, &chunk, &answer), &answer.error,
                        chunk.bytes < 32 ? MN_INVALID : MN_CORRUPT, "payload");
        move_case_carry(&it, &plan);
        shards_agree(&it, &plan);
        move_case_end(&it);
    }
}

/* What a chunk's checksum begins with, of a move that holds from step 4. */
static uint64_t seed_of(uint64_t number)
{
    const uint64_t place[] = {number, 4};
    return mn_checksum(place, sizeof place, 0);
}

/* With checksums that are right: what no shard has written. */
static enum mn_status forge(struct move_case *it, struct move_plan *plan,
                            struct file_chunk_head head, uint8_t *byte, uint8_t value)
{
    static struct move_answer forged;
    uint64_t chain = seed_of(plan->number);
    const uint64_t at = byte ? (uint64_t)(byte - chunk.payload) : 0;
    forged = chunk;
    if (byte)
        forged.payload[at] = value;
    head.body_checksum = mn_checksum(forged.payload + FILE_BYTES_chunk_head,
                                     forged.bytes - FILE_BYTES_chunk_head, 0);
    mn_file_encode_chunk_head(&head, &chain, forged.payload);
    return move_case_write(it, plan, &forged, &answer);
}

static void forged_chunks_are_refused(void **state)
{
    (void)state;
    struct move_case it;
    struct file_chunk_head head, other;
    uint64_t chain = seed_of(right.number);
    move_case_start(&it, NULL);
    for (uint64_t step = 1; step <= 3; step++)
        move_case_play(&it, step);
    struct move_plan plan = right;
    (void)move_case_hold(&it, &plan);
    expect(&it, &plan, 0, MN_MOVE_READ, 0, MN_OK, "");
    chunk = answer;
    assert_true(mn_file_decode_chunk_head(chunk.payload, &chain, &head) && head.rows % 8 == 0);
    uint8_t *bitmap = chunk.payload + FILE_BYTES_chunk_head, *counts = bitmap + head.rows / 8;
    assert_true(counts[0] && !counts[1] && !counts[2] && !counts[3] && bitmap[0]);
    assert_int_equal(forge(&it, &plan, head, counts, 0), MN_CORRUPT); /* of a row never written */
    assert_int_equal(forge(&it, &plan, head, bitmap, 0), MN_CORRUPT);
#define FORGE(field, value) (other = head, other.field = (value), forge(&it, &plan, other, NULL, 0))
    assert_int_equal(FORGE(first, MOVE_ROWS), MN_CORRUPT);
    assert_int_equal(FORGE(first, UINT64_MAX), MN_CORRUPT);
    assert_int_equal(FORGE(rows, 0), MN_CORRUPT);
    assert_int_equal(FORGE(rows, MOVE_ROWS + 8), MN_CORRUPT);
    assert_int_equal(FORGE(rows, UINT32_MAX), MN_CORRUPT);
    assert_int_equal(FORGE(written, 0), MN_CORRUPT);
    assert_int_equal(FORGE(written, head.written - 1), MN_CORRUPT);
    assert_int_equal(FORGE(written, UINT32_MAX), MN_CORRUPT);
    plan.number = 2; /* of another move */
    assert_int_equal(forge(&it, &plan, head, NULL, 0), MN_CONFLICT);
    plan.number = 1;
    plan.position = 0;
    assert_int_equal(forge(&it, &plan, head, NULL, 0), MN_OK);
    shards_agree(&it, &plan);
    move_case_end(&it);
}

/* Chunks come in order, each once. */
static void chunks_out_of_order_are_refused(void **state)
{
    (void)state;
    static struct move_answer first, third;
    const mn_shard_options options = {.message_bytes_max = 6000};
    struct move_case it;
    move_case_start(&it, &options);
    for (uint64_t step = 1; step <= 3; step++)
        move_case_play(&it, step);
    struct move_plan plan = right, early = right;
    plan.tile_first = early.tile_first = 3;
    plan.tile_count = early.tile_count = 3;
    (void)move_case_hold(&it, &plan);
    expect(&it, &plan, 0, MN_MOVE_READ, 0, MN_OK, "");
    first = answer;
    expect(&it, &plan, 0, MN_MOVE_READ, first.position, MN_OK, "");
    expect(&it, &plan, 0, MN_MOVE_READ, answer.position, MN_OK, "");
    third = answer;
    assert_true(first.bytes && third.bytes);
    early.position = first.position;
    refused(move_case_write(&it, &early, &third, &answer), &answer.error, MN_CONFLICT, "position");
    refused(move_case_write(&it, &plan, &first, &answer), &answer.error, MN_OK, "");
    early.position = 0;
    refused(move_case_write(&it, &early, &third, &answer), &answer.error, MN_CONFLICT, "position");
    struct file_chunk_head head; /* of rows that begin before where the others ended */
    uint64_t chain = seed_of(right.number);
    assert_true(mn_file_decode_chunk_head(third.payload, &chain, &head));
    early.position = plan.position;
    head.first = plan.position - 1;
    chunk = third;
    assert_int_equal(forge(&it, &early, head, NULL, 0), MN_CONFLICT);
    plan.position = 0;
    move_case_carry(&it, &plan);
    shards_agree(&it, &plan);
    move_case_end(&it);
}

/* ---- Memory */

static void one_after_another(struct move_case *it, const struct move_plan *plan, uint32_t shard,
                              enum mn_move_phase phase, uint64_t number)
{
    uint64_t n = 0;
    do {
        it->f.world.fail_at = it->f.world.allocations + ++n;
        if (move_case_ask(it, plan, shard, phase, number, &answer))
            refused(answer.status, &answer.error, MN_NO_MEMORY, answer.error.field);
        it->f.world.fail_at = 0;
        assert_true(n < 100);
    } while (answer.status);
}

static void memory_fails(void **state)
{
    (void)state;
    for (uint32_t table = 0; table < MOVE_TABLES; table++) {
        struct move_case it;
        move_case_start(&it, NULL);
        for (uint64_t step = 1; step <= 3; step++)
            move_case_play(&it, step);
        struct move_plan plan = right;
        plan.table = table;
        for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++)
            one_after_another(&it, &plan, shard, MN_MOVE_HOLD, 4);
        one_after_another(&it, &plan, 0, MN_MOVE_READ, 0);
        move_case_carry(&it, &plan);
        move_case_settle(&it);
        one_after_another(&it, &plan, 1, MN_MOVE_HOLD, 5);
        for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++)
            expect(&it, &plan, shard, MN_MOVE_CANCEL, 0, MN_OK, "");
        plan.number = 2;
        plan.position = 0;
        (void)move_case_hold(&it, &plan);
        move_case_carry(&it, &plan);
        one_after_another(&it, &plan, 1, MN_MOVE_TAKE, plan.position);
        one_after_another(&it, &plan, 0, MN_MOVE_RELEASE, 0);
        for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++)
            one_after_another(&it, &plan, shard, MN_MOVE_DONE, 0);
        fixture_look(&it.f, &it.tables[table]);
        move_case_expect(&it, 3);
        move_case_end(&it);
    }
}

static mn_request move_request(const struct fixture *f, uint64_t table, enum mn_move_phase phase)
{
    mn_request request = fixture_request(f, MN_VERB_MOVE, 0, 0);
    request.table = table;
    request.move = 1;
    request.move_to = 1;
    request.tile_first = 3;
    request.tile_count = 1;
    request.move_phase = phase;
    return request;
}

static enum mn_status create(struct fixture *f, uint32_t shard, const char *name, uint64_t rows,
                             mn_error *error)
{
    mn_request request = fixture_request(f, MN_VERB_CREATE_TABLE, 0, 0);
    request.spec = fixture_spec(name, rows, 128);
    request.spec.tiles = 2; /* 260 bytes a row at each shard */
    request.table = 7 * shard;
    return fixture_ask(f, shard, &request, NULL, 0, error);
}

/* The tiles' room is asked for at HOLD, as a CreateTable's is; and is free again in the end. */
static void address_space_is_bounded(void **state)
{
    (void)state;
    static const struct {
        enum mn_split split;
        uint64_t bytes_max, beside, later; /* rows of other tables */
    } cases[] = {{MN_COLUMNS, 100000, 100, 77}, {MN_ROWS, 130000, 100, 310}};
    for (int i = 0; i < 2; i++) {
        struct fixture f;
        mn_error error = {0};
        const mn_shard_options options = {.table_bytes_max = cases[i].bytes_max};
        fixture_init(&f, 2, &options);
        fixture_join(&f, 1);
        mn_table_spec spec = fixture_spec("t", 200, 128);
        spec.split = cases[i].split;
        spec.tiles = 8; /* about 13,000 bytes each, and each shard has four */
        const uint64_t table = fixture_table(&f, &spec).id;
        refused(create(&f, 1, "beside", cases[i].beside + 60, &error), &error, MN_OK, "");
        mn_request request = move_request(&f, table, MN_MOVE_HOLD);
        assert_int_equal(fixture_ask(&f, 1, &request, NULL, 0, &error), MN_BUSY);
        assert_string_equal(error.field, "table_bytes_max");
        request.verb = MN_VERB_DROP;
        request.table = 7;
        assert_int_equal(fixture_ask(&f, 1, &request, NULL, 0, &error), MN_OK);
        if (cases[i].split == MN_COLUMNS)
            refused(create(&f, 0, "beside", cases[i].beside, &error), &error, MN_OK, "");
        for (int phase = MN_MOVE_HOLD; phase <= MN_MOVE_DONE; phase++) {
            const uint32_t shard = phase == MN_MOVE_HOLD || phase == MN_MOVE_RELEASE ? 0 : 1;
            request = move_request(&f, table, (enum mn_move_phase)phase);
            if (phase == MN_MOVE_HOLD)
                refused(fixture_ask(&f, 1, &request, NULL, 0, &error), &error, MN_OK, "");
            if (phase != MN_MOVE_READ && phase != MN_MOVE_WRITE) /* no row was ever written */
                refused(fixture_ask(&f, shard, &request, NULL, 0, &error), &error, MN_OK, "");
            if (phase == MN_MOVE_HOLD)
                refused(create(&f, 0, "later", cases[i].later, &error), &error, MN_BUSY,
                        "table_bytes_max");
        }
        refused(create(&f, 0, "later", cases[i].later, &error), &error, MN_OK, "");
        request.verb = MN_VERB_DROP;
        assert_int_equal(fixture_ask(&f, 1, &request, NULL, 0, &error), MN_OK);
        request = fixture_request(&f, MN_VERB_CREATE_TABLE, 0, 0); /* all is free there again */
        request.spec = fixture_spec("all", cases[i].bytes_max / 260, 128);
        request.spec.tiles = 2;
        request.table = 70;
        refused(fixture_ask(&f, 1, &request, NULL, 0, &error), &error, MN_OK, "");
        fixture_deinit(&f);
    }
}

/* ---- Its end with the table, or the group */

static void a_drop_ends_it(void **state)
{
    (void)state;
    struct move_case it;
    move_case_start(&it, NULL);
    move_case_play(&it, 1);
    struct move_plan plan = right;
    (void)move_case_hold(&it, &plan);
    move_case_carry(&it, &plan);
    for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++) {
        if (shard == 2)
            expect(&it, &plan, 1, MN_MOVE_TAKE, plan.position, MN_CONFLICT, "move");
        mn_request request = fixture_request(&it.f, MN_VERB_DROP, 0, 0);
        request.table = it.tables[0].id;
        assert_int_equal(fixture_ask(&it.f, shard, &request, NULL, 0, NULL), MN_OK);
        expect(&it, &plan, shard, MN_MOVE_CANCEL, 0, MN_OK, "");
        assert_true(!answer.move && answer.last == 1);
    }
    uint64_t pieces[FIXTURE_SHARDS_MAX] = {0};
    for (uint32_t table = 1; table < MOVE_TABLES; table++)
        assert_int_equal(move_case_push(&it, table, 2, pieces), MN_OK);
    move_case_commit(&it, 2, pieces); /* nothing waits any more */
    move_case_end(&it);
}

static enum mn_status files(struct fixture *f, uint32_t shard, enum mn_verb verb,
                            enum mn_files_phase phase, uint64_t step, mn_error *out_error)
{
    mn_request request = fixture_request(f, verb, 0, step);
    request.files = phase;
    request.save = 77;
    memcpy(request.path, "snap", 5);
    if (phase == MN_FILES_LOAD)
        request.context.map_epoch = f->epoch + FIXTURE_RESTORED;
    request.context.incarnation = 0;
    struct answer *call = fixture_send(f, shard, &request, NULL, 0);
    fixture_tick(f);
    assert_true(call->finished);
    enum mn_status status = call->call.reply.status;
    *out_error = call->call.reply.error;
    fixture_free(call);
    return status;
}

static void save(struct move_case *it, uint64_t step)
{
    mn_error error = {0};
    for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++)
        refused(files(&it->f, shard, MN_VERB_SNAPSHOT, MN_FILES_WRITE, step, &error), &error, MN_OK,
                "");
    refused(files(&it->f, 0, MN_VERB_SNAPSHOT, MN_FILES_MANIFEST, step, &error), &error, MN_OK, "");
}

/* At every point of a move what was saved before it replaces all; ranges are the map's again. */
static void a_restore_ends_it(void **state)
{
    (void)state;
    for (uint32_t until = 0; until < 4; until++) {
        struct move_case it;
        mn_error error = {0};
        move_case_start(&it, NULL);
        move_case_play(&it, 1);
        save(&it, 1);
        struct move_plan plan = right;
        (void)move_case_hold(&it, &plan);
        if (until >= 1)
            move_case_carry(&it, &plan);
        if (until >= 2)
            expect(&it, &plan, 1, MN_MOVE_TAKE, plan.position, MN_OK, "");
        if (until >= 3)
            expect(&it, &plan, 0, MN_MOVE_RELEASE, 0, MN_OK, "");
        for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++)
            refused(files(&it.f, shard, MN_VERB_RESTORE, MN_FILES_LOAD, 1, &error), &error, MN_OK,
                    "");
        it.f.epoch += FIXTURE_RESTORED;
        it.f.incarnations[0] = 0;
        fixture_join(&it.f, 1);
        move_case_play(&it, 2);
        move_case_expect(&it, 2);
        plan.position = 0; /* numbers begin anew, too */
        move_case_move(&it, &plan);
        move_case_play(&it, 3);
        move_case_expect(&it, 3);
        move_case_end(&it);
    }
}

/* ---- Saves */

/* A save waits for the move to end, a move for the save; what is saved then is loaded anywhere. */
static void saves_and_moves_take_turns(void **state)
{
    (void)state;
    struct move_case it, *next = calloc(1, sizeof *next);
    mn_error error = {0};
    assert_non_null(next);
    move_case_start(&it, NULL);
    move_case_play(&it, 1);
    save(&it, 1);
    struct move_plan plan = right;
    plan.table = 2;
    (void)move_case_hold(&it, &plan);
    for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++)
        refused(files(&it.f, shard, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 1, &error), &error, MN_BUSY,
                "move");
    move_case_carry(&it, &plan);
    expect(&it, &plan, 1, MN_MOVE_TAKE, plan.position, MN_OK, "");
    refused(files(&it.f, 1, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 1, &error), &error, MN_BUSY, "move");
    move_case_finish(&it, &plan);
    fixture_look(&it.f, &it.tables[2]);
    mn_request waits = fixture_request(&it.f, MN_VERB_SNAPSHOT, 0, 2); /* for step 2 */
    waits.files = MN_FILES_WRITE;
    memcpy(waits.path, "else", 5);
    struct answer *call = fixture_send(&it.f, 0, &waits, NULL, 0);
    assert_false(call->finished);
    plan = right;
    plan.number = 2;
    expect(&it, &plan, 0, MN_MOVE_HOLD, 0, MN_BUSY, "move");
    move_case_play(&it, 2);
    fixture_tick(&it.f);
    assert_true(call->finished && !call->call.reply.status);
    fixture_free(call);
    save(&it, 2);
    *next = it;
    fixture_successor(&next->f, &it.f, 2);
    next->f.epoch -= FIXTURE_RESTORED;
    for (uint32_t shard = 0; shard < 2; shard++)
        refused(files(&next->f, shard, MN_VERB_RESTORE, MN_FILES_LOAD, 2, &error), &error, MN_OK,
                "");
    next->f.epoch += FIXTURE_RESTORED;
    next->tables[2].moved = 0;
    fixture_join(&next->f, 1);
    move_case_expect(next, 2);
    move_case_end(next);
    move_case_end(&it);
    free(next);
}

static uint64_t row_in(const struct fixture_table *table, uint32_t tile)
{
    for (uint64_t row = 0;; row++) {
        uint64_t offset;
        uint32_t at;
        mn_row_locate(&table->geometry, row, &at, &offset);
        if (at == tile)
            return row;
    }
}

/* A step that changes nothing but these rows of the table of rows. */
static void store(struct move_case *it, uint64_t step, const uint64_t *rows, uint64_t count,
                  float value)
{
    float values[2 * 16];
    uint64_t pieces[FIXTURE_SHARDS_MAX] = {0};
    const struct fixture_piece piece = {.step = step};
    for (uint32_t i = 0; i < 2 * 16; i++)
        values[i] = value;
    assert_int_equal(fixture_store(&it->f, &it->tables[2], &piece, rows, count, values, pieces),
                     MN_OK);
    move_case_commit(it, step, pieces);
}

/* A tile that went away, changed there, and came back is not in the state that its older file has,
 * though no other tile of its shard changed meanwhile. */
static void a_tile_that_comes_back_is_saved_anew(void **state)
{
    (void)state;
    struct move_case it;
    mn_error error = {0};
    float row[16];
    move_case_start(&it, NULL);
    const uint64_t rows[] = {row_in(&it.tables[2], 5), row_in(&it.tables[2], 0)};
    store(&it, 1, rows, 2, 1);
    save(&it, 1);
    struct move_plan there = right, back = {2, 2, 5, 1, 1, 0, 0};
    there.table = 2;
    move_case_move(&it, &there);
    store(&it, 2, rows, 1, 2);
    move_case_move(&it, &back);
    save(&it, 2);
    for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++)
        refused(files(&it.f, shard, MN_VERB_RESTORE, MN_FILES_LOAD, 2, &error), &error, MN_OK, "");
    it.f.epoch += FIXTURE_RESTORED;
    it.f.incarnations[0] = 0;
    it.tables[2].moved = 0;
    fixture_join(&it.f, 1);
    assert_int_equal(fixture_fetch(&it.f, &it.tables[2], 3, rows, 1, row), MN_OK);
    assert_true(row[0] == 2 && row[15] == 2);
    move_case_end(&it);
}

/* The tile's file in the folder of saves. */
static void file_of(const struct move_case *it, uint32_t table, uint32_t tile, char out_path[128])
{
    char start[32];
    (void)snprintf(start, sizeof start, "snap/%u-%u-", (unsigned)it->tables[table].id, tile);
    out_path[0] = '\0';
    for (uint32_t i = 0; mem_storage_path(it->f.storage, i); i++)
        if (!strncmp(mem_storage_path(it->f.storage, i), start, strlen(start)))
            (void)snprintf(out_path, 128, "%s", mem_storage_path(it->f.storage, i));
    assert_true(out_path[0]);
}

/* What was carried is in the name of a tile's file: what the new shard had logged before does not
 * tell it. */
static void a_state_tells_what_was_carried(void **state)
{
    (void)state;
    char names[2][128];
    for (int i = 0; i < 2; i++) {
        struct move_case it;
        mn_error error = {0};
        move_case_start(&it, NULL);
        const uint64_t row = row_in(&it.tables[2], 5);
        store(&it, 1, &row, 1, (float)i);
        struct move_plan plan = right;
        plan.table = 2;
        move_case_move(&it, &plan);
        refused(files(&it.f, 1, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 1, &error), &error, MN_OK, "");
        file_of(&it, 2, 5, names[i]);
        move_case_end(&it);
    }
    assert_string_not_equal(names[0], names[1]);
}

/* A move is no change of the tiles that stay, at either end. */
static void tiles_that_stay_are_not_saved_anew(void **state)
{
    (void)state;
    for (uint32_t table = 0; table < MOVE_TABLES; table++) {
        char before[MOVE_TILES][128], after[128];
        struct move_case it;
        move_case_start(&it, NULL);
        move_case_play(&it, 1);
        save(&it, 1);
        for (uint32_t tile = 0; tile < MOVE_TILES; tile++)
            file_of(&it, table, tile, before[tile]);
        struct move_plan plan = right;
        plan.table = table;
        move_case_move(&it, &plan);
        save(&it, 1);
        for (uint32_t tile = 0; tile < MOVE_TILES; tile++) {
            file_of(&it, table, tile, after);
            assert_int_equal(strcmp(before[tile], after) == 0, tile != plan.tile_first);
        }
        move_case_end(&it);
    }
}

/* Tiles that go from a shard that has yet to write its part to one that has are in none. */
static void a_move_amid_a_save_is_seen(void **state)
{
    (void)state;
    mn_error error = {0};
    for (uint32_t first = 0; first < 2; first++) { /* which shard writes before the move */
        struct move_case it;
        move_case_start(&it, NULL);
        move_case_play(&it, 1);
        struct move_plan plan = right; /* from 0 to 1 */
        refused(files(&it.f, first, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 1, &error), &error, MN_OK,
                "");
        move_case_move(&it, &plan);
        for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++)
            if (shard != first)
                refused(files(&it.f, shard, MN_VERB_SNAPSHOT, MN_FILES_WRITE, 1, &error), &error,
                        MN_OK, "");
        refused(files(&it.f, 0, MN_VERB_SNAPSHOT, MN_FILES_MANIFEST, 1, &error), &error,
                first ? MN_STEP : MN_OK, "save"); /* twice is as good as once */
        save(&it, 1);
        for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++)
            refused(files(&it.f, shard, MN_VERB_RESTORE, MN_FILES_LOAD, 1, &error), &error, MN_OK,
                    "");
        it.f.epoch += FIXTURE_RESTORED;
        it.f.incarnations[0] = 0;
        it.tables[0].moved = 0;
        fixture_join(&it.f, 1);
        move_case_expect(&it, 1);
        move_case_end(&it);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(holds_are_checked),
        cmocka_unit_test(the_last_tile_stays),
        cmocka_unit_test(phases_are_checked),
        cmocka_unit_test(damaged_chunks_are_refused),
        cmocka_unit_test(forged_chunks_are_refused),
        cmocka_unit_test(chunks_out_of_order_are_refused),
        cmocka_unit_test(memory_fails),
        cmocka_unit_test(address_space_is_bounded),
        cmocka_unit_test(a_drop_ends_it),
        cmocka_unit_test(a_restore_ends_it),
        cmocka_unit_test(saves_and_moves_take_turns),
        cmocka_unit_test(a_tile_that_comes_back_is_saved_anew),
        cmocka_unit_test(a_state_tells_what_was_carried),
        cmocka_unit_test(tiles_that_stay_are_not_saved_anew),
        cmocka_unit_test(a_move_amid_a_save_is_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
