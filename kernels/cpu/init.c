/* Initial values and rounding noise: counter-based random numbers, many blocks at once
 * (mn_kernels.h §1). */
#include "tile.h"

enum {
    BLOCKS = 32,        /* Philox blocks per batch */
    WORDS = 4 * BLOCKS, /* columns of initial values per batch */
    HALVES = 2 * WORDS, /* columns of noise per batch */
    WIDE = LANES / 2,   /* blocks per vector: each word in the low half of 64 bits */
    VECTORS = 4,        /* vectors in flight, so that no product is waited for */
    STRIDE = VECTORS * WIDE
};

/* Ten rounds over STRIDE blocks from `first`; mn_philox, lane by lane. Above the low 32 bits stands
 * what no product reads. out_low: words 0 and 1 of each block, out_high: 2 and 3. */
INLINE void philox_vectors(uint64_t row, uint32_t first, uint32_t count, uint32_t key0,
                           uint32_t key1, uint64_t out_low[STRIDE], uint64_t out_high[STRIDE])
{
    const vw zero = {0}, low_half = zero + UINT32_MAX;
    vw c0[VECTORS], c1[VECTORS], c2[VECTORS], c3[VECTORS];
    uint64_t blocks[STRIDE];
    for (uint32_t i = 0; i < STRIDE; i++)
        blocks[i] = (uint64_t)first + i;
    memcpy(c2, blocks, sizeof c2);
    for (uint32_t v = 0; v < VECTORS; v++)
        c0[v] = zero + (uint32_t)row, c1[v] = zero + (row >> 32), c3[v] = zero + count;
    for (int round = 0; round < 10; round++) {
        for (uint32_t v = 0; v < VECTORS; v++) {
            vw p0 = lanes_multiply(c0[v], zero + 0xD2511F53u);
            vw p1 = lanes_multiply(c2[v], zero + 0xCD9E8D57u);
            c0[v] = (p1 >> 32) ^ c1[v] ^ (zero + key0);
            c2[v] = (p0 >> 32) ^ c3[v] ^ (zero + key1);
            c1[v] = p1, c3[v] = p0;
        }
        key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;
    }
    for (uint32_t v = 0; v < VECTORS; v++) {
        vw low = (c0[v] & low_half) | (c1[v] << 32), high = (c2[v] & low_half) | (c3[v] << 32);
        memcpy(out_low + v * WIDE, &low, sizeof low);
        memcpy(out_high + v * WIDE, &high, sizeof high);
    }
}

/* Words of the blocks first .. first + BLOCKS - 1, in order. */
static void philox_batch(uint64_t row, uint32_t first, uint32_t count, uint32_t key0, uint32_t key1,
                         uint32_t *restrict out_words)
{
    for (uint32_t b = 0; b < BLOCKS; b += STRIDE) {
        uint64_t low[STRIDE], high[STRIDE], pairs[2 * STRIDE];
        philox_vectors(row, first + b, count, key0, key1, low, high);
        for (uint32_t i = 0; i < STRIDE; i++)
            pairs[2 * i] = low[i], pairs[2 * i + 1] = high[i];
        memcpy(out_words + 4 * b, pairs, sizeof pairs);
    }
}

void ISA(noise)(uint64_t seed, enum mn_purpose purpose, uint64_t row, uint32_t update_count,
                uint32_t first_column, uint32_t columns, uint16_t *out_halves)
{
    uint32_t words[WORDS];
    for (uint32_t done = 0; done < columns;) {
        uint32_t column = first_column + done, skip = column % 8;
        uint32_t count = least(columns - done, HALVES - skip);
        philox_batch(row, column / 8, update_count, (uint32_t)seed ^ (uint32_t)purpose,
                     (uint32_t)(seed >> 32), words);
        memcpy(out_halves + done, (const char *)words + 2 * skip, 2 * (size_t)count);
        done += count;
    }
}

static void values_of_words(const mn_init *init, const uint32_t *restrict words,
                            float *restrict out_values)
{
    const float a = init->a, width = init->b - init->a;
    if (init->kind == MN_INIT_UNIFORM) {
        for (uint32_t i = 0; i < WORDS; i++)
            out_values[i] = a + width * unit_of(words[i]);
        return;
    }
    for (uint32_t i = 0; i < WORDS; i += 2) {
        float first, second;
        normal_pair(words[i], words[i + 1], &first, &second);
        out_values[i] = a * first, out_values[i + 1] = a * second;
    }
}

void ISA(init_row)(const mn_init *init, uint64_t seed, uint64_t row, uint32_t first_column,
                   uint32_t columns, enum mn_dtype dtype, void *out_row)
{
    const uint32_t bytes = element_bytes(dtype);
    if (init->kind == MN_INIT_ZERO) {
        memset(out_row, 0, (size_t)columns * bytes);
        return;
    }
    uint32_t words[WORDS];
    float values[WORDS];
    if (init->kind == MN_INIT_CONSTANT)
        for (uint32_t i = 0; i < WORDS; i++)
            values[i] = init->a;
    for (uint32_t done = 0; done < columns;) {
        uint32_t column = first_column + done, skip = column % 4;
        uint32_t count = least(columns - done, WORDS - skip);
        if (init->kind != MN_INIT_CONSTANT) {
            philox_batch(row, column / 4, 0, (uint32_t)seed ^ MN_PURPOSE_INIT,
                         (uint32_t)(seed >> 32), words);
            values_of_words(init, words, values);
        }
        convert_row(values + skip, MN_F32, count, dtype, (char *)out_row + (size_t)done * bytes);
        done += count;
    }
}
