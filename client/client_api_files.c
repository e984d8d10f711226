/* The public calls that save and load, and tell how far they are. */
#include "client_handle.h"

#include <string.h>

/* number: a save's rate, a load's step. A path too long stays without its end: the core refuses
 * it. */
static mn_future *take(mn_client *client, enum mn_operation_kind kind, const char *path,
                       uint64_t number)
{
    mn_future *future = mn_future_take(client, kind);
    if (!future)
        return NULL;
    memcpy(future->operation.name, path, strnlen(path, MN_PATH_BYTES));
    *(kind == MN_OP_SAVE ? &future->operation.rate : &future->operation.step) = number;
    return future;
}

static enum mn_status run(mn_future *future, uint64_t *out_step, mn_error *error)
{
    if (!future)
        return mn_wait(NULL, error); /* says why */
    enum mn_status status = mn_future_run(future, error);
    if (!status && out_step)
        *out_step = future->operation.answered_step;
    mn_future_release(future);
    return status;
}

enum mn_status mn_save(mn_client *client, const char *path, uint64_t bytes_per_second,
                       uint64_t *out_step, mn_error *error)
{
    return run(take(client, MN_OP_SAVE, path, bytes_per_second), out_step, error);
}

enum mn_status mn_load(mn_client *client, const char *path, uint64_t step, mn_error *error)
{
    return run(take(client, MN_OP_LOAD, path, step), NULL, error);
}

mn_future *mn_save_start(mn_client *client, const char *path, uint64_t bytes_per_second)
{
    return mn_future_start(take(client, MN_OP_SAVE, path, bytes_per_second));
}

mn_future *mn_load_start(mn_client *client, const char *path, uint64_t step)
{
    return mn_future_start(take(client, MN_OP_LOAD, path, step));
}

/* ---- How far they are ---- */

enum mn_status mn_shard_files(mn_client *client, uint32_t shard, mn_files_status *files,
                              uint32_t *in_out_files, mn_error *error)
{
    mn_future *future = mn_future_take(client, MN_OP_STATUS);
    if (!future)
        return mn_wait(NULL, error); /* says why */
    future->operation.shard = shard;
    future->operation.files = files;
    future->operation.in_out_count = *in_out_files;
    enum mn_status status = mn_future_run(future, error);
    if (!status)
        *in_out_files = future->operation.in_out_count;
    mn_future_release(future);
    return status;
}

/* Of what a shard tells, the tiles of this save or load; NULL: it has not begun them. */
static const mn_files_status *find(const mn_files_status *files, uint32_t count, const char *path,
                                   bool loads, uint64_t begun_ms)
{
    for (uint32_t i = 0; i < count; i++) {
        const mn_files_status *it = &files[i];
        if (it->tiles && it->loads == loads && !strncmp(it->path, path, MN_PATH_BYTES) &&
            it->ended_ms <= begun_ms)
            return it;
    }
    return NULL;
}

mn_files_progress mn_files_watch(mn_client *client, const char *path, bool loads, uint64_t begun_ms)
{
    mn_files_progress progress = {0};
    for (uint32_t shard = 0; shard < mn_client_shards(client); shard++) {
        mn_files_status files[MN_FILES_STATUS_MAX];
        uint32_t count = MN_FILES_STATUS_MAX;
        if (mn_shard_files(client, shard, files, &count, NULL))
            continue;
        const mn_files_status *found = find(files, count, path, loads, begun_ms);
        if (!found)
            continue;
        progress.shards++;
        progress.bytes += found->bytes;
        progress.bytes_due += found->bytes_due;
    }
    return progress;
}
