/* Checks of a request, in the order of STEPS.md "Checks". Each message names the field and its
 * value; a request that fails one has changed nothing. */
#include "move.h"

enum mn_status mn_shard_check_request(mn_shard *shard, const mn_call *call, mn_error *error)
{
    const mn_request *request = &call->request;
    const mn_context *context = &request->context;
    if (context->version < MN_PROTOCOL_VERSION_LEAST || context->version > MN_PROTOCOL_VERSION)
        return mn_fail(error, MN_UNSUPPORTED, "version", "%u is not between %d and %d",
                       context->version, MN_PROTOCOL_VERSION_LEAST, MN_PROTOCOL_VERSION);
    if ((unsigned)request->verb >= MN_VERB_COUNT)
        return mn_fail(error, MN_UNSUPPORTED, "verb", "%u is unknown", (unsigned)request->verb);
    bool any_group = request->verb == MN_VERB_STATUS && !context->group[0];
    if (!any_group && !mn_name_valid(context->group))
        return mn_fail(error, MN_INVALID, "group",
                       "\"%.63s\" is not a name of 1 to 63 letters, "
                       "digits, dots, dashes and underscores",
                       context->group);
    if (context->remaining_ms == 0)
        return mn_fail(error, MN_INVALID, "remaining_ms", "0: the call's time ran out already");
    if (request->payload.bytes > shard->options.message_bytes_max)
        return mn_fail(error, MN_INVALID, "payload", "%" PRIu64 " bytes are more than %u",
                       request->payload.bytes, shard->options.message_bytes_max);
    return MN_OK;
}

/* Who joined was told everywhere; a step or a table that this shard told stood here, and so did all
 * seals of a settled step, unless the group was restored and this shard has yet to load it. */
static enum mn_status no_group(const mn_shard *shard, const mn_context *context, mn_error *error)
{
    bool settled = context->settled_step && !mn_epoch_restores(context->map_epoch);
    if (context->incarnation)
        return mn_fail(error, MN_LOST, "group",
                       "%s: rank %u joined it, but this shard does not "
                       "hold it: restore it from a snapshot",
                       context->group, context->rank);
    if ((settled || context->committed_step || context->table_told) &&
        !planted(shard, MN_PLANT_NO_TOLD))
        return mn_fail(error, MN_LOST, "group",
                       "%s stood here, but this shard has lost it: restore it from a snapshot",
                       context->group);
    return mn_fail(error, MN_NOT_FOUND, "group", "%s is not at this shard", context->group);
}

static enum mn_status check_member(mn_shard *shard, const struct group *group, enum mn_verb verb,
                                   const mn_context *context, bool anyone, mn_error *error)
{
    bool reader = anyone && context->incarnation == 0;
    bool asks_epoch = verb == MN_VERB_LIST || verb == MN_VERB_CREATE_TABLE;
    if (!reader && context->rank >= group->ranks)
        return mn_fail(error, MN_INVALID, "rank", "%u is not below ranks (%u)", context->rank,
                       group->ranks);
    if (context->map_epoch != group->map_epoch && !(asks_epoch && context->map_epoch == 0) &&
        !planted(shard, MN_PLANT_NO_EPOCH))
        return mn_fail(error, MN_EPOCH, "map_epoch", "%" PRIu64 " is not this shard's %" PRIu64,
                       context->map_epoch, group->map_epoch);
    if (reader)
        return MN_OK;
    uint64_t known = group->incarnations[context->rank];
    if (shard->recovery)
        return MN_OK; /* it was checked before it was logged */
    if (context->incarnation == 0)
        return mn_fail(error, MN_INVALID, "incarnation", "0: rank %u has to join first",
                       context->rank);
    if (context->incarnation > known)
        return mn_fail(error, MN_LOST, "incarnation",
                       "%" PRIu64 " of rank %u is unknown here, "
                       "which knows %" PRIu64 ": this shard has forgotten its Join",
                       context->incarnation, context->rank, known);
    if (context->incarnation < known && !planted(shard, MN_PLANT_NO_FENCE))
        return mn_fail(error, MN_FENCED, "incarnation",
                       "%" PRIu64 " of rank %u: %" PRIu64 " has joined since", context->incarnation,
                       context->rank, known);
    return MN_OK;
}

/* A step that is settled somewhere had all its seals here, and only its commit drops them; what was
 * told to be committed was. A shard that stands before either has lost what it had acknowledged
 * (STEPS.md "Lost steps"). */
enum mn_status mn_shard_check_settled(mn_shard *shard, struct group *group,
                                      const mn_context *context, mn_error *error)
{
    uint64_t settled = context->settled_step, told = context->committed_step;
    uint64_t committed = group->committed;
    if ((settled <= committed && told <= committed) || context->map_epoch != group->map_epoch ||
        shard->recovery || planted(shard, MN_PLANT_NO_SETTLED))
        return MN_OK;
    if (told > committed)
        return mn_fail(error, MN_LOST, "committed_step",
                       "this shard has told that step %" PRIu64
                       " is committed, but stands at step %" PRIu64
                       ": it has lost steps; join again, or load a saved group",
                       told, committed);
    uint32_t seals = 0;
    if (settled == committed + 1)
        seals = mn_shard_step_at(shard, group, settled)->seal_count;
    if (seals == group->ranks)
        return MN_OK; /* its commit is under way */
    return mn_fail(error, MN_LOST, "settled_step",
                   "step %" PRIu64 " is settled, but this shard stands at step %" PRIu64
                   " with %u of %u seals after it: it has lost steps; load a saved group",
                   settled, committed, seals, group->ranks);
}

enum mn_status mn_shard_check_group(mn_shard *shard, mn_call *call, bool anyone,
                                    struct group **out_group, mn_error *error)
{
    const mn_context *context = &call->request.context;
    struct group *group = mn_shard_group_find(shard, context->group);
    if (!group)
        return no_group(shard, context, error);
    enum mn_status status = check_member(shard, group, call->request.verb, context, anyone, error);
    if (!status)
        status = mn_shard_check_settled(shard, group, context, error);
    if (!status)
        *out_group = group;
    return status;
}

/* A caller that knows of a later move than the last one here heard that from a shard at which it
 * was made: here it stands, or was lost. */
static bool lost_move(const struct group *group, const mn_request *request,
                      const struct table *table)
{
    return request->moved > table->moved && !group->move;
}

/* Where tiles have moved, who names others than those held may have an older map. */
static enum mn_status check_tiles(const struct group *group, const mn_request *request,
                                  const struct table *table, mn_error *error)
{
    const bool moved = mn_shard_move_known(group), other_map = request->moved != table->moved;
    uint64_t end = (uint64_t)request->tile_first + request->tile_count;
    if (request->tile_count == 0 || end > table->geometry.tiles)
        return mn_fail(error, MN_INVALID, "tile_count", "tiles [%u, %" PRIu64 ") of a table of %u",
                       request->tile_first, end, table->geometry.tiles);
    if (request->tile_first < table->tile_first || end > table->tile_first + table->tile_count)
        return mn_fail(error, moved ? MN_MOVED : MN_LOST, "tile_first",
                       "tiles [%u, %" PRIu64 ") are not all here: this shard holds [%u, %u)",
                       request->tile_first, end, table->tile_first,
                       table->tile_first + table->tile_count);
    bool change = mn_verb_kind_of(request->verb) == MN_KIND_CHANGE;
    if (change && request->tile_count != table->tile_count)
        return mn_fail(error,
                       lost_move(group, request, table) ? MN_LOST
                       : moved || other_map             ? MN_MOVED
                                                        : MN_INVALID,
                       "tile_count", "a change names all %u tiles of this shard, not %u",
                       table->tile_count, request->tile_count);
    return MN_OK;
}

/* No two changes of a step are cut for different maps. */
static enum mn_status check_moved(const mn_shard *shard, const struct group *group,
                                  const mn_request *request, const struct table *table,
                                  mn_error *error)
{
    if (mn_verb_kind_of(request->verb) != MN_KIND_CHANGE || request->moved == table->moved ||
        shard->recovery || planted(shard, MN_PLANT_MOVE_NO_VERSION))
        return MN_OK;
    return mn_fail(error, lost_move(group, request, table) ? MN_LOST : MN_MOVED, "moved",
                   "%" PRIu64 ", but the last move of table %s is %" PRIu64 " here", request->moved,
                   table->spec.name, table->moved);
}

static void aim(const mn_request *request, struct table *table, struct target *target)
{
    const mn_geometry *geometry = &table->geometry;
    target->table = table;
    if (geometry->split == MN_ROWS) {
        target->plane_first = 0;
        target->plane_count = 1;
        target->columns = geometry->dim;
        target->position_first = (uint64_t)request->tile_first * geometry->rows_per_tile;
        target->position_end =
            (uint64_t)(request->tile_first + request->tile_count) * geometry->rows_per_tile;
        return;
    }
    target->plane_first = request->tile_first - table->tile_first;
    target->plane_count = request->tile_count;
    target->columns = 0;
    for (uint32_t i = 0; i < target->plane_count; i++)
        target->columns += table->planes[target->plane_first + i].columns;
    target->position_first = 0;
    target->position_end = geometry->rows;
}

enum mn_status mn_shard_check_target(mn_shard *shard, mn_call *call, bool anyone,
                                     struct target *out_target, mn_error *error)
{
    const mn_request *request = &call->request;
    struct target target = {0};
    enum mn_status status = mn_shard_check_group(shard, call, anyone, &target.group, error);
    if (status)
        return status;
    struct table *table = mn_shard_table_find(shard, target.group, request->table, NULL);
    if (!table)
        return mn_shard_table_missing(shard, target.group, &request->context, request->table,
                                      "table", error);
    status = check_tiles(target.group, request, table, error);
    if (!status)
        status = check_moved(shard, target.group, request, table, error);
    if (status)
        return status;
    aim(request, table, &target);
    *out_target = target;
    return MN_OK;
}

static bool float_dtype(enum mn_dtype dtype) { return dtype == MN_F32 || dtype == MN_BF16; }

enum mn_status mn_shard_check_layout(mn_shard *shard, const mn_request *request,
                                     const struct target *target, struct layout *out_layout,
                                     mn_error *error)
{
    bool bag = request->verb == MN_VERB_BAG || request->verb == MN_VERB_BAG_GRAD;
    struct layout layout = {0};
    if (!float_dtype(request->value_dtype))
        return mn_fail(error, MN_UNSUPPORTED, "value_dtype", "%u is neither f32 nor bf16",
                       (unsigned)request->value_dtype);
    if (bag && !float_dtype(request->weight_dtype))
        return mn_fail(error, MN_UNSUPPORTED, "weight_dtype", "%u is neither f32 nor bf16",
                       (unsigned)request->weight_dtype);
    if (bag && (request->per_query == 0 || request->per_query > MN_PER_QUERY_MAX))
        return mn_fail(error, MN_INVALID, "per_query", "%u is not between 1 and %d",
                       request->per_query, MN_PER_QUERY_MAX);
    uint64_t per_query = bag ? request->per_query : 1;
    if (request->count == 0 || request->count > shard->scratch.reads_max / per_query)
        return mn_fail(error, MN_INVALID, "count", "%" PRIu64 " is not between 1 and %" PRIu64,
                       request->count, shard->scratch.reads_max / per_query);
    layout.reads = request->count * per_query;
    if (!mn_indices_bytes(request->index_encoding, target->table->spec.rows, layout.reads,
                          &layout.indices_bytes))
        return mn_fail(error, MN_UNSUPPORTED, "index_encoding", "%u is unknown",
                       (unsigned)request->index_encoding);
    if (bag)
        layout.weights_bytes = layout.reads * mn_dtype_bytes(request->weight_dtype);
    if (mn_verb_kind_of(request->verb) == MN_KIND_CHANGE)
        layout.rows_bytes = request->count * target->columns * mn_dtype_bytes(request->value_dtype);
    if (request->verb == MN_VERB_STORE && request->with_state)
        layout.states_bytes = request->count * mn_shard_states_row_bytes(target);
    uint64_t bytes =
        layout.indices_bytes + layout.weights_bytes + layout.rows_bytes + layout.states_bytes;
    if (request->payload.bytes != bytes)
        return mn_fail(error, MN_INVALID, "payload",
                       "%" PRIu64 " bytes where %" PRIu64 " rows of %u columns make %" PRIu64,
                       request->payload.bytes, request->count, target->columns, bytes);
    *out_layout = layout;
    return MN_OK;
}

/* A snapshot's folder, below the storage's root: no way out of it. */
enum mn_status mn_shard_check_path(const char *path, mn_error *error)
{
    size_t length = strnlen(path, MN_PATH_BYTES);
    bool valid = length > 0 && length < MN_PATH_BYTES - FILE_NAME_BYTES && path[0] != '/';
    for (size_t i = 0; valid && i < length; i++) {
        bool start = i == 0 || path[i - 1] == '/';
        bool dots =
            path[i] == '.' && path[i + 1] == '.' && (path[i + 2] == '/' || path[i + 2] == '\0');
        bool own = start && path[i] == '@'; /* folders of logs */
        valid = (unsigned char)path[i] >= ' ' && path[i] != '\\' && !(start && dots) && !own;
    }
    if (!valid)
        return mn_fail(error, MN_INVALID, "path",
                       "\"%.120s\" is not a relative path without \"..\" or \"@\" "
                       "of 1 to %d bytes",
                       length < MN_PATH_BYTES ? path : "", MN_PATH_BYTES - FILE_NAME_BYTES - 1);
    return MN_OK;
}
