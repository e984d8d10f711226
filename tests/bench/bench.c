/* Rounds, ratios, JSON lines. */
#include "bench.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { ROUNDS = 9, ROUNDS_QUICK = 3, REPEATS = 2 };

bool bench_quick;

double bench_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void bench_die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    (void)fputs("bench: ", stderr);
    (void)vfprintf(stderr, format, arguments);
    (void)fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

void bench_check(enum mn_status status, const mn_error *error, const char *what)
{
    if (status != MN_OK)
        bench_die("%s: %s %s: %s", what, mn_status_name(status), error->field, error->message);
}

uint64_t bench_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void *bench_huge(uint64_t bytes)
{
    uint64_t huge = UINT64_C(2) << 20, size = (bytes + huge - 1) / huge * huge;
    uint8_t *memory =
        mmap(NULL, size + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        bench_die("no memory for %llu bytes", (unsigned long long)bytes);
    memory += (huge - (uintptr_t)memory % huge) % huge;
    (void)madvise(memory, size, MADV_HUGEPAGE); /* slower without, never wrong */
    memset(memory, 1, size);
    return memory;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_at_share(double *values, uint32_t count, double share)
{
    qsort(values, count, sizeof *values, ascending);
    return values[(uint32_t)(share * (count - 1))];
}

static double quantile(const double *values, uint32_t count, double share)
{
    double sorted[ROUNDS];
    memcpy(sorted, values, count * sizeof *values);
    qsort(sorted, count, sizeof *sorted, ascending);
    double place = share * (count - 1);
    uint32_t below = (uint32_t)place;
    double above = below + 1 < count ? sorted[below + 1] : sorted[below];
    return sorted[below] + (place - below) * (above - sorted[below]);
}

typedef struct costs {
    double mneme[ROUNDS];
    double peers[BENCH_PEERS_MAX][ROUNDS];
} costs;

static void take_turns(const bench_case *bench, uint32_t rounds, costs *out_costs)
{
    (void)bench->mneme.round(bench->mneme.context, 0); /* warm-up: not counted */
    for (uint32_t peer = 0; peer < bench->peer_count; peer++)
        if (bench->peers[peer].round)
            (void)bench->peers[peer].round(bench->peers[peer].context, 0);
    for (uint32_t round = 0; round < rounds; round++) {
        for (uint32_t turn = 0; turn <= bench->peer_count; turn++) {
            uint32_t who = (turn + round) % (bench->peer_count + 1); /* nobody always goes first */
            if (who == bench->peer_count)
                out_costs->mneme[round] = bench->mneme.round(bench->mneme.context, round + 1);
            else if (bench->peers[who].round)
                out_costs->peers[who][round] =
                    bench->peers[who].round(bench->peers[who].context, round + 1);
        }
    }
}

static bool noisy(const bench_case *bench, uint32_t rounds, const costs *measured)
{
    for (uint32_t peer = 0; peer < bench->peer_count; peer++)
        if (strcmp(bench->peers[peer].name, "raw-tcp") == 0)
            return quantile(measured->peers[peer], rounds, 0.75) >
                   1.5 * quantile(measured->peers[peer], rounds, 0.25);
    return false;
}

static void print(const bench_case *bench, uint32_t rounds, const costs *measured, bool was_noisy)
{
    double cost = quantile(measured->mneme, rounds, 0.5);
    double value = bench->work > 0 ? bench->work / cost : cost;
    for (uint32_t peer = 0; peer < bench->peer_count; peer++) {
        const bench_subject *against = &bench->peers[peer];
        double ratios[ROUNDS];
        if (!against->round) {
            (void)fprintf(stderr, "%s %s: %s is not installed (tests/bench/install)\n",
                          bench->bench, bench->name, against->name);
            continue;
        }
        for (uint32_t round = 0; round < rounds; round++)
            ratios[round] = measured->peers[peer][round] / measured->mneme[round];
        (void)printf("{\"bench\":\"%s\",\"case\":\"%s\",\"value\":%.6g,\"unit\":\"%s\","
                     "\"against\":\"%s\",\"ratio\":%.3f,\"q1\":%.3f,\"q3\":%.3f,\"rounds\":%u,"
                     "\"least\":%g,\"goal\":%g%s}\n",
                     bench->bench, bench->name, value, bench->unit, against->name,
                     quantile(ratios, rounds, 0.5), quantile(ratios, rounds, 0.25),
                     quantile(ratios, rounds, 0.75), rounds, against->least, against->goal,
                     was_noisy ? ",\"noisy\":true" : "");
    }
    (void)fflush(stdout);
}

void bench_run(const bench_case *bench)
{
    uint32_t rounds = bench_quick ? ROUNDS_QUICK : ROUNDS;
    bool again = true;
    for (uint32_t attempt = 0; again && attempt <= REPEATS; attempt++) {
        costs measured;
        take_turns(bench, rounds, &measured);
        again = noisy(bench, rounds, &measured) && !bench_quick;
        print(bench, rounds, &measured, again);
    }
}

void bench_report(const char *bench, const char *name, double value, const char *unit,
                  const char *against, double ratio, double least, double goal)
{
    (void)printf("{\"bench\":\"%s\",\"case\":\"%s\",\"value\":%.6g,\"unit\":\"%s\","
                 "\"against\":\"%s\",\"ratio\":%.3f,\"least\":%g,\"goal\":%g}\n",
                 bench, name, value, unit, against, ratio, least, goal);
    (void)fflush(stdout);
}
