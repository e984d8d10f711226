/* A shard process that is stopped (SIGSTOP) while large messages are on their way to it: calls end
 * by their deadline, although gRPC cannot take back what it has begun to write. It needs a process
 * of its own, for all of gRPC in one process reads from all sockets. */
#include "rig.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { PUSHES = 8, BYTES = 7 << 20, ROUNDS = 4 };

static pid_t shard;
static rig server; /* its address and env only */

static int start_shard(void **state)
{
    (void)state;
    char port_file[] = "/tmp/mneme-stall-XXXXXX";
    int port = 0;
    int made = mkstemp(port_file);
    assert_true(made >= 0);
    close(made);
    shard = fork();
    if (shard == 0) {
        execl(MN_SHARD_PROGRAM, "mneme-shard", "--listen", "127.0.0.1:0", "--port-file", port_file,
              "--log-level", "warning", (char *)NULL);
        _exit(127);
    }
    for (int i = 0; i < 2000 && !port; i++) {
        FILE *file = fopen(port_file, "r");
        assert_non_null(file);
        if (fscanf(file, "%d", &port) != 1)
            usleep(10000);
        (void)fclose(file);
    }
    assert_true(port > 0);
    unlink(port_file);
    mn_env_posix(&server.env, NULL, 3);
    (void)snprintf(server.address, sizeof server.address, "127.0.0.1:%d", port);
    return 0;
}

static int stop_shard(void **state)
{
    (void)state;
    int status;
    kill(shard, SIGCONT);
    kill(shard, SIGTERM);
    assert_int_equal(waitpid(shard, &status, 0), shard);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return 0;
}

static void test_stopped_shard(void **state)
{
    (void)state;
    rig_call call, pushes[PUSHES];
    uint8_t *bytes = calloc(1, BYTES);
    mn_transport *client = rig_client(&server, NULL);
    for (int round = 0; round < ROUNDS; round++) {
        /* The shard knows no group "g": any answer shows that it serves again. */
        rig_begin(&call, client, &server.env, MN_VERB_PUSH, 0, bytes, 100, 10000);
        assert_int_equal(rig_wait(&call), MN_NOT_FOUND);
        rig_end(&call);
        assert_int_equal(kill(shard, SIGSTOP), 0);
        for (int i = 0; i < PUSHES; i++)
            rig_begin(&pushes[i], client, &server.env, MN_VERB_PUSH, 0, bytes, BYTES, 300);
        for (int i = 0; i < PUSHES; i++) {
            assert_int_equal(rig_wait(&pushes[i]), MN_DEADLINE);
            assert_true(pushes[i].took_ns < 1500000000);
            rig_end(&pushes[i]);
        }
        memset(bytes, round, BYTES); /* ours again */
        assert_int_equal(kill(shard, SIGCONT), 0);
        /* The connection may have been cut: the first call after it says so, the next is served. */
        rig_begin(&call, client, &server.env, MN_VERB_PUSH, 0, bytes, 100, 10000);
        enum mn_status status = rig_wait(&call);
        assert_true(status == MN_NOT_FOUND || status == MN_UNAVAILABLE);
        rig_end(&call);
    }
    free(bytes);
    client->destroy(client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stopped_shard)};
    return cmocka_run_group_tests(tests, start_shard, stop_shard);
}
