/* The gRPC server: one completion queue, drained by the one thread in mn_grpc_server_run, which is
 * also the core's thread, so that a call costs no hand-over. Each method keeps a few requests
 * posted; each posted request is a slot that becomes the call which matches it. */
#include "grpc_server.h"

#include <assert.h>
#include <grpc/byte_buffer.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <stdio.h>
#include <string.h>

enum {
    CALLS_MAX_DEFAULT = 4096,
    POSTED_PER_METHOD = 4,
    STOP_GRACE_NS = 1000000000, /* answers may still leave; then gRPC cuts them off */
    STOP_POLL_NS = 100000000,
    WATCH_POLL_NS = 200000000, /* a change of health is told this late at most */
    LEAVE_POLL_NS = 200000000  /* how often answers that do not leave are looked at */
};
/* An answer that its caller does not read holds its buffer: so long at most, or to its deadline. */
static const uint64_t LEAVE_NS_MAX = UINT64_C(30000000000);
#define REPLY_BYTES_DEFAULT (UINT64_C(256) << 20)

static const uint64_t never = UINT64_MAX;

static uint64_t now_ns(const mn_grpc_server *server)
{
    return server->env.now_ns(server->env.context);
}

/* ---- Slots ------------------------------------------------------------------------------- */

static struct server_call *take_slot(mn_grpc_server *server)
{
    struct server_call *call = server->free;
    if (call) {
        server->free = call->next_free;
    } else {
        if (server->slots_used == server->slots_max)
            return NULL;
        call = &server->slots[server->slots_used++];
        call->server = server;
        call->arrived = (struct tag){EVENT_ARRIVED, call};
        call->ended = (struct tag){EVENT_ENDED, call};
        call->sent = (struct tag){EVENT_SENT, call};
        call->base.reserve = mn_server_reserve;
        call->base.finish = mn_server_finish;
    }
    server->slots_busy++;
    return call;
}

static void post(mn_grpc_server *server, struct method *method)
{
    struct server_call *call = take_slot(server);
    grpc_call_error error;
    if (!call) {
        method->missing++; /* free_slot posts it */
        return;
    }
    call->method = method;
    call->call = NULL;
    call->message = NULL;
    call->answered = true; /* nothing to answer until on_arrived */
    grpc_metadata_array_init(&call->metadata);
    if (method->registered) {
        error = grpc_server_request_registered_call(
            server->server, method->registered, &call->call, &call->deadline, &call->metadata,
            &call->message, server->queue, server->queue, &call->arrived);
    } else {
        grpc_call_details_init(&call->details);
        error =
            grpc_server_request_call(server->server, &call->call, &call->details, &call->metadata,
                                     server->queue, server->queue, &call->arrived);
    }
    assert(error == GRPC_CALL_OK);
}

static void free_slot(struct server_call *call)
{
    mn_grpc_server *server = call->server;
    if (!call->method->registered)
        grpc_call_details_destroy(&call->details);
    grpc_metadata_array_destroy(&call->metadata);
    if (call->call)
        grpc_call_unref(call->call);
    call->call = NULL;
    call->next_free = server->free;
    server->free = call;
    server->slots_busy--;
    if (atomic_load(&server->stopping))
        return;
    for (uint32_t i = 0; i < METHOD_COUNT; i++)
        if (server->methods[i].missing) {
            server->methods[i].missing--;
            post(server, &server->methods[i]);
            return;
        }
}

/* ---- Serving a call ---------------------------------------------------------------------- */

/* The first metadata value of this key, cut to `bytes_max` with its NUL; "" when there is none. */
static void copy_metadata(const grpc_metadata_array *metadata, const char *key, char *out_text,
                          size_t bytes_max)
{
    out_text[0] = '\0';
    for (size_t i = 0; i < metadata->count; i++) {
        if (grpc_slice_str_cmp(metadata->metadata[i].key, key))
            continue;
        size_t count = GRPC_SLICE_LENGTH(metadata->metadata[i].value);
        count = count < bytes_max - 1 ? count : bytes_max - 1;
        memcpy(out_text, GRPC_SLICE_START_PTR(metadata->metadata[i].value), count);
        out_text[count] = '\0';
        return;
    }
}

static enum mn_status admit(struct server_call *call, mn_error *error)
{
    const mn_grpc_server_options *options = &call->server->options;
    char authorization[MN_AUTHORIZATION_BYTES_MAX + 2]; /* a longer one stays longer */
    if (!options->admit)
        return MN_OK;
    copy_metadata(&call->metadata, "authorization", authorization, sizeof authorization);
    char *peer = grpc_call_get_peer(call->call);
    bool admitted =
        options->admit(options->admit_context, peer, authorization, &call->base.request, error);
    gpr_free(peer);
    if (admitted)
        return MN_OK;
    error->status = MN_DENIED;
    return MN_DENIED;
}

/* Into the call, for the log. A bad one is as none: the caller's tracing is not what it is here
 * for. Versions to come may go on behind a '-', and begin like this one. */
static void read_trace(struct server_call *call)
{
    enum { END = MN_TRACEPARENT_BYTES - 1 };
    mn_error error;
    char given[MN_TRACEPARENT_BYTES + 1]; /* a longer one stays longer */
    char *trace = call->base.traceparent;
    copy_metadata(&call->metadata, "traceparent", given, sizeof given);
    if (strlen(given) > END && given[END] == '-' && strncmp(given, "00", 2) != 0)
        given[END] = '\0';
    trace[0] = '\0';
    if (given[0] && !mn_traceparent_check("traceparent", given, &error))
        memcpy(trace, given, MN_TRACEPARENT_BYTES);
}

static enum mn_status decode(struct server_call *call, mn_error *error)
{
    mn_grpc_server *server = call->server;
    mn_request *request = &call->base.request;
    mn_payload payload = {call->spans, 0, 0};
    uint32_t span_count, header_bytes;
    enum mn_status status = mn_grpc_spans(&call->message, server->spans, &span_count, error);
    if (!status)
        status = mn_scan_payload(server->spans, span_count, server->header, sizeof server->header,
                                 &header_bytes, call->spans, MN_GRPC_SPANS_MAX, &payload, error);
    if (!status)
        status =
            mn_request_decode(call->method->verb, server->header, header_bytes, request, error);
    if (status)
        return status;
    request->payload = payload;
    return MN_OK;
}

/* The time that is left is the lesser of what the request says and what gRPC was told. */
static void bound_remaining(struct server_call *call)
{
    uint64_t *remaining_ms = &call->base.request.context.remaining_ms;
    gpr_timespec left = gpr_time_sub(call->deadline, gpr_now(call->deadline.clock_type));
    if (!gpr_time_cmp(call->deadline, gpr_inf_future(call->deadline.clock_type)) || !*remaining_ms)
        return;
    int64_t left_ms = left.tv_sec * GPR_MS_PER_SEC + left.tv_nsec / GPR_NS_PER_MS;
    left_ms = left_ms < 1 ? 1 : left_ms; /* 0 would be refused as a mistake of the caller */
    if ((uint64_t)left_ms < *remaining_ms)
        *remaining_ms = (uint64_t)left_ms;
}

static void serve_verb(struct server_call *call)
{
    mn_grpc_server *server = call->server;
    mn_error error = {0};
    enum mn_verb_kind kind = mn_verb_kind_of(call->method->verb);
    enum mn_status status = MN_OK;
    if (server->abandoned)
        status = mn_fail(&error, MN_UNAVAILABLE, "shard", "the shard is shutting down; try again");
    else if (server->held_by_kind[kind] > server->options.calls_max)
        status = mn_fail(&error, MN_BUSY, "calls_max", "the shard holds %u such calls already",
                         server->held_by_kind[kind] - 1);
    if (!status)
        status = decode(call, &error);
    if (!status)
        status = admit(call, &error);
    read_trace(call);
    if (status) {
        mn_server_refuse(call, &error);
        return;
    }
    bound_remaining(call);
    uint64_t remaining_ms = call->base.request.context.remaining_ms;
    if (remaining_ms < LEAVE_NS_MAX / 1000000)
        call->ends_ns = now_ns(server) + remaining_ms * 1000000;
    server->options.handle(server->options.core, &call->base);
}

static void serve_unknown(struct server_call *call)
{
    char name[96];
    mn_error error = {0};
    size_t count = GRPC_SLICE_LENGTH(call->details.method);
    count = count < sizeof name - 1 ? count : sizeof name - 1;
    memcpy(name, GRPC_SLICE_START_PTR(call->details.method), count);
    name[count] = '\0';
    (void)mn_fail(&error, MN_UNSUPPORTED, "method", "no method %s here", name);
    mn_server_refuse(call, &error);
}

/* ---- Events ------------------------------------------------------------------------------ */

static void on_arrived(struct server_call *call, bool matched)
{
    mn_grpc_server *server = call->server;
    if (!matched) { /* the server stops: a posted request ends without a call */
        free_slot(call);
        return;
    }
    if (!atomic_load(&server->stopping))
        post(server, call->method); /* first, so that the next call need not wait for this one */
    call->batches = 0;
    call->answered = call->end_watched = call->gone = call->reply_too_large = false;
    call->watching = false;
    call->told = 0;
    call->cancelled = 0;
    call->ends_ns = UINT64_MAX;
    call->leave_by_ns = 0;
    call->reply_buffer = NULL;
    call->answer = NULL;
    memset(&call->base.reply, 0, sizeof call->base.reply);
    call->base.request.verb = call->method->verb;
    server->held_by_kind[mn_verb_kind_of(call->method->verb)]++;
    atomic_fetch_add_explicit(&server->held, 1, memory_order_relaxed);
    if (call->message)
        atomic_fetch_add_explicit(&server->bytes_received, grpc_byte_buffer_length(call->message),
                                  memory_order_relaxed);
    if (!call->message && call->method->registered) {
        mn_error error = {0}; /* gRPC has told a caller whose message was too large; others hear */
        (void)mn_fail(&error, MN_CORRUPT, "message", "the call carries no message");
        mn_server_refuse(call, &error);
    } else {
        call->method->serve(call);
    }
    if (!call->answered)
        mn_server_watch_end(call);
}

static void on_batch_end(struct server_call *call)
{
    if (--call->batches)
        return;
    if (call->answer)
        grpc_byte_buffer_destroy(call->answer);
    if (!call->gone) {
        grpc_slice_unref(call->text);
        if (call->base.reply.status)
            grpc_slice_unref(call->trailing.value);
    }
    free_slot(call);
}

static void abandon(struct server_call *call)
{
    mn_grpc_server *server = call->server;
    if (call->watching) {
        mn_server_watch_stop(call);
        return;
    }
    server->options.abandon(server->options.core, &call->base);
    assert(call->answered);
}

static void on_ended(struct server_call *call)
{
    if (!call->answered) { /* the caller disconnected, cancelled, or ran out of time */
        call->gone = true;
        abandon(call);
    }
    on_batch_end(call);
}

static void on_event(mn_grpc_server *server, const grpc_event *event)
{
    const struct tag *tag = event->tag;
    switch (tag->event) {
    case EVENT_ARRIVED:
        on_arrived(tag->call, event->success);
        break;
    case EVENT_ENDED:
        on_ended(tag->call);
        break;
    case EVENT_SENT:
        if (tag->call->watching)
            mn_server_watch_sent(tag->call);
        on_batch_end(tag->call);
        break;
    case EVENT_STOPPED:
        server->stopped = true;
        break;
    case EVENT_WOKEN:
        (void)pthread_mutex_lock(&server->wake_mutex);
        server->woken = false;
        (void)pthread_mutex_unlock(&server->wake_mutex);
        break;
    }
}

/* gRPC rounds up to whole milliseconds: of all times, only one that is long past does not wait. */
static grpc_event next_event(mn_grpc_server *server, uint64_t wait_ns)
{
    gpr_timespec until = gpr_inf_future(GPR_CLOCK_MONOTONIC);
    if (!wait_ns)
        until = gpr_inf_past(GPR_CLOCK_MONOTONIC);
    else if (wait_ns < INT64_MAX)
        until = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                             gpr_time_from_nanos((int64_t)wait_ns, GPR_TIMESPAN));
    return grpc_completion_queue_next(server->queue, until, NULL);
}

/* ---- Serving and stopping ---------------------------------------------------------------- */

/* Answers what the core holds, lets the answers leave, and empties the queue for good. */
static void drain(mn_grpc_server *server)
{
    uint64_t cut_ns = now_ns(server) + STOP_GRACE_NS;
    bool cut = false;
    server->abandoned = true;
    for (uint32_t i = 0; i < server->slots_used; i++)
        if (!server->slots[i].answered)
            abandon(&server->slots[i]);
    while (!server->stopped || server->slots_busy) {
        grpc_event event = next_event(server, STOP_POLL_NS);
        if (event.type == GRPC_OP_COMPLETE)
            on_event(server, &event);
        if (!cut && now_ns(server) >= cut_ns) {
            grpc_server_cancel_all_calls(server->server);
            cut = true;
        }
    }
    (void)pthread_mutex_lock(&server->wake_mutex);
    server->deaf = true;
    (void)pthread_mutex_unlock(&server->wake_mutex);
    grpc_completion_queue_shutdown(server->queue);
    while (next_event(server, never).type != GRPC_QUEUE_SHUTDOWN)
        ;
    server->drained = true;
}

/* Takes back answers whose callers have had their time and do not read; false: none waits. */
static bool watch_leaving(mn_grpc_server *server, uint64_t now)
{
    bool any = false;
    for (uint32_t i = 0; i < server->slots_used; i++) {
        struct server_call *call = &server->slots[i];
        if (!call->batches || !call->answered || call->watching || call->gone)
            continue;
        any = true;
        if (!call->leave_by_ns)
            call->leave_by_ns =
                now + LEAVE_NS_MAX < call->ends_ns ? now + LEAVE_NS_MAX : call->ends_ns;
        if (now < call->leave_by_ns)
            continue;
        call->leave_by_ns = never;                /* once */
        (void)grpc_call_cancel(call->call, NULL); /* an event follows, as after any end */
    }
    return any;
}

void mn_grpc_server_run(mn_grpc_server *server)
{
    const mn_grpc_server_options *options = &server->options;
    uint64_t look_ns = 0;
    bool leaving = false;
    while (!atomic_load(&server->stopping)) {
        uint64_t now = now_ns(server);
        if (now >= look_ns) {
            leaving = watch_leaving(server, now);
            look_ns = now + LEAVE_POLL_NS;
        }
        uint64_t wake = options->tick(options->core, now);
        uint64_t wait = wake == never ? never : wake > now ? wake - now : 0;
        if (server->watches) {
            mn_server_watches_tell(server);
            wait = wait < WATCH_POLL_NS ? wait : WATCH_POLL_NS;
        }
        if (leaving)
            wait = wait < LEAVE_POLL_NS ? wait : LEAVE_POLL_NS;
        grpc_event event = next_event(server, wait);
        if (event.type == GRPC_OP_COMPLETE)
            on_event(server, &event);
    }
    if (!server->drained)
        drain(server);
}

void mn_grpc_server_stop(mn_grpc_server *server)
{
    if (!atomic_exchange(&server->stopping, true))
        grpc_server_shutdown_and_notify(server->server, server->queue, &server->stopped_tag);
}

/* One event at a time is enough. */
void mn_grpc_server_wake(mn_grpc_server *server)
{
    (void)pthread_mutex_lock(&server->wake_mutex);
    if (!server->woken && !server->deaf) {
        server->woken = true;
        grpc_call_error error =
            grpc_call_start_batch(server->kick, NULL, 0, &server->woken_tag, NULL);
        assert(error == GRPC_CALL_OK);
        (void)error;
    }
    (void)pthread_mutex_unlock(&server->wake_mutex);
}

void mn_grpc_server_set_healthy(mn_grpc_server *server, bool healthy)
{
    atomic_store(&server->healthy, healthy);
}

void mn_grpc_server_stats_get(mn_grpc_server *server, mn_grpc_server_stats *out_stats)
{
    *out_stats = (mn_grpc_server_stats){
        .calls = atomic_load(&server->calls),
        .failures = atomic_load(&server->failures),
        .bytes_received = atomic_load(&server->bytes_received),
        .bytes_sent = atomic_load(&server->bytes_sent),
        .held = atomic_load(&server->held),
        .reply_bytes = mn_reply_pool_used(server->pool),
    };
}

/* ---- Creating and destroying ------------------------------------------------------------- */

static grpc_arg integer_arg(const char *key, int value)
{
    grpc_arg arg = {.type = GRPC_ARG_INTEGER, .key = (char *)key, .value.integer = value};
    return arg;
}

static grpc_arg quota_arg(grpc_resource_quota *quota)
{
    grpc_arg arg = {.type = GRPC_ARG_POINTER, .key = (char *)GRPC_ARG_RESOURCE_QUOTA};
    arg.value.pointer.p = quota;
    arg.value.pointer.vtable = grpc_resource_quota_arg_vtable();
    return arg;
}

static grpc_server *create_grpc_server(const mn_grpc_server_options *options)
{
    uint64_t bytes = options->receive_bytes_max;
    grpc_resource_quota *quota = grpc_resource_quota_create("mneme");
    grpc_resource_quota_resize(quota, bytes && bytes < SIZE_MAX / 2 ? bytes : SIZE_MAX / 2);
    grpc_arg args[] = {
        quota_arg(quota),
        integer_arg(GRPC_ARG_ALLOW_REUSEPORT, 0), /* else a second server binds in silence */
        integer_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)options->message_bytes_max),
        integer_arg(GRPC_ARG_MAX_CONCURRENT_STREAMS,
                    (int)(KINDS * options->calls_max + WATCHES_MAX)),
        integer_arg(GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0),
        integer_arg(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0),
        /* Clients ping each 10 s, calls or none; a vanished one is noticed by our own pings. */
        integer_arg(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000),
        integer_arg(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        integer_arg(GRPC_ARG_KEEPALIVE_TIME_MS, MN_GRPC_KEEPALIVE_MS),
        integer_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, MN_GRPC_KEEPALIVE_TIMEOUT_MS),
        integer_arg(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
    };
    grpc_channel_args list = {sizeof args / sizeof args[0], args};
    grpc_server *server = grpc_server_create(&list, NULL);
    grpc_resource_quota_unref(quota); /* the server has its own reference */
    return server;
}

/* False when gRPC knows no more; true with methods registered. */
static bool register_methods(mn_grpc_server *server)
{
    for (uint32_t verb = 0; verb < MN_VERB_COUNT; verb++) {
        char path[96];
        (void)snprintf(path, sizeof path, "/%s/%s", MN_SERVICE, mn_verb_name((enum mn_verb)verb));
        server->methods[verb] = (struct method){.serve = serve_verb, .verb = (enum mn_verb)verb};
        server->methods[verb].registered = grpc_server_register_method(
            server->server, path, NULL, GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER, 0);
        if (!server->methods[verb].registered)
            return false;
    }
    server->methods[METHOD_HEALTH].serve = mn_server_check;
    server->methods[METHOD_HEALTH].registered =
        grpc_server_register_method(server->server, "/grpc.health.v1.Health/Check", NULL,
                                    GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER, 0);
    server->methods[METHOD_WATCH].serve = mn_server_watch;
    server->methods[METHOD_WATCH].registered =
        grpc_server_register_method(server->server, "/grpc.health.v1.Health/Watch", NULL,
                                    GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER, 0);
    server->methods[METHOD_UNKNOWN].serve = serve_unknown;
    return server->methods[METHOD_HEALTH].registered && server->methods[METHOD_WATCH].registered;
}

static enum mn_status check_options(const mn_grpc_server_options *options, mn_error *error)
{
    if (!options->address || !options->address[0])
        return mn_fail(error, MN_INVALID, "address", "empty; expected HOST:PORT");
    if (!options->env || !options->handle || !options->tick || !options->abandon)
        return mn_fail(error, MN_INVALID, "core", "env, handle, tick and abandon are all needed");
    if (options->reply_bytes_max && options->reply_bytes_max < MN_MESSAGE_BYTES_MAX)
        return mn_fail(error, MN_INVALID, "reply_bytes_max", "%llu is less than a message's %d",
                       (unsigned long long)options->reply_bytes_max, MN_MESSAGE_BYTES_MAX);
    if (options->message_bytes_max > INT32_MAX)
        return mn_fail(error, MN_INVALID, "message_bytes_max", "%u is more than %d",
                       options->message_bytes_max, INT32_MAX);
    if (options->calls_max > INT32_MAX / 8)
        return mn_fail(error, MN_INVALID, "calls_max", "%u is more than %d", options->calls_max,
                       INT32_MAX / 8);
    return MN_OK;
}

static uint64_t slots_bytes(const mn_grpc_server *server)
{
    return (uint64_t)server->slots_max * sizeof(struct server_call);
}

/* Frees what was acquired; gRPC's server must have been shut down, or never started. */
static void release(mn_grpc_server *server)
{
    mn_env env = server->env;
    mn_reply_pool_destroy(server->pool);
    (void)pthread_mutex_destroy(&server->wake_mutex);
    if (server->slots)
        env.unreserve(env.context, server->slots, slots_bytes(server));
    env.release(env.context, server, sizeof *server);
    grpc_shutdown();
}

static void start(mn_grpc_server *server)
{
    grpc_server_start(server->server);
    for (uint32_t i = 0; i < METHOD_COUNT; i++)
        for (uint32_t n = 0; n < POSTED_PER_METHOD; n++)
            post(server, &server->methods[i]);
}

enum mn_status mn_grpc_server_create(const mn_grpc_server_options *options,
                                     mn_grpc_server **out_server, int *out_port, mn_error *error)
{
    enum mn_status status = check_options(options, error);
    if (status)
        return status;
    const mn_env *env = options->env;
    mn_grpc_server *server = env->allocate(env->context, sizeof *server);
    if (!server)
        return mn_fail(error, MN_NO_MEMORY, "server", "no memory for a server");
    server->env = *env;
    server->options = *options;
    if (!options->calls_max)
        server->options.calls_max = CALLS_MAX_DEFAULT;
    if (!options->reply_bytes_max)
        server->options.reply_bytes_max = REPLY_BYTES_DEFAULT;
    if (!options->message_bytes_max)
        server->options.message_bytes_max = MN_MESSAGE_BYTES_MAX;
    server->stopped_tag.event = EVENT_STOPPED;
    server->woken_tag.event = EVENT_WOKEN;
    (void)pthread_mutex_init(&server->wake_mutex, NULL); /* a default one: it cannot fail */
    atomic_store(&server->healthy, true);
    mn_grpc_init();
    /* Twice the calls: as many again may be leaving while these are held. */
    server->slots_max =
        2 * KINDS * server->options.calls_max + METHOD_COUNT * POSTED_PER_METHOD + 2 * WATCHES_MAX;
    server->slots = env->reserve(env->context, slots_bytes(server));
    server->pool = mn_reply_pool_create(env, server->options.reply_bytes_max);
    if (!server->slots || !server->pool) {
        release(server);
        return mn_fail(error, MN_NO_MEMORY, "reply_bytes_max", "no address space for the pools");
    }
    server->queue = grpc_completion_queue_create_for_next(NULL);
    server->server = create_grpc_server(&server->options);
    grpc_server_register_completion_queue(server->server, server->queue, NULL);
    server->nowhere = grpc_lame_client_channel_create("nowhere", GRPC_STATUS_UNAVAILABLE, "");
    server->kick = grpc_channel_create_call(server->nowhere, NULL, GRPC_PROPAGATE_DEFAULTS,
                                            server->queue, grpc_slice_from_static_string("/kick"),
                                            NULL, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    bool registered = register_methods(server);
    assert(registered); /* fails only for a name registered twice */
    grpc_server_credentials *credentials = grpc_insecure_server_credentials_create();
    int port = grpc_server_add_http2_port(server->server, options->address, credentials);
    grpc_server_credentials_release(credentials);
    start(server);
    if (!port) {
        mn_grpc_server_destroy(server);
        return mn_fail(error, MN_UNAVAILABLE, "address",
                       "cannot listen on %s: taken, or not an address of this host",
                       options->address);
    }
    server->options.address = NULL; /* lent for the call only */
    *out_port = port;
    *out_server = server;
    return MN_OK;
}

void mn_grpc_server_destroy(mn_grpc_server *server)
{
    if (!server)
        return;
    mn_grpc_server_stop(server);
    if (!server->drained)
        drain(server);
    grpc_call_unref(server->kick);
    grpc_channel_destroy(server->nowhere);
    grpc_server_destroy(server->server);
    grpc_completion_queue_destroy(server->queue);
    release(server);
}
