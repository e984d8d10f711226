/* Move: the phases of a move at one shard, and what waits while it stands (STEPS.md "Move"). */
#include "move.h"

/* Numbers count up: one far ahead would use up all before it. */
static const uint64_t NUMBERS_AHEAD = UINT64_C(1) << 40;
/* A step to hold from that no shard of the group can have told. */
enum { STEPS_AHEAD = 64 };
/* Nobody went on with it for so long: who waits is told to finish it. A hint, no more. */
static const uint64_t OVERDUE_NS = UINT64_C(10000000000);

/* ---- What others ask */

bool mn_shard_move_overdue(const mn_shard *shard, const struct move *move)
{
    return shard->env.now_ns(shard->env.context) - move->asked_ns > OVERDUE_NS;
}

bool mn_shard_move_known(const struct group *group)
{
    return group->move_last || (group->move && group->move->taken);
}

bool mn_shard_move_open(const struct group *group) { return group->move && !group->move->taken; }

static enum mn_status stands(const mn_shard *shard, const struct move *move, mn_error *error)
{
    const bool overdue = mn_shard_move_overdue(shard, move);
    return mn_fail(
        error, overdue ? MN_MOVED : MN_BUSY, "move",
        "%" PRIu64 " of tiles [%u, %u) of table %" PRIu64 " from shard %u to %u stands here%s",
        move->number, move->tile_first, move->tile_first + move->tile_count, move->table,
        move->from, move->to, overdue ? ", and nobody goes on with it: finish or cancel it" : "");
}

enum mn_status mn_shard_move_waits(mn_shard *shard, const struct group *group, uint64_t table,
                                   uint64_t step, mn_error *error)
{
    const struct move *move = group->move;
    if (!move || move->taken || step < move->step || (table && table != move->table) ||
        shard->recovery || planted(shard, MN_PLANT_MOVE_NO_HOLD))
        return MN_OK;
    return stands(shard, move, error);
}

enum mn_status mn_shard_move_stands(mn_shard *shard, const struct group *group, mn_error *error)
{
    return group->move && !shard->recovery ? stands(shard, group->move, error) : MN_OK;
}

/* ---- Its end */

void mn_shard_move_release(mn_shard *shard, struct group *group)
{
    const mn_env *env = &shard->env;
    struct move *move = group->move;
    if (!move)
        return;
    mn_shard_transfer_deinit(shard, &move->transfer);
    mn_shard_table_deinit(shard, &move->aside);
    env->release(env->context, move, sizeof *move);
    group->move = NULL;
}

static void end(mn_shard *shard, struct group *group)
{
    if (group->move_last < group->move->number)
        group->move_last = group->move->number;
    mn_shard_move_release(shard, group);
}

void mn_shard_move_dropped(mn_shard *shard, struct group *group, uint64_t table)
{
    if (group->move && group->move->table == table)
        end(shard, group);
}

/* ---- HOLD */

static bool neighbours(const mn_shard *shard, uint32_t from, uint32_t to)
{
    const uint32_t shards = shard->options.shards;
    return from < shards && to < shards && (to == from + 1 || from == to + 1);
}

static enum mn_status check_shards(const mn_shard *shard, const mn_request *request,
                                   mn_error *error)
{
    const uint32_t from = request->move_from, to = request->move_to;
    const uint32_t shards = shard->options.shards;
    if (from >= shards)
        return mn_fail(error, MN_INVALID, "move_from", "%u is not below shards (%u)", from, shards);
    if (!neighbours(shard, from, to))
        return mn_fail(error, MN_INVALID, "move_to", "%u of %u shards is no neighbour of %u", to,
                       shards, from);
    return MN_OK;
}

/* Each shard's tiles stay one range, and neither shard is left, or was, without any. */
static enum mn_status check_tiles(const mn_shard *shard, const struct table *table,
                                  const mn_request *request, mn_error *error)
{
    const uint32_t own = shard->options.shard, first = request->tile_first;
    const uint64_t last = (uint64_t)first + request->tile_count;
    const uint64_t held = table->tile_first, held_end = held + table->tile_count;
    const bool up = request->move_to > request->move_from;
    bool right = first >= held_end || last <= held; /* at a shard that is in no part of it */
    if (!request->tile_count || last > table->geometry.tiles)
        return mn_fail(error, MN_INVALID, "tile_count", "tiles [%u, %" PRIu64 ") of a table of %u",
                       first, last, table->geometry.tiles);
    if (own == request->move_from)
        right = request->tile_count < table->tile_count && (up ? last == held_end : first == held);
    else if (own == request->move_to)
        right = table->tile_count && (up ? last == held : first == held_end);
    if (right)
        return MN_OK;
    return mn_fail(error, MN_INVALID, "tile_first",
                   "tiles [%u, %" PRIu64 ") cannot go from shard %u to %u: shard %u holds [%" PRIu64
                   ", %" PRIu64 "), tiles go from the end that is next to the other, and one stays",
                   first, last, request->move_from, request->move_to, own, held, held_end);
}

/* The first step from which on nothing of the table is staged here, and no seal. */
static uint64_t first_free(const mn_shard *shard, const struct group *group, uint64_t place)
{
    uint64_t first = group->committed + 1;
    for (uint32_t i = 0; i < shard->options.open_steps_max; i++) {
        const struct step *step = &group->steps[i];
        if (step->number >= first && (step->tables[place].first || step->seal_count))
            first = step->number + 1;
    }
    return first;
}

static enum mn_status log_hold(mn_shard *shard, struct group *group, const mn_request *request,
                               uint64_t step, mn_error *error)
{
    mn_request record = *request;
    record.context.step = step;
    return mn_shard_log_append(shard, group, &record, error);
}

static enum mn_status begin(mn_shard *shard, struct group *group, const struct table *table,
                            mn_call *call, mn_error *error)
{
    const mn_env *env = &shard->env;
    const mn_request *request = &call->request;
    const uint64_t first = first_free(shard, group, (uint64_t)(table - group->tables));
    struct move *move = env->allocate(env->context, sizeof *move);
    if (!move)
        return mn_fail(error, MN_NO_MEMORY, "move", "no memory for a move");
    *move = (struct move){.number = request->move,
                          .table = table->id,
                          .tile_first = request->tile_first,
                          .tile_count = request->tile_count,
                          .from = request->move_from,
                          .to = request->move_to,
                          .step = request->context.step > first ? request->context.step : first,
                          .asked_ns = env->now_ns(env->context)};
    enum mn_status status = mn_shard_move_prepare(shard, table, move, &move->aside, error);
    if (!status)
        status = log_hold(shard, group, request, move->step, error);
    if (status) {
        mn_shard_table_deinit(shard, &move->aside);
        env->release(env->context, move, sizeof *move);
        return status;
    }
    group->move = move;
    mn_shard_log(shard, 1, "move_hold", call,
                 "move=%" PRIu64 " table=%" PRIu64 " tiles=%u-%u from=%u to=%u step=%" PRIu64,
                 move->number, move->table, move->tile_first,
                 move->tile_first + move->tile_count - 1, move->from, move->to, move->step);
    return MN_OK;
}

/* Another shard can hold from a later step only. What was looked at may change then. */
static enum mn_status raise_step(mn_shard *shard, struct group *group, const struct table *table,
                                 const mn_request *request, mn_error *error)
{
    struct move *move = group->move;
    struct table aside = {0};
    const bool anew = move->looked || move->position;
    enum mn_status status = MN_OK;
    if (move->taken || request->context.step <= move->step)
        return MN_OK;
    if (anew)
        status = mn_shard_move_prepare(shard, table, move, &aside, error);
    if (!status)
        status = log_hold(shard, group, request, request->context.step, error);
    if (status) {
        mn_shard_table_deinit(shard, &aside);
        return status;
    }
    if (anew) {
        mn_shard_table_deinit(shard, &move->aside);
        move->aside = aside;
        move->looked = move->going = move->position = move->digest = 0;
    }
    move->step = request->context.step;
    return MN_OK;
}

static enum mn_status hold(mn_shard *shard, struct group *group, mn_call *call, mn_error *error)
{
    const mn_request *request = &call->request;
    struct table *table = mn_shard_table_find(shard, group, request->table, NULL);
    if (!table)
        return mn_shard_table_missing(shard, group, &request->context, request->table, "table",
                                      error);
    const uint64_t step = request->context.step;
    if (step > group->committed && step - group->committed > STEPS_AHEAD)
        return mn_fail(error, MN_INVALID, "step",
                       "%" PRIu64 " is far ahead: this shard is at step %" PRIu64, step,
                       group->committed);
    if (group->move && group->move->number == request->move)
        return raise_step(shard, group, table, request, error);
    enum mn_status status = check_shards(shard, request, error);
    if (!status)
        status = check_tiles(shard, table, request, error);
    if (!status && group->move)
        status = stands(shard, group->move, error);
    if (!status && shard->job)
        status = mn_fail(error, MN_BUSY, "move", "a snapshot or restore runs");
    return status ? status : begin(shard, group, table, call, error);
}

/* ---- The phases of a move that stands */

static enum mn_status at_shard(const mn_shard *shard, const mn_request *request, uint32_t due,
                               const char *field, mn_error *error)
{
    if (shard->options.shard == due)
        return MN_OK;
    return mn_fail(error, MN_INVALID, field, "%u: phase %u goes there, this is shard %u", due,
                   (unsigned)request->move_phase, shard->options.shard);
}

/* All steps before the hold are committed, and nothing is staged: nothing of the table changes. */
static enum mn_status at_step(const mn_shard *shard, const struct group *group,
                              const struct table *table, mn_error *error)
{
    const struct move *move = group->move;
    if (group->committed + 1 < move->step)
        return mn_fail(error, MN_BUSY, "step",
                       "changes wait from step %" PRIu64 " on, but this shard is at step %" PRIu64,
                       move->step, group->committed);
    if (first_free(shard, group, (uint64_t)(table - group->tables)) > group->committed + 1)
        return mn_fail(error, MN_BUSY, "step", "a step of table %s is played", table->spec.name);
    return MN_OK;
}

/* Recovery does at once what ticks did before the record was written. */
static enum mn_status looked(const mn_shard *shard, const struct table *table, struct move *move,
                             mn_error *error)
{
    bool more = mn_shard_move_look(shard, table, move);
    while (more && shard->recovery)
        more = mn_shard_move_look(shard, table, move);
    if (!more)
        return MN_OK;
    return mn_fail(error, MN_BUSY, "move", "%" PRIu64 " rows of table %s are looked at so far",
                   move->looked, table->spec.name);
}

/* The table becomes what it is without the move's tiles, or with them. */
static enum mn_status reshape(mn_shard *shard, struct group *group, struct table *table,
                              const mn_request *request, mn_error *error)
{
    struct move *move = group->move;
    const struct tile_state state = {group->map_epoch, group->committed,
                                     mn_checksum(&move->digest, sizeof move->digest, group->life)};
    struct table next;
    enum mn_status status = at_step(shard, group, table, error);
    if (!status)
        status = looked(shard, table, move, error);
    if (!status)
        status = mn_shard_table_next(shard, table, &move->aside,
                                     mn_shard_move_range(shard, table, move), state, &next, error);
    if (status)
        return status;
    if (shard->options.shard == move->from && table->geometry.split == MN_ROWS)
        next.planes[0].rows_written -= move->going;
    if (!planted(shard, MN_PLANT_LOG_NO_MOVE))
        status = mn_shard_log_append(shard, group, request, error);
    if (status) {
        mn_shard_table_give(shard, &next);
        return status;
    }
    mn_shard_image_abort(shard, group);
    mn_shard_table_become(shard, table, &move->aside, &next);
    table->moved = move->number;
    return MN_OK;
}

static enum mn_status take(mn_shard *shard, struct group *group, struct table *table, mn_call *call,
                           mn_error *error)
{
    struct move *move = group->move;
    const mn_request *request = &call->request;
    enum mn_status status = at_shard(shard, request, move->to, "move_to", error);
    if (status || move->taken)
        return status;
    if (request->count != move->position)
        return mn_fail(error, MN_INCOMPLETE, "count",
                       "%" PRIu64 " rows were written, but they are here up to %" PRIu64,
                       request->count, move->position);
    status = reshape(shard, group, table, request, error);
    if (status)
        return status;
    move->taken = true;
    mn_shard_log(shard, 1, "move_take", call, "move=%" PRIu64 " tiles=%u-%u", move->number,
                 table->tile_first, table->tile_first + table->tile_count - 1);
    return MN_OK;
}

/* Reads of what has gone are refused, those that wait too. */
static enum mn_status release(mn_shard *shard, struct group *group, struct table *table,
                              mn_call *call, mn_error *error)
{
    const mn_request *request = &call->request;
    enum mn_status status = at_shard(shard, request, group->move->from, "move_from", error);
    if (!status)
        status = reshape(shard, group, table, request, error);
    if (status)
        return status;
    mn_shard_log(shard, 1, "move_release", call, "move=%" PRIu64 " tiles=%u-%u", request->move,
                 table->tile_first, table->tile_first + table->tile_count - 1);
    end(shard, group);
    group->wake = UINT32_MAX;
    return MN_OK;
}

static enum mn_status done(mn_shard *shard, struct group *group, struct table *table, mn_call *call,
                           mn_error *error)
{
    const struct move *move = group->move;
    const mn_request *request = &call->request;
    const uint32_t own = shard->options.shard;
    if (own == move->from || (own == move->to && !move->taken))
        return mn_fail(error, MN_LOST, "move",
                       "of %" PRIu64
                       " tiles are still to be %s here: this shard has forgotten that "
                       "they were, load a saved group",
                       move->number, own == move->from ? "released" : "taken");
    enum mn_status status = mn_shard_log_append(shard, group, request, error);
    if (status)
        return status;
    table->moved = move->number;
    end(shard, group);
    return MN_OK;
}

/* Also of a move that is not known here: nothing of it that comes late can begin it. */
static enum mn_status cancel(mn_shard *shard, struct group *group, mn_call *call, mn_error *error)
{
    const mn_request *request = &call->request;
    const bool standing = group->move && group->move->number == request->move;
    if (standing && group->move->taken)
        return MN_OK; /* too late: the reply says so */
    enum mn_status status = mn_shard_log_append(shard, group, request, error);
    if (status)
        return status;
    mn_shard_log(shard, 1, "move_cancel", call, "move=%" PRIu64, request->move);
    if (standing)
        end(shard, group);
    else if (group->move_last < request->move)
        group->move_last = request->move;
    return MN_OK;
}

/* ---- The verb */

/* Who ends a move for others knows its tiles by its number. */
static enum mn_status check_same(const struct move *move, const mn_request *request,
                                 mn_error *error)
{
    const bool tiles = request->tile_count || request->move_phase < MN_MOVE_TAKE;
    const struct {
        const char *field;
        uint64_t standing, given;
    } fields[] = {
        {"table", move->table, request->table},
        {"move_from", move->from, request->move_from},
        {"move_to", move->to, request->move_to},
        {"tile_first", move->tile_first, tiles ? request->tile_first : move->tile_first},
        {"tile_count", move->tile_count, tiles ? request->tile_count : move->tile_count},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (fields[i].standing != fields[i].given)
            return mn_fail(error, MN_CONFLICT, fields[i].field,
                           "%" PRIu64 ", but move %" PRIu64 " stands here with %" PRIu64,
                           fields[i].given, move->number, fields[i].standing);
    return MN_OK;
}

/* A move that has ended is over for whoever ends it once more, and can be no other. Who comes to
 * cancel it is told if it was made. */
static enum mn_status ended(mn_shard *shard, struct group *group, mn_call *call, mn_error *error)
{
    const mn_request *request = &call->request;
    const struct table *table = mn_shard_table_find(shard, group, request->table, NULL);
    const bool made = !table || table->moved >= request->move; /* or who knows */
    if (request->move_phase == MN_MOVE_CANCEL)
        call->reply.move_taken = table && table->moved == request->move;
    if (request->move_phase == MN_MOVE_CANCEL || (request->move_phase >= MN_MOVE_RELEASE && made))
        return MN_OK;
    if (request->move_phase >= MN_MOVE_RELEASE)
        return mn_fail(error, MN_LOST, "move",
                       "%" PRIu64 " was cancelled here, or this shard has forgotten that it was "
                       "made: load a saved group",
                       request->move);
    return mn_fail(error, MN_CONFLICT, "move",
                   "%" PRIu64 " has ended here: the next one is above %" PRIu64, request->move,
                   group->move_last);
}

static enum mn_status unknown(const mn_request *request, mn_error *error)
{
    if (request->move_phase < MN_MOVE_RELEASE)
        return mn_fail(error, MN_CONFLICT, "move", "%" PRIu64 " does not stand here: HOLD it first",
                       request->move);
    return mn_fail(error, MN_LOST, "move",
                   "%" PRIu64 " was held here, but this shard has forgotten it: load a saved group",
                   request->move);
}

static enum mn_status go_on(mn_shard *shard, struct group *group, mn_call *call, mn_error *error)
{
    struct move *move = group->move;
    const mn_request *request = &call->request;
    enum mn_status status = check_same(move, request, error);
    if (status)
        return status;
    struct table *table = mn_shard_table_find(shard, group, move->table, NULL);
    assert(table); /* a Drop ends the move */
    switch (request->move_phase) {
    case MN_MOVE_HOLD:
        return hold(shard, group, call, error);
    case MN_MOVE_READ:
        status = at_shard(shard, request, move->from, "move_from", error);
        if (!status)
            status = at_step(shard, group, table, error);
        return status ? status : mn_shard_move_read(shard, group, table, call, error);
    case MN_MOVE_WRITE:
        status = at_shard(shard, request, move->to, "move_to", error);
        if (!status && !move->taken)
            status = at_step(shard, group, table, error);
        return status ? status : mn_shard_move_write(shard, group, table, call, error);
    case MN_MOVE_TAKE:
        return take(shard, group, table, call, error);
    case MN_MOVE_RELEASE:
        return release(shard, group, table, call, error);
    case MN_MOVE_DONE:
        return done(shard, group, table, call, error);
    default:
        return cancel(shard, group, call, error);
    }
}

/* Whether tiles have been taken is told of the move that was asked about. */
static void tell(const struct group *group, uint64_t asked, mn_reply *reply)
{
    const struct move *move = group->move;
    reply->move_last = group->move_last;
    if (!move)
        return;
    reply->move = move->number;
    reply->move_step = move->step;
    if (!asked || asked == move->number)
        reply->move_taken = move->taken;
}

static enum mn_status check_number(const struct group *group, uint64_t number, mn_error *error)
{
    const uint64_t standing = group->move ? group->move->number : 0;
    const uint64_t last = group->move_last > standing ? group->move_last : standing;
    if (!number)
        return mn_fail(error, MN_INVALID, "move", "0: moves count from 1");
    if (number > last && number - last > NUMBERS_AHEAD)
        return mn_fail(error, MN_INVALID, "move",
                       "%" PRIu64 " is far above the last one here, %" PRIu64, number, last);
    return MN_OK;
}

static enum mn_status serve(mn_shard *shard, struct group *group, mn_call *call, mn_error *error)
{
    const mn_request *request = &call->request;
    const enum mn_move_phase phase = request->move_phase;
    const bool again = planted(shard, MN_PLANT_MOVE_ANY_NUMBER) && phase < MN_MOVE_RELEASE;
    enum mn_status status = check_number(group, request->move, error);
    if (status)
        return status;
    if (group->move && group->move->number == request->move) {
        group->move->asked_ns = shard->env.now_ns(shard->env.context);
        return go_on(shard, group, call, error);
    }
    if (request->move <= group->move_last && !again)
        return ended(shard, group, call, error);
    if (phase == MN_MOVE_HOLD)
        return hold(shard, group, call, error);
    return phase == MN_MOVE_CANCEL ? cancel(shard, group, call, error) : unknown(request, error);
}

/* HOLD of no move changes nothing, and tells how things stand. */
enum mn_status mn_shard_move(mn_shard *shard, mn_call *call, mn_error *error)
{
    const mn_request *request = &call->request;
    struct group *group;
    enum mn_status status = mn_shard_check_group(shard, call, true, &group, error);
    if (status)
        return status;
    if ((unsigned)request->move_phase > MN_MOVE_CANCEL)
        return mn_fail(error, MN_UNSUPPORTED, "move_phase", "%u is unknown",
                       (unsigned)request->move_phase);
    if (shard->device)
        return mn_fail(error, MN_UNSUPPORTED, "device",
                       "tables in a device's memory are not moved");
    if (request->move || request->move_phase != MN_MOVE_HOLD)
        status = serve(shard, group, call, error);
    if (!status)
        tell(group, request->move, &call->reply);
    return status;
}

/* ---- In an image's base */

struct file_base_move mn_shard_move_record(const struct group *group)
{
    const struct move *move = group->move;
    struct file_base_move record = {.last = group->move_last};
    if (!move)
        return record;
    assert(move->taken); /* else no image is begun */
    record.number = move->number;
    record.table = move->table;
    record.tile_first = move->tile_first;
    record.tile_count = move->tile_count;
    record.from = move->from;
    record.to = move->to;
    record.step = move->step;
    record.position = move->position;
    return record;
}

enum mn_status mn_shard_move_recall(mn_shard *shard, struct group *group,
                                    const struct file_base_move *record, mn_error *error)
{
    const mn_env *env = &shard->env;
    group->move_last = record->last;
    if (!record->number)
        return MN_OK;
    const struct table *table = mn_shard_table_find(shard, group, record->table, NULL);
    const uint64_t end = (uint64_t)record->tile_first + record->tile_count;
    bool valid = neighbours(shard, record->from, record->to) &&
                 record->to == shard->options.shard && table && record->tile_count &&
                 record->tile_first >= table->tile_first &&
                 end <= (uint64_t)table->tile_first + table->tile_count;
    if (!valid)
        return mn_fail(error, MN_CORRUPT, "base_move", "tiles [%u, %" PRIu64 ") did not come here",
                       record->tile_first, end);
    struct move *move = env->allocate(env->context, sizeof *move);
    if (!move)
        return mn_fail(error, MN_NO_MEMORY, "move", "no memory for a move");
    *move = (struct move){.number = record->number,
                          .table = record->table,
                          .tile_first = record->tile_first,
                          .tile_count = record->tile_count,
                          .from = record->from,
                          .to = record->to,
                          .step = record->step,
                          .taken = true,
                          .asked_ns = env->now_ns(env->context),
                          .position = record->position};
    group->move = move;
    return MN_OK;
}

/* ---- Rows that are looked at meanwhile */

uint64_t mn_shard_move_work(mn_shard *shard, uint64_t now_ns)
{
    bool more = false;
    for (uint32_t i = 0; i < shard->options.groups_max && !shard->recovery; i++) {
        struct group *group = &shard->groups[i];
        struct move *move = group->move;
        if (!move || move->taken || group->committed + 1 < move->step)
            continue;
        const struct table *table = mn_shard_table_find(shard, group, move->table, NULL);
        if (!at_step(shard, group, table, NULL))
            more |= mn_shard_move_look(shard, table, move);
    }
    return more ? now_ns : UINT64_MAX;
}
