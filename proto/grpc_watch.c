/* grpc.health.v1.Health: Check answers once; Watch tells the state now and each change of it, until
 * the caller or the server goes. A watch is a call that is never answered: its messages go in
 * batches of their own, one at a time. Changes are looked for WATCH_POLL_NS apart, so that
 * mn_grpc_server_set_healthy wakes nobody. */
#include "grpc_server.h"

#include <assert.h>
#include <grpc/byte_buffer.h>
#include <string.h>

enum { HEALTH_REQUEST_BYTES_MAX = 64 };
enum health { HEALTH_SERVING = 1, HEALTH_NOT_SERVING = 2, HEALTH_SERVICE_UNKNOWN = 3 };

/* HealthCheckResponse { status = 1 }, by enum health. */
static const uint8_t responses[][2] = {{0x08, 0}, {0x08, 1}, {0x08, 2}, {0x08, 3}};

/* Whether the request asks for "" or for our service. It has one field, `service`, so its bytes are
 * compared whole. */
static enum mn_status read_service(struct server_call *call, bool *out_known, mn_error *error)
{
    static const char ours[] = "\x0a\x0f" MN_SERVICE; /* field 1, 15 bytes */
    _Static_assert(sizeof MN_SERVICE - 1 == 15, "the length in `ours`");
    mn_grpc_server *server = call->server;
    uint8_t bytes[HEALTH_REQUEST_BYTES_MAX];
    uint32_t span_count = 0;
    size_t count = 0;
    enum mn_status status = mn_grpc_spans(&call->message, server->spans, &span_count, error);
    if (status)
        return status;
    for (uint32_t i = 0; i < span_count; i++) {
        if (server->spans[i].count > sizeof bytes - count) {
            *out_known = false;
            return MN_OK;
        }
        memcpy(bytes + count, server->spans[i].bytes, server->spans[i].count);
        count += server->spans[i].count;
    }
    *out_known = !count || (count == sizeof ours - 1 && !memcmp(bytes, ours, count));
    return MN_OK;
}

static enum health health_of(mn_grpc_server *server)
{
    return atomic_load(&server->healthy) ? HEALTH_SERVING : HEALTH_NOT_SERVING;
}

void mn_server_check(struct server_call *call)
{
    mn_error error = {0};
    bool known = false;
    enum mn_status status = read_service(call, &known, &error);
    if (!status && !known)
        status = mn_fail(&error, MN_NOT_FOUND, "service", "this server has %s only", MN_SERVICE);
    if (status)
        mn_server_refuse(call, &error);
    else
        mn_server_answer_bytes(call, responses[health_of(call->server)], sizeof responses[0]);
}

/* ---- Watch */

static void tell(struct server_call *call, enum health health)
{
    grpc_op ops[2];
    size_t count = 0;
    memset(ops, 0, sizeof ops);
    if (!call->told)
        ops[count++].op = GRPC_OP_SEND_INITIAL_METADATA;
    grpc_slice slice = grpc_slice_from_static_buffer(responses[health], sizeof responses[0]);
    call->answer = grpc_raw_byte_buffer_create(&slice, 1);
    ops[count].op = GRPC_OP_SEND_MESSAGE;
    ops[count++].data.send_message.send_message = call->answer;
    grpc_call_error error = grpc_call_start_batch(call->call, ops, count, &call->sent, NULL);
    assert(error == GRPC_CALL_OK); /* our own bug otherwise */
    call->told = (uint8_t)health;
    call->batches++;
}

void mn_server_watch(struct server_call *call)
{
    mn_grpc_server *server = call->server;
    mn_error error = {0};
    bool known = false;
    enum mn_status status = MN_OK;
    if (server->abandoned)
        status = mn_fail(&error, MN_UNAVAILABLE, "shard", "the shard is shutting down; try again");
    else if (server->watches >= WATCHES_MAX)
        status = mn_fail(&error, MN_BUSY, "watches", "%d watch this shard already", WATCHES_MAX);
    if (!status)
        status = read_service(call, &known, &error);
    if (status) {
        mn_server_refuse(call, &error);
        return;
    }
    server->held_by_kind[mn_verb_kind_of(call->method->verb)]--; /* else it had a place there */
    server->watches++;
    call->watching = true;
    call->service_known = known;
    tell(call, known ? health_of(server) : HEALTH_SERVICE_UNKNOWN);
}

void mn_server_watch_sent(struct server_call *call)
{
    if (call->answer)
        grpc_byte_buffer_destroy(call->answer);
    call->answer = NULL;
}

void mn_server_watches_tell(mn_grpc_server *server)
{
    enum health health = health_of(server);
    for (uint32_t i = 0; server->watches && i < server->slots_used; i++) {
        struct server_call *call = &server->slots[i];
        if (call->watching && !call->answered && call->service_known && !call->answer &&
            call->told != health)
            tell(call, health);
    }
}

void mn_server_watch_stop(struct server_call *call)
{
    mn_error error = {0};
    (void)mn_fail(&error, MN_UNAVAILABLE, "shard", "the shard is shutting down"); /* fills error */
    mn_server_refuse(call, &error);
}
