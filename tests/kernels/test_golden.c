/* Kernels against what PyTorch computes (tests/golden, made by make_golden.py). */
#include "fixture.h"

/* One file of tests/golden, read whole. */
typedef struct golden {
    char *text;
} golden;

static golden golden_open(const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/tests/golden/%s.txt", MN_SOURCE_DIR, name);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    golden g = {calloc(1, 1 << 17)};
    size_t bytes = fread(g.text, 1, (1 << 17) - 1, file);
    assert_true(bytes > 0 && bytes < (1 << 17) - 1);
    assert_memory_equal(g.text, "# torch ", 8);
    fclose(file);
    return g;
}

/* The numbers of block `name`, exactly `count`; to be freed. */
static float *golden_read(const golden *g, const char *name, size_t count)
{
    char head[64];
    snprintf(head, sizeof head, "\n%s %zu\n", name, count);
    char *at = strstr(g->text, head);
    if (at == NULL)
        fail_msg("no block \"%s\" of %zu numbers", name, count);
    float *values = malloc(count * sizeof *values);
    at += strlen(head);
    for (size_t i = 0; i < count; i++)
        values[i] = strtof(at, &at);
    return values;
}

/* Both sides round in f32, in another order: some ten roundings of 2^-24, relative to the larger of
 * the value and 1. */
static bool near(const float *got, const float *expected, size_t count, double tolerance)
{
    for (size_t i = 0; i < count; i++)
        if (!oracle_close(got[i], expected[i], tolerance * (1 + fabs(expected[i]))))
            return false;
    return true;
}

enum { ROWS = 6, COLUMNS = 20, STEPS = 4 };

/* Applies step s to every row, or with `lazy` to all but row s. */
static void apply_step(const mn_kernels *kernels, mn_tile *tile, const float *gradient, uint32_t s,
                       bool lazy, float decay)
{
    mn_contribution contributions[ROWS];
    const void *rows[ROWS];
    uint64_t n = 0;
    for (uint32_t r = 0; r < ROWS; r++) {
        rows[r] = gradient + r * COLUMNS;
        if (!lazy || r != s)
            contributions[n++] = (mn_contribution){r, r, 1};
    }
    const mn_sources sources = {rows, MN_F32, 0};
    const mn_update update = {
        .learning_rate = 0.1f, .weight_decay = decay, .factor = 1, .step = s + 1};
    void *scratch = aligned_alloc(64, mn_merge_scratch_bytes(COLUMNS));
    tile->rows_written += kernels->merge_apply(tile, contributions, n, &sources, &update, scratch);
    free(scratch);
}

static void check_optimizer(const mn_kernels *kernels, const char *name, mn_optimizer optimizer)
{
    char file[64], block[32];
    snprintf(file, sizeof file, "optimizer_%s", name);
    golden g = golden_open(file);
    const bool lazy = optimizer.kind == MN_OPTIMIZER_ADAM;
    fixture_options options = {
        .rows = ROWS, .columns = COLUMNS, .optimizer = optimizer, .all_written = true};
    mn_tile tile = fixture_tile(&options);
    float *before = golden_read(&g, "before", ROWS * COLUMNS);
    const uint64_t all[ROWS] = {0, 1, 2, 3, 4, 5};
    kernels->store(&tile, all, ROWS, MN_F32, before, COLUMNS * sizeof(float), NULL, 0);
    for (uint32_t s = 0; s < STEPS; s++) {
        snprintf(block, sizeof block, "gradient%u", s);
        float *gradient = golden_read(&g, block, ROWS * COLUMNS);
        snprintf(block, sizeof block, "after%u", s);
        float *after = golden_read(&g, block, ROWS * COLUMNS);
        assert_false(near(tile.values, after, ROWS * COLUMNS, 1e-5)); /* a step was due */
        apply_step(kernels, &tile, gradient, s, lazy, lazy ? 0 : 0.01f);
        assert_true(near(tile.values, after, ROWS * COLUMNS, 3e-6));
        free(gradient);
        free(after);
    }
    free(before);
    free(g.text);
    fixture_free(&tile);
}

static void test_optimizers_equal_torch(void **state)
{
    (void)state;
    mn_optimizer adagrad = mn_adagrad(1e-6f);
    adagrad.beta1 = 0.125f;
    for (int isa = 0; isa < ISAS; isa++) {
        const mn_kernels *kernels = mn_kernels_for((enum mn_isa)isa);
        if (kernels == NULL)
            continue;
        check_optimizer(kernels, "sgd", mn_sgd());
        check_optimizer(kernels, "adagrad", adagrad);
        check_optimizer(kernels, "adam", mn_adam(0.875f, 0.96875f, 1e-6f));
        check_optimizer(kernels, "adamw", mn_adamw(0.875f, 0.96875f, 1e-6f));
    }
}

/* Forward; the weights' gradient; the table's gradient, as SGD with rate -1 on a table of zeros. */
static void test_bag_equals_torch_embedding_bag(void **state)
{
    (void)state;
    enum { TABLE = 12, DIM = 24, QUERIES = 6, K = 5, READS = QUERIES * K };
    golden g = golden_open("embedding_bag");
    float *table = golden_read(&g, "table", TABLE * DIM),
          *weights = golden_read(&g, "weights", READS);
    float *indices = golden_read(&g, "indices", READS),
          *bags = golden_read(&g, "bags", QUERIES * DIM);
    float *gradient = golden_read(&g, "gradient", QUERIES * DIM);
    float *table_gradient = golden_read(&g, "table_gradient", TABLE * DIM);
    float *weight_gradient = golden_read(&g, "weight_gradient", READS);
    float got[QUERIES * DIM], dots[READS];
    uint64_t offsets[READS];
    mn_contribution contributions[READS], sorted[READS];
    const void *rows[QUERIES];
    for (uint32_t i = 0; i < READS; i++) {
        offsets[i] = (uint64_t)indices[i];
        contributions[i] = (mn_contribution){offsets[i], i / K, weights[i]};
        rows[i / K] = gradient + i / K * DIM;
    }
    fixture_options options = {
        .rows = TABLE, .columns = DIM, .optimizer = mn_sgd(), .all_written = true};
    mn_tile tile = fixture_tile(&options);
    memcpy(tile.values, table, TABLE * DIM * sizeof *table);
    const mn_kernels *kernels = mn_kernels_best();
    kernels->bag(&tile, offsets, weights, QUERIES, K, MN_F32, got, DIM * sizeof *got);
    kernels->bag_dot(&tile, offsets, QUERIES, K, MN_F32, gradient, DIM * sizeof *gradient, dots);
    assert_true(near(got, bags, QUERIES * DIM, 1e-6));
    assert_true(near(dots, weight_gradient, READS, 2e-6));
    assert_false(near(got, gradient, QUERIES * DIM, 1e-6)); /* the comparator can fail */
    memset(tile.values, 0, TABLE * DIM * sizeof *table);
    mn_contributions_sort(contributions, sorted, READS, TABLE);
    const mn_sources sources = {rows, MN_F32, 0};
    const mn_update add = {.learning_rate = -1, .factor = 1, .step = 1};
    void *scratch = aligned_alloc(64, mn_merge_scratch_bytes(DIM));
    kernels->merge_apply(&tile, contributions, READS, &sources, &add, scratch);
    assert_true(near(tile.values, table_gradient, TABLE * DIM, 1e-6));
    float *all[] = {table,    weights,        indices,         bags,
                    gradient, table_gradient, weight_gradient, scratch};
    for (int i = 0; i < 8; i++)
        free(all[i]);
    free(g.text);
    fixture_free(&tile);
}

static void test_search_equals_two_topk(void **state)
{
    (void)state;
    enum { TOKENS = 7, HEADS = 2, N = 24, HALF = 6, K = 8, PICKS = TOKENS * HEADS * K };
    enum { QUERY = TOKENS * HEADS * 2 * HALF, KEYS = HEADS * 2 * N * HALF };
    const mn_search search = {TOKENS, HEADS, N, HALF, K};
    golden g = golden_open("product_keys");
    float *queries = golden_read(&g, "queries", QUERY), *keys = golden_read(&g, "keys", KEYS);
    float *rows = golden_read(&g, "rows", PICKS), *scores = golden_read(&g, "scores", PICKS);
    float *gradient = golden_read(&g, "gradient", PICKS);
    float *query_gradient = golden_read(&g, "query_gradient", QUERY);
    float *key_gradient = golden_read(&g, "key_gradient", KEYS);
    uint64_t got[PICKS], expected[PICKS];
    static float got_scores[PICKS], dq[QUERY], dk[KEYS];
    void *scratch = aligned_alloc(64, (mn_search_scratch_bytes(&search) + 63) / 64 * 64);
    mn_error error;
    assert_int_equal(mn_product_search(&search, queries, keys, got, got_scores, scratch, &error),
                     MN_OK);
    assert_true(near(got_scores, scores, PICKS, 2e-6));
    for (uint32_t i = 0; i < PICKS; i++) { /* as sets: torch orders ties as it likes */
        bool found = false;
        for (uint32_t j = i / K * K; j < i / K * K + K; j++)
            found |= got[i] == (uint64_t)rows[j];
        assert_true(found);
        expected[i] = (uint64_t)rows[i];
    }
    mn_product_search_grad(&search, queries, keys, expected, gradient, dq, dk);
    assert_true(near(dq, query_gradient, QUERY, 2e-6));
    assert_true(near(dk, key_gradient, KEYS, 4e-6));
    float *all[] = {queries, keys, rows, scores, gradient, query_gradient, key_gradient, scratch};
    for (int i = 0; i < 8; i++)
        free(all[i]);
    free(g.text);
}

static void test_softmax_equals_torch(void **state)
{
    (void)state;
    enum { GROUPS = 6, K = 32, ALL = GROUPS * K };
    golden g = golden_open("softmax");
    float *scores = golden_read(&g, "scores", ALL), *weights = golden_read(&g, "weights", ALL);
    float *gradient = golden_read(&g, "gradient", ALL), got[ALL];
    float *score_gradient = golden_read(&g, "score_gradient", ALL);
    mn_kernels_best()->softmax(scores, GROUPS, K);
    assert_true(near(scores, weights, ALL, 1e-6));
    mn_kernels_best()->softmax_grad(weights, gradient, GROUPS, K, got);
    assert_true(near(got, score_gradient, ALL, 1e-6));
    assert_false(near(got, gradient, ALL, 1e-6));
    free(scores);
    free(weights);
    free(gradient);
    free(score_gradient);
    free(g.text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_optimizers_equal_torch),
        cmocka_unit_test(test_bag_equals_torch_embedding_bag),
        cmocka_unit_test(test_search_equals_two_topk),
        cmocka_unit_test(test_softmax_equals_torch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
