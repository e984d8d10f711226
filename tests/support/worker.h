/* What the small trainers of the process tests share. They link nothing of ours but <mneme.h>. */
#ifndef MN_TESTS_SUPPORT_WORKER_H
#define MN_TESTS_SUPPORT_WORKER_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
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
