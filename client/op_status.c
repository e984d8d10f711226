/* Status, List, Describe: what one shard says of itself and of its tables. */
#include "client_private.h"

#include <inttypes.h>
#include <string.h>

static void fill_unbound(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)task; /* asked without knowing the epoch */
    (void)lane;
    slot->exchange.request.context.map_epoch = 0;
    slot->exchange.request.context.incarnation = 0;
}

static void tell_files(const mn_reply *reply, mn_operation *operation)
{
    if (reply->files_count < operation->in_out_count)
        operation->in_out_count = reply->files_count;
    for (uint32_t i = 0; i < operation->in_out_count; i++) {
        const mn_files_info *info = &reply->files[i];
        operation->files[i] = (mn_files_status){
            .loads = info->phase == MN_FILES_LOAD || info->phase == MN_FILES_CHECK,
            .tiles = info->phase == MN_FILES_LOAD || info->phase == MN_FILES_WRITE,
            .step = info->step,
            .bytes = info->bytes,
            .bytes_due = info->bytes_due,
            .elapsed_ms = info->elapsed_ms,
            .ended_ms = info->ended_ms,
        };
        memcpy(operation->files[i].path, info->path, sizeof info->path);
    }
}

static enum mn_status answered_status(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane;
    mn_operation *operation = task->operation;
    const mn_reply *reply = &slot->exchange.reply;
    if (operation->files) {
        tell_files(reply, operation);
        return MN_OK;
    }
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
        out->moved = info->moved;
    }
    return MN_OK;
}

/* A piece of a table's counters of reads: { reads u64, weight u64 } each. */
static void fill_usage(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane;
    const mn_operation *operation = task->operation;
    mn_request *request = &slot->exchange.request;
    request->table = operation->table->id;
    request->position = operation->position;
    request->count = operation->count;
}

static enum mn_status answered_usage(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    mn_operation *operation = task->operation;
    const mn_reply *reply = &slot->exchange.reply;
    uint64_t bytes = operation->count * 2 * sizeof(uint64_t);
    if (reply->table_count != 1 || reply->payload.bytes != bytes)
        return mn_fail(&task->error, MN_CORRUPT, "payload",
                       "shard %u described %u tables, with %" PRIu64 " bytes of %" PRIu64,
                       lane->shard, reply->table_count, reply->payload.bytes, bytes);
    operation->counters = reply->tables[0].counters;
    mn_cursor cursor;
    mn_cursor_init(&cursor, &reply->payload, 0);
    if (bytes)
        mn_cursor_read(&cursor, operation->outputs.data, bytes);
    return MN_OK;
}

static const mn_phase status_phase = {MN_VERB_STATUS, fill_unbound, answered_status, NULL,
                                      mn_task_done};
static const mn_phase list_phase = {MN_VERB_LIST, fill_unbound, answered_list, NULL, mn_task_done};
static const mn_phase usage_phase = {MN_VERB_DESCRIBE, fill_usage, answered_usage, NULL,
                                     mn_task_done};

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
void mn_begin_usage(mn_task *task) { begin(task, &usage_phase); }
