/* Between the caller's arrays and payloads: indices encoded, columns gathered and scattered, f32
 * answers summed. */
#include "client_private.h"

#include <string.h>

enum {
    BLOCK = 1024, /* indices; a multiple of 8, so that packed blocks end on a byte */
    AHEAD = 8,    /* rows that are fetched into the cache before they are copied */
    LINE = 64     /* bytes of a cache line */
};

static uint64_t unit_at(const mn_units *units, uint64_t i)
{
    return units->order ? units->order[units->first + i] : units->first + i;
}

/* Indices [at, at + n) of those that `units` read. */
static void read_indices(const mn_array *indices, uint32_t reads, const mn_units *units,
                         uint64_t at, uint64_t n, uint64_t *out_indices)
{
    const uint32_t *u32 = indices->data;
    const int64_t *i64 = indices->data;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t from =
            units->order ? units->order[units->first + at + i] : units->first * reads + at + i;
        out_indices[i] = indices->dtype == MN_U32 ? u32[from] : (uint64_t)i64[from];
    }
}

uint64_t mn_put_indices(uint8_t *out, const mn_array *indices, enum mn_encoding encoding,
                        uint64_t rows, uint32_t reads, const mn_units *units)
{
    uint64_t n = units->count * reads, bytes = 0;
    bool same = (encoding == MN_INDEX_U32 && indices->dtype == MN_U32) ||
                (encoding == MN_INDEX_I64 && indices->dtype == MN_I64);
    if (same && !units->order) {
        uint64_t width = mn_dtype_bytes(indices->dtype);
        memcpy(out, (const uint8_t *)indices->data + units->first * reads * width, n * width);
        return n * width;
    }
    for (uint64_t at = 0; at < n; at += BLOCK) {
        uint64_t block[BLOCK], count = n - at < BLOCK ? n - at : BLOCK, block_bytes = 0;
        read_indices(indices, reads, units, at, count, block);
        (void)mn_indices_bytes(encoding, rows, count, &block_bytes); /* ours: known and small */
        mn_indices_encode(encoding, rows, block, count, out + bytes);
        bytes += block_bytes;
    }
    return bytes;
}

uint64_t mn_put_rows(uint8_t *out, const void *rows, uint64_t stride_bytes, uint64_t offset,
                     uint64_t bytes, const mn_units *units)
{
    const uint8_t *from = (const uint8_t *)rows + offset;
    if (bytes == stride_bytes && !units->order) {
        memcpy(out, from + units->first * stride_bytes, units->count * bytes);
        return units->count * bytes;
    }
    for (uint64_t i = 0; i < units->count; i++) {
        uint64_t ahead = i + AHEAD < units->count ? i + AHEAD : i;
        for (uint64_t b = 0; b < bytes; b += LINE)
            __builtin_prefetch(from + unit_at(units, ahead) * stride_bytes + b);
        memcpy(out + i * bytes, from + unit_at(units, i) * stride_bytes, bytes);
    }
    return units->count * bytes;
}

uint32_t mn_lend_rows(mn_span *out_spans, const void *rows, uint64_t stride_bytes, uint64_t offset,
                      uint64_t bytes, const mn_units *units)
{
    const uint8_t *from = (const uint8_t *)rows + offset;
    uint32_t spans = 0;
    for (uint64_t i = 0; i < units->count; i++) {
        const uint8_t *row = from + unit_at(units, i) * stride_bytes;
        mn_span *last = out_spans + spans - 1;
        if (spans && last->bytes + last->count == row)
            last->count += bytes;
        else
            out_spans[spans++] = (mn_span){row, bytes};
    }
    return spans;
}

void mn_take_rows(mn_cursor *cursor, void *rows, uint64_t stride_bytes, uint64_t offset,
                  uint64_t bytes, const mn_units *units)
{
    uint8_t *to = (uint8_t *)rows + offset;
    if (bytes == stride_bytes && !units->order) {
        mn_cursor_read(cursor, to + units->first * stride_bytes, units->count * bytes);
        return;
    }
    for (uint64_t i = 0; i < units->count; i++)
        mn_cursor_read(cursor, to + unit_at(units, i) * stride_bytes, bytes);
}

void mn_add_f32(mn_cursor *cursor, uint64_t count, float *sums)
{
    for (uint64_t at = 0; at < count; at += BLOCK) {
        float block[BLOCK];
        uint64_t n = count - at < BLOCK ? count - at : BLOCK;
        mn_cursor_read(cursor, block, n * sizeof *block);
        for (uint64_t i = 0; i < n; i++)
            sums[at + i] += block[i];
    }
}

void mn_round_bf16(const float *values, uint64_t count, uint16_t *out_values)
{
    for (uint64_t i = 0; i < count; i++)
        out_values[i] = mn_f32_to_bf16(values[i]);
}
