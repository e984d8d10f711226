/* One life of a trainer: join, open, then per step read, change, reduce, commit, each call made
 * again until it succeeds. Or of a reader, which compares what it sees with the model. */
#include "life.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static const char *const kind_names[] = {"join", "open", "find",   "drop",   "fetch",  "bag",
                                         "grad", "push", "store",  "commit", "reduce", "save",
                                         "load", "move", "status", "list"};

/* ---- Operations */

sim_op *sim_op_create(sim_life *life, enum mn_operation_kind kind)
{
    sim_op *op = calloc(1, sizeof *op);
    assert(op);
    op->base.kind = kind;
    op->base.owner = op;
    op->life = life;
    op->next = life->ops;
    if (life->ops)
        life->ops->previous = op;
    life->ops = op;
    return op;
}

static void op_free(sim_op *op)
{
    if (op->previous)
        op->previous->next = op->next;
    else
        op->life->ops = op->next;
    if (op->next)
        op->next->previous = op->previous;
    free(op);
}

static void op_again(void *argument)
{
    sim_op *op = argument;
    if (op->life->phase >= SIM_DYING)
        op_free(op);
    else
        sim_op_submit(op);
}

static void op_later(sim_op *op, uint64_t delay_ns)
{
    sim_after(&op->life->world->clock, delay_ns, op_again, op);
}

/* May the life have been refused so, through no fault of the service? */
static bool refusal_expected(const sim_op *op)
{
    const sim_life *life = op->life;
    const sim_world *world = life->world;
    switch (op->base.status) {
    case MN_FENCED:
        return !life->reader && world->current[life->rank] != life->number;
    case MN_EPOCH:
    case MN_LOST:
    case MN_NOT_FOUND: /* an old life meets the restored group, or none yet */
        return life->stale;
    default:
        return false;
    }
}

/* What a call's end must keep, whatever it asked. */
static bool op_end_is_fine(const sim_op *op)
{
    const sim_life *life = op->life;
    sim_world *world = life->world;
    const mn_operation *o = &op->base;
    bool succeeded = o->status == MN_OK || o->status == MN_DISCARDED;
    /* A mover keeps some of its time for cancelling the move. */
    uint64_t early_ns = o->kind == MN_OP_MOVE ? 6 * SIM_S : SIM_S;
    if (o->status == MN_DEADLINE && sim_env_now(&life->env) + early_ns < o->deadline_ns)
        sim_violation(world, "life %u: %s ended with DEADLINE %llu ms before it", life->number,
                      kind_names[o->kind],
                      (unsigned long long)((o->deadline_ns - sim_env_now(&life->env)) / SIM_MS));
    if (succeeded && life->overtaken && op->submitted_ns > life->overtaken_ns)
        sim_violation(world, "life %u of rank %u was overtaken, but its %s succeeded", life->number,
                      life->rank, kind_names[o->kind]);
    if (succeeded && life->stale && op->submitted_ns > life->stale_ns)
        sim_violation(world, "life %u is from before the restore, but its %s succeeded",
                      life->number, kind_names[o->kind]);
    return !world->failed;
}

static void op_done(mn_operation *operation)
{
    sim_op *op = operation->owner;
    sim_life *life = op->life;
    sim_world *world = life->world;
    op->in_core = false;
    sim_trace(world, "life %u rank %u: %s step %llu part %u ends: %s %s", life->number, life->rank,
              kind_names[operation->kind], (unsigned long long)operation->step, operation->part,
              mn_status_name(operation->status), operation->status ? operation->error.message : "");
    if (life->phase >= SIM_DYING || !op_end_is_fine(op)) {
        op_free(op);
        return;
    }
    if (operation->status == MN_OK || operation->status == MN_DISCARDED) {
        op->succeeded(op);
        op_free(op);
    } else if (sim_ruin_ends_call(world, operation, op->submitted_ns)) {
        op_free(op);
    } else if (op->refused && op->refused(op)) {
        op_free(op);
    } else if (refusal_expected(op)) {
        op_free(op);
        sim_life_kill(life);
    } else if (mn_status_retryable(operation->status) &&
               !(world->config.ruin && operation->status == MN_DEADLINE)) {
        op_later(op, (10 + sim_below(&life->random, 100)) * SIM_MS);
    } else {
        sim_violation(world, "life %u rank %u: %s step %llu part %u: %s: %s: %s", life->number,
                      life->rank, kind_names[operation->kind], (unsigned long long)operation->step,
                      operation->part, mn_status_name(operation->status), operation->error.field,
                      operation->error.message);
    }
}

void sim_op_submit(sim_op *op)
{
    sim_life *life = op->life;
    sim_world *world = life->world;
    uint64_t deadline_ms = op->hasty_ms ? op->hasty_ms : world->config.deadline_ms;
    op->hasty_ms = 0;
    op->base.deadline_ns = sim_env_now(&life->env) + deadline_ms * SIM_MS;
    op->leaps = life->env.leaps;
    op->base.done = op_done;
    op->submitted_ns = world->clock.now_ns;
    op->in_core = true;
    op->base.reduce_values = &op->reduce_value;
    op->reduce_value = op->reduce_given;
    if (mn_core_submit(life->core, &op->base)) {
        op->in_core = false;
        op_later(op, 5 * SIM_MS);
    }
}

/* ---- The life */

sim_life *sim_life_create(sim_world *world, uint32_t rank, bool reader)
{
    const sim_config *config = &world->config;
    assert(world->life_count < SIM_LIVES_MAX);
    sim_life *life = calloc(1, sizeof *life);
    assert(life);
    life->world = world;
    life->rank = rank;
    life->reader = reader;
    world->lives[world->life_count++] = life;
    life->number = world->life_count;
    life->random.state = config->seed * 1000 + life->number;
    sim_env_init(&life->env, &world->clock, sim_next(&life->random), NULL, config->crooked);
    life->link = sim_link_create(world, life->number - 1);
    mn_core_options options = {.group = "sim",
                               .rank = rank,
                               .ranks = config->ranks,
                               .reader = reader,
                               .staleness = config->staleness,
                               .operations_max = 64,
                               .exchanges_max = config->exchanges_max,
                               .packed = config->packed,
                               .chunk_bytes = config->chunk_bytes,
                               .back_off_ms = 5,
                               .plants = config->core_plants};
    mn_error error = {0};
    if (mn_core_create(&options, &life->env.env, sim_link_transport(life->link), &life->core,
                       &error))
        sim_violation(world, "a client core was not created: %s %s", error.field, error.message);
    return life;
}

void sim_life_kill(sim_life *life)
{
    if (life->phase >= SIM_DYING)
        return;
    sim_trace(life->world, "life %u rank %u is killed", life->number, life->rank);
    life->phase = SIM_DYING;
    life->dying_ns = life->world->clock.now_ns;
    sim_link_cut(life->link);
    for (sim_op *op = life->ops, *next; op; op = next) {
        next = op->next;
        if (op->in_core)
            mn_core_cancel(life->core, &op->base);
    }
}

/* A clock that has leapt may have passed the deadline by. */
static void check_deadlines(const sim_life *life)
{
    uint64_t now_ns = sim_env_now(&life->env);
    for (const sim_op *op = life->ops; op; op = op->next)
        if (op->in_core && op->leaps == life->env.leaps && now_ns > op->base.deadline_ns + SIM_S)
            sim_violation(life->world, "life %u: %s goes on %llu ms after its deadline",
                          life->number, kind_names[op->base.kind],
                          (unsigned long long)((now_ns - op->base.deadline_ns) / SIM_MS));
}

/* Called after each event: a killed life is dead once its calls have ended. */
void sim_life_tick(sim_life *life)
{
    check_deadlines(life);
    if (life->phase != SIM_DYING)
        return;
    for (sim_op *op = life->ops; op; op = op->next) {
        if (op->in_core) {
            if (life->world->clock.now_ns > life->dying_ns + 60 * SIM_S)
                sim_violation(life->world, "life %u: a cancelled %s goes on", life->number,
                              kind_names[op->base.kind]);
            return;
        }
    }
    mn_core_destroy(life->core);
    life->core = NULL;
    life->phase = SIM_DEAD;
}

void sim_life_destroy(sim_life *life)
{
    if (!life)
        return;
    assert(!life->core);
    while (life->ops)
        op_free(life->ops);
    if (life->env.allocated_bytes || life->env.reserved_bytes)
        sim_violation(life->world, "life %u: %llu bytes of its core's are still allocated",
                      life->number, (unsigned long long)life->env.allocated_bytes);
    sim_link_destroy(life->link);
    free(life);
}
