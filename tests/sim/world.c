/* The world: shards, lives, their ends, the restore in the middle, and what must hold after every
 * event. */
#include "sim.h"

#include <assert.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

void sim_violation(sim_world *world, const char *format, ...)
{
    va_list arguments;
    if (world->failed)
        return;
    world->failed = true;
    va_start(arguments, format);
    (void)vsnprintf(world->violation, sizeof world->violation, format, arguments);
    va_end(arguments);
    sim_trace(world, "VIOLATION: %s", world->violation);
}

void sim_trace(sim_world *world, const char *format, ...)
{
    va_list arguments;
    if (!world->config.trace)
        return;
    (void)fprintf(world->config.trace, "%9.3f ms ", (double)world->clock.now_ns / 1e6);
    va_start(arguments, format);
    (void)vfprintf(world->config.trace, format, arguments);
    va_end(arguments);
    (void)fputc('\n', world->config.trace);
}

bool sim_world_stormy(const sim_world *world)
{
    return world->clock.now_ns < world->config.calm_ns;
}

/* ---- Shards */

static void start_shard(sim_world *world, uint32_t i)
{
    const sim_config *config = &world->config;
    sim_shard *shard = &world->shards[i];
    mn_shard_options options = {.shard = i,
                                .shards = world->shard_count,
                                .read_bytes_max = config->read_bytes_max,
                                .change_bytes_max = config->change_bytes_max,
                                .change_reserve_bytes = config->change_reserve_bytes,
                                .groups_max = 2,
                                .tables_max = 4,
                                .reduces_max = 16,
                                .durability = config->durability,
                                .ignore_other_logs = true,
                                .log_unsynced_bytes_max = config->unsynced_bytes_max,
                                .log_cut_bytes = config->cut_bytes,
                                .log_cut_percent = 1,
                                .image_log_percent = config->image_log_percent,
                                .image_bytes_a_second = config->image_bytes_a_second,
                                .plants = config->shard_plants};
    mn_error error = {0};
    uint64_t seed = config->seed + i + UINT64_C(1000003) * shard->lives++;
    shard->due_ns = 0;
    shard->disk.weather = config->disk;
    sim_env_init(&shard->env, &world->clock, seed, &shard->disk.base, config->crooked);
    if (mn_shard_create(&options, &shard->env.env, &shard->core, &error) && !shard->disk.dead)
        sim_violation(world, "shard %u was not created: %s %s", i, error.field, error.message);
}

static void create_shards(sim_world *world, uint32_t count)
{
    world->shard_count = count;
    for (uint32_t i = 0; i < count; i++) {
        world->shards[i] = (sim_shard){.due_ns = 0};
        sim_disk_init(&world->shards[i].disk, world->files, &world->clock, &world->disks);
        world->shards[i].disk.loose = world->config.durability == MN_DURABILITY_PROCESS;
        start_shard(world, i);
    }
}

static void destroy_shard(sim_world *world, uint32_t i)
{
    sim_shard *shard = &world->shards[i];
    mn_shard *core = shard->core;
    shard->core = NULL;
    mn_shard_destroy(core);
    if (shard->env.allocated_bytes || shard->env.reserved_bytes)
        sim_violation(world, "shard %u: %llu bytes are still allocated, %llu reserved", i,
                      (unsigned long long)shard->env.allocated_bytes,
                      (unsigned long long)shard->env.reserved_bytes);
}

static void destroy_shards(sim_world *world)
{
    for (uint32_t i = 0; i < world->shard_count; i++) {
        destroy_shard(world, i);
        world->images += world->shards[i].disk.images;
    }
}

/* ---- A shard's death and return */

typedef struct shard_return {
    sim_world *world;
    uint32_t shard, count; /* of the map that it belongs to */
} shard_return;

static void return_shard(void *argument)
{
    shard_return *r = argument;
    sim_world *world = r->world;
    sim_shard *shard = &world->shards[r->shard];
    if (r->count == world->shard_count && !shard->core && !world->finished) {
        bool power =
            world->config.durability != MN_DURABILITY_SYNC || sim_chance(&world->disks, 400);
        sim_trace(world, "shard %u returns, %s", r->shard, power ? "killed" : "power was lost");
        if (world->config.ruin)
            sim_ruin_return(world, r->shard);
        else
            (void)sim_disk_restart(&shard->disk, power); /* what goes was not promised */
        shard->away = false;
        start_shard(world, r->shard);
    }
    free(r);
}

/* Its disk says that it is dead: what it still does in this event was never seen. What it told
 * before was: a commit may be answered, and the next operation be the last. */
static void bury_shard(sim_world *world, uint32_t i)
{
    sim_shard *shard = &world->shards[i];
    sim_trace(world, "shard %u dies", i);
    shard->away = true;
    if (shard->told_epoch == world->epoch && shard->told_step > world->model.step)
        sim_follow(world, i, shard->told_step);
    destroy_shard(world, i);
    if (world->shard_deaths_left)
        world->shard_deaths_left--;
    world->shard_deaths++;
    for (uint32_t j = 0; world->config.ruin == SIM_POWER && j < world->shard_count; j++)
        world->shards[j].disk.dead = true;
    if (i == 0 && !shard->told_epoch)
        world->epoch = 0; /* it may draw another */
    shard->epoch = shard->told_epoch;
    shard->step = shard->told_step;
    shard_return *r = malloc(sizeof *r);
    assert(r);
    *r = (shard_return){world, i, world->shard_count};
    sim_after(&world->clock, sim_below(&world->disks, SIM_S), return_shard, r);
}

static void mind_disks(sim_world *world)
{
    for (uint32_t i = 0; i < world->shard_count; i++) {
        sim_shard *shard = &world->shards[i];
        shard->disk.faulty = sim_world_stormy(world) && !world->finished;
        shard->disk.weather.death = world->shard_deaths_left ? world->config.disk.death : 0;
        if (sim_files_strayed(world->files)) /* it will look what it finds */
            shard->disk.weather.death *= 4;
        if (shard->disk.dead && !shard->away)
            bury_shard(world, i);
        mn_error error = {0};
        enum mn_status state = shard->core ? mn_shard_state(shard->core, &error) : MN_OK;
        if (state && state != MN_UNAVAILABLE && !shard->disk.dead &&
            !sim_ruin_stops_shard(world, i, state, &error))
            sim_violation(world, "shard %u cannot recover: %s", i, error.message);
    }
}

bool sim_world_answers(sim_world *world, uint32_t i, const mn_call *call)
{
    sim_shard *shard = &world->shards[i];
    if (shard->disk.dead || !shard->core)
        return false;
    enum mn_status status = call->reply.status;
    enum mn_verb verb = call->request.verb;
    bool foretold = verb == MN_VERB_RESTORE && call->request.files == MN_FILES_CHECK;
    if ((status && mn_status_retryable(status)) || status == MN_CANCELLED || foretold ||
        verb == MN_VERB_STATUS || call->reply.map_epoch < shard->told_epoch)
        return true;
    if (call->reply.map_epoch > shard->told_epoch)
        shard->told_step = 0;
    shard->told_epoch = call->reply.map_epoch;
    if (call->reply.step > shard->told_step)
        shard->told_step = call->reply.step;
    return true;
}

/* ---- Lives */

static void start_rank(sim_world *world, uint32_t rank)
{
    if (world->life_count == SIM_LIVES_MAX)
        return;
    for (uint32_t i = 0; i < world->life_count; i++) {
        /* One that joins later would overtake its successor: also a right course, but not this. */
        if (!world->lives[i]->reader && world->lives[i]->rank == rank &&
            world->lives[i]->phase == SIM_JOINING)
            sim_life_kill(world->lives[i]);
    }
    sim_life *life = sim_life_create(world, rank, false);
    world->current[rank] = life->number;
    sim_trace(world, "life %u begins as rank %u", life->number, rank);
    sim_life_start(life);
}

void sim_world_joined(sim_life *life)
{
    for (uint32_t i = 0; i < life->world->life_count; i++) {
        sim_life *other = life->world->lives[i];
        if (other->reader || other->rank != life->rank || other->number >= life->number ||
            other->overtaken)
            continue;
        other->overtaken = true;
        other->overtaken_ns = life->world->clock.now_ns;
    }
}

typedef struct revival {
    sim_world *world;
    uint32_t rank;
} revival;

static void revive(void *argument)
{
    revival *r = argument;
    if (!r->world->finished &&
        (r->world->stage == SIM_TRAINING || r->world->stage == SIM_TRAINING_ON))
        start_rank(r->world, r->rank);
    free(r);
}

/* Ends a rank's life, or lets its successor start while it still runs. */
static void strike(sim_world *world)
{
    uint32_t rank = (uint32_t)sim_below(&world->deaths, world->config.ranks);
    if (!world->current[rank] || world->life_count + 8 > SIM_LIVES_MAX)
        return;
    world->deaths_left--;
    if (sim_chance(&world->deaths, 700))
        sim_life_kill(world->lives[world->current[rank] - 1]);
    revival *r = malloc(sizeof *r);
    assert(r);
    *r = (revival){world, rank};
    sim_after(&world->clock, sim_below(&world->deaths, 2 * SIM_S), revive, r);
}

static bool all_rest(const sim_world *world)
{
    for (uint32_t rank = 0; rank < world->config.ranks; rank++) {
        if (!world->current[rank] || world->lives[world->current[rank] - 1]->phase != SIM_RESTING)
            return false;
    }
    return true;
}

static void wake_all(sim_world *world)
{
    for (uint32_t i = 0; i < world->life_count; i++)
        sim_life_wake(world->lives[i]);
}

/* ---- Save, load, the end */

static void operate(sim_world *world, enum sim_stage stage, enum mn_operation_kind kind)
{
    world->stage = stage;
    sim_life_serve(sim_life_create(world, 0, true), kind);
}

static void give_up(void *argument)
{
    sim_life *life = argument;
    if (life->phase == SIM_SERVING)
        sim_life_kill(life);
}

/* Into the folder in which the other one lies, or will: each is whole, or as if it never was. */
static void save_aside(sim_world *world)
{
    if (world->life_count + 12 > SIM_LIVES_MAX)
        return;
    world->saves_left--;
    sim_life *life = sim_life_create(world, 0, true);
    life->aside = true;
    sim_trace(world, "life %u saves aside", life->number);
    sim_life_serve(life, MN_OP_SAVE);
    /* Given up halfway, or at the latest when it stands in the way of others for too long. */
    uint64_t patience =
        sim_chance(&world->deaths, 400) ? sim_below(&world->deaths, SIM_S) : 4 * SIM_S;
    sim_after(&world->clock, patience, give_up, life);
}

static void move_aside(sim_world *world)
{
    if (world->life_count + 12 > SIM_LIVES_MAX)
        return;
    world->moves_left--;
    sim_life *life = sim_life_create(world, 0, true);
    life->aside = true;
    life->moves_table = (uint32_t)sim_below(&world->deaths, SIM_TABLES);
    sim_trace(world, "life %u moves tiles of table %u", life->number, life->moves_table);
    sim_life_serve(life, MN_OP_MOVE);
    /* Some die halfway. */
    uint64_t most = sim_chance(&world->deaths, 250) ? SIM_S / 5 : 30 * SIM_S;
    sim_after(&world->clock, sim_below(&world->deaths, most), give_up, life);
}

/* Movers are in each other's way, but not always. */
static bool moves_now(sim_world *world)
{
    bool any = false;
    for (uint32_t i = 0; i < world->life_count; i++)
        any =
            any || (world->lives[i]->serves == MN_OP_MOVE && world->lives[i]->phase == SIM_SERVING);
    return sim_chance(&world->deaths, any ? 2 : 20);
}

static void start_loading(sim_world *world)
{
    const sim_config *config = &world->config;
    for (uint32_t i = 0; i < world->life_count; i++) {
        world->lives[i]->stale = true;
        world->lives[i]->stale_ns = UINT64_MAX;
        /* One that asks where the group stands might find the restored one: no ghost, then. */
        if (world->lives[i]->phase == SIM_JOINING || world->lives[i]->aside ||
            (world->lives[i]->reader && world->lives[i]->phase == SIM_OPENING))
            sim_life_kill(world->lives[i]);
    }
    if (config->shards_after != config->shards) {
        destroy_shards(world);
        create_shards(world, config->shards_after);
    }
    world->stage = SIM_LOADING;
    world->pause_step = config->steps;
    if (config->roll_back)
        wake_all(world); /* they go on, as trainers do that nobody told */
    world->loaders = config->rival ? 2 : 1;
    for (uint32_t i = 0; i < world->loaders; i++)
        operate(world, SIM_LOADING, MN_OP_LOAD);
}

static void loaded(sim_world *world, uint64_t step)
{
    bool others = world->config.busy_save || world->config.saves; /* one of them may be newer */
    if (others ? step < world->saved_step : step != world->saved_step)
        sim_violation(world, "step %llu was saved, %llu is loaded",
                      (unsigned long long)world->saved_step, (unsigned long long)step);
    if (step > world->model.step) {
        sim_violation(world, "step %llu is loaded, no shard had it", (unsigned long long)step);
        return;
    }
    sim_model_roll_back(&world->model, step);
    memset(world->mixed, 0, sizeof world->mixed);
    world->epoch = world->shards[0].epoch;
    world->stage = SIM_TRAINING;
    for (uint32_t i = 0; i < world->life_count; i++)
        world->lives[i]->stale_ns = world->clock.now_ns;
    for (uint32_t rank = 0; rank < world->config.ranks; rank++)
        start_rank(world, rank);
}

static void load_ended(sim_world *world, uint64_t step)
{
    if (!--world->loaders)
        loaded(world, step);
}

void sim_world_outdone(sim_life *life)
{
    uint64_t step = life->world->shards[0].step;
    sim_life_kill(life);
    load_ended(life->world, step);
}

void sim_world_served(sim_life *life, enum mn_operation_kind kind)
{
    sim_world *world = life->world;
    uint64_t step = mn_core_step(life->core);
    sim_life_kill(life);
    if (kind == MN_OP_SAVE && life->latest > world->saved_step)
        world->saved_step = life->latest;
    world->moves_made += kind == MN_OP_MOVE;
    if (life->aside)
        return;
    if (kind == MN_OP_FETCH) {
        world->finished = true;
    } else if (kind == MN_OP_LOAD) {
        load_ended(world, step);
    } else if (world->config.busy_save) {
        start_loading(world);
    } else {
        if (world->config.roll_back) {
            world->stage = SIM_TRAINING_ON;
            world->pause_step++;
            wake_all(world);
        } else {
            start_loading(world);
        }
    }
}

void sim_world_resting(sim_life *life)
{
    sim_world *world = life->world;
    if (!all_rest(world))
        return;
    if (world->stage == SIM_TRAINING_ON) {
        start_loading(world);
    } else if (world->stage == SIM_TRAINING && world->pause_step < world->config.steps) {
        operate(world, SIM_SAVING, MN_OP_SAVE);
    } else if (world->stage == SIM_TRAINING) {
        world->config.calm_ns = world->clock.now_ns;
        operate(world, SIM_LOOKING, MN_OP_FETCH);
    }
}

/* ---- Time goes by */

/* Some machine's clock goes ahead, by up to an hour. */
static void leap(sim_world *world)
{
    uint64_t ns = sim_below(&world->faults, sim_chance(&world->faults, 500) ? SIM_S : 3600 * SIM_S);
    uint32_t which = (uint32_t)sim_below(&world->faults, world->shard_count + world->life_count);
    bool shard = which < world->shard_count;
    sim_env_leap(shard ? &world->shards[which].env : &world->lives[which - world->shard_count]->env,
                 ns);
    sim_trace(world, "the clock of %s %u leaps by %.3f s", shard ? "shard" : "life",
              shard ? which : which - world->shard_count + 1, (double)ns / 1e9);
}

/* Runs what is next; false: nothing is left to happen. */
static bool step(sim_world *world)
{
    uint64_t next = sim_clock_next_ns(&world->clock);
    for (uint32_t i = 0; i < world->shard_count; i++) {
        const sim_shard *shard = &world->shards[i];
        uint64_t due = shard->core ? sim_env_until(&shard->env, shard->due_ns) : UINT64_MAX;
        next = due < next ? due : next;
    }
    for (uint32_t i = 0; i < world->life_count; i++) {
        const sim_life *life = world->lives[i];
        uint64_t due = life->core ? sim_env_until(&life->env, mn_core_due(life->core)) : UINT64_MAX;
        next = due < next ? due : next;
    }
    if (next == UINT64_MAX)
        return false;
    world->events++;
    if (next > world->clock.now_ns)
        world->clock.now_ns = next;
    if (sim_clock_next_ns(&world->clock) <= world->clock.now_ns)
        sim_clock_run_one(&world->clock);
    mind_disks(world);
    for (uint32_t i = 0; i < world->shard_count; i++) {
        sim_shard *shard = &world->shards[i];
        uint64_t now_ns = sim_env_now(&shard->env);
        if (shard->core)
            shard->due_ns = mn_shard_tick(shard->core, now_ns);
        if (shard->due_ns <= now_ns)
            shard->due_ns = now_ns + 1; /* more work at once: a chunk per tick */
    }
    mind_disks(world);
    for (uint32_t i = 0; i < world->life_count; i++) {
        if (world->lives[i]->core)
            (void)mn_core_tick(world->lives[i]->core, sim_env_now(&world->lives[i]->env));
        sim_life_tick(world->lives[i]);
    }
    return true;
}

static void explain_stop(sim_world *world, const char *why)
{
    char text[256] = "";
    for (uint32_t rank = 0; rank < world->config.ranks; rank++) {
        const sim_life *life = world->current[rank] ? world->lives[world->current[rank] - 1] : NULL;
        size_t at = strlen(text);
        if (life)
            (void)snprintf(text + at, sizeof text - at, " [life %u rank %u step %llu phase %d]",
                           life->number, rank, (unsigned long long)life->step, (int)life->phase);
    }
    sim_violation(world, "%s at %.1f s in stage %d:%s", why, (double)world->clock.now_ns / 1e9,
                  (int)world->stage, text);
}

static void live(sim_world *world)
{
    while (!world->finished && !world->failed) {
        if (!step(world))
            explain_stop(world, "nothing is left to happen");
        for (uint32_t i = 0; i < world->shard_count; i++)
            sim_check_shard(world, i);
        if (world->deaths_left && sim_world_stormy(world) &&
            (world->stage == SIM_TRAINING || world->stage == SIM_TRAINING_ON) &&
            sim_chance(&world->deaths, 3))
            strike(world);
        if (world->config.crooked && sim_world_stormy(world) && sim_chance(&world->faults, 1))
            leap(world);
        if (world->saves_left && world->model.step && sim_world_stormy(world) &&
            (world->stage == SIM_TRAINING || world->stage == SIM_TRAINING_ON) &&
            sim_chance(&world->deaths, 5))
            save_aside(world);
        if (world->moves_left && world->model.step && world->shard_count > 1 &&
            sim_world_stormy(world) &&
            (world->stage == SIM_TRAINING || world->stage == SIM_TRAINING_ON) && moves_now(world))
            move_aside(world);
        if (world->config.busy_save && world->stage == SIM_TRAINING &&
            !mn_epoch_restores(world->epoch) && world->model.step >= world->config.steps / 2)
            operate(world, SIM_SAVING, MN_OP_SAVE);
        if (world->clock.now_ns > world->config.limit_ns)
            explain_stop(world, "not finished");
    }
}

/* Everything ends in order, so that leaks show. */
static void wind_up(sim_world *world)
{
    for (uint32_t i = 0; i < world->shard_count && !world->failed; i++) {
        if (world->lost || world->refused)
            break;
        mn_group_info group;
        if (world->shards[i].core && sim_look_at(&world->shards[i], &group) && group.change_bytes)
            sim_violation(world, "shard %u: %llu staged bytes are left", i,
                          (unsigned long long)group.change_bytes);
    }
    world->finished = true;
    world->config.calm_ns = 0;
    for (uint32_t i = 0; i < world->life_count; i++)
        sim_life_kill(world->lives[i]);
    for (uint32_t n = 0; n < 1000000 && step(world); n++) {
        if (!sim_clock_next_ns(&world->clock))
            break;
    }
    destroy_shards(world);
    while (sim_clock_next_ns(&world->clock) != UINT64_MAX)
        sim_clock_run_one(&world->clock);
    if (world->flights)
        sim_violation(world, "%u exchanges never ended", world->flights);
    for (uint32_t i = 0; i < world->life_count; i++) {
        if (world->lives[i]->core)
            sim_violation(world, "life %u never ended", i + 1);
        else
            sim_life_destroy(world->lives[i]);
    }
    sim_files_destroy(world->files);
    sim_clock_deinit(&world->clock);
    sim_model_deinit(&world->model);
}

void sim_run(const sim_config *config, sim_result *out_result)
{
    sim_world *world = calloc(1, sizeof *world);
    assert(world);
    world->config = *config;
    world->faults.state = config->seed ^ 0xfa017;
    world->deaths.state = config->seed ^ 0xdea7;
    world->files = sim_files_create();
    world->disks.state = config->seed ^ 0xd15c;
    if (config->ruin == SIM_ASTRAY)
        sim_files_stray(world->files, 1 + sim_below(&world->disks, 150));
    world->shard_deaths_left = config->shard_deaths;
    world->deaths_left = config->deaths;
    world->saves_left = config->saves;
    world->moves_left = config->moves;
    world->pause_step =
        config->shards_after && !config->busy_save ? config->steps / 2 : config->steps;
    sim_model_init(&world->model, &world->config);
    create_shards(world, config->shards);
    for (uint32_t rank = 0; rank < config->ranks && !world->failed; rank++)
        start_rank(world, rank);
    if (config->reader && !world->failed)
        sim_life_start(sim_life_create(world, 0, true));
    live(world);
    uint64_t ended_ns = world->clock.now_ns;
    bool strayed = sim_files_strayed(world->files);
    wind_up(world);
    *out_result = (sim_result){.passed = !world->failed,
                               .tables_hash = world->tables_hash,
                               .ended_ns = ended_ns,
                               .messages = world->messages,
                               .events = world->events,
                               .change_bytes = world->change_bytes_seen,
                               .read_bytes = world->read_bytes_seen,
                               .shard_deaths = world->shard_deaths,
                               .lost = world->lost,
                               .refused = world->refused,
                               .strayed = strayed,
                               .images = world->images,
                               .moves = world->moves_made};
    memcpy(out_result->violation, world->violation, sizeof out_result->violation);
    free(world);
}
