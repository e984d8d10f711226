/* Gather, bag and bag_dot against the oracle, and bit for bit between instruction sets. */
#include "fixture.h"

enum { ROWS = 60, QUERIES = 5, K_MAX = 11, READS = QUERIES * K_MAX };

/* A run of every read of one tile, into unaligned guarded buffers. */
typedef struct outputs {
    buffer rows, bags, dots, states;
} outputs;

typedef struct inputs {
    uint64_t offsets[READS];
    float weights[READS];
    buffer gradients;
    enum mn_dtype gradient_dtype;
    uint32_t k;
} inputs;

static inputs inputs_of(const mn_tile *tile, uint32_t k, enum mn_dtype dtype, bool integers,
                        bool holes)
{
    uint64_t random = 99 + k;
    inputs in = {.k = k, .gradient_dtype = dtype};
    for (uint32_t i = 0; i < QUERIES * k; i++) {
        uint64_t draw = fixture_random(&random);
        in.offsets[i] = holes && draw % 4 == 0 ? MN_NO_ROW : draw / 4 % tile->rows;
        in.weights[i] = integers ? fixture_integer(&random) : fixture_uniform(&random);
    }
    in.gradients = buffer_of(QUERIES * tile->columns * mn_dtype_bytes(dtype), 1);
    for (uint32_t i = 0; i < QUERIES * tile->columns; i++) {
        float value = integers ? fixture_integer(&random) : fixture_uniform(&random);
        uint16_t narrow = oracle_bf16_nearest(value);
        memcpy(in.gradients.data + (size_t)i * mn_dtype_bytes(dtype),
               dtype == MN_F32 ? (void *)&value : &narrow, mn_dtype_bytes(dtype));
    }
    return in;
}

static outputs read_all(const mn_kernels *kernels, const mn_tile *tile, const inputs *in,
                        enum mn_dtype out_dtype)
{
    const size_t stride = tile->columns * mn_dtype_bytes(out_dtype) + 6;
    const size_t state = mn_state_row_bytes(&tile->optimizer, tile->columns);
    const uint64_t reads = QUERIES * in->k;
    outputs out = {buffer_of(reads * stride, 1), buffer_of(QUERIES * stride, 2),
                   buffer_of(reads * sizeof(float), 4), buffer_of(reads * (state + 1), 5)};
    kernels->gather(tile, in->offsets, reads, out_dtype, out.rows.data, stride);
    kernels->bag(tile, in->offsets, in->weights, QUERIES, in->k, out_dtype, out.bags.data, stride);
    kernels->bag_dot(tile, in->offsets, QUERIES, in->k, in->gradient_dtype, in->gradients.data,
                     tile->columns * mn_dtype_bytes(in->gradient_dtype), (float *)out.dots.data);
    kernels->gather_state(tile, in->offsets, reads, out.states.data, state + 1);
    return out;
}

static void free_outputs(outputs *out)
{
    buffer *all[] = {&out->rows, &out->bags, &out->dots, &out->states};
    for (int i = 0; i < 4; i++) {
        assert_true(buffer_intact(all[i]));
        buffer_free(all[i]);
    }
}

static bool same(const buffer *a, const buffer *b)
{
    return a->bytes == b->bytes && memcmp(a->data, b->data, a->bytes) == 0;
}

static bool same_outputs(const outputs *a, const outputs *b)
{
    return same(&a->rows, &b->rows) && same(&a->bags, &b->bags) && same(&a->dots, &b->dots) &&
           same(&a->states, &b->states);
}

/* A sum of at most n = 400 products |w x| <= 1, each product and each of n additions rounded to
 * 2^-24 of at most n: the error is below 2 n^2 2^-24, and here (random signs) far below n 2^-24.
 * A bf16 output adds 2^-9 of its value, and values made by Box-Muller 2e-6 each. */
static double sum_tolerance(uint32_t n, double expected, enum mn_dtype dtype)
{
    return n * (0x1p-24 * 4 + 2e-6) + (dtype == MN_BF16 ? fabs(expected) * 0x1p-8 : 0);
}

static void check_reads(const mn_tile *tile, const inputs *in, const outputs *out,
                        enum mn_dtype out_dtype, bool exact)
{
    const size_t stride = tile->columns * mn_dtype_bytes(out_dtype) + 6;
    for (uint32_t q = 0; q < QUERIES; q++)
        for (uint32_t c = 0; c < tile->columns; c++) {
            double bag = 0;
            for (uint32_t i = q * in->k; i < (q + 1) * in->k; i++) {
                if (in->offsets[i] == MN_NO_ROW)
                    continue;
                double value = oracle_value(tile, in->offsets[i], c);
                double got = oracle_load(out->rows.data + i * stride, c, out_dtype);
                bag += in->weights[i] * value;
                assert_true(oracle_close(got, value, exact ? 0 : sum_tolerance(1, value, MN_BF16)));
            }
            double got = oracle_load(out->bags.data + q * stride, c, out_dtype);
            assert_true(oracle_close(got, bag, exact ? 0 : sum_tolerance(in->k, bag, out_dtype)));
        }
    for (uint32_t i = 0; i < QUERIES * in->k; i++) {
        double dot = 0;
        for (uint32_t c = 0; c < tile->columns && in->offsets[i] != MN_NO_ROW; c++)
            dot +=
                oracle_load(in->gradients.data, i / in->k * tile->columns + c, in->gradient_dtype) *
                oracle_value(tile, in->offsets[i], c);
        double got = oracle_load(out->dots.data, i, MN_F32);
        assert_true(oracle_close(got, dot, exact ? 0 : sum_tolerance(tile->columns, dot, MN_F32)));
    }
}

static void check_tile(const fixture_options *options, bool holes)
{
    static const uint32_t ks[] = {1, 4, 7, K_MAX};
    mn_tile tile = fixture_tile(options);
    /* Rows of a rows table: a permutation of the table's rows, as placement makes it. */
    tile.table_rows = 211, tile.row_base = 13, tile.row_inverse = 77;
    for (size_t i = 0; i < 4; i++)
        for (int dtypes = 0; dtypes < 4; dtypes++) {
            enum mn_dtype out_dtype = dtypes & 1 ? MN_BF16 : MN_F32;
            inputs in =
                inputs_of(&tile, ks[i], dtypes & 2 ? MN_BF16 : MN_F32, options->integers, holes);
            outputs plain = read_all(mn_kernels_for(MN_ISA_PLAIN), &tile, &in, out_dtype);
            check_reads(&tile, &in, &plain, out_dtype, options->integers && out_dtype == MN_F32);
            for (int isa = MN_ISA_AVX2; isa < ISAS; isa++)
                if (mn_kernels_for((enum mn_isa)isa)) {
                    outputs other =
                        read_all(mn_kernels_for((enum mn_isa)isa), &tile, &in, out_dtype);
                    assert_true(same_outputs(&plain, &other));
                    other.bags.data[0] ^= 1;
                    assert_false(same_outputs(&plain, &other)); /* the comparator can fail */
                    free_outputs(&other);
                }
            free_outputs(&plain);
            buffer_free(&in.gradients);
        }
    fixture_free(&tile);
}

static void test_reads_are_exact_on_integers(void **state)
{
    (void)state;
    for (size_t c = 0; c < ODD_COLUMNS; c++)
        for (int variant = 0; variant < 4; variant++) {
            fixture_options options = {.rows = ROWS,
                                       .columns = odd_columns[c],
                                       .dtype = variant & 1 ? MN_BF16 : MN_F32,
                                       .optimizer = mn_adagrad(1e-8f),
                                       .init = mn_init_constant(3),
                                       .integers = true,
                                       .all_written = variant & 2};
            check_tile(&options, variant & 1);
        }
}

static void test_reads_are_near_on_random_values(void **state)
{
    (void)state;
    for (size_t c = 0; c < ODD_COLUMNS; c++)
        for (int variant = 0; variant < 4; variant++) {
            fixture_options options = {.rows = ROWS,
                                       .columns = odd_columns[c],
                                       .first_column = 48,
                                       .dtype = variant & 1 ? MN_BF16 : MN_F32,
                                       .optimizer = mn_adam(0.9f, 0.99f, 1e-8f),
                                       .init = mn_init_normal(0.5f)};
            options.optimizer.state_dtype = variant & 1 ? MN_BF16 : MN_F32;
            check_tile(&options, variant & 2);
        }
}

/* Rows wider than the chunk that a bag sums at a time. */
static void test_wide_rows(void **state)
{
    (void)state;
    fixture_options options = {.rows = 12,
                               .columns = 2600,
                               .dtype = MN_BF16,
                               .init = mn_init_constant(-2),
                               .integers = true};
    check_tile(&options, true);
}

static void test_missing_rows_leave_nothing(void **state)
{
    (void)state;
    fixture_options options = {.rows = 4, .columns = 17, .init = mn_init_constant(1)};
    mn_tile tile = fixture_tile(&options);
    uint64_t none[3] = {MN_NO_ROW, MN_NO_ROW, MN_NO_ROW};
    float weights[3] = {1, 2, 3}, gradient[17] = {1}, bag[17], dots[3] = {9, 9, 9}, zero[17] = {0};
    buffer rows = buffer_of(sizeof bag * 3, 0);
    mn_kernels_best()->bag(&tile, none, weights, 1, 3, MN_F32, bag, sizeof bag);
    mn_kernels_best()->bag_dot(&tile, none, 1, 3, MN_F32, gradient, sizeof gradient, dots);
    mn_kernels_best()->gather(&tile, none, 3, MN_F32, rows.data, sizeof bag);
    assert_memory_equal(bag, zero, sizeof bag);
    assert_memory_equal(dots, zero, sizeof dots);
    for (size_t i = 0; i < rows.bytes; i++)
        assert_int_equal(rows.data[i], 0x5a);
    buffer_free(&rows);
    fixture_free(&tile);
}

static void test_bag_ignores_tiling(void **state)
{
    (void)state;
    fixture_options options = {
        .rows = ROWS, .columns = 240, .dtype = MN_BF16, .init = mn_init_normal(1)};
    mn_tile whole = fixture_tile(&options);
    inputs in = inputs_of(&whole, K_MAX, MN_F32, false, true);
    static float bags[QUERIES][240], cut_bags[QUERIES][240];
    mn_kernels_best()->bag(&whole, in.offsets, in.weights, QUERIES, in.k, MN_F32, bags,
                           sizeof bags[0]);
    for (uint32_t tiles = 1; tiles <= 5; tiles += tiles == 3 ? 2 : 1) {
        for (uint32_t t = 0; t < tiles; t++) {
            uint32_t begin = 15 * t / tiles * 16, end = 15 * (t + 1) / tiles * 16;
            mn_tile cut = fixture_cut(&whole, begin, end - begin);
            mn_kernels_best()->bag(&cut, in.offsets, in.weights, QUERIES, in.k, MN_F32,
                                   &cut_bags[0][begin], sizeof cut_bags[0]);
            fixture_free(&cut);
        }
        assert_memory_equal(bags, cut_bags, sizeof bags);
    }
    buffer_free(&in.gradients);
    fixture_free(&whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_are_exact_on_integers),
        cmocka_unit_test(test_reads_are_near_on_random_values),
        cmocka_unit_test(test_wide_rows),
        cmocka_unit_test(test_missing_rows_leave_nothing),
        cmocka_unit_test(test_bag_ignores_tiling),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
