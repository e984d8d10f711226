/* Runs of a plan: what a row's reads add up to. */
#ifndef MN_CUDA_MERGE_H
#define MN_CUDA_MERGE_H

#include "lanes.h"

/* Kernels over runs, whose number only the device knows: so many blocks walk them. */
static const uint64_t RUN_BLOCKS = 4096;

/* mn_cuda_sources, from the tile's first column on. */
struct device_sources {
    const char *gradients;
    const float *weights;
    uint64_t stride;
    uint32_t per_gradient;
    const char *const *rows;
    const uint32_t *numbers;
    uint64_t skipped; /* bytes of a row before the tile's first column */
};

static inline device_sources device_sources_of(const mn_cuda_sources *sources)
{
    device_sources device = {};
    const uint64_t skipped = (uint64_t)sources->column * (sources->dtype == MN_BF16 ? 2 : 4);
    if (sources->gradients)
        device.gradients = (const char *)sources->gradients + skipped;
    device.rows = (const char *const *)sources->rows;
    device.numbers = sources->numbers;
    device.skipped = skipped;
    device.weights = sources->weights;
    device.stride = sources->stride_bytes;
    device.per_gradient = sources->per_gradient;
    return device;
}

/* V if the sources can be read in vectors of V, else 1. */
static inline uint32_t source_vector(const mn_cuda_sources *sources, uint32_t V)
{
    const uint32_t bytes = sources->dtype == MN_BF16 ? 2 : 4;
    const uint64_t first = (uintptr_t)sources->gradients + (uint64_t)sources->column * bytes;
    return vectors_fit((const void *)first, sources->stride_bytes, bytes, V) ? V : 1;
}

/* Threads along a row's vectors and along runs. A gradient of many reads is wanted from anywhere:
 * where all of them are more than the second cache holds, columns are worked off in slabs whose
 * gradients it does hold (a grid's y comes last), so that memory gives each gradient once. Of 4.2
 * million reads of 32,768 gradients of 1024 f32 that is 0.1 GB in place of up to 17. A slab is at
 * least 16 vectors wide: pieces of rows stay longer than what memory gives at a time. */
static inline cudaLaunchConfig_t runs_config(const mn_cuda_plan *plan,
                                             const mn_cuda_sources *sources, uint32_t vectors,
                                             uint32_t V, void *stream)
{
    const uint64_t SLAB_BYTES = 16 << 20; /* of 40 MB and more */
    const uint32_t LEAST = 16, bytes = sources->dtype == MN_BF16 ? 2 : 4;
    const bool shared = sources->gradients && sources->per_gradient > 1;
    const uint64_t gradients = shared ? plan->reads / sources->per_gradient : 0;
    uint32_t slab = THREADS;
    while (slab > LEAST && gradients * bytes * V * (slab < vectors ? slab : vectors) > SLAB_BYTES)
        slab /= 2;
    cudaLaunchConfig_t config = rows_config(vectors, plan->reads, RUN_BLOCKS, stream);
    if (slab < config.blockDim.x) {
        const uint64_t y = THREADS / slab, blocks = (plan->reads + y - 1) / y;
        config.blockDim = dim3(slab, (unsigned)y);
        config.gridDim = dim3((unsigned)(blocks < RUN_BLOCKS ? blocks : RUN_BLOCKS),
                              (vectors + slab - 1) / slab);
    }
    return config;
}

DEVICE const char *source_row(const device_sources &sources, uint32_t read)
{
    if (sources.rows)
        return sources.rows[sources.numbers[read]] + sources.skipped;
    return sources.gradients + read / sources.per_gradient * sources.stride;
}

/* sum = the left fold, from +0, of columns [c, c + V) of run r: weight times source row, each
 * product and sum rounded, in the order of the reads. */
template <typename G, int V>
DEVICE void fold_run(const mn_cuda_plan &plan, const device_sources &sources, uint64_t r,
                     uint32_t c, float (&sum)[V])
{
    const uint32_t IN_FLIGHT = 4; /* rows asked for before the first is added */
    const uint64_t end = plan.starts[r + 1];
#pragma unroll
    for (int e = 0; e < V; e++)
        sum[e] = 0;
    for (uint64_t i = plan.starts[r]; i < end; i += IN_FLIGHT) {
        columns<G, V> rows[IN_FLIGHT];
        float weights[IN_FLIGHT];
#pragma unroll
        for (uint32_t f = 0; f < IN_FLIGHT; f++)
            if (i + f < end) {
                const uint32_t read = plan.order[i + f];
                weights[f] = sources.weights ? sources.weights[read] : 1.0f;
                rows[f] = load_columns<G, V>((const G *)source_row(sources, read) + c);
            }
#pragma unroll
        for (uint32_t f = 0; f < IN_FLIGHT; f++)
            if (i + f < end)
#pragma unroll
                for (int e = 0; e < V; e++)
                    sum[e] = sum[e] + weights[f] * column_of(rows[f], e);
    }
}

/* Counts a change of every row that had reads, or one a read, and the rows first written. */
template <bool EACH_READ>
static __global__ void __launch_bounds__(THREADS)
    count_changes(device_tile tile, mn_cuda_plan plan, unsigned long long *out_first_written)
{
    const uint32_t runs = *plan.runs;
    unsigned long long first = 0;
    uint64_t r = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; r < runs; r += (uint64_t)gridDim.x * blockDim.y) {
        uint32_t *updates = tile.updates + plan.sorted[plan.starts[r]];
        const uint32_t more = EACH_READ ? plan.starts[r + 1] - plan.starts[r] : 1;
        const uint32_t before = *updates;
        first += before == 0;
        *updates = more < UINT32_MAX - before ? before + more : UINT32_MAX;
    }
    if (first)
        (void)atomicAdd(out_first_written, first);
}

template <bool EACH_READ>
static cudaError_t launch_count(const device_tile &tile, const mn_cuda_plan *plan,
                                uint64_t *out_first_written, void *stream)
{
    const cudaLaunchConfig_t config = rows_config(1, plan->reads, RUN_BLOCKS, stream);
    return cudaLaunchKernelEx(&config, count_changes<EACH_READ>, tile, *plan,
                              (unsigned long long *)out_first_written);
}

#endif
