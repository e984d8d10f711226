/* Saves that write only what has changed: the state that each tile is in, which names its file in
 * a snapshot, and the parts, by which the shards tell the home shard whose manifest names all. */
#include "files.h"

#include <stdio.h>

/* ---- When a tile was last changed */

void mn_shard_mark_rows(const struct group *group, struct table *table, uint32_t plane,
                        const struct row_list *list)
{
    const struct tile_state state = {group->map_epoch, group->committed + 1, group->life};
    if (table->geometry.split != MN_ROWS) {
        table->states[plane] = state; /* a row lies in all of them */
        return;
    }
    uint64_t per_tile = table->geometry.rows_per_tile, first = 0, end = 0;
    for (uint64_t i = 0; i < list->count; i++) {
        uint64_t offset = *(const uint64_t *)((const char *)list->offsets + i * list->stride_bytes);
        if (offset == MN_NO_ROW || (offset >= first && offset < end))
            continue;
        first = offset / per_tile * per_tile;
        end = first + per_tile;
        table->states[offset / per_tile] = state;
    }
}

/* About what the tile's file will take: of a rows table's rows written, its share. */
static uint64_t bytes_of(const struct table *table, uint32_t tile)
{
    const bool rows = table->geometry.split == MN_ROWS;
    const mn_tile *plane = &table->planes[rows ? 0 : tile];
    const uint64_t row_bytes = sizeof(uint32_t) +
                               plane->columns * (uint64_t)mn_dtype_bytes(plane->dtype) +
                               mn_state_row_bytes(&plane->optimizer, plane->columns);
    const uint64_t written = rows ? plane->rows_written / table->tile_count : plane->rows_written;
    return FILE_BYTES_tile_head + written * row_bytes + FILE_BYTES_end;
}

void mn_shard_save_states(mn_shard *shard, struct files_job *job)
{
    struct tile_save *save = job->saves;
    for (uint32_t i = 0; i < shard->options.tables_max; i++) {
        const struct table *table = &job->group->tables[i];
        for (uint32_t tile = 0; table->id && tile < table->tile_count; tile++, save++) {
            const struct tile_state *state = &table->states[tile];
            save->bytes_due = bytes_of(table, tile);
            save->record = (struct file_tile_record){.table = table->id,
                                                     .tile = table->tile_first + tile,
                                                     .epoch = state->epoch,
                                                     .step = state->step,
                                                     .life = state->life};
            job->bytes_due += save->bytes_due;
        }
    }
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
        .file = {PART_MAGIC, MANIFEST_VERSION, MANIFEST_VERSION, MN_FILE_ENDIANNESS},
        .step = job->step,
        .map_epoch = job->group->map_epoch,
        .shard = shard->options.shard,
        .shards = shard->options.shards,
        .tiles = (uint32_t)(job->save_count - 1),
        .save = job->call->request.save,
    };
    char path[FILE_PATH_BYTES];
    uint8_t bytes[FILE_RECORD_BYTES_MAX];
    memcpy(head.group, job->group->name, sizeof head.group);
    part_path(job, head.shard, head.shards, path);
    enum mn_status status = mn_shard_writer_open(writer, shard->env.storage, path, error);
    if (status)
        return status;
    mn_file_encode_part_head(&head, &writer->chain, bytes);
    status = mn_shard_writer_append(writer, bytes, FILE_BYTES_part_head, error);
    for (uint32_t i = 0; !status && i < head.tiles; i++) {
        mn_file_encode_tile_record(&job->saves[i].record, &writer->chain, bytes);
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
    if (!mn_file_decode_part_head(bytes, &reader->chain, &head))
        return mn_shard_damaged(reader->path, "part_head", error);
    status = mn_shard_check_preamble(reader->path, &head.file, PART_MAGIC, error);
    if (!status && (head.step != job->step || head.map_epoch != job->group->map_epoch ||
                    head.shard != part || head.shards != shard->options.shards ||
                    strncmp(head.group, job->group->name, sizeof head.group) != 0))
        status = mn_shard_damaged(reader->path, "part_head", error);
    if (!job->save && part == 0)
        job->save = head.save; /* any one will do */
    if (!status && head.save != job->save)
        status =
            mn_fail(error, MN_STEP, "save", "%.150s is of another save: begin again", reader->path);
    for (uint32_t i = 0; !status && i < head.tiles; i++) {
        struct file_tile_record record, *place;
        status = mn_shard_reader_take(reader, bytes, FILE_BYTES_tile_record, error);
        if (status)
            return status;
        if (!mn_file_decode_tile_record(bytes, &reader->chain, &record) ||
            !(place = record_at(shard, job, record.table, record.tile)) || record.step > job->step)
            return mn_shard_damaged(reader->path, "tile_record", error);
        *place = record;
        rows_written += record.rows_written;
        reader->records++;
    }
    return status ? status : mn_shard_reader_end(reader, rows_written, error);
}

enum mn_status mn_shard_part_read(mn_shard *shard, struct files_job *job, uint32_t part,
                                  mn_error *error)
{
    struct file_reader reader;
    mn_error cause = {0};
    char path[FILE_PATH_BYTES];
    part_path(job, part, shard->options.shards, path);
    enum mn_status status = mn_shard_reader_open(&reader, shard->env.storage, path, &cause);
    if (!status)
        status = read_part(shard, job, &reader, part, &cause);
    if (status == MN_NOT_FOUND) /* another save's manifest has stood since, perhaps this one's */
        status =
            mn_fail(&cause, MN_STEP, "save", "%.120s is not there: begin again with WRITE", path);
    mn_shard_reader_close(&reader);
    if (status && error)
        *error = cause;
    return status;
}

/* The tile's file, as a part tells of it. */
enum mn_status mn_shard_part_tile(mn_shard *shard, struct files_job *job, const struct table *table,
                                  uint32_t tile, struct file_tile_record *out_record,
                                  mn_error *error)
{
    struct file_tile_record *told = record_at(shard, job, table->id, tile), found;
    struct file_tile_head due = {.table = table->id, .tile = tile, .step = told->step};
    char path[FILE_PATH_BYTES];
    if (!told->table) /* it moved, to a shard that had written its part before */
        return mn_fail(error, MN_STEP, "save",
                       "no part of %.100s holds tile %u of table %s: begin again with WRITE",
                       job->call->request.path, tile, table->spec.name);
    memcpy(due.group, job->group->name, sizeof due.group);
    mn_shard_tile_path(job->call->request.path, mn_shard_record_name(told), path);
    enum mn_status status = mn_shard_tile_summary(shard->env.storage, path, &due, &found, error);
    if (status)
        return status;
    if (told->bytes != found.bytes || told->checksum != found.checksum ||
        told->rows_written != found.rows_written)
        return mn_shard_damaged(path, "end (a part names another file)", error);
    *out_record = *told;
    return MN_OK;
}

/* Whether the manifest that was just written names this file. */
bool mn_shard_part_names(mn_shard *shard, struct files_job *job, const struct tile_name *name)
{
    const struct file_tile_record *record = record_at(shard, job, name->table, name->tile);
    return record && record->epoch == name->epoch && record->step == name->step &&
           record->life == name->life;
}
