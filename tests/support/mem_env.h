/* A world made of memory, for tests: a clock that is set, an allocator that fails on request, files
 * that live in memory and fail on request. Everything handed out is counted, so that a leak shows
 * without a sanitizer. One thread. */
#ifndef MN_TESTS_MEM_ENV_H
#define MN_TESTS_MEM_ENV_H

#include "mn_proto.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mem_env {
    mn_env env; /* give this to the code under test; its storage is set by the test */
    uint64_t now_ns;
    uint64_t random_state;
    uint64_t allocations; /* allocate and reserve calls so far */
    uint64_t fail_at;     /* the allocation with this number (from 1) fails; 0: none does */
    uint64_t live_blocks, live_bytes; /* allocated, not released */
    uint64_t live_reserves, reserved_bytes;
    uint64_t vacated_bytes; /* in all */
    uint64_t events;        /* log lines */
} mem_env;

/* Fills *world in place; world->env.context points at it, so it must not move. */
void mem_env_init(mem_env *world, uint64_t seed);
/* Whether all that was handed out came back. */
bool mem_env_clean(const mem_env *world);

/* Files in memory. Several shards may share one; a path is a plain string. */
typedef struct mem_storage mem_storage;
mem_storage *mem_storage_create(void);
void mem_storage_destroy(mem_storage *storage);
mn_storage *mem_storage_interface(mem_storage *storage);

/* The operation with this number (from 1, counted from now) fails with MN_STORAGE; 0: none. */
void mem_storage_fail_at(mem_storage *storage, uint64_t operation);
/* Likewise that one and all later ones: the process is dead from there on. fail_at revives it. */
void mem_storage_die_at(mem_storage *storage, uint64_t operation);
uint64_t mem_storage_operations(const mem_storage *storage);
/* Power loss: what was appended and not synced is gone, half of it at least (torn). Open handles
 * answer MN_STORAGE from then on. */
void mem_storage_crash(mem_storage *storage);
/* A file's bytes, for looking at and for damaging; NULL when there is none. Valid until the next
 * operation on the file. */
uint8_t *mem_storage_bytes(mem_storage *storage, const char *path, uint64_t *out_count);
void mem_storage_truncate(mem_storage *storage, const char *path, uint64_t count);
/* Writes a file of these bytes in place of any that stands there. */
void mem_storage_put(mem_storage *storage, const char *path, const void *bytes, uint64_t count);
/* The file holds these bytes again. */
void mem_storage_restore(mem_storage *storage, const char *path, const void *bytes, uint64_t count);
/* The path of file number `index` in order of creation; NULL past the last. */
const char *mem_storage_path(const mem_storage *storage, uint32_t index);
bool mem_storage_remove(mem_storage *storage, const char *path);
uint32_t mem_storage_open_handles(const mem_storage *storage);

#ifdef __cplusplus
}
#endif
#endif
