/* Freezing: every table of a group is fetched from its first row to its last and appended to a file
 * of its own, then the manifest is written. Through the client, so it is the same for embedded
 * shards, for many servers, and for a saved group that was loaded. */
#include "client_handle.h"
#include "frozen.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { TEMPORARY_BYTES = FROZEN_NAME_BYTES + 8 };

typedef struct freezing {
    mn_client *client;
    mn_storage *storage;
    const mn_freeze_options *options;
    mn_table_status infos[MN_COMMIT_TABLES_MAX]; /* [table_count], ascending by id */
    uint32_t table_count;
    struct frozen_contents contents;
    uint8_t *fetched, *packed; /* [FROZEN_PIECE_BYTES * 4], [FROZEN_PIECE_BYTES] */
    int64_t *rows;             /* [FROZEN_PIECE_BYTES / 64] */
} freezing;

enum {
    FETCHED_BYTES = FROZEN_PIECE_BYTES * 4, /* f32, where a byte is kept */
    PACKED_BYTES = FROZEN_PIECE_BYTES,
    PIECE_ROWS_MAX = FROZEN_PIECE_BYTES / 64, /* a row has 64 bytes at least */
    ROWS_BYTES = PIECE_ROWS_MAX * sizeof(int64_t)
};

/* ---- A file, under a temporary name until it is whole ---- */

typedef struct frozen_file {
    mn_storage *storage;
    mn_file *file;
    char name[FROZEN_NAME_BYTES], temporary[TEMPORARY_BYTES];
    uint64_t bytes, chain;
} frozen_file;

static enum mn_status file_begin(frozen_file *file, mn_storage *storage, const char *name,
                                 mn_error *error)
{
    *file = (frozen_file){.storage = storage};
    (void)snprintf(file->name, sizeof file->name, "%s", name);
    (void)snprintf(file->temporary, sizeof file->temporary, "%s.tmp", name);
    return storage->create(storage, file->temporary, &file->file, error);
}

static enum mn_status file_append(frozen_file *file, const void *bytes, uint64_t count,
                                  mn_error *error)
{
    enum mn_status status = file->storage->append(file->file, bytes, count, error);
    file->chain = mn_checksum(bytes, count, file->chain);
    file->bytes += count;
    return status;
}

/* Gives the file its name if all went well, or removes it. */
static enum mn_status file_end(frozen_file *file, enum mn_status status, mn_error *error)
{
    mn_storage *storage = file->storage;
    if (!file->file)
        return status;
    if (!status)
        status = storage->sync(file->file, error);
    storage->close(file->file);
    file->file = NULL;
    if (!status)
        status = storage->rename(storage, file->temporary, file->name, error);
    if (status)
        (void)storage->remove(storage, file->temporary, NULL); /* the first failure is told */
    return status;
}

/* ---- What is to be frozen ---- */

static enum mn_status list_tables(freezing *job, mn_error *error)
{
    job->table_count = MN_COMMIT_TABLES_MAX;
    enum mn_status status = mn_shard_tables(job->client, 0, job->infos, &job->table_count, error);
    if (status)
        return status;
    if (job->table_count == 0)
        return mn_fail(error, MN_NOT_FOUND, "group", "the group has no tables to freeze");
    for (uint32_t i = 1; i < job->table_count; i++) {
        mn_table_status info = job->infos[i];
        uint32_t at = i;
        for (; at && job->infos[at - 1].table > info.table; at--)
            job->infos[at] = job->infos[at - 1];
        job->infos[at] = info;
    }
    return MN_OK;
}

static bool named(const mn_freeze_options *options, const char *table)
{
    bool found = !options->tables;
    for (uint32_t i = 0; i < options->table_count && !found; i++)
        found = strcmp(options->tables[i], table) == 0;
    return found;
}

static enum mn_status check_options(const freezing *job, mn_error *error)
{
    const mn_freeze_options *options = job->options;
    enum mn_dtype dtype = options->dtype;
    if (options->convert && dtype != MN_F32 && dtype != MN_BF16 && dtype != MN_I8)
        return mn_fail(error, MN_INVALID, "dtype", "%s is not one of f32, bf16 and i8",
                       mn_dtype_name(dtype));
    for (uint32_t i = 0; options->tables && i < options->table_count; i++) {
        bool found = false;
        for (uint32_t t = 0; t < job->table_count; t++)
            found = found || strcmp(job->infos[t].spec.name, options->tables[i]) == 0;
        if (!found)
            return mn_fail(error, MN_NOT_FOUND, "tables", "the group has no table \"%.63s\"",
                           options->tables[i]);
    }
    return MN_OK;
}

/* A manifest that stands, whole or not, keeps the folder. */
static enum mn_status check_folder(const freezing *job, mn_error *error)
{
    mn_file *file;
    mn_error why;
    enum mn_status status = job->storage->open(job->storage, mn_frozen_manifest_name, &file, &why);
    if (status == MN_NOT_FOUND)
        return MN_OK;
    if (status)
        return mn_fail(error, status, why.field, "%s", why.message);
    job->storage->close(file);
    return mn_fail(error, MN_CONFLICT, "folder",
                   "it holds %s already: freeze into another, or remove it",
                   mn_frozen_manifest_name);
}

/* ---- Rows ---- */

/* Rows [first, first + count) as `dtype`; all reads must show one step. */
static enum mn_status fetch(freezing *job, mn_table *table, uint64_t first, uint64_t count,
                            enum mn_dtype dtype, mn_error *error)
{
    uint64_t *step = &job->contents.head.step;
    for (uint64_t i = 0; i < count; i++)
        job->rows[i] = (int64_t)(first + i);
    mn_future *future = mn_future_take(job->client, MN_OP_FETCH);
    if (!future)
        return mn_wait(NULL, error); /* says why */
    future->operation.table = table;
    future->operation.step = MN_LATEST;
    future->operation.count = count;
    future->operation.indices = mn_i64(job->rows);
    future->operation.outputs = (mn_array){job->fetched, dtype, MN_MEMORY_HOST, NULL};
    enum mn_status status = mn_future_run(future, error);
    uint64_t answered = future->operation.answered_step;
    mn_future_release(future);
    if (status)
        return status;
    if (*step == UINT64_MAX)
        *step = answered;
    if (*step != answered)
        return mn_fail(error, MN_TORN, "step",
                       "the group went on from step %" PRIu64 " to %" PRIu64
                       " while it was read: freeze a saved one",
                       *step, answered);
    return MN_OK;
}

/* The fetched rows as the file holds them. */
static enum mn_status pack(freezing *job, const mn_frozen_rows *rows, uint64_t first,
                           uint64_t count, mn_error *error)
{
    const bool quantise = rows->dtype == MN_I8;
    const uint64_t from_bytes =
        (uint64_t)rows->columns * mn_dtype_bytes(quantise ? MN_F32 : rows->dtype);
    memset(job->packed, 0, count * rows->row_bytes);
    for (uint64_t i = 0; i < count; i++) {
        const uint8_t *from = job->fetched + i * from_bytes;
        uint8_t *to = job->packed + i * rows->row_bytes;
        if (!quantise)
            memcpy(to, from, from_bytes);
        else if (!mn_frozen_quantise((const float *)from, rows->columns, to))
            return mn_fail(error, MN_INVALID, "rows",
                           "row %" PRIu64 " holds an infinity or NaN, which i8 has not", first + i);
    }
    return MN_OK;
}

/* ---- A table ---- */

/* Returns its checksum. */
static uint64_t put_head(const freezing *job, const mn_table_spec *spec, const mn_frozen_rows *rows,
                         uint8_t *out_page)
{
    const struct file_frozen_table head = {.file = {FROZEN_TABLE_MAGIC, FROZEN_FORMAT_VERSION,
                                                    FROZEN_READER_LEAST, MN_FILE_ENDIANNESS},
                                           .step = job->contents.head.step,
                                           .row_dtype = rows->dtype,
                                           .row_bytes = rows->row_bytes,
                                           .spec = *spec};
    uint64_t chain = 0;
    memset(out_page, 0, FROZEN_PAGE_BYTES);
    mn_file_encode_frozen_table(&head, &chain, out_page);
    return chain;
}

static enum mn_status write_rows(freezing *job, mn_table *table, const mn_frozen_rows *rows,
                                 frozen_file *file, uint64_t *out_head_checksum, mn_error *error)
{
    const enum mn_dtype fetched = rows->dtype == MN_I8 ? MN_F32 : rows->dtype;
    const mn_table_spec *spec = mn_table_spec_of(table);
    const uint64_t piece = mn_frozen_piece_bytes(rows->row_bytes) / rows->row_bytes;
    enum mn_status status = MN_OK;
    for (uint64_t first = 0; first < spec->rows && !status; first += piece) {
        uint64_t count = spec->rows - first < piece ? spec->rows - first : piece;
        status = fetch(job, table, first, count, fetched, error);
        if (!status && first == 0) { /* the head tells the step, known only now */
            *out_head_checksum = put_head(job, spec, rows, job->packed);
            status = file_append(file, job->packed, FROZEN_PAGE_BYTES, error);
        }
        if (!status)
            status = pack(job, rows, first, count, error);
        if (!status)
            status = file_append(file, job->packed, count * rows->row_bytes, error);
    }
    return status;
}

static enum mn_status write_table(freezing *job, uint32_t number, mn_error *error)
{
    const mn_freeze_options *options = job->options;
    struct file_frozen_entry *entry = &job->contents.entries[number];
    char name[FROZEN_NAME_BYTES];
    frozen_file file = {0};
    mn_table *table;
    enum mn_status status = mn_table_find(job->client, job->infos[number].spec.name, &table, error);
    if (status)
        return status;
    const mn_table_spec *spec = mn_table_spec_of(table);
    mn_frozen_rows rows = {.columns = spec->dim, .dtype = spec->dtype};
    if (options->convert && named(options, spec->name))
        rows.dtype = options->dtype;
    rows.row_bytes = mn_frozen_row_bytes(rows.dtype, spec->dim);
    mn_frozen_file_name(spec->name, name);
    status = file_begin(&file, job->storage, name, error);
    if (!status)
        status = write_rows(job, table, &rows, &file, &entry->head_checksum, error);
    status = file_end(&file, status, error);
    memcpy(entry->name, spec->name, sizeof entry->name);
    entry->bytes = file.bytes;
    entry->checksum = file.chain;
    return status;
}

static enum mn_status write_manifest(const freezing *job, mn_error *error)
{
    uint8_t bytes[FROZEN_MANIFEST_BYTES_MAX], *at = bytes;
    uint64_t chain = 0;
    frozen_file file;
    mn_file_encode_frozen_manifest(&job->contents.head, &chain, at);
    at += FILE_BYTES_frozen_manifest;
    for (uint32_t i = 0; i < job->table_count; i++, at += FILE_BYTES_frozen_entry)
        mn_file_encode_frozen_entry(&job->contents.entries[i], &chain, at);
    enum mn_status status = file_begin(&file, job->storage, mn_frozen_manifest_name, error);
    if (!status)
        status = file_append(&file, bytes, (uint64_t)(at - bytes), error);
    return file_end(&file, status, error);
}

/* ---- The group ---- */

static enum mn_status run(freezing *job, mn_error *error)
{
    enum mn_status status = check_folder(job, error);
    if (!status)
        status = list_tables(job, error);
    if (!status)
        status = check_options(job, error);
    struct file_frozen_manifest *head = &job->contents.head;
    *head = (struct file_frozen_manifest){.file = {FROZEN_MANIFEST_MAGIC, FROZEN_FORMAT_VERSION,
                                                   FROZEN_READER_LEAST, MN_FILE_ENDIANNESS},
                                          .step = UINT64_MAX, /* until the first read has told it */
                                          .tables = job->table_count};
    for (uint32_t i = 0; i < job->table_count && !status; i++)
        status = write_table(job, i, error);
    return status ? status : write_manifest(job, error);
}

enum mn_status mn_frozen_write(mn_client *client, mn_storage *storage,
                               const mn_freeze_options *options, mn_error *error)
{
    static const mn_freeze_options nothing = {0};
    const mn_env *env = &client->env;
    enum mn_status status;
    freezing *job = env->allocate(env->context, sizeof *job);
    if (!job)
        return mn_fail(error, MN_NO_MEMORY, "folder", "no memory to freeze a group");
    job->client = client;
    job->storage = storage;
    job->options = options ? options : &nothing;
    job->fetched = env->allocate(env->context, FETCHED_BYTES);
    job->packed = env->allocate(env->context, PACKED_BYTES);
    job->rows = env->allocate(env->context, ROWS_BYTES);
    if (job->fetched && job->packed && job->rows)
        status = run(job, error);
    else
        status = mn_fail(error, MN_NO_MEMORY, "folder", "no memory to freeze a group");
    env->release(env->context, job->rows, ROWS_BYTES);
    env->release(env->context, job->packed, PACKED_BYTES);
    env->release(env->context, job->fetched, FETCHED_BYTES);
    env->release(env->context, job, sizeof *job);
    return status;
}
