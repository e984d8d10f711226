/* Indices and bf16: against the plainest code there is. */
#include "proto_test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { COUNT_MAX = 70 };

/* Bit by bit. */
static void naive_pack(uint32_t bits, const uint64_t *indices, uint64_t n, uint8_t *out)
{
    for (uint64_t i = 0; i < n * bits; i++)
        if (indices[i / bits] >> (i % bits) & 1)
            out[i / 8] |= (uint8_t)(1u << (i % 8));
}

static void bits_hold_every_row(void **state)
{
    (void)state;
    assert_int_equal(mn_index_bits(1), 1);
    for (uint32_t bits = 1; bits <= 40; bits++) {
        assert_int_equal(mn_index_bits(UINT64_C(1) << bits), bits);
        assert_int_equal(mn_index_bits((UINT64_C(1) << bits) + 1), bits + 1);
    }
}

static void round_trip(enum mn_encoding encoding, uint64_t rows, uint64_t n, rng *r)
{
    uint64_t indices[COUNT_MAX], out[COUNT_MAX + 1], bytes = 0;
    uint8_t encoded[COUNT_MAX * 8 + 1], naive[COUNT_MAX * 8] = {0};
    for (uint64_t i = 0; i < n; i++)
        indices[i] = rng_below(r, 4) ? rng_below(r, rows) : rows - 1;
    assert_true(mn_indices_bytes(encoding, rows, n, &bytes));
    encoded[bytes] = 0xee;
    out[n] = 4711;
    mn_indices_encode(encoding, rows, indices, n, encoded);
    assert_int_equal(encoded[bytes], 0xee);
    if (encoding == MN_INDEX_PACKED) {
        assert_int_equal(bytes, (n * mn_index_bits(rows) + 7) / 8);
        naive_pack(mn_index_bits(rows), indices, n, naive);
        assert_memory_equal(encoded, naive, bytes);
    } else {
        uint32_t width = encoding == MN_INDEX_U32 ? 4 : 8;
        assert_int_equal(bytes, n * width);
        for (uint64_t i = 0; i < n; i++)
            assert_memory_equal(encoded + i * width, &indices[i], width);
    }
    uint8_t *exact = malloc(bytes + 1); /* the sanitizer sees a byte read past the last */
    assert_non_null(exact);
    memcpy(exact + 1, encoded, bytes);
    assert_int_equal(mn_indices_decode(encoding, rows, exact + 1, n, out, NULL), MN_OK);
    free(exact);
    assert_memory_equal(out, indices, n * 8);
    assert_int_equal(out[n], 4711);
}

static void round_trips(void **state)
{
    (void)state;
    rng r = {4};
    for (uint32_t bits = 0; bits <= 40; bits++)
        for (uint64_t n = 0; n <= COUNT_MAX; n++) {
            uint64_t half = bits ? UINT64_C(1) << (bits - 1) : 0;
            uint64_t rows = half + 1 + rng_below(&r, half ? half : 1);
            round_trip(MN_INDEX_PACKED, rows, n, &r);
            round_trip(MN_INDEX_I64, rows, n, &r);
            if (bits <= 32)
                round_trip(MN_INDEX_U32, rows, n, &r);
        }
}

static void first_bad_index_is_named(void **state)
{
    (void)state;
    static const uint64_t rows = 100;
    for (enum mn_encoding encoding = MN_INDEX_U32; encoding <= MN_INDEX_PACKED; encoding++)
        for (uint64_t bad = 0; bad < 40; bad++) {
            uint64_t indices[40], out[40];
            uint8_t bytes[40 * 8];
            for (uint64_t i = 0; i < 40; i++)
                indices[i] = i == bad || i == bad + 5 ? 100 + i % 20 : i;
            mn_indices_encode(encoding, 128, indices, 40, bytes); /* as a liar would */
            mn_error error = {0};
            assert_int_equal(mn_indices_decode(encoding, rows, bytes, 40, out, &error), MN_INVALID);
            assert_string_equal(error.field, "indices");
            char wanted[100];
            snprintf(wanted, sizeof wanted, "index %d at position %d; the table has 100 rows",
                     (int)(100 + bad % 20), (int)bad);
            assert_string_equal(error.message, wanted);
        }
    int64_t negative = -1;
    uint64_t out;
    mn_error error = {0};
    assert_int_equal(
        mn_indices_decode(MN_INDEX_I64, rows, (const uint8_t *)&negative, 1, &out, &error),
        MN_INVALID);
    assert_string_equal(error.message, "index -1 at position 0; the table has 100 rows");
}

static void sizes_do_not_overflow(void **state)
{
    (void)state;
    uint64_t bytes = 4711;
    assert_false(mn_indices_bytes((enum mn_encoding)3, 10, 1, &bytes));
    assert_false(mn_indices_bytes(MN_INDEX_U32, 10, UINT64_MAX / 32 + 1, &bytes));
    assert_false(mn_indices_bytes(MN_INDEX_I64, 10, UINT64_MAX, &bytes));
    assert_false(mn_indices_bytes(MN_INDEX_PACKED, 2, UINT64_MAX, &bytes)); /* the padding does */
    assert_int_equal(bytes, 4711);
    assert_true(mn_indices_bytes(MN_INDEX_I64, 10, UINT64_MAX / 64, &bytes));
    assert_int_equal(bytes, UINT64_MAX / 64 * 8);
    mn_error error = {0};
    assert_int_equal(mn_indices_decode((enum mn_encoding)3, 10, NULL, 1, NULL, &error), MN_INVALID);
    assert_string_equal(error.field, "index_encoding");
}

/* Nearest even, by comparing with both neighbours in double precision. */
static void bf16_is_nearest_even(void **state)
{
    (void)state;
    rng r = {5};
    for (int i = 0; i < 200000; i++) {
        uint32_t bits = (uint32_t)rng_next(&r);
        if (i % 4 == 0)
            bits = (bits & 0xffff0000) | 0x8000; /* a tie */
        float value;
        memcpy(&value, &bits, 4);
        if (!isfinite(value) || fabsf(value) > 3.3e38f)
            continue;
        uint16_t got = mn_f32_to_bf16(value), low = (uint16_t)(bits >> 16);
        double below = mn_bf16_to_f32(low), above = mn_bf16_to_f32((uint16_t)(low + 1));
        double to_below = fabs(value - below), to_above = fabs(above - value);
        uint16_t wanted = (uint16_t)(to_below < to_above   ? low
                                     : to_above < to_below ? low + 1
                                                           : low + (low & 1));
        assert_int_equal(got, wanted);
    }
    for (uint32_t i = 0; i < 65536; i++) { /* every bf16 is itself, NaN stays NaN */
        float value = mn_bf16_to_f32((uint16_t)i);
        if (isnan(value))
            assert_true(isnan(mn_bf16_to_f32(mn_f32_to_bf16(value))));
        else
            assert_int_equal(mn_f32_to_bf16(value), i);
    }
    uint32_t faint = 0x7f800001; /* a NaN whose high half is infinity's */
    float value;
    memcpy(&value, &faint, 4);
    assert_true(isnan(mn_bf16_to_f32(mn_f32_to_bf16(value))));
    assert_int_equal(mn_f32_to_bf16(3.4e38f), 0x7f80); /* past the largest: infinity */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits_hold_every_row),      cmocka_unit_test(round_trips),
        cmocka_unit_test(first_bad_index_is_named), cmocka_unit_test(sizes_do_not_overflow),
        cmocka_unit_test(bf16_is_nearest_even),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
