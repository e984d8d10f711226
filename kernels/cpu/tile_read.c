/* Reads of a tile: gather, bags, and the dot products of a bag's gradient. Bound by DRAM: the
 * offsets are known, so rows are prefetched some reads ahead. */
#include "tile.h"

/* How far to prefetch: about this many bytes ahead, and at least this many rows; update counts (one
 * line for each) further. Into L2, which elsewhere than on AMD waits for three times as many lines
 * at once as L1 (gathers of 512-byte rows ran at 5 GB/s with 8 KiB into L1, at 9 with 24 into L2).
 * On AMD into L1, and less far: bags of 256-byte rows ran at 23.3 GB/s so, at 21.2 the other way,
 * their dot products at 23.7 and 19.9, gathers at 19.2 and 17.3; of 4 KiB rows both alike. */
enum {
    AHEAD_BYTES = 24576,
    AHEAD_BYTES_L1 = 8192,
    AHEAD_ROWS = 4,
    COPY_AHEAD_BYTES = 12288, /* where the reads of a row are spread over the copying of another */
    COPY_AHEAD_ROWS = 2,
    AHEAD_UPDATES = 32
};

typedef struct reader {
    const mn_tile *tile;
    const uint64_t *offsets;
    uint64_t n;
    uint32_t row_bytes, ahead;
    bool all_written, into_l1;
} reader;

INLINE reader reader_of(const mn_tile *tile, const uint64_t *offsets, uint64_t n)
{
    const uint32_t row_bytes = tile->columns * element_bytes(tile->dtype);
    const bool into_l1 = __builtin_cpu_is("amd");
    const uint32_t ahead_bytes = into_l1 ? AHEAD_BYTES_L1 : AHEAD_BYTES;
    return (reader){.tile = tile,
                    .offsets = offsets,
                    .n = n,
                    .row_bytes = row_bytes,
                    .ahead = AHEAD_ROWS + ahead_bytes / (row_bytes + 1),
                    .all_written = tile->rows_written == tile->rows,
                    .into_l1 = into_l1};
}

/* Asks for the line at `at`. */
INLINE void ask(const reader *r, const char *at)
{
    if (r->into_l1)
        __builtin_prefetch(at, 0, 3);
    else
        __builtin_prefetch(at, 0, 2);
}

/* The offset of read i, or of the last when there is none; row 0 for MN_NO_ROW. */
INLINE uint64_t offset_ahead(const reader *r, uint64_t i)
{
    uint64_t offset = r->offsets[i < r->n ? i : r->n - 1];
    return offset == MN_NO_ROW ? 0 : offset;
}

/* What the first reads find: bytes [skip, skip + bytes) of the rows before `ahead`. */
INLINE void prefetch_first(const reader *r, uint32_t skip, uint32_t bytes)
{
    for (uint64_t i = 0; i < r->ahead && i < r->n; i++) {
        const char *row = (const char *)r->tile->values + skip + offset_ahead(r, i) * r->row_bytes;
        for (uint32_t b = 0; b < bytes; b += LINE)
            ask(r, row + b);
    }
}

/* Called when read i begins: asks for bytes [skip, skip + bytes) of the row of a read to come. A
 * row never written costs a look into the page table. */
INLINE void prefetch_ahead(const reader *r, uint64_t i, uint32_t skip, uint32_t bytes)
{
    if (!r->all_written)
        __builtin_prefetch(r->tile->updates + offset_ahead(r, i + r->ahead + AHEAD_UPDATES), 0, 3);
    const char *row =
        (const char *)r->tile->values + skip + offset_ahead(r, i + r->ahead) * r->row_bytes;
    for (uint32_t b = 0; b < bytes; b += LINE)
        ask(r, row + b);
}

/* Copies a row, and asks for a line of the row to come beside each line copied: asked for in one
 * burst, they wait for each other (512-byte rows: 5.8 GB/s so, 6.7 line by line). */
INLINE void copy_asking(const reader *r, const char *row, const char *ahead, char *out)
{
    const uint32_t bytes = r->row_bytes;
    uint32_t b = 0;
    for (; b + LINE <= bytes; b += LINE) {
        ask(r, ahead + b);
        memcpy(out + b, row + b, LINE);
    }
    if (b < bytes) {
        ask(r, ahead + b);
        memcpy(out + b, row + b, bytes - b);
    }
}

/* Rows that are copied as they are. */
INLINE void gather_same(const reader *r, char *out_rows, uint64_t out_stride_bytes)
{
    const mn_tile *tile = r->tile;
    _Alignas(LINE) float made[CHUNK];
    const uint32_t most = (uint32_t)sizeof made / element_bytes(tile->dtype);
    for (uint64_t i = 0; i < r->n; i++) {
        char *out = out_rows + i * out_stride_bytes;
        const char *ahead =
            (const char *)tile->values + offset_ahead(r, i + r->ahead) * r->row_bytes;
        prefetch_ahead(r, i, 0, 0);
        if (r->offsets[i] == MN_NO_ROW)
            continue;
        if (__builtin_expect(row_written(tile, r->offsets[i]), 1)) {
            copy_asking(r, row_values(tile, r->offsets[i]), ahead, out);
            continue;
        }
        for (uint32_t c = 0; c < tile->columns; c += most) {
            uint32_t count = least(most, tile->columns - c);
            const void *row = row_columns(tile, r->offsets[i], c, count, made);
            copy_bytes(row, count * element_bytes(tile->dtype),
                       out + (size_t)c * element_bytes(tile->dtype));
        }
    }
}

void ISA(gather)(const mn_tile *tile, const uint64_t *offsets, uint64_t n, enum mn_dtype out_dtype,
                 void *out_rows, uint64_t out_stride_bytes)
{
    reader r = reader_of(tile, offsets, n);
    const uint32_t out_bytes = element_bytes(out_dtype);
    _Alignas(LINE) float made[CHUNK];
    if (tile->dtype == out_dtype) {
        r.ahead =
            COPY_AHEAD_ROWS + (r.into_l1 ? AHEAD_BYTES_L1 : COPY_AHEAD_BYTES) / (r.row_bytes + 1);
        gather_same(&r, out_rows, out_stride_bytes);
        return;
    }
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
    for (uint64_t i = 0; i < n && bytes; i++) {
        char *out = (char *)out_state + i * out_stride_bytes;
        if (offsets[i] == MN_NO_ROW)
            continue;
        if (row_written(tile, offsets[i]))
            memcpy(out, (const char *)tile->state + offsets[i] * bytes, bytes);
        else
            mn_state_init(&tile->optimizer, tile->columns, out);
    }
}

/* The next reads of a query that have a row, four at most, and where their columns lie. */
typedef struct reads {
    const void *rows[4];
    uint32_t places[4], count;
} reads;

/* Collects from read *j of the k at `first`; columns [c, c + count). */
INLINE reads next_reads(const reader *r, uint64_t first, uint32_t k, uint32_t *j, uint32_t c,
                        uint32_t count, float made[4][CHUNK])
{
    const uint32_t bytes = element_bytes(r->tile->dtype);
    reads some = {.count = 0};
    for (; *j < k && some.count < 4; ++*j) {
        uint64_t offset = r->offsets[first + *j];
        prefetch_ahead(r, first + *j, c * bytes, count * bytes);
        if (offset == MN_NO_ROW)
            continue;
        some.rows[some.count] = row_columns(r->tile, offset, c, count, made[some.count]);
        some.places[some.count++] = *j;
    }
    return some;
}

/* Four reads that have rows and were written, and the four to come at the same distance. */
typedef struct four_reads {
    const void *rows[4];
    const char *ahead[4];
} four_reads;

/* The common case, without a test a row: reads i .. i + 3, from column c on. */
INLINE bool four_reads_at(const reader *r, uint64_t i, uint32_t c, four_reads *out_four)
{
    const uint64_t *o = r->offsets + i;
    const uint32_t *updates = r->tile->updates;
    const char *values = (const char *)r->tile->values + (size_t)c * element_bytes(r->tile->dtype);
    if ((o[0] | o[1] | o[2] | o[3]) >> 63) /* MN_NO_ROW among them */
        return false;
    if (!r->all_written && !(updates[o[0]] && updates[o[1]] && updates[o[2]] && updates[o[3]]))
        return false;
    for (uint32_t j = 0; j < 4; j++) {
        prefetch_ahead(r, i + j, 0, 0);
        out_four->rows[j] = values + o[j] * r->row_bytes;
        out_four->ahead[j] = values + offset_ahead(r, i + j + r->ahead) * r->row_bytes;
    }
    return true;
}

/* Asks for the line of column c of the four reads to come. Line by line of four rows, beside those
 * read, four pages are awaited at once and the reads never pause: half as fast again as asking for
 * row after row. */
INLINE void prefetch_four(const reader *r, const four_reads *four, uint32_t c, enum mn_dtype dtype)
{
    for (uint32_t j = 0; j < 4; j++)
        ask(r, four->ahead[j] + (size_t)c * element_bytes(dtype));
}

/* accumulate_rows of four. */
INLINE void accumulate_four(const reader *r, float *sum, const four_reads *four,
                            const float *weights, uint32_t columns, enum mn_dtype dtype)
{
    const uint32_t line = LINE / element_bytes(dtype);
    uint32_t c = 0;
    for (; c + line <= columns; c += line) {
        prefetch_four(r, four, c, dtype);
        for (uint32_t v = 0; v < line; v += LANES)
            accumulate_vector(sum, four->rows, weights, 4, c + v, dtype);
    }
    if (c == columns)
        return;
    prefetch_four(r, four, c, dtype);
    for (; c + LANES <= columns; c += LANES)
        accumulate_vector(sum, four->rows, weights, 4, c, dtype);
    for (; c < columns; c++)
        for (uint32_t j = 0; j < 4; j++)
            sum[c] = sum[c] + weights[j] * element(four->rows[j], c, dtype);
}

/* sum[0 .. count) = columns c and on of the bag of the k reads at `first`. */
INLINE void bag_columns(const reader *r, const float *weights, uint64_t first, uint32_t k,
                        uint32_t c, uint32_t count, enum mn_dtype dtype, float *sum)
{
    _Alignas(LINE) float made[4][CHUNK];
    four_reads four;
    memset(sum, 0, sizeof *sum * count);
    for (uint32_t j = 0; j < k;) {
        if (k - j >= 4 && four_reads_at(r, first + j, c, &four)) {
            accumulate_four(r, sum, &four, weights + first + j, count, dtype);
            j += 4;
            continue;
        }
        float some_weights[4];
        reads some = next_reads(r, first, k, &j, c, count, made);
        for (uint32_t i = 0; i < some.count; i++)
            some_weights[i] = weights[first + some.places[i]];
        accumulate_rows(sum, some.rows, some_weights, some.count, count, dtype);
    }
}

INLINE void bag_of(const reader *r, const float *weights, uint64_t queries, uint32_t k,
                   enum mn_dtype dtype, enum mn_dtype out_dtype, void *out_bags,
                   uint64_t out_stride_bytes)
{
    _Alignas(LINE) float sum[CHUNK];
    const uint32_t columns = r->tile->columns, out_bytes = element_bytes(out_dtype);
    for (uint64_t q = 0; q < queries; q++) {
        char *out = (char *)out_bags + q * out_stride_bytes;
        for (uint32_t c = 0; c < columns; c += CHUNK) {
            uint32_t count = least(CHUNK, columns - c);
            bag_columns(r, weights, q * k, k, c, count, dtype, sum);
            convert_row(sum, MN_F32, count, out_dtype, out + (size_t)c * out_bytes);
        }
    }
}

void ISA(bag)(const mn_tile *tile, const uint64_t *offsets, const float *weights, uint64_t queries,
              uint32_t k, enum mn_dtype out_dtype, void *out_bags, uint64_t out_stride_bytes)
{
    const reader r = reader_of(tile, offsets, queries * k);
    prefetch_first(&r, 0, least(r.row_bytes, CHUNK * element_bytes(tile->dtype)));
    if (tile->dtype == MN_F32)
        bag_of(&r, weights, queries, k, MN_F32, out_dtype, out_bags, out_stride_bytes);
    else
        bag_of(&r, weights, queries, k, MN_BF16, out_dtype, out_bags, out_stride_bytes);
}

/* dot_rows of four. */
INLINE void dot_four(const reader *r, const float *gradient, const four_reads *four,
                     uint32_t columns, enum mn_dtype dtype, float lanes[4][SIXTEEN])
{
    const uint32_t line = LINE / element_bytes(dtype);
    vf sums[4][LANE_VECTORS];
    uint32_t c = 0;
    memcpy(sums, lanes, sizeof sums);
    for (; c + line <= columns; c += line) {
        prefetch_four(r, four, c, dtype);
        for (uint32_t v = 0; v < line; v += LANES)
            for (uint32_t j = 0; j < 4; j++)
                sums[j][v / LANES % LANE_VECTORS] =
                    sums[j][v / LANES % LANE_VECTORS] +
                    load_f32(gradient + c + v) * load_vector(four->rows[j], c + v, dtype);
    }
    memcpy(lanes, sums, sizeof sums);
    if (c == columns)
        return;
    prefetch_four(r, four, c, dtype);
    for (; c < columns; c++)
        for (uint32_t j = 0; j < 4; j++)
            lanes[j][c % SIXTEEN] += gradient[c] * element(four->rows[j], c, dtype);
}

/* Dots of the next reads of a query, four at most, from read *j on. gradient [columns] f32 or bf16;
 * `wide` holds a chunk of it in f32. */
INLINE void dot_some(const reader *r, uint64_t first, uint32_t k, uint32_t *j, enum mn_dtype dtype,
                     enum mn_dtype gradient_dtype, const char *gradient, float *wide,
                     float *out_dots)
{
    _Alignas(LINE) float made[4][CHUNK], lanes[4][SIXTEEN] = {{0}};
    const uint32_t columns = r->tile->columns, begin = *j;
    reads some = {.count = 0};
    four_reads four;
    for (uint32_t c = 0; c < columns; c += CHUNK) {
        uint32_t count = least(CHUNK, columns - c);
        if (columns > CHUNK)
            convert_row(gradient + (size_t)c * element_bytes(gradient_dtype), gradient_dtype, count,
                        MN_F32, wide);
        if (k - begin >= 4 && four_reads_at(r, first + begin, c, &four)) {
            dot_four(r, wide, &four, count, dtype, lanes);
            *j = begin + 4;
            some = (reads){.places = {begin, begin + 1, begin + 2, begin + 3}, .count = 4};
            continue;
        }
        *j = begin;
        some = next_reads(r, first, k, j, c, count, made);
        dot_rows(wide, some.rows, some.count, count, dtype, lanes);
    }
    for (uint32_t i = 0; i < some.count; i++)
        out_dots[some.places[i]] = lanes_tree(lanes[i]);
}

INLINE void bag_dot_of(const reader *r, uint64_t queries, uint32_t k, enum mn_dtype dtype,
                       enum mn_dtype gradient_dtype, const void *gradients,
                       uint64_t gradient_stride_bytes, float *out_dots)
{
    _Alignas(LINE) float wide[CHUNK];
    for (uint64_t q = 0; q < queries; q++) {
        const char *gradient = (const char *)gradients + q * gradient_stride_bytes;
        convert_row(gradient, gradient_dtype, least(CHUNK, r->tile->columns), MN_F32, wide);
        memset(out_dots + q * k, 0, sizeof *out_dots * k);
        for (uint32_t j = 0; j < k;)
            dot_some(r, q * k, k, &j, dtype, gradient_dtype, gradient, wide, out_dots + q * k);
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
