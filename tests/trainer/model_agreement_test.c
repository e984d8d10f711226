/* The float model of the programs, with the kernels' search, softmax and products, against the
 * double one of plain loops: same selections, gradients within rounding. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "model_case.h"

enum { ROOM = 1 << 16 };

uint64_t model_case_probe_f64(const mn_model_options *options, uint64_t seed, double *out_loss,
                              uint64_t *out_selected, uint64_t room, double *out_gradients);

/* Rounding of 24 bits through some hundred operations and a batch norm over 10 tokens. */
#define TOLERANCE 2e-5

static void compare(const mn_model_options *options, uint64_t seed)
{
    static double single[ROOM], exact[ROOM];
    double loss, exact_loss;
    uint64_t selected, exact_selected;
    uint64_t n = model_case_probe(options, seed, &loss, &selected, ROOM, single);
    uint64_t exact_n =
        model_case_probe_f64(options, seed, &exact_loss, &exact_selected, ROOM, exact);
    assert_int_equal(n, exact_n);
    assert_true(selected == exact_selected);
    assert_true(fabs(loss - exact_loss) <= 1e-5);
    double error = test_difference(n, single, exact);
    if (!(error <= TOLERANCE))
        fail_msg("gradients differ by %g", error);
    assert_true(error > 0); /* the builds do differ */
    single[n / 2] += 1e-3 * (fabs(exact[n / 2]) + 1);
    assert_false(test_difference(n, single, exact) <= TOLERANCE);
}

static void test_float_agrees_with_double(void **state)
{
    (void)state;
    for (int norm = MN_QUERY_BATCH; norm <= MN_QUERY_RMS; norm++)
        for (int gate = MN_GATE_SOFTMAX; gate <= MN_GATE_RELU; gate++)
            for (int swiglu = 0; swiglu <= 1; swiglu++) {
                mn_model_options options = {.placement_count = 2,
                                            .placements = {{1, true}, {2, !swiglu}}};
                options.memory.query_norm = (enum mn_query_norm)norm;
                options.memory.gate = (enum mn_gate)gate;
                options.memory.swiglu = swiglu;
                options.memory.shared = norm == MN_QUERY_RMS;
                options.memory.query_hidden[0] = norm == MN_QUERY_NONE ? 7 : 0;
                compare(&options, 500 + (uint64_t)(norm * 4 + gate * 2 + swiglu));
            }
}

static void test_without_memory(void **state)
{
    (void)state;
    mn_model_options options = {.tied = true, .width = 32, .layers = 3, .attention_heads = 4};
    compare(&options, 600);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_float_agrees_with_double),
        cmocka_unit_test(test_without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
