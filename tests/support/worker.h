/* What the small trainers of the process tests share. They link nothing of ours but <mneme.h>. */
#ifndef MN_TESTS_SUPPORT_WORKER_H
#define MN_TESTS_SUPPORT_WORKER_H

#include <mneme.h>

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* A line that the test reads at once. */
__attribute__((format(printf, 1, 2))) static inline void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    (void)vprintf(format, arguments);
    va_end(arguments);
    (void)putchar('\n');
    (void)fflush(stdout);
}

static inline uint64_t now_ms(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static inline void rest(uint64_t ms)
{
    struct timespec pause = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    (void)nanosleep(&pause, NULL); /* cut short: no harm */
}

/* ---- Calls, made again while a retry may help */

enum { EXIT_CALL_FAILED = 3, EXIT_LATE = 4 };

typedef struct trying {
    uint64_t deadline_ms, late_ms;          /* a call that takes longer than both is an error */
    uint64_t patience_ms, patience_from_ms; /* 0: from each call's own beginning */
    uint64_t rest_ms;                       /* between two tries */
} trying;

/* Judges the end of a call that began at `began`, at first at `first`: true to make it again. Exits
 * when nothing helps. */
static inline bool again(const trying *how, const char *call, uint64_t first, uint64_t began,
                         enum mn_status status, const mn_error *error)
{
    const uint64_t now = now_ms(), since = how->patience_from_ms ? how->patience_from_ms : first;
    if (now - began > how->deadline_ms + how->late_ms) {
        say("late %s %llu", call, (unsigned long long)(now - began));
        exit(EXIT_LATE);
    }
    if (!status)
        return false;
    if (mn_status_retryable(status) && now - since < how->patience_ms) {
        say("retry %s %s", call, mn_status_name(status));
        rest(how->rest_ms);
        return true;
    }
    say("failed %s %s %s: %s", call, mn_status_name(status), error->field, error->message);
    exit(EXIT_CALL_FAILED);
}

typedef struct worker {
    const char *target;
    uint32_t rank, ranks;
    uint64_t pause_ms; /* between two steps */
    trying trying;
    mn_client *client;
    mn_table *bags, *rows;
} worker;

/* In a function that has a worker w; expression: a status, with &call_error. */
#define CALL(name, expression)                                                                     \
    do {                                                                                           \
        mn_error call_error = {0};                                                                 \
        enum mn_status call_status;                                                                \
        uint64_t call_first = now_ms(), call_began;                                                \
        do {                                                                                       \
            call_began = now_ms();                                                                 \
            call_status = (expression);                                                            \
        } while (again(&w->trying, name, call_first, call_began, call_status, &call_error));       \
    } while (0)

/* ---- Tables */

enum { ROWS = 96 };

/* Joins the group, and opens a table for bags and one whose rows are split, both [ROWS][dim]. */
static inline void open_all(worker *w, const char *group, uint32_t dim)
{
    mn_client_options options = {.target = w->target,
                                 .group = group,
                                 .rank = w->rank,
                                 .ranks = w->ranks,
                                 .deadline_ms = w->trying.deadline_ms,
                                 .log_level = MN_LOG_SILENT};
    mn_table_spec bags = {.name = "bags",
                          .rows = ROWS,
                          .dim = dim,
                          .tiles = 4,
                          .seed = 1,
                          .init = mn_init_normal(0.5f),
                          .optimizer = mn_adamw(0.9f, 0.95f, 1e-8f)};
    mn_table_spec rows = bags;
    rows.split = MN_ROWS;
    rows.tiles = 16;
    rows.optimizer = mn_adagrad(1e-6f);
    memcpy(rows.name, "rows", sizeof "rows");
    CALL("open", mn_client_open(&options, &w->client, &call_error));
    say("joined %llu", (unsigned long long)mn_client_step(w->client));
    CALL("table", mn_table_open(w->client, &bags, &w->bags, &call_error));
    CALL("table", mn_table_open(w->client, &rows, &w->rows, &call_error));
}

static inline mn_rows all_rows(void)
{
    static uint32_t indices[ROWS];
    for (uint32_t i = 0; i < ROWS; i++)
        indices[i] = i;
    mn_rows rows = {ROWS, mn_u32(indices)};
    return rows;
}

/* FNV-1a over every value of both tables, read into `values` [ROWS][dim]. */
static inline uint64_t hash_tables(worker *w, uint32_t dim, float *values)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    mn_rows rows = all_rows();
    mn_table *tables[] = {w->bags, w->rows};
    for (int t = 0; t < 2; t++) {
        CALL("fetch",
             mn_wait(mn_fetch(tables[t], MN_LATEST, &rows, mn_f32(values), NULL), &call_error));
        for (size_t i = 0; i < ROWS * dim * sizeof *values; i++)
            hash = (hash ^ ((const unsigned char *)values)[i]) * UINT64_C(0x100000001b3);
    }
    return hash;
}

/* ---- Numbers */

/* The finalizer of splitmix64: near numbers become far ones. */
static inline uint64_t scramble(uint64_t z)
{
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* In [-1, 1], of 20,001 values. */
static inline float number_of(uint64_t scrambled)
{
    return (float)((double)(scrambled % 20001) / 10000.0 - 1.0);
}

#endif
