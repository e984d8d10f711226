/* The GPU's products and attention: exactly on small integers, else against the CPU (trainer/) with
 * bounds that come from a double-precision run of obvious loops. */
#include "nn_fixture.h"

enum { SCRATCH = 1 << 21 };

/* ---- Products */

typedef struct product_shape {
    bool transpose_a, transpose_b;
    uint64_t m, n, k;
    float alpha, beta;
} product_shape;

static void plain_product(const product_shape *p, const float *a, const float *b, float *c)
{
    for (uint64_t i = 0; i < p->m; i++)
        for (uint64_t j = 0; j < p->n; j++) {
            double sum = 0;
            for (uint64_t s = 0; s < p->k; s++)
                sum += (double)a[p->transpose_a ? s * p->m + i : i * p->k + s] *
                       (double)b[p->transpose_b ? j * p->k + s : s * p->n + j];
            float *to = c + i * p->n + j;
            *to = (float)((double)p->alpha * sum +
                          (p->beta == 0 ? 0 : (double)p->beta * (double)*to));
        }
}

static void test_products_are_exact_on_integers(void **state)
{
    (void)state;
    gpu_need();
    for (int i = 0; i < 16; i++) {
        const product_shape p = {i & 1, i & 2, 19, 34, 25, i & 4 ? 0.5f : 1, i & 8 ? 1 : 0};
        for (int bf16 = 0; bf16 < 2; bf16++) {
            mn_cuda_nn *nn = nn_open(bf16, SCRATCH);
            both a = both_integer(p.m * p.k), b = both_integer(p.k * p.n);
            both c = both_integer(p.m * p.n);
            plain_product(&p, a.host, b.host, c.host);
            QUEUED(mn_cuda_nn_gemm, nn, p.transpose_a, p.transpose_b, p.m, p.n, p.k, p.alpha, a.gpu,
                   b.gpu, p.beta, c.gpu);
            nn_equal(nn, &c);
            nn_close(nn);
        }
    }
}

/* f32 factors are taken as they are; bf16 ones are rounded, and not more than once. */
static void test_factors_are_rounded_to_bf16(void **state)
{
    (void)state;
    gpu_need();
    const product_shape p = {false, false, 5, 6, 1, 1, 0};
    for (int bf16 = 0; bf16 < 2; bf16++) {
        mn_cuda_nn *nn = nn_open(bf16, SCRATCH);
        both a = both_uniform(p.m), b = both_uniform(p.n), c = both_uniform(p.m * p.n);
        for (uint64_t i = 0; i < c.n; i++) {
            const float x = a.host[i / p.n], y = b.host[i % p.n];
            c.host[i] = bf16 ? oracle_bf16_widen(oracle_bf16_nearest(x)) *
                                   oracle_bf16_widen(oracle_bf16_nearest(y))
                             : x * y;
        }
        QUEUED(mn_cuda_nn_gemm, nn, false, false, p.m, p.n, p.k, 1, a.gpu, b.gpu, 0, c.gpu);
        nn_equal(nn, &c);
        nn_close(nn);
    }
}

/* ---- Copies in bf16 beside the arrays: the same bits as without them */

enum { ROWS = 24, WIDTH = 32, ARRAYS = 6 };

/* A chain of operations whose outputs are factors; `arena` [ARRAYS][ROWS * WIDTH]. */
static void run_chain(mn_cuda_nn *nn, float *arena, const both *x, const both *weights)
{
    float *at[ARRAYS];
    for (int i = 0; i < ARRAYS; i++)
        at[i] = arena + i * ROWS * WIDTH;
    QUEUED(mn_cuda_memory_copy, nn, at[0], x->gpu, x->n * sizeof(float));
    QUEUED(mn_cuda_nn_norm, nn, ROWS, WIDTH, at[0], weights->gpu, at[5], at[5] + ROWS, at[1]);
    for (int twice = 0; twice < 2; twice++) /* the second time from the copies made */
        QUEUED(mn_cuda_nn_gemm, nn, false, false, ROWS, WIDTH, WIDTH, 1, at[1], weights->gpu,
               (float)twice, at[2]);
    QUEUED(mn_cuda_nn_gelu, nn, ROWS * WIDTH, at[2], at[3]);
    QUEUED(mn_cuda_nn_gemm, nn, true, false, WIDTH, WIDTH, ROWS - 8, 1, at[3], at[2], 0, at[4]);
    QUEUED(mn_cuda_nn_relu, nn, ROWS * WIDTH / 2, at[2]); /* the copy of half is not the whole's */
    QUEUED(mn_cuda_nn_gemm, nn, false, true, ROWS, ROWS, WIDTH, 1, at[2], at[3], 1, at[4]);
    QUEUED(mn_cuda_nn_relu, nn, ROWS * WIDTH, at[2]);
    QUEUED(mn_cuda_nn_gemm, nn, false, true, ROWS, ROWS, WIDTH, 1, at[2], at[3], 1, at[4]);
    QUEUED(mn_cuda_nn_add, nn, ROWS * WIDTH, at[3], at[2]); /* its copy is no longer current */
    QUEUED(mn_cuda_nn_gemm, nn, false, true, ROWS, ROWS, WIDTH, 1, at[2], at[3], 1, at[4]);
}

static void test_copies_change_no_bit(void **state)
{
    (void)state;
    gpu_need();
    const uint64_t n = ARRAYS * ROWS * WIDTH, of_one = ROWS * WIDTH * sizeof(float);
    mn_cuda_nn *nn = nn_open(true, SCRATCH);
    both x = both_uniform(ROWS * WIDTH), weights = both_uniform(WIDTH * WIDTH);
    float *arena = gpu_new(n * sizeof(float));
    QUEUED(mn_cuda_memory_zero, nn, arena, n * sizeof(float));
    run_chain(nn, arena, &x, &weights);
    both plain = {nn_host(n * sizeof(float)), arena, n};
    QUEUED(mn_cuda_memory_read, nn, plain.host, arena, n * sizeof(float));
    QUEUED(mn_cuda_memory_zero, nn, arena, n * sizeof(float));
    mn_cuda_nn_lend_narrow(nn, arena, n * sizeof(float), gpu_new(n * 2));
    run_chain(nn, arena, &x, &weights);
    nn_equal(nn, &plain);
    /* Written by others: the copy is stale until that is said. */
    float *product = arena + 4 * ROWS * WIDTH, stale[ROWS * ROWS], told[ROWS * ROWS];
    QUEUED(mn_cuda_nn_gelu, nn, ROWS * WIDTH, x.gpu, arena);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    assert_int_equal(cudaMemcpy(arena, weights.gpu, of_one, cudaMemcpyDeviceToDevice), cudaSuccess);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    QUEUED(mn_cuda_nn_gemm, nn, false, true, ROWS, ROWS, WIDTH, 1, arena, x.gpu, 0, product);
    QUEUED(mn_cuda_memory_read, nn, stale, product, sizeof stale);
    mn_cuda_nn_written(nn, arena + ROWS, sizeof(float));
    QUEUED(mn_cuda_nn_gemm, nn, false, true, ROWS, ROWS, WIDTH, 1, arena, x.gpu, 0, product);
    QUEUED(mn_cuda_memory_read, nn, told, product, sizeof told);
    assert_true(memcmp(stale, told, sizeof told) != 0);
    mn_cuda_nn_lend_narrow(nn, NULL, 0, NULL);
    QUEUED(mn_cuda_nn_gemm, nn, false, true, ROWS, ROWS, WIDTH, 1, arena, x.gpu, 0, product);
    QUEUED(mn_cuda_memory_read, nn, stale, product, sizeof stale);
    assert_memory_equal(stale, told, sizeof told);
    nn_close(nn);
}

/* ---- Attention */

enum { SEQUENCES = 5 };
static const uint32_t starts[SEQUENCES + 1] = {0, 1, 64, 129, 269, 277}; /* 1, 63, 65, 140, 8 */
enum { TOKENS = 277, LONGEST = 140 };

/* In double: the magnitudes of what each result adds up. */
typedef struct sizes {
    double *out, *d_qkv;
    double score; /* the largest sum of |query * key| / sqrt(dim) */
} sizes;

typedef struct attention_case {
    uint32_t heads, dim;
    both qkv, d_out, log_sums, out, d_qkv;
    sizes sizes;
} attention_case;

static double dot(const float *a, const float *b, uint32_t n, double *out_size)
{
    double sum = 0;
    *out_size = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += (double)a[i] * (double)b[i];
        *out_size += fabs((double)a[i] * (double)b[i]);
    }
    return sum;
}

/* One query of one head: `first` is its sequence's first token. */
static void size_row(attention_case *c, uint64_t first, uint64_t token, uint32_t h)
{
    const uint64_t width = (uint64_t)c->heads * c->dim, stride = 3 * width;
    const double scale = 1 / sqrt((double)c->dim);
    const float *query = c->qkv.host + token * stride + (uint64_t)h * c->dim;
    const float *d_out = c->d_out.host + token * width + (uint64_t)h * c->dim;
    double p[LONGEST], size, total = 0, out[256] = {0}, inner = 0;
    for (uint64_t k = first; k <= token; k++) {
        const float *key = c->qkv.host + k * stride + width + (uint64_t)h * c->dim;
        p[k - first] = exp(scale * dot(query, key, c->dim, &size));
        total += p[k - first];
        c->sizes.score = fmax(c->sizes.score, scale * size);
    }
    for (uint64_t k = first; k <= token; k++)
        for (uint32_t i = 0; i < c->dim; i++)
            out[i] += p[k - first] / total *
                      fabs((double)c->qkv.host[k * stride + 2 * width + h * c->dim + i]);
    for (uint32_t i = 0; i < c->dim; i++) {
        c->sizes.out[token * width + h * c->dim + i] = out[i];
        inner += fabs((double)d_out[i]) * out[i];
    }
    for (uint64_t k = first; k <= token; k++) {
        const float *key = c->qkv.host + k * stride + width + (uint64_t)h * c->dim;
        double slope;
        (void)dot(d_out, key + width, c->dim, &slope);
        const double d_score = scale * p[k - first] / total * (slope + inner);
        double *to = c->sizes.d_qkv + token * stride + h * c->dim;
        double *to_key = c->sizes.d_qkv + k * stride + width + h * c->dim;
        for (uint32_t i = 0; i < c->dim; i++) {
            to[i] += d_score * fabs((double)key[i]);
            to_key[i] += d_score * fabs((double)query[i]);
            to_key[width + i] += p[k - first] / total * fabs((double)d_out[i]);
        }
    }
}

/* Numbers that bf16 holds exactly: sixteenths, up to 1. */
static both both_sixteenths(uint64_t n)
{
    both array = both_uniform(n);
    for (uint64_t i = 0; i < n; i++)
        array.host[i] = rintf(array.host[i] * 16) / 16;
    return both_from(array.host, n);
}

static attention_case attention_case_of(uint32_t heads, uint32_t dim)
{
    const uint64_t width = (uint64_t)heads * dim;
    attention_case c = {heads,
                        dim,
                        both_sixteenths(TOKENS * 3 * width),
                        both_sixteenths(TOKENS * width),
                        both_uniform(TOKENS * heads),
                        both_uniform(TOKENS * width),
                        both_uniform(TOKENS * 3 * width),
                        {0}};
    c.sizes.out = nn_host(c.out.n * sizeof(double));
    c.sizes.d_qkv = nn_host(c.d_qkv.n * sizeof(double));
    for (uint32_t s = 0; s < SEQUENCES; s++)
        for (uint64_t t = starts[s]; t < starts[s + 1]; t++)
            for (uint32_t h = 0; h < heads; h++)
                size_row(&c, starts[s], t, h);
    return c;
}

/* How far the GPU and the CPU may be apart, as a share of those magnitudes: a score's error becomes
 * a relative one of its exponential (and of their sum, once more), exponentials are good to 4 UNIT,
 * and sums have `dim` or LONGEST terms. bf16: probabilities and their gradients are rounded by up
 * to 2^-8 of themselves, once for out, twice for d_qkv (whose `inner` is made of out). */
static double share_of(const attention_case *c, bool bf16, bool backward)
{
    const double score = 2 * (c->dim + 4) * UNIT * c->sizes.score;
    const double f32 = 2 * (2 * score + (2 * c->dim + 2 * LONGEST + 40) * UNIT);
    return (backward ? 2 : 1) * f32 + (bf16 ? backward ? 0x1p-7 : 0x1p-8 : 0);
}

static void check_attention(mn_cuda_nn *nn, attention_case *c, bool bf16)
{
    const uint32_t width = c->heads * c->dim;
    const mn_attention shape = {width, c->heads, {TOKENS, SEQUENCES, LONGEST, starts}};
    const mn_cuda_attention same = {
        {TOKENS, SEQUENCES, LONGEST, gpu_copy(starts, sizeof starts)}, width, c->heads};
    double *log_bounds = nn_host(c->log_sums.n * sizeof *log_bounds);
    void *scratch =
        aligned_alloc(64, (mn_attention_scratch_bytes(width, c->heads, LONGEST) + 63) / 64 * 64);
    mn_attention_forward(&shape, c->qkv.host, c->log_sums.host, c->out.host, scratch);
    QUEUED(mn_cuda_nn_attention, nn, &same, c->qkv.gpu, c->log_sums.gpu, c->out.gpu);
    for (uint64_t i = 0; i < c->log_sums.n; i++)
        log_bounds[i] = share_of(c, false, false) + 16 * UNIT;
    for (uint64_t i = 0; i < c->out.n; i++)
        c->sizes.out[i] = c->sizes.out[i] * share_of(c, bf16, false) + 1e-12;
    nn_near(nn, &c->log_sums, log_bounds);
    nn_near(nn, &c->out, c->sizes.out);
    const mn_attention_saved saved = {c->qkv.host, c->log_sums.host, c->out.host};
    const mn_cuda_attention_saved kept = {c->qkv.gpu, c->log_sums.gpu, c->out.gpu};
    mn_attention_backward(&shape, &saved, c->d_out.host, c->d_qkv.host, scratch);
    QUEUED(mn_cuda_nn_attention_grad, nn, &same, &kept, c->d_out.gpu, c->d_qkv.gpu);
    for (uint64_t i = 0; i < c->d_qkv.n; i++)
        c->sizes.d_qkv[i] = c->sizes.d_qkv[i] * share_of(c, bf16, true) + 1e-12;
    nn_near(nn, &c->d_qkv, c->sizes.d_qkv);
    free(scratch);
}

/* Heads for the tensor cores, with columns to spare and without, and those that f32 serves. */
static void test_attention(void **state)
{
    (void)state;
    gpu_need();
    const struct {
        uint32_t heads, dim;
        bool bf16;
    } cases[] = {{2, 5, false}, {1, 40, false}, {2, 8, true},  {1, 32, true},
                 {1, 64, true}, {1, 104, true}, {2, 20, true}, {1, 130, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const bool rounds = cases[i].bf16 && cases[i].dim % 8 == 0 && cases[i].dim <= 128;
        mn_cuda_nn *nn = nn_open(cases[i].bf16, SCRATCH);
        attention_case c = attention_case_of(cases[i].heads, cases[i].dim);
        check_attention(nn, &c, rounds);
        nn_close(nn);
    }
}

/* Whatever runs first. */
static void test_attention_is_the_same_twice(void **state)
{
    (void)state;
    gpu_need();
    for (int bf16 = 0; bf16 < 2; bf16++) {
        mn_cuda_nn *nn = nn_open(bf16, SCRATCH);
        attention_case c = attention_case_of(1, 32);
        const mn_cuda_attention shape = {
            {TOKENS, SEQUENCES, LONGEST, gpu_copy(starts, sizeof starts)}, 32, 1};
        const mn_cuda_attention_saved saved = {c.qkv.gpu, c.log_sums.gpu, c.out.gpu};
        for (int run = 0; run < 2; run++) {
            nn_again(nn, &c.out);
            nn_again(nn, &c.d_qkv);
            QUEUED(mn_cuda_nn_attention, nn, &shape, c.qkv.gpu, c.log_sums.gpu, c.out.gpu);
            QUEUED(mn_cuda_nn_attention_grad, nn, &shape, &saved, c.d_out.gpu, c.d_qkv.gpu);
        }
        nn_equal(nn, &c.out);
        nn_equal(nn, &c.d_qkv);
        nn_close(nn);
    }
}

static void test_products_name_what_is_wrong(void **state)
{
    (void)state;
    gpu_need();
    mn_cuda_nn *nn = nn_open(true, 256);
    both x = both_uniform(4096), y = both_uniform(4096);
    mn_cuda_attention shape = {{8, 1, 8, gpu_copy((uint32_t[]){0, 8}, 8)}, 16, 3};
    REFUSED("m", mn_cuda_nn_gemm, nn, false, false, 0, 1, 1, 1, x.gpu, x.gpu, 0, y.gpu);
    REFUSED("scratch", mn_cuda_nn_gemm, nn, false, false, 16, 16, 16, 1, x.gpu, x.gpu, 0, y.gpu);
    REFUSED("heads", mn_cuda_nn_attention, nn, &shape, x.gpu, y.gpu, y.gpu);
    shape.heads = 2, shape.batch.longest = 0;
    REFUSED("batch", mn_cuda_nn_attention, nn, &shape, x.gpu, y.gpu, y.gpu);
    shape.batch.longest = 8;
    REFUSED("scratch", mn_cuda_nn_attention, nn, &shape, x.gpu, y.gpu, y.gpu);
    const mn_cuda_attention_saved saved = {x.gpu, y.gpu, y.gpu};
    REFUSED("out", mn_cuda_nn_attention, nn, &shape, x.gpu, y.gpu, y.gpu + 1);
    REFUSED("d_qkv", mn_cuda_nn_attention_grad, nn, &shape, &saved, x.gpu, y.gpu + 1);
    nn_close(nn);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products_are_exact_on_integers),
        cmocka_unit_test(test_factors_are_rounded_to_bf16),
        cmocka_unit_test(test_copies_change_no_bit),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_attention_is_the_same_twice),
        cmocka_unit_test(test_products_name_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
