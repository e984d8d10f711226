/* Search through the layer, in the programs' build, at any size: n no power of two, k from 1 to all
 * rows or 128, odd numbers of heads. Each of the n^2 rows is scored in double precision from the
 * queries and keys that the layer used; what it selected must be the k best, within rounding. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "memory_layer.h"
#include "model_case.h"

enum { TOKENS = 11, WIDTH = 8 };

typedef struct shape {
    uint32_t keys, heads, knn, key_dim;
} shape;

static const shape shapes[] = {
    {3, 1, 1, 2},   {3, 2, 9, 6},      {7, 5, 49, 10},  {7, 3, 1, 4},
    {7, 2, 13, 34}, {100, 3, 128, 14}, {100, 1, 1, 16}, {100, 7, 5, 2},
    {1, 2, 1, 4},   {2, 1, 4, 2},      {13, 2, 128, 8}, {33, 4, 31, 130},
};

/* Scores of all rows for one query. Returns a bound on what f32 sums may differ by. */
static double score_rows(const shape *s, const float *query, const float *keys, double *out_scores)
{
    uint32_t half = s->key_dim / 2;
    double sides[2][128], largest[2] = {0, 0};
    for (uint32_t side = 0; side < 2; side++)
        for (uint32_t i = 0; i < s->keys; i++) {
            double sum = 0, size = 0;
            for (uint32_t c = 0; c < half; c++) {
                double product =
                    (double)query[side * half + c] * (double)keys[(side * s->keys + i) * half + c];
                sum += product;
                size += fabs(product);
            }
            sides[side][i] = sum;
            largest[side] = fmax(largest[side], size);
        }
    for (uint32_t i = 0; i < s->keys; i++)
        for (uint32_t j = 0; j < s->keys; j++)
            out_scores[i * s->keys + j] = sides[0][i] + sides[1][j];
    return (half + 2) * (largest[0] + largest[1]) * (double)FLT_EPSILON;
}

/* Whether rows [knn] are the best by `scores`, best first, each once. Marks them. */
static bool best(const shape *s, const uint64_t *rows, const double *scores, double bound,
                 bool *marked)
{
    uint64_t all = (uint64_t)s->keys * s->keys;
    double last = INFINITY;
    for (uint32_t j = 0; j < s->knn; j++) {
        if (rows[j] >= all || marked[rows[j]] || scores[rows[j]] > last + 2 * bound)
            return false;
        marked[rows[j]] = true;
        last = fmin(last, scores[rows[j]]);
    }
    for (uint64_t row = 0; row < all; row++)
        if (!marked[row] && scores[row] > last + 2 * bound)
            return false;
    return true;
}

/* Whether weights are the softmax of the selected scores, divided by the temperature. */
static bool softmax(const shape *s, const uint64_t *rows, const double *scores, double temperature,
                    double bound, const float *weights)
{
    double sum = 0, highest = scores[rows[0]];
    for (uint32_t j = 0; j < s->knn; j++)
        sum += exp((scores[rows[j]] - highest) / temperature);
    for (uint32_t j = 0; j < s->knn; j++) {
        double wanted = exp((scores[rows[j]] - highest) / temperature) / sum;
        if (!(fabs((double)weights[j] - wanted) <= 4 * bound / temperature + 1e-5))
            return false;
    }
    return true;
}

/* Runs the layer; whether all it selected is right once `spoil` has been added to a row's number,
 * modulo the rows. */
static bool layer_is_right(const shape *s, uint64_t seed, uint64_t spoil)
{
    mn_model_options options = {.placement_count = 1, .placements = {{2, true}}};
    options.memory = (mn_memory_options){.keys = s->keys,
                                         .heads = s->heads,
                                         .knn = s->knn,
                                         .key_dim = s->key_dim,
                                         .query_norm = seed % 2 ? MN_QUERY_BATCH : MN_QUERY_NONE,
                                         .temperature = 0.5f};
    model_case c;
    model_case_init(&c, &options, seed);
    float input[TOKENS * WIDTH];
    uint64_t random = seed, all = (uint64_t)s->keys * s->keys;
    test_fill(&random, 1, TOKENS * WIDTH, input);
    mn_run run = {&c.model, c.workspace, c.parameters, c.statistics, NULL,
                  &c.pass,  &c.access,   TOKENS,       NULL};
    assert_int_equal(mn_memory_forward_start(&run, 0, input), MN_OK);
    float out[TOKENS * WIDTH] = {0};
    assert_int_equal(mn_memory_forward_finish(&run, 0, out), MN_OK);
    const mn_memory_saved *saved = &c.workspace->memories[0];
    const float *keys = c.parameters + mn_memory_offsets(&c.model, 0)->keys;
    double *scores = calloc(all, sizeof *scores);
    bool *marked = calloc(all, sizeof *marked), right = true;
    saved->rows[s->knn - 1] = (saved->rows[s->knn - 1] + spoil) % all;
    for (uint64_t q = 0; q < (uint64_t)TOKENS * s->heads; q++) {
        const float *head_keys = keys + q % s->heads * s->keys * s->key_dim;
        double bound = score_rows(s, saved->query + q * s->key_dim, head_keys, scores);
        memset(marked, 0, all * sizeof *marked);
        right =
            right && best(s, saved->rows + q * s->knn, scores, bound, marked) &&
            softmax(s, saved->rows + q * s->knn, scores, 0.5, bound, saved->weights + q * s->knn);
    }
    free(marked);
    free(scores);
    model_case_deinit(&c);
    return right;
}

static void the_best_rows_at_any_size(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (uint64_t seed = 0; seed < 4; seed++)
            if (!layer_is_right(&shapes[i], 40 * (uint64_t)i + seed, 0))
                fail_msg("n %u, %u heads, k %u, dim %u, seed %d", shapes[i].keys, shapes[i].heads,
                         shapes[i].knn, shapes[i].key_dim, (int)seed);
}

static void another_row_is_found(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (shapes[i].keys > 1)
            assert_false(layer_is_right(&shapes[i], 40 * (uint64_t)i, 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_best_rows_at_any_size),
        cmocka_unit_test(another_row_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
