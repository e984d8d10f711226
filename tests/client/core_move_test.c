/* The client core against a scripted transport: calls that are told MOVED find the tiles, end moves
 * that nobody goes on with, and count their pieces anew (STEPS.md "Move"). */
#include "fake.h"
#include "harness.h"

#include <string.h>

enum { ROWS = 100, DIM = 256, TILES = 4, COUNT = 4 };

static const mn_table_spec columns = {
    .name = "t", .rows = ROWS, .dim = DIM, .optimizer = {MN_OPTIMIZER_SGD, 0, 0, 0, MN_F32, false}};
static const mn_table_spec rows = {.name = "t",
                                   .rows = ROWS,
                                   .dim = 64,
                                   .split = MN_ROWS,
                                   .tiles = TILES,
                                   .optimizer = {MN_OPTIMIZER_SGD, 0, 0, 0, MN_F32, false}};

static uint32_t indices[COUNT];
static float weights[COUNT] = {1, 1, 1, 1}, answers[COUNT * DIM], values[COUNT * DIM];

static void world(fake *it, uint32_t shards, const mn_table_spec *spec, uint32_t plants,
                  mn_table **out_table)
{
    mn_core_options options = fake_options();
    options.plants = plants;
    fake_init(it, shards);
    fake_create(it, &options);
    fake_join(it);
    *out_table = fake_table(it, spec);
}

static void data(fake *it, fake_call *call, enum mn_operation_kind kind, mn_table *table,
                 uint64_t deadline_ms)
{
    fake_call_init(it, call, kind, deadline_ms);
    call->operation.table = table;
    call->operation.step = 5;
    call->operation.count = COUNT;
    call->operation.per_query = 1;
    call->operation.indices = mn_u32(indices);
    call->operation.weights = mn_f32(weights);
    call->operation.values = mn_f32(values);
    call->operation.outputs = mn_f32(answers);
    fake_submit(it, call);
}

static void expect_end(const fake_call *call, enum mn_status status, const char *field)
{
    assert_int_equal(call->done, 1);
    assert_int_equal(call->operation.status, status);
    if (field)
        assert_string_equal(call->operation.error.field, field);
}

/* What a shard lists of the table with id 9. */
static mn_table_info holding(uint32_t first, uint32_t count, uint64_t moved)
{
    return (mn_table_info){.table = 9, .tile_first = first, .tile_count = count, .moved = moved};
}

static mn_table_info moving(mn_table_info info, uint64_t move, uint32_t from, uint32_t to,
                            bool overdue)
{
    info.move = move;
    info.move_from = from;
    info.move_to = to;
    info.move_overdue = overdue;
    return info;
}

static void answer_list(fake *it, uint32_t shard, mn_table_info info)
{
    mn_exchange *list = fake_take(it, MN_VERB_LIST, shard);
    assert_int_equal(list->request.context.map_epoch, FAKE_EPOCH);
    list->reply.step = 4;
    list->reply.tables = &info;
    list->reply.table_count = 1;
    fake_answer(it, list);
}

static void list_two(fake *it, mn_table_info one, mn_table_info other)
{
    answer_list(it, 0, one);
    answer_list(it, 1, other);
    fake_pass(it, 1000);
}

static mn_exchange *take_move(fake *it, uint32_t shard, enum mn_move_phase phase)
{
    mn_exchange *move = fake_take(it, MN_VERB_MOVE, shard);
    assert_int_equal(move->request.move_phase, phase);
    move->reply.step = 4;
    return move;
}

static void answer_move(fake *it, uint32_t shard, enum mn_move_phase phase)
{
    fake_answer(it, take_move(it, shard, phase));
}

/* ---- A read ---- */

static void answer_bag(fake *it, uint32_t shard, uint32_t first, uint32_t count, float value)
{
    float part[COUNT * DIM];
    mn_exchange *bag = fake_take(it, MN_VERB_BAG, shard);
    assert_int_equal(bag->request.tile_first, first);
    assert_int_equal(bag->request.tile_count, count);
    for (uint32_t i = 0; i < COUNT * count * DIM / TILES; i++)
        part[i] = value;
    bag->reply.step = 4;
    fake_answer_bytes(it, bag, part, COUNT * count * DIM / TILES * sizeof *part);
}

static void a_read_finds_the_tiles(void **state)
{
    (void)state;
    fake it;
    fake_call call, other;
    mn_table *table;
    world(&it, 2, &columns, 0, &table);
    data(&it, &call, MN_OP_BAG, table, 60000);
    data(&it, &other, MN_OP_PUSH, table, 60000);
    answer_bag(&it, 0, 0, 2, 9);
    fake_refuse(&it, fake_take(&it, MN_VERB_BAG, 1), MN_MOVED, "tile_first");
    mn_exchange *push = fake_take(&it, MN_VERB_PUSH, 0);
    assert_int_equal(push->request.moved, 0);
    assert_false(fake_cancelled(&it, push));
    list_two(&it, holding(0, 1, 7), holding(1, 3, 7));
    assert_true(fake_cancelled(&it, push)); /* it was cut for tiles that are elsewhere */
    assert_int_equal(fake_open(&it, MN_VERB_PUSH), 2);
    fake_refuse(&it, push, MN_CANCELLED, "call");
    fake_refuse(&it, fake_take(&it, MN_VERB_PUSH, 1), MN_CANCELLED, "call");
    answer_bag(&it, 0, 0, 1, 1);
    answer_bag(&it, 1, 1, 3, 2);
    expect_end(&call, MN_OK, NULL);
    for (uint32_t i = 0; i < COUNT * DIM; i++)
        assert_true(answers[i] == (i % DIM < DIM / TILES ? 1 : 2));
    fake_pass(&it, 1);
    push = fake_take(&it, MN_VERB_PUSH, 1);
    assert_true(push->request.tile_first == 1 && push->request.tile_count == 3);
    assert_int_equal(push->request.moved, 7);
    fake_answer_all(&it, MN_VERB_PUSH, 4);
    expect_end(&other, MN_OK, NULL);
    fake_destroy(&it);
}

/* Sums over shards begin from zero, whatever had been added, or waited for its turn. */
static void sums_begin_again(void **state)
{
    (void)state;
    static const float one[COUNT] = {1, 1, 1, 1},
                       three[COUNT * 3] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    static const float early[COUNT * 2] = {100, 100, 100, 100, 100, 100, 100, 100};
    fake it;
    fake_call call;
    mn_table *table;
    world(&it, 2, &columns, 0, &table);
    data(&it, &call, MN_OP_BAG_GRAD, table, 60000);
    fake_answer_bytes(&it, fake_take(&it, MN_VERB_BAG_GRAD, 1), early, sizeof early);
    fake_refuse(&it, fake_take(&it, MN_VERB_BAG_GRAD, 0), MN_MOVED, "tile_first");
    list_two(&it, holding(0, 3, 1), holding(3, 1, 1));
    fake_answer_bytes(&it, fake_take(&it, MN_VERB_BAG_GRAD, 0), three, sizeof three);
    fake_answer_bytes(&it, fake_take(&it, MN_VERB_BAG_GRAD, 1), one, sizeof one);
    expect_end(&call, MN_OK, NULL);
    for (uint32_t i = 0; i < COUNT; i++)
        assert_true(answers[i] == 4);
    fake_destroy(&it);
}

static void refuse_bag(fake *it, fake_call *call, mn_table *table, uint64_t deadline_ms)
{
    data(it, call, MN_OP_BAG, table, deadline_ms);
    fake_refuse(it, fake_take(it, MN_VERB_BAG, 1), MN_MOVED, "tile_first");
    fake_refuse(it, fake_take(it, MN_VERB_BAG, 0), MN_CANCELLED, "call");
}

/* Nothing is taken for the map until all shards tell the same one. */
static void shards_have_to_agree(void **state)
{
    (void)state;
    const mn_table_info disagree[][2] = {
        {holding(0, 2, 1), holding(2, 2, 2)},                         /* another move */
        {holding(0, 3, 1), holding(2, 2, 1)},                         /* a tile twice */
        {holding(2, 2, 1), holding(0, 2, 1)},                         /* not ascending */
        {holding(0, 0, 1), holding(0, 4, 1)},                         /* a hole */
        {holding(0, 3, 2), moving(holding(3, 1, 1), 2, 1, 0, false)}, /* one is half made */
        {moving(holding(0, 3, 2), 2, 1, 0, true), moving(holding(3, 1, 1), 2, 1, 0, false)},
    };
    fake it;
    fake_call call;
    mn_table *table;
    world(&it, 2, &columns, 0, &table);
    refuse_bag(&it, &call, table, 60000);
    for (size_t i = 0; i < sizeof disagree / sizeof *disagree; i++) {
        list_two(&it, disagree[i][0], disagree[i][1]);
        assert_int_equal(fake_open(&it, MN_VERB_BAG), 0);
        assert_int_equal(fake_open(&it, MN_VERB_MOVE), 0);
    }
    list_two(&it, holding(0, 3, 1), holding(3, 1, 1));
    answer_bag(&it, 0, 0, 3, 1);
    answer_bag(&it, 1, 3, 1, 1);
    expect_end(&call, MN_OK, NULL);
    refuse_bag(&it, &call, table, 3500); /* not for ever */
    for (uint64_t move = 2; move < 5; move++)
        list_two(&it, holding(0, 2, 1), holding(2, 2, move));
    fake_pass(&it, 1000);
    fake_answer_all(&it, MN_VERB_LIST, 4);
    expect_end(&call, MN_MOVED, "tile_first");
    fake_destroy(&it);
}

/* It may wait for a step that needs this very call, of a client that knows less of the tiles. */
static void a_move_that_waits_is_not_waited_for(void **state)
{
    (void)state;
    fake it;
    fake_call call, mover;
    mn_table *table;
    world(&it, 2, &columns, 0, &table);
    data(&it, &call, MN_OP_PUSH, table, 60000);
    fake_refuse(&it, fake_take(&it, MN_VERB_PUSH, 0), MN_MOVED, "moved");
    fake_refuse(&it, fake_take(&it, MN_VERB_PUSH, 1), MN_CANCELLED, "call");
    list_two(&it, moving(holding(0, 3, 1), 2, 1, 0, false),
             moving(holding(3, 1, 1), 2, 1, 0, false));
    const mn_request *push = &fake_take(&it, MN_VERB_PUSH, 0)->request;
    assert_true(push->tile_first == 0 && push->tile_count == 3 && push->moved == 1);
    fake_answer_all(&it, MN_VERB_PUSH, 4);
    expect_end(&call, MN_OK, NULL);
    fake_call_init(&it, &mover, MN_OP_MOVE, 60000); /* another mover does wait for it */
    mover.operation.table = table;
    mover.operation.to = 1;
    mover.operation.count = 1;
    fake_submit(&it, &mover);
    list_two(&it, moving(holding(0, 3, 1), 2, 1, 0, false),
             moving(holding(3, 1, 1), 2, 1, 0, false));
    assert_int_equal(fake_open(&it, MN_VERB_MOVE), 0);
    list_two(&it, holding(0, 3, 1), holding(3, 1, 1));
    assert_int_equal(fake_open(&it, MN_VERB_MOVE), 2);
    mn_core_cancel(it.core, &mover.operation);
    fake_answer_all(&it, MN_VERB_MOVE, 4);
    expect_end(&mover, MN_CANCELLED, NULL);
    fake_destroy(&it);
}

static void lists_are_looked_at(void **state)
{
    (void)state;
    const mn_table_info bad[] = {holding(1, UINT32_MAX, 1),
                                 moving(holding(0, 2, 0), 1, 0, 2, false),
                                 moving(holding(0, 2, 0), 1, 1, 1, false)};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        fake it;
        fake_call call;
        mn_table *table;
        world(&it, 2, &columns, 0, &table);
        refuse_bag(&it, &call, table, 60000);
        answer_list(&it, 0, bad[i]);
        fake_refuse(&it, fake_take(&it, MN_VERB_LIST, 1), MN_CANCELLED, "call");
        expect_end(&call, MN_CORRUPT, i ? "move_to" : "tile_count");
        fake_destroy(&it);
    }
}

/* A move that is made between two answers hides a tile, but not twice the same. */
static void a_tile_that_nobody_holds_is_lost(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    mn_table *table;
    world(&it, 2, &columns, 0, &table);
    refuse_bag(&it, &call, table, 60000);
    list_two(&it, holding(0, 1, 0), holding(2, 2, 0));
    list_two(&it, holding(0, 1, 0), moving(holding(2, 2, 0), 1, 0, 1, false));
    list_two(&it, holding(0, 2, 3), holding(3, 1, 0));
    list_two(&it, holding(0, 1, 0), holding(2, 2, 0));
    assert_int_equal(call.done, 0);
    list_two(&it, holding(0, 1, 0), holding(2, 2, 0));
    expect_end(&call, MN_LOST, "tile_first");
    assert_non_null(strstr(call.operation.error.message, "tile 1 of \"t\""));
    fake_destroy(&it);
}

/* So is who holds which, where a shard has forgotten that it let go. */
static void tiles_that_stay_apart_are_lost(void **state)
{
    (void)state;
    const mn_table_info apart[][2] = {{holding(0, 3, 0), holding(2, 2, 1)},
                                      {holding(0, 2, 0), holding(2, 2, 1)},
                                      {holding(0, 2, 0), holding(2, 2, 0)}};
    for (int i = 0; i < 3; i++) {
        fake it;
        fake_call call;
        mn_table *table;
        world(&it, 2, &columns, 0, &table);
        refuse_bag(&it, &call, table, 60000);
        list_two(&it, holding(0, 1, 1), holding(1, 3, 1));
        answer_bag(&it, 0, 0, 1, 1);
        answer_bag(&it, 1, 1, 3, 1);
        refuse_bag(&it, &call, table, 60000);
        list_two(&it, apart[i][0], apart[i][1]);
        assert_int_equal(call.done, 0);
        list_two(&it, apart[i][0], apart[i][1]);
        expect_end(&call, MN_LOST, "moved");
        fake_destroy(&it);
    }
}

/* Any allocation that finding the tiles takes may fail. */
static void finding_survives_every_allocation(void **state)
{
    (void)state;
    for (int64_t allowed = 0; allowed < 3; allowed++) {
        fake it;
        fake_call call;
        mn_table *table;
        world(&it, 2, &rows, 0, &table);
        data(&it, &call, MN_OP_PUSH, table, 60000);
        it.allocations_left = allowed;
        for (uint32_t shard = 0; shard < 2 && !call.done; shard++)
            if (fake_open(&it, MN_VERB_PUSH))
                fake_refuse(&it, fake_take(&it, MN_VERB_PUSH, 0), MN_MOVED, "moved");
        if (allowed == 2) /* routes the rows again: two more */
            list_two(&it, holding(0, 1, 1), holding(1, 3, 1));
        expect_end(&call, MN_NO_MEMORY, allowed < 2 ? "move" : "count");
        it.allocations_left = -1;
        fake_destroy(&it);
    }
}

/* ---- A move that nobody goes on with ---- */

static void list_overdue(fake *it)
{
    list_two(it, moving(holding(0, 2, 0), 6, 0, 1, true), moving(holding(2, 2, 0), 6, 0, 1, true));
}

static void an_overdue_move_is_cancelled(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    mn_table *table;
    world(&it, 2, &columns, 0, &table);
    refuse_bag(&it, &call, table, 60000);
    list_overdue(&it);
    assert_int_equal(fake_open(&it, MN_VERB_MOVE), 1); /* at the new shard first */
    const mn_request *cancel = &take_move(&it, 1, MN_MOVE_CANCEL)->request;
    assert_true(cancel->move == 6 && cancel->table == 9 && cancel->tile_count == 0);
    assert_true(cancel->move_from == 0 && cancel->move_to == 1);
    answer_move(&it, 1, MN_MOVE_CANCEL);
    answer_move(&it, 0, MN_MOVE_CANCEL);
    fake_pass(&it, 1000);
    list_two(&it, holding(0, 2, 0), holding(2, 2, 0));
    answer_bag(&it, 0, 0, 2, 1);
    answer_bag(&it, 1, 2, 2, 1);
    expect_end(&call, MN_OK, NULL);
    fake_destroy(&it);
}

static void an_overdue_move_that_was_made_is_finished(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    mn_table *table;
    world(&it, 3, &columns, 0, &table);
    fake_call_init(&it, &call, MN_OP_COMMIT, 60000);
    call.operation.step = 5;
    call.operation.proposal.set_count = 1;
    fake_submit(&it, &call);
    fake_refuse(&it, fake_take(&it, MN_VERB_SEAL, 2), MN_MOVED, "move"); /* a seal waited for it */
    fake_refuse(&it, fake_take(&it, MN_VERB_SEAL, 0), MN_CANCELLED, "call");
    fake_refuse(&it, fake_take(&it, MN_VERB_SEAL, 1), MN_CANCELLED, "call");
    for (uint32_t shard = 0; shard < 3; shard++)
        answer_list(&it, shard, moving(holding(shard, 2, 0), 6, 0, 1, true));
    mn_exchange *cancel = take_move(&it, 1, MN_MOVE_CANCEL);
    cancel->reply.move_taken = true;
    fake_answer(&it, cancel);
    assert_int_equal(fake_open(&it, MN_VERB_MOVE), 1);
    answer_move(&it, 0, MN_MOVE_RELEASE);
    assert_int_equal(fake_open(&it, MN_VERB_MOVE), 2);
    answer_move(&it, 0, MN_MOVE_DONE);
    answer_move(&it, 2, MN_MOVE_DONE);
    answer_move(&it, 1, MN_MOVE_DONE); /* the new shard last */
    fake_pass(&it, 1000);
    for (uint32_t shard = 0; shard < 3; shard++)
        answer_list(&it, shard, holding(shard, 1, 6));
    fake_pass(&it, 1000);
    assert_int_equal(fake_open(&it, MN_VERB_SEAL), 3);
    mn_core_cancel(it.core, &call.operation);
    fake_answer_all(&it, MN_VERB_SEAL, 4);
    expect_end(&call, MN_CANCELLED, NULL);
    fake_destroy(&it);
}

/* ---- Pieces are counted anew ---- */

/* The first row of each tile, so that each shard gets as many as it holds tiles. */
static void first_rows(void)
{
    mn_geometry geometry;
    mn_table_spec checked;
    mn_error error;
    assert_int_equal(mn_spec_check(&rows, &checked, &error), MN_OK);
    mn_geometry_init(&checked, &geometry);
    for (uint32_t tile = 0; tile < TILES; tile++)
        indices[tile] = (uint32_t)mn_row_of(&geometry, tile, 0);
}

static void seal_says(fake *it, uint64_t pieces_0, uint64_t pieces_1)
{
    fake_call call;
    fake_call_init(it, &call, MN_OP_COMMIT, 1000);
    call.operation.step = 5;
    call.operation.proposal.set_count = 1;
    fake_submit(it, &call);
    const mn_request *seal = &fake_take(it, MN_VERB_SEAL, 0)->request;
    assert_int_equal(seal->pieces, pieces_0);
    assert_int_equal(seal->acknowledged <= pieces_0, true);
    assert_int_equal(fake_take(it, MN_VERB_SEAL, 1)->request.pieces, pieces_1);
    mn_core_cancel(it->core, &call.operation);
    fake_answer_all(it, MN_VERB_SEAL, 4);
    expect_end(&call, MN_CANCELLED, NULL);
}

/* A push with one row in each of the tiles [first, first + count). */
static void push(fake *it, fake_call *call, mn_table *table, uint32_t part, uint32_t first,
                 uint32_t count)
{
    fake_call_init(it, call, MN_OP_PUSH, 5000);
    call->operation.table = table;
    call->operation.step = 5;
    call->operation.part = part;
    call->operation.count = count;
    call->operation.indices = mn_u32(indices + first);
    call->operation.values = mn_f32(values);
    fake_submit(it, call);
}

static void pieces(uint32_t plants, uint64_t sealed)
{
    fake it;
    fake_call failed, call;
    mn_table *table;
    first_rows();
    world(&it, 2, &rows, plants, &table);
    push(&it, &failed, table, 0, 0, 1); /* tile 0: a piece at shard 0 */
    fake_refuse(&it, fake_take(&it, MN_VERB_PUSH, 0), MN_BUSY, "move");
    fake_pass(&it, 6000);
    expect_end(&failed, MN_BUSY, "move");
    seal_says(&it, MN_PIECES_OWED, MN_PIECES_OWED);
    push(&it, &call, table, 1, 2, 1); /* tile 2: at shard 1, then at shard 0 */
    fake_refuse(&it, fake_take(&it, MN_VERB_PUSH, 1), MN_MOVED, "moved");
    list_two(&it, holding(0, 3, 1), holding(3, 1, 1));
    fake_answer(&it, fake_take(&it, MN_VERB_PUSH, 0));
    expect_end(&call, MN_OK, NULL);
    seal_says(&it, MN_PIECES_OWED, MN_PIECES_OWED); /* no number fits while a call is owed */
    push(&it, &failed, table, 0, 0, 1);
    fake_answer(&it, fake_take(&it, MN_VERB_PUSH, 0));
    expect_end(&failed, MN_OK, NULL);
    seal_says(&it, 2, sealed);
    push(&it, &failed, table, 0, 0, 1); /* made once more, in vain: all of it is there */
    fake_refuse(&it, fake_take(&it, MN_VERB_PUSH, 0), MN_INVALID, "payload");
    expect_end(&failed, MN_INVALID, "payload");
    seal_says(&it, 2, sealed);
    fake_destroy(&it);
}

static void calls_that_failed_are_owed(void **state)
{
    (void)state;
    pieces(0, 0);
}

/* The planted bug keeps the piece that shard 1 never got: the check above can fail. */
static void a_planted_bug_keeps_old_counts(void **state)
{
    (void)state;
    pieces(MN_CORE_PLANT_OLD_CUT, 1);
}

static mn_exchange *take_push(fake *it, uint32_t part)
{
    for (uint32_t i = 0; i < it->started_count; i++) {
        mn_exchange *exchange = it->started[i].exchange;
        if (exchange && exchange->request.verb == MN_VERB_PUSH && exchange->request.part == part)
            return exchange;
    }
    fail_msg("no push of part %u", part);
    return NULL;
}

/* The `place`-th unanswered one, in the order in which they were sent. */
static mn_exchange *take_list(fake *it, uint32_t shard, uint32_t place)
{
    for (uint32_t i = 0; i < it->started_count; i++) {
        mn_exchange *exchange = it->started[i].exchange;
        if (exchange && exchange->request.verb == MN_VERB_LIST && it->started[i].shard == shard &&
            !place--)
            return exchange;
    }
    fail_msg("no List at shard %u", shard);
    return NULL;
}

/* What another call has learnt since, and its pieces, are not given up for it. */
static void an_old_list_changes_nothing(void **state)
{
    (void)state;
    fake it;
    fake_call early, late;
    mn_table *table;
    first_rows();
    world(&it, 2, &rows, 0, &table);
    push(&it, &early, table, 0, 0, 2);
    push(&it, &late, table, 1, 0, 2);
    fake_refuse(&it, take_push(&it, 0), MN_MOVED, "moved");
    fake_refuse(&it, take_push(&it, 1), MN_MOVED, "moved");
    for (uint32_t shard = 0; shard < 2; shard++) { /* of the early one */
        mn_table_info info = shard ? holding(1, 3, 7) : holding(0, 1, 7);
        mn_exchange *list = take_list(&it, shard, 0);
        list->reply.tables = &info;
        list->reply.table_count = 1;
        fake_answer(&it, list);
    }
    fake_pass(&it, 1000);
    fake_answer_all(&it, MN_VERB_PUSH, 4);
    expect_end(&early, MN_OK, NULL);
    list_two(&it, holding(0, 2, 0), holding(2, 2, 0));
    assert_int_equal(fake_open(&it, MN_VERB_PUSH), 0);
    list_two(&it, holding(0, 1, 7), holding(1, 3, 7));
    fake_answer_all(&it, MN_VERB_PUSH, 4);
    expect_end(&late, MN_OK, NULL);
    seal_says(&it, 2, 2);
    fake_destroy(&it);
}

/* When shares change, a place that comes free is not for pieces that were cut before. */
static void no_old_piece_goes_out(void **state)
{
    (void)state;
    fake it;
    fake_call calls[4];
    mn_table *table;
    first_rows();
    world(&it, 2, &rows, 0, &table);
    for (uint32_t part = 0; part < 4; part++)
        push(&it, &calls[part], table, part, 0, 2);
    assert_int_equal(fake_open(&it, MN_VERB_PUSH), 2);      /* both places */
    fake_refuse(&it, take_push(&it, 1), MN_BUSY, "move");   /* keeps its place, waits */
    fake_refuse(&it, take_push(&it, 0), MN_MOVED, "moved"); /* leaves it to part 2 */
    answer_list(&it, 0, holding(0, 1, 1));
    answer_list(&it, 1, holding(1, 3, 1));
    assert_int_equal(fake_open(&it, MN_VERB_PUSH), 1);
    fake_refuse(&it, take_push(&it, 2), MN_CANCELLED, "call");
    for (int i = 0; i < 8; i++) {
        fake_pass(&it, 10);
        fake_answer_all(&it, MN_VERB_PUSH, 4);
    }
    for (uint32_t part = 0; part < 4; part++)
        expect_end(&calls[part], MN_OK, NULL);
    seal_says(&it, 4, 4);
    fake_destroy(&it);
}

/* An incarnation that joins begins without tiles that it would know of: in a new epoch tiles lie as
 * they are made. */
static void a_new_epoch_forgets_moves(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    mn_table *table;
    world(&it, 2, &columns, 0, &table);
    refuse_bag(&it, &call, table, 60000);
    list_two(&it, holding(0, 1, 7), holding(1, 3, 7));
    mn_exchange *old = fake_take(&it, MN_VERB_BAG, 0);
    fake_call join;
    fake_call_init(&it, &join, MN_OP_JOIN, 1000);
    fake_submit(&it, &join);
    mn_exchange *assign = fake_take(&it, MN_VERB_JOIN, 0);
    assign->reply.incarnation = 4;
    assign->reply.map_epoch = 2 * FAKE_EPOCH;
    assign->reply.step = 4;
    fake_answer(&it, assign);
    fake_answer_all(&it, MN_VERB_JOIN, 4);
    fake_answer_all(&it, MN_VERB_JOIN, 4);
    expect_end(&join, MN_OK, NULL);
    fake_call later;
    data(&it, &later, MN_OP_PUSH, table, 60000);
    const mn_request *push = &fake_take(&it, MN_VERB_PUSH, 1)->request;
    assert_true(push->tile_first == 2 && push->tile_count == 2 && push->moved == 0);
    static const float part[COUNT * DIM];
    fake_answer_bytes(&it, old, part, COUNT * DIM / TILES * sizeof *part);
    fake_refuse(&it, fake_take(&it, MN_VERB_BAG, 1), MN_CANCELLED, "call");
    expect_end(&call, MN_EPOCH, "map_epoch"); /* of tiles that are no more */
    fake_answer_all(&it, MN_VERB_PUSH, 4);
    expect_end(&later, MN_OK, NULL);
    fake_destroy(&it);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_read_finds_the_tiles),
        cmocka_unit_test(sums_begin_again),
        cmocka_unit_test(shards_have_to_agree),
        cmocka_unit_test(a_move_that_waits_is_not_waited_for),
        cmocka_unit_test(lists_are_looked_at),
        cmocka_unit_test(a_tile_that_nobody_holds_is_lost),
        cmocka_unit_test(tiles_that_stay_apart_are_lost),
        cmocka_unit_test(finding_survives_every_allocation),
        cmocka_unit_test(an_overdue_move_is_cancelled),
        cmocka_unit_test(an_overdue_move_that_was_made_is_finished),
        cmocka_unit_test(calls_that_failed_are_owed),
        cmocka_unit_test(a_planted_bug_keeps_old_counts),
        cmocka_unit_test(an_old_list_changes_nothing),
        cmocka_unit_test(no_old_piece_goes_out),
        cmocka_unit_test(a_new_epoch_forgets_moves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
