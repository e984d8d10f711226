/* The field tables' interpreter: our structs to protobuf-c messages and back, through the offsets
 * that protobuf-c's descriptors give. All memory is one arena on the stack, so that a peer's
 * lengths never reach malloc: what does not fit there is refused. */
#include "codec_record.h"

#include <assert.h>
#include <protobuf-c/protobuf-c.h>
#include <string.h>

/* Enough for 64 tables and 64 groups, the largest reply, several times over. */
enum { ARENA_BYTES = 128 << 10, ARENA_ALIGNMENT = 16 };

typedef struct arena {
    _Alignas(ARENA_ALIGNMENT) uint8_t bytes[ARENA_BYTES];
    size_t used;
    bool exhausted;
} arena;

static void arena_init(arena *memory)
{
    memory->used = 0; /* the bytes stay as they are: zeroing them would cost more than decoding */
    memory->exhausted = false;
}

static void *arena_allocate(void *context, size_t bytes)
{
    arena *memory = context;
    if (bytes > ARENA_BYTES - memory->used) {
        memory->exhausted = true;
        return NULL;
    }
    void *out = memory->bytes + memory->used;
    size_t rounded = (bytes + ARENA_ALIGNMENT - 1) & ~(size_t)(ARENA_ALIGNMENT - 1);
    memory->used += rounded < ARENA_BYTES - memory->used ? rounded : ARENA_BYTES - memory->used;
    return out;
}

static void arena_free(void *context, void *memory)
{
    (void)context;
    (void)memory; /* all at once, with the arena */
}

static const mn_record_field *find_field(const mn_record *record, uint32_t number, uint32_t *at)
{
    while (*at < record->field_count && record->fields[*at].number < number)
        ++*at;
    if (*at < record->field_count && record->fields[*at].number == number)
        return &record->fields[*at];
    assert(number == MN_PAYLOAD_FIELD); /* else a message has a field that its table lacks */
    return NULL;
}

static bool shape_fits(enum mn_shape shape, ProtobufCType type)
{
    switch (shape) {
    case MN_SHAPE_U32:
        return type == PROTOBUF_C_TYPE_UINT32;
    case MN_SHAPE_U64:
    case MN_SHAPE_U64S:
        return type == PROTOBUF_C_TYPE_UINT64;
    case MN_SHAPE_BOOL:
        return type == PROTOBUF_C_TYPE_BOOL;
    case MN_SHAPE_F32:
    case MN_SHAPE_F32S:
        return type == PROTOBUF_C_TYPE_FLOAT;
    case MN_SHAPE_ENUM:
        return type == PROTOBUF_C_TYPE_ENUM;
    case MN_SHAPE_TEXT:
        return type == PROTOBUF_C_TYPE_STRING;
    case MN_SHAPE_ID:
        return type == PROTOBUF_C_TYPE_BYTES;
    case MN_SHAPE_RECORD:
    case MN_SHAPE_RECORDS:
    case MN_SHAPE_LENT:
        return type == PROTOBUF_C_TYPE_MESSAGE;
    }
    return false;
}

static enum mn_status past_limit(const char *name, uint64_t count, uint32_t limit, mn_error *error)
{
    return mn_fail(error, MN_INVALID, name, "%llu is more than the %u that fit",
                   (unsigned long long)count, limit);
}

static enum mn_status unknown_value(const char *name, uint32_t value, mn_error *error)
{
    return mn_fail(error, MN_INVALID, name, "unknown value %u", value);
}

/* ---- Encoding */

static enum mn_status fill_message(arena *memory, const mn_record *record, const uint8_t *value,
                                   const ProtobufCMessageDescriptor *descriptor, void *message,
                                   mn_error *error);

static enum mn_status fill_records(arena *memory, const mn_record *record, const uint8_t *values,
                                   uint32_t count, const ProtobufCFieldDescriptor *target,
                                   void **out_messages, mn_error *error)
{
    const ProtobufCMessageDescriptor *descriptor = target->descriptor;
    for (uint32_t i = 0; i < count; i++) {
        out_messages[i] = arena_allocate(memory, descriptor->sizeof_message);
        if (!out_messages[i])
            return mn_fail(error, MN_INVALID, target->name, "too many parts");
        enum mn_status status = fill_message(memory, record, values + (size_t)i * record->bytes,
                                             descriptor, out_messages[i], error);
        if (status)
            return status;
    }
    return MN_OK;
}

static enum mn_status fill_repeated(arena *memory, const mn_record_field *field,
                                    const uint8_t *value, const ProtobufCFieldDescriptor *target,
                                    uint8_t *message, mn_error *error)
{
    const uint8_t *values = value + field->offset;
    uint32_t count = field->limit;
    if (field->count)
        memcpy(&count, value + field->count, sizeof count);
    if (count > field->limit)
        return past_limit(target->name, count, field->limit, error);
    if (!field->count) /* F32S whose count is not told */
        while (count && ((const float *)(const void *)values)[count - 1] == 0)
            count--;
    if (field->shape == MN_SHAPE_LENT)
        memcpy(&values, value + field->offset, sizeof values);
    size_t n = count;
    memcpy(message + target->quantifier_offset, &n, sizeof n);
    if (!count)
        return MN_OK;
    if (field->shape == MN_SHAPE_U64S || field->shape == MN_SHAPE_F32S) {
        memcpy(message + target->offset, &values, sizeof values);
        return MN_OK;
    }
    void **messages = arena_allocate(memory, n * sizeof *messages);
    if (!messages)
        return mn_fail(error, MN_INVALID, target->name, "too many parts");
    memcpy(message + target->offset, &messages, sizeof messages);
    return fill_records(memory, field->record, values, count, target, messages, error);
}

static enum mn_status fill_field(arena *memory, const mn_record_field *field, const uint8_t *value,
                                 const ProtobufCFieldDescriptor *target, uint8_t *message,
                                 mn_error *error)
{
    const uint8_t *from = value + field->offset;
    uint8_t *to = message + target->offset;
    switch (field->shape) {
    case MN_SHAPE_U32:
    case MN_SHAPE_F32:
        memcpy(to, from, 4);
        return MN_OK;
    case MN_SHAPE_U64:
        memcpy(to, from, 8);
        return MN_OK;
    case MN_SHAPE_BOOL: {
        protobuf_c_boolean flag = *(const bool *)from;
        memcpy(to, &flag, sizeof flag);
        return MN_OK;
    }
    case MN_SHAPE_ENUM: {
        uint32_t number;
        memcpy(&number, from, sizeof number);
        memcpy(to, &number, sizeof number);
        return number < field->limit ? MN_OK : unknown_value(target->name, number, error);
    }
    case MN_SHAPE_TEXT:
        memcpy(to, &from, sizeof from);
        return memchr(from, 0, field->limit)
                   ? MN_OK
                   : mn_fail(error, MN_INVALID, target->name, "not terminated");
    case MN_SHAPE_ID: {
        ProtobufCBinaryData data = {field->limit, (uint8_t *)(uintptr_t)from};
        memcpy(to, &data, sizeof data);
        return MN_OK;
    }
    case MN_SHAPE_RECORD: {
        void *child;
        enum mn_status status = fill_records(memory, field->record, from, 1, target, &child, error);
        memcpy(to, &child, sizeof child);
        return status;
    }
    case MN_SHAPE_U64S:
    case MN_SHAPE_F32S:
    case MN_SHAPE_RECORDS:
    case MN_SHAPE_LENT:
        return fill_repeated(memory, field, value, target, message, error);
    }
    return MN_OK;
}

static enum mn_status fill_message(arena *memory, const mn_record *record, const uint8_t *value,
                                   const ProtobufCMessageDescriptor *descriptor, void *message,
                                   mn_error *error)
{
    descriptor->message_init(message);
    uint32_t at = 0;
    for (unsigned i = 0; i < descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *target = &descriptor->fields[i];
        const mn_record_field *field = find_field(record, target->id, &at);
        if (!field)
            continue;
        assert(shape_fits(field->shape, target->type));
        enum mn_status status = fill_field(memory, field, value, target, message, error);
        if (status)
            return status;
    }
    return MN_OK;
}

enum mn_status mn_record_encode(const mn_record *record, const void *value,
                                const ProtobufCMessageDescriptor *message, uint8_t *bytes,
                                uint32_t bytes_max, uint32_t *out_bytes, mn_error *error)
{
    arena memory;
    arena_init(&memory);
    void *root = arena_allocate(&memory, message->sizeof_message);
    enum mn_status status = fill_message(&memory, record, value, message, root, error);
    if (status)
        return status;
    size_t count = protobuf_c_message_get_packed_size(root);
    if (count > bytes_max)
        return past_limit("header", count, bytes_max, error);
    *out_bytes = (uint32_t)protobuf_c_message_pack(root, bytes);
    return MN_OK;
}

/* ---- Decoding */

static enum mn_status read_message(const mn_record *record, const ProtobufCMessage *message,
                                   uint8_t *out_value, mn_error *error);

static enum mn_status read_repeated(const mn_record_field *field, const uint8_t *message,
                                    const ProtobufCFieldDescriptor *source, uint8_t *out_value,
                                    mn_error *error)
{
    size_t n;
    const void *values;
    memcpy(&n, message + source->quantifier_offset, sizeof n);
    memcpy(&values, message + source->offset, sizeof values);
    if (n > field->limit)
        return past_limit(source->name, n, field->limit, error);
    uint32_t count = (uint32_t)n;
    uint8_t *out = out_value + field->offset;
    if (field->shape == MN_SHAPE_F32S && field->count) {
        uint32_t wanted;
        memcpy(&wanted, out_value + field->count, sizeof wanted);
        if (count != wanted)
            return mn_fail(error, MN_INVALID, source->name, "%u given where %u are due", count,
                           wanted);
    } else if (field->count) {
        memcpy(out_value + field->count, &count, sizeof count);
    }
    if (!count)
        return MN_OK;
    if (field->shape == MN_SHAPE_U64S || field->shape == MN_SHAPE_F32S) {
        memcpy(out, values, n * (field->shape == MN_SHAPE_U64S ? 8 : 4));
        return MN_OK;
    }
    if (field->shape == MN_SHAPE_LENT)
        memcpy(&out, out_value + field->offset, sizeof out);
    const ProtobufCMessage *const *messages = values;
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *element = out + (size_t)i * field->record->bytes;
        memset(element, 0, field->record->bytes);
        enum mn_status status = read_message(field->record, messages[i], element, error);
        if (status)
            return status;
    }
    return MN_OK;
}

static enum mn_status read_field(const mn_record_field *field, const uint8_t *message,
                                 const ProtobufCFieldDescriptor *source, uint8_t *out_value,
                                 mn_error *error)
{
    const uint8_t *from = message + source->offset;
    uint8_t *to = out_value + field->offset;
    switch (field->shape) {
    case MN_SHAPE_U32:
        memcpy(to, from, 4);
        return MN_OK;
    case MN_SHAPE_F32: {
        float number;
        memcpy(&number, from, sizeof number);
        number += 0.0f; /* -0 is 0: proto3 leaves both away */
        memcpy(to, &number, sizeof number);
        return MN_OK;
    }
    case MN_SHAPE_U64:
        memcpy(to, from, 8);
        return MN_OK;
    case MN_SHAPE_BOOL: {
        protobuf_c_boolean flag;
        memcpy(&flag, from, sizeof flag);
        *(bool *)to = flag != 0;
        return MN_OK;
    }
    case MN_SHAPE_ENUM: {
        uint32_t number;
        memcpy(&number, from, sizeof number);
        memcpy(to, &number, sizeof number);
        return number < field->limit ? MN_OK : unknown_value(source->name, number, error);
    }
    case MN_SHAPE_TEXT: {
        const char *text;
        memcpy(&text, from, sizeof text);
        size_t length = strlen(text);
        if (length >= field->limit)
            return past_limit(source->name, length, field->limit - 1, error);
        memcpy(to, text, length + 1);
        return MN_OK;
    }
    case MN_SHAPE_ID: {
        ProtobufCBinaryData data;
        memcpy(&data, from, sizeof data);
        if (data.len && data.len != field->limit)
            return mn_fail(error, MN_INVALID, source->name, "%zu bytes where %u are due", data.len,
                           field->limit);
        if (data.len)
            memcpy(to, data.data, data.len);
        return MN_OK;
    }
    case MN_SHAPE_RECORD: {
        const ProtobufCMessage *child;
        memcpy(&child, from, sizeof child);
        return child ? read_message(field->record, child, to, error) : MN_OK;
    }
    case MN_SHAPE_U64S:
    case MN_SHAPE_F32S:
    case MN_SHAPE_RECORDS:
    case MN_SHAPE_LENT:
        return read_repeated(field, message, source, out_value, error);
    }
    return MN_OK;
}

static enum mn_status read_message(const mn_record *record, const ProtobufCMessage *message,
                                   uint8_t *out_value, mn_error *error)
{
    uint32_t at = 0;
    for (unsigned i = 0; i < message->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *source = &message->descriptor->fields[i];
        const mn_record_field *field = find_field(record, source->id, &at);
        if (!field)
            continue;
        assert(shape_fits(field->shape, source->type));
        enum mn_status status =
            read_field(field, (const uint8_t *)message, source, out_value, error);
        if (status)
            return status;
    }
    return MN_OK;
}

enum mn_status mn_record_decode(const mn_record *record, const ProtobufCMessageDescriptor *message,
                                const uint8_t *bytes, uint32_t count, void *out_value,
                                mn_error *error)
{
    arena memory;
    arena_init(&memory);
    ProtobufCAllocator allocator = {arena_allocate, arena_free, &memory};
    ProtobufCMessage *root = protobuf_c_message_unpack(message, &allocator, count, bytes);
    if (!root && memory.exhausted)
        return mn_fail(error, MN_INVALID, "header", "too many fields in %u bytes", count);
    if (!root)
        return mn_fail(error, MN_CORRUPT, "header", "%u bytes are not a %s", count,
                       message->short_name);
    return read_message(record, root, out_value, error);
}

/* ---- The payload's tag */

static enum mn_status payload_tag_encode(const ProtobufCMessageDescriptor *message,
                                         uint64_t payload_bytes, uint8_t *bytes, uint32_t bytes_max,
                                         uint32_t *in_out_bytes, mn_error *error)
{
    if (!payload_bytes)
        return MN_OK;
    if (!protobuf_c_message_descriptor_get_field(message, MN_PAYLOAD_FIELD))
        return mn_fail(error, MN_INVALID, "payload", "a %s has none", message->short_name);
    if (payload_bytes > MN_MESSAGE_BYTES_MAX)
        return past_limit("payload", payload_bytes, MN_MESSAGE_BYTES_MAX, error);
    uint8_t tag[8] = {MN_PAYLOAD_FIELD << 3 | PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED};
    uint32_t tag_bytes = 1;
    for (; payload_bytes >= 0x80; payload_bytes >>= 7)
        tag[tag_bytes++] = (uint8_t)(payload_bytes | 0x80);
    tag[tag_bytes++] = (uint8_t)payload_bytes;
    if (tag_bytes > bytes_max - *in_out_bytes)
        return past_limit("header", (uint64_t)*in_out_bytes + tag_bytes, bytes_max, error);
    memcpy(bytes + *in_out_bytes, tag, tag_bytes);
    *in_out_bytes += tag_bytes;
    return MN_OK;
}

enum mn_status mn_header_encode(const mn_record *record, const void *value,
                                const ProtobufCMessageDescriptor *message, uint64_t payload_bytes,
                                uint8_t *header, uint32_t header_bytes_max, uint32_t *out_bytes,
                                mn_error *error)
{
    uint32_t bytes = 0;
    enum mn_status status =
        mn_record_encode(record, value, message, header, header_bytes_max, &bytes, error);
    if (!status)
        status =
            payload_tag_encode(message, payload_bytes, header, header_bytes_max, &bytes, error);
    if (!status)
        *out_bytes = bytes;
    return status;
}
