/* Options, the layout of the flat parameter array, initial values, table specs. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "mn_kernels.h"
#include "mn_trainer.h"
#include "mt19937.h"

/* ---- Placements ---- */

enum mn_status mn_placements_parse(const char *text, mn_placement out_placements[MN_LAYERS_MAX],
                                   uint32_t *out_count, mn_error *error)
{
    mn_placement placements[MN_LAYERS_MAX];
    uint32_t count = 0, last = 0;
    const char *at = text;
    while (*at) {
        uint32_t layer = 0;
        while (*at >= '0' && *at <= '9' && layer <= MN_LAYERS_MAX)
            layer = layer * 10 + (uint32_t)(*at++ - '0');
        if (layer <= last || layer > MN_LAYERS_MAX)
            return mn_fail(error, MN_INVALID, "memory-layers",
                           "\"%.100s\": layers are numbers from 1 to %d, ascending", text,
                           MN_LAYERS_MAX);
        bool beside = *at == '+';
        at += beside;
        placements[count++] = (mn_placement){layer, beside};
        last = layer;
        if (*at == ',' && at[1])
            at++;
        else if (*at)
            return mn_fail(error, MN_INVALID, "memory-layers",
                           "\"%.100s\": expected ',' or the end at \"%.20s\"", text, at);
    }
    memcpy(out_placements, placements, count * sizeof *placements);
    *out_count = count;
    return MN_OK;
}

/* ---- Options ---- */

static void default_u32(uint32_t *value, uint32_t otherwise)
{
    if (!*value)
        *value = otherwise;
}

static void fill_defaults(mn_model_options *options)
{
    default_u32(&options->width, 128);
    default_u32(&options->layers, 4);
    default_u32(&options->attention_heads, 4);
    default_u32(&options->context, 128);
    default_u32(&options->ffn_width, 4 * options->width);
    mn_memory_options *memory = &options->memory;
    default_u32(&memory->keys, 512);
    default_u32(&memory->heads, 4);
    default_u32(&memory->knn, 32);
    default_u32(&memory->key_dim, 256);
    default_u32(&memory->value_dim, options->width);
    if (memory->temperature == 0)
        memory->temperature = 1;
    if (memory->value_optimizer.kind == MN_OPTIMIZER_NONE)
        memory->value_optimizer = mn_adam(0.9f, 0.999f, 1e-8f);
    if (memory->value_deviation == 0)
        memory->value_deviation = (float)(1 / sqrt((double)memory->value_dim));
}

static enum mn_status check_between(const char *field, uint32_t value, uint32_t low, uint32_t high,
                                    mn_error *error)
{
    if (value >= low && value <= high)
        return MN_OK;
    return mn_fail(error, MN_INVALID, field, "%u is not between %u and %u", value, low, high);
}

enum { QUERY_HIDDEN_WIDTH_MAX = 1 << 20 };

static enum mn_status check_memory(const mn_model_options *options, mn_error *error)
{
    const mn_memory_options *memory = &options->memory;
    struct {
        const char *field;
        uint32_t value, low, high;
    } ranges[] = {
        {"keys", memory->keys, 1, 1 << 20},
        {"heads", memory->heads, 1, 1024},
        {"knn", memory->knn, 1, 128},
        {"key-dim", memory->key_dim, 2, 8192},
        {"value-dim", memory->value_dim, 1, MN_DIM_MAX},
        {"query-norm", memory->query_norm, MN_QUERY_BATCH, MN_QUERY_RMS},
        {"gate", memory->gate, MN_GATE_SOFTMAX, MN_GATE_RELU},
        {"key-init", memory->key_init, MN_KEYS_UNIFORM, MN_KEYS_META},
        {"heads * knn", memory->heads * memory->knn, 1, MN_PER_QUERY_MAX},
        /* batch norm sends two sums per feature through one reduce */
        {"heads * key-dim", memory->heads * memory->key_dim, 1, MN_REDUCE_VALUES_MAX / 2},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        enum mn_status status =
            check_between(ranges[i].field, ranges[i].value, ranges[i].low, ranges[i].high, error);
        if (status != MN_OK)
            return status;
    }
    if (memory->query_norm_hidden && memory->query_norm != MN_QUERY_BATCH)
        return mn_fail(error, MN_INVALID, "query-norm-hidden",
                       "it is batch norm: --query-norm too");
    if (memory->key_dim % 2)
        return mn_fail(error, MN_INVALID, "key-dim", "%u is odd", memory->key_dim);
    if (memory->knn > (uint64_t)memory->keys * memory->keys)
        return mn_fail(error, MN_INVALID, "knn", "%u exceeds keys^2 = %u rows", memory->knn,
                       memory->keys * memory->keys);
    if (!memory->swiglu && memory->value_dim != options->width)
        return mn_fail(error, MN_INVALID, "value-dim",
                       "%u differs from width %u, which needs the SwiLU gate", memory->value_dim,
                       options->width);
    if (!(memory->temperature > 0 && isfinite(memory->temperature)))
        return mn_fail(error, MN_INVALID, "temperature", "%g is not positive",
                       (double)memory->temperature);
    if (!(memory->value_dropout >= 0 && memory->value_dropout < 1))
        return mn_fail(error, MN_INVALID, "value-dropout", "%g is not from 0 to below 1",
                       (double)memory->value_dropout);
    uint32_t widest = memory->query_norm_hidden ? MN_REDUCE_VALUES_MAX / 2 : QUERY_HIDDEN_WIDTH_MAX;
    for (uint32_t i = 0; i < MN_QUERY_HIDDEN_MAX; i++)
        if (memory->query_hidden[i] > widest)
            return mn_fail(error, MN_INVALID, "query-hidden", "a width of %u exceeds %u",
                           memory->query_hidden[i], widest);
    return MN_OK;
}

static enum mn_status check_options(const mn_model_options *options, mn_error *error)
{
    enum mn_status status = check_between("width", options->width, 1, 65536, error);
    if (status == MN_OK)
        status = check_between("layers", options->layers, 1, MN_LAYERS_MAX, error);
    if (status == MN_OK)
        status = check_between("context", options->context, 1, 1 << 20, error);
    if (status == MN_OK)
        status = check_between("ffn-width", options->ffn_width, 1, 1 << 20, error);
    if (status == MN_OK)
        status = check_between("memory-layers", options->placement_count, 0, MN_LAYERS_MAX, error);
    if (status != MN_OK)
        return status;
    if (options->width % options->attention_heads)
        return mn_fail(error, MN_INVALID, "attention-heads", "%u does not divide width %u",
                       options->attention_heads, options->width);
    for (uint32_t i = 0; i < options->placement_count; i++) {
        uint32_t layer = options->placements[i].layer;
        if (layer < 1 || layer > options->layers)
            return mn_fail(error, MN_INVALID, "memory-layers", "layer %u of a model of %u layers",
                           layer, options->layers);
        if (i && layer <= options->placements[i - 1].layer)
            return mn_fail(error, MN_INVALID, "memory-layers", "layer %u after layer %u", layer,
                           options->placements[i - 1].layer);
    }
    return options->placement_count ? check_memory(options, error) : MN_OK;
}

/* ---- Layout ---- */

__attribute__((format(printf, 5, 6))) static uint64_t
add_segment(mn_model *model, uint64_t count, bool decays, mn_init init, const char *format, ...)
{
    mn_segment *segment = &model->segments[model->segment_count++];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(segment->name, sizeof segment->name, format, arguments);
    va_end(arguments);
    segment->offset = model->parameter_count;
    segment->count = count;
    segment->decays = decays;
    segment->init = init;
    model->parameter_count += count;
    return segment->offset;
}

/* Half the deviation that would keep the variance, as GPT-2's 0.02 at width 768. */
static mn_init linear_init(uint32_t in) { return mn_init_normal((float)(0.5 / sqrt((double)in))); }

/* Outputs into the residual stream: smaller by the root of their number (GPT-2 §2.3). */
static mn_init residual_init(uint32_t in, uint32_t layers)
{
    return mn_init_normal((float)(0.5 / sqrt((double)in * 2 * layers)));
}

static mn_init uniform_init(uint32_t in)
{
    float bound = (float)(1 / sqrt((double)in));
    return mn_init_uniform(-bound, bound);
}

static void add_query_network(mn_model *model, mn_layer_offsets *layer, uint32_t number)
{
    const mn_memory_options *memory = &model->options.memory;
    uint32_t in = model->options.width, query = memory->heads * memory->key_dim;
    for (uint32_t i = 0; i <= MN_QUERY_HIDDEN_MAX; i++) {
        bool last = i == MN_QUERY_HIDDEN_MAX || !memory->query_hidden[i];
        uint32_t out = last ? query : memory->query_hidden[i];
        layer->query[i] = add_segment(model, (uint64_t)in * out, true, uniform_init(in),
                                      "layer%u.memory.query%u", number, i);
        /* batch norm would take a bias away again */
        bool normed = last ? memory->query_norm == MN_QUERY_BATCH : memory->query_norm_hidden;
        if (!normed)
            layer->query_bias[i] = add_segment(model, out, false, uniform_init(in),
                                               "layer%u.memory.query%u.bias", number, i);
        if (last)
            break;
        if (normed) {
            layer->hidden_gain[i] = add_segment(model, out, false, mn_init_constant(1),
                                                "layer%u.memory.query%u.gain", number, i);
            layer->hidden_shift[i] = add_segment(model, out, false, mn_init_zero(),
                                                 "layer%u.memory.query%u.shift", number, i);
        }
        in = out;
    }
    if (memory->query_norm != MN_QUERY_NONE)
        layer->query_gain = add_segment(model, query, false, mn_init_constant(1),
                                        "layer%u.memory.query.gain", number);
    if (memory->query_norm == MN_QUERY_BATCH)
        layer->query_shift =
            add_segment(model, query, false, mn_init_zero(), "layer%u.memory.query.shift", number);
}

/* Running mean and variance of `width` features. */
static uint64_t add_statistics(mn_model *model, uint32_t width)
{
    uint64_t offset = model->statistics_count;
    model->statistics_count += 2 * (uint64_t)width;
    return offset;
}

static void add_memory(mn_model *model, mn_layer_offsets *layer, uint32_t number)
{
    const mn_memory_options *memory = &model->options.memory;
    uint32_t width = model->options.width, query = memory->heads * memory->key_dim;
    add_query_network(model, layer, number);
    layer->keys = add_segment(
        model, (uint64_t)query * memory->keys, false,
        uniform_init(memory->key_init == MN_KEYS_META ? memory->key_dim : memory->key_dim / 2),
        "layer%u.memory.keys", number);
    if (memory->swiglu) {
        uint64_t count = (uint64_t)width * memory->value_dim;
        float out = (float)(1 / sqrt((double)memory->value_dim));
        layer->gate =
            add_segment(model, count, true, mn_init_normal((float)(1 / sqrt((double)width))),
                        "layer%u.memory.gate", number);
        layer->value_projection = add_segment(model, count, true, mn_init_normal(out),
                                              "layer%u.memory.projection", number);
    }
    if (memory->query_norm == MN_QUERY_BATCH)
        layer->statistics = add_statistics(model, query);
    for (uint32_t i = 0; i < MN_QUERY_HIDDEN_MAX && memory->query_norm_hidden; i++)
        layer->hidden_statistics[i] = add_statistics(model, memory->query_hidden[i]);
}

static void add_layer(mn_model *model, uint32_t index)
{
    const mn_model_options *options = &model->options;
    mn_layer_offsets *layer = &model->layers[index];
    uint32_t number = index + 1, layers = options->layers;
    uint64_t width = options->width, ffn = options->ffn_width;
    layer->memory = UINT32_MAX;
    layer->feed_forward = true;
    for (uint32_t i = 0; i < options->placement_count; i++)
        if (options->placements[i].layer == number) {
            layer->memory = i;
            layer->feed_forward = options->placements[i].beside;
        }
    mn_init one = mn_init_constant(1);
    layer->norm1 = add_segment(model, width, false, one, "layer%u.norm1", number);
    layer->qkv = add_segment(model, 3 * width * width, true, linear_init(options->width),
                             "layer%u.attention.qkv", number);
    layer->projection =
        add_segment(model, width * width, true, residual_init(options->width, layers),
                    "layer%u.attention.projection", number);
    layer->norm2 = add_segment(model, width, false, one, "layer%u.norm2", number);
    if (layer->feed_forward) {
        layer->up = add_segment(model, width * ffn, true, linear_init(options->width),
                                "layer%u.ffn.up", number);
        layer->down =
            add_segment(model, ffn * width, true, residual_init(options->ffn_width, layers),
                        "layer%u.ffn.down", number);
    }
    if (layer->memory != UINT32_MAX)
        add_memory(model, layer, number);
}

enum mn_status mn_model_init(const mn_model_options *options, mn_model *out_model, mn_error *error)
{
    mn_model_options filled = *options;
    fill_defaults(&filled);
    enum mn_status status = check_options(&filled, error);
    if (status != MN_OK)
        return status;
    memset(out_model, 0, sizeof *out_model);
    out_model->options = filled;
    uint64_t width = filled.width;
    mn_init small = mn_init_normal((float)(0.5 / sqrt((double)width)));
    out_model->bytes = add_segment(out_model, MN_BYTES * width, true, small, "bytes");
    out_model->positions =
        add_segment(out_model, filled.context * width, false, small, "positions");
    for (uint32_t layer = 0; layer < filled.layers; layer++)
        add_layer(out_model, layer);
    out_model->final_norm = add_segment(out_model, width, false, mn_init_constant(1), "final.norm");
    out_model->head = filled.tied ? out_model->bytes
                                  : add_segment(out_model, MN_BYTES * width, true, small, "head");
    out_model->table_count =
        filled.memory.shared && filled.placement_count ? 1 : filled.placement_count;
    return MN_OK;
}

/* ---- What a program creates from the model ---- */

/* XLM, xlm/model/memory/utils.py: RandomState(seed).uniform(-bound, bound, (n, half)) as f32. */
static void init_keys_as_xlm(const mn_memory_options *memory, mn_real *keys)
{
    uint32_t half = memory->key_dim / 2;
    double bound = 1 / sqrt((double)half);
    for (uint32_t set = 0; set < 2 * memory->heads; set++) {
        mn_mt19937 generator;
        mn_mt19937_seed(&generator, set); /* 2 * head + half */
        for (uint64_t i = 0; i < (uint64_t)memory->keys * half; i++)
            *keys++ = (mn_real)(float)(-bound + 2 * bound * mn_mt19937_double(&generator));
    }
}

static void init_statistics(mn_real *statistics, uint32_t width)
{
    for (uint32_t i = 0; i < 2 * width; i++)
        statistics[i] = i < width ? 0 : 1;
}

void mn_model_init_parameters(const mn_model *model, mn_real *parameters, mn_real *statistics)
{
    enum { CHUNK = 256 };
    float chunk[CHUNK];
    const mn_kernels *kernels = mn_kernels_best();
    for (uint32_t s = 0; s < model->segment_count; s++) {
        const mn_segment *segment = &model->segments[s];
        for (uint64_t first = 0; first < segment->count; first += CHUNK) {
            uint64_t left = segment->count - first, n = left < CHUNK ? left : CHUNK;
            kernels->init_row(&segment->init, model->options.seed, s, (uint32_t)first, (uint32_t)n,
                              MN_F32, chunk);
            for (uint64_t i = 0; i < n; i++)
                parameters[segment->offset + first + i] = (mn_real)chunk[i];
        }
    }
    const mn_model_options *options = &model->options;
    for (uint32_t i = 0; i < options->placement_count; i++)
        if (options->memory.key_init == MN_KEYS_XLM)
            init_keys_as_xlm(&options->memory,
                             parameters + model->layers[options->placements[i].layer - 1].keys);
    for (uint32_t i = 0; i < options->placement_count && model->statistics_count; i++) {
        const mn_layer_offsets *layer = &model->layers[options->placements[i].layer - 1];
        init_statistics(statistics + layer->statistics,
                        options->memory.heads * options->memory.key_dim);
        for (uint32_t h = 0; h < MN_QUERY_HIDDEN_MAX && options->memory.query_norm_hidden; h++)
            init_statistics(statistics + layer->hidden_statistics[h],
                            options->memory.query_hidden[h]);
    }
}

void mn_model_table_spec(const mn_model *model, uint32_t table, mn_table_spec *out_spec)
{
    const mn_memory_options *memory = &model->options.memory;
    mn_table_spec spec = {
        .rows = (uint64_t)memory->keys * memory->keys,
        .dim = memory->value_dim,
        .dtype = memory->value_dtype,
        .split = MN_COLUMNS,
        .seed = model->options.seed + 1 + table, /* the seed itself is the parameters' */
        .init = mn_init_normal(memory->value_deviation),
        .optimizer = memory->value_optimizer,
    };
    if (memory->shared)
        (void)snprintf(spec.name, sizeof spec.name, "values");
    else
        (void)snprintf(spec.name, sizeof spec.name, "values%u",
                       model->options.placements[table].layer);
    *out_spec = spec;
}

static uint64_t memory_work(const mn_model_options *options)
{
    const mn_memory_options *memory = &options->memory;
    uint64_t work = 0, in = options->width, query = (uint64_t)memory->heads * memory->key_dim;
    for (uint32_t i = 0; i < MN_QUERY_HIDDEN_MAX && memory->query_hidden[i]; i++) {
        work += in * memory->query_hidden[i];
        in = memory->query_hidden[i];
    }
    work += in * query + query * memory->keys;
    work += (uint64_t)memory->heads * memory->knn * memory->value_dim;
    return work + (memory->swiglu ? 2 * (uint64_t)options->width * memory->value_dim : 0);
}

uint64_t mn_model_token_work(const mn_model *model)
{
    const mn_model_options *options = &model->options;
    uint64_t width = options->width, work = MN_BYTES * width;
    for (uint32_t i = 0; i < options->layers; i++) {
        const mn_layer_offsets *layer = &model->layers[i];
        work += 4 * width * width;
        work += layer->feed_forward ? 2 * width * options->ffn_width : 0;
        work += layer->memory != UINT32_MAX ? memory_work(options) : 0;
    }
    return work;
}
