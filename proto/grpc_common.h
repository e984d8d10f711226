/* What the gRPC server and client adapters share: message segments and status codes. Private to
 * proto. */
#ifndef MN_GRPC_COMMON_H
#define MN_GRPC_COMMON_H

#include "mn_proto.h"

#include <grpc/grpc.h>

/* Messages in more pieces than this are joined first: only a peer that sends tiny frames does. */
enum { MN_GRPC_SPANS_MAX = 256 };

/* Pings, calls or none. The answer may take long: a large Commit keeps a shard's one thread from
 * everything else for seconds, and deadlines end calls anyway. */
enum { MN_GRPC_KEEPALIVE_MS = 10000, MN_GRPC_KEEPALIVE_TIMEOUT_MS = 20000 };

/* Trailing metadata of a failed call, mn_error_encode's bytes; "-bin" keys carry any byte. */
#define MN_GRPC_ERROR_KEY "mneme-error-bin"

/* grpc_init, and an allocator that keeps the memory of messages (process-wide, as glibc has it). */
void mn_grpc_init(void);

/* The message's pieces in place, lent while *buffer lives; *buffer is replaced when its pieces had
 * to be joined. MN_UNSUPPORTED "compression": messages are never compressed, so that none can
 * unfold past its limit. */
enum mn_status mn_grpc_spans(grpc_byte_buffer **buffer, mn_span out_spans[MN_GRPC_SPANS_MAX],
                             uint32_t *out_count, mn_error *error);

/* What plain gRPC clients see of a status; the exact one travels beside it under MN_GRPC_ERROR_KEY.
 */
grpc_status_code mn_grpc_code(enum mn_status status);

/* The status of a call that failed without an error of ours, as far as the code and its text tell.
 * `cancelled`: this side asked for it. */
enum mn_status mn_grpc_status(grpc_status_code code, const char *text, bool cancelled);

#endif
