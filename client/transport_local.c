/* `local:`: shard cores inside this process, each with a thread of its own. A started exchange
 * joins its shard's queue (linked through the exchange, so as long as the client's windows allow);
 * the thread hands it to the core as a call, and runs done(). Nothing is encoded, save to count
 * what the wire would carry. */
#include "client_core.h"
#include "mn_shard.h"

#include <assert.h>
#include <string.h>
#include <uv.h>

enum {
    CALLS_MAX = 256,                 /* held by a shard at once; more stay queued */
    DEVICE_MESSAGE_BYTES = 128 << 20 /* of a direct call: more than the client's pieces */
};

typedef struct local_shard local_shard;

/* A call at a shard. Touched by the shard's thread, except cancel_wanted (under the mutex). */
typedef struct local_call {
    mn_call call; /* first: the core's pointer is ours */
    local_shard *shard;
    mn_exchange *exchange; /* NULL: free */
    bool cancel_wanted;
    uint8_t *reply; /* [MN_MESSAGE_BYTES_MAX] of address space */
    mn_span span;
    struct local_call *next_free;
} local_call;

struct local_shard {
    /* Set once. */
    struct local_transport *transport;
    mn_shard *core;
    mn_storage *storage;
    uv_thread_t thread;
    uv_mutex_t mutex;
    uv_cond_t wake;
    bool has_mutex, has_wake, has_thread;
    /* Under the mutex. */
    mn_exchange *first, *last; /* started, not yet taken; linked by transport_data */
    bool stopping, cancels;
    /* The thread's. */
    local_call *calls; /* [CALLS_MAX]; the first calls_used have been used before */
    uint32_t calls_used;
    local_call *free_call;
    uint8_t *replies;
    uint8_t header[MN_HEADER_BYTES_MAX];
};

typedef struct local_transport {
    mn_transport base;
    mn_env env;
    local_shard *shards;
    uint64_t shards_bytes;
} local_transport;

/* ---- Exchanges from the client's threads ---- */

static void local_start(mn_transport *base, uint32_t ordinal, mn_exchange *exchange)
{
    local_shard *shard = &((local_transport *)base)->shards[ordinal];
    uv_mutex_lock(&shard->mutex);
    exchange->transport_data = NULL;
    if (shard->last)
        shard->last->transport_data = exchange;
    else
        shard->first = exchange;
    shard->last = exchange;
    uv_cond_signal(&shard->wake);
    uv_mutex_unlock(&shard->mutex);
}

/* The thread looks for what was cancelled: in its calls by a flag, in the queue by deadline 0. */
static void local_cancel(mn_transport *base, mn_exchange *exchange)
{
    local_transport *transport = (local_transport *)base;
    for (uint32_t i = 0; i < base->shards; i++) {
        local_shard *shard = &transport->shards[i];
        uv_mutex_lock(&shard->mutex);
        bool found = false;
        for (mn_exchange *queued = shard->first; queued && !found; queued = queued->transport_data)
            found = queued == exchange;
        if (found)
            exchange->deadline_ns = 0;
        for (uint32_t c = 0; c < shard->calls_used && !found; c++) {
            found = shard->calls[c].exchange == exchange;
            shard->calls[c].cancel_wanted = shard->calls[c].cancel_wanted || found;
        }
        shard->cancels = shard->cancels || found;
        uv_cond_signal(&shard->wake);
        uv_mutex_unlock(&shard->mutex);
    }
}

/* ---- Calls, on the shard's thread ---- */

static uint8_t *call_reserve(mn_call *base, uint64_t bytes)
{
    local_call *call = (local_call *)base;
    if (bytes > MN_MESSAGE_BYTES_MAX)
        return NULL;
    call->span.bytes = call->reply;
    call->span.count = bytes;
    base->reply.payload.spans = &call->span;
    base->reply.payload.span_count = 1;
    base->reply.payload.bytes = bytes;
    return call->reply;
}

static void count_bytes(local_shard *shard, mn_exchange *exchange)
{
    uint32_t bytes = 0;
    mn_error error;
    const mn_request *request = &exchange->request;
    mn_reply *reply = &exchange->reply;
    if (mn_request_encode(request, shard->header, sizeof shard->header, &bytes, &error) == MN_OK)
        exchange->bytes_sent = bytes + request->payload.bytes;
    bytes = 0;
    if (reply->status) /* the payload of a refusal is dropped */
        (void)mn_error_encode(reply, shard->header, sizeof shard->header, &bytes);
    else
        (void)mn_reply_encode(request->verb, reply, shard->header, sizeof shard->header, &bytes,
                              &error);
    exchange->bytes_received = bytes + (reply->status ? 0 : reply->payload.bytes);
}

static void call_finish(mn_call *base)
{
    local_call *call = (local_call *)base;
    local_shard *shard = call->shard;
    mn_exchange *exchange = call->exchange;
    exchange->reply = base->reply;
    count_bytes(shard, exchange);
    uv_mutex_lock(&shard->mutex);
    call->exchange = NULL;
    uv_mutex_unlock(&shard->mutex);
    exchange->done(exchange); /* the exchange is the client's again; the reply was lent till here */
    call->next_free = shard->free_call;
    shard->free_call = call;
}

/* Takes the first queued exchange into a free call; NULL when there is none of either. */
static local_call *take(local_shard *shard)
{
    local_call *call = shard->free_call;
    mn_exchange *exchange = shard->first;
    if (!exchange || (!call && shard->calls_used == CALLS_MAX))
        return NULL;
    if (call) {
        shard->free_call = call->next_free;
    } else {
        call = &shard->calls[shard->calls_used];
        call->reply = shard->replies + (uint64_t)shard->calls_used++ * MN_MESSAGE_BYTES_MAX;
    }
    shard->first = exchange->transport_data;
    if (!shard->first)
        shard->last = NULL;
    call->exchange = exchange;
    call->cancel_wanted = false;
    return call;
}

static void serve(local_shard *shard, local_call *call)
{
    mn_exchange *exchange = call->exchange;
    memset(&call->call, 0, sizeof call->call);
    call->call.request = exchange->request;
    call->call.reserve = call_reserve;
    call->call.finish = call_finish;
    call->shard = shard;
    if (exchange->deadline_ns == 0) { /* cancelled while it was queued */
        call->call.reply.status =
            mn_fail(&call->call.reply.error, MN_CANCELLED, "call", "the caller cancelled the call");
        call_finish(&call->call);
        return;
    }
    mn_shard_handle(shard->core, &call->call);
}

static void abandon_cancelled(local_shard *shard)
{
    for (uint32_t i = 0; i < shard->calls_used; i++) {
        local_call *call = &shard->calls[i];
        uv_mutex_lock(&shard->mutex);
        bool wanted = call->exchange && call->cancel_wanted;
        call->cancel_wanted = false;
        uv_mutex_unlock(&shard->mutex);
        if (wanted)
            mn_shard_abandon(shard->core, &call->call);
    }
}

static void shard_run(void *argument)
{
    local_shard *shard = argument;
    const mn_env *env = &shard->transport->env;
    uv_mutex_lock(&shard->mutex);
    for (;;) {
        local_call *call = take(shard);
        bool cancels = shard->cancels, stopping = shard->stopping;
        shard->cancels = false;
        uv_mutex_unlock(&shard->mutex);
        if (call)
            serve(shard, call);
        if (cancels)
            abandon_cancelled(shard);
        if (!call && stopping)
            return; /* whoever stops has no exchange left */
        uint64_t now_ns = env->now_ns(env->context);
        uint64_t due_ns = mn_shard_tick(shard->core, now_ns);
        uv_mutex_lock(&shard->mutex);
        if (shard->first || shard->cancels || shard->stopping || due_ns <= now_ns)
            continue;
        if (due_ns == UINT64_MAX)
            uv_cond_wait(&shard->wake, &shard->mutex);
        else
            (void)uv_cond_timedwait(&shard->wake, &shard->mutex, due_ns - now_ns); /* or woken */
    }
}

/* ---- Life ---- */

static void shard_close(local_transport *transport, local_shard *shard)
{
    mn_env *env = &transport->env;
    if (shard->has_thread) {
        uv_mutex_lock(&shard->mutex);
        shard->stopping = true;
        uv_cond_signal(&shard->wake);
        uv_mutex_unlock(&shard->mutex);
        (void)uv_thread_join(&shard->thread); /* fails only for a thread that is none */
    }
    mn_shard_destroy(shard->core);
    mn_storage_uv_destroy(shard->storage);
    if (shard->has_wake)
        uv_cond_destroy(&shard->wake);
    if (shard->has_mutex)
        uv_mutex_destroy(&shard->mutex);
    if (shard->replies)
        env->unreserve(env->context, shard->replies, (uint64_t)CALLS_MAX * MN_MESSAGE_BYTES_MAX);
    if (shard->calls)
        env->unreserve(env->context, shard->calls, CALLS_MAX * sizeof *shard->calls);
}

static void local_destroy(mn_transport *base)
{
    local_transport *transport = (local_transport *)base;
    mn_env env = transport->env;
    for (uint32_t i = 0; i < base->shards; i++)
        shard_close(transport, &transport->shards[i]);
    env.release(env.context, transport->shards, transport->shards_bytes);
    env.release(env.context, transport, sizeof *transport);
}

static enum mn_status read_memory(mn_transport *base, void *to, const void *from, uint64_t bytes,
                                  mn_error *error)
{
    return mn_shard_read_memory(((local_transport *)base)->shards[0].core, to, from, bytes, error);
}

static enum mn_status mark(mn_transport *base, void *stream, void **out_mark, mn_error *error)
{
    return mn_shard_mark(((local_transport *)base)->shards[0].core, stream, out_mark, error);
}

static void unmark(mn_transport *base, void *made)
{
    mn_shard_unmark(((local_transport *)base)->shards[0].core, made);
}

static enum mn_status shard_open(local_transport *transport, uint32_t ordinal,
                                 const mn_local_options *local, mn_error *error)
{
    local_shard *shard = &transport->shards[ordinal];
    mn_env env = transport->env;
    enum mn_status status = MN_OK;
    shard->transport = transport;
    env.storage = NULL;
    if (local->data)
        status = mn_storage_uv_create(local->data, &shard->storage, error);
    if (status)
        return status;
    env.storage = shard->storage;
    shard->calls = env.reserve(env.context, CALLS_MAX * sizeof *shard->calls);
    shard->replies = env.reserve(env.context, (uint64_t)CALLS_MAX * MN_MESSAGE_BYTES_MAX);
    if (!shard->calls || !shard->replies)
        return mn_fail(error, MN_NO_MEMORY, "target", "no memory for local shard %u", ordinal);
    mn_shard_options options = {
        .shard = ordinal,
        .shards = transport->base.shards,
        .usage_bytes_max = local->usage_bytes,
        .device = local->device,
        .message_bytes_max = local->device ? DEVICE_MESSAGE_BYTES : 0,
    };
    status = mn_shard_create(&options, &env, &shard->core, error);
    if (status)
        return status;
    shard->has_mutex = uv_mutex_init(&shard->mutex) == 0;
    shard->has_wake = shard->has_mutex && uv_cond_init(&shard->wake) == 0;
    shard->has_thread = shard->has_wake && uv_thread_create(&shard->thread, shard_run, shard) == 0;
    return shard->has_thread
               ? MN_OK
               : mn_fail(error, MN_NO_MEMORY, "target", "no thread for local shard %u", ordinal);
}

enum mn_status mn_transport_local_create(const mn_local_options *options, const mn_env *env,
                                         mn_transport **out_transport, mn_error *error)
{
    const uint32_t shards = options->shards;
    assert(shards > 0);
    if (shards > MN_SHARDS_MAX)
        return mn_fail(error, MN_INVALID, "local_shards", "%u shards are more than %d", shards,
                       MN_SHARDS_MAX);
    local_transport *transport = env->allocate(env->context, sizeof *transport);
    uint64_t bytes = shards * sizeof *transport->shards;
    if (transport)
        transport->shards = env->allocate(env->context, bytes);
    if (!transport || !transport->shards) {
        env->release(env->context, transport, sizeof *transport);
        return mn_fail(error, MN_NO_MEMORY, "target", "no memory for %u local shards", shards);
    }
    transport->base = (mn_transport){
        .shards = shards, .start = local_start, .cancel = local_cancel, .destroy = local_destroy};
    if (options->device) {
        transport->base.read_memory = read_memory;
        transport->base.mark = mark;
        transport->base.unmark = unmark;
    }
    transport->env = *env;
    transport->shards_bytes = bytes;
    for (uint32_t i = 0; i < shards; i++) {
        enum mn_status status = shard_open(transport, i, options, error);
        if (status) {
            local_destroy(&transport->base);
            return status;
        }
    }
    *out_transport = &transport->base;
    return MN_OK;
}
