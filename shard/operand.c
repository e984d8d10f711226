/* A request's arrays, brought into the form that kernels take: plane offsets, f32 weights. */
#include "shard_core.h"

const uint8_t *mn_shard_payload(mn_shard *shard, const mn_payload *payload)
{
    for (uint32_t i = 0; i < payload->span_count; i++)
        if (payload->spans[i].count == payload->bytes)
            return payload->spans[i].bytes;
    mn_cursor cursor;
    mn_cursor_init(&cursor, payload, 0);
    mn_cursor_read(&cursor, shard->scratch.payload, payload->bytes);
    return shard->scratch.payload;
}

/* Position of a row of a rows table: (multiplier * row) mod rows, as mn_row_locate has it; below
 * 2^32 rows the product fits 64 bits, whose division is several times faster. */
static uint64_t position_of(const mn_geometry *geometry, uint64_t row)
{
    if (geometry->rows <= UINT32_MAX)
        return geometry->multiplier * row % geometry->rows;
    return (uint64_t)((unsigned __int128)geometry->multiplier * row % geometry->rows);
}

enum mn_status mn_shard_offsets(mn_shard *shard, const struct table *table,
                                const struct target *target, enum mn_encoding encoding,
                                const uint8_t *bytes, uint64_t count, bool skip, mn_error *error)
{
    uint64_t *offsets = shard->scratch.offsets;
    const mn_geometry *geometry = &table->geometry;
    enum mn_status status =
        mn_indices_decode(encoding, geometry->rows, bytes, count, offsets, error);
    if (status || geometry->split == MN_COLUMNS)
        return status;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t row = offsets[i], position = position_of(geometry, row);
        if (position >= target->position_first && position < target->position_end) {
            offsets[i] = position - table->position_first;
        } else if (skip) {
            offsets[i] = MN_NO_ROW;
        } else {
            return mn_fail(error, MN_INVALID, "indices",
                           "row %" PRIu64 " at place %" PRIu64 " lies in tile %" PRIu64
                           ", not in those named",
                           row, i, position / geometry->rows_per_tile);
        }
    }
    return MN_OK;
}

/* A NaN or infinity has all exponent bits set: without its sign, it is the smallest number that one
 * more in the exponent carries into the sign's place. So the usual case (all finite) is an addition
 * and two logical operations for each 16 bytes; the first bad one is looked for by hand. */
typedef uint32_t lanes32 __attribute__((vector_size(16)));
typedef uint16_t lanes16 __attribute__((vector_size(16)));

static bool finite_f32(const uint8_t *bytes, uint64_t count)
{
    lanes32 carry[2] = {{0}, {0}}, bits[2];
    uint64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        memcpy(bits, bytes + i * 4, sizeof bits);
        carry[0] |= (bits[0] & 0x7fffffffu) + 0x00800000u;
        carry[1] |= (bits[1] & 0x7fffffffu) + 0x00800000u;
    }
    carry[0] |= carry[1];
    uint32_t any = carry[0][0] | carry[0][1] | carry[0][2] | carry[0][3];
    for (; i < count; i++) {
        uint32_t rest;
        memcpy(&rest, bytes + i * 4, sizeof rest);
        any |= (rest & 0x7fffffffu) + 0x00800000u;
    }
    return !(any >> 31);
}

static bool finite_bf16(const uint8_t *bytes, uint64_t count)
{
    lanes16 carry[2] = {{0}, {0}}, bits[2];
    uint64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        memcpy(bits, bytes + i * 2, sizeof bits);
        carry[0] |= (bits[0] & (uint16_t)0x7fff) + (uint16_t)0x0080;
        carry[1] |= (bits[1] & (uint16_t)0x7fff) + (uint16_t)0x0080;
    }
    carry[0] |= carry[1];
    uint32_t any = 0;
    for (uint32_t lane = 0; lane < 8; lane++)
        any |= carry[0][lane];
    for (; i < count; i++) {
        uint16_t rest;
        memcpy(&rest, bytes + i * 2, sizeof rest);
        any |= (rest & 0x7fffu) + 0x0080u;
    }
    return !(any >> 15 & 1);
}

enum mn_status mn_shard_check_finite(const char *field, enum mn_dtype dtype, const uint8_t *bytes,
                                     uint64_t count, mn_error *error)
{
    uint32_t size = mn_dtype_bytes(dtype);
    bool (*finite)(const uint8_t *, uint64_t) = dtype == MN_F32 ? finite_f32 : finite_bf16;
    if (finite(bytes, count))
        return MN_OK;
    uint64_t place = 0;
    while (finite(bytes + place * size, 1))
        place++;
    float value;
    uint16_t half;
    memcpy(dtype == MN_F32 ? (void *)&value : &half, bytes + place * size, size);
    if (dtype != MN_F32)
        value = mn_bf16_to_f32(half);
    return mn_fail(error, MN_INVALID, field, "%f at place %" PRIu64 " of %" PRIu64 " is not finite",
                   (double)value, place, count);
}

enum {
    LINE_BYTES = 64,
    BLOCK_BYTES = 16384, /* rows that the first cache level still holds when they are checked */
    STREAM_BYTES_MIN = 1 << 18 /* a message that size is one of many */
};

static bool copy_rows(mn_cursor *cursor, enum mn_dtype dtype, uint64_t bytes, uint8_t *out_rows)
{
    bool (*finite)(const uint8_t *, uint64_t) = dtype == MN_F32 ? finite_f32 : finite_bf16;
    bool all = true;
    for (uint64_t at = 0, count; at < bytes; at += count) {
        count = bytes - at < BLOCK_BYTES ? bytes - at : BLOCK_BYTES;
        mn_cursor_read(cursor, out_rows + at, count);
        all &= finite(out_rows + at, count / mn_dtype_bytes(dtype));
    }
    return all;
}

/* Whole lines straight from the message; those that lie across two of its segments by way of a
 * line of our own. */
static bool stream_rows(const mn_kernels *kernels, mn_cursor *cursor, enum mn_dtype dtype,
                        uint64_t bytes, uint8_t *out_rows)
{
    bool all = true;
    for (uint64_t at = 0, count; at < bytes; at += count) {
        uint8_t line[LINE_BYTES];
        const uint8_t *from = line;
        count = mn_cursor_peek(cursor, &from);
        if (count < bytes - at)
            count -= count % LINE_BYTES;
        else
            count = bytes - at;
        if (count) {
            mn_cursor_skip(cursor, count);
        } else {
            count = bytes - at < LINE_BYTES ? bytes - at : LINE_BYTES;
            mn_cursor_read(cursor, line, count);
            from = line;
        }
        all &= kernels->stage(from, count, dtype, out_rows + at);
    }
    return all;
}

bool mn_shard_copy_rows(mn_shard *shard, mn_cursor *cursor, enum mn_dtype dtype, uint64_t bytes,
                        bool read_once, uint8_t *out_rows)
{
    if (read_once && bytes >= STREAM_BYTES_MIN)
        return stream_rows(shard->kernels, cursor, dtype, bytes, out_rows);
    return copy_rows(cursor, dtype, bytes, out_rows);
}

enum mn_status mn_shard_weights(mn_shard *shard, enum mn_dtype dtype, const uint8_t *bytes,
                                uint64_t count, mn_error *error)
{
    enum mn_status status = mn_shard_check_finite("weights", dtype, bytes, count, error);
    if (status)
        return status;
    float *weights = shard->scratch.weights;
    if (dtype == MN_F32) {
        memcpy(weights, bytes, count * sizeof *weights);
        return MN_OK;
    }
    for (uint64_t i = 0; i < count; i++) {
        uint16_t value;
        memcpy(&value, bytes + i * sizeof value, sizeof value);
        weights[i] = mn_bf16_to_f32(value);
    }
    return MN_OK;
}
