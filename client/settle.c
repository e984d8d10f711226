/* A step made permanent (STEPS.md "The client's commit"): Seal at every shard, factors from the
 * norms, Commit. Join uses it to finish the step of a predecessor. */
#include "client_private.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum mn_status mn_settle_create(mn_task *task)
{
    mn_core *core = task->core;
    mn_settle *settle = mn_core_allocate(core, sizeof *settle);
    if (settle)
        settle->views = mn_core_allocate(core, core->shards * sizeof *settle->views);
    if (settle && settle->views) {
        task->settle = settle;
        return MN_OK;
    }
    mn_core_release(core, settle, sizeof *settle);
    return mn_fail(&task->error, MN_NO_MEMORY, "step", "no memory to settle a step");
}

static void view_clear(mn_core *core, mn_view *view)
{
    mn_core_release(core, view->squares, view->squares_bytes);
    view->squares = NULL;
    view->squares_bytes = 0;
    view->table_count = 0;
}

void mn_settle_destroy(mn_task *task)
{
    mn_core *core = task->core;
    if (!task->settle)
        return;
    for (uint32_t shard = 0; shard < core->shards; shard++)
        view_clear(core, &task->settle->views[shard]);
    mn_core_release(core, task->settle->views, core->shards * sizeof *task->settle->views);
    mn_core_release(core, task->settle, sizeof *task->settle);
    task->settle = NULL;
}

void mn_core_advance(mn_core *core, uint64_t step)
{
    core->step = step;
    mn_steps_close(core, step);
    mn_core_pump(core); /* what was early may go now */
}

void mn_core_settled(mn_core *core, uint64_t step)
{
    if (core->settled_epoch != core->epoch) {
        core->settled_epoch = core->epoch;
        core->settled_step = 0;
        memset(core->told_steps, 0, core->shards * sizeof *core->told_steps);
    }
    core->settled_step = step > core->settled_step ? step : core->settled_step;
}

/* ---- Factors ---- */

static bool clips(const mn_proposal *proposal)
{
    for (uint32_t i = 0; !proposal->discard && i < proposal->set_count; i++)
        if (proposal->sets[i].clip_norm > 0)
            return true;
    return false;
}

/* The least id above `id` whose squares a shard told; 0 when there is none. A table that a shard
 * did not tell has no gradients there: it is being dropped, or came after the seals. */
static uint64_t table_after(const mn_task *task, uint64_t id)
{
    uint64_t next = 0;
    for (uint32_t shard = 0; shard < task->core->shards; shard++) {
        const mn_view *view = &task->settle->views[shard];
        for (uint32_t i = 0; i < view->table_count; i++)
            if (view->tables[i] > id && (!next || view->tables[i] < next))
                next = view->tables[i];
    }
    return next;
}

/* Adds one table's squares in tile order: shards hold ascending ranges of tiles. */
static double add_squares(const mn_task *task, uint64_t table, double sum)
{
    for (uint32_t shard = 0; shard < task->core->shards; shard++) {
        const mn_view *view = &task->settle->views[shard];
        const double *squares = view->squares;
        for (uint32_t i = 0; i < view->table_count; squares += view->tiles[i], i++)
            for (uint32_t tile = 0; view->tables[i] == table && tile < view->tiles[i]; tile++)
                sum += squares[tile];
    }
    return sum;
}

static bool names(const mn_commit_set *set, uint64_t table)
{
    bool named = set->table_count == 0;
    for (uint32_t i = 0; i < set->table_count; i++)
        named = named || set->tables[i] == table;
    return named;
}

static void discard(mn_settle *settle)
{
    memset(&settle->outcome, 0, sizeof settle->outcome);
    memset(settle->factors, 0, sizeof settle->factors);
    settle->outcome.discard = true;
}

/* A norm that is not finite clips to nothing sensible: the step is discarded, by all ranks alike.
 * factor = scale * min(1, clip / (scale * sqrt(sum))), in f64, rounded once: a pure function of
 * what the shards answered, so any rank finds the same. */
static void find_factors(mn_task *task)
{
    mn_settle *settle = task->settle;
    memset(settle->factors, 0, sizeof settle->factors);
    memset(settle->norms, 0, sizeof settle->norms);
    for (uint32_t i = 0; i < settle->outcome.set_count; i++) {
        const mn_commit_set *set = &settle->outcome.sets[i];
        double scale = set->scale == 0 ? 1 : set->scale, factor = scale, sum = 0;
        for (uint64_t table = 0; set->clip_norm > 0 && (table = table_after(task, table));)
            if (names(set, table))
                sum = add_squares(task, table, sum);
        settle->norms[i] = scale * sqrt(sum);
        if (set->clip_norm > 0 && settle->norms[i] > set->clip_norm)
            factor = scale * (set->clip_norm / settle->norms[i]);
        settle->factors[i] = (float)factor;
    }
    for (uint32_t i = 0; i < settle->outcome.set_count; i++)
        if (!isfinite(settle->norms[i])) {
            discard(settle);
            return;
        }
}

/* ---- Commit ---- */

static void fill_commit(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    const mn_settle *settle = task->settle;
    mn_request *request = &slot->exchange.request;
    request->context.step = settle->step;
    request->proposal = settle->outcome;
    memcpy(request->factors, settle->factors, sizeof request->factors);
    request->incarnation_sum = settle->views[lane->shard].incarnation_sum;
}

static enum mn_status answered_commit(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)slot; /* an acknowledgement says no more */
    task->settle->views[lane->shard].permanent = true;
    return MN_OK;
}

static bool refused_commit(mn_task *task, mn_lane *lane, const mn_reply *reply)
{
    if (reply->status != MN_RESEAL)
        return false;
    mn_error_of_shard(&task->last, lane->shard, reply->status, reply);
    task->settle->reseal = true;
    return true;
}

static void complete_commit(mn_task *task)
{
    if (task->settle->reseal) {
        mn_error why = task->last;
        mn_task_pause(task, mn_settle_seal, &why);
        return;
    }
    task->settle->settled(task);
}

static const mn_phase commit_phase = {MN_VERB_COMMIT, fill_commit, answered_commit, refused_commit,
                                      complete_commit};

/* Opens a lane to every shard where the step is not permanent; false when there is none. */
static bool open_lower(mn_task *task, const mn_phase *phase)
{
    bool any = false;
    mn_phase_begin(task, phase);
    for (uint32_t shard = 0; shard < task->core->shards; shard++)
        if (!task->settle->views[shard].permanent) {
            mn_lane_open(task, shard, 1);
            any = true;
        }
    return any;
}

void mn_settle_commit(mn_task *task)
{
    mn_core_settled(task->core, task->settle->step);
    if (open_lower(task, &commit_phase))
        mn_phase_go(task);
    else
        task->settle->settled(task);
}

/* ---- What a shard that is ahead has committed ---- */

static void fill_ask(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the same for any shard */
    mn_request *request = &slot->exchange.request;
    request->join = MN_JOIN_FENCE; /* with the own incarnation: it changes nothing */
    request->ranks = task->core->options.ranks;
    request->context.step = task->settle->step; /* a shard that forgot it makes no group anew */
}

static enum mn_status answered_ask(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    mn_settle *settle = task->settle;
    const mn_reply *reply = &slot->exchange.reply;
    if (reply->step != settle->step)
        return mn_fail(&task->error, MN_STEP, "step",
                       "shard %u has committed step %" PRIu64 " where %" PRIu64 " was due",
                       lane->shard, reply->step, settle->step);
    settle->outcome = reply->proposal;
    memcpy(settle->factors, reply->factors, sizeof settle->factors);
    for (uint32_t i = 0; i < MN_COMMIT_SETS_MAX; i++)
        settle->norms[i] = NAN; /* gone with the gradients */
    for (uint32_t shard = 0; shard < task->core->shards; shard++)
        settle->views[shard].incarnation_sum = reply->incarnation_sum;
    return MN_OK;
}

static const mn_phase ask_phase = {MN_VERB_JOIN, fill_ask, answered_ask, NULL, mn_settle_commit};

/* ---- Seal ---- */

static void fill_seal(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    mn_request *request = &slot->exchange.request;
    const mn_settle *settle = task->settle;
    request->context.step = settle->step;
    mn_part_pieces pieces = mn_steps_pieces(task->core, settle->step, lane->shard);
    request->pieces = pieces.cut;
    request->acknowledged = pieces.acknowledged;
    request->proposal = settle->views[lane->shard].proposal;
    request->norms = clips(&request->proposal);
}

/* The tables that the squares are of, as many squares as they have tiles. */
static enum mn_status keep_tables(mn_task *task, mn_view *view, const mn_reply *reply)
{
    uint64_t tiles = 0;
    bool ascending = reply->table_count <= MN_COMMIT_TABLES_MAX;
    for (uint32_t i = 0; ascending && i < reply->table_count; i++) {
        ascending = reply->tables[i].table > (i ? view->tables[i - 1] : 0);
        view->tables[i] = reply->tables[i].table;
        view->tiles[i] = reply->tables[i].tile_count;
        tiles += view->tiles[i];
    }
    if (!ascending || tiles != reply->payload.bytes / sizeof(double) ||
        reply->payload.bytes % sizeof(double))
        return mn_fail(&task->error, MN_CORRUPT, "payload",
                       "shard %u answered %" PRIu64
                       " bytes of norms, which are not those of the %u tables it names",
                       (uint32_t)(view - task->settle->views), reply->payload.bytes,
                       reply->table_count);
    view->table_count = reply->table_count;
    return MN_OK;
}

static enum mn_status answered_seal(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    mn_core *core = task->core;
    mn_settle *settle = task->settle;
    mn_view *view = &settle->views[lane->shard];
    const mn_reply *reply = &slot->exchange.reply;
    view->permanent = reply->step >= settle->step;
    if (view->permanent)
        return MN_OK;
    view->incarnation_sum = reply->incarnation_sum;
    settle->discard = settle->discard || reply->proposal.discard;
    if (!reply->proposal.discard)
        settle->outcome = reply->proposal;
    view_clear(core, view);
    enum mn_status status = keep_tables(task, view, reply);
    if (status || reply->payload.bytes == 0)
        return status;
    view->squares = mn_core_allocate(core, reply->payload.bytes);
    if (!view->squares) {
        view->table_count = 0;
        return mn_fail(&task->error, MN_NO_MEMORY, "norms", "no memory for %" PRIu64 " bytes",
                       reply->payload.bytes);
    }
    view->squares_bytes = reply->payload.bytes;
    mn_cursor cursor;
    mn_cursor_init(&cursor, &reply->payload, 0);
    mn_cursor_read(&cursor, view->squares, view->squares_bytes);
    return MN_OK;
}

static void complete_seal(mn_task *task)
{
    mn_settle *settle = task->settle;
    mn_view *views = settle->views;
    for (uint32_t shard = 0; shard < task->core->shards; shard++)
        if (views[shard].permanent) {
            mn_phase_one(task, &ask_phase, shard);
            return;
        }
    for (uint32_t shard = 1; shard < task->core->shards; shard++)
        if (views[shard].incarnation_sum != views[0].incarnation_sum) {
            mn_error why;
            (void)mn_fail(&why, MN_RESEAL, "incarnation_sum",
                          "a rank came back between the seals at shards 0 and %u", shard);
            mn_task_pause(task, mn_settle_seal, &why);
            return;
        }
    if (settle->discard)
        discard(settle);
    find_factors(task);
    mn_settle_commit(task);
}

static const mn_phase seal_phase = {MN_VERB_SEAL, fill_seal, answered_seal, NULL, complete_seal};

void mn_settle_seal(mn_task *task)
{
    mn_settle *settle = task->settle;
    settle->discard = settle->reseal = false;
    task->moved = mn_settle_seal;
    mn_phase_begin(task, &seal_phase);
    for (uint32_t shard = 0; shard < task->core->shards; shard++)
        if (!settle->views[shard].permanent)
            mn_lane_open(task, shard, 1);
    mn_phase_go(task);
}
