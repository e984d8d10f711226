/* kernels/cpu/blas_openblas.c where no OpenBLAS is: obvious loops. */
#include "mn_kernels.h"

void mn_gemm(bool transpose_a, bool transpose_b, uint32_t m, uint32_t n, uint32_t k, float alpha,
             const float *a, uint32_t lda, const float *b, uint32_t ldb, float beta, float *c,
             uint32_t ldc)
{
    for (uint64_t i = 0; i < m; i++)
        for (uint64_t j = 0; j < n; j++) {
            float sum = 0, *to = c + i * ldc + j;
            for (uint64_t s = 0; s < k; s++)
                sum += (transpose_a ? a[s * lda + i] : a[i * lda + s]) *
                       (transpose_b ? b[j * ldb + s] : b[s * ldb + j]);
            *to = alpha * sum + (beta == 0 ? 0 : beta * *to);
        }
}

void mn_gemm_threads(uint32_t threads) { (void)threads; /* one */ }
