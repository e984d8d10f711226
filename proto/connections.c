/* How many connections a server has. gRPC's core bounds their memory, but neither their number nor
 * the file descriptors that the logs and saves need, too: so the sockets of the port are looked at
 * from outside, and those beyond the maximum are shut down. */
#define _GNU_SOURCE
#include "mn_proto.h"

#include <dirent.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* An accepted connection, told from any other that had its descriptor before. */
struct connection {
    int fd;
    uint16_t port; /* the peer's, and its address: */
    uint8_t host[16];
};

struct mn_connections {
    mn_env env;
    uint16_t port;
    uint32_t max, count;
    DIR *folder; /* of descriptors: kept open, for when none is left to open it with */
    struct connection *kept, *found; /* [max] by descriptor; found: of the look that goes on */
};

static uint64_t list_bytes(uint32_t max) { return (uint64_t)max * sizeof(struct connection); }

enum mn_status mn_connections_create(const mn_env *env, int port, uint32_t connections_max,
                                     mn_connections **out_connections, mn_error *error)
{
    mn_connections *it = env->allocate(env->context, sizeof *it);
    if (it) {
        it->env = *env;
        it->port = (uint16_t)port;
        it->max = connections_max;
        it->kept = env->allocate(env->context, list_bytes(connections_max));
        it->found = env->allocate(env->context, list_bytes(connections_max));
    }
    if (it)
        it->folder = opendir("/proc/self/fd");
    if (it && !it->folder) {
        mn_connections_destroy(it);
        return mn_fail(error, MN_UNAVAILABLE, "connections_max", "cannot look into /proc/self/fd");
    }
    if (!it || !it->kept || !it->found) {
        mn_connections_destroy(it);
        return mn_fail(error, MN_NO_MEMORY, "connections_max", "no memory to tell %u connections",
                       connections_max);
    }
    *out_connections = it;
    return MN_OK;
}

void mn_connections_destroy(mn_connections *it)
{
    if (!it)
        return;
    mn_env env = it->env;
    if (it->folder)
        (void)closedir(it->folder); /* only read */
    env.release(env.context, it->found, list_bytes(it->max));
    env.release(env.context, it->kept, list_bytes(it->max));
    env.release(env.context, it, sizeof *it);
}

/* Both ends of a socket over IP; false when it is none, or not of our port. */
static bool look_at(const mn_connections *it, int fd, struct connection *out_connection)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } own, peer;
    socklen_t own_bytes = sizeof own, peer_bytes = sizeof peer;
    if (getsockname(fd, &own.any, &own_bytes) ||
        (own.any.sa_family != AF_INET && own.any.sa_family != AF_INET6) ||
        ntohs(own.v4.sin_port) != it->port || getpeername(fd, &peer.any, &peer_bytes))
        return false; /* the ports lie alike in both; one that listens has no peer */
    *out_connection = (struct connection){.fd = fd, .port = ntohs(peer.v4.sin_port)};
    if (peer.any.sa_family == AF_INET6)
        memcpy(out_connection->host, &peer.v6.sin6_addr, 16);
    else
        memcpy(out_connection->host, &peer.v4.sin_addr, 4);
    return true;
}

static int by_descriptor(const void *a, const void *b)
{
    const int left = ((const struct connection *)a)->fd, right = ((const struct connection *)b)->fd;
    return (left > right) - (left < right);
}

static bool was_kept(const mn_connections *it, const struct connection *connection)
{
    const struct connection *kept =
        bsearch(connection, it->kept, it->count, sizeof *kept, by_descriptor);
    return kept && kept->port == connection->port &&
           !memcmp(kept->host, connection->host, sizeof kept->host);
}

/* Those that were kept before, or the others: the first ones that there is room for. */
static uint32_t look(mn_connections *it, DIR *folder, bool before, uint32_t *in_out_count)
{
    const struct dirent *entry;
    uint32_t cut = 0;
    rewinddir(folder);
    while ((entry = readdir(folder)) != NULL) {
        struct connection connection;
        char *end;
        long fd = strtol(entry->d_name, &end, 10);
        if (end == entry->d_name || *end || !look_at(it, (int)fd, &connection) ||
            was_kept(it, &connection) != before)
            continue;
        if (*in_out_count < it->max)
            it->found[(*in_out_count)++] = connection;
        else
            cut += shutdown((int)fd, SHUT_RDWR) == 0; /* fails if it has ended by itself */
    }
    return cut;
}

uint32_t mn_connections_trim(mn_connections *it, uint32_t *out_count)
{
    uint32_t count = 0;
    (void)look(it, it->folder, true, &count); /* as many as were kept find room */
    uint32_t cut = look(it, it->folder, false, &count);
    qsort(it->found, count, sizeof *it->found, by_descriptor);
    struct connection *found = it->found;
    it->found = it->kept;
    it->kept = found;
    it->count = count;
    *out_count = count;
    return cut;
}
