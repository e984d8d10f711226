/* The whole model computed by a GPU, or by tests/gpu/emulator in its place, against the CPU's: the
 * same rows are selected; loss, statistics and every gradient within rounding. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "gpu_case.h"

/* Relative to all gradients of their kind. The two sides add in other orders: some hundred
 * roundings one after the other, each of 2^-24 and independent, come to about 2^-20. */
#define TOLERANCE 0x1p-18
/* bf16 rounds a factor by up to 2^-9, and ten products stand one after the other. */
#define TOLERANCE_BF16 0x1p-6

static mn_nn *gpu_open(bool bf16_products)
{
    const mn_nn_cuda_options options = {.bf16_products = bf16_products};
    mn_nn *nn;
    mn_error error;
    enum mn_status status = mn_nn_cuda_open(&options, &nn, &error);
    if (status == MN_UNAVAILABLE && !strcmp(error.field, "device"))
        skip();
    if (status != MN_OK)
        fail_msg("%s: %s", error.field, error.message);
    return nn;
}

static double norm_of(uint64_t n, const mn_real *x, const mn_real *y)
{
    double sum = 0;
    for (uint64_t i = 0; i < n; i++) {
        double d = (double)x[i] - (y ? (double)y[i] : 0);
        sum += d * d;
    }
    return sqrt(sum);
}

/* What one side has computed. */
typedef struct outcome {
    mn_real *gradients, *statistics, *values; /* values: their gradients */
    mn_loss loss;
    uint64_t selected;
} outcome;

static outcome outcome_new(const model_case *c)
{
    outcome o = {
        .gradients = calloc(c->model.parameter_count, sizeof(mn_real)),
        .statistics = calloc(c->model.statistics_count + 1, sizeof(mn_real)),
        .values = calloc(c->memory.tables * c->memory.rows * c->memory.dim + 1, sizeof(mn_real))};
    assert_true(o.gradients && o.statistics && o.values);
    return o;
}

static void outcome_free(outcome *o)
{
    free(o->gradients);
    free(o->statistics);
    free(o->values);
}

static void keep_values(const model_case *c, outcome *o)
{
    memcpy(o->values, c->memory.gradients,
           c->memory.tables * c->memory.rows * c->memory.dim * sizeof(mn_real));
    o->selected = c->memory.selected_hash;
}

static outcome by_cpu(model_case *c)
{
    outcome o = outcome_new(c);
    o.loss.nats = model_case_step(c) / c->scale;
    memcpy(o.gradients, c->gradients, c->model.parameter_count * sizeof(mn_real));
    memcpy(o.statistics, c->statistics, c->model.statistics_count * sizeof(mn_real));
    keep_values(c, &o);
    return o;
}

static outcome by_gpu(model_case *c, const mn_nn *nn)
{
    gpu_case g;
    mn_error error;
    outcome o = outcome_new(c);
    gpu_case_init(&g, c, nn);
    enum mn_status status = gpu_case_forward(&g, &o.loss, &error);
    if (status == MN_OK)
        status = gpu_case_backward(&g, o.gradients, o.statistics, &error);
    if (status != MN_OK)
        fail_msg("%s: %s", error.field, error.message);
    assert_int_equal(o.loss.targets, c->token_count - 1);
    keep_values(c, &o);
    gpu_case_deinit(&g);
    return o;
}

/* The worst of all segments, statistics, values and the loss, each relative to its kind. */
static double difference(const model_case *c, const outcome *cpu, const outcome *gpu)
{
    uint64_t parameters = c->model.parameter_count, statistics = c->model.statistics_count;
    uint64_t values = c->memory.tables * c->memory.rows * c->memory.dim;
    double all = norm_of(parameters, cpu->gradients, NULL), worst = 0;
    for (uint32_t s = 0; s < c->model.segment_count; s++) {
        const mn_segment *segment = &c->model.segments[s];
        double apart = norm_of(segment->count, cpu->gradients + segment->offset,
                               gpu->gradients + segment->offset);
        worst = fmax(worst, isnan(apart) ? INFINITY : apart / all);
    }
    const double apart[3] = {norm_of(values, cpu->values, gpu->values),
                             norm_of(statistics, cpu->statistics, gpu->statistics),
                             fabs(cpu->loss.nats - gpu->loss.nats)};
    const double of[3] = {norm_of(values, cpu->values, NULL),
                          norm_of(statistics, cpu->statistics, NULL), cpu->loss.nats};
    for (int i = 0; i < 3; i++)
        if (of[i] > 0)
            worst = fmax(worst, isnan(apart[i]) ? INFINITY : apart[i] / of[i]);
    return worst;
}

/* Sequences of 37, 1 and 22 tokens: more than a block of attention's queries. */
static void lengthen(model_case *c, uint64_t seed)
{
    const uint32_t lengths[3] = {37, 1, 22};
    memcpy(c->lengths, lengths, sizeof lengths);
    c->token_count = 60;
    for (uint32_t i = 0; i < c->token_count; i++) {
        c->tokens[i] = (uint8_t)(128 + 127 * test_uniform(&seed));
        c->targets[i] = (uint16_t)(128 + 127 * test_uniform(&seed));
    }
    c->targets[40] = MN_NO_TARGET;
}

static void compare(const mn_nn *nn, const mn_model_options *options, uint64_t seed)
{
    model_case c;
    model_case_init(&c, options, seed);
    if (options->context)
        lengthen(&c, seed);
    outcome cpu = by_cpu(&c), gpu = by_gpu(&c, nn), again = by_gpu(&c, nn);
    double error = difference(&c, &cpu, &gpu);
    if (!(error <= TOLERANCE))
        fail_msg("seed %u: apart by %g", (unsigned)seed, error);
    if (cpu.selected != gpu.selected)
        fail_msg("seed %u: other rows were selected", (unsigned)seed);
    if (memcmp(gpu.gradients, again.gradients, c.model.parameter_count * sizeof(mn_real)) ||
        difference(&c, &gpu, &again) != 0)
        fail_msg("seed %u: another run has other bits", (unsigned)seed);
    outcome_free(&again);
    outcome_free(&gpu);
    outcome_free(&cpu);
    model_case_deinit(&c);
}

static mn_model_options with_memory(uint32_t layer, bool beside)
{
    mn_model_options options = {.placement_count = 1, .placements = {{layer, beside}}};
    return options;
}

static void test_without_memory(void **state)
{
    (void)state;
    mn_nn *nn = gpu_open(false);
    mn_model_options options = {0};
    compare(nn, &options, 1);
    options = (mn_model_options){.tied = true, .width = 36, .layers = 3, .attention_heads = 3};
    compare(nn, &options, 2);
    options.context = 40;
    compare(nn, &options, 3);
    mn_nn_cuda_close(nn);
}

static void test_norms_and_gates(void **state)
{
    (void)state;
    mn_nn *nn = gpu_open(false);
    for (int norm = MN_QUERY_BATCH; norm <= MN_QUERY_RMS; norm++)
        for (int gate = MN_GATE_SOFTMAX; gate <= MN_GATE_RELU; gate++)
            for (int swiglu = 0; swiglu <= 1; swiglu++) {
                mn_model_options options = with_memory(1 + (uint32_t)gate, swiglu);
                options.memory.query_norm = (enum mn_query_norm)norm;
                options.memory.gate = (enum mn_gate)gate;
                options.memory.swiglu = swiglu;
                options.memory.value_dim = swiglu ? 5 : 0;
                options.memory.value_dropout = norm == MN_QUERY_NONE ? 0.3f : 0;
                compare(nn, &options, 100 + (uint64_t)(norm * 8 + gate * 4 + swiglu));
            }
    mn_nn_cuda_close(nn);
}

static void test_query_networks(void **state)
{
    (void)state;
    mn_nn *nn = gpu_open(false);
    for (int norm = MN_QUERY_BATCH; norm <= MN_QUERY_RMS; norm++) {
        mn_model_options options = with_memory(2, true);
        options.memory.query_norm = (enum mn_query_norm)norm;
        options.memory.query_norm_hidden = norm == MN_QUERY_BATCH;
        options.memory.temperature = 0.7f;
        options.memory.query_hidden[0] = 7;
        options.memory.query_hidden[1] = 16;
        compare(nn, &options, 200 + (uint64_t)norm);
    }
    mn_nn_cuda_close(nn);
}

/* Few keys, many tokens: long sums into few gradients. */
static void test_longer_sequences(void **state)
{
    (void)state;
    mn_nn *nn = gpu_open(false);
    for (int norm = MN_QUERY_BATCH; norm <= MN_QUERY_RMS; norm++) {
        mn_model_options options = with_memory(2, true);
        options.context = 40;
        options.width = 24;
        options.memory =
            (mn_memory_options){.keys = 9, .heads = 3, .knn = 7, .key_dim = 10, .swiglu = true};
        options.memory.query_norm = (enum mn_query_norm)norm;
        compare(nn, &options, 250 + (uint64_t)norm);
    }
    mn_nn_cuda_close(nn);
}

static void test_several_memories(void **state)
{
    (void)state;
    mn_nn *nn = gpu_open(false);
    for (int shared = 0; shared <= 1; shared++) {
        mn_model_options options = {.layers = 3, .placement_count = 3};
        for (uint32_t i = 0; i < 3; i++)
            options.placements[i] = (mn_placement){i + 1, i != 1};
        options.memory.shared = shared;
        options.memory.value_dropout = shared ? 0.4f : 0;
        compare(nn, &options, 300 + (uint64_t)shared);
    }
    mn_nn_cuda_close(nn);
}

/* Factors rounded to bf16 select other rows; where all are read, the same function is computed. */
static void test_bf16_products(void **state)
{
    (void)state;
    mn_nn *nn = gpu_open(true);
    for (int memory = 0; memory <= 1; memory++) {
        mn_model_options options = {.width = 32, .attention_heads = 2, .ffn_width = 64};
        if (memory) {
            options.placement_count = 1;
            options.placements[0] = (mn_placement){2, true};
            options.memory = (mn_memory_options){.keys = 4, .knn = 16, .key_dim = 16};
        }
        model_case c;
        model_case_init(&c, &options, 400 + (uint64_t)memory);
        outcome cpu = by_cpu(&c), gpu = by_gpu(&c, nn);
        double error = difference(&c, &cpu, &gpu);
        if (!(error <= TOLERANCE_BF16 && error > TOLERANCE)) /* they do differ */
            fail_msg("apart by %g", error);
        outcome_free(&gpu);
        outcome_free(&cpu);
        model_case_deinit(&c);
    }
    mn_nn_cuda_close(nn);
}

/* A NaN is told as on the CPU, before anything is read; the GPU goes on. */
static void test_nan_is_told(void **state)
{
    (void)state;
    mn_nn *nn = gpu_open(false);
    mn_model_options options = with_memory(2, true);
    options.memory.query_norm = MN_QUERY_NONE;
    model_case c;
    model_case_init(&c, &options, 500);
    gpu_case g;
    gpu_case_init(&g, &c, nn);
    mn_real *keys = c.parameters + c.model.layers[1].keys, kept = *keys;
    mn_loss loss = {.nats = 7};
    mn_error error = {0}, of_cpu = {0};
    *keys = NAN;
    assert_int_equal(mn_model_forward(c.workspace, c.parameters, c.statistics, &c.pass, &c.access,
                                      &loss, &of_cpu),
                     MN_INVALID);
    assert_int_equal(gpu_case_forward(&g, &loss, &error), MN_INVALID);
    assert_string_equal(error.field, "scores");
    assert_string_equal(error.message, of_cpu.message);
    assert_true(loss.nats == 7 && !g.tickets[0].open);
    *keys = kept;
    assert_int_equal(gpu_case_forward(&g, &loss, &error), MN_OK);
    assert_int_equal(loss.targets, 9);
    gpu_case_deinit(&g);
    model_case_deinit(&c);
    mn_nn_cuda_close(nn);
}

/* A memory that answers no more ends the pass with its status, and leaves nothing open. */
static void test_memory_that_fails(void **state)
{
    (void)state;
    mn_nn *nn = gpu_open(false);
    mn_model_options options = with_memory(1, true);
    model_case c;
    model_case_init(&c, &options, 600);
    outcome o = outcome_new(&c);
    gpu_case g;
    gpu_case_init(&g, &c, nn);
    for (uint32_t call = 1; call <= 2; call++) {
        c.memory.calls = 0;
        c.memory.fail_at = call;
        enum mn_status status = gpu_case_forward(&g, &o.loss, NULL);
        assert_int_equal(status, call == 1 ? MN_UNAVAILABLE : MN_OK);
        if (call == 2)
            assert_int_equal(gpu_case_backward(&g, o.gradients, o.statistics, NULL),
                             MN_UNAVAILABLE);
        assert_true(!g.tickets[0].open && c.memory.open == 0);
    }
    gpu_case_deinit(&g);
    outcome_free(&o);
    model_case_deinit(&c);
    mn_nn_cuda_close(nn);
}

static void test_next_bytes(void **state)
{
    (void)state;
    mn_nn *nn = gpu_open(false);
    mn_model_options options = with_memory(2, true);
    model_case c;
    model_case_init(&c, &options, 700);
    gpu_case g;
    gpu_case_init(&g, &c, nn);
    mn_loss loss;
    mn_real cpu[3 * MN_BYTES], gpu[3 * MN_BYTES];
    assert_int_equal(gpu_case_forward(&g, &loss, NULL), MN_OK);
    (void)model_case_forward(&c);
    c.pass.training = false;
    assert_int_equal(
        mn_model_next(c.workspace, c.parameters, c.statistics, &c.pass, &c.access, cpu, NULL),
        MN_OK);
    assert_int_equal(
        mn_model_next(g.workspace, g.parameters, g.statistics, &c.pass, &g.access, gpu, NULL),
        MN_OK);
    assert_true(norm_of(3 * MN_BYTES, cpu, gpu) <= TOLERANCE * norm_of(3 * MN_BYTES, cpu, NULL));
    gpu_case_deinit(&g);
    model_case_deinit(&c);
    mn_nn_cuda_close(nn);
}

/* The check itself: one gradient wrong by a hundred-thousandth of all, or no number. */
static void test_wrong_result_is_found(void **state)
{
    (void)state;
    mn_model_options options = with_memory(2, true);
    model_case c;
    model_case_init(&c, &options, 800);
    outcome a = by_cpu(&c), b = by_cpu(&c);
    assert_true(difference(&c, &a, &b) == 0 && a.selected == b.selected);
    double all = norm_of(c.model.parameter_count, a.gradients, NULL);
    b.gradients[c.model.parameter_count / 2] += (mn_real)(1e-5 * all);
    assert_false(difference(&c, &a, &b) <= TOLERANCE);
    b.gradients[c.model.parameter_count / 2] = NAN;
    assert_false(difference(&c, &a, &b) <= TOLERANCE);
    b.gradients[c.model.parameter_count / 2] = a.gradients[c.model.parameter_count / 2];
    b.values[3] += (mn_real)(1e-5 * norm_of(c.memory.rows * c.memory.dim, a.values, NULL));
    assert_false(difference(&c, &a, &b) <= TOLERANCE);
    outcome_free(&b);
    outcome_free(&a);
    model_case_deinit(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_without_memory),   cmocka_unit_test(test_norms_and_gates),
        cmocka_unit_test(test_query_networks),   cmocka_unit_test(test_longer_sequences),
        cmocka_unit_test(test_several_memories), cmocka_unit_test(test_bf16_products),
        cmocka_unit_test(test_nan_is_told),      cmocka_unit_test(test_memory_that_fails),
        cmocka_unit_test(test_next_bytes),       cmocka_unit_test(test_wrong_result_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
