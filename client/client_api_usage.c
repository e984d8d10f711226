/* Counters of reads, fetched from the shards piece by piece. */
#include "client_handle.h"

#include <inttypes.h>

enum { PIECE = 1 << 15 }; /* counters: half a MiB */
struct counter {
    uint64_t reads, weight; /* in 2^-32 */
};

static enum mn_status ask(mn_table *table, mn_client *client, uint32_t shard, uint64_t position,
                          uint64_t count, struct counter *out_counters, uint64_t *out_standing,
                          mn_error *error)
{
    mn_future *future = mn_future_take(client, MN_OP_USAGE);
    if (!future)
        return mn_fail(error, MN_BUSY, "calls_max", "%u calls are alive", client->calls_max);
    future->operation.table = table;
    future->operation.shard = shard;
    future->operation.position = position;
    future->operation.count = count;
    future->operation.outputs.data = out_counters;
    enum mn_status status = mn_future_run(future, error);
    if (!status)
        *out_standing = future->operation.counters;
    mn_future_release(future);
    return status;
}

static enum mn_status shard_usage(mn_table *table, mn_client *client, uint32_t shard,
                                  struct counter *piece, uint64_t room, mn_usage *usage,
                                  mn_error *error)
{
    uint64_t standing = 0, first = usage->rows;
    enum mn_status status = ask(table, client, shard, 0, 0, NULL, &standing, error);
    if (!status && usage->counts && standing > room - first)
        status = mn_fail(error, MN_INVALID, "rows",
                         "%" PRIu64 " counters find no room: shard %u alone has %" PRIu64, room,
                         shard, standing);
    for (uint64_t at = 0; usage->counts && at < standing && !status; at += PIECE) {
        uint64_t count = standing - at < PIECE ? standing - at : PIECE, again;
        status = ask(table, client, shard, at, count, piece, &again, error);
        for (uint64_t i = 0; i < count && !status; i++) {
            usage->counts[first + at + i] = piece[i].reads;
            usage->weights[first + at + i] = (double)piece[i].weight * 0x1p-32;
        }
    }
    usage->rows = first + standing;
    return status;
}

enum mn_status mn_table_usage(mn_table *table, mn_usage *in_out_usage, mn_error *error)
{
    mn_client *client = mn_core_lock(mn_core_of_table(table));
    mn_usage usage = *in_out_usage;
    uint64_t room = usage.rows;
    usage.rows = 0;
    usage.table_rows = mn_table_spec_of(table)->rows;
    struct counter *piece = client->env.allocate(client->env.context, PIECE * sizeof *piece);
    enum mn_status status = MN_OK;
    if (!piece)
        status = mn_fail(error, MN_NO_MEMORY, "usage", "no memory for %d counters", PIECE);
    for (uint32_t shard = 0; shard < mn_client_shards(client) && !status; shard++)
        status = shard_usage(table, client, shard, piece, room, &usage, error);
    client->env.release(client->env.context, piece, PIECE * sizeof *piece);
    if (!status)
        *in_out_usage = usage;
    return status;
}
