/* Elementary functions of mn_real for loops that the compiler turns into vector code. The double
 * build of the tests puts libm in its place. Private to the trainer. */
#ifndef MN_NN_MATH_H
#define MN_NN_MATH_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* e^x, relative error below 3e-7 for |x| <= 60; 0 below, above as at 60; NaN stays NaN. Beside the
 * 1 that softmax and sigmoid add it to, e^-60 is nothing; but were it kept down to e^-87, its
 * products with gradients would be subnormal, and a model that diverges would take 15 times as long
 * a step. x = n ln 2 + r with n whole and |r| <= ln 2 / 2, Taylor's series of e^r to the 7th power,
 * times 2^n by exponent bits. Adding 1.5 * 2^23 rounds to a whole number and leaves n in the low
 * bits of the sum. */
static inline float real_exp(float x)
{
    const float round_bias = 12582912.0f;
    bool tiny = x < -60.0f;
    x = x > 60.0f ? 60.0f : x;
    x = tiny ? -60.0f : x;
    float sum = x * 1.44269504f + round_bias;
    float n = sum - round_bias;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float series = 1.0f / 5040.0f;
    series = series * r + 1.0f / 720.0f;
    series = series * r + 1.0f / 120.0f;
    series = series * r + 1.0f / 24.0f;
    series = series * r + 1.0f / 6.0f;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &sum, sizeof bits);
    bits = (bits << 23) + 0x3f800000u;
    float power;
    memcpy(&power, &bits, sizeof power);
    return tiny ? 0 : series * power;
}

#endif
