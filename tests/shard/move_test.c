/* Tiles go from one shard to its neighbour while training goes on (STEPS.md "Move"): nothing is
 * lost, no bit changes, and what comes at the wrong time is refused. */
#include "files.h"
#include "move_case.h"

#include <stdlib.h>

/* ---- Bits */

/* Shards hold [0, 6), [6, 11), [11, 16) of 16 tiles. */
static const struct {
    uint32_t first, count, from, to;
} ways[] = {
    {5, 1, 0, 1}, {5, 3, 1, 0}, {3, 5, 0, 1}, {11, 4, 2, 1},
    {3, 1, 1, 0}, {6, 9, 1, 2}, {6, 1, 2, 1},
};
enum { WAYS = sizeof ways / sizeof *ways };

static struct move_plan plan_of(uint32_t table, uint32_t way, uint64_t number)
{
    return (struct move_plan){.number = number,
                              .table = table,
                              .tile_first = ways[way].first,
                              .tile_count = ways[way].count,
                              .from = ways[way].from,
                              .to = ways[way].to};
}

/* There, back, further: between two steps each time. */
static void no_bit_changes(void **state)
{
    (void)state;
    for (uint32_t table = 0; table < MOVE_TABLES; table++) {
        struct move_case it;
        move_case_start(&it, NULL);
        for (uint32_t way = 0; way < WAYS; way++) {
            struct move_plan plan = plan_of(table, way, way + 1);
            move_case_play(&it, way + 1);
            move_case_move(&it, &plan);
        }
        move_case_play(&it, WAYS + 1);
        move_case_expect(&it, WAYS + 1);
        const struct fixture_table *moved = &it.tables[table];
        assert_int_equal(moved->moved, WAYS);
        assert_int_equal(moved->tile_count[0], 4);
        assert_int_equal(moved->tile_first[1], 4);
        assert_int_equal(moved->tile_first[2], 7);
        move_case_end(&it);
    }
}

/* In many messages, and with payloads in pieces. */
static void short_messages_do(void **state)
{
    (void)state;
    const mn_shard_options options = {.message_bytes_max = 10000};
    struct move_case it;
    move_case_start(&it, &options);
    it.f.segmented = true;
    for (uint64_t step = 1; step <= 8; step++)
        move_case_play(&it, step);
    for (uint32_t table = 0; table < MOVE_TABLES; table++) {
        struct move_plan plan = plan_of(table, 3, table + 1);
        move_case_move(&it, &plan);
    }
    move_case_expect(&it, 8);
    move_case_end(&it);
}

/* Tiles that hold no row: 17 rows in 16 blocks of two. */
static void empty_tiles_move(void **state)
{
    (void)state;
    static float before[17 * 16], after[17 * 16];
    struct move_case it;
    uint64_t all[17], pieces[FIXTURE_SHARDS_MAX] = {0};
    move_case_start(&it, NULL);
    mn_table_spec spec = fixture_spec("few", 17, 16);
    spec.split = MN_ROWS;
    spec.tiles = 16;
    it.tables[2] = fixture_table(&it.f, &spec);
    for (uint64_t i = 0; i < 17; i++)
        all[i] = i;
    for (uint32_t i = 0; i < 17 * 16; i++)
        before[i] = (float)i;
    const struct fixture_piece piece = {.step = 1};
    assert_int_equal(fixture_store(&it.f, &it.tables[2], &piece, all, 17, before, pieces), MN_OK);
    move_case_commit(&it, 1, pieces);
    for (uint32_t way = 0; way < WAYS; way++) {
        struct move_plan plan = plan_of(2, way, way + 1);
        move_case_move(&it, &plan);
        assert_int_equal(fixture_fetch(&it.f, &it.tables[2], 2, all, 17, after), MN_OK);
        assert_memory_equal(before, after, sizeof before);
    }
    move_case_end(&it);
}

/* ---- What waits */

static struct move_answer answer;

static void refused(enum mn_status got, const mn_error *error, enum mn_status due,
                    const char *field)
{
    if (got != due || (due && strcmp(error->field, field) != 0))
        fail_msg("got %s %s \"%s\", due %s %s", mn_status_name(got), error->field, error->message,
                 mn_status_name(due), field);
}

/* Any request of a move; what it answered stays in `answer`. */
static void expect(struct move_case *it, const struct move_plan *plan, uint32_t shard,
                   enum mn_move_phase phase, uint64_t number, enum mn_status due, const char *field)
{
    refused(move_case_ask(it, plan, shard, phase, number, &answer), &answer.error, due, field);
}

static enum mn_status seal(struct move_case *it, uint32_t shard, uint64_t step, mn_error *error)
{
    mn_request request = fixture_request(&it->f, MN_VERB_SEAL, 0, step);
    request.proposal = fixture_proposal(0.125f);
    return fixture_ask(&it->f, shard, &request, NULL, 0, error);
}

static void hold_keeps_what_follows_waiting(void **state)
{
    (void)state;
    struct move_case it;
    mn_error error = {0};
    uint64_t second[FIXTURE_SHARDS_MAX] = {0}, third[FIXTURE_SHARDS_MAX] = {0}, none[8] = {0};
    move_case_start(&it, NULL);
    const struct move_plan plan = plan_of(0, 0, 1);
    move_case_play(&it, 1);
    for (uint32_t table = 0; table < MOVE_TABLES; table++)
        assert_int_equal(move_case_push(&it, table, 2, second), MN_OK);
    assert_int_equal(move_case_push(&it, 0, 3, third), MN_OK);
    expect(&it, &plan, 0, MN_MOVE_HOLD, 0, MN_OK, "");
    assert_true(answer.hold == 4 && answer.step == 1 && answer.last == 0);
    expect(&it, &plan, 0, MN_MOVE_HOLD, 3, MN_OK, ""); /* never lower */
    assert_true(answer.hold == 4);
    assert_true(move_case_hold(&it, &plan) == 4);
    assert_int_equal(move_case_push(&it, 0, 4, none), MN_BUSY);
    assert_int_equal(move_case_push(&it, 1, 4, none), MN_OK); /* another table */
    expect(&it, &plan, 0, MN_MOVE_READ, 0, MN_BUSY, "step");
    expect(&it, &plan, 1, MN_MOVE_TAKE, 0, MN_BUSY, "step");
    move_case_commit(&it, 2, second);
    for (uint32_t table = 1; table < MOVE_TABLES; table++)
        assert_int_equal(move_case_push(&it, table, 3, third), MN_OK);
    move_case_commit(&it, 3, third);
    expect(&it, &plan, 0, MN_MOVE_READ, 0, MN_OK, "");
    refused(seal(&it, 2, 4, &error), &error, MN_BUSY, "move");
    move_case_expect(&it, 3); /* reads go on */
    it.f.world.now_ns += UINT64_C(9000000000);
    refused(seal(&it, 2, 4, &error), &error, MN_BUSY, "move");
    it.f.world.now_ns += UINT64_C(2000000000);
    refused(seal(&it, 2, 4, &error), &error, MN_MOVED, "move");
    assert_int_equal(move_case_push(&it, 0, 4, none), MN_MOVED);
    expect(&it, &plan, 2, MN_MOVE_HOLD, 0, MN_OK, ""); /* somebody goes on */
    refused(seal(&it, 2, 4, &error), &error, MN_BUSY, "move");
    for (uint32_t shard = MOVE_SHARDS; shard-- > 0;)
        expect(&it, &plan, shard, MN_MOVE_CANCEL, 0, MN_OK, "");
    memset(none, 0, sizeof none);
    for (uint32_t table = 0; table < MOVE_TABLES; table++)
        assert_int_equal(move_case_push(&it, table, 4, none), MN_OK);
    move_case_commit(&it, 4, none);
    move_case_expect(&it, 4);
    move_case_end(&it);
}

/* What is sealed will be committed. */
static void a_sealed_step_is_waited_for(void **state)
{
    (void)state;
    struct move_case it;
    uint64_t pieces[FIXTURE_SHARDS_MAX] = {0};
    mn_error error = {0};
    move_case_start(&it, NULL);
    const struct move_plan plan = plan_of(0, 0, 1);
    refused(seal(&it, 2, 1, &error), &error, MN_OK, ""); /* it has no piece there */
    expect(&it, &plan, 2, MN_MOVE_HOLD, 0, MN_OK, "");
    assert_true(answer.hold == 2);
    expect(&it, &plan, 0, MN_MOVE_HOLD, 0, MN_OK, "");
    assert_true(answer.hold == 1);
    assert_int_equal(move_case_push(&it, 0, 1, pieces), MN_BUSY);
    expect(&it, &plan, 0, MN_MOVE_HOLD, 2, MN_OK, "");
    assert_true(answer.hold == 2);
    expect(&it, &plan, 0, MN_MOVE_READ, 0, MN_BUSY, "step");
    memset(pieces, 0, sizeof pieces);
    for (uint32_t shard = 0; shard < 2; shard++)
        refused(seal(&it, shard, 1, &error), &error, MN_OK, "");
    move_case_commit(&it, 1, pieces);
    expect(&it, &plan, 0, MN_MOVE_READ, 0, MN_OK, "");
    move_case_end(&it);
}

/* A shard that cannot hold from the same step raises it: what was carried is carried again. */
static void a_raised_hold_begins_again(void **state)
{
    (void)state;
    for (uint32_t table = 0; table < MOVE_TABLES; table++) {
        struct move_case it;
        move_case_start(&it, NULL);
        struct move_plan plan = plan_of(table, 0, 1);
        move_case_play(&it, 1);
        assert_true(move_case_hold(&it, &plan) == 2);
        static struct move_answer before;
        expect(&it, &plan, 0, MN_MOVE_READ, 0, MN_OK, "");
        before = answer;
        move_case_carry(&it, &plan);
        move_case_settle(&it);
        for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++)
            expect(&it, &plan, shard, MN_MOVE_HOLD, 3, MN_OK, "");
        expect(&it, &plan, 1, MN_MOVE_TAKE, plan.position, MN_INCOMPLETE, "count");
        move_case_play(&it, 2);
        plan.position = 0; /* what is on its way since is of a step that is over */
        refused(move_case_write(&it, &plan, &before, &answer), &answer.error, MN_CORRUPT,
                "payload");
        move_case_move(&it, &plan);
        move_case_play(&it, 3);
        move_case_expect(&it, 3);
        move_case_end(&it);
    }
}

/* ---- Older maps */

/* A fetch of row 5 at the shard, by the table's routing as it was. */
static struct answer *fetch(struct move_case *it, const struct fixture_table *table, uint32_t shard,
                            uint32_t tile_first, uint32_t tile_count, uint64_t step)
{
    const uint32_t index = 5;
    mn_request request = fixture_request(&it->f, MN_VERB_FETCH, 0, step);
    request.table = table->id;
    request.tile_first = tile_first;
    request.tile_count = tile_count;
    request.count = 1;
    return fixture_send(&it->f, shard, &request, &index, sizeof index);
}

static void told(struct answer *read, enum mn_status due, const char *field)
{
    assert_true(read->finished);
    refused(read->call.reply.status, &read->call.reply.error, due, field);
    fixture_free(read);
}

static void older_maps_are_told(void **state)
{
    (void)state;
    struct move_case it;
    uint64_t pieces[FIXTURE_SHARDS_MAX] = {0};
    move_case_start(&it, NULL);
    const struct fixture_table before = it.tables[0];
    struct move_plan plan = plan_of(0, 1, 1); /* [5, 8) from 1 to 0 is not possible: */
    plan.tile_first = 6;
    plan.tile_count = 2;
    move_case_play(&it, 1);
    struct answer *gone = fetch(&it, &before, 1, 6, 5, 3);
    struct answer *stays = fetch(&it, &before, 1, 8, 3, 3);
    assert_false(gone->finished || stays->finished);
    told(fetch(&it, &before, 1, 5, 2, 2), MN_LOST, "tile_first"); /* nothing has moved yet */
    (void)move_case_hold(&it, &plan);
    move_case_carry(&it, &plan);
    told(fetch(&it, &before, 0, 6, 2, 2), MN_LOST, "tile_first");
    expect(&it, &plan, 0, MN_MOVE_TAKE, plan.position, MN_OK, "");
    told(fetch(&it, &before, 0, 6, 2, 2), MN_OK, ""); /* both have them */
    told(fetch(&it, &before, 1, 6, 2, 2), MN_OK, "");
    told(fetch(&it, &before, 0, 6, 3, 2), MN_MOVED, "tile_first");
    assert_int_equal(move_case_push(&it, 0, 2, pieces), MN_MOVED); /* at shard 0, by the old map */
    assert_false(gone->finished);
    move_case_finish(&it, &plan);
    assert_false(stays->finished);
    told(gone, MN_MOVED, "tile_first");
    told(fetch(&it, &before, 1, 6, 2, 2), MN_MOVED, "tile_first");
    told(fetch(&it, &before, 2, 6, 2, 2), MN_MOVED, "tile_first");
    assert_int_equal(move_case_push(&it, 0, 2, pieces), MN_MOVED);
    struct fixture_table now = it.tables[0];
    fixture_look(&it.f, &now);
    assert_true(now.moved == 1 && now.tile_count[0] == 8 && now.tile_first[1] == 8);
    it.tables[0] = now;
    it.tables[0].moved = 0; /* the tiles are right, the move is not the last one */
    assert_int_equal(move_case_push(&it, 0, 2, pieces), MN_MOVED);
    it.tables[0].moved = 3; /* a later one ended everywhere, they say: it was lost here */
    assert_int_equal(move_case_push(&it, 0, 2, pieces), MN_LOST);
    it.tables[0].tile_count[0]--; /* as it would have it */
    assert_int_equal(move_case_push(&it, 0, 2, pieces), MN_LOST);
    it.tables[0] = now;
    move_case_play(&it, 2);
    told(stays, MN_OK, "");
    move_case_expect(&it, 2);
    move_case_end(&it);
}

/* Between TAKE and DONE the new shard takes changes that know of the move; the others none. */
static void the_new_shard_goes_on_first(void **state)
{
    (void)state;
    struct move_case it;
    mn_error error = {0};
    uint64_t pieces[FIXTURE_SHARDS_MAX] = {0};
    move_case_start(&it, NULL);
    struct move_plan plan = plan_of(2, 3, 4); /* rows, from 2 to 1 */
    move_case_play(&it, 1);
    (void)move_case_hold(&it, &plan);
    move_case_carry(&it, &plan);
    move_case_settle(&it);
    expect(&it, &plan, 1, MN_MOVE_TAKE, plan.position, MN_OK, "");
    refused(seal(&it, 1, 2, &error), &error, MN_OK, ""); /* of no piece: another test's */
    refused(seal(&it, 0, 2, &error), &error, MN_BUSY, "move");
    expect(&it, &plan, 2, MN_MOVE_RELEASE, 0, MN_OK, "");
    fixture_look(&it.f, &it.tables[2]);
    assert_int_equal(it.tables[2].moved, 4);
    assert_int_equal(move_case_push(&it, 2, 3, pieces), MN_MOVED); /* shard 0 stands before it */
    expect(&it, &plan, 0, MN_MOVE_DONE, 0, MN_OK, "");
    assert_int_equal(move_case_push(&it, 2, 3, pieces), MN_OK);
    move_case_end(&it);
}

/* ---- Again, late, never */

static void repeats_are_acknowledged(void **state)
{
    (void)state;
    static struct move_answer chunk, second;
    const mn_shard_options options = {.message_bytes_max = 20000};
    struct move_case it;
    move_case_start(&it, &options);
    struct move_plan plan = plan_of(3, 0, 9), again;
    move_case_play(&it, 1);
    (void)move_case_hold(&it, &plan);
    expect(&it, &plan, 0, MN_MOVE_READ, 0, MN_OK, "");
    chunk = answer;
    expect(&it, &plan, 0, MN_MOVE_READ, 0, MN_OK, "");
    assert_memory_equal(&chunk, &answer, sizeof chunk);
    move_case_carry(&it, &plan);
    again = plan;
    again.position = 0;
    assert_int_equal(move_case_write(&it, &again, &chunk, &second), MN_OK);
    assert_true(again.position == plan.position); /* all of it is here */
    for (int times = 0; times < 2; times++)
        expect(&it, &plan, 1, MN_MOVE_TAKE, plan.position, MN_OK, "");
    assert_true(answer.taken && answer.move == 9);
    assert_int_equal(move_case_write(&it, &again, &chunk, &second), MN_OK);
    expect(&it, &plan, 1, MN_MOVE_CANCEL, 0, MN_OK, ""); /* too late, and it says so */
    assert_true(answer.taken && answer.move == 9 && answer.last == 0);
    struct move_plan lower = plan;
    lower.number = 8; /* another one, which never stood */
    expect(&it, &lower, 1, MN_MOVE_CANCEL, 0, MN_OK, "");
    assert_true(!answer.taken && answer.move == 9 && answer.last == 8);
    const struct move_plan others = {9, 3, 0, 0, 0, 1, 0}; /* of who has only heard of it */
    for (int times = 0; times < 2; times++)
        expect(&it, &others, 0, MN_MOVE_RELEASE, 0, MN_OK, "");
    for (int times = 0; times < 2; times++)
        for (uint32_t shard = MOVE_SHARDS; shard-- > 0;)
            expect(&it, &others, shard, MN_MOVE_DONE, 0, MN_OK, "");
    assert_true(!answer.taken && !answer.move && answer.last == 9);
    expect(&it, &plan, 1, MN_MOVE_CANCEL, 0, MN_OK, "");
    assert_true(answer.taken && !answer.move); /* it was made */
    expect(&it, &plan, 1, MN_MOVE_TAKE, plan.position, MN_CONFLICT, "move");
    expect(&it, &plan, 0, MN_MOVE_READ, 0, MN_CONFLICT, "move");
    expect(&it, &plan, 2, MN_MOVE_HOLD, 0, MN_CONFLICT, "move");
    fixture_look(&it.f, &it.tables[3]);
    move_case_play(&it, 2);
    move_case_expect(&it, 2);
    move_case_end(&it);
}

static void nothing_of_a_cancelled_move_comes_late(void **state)
{
    (void)state;
    static struct move_answer chunk, second;
    struct move_case it;
    move_case_start(&it, NULL);
    struct move_plan plan = plan_of(1, 0, 5);
    move_case_play(&it, 1);
    (void)move_case_hold(&it, &plan);
    expect(&it, &plan, 0, MN_MOVE_READ, 0, MN_OK, "");
    chunk = answer;
    move_case_carry(&it, &plan);
    expect(&it, &plan, 1, MN_MOVE_CANCEL, 0, MN_OK, "");
    assert_true(!answer.taken && !answer.move && answer.last == 5);
    expect(&it, &plan, 1, MN_MOVE_HOLD, 0, MN_CONFLICT, "move");
    expect(&it, &plan, 1, MN_MOVE_TAKE, plan.position, MN_CONFLICT, "move");
    refused(move_case_write(&it, &plan, &chunk, &second), &second.error, MN_CONFLICT, "move");
    expect(&it, &plan, 1, MN_MOVE_CANCEL, 0, MN_OK, "");
    assert_true(!answer.taken); /* it was never made */
    expect(&it, &plan, 1, MN_MOVE_DONE, 0, MN_LOST, "move");
    expect(&it, &plan, 1, MN_MOVE_RELEASE, 0, MN_LOST, "move");
    expect(&it, &plan, 0, MN_MOVE_CANCEL, 0, MN_OK, "");
    struct move_plan unknown = plan_of(1, 0, 6); /* shard 2 never hears of it but so: */
    expect(&it, &plan, 2, MN_MOVE_CANCEL, 0, MN_OK, "");
    expect(&it, &unknown, 2, MN_MOVE_CANCEL, 0, MN_OK, "");
    assert_true(answer.last == 6);
    expect(&it, &unknown, 2, MN_MOVE_HOLD, 0, MN_CONFLICT, "move");
    move_case_play(&it, 2);
    struct move_plan next = plan_of(1, 0, 7);
    move_case_move(&it, &next);
    move_case_play(&it, 3);
    move_case_expect(&it, 3);
    move_case_end(&it);
}

/* HOLD of no move changes nothing. */
static void a_look_changes_nothing(void **state)
{
    (void)state;
    struct move_case it;
    move_case_start(&it, NULL);
    const struct move_plan plan = plan_of(0, 0, 3), look = {0};
    expect(&it, &look, 0, MN_MOVE_HOLD, 0, MN_OK, "");
    assert_true(!answer.move && !answer.last && !answer.hold);
    (void)move_case_hold(&it, &plan);
    expect(&it, &look, 0, MN_MOVE_HOLD, 9, MN_OK, "");
    assert_true(answer.move == 3 && answer.hold == 1);
    expect(&it, &plan, 0, MN_MOVE_CANCEL, 0, MN_OK, "");
    expect(&it, &look, 0, MN_MOVE_HOLD, 0, MN_OK, "");
    assert_true(!answer.move && answer.last == 3);
    move_case_end(&it);
}

/* ---- A rows table of many rows */

enum { MANY = 8192, MANY_DIM = 128, PARTS = 32 };

static void store_all(struct move_case *it, const struct fixture_table *table)
{
    static uint64_t indices[MANY / PARTS];
    static float rows[MANY / PARTS * MANY_DIM];
    uint64_t pieces[1][FIXTURE_SHARDS_MAX] = {{0}};
    for (uint32_t part = 0; part < PARTS; part++) {
        const struct fixture_piece piece = {.part = part, .step = 1};
        for (uint64_t i = 0; i < MANY / PARTS; i++)
            indices[i] = i * PARTS + part;
        for (uint32_t i = 0; i < MANY / PARTS * MANY_DIM; i++)
            rows[i] = (float)(part * 1000 + i % 977);
        assert_int_equal(
            fixture_store(&it->f, table, &piece, indices, MANY / PARTS, rows, pieces[0]), MN_OK);
    }
    const mn_proposal proposal = fixture_proposal(1);
    fixture_commit(&it->f, 1, &proposal, 1, pieces);
}

/* Its plane is made anew beside the old one, a piece a tick. */
static void many_rows_are_copied_piece_by_piece(void **state)
{
    (void)state;
    static float before[MANY * MANY_DIM], after[MANY * MANY_DIM];
    static uint64_t all[MANY];
    const mn_shard_options options = {.message_bytes_max = MOVE_PAYLOAD_MAX};
    struct move_case it;
    move_case_start(&it, &options);
    mn_table_spec spec = fixture_spec("many", MANY, MANY_DIM);
    spec.split = MN_ROWS;
    spec.tiles = 16;
    spec.optimizer = mn_adam(0.9f, 0.99f, 1e-8f);
    it.tables[2] = fixture_table(&it.f, &spec);
    store_all(&it, &it.tables[2]);
    for (uint64_t i = 0; i < MANY; i++)
        all[i] = i;
    assert_int_equal(fixture_fetch(&it.f, &it.tables[2], 2, all, MANY, before), MN_OK);
    struct move_plan plan = {1, 2, 6, 4, 1, 0, 0};
    (void)move_case_hold(&it, &plan);
    static struct move_answer chunk;
    for (uint64_t position = 0; position < 4 * MANY / 16; position = chunk.position) {
        assert_int_equal(move_case_ask(&it, &plan, 1, MN_MOVE_READ, position, &chunk), MN_OK);
        assert_int_equal(move_case_write(&it, &plan, &chunk, &answer), MN_OK);
    }
    uint32_t ticks = 0;
    while (move_case_ask(&it, &plan, 0, MN_MOVE_TAKE, plan.position, &answer)) {
        refused(answer.status, &answer.error, MN_BUSY, "move");
        (void)mn_shard_tick(it.f.shards[0], it.f.world.now_ns);
        ticks++;
    }
    assert_true(ticks > 0 && ticks < 10);
    assert_int_equal(it.f.world.vacated_bytes, 0);
    move_case_finish(&it, &plan);
    const uint64_t row_bytes = MANY_DIM * 3 * sizeof(float) + sizeof(uint32_t);
    assert_int_equal(it.f.world.vacated_bytes, MANY / 4 * row_bytes);
    fixture_look(&it.f, &it.tables[2]);
    assert_int_equal(fixture_fetch(&it.f, &it.tables[2], 2, all, MANY, after), MN_OK);
    assert_memory_equal(before, after, sizeof before);
    struct move_plan back = {2, 2, 9, 1, 0, 1, 0}; /* from the other end */
    move_case_move(&it, &back);
    assert_int_equal(it.f.world.vacated_bytes, (MANY / 4 + MANY / 16) * row_bytes);
    assert_int_equal(fixture_fetch(&it.f, &it.tables[2], 2, all, MANY, after), MN_OK);
    assert_memory_equal(before, after, sizeof before);
    move_case_end(&it);
}

/* ---- Rows never written */

enum { SPARSE = 1 << 22, SPARSE_TILE = SPARSE / 16, FEW = 4, NEAR = 3, SPARSE_DIM_MAX = 1024 };

struct sparse {
    mn_table_spec spec;
    struct move_plan plan;
    uint64_t places[FEW]; /* rows that are written, by their place in the tiles that move */
    uint32_t reads, chunks, few;
};

static uint64_t row_at(const struct fixture_table *table, uint32_t tile_first, uint64_t place)
{
    const uint64_t rows = mn_tile_rows(&table->geometry, tile_first);
    return mn_row_of(&table->geometry, tile_first + (uint32_t)(place / rows), place % rows);
}

static uint64_t written_at(struct move_case *it, uint32_t shard)
{
    mn_request request = fixture_request(&it->f, MN_VERB_DESCRIBE, 0, 0);
    request.table = it->tables[2].id;
    struct answer *look = fixture_send(&it->f, shard, &request, NULL, 0);
    const uint64_t rows = look->tables[0].rows_written;
    fixture_free(look);
    return rows;
}

/* As move_case_carry; what goes over the wire is counted. */
static uint64_t carry_counted(struct move_case *it, struct move_plan *plan, uint32_t *out_reads,
                              uint32_t *out_chunks)
{
    static struct move_answer chunk;
    uint64_t bytes = 0;
    *out_reads = *out_chunks = 0;
    for (uint64_t position = 0; !position || position < chunk.rows; position = chunk.position) {
        assert_int_equal(move_case_ask(it, plan, plan->from, MN_MOVE_READ, position, &chunk),
                         MN_OK);
        if (chunk.bytes)
            assert_int_equal(move_case_write(it, plan, &chunk, &answer), MN_OK);
        *out_chunks += chunk.bytes > 0;
        bytes += chunk.bytes;
        ++*out_reads;
    }
    return bytes;
}

static void move_sparse(struct move_case *it, const struct sparse *due)
{
    struct move_plan plan = due->plan;
    uint32_t reads, chunks;
    const mn_table_spec *spec = &it->tables[2].spec;
    const bool rows = spec->split == MN_ROWS;
    const uint64_t columns = rows ? spec->dim : spec->dim / 16;
    const uint64_t row_bytes = columns * 3 * sizeof(float) + sizeof(uint32_t);
    const uint64_t span_bytes = FILE_BYTES_chunk_head + FILE_CHUNK_BYTES / row_bytes / 8;
    const uint64_t written = due->few * (uint64_t)(rows ? 1 : plan.tile_count);
    const uint64_t before = written_at(it, 1);
    (void)move_case_hold(it, &plan);
    const uint64_t bytes = carry_counted(it, &plan, &reads, &chunks);
    assert_int_equal(reads, due->reads);
    assert_int_equal(chunks, due->chunks);
    assert_true(bytes >= written * row_bytes);
    assert_true(bytes - written * row_bytes <= chunks * span_bytes);
    move_case_settle(it);
    assert_int_equal(move_case_ask(it, &plan, plan.to, MN_MOVE_TAKE, plan.position, &answer),
                     MN_OK);
    move_case_finish(it, &plan);
    assert_int_equal(written_at(it, 1), rows ? before + due->few : before);
    fixture_look(&it->f, &it->tables[2]);
}

/* Rows that are written, then moved or not, then pushed to with their neighbours, of which some
 * begin now: what all of them hold then. */
static void play_sparse(const struct sparse *due, bool moves, float *out_rows)
{
    enum { ALL = FEW * (1 + NEAR) };
    static float numbers[ALL * SPARSE_DIM_MAX];
    struct move_case it;
    uint64_t rows[ALL], pieces[2][1][FIXTURE_SHARDS_MAX] = {{{0}}};
    const struct fixture_piece store = {.step = 1}, push = {.step = 2};
    const mn_proposal proposal = fixture_proposal(0.5f);
    move_case_start(&it, NULL);
    it.tables[2] = fixture_table(&it.f, &due->spec);
    for (uint32_t i = 0; i < ALL; i++)
        rows[i] = row_at(&it.tables[2], due->plan.tile_first, due->places[i % FEW] - i / FEW * 17);
    for (uint32_t i = 0; i < ALL * SPARSE_DIM_MAX; i++)
        numbers[i] = (float)(i % 101) - 50;
    if (due->few)
        assert_int_equal(
            fixture_store(&it.f, &it.tables[2], &store, rows, due->few, numbers, pieces[0][0]),
            MN_OK);
    fixture_commit(&it.f, 1, &proposal, 1, pieces[0]);
    if (moves)
        move_sparse(&it, due);
    assert_int_equal(fixture_push(&it.f, &it.tables[2], &push, rows, ALL, numbers, pieces[1][0]),
                     MN_OK);
    fixture_commit(&it.f, 2, &proposal, 1, pieces[1]);
    assert_int_equal(fixture_fetch(&it.f, &it.tables[2], 3, rows, ALL, out_rows), MN_OK);
    move_case_end(&it);
}

/* A READ looks at a million rows: those are passed over, and told of. */
static void rows_never_written_are_passed_over(void **state)
{
    (void)state;
    enum { COLUMN_ROWS = 8192, VALUES = FEW * (1 + NEAR) * SPARSE_DIM_MAX };
    static float still[VALUES], moved[VALUES];
    struct sparse cases[] = {
        {.spec = fixture_spec("rows", SPARSE, 4),
         .plan = {1, 2, 1, 5, 0, 1, 0},
         .places = {1100000, 1100001, 1100007, 5 * SPARSE_TILE - 1},
         .reads = 3,
         .chunks = 2,
         .few = FEW},
        {.spec = fixture_spec("columns", COLUMN_ROWS, SPARSE_DIM_MAX),
         .plan = {1, 2, 4, 2, 0, 1, 0},
         .places = {100, 5000, 5001, COLUMN_ROWS - 1},
         .reads = 6,
         .chunks = 6,
         .few = FEW},
        {.spec = fixture_spec("blank", COLUMN_ROWS, SPARSE_DIM_MAX),
         .plan = {1, 2, 4, 2, 0, 1, 0},
         .places = {100, 200, 300, 400},
         .reads = 1},
    };
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cases[i].spec.split = i ? MN_COLUMNS : MN_ROWS;
        cases[i].spec.tiles = 16;
        cases[i].spec.optimizer = mn_adam(0.9f, 0.99f, 1e-8f);
        play_sparse(&cases[i], false, still);
        play_sparse(&cases[i], true, moved);
        assert_memory_equal(still, moved, sizeof still);
    }
}

/* ---- How rows are read */

static uint64_t counted(struct move_case *it, uint32_t table, uint32_t shard, uint64_t *out_reads)
{
    mn_request request = fixture_request(&it->f, MN_VERB_DESCRIBE, 0, 0);
    request.table = it->tables[table].id;
    struct answer *look = fixture_send(&it->f, shard, &request, NULL, 0);
    request.count = look->tables[0].counters;
    fixture_free(look);
    look = fixture_send(&it->f, shard, &request, NULL, 0);
    assert_int_equal(look->call.reply.status, MN_OK);
    *out_reads = 0;
    for (uint64_t i = 0; i < request.count; i++) {
        uint64_t counter[2];
        memcpy(counter, look->bytes + i * sizeof counter, sizeof counter);
        *out_reads += counter[0];
    }
    fixture_free(look);
    return request.count;
}

/* Every row has a counter, wherever it lies; those of a rows table begin anew at both shards. */
static void reads_are_counted_on(void **state)
{
    (void)state;
    const mn_shard_options options = {.usage_bytes_max = 1 << 20};
    for (uint32_t table = 0; table < MOVE_TABLES; table += 2) {
        struct move_case it;
        static float bags[MOVE_DIM_MAX];
        uint64_t indices[MOVE_ROWS], reads[MOVE_SHARDS], counters = 0, rows = 0;
        float weights[MOVE_ROWS];
        move_case_start(&it, &options);
        for (uint64_t i = 0; i < MOVE_ROWS; i++) {
            indices[i] = i;
            weights[i] = 1;
        }
        const struct fixture_queries queries = {1, MOVE_ROWS, indices, weights};
        const bool split = it.tables[table].spec.split == MN_ROWS;
        assert_int_equal(fixture_bag(&it.f, &it.tables[table], 1, &queries, bags), MN_OK);
        struct move_plan plan = plan_of(table, 0, 1);
        move_case_move(&it, &plan);
        for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++)
            counters += counted(&it, table, shard, &reads[shard]);
        assert_int_equal(counters, MOVE_ROWS);
        assert_int_equal(reads[0], split ? 0 : MOVE_ROWS);
        assert_int_equal(reads[1], 0);
        assert_int_equal(fixture_bag(&it.f, &it.tables[table], 1, &queries, bags), MN_OK);
        for (uint32_t shard = 0; shard < MOVE_SHARDS; shard++) {
            (void)counted(&it, table, shard, &reads[shard]); /* as many as before */
            rows += reads[shard];
        }
        assert_true(split ? reads[0] + reads[1] == 11 * 13 : rows > MOVE_ROWS);
        move_case_end(&it);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_bit_changes),
        cmocka_unit_test(short_messages_do),
        cmocka_unit_test(empty_tiles_move),
        cmocka_unit_test(hold_keeps_what_follows_waiting),
        cmocka_unit_test(a_sealed_step_is_waited_for),
        cmocka_unit_test(a_raised_hold_begins_again),
        cmocka_unit_test(older_maps_are_told),
        cmocka_unit_test(the_new_shard_goes_on_first),
        cmocka_unit_test(repeats_are_acknowledged),
        cmocka_unit_test(nothing_of_a_cancelled_move_comes_late),
        cmocka_unit_test(a_look_changes_nothing),
        cmocka_unit_test(many_rows_are_copied_piece_by_piece),
        cmocka_unit_test(rows_never_written_are_passed_over),
        cmocka_unit_test(reads_are_counted_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
