/* The client's side of plain-c and raw-tcp: rows land in the caller's array. */
#include "peers.h"

#include <stdio.h>
#include <unistd.h>

enum { SEND_BYTES = 1 << 20 };

void peer_tcp_start(peer_tcp *peer, uint64_t rows, uint32_t dim)
{
    char rows_text[32], dim_text[32];
    (void)snprintf(rows_text, sizeof rows_text, "%llu", (unsigned long long)rows);
    (void)snprintf(dim_text, sizeof dim_text, "%u", dim);
    const char *arguments[] = {MN_BENCH_PEER, "tcp", "--rows", rows_text, "--dim", dim_text, NULL};
    peer->server = bench_start(arguments, true, false);
    peer->connection = bench_connect(peer->server.port);
    peer->dim = dim;
}

void peer_tcp_stop(peer_tcp *peer)
{
    (void)close(peer->connection);
    bench_stop(&peer->server);
}

void peer_tcp_ask(peer_tcp *peer, enum peer_operation operation, const uint32_t *indices,
                  uint32_t count)
{
    peer_header header = {operation, count};
    bench_send(peer->connection, &header, sizeof header);
    if (operation == PEER_GATHER)
        bench_send(peer->connection, indices, count * sizeof *indices);
}

void peer_tcp_take(peer_tcp *peer, uint32_t count, float *out_rows)
{
    bench_receive(peer->connection, out_rows, (size_t)count * peer->dim * sizeof *out_rows);
}

void peer_tcp_sink(peer_tcp *peer, const float *rows, uint32_t count)
{
    peer_header header = {PEER_SINK, count};
    size_t bytes = (size_t)count * peer->dim * sizeof *rows;
    char done;
    bench_send(peer->connection, &header, sizeof header);
    for (size_t sent = 0; sent < bytes; sent += SEND_BYTES)
        bench_send(peer->connection, (const char *)rows + sent,
                   bytes - sent < SEND_BYTES ? bytes - sent : SEND_BYTES);
    bench_receive(peer->connection, &done, 1);
}
