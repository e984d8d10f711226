/* A request's arrays as they arrive: indices to offsets, weights to f32, every number looked at;
 * and what a Store assigns. A few bytes an element, each: bound by memory. */
#include "merge.h"

static const uint64_t BLOCKS_MAX = 1u << 16;

/* multiplier * row mod rows, all below 2^40, twenty bits of the row at a time so that no product
 * leaves 64. */
DEVICE uint64_t position_of(const mn_cuda_places &places, uint64_t row)
{
    if (places.multiplier == 1)
        return row;
    if (places.rows <= UINT32_MAX)
        return places.multiplier * row % places.rows;
    const uint64_t high = places.multiplier * (row >> 20) % places.rows;
    return ((high << 20) + places.multiplier * (row & 0xfffff)) % places.rows;
}

/* Index i of `bits` bits each. */
DEVICE uint64_t index_at(const void *indices, uint32_t bits, uint64_t i)
{
    if (bits == 32)
        return ((const uint32_t *)indices)[i];
    if (bits == 64)
        return ((const uint64_t *)indices)[i];
    const uint8_t *bytes = (const uint8_t *)indices + i * bits / 8;
    const uint32_t shift = (uint32_t)(i * bits % 8);
    uint64_t word = 0;
    for (uint32_t b = 0; b * 8 < shift + bits; b++)
        word |= (uint64_t)bytes[b] << b * 8;
    return word >> shift & ((UINT64_C(1) << bits) - 1);
}

static __global__ void __launch_bounds__(THREADS)
    find_offsets(mn_cuda_places places, uint32_t bits, const void *indices, uint64_t n,
                 uint64_t *out_offsets, uint32_t *bad)
{
    uint64_t i = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; i < n; i += (uint64_t)gridDim.x * blockDim.y) {
        const uint64_t row = index_at(indices, bits, i);
        uint64_t offset = MN_NO_ROW;
        if (row >= places.rows) {
            *bad = 1;
        } else {
            const uint64_t position = position_of(places, row);
            if (position >= places.first && position < places.end)
                offset = position - places.base;
            else if (!places.skip)
                *bad = 1;
        }
        out_offsets[i] = offset;
    }
}

extern "C" enum mn_status mn_cuda_offsets(const mn_cuda_places *places, uint32_t bits,
                                          const void *indices, uint64_t n, uint64_t *out_offsets,
                                          uint32_t *bad, void *stream, mn_error *error)
{
    if (n == 0)
        return MN_OK;
    const cudaLaunchConfig_t config = rows_config(1, n, BLOCKS_MAX, stream);
    return launched(
        cudaLaunchKernelEx(&config, find_offsets, *places, bits, indices, n, out_offsets, bad),
        error);
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    widen(const T *in, uint64_t n, float *out, uint32_t *bad)
{
    uint64_t i = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; i < n; i += (uint64_t)gridDim.x * blockDim.y) {
        columns<T, 1> one = load_columns<T, 1>(in + i);
        const float value = column_of(one, 0);
        if ((bits_of(value) & 0x7f800000) == 0x7f800000)
            *bad = 1;
        if (out)
            out[i] = value;
    }
}

extern "C" enum mn_status mn_cuda_weights(enum mn_dtype dtype, const void *in, uint64_t n,
                                          float *out, uint32_t *bad, void *stream, mn_error *error)
{
    if (n == 0)
        return MN_OK;
    const cudaLaunchConfig_t config = rows_config(1, n, BLOCKS_MAX, stream);
    const cudaError_t result =
        dtype == MN_BF16
            ? cudaLaunchKernelEx(&config, widen<uint16_t>, (const uint16_t *)in, n, out, bad)
            : cudaLaunchKernelEx(&config, widen<float>, (const float *)in, n, out, bad);
    return launched(result, error);
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    compare(const T *a, const T *b, uint64_t n, uint32_t *bad)
{
    uint64_t i = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; i < n; i += (uint64_t)gridDim.x * blockDim.y)
        if (a[i] != b[i])
            *bad = 1;
}

extern "C" enum mn_status mn_cuda_compare(const void *a, const void *b, uint64_t bytes,
                                          uint32_t *bad, void *stream, mn_error *error)
{
    if (bytes == 0)
        return MN_OK;
    const bool words = ((uintptr_t)a | (uintptr_t)b | bytes) % 4 == 0;
    const cudaLaunchConfig_t config = rows_config(1, words ? bytes / 4 : bytes, BLOCKS_MAX, stream);
    const cudaError_t result =
        words ? cudaLaunchKernelEx(&config, compare<uint32_t>, (const uint32_t *)a,
                                   (const uint32_t *)b, bytes / 4, bad)
              : cudaLaunchKernelEx(&config, compare<uint8_t>, (const uint8_t *)a,
                                   (const uint8_t *)b, bytes, bad);
    return launched(result, error);
}

static __global__ void __launch_bounds__(THREADS)
    number_sources(const char *rows, uint64_t stride, uint64_t count, uint32_t per_source,
                   uint32_t first, uint32_t *out_numbers, const void **out_rows, float *out_ones)
{
    uint64_t i = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; i < count * per_source; i += (uint64_t)gridDim.x * blockDim.y) {
        out_numbers[i] = first + (uint32_t)(i / per_source);
        if (i < count)
            out_rows[i] = rows + i * stride;
        if (out_ones)
            out_ones[i] = 1.0f;
    }
}

extern "C" enum mn_status mn_cuda_number_sources(const void *rows, uint64_t stride_bytes,
                                                 uint64_t count, uint32_t per_source,
                                                 uint32_t first, uint32_t *out_numbers,
                                                 const void **out_rows, float *out_ones,
                                                 void *stream, mn_error *error)
{
    if (count == 0 || per_source == 0)
        return MN_OK;
    const cudaLaunchConfig_t config = rows_config(1, count * per_source, BLOCKS_MAX, stream);
    return launched(cudaLaunchKernelEx(&config, number_sources, (const char *)rows, stride_bytes,
                                       count, per_source, first, out_numbers, out_rows, out_ones),
                    error);
}

/* ---- State ---- */

/* State elements of a row, and whether they are f32. */
struct state_shape {
    uint32_t elements;
    bool wide;
    float initial;
};

static state_shape state_shape_of(const mn_tile *tile)
{
    state_shape shape = {};
    const enum mn_optimizer_kind kind = tile->optimizer.kind;
    const bool rowwise = kind == MN_OPTIMIZER_ROWWISE_ADAGRAD;
    shape.elements = mn_state_elements(&tile->optimizer, tile->columns);
    shape.wide = rowwise || tile->optimizer.state_dtype == MN_F32;
    shape.initial = rowwise || kind == MN_OPTIMIZER_ADAGRAD ? tile->optimizer.beta1 : 0;
    return shape;
}

/* S: u32 for f32 elements, whose bits are kept; u16 for bf16. */
template <typename S> DEVICE S initial_state(float initial)
{
    return sizeof(S) == 4 ? (S)bits_of(initial) : (S)bf16_nearest(initial);
}

template <typename S>
static __global__ void __launch_bounds__(THREADS)
    gather_state(device_tile tile, state_shape shape, const uint64_t *offsets, uint64_t n,
                 char *out, uint64_t stride)
{
    const uint32_t e = blockIdx.y * blockDim.x + threadIdx.x;
    uint64_t i = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; i < n && e < shape.elements; i += (uint64_t)gridDim.x * blockDim.y) {
        const uint64_t offset = offsets[i];
        if (offset == MN_NO_ROW)
            continue;
        ((S *)(out + i * stride))[e] = row_written(tile, offset)
                                           ? ((const S *)tile.state)[offset * shape.elements + e]
                                           : initial_state<S>(shape.initial);
    }
}

extern "C" enum mn_status mn_cuda_gather_state(const mn_tile *tile, const uint64_t *offsets,
                                               uint64_t n, void *out_state,
                                               uint64_t out_stride_bytes, void *stream,
                                               mn_error *error)
{
    const state_shape shape = state_shape_of(tile);
    if (n == 0 || shape.elements == 0)
        return MN_OK;
    const cudaLaunchConfig_t config = rows_config(shape.elements, n, BLOCKS_MAX, stream);
    auto kernel = shape.wide ? gather_state<uint32_t> : gather_state<uint16_t>;
    return launched(cudaLaunchKernelEx(&config, kernel, device_tile_of(tile), shape, offsets, n,
                                       (char *)out_state, out_stride_bytes),
                    error);
}

/* ---- Store: of the reads of a row, the last one's ---- */

template <typename T, typename G>
static __global__ void __launch_bounds__(THREADS)
    store_values(device_tile tile, mn_cuda_plan plan, const char *rows, uint64_t stride)
{
    const uint32_t c = blockIdx.y * blockDim.x + threadIdx.x, runs = *plan.runs;
    uint64_t r = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; r < runs && c < tile.columns; r += (uint64_t)gridDim.x * blockDim.y) {
        const uint64_t offset = plan.sorted[plan.starts[r]];
        const uint64_t read = plan.order[plan.starts[r + 1] - 1];
        const columns<G, 1> in = load_columns<G, 1>((const G *)(rows + read * stride) + c);
        columns<T, 1> out;
        set_column(&out, 0, column_of(in, 0));
        if (sizeof(T) == sizeof(G))
            out.words[0] = in.words[0]; /* the bits as they are */
        store_columns(out, (T *)tile.values + offset * tile.columns + c);
    }
}

template <typename S>
static __global__ void __launch_bounds__(THREADS)
    store_states(device_tile tile, mn_cuda_plan plan, state_shape shape, const char *state,
                 uint64_t stride)
{
    const uint32_t e = blockIdx.y * blockDim.x + threadIdx.x, runs = *plan.runs;
    uint64_t r = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; r < runs && e < shape.elements; r += (uint64_t)gridDim.x * blockDim.y) {
        const uint64_t offset = plan.sorted[plan.starts[r]];
        const uint64_t read = plan.order[plan.starts[r + 1] - 1];
        ((S *)tile.state)[offset * shape.elements + e] =
            state ? ((const S *)(state + read * stride))[e] : initial_state<S>(shape.initial);
    }
}

extern "C" enum mn_status mn_cuda_store(const mn_tile *tile, const mn_cuda_plan *plan,
                                        enum mn_dtype dtype, const void *rows,
                                        uint64_t stride_bytes, const void *state,
                                        uint64_t state_stride_bytes, uint64_t *out_first_written,
                                        void *stream, mn_error *error)
{
    const state_shape shape = state_shape_of(tile);
    const device_tile device = device_tile_of(tile);
    const bool bf16 = tile->dtype == MN_BF16, narrow = dtype == MN_BF16;
    auto values = bf16 ? narrow ? store_values<uint16_t, uint16_t> : store_values<uint16_t, float>
                  : narrow ? store_values<float, uint16_t>
                           : store_values<float, float>;
    auto states = shape.wide ? store_states<uint32_t> : store_states<uint16_t>;
    if (plan->rows != tile->rows)
        return mn_fail(error, MN_INVALID, "tile", "it has not the plan's rows");
    cudaLaunchConfig_t config = rows_config(tile->columns, plan->reads, RUN_BLOCKS, stream);
    cudaError_t result =
        cudaLaunchKernelEx(&config, values, device, *plan, (const char *)rows, stride_bytes);
    config = rows_config(shape.elements ? shape.elements : 1, plan->reads, RUN_BLOCKS, stream);
    if (result == cudaSuccess && shape.elements)
        result = cudaLaunchKernelEx(&config, states, device, *plan, shape, (const char *)state,
                                    state_stride_bytes);
    if (result == cudaSuccess) /* a row that comes several times has been changed as often */
        result = launch_count<true>(device, plan, out_first_written, stream);
    return launched(result, error);
}

static __global__ void __launch_bounds__(THREADS)
    add_arrays(const float *arrays, uint32_t count, uint64_t n, float *out)
{
    uint64_t i = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; i < n; i += (uint64_t)gridDim.x * blockDim.y) {
        float sum = 0;
        for (uint32_t array = 0; array < count; array++)
            sum = sum + arrays[array * n + i];
        out[i] = sum;
    }
}

extern "C" enum mn_status mn_cuda_add_arrays(const float *arrays, uint32_t count, uint64_t n,
                                             float *out, void *stream, mn_error *error)
{
    if (n == 0)
        return MN_OK;
    const cudaLaunchConfig_t config = rows_config(1, n, BLOCKS_MAX, stream);
    return launched(cudaLaunchKernelEx(&config, add_arrays, arrays, count, n, out), error);
}
