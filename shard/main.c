/* mneme-shard: the memory server. Two threads: the main one runs a libuv loop for signals and the
 * info line; the other drains gRPC's completion queue and owns the core. */
#include "mn_shard.h"
#include "server_flags.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

enum { EXIT_FAILED = 1, EXIT_FLAGS = 2, LINE_BYTES = 1024, LOOK_MS = 500 };

typedef struct program {
    mn_server_flags flags;
    mn_env env;
    mn_storage *storage;
    mn_shard *shard;        /* the server's thread's, while it runs */
    mn_grpc_server *server; /* thread-safe where used here */
    uv_loop_t loop;
    uv_signal_t signals[2];
    uv_timer_t info, look; /* look: for connections that are too many */
    mn_connections *connections;
    uint32_t connection_count;
    uv_async_t ended; /* the server's thread is about to end */
    uv_thread_t thread;
    bool stopping;
    bool recovering, damaged; /* the server's thread's, while it runs */
    mn_error damage;
    mn_grpc_server_stats last;
} program;

static int complain(const char *what, const mn_error *error)
{
    (void)fprintf(stderr, "mneme-shard: %s%s%s: %s\n", what, what[0] ? ": " : "", error->field,
                  error->message);
    return EXIT_FAILED;
}

/* ---- Admission, and the core as the server sees it --------------------------------------- */

/* Compares all bytes whatever they are, so that the time taken tells nothing about the token. */
static bool same_text(const char *given, const char *wanted)
{
    size_t count = strlen(wanted);
    unsigned difference = strlen(given) != count;
    for (size_t i = 0; i < count && given[i]; i++)
        difference |= (unsigned)(given[i] ^ wanted[i]);
    return !difference;
}

static bool admit(void *context, const char *peer, const char *authorization,
                  const mn_request *request, mn_error *error)
{
    static const char scheme[] = "Bearer ";
    const program *it = context;
    (void)peer;
    (void)request;
    if (!strncmp(authorization, scheme, sizeof scheme - 1) &&
        same_text(authorization + sizeof scheme - 1, it->flags.token))
        return true;
    (void)mn_fail(error, MN_DENIED, "authorization",
                  authorization[0] ? "this token does not open the shard"
                                   : "the shard wants \"authorization: Bearer TOKEN\"");
    return false;
}

static void handle(void *core, mn_call *call) { mn_shard_handle(((program *)core)->shard, call); }

/* Probes hear NOT_SERVING until the logs are replayed. */
static uint64_t tick(void *core, uint64_t now_ns)
{
    program *it = core;
    uint64_t next_ns = mn_shard_tick(it->shard, now_ns);
    if (!it->recovering)
        return next_ns;
    enum mn_status state = mn_shard_state(it->shard, &it->damage);
    if (state == MN_UNAVAILABLE)
        return next_ns;
    it->recovering = false;
    it->damaged = state != MN_OK;
    if (it->damaged)
        mn_grpc_server_stop(it->server);
    else
        mn_grpc_server_set_healthy(it->server, true);
    return next_ns;
}
static void abandon(void *core, mn_call *call) { mn_shard_abandon(((program *)core)->shard, call); }

static void on_sync(void *context) { mn_grpc_server_wake(((program *)context)->server); }

static void serve(void *context)
{
    program *it = context;
    mn_grpc_server_run(it->server);
    (void)uv_async_send(&it->ended); /* fails only for a handle of another type */
}

/* ---- The loop ---------------------------------------------------------------------------- */

static void log_line(const program *it, const char *event, const char *text)
{
    it->env.log(it->env.context, 1, event, text);
}

static void on_signal(uv_signal_t *handle, int number)
{
    program *it = handle->data;
    char text[64];
    if (it->stopping)
        _exit(128 + number);
    it->stopping = true;
    (void)snprintf(text, sizeof text, "signal=%d", number);
    log_line(it, "stopping", text);
    mn_grpc_server_set_healthy(it->server, false);
    mn_grpc_server_stop(it->server);
}

static void on_info(uv_timer_t *timer)
{
    program *it = timer->data;
    mn_grpc_server_stats now;
    size_t resident = 0;
    char text[LINE_BYTES];
    mn_grpc_server_stats_get(it->server, &now);
    (void)uv_resident_set_memory(&resident); /* 0 where the platform cannot tell */
    (void)snprintf(text, sizeof text,
                   "calls=%llu failures=%llu received_bytes=%llu sent_bytes=%llu held=%llu "
                   "reply_bytes=%llu connections=%u resident_bytes=%zu",
                   (unsigned long long)(now.calls - it->last.calls),
                   (unsigned long long)(now.failures - it->last.failures),
                   (unsigned long long)(now.bytes_received - it->last.bytes_received),
                   (unsigned long long)(now.bytes_sent - it->last.bytes_sent),
                   (unsigned long long)now.held, (unsigned long long)now.reply_bytes,
                   it->connection_count, resident);
    log_line(it, "info", text);
    it->last = now;
}

static void on_look(uv_timer_t *timer)
{
    program *it = timer->data;
    char text[96];
    uint32_t cut = mn_connections_trim(it->connections, &it->connection_count);
    if (!cut)
        return;
    (void)snprintf(text, sizeof text, "connections_max=%u cut=%u", it->flags.connections_max, cut);
    it->env.log(it->env.context, 2, "connections_cut", text);
}

static void on_ended(uv_async_t *handle)
{
    program *it = handle->data;
    for (int i = 0; i < 2; i++)
        uv_close((uv_handle_t *)&it->signals[i], NULL);
    uv_close((uv_handle_t *)&it->info, NULL);
    uv_close((uv_handle_t *)&it->look, NULL);
    uv_close((uv_handle_t *)&it->ended, NULL);
}

/* Handles of an empty loop cannot fail to start, save for want of file descriptors. */
static int start_loop(program *it)
{
    static const int numbers[] = {SIGTERM, SIGINT};
    int failed = uv_loop_init(&it->loop);
    failed = failed ? failed : uv_async_init(&it->loop, &it->ended, on_ended);
    failed = failed ? failed : uv_timer_init(&it->loop, &it->info);
    failed = failed ? failed : uv_timer_init(&it->loop, &it->look);
    it->ended.data = it->info.data = it->look.data = it;
    if (!failed)
        failed = uv_timer_start(&it->look, on_look, LOOK_MS, LOOK_MS);
    if (!failed && it->flags.info_seconds)
        failed = uv_timer_start(&it->info, on_info, it->flags.info_seconds * UINT64_C(1000),
                                it->flags.info_seconds * UINT64_C(1000));
    for (int i = 0; i < 2 && !failed; i++) {
        failed = uv_signal_init(&it->loop, &it->signals[i]);
        it->signals[i].data = it;
        failed = failed ? failed : uv_signal_start(&it->signals[i], on_signal, numbers[i]);
    }
    return failed;
}

/* ---- Starting and stopping --------------------------------------------------------------- */

/* Whole or not at all: whoever waits for the file never reads half a number. */
static int write_port(const char *path, int port)
{
    char temporary[4096];
    if (snprintf(temporary, sizeof temporary, "%s.new", path) >= (int)sizeof temporary)
        return ENAMETOOLONG;
    FILE *file = fopen(temporary, "w");
    if (!file)
        return errno;
    bool written = fprintf(file, "%d\n", port) > 0;
    bool closed = fclose(file) == 0;
    return written && closed && rename(temporary, path) == 0 ? 0 : errno;
}

static enum mn_status open_server(program *it, int *out_port, mn_error *error)
{
    const mn_server_flags *flags = &it->flags;
    if (flags->data) {
        enum mn_status status = mn_storage_uv_create(flags->data, &it->storage, error);
        if (status)
            return status;
    }
    mn_env_posix(&it->env, it->storage, flags->log_level);
    mn_shard_options core = {.shard = flags->shard,
                             .shards = flags->shards,
                             .read_bytes_max = flags->read_bytes_max,
                             .change_bytes_max = flags->change_bytes_max,
                             .usage_bytes_max = flags->usage_bytes_max,
                             .table_bytes_max = flags->table_bytes_max,
                             .groups_max = flags->groups_max,
                             .tables_max = flags->tables_max,
                             .durability = flags->durability,
                             .log_cut_bytes = flags->log_cut_bytes,
                             .image_bytes_a_second = flags->image_bytes_a_second,
                             .saves_kept = flags->saves_kept,
                             .claim_data = true,
                             .ignore_other_logs = flags->ignore_other_logs};
    enum mn_status status = mn_shard_create(&core, &it->env, &it->shard, error);
    if (status)
        return status;
    mn_grpc_server_options server = {.address = flags->listen,
                                     .calls_max = flags->calls_max,
                                     .reply_bytes_max = flags->reply_bytes_max,
                                     .receive_bytes_max = flags->receive_bytes_max,
                                     .admit = flags->token ? admit : NULL,
                                     .admit_context = it,
                                     .handle = handle,
                                     .tick = tick,
                                     .abandon = abandon,
                                     .core = it,
                                     .env = &it->env};
    status = mn_grpc_server_create(&server, &it->server, out_port, error);
    if (!status)
        status = mn_connections_create(&it->env, *out_port, flags->connections_max,
                                       &it->connections, error);
    if (!status && it->storage)
        mn_storage_uv_on_sync(it->storage, on_sync, it);
    it->recovering = !status && mn_shard_state(it->shard, NULL) != MN_OK;
    if (it->recovering)
        mn_grpc_server_set_healthy(it->server, false);
    return status;
}

static void close_server(program *it)
{
    mn_connections_destroy(it->connections);
    if (it->storage)
        mn_storage_uv_on_sync(it->storage, NULL, NULL);
    mn_grpc_server_destroy(it->server);
    mn_shard_destroy(it->shard);
    if (it->storage)
        mn_storage_uv_destroy(it->storage);
}

static int run(program *it, int port)
{
    char text[LINE_BYTES];
    mn_server_flags_text(&it->flags, text, sizeof text);
    log_line(it, "start", text);
    int failed = start_loop(it);
    if (!failed)
        failed = uv_thread_create(&it->thread, serve, it);
    if (failed) {
        (void)fprintf(stderr, "mneme-shard: cannot start the loop: %s\n", uv_strerror(failed));
        return EXIT_FAILED;
    }
    (void)snprintf(text, sizeof text, "port=%d", port);
    log_line(it, "ready", text);
    int port_error = it->flags.port_file ? write_port(it->flags.port_file, port) : 0;
    if (port_error) {
        (void)fprintf(stderr, "mneme-shard: --port-file %s: %s\n", it->flags.port_file,
                      strerror(port_error));
        mn_grpc_server_stop(it->server);
    }
    (void)uv_run(&it->loop, UV_RUN_DEFAULT); /* ends when on_ended has closed the handles */
    (void)uv_thread_join(&it->thread);       /* a thread of ours, joined once */
    (void)uv_loop_close(&it->loop);          /* no handle is open */
    log_line(it, "stopped", "");
    if (it->damaged)
        return complain("cannot recover", &it->damage);
    return port_error ? EXIT_FAILED : 0;
}

/* A save keeps a file open for each tile that commits change before its turn. */
static void allow_files(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit))
        return; /* a save may then end with STORAGE */
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit); /* likewise */
}

int main(int count, char **arguments)
{
    static program it;
    mn_error error = {0};
    int port = 0;
    /* gRPC's own log repeats in its words what our messages say; its variable still wins. */
    (void)setenv("GRPC_VERBOSITY", "NONE", 0);
    if (mn_server_flags_parse(count, arguments, &it.flags, &error)) {
        (void)complain("", &error);
        return EXIT_FLAGS;
    }
    if (it.flags.only_answer) {
        (void)fputs(it.flags.answer, stdout);
        return 0;
    }
    allow_files();
    int result = EXIT_FAILED;
    if (open_server(&it, &port, &error))
        (void)complain("cannot serve", &error);
    else
        result = run(&it, port);
    close_server(&it);
    return result;
}
