/* Restore: the manifest, then the tiles that this shard holds under its own map, into a fresh group
 * that takes the old one's place only when all of it has been verified. */
#include "files.h"

/* ---- A tile */

enum mn_status mn_shard_load_start(mn_shard *shard, struct files_job *job,
                                   const struct tile_source *source, mn_error *error)
{
    struct tile_transfer *transfer = &job->transfer;
    const char *path = source->path;
    struct file_tile_head due, head;
    uint8_t bytes[FILE_BYTES_tile_head];
    enum mn_status status = mn_shard_transfer_start(shard, transfer, source->group, source->table,
                                                    source->tile, source->step, error);
    if (!status)
        status = mn_shard_reader_open(&job->reader, shard->env.storage, path, error);
    if (!status)
        status = mn_shard_reader_take(&job->reader, bytes, sizeof bytes, error);
    if (status)
        return status;
    transfer->unchecked = planted(shard, MN_PLANT_ANY_CHUNK);
    if (!mn_file_decode_tile_head(bytes, &job->reader.chain, &head))
        return mn_shard_damaged(path, "tile_head", error);
    status = mn_shard_check_preamble(path, &head.file, TILE_MAGIC, error);
    due = transfer->head;
    bool same = head.table == due.table && head.tile == due.tile && head.step == due.step &&
                head.rows == due.rows && head.columns == due.columns &&
                head.value_bytes == due.value_bytes && head.state_bytes == due.state_bytes &&
                head.chunk_rows_max == due.chunk_rows_max &&
                !strncmp(head.group, due.group, sizeof head.group);
    if (!status && !same)
        status = mn_shard_damaged(path, "tile_head", error);
    return status;
}

static uint32_t bits_of(const uint8_t *bitmap, uint32_t rows)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < rows; i++)
        count += bitmap[i / 8] >> i % 8 & 1;
    return count;
}

bool mn_shard_chunk_fits(const struct tile_transfer *transfer, const struct file_chunk_head *chunk)
{
    return chunk->first < transfer->rows && chunk->rows &&
           chunk->rows <= transfer->head.chunk_rows_max &&
           chunk->rows <= transfer->rows - chunk->first && chunk->written &&
           chunk->written <= chunk->rows;
}

bool mn_shard_chunk_whole(const struct tile_transfer *transfer, const struct file_chunk_head *chunk)
{
    const uint64_t body = mn_shard_chunk_bytes(&transfer->head, chunk->rows, chunk->written);
    return (mn_checksum(transfer->buffer, body, 0) == chunk->body_checksum ||
            transfer->unchecked) &&
           bits_of(transfer->buffer, chunk->rows) == chunk->written;
}

bool mn_shard_chunk_unpack(const struct tile_transfer *transfer,
                           const struct file_chunk_head *chunk)
{
    mn_tile *plane = transfer->plane;
    const struct file_tile_head *head = &transfer->head;
    uint64_t base = transfer->row_first + chunk->first;
    const uint8_t *bitmap = transfer->buffer, *updates = bitmap + (chunk->rows + 7) / 8;
    const uint8_t *values = updates + (uint64_t)chunk->written * sizeof(uint32_t);
    const uint8_t *states = values + (uint64_t)chunk->written * head->value_bytes;
    uint64_t packed = 0;
    for (uint32_t i = 0; i < chunk->rows; i++) {
        if (!(bitmap[i / 8] >> i % 8 & 1))
            continue;
        bool before = plane->updates[base + i] != 0;
        memcpy(&plane->updates[base + i], updates + packed * sizeof(uint32_t), sizeof(uint32_t));
        if (before || !plane->updates[base + i])
            return false;
        memcpy((uint8_t *)plane->values + (base + i) * head->value_bytes,
               values + packed * head->value_bytes, head->value_bytes);
        if (head->state_bytes)
            memcpy((uint8_t *)plane->state + (base + i) * head->state_bytes,
                   states + packed * head->state_bytes, head->state_bytes);
        packed++;
    }
    plane->rows_written += packed;
    return true;
}

/* A chunk that holds all rows which it spans: each array is read to where it belongs, and checked
 * there. What is damaged is never served: the tables are not, until all of them stand. */
static enum mn_status load_whole(struct files_job *job, const struct file_chunk_head *chunk,
                                 mn_error *error)
{
    const struct tile_transfer *transfer = &job->transfer;
    const struct file_tile_head *head = &transfer->head;
    struct file_reader *reader = &job->reader;
    mn_tile *plane = transfer->plane;
    const uint64_t rows = chunk->rows, base = transfer->row_first + chunk->first;
    uint32_t *updates = plane->updates + base, before = 0, zero = 0;
    const struct {
        uint8_t *to;
        uint64_t count;
    } arrays[] = {{transfer->buffer, (rows + 7) / 8},
                  {(uint8_t *)updates, rows * sizeof *updates},
                  {(uint8_t *)plane->values + base * head->value_bytes, rows * head->value_bytes},
                  {head->state_bytes ? (uint8_t *)plane->state + base * head->state_bytes : NULL,
                   rows * head->state_bytes}};
    mn_span spans[4];
    enum mn_status status = MN_OK;
    for (uint64_t i = 0; i < rows; i++)
        before |= updates[i];
    for (int i = 0; i < 4 && !status; i++) {
        spans[i] = (mn_span){arrays[i].to, arrays[i].count};
        if (arrays[i].count)
            status = mn_shard_reader_take(reader, arrays[i].to, arrays[i].count, error);
    }
    if (status)
        return status;
    for (uint64_t i = 0; i < rows; i++)
        zero |= !updates[i];
    if ((mn_checksum_spans(spans, 4, 0) != chunk->body_checksum && !transfer->unchecked) ||
        before || zero || bits_of(transfer->buffer, chunk->rows) != chunk->rows)
        return mn_shard_damaged(reader->path, "chunk body", error);
    plane->rows_written += rows;
    return MN_OK;
}

static enum mn_status load_chunk(struct files_job *job, mn_error *error)
{
    struct tile_transfer *transfer = &job->transfer;
    struct file_reader *reader = &job->reader;
    struct file_chunk_head chunk;
    uint8_t bytes[FILE_BYTES_chunk_head];
    enum mn_status status = mn_shard_reader_take(reader, bytes, sizeof bytes, error);
    if (status)
        return status;
    if (!mn_file_decode_chunk_head(bytes, &reader->chain, &chunk) ||
        !mn_shard_chunk_fits(transfer, &chunk))
        return mn_shard_damaged(reader->path, "chunk_head", error);
    reader->records++;
    if (chunk.written == chunk.rows)
        return load_whole(job, &chunk, error);
    uint64_t body = mn_shard_chunk_bytes(&transfer->head, chunk.rows, chunk.written);
    assert(body <= transfer->buffer_bytes);
    status = mn_shard_reader_take(reader, transfer->buffer, body, error);
    if (status)
        return status;
    if (!mn_shard_chunk_whole(transfer, &chunk) || !mn_shard_chunk_unpack(transfer, &chunk))
        return mn_shard_damaged(reader->path, "chunk body", error);
    return MN_OK;
}

static enum mn_status finish_tile(struct files_job *job, const struct file_tile_record *record,
                                  mn_error *error)
{
    struct file_reader *reader = &job->reader;
    if (reader->bytes != record->bytes || reader->chain != record->checksum)
        return mn_shard_damaged(reader->path, "end (the manifest names another file)", error);
    enum mn_status status = mn_shard_reader_end(reader, record->rows_written, error);
    if (status)
        return status;
    job->bytes += reader->bytes;
    mn_shard_reader_close(reader);
    job->transfer.active = false;
    return MN_OK;
}

enum mn_status mn_shard_load_next(struct files_job *job, const struct tile_source *source,
                                  bool *out_done, mn_error *error)
{
    *out_done = job->reader.offset + FILE_BYTES_end >= job->reader.bytes;
    return *out_done ? finish_tile(job, source->record, error) : load_chunk(job, error);
}

/* ---- The group */

/* Between a caller's look at the manifest and its load another save may have replaced it. */
static enum mn_status read_manifest(mn_shard *shard, struct files_job *job, mn_error *error)
{
    const mn_request *request = &job->call->request;
    const struct file_manifest_head *head = &job->manifest.head;
    enum mn_status status = mn_shard_manifest_read(shard, request->path, &job->manifest, error);
    uint64_t newest = head->step;
    if (status || !request->saved_step || request->saved_step == newest)
        return status;
    mn_shard_manifest_deinit(shard, &job->manifest);
    status = mn_shard_kept_read(shard, request->path, request->saved_step, &job->manifest, error);
    if (status != MN_NOT_FOUND)
        return status;
    return mn_fail(error, MN_NOT_FOUND, "saved_step",
                   "%.120s/manifest is of step %" PRIu64 ", not of step %" PRIu64
                   ", of which the folder keeps no save",
                   request->path, newest, request->saved_step);
}

/* Incarnations begin anew: the map epoch fences whoever joined before (STEPS.md "Restore"). */
static enum mn_status begin(mn_shard *shard, struct files_job *job, mn_error *error)
{
    const mn_request *request = &job->call->request;
    struct manifest *manifest = &job->manifest;
    enum mn_status status = read_manifest(shard, job, error);
    if (status)
        return status;
    if (request->context.map_epoch <= manifest->head.map_epoch)
        return mn_fail(error, MN_EPOCH, "map_epoch", "%" PRIu64 " is not above the saved %" PRIu64,
                       request->context.map_epoch, manifest->head.map_epoch);
    uint32_t ranks = request->ranks ? request->ranks : manifest->head.ranks;
    status = mn_shard_group_init(shard, request->context.group, ranks, &job->fresh, error);
    if (status)
        return status;
    job->fresh_stands = true;
    job->step = manifest->head.step;
    job->fresh.committed = manifest->head.step;
    job->fresh.map_epoch = request->context.map_epoch;
    job->fresh.loaded_digest = mn_shard_path_digest(request->path);
    for (uint32_t i = 0; !status && i < manifest->head.tables; i++)
        status = mn_shard_table_init(shard, manifest->ids[i], &manifest->specs[i],
                                     mn_shard_tiles_mapped(shard, &manifest->specs[i]),
                                     &job->fresh.tables[i], error);
    for (uint32_t i = 0; !status && i < manifest->head.tables; i++) {
        const struct table *table = &job->fresh.tables[i];
        const uint32_t first = manifest->first_tile[i] + table->tile_first;
        for (uint32_t tile = 0; tile < table->tile_count; tile++)
            job->bytes_due += manifest->tiles[first + tile].bytes;
    }
    return status;
}

/* Where the group stands, or may: NULL when all places are taken. */
static struct group *place_of(mn_shard *shard, const char *name)
{
    struct group *group = mn_shard_group_find(shard, name);
    for (uint32_t i = 0; !group && i < shard->options.groups_max; i++)
        if (!shard->groups[i].name[0])
            group = &shard->groups[i];
    return group;
}

/* The old group goes, with all that was staged or parked; the fresh one stands in its place. */
static enum mn_status swap(mn_shard *shard, struct files_job *job, mn_error *error)
{
    const mn_request *request = &job->call->request;
    struct group *group = place_of(shard, request->context.group);
    if (!group)
        return mn_fail(error, MN_BUSY, "groups_max", "this shard holds %u groups already",
                       shard->options.groups_max);
    if (group->map_epoch >= request->context.map_epoch)
        return mn_fail(error, MN_EPOCH, "map_epoch",
                       "%" PRIu64 " is not above this shard's %" PRIu64, request->context.map_epoch,
                       group->map_epoch);
    enum mn_status status =
        mn_shard_log_level(shard, group->log.level, &job->fresh.log.level, error);
    if (!status)
        status = mn_shard_log_append(shard, &job->fresh, request, error);
    if (status)
        return status;
    if (group->name[0]) {
        group->map_epoch = request->context.map_epoch; /* what those parked are told */
        mn_shard_answer_parked(shard, group, MN_EPOCH, "map_epoch",
                               "the group was restored from a snapshot meanwhile");
        mn_shard_group_deinit(shard, group);
    }
    *group = job->fresh;
    group->log.image_bytes = job->bytes; /* its first image will take as much */
    group->log.untidy = true;
    job->fresh_stands = false;
    for (uint32_t i = 0; i < shard->options.tables_max; i++)
        if (group->tables[i].id)
            mn_shard_table_promote(shard, &group->tables[i]);
    if (shard->next_table < job->manifest.head.next_table)
        shard->next_table = job->manifest.head.next_table;
    return MN_OK;
}

/* What it was; under another group's name, it is new. */
static struct tile_state loaded_state(const struct files_job *job,
                                      const struct file_tile_record *record)
{
    if (strcmp(job->fresh.name, job->manifest.head.group) != 0)
        return (struct tile_state){job->fresh.map_epoch, job->step, record->life};
    return (struct tile_state){record->epoch, record->step, record->life};
}

enum mn_status mn_shard_load_tiles(mn_shard *shard, struct files_job *job, bool *out_done,
                                   mn_error *error)
{
    struct tile_transfer *transfer = &job->transfer;
    struct manifest *manifest = &job->manifest;
    enum mn_status status = MN_OK;
    if (!job->fresh_stands)
        return begin(shard, job, error);
    uint64_t bytes = 0;
    while (!status && bytes < JOB_PIECE_BYTES) {
        if (job->table_place == manifest->head.tables) {
            status = swap(shard, job, error);
            *out_done = !status;
            return status;
        }
        struct table *table = &job->fresh.tables[job->table_place];
        if (job->tile == table->tile_count) {
            job->table_place++;
            job->tile = 0;
            continue;
        }
        uint32_t tile = table->tile_first + job->tile;
        const struct file_tile_record *record =
            &manifest->tiles[manifest->first_tile[job->table_place] + tile];
        char path[FILE_PATH_BYTES];
        const struct tile_source source = {
            .path = path,
            .group = manifest->head.group,
            .table = table,
            .tile = tile,
            .step = record->step,
            .record = record,
        };
        uint64_t before = transfer->active ? job->reader.offset : 0;
        bool ended = false;
        mn_shard_tile_path(job->call->request.path, mn_shard_record_name(record), path);
        status = transfer->active ? mn_shard_load_next(job, &source, &ended, error)
                                  : mn_shard_load_start(shard, job, &source, error);
        if (ended)
            table->states[job->tile++] = loaded_state(job, record);
        bytes += job->reader.offset - before;
    }
    return status;
}

/* ---- CHECK: what a snapshot holds */

enum mn_status mn_shard_load_check(mn_shard *shard, struct files_job *job, bool *out_done,
                                   mn_error *error)
{
    struct manifest *manifest = &job->manifest;
    mn_reply *reply = &job->call->reply;
    enum mn_status status = read_manifest(shard, job, error);
    if (status)
        return status;
    for (uint32_t i = 0; i < manifest->head.tables && i < MN_INFO_MAX; i++)
        shard->table_infos[i] = (mn_table_info){.table = manifest->ids[i],
                                                .spec = manifest->specs[i],
                                                .tile_count = manifest->specs[i].tiles};
    reply->tables = shard->table_infos;
    reply->table_count = manifest->head.tables;
    reply->ranks = manifest->head.ranks;
    reply->step = manifest->head.step;
    reply->map_epoch = manifest->head.map_epoch; /* the new one must be above it, too */
    *out_done = true;
    return MN_OK;
}
