/* Copying past the caches, and checking on the way. */
#include "tile.h"

typedef uint32_t vbits __attribute__((vector_size(4 * LANES)));

/* A NaN or infinity has all exponent bits set: without its sign, it is the smallest number that one
 * more in the exponent carries into the sign's place. Two bf16 share 32 bits: neither carry leaves
 * its half. */
enum { F32_REST = 0x7fffffff, F32_ONE = 0x00800000, BF16_REST = 0x7fff7fff, BF16_ONE = 0x00800080 };
static const uint32_t f32_sign = 0x80000000, bf16_sign = 0x80008000;

INLINE bool stage_of(const char *in, uint64_t bytes, uint32_t rest, uint32_t one, uint32_t sign,
                     char *out)
{
    enum { VECTORS = LINE / sizeof(vbits) };
    vbits carry[VECTORS] = {{0}}, line[VECTORS];
    uint32_t lanes[LINE / 4], any = 0;
    uint64_t b = 0;
    for (; b + LINE <= bytes; b += LINE) {
        memcpy(line, in + b, LINE);
        for (uint32_t v = 0; v < VECTORS; v++) {
            carry[v] |= (line[v] & rest) + one;
            lanes_stream(out + b + v * sizeof(vbits), (vw)line[v]);
        }
    }
    _mm_sfence(); /* such stores are seen in no order otherwise */
    memcpy(lanes, carry, LINE);
    for (uint32_t i = 0; i < LINE / 4; i++)
        any |= lanes[i];
    memset(lanes, 0, LINE);
    memcpy(lanes, in + b, bytes - b);
    memcpy(out + b, lanes, bytes - b);
    for (uint32_t i = 0; i < LINE / 4; i++)
        any |= (lanes[i] & rest) + one;
    return !(any & sign);
}

bool ISA(stage)(const void *in, uint64_t bytes, enum mn_dtype dtype, void *out)
{
    return dtype == MN_F32 ? stage_of(in, bytes, F32_REST, F32_ONE, f32_sign, out)
                           : stage_of(in, bytes, BF16_REST, BF16_ONE, bf16_sign, out);
}
