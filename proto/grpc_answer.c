/* How a call at the gRPC server is answered: header and payload slices, or a status with its typed
 * error beside it. Initial metadata and status always go together: a status without the metadata
 * never reaches the client (measured on gRPC 1.51). */
#include "grpc_server.h"

#include <assert.h>
#include <grpc/byte_buffer.h>
#include <stdio.h>
#include <string.h>

enum { ERROR_BYTES_MAX = 512, OPS_MAX = 4 };

static grpc_op op_of(grpc_op_type type)
{
    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = type;
    return op;
}

static grpc_op end_op(struct server_call *call)
{
    grpc_op op = op_of(GRPC_OP_RECV_CLOSE_ON_SERVER);
    op.data.recv_close_on_server.cancelled = &call->cancelled;
    call->end_watched = true;
    return op;
}

void mn_server_watch_end(struct server_call *call)
{
    grpc_op op = end_op(call);
    grpc_call_error error = grpc_call_start_batch(call->call, &op, 1, &call->ended, NULL);
    assert(error == GRPC_CALL_OK); /* our own bug otherwise: the ops do not depend on the peer */
    call->batches++;
}

/* Sends what call->answer, call->text and `code` say. The batch also watches for the call's end
 * when no other does: a call answered at once needs one batch in all. */
static void send_answer(struct server_call *call, grpc_status_code code, size_t trailing_count)
{
    grpc_op ops[OPS_MAX];
    size_t count = 0;
    if (!call->told)
        ops[count++] = op_of(GRPC_OP_SEND_INITIAL_METADATA);
    if (call->answer && !call->told) {
        ops[count] = op_of(GRPC_OP_SEND_MESSAGE);
        ops[count++].data.send_message.send_message = call->answer;
    }
    ops[count] = op_of(GRPC_OP_SEND_STATUS_FROM_SERVER);
    ops[count].data.send_status_from_server.status = code;
    ops[count].data.send_status_from_server.status_details = &call->text;
    ops[count].data.send_status_from_server.trailing_metadata_count = trailing_count;
    ops[count++].data.send_status_from_server.trailing_metadata = &call->trailing;
    if (!call->end_watched)
        ops[count++] = end_op(call);
    grpc_call_error error = grpc_call_start_batch(call->call, ops, count, &call->sent, NULL);
    assert(error == GRPC_CALL_OK);
    call->batches++;
}

/* Common to all answers: counts, and gives back what was lent for the call. */
static void end_lending(struct server_call *call)
{
    mn_grpc_server *server = call->server;
    assert(!call->answered);
    call->answered = true;
    if (call->watching)
        server->watches--;
    else
        server->held_by_kind[mn_verb_kind_of(call->method->verb)]--;
    atomic_fetch_sub_explicit(&server->held, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&server->calls, 1, memory_order_relaxed);
    if (call->message)
        grpc_byte_buffer_destroy(call->message);
    call->message = NULL;
    if (call->reply_buffer)
        mn_reply_pool_give(server->pool, call->reply_buffer);
    call->reply_buffer = NULL;
}

static void set_answer(struct server_call *call, grpc_slice *slices, size_t count)
{
    call->answer = grpc_raw_byte_buffer_create(slices, count);
    for (size_t i = 0; i < count; i++)
        grpc_slice_unref(slices[i]); /* the byte buffer holds its own reference */
    atomic_fetch_add_explicit(&call->server->bytes_sent, grpc_byte_buffer_length(call->answer),
                              memory_order_relaxed);
    call->text = grpc_empty_slice();
}

static void answer_error(struct server_call *call)
{
    mn_reply *reply = &call->base.reply;
    uint8_t bytes[ERROR_BYTES_MAX];
    uint32_t count = 0;
    char text[sizeof reply->error.field + sizeof reply->error.message + 2];
    end_lending(call);
    atomic_fetch_add_explicit(&call->server->failures, 1, memory_order_relaxed);
    if (call->gone)
        return;
    reply->error.status = reply->status;
    if (!reply->error.message[0])
        (void)snprintf(reply->error.message, sizeof reply->error.message, "%s",
                       mn_status_sentence(reply->status));
    int length = snprintf(text, sizeof text, "%s%s%s", reply->error.field,
                          reply->error.field[0] ? ": " : "", reply->error.message);
    call->text = grpc_slice_from_copied_buffer(text, (size_t)length);
    bool typed = !mn_error_encode(reply, bytes, sizeof bytes, &count);
    call->trailing.key = grpc_slice_from_static_string(MN_GRPC_ERROR_KEY);
    call->trailing.value = grpc_slice_from_copied_buffer((const char *)bytes, count);
    send_answer(call, mn_grpc_code(reply->status), typed ? 1 : 0);
}

void mn_server_refuse(struct server_call *call, const mn_error *error)
{
    call->base.reply.status = error->status;
    call->base.reply.error = *error;
    answer_error(call);
}

void mn_server_answer_bytes(struct server_call *call, const void *bytes, uint32_t count)
{
    end_lending(call);
    grpc_slice slice = grpc_slice_from_static_buffer(bytes, count);
    set_answer(call, &slice, 1);
    send_answer(call, GRPC_STATUS_OK, 0);
}

uint8_t *mn_server_reserve(mn_call *base, uint64_t bytes)
{
    struct server_call *call = (struct server_call *)base;
    mn_reply *reply = &base->reply;
    assert(!call->reply_buffer && !call->answered);
    call->reply_too_large = bytes > MN_MESSAGE_BYTES_MAX - MN_HEADER_BYTES_MAX;
    if (call->reply_too_large)
        return NULL;
    call->reply_buffer = mn_reply_pool_take(call->server->pool, bytes);
    if (!call->reply_buffer)
        return NULL;
    call->reply_span = (mn_span){call->reply_buffer, bytes};
    reply->payload = (mn_payload){&call->reply_span, 1, bytes};
    return call->reply_buffer;
}

/* What the core cannot know: that no amount of waiting makes a message larger, and that the server
 * itself is why its calls were abandoned. */
static void correct_status(struct server_call *call)
{
    mn_reply *reply = &call->base.reply;
    if (reply->status == MN_BUSY && call->reply_too_large)
        reply->status =
            mn_fail(&reply->error, MN_INVALID, "count",
                    "the answer does not fit a message of %d bytes; ask for less at once",
                    MN_MESSAGE_BYTES_MAX);
    if (reply->status == MN_CANCELLED && call->server->abandoned && !call->gone)
        reply->status = mn_fail(&reply->error, MN_UNAVAILABLE, "shard",
                                "the shard is shutting down; try again");
}

void mn_server_finish(mn_call *base)
{
    struct server_call *call = (struct server_call *)base;
    mn_grpc_server *server = call->server;
    mn_reply *reply = &base->reply;
    uint32_t header_bytes = 0;
    correct_status(call);
    if (!reply->status)
        reply->status = mn_reply_encode(base->request.verb, reply, server->header,
                                        sizeof server->header, &header_bytes, &reply->error);
    if (reply->status || call->gone) {
        answer_error(call);
        return;
    }
    grpc_slice slices[2];
    size_t count = 0;
    slices[count++] = grpc_slice_from_copied_buffer((const char *)server->header, header_bytes);
    if (reply->payload.bytes) {
        assert(call->reply_buffer && reply->payload.spans == &call->reply_span);
        slices[count++] =
            mn_reply_pool_slice(server->pool, call->reply_buffer, reply->payload.bytes);
        call->reply_buffer = NULL;
    }
    end_lending(call);
    set_answer(call, slices, count);
    send_answer(call, GRPC_STATUS_OK, 0);
}
