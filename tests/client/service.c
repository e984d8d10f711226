/* A memory service for tests: embedded shards or mneme-shard processes. */
#include "service.h"

#include "harness.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

const struct service_kind *service_started;

void must_at(enum mn_status status, const mn_error *error, const char *file, int line)
{
    if (status)
        fail_msg("%s:%d: %s (%s): %s", file, line, mn_status_name(status), error->field,
                 error->message);
}

uint64_t draw(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return *state >> 33;
}

float draw_float(uint64_t *state) { return (float)(draw(state) % 128) / 64 - 1; }

static pid_t spawn_shard(const struct service *service, uint32_t ordinal, const char *port_file)
{
    char shard[16], shards[16];
    (void)snprintf(shard, sizeof shard, "%u", ordinal);
    (void)snprintf(shards, sizeof shards, "%u", service->kind.shards);
    const char *arguments[] = {MN_SHARD_PROGRAM,
                               "--listen",
                               "127.0.0.1:0",
                               "--shard",
                               shard,
                               "--shards",
                               shards,
                               "--data",
                               service->folder,
                               "--durability",
                               service->kind.shards % 2 ? "none" : "process",
                               "--port-file",
                               port_file,
                               "--log-level",
                               "warning",
                               "--usage-budget",
                               "1MiB",
                               NULL};
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves no shard behind */
        (void)execv(MN_SHARD_PROGRAM, (char **)arguments);
        _exit(127);
    }
    return pid;
}

static int await_port(const char *port_file)
{
    const struct timespec pause = {.tv_nsec = 10000000};
    for (int tries = 0; tries < 2000; tries++) {
        int port = 0;
        FILE *file = fopen(port_file, "r");
        if (file) {
            int read = fscanf(file, "%d", &port);
            fclose(file);
            if (read == 1 && port > 0)
                return port;
        }
        nanosleep(&pause, NULL);
    }
    fail_msg("no port in %s", port_file);
    return 0;
}

void service_start(struct service *out_service, struct service_kind kind,
                   const struct service *shared)
{
    struct service service = {.kind = kind};
    static struct service_kind started;
    started = kind;
    service_started = &started;
    (void)snprintf(service.folder, sizeof service.folder, "service-XXXXXX");
    if (shared)
        memcpy(service.folder, shared->folder, sizeof service.folder);
    else
        assert_non_null(mkdtemp(service.folder));
    if (!kind.processes) {
        (void)snprintf(service.target, sizeof service.target, "local:%s", service.folder);
        *out_service = service;
        return;
    }
    char port_file[16][96];
    for (uint32_t i = 0; i < kind.shards; i++) {
        (void)snprintf(port_file[i], sizeof port_file[i], "%s/port-%u-%u", service.folder,
                       kind.shards, i);
        service.pids[i] = spawn_shard(&service, i, port_file[i]);
    }
    size_t length = (size_t)snprintf(service.target, sizeof service.target, "static:");
    for (uint32_t i = 0; i < kind.shards; i++) {
        int port = await_port(port_file[i]);
        length += (size_t)snprintf(service.target + length, sizeof service.target - length,
                                   "%s127.0.0.1:%d", i ? "," : "", port);
        (void)unlink(port_file[i]); /* read */
    }
    *out_service = service;
}

void service_stop(struct service *service)
{
    for (uint32_t i = 0; service->kind.processes && i < service->kind.shards; i++)
        (void)kill(service->pids[i], SIGTERM); /* ours, until waited for */
    for (uint32_t i = 0; service->kind.processes && i < service->kind.shards; i++) {
        int how = 0;
        assert_int_equal(waitpid(service->pids[i], &how, 0), service->pids[i]);
        assert_true(WIFEXITED(how) && WEXITSTATUS(how) == 0);
    }
    char command[128];
    (void)snprintf(command, sizeof command, "rm -rf '%s'", service->folder);
    assert_int_equal(system(command), 0);
}

const char *service_name(const struct service *service)
{
    static char name[64];
    (void)snprintf(name, sizeof name, "%u %s shards%s%s", service->kind.shards,
                   service->kind.processes ? "gRPC" : "embedded",
                   service->kind.device ? " on a device" : "",
                   service->kind.arrays ? ", as the arrays" : "");
    return name;
}

mn_client *service_open(const struct service *service, const char *group, uint32_t rank,
                        uint32_t ranks)
{
    mn_client_options options = {.target = service->target,
                                 .group = group,
                                 .rank = rank,
                                 .ranks = ranks,
                                 .deadline_ms = 30000,
                                 .local_shards = service->kind.processes ? 0 : service->kind.shards,
                                 .device = service->kind.device,
                                 .local_usage_bytes = service->kind.processes ? 0 : 1 << 20};
    mn_client *client;
    mn_error error;
    must(mn_client_open(&options, &client, &error));
    return client;
}
