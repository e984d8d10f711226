/* The simulator's program: runs seeds, prints each that fails, and exits with 1 if any did. */
#include "sim.h"

#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: sim_run [--seeds N] [--first SEED] [--ruin KIND] [--trace] [--shard-plants BITS]\n"
    "               [--core-plants BITS]\n"
    "\n"
    "Simulates shards and trainers under faults, one virtual world a seed, and checks after every\n"
    "event what Mneme promises. --ruin: a disk that breaks its word: aged (a shard comes back "
    "with\n"
    "an older log), power (all do, with holes), astray (a write lands elsewhere), emptied (a "
    "shard\n"
    "comes back with nothing). A failing seed is printed with what was violated; --seeds 1 --first "
    "SEED --trace shows the same world "
    "again, message by message.\n";

/* Writes one world's settings, so that a failing seed can be understood at a glance. */
static void describe(const sim_config *c)
{
    printf(
        "  shards %u then %u, ranks %u, steps %u, staleness %u, deaths %u, chunk %u, window %u,"
        " deadline %llu ms, saves %u, moves %u, changes %llu bytes,%s%s%s%s%s%s%s%s%s%s%s weather "
        "%u/%u/%u/%u, log %s,"
        " disk %u/%u/%u, shard deaths %u, cut %llu\n",
        c->shards, c->shards_after, c->ranks, c->steps, c->staleness, c->deaths, c->chunk_bytes,
        c->exchanges_max, (unsigned long long)c->deadline_ms, c->saves, c->moves,
        (unsigned long long)c->change_bytes_max, c->packed ? " packed" : "",
        c->fickle ? " fickle" : "", c->sloppy ? " sloppy" : "", c->discards ? " discards" : "",
        c->reader ? " reader" : "", c->clip ? " clip" : "", c->prefetch ? " prefetch" : "",
        c->roll_back ? " roll_back" : "", c->busy_save ? " busy_save" : "",
        c->rival ? " rival" : "", c->crooked ? " crooked" : "", c->weather.lost, c->weather.doubled,
        c->weather.slow, c->weather.cut, mn_durability_name(c->durability), c->disk.death,
        c->disk.full, c->disk.unsynced, c->shard_deaths, (unsigned long long)c->cut_bytes);
}

static enum sim_ruin ruin_of(const char *name)
{
    enum sim_ruin ruin = SIM_RUINS - 1;
    while (ruin && strcmp(name, sim_ruin_name(ruin)) != 0)
        ruin--;
    return ruin;
}

int main(int count, char **arguments)
{
    uint64_t seeds = 100, first = 1, failed = 0, messages = 0, events = 0, images = 0;
    uint64_t lost = 0, refused = 0, moves = 0;
    uint64_t shard_plants = 0;
    uint32_t core_plants = 0;
    enum sim_ruin ruin = SIM_SOUND;
    bool trace = false;
    for (int i = 1; i < count; i++) {
        const char *value = i + 1 < count ? arguments[i + 1] : NULL;
        if (!strcmp(arguments[i], "--trace")) {
            trace = true;
            continue;
        }
        if (!strcmp(arguments[i], "--seeds") && value)
            seeds = strtoull(value, NULL, 0);
        else if (!strcmp(arguments[i], "--first") && value)
            first = strtoull(value, NULL, 0);
        else if (!strcmp(arguments[i], "--shard-plants") && value)
            shard_plants = strtoull(value, NULL, 0);
        else if (!strcmp(arguments[i], "--core-plants") && value)
            core_plants = (uint32_t)strtoul(value, NULL, 0);
        else if (!strcmp(arguments[i], "--ruin") && value && ruin_of(value))
            ruin = ruin_of(value);
        else {
            fputs(usage, stderr);
            return 2;
        }
        i++;
    }
    for (uint64_t seed = first; seed < first + seeds; seed++) {
        sim_config config;
        sim_result result;
        sim_config_of_seed(seed, &config);
        if (ruin)
            sim_config_ruin(&config, ruin);
        config.trace = trace ? stdout : NULL;
        config.shard_plants = shard_plants;
        config.core_plants = core_plants;
        sim_run(&config, &result);
        messages += result.messages;
        events += result.events;
        images += result.images;
        moves += result.moves;
        lost += result.lost;
        refused += result.refused;
        if (result.passed)
            continue;
        failed++;
        printf("seed %llu: %s\n", (unsigned long long)seed, result.violation);
        describe(&config);
        fflush(stdout);
    }
    if (ruin)
        printf("%llu losses told to callers, %llu found by shards\n", (unsigned long long)lost,
               (unsigned long long)refused);
    printf("%llu messages, %llu events, %llu images, %llu moves; %llu of %llu seeds passed\n",
           (unsigned long long)messages, (unsigned long long)events, (unsigned long long)images,
           (unsigned long long)moves, (unsigned long long)(seeds - failed),
           (unsigned long long)seeds);
    return failed != 0;
}
