/* Reductions along a row: column c adds to lane c mod 16, columns ascending, then the fixed tree.
 * 16 / V neighbouring threads share a row; each holds V neighbouring lanes. */
#ifndef MN_CUDA_LANES_H
#define MN_CUDA_LANES_H

#include "device.h"

/* lanes[e] += a[e] * b[e], each product and sum rounded. */
template <typename A, typename B, int V>
DEVICE void add_products(const columns<A, V> &a, const columns<B, V> &b, float (&lanes)[V])
{
#pragma unroll
    for (int e = 0; e < V; e++)
        lanes[e] = lanes[e] + column_of(a, e) * column_of(b, e);
}

/* for (w = 8; w; w /= 2) for (i < w) lane[i] += lane[i + w], in every thread of the team. The whole
 * warp calls it. */
template <typename F, int V> DEVICE F lanes_tree(F (&lanes)[V])
{
#pragma unroll
    for (int w = 8; w >= V; w /= 2)
#pragma unroll
        for (int e = 0; e < V; e++)
            lanes[e] = lanes[e] + __shfl_xor_sync(ALL_LANES, lanes[e], w / V);
#pragma unroll
    for (int w = V / 2; w >= 1; w /= 2)
#pragma unroll
        for (int e = 0; e < w; e++)
            lanes[e] = lanes[e] + lanes[e + w];
    return lanes[0];
}

/* Blocks of THREADS, 16 / V threads an item. */
static inline cudaLaunchConfig_t teams_config(uint32_t V, uint64_t items, uint64_t blocks_max,
                                              void *stream)
{
    cudaLaunchConfig_t config = {};
    const uint64_t teams = THREADS * V / SIXTEEN, blocks = (items + teams - 1) / teams;
    config.blockDim = dim3(THREADS);
    config.gridDim = dim3((unsigned)(blocks < blocks_max ? blocks : blocks_max));
    config.stream = (cudaStream_t)stream;
    return config;
}

#endif
