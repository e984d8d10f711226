/* Vectors for AVX2: the few operations that neither GNU C vectors nor loops express.
 * The three lanes.h (plain, avx2, avx512) declare the same names. */
#ifndef MN_KERNELS_LANES_H
#define MN_KERNELS_LANES_H

#include <immintrin.h>
#include <stdint.h>

#define LANES     8
#define LANES_ISA MN_ISA_AVX2
/* Rows of two vectors that the registers hold beside the operands of a product. */
#define LANES_ROWS 6

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef float vhalf __attribute__((vector_size(2 * LANES))); /* half as many, for f64 sums */
typedef double vd __attribute__((vector_size(4 * LANES)));
typedef uint64_t vw __attribute__((vector_size(4 * LANES)));

/* Stores past the caches; `to` is aligned to the vector. */
static inline void lanes_stream(void *to, vw bits)
{
    _mm256_stream_si256((__m256i *)to, (__m256i)bits);
}

/* Products of the low 32 bits of each 64. */
static inline vw lanes_multiply(vw a, vw b) { return (vw)_mm256_mul_epu32((__m256i)a, (__m256i)b); }

/* a * b + sum, rounded once; plain C rounds twice. */
static inline vf lanes_fma(vf a, vf b, vf sum)
{
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
}

/* sum + x * x of f32 values widened: their product is exact, so fused or not the bits are the
 * same. */
static inline vd lanes_add_square(vd sum, vd x)
{
    return (vd)_mm256_fmadd_pd((__m256d)x, (__m256d)x, (__m256d)sum);
}

/* Eight bf16 as f32. */
static inline vf lanes_widen(const void *from)
{
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(from)), 16);
}

/* Eight signed bytes as f32. */
static inline vf lanes_signed(const void *from)
{
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from)));
}

/* The greater, lane by lane; b where a is NaN. */
static inline vf lanes_max(vf a, vf b) { return _mm256_max_ps(a, b); }

/* Bit i says a[i] >= b[i] (a > b; a is NaN). */
static inline uint32_t lanes_ge(vf a, vf b)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ));
}
static inline uint32_t lanes_gt(vf a, vf b)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
static inline uint32_t lanes_nan(vf a)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}

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
