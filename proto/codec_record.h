/* Private to the codec: plain C structs to protobuf-c messages and back, driven by one field table
 * per struct. */
#ifndef MN_CODEC_RECORD_H
#define MN_CODEC_RECORD_H

#include "mn_proto.h"

struct ProtobufCMessageDescriptor;

/* How a member of one of our structs lies in memory. */
enum mn_shape {
    MN_SHAPE_U32,
    MN_SHAPE_U64,
    MN_SHAPE_BOOL,
    MN_SHAPE_F32,
    MN_SHAPE_ENUM,    /* any value below `limit` */
    MN_SHAPE_TEXT,    /* char [limit], NUL-terminated */
    MN_SHAPE_ID,      /* uint8_t [limit]: all of it, or nothing (then zeros) */
    MN_SHAPE_U64S,    /* uint64_t [limit], of which `count` are used */
    MN_SHAPE_F32S,    /* float [limit], as many as `count`, which another field has set; without
                        `count`, trailing zeros are left out */
    MN_SHAPE_RECORD,  /* one struct `record` */
    MN_SHAPE_RECORDS, /* struct `record` [limit], of which `count` are used */
    MN_SHAPE_LENT     /* a pointer to such an array */
};

/* One member. A message carries the fields of the table that its descriptor names by number, so
 * all requests share one table. Numbers ascend. */
typedef struct mn_record_field {
    uint32_t number;
    enum mn_shape shape;
    uint32_t offset;
    uint32_t limit;
    uint32_t count; /* offset of the uint32_t count; 0: none */
    const struct mn_record *record;
} mn_record_field;

typedef struct mn_record {
    const mn_record_field *fields;
    uint32_t field_count;
    uint32_t bytes; /* of the struct */
} mn_record;

#define MN_RECORD(type, table)                                                                     \
    {                                                                                              \
        (table), sizeof(table) / sizeof(table)[0], sizeof(type)                                    \
    }

extern const mn_record mn_record_spec, mn_record_proposal; /* codec_request.c */

/* Encodes the fields that `message` knows. MN_INVALID names one that is past its limit, or `bytes`
 * when the whole does not fit. */
enum mn_status mn_record_encode(const mn_record *record, const void *value,
                                const struct ProtobufCMessageDescriptor *message, uint8_t *bytes,
                                uint32_t bytes_max, uint32_t *out_bytes, mn_error *error);

/* Decodes into *out_value, whose other fields the caller has zeroed (and whose lent arrays it has
 * set). MN_CORRUPT: not this message; MN_INVALID names the field past its limit. *out_value is
 * unspecified on failure. */
enum mn_status mn_record_decode(const mn_record *record,
                                const struct ProtobufCMessageDescriptor *message,
                                const uint8_t *bytes, uint32_t count, void *out_value,
                                mn_error *error);

/* A message's header: the fields, then the tag and length of the payload that follows it, if it is
 * not empty. MN_INVALID too when the message has no payload. */
enum mn_status mn_header_encode(const mn_record *record, const void *value,
                                const struct ProtobufCMessageDescriptor *message,
                                uint64_t payload_bytes, uint8_t *header, uint32_t header_bytes_max,
                                uint32_t *out_bytes, mn_error *error);

#endif
