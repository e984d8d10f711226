/* What an operator asks: Describe, List, Map, Status. */
#include "move.h"

static void fill_table(const mn_shard *shard, const struct group *group, const struct table *table,
                       mn_table_info *out_info)
{
    const struct move *move = group->move;
    const mn_tile *plane = table->plane_count ? &table->planes[0] : NULL;
    uint64_t row_bytes = 0;
    for (uint32_t i = 0; i < table->plane_count; i++)
        row_bytes += table->planes[i].columns * (uint64_t)mn_dtype_bytes(table->spec.dtype) +
                     mn_state_row_bytes(&table->spec.optimizer, table->planes[i].columns) +
                     sizeof(uint32_t);
    *out_info = (mn_table_info){
        .table = table->id,
        .spec = table->spec,
        .tile_first = table->tile_first,
        .tile_count = table->tile_count,
        .rows_written = plane ? plane->rows_written : 0,
        .resident_bytes = plane ? plane->rows_written * row_bytes : 0,
        .counters = table->counter_rows,
        .moved = table->moved,
    };
    if (!move || move->table != table->id)
        return;
    out_info->move = move->number;
    out_info->move_from = move->from;
    out_info->move_to = move->to;
    out_info->move_overdue = mn_shard_move_overdue(shard, move);
}

enum mn_status mn_shard_describe(mn_shard *shard, mn_call *call, mn_error *error)
{
    const mn_request *request = &call->request;
    struct group *group;
    enum mn_status status = mn_shard_check_group(shard, call, true, &group, error);
    if (status)
        return status;
    struct table *table;
    status = mn_shard_table_named(shard, group, request, &table, error);
    if (status)
        return status;
    status = mn_shard_usage_tell(table, call, error);
    if (status)
        return status;
    fill_table(shard, group, table, &shard->table_infos[0]);
    call->reply.table = table->id;
    call->reply.tables = shard->table_infos;
    call->reply.table_count = 1;
    return MN_OK;
}

enum mn_status mn_shard_list(mn_shard *shard, mn_call *call, mn_error *error)
{
    struct group *group;
    enum mn_status status = mn_shard_check_group(shard, call, true, &group, error);
    if (status)
        return status;
    uint32_t count = 0;
    for (uint32_t i = 0; i < shard->options.tables_max && count < MN_INFO_MAX; i++)
        if (group->tables[i].id)
            fill_table(shard, group, &group->tables[i], &shard->table_infos[count++]);
    call->reply.tables = shard->table_infos;
    call->reply.table_count = count;
    return MN_OK;
}

static void fill_group(const mn_shard *shard, const struct group *group, mn_group_info *out_info)
{
    *out_info = (mn_group_info){
        .ranks = group->ranks,
        .committed_step = group->committed,
        .map_epoch = group->map_epoch,
        .read_bytes = group->read_bytes,
        .read_bytes_max = shard->options.read_bytes_max,
        .change_bytes = group->change_bytes,
        .change_bytes_max = shard->options.change_bytes_max,
        .parked = group->parked_count,
    };
    memcpy(out_info->name, group->name, sizeof out_info->name);
    for (uint32_t i = 0; i < shard->options.tables_max; i++)
        out_info->tables += group->tables[i].id != 0;
}

/* The map is a function of tile and shard counts, so all that Map tells is these, and the epoch: 0
 * while the group is not here. */
enum mn_status mn_shard_map(mn_shard *shard, mn_call *call, mn_error *error)
{
    (void)error; /* one signature for all verbs */
    const struct group *group = mn_shard_group_find(shard, call->request.context.group);
    if (group) {
        fill_group(shard, group, &shard->group_infos[0]);
        call->reply.groups = shard->group_infos;
        call->reply.group_count = 1;
    }
    return MN_OK;
}

/* The Snapshot or Restore that is at work, and the last one, of the group or of any. */
static uint32_t fill_files(mn_shard *shard, const char *name)
{
    const uint64_t now_ns = shard->env.now_ns(shard->env.context);
    mn_files_info *infos = shard->files_infos;
    uint32_t count = 0;
    if (shard->job)
        infos[count++] = mn_shard_job_info(shard->job, now_ns);
    if (shard->files_last.group[0]) {
        infos[count] = shard->files_last;
        infos[count++].ended_ms = (now_ns - shard->files_last_ns) / 1000000 + 1;
    }
    uint32_t wanted = 0;
    for (uint32_t i = 0; i < count; i++)
        if (!name[0] || !strncmp(name, infos[i].group, MN_NAME_BYTES))
            infos[wanted++] = infos[i];
    return wanted;
}

enum mn_status mn_shard_service_status(mn_shard *shard, mn_call *call, mn_error *error)
{
    const char *name = call->request.context.group;
    uint32_t count = 0;
    for (uint32_t i = 0; i < shard->options.groups_max; i++) {
        const struct group *group = &shard->groups[i];
        if (group->name[0] && (!name[0] || !strncmp(name, group->name, MN_NAME_BYTES)))
            fill_group(shard, group, &shard->group_infos[count++]);
    }
    call->reply.files_count = fill_files(shard, name);
    if (name[0] && !count && !call->reply.files_count) /* a group loaded stands at the end */
        return mn_fail(error, MN_NOT_FOUND, "group", "%s is not at this shard", name);
    call->reply.files = shard->files_infos;
    call->reply.groups = shard->group_infos;
    call->reply.group_count = count;
    return MN_OK;
}
