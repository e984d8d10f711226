/* CUDA's reads against plain C, bit for bit: initial rows, gather, bags, dot products. */
#include "cuda_fixture.h"

enum { ROWS = 60, QUERIES = 11, K = 9, READS = QUERIES * K };

typedef struct read_inputs {
    mn_tile tile, gpu;
    uint64_t offsets[READS], *gpu_offsets;
    float weights[READS], *gpu_weights;
    mn_error error;
} read_inputs;

static void read_inputs_init(read_inputs *in, const fixture_options *options, size_t shift)
{
    uint64_t random = 12;
    in->tile = fixture_tile(options);
    in->tile.table_rows = (UINT64_C(1) << 40) - 87; /* a row's number takes all of its bits */
    in->tile.row_base = (UINT64_C(1) << 39) + 13, in->tile.row_inverse = 0x9e3779b97eull;
    for (uint32_t i = 0; i < READS; i++) {
        in->offsets[i] = i % 8 == 5 ? MN_NO_ROW : fixture_random(&random) % ROWS;
        in->weights[i] = fixture_uniform(&random);
    }
    in->gpu = gpu_tile(&in->tile, shift);
    in->gpu_offsets = gpu_copy(in->offsets, sizeof in->offsets);
    in->gpu_weights = gpu_copy(in->weights, sizeof in->weights);
}

/* Outputs lie `pad` bytes apart and begin `shift` bytes past an aligned address. */
static void check_reads(read_inputs *in, enum mn_dtype out_dtype, size_t pad, size_t shift)
{
    const mn_kernels *cpu = mn_kernels_for(MN_ISA_PLAIN);
    const size_t stride = in->tile.columns * mn_dtype_bytes(out_dtype) + pad;
    char *expected = malloc(READS * stride), *got = (char *)gpu_new(READS * stride + shift) + shift;
    memset(expected, 0xa5, READS * stride); /* what lies between the rows stays */
    cpu->gather(&in->tile, in->offsets, READS, out_dtype, expected, stride);
    assert_int_equal(
        mn_cuda_gather(&in->gpu, in->gpu_offsets, READS, out_dtype, got, stride, NULL, &in->error),
        MN_OK);
    assert_true(gpu_equal(got, expected, READS * stride));
    cpu->bag(&in->tile, in->offsets, in->weights, QUERIES, K, out_dtype, expected, stride);
    assert_int_equal(mn_cuda_bag(&in->gpu, in->gpu_offsets, in->gpu_weights, QUERIES, K, out_dtype,
                                 got, stride, NULL, &in->error),
                     MN_OK);
    assert_true(gpu_equal(got, expected, READS * stride));
    expected[1] ^= 1;
    assert_false(gpu_equal(got, expected, READS * stride)); /* the comparator can fail */
    free(expected);
}

static void check_init(read_inputs *in, enum mn_dtype dtype)
{
    const mn_tile *tile = &in->tile;
    const size_t row = tile->columns * mn_dtype_bytes(dtype);
    uint64_t random = 5, rows[READS];
    char *expected = malloc(READS * row), *got = gpu_new(READS * row);
    for (uint32_t i = 0; i < READS; i++) {
        rows[i] = fixture_random(&random) >> 24;
        mn_kernels_for(MN_ISA_PLAIN)
            ->init_row(&tile->init, tile->seed, rows[i], tile->first_column, tile->columns, dtype,
                       expected + i * row);
    }
    assert_int_equal(mn_cuda_init_rows(&tile->init, tile->seed, gpu_copy(rows, sizeof rows), READS,
                                       tile->first_column, tile->columns, dtype, got, row, NULL,
                                       &in->error),
                     MN_OK);
    assert_true(gpu_equal(got, expected, READS * row));
    free(expected);
}

static void check_dots(read_inputs *in, enum mn_dtype dtype, size_t pad)
{
    const uint32_t columns = in->tile.columns;
    const size_t stride = columns * mn_dtype_bytes(dtype) + pad;
    char *gradients = calloc(QUERIES, stride);
    uint64_t random = 6;
    float expected[READS], *got = gpu_new(sizeof expected);
    for (uint32_t i = 0; i < QUERIES * columns; i++) {
        float value = fixture_uniform(&random);
        uint16_t narrow = oracle_bf16_nearest(value);
        memcpy(gradients + i / columns * stride + i % columns * mn_dtype_bytes(dtype),
               dtype == MN_F32 ? (void *)&value : &narrow, mn_dtype_bytes(dtype));
    }
    mn_kernels_for(MN_ISA_PLAIN)
        ->bag_dot(&in->tile, in->offsets, QUERIES, K, dtype, gradients, stride, expected);
    assert_int_equal(mn_cuda_bag_dot(&in->gpu, in->gpu_offsets, QUERIES, K, dtype,
                                     gpu_copy(gradients, QUERIES * stride), stride, got, NULL,
                                     &in->error),
                     MN_OK);
    assert_true(gpu_equal(got, expected, sizeof expected));
    free(gradients);
}

/* Shapes with and without whole vectors; arrays at addresses that allow them and that do not. */
static void test_reads_equal_plain_c(void **state)
{
    (void)state;
    gpu_need();
    const mn_init inits[] = {mn_init_zero(), mn_init_constant(2), mn_init_normal(0.5f),
                             mn_init_uniform(-1, 2)};
    for (size_t c = 0; c < ODD_COLUMNS; c++)
        for (int variant = 0; variant < 8; variant++) {
            fixture_options options = {.rows = ROWS,
                                       .columns = odd_columns[c],
                                       .first_column = 48,
                                       .dtype = variant & 1 ? MN_BF16 : MN_F32,
                                       .init = inits[(variant / 2 + c) % 4],
                                       .all_written = variant == 6};
            const size_t shift = variant & 4 ? 4 : 0, pad = variant & 2 ? 20 : 0;
            read_inputs in;
            read_inputs_init(&in, &options, shift);
            for (int dtype = MN_F32; dtype <= MN_BF16; dtype++) {
                check_reads(&in, (enum mn_dtype)dtype, 0, 0);
                check_reads(&in, (enum mn_dtype)dtype, pad, shift);
                check_init(&in, (enum mn_dtype)dtype);
                check_dots(&in, (enum mn_dtype)dtype, 0);
                check_dots(&in, (enum mn_dtype)dtype, pad);
            }
            gpu_free();
            fixture_free(&in.tile);
        }
}

/* Rows so wide that they take several blocks, queries with more reads than a block stages. */
static void check_wide(uint32_t columns, uint32_t queries, uint32_t k, enum mn_dtype dtype)
{
    uint64_t random = 3;
    mn_error error;
    mn_tile tile = fixture_tile(&(fixture_options){
        .rows = 7, .columns = columns, .dtype = dtype, .init = mn_init_constant(0.5f)});
    mn_tile gpu = gpu_tile(&tile, 0);
    const size_t reads = (size_t)queries * k, bytes = (size_t)queries * columns * 4;
    uint64_t *offsets = malloc(reads * sizeof *offsets);
    float *weights = malloc(reads * sizeof *weights), *expected = malloc(bytes);
    for (size_t i = 0; i < reads; i++)
        offsets[i] = fixture_random(&random) % 7, weights[i] = fixture_uniform(&random);
    mn_kernels_for(MN_ISA_PLAIN)
        ->bag(&tile, offsets, weights, queries, k, MN_F32, expected, columns * 4);
    void *got = gpu_new(bytes);
    assert_int_equal(mn_cuda_bag(&gpu, gpu_copy(offsets, reads * sizeof *offsets),
                                 gpu_copy(weights, reads * sizeof *weights), queries, k, MN_F32,
                                 got, columns * 4, NULL, &error),
                     MN_OK);
    assert_true(gpu_equal(got, expected, bytes));
    free(offsets);
    free(weights);
    free(expected);
    gpu_free();
    fixture_free(&tile);
}

static void test_wide_rows_and_long_bags(void **state)
{
    (void)state;
    gpu_need();
    check_wide(1100, 2, 5, MN_F32); /* 275 vectors */
    check_wide(4096, 2, 3, MN_BF16);
    check_wide(300, 3, 2, MN_BF16); /* 300 single columns: 8 does not divide it */
    check_wide(4, 3, 2500, MN_F32); /* one vector: 256 queries a block, 4 reads staged of each */
    check_wide(4, 300, 9, MN_F32);
    check_wide(1024, 1, 2500, MN_F32);
    check_wide(8, 5, 0, MN_F32); /* empty bags are zero */
}

/* Rows of small numbers: their products with the inverse have hardly more than whole table_rows, so
 * that a share of them which is rounded counts one too few. And rows beyond the table's end. */
static void test_rows_of_any_number(void **state)
{
    /* {table_rows, row_inverse, row_base, its row} */
    static const uint64_t cases[][4] = {
        {(UINT64_C(1) << 40) - 87, 0x9e3779b97e, 0x86e33f8107, 1},
        {(UINT64_C(1) << 40) - 87, 0x9e3779b97e, 0xdc67f0265, 2},
        {(UINT64_C(1) << 40) - 87, 0x9e3779b97e, 0x94a9be836c, 3},
        {(UINT64_C(1) << 40) - 87, 0x9e3779b97e, (UINT64_C(1) << 40) - 87, 0},
        {UINT64_C(1) << 40, 1, (UINT64_C(1) << 40) - 1, (UINT64_C(1) << 40) - 1},
        {UINT64_C(1) << 40, (UINT64_C(1) << 40) - 1, 1, (UINT64_C(1) << 40) - 1},
        {5, 3, 9, 2},
        {1, 1, 0, 0},
    };
    (void)state;
    gpu_need();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fixture_options options = {.rows = 1, .columns = 4, .init = mn_init_normal(1)};
        read_inputs in = {.tile = fixture_tile(&options)};
        float expected[4], *got = gpu_new(sizeof expected);
        in.tile.table_rows = cases[i][0], in.tile.row_inverse = cases[i][1];
        in.tile.row_base = cases[i][2];
        in.tile.updates[0] = 0, in.tile.rows_written = 0;
        in.gpu = gpu_tile(&in.tile, 0);
        mn_kernels_for(MN_ISA_PLAIN)
            ->init_row(&in.tile.init, in.tile.seed, cases[i][3], in.tile.first_column, 4, MN_F32,
                       expected);
        assert_int_equal(mn_cuda_gather(&in.gpu, gpu_copy(in.offsets, sizeof *in.offsets), 1,
                                        MN_F32, got, sizeof expected, NULL, &in.error),
                         MN_OK);
        assert_true(gpu_equal(got, expected, sizeof expected));
        gpu_free();
        fixture_free(&in.tile);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reads_equal_plain_c),
                                       cmocka_unit_test(test_rows_of_any_number),
                                       cmocka_unit_test(test_wide_rows_and_long_bags)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
