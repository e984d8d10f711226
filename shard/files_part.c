/* Saves that write only what has changed: what is known of each tile's last change, which older
 * file of a snapshot's folder holds it as it is, and the parts, by which the shards tell the home
 * shard whose manifest names them all. */
#include "files.h"

#include <stdio.h>

/* ---- When a tile was last changed */

static void mark(struct tile_mark *mark, uint64_t step) { mark->changed_step = step; }

void mn_shard_mark_rows(struct table *table, uint32_t plane, const struct row_list *list,
                        uint64_t step)
{
    if (table->geometry.split != MN_ROWS) {
        mark(&table->marks[plane], step); /* a row lies in all of them */
        return;
    }
    uint64_t per_tile = table->geometry.rows_per_tile, first = 0, end = 0;
    for (uint64_t i = 0; i < list->count; i++) {
        uint64_t offset = *(const uint64_t *)((const char *)list->offsets + i * list->stride_bytes);
        if (offset == MN_NO_ROW || (offset >= first && offset < end))
            continue;
        first = offset / per_tile * per_tile;
        end = first + per_tile;
        mark(&table->marks[offset / per_tile], step);
    }
}

/* Whether the tile is now what the file was written from. */
static bool unchanged(const struct group *group, const struct tile_mark *mark,
                      const struct file_tile_record *record)
{
    if (mark->changed_step == MN_CHANGE_UNKNOWN)
        return false;
    if (record->epoch == group->map_epoch)
        return record->step >= mark->changed_step;
    return !mark->changed_step && record->epoch == mark->loaded_epoch &&
           record->step == mark->loaded_step;
}

/* ---- What the folder's manifest holds already */

static bool stands(mn_shard *shard, const struct files_job *job,
                   const struct file_tile_record *record)
{
    char path[FILE_PATH_BYTES];
    struct file_tile_head due = {
        .table = record->table, .tile = record->tile, .step = record->step};
    struct file_tile_record found;
    memcpy(due.group, job->group->name, sizeof due.group);
    mn_shard_tile_path(job->call->request.path, mn_shard_record_name(record), path);
    return !mn_shard_tile_summary(shard->env.storage, path, &due, &found, NULL) &&
           found.bytes == record->bytes && found.checksum == record->checksum;
}

void mn_shard_save_reuse(mn_shard *shard, struct files_job *job)
{
    struct manifest manifest;
    struct group *group = job->group;
    if (mn_shard_manifest_read(shard, job->call->request.path, &manifest, NULL))
        return; /* there is none, or none that helps: all tiles are written */
    bool ours = !strncmp(manifest.head.group, group->name, MN_NAME_BYTES);
    for (uint32_t i = 0; ours && i < manifest.head.tables; i++) {
        struct table *table = mn_shard_table_find(shard, group, manifest.ids[i], NULL);
        const char *field;
        if (!table || !mn_spec_equal(&table->spec, &manifest.specs[i], &field))
            continue;
        struct tile_save *saves = &job->saves[job->first_save[table - group->tables]];
        for (uint32_t tile = 0; tile < table->tile_count; tile++) {
            const struct file_tile_record *record =
                &manifest.tiles[manifest.first_tile[i] + table->tile_first + tile];
            if (!unchanged(group, &table->marks[tile], record) || !stands(shard, job, record))
                continue;
            saves[tile].record = *record;
            saves[tile].looked = saves[tile].finished = true;
        }
    }
    mn_shard_manifest_deinit(shard, &manifest);
}

/* ---- Parts: part_head, tile_record [tiles], end */

static void part_path(const struct files_job *job, uint32_t part, uint32_t parts,
                      char out_path[FILE_PATH_BYTES])
{
    (void)snprintf(out_path, FILE_PATH_BYTES, "%s/part-%u-of-%u-%" PRIx64 "-%" PRIu64,
                   job->call->request.path, part, parts, job->group->map_epoch,
                   job->step); /* it fits: the path was checked */
}

bool mn_shard_part_parse(const char *text, uint64_t *out_epoch, uint64_t *out_step)
{
    uint32_t part, parts;
    int used = 0;
    if (sscanf(text, "part-%" SCNu32 "-of-%" SCNu32 "-%" SCNx64 "-%" SCNu64 "%n", &part, &parts,
               out_epoch, out_step, &used) != 4)
        return false;
    return !text[used] || !strcmp(text + used, ".new");
}

enum mn_status mn_shard_part_write(mn_shard *shard, struct files_job *job, mn_error *error)
{
    struct file_writer *writer = &job->writer;
    struct file_part_head head = {
        .magic = PART_MAGIC,
        .format_version = MANIFEST_VERSION,
        .least_reader = MANIFEST_VERSION,
        .endianness = FILE_ENDIANNESS,
        .step = job->step,
        .map_epoch = job->group->map_epoch,
        .shard = shard->options.shard,
        .shards = shard->options.shards,
        .tiles = (uint32_t)(job->save_count - 1),
    };
    char path[FILE_PATH_BYTES];
    uint8_t bytes[FILE_RECORD_BYTES_MAX];
    memcpy(head.group, job->group->name, sizeof head.group);
    part_path(job, head.shard, head.shards, path);
    enum mn_status status = mn_shard_writer_open(writer, shard->env.storage, path, error);
    if (status)
        return status;
    mn_shard_encode_part_head(&head, &writer->chain, bytes);
    status = mn_shard_writer_append(writer, bytes, FILE_BYTES_part_head, error);
    for (uint32_t i = 0; !status && i < head.tiles; i++) {
        mn_shard_encode_tile_record(&job->saves[i].record, &writer->chain, bytes);
        writer->records++;
        writer->rows_written += job->saves[i].record.rows_written;
        status = mn_shard_writer_append(writer, bytes, FILE_BYTES_tile_record, error);
    }
    return status ? status : mn_shard_writer_finish(writer, path, error);
}

/* ---- Reading them, at the home shard */

/* Where the record of a tile of the group lies in job->manifest.tiles; NULL: there is no such tile.
 */
static struct file_tile_record *record_at(mn_shard *shard, struct files_job *job, uint64_t id,
                                          uint32_t tile)
{
    const struct table *table = mn_shard_table_find(shard, job->group, id, NULL);
    if (!table || tile >= table->geometry.tiles)
        return NULL;
    return &job->manifest.tiles[job->manifest.first_tile[table - job->group->tables] + tile];
}

enum mn_status mn_shard_parts_begin(mn_shard *shard, struct files_job *job, mn_error *error)
{
    struct manifest *manifest = &job->manifest;
    uint32_t tiles = 0;
    for (uint32_t i = 0; i < shard->options.tables_max; i++) {
        const struct table *table = &job->group->tables[i];
        manifest->first_tile[i] = tiles;
        tiles += table->id ? table->geometry.tiles : 0;
    }
    if (!tiles)
        return MN_OK;
    manifest->tiles = shard->env.allocate(shard->env.context, tiles * sizeof *manifest->tiles);
    if (!manifest->tiles)
        return mn_fail(error, MN_NO_MEMORY, "path", "no memory for the manifest");
    manifest->head.tiles = tiles;
    return MN_OK;
}

static enum mn_status read_part(mn_shard *shard, struct files_job *job, struct file_reader *reader,
                                uint32_t part, mn_error *error)
{
    struct file_part_head head;
    uint8_t bytes[FILE_RECORD_BYTES_MAX];
    uint64_t rows_written = 0;
    enum mn_status status = mn_shard_reader_take(reader, bytes, FILE_BYTES_part_head, error);
    if (status)
        return status;
    if (!mn_shard_decode_part_head(bytes, &reader->chain, &head))
        return mn_shard_damaged(reader->path, "part_head", error);
    status = mn_shard_check_preamble(reader->path, head.magic, PART_MAGIC, head.format_version,
                                     head.least_reader, head.endianness, error);
    if (!status && (head.step != job->step || head.map_epoch != job->group->map_epoch ||
                    head.shard != part || head.shards != shard->options.shards ||
                    strncmp(head.group, job->group->name, sizeof head.group) != 0))
        status = mn_shard_damaged(reader->path, "part_head", error);
    for (uint32_t i = 0; !status && i < head.tiles; i++) {
        struct file_tile_record record, *place;
        status = mn_shard_reader_take(reader, bytes, FILE_BYTES_tile_record, error);
        if (status)
            return status;
        if (!mn_shard_decode_tile_record(bytes, &reader->chain, &record) ||
            !(place = record_at(shard, job, record.table, record.tile)) || record.step > job->step)
            return mn_shard_damaged(reader->path, "tile_record", error);
        *place = record;
        rows_written += record.rows_written;
        reader->records++;
    }
    return status ? status : mn_shard_reader_end(reader, rows_written, error);
}

/* A shard that has left no part has written all its tiles. */
enum mn_status mn_shard_part_read(mn_shard *shard, struct files_job *job, uint32_t part,
                                  mn_error *error)
{
    struct file_reader reader;
    mn_error cause = {0};
    char path[FILE_PATH_BYTES];
    part_path(job, part, shard->options.shards, path);
    enum mn_status status = mn_shard_reader_open(&reader, shard->env.storage, path, &cause);
    if (status == MN_NOT_FOUND)
        return MN_OK;
    if (!status)
        status = read_part(shard, job, &reader, part, &cause);
    mn_shard_reader_close(&reader);
    if (status && error)
        *error = cause;
    return status;
}

/* The tile as its file says; by a part, an older file. */
enum mn_status mn_shard_part_tile(mn_shard *shard, struct files_job *job, const struct table *table,
                                  uint32_t tile, struct file_tile_record *out_record,
                                  mn_error *error)
{
    struct file_tile_record *told = record_at(shard, job, table->id, tile), found;
    struct tile_name name = {table->id, job->group->map_epoch, job->step, tile, NULL};
    struct file_tile_head due = {.table = table->id, .tile = tile};
    char path[FILE_PATH_BYTES];
    memcpy(due.group, job->group->name, sizeof due.group);
    if (told->table)
        name = mn_shard_record_name(told);
    due.step = name.step;
    mn_shard_tile_path(job->call->request.path, name, path);
    enum mn_status status = mn_shard_tile_summary(shard->env.storage, path, &due, &found, error);
    if (status)
        return status;
    found.epoch = name.epoch;
    if (told->table && (told->bytes != found.bytes || told->checksum != found.checksum ||
                        told->rows_written != found.rows_written))
        return mn_shard_damaged(path, "end (a part names another file)", error);
    *out_record = *told = found;
    return MN_OK;
}

/* Whether the manifest that was just written names this file. */
bool mn_shard_part_names(mn_shard *shard, struct files_job *job, const struct tile_name *name)
{
    const struct file_tile_record *record = record_at(shard, job, name->table, name->tile);
    return record && record->epoch == name->epoch && record->step == name->step;
}
