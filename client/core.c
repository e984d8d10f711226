/* The client core: its life, and the life of an operation (a task) from submit to done. */
#include "client_private.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

static void (*const beginnings[])(mn_task *task) = {
    [MN_OP_JOIN] = mn_begin_join,
    [MN_OP_TABLE_OPEN] = mn_begin_table_open,
    [MN_OP_TABLE_FIND] = mn_begin_table_find,
    [MN_OP_TABLE_DROP] = mn_begin_table_drop,
    [MN_OP_FETCH] = mn_begin_data,
    [MN_OP_BAG] = mn_begin_data,
    [MN_OP_BAG_GRAD] = mn_begin_data,
    [MN_OP_PUSH] = mn_begin_data,
    [MN_OP_STORE] = mn_begin_data,
    [MN_OP_COMMIT] = mn_begin_commit,
    [MN_OP_REDUCE] = mn_begin_reduce,
    [MN_OP_SAVE] = mn_begin_save,
    [MN_OP_LOAD] = mn_begin_load,
    [MN_OP_MOVE] = mn_begin_move,
    [MN_OP_STATUS] = mn_begin_status,
    [MN_OP_LIST] = mn_begin_list,
    [MN_OP_USAGE] = mn_begin_usage,
};

/* ---- Life of the core ---- */

static enum mn_status check_options(const mn_core_options *options, const mn_transport *transport,
                                    mn_error *error)
{
    if (!mn_name_valid(options->group))
        return mn_fail(error, MN_INVALID, "group",
                       "\"%.63s\" is not a name: 1 to 63 of letters, digits, '.', '_' and '-'",
                       options->group);
    if (options->ranks == 0 || options->ranks > MN_RANKS_MAX)
        return mn_fail(error, MN_INVALID, "ranks", "%u ranks are not between 1 and %d",
                       options->ranks, MN_RANKS_MAX);
    if (options->rank >= options->ranks)
        return mn_fail(error, MN_INVALID, "rank", "rank %u is not below the %u ranks",
                       options->rank, options->ranks);
    if (options->operations_max == 0 || options->operations_max > 65536)
        return mn_fail(error, MN_INVALID, "operations_max", "%u is not between 1 and 65536",
                       options->operations_max);
    if (options->exchanges_max == 0 || options->exchanges_max > 64)
        return mn_fail(error, MN_INVALID, "exchanges_max", "%u is not between 1 and 64",
                       options->exchanges_max);
    if (options->chunk_bytes > MN_CHUNK_BYTES ||
        (options->chunk_bytes && options->chunk_bytes < 64))
        return mn_fail(error, MN_INVALID, "chunk_bytes", "%u is not between 64 and %d",
                       options->chunk_bytes, MN_CHUNK_BYTES);
    if (transport->shards == 0 || transport->shards > MN_SHARDS_MAX)
        return mn_fail(error, MN_INVALID, "shards", "%u shards are not between 1 and %d",
                       transport->shards, MN_SHARDS_MAX);
    return MN_OK;
}

static uint64_t aligned(uint64_t bytes) { return (bytes + 63) / 64 * 64; }

static uint32_t window_slots(const mn_core_options *options, enum mn_verb_kind kind)
{
    return kind == MN_KIND_CONTROL ? MN_CONTROL_SLOTS : options->exchanges_max;
}

static uint64_t window_bytes(const mn_core_options *options, enum mn_verb_kind kind)
{
    uint64_t slots = window_slots(options, kind);
    return aligned(slots * sizeof(mn_slot)) +
           (kind == MN_KIND_CONTROL ? 0 : slots * MN_CHUNK_BYTES);
}

static uint64_t memory_bytes(const mn_core_options *options, uint32_t shards)
{
    uint64_t bytes = 0;
    for (int kind = 0; kind <= MN_KIND_CONTROL; kind++)
        bytes += shards * window_bytes(options, (enum mn_verb_kind)kind);
    return bytes + aligned(options->operations_max * sizeof(mn_task)) +
           aligned((uint64_t)options->operations_max * shards * sizeof(mn_lane)) +
           mn_steps_bytes(shards) + aligned(shards * sizeof(uint64_t));
}

/* Deals the address space out: all of it is zero, and takes no memory until used. */
static void lay_out(mn_core *core)
{
    uint8_t *next = core->memory;
    for (uint32_t shard = 0; shard < core->shards; shard++)
        for (int kind = 0; kind <= MN_KIND_CONTROL; kind++) {
            mn_window *window = mn_core_window(core, shard, (enum mn_verb_kind)kind);
            window->core = core;
            window->shard = shard;
            window->kind = (enum mn_verb_kind)kind;
            window->slot_count = window->idle = window_slots(&core->options, window->kind);
            window->slots = (mn_slot *)next;
            if (kind != MN_KIND_CONTROL)
                window->buffers = next + aligned(window->slot_count * sizeof(mn_slot));
            next += window_bytes(&core->options, window->kind);
        }
    core->tasks = (mn_task *)next;
    next += aligned(core->options.operations_max * sizeof(mn_task));
    core->lanes = (mn_lane *)next;
    next += aligned((uint64_t)core->options.operations_max * core->shards * sizeof(mn_lane));
    mn_steps_init(core, next);
    core->told_steps = (uint64_t *)(next + mn_steps_bytes(core->shards));
}

enum mn_status mn_core_create(const mn_core_options *options, const mn_env *env,
                              mn_transport *transport, mn_core **out_core, mn_error *error)
{
    enum mn_status status = check_options(options, transport, error);
    if (status)
        return status;
    mn_core *core = env->allocate(env->context, sizeof *core);
    if (!core)
        goto no_memory;
    core->options = *options;
    if (core->options.back_off_ms == 0)
        core->options.back_off_ms = 5;
    if (core->options.chunk_bytes == 0)
        core->options.chunk_bytes = MN_CHUNK_AIM_BYTES;
    core->env = *env;
    core->transport = transport;
    core->shards = transport->shards;
    core->due_ns = UINT64_MAX;
    core->windows_bytes = (uint64_t)core->shards * 3 * sizeof *core->windows;
    core->windows = env->allocate(env->context, core->windows_bytes);
    if (!core->windows)
        goto release_core;
    core->memory_bytes = memory_bytes(options, core->shards);
    core->memory = env->reserve(env->context, core->memory_bytes);
    if (!core->memory)
        goto release_windows;
    lay_out(core);
    *out_core = core;
    return MN_OK;

release_windows:
    env->release(env->context, core->windows, core->windows_bytes);
release_core:
    env->release(env->context, core, sizeof *core);
no_memory:
    return mn_fail(error, MN_NO_MEMORY, "client", "no memory for a client of %u shards",
                   transport->shards);
}

void mn_core_destroy(mn_core *core)
{
    if (!core)
        return;
    assert(!core->alive_first && !core->ended_first);
    mn_env env = core->env;
    mn_tables_release(core);
    env.unreserve(env.context, core->memory, core->memory_bytes);
    env.release(env.context, core->windows, core->windows_bytes);
    env.release(env.context, core, sizeof *core);
}

uint64_t mn_core_step(const mn_core *core) { return core->step; }
uint64_t mn_core_incarnation(const mn_core *core) { return core->incarnation; }
uint64_t mn_core_due(const mn_core *core) { return core->ended_first ? 0 : core->due_ns; }
void *mn_core_lock(const mn_core *core) { return core->options.lock; }
uint32_t mn_core_shards(const mn_core *core) { return core->shards; }
mn_client_counters mn_core_counters(const mn_core *core) { return core->counters; }

void *mn_core_allocate(mn_core *core, uint64_t bytes)
{
    return core->env.allocate(core->env.context, bytes);
}

void mn_core_release(mn_core *core, void *memory, uint64_t bytes)
{
    if (memory)
        core->env.release(core->env.context, memory, bytes);
}

/* ---- Life of a task ---- */

static void list_add(mn_task **first, mn_task **last, mn_task *task)
{
    task->next = NULL;
    task->previous = *last;
    *(*last ? &(*last)->next : first) = task;
    *last = task;
}

static void list_remove(mn_task **first, mn_task **last, mn_task *task)
{
    *(task->previous ? &task->previous->next : first) = task->next;
    *(task->next ? &task->next->previous : last) = task->previous;
    task->next = task->previous = NULL;
}

static mn_task *task_take(mn_core *core)
{
    mn_task *task = core->free_task;
    if (task)
        core->free_task = task->next;
    else if (core->tasks_used < core->options.operations_max)
        task = &core->tasks[core->tasks_used++];
    else
        return NULL;
    memset(task, 0, sizeof *task);
    task->core = core;
    task->lanes = core->lanes + (uint64_t)(task - core->tasks) * core->shards;
    task->resume_ns = task->step_shown = UINT64_MAX;
    return task;
}

/* What must hold before any operation of this kind may begin. */
static enum mn_status check_place(const mn_core *core, const mn_operation *operation,
                                  mn_error *error)
{
    bool usage = operation->kind == MN_OP_USAGE;
    bool move = operation->kind == MN_OP_MOVE;
    bool data = (operation->kind >= MN_OP_FETCH && operation->kind <= MN_OP_STORE) || usage || move;
    bool read = operation->kind == MN_OP_FETCH || operation->kind == MN_OP_BAG;
    bool look = operation->kind == MN_OP_STATUS || operation->kind == MN_OP_LIST ||
                operation->kind == MN_OP_JOIN;
    bool files = operation->kind == MN_OP_SAVE || operation->kind == MN_OP_LOAD;
    bool reader = core->options.reader;
    if (data && (!operation->table || operation->table->core != core))
        return mn_fail(error, MN_INVALID, "table", "the table is not one of this client's");
    if (data && operation->table->id == 0)
        return mn_fail(error, MN_NOT_FOUND, "table", "table \"%s\" was dropped",
                       operation->table->spec.name);
    if (reader && !look && !files && !usage && !move && !(read && operation->step == MN_LATEST) &&
        operation->kind != MN_OP_TABLE_FIND)
        return mn_fail(error, MN_INVALID, "reader",
                       "a reader finds tables, reads MN_LATEST, moves tiles, saves and loads; open "
                       "without "
                       "`reader`");
    if (!core->joined && reader && !look && operation->kind != MN_OP_LOAD &&
        operation->kind != MN_OP_TABLE_FIND)
        return mn_fail(error, MN_NOT_FOUND, "group", "there is no group \"%s\"",
                       core->options.group);
    if (!core->joined && !look && !reader)
        return mn_fail(error, MN_INVALID, "join", "the client has not joined its group");
    return MN_OK;
}

enum mn_status mn_core_submit(mn_core *core, mn_operation *operation)
{
    assert(operation->kind <= MN_OP_USAGE && operation->done);
    mn_task *task = task_take(core);
    if (!task)
        return MN_BUSY;
    task->operation = operation;
    operation->core = task;
    operation->status = MN_OK;
    memset(&operation->error, 0, sizeof operation->error);
    operation->answered_step = 0;
    list_add(&core->alive_first, &core->alive_last, task);
    mn_core_wake_at(core, operation->deadline_ns);
    enum mn_status status = check_place(core, operation, &task->error);
    if (status)
        mn_task_end(task, status);
    else
        beginnings[operation->kind](task);
    return MN_OK;
}

void mn_core_cancel(mn_core *core, mn_operation *operation)
{
    mn_task *task = operation->core;
    if (!task || task->ending)
        return;
    mn_task_end(task, mn_fail(&task->error, MN_CANCELLED, "call", "the caller cancelled the call"));
    mn_core_drain(core);
}

void mn_task_end(mn_task *task, enum mn_status status)
{
    if (task->ending)
        return;
    task->ending = true;
    task->error.status = status;
    task->resume_ns = UINT64_MAX;
    if (task->slots || task->unanswered)
        mn_slots_drop(task);
    mn_task_settle(task);
}

void mn_task_done(mn_task *task) { mn_task_end(task, MN_OK); }

void mn_task_restart(mn_task *task, void (*next)(mn_task *task))
{
    task->restart = next;
    if (task->slots || task->unanswered)
        mn_slots_drop(task);
    task->unanswered = 0;
    mn_task_settle(task);
}

void mn_task_settle(mn_task *task)
{
    mn_core *core = task->core;
    if (!task->ending && task->restart) {
        void (*next)(mn_task * task) = task->restart;
        if (task->flying)
            return;
        task->restart = NULL;
        next(task);
        return;
    }
    if (!task->ending) {
        if (task->unanswered == 0 && task->resume_ns == UINT64_MAX)
            task->phase->complete(task);
        return;
    }
    if (task->flying)
        return;
    list_remove(&core->alive_first, &core->alive_last, task);
    list_add(&core->ended_first, &core->ended_last, task);
}

static void task_free(mn_task *task)
{
    mn_core *core = task->core;
    mn_operation *operation = task->operation;
    mn_end_data(task);
    mn_settle_destroy(task);
    mn_moves_destroy(task);
    list_remove(&core->ended_first, &core->ended_last, task);
    task->next = core->free_task;
    core->free_task = task;
    operation->status = task->error.status;
    if (operation->status)
        operation->error = task->error;
    operation->core = NULL;
    operation->done(operation); /* may submit another: nothing of the task is touched after it */
}

void mn_core_drain(mn_core *core)
{
    while (core->ended_first)
        task_free(core->ended_first);
}

/* ---- Time ---- */

void mn_core_wake_at(mn_core *core, uint64_t due_ns)
{
    if (due_ns < core->due_ns)
        core->due_ns = due_ns;
}

void mn_task_pause(mn_task *task, void (*resume)(mn_task *task), const mn_error *why)
{
    mn_core *core = task->core;
    task->last = *why;
    task->resume = resume;
    task->resume_ns = core->env.now_ns(core->env.context) + mn_back_off_ns(core, task->pauses++);
    core->counters.retries++;
    mn_core_wake_at(core, task->resume_ns);
}

/* The time is up: what the last retried failure was says more than "no answer". */
static void task_expire(mn_task *task)
{
    if (task->last.status) {
        task->error = task->last;
    } else {
        char whom[24] = "no shard";
        for (uint32_t shard = 0; shard < task->core->shards; shard++)
            if (task->unanswered && task->lanes[shard].pieces)
                (void)snprintf(whom, sizeof whom, "shard %u", shard); /* fits */
        (void)mn_fail(&task->error, MN_DEADLINE, "deadline",
                      "the call's time ran out before %s answered", whom);
    }
    mn_task_end(task, task->error.status);
}

uint64_t mn_core_tick(mn_core *core, uint64_t now_ns)
{
    const bool endless = core->options.plants & MN_CORE_PLANT_NO_DEADLINE;
    core->due_ns = UINT64_MAX;
    for (mn_task *task = core->alive_first, *next; task; task = next) {
        next = task->next;
        if (task->ending)
            continue;
        if (now_ns >= task->operation->deadline_ns && !endless) {
            task_expire(task);
            continue;
        }
        mn_core_wake_at(core, endless ? UINT64_MAX : task->operation->deadline_ns);
        if (task->resume_ns <= now_ns) {
            task->resume_ns = UINT64_MAX;
            task->resume(task);
        } else {
            mn_core_wake_at(core, task->resume_ns);
        }
    }
    mn_slots_tick(core, now_ns);
    mn_core_drain(core);
    return mn_core_due(core);
}

void mn_error_of_shard(mn_error *out_error, uint32_t shard, enum mn_status status,
                       const mn_reply *reply)
{
    const char *words = reply->error.message[0] ? reply->error.message : mn_status_sentence(status);
    (void)mn_fail(out_error, status, reply->error.field[0] ? reply->error.field : "shard",
                  "shard %u: %.200s", shard, words);
}
