/* Join (STEPS.md): the next incarnation of this rank, told to every shard; then the step that a
 * predecessor left open is finished, or dropped. */
#include "client_private.h"

#include <inttypes.h>
#include <string.h>

static void fill_join(mn_task *task, mn_slot *slot, enum mn_join_phase phase)
{
    mn_request *request = &slot->exchange.request;
    request->join = phase;
    request->ranks = task->core->options.ranks;
    request->durability = task->core->options.durability;
    request->context.step = task->settle->step;
}

/* ---- Replay: what lower incarnations staged and sealed is dropped ---- */

static void fill_replay(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the same for every shard */
    fill_join(task, slot, MN_JOIN_REPLAY);
}

static void complete_replay(mn_task *task)
{
    mn_core *core = task->core;
    mn_steps_close(core, UINT64_MAX);
    core->joined = true;
    mn_core_advance(core, task->settle->step);
    task->joined(task);
}

static const mn_phase replay_phase = {MN_VERB_JOIN, fill_replay, NULL, NULL, complete_replay};

static void replay(mn_task *task)
{
    if (task->core->options.plants & MN_CORE_PLANT_NO_REPLAY)
        complete_replay(task);
    else
        mn_phase_all(task, &replay_phase);
}

/* ---- Fence, and what follows from it ---- */

static void fill_fence(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the same for every shard */
    fill_join(task, slot, MN_JOIN_FENCE);
}

static enum mn_status answered_fence(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    mn_view *view = &task->settle->views[lane->shard];
    const mn_reply *reply = &slot->exchange.reply;
    view->step = reply->step;
    view->sealed = reply->sealed;
    view->incarnation_sum = reply->incarnation_sum;
    view->proposal = reply->proposal;
    memcpy(view->factors, reply->factors, sizeof view->factors);
    return MN_OK;
}

/* The home shard's group is new, but another stands elsewhere: the home shard has forgotten. */
static bool refused_fence(mn_task *task, mn_lane *lane, const mn_reply *reply)
{
    bool other_life =
        reply->status == MN_EPOCH && reply->map_epoch && mn_epoch_restores(task->core->epoch) == 0;
    task->settle->views[lane->shard].other_life = other_life;
    return other_life;
}

/* The last commit of the shards ahead is sent to the ones behind. */
static void roll_last(mn_task *task, uint32_t ahead)
{
    mn_settle *settle = task->settle;
    const mn_view *source = &settle->views[ahead];
    settle->step = source->step;
    settle->outcome = source->proposal;
    memcpy(settle->factors, source->factors, sizeof settle->factors);
    for (uint32_t shard = 0; shard < task->core->shards; shard++) {
        mn_view *view = &settle->views[shard];
        view->permanent = view->step == settle->step;
        view->incarnation_sum = source->incarnation_sum;
    }
    mn_settle_commit(task);
}

static void complete_fence(mn_task *task)
{
    mn_settle *settle = task->settle;
    const mn_view *views = settle->views;
    uint32_t ahead = 0, behind = 0;
    bool sealed = true;
    for (uint32_t shard = 0; shard < task->core->shards; shard++) {
        if (views[shard].other_life) {
            mn_task_end(task,
                        mn_fail(&task->error, MN_LOST, "map_epoch",
                                "shard %u holds the group, but shard 0 has forgotten it; load "
                                "a saved group",
                                shard));
            return;
        }
        ahead = views[shard].step > views[ahead].step ? shard : ahead;
        behind = views[shard].step < views[behind].step ? shard : behind;
        sealed = sealed && views[shard].sealed;
    }
    if (views[ahead].step - views[behind].step > 1) {
        mn_task_end(task,
                    mn_fail(&task->error, MN_LOST, "step",
                            "shard %u has committed step %" PRIu64 " but shard %u only %" PRIu64
                            ": it has forgotten; load a saved group",
                            ahead, views[ahead].step, behind, views[behind].step));
        return;
    }
    settle->step = views[ahead].step;
    if (ahead != behind && views[ahead].step != views[behind].step) {
        roll_last(task, ahead);
    } else if (sealed) {
        settle->step++;
        mn_settle_seal(task);
    } else {
        replay(task);
    }
}

static const mn_phase fence_phase = {MN_VERB_JOIN, fill_fence, answered_fence, refused_fence,
                                     complete_fence};

/* ---- Assign ---- */

/* Whoever loaded must not go on in a group that another has loaded since. */
static enum mn_status check_loaded(mn_task *task, const mn_reply *reply)
{
    if (task->epoch == 0 || reply->map_epoch == task->epoch)
        return MN_OK;
    return mn_fail(&task->error, MN_EPOCH, "map_epoch",
                   "the group was loaded again meanwhile: its epoch is %" PRIu64 ", not %" PRIu64,
                   reply->map_epoch, task->epoch);
}

static void fill_assign(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the home shard's */
    fill_join(task, slot, MN_JOIN_ASSIGN);
    slot->exchange.request.context.incarnation = 0;
    slot->exchange.request.context.map_epoch = 0;
}

static enum mn_status answered_assign(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the home shard's */
    const mn_reply *reply = &slot->exchange.reply;
    if (reply->incarnation == 0 || reply->map_epoch == 0)
        return mn_fail(&task->error, MN_CORRUPT, "incarnation",
                       "shard 0 assigned incarnation %" PRIu64 " in epoch %" PRIu64,
                       reply->incarnation, reply->map_epoch);
    enum mn_status status = check_loaded(task, reply);
    if (status)
        return status;
    task->core->incarnation = reply->incarnation;
    task->core->epoch = reply->map_epoch;
    task->settle->step = reply->step;
    return MN_OK;
}

static void complete_assign(mn_task *task) { mn_phase_all(task, &fence_phase); }

static const mn_phase assign_phase = {MN_VERB_JOIN, fill_assign, answered_assign, NULL,
                                      complete_assign};

/* ---- A reader only asks where the group stands ---- */

static void fill_map(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)task; /* asked without knowing anything */
    (void)lane;
    slot->exchange.request.context.map_epoch = 0;
}

static enum mn_status answered_map(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the home shard's */
    mn_core *core = task->core;
    const mn_reply *reply = &slot->exchange.reply;
    if (reply->map_epoch == 0)
        return mn_fail(&task->error, MN_NOT_FOUND, "group", "there is no group \"%s\"",
                       core->options.group);
    enum mn_status status = check_loaded(task, reply);
    if (status)
        return status;
    core->epoch = reply->map_epoch;
    core->step = reply->step;
    core->joined = true;
    return MN_OK;
}

static void complete_map(mn_task *task) { task->joined(task); }

static const mn_phase map_phase = {MN_VERB_MAP, fill_map, answered_map, NULL, complete_map};

void mn_begin_join(mn_task *task)
{
    if (!task->joined)
        task->joined = mn_task_done;
    if (task->core->options.reader) {
        mn_phase_home(task, &map_phase);
        return;
    }
    enum mn_status status = mn_settle_create(task);
    if (status) {
        mn_task_end(task, status);
        return;
    }
    task->settle->settled = replay;
    mn_phase_home(task, &assign_phase);
}
