/* Which calls a life makes, and what their answers must be. */
#include "life.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static void play(sim_life *life);
static void commit(sim_life *life);

/* ---- Answers against the model */

static bool row_is(const sim_model *model, uint32_t table, uint64_t step, uint64_t row,
                   const float *values)
{
    return !memcmp(sim_model_row(model, table, step, row), values,
                   model->specs[table].dim * sizeof *values);
}

/* A read for step t with staleness s may show any step of t-1-s .. t-1. */
static uint64_t stalest(const sim_life *life, uint64_t step)
{
    uint32_t staleness = life->world->config.staleness;
    return step - 1 > staleness ? step - 1 - staleness : 0;
}

static void check_fetched(sim_op *op)
{
    sim_world *world = op->life->world;
    uint32_t dim = world->model.specs[op->call.table].dim;
    for (uint32_t i = 0; i < op->call.count; i++) {
        bool found = false;
        for (uint64_t s = stalest(op->life, op->base.step); s < op->base.step; s++)
            found |= row_is(&world->model, op->call.table, s, op->call.indices[i],
                            op->outputs + (size_t)i * dim);
        if (!found)
            sim_violation(world, "life %u: row %u fetched for step %llu is of no step allowed",
                          op->life->number, op->call.indices[i], (unsigned long long)op->base.step);
    }
}

static void check_bags(sim_op *op)
{
    sim_world *world = op->life->world;
    const mn_geometry *geometry = &world->model.geometries[SIM_BAGS];
    for (uint32_t q = 0; q < op->call.count; q++) {
        for (uint32_t tile = 0; tile < geometry->tiles; tile++) {
            bool found = false;
            for (uint64_t s = stalest(op->life, op->base.step); s < op->base.step; s++)
                found |= sim_model_bag_is(&world->model, s, &op->call, q, tile,
                                          op->outputs + (size_t)q * geometry->dim);
            if (!found)
                sim_violation(world, "life %u: tile %u of bag %u for step %llu is wrong",
                              op->life->number, tile, q, (unsigned long long)op->base.step);
        }
    }
}

static void check_weight_gradients(sim_op *op)
{
    sim_world *world = op->life->world;
    if (world->config.staleness)
        return; /* tiles may show different steps: the sum over them has no one value */
    for (uint32_t i = 0; i < op->call.count * op->call.per_query; i++) {
        float expected = sim_model_weight_gradient(&world->model, op->base.step - 1, &op->call,
                                                   i / op->call.per_query, i % op->call.per_query);
        if (!(op->outputs[i] == expected))
            sim_violation(world, "life %u: weight gradient %u of step %llu is %g, not %g",
                          op->life->number, i, (unsigned long long)op->base.step,
                          (double)op->outputs[i], (double)expected);
    }
}

/* ---- A step */

static void call_succeeded(sim_op *op)
{
    sim_life *life = op->life;
    if (life->stale)
        op->base.table = NULL; /* the model is at others' steps */
    else if (op->base.kind == MN_OP_FETCH)
        check_fetched(op);
    else if (op->base.kind == MN_OP_BAG)
        check_bags(op);
    else if (op->base.kind == MN_OP_BAG_GRAD && !op->base.status)
        check_weight_gradients(op);
    assert(life->waiting[op->base.step % 2]);
    life->waiting[op->base.step % 2]--;
    if (life->phase == SIM_PLAYING && !life->waiting[life->step % 2])
        commit(life);
}

/* A sloppy trainer takes a hasty change that failed for done; Seal must then tell. */
static bool change_refused(sim_op *op)
{
    sim_life *life = op->life;
    /* A late Seal may have found the piece there, and the step is committed by now. */
    if (op->repeated && op->base.status == MN_STEP && life->world->model.step >= op->base.step) {
        call_succeeded(op);
        return true;
    }
    if (!op->hasty || !mn_status_retryable(op->base.status) || !sim_chance(&life->random, 500) ||
        (life->sloppy_count && life->sloppy_step != op->base.step))
        return false;
    life->sloppy[life->sloppy_count++] = op->call;
    life->sloppy_step = op->base.step;
    life->waiting[op->base.step % 2]--;
    if (life->phase == SIM_PLAYING && !life->waiting[life->step % 2])
        commit(life);
    return true;
}

enum manner { NORMALLY, HASTILY, AGAIN };

static void make_call(sim_life *life, uint64_t step, const sim_call *call, enum manner manner)
{
    sim_op *op = sim_op_create(life, call->kind);
    bool change = call->kind != MN_OP_FETCH && call->kind != MN_OP_BAG;
    op->call = *call;
    op->succeeded = call_succeeded;
    op->refused = change ? change_refused : NULL;
    op->hasty = manner == HASTILY && change;
    op->repeated = manner == AGAIN;
    op->hasty_ms = op->hasty ? 1 + sim_below(&life->random, 20) : 0;
    op->base.table = life->tables[call->table];
    op->base.step = step;
    op->base.part = call->part;
    op->base.count = call->count;
    op->base.per_query = call->per_query;
    op->base.indices = mn_u32(op->call.indices);
    op->base.weights = mn_f32(op->call.weights);
    op->base.values = mn_f32(op->call.values);
    op->base.outputs = mn_f32(op->outputs);
    life->waiting[step % 2]++;
    sim_op_submit(op);
}

/* All reads and changes of a step, at once, in any order. */
static void begin(sim_life *life, uint64_t step)
{
    const sim_config *config = &life->world->config;
    sim_call calls[SIM_CALLS_MAX + 2];
    uint32_t n = sim_script_calls(config, life->rank, step, life->number, calls);
    sim_script_read(config, life->rank, step, SIM_BAGS, &calls[n++]);
    sim_script_read(config, life->rank, step, SIM_ROWS, &calls[n++]);
    life->begun = step;
    for (uint32_t i = n; i > 1; i--) { /* Fisher and Yates's shuffle */
        uint32_t j = (uint32_t)sim_below(&life->random, i);
        sim_call swapped = calls[i - 1];
        calls[i - 1] = calls[j];
        calls[j] = swapped;
    }
    for (uint32_t i = 0; i < n; i++)
        make_call(life, step, &calls[i],
                  config->sloppy && sim_chance(&life->random, 200) ? HASTILY : NORMALLY);
}

static bool plays(const sim_life *life, uint64_t step)
{
    return step <= life->world->config.steps && step <= life->world->pause_step;
}

static void play(sim_life *life)
{
    life->phase = SIM_PLAYING;
    if (!plays(life, life->step)) {
        life->phase = SIM_RESTING;
        sim_world_resting(life);
        return;
    }
    if (life->begun < life->step)
        begin(life, life->step);
    else if (!life->waiting[life->step % 2])
        commit(life);
}

static void check_commit(const sim_op *op)
{
    const sim_life *life = op->life;
    const sim_model *model = &life->world->model;
    bool discarded = model->discarded[life->step];
    if (life->overtaken || life->stale)
        return; /* the model is at others' steps */
    if (model->step < life->step)
        sim_violation(life->world, "life %u: step %llu is acknowledged, no shard has it",
                      life->number, (unsigned long long)life->step);
    else if (op->base.status == MN_CONFLICT && discarded)
        sim_violation(life->world, "step %llu is discarded, but a vote came too late",
                      (unsigned long long)life->step);
    else if ((op->base.status == MN_DISCARDED ||
              (op->base.status == MN_OK && op->base.proposal.discard)) &&
             !discarded)
        sim_violation(life->world, "step %llu is discarded, but nobody voted so",
                      (unsigned long long)life->step);
    else if (op->base.status == MN_OK && discarded && !op->base.proposal.discard)
        sim_violation(life->world, "step %llu is not discarded, though a rank voted so",
                      (unsigned long long)life->step);
    for (uint32_t t = 0; t < SIM_TABLES && !discarded && !op->base.proposal.discard; t++) {
        if (!isnan(op->norms[t]) && op->norms[t] != model->norms[t][life->step])
            sim_violation(life->world, "life %u: norm %u of step %llu is %.17g, not %.17g",
                          life->number, t, (unsigned long long)life->step, op->norms[t],
                          model->norms[t][life->step]);
    }
}

static void committed(sim_op *op)
{
    sim_life *life = op->life;
    check_commit(op);
    if (life->sloppy_step == life->step)
        life->sloppy_count = 0;
    life->step++;
    play(life);
}

static bool commit_refused(sim_op *op)
{
    sim_life *life = op->life;
    sim_world *world = life->world;
    /* A trainer that waited in vain may change its mind, though some shards have its seal. */
    if (world->config.discards && mn_status_retryable(op->base.status) &&
        !op->base.proposal.discard && sim_chance(&life->random, 300)) {
        world->mixed[life->step] = true;
        memset(&op->base.proposal, 0, sizeof op->base.proposal);
        op->base.proposal.discard = true;
        return false;
    }
    if (op->base.status == MN_CONFLICT && world->mixed[life->step] && op->base.proposal.discard) {
        committed(op); /* its vote came too late */
        return true;
    }
    if (op->base.status != MN_INCOMPLETE || life->sloppy_step != life->step || !life->sloppy_count)
        return false;
    uint32_t n = life->sloppy_count;
    life->sloppy_count = 0;
    life->phase = SIM_PLAYING;
    for (uint32_t i = 0; i < n; i++)
        make_call(life, life->step, &life->sloppy[i], AGAIN);
    return true;
}

static void ask_commit(sim_life *life)
{
    sim_world *world = life->world;
    sim_op *op = sim_op_create(life, MN_OP_COMMIT);
    uint64_t ids[SIM_TABLES] = {mn_core_table_id(life->tables[0]),
                                mn_core_table_id(life->tables[1])};
    op->succeeded = committed;
    op->refused = commit_refused;
    op->base.step = life->step;
    op->base.norms = op->norms;
    if (sim_script_discards(&world->config, life->rank, life->step))
        op->base.proposal.discard = true;
    else
        sim_script_proposal(&world->config, life->step, ids, &op->base.proposal);
    if (!life->overtaken && (!life->stale || world->stage == SIM_LOADING))
        world->model.committer[life->rank][life->step] = life->number;
    if (world->config.prefetch && life->begun == life->step && plays(life, life->step + 1))
        begin(life, life->step + 1);
    sim_op_submit(op);
}

static void reduced(sim_op *op)
{
    sim_life *life = op->life;
    const sim_config *config = &life->world->config;
    double sum = 0;
    for (uint32_t rank = 0; rank < config->ranks; rank++)
        sum += sim_script_reduce_value(config, rank, life->step);
    if (!(op->reduce_value == sum))
        sim_violation(life->world, "life %u: the reduce of step %llu is %.17g, not %.17g",
                      life->number, (unsigned long long)life->step, op->reduce_value, sum);
    ask_commit(life);
}

static void commit(sim_life *life)
{
    const sim_config *config = &life->world->config;
    life->phase = SIM_COMMITTING;
    if (!sim_script_reduces(config, life->step)) {
        ask_commit(life);
        return;
    }
    sim_op *op = sim_op_create(life, MN_OP_REDUCE);
    op->succeeded = reduced;
    op->base.step = life->step;
    op->base.count = 1;
    op->reduce_given = sim_script_reduce_value(config, life->rank, life->step);
    (void)snprintf(op->base.name, sizeof op->base.name, "loss");
    sim_op_submit(op);
}

/* ---- Join and open */

static void opened(sim_op *op)
{
    sim_life *life = op->life;
    life->tables[op->call.table] = op->base.table;
    if (--life->waiting[0])
        return;
    if (life->reader)
        sim_life_read(life);
    else
        play(life);
}

/* Nobody has made it yet: a reader asks again. */
static bool find_refused(sim_op *op)
{
    if (op->base.status == MN_NOT_FOUND)
        op->base.status = MN_UNAVAILABLE;
    return false;
}

static void open_tables(sim_life *life)
{
    life->phase = SIM_OPENING;
    life->waiting[0] = SIM_TABLES;
    for (uint32_t t = 0; t < SIM_TABLES; t++) {
        sim_op *op = sim_op_create(life, life->reader ? MN_OP_TABLE_FIND : MN_OP_TABLE_OPEN);
        op->succeeded = opened;
        op->refused = life->reader ? find_refused : NULL;
        op->call.table = t;
        sim_script_spec(&life->world->config, t, &op->base.spec);
        sim_op_submit(op);
    }
}

static void joined(sim_op *op)
{
    sim_life *life = op->life;
    if (!life->reader) {
        life->step = mn_core_step(life->core) + 1;
        sim_world_joined(life);
    }
    open_tables(life);
}

void sim_life_start(sim_life *life)
{
    sim_op *op = sim_op_create(life, MN_OP_JOIN);
    life->phase = SIM_JOINING;
    op->succeeded = joined;
    op->refused = life->reader ? find_refused : NULL;
    sim_op_submit(op);
}

void sim_life_wake(sim_life *life)
{
    if (life->phase == SIM_RESTING)
        play(life);
}
