/* Earlier saves that a folder keeps: beside `manifest`, which names the newest, each has a copy of
 * its own under its epoch and step, by which it is loaded when it is asked for. */
#include "files.h"

#include <stdio.h>

static void copy_path(const char *folder, const struct kept_name *name,
                      char out_path[FILE_PATH_BYTES])
{
    (void)snprintf(out_path, FILE_PATH_BYTES, "%s/manifest-%" PRIx64 "-%" PRIu64, folder,
                   name->epoch, name->step); /* it fits: the path was checked */
}

static bool parse(const char *text, struct kept_name *out_name)
{
    int used = 0;
    return sscanf(text, "manifest-%" SCNx64 "-%" SCNu64 "%n", &out_name->epoch, &out_name->step,
                  &used) == 2 &&
           !text[used];
}

struct listing {
    struct kept_name names[SAVES_KEPT_MAX + 1]; /* the newest first */
    uint32_t count;
    uint64_t step;         /* the one wanted; 0: all */
    struct kept_name last; /* not listed: one that was just written */
};

static bool newer(const struct kept_name *a, const struct kept_name *b)
{
    return a->epoch != b->epoch ? a->epoch > b->epoch : a->step > b->step;
}

static bool visit(void *context, const char *text)
{
    struct listing *listing = context;
    struct kept_name name;
    if (!parse(text, &name) || (listing->step && name.step != listing->step) ||
        (name.epoch == listing->last.epoch && name.step == listing->last.step))
        return true;
    uint32_t at = listing->count < SAVES_KEPT_MAX + 1 ? listing->count++ : listing->count - 1;
    if (at == SAVES_KEPT_MAX && !newer(&name, &listing->names[at]) && listing->names[at].step)
        return true;
    for (; at > 0 && newer(&name, &listing->names[at - 1]); at--)
        listing->names[at] = listing->names[at - 1];
    listing->names[at] = name;
    return true;
}

enum mn_status mn_shard_kept_read(mn_shard *shard, const char *folder, uint64_t step,
                                  struct manifest *out_manifest, mn_error *error)
{
    mn_storage *storage = shard->env.storage;
    struct listing listing = {.step = step};
    char path[FILE_PATH_BYTES];
    enum mn_status status = storage->list(storage, folder, visit, &listing, error);
    if (status)
        return status;
    if (!listing.count)
        return mn_fail(error, MN_NOT_FOUND, "saved_step", "%.150s keeps no save of step %" PRIu64,
                       folder, step);
    copy_path(folder, &listing.names[0], path);
    return mn_shard_manifest_read_at(shard, path, out_manifest, error);
}

/* The manifest that was just written, under its own name too. */
static enum mn_status copy_manifest(mn_shard *shard, struct files_job *job, mn_error *error)
{
    const char *folder = job->call->request.path;
    struct kept_name name = {job->group->map_epoch, job->step};
    struct file_reader reader;
    struct file_writer writer = {0};
    uint8_t bytes[4096];
    char path[FILE_PATH_BYTES];
    mn_shard_manifest_path(folder, path);
    enum mn_status status = mn_shard_reader_open(&reader, shard->env.storage, path, error);
    if (status)
        return status;
    copy_path(folder, &name, path);
    status = mn_shard_writer_open(&writer, shard->env.storage, path, error);
    while (!status && reader.offset < reader.bytes) {
        uint64_t left = reader.bytes - reader.offset;
        uint64_t count = left < sizeof bytes ? left : sizeof bytes;
        status = mn_shard_reader_take(&reader, bytes, count, error);
        if (!status)
            status = mn_shard_writer_append(&writer, bytes, count, error);
    }
    mn_shard_reader_close(&reader);
    if (!status)
        return mn_shard_writer_rename(&writer, path, error);
    mn_shard_writer_abort(&writer);
    return status;
}

enum mn_status mn_shard_kept_begin(mn_shard *shard, struct files_job *job, mn_error *error)
{
    mn_storage *storage = shard->env.storage;
    const char *folder = job->call->request.path;
    uint32_t before = shard->options.saves_kept - 1; /* this one */
    struct listing listing = {0};
    char path[FILE_PATH_BYTES];
    enum mn_status status = MN_OK;
    if (before)
        status = copy_manifest(shard, job, error);
    if (before) /* it counts, whatever its step: later ones may be of a life that was lost */
        listing.last = (struct kept_name){job->group->map_epoch, job->step};
    if (!status)
        status = storage->list(storage, folder, visit, &listing, error);
    for (uint32_t i = before; !status && i < listing.count; i++) {
        copy_path(folder, &listing.names[i], path);
        status = storage->remove(storage, path, error);
    }
    for (uint32_t i = 0; !status && i < before && i < listing.count; i++) {
        copy_path(folder, &listing.names[i], path);
        status = mn_shard_manifest_read_at(shard, path, &job->kept[job->kept_count], error);
        job->kept_count += !status;
    }
    return status;
}

bool mn_shard_kept_names(const struct files_job *job, const struct tile_name *name)
{
    for (uint32_t i = 0; i < job->kept_count; i++)
        for (uint32_t tile = 0; tile < job->kept[i].head.tiles; tile++) {
            const struct file_tile_record *record = &job->kept[i].tiles[tile];
            if (record->table == name->table && record->tile == name->tile &&
                record->epoch == name->epoch && record->step == name->step &&
                record->life == name->life)
                return true;
        }
    return false;
}
