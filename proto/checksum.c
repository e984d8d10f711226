/* XXH3, 64 bits (Yann Collet's xxHash, libxxhash): pieces' content and files. */
#include "mn_proto.h"

#include <xxhash.h>

uint64_t mn_checksum(const void *bytes, uint64_t count, uint64_t seed)
{
    return XXH3_64bits_withSeed(bytes, count, seed);
}
