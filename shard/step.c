/* Seal and Commit: the two phases of a step (STEPS.md). */
#include "move.h"

/* One vote to discard is enough; the outcome then has no sets, so that it is the same at all shards
 * in whatever order the seals came. */
static mn_proposal outcome_of(const struct group *group, const struct step *step)
{
    const mn_proposal discard = {.discard = true};
    for (uint32_t rank = 0; rank < group->ranks; rank++)
        if (step->seals[rank].discard)
            return discard;
    return step->proposal;
}

/* Whether a seal that stands proposes sets. */
static bool proposed(const struct group *group, const struct step *step)
{
    for (uint32_t rank = 0; rank < group->ranks; rank++)
        if (step->seals[rank].sealed && !step->seals[rank].discard)
            return true;
    return false;
}

static uint64_t incarnation_sum(const struct group *group, const struct step *step)
{
    uint64_t sum = 0;
    for (uint32_t rank = 0; rank < group->ranks; rank++)
        sum += step->seals[rank].incarnation;
    return sum;
}

static bool lacks_seal(const void *context, uint32_t rank)
{
    return !((const struct step *)context)->seals[rank].sealed;
}

/* ---- Seal */

/* Gradients staged for a table that no set moves would be lost without a word. */
static enum mn_status check_covered(mn_shard *shard, const struct group *group,
                                    const struct step *step, const mn_proposal *proposal,
                                    mn_error *error)
{
    for (uint32_t i = 0; i < shard->options.tables_max; i++)
        if (step->tables[i].sources && mn_shard_proposal_set(proposal, group->tables[i].id) < 0)
            return mn_fail(error, MN_INVALID, "sets",
                           "table %" PRIu64 " (%s) has staged "
                           "gradients but is in no set",
                           group->tables[i].id, group->tables[i].spec.name);
    return MN_OK;
}

/* The first seal of a rank stands: a repeat with another vote is answered by it. A vote to discard
 * says nothing about sets, and what it drops needs no counting. */
static enum mn_status check_seal(mn_shard *shard, struct group *group, const struct step *step,
                                 const mn_request *request, mn_error *error)
{
    const struct seal *seal = &step->seals[request->context.rank];
    const mn_proposal *proposal = &request->proposal;
    enum mn_status status = MN_OK;
    if (proposal->discard) {
        if (proposal->set_count)
            status = mn_fail(error, MN_INVALID, "sets", "%u beside a vote to discard",
                             proposal->set_count);
        return status;
    }
    bool compared = proposed(group, step);
    if (compared)
        status = mn_shard_proposal_equal(&step->proposal, proposal, error);
    if (!status && compared && step->norms != request->norms)
        status = mn_fail(error, MN_CONFLICT, "norms", "%s, but another rank sealed with %s",
                         request->norms ? "true" : "false", step->norms ? "true" : "false");
    if (status || seal->sealed)
        return status;
    if (seal->pieces < request->acknowledged && !planted(shard, MN_PLANT_NO_SETTLED))
        return mn_fail(error, MN_LOST, "acknowledged",
                       "%" PRIu64 " pieces of rank %u for step %" PRIu64
                       " were acknowledged here, but %" PRIu64
                       " are staged: this shard has lost some; load a saved group",
                       request->acknowledged, request->context.rank, step->number, seal->pieces);
    if (request->pieces == MN_PIECES_OWED && !planted(shard, MN_PLANT_NO_COUNT))
        return mn_fail(error, MN_INCOMPLETE, "pieces",
                       "changing calls of rank %u for step %" PRIu64
                       " failed, and have yet to be made again",
                       request->context.rank, step->number);
    if (seal->pieces != request->pieces && !planted(shard, MN_PLANT_NO_COUNT))
        return mn_fail(error, MN_INCOMPLETE, "pieces",
                       "%" PRIu64 " sealed, but %" PRIu64
                       " of rank %u are staged here for step %" PRIu64,
                       request->pieces, seal->pieces, request->context.rank, step->number);
    status = mn_shard_proposal_check(shard, group, request, error);
    return status ? status : check_covered(shard, group, step, proposal, error);
}

/* Which tables the squares are of: others may come while the step is sealed, none can go. */
static void name_squares(const mn_shard *shard, const struct group *group, struct step *step)
{
    step->square_table_count = 0;
    for (uint32_t i = 0; i < shard->options.tables_max; i++) {
        uint64_t id = group->tables[i].id;
        if (!id)
            continue;
        uint32_t at = step->square_table_count++;
        for (; at > 0 && step->square_tables[at - 1] > id; at--)
            step->square_tables[at] = step->square_tables[at - 1];
        step->square_tables[at] = id;
    }
}

/* Records the seal. The last one merges the step, so that Commit needs no memory and cannot fail;
 * when there is none, or the log does not take the seal, it is taken back, and a repeat finds
 * things as they were. */
static enum mn_status record(mn_shard *shard, struct group *group, struct step *step,
                             const mn_request *request, mn_error *error)
{
    struct seal *seal = &step->seals[request->context.rank];
    if (!request->proposal.discard && !proposed(group, step)) {
        step->proposal = request->proposal;
        step->norms = request->norms;
    }
    seal->sealed = true;
    seal->discard = request->proposal.discard;
    seal->incarnation = request->context.incarnation;
    step->seal_count++;
    bool last = step->seal_count == group->ranks;
    enum mn_status status = MN_OK;
    if (last && !outcome_of(group, step).discard)
        status = mn_shard_merge(shard, group, step, error);
    if (!status && !planted(shard, MN_PLANT_LOG_NO_SEAL))
        status = mn_shard_log_append(shard, group, request, error);
    if (status) {
        mn_shard_merge_drop(shard, step);
        seal->sealed = seal->discard = false;
        seal->incarnation = 0;
        step->seal_count--;
        return status;
    }
    if (!last)
        return MN_OK;
    name_squares(shard, group, step);
    group->wake |= 1u << MN_VERB_SEAL;
    return MN_OK;
}

static enum mn_status answer_seal(mn_shard *shard, struct group *group, const struct step *step,
                                  mn_call *call, mn_error *error)
{
    call->reply.proposal = outcome_of(group, step);
    call->reply.incarnation_sum = incarnation_sum(group, step);
    if (!step->square_count)
        return MN_OK;
    uint64_t bytes = step->square_count * sizeof(double);
    uint8_t *out;
    enum mn_status status = mn_shard_reserve(call, bytes, &out, error);
    if (status)
        return status;
    memcpy(out, step->squares, bytes);
    for (uint32_t i = 0; i < step->square_table_count; i++) {
        uint64_t id = step->square_tables[i];
        const struct table *table = mn_shard_table_find(shard, group, id, NULL);
        assert(table); /* Drop waits for the commit */
        shard->table_infos[i] = (mn_table_info){
            .table = id, .tile_first = table->tile_first, .tile_count = table->tile_count};
    }
    call->reply.tables = shard->table_infos;
    call->reply.table_count = step->square_table_count;
    return MN_OK;
}

enum mn_status mn_shard_seal(mn_shard *shard, mn_call *call, mn_error *error)
{
    const mn_request *request = &call->request;
    struct group *group;
    enum mn_status status = mn_shard_check_group(shard, call, false, &group, error);
    if (status)
        return status;
    uint64_t number = request->context.step;
    if (number <= group->committed)
        return MN_OK; /* permanent already: the reply's step says so */
    if (number > group->committed + 1)
        return mn_fail(error, MN_STEP, "step",
                       "%" PRIu64 " cannot be sealed before %" PRIu64 " is committed", number,
                       group->committed + 1);
    status = mn_shard_move_waits(shard, group, 0, number, error);
    if (status)
        return status;
    struct step *step = mn_shard_step_at(shard, group, number);
    status = check_seal(shard, group, step, request, error);
    if (!status && !step->seals[request->context.rank].sealed)
        status = record(shard, group, step, request, error);
    if (status)
        return status;
    if (step->seal_count < group->ranks)
        return mn_shard_park(shard, group, call, 0, error);
    return answer_seal(shard, group, step, call, error);
}

/* ---- Commit */

/* A step committed before: its content must be the same. */
static enum mn_status acknowledge(const struct group *group, const mn_request *request,
                                  mn_error *error)
{
    uint64_t number = request->context.step;
    const struct commit_record *commit = &group->commits[number % COMMITS_KEPT];
    if (number == 0)
        return mn_fail(error, MN_STEP, "step", "0: steps count from 1");
    if (commit->step != number)
        return MN_OK; /* too long ago to compare */
    if (commit->digest != mn_shard_proposal_digest(&request->proposal, request->factors))
        return mn_fail(error, MN_CONFLICT, "proposal",
                       "step %" PRIu64 " is committed with another proposal or other factors",
                       number);
    return MN_OK;
}

static enum mn_status check_commit(const struct group *group, const struct step *step,
                                   const mn_request *request, mn_error *error)
{
    if (step->seal_count < group->ranks) {
        char ranks[128];
        mn_shard_name_ranks(group->ranks, lacks_seal, step, ranks, sizeof ranks);
        return mn_fail(error, MN_STEP, "step", "%" PRIu64 " is not sealed by ranks %s",
                       step->number, ranks);
    }
    uint64_t sum = incarnation_sum(group, step);
    if (request->incarnation_sum != sum)
        return mn_fail(error, MN_RESEAL, "incarnation_sum",
                       "%" PRIu64 ", but the seals here make "
                       "%" PRIu64 ": a rank came back, seal again",
                       request->incarnation_sum, sum);
    if (request->proposal.discard)
        return MN_OK; /* a vote that another shard has, perhaps */
    mn_proposal outcome = outcome_of(group, step);
    if (outcome.discard)
        return mn_fail(error, MN_RESEAL, "discard", "false, but a rank voted so here: seal again");
    enum mn_status status = mn_shard_proposal_equal(&outcome, &request->proposal, error);
    if (!status)
        status = mn_shard_check_finite("factors", MN_F32, (const uint8_t *)request->factors,
                                       outcome.set_count, error);
    return status;
}

static enum mn_status make_permanent(mn_shard *shard, struct group *group, struct step *step,
                                     const mn_request *request, mn_error *error)
{
    enum mn_status status = MN_OK;
    mn_proposal outcome = {.discard = true};
    if (!request->proposal.discard)
        outcome = outcome_of(group, step);
    if (!outcome.discard)
        status = mn_shard_merge_apply(shard, group, step, &outcome, request->factors, error);
    if (status)
        return status;
    mn_shard_step_drop(shard, group, step);
    mn_shard_reduce_keep(group, step); /* all that is left in it */
    group->committed = step->number;
    group->last_proposal = outcome;
    group->last_incarnation_sum = request->incarnation_sum;
    memcpy(group->last_factors, request->factors, sizeof group->last_factors);
    group->commits[step->number % COMMITS_KEPT] = (struct commit_record){
        .step = step->number, .digest = mn_shard_proposal_digest(&outcome, request->factors)};
    mn_shard_reduce_drop(shard, group, group->committed);
    group->wake = UINT32_MAX;
    return MN_OK;
}

enum mn_status mn_shard_commit(mn_shard *shard, mn_call *call, mn_error *error)
{
    const mn_request *request = &call->request;
    struct group *group;
    enum mn_status status = mn_shard_check_group(shard, call, false, &group, error);
    if (status)
        return status;
    uint64_t number = request->context.step;
    if (number <= group->committed)
        return acknowledge(group, request, error);
    if (number > group->committed + 1)
        return mn_fail(error, MN_STEP, "step", "%" PRIu64 " cannot be committed before %" PRIu64,
                       number, group->committed + 1);
    struct step *step = mn_shard_step_at(shard, group, number);
    status = check_commit(group, step, request, error);
    if (status)
        return status;
    const uint64_t digest = mn_shard_proposal_digest(&request->proposal, request->factors);
    const uint64_t life = mn_checksum(&digest, sizeof digest, group->log.history);
    status = mn_shard_log_append(shard, group, request, error);
    if (status)
        return status;
    group->life = life;
    status = make_permanent(shard, group, step, request, error);
    if (!status)
        mn_shard_image_cut(shard, group);
    return status;
}
