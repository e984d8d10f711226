/* What a core sees of the world: a clock of its own, counted memory. Its files are disk.c's. */
#include "sim.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- Clock, chance, memory */

uint64_t sim_env_now(const sim_env *env)
{
    return env->showed_ns + (env->clock->now_ns - env->since_ns) * env->rate / 1000;
}

uint64_t sim_env_until(const sim_env *env, uint64_t ns)
{
    const uint64_t far_ns = UINT64_C(1) << 50;
    if (ns <= sim_env_now(env))
        return env->clock->now_ns;
    if (ns - env->showed_ns > far_ns)
        return UINT64_MAX;
    return env->since_ns + ((ns - env->showed_ns) * 1000 + env->rate - 1) / env->rate;
}

void sim_env_leap(sim_env *env, uint64_t ns)
{
    env->showed_ns = sim_env_now(env) + ns;
    env->since_ns = env->clock->now_ns;
    env->leaps++;
}

static uint64_t now_ns(void *context) { return sim_env_now(context); }

static uint64_t random_number(void *context) { return sim_next(&((sim_env *)context)->random); }

static void *allocate(void *context, size_t bytes)
{
    sim_env *env = context;
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    assert(memory);
    memset(memory, 0, bytes);
    env->allocated_bytes += bytes;
    return memory;
}

static void release(void *context, void *memory, size_t bytes)
{
    sim_env *env = context;
    if (!memory)
        return;
    assert(env->allocated_bytes >= bytes);
    env->allocated_bytes -= bytes;
    free(memory);
}

static void *reserve(void *context, uint64_t bytes)
{
    sim_env *env = context;
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    env->reserved_bytes += bytes;
    return memory;
}

static void promote(void *context, void *memory, uint64_t bytes)
{
    (void)context;
    (void)memory;
    (void)bytes; /* page sizes do not matter here */
}

static void vacate(void *context, void *memory, uint64_t bytes)
{
    (void)context;
    if (bytes)
        memset(memory, 0x5a, bytes); /* nobody may rely on what was there */
}

static void unreserve(void *context, void *memory, uint64_t bytes)
{
    sim_env *env = context;
    if (!memory)
        return;
    env->reserved_bytes -= bytes;
    (void)munmap(memory, bytes); /* fails only for a range that is not ours */
}

static void log_nothing(void *context, int level, const char *event, const char *key_values)
{
    (void)context;
    (void)level;
    (void)event;
    (void)key_values; /* the trace shows messages instead */
}

void sim_env_init(sim_env *env, sim_clock *clock, uint64_t seed, mn_storage *storage, bool crooked)
{
    sim_random random = {seed ^ 0xc10c};
    *env = (sim_env){.clock = clock, .random = {seed}, .rate = 1000};
    if (crooked) {
        env->since_ns = clock->now_ns;
        env->showed_ns = sim_below(&random, 10000 * SIM_S);
        env->rate = 900 + (uint32_t)sim_below(&random, 201);
    }
    env->env = (mn_env){.context = env,
                        .now_ns = now_ns,
                        .random = random_number,
                        .allocate = allocate,
                        .release = release,
                        .reserve = reserve,
                        .promote = promote,
                        .vacate = vacate,
                        .unreserve = unreserve,
                        .storage = storage,
                        .log = log_nothing};
}
