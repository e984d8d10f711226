/* Reads of a tile in GPU memory, with the bits of kernels/cpu: each column is one thread's own left
 * fold, multiply and add are rounded separately (-fmad=false), and initial values come from the
 * formulas that the CPU uses (scalar.h). */
#include "mn_kernels.h"

#include <cuda_runtime_api.h>

#define SCALAR      static __device__ __forceinline__
#define SCALAR_SQRT __fsqrt_rn
#include "scalar.h"

static const unsigned THREADS = 128, GRID_MAX = 1u << 30;

/* What the kernels need of mn_tile; passed by value. */
struct device_tile {
    const void *values;
    const uint32_t *updates;
    mn_init init;
    uint64_t seed, table_rows, row_base, row_inverse;
    uint32_t columns, first_column;
    bool bf16, all_written;
};

SCALAR float initial_value(const mn_init &init, uint64_t seed, uint64_t row, uint32_t column)
{
    if (init.kind == MN_INIT_ZERO)
        return 0;
    if (init.kind == MN_INIT_CONSTANT)
        return init.a;
    const uint32_t counter[4] = {(uint32_t)row, (uint32_t)(row >> 32), column / 4, 0};
    const uint32_t key[2] = {(uint32_t)seed ^ MN_PURPOSE_INIT, (uint32_t)(seed >> 32)};
    uint32_t words[4];
    philox(counter, key, words);
    if (init.kind == MN_INIT_UNIFORM)
        return init.a + (init.b - init.a) * unit_of(words[column % 4]);
    float first, second;
    normal_pair(words[column % 4 / 2 * 2], words[column % 4 / 2 * 2 + 1], &first, &second);
    return init.a * (column % 2 ? second : first);
}

/* row_inverse * place mod table_rows, bit by bit: only rows never written need it. */
SCALAR uint64_t table_row(const device_tile &tile, uint64_t offset)
{
    uint64_t place = (tile.row_base + offset) % tile.table_rows, row = 0;
    for (int bit = 63; bit >= 0; bit--) {
        row = (row << 1) % tile.table_rows; /* table_rows <= 2^40: no overflow */
        if (tile.row_inverse >> bit & 1)
            row = (row + place) % tile.table_rows;
    }
    return row;
}

SCALAR float tile_value(const device_tile &tile, uint64_t offset, uint32_t c)
{
    if (tile.all_written || tile.updates[offset] != 0) {
        const uint64_t place = offset * tile.columns + c;
        return tile.bf16 ? bf16_widen(((const uint16_t *)tile.values)[place])
                         : ((const float *)tile.values)[place];
    }
    float value =
        initial_value(tile.init, tile.seed, table_row(tile, offset), tile.first_column + c);
    return tile.bf16 ? bf16_widen(bf16_nearest(value)) : value;
}

SCALAR void put(char *row, uint32_t c, bool bf16, float value)
{
    if (bf16)
        ((uint16_t *)row)[c] = bf16_nearest(value);
    else
        ((float *)row)[c] = value;
}

static __global__ void init_rows(mn_init init, uint64_t seed, const uint64_t *rows, uint64_t n,
                                 uint32_t first_column, uint32_t columns, bool bf16, char *out,
                                 uint64_t stride)
{
    for (uint64_t i = blockIdx.x; i < n; i += gridDim.x)
        for (uint32_t c = threadIdx.x; c < columns; c += THREADS)
            put(out + i * stride, c, bf16, initial_value(init, seed, rows[i], first_column + c));
}

static __global__ void gather(device_tile tile, const uint64_t *offsets, uint64_t n, bool bf16,
                              char *out, uint64_t stride)
{
    for (uint64_t i = blockIdx.x; i < n; i += gridDim.x)
        for (uint32_t c = threadIdx.x; c < tile.columns && offsets[i] != MN_NO_ROW; c += THREADS)
            put(out + i * stride, c, bf16, tile_value(tile, offsets[i], c));
}

static __global__ void bag(device_tile tile, const uint64_t *offsets, const float *weights,
                           uint64_t queries, uint32_t k, bool bf16, char *out, uint64_t stride)
{
    for (uint64_t q = blockIdx.x; q < queries; q += gridDim.x)
        for (uint32_t c = threadIdx.x; c < tile.columns; c += THREADS) {
            float sum = 0;
            for (uint64_t i = q * k; i < (q + 1) * k; i++)
                if (offsets[i] != MN_NO_ROW)
                    sum = __fadd_rn(sum, __fmul_rn(weights[i], tile_value(tile, offsets[i], c)));
            put(out + q * stride, c, bf16, sum);
        }
}

static device_tile device_tile_of(const mn_tile *tile)
{
    device_tile device = {};
    device.values = tile->values, device.updates = tile->updates;
    device.init = tile->init, device.seed = tile->seed;
    device.table_rows = tile->table_rows;
    device.row_base = tile->row_base, device.row_inverse = tile->row_inverse;
    device.columns = tile->columns, device.first_column = tile->first_column;
    device.bf16 = tile->dtype == MN_BF16;
    device.all_written = tile->rows_written == tile->rows;
    return device;
}

static unsigned grid_of(uint64_t blocks) { return blocks < GRID_MAX ? (unsigned)blocks : GRID_MAX; }

static enum mn_status launched(mn_error *error)
{
    cudaError_t status = cudaGetLastError();
    return status == cudaSuccess ? MN_OK
                                 : mn_fail(error, MN_UNAVAILABLE, "stream", "CUDA refused: %s",
                                           cudaGetErrorString(status));
}

extern "C" enum mn_status mn_cuda_init_rows(const mn_init *init, uint64_t seed,
                                            const uint64_t *rows, uint64_t n, uint32_t first_column,
                                            uint32_t columns, enum mn_dtype dtype, void *out_rows,
                                            uint64_t out_stride_bytes, void *stream,
                                            mn_error *error)
{
    if (n == 0)
        return MN_OK;
    init_rows<<<grid_of(n), THREADS, 0, (cudaStream_t)stream>>>(*init, seed, rows, n, first_column,
                                                                columns, dtype == MN_BF16,
                                                                (char *)out_rows, out_stride_bytes);
    return launched(error);
}

extern "C" enum mn_status mn_cuda_gather(const mn_tile *tile, const uint64_t *offsets, uint64_t n,
                                         enum mn_dtype out_dtype, void *out_rows,
                                         uint64_t out_stride_bytes, void *stream, mn_error *error)
{
    if (n == 0)
        return MN_OK;
    gather<<<grid_of(n), THREADS, 0, (cudaStream_t)stream>>>(
        device_tile_of(tile), offsets, n, out_dtype == MN_BF16, (char *)out_rows, out_stride_bytes);
    return launched(error);
}

extern "C" enum mn_status mn_cuda_bag(const mn_tile *tile, const uint64_t *offsets,
                                      const float *weights, uint64_t queries, uint32_t k,
                                      enum mn_dtype out_dtype, void *out_bags,
                                      uint64_t out_stride_bytes, void *stream, mn_error *error)
{
    if (queries == 0)
        return MN_OK;
    bag<<<grid_of(queries), THREADS, 0, (cudaStream_t)stream>>>(
        device_tile_of(tile), offsets, weights, queries, k, out_dtype == MN_BF16, (char *)out_bags,
        out_stride_bytes);
    return launched(error);
}
