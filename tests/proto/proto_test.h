/* What the tests of proto share: cmocka, a seeded generator, bytes written by hand. */
#ifndef PROTO_TEST_H
#define PROTO_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "mn_proto.h"

typedef struct rng {
    uint64_t state;
} rng;

static inline uint64_t rng_next(rng *r) /* SplitMix64 */
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static inline uint64_t rng_below(rng *r, uint64_t bound) { return rng_next(r) % bound; }

/* A protobuf message being written field by field. */
typedef struct wire {
    uint8_t bytes[200000];
    uint32_t count;
} wire;

static inline void wire_varint(wire *w, uint64_t value)
{
    for (; value >= 0x80; value >>= 7)
        w->bytes[w->count++] = (uint8_t)(value | 0x80);
    w->bytes[w->count++] = (uint8_t)value;
}

static inline void wire_raw(wire *w, const void *bytes, uint32_t count)
{
    memcpy(w->bytes + w->count, bytes, count);
    w->count += count;
}

static inline void wire_number(wire *w, uint32_t field, uint64_t value)
{
    wire_varint(w, field << 3);
    wire_varint(w, value);
}

static inline void wire_bytes(wire *w, uint32_t field, const void *bytes, uint32_t count)
{
    wire_varint(w, field << 3 | 2);
    wire_varint(w, count);
    wire_raw(w, bytes, count);
}

#endif
