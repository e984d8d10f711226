/* Echo servers and their client, all children of the bench. */
#include "peers.h"

#include <stdio.h>
#include <stdlib.h>

struct peer_echo {
    bench_child servers[BENCH_SHARDS_MAX], client;
    uint32_t count;
    FILE *to, *from;
};

peer_echo *peer_echo_start(const peer_echo_options *options)
{
    const char *arguments[8 + BENCH_SHARDS_MAX] = {MN_BENCH_PEER, "echo-client"};
    char numbers[5][24], ports[BENCH_SHARDS_MAX][16];
    const uint64_t values[5] = {options->request_bytes, options->rows, options->columns,
                                options->reads, options->reply_bytes};
    peer_echo *peer = calloc(1, sizeof *peer);
    if (!peer)
        bench_die("no memory");
    for (int i = 0; i < 5; i++)
        (void)snprintf(numbers[i], sizeof numbers[i], "%llu", (unsigned long long)values[i]);
    for (int i = 0; i < 4; i++)
        arguments[2 + i] = numbers[i];
    const char *server[] = {MN_BENCH_PEER, "echo", "--reply-bytes", numbers[4], NULL};
    for (; peer->count < options->servers; peer->count++) {
        peer->servers[peer->count] = bench_start(server, true, false);
        (void)snprintf(ports[peer->count], sizeof ports[0], "%d", peer->servers[peer->count].port);
        arguments[6 + peer->count] = ports[peer->count];
    }
    peer->client = bench_start(arguments, false, true);
    peer->to = fdopen(peer->client.to, "w");
    peer->from = fdopen(peer->client.from, "r");
    if (!peer->to || !peer->from)
        bench_die("no stream to the echo client");
    return peer;
}

double peer_echo_calls(peer_echo *peer, uint32_t calls, double share, bool with_read)
{
    double seconds;
    if (fprintf(peer->to, "%u %.17g %d\n", calls, share, with_read) < 0 || fflush(peer->to) ||
        fscanf(peer->from, "%lf", &seconds) != 1)
        bench_die("the echo client gave no answer");
    return seconds;
}

void peer_echo_stop(peer_echo *peer)
{
    bench_stop(&peer->client);
    for (uint32_t i = 0; i < peer->count; i++)
        bench_stop(&peer->servers[i]);
    free(peer);
}
