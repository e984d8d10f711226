/* nn_cpu.h's products, search and softmax for the double build: obvious loops. Rows are selected as
 * the kernels do, from scores rounded to f32, over all pairs of keys; scores are then double again.
 */
#include <assert.h>

#include "nn_cpu.h"

void mn_nn_gemm(bool transpose_a, bool transpose_b, uint64_t m, uint64_t n, uint64_t k,
                mn_real alpha, const mn_real *a, const mn_real *b, mn_real beta, mn_real *c)
{
    for (uint64_t i = 0; i < m; i++)
        for (uint64_t j = 0; j < n; j++) {
            mn_real sum = 0;
            for (uint64_t l = 0; l < k; l++)
                sum += (transpose_a ? a[l * m + i] : a[i * k + l]) *
                       (transpose_b ? b[j * k + l] : b[l * n + j]);
            c[i * n + j] = alpha * sum + (beta != 0 ? beta * c[i * n + j] : 0);
        }
}

enum { KEYS_MAX = 16 };

uint64_t mn_nn_search_bytes(const mn_search *search)
{
    (void)search; /* its arrays are on the stack */
    return 0;
}

static mn_real dot(uint32_t n, const mn_real *x, const mn_real *y)
{
    mn_real sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}

/* Key indices by (f32 score descending, index). */
static void rank_keys(uint32_t n, const mn_real *scores, uint32_t *out_order)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t place = i;
        while (place && (float)scores[out_order[place - 1]] < (float)scores[i]) {
            out_order[place] = out_order[place - 1];
            place--;
        }
        out_order[place] = i;
    }
}

/* The k best pairs by (f32 sum descending, rank a, rank b), one after the other. */
static void select_pairs(uint32_t n, uint32_t k, const mn_real *scores1, const mn_real *scores2,
                         uint64_t *out_rows, mn_real *out_scores)
{
    uint32_t order1[KEYS_MAX], order2[KEYS_MAX];
    bool taken[KEYS_MAX][KEYS_MAX] = {{false}};
    rank_keys(n, scores1, order1);
    rank_keys(n, scores2, order2);
    for (uint32_t j = 0; j < k; j++) {
        uint32_t best_a = n, best_b = n;
        float best = 0;
        for (uint32_t a = 0; a < n; a++)
            for (uint32_t b = 0; b < n; b++) {
                float sum = (float)scores1[order1[a]] + (float)scores2[order2[b]];
                if (!taken[a][b] && (best_a == n || sum > best))
                    best = sum, best_a = a, best_b = b;
            }
        taken[best_a][best_b] = true;
        out_rows[j] = (uint64_t)order1[best_a] * n + order2[best_b];
        out_scores[j] = scores1[order1[best_a]] + scores2[order2[best_b]];
    }
}

enum mn_status mn_nn_search(const mn_search *search, const mn_real *queries, const mn_real *keys,
                            uint64_t *out_rows, mn_real *out_scores, void *scratch, mn_error *error)
{
    (void)scratch; /* none asked for */
    (void)error;   /* cannot fail */
    uint32_t n = search->n, half = search->half, k = search->k;
    assert(n <= KEYS_MAX);
    for (uint64_t q = 0; q < search->tokens * search->heads; q++) {
        const mn_real *query = queries + q * 2 * half;
        const mn_real *head_keys = keys + q % search->heads * 2 * n * half;
        mn_real scores[2][KEYS_MAX];
        for (uint32_t side = 0; side < 2; side++)
            for (uint32_t i = 0; i < n; i++)
                scores[side][i] = dot(half, query + side * half, head_keys + (side * n + i) * half);
        select_pairs(n, k, scores[0], scores[1], out_rows + q * k, out_scores + q * k);
    }
    return MN_OK;
}

void mn_nn_search_grad(const mn_search *search, const mn_real *queries, const mn_real *keys,
                       const uint64_t *rows, const mn_real *score_gradients,
                       mn_real *query_gradients, mn_real *key_gradients)
{
    uint32_t n = search->n, half = search->half;
    for (uint64_t q = 0; q < search->tokens * search->heads; q++)
        for (uint32_t j = 0; j < search->k; j++) {
            uint64_t row = rows[q * search->k + j];
            mn_real g = score_gradients[q * search->k + j];
            for (uint32_t side = 0; side < 2; side++) {
                uint64_t key = (q % search->heads * 2 + side) * n + (side ? row % n : row / n);
                uint64_t part = q * 2 * half + side * half;
                for (uint32_t i = 0; i < half; i++) {
                    query_gradients[part + i] += g * keys[key * half + i];
                    key_gradients[key * half + i] += g * queries[part + i];
                }
            }
        }
}

void mn_nn_softmax(mn_real *scores, uint64_t groups, uint32_t k)
{
    for (uint64_t g = 0; g < groups; g++, scores += k) {
        mn_real highest = scores[0], sum = 0; /* best first */
        for (uint32_t j = 0; j < k; j++)
            sum += scores[j] = exp(scores[j] - highest);
        for (uint32_t j = 0; j < k; j++)
            scores[j] /= sum;
    }
}

void mn_nn_softmax_grad(const mn_real *weights, const mn_real *d_weights, uint64_t groups,
                        uint32_t k, mn_real *out_d_scores)
{
    for (uint64_t first = 0; first < groups * k; first += k) {
        mn_real mean = dot(k, weights + first, d_weights + first);
        for (uint64_t i = first; i < first + k; i++)
            out_d_scores[i] = weights[i] * (d_weights[i] - mean);
    }
}
