/* redis-server as a row store, and a client that parses its answers straight into the
 * destination. */
#include "peers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { KEYS_PER_GET = 64, GETS_IN_FLIGHT = 8, BUFFER = 1 << 20, SETS_IN_FLIGHT = 256 };
enum { ROWS_PER_SET = 256, SETS_PER_CONNECTION = 2 };

static void fill(peer_redis *peer)
{
    if (peer->start == peer->end)
        peer->start = peer->end = 0;
    if (peer->end == BUFFER) {
        memmove(peer->buffer, peer->buffer + peer->start, peer->end - peer->start);
        peer->end -= peer->start, peer->start = 0;
    }
    ssize_t got = recv(peer->connection, peer->buffer + peer->end, BUFFER - peer->end, 0);
    if (got <= 0)
        bench_die("redis closed the connection");
    peer->end += (size_t)got;
}

/* One line "<kind><number>\r\n"; gives the number. */
static long line(peer_redis *peer, char kind)
{
    for (;;) {
        char *from = (char *)peer->buffer + peer->start;
        char *end = memchr(from, '\n', peer->end - peer->start);
        if (end) {
            if (from[0] != kind)
                bench_die("redis answered '%.40s', not %c", from, kind);
            peer->start += (size_t)(end + 1 - from);
            return strtol(from + 1, NULL, 10);
        }
        fill(peer);
    }
}

static void take(peer_redis *peer, void *out_bytes, size_t count)
{
    size_t ready = peer->end - peer->start, now = ready < count ? ready : count;
    memcpy(out_bytes, peer->buffer + peer->start, now);
    peer->start += now;
    if (now < count) /* the rest goes straight to where it belongs */
        bench_receive(peer->connection, (char *)out_bytes + now, count - now);
}

static void skip_line_end(peer_redis *peer)
{
    char end[2];
    take(peer, end, sizeof end);
}

static size_t put_key(char *out, uint64_t row)
{
    memcpy(out, "$8\r\n", 4);
    memcpy(out + 4, &row, sizeof row);
    memcpy(out + 12, "\r\n", 2);
    return 14;
}

static void load(peer_redis *peer, uint64_t rows)
{
    size_t row_bytes = peer->dim * sizeof(float);
    char *request = malloc(row_bytes + 128);
    float *row_values = malloc(row_bytes);
    if (!request || !row_values)
        bench_die("no memory");
    for (uint64_t row = 0; row < rows + SETS_IN_FLIGHT; row++) {
        if (row < rows) {
            for (uint32_t column = 0; column < peer->dim; column++)
                row_values[column] = bench_value(row, column);
            size_t size = (size_t)sprintf(request, "*3\r\n$3\r\nSET\r\n");
            size += put_key(request + size, row);
            size += (size_t)sprintf(request + size, "$%zu\r\n", row_bytes);
            memcpy(request + size, row_values, row_bytes);
            memcpy(request + size + row_bytes, "\r\n", 2);
            bench_send(peer->connection, request, size + row_bytes + 2);
        }
        if (row >= SETS_IN_FLIGHT)
            (void)line(peer, '+');
    }
    free(row_values);
    free(request);
}

/* Its port. A folder: every change is in its log, synced, before it is answered, and the log is
 * never written anew. */
static int start_server(const char *folder, bench_child *out_server)
{
    int port = 20000 + (int)(getpid() % 20000);
    char port_text[16];
    (void)snprintf(port_text, sizeof port_text, "%d", port);
    const char *arguments[] = {"redis-server",
                               "--port",
                               port_text,
                               "--save",
                               "",
                               "--bind",
                               "127.0.0.1",
                               "--loglevel",
                               "warning",
                               "--daemonize",
                               "no",
                               "--appendonly",
                               folder ? "yes" : "no",
                               folder ? "--dir" : NULL,
                               folder,
                               "--appendfsync",
                               "always",
                               "--auto-aof-rewrite-percentage",
                               "0",
                               NULL};
    *out_server = bench_start(arguments, false, false);
    (void)nanosleep(&(struct timespec){.tv_nsec = 500000000}, NULL); /* it tells no port file */
    return port;
}

void peer_redis_start(peer_redis *peer, uint64_t rows, uint32_t dim)
{
    memset(peer, 0, sizeof *peer);
    peer->installed = bench_has("redis-server");
    if (!peer->installed)
        return;
    peer->connection = bench_connect(start_server(NULL, &peer->server));
    peer->dim = dim;
    peer->buffer = malloc(BUFFER);
    if (!peer->buffer)
        bench_die("no memory");
    load(peer, rows);
}

void peer_redis_stop(peer_redis *peer)
{
    if (!peer->installed)
        return;
    (void)close(peer->connection);
    bench_stop(&peer->server);
    free(peer->buffer);
}

static void ask(peer_redis *peer, const uint32_t *indices, uint32_t count)
{
    char request[KEYS_PER_GET * 14 + 64];
    size_t size = (size_t)sprintf(request, "*%u\r\n$4\r\nMGET\r\n", count + 1);
    for (uint32_t i = 0; i < count; i++)
        size += put_key(request + size, indices[i]);
    bench_send(peer->connection, request, size);
}

void peer_redis_rows(peer_redis *peer, const uint32_t *indices, uint32_t count, float *out_rows)
{
    uint32_t gets = (count + KEYS_PER_GET - 1) / KEYS_PER_GET, asked = 0;
    for (uint32_t get = 0; get < gets; get++) {
        for (; asked < gets && asked < get + GETS_IN_FLIGHT; asked++) {
            uint32_t first = asked * KEYS_PER_GET;
            ask(peer, indices + first, count - first < KEYS_PER_GET ? count - first : KEYS_PER_GET);
        }
        for (long left = line(peer, '*'); left > 0; left--, out_rows += peer->dim) {
            if (line(peer, '$') != (long)(peer->dim * sizeof(float)))
                bench_die("redis lacks a row");
            take(peer, out_rows, peer->dim * sizeof(float));
            skip_line_end(peer);
        }
    }
}

/* ---- With a synced log */

bool peer_redis_log_start(peer_redis_log *peer, const char *folder, uint32_t dim)
{
    memset(peer, 0, sizeof *peer);
    if (!bench_has("redis-server"))
        return false;
    int port = start_server(folder, &peer->server);
    for (uint32_t i = 0; i < PEER_REDIS_LOG_CONNECTIONS; i++)
        peer->connections[i] = bench_connect(port);
    peer->dim = dim;
    peer->request = malloc(ROWS_PER_SET * (dim * sizeof(float) + 64) + 64);
    if (!peer->request)
        bench_die("no memory");
    return true;
}

void peer_redis_log_stop(peer_redis_log *peer)
{
    for (uint32_t i = 0; i < PEER_REDIS_LOG_CONNECTIONS; i++)
        (void)close(peer->connections[i]);
    bench_stop(&peer->server);
    free(peer->request);
}

static void set_rows(peer_redis_log *peer, int connection, const uint32_t *indices,
                     const float *rows, uint32_t count)
{
    const size_t row_bytes = peer->dim * sizeof(float);
    char *at = peer->request;
    at += sprintf(at, "*%u\r\n$4\r\nMSET\r\n", 2 * count + 1);
    for (uint32_t i = 0; i < count; i++) {
        at += put_key(at, indices[i]);
        at += sprintf(at, "$%zu\r\n", row_bytes);
        memcpy(at, rows + (size_t)i * peer->dim, row_bytes);
        at += row_bytes;
        *at++ = '\r';
        *at++ = '\n';
    }
    bench_send(connection, peer->request, (size_t)(at - peer->request));
}

static void take_ok(int connection)
{
    char answer[5];
    bench_receive(connection, answer, sizeof answer);
    if (memcmp(answer, "+OK\r\n", sizeof answer) != 0)
        bench_die("redis answered '%.5s', not +OK", answer);
}

void peer_redis_log_push(peer_redis_log *peer, const uint32_t *indices, const float *rows,
                         uint32_t count)
{
    enum { CONNECTIONS = PEER_REDIS_LOG_CONNECTIONS };
    const uint32_t sets = (count + ROWS_PER_SET - 1) / ROWS_PER_SET;
    const uint32_t ahead = SETS_PER_CONNECTION * CONNECTIONS;
    for (uint32_t set = 0; set < sets + ahead; set++) {
        if (set >= ahead && set - ahead < sets)
            take_ok(peer->connections[(set - ahead) % CONNECTIONS]);
        if (set >= sets)
            continue;
        uint32_t first = set * ROWS_PER_SET, left = count - first;
        set_rows(peer, peer->connections[set % CONNECTIONS], indices + first,
                 rows + (size_t)first * peer->dim, left < ROWS_PER_SET ? left : ROWS_PER_SET);
    }
}
