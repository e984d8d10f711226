/* Usage metrics against the constants of uniform reads, and against cases known by hand. */
#include "metrics.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "mn_kernels.h"

enum { ROWS = 262144 }; /* N = 512^2, as in the measured constants */

typedef struct fixture {
    mn_usage usage;
    uint64_t *scratch;
} fixture;

static int setup(void **state)
{
    fixture *f = calloc(1, sizeof *f);
    f->usage.rows = ROWS;
    f->usage.counts = calloc(ROWS, sizeof *f->usage.counts);
    f->usage.weights = calloc(ROWS, sizeof *f->usage.weights);
    f->scratch = calloc(ROWS, sizeof *f->scratch);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    free(f->usage.counts);
    free(f->usage.weights);
    free(f->scratch);
    free(f);
    return 0;
}

static bool near(double value, double wanted, double relative)
{
    return fabs(value - wanted) <= relative * fabs(wanted); /* false for NaN */
}

/* `reads` uniform reads by Philox; ROWS is a power of two, so a mask is exact. */
static mn_usage_metrics read_uniformly(fixture *f, uint64_t reads, uint32_t mask)
{
    memset(f->usage.counts, 0, ROWS * sizeof *f->usage.counts);
    memset(f->usage.weights, 0, ROWS * sizeof *f->usage.weights);
    const uint32_t key[2] = {7, 0};
    for (uint64_t i = 0; i < reads; i += 4) {
        const uint32_t counter[4] = {(uint32_t)i, 0, 0, 0};
        uint32_t words[4];
        mn_philox(counter, key, words);
        for (int j = 0; j < 4; j++) {
            uint64_t index = words[j] & mask;
            float weight = 0.5f;
            mn_usage_add(&f->usage, &index, &weight, 1);
        }
    }
    return mn_usage_measure(&f->usage, f->scratch);
}

/* Measured, N = 262,144, M/N = 1/4, 1, 4: used 22.1, 63.2, 98.2 %, KL 1.550, 0.572, 0.1335. */
static const struct {
    uint64_t reads;
    double used, kl;
} constants[] = {{ROWS / 4, 22.12, 1.550}, {ROWS, 63.21, 0.572}, {4 * ROWS, 98.17, 0.1335}};

static void uniform_reads_give_the_constants(void **state)
{
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) {
        mn_usage_metrics m = read_uniformly(*state, constants[i].reads, ROWS - 1);
        assert_int_equal(m.reads, constants[i].reads);
        assert_true(near(m.used_percent, constants[i].used, 0.005));
        assert_true(near(m.kl_count, constants[i].kl, 0.005));
        assert_true(near(m.kl_weight, m.kl_count, 1e-9)); /* equal weights */
    }
}

static void expected_values_give_the_constants(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) {
        uint64_t reads = constants[i].reads;
        assert_true(near(mn_uniform_used_percent(reads, ROWS), constants[i].used, 0.005));
        assert_true(near(mn_uniform_kl(reads, ROWS), constants[i].kl, 0.005));
    }
    /* Both branches meet; far above one read a row KL is N/2M. */
    assert_true(near(mn_uniform_kl(9999, 1), 1 / (2 * 9999.0), 1e-3));
    assert_true(near(mn_uniform_kl(UINT64_C(1) << 40, 1), 0.5 / 1099511627776.0, 1e-9));
}

static void the_comparison_fails_on_skewed_reads(void **state)
{
    /* Half of the rows never read: the constants must not be met, and NaN never is. */
    mn_usage_metrics m = read_uniformly(*state, ROWS, ROWS / 2 - 1);
    assert_false(near(m.used_percent, 63.21, 0.005));
    assert_false(near(m.kl_count, 0.572, 0.005));
    assert_false(near(NAN, 1, 0.005));
}

static void even_reads_have_no_divergence(void **state)
{
    fixture *f = *state;
    for (uint64_t i = 0; i < ROWS; i++) {
        float weight = 0.25f;
        mn_usage_add(&f->usage, &i, &weight, 1);
    }
    mn_usage_metrics m = mn_usage_measure(&f->usage, f->scratch);
    assert_true(m.used_percent == 100);
    assert_true(fabs(m.kl_count) < 1e-9 && fabs(m.kl_weight) < 1e-9);
    assert_true(fabs(m.gini) < 1e-5); /* -1/N by this definition */
    assert_int_equal(m.top50, ROWS / 2);
}

static void one_row_holds_all(void **state)
{
    fixture *f = *state;
    f->usage.counts[99] = (UINT64_C(1) << 24) + 1; /* an f32 counter stops below */
    float weight = 1;
    uint64_t index = 99;
    mn_usage_add(&f->usage, &index, &weight, 1);
    mn_usage_metrics m = mn_usage_measure(&f->usage, f->scratch);
    assert_int_equal(m.reads, (1 << 24) + 2);
    assert_true(near(m.kl_count, log(ROWS), 1e-12) && near(m.kl_weight, log(ROWS), 1e-12));
    assert_int_equal(m.top50, 1);
    assert_int_equal(m.top99, 1);
    assert_true(m.gini > 0.9999);
}

static void nothing_read_measures_zero(void **state)
{
    fixture *f = *state;
    mn_usage_metrics m = mn_usage_measure(&f->usage, f->scratch);
    assert_int_equal(m.reads, 0);
    assert_true(m.used_percent == 0 && m.kl_count == 0 && m.kl_weight == 0 && m.gini == 0);
    assert_true(mn_uniform_kl(0, ROWS) == 0 && mn_uniform_used_percent(0, ROWS) == 0);
}

/* Counts 1, 2, ... N: z_i = 2 i / (N (N + 1)), so the cumulative sums' mean is (N + 2) / 3N. */
static void counts_that_rise_have_a_closed_form(void **state)
{
    fixture *f = *state;
    enum { N = 1000 };
    mn_usage usage = {.rows = N, .counts = f->usage.counts, .weights = f->usage.weights};
    for (uint64_t i = 0; i < N; i++) {
        usage.counts[(i * 7) % N] = i + 1; /* in no order: 7 and N are coprime */
        usage.weights[i] = 1;
    }
    mn_usage_metrics m = mn_usage_measure(&usage, f->scratch);
    assert_true(near(m.gini, 1.0 / 3 - 4.0 / (3 * N), 1e-12));
    assert_int_equal(m.reads, N * (N + 1) / 2);
    assert_int_equal(m.rows, N);
    /* The m largest hold m (2N - m + 1) / 2. */
    const struct {
        uint64_t top;
        double share;
    } tops[] = {{m.top50, 0.50}, {m.top90, 0.90}, {m.top99, 0.99}};
    for (int i = 0; i < 3; i++) {
        double t = (double)tops[i].top, wanted = tops[i].share * N * (N + 1) / 2;
        assert_true(t * (2 * N - t + 1) / 2 >= wanted && (t - 1) * (2 * N - t + 2) / 2 < wanted);
    }
    assert_true(near(mn_usage_share(&m, m.top50), (double)m.top50 / 10, 1e-12));
    double entropy = 0;
    for (double i = 1; i <= N; i++)
        entropy -= 2 * i / N / (N + 1) * log(2 * i / N / (N + 1));
    assert_true(near(m.kl_count, log(N) - entropy, 1e-9) && fabs(m.kl_weight) < 1e-9);
}

/* A tenth of the rows get nine reads each, the others one each: half of the reads each. */
static void two_levels_have_a_closed_form(void **state)
{
    fixture *f = *state;
    enum { N = 1000 };
    mn_usage usage = {.rows = N, .counts = f->usage.counts, .weights = f->usage.weights};
    for (uint64_t i = 0; i < N; i++) {
        usage.counts[i] = i % 10 ? 1 : 9;
        usage.weights[i] = i % 2 ? 0 : 3; /* half of the rows, evenly */
    }
    mn_usage_metrics m = mn_usage_measure(&usage, f->scratch);
    assert_true(near(m.kl_count, log(N) + 0.5 * log(0.5 / 100) + 0.5 * log(0.5 / 900), 1e-9));
    assert_true(near(m.kl_weight, log(2), 1e-9));
    assert_int_equal(m.top50, 100);
    assert_int_equal(m.top90, 100 + 720);
    assert_int_equal(m.top99, 100 + 882);
    /* Lorenz: to (0.9, 0.5), then to (1, 1): area 0.225 + 0.075; less 1/N for the sum's steps. */
    assert_true(near(m.gini, 1 - 2 * 0.3 - 1.0 / N, 1e-9));
}

static void sums_add_counts_and_weights(void **state)
{
    fixture *f = *state;
    uint64_t counts[3] = {1, 0, 5};
    double weights[3] = {0.5, 0, 2};
    mn_usage more = {3, 0, counts, weights};
    mn_usage sum = {3, 0, f->usage.counts, f->usage.weights};
    sum.counts[2] = 7;
    mn_usage_sum(&more, &sum);
    mn_usage_sum(&more, &sum);
    assert_true(sum.counts[0] == 2 && sum.counts[1] == 0 && sum.counts[2] == 17);
    assert_true(sum.weights[0] == 1 && sum.weights[1] == 0 && sum.weights[2] == 4);
}

/* Gini of a Poisson variable of mean L: e^-2L (I0(2L) + I1(2L)), Bessel functions by series. */
static double poisson_gini(double mean)
{
    double sum = 0, term = 1; /* term: mean^2m / m!^2 */
    for (int m = 0; m < 200; m++) {
        sum += term + term * mean / (m + 1);
        term *= mean / (m + 1) * mean / (m + 1);
    }
    return exp(-2 * mean) * sum;
}

static void uniform_gini_is_the_closed_form(void **state)
{
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) {
        uint64_t reads = constants[i].reads;
        mn_usage_metrics expected = mn_uniform_metrics(reads, ROWS);
        assert_true(near(expected.gini, poisson_gini((double)reads / ROWS), 1e-9));
        assert_true(near(expected.kl_count, constants[i].kl, 0.005));
        mn_usage_metrics read = read_uniformly(*state, reads, ROWS - 1);
        assert_true(near(read.gini, expected.gini, 0.005));
        assert_true(near((double)read.top50, (double)expected.top50, 0.005));
        assert_true(near((double)read.top90, (double)expected.top90, 0.005));
        assert_true(near((double)read.top99, (double)expected.top99, 0.005));
    }
    assert_true(near(mn_uniform_metrics(30 * ROWS, ROWS).gini, poisson_gini(30), 1e-9));
    /* Many reads: normal, 1/sqrt(pi L). */
    assert_true(near(mn_uniform_metrics(UINT64_C(1000000) * ROWS, ROWS).gini,
                     1 / sqrt(3.14159265358979 * 1e6), 1e-3));
    assert_true(mn_uniform_metrics(0, ROWS).gini == 0);
}

/* Of a table with four times the rows that are counted, a quarter of uniform reads is counted, with
 * the metrics of the whole; so is a quarter of a single column or row of the grid of keys. */
static void a_sample_stands_for_the_table(void **state)
{
    fixture *f = *state;
    enum { GRID = 1024 };
    f->usage.table_rows = (uint64_t)GRID * GRID;
    mn_usage_metrics m = read_uniformly(f, 4 * ROWS, GRID * GRID - 1);
    assert_true(near((double)m.reads, ROWS, 0.01));
    assert_true(near(m.used_percent, 63.21, 0.005) && near(m.kl_count, 0.572, 0.01));
    for (int side = 0; side < 2; side++) {
        memset(f->usage.counts, 0, ROWS * sizeof *f->usage.counts);
        for (uint64_t i = 0; i < GRID; i++) {
            uint64_t row = side ? i * GRID + 77 : 77 * GRID + i;
            float weight = 1;
            mn_usage_add(&f->usage, &row, &weight, 1);
        }
        m = mn_usage_measure(&f->usage, f->scratch);
        assert_true(near((double)m.reads, GRID / 4.0, 0.05));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(uniform_reads_give_the_constants, setup, teardown),
        cmocka_unit_test(expected_values_give_the_constants),
        cmocka_unit_test_setup_teardown(the_comparison_fails_on_skewed_reads, setup, teardown),
        cmocka_unit_test_setup_teardown(even_reads_have_no_divergence, setup, teardown),
        cmocka_unit_test_setup_teardown(one_row_holds_all, setup, teardown),
        cmocka_unit_test_setup_teardown(counts_that_rise_have_a_closed_form, setup, teardown),
        cmocka_unit_test_setup_teardown(two_levels_have_a_closed_form, setup, teardown),
        cmocka_unit_test_setup_teardown(sums_add_counts_and_weights, setup, teardown),
        cmocka_unit_test_setup_teardown(uniform_gini_is_the_closed_form, setup, teardown),
        cmocka_unit_test_setup_teardown(a_sample_stands_for_the_table, setup, teardown),
        cmocka_unit_test_setup_teardown(nothing_read_measures_zero, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
