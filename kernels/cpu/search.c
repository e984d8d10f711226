/* Exact product-key search over blocks of tokens whose scores stay in the second cache. */
#include "dispatch.h"

enum { BLOCK_BYTES = 1 << 20, BLOCK_TOKENS_MAX = 256, BLOCK_TOKENS_MIN = 16 };

/* Tokens whose two score lists (f32) fit the block. */
static uint32_t block_tokens(const mn_search *search)
{
    uint64_t tokens = BLOCK_BYTES / (2 * sizeof(float) * (uint64_t)search->n);
    if (tokens > BLOCK_TOKENS_MAX)
        tokens = BLOCK_TOKENS_MAX;
    return tokens < BLOCK_TOKENS_MIN ? BLOCK_TOKENS_MIN : (uint32_t)tokens;
}

uint64_t mn_search_scratch_bytes(const mn_search *search)
{
    uint64_t scores = 2 * sizeof(float) * (uint64_t)search->n * block_tokens(search);
    return ((scores + 63) & ~UINT64_C(63)) + mn_select_scratch_bytes(search->n, search->k);
}

enum mn_status mn_product_search(const mn_search *search, const float *queries, const float *keys,
                                 uint64_t *out_rows, float *out_scores, void *scratch,
                                 mn_error *error)
{
    const mn_kernels *kernels = mn_kernels_best();
    const uint32_t n = search->n, half = search->half, heads = search->heads, k = search->k;
    if (n == 0 || half == 0 || heads == 0)
        return mn_fail(error, MN_INVALID, "n", "n %u, half %u and heads %u must be at least 1", n,
                       half, heads);
    if (k == 0 || k > MN_SELECT_MAX || k > (uint64_t)n * n)
        return mn_fail(error, MN_INVALID, "k", "k is %u, must be 1 to the lesser of %u and n*n", k,
                       MN_SELECT_MAX);
    const uint32_t block = block_tokens(search), query_floats = heads * 2 * half;
    float *scores1 = scratch, *scores2 = scores1 + (size_t)n * block;
    void *select_scratch =
        (char *)scratch + mn_search_scratch_bytes(search) - mn_select_scratch_bytes(n, k);
    for (uint64_t t = 0; t < search->tokens; t += block) {
        uint32_t count = search->tokens - t < block ? (uint32_t)(search->tokens - t) : block;
        for (uint32_t h = 0; h < heads; h++) {
            const float *query = queries + t * query_floats + (size_t)h * 2 * half;
            const float *key = keys + (size_t)h * 2 * n * half;
            mn_gemm(false, true, count, n, half, 1, query, query_floats, key, half, 0, scores1, n);
            mn_gemm(false, true, count, n, half, 1, query + half, query_floats,
                    key + (size_t)n * half, half, 0, scores2, n);
            for (uint32_t i = 0; i < count; i++) {
                uint64_t place = ((t + i) * heads + h) * k;
                if (!kernels->select(scores1 + (size_t)i * n, scores2 + (size_t)i * n, n, k,
                                     out_rows + place, out_scores + place, select_scratch))
                    return mn_fail(error, MN_INVALID, "scores",
                                   "a score of token %llu, head %u is not a number",
                                   (unsigned long long)(t + i), h);
            }
        }
    }
    return MN_OK;
}

void mn_product_search_grad_heads(const mn_search *search, uint32_t first_head, uint32_t head_count,
                                  const float *queries, const float *keys, const uint64_t *rows,
                                  const float *score_gradients, float *query_gradients,
                                  float *key_gradients)
{
    for (uint32_t head = first_head; head < first_head + head_count; head++)
        mn_isa_table_best()->search_grad(search, head, queries, keys, rows, score_gradients,
                                         query_gradients, key_gradients);
}

void mn_product_search_grad(const mn_search *search, const float *queries, const float *keys,
                            const uint64_t *rows, const float *score_gradients,
                            float *query_gradients, float *key_gradients)
{
    mn_product_search_grad_heads(search, 0, search->heads, queries, keys, rows, score_gradients,
                                 query_gradients, key_gradients);
}
