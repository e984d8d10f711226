/* Sums over rows, and batch norm. A thread holds V columns and walks a chunk of rows; the chunks'
 * sums are then added in order. Chunks depend on the rows alone. */
#include "nn_device.h"

#include <math.h>

static const uint64_t CHUNKS_MAX = 256, CHUNK_MIN = 64;
static const int ROWS_IN_FLIGHT = 4;

static uint64_t chunk_of(uint64_t rows)
{
    const uint64_t chunk = (rows + CHUNKS_MAX - 1) / CHUNKS_MAX;
    return chunk < CHUNK_MIN ? CHUNK_MIN : chunk;
}

extern "C" uint64_t mn_cuda_nn_rows_bytes(uint64_t rows, uint32_t width)
{
    const uint64_t chunks = (rows + chunk_of(rows) - 1) / chunk_of(rows);
    return rounded_up((chunks < 1 ? 1 : chunks) * width * sizeof(double), 256);
}

/* out_partials [chunks][width]: sums of term.at<V>(row, c) over a chunk's rows. */
template <int V, typename Sum, typename Term>
static __global__ void __launch_bounds__(THREADS)
    sum_chunks(Term term, uint64_t rows, uint64_t chunk, uint32_t width, Sum *out_partials)
{
    const uint32_t c = (blockIdx.y * blockDim.x + threadIdx.x) * V;
    const uint64_t first = blockIdx.x * chunk;
    const uint64_t end = first + chunk < rows ? first + chunk : rows;
    Sum sum[V] = {};
    if (c >= width)
        return;
    for (uint64_t row = first; row < end; row += ROWS_IN_FLIGHT) {
        float terms[ROWS_IN_FLIGHT][V];
#pragma unroll
        for (int f = 0; f < ROWS_IN_FLIGHT; f++)
            if (row + f < end)
                term.at(row + f, c, terms[f]);
#pragma unroll
        for (int f = 0; f < ROWS_IN_FLIGHT; f++)
            if (row + f < end)
#pragma unroll
                for (int e = 0; e < V; e++)
                    sum[e] = sum[e] + term.value((Sum)terms[f][e]);
    }
#pragma unroll
    for (int e = 0; e < V; e++)
        out_partials[blockIdx.x * (uint64_t)width + c + e] = sum[e];
}

template <typename Sum>
static __global__ void __launch_bounds__(THREADS)
    add_chunks(const Sum *partials, uint32_t chunks, uint32_t width, bool add, Sum *out_sums)
{
    const uint32_t c = blockIdx.x * THREADS + threadIdx.x;
    Sum sum = 0;
    if (c >= width)
        return;
#pragma unroll 16 /* fetched ahead: few threads have nothing else to do */
    for (uint32_t i = 0; i < chunks; i++)
        sum = sum + partials[i * (uint64_t)width + c];
    out_sums[c] = add ? out_sums[c] + sum : sum;
}

template <typename Sum, typename Term>
static enum mn_status queue_sums(mn_cuda_nn *nn, const Term &term, uint64_t rows, uint32_t width,
                                 bool four, bool add, Sum *out_sums, mn_error *error)
{
    const uint64_t chunk = chunk_of(rows), chunks = rows ? (rows + chunk - 1) / chunk : 1;
    const uint32_t vectors = width / (four ? 4 : 1), x = vectors < THREADS ? vectors : THREADS;
    uint64_t used = 0;
    void *partials = NULL;
    const enum mn_status status =
        scratch_at(nn, chunks * width * sizeof(Sum), &used, &partials, error);
    if (status || width == 0)
        return status;
    cudaLaunchConfig_t config = {};
    config.blockDim = dim3(x);
    config.gridDim = dim3((unsigned)chunks, (vectors + x - 1) / x);
    config.stream = nn->stream;
    cudaError_t result = four ? cudaLaunchKernelEx(&config, sum_chunks<4, Sum, Term>, term, rows,
                                                   chunk, width, (Sum *)partials)
                              : cudaLaunchKernelEx(&config, sum_chunks<1, Sum, Term>, term, rows,
                                                   chunk, width, (Sum *)partials);
    config.blockDim = dim3(THREADS);
    config.gridDim = dim3((width + THREADS - 1) / THREADS);
    if (result == cudaSuccess)
        result = cudaLaunchKernelEx(&config, add_chunks<Sum>, (const Sum *)partials,
                                    (uint32_t)chunks, width, add, out_sums);
    return launched(result, error);
}

/* ---- Gradients of biases and gains ---- */

/* Terms add as they are, or their squares in the sum's precision. */
struct plain_term {
    template <typename Sum> MEMBER Sum value(Sum term) const { return term; }
};

struct bias_term : plain_term {
    const float *d_x;
    uint32_t width;
    template <int V> MEMBER void at(uint64_t row, uint32_t c, float (&out)[V]) const
    {
        get(d_x + row * width + c, out);
    }
};

extern "C" enum mn_status mn_cuda_nn_bias_grad(mn_cuda_nn *nn, uint64_t rows, uint32_t width,
                                               const float *d_x, float *d_bias, mn_error *error)
{
    bias_term term = {};
    term.d_x = d_x, term.width = width;
    return queue_sums(nn, term, rows, width, fours(width, {d_x}), true, d_bias, error);
}

struct norm_term : plain_term {
    const float *x, *mean, *inverse, *d_out;
    uint32_t width;
    template <int V> MEMBER void at(uint64_t row, uint32_t c, float (&out)[V]) const
    {
        float d[V];
        get(x + row * width + c, out);
        get(d_out + row * width + c, d);
        const float m = mean[row], i = inverse[row];
#pragma unroll
        for (int e = 0; e < V; e++)
            out[e] = d[e] * ((out[e] - m) * i);
    }
};

enum mn_status mn_norm_gain_grad(mn_cuda_nn *nn, uint64_t rows, uint32_t width,
                                 const mn_cuda_norm_saved *saved, const float *d_out, float *d_gain,
                                 mn_error *error)
{
    norm_term term = {};
    term.x = saved->x, term.mean = saved->mean, term.inverse = saved->inverse;
    term.d_out = d_out, term.width = width;
    return queue_sums(nn, term, rows, width, fours(width, {saved->x, d_out}), true, d_gain, error);
}

struct rms_term : plain_term {
    const float *x, *inverse, *d_out;
    float target;
    uint32_t width, gains; /* a row is `gains` runs */
    template <int V> MEMBER void at(uint64_t row, uint32_t c, float (&out)[V]) const
    {
        float d[V];
        const uint64_t first = row * width * gains + c;
        get(x + first, out);
        get(d_out + first, d);
        const float i = inverse[row * gains + c / width];
#pragma unroll
        for (int e = 0; e < V; e++)
            out[e] = d[e] * out[e] * i * target;
    }
};

enum mn_status mn_rms_gain_grad(mn_cuda_nn *nn, const mn_cuda_rms *rms, const float *x,
                                const float *inverse, const float *d_out, float *d_gain,
                                mn_error *error)
{
    rms_term term = {};
    term.x = x, term.inverse = inverse, term.d_out = d_out;
    term.target = rms->target, term.width = rms->width, term.gains = rms->gains;
    return queue_sums(nn, term, rms->runs / rms->gains, rms->width * rms->gains,
                      fours(rms->width, {x, d_out}), true, d_gain, error);
}

/* ---- Batch norm ---- */

extern "C" enum mn_status mn_cuda_nn_column_sums(mn_cuda_nn *nn, uint64_t rows, uint32_t width,
                                                 const float *x, double *out_sums, mn_error *error)
{
    bias_term term = {};
    term.d_x = x, term.width = width;
    return queue_sums(nn, term, rows, width, fours(width, {x}), false, out_sums, error);
}

struct square_term {
    const float *x, *mean;
    uint32_t width;
    template <int V> MEMBER void at(uint64_t row, uint32_t c, float (&out)[V]) const
    {
        float m[V];
        get(x + row * width + c, out);
        get(mean + c, m);
#pragma unroll
        for (int e = 0; e < V; e++)
            out[e] = out[e] - m[e];
    }
    template <typename Sum> MEMBER Sum value(Sum term) const { return term * term; }
};

extern "C" enum mn_status mn_cuda_nn_column_squares(mn_cuda_nn *nn, uint64_t rows, uint32_t width,
                                                    const float *x, const float *mean,
                                                    double *out_sums, mn_error *error)
{
    const square_term term = {x, mean, width};
    return queue_sums(nn, term, rows, width, fours(width, {x, mean}), false, out_sums, error);
}

/* d in the first `width` columns, d * n in the others. */
struct batch_term : plain_term {
    mn_cuda_batch_norm norm;
    const float *d_out;
    template <int V> MEMBER void at(uint64_t row, uint32_t c, float (&out)[V]) const
    {
        float x[V], m[V], i[V];
        const uint32_t own = c < norm.width ? c : c - norm.width;
        const uint64_t first = row * norm.width + own;
        get(d_out + first, out);
        if (c < norm.width)
            return;
        get(norm.x + first, x);
        get(norm.mean + own, m);
        get(norm.inverse + own, i);
#pragma unroll
        for (int e = 0; e < V; e++)
            out[e] = out[e] * ((x[e] - m[e]) * i[e]);
    }
};

extern "C" enum mn_status mn_cuda_nn_batch_norm_sums(mn_cuda_nn *nn, const mn_cuda_batch_norm *norm,
                                                     const float *d_out, double *out_sums,
                                                     mn_error *error)
{
    batch_term term = {};
    term.norm = *norm, term.d_out = d_out;
    return queue_sums(nn, term, norm->rows, 2 * norm->width,
                      fours(norm->width, {norm->x, norm->mean, norm->inverse, d_out}), false,
                      out_sums, error);
}

struct mean_op {
    double count;
    const double *sums;
    float *mean;
    template <int V> MEMBER void at(uint64_t c) const { mean[c] = (float)(sums[c] / count); }
};

extern "C" enum mn_status mn_cuda_nn_batch_mean(mn_cuda_nn *nn, uint32_t width, double count,
                                                const double *sums, float *out_mean,
                                                mn_error *error)
{
    const mean_op op = {count, sums, out_mean};
    return queue_each(nn, op, width, false, error);
}

static const double BATCH_EPS = 1e-5, BATCH_MOMENTUM = 0.1; /* as query_network.c */

struct variance_op {
    double count;
    const double *sums;
    const float *mean;
    float *inverse, *running;
    uint32_t width;
    template <int V> MEMBER void at(uint64_t c) const
    {
        const double unbiased = sums[c] / (count > 1 ? count - 1 : 1);
        float *of_mean = running + c, *of_variance = running + width + c;
        inverse[c] = (float)(1 / sqrt(sums[c] / count + BATCH_EPS));
        *of_mean = *of_mean + (float)(BATCH_MOMENTUM * ((double)mean[c] - (double)*of_mean));
        *of_variance = *of_variance + (float)(BATCH_MOMENTUM * (unbiased - (double)*of_variance));
    }
};

extern "C" enum mn_status mn_cuda_nn_batch_variance(mn_cuda_nn *nn, uint32_t width, double count,
                                                    const double *sums, const float *mean,
                                                    float *out_inverse, float *running,
                                                    mn_error *error)
{
    const variance_op op = {count, sums, mean, out_inverse, running, width};
    return queue_each(nn, op, width, false, error);
}

struct running_op {
    const float *running;
    float *mean, *inverse;
    uint32_t width;
    template <int V> MEMBER void at(uint64_t c) const
    {
        mean[c] = running[c];
        inverse[c] = (float)(1 / sqrt((double)running[width + c] + BATCH_EPS));
    }
};

extern "C" enum mn_status mn_cuda_nn_batch_running(mn_cuda_nn *nn, uint32_t width,
                                                   const float *running, float *out_mean,
                                                   float *out_inverse, mn_error *error)
{
    const running_op op = {running, out_mean, out_inverse, width};
    return queue_each(nn, op, width, false, error);
}

struct batch_norm_op {
    mn_cuda_batch_norm norm;
    const float *shift;
    float *out;
    uint16_t *narrow;
    template <int V> MEMBER void at(uint64_t i) const
    {
        const uint32_t c = (uint32_t)(i % norm.width);
        float x[V], mean[V], inverse[V], gain[V], s[V];
        get(norm.x + i, x);
        get(norm.mean + c, mean);
        get(norm.inverse + c, inverse);
        get(norm.gain + c, gain);
        get(shift + c, s);
#pragma unroll
        for (int e = 0; e < V; e++)
            x[e] = (x[e] - mean[e]) * inverse[e] * gain[e] + s[e];
        put_both(x, out, narrow, i);
    }
};

extern "C" enum mn_status mn_cuda_nn_batch_norm(mn_cuda_nn *nn, const mn_cuda_batch_norm *norm,
                                                const float *shift, float *out, mn_error *error)
{
    const uint64_t n = norm->rows * norm->width;
    const batch_norm_op op = {*norm, shift, out, mn_narrow_beside(nn, out, n)};
    return queue_each(
        nn, op, n, fours(norm->width, {norm->x, norm->mean, norm->inverse, norm->gain, shift, out}),
        error);
}

struct batch_norm_grad_op {
    mn_cuda_batch_norm norm;
    const double *sums;
    float share, *d;
    uint16_t *narrow;
    template <int V> MEMBER void at(uint64_t i) const
    {
        const uint32_t c = (uint32_t)(i % norm.width);
        float x[V], mean[V], inverse[V], gain[V], v[V];
        get(norm.x + i, x);
        get(norm.mean + c, mean);
        get(norm.inverse + c, inverse);
        get(norm.gain + c, gain);
        get(d + i, v);
#pragma unroll
        for (int e = 0; e < V; e++) {
            const float n = (x[e] - mean[e]) * inverse[e];
            const float centred =
                v[e] - share * (float)sums[c + e] - n * (share * (float)sums[norm.width + c + e]);
            v[e] = gain[e] * inverse[e] * centred;
        }
        put_both(v, d, narrow, i);
    }
};

extern "C" enum mn_status mn_cuda_nn_batch_norm_grad(mn_cuda_nn *nn, const mn_cuda_batch_norm *norm,
                                                     double count, const double *sums, float *d,
                                                     mn_error *error)
{
    const uint64_t n = norm->rows * norm->width;
    const batch_norm_grad_op op = {*norm, sums, (float)(1 / count), d, mn_narrow_beside(nn, d, n)};
    return queue_each(
        nn, op, n, fours(norm->width, {norm->x, norm->mean, norm->inverse, norm->gain, d}), error);
}
