/* The Mersenne Twister of numpy.random.RandomState (Matsumoto & Nishimura 1998), for the initial
 * keys of published models. Private to the trainer. */
#ifndef MN_MT19937_H
#define MN_MT19937_H

#include <stdint.h>

enum { MN_MT19937_WORDS = 624 };

typedef struct mn_mt19937 {
    uint32_t words[MN_MT19937_WORDS];
    uint32_t used; /* of the words */
} mn_mt19937;

/* As RandomState(seed) with a number. */
void mn_mt19937_seed(mn_mt19937 *generator, uint32_t seed);
uint32_t mn_mt19937_word(mn_mt19937 *generator);
/* In [0, 1), 53 bits: RandomState.random_sample. */
double mn_mt19937_double(mn_mt19937 *generator);

#endif
