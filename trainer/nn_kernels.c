/* nn_cpu.h's products, search and softmax, by the kernels. */
#include "nn_cpu.h"

static uint32_t leading(bool transpose, uint64_t rows, uint64_t columns)
{
    return (uint32_t)(transpose ? rows : columns);
}

void mn_nn_gemm(bool transpose_a, bool transpose_b, uint64_t m, uint64_t n, uint64_t k,
                mn_real alpha, const mn_real *a, const mn_real *b, mn_real beta, mn_real *c)
{
    mn_gemm(transpose_a, transpose_b, (uint32_t)m, (uint32_t)n, (uint32_t)k, alpha, a,
            leading(transpose_a, m, k), b, leading(transpose_b, k, n), beta, c, (uint32_t)n);
}

uint64_t mn_nn_search_bytes(const mn_search *search) { return mn_search_scratch_bytes(search); }

enum mn_status mn_nn_search(const mn_search *search, const mn_real *queries, const mn_real *keys,
                            uint64_t *out_rows, mn_real *out_scores, void *scratch, mn_error *error)
{
    return mn_product_search(search, queries, keys, out_rows, out_scores, scratch, error);
}

void mn_nn_search_grad(const mn_search *search, const mn_real *queries, const mn_real *keys,
                       const uint64_t *rows, const mn_real *score_gradients,
                       mn_real *query_gradients, mn_real *key_gradients)
{
    mn_product_search_grad(search, queries, keys, rows, score_gradients, query_gradients,
                           key_gradients);
}

void mn_nn_softmax(mn_real *scores, uint64_t groups, uint32_t k)
{
    mn_kernels_best()->softmax(scores, groups, k);
}

void mn_nn_softmax_grad(const mn_real *weights, const mn_real *d_weights, uint64_t groups,
                        uint32_t k, mn_real *out_d_scores)
{
    mn_kernels_best()->softmax_grad(weights, d_weights, groups, k, out_d_scores);
}
