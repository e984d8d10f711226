/* kernels/cuda/sm/tensor_core.h on the emulator: what its comments say, lane by lane. */
#ifndef MN_TESTS_GPU_TENSOR_CORE_H
#define MN_TESTS_GPU_TENSOR_CORE_H

#include "emulator.h"

static inline uint16_t *shared_memory(void) { return (uint16_t *)emulator_dynamic_shared(); }

/* Row r of the matrix whose rows lanes 8 * m to 8 * m + 7 named. */
static inline const uint16_t *matrix_row(const uint64_t *rows, int m, unsigned r)
{
    const uint64_t row = rows[8 * m + r];
    emulator_check(row % 16 == 0, "a row of a matrix is not aligned");
    return (const uint16_t *)(uintptr_t)row;
}

static inline void load_matrices(const uint16_t *row, uint32_t (&out)[4])
{
    const uint64_t *rows = emulator_exchange(0xffffffff, (uint64_t)(uintptr_t)row);
    const unsigned lane = emulator_lane(), c = lane % 4 * 2;
    for (int m = 0; m < 4; m++) {
        const uint16_t *mine = matrix_row(rows, m, lane / 4);
        out[m] = mine[c] | (uint32_t)mine[c + 1] << 16;
    }
}

static inline void load_transposed(const uint16_t *row, uint32_t (&out)[4])
{
    const uint64_t *rows = emulator_exchange(0xffffffff, (uint64_t)(uintptr_t)row);
    const unsigned lane = emulator_lane(), r = lane % 4 * 2;
    for (int m = 0; m < 4; m++)
        out[m] = matrix_row(rows, m, r)[lane / 4] | (uint32_t)matrix_row(rows, m, r + 1)[lane / 4]
                                                        << 16;
}

static inline float emulator_half(uint32_t pair, unsigned high)
{
    const uint32_t bits = high ? pair & 0xffff0000u : pair << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* One number of a factor [rows][16], of which every lane brought four registers. */
struct emulator_factor {
    uint32_t lanes[32][4];
    void bring(const uint32_t (&mine)[4])
    {
        for (int half = 0; half < 2; half++) {
            const uint64_t both = mine[2 * half] | (uint64_t)mine[2 * half + 1] << 32;
            const uint64_t *all = emulator_exchange(0xffffffff, both);
            for (int lane = 0; lane < 32; lane++) {
                lanes[lane][2 * half] = (uint32_t)all[lane];
                lanes[lane][2 * half + 1] = (uint32_t)(all[lane] >> 32);
            }
        }
    }
    float a(unsigned row, unsigned k) const
    {
        return emulator_half(lanes[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k % 2);
    }
    float b(unsigned k, unsigned column) const
    {
        return emulator_half(lanes[column * 4 + k % 8 / 2][k / 8], k % 2);
    }
};

static inline void multiply_add(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (&sums)[4])
{
    emulator_factor left, right;
    const uint32_t b[4] = {b0, b1, 0, 0};
    left.bring(a);
    right.bring(b);
    const unsigned row = emulator_lane() / 4, column = emulator_lane() % 4 * 2;
    for (unsigned i = 0; i < 4; i++)
        for (unsigned k = 0; k < 16; k++)
            sums[i] += left.a(row + i / 2 * 8, k) * right.b(k, column + i % 2);
}

static inline uint32_t narrow_pair(float low, float high)
{
    uint32_t bits[2];
    memcpy(&bits[0], &low, sizeof low);
    memcpy(&bits[1], &high, sizeof high);
    for (uint32_t &each : bits)
        each = (each & 0x7fffffff) > 0x7f800000 ? 0x7fff0000 : each + 0x7fff + ((each >> 16) & 1);
    return bits[0] >> 16 | (bits[1] & 0xffff0000u);
}

#endif
