/* What ranks propose in their seals: checked, compared, digested. */
#include "shard_core.h"

static bool is_finite(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7f800000u) != 0x7f800000u;
}

static enum mn_status check_numbers(uint32_t index, const mn_commit_set *set, mn_error *error)
{
    const struct {
        const char *field;
        float value, least;
    } numbers[] = {
        {"learning_rate", set->learning_rate, -3.4e38f},
        {"weight_decay", set->weight_decay, 0},
        {"scale", set->scale, -3.4e38f},
        {"clip_norm", set->clip_norm, 0},
    };
    for (uint32_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!is_finite(numbers[i].value) || numbers[i].value < numbers[i].least)
            return mn_fail(error, MN_INVALID, numbers[i].field, "%g in set %u: a finite number%s",
                           (double)numbers[i].value, index,
                           numbers[i].least == 0 ? ", 0 or more" : "");
    return MN_OK;
}

int mn_shard_proposal_set(const mn_proposal *proposal, uint64_t table)
{
    if (proposal->set_count == 1 && proposal->sets[0].table_count == 0)
        return 0;
    for (uint32_t i = 0; i < proposal->set_count; i++)
        for (uint32_t j = 0; j < proposal->sets[i].table_count; j++)
            if (proposal->sets[i].tables[j] == table)
                return (int)i;
    return -1;
}

static enum mn_status check_tables(mn_shard *shard, struct group *group, const mn_request *request,
                                   uint32_t index, mn_error *error)
{
    const mn_proposal *proposal = &request->proposal;
    const mn_commit_set *set = &proposal->sets[index];
    if (set->table_count > MN_COMMIT_TABLES_MAX)
        return mn_fail(error, MN_INVALID, "sets", "set %u names %u tables, more than %d", index,
                       set->table_count, MN_COMMIT_TABLES_MAX);
    if (set->table_count == 0 && proposal->set_count > 1)
        return mn_fail(error, MN_INVALID, "sets", "set %u of %u names no table", index,
                       proposal->set_count);
    for (uint32_t i = 0; i < set->table_count; i++) {
        uint64_t id = set->tables[i];
        if (i && id <= set->tables[i - 1])
            return mn_fail(error, MN_INVALID, "sets", "tables of set %u do not ascend at %" PRIu64,
                           index, id);
        if (!mn_shard_table_find(shard, group, id, NULL))
            return mn_shard_table_missing(shard, group, &request->context, id, "sets", error);
        if (mn_shard_proposal_set(proposal, id) != (int)index)
            return mn_fail(error, MN_INVALID, "sets", "table %" PRIu64 " is in two sets", id);
    }
    return MN_OK;
}

enum mn_status mn_shard_proposal_check(mn_shard *shard, struct group *group,
                                       const mn_request *request, mn_error *error)
{
    const mn_proposal *proposal = &request->proposal;
    if (proposal->set_count > MN_COMMIT_SETS_MAX)
        return mn_fail(error, MN_INVALID, "sets", "%u sets are more than %d", proposal->set_count,
                       MN_COMMIT_SETS_MAX);
    enum mn_status status = MN_OK;
    for (uint32_t i = 0; !status && i < proposal->set_count; i++) {
        status = check_numbers(i, &proposal->sets[i], error);
        if (!status)
            status = check_tables(shard, group, request, i, error);
    }
    return status;
}

/* ---- Equality, and the digest by which a repeat of a commit is recognised */

static enum mn_status differ(mn_error *error, const char *field, double standing, double given)
{
    return mn_fail(error, MN_CONFLICT, field, "%.9g, but another rank proposed %.9g for this step",
                   given, standing);
}

#define SAME(field)                                                                                \
    if (memcmp(&a->field, &b->field, sizeof a->field) != 0)                                        \
    return differ(error, #field, (double)a->field, (double)b->field)

static enum mn_status set_equal(const mn_commit_set *a, const mn_commit_set *b, mn_error *error)
{
    SAME(table_count);
    for (uint32_t i = 0; i < a->table_count; i++)
        if (a->tables[i] != b->tables[i])
            return differ(error, "tables", (double)a->tables[i], (double)b->tables[i]);
    SAME(learning_rate);
    SAME(weight_decay);
    SAME(scale);
    SAME(clip_norm);
    return MN_OK;
}

enum mn_status mn_shard_proposal_equal(const mn_proposal *standing, const mn_proposal *given,
                                       mn_error *error)
{
    const mn_proposal *a = standing, *b = given;
    SAME(set_count);
    enum mn_status status = MN_OK;
    for (uint32_t i = 0; !status && i < a->set_count; i++)
        status = set_equal(&a->sets[i], &b->sets[i], error);
    return status;
}

uint64_t mn_shard_proposal_digest(const mn_proposal *proposal, const float *factors)
{
    uint32_t head[2] = {proposal->discard ? 0 : proposal->set_count, proposal->discard};
    uint64_t digest = mn_checksum(head, sizeof head, 1);
    for (uint32_t i = 0; i < head[0]; i++) {
        const mn_commit_set *set = &proposal->sets[i];
        float numbers[5] = {set->learning_rate, set->weight_decay, set->scale, set->clip_norm,
                            factors[i]};
        digest = mn_checksum(set->tables, set->table_count * sizeof *set->tables, digest);
        digest = mn_checksum(numbers, sizeof numbers, digest);
    }
    return digest;
}
