/* The tiny core, its server thread, and waiting for exchanges. */
#include "rig.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- The core ---------------------------------------------------------------------------- */

static void unpark(rig *it, mn_call *call)
{
    if (call->previous)
        call->previous->next = call->next;
    else
        it->parked = call->next;
    if (call->next)
        call->next->previous = call->previous;
    call->core = NULL;
    pthread_mutex_lock(&it->lock);
    it->parked_count--;
    pthread_mutex_unlock(&it->lock);
}

static void answer(mn_call *call, enum mn_status status, const char *field, const char *message)
{
    call->reply.status = status;
    if (status)
        (void)mn_fail(&call->reply.error, status, field, "%s", message);
    call->finish(call);
}

static void park(rig *it, mn_call *call)
{
    uint64_t now = it->env.now_ns(it->env.context);
    call->deadline_ns = now + call->request.context.remaining_ms * 1000000;
    call->core = it;
    call->previous = NULL;
    call->next = it->parked;
    if (call->next)
        call->next->previous = call;
    it->parked = call;
    pthread_mutex_lock(&it->lock);
    it->parked_count++;
    pthread_cond_broadcast(&it->changed);
    pthread_mutex_unlock(&it->lock);
}

static void answer_bytes(mn_call *call, uint64_t count, bool echo)
{
    uint8_t *bytes = call->reserve(call, count);
    if (!bytes) {
        answer(call, MN_BUSY, "reply", "no room");
        return;
    }
    if (echo) {
        mn_cursor cursor;
        mn_cursor_init(&cursor, &call->request.payload, 0);
        mn_cursor_read(&cursor, bytes, count);
    } else {
        for (uint64_t i = 0; i < count; i++)
            bytes[i] = rig_byte(i);
    }
    answer(call, MN_OK, NULL, NULL);
}

static uint64_t sum_of(const mn_payload *payload)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < payload->span_count; i++)
        for (uint64_t j = 0; j < payload->spans[i].count; j++)
            sum += payload->spans[i].bytes[j];
    return sum;
}

static void handle(void *core, mn_call *call)
{
    rig *it = core;
    pthread_mutex_lock(&it->lock);
    it->last_verb = call->request.verb;
    it->last_context = call->request.context;
    memcpy(it->last_trace, call->traceparent, sizeof it->last_trace);
    pthread_mutex_unlock(&it->lock);
    call->reply.step = call->request.context.step;
    switch (call->request.verb) {
    case MN_VERB_PUSH:
        call->reply.step = sum_of(&call->request.payload);
        answer(call, MN_OK, NULL, NULL);
        break;
    case MN_VERB_FETCH:
        answer_bytes(call, call->request.count, false);
        break;
    case MN_VERB_BAG:
        answer_bytes(call, call->request.payload.bytes, true);
        break;
    case MN_VERB_SEAL:
        park(it, call);
        break;
    case MN_VERB_COMMIT:
        while (it->parked) {
            mn_call *parked = it->parked;
            unpark(it, parked);
            answer(parked, MN_OK, NULL, NULL);
        }
        answer(call, MN_OK, NULL, NULL);
        break;
    case MN_VERB_REDUCE:
        call->reply.step = call->request.context.remaining_ms;
        answer(call, MN_OK, NULL, NULL);
        break;
    case MN_VERB_MOVE:
        call->reply.map_epoch = 77;
        answer(call, MN_UNSUPPORTED, "verb", "tiles do not move in this version");
        break;
    default:
        answer(call, MN_OK, NULL, NULL);
    }
}

static uint64_t tick(void *core, uint64_t now_ns)
{
    rig *it = core;
    uint64_t wake = UINT64_MAX;
    for (mn_call *call = it->parked, *next; call; call = next) {
        next = call->next;
        if (call->deadline_ns <= now_ns) {
            unpark(it, call);
            answer(call, MN_DEADLINE, "seal", "ranks 1 are missing");
        } else if (call->deadline_ns < wake) {
            wake = call->deadline_ns;
        }
    }
    return wake;
}

static void abandon(void *core, mn_call *call)
{
    rig *it = core;
    assert(call->core == it);
    unpark(it, call);
    pthread_mutex_lock(&it->lock);
    it->abandoned++;
    pthread_cond_broadcast(&it->changed);
    pthread_mutex_unlock(&it->lock);
    answer(call, MN_CANCELLED, "", "given up");
}

/* ---- The server -------------------------------------------------------------------------- */

static void *serve(void *context)
{
    mn_grpc_server_run(((rig *)context)->server);
    return NULL;
}

void rig_start(rig *it, const rig_options *options)
{
    mn_error error = {0};
    char address[32];
    memset(it, 0, sizeof *it);
    mn_env_posix(&it->env, NULL, 3);
    pthread_mutex_init(&it->lock, NULL);
    pthread_cond_init(&it->changed, NULL);
    (void)snprintf(address, sizeof address, "127.0.0.1:%d", options->port);
    mn_grpc_server_options server = {.address = address,
                                     .calls_max = options->calls_max,
                                     .reply_bytes_max = options->reply_bytes_max,
                                     .message_bytes_max = options->message_bytes_max,
                                     .admit = options->admit,
                                     .handle = handle,
                                     .tick = tick,
                                     .abandon = abandon,
                                     .core = it,
                                     .env = &it->env};
    if (mn_grpc_server_create(&server, &it->server, &it->port, &error)) {
        (void)fprintf(stderr, "%s: %s\n", error.field, error.message);
        abort();
    }
    (void)snprintf(it->address, sizeof it->address, "127.0.0.1:%d", it->port);
    if (pthread_create(&it->thread, NULL, serve, it))
        abort();
}

void rig_stop(rig *it)
{
    mn_grpc_server_stop(it->server);
    pthread_join(it->thread, NULL);
    mn_grpc_server_destroy(it->server);
    pthread_cond_destroy(&it->changed);
    pthread_mutex_destroy(&it->lock);
}

static uint32_t wait_for(rig *it, const uint32_t *value, uint32_t count)
{
    pthread_mutex_lock(&it->lock);
    while (*value < count)
        pthread_cond_wait(&it->changed, &it->lock);
    uint32_t reached = *value;
    pthread_mutex_unlock(&it->lock);
    return reached;
}

uint32_t rig_wait_parked(rig *it, uint32_t count) { return wait_for(it, &it->parked_count, count); }

uint32_t rig_wait_abandoned(rig *it, uint32_t count) { return wait_for(it, &it->abandoned, count); }

enum mn_verb rig_last(rig *it, mn_context *out_context)
{
    pthread_mutex_lock(&it->lock);
    enum mn_verb verb = it->last_verb;
    if (out_context)
        *out_context = it->last_context;
    pthread_mutex_unlock(&it->lock);
    return verb;
}

/* ---- The client -------------------------------------------------------------------------- */

mn_transport *rig_client(const rig *it, const char *authorization)
{
    const char *addresses[] = {it->address};
    mn_grpc_client_options options = {
        .addresses = addresses, .shards = 1, .authorization = authorization, .env = &it->env};
    mn_transport *transport = NULL;
    mn_error error = {0};
    if (mn_grpc_client_create(&options, &transport, &error)) {
        (void)fprintf(stderr, "%s: %s\n", error.field, error.message);
        abort();
    }
    return transport;
}

static void done(mn_exchange *exchange)
{
    rig_call *call = exchange->owner;
    uint64_t now = call->env->now_ns(call->env->context);
    pthread_mutex_lock(&call->lock);
    call->reply = exchange->reply;
    call->payload_bytes = exchange->reply.payload.bytes;
    if (call->payload_bytes) {
        mn_cursor cursor;
        call->payload = malloc(call->payload_bytes);
        mn_cursor_init(&cursor, &exchange->reply.payload, 0);
        mn_cursor_read(&cursor, call->payload, call->payload_bytes);
    }
    call->took_ns = now - call->took_ns;
    call->over = true;
    pthread_cond_signal(&call->changed);
    pthread_mutex_unlock(&call->lock);
}

void rig_begin(rig_call *call, mn_transport *transport, const mn_env *env, enum mn_verb verb,
               uint64_t count, const void *payload, uint64_t payload_bytes, uint64_t timeout_ms)
{
    memset(call, 0, sizeof *call);
    pthread_mutex_init(&call->lock, NULL);
    pthread_cond_init(&call->changed, NULL);
    call->env = env;
    call->span = (mn_span){payload, payload_bytes};
    call->took_ns = env->now_ns(env->context);
    mn_request *request = &call->exchange.request;
    request->verb = verb;
    request->context = (mn_context){
        .version = MN_PROTOCOL_VERSION, .group = "g", .step = 42, .remaining_ms = timeout_ms};
    request->table = 9;
    request->count = count;
    request->path[0] = 'p';
    request->name[0] = 'n';
    if (payload_bytes)
        request->payload = (mn_payload){&call->span, 1, payload_bytes};
    call->exchange.deadline_ns = call->took_ns + timeout_ms * 1000000;
    call->exchange.done = done;
    call->exchange.owner = call;
    transport->start(transport, 0, &call->exchange);
}

enum mn_status rig_wait(rig_call *call)
{
    pthread_mutex_lock(&call->lock);
    while (!call->over)
        pthread_cond_wait(&call->changed, &call->lock);
    pthread_mutex_unlock(&call->lock);
    return call->reply.status;
}

void rig_end(rig_call *call)
{
    free(call->payload);
    pthread_cond_destroy(&call->changed);
    pthread_mutex_destroy(&call->lock);
}
