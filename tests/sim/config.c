/* The many worlds: a seed chooses one. */
#include "sim.h"

static const sim_weather weathers[] = {
    {0, 0, 0, 0},      /* calm: only ordinary delays */
    {20, 20, 50, 2},   /* gusts */
    {60, 100, 150, 6}, /* a storm */
    {0, 300, 300, 0},  /* nothing is lost, much comes twice and late */
};

static const sim_disk_weather disk_weathers[] = {
    {30, 0, 0, 0},   /* shards die */
    {10, 5, 20, 0},  /* and disks fill up, and syncs fail */
    {10, 0, 150, 0}, /* a dying disk */
    {100, 0, 0, 0},  /* at nearly every operation */
    {3, 0, 0, 0},    /* now and then, also after a restore */
};
/* Mostly while a file that is written over is between its names. */
static const sim_disk_weather between_names = {2, 0, 100, 100};

/* The largest payload of a read in the scripts: four queries of six indices and weights. The vector
 * of the last rank to reduce comes and goes within one event, unseen. */
enum { READ_BYTES = 4 * 6 * 8, VECTOR_BYTES = 512 };

void sim_config_ruin(sim_config *config, enum sim_ruin ruin)
{
    bool astray = ruin == SIM_ASTRAY;
    config->ruin = ruin;
    config->weather = weathers[0];
    config->deaths = 0;
    if (astray && config->seed % 2 == 0)
        config->moves = 0; /* a write that goes astray is then one of the log or of an image */
    config->fickle = config->sloppy = config->crooked = false;
    if (!astray) {
        config->saves = config->shards_after = 0;
        config->busy_save = config->rival = config->roll_back = false;
    }
    config->deadline_ms = 20000;
    config->read_bytes_max = config->change_bytes_max = config->change_reserve_bytes = 0;
    config->steps = 3 + (uint32_t)(config->seed % 10);
    config->shard_deaths = astray ? 3 : 1;
    config->disk = (sim_disk_weather){.death = 15};
    if (!astray || config->durability == MN_DURABILITY_NONE)
        config->durability = MN_DURABILITY_PROCESS;
    if (ruin == SIM_AGED)
        config->cut_bytes = 0; /* one file, whose end goes: a hole before a later file is damage */
    else if (!config->cut_bytes && config->seed % 2)
        config->cut_bytes = 1 + (UINT64_C(8192) >> config->seed % 11);
}

static uint64_t change_bytes_of(const sim_config *config, uint32_t shards)
{
    sim_config calm = *config;
    sim_result result;
    calm.shards = shards;
    calm.shards_after = calm.deaths = 0;
    calm.prefetch = calm.sloppy = calm.reader = calm.roll_back = calm.busy_save = calm.rival =
        false;
    calm.crooked = false;
    calm.saves = calm.moves = 0;
    calm.change_bytes_max = calm.change_reserve_bytes = calm.read_bytes_max = 0;
    calm.weather = weathers[0];
    calm.durability = MN_DURABILITY_NONE;
    calm.shard_deaths = 0;
    calm.deadline_ms = 20000;
    calm.shard_plants = calm.core_plants = 0;
    calm.trace = NULL;
    sim_run(&calm, &result);
    return result.change_bytes + VECTOR_BYTES;
}

void sim_config_tighten(sim_config *config)
{
    uint64_t bytes = change_bytes_of(config, config->shards);
    if (config->shards_after) {
        uint64_t after = change_bytes_of(config, config->shards_after);
        bytes = after > bytes ? after : bytes;
    }
    config->change_bytes_max = config->change_reserve_bytes = bytes;
    config->read_bytes_max = READ_BYTES;
    config->moves = 0; /* they are of one map: whoever takes a tile needs more */
}

/* Steps are committed while an image is written, and shards die when it stands. */
static void add_images(sim_random *random, sim_config *config)
{
    config->cut_bytes = 1 + (sim_below(random, 16384) >> sim_below(random, 10));
    config->shard_deaths *= 2;
    if (sim_chance(random, 700)) {
        config->image_log_percent = 1 + (uint32_t)sim_below(random, 40);
        config->image_bytes_a_second = 1000 + sim_below(random, 20000);
    }
    if (!config->change_bytes_max) /* the smallest ones are of so many steps */
        config->steps += (uint32_t)sim_below(random, 7);
}

/* Images follow close, and leave files to be written over; of the log much is not synced. */
static void die_between_names(sim_random *random, sim_config *config)
{
    config->disk = between_names;
    config->shard_deaths += 16;
    config->cut_bytes = 1 + sim_below(random, 2000);
    config->image_log_percent = 0;
    config->image_bytes_a_second = 0;
    config->chunk_bytes = 64; /* many records, and of one size */
    config->exchanges_max = 4;
    config->prefetch = true;
}

void sim_config_of_seed(uint64_t seed, sim_config *out_config)
{
    sim_random random = {seed * 977 + 13};
    static const uint32_t chunks[] = {0, 64, 200, 600};
    sim_config config = {.seed = seed};
    config.shards = 1 + (uint32_t)sim_below(&random, SIM_SHARDS_MAX);
    config.ranks = 1 + (uint32_t)sim_below(&random, SIM_RANKS_MAX);
    config.steps = 3 + (uint32_t)sim_below(&random, 4);
    config.staleness = sim_chance(&random, 250) ? 1 + (uint32_t)sim_below(&random, 2) : 0;
    config.weather = weathers[sim_below(&random, sizeof weathers / sizeof *weathers)];
    config.deaths = sim_chance(&random, 700) ? 1 + (uint32_t)sim_below(&random, 6) : 0;
    config.chunk_bytes = chunks[sim_below(&random, sizeof chunks / sizeof *chunks)];
    config.exchanges_max = 1 + (uint32_t)sim_below(&random, 4);
    config.packed = sim_chance(&random, 500);
    config.fickle = sim_chance(&random, 300);
    config.sloppy = sim_chance(&random, 250);
    config.discards = sim_chance(&random, 300);
    config.reader = sim_chance(&random, 400);
    config.clip = sim_chance(&random, 500);
    config.prefetch = sim_chance(&random, 600);
    if (sim_chance(&random, 350)) {
        config.shards_after = 1 + (uint32_t)sim_below(&random, SIM_SHARDS_MAX);
        config.roll_back = sim_chance(&random, 500);
        config.busy_save = sim_chance(&random, 300);
    }
    config.deadline_ms = sim_chance(&random, 300) ? 500 : 20000;
    config.calm_ns = 60 * SIM_S;
    config.limit_ns = config.calm_ns + 600 * SIM_S;
    if (!config.fickle && sim_chance(&random, 200)) /* a fickle step has no fixed size */
        sim_config_tighten(&config);
    config.rival = config.shards_after && sim_chance(&random, 400);
    sim_random disks = {seed * 31337 + 5};
    config.durability = MN_DURABILITY_NONE;
    if (sim_chance(&disks, 600)) {
        config.durability = sim_chance(&disks, 300) ? MN_DURABILITY_PROCESS : MN_DURABILITY_SYNC;
        config.shard_deaths = (uint32_t)sim_below(&disks, 8);
        config.disk =
            disk_weathers[sim_below(&disks, sizeof disk_weathers / sizeof *disk_weathers)];
        config.unsynced_bytes_max = sim_chance(&disks, 300) ? 4096 : 0;
        if (sim_chance(&disks, 800))
            add_images(&disks, &config);
    }
    sim_random clocks = {seed * 7919 + 3};
    config.crooked = sim_chance(&clocks, 400);
    sim_random names = {seed * 6271 + 7};
    if (config.durability == MN_DURABILITY_SYNC && config.cut_bytes && !config.change_bytes_max &&
        sim_chance(&names, 300))
        die_between_names(&names, &config);
    if (config.shards_after && sim_chance(&clocks, 600))
        config.saves = 1 + (uint32_t)sim_below(&clocks, 6);
    sim_random moves = {seed * 104729 + 11};
    if (!config.change_bytes_max && sim_chance(&moves, 500)) /* the smallest ones are of one map */
        config.moves = 1 + (uint32_t)sim_below(&moves, 10);
    if (config.moves)
        config.steps += (uint32_t)sim_below(&moves, 5);
    *out_config = config;
}
