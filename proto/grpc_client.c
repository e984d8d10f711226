/* The client's transport over gRPC: a channel per shard, and one completion queue, drained by one
 * thread at a time, on which done() runs: a caller that waits (poll), else one of our own. Payloads
 * are sent from the exchange's own memory, so an exchange is done only when gRPC has dropped its
 * references to it, too. */
#include "grpc_common.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <grpc/byte_buffer.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum {
    CALLS_MAX = 65536, /* in flight at once; one more is MN_BUSY */
    ADDRESS_BYTES_MAX = 280,
    FRAME_BYTES = 5, /* gRPC's own, before each message */
    LATE_POLL_NS = 1000000,
    LATE_MAX_NS = 250000000, /* a call that is over waits so long for its payload */
    FD_MAX = 65536,          /* where cut_off looks for a connection */
    /* Our own thread looks this often whether calls are in flight that no caller has attended to
     * for a while; when all is quiet, so often, and so long, for pings and lost connections. */
    NAP_NS = 500000,
    ALONE_NS = 250000,
    IDLE_AFTER_NAPS = 200,
    IDLE_NAP_NS = 20000000,
    IDLE_LOOK_NS = 1000000
};

/* A call has two batches: what it sends and what it receives. The second ends by the deadline
 * whatever the peer does; the first, not before gRPC has written what it has begun to. */
enum batch { BATCH_SEND, BATCH_RECEIVE };
struct client_call;
struct tag {
    enum batch batch;
    struct client_call *call;
};

/* One exchange in flight. start() fills it; then it is the draining thread's, save for what the
 * lock guards and `payload_held`, which any of gRPC's threads counts down. */
struct client_call {
    mn_exchange *exchange;
    grpc_call *call;  /* guarded by the lock; NULL once both batches have ended */
    bool cancelled;   /* guarded by the lock */
    bool refused;     /* never sent: the reply stands in exchange->reply already */
    uint32_t batches; /* begun and not ended */
    struct tag tags[2];
    struct client_call *next, *previous; /* in the list `late`; next: in the free list (lock) */
    bool late;
    uint64_t late_ns; /* since when */
    char *peer;       /* gRPC's text, kept only of a late call */
    grpc_byte_buffer *request, *reply;
    grpc_metadata metadata[2]; /* that it sends */
    grpc_metadata_array initial, trailing;
    grpc_status_code code;
    grpc_slice text;
    _Atomic uint32_t payload_held; /* spans that gRPC still points at */
};

struct channel {
    grpc_channel *channel;
    void *methods[MN_VERB_COUNT];
};

typedef struct grpc_transport {
    mn_transport base; /* first */
    mn_env env;
    struct channel *channels; /* [shards] */
    grpc_completion_queue *queue;
    pthread_t thread;
    char authorization[MN_AUTHORIZATION_BYTES_MAX + 1], traceparent[MN_TRACEPARENT_BYTES];

    pthread_mutex_t lock; /* guards these, and exchange->transport_data */
    struct client_call *slots, *free;
    uint32_t slots_used;
    mn_exchange *overflow; /* found no slot; linked by transport_data */
    uint64_t starts;       /* exchanges ever begun */
    uint64_t attended_ns;  /* when a caller last began a call, or polled */
    uint32_t in_flight;
    bool polling; /* a thread drains the queue: one at a time */
    bool ours;    /* it is our own thread */
    bool asked;   /* a caller waits for it to give its turn away */
    bool idle;    /* our own thread sleeps long: the next start wakes it */
    bool closing;
    pthread_cond_t wake, free_turn;
    grpc_call *kick; /* never sent; an empty batch of it ends a wait for the queue */

    /* Whose turn it is to drain: */
    struct client_call *late; /* over, but gRPC still points at the payload */
    uint64_t cut_ns;          /* when a connection was cut last */
    uint8_t header[MN_HEADER_BYTES_MAX];
    mn_span spans[MN_GRPC_SPANS_MAX], payload_spans[MN_GRPC_SPANS_MAX];
    mn_reply_arena arena;
} grpc_transport;

/* ---- Channels ----------------------------------------------------------------------------- */

static grpc_arg integer_arg(const char *key, int value)
{
    grpc_arg arg = {.type = GRPC_ARG_INTEGER, .key = (char *)key, .value.integer = value};
    return arg;
}

/* gRPC's name of "host:port": an IPv4 address needs no resolver, names go to DNS, and what says its
 * own scheme ("unix:…") stays. */
static void target_of(const char *address, char out_target[ADDRESS_BYTES_MAX + 8])
{
    char host[ADDRESS_BYTES_MAX];
    struct in_addr parsed;
    (void)snprintf(host, sizeof host, "%s", address); /* its length was checked */
    char *colon = strchr(host, ':');
    if (colon)
        *colon = '\0';
    const char *scheme = inet_pton(AF_INET, host, &parsed) == 1 ? "ipv4:"
                         : strncmp(address, "unix:", 5) == 0    ? ""
                                                                : "dns:///";
    (void)snprintf(out_target, ADDRESS_BYTES_MAX + 8, "%s%s", scheme, address);
}

static void open_channel(struct channel *channel, const char *address)
{
    grpc_arg args[] = {
        integer_arg(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1), /* a connection of its own */
        integer_arg(GRPC_ARG_ENABLE_RETRIES, 0), /* the caller's; gRPC would keep the payload */
        integer_arg(GRPC_ARG_ENABLE_HTTP_PROXY, 0),
        integer_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, MN_MESSAGE_BYTES_MAX),
        integer_arg(GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0),
        integer_arg(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0),
        integer_arg(GRPC_ARG_KEEPALIVE_TIME_MS, MN_GRPC_KEEPALIVE_MS),
        integer_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, MN_GRPC_KEEPALIVE_TIMEOUT_MS),
        integer_arg(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        integer_arg(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        /* A restarted shard is found again within a second. */
        integer_arg(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100),
        integer_arg(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000),
        integer_arg(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000),
        integer_arg(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, 1000),
    };
    grpc_channel_args list = {sizeof args / sizeof args[0], args};
    char target[ADDRESS_BYTES_MAX + 8], path[96];
    target_of(address, target);
    grpc_channel_credentials *credentials = grpc_insecure_credentials_create();
    channel->channel = grpc_channel_create(target, credentials, &list);
    grpc_channel_credentials_release(credentials);
    for (uint32_t verb = 0; verb < MN_VERB_COUNT; verb++) {
        (void)snprintf(path, sizeof path, "/%s/%s", MN_SERVICE, mn_verb_name((enum mn_verb)verb));
        channel->methods[verb] = grpc_channel_register_call(channel->channel, path, NULL, NULL);
    }
}

/* ---- Starting ---------------------------------------------------------------------------- */

static void drop_payload(void *user_data)
{
    struct client_call *call = user_data;
    (void)atomic_fetch_sub_explicit(&call->payload_held, 1, memory_order_release);
}

/* The message: encoded header, then the payload in place. MN_INVALID when it is too large. */
static enum mn_status make_request(struct client_call *call, mn_error *error)
{
    mn_exchange *exchange = call->exchange;
    const mn_payload *payload = &exchange->request.payload;
    uint8_t header[MN_HEADER_BYTES_MAX];
    uint32_t header_bytes;
    enum mn_status status =
        mn_request_encode(&exchange->request, header, sizeof header, &header_bytes, error);
    if (status)
        return status;
    if (payload->bytes > MN_MESSAGE_BYTES_MAX - header_bytes)
        return mn_fail(error, MN_INVALID, "payload",
                       "%llu bytes do not fit a message of %d; send less at once",
                       (unsigned long long)payload->bytes, MN_MESSAGE_BYTES_MAX);
    grpc_slice slices[1 + MN_SPANS_MAX];
    size_t count = 0;
    slices[count++] = grpc_slice_from_copied_buffer((const char *)header, header_bytes);
    assert(payload->span_count <= MN_SPANS_MAX);
    atomic_store_explicit(&call->payload_held, payload->span_count, memory_order_relaxed);
    for (uint32_t i = 0; i < payload->span_count; i++)
        slices[count++] = grpc_slice_new_with_user_data(
            (void *)payload->spans[i].bytes, payload->spans[i].count, drop_payload, call);
    call->request = grpc_raw_byte_buffer_create(slices, count);
    for (size_t i = 0; i < count; i++)
        grpc_slice_unref(slices[i]); /* the byte buffer holds its own reference */
    exchange->bytes_sent = FRAME_BYTES + grpc_byte_buffer_length(call->request);
    return MN_OK;
}

static uint64_t now_ns(const grpc_transport *transport)
{
    return transport->env.now_ns(transport->env.context);
}

static gpr_timespec instant_of(const grpc_transport *transport, uint64_t instant_ns)
{
    uint64_t now = now_ns(transport);
    uint64_t left = instant_ns > now ? instant_ns - now : 0;
    if (left >= INT64_MAX)
        return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                        gpr_time_from_nanos((int64_t)left, GPR_TIMESPAN));
}

static void start_batch(grpc_call *started, const grpc_op *ops, size_t count, struct tag *tag)
{
    grpc_call_error error = grpc_call_start_batch(started, ops, count, tag, NULL);
    assert(error == GRPC_CALL_OK); /* our own bug otherwise */
}

/* Adds an entry whose value is not "". */
static void send_metadata(struct client_call *call, grpc_op *op, const char *key, const char *value)
{
    if (!value[0])
        return;
    op->data.send_initial_metadata.metadata = call->metadata;
    grpc_metadata *entry = &call->metadata[op->data.send_initial_metadata.count++];
    entry->key = grpc_slice_from_static_string(key);
    entry->value = grpc_slice_from_static_string(value);
}

static void start_sending(const grpc_transport *transport, struct client_call *call,
                          grpc_call *started)
{
    grpc_op ops[3];
    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    send_metadata(call, &ops[0], "authorization", transport->authorization);
    send_metadata(call, &ops[0], "traceparent", transport->traceparent);
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    ops[1].data.send_message.send_message = call->request;
    ops[2].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    start_batch(started, ops, 3, &call->tags[BATCH_SEND]);
}

static void start_receiving(struct client_call *call, grpc_call *started)
{
    grpc_op ops[3];
    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_RECV_INITIAL_METADATA;
    ops[0].data.recv_initial_metadata.recv_initial_metadata = &call->initial;
    ops[1].op = GRPC_OP_RECV_MESSAGE;
    ops[1].data.recv_message.recv_message = &call->reply;
    ops[2].op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    ops[2].data.recv_status_on_client.trailing_metadata = &call->trailing;
    ops[2].data.recv_status_on_client.status = &call->code;
    ops[2].data.recv_status_on_client.status_details = &call->text;
    /* A refused call's empty batch comes back at once, so that done() runs where it always does. */
    start_batch(started, ops, call->refused ? 0 : 3, &call->tags[BATCH_RECEIVE]);
}

/* A fresh call for the exchange, known to cancel from here on; NULL when none is free. */
static struct client_call *take_slot(grpc_transport *transport, mn_exchange *exchange)
{
    uint64_t now = now_ns(transport);
    pthread_mutex_lock(&transport->lock);
    struct client_call *call = transport->free;
    if (call)
        transport->free = call->next;
    else if (transport->slots_used < CALLS_MAX)
        call = &transport->slots[transport->slots_used++];
    if (call) {
        call->exchange = exchange;
        call->call = NULL;
        call->cancelled = false;
        exchange->transport_data = call;
    } else {
        exchange->transport_data = transport->overflow;
        transport->overflow = exchange;
    }
    transport->starts++;
    transport->attended_ns = now;
    transport->in_flight++;
    if (transport->idle)
        (void)pthread_cond_signal(&transport->wake); /* cannot fail */
    transport->idle = false;
    pthread_mutex_unlock(&transport->lock);
    return call;
}

static void transport_start(mn_transport *base, uint32_t shard, mn_exchange *exchange)
{
    grpc_transport *transport = (grpc_transport *)base;
    assert(shard < base->shards);
    exchange->bytes_sent = exchange->bytes_received = 0;
    memset(&exchange->reply, 0, sizeof exchange->reply);
    struct client_call *call = take_slot(transport, exchange);
    if (!call)
        return; /* who drains answers it, busy as that is with CALLS_MAX others */
    call->request = call->reply = NULL;
    call->peer = NULL;
    call->late = false;
    call->code = GRPC_STATUS_OK;
    call->text = grpc_empty_slice();
    grpc_metadata_array_init(&call->initial);
    grpc_metadata_array_init(&call->trailing);
    exchange->reply.status = make_request(call, &exchange->reply.error);
    call->refused = exchange->reply.status != MN_OK;
    call->batches = call->refused ? 1 : 2;
    for (int batch = BATCH_SEND; batch <= BATCH_RECEIVE; batch++)
        call->tags[batch] = (struct tag){(enum batch)batch, call};
    const struct channel *channel = &transport->channels[shard];
    grpc_call *started = grpc_channel_create_registered_call(
        channel->channel, NULL, GRPC_PROPAGATE_DEFAULTS, transport->queue,
        channel->methods[exchange->request.verb], instant_of(transport, exchange->deadline_ns),
        NULL);
    pthread_mutex_lock(&transport->lock);
    call->call = started;
    if (call->cancelled)
        (void)grpc_call_cancel(started, NULL); /* fails only for a reserved argument */
    pthread_mutex_unlock(&transport->lock);
    if (!call->refused)
        start_sending(transport, call, started);
    start_receiving(call, started);
}

static void transport_cancel(mn_transport *base, mn_exchange *exchange)
{
    grpc_transport *transport = (grpc_transport *)base;
    pthread_mutex_lock(&transport->lock);
    struct client_call *call = exchange->transport_data;
    if (call >= transport->slots && call < transport->slots + CALLS_MAX) {
        call->cancelled = true;
        if (call->call)
            (void)grpc_call_cancel(call->call, NULL);
    }
    pthread_mutex_unlock(&transport->lock);
}

/* ---- Finishing, on the thread that drains ------------------------------------------------- */

/* What a call that failed says: the shard's typed error, or what gRPC's code and text tell. */
static void read_failure(struct client_call *call, bool cancelled)
{
    mn_reply *reply = &call->exchange->reply;
    char text[sizeof reply->error.message];
    for (size_t i = 0; i < call->trailing.count; i++) {
        const grpc_metadata *entry = &call->trailing.metadata[i];
        if (!grpc_slice_str_cmp(entry->key, MN_GRPC_ERROR_KEY) &&
            !mn_error_decode(GRPC_SLICE_START_PTR(entry->value),
                             (uint32_t)GRPC_SLICE_LENGTH(entry->value), reply) &&
            reply->status != MN_OK)
            return;
    }
    size_t count = GRPC_SLICE_LENGTH(call->text);
    count = count < sizeof text - 1 ? count : sizeof text - 1;
    memcpy(text, GRPC_SLICE_START_PTR(call->text), count);
    text[count] = '\0';
    reply->status = mn_fail(&reply->error, mn_grpc_status(call->code, text, cancelled), "transport",
                            "%s", text[0] ? text : "the call failed without a word");
}

static enum mn_status read_message(grpc_transport *transport, struct client_call *call,
                                   mn_error *error)
{
    mn_reply *reply = &call->exchange->reply;
    mn_payload payload = {transport->payload_spans, 0, 0};
    uint32_t span_count, header_bytes;
    if (!call->reply)
        return mn_fail(error, MN_CORRUPT, "message", "the reply carries no message");
    call->exchange->bytes_received = FRAME_BYTES + grpc_byte_buffer_length(call->reply);
    enum mn_status status = mn_grpc_spans(&call->reply, transport->spans, &span_count, error);
    if (!status)
        status = mn_scan_payload(transport->spans, span_count, transport->header,
                                 sizeof transport->header, &header_bytes, transport->payload_spans,
                                 MN_GRPC_SPANS_MAX, &payload, error);
    if (!status)
        status = mn_reply_decode(call->exchange->request.verb, transport->header, header_bytes,
                                 &transport->arena, reply, error);
    if (!status)
        reply->payload = payload;
    return status;
}

static void finish(grpc_transport *transport, struct client_call *call)
{
    mn_exchange *exchange = call->exchange;
    mn_error error = {0};
    if (!exchange->reply.status) {
        enum mn_status status = read_message(transport, call, &error);
        if (status) {
            memset(&exchange->reply, 0, sizeof exchange->reply);
            exchange->reply.status = status;
            exchange->reply.error = error;
        }
    }
    pthread_mutex_lock(&transport->lock);
    exchange->transport_data = NULL; /* from here on, cancel finds nothing */
    pthread_mutex_unlock(&transport->lock);
    exchange->done(exchange); /* its memory may be gone when this returns */
    if (call->reply)
        grpc_byte_buffer_destroy(call->reply);
    gpr_free(call->peer);
    pthread_mutex_lock(&transport->lock);
    call->next = transport->free;
    transport->free = call;
    transport->in_flight--;
    pthread_mutex_unlock(&transport->lock);
}

/* The other end of a socket as gRPC words it; false when `fd` is no connection over IP. gRPC's own
 * are of IPv6, an IPv4 address being mapped into it. */
static bool peer_of(int fd, char *out_text, size_t bytes_max)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } address;
    socklen_t bytes = sizeof address;
    char host[INET6_ADDRSTRLEN];
    if (getpeername(fd, &address.any, &bytes) ||
        (address.any.sa_family != AF_INET && address.any.sa_family != AF_INET6))
        return false;
    bool mapped = address.any.sa_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&address.v6.sin6_addr);
    bool v4 = mapped || address.any.sa_family == AF_INET;
    const void *raw = &address.v4.sin_addr;
    if (address.any.sa_family == AF_INET6)
        raw = &address.v6.sin6_addr.s6_addr[mapped ? 12 : 0];
    if (!inet_ntop(v4 ? AF_INET : AF_INET6, raw, host, sizeof host))
        return false;
    (void)snprintf(out_text, bytes_max, v4 ? "ipv4:%s:%u" : "ipv6:%%5B%s%%5D:%u", host,
                   ntohs(address.v4.sin_port)); /* the port lies alike in both */
    return true;
}

/* Ends the connection to a peer that takes no bytes: gRPC keeps a payload that it has begun to
 * write until the peer reads on or the connection dies, long after the call has ended. Other calls
 * on it end UNAVAILABLE, and the next one connects anew. */
static void cut_off(const char *peer)
{
    char text[INET6_ADDRSTRLEN + 32];
    for (int fd = 0; fd < FD_MAX; fd++)
        if (peer_of(fd, text, sizeof text) && !strcmp(text, peer))
            (void)shutdown(fd, SHUT_RDWR); /* fails if it has ended by itself: as well */
}

static void enter_late(grpc_transport *transport, struct client_call *call, grpc_call *started)
{
    call->late = true;
    call->late_ns = now_ns(transport);
    call->previous = NULL;
    call->next = transport->late;
    if (call->next)
        call->next->previous = call;
    transport->late = call;
    if (!call->peer)
        call->peer = grpc_call_get_peer(started);
}

static void leave_late(grpc_transport *transport, struct client_call *call)
{
    call->late = false;
    if (call->previous)
        call->previous->next = call->next;
    else
        transport->late = call->next;
    if (call->next)
        call->next->previous = call->previous;
}

static bool payload_held(struct client_call *call)
{
    return atomic_load_explicit(&call->payload_held, memory_order_acquire) != 0;
}

/* Both batches have ended. The call's metadata goes with it, so failures are read first; then gRPC
 * lets go of the payload, if it has not before. */
static void end_call(struct client_call *call, grpc_call *over, bool cancelled)
{
    if (!call->refused && call->code != GRPC_STATUS_OK)
        read_failure(call, cancelled);
    grpc_metadata_array_destroy(&call->initial);
    grpc_metadata_array_destroy(&call->trailing);
    grpc_slice_unref(call->text);
    if (payload_held(call) && !call->peer)
        call->peer = grpc_call_get_peer(over);
    grpc_call_unref(over);
    if (call->request)
        grpc_byte_buffer_destroy(call->request);
}

static void on_batch_end(grpc_transport *transport, const struct tag *tag)
{
    pthread_mutex_lock(&transport->lock); /* also makes what start() wrote visible here */
    struct client_call *call = tag->call;
    grpc_call *started = call->call;
    bool cancelled = call->cancelled;
    bool ended = --call->batches == 0;
    if (ended)
        call->call = NULL;
    pthread_mutex_unlock(&transport->lock);
    if (ended)
        end_call(call, started, cancelled);
    if (ended && !payload_held(call)) {
        if (call->late)
            leave_late(transport, call);
        finish(transport, call);
    } else if (!call->late && (ended || tag->batch == BATCH_RECEIVE)) {
        enter_late(transport, call, started);
    }
}

/* Finishes late calls whose payload has come free, and cuts off shards that do not let go. */
static void look_after_late(grpc_transport *transport)
{
    uint64_t now = now_ns(transport);
    for (struct client_call *call = transport->late, *next; call; call = next) {
        next = call->next;
        if (call->batches == 0 && !payload_held(call)) {
            leave_late(transport, call);
            finish(transport, call);
        } else if (now > call->late_ns + LATE_MAX_NS && now > transport->cut_ns + LATE_MAX_NS) {
            cut_off(call->peer);
            transport->cut_ns = now;
        }
    }
}

static void refuse_overflow(grpc_transport *transport)
{
    pthread_mutex_lock(&transport->lock);
    mn_exchange *exchange = transport->overflow;
    transport->overflow = NULL;
    pthread_mutex_unlock(&transport->lock);
    while (exchange) {
        mn_exchange *next = exchange->transport_data;
        exchange->transport_data = NULL;
        exchange->reply.status = mn_fail(&exchange->reply.error, MN_BUSY, "transport",
                                         "%d calls are in flight already", CALLS_MAX);
        exchange->done(exchange);
        pthread_mutex_lock(&transport->lock);
        transport->in_flight--;
        pthread_mutex_unlock(&transport->lock);
        exchange = next;
    }
}

/* ---- Draining ----------------------------------------------------------------------------- */

static struct tag kicked; /* of the kick's batches: nothing follows from them */

/* One event of the queue, if one comes by then, and what follows from it. */
static grpc_completion_type drain_once(grpc_transport *transport, uint64_t until_ns)
{
    uint64_t now = now_ns(transport);
    uint64_t late_ns = transport->late ? now + LATE_POLL_NS : UINT64_MAX;
    until_ns = until_ns < late_ns ? until_ns : late_ns;
    grpc_event event =
        grpc_completion_queue_next(transport->queue, instant_of(transport, until_ns), NULL);
    if (event.type == GRPC_OP_COMPLETE && event.tag != &kicked)
        on_batch_end(transport, event.tag);
    if (transport->late)
        look_after_late(transport);
    refuse_overflow(transport);
    return event.type;
}

static struct timespec monotonic(uint64_t instant_ns)
{
    return (struct timespec){.tv_sec = (time_t)(instant_ns / 1000000000u),
                             .tv_nsec = (long)(instant_ns % 1000000000u)};
}

/* Under the lock. Our own thread goes when it is told; a caller that polls goes when it has its
 * answer. */
static void ask_for_turn(grpc_transport *transport, uint64_t until_ns)
{
    struct timespec until = monotonic(until_ns);
    bool in_time = true;
    while (transport->polling && transport->ours && in_time) {
        if (!transport->asked)
            start_batch(transport->kick, NULL, 0, &kicked);
        transport->asked = true;
        in_time = !pthread_cond_timedwait(&transport->free_turn, &transport->lock, &until);
    }
}

static bool transport_poll(mn_transport *base, uint64_t until_ns)
{
    grpc_transport *transport = (grpc_transport *)base;
    if (now_ns(transport) >= until_ns)
        return false;
    pthread_mutex_lock(&transport->lock);
    ask_for_turn(transport, until_ns);
    bool mine = !transport->polling && transport->in_flight;
    transport->polling = transport->polling || mine;
    pthread_mutex_unlock(&transport->lock);
    if (!mine)
        return false;
    (void)drain_once(transport, until_ns); /* the queue is shut when nobody waits any more */
    pthread_mutex_lock(&transport->lock);
    transport->polling = false;
    transport->attended_ns = now_ns(transport);
    pthread_mutex_unlock(&transport->lock);
    return true;
}

/* Sleeps under the lock; a start ends a long sleep: false. */
static bool nap(grpc_transport *transport, uint64_t nap_ns)
{
    struct timespec until = monotonic(now_ns(transport) + nap_ns);
    return pthread_cond_timedwait(&transport->wake, &transport->lock, &until) == ETIMEDOUT;
}

/* Our own thread's turn, until a caller asks for it or nothing is in flight. Under the lock. */
static void drain_ours(grpc_transport *transport)
{
    transport->polling = transport->ours = true;
    transport->asked = false;
    do {
        uint64_t until_ns = transport->in_flight ? UINT64_MAX : now_ns(transport) + IDLE_LOOK_NS;
        pthread_mutex_unlock(&transport->lock);
        (void)drain_once(transport, until_ns);
        pthread_mutex_lock(&transport->lock);
    } while (transport->in_flight && !transport->asked);
    transport->polling = transport->ours = false;
    (void)pthread_cond_broadcast(&transport->free_turn); /* cannot fail */
}

/* Our own thread: looks after the calls that nobody waits for. */
static void *drain(void *context)
{
    grpc_transport *transport = context;
    uint64_t starts = 0, naps = 0;
    pthread_mutex_lock(&transport->lock);
    while (!transport->closing) {
        bool quiet = starts == transport->starts && !transport->in_flight && !transport->polling;
        naps = quiet ? naps + 1 : 0;
        starts = transport->starts;
        transport->idle = naps > IDLE_AFTER_NAPS;
        bool looks = transport->idle;
        bool slept = nap(transport, looks ? IDLE_NAP_NS : NAP_NS);
        transport->idle = false;
        bool alone = transport->in_flight && now_ns(transport) >= transport->attended_ns + ALONE_NS;
        if (!transport->polling && (alone || (looks && slept)))
            drain_ours(transport);
    }
    pthread_mutex_unlock(&transport->lock);
    while (drain_once(transport, UINT64_MAX) != GRPC_QUEUE_SHUTDOWN)
        ;
    return NULL;
}

/* ---- Creating and destroying ------------------------------------------------------------- */

static uint64_t slots_bytes(void) { return (uint64_t)CALLS_MAX * sizeof(struct client_call); }

/* Frees what was acquired; no thread of ours runs. */
static void release(grpc_transport *transport)
{
    mn_env env = transport->env;
    if (transport->kick)
        grpc_call_unref(transport->kick);
    for (uint32_t i = 0; transport->channels && i < transport->base.shards; i++)
        if (transport->channels[i].channel)
            grpc_channel_destroy(transport->channels[i].channel);
    if (transport->queue)
        grpc_completion_queue_destroy(transport->queue);
    env.release(env.context, transport->channels,
                transport->base.shards * sizeof *transport->channels);
    if (transport->slots)
        env.unreserve(env.context, transport->slots, slots_bytes());
    (void)pthread_cond_destroy(&transport->free_turn); /* nobody waits */
    (void)pthread_cond_destroy(&transport->wake);
    (void)pthread_mutex_destroy(&transport->lock); /* nobody holds it */
    env.release(env.context, transport, sizeof *transport);
    grpc_shutdown();
}

static void transport_destroy(mn_transport *base)
{
    grpc_transport *transport = (grpc_transport *)base;
    if (!transport)
        return;
    pthread_mutex_lock(&transport->lock);
    transport->closing = true;
    (void)pthread_cond_signal(&transport->wake); /* cannot fail */
    pthread_mutex_unlock(&transport->lock);
    grpc_completion_queue_shutdown(transport->queue);
    (void)pthread_join(transport->thread, NULL); /* a thread of ours, joined once */
    release(transport);
}

static enum mn_status check_options(const mn_grpc_client_options *options, mn_error *error)
{
    if (!options->shards || options->shards > MN_SHARDS_MAX)
        return mn_fail(error, MN_INVALID, "shards", "%u is not in 1 .. %d", options->shards,
                       MN_SHARDS_MAX);
    for (uint32_t i = 0; i < options->shards; i++) {
        size_t length = strlen(options->addresses[i]);
        if (!length || length >= ADDRESS_BYTES_MAX || !strchr(options->addresses[i], ':'))
            return mn_fail(error, MN_INVALID, "address", "shard %u: \"%.100s\" is not HOST:PORT", i,
                           options->addresses[i]);
    }
    enum mn_status status = MN_OK;
    if (options->authorization)
        status = mn_authorization_check("authorization", options->authorization,
                                        MN_AUTHORIZATION_BYTES_MAX, error);
    if (!status && options->traceparent)
        status = mn_traceparent_check("traceparent", options->traceparent, error);
    return status;
}

static enum mn_status acquire(grpc_transport *transport, const mn_grpc_client_options *options,
                              mn_error *error)
{
    const mn_env *env = &transport->env;
    transport->slots = env->reserve(env->context, slots_bytes());
    transport->channels =
        env->allocate(env->context, options->shards * sizeof *transport->channels);
    if (!transport->slots || !transport->channels)
        return mn_fail(error, MN_NO_MEMORY, "shards", "no memory for %u channels", options->shards);
    for (uint32_t i = 0; i < options->shards; i++)
        open_channel(&transport->channels[i], options->addresses[i]);
    transport->queue = grpc_completion_queue_create_for_next(NULL);
    transport->kick = grpc_channel_create_registered_call(
        transport->channels[0].channel, NULL, GRPC_PROPAGATE_DEFAULTS, transport->queue,
        transport->channels[0].methods[0], gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    if (pthread_create(&transport->thread, NULL, drain, transport))
        return mn_fail(error, MN_NO_MEMORY, "thread", "no thread to drain the completion queue");
    return MN_OK;
}

/* On the monotonic clock. glibc's attributes are plain memory: none of this can fail. */
static void init_wake(pthread_cond_t *out_wake)
{
    pthread_condattr_t attributes;
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(out_wake, &attributes);
    (void)pthread_condattr_destroy(&attributes);
}

enum mn_status mn_grpc_client_create(const mn_grpc_client_options *options,
                                     mn_transport **out_transport, mn_error *error)
{
    enum mn_status status = check_options(options, error);
    if (status)
        return status;
    const mn_env *env = options->env;
    grpc_transport *transport = env->allocate(env->context, sizeof *transport);
    if (!transport)
        return mn_fail(error, MN_NO_MEMORY, "transport", "no memory for a transport");
    transport->base = (mn_transport){.shards = options->shards,
                                     .start = transport_start,
                                     .cancel = transport_cancel,
                                     .destroy = transport_destroy,
                                     .poll = transport_poll};
    transport->env = *env;
    if (options->authorization)
        (void)snprintf(transport->authorization, sizeof transport->authorization, "%s",
                       options->authorization); /* its length was checked */
    if (options->traceparent)
        (void)snprintf(transport->traceparent, sizeof transport->traceparent, "%s",
                       options->traceparent); /* likewise */
    mn_grpc_init();
    (void)pthread_mutex_init(&transport->lock, NULL); /* default attributes: cannot fail */
    init_wake(&transport->wake);
    init_wake(&transport->free_turn);
    status = acquire(transport, options, error);
    if (status) {
        if (transport->queue)
            grpc_completion_queue_shutdown(transport->queue);
        release(transport);
        return status;
    }
    *out_transport = &transport->base;
    return MN_OK;
}
