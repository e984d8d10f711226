/* Where a table's tiles are (STEPS.md "Move"). A shard that answers MOVED no longer holds what a
 * call names, or waits for a move that nobody goes on with: what all shards hold is asked until
 * they agree, and the call begins again. */
#include "client_private.h"

#include <inttypes.h>
#include <string.h>

enum mn_status mn_moves_create(mn_task *task)
{
    mn_core *core = task->core;
    if (task->moves)
        return MN_OK;
    mn_moves *moves = mn_core_allocate(core, sizeof *moves);
    if (moves)
        moves->holdings = mn_core_allocate(core, core->shards * sizeof *moves->holdings);
    if (moves && moves->holdings) {
        task->moves = moves;
        return MN_OK;
    }
    mn_core_release(core, moves, sizeof *moves);
    return mn_fail(&task->error, MN_NO_MEMORY, "move", "no memory to ask where tiles are");
}

void mn_moves_destroy(mn_task *task)
{
    mn_core *core = task->core;
    mn_moves *moves = task->moves;
    if (!moves)
        return;
    mn_core_release(core, moves->read.bytes, moves->read.max);
    mn_core_release(core, moves->sent.bytes, moves->sent.max);
    mn_core_release(core, moves->holdings, core->shards * sizeof *moves->holdings);
    mn_core_release(core, moves, sizeof *moves);
    task->moves = NULL;
}

/* ---- A move is ended: made where its tiles have been taken, else cancelled ---- */

void mn_fill_move(mn_task *task, mn_slot *slot, enum mn_move_phase phase)
{
    const mn_moving *move = &task->moves->move;
    mn_request *request = &slot->exchange.request;
    request->move_phase = phase;
    request->move = move->number;
    request->table = move->table;
    request->move_from = move->from;
    request->move_to = move->to;
    request->tile_first = move->tile_first;
    request->tile_count = move->tile_count;
}

static void fill_release(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the old shard's */
    mn_fill_move(task, slot, MN_MOVE_RELEASE);
}

static void fill_done(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the same for every shard */
    mn_fill_move(task, slot, MN_MOVE_DONE);
}

static void fill_cancel(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the same for every shard */
    mn_fill_move(task, slot, MN_MOVE_CANCEL);
}

/* One piece for every shard but the new one. */
static void begin_others(mn_task *task, const mn_phase *phase)
{
    mn_phase_begin(task, phase);
    for (uint32_t shard = 0; shard < task->core->shards; shard++)
        if (shard != task->moves->move.to)
            mn_lane_open(task, shard, 1);
    mn_phase_go(task);
}

static void complete_settled(mn_task *task) { task->moves->settled(task); }

static const mn_phase done_last_phase = {
    .verb = MN_VERB_MOVE, .fill = fill_done, .complete = complete_settled};

static void complete_done(mn_task *task)
{
    mn_phase_one(task, &done_last_phase, task->moves->move.to);
}

static const mn_phase done_phase = {
    .verb = MN_VERB_MOVE, .fill = fill_done, .complete = complete_done};

static void complete_release(mn_task *task) { begin_others(task, &done_phase); }

static const mn_phase release_phase = {
    .verb = MN_VERB_MOVE, .fill = fill_release, .complete = complete_release};

void mn_move_finish(mn_task *task) { mn_phase_one(task, &release_phase, task->moves->move.from); }

static const mn_phase cancel_others_phase = {
    .verb = MN_VERB_MOVE, .fill = fill_cancel, .complete = complete_settled};

static enum mn_status answered_cancel(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the new shard's */
    task->moves->taken = slot->exchange.reply.move_taken;
    return MN_OK;
}

static void complete_cancel(mn_task *task)
{
    if (task->moves->taken)
        mn_move_finish(task);
    else
        begin_others(task, &cancel_others_phase);
}

static const mn_phase cancel_phase = {.verb = MN_VERB_MOVE,
                                      .fill = fill_cancel,
                                      .answered = answered_cancel,
                                      .complete = complete_cancel};

void mn_move_settle(mn_task *task)
{
    task->moves->taken = false;
    mn_phase_one(task, &cancel_phase, task->moves->move.to);
}

/* ---- What the shards hold ---- */

/* The table whose tiles the task has to know; NULL: it only waits for moves of whichever. */
static mn_table *table_of(const mn_task *task) { return task->operation->table; }

/* Data calls wait for moves of their table alone. */
static bool concerns(const mn_task *task, const mn_table_info *info)
{
    const mn_operation *operation = task->operation;
    bool data = operation->kind >= MN_OP_FETCH && operation->kind <= MN_OP_STORE;
    return info->move && (!data || info->table == operation->table->id);
}

/* The one with the least number; others have their turn when that one has ended. */
static enum mn_status note_standing(mn_task *task, const mn_lane *lane, const mn_table_info *info)
{
    mn_moves *moves = task->moves;
    mn_moving *standing = &moves->standing;
    uint32_t shards = task->core->shards, from = info->move_from, to = info->move_to;
    if (from >= shards || to >= shards || (from + 1 != to && to + 1 != from))
        return mn_fail(&task->error, MN_CORRUPT, "move_to",
                       "shard %u tells of a move from shard %u to %u", lane->shard, from, to);
    if (standing->number && standing->number < info->move)
        return MN_OK;
    moves->overdue = info->move_overdue && (standing->number != info->move || moves->overdue);
    *standing = (mn_moving){.number = info->move, .table = info->table, .from = from, .to = to};
    return MN_OK;
}

static enum mn_status answered_list(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    const mn_reply *reply = &slot->exchange.reply;
    const mn_table *table = table_of(task);
    mn_holding *holding = &task->moves->holdings[lane->shard];
    enum mn_status status = MN_OK;
    for (uint32_t i = 0; i < reply->table_count && !status; i++) {
        const mn_table_info *info = &reply->tables[i];
        if (concerns(task, info))
            status = note_standing(task, lane, info);
        if (status || !table || info->table != table->id)
            continue;
        *holding = (mn_holding){info->tile_first, info->tile_count, info->moved, true};
        if ((uint64_t)info->tile_first + info->tile_count > table->geometry.tiles)
            status = mn_fail(&task->error, MN_CORRUPT, "tile_count",
                             "shard %u tells of tiles [%u, %" PRIu64 ") of a table of %u",
                             lane->shard, info->tile_first,
                             (uint64_t)info->tile_first + info->tile_count, table->geometry.tiles);
    }
    return status;
}

/* A tile that no shard told of; the table's tiles: there is none. */
static uint32_t orphan(const mn_task *task, const mn_table *table)
{
    const mn_holding *holdings = task->moves->holdings;
    uint32_t tile = 0, shards = task->core->shards;
    for (uint32_t shard = 0; shard < shards && tile < table->geometry.tiles; shard++) {
        if (tile < holdings[shard].tile_first ||
            tile - holdings[shard].tile_first >= holdings[shard].tile_count)
            continue;
        tile = holdings[shard].tile_first + holdings[shard].tile_count;
        shard = UINT32_MAX; /* from the first one on: whoever has the next tile */
    }
    return tile;
}

/* Each tile once, ascending with the shards that hold any, which are the first ones; all after the
 * same move, and none before the one that is known: such an answer was long under way. */
static bool agree(const mn_task *task, const mn_table *table)
{
    const mn_holding *holdings = task->moves->holdings;
    uint32_t next = 0;
    if (holdings[0].moved < table->moved && table->map_epoch == task->core->epoch)
        return false;
    for (uint32_t shard = 0; shard < task->core->shards; shard++) {
        const mn_holding *it = &holdings[shard];
        bool first = shard == 0 || holdings[shard - 1].tile_count > 0;
        if (it->moved != holdings[0].moved ||
            (it->tile_count && (it->tile_first != next || !first)))
            return false;
        next += it->tile_count;
    }
    return next == table->geometry.tiles;
}

/* Where a shard has not got the table, it says what that means to whoever calls it. */
static bool all_told(const mn_task *task)
{
    for (uint32_t shard = 0; shard < task->core->shards; shard++)
        if (!task->moves->holdings[shard].told)
            return false;
    return true;
}

static void ask(mn_task *task);

static void ask_later(mn_task *task)
{
    mn_error why = task->last;
    mn_task_pause(task, ask, &why);
}

/* Nobody goes on with it, or a mover waits for it to end. Else it may itself wait for steps that
 * need this call. */
static bool in_the_way(mn_task *task)
{
    mn_moves *moves = task->moves;
    const mn_moving *it = &moves->standing;
    const bool waits = task->operation->kind == MN_OP_MOVE;
    if (!it->number || (!moves->overdue && !waits))
        return false;
    moves->apart_digest = 0;
    (void)mn_fail(&task->last, MN_MOVED, "move",
                  "move %" PRIu64 ", from shard %u to %u, has not ended", it->number, it->from,
                  it->to);
    moves->move = *it;
    moves->settled = ask_later;
    if (moves->overdue)
        mn_move_settle(task);
    else
        ask_later(task);
    return true;
}

/* Of what the shards hold; never 0. */
static uint64_t digest_of(const mn_task *task)
{
    uint64_t digest = 0;
    for (uint32_t shard = 0; shard < task->core->shards; shard++) {
        const mn_holding *it = &task->moves->holdings[shard];
        const uint64_t told[] = {it->tile_first, it->tile_count, it->moved};
        digest = mn_checksum(told, sizeof told, digest);
    }
    return digest | 1;
}

static void lost(mn_task *task, const mn_table *table)
{
    const uint32_t tile = orphan(task, table);
    if (tile < table->geometry.tiles)
        mn_task_end(task, mn_fail(&task->error, MN_LOST, "tile_first",
                                  "no shard holds tile %u of \"%s\", and no move of it stands: "
                                  "load a saved group",
                                  tile, table->spec.name));
    else
        mn_task_end(task, mn_fail(&task->error, MN_LOST, "moved",
                                  "the shards hold tiles of \"%s\" twice, or have forgotten a "
                                  "move, and none of it stands: load a saved group",
                                  table->spec.name));
}

/* The table's shares become what the shards told. False: they have to be asked again, or the task
 * has ended. They may differ because a move was made between their answers; then not twice in the
 * same way. */
static bool adopt(mn_task *task, mn_table *table)
{
    mn_moves *moves = task->moves;
    if (agree(task, table)) {
        mn_table_remap(table, moves->holdings);
        return true;
    }
    const uint64_t before = moves->apart_digest;
    moves->apart_digest = moves->standing.number ? 0 : digest_of(task);
    if (before && before == moves->apart_digest) {
        lost(task, table);
        return false;
    }
    (void)mn_fail(&task->last, MN_MOVED, "tile_first",
                  "the shards do not agree on who holds which tile of \"%s\"", table->spec.name);
    ask_later(task);
    return false;
}

static void complete_list(mn_task *task)
{
    mn_table *table = table_of(task);
    if (in_the_way(task))
        return;
    if (table && all_told(task) && !adopt(task, table))
        return;
    mn_error why = task->last;
    mn_task_pause(task, task->moves->again, &why);
}

static const mn_phase list_phase = {
    .verb = MN_VERB_LIST, .answered = answered_list, .complete = complete_list};

static void ask(mn_task *task)
{
    mn_moves *moves = task->moves;
    moves->standing.number = 0;
    memset(moves->holdings, 0, task->core->shards * sizeof *moves->holdings);
    mn_phase_all(task, &list_phase);
}

/* Another call may have learnt it since this one was cut. */
static void learn(mn_task *task)
{
    const mn_table *table = table_of(task);
    if (table && task->data.units && task->data.moved != table->moved)
        task->moves->again(task);
    else
        ask(task);
}

void mn_moved(mn_task *task, void (*again)(mn_task *task))
{
    enum mn_status status = mn_moves_create(task);
    if (status) {
        mn_task_end(task, status);
        return;
    }
    task->moves->again = again;
    task->moves->apart_digest = 0;
    mn_task_restart(task, learn);
}
