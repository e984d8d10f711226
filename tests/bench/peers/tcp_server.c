/* plain-c and raw-tcp: what plain C sockets do on this machine, with and without reading the
 * table. */
#include "peers.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SEND_BYTES = 1 << 20, PREFETCH_ROWS = 4, LINE = 64 };

static void gather(int connection, const float *table, uint32_t dim, const uint32_t *indices,
                   uint32_t count, float *buffer)
{
    size_t row_bytes = dim * sizeof *table;
    uint32_t rows_per_send = (uint32_t)(SEND_BYTES / row_bytes);
    for (uint32_t first = 0; first < count; first += rows_per_send) {
        uint32_t rows = count - first < rows_per_send ? count - first : rows_per_send;
        for (uint32_t row = 0; row < rows; row++) {
            uint32_t ahead = first + row + PREFETCH_ROWS;
            if (ahead < count)
                for (size_t byte = 0; byte < row_bytes; byte += LINE)
                    __builtin_prefetch((const char *)(table + (size_t)indices[ahead] * dim) + byte);
            memcpy(buffer + (size_t)row * dim, table + (size_t)indices[first + row] * dim,
                   row_bytes);
        }
        bench_send(connection, buffer, rows * row_bytes);
    }
}

static void source(int connection, const float *buffer, size_t bytes)
{
    for (size_t left = bytes; left;) {
        size_t now = left < SEND_BYTES ? left : SEND_BYTES;
        bench_send(connection, buffer, now);
        left -= now;
    }
}

static void sink(int connection, float *buffer, size_t bytes)
{
    for (size_t left = bytes; left;) {
        size_t now = left < SEND_BYTES ? left : SEND_BYTES;
        bench_receive(connection, buffer, now);
        left -= now;
    }
    bench_send(connection, "", 1);
}

static void serve(int connection, const float *table, uint32_t dim)
{
    float *buffer = bench_huge(SEND_BYTES);
    peer_header header;
    while (recv(connection, &header, sizeof header, MSG_WAITALL) == sizeof header) {
        size_t bytes = (size_t)header.count * dim * sizeof *table;
        if (header.operation == PEER_GATHER) {
            uint32_t *indices = malloc(header.count * sizeof *indices);
            if (!indices)
                bench_die("no memory for %u indices", header.count);
            bench_receive(connection, indices, header.count * sizeof *indices);
            gather(connection, table, dim, indices, header.count, buffer);
            free(indices);
        } else if (header.operation == PEER_SOURCE) {
            source(connection, buffer, bytes);
        } else {
            sink(connection, buffer, bytes);
        }
    }
}

static int listen_any(int *out_port)
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), size = 4 << 20;
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    (void)setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &size, sizeof size); /* inherited */
    (void)setsockopt(listener, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4) ||
        getsockname(listener, (struct sockaddr *)&address, &length))
        bench_die("cannot listen on loopback");
    *out_port = ntohs(address.sin_port);
    return listener;
}

int peer_tcp_main(int argc, char **argv)
{
    uint64_t rows = 1;
    uint32_t dim = 1;
    const char *port_file = NULL;
    for (int i = 0; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--rows") == 0)
            rows = strtoull(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--dim") == 0)
            dim = (uint32_t)strtoul(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--port-file") == 0)
            port_file = argv[i + 1];
    }
    float *table = bench_huge(rows * dim * sizeof *table);
    for (uint64_t row = 0; row < rows; row++)
        for (uint32_t column = 0; column < dim; column++)
            table[row * dim + column] = bench_value(row, column);
    int port, one = 1, listener = listen_any(&port);
    FILE *file = port_file ? fopen(port_file, "w") : NULL;
    if (!file || fprintf(file, "%d\n", port) < 0 || fclose(file))
        bench_die("cannot write the port file");
    int connection = accept(listener, NULL, NULL);
    (void)setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    serve(connection, table, dim);
    return 0;
}
