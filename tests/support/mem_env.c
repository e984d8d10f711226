/* The environment of mem_env.h. */
#include "mem_env.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static uint64_t now_ns(void *context) { return ((mem_env *)context)->now_ns; }

/* SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t next_random(void *context)
{
    mem_env *world = context;
    uint64_t z = world->random_state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static bool fails(mem_env *world) { return ++world->allocations == world->fail_at; }

static void *allocate(void *context, size_t bytes)
{
    mem_env *world = context;
    if (fails(world))
        return NULL;
    size_t rounded = (bytes + 63) / 64 * 64;
    void *memory = aligned_alloc(64, rounded ? rounded : 64);
    if (!memory)
        return NULL;
    memset(memory, 0, rounded ? rounded : 64);
    world->live_blocks++;
    world->live_bytes += bytes;
    return memory;
}

static void release(void *context, void *memory, size_t bytes)
{
    mem_env *world = context;
    if (!memory)
        return;
    assert(world->live_blocks > 0 && world->live_bytes >= bytes);
    world->live_blocks--;
    world->live_bytes -= bytes;
    free(memory);
}

static void *reserve(void *context, uint64_t bytes)
{
    mem_env *world = context;
    if (fails(world) || bytes > UINT64_C(1) << 46)
        return NULL;
    void *memory = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    world->live_reserves++;
    world->reserved_bytes += bytes;
    return memory;
}

static void promote(void *context, void *memory, uint64_t bytes)
{
    (void)context;
    (void)memory;
    (void)bytes; /* page sizes do not matter in tests */
}

static void vacate(void *context, void *memory, uint64_t bytes)
{
    mem_env *world = context;
    world->vacated_bytes += bytes;
    if (bytes)
        memset(memory, 0x5a, bytes); /* nobody may rely on what was there */
}

static void unreserve(void *context, void *memory, uint64_t bytes)
{
    mem_env *world = context;
    if (!memory)
        return;
    assert(world->live_reserves > 0 && world->reserved_bytes >= bytes);
    world->live_reserves--;
    world->reserved_bytes -= bytes;
    int failed = munmap(memory, bytes ? bytes : 1);
    assert(!failed);
}

static void log_event(void *context, int level, const char *event, const char *key_values)
{
    mem_env *world = context;
    (void)level, (void)event, (void)key_values; /* the tests count lines */
    world->events++;
}

void mem_env_init(mem_env *world, uint64_t seed)
{
    memset(world, 0, sizeof *world);
    world->now_ns = 1000000000;
    world->random_state = seed;
    world->env = (mn_env){
        .context = world,
        .now_ns = now_ns,
        .random = next_random,
        .allocate = allocate,
        .release = release,
        .reserve = reserve,
        .promote = promote,
        .vacate = vacate,
        .unreserve = unreserve,
        .log = log_event,
    };
}

bool mem_env_clean(const mem_env *world)
{
    return !world->live_blocks && !world->live_bytes && !world->live_reserves &&
           !world->reserved_bytes;
}
