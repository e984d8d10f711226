/* What trainers intend: a pure function of (seed, rank, step), so that a replay intends the same; a
 * fickle trainer's next life intends something else, so that mixing two lives shows. */
#include "sim.h"

#include <string.h>

static const struct {
    uint64_t rows;
    uint32_t dim, tiles;
} shapes[SIM_TABLES] = {{37, 80, 5}, {64, 16, 8}};

enum { PARTS_MAX = 3, STORE_PART = 7, HOT_ROWS = 5 };

static sim_random random_of(const sim_config *config, uint64_t a, uint64_t b, uint64_t c)
{
    sim_random random = {config->seed * 31 + 7};
    random.state ^= sim_next(&random) + a;
    random.state ^= sim_next(&random) + b;
    random.state ^= sim_next(&random) + c;
    (void)sim_next(&random); /* so that neighbours' first numbers differ */
    return random;
}

void sim_script_spec(const sim_config *config, uint32_t table, mn_table_spec *out_spec)
{
    mn_table_spec spec = {0};
    (void)snprintf(spec.name, sizeof spec.name, table == SIM_BAGS ? "bags" : "rows");
    spec.rows = shapes[table].rows;
    spec.dim = shapes[table].dim;
    spec.tiles = shapes[table].tiles;
    spec.split = table == SIM_BAGS ? MN_COLUMNS : MN_ROWS;
    spec.seed = config->seed + table;
    spec.init = mn_init_uniform(-1, 1);
    spec.optimizer = table == SIM_BAGS ? mn_adagrad(1e-3f) : mn_sgd();
    *out_spec = spec;
}

/* Half of the reads fall on a few hot rows, so that ranks and parts meet in one row. */
static void fill_indices(sim_random *random, uint32_t table, uint32_t n, uint32_t *out_indices)
{
    for (uint32_t i = 0; i < n; i++)
        out_indices[i] =
            (uint32_t)sim_below(random, sim_chance(random, 500) ? HOT_ROWS : shapes[table].rows);
}

static void fill_call(sim_random *random, enum mn_operation_kind kind, uint32_t table,
                      uint32_t part, sim_call *out_call)
{
    bool bag = kind == MN_OP_BAG || kind == MN_OP_BAG_GRAD;
    *out_call = (sim_call){.kind = kind, .table = table, .part = part};
    out_call->count = 1 + (uint32_t)sim_below(random, bag ? 4 : SIM_COUNT_MAX);
    out_call->per_query = bag ? 1 + (uint32_t)sim_below(random, 6) : 1;
    uint32_t reads = out_call->count * out_call->per_query;
    fill_indices(random, table, reads, out_call->indices);
    for (uint32_t i = 0; i < reads; i++)
        out_call->weights[i] = sim_float(random);
    for (uint32_t i = 0; i < out_call->count * shapes[table].dim; i++)
        out_call->values[i] = sim_float(random);
}

uint32_t sim_script_calls(const sim_config *config, uint32_t rank, uint64_t step, uint32_t life,
                          sim_call *out_calls)
{
    sim_random random = random_of(config, rank, step, config->fickle ? life : 0);
    uint32_t n = 0, parts = 1 + (uint32_t)sim_below(&random, PARTS_MAX);
    for (uint32_t part = 0; part < parts; part++) {
        if (!sim_chance(&random, 100))
            fill_call(&random, MN_OP_BAG_GRAD, SIM_BAGS, part, &out_calls[n++]);
        if (!sim_chance(&random, 100))
            fill_call(&random, MN_OP_PUSH, SIM_ROWS, part, &out_calls[n++]);
    }
    if (sim_chance(&random, 300))
        fill_call(&random, MN_OP_STORE, SIM_ROWS, STORE_PART, &out_calls[n++]);
    if (sim_chance(&random, 200))
        fill_call(&random, MN_OP_PUSH, SIM_BAGS, STORE_PART, &out_calls[n++]);
    return n;
}

void sim_script_read(const sim_config *config, uint32_t rank, uint64_t step, uint32_t table,
                     sim_call *out_call)
{
    sim_random random = random_of(config, 100 + rank, step, table);
    fill_call(&random, table == SIM_BAGS ? MN_OP_BAG : MN_OP_FETCH, table, 0, out_call);
}

bool sim_script_discards(const sim_config *config, uint32_t rank, uint64_t step)
{
    sim_random random = random_of(config, 200 + rank, step, 0);
    return config->discards && sim_chance(&random, 150);
}

bool sim_script_reduces(const sim_config *config, uint64_t step)
{
    sim_random random = random_of(config, 300, step, 0);
    return sim_chance(&random, 500);
}

double sim_script_reduce_value(const sim_config *config, uint32_t rank, uint64_t step)
{
    sim_random random = random_of(config, 400 + rank, step, 0);
    return (double)sim_float(&random) / 3; /* so that the order of the sum shows */
}

void sim_script_proposal(const sim_config *config, uint64_t step, const uint64_t *table_ids,
                         mn_proposal *out_proposal)
{
    mn_proposal proposal = {.set_count = SIM_TABLES};
    for (uint32_t i = 0; i < SIM_TABLES; i++) {
        mn_commit_set *set = &proposal.sets[i];
        set->tables[0] = table_ids[i];
        set->table_count = 1;
        set->learning_rate = 0.25f / (float)(step + i);
        set->weight_decay = i ? 0.125f : 0.0f;
        set->scale = 0.5f;
        set->clip_norm = config->clip ? 1.5f : 0;
    }
    *out_proposal = proposal;
}
