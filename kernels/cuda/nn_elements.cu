/* Operations element by element (trainer/nn_ops.c, nn_dropout.c), with the CPU's bits. Each reads
 * and writes its arrays once, in vectors of 16 bytes where shapes and places allow it. */
#include "nn_device.h"

#include <math.h>

struct scaling {
    float factor, *x;
    template <int V> MEMBER void at(uint64_t i) const
    {
        float v[V];
        get(x + i, v);
#pragma unroll
        for (int e = 0; e < V; e++)
            v[e] = v[e] * factor;
        put(v, x + i);
    }
};

extern "C" enum mn_status mn_cuda_nn_scale(mn_cuda_nn *nn, uint64_t n, float factor, float *x,
                                           mn_error *error)
{
    const scaling op = {factor, x};
    mn_narrow_forget(nn, x, n * sizeof *x);
    return queue_each(nn, op, n, fours(n, {x}), error);
}

struct adding {
    const float *a;
    float *x;
    template <int V> MEMBER void at(uint64_t i) const
    {
        float v[V], w[V];
        get(x + i, v);
        get(a + i, w);
#pragma unroll
        for (int e = 0; e < V; e++)
            v[e] = v[e] + w[e];
        put(v, x + i);
    }
};

extern "C" enum mn_status mn_cuda_nn_add(mn_cuda_nn *nn, uint64_t n, const float *a, float *x,
                                         mn_error *error)
{
    const adding op = {a, x};
    mn_narrow_forget(nn, x, n * sizeof *x);
    return queue_each(nn, op, n, fours(n, {a, x}), error);
}

struct biasing {
    const float *bias;
    float *x;
    uint32_t width;
    template <int V> MEMBER void at(uint64_t i) const
    {
        float v[V], w[V];
        get(x + i, v);
        get(bias + i % width, w);
#pragma unroll
        for (int e = 0; e < V; e++)
            v[e] = v[e] + w[e];
        put(v, x + i);
    }
};

extern "C" enum mn_status mn_cuda_nn_bias(mn_cuda_nn *nn, uint64_t rows, uint32_t width,
                                          const float *bias, float *x, mn_error *error)
{
    const biasing op = {bias, x, width};
    mn_narrow_forget(nn, x, rows * width * sizeof *x);
    return queue_each(nn, op, rows * width, fours(width, {bias, x}), error);
}

struct adding_sums {
    const double *sums;
    float *x;
    template <int V> MEMBER void at(uint64_t i) const { x[i] = x[i] + (float)sums[i]; }
};

extern "C" enum mn_status mn_cuda_nn_add_sums(mn_cuda_nn *nn, uint32_t n, const double *sums,
                                              float *x, mn_error *error)
{
    const adding_sums op = {sums, x};
    mn_narrow_forget(nn, x, n * sizeof *x);
    return queue_each(nn, op, n, false, error);
}

/* ---- Activations ---- */

#define GELU_SCALE 1.5957691216057308f /* 2 sqrt(2/pi) */
#define GELU_CUBE  0.044715f

struct gelu_op {
    const float *x;
    float *out;
    uint16_t *narrow;
    template <int V> MEMBER void at(uint64_t i) const
    {
        float v[V];
        get(x + i, v);
#pragma unroll
        for (int e = 0; e < V; e++)
            v[e] = v[e] * sigmoid(GELU_SCALE * (v[e] + GELU_CUBE * v[e] * v[e] * v[e]));
        put_both(v, out, narrow, i);
    }
};

extern "C" enum mn_status mn_cuda_nn_gelu(mn_cuda_nn *nn, uint64_t n, const float *x, float *out,
                                          mn_error *error)
{
    const gelu_op op = {x, out, mn_narrow_beside(nn, out, n)};
    return queue_each(nn, op, n, fours(n, {x, out}), error);
}

struct gelu_grad_op {
    const float *x;
    float *d;
    uint16_t *narrow;
    template <int V> MEMBER void at(uint64_t i) const
    {
        float v[V], w[V];
        get(x + i, v);
        get(d + i, w);
#pragma unroll
        for (int e = 0; e < V; e++) {
            const float square = v[e] * v[e];
            const float s = sigmoid(GELU_SCALE * v[e] * (1 + GELU_CUBE * square));
            const float slope = GELU_SCALE * (1 + 3 * GELU_CUBE * square);
            w[e] = w[e] * (s + v[e] * s * (1 - s) * slope);
        }
        put_both(w, d, narrow, i);
    }
};

extern "C" enum mn_status mn_cuda_nn_gelu_grad(mn_cuda_nn *nn, uint64_t n, const float *x, float *d,
                                               mn_error *error)
{
    const gelu_grad_op op = {x, d, mn_narrow_beside(nn, d, n)};
    return queue_each(nn, op, n, fours(n, {x, d}), error);
}

/* x where `kept` is positive, else 0. */
struct relu_op {
    const float *kept;
    float *x;
    uint16_t *narrow;
    template <int V> MEMBER void at(uint64_t i) const
    {
        float v[V], w[V];
        get(x + i, v);
        get(kept + i, w);
#pragma unroll
        for (int e = 0; e < V; e++)
            v[e] = w[e] > 0 ? v[e] : 0;
        put_both(v, x, narrow, i);
    }
};

extern "C" enum mn_status mn_cuda_nn_relu(mn_cuda_nn *nn, uint64_t n, float *x, mn_error *error)
{
    const relu_op op = {x, x, mn_narrow_beside(nn, x, n)};
    return queue_each(nn, op, n, fours(n, {x}), error);
}

extern "C" enum mn_status mn_cuda_nn_relu_grad(mn_cuda_nn *nn, uint64_t n, const float *out,
                                               float *d, mn_error *error)
{
    const relu_op op = {out, d, mn_narrow_beside(nn, d, n)};
    return queue_each(nn, op, n, fours(n, {out, d}), error);
}

struct silu_gate_op {
    const float *y, *a;
    float *out;
    uint16_t *narrow;
    template <int V> MEMBER void at(uint64_t i) const
    {
        float v[V], w[V];
        get(y + i, v);
        get(a + i, w);
#pragma unroll
        for (int e = 0; e < V; e++)
            v[e] = v[e] * w[e] * sigmoid(w[e]);
        put_both(v, out, narrow, i);
    }
};

extern "C" enum mn_status mn_cuda_nn_silu_gate(mn_cuda_nn *nn, uint64_t n, const float *y,
                                               const float *a, float *out, mn_error *error)
{
    const silu_gate_op op = {y, a, out, mn_narrow_beside(nn, out, n)};
    return queue_each(nn, op, n, fours(n, {y, a, out}), error);
}

struct silu_gate_grad_op {
    const float *y, *a, *d_out;
    float *d_y, *d_a;
    uint16_t *narrow; /* of d_a, a factor of the gate's products */
    template <int V> MEMBER void at(uint64_t i) const
    {
        float u[V], v[V], d[V];
        get(y + i, u);
        get(a + i, v);
        get(d_out + i, d);
#pragma unroll
        for (int e = 0; e < V; e++) {
            const float s = sigmoid(v[e]), of_out = d[e], gate = v[e];
            d[e] = of_out * gate * s;
            v[e] = of_out * u[e] * s * (1 + gate * (1 - s));
        }
        put(d, d_y + i);
        put_both(v, d_a, narrow, i);
    }
};

extern "C" enum mn_status mn_cuda_nn_silu_gate_grad(mn_cuda_nn *nn, uint64_t n, const float *y,
                                                    const float *a, const float *d_out, float *d_y,
                                                    float *d_a, mn_error *error)
{
    mn_narrow_forget(nn, d_y, n * sizeof *d_y);
    const silu_gate_grad_op op = {y, a, d_out, d_y, d_a, mn_narrow_beside(nn, d_a, n)};
    return queue_each(nn, op, n, fours(n, {y, a, d_out, d_y, d_a}), error);
}

extern "C" enum mn_status mn_cuda_nn_softmax(mn_cuda_nn *nn, float *scores, uint64_t groups,
                                             uint32_t k, mn_error *error)
{
    mn_narrow_forget(nn, scores, groups * k * sizeof *scores);
    return mn_cuda_softmax(scores, groups, k, nn->stream, error);
}

extern "C" enum mn_status mn_cuda_nn_softmax_grad(mn_cuda_nn *nn, const float *weights,
                                                  const float *d_weights, uint64_t groups,
                                                  uint32_t k, float *out_d_scores, mn_error *error)
{
    mn_narrow_forget(nn, out_d_scores, groups * k * sizeof *out_d_scores);
    return mn_cuda_softmax_grad(weights, d_weights, groups, k, out_d_scores, nn->stream, error);
}

/* ---- Dropout: a thread takes four columns of a row, which one Philox block serves ---- */

static const uint32_t DROPOUT_PURPOSE = 0x8f8e, DROPOUT_COLUMNS = 4; /* as nn_dropout.c */

struct dropout_op {
    mn_cuda_dropout options;
    float *x, scale;
    uint32_t width, least;
    bool whole; /* vectors of four */
    template <int V> MEMBER void at(uint64_t i) const
    {
        const uint32_t per_row = (width + DROPOUT_COLUMNS - 1) / DROPOUT_COLUMNS;
        const uint64_t row = i / per_row, position = options.first_position + row;
        const uint32_t block = (uint32_t)(i % per_row), first = block * DROPOUT_COLUMNS;
        const uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32),
                                     block | options.layer << 16, (uint32_t)options.step};
        const uint32_t key[2] = {(uint32_t)options.seed ^ DROPOUT_PURPOSE,
                                 (uint32_t)(options.seed >> 32) ^ (uint32_t)(options.step >> 32)};
        float *mine = x + row * width + first, v[4] = {};
        uint32_t words[4];
        philox(counter, key, words);
        if (whole)
            get(mine, v);
#pragma unroll
        for (uint32_t e = 0; e < DROPOUT_COLUMNS; e++)
            if (whole)
                v[e] = words[e] < least ? 0 : v[e] * scale;
            else if (first + e < width)
                mine[e] = words[e] < least ? 0 : mine[e] * scale;
        if (whole)
            put(v, mine);
    }
};

extern "C" enum mn_status mn_cuda_nn_dropout(mn_cuda_nn *nn, const mn_cuda_dropout *dropout,
                                             uint64_t rows, uint32_t width, float *x,
                                             mn_error *error)
{
    const uint32_t least = (uint32_t)lround((double)dropout->share * 4294967295.0);
    const float scale = (float)(1 / (1 - (double)dropout->share));
    const dropout_op op = {*dropout, x, scale, width, least, fours(width, {x})};
    mn_narrow_forget(nn, x, rows * width * sizeof *x);
    return queue_each(nn, op, rows * ((width + DROPOUT_COLUMNS - 1) / DROPOUT_COLUMNS), false,
                      error);
}
