/* Replies, and the detail of an error. */
#include "codec_record.h"
#include "mneme.pb-c.h"

#include <assert.h>
#include <string.h>

#define AT(member) offsetof(OF, member)

#define OF mn_table_info
static const mn_record_field table_fields[] = {
    {.number = 1, MN_SHAPE_U64, AT(table)},
    {.number = 2, MN_SHAPE_RECORD, AT(spec), .record = &mn_record_spec},
    {.number = 3, MN_SHAPE_U32, AT(tile_first)},
    {.number = 4, MN_SHAPE_U32, AT(tile_count)},
    {.number = 5, MN_SHAPE_U64, AT(rows_written)},
    {.number = 6, MN_SHAPE_U64, AT(resident_bytes)},
    {.number = 7, MN_SHAPE_U64, AT(counters)},
    {.number = 8, MN_SHAPE_U64, AT(moved)},
    {.number = 9, MN_SHAPE_U64, AT(move)},
    {.number = 10, MN_SHAPE_U32, AT(move_from)},
    {.number = 11, MN_SHAPE_U32, AT(move_to)},
    {.number = 12, MN_SHAPE_BOOL, AT(move_overdue)},
};
static const mn_record record_table = MN_RECORD(mn_table_info, table_fields);
#undef OF

#define OF mn_group_info
static const mn_record_field group_fields[] = {
    {.number = 1, MN_SHAPE_TEXT, AT(name), MN_NAME_BYTES},
    {.number = 2, MN_SHAPE_U32, AT(ranks)},
    {.number = 3, MN_SHAPE_U64, AT(committed_step)},
    {.number = 4, MN_SHAPE_U64, AT(map_epoch)},
    {.number = 5, MN_SHAPE_U32, AT(tables)},
    {.number = 6, MN_SHAPE_U64, AT(read_bytes)},
    {.number = 7, MN_SHAPE_U64, AT(read_bytes_max)},
    {.number = 8, MN_SHAPE_U64, AT(change_bytes)},
    {.number = 9, MN_SHAPE_U64, AT(change_bytes_max)},
    {.number = 10, MN_SHAPE_U32, AT(parked)},
};
static const mn_record record_group = MN_RECORD(mn_group_info, group_fields);
#undef OF

#define OF mn_files_info
static const mn_record_field files_fields[] = {
    {.number = 1, MN_SHAPE_TEXT, AT(group), MN_NAME_BYTES},
    {.number = 2, MN_SHAPE_ENUM, AT(phase), MN_FILES_LOAD + 1},
    {.number = 3, MN_SHAPE_TEXT, AT(path), MN_PATH_BYTES},
    {.number = 4, MN_SHAPE_U64, AT(step)},
    {.number = 5, MN_SHAPE_U64, AT(bytes)},
    {.number = 6, MN_SHAPE_U64, AT(bytes_due)},
    {.number = 7, MN_SHAPE_U64, AT(elapsed_ms)},
    {.number = 8, MN_SHAPE_U64, AT(ended_ms)},
};
static const mn_record record_files = MN_RECORD(mn_files_info, files_fields);
#undef OF

#define OF mn_reply
static const mn_record_field reply_fields[] = {
    {.number = 1, MN_SHAPE_U64, AT(step)},
    {.number = 2, MN_SHAPE_U64, AT(map_epoch)},
    {.number = 3, MN_SHAPE_U64, AT(incarnation)},
    {.number = 4, MN_SHAPE_BOOL, AT(sealed)},
    {.number = 5, MN_SHAPE_RECORD, AT(proposal), .record = &mn_record_proposal},
    {.number = 6, MN_SHAPE_F32S, AT(factors), MN_COMMIT_SETS_MAX},
    {.number = 7, MN_SHAPE_U64, AT(incarnation_sum)},
    {.number = 8, MN_SHAPE_U32, AT(ranks)},
    {.number = 9, MN_SHAPE_U32, AT(shards)},
    {.number = 10, MN_SHAPE_U32, AT(shard)},
    {.number = 11, MN_SHAPE_U64, AT(bytes)},
    {.number = 12, MN_SHAPE_U64, AT(table)},
    {.number = 13, MN_SHAPE_LENT, AT(tables), MN_INFO_MAX, AT(table_count), &record_table},
    {.number = 14, MN_SHAPE_LENT, AT(groups), MN_INFO_MAX, AT(group_count), &record_group},
    {.number = 16, MN_SHAPE_LENT, AT(files), MN_FILES_MAX, AT(files_count), &record_files},
    {.number = 17, MN_SHAPE_U64, AT(move)},
    {.number = 18, MN_SHAPE_U64, AT(move_last)},
    {.number = 19, MN_SHAPE_U64, AT(move_step)},
    {.number = 20, MN_SHAPE_BOOL, AT(move_taken)},
    {.number = 21, MN_SHAPE_U64, AT(move_position)},
    {.number = 22, MN_SHAPE_U64, AT(move_rows)},
};
static const mn_record record_reply = MN_RECORD(mn_reply, reply_fields);

static const mn_record_field error_fields[] = {
    {.number = 1, MN_SHAPE_ENUM, AT(status), MN_STATUS_COUNT},
    {.number = 2, MN_SHAPE_TEXT, AT(error.field), sizeof((mn_error *)0)->field},
    {.number = 3, MN_SHAPE_TEXT, AT(error.message), sizeof((mn_error *)0)->message},
    {.number = 4, MN_SHAPE_U64, AT(map_epoch)},
    {.number = 5, MN_SHAPE_U64, AT(step)},
};
static const mn_record record_error = MN_RECORD(mn_reply, error_fields);
#undef OF

static const ProtobufCMessageDescriptor *reply_message(enum mn_verb verb)
{
    assert((unsigned)verb < MN_VERB_COUNT);
    return mneme__v1__memory__descriptor.methods[verb].output;
}

enum mn_status mn_reply_encode(enum mn_verb verb, const mn_reply *reply, uint8_t *header,
                               uint32_t header_bytes_max, uint32_t *out_bytes, mn_error *error)
{
    const ProtobufCMessageDescriptor *message = reply_message(verb);
    return mn_header_encode(&record_reply, reply, message, reply->payload.bytes, header,
                            header_bytes_max, out_bytes, error);
}

enum mn_status mn_reply_decode(enum mn_verb verb, const uint8_t *header, uint32_t header_bytes,
                               mn_reply_arena *arena, mn_reply *out_reply, mn_error *error)
{
    mn_reply reply;
    memset(&reply, 0, sizeof reply);
    reply.tables = arena->tables;
    reply.groups = arena->groups;
    reply.files = arena->files;
    enum mn_status status =
        mn_record_decode(&record_reply, reply_message(verb), header, header_bytes, &reply, error);
    if (status)
        return status;
    *out_reply = reply;
    return MN_OK;
}

/* A protobuf string is UTF-8, or other languages' decoders refuse the whole detail; a message may
 * quote a peer's bytes. */
static void make_ascii(char *text)
{
    for (; *text; text++)
        if (*text < ' ' || *text > '~')
            *text = '?';
}

enum mn_status mn_error_encode(const mn_reply *reply, uint8_t *bytes, uint32_t bytes_max,
                               uint32_t *out_bytes)
{
    mn_reply shown = {.status = reply->status,
                      .error = reply->error,
                      .step = reply->step,
                      .map_epoch = reply->map_epoch};
    make_ascii(shown.error.field);
    make_ascii(shown.error.message);
    return mn_record_encode(&record_error, &shown, &mneme__v1__error_detail__descriptor, bytes,
                            bytes_max, out_bytes, NULL);
}

enum mn_status mn_error_decode(const uint8_t *bytes, uint32_t count, mn_reply *out_reply)
{
    mn_reply reply;
    memset(&reply, 0, sizeof reply);
    enum mn_status status = mn_record_decode(&record_error, &mneme__v1__error_detail__descriptor,
                                             bytes, count, &reply, NULL);
    if (status)
        return status;
    if (reply.status == MN_OK)
        return MN_INVALID; /* a failure that says success */
    reply.error.status = reply.status;
    *out_reply = reply;
    return MN_OK;
}
