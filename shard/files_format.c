/* The codec of files_format.h, made from its field tables. */
#include "files_format.h"

#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "row arrays are written as they lie in memory: little-endian machines only"
#endif

static uint8_t *put_U32(uint8_t *at, const uint32_t *value)
{
    for (int i = 0; i < 4; i++)
        *at++ = (uint8_t)(*value >> 8 * i);
    return at;
}

static uint8_t *put_U64(uint8_t *at, const uint64_t *value)
{
    for (int i = 0; i < 8; i++)
        *at++ = (uint8_t)(*value >> 8 * i);
    return at;
}

static uint8_t *put_F32(uint8_t *at, const float *value)
{
    uint32_t bits;
    memcpy(&bits, value, sizeof bits);
    return put_U32(at, &bits);
}

static uint8_t *put_NAME(uint8_t *at, const char (*value)[MN_NAME_BYTES])
{
    memset(at, 0, MN_NAME_BYTES);
    memcpy(at, *value, strnlen(*value, MN_NAME_BYTES - 1));
    return at + MN_NAME_BYTES;
}

static const uint8_t *get_U32(const uint8_t *at, uint32_t *out_value)
{
    *out_value = 0;
    for (int i = 0; i < 4; i++)
        *out_value |= (uint32_t)*at++ << 8 * i;
    return at;
}

static const uint8_t *get_U64(const uint8_t *at, uint64_t *out_value)
{
    *out_value = 0;
    for (int i = 0; i < 8; i++)
        *out_value |= (uint64_t)*at++ << 8 * i;
    return at;
}

static const uint8_t *get_F32(const uint8_t *at, float *out_value)
{
    uint32_t bits;
    at = get_U32(at, &bits);
    memcpy(out_value, &bits, sizeof bits);
    return at;
}

static const uint8_t *get_NAME(const uint8_t *at, char (*out_value)[MN_NAME_BYTES])
{
    memcpy(*out_value, at, MN_NAME_BYTES);
    (*out_value)[MN_NAME_BYTES - 1] = '\0';
    return at + MN_NAME_BYTES;
}

#define PUT_FIELD(type, field) at = put_##type(at, &record->field);
#define GET_FIELD(type, field) at = get_##type(at, &out_record->field);

/* The end's checksum starts from 0, all others from the record before. */
#define RECORD_CODEC(record_name, FIELDS)                                                          \
    void mn_shard_encode_##record_name(const struct file_##record_name *record, uint64_t *chain,   \
                                       uint8_t *out_bytes)                                         \
    {                                                                                              \
        uint8_t *at = out_bytes;                                                                   \
        FIELDS(PUT_FIELD)                                                                          \
        *chain = mn_checksum(out_bytes, FILE_BYTES_##record_name - 8, *chain);                     \
        (void)put_U64(at, chain); /* the last field: where it ends is known */                     \
    }                                                                                              \
    bool mn_shard_decode_##record_name(const uint8_t *bytes, uint64_t *chain,                      \
                                       struct file_##record_name *out_record)                      \
    {                                                                                              \
        const uint8_t *at = bytes;                                                                 \
        uint64_t standing;                                                                         \
        (void)get_U64(bytes + FILE_BYTES_##record_name - 8, &standing);                            \
        *chain = mn_checksum(bytes, FILE_BYTES_##record_name - 8, *chain);                         \
        FIELDS(GET_FIELD)                                                                          \
        return *chain == standing;                                                                 \
    }                                                                                              \
    _Static_assert((int)FILE_BYTES_##record_name <= (int)FILE_RECORD_BYTES_MAX, "grow the "        \
                                                                                "buffer");
RECORD_LIST(RECORD_CODEC)

enum mn_status mn_shard_check_preamble(const char *path, uint64_t magic, uint64_t magic_due,
                                       uint32_t version, uint32_t least_reader, uint32_t endianness,
                                       mn_error *error)
{
    if (magic != magic_due || endianness != FILE_ENDIANNESS)
        return mn_fail(error, MN_CORRUPT, "magic", "%.150s is no file of this kind", path);
    if (least_reader > FILE_READER_VERSION)
        return mn_fail(error, MN_UNSUPPORTED, "format_version",
                       "%.120s has format %u, which needs a reader of %u; this one is %d", path,
                       version, least_reader, FILE_READER_VERSION);
    return MN_OK;
}

uint64_t mn_shard_chunk_bytes(const struct file_tile_head *head, uint64_t rows, uint64_t written)
{
    return (rows + 7) / 8 +
           written * (sizeof(uint32_t) + (uint64_t)head->value_bytes + head->state_bytes);
}
