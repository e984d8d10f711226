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

/* ---- Factors ---- */

static bool clips(const mn_proposal *proposal)
{
    for (uint32_t i = 0; !proposal->discard && i < proposal->set_count; i++)
        if (proposal->sets[i].clip_norm > 0)
            return true;
    return false;
}

/* Adds one table's squares in tile order: shards hold ascending ranges of tiles. */
static double add_squares(const mn_task *task, uint32_t table, double sum)
{
    const mn_settle *settle = task->settle;
    uint32_t shards = task->core->shards;
    for (uint32_t shard = 0; shard < shards; shard++) {
        uint32_t first, count, at = 0;
        if (table >= settle->views[shard].tables)
            continue;
        for (uint32_t before = 0; before < table; before++) {
            mn_map_tiles(settle->tiles[before], shards, shard, &first, &count);
            at += count;
        }
        mn_map_tiles(settle->tiles[table], shards, shard, &first, &count);
        for (uint32_t i = 0; i < count; i++)
            sum += settle->views[shard].squares[at + i];
    }
    return sum;
}

/* Finds of how many tables each shard's squares are: it may have merged the step before the latest
 * tables came, which then hold no parts of it. False: its squares are of more tables than are
 * known, or of none that are. */
static bool squares_fit(mn_task *task, uint32_t *out_misfit)
{
    const mn_settle *settle = task->settle;
    for (uint32_t shard = 0; shard < task->core->shards; shard++) {
        mn_view *view = &settle->views[shard];
        uint64_t due = 0;
        bool fits = view->squares_bytes == 0;
        view->tables = 0;
        for (uint32_t table = 0; table < settle->table_count; table++) {
            uint32_t first, count;
            mn_map_tiles(settle->tiles[table], task->core->shards, shard, &first, &count);
            due += count * sizeof(double);
            if (view->squares_bytes != due)
                continue;
            view->tables = table + 1;
            fits = true;
        }
        *out_misfit = shard;
        if (!fits)
            return false;
    }
    return true;
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
        for (uint32_t table = 0; set->clip_norm > 0 && table < settle->table_count; table++) {
            bool named = set->table_count == 0;
            for (uint32_t t = 0; t < set->table_count; t++)
                named = named || set->tables[t] == settle->tables[table];
            if (named)
                sum = add_squares(task, table, sum);
        }
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
    request->context.step = task->core->step;
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

/* The home shard is asked for the group's tables too, since norms come without names. */
enum { SEAL_PIECE = 0, LIST_PIECE = 1 };

static void fill_seal(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    mn_request *request = &slot->exchange.request;
    const mn_settle *settle = task->settle;
    if (slot->piece == LIST_PIECE) {
        request->verb = MN_VERB_LIST;
        return;
    }
    request->context.step = settle->step;
    request->pieces = mn_steps_pieces(task->core, settle->step, lane->shard);
    request->proposal = settle->views[lane->shard].proposal;
    request->norms = clips(&request->proposal);
}

static enum mn_status keep_tables(mn_task *task, const mn_reply *reply)
{
    mn_settle *settle = task->settle;
    if (reply->table_count > MN_COMMIT_TABLES_MAX)
        return mn_fail(&task->error, MN_CORRUPT, "tables", "shard 0 lists %u tables of at most %d",
                       reply->table_count, MN_COMMIT_TABLES_MAX);
    settle->table_count = 0;
    for (uint32_t i = 0; i < reply->table_count; i++) {
        uint32_t at = settle->table_count++;
        for (; at > 0 && settle->tables[at - 1] > reply->tables[i].table; at--) {
            settle->tables[at] = settle->tables[at - 1];
            settle->tiles[at] = settle->tiles[at - 1];
        }
        settle->tables[at] = reply->tables[i].table;
        settle->tiles[at] = reply->tables[i].spec.tiles;
    }
    return MN_OK;
}

/* A table that came after List was answered, and before the last seal, has squares too. */
static enum mn_status answered_relist(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the home shard's */
    return keep_tables(task, &slot->exchange.reply);
}

static void complete_relist(mn_task *task)
{
    uint32_t misfit;
    if (!squares_fit(task, &misfit)) {
        mn_task_end(task, mn_fail(&task->error, MN_CORRUPT, "payload",
                                  "shard %u answered %" PRIu64
                                  " bytes of norms, which are not those of the group's tables",
                                  misfit, task->settle->views[misfit].squares_bytes));
        return;
    }
    find_factors(task);
    mn_settle_commit(task);
}

static const mn_phase relist_phase = {MN_VERB_LIST, NULL, answered_relist, NULL, complete_relist};

static enum mn_status answered_seal(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    mn_core *core = task->core;
    mn_settle *settle = task->settle;
    mn_view *view = &settle->views[lane->shard];
    const mn_reply *reply = &slot->exchange.reply;
    if (slot->piece == LIST_PIECE)
        return keep_tables(task, reply);
    view->permanent = reply->step >= settle->step;
    if (view->permanent)
        return MN_OK;
    view->incarnation_sum = reply->incarnation_sum;
    settle->discard = settle->discard || reply->proposal.discard;
    if (!reply->proposal.discard)
        settle->outcome = reply->proposal;
    view_clear(core, view);
    if (reply->payload.bytes == 0)
        return MN_OK;
    view->squares = mn_core_allocate(core, reply->payload.bytes);
    if (!view->squares)
        return mn_fail(&task->error, MN_NO_MEMORY, "norms", "no memory for %" PRIu64 " bytes",
                       reply->payload.bytes);
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
    uint32_t misfit;
    if (clips(&settle->outcome) && !squares_fit(task, &misfit)) {
        mn_phase_home(task, &relist_phase);
        return;
    }
    find_factors(task);
    mn_settle_commit(task);
}

static const mn_phase seal_phase = {MN_VERB_SEAL, fill_seal, answered_seal, NULL, complete_seal};

void mn_settle_seal(mn_task *task)
{
    mn_settle *settle = task->settle;
    bool tables = false;
    settle->discard = settle->reseal = false;
    mn_phase_begin(task, &seal_phase);
    for (uint32_t shard = 0; shard < task->core->shards; shard++)
        tables = tables || clips(&settle->views[shard].proposal) ||
                 settle->views[shard].proposal.discard; /* an earlier seal may stand, and clip */
    for (uint32_t shard = 0; shard < task->core->shards; shard++)
        if (!settle->views[shard].permanent)
            mn_lane_open(task, shard, shard == 0 && tables ? 2 : 1);
    mn_phase_go(task);
}
