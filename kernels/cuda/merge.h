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

#endif
