/* A gRPC server around a tiny core, and a client beside it, for the transport's tests. */
#ifndef MN_GRPC_RIG_H
#define MN_GRPC_RIG_H

#include "mn_proto.h"

#include <pthread.h>

/* What the core answers. Its own fields are guarded by `lock`; calls are the server's thread's.
 *   Push     step = the sum of the payload's bytes
 *   Fetch    payload of `count` bytes, the i-th being rig_byte(i); BUSY when reserve fails
 *   Bag      the payload back
 *   Seal     parked until its deadline (DEADLINE), a Commit (OK) or abandon
 *   Commit   finishes the parked ones
 *   Reduce   step = remaining_ms as the core sees it
 *   Move     UNSUPPORTED "verb", with step and map epoch
 *   others   OK, step = context.step */
typedef struct rig {
    mn_env env;
    mn_grpc_server *server;
    int port;
    char address[32];
    pthread_t thread;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    mn_call *parked; /* the server's thread only */
    uint32_t parked_count, abandoned;
    enum mn_verb last_verb;
    mn_context last_context;
    char last_trace[MN_TRACEPARENT_BYTES];
} rig;

typedef struct rig_options {
    uint32_t calls_max;
    uint64_t reply_bytes_max;
    uint32_t message_bytes_max;
    mn_admit_function admit;
    int port; /* 0: any */
} rig_options;

static inline uint8_t rig_byte(uint64_t i) { return (uint8_t)(i * 31 + (i >> 8) * 7 + 5); }

void rig_start(rig *it, const rig_options *options);
/* Serves until rig_stop; its address is rig->address. */
void rig_stop(rig *it);
uint32_t rig_wait_parked(rig *it, uint32_t count);    /* until as many are parked; the count */
uint32_t rig_wait_abandoned(rig *it, uint32_t count); /* likewise */

/* The verb, and if asked the context, that the core saw last. */
enum mn_verb rig_last(rig *it, mn_context *out_context);

/* One exchange and its copied answer. */
typedef struct rig_call {
    mn_exchange exchange;
    mn_span span;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool over;
    uint64_t took_ns;
    const mn_env *env;
    mn_reply reply; /* as at done(); its payload and lists are gone */
    uint8_t *payload;
    uint64_t payload_bytes;
} rig_call;

mn_transport *rig_client(const rig *it, const char *authorization);
/* Starts a call of `verb` with this payload (lent until rig_wait) and time. */
void rig_begin(rig_call *call, mn_transport *transport, const mn_env *env, enum mn_verb verb,
               uint64_t count, const void *payload, uint64_t payload_bytes, uint64_t timeout_ms);
enum mn_status rig_wait(rig_call *call); /* then reply, payload, took_ns; rig_end frees */
void rig_end(rig_call *call);

#endif
