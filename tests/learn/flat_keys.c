#include "flat_keys.h"

#include <assert.h>
#include <stdlib.h>

flat_keys flat_keys_in_use;

/* The k best of n scores, best first, the lower row of equals: by insertion. */
static void select_best(const float *scores, uint64_t n, uint32_t k, uint64_t *out_rows,
                        float *out_scores)
{
    uint32_t held = 0;
    for (uint64_t row = 0; row < n; row++) {
        if (held == k && !(scores[row] > out_scores[k - 1]))
            continue;
        uint32_t place = held < k ? held++ : k - 1;
        for (; place > 0 && scores[row] > out_scores[place - 1]; place--) {
            out_scores[place] = out_scores[place - 1];
            out_rows[place] = out_rows[place - 1];
        }
        out_scores[place] = scores[row];
        out_rows[place] = row;
    }
}

enum mn_status __wrap_mn_nn_search(const mn_search *search, const float *queries, const float *keys,
                                   uint64_t *out_rows, float *out_scores, void *scratch,
                                   mn_error *error)
{
    enum { BLOCK = 64 };
    if (!flat_keys_in_use.keys)
        return __real_mn_nn_search(search, queries, keys, out_rows, out_scores, scratch, error);
    uint64_t rows = (uint64_t)search->n * search->n;
    uint32_t dim = 2 * search->half, wide = search->heads * dim;
    float *scores = malloc(BLOCK * rows * sizeof *scores);
    assert(scores);
    for (uint64_t first = 0; first < search->tokens; first += BLOCK) {
        uint64_t left = search->tokens - first;
        uint32_t count = left < BLOCK ? (uint32_t)left : BLOCK;
        for (uint32_t h = 0; h < search->heads; h++) {
            mn_gemm(false, true, count, (uint32_t)rows, dim, 1, queries + first * wide + h * dim,
                    wide, flat_keys_in_use.keys + h * rows * dim, dim, 0, scores, (uint32_t)rows);
            for (uint32_t t = 0; t < count; t++) {
                uint64_t at = ((first + t) * search->heads + h) * search->k;
                select_best(scores + t * rows, rows, search->k, out_rows + at, out_scores + at);
            }
        }
    }
    free(scores);
    return MN_OK;
}

void __wrap_mn_nn_search_grad(const mn_search *search, const float *queries, const float *keys,
                              const uint64_t *rows, const float *score_gradients,
                              float *query_gradients, float *key_gradients)
{
    if (!flat_keys_in_use.keys) {
        __real_mn_nn_search_grad(search, queries, keys, rows, score_gradients, query_gradients,
                                 key_gradients);
        return;
    }
    uint32_t dim = 2 * search->half;
    uint64_t of_head = (uint64_t)search->n * search->n * dim;
    for (uint64_t q = 0; q < search->tokens * search->heads; q++)
        for (uint32_t j = 0; j < search->k; j++) {
            float g = score_gradients[q * search->k + j];
            uint64_t at = q % search->heads * of_head + rows[q * search->k + j] * dim;
            for (uint32_t c = 0; c < dim; c++) {
                query_gradients[q * dim + c] += g * flat_keys_in_use.keys[at + c];
                flat_keys_in_use.gradients[at + c] += g * queries[q * dim + c];
            }
        }
}
