/* The client that moves tiles, against a scripted transport (STEPS.md "Move"). */
#include "fake.h"
#include "harness.h"

#include <string.h>

enum { TILES = 4, ROWS = 100, STEP = 5, MOVED_ROWS = ROWS / TILES };

static const mn_table_spec rows = {.name = "t",
                                   .rows = ROWS,
                                   .dim = 64,
                                   .split = MN_ROWS,
                                   .tiles = TILES,
                                   .optimizer = {MN_OPTIMIZER_SGD, 0, 0, 0, MN_F32, false}};

static void answer_list(fake *it, uint32_t shard, uint32_t first, uint32_t count, uint64_t moved)
{
    mn_table_info info = {.table = 9, .tile_first = first, .tile_count = count, .moved = moved};
    mn_exchange *list = fake_take(it, MN_VERB_LIST, shard);
    list->reply.step = 4;
    list->reply.tables = &info;
    list->reply.table_count = 1;
    fake_answer(it, list);
}

static mn_exchange *take_move(fake *it, uint32_t shard, enum mn_move_phase phase)
{
    mn_exchange *move = fake_take(it, MN_VERB_MOVE, shard);
    assert_int_equal(move->request.move_phase, phase);
    move->reply.step = 4;
    return move;
}

/* From `step` on, as this shard has it. */
static void answer_hold(fake *it, uint32_t shard, uint64_t asked, uint64_t step)
{
    mn_exchange *hold = take_move(it, shard, MN_MOVE_HOLD);
    assert_int_equal(hold->request.context.step, asked);
    hold->reply.move = hold->request.move;
    hold->reply.move_step = step;
    hold->reply.step = step - 1;
    fake_answer(it, hold);
}

/* Of the tile's rows, those up to `to`; what the chunk holds tells which it is. */
static void answer_read(fake *it, uint64_t from, uint64_t to)
{
    uint8_t chunk[64];
    memset(chunk, (int)from, sizeof chunk);
    mn_exchange *read = take_move(it, 0, MN_MOVE_READ);
    assert_int_equal(read->request.position, from);
    read->reply.move_position = to;
    read->reply.move_rows = MOVED_ROWS;
    fake_answer_bytes(it, read, chunk, sizeof chunk);
}

static void answer_write(fake *it, uint64_t from, uint64_t to)
{
    mn_exchange *write = take_move(it, 1, MN_MOVE_WRITE);
    const mn_payload *payload = &write->request.payload;
    assert_int_equal(write->request.position, from);
    assert_int_equal(payload->bytes, 64);
    assert_int_equal(((const uint8_t *)payload->spans[0].bytes)[63], from);
    write->reply.move_position = to;
    write->reply.move_rows = MOVED_ROWS;
    fake_answer(it, write);
}

/* The first shard holds the first tiles, the other one the others; nobody knows of a standing move.
 */
static void answer_lists(fake *it, uint32_t first_tiles, uint64_t moved)
{
    answer_list(it, 0, 0, first_tiles, moved);
    answer_list(it, 1, first_tiles, TILES - first_tiles, moved);
    fake_pass(it, 1000);
    for (uint32_t shard = 0; shard < 2; shard++)
        fake_answer(it, take_move(it, shard, MN_MOVE_HOLD)); /* no move has been */
}

/* Until changes are to be held. */
static void begin_holding(fake *it, fake_call *call)
{
    mn_core_options options = fake_options();
    fake_init(it, 2);
    fake_create(it, &options);
    fake_join(it);
    mn_table *table = fake_table(it, &rows);
    fake_call_init(it, call, MN_OP_MOVE, 60000);
    call->operation.table = table;
    call->operation.to = 1;
    call->operation.count = 1;
    fake_submit(it, call);
    answer_lists(it, 2, 0);
}

/* Until rows are to be read. */
static void begin_reading(fake *it, fake_call *call)
{
    begin_holding(it, call);
    answer_hold(it, 0, 0, STEP);
    answer_hold(it, 1, 0, STEP);
    fake_pass(it, 1000);
    answer_hold(it, 0, STEP, STEP);
    answer_hold(it, 1, STEP, STEP);
}

/* Until the tiles are to be taken: all rows lie in one chunk. */
static void begin(fake *it, fake_call *call)
{
    begin_reading(it, call);
    answer_read(it, 0, MOVED_ROWS);
    answer_write(it, 0, MOVED_ROWS);
    assert_int_equal(call->operation.rows_moved, MOVED_ROWS);
}

/* Up to its end. */
static void finish(fake *it, fake_call *call)
{
    mn_exchange *take = take_move(it, 1, MN_MOVE_TAKE);
    assert_int_equal(take->request.count, MOVED_ROWS);
    fake_answer(it, take);
    fake_answer(it, take_move(it, 0, MN_MOVE_RELEASE));
    fake_answer(it, take_move(it, 0, MN_MOVE_DONE));
    fake_answer(it, take_move(it, 1, MN_MOVE_DONE));
    assert_int_equal(call->done, 1);
    assert_int_equal(call->operation.status, MN_OK);
    fake_destroy(it);
}

static void refuse_take(fake *it)
{
    fake_refuse(it, take_move(it, 1, MN_MOVE_TAKE), MN_BUSY, "move");
}

/* The new shard may copy for minutes what it has. Who waits at the other one is not to find that
 * nobody goes on with the move. */
static void the_move_goes_on_while_rows_are_copied(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    begin(&it, &call);
    uint64_t heard_ns = it.now_ns;
    for (uint64_t ms = 0; ms < 20000; ms += 500) {
        if (fake_open(&it, MN_VERB_MOVE) == 2) {
            answer_hold(&it, 0, STEP, STEP);
            answer_hold(&it, 1, STEP, STEP);
            heard_ns = it.now_ns;
        }
        assert_true(it.now_ns - heard_ns < UINT64_C(5000000000)); /* half of what shards bear */
        refuse_take(&it);
        fake_pass(&it, 500);
    }
    if (fake_open(&it, MN_VERB_MOVE) == 2) {
        answer_hold(&it, 0, STEP, STEP);
        answer_hold(&it, 1, STEP, STEP);
    }
    finish(&it, &call);
}

/* A shard that forgot the move holds it from a later step on: what was put aside is of before. */
static void a_later_step_begins_the_rows_anew(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    begin(&it, &call);
    refuse_take(&it);
    fake_pass(&it, 3000);
    answer_hold(&it, 0, STEP, STEP + 1);
    answer_hold(&it, 1, STEP, STEP);
    assert_int_equal(call.operation.rows_moved, 0);
    fake_pass(&it, 1000);
    answer_hold(&it, 0, STEP + 1, STEP + 1);
    answer_hold(&it, 1, STEP + 1, STEP + 1);
    answer_read(&it, 0, MOVED_ROWS);
    answer_write(&it, 0, MOVED_ROWS);
    finish(&it, &call);
}

/* Two shards work at once; what is read waits until the chunk before it has been written. */
static void a_chunk_is_read_while_another_is_written(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    begin_reading(&it, &call);
    answer_read(&it, 0, 8);
    assert_int_equal(fake_open(&it, MN_VERB_MOVE), 2);
    answer_read(&it, 8, 16);
    assert_int_equal(fake_open(&it, MN_VERB_MOVE), 1);
    answer_write(&it, 0, 8);
    answer_write(&it, 8, 16);
    assert_int_equal(fake_open(&it, MN_VERB_MOVE), 1);
    answer_read(&it, 16, MOVED_ROWS);
    assert_int_equal(fake_open(&it, MN_VERB_MOVE), 1);
    answer_write(&it, 16, MOVED_ROWS);
    finish(&it, &call);
}

/* Nor is what was read before a raised hold written after it. */
static void a_chunk_of_before_a_later_step_is_dropped(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    begin_reading(&it, &call);
    answer_read(&it, 0, 8);
    answer_read(&it, 8, MOVED_ROWS);
    fake_pass(&it, 3000);
    answer_write(&it, 0, 8);
    answer_hold(&it, 0, STEP, STEP + 1);
    answer_hold(&it, 1, STEP, STEP);
    fake_pass(&it, 1000);
    answer_hold(&it, 0, STEP + 1, STEP + 1);
    answer_hold(&it, 1, STEP + 1, STEP + 1);
    assert_int_equal(fake_open(&it, MN_VERB_MOVE), 1);
    answer_read(&it, 0, MOVED_ROWS);
    answer_write(&it, 0, MOVED_ROWS);
    finish(&it, &call);
}

static void refused_hold_begins_anew(enum mn_status status, const char *field)
{
    fake it;
    fake_call call;
    begin_holding(&it, &call);
    const mn_exchange *hold = fake_take(&it, MN_VERB_MOVE, 0);
    assert_int_equal(hold->request.tile_first, 1);
    const uint64_t number = hold->request.move;
    fake_refuse(&it, take_move(&it, 0, MN_MOVE_HOLD), status, field);
    answer_hold(&it, 1, 0, STEP);
    mn_exchange *cancel = take_move(&it, 1, MN_MOVE_CANCEL);
    assert_int_equal(cancel->request.move, number);
    fake_answer(&it, cancel);
    fake_answer(&it, take_move(&it, 0, MN_MOVE_CANCEL));
    fake_pass(&it, 1000);
    answer_lists(&it, 3, 7);
    hold = fake_take(&it, MN_VERB_MOVE, 0);
    assert_true(hold->request.tile_first == 2 && hold->request.tile_count == 1);
    assert_int_not_equal(hold->request.move, number);
    answer_hold(&it, 0, 0, STEP);
    answer_hold(&it, 1, 0, STEP);
    fake_pass(&it, 1000);
    answer_hold(&it, 0, STEP, STEP);
    answer_hold(&it, 1, STEP, STEP);
    answer_read(&it, 0, MOVED_ROWS);
    answer_write(&it, 0, MOVED_ROWS);
    finish(&it, &call);
}

/* Another move has ended since the tiles were chosen; one stands, or a save runs. */
static void tiles_are_chosen_anew(void **state)
{
    (void)state;
    refused_hold_begins_anew(MN_INVALID, "tile_first");
    refused_hold_begins_anew(MN_BUSY, "move");
}

/* Other refusals are the call's end. */
static void a_refused_hold_is_the_end(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    begin_holding(&it, &call);
    fake_refuse(&it, take_move(&it, 0, MN_MOVE_HOLD), MN_UNSUPPORTED, "device");
    answer_hold(&it, 1, 0, STEP);
    fake_answer(&it, take_move(&it, 1, MN_MOVE_CANCEL));
    fake_answer(&it, take_move(&it, 0, MN_MOVE_CANCEL));
    assert_int_equal(call.done, 1);
    assert_int_equal(call.operation.status, MN_UNSUPPORTED);
    fake_destroy(&it);
}

/* With rows to copy, and little time left. */
static void begin_late(fake *it, fake_call *call)
{
    begin_reading(it, call);
    fake_pass(it, 50000);
    answer_read(it, 0, 8);
    answer_hold(it, 0, STEP, STEP);
    answer_hold(it, 1, STEP, STEP);
    fake_pass(it, 4000);
    answer_write(it, 0, 8);
    answer_read(it, 8, 16);
}

/* The new shard first: it may have been made to take the tiles. */
static void a_late_move_is_cancelled(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    begin_late(&it, &call);
    fake_answer(&it, take_move(&it, 1, MN_MOVE_CANCEL));
    assert_int_equal(call.done, 0);
    fake_answer(&it, take_move(&it, 0, MN_MOVE_CANCEL));
    assert_int_equal(call.done, 1);
    assert_int_equal(call.operation.status, MN_DEADLINE);
    assert_string_equal(call.operation.error.message,
                        "the call's time ran out before 16 of 25 rows were copied");
    fake_destroy(&it);
}

/* Whoever else went on with it: it is finished. */
static void a_late_move_that_was_made_is_finished(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    begin_late(&it, &call);
    mn_exchange *cancel = take_move(&it, 1, MN_MOVE_CANCEL);
    cancel->reply.move_taken = true;
    fake_answer(&it, cancel);
    fake_answer(&it, take_move(&it, 0, MN_MOVE_RELEASE));
    fake_answer(&it, take_move(&it, 0, MN_MOVE_DONE));
    fake_answer(&it, take_move(&it, 1, MN_MOVE_DONE));
    assert_int_equal(call.done, 1);
    assert_int_equal(call.operation.status, MN_OK);
    assert_int_equal(call.operation.answered_step, STEP - 1);
    fake_destroy(&it);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_move_goes_on_while_rows_are_copied),
        cmocka_unit_test(a_later_step_begins_the_rows_anew),
        cmocka_unit_test(a_chunk_is_read_while_another_is_written),
        cmocka_unit_test(a_chunk_of_before_a_later_step_is_dropped),
        cmocka_unit_test(tiles_are_chosen_anew),
        cmocka_unit_test(a_refused_hold_is_the_end),
        cmocka_unit_test(a_late_move_is_cancelled),
        cmocka_unit_test(a_late_move_that_was_made_is_finished),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
