/* CUDA's merges and optimizers against plain C, bit for bit. */
#include "cuda_fixture.h"

enum { ROWS = 60, QUERIES = 30, K = 5, READS = QUERIES * K };

/* The reads of a step and the gradients they carry, for both sides. */
typedef struct step_inputs {
    uint64_t offsets[READS];
    float weights[READS];
    char *gradients; /* [QUERIES] */
    size_t stride;
    const void *pointers[READS];
    mn_contribution contributions[READS];
    mn_sources sources;
    uint64_t count; /* of contributions */
    mn_cuda_sources gpu_sources;
    mn_cuda_plan plan;
    mn_error error;
} step_inputs;

/* `pushes`: every read has a gradient of its own, of weight 1; else k reads of a query share it. */
static void step_inputs_init(step_inputs *in, uint32_t columns, uint32_t column,
                             enum mn_dtype dtype, bool pushes, bool skips)
{
    static mn_contribution scratch[READS];
    uint64_t random = 3, bytes = 0;
    const uint32_t width = mn_dtype_bytes(dtype), gradients = pushes ? READS : QUERIES;
    in->stride = (columns + column) * (size_t)width;
    in->gradients = calloc(gradients, in->stride);
    for (size_t i = 0; i < gradients * in->stride / width; i++) {
        float value = i % 5 ? fixture_uniform(&random) : -0.0f;
        uint16_t narrow = oracle_bf16_nearest(value);
        memcpy(in->gradients + i * width, dtype == MN_F32 ? (void *)&value : &narrow, width);
    }
    in->count = 0;
    for (uint32_t i = 0; i < READS; i++) {
        in->pointers[i] = in->gradients + (i < gradients ? i : 0) * in->stride;
        in->offsets[i] = fixture_random(&random) % (ROWS / 2) * 2 % (i % 3 ? ROWS : 6);
        if (skips && i % 7 == 2)
            in->offsets[i] = MN_NO_ROW;
        in->weights[i] = pushes ? 1 : fixture_uniform(&random);
        if (in->offsets[i] != MN_NO_ROW)
            in->contributions[in->count++] =
                (mn_contribution){in->offsets[i], pushes ? i : i / K, in->weights[i]};
    }
    mn_contributions_sort(in->contributions, scratch, in->count, ROWS);
    in->sources = (mn_sources){in->pointers, dtype, column};
    in->gpu_sources = (mn_cuda_sources){
        .gradients = gpu_copy(in->gradients, gradients * in->stride),
        .stride_bytes = in->stride,
        .weights = pushes ? NULL : gpu_copy(in->weights, sizeof in->weights),
        .dtype = dtype,
        .column = column,
        .per_gradient = pushes ? 1 : K,
    };
    assert_int_equal(mn_cuda_plan_bytes(READS, ROWS, &bytes, &in->error), MN_OK);
    assert_int_equal(mn_cuda_plan_reads(gpu_copy(in->offsets, sizeof in->offsets), READS, ROWS,
                                        gpu_new(bytes), bytes, &in->plan, NULL, &in->error),
                     MN_OK);
}

static void step_inputs_free(step_inputs *in)
{
    free(in->gradients);
    gpu_free();
}

static uint32_t runs_of(const step_inputs *in)
{
    uint32_t runs = 0;
    for (uint64_t i = 0; i < in->count; i++)
        runs += i == 0 || in->contributions[i].offset != in->contributions[i - 1].offset;
    return runs;
}

static void test_plan_sorts_reads_by_row(void **state)
{
    (void)state;
    gpu_need();
    for (int skips = 0; skips < 2; skips++) {
        step_inputs in;
        uint64_t sorted[READS];
        uint32_t order[READS], starts[READS + 1], runs, run = 0;
        step_inputs_init(&in, 4, 0, MN_F32, true, skips);
        gpu_read(in.plan.sorted, sorted, sizeof sorted);
        gpu_read(in.plan.order, order, sizeof order);
        gpu_read(in.plan.starts, starts, sizeof starts);
        gpu_read(in.plan.runs, &runs, sizeof runs);
        assert_int_equal(runs, runs_of(&in));
        for (uint64_t i = 0; i < in.count; i++) {
            assert_int_equal(sorted[i], in.contributions[i].offset);
            assert_int_equal(order[i], in.contributions[i].source);
            if (i == 0 || sorted[i] != sorted[i - 1])
                assert_int_equal(starts[run++], i);
        }
        assert_int_equal(starts[runs], in.count);
        assert_int_equal(skips, in.count < READS);
        step_inputs_free(&in);
    }
}

/* The left fold of the run that begins at contribution `begin`; returns where it ends. */
static uint64_t fold(const step_inputs *in, uint64_t begin, uint32_t columns, float *out_merged)
{
    uint64_t end = begin;
    memset(out_merged, 0, columns * sizeof *out_merged);
    for (; end < in->count && in->contributions[end].offset == in->contributions[begin].offset;
         end++)
        for (uint32_t c = 0; c < columns; c++) {
            const mn_contribution *from = &in->contributions[end];
            volatile float product =
                from->weight *
                oracle_load(in->pointers[from->source], in->sources.column + c, in->sources.dtype);
            out_merged[c] = out_merged[c] + product;
        }
    return end;
}

static void check_merge_rows(step_inputs *in, uint32_t columns)
{
    const uint32_t runs = runs_of(in);
    const mn_tile tile = {.rows = ROWS, .columns = columns};
    float *merged = gpu_new(ROWS * columns * sizeof *merged), *expected = malloc(columns * 4);
    uint64_t *offsets = gpu_new(ROWS * sizeof *offsets), rows[ROWS], end = 0;
    assert_int_equal(
        mn_cuda_merge_rows(&in->plan, &in->gpu_sources, columns, merged, offsets, NULL, &in->error),
        MN_OK);
    gpu_read(offsets, rows, runs * sizeof *rows);
    for (uint32_t r = 0; r < runs; r++) {
        assert_true(rows[r] == in->contributions[end].offset);
        end = fold(in, end, columns, expected);
        assert_true(gpu_equal(merged + (size_t)r * columns, expected, columns * sizeof *expected));
    }
    void *scratch = aligned_alloc(64, mn_merge_scratch_bytes(columns));
    double *squares = gpu_new(ROWS * sizeof *squares), *square = gpu_new(sizeof *square);
    double sum = mn_kernels_for(MN_ISA_PLAIN)
                     ->merge_square(&tile, in->contributions, in->count, &in->sources, scratch);
    assert_int_equal(mn_cuda_merge_square(&in->plan, &in->gpu_sources, columns, squares, square,
                                          NULL, &in->error),
                     MN_OK);
    assert_true(gpu_equal(square, &sum, sizeof sum));
    free(expected);
    free(scratch);
}

static void test_merged_rows_and_their_square(void **state)
{
    (void)state;
    gpu_need();
    for (size_t c = 0; c < ODD_COLUMNS; c++)
        for (int variant = 0; variant < 4; variant++) {
            step_inputs in;
            step_inputs_init(&in, odd_columns[c], variant & 1 ? 5 : 8,
                             variant & 2 ? MN_BF16 : MN_F32, c % 2, c % 3 == 0);
            check_merge_rows(&in, odd_columns[c]);
            step_inputs_free(&in);
        }
}

static void check_apply(step_inputs *in, const fixture_options *options, size_t shift)
{
    const mn_update update = {
        .learning_rate = 0.01f, .weight_decay = 0.1f, .factor = 0.5f, .step = 3};
    mn_tile tile = fixture_tile(options);
    tile.table_rows = (UINT64_C(1) << 40) - 87, tile.row_base = (UINT64_C(1) << 39) + 13;
    tile.row_inverse = 0x9e3779b97eull; /* a row's number takes all of its bits */
    tile.updates[0] = UINT32_MAX;       /* saturated, and read */
    mn_tile gpu = gpu_tile(&tile, shift), before = fixture_copy(&tile);
    void *scratch = aligned_alloc(64, mn_merge_scratch_bytes(options->columns));
    uint64_t zero = 1000, *first = gpu_copy(&zero, sizeof zero);
    for (int step = 0; step < 2; step++) {
        zero +=
            mn_kernels_for(MN_ISA_PLAIN)
                ->merge_apply(&tile, in->contributions, in->count, &in->sources, &update, scratch);
        assert_int_equal(mn_cuda_merge_apply(&gpu, &in->plan, &in->gpu_sources, &update, first,
                                             NULL, &in->error),
                         MN_OK);
        assert_true(gpu_tile_equal(&gpu, &tile));
        assert_true(gpu_equal(first, &zero, sizeof zero));
        assert_false(gpu_tile_equal(&gpu, &before)); /* the comparator can fail */
    }
    free(scratch);
    fixture_free(&tile);
    fixture_free(&before);
}

/* Every optimizer, value, state and gradient type; shapes and places with and without vectors. */
static void test_optimizers_equal_plain_c(void **state)
{
    (void)state;
    gpu_need();
    for (size_t c = 0; c < ODD_COLUMNS; c++)
        for (int i = 0; i < FIXTURE_OPTIMIZERS; i++)
            for (int dtypes = 0; dtypes < 8; dtypes++) {
                const bool even = (c + (size_t)i + (size_t)dtypes / 2) % 3,
                           whole = (i + dtypes) % 3;
                if (odd_columns[c] > 17 && (c + (size_t)i + (size_t)dtypes / 4) % 2)
                    continue; /* wide ones take turns: an emulated GPU is slow */
                fixture_options options = {.rows = ROWS,
                                           .columns = odd_columns[c],
                                           .first_column = even ? 16 : 21,
                                           .dtype = dtypes & 1 ? MN_BF16 : MN_F32,
                                           .optimizer = fixture_optimizer(i),
                                           .init = mn_init_normal(0.5f)};
                if (i != 2)
                    options.optimizer.state_dtype = dtypes & 2 ? MN_BF16 : MN_F32;
                step_inputs in;
                step_inputs_init(&in, odd_columns[c], whole ? 8 : 5, dtypes & 4 ? MN_BF16 : MN_F32,
                                 dtypes % 3 == 0, dtypes % 3 == 1);
                check_apply(&in, &options, c == 5 && i % 2 ? 4 : 0);
                step_inputs_free(&in);
            }
}

/* More gradients than a cache holds, each of two reads: columns are worked off in slabs, of which
 * the last is narrower. */
static void test_slabs_of_columns(void **state)
{
    (void)state;
    gpu_need();
    enum { GRADIENTS = 21000, PAIRS = 2 * GRADIENTS, COLUMNS = 208, FEW = 40 };
    static uint64_t offsets[PAIRS];
    static float weights[PAIRS], gradients[GRADIENTS * COLUMNS];
    static const void *rows[GRADIENTS];
    static mn_contribution list[PAIRS], sort_scratch[PAIRS];
    uint64_t random = 9, bytes = 0;
    const mn_update update = {.learning_rate = 0.01f, .factor = 1, .step = 3};
    const fixture_options options = {.rows = FEW,
                                     .columns = COLUMNS,
                                     .optimizer = mn_adam(0.9f, 0.99f, 1e-6f),
                                     .init = mn_init_normal(0.5f)};
    mn_error error;
    mn_cuda_plan plan;
    for (uint32_t i = 0; i < PAIRS; i++) {
        offsets[i] = fixture_random(&random) % FEW, weights[i] = fixture_uniform(&random);
        list[i] = (mn_contribution){offsets[i], i / 2, weights[i]};
        rows[i / 2] = gradients + (uint64_t)(i / 2) * COLUMNS;
    }
    for (uint64_t i = 0; i < GRADIENTS * COLUMNS; i++)
        gradients[i] = fixture_uniform(&random);
    mn_contributions_sort(list, sort_scratch, PAIRS, FEW);
    mn_tile tile = fixture_tile(&options), gpu = gpu_tile(&tile, 0);
    const mn_sources sources = {rows, MN_F32, 0};
    const mn_cuda_sources same = {.gradients = gpu_copy(gradients, sizeof gradients),
                                  .stride_bytes = COLUMNS * sizeof *gradients,
                                  .weights = gpu_copy(weights, sizeof weights),
                                  .dtype = MN_F32,
                                  .per_gradient = 2};
    void *scratch = aligned_alloc(64, mn_merge_scratch_bytes(COLUMNS));
    mn_kernels_for(MN_ISA_PLAIN)->merge_apply(&tile, list, PAIRS, &sources, &update, scratch);
    assert_int_equal(mn_cuda_plan_bytes(PAIRS, FEW, &bytes, &error), MN_OK);
    assert_int_equal(mn_cuda_plan_reads(gpu_copy(offsets, sizeof offsets), PAIRS, FEW,
                                        gpu_new(bytes), bytes, &plan, NULL, &error),
                     MN_OK);
    assert_int_equal(
        mn_cuda_merge_apply(&gpu, &plan, &same, &update, gpu_new(sizeof(uint64_t)), NULL, &error),
        MN_OK);
    assert_true(gpu_tile_equal(&gpu, &tile));
    free(scratch);
    gpu_free();
    fixture_free(&tile);
}

static void test_updates_name_what_is_wrong(void **state)
{
    (void)state;
    gpu_need();
    uint64_t bytes = 7;
    mn_error error;
    step_inputs in;
    mn_cuda_plan plan;
    assert_int_equal(mn_cuda_plan_bytes(0, 10, &bytes, &error), MN_INVALID);
    assert_string_equal(error.field, "reads");
    assert_int_equal(mn_cuda_plan_bytes(UINT64_C(1) << 32, 10, &bytes, &error), MN_INVALID);
    assert_int_equal(bytes, 7);
    step_inputs_init(&in, 4, 0, MN_F32, true, false);
    assert_int_equal(mn_cuda_plan_bytes(READS, ROWS, &bytes, &error), MN_OK);
    assert_int_equal(mn_cuda_plan_reads(gpu_copy(in.offsets, sizeof in.offsets), READS, ROWS,
                                        gpu_new(1), bytes - 1, &plan, NULL, &error),
                     MN_INVALID);
    assert_string_equal(error.field, "workspace_bytes");
    mn_tile tile = {.rows = ROWS, .columns = 4, .optimizer = {.kind = MN_OPTIMIZER_NONE}};
    const mn_update update = {.factor = 1, .step = 1};
    assert_int_equal(
        mn_cuda_merge_apply(&tile, &in.plan, &in.gpu_sources, &update, NULL, NULL, &error),
        MN_INVALID);
    tile.optimizer = mn_sgd(), tile.rows = ROWS + 1;
    assert_int_equal(
        mn_cuda_merge_apply(&tile, &in.plan, &in.gpu_sources, &update, NULL, NULL, &error),
        MN_INVALID);
    assert_string_equal(error.field, "tile");
    step_inputs_free(&in);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_sorts_reads_by_row),
        cmocka_unit_test(test_merged_rows_and_their_square),
        cmocka_unit_test(test_optimizers_equal_plain_c),
        cmocka_unit_test(test_slabs_of_columns),
        cmocka_unit_test(test_updates_name_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
