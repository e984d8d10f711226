/* Softmax over short runs, and its gradient, with the bits of kernels/cpu/softmax.c: a warp takes a
 * run, exponentials are made side by side, sums are added left to right. */
#include "device.h"

static const uint64_t GROUP_BLOCKS = 1u << 20;

/* sum + the first `count` of the warp's values, lane 0's first. */
DEVICE float add_lanes(float sum, float value, uint32_t count)
{
    for (uint32_t lane = 0; lane < WARP && lane < count; lane++)
        sum = sum + __shfl_sync(ALL_LANES, value, (int)lane);
    return sum;
}

static __global__ void __launch_bounds__(THREADS)
    softmax(float *scores, uint64_t groups, uint32_t k)
{
    const uint32_t lane = threadIdx.x % WARP, warps = THREADS / WARP;
    uint64_t g = (uint64_t)blockIdx.x * warps + threadIdx.x / WARP;
    for (; g < groups; g += (uint64_t)gridDim.x * warps) {
        float *run = scores + g * k, most = run[0], sum = 0;
        for (uint32_t i = lane; i < k; i += WARP)
            most = run[i] > most ? run[i] : most;
        for (int w = 16; w; w /= 2) {
            const float other = __shfl_xor_sync(ALL_LANES, most, w);
            most = other > most ? other : most;
        }
        for (uint32_t first = 0; first < k; first += WARP) {
            const uint32_t i = first + lane;
            const float value = i < k ? exponential(run[i] - most) : 0;
            if (i < k)
                run[i] = value;
            sum = add_lanes(sum, value, k - first);
        }
        for (uint32_t i = lane; i < k; i += WARP)
            run[i] = run[i] / sum;
    }
}

static __global__ void __launch_bounds__(THREADS)
    softmax_grad(const float *weights, const float *weight_gradients, uint64_t groups, uint32_t k,
                 float *out_score_gradients)
{
    const uint32_t lane = threadIdx.x % WARP, warps = THREADS / WARP;
    uint64_t g = (uint64_t)blockIdx.x * warps + threadIdx.x / WARP;
    for (; g < groups; g += (uint64_t)gridDim.x * warps) {
        const float *w = weights + g * k, *dw = weight_gradients + g * k;
        float *ds = out_score_gradients + g * k, sum = 0;
        for (uint32_t first = 0; first < k; first += WARP) {
            const uint32_t i = first + lane;
            sum = add_lanes(sum, i < k ? w[i] * dw[i] : 0, k - first);
        }
        for (uint32_t i = lane; i < k; i += WARP)
            ds[i] = w[i] * (dw[i] - sum);
    }
}

static cudaLaunchConfig_t groups_config(uint64_t groups, void *stream)
{
    cudaLaunchConfig_t config = {};
    const uint64_t warps = THREADS / WARP, blocks = (groups + warps - 1) / warps;
    config.blockDim = dim3(THREADS);
    config.gridDim = dim3((unsigned)(blocks < GROUP_BLOCKS ? blocks : GROUP_BLOCKS));
    config.stream = (cudaStream_t)stream;
    return config;
}

extern "C" enum mn_status mn_cuda_softmax(float *scores, uint64_t groups, uint32_t k, void *stream,
                                          mn_error *error)
{
    if (groups == 0 || k == 0)
        return MN_OK;
    const cudaLaunchConfig_t config = groups_config(groups, stream);
    return launched(cudaLaunchKernelEx(&config, softmax, scores, groups, k), error);
}

extern "C" enum mn_status mn_cuda_softmax_grad(const float *weights, const float *weight_gradients,
                                               uint64_t groups, uint32_t k,
                                               float *out_score_gradients, void *stream,
                                               mn_error *error)
{
    if (groups == 0 || k == 0)
        return MN_OK;
    const cudaLaunchConfig_t config = groups_config(groups, stream);
    return launched(cudaLaunchKernelEx(&config, softmax_grad, weights, weight_gradients, groups, k,
                                       out_score_gradients),
                    error);
}
