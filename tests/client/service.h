/* A memory service for tests, of any transport: shards embedded in each client, or mneme-shard
 * processes on loopback. */
#ifndef SERVICE_H
#define SERVICE_H

#include "mneme.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct service_kind {
    bool processes;
    uint32_t shards;
    uint32_t device; /* as mn_client_options has it */
    bool arrays;     /* the caller's lie in its memory, too (device_arrays.c) */
};

struct service {
    struct service_kind kind;
    char folder[64]; /* for snapshots; made and removed by the struct service */
    char target[1024];
    pid_t pids[16];
};

/* The folder of `shared`, when not NULL, serves instead of a new one. */
void service_start(struct service *out_service, struct service_kind kind,
                   const struct service *shared);
extern const struct service_kind *service_started; /* the last one; NULL: none yet */
void service_stop(struct service *service);
const char *service_name(const struct service *service); /* "3 embedded shards" */

mn_client *service_open(const struct service *service, const char *group, uint32_t rank,
                        uint32_t ranks);

/* Fail the test with the error's words. */
void must_at(enum mn_status status, const mn_error *error, const char *file, int line);
#define must(call)        must_at((call), &error, __FILE__, __LINE__)
#define must_wait(future) must_at(mn_wait((future), &error), &error, __FILE__, __LINE__)

/* A reproducible stream of made-up numbers. */
uint64_t draw(uint64_t *state);
float draw_float(uint64_t *state); /* a multiple of 1/64 in [-1, 1) */

#endif
