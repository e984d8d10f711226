/* Reduce: sums of small vectors over the ranks, in rank order (STEPS.md "Reduce"). */
#include "shard_core.h"

struct reduce_entry {
    double *values; /* [count]; NULL: not come, or added up already */
    uint64_t checksum, incarnation;
    bool came;
};

struct reduce {
    struct reduce *next;
    uint64_t step;
    char name[MN_NAME_BYTES];
    uint64_t count;
    uint32_t ranks, came;
    double *sum;                   /* [count] once all came */
    struct reduce_entry entries[]; /* [ranks] */
};

static uint64_t header_bytes(uint32_t ranks)
{
    return sizeof(struct reduce) + ranks * sizeof(struct reduce_entry);
}

static struct reduce **bucket_of(struct group *group, uint64_t step, const char *name)
{
    uint64_t hash = mn_checksum(name, strnlen(name, MN_NAME_BYTES), step);
    return &group->reduces[hash % REDUCE_BUCKETS];
}

static struct reduce *find(struct group *group, uint64_t step, const char *name)
{
    struct reduce *reduce = *bucket_of(group, step, name);
    while (reduce && (reduce->step != step || strncmp(reduce->name, name, MN_NAME_BYTES)))
        reduce = reduce->next;
    return reduce;
}

/* What reduces hold counts for the budget as their step's pieces do. What is kept after the commit
 * counts apart (mn_shard_reduce_keep): it must not take the room of the steps that are open. */
static void charge(mn_shard *shard, struct group *group, uint64_t number, int64_t bytes)
{
    if (number <= group->committed) {
        group->kept_bytes += (uint64_t)bytes;
        return;
    }
    group->change_bytes += (uint64_t)bytes;
    mn_shard_step_at(shard, group, number)->charged_bytes += (uint64_t)bytes;
}

void mn_shard_reduce_keep(struct group *group, struct step *step)
{
    group->change_bytes -= step->charged_bytes;
    group->kept_bytes += step->charged_bytes;
    step->charged_bytes = 0;
}

static enum mn_status check_room(const mn_shard *shard, const struct group *group, uint64_t number,
                                 uint64_t bytes, mn_error *error)
{
    uint64_t max = shard->options.change_bytes_max;
    if (number > group->committed)
        return mn_shard_change_room(shard, group, number, bytes, error);
    if (group->kept_bytes <= max && bytes <= max - group->kept_bytes)
        return MN_OK;
    return mn_fail(error, MN_BUSY, "change_bytes_max",
                   "%" PRIu64 " bytes of reduces are kept of step %" PRIu64 ", no room for %" PRIu64
                   " more",
                   group->kept_bytes, number, bytes);
}

static void *take(mn_shard *shard, struct group *group, uint64_t step, uint64_t bytes,
                  enum mn_status *out_status, mn_error *error)
{
    uint64_t block_bytes = mn_shard_block_bytes(bytes);
    *out_status = check_room(shard, group, step, block_bytes, error);
    if (*out_status)
        return NULL;
    void *block = mn_shard_block_take(&shard->pool, bytes);
    if (block)
        charge(shard, group, step, (int64_t)block_bytes);
    else
        *out_status = mn_fail(error, MN_NO_MEMORY, "name", "no memory for a reduce");
    return block;
}

static void give(mn_shard *shard, struct group *group, uint64_t step, void *block, uint64_t bytes)
{
    if (!block)
        return;
    charge(shard, group, step, -(int64_t)mn_shard_block_bytes(bytes));
    mn_shard_block_give(&shard->pool, block, bytes);
}

static void destroy(mn_shard *shard, struct group *group, struct reduce *reduce)
{
    uint64_t step = reduce->step, bytes = reduce->count * sizeof(double);
    for (uint32_t rank = 0; rank < reduce->ranks; rank++)
        give(shard, group, step, reduce->entries[rank].values, bytes);
    give(shard, group, step, reduce->sum, bytes);
    give(shard, group, step, reduce, header_bytes(reduce->ranks));
}

void mn_shard_reduce_drop(mn_shard *shard, struct group *group, uint64_t before_step)
{
    for (uint32_t bucket = 0; bucket < REDUCE_BUCKETS; bucket++) {
        for (struct reduce **link = &group->reduces[bucket]; *link;) {
            struct reduce *reduce = *link;
            if (reduce->step >= before_step) {
                link = &reduce->next;
                continue;
            }
            *link = reduce->next;
            destroy(shard, group, reduce);
        }
    }
}

static enum mn_status open_reduce(mn_shard *shard, struct group *group, const mn_request *request,
                                  uint64_t count, struct reduce **out_reduce, mn_error *error)
{
    uint64_t number = request->context.step;
    uint32_t steps = shard->options.open_steps_max;
    if (number <= group->committed || number - group->committed > steps)
        return mn_fail(error, MN_STEP, "step",
                       "%" PRIu64 " is not open: %" PRIu64 " to %" PRIu64 " are", number,
                       group->committed + 1, group->committed + steps);
    struct step *step = mn_shard_step_at(shard, group, number);
    if (step->reduce_count >= shard->options.reduces_max)
        return mn_fail(error, MN_BUSY, "reduces_max", "step %" PRIu64 " has %u reduces already",
                       number, step->reduce_count);
    enum mn_status status;
    struct reduce *reduce = take(shard, group, number, header_bytes(group->ranks), &status, error);
    if (!reduce)
        return status;
    memset(reduce, 0, header_bytes(group->ranks));
    reduce->step = number;
    memcpy(reduce->name, request->name, strnlen(request->name, MN_NAME_BYTES - 1));
    reduce->count = count;
    reduce->ranks = group->ranks;
    struct reduce **bucket = bucket_of(group, number, request->name);
    reduce->next = *bucket;
    *bucket = reduce;
    step->reduce_count++;
    *out_reduce = reduce;
    return MN_OK;
}

/* The rank's values join, once: a repeat is recognised, a newer incarnation's replace the older's
 * as long as the sum has not been told to anyone. */
static enum mn_status contribute(mn_shard *shard, struct group *group, struct reduce *reduce,
                                 const mn_request *request, const uint8_t *payload, mn_error *error)
{
    const mn_context *context = &request->context;
    struct reduce_entry *entry = &reduce->entries[context->rank];
    uint64_t bytes = reduce->count * sizeof(double);
    uint64_t checksum = mn_checksum(payload, bytes, 0);
    if (entry->came && entry->checksum == checksum)
        return MN_OK;
    if (entry->came && (reduce->sum || context->incarnation <= entry->incarnation))
        return mn_fail(error, MN_CONFLICT, "payload",
                       "rank %u gave other values to %s of step %" PRIu64 " before", context->rank,
                       reduce->name, reduce->step);
    enum mn_status status = MN_OK;
    double *values = entry->values;
    if (!values)
        values = take(shard, group, reduce->step, bytes, &status, error);
    if (!values)
        return status;
    status = mn_shard_log_append(shard, group, request, error);
    if (status) {
        if (!entry->values)
            give(shard, group, reduce->step, values, bytes);
        return status;
    }
    reduce->came += !entry->came;
    entry->came = true;
    entry->values = values;
    memcpy(entry->values, payload, bytes);
    entry->checksum = checksum;
    entry->incarnation = context->incarnation;
    return MN_OK;
}

/* Rank 0's block becomes the sum; the others go back. */
static void add_up(mn_shard *shard, struct group *group, struct reduce *reduce)
{
    reduce->sum = reduce->entries[0].values;
    reduce->entries[0].values = NULL;
    for (uint32_t rank = 1; rank < reduce->ranks; rank++) {
        struct reduce_entry *entry = &reduce->entries[rank];
        for (uint64_t i = 0; i < reduce->count; i++)
            reduce->sum[i] += entry->values[i];
        give(shard, group, reduce->step, entry->values, reduce->count * sizeof(double));
        entry->values = NULL;
    }
    group->wake |= 1u << MN_VERB_REDUCE;
}

static enum mn_status check_reduce(mn_shard *shard, const mn_request *request, mn_error *error)
{
    uint64_t bytes = request->payload.bytes;
    if (!is_home(shard))
        return mn_fail(error, MN_INVALID, "shard", "Reduce goes to the home shard (0), not to %u",
                       shard->options.shard);
    if (!mn_name_valid(request->name))
        return mn_fail(error, MN_INVALID, "name",
                       "\"%.63s\" is not a name of 1 to 63 letters, "
                       "digits, dots, dashes and underscores",
                       request->name);
    if (bytes == 0 || bytes % sizeof(double) || bytes / sizeof(double) > MN_REDUCE_VALUES_MAX)
        return mn_fail(error, MN_INVALID, "payload", "%" PRIu64 " bytes are not 1 to %d f64", bytes,
                       MN_REDUCE_VALUES_MAX);
    return MN_OK;
}

enum mn_status mn_shard_reduce(mn_shard *shard, mn_call *call, mn_error *error)
{
    const mn_request *request = &call->request;
    struct group *group;
    enum mn_status status = mn_shard_check_group(shard, call, false, &group, error);
    if (!status)
        status = check_reduce(shard, request, error);
    if (status)
        return status;
    uint64_t count = request->payload.bytes / sizeof(double);
    struct reduce *reduce = find(group, request->context.step, request->name);
    if (reduce && reduce->count != count)
        return mn_fail(error, MN_CONFLICT, "count",
                       "%" PRIu64 " values, but %s of step %" PRIu64 " has %" PRIu64, count,
                       reduce->name, reduce->step, reduce->count);
    if (!reduce)
        status = open_reduce(shard, group, request, count, &reduce, error);
    if (!status)
        status = contribute(shard, group, reduce, request,
                            mn_shard_payload(shard, &request->payload), error);
    if (status)
        return status;
    if (reduce->came == reduce->ranks && !reduce->sum)
        add_up(shard, group, reduce);
    if (!reduce->sum)
        return mn_shard_park(shard, group, call, 0, error);
    uint8_t *out = call->reserve(call, request->payload.bytes);
    if (!out)
        return mn_fail(error, MN_BUSY, "reply_bytes_max",
                       "no room for a reply of %" PRIu64 " bytes", request->payload.bytes);
    memcpy(out, reduce->sum, request->payload.bytes);
    return MN_OK;
}

static bool has_not_come(const void *context, uint32_t rank)
{
    return !((const struct reduce *)context)->entries[rank].came;
}

void mn_shard_reduce_missing(struct group *group, const mn_request *request, char *out_text,
                             size_t bytes)
{
    const struct reduce *reduce = find(group, request->context.step, request->name);
    out_text[0] = '\0';
    if (reduce)
        mn_shard_name_ranks(group->ranks, has_not_come, reduce, out_text, bytes);
}
