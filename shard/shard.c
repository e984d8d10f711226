/* The shard: its life, the way of a call through it, and its clock. */
#include "move.h"
#include "shard_device.h"

#include <stdarg.h>
#include <stdio.h>

static const verb_function verbs[MN_VERB_COUNT];

/* ---- Life */

#define DEFAULT(field, value)                                                                      \
    if (!options->field)                                                                           \
    options->field = (value)

static enum mn_status resolve_options(const mn_shard_options *given, mn_shard_options *options,
                                      mn_error *error)
{
    *options = *given;
    DEFAULT(shards, 1);
    DEFAULT(read_bytes_max, UINT64_C(256) << 20);
    DEFAULT(change_bytes_max, UINT64_C(4) << 30);
    DEFAULT(change_reserve_bytes, options->change_bytes_max / 2);
    DEFAULT(groups_max, 16);
    DEFAULT(tables_max, MN_COMMIT_TABLES_MAX);
    DEFAULT(open_steps_max, 4);
    DEFAULT(reduces_max, 4096);
    DEFAULT(table_bytes_max, UINT64_C(16) << 40);
    DEFAULT(message_bytes_max, MN_MESSAGE_BYTES_MAX);
    DEFAULT(durability, MN_DURABILITY_NONE);
    DEFAULT(saves_kept, 1);
    DEFAULT(log_unsynced_bytes_max, UINT64_C(64) << 20);
    DEFAULT(log_cut_bytes, UINT64_C(256) << 20);
    DEFAULT(log_cut_percent, 200);
    DEFAULT(image_log_percent, 200);
    DEFAULT(image_bytes_a_second, UINT64_C(16) << 20);
    if (options->shards > MN_SHARDS_MAX)
        return mn_fail(error, MN_INVALID, "shards", "%u is more than %d", options->shards,
                       MN_SHARDS_MAX);
    if (options->shard >= options->shards)
        return mn_fail(error, MN_INVALID, "shard", "%u is not below shards (%u)", options->shard,
                       options->shards);
    if (options->change_reserve_bytes > options->change_bytes_max)
        return mn_fail(error, MN_INVALID, "change_reserve_bytes",
                       "%" PRIu64 " is more than change_bytes_max (%" PRIu64 ")",
                       options->change_reserve_bytes, options->change_bytes_max);
    if (options->groups_max > MN_INFO_MAX)
        return mn_fail(error, MN_INVALID, "groups_max", "%u is more than %d", options->groups_max,
                       MN_INFO_MAX);
    if (options->tables_max > MN_COMMIT_TABLES_MAX)
        return mn_fail(error, MN_INVALID, "tables_max", "%u is more than %d", options->tables_max,
                       MN_COMMIT_TABLES_MAX);
    if (options->open_steps_max > 16)
        return mn_fail(error, MN_INVALID, "open_steps_max", "%u is more than 16",
                       options->open_steps_max);
    if (options->durability > MN_DURABILITY_SYNC)
        return mn_fail(error, MN_INVALID, "durability", "%u is unknown",
                       (unsigned)options->durability);
    if (options->device && options->durability > MN_DURABILITY_NONE)
        return mn_fail(error, MN_UNSUPPORTED, "durability",
                       "%s, but tables in a device's memory are not logged",
                       mn_durability_name(options->durability));
    if (options->saves_kept > SAVES_KEPT_MAX)
        return mn_fail(error, MN_INVALID, "saves_kept", "%u is more than %d", options->saves_kept,
                       (int)SAVES_KEPT_MAX);
    if (options->message_bytes_max < 4096)
        return mn_fail(error, MN_INVALID, "message_bytes_max", "%u is less than 4096",
                       options->message_bytes_max);
    return MN_OK;
}

static void *allocate(mn_shard *shard, uint64_t bytes)
{
    return shard->env.allocate(shard->env.context, bytes);
}

static void release(mn_shard *shard, void *memory, uint64_t bytes)
{
    shard->env.release(shard->env.context, memory, bytes);
}

static void scratch_deinit(mn_shard *shard)
{
    struct scratch *scratch = &shard->scratch;
    void *context = shard->env.context;
    if (scratch->offsets)
        shard->env.unreserve(context, scratch->offsets, scratch->reads_max * sizeof(uint64_t));
    if (scratch->weights)
        shard->env.unreserve(context, scratch->weights, scratch->reads_max * sizeof(float));
    if (scratch->payload)
        shard->env.unreserve(context, scratch->payload, scratch->payload_bytes_max);
    release(shard, scratch->merge, scratch->merge_bytes);
    memset(scratch, 0, sizeof *scratch);
}

/* Each read of a message brings two bytes at least beside its index (a weight, or a value in the
 * reply), so half the message limit bounds the reads of one call. */
static bool scratch_init(mn_shard *shard)
{
    struct scratch *scratch = &shard->scratch;
    void *context = shard->env.context;
    scratch->payload_bytes_max = shard->options.message_bytes_max;
    scratch->reads_max = scratch->payload_bytes_max / 2;
    scratch->merge_bytes = mn_merge_scratch_bytes(MN_DIM_MAX);
    scratch->offsets = shard->env.reserve(context, scratch->reads_max * sizeof(uint64_t));
    scratch->weights = shard->env.reserve(context, scratch->reads_max * sizeof(float));
    scratch->payload = shard->env.reserve(context, scratch->payload_bytes_max);
    scratch->merge = allocate(shard, scratch->merge_bytes);
    return scratch->offsets && scratch->weights && scratch->payload && scratch->merge;
}

enum mn_status mn_shard_create(const mn_shard_options *options, const mn_env *env,
                               mn_shard **out_shard, mn_error *error)
{
    mn_shard_options resolved;
    enum mn_status status = resolve_options(options, &resolved, error);
    if (status)
        return status;
    if (resolved.durability > MN_DURABILITY_NONE && !env->storage)
        return mn_fail(error, MN_INVALID, "durability", "%s needs a folder for the log",
                       mn_durability_name(resolved.durability));
    mn_shard *shard = env->allocate(env->context, sizeof *shard);
    if (!shard)
        goto no_memory;
    shard->env = *env;
    shard->options = resolved;
    shard->kernels = resolved.kernels ? resolved.kernels : mn_kernels_best();
    shard->next_table = 1;
    shard->next_deadline_ns = UINT64_MAX;
    shard->pool.env = &shard->env;
    shard->pool.bytes_max = resolved.change_bytes_max;
    shard->groups = allocate(shard, resolved.groups_max * sizeof *shard->groups);
    shard->table_infos = allocate(shard, MN_INFO_MAX * sizeof *shard->table_infos);
    shard->group_infos = allocate(shard, MN_INFO_MAX * sizeof *shard->group_infos);
    if (!shard->groups || !shard->table_infos || !shard->group_infos || !scratch_init(shard)) {
        mn_shard_destroy(shard);
        goto no_memory;
    }
    if (resolved.device)
        status = mn_shard_device_open(shard, resolved.device - 1, error);
    if (env->storage)
        shard->log_header = allocate(shard, MN_HEADER_BYTES_MAX);
    if (!status && env->storage && !shard->log_header)
        status = mn_fail(error, MN_NO_MEMORY, "shard", "no memory for the log");
    if (env->storage && !status)
        status = mn_shard_recover_start(shard, error);
    if (!status && shard->device && shard->recovery)
        status = mn_fail(error, MN_UNSUPPORTED, "device",
                         "the folder holds logs, and tables in a device's memory are not logged");
    if (status) {
        mn_shard_destroy(shard);
        return status;
    }
    *out_shard = shard;
    return MN_OK;
no_memory:
    return mn_fail(error, MN_NO_MEMORY, "shard", "no memory for the shard itself");
}

void mn_shard_destroy(mn_shard *shard)
{
    if (!shard)
        return;
    mn_shard_job_cancel(shard);
    mn_shard_recover_stop(shard);
    for (uint32_t i = 0; shard->groups && i < shard->options.groups_max; i++) {
        struct group *group = &shard->groups[i];
        if (!group->name[0])
            continue;
        mn_shard_answer_parked(shard, group, MN_UNAVAILABLE, "shard", "the shard is going away");
        mn_shard_group_deinit(shard, group);
    }
    if (shard->device)
        shard->device->close(shard);
    mn_shard_data_release(shard);
    mn_shard_block_pool_deinit(&shard->pool);
    scratch_deinit(shard);
    release(shard, shard->log_header, MN_HEADER_BYTES_MAX);
    release(shard, shard->group_infos, MN_INFO_MAX * sizeof *shard->group_infos);
    release(shard, shard->table_infos, MN_INFO_MAX * sizeof *shard->table_infos);
    release(shard, shard->groups, shard->options.groups_max * sizeof *shard->groups);
    mn_env env = shard->env;
    env.release(env.context, shard, sizeof *shard);
}

/* ---- Events */

void mn_shard_log(mn_shard *shard, int level, const char *event, const mn_call *call,
                  const char *key_values, ...)
{
    const mn_context *context = &call->request.context;
    char text[512], id[2 * sizeof context->request_id + 1];
    if (!shard->env.log)
        return;
    for (uint32_t i = 0; i < sizeof context->request_id; i++)
        (void)snprintf(id + i * 2, 3, "%02x", context->request_id[i]); /* it fits */
    /* A name that was refused may hold what ends a line of the log. */
    const char *group = mn_name_valid(context->group) ? context->group : "?";
    const char *trace = call->traceparent;
    int length = snprintf(text, sizeof text, "shard=%u group=%s rank=%u request=%s %s%s%s",
                          shard->options.shard, group, context->rank, id,
                          trace[0] ? "traceparent=" : "", trace, trace[0] ? " " : "");
    va_list arguments;
    va_start(arguments, key_values);
    (void)vsnprintf(text + length, sizeof text - (size_t)length, key_values, arguments); /* cut */
    va_end(arguments);
    shard->env.log(shard->env.context, level, event, text);
}

/* ---- A call's way */

static struct group *fill_reply(mn_shard *shard, mn_call *call, enum mn_status status,
                                const mn_error *error)
{
    assert(!call->core);
    mn_reply *reply = &call->reply;
    struct group *group = mn_shard_group_find(shard, call->request.context.group);
    reply->status = status;
    if (status) {
        reply->error = *error;
        reply->error.status = status;
        mn_shard_log(shard, 0, "refused", call, "verb=%s status=%s field=%s",
                     mn_verb_name(call->request.verb), mn_status_name(status), error->field);
    }
    bool foretold = call->request.verb == MN_VERB_RESTORE && call->request.files == MN_FILES_CHECK;
    if (group) {
        if (!foretold || reply->map_epoch < group->map_epoch)
            reply->map_epoch = group->map_epoch;
        if (!foretold) { /* a restore's check tells the snapshot's step and ranks instead */
            reply->step = group->committed;
            reply->ranks = group->ranks;
        }
    }
    reply->shards = shard->options.shards;
    reply->shard = shard->options.shard;
    return group;
}

void mn_shard_answer(mn_shard *shard, mn_call *call, enum mn_status status, const mn_error *error)
{
    struct group *group = fill_reply(shard, call, status, error);
    if (!group || !mn_shard_log_hold(shard, group, call))
        call->finish(call);
}

void mn_shard_answer_now(mn_shard *shard, mn_call *call, enum mn_status status,
                         const mn_error *error)
{
    (void)fill_reply(shard, call, status, error); /* its group does not matter */
    call->finish(call);
}

void mn_shard_run(mn_shard *shard, mn_call *call)
{
    mn_error error = {0};
    enum mn_status status = mn_shard_check_request(shard, call, &error);
    if (!status && shard->device)
        status = shard->device->state(shard, &error);
    if (!status)
        status = verbs[call->request.verb](shard, call, &error);
    if (!call->core)
        mn_shard_answer(shard, call, status, &error);
    mn_shard_usage_count(shard);
}

/* The typed answer, which names whom the call waited for, must reach a caller that still listens:
 * it leaves an eighth of the time, at most 100 ms, before the caller gives up. */
static uint64_t deadline_of(uint64_t now_ns, uint64_t remaining_ms)
{
    const uint64_t day_ms = UINT64_C(86400000);
    uint64_t remaining_ns = (remaining_ms < day_ms ? remaining_ms : day_ms) * 1000000;
    uint64_t margin_ns = remaining_ns / 8 < 100000000 ? remaining_ns / 8 : 100000000;
    return now_ns + remaining_ns - margin_ns;
}

static void refuse_unserved(const mn_shard *shard, mn_call *call)
{
    mn_reply *reply = &call->reply;
    reply->status = mn_shard_recover_refuse(shard, &reply->error);
    reply->shards = shard->options.shards;
    reply->shard = shard->options.shard;
    call->finish(call);
}

void mn_shard_handle(mn_shard *shard, mn_call *call)
{
    assert(!shard->running);
    shard->running = true;
    call->core = NULL;
    call->held = 0;
    call->budget_bytes = 0;
    call->deadline_ns =
        deadline_of(planted(shard, MN_PLANT_ABSOLUTE) ? 0 : shard->env.now_ns(shard->env.context),
                    call->request.context.remaining_ms);
    if (shard->recovery)
        refuse_unserved(shard, call);
    else
        mn_shard_run(shard, call);
    mn_shard_wake(shard);
    (void)mn_shard_log_work(shard, shard->env.now_ns(shard->env.context)); /* a tick follows */
    shard->running = false;
}

enum mn_status mn_shard_read_memory(const mn_shard *shard, void *to, const void *from,
                                    uint64_t bytes, mn_error *error)
{
    return shard->device->read_memory(shard, to, from, bytes, error);
}

enum mn_status mn_shard_mark(const mn_shard *shard, void *stream, void **out_mark, mn_error *error)
{
    return shard->device->mark(shard, stream, out_mark, error);
}

void mn_shard_unmark(const mn_shard *shard, void *mark) { shard->device->unmark(shard, mark); }

void mn_shard_abandon(mn_shard *shard, mn_call *call)
{
    assert(!shard->running);
    shard->running = true;
    if (call->core) {
        if (!mn_shard_job_forget(shard, call)) {
            mn_error error = {0};
            (void)mn_fail(&error, MN_CANCELLED, "call", "the caller gave up"); /* fills error */
            if (call->held)
                mn_shard_log_unhold(shard, call);
            mn_shard_unpark(shard, call);
            mn_shard_answer(shard, call, MN_CANCELLED, &error);
        }
        mn_shard_wake(shard);
    }
    shard->running = false;
}

uint64_t mn_shard_tick(mn_shard *shard, uint64_t now_ns)
{
    assert(!shard->running);
    shard->running = true;
    uint64_t next_ns = mn_shard_expire(shard, now_ns);
    if (shard->job) {
        if (shard->job->due_ns <= now_ns)
            mn_shard_job_run(shard);
        if (shard->job && shard->job->due_ns < next_ns)
            next_ns = shard->job->due_ns;
    }
    if (shard->recovery) {
        mn_shard_recover_run(shard);
        next_ns =
            shard->recovery && mn_shard_state(shard, NULL) != MN_UNAVAILABLE ? UINT64_MAX : now_ns;
    }
    mn_shard_wake(shard);
    uint64_t log_ns = mn_shard_log_work(shard, now_ns);
    next_ns = log_ns < next_ns ? log_ns : next_ns;
    uint64_t image_ns = mn_shard_image_work(shard, now_ns);
    next_ns = image_ns < next_ns ? image_ns : next_ns;
    uint64_t move_ns = mn_shard_move_work(shard, now_ns);
    next_ns = move_ns < next_ns ? move_ns : next_ns;
    shard->running = false;
    return next_ns;
}

static const verb_function verbs[MN_VERB_COUNT] = {
    [MN_VERB_CREATE_TABLE] = mn_shard_create_table,
    [MN_VERB_DESCRIBE] = mn_shard_describe,
    [MN_VERB_LIST] = mn_shard_list,
    [MN_VERB_DROP] = mn_shard_drop,
    [MN_VERB_JOIN] = mn_shard_join,
    [MN_VERB_FETCH] = mn_shard_fetch,
    [MN_VERB_BAG] = mn_shard_bag,
    [MN_VERB_BAG_GRAD] = mn_shard_change,
    [MN_VERB_PUSH] = mn_shard_change,
    [MN_VERB_STORE] = mn_shard_change,
    [MN_VERB_SEAL] = mn_shard_seal,
    [MN_VERB_COMMIT] = mn_shard_commit,
    [MN_VERB_REDUCE] = mn_shard_reduce,
    [MN_VERB_SNAPSHOT] = mn_shard_snapshot,
    [MN_VERB_RESTORE] = mn_shard_restore,
    [MN_VERB_MOVE] = mn_shard_move,
    [MN_VERB_MAP] = mn_shard_map,
    [MN_VERB_STATUS] = mn_shard_service_status,
};
