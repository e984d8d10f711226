/* The trainer's own random numbers: XLM's keys by numpy's Mersenne Twister (tests/golden), Meta's
 * scale, and dropout. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "golden.h"
#include "mn_trainer.h"
#include "mt19937.h"
#include "nn_cpu.h"

/* ---- Keys ---- */

static void words_and_doubles_are_numpy_s(void **state)
{
    (void)state;
    static const uint32_t seeds[] = {0, 5489, UINT32_MAX};
    static const uint32_t places[8] = {0, 1, 2, 622, 623, 624, 625, 1299};
    char *golden = golden_open("mt19937", "numpy ");
    mn_mt19937 generator;
    double wanted[8];
    for (int s = 0; s < 3; s++) {
        char name[32];
        (void)snprintf(name, sizeof name, "words.%u", seeds[s]);
        golden_read(golden, name, 8, wanted);
        mn_mt19937_seed(&generator, seeds[s]);
        for (uint32_t i = 0, next = 0; i < 1300; i++) {
            uint32_t word = mn_mt19937_word(&generator);
            if (i == places[next])
                assert_true((double)word == wanted[next++]);
        }
    }
    golden_read(golden, "doubles", 8, wanted);
    mn_mt19937_seed(&generator, 7);
    for (int i = 0; i < 8; i++)
        assert_true(mn_mt19937_double(&generator) == wanted[i]);
    mn_mt19937_seed(&generator, 8);
    assert_true(mn_mt19937_double(&generator) != wanted[0]);
    free(golden);
}

enum { KEYS = 5, HALF = 3, HEADS = 2, KEY_COUNT = HEADS * 2 * KEYS * HALF };

/* Initial parameters of a model with memories in layers 1 and 3; to be freed. */
static float *initial(mn_model *out_model, enum mn_key_init key_init, uint64_t seed)
{
    mn_model_options options = {.width = 8,
                                .layers = 3,
                                .attention_heads = 1,
                                .seed = seed,
                                .placement_count = 2,
                                .placements = {{1, true}, {3, false}}};
    options.memory = (mn_memory_options){
        .keys = KEYS, .heads = HEADS, .knn = 3, .key_dim = 2 * HALF, .key_init = key_init};
    assert_int_equal(mn_model_init(&options, out_model, NULL), MN_OK);
    float *parameters = calloc(out_model->parameter_count, sizeof *parameters);
    float *statistics = calloc(out_model->statistics_count, sizeof *statistics);
    mn_model_init_parameters(out_model, parameters, statistics);
    free(statistics);
    return parameters;
}

static void xlm_s_keys_are_reproduced(void **state)
{
    (void)state;
    static mn_model model, uniform;
    char *golden = golden_open("mt19937", "numpy ");
    double wanted[KEY_COUNT];
    golden_read(golden, "keys", KEY_COUNT, wanted);
    float *parameters = initial(&model, MN_KEYS_XLM, 1), *other = initial(&model, MN_KEYS_XLM, 2);
    float *ours = initial(&uniform, MN_KEYS_UNIFORM, 1);
    for (int layer = 0; layer < 3; layer += 2)
        for (int i = 0; i < KEY_COUNT; i++) {
            uint64_t at = model.layers[layer].keys + (uint64_t)i;
            assert_true((double)parameters[at] == wanted[i]);
            assert_true(other[at] == parameters[at]); /* whatever the model's seed */
            assert_true(ours[at] != parameters[at]);
            ours[at] = parameters[at];
        }
    /* Nothing else differs from the default. */
    assert_memory_equal(ours, parameters, model.parameter_count * sizeof *ours);
    free(ours);
    free(other);
    free(parameters);
    free(golden);
}

/* Memory+ draws in +-1/sqrt(key_dim): the default's numbers, smaller by sqrt(2). */
static void meta_s_scale(void **state)
{
    (void)state;
    static mn_model model;
    float *meta = initial(&model, MN_KEYS_META, 1), *ours = initial(&model, MN_KEYS_UNIFORM, 1);
    double largest = 0;
    for (int i = 0; i < KEY_COUNT; i++) {
        double key = (double)meta[model.layers[2].keys + (uint64_t)i];
        double wanted = (double)ours[model.layers[2].keys + (uint64_t)i] / sqrt(2);
        assert_true(fabs(key - wanted) < 1e-6);
        largest = fmax(largest, fabs(key));
    }
    assert_true(largest < 1 / sqrt(2 * HALF) && largest > 0.9 / sqrt(2 * HALF));
    free(ours);
    free(meta);
}

/* ---- Dropout ---- */

enum { ROWS = 256, WIDTH = 50 }; /* the last block of 4 columns is half used */

static void ones(float x[ROWS][WIDTH])
{
    for (int i = 0; i < ROWS * WIDTH; i++)
        x[i / WIDTH][i % WIDTH] = 1;
}

static uint32_t kept(float x[ROWS][WIDTH])
{
    uint32_t count = 0;
    for (int i = 0; i < ROWS * WIDTH; i++)
        count += x[i / WIDTH][i % WIDTH] != 0;
    return count;
}

/* Of the elements that `a` keeps, how many `b` keeps too. */
static uint32_t both(float a[ROWS][WIDTH], float b[ROWS][WIDTH])
{
    uint32_t count = 0;
    for (int i = 0; i < ROWS * WIDTH; i++)
        count += a[i / WIDTH][i % WIDTH] != 0 && b[i / WIDTH][i % WIDTH] != 0;
    return count;
}

/* Within five standard deviations of n draws at probability p. */
static bool likely(uint32_t count, double n, double p)
{
    return fabs(count - n * p) <= 5 * sqrt(n * p * (1 - p));
}

static void dropout_takes_its_share(void **state)
{
    (void)state;
    static float x[ROWS][WIDTH];
    for (int tenths = 1; tenths < 10; tenths += 2) {
        mn_dropout dropout = {.seed = 3, .step = 5, .layer = 2, .share = (float)tenths / 10};
        double keep = 1 - (double)dropout.share;
        ones(x);
        mn_nn_dropout(&dropout, ROWS, WIDTH, &x[0][0]);
        assert_true(likely(kept(x), ROWS * WIDTH, keep));
        assert_false(likely(kept(x), ROWS * WIDTH, keep + 0.05));
        for (int i = 0; i < ROWS * WIDTH; i++)
            assert_true(x[i / WIDTH][i % WIDTH] == 0 ||
                        x[i / WIDTH][i % WIDTH] == (float)(1 / keep));
    }
    mn_dropout none = {.share = 0};
    ones(x);
    mn_nn_dropout(&none, ROWS, WIDTH, &x[0][0]);
    for (int i = 0; i < ROWS * WIDTH; i++)
        assert_true(x[i / WIDTH][i % WIDTH] == 1);
}

/* Masks of another seed, step, layer or position have nothing to do with each other. */
static void masks_are_independent(void **state)
{
    (void)state;
    static float x[ROWS][WIDTH], other[ROWS][WIDTH];
    const uint64_t high = UINT64_C(1) << 32;
    mn_dropout dropout = {.seed = 3, .step = 5, .layer = 2, .share = 0.5f};
    mn_dropout others[] = {dropout, dropout, dropout, dropout, dropout, dropout, dropout};
    others[0].seed++;
    others[1].seed += high;
    others[2].step++;
    others[3].step += high;
    others[4].layer++;
    others[5].first_position++;
    others[6].first_position += high;
    ones(x);
    mn_nn_dropout(&dropout, ROWS, WIDTH, &x[0][0]);
    for (int i = 0; i < 7; i++) {
        ones(other);
        mn_nn_dropout(&others[i], ROWS, WIDTH, &other[0][0]);
        assert_true(likely(both(x, other), ROWS * WIDTH, 0.25));
    }
    ones(other);
    mn_nn_dropout(&dropout, ROWS, WIDTH, &other[0][0]);
    assert_false(likely(both(x, other), ROWS * WIDTH, 0.25)); /* itself */
}

/* However a step's batch is cut over ranks and parts, each position has the same mask. */
static void masks_follow_positions(void **state)
{
    (void)state;
    static float whole[ROWS][WIDTH], cut[ROWS][WIDTH];
    mn_dropout dropout = {.seed = 3, .step = 5, .layer = 2, .share = 0.4f};
    ones(whole);
    mn_nn_dropout(&dropout, ROWS, WIDTH, &whole[0][0]);
    static const uint64_t cuts[] = {0, 1, 100, 164, ROWS};
    ones(cut);
    for (int i = 0; i < 4; i++) {
        dropout.first_position = cuts[i];
        mn_nn_dropout(&dropout, cuts[i + 1] - cuts[i], WIDTH, cut[cuts[i]]);
    }
    assert_memory_equal(cut, whole, sizeof cut);
    ones(cut);
    mn_nn_dropout(&dropout, ROWS, WIDTH, &cut[0][0]); /* from another position */
    assert_memory_not_equal(cut, whole, sizeof cut);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_and_doubles_are_numpy_s),
        cmocka_unit_test(xlm_s_keys_are_reproduced),
        cmocka_unit_test(meta_s_scale),
        cmocka_unit_test(dropout_takes_its_share),
        cmocka_unit_test(masks_are_independent),
        cmocka_unit_test(masks_follow_positions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
