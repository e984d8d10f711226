/* Reply buffers of the gRPC server: a bounded buddy allocator over one hugepage region, whose
 * buffers come back from whichever thread gRPC drops them on. Private to proto. */
#ifndef MN_GRPC_POOL_H
#define MN_GRPC_POOL_H

#include "mn_proto.h"

#include <grpc/slice.h>

typedef struct mn_reply_pool mn_reply_pool;

/* Address space for bytes_max (at least 4 KiB) of buffers, 4 KiB to 8 MiB each, taken from env's
 * `reserve`; memory is used as buffers are first written. NULL when that fails. */
mn_reply_pool *mn_reply_pool_create(const mn_env *env, uint64_t bytes_max);
/* Waits for nobody: the memory goes with the last buffer that gRPC still holds. */
void mn_reply_pool_destroy(mn_reply_pool *pool);

/* A 4 KiB aligned buffer of at least `bytes`; NULL when the pool is full or `bytes` > 8 MiB. */
uint8_t *mn_reply_pool_take(mn_reply_pool *pool, uint64_t bytes);
void mn_reply_pool_give(mn_reply_pool *pool, uint8_t *buffer);
/* Takes the buffer: it goes back to the pool when gRPC drops the slice's last reference. */
grpc_slice mn_reply_pool_slice(mn_reply_pool *pool, uint8_t *buffer, uint64_t bytes);
uint64_t mn_reply_pool_used(mn_reply_pool *pool); /* bytes of buffers out now */

#endif
