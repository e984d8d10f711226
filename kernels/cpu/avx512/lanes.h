/* Vectors for AVX-512: the few operations that neither GNU C vectors nor loops express.
 * The three lanes.h (plain, avx2, avx512) declare the same names. */
#ifndef MN_KERNELS_LANES_H
#define MN_KERNELS_LANES_H

#include <immintrin.h>
#include <stdint.h>

#define LANES     16
#define LANES_ISA MN_ISA_AVX512
/* Rows of two vectors that the registers hold beside the operands of a product. */
#define LANES_ROWS 12

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef float vhalf __attribute__((vector_size(2 * LANES))); /* half as many, for f64 sums */
typedef double vd __attribute__((vector_size(4 * LANES)));
typedef uint64_t vw __attribute__((vector_size(4 * LANES)));

/* Stores past the caches; `to` is aligned to the vector. */
static inline void lanes_stream(void *to, vw bits) { _mm512_stream_si512(to, (__m512i)bits); }

/* Products of the low 32 bits of each 64. */
static inline vw lanes_multiply(vw a, vw b) { return (vw)_mm512_mul_epu32((__m512i)a, (__m512i)b); }

/* a * b + sum, rounded once; plain C rounds twice. */
static inline vf lanes_fma(vf a, vf b, vf sum)
{
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
}

/* sum + x * x of f32 values widened: their product is exact, so fused or not the bits are the
 * same. */
static inline vd lanes_add_square(vd sum, vd x)
{
    return (vd)_mm512_fmadd_pd((__m512d)x, (__m512d)x, (__m512d)sum);
}

/* Sixteen bf16 as f32. */
static inline vf lanes_widen(const void *from)
{
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from)), 16);
}

/* Sixteen signed bytes as f32. */
static inline vf lanes_signed(const void *from)
{
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from)));
}

/* The greater, lane by lane; b where a is NaN. */
static inline vf lanes_max(vf a, vf b) { return _mm512_max_ps(a, b); }

/* Bit i says a[i] >= b[i] (a > b; a is NaN). */
static inline uint32_t lanes_ge(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
static inline uint32_t lanes_gt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline uint32_t lanes_nan(vf a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }

/* Writes the lanes of `values` whose bit is set, and first + their lane, packed; may write LANES
 * elements of each. Returns their number. */
static inline uint32_t lanes_pack(vf values, uint32_t first, uint32_t bits, float *out_values,
                                  uint32_t *out_indices)
{
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512i index = _mm512_add_epi32(lane, _mm512_set1_epi32((int)first));
    _mm512_storeu_ps(out_values, _mm512_maskz_compress_ps((__mmask16)bits, values));
    _mm512_storeu_si512(out_indices, _mm512_maskz_compress_epi32((__mmask16)bits, index));
    return (uint32_t)__builtin_popcount(bits);
}

#endif
