/* Merge, optimizers, store and the sort: against the oracle, between instruction sets, for any
 * tiling; stochastic rounding without bias. */
#include "fixture.h"

#include <float.h>

enum { ROWS = 60, SOURCES = 9, CONTRIBUTIONS = 150 };

typedef struct merge_inputs {
    mn_contribution contributions[CONTRIBUTIONS];
    buffer memory; /* [SOURCES][wide] */
    const void *pointers[SOURCES];
    mn_sources sources;
    uint32_t wide;
} merge_inputs;

/* Sorted contributions; source rows lie at odd addresses and begin `column` before the tile. */
static void merge_inputs_init(merge_inputs *in, uint32_t columns, uint32_t column,
                              enum mn_dtype dtype, bool integers)
{
    uint64_t random = 3;
    static mn_contribution scratch[CONTRIBUTIONS];
    in->wide = columns + column;
    in->memory = buffer_of((size_t)SOURCES * in->wide * mn_dtype_bytes(dtype), 1);
    for (uint32_t i = 0; i < SOURCES * in->wide; i++) {
        float value = integers ? fixture_integer(&random) : fixture_uniform(&random);
        uint16_t narrow = oracle_bf16_nearest(value);
        memcpy(in->memory.data + (size_t)i * mn_dtype_bytes(dtype),
               dtype == MN_F32 ? (void *)&value : &narrow, mn_dtype_bytes(dtype));
    }
    for (uint32_t s = 0; s < SOURCES; s++)
        in->pointers[s] = in->memory.data + (size_t)s * in->wide * mn_dtype_bytes(dtype);
    for (uint32_t i = 0; i < CONTRIBUTIONS; i++)
        in->contributions[i] =
            (mn_contribution){fixture_random(&random) % (ROWS / 2) * 2 % ROWS,
                              (uint32_t)(fixture_random(&random) % SOURCES),
                              integers ? fixture_integer(&random) : fixture_uniform(&random)};
    mn_contributions_sort(in->contributions, scratch, CONTRIBUTIONS, ROWS);
    in->sources = (mn_sources){in->pointers, dtype, column};
}

/* The merged gradient of a row: a left fold in f32, as promised; 0 contributions give false. */
static bool oracle_merge(const merge_inputs *in, uint64_t offset, uint32_t columns, double *out_g)
{
    bool any = false;
    for (uint32_t c = 0; c < columns; c++) {
        float sum = 0;
        for (uint32_t i = 0; i < CONTRIBUTIONS; i++) {
            const mn_contribution *k = &in->contributions[i];
            if (k->offset != offset)
                continue;
            volatile float product =
                k->weight *
                oracle_load(in->pointers[k->source], in->sources.column + c, in->sources.dtype);
            sum = sum + product;
            any = true;
        }
        out_g[c] = sum;
    }
    return any;
}

static void *scratch_of(uint32_t columns)
{
    void *scratch = aligned_alloc(64, mn_merge_scratch_bytes(columns));
    assert_non_null(scratch);
    return scratch;
}

static const mn_update update = {
    .learning_rate = 0.01f, .weight_decay = 0.1f, .factor = 0.5f, .step = 3};

/* Value and state of a row before the step, in double precision. */
typedef struct row_oracle {
    double row[400], state[400], state2[400];
} row_oracle;

static void row_before(const mn_tile *tile, uint64_t offset, row_oracle *out)
{
    const mn_optimizer *o = &tile->optimizer;
    uint32_t elements = mn_state_elements(o, tile->columns);
    bool grad = o->kind == MN_OPTIMIZER_ADAGRAD || o->kind == MN_OPTIMIZER_ROWWISE_ADAGRAD;
    for (uint32_t c = 0; c < tile->columns; c++)
        out->row[c] = oracle_value(tile, offset, c);
    for (uint32_t s = 0; s < elements; s++) {
        double value = tile->updates[offset]
                           ? oracle_load(tile->state, offset * elements + s, o->state_dtype)
                           : (grad ? o->beta1 : 0);
        *(s < tile->columns ? &out->state[s] : &out->state2[s - tile->columns]) = value;
    }
}

/* f32 updates round some ten operations on values of magnitude ~10 or less: 1e-5 of the largest
 * suffices, tightened by comparing relative to 1 + |expected|. A bf16 result may lie one step
 * (2^-7 of its value) away from the exact one, up or down. */
static double step_tolerance(double expected, enum mn_dtype dtype)
{
    return 1e-5 * (1 + fabs(expected)) + (dtype == MN_BF16 ? fabs(expected) * 0x1p-7 : 0);
}

static void check_apply(const mn_tile *before, const mn_tile *after, const merge_inputs *in)
{
    static double g[400];
    const mn_optimizer *o = &before->optimizer;
    uint32_t elements = mn_state_elements(o, before->columns);
    size_t value_bytes = before->columns * mn_dtype_bytes(before->dtype);
    for (uint64_t r = 0; r < before->rows; r++) {
        row_oracle row = {0};
        if (!oracle_merge(in, r, before->columns, g)) {
            assert_int_equal(before->updates[r], after->updates[r]);
            assert_memory_equal((char *)before->values + r * value_bytes,
                                (char *)after->values + r * value_bytes, value_bytes);
            continue;
        }
        assert_int_equal(before->updates[r] + 1, after->updates[r]);
        row_before(before, r, &row);
        oracle_step(o, &update, o->row_correction ? before->updates[r] + 1 : update.step,
                    before->columns, g, row.row, elements ? row.state : NULL, row.state2);
        for (uint32_t c = 0; c < before->columns; c++)
            assert_true(oracle_close(oracle_value(after, r, c), row.row[c],
                                     step_tolerance(row.row[c], before->dtype)));
        for (uint32_t s = 0; s < elements; s++) {
            double expected = s < before->columns ? row.state[s] : row.state2[s - before->columns];
            double got = oracle_load(after->state, r * elements + s, o->state_dtype);
            assert_true(oracle_close(got, expected, step_tolerance(expected, o->state_dtype)));
        }
    }
}

static void check_optimizer(const fixture_options *options, const merge_inputs *in)
{
    mn_tile before = fixture_tile(options), plain = fixture_copy(&before);
    void *scratch = scratch_of(options->columns);
    uint64_t first =
        mn_kernels_for(MN_ISA_PLAIN)
            ->merge_apply(&plain, in->contributions, CONTRIBUTIONS, &in->sources, &update, scratch);
    uint64_t expected_first = 0;
    for (uint64_t r = 0; r < ROWS; r++)
        expected_first += before.updates[r] == 0 && plain.updates[r] != 0;
    assert_int_equal(first, expected_first);
    check_apply(&before, &plain, in);
    double square =
        mn_kernels_for(MN_ISA_PLAIN)
            ->merge_square(&before, in->contributions, CONTRIBUTIONS, &in->sources, scratch);
    for (int isa = MN_ISA_AVX2; isa < ISAS; isa++) {
        const mn_kernels *kernels = mn_kernels_for((enum mn_isa)isa);
        if (kernels == NULL)
            continue;
        mn_tile other = fixture_copy(&before);
        kernels->merge_apply(&other, in->contributions, CONTRIBUTIONS, &in->sources, &update,
                             scratch);
        assert_true(fixture_equal(&plain, &other));
        double again =
            kernels->merge_square(&before, in->contributions, CONTRIBUTIONS, &in->sources, scratch);
        assert_memory_equal(&again, &square, sizeof square);
        ((char *)other.values)[1] ^= 1;
        assert_false(fixture_equal(&plain, &other)); /* the comparator can fail */
        fixture_free(&other);
    }
    free(scratch);
    fixture_free(&before);
    fixture_free(&plain);
}

static void test_optimizers(void **state)
{
    (void)state;
    for (size_t c = 0; c < ODD_COLUMNS; c++)
        for (int i = 0; i < FIXTURE_OPTIMIZERS; i++)
            for (int dtypes = 0; dtypes < 4; dtypes++) {
                fixture_options options = {.rows = ROWS,
                                           .columns = odd_columns[c],
                                           .first_column = 16,
                                           .dtype = dtypes & 1 ? MN_BF16 : MN_F32,
                                           .optimizer = fixture_optimizer(i),
                                           .init = mn_init_normal(0.5f)};
                if (i != 2)
                    options.optimizer.state_dtype = dtypes & 1 ? MN_BF16 : MN_F32;
                merge_inputs in;
                merge_inputs_init(&in, odd_columns[c], 5, dtypes & 2 ? MN_BF16 : MN_F32, false);
                check_optimizer(&options, &in);
                buffer_free(&in.memory);
            }
}

/* Small integers: SGD and the squared norm are exact. */
static void test_merge_is_exact_on_integers(void **state)
{
    (void)state;
    static double g[400];
    for (size_t c = 0; c < ODD_COLUMNS; c++) {
        const uint32_t columns = odd_columns[c];
        fixture_options options = {.rows = ROWS,
                                   .columns = columns,
                                   .optimizer = mn_sgd(),
                                   .init = mn_init_constant(2),
                                   .integers = true};
        const mn_update whole = {.learning_rate = 2, .factor = 1, .step = 1};
        mn_tile before = fixture_tile(&options), after = fixture_copy(&before);
        void *scratch = scratch_of(columns);
        merge_inputs in;
        merge_inputs_init(&in, columns, 0, MN_F32, true);
        double norm = 0, got = mn_kernels_best()->merge_square(&before, in.contributions,
                                                               CONTRIBUTIONS, &in.sources, scratch);
        mn_kernels_best()->merge_apply(&after, in.contributions, CONTRIBUTIONS, &in.sources, &whole,
                                       scratch);
        for (uint64_t r = 0; r < ROWS; r++) {
            bool any = oracle_merge(&in, r, columns, g);
            for (uint32_t i = 0; any && i < columns; i++) {
                norm += g[i] * g[i];
                assert_true(oracle_value(&after, r, i) == oracle_value(&before, r, i) - 2 * g[i]);
            }
        }
        assert_true(got == norm);
        buffer_free(&in.memory);
        free(scratch);
        fixture_free(&before);
        fixture_free(&after);
    }
}

static void test_adam_bf16_ignores_tiling(void **state)
{
    (void)state;
    fixture_options options = {.rows = ROWS,
                               .columns = 240,
                               .dtype = MN_BF16,
                               .optimizer = fixture_optimizer(3),
                               .init = mn_init_normal(1)};
    options.optimizer.state_dtype = MN_BF16;
    mn_tile before = fixture_tile(&options), whole = fixture_copy(&before);
    void *scratch = scratch_of(240);
    merge_inputs in;
    merge_inputs_init(&in, 240, 0, MN_F32, false);
    mn_kernels_best()->merge_apply(&whole, in.contributions, CONTRIBUTIONS, &in.sources, &update,
                                   scratch);
    for (uint32_t tiles = 1; tiles <= 5; tiles += tiles == 3 ? 2 : 1)
        for (uint32_t t = 0; t < tiles; t++) {
            uint32_t begin = 15 * t / tiles * 16, end = 15 * (t + 1) / tiles * 16;
            mn_tile cut = fixture_cut(&before, begin, end - begin);
            mn_tile expected = fixture_cut(&whole, begin, end - begin);
            mn_sources sources = {in.pointers, MN_F32, begin};
            mn_kernels_best()->merge_apply(&cut, in.contributions, CONTRIBUTIONS, &sources, &update,
                                           scratch);
            assert_true(fixture_equal(&cut, &expected));
            fixture_free(&cut);
            fixture_free(&expected);
        }
    buffer_free(&in.memory);
    free(scratch);
    fixture_free(&before);
    fixture_free(&whole);
}

/* Rows that start at 1 and move by a hundredth of a bf16 step, many times: the mean must follow.
 * Each value's rounding error is a random walk of at most one step (2^-7) per update, variance
 * p(1-p) <= 0.01 of a step squared; over n values and u updates the mean's deviation is below
 * 2^-7 * sqrt(0.01 u / n); five of them are allowed. Without the noise nothing would move. */
static void test_stochastic_rounding_has_no_bias(void **state)
{
    (void)state;
    enum { COLUMNS = 384, UPDATES = 50 };
    const double move = -0x1p-7 / 100;
    fixture_options options = {.rows = ROWS,
                               .columns = COLUMNS,
                               .dtype = MN_BF16,
                               .optimizer = mn_sgd(),
                               .init = mn_init_constant(1.5f)};
    mn_tile tile = fixture_tile(&options);
    memset(tile.updates, 0, ROWS * sizeof *tile.updates);
    tile.rows_written = 0;
    void *scratch = scratch_of(COLUMNS);
    static float gradient[COLUMNS];
    mn_contribution contributions[ROWS];
    const void *rows[1] = {gradient};
    for (uint32_t c = 0; c < COLUMNS; c++)
        gradient[c] = 1;
    for (uint32_t r = 0; r < ROWS; r++)
        contributions[r] = (mn_contribution){r, 0, 1};
    const mn_sources sources = {rows, MN_F32, 0};
    const mn_update small = {.learning_rate = (float)-move, .factor = 1, .step = 1};
    for (uint32_t u = 0; u < UPDATES; u++)
        tile.rows_written +=
            mn_kernels_best()->merge_apply(&tile, contributions, ROWS, &sources, &small, scratch);
    double mean = 0, n = (double)ROWS * COLUMNS;
    for (uint64_t r = 0; r < ROWS; r++)
        for (uint32_t c = 0; c < COLUMNS; c++)
            mean += oracle_value(&tile, r, c) / n;
    double deviation = 5 * 0x1p-7 * sqrt(0.01 * UPDATES / n);
    assert_int_equal(tile.rows_written, ROWS);
    assert_true(oracle_close(mean, 1.5 + UPDATES * move, deviation));
    assert_false(oracle_close(1.5, 1.5 + UPDATES * move, deviation)); /* what nearest would give */
    free(scratch);
    fixture_free(&tile);
}

/* The noise is the half-word of Philox that mn_kernels.h §1 names: by table row, absolute column
 * and the row's update count. 1 - 1e-3 lies between two bf16 values: rounding shows the noise. */
static void test_rounding_noise_is_keyed_as_promised(void **state)
{
    (void)state;
    enum { COLUMNS = 100, FIRST = 48, OFFSET = 4 };
    fixture_options options = {.rows = 9,
                               .columns = COLUMNS,
                               .first_column = FIRST,
                               .dtype = MN_BF16,
                               .optimizer = mn_sgd(),
                               .init = mn_init_constant(1)};
    mn_tile tile = fixture_tile(&options);
    tile.table_rows = UINT64_C(1) << 36, tile.row_base = UINT64_C(1) << 33, tile.row_inverse = 5;
    tile.updates[OFFSET] = 0, tile.rows_written = 1;
    float gradient[COLUMNS];
    for (uint32_t c = 0; c < COLUMNS; c++)
        gradient[c] = 1;
    const void *rows[1] = {gradient};
    const mn_sources sources = {rows, MN_F32, 0};
    const mn_update small = {.learning_rate = 1e-3f, .factor = 1, .step = 1};
    mn_contribution one = {OFFSET, 0, 1};
    void *scratch = scratch_of(COLUMNS);
    mn_kernels_best()->merge_apply(&tile, &one, 1, &sources, &small, scratch);
    const uint64_t row = oracle_table_row(&tile, OFFSET);
    const uint32_t key[2] = {(uint32_t)tile.seed ^ MN_PURPOSE_ROUND_VALUE,
                             (uint32_t)(tile.seed >> 32)};
    uint32_t both = 0;
    for (uint32_t c = FIRST; c < FIRST + COLUMNS; c++) {
        uint32_t counter[4] = {(uint32_t)row, (uint32_t)(row >> 32), c / 8, 1}, words[4], bits;
        const float exact = 1 - 1e-3f;
        mn_philox(counter, key, words);
        memcpy(&bits, &exact, sizeof bits);
        bits = (bits + (words[c % 8 / 2] >> (c % 2 * 16) & 0xffff)) >> 16;
        assert_int_equal(((uint16_t *)tile.values)[OFFSET * COLUMNS + c - FIRST], bits);
        both |= 1u << (bits & 1);
    }
    assert_int_equal(both, 3); /* some went up, some down */
    free(scratch);
    fixture_free(&tile);
}

/* NaN and infinities survive rounding as themselves. */
static void test_rounding_keeps_special_values(void **state)
{
    (void)state;
    fixture_options options = {.rows = 1,
                               .columns = 16,
                               .dtype = MN_BF16,
                               .optimizer = mn_sgd(),
                               .init = mn_init_constant(0)};
    mn_tile tile = fixture_tile(&options);
    float gradient[16] = {-INFINITY, INFINITY, NAN, -NAN, -FLT_MAX, FLT_MAX, -1, 0};
    uint32_t quiet_low = 0x7f800001; /* a NaN whose kept mantissa is zero */
    memcpy(&gradient[8], &quiet_low, sizeof quiet_low);
    const void *rows[1] = {gradient};
    const mn_sources sources = {rows, MN_F32, 0};
    const mn_update plain = {.learning_rate = 1, .factor = 1, .step = 1};
    mn_contribution one = {0, 0, 1};
    memset(tile.values, 0, 32);
    void *scratch = scratch_of(16);
    mn_kernels_best()->merge_apply(&tile, &one, 1, &sources, &plain, scratch);
    assert_true(oracle_value(&tile, 0, 0) == INFINITY && oracle_value(&tile, 0, 1) == -INFINITY);
    assert_true(isnan(oracle_value(&tile, 0, 2)) && isnan(oracle_value(&tile, 0, 3)));
    assert_true(oracle_value(&tile, 0, 6) == 1 && oracle_value(&tile, 0, 7) == 0);
    assert_true(isnan(oracle_value(&tile, 0, 8)));
    free(scratch);
    fixture_free(&tile);
}

static void test_store(void **state)
{
    (void)state;
    enum { COLUMNS = 17, N = 5 };
    const uint64_t offsets[N] = {2, 7, MN_NO_ROW, 2, 5};
    uint64_t random = 1;
    float rows[N][COLUMNS], states[N][COLUMNS];
    for (int i = 0; i < N; i++)
        for (int c = 0; c < COLUMNS; c++)
            rows[i][c] = fixture_uniform(&random), states[i][c] = fixture_uniform(&random);
    for (int isa = 0; isa < ISAS; isa++)
        for (int variant = 0; variant < 4; variant++) {
            const mn_kernels *kernels = mn_kernels_for((enum mn_isa)isa);
            fixture_options options = {.rows = 9,
                                       .columns = COLUMNS,
                                       .dtype = variant & 1 ? MN_BF16 : MN_F32,
                                       .optimizer = fixture_optimizer(1)};
            if (kernels == NULL)
                continue;
            mn_tile tile = fixture_tile(&options);
            const bool with_state = variant & 2;
            uint64_t first = kernels->store(&tile, offsets, N, MN_F32, rows, sizeof rows[0],
                                            with_state ? states : NULL, sizeof states[0]);
            assert_int_equal(first, 2); /* rows 2 and 5; 7 was there */
            assert_int_equal(tile.updates[2], 2);
            for (uint32_t c = 0; c < COLUMNS; c++) {
                float expected = rows[3][c]; /* the later one wins */
                if (variant & 1)
                    expected = oracle_bf16_widen(oracle_bf16_nearest(expected));
                assert_true((float)oracle_value(&tile, 2, c) == expected);
                assert_true(((float *)tile.state)[2 * COLUMNS + c] ==
                            (with_state ? states[3][c] : options.optimizer.beta1));
            }
            fixture_free(&tile);
        }
}

static void test_sort_is_stable(void **state)
{
    (void)state;
    enum { N = 3000 };
    static mn_contribution contributions[N], scratch[N];
    const uint64_t rows[] = {1, 2, 3, 1000, 1024, 1025, 1 << 20, (1 << 20) + 1, MN_ROWS_MAX};
    for (size_t t = 0; t < sizeof rows / sizeof rows[0]; t++) {
        uint64_t random = 4, sum = 0;
        for (uint32_t i = 0; i < N; i++) {
            contributions[i] = (mn_contribution){fixture_random(&random) % rows[t], i, (float)i};
            if (i % 2)
                contributions[i].offset = contributions[i / 3].offset;
            sum += contributions[i].offset * (i + 1);
        }
        mn_contributions_sort(contributions, scratch, N, rows[t]);
        for (uint32_t i = 0; i < N; i++) {
            sum -= contributions[i].offset * (contributions[i].source + 1);
            assert_true(contributions[i].weight == (float)contributions[i].source);
            assert_true(i == 0 || contributions[i - 1].offset < contributions[i].offset ||
                        (contributions[i - 1].offset == contributions[i].offset &&
                         contributions[i - 1].source < contributions[i].source));
        }
        assert_int_equal(sum, 0);
    }
}

static void test_counts_saturate(void **state)
{
    (void)state;
    fixture_options options = {.rows = 1, .columns = 4, .optimizer = mn_sgd()};
    mn_tile tile = fixture_tile(&options);
    tile.updates[0] = UINT32_MAX - 1;
    const uint64_t offset = 0;
    const float row[4] = {1, 2, 3, 4};
    for (int i = 0; i < 3; i++)
        assert_int_equal(mn_kernels_best()->store(&tile, &offset, 1, MN_F32, row, 0, NULL, 0), 0);
    assert_int_equal(tile.updates[0], UINT32_MAX);
    fixture_free(&tile);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_optimizers),
        cmocka_unit_test(test_merge_is_exact_on_integers),
        cmocka_unit_test(test_adam_bf16_ignores_tiling),
        cmocka_unit_test(test_stochastic_rounding_has_no_bias),
        cmocka_unit_test(test_rounding_noise_is_keyed_as_promised),
        cmocka_unit_test(test_rounding_keeps_special_values),
        cmocka_unit_test(test_store),
        cmocka_unit_test(test_sort_is_stable),
        cmocka_unit_test(test_counts_saturate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
