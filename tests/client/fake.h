/* A world for the client core alone: a clock that the test moves, allocations that fail on demand,
 * and a transport that keeps what was started until the test answers it. */
#ifndef FAKE_H
#define FAKE_H

#include "client_core.h"

enum { FAKE_STARTED_MAX = 256 };

typedef struct fake_start {
    uint32_t shard;
    mn_exchange *exchange; /* NULL once answered */
    bool cancelled;
} fake_start;

typedef struct fake {
    mn_transport transport; /* first */
    mn_env env;
    mn_core *core;
    uint64_t now_ns, randoms;
    int64_t allocations_left; /* before they fail; negative: never */
    int64_t alive;            /* allocations not released */
    fake_start started[FAKE_STARTED_MAX];
    uint32_t started_count;
} fake;

void fake_init(fake *it, uint32_t shards);
mn_core_options fake_options(void); /* one rank, two exchanges a window, back-off 8 ms */
void fake_create(fake *it, const mn_core_options *options);
void fake_destroy(fake *it); /* fails the test if anything is left */

/* The only unanswered exchange of this verb at this shard; fails the test if there is none. */
mn_exchange *fake_take(fake *it, enum mn_verb verb, uint32_t shard);
bool fake_cancelled(const fake *it, const mn_exchange *exchange);
uint32_t fake_open(const fake *it, enum mn_verb verb); /* unanswered */

void fake_answer(fake *it, mn_exchange *exchange); /* with exchange->reply as the test set it */
void fake_answer_bytes(fake *it, mn_exchange *exchange, const void *bytes, uint64_t count);
void fake_refuse(fake *it, mn_exchange *exchange, enum mn_status status, const char *field);
void fake_answer_all(fake *it, enum mn_verb verb, uint64_t step); /* with success, at this step */
void fake_pass(fake *it, uint64_t ms);                            /* time, then a tick */

/* Operations with a done() that counts. */
typedef struct fake_call {
    mn_operation operation;
    uint32_t done;
} fake_call;
void fake_call_init(const fake *it, fake_call *call, enum mn_operation_kind kind,
                    uint64_t deadline_ms);
void fake_submit(fake *it, fake_call *call);
/* The call has ended, once, with this status; `field` NULL: whatever field it names. */
void fake_expect_end(const fake_call *call, enum mn_status status, const char *field);

/* Joined at committed step 4, incarnation 3, and an epoch of one restore. */
#define FAKE_EPOCH (UINT64_C(1) << 32)
void fake_join(fake *it);
/* A client of so many shards that has joined; options NULL: fake_options(). */
void fake_joined(fake *it, uint32_t shards, const mn_core_options *options);
mn_table *fake_table(fake *it, const mn_table_spec *spec); /* with id 9 */

#endif
