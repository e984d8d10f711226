/* The payload scanner: any field order, any segmentation, unknown fields, and protobuf-c as oracle
 * for random messages. */
#include "proto_test.h"

#include "mneme.pb-c.h"

enum { SPANS_MAX = 16 };

static wire w;
static uint8_t header[MN_HEADER_BYTES_MAX];

typedef struct scan {
    enum mn_status status;
    uint32_t header_bytes;
    mn_payload payload;
    mn_span spans[SPANS_MAX];
    mn_error error;
} scan;

static void scan_spans(const mn_span *spans, uint32_t count, uint32_t header_max, scan *out)
{
    memset(out, 0, sizeof *out);
    out->status = mn_scan_payload(spans, count, header, header_max, &out->header_bytes, out->spans,
                                  SPANS_MAX, &out->payload, &out->error);
    assert_int_equal(out->error.status, out->status);
}

static void scan_whole(scan *out)
{
    mn_span span = {w.bytes, w.count};
    scan_spans(&span, 1, sizeof header, out);
}

static void assert_found(const scan *s, const void *wanted_header, uint32_t header_bytes,
                         const void *wanted_payload, uint64_t payload_bytes)
{
    uint8_t payload[1024];
    assert_int_equal(s->status, MN_OK);
    assert_int_equal(s->header_bytes, header_bytes);
    assert_memory_equal(header, wanted_header, header_bytes);
    assert_int_equal(s->payload.bytes, payload_bytes);
    for (uint32_t i = 0; i < s->payload.span_count; i++)
        assert_true(s->payload.spans[i].count > 0);
    mn_cursor cursor;
    mn_cursor_init(&cursor, &s->payload, 0);
    mn_cursor_read(&cursor, payload, payload_bytes);
    assert_memory_equal(payload, wanted_payload, payload_bytes);
}

/* Every wire type, known and unknown fields, with the payload at `place` among them. */
static void wire_mixture(uint32_t place, wire *out_header, const void *payload, uint32_t bytes)
{
    wire *outs[] = {&w, out_header};
    for (int o = 0; o < 2; o++) {
        wire *out = outs[o];
        out->count = 0;
        for (uint32_t i = 0; i < 6; i++) {
            if (i == place && o == 0)
                wire_bytes(out, MN_PAYLOAD_FIELD, payload, bytes);
            if (i == 0)
                wire_number(out, 2, 300);
            else if (i == 1)
                wire_raw(out,
                         "\xa1\x06"
                         "12345678",
                         10); /* field 100, 64 bits */
            else if (i == 2)
                wire_bytes(out, 99, "unknown", 7);
            else if (i == 3)
                wire_raw(out,
                         "\xa5\x06"
                         "1234",
                         6); /* field 100, 32 bits */
            else if (i == 4)
                wire_bytes(out, 1, "", 0);
        }
    }
}

static void any_order_any_segments(void **state)
{
    (void)state;
    static wire wanted;
    static const char payload[] = "0123456789abcdef";
    for (uint32_t place = 0; place < 6; place++) {
        wire_mixture(place, &wanted, payload, 16);
        for (uint32_t i = 0; i <= w.count; i++)
            for (uint32_t j = i; j <= w.count; j++) {
                mn_span spans[] = {{w.bytes, i}, {w.bytes + i, j - i}, {w.bytes + j, w.count - j}};
                scan s;
                scan_spans(spans, 3, sizeof header, &s);
                assert_found(&s, wanted.bytes, wanted.count, payload, 16);
            }
    }
}

static void byte_by_byte(void **state)
{
    (void)state;
    static wire wanted;
    mn_span spans[200];
    wire_mixture(3, &wanted, "payload", 7);
    for (uint32_t i = 0; i < w.count; i++)
        spans[i] = (mn_span){w.bytes + i, 1};
    scan s;
    scan_spans(spans, w.count, sizeof header, &s);
    assert_found(&s, wanted.bytes, wanted.count, "payload", 7);
    assert_int_equal(s.payload.span_count, 7);
    wire_mixture(3, &wanted, "0123456789abcdefg", SPANS_MAX + 1);
    for (uint32_t i = 0; i < w.count; i++)
        spans[i] = (mn_span){w.bytes + i, 1};
    scan_spans(spans, w.count, sizeof header, &s);
    assert_int_equal(s.status, MN_INVALID); /* more segments than the caller has room for */
    assert_string_equal(s.error.field, "payload");
}

static void last_payload_counts(void **state)
{
    (void)state;
    scan s;
    w.count = 0;
    scan_whole(&s);
    assert_found(&s, "", 0, "", 0);
    wire_bytes(&w, MN_PAYLOAD_FIELD, "first", 5);
    wire_number(&w, 5, 1);
    wire_bytes(&w, MN_PAYLOAD_FIELD, "second", 6);
    scan_whole(&s);
    assert_found(&s, "\x28\x01", 2, "second", 6);
    assert_ptr_equal(s.payload.spans[0].bytes, w.bytes + w.count - 6); /* in place */
    wire_bytes(&w, MN_PAYLOAD_FIELD, "", 0);
    scan_whole(&s);
    assert_found(&s, "\x28\x01", 2, "", 0);
}

static void corrupt(const char *bytes, uint32_t count)
{
    scan s;
    w.count = 0;
    wire_raw(&w, bytes, count);
    scan_whole(&s);
    assert_int_equal(s.status, MN_CORRUPT);
    assert_string_equal(s.error.field, "message");
    assert_true(s.error.message[0] != 0);
    assert_int_equal(s.header_bytes, 0);
    assert_null(s.payload.spans);
}

static void refusals(void **state)
{
    (void)state;
    corrupt("\x7b", 1);                         /* field 15: a group */
    corrupt("\x13\x14", 2);                     /* field 2: a group and its end */
    corrupt("\x16\x00", 2);                     /* wire type 6 */
    corrupt("\x17\x00", 2);                     /* wire type 7 */
    corrupt("\x78\x05", 2);                     /* the payload as an integer */
    corrupt("\x00\x00", 2);                     /* field 0 */
    corrupt("\xf8\xff\xff\xff\x1f\x00", 6);     /* a tag beyond 32 bits */
    corrupt("\x80\x80\x80\x80\x80\x00\x00", 7); /* a tag of six bytes */
    corrupt("\x7a\x80\x80\x80\x80\x80\x00", 7); /* a length of six bytes */
    corrupt("\x7a\xff\xff\xff\xff\x0f", 6);     /* a payload of 4 GiB */
    corrupt("\x12\xff\xff\xff\xff\x0f", 6);     /* another field of 4 GiB */
    corrupt("\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 12); /* a varint of 11 bytes */
}

/* A cut is either between fields or told. */
static void truncation(void **state)
{
    (void)state;
    static wire wanted;
    static const char payload[] = "0123456789abcdef";
    wire_mixture(2, &wanted, payload, 16);
    uint32_t whole = w.count, told = 0;
    for (w.count = 0; w.count < whole; w.count++) {
        scan s;
        scan_whole(&s);
        assert_true(s.status == MN_OK || s.status == MN_CORRUPT);
        told += s.status == MN_CORRUPT;
        assert_true(s.payload.bytes == 0 || s.payload.bytes == 16);
    }
    assert_int_equal(told, whole - 6); /* six fields */
}

static void long_headers(void **state)
{
    (void)state;
    static uint8_t zeros[MN_HEADER_BYTES_MAX];
    scan s;
    for (uint32_t extra = 0; extra < 2; extra++) {
        w.count = 0;
        wire_bytes(&w, MN_PAYLOAD_FIELD, zeros, 60000); /* does not count */
        wire_bytes(&w, 26, zeros, MN_HEADER_BYTES_MAX - 5 + extra);
        scan_whole(&s);
        assert_int_equal(s.status, extra ? MN_CORRUPT : MN_OK);
    }
    for (uint32_t room = 0; room < 12; room++) {
        w.count = 0;
        wire_number(&w, 2, 300);
        wire_raw(&w,
                 "\xa1\x06"
                 "12345678",
                 10);
        mn_span span = {w.bytes, w.count};
        memset(header, 0xee, sizeof header);
        scan_spans(&span, 1, room, &s);
        assert_int_equal(s.status, MN_CORRUPT);
        assert_int_equal(header[room], 0xee);
    }
}

/* ---- Against protobuf-c */

static void random_field(rng *r)
{
    static const uint32_t numbers[] = {1, 2, 3, 5, 8, 14, 15, 15, 15, 16, 99, 4000};
    uint32_t field = numbers[rng_below(r, sizeof numbers / sizeof numbers[0])];
    uint8_t bytes[20];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)rng_next(r);
    uint32_t wire_type = field == 15 || field == 1 ? 2 : field < 15 ? 0 : (uint32_t)rng_below(r, 6);
    if (rng_below(r, 30) == 0)
        wire_type = (uint32_t)rng_below(r, 8);
    wire_varint(&w, field << 3 | wire_type);
    if (wire_type == 0)
        wire_varint(&w, rng_next(r) >> rng_below(r, 64));
    else if (wire_type == 1)
        wire_raw(&w, bytes, 8);
    else if (wire_type == 5)
        wire_raw(&w, bytes, 4);
    else if (field == 1) { /* a context */
        wire_varint(&w, 2);
        wire_number(&w, 4, rng_below(r, 100));
    } else {
        uint64_t length = rng_below(r, 20);
        wire_varint(&w, length);
        wire_raw(&w, bytes, (uint32_t)length);
    }
}

static void compare_with_oracle(uint32_t *accepted, uint32_t *refused)
{
    Mneme__V1__FetchRequest *oracle = mneme__v1__fetch_request__unpack(NULL, w.count, w.bytes);
    mn_span spans[] = {{w.bytes, w.count / 2}, {w.bytes + w.count / 2, w.count - w.count / 2}};
    scan s;
    scan_spans(spans, 2, sizeof header, &s);
    Mneme__V1__FetchRequest *rest = NULL;
    if (!s.status)
        rest = mneme__v1__fetch_request__unpack(NULL, s.header_bytes, header);
    assert_true((oracle != NULL) == (rest != NULL));
    if (oracle) {
        ++*accepted;
        assert_int_equal(rest->payload.len, 0);
        assert_found(&s, header, s.header_bytes, oracle->payload.data, oracle->payload.len);
        assert_int_equal(rest->table, oracle->table);
        assert_int_equal(rest->count, oracle->count);
        assert_int_equal(rest->value_dtype, oracle->value_dtype);
        assert_int_equal(rest->with_state, oracle->with_state);
        assert_int_equal(rest->base.n_unknown_fields, oracle->base.n_unknown_fields);
        assert_true((rest->context != NULL) == (oracle->context != NULL));
        if (rest->context)
            assert_int_equal(rest->context->step, oracle->context->step);
    } else {
        ++*refused;
    }
    if (oracle)
        mneme__v1__fetch_request__free_unpacked(oracle, NULL);
    if (rest)
        mneme__v1__fetch_request__free_unpacked(rest, NULL);
}

static void agrees_with_protobuf_c(void **state)
{
    (void)state;
    rng r = {3};
    uint32_t accepted = 0, refused = 0;
    for (int i = 0; i < 20000; i++) {
        w.count = 0;
        for (uint64_t fields = rng_below(&r, 12); fields; fields--)
            random_field(&r);
        if (w.count && rng_below(&r, 4) == 0)
            w.count = (uint32_t)rng_below(&r, w.count);
        compare_with_oracle(&accepted, &refused);
    }
    assert_true(accepted > 5000 && refused > 2000); /* both sides were seen */
}

static void cursor_reads_anywhere(void **state)
{
    (void)state;
    static const uint8_t bytes[] = "abcdefghij";
    const mn_span spans[] = {{bytes, 3}, {bytes, 0}, {bytes + 3, 4}, {bytes + 7, 3}};
    const mn_payload payload = {spans, 4, 10};
    for (uint64_t offset = 0; offset <= 10; offset++)
        for (uint64_t count = 0; offset + count <= 10; count++) {
            uint8_t out[12] = {0};
            mn_cursor cursor;
            mn_cursor_init(&cursor, &payload, offset);
            mn_cursor_read(&cursor, out, count / 2); /* in two goes */
            mn_cursor_read(&cursor, out + count / 2, count - count / 2);
            assert_memory_equal(out, bytes + offset, count);
            assert_int_equal(out[count], 0);
        }
}

static void cursor_walks_spans(void **state)
{
    (void)state;
    static const uint8_t bytes[] = "abcdefghij";
    const mn_span spans[] = {{bytes, 3}, {bytes, 0}, {bytes + 3, 4}, {bytes + 7, 3}, {bytes, 0}};
    const mn_payload payload = {spans, 5, 10};
    static const uint64_t together[] = {3, 2, 1, 4, 3, 2, 1, 3, 2, 1, 0};
    for (uint64_t offset = 0; offset <= 10; offset++)
        for (uint64_t count = 0; offset + count <= 10; count++) {
            const uint8_t *at = NULL;
            mn_cursor cursor;
            mn_cursor_init(&cursor, &payload, offset);
            mn_cursor_skip(&cursor, count);
            assert_int_equal(mn_cursor_peek(&cursor, &at), together[offset + count]);
            if (offset + count < 10)
                assert_ptr_equal(at, bytes + offset + count);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_order_any_segments),
        cmocka_unit_test(byte_by_byte),
        cmocka_unit_test(last_payload_counts),
        cmocka_unit_test(refusals),
        cmocka_unit_test(truncation),
        cmocka_unit_test(long_headers),
        cmocka_unit_test(agrees_with_protobuf_c),
        cmocka_unit_test(cursor_reads_anywhere),
        cmocka_unit_test(cursor_walks_spans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
