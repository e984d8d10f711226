/* bf16 copies of f32 arrays, and the products that read them. A copy lies at its array's place in
 * memory of half the arena's size, so that it needs no table to be found; the context only knows
 * which copies are current.
 *
 * What that is for: 12 layers of d 1024 and 32,768 tokens, N = 134 MB being one [tokens][d] array
 * of f32. A layer's products, forward and backward, have 32 N of f32 factors; rounding them for
 * each product would read those and write half, 48 N, in all layers 77 GB or 18 ms at 4.2 TB/s.
 * Written once by the operation that has them in registers they are 8 N, 13 GB or 3 ms. Beside them
 * stand 30 TFLOP of products (43 ms at 700 TFLOP/s), 65 N a layer of all other traffic (25 ms), and
 * attention (10 ms at 200 TFLOP/s): 85 ms, if all that holds, are 0.36 of an H200's 989 TFLOP/s.
 * These are estimates: nothing here has run on a GPU. */
#include "nn_device.h"

static uint16_t *place_of(const mn_cuda_nn *nn, const void *array, uint64_t bytes)
{
    const char *first = (const char *)array;
    if (!nn->bf16 || nn->arena == NULL || first < nn->arena ||
        first + bytes > nn->arena + nn->arena_bytes)
        return NULL;
    return nn->narrow + (first - nn->arena) / 4;
}

void mn_narrow_forget(mn_cuda_nn *nn, const void *array, uint64_t bytes)
{
    const char *first = (const char *)array, *end = first + bytes;
    for (uint32_t i = nn->narrow_copies; i > 0; i--) {
        narrow_copy *copy = nn->narrow_copy_of + i - 1;
        if ((const char *)copy->array < end && first < (const char *)(copy->array + copy->count))
            *copy = nn->narrow_copy_of[--nn->narrow_copies];
    }
}

/* When there is no room, the oldest is forgotten: it will be made again. */
static void remember(mn_cuda_nn *nn, const float *array, uint64_t count)
{
    if (nn->narrow_copies == NARROW_COPIES_MAX)
        nn->narrow_copy_of[0] = nn->narrow_copy_of[--nn->narrow_copies];
    nn->narrow_copy_of[nn->narrow_copies++] = {array, count};
}

uint16_t *mn_narrow_beside(mn_cuda_nn *nn, const float *array, uint64_t count)
{
    uint16_t *place = place_of(nn, array, count * sizeof *array);
    mn_narrow_forget(nn, array, count * sizeof *array);
    if (place)
        remember(nn, array, count);
    return place;
}

extern "C" void mn_cuda_nn_lend_narrow(mn_cuda_nn *nn, const void *arena, uint64_t bytes,
                                       void *narrow)
{
    nn->arena = narrow ? (char *)arena : NULL;
    nn->arena_bytes = bytes, nn->narrow = (uint16_t *)narrow;
    nn->narrow_copies = 0;
}

extern "C" void mn_cuda_nn_written(mn_cuda_nn *nn, const void *array, uint64_t bytes)
{
    mn_narrow_forget(nn, array, bytes);
}

struct narrowing {
    const float *from;
    uint16_t *to;
    template <int V> MEMBER void at(uint64_t i) const
    {
        float values[V];
        get(from + i, values);
        put(values, to + i);
    }
};

enum mn_status mn_narrow_factor(mn_cuda_nn *nn, const float *array, uint64_t count, uint64_t *used,
                                const void **out_factor, mn_error *error)
{
    void *place = place_of(nn, array, count * sizeof *array);
    if (!nn->bf16) {
        *out_factor = array;
        return MN_OK;
    }
    for (uint32_t i = 0; place && i < nn->narrow_copies; i++)
        if (nn->narrow_copy_of[i].array == array && nn->narrow_copy_of[i].count >= count) {
            *out_factor = place;
            return MN_OK;
        }
    enum mn_status status = MN_OK;
    if (place)
        (void)mn_narrow_beside(nn, array, count); /* the place it has */
    else
        status = scratch_at(nn, count * sizeof(uint16_t), used, &place, error);
    if (status)
        return status;
    const narrowing op = {array, (uint16_t *)place};
    *out_factor = place;
    return queue_each(nn, op, count, fours(count, {array}) && (uintptr_t)place % 8 == 0, error);
}

/* ---- Products ---- */

extern "C" uint64_t mn_cuda_nn_gemm_bytes(const mn_cuda_nn *nn, uint64_t m, uint64_t n, uint64_t k)
{
    return nn->bf16 ? rounded_up(m * k * 2, 256) + rounded_up(k * n * 2, 256) : 0;
}

/* Row-major matrices are their transposes to cuBLAS: it makes C^T = op(B)^T op(A)^T. */
extern "C" enum mn_status mn_cuda_nn_gemm(mn_cuda_nn *nn, bool transpose_a, bool transpose_b,
                                          uint64_t m, uint64_t n, uint64_t k, float alpha,
                                          const float *a, const float *b, float beta, float *c,
                                          mn_error *error)
{
    uint64_t used = 0;
    const void *left = NULL, *right = NULL;
    const cudaDataType_t type = nn->bf16 ? CUDA_R_16BF : CUDA_R_32F;
    if (m > INT32_MAX || n > INT32_MAX || k > INT32_MAX || m == 0 || n == 0 || k == 0)
        return mn_fail(error, MN_INVALID, "m", "m, n, k are %llu, %llu, %llu: 1 to 2^31 - 1",
                       (unsigned long long)m, (unsigned long long)n, (unsigned long long)k);
    enum mn_status status = mn_narrow_factor(nn, a, m * k, &used, &left, error);
    if (status == MN_OK)
        status = mn_narrow_factor(nn, b, k * n, &used, &right, error);
    if (status)
        return status;
    mn_narrow_forget(nn, c, m * n * sizeof *c);
    return product_queued(
        cublasGemmEx((cublasHandle_t)nn->cuda.blas, transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N,
                     transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, (int)n, (int)m, (int)k, &alpha, right,
                     type, (int)(transpose_b ? k : n), left, type, (int)(transpose_a ? m : k),
                     &beta, c, CUDA_R_32F, (int)n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        error);
}
