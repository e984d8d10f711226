/* The GPU's operations without sums, against the CPU's (trainer/), bit for bit. */
#include "nn_fixture.h"

enum { LENGTHS = 4 };
static const uint64_t lengths[LENGTHS] = {1, 64, 1027, 4096};

typedef both make(uint64_t n);
static make *const makes[2] = {both_uniform, both_shifted};

static void test_activations(void **state)
{
    (void)state;
    gpu_need();
    for (int l = 0; l < LENGTHS; l++)
        for (int shift = 0; shift < 2; shift++) {
            const uint64_t n = lengths[l];
            mn_cuda_nn *nn = nn_open(false, 256);
            both x = makes[shift](n), out = makes[shift](n), d = makes[shift](n);
            x.host[0] = -0.0f;
            for (uint64_t i = 0; i < n; i++) /* far out too, where e^x ends */
                x.host[i] *= i % 5 ? 3 : 70;
            QUEUED(mn_cuda_memory_write, nn, x.gpu, x.host, n * sizeof(float));
            mn_nn_gelu(n, x.host, out.host);
            QUEUED(mn_cuda_nn_gelu, nn, n, x.gpu, out.gpu);
            nn_equal(nn, &out);
            mn_nn_gelu_grad(n, x.host, d.host);
            QUEUED(mn_cuda_nn_gelu_grad, nn, n, x.gpu, d.gpu);
            nn_equal(nn, &d);
            mn_nn_relu(n, x.host);
            QUEUED(mn_cuda_nn_relu, nn, n, x.gpu);
            nn_equal(nn, &x);
            mn_nn_relu_grad(n, x.host, d.host);
            QUEUED(mn_cuda_nn_relu_grad, nn, n, x.gpu, d.gpu);
            nn_equal(nn, &d);
            nn_close(nn);
        }
}

static void test_gates(void **state)
{
    (void)state;
    gpu_need();
    for (int l = 0; l < LENGTHS; l++)
        for (int shift = 0; shift < 2; shift++) {
            const uint64_t n = lengths[l];
            mn_cuda_nn *nn = nn_open(false, 256);
            both y = makes[shift](n), a = makes[shift](n), out = makes[shift](n);
            both d_y = makes[shift](n), d_a = makes[shift](n);
            mn_nn_silu_gate(n, y.host, a.host, out.host);
            QUEUED(mn_cuda_nn_silu_gate, nn, n, y.gpu, a.gpu, out.gpu);
            nn_equal(nn, &out);
            mn_nn_silu_gate_grad(n, y.host, a.host, out.host, d_y.host, d_a.host);
            QUEUED(mn_cuda_nn_silu_gate_grad, nn, n, y.gpu, a.gpu, out.gpu, d_y.gpu, d_a.gpu);
            nn_equal(nn, &d_y);
            nn_equal(nn, &d_a);
            mn_nn_add(n, y.host, a.host);
            QUEUED(mn_cuda_nn_add, nn, n, y.gpu, a.gpu);
            nn_equal(nn, &a);
            mn_nn_scale(n, 0.3f, a.host);
            QUEUED(mn_cuda_nn_scale, nn, n, 0.3f, a.gpu);
            nn_equal(nn, &a);
            nn_close(nn);
        }
}

static void test_bias_and_dropout(void **state)
{
    (void)state;
    gpu_need();
    for (size_t c = 0; c < ODD_COLUMNS; c++) {
        const uint64_t rows = 19;
        const uint32_t width = odd_columns[c];
        mn_cuda_nn *nn = nn_open(false, 256);
        both x = c % 2 ? both_shifted(rows * width) : both_uniform(rows * width);
        both bias = both_uniform(width);
        mn_nn_bias(rows, width, bias.host, x.host);
        QUEUED(mn_cuda_nn_bias, nn, rows, width, bias.gpu, x.gpu);
        nn_equal(nn, &x);
        const uint64_t step = (UINT64_C(1) << 33) + 5, position = (UINT64_C(1) << 32) - 7;
        const mn_dropout dropout = {0x123456789abcdefull, step, position, 11, 0.4f};
        const mn_cuda_dropout same = {0x123456789abcdefull, step, position, 11, 0.4f};
        mn_nn_dropout(&dropout, rows, width, x.host);
        QUEUED(mn_cuda_nn_dropout, nn, &same, rows, width, x.gpu);
        nn_equal(nn, &x);
        nn_close(nn);
    }
}

/* Bytes of which some come often and most never; sequences of one token and of many. */
static void test_embeddings(void **state)
{
    (void)state;
    gpu_need();
    const uint32_t starts[] = {0, 1, 40, 47, 400, 443}, sequences = 5, longest = 353;
    const uint64_t tokens = 443;
    uint64_t random = 4;
    uint8_t bytes[443];
    for (uint64_t t = 0; t < tokens; t++)
        bytes[t] = t % 3 ? (uint8_t)(fixture_random(&random) >> 40) : 'e';
    for (size_t c = 0; c < ODD_COLUMNS; c++) {
        const uint32_t width = odd_columns[c];
        mn_cuda_nn *nn = nn_open(false, 256);
        const mn_sequences batch = {tokens, sequences, longest, starts};
        const mn_cuda_sequences same = {tokens, sequences, longest,
                                        gpu_copy(starts, sizeof starts)};
        const uint8_t *gpu_bytes = gpu_copy(bytes, tokens);
        both table = both_uniform(256 * width), places = both_uniform(longest * width);
        both x = both_uniform(tokens * width);
        mn_nn_embed(&batch, width, bytes, table.host, places.host, x.host);
        QUEUED(mn_cuda_nn_embed, nn, &same, width, gpu_bytes, table.gpu, places.gpu, x.gpu);
        nn_equal(nn, &x);
        mn_nn_embed_grad(&batch, width, bytes, x.host, table.host, places.host);
        QUEUED(mn_cuda_nn_embed_grad, nn, &same, width, gpu_bytes, x.gpu, table.gpu, places.gpu);
        nn_equal(nn, &table);
        nn_equal(nn, &places);
        nn_close(nn);
    }
}

/* What is written beside the work comes after what was queued, and before what is. */
static void test_copies(void **state)
{
    (void)state;
    gpu_need();
    enum { N = 1000 };
    mn_cuda_nn *nn = nn_open(false, 256);
    both x = both_uniform(N), y = both_uniform(N);
    void *pinned = NULL, *memory = NULL, *earlier = NULL, *later = NULL;
    double seconds = -1;
    QUEUED(mn_cuda_pinned_create, N * sizeof(float), &pinned);
    QUEUED(mn_cuda_memory_create, N * sizeof(float), &memory);
    QUEUED(mn_cuda_event_create, &earlier);
    QUEUED(mn_cuda_event_create, &later);
    QUEUED(mn_cuda_event_record, nn, earlier);
    QUEUED(mn_cuda_nn_add, nn, N, y.gpu, x.gpu);
    mn_nn_add(N, y.host, x.host);
    QUEUED(mn_cuda_memory_copy_out, nn, pinned, x.gpu, N * sizeof(float));
    QUEUED(mn_cuda_memory_wait_copies, nn);
    assert_memory_equal(pinned, x.host, N * sizeof(float));
    QUEUED(mn_cuda_memory_copy_in, nn, memory, pinned, N * sizeof(float));
    QUEUED(mn_cuda_memory_copy, nn, y.gpu, memory, N * sizeof(float));
    QUEUED(mn_cuda_event_record, nn, later);
    QUEUED(mn_cuda_memory_wait, nn);
    memcpy(y.host, x.host, N * sizeof(float));
    nn_equal(nn, &y);
    QUEUED(mn_cuda_memory_zero, nn, y.gpu, N / 2 * sizeof(float));
    memset(y.host, 0, N / 2 * sizeof(float));
    nn_equal(nn, &y);
    QUEUED(mn_cuda_event_seconds, earlier, later, &seconds);
    assert_true(seconds >= 0 && seconds < 60);
    mn_cuda_event_destroy(earlier);
    mn_cuda_event_destroy(later);
    mn_cuda_memory_destroy(memory);
    mn_cuda_pinned_destroy(pinned);
    mn_cuda_memory_destroy(NULL);
    mn_cuda_pinned_destroy(NULL);
    mn_cuda_event_destroy(NULL);
    nn_close(nn);
    mn_cuda_nn_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_activations),      cmocka_unit_test(test_gates),
        cmocka_unit_test(test_bias_and_dropout), cmocka_unit_test(test_embeddings),
        cmocka_unit_test(test_copies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
