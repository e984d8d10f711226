/* Carves a workspace out of two pieces of memory, the host's and that of whoever computes; walked
 * once to measure, once to place. */
#include "workspace.h"

#include <assert.h>

enum { ALIGNMENT = 64 };

typedef struct arena {
    uint8_t *memory; /* NULL: measuring */
    uint64_t used;
} arena;

static void *take(arena *from, uint64_t bytes)
{
    void *at = from->memory ? from->memory + from->used : NULL;
    from->used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return at;
}

static mn_real *take_reals(arena *from, uint64_t count)
{
    return take(from, count * sizeof(mn_real));
}

static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

static uint64_t widest_hidden(const mn_memory_options *options)
{
    uint64_t widest = 0;
    for (uint32_t i = 0; i < MN_QUERY_HIDDEN_MAX; i++)
        widest = larger(widest, options->query_hidden[i]);
    return widest;
}

/* Two sums a feature of the widest batch norm, and a count. */
static uint64_t sums_of(const mn_model_options *options)
{
    const mn_memory_options *memory = &options->memory;
    uint64_t query = (uint64_t)memory->heads * memory->key_dim;
    return options->placement_count ? 2 * larger(query, widest_hidden(memory)) + 1 : 0;
}

static void place_layer(arena *from, const mn_model *model, uint64_t tokens,
                        const mn_layer_offsets *layer, mn_layer_saved *out_saved)
{
    uint64_t width = model->options.width;
    uint64_t ffn = layer->feed_forward ? model->options.ffn_width : 0;
    *out_saved = (mn_layer_saved){
        .x1 = take_reals(from, tokens * width),
        .n1 = take_reals(from, tokens * width),
        .mean1 = take_reals(from, tokens),
        .inverse1 = take_reals(from, tokens),
        .qkv = take_reals(from, tokens * 3 * width),
        .log_sums = take_reals(from, tokens * model->options.attention_heads),
        .attended = take_reals(from, tokens * width),
        .x2 = take_reals(from, tokens * width),
        .n2 = take_reals(from, tokens * width),
        .mean2 = take_reals(from, tokens),
        .inverse2 = take_reals(from, tokens),
        .up = take_reals(from, tokens * ffn),
        .active = take_reals(from, tokens * ffn),
    };
}

static void place_memory(arena *from, const mn_model *model, uint64_t tokens,
                         mn_memory_saved *out_saved)
{
    const mn_memory_options *options = &model->options.memory;
    uint64_t query = (uint64_t)options->heads * options->key_dim;
    uint64_t reads = (uint64_t)options->heads * options->knn;
    uint64_t gate = options->swiglu ? tokens * options->value_dim : 0;
    bool rms = options->query_norm == MN_QUERY_RMS, batch = options->query_norm == MN_QUERY_BATCH;
    *out_saved = (mn_memory_saved){
        .linear = take_reals(from, tokens * query),
        .norm_mean = take_reals(from, batch ? query : 0),
        .norm_inverse = take_reals(from, batch ? query : tokens * options->heads),
        .keys = take_reals(from, rms ? query * options->keys : 0),
        .key_inverse = take_reals(from, rms ? 2 * (uint64_t)options->heads * options->keys : 0),
        .rows = take(from, tokens * reads * sizeof(uint64_t)),
        .weights = take_reals(from, tokens * reads),
        .bag = take_reals(from, tokens * options->value_dim),
        .gate = take_reals(from, gate),
        .gated = take_reals(from, gate),
    };
    out_saved->query = batch || rms ? take_reals(from, tokens * query) : out_saved->linear;
    for (uint32_t i = 0; i < MN_QUERY_HIDDEN_MAX && options->query_hidden[i]; i++) {
        uint64_t width = options->query_hidden[i], normed = options->query_norm_hidden ? width : 0;
        out_saved->hidden[i] = take_reals(from, tokens * width);
        out_saved->hidden_linear[i] = take_reals(from, tokens * normed);
        out_saved->hidden_mean[i] = take_reals(from, normed);
        out_saved->hidden_inverse[i] = take_reals(from, normed);
    }
}

/* Gradients of one memory at a time, and scratch: shared by all memories. */
static void place_memory_gradients(arena *from, const mn_model *model, uint64_t tokens,
                                   mn_workspace *out_workspace)
{
    const mn_memory_options *options = &model->options.memory;
    uint64_t query = (uint64_t)options->heads * options->key_dim;
    uint64_t reads = (uint64_t)options->heads * options->knn, hidden = widest_hidden(options);
    uint64_t gate = options->swiglu ? tokens * options->value_dim : 0;
    bool rms = options->query_norm == MN_QUERY_RMS;
    out_workspace->d_query = take_reals(from, tokens * query);
    out_workspace->d_hidden[0] = take_reals(from, tokens * hidden);
    out_workspace->d_hidden[1] = take_reals(from, tokens * hidden);
    out_workspace->d_bag =
        take_reals(from, options->value_dropout > 0 ? tokens * options->value_dim : gate);
    out_workspace->d_gate = take_reals(from, gate);
    out_workspace->d_gated = take_reals(from, gate);
    out_workspace->d_weights = take_reals(from, tokens * reads);
    out_workspace->d_scores = take_reals(from, tokens * reads);
    out_workspace->d_keys = take_reals(from, rms ? query * options->keys : 0);
}

/* The pass as it is computed from, and what goes between the host and those arrays. */
static void place_pass(arena *host, arena *from, uint64_t tokens, uint32_t sequences,
                       uint64_t sum_count, mn_workspace *out_workspace)
{
    out_workspace->host_starts = take(host, (sequences + 1) * sizeof(uint32_t));
    out_workspace->host_sums = take(host, sum_count * sizeof(double));
    out_workspace->bytes = take(from, tokens);
    out_workspace->targets = take(from, tokens * sizeof(uint16_t));
    out_workspace->starts = take(from, (sequences + 1) * sizeof(uint32_t));
    out_workspace->sums = take(from, sum_count * sizeof(double));
}

static mn_nn_room room_of(const mn_model_options *options, uint64_t tokens, uint32_t sequences)
{
    const mn_memory_options *memory = &options->memory;
    uint64_t widest = larger(larger(3 * (uint64_t)options->width, options->ffn_width), MN_BYTES);
    if (options->placement_count) {
        widest = larger(widest, (uint64_t)memory->heads * memory->key_dim);
        widest = larger(widest, larger(widest_hidden(memory), memory->value_dim));
    }
    mn_sequences batch = {tokens, sequences, options->context, NULL};
    return (mn_nn_room){.widest = (uint32_t)widest,
                        .attention = {options->width, options->attention_heads, batch}};
}

static void place(arena *host, arena *from, const mn_workspace_options *wanted,
                  mn_workspace *out_workspace)
{
    const mn_model *model = wanted->model;
    const mn_nn *nn = wanted->nn ? wanted->nn : mn_nn_cpu();
    const mn_model_options *options = &model->options;
    uint64_t width = options->width, tokens = wanted->tokens;
    mn_workspace workspace = {
        .model = model, .nn = nn, .tokens_max = tokens, .sequences_max = wanted->sequences};
    for (uint32_t i = 0; i < options->layers; i++)
        place_layer(from, model, tokens, &model->layers[i], &workspace.layers[i]);
    workspace.x = take_reals(from, tokens * width);
    workspace.n = take_reals(from, tokens * width);
    workspace.mean = take_reals(from, tokens);
    workspace.inverse = take_reals(from, tokens);
    workspace.logits = take_reals(from, tokens * MN_BYTES);
    workspace.d_x = take_reals(from, tokens * width);
    workspace.d_n = take_reals(from, tokens * width);
    workspace.d_attended = take_reals(from, tokens * width);
    workspace.d_wide = take_reals(from, tokens * larger(3 * width, options->ffn_width));
    place_pass(host, from, tokens, wanted->sequences, sums_of(options), &workspace);
    for (uint32_t i = 0; i < options->placement_count; i++)
        place_memory(from, model, tokens, &workspace.memories[i]);
    if (options->placement_count)
        place_memory_gradients(from, model, tokens, &workspace);
    workspace.search = (mn_search){tokens, options->memory.heads, options->memory.keys,
                                   options->memory.key_dim / 2, options->memory.knn};
    workspace.room = room_of(options, tokens, wanted->sequences);
    workspace.room.search = options->placement_count ? &workspace.search : NULL;
    workspace.room.arrays = from->memory;
    workspace.room.array_bytes = from->used;
    workspace.scratch = take(from, nn->scratch_bytes(nn, &workspace.room));
    if (!from->memory)
        return;
    workspace.room.search = options->placement_count ? &out_workspace->search : NULL;
    *out_workspace = workspace;
}

void mn_workspace_measure(const mn_workspace_options *options, uint64_t *out_host_bytes,
                          uint64_t *out_array_bytes)
{
    arena host = {NULL, 0}, arrays = {NULL, 0};
    (void)take(&host, sizeof(mn_workspace));
    place(&host, &arrays, options, NULL);
    *out_host_bytes = host.used;
    *out_array_bytes = arrays.used;
}

mn_workspace *mn_workspace_place(const mn_workspace_options *options, void *host_memory,
                                 void *array_memory)
{
    assert((uintptr_t)host_memory % ALIGNMENT == 0 && (uintptr_t)array_memory % ALIGNMENT == 0);
    arena host = {host_memory, 0}, arrays = {array_memory, 0};
    mn_workspace *workspace = take(&host, sizeof *workspace);
    place(&host, &arrays, options, workspace);
    return workspace;
}

uint64_t mn_workspace_bytes(const mn_model *model, uint64_t tokens, uint32_t sequences)
{
    mn_workspace_options options = {.model = model, .tokens = tokens, .sequences = sequences};
    uint64_t host, arrays;
    mn_workspace_measure(&options, &host, &arrays);
    return host + arrays;
}

mn_workspace *mn_workspace_init(const mn_model *model, uint64_t tokens, uint32_t sequences,
                                void *memory)
{
    mn_workspace_options options = {.model = model, .tokens = tokens, .sequences = sequences};
    uint64_t host, arrays;
    mn_workspace_measure(&options, &host, &arrays);
    return mn_workspace_place(&options, memory, (uint8_t *)memory + host);
}

mn_phases *mn_workspace_phases(mn_workspace *workspace) { return &workspace->phases; }
