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
    uint32_t wanted;               /* number among those that an image's base has to write; or 0 */
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

/* An image has it as it was. */
static void before_change(mn_shard *shard, const struct reduce *reduce)
{
    if (reduce->wanted)
        mn_shard_image_reduce(shard, reduce->wanted);
}

static void destroy(mn_shard *shard, struct group *group, struct reduce *reduce)
{
    before_change(shard, reduce);
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

/* An empty one, which is not of a step that is too far ahead. */
static enum mn_status add_reduce(mn_shard *shard, struct group *group, uint64_t number,
                                 const char *name, struct reduce **out_reduce, mn_error *error)
{
    enum mn_status status;
    struct reduce *reduce = take(shard, group, number, header_bytes(group->ranks), &status, error);
    if (!reduce)
        return status;
    memset(reduce, 0, header_bytes(group->ranks));
    reduce->step = number;
    memcpy(reduce->name, name, strnlen(name, MN_NAME_BYTES - 1));
    reduce->ranks = group->ranks;
    struct reduce **bucket = bucket_of(group, number, name);
    reduce->next = *bucket;
    *bucket = reduce;
    if (number > group->committed)
        mn_shard_step_at(shard, group, number)->reduce_count++;
    *out_reduce = reduce;
    return MN_OK;
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
    enum mn_status status = add_reduce(shard, group, number, request->name, out_reduce, error);
    if (!status)
        (*out_reduce)->count = count;
    return status;
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
    before_change(shard, reduce);
    reduce->came += !entry->came;
    entry->came = true;
    entry->values = values;
    memcpy(entry->values, payload, bytes);
    entry->checksum = checksum;
    entry->incarnation = context->incarnation;
    return MN_OK;
}

/* ---- As an image's base holds them */

enum { ENTRY_BYTES = 3 * sizeof(uint64_t) };

struct reduce *mn_shard_reduce_after(const struct group *group, const struct reduce *after)
{
    uint64_t bucket = 0;
    if (after && after->next)
        return after->next;
    if (after)
        bucket = (uint64_t)(bucket_of((struct group *)group, after->step, after->name) -
                            group->reduces) +
                 1;
    while (bucket < REDUCE_BUCKETS && !group->reduces[bucket])
        bucket++;
    return bucket < REDUCE_BUCKETS ? group->reduces[bucket] : NULL;
}

void mn_shard_reduce_want(struct reduce *reduce, uint32_t place) { reduce->wanted = place; }

struct file_base_reduce mn_shard_reduce_head(const struct reduce *reduce)
{
    uint64_t arrays = reduce->sum ? 1 : reduce->came;
    struct file_base_reduce head = {
        .step = reduce->step,
        .count = reduce->count,
        .summed = reduce->sum != NULL,
        .body_bytes = reduce->ranks * (uint64_t)ENTRY_BYTES + arrays * reduce->count * 8,
    };
    memcpy(head.name, reduce->name, sizeof head.name);
    return head;
}

void mn_shard_reduce_pack(const struct reduce *reduce, uint8_t *out_body)
{
    uint8_t *at = out_body;
    const uint64_t bytes = reduce->count * sizeof(double);
    for (uint32_t rank = 0; rank < reduce->ranks; rank++, at += ENTRY_BYTES) {
        const struct reduce_entry *entry = &reduce->entries[rank];
        const uint64_t words[] = {entry->came, entry->checksum, entry->incarnation};
        memcpy(at, words, sizeof words);
    }
    if (reduce->sum)
        memcpy(at, reduce->sum, bytes);
    for (uint32_t rank = 0; !reduce->sum && rank < reduce->ranks; rank++) {
        if (!reduce->entries[rank].came)
            continue;
        memcpy(at, reduce->entries[rank].values, bytes);
        at += bytes;
    }
}

static enum mn_status unpack_arrays(mn_shard *shard, struct group *group, struct reduce *reduce,
                                    bool summed, const uint8_t *arrays, mn_error *error)
{
    const uint64_t bytes = reduce->count * sizeof(double);
    enum mn_status status = MN_OK;
    for (uint32_t rank = 0; rank < (summed ? 1 : reduce->ranks); rank++) {
        double **values = summed ? &reduce->sum : &reduce->entries[rank].values;
        if (!summed && !reduce->entries[rank].came)
            continue;
        *values = take(shard, group, reduce->step, bytes, &status, error);
        if (!*values)
            return status;
        memcpy(*values, arrays, bytes);
        arrays += bytes;
    }
    return MN_OK;
}

enum mn_status mn_shard_reduce_unpack(mn_shard *shard, struct group *group,
                                      const struct file_base_reduce *head, const uint8_t *body,
                                      mn_error *error)
{
    const uint64_t entries_bytes = group->ranks * (uint64_t)ENTRY_BYTES;
    struct reduce *reduce = NULL;
    uint64_t came = 0;
    bool valid = mn_name_valid(head->name) && head->count && head->count <= MN_REDUCE_VALUES_MAX &&
                 head->step && head->step >= group->committed &&
                 head->step - group->committed <= shard->options.open_steps_max &&
                 head->body_bytes >= entries_bytes && !find(group, head->step, head->name);
    for (uint32_t rank = 0; valid && rank < group->ranks; rank++)
        came += body[rank * (uint64_t)ENTRY_BYTES] & 1;
    uint64_t arrays = head->summed ? 1 : came;
    valid = valid && (!head->summed || came == group->ranks) &&
            head->body_bytes == entries_bytes + arrays * head->count * sizeof(double);
    if (!valid)
        return mn_fail(error, MN_CORRUPT, "base_reduce", "no reduce of step %" PRIu64, head->step);
    enum mn_status status = add_reduce(shard, group, head->step, head->name, &reduce, error);
    if (status)
        return status;
    reduce->count = head->count;
    reduce->came = (uint32_t)came;
    for (uint32_t rank = 0; rank < group->ranks; rank++) {
        uint64_t words[3];
        memcpy(words, body + rank * (uint64_t)ENTRY_BYTES, sizeof words);
        reduce->entries[rank] = (struct reduce_entry){
            .came = words[0] & 1, .checksum = words[1], .incarnation = words[2]};
    }
    return unpack_arrays(shard, group, reduce, head->summed, body + entries_bytes, error);
}

/* ---- Summing */

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
    uint8_t *out;
    status = mn_shard_reserve(call, request->payload.bytes, &out, error);
    if (!status)
        memcpy(out, reduce->sum, request->payload.bytes);
    return status;
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
