/* One run of the comparison of key sets (tests/learn/flat): a one-layer model learns fixed random
 * pairs with a memory whose rows are found by product keys or by flat ones, all else equal; prints
 * a line of JSON. Values lie in this process; Adam moves everything, a value only when read.
 *
 *   flat_recall product|flat SEED STEPS
 *   flat_recall --self-test     flat keys of pairs of sub-keys must give the product keys' rows */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data.h"
#include "flat_keys.h"
#include "metrics.h"

enum { WIDTH = 64, KEYS = 64, ROWS = KEYS * KEYS, HEADS = 4, KNN = 16, KEY_DIM = 64 };
enum { PAIRS = 2000, CONTEXT = MN_RECALL_CONTEXT, SEQUENCES = 146, TOKENS = SEQUENCES * CONTEXT };
enum { FLAT_COUNT = HEADS * ROWS * KEY_DIM, VALUE_COUNT = ROWS * WIDTH };
#define RATE       0.003f
#define VALUE_RATE 0.03f

/* Adam's state for one array. */
typedef struct learned {
    uint64_t count;
    float *x, *gradient, *mean, *square;
} learned;

typedef struct trainee {
    mn_model model;
    learned parameters, values, keys;
    float *statistics;
    mn_workspace *workspace;
    mn_memory_access access;
    mn_usage *counting; /* NULL: nothing is counted */
    uint8_t inputs[TOKENS];
    uint16_t targets[TOKENS];
} trainee;

static void *allocate(uint64_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory)
        exit(1);
    memset(memory, 0, bytes);
    return memory;
}

static learned learned_of(uint64_t count)
{
    uint64_t bytes = count * sizeof(float);
    return (learned){count, allocate(bytes), allocate(bytes), allocate(bytes), allocate(bytes)};
}

static void learned_free(learned *of)
{
    free(of->x);
    free(of->gradient);
    free(of->mean);
    free(of->square);
}

/* `lazy`: elements whose gradient is 0 stay. Gradients are zeroed. */
static void adam(learned *of, float rate, uint32_t step, bool lazy)
{
    float correction = rate * sqrtf(1 - powf(0.999f, (float)step)) / (1 - powf(0.9f, (float)step));
    for (uint64_t i = 0; i < of->count; i++) {
        float g = of->gradient[i];
        if (lazy && g == 0)
            continue;
        of->mean[i] += 0.1f * (g - of->mean[i]);
        of->square[i] += 0.001f * (g * g - of->square[i]);
        of->x[i] -= correction * of->mean[i] / (sqrtf(of->square[i]) + 1e-8f);
        of->gradient[i] = 0;
    }
}

/* ---- The values, behind the model's access ---- */

static void *bag_start(void *context, const mn_memory_reads *reads, float *out_bags)
{
    const trainee *t = context;
    memset(out_bags, 0, reads->queries * WIDTH * sizeof *out_bags);
    for (uint64_t i = 0; i < reads->queries * reads->per_query; i++)
        for (int c = 0; c < WIDTH; c++)
            out_bags[i / reads->per_query * WIDTH + (uint64_t)c] +=
                reads->weights[i] * t->values.x[reads->rows[i] * WIDTH + (uint64_t)c];
    return NULL;
}

static void *bag_grad_start(void *context, const mn_memory_reads *reads,
                            const float *output_gradients, float *out_weight_gradients)
{
    trainee *t = context;
    for (uint64_t i = 0; i < reads->queries * reads->per_query; i++) {
        const float *g = output_gradients + i / reads->per_query * WIDTH;
        uint64_t row = reads->rows[i] * WIDTH;
        float dot = 0;
        for (uint64_t c = 0; c < WIDTH; c++) {
            dot += g[c] * t->values.x[row + c];
            t->values.gradient[row + c] += reads->weights[i] * g[c];
        }
        out_weight_gradients[i] = dot;
    }
    return NULL;
}

static enum mn_status wait(void *context, void *ticket, mn_error *error)
{
    (void)context, (void)ticket, (void)error; /* answered when started */
    return MN_OK;
}

static void selected(void *context, uint32_t memory, const mn_memory_reads *reads)
{
    const trainee *t = context;
    (void)memory; /* there is one */
    if (t->counting)
        mn_usage_add(t->counting, reads->rows, reads->weights, reads->queries * reads->per_query);
}

/* ---- A run ---- */

static bool trainee_init(trainee *t, bool flat, uint64_t seed)
{
    mn_model_options options = {.width = WIDTH,
                                .layers = 1,
                                .attention_heads = 4,
                                .context = CONTEXT,
                                .seed = seed,
                                .placement_count = 1,
                                .placements = {{1, true}}};
    options.memory =
        (mn_memory_options){.keys = KEYS, .heads = HEADS, .knn = KNN, .key_dim = KEY_DIM};
    if (mn_model_init(&options, &t->model, NULL))
        return false;
    t->parameters = learned_of(t->model.parameter_count);
    t->values = learned_of(VALUE_COUNT);
    t->keys = learned_of(flat ? FLAT_COUNT : 0);
    t->statistics = allocate(t->model.statistics_count * sizeof(float));
    mn_model_init_parameters(&t->model, t->parameters.x, t->statistics);
    const mn_kernels *kernels = mn_kernels_best();
    mn_init values = mn_init_normal(1 / sqrtf(WIDTH));
    for (uint64_t row = 0; row < ROWS; row++)
        kernels->init_row(&values, seed + 1, row, 0, WIDTH, MN_F32, t->values.x + row * WIDTH);
    mn_init keys = mn_init_uniform(-1 / sqrtf(KEY_DIM), 1 / sqrtf(KEY_DIM)); /* XLM's flat memory */
    for (uint64_t row = 0; flat && row < (uint64_t)HEADS * ROWS; row++)
        kernels->init_row(&keys, seed + 2, row, 0, KEY_DIM, MN_F32, t->keys.x + row * KEY_DIM);
    if (flat)
        flat_keys_in_use = (flat_keys){t->keys.x, t->keys.gradient};
    t->workspace = mn_workspace_init(&t->model, TOKENS, SEQUENCES,
                                     allocate(mn_workspace_bytes(&t->model, TOKENS, SEQUENCES)));
    t->access = (mn_memory_access){.context = t,
                                   .bag_start = bag_start,
                                   .bag_grad_start = bag_grad_start,
                                   .wait = wait,
                                   .selected = selected};
    return true;
}

static bool train(trainee *t, const mn_data *data, uint64_t seed, uint32_t steps)
{
    for (uint32_t step = 1; step <= steps; step++) {
        for (uint32_t i = 0; i < SEQUENCES; i++)
            mn_data_window(data, seed, step, i, CONTEXT, t->inputs + i * CONTEXT,
                           t->targets + i * CONTEXT);
        mn_pass pass = {.sequences = SEQUENCES,
                        .length = CONTEXT,
                        .tokens = t->inputs,
                        .targets = t->targets,
                        .training = true};
        mn_loss loss;
        if (mn_model_forward(t->workspace, t->parameters.x, t->statistics, &pass, &t->access, &loss,
                             NULL) ||
            mn_model_backward(t->workspace, t->parameters.x, &pass, 1 / (double)loss.targets,
                              &t->access, t->parameters.gradient, NULL))
            return false;
        float left = 1 - 0.9f * (float)step / (float)steps; /* down to a tenth */
        adam(&t->parameters, RATE * left, step, false);
        adam(&t->keys, RATE * left, step, false);
        adam(&t->values, VALUE_RATE * left, step, true);
    }
    return true;
}

static bool evaluate(trainee *t, const mn_data *data, mn_loss *out_sum, mn_usage_metrics *out_usage)
{
    static uint64_t counts[ROWS], scratch[ROWS];
    static double weights[ROWS];
    mn_usage usage = {.rows = ROWS, .counts = counts, .weights = weights};
    t->counting = &usage;
    for (uint32_t first = 0; first < PAIRS; first += SEQUENCES) {
        uint32_t count = PAIRS - first < SEQUENCES ? PAIRS - first : SEQUENCES;
        for (uint32_t i = 0; i < count; i++)
            mn_data_held_out(data, MN_PART_TEST, first + i, CONTEXT, t->inputs + i * CONTEXT,
                             t->targets + i * CONTEXT);
        mn_pass pass = {
            .sequences = count, .length = CONTEXT, .tokens = t->inputs, .targets = t->targets};
        mn_loss loss;
        if (mn_model_forward(t->workspace, t->parameters.x, t->statistics, &pass, &t->access, &loss,
                             NULL))
            return false;
        out_sum->nats += loss.nats;
        out_sum->targets += loss.targets;
        out_sum->correct += loss.correct;
    }
    *out_usage = mn_usage_measure(&usage, scratch);
    return true;
}

static int run(const char *arm, uint64_t seed, uint32_t steps)
{
    static trainee t;
    mn_data data;
    mn_loss loss = {0};
    mn_usage_metrics usage;
    mn_data_recall(PAIRS, seed, &data);
    bool done = trainee_init(&t, !strcmp(arm, "flat"), seed) && train(&t, &data, seed, steps) &&
                evaluate(&t, &data, &loss, &usage);
    if (done) {
        mn_usage_metrics uniform = mn_uniform_metrics(usage.reads, ROWS);
        printf("{\"arm\": \"%s\", \"seed\": %llu, \"steps\": %u, \"rows\": %d, \"reads\": %llu, "
               "\"bits\": %.4f, \"right\": %.2f, \"used\": %.2f, \"kl-count\": %.4f, "
               "\"kl-weight\": %.4f, \"uniform-used\": %.2f, \"uniform-kl\": %.4f}\n",
               arm, (unsigned long long)seed, steps, ROWS, (unsigned long long)usage.reads,
               loss.nats / (double)loss.targets / M_LN2,
               100 * (double)loss.correct / (double)loss.targets, usage.used_percent,
               usage.kl_count, usage.kl_weight, uniform.used_percent, uniform.kl_count);
    }
    mn_data_deinit(&data);
    free(t.workspace);
    free(t.statistics);
    learned_free(&t.keys);
    learned_free(&t.values);
    learned_free(&t.parameters);
    return done ? 0 : 1;
}

/* ---- The self-test ---- */

enum { TEST_N = 9, TEST_HALF = 5, TEST_K = 12, TEST_TOKENS = 70, TEST_HEADS = 3 };
enum { TEST_QUERIES = TEST_TOKENS * TEST_HEADS, TEST_DIM = 2 * TEST_HALF };
enum { TEST_KEYS = TEST_HEADS * 2 * TEST_N * TEST_HALF, TEST_FLAT = TEST_HEADS * TEST_N * TEST_N };

/* Whole numbers, whose sums are exact in any order. */
static void whole(uint32_t salt, uint64_t n, float *out)
{
    for (uint64_t i = 0; i < n; i++) {
        const uint32_t counter[4] = {(uint32_t)i, salt, 0, 0}, key[2] = {1, 2};
        uint32_t words[4];
        mn_philox(counter, key, words);
        out[i] = (float)(words[0] % 2001) - 1000;
    }
}

/* Largest difference of scores and query gradients; `spoil` is added to a flat key. */
static float self_test(float spoil)
{
    static float keys[TEST_KEYS], flat[TEST_FLAT * TEST_DIM], moved[TEST_FLAT * TEST_DIM];
    static float key_gradients[TEST_KEYS], queries[TEST_QUERIES * TEST_DIM],
        ds[TEST_QUERIES * TEST_K];
    static float scores[2][TEST_QUERIES * TEST_K], d[2][TEST_QUERIES * TEST_DIM];
    static uint64_t rows[2][TEST_QUERIES * TEST_K];
    mn_search search = {TEST_TOKENS, TEST_HEADS, TEST_N, TEST_HALF, TEST_K};
    void *scratch = allocate(mn_nn_search_bytes(&search));
    whole(1, TEST_KEYS, keys);
    whole(2, TEST_QUERIES * TEST_DIM, queries);
    whole(3, TEST_QUERIES * TEST_K, ds);
    for (uint32_t f = 0; f < TEST_FLAT * TEST_DIM; f++) {
        uint32_t head = f / TEST_DIM / (TEST_N * TEST_N), row = f / TEST_DIM % (TEST_N * TEST_N);
        uint32_t side = f % TEST_DIM / TEST_HALF, key = side ? row % TEST_N : row / TEST_N;
        flat[f] = keys[((head * 2 + side) * TEST_N + key) * TEST_HALF + f % TEST_HALF];
    }
    flat[3] += spoil;
    memset(d, 0, sizeof d);
    for (int arm = 0; arm < 2; arm++) {
        flat_keys_in_use = arm ? (flat_keys){flat, moved} : (flat_keys){NULL, NULL};
        (void)__wrap_mn_nn_search(&search, queries, keys, rows[arm], scores[arm], scratch,
                                  NULL); /* of finite scores, cannot fail */
        __wrap_mn_nn_search_grad(&search, queries, keys, rows[0], ds, d[arm], key_gradients);
    }
    free(scratch);
    float worst = 0;
    for (int i = 0; i < TEST_QUERIES * TEST_K; i++)
        worst = fmaxf(worst, fabsf(scores[0][i] - scores[1][i]));
    for (int i = 0; i < TEST_QUERIES * TEST_DIM; i++)
        worst = fmaxf(worst, fabsf(d[0][i] - d[1][i]) / 1e6f); /* sums of 12 products of 1e6 */
    return worst;
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "--self-test")) {
        float exact = self_test(0), spoilt = self_test(1000);
        printf("scores and gradients differ by %g, after a wrong key by %g\n", (double)exact,
               (double)spoilt);
        return exact <= 1 && spoilt > 100 ? 0 : 1;
    }
    if (argc != 4 || (strcmp(argv[1], "product") && strcmp(argv[1], "flat"))) {
        fputs("usage: flat_recall product|flat SEED STEPS | --self-test\n", stderr);
        return 2;
    }
    return run(argv[1], strtoull(argv[2], NULL, 10), (uint32_t)strtoul(argv[3], NULL, 10));
}
