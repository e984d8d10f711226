/* XXH3, 64 bits (Yann Collet's xxHash, libxxhash): pieces' content and files. By the widest vectors
 * that the processor has: 44 GB/s of what lies in the caches, 10 by those that all of them have. */
#include "mn_proto.h"

#define XXH_STATIC_LINKING_ONLY /* a state on the stack */
#include <xxh_x86dispatch.h>

uint64_t mn_checksum(const void *bytes, uint64_t count, uint64_t seed)
{
    return XXH3_64bits_withSeed(bytes, count, seed);
}

uint64_t mn_checksum_spans(const mn_span *spans, uint32_t count, uint64_t seed)
{
    XXH3_state_t state;
    XXH3_INITSTATE(&state);
    (void)XXH3_64bits_reset_withSeed(&state, seed); /* these fail without a state only */
    for (uint32_t i = 0; i < count; i++)
        (void)XXH3_64bits_update(&state, spans[i].bytes, spans[i].count);
    return XXH3_64bits_digest(&state);
}
