#include "mt19937.h"

enum { WORDS = MN_MT19937_WORDS, MIDDLE = 397 };

void mn_mt19937_seed(mn_mt19937 *generator, uint32_t seed)
{
    uint32_t word = seed;
    for (uint32_t i = 0; i < WORDS; i++) {
        generator->words[i] = word;
        word = UINT32_C(1812433253) * (word ^ word >> 30) + i + 1;
    }
    generator->used = WORDS;
}

static void refill(uint32_t words[WORDS])
{
    for (uint32_t i = 0; i < WORDS; i++) {
        uint32_t mixed = (words[i] & 0x80000000u) | (words[(i + 1) % WORDS] & 0x7fffffffu);
        words[i] = words[(i + MIDDLE) % WORDS] ^ mixed >> 1 ^ (mixed & 1 ? 0x9908b0dfu : 0);
    }
}

uint32_t mn_mt19937_word(mn_mt19937 *generator)
{
    if (generator->used == WORDS) {
        refill(generator->words);
        generator->used = 0;
    }
    uint32_t y = generator->words[generator->used++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

double mn_mt19937_double(mn_mt19937 *generator)
{
    uint32_t high = mn_mt19937_word(generator) >> 5; /* 27 bits, then 26 */
    uint32_t low = mn_mt19937_word(generator) >> 6;
    return ((double)high * 67108864 + low) / 9007199254740992.0;
}
