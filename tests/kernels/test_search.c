/* Selection against brute force over all n*n pairs, the product-key search and its gradient,
 * softmax. */
#include "cpu/dispatch.h"
#include "fixture.h"

typedef struct pair {
    float sum;
    uint32_t rank1, rank2, key1, key2;
} pair;

typedef struct ranked {
    float score;
    uint32_t key;
} ranked;

static int by_score(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->key < y->key ? -1 : x->key > y->key;
}

static int by_sum(const void *a, const void *b)
{
    const pair *x = a, *y = b;
    if (x->sum != y->sum)
        return x->sum > y->sum ? -1 : 1;
    if (x->rank1 != y->rank1)
        return x->rank1 < y->rank1 ? -1 : 1;
    return x->rank2 < y->rank2 ? -1 : x->rank2 > y->rank2;
}

/* Every pair of all n keys, sorted as mn_kernels.h orders them. Returns [n*n], to be freed. */
static pair *brute_force(const float *scores1, const float *scores2, uint32_t n)
{
    ranked *lists[2] = {malloc(n * sizeof(ranked)), malloc(n * sizeof(ranked))};
    pair *pairs = malloc((size_t)n * n * sizeof *pairs);
    for (uint32_t i = 0; i < n; i++) {
        lists[0][i] = (ranked){scores1[i], i};
        lists[1][i] = (ranked){scores2[i], i};
    }
    for (int l = 0; l < 2; l++)
        qsort(lists[l], n, sizeof(ranked), by_score);
    for (uint32_t a = 0; a < n; a++)
        for (uint32_t b = 0; b < n; b++)
            pairs[(size_t)a * n + b] = (pair){lists[0][a].score + lists[1][b].score, a, b,
                                              lists[0][a].key, lists[1][b].key};
    qsort(pairs, (size_t)n * n, sizeof *pairs, by_sum);
    free(lists[0]);
    free(lists[1]);
    return pairs;
}

static bool agrees(const pair *expected, const uint64_t *rows, const float *scores, uint32_t n,
                   uint32_t k)
{
    for (uint32_t i = 0; i < k; i++)
        if (rows[i] != (uint64_t)expected[i].key1 * n + expected[i].key2 ||
            !(scores[i] == expected[i].sum) || (scores[i] == 0 && signbit(scores[i])))
            return false;
    return true;
}

static void check_select(const float *scores1, const float *scores2, uint32_t n)
{
    pair *expected = brute_force(scores1, scores2, n);
    uint64_t rows[MN_SELECT_MAX];
    float scores[MN_SELECT_MAX], plain[MN_SELECT_MAX];
    for (uint32_t k = 1; k <= MN_SELECT_MAX && k <= (uint64_t)n * n; k++)
        for (int isa = 0; isa < ISAS; isa++) {
            const mn_kernels *kernels = mn_kernels_for((enum mn_isa)isa);
            if (kernels == NULL)
                continue;
            void *scratch = malloc(mn_select_scratch_bytes(n, k));
            assert_true(kernels->select(scores1, scores2, n, k, rows, scores, scratch));
            assert_true(agrees(expected, rows, scores, n, k));
            if (isa == 0)
                memcpy(plain, scores, sizeof plain);
            assert_memory_equal(plain, scores, k * sizeof *plain);
            rows[k - 1]++;
            assert_false(agrees(expected, rows, scores, n, k)); /* the comparator can fail */
            free(scratch);
        }
    free(expected);
}

static void test_select_equals_brute_force(void **state)
{
    (void)state;
    enum { ALL = 64, ONE_MORE = 100 };
    uint64_t random = 5;
    float scores1[ONE_MORE], scores2[ONE_MORE];
    for (uint32_t n = 1; n <= ONE_MORE; n = n == ALL ? ONE_MORE : n + 1)
        for (uint32_t levels = 1; levels <= 4096; levels *= 8) {
            /* 1, 8, 64 ... distinct scores: from all equal to few ties; zeros of both signs. */
            for (uint32_t j = 0; j < 2 * n; j++) {
                float score = ((float)(fixture_random(&random) % levels) - (float)(levels / 2)) / 8;
                (j < n ? scores1 : scores2)[j % n] = score == 0 && j % 2 ? -0.0f : score;
            }
            check_select(scores1, scores2, n);
        }
}

static void test_select_at_size(void **state)
{
    (void)state;
    uint64_t random = 6;
    static float scores1[700], scores2[700];
    for (int ties = 0; ties < 3; ties++) {
        for (uint32_t j = 0; j < 700; j++) {
            scores1[j] = ties == 2 ? 0 : fixture_uniform(&random);
            scores2[j] = ties ? fixture_integer(&random) : fixture_uniform(&random) * 1e-3f;
        }
        check_select(scores1, scores2, 700);
    }
    for (uint32_t j = 0; j < 700; j++) /* ascending and descending, infinities among them */
        scores1[j] = (float)j, scores2[j] = j % 50 ? -(float)j : -INFINITY;
    check_select(scores1, scores2, 700);
}

static void test_select_refuses_nan(void **state)
{
    (void)state;
    float scores[2][70];
    uint64_t rows[8];
    float best[8];
    void *scratch = malloc(mn_select_scratch_bytes(70, 8));
    for (int isa = 0; isa < ISAS; isa++)
        for (uint32_t place = 0; place < 140 && mn_kernels_for((enum mn_isa)isa); place++) {
            const mn_kernels *kernels = mn_kernels_for((enum mn_isa)isa);
            for (uint32_t i = 0; i < 140; i++)
                scores[i / 70][i % 70] = (float)(i % 7);
            assert_true(kernels->select(scores[0], scores[1], 70, 8, rows, best, scratch));
            scores[place / 70][place % 70] = place % 2 ? NAN : -NAN;
            assert_false(kernels->select(scores[0], scores[1], 70, 8, rows, best, scratch));
        }
    free(scratch);
}

/* Lample et al.'s k*k candidates, cut to pairs that can win. */
static void test_candidate_counts(void **state)
{
    (void)state;
    static const uint32_t known[][2] = {{8, 20}, {16, 50}, {32, 119}, {64, 280}, {128, 645}};
    for (int i = 0; i < 5; i++) {
        uint32_t count = 0, k = known[i][0];
        for (uint32_t a = 0; a < k; a++)
            for (uint32_t b = 0; b < k; b++)
                count += (a + 1) * (b + 1) <= k;
        assert_int_equal(count, known[i][1]);
    }
}

typedef struct search_case {
    mn_search search;
    float *queries, *keys, *scores;
    uint64_t *rows;
    void *scratch;
} search_case;

static search_case search_case_of(const mn_search *s)
{
    uint64_t random = 8, queries = s->tokens * s->heads * 2 * s->half;
    uint64_t keys = (uint64_t)s->heads * 2 * s->n * s->half, picks = s->tokens * s->heads * s->k;
    search_case c = {.search = *s,
                     .queries = malloc(queries * sizeof(float)),
                     .keys = malloc(keys * sizeof(float)),
                     .scores = malloc(picks * sizeof(float)),
                     .rows = malloc(picks * sizeof(uint64_t)),
                     .scratch = aligned_alloc(64, (mn_search_scratch_bytes(s) + 63) / 64 * 64)};
    for (uint64_t i = 0; i < queries; i++)
        c.queries[i] = fixture_integer(&random);
    for (uint64_t i = 0; i < keys; i++)
        c.keys[i] = fixture_integer(&random);
    return c;
}

static void search_case_free(search_case *c)
{
    free(c->queries);
    free(c->keys);
    free(c->scores);
    free(c->rows);
    free(c->scratch);
}

/* Integers: the sub-scores are exact whatever the order of the product's sums. */
static void test_search_equals_brute_force(void **state)
{
    (void)state;
    const mn_search cases[] = {{70, 2, 33, 8, 16}, {3, 1, 4, 5, 16}, {300, 1, 16, 4, 3}};
    mn_error error;
    for (int i = 0; i < 3; i++) {
        const mn_search *s = &cases[i];
        search_case c = search_case_of(s);
        assert_int_equal(
            mn_product_search(s, c.queries, c.keys, c.rows, c.scores, c.scratch, &error), MN_OK);
        for (uint64_t q = 0; q < s->tokens * s->heads; q++) {
            float scores[2][33] = {{0}};
            for (uint32_t j = 0; j < 2 * s->n; j++)
                for (uint32_t x = 0; x < s->half; x++)
                    scores[j / s->n][j % s->n] +=
                        c.queries[(q * 2 + j / s->n) * s->half + x] *
                        c.keys[((q % s->heads * 2) * s->n + j) * s->half + x];
            pair *expected = brute_force(scores[0], scores[1], s->n);
            assert_true(agrees(expected, c.rows + q * s->k, c.scores + q * s->k, s->n, s->k));
            free(expected);
        }
        search_case_free(&c);
    }
}

/* One chain of multiply-adds a score, columns ascending, rounded once a term but in plain C; blocks
 * and keys that do not fill their steps; more columns than are worked on at a time. */
static void test_scores_are_chains(void **state)
{
    (void)state;
    enum { N = 45, PADDED = 64, HALF = 133, STRIDE = HALF + 3, COUNT = 37 };
    static float keys[N * HALF], queries[COUNT * STRIDE];
    static _Alignas(64) float panels[PADDED * HALF], scores[MN_SCORED_MAX * PADDED];
    uint64_t random = 3;
    for (uint32_t i = 0; i < N * HALF; i++)
        keys[i] = (float)fixture_random(&random) * 0x1p-63f - 1;
    for (uint32_t i = 0; i < COUNT * STRIDE; i++)
        queries[i] = (float)fixture_random(&random) * 0x1p-63f - 1;
    for (enum mn_isa set = MN_ISA_PLAIN; set <= MN_ISA_AVX512; set++) {
        const mn_isa_table *isa = mn_isa_table_for(set);
        if (isa == NULL)
            continue;
        isa->pack_keys(keys, N, HALF, panels);
        isa->score(panels, N, HALF, queries, STRIDE, COUNT, scores);
        for (uint32_t q = 0; q < COUNT; q++)
            for (uint32_t key = 0; key < N; key++) {
                float chain = 0;
                for (uint32_t c = 0; c < HALF; c++) {
                    float query = queries[q * STRIDE + c], term = query * keys[key * HALF + c];
                    chain = set == MN_ISA_PLAIN ? chain + term
                                                : fmaf(query, keys[key * HALF + c], chain);
                }
                assert_memory_equal(&scores[q * PADDED + key], &chain, sizeof chain);
            }
    }
}

static void test_search_names_what_is_wrong(void **state)
{
    (void)state;
    mn_search s = {20, 2, 4, 3, 16};
    search_case c = search_case_of(&s);
    mn_error error = {0};
    c.queries[(17 * 2 + 1) * 6 + 4] = NAN;
    assert_int_equal(mn_product_search(&s, c.queries, c.keys, c.rows, c.scores, c.scratch, &error),
                     MN_INVALID);
    assert_string_equal(error.field, "scores");
    assert_non_null(strstr(error.message, "token 17, head 1"));
    const uint32_t wrong[] = {0, 17, 129};
    for (int i = 0; i < 3; i++) {
        mn_search bad = s;
        bad.k = wrong[i];
        assert_int_equal(
            mn_product_search(&bad, c.queries, c.keys, c.rows, c.scores, c.scratch, &error),
            MN_INVALID);
        assert_string_equal(error.field, "k");
    }
    search_case_free(&c);
}

/* Integer gradients: exact; the outputs are added to. */
static void test_search_gradient(void **state)
{
    (void)state;
    const mn_search s = {9, 3, 7, 5, 4};
    const size_t queries = 9 * 3 * 10, keys = 3 * 2 * 7 * 5, picks = 9 * 3 * 4;
    search_case c = search_case_of(&s);
    float dq[9 * 3 * 10], dk[3 * 2 * 7 * 5], dq_expected[9 * 3 * 10], dk_expected[3 * 2 * 7 * 5];
    uint64_t random = 2;
    for (size_t i = 0; i < queries; i++)
        dq[i] = dq_expected[i] = fixture_integer(&random);
    for (size_t i = 0; i < keys; i++)
        dk[i] = dk_expected[i] = fixture_integer(&random);
    for (size_t i = 0; i < picks; i++) {
        c.rows[i] = fixture_random(&random) % 49;
        c.scores[i] = fixture_integer(&random);
        for (uint32_t x = 0; x < 10; x++) {
            uint64_t key = x < 5 ? c.rows[i] / 7 : 7 + c.rows[i] % 7;
            size_t q = i / 4 * 10 + x, k = (i / 4 % 3 * 14 + key) * 5 + x % 5;
            dq_expected[q] += c.scores[i] * c.keys[k];
            dk_expected[k] += c.scores[i] * c.queries[q];
        }
    }
    mn_product_search_grad(&s, c.queries, c.keys, c.rows, c.scores, dq, dk);
    assert_memory_equal(dq, dq_expected, sizeof dq);
    assert_memory_equal(dk, dk_expected, sizeof dk);
    search_case_free(&c);
}

/* Heads share nothing: one after another, in any order, they make the bits of all at once; and a
 * head left out is left alone. Widths with and without whole vectors, k past MN_SELECT_MAX. */
static void check_search_gradient_heads(uint32_t half, uint32_t k)
{
    const mn_search s = {5, 3, 13, half, k};
    const size_t queries = 5 * 3 * 2 * (size_t)half, keys = 3 * 2 * 13 * (size_t)half;
    const size_t picks = 5 * 3 * (size_t)k, all = 2 * queries + 2 * keys + picks;
    float *in = malloc(all * sizeof *in), *whole = malloc(all * sizeof *whole);
    uint64_t *rows = malloc(picks * sizeof *rows), random = half;
    assert_true(in && whole && rows);
    float *dq = in + queries + keys + picks, *dk = dq + queries;
    for (size_t i = 0; i < all; i++)
        in[i] = (float)(fixture_random(&random) >> 40) * 0x1p-23f - 1;
    for (size_t i = 0; i < picks; i++)
        rows[i] = fixture_random(&random) % (13 * 13);
    memcpy(whole, in, all * sizeof *in);
    float *whole_dq = whole + (dq - in), *whole_dk = whole + (dk - in);
    mn_product_search_grad(&s, in, in + queries, rows, in + queries + keys, whole_dq, whole_dk);
    mn_product_search_grad_heads(&s, 2, 1, in, in + queries, rows, in + queries + keys, dq, dk);
    assert_memory_not_equal(dk, whole_dk, keys * sizeof *dk);
    mn_product_search_grad_heads(&s, 0, 2, in, in + queries, rows, in + queries + keys, dq, dk);
    assert_memory_equal(in, whole, all * sizeof *in);
    for (int isa = MN_ISA_PLAIN; isa < ISAS; isa++) {
        const mn_isa_table *table = mn_isa_table_for((enum mn_isa)isa);
        random = half; /* the same start again */
        for (size_t i = 0; i < all; i++)
            in[i] = (float)(fixture_random(&random) >> 40) * 0x1p-23f - 1;
        for (uint32_t head = 0; table && head < 3; head++)
            table->search_grad(&s, head, in, in + queries, rows, in + queries + keys, dq, dk);
        if (table)
            assert_memory_equal(in, whole, all * sizeof *in);
    }
    free(in);
    free(whole);
    free(rows);
}

static void test_search_gradient_by_heads(void **state)
{
    (void)state;
    check_search_gradient_heads(5, 4);
    check_search_gradient_heads(67, 9);
    check_search_gradient_heads(128, 150);
}

/* exp to 2e-7 of its value, a sum of k <= 128, a division: 2e-7 + 128 * 2^-24 of the weight. */
static void check_softmax(const float *scores, uint32_t groups, uint32_t k)
{
    float plain[512], other[512], grads[2][512], dw[512];
    memcpy(plain, scores, sizeof(float) * groups * k);
    mn_kernels_for(MN_ISA_PLAIN)->softmax(plain, groups, k);
    for (uint32_t i = 0; i < groups * k; i++)
        dw[i] = scores[(i * 7) % (groups * k)];
    mn_kernels_for(MN_ISA_PLAIN)->softmax_grad(plain, dw, groups, k, grads[0]);
    for (uint32_t g = 0; g < groups; g++) {
        double most = -INFINITY, sum = 0, dot = 0;
        for (uint32_t i = g * k; i < (g + 1) * k; i++)
            most = fmax(most, scores[i]);
        for (uint32_t i = g * k; i < (g + 1) * k; i++) {
            sum += exp(scores[i] - most);
            dot += (double)plain[i] * dw[i];
        }
        for (uint32_t i = g * k; i < (g + 1) * k; i++) {
            double expected = exp(scores[i] - most) / sum, slope = plain[i] * (dw[i] - dot);
            assert_true(oracle_close(plain[i], expected, 8e-6 * expected + 1e-37));
            assert_true(oracle_close(grads[0][i], slope, 8e-6 * plain[i] * 200));
        }
    }
    for (int isa = MN_ISA_AVX2; isa < ISAS; isa++) {
        const mn_kernels *kernels = mn_kernels_for((enum mn_isa)isa);
        if (kernels == NULL)
            continue;
        memcpy(other, scores, sizeof(float) * groups * k);
        kernels->softmax(other, groups, k);
        kernels->softmax_grad(plain, dw, groups, k, grads[1]);
        assert_memory_equal(plain, other, sizeof(float) * groups * k);
        assert_memory_equal(grads[0], grads[1], sizeof(float) * groups * k);
    }
}

static void test_softmax(void **state)
{
    (void)state;
    uint64_t random = 9;
    float scores[512];
    for (uint32_t k = 1; k <= 128; k = k * 2 + 1)
        for (int scale = 1; scale <= 100; scale *= 10) {
            for (uint32_t i = 0; i < 3 * k; i++)
                scores[i] = fixture_uniform(&random) * (float)scale;
            check_softmax(scores, 3, k);
        }
    const float far[4] = {100, 12, 13.5f, -1e30f}, first[4] = {1, 0, 0, 0};
    memcpy(scores, far, sizeof far);
    check_softmax(scores, 1, 4);
    scores[3] = -INFINITY;
    mn_kernels_best()->softmax(scores, 1, 4);
    assert_true(scores[3] == first[3] && scores[0] == 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_select_equals_brute_force),  cmocka_unit_test(test_select_at_size),
        cmocka_unit_test(test_select_refuses_nan),         cmocka_unit_test(test_candidate_counts),
        cmocka_unit_test(test_search_equals_brute_force),  cmocka_unit_test(test_scores_are_chains),
        cmocka_unit_test(test_search_names_what_is_wrong), cmocka_unit_test(test_search_gradient),
        cmocka_unit_test(test_search_gradient_by_heads),   cmocka_unit_test(test_softmax),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
