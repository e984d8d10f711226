/* The query network of a memory layer: linears with ReLU between, then batch norm, RMS norm, or
 * none; batch norm may also stand before each ReLU. Batch norm is over the tokens of all ranks
 * (statistics of a slice of the batch train another model): first the mean, then the squares around
 * it, in double precision. */
#include <assert.h>
#include <stdio.h>

#include "memory_layer.h"

static const mn_memory_options *options_of(const mn_run *run)
{
    return &run->model->options.memory;
}

static uint32_t query_width(const mn_run *run)
{
    return options_of(run)->heads * options_of(run)->key_dim;
}

static uint32_t hidden_count(const mn_memory_options *options)
{
    uint32_t count = 0;
    while (count < MN_QUERY_HIDDEN_MAX && options->query_hidden[count])
        count++;
    return count;
}

/* ---- Batch norm ---- */

/* The workspace's sums [count] <- their sums over ranks; by way of the host. */
static enum mn_status reduce(const mn_run *run, uint32_t memory, const char *what, uint32_t number,
                             uint32_t count)
{
    if (!run->access->reduce)
        return MN_OK;
    const mn_nn *nn = run->workspace->nn;
    mn_workspace *ws = run->workspace;
    uint64_t bytes = count * sizeof *ws->sums;
    char name[MN_NAME_BYTES];
    (void)snprintf(name, sizeof name, "%u.memory%u.%s%u", run->pass->part, memory, what, number);
    enum mn_status status = nn->read(nn, ws->host_sums, ws->sums, bytes, run->error);
    mn_run_lap(run, &ws->phases.dense_ns);
    if (status == MN_OK)
        status = run->access->reduce(run->access->context, name, ws->host_sums, count, run->error);
    mn_run_lap(run, &ws->phases.reduce_ns);
    if (status == MN_OK)
        nn->write(nn, ws->sums, ws->host_sums, bytes);
    return status;
}

/* One batch norm: after linear `number`, of a hidden layer or the last. */
typedef struct norm_place {
    uint32_t number, width;
    const mn_real *x;              /* [tokens][width] */
    mn_real *mean, *inverse, *out; /* [width], [width], as x */
    uint64_t gain, shift, statistics;
} norm_place;

static norm_place place_of(const mn_run *run, uint32_t memory, uint32_t number)
{
    const mn_layer_offsets *offsets = mn_memory_offsets(run->model, memory);
    const mn_memory_saved *saved = &run->workspace->memories[memory];
    if (number == hidden_count(options_of(run)))
        return (norm_place){.number = number,
                            .width = query_width(run),
                            .x = saved->linear,
                            .mean = saved->norm_mean,
                            .inverse = saved->norm_inverse,
                            .out = saved->query,
                            .gain = offsets->query_gain,
                            .shift = offsets->query_shift,
                            .statistics = offsets->statistics};
    return (norm_place){.number = number,
                        .width = options_of(run)->query_hidden[number],
                        .x = saved->hidden_linear[number],
                        .mean = saved->hidden_mean[number],
                        .inverse = saved->hidden_inverse[number],
                        .out = saved->hidden[number],
                        .gain = offsets->hidden_gain[number],
                        .shift = offsets->hidden_shift[number],
                        .statistics = offsets->hidden_statistics[number]};
}

/* The sums of the columns, and behind them the tokens that were added up: of all ranks. */
static enum mn_status reduce_with_count(const mn_run *run, uint32_t memory, const norm_place *place,
                                        double *count)
{
    if (!run->access->reduce)
        return MN_OK;
    mn_workspace *ws = run->workspace;
    run->workspace->nn->write(run->workspace->nn, ws->sums + place->width, count, sizeof *count);
    enum mn_status status = reduce(run, memory, "mean", place->number, place->width + 1);
    if (status == MN_OK)
        *count = ws->host_sums[place->width];
    return status;
}

static enum mn_status batch_statistics(const mn_run *run, uint32_t memory, const norm_place *place)
{
    const mn_nn *nn = run->workspace->nn;
    uint32_t width = place->width;
    double *sums = run->workspace->sums, count = (double)run->tokens;
    nn->column_sums(nn, run->tokens, width, place->x, sums);
    enum mn_status status = reduce_with_count(run, memory, place, &count);
    if (status != MN_OK)
        return status;
    nn->batch_mean(nn, width, count, sums, place->mean);
    nn->column_squares(nn, run->tokens, width, place->x, place->mean, sums);
    status = reduce(run, memory, "squares", place->number, width);
    if (status != MN_OK)
        return status;
    nn->batch_variance(nn, width, count, sums, place->mean, place->inverse,
                       run->statistics + place->statistics);
    run->workspace->memories[memory].norm_count = count;
    return MN_OK;
}

static mn_batch_norm batch_norm_of(const mn_run *run, const norm_place *place)
{
    mn_batch_norm norm = {
        .rows = run->tokens,
        .width = place->width,
        .x = place->x,
        .mean = place->mean,
        .inverse = place->inverse,
        .gain = run->parameters + place->gain,
    };
    return norm;
}

static enum mn_status batch_norm_forward(const mn_run *run, uint32_t memory, uint32_t number)
{
    const mn_nn *nn = run->workspace->nn;
    norm_place place = place_of(run, memory, number);
    if (run->pass->training) {
        enum mn_status status = batch_statistics(run, memory, &place);
        if (status != MN_OK)
            return status;
    } else {
        nn->batch_running(nn, place.width, run->statistics + place.statistics, place.mean,
                          place.inverse);
    }
    mn_batch_norm norm = batch_norm_of(run, &place);
    nn->batch_norm(nn, &norm, run->parameters + place.shift, place.out);
    return MN_OK;
}

/* d: the gradient of its output, in place that of its input. */
static enum mn_status batch_norm_backward(const mn_run *run, uint32_t memory, uint32_t number,
                                          mn_real *d)
{
    const mn_nn *nn = run->workspace->nn;
    norm_place place = place_of(run, memory, number);
    uint32_t width = place.width;
    double *sums = run->workspace->sums;
    mn_batch_norm norm = batch_norm_of(run, &place);
    nn->batch_norm_sums(nn, &norm, d, sums);
    nn->add_sums(nn, width, sums, run->gradients + place.shift);
    nn->add_sums(nn, width, sums + width, run->gradients + place.gain);
    enum mn_status status = reduce(run, memory, "back", number, 2 * width);
    if (status != MN_OK)
        return status;
    nn->batch_norm_grad(nn, &norm, run->workspace->memories[memory].norm_count, sums, d);
    return MN_OK;
}

/* ---- RMS norm, of each head's query ---- */

static mn_rms query_rms(const mn_run *run)
{
    const mn_memory_options *options = options_of(run);
    mn_rms rms = {run->tokens * options->heads, options->key_dim, options->heads, 1};
    return rms;
}

static void rms_forward(const mn_run *run, uint32_t memory)
{
    mn_memory_saved *saved = &run->workspace->memories[memory];
    mn_rms rms = query_rms(run);
    run->workspace->nn->rms(run->workspace->nn, &rms, saved->linear,
                            run->parameters + mn_memory_offsets(run->model, memory)->query_gain,
                            saved->norm_inverse, saved->query);
}

static void rms_backward(const mn_run *run, uint32_t memory)
{
    const mn_memory_saved *saved = &run->workspace->memories[memory];
    uint64_t gain = mn_memory_offsets(run->model, memory)->query_gain;
    mn_rms rms = query_rms(run);
    run->workspace->nn->rms_grad(run->workspace->nn, &rms, saved->linear, run->parameters + gain,
                                 saved->norm_inverse, run->workspace->d_query,
                                 run->gradients + gain, false, run->workspace->d_query);
}

/* ---- The network ---- */

enum mn_status mn_query_forward(const mn_run *run, uint32_t memory, const mn_real *input)
{
    const mn_memory_options *options = options_of(run);
    const mn_layer_offsets *offsets = mn_memory_offsets(run->model, memory);
    const mn_nn *nn = run->workspace->nn;
    mn_memory_saved *saved = &run->workspace->memories[memory];
    uint32_t hidden = hidden_count(options), in = run->model->options.width;
    const mn_real *x = input;
    for (uint32_t i = 0; i < hidden; i++) {
        mn_linear shape = {run->tokens, in, options->query_hidden[i]};
        mn_real *out = options->query_norm_hidden ? saved->hidden_linear[i] : saved->hidden[i];
        mn_nn_linear(nn, shape, x, run->parameters + offsets->query[i], 0, out);
        enum mn_status status = MN_OK;
        if (options->query_norm_hidden)
            status = batch_norm_forward(run, memory, i);
        else
            nn->bias(nn, shape.rows, shape.out, run->parameters + offsets->query_bias[i], out);
        if (status != MN_OK)
            return status;
        nn->relu(nn, shape.rows * shape.out, saved->hidden[i]);
        x = saved->hidden[i];
        in = shape.out;
    }
    mn_linear last = {run->tokens, in, query_width(run)};
    mn_nn_linear(nn, last, x, run->parameters + offsets->query[hidden], 0, saved->linear);
    if (options->query_norm == MN_QUERY_BATCH)
        return batch_norm_forward(run, memory, hidden);
    nn->bias(nn, last.rows, last.out, run->parameters + offsets->query_bias[hidden], saved->linear);
    if (options->query_norm == MN_QUERY_RMS)
        rms_forward(run, memory);
    return MN_OK;
}

/* Through linear `i`, whose output's gradient is d_y: the gradient of its input is assigned for a
 * hidden layer, added for the network's input. */
static void linear_backward(const mn_run *run, uint32_t memory, uint32_t i, const mn_real *input,
                            mn_linear shape, const mn_real *d_y, bool bias, mn_real *d_input)
{
    const mn_layer_offsets *offsets = mn_memory_offsets(run->model, memory);
    if (bias)
        run->workspace->nn->bias_grad(run->workspace->nn, shape.rows, shape.out, d_y,
                                      run->gradients + offsets->query_bias[i]);
    mn_nn_linear_grad(run->workspace->nn, shape, input, run->parameters + offsets->query[i], d_y,
                      run->gradients + offsets->query[i], i ? 0 : 1, d_input);
}

enum mn_status mn_query_backward(const mn_run *run, uint32_t memory, const mn_real *input,
                                 mn_real *d_input)
{
    const mn_memory_options *options = options_of(run);
    const mn_memory_saved *saved = &run->workspace->memories[memory];
    assert(run->gradients);
    if (options->query_norm == MN_QUERY_RMS)
        rms_backward(run, memory);
    enum mn_status status = MN_OK;
    if (options->query_norm == MN_QUERY_BATCH)
        status = batch_norm_backward(run, memory, hidden_count(options), run->workspace->d_query);
    bool bias = options->query_norm != MN_QUERY_BATCH;
    const mn_real *d_y = run->workspace->d_query;
    uint32_t out = query_width(run);
    for (uint32_t i = hidden_count(options); i > 0 && !status; i--) {
        mn_linear shape = {run->tokens, options->query_hidden[i - 1], out};
        mn_real *d_hidden = run->workspace->d_hidden[i % 2];
        linear_backward(run, memory, i, saved->hidden[i - 1], shape, d_y, bias, d_hidden);
        run->workspace->nn->relu_grad(run->workspace->nn, shape.rows * shape.in,
                                      saved->hidden[i - 1], d_hidden);
        if (options->query_norm_hidden)
            status = batch_norm_backward(run, memory, i - 1, d_hidden);
        d_y = d_hidden;
        out = shape.in;
        bias = !options->query_norm_hidden;
    }
    if (status != MN_OK)
        return status;
    mn_linear first = {run->tokens, run->model->options.width, out};
    linear_backward(run, memory, 0, input, first, d_y, bias, d_input);
    return MN_OK;
}
