/* The gRPC server's own structs: a call's slot and the server. Private to proto. */
#ifndef MN_GRPC_SERVER_H
#define MN_GRPC_SERVER_H

#include "grpc_common.h"
#include "grpc_pool.h"

#include <pthread.h>
#include <stdatomic.h>

/* What a completion-queue event is about; the address of a tag is gRPC's `void *tag`. */
enum event {
    EVENT_ARRIVED, /* a call matched this slot's posted request */
    EVENT_ENDED,   /* the call is over, seen from gRPC; `cancelled` says how */
    EVENT_SENT,    /* the answer is on its way */
    EVENT_STOPPED, /* the server serves no call any more */
    EVENT_WOKEN    /* somebody wants a tick */
};
struct server_call;
struct tag {
    enum event event;
    struct server_call *call;
};

/* A gRPC method and how many of its requests are not posted for want of a slot. */
struct method {
    void *registered; /* NULL: the catch-all for unknown methods */
    void (*serve)(struct server_call *call);
    enum mn_verb verb; /* 0, a control verb, where there is none */
    uint32_t missing;
};
enum { METHOD_HEALTH = MN_VERB_COUNT, METHOD_WATCH, METHOD_UNKNOWN, METHOD_COUNT };
enum { WATCHES_MAX = 64 };
enum { KINDS = MN_KIND_CONTROL + 1 }; /* of calls; methods without a verb are control */

/* A slot: first a posted request, then the call that matched it, until gRPC is done with both. Only
 * the thread in mn_grpc_server_run touches it. */
struct server_call {
    mn_call base; /* what the core sees; first, so that both addresses agree */
    struct mn_grpc_server *server;
    struct method *method;
    struct tag arrived, ended, sent;
    struct server_call *next_free;

    grpc_call *call; /* NULL while posted or free */
    gpr_timespec deadline;
    grpc_metadata_array metadata;
    grpc_call_details details; /* catch-all only */
    grpc_byte_buffer *message; /* as received, lent to the core until the answer */
    mn_span spans[MN_GRPC_SPANS_MAX];

    uint32_t batches;      /* started and not yet completed; the slot is free after the last */
    bool answered;         /* finish has come */
    bool end_watched;      /* a batch with RECV_CLOSE_ON_SERVER was started */
    bool gone;             /* the caller cannot be told any more */
    int cancelled;         /* gRPC's */
    uint64_t ends_ns;      /* the caller's deadline */
    uint64_t leave_by_ns;  /* when its answer is taken back; 0: not seen waiting yet */
    bool watching;         /* a Watch: never answered until its end */
    bool service_known;    /* that it asks for */
    uint8_t told;          /* to it last; 0: nothing, and no metadata */
    bool reply_too_large;  /* reserve was asked for more than a message holds */
    uint8_t *reply_buffer; /* from the pool, until it became a slice */
    mn_span reply_span;    /* over it, as reserved */
    grpc_byte_buffer *answer;
    grpc_metadata trailing;
    grpc_slice text;
};

struct mn_grpc_server {
    mn_grpc_server_options options;
    mn_env env;
    grpc_completion_queue *queue;
    grpc_server *server;
    mn_reply_pool *pool;
    struct method methods[METHOD_COUNT];

    struct server_call *slots; /* [slots_max], of which the first slots_used were ever used */
    struct server_call *free;
    uint32_t slots_max, slots_used, slots_busy;
    /* Arrived and not answered: each kind has places of its own, so that reads that wait for a
     * commit cannot keep it out. */
    uint32_t held_by_kind[KINDS];
    uint32_t watches; /* beside them */

    uint8_t header[MN_HEADER_BYTES_MAX]; /* scratch of one decode or encode */
    mn_span spans[MN_GRPC_SPANS_MAX];    /* scratch likewise: a message's pieces */

    struct tag stopped_tag, woken_tag;
    grpc_channel *nowhere;      /* of the kick */
    grpc_call *kick;            /* never sent; an empty batch of it wakes the thread */
    pthread_mutex_t wake_mutex; /* not gRPC's: the thread sanitizer sees this one */
    bool woken, deaf;           /* under it: the event is on its way; the queue takes no more */
    bool stopped;               /* stopped_tag came */
    bool drained;               /* the queue is empty for good */
    bool abandoned;             /* the core gave up its calls */

    _Atomic bool stopping, healthy;                                     /* any thread */
    _Atomic uint64_t calls, failures, bytes_received, bytes_sent, held; /* written in run only */
};

/* grpc_answer.c: answers the call, once, by its base.reply; mn_call.finish and mn_call.reserve. */
void mn_server_finish(mn_call *call);
uint8_t *mn_server_reserve(mn_call *call, uint64_t bytes);
/* Answers with these bytes as the whole message; `bytes` is constant memory. */
void mn_server_answer_bytes(struct server_call *call, const void *bytes, uint32_t count);
/* Answers with reply.status and reply.error. */
void mn_server_refuse(struct server_call *call, const mn_error *error);
/* grpc_watch.c: the health service. */
void mn_server_check(struct server_call *call);
void mn_server_watch(struct server_call *call);
void mn_server_watch_sent(struct server_call *call); /* a message is on its way */
void mn_server_watch_stop(struct server_call *call); /* the server goes, or the caller did */
void mn_server_watches_tell(mn_grpc_server *server); /* what changed, to all */
/* Watches for the end of a call that is parked. */
void mn_server_watch_end(struct server_call *call);

#endif
