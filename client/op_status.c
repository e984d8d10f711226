/* Status and List: what one shard says of itself. */
#include "client_private.h"

#include <string.h>

static void fill_unbound(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)task; /* asked without knowing the epoch */
    (void)lane;
    slot->exchange.request.context.map_epoch = 0;
    slot->exchange.request.context.incarnation = 0;
}

static enum mn_status answered_status(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane;
    mn_operation *operation = task->operation;
    const mn_reply *reply = &slot->exchange.reply;
    if (reply->group_count < operation->in_out_count)
        operation->in_out_count = reply->group_count;
    for (uint32_t i = 0; i < operation->in_out_count; i++) {
        const mn_group_info *info = &reply->groups[i];
        mn_group_status *out = &operation->groups[i];
        memcpy(out->name, info->name, sizeof out->name);
        out->ranks = info->ranks;
        out->tables = info->tables;
        out->parked = info->parked;
        out->committed_step = info->committed_step;
        out->map_epoch = info->map_epoch;
        out->read_bytes = info->read_bytes;
        out->read_bytes_max = info->read_bytes_max;
        out->change_bytes = info->change_bytes;
        out->change_bytes_max = info->change_bytes_max;
    }
    return MN_OK;
}

static enum mn_status answered_list(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane;
    mn_operation *operation = task->operation;
    const mn_reply *reply = &slot->exchange.reply;
    if (reply->table_count < operation->in_out_count)
        operation->in_out_count = reply->table_count;
    for (uint32_t i = 0; i < operation->in_out_count; i++) {
        const mn_table_info *info = &reply->tables[i];
        mn_table_status *out = &operation->tables[i];
        out->spec = info->spec;
        out->table = info->table;
        out->tile_first = info->tile_first;
        out->tile_count = info->tile_count;
        out->rows_written = info->rows_written;
        out->resident_bytes = info->resident_bytes;
    }
    return MN_OK;
}

static const mn_phase status_phase = {MN_VERB_STATUS, fill_unbound, answered_status, NULL,
                                      mn_task_done};
static const mn_phase list_phase = {MN_VERB_LIST, fill_unbound, answered_list, NULL, mn_task_done};

static void begin(mn_task *task, const mn_phase *phase)
{
    uint32_t shard = task->operation->shard;
    if (shard < task->core->shards)
        mn_phase_one(task, phase, shard);
    else
        mn_task_end(task, mn_fail(&task->error, MN_INVALID, "shard",
                                  "%u is not one of the %u shards", shard, task->core->shards));
}

void mn_begin_status(mn_task *task) { begin(task, &status_phase); }
void mn_begin_list(mn_task *task) { begin(task, &list_phase); }
