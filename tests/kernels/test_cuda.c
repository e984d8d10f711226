/* CUDA kernels against plain C, bit for bit. Skips, visibly, where no GPU is. */
#include "fixture.h"

#include <cuda_runtime_api.h>

enum { ROWS = 60, QUERIES = 7, K = 9, READS = QUERIES * K };

static void *managed(const void *from, size_t bytes)
{
    void *memory = NULL;
    assert_int_equal(cudaMallocManaged(&memory, bytes, cudaMemAttachGlobal), cudaSuccess);
    if (from)
        memcpy(memory, from, bytes);
    else
        memset(memory, 0, bytes);
    return memory;
}

static void check_equal(const void *gpu, const void *cpu, size_t bytes)
{
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    assert_memory_equal(gpu, cpu, bytes);
}

static void check_tile(const fixture_options *options, enum mn_dtype out_dtype)
{
    uint64_t random = 12, offsets[READS];
    float weights[READS];
    mn_error error;
    mn_tile tile = fixture_tile(options);
    tile.table_rows = 211, tile.row_base = 13, tile.row_inverse = 77;
    for (uint32_t i = 0; i < READS; i++) {
        offsets[i] = i % 8 == 5 ? MN_NO_ROW : fixture_random(&random) % ROWS;
        weights[i] = fixture_uniform(&random);
    }
    const mn_kernels *cpu = mn_kernels_for(MN_ISA_PLAIN);
    const size_t row = tile.columns * mn_dtype_bytes(out_dtype);
    char *expected = calloc(READS, row), *got = managed(NULL, READS * row);
    mn_tile device = tile;
    device.values = managed(tile.values, ROWS * tile.columns * mn_dtype_bytes(tile.dtype));
    device.updates = managed(tile.updates, ROWS * sizeof *tile.updates);
    uint64_t *device_offsets = managed(offsets, sizeof offsets);
    float *device_weights = managed(weights, sizeof weights);
    cpu->gather(&tile, offsets, READS, out_dtype, expected, row);
    assert_int_equal(
        mn_cuda_gather(&device, device_offsets, READS, out_dtype, got, row, NULL, &error), MN_OK);
    check_equal(got, expected, READS * row);
    cpu->bag(&tile, offsets, weights, QUERIES, K, out_dtype, expected, row);
    assert_int_equal(mn_cuda_bag(&device, device_offsets, device_weights, QUERIES, K, out_dtype,
                                 got, row, NULL, &error),
                     MN_OK);
    check_equal(got, expected, QUERIES * row);
    for (uint32_t i = 0; i < READS; i++) {
        offsets[i] = device_offsets[i] = fixture_random(&random) >> 24;
        cpu->init_row(&tile.init, tile.seed, offsets[i], tile.first_column, tile.columns, out_dtype,
                      expected + i * row);
    }
    assert_int_equal(mn_cuda_init_rows(&tile.init, tile.seed, device_offsets, READS,
                                       tile.first_column, tile.columns, out_dtype, got, row, NULL,
                                       &error),
                     MN_OK);
    check_equal(got, expected, READS * row);
    void *all[] = {got, device.values, device.updates, device_offsets, device_weights};
    for (int i = 0; i < 5; i++)
        cudaFree(all[i]);
    free(expected);
    fixture_free(&tile);
}

static void test_cuda_equals_plain_c(void **state)
{
    (void)state;
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
        skip();
    const mn_init inits[] = {mn_init_zero(), mn_init_constant(2), mn_init_normal(0.5f),
                             mn_init_uniform(-1, 2)};
    for (size_t c = 0; c < ODD_COLUMNS; c++)
        for (int variant = 0; variant < 16; variant++) {
            fixture_options options = {.rows = ROWS,
                                       .columns = odd_columns[c],
                                       .first_column = 48,
                                       .dtype = variant & 1 ? MN_BF16 : MN_F32,
                                       .init = inits[variant / 4]};
            check_tile(&options, variant & 2 ? MN_BF16 : MN_F32);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cuda_equals_plain_c)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
