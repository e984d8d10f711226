/* Requests, and the records that requests and replies share. */
#include "codec_record.h"
#include "mneme.pb-c.h"

#include <assert.h>
#include <string.h>

#define AT(member) offsetof(OF, member)

#define OF mn_context
static const mn_record_field context_fields[] = {
    {.number = 1, MN_SHAPE_U32, AT(version)},
    {.number = 2, MN_SHAPE_TEXT, AT(group), MN_NAME_BYTES},
    {.number = 3, MN_SHAPE_U64, AT(map_epoch)},
    {.number = 4, MN_SHAPE_U64, AT(step)},
    {.number = 5, MN_SHAPE_U32, AT(rank)},
    {.number = 6, MN_SHAPE_U64, AT(incarnation)},
    {.number = 7, MN_SHAPE_ID, AT(request_id), 16},
    {.number = 8, MN_SHAPE_U64, AT(remaining_ms)},
    {.number = 9, MN_SHAPE_U64, AT(settled_step)},
    {.number = 10, MN_SHAPE_U64, AT(committed_step)},
    {.number = 11, MN_SHAPE_BOOL, AT(table_told)},
};
static const mn_record record_context = MN_RECORD(mn_context, context_fields);
#undef OF

#define OF mn_init
static const mn_record_field init_fields[] = {
    {.number = 1, MN_SHAPE_ENUM, AT(kind), MN_INIT_UNIFORM + 1},
    {.number = 2, MN_SHAPE_F32, AT(a)},
    {.number = 3, MN_SHAPE_F32, AT(b)},
};
static const mn_record record_init = MN_RECORD(mn_init, init_fields);
#undef OF

#define OF mn_optimizer
static const mn_record_field optimizer_fields[] = {
    {.number = 1, MN_SHAPE_ENUM, AT(kind), MN_OPTIMIZER_ADAMW + 1},
    {.number = 2, MN_SHAPE_F32, AT(beta1)},
    {.number = 3, MN_SHAPE_F32, AT(beta2)},
    {.number = 4, MN_SHAPE_F32, AT(eps)},
    {.number = 5, MN_SHAPE_ENUM, AT(state_dtype), MN_F64 + 1},
    {.number = 6, MN_SHAPE_BOOL, AT(row_correction)},
};
static const mn_record record_optimizer = MN_RECORD(mn_optimizer, optimizer_fields);
#undef OF

#define OF mn_table_spec
static const mn_record_field spec_fields[] = {
    {.number = 1, MN_SHAPE_TEXT, AT(name), MN_NAME_BYTES},
    {.number = 2, MN_SHAPE_U64, AT(rows)},
    {.number = 3, MN_SHAPE_U32, AT(dim)},
    {.number = 4, MN_SHAPE_ENUM, AT(dtype), MN_F64 + 1},
    {.number = 5, MN_SHAPE_ENUM, AT(split), MN_ROWS + 1},
    {.number = 6, MN_SHAPE_U32, AT(tiles)},
    {.number = 7, MN_SHAPE_U64, AT(seed)},
    {.number = 8, MN_SHAPE_RECORD, AT(init), .record = &record_init},
    {.number = 9, MN_SHAPE_RECORD, AT(optimizer), .record = &record_optimizer},
};
const mn_record mn_record_spec = MN_RECORD(mn_table_spec, spec_fields);
#undef OF

#define OF mn_commit_set
static const mn_record_field set_fields[] = {
    {.number = 1, MN_SHAPE_U64S, AT(tables), MN_COMMIT_TABLES_MAX, AT(table_count)},
    {.number = 2, MN_SHAPE_F32, AT(learning_rate)},
    {.number = 3, MN_SHAPE_F32, AT(weight_decay)},
    {.number = 4, MN_SHAPE_F32, AT(scale)},
    {.number = 5, MN_SHAPE_F32, AT(clip_norm)},
};
static const mn_record record_set = MN_RECORD(mn_commit_set, set_fields);
#undef OF

#define OF mn_proposal
static const mn_record_field proposal_fields[] = {
    {.number = 1, MN_SHAPE_RECORDS, AT(sets), MN_COMMIT_SETS_MAX, AT(set_count), &record_set},
    {.number = 2, MN_SHAPE_BOOL, AT(discard)},
};
const mn_record mn_record_proposal = MN_RECORD(mn_proposal, proposal_fields);
#undef OF

#define OF mn_request
static const mn_record_field request_fields[] = {
    {.number = 1, MN_SHAPE_RECORD, AT(context), .record = &record_context},
    {.number = 2, MN_SHAPE_U64, AT(table)},
    {.number = 3, MN_SHAPE_U32, AT(tile_first)},
    {.number = 4, MN_SHAPE_U32, AT(tile_count)},
    {.number = 5, MN_SHAPE_U64, AT(count)},
    {.number = 6, MN_SHAPE_U32, AT(per_query)},
    {.number = 7, MN_SHAPE_ENUM, AT(index_encoding), MN_INDEX_PACKED + 1},
    {.number = 8, MN_SHAPE_ENUM, AT(value_dtype), MN_F64 + 1},
    {.number = 9, MN_SHAPE_ENUM, AT(weight_dtype), MN_F64 + 1},
    {.number = 10, MN_SHAPE_ENUM, AT(read), MN_READ_LATEST + 1},
    {.number = 11, MN_SHAPE_U32, AT(staleness)},
    {.number = 12, MN_SHAPE_U32, AT(part)},
    {.number = 13, MN_SHAPE_U64, AT(position)},
    {.number = 14, MN_SHAPE_BOOL, AT(with_state)},
    {.number = 16, MN_SHAPE_RECORD, AT(spec), .record = &mn_record_spec},
    {.number = 17, MN_SHAPE_U32, AT(ranks)},
    {.number = 18, MN_SHAPE_ENUM, AT(join), MN_JOIN_REPLAY + 1},
    {.number = 19, MN_SHAPE_U64, AT(pieces)},
    {.number = 20, MN_SHAPE_BOOL, AT(norms)},
    {.number = 21, MN_SHAPE_RECORD, AT(proposal), .record = &mn_record_proposal},
    {.number = 22, MN_SHAPE_F32S, AT(factors), MN_COMMIT_SETS_MAX, AT(proposal.set_count)},
    {.number = 23, MN_SHAPE_U64, AT(incarnation_sum)},
    {.number = 24, MN_SHAPE_TEXT, AT(name), MN_NAME_BYTES},
    {.number = 25, MN_SHAPE_ENUM, AT(files), MN_FILES_LOAD + 1},
    {.number = 26, MN_SHAPE_TEXT, AT(path), MN_PATH_BYTES},
    {.number = 27, MN_SHAPE_TEXT, AT(spec.name), MN_NAME_BYTES},
    {.number = 28, MN_SHAPE_ENUM, AT(durability), MN_DURABILITY_SYNC + 1},
    {.number = 29, MN_SHAPE_U64, AT(rate)},
    {.number = 30, MN_SHAPE_U64, AT(acknowledged)},
    {.number = 31, MN_SHAPE_U64, AT(saved_step)},
    {.number = 32, MN_SHAPE_U64, AT(save)},
    {.number = 33, MN_SHAPE_ENUM, AT(move_phase), MN_MOVE_CANCEL + 1},
    {.number = 34, MN_SHAPE_U64, AT(move)},
    {.number = 35, MN_SHAPE_U32, AT(move_from)},
    {.number = 36, MN_SHAPE_U32, AT(move_to)},
    {.number = 37, MN_SHAPE_U64, AT(moved)},
};
static const mn_record record_request = MN_RECORD(mn_request, request_fields);
#undef OF

/* The service's methods stand in the order of MN_VERB_LIST (a test compares the names). */
static const ProtobufCMessageDescriptor *request_message(enum mn_verb verb)
{
    return mneme__v1__memory__descriptor.methods[verb].input;
}

enum mn_status mn_request_encode(const mn_request *request, uint8_t *header,
                                 uint32_t header_bytes_max, uint32_t *out_bytes, mn_error *error)
{
    assert((unsigned)request->verb < MN_VERB_COUNT);
    const ProtobufCMessageDescriptor *message = request_message(request->verb);
    return mn_header_encode(&record_request, request, message, request->payload.bytes, header,
                            header_bytes_max, out_bytes, error);
}

enum mn_status mn_request_decode(enum mn_verb verb, const uint8_t *header, uint32_t header_bytes,
                                 mn_request *out_request, mn_error *error)
{
    assert((unsigned)verb < MN_VERB_COUNT);
    mn_request request;
    memset(&request, 0, sizeof request);
    enum mn_status status = mn_record_decode(&record_request, request_message(verb), header,
                                             header_bytes, &request, error);
    if (status)
        return status;
    request.verb = verb;
    *out_request = request;
    return MN_OK;
}
