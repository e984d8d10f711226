/* Time and chance: a heap of events in virtual time and a seeded generator. */
#include "sim.h"

#include <assert.h>
#include <stdlib.h>

/* splitmix64 (Steele, Lea, Flood, OOPSLA'14): every state is a good one, seeds may be 0, 1, 2. */
uint64_t sim_next(sim_random *random)
{
    uint64_t z = random->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint64_t sim_below(sim_random *random, uint64_t end) { return sim_next(random) % end; }

bool sim_chance(sim_random *random, uint32_t per_mille)
{
    return sim_below(random, 1000) < per_mille;
}

float sim_float(sim_random *random)
{
    return (float)((int)sim_below(random, 4096) - 2048) / 2048.0f;
}

static bool earlier(const sim_event *a, const sim_event *b)
{
    return a->at_ns < b->at_ns || (a->at_ns == b->at_ns && a->sequence < b->sequence);
}

void sim_clock_deinit(sim_clock *clock)
{
    free(clock->heap);
    clock->heap = NULL;
    clock->count = clock->capacity = 0;
}

void sim_after(sim_clock *clock, uint64_t delay_ns, void (*run)(void *argument), void *argument)
{
    if (clock->count == clock->capacity) {
        clock->capacity = clock->capacity ? 2 * clock->capacity : 256;
        clock->heap = realloc(clock->heap, clock->capacity * sizeof *clock->heap);
        assert(clock->heap);
    }
    sim_event event = {clock->now_ns + delay_ns, clock->sequence++, run, argument};
    size_t i = clock->count++;
    for (; i && earlier(&event, &clock->heap[(i - 1) / 2]); i = (i - 1) / 2)
        clock->heap[i] = clock->heap[(i - 1) / 2];
    clock->heap[i] = event;
}

uint64_t sim_clock_next_ns(const sim_clock *clock)
{
    return clock->count ? clock->heap[0].at_ns : UINT64_MAX;
}

void sim_clock_run_one(sim_clock *clock)
{
    assert(clock->count);
    sim_event first = clock->heap[0], last = clock->heap[--clock->count];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child + 1 < clock->count && earlier(&clock->heap[child + 1], &clock->heap[child]))
            child++;
        if (child >= clock->count || !earlier(&clock->heap[child], &last))
            break;
        clock->heap[i] = clock->heap[child];
        i = child;
    }
    clock->heap[i] = last;
    if (first.at_ns > clock->now_ns)
        clock->now_ns = first.at_ns;
    first.run(first.argument);
}
