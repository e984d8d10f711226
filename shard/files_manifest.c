/* Reading files front to back, and the manifest. Whatever stands in a file is doubted: every number
 * is bounded before it is used. */
#include "files.h"

enum mn_status mn_shard_damaged(const char *path, const char *field, mn_error *error)
{
    return mn_fail(error, MN_CORRUPT, field, "%.150s is damaged at its %s", path, field);
}

/* ---- A file being read */

enum mn_status mn_shard_reader_open(struct file_reader *reader, mn_storage *storage,
                                    const char *path, mn_error *error)
{
    memset(reader, 0, sizeof *reader);
    reader->storage = storage;
    memcpy(reader->path, path, strlen(path) + 1);
    enum mn_status status = storage->open(storage, path, &reader->file, error);
    if (!status)
        status = storage->size(reader->file, &reader->bytes, error);
    if (status)
        mn_shard_reader_close(reader);
    return status;
}

enum mn_status mn_shard_reader_take(struct file_reader *reader, void *out_bytes, uint64_t count,
                                    mn_error *error)
{
    if (count > reader->bytes - reader->offset)
        return mn_fail(error, MN_CORRUPT, "bytes", "%.150s is cut off at %" PRIu64 " bytes",
                       reader->path, reader->bytes);
    enum mn_status status =
        reader->storage->read(reader->file, reader->offset, out_bytes, count, error);
    if (!status)
        reader->offset += count;
    return status;
}

enum mn_status mn_shard_reader_end(struct file_reader *reader, uint64_t rows_written,
                                   mn_error *error)
{
    uint8_t bytes[FILE_BYTES_end];
    struct file_end end;
    uint64_t chain = 0, offset = reader->offset;
    enum mn_status status = mn_shard_reader_take(reader, bytes, sizeof bytes, error);
    if (status)
        return status;
    if (!mn_file_decode_end(bytes, &chain, &end) || end.magic != END_MAGIC ||
        end.records != reader->records || end.rows_written != rows_written || end.bytes != offset ||
        end.chain != reader->chain || reader->offset != reader->bytes)
        return mn_shard_damaged(reader->path, "end", error);
    return MN_OK;
}

void mn_shard_reader_close(struct file_reader *reader)
{
    if (reader->file)
        reader->storage->close(reader->file);
    reader->file = NULL;
}

#define TAKE_RECORD(reader, record, bytes, out, error)                                             \
    (mn_shard_reader_take(reader, bytes, FILE_BYTES_##record, error)                               \
         ?: (mn_file_decode_##record(bytes, &(reader)->chain, out)                                 \
                 ? MN_OK                                                                           \
                 : mn_shard_damaged((reader)->path, #record, error)))

/* ---- The manifest */

static enum mn_status read_head(mn_shard *shard, struct file_reader *reader,
                                struct file_manifest_head *head, mn_error *error)
{
    uint8_t bytes[FILE_RECORD_BYTES_MAX];
    enum mn_status status = TAKE_RECORD(reader, manifest_head, bytes, head, error);
    if (!status)
        status = mn_shard_check_preamble(reader->path, &head->file, MANIFEST_MAGIC, error);
    if (status)
        return status;
    if (!head->ranks || head->ranks > MN_RANKS_MAX)
        return mn_shard_damaged(reader->path, "ranks", error);
    if (head->tables > shard->options.tables_max)
        return mn_fail(error, MN_BUSY, "tables_max", "%.120s holds %u tables, this shard takes %u",
                       reader->path, head->tables, shard->options.tables_max);
    if (head->tiles > head->tables * (uint32_t)MN_ROW_BLOCKS_MAX)
        return mn_shard_damaged(reader->path, "tiles", error);
    return mn_name_valid(head->group) ? MN_OK : mn_shard_damaged(reader->path, "group", error);
}

static enum mn_status read_tables(struct file_reader *reader, struct manifest *manifest,
                                  mn_error *error)
{
    uint8_t bytes[FILE_RECORD_BYTES_MAX];
    uint32_t tiles = 0;
    for (uint32_t i = 0; i < manifest->head.tables; i++) {
        struct file_table_record record;
        enum mn_status status = TAKE_RECORD(reader, table_record, bytes, &record, error);
        if (status)
            return status;
        const mn_table_spec *spec = &record.spec;
        const char *field;
        if (mn_spec_check(spec, &manifest->specs[i], NULL) ||
            !mn_spec_equal(spec, &manifest->specs[i], &field))
            return mn_shard_damaged(reader->path, "table spec", error);
        for (uint32_t j = 0; j < i; j++)
            if (manifest->ids[j] == record.table || !strcmp(manifest->specs[j].name, spec->name))
                return mn_shard_damaged(reader->path, "table ids", error);
        if (!record.table || record.table >= manifest->head.next_table)
            return mn_shard_damaged(reader->path, "table ids", error);
        manifest->ids[i] = record.table;
        manifest->first_tile[i] = tiles;
        tiles += spec->tiles;
    }
    if (tiles != manifest->head.tiles)
        return mn_shard_damaged(reader->path, "tiles", error);
    return MN_OK;
}

enum mn_status mn_shard_take_tile(struct file_reader *reader, uint32_t manifest_version,
                                  uint64_t epoch, uint64_t step,
                                  struct file_tile_record *out_record, mn_error *error)
{
    uint8_t bytes[FILE_RECORD_BYTES_MAX];
    struct file_tile_record_1 first;
    struct file_tile_record_2 second = {.epoch = epoch, .step = step};
    enum mn_status status;
    if (manifest_version >= 3)
        return TAKE_RECORD(reader, tile_record, bytes, out_record, error);
    if (manifest_version == 2) {
        status = TAKE_RECORD(reader, tile_record_2, bytes, &second, error);
    } else {
        status = TAKE_RECORD(reader, tile_record_1, bytes, &first, error);
        memcpy(&second, &first, sizeof first); /* the same fields come first */
    }
    *out_record = (struct file_tile_record){.table = second.table,
                                            .tile = second.tile,
                                            .bytes = second.bytes,
                                            .rows_written = second.rows_written,
                                            .checksum = second.checksum,
                                            .epoch = second.epoch,
                                            .step = second.step};
    return status;
}

static enum mn_status read_tiles(mn_shard *shard, struct file_reader *reader,
                                 struct manifest *manifest, uint64_t *out_rows, mn_error *error)
{
    if (!manifest->head.tiles)
        return MN_OK;
    manifest->tiles =
        shard->env.allocate(shard->env.context, manifest->head.tiles * sizeof *manifest->tiles);
    if (!manifest->tiles)
        return mn_fail(error, MN_NO_MEMORY, "path", "no memory for the manifest");
    for (uint32_t table = 0, i = 0; table < manifest->head.tables; table++) {
        for (uint32_t tile = 0; tile < manifest->specs[table].tiles; tile++, i++) {
            struct file_tile_record *record = &manifest->tiles[i];
            enum mn_status status =
                mn_shard_take_tile(reader, manifest->head.file.format_version,
                                   manifest->head.map_epoch, manifest->head.step, record, error);
            if (status)
                return status;
            if (record->table != manifest->ids[table] || record->tile != tile ||
                record->step > manifest->head.step)
                return mn_shard_damaged(reader->path, "tile order", error);
            *out_rows += record->rows_written;
        }
    }
    return MN_OK;
}

enum mn_status mn_shard_manifest_read(mn_shard *shard, const char *folder,
                                      struct manifest *out_manifest, mn_error *error)
{
    char path[FILE_PATH_BYTES];
    mn_shard_manifest_path(folder, path);
    return mn_shard_manifest_read_at(shard, path, out_manifest, error);
}

enum mn_status mn_shard_manifest_read_at(mn_shard *shard, const char *path,
                                         struct manifest *out_manifest, mn_error *error)
{
    struct file_reader reader;
    struct manifest *manifest = out_manifest;
    uint64_t rows_written = 0;
    memset(manifest, 0, sizeof *manifest);
    enum mn_status status = mn_shard_reader_open(&reader, shard->env.storage, path, error);
    if (status)
        return status;
    status = read_head(shard, &reader, &manifest->head, error);
    if (!status)
        status = read_tables(&reader, manifest, error);
    if (!status)
        status = read_tiles(shard, &reader, manifest, &rows_written, error);
    reader.records = (uint64_t)manifest->head.tables + manifest->head.tiles;
    if (!status)
        status = mn_shard_reader_end(&reader, rows_written, error);
    mn_shard_reader_close(&reader);
    if (status)
        mn_shard_manifest_deinit(shard, manifest);
    return status;
}

void mn_shard_manifest_deinit(mn_shard *shard, struct manifest *manifest)
{
    shard->env.release(shard->env.context, manifest->tiles,
                       manifest->head.tiles * sizeof *manifest->tiles);
    manifest->tiles = NULL;
}

/* ---- A tile file's head and end */

enum mn_status mn_shard_tile_summary(mn_storage *storage, const char *path,
                                     const struct file_tile_head *due,
                                     struct file_tile_record *out_record, mn_error *error)
{
    struct file_reader reader;
    struct file_tile_head head;
    struct file_end end = {0};
    uint8_t bytes[FILE_RECORD_BYTES_MAX];
    uint64_t chain = 0;
    enum mn_status status = mn_shard_reader_open(&reader, storage, path, error);
    if (status)
        return status;
    status = TAKE_RECORD(&reader, tile_head, bytes, &head, error);
    if (!status)
        status = mn_shard_check_preamble(path, &head.file, TILE_MAGIC, error);
    if (!status && (head.table != due->table || head.tile != due->tile || head.step != due->step ||
                    strncmp(head.group, due->group, sizeof head.group) != 0))
        status = mn_shard_damaged(path, "tile_head", error);
    if (!status && reader.bytes - reader.offset < FILE_BYTES_end)
        status = mn_shard_damaged(path, "end", error);
    if (!status) {
        reader.offset = reader.bytes - FILE_BYTES_end;
        status = mn_shard_reader_take(&reader, bytes, FILE_BYTES_end, error);
    }
    if (!status && (!mn_file_decode_end(bytes, &chain, &end) || end.magic != END_MAGIC ||
                    end.bytes != reader.bytes - FILE_BYTES_end))
        status = mn_shard_damaged(path, "end", error);
    mn_shard_reader_close(&reader);
    if (!status)
        *out_record = (struct file_tile_record){.table = head.table,
                                                .tile = head.tile,
                                                .bytes = reader.bytes,
                                                .rows_written = end.rows_written,
                                                .checksum = end.chain,
                                                .step = head.step};
    return status;
}
