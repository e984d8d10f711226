/* The memory layer's forward pass against the paper's equations written out flat, in double
 * precision: every one of the n^2 rows is scored (Lample et al. 2019 §3.1), the best k of each head
 * are taken, and their values added. Finite differences cannot see a forward pass that is wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "memory_layer.h"
#include "model_case.h"

enum { KEYS = 4, ROWS = KEYS * KEYS, HEADS = 2, KNN = 3, KEY_DIM = 6, HALF = 3, WIDTH = 8 };
enum { TOKENS = 10, QUERY = HEADS * KEY_DIM };

static const mn_real *segment(const model_case *c, const char *name)
{
    for (uint32_t s = 0; s < c->model.segment_count; s++)
        if (strcmp(c->model.segments[s].name, name) == 0)
            return c->parameters + c->model.segments[s].offset;
    fail_msg("no segment %s", name);
    return NULL;
}

static void query_linear(const model_case *c, const mn_real *input, double out[TOKENS][QUERY])
{
    const mn_real *weights = segment(c, "layer2.memory.query0");
    bool bias = c->model.options.memory.query_norm != MN_QUERY_BATCH;
    for (int t = 0; t < TOKENS; t++)
        for (int i = 0; i < QUERY; i++) {
            out[t][i] = bias ? segment(c, "layer2.memory.query0.bias")[i] : 0;
            for (int j = 0; j < WIDTH; j++)
                out[t][i] += input[t * WIDTH + j] * weights[j * QUERY + i];
        }
}

static void batch_norm(const model_case *c, double q[TOKENS][QUERY])
{
    const mn_real *gain = segment(c, "layer2.memory.query.gain");
    const mn_real *shift = segment(c, "layer2.memory.query.shift");
    for (int i = 0; i < QUERY; i++) {
        double mean = 0, variance = 0;
        for (int t = 0; t < TOKENS; t++)
            mean += q[t][i] / TOKENS;
        for (int t = 0; t < TOKENS; t++)
            variance += (q[t][i] - mean) * (q[t][i] - mean) / TOKENS;
        for (int t = 0; t < TOKENS; t++)
            q[t][i] = (q[t][i] - mean) / sqrt(variance + 1e-5) * gain[i] + shift[i];
    }
}

static void rms_norm(const model_case *c, double q[TOKENS][QUERY])
{
    const mn_real *gain = segment(c, "layer2.memory.query.gain");
    for (int t = 0; t < TOKENS; t++)
        for (int first = 0; first < QUERY; first += KEY_DIM) {
            double square = 0;
            for (int i = first; i < first + KEY_DIM; i++)
                square += q[t][i] * q[t][i] / KEY_DIM;
            for (int i = first; i < first + KEY_DIM; i++)
                q[t][i] *= gain[i] / sqrt(square + 1e-6);
        }
}

/* <half of a query, sub-key>; for RMS the sub-key has norm 1. */
static double key_score(const model_case *c, const double *query, int head, int side, int key)
{
    const mn_real *at = segment(c, "layer2.memory.keys") + ((head * 2 + side) * KEYS + key) * HALF;
    double score = 0, square = 0;
    for (int i = 0; i < HALF; i++) {
        score += query[head * KEY_DIM + side * HALF + i] * at[i];
        square += at[i] * at[i];
    }
    bool rms = c->model.options.memory.query_norm == MN_QUERY_RMS;
    return rms ? score / sqrt(square + 1e-6 * HALF) : score;
}

/* Adds one head's share of a bag. */
static void head_bag(const model_case *c, const double *query, int head, double bag[WIDTH])
{
    double scores[ROWS], weights[KNN], sum = 0;
    int best[KNN];
    for (int row = 0; row < ROWS; row++)
        scores[row] =
            key_score(c, query, head, 0, row / KEYS) + key_score(c, query, head, 1, row % KEYS);
    for (int j = 0; j < KNN; j++) {
        best[j] = 0;
        for (int row = 1; row < ROWS; row++)
            if (scores[row] > scores[best[j]])
                best[j] = row;
        double score = scores[best[j]] / (double)c->model.options.memory.temperature;
        weights[j] = c->model.options.memory.gate == MN_GATE_SOFTMAX ? exp(score) : fmax(score, 0);
        sum += weights[j];
        scores[best[j]] = -INFINITY;
    }
    for (int j = 0; j < KNN; j++)
        for (int i = 0; i < WIDTH; i++)
            bag[i] += weights[j] * c->memory.values[best[j] * WIDTH + i] /
                      (c->model.options.memory.gate == MN_GATE_SOFTMAX ? sum : 1);
}

/* out = bag, or (bag * silu(x W1)) W2. */
static void token_output(const model_case *c, const mn_real *x, const double *bag, double *out)
{
    if (!c->model.options.memory.swiglu) {
        memcpy(out, bag, WIDTH * sizeof *out);
        return;
    }
    const mn_real *w1 = segment(c, "layer2.memory.gate");
    const mn_real *w2 = segment(c, "layer2.memory.projection");
    memset(out, 0, WIDTH * sizeof *out);
    for (int i = 0; i < WIDTH; i++) {
        double a = 0;
        for (int j = 0; j < WIDTH; j++)
            a += x[j] * w1[j * WIDTH + i];
        for (int j = 0; j < WIDTH; j++)
            out[j] += bag[i] * a / (1 + exp(-a)) * w2[i * WIDTH + j];
    }
}

/* The largest difference between the layer's output and the equations', of keys that have since
 * moved by `spoil`. */
static double layer_error(const mn_model_options *options, uint64_t seed, double spoil)
{
    model_case c;
    model_case_init(&c, options, seed);
    mn_real input[TOKENS * WIDTH], out[TOKENS * WIDTH] = {0};
    double queries[TOKENS][QUERY], worst = 0;
    uint64_t random = seed + 1;
    test_fill(&random, 1, TOKENS * WIDTH, input);
    mn_run run = {&c.model, c.workspace, c.parameters, c.statistics, NULL,
                  &c.pass,  &c.access,   TOKENS,       NULL};
    assert_int_equal(mn_memory_forward_start(&run, 0, input), MN_OK);
    assert_int_equal(mn_memory_forward_finish(&run, 0, out), MN_OK);
    c.parameters[segment(&c, "layer2.memory.keys") - c.parameters] += spoil;
    query_linear(&c, input, queries);
    if (options->memory.query_norm == MN_QUERY_BATCH)
        batch_norm(&c, queries);
    if (options->memory.query_norm == MN_QUERY_RMS)
        rms_norm(&c, queries);
    for (int t = 0; t < TOKENS; t++) {
        double bag[WIDTH] = {0}, wanted[WIDTH];
        for (int head = 0; head < HEADS; head++)
            head_bag(&c, queries[t], head, bag);
        token_output(&c, input + t * WIDTH, bag, wanted);
        for (int i = 0; i < WIDTH; i++)
            worst = fmax(worst, fabs(out[t * WIDTH + i] - wanted[i]));
    }
    model_case_deinit(&c);
    return worst;
}

static void test_layer_is_the_equations(void **state)
{
    (void)state;
    for (int norm = MN_QUERY_BATCH; norm <= MN_QUERY_RMS; norm++)
        for (int gate = MN_GATE_SOFTMAX; gate <= MN_GATE_RELU; gate++)
            for (int swiglu = 0; swiglu <= 1; swiglu++) {
                mn_model_options options = {.placement_count = 1, .placements = {{2, true}}};
                options.memory.query_norm = (enum mn_query_norm)norm;
                options.memory.gate = (enum mn_gate)gate;
                options.memory.swiglu = swiglu;
                options.memory.temperature = 0.7f;
                double error =
                    layer_error(&options, 700 + (uint64_t)(norm * 4 + gate * 2 + swiglu), 0);
                if (!(error <= 1e-12))
                    fail_msg("norm %d gate %d swiglu %d: %g", norm, gate, swiglu, error);
            }
}

static void test_wrong_key_is_found(void **state)
{
    (void)state;
    mn_model_options options = {.placement_count = 1, .placements = {{2, true}}};
    assert_true(layer_error(&options, 700, 1e-3) > 1e-6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layer_is_the_equations),
        cmocka_unit_test(test_wrong_key_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
