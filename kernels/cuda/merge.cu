/* Gradients merged by row: reads are sorted by row (CUB's radix sort, which is stable), and every
 * row's run is folded from the left, so that the bits are those of kernels/cpu whatever the GPU
 * schedules first. Memory is O(reads). */
#include "merge.h"

#include <cub/cub.cuh>

/* Where a plan's arrays lie in its workspace. */
struct plan_layout {
    uint64_t unsorted, numbers, flags, sorted, order, starts, runs, temporary, bytes;
    size_t temporary_bytes;
};

/* Bits of keys from 0 to `rows`. */
static int key_bits(uint64_t rows) { return 64 - __builtin_clzll(rows | 1); }

static uint64_t place(uint64_t *end, uint64_t bytes)
{
    const uint64_t begin = *end;
    *end = (begin + bytes + 255) & ~UINT64_C(255);
    return begin;
}

/* CUB's own needs come from it; it must see a device to know. */
static enum mn_status layout_of(uint64_t reads, uint64_t rows, plan_layout *out, mn_error *error)
{
    plan_layout layout = {};
    size_t sort_bytes = 0, flagged_bytes = 0;
    const uint32_t *numbers = NULL;
    const uint64_t *keys = NULL;
    if (reads == 0 || reads > UINT32_MAX)
        return mn_fail(error, MN_INVALID, "reads", "%llu reads, must be 1 to 2^32 - 1",
                       (unsigned long long)reads);
    cudaError_t result = cub::DeviceRadixSort::SortPairs(NULL, sort_bytes, keys, (uint64_t *)NULL,
                                                         numbers, (uint32_t *)NULL, (int64_t)reads,
                                                         0, key_bits(rows), (cudaStream_t)0);
    if (result == cudaSuccess)
        result = cub::DeviceSelect::Flagged(NULL, flagged_bytes, numbers, (const uint8_t *)NULL,
                                            (uint32_t *)NULL, (uint32_t *)NULL, (int64_t)reads,
                                            (cudaStream_t)0);
    const enum mn_status status = launched(result, error);
    if (status)
        return status;
    layout.temporary_bytes = sort_bytes > flagged_bytes ? sort_bytes : flagged_bytes;
    layout.unsorted = place(&layout.bytes, reads * sizeof(uint64_t));
    layout.numbers = place(&layout.bytes, reads * sizeof(uint32_t));
    layout.flags = place(&layout.bytes, reads);
    layout.sorted = place(&layout.bytes, reads * sizeof(uint64_t));
    layout.order = place(&layout.bytes, reads * sizeof(uint32_t));
    layout.starts = place(&layout.bytes, (reads + 1) * sizeof(uint32_t));
    layout.runs = place(&layout.bytes, sizeof(uint32_t));
    layout.temporary = place(&layout.bytes, layout.temporary_bytes);
    *out = layout;
    return MN_OK;
}

extern "C" enum mn_status mn_cuda_plan_bytes(uint64_t reads, uint64_t rows, uint64_t *out_bytes,
                                             mn_error *error)
{
    plan_layout layout;
    const enum mn_status status = layout_of(reads, rows, &layout, error);
    if (status == MN_OK)
        *out_bytes = layout.bytes;
    return status;
}

/* Keys to sort by, `rows` for reads without a row, and the reads' numbers. */
static __global__ void __launch_bounds__(THREADS)
    number_reads(const uint64_t *offsets, uint64_t reads, uint64_t rows, uint64_t *out_keys,
                 uint32_t *out_numbers)
{
    uint64_t i = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; i < reads; i += (uint64_t)gridDim.x * blockDim.y) {
        out_keys[i] = offsets[i] < rows ? offsets[i] : rows;
        out_numbers[i] = (uint32_t)i;
    }
}

static __global__ void __launch_bounds__(THREADS)
    mark_starts(const uint64_t *sorted, uint64_t reads, uint8_t *out_flags)
{
    uint64_t i = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; i < reads; i += (uint64_t)gridDim.x * blockDim.y)
        out_flags[i] = i == 0 || sorted[i] != sorted[i - 1];
}

/* Drops the run of reads without a row, which is the last; starts[runs] ends the last one left. */
static __global__ void end_runs(mn_cuda_plan plan)
{
    const uint32_t runs = *plan.runs;
    if (plan.sorted[plan.starts[runs - 1]] == plan.rows)
        *plan.runs = runs - 1;
    else
        plan.starts[runs] = (uint32_t)plan.reads;
}

extern "C" enum mn_status mn_cuda_plan_reads(const uint64_t *offsets, uint64_t reads, uint64_t rows,
                                             void *workspace, uint64_t workspace_bytes,
                                             mn_cuda_plan *out_plan, void *stream, mn_error *error)
{
    plan_layout layout;
    char *base = (char *)workspace;
    const enum mn_status sized = layout_of(reads, rows, &layout, error);
    if (sized)
        return sized;
    if (workspace_bytes < layout.bytes)
        return mn_fail(error, MN_INVALID, "workspace_bytes", "%llu bytes, must be %llu",
                       (unsigned long long)workspace_bytes, (unsigned long long)layout.bytes);
    mn_cuda_plan plan = {};
    plan.reads = reads, plan.rows = rows;
    plan.sorted = (uint64_t *)(base + layout.sorted);
    plan.order = (uint32_t *)(base + layout.order);
    plan.starts = (uint32_t *)(base + layout.starts);
    plan.runs = (uint32_t *)(base + layout.runs);
    uint64_t *keys = (uint64_t *)(base + layout.unsorted);
    uint32_t *numbers = (uint32_t *)(base + layout.numbers);
    uint8_t *flags = (uint8_t *)(base + layout.flags);
    void *temporary = base + layout.temporary;
    const cudaLaunchConfig_t config = rows_config(1, reads, RUN_BLOCKS, stream);
    cudaLaunchConfig_t one = config;
    one.gridDim = one.blockDim = dim3(1);
    cudaError_t result =
        cudaLaunchKernelEx(&config, number_reads, offsets, reads, rows, keys, numbers);
    if (result == cudaSuccess)
        result = cub::DeviceRadixSort::SortPairs(
            temporary, layout.temporary_bytes, (const uint64_t *)keys, plan.sorted,
            (const uint32_t *)numbers, plan.order, (int64_t)reads, 0, key_bits(rows),
            (cudaStream_t)stream);
    if (result == cudaSuccess)
        result = cudaLaunchKernelEx(&config, mark_starts, plan.sorted, reads, flags);
    if (result == cudaSuccess)
        result = cub::DeviceSelect::Flagged(
            temporary, layout.temporary_bytes, (const uint32_t *)numbers, (const uint8_t *)flags,
            plan.starts, plan.runs, (int64_t)reads, (cudaStream_t)stream);
    if (result == cudaSuccess)
        result = cudaLaunchKernelEx(&one, end_runs, plan);
    const enum mn_status queued = launched(result, error);
    if (queued == MN_OK)
        *out_plan = plan;
    return queued;
}

template <typename G, int V>
static __global__ void __launch_bounds__(THREADS)
    merge_rows(mn_cuda_plan plan, device_sources sources, uint32_t width, float *out_merged,
               uint64_t *out_offsets)
{
    const uint32_t c = (blockIdx.y * blockDim.x + threadIdx.x) * V, runs = *plan.runs;
    uint64_t r = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; r < runs && c < width; r += (uint64_t)gridDim.x * blockDim.y) {
        float sum[V];
        fold_run<G, V>(plan, sources, r, c, sum);
        put(sum, out_merged + r * width + c);
        if (c == 0)
            out_offsets[r] = plan.sorted[plan.starts[r]];
    }
}

extern "C" enum mn_status mn_cuda_merge_rows(const mn_cuda_plan *plan,
                                             const mn_cuda_sources *sources, uint32_t columns,
                                             float *out_merged, uint64_t *out_offsets, void *stream,
                                             mn_error *error)
{
    uint32_t V = columns % 4 == 0 && (uintptr_t)out_merged % 16 == 0 ? 4 : 1;
    V = source_vector(sources, V);
    auto kernel = sources->dtype == MN_BF16
                      ? V == 4 ? merge_rows<uint16_t, 4> : merge_rows<uint16_t, 1>
                  : V == 4 ? merge_rows<float, 4>
                           : merge_rows<float, 1>;
    const cudaLaunchConfig_t config = runs_config(plan, sources, columns / V, V, stream);
    return launched(cudaLaunchKernelEx(&config, kernel, *plan, device_sources_of(sources), columns,
                                       out_merged, out_offsets),
                    error);
}

/* Per run: the f64 squares of its merged gradient, by sixteen lanes and the tree. */
template <typename G, int V>
static __global__ void __launch_bounds__(THREADS)
    square_rows(mn_cuda_plan plan, device_sources sources, uint32_t width, double *out_squares)
{
    const uint32_t teams = THREADS * V / SIXTEEN, team = threadIdx.x * V / SIXTEEN;
    const uint32_t lane = threadIdx.x * V % SIXTEEN, runs = *plan.runs;
    uint64_t first = (uint64_t)blockIdx.x * teams;
    for (; first < runs; first += (uint64_t)gridDim.x * teams) {
        const uint64_t r = first + team;
        double lanes[V] = {};
        for (uint32_t c = lane; c < width && r < runs; c += SIXTEEN) {
            float sum[V];
            fold_run<G, V>(plan, sources, r, c, sum);
#pragma unroll
            for (int e = 0; e < V; e++)
                lanes[e] = lanes[e] + (double)sum[e] * (double)sum[e];
        }
        const double square = lanes_tree(lanes);
        if (r < runs && lane == 0)
            out_squares[r] = square;
    }
}

/* The first run whose row is `offset` or above. */
DEVICE uint32_t run_at(const mn_cuda_plan &plan, uint64_t offset)
{
    uint32_t low = 0, high = *plan.runs;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (plan.sorted[plan.starts[middle]] < offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Adds those of a block of rows one after another: one thread adds what all have fetched. */
static __global__ void __launch_bounds__(THREADS)
    add_squares(mn_cuda_plan plan, const double *squares, uint64_t rows_per_block,
                double *out_squares)
{
    __shared__ double fetched[THREADS];
    const uint64_t block = blockIdx.x;
    const uint64_t begin = run_at(plan, block * rows_per_block);
    const uint64_t end = run_at(plan, (block + 1) * rows_per_block);
    double total = 0;
    for (uint64_t first = begin; first < end; first += THREADS) {
        if (first + threadIdx.x < end)
            fetched[threadIdx.x] = squares[first + threadIdx.x];
        __syncthreads();
        for (uint32_t i = 0; threadIdx.x == 0 && i < THREADS && first + i < end; i++)
            total = total + fetched[i];
        __syncthreads();
    }
    if (threadIdx.x == 0)
        out_squares[block] = total;
}

extern "C" enum mn_status mn_cuda_merge_squares(const mn_cuda_plan *plan,
                                                const mn_cuda_sources *sources, uint32_t columns,
                                                uint64_t rows_per_block, uint32_t blocks,
                                                double *scratch, double *out_squares, void *stream,
                                                mn_error *error)
{
    const uint32_t V = columns % 4 == 0 ? source_vector(sources, 4) : 1;
    auto kernel = sources->dtype == MN_BF16
                      ? V == 4 ? square_rows<uint16_t, 4> : square_rows<uint16_t, 1>
                  : V == 4 ? square_rows<float, 4>
                           : square_rows<float, 1>;
    if (blocks == 0)
        return MN_OK;
    cudaLaunchConfig_t config = teams_config(V, plan->reads, RUN_BLOCKS, stream);
    cudaError_t result =
        cudaLaunchKernelEx(&config, kernel, *plan, device_sources_of(sources), columns, scratch);
    config.gridDim = dim3(blocks);
    if (result == cudaSuccess)
        result =
            cudaLaunchKernelEx(&config, add_squares, *plan, scratch, rows_per_block, out_squares);
    return launched(result, error);
}

extern "C" enum mn_status mn_cuda_merge_square(const mn_cuda_plan *plan,
                                               const mn_cuda_sources *sources, uint32_t columns,
                                               double *scratch, double *out_square, void *stream,
                                               mn_error *error)
{
    return mn_cuda_merge_squares(plan, sources, columns, plan->rows, 1, scratch, out_square, stream,
                                 error);
}
