/* Connections beyond the maximum, on a port of the loopback that the kernel chooses: those that
 * stood before stay, and the rest goes though the process has no descriptor left to look with. */
#include "proto_test.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX = 2, DESCRIPTORS_MAX = 64 };

struct pair {
    int client, server;
};

static struct sockaddr_in address = {.sin_family = AF_INET};
static int listener = -1;
static mn_env env;
static mn_connections *connections;

static int begin(void **state)
{
    (void)state;
    socklen_t bytes = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) ||
        listen(listener, DESCRIPTORS_MAX) ||
        getsockname(listener, (struct sockaddr *)&address, &bytes))
        return -1;
    mn_env_posix(&env, NULL, 3);
    return mn_connections_create(&env, ntohs(address.sin_port), MAX, &connections, NULL);
}

static int end(void **state)
{
    (void)state;
    mn_connections_destroy(connections);
    return close(listener);
}

static struct pair connect_one(void)
{
    struct pair pair = {socket(AF_INET, SOCK_STREAM, 0), -1};
    assert_true(pair.client >= 0);
    assert_int_equal(connect(pair.client, (struct sockaddr *)&address, sizeof address), 0);
    pair.server = accept(listener, NULL, NULL);
    assert_true(pair.server >= 0);
    return pair;
}

static void disconnect(struct pair pair)
{
    assert_int_equal(close(pair.client), 0);
    assert_int_equal(close(pair.server), 0);
}

/* A byte gets across; of a connection that was ended, none does. */
static bool stands(struct pair pair)
{
    char byte = 'x';
    return send(pair.server, &byte, 1, MSG_NOSIGNAL) == 1 && recv(pair.client, &byte, 1, 0) == 1;
}

static uint32_t trim(uint32_t stay)
{
    uint32_t count = 0, cut = mn_connections_trim(connections, &count);
    assert_int_equal(count, stay);
    return cut;
}

static void those_that_stood_stay(void **state)
{
    (void)state;
    int low[4]; /* descriptors below the others': who comes later has them */
    for (int i = 0; i < 4; i++)
        low[i] = dup(listener);
    struct pair first = connect_one(), second = connect_one();
    assert_int_equal(trim(2), 0);
    struct pair third = connect_one();
    assert_int_equal(trim(2), 1);
    assert_true(stands(first) && stands(second) && !stands(third));
    disconnect(first);
    disconnect(third);
    for (int i = 0; i < 4; i++)
        assert_int_equal(close(low[i]), 0);
    struct pair fourth = connect_one(), fifth = connect_one();
    assert_true(fourth.server < second.server && fifth.server < second.server);
    assert_int_equal(trim(2), 1);
    assert_true(stands(second) && stands(fourth) != stands(fifth));
    disconnect(second);
    disconnect(fourth);
    disconnect(fifth);
    assert_int_equal(trim(0), 0);
}

static void no_descriptor_is_left(void **state)
{
    (void)state;
    int taken[DESCRIPTORS_MAX], count = 0;
    struct rlimit before, few = {DESCRIPTORS_MAX, DESCRIPTORS_MAX};
    mn_connections *other = NULL;
    mn_error error = {0};
    struct pair first = connect_one(), second = connect_one(), third = connect_one();
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    few.rlim_max = before.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    while (count < DESCRIPTORS_MAX && (taken[count] = dup(listener)) >= 0)
        count++;
    assert_null(opendir("/proc/self/fd"));
    assert_int_equal(mn_connections_create(&env, 1, MAX, &other, &error), MN_UNAVAILABLE);
    assert_string_equal(error.field, "connections_max");
    assert_null(other);
    assert_int_equal(trim(2), 1);
    assert_true(stands(first) && stands(second) && !stands(third));
    while (count)
        assert_int_equal(close(taken[--count]), 0);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    disconnect(first);
    disconnect(second);
    disconnect(third);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(those_that_stood_stay),
        cmocka_unit_test(no_descriptor_is_left),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
