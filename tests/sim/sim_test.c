/* What the simulator must find, and what it must not. */
#include "sim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum {
    SEEDS = 250,
    PLANT_SEEDS = 2000,
    IMAGES = 500,
    MOVES = 40,
    RUIN_SEEDS = 80,
    CLOCK_SEEDS = 15
};

static void test_seeds_pass(void **state)
{
    uint32_t images = 0, moves = 0;
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        sim_config config;
        sim_result result;
        sim_config_of_seed(seed, &config);
        sim_run(&config, &result);
        images += result.images;
        moves += result.moves;
        if (!result.passed)
            fail_msg("seed %llu: %s", (unsigned long long)seed, result.violation);
    }
    assert_true(images > IMAGES && moves > MOVES);
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

/* Deadlines that travel as times serve where all clocks agree, and are found where they do not. */
static void test_crooked_clocks(void **state)
{
    uint32_t found = 0;
    (void)state;
    for (uint64_t seed = 1; seed <= CLOCK_SEEDS; seed++) {
        sim_config config;
        sim_result result;
        sim_config_of_seed(seed, &config);
        config.shard_plants = MN_PLANT_ABSOLUTE;
        config.core_plants = MN_CORE_PLANT_ABSOLUTE;
        config.crooked = false;
        sim_run(&config, &result);
        if (!result.passed)
            fail_msg("seed %llu: %s", (unsigned long long)seed, result.violation);
        config.crooked = true;
        sim_run(&config, &result);
        found += !result.passed;
    }
    print_message("deadlines as times are found in %u of %d worlds with crooked clocks\n", found,
                  CLOCK_SEEDS);
    assert_true(found >= CLOCK_SEEDS / 2);
}

/* Every planted bug is found; `plant` 0 would not be. */
struct plant {
    const char *name;
    uint64_t shard;
    uint32_t core;
    enum sim_ruin ruin;
    uint64_t first;   /* seed to look from, where none before finds it: 0: the first */
    const char *says; /* so that the check meant is the one that finds it; NULL: any */
};

static void find_plant(const struct plant *plant)
{
    sim_result result = {.passed = true};
    uint64_t seed = plant->first ? plant->first - 1 : 0;
    const uint64_t last = seed + PLANT_SEEDS;
    while (result.passed && seed < last) {
        sim_config config;
        sim_config_of_seed(++seed, &config);
        if (plant->ruin)
            sim_config_ruin(&config, plant->ruin);
        config.shard_plants = plant->shard;
        config.core_plants = plant->core;
        sim_run(&config, &result);
    }
    if (result.passed)
        fail_msg("%s is not found in %d seeds", plant->name, PLANT_SEEDS);
    print_message("%s is found by seed %llu: %s\n", plant->name, (unsigned long long)seed,
                  result.violation);
    if (plant->says && !strstr(result.violation, plant->says))
        fail_msg("%s is found otherwise than by \"%s\"", plant->name, plant->says);
}

static void test_plants_are_found(void **state)
{
    static const struct plant plants[] = {
        {"NO_FENCE", MN_PLANT_NO_FENCE, 0, SIM_SOUND, 0, NULL},
        {"NO_DEDUP", MN_PLANT_NO_DEDUP, 0, SIM_SOUND, 0, NULL},
        {"NO_COUNT", MN_PLANT_NO_COUNT, 0, SIM_SOUND, 0, NULL},
        {"READ_EARLY", MN_PLANT_READ_EARLY, 0, SIM_SOUND, 0, NULL},
        {"ARRIVAL_ORDER", MN_PLANT_ARRIVAL_ORDER, 0, SIM_SOUND, 0, NULL},
        {"NO_EPOCH", MN_PLANT_NO_EPOCH, 0, SIM_SOUND, 0, NULL},
        {"KEEP_ON_REPLAY", MN_PLANT_KEEP_ON_REPLAY, 0, SIM_SOUND, 0, NULL},
        {"ACK_UNSYNCED", MN_PLANT_ACK_UNSYNCED, 0, SIM_SOUND, 0, NULL},
        {"SYNC_AGAIN", MN_PLANT_SYNC_AGAIN, 0, SIM_SOUND, 0, NULL},
        {"TORN_RECORD", MN_PLANT_TORN_RECORD, 0, SIM_SOUND, 0, NULL},
        {"OLD_EPOCH", MN_PLANT_OLD_EPOCH, 0, SIM_SOUND, 0, NULL},
        {"LOG_NO_JOIN", MN_PLANT_LOG_NO_JOIN, 0, SIM_SOUND, 0, NULL},
        {"LOG_NO_SEAL", MN_PLANT_LOG_NO_SEAL, 0, SIM_SOUND, 0, NULL},
        {"LOG_LATE", MN_PLANT_LOG_LATE, 0, SIM_SOUND, 0, NULL},
        {"NO_KEEP", MN_PLANT_NO_KEEP, 0, SIM_SOUND, 0, NULL},
        {"IMAGE_NO_KEEP", MN_PLANT_IMAGE_NO_KEEP, 0, SIM_SOUND, 0, NULL},
        {"IMAGE_NO_WINDOW", MN_PLANT_IMAGE_NO_WINDOW, 0, SIM_SOUND, 0, NULL},
        {"IMAGE_EARLY", MN_PLANT_IMAGE_EARLY, 0, SIM_SOUND, 0, NULL},
        {"IMAGE_UNSYNCED", MN_PLANT_IMAGE_UNSYNCED, 0, SIM_SOUND, 0, NULL},
        {"IMAGE_SKIP", MN_PLANT_IMAGE_SKIP, 0, SIM_SOUND, 0, NULL},
        {"NEW_KEY", 0, MN_CORE_PLANT_NEW_KEY, SIM_SOUND, 0, NULL},
        {"NO_TORN", 0, MN_CORE_PLANT_NO_TORN, SIM_SOUND, 0, NULL},
        {"NO_REPLAY", 0, MN_CORE_PLANT_NO_REPLAY, SIM_SOUND, 0, NULL},
        {"NO_DEADLINE", 0, MN_CORE_PLANT_NO_DEADLINE, SIM_SOUND, 0, "after its deadline"},
        {"RELEASE_FIRST", 0, MN_CORE_PLANT_RELEASE_FIRST, SIM_SOUND, 0, "no shard holds tiles"},
        {"OLD_CUT", 0, MN_CORE_PLANT_OLD_CUT, SIM_SOUND, 0, "INCOMPLETE"},
        {"MOVE_NO_HOLD", MN_PLANT_MOVE_NO_HOLD, 0, SIM_SOUND, 0, NULL},
        {"MOVE_NO_VERSION", MN_PLANT_MOVE_NO_VERSION, 0, SIM_SOUND, 0, NULL},
        {"MOVE_ANY_NUMBER", MN_PLANT_MOVE_ANY_NUMBER, 0, SIM_SOUND, 0, NULL},
        {"LOG_NO_MOVE", MN_PLANT_LOG_NO_MOVE, 0, SIM_SOUND, 0, NULL},
        {"NO_SETTLED", MN_PLANT_NO_SETTLED, 0, SIM_AGED, 0, NULL},
        {"SPARES_LEFT", MN_PLANT_SPARES_LEFT, 0, SIM_SOUND, 15300, "cannot recover"},
        {"STALE_TILE", MN_PLANT_STALE_TILE, 0, SIM_SOUND, 0, "is not the model's"},
        {"NO_TOLD", MN_PLANT_NO_TOLD, 0, SIM_AGED, 0, "NOT_FOUND"},
        {"ANY_SEQUENCE", MN_PLANT_ANY_SEQUENCE, 0, SIM_ASTRAY, 900, NULL},
        {"PASS_DAMAGE", MN_PLANT_PASS_DAMAGE, 0, SIM_ASTRAY, 0, NULL},
        {"ANY_CHUNK", MN_PLANT_ANY_CHUNK, 0, SIM_ASTRAY, 500, "is not the model's"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof plants / sizeof *plants; i++)
        find_plant(&plants[i]);
}

/* Disks break their word: no call waits to its deadline, none is told anything but what was lost,
 * no shard serves what is damaged, and what goes on to the end has the model's tables. */
static void test_ruins_are_told(void **state)
{
    /* Of RUIN_SEEDS worlds, at least so many end because a caller, or a shard that starts, says
     * so. */
    static const uint32_t told[SIM_RUINS] = {0, 25, 12, 0, 35},
                          refused[SIM_RUINS] = {0, 0, 25, 15, 0};
    (void)state;
    for (enum sim_ruin ruin = SIM_AGED; ruin < SIM_RUINS; ruin++) {
        uint32_t lost = 0, stopped = 0;
        for (uint64_t seed = 1; seed <= RUIN_SEEDS; seed++) {
            sim_config config;
            sim_result result;
            sim_config_of_seed(seed, &config);
            sim_config_ruin(&config, ruin);
            sim_run(&config, &result);
            lost += result.lost;
            stopped += result.refused;
            if (!result.passed)
                fail_msg("%s, seed %llu: %s", sim_ruin_name(ruin), (unsigned long long)seed,
                         result.violation);
        }
        print_message("%s: %u of %d worlds end with a caller that is told, %u with a shard that "
                      "does not start\n",
                      sim_ruin_name(ruin), lost, RUIN_SEEDS, stopped);
        assert_true(lost >= told[ruin] && stopped >= refused[ruin]);
    }
}

static void put(mn_storage *storage, const char *path, const char *over, const char *text,
                bool renamed)
{
    mn_file *file = NULL;
    assert_int_equal(storage->create_stream(storage, path, over, true, &file, NULL), MN_OK);
    assert_int_equal(storage->append(file, text, strlen(text), NULL), MN_OK);
    assert_int_equal(storage->sync(file, NULL), MN_OK);
    storage->close(file);
    if (renamed)
        assert_int_equal(storage->rename(storage, path, "f/new", NULL), MN_OK);
}

static bool holds(mn_storage *storage, const char *path, const char *text)
{
    mn_file *file = NULL;
    char bytes[8] = "";
    if (storage->open(storage, path, &file, NULL))
        return false;
    assert_int_equal(storage->read(file, 0, bytes, strlen(text), NULL), MN_OK);
    storage->close(file);
    return !strcmp(bytes, text);
}

/* Power may give a file that is written over its old name back, with what was synced since. Once
 * the folder is synced it does not. */
static void test_names_hang(void **state)
{
    (void)state;
    uint32_t old = 0, hung = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        sim_files *files = sim_files_create();
        sim_clock clock = {0};
        sim_random random = {seed};
        sim_disk disk;
        sim_disk_init(&disk, files, &clock, &random);
        mn_storage *storage = &disk.base;
        put(storage, "f/a", NULL, "first", true);
        put(storage, "f/b", "f/new", "again", seed % 2);
        (void)sim_disk_restart(&disk, false);
        old += holds(storage, "f/new", "again") && seed % 2 == 0;
        hung += holds(storage, "f/b", "again");
        assert_true(holds(storage, seed % 2 || holds(storage, "f/new", "again") ? "f/new" : "f/b",
                          "again"));
        sim_files_destroy(files);
    }
    print_message("of 20 names that were not synced %u went back\n", old);
    assert_true(old >= 5 && hung >= 5 && old + hung == 20);
}

/* A call that began while the harmed file had its name may tell of it; a later one may not. */
static void test_harm_is_known_while_it_may_be_told(void **state)
{
    (void)state;
    sim_files *files = sim_files_create();
    sim_clock clock = {0};
    sim_random random = {1};
    sim_disk disk;
    sim_disk_init(&disk, files, &clock, &random);
    disk.faulty = true;
    sim_files_stray(files, 2);
    put(&disk.base, "f/a", NULL, "whole", true);
    assert_false(sim_files_name_harm(files, "f/new", 0));
    put(&disk.base, "f/b", NULL, "harmed", true);
    disk.dead = false;
    clock.now_ns = 5;
    assert_true(sim_files_strayed(files) && sim_files_name_harm(files, "f/new is damaged", 5));
    put(&disk.base, "f/c", NULL, "again", true);
    assert_true(sim_files_name_harm(files, "f/new is damaged", 5));
    assert_false(sim_files_name_harm(files, "f/new is damaged", 6));
    sim_files_destroy(files);
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
        cmocka_unit_test(test_crooked_clocks),
        cmocka_unit_test(test_plants_are_found),
        cmocka_unit_test(test_ruins_are_told),
        cmocka_unit_test(test_names_hang),
        cmocka_unit_test(test_harm_is_known_while_it_may_be_told),
        cmocka_unit_test(test_smallest_budgets_finish),
        cmocka_unit_test(test_bits_do_not_depend_on_shards_or_weather),
        cmocka_unit_test(test_other_intents_give_other_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
