/* Frozen tables: rows that nobody writes, as they lie in a file (mn_kernels.h §7); and the product
 * of a matrix and one vector. Bound by DRAM, as tile_read.c is, whose order of additions a bag here
 * follows; a query alone has no query before it to prefetch in, so its first rows are asked for at
 * once. */
#include "tile.h"

/* As in tile_read.c; and how far a matrix is read ahead. */
enum { AHEAD_BYTES = 24576, AHEAD_ROWS = 4, INTO_L2 = 2, MATRIX_AHEAD_BYTES = 4096 };

typedef struct frozen_reader {
    const mn_frozen_rows *table;
    const uint64_t *offsets;
    uint64_t n;
    uint64_t ahead; /* rows */
} frozen_reader;

INLINE const char *row_at(const frozen_reader *r, uint64_t i)
{
    return (const char *)r->table->rows + r->offsets[i] * r->table->row_bytes;
}

INLINE void prefetch_row(const frozen_reader *r, uint64_t i)
{
    const char *row = row_at(r, i < r->n ? i : r->n - 1); /* the last again: it does no harm */
    for (uint64_t b = 0; b < r->table->row_bytes; b += LINE)
        __builtin_prefetch(row + b, 0, INTO_L2);
}

INLINE frozen_reader frozen_reader_of(const mn_frozen_rows *table, const uint64_t *offsets,
                                      uint64_t n)
{
    frozen_reader r = {table, offsets, n, AHEAD_ROWS + AHEAD_BYTES / table->row_bytes};
    for (uint64_t i = 0; i < r.ahead && i < n; i++)
        prefetch_row(&r, i);
    return r;
}

/* Of an i8 row: behind its columns, at the next multiple of four. */
INLINE float scale_of(const char *row, uint32_t columns)
{
    return *(const any_f32 *)(row + ((columns + 3) & ~UINT32_C(3)));
}

/* sum[c] += weights[r] * (scales[r] * rows[r][c]), r ascending: a product or sum is rounded at a
 * time. `count` is a constant where this is inlined. */
INLINE void accumulate_i8(float *sum, const char *const *rows, const float *scales,
                          const float *weights, uint32_t count, uint32_t columns)
{
    uint32_t c = 0;
    for (; c + LANES <= columns; c += LANES) {
        vf total = load_f32(sum + c);
        for (uint32_t r = 0; r < count; r++)
            total = total + weights[r] * (scales[r] * lanes_signed(rows[r] + c));
        memcpy(sum + c, &total, sizeof total);
    }
    for (; c < columns; c++)
        for (uint32_t r = 0; r < count; r++)
            sum[c] = sum[c] + weights[r] * (scales[r] * (float)((const int8_t *)rows[r])[c]);
}

/* Adds reads [i, i + count), whose weights are given, to columns [c, c + columns). */
INLINE void add_rows(const frozen_reader *r, uint64_t i, uint32_t count, const float *weights,
                     uint32_t c, uint32_t columns, enum mn_dtype dtype, float *sum)
{
    const char *rows[4];
    float scales[4];
    for (uint32_t j = 0; j < count; j++) {
        if (c == 0)
            prefetch_row(r, i + j + r->ahead);
        const char *row = row_at(r, i + j);
        scales[j] = dtype == MN_I8 ? scale_of(row, r->table->columns) : 1;
        rows[j] = row + (size_t)c * (dtype == MN_I8 ? 1 : element_bytes(dtype));
    }
    if (dtype == MN_I8)
        accumulate_i8(sum, rows, scales, weights, count, columns);
    else
        accumulate_rows(sum, (const void *const *)rows, weights, count, columns, dtype);
}

INLINE void bag_rows(const frozen_reader *r, const float *weights, uint64_t queries, uint32_t k,
                     enum mn_dtype dtype, enum mn_dtype out_dtype, char *out,
                     uint64_t out_stride_bytes)
{
    _Alignas(LINE) float sum[CHUNK];
    for (uint64_t first = 0; first < queries * k; first += k, out += out_stride_bytes) {
        for (uint32_t c = 0; c < r->table->columns; c += CHUNK) {
            uint32_t count = least(CHUNK, r->table->columns - c), j = 0;
            memset(sum, 0, sizeof *sum * count);
            for (; j + 4 <= k; j += 4)
                add_rows(r, first + j, 4, weights + first + j, c, count, dtype, sum);
            for (; j < k; j++)
                add_rows(r, first + j, 1, weights + first + j, c, count, dtype, sum);
            convert_row(sum, MN_F32, count, out_dtype, out + (size_t)c * element_bytes(out_dtype));
        }
    }
}

static void frozen_bag(const mn_frozen_rows *table, const uint64_t *offsets, const float *weights,
                       uint64_t queries, uint32_t k, enum mn_dtype out_dtype, void *out_bags,
                       uint64_t out_stride_bytes)
{
    const frozen_reader r = frozen_reader_of(table, offsets, queries * k);
    if (table->dtype == MN_F32)
        bag_rows(&r, weights, queries, k, MN_F32, out_dtype, out_bags, out_stride_bytes);
    else if (table->dtype == MN_BF16)
        bag_rows(&r, weights, queries, k, MN_BF16, out_dtype, out_bags, out_stride_bytes);
    else
        bag_rows(&r, weights, queries, k, MN_I8, out_dtype, out_bags, out_stride_bytes);
}

static void frozen_gather(const mn_frozen_rows *table, const uint64_t *offsets, uint64_t n,
                          enum mn_dtype out_dtype, void *out_rows, uint64_t out_stride_bytes)
{
    _Alignas(LINE) float made[CHUNK];
    const frozen_reader r = frozen_reader_of(table, offsets, n);
    for (uint64_t i = 0; i < n; i++) {
        const char *row = row_at(&r, i);
        char *out = (char *)out_rows + i * out_stride_bytes;
        prefetch_row(&r, i + r.ahead);
        for (uint32_t c = 0; c < table->columns; c += CHUNK) {
            uint32_t count = least(CHUNK, table->columns - c);
            char *to = out + (size_t)c * element_bytes(out_dtype);
            if (table->dtype != MN_I8) {
                convert_row(row + (size_t)c * element_bytes(table->dtype), table->dtype, count,
                            out_dtype, to);
                continue;
            }
            const float scale = scale_of(row, table->columns);
            for (uint32_t i8 = 0; i8 < count; i8++)
                made[i8] = scale * (float)((const int8_t *)row)[c + i8];
            convert_row(made, MN_F32, count, out_dtype, to);
        }
    }
}

/* Rows [0, count) of a matrix, each 16 lanes and the tree. */
INLINE void dot_block(const float *matrix, uint32_t count, uint32_t columns, const float *vector,
                      const float *bias, float *out)
{
    _Alignas(LINE) float lanes[4][SIXTEEN] = {{0}};
    const void *rows[4];
    for (uint32_t i = 0; i < count; i++)
        rows[i] = matrix + (size_t)i * columns;
    dot_rows(vector, rows, count, columns, MN_F32, lanes);
    for (uint32_t i = 0; i < count; i++)
        out[i] = lanes_tree(lanes[i]) + (bias ? bias[i] : 0);
}

static void matrix_vector(const float *matrix, uint32_t rows, uint32_t columns, const float *vector,
                          const float *bias, float *out)
{
    uint32_t i = 0;
    for (; i + 4 <= rows; i += 4) {
        const char *ahead = (const char *)(matrix + (size_t)i * columns) + MATRIX_AHEAD_BYTES;
        for (size_t b = 0; b < (size_t)16 * columns; b += LINE)
            __builtin_prefetch(ahead + b, 0, 3);
        dot_block(matrix + (size_t)i * columns, 4, columns, vector, bias ? bias + i : NULL,
                  out + i);
    }
    for (; i < rows; i++)
        dot_block(matrix + (size_t)i * columns, 1, columns, vector, bias ? bias + i : NULL,
                  out + i);
}

const mn_frozen_kernels ISA(frozen_kernels) = {
    .gather = frozen_gather, .bag = frozen_bag, .matrix_vector = matrix_vector};
