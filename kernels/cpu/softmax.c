/* Softmax over short runs, and its gradient. */
#include "tile.h"

/* e^x for x <= 0, to 1e-7 of the value; below the smallest normal number: 0. x = n ln 2 + r with
 * |r| <= ln 2 / 2, where seven terms of the Taylor series suffice. */
INLINE float exponential(float x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    float clamped = x > -87.0f ? x : -87.0f;
    float n = clamped * 1.44269504f + magic;
    float whole = n - magic;
    float r = clamped - whole * 0.693359375f;
    r = r + whole * 2.12194440e-4f;
    float series = r * (1.0f / 5040) + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    float scale = float_of((bits_of(n) + 127) << 23);
    return x < -87.0f ? 0.0f : series * scale;
}

void ISA(softmax)(float *scores, uint64_t groups, uint32_t k)
{
    for (uint64_t g = 0; g < groups; g++, scores += k) {
        float most = scores[0], sum = 0;
        for (uint32_t i = 1; i < k; i++)
            most = scores[i] > most ? scores[i] : most;
        for (uint32_t i = 0; i < k; i++)
            scores[i] = exponential(scores[i] - most);
        for (uint32_t i = 0; i < k; i++)
            sum += scores[i];
        for (uint32_t i = 0; i < k; i++)
            scores[i] = scores[i] / sum;
    }
}

void ISA(softmax_grad)(const float *weights, const float *weight_gradients, uint64_t groups,
                       uint32_t k, float *out_score_gradients)
{
    for (uint64_t g = 0; g < groups; g++) {
        const float *w = weights + g * k, *dw = weight_gradients + g * k;
        float *restrict ds = out_score_gradients + g * k, sum = 0;
        for (uint32_t i = 0; i < k; i++)
            sum += w[i] * dw[i];
        for (uint32_t i = 0; i < k; i++)
            ds[i] = w[i] * (dw[i] - sum);
    }
}

void ISA(search_grad)(const mn_search *search, const float *queries, const float *keys,
                      const uint64_t *rows, const float *score_gradients, float *query_gradients,
                      float *key_gradients)
{
    const uint32_t n = search->n, half = search->half, heads = search->heads, k = search->k;
    const size_t key_set = (size_t)n * half;
    for (uint64_t i = 0; i < search->tokens * heads; i++) {
        const float *query = queries + i * 2 * half;
        float *query_gradient = query_gradients + i * 2 * half;
        for (uint64_t j = i * k; j < (i + 1) * k; j++) {
            const uint64_t picked[2] = {rows[j] / n, rows[j] % n};
            const float ds = score_gradients[j];
            for (uint32_t side = 0; side < 2; side++) {
                size_t place = (i % heads * 2 + side) * key_set + picked[side] * half;
                const float *restrict key = keys + place, *restrict q = query + side * half;
                float *restrict dkey = key_gradients + place;
                float *restrict dq = query_gradient + side * half;
                for (uint32_t c = 0; c < half; c++) {
                    dq[c] = dq[c] + ds * key[c];
                    dkey[c] = dkey[c] + ds * q[c];
                }
            }
        }
    }
}
