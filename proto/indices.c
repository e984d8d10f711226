/* Row indices and bf16 numbers in payloads. Little-endian machines only, as everything here. */
#include "mn_proto.h"

#include <assert.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "payloads are little-endian arrays");

uint32_t mn_index_bits(uint64_t rows)
{
    return rows <= 2 ? 1 : 64 - (uint32_t)__builtin_clzll(rows - 1);
}

bool mn_indices_bytes(enum mn_encoding encoding, uint64_t rows, uint64_t n, uint64_t *out_bytes)
{
    uint64_t bits;
    switch (encoding) {
    case MN_INDEX_U32:
        bits = 32;
        break;
    case MN_INDEX_I64:
        bits = 64;
        break;
    case MN_INDEX_PACKED:
        bits = mn_index_bits(rows);
        break;
    default:
        return false;
    }
    if (__builtin_mul_overflow(n, bits, &bits) || bits > UINT64_MAX - 7)
        return false;
    *out_bytes = (bits + 7) / 8;
    return true;
}

/* An index and the up to 7 bits before it in its first byte are less than a word (rows <= 2^40
 * needs 40 bits). */
enum { PACKED_BITS_MAX = 56 };

/* Bits waiting to be written: fewer than 8 between two steps. */
typedef struct packer {
    uint8_t *out;
    uint64_t word;
    uint32_t fill;
} packer;

/* Writes 8 bytes, of which the next step overwrites what is not yet final. */
static inline void pack_word(packer *p, uint64_t value, uint32_t bits)
{
    p->word |= value << p->fill;
    memcpy(p->out, &p->word, 8);
    p->fill += bits;
    p->out += p->fill >> 3;
    p->word >>= p->fill & 56;
    p->fill &= 7;
}

static void pack(uint32_t bits, const uint64_t *indices, uint64_t n, uint8_t *out, uint64_t bytes)
{
    assert(bits <= PACKED_BITS_MAX);
    const uint8_t *end = out + bytes;
    packer p = {out, 0, 0};
    uint64_t past = 0, i = 0;
    if (2 * bits <= PACKED_BITS_MAX) /* two at a time halve the chain of dependent steps */
        for (; i + 1 < n && end - p.out >= 8; i += 2) {
            past |= (indices[i] | indices[i + 1]) >> bits;
            pack_word(&p, indices[i] | indices[i + 1] << bits, 2 * bits);
        }
    for (; i < n && end - p.out >= 8; i++) {
        past |= indices[i] >> bits;
        pack_word(&p, indices[i], bits);
    }
    for (; i < n; i++) { /* byte by byte where 8 would reach past the end */
        past |= indices[i] >> bits;
        p.word |= indices[i] << p.fill;
        for (p.fill += bits; p.fill >= 8; p.fill -= 8, p.word >>= 8)
            *p.out++ = (uint8_t)p.word;
    }
    if (p.fill)
        *p.out = (uint8_t)p.word;
    assert(!past); /* the caller has checked index < rows */
}

void mn_indices_encode(enum mn_encoding encoding, uint64_t rows, const uint64_t *indices,
                       uint64_t n, uint8_t *out_bytes)
{
    uint64_t bytes;
    if (!mn_indices_bytes(encoding, rows, n, &bytes))
        assert(!"an encoding that exists, and an n that fits memory");
    if (!n)
        return;
    switch (encoding) {
    case MN_INDEX_U32:
        for (uint64_t i = 0; i < n; i++) {
            uint32_t index = (uint32_t)indices[i];
            memcpy(out_bytes + i * 4, &index, 4);
        }
        break;
    case MN_INDEX_I64:
        memcpy(out_bytes, indices, bytes);
        break;
    case MN_INDEX_PACKED:
        pack(mn_index_bits(rows), indices, n, out_bytes, bytes);
        break;
    }
}

static uint64_t unpack_at(const uint8_t *bytes, uint64_t at, uint32_t bits)
{
    uint64_t word;
    memcpy(&word, bytes + (at >> 3), 8);
    return (word >> (at & 7)) & ((UINT64_C(1) << bits) - 1);
}

/* Each of these returns the largest index, so that the loop has no branch. */
static uint64_t unpack(uint32_t bits, const uint8_t *bytes, uint64_t n, uint64_t total,
                       uint64_t *out_indices)
{
    assert(bits <= PACKED_BITS_MAX);
    uint64_t largest = 0, i = 0, whole = total >= 8 ? ((total - 8) * 8 + 7) / bits + 1 : 0;
    if (whole > n)
        whole = n;
    for (; i < whole; i++) {
        uint64_t index = unpack_at(bytes, i * bits, bits);
        out_indices[i] = index;
        largest = index > largest ? index : largest;
    }
    if (i == n)
        return largest;
    uint8_t tail[24] = {0}; /* the last 8 bytes or fewer of the array, and zeros after them */
    uint64_t tail_first = i * bits / 8;
    memcpy(tail, bytes + tail_first, total - tail_first);
    for (; i < n; i++) {
        uint64_t index = unpack_at(tail, i * bits - tail_first * 8, bits);
        out_indices[i] = index;
        largest = index > largest ? index : largest;
    }
    return largest;
}

static uint64_t widen(const uint8_t *bytes, uint64_t n, uint64_t *out_indices)
{
    uint32_t largest = 0;
    for (uint64_t i = 0; i < n; i++) {
        uint32_t index;
        memcpy(&index, bytes + i * 4, 4);
        out_indices[i] = index;
        largest = index > largest ? index : largest;
    }
    return largest;
}

static uint64_t copy(const uint8_t *bytes, uint64_t n, uint64_t *out_indices)
{
    uint64_t largest = 0; /* a negative index is a large one */
    for (uint64_t i = 0; i < n; i++) {
        uint64_t index;
        memcpy(&index, bytes + i * 8, 8);
        out_indices[i] = index;
        largest = index > largest ? index : largest;
    }
    return largest;
}

enum mn_status mn_indices_decode(enum mn_encoding encoding, uint64_t rows, const uint8_t *bytes,
                                 uint64_t n, uint64_t *out_indices, mn_error *error)
{
    uint64_t total, largest;
    if (!mn_indices_bytes(encoding, rows, n, &total))
        return mn_fail(error, MN_INVALID, "index_encoding", "unknown value %u", (unsigned)encoding);
    if (!n)
        return MN_OK;
    if (encoding == MN_INDEX_U32)
        largest = widen(bytes, n, out_indices);
    else if (encoding == MN_INDEX_I64)
        largest = copy(bytes, n, out_indices);
    else
        largest = unpack(mn_index_bits(rows), bytes, n, total, out_indices);
    if (largest < rows)
        return MN_OK;
    uint64_t i = 0;
    while (out_indices[i] < rows)
        i++;
    return mn_fail(error, MN_INVALID, "indices",
                   "index %lld at position %llu; the table has %llu rows",
                   (long long)out_indices[i], (unsigned long long)i, (unsigned long long)rows);
}

float mn_bf16_to_f32(uint16_t value)
{
    uint32_t bits = (uint32_t)value << 16;
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

uint16_t mn_f32_to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40); /* quiet, so that the cut cannot make an infinity */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
