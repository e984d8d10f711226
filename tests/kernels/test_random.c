/* Philox, initial values, rounding noise: known answers, moments, independence of the tiling. */
#include "fixture.h"

static void test_philox_known_answers(void **state)
{
    (void)state;
    /* Random123's published vectors for philox4x32 with ten rounds (Salmon et al. 2011). */
    static const struct {
        uint32_t counter[4], key[2], words[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    uint32_t words[4];
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        mn_philox(known[i].counter, known[i].key, words);
        assert_memory_equal(words, known[i].words, sizeof words);
    }
    uint32_t wrong_key[2] = {0, 1};
    mn_philox(known[0].counter, wrong_key, words);
    assert_memory_not_equal(words, known[0].words, sizeof words);
}

/* Each instruction set against the oracle and, bit for bit, against plain C. */
static void check_init(const mn_init *init, enum mn_dtype dtype, uint32_t first, uint32_t columns)
{
    const uint64_t seed = UINT64_C(0xfeedface12345678), row = UINT64_C(0x300000007);
    const size_t bytes = columns * mn_dtype_bytes(dtype);
    buffer plain = buffer_of(bytes, 0);
    mn_kernels_for(MN_ISA_PLAIN)->init_row(init, seed, row, first, columns, dtype, plain.data);
    for (uint32_t c = 0; c < columns; c++) {
        double expected = oracle_init(init, seed, row, first + c);
        double got = oracle_load(plain.data, c, dtype);
        /* log, sin and cos to 1e-6 of values up to 5.8 deviations, a few f32 roundings; bf16 keeps
         * 8 bits, so that its nearest is within 2^-9 of the value. */
        double tolerance = 2e-6 * fabs(init->a) + 4e-7 * fabs(expected);
        if (dtype == MN_BF16)
            tolerance += fabs(expected) * 0x1p-8;
        assert_true(oracle_close(got, expected, tolerance));
    }
    for (int isa = MN_ISA_AVX2; isa < ISAS; isa++) {
        const mn_kernels *kernels = mn_kernels_for((enum mn_isa)isa);
        if (kernels == NULL)
            continue;
        buffer other = buffer_of(bytes, 3);
        kernels->init_row(init, seed, row, first, columns, dtype, other.data);
        assert_memory_equal(other.data, plain.data, bytes);
        assert_true(buffer_intact(&other));
        buffer_free(&other);
    }
    assert_true(buffer_intact(&plain));
    buffer_free(&plain);
}

static void test_init_equals_oracle(void **state)
{
    (void)state;
    const mn_init inits[] = {mn_init_zero(), mn_init_constant(1.5f), mn_init_normal(0.03f),
                             mn_init_uniform(-0.25f, 0.5f)};
    for (size_t i = 0; i < 4; i++)
        for (size_t c = 0; c < ODD_COLUMNS; c++)
            for (uint32_t first = 0; first < 40; first += 13) {
                check_init(&inits[i], MN_F32, first, odd_columns[c]);
                check_init(&inits[i], MN_BF16, first, odd_columns[c]);
            }
    check_init(&inits[2], MN_F32, 65536 - 4096, 4096);
}

static void test_init_ignores_tiling(void **state)
{
    (void)state;
    const mn_init init = mn_init_normal(1);
    const mn_kernels *kernels = mn_kernels_best();
    float whole[240], cut[240];
    kernels->init_row(&init, 5, 9, 0, 240, MN_F32, whole);
    for (uint32_t tiles = 1; tiles <= 5; tiles++)
        for (uint32_t t = 0; t < tiles; t++) {
            uint32_t begin = 240 * t / tiles, end = 240 * (t + 1) / tiles;
            kernels->init_row(&init, 5, 9, begin, end - begin, MN_F32, cut);
            assert_memory_equal(cut, whole + begin, (end - begin) * sizeof *cut);
        }
    kernels->init_row(&init, 5, 10, 0, 240, MN_F32, cut);
    assert_memory_not_equal(cut, whole, sizeof cut);
}

/* Moments of a million values; five standard errors of each. */
static void test_moments(void **state)
{
    (void)state;
    enum { ROWS = 1000, COLUMNS = 1000 };
    const double n = (double)ROWS * COLUMNS;
    static float row[COLUMNS];
    for (int uniform = 0; uniform < 2; uniform++) {
        const mn_init init = uniform ? mn_init_uniform(-1, 1) : mn_init_normal(1);
        double sum = 0, square = 0, fourth = 0, neighbours = 0;
        for (uint64_t r = 0; r < ROWS; r++) {
            mn_kernels_best()->init_row(&init, 11, r, 0, COLUMNS, MN_F32, row);
            for (uint32_t c = 0; c < COLUMNS; c++) {
                double x = row[c];
                sum += x, square += x * x, fourth += x * x * x * x;
                neighbours += x * row[(c + 1) % COLUMNS];
            }
        }
        double variance = uniform ? 1.0 / 3 : 1, kurtosis = uniform ? 1.0 / 5 : 3;
        double eighth = uniform ? 1.0 / 9 : 105; /* of x^8: the variance of x^4 */
        assert_true(oracle_close(sum / n, 0, 5 * sqrt(variance / n)));
        assert_true(
            oracle_close(square / n, variance, 5 * sqrt((kurtosis - variance * variance) / n)));
        assert_true(
            oracle_close(fourth / n, kurtosis, 5 * sqrt((eighth - kurtosis * kurtosis) / n)));
        assert_true(oracle_close(neighbours / n, 0, 5 * variance / sqrt(n)));
        assert_false(oracle_close(square / n, variance * 1.01,
                                  5 * sqrt((kurtosis - variance * variance) / n)));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_known_answers),
        cmocka_unit_test(test_init_equals_oracle),
        cmocka_unit_test(test_init_ignores_tiling),
        cmocka_unit_test(test_moments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
