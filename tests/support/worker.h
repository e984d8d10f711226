/* What the small trainers of the process tests share. They link nothing of ours but <mneme.h>. */
#ifndef MN_TESTS_SUPPORT_WORKER_H
#define MN_TESTS_SUPPORT_WORKER_H

#include <mneme.h>

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
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

/* In a function that has a worker w with its trying; expression: a status, with &call_error. */
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
