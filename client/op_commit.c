/* Commit and Discard: this rank's step made permanent. Reduce: sums over ranks. */
#include "client_private.h"

#include <inttypes.h>
#include <string.h>

/* ---- Commit ---- */

static void settled_commit(mn_task *task)
{
    mn_operation *operation = task->operation;
    const mn_settle *settle = task->settle;
    bool dropped = settle->outcome.discard && !operation->proposal.discard;
    if (operation->norms && !settle->outcome.discard)
        memcpy(operation->norms, settle->norms,
               operation->proposal.set_count * sizeof *operation->norms);
    mn_core_advance(task->core, settle->step);
    if (dropped)
        mn_task_end(task, mn_fail(&task->error, MN_DISCARDED, "discard",
                                  "a rank voted to discard step %" PRIu64
                                  ", or its norm is not finite: it is committed without a change",
                                  settle->step));
    else if (operation->proposal.discard && !settle->outcome.discard)
        mn_task_end(task, mn_fail(&task->error, MN_CONFLICT, "discard",
                                  "step %" PRIu64
                                  " was sealed before this vote, and is committed with its changes",
                                  settle->step));
    else
        mn_task_done(task);
}

static enum mn_status check_commit(mn_task *task)
{
    mn_core *core = task->core;
    const mn_operation *operation = task->operation;
    if (operation->step != core->step + 1)
        return mn_fail(&task->error, MN_STEP, "step",
                       "step %" PRIu64 " cannot be committed: the last one is %" PRIu64,
                       operation->step, core->step);
    if (mn_steps_changing(core, operation->step))
        return mn_fail(&task->error, MN_STEP, "step",
                       "%u changing calls of step %" PRIu64 " have not been waited for",
                       mn_steps_changing(core, operation->step), operation->step);
    return mn_check_proposal(&operation->proposal, &task->error);
}

void mn_begin_commit(mn_task *task)
{
    enum mn_status status = check_commit(task);
    if (!status)
        status = mn_settle_create(task);
    if (status) {
        mn_task_end(task, status);
        return;
    }
    mn_proposal vote = {.discard = true}; /* carries no sets */
    mn_settle *settle = task->settle;
    settle->step = task->operation->step;
    settle->settled = settled_commit;
    if (!task->operation->proposal.discard)
        vote = task->operation->proposal;
    for (uint32_t shard = 0; shard < task->core->shards; shard++)
        settle->views[shard].proposal = vote;
    mn_settle_seal(task);
}

/* ---- Reduce ---- */

static void fill_reduce(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    (void)lane; /* the home shard's */
    const mn_operation *operation = task->operation;
    mn_request *request = &slot->exchange.request;
    request->context.step = operation->step;
    memcpy(request->name, operation->name, sizeof request->name - 1);
    request->count = operation->count;
    mn_fill_payload(slot, operation->reduce_values, operation->count * sizeof(double));
}

static enum mn_status answered_reduce(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    const mn_operation *operation = task->operation;
    const mn_payload *payload = &slot->exchange.reply.payload;
    if (payload->bytes != operation->count * sizeof(double))
        return mn_fail(&task->error, MN_CORRUPT, "payload",
                       "shard %u answered %" PRIu64 " bytes for %" PRIu64 " values", lane->shard,
                       payload->bytes, operation->count);
    mn_cursor cursor;
    mn_cursor_init(&cursor, payload, 0);
    mn_cursor_read(&cursor, operation->reduce_values, payload->bytes);
    return MN_OK;
}

static const mn_phase reduce_phase = {MN_VERB_REDUCE, fill_reduce, answered_reduce, NULL,
                                      mn_task_done};

void mn_begin_reduce(mn_task *task)
{
    const mn_operation *operation = task->operation;
    enum mn_status status = MN_OK;
    if (!mn_name_valid(operation->name))
        status =
            mn_fail(&task->error, MN_INVALID, "name", "\"%.63s\" is not a name", operation->name);
    else if (operation->count == 0 || operation->count > MN_REDUCE_VALUES_MAX)
        status = mn_fail(&task->error, MN_INVALID, "count",
                         "%" PRIu64 " values are not between 1 and %d", operation->count,
                         MN_REDUCE_VALUES_MAX);
    else if (!operation->reduce_values)
        status = mn_fail(&task->error, MN_INVALID, "values", "there are no values");
    if (status)
        mn_task_end(task, status);
    else
        mn_phase_home(task, &reduce_phase);
}
