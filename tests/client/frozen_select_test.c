/* The selection of one token's rows: what the trainer's search selects, on numbers whose sums are
 * exact in any order; then a whole read of a layer. */
#include "frozen_case.h"

#include "harness.h"
#include "mn_kernels.h"

#include <math.h>
#include <string.h>

enum { HEADS = 3, HALF = 24, N = 17, K = 32, WIDTH = 40, QUERY = HEADS * 2 * HALF };

static float sub_keys[HEADS * 2 * N * HALF], weights[QUERY * WIDTH], bias[QUERY], input[QUERY];
static _Alignas(64) uint8_t scratch[1 << 20];

static float small_integer(uint64_t *state) { return (float)(draw(state) % 15) - 7; }

static mn_product_keys made_keys(uint64_t seed)
{
    for (uint32_t i = 0; i < sizeof sub_keys / sizeof *sub_keys; i++)
        sub_keys[i] = small_integer(&seed) / 1024; /* still exact, and no weight is all */
    for (uint32_t i = 0; i < sizeof weights / sizeof *weights; i++)
        weights[i] = small_integer(&seed);
    for (uint32_t i = 0; i < QUERY; i++)
        bias[i] = small_integer(&seed), input[i] = small_integer(&seed);
    return (mn_product_keys){.heads = HEADS,
                             .n = N,
                             .half = HALF,
                             .per_head = K,
                             .sub_keys = sub_keys,
                             .width = WIDTH,
                             .query_weights = weights,
                             .query_bias = bias};
}

/* The query by plain loops, then the trainer's search and gate. */
static void oracle(const mn_product_keys *keys, uint64_t *out_rows, float *out_weights)
{
    float query[QUERY];
    mn_error error;
    const mn_search search = {1, HEADS, N, HALF, K};
    for (uint32_t i = 0; i < QUERY; i++) {
        double sum = keys->query_bias ? (double)keys->query_bias[i] : 0;
        for (uint32_t c = 0; c < WIDTH && keys->query_weights; c++)
            sum += (double)keys->query_weights[i * WIDTH + c] * (double)input[c];
        query[i] = keys->query_weights ? (float)sum : input[i];
    }
    assert_true(mn_search_scratch_bytes(&search) <= sizeof scratch);
    must(mn_product_search(&search, query, keys->sub_keys, out_rows, out_weights, scratch, &error));
    if (!keys->relu)
        mn_kernels_best()->softmax(out_weights, HEADS, K);
    for (uint32_t i = 0; i < HEADS * K && keys->relu; i++)
        out_weights[i] = out_weights[i] > 0 ? out_weights[i] : 0;
}

static void selects_what_the_search_does(void **state)
{
    (void)state;
    int64_t rows[HEADS * K];
    uint64_t due_rows[HEADS * K];
    float chosen[HEADS * K], due[HEADS * K];
    mn_error error;
    for (uint64_t seed = 0; seed < 20; seed++) {
        mn_product_keys keys = made_keys(seed);
        if (seed % 3 == 1)
            keys.query_bias = NULL;
        if (seed % 3 == 2)
            keys.query_weights = NULL, keys.query_bias = NULL;
        keys.relu = seed % 2;
        oracle(&keys, due_rows, due);
        assert_true(mn_product_scratch_bytes(&keys) <= sizeof scratch);
        must(mn_product_select(&keys, input, scratch, rows, chosen, &error));
        assert_memory_equal(rows, due_rows, sizeof rows);
        assert_memory_equal(chosen, due, sizeof chosen);
        input[5] += 1; /* another query has another answer */
        must(mn_product_select(&keys, input, scratch, rows, chosen, &error));
        assert_memory_not_equal(rows, due_rows, sizeof rows);
        assert_memory_not_equal(chosen, due, sizeof chosen);
    }
}

/* Scores of both signs, and a gate that is the other one, is seen. */
static void gates_differ(void **state)
{
    (void)state;
    int64_t rows[HEADS * K];
    float softmax[HEADS * K], relu[HEADS * K];
    uint32_t positive = 0, zero = 0;
    mn_error error;
    for (uint64_t seed = 0; seed < 20; seed++) {
        mn_product_keys keys = made_keys(seed);
        keys.query_weights = NULL, keys.query_bias = NULL;
        keys.n = 6, keys.per_head = K; /* 32 of 36: low scores are among them */
        must(mn_product_select(&keys, input, scratch, rows, softmax, &error));
        keys.relu = true;
        must(mn_product_select(&keys, input, scratch, rows, relu, &error));
        assert_memory_not_equal(softmax, relu, sizeof relu);
        for (uint32_t i = 0; i < HEADS * K; i++) {
            assert_true(relu[i] >= 0 && !signbit(relu[i]));
            positive += relu[i] > 0;
            zero += relu[i] == 0;
        }
    }
    assert_true(positive > 100 && zero > 100);
}

static void refuses(mn_product_keys keys, const char *field)
{
    int64_t rows[HEADS * K];
    float chosen[HEADS * K];
    mn_error error;
    bool bad_keys = strcmp(field, "scores") && strcmp(field, "scratch");
    assert_true((mn_product_scratch_bytes(&keys) == 0) == bad_keys);
    void *at = scratch + (strcmp(field, "scratch") == 0);
    assert_int_equal(mn_product_select(&keys, input, at, rows, chosen, &error), MN_INVALID);
    assert_string_equal(error.field, field);
}

static void bad_keys_are_refused(void **state)
{
    (void)state;
    const mn_product_keys good = made_keys(1);
    mn_product_keys bad = good;
    bad.n = 0, refuses(bad, "n"), bad.n = (1 << 20) + 1, refuses(bad, "n"), bad = good;
    bad.half = 0, refuses(bad, "half"), bad.half = MN_DIM_MAX + 1, refuses(bad, "half"), bad = good;
    bad.per_head = 0, refuses(bad, "per_head"), bad.per_head = 129, refuses(bad, "per_head");
    bad.per_head = 10, bad.n = 3, refuses(bad, "per_head"), bad = good;
    bad.heads = 0, refuses(bad, "heads"), bad.heads = 129, refuses(bad, "heads"), bad = good;
    bad.width = 0, refuses(bad, "width"), bad = good;
    bad.sub_keys = NULL, refuses(bad, "sub_keys");
    refuses(good, "scratch");
    sub_keys[N * HALF + 2] = NAN;
    refuses(good, "scores");
}

static void a_layer_is_read(void **state)
{
    (void)state;
    enum { DIM = CASE_DIM_MAX };
    int64_t rows[HEADS * K];
    float chosen[HEADS * K], bag[DIM], fetched[HEADS * K * DIM], due[DIM] = {0};
    mn_error error;
    mn_client *client = case_open(1, NULL);
    case_train(client);
    case_freeze(client, "out", NULL);
    mn_client_close(client);
    mn_frozen *frozen = case_open_frozen("out");
    const mn_frozen_table *table = case_table(frozen, 0); /* 300 rows hold all of 17 x 17 */
    const mn_product_keys keys = made_keys(9);
    must(mn_product_select(&keys, input, scratch, rows, chosen, &error));
    const mn_queries queries = {1, HEADS * K, mn_i64(rows), mn_f32(chosen)};
    must(mn_frozen_bag(table, &queries, mn_f32(bag), &error));
    const mn_rows which = {HEADS * K, mn_i64(rows)};
    must(mn_frozen_fetch(table, &which, mn_f32(fetched), &error));
    for (uint32_t j = 0; j < HEADS * K; j++)
        for (uint32_t c = 0; c < DIM; c++)
            due[c] += chosen[j] * fetched[j * DIM + c];
    assert_memory_equal(bag, due, sizeof due);
    mn_close_frozen(frozen);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(selects_what_the_search_does), cmocka_unit_test(gates_differ),
        cmocka_unit_test(bad_keys_are_refused),
        cmocka_unit_test_setup_teardown(a_layer_is_read, case_set_up, case_tear_down)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
