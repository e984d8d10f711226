/* The bench harness: subjects doing the same work take turns, round by round; what counts is the
 * median over rounds of the ratio within a round. Private to tests/bench. Failures end the
 * program with a message: a bench has no caller to tell. */
#ifndef MN_BENCH_H
#define MN_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "mneme.h"

enum { BENCH_PEERS_MAX = 6, BENCH_SHARDS_MAX = 8 };

/* One way of doing the work. round() does it once and returns its cost (seconds, bytes: lower is
 * better), measured around the work only: preparing inputs before the clock, checking results
 * after it. A NULL round is a peer that is not installed. */
typedef struct bench_subject {
    const char *name;
    double (*round)(void *context, uint64_t number);
    void *context;
    double least, goal; /* the ratios asked for against this peer; 0 when none is */
} bench_subject;

/* value printed = work / median cost (a rate) when work > 0, else the median cost. */
typedef struct bench_case {
    const char *bench, *name, *unit;
    double work;
    bench_subject mneme;
    bench_subject peers[BENCH_PEERS_MAX];
    uint32_t peer_count;
} bench_case;

extern bool bench_quick; /* --quick: three rounds, small sizes where a case says so */

/* Runs warm-up and rounds, prints one JSON line a peer:
 * {"bench","case","value","unit","against","ratio","q1","q3","rounds","least","goal","noisy"}. A
 * run whose raw-tcp costs have quartiles further apart than 1.5 times is marked noisy and
 * repeated, at most twice. */
void bench_run(const bench_case *bench);
/* One line for a figure that is measured once: ratio as given. */
void bench_report(const char *bench, const char *name, double value, const char *unit,
                  const char *against, double ratio, double least, double goal);

double bench_now(void); /* seconds, monotonic */
_Noreturn void bench_die(const char *format, ...) __attribute__((format(printf, 1, 2)));
void bench_check(enum mn_status status, const mn_error *error, const char *what);
/* Sorts them; the one at this share of the way from the least to the largest. */
double bench_at_share(double *values, uint32_t count, double share);
uint64_t bench_random(uint64_t *state); /* splitmix64 */
void *bench_huge(uint64_t bytes);       /* anonymous memory on 2 MiB pages, touched; never freed */

/* Child processes, killed at exit. The port is read from `--port-file FILE`, appended to the
 * arguments. */
typedef struct bench_child {
    pid_t process;
    int port;
    int to, from; /* its standard input and output, when piped */
} bench_child;
bench_child bench_start(const char *const *arguments, bool with_port, bool piped);
void bench_stop(bench_child *child);
/* Where there are more cores than servers: this thread, and what it starts, keeps to the first
 * core, servers (children not piped) started from here on to the others, as on machines of their
 * own; else both run where the kernel likes, which halves a call's time or doubles it as it puts
 * them on one core or two. 0: everywhere again. */
void bench_apart(uint32_t servers);
bool bench_has(const char *program);
int bench_connect(int port); /* a TCP connection to 127.0.0.1, buffers of 4 MiB, no delay */
void bench_send(int socket, const void *bytes, size_t count);
void bench_receive(int socket, void *out_bytes, size_t count);

/* `shards` mneme-shard processes and a client of theirs. */
typedef struct bench_service {
    bench_child shards[BENCH_SHARDS_MAX];
    uint32_t count;
    char target[64 * BENCH_SHARDS_MAX];
    mn_client *client;
} bench_service;
void bench_service_start(bench_service *service, uint32_t shards);
/* The same with a folder, and changes acknowledged at this level ("none", "process", "sync").
 * `cut`: when logs are cut, by images that are written as fast as can be; NULL: by default. */
typedef struct bench_log {
    const char *folder, *level, *cut;
} bench_log;
void bench_service_start_at(bench_service *service, uint32_t shards, const bench_log *log);
void bench_service_stop(bench_service *service);
/* Opens a table and writes every row by Store: column c of row r is bench_value(r, c), exact in
 * bf16. */
mn_table *bench_table(mn_client *client, const mn_table_spec *spec);
float bench_value(uint64_t row, uint32_t column);
void bench_rows_check(const float *rows, const uint32_t *indices, uint64_t count, uint32_t dim);

/* The cases, one function a bench (case_*.c). */
void bench_fetch(void);
void bench_push(void);
void bench_bag(void);
void bench_bag_grad(void);
void bench_bag_latency(void);
void bench_layer_step(void);
void bench_scale(void);
void bench_frozen(void);
void bench_search(void);
void bench_kernel_bag(void);
void bench_kernel_bag_grad(void);
void bench_adamw(void);
void bench_durable_push(void);
void bench_durable_bag_grad(void);
void bench_snapshot(void);
void bench_recovery(void);
void bench_move(void);

#endif
