/* Operations along rows and element by element (nn_cpu.h). Sums along a row use 16 lanes, so that
 * the compiler may keep them in vector registers without reordering anything. */
#include <math.h>

#include "nn_cpu.h"
#include "nn_math.h"

enum { LANES = 16 };

#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE mn_real lanes_total(const mn_real lanes[LANES])
{
    mn_real total = 0;
    for (int i = 0; i < LANES; i++)
        total += lanes[i];
    return total;
}

ALWAYS_INLINE mn_real row_sum(uint32_t n, const mn_real *x)
{
    mn_real lanes[LANES] = {0};
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int lane = 0; lane < LANES; lane++)
            lanes[lane] += x[i + lane];
    for (; i < n; i++)
        lanes[0] += x[i];
    return lanes_total(lanes);
}

/* Sum of (x - shift) * (y - shift). */
ALWAYS_INLINE mn_real row_product(uint32_t n, const mn_real *x, const mn_real *y, mn_real shift)
{
    mn_real lanes[LANES] = {0};
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int lane = 0; lane < LANES; lane++)
            lanes[lane] += (x[i + lane] - shift) * (y[i + lane] - shift);
    for (; i < n; i++)
        lanes[0] += (x[i] - shift) * (y[i] - shift);
    return lanes_total(lanes);
}

/* ---- Embedding ---- */

void mn_nn_embed(const mn_sequences *batch, uint32_t width, const uint8_t *bytes,
                 const mn_real *byte_table, const mn_real *position_table, mn_real *x)
{
    for (uint32_t s = 0; s < batch->sequences; s++)
        for (uint64_t token = batch->starts[s]; token < batch->starts[s + 1]; token++) {
            const mn_real *of_byte = byte_table + (uint64_t)bytes[token] * width;
            const mn_real *of_position = position_table + (token - batch->starts[s]) * width;
            for (uint64_t i = 0; i < width; i++)
                x[token * width + i] = of_byte[i] + of_position[i];
        }
}

void mn_nn_embed_grad(const mn_sequences *batch, uint32_t width, const uint8_t *bytes,
                      const mn_real *d_x, mn_real *d_byte_table, mn_real *d_position_table)
{
    for (uint32_t s = 0; s < batch->sequences; s++)
        for (uint64_t token = batch->starts[s]; token < batch->starts[s + 1]; token++) {
            mn_nn_add(width, d_x + token * width, d_byte_table + (uint64_t)bytes[token] * width);
            mn_nn_add(width, d_x + token * width,
                      d_position_table + (token - batch->starts[s]) * width);
        }
}

/* ---- Bias ---- */

MN_CLONES void mn_nn_bias(uint64_t rows, uint32_t width, const mn_real *bias, mn_real *x)
{
    for (uint64_t row = 0; row < rows; row++)
        for (uint32_t i = 0; i < width; i++)
            x[row * width + i] += bias[i];
}

MN_CLONES void mn_nn_bias_grad(uint64_t rows, uint32_t width, const mn_real *d_x, mn_real *d_bias)
{
    for (uint64_t row = 0; row < rows; row++)
        for (uint32_t i = 0; i < width; i++)
            d_bias[i] += d_x[row * width + i];
}

/* ---- Norms ---- */

MN_CLONES void mn_nn_norm(uint64_t rows, uint32_t width, const mn_real *x, const mn_real *gain,
                          mn_real *out_mean, mn_real *out_inverse, mn_real *out)
{
    for (uint64_t row = 0; row < rows; row++, x += width, out += width) {
        mn_real mean = row_sum(width, x) / (mn_real)width;
        mn_real variance = row_product(width, x, x, mean) / (mn_real)width;
        mn_real inverse = (mn_real)(1.0 / sqrt((double)variance + 1e-5));
        for (uint32_t i = 0; i < width; i++)
            out[i] = (x[i] - mean) * inverse * gain[i];
        out_mean[row] = mean;
        out_inverse[row] = inverse;
    }
}

/* With n = (x - mean) * inverse and e = d_out * gain:
 * d_x = inverse * (e - mean(e) - n * mean(e * n)). */
MN_CLONES void mn_nn_norm_grad(uint64_t rows, uint32_t width, const mn_norm_saved *saved,
                               const mn_real *d_out, mn_real *d_gain, mn_real *d_x)
{
    const mn_real *gain = saved->gain, *x = saved->x;
    for (uint64_t row = 0; row < rows; row++, x += width, d_out += width, d_x += width) {
        mn_real mean = saved->mean[row], inverse = saved->inverse[row];
        mn_real sums[LANES] = {0}, products[LANES] = {0};
        uint32_t i = 0;
        for (; i + LANES <= width; i += LANES)
            for (int lane = 0; lane < LANES; lane++) {
                mn_real e = d_out[i + lane] * gain[i + lane];
                sums[lane] += e;
                products[lane] += e * ((x[i + lane] - mean) * inverse);
            }
        for (; i < width; i++) {
            sums[0] += d_out[i] * gain[i];
            products[0] += d_out[i] * gain[i] * ((x[i] - mean) * inverse);
        }
        mn_real e_mean = lanes_total(sums) / (mn_real)width;
        mn_real e_n_mean = lanes_total(products) / (mn_real)width;
        for (i = 0; i < width; i++) {
            mn_real n = (x[i] - mean) * inverse;
            d_gain[i] += d_out[i] * n;
            d_x[i] += inverse * (d_out[i] * gain[i] - e_mean - n * e_n_mean);
        }
    }
}

MN_CLONES void mn_nn_rms(const mn_rms *rms, const mn_real *x, const mn_real *gain,
                         mn_real *out_inverse, mn_real *out)
{
    uint32_t width = rms->width;
    for (uint64_t run = 0; run < rms->runs; run++, x += width, out += width) {
        const mn_real *run_gain = gain ? gain + run % rms->gains * width : NULL;
        double square = (double)row_product(width, x, x, 0);
        mn_real inverse = (mn_real)(1.0 / sqrt(square / width + 1e-6));
        out_inverse[run] = inverse;
        for (uint32_t i = 0; i < width; i++)
            out[i] = x[i] * inverse * (run_gain ? run_gain[i] : 1) * rms->target;
    }
}

/* With n = x * inverse and e = d_out * gain * target: d_x = inverse * (e - n * mean(e * n)). */
MN_CLONES void mn_nn_rms_grad(const mn_rms *rms, const mn_real *x, const mn_real *gain,
                              const mn_real *inverses, const mn_real *d_out, mn_real *d_gain,
                              bool add, mn_real *d_x)
{
    uint32_t width = rms->width;
    for (uint64_t run = 0; run < rms->runs; run++, x += width, d_out += width, d_x += width) {
        uint64_t first = gain ? run % rms->gains * width : 0;
        mn_real inverse = inverses[run], product = 0;
        for (uint32_t i = 0; i < width; i++)
            product += d_out[i] * (gain ? gain[first + i] : 1) * x[i];
        mn_real e_n_mean = product * rms->target * inverse / (mn_real)width;
        for (uint32_t i = 0; i < width; i++) {
            mn_real e = d_out[i] * (gain ? gain[first + i] : 1) * rms->target;
            mn_real d = inverse * (e - x[i] * inverse * e_n_mean);
            if (gain)
                d_gain[first + i] += d_out[i] * x[i] * inverse * rms->target;
            d_x[i] = add ? d_x[i] + d : d;
        }
    }
}

/* ---- Activations ---- */

ALWAYS_INLINE mn_real sigmoid(mn_real x) { return 1 / (1 + real_exp(-x)); }

#define GELU_SCALE ((mn_real)1.5957691216057308) /* 2 sqrt(2/pi) */
#define GELU_CUBE  ((mn_real)0.044715)

MN_CLONES void mn_nn_gelu(uint64_t n, const mn_real *x, mn_real *out)
{
    for (uint64_t i = 0; i < n; i++)
        out[i] = x[i] * sigmoid(GELU_SCALE * (x[i] + GELU_CUBE * x[i] * x[i] * x[i]));
}

MN_CLONES void mn_nn_gelu_grad(uint64_t n, const mn_real *x, mn_real *d)
{
    for (uint64_t i = 0; i < n; i++) {
        mn_real square = x[i] * x[i];
        mn_real s = sigmoid(GELU_SCALE * x[i] * (1 + GELU_CUBE * square));
        mn_real slope = GELU_SCALE * (1 + 3 * GELU_CUBE * square);
        d[i] *= s + x[i] * s * (1 - s) * slope;
    }
}

MN_CLONES void mn_nn_relu(uint64_t n, mn_real *x)
{
    for (uint64_t i = 0; i < n; i++)
        x[i] = x[i] > 0 ? x[i] : 0;
}

MN_CLONES void mn_nn_relu_grad(uint64_t n, const mn_real *out, mn_real *d)
{
    for (uint64_t i = 0; i < n; i++)
        d[i] = out[i] > 0 ? d[i] : 0;
}

MN_CLONES void mn_nn_silu_gate(uint64_t n, const mn_real *y, const mn_real *a, mn_real *out)
{
    for (uint64_t i = 0; i < n; i++)
        out[i] = y[i] * a[i] * sigmoid(a[i]);
}

MN_CLONES void mn_nn_silu_gate_grad(uint64_t n, const mn_real *y, const mn_real *a,
                                    const mn_real *d_out, mn_real *d_y, mn_real *d_a)
{
    for (uint64_t i = 0; i < n; i++) {
        mn_real s = sigmoid(a[i]), d = d_out[i];
        d_y[i] = d * a[i] * s;
        d_a[i] = d * y[i] * s * (1 + a[i] * (1 - s));
    }
}

MN_CLONES void mn_nn_add(uint64_t n, const mn_real *a, mn_real *x)
{
    for (uint64_t i = 0; i < n; i++)
        x[i] += a[i];
}

void mn_nn_scale(uint64_t n, mn_real factor, mn_real *x)
{
    if (factor != 1)
        for (uint64_t i = 0; i < n; i++)
            x[i] *= factor;
}

/* ---- Loss ---- */

ALWAYS_INLINE uint32_t likeliest(const mn_real *logits)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < MN_BYTES; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

MN_CLONES void mn_nn_cross_entropy(uint64_t rows, mn_real *logits, const uint16_t *targets,
                                   mn_loss *out_loss)
{
    mn_loss loss = {0, 0, 0};
    for (uint64_t row = 0; row < rows; row++, logits += MN_BYTES) {
        uint32_t target = targets[row];
        if (target >= MN_BYTES) {
            memset(logits, 0, MN_BYTES * sizeof *logits);
            continue;
        }
        uint32_t best = likeliest(logits);
        mn_real highest = logits[best], of_target = logits[target];
        for (int i = 0; i < MN_BYTES; i++)
            logits[i] = real_exp(logits[i] - highest);
        mn_real sum = row_sum(MN_BYTES, logits), inverse = 1 / sum;
        for (int i = 0; i < MN_BYTES; i++)
            logits[i] *= inverse;
        logits[target] -= 1;
        loss.nats += log((double)sum) - (double)(of_target - highest);
        loss.targets++;
        loss.correct += best == target;
    }
    *out_loss = loss;
}
