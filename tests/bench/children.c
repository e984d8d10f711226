/* Child processes and sockets of the benches. */
#include "bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ARGUMENTS_MAX = 32, START_SECONDS = 60 };

static cpu_set_t all_cores; /* that this process was given */
static bool servers_apart;

/* The first of these cores, the others, or all. */
static void keep_to(bool first, bool others)
{
    cpu_set_t some;
    int seen = 0;
    CPU_ZERO(&some);
    for (size_t core = 0; core < CPU_SETSIZE; core++) {
        if (!CPU_ISSET(core, &all_cores))
            continue;
        if (seen++ == 0 ? first : others)
            CPU_SET(core, &some);
    }
    if (sched_setaffinity(0, sizeof some, &some))
        bench_die("cannot choose cores: %s", strerror(errno));
}

void bench_apart(uint32_t servers)
{
    static bool known;
    if (!known && sched_getaffinity(0, sizeof all_cores, &all_cores))
        bench_die("cannot tell the cores: %s", strerror(errno));
    known = true;
    servers_apart = servers && servers < (uint32_t)CPU_COUNT(&all_cores);
    keep_to(true, !servers_apart);
}

static int read_port(const char *path, pid_t process)
{
    for (double end = bench_now() + START_SECONDS; bench_now() < end;) {
        FILE *file = fopen(path, "r");
        int port = 0, got = file ? fscanf(file, "%d", &port) : 0;
        if (file)
            (void)fclose(file);
        if (got == 1 && port > 0)
            return port;
        if (waitpid(process, NULL, WNOHANG) == process)
            bench_die("a child process ended before it wrote its port to %s", path);
        (void)nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    }
    bench_die("no port in %s after %d s", path, START_SECONDS);
}

static void become(const char *const *arguments, const int in[2], const int out[2], bool piped)
{
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* no child outlives the bench */
    if (!piped && servers_apart)
        keep_to(false, true);
    if (piped) {
        (void)dup2(in[0], STDIN_FILENO);
        (void)dup2(out[1], STDOUT_FILENO);
        (void)close(in[1]);
        (void)close(out[0]);
    } else { /* standard output is for JSON lines */
        (void)dup2(STDERR_FILENO, STDOUT_FILENO);
    }
    (void)execvp(arguments[0], (char *const *)arguments);
    (void)fprintf(stderr, "bench: cannot start %s: %s\n", arguments[0], strerror(errno));
    _exit(127);
}

bench_child bench_start(const char *const *arguments, bool with_port, bool piped)
{
    const char *all[ARGUMENTS_MAX + 3] = {0};
    char path[] = "/tmp/mneme-bench-port-XXXXXX";
    int in[2] = {-1, -1}, out[2] = {-1, -1};
    uint32_t count = 0;
    while (arguments[count] && count < ARGUMENTS_MAX)
        all[count] = arguments[count], count++;
    if (with_port) {
        int file = mkstemp(path);
        if (file < 0)
            bench_die("cannot make %s", path);
        (void)close(file);
        all[count++] = "--port-file";
        all[count++] = path;
    }
    if (piped && (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC)))
        bench_die("pipe: %s", strerror(errno));
    bench_child child = {.to = in[1], .from = out[0]};
    child.process = fork();
    if (child.process < 0)
        bench_die("fork: %s", strerror(errno));
    if (child.process == 0)
        become(all, in, out, piped);
    if (piped) {
        (void)close(in[0]);
        (void)close(out[1]);
    }
    if (with_port) {
        child.port = read_port(path, child.process);
        (void)unlink(path);
    }
    return child;
}

void bench_stop(bench_child *child)
{
    if (child->process <= 0)
        return;
    if (child->to > 0) {
        (void)close(child->to);
        (void)close(child->from);
    }
    (void)kill(child->process, SIGKILL);
    (void)waitpid(child->process, NULL, 0);
    child->process = 0;
}

bool bench_has(const char *program)
{
    char command[256];
    (void)snprintf(command, sizeof command, "command -v %s >/dev/null 2>&1", program);
    return system(command) == 0;
}

int bench_connect(int port)
{
    int one = 1, size = 4 << 20, connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    (void)setsockopt(connection, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    (void)setsockopt(connection, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    if (connection < 0 || connect(connection, (struct sockaddr *)&address, sizeof address))
        bench_die("cannot connect to port %d: %s", port, strerror(errno));
    (void)setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return connection;
}

void bench_send(int connection, const void *bytes, size_t count)
{
    for (const char *next = bytes; count;) {
        ssize_t sent = send(connection, next, count, MSG_NOSIGNAL);
        if (sent <= 0)
            bench_die("send: %s", strerror(errno));
        next += sent, count -= (size_t)sent;
    }
}

void bench_receive(int connection, void *out_bytes, size_t count)
{
    for (char *next = out_bytes; count;) {
        ssize_t got = recv(connection, next, count, 0);
        if (got <= 0)
            bench_die("receive: %s", got ? strerror(errno) : "the peer closed");
        next += got, count -= (size_t)got;
    }
}
