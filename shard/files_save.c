/* Snapshot: tile files, then the manifest. Each is written under a temporary name, synced, renamed:
 * under its own name a file is always whole. Steps are committed meanwhile (files_keep.c). */
#include "files.h"

#include <stdio.h>

enum {
    BODY_SPANS = 4,
    SAVE_CHUNK_BYTES = 1 << 17, /* of rows, and one: a core's cache holds it until it is copied */
    SAVE_PIECE_BYTES = 1 << 20, /* of one tick, without a rate */
    SAVE_PIECES_A_SECOND = 2048 /* with one: the core is never long away from its calls */
};
static const uint64_t SAVE_WAIT_NS = 2000000000; /* for the step to come */
static const uint64_t SAVE_LOOK_NS = 1000000; /* for that, and for a sync, it is looked so often */

/* ---- A file being written */

enum { TEMPORARY_BYTES = FILE_PATH_BYTES + 4 };

static void temporary_of(const char *path, char out_path[TEMPORARY_BYTES])
{
    (void)snprintf(out_path, TEMPORARY_BYTES, "%s.new", path); /* it fits */
}

enum mn_status mn_shard_writer_open(struct file_writer *writer, mn_storage *storage,
                                    const char *path, mn_error *error)
{
    char temporary[TEMPORARY_BYTES];
    temporary_of(path, temporary);
    return mn_shard_writer_open_at(writer, storage, temporary, NULL, error);
}

enum mn_status mn_shard_writer_open_at(struct file_writer *writer, mn_storage *storage,
                                       const char *path, const char *over, mn_error *error)
{
    *writer = (struct file_writer){.storage = storage};
    if (over && !storage->create_stream(storage, path, over, false, &writer->file, NULL))
        return MN_OK;
    return storage->create_stream(storage, path, NULL, false, &writer->file, error);
}

enum mn_status mn_shard_writer_append(struct file_writer *writer, const void *bytes, uint64_t count,
                                      mn_error *error)
{
    enum mn_status status = writer->storage->append(writer->file, bytes, count, error);
    if (!status)
        writer->bytes += count;
    return status;
}

enum mn_status mn_shard_writer_end(struct file_writer *writer, mn_error *error)
{
    struct file_end end = {
        .magic = END_MAGIC,
        .records = writer->records,
        .rows_written = writer->rows_written,
        .bytes = writer->bytes,
        .chain = writer->chain,
    };
    uint8_t bytes[FILE_BYTES_end];
    uint64_t chain = 0;
    mn_file_encode_end(&end, &chain, bytes);
    enum mn_status status = mn_shard_writer_append(writer, bytes, sizeof bytes, error);
    writer->storage->end(writer->file);
    return status;
}

enum mn_status mn_shard_writer_finish(struct file_writer *writer, const char *path, mn_error *error)
{
    enum mn_status status = mn_shard_writer_end(writer, error);
    if (!status)
        return mn_shard_writer_rename(writer, path, error);
    mn_shard_writer_abort(writer);
    return status;
}

enum mn_status mn_shard_writer_rename(struct file_writer *writer, const char *path, mn_error *error)
{
    mn_storage *storage = writer->storage;
    char temporary[TEMPORARY_BYTES];
    enum mn_status status = storage->sync(writer->file, error);
    mn_shard_writer_abort(writer);
    temporary_of(path, temporary);
    if (!status)
        status = storage->rename(storage, temporary, path, error);
    return status;
}

void mn_shard_writer_abort(struct file_writer *writer)
{
    if (writer->file)
        writer->storage->close(writer->file);
    writer->file = NULL;
}

/* ---- Tiles */

/* Of the image of this sequence. */
static void image_path_of(const struct files_job *job, const struct tile_save *save,
                          uint64_t sequence, char out_path[FILE_PATH_BYTES])
{
    const struct tile_name name = {.table = save->record.table,
                                   .epoch = job->group->map_epoch,
                                   .step = sequence,
                                   .tile = save->record.tile,
                                   .group = job->group->name};
    mn_shard_tile_path(job->call->request.path, name, out_path);
}

static void path_of(const struct files_job *job, const struct tile_save *save,
                    char out_path[FILE_PATH_BYTES])
{
    if (job->sequence)
        image_path_of(job, save, job->sequence, out_path);
    else
        mn_shard_tile_path(job->call->request.path, mn_shard_record_name(&save->record), out_path);
}

/* A tile of an image counts with it alone, and is written over that of an image that went. */
static enum mn_status open_tile(mn_shard *shard, struct files_job *job, struct tile_save *save,
                                mn_error *error)
{
    char path[FILE_PATH_BYTES], spare[FILE_PATH_BYTES];
    const uint64_t before = job->group->log.image_spare;
    path_of(job, save, path);
    if (!job->sequence)
        return mn_shard_writer_open(&save->writer, shard->env.storage, path, error);
    image_path_of(job, save, before, spare);
    return mn_shard_writer_open_at(&save->writer, shard->env.storage, path, before ? spare : NULL,
                                   error);
}

uint64_t mn_shard_chunk_pack(const struct tile_transfer *transfer, uint64_t first, uint32_t rows)
{
    const mn_tile *plane = transfer->plane;
    const uint64_t base = transfer->row_first + first;
    const uint8_t *arrays[] = {(const uint8_t *)plane->updates, plane->values, plane->state};
    const uint64_t row_bytes[] = {sizeof(uint32_t), transfer->head.value_bytes,
                                  transfer->head.state_bytes};
    const uint8_t *bitmap = transfer->buffer;
    uint8_t *at = transfer->buffer + (rows + 7) / 8;
    for (int array = 0; array < 3; array++) {
        const uint64_t bytes = row_bytes[array];
        for (uint32_t i = 0; bytes && i < rows; i++) {
            if (!(bitmap[i / 8] >> i % 8 & 1))
                continue;
            memcpy(at, arrays[array] + (base + i) * bytes, bytes);
            at += bytes;
        }
    }
    return (uint64_t)(at - transfer->buffer);
}

enum mn_status mn_shard_save_look(mn_shard *shard, struct files_job *job, struct tile_save *save,
                                  const struct tile_transfer *transfer, mn_error *error)
{
    char path[FILE_PATH_BYTES];
    struct file_tile_record found;
    if (save->looked)
        return MN_OK;
    path_of(job, save, path);
    enum mn_status status =
        mn_shard_tile_summary(shard->env.storage, path, &transfer->head, &found, error);
    if (status && status != MN_NOT_FOUND && status != MN_CORRUPT)
        return status; /* it may be there, and named by manifests: not to be replaced */
    save->looked = true;
    save->finished = !status;
    if (save->finished) {
        save->record.bytes = found.bytes;
        save->record.rows_written = found.rows_written;
        save->record.checksum = found.checksum;
        job->bytes_due -= save->bytes_due;
    }
    return MN_OK;
}

static enum mn_status begin_tile(mn_shard *shard, struct files_job *job, struct tile_save *save,
                                 const struct tile_transfer *transfer, mn_error *error)
{
    uint8_t record[FILE_BYTES_tile_head];
    enum mn_status status = open_tile(shard, job, save, error);
    if (status)
        return status;
    mn_file_encode_tile_head(&transfer->head, &save->writer.chain, record);
    job->bytes += sizeof record;
    return mn_shard_writer_append(&save->writer, record, sizeof record, error);
}

/* The body of a chunk: packed, or, where all rows that it spans are in it, from where they stand.
 */
static uint32_t body_of(const struct tile_transfer *transfer, uint64_t first, uint32_t rows,
                        bool whole, mn_span out_spans[BODY_SPANS])
{
    const mn_tile *plane = transfer->plane;
    const struct file_tile_head *head = &transfer->head;
    const uint64_t base = transfer->row_first + first;
    if (!whole) {
        out_spans[0] = (mn_span){transfer->buffer, mn_shard_chunk_pack(transfer, first, rows)};
        return 1;
    }
    out_spans[0] = (mn_span){transfer->buffer, (rows + 7) / 8};
    out_spans[1] = (mn_span){(const uint8_t *)(plane->updates + base), rows * sizeof(uint32_t)};
    out_spans[2] = (mn_span){(const uint8_t *)plane->values + base * head->value_bytes,
                             (uint64_t)rows * head->value_bytes};
    if (head->state_bytes)
        out_spans[3] = (mn_span){(const uint8_t *)plane->state + base * head->state_bytes,
                                 (uint64_t)rows * head->state_bytes};
    return head->state_bytes ? BODY_SPANS : BODY_SPANS - 1;
}

enum mn_status mn_shard_save_chunk(mn_shard *shard, struct files_job *job, struct tile_save *save,
                                   const struct tile_transfer *transfer, uint64_t first,
                                   uint32_t rows, uint32_t written, mn_error *error)
{
    struct file_writer *writer = &save->writer;
    mn_span spans[BODY_SPANS];
    enum mn_status status = MN_OK;
    if (!writer->file)
        status = begin_tile(shard, job, save, transfer, error);
    if (status)
        return status;
    const uint32_t count = body_of(transfer, first, rows, written == rows, spans);
    const uint64_t bytes_before = writer->bytes;
    struct file_chunk_head head = {
        .first = first,
        .rows = rows,
        .written = written,
        .body_checksum = mn_checksum_spans(spans, count, 0),
    };
    uint8_t record[FILE_BYTES_chunk_head];
    mn_file_encode_chunk_head(&head, &writer->chain, record);
    writer->records++;
    writer->rows_written += written;
    status = mn_shard_writer_append(writer, record, sizeof record, error);
    for (uint32_t i = 0; i < count && !status; i++)
        status = mn_shard_writer_append(writer, spans[i].bytes, spans[i].count, error);
    job->bytes += writer->bytes - bytes_before;
    return status;
}

/* The tile's next rows: those written that no commit has put into the file already. */
enum mn_status mn_shard_save_next(mn_shard *shard, struct files_job *job, struct tile_save *save,
                                  mn_error *error)
{
    const struct tile_transfer *transfer = &job->transfer;
    const struct file_tile_head *head = &transfer->head;
    uint64_t first = save->next_row, left = transfer->rows - first;
    uint32_t max = left < head->chunk_rows_max ? (uint32_t)left : head->chunk_rows_max;
    const uint64_t row_bytes = mn_shard_chunk_bytes(head, 0, 1);
    const uint32_t *updates = transfer->plane->updates + transfer->row_first + first;
    uint8_t *bitmap = transfer->buffer;
    uint32_t written = 0, rows = 0;
    memset(bitmap, 0, (max + 7) / 8);
    for (; rows < max && written * row_bytes < SAVE_CHUNK_BYTES; rows++) {
        const uint64_t row = first + rows;
        bool kept = save->kept && save->kept[row / 8] >> row % 8 & 1;
        bool due = updates[rows] && !kept;
        bitmap[rows / 8] |= (uint8_t)(due << rows % 8);
        written += due;
    }
    save->next_row += rows;
    if (!written)
        return MN_OK;
    return mn_shard_save_chunk(shard, job, save, transfer, first, rows, written, error);
}

enum mn_status mn_shard_save_end(mn_shard *shard, struct files_job *job, struct tile_save *save,
                                 mn_error *error)
{
    enum mn_status status = MN_OK;
    if (!save->writer.file) /* no row of it was ever written */
        status = begin_tile(shard, job, save, &job->transfer, error);
    return status ? status : mn_shard_writer_end(&save->writer, error);
}

/* Its last row is in the file: the next tile is written while this one is synced. */
static enum mn_status end_tile(mn_shard *shard, struct files_job *job, struct tile_save *save,
                               mn_error *error)
{
    enum mn_status status = mn_shard_save_end(shard, job, save, error);
    if (status)
        return status;
    job->bytes += FILE_BYTES_end;
    job->bytes_due += save->writer.bytes - save->bytes_due;
    job->ending = save;
    job->transfer.active = false;
    (void)shard->env.storage->sync_start(save->writer.file); /* its first */
    return MN_OK;
}

/* The tile that was ended last takes its name, once it is synced; *out_busy: it is not yet. */
static enum mn_status finish_tile(mn_shard *shard, struct files_job *job, bool *out_busy,
                                  mn_error *error)
{
    struct tile_save *save = job->ending;
    mn_storage *storage = shard->env.storage;
    enum mn_status status = MN_OK;
    char path[FILE_PATH_BYTES], temporary[TEMPORARY_BYTES];
    *out_busy = save && !storage->sync_ended(save->writer.file, &status, error);
    if (*out_busy || !save || status)
        return status;
    job->ending = NULL;
    mn_shard_writer_abort(&save->writer);
    save->finished = true;
    save->record.bytes = save->writer.bytes;
    save->record.rows_written = save->writer.rows_written;
    save->record.checksum = save->writer.chain;
    path_of(job, save, path);
    temporary_of(path, temporary);
    return storage->rename(storage, temporary, path, error);
}

bool mn_shard_save_tile(mn_shard *shard, struct files_job *job, struct table **out_table,
                        uint32_t *out_tile)
{
    for (; job->table_place < shard->options.tables_max; job->table_place++, job->tile = 0) {
        struct table *table = &job->group->tables[job->table_place];
        if (job->first_save[job->table_place] == NO_SAVE || job->tile >= table->tile_count)
            continue;
        *out_table = table;
        *out_tile = table->tile_first + job->tile++;
        return true;
    }
    return false;
}

static struct tile_save *save_of(const struct files_job *job)
{
    return &job->saves[job->first_save[job->table_place] + job->tile - 1];
}

/* The next rows of the tile whose turn it is. *out_wait: it cannot end before the last one has. */
static enum mn_status save_rows(mn_shard *shard, struct files_job *job, bool *out_wait,
                                mn_error *error)
{
    struct tile_transfer *transfer = &job->transfer;
    struct tile_save *save = save_of(job);
    enum mn_status status = mn_shard_save_look(shard, job, save, transfer, error);
    if (status)
        return status;
    if (save->finished) {
        transfer->active = false;
        return MN_OK;
    }
    if (save->next_row < transfer->rows)
        return mn_shard_save_next(shard, job, save, error);
    status = finish_tile(shard, job, out_wait, error);
    return status || *out_wait ? status : end_tile(shard, job, save, error);
}

/* After the last tile. */
static enum mn_status save_part(mn_shard *shard, struct files_job *job, bool *out_wait,
                                bool *out_done, mn_error *error)
{
    enum mn_status status = finish_tile(shard, job, out_wait, error);
    if (status || *out_wait)
        return status;
    status = mn_shard_part_write(shard, job, error);
    *out_done = !status;
    return status;
}

/* A piece of the work, of bounded size. */
static enum mn_status save_piece(mn_shard *shard, struct files_job *job, bool *out_wait,
                                 bool *out_done, mn_error *error)
{
    struct tile_transfer *transfer = &job->transfer;
    uint64_t bytes_before = job->bytes, rows = 0, rate = job->call->request.rate;
    uint64_t most = SAVE_PIECE_BYTES;
    if (rate && rate / SAVE_PIECES_A_SECOND < most)
        most = rate / SAVE_PIECES_A_SECOND;
    enum mn_status status = finish_tile(shard, job, out_wait, error);
    *out_wait = false; /* there is something to do beside it */
    while (!status && !*out_wait && rows < JOB_PIECE_ROWS && job->bytes - bytes_before <= most) {
        struct table *table;
        uint32_t tile;
        if (transfer->active) {
            rows += transfer->head.chunk_rows_max;
            status = save_rows(shard, job, out_wait, error);
        } else if (mn_shard_save_tile(shard, job, &table, &tile)) {
            status = mn_shard_transfer_start(shard, transfer, job->group->name, table, tile,
                                             mn_shard_save_step(job, save_of(job)), error);
        } else {
            return save_part(shard, job, out_wait, out_done, error);
        }
    }
    return status;
}

enum mn_status mn_shard_save_tiles(mn_shard *shard, struct files_job *job, bool *out_done,
                                   mn_error *error)
{
    uint64_t now = shard->env.now_ns(shard->env.context), rate = job->call->request.rate;
    if (job->group->committed < job->step) {
        if (now - job->start_ns > SAVE_WAIT_NS)
            return mn_fail(error, MN_STEP, "step", "%" PRIu64 " is not committed yet", job->step);
        job->due_ns = now + SAVE_LOOK_NS;
        return MN_OK;
    }
    enum mn_status status = MN_OK;
    if (job->trouble.status) {
        *error = job->trouble;
        return job->trouble.status;
    }
    if (!job->saves) {
        status = mn_shard_save_begin(shard, job, error);
        job->start_ns = now;
    }
    bool wait = false;
    if (!status)
        status = save_piece(shard, job, &wait, out_done, error);
    if (!status && rate)
        job->due_ns = job->start_ns + (uint64_t)((double)job->bytes / (double)rate * 1e9);
    if (wait)
        job->due_ns = now + SAVE_LOOK_NS;
    return status;
}

/* ---- The manifest */

static enum mn_status start_manifest(mn_shard *shard, struct files_job *job, mn_error *error)
{
    const struct group *group = job->group;
    struct file_writer *writer = &job->writer;
    struct file_manifest_head head = {
        .file = {MANIFEST_MAGIC, MANIFEST_VERSION, MANIFEST_VERSION, MN_FILE_ENDIANNESS},
        .step = job->step,
        .map_epoch = group->map_epoch,
        .next_table = shard->next_table,
        .ranks = group->ranks,
    };
    char path[FILE_PATH_BYTES];
    uint8_t bytes[FILE_RECORD_BYTES_MAX];
    memcpy(head.group, group->name, sizeof head.group);
    for (uint32_t i = 0; i < shard->options.tables_max; i++) {
        head.tables += group->tables[i].id != 0;
        head.tiles += group->tables[i].id ? group->tables[i].geometry.tiles : 0;
    }
    mn_shard_manifest_path(job->call->request.path, path);
    enum mn_status status = mn_shard_writer_open(writer, shard->env.storage, path, error);
    if (status)
        return status;
    writer->records = (uint64_t)head.tables + head.tiles;
    mn_file_encode_manifest_head(&head, &writer->chain, bytes);
    status = mn_shard_writer_append(writer, bytes, FILE_BYTES_manifest_head, error);
    for (uint32_t i = 0; !status && i < shard->options.tables_max; i++) {
        const struct table *table = &group->tables[i];
        if (!table->id)
            continue;
        const struct file_table_record record = {table->id, table->spec};
        mn_file_encode_table_record(&record, &writer->chain, bytes);
        status = mn_shard_writer_append(writer, bytes, FILE_BYTES_table_record, error);
    }
    return status;
}

static enum mn_status append_tile(mn_shard *shard, struct files_job *job, struct table *table,
                                  uint32_t tile, mn_error *error)
{
    uint8_t bytes[FILE_BYTES_tile_record];
    struct file_tile_record record;
    enum mn_status status = mn_shard_part_tile(shard, job, table, tile, &record, error);
    if (status)
        return status;
    mn_file_encode_tile_record(&record, &job->writer.chain, bytes);
    job->writer.rows_written += record.rows_written;
    return mn_shard_writer_append(&job->writer, bytes, sizeof bytes, error);
}

/* The next parts, before anything is written; *out_read: all have been. */
static enum mn_status read_parts(mn_shard *shard, struct files_job *job, bool *out_read,
                                 mn_error *error)
{
    enum { PARTS_A_TICK = 16 };
    enum mn_status status = MN_OK;
    if (!job->part) {
        job->save = job->call->request.save;
        status = mn_shard_parts_begin(shard, job, error);
    }
    for (uint32_t i = 0; !status && i < PARTS_A_TICK && job->part < shard->options.shards; i++)
        status = mn_shard_part_read(shard, job, job->part++, error);
    *out_read = job->part == shard->options.shards;
    return status;
}

enum mn_status mn_shard_save_manifest(mn_shard *shard, struct files_job *job, bool *out_done,
                                      mn_error *error)
{
    (void)out_done; /* the cleaning that follows says it */
    enum { TILES_A_TICK = 16 };
    bool read = true;
    enum mn_status status = MN_OK;
    if (!job->writer.file)
        status = read_parts(shard, job, &read, error);
    if (status || !read)
        return status;
    if (!job->writer.file)
        status = start_manifest(shard, job, error);
    for (uint32_t done = 0; !status && done < TILES_A_TICK;) {
        if (job->table_place == shard->options.tables_max) {
            char path[FILE_PATH_BYTES];
            mn_shard_manifest_path(job->call->request.path, path);
            status = mn_shard_writer_finish(&job->writer, path, error);
            job->bytes = job->writer.bytes;
            job->saved = !status;
            job->run = mn_shard_clean_folder;
            return status;
        }
        struct table *table = &job->group->tables[job->table_place];
        if (!table->id || job->tile == table->geometry.tiles) {
            job->table_place++;
            job->tile = 0;
            continue;
        }
        status = append_tile(shard, job, table, job->tile++, error);
        done++;
    }
    return status;
}
