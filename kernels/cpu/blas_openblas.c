/* Matrix products by OpenBLAS: the only file that knows it. */
#include "mn_kernels.h"

#include <cblas.h>
#include <stdlib.h>
#include <string.h>

/* Exported by builds that choose their kernels at run time (Debian's is one). */
extern void gotoblas_dynamic_init(void) __attribute__((weak));
extern void gotoblas_dynamic_quit(void) __attribute__((weak));

/* OpenBLAS knows CPUs by model number. Debian 12's (0.3.21) meets newer ones with its oldest
 * kernels, "Prescott", on SSE3: a fifth of the speed on a Xeon of model 207. In that case it is
 * made to choose again, told what the CPU can do, as a user would with OPENBLAS_CORETYPE (whose own
 * word stands). Before main: no thread computes yet. */
__attribute__((constructor)) static void choose_core(void)
{
    const char *core = NULL;
    if (mn_kernels_for(MN_ISA_AVX512))
        core = "SkylakeX";
    else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        core = "Haswell";
    if (core == NULL || gotoblas_dynamic_init == NULL || gotoblas_dynamic_quit == NULL ||
        strcmp(openblas_get_corename(), "Prescott") != 0 ||
        setenv("OPENBLAS_CORETYPE", core, 0) != 0)
        return;
    gotoblas_dynamic_quit();
    gotoblas_dynamic_init();
}

void mn_gemm(bool transpose_a, bool transpose_b, uint32_t m, uint32_t n, uint32_t k, float alpha,
             const float *a, uint32_t lda, const float *b, uint32_t ldb, float beta, float *c,
             uint32_t ldc)
{
    cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans,
                transpose_b ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k, alpha, a, (int)lda,
                b, (int)ldb, beta, c, (int)ldc);
}

void mn_gemm_threads(uint32_t threads) { openblas_set_num_threads((int)threads); }
