/* What the kernels behind mn_nn_cuda.h share: the context, bf16 copies beside f32 arrays, vectors,
 * and launches. */
#ifndef MN_CUDA_NN_DEVICE_H
#define MN_CUDA_NN_DEVICE_H

#include "device.h"
#include "mn_nn_cuda.h"

#include <cublas_v2.h>

#define MEMBER __device__ __forceinline__

/* An array of the arena whose bf16 copy holds what it holds. */
struct narrow_copy {
    const float *array;
    uint64_t count;
};
static const uint32_t NARROW_COPIES_MAX = 1024;

struct mn_cuda_nn {
    mn_cuda cuda;
    cudaStream_t stream, copies;
    cudaEvent_t worked, copied;
    uint64_t *pinned, *number; /* [8] each: host and device memory for small answers */
    char *scratch, *arena;
    uint64_t scratch_bytes, arena_bytes;
    uint16_t *narrow;
    bool bf16;
    uint32_t narrow_copies;
    narrow_copy narrow_copy_of[NARROW_COPIES_MAX];
};

/* nn_narrow.cu. Where an operation that writes array [count] also writes it in bf16; NULL: nowhere.
 * What was known of the array's copy is forgotten; with a place, the copy is then current. */
uint16_t *mn_narrow_beside(mn_cuda_nn *nn, const float *array, uint64_t count);
/* The array is written, and its copy is not. */
void mn_narrow_forget(mn_cuda_nn *nn, const void *array, uint64_t bytes);
/* A factor in the context's precision: the array itself, or its copy, which is made now unless it
 * is current: in the arena's narrow memory or else at *used in the scratch, which moves on. */
enum mn_status mn_narrow_factor(mn_cuda_nn *nn, const float *array, uint64_t count, uint64_t *used,
                                const void **out_factor, mn_error *error);

static inline uint64_t rounded_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

/* bytes of scratch from *used on, which moves on. */
static inline enum mn_status scratch_at(const mn_cuda_nn *nn, uint64_t bytes, uint64_t *used,
                                        void **out_memory, mn_error *error)
{
    if (nn->scratch_bytes < *used || nn->scratch_bytes - *used < bytes)
        return mn_fail(error, MN_INVALID, "scratch", "%llu bytes were lent, %llu are needed",
                       (unsigned long long)nn->scratch_bytes, (unsigned long long)(*used + bytes));
    *out_memory = nn->scratch + *used;
    *used = rounded_up(*used + bytes, 256);
    return MN_OK;
}

static inline enum mn_status product_queued(cublasStatus_t result, mn_error *error)
{
    if (result == CUBLAS_STATUS_SUCCESS)
        return MN_OK;
    return mn_fail(error, MN_UNAVAILABLE, "device", "cuBLAS refused: %s",
                   cublasGetStatusString(result));
}

/* ---- Elementary functions ---- */

/* trainer/nn_math.h's real_exp, with its bits. */
DEVICE float real_exp(float x)
{
    const float round_bias = 12582912.0f;
    const bool tiny = x < -60.0f;
    x = x > 60.0f ? 60.0f : x;
    x = tiny ? -60.0f : x;
    const float sum = x * 1.44269504f + round_bias, n = sum - round_bias;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    const float power = float_of((bits_of(sum) << 23) + 0x3f800000u);
    return tiny ? 0 : exp_series(r) * power;
}

DEVICE float sigmoid(float x) { return 1 / (1 + real_exp(-x)); }

/* ---- V floats at a time ---- */

template <int V> DEVICE void get(const float *from, float (&out)[V])
{
    const columns<float, V> in = load_columns<float, V>(from);
#pragma unroll
    for (int e = 0; e < V; e++)
        out[e] = column_of(in, e);
}

/* And at the same place of the bf16 copy, if there is one. */
template <int V>
DEVICE void put_both(const float (&values)[V], float *to, uint16_t *narrow, uint64_t at)
{
    put(values, to + at);
    if (narrow != NULL)
        put(values, narrow + at);
}

/* ---- Launches ---- */

/* Whether whole vectors of four floats begin at all of them. */
static inline bool fours(uint64_t count, std::initializer_list<const void *> arrays)
{
    uintptr_t bits = count % 4 ? 1 : 0;
    for (const void *array : arrays)
        bits |= (uintptr_t)array;
    return bits % 16 == 0;
}

static const uint64_t ELEMENT_BLOCKS = 1u << 16;

/* op.at<V>(i) for every vector i of n elements. */
template <int V, typename Operation>
static __global__ void __launch_bounds__(THREADS) each(Operation op, uint64_t n)
{
    uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x;
    for (; i < n / V; i += (uint64_t)gridDim.x * THREADS)
        op.template at<V>(i * V);
}

template <typename Operation>
static enum mn_status queue_each(const mn_cuda_nn *nn, const Operation &op, uint64_t n, bool four,
                                 mn_error *error)
{
    if (n == 0)
        return MN_OK;
    cudaLaunchConfig_t config = {};
    const uint64_t blocks = (n / (four ? 4 : 1) + THREADS - 1) / THREADS;
    config.blockDim = dim3(THREADS);
    config.gridDim = dim3((unsigned)(blocks < ELEMENT_BLOCKS ? blocks : ELEMENT_BLOCKS));
    config.stream = nn->stream;
    return launched(four ? cudaLaunchKernelEx(&config, each<4, Operation>, op, n)
                         : cudaLaunchKernelEx(&config, each<1, Operation>, op, n),
                    error);
}

#endif
