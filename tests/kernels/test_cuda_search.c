/* CUDA's selection and softmax against plain C, bit for bit; its search, whose matrix product adds
 * in an order of its own, exactly on small integers and within its bound otherwise. */
#include "cuda_fixture.h"

static void *scratch_for(uint32_t n, uint32_t k) { return malloc(mn_select_scratch_bytes(n, k)); }

/* lists [queries][2][n] */
static void check_select(const float *lists, uint32_t queries, uint32_t n, uint32_t k)
{
    const size_t picks = (size_t)queries * k;
    uint64_t *rows = malloc(picks * sizeof *rows), none = UINT64_MAX;
    float *scores = malloc(picks * sizeof *scores);
    void *scratch = scratch_for(n, k);
    mn_error error;
    for (uint32_t q = 0; q < queries; q++)
        assert_true(mn_kernels_for(MN_ISA_PLAIN)
                        ->select(lists + (size_t)q * 2 * n, lists + ((size_t)q * 2 + 1) * n, n, k,
                                 rows + (size_t)q * k, scores + (size_t)q * k, scratch));
    uint64_t *gpu_rows = gpu_new(picks * sizeof *rows), *bad = gpu_new(sizeof *bad);
    float *gpu_scores = gpu_new(picks * sizeof *scores);
    assert_int_equal(mn_cuda_select(gpu_copy(lists, (size_t)queries * 2 * n * sizeof *lists),
                                    queries, n, k, gpu_rows, gpu_scores, bad, NULL, &error),
                     MN_OK);
    assert_true(gpu_equal(bad, &none, sizeof none));
    assert_true(gpu_equal(gpu_scores, scores, picks * sizeof *scores));
    assert_true(gpu_equal(gpu_rows, rows, picks * sizeof *rows));
    rows[picks - 1] ^= 1;
    assert_false(gpu_equal(gpu_rows, rows, picks * sizeof *rows)); /* the comparator can fail */
    free(rows);
    free(scores);
    free(scratch);
    gpu_free();
}

static void test_select_equals_plain_c(void **state)
{
    (void)state;
    gpu_need();
    static const uint32_t ks[] = {1, 2, 16, 17, 32, 33, 64, 100, 128};
    static const uint32_t ns[] = {1, 3, 12, 33, 100, 513};
    enum { QUERIES = 5 };
    static float lists[QUERIES * 2 * 513];
    uint64_t random = 5;
    for (size_t i = 0; i < sizeof ns / sizeof ns[0]; i++)
        for (uint32_t levels = 1; levels <= 4096; levels *= 16) {
            /* 1, 16, 256 ... distinct scores: from all equal to few ties; zeros of both signs. */
            for (uint32_t j = 0; j < QUERIES * 2 * ns[i]; j++) {
                float score = ((float)(fixture_random(&random) % levels) - (float)(levels / 2)) / 8;
                lists[j] = score == 0 && j % 2 ? -0.0f : score;
            }
            for (size_t k = (i + levels) % 2; k < sizeof ks / sizeof ks[0]; k += 2)
                if (ks[k] <= (uint64_t)ns[i] * ns[i])
                    check_select(lists, QUERIES, ns[i], ks[k]);
        }
}

/* Orders and extremes: ascending, descending, infinities, scores all near one value. */
static void test_select_extremes(void **state)
{
    (void)state;
    gpu_need();
    enum { N = 700 };
    static float lists[4 * 2 * N];
    for (uint32_t j = 0; j < N; j++) {
        lists[j] = (float)j, lists[N + j] = j % 50 ? -(float)j : -INFINITY;
        lists[2 * N + j] = -(float)j, lists[3 * N + j] = j % 90 ? 0.0f : INFINITY;
        lists[4 * N + j] = 1 + (float)(j * 37 % N) * 0x1p-23f, lists[5 * N + j] = 1e-40f * (float)j;
        lists[6 * N + j] = j < 650 ? 1 : 2, lists[7 * N + j] = j % 2 ? 1e30f : -1e30f;
    }
    check_select(lists, 4, N, 32);
    check_select(lists, 4, N, 128);
    check_select(lists, 4, N, 5);
}

static void test_select_names_the_first_bad_query(void **state)
{
    (void)state;
    gpu_need();
    enum { N = 70, QUERIES = 9, K = 8 };
    float lists[QUERIES * 2 * N];
    mn_error error;
    for (uint32_t j = 0; j < QUERIES * 2 * N; j++)
        lists[j] = (float)(j % 7);
    lists[8 * 2 * N + 69] = NAN;
    lists[(4 * 2 + 1) * N + 33] = -NAN;
    lists[6 * 2 * N] = INFINITY; /* no number when added to the other list's */
    for (uint32_t j = 0; j < N; j++)
        lists[(6 * 2 + 1) * N + j] = -INFINITY;
    uint64_t *rows = gpu_new(QUERIES * K * 8), *bad = gpu_new(8), expected = 4;
    float *scores = gpu_new(QUERIES * K * 4);
    for (int round = 0; round < 3; round++) {
        assert_int_equal(mn_cuda_select(gpu_copy(lists, sizeof lists), QUERIES, N, K, rows, scores,
                                        bad, NULL, &error),
                         MN_OK);
        assert_true(gpu_equal(bad, &expected, sizeof expected));
        lists[((round ? 6 : 4) * 2 + 1) * N + 33] = 0;
        if (round)
            for (uint32_t j = 0; j < N; j++)
                lists[(6 * 2 + 1) * N + j] = 0;
        expected = round ? 8 : 6;
    }
    gpu_free();
    assert_int_equal(mn_cuda_select(NULL, 1, 0, 1, NULL, NULL, NULL, NULL, &error), MN_INVALID);
    assert_string_equal(error.field, "n");
    assert_int_equal(mn_cuda_select(NULL, 1, 4, 17, NULL, NULL, NULL, NULL, &error), MN_INVALID);
    assert_string_equal(error.field, "k");
}

typedef struct search_case {
    mn_search search;
    enum mn_dtype dtype;
    size_t queries, keys, picks;
    float *query, *key; /* as the search sees them: bf16 ones are rounded */
    void *query_bits, *key_bits;
} search_case;

static void *narrowed(float *values, size_t count, enum mn_dtype dtype)
{
    uint16_t *bits = malloc(count * 4);
    for (size_t i = 0; i < count && dtype == MN_BF16; i++)
        values[i] = oracle_bf16_widen(bits[i] = oracle_bf16_nearest(values[i]));
    return dtype == MN_BF16 ? bits : memcpy(bits, values, count * 4);
}

static search_case search_case_of(const mn_search *s, enum mn_dtype dtype, bool integers)
{
    uint64_t random = 8;
    search_case c = {.search = *s,
                     .dtype = dtype,
                     .queries = s->tokens * s->heads * 2 * s->half,
                     .keys = (size_t)s->heads * 2 * s->n * s->half,
                     .picks = s->tokens * s->heads * s->k};
    c.query = malloc(c.queries * sizeof(float));
    c.key = malloc(c.keys * sizeof(float));
    for (size_t i = 0; i < c.queries; i++)
        c.query[i] = integers ? fixture_integer(&random) : fixture_uniform(&random);
    for (size_t i = 0; i < c.keys; i++)
        c.key[i] = integers ? fixture_integer(&random) : fixture_uniform(&random);
    c.query_bits = narrowed(c.query, c.queries, dtype);
    c.key_bits = narrowed(c.key, c.keys, dtype);
    return c;
}

static void search_case_free(search_case *c)
{
    free(c->query);
    free(c->key);
    free(c->query_bits);
    free(c->key_bits);
    gpu_free();
}

/* Runs the search; rows and scores [picks]. */
static uint64_t run_search(const search_case *c, uint64_t *rows, float *scores)
{
    mn_cuda cuda;
    mn_error error;
    const size_t width = mn_dtype_bytes(c->dtype);
    uint64_t *gpu_rows = gpu_new(c->picks * 8), *bad = gpu_new(8), first_bad;
    float *gpu_scores = gpu_new(c->picks * 4);
    assert_int_equal(mn_cuda_open(&cuda, &error), MN_OK);
    assert_int_equal(
        mn_cuda_search(&cuda, &c->search, c->dtype, gpu_copy(c->query_bits, c->queries * width),
                       gpu_copy(c->key_bits, c->keys * width), gpu_rows, gpu_scores, bad,
                       gpu_new(mn_cuda_search_bytes(&c->search, cuda.cache_bytes)), NULL, &error),
        MN_OK);
    gpu_read(gpu_rows, rows, c->picks * sizeof *rows);
    gpu_read(gpu_scores, scores, c->picks * sizeof *scores);
    gpu_read(bad, &first_bad, sizeof first_bad);
    mn_cuda_close(&cuda);
    mn_cuda_close(&cuda); /* and again: nothing */
    return first_bad;
}

/* Sub-score of a query for a key of side s, exactly, and the sum of its terms' sizes. */
static double sub_score(const search_case *c, uint64_t query, uint32_t s, uint32_t key,
                        double *out_size)
{
    const uint32_t half = c->search.half, n = c->search.n;
    const uint32_t head = (uint32_t)(query % c->search.heads);
    const float *q = c->query + (query * 2 + s) * half;
    const float *k = c->key + (((size_t)head * 2 + s) * n + key) * half;
    double sum = 0, size = 0;
    for (uint32_t i = 0; i < half; i++)
        sum += (double)q[i] * (double)k[i], size += fabs((double)q[i] * (double)k[i]);
    *out_size = size;
    return sum;
}

/* What the search must give on integers: every sub-score is exact. */
static void expected_of(const search_case *c, uint64_t *rows, float *scores)
{
    const mn_search *s = &c->search;
    float *lists = malloc(2 * s->n * sizeof *lists);
    void *scratch = scratch_for(s->n, s->k);
    for (uint64_t q = 0; q < s->tokens * s->heads; q++) {
        double size;
        for (uint32_t j = 0; j < 2 * s->n; j++)
            lists[j] = (float)sub_score(c, q, j / s->n, j % s->n, &size);
        assert_true(mn_kernels_for(MN_ISA_PLAIN)
                        ->select(lists, lists + s->n, s->n, s->k, rows + q * s->k,
                                 scores + q * s->k, scratch));
    }
    free(lists);
    free(scratch);
}

static void test_search_is_exact_on_integers(void **state)
{
    (void)state;
    gpu_need();
    const mn_search cases[] = {{150, 2, 33, 8, 16}, {3, 1, 4, 5, 16}, {1, 3, 70, 4, 33}};
    for (int i = 0; i < 6; i++) {
        search_case c = search_case_of(&cases[i / 2], i % 2 ? MN_BF16 : MN_F32, true);
        uint64_t *rows = malloc(2 * c.picks * sizeof *rows);
        float *scores = malloc(2 * c.picks * sizeof *scores);
        assert_true(run_search(&c, rows, scores) == UINT64_MAX);
        expected_of(&c, rows + c.picks, scores + c.picks);
        assert_memory_equal(rows, rows + c.picks, c.picks * sizeof *rows);
        assert_memory_equal(scores, scores + c.picks, c.picks * sizeof *scores);
        free(rows);
        free(scores);
        search_case_free(&c);
    }
}

/* Whether every pick's score is within its bound of the exact one, picks are in order, distinct,
 * and no row left out has a bound below which all picks lie. A sub-score is off by at most half *
 * 2^-23 * sum |q*k|, their sum by those and one rounding. */
static bool query_within_bound(const search_case *c, uint64_t query, const uint64_t *rows,
                               const float *scores)
{
    const mn_search *s = &c->search;
    double *exact = malloc(2 * s->n * sizeof *exact), *off = malloc(2 * s->n * sizeof *off);
    uint32_t above = 0;
    bool good = true;
    for (uint32_t j = 0; j < 2 * s->n; j++) {
        exact[j] = sub_score(c, query, j / s->n, j % s->n, &off[j]);
        off[j] *= s->half * 0x1p-23;
    }
    for (uint32_t i = 0; i < s->k; i++) {
        const uint64_t a = rows[i] / s->n, b = s->n + rows[i] % s->n;
        const double sum = exact[a] + exact[b], bound = off[a] + off[b] + fabs(sum) * 0x1p-22;
        good = good && oracle_close((double)scores[i], sum, bound) &&
               (i == 0 || scores[i] <= scores[i - 1]);
        for (uint32_t j = 0; j < i; j++)
            good = good && rows[j] != rows[i];
    }
    for (uint32_t a = 0; a < s->n; a++) /* rows that beat the k-th score for certain */
        for (uint32_t b = s->n; b < 2 * s->n; b++)
            above +=
                exact[a] + exact[b] - 2 * (off[a] + off[b]) > (double)scores[s->k - 1] * 1.00001;
    free(exact);
    free(off);
    return good && above <= s->k;
}

static void test_search_within_its_bound(void **state)
{
    (void)state;
    gpu_need();
    const mn_search s = {40, 2, 50, 24, 32};
    for (int dtype = MN_F32; dtype <= MN_BF16; dtype++) {
        search_case c = search_case_of(&s, (enum mn_dtype)dtype, false);
        uint64_t rows[40 * 2 * 32];
        float scores[40 * 2 * 32];
        assert_true(run_search(&c, rows, scores) == UINT64_MAX);
        for (uint64_t q = 0; q < 80; q++)
            assert_true(query_within_bound(&c, q, rows + q * 32, scores + q * 32));
        scores[5] = scores[5] * 1.0001f;
        assert_false(query_within_bound(&c, 0, rows, scores)); /* the comparator can fail */
        search_case_free(&c);
    }
}

static void test_search_names_what_is_wrong(void **state)
{
    (void)state;
    gpu_need();
    const mn_search s = {90, 2, 40, 8, 3};
    search_case c = search_case_of(&s, MN_F32, true);
    uint64_t rows[90 * 2 * 3];
    float scores[90 * 2 * 3];
    mn_error error;
    mn_cuda cuda = {0};
    ((float *)c.query_bits)[(77 * 2 + 1) * 16 + 4] = NAN;
    ((float *)c.query_bits)[(80 * 2 + 0) * 16 + 4] = NAN;
    assert_true(run_search(&c, rows, scores) == 77 * 2 + 1);
    search_case_free(&c);
    mn_search wrong = s;
    wrong.heads = 0;
    assert_int_equal(
        mn_cuda_search(&cuda, &wrong, MN_F32, NULL, NULL, NULL, NULL, NULL, NULL, NULL, &error),
        MN_INVALID);
    assert_string_equal(error.field, "heads");
    wrong.heads = 1, wrong.k = 129;
    assert_int_equal(
        mn_cuda_search(&cuda, &wrong, MN_F32, NULL, NULL, NULL, NULL, NULL, NULL, NULL, &error),
        MN_INVALID);
    assert_string_equal(error.field, "k");
}

/* Needs no GPU: how many tokens a block takes, and that its scores fit half the cache. */
static void test_search_blocks(void **state)
{
    (void)state;
    const mn_search s = {32768, 4, 1024, 128, 32};
    const uint64_t cache = UINT64_C(50) << 20;
    const uint64_t tokens = mn_cuda_search_block(&s, cache);
    assert_int_equal(tokens, (cache / 2) / (4 * 2 * 1024 * 4));
    assert_true(mn_cuda_search_bytes(&s, cache) <= cache / 2);
    assert_int_equal(mn_cuda_search_bytes(&s, cache), tokens * 4 * 2 * 1024 * 4);
    assert_int_equal(mn_cuda_search_block(&s, 0), 64);
    assert_int_equal(mn_cuda_search_block(&(mn_search){10, 4, 1024, 128, 32}, cache), 10);
    assert_int_equal(mn_cuda_search_block(&(mn_search){1ull << 40, 1, 1, 1, 1}, 1ull << 40),
                     1 << 20);
}

static void test_softmax_equals_plain_c(void **state)
{
    (void)state;
    gpu_need();
    enum { GROUPS = 13 };
    float scores[GROUPS * 150], dw[GROUPS * 150], ds[GROUPS * 150];
    uint64_t random = 9;
    mn_error error;
    static const uint32_t ks[] = {1, 2, 31, 32, 33, 64, 128, 150};
    for (size_t i = 0; i < sizeof ks / sizeof ks[0]; i++)
        for (int scale = 1; scale <= 100; scale *= 10) {
            const uint32_t k = ks[i];
            const size_t bytes = GROUPS * k * sizeof(float);
            for (uint32_t j = 0; j < GROUPS * k; j++) {
                scores[j] = fixture_uniform(&random) * (float)scale;
                dw[j] = fixture_uniform(&random);
            }
            scores[0] = -INFINITY, scores[k - 1] = 0, scores[k] = -0.0f;
            float *gpu = gpu_copy(scores, bytes), *gpu_ds = gpu_new(bytes);
            assert_int_equal(mn_cuda_softmax(gpu, GROUPS, k, NULL, &error), MN_OK);
            mn_kernels_for(MN_ISA_PLAIN)->softmax(scores, GROUPS, k);
            assert_true(gpu_equal(gpu, scores, bytes));
            assert_int_equal(
                mn_cuda_softmax_grad(gpu, gpu_copy(dw, bytes), GROUPS, k, gpu_ds, NULL, &error),
                MN_OK);
            mn_kernels_for(MN_ISA_PLAIN)->softmax_grad(scores, dw, GROUPS, k, ds);
            assert_true(gpu_equal(gpu_ds, ds, bytes));
            gpu_free();
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_select_equals_plain_c),
        cmocka_unit_test(test_select_extremes),
        cmocka_unit_test(test_select_names_the_first_bad_query),
        cmocka_unit_test(test_search_is_exact_on_integers),
        cmocka_unit_test(test_search_within_its_bound),
        cmocka_unit_test(test_search_names_what_is_wrong),
        cmocka_unit_test(test_search_blocks),
        cmocka_unit_test(test_softmax_equals_plain_c),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
