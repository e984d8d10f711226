/* What a streaming multiprocessor of sm_80 and newer does and C++ cannot say (PTX ISA: ldmatrix,
 * mma, cvt). tests/gpu/emulator has the same names for a CPU: the build chooses the folder. A
 * lane's place in a warp is threadIdx.x % 32; the whole warp calls each function. */
#ifndef MN_CUDA_TENSOR_CORE_H
#define MN_CUDA_TENSOR_CORE_H

#include <cuda_runtime.h>
#include <stdint.h>

/* The launch's dynamic shared memory. */
static __device__ __forceinline__ uint16_t *shared_memory(void)
{
    extern __shared__ uint4 dynamic_memory[];
    return (uint16_t *)dynamic_memory;
}

/* Four matrices of 8 x 8 bf16 in shared memory: lane i says where row i % 8 of matrix i / 8 begins
 * (16 bytes, aligned). out[m]: of matrix m, columns 2 * (lane % 4) and the next of row lane / 4,
 * the first in the low half. */
static __device__ __forceinline__ void load_matrices(const uint16_t *row, uint32_t (&out)[4])
{
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
}

/* As load_matrices, of the matrices' transposes. */
static __device__ __forceinline__ void load_transposed(const uint16_t *row, uint32_t (&out)[4])
{
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
}

/* D [16][8] f32 += A [16][16] B [16][8], both bf16. With g = lane / 4 and t = 2 * (lane % 4): sums
 * are D[g][t, t + 1] and D[g + 8][t, t + 1]; a is A[g][t, t + 1], A[g + 8][t, t + 1], and the same
 * eight columns on; b0 is B[t, t + 1][g], b1 eight rows on. */
static __device__ __forceinline__ void multiply_add(const uint32_t (&a)[4], uint32_t b0,
                                                    uint32_t b1, float (&sums)[4])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Two numbers to bf16, nearest even; `low` in the low half. */
static __device__ __forceinline__ uint32_t narrow_pair(float low, float high)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

#endif
