/* The operations of trainer/nn.h in double precision: results against their textbook formulas,
 * gradients against central differences, coordinate by coordinate. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "fake_memory.h"
#include "nn_cpu.h"

enum { INPUTS_MAX = 3, COUNT_MAX = 1024 };
#define STEP      1e-5
#define TOLERANCE 1e-7

static void *alloc_block(size_t bytes) { return aligned_alloc(128, (bytes + 127) / 128 * 128); }

/* An operation: outputs from inputs; and, after that, gradients of inputs added, from d_outputs. */
typedef struct operation {
    uint32_t inputs;
    uint64_t counts[INPUTS_MAX], outputs;
    void (*forward)(mn_real *const *inputs, mn_real *out);
    void (*backward)(mn_real *const *inputs, const mn_real *out, const mn_real *d_out,
                     mn_real *const *d_inputs);
} operation;

static mn_real weighted(const operation *op, mn_real *const *inputs, const mn_real *d_out)
{
    mn_real out[COUNT_MAX], sum = 0;
    op->forward(inputs, out);
    for (uint64_t i = 0; i < op->outputs; i++)
        sum += d_out[i] * out[i];
    return sum;
}

/* Worst error of any coordinate, relative to 1 + |gradient|. `spoil` is added to one gradient. */
static double operation_error(const operation *op, uint64_t seed, double spoil)
{
    static mn_real values[INPUTS_MAX][COUNT_MAX], gradients[INPUTS_MAX][COUNT_MAX];
    mn_real *inputs[INPUTS_MAX], *d_inputs[INPUTS_MAX], out[COUNT_MAX], d_out[COUNT_MAX];
    double worst = 0;
    memset(gradients, 0, sizeof gradients);
    for (uint32_t i = 0; i < op->inputs; i++) {
        inputs[i] = values[i];
        d_inputs[i] = gradients[i];
        test_fill(&seed, 1, op->counts[i], inputs[i]);
    }
    test_fill(&seed, 1, op->outputs, d_out);
    op->forward(inputs, out);
    op->backward(inputs, out, d_out, d_inputs);
    gradients[0][1] += spoil;
    for (uint32_t i = 0; i < op->inputs; i++)
        for (uint64_t j = 0; j < op->counts[i]; j++) {
            mn_real kept = inputs[i][j];
            inputs[i][j] = kept + STEP;
            mn_real above = weighted(op, inputs, d_out);
            inputs[i][j] = kept - STEP;
            mn_real below = weighted(op, inputs, d_out);
            inputs[i][j] = kept;
            double numeric = (above - below) / (2 * STEP);
            double error = fabs(numeric - d_inputs[i][j]) / (1 + fabs(numeric));
            worst = error > worst || isnan(error) ? error : worst;
        }
    return worst;
}

/* ---- The operations ---- */

enum { ROWS = 5, WIDTH = 19, OUT = 7 };

static void linear_forward(mn_real *const *in, mn_real *out)
{
    mn_nn_linear(mn_nn_cpu(), (mn_linear){ROWS, WIDTH, OUT}, in[0], in[1], 0, out);
    mn_nn_bias(ROWS, OUT, in[2], out);
}
static void linear_backward(mn_real *const *in, const mn_real *out, const mn_real *d_out,
                            mn_real *const *d_in)
{
    (void)out;
    mn_nn_bias_grad(ROWS, OUT, d_out, d_in[2]);
    mn_nn_linear_grad(mn_nn_cpu(), (mn_linear){ROWS, WIDTH, OUT}, in[0], in[1], d_out, d_in[1], 1,
                      d_in[0]);
}

static mn_real norm_mean[ROWS], norm_inverse[ROWS];
static void norm_forward(mn_real *const *in, mn_real *out)
{
    mn_nn_norm(ROWS, WIDTH, in[0], in[1], norm_mean, norm_inverse, out);
}
static void norm_backward(mn_real *const *in, const mn_real *out, const mn_real *d_out,
                          mn_real *const *d_in)
{
    (void)out;
    mn_norm_saved saved = {in[0], in[1], norm_mean, norm_inverse};
    mn_nn_norm_grad(ROWS, WIDTH, &saved, d_out, d_in[1], d_in[0]);
}

static const mn_rms rms_shape = {6, WIDTH, 3, 0.5}; /* run r uses gain r % 3 */
static mn_real rms_inverse[6];
static void rms_forward(mn_real *const *in, mn_real *out)
{
    mn_nn_rms(&rms_shape, in[0], in[1], rms_inverse, out);
}
static void rms_backward(mn_real *const *in, const mn_real *out, const mn_real *d_out,
                         mn_real *const *d_in)
{
    (void)out;
    mn_nn_rms_grad(&rms_shape, in[0], in[1], rms_inverse, d_out, d_in[1], true, d_in[0]);
}
static void bare_rms_forward(mn_real *const *in, mn_real *out)
{
    mn_nn_rms(&rms_shape, in[0], NULL, rms_inverse, out);
}
static void bare_rms_backward(mn_real *const *in, const mn_real *out, const mn_real *d_out,
                              mn_real *const *d_in)
{
    (void)out;
    mn_nn_rms_grad(&rms_shape, in[0], NULL, rms_inverse, d_out, NULL, false, d_in[0]);
}

static void gelu_forward(mn_real *const *in, mn_real *out) { mn_nn_gelu(WIDTH, in[0], out); }
static void gelu_backward(mn_real *const *in, const mn_real *out, const mn_real *d_out,
                          mn_real *const *d_in)
{
    (void)out;
    memcpy(d_in[0], d_out, WIDTH * sizeof(mn_real));
    mn_nn_gelu_grad(WIDTH, in[0], d_in[0]);
}

static void relu_forward(mn_real *const *in, mn_real *out)
{
    memcpy(out, in[0], WIDTH * sizeof(mn_real));
    mn_nn_relu(WIDTH, out);
}
static void relu_backward(mn_real *const *in, const mn_real *out, const mn_real *d_out,
                          mn_real *const *d_in)
{
    (void)in;
    memcpy(d_in[0], d_out, WIDTH * sizeof(mn_real));
    mn_nn_relu_grad(WIDTH, out, d_in[0]);
}

static void gate_forward(mn_real *const *in, mn_real *out)
{
    mn_nn_silu_gate(WIDTH, in[0], in[1], out);
}
static void gate_backward(mn_real *const *in, const mn_real *out, const mn_real *d_out,
                          mn_real *const *d_in)
{
    (void)out;
    mn_nn_silu_gate_grad(WIDTH, in[0], in[1], d_out, d_in[0], d_in[1]);
}

static const uint16_t targets[3] = {7, MN_NO_TARGET, 255};
static void loss_forward(mn_real *const *in, mn_real *out)
{
    mn_real logits[3 * MN_BYTES];
    mn_loss loss;
    memcpy(logits, in[0], sizeof logits);
    mn_nn_cross_entropy(3, logits, targets, &loss);
    *out = loss.nats;
}
static void loss_backward(mn_real *const *in, const mn_real *out, const mn_real *d_out,
                          mn_real *const *d_in)
{
    (void)out;
    mn_loss loss;
    memcpy(d_in[0], in[0], 3 * MN_BYTES * sizeof(mn_real));
    mn_nn_cross_entropy(3, d_in[0], targets, &loss);
    for (int i = 0; i < 3 * MN_BYTES; i++)
        d_in[0][i] *= *d_out;
}

/* 2 heads of 3 columns; lengths beyond a block of queries, and 1. */
enum { TOKENS = 38, HEADS = 2, HEAD_DIM = 3, MODEL = HEADS * HEAD_DIM };
static const uint32_t starts[3] = {0, 37, TOKENS};
static const mn_attention attention = {MODEL, HEADS, {TOKENS, 2, 37, starts}};
static mn_real log_sums[TOKENS * HEADS];
static void attention_forward(mn_real *const *in, mn_real *out)
{
    void *scratch = alloc_block(mn_attention_scratch_bytes(MODEL, HEADS, 37));
    mn_attention_forward(&attention, in[0], log_sums, out, scratch);
    free(scratch);
}
static void attention_backward(mn_real *const *in, const mn_real *out, const mn_real *d_out,
                               mn_real *const *d_in)
{
    void *scratch = alloc_block(mn_attention_scratch_bytes(MODEL, HEADS, 37));
    mn_attention_saved saved = {in[0], log_sums, out};
    mn_attention_backward(&attention, &saved, d_out, d_in[0], scratch);
    free(scratch);
}

static const operation operations[] = {
    {3, {ROWS * WIDTH, WIDTH *OUT, OUT}, ROWS *OUT, linear_forward, linear_backward},
    {2, {ROWS * WIDTH, WIDTH}, ROWS *WIDTH, norm_forward, norm_backward},
    {2, {6 * WIDTH, 3 * WIDTH}, 6 * WIDTH, rms_forward, rms_backward},
    {1, {6 * WIDTH}, 6 * WIDTH, bare_rms_forward, bare_rms_backward},
    {1, {WIDTH}, WIDTH, gelu_forward, gelu_backward},
    {1, {WIDTH}, WIDTH, relu_forward, relu_backward},
    {2, {WIDTH, WIDTH}, WIDTH, gate_forward, gate_backward},
    {1, {3 * MN_BYTES}, 1, loss_forward, loss_backward},
    {1, {TOKENS * 3 * MODEL}, TOKENS *MODEL, attention_forward, attention_backward},
};

static void test_gradients(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++) {
        double error = operation_error(&operations[i], 10 + i, 0);
        if (!(error <= TOLERANCE))
            fail_msg("operation %zu: error %g", i, error);
    }
}

static void test_wrong_gradient_is_found(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
        assert_true(operation_error(&operations[i], 10 + i, 1e-4) > TOLERANCE);
    assert_true(isnan(operation_error(&operations[0], 10, NAN)));
}

/* ---- Formulas ---- */

static bool near(double value, double wanted) { return fabs(value - wanted) <= 1e-12; }

static void test_activations_are_the_formulas(void **state)
{
    (void)state;
    for (double x = -6; x < 6; x += 0.37) {
        mn_real in = x, y = 1.5, out;
        mn_nn_gelu(1, &in, &out);
        double u = sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x);
        assert_true(near(out, 0.5 * x * (1 + tanh(u))));
        assert_false(near(out, 0.5 * x * (1 + erf(x / sqrt(2)))) && fabs(x) > 0.2 && fabs(x) < 4);
        mn_nn_silu_gate(1, &y, &in, &out);
        assert_true(near(out, 1.5 * x / (1 + exp(-x))));
    }
}

static void test_norms_are_the_formulas(void **state)
{
    (void)state;
    mn_real x[WIDTH], gain[WIDTH], out[WIDTH], mean, inverse;
    uint64_t random = 5;
    test_fill(&random, 1, WIDTH, x);
    test_fill(&random, 1, WIDTH, gain);
    double sum = 0, square = 0, variance = 0;
    for (int i = 0; i < WIDTH; i++)
        sum += x[i], square += x[i] * x[i];
    for (int i = 0; i < WIDTH; i++)
        variance += (x[i] - sum / WIDTH) * (x[i] - sum / WIDTH) / WIDTH;
    mn_nn_norm(1, WIDTH, x, gain, &mean, &inverse, out);
    for (int i = 0; i < WIDTH; i++)
        assert_true(near(out[i], (x[i] - sum / WIDTH) / sqrt(variance + 1e-5) * gain[i]));
    mn_rms rms = {1, WIDTH, 1, 2};
    mn_nn_rms(&rms, x, gain, &inverse, out);
    for (int i = 0; i < WIDTH; i++)
        assert_true(near(out[i], 2 * x[i] * gain[i] / sqrt(square / WIDTH + 1e-6)));
}

static void test_cross_entropy_is_the_formula(void **state)
{
    (void)state;
    mn_real logits[3 * MN_BYTES], gradient[3 * MN_BYTES];
    uint64_t random = 6;
    test_fill(&random, 3, 3 * MN_BYTES, logits);
    logits[7] = 4; /* the likeliest of row 0 is its target */
    memcpy(gradient, logits, sizeof logits);
    mn_loss loss;
    mn_nn_cross_entropy(3, gradient, targets, &loss);
    double nats = 0;
    for (int row = 0; row < 3; row += 2) {
        double sum = 0;
        for (int i = 0; i < MN_BYTES; i++)
            sum += exp(logits[row * MN_BYTES + i]);
        nats += log(sum) - logits[row * MN_BYTES + targets[row]];
    }
    assert_true(near(loss.nats, nats));
    assert_int_equal(loss.targets, 2);
    assert_int_equal(loss.correct, 1);
    for (int i = MN_BYTES; i < 2 * MN_BYTES; i++)
        assert_true(gradient[i] == 0);
}

/* Softmax over what is not later, by definition. */
static void test_attention_is_the_formula(void **state)
{
    (void)state;
    mn_real qkv[TOKENS * 3 * MODEL], out[TOKENS * MODEL], *in[] = {qkv};
    uint64_t random = 7;
    test_fill(&random, 2, TOKENS * 3 * MODEL, qkv);
    attention_forward(in, out);
    for (int t = 0; t < TOKENS; t++)
        for (int h = 0; h < HEADS; h++) {
            double sum = 0, wanted[HEAD_DIM] = {0};
            for (int s = t < 37 ? 0 : 37; s <= t; s++) {
                double score = 0;
                for (int i = h * HEAD_DIM; i < (h + 1) * HEAD_DIM; i++)
                    score += qkv[t * 3 * MODEL + i] * qkv[s * 3 * MODEL + MODEL + i];
                double weight = exp(score / sqrt(HEAD_DIM));
                sum += weight;
                for (int i = 0; i < HEAD_DIM; i++)
                    wanted[i] += weight * qkv[s * 3 * MODEL + 2 * MODEL + h * HEAD_DIM + i];
            }
            for (int i = 0; i < HEAD_DIM; i++)
                assert_true(near(out[t * MODEL + h * HEAD_DIM + i], wanted[i] / sum));
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_wrong_gradient_is_found),
        cmocka_unit_test(test_activations_are_the_formulas),
        cmocka_unit_test(test_norms_are_the_formulas),
        cmocka_unit_test(test_cross_entropy_is_the_formula),
        cmocka_unit_test(test_attention_is_the_formula),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
