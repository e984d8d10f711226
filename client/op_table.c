/* Tables: handles, and the operations that open, find and drop them. */
#include "client_private.h"

#include "mn_kernels.h"

#include <string.h>

/* ---- Handles ---- */

/* The shares follow from the tiles that each shard holds. */
static void shape(mn_table *table)
{
    const mn_geometry *geometry = &table->geometry;
    const mn_optimizer *optimizer = &table->spec.optimizer;
    bool columns = table->spec.split == MN_COLUMNS;
    table->state_row_bytes = table->holders = 0;
    for (uint32_t shard = 0; shard < table->core->shards; shard++) {
        mn_share *share = &table->shares[shard];
        table->holders += share->tile_count > 0;
        share->column_first = share->columns = 0;
        share->state_bytes = 0;
        share->state_first = table->state_row_bytes;
        for (uint32_t i = 0; columns && i < share->tile_count; i++) {
            uint32_t width = mn_tile_columns(geometry, share->tile_first + i);
            share->columns += width;
            share->state_bytes += mn_state_row_bytes(optimizer, width);
        }
        if (columns && share->tile_count)
            share->column_first = mn_tile_first_column(geometry, share->tile_first);
        table->state_row_bytes += share->state_bytes;
    }
    if (columns)
        return;
    table->state_row_bytes = mn_state_row_bytes(optimizer, table->spec.dim);
    for (uint32_t shard = 0; shard < table->core->shards; shard++) {
        table->shares[shard].columns = table->spec.dim;
        table->shares[shard].state_first = 0;
        table->shares[shard].state_bytes = table->state_row_bytes;
    }
}

/* As they are made. */
static void map_new(mn_table *table)
{
    table->moved = 0;
    table->map_epoch = table->core->epoch;
    for (uint32_t shard = 0; shard < table->core->shards; shard++)
        mn_map_tiles(table->geometry.tiles, table->core->shards, shard,
                     &table->shares[shard].tile_first, &table->shares[shard].tile_count);
    shape(table);
}

void mn_table_follow(mn_table *table)
{
    if (table->map_epoch != table->core->epoch)
        map_new(table);
}

void mn_table_remap(mn_table *table, const mn_holding *holdings)
{
    bool same = holdings[0].moved == table->moved;
    for (uint32_t shard = 0; same && shard < table->core->shards; shard++)
        same = table->shares[shard].tile_first == holdings[shard].tile_first &&
               table->shares[shard].tile_count == holdings[shard].tile_count;
    if (same)
        return;
    table->moved = holdings[0].moved;
    for (uint32_t shard = 0; shard < table->core->shards; shard++) {
        table->shares[shard].tile_first = holdings[shard].tile_first;
        table->shares[shard].tile_count = holdings[shard].tile_count;
    }
    shape(table);
    if (!(table->core->options.plants & MN_CORE_PLANT_OLD_CUT))
        mn_steps_forget(table->core, table->id);
    mn_data_recut(table);
}

/* Moves go between neighbours: it is not far from where the tile was made. */
uint32_t mn_table_shard(const mn_table *table, uint32_t tile)
{
    const mn_share *shares = table->shares;
    uint32_t shard = mn_map_shard(table->geometry.tiles, table->core->shards, tile);
    while (tile < shares[shard].tile_first)
        shard--;
    while (tile - shares[shard].tile_first >= shares[shard].tile_count)
        shard++;
    return shard;
}

/* Handles of the name are dropped ones. */
static void table_forget(mn_core *core, const char *name)
{
    for (mn_table *table = core->tables; table; table = table->next)
        if (strcmp(table->spec.name, name) == 0)
            table->id = 0;
}

/* Gives the id to the handle of this name and spec, or makes one. MN_NO_MEMORY. */
static enum mn_status table_adopt(mn_core *core, uint64_t id, const mn_table_spec *spec,
                                  mn_table **out_table, mn_error *error)
{
    mn_table *table = core->tables;
    const char *field;
    while (table && (strcmp(table->spec.name, spec->name) != 0 ||
                     !mn_spec_equal(&table->spec, spec, &field)))
        table = table->next;
    if (!table) {
        uint64_t shares_bytes = core->shards * sizeof *table->shares;
        table = mn_core_allocate(core, sizeof *table);
        mn_share *shares = mn_core_allocate(core, shares_bytes);
        if (!table || !shares) {
            mn_core_release(core, table, sizeof *table);
            mn_core_release(core, shares, shares_bytes);
            return mn_fail(error, MN_NO_MEMORY, "table", "no memory for a handle of \"%s\"",
                           spec->name);
        }
        table->core = core;
        table->spec = *spec;
        table->shares = shares;
        mn_geometry_init(spec, &table->geometry);
        map_new(table);
        table->next = core->tables;
        core->tables = table;
    }
    for (uint32_t shard = 0; table->id != id && shard < core->shards; shard++)
        table->shares[shard].told_epoch = 0;
    if (table->id != id)
        map_new(table);
    table_forget(core, spec->name);
    table->id = id;
    *out_table = table;
    return MN_OK;
}

void mn_table_tell(mn_table *table, uint32_t shard)
{
    table->shares[shard].told_epoch = table->core->epoch;
}

static bool is_told(const mn_core *core, uint64_t id, uint32_t shard)
{
    const mn_table *table = core->tables;
    while (table && table->id != id)
        table = table->next;
    return table && table->shares[shard].told_epoch == core->epoch;
}

bool mn_tables_told(const mn_core *core, const mn_request *request, uint32_t shard)
{
    const mn_proposal *proposal = &request->proposal;
    bool told = request->verb == MN_VERB_SEAL && proposal->set_count > 0;
    if (request->table)
        return is_told(core, request->table, shard);
    for (uint32_t i = 0; told && i < proposal->set_count; i++)
        for (uint32_t t = 0; told && t < proposal->sets[i].table_count; t++)
            told = is_told(core, proposal->sets[i].tables[t], shard);
    return told;
}

void mn_tables_release(mn_core *core)
{
    for (mn_table *table = core->tables, *next; table; table = next) {
        next = table->next;
        mn_core_release(core, table->shares, core->shards * sizeof *table->shares);
        mn_core_release(core, table, sizeof *table);
    }
    core->tables = NULL;
}

const mn_table_spec *mn_core_table_spec(const mn_table *table) { return &table->spec; }
uint64_t mn_core_table_id(const mn_table *table) { return table->id; }
mn_core *mn_core_of_table(const mn_table *table) { return table->core; }

/* The home shard has answered: the phase at the others, which is complete where there are none. */
static void phase_others(mn_task *task, const mn_phase *phase)
{
    if (task->core->shards == 1) {
        phase->complete(task);
        return;
    }
    mn_phase_begin(task, phase);
    for (uint32_t shard = 1; shard < task->core->shards; shard++)
        mn_lane_open(task, shard, 1);
    mn_phase_go(task);
}

/* ---- Open: created at the home shard, which gives the id, then at the others ---- */

static void fill_create(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    mn_request *request = &slot->exchange.request;
    request->spec = task->spec;
    request->ranks = task->core->options.ranks;
    request->durability = task->core->options.durability;
    request->table = lane->shard == 0 ? 0 : task->table;
    request->context.step = task->core->step; /* a shard behind it has lost the group */
}

static enum mn_status answered_create(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    const mn_reply *reply = &slot->exchange.reply;
    if (lane->shard == 0)
        task->table = reply->table;
    if (reply->table == 0 || reply->table != task->table)
        return mn_fail(&task->error, MN_CORRUPT, "table", "shard %u gave the id %llu", lane->shard,
                       (unsigned long long)reply->table);
    return MN_OK;
}

static void complete_create(mn_task *task)
{
    enum mn_status status =
        table_adopt(task->core, task->table, &task->spec, &task->operation->table, &task->error);
    for (uint32_t shard = 0; !status && shard < task->core->shards; shard++)
        mn_table_tell(task->operation->table, shard);
    mn_task_end(task, status);
}

static const mn_phase create_phase = {MN_VERB_CREATE_TABLE, fill_create, answered_create, NULL,
                                      complete_create};

static void complete_home(mn_task *task) { phase_others(task, &create_phase); }

static const mn_phase home_phase = {MN_VERB_CREATE_TABLE, fill_create, answered_create, NULL,
                                    complete_home};

void mn_begin_table_open(mn_task *task)
{
    enum mn_status status = mn_spec_check(&task->operation->spec, &task->spec, &task->error);
    if (status)
        mn_task_end(task, status);
    else
        mn_phase_home(task, &home_phase);
}

/* ---- Find and drop, by name ---- */

static void fill_name(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the same for every shard */
    memcpy(slot->exchange.request.spec.name, task->operation->spec.name, MN_NAME_BYTES);
}

static enum mn_status answered_find(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    const mn_reply *reply = &slot->exchange.reply;
    if (reply->table_count != 1)
        return mn_fail(&task->error, MN_CORRUPT, "tables", "shard %u described %u tables",
                       lane->shard, reply->table_count);
    enum mn_status status = mn_spec_check(&reply->tables[0].spec, &task->spec, &task->error);
    if (status)
        return status;
    return table_adopt(task->core, reply->tables[0].table, &task->spec, &task->operation->table,
                       &task->error);
}

static const mn_phase find_phase = {MN_VERB_DESCRIBE, fill_name, answered_find, NULL, mn_task_done};

/* The id that the home shard told, so that a CreateTable of it that is still under way makes
 * nothing anew; by name where the home shard has dropped it before. */
static void fill_drop(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    fill_name(task, lane, slot);
    slot->exchange.request.table = task->table;
}

static enum mn_status answered_drop(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    if (lane->shard == 0)
        task->table = slot->exchange.reply.table;
    task->accepted++;
    return MN_OK;
}

/* A drop made again finds the table at the shards only that the first one did not reach. */
static bool refused_drop(mn_task *task, mn_lane *lane, const mn_reply *reply)
{
    mn_error_of_shard(&task->error, lane->shard, reply->status, reply);
    return reply->status == MN_NOT_FOUND;
}

static void complete_drop(mn_task *task)
{
    table_forget(task->core, task->operation->spec.name);
    mn_task_end(task, task->accepted ? MN_OK : MN_NOT_FOUND);
}

static const mn_phase drop_phase = {MN_VERB_DROP, fill_drop, answered_drop, refused_drop,
                                    complete_drop};

static void complete_drop_home(mn_task *task) { phase_others(task, &drop_phase); }

static const mn_phase drop_home_phase = {MN_VERB_DROP, fill_drop, answered_drop, refused_drop,
                                         complete_drop_home};

static bool check_name(mn_task *task)
{
    const char *name = task->operation->spec.name;
    if (mn_name_valid(name))
        return true;
    mn_task_end(task, mn_fail(&task->error, MN_INVALID, "name", "\"%.63s\" is not a name", name));
    return false;
}

static void find(mn_task *task) { mn_phase_home(task, &find_phase); }

/* A reader asks again where the group stands: it may have come, or been restored, since. */
void mn_begin_table_find(mn_task *task)
{
    if (!check_name(task))
        return;
    if (!task->core->options.reader) {
        find(task);
        return;
    }
    task->joined = find;
    mn_begin_join(task);
}

void mn_begin_table_drop(mn_task *task)
{
    if (check_name(task))
        mn_phase_home(task, &drop_home_phase);
}
