/* Disks that break their word. What is lost must be told: no shard serves it, and no caller goes on
 * as if it stood. Such a world ends once it has been, and a world that does not end so keeps every
 * promise to its end. shard/LOG.md "Fault model" says which loss shows where. */
#include "sim.h"

#include <string.h>

static const char *const names[SIM_RUINS] = {"none", "aged", "power", "astray", "emptied"};

const char *sim_ruin_name(enum sim_ruin ruin) { return names[ruin]; }

void sim_ruin_return(sim_world *world, uint32_t i)
{
    sim_shard *shard = &world->shards[i];
    sim_disk *disk = &shard->disk;
    bool power = world->config.durability != MN_DURABILITY_SYNC || sim_chance(&world->disks, 400);
    bool lost = false;
    char folder[32];
    switch (world->config.ruin) {
    case SIM_AGED:
        lost = sim_disk_age(disk);
        break;
    case SIM_POWER:
        lost = sim_chance(&world->disks, 600) ? sim_disk_age(disk) : sim_disk_restart(disk, false);
        break;
    case SIM_EMPTIED:
        (void)snprintf(folder, sizeof folder, "@%u-of-%u/", i, world->shard_count); /* it fits */
        (void)sim_disk_restart(disk, true); /* nothing: it was killed */
        sim_disk_empty(disk, folder);
        lost = true;
        break;
    default:
        (void)sim_disk_restart(disk, power); /* what goes was not promised */
        lost = sim_disk_looks_torn(disk, world->config.cut_bytes != 0);
    }
    shard->behind = shard->behind || lost;
    if (lost)
        sim_trace(world, "shard %u has lost something", i);
}

/* LOST, wherever it can be known. An id that was never told may be given to another table; a home
 * shard that has forgotten all draws another epoch. */
static bool tells_loss(const sim_world *world, const mn_operation *operation)
{
    bool any = false;
    for (uint32_t i = 0; i < world->shard_count; i++)
        any = any || world->shards[i].behind;
    if (!any)
        return false;
    switch (operation->status) {
    case MN_LOST:
        return true;
    case MN_DEADLINE: /* a saver cannot tell a Commit that is forgotten from one to come */
        return operation->kind == MN_OP_SAVE;
    case MN_CONFLICT:
        return operation->kind == MN_OP_TABLE_OPEN && !strcmp(operation->error.field, "table");
    case MN_EPOCH:
        return world->config.ruin != SIM_ASTRAY && world->shards[0].behind;
    default:
        return false;
    }
}

bool sim_ruin_ends_call(sim_world *world, const mn_operation *operation, uint64_t submitted_ns)
{
    bool files = operation->kind == MN_OP_SAVE || operation->kind == MN_OP_LOAD;
    if (tells_loss(world, operation))
        world->lost = true;
    else if (files && operation->status == MN_CORRUPT &&
             sim_files_name_harm(world->files, operation->error.message, submitted_ns))
        world->refused = true;
    else
        return false;
    world->finished = true;
    return true;
}

/* Damage is named. At level process loss of power leaves some. */
bool sim_ruin_stops_shard(sim_world *world, uint32_t i, enum mn_status state, const mn_error *error)
{
    bool named = sim_files_name_harm(world->files, error->message, world->clock.now_ns) ||
                 (world->config.ruin == SIM_POWER && world->shards[i].behind);
    if (state != MN_CORRUPT || !named)
        return false;
    sim_trace(world, "shard %u does not start: %s", i, error->message);
    world->refused = world->finished = true;
    return true;
}
