/* Exact product-key search over blocks of tokens whose scores stay in the second cache. */
#include "dispatch.h"

enum {
    BLOCK_BYTES = 1 << 20,
    FEW_TOKENS = 64 /* packing the keys costs more than it saves for fewer */
};

static uint32_t padded_keys(const mn_search *search)
{
    return (search->n + MN_KEYS_PAD - 1) / MN_KEYS_PAD * MN_KEYS_PAD;
}

/* Tokens whose two score lists (f32) fit the block. */
static uint32_t block_tokens(const mn_search *search)
{
    uint64_t steps =
        BLOCK_BYTES / (2 * sizeof(float) * (uint64_t)padded_keys(search) * MN_SCORED_STEP);
    if (steps > MN_SCORED_MAX / MN_SCORED_STEP)
        return MN_SCORED_MAX;
    return steps == 0 ? MN_SCORED_STEP : (uint32_t)steps * MN_SCORED_STEP;
}

/* Scratch: a head's keys, packed, the block's scores by each half, and what selection needs. */
uint64_t mn_search_scratch_bytes(const mn_search *search)
{
    uint64_t floats = ((uint64_t)search->half + block_tokens(search)) * padded_keys(search) * 2;
    return floats * sizeof(float) + mn_select_scratch_bytes(search->n, search->k);
}

static enum mn_status check_search(const mn_search *search, mn_error *error)
{
    const uint32_t n = search->n, k = search->k;
    if (n == 0 || search->half == 0 || search->heads == 0)
        return mn_fail(error, MN_INVALID, "n", "n %u, half %u and heads %u must be at least 1", n,
                       search->half, search->heads);
    if (k == 0 || k > MN_SELECT_MAX || k > (uint64_t)n * n)
        return mn_fail(error, MN_INVALID, "k", "k is %u, must be 1 to the lesser of %u and n*n", k,
                       MN_SELECT_MAX);
    return MN_OK;
}

/* One half's keys [n][half] of a head, and the same packed when there are tokens enough. */
typedef struct half_keys {
    const float *keys;
    float *panels;
} half_keys;

static void half_begin(const mn_isa_table *isa, const mn_search *search, half_keys *half)
{
    if (search->tokens >= FEW_TOKENS)
        isa->pack_keys(half->keys, search->n, search->half, half->panels);
}

/* Scores of `count` tokens by the half's keys, padded_keys apart. */
static void half_score(const mn_isa_table *isa, const mn_search *search, const half_keys *half,
                       const float *queries, uint32_t count, float *out_scores)
{
    const uint32_t query_floats = search->heads * 2 * search->half;
    if (search->tokens >= FEW_TOKENS)
        isa->score(half->panels, search->n, search->half, queries, query_floats, count, out_scores);
    else
        mn_gemm(false, true, count, search->n, search->half, 1, queries, query_floats, half->keys,
                search->half, 0, out_scores, padded_keys(search));
}

enum mn_status mn_product_search(const mn_search *search, const float *queries, const float *keys,
                                 uint64_t *out_rows, float *out_scores, void *scratch,
                                 mn_error *error)
{
    const mn_isa_table *isa = mn_isa_table_best();
    enum mn_status status = check_search(search, error);
    if (status != MN_OK)
        return status;
    const uint32_t n = search->n, half = search->half, heads = search->heads, k = search->k;
    const uint32_t padded = padded_keys(search), block = block_tokens(search);
    const uint32_t query_floats = heads * 2 * half;
    float *panels = scratch, *scores1 = panels + (size_t)padded * half * 2;
    float *scores2 = scores1 + (size_t)padded * block;
    void *select_scratch = scores2 + (size_t)padded * block;
    for (uint32_t h = 0; h < heads; h++) {
        const float *head_keys = keys + (size_t)h * 2 * n * half;
        half_keys first = {head_keys, panels};
        half_keys second = {head_keys + (size_t)n * half, panels + (size_t)padded * half};
        half_begin(isa, search, &first);
        half_begin(isa, search, &second);
        for (uint64_t t = 0; t < search->tokens; t += block) {
            uint32_t count = search->tokens - t < block ? (uint32_t)(search->tokens - t) : block;
            const float *query = queries + t * query_floats + (size_t)h * 2 * half;
            half_score(isa, search, &first, query, count, scores1);
            half_score(isa, search, &second, query + half, count, scores2);
            for (uint32_t i = 0; i < count; i++) {
                uint64_t place = ((t + i) * heads + h) * k;
                if (!isa->kernels.select(scores1 + (size_t)i * padded, scores2 + (size_t)i * padded,
                                         n, k, out_rows + place, out_scores + place,
                                         select_scratch))
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
