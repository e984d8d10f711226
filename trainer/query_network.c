/* The query network of a memory layer: linears with ReLU between, then batch norm, RMS norm, or
 * none. Batch norm is over the tokens of all ranks (facts: statistics of a slice of the batch train
 * another model): first the mean, then the squares around it, in double precision. */
#include <assert.h>
#include <math.h>
#include <stdio.h>

#include "memory_layer.h"
#include "nn.h"

#define NORM_EPS      1e-5
#define NORM_MOMENTUM 0.1

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

static enum mn_status reduce(const mn_run *run, uint32_t memory, const char *what, double *values,
                             uint32_t count)
{
    if (!run->access->reduce)
        return MN_OK;
    char name[MN_NAME_BYTES];
    (void)snprintf(name, sizeof name, "%u.memory%u.%s", run->pass->part, memory, what);
    mn_run_lap(run, &run->workspace->phases.dense_ns);
    enum mn_status status =
        run->access->reduce(run->access->context, name, values, count, run->error);
    mn_run_lap(run, &run->workspace->phases.reduce_ns);
    return status;
}

static enum mn_status batch_statistics(const mn_run *run, uint32_t memory)
{
    mn_memory_saved *saved = &run->workspace->memories[memory];
    uint32_t width = query_width(run);
    double *sums = run->workspace->sums;
    sums[width] = (double)run->tokens;
    mn_nn_column_sums(run->tokens, width, saved->linear, sums);
    enum mn_status status = reduce(run, memory, "mean", sums, width + 1);
    if (status != MN_OK)
        return status;
    double count = sums[width];
    for (uint32_t c = 0; c < width; c++)
        saved->norm_mean[c] = (mn_real)(sums[c] / count);
    mn_nn_column_squares(run->tokens, width, saved->linear, saved->norm_mean, sums);
    status = reduce(run, memory, "squares", sums, width);
    if (status != MN_OK)
        return status;
    mn_real *running = run->statistics + mn_memory_offsets(run->model, memory)->statistics;
    for (uint32_t c = 0; c < width; c++) {
        double unbiased = sums[c] / (count > 1 ? count - 1 : 1);
        saved->norm_inverse[c] = (mn_real)(1 / sqrt(sums[c] / count + NORM_EPS));
        running[c] += (mn_real)(NORM_MOMENTUM * ((double)saved->norm_mean[c] - (double)running[c]));
        running[width + c] += (mn_real)(NORM_MOMENTUM * (unbiased - (double)running[width + c]));
    }
    saved->norm_count = count;
    return MN_OK;
}

static void running_statistics(const mn_run *run, uint32_t memory)
{
    mn_memory_saved *saved = &run->workspace->memories[memory];
    const mn_real *running = run->statistics + mn_memory_offsets(run->model, memory)->statistics;
    uint32_t width = query_width(run);
    for (uint32_t c = 0; c < width; c++) {
        saved->norm_mean[c] = running[c];
        saved->norm_inverse[c] = (mn_real)(1 / sqrt((double)running[width + c] + NORM_EPS));
    }
}

static mn_batch_norm batch_norm_of(const mn_run *run, uint32_t memory)
{
    const mn_memory_saved *saved = &run->workspace->memories[memory];
    mn_batch_norm norm = {
        .rows = run->tokens,
        .width = query_width(run),
        .x = saved->linear,
        .mean = saved->norm_mean,
        .inverse = saved->norm_inverse,
        .gain = run->parameters + mn_memory_offsets(run->model, memory)->query_gain,
    };
    return norm;
}

static enum mn_status batch_norm_forward(const mn_run *run, uint32_t memory)
{
    const mn_layer_offsets *offsets = mn_memory_offsets(run->model, memory);
    if (run->pass->training) {
        enum mn_status status = batch_statistics(run, memory);
        if (status != MN_OK)
            return status;
    } else {
        running_statistics(run, memory);
    }
    mn_batch_norm norm = batch_norm_of(run, memory);
    mn_nn_batch_norm(&norm, run->parameters + offsets->query_shift,
                     run->workspace->memories[memory].query);
    return MN_OK;
}

static enum mn_status batch_norm_backward(const mn_run *run, uint32_t memory)
{
    const mn_layer_offsets *offsets = mn_memory_offsets(run->model, memory);
    uint32_t width = query_width(run);
    double *sums = run->workspace->sums;
    mn_batch_norm norm = batch_norm_of(run, memory);
    mn_nn_batch_norm_sums(&norm, run->workspace->d_query, sums);
    for (uint32_t c = 0; c < width; c++) {
        run->gradients[offsets->query_shift + c] += (mn_real)sums[c];
        run->gradients[offsets->query_gain + c] += (mn_real)sums[width + c];
    }
    enum mn_status status = reduce(run, memory, "back", sums, 2 * width);
    if (status != MN_OK)
        return status;
    mn_nn_batch_norm_grad(&norm, run->workspace->memories[memory].norm_count, sums,
                          run->workspace->d_query);
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
    mn_nn_rms(&rms, saved->linear,
              run->parameters + mn_memory_offsets(run->model, memory)->query_gain,
              saved->norm_inverse, saved->query);
}

static void rms_backward(const mn_run *run, uint32_t memory)
{
    const mn_memory_saved *saved = &run->workspace->memories[memory];
    uint64_t gain = mn_memory_offsets(run->model, memory)->query_gain;
    mn_rms rms = query_rms(run);
    mn_nn_rms_grad(&rms, saved->linear, run->parameters + gain, saved->norm_inverse,
                   run->workspace->d_query, run->gradients + gain, false, run->workspace->d_query);
}

/* ---- The network ---- */

enum mn_status mn_query_forward(const mn_run *run, uint32_t memory, const mn_real *input)
{
    const mn_memory_options *options = options_of(run);
    const mn_layer_offsets *offsets = mn_memory_offsets(run->model, memory);
    mn_memory_saved *saved = &run->workspace->memories[memory];
    uint32_t hidden = hidden_count(options), in = run->model->options.width;
    const mn_real *x = input;
    for (uint32_t i = 0; i < hidden; i++) {
        mn_linear shape = {run->tokens, in, options->query_hidden[i]};
        mn_nn_linear(shape, x, run->parameters + offsets->query[i], 0, saved->hidden[i]);
        mn_nn_bias(shape.rows, shape.out, run->parameters + offsets->query_bias[i],
                   saved->hidden[i]);
        mn_nn_relu(shape.rows * shape.out, saved->hidden[i]);
        x = saved->hidden[i];
        in = shape.out;
    }
    mn_linear last = {run->tokens, in, query_width(run)};
    mn_nn_linear(last, x, run->parameters + offsets->query[hidden], 0, saved->linear);
    if (options->query_norm == MN_QUERY_BATCH)
        return batch_norm_forward(run, memory);
    mn_nn_bias(last.rows, last.out, run->parameters + offsets->query_bias[hidden], saved->linear);
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
        mn_nn_bias_grad(shape.rows, shape.out, d_y, run->gradients + offsets->query_bias[i]);
    mn_nn_linear_grad(shape, input, run->parameters + offsets->query[i], d_y,
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
    if (options->query_norm == MN_QUERY_BATCH) {
        enum mn_status status = batch_norm_backward(run, memory);
        if (status != MN_OK)
            return status;
    }
    bool bias = options->query_norm != MN_QUERY_BATCH;
    const mn_real *d_y = run->workspace->d_query;
    uint32_t out = query_width(run);
    for (uint32_t i = hidden_count(options); i > 0; i--) {
        mn_linear shape = {run->tokens, options->query_hidden[i - 1], out};
        mn_real *d_hidden = run->workspace->d_hidden[i % 2];
        linear_backward(run, memory, i, saved->hidden[i - 1], shape, d_y, bias, d_hidden);
        mn_nn_relu_grad(shape.rows * shape.in, saved->hidden[i - 1], d_hidden);
        d_y = d_hidden;
        out = shape.in;
        bias = true;
    }
    mn_linear first = {run->tokens, run->model->options.width, out};
    linear_backward(run, memory, 0, input, first, d_y, bias, d_input);
    return MN_OK;
}
