/* A program built with CUDA, where there is no driver or no GPU: every call says so and harms
 * nothing. Runs for real on any machine: GPUs are hidden from it. */
#include "fixture.h"
#include "mn_nn_cuda.h"

static void check_absent(enum mn_status status, const mn_error *error)
{
    assert_int_equal(status, MN_UNAVAILABLE);
    assert_string_equal(error->field, "device");
    assert_true(strlen(error->message) > strlen("CUDA refused: "));
}

static void test_every_call_says_that_there_is_no_gpu(void **state)
{
    (void)state;
    mn_tile tile = {.rows = 3,
                    .columns = 4,
                    .table_rows = 3,
                    .row_inverse = 1,
                    .optimizer = mn_sgd(),
                    .init = mn_init_zero()};
    uint64_t rows[3] = {0}, bytes = 7;
    float floats[12] = {0};
    double square = 0;
    mn_cuda cuda = {.cache_bytes = 5};
    mn_cuda_queue queue = {.device = 5};
    mn_cuda_plan plan = {.reads = 3, .rows = 3};
    const mn_cuda_sources sources = {.gradients = floats, .stride_bytes = 16, .per_gradient = 1};
    const mn_update update = {.factor = 1, .step = 1};
    mn_error e;
    check_absent(mn_cuda_init_rows(&tile.init, 1, rows, 3, 0, 4, MN_F32, floats, 16, NULL, &e), &e);
    check_absent(mn_cuda_gather(&tile, rows, 3, MN_F32, floats, 16, NULL, &e), &e);
    check_absent(mn_cuda_bag(&tile, rows, floats, 3, 1, MN_F32, floats, 16, NULL, &e), &e);
    check_absent(mn_cuda_bag_dot(&tile, rows, 3, 1, MN_F32, floats, 16, floats, NULL, &e), &e);
    check_absent(mn_cuda_plan_bytes(3, 3, &bytes, &e), &e);
    check_absent(mn_cuda_plan_reads(rows, 3, 3, rows, 1 << 20, &plan, NULL, &e), &e);
    check_absent(mn_cuda_merge_rows(&plan, &sources, 4, floats, rows, NULL, &e), &e);
    check_absent(mn_cuda_merge_square(&plan, &sources, 4, &square, &square, NULL, &e), &e);
    check_absent(mn_cuda_merge_apply(&tile, &plan, &sources, &update, rows, NULL, &e), &e);
    check_absent(mn_cuda_open(&cuda, &e), &e);
    check_absent(mn_cuda_queue_open(0, &queue, &e), &e);
    check_absent(mn_cuda_select(floats, 1, 2, 1, rows, floats, rows, NULL, &e), &e);
    check_absent(mn_cuda_softmax(floats, 3, 1, NULL, &e), &e);
    check_absent(mn_cuda_softmax_grad(floats, floats, 3, 1, floats, NULL, &e), &e);
    assert_int_equal(bytes, 7); /* outputs are as they were */
    assert_int_equal(cuda.cache_bytes, 5);
    assert_int_equal(queue.device, 5);
    assert_true(cuda.blas == NULL && plan.sorted == NULL);
    mn_cuda_close(&cuda);
    mn_cuda_close(NULL);
}

static void test_no_context_is_made_without_a_gpu(void **state)
{
    (void)state;
    const mn_cuda_nn_options options = {.device = 0};
    const mn_search search = {3, 1, 4, 2, 2};
    mn_cuda_nn *nn = NULL;
    void *memory = NULL;
    uint64_t bytes = 7;
    mn_error e;
    check_absent(mn_cuda_nn_create(&options, &nn, &e), &e);
    check_absent(mn_cuda_memory_create(16, &memory, &e), &e);
    check_absent(mn_cuda_pinned_create(16, &memory, &e), &e);
    check_absent(mn_cuda_event_create(&memory, &e), &e);
    check_absent(mn_cuda_nn_search_grad_bytes(&search, &bytes, &e), &e);
    assert_true(nn == NULL && memory == NULL && bytes == 7);
    mn_cuda_nn_destroy(nn);
    mn_cuda_memory_destroy(NULL);
    mn_cuda_pinned_destroy(NULL);
    mn_cuda_event_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_call_says_that_there_is_no_gpu),
                                       cmocka_unit_test(test_no_context_is_made_without_a_gpu)};
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
