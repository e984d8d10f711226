/* Snapshot: tile files, then the manifest. Each is written under a temporary name, synced, renamed:
 * under its own name a file is always whole. */
#include "files.h"

#include <stdio.h>

/* ---- A file being written */

static enum mn_status writer_open(struct file_writer *writer, mn_storage *storage, const char *path,
                                  mn_error *error)
{
    memset(writer, 0, sizeof *writer);
    writer->storage = storage;
    memcpy(writer->path, path, strlen(path) + 1);
    (void)snprintf(writer->temporary, sizeof writer->temporary, "%s.new", path); /* it fits */
    return storage->create(storage, writer->temporary, &writer->file, error);
}

static enum mn_status writer_append(struct file_writer *writer, const void *bytes, uint64_t count,
                                    mn_error *error)
{
    enum mn_status status = writer->storage->append(writer->file, bytes, count, error);
    if (!status)
        writer->bytes += count;
    return status;
}

static enum mn_status writer_finish(struct file_writer *writer, mn_error *error)
{
    mn_storage *storage = writer->storage;
    struct file_end end = {
        .magic = END_MAGIC,
        .records = writer->records,
        .rows_written = writer->rows_written,
        .bytes = writer->bytes,
        .chain = writer->chain,
    };
    uint8_t bytes[FILE_BYTES_end];
    uint64_t chain = 0;
    mn_shard_encode_end(&end, &chain, bytes);
    enum mn_status status = writer_append(writer, bytes, sizeof bytes, error);
    if (!status)
        status = storage->sync(writer->file, error);
    mn_shard_writer_abort(writer);
    if (!status)
        status = storage->rename(storage, writer->temporary, writer->path, error);
    return status;
}

void mn_shard_writer_abort(struct file_writer *writer)
{
    if (writer->file)
        writer->storage->close(writer->file);
    writer->file = NULL;
}

/* ---- Tiles */

/* Copies the written rows of [first, first + rows) into the buffer as a chunk's body; returns their
 * number. */
static uint32_t pack_chunk(const struct tile_transfer *transfer, uint64_t first, uint32_t rows,
                           uint64_t *out_bytes)
{
    const mn_tile *plane = transfer->plane;
    const struct file_tile_head *head = &transfer->head;
    const uint32_t *updates = plane->updates + transfer->row_first + first;
    uint8_t *bitmap = transfer->buffer, *at = bitmap + (rows + 7) / 8;
    uint32_t written = 0;
    memset(bitmap, 0, (rows + 7) / 8);
    for (uint32_t i = 0; i < rows; i++) {
        if (!updates[i])
            continue;
        bitmap[i / 8] |= (uint8_t)(1u << i % 8);
        memcpy(at, &updates[i], sizeof(uint32_t));
        at += sizeof(uint32_t);
        written++;
    }
    const uint8_t *arrays[2] = {plane->values, plane->state};
    const uint64_t row_bytes[2] = {head->value_bytes, head->state_bytes};
    for (int array = 0; array < 2 && written; array++) {
        for (uint32_t i = 0; row_bytes[array] && i < rows; i++) {
            if (!updates[i])
                continue;
            memcpy(at, arrays[array] + (transfer->row_first + first + i) * row_bytes[array],
                   row_bytes[array]);
            at += row_bytes[array];
        }
    }
    *out_bytes = (uint64_t)(at - transfer->buffer);
    return written;
}

static enum mn_status save_chunk(struct files_job *job, mn_error *error)
{
    struct tile_transfer *transfer = &job->transfer;
    uint64_t first = transfer->next_row, left = transfer->rows - first, bytes;
    uint32_t max = transfer->head.chunk_rows_max, rows = left < max ? (uint32_t)left : max;
    uint32_t written = pack_chunk(transfer, first, rows, &bytes);
    transfer->next_row += rows;
    if (!written)
        return MN_OK;
    struct file_chunk_head head = {
        .first = first,
        .rows = rows,
        .written = written,
        .body_checksum = mn_checksum(transfer->buffer, bytes, 0),
    };
    uint8_t record[FILE_BYTES_chunk_head];
    mn_shard_encode_chunk_head(&head, &job->writer.chain, record);
    job->writer.records++;
    job->writer.rows_written += written;
    enum mn_status status = writer_append(&job->writer, record, sizeof record, error);
    if (!status)
        status = writer_append(&job->writer, transfer->buffer, bytes, error);
    return status;
}

static struct tile_name name_of(const struct files_job *job, const struct table *table,
                                uint32_t tile)
{
    return (struct tile_name){table->id, job->group->map_epoch, job->step, tile};
}

static enum mn_status start_tile(mn_shard *shard, struct files_job *job, struct table *table,
                                 uint32_t tile, mn_error *error)
{
    char path[FILE_PATH_BYTES];
    uint8_t record[FILE_BYTES_tile_head];
    mn_shard_tile_path(job->call->request.path, name_of(job, table, tile), path);
    enum mn_status status = mn_shard_transfer_start(shard, &job->transfer, job->group->name, table,
                                                    tile, job->step, error);
    if (!status)
        status = writer_open(&job->writer, shard->env.storage, path, error);
    if (status)
        return status;
    mn_shard_encode_tile_head(&job->transfer.head, &job->writer.chain, record);
    return writer_append(&job->writer, record, sizeof record, error);
}

/* The next tile held here, or false when all are done. */
static bool next_tile(mn_shard *shard, struct files_job *job, struct table **out_table,
                      uint32_t *out_tile)
{
    for (; job->table_place < shard->options.tables_max; job->table_place++, job->tile = 0) {
        struct table *table = &job->group->tables[job->table_place];
        if (!table->id || job->tile >= table->tile_count)
            continue;
        *out_table = table;
        *out_tile = table->tile_first + job->tile++;
        return true;
    }
    return false;
}

enum mn_status mn_shard_save_tiles(mn_shard *shard, struct files_job *job, bool *out_done,
                                   mn_error *error)
{
    struct tile_transfer *transfer = &job->transfer;
    uint64_t bytes_before = job->bytes + job->writer.bytes, rows = 0;
    enum mn_status status = MN_OK;
    while (!status && rows < JOB_PIECE_ROWS &&
           job->bytes + job->writer.bytes - bytes_before < JOB_PIECE_BYTES) {
        struct table *table;
        uint32_t tile;
        if (!transfer->active) {
            if (!next_tile(shard, job, &table, &tile)) {
                *out_done = true;
                return MN_OK;
            }
            status = start_tile(shard, job, table, tile, error);
        } else if (transfer->next_row < transfer->rows) {
            rows += transfer->head.chunk_rows_max;
            status = save_chunk(job, error);
        } else {
            mn_shard_transfer_stop(shard, transfer);
            status = writer_finish(&job->writer, error);
            job->bytes += job->writer.bytes;
            job->writer.bytes = 0;
        }
    }
    return status;
}

/* ---- The manifest */

static struct file_table_record record_of(const struct table *table)
{
    const mn_table_spec *spec = &table->spec;
    struct file_table_record record = {
        .table = table->id,
        .rows = spec->rows,
        .dim = spec->dim,
        .dtype = spec->dtype,
        .split = spec->split,
        .tiles = spec->tiles,
        .seed = spec->seed,
        .init_kind = spec->init.kind,
        .init_a = spec->init.a,
        .init_b = spec->init.b,
        .optimizer_kind = spec->optimizer.kind,
        .beta1 = spec->optimizer.beta1,
        .beta2 = spec->optimizer.beta2,
        .eps = spec->optimizer.eps,
        .state_dtype = spec->optimizer.state_dtype,
        .row_correction = spec->optimizer.row_correction,
    };
    memcpy(record.name, spec->name, sizeof record.name);
    return record;
}

static enum mn_status start_manifest(mn_shard *shard, struct files_job *job, mn_error *error)
{
    const struct group *group = job->group;
    struct file_writer *writer = &job->writer;
    struct file_manifest_head head = {
        .magic = MANIFEST_MAGIC,
        .format_version = FILE_FORMAT_VERSION,
        .least_reader = FILE_READER_LEAST,
        .endianness = FILE_ENDIANNESS,
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
    enum mn_status status = writer_open(writer, shard->env.storage, path, error);
    if (status)
        return status;
    writer->records = (uint64_t)head.tables + head.tiles;
    mn_shard_encode_manifest_head(&head, &writer->chain, bytes);
    status = writer_append(writer, bytes, FILE_BYTES_manifest_head, error);
    for (uint32_t i = 0; !status && i < shard->options.tables_max; i++) {
        if (!group->tables[i].id)
            continue;
        struct file_table_record record = record_of(&group->tables[i]);
        mn_shard_encode_table_record(&record, &writer->chain, bytes);
        status = writer_append(writer, bytes, FILE_BYTES_table_record, error);
    }
    return status;
}

static enum mn_status append_tile(mn_shard *shard, struct files_job *job, struct table *table,
                                  uint32_t tile, mn_error *error)
{
    char path[FILE_PATH_BYTES];
    uint8_t bytes[FILE_BYTES_tile_record];
    struct file_tile_head due = {.table = table->id, .tile = tile, .step = job->step};
    struct file_tile_record record;
    memcpy(due.group, job->group->name, sizeof due.group);
    mn_shard_tile_path(job->call->request.path, name_of(job, table, tile), path);
    enum mn_status status = mn_shard_tile_summary(shard->env.storage, path, &due, &record, error);
    if (status)
        return status;
    mn_shard_encode_tile_record(&record, &job->writer.chain, bytes);
    job->writer.rows_written += record.rows_written;
    return writer_append(&job->writer, bytes, sizeof bytes, error);
}

enum mn_status mn_shard_save_manifest(mn_shard *shard, struct files_job *job, bool *out_done,
                                      mn_error *error)
{
    (void)out_done; /* the cleaning that follows says it */
    enum { TILES_A_TICK = 16 };
    enum mn_status status = MN_OK;
    if (!job->writer.file)
        status = start_manifest(shard, job, error);
    for (uint32_t done = 0; !status && done < TILES_A_TICK;) {
        if (job->table_place == shard->options.tables_max) {
            status = writer_finish(&job->writer, error);
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
