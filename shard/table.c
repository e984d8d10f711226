/* Tables: planes in reserved address space, CreateTable, Drop. */
#include "move.h"
#include "shard_device.h"

/* Bytes of a plane's arrays; one at least, as the last blocks of a table may hold no row. */
static uint64_t row_value_bytes(const mn_tile *plane)
{
    return plane->columns * (uint64_t)mn_dtype_bytes(plane->dtype);
}

static uint64_t value_bytes(const mn_tile *plane)
{
    return plane->rows * row_value_bytes(plane) + !plane->rows;
}

static uint64_t state_bytes(const mn_tile *plane)
{
    uint64_t row_bytes = mn_state_row_bytes(&plane->optimizer, plane->columns);
    return plane->rows * row_bytes + (row_bytes && !plane->rows);
}

static uint64_t update_bytes(const mn_tile *plane)
{
    return plane->rows * sizeof(uint32_t) + !plane->rows;
}

static void unreserve(mn_shard *shard, void *memory, uint64_t bytes)
{
    if (memory && shard->device)
        shard->device->unreserve(shard, memory);
    else if (memory)
        shard->env.unreserve(shard->env.context, memory, bytes);
}

static void plane_release(mn_shard *shard, mn_tile *plane)
{
    unreserve(shard, plane->values, value_bytes(plane));
    unreserve(shard, plane->state, state_bytes(plane));
    unreserve(shard, plane->updates, update_bytes(plane));
}

static void *reserve(mn_shard *shard, uint64_t bytes, bool zeroed)
{
    if (shard->device)
        return shard->device->reserve(shard, bytes, zeroed);
    return shard->env.reserve(shard->env.context, bytes); /* zero pages in any case */
}

/* Nothing is resident until written: a table of a billion parameters is there at once. */
static bool plane_reserve(mn_shard *shard, mn_tile *plane)
{
    plane->values = reserve(shard, value_bytes(plane), false);
    if (state_bytes(plane))
        plane->state = reserve(shard, state_bytes(plane), false);
    plane->updates = reserve(shard, update_bytes(plane), true);
    return plane->values && plane->updates && (plane->state || !state_bytes(plane));
}

static void plane_init(const struct table *table, uint32_t index, mn_tile *plane)
{
    const mn_table_spec *spec = &table->spec;
    const mn_geometry *geometry = &table->geometry;
    plane->dtype = spec->dtype;
    plane->optimizer = spec->optimizer;
    plane->init = spec->init;
    plane->seed = spec->seed;
    plane->table_rows = spec->rows;
    if (geometry->split == MN_ROWS) {
        uint64_t end = (uint64_t)(table->tile_first + table->tile_count) * geometry->rows_per_tile;
        plane->rows = (end < spec->rows ? end : spec->rows) - table->position_first;
        plane->columns = spec->dim;
        plane->row_base = table->position_first;
        plane->row_inverse = geometry->inverse;
    } else {
        plane->rows = spec->rows;
        plane->columns = mn_tile_columns(geometry, table->tile_first + index);
        plane->first_column = mn_tile_first_column(geometry, table->tile_first + index);
        plane->row_base = 0;
        plane->row_inverse = 1;
    }
}

/* Address space of a plane: at most 2^40 rows of 65,536 columns of 4 bytes, with twice that in
 * state, so the sums stay below 2^61. */
static uint64_t plane_bytes(const mn_tile *plane)
{
    return value_bytes(plane) + state_bytes(plane) + update_bytes(plane);
}

static void place(struct table *table, struct tile_range tiles)
{
    const mn_geometry *geometry = &table->geometry;
    table->tile_first = tiles.first;
    table->tile_count = tiles.count;
    table->position_first = 0;
    table->plane_count = table->tile_count;
    if (geometry->split == MN_ROWS) {
        uint64_t first = (uint64_t)table->tile_first * geometry->rows_per_tile;
        table->position_first = first < geometry->rows ? first : geometry->rows;
        table->plane_count = table->tile_count > 0;
    }
}

static uint64_t states_bytes(const struct table *table)
{
    return (table->tile_count + UINT64_C(1)) * sizeof *table->states; /* none is no failure */
}

enum mn_status mn_shard_table_init_bare(mn_shard *shard, uint64_t id, const mn_table_spec *checked,
                                        struct tile_range tiles, struct table *out_table,
                                        mn_error *error)
{
    struct table table = {.spec = *checked};
    enum mn_status status = MN_NO_MEMORY;
    mn_geometry_init(checked, &table.geometry);
    place(&table, tiles);
    if (table.plane_count) {
        table.planes =
            shard->env.allocate(shard->env.context, table.plane_count * sizeof *table.planes);
        if (!table.planes)
            goto fail;
    }
    for (uint32_t i = 0; i < table.plane_count; i++) {
        plane_init(&table, i, &table.planes[i]);
        table.columns += table.planes[i].columns;
        uint64_t bytes = plane_bytes(&table.planes[i]), max = shard->options.table_bytes_max;
        uint64_t left = max > shard->table_bytes ? max - shard->table_bytes : 0;
        if (bytes > left && !shard->recovery) { /* groups are replayed in another order */
            status = bytes > max - table.reserved_bytes ? MN_INVALID : MN_BUSY;
            goto fail;
        }
        table.reserved_bytes += bytes;
        shard->table_bytes += bytes;
        const bool reserved = plane_reserve(shard, &table.planes[i]);
        if (table.geometry.split == MN_ROWS)
            table.whole = table.planes[i];
        if (!reserved)
            goto fail;
    }
    table.states = shard->env.allocate(shard->env.context, states_bytes(&table));
    if (!table.states)
        goto fail;
    table.id = id;
    *out_table = table;
    return MN_OK;
fail:
    table.id = UINT64_MAX; /* not 0, so that deinit gives back what stands */
    mn_shard_table_deinit(shard, &table);
    if (status == MN_INVALID)
        return mn_fail(error, MN_INVALID, "rows",
                       "table %s takes more address space here than table_bytes_max (%" PRIu64
                       ") will ever give",
                       checked->name, shard->options.table_bytes_max);
    if (status == MN_BUSY)
        return mn_fail(error, MN_BUSY, "table_bytes_max",
                       "no address space for table %s: %" PRIu64 " of %" PRIu64 " bytes are taken",
                       checked->name, shard->table_bytes, shard->options.table_bytes_max);
    return mn_fail(error, MN_NO_MEMORY, "table", "no memory for table %s", checked->name);
}

enum mn_status mn_shard_table_init(mn_shard *shard, uint64_t id, const mn_table_spec *checked,
                                   struct tile_range tiles, struct table *out_table,
                                   mn_error *error)
{
    struct table table = {0};
    enum mn_status status = mn_shard_table_init_bare(shard, id, checked, tiles, &table, error);
    if (!status && mn_shard_usage_init(shard, &table)) {
        mn_shard_table_deinit(shard, &table);
        status = mn_fail(error, MN_NO_MEMORY, "table", "no memory for table %s", checked->name);
    }
    if (!status)
        *out_table = table;
    return status;
}

struct tile_range mn_shard_tiles_mapped(const mn_shard *shard, const mn_table_spec *checked)
{
    struct tile_range tiles;
    mn_map_tiles(checked->tiles, shard->options.shards, shard->options.shard, &tiles.first,
                 &tiles.count);
    return tiles;
}

void mn_shard_table_deinit(mn_shard *shard, struct table *table)
{
    if (!table->id)
        return;
    mn_shard_usage_deinit(shard, table);
    for (uint32_t i = 0; table->planes && i < table->plane_count; i++)
        plane_release(shard, table->geometry.split == MN_ROWS ? &table->whole : &table->planes[i]);
    shard->env.release(shard->env.context, table->planes,
                       table->plane_count * sizeof *table->planes);
    shard->env.release(shard->env.context, table->states, states_bytes(table));
    shard->table_bytes -= table->reserved_bytes;
    memset(table, 0, sizeof *table);
}

/* ---- Other tiles */

static bool holds(const struct table *table, uint32_t tile)
{
    return table->id && tile >= table->tile_first && tile - table->tile_first < table->tile_count;
}

/* Of a rows table: the part of its plane that these tiles are. */
static mn_tile part_of(const struct table *table, const struct table *next)
{
    mn_tile part = table->planes[0];
    const uint64_t first = next->position_first - table->position_first;
    plane_init(next, 0, &part);
    part.values = (uint8_t *)part.values + first * row_value_bytes(&part);
    if (part.state)
        part.state =
            (uint8_t *)part.state + first * mn_state_row_bytes(&part.optimizer, part.columns);
    part.updates += first;
    return part;
}

/* What lies in an array of the old plane and not in the new one's, a part of it. */
static void vacate(mn_shard *shard, void *old, uint64_t old_rows, void *new, uint64_t new_rows,
                   uint64_t row_bytes)
{
    const mn_env *env = &shard->env;
    uint8_t *end = (uint8_t *)old + old_rows * row_bytes;
    uint8_t *new_end = (uint8_t *)new + new_rows *row_bytes;
    env->vacate(env->context, old, (uint64_t)((uint8_t *)new - (uint8_t *)old));
    env->vacate(env->context, new_end, (uint64_t)(end - new_end));
}

static void vacate_planes(mn_shard *shard, const mn_tile *old, const mn_tile *new)
{
    const uint64_t state_row_bytes = mn_state_row_bytes(&old->optimizer, old->columns);
    vacate(shard, old->values, old->rows, new->values, new->rows, row_value_bytes(old));
    vacate(shard, old->updates, old->rows, new->updates, new->rows, sizeof *old->updates);
    if (state_row_bytes)
        vacate(shard, old->state, old->rows, new->state, new->rows, state_row_bytes);
}

static void next_planes(const struct table *table, const struct table *aside, struct table *next)
{
    next->columns = 0;
    next->reserved_bytes = 0;
    for (uint32_t i = 0; i < next->plane_count; i++) {
        const uint32_t tile = next->tile_first + i;
        if (table->geometry.split == MN_ROWS)
            next->planes[i] = aside->id ? aside->planes[i] : part_of(table, next);
        else if (holds(table, tile))
            next->planes[i] = table->planes[tile - table->tile_first];
        else
            next->planes[i] = aside->planes[tile - aside->tile_first];
        next->columns += next->planes[i].columns;
        next->reserved_bytes += plane_bytes(&next->planes[i]);
    }
}

enum mn_status mn_shard_table_next(mn_shard *shard, const struct table *table,
                                   const struct table *aside, struct tile_range tiles,
                                   struct tile_state state, struct table *out_next, mn_error *error)
{
    const mn_env *env = &shard->env;
    struct table next = *table;
    assert(tiles.count);
    place(&next, tiles);
    next.planes = env->allocate(env->context, next.plane_count * sizeof *next.planes);
    next.states = env->allocate(env->context, states_bytes(&next));
    if (!next.planes || !next.states) {
        mn_shard_table_give(shard, &next);
        return mn_fail(error, MN_NO_MEMORY, "table", "no memory for %u tiles of table %s",
                       tiles.count, table->spec.name);
    }
    next_planes(table, aside, &next);
    if (aside->id)
        next.whole = aside->whole;
    for (uint32_t i = 0; i < tiles.count; i++) {
        const uint32_t tile = tiles.first + i;
        next.states[i] = holds(table, tile) ? table->states[tile - table->tile_first] : state;
    }
    *out_next = next;
    return MN_OK;
}

void mn_shard_table_give(mn_shard *shard, struct table *next)
{
    const mn_env *env = &shard->env;
    env->release(env->context, next->planes, next->plane_count * sizeof *next->planes);
    env->release(env->context, next->states, states_bytes(next));
}

void mn_shard_table_become(mn_shard *shard, struct table *table, struct table *aside,
                           const struct table *next)
{
    const bool rows = table->geometry.split == MN_ROWS;
    if (aside->id && table->promoted)
        mn_shard_table_promote_now(shard, aside);
    for (uint32_t i = 0; !rows && i < table->plane_count; i++)
        if (!holds(next, table->tile_first + i))
            plane_release(shard, &table->planes[i]);
    if (rows && aside->id)
        plane_release(shard, &table->whole);
    else if (rows)
        vacate_planes(shard, &table->planes[0], &next->planes[0]);
    if (rows)
        mn_shard_usage_deinit(shard, table);
    shard->table_bytes += next->reserved_bytes - table->reserved_bytes - aside->reserved_bytes;
    mn_shard_table_give(shard, table);
    if (aside->id)
        mn_shard_table_give(shard, aside);
    *aside = (struct table){0};
    *table = *next;
    if (rows) {
        table->counters = NULL;
        table->counter_rows = 0;
        (void)mn_shard_usage_init(shard, table); /* without memory its reads are not counted */
    }
    mn_shard_table_promote(shard, table);
}

/* ---- By id or name */

struct table *mn_shard_table_find(mn_shard *shard, struct group *group, uint64_t id,
                                  const char *name)
{
    for (uint32_t i = 0; i < shard->options.tables_max; i++) {
        struct table *table = &group->tables[i];
        if (table->id && (name ? !strncmp(table->spec.name, name, MN_NAME_BYTES) : table->id == id))
            return table;
    }
    return NULL;
}

enum mn_status mn_shard_table_named(mn_shard *shard, struct group *group, const mn_request *request,
                                    struct table **out_table, mn_error *error)
{
    const char *name = request->table ? NULL : request->spec.name;
    struct table *table = mn_shard_table_find(shard, group, request->table, name);
    if (!table && name)
        return mn_fail(error, MN_NOT_FOUND, "table", "\"%.63s\" is no table of group %s here", name,
                       group->name);
    if (!table)
        return mn_fail(error, MN_NOT_FOUND, "table", "%" PRIu64 " is no table of group %s here",
                       request->table, group->name);
    *out_table = table;
    return MN_OK;
}

/* Until a quarter of the rows is written, pages are small and memory follows the rows; then most
 * of it will be touched anyway, and large pages save the processor's address cache. */
void mn_shard_table_promote(mn_shard *shard, struct table *table)
{
    if (table->plane_count && table->planes[0].rows_written >= table->planes[0].rows / 4)
        mn_shard_table_promote_now(shard, table);
}

void mn_shard_table_promote_now(mn_shard *shard, struct table *table)
{
    void *context = shard->env.context;
    if (table->promoted)
        return;
    table->promoted = true;
    for (uint32_t i = 0; !shard->device && i < table->plane_count; i++) {
        mn_tile *plane = &table->planes[i];
        shard->env.promote(context, plane->values, value_bytes(plane));
        if (plane->state)
            shard->env.promote(context, plane->state, state_bytes(plane));
    }
    if (table->counters)
        shard->env.promote(context, table->counters, table->counter_rows * sizeof *table->counters);
}

/* ---- CreateTable, Drop */

static bool was_dropped(const struct group *group, uint64_t id)
{
    for (uint32_t i = 0; i < DROPS_KEPT; i++)
        if (group->dropped[i] == id)
            return true;
    return false;
}

enum mn_status mn_shard_table_missing(const mn_shard *shard, const struct group *group,
                                      const mn_context *context, uint64_t id, const char *field,
                                      mn_error *error)
{
    bool may_be_dropped = was_dropped(group, id) || group->drop_count >= DROPS_KEPT;
    if (context->table_told && !may_be_dropped && !planted(shard, MN_PLANT_NO_TOLD))
        return mn_fail(error, MN_LOST, field,
                       "table %" PRIu64 " of group %s stood here, but this shard has lost it: load "
                       "a saved group",
                       id, group->name);
    return mn_fail(error, MN_NOT_FOUND, field, "%" PRIu64 " is no table of group %s here", id,
                   group->name);
}

/* Also of a table that is not here: its CreateTable may come late. */
static enum mn_status remember_drop(mn_shard *shard, struct group *group, const mn_request *request,
                                    uint64_t id, mn_error *error)
{
    if (!id || was_dropped(group, id))
        return MN_OK;
    mn_request record = *request;
    record.table = id;
    enum mn_status status = mn_shard_log_append(shard, group, &record, error);
    if (!status)
        group->dropped[group->drop_count++ % DROPS_KEPT] = id;
    return status;
}

/* The id under which a new table may come into being here, or why not. A shard that lost its group
 * (it came back empty and was joined again) stands behind its client: it makes nothing anew. */
static enum mn_status new_id(mn_shard *shard, struct group *group, const mn_request *request,
                             uint64_t *out_id, mn_error *error)
{
    uint64_t logged = request->table; /* the id that was given then, to this table alone */
    if (shard->recovery &&
        (!logged || logged == UINT64_MAX || mn_shard_table_find(shard, group, logged, NULL)))
        return mn_fail(error, MN_CORRUPT, "table", "%" PRIu64 " is no id of a new table", logged);
    if (shard->recovery) {
        *out_id = logged;
        return MN_OK;
    }
    if (request->table == 0 && !is_home(shard))
        return mn_fail(error, MN_INVALID, "table",
                       "0: the home shard (0) gives the id, this is "
                       "shard %u",
                       shard->options.shard);
    if (request->table != 0 && is_home(shard))
        return mn_fail(error, MN_LOST, "table", "%" PRIu64 " (%s) is not held here", request->table,
                       request->spec.name);
    if (request->table != 0 && request->context.step > group->committed)
        return mn_fail(error, MN_LOST, "table",
                       "%" PRIu64 " (%s) is not held here, and this shard "
                       "stands at step %" PRIu64 ", behind %" PRIu64,
                       request->table, request->spec.name, group->committed, request->context.step);
    if (request->table != 0 && was_dropped(group, request->table))
        return mn_fail(error, MN_NOT_FOUND, "table", "%" PRIu64 " (%s) was dropped", request->table,
                       request->spec.name);
    *out_id = request->table ? request->table : shard->next_table;
    return MN_OK;
}

static enum mn_status check_same(const struct table *table, const mn_request *request,
                                 const mn_table_spec *checked, mn_error *error)
{
    const char *field = "spec";
    if (!mn_spec_equal(&table->spec, checked, &field)) {
        char stands[MN_SPEC_VALUE_BYTES], asked[MN_SPEC_VALUE_BYTES];
        mn_spec_value(&table->spec, field, stands);
        mn_spec_value(checked, field, asked);
        return mn_fail(error, MN_CONFLICT, field, "table %s stands with %s %s, not %s",
                       table->spec.name, field, stands, asked);
    }
    if (request->table && request->table != table->id)
        return mn_fail(error, MN_CONFLICT, "table", "%" PRIu64 ", but %s is %" PRIu64 " here",
                       request->table, table->spec.name, table->id);
    return MN_OK;
}

/* The request as it takes effect here: with the id, and all that the group was made with. */
static enum mn_status log_create(mn_shard *shard, struct group *group, const mn_request *request,
                                 uint64_t id, mn_error *error)
{
    mn_request record = *request;
    record.context.map_epoch = group->map_epoch;
    record.table = id;
    record.ranks = group->ranks;
    record.durability = group->log.level;
    return mn_shard_log_append(shard, group, &record, error);
}

static enum mn_status create(mn_shard *shard, struct group *group, const mn_request *request,
                             const mn_table_spec *checked, struct table **out_table,
                             mn_error *error)
{
    uint64_t id = 0;
    if (shard->job)
        return mn_fail(error, MN_BUSY, "table", "a snapshot or restore runs");
    enum mn_status status = new_id(shard, group, request, &id, error);
    if (status)
        return status;
    struct table *free_place = NULL;
    for (uint32_t i = shard->options.tables_max; i-- > 0;)
        if (!group->tables[i].id)
            free_place = &group->tables[i];
    if (!free_place)
        return mn_fail(error, MN_BUSY, "tables_max", "group %s holds %u tables already",
                       group->name, shard->options.tables_max);
    status = mn_shard_table_init(shard, id, checked, mn_shard_tiles_mapped(shard, checked),
                                 free_place, error);
    if (status)
        return status;
    status = log_create(shard, group, request, id, error);
    if (status) {
        mn_shard_table_deinit(shard, free_place);
        return status;
    }
    if (shard->next_table <= id)
        shard->next_table = id + 1;
    for (uint32_t i = 0; i < free_place->tile_count; i++)
        free_place->states[i] =
            (struct tile_state){group->map_epoch, group->committed, group->life};
    *out_table = free_place;
    return MN_OK;
}

enum mn_status mn_shard_create_table(mn_shard *shard, mn_call *call, mn_error *error)
{
    const mn_request *request = &call->request;
    struct group *group = mn_shard_group_find(shard, request->context.group);
    mn_table_spec checked;
    enum mn_status status = MN_OK;
    if (group || (request->context.incarnation && !shard->recovery))
        status = mn_shard_check_group(shard, call, true, &group, error); /* says what is lost */
    if (!status)
        status = mn_spec_check(&request->spec, &checked, error);
    bool new_group = !group;
    if (!status && (new_group || request->ranks))
        status = mn_shard_group_open(shard, request, &group, error);
    if (status)
        return status;
    struct table *table = mn_shard_table_find(shard, group, 0, checked.name);
    bool made = !table;
    status = table ? check_same(table, request, &checked, error)
                   : create(shard, group, request, &checked, &table, error);
    if (!status)
        call->reply.table = table->id;
    if (!status && made)
        mn_shard_log(shard, 1, "create_table", call,
                     "table=%" PRIu64 " name=%s rows=%" PRIu64 " dim=%u tiles=%u", table->id,
                     checked.name, checked.rows, checked.dim, table->tile_count);
    if (status && new_group)
        mn_shard_group_deinit(shard, group);
    return status;
}

enum mn_status mn_shard_drop(mn_shard *shard, mn_call *call, mn_error *error)
{
    const mn_request *request = &call->request;
    struct group *group;
    enum mn_status status = mn_shard_check_group(shard, call, true, &group, error);
    if (status)
        return status;
    struct table *table;
    status = mn_shard_table_named(shard, group, request, &table, error);
    if (status) {
        enum mn_status kept = remember_drop(shard, group, request, request->table, error);
        return kept ? kept : status;
    }
    for (uint32_t i = 0; i < shard->options.open_steps_max; i++) {
        const struct step *step = &group->steps[i];
        if (step->tables[table - group->tables].first || step->seal_count)
            return mn_fail(error, MN_BUSY, "table",
                           "an open step has parts or seals: drop %s "
                           "once it is committed",
                           table->spec.name);
    }
    if (shard->job)
        return mn_fail(error, MN_BUSY, "table", "a snapshot or restore runs");
    status = remember_drop(shard, group, request, table->id, error);
    if (status)
        return status;
    call->reply.table = table->id;
    mn_shard_log(shard, 1, "drop", call, "table=%" PRIu64 " name=%s", table->id, table->spec.name);
    mn_shard_image_abort(shard, group);
    mn_shard_move_dropped(shard, group, table->id);
    mn_shard_table_deinit(shard, table);
    return MN_OK;
}
