/* Vectors for SSE2, which every x86-64 CPU has: the few operations that neither GNU C vectors nor
 * loops express. The three lanes.h (plain, avx2, avx512) declare the same names. */
#ifndef MN_KERNELS_LANES_H
#define MN_KERNELS_LANES_H

#include <immintrin.h>
#include <stdint.h>

#define LANES     4
#define LANES_ISA MN_ISA_PLAIN
/* Rows of two vectors that the registers hold beside the operands of a product. */
#define LANES_ROWS 6

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef float vhalf __attribute__((vector_size(2 * LANES))); /* half as many, for f64 sums */
typedef double vd __attribute__((vector_size(4 * LANES)));
typedef uint64_t vw __attribute__((vector_size(4 * LANES)));

/* Stores past the caches; `to` is aligned to the vector. */
static inline void lanes_stream(void *to, vw bits)
{
    _mm_stream_si128((__m128i *)to, (__m128i)bits);
}

/* Products of the low 32 bits of each 64. */
static inline vw lanes_multiply(vw a, vw b) { return (vw)_mm_mul_epu32((__m128i)a, (__m128i)b); }

/* a * b + sum: rounded twice, where the others round once. */
static inline vf lanes_fma(vf a, vf b, vf sum) { return a * b + sum; }

/* sum + x * x of f32 values widened: their product is exact, so fused or not the bits are the
 * same. */
static inline vd lanes_add_square(vd sum, vd x) { return sum + x * x; }

/* Four bf16 as f32. */
static inline vf lanes_widen(const void *from)
{
    return (vf)_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64(from));
}

/* Four signed bytes as f32. */
static inline vf lanes_signed(const void *from)
{
    int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    __m128i low = _mm_cvtsi32_si128(four), pairs = _mm_unpacklo_epi8(low, low);
    return (vf)_mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(pairs, pairs), 24));
}

/* The greater, lane by lane; b where a is NaN. */
static inline vf lanes_max(vf a, vf b) { return _mm_max_ps(a, b); }

/* Bit i says a[i] >= b[i] (a > b; a is NaN). */
static inline uint32_t lanes_ge(vf a, vf b)
{
    return (uint32_t)_mm_movemask_ps(_mm_cmpge_ps(a, b));
}
static inline uint32_t lanes_gt(vf a, vf b)
{
    return (uint32_t)_mm_movemask_ps(_mm_cmpgt_ps(a, b));
}
static inline uint32_t lanes_nan(vf a) { return (uint32_t)_mm_movemask_ps(_mm_cmpunord_ps(a, a)); }

/* Writes the lanes of `values` whose bit is set, and first + their lane, packed; may write LANES
 * elements of each. Returns their number. */
static inline uint32_t lanes_pack(vf values, uint32_t first, uint32_t bits, float *out_values,
                                  uint32_t *out_indices)
{
    uint32_t count = 0;
    for (; bits; bits &= bits - 1, count++) {
        uint32_t lane = (uint32_t)__builtin_ctz(bits);
        out_values[count] = values[lane];
        out_indices[count] = first + lane;
    }
    return count;
}

#endif
