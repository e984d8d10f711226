/* What must hold after every event: each shard is asked, past the network, where it stands; a step
 * that it has committed for the first time is played by the model. */
#include "shard_core.h"
#include "sim.h"

#include <assert.h>
#include <string.h>

/* ---- Asking a shard */

typedef struct look {
    mn_call call; /* first */
    mn_group_info group;
    bool found;
} look;

static void looked(mn_call *call)
{
    look *l = (look *)call;
    for (uint32_t i = 0; !call->reply.status && i < call->reply.group_count; i++) {
        if (!strcmp(call->reply.groups[i].name, "sim")) {
            l->group = call->reply.groups[i];
            l->found = true;
        }
    }
}

static uint8_t *no_buffer(mn_call *call, uint64_t bytes)
{
    (void)call;
    (void)bytes;
    return NULL;
}

/* Asks the shard itself, past the network. */
bool sim_look_at(sim_shard *shard, mn_group_info *out_group)
{
    static look l; /* a call is large; the answer comes at once */
    memset(&l, 0, sizeof l);
    l.call.request.verb = MN_VERB_STATUS;
    l.call.request.context.version = MN_PROTOCOL_VERSION;
    l.call.request.context.remaining_ms = 1000;
    (void)snprintf(l.call.request.context.group, MN_NAME_BYTES, "sim");
    l.call.reserve = no_buffer;
    l.call.finish = looked;
    mn_shard_handle(shard->core, &l.call);
    *out_group = l.group;
    return l.found;
}

static void check_budgets(sim_world *world, uint32_t i, const mn_group_info *group)
{
    if (group->change_bytes > world->change_bytes_seen)
        world->change_bytes_seen = group->change_bytes;
    if (group->read_bytes > world->read_bytes_seen)
        world->read_bytes_seen = group->read_bytes;
    if (group->read_bytes > group->read_bytes_max || group->change_bytes > group->change_bytes_max)
        sim_violation(
            world, "shard %u: a budget is exceeded: reads %llu of %llu, changes %llu of %llu", i,
            (unsigned long long)group->read_bytes, (unsigned long long)group->read_bytes_max,
            (unsigned long long)group->change_bytes, (unsigned long long)group->change_bytes_max);
}

typedef struct join_look {
    mn_call call; /* first */
    bool discarded;
} join_look;

static void joined_look(mn_call *call) { (void)call; /* read where it was asked */ }

/* The answer counts even if it must wait for the log. FENCED is none. */
static void ask_join(mn_shard *core, join_look *l)
{
    memset(&l->call.reply, 0, sizeof l->call.reply);
    mn_shard_handle(core, &l->call);
    l->discarded = !l->call.reply.status && l->call.reply.proposal.discard;
    if (l->call.core)
        mn_shard_abandon(core, &l->call);
}

/* Whether the shard's last commit discards: Join FENCE with the newest incarnation tells, and
 * changes nothing. */
static bool last_discards(sim_world *world, uint32_t i)
{
    static join_look l;
    memset(&l, 0, sizeof l);
    l.call.request.verb = MN_VERB_JOIN;
    l.call.request.join = MN_JOIN_FENCE;
    l.call.request.ranks = world->config.ranks;
    l.call.request.context = (mn_context){
        .version = MN_PROTOCOL_VERSION, .map_epoch = world->shards[i].epoch, .remaining_ms = 1000};
    (void)snprintf(l.call.request.context.group, MN_NAME_BYTES, "sim");
    l.call.reserve = no_buffer;
    l.call.finish = joined_look;
    for (uint32_t n = 0; n < world->life_count; n++) {
        const sim_life *life = world->lives[n];
        uint64_t incarnation = life->core ? mn_core_incarnation(life->core) : 0;
        l.call.request.context.rank = life->rank;
        l.call.request.context.incarnation = incarnation;
        if (incarnation && !life->reader && (!life->stale || world->stage == SIM_LOADING))
            ask_join(world->shards[i].core, &l);
        if (l.discarded)
            return true;
    }
    return false;
}

static bool discards(sim_world *world, uint32_t i, uint64_t step)
{
    bool any = false;
    if (step <= SIM_STEPS_MAX && world->mixed[step])
        return last_discards(world, i);
    for (uint32_t rank = 0; rank < world->config.ranks; rank++)
        any |= sim_script_discards(&world->config, rank, step);
    return any;
}

/* A step that a shard has committed for the first time: the model plays it. */
void sim_follow(sim_world *world, uint32_t i, uint64_t step)
{
    if (step == world->model.step + 1 && !sim_model_commit(&world->model, discards(world, i, step)))
        sim_violation(world, "shard %u has committed step %llu, which a rank never sealed", i,
                      (unsigned long long)step);
    if (step > world->model.step)
        sim_violation(world, "shard %u has committed step %llu after step %llu", i,
                      (unsigned long long)step, (unsigned long long)world->model.step);
    if (step + 1 < world->model.step)
        sim_violation(world, "shard %u has step %llu, another step %llu", i,
                      (unsigned long long)step, (unsigned long long)world->model.step);
}

/* ---- Its tables */

typedef struct rows_look {
    mn_call call; /* first */
    mn_span span;
    uint32_t indices[SIM_ROWS_MAX];
    float rows[2 * SIM_ROWS_MAX * SIM_DIM_MAX]; /* then their state */
} rows_look;

static uint8_t *rows_buffer(mn_call *call, uint64_t bytes)
{
    rows_look *l = (rows_look *)call;
    assert(bytes <= sizeof l->rows);
    return (uint8_t *)l->rows;
}

static void asked(mn_call *call) { (void)call; /* read where it was asked */ }

/* As a reader that has come from nowhere; the answer counts even if it must wait for the log. */
static enum mn_status ask(const sim_shard *shard, mn_call *call, enum mn_verb verb)
{
    call->request.verb = verb;
    call->request.context = (mn_context){
        .version = MN_PROTOCOL_VERSION, .map_epoch = shard->epoch, .remaining_ms = 1000};
    (void)snprintf(call->request.context.group, MN_NAME_BYTES, "sim");
    call->reserve = rows_buffer;
    call->finish = asked;
    memset(&call->reply, 0, sizeof call->reply);
    mn_shard_handle(shard->core, call);
    enum mn_status status = call->reply.status;
    if (call->core)
        mn_shard_abandon(shard->core, call);
    return status;
}

static uint32_t rows_held(const mn_geometry *geometry, const mn_table_info *info, rows_look *l)
{
    uint32_t count = 0;
    for (uint32_t tile = info->tile_first; tile < info->tile_first + info->tile_count; tile++) {
        if (geometry->split == MN_COLUMNS && tile > info->tile_first)
            break; /* every tile has them all */
        for (uint64_t offset = 0; offset < mn_tile_rows(geometry, tile); offset++)
            l->indices[count++] = (uint32_t)mn_row_of(geometry, tile, offset);
    }
    return count;
}

static bool rows_are(const sim_model *model, uint32_t table, uint64_t step, const rows_look *l,
                     const mn_table_info *info)
{
    const mn_geometry *geometry = &model->geometries[table];
    uint32_t count = (uint32_t)l->call.request.count, first = 0, columns = geometry->dim;
    const float *sums = model->sums[step];
    if (table == SIM_BAGS) {
        first = mn_tile_first_column(geometry, info->tile_first);
        columns = 0;
        for (uint32_t tile = 0; tile < info->tile_count; tile++)
            columns += mn_tile_columns(geometry, info->tile_first + tile);
    }
    for (uint32_t i = 0; i < count; i++) {
        size_t at = (size_t)l->indices[i] * geometry->dim + first;
        if (memcmp(model->values[table][step] + at, l->rows + (size_t)i * columns,
                   columns * sizeof *sums) != 0 ||
            (table == SIM_BAGS && memcmp(sums + at, l->rows + (size_t)(count + i) * columns,
                                         columns * sizeof *sums) != 0))
            return false;
    }
    return true;
}

/* All that the shard holds of a table, value and optimizer state, is the model's of its step. */
static void check_table(sim_world *world, uint32_t i, uint32_t table, uint64_t step)
{
    static rows_look l;
    const sim_shard *shard = &world->shards[i];
    const sim_model *model = &world->model;
    memset(&l.call.request, 0, sizeof l.call.request);
    memcpy(l.call.request.spec.name, model->specs[table].name, MN_NAME_BYTES);
    enum mn_status status = ask(shard, &l.call, MN_VERB_DESCRIBE);
    if (status == MN_NOT_FOUND && !step)
        return; /* nobody has made it yet */
    mn_table_info info = {0};
    if (!status && l.call.reply.table_count)
        info = l.call.reply.tables[0];
    if (!status && !info.tile_count)
        return; /* more shards than tiles */
    l.call.request = (mn_request){.table = info.table,
                                  .tile_first = info.tile_first,
                                  .tile_count = info.tile_count,
                                  .count = rows_held(&model->geometries[table], &info, &l),
                                  .with_state = table == SIM_BAGS,
                                  .read = MN_READ_LATEST};
    l.span = (mn_span){(const uint8_t *)l.indices, l.call.request.count * sizeof *l.indices};
    l.call.request.payload = (mn_payload){&l.span, 1, l.span.count};
    if (!status)
        status = ask(shard, &l.call, MN_VERB_FETCH);
    if (status)
        sim_violation(world, "shard %u does not show table %u: %s", i, table,
                      l.call.reply.error.message);
    else if (!rows_are(model, table, step, &l, &info))
        sim_violation(world, "shard %u: table %u at step %llu is not the model's", i, table,
                      (unsigned long long)step);
}

/* Which tiles the shard holds; true: other ones than before. */
static bool list_tiles(const sim_world *world, sim_shard *shard)
{
    static rows_look l;
    bool changed = false;
    memset(&l.call.request, 0, sizeof l.call.request);
    if (ask(shard, &l.call, MN_VERB_LIST))
        return false;
    shard->held_epoch = shard->epoch;
    for (uint32_t t = 0; t < SIM_TABLES; t++) {
        mn_table_info info = {0};
        for (uint32_t n = 0; n < l.call.reply.table_count; n++)
            if (!strcmp(l.call.reply.tables[n].spec.name, world->model.specs[t].name))
                info = l.call.reply.tables[n];
        changed = changed || info.tile_first != shard->held[t].tile_first ||
                  info.tile_count != shard->held[t].tile_count;
        shard->held[t] = info;
    }
    return changed;
}

/* Wherever a move has come to, no tile is without a shard. */
static void check_tiles(sim_world *world, uint32_t table)
{
    uint64_t held = 0, all = (UINT64_C(1) << world->model.geometries[table].tiles) - 1;
    for (uint32_t i = 0; i < world->shard_count; i++) {
        const sim_shard *shard = &world->shards[i];
        const mn_table_info *info = &shard->held[table];
        if (!shard->core || shard->held_epoch != world->epoch || !info->table)
            return; /* it will hold what it held, or has yet to be told */
        held |= ((UINT64_C(1) << info->tile_count) - 1) << info->tile_first;
    }
    if (held != all)
        sim_violation(world, "no shard holds tiles %llx of table %u",
                      (unsigned long long)(all & ~held), table);
}

/* No message of it, however late, brings a move back. Where it took its tiles to, it stands on. */
static void check_moves(sim_world *world, uint32_t i)
{
    const mn_table_info *held = world->shards[i].held;
    uint64_t ended = 0;
    for (uint32_t t = 0; t < SIM_TABLES; t++)
        ended = held[t].moved > ended ? held[t].moved : ended;
    for (uint32_t t = 0; t < SIM_TABLES; t++)
        if (held[t].move && held[t].move + (held[t].move_to == i) <= ended)
            sim_violation(world, "move %llu stands at shard %u, where %llu has ended",
                          (unsigned long long)held[t].move, i, (unsigned long long)ended);
}

/* When it has committed, loaded or come back, or tiles have come or gone. */
static void check_tables(sim_world *world, uint32_t i, uint64_t step)
{
    sim_shard *shard = &world->shards[i];
    bool moved = world->config.moves && list_tiles(world, shard);
    check_moves(world, i);
    for (uint32_t table = 0; moved && !world->config.ruin && table < SIM_TABLES; table++)
        check_tiles(world, table); /* a ruin may take some: callers are told */
    if (shard->shown_epoch == shard->epoch && shard->shown_step == step &&
        shard->shown_life == shard->lives && !moved)
        return;
    shard->shown_epoch = shard->epoch;
    shard->shown_step = step;
    shard->shown_life = shard->lives;
    for (uint32_t table = 0; table < SIM_TABLES && !world->failed; table++)
        check_table(world, i, table, step);
}

/* A home shard that has lost the group, all of it, draws another epoch. That is a group of its own:
 * who never had the first one takes it from whoever joins, as if that had never been, who has it
 * refuses it, and whoever was told of the first one is told of the loss before a step of the second
 * is made without him. */
static bool is_drawn_anew(sim_world *world, uint32_t i, const mn_group_info *group, bool new_life)
{
    sim_shard *shard = &world->shards[i];
    bool had_it = shard->epoch && shard->epoch == world->epoch && !shard->behind;
    if (i == 0 && shard->behind && new_life)
        world->redrawn = group->map_epoch;
    if (!had_it && world->redrawn && group->map_epoch == world->redrawn)
        shard->redrawn = group->map_epoch; /* the home shard may draw another yet */
    if (!shard->redrawn || group->map_epoch != shard->redrawn)
        return false;
    if (group->committed_step)
        sim_violation(world, "shard %u has step %llu of epoch %llu, but the group's was %llu", i,
                      (unsigned long long)group->committed_step,
                      (unsigned long long)group->map_epoch, (unsigned long long)world->epoch);
    return true;
}

/* When it has come back: what it replayed is of its last life. */
static void check_log(sim_world *world, uint32_t i)
{
    sim_shard *shard = &world->shards[i];
    const struct group *group = mn_shard_group_find(shard->core, "sim");
    if (shard->replayed_life == shard->lives || world->config.ruin ||
        world->config.durability != MN_DURABILITY_SYNC || mn_shard_state(shard->core, NULL))
        return;
    shard->replayed_life = shard->lives;
    if (group && group->log.written &&
        !sim_disk_replays(&shard->disk, group->map_epoch, group->log.image, group->log.written,
                          group->log.history))
        sim_violation(world, "shard %u has replayed %llu records, not those of its last life", i,
                      (unsigned long long)group->log.written);
}

void sim_check_shard(sim_world *world, uint32_t i)
{
    sim_shard *shard = &world->shards[i];
    mn_group_info group;
    if (!shard->core)
        return;
    check_log(world, i);
    if (!sim_look_at(shard, &group))
        return;
    bool same = group.map_epoch == shard->epoch;
    /* When all of its log is gone, the group may be made anew. */
    bool new_life = !same && shard->epoch && !mn_epoch_restores(group.map_epoch);
    if (is_drawn_anew(world, i, &group, new_life))
        return;
    if (shard->behind && (new_life || (same && group.committed_step < shard->step))) {
        if (group.map_epoch == world->epoch && same)
            check_tables(world, i, group.committed_step);
        return; /* its callers will find out */
    }
    check_budgets(world, i, &group);
    if (group.map_epoch < shard->epoch ||
        (group.map_epoch == shard->epoch && group.committed_step < shard->step))
        sim_violation(world, "shard %u went back from step %llu to %llu", i,
                      (unsigned long long)shard->step, (unsigned long long)group.committed_step);
    if (group.map_epoch != shard->epoch)
        sim_trace(world, "shard %u has epoch %llu, step %llu", i,
                  (unsigned long long)group.map_epoch, (unsigned long long)group.committed_step);
    shard->epoch = group.map_epoch;
    shard->step = group.committed_step;
    bool fresh = world->stage == SIM_LOADING && world->config.shards_after != world->config.shards;
    if (!world->epoch)
        world->epoch = group.map_epoch; /* the home shard has drawn it */
    if (fresh && mn_epoch_restores(group.map_epoch) <= mn_epoch_restores(world->epoch))
        return; /* a late Join has made an empty group, which the restore will replace */
    if (group.map_epoch == world->epoch) {
        sim_follow(world, i, group.committed_step);
        if (!world->failed)
            check_tables(world, i, group.committed_step);
    } else if (world->stage != SIM_LOADING) {
        sim_violation(world, "shard %u has epoch %llu, the group %llu", i,
                      (unsigned long long)group.map_epoch, (unsigned long long)world->epoch);
    }
}
