/* The memory layer in double precision against PyTorch's (tests/golden/layer.txt): output and every
 * gradient, for each norm (batch norm: torch.nn.BatchNorm1d, with its running statistics; after the
 * last linear or, as XLM, after each) and gate, both with a hidden layer and the SwiLU gate and
 * without. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "golden.h"
#include "memory_layer.h"
#include "model_case.h"

enum { TOKENS = 7, WIDTH = 6, HIDDEN = 5, HEADS = 2, KEYS = 4, KEY_DIM = 6, KNN = 3 };
enum { VALUE_DIM = 5, QUERY = HEADS * KEY_DIM, INPUTS = TOKENS * WIDTH, COUNT_MAX = 256 };

/* The file has ten digits of values around 1; both sides round in f64. */
#define TOLERANCE 1e-8

typedef struct layer_case {
    const char *golden, *name; /* "batch.softmax.plain" */
    model_case model;
    double worst; /* error of all that was compared */
} layer_case;

static void name_of(const layer_case *c, const char *what, char out_name[128])
{
    (void)snprintf(out_name, 128, "%s.%s", c->name, what);
}

static void load(const layer_case *c, const char *what, uint64_t count, mn_real *out)
{
    char name[128];
    name_of(c, what, name);
    golden_read(c->golden, name, count, out);
}

static void compare(layer_case *c, const char *what, uint64_t count, const mn_real *got)
{
    double wanted[COUNT_MAX];
    assert_true(count <= COUNT_MAX);
    load(c, what, count, wanted);
    for (uint64_t i = 0; i < count; i++) {
        double error = fabs(got[i] - wanted[i]) / (1 + fabs(wanted[i]));
        c->worst = error > c->worst || isnan(error) ? error : c->worst;
    }
}

enum { NORM_EVERY = MN_QUERY_RMS + 1 }; /* batch norm, of the hidden layer too */

static mn_model_options options_of(int norm, int gate, bool gated)
{
    mn_model_options options = {.width = WIDTH,
                                .layers = 1,
                                .attention_heads = 1,
                                .placement_count = 1,
                                .placements = {{1, true}}};
    options.memory = (mn_memory_options){
        .keys = KEYS,
        .heads = HEADS,
        .knn = KNN,
        .key_dim = KEY_DIM,
        .query_norm = norm == NORM_EVERY ? MN_QUERY_BATCH : (enum mn_query_norm)norm,
        .query_norm_hidden = norm == NORM_EVERY,
        .gate = (enum mn_gate)gate,
        .temperature = 0.5f,
        .swiglu = gated,
        .value_dim = gated ? VALUE_DIM : 0,
        .query_hidden = {gated ? HIDDEN : 0}};
    return options;
}

/* The name of a memory's segment without the layer's; NULL for other segments. */
static const char *memory_segment(const mn_segment *segment)
{
    const char *prefix = "layer1.memory.";
    return strncmp(segment->name, prefix, strlen(prefix)) ? NULL : segment->name + strlen(prefix);
}

static void load_parameters(layer_case *c)
{
    model_case *m = &c->model;
    for (uint32_t s = 0; s < m->model.segment_count; s++) {
        const mn_segment *segment = &m->model.segments[s];
        if (memory_segment(segment))
            load(c, memory_segment(segment), segment->count, m->parameters + segment->offset);
    }
    load(c, "values", m->memory.rows * m->memory.dim, m->memory.values);
    mn_model_init_parameters(&m->model, m->gradients, m->statistics); /* 0 and 1 */
    memset(m->gradients, 0, m->model.parameter_count * sizeof *m->gradients);
}

static void compare_gradients(layer_case *c)
{
    model_case *m = &c->model;
    char name[128];
    for (uint32_t s = 0; s < m->model.segment_count; s++) {
        const mn_segment *segment = &m->model.segments[s];
        if (!memory_segment(segment))
            continue;
        (void)snprintf(name, sizeof name, "%s.gradient", memory_segment(segment));
        compare(c, name, segment->count, m->gradients + segment->offset);
    }
    compare(c, "values.gradient", m->memory.rows * m->memory.dim, m->memory.gradients);
}

static void run_layer(layer_case *c)
{
    model_case *m = &c->model;
    mn_real input[INPUTS], out[INPUTS] = {0}, d_out[INPUTS], d_input[INPUTS] = {0};
    mn_run run = {&m->model, m->workspace, m->parameters, m->statistics, m->gradients,
                  &m->pass,  &m->access,   TOKENS,        NULL};
    load(c, "x", INPUTS, input);
    golden_read(c->golden, "d_out", INPUTS, d_out);
    assert_int_equal(mn_memory_forward_start(&run, 0, input), MN_OK);
    assert_int_equal(mn_memory_forward_finish(&run, 0, out), MN_OK);
    compare(c, "out", INPUTS, out);
    mn_memory_backward_start(&run, 0, input, d_out, d_input);
    assert_int_equal(mn_memory_backward_finish(&run, 0, input, d_input), MN_OK);
    compare(c, "x.gradient", INPUTS, d_input);
    compare_gradients(c);
    if (m->model.options.memory.query_norm != MN_QUERY_BATCH)
        return;
    compare(c, "query.mean", QUERY, m->statistics);
    compare(c, "query.variance", QUERY, m->statistics + QUERY);
    if (m->model.options.memory.query_norm_hidden) {
        compare(c, "query0.mean", HIDDEN, m->statistics + 2 * QUERY);
        compare(c, "query0.variance", HIDDEN, m->statistics + 2 * QUERY + HIDDEN);
    }
    m->pass.training = false;
    memset(out, 0, sizeof out);
    assert_int_equal(mn_memory_forward_start(&run, 0, input), MN_OK);
    assert_int_equal(mn_memory_forward_finish(&run, 0, out), MN_OK);
    compare(c, "evaluated", INPUTS, out);
}

/* `spoil` is added to one column of the table. */
static double case_error(const char *golden, int norm, int gate, bool gated, double spoil)
{
    static const char *const norms[] = {"batch", "none", "rms", "every"};
    static const char *const gates[] = {"softmax", "relu"};
    char name[64];
    (void)snprintf(name, sizeof name, "%s.%s.%s", norms[norm], gates[gate],
                   gated ? "swiglu" : "plain");
    layer_case c = {.golden = golden, .name = name};
    mn_model_options options = options_of(norm, gate, gated);
    model_case_init(&c.model, &options, 1);
    load_parameters(&c);
    for (int row = 0; row < KEYS * KEYS; row++) /* whichever are read */
        c.model.memory.values[(uint64_t)row * c.model.memory.dim + 2] += spoil;
    run_layer(&c);
    model_case_deinit(&c.model);
    return c.worst;
}

static void the_layer_is_pytorch_s(void **state)
{
    (void)state;
    char *golden = golden_open("layer", "torch ");
    double shape[8];
    const double wanted[8] = {TOKENS, WIDTH, HIDDEN, HEADS, KEYS, KEY_DIM, KNN, VALUE_DIM};
    golden_read(golden, "shape", 8, shape);
    assert_memory_equal(shape, wanted, sizeof wanted);
    for (int norm = MN_QUERY_BATCH; norm <= NORM_EVERY; norm++)
        for (int gate = MN_GATE_SOFTMAX; gate <= MN_GATE_RELU; gate++)
            for (int gated = norm == NORM_EVERY; gated <= 1; gated++) {
                double error = case_error(golden, norm, gate, gated, 0);
                if (!(error <= TOLERANCE))
                    fail_msg("norm %d gate %d gated %d: error %g", norm, gate, gated, error);
            }
    free(golden);
}

static void a_wrong_value_is_found(void **state)
{
    (void)state;
    char *golden = golden_open("layer", "torch ");
    for (int norm = MN_QUERY_BATCH; norm <= NORM_EVERY; norm++)
        assert_true(case_error(golden, norm, MN_GATE_SOFTMAX, norm == NORM_EVERY, 1e-3) >
                    TOLERANCE);
    assert_false(golden_has(golden, "batch.softmax.plain.query0.bias"));
    free(golden);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_layer_is_pytorch_s),
        cmocka_unit_test(a_wrong_value_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
