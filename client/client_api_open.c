/* Opening and closing a client: options checked, target parsed, transport and core made, ticker
 * started, group joined. */
#include "client_handle.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { DEADLINE_MS = 60000, CALLS_MAX = 1024, EXCHANGES_MAX = 4 };

static const char local_prefix[] = "local:", static_prefix[] = "static:";

/* ---- The ticker ---- */

bool mn_wake_init(pthread_cond_t *out_cond)
{
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes))
        return false;
    bool made = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0 &&
                pthread_cond_init(out_cond, &attributes) == 0;
    (void)pthread_condattr_destroy(&attributes); /* cannot fail for an initialised one */
    return made;
}

bool mn_wake_wait(pthread_cond_t *cond, pthread_mutex_t *mutex, uint64_t until_ns)
{
    if (until_ns == UINT64_MAX)
        return pthread_cond_wait(cond, mutex) == 0;
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u),
                             .tv_nsec = (long)(until_ns % 1000000000u)};
    return pthread_cond_timedwait(cond, mutex, &until) == 0;
}

void mn_client_lock(void *context)
{
    mn_client *client = context;
    int failed = pthread_mutex_lock(&client->mutex);
    assert(!failed);
}

void mn_client_unlock(void *context)
{
    mn_client *client = context;
    if (client->core && mn_core_due(client->core) < client->ticker_due_ns)
        (void)pthread_cond_signal(&client->wake); /* cannot fail */
    mn_future *ended[ENDED_MAX];
    uint32_t ended_count = client->ended_count;
    memcpy(ended, client->ended, ended_count * sizeof(mn_future *));
    client->ended_count = 0;
    int failed = pthread_mutex_unlock(&client->mutex);
    assert(!failed);
    for (uint32_t i = 0; i < ended_count; i++) /* if taken anew meanwhile, woken for nothing */
        (void)pthread_cond_broadcast(&ended[i]->ended); /* cannot fail */
}

static void *ticker_run(void *context)
{
    mn_client *client = context;
    mn_client_lock(client);
    while (!client->closing) {
        uint64_t now_ns = client->env.now_ns(client->env.context);
        client->ticker_due_ns = mn_core_tick(client->core, now_ns);
        if (client->ended_count) { /* their waiters are woken first, and then time has passed */
            mn_client_unlock(client);
            mn_client_lock(client);
        } else if (client->ticker_due_ns > now_ns)
            (void)mn_wake_wait(&client->wake, &client->mutex, client->ticker_due_ns);
    }
    mn_client_unlock(client);
    return NULL;
}

/* ---- Targets ---- */

/* "host:port" with a host and a port of 1 to 65535. */
static bool address_valid(const char *address)
{
    const char *colon = strrchr(address, ':');
    if (!colon || colon == address || strlen(colon + 1) > 5 ||
        strspn(colon + 1, "0123456789") != strlen(colon + 1))
        return false;
    long port = strtol(colon + 1, NULL, 10);
    return port > 0 && port <= 65535;
}

/* Cuts the list at its commas, in place. */
static enum mn_status split_addresses(char *list, const char **out_addresses, uint32_t *out_count,
                                      mn_error *error)
{
    uint32_t count = 0;
    for (char *next = list, *address; next; count++) {
        address = next;
        next = strchr(address, ',');
        if (next)
            *next++ = 0;
        if (!address_valid(address))
            return mn_fail(error, MN_INVALID, "target", "\"%.100s\" (shard %u) is not host:port",
                           address, count);
        if (count == MN_SHARDS_MAX)
            return mn_fail(error, MN_INVALID, "target", "there are more than %d shards",
                           MN_SHARDS_MAX);
        out_addresses[count] = address;
    }
    *out_count = count;
    return MN_OK;
}

static enum mn_status open_static(mn_client *client, const mn_client_options *options,
                                  mn_error *error)
{
    const mn_env *env = &client->env;
    const char *given = options->target + strlen(static_prefix);
    uint64_t list_bytes = strlen(given) + 1, addresses_bytes = MN_SHARDS_MAX * sizeof(char *);
    char *list = env->allocate(env->context, list_bytes);
    const char **addresses = env->allocate(env->context, addresses_bytes);
    enum mn_status status = MN_OK;
    mn_grpc_client_options grpc = {.addresses = addresses,
                                   .authorization = options->authorization,
                                   .traceparent = options->traceparent,
                                   .env = env};
    if (!list || !addresses)
        status = mn_fail(error, MN_NO_MEMORY, "target", "no memory for its addresses");
    if (!status) {
        memcpy(list, given, list_bytes);
        status = split_addresses(list, addresses, &grpc.shards, error);
    }
    if (!status)
        status = mn_grpc_client_create(&grpc, &client->transport, error);
    env->release(env->context, addresses, addresses_bytes);
    env->release(env->context, list, list_bytes);
    return status;
}

static bool is_local(const char *target)
{
    return strncmp(target, local_prefix, strlen(local_prefix)) == 0;
}

static enum mn_status open_transport(mn_client *client, const mn_client_options *options,
                                     mn_error *error)
{
    if (!is_local(options->target))
        return open_static(client, options, error);
    const char *data = options->target + strlen(local_prefix);
    const mn_local_options local = {
        .shards = options->local_shards ? options->local_shards : 1,
        .data = *data ? data : NULL,
        .usage_bytes = options->local_usage_bytes,
        .device = options->device,
    };
    return mn_transport_local_create(&local, &client->env, &client->transport, error);
}

/* ---- Options ---- */

static enum mn_status check_options(const mn_client_options *options, mn_error *error)
{
    const char *target = options->target;
    if (!target)
        return mn_fail(error, MN_INVALID, "target", "there is none");
    bool local = is_local(target);
    if (!local && strncmp(target, static_prefix, strlen(static_prefix)) != 0)
        return mn_fail(error, MN_INVALID, "target",
                       "\"%.100s\" begins neither with local: nor with static:", target);
    if (local && options->ranks > 1)
        return mn_fail(
            error, MN_INVALID, "ranks",
            "%u ranks cannot share a shard embedded in one of them; use static:", options->ranks);
    if (!local && options->local_shards)
        return mn_fail(error, MN_INVALID, "local_shards",
                       "%u, but the target is not local:", options->local_shards);
    if (!local && options->device)
        return mn_fail(error, MN_INVALID, "device",
                       "%u, but the target is not local:", options->device);
    if (options->group && !mn_name_valid(options->group))
        return mn_fail(error, MN_INVALID, "group",
                       "\"%.63s\" is not a name: 1 to 63 of letters, digits, '.', '_' and '-'",
                       options->group);
    if ((unsigned)options->durability > MN_DURABILITY_SYNC)
        return mn_fail(error, MN_INVALID, "durability", "%d is none", (int)options->durability);
    if (options->device && options->durability > MN_DURABILITY_NONE)
        return mn_fail(error, MN_UNSUPPORTED, "durability",
                       "%s, but tables in a device's memory are not logged",
                       mn_durability_name(options->durability));
    if ((unsigned)options->log_level > MN_LOG_SILENT)
        return mn_fail(error, MN_INVALID, "log_level", "%d is none", (int)options->log_level);
    if (options->calls_max > 65536 - 1)
        return mn_fail(error, MN_INVALID, "calls_max", "%u is more than 65535", options->calls_max);
    if (options->deadline_ms > UINT64_C(1000) * 86400 * 365)
        return mn_fail(error, MN_INVALID, "deadline_ms", "%" PRIu64 " is more than a year",
                       options->deadline_ms);
    return MN_OK;
}

static enum mn_status open_core(mn_client *client, const mn_client_options *options,
                                mn_error *error)
{
    const char *group = options->group ? options->group : "default";
    mn_core_options core = {
        .rank = options->rank,
        .ranks = options->ranks ? options->ranks : 1,
        .load_ranks = options->ranks || options->reader ? options->ranks : 1,
        .reader = options->reader,
        .durability = options->durability,
        .staleness = options->staleness,
        .operations_max = client->calls_max,
        .exchanges_max = options->exchanges_max ? options->exchanges_max : EXCHANGES_MAX,
        .packed = !is_local(options->target),
        .enter = mn_client_lock,
        .leave = mn_client_unlock,
        .lock = client,
    };
    memcpy(core.group, group, strlen(group)); /* fits: a valid name */
    return mn_core_create(&core, &client->env, client->transport, &client->core, error);
}

static enum mn_status join(mn_client *client, mn_error *error)
{
    mn_future *future = mn_future_take(client, MN_OP_JOIN);
    enum mn_status status = mn_future_run(future, error);
    mn_future_release(future);
    return status;
}

/* ---- Life ---- */

static void destroy(mn_client *client)
{
    mn_env env = client->env;
    if (client->has_ticker) {
        mn_client_lock(client);
        client->closing = true;
        (void)pthread_cond_signal(&client->wake); /* cannot fail */
        mn_client_unlock(client);
        (void)pthread_join(client->ticker, NULL); /* fails only for a thread that is none */
    }
    if (client->transport)
        client->transport->destroy(client->transport);
    mn_core_destroy(client->core);
    for (uint32_t i = 0; i < client->futures_used; i++)
        (void)pthread_cond_destroy(&client->futures[i].ended); /* nobody waits */
    if (client->futures)
        env.unreserve(env.context, client->futures, client->calls_max * sizeof *client->futures);
    if (client->has_wake)
        (void)pthread_cond_destroy(&client->wake); /* nobody waits */
    if (client->has_mutex)
        (void)pthread_mutex_destroy(&client->mutex); /* nobody holds it */
    env.release(env.context, client, sizeof *client);
}

static enum mn_status build(mn_client *client, const mn_client_options *options, mn_error *error)
{
    enum mn_status status = open_transport(client, options, error);
    if (!status)
        status = open_core(client, options, error);
    if (status)
        return status;
    client->futures =
        client->env.reserve(client->env.context, client->calls_max * sizeof *client->futures);
    if (!client->futures)
        return mn_fail(error, MN_NO_MEMORY, "calls_max", "no memory for %u calls",
                       client->calls_max);
    client->has_mutex = pthread_mutex_init(&client->mutex, NULL) == 0;
    client->has_wake = client->has_mutex && mn_wake_init(&client->wake);
    client->has_ticker =
        client->has_wake && pthread_create(&client->ticker, NULL, ticker_run, client) == 0;
    if (!client->has_ticker)
        return mn_fail(error, MN_NO_MEMORY, "client", "no thread for it");
    status = join(client, error);
    /* A reader may come before its group: to load it, or to look at the shards. */
    return status == MN_NOT_FOUND && options->reader ? MN_OK : status;
}

enum mn_status mn_client_open(const mn_client_options *options, mn_client **out_client,
                              mn_error *error)
{
    static const int log_levels[] = {
        [MN_LOG_WARNING] = 2, [MN_LOG_INFO] = 1, [MN_LOG_DEBUG] = 0, [MN_LOG_SILENT] = 3};
    enum mn_status status = check_options(options, error);
    if (status)
        return status;
    mn_env env;
    mn_env_posix(&env, NULL, log_levels[options->log_level]);
    mn_client *client = env.allocate(env.context, sizeof *client);
    if (!client)
        return mn_fail(error, MN_NO_MEMORY, "client", "no memory for it");
    client->env = env;
    client->deadline_ms = options->deadline_ms ? options->deadline_ms : DEADLINE_MS;
    client->calls_max = options->calls_max ? options->calls_max : CALLS_MAX;
    status = build(client, options, error);
    if (status)
        destroy(client);
    else
        *out_client = client;
    return status;
}

void mn_client_close(mn_client *client)
{
    if (!client)
        return;
    mn_client_lock(client);
    for (uint32_t i = 0; i < client->futures_used; i++) {
        mn_future *future = &client->futures[i];
        if (future->in_use && !future->done)
            mn_core_cancel(client->core, &future->operation);
    }
    for (uint32_t i = 0; i < client->futures_used; i++) {
        mn_future *future = &client->futures[i];
        while (future->in_use && !future->done)
            (void)mn_wake_wait(&future->ended, &client->mutex, UINT64_MAX); /* cancelled */
    }
    mn_client_unlock(client);
    destroy(client);
}
