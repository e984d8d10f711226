/* Parked calls: whom they wait for, what they are charged, when their time is up. */
#include "shard_core.h"

#include "files.h"

#include <stdio.h>

/* What is staged for steps after the oldest open one. */
static uint64_t later_bytes(const mn_shard *shard, const struct group *group)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < shard->options.open_steps_max; i++)
        if (group->steps[i].number > group->committed + 1)
            bytes += group->steps[i].charged_bytes;
    return bytes;
}

enum mn_status mn_shard_change_room(const mn_shard *shard, const struct group *group, uint64_t step,
                                    uint64_t bytes, mn_error *error)
{
    const mn_shard_options *options = &shard->options;
    bool one_budget = planted(shard, MN_PLANT_ONE_BUDGET);
    uint64_t used = group->change_bytes + (one_budget ? group->read_bytes : 0);
    uint64_t max = options->change_bytes_max;
    bool room =
        shard->recovery || (used <= max && bytes <= max - used); /* there was, when logged */
    if (room && !shard->recovery && step > group->committed + 1 && !one_budget) {
        used = later_bytes(shard, group);
        max -= options->change_reserve_bytes;
        room = used <= max && bytes <= max - used;
    }
    if (room)
        return MN_OK;
    return mn_fail(error, MN_BUSY, "change_bytes_max",
                   "%" PRIu64 " of %" PRIu64 " bytes are in "
                   "use, no room for %" PRIu64 " of step %" PRIu64,
                   used, max, bytes, step);
}

static enum mn_status read_room(const mn_shard *shard, const struct group *group, uint64_t bytes,
                                mn_error *error)
{
    uint64_t used = group->read_bytes, max = shard->options.read_bytes_max;
    if (planted(shard, MN_PLANT_ONE_BUDGET)) {
        used += group->change_bytes;
        max = shard->options.change_bytes_max;
    }
    if (used <= max && bytes <= max - used)
        return MN_OK;
    return mn_fail(error, MN_BUSY, "read_bytes_max",
                   "%" PRIu64 " of %" PRIu64 " bytes are in "
                   "use, no room for %" PRIu64,
                   used, max, bytes);
}

/* A change that waits is of a step after the oldest open one, and its message is kept beside its
 * piece: both are that step's. */
static void charge(mn_shard *shard, struct group *group, const mn_call *call, int64_t bytes)
{
    if (mn_verb_kind_of(call->request.verb) != MN_KIND_CHANGE) {
        group->read_bytes += (uint64_t)bytes;
        return;
    }
    group->change_bytes += (uint64_t)bytes;
    mn_shard_step_at(shard, group, call->request.context.step)->charged_bytes += (uint64_t)bytes;
}

enum mn_status mn_shard_park(mn_shard *shard, struct group *group, mn_call *call, uint64_t bytes,
                             mn_error *error)
{
    bool change = mn_verb_kind_of(call->request.verb) == MN_KIND_CHANGE;
    enum mn_status status = MN_OK;
    if (bytes)
        status = change
                     ? mn_shard_change_room(shard, group, call->request.context.step, bytes, error)
                     : read_room(shard, group, bytes, error);
    if (status)
        return status;
    charge(shard, group, call, (int64_t)bytes);
    call->budget_bytes = bytes;
    call->core = group;
    call->next = NULL;
    call->previous = group->parked_last;
    if (group->parked_last)
        group->parked_last->next = call;
    else
        group->parked_first = call;
    group->parked_last = call;
    group->parked_count++;
    if (call->deadline_ns < shard->next_deadline_ns)
        shard->next_deadline_ns = call->deadline_ns;
    return MN_OK;
}

void mn_shard_unpark(mn_shard *shard, mn_call *call)
{
    struct group *group = call->core;
    if (!group)
        return;
    call->core = NULL;
    charge(shard, group, call, -(int64_t)call->budget_bytes);
    call->budget_bytes = 0;
    if (call->previous)
        call->previous->next = call->next;
    else
        group->parked_first = call->next;
    if (call->next)
        call->next->previous = call->previous;
    else
        group->parked_last = call->previous;
    call->next = call->previous = NULL;
    group->parked_count--;
}

/* Runs the parked calls of one group that `wake` names, in their order of arrival. A call may park
 * again, at the end of the list: so only those that stood there at the start are run. */
static void wake_group(mn_shard *shard, struct group *group)
{
    uint32_t verbs = group->wake, left = group->parked_count;
    group->wake = 0;
    mn_call *call = group->parked_first;
    while (call && left-- > 0) {
        mn_call *next = call->next;
        if (verbs >> call->request.verb & 1) {
            mn_shard_unpark(shard, call);
            mn_shard_run(shard, call);
        }
        call = next;
    }
}

void mn_shard_wake(mn_shard *shard)
{
    for (bool again = true; again;) {
        again = false;
        for (uint32_t i = 0; i < shard->options.groups_max; i++) {
            struct group *group = &shard->groups[i];
            if (!group->wake)
                continue;
            wake_group(shard, group);
            again = true;
        }
    }
}

void mn_shard_answer_parked(mn_shard *shard, struct group *group, enum mn_status status,
                            const char *field, const char *message)
{
    while (group->parked_first || group->log.held_first) {
        mn_call *call = group->parked_first ? group->parked_first : group->log.held_first;
        mn_error error = {0};
        (void)mn_fail(&error, status, field, "%s", message); /* fills error */
        if (call->held)
            mn_shard_log_unhold(shard, call);
        mn_shard_unpark(shard, call);
        mn_shard_answer_now(shard, call, status, &error);
    }
}

/* ---- Deadlines */

void mn_shard_name_ranks(uint32_t ranks, bool (*missing)(const void *context, uint32_t rank),
                         const void *context, char *out_text, size_t bytes)
{
    enum { NAMED_MAX = 8 };
    size_t length = 0;
    uint32_t count = 0;
    out_text[0] = '\0';
    for (uint32_t rank = 0; rank < ranks; rank++) {
        if (!missing(context, rank))
            continue;
        if (count++ < NAMED_MAX && length < bytes)
            length += (size_t)snprintf(out_text + length, bytes - length, "%s%u",
                                       count == 1 ? "" : ", ", rank);
    }
    if (count > NAMED_MAX && length < bytes)
        (void)snprintf(out_text + length, bytes - length, " and %u more", count - NAMED_MAX);
}

static bool lacks_seal(const void *context, uint32_t rank)
{
    return !((const struct step *)context)->seals[rank].sealed;
}

static void explain_step(mn_shard *shard, struct group *group, const mn_call *call, mn_error *error)
{
    uint64_t open = group->committed + 1;
    struct step *step = mn_shard_step_at(shard, group, open);
    char ranks[128];
    mn_shard_name_ranks(group->ranks, lacks_seal, step, ranks, sizeof ranks);
    if (ranks[0])
        (void)mn_fail(error, MN_DEADLINE, "step",
                      "%s waited for step %" PRIu64 ", which these ranks have not sealed: %s",
                      mn_verb_name(call->request.verb), open, ranks);
    else
        (void)mn_fail(error, MN_DEADLINE, "step",
                      "%s waited for step %" PRIu64
                      ", which all ranks sealed and none has committed",
                      mn_verb_name(call->request.verb), open);
}

/* What the call waited for, and for whom. */
static void explain(mn_shard *shard, struct group *group, const mn_call *call, mn_error *error)
{
    char ranks[128];
    switch (call->request.verb) {
    case MN_VERB_REDUCE:
        mn_shard_reduce_missing(group, &call->request, ranks, sizeof ranks);
        (void)mn_fail(error, MN_DEADLINE, "name",
                      "Reduce %.63s of step %" PRIu64 " waited for ranks %s", call->request.name,
                      call->request.context.step, ranks);
        break;
    case MN_VERB_COMMIT:
        (void)mn_fail(error, MN_DEADLINE, "step",
                      "Commit of step %" PRIu64 " waited for the snapshot of step %" PRIu64,
                      call->request.context.step, group->committed);
        break;
    default:
        explain_step(shard, group, call, error);
    }
}

static uint64_t expire_group(mn_shard *shard, struct group *group, uint64_t now_ns)
{
    uint64_t next_ns = UINT64_MAX;
    for (mn_call *call = group->parked_first; call;) {
        mn_call *next = call->next;
        if (call->deadline_ns <= now_ns) {
            mn_error error = {0};
            explain(shard, group, call, &error);
            mn_shard_unpark(shard, call);
            mn_shard_answer(shard, call, MN_DEADLINE, &error);
        } else if (call->deadline_ns < next_ns) {
            next_ns = call->deadline_ns;
        }
        call = next;
    }
    for (mn_call *call = group->log.held_first, *next; call; call = next) {
        next = call->next;
        if (call->deadline_ns > now_ns) {
            next_ns = call->deadline_ns < next_ns ? call->deadline_ns : next_ns;
            continue;
        }
        mn_error error = {0};
        (void)mn_fail(&error, MN_DEADLINE, "log", "%s is done, but its log record is not synced",
                      mn_verb_name(call->request.verb)); /* fills error */
        mn_shard_log_unhold(shard, call);
        mn_shard_answer(shard, call, MN_DEADLINE, &error);
    }
    return next_ns;
}

uint64_t mn_shard_expire(mn_shard *shard, uint64_t now_ns)
{
    mn_shard_job_expire(shard, now_ns);
    if (now_ns < shard->next_deadline_ns)
        return shard->next_deadline_ns;
    uint64_t next_ns = UINT64_MAX;
    for (uint32_t i = 0; i < shard->options.groups_max; i++) {
        struct group *group = &shard->groups[i];
        if (!group->parked_first && !group->log.held_first)
            continue;
        uint64_t group_ns = expire_group(shard, group, now_ns);
        if (group_ns < next_ns)
            next_ns = group_ns;
    }
    shard->next_deadline_ns = next_ns;
    return next_ns;
}
