/* Reads of a tile: gather, bags, and the dot products of a bag's gradient. Bound by DRAM: the
 * offsets are known, so rows are prefetched some reads ahead. */
#include "tile.h"

/* How far to prefetch: about this many bytes ahead, and at least this many rows. */
enum { AHEAD_BYTES = 8192, AHEAD_ROWS = 4, AHEAD_UPDATES = 32 };

typedef struct reader {
    const mn_tile *tile;
    const uint64_t *offsets;
    uint64_t n;
    uint32_t row_bytes, ahead;
} reader;

INLINE reader reader_of(const mn_tile *tile, const uint64_t *offsets, uint64_t n)
{
    uint32_t row_bytes = tile->columns * element_bytes(tile->dtype);
    return (reader){tile, offsets, n, row_bytes, AHEAD_ROWS + AHEAD_BYTES / (row_bytes + 1)};
}

INLINE void prefetch_bytes(const void *from, uint32_t bytes)
{
    for (uint32_t b = 0; b < bytes; b += LINE)
        __builtin_prefetch((const char *)from + b, 0, 3);
}

/* Called when read i begins: asks for the row (or `bytes` of it, from `skip`) of a read to come. */
INLINE void prefetch_ahead(const reader *r, uint64_t i, uint32_t skip, uint32_t bytes)
{
    const mn_tile *tile = r->tile;
    if (tile->rows_written != tile->rows && i + r->ahead + AHEAD_UPDATES < r->n) {
        uint64_t offset = r->offsets[i + r->ahead + AHEAD_UPDATES];
        if (offset != MN_NO_ROW)
            __builtin_prefetch(tile->updates + offset, 0, 3);
    }
    if (i + r->ahead < r->n) {
        uint64_t offset = r->offsets[i + r->ahead];
        if (offset != MN_NO_ROW && row_written(tile, offset))
            prefetch_bytes((const char *)tile->values + offset * r->row_bytes + skip, bytes);
    }
}

void ISA(gather)(const mn_tile *tile, const uint64_t *offsets, uint64_t n, enum mn_dtype out_dtype,
                 void *out_rows, uint64_t out_stride_bytes)
{
    const reader r = reader_of(tile, offsets, n);
    const uint32_t out_bytes = element_bytes(out_dtype);
    _Alignas(LINE) float made[CHUNK];
    for (uint64_t i = 0; i < n; i++) {
        prefetch_ahead(&r, i, 0, r.row_bytes);
        char *out = (char *)out_rows + i * out_stride_bytes;
        for (uint32_t c = 0; c < tile->columns && offsets[i] != MN_NO_ROW; c += CHUNK) {
            uint32_t count = least(CHUNK, tile->columns - c);
            const void *row = row_columns(tile, offsets[i], c, count, made);
            convert_row(row, tile->dtype, count, out_dtype, out + (size_t)c * out_bytes);
        }
    }
}

void ISA(gather_state)(const mn_tile *tile, const uint64_t *offsets, uint64_t n, void *out_state,
                       uint64_t out_stride_bytes)
{
    const uint64_t bytes = mn_state_row_bytes(&tile->optimizer, tile->columns);
    for (uint64_t i = 0; i < n; i++) {
        char *out = (char *)out_state + i * out_stride_bytes;
        if (offsets[i] == MN_NO_ROW)
            continue;
        if (row_written(tile, offsets[i]))
            memcpy(out, (const char *)tile->state + offsets[i] * bytes, bytes);
        else
            mn_state_init(&tile->optimizer, tile->columns, out);
    }
}

/* The next reads of a query that have a row, four at most. */
typedef struct reads {
    const void *rows[4];
    float weights[4];
    uint32_t places[4], count;
} reads;

/* Collects from read *j of the k at `first`; columns [c, c + count). */
INLINE reads next_reads(const reader *r, uint64_t first, uint32_t k, uint32_t *j, uint32_t c,
                        uint32_t count, float made[4][CHUNK])
{
    const uint32_t bytes = element_bytes(r->tile->dtype);
    reads four = {.count = 0};
    for (; *j < k && four.count < 4; ++*j) {
        uint64_t offset = r->offsets[first + *j];
        prefetch_ahead(r, first + *j, c * bytes, count * bytes);
        if (offset == MN_NO_ROW)
            continue;
        four.rows[four.count] = row_columns(r->tile, offset, c, count, made[four.count]);
        four.places[four.count++] = *j;
    }
    return four;
}

INLINE void bag_of(const reader *r, const float *weights, uint64_t queries, uint32_t k,
                   enum mn_dtype dtype, enum mn_dtype out_dtype, void *out_bags,
                   uint64_t out_stride_bytes)
{
    _Alignas(LINE) float made[4][CHUNK], sum[CHUNK];
    const uint32_t columns = r->tile->columns;
    for (uint64_t q = 0; q < queries; q++) {
        char *out = (char *)out_bags + q * out_stride_bytes;
        for (uint32_t c = 0; c < columns; c += CHUNK) {
            uint32_t count = least(CHUNK, columns - c);
            memset(sum, 0, sizeof sum[0] * count);
            for (uint32_t j = 0; j < k;) {
                reads four = next_reads(r, q * k, k, &j, c, count, made);
                for (uint32_t i = 0; i < four.count; i++)
                    four.weights[i] = weights[q * k + four.places[i]];
                accumulate_rows(sum, four.rows, four.weights, four.count, count, dtype);
            }
            convert_row(sum, MN_F32, count, out_dtype, out + (size_t)c * element_bytes(out_dtype));
        }
    }
}

void ISA(bag)(const mn_tile *tile, const uint64_t *offsets, const float *weights, uint64_t queries,
              uint32_t k, enum mn_dtype out_dtype, void *out_bags, uint64_t out_stride_bytes)
{
    const reader r = reader_of(tile, offsets, queries * k);
    if (tile->dtype == MN_F32)
        bag_of(&r, weights, queries, k, MN_F32, out_dtype, out_bags, out_stride_bytes);
    else
        bag_of(&r, weights, queries, k, MN_BF16, out_dtype, out_bags, out_stride_bytes);
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

INLINE void bag_dot_of(const reader *r, uint64_t queries, uint32_t k, enum mn_dtype dtype,
                       enum mn_dtype gradient_dtype, const void *gradients,
                       uint64_t gradient_stride_bytes, float *out_dots)
{
    _Alignas(LINE) float made[4][CHUNK], gradient[CHUNK];
    const uint32_t columns = r->tile->columns;
    for (uint64_t q = 0; q < queries; q++) {
        const char *from = (const char *)gradients + q * gradient_stride_bytes;
        float *dots = out_dots + q * k;
        memset(dots, 0, sizeof *dots * k);
        for (uint32_t j = 0; j < k;) {
            _Alignas(LINE) float lanes[4][SIXTEEN] = {{0}};
            uint32_t begin = j;
            reads four = {.count = 0};
            for (uint32_t c = 0; c < columns; c += CHUNK) {
                uint32_t count = least(CHUNK, columns - c);
                convert_row(from + (size_t)c * element_bytes(gradient_dtype), gradient_dtype, count,
                            MN_F32, gradient);
                j = begin;
                four = next_reads(r, q * k, k, &j, c, count, made);
                if (four.count == 4)
                    dot_rows(gradient, four.rows, 4, count, dtype, lanes);
                else
                    dot_rows(gradient, four.rows, four.count, count, dtype, lanes);
            }
            for (uint32_t i = 0; i < four.count; i++)
                dots[four.places[i]] = lanes_tree(lanes[i]);
        }
    }
}

void ISA(bag_dot)(const mn_tile *tile, const uint64_t *offsets, uint64_t queries, uint32_t k,
                  enum mn_dtype gradient_dtype, const void *gradients,
                  uint64_t gradient_stride_bytes, float *out_dots)
{
    const reader r = reader_of(tile, offsets, queries * k);
    if (tile->dtype == MN_F32)
        bag_dot_of(&r, queries, k, MN_F32, gradient_dtype, gradients, gradient_stride_bytes,
                   out_dots);
    else
        bag_dot_of(&r, queries, k, MN_BF16, gradient_dtype, gradients, gradient_stride_bytes,
                   out_dots);
}
