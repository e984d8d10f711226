/* Finding a message's payload among its fields, and reading it where it lies (Protocol Buffers
 * encoding, protobuf.dev/programming-guides/encoding). */
#include "mn_proto.h"

#include <assert.h>
#include <string.h>

/* ---- Reading segments */

void mn_cursor_init(mn_cursor *cursor, const mn_payload *payload, uint64_t offset)
{
    assert(offset <= payload->bytes);
    cursor->payload = payload;
    cursor->span = 0;
    while (cursor->span < payload->span_count && offset >= payload->spans[cursor->span].count)
        offset -= payload->spans[cursor->span++].count;
    cursor->in_span = offset;
}

void mn_cursor_read(mn_cursor *cursor, void *out_bytes, uint64_t count)
{
    uint8_t *out = out_bytes;
    while (count) {
        assert(cursor->span < cursor->payload->span_count);
        const mn_span *span = &cursor->payload->spans[cursor->span];
        uint64_t some = span->count - cursor->in_span;
        if (some > count)
            some = count;
        if (some)
            memcpy(out, span->bytes + cursor->in_span, some);
        out += some;
        count -= some;
        cursor->in_span += some;
        if (cursor->in_span == span->count) {
            cursor->span++;
            cursor->in_span = 0;
        }
    }
}

uint64_t mn_cursor_peek(mn_cursor *cursor, const uint8_t **out_bytes)
{
    const mn_payload *payload = cursor->payload;
    while (cursor->span < payload->span_count &&
           cursor->in_span == payload->spans[cursor->span].count) {
        cursor->span++;
        cursor->in_span = 0;
    }
    if (cursor->span == payload->span_count)
        return 0;
    const mn_span *span = &payload->spans[cursor->span];
    *out_bytes = span->bytes + cursor->in_span;
    return span->count - cursor->in_span;
}

void mn_cursor_skip(mn_cursor *cursor, uint64_t count)
{
    while (count) {
        assert(cursor->span < cursor->payload->span_count);
        uint64_t rest = cursor->payload->spans[cursor->span].count - cursor->in_span;
        if (count < rest) {
            cursor->in_span += count;
            return;
        }
        count -= rest;
        cursor->span++;
        cursor->in_span = 0;
    }
}

/* ---- Walking a message */

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };
/* A tag or a length is a varint of a uint32: five bytes at most, as protobuf-c has it. */
enum { VARINT_BYTES_MAX = 10, VARINT32_BYTES_MAX = 5 };

typedef struct walk {
    mn_payload message;
    mn_cursor cursor;
    uint64_t left;   /* bytes from the cursor to the end */
    uint8_t *header; /* where the other fields are copied */
    uint32_t header_bytes, header_bytes_max;
    uint32_t field; /* being read, for the error */
    mn_error *error;
} walk;

static enum mn_status corrupt(const walk *w, const char *what)
{
    return mn_fail(w->error, MN_CORRUPT, "message", "field %u: %s", w->field, what);
}

/* The varint's bytes go to `raw`, so that they can be copied as they came. */
static enum mn_status read_varint(walk *w, uint32_t bytes_max, uint8_t *raw, uint32_t *out_bytes,
                                  uint64_t *out_value)
{
    uint64_t value = 0;
    for (uint32_t i = 0; i < bytes_max; i++) {
        if (!w->left)
            return corrupt(w, "the message ends inside a varint");
        mn_cursor_read(&w->cursor, &raw[i], 1);
        w->left--;
        value |= (uint64_t)(raw[i] & 0x7f) << (7 * i);
        if (raw[i] & 0x80)
            continue;
        *out_bytes = i + 1;
        *out_value = value;
        return MN_OK;
    }
    return corrupt(w, "a varint is too long");
}

static enum mn_status check_room(const walk *w, uint64_t count)
{
    if (count <= w->header_bytes_max - w->header_bytes)
        return MN_OK;
    return mn_fail(w->error, MN_CORRUPT, "message",
                   "field %u: all but the payload takes more than %u bytes", w->field,
                   w->header_bytes_max);
}

static enum mn_status copy_raw(walk *w, const uint8_t *raw, uint32_t count)
{
    enum mn_status status = check_room(w, count);
    if (status)
        return status;
    memcpy(w->header + w->header_bytes, raw, count);
    w->header_bytes += count;
    return MN_OK;
}

static enum mn_status copy_on(walk *w, uint64_t count)
{
    if (count > w->left)
        return corrupt(w, "it ends past the message");
    enum mn_status status = check_room(w, count);
    if (status)
        return status;
    mn_cursor_read(&w->cursor, w->header + w->header_bytes, count);
    w->header_bytes += (uint32_t)count;
    w->left -= count;
    return MN_OK;
}

/* From where the cursor stands, so that a message of many payloads is still one pass. */
static void skip(walk *w, uint64_t count)
{
    w->left -= count;
    mn_cursor_skip(&w->cursor, count);
}

/* One field that is not the payload, copied; its tag is already. */
static enum mn_status copy_field(walk *w, uint32_t wire)
{
    uint8_t raw[VARINT_BYTES_MAX];
    uint32_t raw_bytes;
    uint64_t value;
    enum mn_status status;
    switch (wire) {
    case WIRE_VARINT:
        status = read_varint(w, VARINT_BYTES_MAX, raw, &raw_bytes, &value);
        return status ? status : copy_raw(w, raw, raw_bytes);
    case WIRE_64:
        return copy_on(w, 8);
    case WIRE_32:
        return copy_on(w, 4);
    case WIRE_BYTES:
        status = read_varint(w, VARINT32_BYTES_MAX, raw, &raw_bytes, &value);
        if (!status)
            status = copy_raw(w, raw, raw_bytes);
        return status ? status : copy_on(w, value);
    default:
        return corrupt(w, "groups and unknown wire types are refused");
    }
}

/* The payload's segments, which lie in the message's. */
static enum mn_status cut_payload(walk *w, uint64_t offset, uint64_t count, mn_span *out_spans,
                                  uint32_t spans_max, mn_payload *out_payload)
{
    mn_cursor cursor;
    uint32_t used = 0;
    mn_cursor_init(&cursor, &w->message, offset);
    for (uint64_t left = count; left; cursor.span++, cursor.in_span = 0) {
        const mn_span *span = &w->message.spans[cursor.span];
        uint64_t some = span->count - cursor.in_span;
        if (some > left)
            some = left;
        if (!some)
            continue;
        if (used == spans_max)
            return mn_fail(w->error, MN_INVALID, "payload", "more than %u segments", spans_max);
        out_spans[used++] = (mn_span){span->bytes + cursor.in_span, some};
        left -= some;
    }
    *out_payload = (mn_payload){out_spans, used, count};
    return MN_OK;
}

enum mn_status mn_scan_payload(const mn_span *spans, uint32_t span_count, uint8_t *header,
                               uint32_t header_bytes_max, uint32_t *out_header_bytes,
                               mn_span *out_spans, uint32_t spans_max, mn_payload *out_payload,
                               mn_error *error)
{
    walk w = {.message = {spans, span_count, 0},
              .header = header,
              .header_bytes_max = header_bytes_max,
              .error = error};
    for (uint32_t i = 0; i < span_count; i++)
        w.message.bytes += spans[i].count;
    w.left = w.message.bytes;
    mn_cursor_init(&w.cursor, &w.message, 0);
    uint64_t payload_offset = 0, payload_bytes = 0;
    while (w.left) {
        uint8_t raw[VARINT32_BYTES_MAX];
        uint32_t raw_bytes;
        uint64_t tag = 0;
        enum mn_status status = read_varint(&w, VARINT32_BYTES_MAX, raw, &raw_bytes, &tag);
        if (status)
            return status;
        w.field = (uint32_t)(tag >> 3);
        if (tag > UINT32_MAX || !w.field)
            return corrupt(&w, "not a field number");
        if (w.field != MN_PAYLOAD_FIELD) {
            status = copy_raw(&w, raw, raw_bytes);
            if (!status)
                status = copy_field(&w, tag & 7);
            if (status)
                return status;
            continue;
        }
        uint64_t count;
        if ((tag & 7) != WIRE_BYTES)
            return corrupt(&w, "the payload is not bytes");
        status = read_varint(&w, VARINT32_BYTES_MAX, raw, &raw_bytes, &count);
        if (status)
            return status;
        if (count > w.left)
            return corrupt(&w, "it ends past the message");
        payload_offset = w.message.bytes - w.left;
        payload_bytes = count;
        skip(&w, count);
    }
    enum mn_status status =
        cut_payload(&w, payload_offset, payload_bytes, out_spans, spans_max, out_payload);
    if (!status)
        *out_header_bytes = w.header_bytes;
    return status;
}
