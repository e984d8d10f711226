/* The memory layer's halves (memory_layer.h; Lample et al. 2019 §3; SwiLU gate: Berges et al. 2024,
 * arXiv 2412.09764). */
#include "memory_layer.h"

const mn_layer_offsets *mn_memory_offsets(const mn_model *model, uint32_t memory)
{
    return &model->layers[model->options.placements[memory].layer - 1];
}

static const mn_memory_options *options_of(const mn_run *run)
{
    return &run->model->options.memory;
}

static mn_search search_of(const mn_run *run)
{
    const mn_memory_options *options = options_of(run);
    mn_search search = {run->tokens, options->heads, options->keys, options->key_dim / 2,
                        options->knn};
    return search;
}

static uint32_t reads_per_token(const mn_run *run)
{
    return options_of(run)->heads * options_of(run)->knn;
}

static mn_memory_reads reads_of(const mn_run *run, uint32_t memory)
{
    const mn_memory_saved *saved = &run->workspace->memories[memory];
    mn_memory_reads reads = {
        .table = options_of(run)->shared ? 0 : memory,
        .part = run->pass->part * run->model->options.placement_count + memory,
        .queries = run->tokens,
        .per_query = reads_per_token(run),
        .rows = saved->rows,
        .weights = saved->weights,
    };
    return reads;
}

/* All sub-keys of a memory, as runs of half a key: RMS times 1/sqrt(half) is norm 1. */
static mn_rms key_rms(const mn_run *run)
{
    const mn_memory_options *options = options_of(run);
    uint32_t half = options->key_dim / 2;
    mn_rms rms = {(uint64_t)options->heads * 2 * options->keys, half, 1,
                  (mn_real)(1 / __builtin_sqrt((double)half))};
    return rms;
}

static const mn_real *keys_of(const mn_run *run, uint32_t memory)
{
    return options_of(run)->query_norm == MN_QUERY_RMS
               ? run->workspace->memories[memory].keys
               : run->parameters + mn_memory_offsets(run->model, memory)->keys;
}

/* Scores to weights, in place. */
static void gate_forward(const mn_run *run, mn_real *scores)
{
    const mn_memory_options *options = options_of(run);
    const mn_nn *nn = run->workspace->nn;
    uint64_t groups = run->tokens * options->heads;
    nn->scale(nn, groups * options->knn, 1 / (mn_real)options->temperature, scores);
    if (options->gate == MN_GATE_SOFTMAX)
        nn->softmax(nn, scores, groups, options->knn);
    else
        nn->relu(nn, groups * options->knn, scores);
}

static mn_real *gate_backward(const mn_run *run, const mn_memory_saved *saved)
{
    const mn_memory_options *options = options_of(run);
    const mn_nn *nn = run->workspace->nn;
    mn_workspace *ws = run->workspace;
    uint64_t groups = run->tokens * options->heads, n = groups * options->knn;
    mn_real *d_scores = ws->d_weights;
    if (options->gate == MN_GATE_SOFTMAX) {
        d_scores = ws->d_scores;
        nn->softmax_grad(nn, saved->weights, ws->d_weights, groups, options->knn, d_scores);
    } else {
        nn->relu_grad(nn, n, saved->weights, d_scores);
    }
    nn->scale(nn, n, 1 / (mn_real)options->temperature, d_scores);
    return d_scores;
}

enum mn_status mn_memory_forward_start(const mn_run *run, uint32_t memory, const mn_real *input)
{
    const mn_memory_options *options = options_of(run);
    const mn_layer_offsets *offsets = mn_memory_offsets(run->model, memory);
    const mn_nn *nn = run->workspace->nn;
    mn_workspace *ws = run->workspace;
    mn_memory_saved *saved = &ws->memories[memory];
    enum mn_status status = mn_query_forward(run, memory, input);
    if (status != MN_OK)
        return status;
    if (options->query_norm == MN_QUERY_RMS) {
        mn_rms rms = key_rms(run);
        nn->rms(nn, &rms, run->parameters + offsets->keys, NULL, saved->key_inverse, saved->keys);
    }
    mn_search search = search_of(run);
    mn_run_lap(run, &ws->phases.dense_ns);
    status = nn->search(nn, &search, saved->query, keys_of(run, memory), saved->rows,
                        saved->weights, ws->scratch, run->error);
    mn_run_lap(run, &ws->phases.search_ns);
    if (status != MN_OK)
        return status;
    gate_forward(run, saved->weights);
    mn_memory_reads reads = reads_of(run, memory);
    saved->ticket = run->access->bag_start(run->access->context, &reads, saved->bag);
    if (run->access->selected)
        run->access->selected(run->access->context, memory, &reads);
    if (options->swiglu) {
        mn_linear shape = {run->tokens, run->model->options.width, options->value_dim};
        mn_nn_linear(nn, shape, input, run->parameters + offsets->gate, 0, saved->gate);
    }
    return MN_OK;
}

/* Nothing outside training. */
static void drop(const mn_run *run, uint32_t memory, mn_real *x)
{
    const mn_memory_options *options = options_of(run);
    mn_dropout dropout = {.seed = run->model->options.seed,
                          .step = run->pass->step,
                          .first_position = run->pass->first_position,
                          .layer = run->model->options.placements[memory].layer,
                          .share = options->value_dropout};
    if (run->pass->training && options->value_dropout > 0)
        run->workspace->nn->dropout(run->workspace->nn, &dropout, run->tokens, options->value_dim,
                                    x);
}

enum mn_status mn_memory_forward_finish(const mn_run *run, uint32_t memory, mn_real *x)
{
    const mn_memory_options *options = options_of(run);
    const mn_nn *nn = run->workspace->nn;
    mn_memory_saved *saved = &run->workspace->memories[memory];
    uint32_t width = run->model->options.width;
    mn_run_lap(run, &run->workspace->phases.dense_ns);
    enum mn_status status = run->access->wait(run->access->context, saved->ticket, run->error);
    mn_run_lap(run, &run->workspace->phases.bag_wait_ns);
    if (status != MN_OK)
        return status;
    drop(run, memory, saved->bag);
    if (options->swiglu) {
        mn_linear shape = {run->tokens, options->value_dim, width};
        nn->silu_gate(nn, run->tokens * options->value_dim, saved->bag, saved->gate, saved->gated);
        mn_nn_linear(nn, shape, saved->gated,
                     run->parameters + mn_memory_offsets(run->model, memory)->value_projection, 1,
                     x);
    } else {
        nn->add(nn, run->tokens * width, saved->bag, x);
    }
    return MN_OK;
}

static void start_bag_grad(const mn_run *run, uint32_t memory, const mn_real *d_bag)
{
    mn_memory_reads reads = reads_of(run, memory);
    run->workspace->memories[memory].ticket =
        run->access->bag_grad_start(run->access->context, &reads, d_bag, run->workspace->d_weights);
}

void mn_memory_backward_start(const mn_run *run, uint32_t memory, const mn_real *input,
                              const mn_real *d_out, mn_real *d_input)
{
    const mn_memory_options *options = options_of(run);
    const mn_layer_offsets *offsets = mn_memory_offsets(run->model, memory);
    const mn_memory_saved *saved = &run->workspace->memories[memory];
    const mn_nn *nn = run->workspace->nn;
    mn_workspace *ws = run->workspace;
    uint32_t width = run->model->options.width, value_dim = options->value_dim;
    if (!options->swiglu && options->value_dropout == 0) {
        start_bag_grad(run, memory, d_out);
        return;
    }
    if (!options->swiglu) {
        nn->copy(nn, ws->d_bag, d_out, run->tokens * width * sizeof *d_out);
        drop(run, memory, ws->d_bag);
        start_bag_grad(run, memory, ws->d_bag);
        return;
    }
    const mn_real *projection = run->parameters + offsets->value_projection;
    nn->gemm(nn, false, true, run->tokens, value_dim, width, 1, d_out, projection, 0, ws->d_gated);
    nn->silu_gate_grad(nn, run->tokens * value_dim, saved->bag, saved->gate, ws->d_gated, ws->d_bag,
                       ws->d_gate);
    drop(run, memory, ws->d_bag);
    start_bag_grad(run, memory, ws->d_bag);
    nn->gemm(nn, true, false, value_dim, width, run->tokens, 1, saved->gated, d_out, 1,
             run->gradients + offsets->value_projection);
    mn_linear gate = {run->tokens, width, value_dim};
    mn_nn_linear_grad(nn, gate, input, run->parameters + offsets->gate, ws->d_gate,
                      run->gradients + offsets->gate, 1, d_input);
}

static void search_backward(const mn_run *run, uint32_t memory, const mn_real *d_scores)
{
    const mn_memory_options *options = options_of(run);
    const mn_memory_saved *saved = &run->workspace->memories[memory];
    const mn_nn *nn = run->workspace->nn;
    mn_workspace *ws = run->workspace;
    uint64_t keys = mn_memory_offsets(run->model, memory)->keys;
    mn_search search = search_of(run);
    nn->zero(nn, ws->d_query,
             run->tokens * options->heads * options->key_dim * sizeof *ws->d_query);
    if (options->query_norm != MN_QUERY_RMS) {
        nn->search_grad(nn, &search, saved->query, run->parameters + keys, saved->rows, d_scores,
                        ws->d_query, run->gradients + keys);
        return;
    }
    mn_rms rms = key_rms(run);
    nn->zero(nn, ws->d_keys, rms.runs * rms.width * sizeof *ws->d_keys);
    nn->search_grad(nn, &search, saved->query, saved->keys, saved->rows, d_scores, ws->d_query,
                    ws->d_keys);
    nn->rms_grad(nn, &rms, run->parameters + keys, NULL, saved->key_inverse, ws->d_keys, NULL, true,
                 run->gradients + keys);
}

enum mn_status mn_memory_backward_finish(const mn_run *run, uint32_t memory, const mn_real *input,
                                         mn_real *d_input)
{
    mn_workspace *ws = run->workspace;
    mn_memory_saved *saved = &ws->memories[memory];
    mn_run_lap(run, &ws->phases.dense_ns);
    enum mn_status status = run->access->wait(run->access->context, saved->ticket, run->error);
    mn_run_lap(run, &ws->phases.gradient_wait_ns);
    if (status != MN_OK)
        return status;
    const mn_real *d_scores = gate_backward(run, saved);
    mn_run_lap(run, &ws->phases.dense_ns);
    search_backward(run, memory, d_scores);
    mn_run_lap(run, &ws->phases.search_ns);
    return mn_query_backward(run, memory, input, d_input);
}
