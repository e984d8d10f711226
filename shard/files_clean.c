/* After a snapshot: what its folder holds of earlier saves, and of saves that died, goes, save for
 * tiles that the manifest still names. Only names of our own making are touched, only after the
 * manifest that does not name them is on disk, and not those of a later step of the same group,
 * which another save may be writing. */
#include "files.h"

#include <stdio.h>

enum { REMOVED_A_TICK = 16 };

struct stale {
    mn_shard *shard;
    struct files_job *job;
    uint32_t count;
    char names[REMOVED_A_TICK][FILE_NAME_BYTES];
};

/* Whether the name is one that mn_shard_tile_path makes, or its temporary one. */
static bool is_tile(const char *text, struct tile_name *out_name)
{
    struct tile_name name = {0};
    char path[FILE_PATH_BYTES];
    if (sscanf(text, "%" SCNu64 "-%" SCNu32 "-%" SCNx64 "-%" SCNu64 "-%" SCNx64, &name.table,
               &name.tile, &name.epoch, &name.step, &name.life) < 4)
        return false;
    mn_shard_tile_path("", name, path); /* numbers have many spellings, we use one */
    const char *made = path + 1;
    size_t length = strlen(made);
    if (strncmp(text, made, length) != 0 || (text[length] && strcmp(text + length, ".new") != 0))
        return false;
    *out_name = name;
    return true;
}

static bool look(void *context, const char *text)
{
    struct stale *stale = context;
    struct files_job *job = stale->job;
    struct tile_name name;
    uint64_t epoch = job->group->map_epoch;
    bool old = is_tile(text, &name) && (name.epoch != epoch || name.step <= job->step) &&
               !mn_shard_part_names(stale->shard, job, &name) && !mn_shard_kept_names(job, &name);
    if (mn_shard_part_parse(text, &name.epoch, &name.step))
        old = name.epoch != epoch || name.step <= job->step;
    if (old)
        memcpy(stale->names[stale->count++], text, strlen(text) + 1);
    return stale->count < REMOVED_A_TICK;
}

/* A folder that cannot be cleaned is no reason to call a save that stands a failure. */
enum mn_status mn_shard_clean_folder(mn_shard *shard, struct files_job *job, bool *out_done,
                                     mn_error *error)
{
    mn_storage *storage = shard->env.storage;
    const char *folder = job->call->request.path;
    struct stale stale = {.shard = shard, .job = job};
    enum mn_status status = MN_OK;
    if (!job->kept_begun)
        status = mn_shard_kept_begin(shard, job, error);
    job->kept_begun = true;
    if (!status)
        status = storage->list(storage, folder, look, &stale, error);
    for (uint32_t i = 0; !status && i < stale.count; i++) {
        char path[FILE_PATH_BYTES];
        (void)snprintf(path, sizeof path, "%s/%s", folder, stale.names[i]); /* it fits */
        status = storage->remove(storage, path, error);
        if (status == MN_NOT_FOUND)
            status = MN_OK; /* gone is gone */
    }
    if (status)
        mn_shard_log(shard, 2, "clean", job->call, "status=%s path=%.100s", mn_status_name(status),
                     folder);
    *out_done = status || stale.count < REMOVED_A_TICK;
    return MN_OK;
}
