/* Matrix products by OpenBLAS: the only file that knows it. */
#include "mn_kernels.h"

#include <cblas.h>

void mn_gemm(bool transpose_a, bool transpose_b, uint32_t m, uint32_t n, uint32_t k, float alpha,
             const float *a, uint32_t lda, const float *b, uint32_t ldb, float beta, float *c,
             uint32_t ldc)
{
    cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans,
                transpose_b ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k, alpha, a, (int)lda,
                b, (int)ldb, beta, c, (int)ldc);
}

void mn_gemm_threads(uint32_t threads) { openblas_set_num_threads((int)threads); }
