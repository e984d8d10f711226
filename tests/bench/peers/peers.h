/* The peers: other ways to do a bench's work, as good as we know how to make them. */
#ifndef MN_BENCH_PEERS_H
#define MN_BENCH_PEERS_H

#include "../bench.h"

#include <stdio.h>

/* plain-c and raw-tcp: one server of plain C sockets (peers/tcp_server.c, run as `mneme-bench-
 * peer tcp --rows N --dim D`). A request is this header, then `count` u32 indices for GATHER, or
 * count*row bytes for SINK. */
enum peer_operation {
    PEER_GATHER = 1, /* answers the rows: prefetching gather into a hugepage buffer, 1 MiB sends */
    PEER_SOURCE = 2, /* answers as many bytes without reading a table: what the socket can carry */
    PEER_SINK = 3    /* takes count rows, then answers one byte */
};
typedef struct peer_header {
    uint32_t operation, count;
} peer_header;

typedef struct peer_tcp {
    bench_child server;
    int connection;
    uint32_t dim;
} peer_tcp;
void peer_tcp_start(peer_tcp *peer, uint64_t rows, uint32_t dim);
void peer_tcp_stop(peer_tcp *peer);
/* Asks for rows; several requests may be in flight, their rows are taken in order. */
void peer_tcp_ask(peer_tcp *peer, enum peer_operation operation, const uint32_t *indices,
                  uint32_t count);
void peer_tcp_take(peer_tcp *peer, uint32_t count, float *out_rows);
void peer_tcp_sink(peer_tcp *peer, const float *rows, uint32_t count);

/* redis-server, rows as values of 8-byte binary keys; MGET of 64 keys, 8 requests in flight: the
 * fastest of 64, 256 and 1,024 keys by 4 and 8. */
typedef struct peer_redis {
    bench_child server;
    int connection;
    uint32_t dim;
    bool installed;
    uint8_t *buffer; /* of one read from the socket */
    size_t start, end;
} peer_redis;
void peer_redis_start(peer_redis *peer, uint64_t rows, uint32_t dim);
void peer_redis_stop(peer_redis *peer);
void peer_redis_rows(peer_redis *peer, const uint32_t *indices, uint32_t count, float *out_rows);

/* redis-server with appendfsync always, on so many connections: MSET of 256 rows (1 MiB of dim
 * 1024), two in flight on each, so that a sync covers many of them (SET by SET, 8 in flight on one
 * connection, it syncs 4 MB/s). */
enum { PEER_REDIS_LOG_CONNECTIONS = 8 };
typedef struct peer_redis_log {
    bench_child server;
    int connections[PEER_REDIS_LOG_CONNECTIONS];
    uint32_t dim;
    char *request;
} peer_redis_log;
bool peer_redis_log_start(peer_redis_log *peer, const char *folder, uint32_t dim); /* installed? */
void peer_redis_log_stop(peer_redis_log *peer);
/* Returns when all rows are synced. */
void peer_redis_log_push(peer_redis_log *peer, const uint32_t *indices, const float *rows,
                         uint32_t count);

/* echo: a bare gRPC C core unary call that answers `reply_bytes` to whatever came, servers and
 * client each in a process of their own (peers/echo_server.c, peers/echo_client.c). */
typedef struct peer_echo_options {
    uint32_t servers;
    uint64_t request_bytes, reply_bytes; /* of one server's call */
    uint64_t rows, columns, reads;       /* f32, of the table that calls with_read read */
} peer_echo_options;
typedef struct peer_echo peer_echo;
peer_echo *peer_echo_start(const peer_echo_options *options);
void peer_echo_stop(peer_echo *peer);
/* `calls` calls one after the other, each to every server at once, and with_read a read of `reads`
 * random rows after each: the seconds of the one at this share of them all, fastest first. */
double peer_echo_calls(peer_echo *peer, uint32_t calls, double share, bool with_read);

/* torch: a script of peers/ in a process of its own; false when no interpreter has torch. */
typedef struct peer_torch {
    bench_child child;
    FILE *to, *from;
    const char *mode; /* the script's first argument */
} peer_torch;
bool peer_torch_start(peer_torch *torch, const char *script, const char *mode);
double peer_torch_round(void *torch, uint64_t round); /* seconds, by the script's own clock */
void peer_torch_stop(peer_torch *torch);

int peer_tcp_main(int argc, char **argv);
int peer_echo_main(int argc, char **argv);
int peer_echo_client_main(int argc, char **argv);

#endif
