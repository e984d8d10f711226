/* Tiles of 64 tokens of one head in shared memory, and products of a warp's 16 rows with them on
 * the tensor cores. Rows are padded by 16 bytes, so that the eight rows which a load of matrices
 * asks for at a time lie in different banks. */
#ifndef MN_CUDA_ATTENTION_TILE_H
#define MN_CUDA_ATTENTION_TILE_H

#include "attention.h"
#include "tensor_core.h"

static const uint32_t TILE = 64, TILE_THREADS = 128; /* four warps of 16 rows */
static const int KEY_BLOCKS = TILE / 8;              /* of 8 columns of a product with a tile */

template <int D> DEVICE constexpr uint32_t tile_stride(void) { return D + 8; }
template <int D> SCALAR constexpr uint32_t tile_elements(void) { return TILE * (D + 8); }

/* A block's tile, head and sequence. */
struct tile_place {
    uint32_t tile, head, token, length; /* the sequence's first token, and its tokens */
};

/* Neighbouring blocks share a head, whose keys and values then lie in the second cache. */
DEVICE tile_place place_of_block(const attention_work &work)
{
    const uint32_t of_head = blockIdx.x / work.tiles, sequence = of_head / work.heads;
    tile_place place;
    place.tile = blockIdx.x % work.tiles;
    place.head = of_head % work.heads;
    place.token = work.batch.starts[sequence];
    place.length = work.batch.starts[sequence + 1] - place.token;
    return place;
}

/* Rows [first, first + TILE) of an array whose row 0 is the sequence's first token; zeros beyond
 * length and dim. */
template <int D>
DEVICE void load_tile(const uint16_t *from, uint64_t stride, uint32_t first, uint32_t length,
                      uint32_t dim, uint16_t *to)
{
    const uint32_t V = 8, per_row = D / V;
    for (uint32_t i = threadIdx.x; i < TILE * per_row; i += TILE_THREADS) {
        const uint32_t row = i / per_row, c = i % per_row * V;
        columns<uint16_t, 8> in = {};
        if (first + row < length && c < dim)
            in = load_columns<uint16_t, 8>(from + (first + row) * stride + c);
        store_columns(in, to + row * tile_stride<D>() + c);
    }
}

/* sums[j] += the warp's 16 rows of a times rows 8j to 8j + 7 of b, over D columns. */
template <int D>
DEVICE void multiply_rows(const uint16_t *a, const uint16_t *b, float (&sums)[KEY_BLOCKS][4])
{
    const uint32_t lane = threadIdx.x % WARP, stride = tile_stride<D>();
    const uint16_t *left = a + (threadIdx.x / WARP * 16 + lane % 16) * stride + lane / 16 * 8;
    const uint16_t *right = b + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8;
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        uint32_t rows[4], others[4];
        load_matrices(left + step * 16, rows);
#pragma unroll
        for (int j = 0; j < KEY_BLOCKS; j += 2) {
            load_matrices(right + j * 8 * stride + step * 16, others);
            multiply_add(rows, others[0], others[1], sums[j]);
            multiply_add(rows, others[2], others[3], sums[j + 1]);
        }
    }
}

/* sums[j] += a, 16 rows of TILE columns held as multiply_rows leaves them, times columns 8j to
 * 8j + 7 of b [TILE][D]. */
template <int D>
DEVICE void multiply_columns(const float (&a)[KEY_BLOCKS][4], const uint16_t *b,
                             float (&sums)[D / 8][4])
{
    const uint32_t lane = threadIdx.x % WARP, stride = tile_stride<D>();
    const uint16_t *right = b + lane % 16 * stride + lane / 16 * 8;
#pragma unroll
    for (int step = 0; step < KEY_BLOCKS / 2; step++) {
        const uint32_t rows[4] = {narrow_pair(a[2 * step][0], a[2 * step][1]),
                                  narrow_pair(a[2 * step][2], a[2 * step][3]),
                                  narrow_pair(a[2 * step + 1][0], a[2 * step + 1][1]),
                                  narrow_pair(a[2 * step + 1][2], a[2 * step + 1][3])};
        uint32_t others[4];
#pragma unroll
        for (int j = 0; j < D / 8; j += 2) {
            load_transposed(right + step * 16 * stride + j * 8, others);
            multiply_add(rows, others[0], others[1], sums[j]);
            multiply_add(rows, others[2], others[3], sums[j + 1]);
        }
    }
}

/* Of what a lane holds of a product: rows row_of(0) and row_of(1) of the block's tile, and in block
 * j the columns column_of_block(j) and the next. */
DEVICE uint32_t row_of(int half)
{
    return threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4 + half * 8;
}
DEVICE uint32_t column_of_block(int j) { return j * 8 + threadIdx.x % 4 * 2; }

/* Writes the rows of the sequence that exist, times `scale`. */
template <int D>
DEVICE void put_rows(const attention_work &work, const tile_place &place,
                     const float (&sums)[D / 8][4], float scale, float scale_below, float *to,
                     uint64_t stride, uint64_t column)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t row = place.tile * TILE + row_of(half);
        const float factor = half ? scale_below : scale;
        if (row >= place.length)
            continue;
#pragma unroll
        for (int j = 0; j < D / 8; j++)
            if (column_of_block(j) < work.dim) {
                const float pair[2] = {sums[j][2 * half] * factor, sums[j][2 * half + 1] * factor};
                put_both(pair, to, work.narrow,
                         (place.token + row) * stride + column + column_of_block(j));
            }
    }
}

static const float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;

template <int D>
static cudaLaunchConfig_t tiles_config(const attention_work &work, uint32_t tiles, void *stream)
{
    cudaLaunchConfig_t config = {};
    config.blockDim = dim3(TILE_THREADS);
    config.gridDim = dim3(work.tiles * work.heads * work.batch.sequences);
    config.dynamicSmemBytes = tiles * tile_elements<D>() * sizeof(uint16_t);
    config.stream = (cudaStream_t)stream;
    return config;
}

/* A kernel with `tiles` tiles in shared memory: it may be more than a kernel gets unasked. */
template <int D>
static cudaError_t queue_tiles(const attention_work &work, void (*kernel)(attention_work),
                               uint32_t tiles, void *stream)
{
    const cudaLaunchConfig_t config = tiles_config<D>(work, tiles, stream);
    const cudaError_t result =
        cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             (int)config.dynamicSmemBytes);
    return result == cudaSuccess ? cudaLaunchKernelEx(&config, kernel, work) : result;
}

#endif
