/* Lives without a rank: a reader that asks for LATEST rows and compares them with the model of the
 * step that the answer names, and an operator that saves, loads or looks at everything. */
#include "life.h"

#include <string.h>

enum {
    BUSY_SAVE_RATE = 200000, /* bytes a second: a tile takes as long as some steps */
    MOVE_MS = 30000          /* it waits for the steps of trainers that ask with less time */
};

static void read_again(void *argument)
{
    sim_life *life = argument;
    if (life->phase == SIM_SERVING && !life->world->finished)
        sim_life_read(life);
}

static bool rows_are(sim_op *op, uint64_t step)
{
    const sim_model *model = &op->life->world->model;
    uint32_t table = op->call.table, dim = model->specs[table].dim;
    for (uint64_t row = 0; row < model->specs[table].rows; row++) {
        if (memcmp(sim_model_row(model, table, step, row), op->outputs + row * dim,
                   dim * sizeof *op->outputs) != 0)
            return false;
    }
    return true;
}

static void fetch_all(sim_life *life, uint32_t table, void (*succeeded)(sim_op *op), bool states)
{
    sim_op *op = sim_op_create(life, MN_OP_FETCH);
    op->call.table = table;
    op->succeeded = succeeded;
    op->base.table = life->tables[table];
    op->base.step = MN_LATEST;
    op->base.count = life->world->model.specs[table].rows;
    for (uint32_t i = 0; i < op->base.count; i++)
        op->indices[i] = i;
    op->base.indices = mn_u32(op->indices);
    op->base.outputs = mn_f32(op->outputs);
    op->base.state_out = states ? op->states : NULL;
    sim_op_submit(op);
}

static void read_latest(sim_op *op)
{
    sim_life *life = op->life;
    sim_world *world = life->world;
    uint64_t step = op->base.answered_step;
    if (life->stale)
        return; /* the model is at others' steps */
    if (step > world->model.step)
        sim_violation(world, "reader %u: LATEST names step %llu, no shard has it", life->number,
                      (unsigned long long)step);
    else if (step < life->latest)
        sim_violation(world, "reader %u: LATEST went back from step %llu to %llu", life->number,
                      (unsigned long long)life->latest, (unsigned long long)step);
    else if (!rows_are(op, step))
        sim_violation(world, "reader %u: LATEST rows of step %llu are not that step's",
                      life->number, (unsigned long long)step);
    life->latest = step;
    life->shown[op->call.table] = true;
    sim_after(&world->clock, sim_below(&life->random, 50 * SIM_MS), read_again, life);
}

/* A table is made at one shard after the other: a reader may come in between. Once all have shown
 * it, it is there, or lost. */
static bool half_made(sim_op *op)
{
    if (op->base.status == MN_NOT_FOUND && !op->life->shown[op->call.table])
        op->base.status = MN_UNAVAILABLE;
    return false;
}

void sim_life_read(sim_life *life)
{
    life->phase = SIM_SERVING;
    fetch_all(life, (uint32_t)sim_below(&life->random, SIM_TABLES), read_latest, false);
    life->ops->refused = half_made;
}

/* ---- The operator */

static void served(sim_op *op)
{
    op->life->latest = op->base.answered_step;
    sim_world_served(op->life, op->base.kind);
}

/* Values and optimizer state of all rows: state lies per row in tile order, as Adagrad's do. */
static void looked(sim_op *op)
{
    sim_life *life = op->life;
    const sim_model *model = &life->world->model;
    uint64_t step = op->base.answered_step;
    uint64_t bytes = model->specs[SIM_BAGS].rows * model->specs[SIM_BAGS].dim * sizeof(float);
    if (step != model->step)
        sim_violation(life->world, "at the end step %llu is read, not %llu",
                      (unsigned long long)step, (unsigned long long)model->step);
    else if (!rows_are(op, step))
        sim_violation(life->world, "the final table %u is not the model's", op->call.table);
    else if (op->call.table == SIM_BAGS && memcmp(op->states, model->sums[step], bytes) != 0)
        sim_violation(life->world, "the final optimizer state is not the model's");
    for (uint64_t i = 0; i < model->specs[op->call.table].rows * model->specs[op->call.table].dim;
         i++)
        life->world->tables_hash =
            mn_checksum(&op->outputs[i], sizeof(float), life->world->tables_hash);
    if (op->call.table == SIM_BAGS)
        fetch_all(life, SIM_ROWS, looked, false);
    else
        sim_world_served(life, MN_OP_FETCH);
}

static void found(sim_op *op)
{
    sim_life *life = op->life;
    life->tables[op->call.table] = op->base.table;
    if (--life->waiting[0] == 0)
        fetch_all(life, SIM_BAGS, looked, true);
}

static void find_tables(sim_life *life)
{
    life->waiting[0] = SIM_TABLES;
    for (uint32_t t = 0; t < SIM_TABLES; t++) {
        sim_op *op = sim_op_create(life, MN_OP_TABLE_FIND);
        op->call.table = t;
        op->succeeded = found;
        sim_script_spec(&life->world->config, t, &op->base.spec);
        sim_op_submit(op);
    }
}

/* A restore has yet to be held by images everywhere: its snapshot must stay. */
static bool save_refused(sim_op *op)
{
    if (!op->life->aside || op->base.status != MN_CONFLICT || strcmp(op->base.error.field, "path"))
        return false;
    sim_life_kill(op->life);
    return true;
}

static bool all_of_one_epoch(const sim_world *world)
{
    for (uint32_t i = 1; i < world->shard_count; i++)
        if (world->shards[i].epoch != world->shards[0].epoch)
            return false;
    return true;
}

/* A rival has restored under a higher epoch, or will; or it was an earlier try of its own, late,
 * which nobody will finish; or another save came, late, in between. */
static bool load_refused(sim_op *op)
{
    const sim_world *world = op->life->world;
    if (world->config.saves && op->base.status == MN_NOT_FOUND &&
        !strcmp(op->base.error.field, "saved_step"))
        op->base.status = MN_UNAVAILABLE;
    if (!world->config.rival || op->base.status != MN_EPOCH)
        return false;
    if (world->loaders == 1 && !all_of_one_epoch(world)) {
        op->base.status = MN_UNAVAILABLE;
        return false;
    }
    sim_world_outdone(op->life);
    return true;
}

/* The tiles are not there to be moved, or the table is not everywhere yet, or somebody was in the
 * way. */
static bool move_refused(sim_op *op)
{
    bool few = op->base.status == MN_INVALID && !strcmp(op->base.error.field, "tiles");
    if (!few && op->base.status != MN_NOT_FOUND && op->base.status != MN_MOVED &&
        op->base.status != MN_DEADLINE && op->base.status != MN_BUSY)
        return false;
    sim_life_kill(op->life);
    return true;
}

static void move(sim_op *found)
{
    sim_life *life = found->life;
    uint32_t shards = mn_core_shards(life->core);
    sim_op *op = sim_op_create(life, MN_OP_MOVE);
    bool back = sim_chance(&life->random, 500);
    uint32_t from = (uint32_t)sim_below(&life->random, shards - 1);
    op->succeeded = served;
    op->refused = move_refused;
    op->call.table = life->moves_table;
    op->base.table = found->base.table;
    op->base.shard = back ? from + 1 : from;
    op->base.to = back ? from : from + 1;
    op->base.count = 1 + sim_below(&life->random, 2);
    op->hasty_ms = MOVE_MS;
    sim_op_submit(op);
}

/* Nobody has made the table yet. */
static bool no_table(sim_op *op)
{
    if (op->base.status != MN_NOT_FOUND)
        return false;
    sim_life_kill(op->life);
    return true;
}

static void find_and_move(sim_life *life)
{
    sim_op *op = sim_op_create(life, MN_OP_TABLE_FIND);
    op->succeeded = move;
    op->refused = no_table;
    sim_script_spec(&life->world->config, life->moves_table, &op->base.spec);
    sim_op_submit(op);
}

static void serve(sim_life *life)
{
    if (life->serves == MN_OP_FETCH) {
        find_tables(life);
        return;
    }
    if (life->serves == MN_OP_MOVE) {
        find_and_move(life);
        return;
    }
    sim_op *op = sim_op_create(life, life->serves);
    op->succeeded = served;
    op->refused = life->serves == MN_OP_LOAD ? load_refused : save_refused;
    (void)snprintf(op->base.name, sizeof op->base.name, "snapshot");
    if (life->world->config.busy_save || life->aside)
        op->base.rate = BUSY_SAVE_RATE;
    sim_op_submit(op);
}

static void serve_joined(sim_op *op) { serve(op->life); }

void sim_life_serve(sim_life *life, enum mn_operation_kind kind)
{
    life->phase = SIM_SERVING;
    life->serves = kind;
    if (kind == MN_OP_LOAD) { /* which needs no group */
        serve(life);
        return;
    }
    sim_op *op = sim_op_create(life, MN_OP_JOIN);
    op->succeeded = serve_joined;
    op->refused = kind == MN_OP_MOVE ? no_table : NULL;
    sim_op_submit(op);
}
