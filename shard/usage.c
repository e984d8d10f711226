/* How rows are read: a counter a row, beside the rows, that Bag moves and Describe tells. Of a
 * columns table the shard of the first tile counts for all: every shard gets every read. Those of a
 * rows table begin anew at both shards between which its tiles move. */
#include "shard_core.h"

enum { COUNT_AHEAD = 128 }; /* counters are asked for so many reads ahead */

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

/* Where a read is counted; counter_rows or more: nowhere. Places of a rows table are shuffled by
 * themselves: its first ones are a fair sample. */
static uint64_t place_of(const struct table *table, uint64_t offset)
{
    if (offset == MN_NO_ROW)
        return UINT64_MAX;
    bool sample = table->counter_rows < table->planes[0].rows;
    return sample && table->geometry.split == MN_COLUMNS
               ? mn_row_shuffled(offset, table->planes[0].rows)
               : offset;
}

void mn_shard_usage_count(mn_shard *shard)
{
    const struct target *target = &shard->usage_due;
    const struct table *table = target->table;
    const uint64_t reads = shard->usage_due_reads;
    uint64_t places[COUNT_AHEAD];
    shard->usage_due_reads = 0;
    if (!reads || !table->counters ||
        (table->geometry.split == MN_COLUMNS && target->plane_first > 0))
        return;
    for (uint64_t i = 0; i < reads + COUNT_AHEAD; i++) {
        uint64_t *place = &places[i % COUNT_AHEAD];
        if (i >= COUNT_AHEAD && *place < table->counter_rows) {
            struct read_counter *counter = table->counters + *place;
            counter->reads++;
            counter->weight = add_weight(counter->weight, shard->scratch.weights[i - COUNT_AHEAD]);
        }
        *place = i < reads ? place_of(table, shard->scratch.offsets[i]) : UINT64_MAX;
        if (*place < table->counter_rows)
            __builtin_prefetch(table->counters + *place, 1, 3);
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
    uint8_t *out;
    enum mn_status status = mn_shard_reserve(call, bytes, &out, error);
    if (!status)
        memcpy(out, table->counters + first, bytes);
    return status;
}
