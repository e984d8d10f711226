/* The codec of files_format.h, made from its field tables. */
#include "files_format.h"

#define RECORD_FITS(record, FIELDS)                                                                \
    _Static_assert((int)FILE_BYTES_##record <= (int)FILE_RECORD_BYTES_MAX, "grow the buffer");
RECORD_LIST(RECORD_FITS)
RECORD_LIST(MN_FILE_RECORD_DEFINE)

enum mn_status mn_shard_check_preamble(const char *path, const mn_file_PREAMBLE *file,
                                       uint64_t magic_due, mn_error *error)
{
    if (file->magic != magic_due || file->endianness != MN_FILE_ENDIANNESS)
        return mn_fail(error, MN_CORRUPT, "magic", "%.150s is no file of this kind", path);
    if (file->least_reader > FILE_READER_VERSION)
        return mn_fail(error, MN_UNSUPPORTED, "format_version",
                       "%.120s has format %u, which needs a reader of %u; this one is %d", path,
                       file->format_version, file->least_reader, FILE_READER_VERSION);
    return MN_OK;
}

uint64_t mn_shard_chunk_bytes(const struct file_tile_head *head, uint64_t rows, uint64_t written)
{
    return (rows + 7) / 8 +
           written * (sizeof(uint32_t) + (uint64_t)head->value_bytes + head->state_bytes);
}
