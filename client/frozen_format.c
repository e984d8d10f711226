/* Frozen files: the codec, made from the field tables of frozen.h, and what a reader checks.
 * Whatever stands in a file is doubted: every number is bounded before it is used. */
#include "frozen.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

FROZEN_RECORD_LIST(MN_FILE_RECORD_DEFINE)
_Static_assert((int)FILE_BYTES_frozen_table <= (int)FROZEN_PAGE_BYTES,
               "rows begin at the next page");

void mn_frozen_file_name(const char *table, char out_name[FROZEN_NAME_BYTES])
{
    (void)snprintf(out_name, FROZEN_NAME_BYTES, "%.63s.frozen", table); /* it fits */
}

static enum mn_status damaged(const char *file, const char *field, mn_error *error)
{
    return mn_fail(error, MN_CORRUPT, field, "%.150s is damaged at its %s", file, field);
}

static enum mn_status wrong_size(const char *file, uint64_t bytes, uint64_t due, mn_error *error)
{
    return mn_fail(error, MN_CORRUPT, "bytes",
                   "%.120s has %" PRIu64 " bytes where %" PRIu64 " are due", file, bytes, due);
}

/* Magic, endianness and version: what stands where no later version may move it, so that it is
 * looked at before the record's checksum. */
static enum mn_status check_preamble(const char *file, const uint8_t *bytes, uint64_t count,
                                     uint64_t magic_due, uint64_t least_bytes, mn_error *error)
{
    mn_file_PREAMBLE preamble;
    if (count < MN_FILE_BYTES_PREAMBLE)
        return wrong_size(file, count, least_bytes, error);
    (void)mn_file_get_PREAMBLE(bytes, &preamble);
    if (preamble.magic != magic_due || preamble.endianness != MN_FILE_ENDIANNESS)
        return mn_fail(error, MN_CORRUPT, "magic", "%.150s is no frozen file of this kind", file);
    if (preamble.least_reader > FROZEN_FORMAT_VERSION)
        return mn_fail(error, MN_UNSUPPORTED, "format_version",
                       "%.110s has format %u, which needs a reader of %u; this one is %d", file,
                       preamble.format_version, preamble.least_reader, FROZEN_FORMAT_VERSION);
    return count < least_bytes ? wrong_size(file, count, least_bytes, error) : MN_OK;
}

enum mn_status mn_frozen_contents_decode(const char *file, const uint8_t *bytes, uint64_t count,
                                         struct frozen_contents *out_contents, mn_error *error)
{
    struct frozen_contents contents;
    uint64_t chain = 0;
    enum mn_status status = check_preamble(file, bytes, count, FROZEN_MANIFEST_MAGIC,
                                           FILE_BYTES_frozen_manifest, error);
    if (status)
        return status;
    if (!mn_file_decode_frozen_manifest(bytes, &chain, &contents.head) ||
        contents.head.tables > MN_COMMIT_TABLES_MAX)
        return damaged(file, "head", error);
    uint64_t due =
        FILE_BYTES_frozen_manifest + (uint64_t)contents.head.tables * FILE_BYTES_frozen_entry;
    if (count != due)
        return wrong_size(file, count, due, error);
    bytes += FILE_BYTES_frozen_manifest;
    for (uint32_t i = 0; i < contents.head.tables; i++, bytes += FILE_BYTES_frozen_entry) {
        struct file_frozen_entry *entry = &contents.entries[i];
        bool good = mn_file_decode_frozen_entry(bytes, &chain, entry) && mn_name_valid(entry->name);
        for (uint32_t j = 0; j < i && good; j++)
            good = strcmp(contents.entries[j].name, entry->name) != 0;
        if (!good)
            return damaged(file, "entries", error);
    }
    *out_contents = contents;
    return MN_OK;
}

static bool row_dtype_valid(uint32_t dtype)
{
    return dtype == MN_F32 || dtype == MN_BF16 || dtype == MN_I8;
}

uint64_t mn_frozen_piece_bytes(uint64_t row_bytes)
{
    return FROZEN_PIECE_BYTES / row_bytes * row_bytes;
}

static uint64_t file_checksum(const uint8_t *bytes, uint64_t count, uint64_t row_bytes)
{
    const uint64_t piece = mn_frozen_piece_bytes(row_bytes);
    uint64_t chain = mn_checksum(bytes, FROZEN_PAGE_BYTES, 0);
    for (uint64_t at = FROZEN_PAGE_BYTES; at < count; at += piece)
        chain = mn_checksum(bytes + at, count - at < piece ? count - at : piece, chain);
    return chain;
}

enum mn_status mn_frozen_table_init(const char *file, const uint8_t *bytes, uint64_t count,
                                    const struct frozen_contents *contents, uint32_t entry,
                                    bool rows_too, mn_frozen_table *out_table, mn_error *error)
{
    const struct file_frozen_entry *due = &contents->entries[entry];
    struct file_frozen_table head;
    mn_frozen_table table = {.kernels = mn_frozen_kernels_best()};
    const char *field;
    uint64_t chain = 0;
    enum mn_status status =
        check_preamble(file, bytes, count, FROZEN_TABLE_MAGIC, FROZEN_PAGE_BYTES, error);
    if (status)
        return status;
    if (count != due->bytes)
        return wrong_size(file, count, due->bytes, error);
    if (!mn_file_decode_frozen_table(bytes, &chain, &head) || chain != due->head_checksum ||
        strcmp(head.spec.name, due->name) || head.step != contents->head.step)
        return damaged(file, "head", error);
    if (mn_spec_check(&head.spec, &table.spec, NULL) ||
        !mn_spec_equal(&head.spec, &table.spec, &field))
        return damaged(file, "table spec", error);
    if (!row_dtype_valid(head.row_dtype) ||
        head.row_bytes != mn_frozen_row_bytes((enum mn_dtype)head.row_dtype, head.spec.dim))
        return damaged(file, "row_bytes", error);
    /* rows <= 2^40 and row_bytes <= 2^18 + 64: no overflow. */
    if (count != FROZEN_PAGE_BYTES + head.spec.rows * head.row_bytes)
        return wrong_size(file, count, FROZEN_PAGE_BYTES + head.spec.rows * head.row_bytes, error);
    if (rows_too && file_checksum(bytes, count, head.row_bytes) != due->checksum)
        return damaged(file, "rows", error);
    table.rows = (mn_frozen_rows){bytes + FROZEN_PAGE_BYTES, head.row_bytes, head.spec.dim,
                                  (enum mn_dtype)head.row_dtype};
    table.file_bytes = count;
    *out_table = table;
    return MN_OK;
}
