/* Moves tiles of a table to a neighbour shard while training goes on (STEPS.md "Move"). Whatever
 * fails before the new shard has taken them is cancelled, as far as the call's time allows; what is
 * left standing others settle (moved.c). */
#include "client_private.h"

#include <inttypes.h>
#include <string.h>

static const uint64_t ns_per_s = 1000000000;

enum {
    CHUNK_BYTES_MAX = MN_MESSAGE_BYTES_MAX - MN_HEADER_BYTES_MAX,
    NUMBERS = 1 << 30, /* above the last move's: two movers do not draw the same one */
    HOLD_AGAIN_S = 2,  /* far less than shards wait before they call a move overdue */
    SETTLE_S_MAX = 5,  /* kept of the call's time for cancelling, or a part of it: */
    SETTLE_PART = 4
};

static uint64_t now_ns(const mn_task *task)
{
    return task->core->env.now_ns(task->core->env.context);
}

/* Little enough is left that the move must be cancelled now. */
static bool late(mn_task *task)
{
    const uint64_t now = now_ns(task), deadline_ns = task->operation->deadline_ns;
    uint64_t left_ns = deadline_ns > now ? deadline_ns - now : 0;
    uint64_t kept_ns = task->moves->kept_ns;
    if (left_ns > kept_ns)
        return false;
    if (!task->moves->failure.status)
        task->moves->failure = task->last;
    if (!task->moves->failure.status)
        (void)mn_fail(&task->moves->failure, MN_DEADLINE, "deadline",
                      "the call's time ran out before %" PRIu64 " of %" PRIu64 " rows were copied",
                      task->operation->rows_moved, task->operation->rows_due);
    return true;
}

/* ---- The end of it ---- */

static void begin(mn_task *task);

static void settled(mn_task *task)
{
    mn_moves *moves = task->moves;
    if (moves->taken) {
        task->operation->answered_step = moves->step - 1;
        mn_task_done(task);
    } else if (moves->anew && !late(task)) {
        mn_error why = moves->failure;
        moves->failure = (mn_error){0};
        mn_task_pause(task, begin, &why);
    } else {
        task->error = moves->failure;
        mn_task_end(task, task->error.status);
    }
}

/* Another shard's answer may show that the tiles have been taken all the same. */
static void give_up(mn_task *task)
{
    task->moves->settled = settled;
    mn_move_settle(task);
}

/* What a retry of the same request may mend is left to the exchange. In the way may be another
 * move, or one that settled this one, or a save. */
static bool refused_move(mn_task *task, mn_lane *lane, const mn_reply *reply)
{
    mn_moves *moves = task->moves;
    bool way = reply->status == MN_MOVED || reply->status == MN_CONFLICT;
    if (mn_status_retryable(reply->status) && !way)
        return false;
    mn_error_of_shard(&moves->failure, lane->shard, way ? MN_MOVED : reply->status, reply);
    moves->anew = moves->anew || way;
    return true;
}

/* ---- The new shard takes the tiles; from there on the move is made ---- */

static void copy(mn_task *task);

static void fill_take(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the new shard's */
    mn_fill_move(task, slot, MN_MOVE_TAKE);
    slot->exchange.request.count = task->moves->written;
}

/* The new shard copies the rows that it has, which may take long: other shards are to hear of the
 * move meanwhile. */
static bool refused_take(mn_task *task, mn_lane *lane, const mn_reply *reply)
{
    if (reply->status != MN_BUSY)
        return refused_move(task, lane, reply);
    mn_error_of_shard(&task->last, lane->shard, MN_BUSY, reply);
    task->moves->busy = true;
    return true;
}

static void complete_take(mn_task *task)
{
    mn_moves *moves = task->moves;
    if (moves->failure.status) {
        give_up(task);
    } else if (moves->busy) {
        mn_error why = task->last;
        moves->busy = false;
        mn_task_pause(task, copy, &why);
    } else {
        moves->taken = true;
        moves->settled = settled;
        mn_move_finish(task);
    }
}

static const mn_phase take_phase = {
    .verb = MN_VERB_MOVE, .fill = fill_take, .refused = refused_take, .complete = complete_take};

static void take(mn_task *task) { mn_phase_one(task, &take_phase, task->moves->move.to); }

/* The planted bug: who dies between the two loses the tiles. */
static void fill_release(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the old shard's */
    mn_fill_move(task, slot, MN_MOVE_RELEASE);
}

static const mn_phase release_first_phase = {
    .verb = MN_VERB_MOVE, .fill = fill_release, .refused = refused_move, .complete = take};

/* ---- A chunk of rows is read at the old shard while the one before it is written */

static void hold(mn_task *task);

static void begin_rows(mn_task *task)
{
    mn_moves *moves = task->moves;
    task->operation->rows_moved = moves->written = 0;
    moves->read.count = 0;
    moves->all_read = false;
}

static bool writes(const mn_task *task, const mn_lane *lane)
{
    return lane->shard == task->moves->move.to;
}

static void fill_carry(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    const mn_moves *moves = task->moves;
    if (writes(task, lane)) {
        mn_fill_move(task, slot, MN_MOVE_WRITE);
        slot->exchange.request.position = moves->written;
        mn_fill_payload(slot, moves->sent.bytes, moves->sent.count);
    } else {
        mn_fill_move(task, slot, MN_MOVE_READ);
        slot->exchange.request.position = task->operation->rows_moved;
    }
}

/* A failure waits until the phase is complete: the move is to be cancelled. */
static bool take_chunk(mn_task *task, const mn_payload *payload)
{
    mn_core *core = task->core;
    mn_moves *moves = task->moves;
    mn_carried *read = &moves->read;
    if (payload->bytes > read->max) {
        mn_core_release(core, read->bytes, read->max);
        read->bytes = mn_core_allocate(core, payload->bytes);
        read->max = read->bytes ? payload->bytes : 0;
    }
    if (payload->bytes && !read->bytes) {
        (void)mn_fail(&moves->failure, MN_NO_MEMORY, "move", "no memory for %" PRIu64 " bytes",
                      payload->bytes);
        return false;
    }
    mn_cursor cursor;
    mn_cursor_init(&cursor, payload, 0);
    if (payload->bytes)
        mn_cursor_read(&cursor, read->bytes, payload->bytes);
    read->count = payload->bytes;
    return true;
}

static void answered_read(mn_task *task, const mn_lane *lane, const mn_reply *reply)
{
    mn_moves *moves = task->moves;
    mn_operation *operation = task->operation;
    uint64_t from = operation->rows_moved, to = reply->move_position, rows = reply->move_rows;
    if (reply->payload.bytes > CHUNK_BYTES_MAX || to > rows || to < from ||
        (to == from && to < rows)) {
        (void)mn_fail(&moves->failure, MN_CORRUPT, "move_position",
                      "shard %u answered %" PRIu64 " bytes of rows up to %" PRIu64 " of %" PRIu64
                      ", asked from %" PRIu64,
                      lane->shard, reply->payload.bytes, to, rows, from);
        return;
    }
    if (!take_chunk(task, &reply->payload))
        return;
    operation->rows_moved = to;
    operation->rows_due = rows;
    moves->all_read = to == rows;
}

static enum mn_status answered_carry(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    if (writes(task, lane))
        task->moves->written = slot->exchange.reply.move_position;
    else
        answered_read(task, lane, &slot->exchange.reply);
    return MN_OK;
}

static const mn_phase carry_phase = {.verb = MN_VERB_MOVE,
                                     .fill = fill_carry,
                                     .answered = answered_carry,
                                     .refused = refused_move,
                                     .complete = copy};

static void carry(mn_task *task)
{
    mn_moves *moves = task->moves;
    const mn_carried free = moves->sent;
    moves->sent = moves->read;
    moves->read = (mn_carried){free.bytes, 0, free.max};
    mn_phase_begin(task, &carry_phase);
    if (moves->sent.count)
        mn_lane_open(task, moves->move.to, 1);
    if (!moves->all_read)
        mn_lane_open(task, moves->move.from, 1);
    mn_phase_go(task);
}

/* The next chunk, then the end. Now and then every shard is told that the move goes on. */
static void copy(mn_task *task)
{
    const mn_moves *moves = task->moves;
    if (moves->failure.status || late(task))
        give_up(task);
    else if (now_ns(task) - moves->held_ns > HOLD_AGAIN_S * ns_per_s)
        hold(task);
    else if (!moves->all_read || moves->read.count)
        carry(task);
    else if (task->core->options.plants & MN_CORE_PLANT_RELEASE_FIRST)
        mn_phase_one(task, &release_first_phase, moves->move.from);
    else
        take(task);
}

/* ---- Changes are held everywhere, from the same step on ---- */

static void fill_hold(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the same for every shard */
    mn_fill_move(task, slot, MN_MOVE_HOLD);
    slot->exchange.request.context.step = task->moves->step;
}

static enum mn_status answered_hold(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    mn_moves *moves = task->moves;
    const mn_reply *reply = &slot->exchange.reply;
    if (reply->move != moves->move.number || reply->move_step == 0)
        (void)mn_fail(&moves->failure, MN_CORRUPT, "move_step",
                      "shard %u holds from step %" PRIu64 " on for move %" PRIu64
                      ", asked for %" PRIu64,
                      lane->shard, reply->move_step, reply->move, moves->move.number);
    if (reply->step + 1 < reply->move_step) {
        moves->apart = true;
        (void)mn_fail(&task->last, MN_DEADLINE, "step",
                      "shard %u waits for step %" PRIu64 " to be committed; it stands at %" PRIu64,
                      lane->shard, reply->move_step - 1, reply->step);
    }
    moves->apart = moves->apart || reply->move_step != moves->step;
    moves->step_next = reply->move_step > moves->step_next ? reply->move_step : moves->step_next;
    return MN_OK;
}

/* A save may take long: nobody waits for a move that waits for it. Another move may have ended
 * since the tiles were chosen. */
static bool refused_hold(mn_task *task, mn_lane *lane, const mn_reply *reply)
{
    mn_moves *moves = task->moves;
    bool others = reply->status == MN_INVALID && !strcmp(reply->error.field, "tile_first");
    if (reply->status != MN_BUSY && !others)
        return refused_move(task, lane, reply);
    mn_error_of_shard(&moves->failure, lane->shard, others ? MN_MOVED : MN_BUSY, reply);
    moves->anew = true;
    return true;
}

static void complete_hold(mn_task *task)
{
    mn_moves *moves = task->moves;
    bool apart = moves->apart;
    if (moves->step != moves->step_next)
        begin_rows(task); /* the new shard has thrown away what it had */
    moves->step = moves->step_next;
    if (moves->failure.status || late(task)) {
        give_up(task);
    } else if (apart) {
        mn_error why = task->last;
        mn_task_pause(task, hold, &why);
    } else {
        copy(task);
    }
}

static const mn_phase hold_phase = {.verb = MN_VERB_MOVE,
                                    .fill = fill_hold,
                                    .answered = answered_hold,
                                    .refused = refused_hold,
                                    .complete = complete_hold};

static void hold(mn_task *task)
{
    mn_moves *moves = task->moves;
    moves->apart = false;
    moves->held_ns = now_ns(task);
    mn_phase_all(task, &hold_phase);
}

/* ---- Its number, and the tiles ---- */

static void fill_probe(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the same for every shard */
    mn_fill_move(task, slot, MN_MOVE_HOLD);
}

static enum mn_status answered_probe(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the highest of any */
    mn_moves *moves = task->moves;
    const mn_reply *reply = &slot->exchange.reply;
    uint64_t known = reply->move > reply->move_last ? reply->move : reply->move_last;
    moves->number_next = known >= moves->number_next ? known + 1 : moves->number_next;
    return MN_OK;
}

static void complete_probe(mn_task *task)
{
    const mn_env *env = &task->core->env;
    task->moves->move.number = task->moves->number_next + env->random(env->context) % NUMBERS;
    hold(task);
}

/* Move 0 is none: each shard tells which have been. */
static const mn_phase probe_phase = {.verb = MN_VERB_MOVE,
                                     .fill = fill_probe,
                                     .answered = answered_probe,
                                     .complete = complete_probe};

static void start(mn_task *task)
{
    mn_operation *operation = task->operation;
    mn_moves *moves = task->moves;
    const mn_table *table = operation->table;
    const mn_share *share = &table->shares[operation->shard];
    if (operation->count >= share->tile_count) {
        mn_task_end(task, mn_fail(&task->error, MN_INVALID, "tiles",
                                  "%" PRIu64 " cannot go: shard %u holds %u of the tiles of "
                                  "\"%s\", and one has to stay",
                                  operation->count, operation->shard, share->tile_count,
                                  table->spec.name));
        return;
    }
    uint32_t tiles = (uint32_t)operation->count, up = operation->to > operation->shard;
    moves->move =
        (mn_moving){.table = table->id,
                    .from = operation->shard,
                    .to = operation->to,
                    .tile_first = share->tile_first + (up ? share->tile_count - tiles : 0),
                    .tile_count = tiles};
    moves->step = moves->step_next = moves->number_next = operation->rows_due = 0;
    moves->anew = false;
    begin_rows(task);
    mn_phase_all(task, &probe_phase);
}

static void begin(mn_task *task) { mn_moved(task, start); }

static enum mn_status check_move(mn_task *task)
{
    const mn_operation *operation = task->operation;
    uint32_t shards = task->core->shards, from = operation->shard, to = operation->to;
    if (from >= shards)
        return mn_fail(&task->error, MN_INVALID, "from", "%u is not one of the %u shards", from,
                       shards);
    if (to >= shards)
        return mn_fail(&task->error, MN_INVALID, "to", "%u is not one of the %u shards", to,
                       shards);
    if (to != from + 1 && to + 1 != from)
        return mn_fail(
            &task->error, MN_INVALID, "to",
            "%u is not a neighbour of shard %u: tiles go to the shard before it or after "
            "it",
            to, from);
    if (operation->count == 0)
        return mn_fail(&task->error, MN_INVALID, "tiles", "there are none to move");
    return MN_OK;
}

void mn_begin_move(mn_task *task)
{
    enum mn_status status = check_move(task);
    if (!status)
        status = mn_moves_create(task);
    if (status) {
        mn_task_end(task, status);
        return;
    }
    mn_moves *moves = task->moves;
    uint64_t now = now_ns(task), deadline_ns = task->operation->deadline_ns;
    moves->kept_ns = (deadline_ns > now ? deadline_ns - now : 0) / SETTLE_PART;
    if (moves->kept_ns > SETTLE_S_MAX * ns_per_s)
        moves->kept_ns = SETTLE_S_MAX * ns_per_s;
    mn_table_follow(task->operation->table);
    begin(task);
}
