/* Softmax over short runs, and its gradient. */
#include "tile.h"

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
