/* mn_philox, for callers of single blocks. */
#include "mn_kernels.h"

#define SCALAR      static inline
#define SCALAR_SQRT __builtin_sqrtf
#include "scalar.h"

void mn_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out_words[4])
{
    philox(counter, key, out_words);
}
