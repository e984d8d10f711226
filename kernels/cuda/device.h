/* What the kernels of this folder share: a tile by value, vectors of columns, and launches. */
#ifndef MN_CUDA_DEVICE_H
#define MN_CUDA_DEVICE_H

#include "mn_kernels_cuda.h"

#include <cuda_runtime.h>

#define DEVICE      static __device__ __forceinline__
#define SCALAR      static __host__ __device__ __forceinline__
#define SCALAR_SQRT sqrtf
#include "scalar.h"

static const uint32_t THREADS = 256; /* of a block */
static const uint32_t WARP = 32, ALL_LANES = 0xffffffff;
static const uint32_t SIXTEEN = 16; /* lanes of a reduction along a row: column c in c mod 16 */

/* ---- Vectors: V consecutive columns of f32 (float) or bf16 (uint16_t), as bits ---- */

template <typename T, int V> struct columns {
    static const int BYTES = V * sizeof(T), WORDS = (BYTES + 3) / 4;
    uint32_t words[WORDS];
};

/* The address is a multiple of the vector's bytes, or of 16 when it has more. */
template <typename T, int V> DEVICE columns<T, V> load_columns(const T *from)
{
    columns<T, V> in;
    if (in.BYTES % 16 == 0) {
#pragma unroll
        for (int i = 0; i < in.BYTES / 16; i++) {
            const uint4 four = ((const uint4 *)from)[i];
            in.words[4 * i] = four.x, in.words[4 * i + 1] = four.y;
            in.words[4 * i + 2] = four.z, in.words[4 * i + 3] = four.w;
        }
    } else if (in.BYTES == 8) {
        const uint2 two = *(const uint2 *)from;
        in.words[0] = two.x, in.words[in.WORDS - 1] = two.y;
    } else {
        in.words[0] = in.BYTES == 4 ? *(const uint32_t *)from : *(const uint16_t *)from;
    }
    return in;
}

template <typename T, int V> DEVICE void store_columns(const columns<T, V> &out, T *to)
{
    if (out.BYTES % 16 == 0) {
#pragma unroll
        for (int i = 0; i < out.BYTES / 16; i++)
            ((uint4 *)to)[i] = {out.words[4 * i], out.words[4 * i + 1], out.words[4 * i + 2],
                                out.words[4 * i + 3]};
    } else if (out.BYTES == 8) {
        *(uint2 *)to = {out.words[0], out.words[out.WORDS - 1]};
    } else if (out.BYTES == 4) {
        *(uint32_t *)to = out.words[0];
    } else {
        *(uint16_t *)to = (uint16_t)out.words[0];
    }
}

/* Column e as f32; e is a constant where loops are unrolled. */
template <int V> DEVICE float column_of(const columns<float, V> &in, int e)
{
    return float_of(in.words[e]);
}
template <int V> DEVICE float column_of(const columns<uint16_t, V> &in, int e)
{
    return float_of(e % 2 ? in.words[e / 2] & 0xffff0000u : in.words[e / 2] << 16);
}

template <int V> DEVICE void set_column(columns<float, V> *out, int e, float value)
{
    out->words[e] = bits_of(value);
}
template <int V> DEVICE void set_column_bits(columns<uint16_t, V> *out, int e, uint16_t bits)
{
    out->words[e / 2] = e % 2 ? (out->words[e / 2] & 0xffff) | (uint32_t)bits << 16 : bits;
}
template <int V> DEVICE void set_column(columns<uint16_t, V> *out, int e, float value)
{
    set_column_bits(out, e, bf16_nearest(value));
}

template <typename T, int V> DEVICE void put(const float (&values)[V], T *to)
{
    columns<T, V> out;
#pragma unroll
    for (int e = 0; e < V; e++)
        set_column(&out, e, values[e]);
    store_columns(out, to);
}

/* ---- A tile ---- */

/* What the kernels need of mn_tile; passed by value. */
struct device_tile {
    void *values, *state;
    uint32_t *updates;
    mn_init init;
    uint64_t seed, rows, table_rows, row_base, row_inverse;
    uint64_t row_share; /* row_inverse / table_rows, in 2^-64, rounded down */
    uint32_t columns, first_column;
    bool bf16, all_written;
};

static inline device_tile device_tile_of(const mn_tile *tile)
{
    device_tile device = {};
    device.values = tile->values, device.state = tile->state, device.updates = tile->updates;
    device.init = tile->init, device.seed = tile->seed;
    device.rows = tile->rows, device.table_rows = tile->table_rows;
    device.row_base = tile->row_base, device.row_inverse = tile->row_inverse % tile->table_rows;
    device.row_share = (uint64_t)(((unsigned __int128)device.row_inverse << 64) / tile->table_rows);
    device.columns = tile->columns, device.first_column = tile->first_column;
    device.bf16 = tile->dtype == MN_BF16;
    device.all_written = tile->rows_written == tile->rows;
    return device;
}

DEVICE float initial_value(const mn_init &init, uint64_t seed, uint64_t row, uint32_t column)
{
    if (init.kind == MN_INIT_ZERO)
        return 0;
    if (init.kind == MN_INIT_CONSTANT)
        return init.a;
    const uint32_t counter[4] = {(uint32_t)row, (uint32_t)(row >> 32), column / 4, 0};
    const uint32_t key[2] = {(uint32_t)seed ^ MN_PURPOSE_INIT, (uint32_t)(seed >> 32)};
    uint32_t words[4];
    philox(counter, key, words);
    const bool high = column % 4 >= 2, second = column % 2;
    const uint32_t word0 = high ? words[2] : words[0], word1 = high ? words[3] : words[1];
    if (init.kind == MN_INIT_UNIFORM)
        return init.a + (init.b - init.a) * unit_of(second ? word1 : word0);
    float cosine, sine;
    normal_pair(word0, word1, &cosine, &sine);
    return init.a * (second ? sine : cosine);
}

/* row_inverse * place mod table_rows. The whole rows that row_share counts in the product are all
 * that it has, or one less (V. Shoup, NTL, MulModPrecon). */
DEVICE uint64_t table_row(const device_tile &tile, uint64_t offset)
{
    const uint64_t place = tile.row_base + offset;
    const uint64_t whole = __umul64hi(tile.row_share, place);
    const uint64_t row = tile.row_inverse * place - whole * tile.table_rows;
    return row < tile.table_rows ? row : row - tile.table_rows;
}

DEVICE bool row_written(const device_tile &tile, uint64_t offset)
{
    return tile.all_written || tile.updates[offset] != 0;
}

/* V columns from c on of a row never written: rare, and kept out of the loops that call it. */
template <typename T, int V>
static __device__ __noinline__ columns<T, V> initial_columns(const device_tile &tile,
                                                             uint64_t offset, uint32_t c)
{
    const uint64_t row = table_row(tile, offset);
    columns<T, V> out;
#pragma unroll
    for (int e = 0; e < V; e++)
        set_column(&out, e, initial_value(tile.init, tile.seed, row, tile.first_column + c + e));
    return out;
}

template <typename T, int V>
DEVICE columns<T, V> tile_columns(const device_tile &tile, uint64_t offset, bool written,
                                  uint32_t c)
{
    return written ? load_columns<T, V>((const T *)tile.values + offset * tile.columns + c)
                   : initial_columns<T, V>(tile, offset, c);
}

/* ---- Launches ---- */

/* Whether rows of `columns` elements of `bytes`, `stride_bytes` apart, can be read in vectors of V
 * of them. */
static inline bool vectors_fit(const void *rows, uint64_t stride_bytes, uint32_t bytes, uint32_t V)
{
    const uint32_t align = V * bytes < 16 ? V * bytes : 16;
    return ((uintptr_t)rows | stride_bytes) % align == 0;
}

/* Blocks of x threads along a row's vectors and y items; the grid walks the items, and its y the
 * vectors that are too many for one block. */
static inline cudaLaunchConfig_t rows_config(uint32_t vectors, uint64_t items, uint64_t blocks_max,
                                             void *stream)
{
    cudaLaunchConfig_t config = {};
    const uint32_t x = vectors < THREADS ? vectors : THREADS, y = THREADS / x;
    const uint64_t blocks = (items + y - 1) / y;
    config.blockDim = dim3(x, y);
    config.gridDim =
        dim3((unsigned)(blocks < blocks_max ? blocks : blocks_max), (vectors + x - 1) / x);
    config.stream = (cudaStream_t)stream;
    return config;
}

/* Whether it is the stream that is at fault: another device's, or one that a graph is made of. */
static inline bool stream_at_fault(cudaError_t result)
{
    return result == cudaErrorInvalidResourceHandle ||
           (result >= cudaErrorStreamCaptureUnsupported &&
            result <= cudaErrorStreamCaptureWrongThread);
}

static inline enum mn_status launched(cudaError_t result, mn_error *error)
{
    const cudaError_t earlier = cudaGetLastError(); /* taken, so that it blames no later call */
    if (result == cudaSuccess)
        result = earlier;
    if (result == cudaSuccess)
        return MN_OK;
    return mn_fail(error, MN_UNAVAILABLE, stream_at_fault(result) ? "stream" : "device",
                   "CUDA refused: %s", cudaGetErrorString(result));
}

#endif
