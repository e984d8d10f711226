/* Groups: ranks, incarnations, open steps; Join. */
#include "move.h"

struct group *mn_shard_group_find(mn_shard *shard, const char *name)
{
    if (!name[0])
        return NULL;
    for (uint32_t i = 0; i < shard->options.groups_max; i++)
        if (!strncmp(shard->groups[i].name, name, MN_NAME_BYTES))
            return &shard->groups[i];
    return NULL;
}

/* One block of memory for all that a group's size fixes: incarnations, tables, open steps. */
static uint64_t carve(uint64_t *offset, uint64_t bytes)
{
    uint64_t at = *offset;
    *offset += round_up(bytes, 64);
    return at;
}

enum mn_status mn_shard_group_init(mn_shard *shard, const char *name, uint32_t ranks,
                                   struct group *out_group, mn_error *error)
{
    uint32_t steps = shard->options.open_steps_max, tables = shard->options.tables_max;
    uint64_t bytes = 0;
    uint64_t incarnations_at = carve(&bytes, ranks * sizeof(uint64_t));
    uint64_t assigned_at = carve(&bytes, ranks * sizeof(uint64_t));
    uint64_t tables_at = carve(&bytes, tables * sizeof(struct table));
    uint64_t steps_at = carve(&bytes, steps * sizeof(struct step));
    uint64_t stages_at = carve(&bytes, (uint64_t)steps * tables * sizeof(struct table_stage));
    uint64_t buckets_at = carve(&bytes, (uint64_t)steps * PIECE_BUCKETS * sizeof(struct piece *));
    uint64_t squares_at = carve(&bytes, (uint64_t)steps * tables * sizeof(uint64_t));
    uint64_t seals_at = carve(&bytes, (uint64_t)steps * ranks * sizeof(struct seal));
    uint8_t *memory = shard->env.allocate(shard->env.context, bytes);
    if (!memory)
        return mn_fail(error, MN_NO_MEMORY, "group", "no memory for group %s", name);

    struct group group = {.ranks = ranks};
    memcpy(group.name, name, strnlen(name, MN_NAME_BYTES - 1));
    group.memory = memory;
    group.memory_bytes = bytes;
    group.incarnations = (uint64_t *)(memory + incarnations_at);
    group.assigned = (uint64_t *)(memory + assigned_at);
    group.tables = (struct table *)(memory + tables_at);
    group.steps = (struct step *)(memory + steps_at);
    for (uint32_t i = 0; i < steps; i++) {
        struct step *step = &group.steps[i];
        step->tables = (struct table_stage *)(memory + stages_at) + (uint64_t)i * tables;
        step->buckets = (struct piece **)(memory + buckets_at) + (uint64_t)i * PIECE_BUCKETS;
        step->square_tables = (uint64_t *)(memory + squares_at) + (uint64_t)i * tables;
        step->seals = (struct seal *)(memory + seals_at) + (uint64_t)i * ranks;
    }
    *out_group = group;
    return MN_OK;
}

void mn_shard_group_deinit(mn_shard *shard, struct group *group)
{
    assert(!group->parked_first);
    mn_shard_image_abort(shard, group);
    mn_shard_log_close(shard, group);
    mn_shard_move_release(shard, group);
    for (uint32_t i = 0; i < shard->options.open_steps_max; i++)
        mn_shard_step_drop(shard, group, &group->steps[i]);
    mn_shard_reduce_drop(shard, group, UINT64_MAX);
    for (uint32_t i = 0; i < shard->options.tables_max; i++)
        mn_shard_table_deinit(shard, &group->tables[i]);
    shard->env.release(shard->env.context, group->memory, group->memory_bytes);
    memset(group, 0, sizeof *group);
}

/* Whether a group that does not stand here may come into being under the caller's epoch. */
static enum mn_status check_new(const mn_shard *shard, const mn_context *context, mn_error *error)
{
    if (mn_epoch_restores(context->map_epoch))
        return mn_fail(error, MN_EPOCH, "map_epoch", "group %s has not been loaded here",
                       context->group);
    if (!context->map_epoch && !is_home(shard))
        return mn_fail(error, MN_INVALID, "map_epoch", "0: the home shard (0) tells it");
    return MN_OK;
}

static enum mn_status check_standing(const struct group *group, const mn_request *request,
                                     mn_error *error)
{
    if (group->ranks != request->ranks)
        return mn_fail(error, MN_CONFLICT, "ranks", "%u, but group %s has %u", request->ranks,
                       group->name, group->ranks);
    if (request->durability && request->durability != group->log.level)
        return mn_fail(error, MN_CONFLICT, "durability", "%s, but group %s was made with %s",
                       mn_durability_name(request->durability), group->name,
                       mn_durability_name(group->log.level));
    return MN_OK;
}

enum mn_status mn_shard_group_open(mn_shard *shard, const mn_request *request,
                                   struct group **out_group, mn_error *error)
{
    const mn_context *context = &request->context;
    const char *name = context->group;
    uint32_t ranks = request->ranks;
    enum mn_durability level = MN_DURABILITY_NONE;
    if (ranks == 0 || ranks > MN_RANKS_MAX)
        return mn_fail(error, MN_INVALID, "ranks", "%u is not between 1 and %d", ranks,
                       MN_RANKS_MAX);
    struct group *group = mn_shard_group_find(shard, name);
    enum mn_status status = group ? check_standing(group, request, error) : MN_OK;
    if (!status)
        status = mn_shard_log_level(shard, request->durability, &level, error);
    if (status)
        return status;
    for (uint32_t i = 0; !group && i < shard->options.groups_max; i++) {
        if (shard->groups[i].name[0])
            continue;
        group = &shard->groups[i];
        status = check_new(shard, context, error);
        if (!status)
            status = mn_shard_group_init(shard, name, ranks, group, error);
        if (status)
            return status;
        group->log.level = level;
        group->map_epoch = context->map_epoch;
        if (!group->map_epoch)
            group->map_epoch = mn_epoch_first(shard->env.random(shard->env.context));
    }
    if (!group)
        return mn_fail(error, MN_BUSY, "groups_max", "this shard holds %u groups already",
                       shard->options.groups_max);
    *out_group = group;
    return MN_OK;
}

/* ---- Join */

/* Never the same number twice; nobody is fenced before the new life says so itself, so that a late
 * repeat of this request does no harm. */
static uint64_t assign(struct group *group, uint32_t rank)
{
    uint64_t *assigned = &group->assigned[rank], known = group->incarnations[rank];
    *assigned = (*assigned > known ? *assigned : known) + 1;
    return *assigned;
}

static enum mn_status check_incarnation(mn_shard *shard, const struct group *group,
                                        const mn_context *context, mn_error *error)
{
    uint64_t known = group->incarnations[context->rank];
    if (context->incarnation == 0)
        return mn_fail(error, MN_INVALID, "incarnation", "0: ASSIGN gives one");
    if (context->incarnation < known && !planted(shard, MN_PLANT_NO_FENCE))
        return mn_fail(error, MN_FENCED, "incarnation",
                       "%" PRIu64 " of rank %u: %" PRIu64 " has joined since", context->incarnation,
                       context->rank, known);
    return MN_OK;
}

static void adopt(struct group *group, const mn_context *context)
{
    uint64_t *known = &group->incarnations[context->rank];
    if (context->incarnation <= *known)
        return;
    *known = context->incarnation;
    group->wake = UINT32_MAX; /* what an earlier incarnation waits for is refused now */
}

/* The state of the open step, from which the client decides how to go on (STEPS.md "Join"): the
 * seal that an earlier incarnation left, else the last commit. */
static void tell_open_step(mn_shard *shard, struct group *group, mn_call *call)
{
    const mn_context *context = &call->request.context;
    struct step *step = mn_shard_step_at(shard, group, group->committed + 1);
    const struct seal *seal = &step->seals[context->rank];
    mn_reply *reply = &call->reply;
    reply->sealed = seal->sealed && seal->incarnation < context->incarnation;
    reply->proposal = group->last_proposal;
    if (reply->sealed)
        reply->proposal = seal->discard ? (mn_proposal){.discard = true} : step->proposal;
    memcpy(reply->factors, group->last_factors, sizeof reply->factors);
    reply->incarnation_sum = group->last_incarnation_sum;
}

static void replay(mn_shard *shard, struct group *group, const mn_context *context)
{
    if (planted(shard, MN_PLANT_KEEP_ON_REPLAY))
        return;
    for (uint32_t i = 0; i < shard->options.open_steps_max; i++)
        mn_shard_step_replay(shard, group, &group->steps[i], context->rank, context->incarnation);
}

static enum mn_status check_join(mn_shard *shard, const mn_call *call, mn_error *error)
{
    const mn_request *request = &call->request;
    const mn_context *context = &request->context;
    if ((unsigned)request->join > MN_JOIN_REPLAY)
        return mn_fail(error, MN_UNSUPPORTED, "join", "phase %u is unknown",
                       (unsigned)request->join);
    if (request->join == MN_JOIN_ASSIGN && !is_home(shard))
        return mn_fail(error, MN_INVALID, "join", "ASSIGN goes to the home shard (0), not to %u",
                       shard->options.shard);
    if (context->rank >= request->ranks)
        return mn_fail(error, MN_INVALID, "rank", "%u is not below ranks (%u)", context->rank,
                       request->ranks);
    if (request->join != MN_JOIN_ASSIGN && context->map_epoch == 0)
        return mn_fail(error, MN_INVALID, "map_epoch", "0: ASSIGN tells it");
    if (mn_shard_group_find(shard, context->group))
        return MN_OK;
    enum mn_status status = check_new(shard, context, error);
    if (status)
        return status;
    if (request->join == MN_JOIN_REPLAY || (request->join == MN_JOIN_FENCE && context->step > 0))
        return mn_fail(error, MN_LOST, "group",
                       "%s is at step %" PRIu64 " elsewhere, but this shard does not hold it: "
                       "restore it from a snapshot",
                       context->group, context->step);
    return MN_OK;
}

/* The Join as it takes effect here: with the epoch and the level that the group was made with. A
 * FENCE of the incarnation known already changes nothing. */
static enum mn_status log_join(mn_shard *shard, struct group *group, const mn_request *request,
                               bool new_group, mn_error *error)
{
    bool known = request->context.incarnation == group->incarnations[request->context.rank];
    if ((request->join == MN_JOIN_FENCE && known && !new_group) ||
        planted(shard, MN_PLANT_LOG_NO_JOIN))
        return MN_OK;
    mn_request record = *request;
    record.context.map_epoch = group->map_epoch;
    record.durability = group->log.level;
    return mn_shard_log_append(shard, group, &record, error);
}

static enum mn_status join_group(mn_shard *shard, struct group *group, mn_call *call,
                                 bool new_group, mn_error *error)
{
    const mn_request *request = &call->request;
    const mn_context *context = &request->context;
    enum mn_status status = MN_OK;
    if (context->map_epoch && context->map_epoch != group->map_epoch &&
        !planted(shard, MN_PLANT_NO_EPOCH))
        return mn_fail(error, MN_EPOCH, "map_epoch", "%" PRIu64 " is not this shard's %" PRIu64,
                       context->map_epoch, group->map_epoch);
    if (request->join != MN_JOIN_ASSIGN)
        status = check_incarnation(shard, group, context, error);
    if (!status)
        status = mn_shard_check_settled(shard, group, context, error);
    if (!status)
        status = log_join(shard, group, request, new_group, error);
    if (status)
        return status;
    if (request->join == MN_JOIN_ASSIGN)
        call->reply.incarnation = assign(group, context->rank);
    else
        adopt(group, context);
    if (request->join == MN_JOIN_REPLAY)
        replay(shard, group, context);
    if (request->join == MN_JOIN_FENCE)
        mn_shard_log(shard, 1, "join", call, "incarnation=%" PRIu64 " step=%" PRIu64,
                     context->incarnation, group->committed);
    if (request->join != MN_JOIN_ASSIGN)
        call->reply.incarnation = group->incarnations[context->rank];
    tell_open_step(shard, group, call);
    return MN_OK;
}

enum mn_status mn_shard_join(mn_shard *shard, mn_call *call, mn_error *error)
{
    struct group *group = NULL;
    bool new_group = !mn_shard_group_find(shard, call->request.context.group);
    enum mn_status status = check_join(shard, call, error);
    if (!status)
        status = mn_shard_group_open(shard, &call->request, &group, error);
    if (status)
        return status;
    status = join_group(shard, group, call, new_group, error);
    if (status && new_group)
        mn_shard_group_deinit(shard, group);
    return status;
}
