/* Save and load of the group (STEPS.md "Snapshot", "Restore"). */
#include "client_private.h"

#include <string.h>

static void fill_path(mn_task *task, mn_slot *slot, enum mn_files_phase phase)
{
    mn_request *request = &slot->exchange.request;
    request->files = phase;
    memcpy(request->path, task->operation->name, sizeof request->path);
    request->context.step = task->core->step;
}

static bool check_path(mn_task *task)
{
    const char *path = task->operation->name;
    if (path[0] && memchr(path, 0, MN_PATH_BYTES))
        return true;
    mn_task_end(task, mn_fail(&task->error, MN_INVALID, "path", "\"%.32s%s\" has not 1 to %d bytes",
                              path, path[0] ? "..." : "", MN_PATH_BYTES - 1));
    return false;
}

/* ---- Save: at the home shard's step. While others commit, the shards may be found at two steps:
 * it begins again, with a step that is still to come at all of them; and again with the home
 * shard's, should none come ---- */

static void fill_save(mn_task *task, mn_slot *slot, enum mn_files_phase phase)
{
    fill_path(task, slot, phase);
    slot->exchange.request.context.step = task->step;
    slot->exchange.request.save = task->epoch;
}

static bool refused_save(mn_task *task, mn_lane *lane, const mn_reply *reply)
{
    if (reply->status != MN_STEP)
        return false;
    mn_error_of_shard(&task->last, lane->shard, MN_TORN, reply); /* should the time run out */
    task->torn = true;
    return true;
}

static bool save_again(mn_task *task)
{
    mn_error why = task->last;
    if (!task->torn)
        return false;
    task->torn = false;
    mn_task_pause(task, mn_begin_save, &why);
    return true;
}

static void fill_manifest(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the home shard's */
    fill_save(task, slot, MN_FILES_MANIFEST);
}

static void complete_manifest(mn_task *task)
{
    if (save_again(task))
        return;
    task->operation->answered_step = task->step;
    mn_task_done(task);
}

static const mn_phase manifest_phase = {MN_VERB_SNAPSHOT, fill_manifest, NULL, refused_save,
                                        complete_manifest};

static void fill_write(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the same for every shard */
    fill_save(task, slot, MN_FILES_WRITE);
    slot->exchange.request.rate = task->operation->rate;
}

static void complete_write(mn_task *task)
{
    if (!save_again(task))
        mn_phase_home(task, &manifest_phase);
}

static const mn_phase write_phase = {MN_VERB_SNAPSHOT, fill_write, NULL, refused_save,
                                     complete_write};

static enum mn_status answered_step(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane;         /* the home shard's */
    enum { AHEAD = 2 }; /* less may have passed when the last shard is told */
    task->step = slot->exchange.reply.step + (task->pauses % 2 ? AHEAD : 0);
    return MN_OK;
}

static void complete_step(mn_task *task)
{
    task->moved = mn_begin_save;
    mn_phase_all(task, &write_phase);
}

static const mn_phase step_phase = {MN_VERB_MAP, NULL, answered_step, NULL, complete_step};

/* Another number each time: what an earlier try has left is not taken for this one's. */
void mn_begin_save(mn_task *task)
{
    const mn_env *env = &task->core->env;
    task->epoch = env->random(env->context) | 1;
    if (check_path(task))
        mn_phase_home(task, &step_phase);
}

/* ---- Load ---- */

/* Handles opened before serve the tables of the same name and spec; others are dropped ones. */
static enum mn_status answered_list(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the home shard's */
    const mn_reply *reply = &slot->exchange.reply;
    for (mn_table *table = task->core->tables; table; table = table->next) {
        bool live = table->id != 0;
        table->id = 0;
        for (uint32_t i = 0; live && i < reply->table_count; i++) {
            const mn_table_info *info = &reply->tables[i];
            const char *field;
            if (strcmp(info->spec.name, table->spec.name) == 0 &&
                mn_spec_equal(&info->spec, &table->spec, &field))
                table->id = info->table;
        }
    }
    return MN_OK;
}

static const mn_phase relist_phase = {MN_VERB_LIST, NULL, answered_list, NULL, mn_task_done};

static void joined_load(mn_task *task) { mn_phase_home(task, &relist_phase); }

static void fill_load(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the same for every shard */
    fill_path(task, slot, MN_FILES_LOAD);
    slot->exchange.request.ranks = task->core->options.load_ranks;
    slot->exchange.request.context.map_epoch = task->epoch;
    slot->exchange.request.saved_step = task->step; /* the same one at every shard */
}

static void complete_load(mn_task *task)
{
    task->joined = joined_load;
    mn_begin_join(task);
}

static const mn_phase load_phase = {MN_VERB_RESTORE, fill_load, NULL, NULL, complete_load};

static void fill_map(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)task; /* asked without an epoch: it may be another */
    (void)lane;
    slot->exchange.request.context.map_epoch = 0;
}

/* The highest there is. */
static enum mn_status answered_epoch(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane;
    if (slot->exchange.reply.map_epoch > task->epoch)
        task->epoch = slot->exchange.reply.map_epoch;
    return MN_OK;
}

/* A shard that does not know the group has no epoch to be above of. */
static bool refused_map(mn_task *task, mn_lane *lane, const mn_reply *reply)
{
    (void)task;
    (void)lane;
    return reply->status == MN_NOT_FOUND;
}

/* Who else loads now draws another epoch: the higher one wins at every shard. */
static void complete_map(mn_task *task)
{
    mn_core *core = task->core;
    if (task->epoch < core->load_epoch)
        task->epoch = core->load_epoch;
    task->epoch = mn_epoch_above(task->epoch, core->env.random(core->env.context));
    core->load_epoch = task->epoch;
    mn_phase_all(task, &load_phase);
}

static const mn_phase map_phase = {MN_VERB_MAP, fill_map, answered_epoch, refused_map,
                                   complete_map};

static void fill_check(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the home shard's */
    fill_path(task, slot, MN_FILES_CHECK);
    slot->exchange.request.saved_step = task->operation->step;
}

static enum mn_status answered_check(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    task->step = slot->exchange.reply.step;
    return answered_epoch(task, lane, slot);
}

static void complete_check(mn_task *task) { mn_phase_all(task, &map_phase); }

static const mn_phase check_phase = {MN_VERB_RESTORE, fill_check, answered_check, NULL,
                                     complete_check};

void mn_begin_load(mn_task *task)
{
    if (check_path(task))
        mn_phase_home(task, &check_phase);
}
