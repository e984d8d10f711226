/* What requests bring to a GPU, against plain C and plain loops: offsets, weights, states, stores,
 * sources in several arrays, squares by blocks; memory and copies. */
#include "cuda_fixture.h"

enum { ROWS = 60, READS = 150 };

static uint32_t read_word(const uint32_t *gpu)
{
    uint32_t word;
    gpu_read(gpu, &word, sizeof word);
    return word;
}

static uint32_t *zero_word(void)
{
    const uint32_t zero = 0;
    return gpu_copy(&zero, sizeof zero);
}

/* ---- Offsets ---- */

static uint64_t expected_offset(const mn_cuda_places *places, uint64_t row, bool *bad)
{
    *bad = *bad || row >= places->rows;
    if (row >= places->rows)
        return MN_NO_ROW;
    const uint64_t position =
        (uint64_t)((unsigned __int128)places->multiplier * row % places->rows);
    if (position >= places->first && position < places->end)
        return position - places->base;
    *bad = *bad || !places->skip;
    return MN_NO_ROW;
}

static void put_bits(uint8_t *to, uint32_t bits, uint64_t i, uint64_t value)
{
    for (uint32_t b = 0; b < bits; b++)
        if (value >> b & 1)
            to[(i * bits + b) / 8] |= (uint8_t)(1u << (i * bits + b) % 8);
}

static void check_offsets(const mn_cuda_places *places, uint32_t bits, uint64_t odd)
{
    uint8_t indices[READS * 8] = {0};
    uint64_t random = 9, expected[READS];
    uint64_t *got = gpu_new(sizeof expected);
    uint32_t *bad = zero_word();
    bool wrong = false;
    mn_error error;
    for (uint32_t i = 0; i < READS; i++) {
        const uint64_t any = places->rows < READS ? i : fixture_random(&random);
        const uint64_t row = odd && i == 77 ? odd : any % places->rows;
        put_bits(indices, bits, i, row);
        expected[i] = expected_offset(places, row, &wrong);
    }
    void *gpu = gpu_copy(indices, (READS * bits + 7) / 8); /* nothing is read behind them */
    assert_int_equal(mn_cuda_offsets(places, bits, gpu, READS, got, bad, NULL, &error), MN_OK);
    assert_true(gpu_equal(got, expected, sizeof expected));
    assert_int_equal(read_word(bad), wrong);
    gpu_free();
}

static void test_offsets(void **state)
{
    (void)state;
    gpu_need();
    const uint64_t huge = (UINT64_C(1) << 40) - 87;
    const mn_cuda_places all[] = {
        {.rows = 100, .multiplier = 37, .base = 10, .first = 20, .end = 60, .skip = true},
        {.rows = 5000, .multiplier = 1, .end = 5000},
        {.rows = 5000, .multiplier = 3083, .base = 1000, .first = 1000, .end = 3000},
        {.rows = 5000, .multiplier = 3083, .base = 1000, .first = 1500, .end = 3000, .skip = true},
        {.rows = huge,
         .multiplier = 679527235381,
         .base = 5,
         .first = 9,
         .end = huge,
         .skip = true},
        {.rows = huge, .multiplier = 679527235381, .end = huge},
    };
    for (size_t p = 0; p < sizeof all / sizeof *all; p++) {
        const bool large = all[p].rows == huge;
        check_offsets(&all[p], large ? 40 : 13, 0);
        check_offsets(&all[p], 64, 0);
        check_offsets(&all[p], 64, all[p].rows);
        check_offsets(&all[p], 64, UINT64_MAX); /* -1 */
        check_offsets(&all[p], large ? 40 : 13, large ? huge + 3 : 8191);
        if (!large)
            check_offsets(&all[p], 32, 0);
    }
}

/* ---- Numbers ---- */

static void test_numbers(void **state)
{
    (void)state;
    gpu_need();
    mn_error error;
    float values[READS], wide[READS];
    uint16_t narrow[READS];
    uint64_t random = 2;
    for (uint32_t i = 0; i < READS; i++) {
        values[i] = i == 3 ? -0.0f : i == 5 ? 3.4e38f : fixture_uniform(&random);
        narrow[i] = oracle_bf16_nearest(values[i]);
        wide[i] = oracle_bf16_widen(narrow[i]);
    }
    float *out = gpu_new(sizeof values), *in = gpu_copy(values, sizeof values);
    uint32_t *bad = zero_word();
    assert_int_equal(mn_cuda_weights(MN_F32, in, READS, out, bad, NULL, &error), MN_OK);
    assert_true(gpu_equal(out, values, sizeof values));
    uint16_t *in_narrow = gpu_copy(narrow, sizeof narrow);
    narrow[5] = 0x7f7f; /* the largest */
    assert_int_equal(mn_cuda_weights(MN_BF16, in_narrow, 5, out, bad, NULL, &error), MN_OK);
    assert_true(gpu_equal(out, wide, 5 * sizeof *wide));
    assert_int_equal(
        mn_cuda_weights(MN_BF16, gpu_copy(narrow, sizeof narrow), READS, NULL, bad, NULL, &error),
        MN_OK);
    assert_int_equal(read_word(bad), 0);
    const float odd[] = {INFINITY, -INFINITY, NAN};
    for (int i = 0; i < 3; i++)
        for (int dtype = 0; dtype < 2; dtype++) {
            float f32[2] = {1, odd[i]};
            uint16_t bf16[2] = {0x3f80, oracle_bf16_nearest(odd[i])};
            const void *one = dtype ? gpu_copy(bf16, sizeof bf16) : gpu_copy(f32, sizeof f32);
            bad = zero_word();
            assert_int_equal(
                mn_cuda_weights(dtype ? MN_BF16 : MN_F32, one, 2, NULL, bad, NULL, &error), MN_OK);
            assert_int_equal(read_word(bad), 1);
        }
    gpu_free();
}

static void test_bytes_are_compared(void **state)
{
    (void)state;
    gpu_need();
    mn_error error;
    uint8_t bytes[1001];
    memset(bytes, 7, sizeof bytes);
    uint8_t *a = gpu_copy(bytes, sizeof bytes);
    for (uint32_t at = 0; at <= sizeof bytes; at += 500)
        for (uint32_t count = 1000; count <= 1001; count++) {
            uint32_t *bad = zero_word();
            if (at < sizeof bytes)
                bytes[at] ^= 16;
            uint8_t *b = gpu_copy(bytes, sizeof bytes);
            assert_int_equal(mn_cuda_compare(a, b, count, bad, NULL, &error), MN_OK);
            assert_int_equal(read_word(bad), at < count);
            if (at < sizeof bytes)
                bytes[at] ^= 16;
        }
    gpu_free();
}

static void test_arrays_are_added_in_order(void **state)
{
    (void)state;
    gpu_need();
    mn_error error;
    float arrays[3][READS], sums[READS], *out = gpu_new(sizeof sums);
    uint64_t random = 4;
    for (uint32_t i = 0; i < READS; i++) {
        volatile float sum = 0;
        for (int a = 0; a < 3; a++) {
            arrays[a][i] = i == 0 ? -0.0f : fixture_uniform(&random) * (a == 1 ? 1e7f : 1);
            sum = sum + arrays[a][i];
        }
        sums[i] = sum;
    }
    assert_int_equal(
        mn_cuda_add_arrays(gpu_copy(arrays, sizeof arrays), 3, READS, out, NULL, &error), MN_OK);
    assert_true(gpu_equal(out, sums, sizeof sums)); /* and +0 where all are -0 */
    gpu_free();
}

/* ---- States and stores ---- */

static mn_optimizer optimizer_number(int i, enum mn_dtype state_dtype)
{
    mn_optimizer all[] = {{.kind = MN_OPTIMIZER_NONE},
                          mn_adagrad(1e-6f),
                          mn_rowwise_adagrad(1e-6f),
                          mn_adam(0.9f, 0.99f, 1e-6f)};
    all[1].beta1 = all[2].beta1 = 0.123f; /* not exact in bf16 */
    if (i != 2)
        all[i].state_dtype = state_dtype;
    return all[i];
}
enum { OPTIMIZERS = 4 };

static void check_gather_state(const mn_tile *tile, const mn_tile *gpu, const uint64_t *offsets)
{
    const size_t stride = mn_state_row_bytes(&tile->optimizer, tile->columns) + 8;
    char *expected = malloc(READS * stride), *got = gpu_new(READS * stride);
    mn_error error;
    memset(expected, 0xa5, READS * stride);
    mn_kernels_for(MN_ISA_PLAIN)->gather_state(tile, offsets, READS, expected, stride);
    assert_int_equal(mn_cuda_gather_state(gpu, gpu_copy(offsets, READS * sizeof *offsets), READS,
                                          got, stride, NULL, &error),
                     MN_OK);
    assert_true(gpu_equal(got, expected, READS * stride));
    free(expected);
}

/* Rows that come twice, rows that are another's; with states, or the initial ones. */
static void check_store(mn_tile *tile, mn_tile *gpu, const uint64_t *offsets, enum mn_dtype dtype,
                        bool states)
{
    const size_t stride = tile->columns * mn_dtype_bytes(dtype) + 4;
    const size_t state_stride = mn_state_row_bytes(&tile->optimizer, tile->columns) + 4;
    char *rows = malloc(READS * stride), *state = malloc(READS * state_stride);
    uint64_t random = 8, bytes, first = 7, *gpu_first = gpu_copy(&first, sizeof first);
    mn_cuda_plan plan;
    mn_error error;
    for (size_t i = 0; i < READS * stride / 4; i++)
        ((uint32_t *)rows)[i] = (uint32_t)fixture_random(&random) & 0x7f7fff7f; /* finite */
    for (size_t i = 0; i < READS * state_stride; i++)
        state[i] = (char)fixture_random(&random);
    tile->updates[0] = UINT32_MAX - 1; /* to be saturated */
    gpu->updates = gpu_copy(tile->updates, ROWS * sizeof *tile->updates);
    first +=
        mn_kernels_for(MN_ISA_PLAIN)
            ->store(tile, offsets, READS, dtype, rows, stride, states ? state : NULL, state_stride);
    assert_int_equal(mn_cuda_plan_bytes(READS, ROWS, &bytes, &error), MN_OK);
    assert_int_equal(mn_cuda_plan_reads(gpu_copy(offsets, READS * sizeof *offsets), READS, ROWS,
                                        gpu_new(bytes), bytes, &plan, NULL, &error),
                     MN_OK);
    assert_int_equal(mn_cuda_store(gpu, &plan, dtype, gpu_copy(rows, READS * stride), stride,
                                   states ? gpu_copy(state, READS * state_stride) : NULL,
                                   state_stride, gpu_first, NULL, &error),
                     MN_OK);
    assert_true(gpu_equal(gpu_first, &first, sizeof first));
    assert_true(gpu_tile_equal(gpu, tile));
    tile->updates[1]++;
    assert_false(gpu_tile_equal(gpu, tile)); /* the comparator can fail */
    free(rows);
    free(state);
}

static void test_states_and_stores(void **state)
{
    (void)state;
    gpu_need();
    const uint32_t widths[] = {1, 17, 64};
    for (int i = 0; i < OPTIMIZERS; i++)
        for (int variant = 0; variant < 24; variant++) {
            fixture_options options = {.rows = ROWS,
                                       .columns = widths[variant % 3],
                                       .first_column = 16,
                                       .dtype = variant & 4 ? MN_BF16 : MN_F32,
                                       .optimizer =
                                           optimizer_number(i, variant & 8 ? MN_BF16 : MN_F32),
                                       .init = mn_init_normal(0.5f)};
            mn_tile tile = fixture_tile(&options), gpu = gpu_tile(&tile, 0);
            uint64_t random = 3, offsets[READS];
            for (uint32_t r = 0; r < READS; r++)
                offsets[r] = r % 9 == 4 ? MN_NO_ROW : fixture_random(&random) % (ROWS - 10);
            check_gather_state(&tile, &gpu, offsets);
            check_store(&tile, &gpu, offsets, variant & 1 ? MN_BF16 : MN_F32, variant & 2);
            fixture_free(&tile);
            gpu_free();
        }
}

/* ---- Sources in several arrays; squares by blocks ---- */

enum { PIECES = 3, QUERIES = 10, K = 5, PIECE_READS = QUERIES * K };

/* A step's gradients: three pieces, the second one of pushes, for both sides. */
struct pieces {
    enum mn_dtype dtype;
    uint32_t columns;
    size_t stride;
    char *gradients;
    const void *rows[READS];
    uint64_t count, offsets[READS];
    float weights[READS];
    mn_contribution contributions[READS];
    mn_sources sources;
    mn_cuda_sources gpu_sources;
    mn_cuda_plan plan;
};
enum { SKIPPED = 16 }; /* columns before the tile's */

static void add_piece(struct pieces *in, uint32_t piece, uint32_t source, uint64_t *random)
{
    const uint32_t per = piece == 1 ? 1 : K, first = piece * PIECE_READS;
    mn_error error;
    char *from = in->gradients + source * in->stride;
    float *gpu_weights = (float *)(uintptr_t)in->gpu_sources.weights + first;
    for (uint32_t i = 0; i < PIECE_READS; i++) {
        const uint64_t offset = i % 7 == 3 ? MN_NO_ROW : fixture_random(random) % ROWS;
        in->weights[first + i] = piece == 1 ? 1 : fixture_uniform(random);
        in->rows[source + i / per] = from + i / per * in->stride;
        in->offsets[first + i] = offset;
        if (offset != MN_NO_ROW)
            in->contributions[in->count++] =
                (mn_contribution){offset, source + i / per, in->weights[first + i]};
    }
    if (piece != 1)
        assert_int_equal(cudaMemcpy(gpu_weights, in->weights + first,
                                    PIECE_READS * sizeof *gpu_weights, cudaMemcpyHostToDevice),
                         cudaSuccess);
    assert_int_equal(mn_cuda_number_sources(gpu_copy(from, PIECE_READS / per * in->stride),
                                            in->stride, PIECE_READS / per, per, source,
                                            (uint32_t *)(uintptr_t)in->gpu_sources.numbers + first,
                                            (const void **)(uintptr_t)in->gpu_sources.rows + source,
                                            piece == 1 ? gpu_weights : NULL, NULL, &error),
                     MN_OK);
}

static void pieces_init(struct pieces *in, enum mn_dtype dtype, uint32_t columns)
{
    static mn_contribution scratch[READS];
    uint64_t random = 5, bytes;
    mn_error error;
    memset(in, 0, sizeof *in);
    in->dtype = dtype, in->columns = columns;
    in->stride = (columns + SKIPPED) * (size_t)mn_dtype_bytes(dtype);
    in->gradients = malloc(READS * in->stride);
    for (size_t i = 0; i < READS * in->stride / 2; i++) /* bf16 of [1/2, 1), f32 likewise */
        ((uint16_t *)in->gradients)[i] = 0x3f00 + (uint16_t)(fixture_random(&random) % 0x80);
    in->sources = (mn_sources){in->rows, dtype, SKIPPED};
    in->gpu_sources = (mn_cuda_sources){.stride_bytes = in->stride,
                                        .weights = gpu_new(READS * sizeof(float)),
                                        .dtype = dtype,
                                        .column = SKIPPED,
                                        .rows = gpu_new(READS * sizeof(void *)),
                                        .numbers = gpu_new(READS * sizeof(uint32_t))};
    add_piece(in, 0, 0, &random);
    add_piece(in, 1, QUERIES, &random);
    add_piece(in, 2, QUERIES + PIECE_READS, &random);
    mn_contributions_sort(in->contributions, scratch, in->count, ROWS);
    assert_int_equal(mn_cuda_plan_bytes(READS, ROWS, &bytes, &error), MN_OK);
    assert_int_equal(mn_cuda_plan_reads(gpu_copy(in->offsets, sizeof in->offsets), READS, ROWS,
                                        gpu_new(bytes), bytes, &in->plan, NULL, &error),
                     MN_OK);
}

/* Blocks of rows, the last one beyond the tile's end. */
static void check_squares(const struct pieces *in, uint64_t rows_per_block)
{
    enum { BLOCKS_MAX = 8 };
    const uint32_t blocks = (uint32_t)(ROWS / rows_per_block) + 1;
    const mn_tile tile = {.rows = ROWS, .columns = in->columns};
    double expected[BLOCKS_MAX] = {0}, *got = gpu_new(sizeof expected);
    void *scratch = aligned_alloc(64, mn_merge_scratch_bytes(in->columns));
    mn_error error;
    assert_true(blocks <= BLOCKS_MAX);
    for (uint64_t b = 0, begin = 0, end = 0; b < blocks; b++, begin = end) {
        while (end < in->count && in->contributions[end].offset < (b + 1) * rows_per_block)
            end++;
        if (end > begin)
            expected[b] = mn_kernels_for(MN_ISA_PLAIN)
                              ->merge_square(&tile, in->contributions + begin, end - begin,
                                             &in->sources, scratch);
    }
    assert_int_equal(mn_cuda_merge_squares(&in->plan, &in->gpu_sources, in->columns, rows_per_block,
                                           blocks, gpu_new(ROWS * sizeof(double)), got, NULL,
                                           &error),
                     MN_OK);
    assert_true(gpu_equal(got, expected, blocks * sizeof *expected));
    assert_true(expected[0] != expected[1]);
    free(scratch);
}

static void check_moves(const struct pieces *in)
{
    const fixture_options options = {
        .rows = ROWS, .columns = in->columns, .optimizer = mn_adamw(0.9f, 0.95f, 1e-8f)};
    const mn_update update = {
        .learning_rate = 0.01f, .weight_decay = 0.1f, .factor = 0.5f, .step = 3};
    mn_tile tile = fixture_tile(&options), gpu = gpu_tile(&tile, 0);
    uint64_t first = 0, *gpu_first = gpu_copy(&first, sizeof first);
    void *scratch = aligned_alloc(64, mn_merge_scratch_bytes(in->columns));
    mn_error error;
    first += mn_kernels_for(MN_ISA_PLAIN)
                 ->merge_apply(&tile, in->contributions, in->count, &in->sources, &update, scratch);
    assert_int_equal(
        mn_cuda_merge_apply(&gpu, &in->plan, &in->gpu_sources, &update, gpu_first, NULL, &error),
        MN_OK);
    assert_true(gpu_tile_equal(&gpu, &tile));
    assert_true(gpu_equal(gpu_first, &first, sizeof first));
    fixture_free(&tile);
    free(scratch);
}

static void test_sources_in_pieces(void **state)
{
    (void)state;
    gpu_need();
    for (int variant = 0; variant < 4; variant++) {
        struct pieces in;
        pieces_init(&in, variant & 1 ? MN_BF16 : MN_F32, variant & 2 ? 48 : 31);
        check_squares(&in, ROWS);
        check_squares(&in, 17);
        check_moves(&in);
        free(in.gradients);
        gpu_free();
    }
}

/* ---- Memory ---- */

static void test_memory(void **state)
{
    (void)state;
    gpu_need();
    enum { BYTES = 100000 };
    mn_cuda_queue queue, none = {0};
    mn_error error;
    uint8_t *host = malloc(BYTES), *back = malloc(BYTES);
    assert_int_equal(mn_cuda_queue_open(1000, &queue, &error), MN_UNAVAILABLE);
    assert_string_equal(error.field, "device");
    mn_cuda_queue_close(&none);
    assert_int_equal(mn_cuda_queue_open(0, &queue, &error), MN_OK);
    for (uint32_t i = 0; i < BYTES; i++)
        host[i] = (uint8_t)(i * 7);
    uint8_t *block = mn_cuda_take(&queue, BYTES), *tile = mn_cuda_reserve(&queue, BYTES);
    assert_true(block && tile);
    void *mark = NULL;
    assert_int_equal(mn_cuda_mark(&queue, NULL, &mark, &error), MN_OK);
    assert_int_equal(mn_cuda_queue_follow(&queue, mark, &error), MN_OK);
    mn_cuda_unmark(&queue, mark);
    assert_int_equal(mn_cuda_zero(&queue, tile, BYTES, &error), MN_OK);
    assert_int_equal(mn_cuda_copy(&queue, block, host, BYTES, &error), MN_OK);
    assert_int_equal(mn_cuda_copy(&queue, tile + 1, block, BYTES - 1, &error), MN_OK);
    assert_int_equal(mn_cuda_copy(&queue, back, block, BYTES, &error), MN_OK);
    assert_int_equal(mn_cuda_queue_wait(&queue, &error), MN_OK);
    assert_memory_equal(back, host, BYTES);
    assert_true(tile[0] == 0 && !memcmp(tile + 1, host, BYTES - 1)); /* the host sees it */
    memset(back, 0, BYTES);
    assert_int_equal(mn_cuda_read(&queue, back, block, BYTES, &error), MN_OK);
    assert_memory_equal(back, host, BYTES);
    assert_int_equal(*queue.bad, 0);
    const float nan = NAN; /* and what the device writes to *bad */
    assert_int_equal(mn_cuda_copy(&queue, block, &nan, sizeof nan, &error), MN_OK);
    assert_int_equal(mn_cuda_weights(MN_F32, block, 1, NULL, queue.bad, queue.stream, &error),
                     MN_OK);
    assert_int_equal(mn_cuda_queue_wait(&queue, &error), MN_OK);
    assert_int_equal(*queue.bad, 1);
    mn_cuda_give(&queue, block);
    mn_cuda_give(&queue, NULL);
    mn_cuda_unreserve(&queue, tile);
    mn_cuda_queue_close(&queue);
    free(host);
    free(back);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_offsets),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_bytes_are_compared),
        cmocka_unit_test(test_arrays_are_added_in_order),
        cmocka_unit_test(test_states_and_stores),
        cmocka_unit_test(test_sources_in_pieces),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
