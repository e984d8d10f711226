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
