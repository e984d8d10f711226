/* mn_client and mn_future, shared by the files that put mneme.h on top of the core. */
#ifndef MN_CLIENT_HANDLE_H
#define MN_CLIENT_HANDLE_H

#include "client_core.h"

#include <pthread.h>

/* All fields under client->mutex, but client, which is set once. */
struct mn_future {
    mn_operation operation;
    mn_client *client;
    pthread_cond_t ended;
    bool in_use, done, asleep; /* asleep: a thread waits for `ended` */
    mn_future *next_free;
};

enum { ENDED_MAX = 16 };

struct mn_client {
    /* Set once. */
    mn_env env;
    mn_transport *transport;
    uint64_t deadline_ms;
    uint32_t calls_max;
    bool has_mutex, has_wake, has_ticker;
    pthread_mutex_t mutex;
    pthread_cond_t wake; /* of the ticker */
    pthread_t ticker;    /* runs retries and deadlines that are due */
    /* Under the mutex. */
    mn_core *core;
    mn_future *futures; /* [calls_max]; the first futures_used have been used before */
    uint32_t futures_used;
    mn_future *free_future;
    mn_future *ended[ENDED_MAX]; /* whose waiters the next unlock wakes */
    uint32_t ended_count;
    uint32_t pollers, sleepers; /* threads that wait in the transport, or asleep */
    uint64_t ticker_due_ns;     /* when the ticker will look next */
    bool closing;
};

void mn_client_lock(void *client);
/* Wakes the ticker if something is due before it looks, and, when the mutex is free for them, those
 * who wait for futures that ended. */
void mn_client_unlock(void *client);
bool mn_wake_init(pthread_cond_t *out_cond); /* on the monotonic clock */
/* False when the time passed. */
bool mn_wake_wait(pthread_cond_t *cond, pthread_mutex_t *mutex, uint64_t until_ns);

/* A future whose operation is zero but for its deadline; NULL: calls_max are alive. */
mn_future *mn_future_take(mn_client *client, enum mn_operation_kind kind);
mn_future *mn_future_start(mn_future *future);
enum mn_status mn_future_run(mn_future *future, mn_error *error); /* starts, waits, keeps it */
void mn_future_release(mn_future *future);

#endif
