/* What the simulator must find, and what it must not. */
#include "sim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum { SEEDS = 250, PLANT_SEEDS = 2000, IMAGES = 500, BLACKOUT_SEEDS = 200 };

static void test_seeds_pass(void **state)
{
    uint32_t images = 0;
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        sim_config config;
        sim_result result;
        sim_config_of_seed(seed, &config);
        sim_run(&config, &result);
        images += result.images;
        if (!result.passed)
            fail_msg("seed %llu: %s", (unsigned long long)seed, result.violation);
    }
    assert_true(images > IMAGES);
}

static void test_seed_repeats_itself(void **state)
{
    (void)state;
    for (uint64_t seed = 1000; seed < 1010; seed++) {
        sim_config config;
        sim_result once, again;
        sim_config_of_seed(seed, &config);
        sim_run(&config, &once);
        sim_run(&config, &again);
        assert_int_equal(once.messages, again.messages);
        assert_int_equal(once.events, again.events);
        assert_int_equal(once.ended_ns, again.ended_ns);
        assert_int_equal(once.tables_hash, again.tables_hash);
    }
}

/* Every planted bug is found; `plant` 0 would not be. */
static void test_plants_are_found(void **state)
{
    static const struct {
        const char *name;
        uint32_t shard, core;
    } plants[] = {
        {"NO_FENCE", MN_PLANT_NO_FENCE, 0},
        {"NO_DEDUP", MN_PLANT_NO_DEDUP, 0},
        {"NO_COUNT", MN_PLANT_NO_COUNT, 0},
        {"READ_EARLY", MN_PLANT_READ_EARLY, 0},
        {"ARRIVAL_ORDER", MN_PLANT_ARRIVAL_ORDER, 0},
        {"NO_EPOCH", MN_PLANT_NO_EPOCH, 0},
        {"KEEP_ON_REPLAY", MN_PLANT_KEEP_ON_REPLAY, 0},
        {"ACK_UNSYNCED", MN_PLANT_ACK_UNSYNCED, 0},
        {"SYNC_AGAIN", MN_PLANT_SYNC_AGAIN, 0},
        {"TORN_RECORD", MN_PLANT_TORN_RECORD, 0},
        {"OLD_EPOCH", MN_PLANT_OLD_EPOCH, 0},
        {"LOG_NO_JOIN", MN_PLANT_LOG_NO_JOIN, 0},
        {"LOG_NO_SEAL", MN_PLANT_LOG_NO_SEAL, 0},
        {"LOG_LATE", MN_PLANT_LOG_LATE, 0},
        {"NO_KEEP", MN_PLANT_NO_KEEP, 0},
        {"IMAGE_NO_KEEP", MN_PLANT_IMAGE_NO_KEEP, 0},
        {"IMAGE_NO_WINDOW", MN_PLANT_IMAGE_NO_WINDOW, 0},
        {"IMAGE_EARLY", MN_PLANT_IMAGE_EARLY, 0},
        {"IMAGE_UNSYNCED", MN_PLANT_IMAGE_UNSYNCED, 0},
        {"IMAGE_SKIP", MN_PLANT_IMAGE_SKIP, 0},
        {"NEW_KEY", 0, MN_CORE_PLANT_NEW_KEY},
        {"NO_TORN", 0, MN_CORE_PLANT_NO_TORN},
        {"NO_REPLAY", 0, MN_CORE_PLANT_NO_REPLAY},
    };
    (void)state;
    for (size_t i = 0; i < sizeof plants / sizeof *plants; i++) {
        sim_result result = {.passed = true};
        uint64_t seed = 0;
        while (result.passed && seed < PLANT_SEEDS) {
            sim_config config;
            sim_config_of_seed(++seed, &config);
            config.shard_plants = plants[i].shard;
            config.core_plants = plants[i].core;
            sim_run(&config, &result);
        }
        if (result.passed)
            fail_msg("%s is not found in %d seeds", plants[i].name, PLANT_SEEDS);
        print_message("%s is found by seed %llu: %s\n", plants[i].name, (unsigned long long)seed,
                      result.violation);
    }
}

/* A shard comes back with an older log at level process: no call waits to its deadline, none is
 * told anything but LOST, and what goes on to the end has the model's tables. */
static uint32_t blackouts(uint32_t plants, sim_result *out_failed)
{
    uint32_t lost = 0;
    for (uint64_t seed = 1; seed <= BLACKOUT_SEEDS; seed++) {
        sim_config config;
        sim_result result;
        sim_config_of_seed(seed, &config);
        sim_config_blackout(&config);
        config.shard_plants = plants;
        sim_run(&config, &result);
        lost += result.lost;
        if (!result.passed) {
            *out_failed = result;
            return (uint32_t)seed;
        }
    }
    print_message("%u of %d blackouts end with LOST\n", lost, BLACKOUT_SEEDS);
    assert_true(lost >= BLACKOUT_SEEDS / 4);
    return 0;
}

static void test_blackouts_are_told(void **state)
{
    (void)state;
    sim_result failed;
    uint32_t seed = blackouts(0, &failed);
    if (seed)
        fail_msg("seed %u: %s", seed, failed.violation);
    seed = blackouts(MN_PLANT_NO_SETTLED, &failed);
    if (!seed)
        fail_msg("NO_SETTLED is not found in %d seeds", BLACKOUT_SEEDS);
    print_message("NO_SETTLED is found by seed %u: %s\n", seed, failed.violation);
}

/* Three trainers that ask ahead, with the smallest legal budgets. */
static void tight_config(uint64_t seed, sim_config *out_config)
{
    sim_config config;
    sim_config_of_seed(seed, &config);
    config.ranks = 3;
    config.shards = 1 + seed % SIM_SHARDS_MAX;
    config.shards_after = 0;
    config.busy_save = false;
    config.fickle = config.sloppy = false;
    config.prefetch = true;
    config.deadline_ms = 20000;
    sim_config_tighten(&config);
    *out_config = config;
}

static void test_smallest_budgets_finish(void **state)
{
    (void)state;
    uint32_t stuck = 0;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        sim_config config;
        sim_result result;
        tight_config(seed, &config);
        sim_run(&config, &result);
        if (!result.passed)
            fail_msg("seed %llu: %s", (unsigned long long)seed, result.violation);
        config.shard_plants = MN_PLANT_ONE_BUDGET;
        sim_run(&config, &result);
        stuck += !result.passed && strstr(result.violation, "not finished") != NULL;
    }
    print_message("with one budget %u of 10 worlds do not finish\n", stuck);
    assert_true(stuck > 0);
}

/* The same scripts give the same tables whatever the network does and however many shards serve. */
static void test_bits_do_not_depend_on_shards_or_weather(void **state)
{
    static const uint32_t counts[] = {1, 2, 3, 5};
    static const sim_weather weathers[] = {{0, 0, 0, 0}, {60, 200, 150, 6}};
    (void)state;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        uint64_t hash = 0;
        for (uint32_t i = 0; i < 8; i++) {
            sim_config config;
            sim_result result;
            sim_config_of_seed(seed, &config);
            config.fickle = config.sloppy = false;
            config.ranks = 2;
            config.staleness = config.shards_after = config.deaths = 0;
            config.busy_save = config.discards = false;
            config.change_bytes_max = config.change_reserve_bytes = config.read_bytes_max = 0;
            config.shards = counts[i / 2];
            config.weather = weathers[i % 2];
            sim_run(&config, &result);
            assert_true(result.passed);
            if (i && result.tables_hash != hash)
                fail_msg("seed %llu: %u shards in weather %u give other bits",
                         (unsigned long long)seed, config.shards, i % 2);
            hash = result.tables_hash;
        }
    }
}

/* The hash by which bits are compared tells one seed's tables from another's. */
static void test_other_intents_give_other_bits(void **state)
{
    sim_config config;
    sim_result one, other;
    (void)state;
    sim_config_of_seed(1, &config);
    sim_run(&config, &one);
    sim_config_of_seed(2, &config);
    sim_run(&config, &other);
    assert_int_not_equal(one.tables_hash, other.tables_hash);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_seeds_pass),
        cmocka_unit_test(test_seed_repeats_itself),
        cmocka_unit_test(test_plants_are_found),
        cmocka_unit_test(test_blackouts_are_told),
        cmocka_unit_test(test_smallest_budgets_finish),
        cmocka_unit_test(test_bits_do_not_depend_on_shards_or_weather),
        cmocka_unit_test(test_other_intents_give_other_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
