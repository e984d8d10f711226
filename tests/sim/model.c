/* What the tables must hold: plain arrays, obvious loops. It keeps the tables of every step, and
 * plays a committed step from the scripts of the lives that sealed it. Order of contributions, and
 * the order of each sum, as proto/STEPS.md and kernels/mn_kernels.h promise them. */
#include "sim.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* All changes of one step, in the order (part, rank, place). */
typedef struct step_calls {
    sim_call calls[SIM_RANKS_MAX * SIM_CALLS_MAX];
    uint32_t count;
} step_calls;

static size_t table_bytes(const mn_table_spec *spec)
{
    return (size_t)spec->rows * spec->dim * sizeof(float);
}

void sim_model_init(sim_model *model, const sim_config *config)
{
    memset(model, 0, sizeof *model);
    model->config = config;
    for (uint32_t t = 0; t < SIM_TABLES; t++) {
        mn_table_spec wanted, *spec = &model->specs[t];
        mn_error error;
        sim_script_spec(config, t, &wanted);
        enum mn_status status = mn_spec_check(&wanted, spec, &error);
        assert(!status);
        mn_geometry_init(spec, &model->geometries[t]);
        for (uint32_t s = 0; s <= SIM_STEPS_MAX; s++) {
            model->values[t][s] = calloc(1, table_bytes(spec));
            assert(model->values[t][s]);
        }
        for (uint64_t row = 0; row < spec->rows; row++)
            mn_kernels_best()->init_row(&spec->init, spec->seed, row, 0, spec->dim, spec->dtype,
                                        model->values[t][0] + row * spec->dim);
    }
    for (uint32_t s = 0; s <= SIM_STEPS_MAX; s++) {
        model->sums[s] = calloc(1, table_bytes(&model->specs[SIM_BAGS]));
        assert(model->sums[s]);
    }
}

void sim_model_deinit(sim_model *model)
{
    for (uint32_t s = 0; s <= SIM_STEPS_MAX; s++) {
        for (uint32_t t = 0; t < SIM_TABLES; t++)
            free(model->values[t][s]);
        free(model->sums[s]);
    }
}

const float *sim_model_row(const sim_model *model, uint32_t table, uint64_t step, uint64_t row)
{
    assert(step <= SIM_STEPS_MAX);
    return model->values[table][step] + row * model->specs[table].dim;
}

static void collect(const sim_model *model, uint64_t step, step_calls *out_all)
{
    out_all->count = 0;
    for (uint32_t part = 0; part < 16; part++) {
        for (uint32_t rank = 0; rank < model->config->ranks; rank++) {
            sim_call calls[SIM_CALLS_MAX];
            uint32_t n =
                sim_script_calls(model->config, rank, step, model->committer[rank][step], calls);
            for (uint32_t i = 0; i < n; i++) {
                if (calls[i].part == part)
                    out_all->calls[out_all->count++] = calls[i];
            }
        }
    }
}

/* merged[c] = the left fold of weight * value over the contributions to `row`; false: none. */
static bool merge_row(const sim_model *model, const step_calls *all, uint32_t table, uint64_t row,
                      float *merged)
{
    uint32_t dim = model->specs[table].dim;
    bool any = false;
    memset(merged, 0, dim * sizeof *merged);
    for (uint32_t i = 0; i < all->count; i++) {
        const sim_call *call = &all->calls[i];
        if (call->table != table || call->kind == MN_OP_STORE)
            continue;
        for (uint32_t j = 0; j < call->count * call->per_query; j++) {
            if (call->indices[j] != row)
                continue;
            const float *value = call->values + (size_t)(j / call->per_query) * dim;
            float weight = call->kind == MN_OP_BAG_GRAD ? call->weights[j] : 1;
            any = true;
            for (uint32_t c = 0; c < dim; c++)
                merged[c] += weight * value[c];
        }
    }
    return any;
}

static void store_rows(sim_model *model, const step_calls *all, uint64_t step)
{
    for (uint32_t i = 0; i < all->count; i++) {
        const sim_call *call = &all->calls[i];
        uint32_t dim = model->specs[call->table].dim;
        if (call->kind != MN_OP_STORE)
            continue;
        for (uint32_t j = 0; j < call->count; j++)
            memcpy(model->values[call->table][step] + (size_t)call->indices[j] * dim,
                   call->values + (size_t)j * dim, dim * sizeof(float));
    }
}

static double tile_square(const float *row, uint32_t columns)
{
    double lane[16] = {0};
    for (uint32_t c = 0; c < columns; c++)
        lane[c % 16] += (double)row[c] * (double)row[c];
    for (uint32_t w = 8; w; w /= 2) {
        for (uint32_t i = 0; i < w; i++)
            lane[i] += lane[i + w];
    }
    return lane[0];
}

/* Σ over tiles ascending of Σ over the tile's rows ascending. */
static double table_square(const sim_model *model, const step_calls *all, uint32_t table)
{
    const mn_geometry *geometry = &model->geometries[table];
    float merged[SIM_DIM_MAX];
    double total = 0;
    for (uint32_t tile = 0; tile < geometry->tiles; tile++) {
        double square = 0;
        for (uint64_t offset = 0; offset < mn_tile_rows(geometry, tile); offset++) {
            if (merge_row(model, all, table, mn_row_of(geometry, tile, offset), merged))
                square += tile_square(merged + mn_tile_first_column(geometry, tile),
                                      mn_tile_columns(geometry, tile));
        }
        total += square;
    }
    return total;
}

static void move_row(const sim_model *model, uint32_t table, const mn_commit_set *set, float factor,
                     const float *merged, float *row, float *sums)
{
    float lr = set->learning_rate, wd = set->weight_decay;
    for (uint32_t c = 0; c < model->specs[table].dim; c++) {
        float g = factor * merged[c] + wd * row[c];
        if (table == SIM_BAGS) {
            sums[c] = sums[c] + g * g;
            row[c] = row[c] - lr * g / (sqrtf(sums[c]) + model->specs[table].optimizer.eps);
        } else {
            row[c] = row[c] - lr * g;
        }
    }
}

static void move_table(sim_model *model, const step_calls *all, uint32_t table, uint64_t step,
                       const mn_commit_set *set)
{
    float merged[SIM_DIM_MAX], factor = set->scale;
    uint32_t dim = model->specs[table].dim;
    double norm = 0;
    if (set->clip_norm > 0) {
        norm = (double)set->scale * sqrt(table_square(model, all, table));
        double shrink = norm > (double)set->clip_norm ? (double)set->clip_norm / norm : 1;
        factor = (float)((double)set->scale * shrink);
    }
    model->norms[table][step] = norm;
    for (uint64_t row = 0; row < model->specs[table].rows; row++) {
        if (merge_row(model, all, table, row, merged))
            move_row(model, table, set, factor, merged, model->values[table][step] + row * dim,
                     model->sums[step] + (table == SIM_BAGS ? row * dim : 0));
    }
}

bool sim_model_commit(sim_model *model, bool discard)
{
    static step_calls all;
    uint64_t step = model->step + 1, ids[SIM_TABLES] = {1, 2};
    assert(step <= SIM_STEPS_MAX);
    for (uint32_t rank = 0; rank < model->config->ranks; rank++) {
        if (!model->committer[rank][step])
            return false;
    }
    for (uint32_t t = 0; t < SIM_TABLES; t++)
        memcpy(model->values[t][step], model->values[t][step - 1], table_bytes(&model->specs[t]));
    memcpy(model->sums[step], model->sums[step - 1], table_bytes(&model->specs[SIM_BAGS]));
    model->step = step;
    model->discarded[step] = discard;
    if (discard)
        return true;
    mn_proposal proposal;
    sim_script_proposal(model->config, step, ids, &proposal);
    collect(model, step, &all);
    store_rows(model, &all, step);
    for (uint32_t t = 0; t < SIM_TABLES; t++)
        move_table(model, &all, t, step, &proposal.sets[t]);
    return true;
}

void sim_model_roll_back(sim_model *model, uint64_t step)
{
    assert(step <= model->step);
    for (uint32_t rank = 0; rank < SIM_RANKS_MAX; rank++) {
        for (uint64_t s = step + 1; s <= SIM_STEPS_MAX; s++)
            model->committer[rank][s] = 0;
    }
    model->step = step;
}

bool sim_model_bag_is(const sim_model *model, uint64_t step, const sim_call *call, uint32_t query,
                      uint32_t tile, const float *bag)
{
    const mn_geometry *geometry = &model->geometries[SIM_BAGS];
    uint32_t first = mn_tile_first_column(geometry, tile);
    for (uint32_t c = first; c < first + mn_tile_columns(geometry, tile); c++) {
        float sum = 0;
        for (uint32_t j = 0; j < call->per_query; j++) {
            uint32_t read = query * call->per_query + j;
            sum +=
                call->weights[read] * sim_model_row(model, SIM_BAGS, step, call->indices[read])[c];
        }
        if (!(sum == bag[c]))
            return false;
    }
    return true;
}

float sim_model_weight_gradient(const sim_model *model, uint64_t step, const sim_call *call,
                                uint32_t query, uint32_t read)
{
    const mn_geometry *geometry = &model->geometries[SIM_BAGS];
    uint32_t row = call->indices[query * call->per_query + read];
    const float *values = sim_model_row(model, SIM_BAGS, step, row);
    const float *gradient = call->values + (size_t)query * geometry->dim;
    float total = 0;
    for (uint32_t tile = 0; tile < geometry->tiles; tile++) {
        float lane[16] = {0};
        uint32_t first = mn_tile_first_column(geometry, tile);
        for (uint32_t c = 0; c < mn_tile_columns(geometry, tile); c++)
            lane[c % 16] += gradient[first + c] * values[first + c];
        for (uint32_t w = 8; w; w /= 2) {
            for (uint32_t i = 0; i < w; i++)
                lane[i] += lane[i + w];
        }
        total += lane[0];
    }
    return total;
}
