/* What reads and updates of a tile share: element conversions, where a row lies, lanes and tree. */
#ifndef MN_KERNELS_TILE_H
#define MN_KERNELS_TILE_H

#include "isa.h"
#include "lanes.h"

#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#define SCALAR      INLINE
#define SCALAR_SQRT __builtin_sqrtf
#include "scalar.h"

enum {
    CHUNK = 1024, /* columns worked on at a time: 4 KiB of f32 sums stay in the first cache */
    LINE = 64     /* bytes of a cache line */
};

/* Elements of the caller's buffers: of any alignment. */
typedef float any_f32 __attribute__((aligned(1), may_alias));
typedef uint16_t any_bf16 __attribute__((aligned(1), may_alias));

INLINE uint32_t element_bytes(enum mn_dtype dtype) { return dtype == MN_F32 ? 4 : 2; }

/* Element c of a row of f32 or bf16; dtype is a constant where this is inlined. */
INLINE float element(const void *row, uint32_t c, enum mn_dtype dtype)
{
    return dtype == MN_F32 ? ((const any_f32 *)row)[c] : bf16_widen(((const any_bf16 *)row)[c]);
}

/* memcpy, but for the call: rows of 128 bytes are common. */
INLINE void copy_bytes(const void *in, uint32_t bytes, void *out)
{
    uint32_t b = 0;
    for (; b + LINE <= bytes; b += LINE)
        memcpy((char *)out + b, (const char *)in + b, LINE);
    if (b < bytes)
        memcpy((char *)out + b, (const char *)in + b, bytes - b);
}

/* out[c] = in[c], as out_dtype (f32 -> bf16: nearest). */
INLINE void convert_row(const void *in, enum mn_dtype in_dtype, uint32_t columns,
                        enum mn_dtype out_dtype, void *out)
{
    if (in_dtype == out_dtype)
        copy_bytes(in, columns * element_bytes(in_dtype), out);
    else if (in_dtype == MN_BF16)
        for (uint32_t c = 0; c < columns; c++)
            ((any_f32 *)out)[c] = bf16_widen(((const any_bf16 *)in)[c]);
    else
        for (uint32_t c = 0; c < columns; c++)
            ((any_bf16 *)out)[c] = bf16_nearest(((const any_f32 *)in)[c]);
}

/* The number of a tile's row in its table (mn_tile). */
INLINE uint64_t table_row(const mn_tile *tile, uint64_t offset)
{
    uint64_t place = tile->row_base + offset;
    if (tile->row_inverse == 1 && place < tile->table_rows)
        return place;
    return (uint64_t)((unsigned __int128)tile->row_inverse * place % tile->table_rows);
}

INLINE void *row_values(const mn_tile *tile, uint64_t offset)
{
    return (char *)tile->values + offset * tile->columns * element_bytes(tile->dtype);
}

INLINE bool row_written(const mn_tile *tile, uint64_t offset)
{
    return tile->rows_written == tile->rows || tile->updates[offset] != 0;
}

/* Columns [column, column + count) of a row: in the table, or made in `buffer` when the row was
 * never written. */
INLINE const void *row_columns(const mn_tile *tile, uint64_t offset, uint32_t column,
                               uint32_t count, void *buffer)
{
    if (__builtin_expect(row_written(tile, offset), 1))
        return (const char *)row_values(tile, offset) + column * element_bytes(tile->dtype);
    ISA(init_row)
    (&tile->init, tile->seed, table_row(tile, offset), tile->first_column + column, count,
     tile->dtype, buffer);
    return buffer;
}

INLINE uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* Sixteen running sums, as registers hold them: column c adds to lane c mod 16. */
enum { SIXTEEN = 16, LANE_VECTORS = SIXTEEN / LANES };

/* The fixed tree over sixteen lanes: i + 8, then i + 4, i + 2, i + 1. */
INLINE float lanes_tree(const float lane[SIXTEEN])
{
    typedef float v8 __attribute__((vector_size(32)));
    typedef float v4 __attribute__((vector_size(16)));
    v8 half, other_half;
    memcpy(&half, lane, sizeof half);
    memcpy(&other_half, lane + 8, sizeof half);
    half = half + other_half;
    v4 quarter, other_quarter;
    memcpy(&quarter, &half, sizeof quarter);
    memcpy(&other_quarter, (const char *)&half + sizeof quarter, sizeof quarter);
    quarter = quarter + other_quarter;
    return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

INLINE vf splat(float x) { return x - (vf){0}; }

INLINE vf load_f32(const void *from)
{
    vf v;
    memcpy(&v, from, sizeof v);
    return v;
}

/* Elements c .. c + LANES - 1 of a row. */
INLINE vf load_vector(const void *row, uint32_t c, enum mn_dtype dtype)
{
    return dtype == MN_F32 ? load_f32((const any_f32 *)row + c)
                           : lanes_widen((const any_bf16 *)row + c);
}

/* sum[c .. c + LANES) += weights[0] * rows[0][c ..), then weights[1] * rows[1][c ..) ...: each
 * product and sum rounded, in order. */
INLINE void accumulate_vector(float *sum, const void *const *rows, const float *weights,
                              uint32_t count, uint32_t c, enum mn_dtype dtype)
{
    vf total = load_f32(sum + c);
    for (uint32_t r = 0; r < count; r++)
        total = total + weights[r] * load_vector(rows[r], c, dtype);
    memcpy(sum + c, &total, sizeof total);
}

/* sum[c] += weights[0] * rows[0][c], then weights[1] * rows[1][c] ... over all columns; four rows
 * are streamed at a time. */
INLINE void accumulate_rows(float *sum, const void *const *rows, const float *weights,
                            uint32_t count, uint32_t columns, enum mn_dtype dtype)
{
    const uint32_t whole = columns / LANES * LANES;
    uint32_t r = 0;
    for (; r + 4 <= count; r += 4)
        for (uint32_t c = 0; c < whole; c += LANES)
            accumulate_vector(sum, rows + r, weights + r, 4, c, dtype);
    for (; r < count; r++)
        for (uint32_t c = 0; c < whole; c += LANES)
            accumulate_vector(sum, rows + r, weights + r, 1, c, dtype);
    for (uint32_t c = whole; c < columns; c++)
        for (r = 0; r < count; r++)
            sum[c] = sum[c] + weights[r] * element(rows[r], c, dtype);
}

/* Adds the products of columns [0, columns) to each row's sixteen lanes: column c to lane
 * c mod 16. */
INLINE void dot_rows(const float *gradient, const void *const *rows, uint32_t count,
                     uint32_t columns, enum mn_dtype dtype, float lanes[4][SIXTEEN])
{
    vf sums[4][LANE_VECTORS];
    memcpy(sums, lanes, sizeof sums);
    uint32_t c = 0;
    for (; c + SIXTEEN <= columns; c += SIXTEEN)
        for (uint32_t v = 0; v < LANE_VECTORS; v++)
            for (uint32_t i = 0; i < count; i++)
                sums[i][v] = sums[i][v] + load_f32(gradient + c + v * LANES) *
                                              load_vector(rows[i], c + v * LANES, dtype);
    memcpy(lanes, sums, sizeof sums);
    for (; c < columns; c++)
        for (uint32_t i = 0; i < count; i++)
            lanes[i][c % SIXTEEN] += gradient[c] * element(rows[i], c, dtype);
}

#endif
