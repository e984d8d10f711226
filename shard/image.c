/* Images: what lets a log be cut (LOG.md). Once a group's log has grown enough, a Commit ends its
 * file; what the group is at that instant goes into a base, and its tiles into files of their own,
 * a piece a tick, while commits keep for them what they change (files_keep.c, image_base.c). The
 * image stands when its manifest does; then what is older goes. Trouble ends the image, never the
 * log. */
#include "move.h"

#include <stdio.h>

enum {
    IMAGE_PIECE_BYTES = 1 << 20, /* written in one tick */
    IMAGE_SYNC_BYTES = 16 << 20, /* written between two syncs: each holds up those of the log */
    WINDOW_BYTES = 64 << 20,     /* of open steps: more is held in memory only if it must be */
    LOG_FILES_MAX = 256,         /* of a group: as many are reason for an image too */
    FILES_BETWEEN = 8,           /* at level sync, of the log between two images */
    REMOVED_A_TICK = 4
};
static const uint64_t retry_after_ns = UINT64_C(1000000000);
static const uint64_t poll_after_ns = UINT64_C(1000000); /* while a sync runs */
static const uint64_t look_after_ns = UINT64_C(10000000);

static struct log_name name_of(const struct image *image, enum log_kind kind, bool temporary)
{
    const struct group *group = image->job.group;
    struct log_name name = {.kind = kind,
                            .epoch = group->map_epoch,
                            .number = image->job.sequence,
                            .temporary = temporary};
    memcpy(name.group, group->name, sizeof name.group);
    return name;
}

static void path_of(const mn_shard *shard, const struct image *image, enum log_kind kind,
                    bool temporary, char out_path[LOG_PATH_BYTES])
{
    const struct log_name name = name_of(image, kind, temporary);
    mn_shard_log_path(shard, &name, out_path);
}

/* ---- Its end */

static void destroy(mn_shard *shard)
{
    struct image *image = shard->image;
    const mn_env *env = &shard->env;
    mn_shard_base_deinit(shard, &image->base);
    mn_shard_writer_abort(&image->manifest);
    env->release(env->context, image->tiles, image->job.save_count * sizeof *image->tiles);
    mn_shard_saves_deinit(shard, &image->job);
    mn_shard_transfer_deinit(shard, &image->job.transfer);
    mn_shard_transfer_deinit(shard, &image->job.keeper);
    shard->image = NULL;
    env->release(env->context, image, sizeof *image);
}

static void give_up(mn_shard *shard, const mn_error *error)
{
    struct image *image = shard->image;
    struct group_log *log = &image->job.group->log;
    mn_shard_log(shard, 2, "image_given_up", &image->call,
                 "step=%" PRIu64 " bytes=%" PRIu64 " message=\"%s\"", image->job.step,
                 image->job.bytes, error->message);
    log->image_retry_ns = shard->env.now_ns(shard->env.context) + retry_after_ns;
    log->untidy = true;
    destroy(shard);
}

void mn_shard_image_abort(mn_shard *shard, const struct group *group)
{
    mn_error error = {0};
    if (!shard->image || shard->image->job.group != group)
        return;
    (void)mn_fail(&error, MN_CANCELLED, "image", "what it is of goes"); /* fills error */
    give_up(shard, &error);
}

/* Recovery begins with this image from now on, whatever happens. */
static void stands(mn_shard *shard)
{
    struct image *image = shard->image;
    struct group_log *log = &image->job.group->log;
    mn_shard_log(shard, 1, "image", &image->call, "step=%" PRIu64 " tiles=%u bytes=%" PRIu64,
                 image->job.step, image->tile_count, log->image_bytes);
    log->image_spare = log->level == MN_DURABILITY_SYNC ? log->image : 0;
    log->image = image->job.sequence;
    mn_shard_log_needless(log, image->number);
    log->bytes -= image->log_bytes;
    log->doubted = 0;
    log->untidy = true;
    destroy(shard);
}

/* ---- Tiles */

static void sync_start(mn_shard *shard, struct image *image, mn_file *file)
{
    image->syncing = file;
    image->unsynced_bytes = 0;
    (void)shard->env.storage->sync_start(file); /* no other of it runs */
}

static struct tile_save *save_of(const struct files_job *job)
{
    return &job->saves[job->first_save[job->table_place] + job->tile - 1]; /* begun already */
}

/* The tile's file is whole and durable. */
static void close_tile(struct image *image)
{
    struct files_job *job = &image->job;
    struct tile_save *save = save_of(job);
    save->record.bytes = save->writer.bytes;
    save->record.rows_written = save->writer.rows_written;
    save->record.checksum = save->writer.chain;
    image->tiles[image->tile_count++] = save->record;
    mn_shard_writer_abort(&save->writer);
    save->finished = true;
    job->transfer.active = false;
    image->whole = false;
}

/* Training goes on: an image takes its share of what the log does, and little when that stands. */
static bool has_room(const mn_shard *shard, struct image *image, uint64_t now_ns)
{
    struct files_job *job = &image->job;
    double seconds = (double)(now_ns - job->start_ns) * 1e-9;
    double room =
        seconds * (double)shard->options.image_bytes_a_second +
        (double)(job->group->log.bytes - image->log_bytes) * shard->options.image_log_percent / 100;
    if ((double)job->bytes <= room)
        return true;
    job->due_ns = now_ns + look_after_ns;
    return false;
}

static enum mn_status write_manifest(mn_shard *shard, struct image *image, uint64_t now_ns,
                                     mn_error *error);

static uint64_t piece_bytes(const mn_shard *shard)
{
    const uint64_t piece = shard->options.image_bytes_a_second / 16;
    return piece < IMAGE_PIECE_BYTES ? piece : IMAGE_PIECE_BYTES;
}

static enum mn_status write_tiles(mn_shard *shard, struct image *image, uint64_t now_ns,
                                  mn_error *error)
{
    struct files_job *job = &image->job;
    struct tile_transfer *transfer = &job->transfer;
    const uint64_t until = job->bytes + piece_bytes(shard);
    enum mn_status status = MN_OK;
    if (!has_room(shard, image, now_ns))
        return MN_OK;
    for (uint64_t rows = 0;
         !status && !image->syncing && job->bytes <= until && rows < JOB_PIECE_ROWS;) {
        struct table *table;
        uint32_t tile;
        if (!transfer->active && !mn_shard_save_tile(shard, job, &table, &tile)) {
            image->run = write_manifest;
            return MN_OK;
        }
        if (!transfer->active) {
            status = mn_shard_transfer_start(shard, transfer, job->group->name, table, tile,
                                             job->step, error);
            continue;
        }
        struct tile_save *save = save_of(job);
        const uint64_t before = job->bytes;
        image->whole = save->next_row >= transfer->rows;
        status = image->whole ? mn_shard_save_end(shard, job, save, error)
                              : mn_shard_save_next(shard, job, save, error);
        rows += transfer->head.chunk_rows_max;
        image->unsynced_bytes += job->bytes - before;
        if (!status && (image->whole || image->unsynced_bytes >= IMAGE_SYNC_BYTES))
            sync_start(shard, image, save->writer.file);
    }
    return status;
}

/* ---- The base */

/* Its next piece; it is synced as the tiles are. */
static enum mn_status put_base(mn_shard *shard, struct image *image, mn_error *error)
{
    struct file_writer *writer = &image->base.writer;
    const uint64_t before = writer->bytes, until = before + piece_bytes(shard);
    enum mn_status status = MN_OK;
    bool done = false;
    while (!status && !done && writer->bytes < until)
        status = mn_shard_base_next(shard, &image->base, &done, error);
    image->job.bytes = writer->bytes;
    image->unsynced_bytes += writer->bytes - before;
    if (done)
        image->run = write_tiles;
    if (!status && (done || image->unsynced_bytes >= IMAGE_SYNC_BYTES))
        sync_start(shard, image, writer->file);
    return status;
}

static enum mn_status write_base(mn_shard *shard, struct image *image, uint64_t now_ns,
                                 mn_error *error)
{
    return has_room(shard, image, now_ns) ? put_base(shard, image, error) : MN_OK;
}

/* ---- The manifest */

static enum mn_status put_manifest(mn_shard *shard, struct image *image, mn_error *error)
{
    const struct files_job *job = &image->job;
    struct file_writer *writer = &image->manifest;
    struct group_log *log = &job->group->log;
    uint8_t bytes[FILE_RECORD_BYTES_MAX];
    struct file_image_head head = {
        .file = {IMAGE_MAGIC, IMAGE_VERSION, IMAGE_VERSION, MN_FILE_ENDIANNESS},
        .map_epoch = job->group->map_epoch,
        .sequence = job->sequence,
        .step = job->step,
        .number = log->number,
        .shard = shard->options.shard,
        .shards = shard->options.shards,
        .tiles = image->tile_count,
        .bytes = image->base.writer.bytes,
        .base_bytes = image->base.writer.bytes,
        .base_checksum = image->base.writer.chain,
    };
    memcpy(head.group, job->group->name, sizeof head.group);
    for (uint32_t i = 0; i < image->tile_count; i++)
        head.bytes += image->tiles[i].bytes;
    image->bytes = head.bytes;
    writer->records = head.tiles;
    mn_file_encode_image_head(&head, &writer->chain, bytes);
    enum mn_status status = mn_shard_writer_append(writer, bytes, FILE_BYTES_image_head, error);
    for (uint32_t i = 0; !status && i < image->tile_count; i++) {
        mn_file_encode_tile_record(&image->tiles[i], &writer->chain, bytes);
        writer->rows_written += image->tiles[i].rows_written;
        status = mn_shard_writer_append(writer, bytes, FILE_BYTES_tile_record, error);
    }
    return status ? status : mn_shard_writer_end(writer, error);
}

/* From this rename on the image stands. One that fails may have been made: the image is then left
 * alone until a later one stands. */
static enum mn_status stand(mn_shard *shard, struct image *image, uint64_t now_ns, mn_error *error)
{
    char from[LOG_PATH_BYTES], to[LOG_PATH_BYTES];
    struct group_log *log = &image->job.group->log;
    (void)now_ns; /* one signature for all */
    path_of(shard, image, LOG_IMAGE, true, from);
    path_of(shard, image, LOG_IMAGE, false, to);
    enum mn_status status = shard->env.storage->rename(shard->env.storage, from, to, error);
    if (status && !log->doubted)
        log->doubted = image->job.sequence;
    if (status)
        return status;
    log->image_bytes = image->bytes;
    stands(shard);
    return MN_OK;
}

/* The base takes its name: that makes all the files' names durable, too, before the manifest's. */
static enum mn_status write_manifest(mn_shard *shard, struct image *image, uint64_t now_ns,
                                     mn_error *error)
{
    char from[LOG_PATH_BYTES], to[LOG_PATH_BYTES];
    mn_storage *storage = shard->env.storage;
    if (image->job.group->log.promised < image->job.sequence) {
        image->job.due_ns = now_ns + look_after_ns;
        return MN_OK;
    }
    path_of(shard, image, LOG_BASE, true, from);
    path_of(shard, image, LOG_BASE, false, to);
    enum mn_status status = storage->rename(storage, from, to, error);
    path_of(shard, image, LOG_IMAGE, true, to);
    if (!status)
        status = mn_shard_writer_open_at(&image->manifest, storage, to, NULL, error);
    if (!status)
        status = put_manifest(shard, image, error);
    if (status)
        return status;
    sync_start(shard, image, image->manifest.file);
    image->run = stand;
    return MN_OK;
}

static enum mn_status next_piece(mn_shard *shard, struct image *image, uint64_t now_ns,
                                 mn_error *error)
{
    enum mn_status status = image->job.trouble.status;
    if (status) {
        *error = image->job.trouble;
        return status;
    }
    if (!image->syncing)
        return image->run(shard, image, now_ns, error);
    if (!planted(shard, MN_PLANT_IMAGE_UNSYNCED) &&
        !shard->env.storage->sync_ended(image->syncing, &status, error)) {
        image->job.due_ns = now_ns + poll_after_ns;
        return MN_OK;
    }
    image->syncing = NULL;
    if (!status && image->whole)
        close_tile(image);
    return status;
}

/* ---- Its beginning */

static uint64_t bytes_between(const mn_shard *shard, const struct group *group)
{
    const uint64_t most = group->log.image_bytes / 100 * shard->options.log_cut_percent;
    return most < shard->options.log_cut_bytes ? shard->options.log_cut_bytes : most;
}

static bool is_due(const mn_shard *shard, const struct group *group)
{
    const struct group_log *log = &group->log;
    const uint64_t most = bytes_between(shard, group);
    bool due = log->bytes > most || log->number - log->needed > LOG_FILES_MAX;
    bool calm = group->change_bytes + group->kept_bytes < WINDOW_BYTES || log->bytes > 2 * most;
    return due && calm && !mn_shard_move_open(group) && log->level > MN_DURABILITY_NONE &&
           !shard->recovery && !shard->image &&
           shard->env.now_ns(shard->env.context) >= log->image_retry_ns;
}

static enum mn_status begin(mn_shard *shard, struct image *image, struct group *group,
                            mn_error *error)
{
    struct files_job *job = &image->job;
    const mn_env *env = &shard->env;
    char path[LOG_PATH_BYTES];
    enum mn_status status = mn_shard_save_begin(shard, job, error);
    if (status)
        return status;
    for (uint64_t i = 0; i < job->save_count; i++)
        job->saves[i].looked = true; /* no file of an earlier try counts */
    image->tiles = env->allocate(env->context, job->save_count * sizeof *image->tiles);
    if (!image->tiles)
        return mn_fail(error, MN_NO_MEMORY, "image", "no memory for its tiles");
    status = mn_shard_log_cut(shard, group, error);
    if (status)
        return status;
    image->number = group->log.number;
    image->log_bytes = group->log.bytes;
    path_of(shard, image, LOG_BASE, true, path);
    status = mn_shard_base_begin(shard, group, path, &image->base, error);
    if (!status)
        status = put_base(shard, image, error);
    if (status)
        return status;
    if (planted(shard, MN_PLANT_IMAGE_EARLY)) {
        group->log.image = job->sequence;
        mn_shard_log_needless(&group->log, image->number);
        group->log.untidy = true;
    }
    return MN_OK;
}

void mn_shard_image_cut(mn_shard *shard, struct group *group)
{
    mn_error error = {0};
    if (!is_due(shard, group)) {
        mn_shard_log_turn(shard, group, bytes_between(shard, group) / FILES_BETWEEN);
        return;
    }
    struct image *image = shard->env.allocate(shard->env.context, sizeof *image);
    if (!image)
        return; /* the next commit tries again */
    shard->image = image;
    image->run = write_base;
    mn_context *context = &image->call.request.context;
    memcpy(context->group, group->name, sizeof context->group);
    mn_shard_log_folder(shard, image->call.request.path);
    image->job.call = &image->call;
    image->job.group = group;
    image->job.step = group->committed;
    image->job.sequence = group->log.written;
    image->job.start_ns = shard->env.now_ns(shard->env.context);
    if (begin(shard, image, group, &error))
        give_up(shard, &error);
}

/* ---- What recovery does not need */

struct untidy {
    mn_shard *shard;
    uint32_t count;
    char names[REMOVED_A_TICK][LOG_PATH_BYTES];
};

/* Older epochs go once this one's log holds a record that is durable. */
static bool is_needed(const mn_shard *shard, const struct group *group, const struct log_name *name)
{
    const struct group_log *log = &group->log;
    const struct image *image = shard->image;
    if (name->epoch != group->map_epoch)
        return name->epoch > group->map_epoch || planted(shard, MN_PLANT_OLD_EPOCH);
    if (name->kind == LOG_RECORDS)
        return !name->temporary && name->number >= log->spare;
    if (image && image->job.group == group && image->job.sequence == name->number)
        return true;
    if (name->kind == LOG_TILE && name->number == log->image_spare)
        return true; /* the next image's are written over them */
    return (name->number == log->image && !name->temporary) ||
           (log->doubted && name->number >= log->doubted);
}

static bool is_ready(const struct group *group)
{
    return group->log.untidy && group->log.level > MN_DURABILITY_NONE &&
           (group->log.promised || group->log.image);
}

static bool look(void *context, const char *text)
{
    struct untidy *untidy = context;
    struct log_name name;
    if (!mn_shard_log_parse(text, &name))
        return true;
    const struct group *group = mn_shard_group_find(untidy->shard, name.group);
    if (group && is_ready(group) && !is_needed(untidy->shard, group, &name))
        mn_shard_log_path(untidy->shard, &name, untidy->names[untidy->count++]);
    return untidy->count < REMOVED_A_TICK;
}

static void tidy(mn_shard *shard)
{
    char folder[LOG_FOLDER_BYTES];
    mn_error error = {0};
    mn_storage *storage = shard->env.storage;
    struct untidy untidy = {.shard = shard};
    mn_shard_log_folder(shard, folder);
    enum mn_status status = storage->list(storage, folder, look, &untidy, &error);
    for (uint32_t i = 0; !status && i < untidy.count; i++) {
        status = storage->remove(storage, untidy.names[i], &error);
        if (status == MN_NOT_FOUND)
            status = MN_OK; /* gone is gone */
    }
    if (status && shard->env.log)
        shard->env.log(shard->env.context, 2, "tidy", error.message);
    if (!status && untidy.count == REMOVED_A_TICK)
        return; /* there may be more */
    for (uint32_t i = 0; i < shard->options.groups_max; i++)
        if (is_ready(&shard->groups[i]))
            shard->groups[i].log.untidy = false; /* what is left goes with what follows it */
}

static bool is_untidy(const mn_shard *shard)
{
    bool untidy = false;
    for (uint32_t i = 0; i < shard->options.groups_max; i++)
        untidy |= shard->groups[i].name[0] && is_ready(&shard->groups[i]);
    return untidy;
}

uint64_t mn_shard_image_work(mn_shard *shard, uint64_t now_ns)
{
    if (shard->recovery || !shard->env.storage)
        return UINT64_MAX;
    if (is_untidy(shard))
        tidy(shard);
    struct image *image = shard->image;
    if (image && image->job.due_ns <= now_ns) {
        mn_error error = {0};
        image->job.due_ns = now_ns;
        if (next_piece(shard, image, now_ns, &error))
            give_up(shard, &error);
    }
    if (is_untidy(shard))
        return now_ns;
    return shard->image ? shard->image->job.due_ns : UINT64_MAX;
}
