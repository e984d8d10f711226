/* The GPU's sums along rows and over rows against the CPU's (trainer/). Both sides sum n terms of
 * f32 in an order of their own: each is off by at most n * UNIT times the sum of the terms'
 * magnitudes, and so twice that from the other. */
#include "nn_fixture.h"

enum { SHAPES = 7, SCRATCH = 1 << 22 };
static const struct {
    uint64_t rows;
    uint32_t width;
} shapes[SHAPES] = {{1, 1}, {3, 15}, {70, 16}, {9, 100}, {300, 132}, {5, 1028}, {2, 2052}};

static both make(int shape, uint64_t n)
{
    return shape % 3 == 1 ? both_shifted(n) : both_uniform(n);
}

/* Terms of both sides' sums, and a few roundings of the element itself. */
static double share(uint64_t terms) { return 2 * (double)(terms + 12) * UNIT; }

/* ---- LayerNorm: x, gain and gradients in [-1, 1), so |x - mean| < 2 */

typedef struct norm_case {
    both x, gain, mean, inverse, out, d_out, d_gain, d_x;
} norm_case;

static norm_case norm_case_of(int shape)
{
    const uint64_t rows = shapes[shape].rows, n = rows * shapes[shape].width;
    return (norm_case){make(shape, n),
                       make(shape, shapes[shape].width),
                       make(shape, rows),
                       make(shape, rows),
                       make(shape, n),
                       make(shape, n),
                       make(shape, shapes[shape].width),
                       make(shape, n)};
}

/* The mean is off by e = share; the variance by 4 e more; so with inverse i = variance^-1/2 that is
 * off by i^3 / 2 * 8 e, and out by e i + 2 * 4 e i^3. */
static void check_norm(mn_cuda_nn *nn, norm_case *c, uint64_t rows, uint32_t width)
{
    double *bounds = nn_host(rows * width * sizeof *bounds);
    mn_nn_norm(rows, width, c->x.host, c->gain.host, c->mean.host, c->inverse.host, c->out.host);
    QUEUED(mn_cuda_nn_norm, nn, rows, width, c->x.gpu, c->gain.gpu, c->mean.gpu, c->inverse.gpu,
           c->out.gpu);
    for (uint64_t i = 0; i < rows * width; i++) {
        const double inverse = (double)c->inverse.host[i / width];
        bounds[i] = share(width) * (inverse + 8 * inverse * inverse * inverse);
    }
    if (width > 1)
        nn_near(nn, &c->out, bounds);
    for (uint64_t r = 0; r < rows; r++)
        bounds[r] = share(width);
    nn_near(nn, &c->mean, bounds);
    for (uint64_t r = 0; r < rows; r++) {
        const double inverse = (double)c->inverse.host[r];
        bounds[r] = share(width) * (inverse + 4 * inverse * inverse * inverse);
    }
    nn_near(nn, &c->inverse, bounds);
}

/* From the same means and inverses. |e| <= 1 and |n| <= N, so |d_x| <= 1 + inverse * (2 + N^2). */
static void check_norm_grad(mn_cuda_nn *nn, norm_case *c, uint64_t rows, uint32_t width)
{
    double *bounds = nn_host(rows * width * sizeof *bounds);
    double *of_gain = nn_host(width * sizeof *of_gain);
    const both mean = both_from(c->mean.host, rows), inverse = both_from(c->inverse.host, rows);
    const mn_norm_saved saved = {c->x.host, c->gain.host, mean.host, inverse.host};
    const mn_cuda_norm_saved same = {c->x.gpu, c->gain.gpu, mean.gpu, inverse.gpu};
    for (uint64_t i = 0; i < rows * width; i++) {
        const double of_row = (double)inverse.host[i / width], N = 2 * of_row;
        const double n = ((double)c->x.host[i] - (double)mean.host[i / width]) * of_row;
        bounds[i] = share(width) * (1 + of_row * (2 + N * N));
        of_gain[i % width] += share(rows) * (fabs((double)c->d_out.host[i] * n) + 1e-9 * of_row);
    }
    for (uint32_t i = 0; i < width; i++)
        of_gain[i] += share(1); /* of what was there */
    mn_nn_norm_grad(rows, width, &saved, c->d_out.host, c->d_gain.host, c->d_x.host);
    QUEUED(mn_cuda_nn_norm_grad, nn, rows, width, &same, c->d_out.gpu, c->d_gain.gpu, c->d_x.gpu);
    nn_near(nn, &c->d_x, bounds);
    nn_near(nn, &c->d_gain, of_gain);
}

static void test_norms(void **state)
{
    (void)state;
    gpu_need();
    for (int s = 0; s < SHAPES; s++) {
        mn_cuda_nn *nn = nn_open(false, SCRATCH);
        norm_case c = norm_case_of(s);
        if (shapes[s].width <= 2048 || s % 3 != 1) {
            check_norm(nn, &c, shapes[s].rows, shapes[s].width);
            check_norm_grad(nn, &c, shapes[s].rows, shapes[s].width);
        }
        nn_close(nn);
    }
}

/* ---- RMS norm: each run's inverse is the same on both sides but for the sum of squares */

static void check_rms(mn_cuda_nn *nn, int shape, uint32_t gains, bool add)
{
    const uint64_t runs = shapes[shape].rows * (gains ? gains : 1);
    const uint32_t width = shapes[shape].width;
    const uint64_t n = runs * width;
    const mn_rms rms = {runs, width, gains ? gains : 1, 0.7f};
    const mn_cuda_rms same = {runs, width, gains ? gains : 1, 0.7f};
    both x = make(shape, n), gain = make(shape, (uint64_t)rms.gains * width), out = make(shape, n);
    both inverse = make(shape, runs), d = make(shape, n), d_gain = make(shape, gain.n);
    both d_x = make(shape, n);
    double *bounds = nn_host(n * sizeof *bounds), *of_gain = nn_host(gain.n * sizeof *of_gain);
    float *gain_host = gains ? gain.host : NULL, *gain_gpu = gains ? gain.gpu : NULL;
    mn_nn_rms(&rms, x.host, gain_host, inverse.host, out.host);
    QUEUED(mn_cuda_nn_rms, nn, &same, x.gpu, gain_gpu, inverse.gpu, out.gpu);
    for (uint64_t i = 0; i < n; i++) /* all terms are positive: the sum's share is relative */
        bounds[i] = share(width) * fabs((double)out.host[i]) + 1e-12;
    nn_near(nn, &out, bounds);
    const both kept = both_from(inverse.host, runs);
    for (uint64_t i = 0; i < n; i++) {
        const double of_run = (double)inverse.host[i / width];
        const double term = (double)d.host[i] * (double)x.host[i] * of_run * (double)rms.target;
        bounds[i] = share(width) * (1 + of_run * (1 + of_run * of_run));
        of_gain[i % gain.n] += share(shapes[shape].rows) * fabs(term);
    }
    for (uint64_t i = 0; i < gain.n; i++)
        of_gain[i] += share(1);
    mn_nn_rms_grad(&rms, x.host, gain_host, kept.host, d.host, gains ? d_gain.host : NULL, add,
                   add ? d_x.host : d.host);
    QUEUED(mn_cuda_nn_rms_grad, nn, &same, x.gpu, gain_gpu, kept.gpu, d.gpu,
           gains ? d_gain.gpu : NULL, add, add ? d_x.gpu : d.gpu);
    nn_near(nn, add ? &d_x : &d, bounds);
    if (gains)
        nn_near(nn, &d_gain, of_gain);
}

static void test_rms_norms(void **state)
{
    (void)state;
    gpu_need();
    for (int s = 0; s < SHAPES; s++)
        for (int variant = 0; variant < 2; variant++) {
            mn_cuda_nn *nn = nn_open(false, SCRATCH);
            check_rms(nn, s, variant ? 3 : 0, !variant);
            nn_close(nn);
        }
}

/* ---- Sums over rows */

static void test_biases(void **state)
{
    (void)state;
    gpu_need();
    for (int s = 0; s < SHAPES; s++) {
        const uint64_t rows = shapes[s].rows, n = rows * shapes[s].width;
        const uint32_t width = shapes[s].width;
        mn_cuda_nn *nn = nn_open(false, SCRATCH);
        both x = make(s, n), bias = make(s, width);
        double *bounds = nn_host(width * sizeof *bounds);
        for (uint64_t i = 0; i < n; i++)
            bounds[i % width] += share(rows) * fabs((double)x.host[i]);
        for (uint32_t c = 0; c < width; c++)
            bounds[c] += share(1);
        mn_nn_bias_grad(rows, width, x.host, bias.host);
        QUEUED(mn_cuda_nn_bias_grad, nn, rows, width, x.gpu, bias.gpu);
        nn_near(nn, &bias, bounds);
        nn_close(nn);
    }
}

/* f64 sums of both sides are the same but for 2 * rows * 2^-53 of their magnitude. */
static bool sums_near(const double *got, const double *expected, const double *sizes, uint32_t n,
                      uint64_t rows)
{
    for (uint32_t c = 0; c < n; c++)
        if (!(fabs(got[c] - expected[c]) <= 2 * (double)(rows + 4) * 0x1p-53 * sizes[c]))
            return false;
    return true;
}

static void check_sums(mn_cuda_nn *nn, const double *gpu, const double *expected,
                       const double *sizes, uint32_t n, uint64_t rows)
{
    double *got = nn_host(n * sizeof *got);
    QUEUED(mn_cuda_memory_read, nn, got, gpu, n * sizeof *got);
    assert_true(sums_near(got, expected, sizes, n, rows));
    got[n / 2] += 1e-5; /* an f32 sum's error */
    assert_false(sums_near(got, expected, sizes, n, rows));
}

typedef struct batch_case {
    uint64_t rows;
    uint32_t width;
    both x, d, mean, inverse, gain, shift, out, running;
    double *sums, *gpu_sums, *sizes; /* [2 * width] */
} batch_case;

/* Sums, then all that is made of them: from the same sums it has the same bits. */
static void check_batch_forward(mn_cuda_nn *nn, batch_case *c)
{
    const uint64_t rows = c->rows;
    const uint32_t width = c->width;
    for (uint64_t i = 0; i < rows * width; i++)
        c->sizes[i % width] += fabs((double)c->x.host[i]);
    mn_nn_column_sums(rows, width, c->x.host, c->sums);
    QUEUED(mn_cuda_nn_column_sums, nn, rows, width, c->x.gpu, c->gpu_sums);
    check_sums(nn, c->gpu_sums, c->sums, c->sizes, width, rows);
    QUEUED(mn_cuda_memory_write, nn, c->gpu_sums, c->sums, width * sizeof *c->sums);
    mn_nn_batch_mean(width, (double)rows, c->sums, c->mean.host);
    QUEUED(mn_cuda_nn_batch_mean, nn, width, (double)rows, c->gpu_sums, c->mean.gpu);
    nn_equal(nn, &c->mean);
    mn_nn_column_squares(rows, width, c->x.host, c->mean.host, c->sums);
    QUEUED(mn_cuda_nn_column_squares, nn, rows, width, c->x.gpu, c->mean.gpu, c->gpu_sums);
    for (uint32_t i = 0; i < width; i++)
        c->sizes[i] = c->sums[i] + 1e-9;
    check_sums(nn, c->gpu_sums, c->sums, c->sizes, width, rows);
    QUEUED(mn_cuda_memory_write, nn, c->gpu_sums, c->sums, width * sizeof *c->sums);
    mn_nn_batch_variance(width, (double)rows, c->sums, c->mean.host, c->inverse.host,
                         c->running.host);
    QUEUED(mn_cuda_nn_batch_variance, nn, width, (double)rows, c->gpu_sums, c->mean.gpu,
           c->inverse.gpu, c->running.gpu);
    nn_equal(nn, &c->inverse);
    nn_equal(nn, &c->running);
    const mn_batch_norm norm = {rows,         width,           c->x.host,
                                c->mean.host, c->inverse.host, c->gain.host};
    const mn_cuda_batch_norm same = {rows,        width,          c->x.gpu,
                                     c->mean.gpu, c->inverse.gpu, c->gain.gpu};
    mn_nn_batch_norm(&norm, c->shift.host, c->out.host);
    QUEUED(mn_cuda_nn_batch_norm, nn, &same, c->shift.gpu, c->out.gpu);
    nn_equal(nn, &c->out);
}

static void check_batch_backward(mn_cuda_nn *nn, batch_case *c)
{
    const uint64_t rows = c->rows;
    const uint32_t width = c->width;
    const mn_batch_norm norm = {rows,         width,           c->x.host,
                                c->mean.host, c->inverse.host, c->gain.host};
    const mn_cuda_batch_norm same = {rows,        width,          c->x.gpu,
                                     c->mean.gpu, c->inverse.gpu, c->gain.gpu};
    memset(c->sizes, 0, 2 * width * sizeof *c->sizes);
    for (uint64_t i = 0; i < rows * width; i++) {
        const uint64_t column = i % width;
        const double inverse = (double)c->inverse.host[column], d = fabs((double)c->d.host[i]);
        c->sizes[column] += d;
        c->sizes[width + column] += d * 2 * inverse;
    }
    mn_nn_batch_norm_sums(&norm, c->d.host, c->sums);
    QUEUED(mn_cuda_nn_batch_norm_sums, nn, &same, c->d.gpu, c->gpu_sums);
    check_sums(nn, c->gpu_sums, c->sums, c->sizes, 2 * width, rows);
    QUEUED(mn_cuda_memory_write, nn, c->gpu_sums, c->sums, 2 * width * sizeof *c->sums);
    mn_nn_add_sums(width, c->sums, c->shift.host);
    QUEUED(mn_cuda_nn_add_sums, nn, width, c->gpu_sums, c->shift.gpu);
    nn_equal(nn, &c->shift);
    mn_nn_batch_norm_grad(&norm, (double)rows, c->sums, c->d.host);
    QUEUED(mn_cuda_nn_batch_norm_grad, nn, &same, (double)rows, c->gpu_sums, c->d.gpu);
    nn_equal(nn, &c->d);
    mn_nn_batch_running(width, c->running.host, c->mean.host, c->inverse.host);
    QUEUED(mn_cuda_nn_batch_running, nn, width, c->running.gpu, c->mean.gpu, c->inverse.gpu);
    nn_equal(nn, &c->mean);
    nn_equal(nn, &c->inverse);
}

static void test_batch_norm(void **state)
{
    (void)state;
    gpu_need();
    for (int s = 0; s < SHAPES; s++) {
        const uint64_t rows = shapes[s].rows, n = rows * shapes[s].width;
        const uint32_t width = shapes[s].width;
        mn_cuda_nn *nn = nn_open(false, SCRATCH);
        batch_case c = {.rows = rows, .width = width};
        c.x = make(s, n), c.d = make(s, n), c.out = make(s, n);
        c.mean = make(s, width), c.inverse = make(s, width), c.gain = make(s, width);
        c.shift = make(s, width), c.running = make(s, 2 * width);
        for (uint32_t i = 0; i < 2 * width; i++)
            c.running.host[i] = 1 + c.running.host[i] * c.running.host[i]; /* a variance */
        QUEUED(mn_cuda_memory_write, nn, c.running.gpu, c.running.host, 2 * width * sizeof(float));
        c.sums = nn_host(2 * width * sizeof *c.sums), c.sizes = nn_host(2 * width * sizeof *c.sums);
        c.gpu_sums = gpu_new(2 * width * sizeof *c.sums);
        check_batch_forward(nn, &c);
        check_batch_backward(nn, &c);
        nn_close(nn);
    }
}

/* ---- Loss: the gradients' bits, and the nats but for the last bits of log and of the sum */

static bool loss_near(const mn_cuda_loss *got, const mn_loss *expected)
{
    return got->targets == expected->targets && got->correct == expected->correct &&
           fabs(got->nats - expected->nats) <= 1e-12 * fabs(expected->nats);
}

static void test_cross_entropy(void **state)
{
    (void)state;
    gpu_need();
    const uint64_t counts[] = {1, 63, 2500};
    for (int i = 0; i < 3; i++) {
        const uint64_t rows = counts[i];
        mn_cuda_nn *nn = nn_open(false, mn_cuda_nn_rows_bytes(rows, MN_BYTES));
        both logits = both_uniform(rows * MN_BYTES);
        uint16_t *targets = nn_host(rows * sizeof *targets);
        mn_loss loss;
        mn_cuda_loss got = {0, 0, 0};
        for (uint64_t r = 0; r < rows; r++) {
            targets[r] = r % 7 == 3 ? MN_NO_TARGET : (uint16_t)(r * 37 % MN_BYTES);
            logits.host[r * MN_BYTES + r * 91 % MN_BYTES] *= 60;
            if (r % 3 == 0) /* the likeliest, and once more: the first counts */
                logits.host[r * MN_BYTES + r * 37 % MN_BYTES] = 70;
            if (r % 6 == 0)
                logits.host[r * MN_BYTES + r * 37 % MN_BYTES / 2] = 70;
        }
        QUEUED(mn_cuda_memory_write, nn, logits.gpu, logits.host, logits.n * sizeof(float));
        mn_nn_cross_entropy(rows, logits.host, targets, &loss);
        QUEUED(mn_cuda_nn_cross_entropy, nn, rows, logits.gpu, gpu_copy(targets, rows * 2), &got);
        nn_equal(nn, &logits);
        assert_true(loss_near(&got, &loss));
        got.nats += 1e-6;
        assert_false(loss_near(&got, &loss));
        nn_close(nn);
    }
}

/* Whatever runs first. */
static void test_sums_are_the_same_twice(void **state)
{
    (void)state;
    gpu_need();
    const uint64_t rows = 700;
    const uint32_t width = 256;
    mn_cuda_nn *nn = nn_open(false, SCRATCH);
    both x = both_uniform(rows * width), d = both_uniform(rows * width);
    both d_gain = both_uniform(width), d_x = both_uniform(rows * width);
    both mean = both_uniform(rows), inverse = both_uniform(rows);
    const uint16_t *targets = gpu_copy(nn_host(rows * 2), rows * 2);
    const mn_cuda_norm_saved saved = {x.gpu, x.gpu, mean.gpu, inverse.gpu};
    mn_cuda_loss loss[2];
    for (int run = 0; run < 2; run++) { /* from zero, both times */
        nn_again(nn, &d_gain);
        nn_again(nn, &d_x);
        QUEUED(mn_cuda_nn_norm_grad, nn, rows, width, &saved, d.gpu, d_gain.gpu, d_x.gpu);
        QUEUED(mn_cuda_memory_write, nn, x.gpu, x.host, x.n * sizeof(float));
        QUEUED(mn_cuda_nn_cross_entropy, nn, rows, x.gpu, targets, loss + run);
        QUEUED(mn_cuda_memory_write, nn, x.gpu, x.host, x.n * sizeof(float));
    }
    nn_equal(nn, &d_gain);
    nn_equal(nn, &d_x);
    assert_memory_equal(loss, loss + 1, sizeof *loss);
    nn_close(nn);
}

static void test_rows_name_what_is_wrong(void **state)
{
    (void)state;
    gpu_need();
    mn_cuda_nn *nn = nn_open(false, 64);
    both x = both_uniform(9000), sums = both_uniform(9000);
    mn_cuda_loss loss;
    REFUSED("width", mn_cuda_nn_norm, nn, 1, 8196, x.gpu, x.gpu, x.gpu, x.gpu, sums.gpu);
    REFUSED("width", mn_cuda_nn_norm, nn, 1, 2049, x.gpu, x.gpu, x.gpu, x.gpu, sums.gpu);
    REFUSED("width", mn_cuda_nn_norm, nn, 1, 0, x.gpu, x.gpu, x.gpu, x.gpu, sums.gpu);
    REFUSED("scratch", mn_cuda_nn_bias_grad, nn, 1, 17, x.gpu, sums.gpu);
    REFUSED("scratch", mn_cuda_nn_cross_entropy, nn, 300, x.gpu, (uint16_t *)x.gpu, &loss);
    QUEUED(mn_cuda_nn_bias_grad, nn, 1, 16, x.gpu, sums.gpu);
    nn_close(nn);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norms),
        cmocka_unit_test(test_rms_norms),
        cmocka_unit_test(test_biases),
        cmocka_unit_test(test_batch_norm),
        cmocka_unit_test(test_cross_entropy),
        cmocka_unit_test(test_sums_are_the_same_twice),
        cmocka_unit_test(test_rows_name_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
