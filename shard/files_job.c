/* Snapshot and Restore as a job of the shard's tick: at most one, bound to its call. When the call
 * ends early (its deadline, its caller gone), so does the job; what it wrote so far has a temporary
 * name or is in no manifest. */
#include "move.h"
#include "shard_device.h"

#include <stdio.h>

/* ---- Names and transfers */

void mn_shard_tile_path(const char *folder, struct tile_name name, char out_path[FILE_PATH_BYTES])
{
    if (name.group)
        (void)snprintf(out_path, FILE_PATH_BYTES,
                       "%s/%s@%" PRIx64 "-%" PRIu64 "-%" PRIu64 "-%u.tile", folder, name.group,
                       name.epoch, name.step, name.table, name.tile); /* it fits */
    else if (name.life)
        (void)snprintf(out_path, FILE_PATH_BYTES,
                       "%s/%" PRIu64 "-%u-%" PRIx64 "-%" PRIu64 "-%" PRIx64 ".tile", folder,
                       name.table, name.tile, name.epoch, name.step,
                       name.life); /* it fits: the path was checked */
    else
        (void)snprintf(out_path, FILE_PATH_BYTES, "%s/%" PRIu64 "-%u-%" PRIx64 "-%" PRIu64 ".tile",
                       folder, name.table, name.tile, name.epoch, name.step); /* likewise */
}

void mn_shard_manifest_path(const char *folder, char out_path[FILE_PATH_BYTES])
{
    (void)snprintf(out_path, FILE_PATH_BYTES, "%s/manifest", folder); /* likewise */
}

static uint32_t chunk_rows(uint64_t row_bytes, uint64_t rows)
{
    uint64_t fit = FILE_CHUNK_BYTES / row_bytes / 8 * 8;
    uint64_t max = round_up(rows ? rows : 1, 8);
    if (fit < 8)
        fit = 8;
    return (uint32_t)(fit < max ? fit : max);
}

static void buffer_release(mn_shard *shard, struct tile_transfer *transfer)
{
    shard->env.release(shard->env.context, transfer->buffer, transfer->buffer_bytes);
    transfer->buffer = NULL;
    transfer->buffer_bytes = 0;
}

enum mn_status mn_shard_transfer_start(mn_shard *shard, struct tile_transfer *transfer,
                                       const char *group, struct table *table, uint32_t tile,
                                       uint64_t step, mn_error *error)
{
    const mn_env *env = &shard->env;
    bool rows = table->geometry.split == MN_ROWS;
    mn_tile *plane = &table->planes[rows ? 0 : tile - table->tile_first];
    *transfer = (struct tile_transfer){.table = table,
                                       .tile = tile,
                                       .plane = plane,
                                       .buffer = transfer->buffer,
                                       .buffer_bytes = transfer->buffer_bytes};
    transfer->rows = rows ? mn_tile_rows(&table->geometry, tile) : plane->rows;
    if (rows && transfer->rows)
        transfer->row_first = tile * table->geometry.rows_per_tile - table->position_first;
    struct file_tile_head *head = &transfer->head;
    *head = (struct file_tile_head){
        .file = {TILE_MAGIC, FILE_FORMAT_VERSION, FILE_READER_LEAST, MN_FILE_ENDIANNESS},
        .table = table->id,
        .tile = tile,
        .step = step,
        .rows = transfer->rows,
        .columns = plane->columns,
        .value_bytes = plane->columns * mn_dtype_bytes(plane->dtype),
        .state_bytes = (uint32_t)mn_state_row_bytes(&plane->optimizer, plane->columns),
    };
    memcpy(head->group, group, strnlen(group, MN_NAME_BYTES - 1));
    head->chunk_rows_max =
        chunk_rows(sizeof(uint32_t) + (uint64_t)head->value_bytes + head->state_bytes, head->rows);
    uint64_t bytes = mn_shard_chunk_bytes(head, head->chunk_rows_max, head->chunk_rows_max);
    if (bytes > transfer->buffer_bytes) {
        buffer_release(shard, transfer);
        transfer->buffer = env->allocate(env->context, bytes);
        if (!transfer->buffer)
            return mn_fail(error, MN_NO_MEMORY, "path",
                           "no memory for a chunk of %" PRIu64 " bytes", bytes);
        transfer->buffer_bytes = bytes;
    }
    transfer->active = true;
    return MN_OK;
}

void mn_shard_transfer_deinit(mn_shard *shard, struct tile_transfer *transfer)
{
    buffer_release(shard, transfer);
    transfer->active = false;
}

/* ---- The job's life */

static enum mn_status job_start(mn_shard *shard, mn_call *call, struct group *group,
                                enum mn_status (*run)(mn_shard *, struct files_job *, bool *,
                                                      mn_error *),
                                mn_error *error)
{
    if (!shard->env.storage)
        return mn_fail(error, MN_STORAGE, "storage", "this shard was started without a folder");
    if (shard->job)
        return mn_fail(error, MN_BUSY, "path", "another snapshot or restore (%.120s) runs",
                       shard->job->call->request.path);
    struct files_job *job = shard->env.allocate(shard->env.context, sizeof *job);
    if (!job)
        return mn_fail(error, MN_NO_MEMORY, "path", "no memory for the job");
    job->call = call;
    job->group = group;
    job->step = call->request.context.step;
    job->begun_ns = job->start_ns = shard->env.now_ns(shard->env.context);
    job->run = run;
    shard->job = job;
    call->core = job;
    return MN_OK;
}

/* Frees the job; its call is free to be answered. */
static void job_end(mn_shard *shard)
{
    struct files_job *job = shard->job;
    mn_shard_writer_abort(&job->writer);
    mn_shard_reader_close(&job->reader);
    mn_shard_saves_deinit(shard, job);
    mn_shard_transfer_deinit(shard, &job->transfer);
    mn_shard_transfer_deinit(shard, &job->keeper);
    mn_shard_manifest_deinit(shard, &job->manifest);
    for (uint32_t i = 0; i < job->kept_count; i++)
        mn_shard_manifest_deinit(shard, &job->kept[i]);
    if (job->fresh_stands)
        mn_shard_group_deinit(shard, &job->fresh);
    job->call->core = NULL;
    shard->job = NULL;
    shard->env.release(shard->env.context, job, sizeof *job);
}

mn_files_info mn_shard_job_info(const struct files_job *job, uint64_t now_ns)
{
    const mn_request *request = &job->call->request;
    mn_files_info info = {
        .phase = request->files,
        .step = job->step,
        .bytes = job->bytes + (job->reader.file ? job->reader.offset : 0),
        .bytes_due = job->bytes_due,
        .elapsed_ms = (now_ns - job->begun_ns) / 1000000,
    };
    memcpy(info.group, request->context.group, sizeof info.group);
    memcpy(info.path, request->path, sizeof info.path);
    return info;
}

/* Who watches must see the end of the tiles, too: the manifest's is not that. */
static void remember(mn_shard *shard, const struct files_job *job)
{
    const enum mn_files_phase phase = job->call->request.files;
    if (phase != MN_FILES_WRITE && phase != MN_FILES_LOAD)
        return;
    shard->files_last_ns = shard->env.now_ns(shard->env.context);
    shard->files_last = mn_shard_job_info(job, shard->files_last_ns);
}

static void job_answer(mn_shard *shard, enum mn_status status, const mn_error *error)
{
    struct files_job *job = shard->job;
    mn_call *call = job->call;
    call->reply.bytes = job->bytes;
    mn_shard_log(shard, 1, mn_verb_name(call->request.verb), call,
                 "phase=%d step=%" PRIu64 " bytes=%" PRIu64 " status=%s path=%.100s",
                 call->request.files, job->step, job->bytes, mn_status_name(status),
                 call->request.path);
    if (!status)
        remember(shard, job);
    job_end(shard);
    mn_shard_answer(shard, call, status, error);
}

void mn_shard_job_run(mn_shard *shard)
{
    struct files_job *job = shard->job;
    mn_error error = {0};
    bool done = false;
    enum mn_status status = shard->device ? shard->device->state(shard, &error) : MN_OK;
    if (!status)
        status = job->run(shard, job, &done, &error);
    if (status || done)
        job_answer(shard, status, &error);
}

static void job_fail(mn_shard *shard, enum mn_status status, const char *field, const char *message)
{
    mn_call *call = shard->job->call;
    mn_error error = {0};
    (void)mn_fail(&error, status, field, "%s", message); /* fills error */
    job_end(shard);
    mn_shard_answer(shard, call, status, &error);
}

void mn_shard_job_expire(mn_shard *shard, uint64_t now_ns)
{
    if (!shard->job || shard->job->call->deadline_ns > now_ns)
        return;
    if (shard->job->saved)
        job_answer(shard, MN_OK, NULL); /* old files may be left */
    else
        job_fail(shard, MN_DEADLINE, "path", "the files were not done in time: nothing changed");
}

bool mn_shard_job_forget(mn_shard *shard, mn_call *call)
{
    if (!shard->job || shard->job->call != call)
        return false;
    job_fail(shard, MN_CANCELLED, "call", "the caller gave up");
    return true;
}

void mn_shard_job_cancel(mn_shard *shard)
{
    if (shard->job)
        job_fail(shard, MN_UNAVAILABLE, "shard", "the shard is going away");
}

uint64_t mn_shard_path_digest(const char *path)
{
    return mn_checksum(path, strlen(path), 1) | 1; /* 0 means that nothing was loaded */
}

/* ---- The verbs */

/* A save may ask for a step that is still to come: then all shards meet it, however fast steps are
 * committed. The manifest is of a step that has been. */
static enum mn_status check_save_step(const mn_shard *shard, const struct group *group,
                                      const mn_request *request, mn_error *error)
{
    uint64_t step = request->context.step, now = group->committed;
    uint64_t last = request->files == MN_FILES_WRITE ? now + shard->options.open_steps_max : now;
    uint64_t first = request->files == MN_FILES_WRITE ? now : 0;
    if (step >= first && step <= last)
        return MN_OK;
    return mn_fail(error, MN_STEP, "step",
                   "%" PRIu64 " cannot be saved: step %" PRIu64 " is committed", step, now);
}

enum mn_status mn_shard_snapshot(mn_shard *shard, mn_call *call, mn_error *error)
{
    const mn_request *request = &call->request;
    struct group *group;
    enum mn_status status = mn_shard_check_group(shard, call, true, &group, error);
    if (!status)
        status = mn_shard_check_path(request->path, error);
    if (status)
        return status;
    bool manifest = request->files == MN_FILES_MANIFEST;
    if (request->files != MN_FILES_WRITE && !manifest)
        return mn_fail(error, MN_UNSUPPORTED, "files", "phase %u is not one of Snapshot's",
                       (unsigned)request->files);
    if (manifest && !is_home(shard))
        return mn_fail(error, MN_INVALID, "files", "MANIFEST goes to the home shard (0), not to %u",
                       shard->options.shard);
    status = check_save_step(shard, group, request, error);
    if (!status && !manifest)
        status = mn_shard_move_stands(shard, group, error);
    if (status)
        return status;
    if (group->log.level > MN_DURABILITY_NONE && !group->log.image &&
        group->loaded_digest == mn_shard_path_digest(request->path))
        return mn_fail(error, MN_CONFLICT, "path",
                       "group %s was loaded from %.120s, which its log needs: save elsewhere",
                       group->name, request->path);
    status = job_start(shard, call, group, manifest ? mn_shard_save_manifest : mn_shard_save_tiles,
                       error);
    if (status)
        return status;
    mn_storage *storage = shard->env.storage;
    status = storage->make_folder(storage, request->path, error);
    if (status)
        job_end(shard);
    return status;
}

static enum mn_status check_load(mn_shard *shard, const mn_request *request, bool *out_repeat,
                                 mn_error *error)
{
    const struct group *group = mn_shard_group_find(shard, request->context.group);
    uint64_t epoch = request->context.map_epoch, known = group ? group->map_epoch : 0;
    bool loaded = group && epoch == known && group->loaded_digest;
    if (loaded && group->loaded_digest != mn_shard_path_digest(request->path))
        return mn_fail(error, MN_CONFLICT, "path",
                       "map epoch %" PRIu64 " was loaded from another path than %.120s", epoch,
                       request->path);
    if (!loaded && epoch <= known)
        return mn_fail(error, MN_EPOCH, "map_epoch",
                       "%" PRIu64 " is not above this shard's %" PRIu64, epoch, known);
    if (!mn_epoch_restores(epoch))
        return mn_fail(error, MN_INVALID, "map_epoch",
                       "%" PRIu64 " counts no restore in its high 32 bits", epoch);
    if (request->ranks > MN_RANKS_MAX)
        return mn_fail(error, MN_INVALID, "ranks", "%u is more than %d", request->ranks,
                       MN_RANKS_MAX);
    *out_repeat = loaded;
    return MN_OK;
}

enum mn_status mn_shard_restore(mn_shard *shard, mn_call *call, mn_error *error)
{
    const mn_request *request = &call->request;
    enum mn_status status = mn_shard_check_path(request->path, error);
    if (status)
        return status;
    if (request->files == MN_FILES_CHECK)
        return job_start(shard, call, NULL, mn_shard_load_check, error);
    if (request->files != MN_FILES_LOAD)
        return mn_fail(error, MN_UNSUPPORTED, "files", "phase %u is not one of Restore's",
                       (unsigned)request->files);
    bool repeat = false;
    status = check_load(shard, request, &repeat, error);
    if (status || repeat)
        return status;
    return job_start(shard, call, NULL, mn_shard_load_tiles, error);
}
