/* The scalar arithmetic that CPU and CUDA share, so that both have the same bits: conversions, e^x,
 * and the making of initial values. Whoever includes it says what a function is (SCALAR) and which
 * square root rounds to nearest (SCALAR_SQRT). */
#ifndef MN_KERNELS_SCALAR_H
#define MN_KERNELS_SCALAR_H

#include <stdint.h>
#include <string.h>

SCALAR uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

SCALAR float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

SCALAR float bf16_widen(uint16_t value) { return float_of((uint32_t)value << 16); }

/* Nearest, ties to even; NaN stays NaN. */
SCALAR uint16_t bf16_nearest(float value)
{
    uint32_t bits = bits_of(value);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    uint32_t quiet = (bits >> 16) | 0x40;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
}

/* Up with the probability of the part cut off: 16 random bits are added below the kept mantissa.
 * Infinities and NaN stay what they are. */
SCALAR uint16_t bf16_stochastic(float value, uint16_t noise)
{
    uint32_t bits = bits_of(value);
    uint32_t rounded = (bits + noise) >> 16;
    uint32_t special = (bits >> 16) | ((bits & 0x7fffffff) > 0x7f800000 ? 0x40 : 0);
    return (uint16_t)((bits & 0x7f800000) == 0x7f800000 ? special : rounded);
}

/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11,
 * §3.3). */
SCALAR void philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out_words[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c0 = n0, c1 = (uint32_t)p1, c2 = n2, c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    out_words[0] = c0, out_words[1] = c1, out_words[2] = c2, out_words[3] = c3;
}

/* A word as a number in [0, 1), of 24 bits. */
SCALAR float unit_of(uint32_t word) { return (float)(int32_t)(word >> 8) * 0x1p-24f; }

/* ln x for x in (0, 1]: x = 2^e m with m in [sqrt 1/2, sqrt 2), then the odd series of
 * ln((1 + s)/(1 - s)), s = (m - 1)/(m + 1), |s| < 0.172: the first term left out is below 1e-9. */
SCALAR float logarithm(float x)
{
    uint32_t bits = bits_of(x) + (0x3f800000 - 0x3f3504f3);
    float e = (float)((int32_t)(bits >> 23) - 127);
    float m = float_of((bits & 0x7fffff) + 0x3f3504f3);
    float s = (m - 1.0f) / (m + 1.0f), t = s * s;
    float series = t * (1.0f / 9) + 1.0f / 7;
    series = series * t + 1.0f / 5;
    series = series * t + 1.0f / 3;
    series = series * t + 1.0f;
    return e * 0.693147181f + 2.0f * s * series;
}

/* e^r for |r| <= ln 2 / 2: seven terms of the Taylor series suffice. */
SCALAR float exp_series(float r)
{
    float series = r * (1.0f / 5040) + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    return series * r + 1.0f;
}

/* e^x for x <= 0, to 1e-7 of the value; below the smallest normal number: 0. x = n ln 2 + r with
 * |r| <= ln 2 / 2. */
SCALAR float exponential(float x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    float clamped = x > -87.0f ? x : -87.0f;
    float n = clamped * 1.44269504f + magic;
    float whole = n - magic;
    float r = clamped - whole * 0.693359375f;
    r = r + whole * 2.12194440e-4f;
    float scale = float_of((bits_of(n) + 127) << 23);
    return x < -87.0f ? 0.0f : exp_series(r) * scale;
}

/* Box-Muller: two words give two normal values. The angle 2 pi word / 2^32 is taken to within pi/4
 * of a multiple of pi/2, where six terms of the Taylor series leave less than 3e-8. */
SCALAR void normal_pair(uint32_t radius_word, uint32_t angle_word, float *out_first,
                        float *out_second)
{
    float u = (float)(int32_t)((radius_word >> 8) + 1) * 0x1p-24f;
    float radius = SCALAR_SQRT(-2.0f * logarithm(u));
    uint32_t quadrant = (angle_word + 0x20000000u) >> 30;
    float x = (float)(int32_t)(angle_word - (quadrant << 30)) * (6.283185307f * 0x1p-32f);
    float y = x * x;
    float sine = y * (1.0f / 362880) - 1.0f / 5040;
    sine = sine * y + 1.0f / 120;
    sine = sine * y - 1.0f / 6;
    sine = (sine * y + 1.0f) * x;
    float cosine = y * (1.0f / 40320) - 1.0f / 720;
    cosine = cosine * y + 1.0f / 24;
    cosine = cosine * y - 1.0f / 2;
    cosine = cosine * y + 1.0f;
    float first = quadrant & 1 ? sine : cosine, second = quadrant & 1 ? cosine : sine;
    uint32_t first_sign = ((quadrant + 1) & 2) << 30, second_sign = (quadrant & 2) << 30;
    *out_first = radius * float_of(bits_of(first) ^ first_sign);
    *out_second = radius * float_of(bits_of(second) ^ second_sign);
}

#endif
