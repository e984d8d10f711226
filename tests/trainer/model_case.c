#include "model_case.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static void default_u32(uint32_t *value, uint32_t otherwise)
{
    if (!*value)
        *value = otherwise;
}

static mn_model_options tiny(const mn_model_options *options)
{
    mn_model_options filled = *options;
    default_u32(&filled.width, 8);
    default_u32(&filled.layers, 2);
    default_u32(&filled.attention_heads, 2);
    default_u32(&filled.context, 5);
    default_u32(&filled.ffn_width, 12);
    default_u32(&filled.memory.keys, 4);
    default_u32(&filled.memory.heads, 2);
    default_u32(&filled.memory.knn, 3);
    default_u32(&filled.memory.key_dim, 6);
    return filled;
}

/* Parameters a step away from their initial values, so that no gain is 1 and no shift 0. */
static void fill_case(model_case *c, uint64_t seed)
{
    uint64_t state = seed;
    mn_model_init_parameters(&c->model, c->parameters, c->statistics_before);
    for (uint64_t i = 0; i < c->model.parameter_count; i++)
        c->parameters[i] += (mn_real)(0.3 * test_uniform(&state));
    test_fill(&state, 1, c->memory.tables * c->memory.rows * c->memory.dim, c->memory.values);
    for (uint32_t i = 0; i < c->token_count; i++) {
        c->tokens[i] = (uint8_t)(128 + 127 * test_uniform(&state));
        c->targets[i] = (uint16_t)(128 + 127 * test_uniform(&state));
    }
    c->targets[2] = MN_NO_TARGET;
}

void model_case_init(model_case *c, const mn_model_options *options, uint64_t seed)
{
    memset(c, 0, sizeof *c);
    mn_model_options filled = tiny(options);
    enum mn_status status = mn_model_init(&filled, &c->model, NULL);
    assert(status == MN_OK);
    const uint32_t lengths[] = {5, 1, 4};
    memcpy(c->lengths, lengths, sizeof lengths);
    c->token_count = 10;
    c->parameters = calloc(c->model.parameter_count, sizeof(mn_real));
    c->gradients = calloc(c->model.parameter_count, sizeof(mn_real));
    c->statistics = calloc(c->model.statistics_count + 1, sizeof(mn_real));
    c->statistics_before = calloc(c->model.statistics_count + 1, sizeof(mn_real));
    uint64_t bytes = mn_workspace_bytes(&c->model, CASE_TOKENS_MAX, CASE_SEQUENCES_MAX);
    void *memory = aligned_alloc(64, bytes);
    assert(c->parameters && c->gradients && c->statistics && c->statistics_before && memory);
    memset(memory, 0xff, bytes); /* NaN: nothing may be read before it is written */
    c->workspace = mn_workspace_init(&c->model, CASE_TOKENS_MAX, CASE_SEQUENCES_MAX, memory);
    fake_memory_init(&c->memory, &c->model);
    c->access = fake_memory_access(&c->memory);
    fill_case(c, seed);
    c->pass = (mn_pass){.sequences = 3,
                        .lengths = c->lengths,
                        .tokens = c->tokens,
                        .targets = c->targets,
                        .training = true};
    c->scale = 1.0 / 9;
}

void model_case_deinit(model_case *c)
{
    free(c->parameters);
    free(c->gradients);
    free(c->statistics);
    free(c->statistics_before);
    free(c->workspace);
    fake_memory_deinit(&c->memory);
}

double model_case_forward(model_case *c)
{
    mn_loss loss = {0};
    memcpy(c->statistics, c->statistics_before, c->model.statistics_count * sizeof(mn_real));
    c->memory.selected_hash = 0;
    enum mn_status status = mn_model_forward(c->workspace, c->parameters, c->statistics, &c->pass,
                                             &c->access, &loss, NULL);
    assert(status == MN_OK && loss.targets == c->token_count - 1 && c->memory.open == 0);
    return c->scale * loss.nats;
}

double model_case_step(model_case *c)
{
    double loss = model_case_forward(c);
    uint64_t values = c->memory.tables * c->memory.rows * c->memory.dim;
    memset(c->gradients, 0, c->model.parameter_count * sizeof(mn_real));
    memset(c->memory.gradients, 0, values * sizeof(mn_real));
    enum mn_status status = mn_model_backward(c->workspace, c->parameters, &c->pass, c->scale,
                                              &c->access, c->gradients, NULL);
    assert(status == MN_OK && c->memory.open == 0);
    return loss;
}

uint64_t model_case_probe(const mn_model_options *options, uint64_t seed, double *out_loss,
                          uint64_t *out_selected, uint64_t room, double *out_gradients)
{
    model_case c;
    model_case_init(&c, options, seed);
    uint64_t values = c.memory.tables * c.memory.rows * c.memory.dim;
    uint64_t parameters = c.model.parameter_count;
    assert(parameters + values <= room);
    *out_loss = model_case_step(&c);
    *out_selected = c.memory.selected_hash;
    for (uint64_t i = 0; i < parameters; i++)
        out_gradients[i] = (double)c.gradients[i];
    for (uint64_t i = 0; i < values; i++)
        out_gradients[parameters + i] = (double)c.memory.gradients[i];
    model_case_deinit(&c);
    return parameters + values;
}
