/* Reads of a tile in GPU memory, with the bits of kernels/cpu: a bag's column is one thread's own
 * left fold, a dot product has the sixteen lanes and the tree, multiply and add are rounded
 * separately (-fmad=false), and initial values come from the formulas that the CPU uses
 * (scalar.h). Bound by memory: 16 bytes a load, several rows in flight per thread. */
#include "lanes.h"

static const uint64_t GRID_MAX = 1u << 30;
enum {
    STAGED = 1024, /* reads whose offsets a block holds in shared memory */
    FLIGHT = 8     /* rows asked for before the first is added */
};

/* Writes V columns as f32 or bf16 (nearest); `whole`: the row's alignment allows vectors. */
template <int V>
DEVICE void put_columns(const float (&values)[V], bool bf16, bool whole, char *row, uint32_t c)
{
    if (whole && bf16)
        put(values, (uint16_t *)row + c);
    else if (whole)
        put(values, (float *)row + c);
    else
#pragma unroll
        for (int e = 0; e < V; e++)
            if (bf16)
                ((uint16_t *)row)[c + e] = bf16_nearest(values[e]);
            else
                ((float *)row)[c + e] = values[e];
}

static __global__ void __launch_bounds__(THREADS)
    init_rows(mn_init init, uint64_t seed, const uint64_t *rows, uint64_t n, uint32_t first_column,
              uint32_t columns, bool bf16, char *out, uint64_t stride)
{
    const uint32_t c = blockIdx.y * blockDim.x + threadIdx.x;
    uint64_t i = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; i < n && c < columns; i += (uint64_t)gridDim.x * blockDim.y) {
        const float value[1] = {initial_value(init, seed, rows[i], first_column + c)};
        put_columns<1>(value, bf16, true, out + i * stride, c);
    }
}

template <typename T, int V>
static __global__ void __launch_bounds__(THREADS)
    gather(device_tile tile, const uint64_t *offsets, uint64_t n, bool bf16, bool whole, char *out,
           uint64_t stride)
{
    const uint32_t c = (blockIdx.y * blockDim.x + threadIdx.x) * V;
    uint64_t i = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; i < n && c < tile.columns; i += (uint64_t)gridDim.x * blockDim.y) {
        const uint64_t offset = offsets[i];
        if (offset == MN_NO_ROW)
            continue;
        const columns<T, V> in = tile_columns<T, V>(tile, offset, row_written(tile, offset), c);
        if (whole && bf16 == (sizeof(T) == 2)) {
            store_columns(in, (T *)(out + i * stride) + c); /* the bits as they are */
            continue;
        }
        float values[V];
#pragma unroll
        for (int e = 0; e < V; e++)
            values[e] = column_of(in, e);
        put_columns<V>(values, bf16, whole, out + i * stride, c);
    }
}

/* A query's next reads, as its threads share them. */
enum read_kind { SKIPPED, WRITTEN, INITIAL };
struct staged_reads {
    uint64_t offsets[STAGED];
    float weights[STAGED];
    uint8_t kinds[STAGED];
};

/* sum += weight * row, over `count` staged reads from `first` on, in order. */
template <typename T, int V>
DEVICE void add_reads(const device_tile &tile, const staged_reads &staged, uint32_t first,
                      uint32_t count, uint32_t c, float (&sum)[V])
{
    for (uint32_t j = first; j < first + count; j += FLIGHT) {
        columns<T, V> rows[FLIGHT];
#pragma unroll
        for (uint32_t f = 0; f < FLIGHT; f++)
            if (j + f < first + count && staged.kinds[j + f] == WRITTEN)
                rows[f] = load_columns<T, V>((const T *)tile.values +
                                             staged.offsets[j + f] * tile.columns + c);
#pragma unroll
        for (uint32_t f = 0; f < FLIGHT; f++) {
            if (j + f >= first + count || staged.kinds[j + f] == SKIPPED)
                continue;
            if (staged.kinds[j + f] == INITIAL)
                rows[f] = initial_columns<T, V>(tile, staged.offsets[j + f], c);
#pragma unroll
            for (int e = 0; e < V; e++)
                sum[e] = sum[e] + staged.weights[j + f] * column_of(rows[f], e);
        }
    }
}

template <typename T, int V>
static __global__ void __launch_bounds__(THREADS)
    bag(device_tile tile, const uint64_t *offsets, const float *weights, uint64_t queries,
        uint32_t k, bool bf16, bool whole, char *out, uint64_t stride)
{
    __shared__ staged_reads staged;
    const uint32_t c = (blockIdx.y * blockDim.x + threadIdx.x) * V;
    const uint32_t at_once = STAGED / blockDim.y, mine = threadIdx.y * at_once;
    uint64_t first = (uint64_t)blockIdx.x * blockDim.y;
    for (; first < queries; first += (uint64_t)gridDim.x * blockDim.y) {
        const uint64_t q = first + threadIdx.y;
        float sum[V] = {};
        for (uint32_t done = 0; done < k; done += at_once) {
            const uint32_t count = k - done < at_once ? k - done : at_once;
            __syncthreads(); /* the reads before are worked off */
            for (uint32_t j = threadIdx.x; q < queries && j < count; j += blockDim.x) {
                const uint64_t i = q * k + done + j, offset = offsets[i];
                staged.offsets[mine + j] = offset;
                staged.weights[mine + j] = weights[i];
                staged.kinds[mine + j] = offset == MN_NO_ROW         ? SKIPPED
                                         : row_written(tile, offset) ? WRITTEN
                                                                     : INITIAL;
            }
            __syncthreads();
            if (q < queries && c < tile.columns)
                add_reads<T, V>(tile, staged, mine, count, c, sum);
        }
        if (q < queries && c < tile.columns)
            put_columns<V>(sum, bf16, whole, out + q * stride, c);
    }
}

/* Adds one row's products to its lanes: this thread has V of the sixteen, from `lane` on. */
template <typename T, typename G, int V>
DEVICE void dot_row(const device_tile &tile, uint64_t offset, const G *gradient, uint32_t lane,
                    float (&lanes)[V])
{
    if (!row_written(tile, offset)) {
        for (uint32_t c = lane; c < tile.columns; c += SIXTEEN)
            add_products(load_columns<G, V>(gradient + c), initial_columns<T, V>(tile, offset, c),
                         lanes);
        return;
    }
    const T *row = (const T *)tile.values + offset * tile.columns;
#pragma unroll 4
    for (uint32_t c = lane; c < tile.columns; c += SIXTEEN)
        add_products(load_columns<G, V>(gradient + c), load_columns<T, V>(row + c), lanes);
}

/* 16 / V threads work on a read, so that a load of theirs covers sixteen columns. */
template <typename T, typename G, int V>
static __global__ void __launch_bounds__(THREADS)
    bag_dot(device_tile tile, const uint64_t *offsets, uint64_t reads, uint32_t k,
            const char *gradients, uint64_t stride, float *out_dots)
{
    const uint32_t teams = THREADS * V / SIXTEEN, team = threadIdx.x * V / SIXTEEN;
    const uint32_t lane = threadIdx.x * V % SIXTEEN;
    uint64_t first = (uint64_t)blockIdx.x * teams;
    for (; first < reads; first += (uint64_t)gridDim.x * teams) {
        const uint64_t i = first + team, offset = i < reads ? offsets[i] : MN_NO_ROW;
        float lanes[V] = {};
        if (offset != MN_NO_ROW) {
            const uint64_t query = i <= UINT32_MAX ? (uint32_t)i / k : i / k;
            dot_row<T, G, V>(tile, offset, (const G *)(gradients + query * stride), lane, lanes);
        }
        const float dot = lanes_tree(lanes);
        if (i < reads && lane == 0)
            out_dots[i] = dot;
    }
}

extern "C" enum mn_status mn_cuda_init_rows(const mn_init *init, uint64_t seed,
                                            const uint64_t *rows, uint64_t n, uint32_t first_column,
                                            uint32_t columns, enum mn_dtype dtype, void *out_rows,
                                            uint64_t out_stride_bytes, void *stream,
                                            mn_error *error)
{
    if (n == 0)
        return MN_OK;
    const cudaLaunchConfig_t config = rows_config(columns, n, GRID_MAX, stream);
    return launched(cudaLaunchKernelEx(&config, init_rows, *init, seed, rows, n, first_column,
                                       columns, dtype == MN_BF16, (char *)out_rows,
                                       out_stride_bytes),
                    error);
}

/* Columns to a vector of 16 bytes; 1 where the tile's shape or place does not allow it. */
static uint32_t read_vector(const mn_tile *tile)
{
    const uint32_t V = tile->dtype == MN_BF16 ? 8 : 4;
    return tile->columns % V == 0 && (uintptr_t)tile->values % 16 == 0 ? V : 1;
}

extern "C" enum mn_status mn_cuda_gather(const mn_tile *tile, const uint64_t *offsets, uint64_t n,
                                         enum mn_dtype out_dtype, void *out_rows,
                                         uint64_t out_stride_bytes, void *stream, mn_error *error)
{
    if (n == 0)
        return MN_OK;
    const bool bf16 = out_dtype == MN_BF16;
    const uint32_t V = read_vector(tile);
    const bool whole = vectors_fit(out_rows, out_stride_bytes, bf16 ? 2 : 4, V);
    const cudaLaunchConfig_t config = rows_config(tile->columns / V, n, GRID_MAX, stream);
    auto kernel = V == 8                   ? gather<uint16_t, 8>
                  : V == 4                 ? gather<float, 4>
                  : tile->dtype == MN_BF16 ? gather<uint16_t, 1>
                                           : gather<float, 1>;
    return launched(cudaLaunchKernelEx(&config, kernel, device_tile_of(tile), offsets, n, bf16,
                                       whole, (char *)out_rows, out_stride_bytes),
                    error);
}

extern "C" enum mn_status mn_cuda_bag(const mn_tile *tile, const uint64_t *offsets,
                                      const float *weights, uint64_t queries, uint32_t k,
                                      enum mn_dtype out_dtype, void *out_bags,
                                      uint64_t out_stride_bytes, void *stream, mn_error *error)
{
    if (queries == 0)
        return MN_OK;
    const bool bf16 = out_dtype == MN_BF16;
    const uint32_t V = read_vector(tile);
    const bool whole = vectors_fit(out_bags, out_stride_bytes, bf16 ? 2 : 4, V);
    const cudaLaunchConfig_t config = rows_config(tile->columns / V, queries, GRID_MAX, stream);
    auto kernel = V == 8                   ? bag<uint16_t, 8>
                  : V == 4                 ? bag<float, 4>
                  : tile->dtype == MN_BF16 ? bag<uint16_t, 1>
                                           : bag<float, 1>;
    return launched(cudaLaunchKernelEx(&config, kernel, device_tile_of(tile), offsets, weights,
                                       queries, k, bf16, whole, (char *)out_bags, out_stride_bytes),
                    error);
}

extern "C" enum mn_status mn_cuda_bag_dot(const mn_tile *tile, const uint64_t *offsets,
                                          uint64_t queries, uint32_t k,
                                          enum mn_dtype gradient_dtype, const void *gradients,
                                          uint64_t gradient_stride_bytes, float *out_dots,
                                          void *stream, mn_error *error)
{
    if (queries == 0 || k == 0)
        return MN_OK;
    const bool narrow = gradient_dtype == MN_BF16, bf16 = tile->dtype == MN_BF16;
    uint32_t V = read_vector(tile);
    if (!vectors_fit(gradients, gradient_stride_bytes, narrow ? 2 : 4, V))
        V = 1;
    auto kernel = V == 8   ? narrow ? bag_dot<uint16_t, uint16_t, 8> : bag_dot<uint16_t, float, 8>
                    : V == 4 ? narrow ? bag_dot<float, uint16_t, 4> : bag_dot<float, float, 4>
                    : bf16 ? narrow ? bag_dot<uint16_t, uint16_t, 1> : bag_dot<uint16_t, float, 1>
                    : narrow ? bag_dot<float, uint16_t, 1>
                           : bag_dot<float, float, 1>;
    const uint64_t reads = queries * k;
    const cudaLaunchConfig_t config = teams_config(V, reads, GRID_MAX, stream);
    return launched(cudaLaunchKernelEx(&config, kernel, device_tile_of(tile), offsets, reads, k,
                                       (const char *)gradients, gradient_stride_bytes, out_dots),
                    error);
}
