/* The real world for the cores: Linux clocks, random numbers, memory; events to standard error. */
#include "mn_proto.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum {
    ALIGNMENT = 64,
    HUGE_PAGE_BYTES = 2 << 20,
    MAPPED_BYTES_MIN = 4 << 20, /* larger allocations are fresh pages: zero without a memset */
    LOG_LINE_BYTES = 2048,
    ADVICE_COLLAPSE = 25 /* MADV_COLLAPSE, Linux 6.1; not in every libc's headers */
};

static uint64_t clock_ns(clockid_t id)
{
    struct timespec now;
    (void)clock_gettime(id, &now); /* fails for an unknown clock or a bad pointer only */
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t env_now_ns(void *context)
{
    (void)context;
    return clock_ns(CLOCK_MONOTONIC);
}

/* SplitMix64 (Steele et al., OOPSLA 2014) from a seed of the kernel's; one atomic addition makes it
 * safe for any number of threads. */
static pthread_once_t random_once = PTHREAD_ONCE_INIT;
static _Atomic uint64_t random_state;

static void random_seed(void)
{
    uint64_t seed;
    if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed) /* before Linux 3.17 */
        seed =
            clock_ns(CLOCK_MONOTONIC) ^ clock_ns(CLOCK_REALTIME) << 20 ^ (uint64_t)getpid() << 40;
    atomic_store(&random_state, seed);
}

static uint64_t env_random(void *context)
{
    (void)context;
    (void)pthread_once(&random_once, random_seed); /* cannot fail with these arguments */
    const uint64_t gamma = 0x9e3779b97f4a7c15u;
    uint64_t z = atomic_fetch_add(&random_state, gamma) + gamma;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static void *map_pages(uint64_t bytes, int flags)
{
    void *memory =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static void *env_allocate(void *context, size_t bytes)
{
    (void)context;
    if (bytes > SIZE_MAX - HUGE_PAGE_BYTES)
        return NULL;
    if (bytes >= MAPPED_BYTES_MIN)
        return map_pages(bytes, 0);
    size_t rounded = bytes ? (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT : ALIGNMENT;
    void *memory = aligned_alloc(ALIGNMENT, rounded);
    if (memory)
        memset(memory, 0, rounded);
    return memory;
}

static void env_release(void *context, void *memory, size_t bytes)
{
    (void)context;
    if (!memory)
        return;
    if (bytes >= MAPPED_BYTES_MIN)
        (void)munmap(memory, bytes); /* fails for a range that was never mapped only */
    else
        free(memory);
}

/* Begins on a 2 MiB boundary, so that promote finds whole huge pages; what the alignment leaves
 * over on either side goes back. */
static void *env_reserve(void *context, uint64_t bytes)
{
    (void)context;
    if (!bytes || bytes > SIZE_MAX / 2)
        return NULL;
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    bytes = (bytes + page - 1) / page * page;
    uint8_t *whole = map_pages(bytes + HUGE_PAGE_BYTES, MAP_NORESERVE);
    if (!whole)
        return NULL;
    uint64_t before = -(uintptr_t)whole % HUGE_PAGE_BYTES;
    if (before)
        (void)munmap(whole, before);
    (void)munmap(whole + before + bytes, HUGE_PAGE_BYTES - before);
    (void)madvise(whole + before, bytes, MADV_NOHUGEPAGE); /* a kernel without huge pages refuses */
    return whole + before;
}

static void env_promote(void *context, void *memory, uint64_t bytes)
{
    (void)context;
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = ((uintptr_t)memory + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)memory + bytes) / page * page;
    if (first >= end)
        return;
    void *pages = (void *)first;
    (void)madvise(pages, end - first, MADV_HUGEPAGE); /* all of this is a wish: small pages serve */
    (void)madvise(pages, end - first, ADVICE_COLLAPSE);
}

static void env_vacate(void *context, void *memory, uint64_t bytes)
{
    (void)context;
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = ((uintptr_t)memory + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)memory + bytes) / page * page;
    if (first < end)
        (void)madvise((void *)first, end - first, MADV_DONTNEED); /* of our own: cannot fail */
}

static void env_unreserve(void *context, void *memory, uint64_t bytes)
{
    (void)context;
    if (memory)
        (void)munmap(memory, bytes);
}

/* One write, so that lines of several processes do not mix. The context points into levels[], at
 * the lowest level that is written. */
static const int levels[] = {0, 1, 2, 3};

static void env_log(void *context, int level, const char *event, const char *key_values)
{
    static const char *const names[] = {"debug", "info", "warning"};
    if (level < *(const int *)context || level < 0 || level > 2)
        return;
    char line[LOG_LINE_BYTES];
    uint64_t now = clock_ns(CLOCK_REALTIME);
    int length = snprintf(line, sizeof line, "ts=%llu.%03u level=%s event=%s %s",
                          (unsigned long long)(now / 1000000000u),
                          (unsigned)(now / 1000000u % 1000u), names[level], event, key_values);
    if (length < 0)
        return;
    size_t count = (size_t)length < sizeof line - 1 ? (size_t)length : sizeof line - 2;
    for (size_t i = 0; i < count; i++) /* whoever named what is in it: one line */
        if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
            line[i] = '?';
    line[count++] = '\n';
    if (write(STDERR_FILENO, line, count) < 0)
        return; /* nowhere left to say so */
}

void mn_env_posix(mn_env *out_env, mn_storage *storage, int log_level)
{
    int level = log_level < 0 ? 0 : log_level > 3 ? 3 : log_level;
    *out_env = (mn_env){.context = (void *)(uintptr_t)&levels[level],
                        .now_ns = env_now_ns,
                        .random = env_random,
                        .allocate = env_allocate,
                        .release = env_release,
                        .reserve = env_reserve,
                        .promote = env_promote,
                        .vacate = env_vacate,
                        .unreserve = env_unreserve,
                        .storage = storage,
                        .log = env_log};
}
