/* The whole model's backward pass against central differences in double precision, for every option
 * of the memory layer. Each named segment of the parameters, and the values, are moved along two
 * random directions and along single coordinates. A step that changes a selection would compare two
 * functions: it is halved until it does not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "model_case.h"

enum { DIRECTIONS = 2, COORDINATES = 2 };
#define STEP      5e-6
#define TOLERANCE 1e-6

/* Loss at `at` + length * direction; `at` is restored. False when other rows are selected there. */
static bool loss_along(model_case *c, mn_real *at, uint64_t count, const double *direction,
                       double length, uint64_t selected, double *out_loss)
{
    mn_real *before = malloc(count * sizeof *before);
    memcpy(before, at, count * sizeof *before);
    for (uint64_t i = 0; i < count; i++)
        at[i] += length * direction[i];
    *out_loss = model_case_forward(c);
    memcpy(at, before, count * sizeof *before);
    free(before);
    return c->memory.selected_hash == selected;
}

/* |difference quotient - <gradient, direction>|, relative to the larger one and to a floor that
 * rounding needs: losses near 5 carry 1e-15, divided by the step. */
static double direction_error(model_case *c, mn_real *at, const mn_real *gradient, uint64_t count,
                              const double *direction, uint64_t selected)
{
    double analytic = 0, numeric = INFINITY;
    for (uint64_t i = 0; i < count; i++)
        analytic += gradient[i] * direction[i];
    for (double step = STEP; isinf(numeric) && step > STEP / 64; step /= 2) {
        double below, above;
        bool same = loss_along(c, at, count, direction, step, selected, &above);
        same = loss_along(c, at, count, direction, -step, selected, &below) && same;
        if (same)
            numeric = (above - below) / (2 * step);
    }
    return fabs(numeric - analytic) / (fabs(numeric) + fabs(analytic) + 1e-3);
}

static double segment_error(model_case *c, mn_real *at, const mn_real *gradient, uint64_t count,
                            uint64_t selected, uint64_t *state)
{
    double worst = 0, *direction = calloc(count, sizeof *direction);
    for (int trial = 0; trial < DIRECTIONS + COORDINATES; trial++) {
        if (trial < DIRECTIONS) {
            for (uint64_t i = 0; i < count; i++)
                direction[i] = test_uniform(state);
        } else {
            memset(direction, 0, count * sizeof *direction);
            direction[(uint64_t)((test_uniform(state) + 1) / 2 * (double)count)] = 1;
        }
        double error = direction_error(c, at, gradient, count, direction, selected);
        worst = error > worst || isnan(error) ? error : worst;
    }
    free(direction);
    return worst;
}

/* The worst error over all segments and the values; names it when above the tolerance. */
static double model_error(model_case *c, uint64_t seed)
{
    double worst = 0;
    uint64_t state = seed, selected = c->memory.selected_hash;
    for (uint32_t s = 0; s <= c->model.segment_count; s++) {
        bool values = s == c->model.segment_count;
        const mn_segment *segment = values ? NULL : &c->model.segments[s];
        uint64_t value_count = c->memory.tables * c->memory.rows * c->memory.dim;
        if (values && !value_count)
            break;
        double error = values ? segment_error(c, c->memory.values, c->memory.gradients, value_count,
                                              selected, &state)
                              : segment_error(c, c->parameters + segment->offset,
                                              c->gradients + segment->offset, segment->count,
                                              selected, &state);
        if (!(error <= TOLERANCE))
            print_message("%s: relative error %g\n", values ? "values" : segment->name, error);
        worst = error > worst || isnan(error) ? error : worst;
    }
    return worst;
}

static double options_error(const mn_model_options *options, uint64_t seed)
{
    model_case c;
    model_case_init(&c, options, seed);
    (void)model_case_step(&c);
    double error = model_error(&c, seed + 1);
    model_case_deinit(&c);
    return error;
}

static mn_model_options with_memory(uint32_t layer, bool beside)
{
    mn_model_options options = {.placement_count = 1, .placements = {{layer, beside}}};
    return options;
}

static void test_without_memory(void **state)
{
    (void)state;
    mn_model_options options = {0};
    assert_true(options_error(&options, 1) <= TOLERANCE);
    options.tied = true;
    assert_true(options_error(&options, 2) <= TOLERANCE);
}

static void test_norms_and_gates(void **state)
{
    (void)state;
    for (int norm = MN_QUERY_BATCH; norm <= MN_QUERY_RMS; norm++)
        for (int gate = MN_GATE_SOFTMAX; gate <= MN_GATE_RELU; gate++)
            for (int swiglu = 0; swiglu <= 1; swiglu++)
                for (int beside = 0; beside <= 1; beside++) {
                    mn_model_options options = with_memory(1 + (uint32_t)beside, beside);
                    options.memory.query_norm = (enum mn_query_norm)norm;
                    options.memory.gate = (enum mn_gate)gate;
                    options.memory.swiglu = swiglu;
                    options.memory.value_dim = swiglu ? 5 : 0;
                    uint64_t seed = (uint64_t)(norm * 8 + gate * 4 + swiglu * 2 + beside);
                    double error = options_error(&options, 100 + seed);
                    if (!(error <= TOLERANCE))
                        fail_msg("norm %d gate %d swiglu %d beside %d: %g", norm, gate, swiglu,
                                 beside, error);
                }
}

static void test_several_memories(void **state)
{
    (void)state;
    for (int shared = 0; shared <= 1; shared++) {
        mn_model_options options = {.layers = 3, .placement_count = 3};
        for (uint32_t i = 0; i < 3; i++)
            options.placements[i] = (mn_placement){i + 1, i != 1};
        options.memory.shared = shared;
        assert_true(options_error(&options, 200 + (uint64_t)shared) <= TOLERANCE);
    }
}

static void test_query_networks(void **state)
{
    (void)state;
    for (int norm = MN_QUERY_BATCH; norm <= MN_QUERY_RMS; norm++)
        for (uint32_t hidden = 1; hidden <= MN_QUERY_HIDDEN_MAX; hidden++)
            for (int gate = MN_GATE_SOFTMAX; gate <= MN_GATE_RELU; gate++)
                for (int swiglu = 0; swiglu <= 1; swiglu++) {
                    mn_model_options options = with_memory(2, true);
                    options.memory.query_norm = (enum mn_query_norm)norm;
                    options.memory.gate = (enum mn_gate)gate;
                    options.memory.swiglu = swiglu;
                    options.memory.temperature = 0.7f;
                    for (uint32_t i = 0; i < hidden; i++)
                        options.memory.query_hidden[i] = 7 + 2 * i;
                    uint64_t seed = (uint64_t)(norm * 12 + gate * 2 + swiglu) + 4 * hidden;
                    double error = options_error(&options, 300 + seed);
                    if (!(error <= TOLERANCE))
                        fail_msg("norm %d, %u hidden, gate %d, swiglu %d: %g", norm, hidden, gate,
                                 swiglu, error);
                }
}

static void test_norms_of_hidden_layers(void **state)
{
    (void)state;
    for (uint32_t hidden = 1; hidden <= MN_QUERY_HIDDEN_MAX; hidden++)
        for (int gate = MN_GATE_SOFTMAX; gate <= MN_GATE_RELU; gate++) {
            mn_model_options options = with_memory(2, true);
            options.memory.query_norm_hidden = true;
            options.memory.gate = (enum mn_gate)gate;
            for (uint32_t i = 0; i < hidden; i++)
                options.memory.query_hidden[i] = 7 + 9 * i; /* narrower and wider than the query */
            double error = options_error(&options, 380 + 2 * hidden + (uint64_t)gate);
            if (!(error <= TOLERANCE))
                fail_msg("%u hidden, gate %d: %g", hidden, gate, error);
        }
}

/* A step has one mask: the function is as smooth as without. */
static void test_dropout(void **state)
{
    (void)state;
    for (int norm = MN_QUERY_BATCH; norm <= MN_QUERY_RMS; norm++)
        for (int swiglu = 0; swiglu <= 1; swiglu++) {
            mn_model_options options = with_memory(2, true);
            options.memory.query_norm = (enum mn_query_norm)norm;
            options.memory.swiglu = swiglu;
            options.memory.value_dim = swiglu ? 5 : 0;
            options.memory.value_dropout = 0.3f;
            assert_true(options_error(&options, 360 + (uint64_t)(norm * 2 + swiglu)) <= TOLERANCE);
        }
}

static void scale(uint64_t n, double factor, mn_real *x)
{
    for (uint64_t i = 0; i < n; i++)
        x[i] *= factor;
}

/* The check itself: a gradient wrong by 1 % must be seen, whichever segment it is in. */
static void test_wrong_gradient_is_found(void **state)
{
    (void)state;
    mn_model_options options = with_memory(2, true);
    options.memory.query_hidden[0] = 7;
    options.memory.query_norm_hidden = true;
    options.memory.swiglu = true;
    model_case c;
    model_case_init(&c, &options, 400);
    (void)model_case_step(&c);
    uint64_t selected = c.memory.selected_hash, random = 401;
    for (uint32_t s = 0; s < c.model.segment_count; s++) {
        const mn_segment *segment = &c.model.segments[s];
        mn_real *gradient = c.gradients + segment->offset;
        scale(segment->count, 1.01, gradient);
        double error = segment_error(&c, c.parameters + segment->offset, gradient, segment->count,
                                     selected, &random);
        if (!(error > 100 * TOLERANCE))
            fail_msg("%s: 1 %% too much passed as %g", segment->name, error);
    }
    uint64_t values = c.memory.rows * c.memory.dim;
    scale(values, 1.01, c.memory.gradients);
    assert_true(segment_error(&c, c.memory.values, c.memory.gradients, values, selected, &random) >
                100 * TOLERANCE);
    model_case_deinit(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_without_memory),          cmocka_unit_test(test_norms_and_gates),
        cmocka_unit_test(test_several_memories),        cmocka_unit_test(test_query_networks),
        cmocka_unit_test(test_norms_of_hidden_layers),  cmocka_unit_test(test_dropout),
        cmocka_unit_test(test_wrong_gradient_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
