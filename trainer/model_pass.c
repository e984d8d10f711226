/* The passes: forward, backward, and the next byte's logits. */
#include <assert.h>

#include "memory_layer.h"

static uint32_t pass_length(const mn_pass *pass, uint32_t sequence)
{
    return pass->lengths ? pass->lengths[sequence] : pass->length;
}

static mn_sequences batch_of(const mn_run *run)
{
    const mn_workspace *ws = run->workspace;
    return (mn_sequences){run->tokens, run->pass->sequences, ws->longest, ws->starts};
}

static mn_attention attention_of(const mn_run *run)
{
    const mn_model_options *options = &run->model->options;
    return (mn_attention){options->width, options->attention_heads, batch_of(run)};
}

static mn_run run_of(mn_workspace *workspace, const mn_real *parameters, mn_real *statistics,
                     mn_real *gradients, const mn_pass *pass, const mn_memory_access *access,
                     mn_error *error)
{
    mn_run run = {.model = workspace->model,
                  .workspace = workspace,
                  .parameters = parameters,
                  .statistics = statistics,
                  .gradients = gradients,
                  .pass = pass,
                  .access = access,
                  .error = error};
    assert(pass->sequences <= workspace->sequences_max);
    for (uint32_t s = 0; s < pass->sequences; s++) {
        assert(pass_length(pass, s) >= 1 &&
               pass_length(pass, s) <= workspace->model->options.context);
        run.tokens += pass_length(pass, s);
    }
    assert(run.tokens >= 1 && run.tokens <= workspace->tokens_max);
    if (access->now_ns)
        workspace->mark_ns = access->now_ns(access->context);
    workspace->nn->begin(workspace->nn, &workspace->room, workspace->scratch);
    return run;
}

/* What a forward pass reads of the text, and where its sequences lie, to where it is computed. */
static void pass_write(const mn_run *run)
{
    const mn_nn *nn = run->workspace->nn;
    const mn_pass *pass = run->pass;
    mn_workspace *ws = run->workspace;
    ws->longest = ws->host_starts[0] = 0;
    for (uint32_t s = 0; s < pass->sequences; s++) {
        uint32_t length = pass_length(pass, s);
        ws->host_starts[s + 1] = ws->host_starts[s] + length;
        ws->longest = length > ws->longest ? length : ws->longest;
    }
    nn->write(nn, ws->starts, ws->host_starts, (pass->sequences + 1) * sizeof *ws->starts);
    nn->write(nn, ws->bytes, pass->tokens, run->tokens * sizeof *ws->bytes);
    if (pass->targets)
        nn->write(nn, ws->targets, pass->targets, run->tokens * sizeof *ws->targets);
}

/* ---- Layers ---- */

static void attention_forward(const mn_run *run, uint32_t index)
{
    const mn_layer_offsets *layer = &run->model->layers[index];
    const mn_real *parameters = run->parameters;
    const mn_nn *nn = run->workspace->nn;
    mn_layer_saved *saved = &run->workspace->layers[index];
    uint32_t width = run->model->options.width;
    nn->norm(nn, run->tokens, width, saved->x1, parameters + layer->norm1, saved->mean1,
             saved->inverse1, saved->n1);
    mn_nn_linear(nn, (mn_linear){run->tokens, width, 3 * width}, saved->n1, parameters + layer->qkv,
                 0, saved->qkv);
    mn_attention attention = attention_of(run);
    nn->attention(nn, &attention, saved->qkv, saved->log_sums, saved->attended,
                  run->workspace->scratch);
    nn->copy(nn, saved->x2, saved->x1, run->tokens * width * sizeof *saved->x2);
    mn_nn_linear(nn, (mn_linear){run->tokens, width, width}, saved->attended,
                 parameters + layer->projection, 1, saved->x2);
}

static void feed_forward(const mn_run *run, uint32_t index, mn_real *x)
{
    const mn_layer_offsets *layer = &run->model->layers[index];
    const mn_nn *nn = run->workspace->nn;
    mn_layer_saved *saved = &run->workspace->layers[index];
    uint32_t width = run->model->options.width, ffn = run->model->options.ffn_width;
    mn_nn_linear(nn, (mn_linear){run->tokens, width, ffn}, saved->n2, run->parameters + layer->up,
                 0, saved->up);
    nn->gelu(nn, run->tokens * ffn, saved->up, saved->active);
    mn_nn_linear(nn, (mn_linear){run->tokens, ffn, width}, saved->active,
                 run->parameters + layer->down, 1, x);
}

static enum mn_status layer_forward(const mn_run *run, uint32_t index, mn_real *x)
{
    const mn_layer_offsets *layer = &run->model->layers[index];
    const mn_nn *nn = run->workspace->nn;
    mn_layer_saved *saved = &run->workspace->layers[index];
    uint32_t width = run->model->options.width;
    bool memory = layer->memory != UINT32_MAX;
    attention_forward(run, index);
    nn->norm(nn, run->tokens, width, saved->x2, run->parameters + layer->norm2, saved->mean2,
             saved->inverse2, saved->n2);
    if (memory) {
        enum mn_status status = mn_memory_forward_start(run, layer->memory, saved->n2);
        if (status != MN_OK)
            return status;
    }
    nn->copy(nn, x, saved->x2, run->tokens * width * sizeof *x);
    if (layer->feed_forward)
        feed_forward(run, index, x);
    return memory ? mn_memory_forward_finish(run, layer->memory, x) : MN_OK;
}

/* d_n = the gradient of n2 through the feed-forward network, added. */
static void feed_forward_backward(const mn_run *run, uint32_t index, mn_real *d_n)
{
    const mn_layer_offsets *layer = &run->model->layers[index];
    const mn_layer_saved *saved = &run->workspace->layers[index];
    const mn_nn *nn = run->workspace->nn;
    mn_workspace *ws = run->workspace;
    uint32_t width = run->model->options.width, ffn = run->model->options.ffn_width;
    mn_nn_linear_grad(nn, (mn_linear){run->tokens, ffn, width}, saved->active,
                      run->parameters + layer->down, ws->d_x, run->gradients + layer->down, 0,
                      ws->d_wide);
    nn->gelu_grad(nn, run->tokens * ffn, saved->up, ws->d_wide);
    mn_nn_linear_grad(nn, (mn_linear){run->tokens, width, ffn}, saved->n2,
                      run->parameters + layer->up, ws->d_wide, run->gradients + layer->up, 1, d_n);
}

static void attention_backward(const mn_run *run, uint32_t index)
{
    const mn_layer_offsets *layer = &run->model->layers[index];
    const mn_layer_saved *saved = &run->workspace->layers[index];
    const mn_nn *nn = run->workspace->nn;
    mn_workspace *ws = run->workspace;
    uint32_t width = run->model->options.width;
    mn_nn_linear_grad(nn, (mn_linear){run->tokens, width, width}, saved->attended,
                      run->parameters + layer->projection, ws->d_x,
                      run->gradients + layer->projection, 0, ws->d_attended);
    mn_attention attention = attention_of(run);
    mn_attention_saved kept = {saved->qkv, saved->log_sums, saved->attended};
    nn->attention_grad(nn, &attention, &kept, ws->d_attended, ws->d_wide, ws->scratch);
    mn_nn_linear_grad(nn, (mn_linear){run->tokens, width, 3 * width}, saved->n1,
                      run->parameters + layer->qkv, ws->d_wide, run->gradients + layer->qkv, 0,
                      ws->d_n);
    mn_norm_saved norm = {saved->x1, run->parameters + layer->norm1, saved->mean1, saved->inverse1};
    nn->norm_grad(nn, run->tokens, width, &norm, ws->d_n, run->gradients + layer->norm1, ws->d_x);
}

/* d_x: from the gradient of the layer's output to that of its input. */
static enum mn_status layer_backward(const mn_run *run, uint32_t index)
{
    const mn_layer_offsets *layer = &run->model->layers[index];
    const mn_layer_saved *saved = &run->workspace->layers[index];
    const mn_nn *nn = run->workspace->nn;
    mn_workspace *ws = run->workspace;
    uint32_t width = run->model->options.width;
    nn->zero(nn, ws->d_n, run->tokens * width * sizeof *ws->d_n);
    bool memory = layer->memory != UINT32_MAX;
    if (memory)
        mn_memory_backward_start(run, layer->memory, saved->n2, ws->d_x, ws->d_n);
    if (layer->feed_forward)
        feed_forward_backward(run, index, ws->d_n);
    if (memory) {
        enum mn_status status = mn_memory_backward_finish(run, layer->memory, saved->n2, ws->d_n);
        if (status != MN_OK)
            return status;
    }
    mn_norm_saved norm = {saved->x2, run->parameters + layer->norm2, saved->mean2, saved->inverse2};
    nn->norm_grad(nn, run->tokens, width, &norm, ws->d_n, run->gradients + layer->norm2, ws->d_x);
    attention_backward(run, index);
    return MN_OK;
}

/* ---- Passes ---- */

/* To the final norm's output. */
static enum mn_status body_forward(const mn_run *run)
{
    const mn_model *model = run->model;
    const mn_nn *nn = run->workspace->nn;
    mn_workspace *ws = run->workspace;
    pass_write(run);
    mn_sequences batch = batch_of(run);
    nn->embed(nn, &batch, model->options.width, ws->bytes, run->parameters + model->bytes,
              run->parameters + model->positions, ws->layers[0].x1);
    for (uint32_t i = 0; i < model->options.layers; i++) {
        mn_real *x = i + 1 < model->options.layers ? ws->layers[i + 1].x1 : ws->x;
        enum mn_status status = layer_forward(run, i, x);
        if (status != MN_OK)
            return status;
    }
    nn->norm(nn, run->tokens, model->options.width, ws->x, run->parameters + model->final_norm,
             ws->mean, ws->inverse, ws->n);
    return MN_OK;
}

enum mn_status mn_model_forward(mn_workspace *workspace, const mn_real *parameters,
                                mn_real *statistics, const mn_pass *pass,
                                const mn_memory_access *access, mn_loss *out_loss, mn_error *error)
{
    mn_run run = run_of(workspace, parameters, statistics, NULL, pass, access, error);
    const mn_nn *nn = workspace->nn;
    enum mn_status status = body_forward(&run);
    if (status == MN_OK && pass->targets) {
        nn->gemm(nn, false, true, run.tokens, MN_BYTES, run.model->options.width, 1, workspace->n,
                 parameters + run.model->head, 0, workspace->logits);
        status = nn->cross_entropy(nn, run.tokens, workspace->logits, workspace->targets, out_loss,
                                   error);
    }
    mn_run_lap(&run, &workspace->phases.dense_ns);
    return status;
}

enum mn_status mn_model_backward(mn_workspace *workspace, const mn_real *parameters,
                                 const mn_pass *pass, double scale, const mn_memory_access *access,
                                 mn_real *gradients, mn_error *error)
{
    mn_run run = run_of(workspace, parameters, NULL, gradients, pass, access, error);
    const mn_model *model = run.model;
    const mn_nn *nn = workspace->nn;
    mn_workspace *ws = workspace;
    uint64_t width = model->options.width;
    assert(pass->training && pass->targets);
    nn->gemm(nn, true, false, MN_BYTES, width, run.tokens, (mn_real)scale, ws->logits, ws->n, 1,
             gradients + model->head);
    nn->gemm(nn, false, false, run.tokens, width, MN_BYTES, (mn_real)scale, ws->logits,
             parameters + model->head, 0, ws->d_n);
    nn->zero(nn, ws->d_x, run.tokens * width * sizeof *ws->d_x);
    mn_norm_saved norm = {ws->x, parameters + model->final_norm, ws->mean, ws->inverse};
    nn->norm_grad(nn, run.tokens, model->options.width, &norm, ws->d_n,
                  gradients + model->final_norm, ws->d_x);
    enum mn_status status = MN_OK;
    for (uint32_t i = model->options.layers; i > 0 && status == MN_OK; i--)
        status = layer_backward(&run, i - 1);
    if (status == MN_OK) {
        mn_sequences batch = batch_of(&run);
        nn->embed_grad(nn, &batch, model->options.width, ws->bytes, ws->d_x,
                       gradients + model->bytes, gradients + model->positions);
        status = nn->wait(nn, error);
    }
    mn_run_lap(&run, &ws->phases.dense_ns);
    return status;
}

enum mn_status mn_model_next(mn_workspace *workspace, const mn_real *parameters,
                             const mn_real *statistics, const mn_pass *pass,
                             const mn_memory_access *access, mn_real *out_logits, mn_error *error)
{
    assert(!pass->training);
    /* statistics change in training only */
    mn_run run = run_of(workspace, parameters, (mn_real *)statistics, NULL, pass, access, error);
    const mn_nn *nn = workspace->nn;
    enum mn_status status = body_forward(&run);
    if (status == MN_OK) {
        uint64_t width = run.model->options.width, end = 0;
        for (uint32_t s = 0; s < pass->sequences; s++) {
            end += pass_length(pass, s);
            nn->gemm(nn, false, true, 1, MN_BYTES, width, 1, workspace->n + (end - 1) * width,
                     parameters + run.model->head, 0, workspace->logits + (uint64_t)s * MN_BYTES);
        }
        status = nn->read(nn, out_logits, workspace->logits,
                          (uint64_t)pass->sequences * MN_BYTES * sizeof *out_logits, error);
    }
    mn_run_lap(&run, &workspace->phases.dense_ns);
    return status;
}
