/* How rows are read: a counter a row, beside the rows, that Bag moves and Describe tells. Of a
 * columns table the shard of the first tile counts for all: every shard gets every read. */
#include "shard_core.h"

static uint64_t counter_bytes(const struct table *table)
{
    return table->counter_rows * sizeof *table->counters;
}

enum mn_status mn_shard_usage_init(mn_shard *shard, struct table *table)
{
    uint64_t room = shard->options.usage_bytes_max - shard->usage_bytes;
    if (!table->plane_count || (table->geometry.split == MN_COLUMNS && table->tile_first > 0))
        return MN_OK;
    uint64_t rows = table->planes[0].rows;
    if (rows > room / sizeof *table->counters)
        rows = room / sizeof *table->counters;
    if (!rows)
        return MN_OK;
    table->counters = shard->env.reserve(shard->env.context, rows * sizeof *table->counters);
    if (!table->counters)
        return MN_NO_MEMORY;
    table->counter_rows = rows;
    shard->usage_bytes += counter_bytes(table);
    return MN_OK;
}

void mn_shard_usage_deinit(mn_shard *shard, struct table *table)
{
    if (!table->counters)
        return;
    shard->env.unreserve(shard->env.context, table->counters, counter_bytes(table));
    shard->usage_bytes -= counter_bytes(table);
}

/* In units of 2^-32, so that sums are exact and the same in any order; a sum stops at the top. */
static uint64_t add_weight(uint64_t sum, float weight)
{
    double units = (weight < 0 ? -(double)weight : (double)weight) * 4294967296.0 + 0.5;
    uint64_t more = units < 9e18 ? (uint64_t)units : UINT64_MAX;
    return more < UINT64_MAX - sum ? sum + more : UINT64_MAX;
}

void mn_shard_usage_count(mn_shard *shard, const struct target *target, uint64_t reads)
{
    const struct table *table = target->table;
    struct read_counter *counters = table->counters;
    uint64_t rows = table->counter_rows;
    if (!counters || (table->geometry.split == MN_COLUMNS && target->plane_first > 0))
        return;
    /* Places of a rows table are shuffled by themselves: its first ones are a fair sample. */
    bool shuffled = table->geometry.split == MN_COLUMNS && rows < table->planes[0].rows;
    for (uint64_t i = 0; i < reads; i++) {
        uint64_t place = shard->scratch.offsets[i];
        if (place == MN_NO_ROW)
            continue;
        if (shuffled)
            place = mn_row_shuffled(place, table->planes[0].rows);
        if (place >= rows)
            continue;
        counters[place].reads++;
        counters[place].weight = add_weight(counters[place].weight, shard->scratch.weights[i]);
    }
}

enum mn_status mn_shard_usage_tell(const struct table *table, mn_call *call, mn_error *error)
{
    const mn_request *request = &call->request;
    uint64_t rows = table->counter_rows, first = request->position, count = request->count;
    if (!count)
        return MN_OK;
    if (first > rows || count > rows - first)
        return mn_fail(error, MN_INVALID, "count",
                       "%" PRIu64 " counters from %" PRIu64 " on, of %" PRIu64 " of table %s here",
                       count, first, rows, table->spec.name);
    uint64_t bytes = count * sizeof *table->counters; /* bounded by what stands in memory */
    uint8_t *out = call->reserve(call, bytes);
    if (!out)
        return mn_fail(error, MN_BUSY, "reply_bytes_max",
                       "no room for a reply of %" PRIu64 " bytes", bytes);
    memcpy(out, table->counters + first, bytes);
    return MN_OK;
}
