/* nn.h's table as the CPU fills it: arrays are the host's, and a call's work is done when it
 * returns. Here alone, so that a test may put a function of its own in the place of one. */
#include "nn_cpu.h"

#include <string.h>

static uint64_t cpu_scratch_bytes(const mn_nn *nn, const mn_nn_room *room)
{
    (void)nn;
    const mn_attention *attention = &room->attention;
    uint64_t bytes =
        mn_attention_scratch_bytes(attention->width, attention->heads, attention->batch.longest);
    uint64_t search = room->search ? mn_nn_search_bytes(room->search) : 0;
    return bytes > search ? bytes : search;
}

static void cpu_begin(const mn_nn *nn, const mn_nn_room *room, void *scratch)
{
    (void)nn, (void)room, (void)scratch; /* given to the calls that use it */
}

static void cpu_write(const mn_nn *nn, void *to, const void *from_host, uint64_t bytes)
{
    (void)nn;
    memcpy(to, from_host, bytes);
}

static enum mn_status cpu_read(const mn_nn *nn, void *out_host, const void *from, uint64_t bytes,
                               mn_error *error)
{
    (void)nn, (void)error; /* cannot fail */
    memcpy(out_host, from, bytes);
    return MN_OK;
}

static enum mn_status cpu_wait(const mn_nn *nn, mn_error *error)
{
    (void)nn, (void)error; /* nothing is ever queued */
    return MN_OK;
}

static void cpu_zero(const mn_nn *nn, void *to, uint64_t bytes)
{
    (void)nn;
    memset(to, 0, bytes);
}

static void cpu_copy(const mn_nn *nn, void *to, const void *from, uint64_t bytes)
{
    (void)nn;
    memcpy(to, from, bytes);
}

static enum mn_status cpu_cross_entropy(const mn_nn *nn, uint64_t rows, mn_real *logits,
                                        const uint16_t *targets, mn_loss *out_loss, mn_error *error)
{
    (void)nn, (void)error; /* cannot fail */
    mn_nn_cross_entropy(rows, logits, targets, out_loss);
    return MN_OK;
}

static void cpu_embed(const mn_nn *nn, const mn_sequences *batch, uint32_t width,
                      const uint8_t *bytes, const mn_real *byte_table,
                      const mn_real *position_table, mn_real *x)
{
    (void)nn;
    mn_nn_embed(batch, width, bytes, byte_table, position_table, x);
}

static void cpu_embed_grad(const mn_nn *nn, const mn_sequences *batch, uint32_t width,
                           const uint8_t *bytes, const mn_real *d_x, mn_real *d_byte_table,
                           mn_real *d_position_table)
{
    (void)nn;
    mn_nn_embed_grad(batch, width, bytes, d_x, d_byte_table, d_position_table);
}

static void cpu_gemm(const mn_nn *nn, bool transpose_a, bool transpose_b, uint64_t m, uint64_t n,
                     uint64_t k, mn_real alpha, const mn_real *a, const mn_real *b, mn_real beta,
                     mn_real *c)
{
    (void)nn;
    mn_nn_gemm(transpose_a, transpose_b, m, n, k, alpha, a, b, beta, c);
}

static void cpu_bias(const mn_nn *nn, uint64_t rows, uint32_t width, const mn_real *bias,
                     mn_real *x)
{
    (void)nn;
    mn_nn_bias(rows, width, bias, x);
}

static void cpu_bias_grad(const mn_nn *nn, uint64_t rows, uint32_t width, const mn_real *d_x,
                          mn_real *d_bias)
{
    (void)nn;
    mn_nn_bias_grad(rows, width, d_x, d_bias);
}

static enum mn_status cpu_search(const mn_nn *nn, const mn_search *search, const mn_real *queries,
                                 const mn_real *keys, uint64_t *out_rows, mn_real *out_scores,
                                 void *scratch, mn_error *error)
{
    (void)nn;
    return mn_nn_search(search, queries, keys, out_rows, out_scores, scratch, error);
}

static void cpu_search_grad(const mn_nn *nn, const mn_search *search, const mn_real *queries,
                            const mn_real *keys, const uint64_t *rows,
                            const mn_real *score_gradients, mn_real *query_gradients,
                            mn_real *key_gradients)
{
    (void)nn;
    mn_nn_search_grad(search, queries, keys, rows, score_gradients, query_gradients, key_gradients);
}

static void cpu_softmax(const mn_nn *nn, mn_real *scores, uint64_t groups, uint32_t k)
{
    (void)nn;
    mn_nn_softmax(scores, groups, k);
}

static void cpu_softmax_grad(const mn_nn *nn, const mn_real *weights, const mn_real *d_weights,
                             uint64_t groups, uint32_t k, mn_real *out_d_scores)
{
    (void)nn;
    mn_nn_softmax_grad(weights, d_weights, groups, k, out_d_scores);
}

static void cpu_norm(const mn_nn *nn, uint64_t rows, uint32_t width, const mn_real *x,
                     const mn_real *gain, mn_real *out_mean, mn_real *out_inverse, mn_real *out)
{
    (void)nn;
    mn_nn_norm(rows, width, x, gain, out_mean, out_inverse, out);
}

static void cpu_norm_grad(const mn_nn *nn, uint64_t rows, uint32_t width,
                          const mn_norm_saved *saved, const mn_real *d_out, mn_real *d_gain,
                          mn_real *d_x)
{
    (void)nn;
    mn_nn_norm_grad(rows, width, saved, d_out, d_gain, d_x);
}

static void cpu_rms(const mn_nn *nn, const mn_rms *rms, const mn_real *x, const mn_real *gain,
                    mn_real *out_inverse, mn_real *out)
{
    (void)nn;
    mn_nn_rms(rms, x, gain, out_inverse, out);
}

static void cpu_rms_grad(const mn_nn *nn, const mn_rms *rms, const mn_real *x, const mn_real *gain,
                         const mn_real *inverse, const mn_real *d_out, mn_real *d_gain, bool add,
                         mn_real *d_x)
{
    (void)nn;
    mn_nn_rms_grad(rms, x, gain, inverse, d_out, d_gain, add, d_x);
}

static void cpu_gelu(const mn_nn *nn, uint64_t n, const mn_real *x, mn_real *out)
{
    (void)nn;
    mn_nn_gelu(n, x, out);
}

static void cpu_gelu_grad(const mn_nn *nn, uint64_t n, const mn_real *x, mn_real *d)
{
    (void)nn;
    mn_nn_gelu_grad(n, x, d);
}

static void cpu_relu(const mn_nn *nn, uint64_t n, mn_real *x)
{
    (void)nn;
    mn_nn_relu(n, x);
}

static void cpu_relu_grad(const mn_nn *nn, uint64_t n, const mn_real *out, mn_real *d)
{
    (void)nn;
    mn_nn_relu_grad(n, out, d);
}

static void cpu_silu_gate(const mn_nn *nn, uint64_t n, const mn_real *y, const mn_real *a,
                          mn_real *out)
{
    (void)nn;
    mn_nn_silu_gate(n, y, a, out);
}

static void cpu_silu_gate_grad(const mn_nn *nn, uint64_t n, const mn_real *y, const mn_real *a,
                               const mn_real *d_out, mn_real *d_y, mn_real *d_a)
{
    (void)nn;
    mn_nn_silu_gate_grad(n, y, a, d_out, d_y, d_a);
}

static void cpu_add(const mn_nn *nn, uint64_t n, const mn_real *a, mn_real *x)
{
    (void)nn;
    mn_nn_add(n, a, x);
}

static void cpu_scale(const mn_nn *nn, uint64_t n, mn_real factor, mn_real *x)
{
    (void)nn;
    mn_nn_scale(n, factor, x);
}

static void cpu_dropout(const mn_nn *nn, const mn_dropout *dropout, uint64_t rows, uint32_t width,
                        mn_real *x)
{
    (void)nn;
    mn_nn_dropout(dropout, rows, width, x);
}

static void cpu_column_sums(const mn_nn *nn, uint64_t rows, uint32_t width, const mn_real *x,
                            double *out_sums)
{
    (void)nn;
    mn_nn_column_sums(rows, width, x, out_sums);
}

static void cpu_column_squares(const mn_nn *nn, uint64_t rows, uint32_t width, const mn_real *x,
                               const mn_real *mean, double *out_sums)
{
    (void)nn;
    mn_nn_column_squares(rows, width, x, mean, out_sums);
}

static void cpu_batch_mean(const mn_nn *nn, uint32_t width, double count, const double *sums,
                           mn_real *out_mean)
{
    (void)nn;
    mn_nn_batch_mean(width, count, sums, out_mean);
}

static void cpu_batch_variance(const mn_nn *nn, uint32_t width, double count, const double *squares,
                               const mn_real *mean, mn_real *out_inverse, mn_real *running)
{
    (void)nn;
    mn_nn_batch_variance(width, count, squares, mean, out_inverse, running);
}

static void cpu_batch_running(const mn_nn *nn, uint32_t width, const mn_real *running,
                              mn_real *out_mean, mn_real *out_inverse)
{
    (void)nn;
    mn_nn_batch_running(width, running, out_mean, out_inverse);
}

static void cpu_batch_norm(const mn_nn *nn, const mn_batch_norm *norm, const mn_real *shift,
                           mn_real *out)
{
    (void)nn;
    mn_nn_batch_norm(norm, shift, out);
}

static void cpu_batch_norm_sums(const mn_nn *nn, const mn_batch_norm *norm, const mn_real *d_out,
                                double *out_sums)
{
    (void)nn;
    mn_nn_batch_norm_sums(norm, d_out, out_sums);
}

static void cpu_batch_norm_grad(const mn_nn *nn, const mn_batch_norm *norm, double count,
                                const double *sums, mn_real *d)
{
    (void)nn;
    mn_nn_batch_norm_grad(norm, count, sums, d);
}

static void cpu_add_sums(const mn_nn *nn, uint32_t n, const double *sums, mn_real *x)
{
    (void)nn;
    mn_nn_add_sums(n, sums, x);
}

static void cpu_attention(const mn_nn *nn, const mn_attention *attention, const mn_real *qkv,
                          mn_real *out_log_sums, mn_real *out, void *scratch)
{
    (void)nn;
    mn_attention_forward(attention, qkv, out_log_sums, out, scratch);
}

static void cpu_attention_grad(const mn_nn *nn, const mn_attention *attention,
                               const mn_attention_saved *saved, const mn_real *d_out,
                               mn_real *d_qkv, void *scratch)
{
    (void)nn;
    mn_attention_backward(attention, saved, d_out, d_qkv, scratch);
}

const mn_nn *mn_nn_cpu(void)
{
    static const mn_nn cpu = {
        .scratch_bytes = cpu_scratch_bytes,
        .begin = cpu_begin,
        .write = cpu_write,
        .read = cpu_read,
        .wait = cpu_wait,
        .zero = cpu_zero,
        .copy = cpu_copy,
        .embed = cpu_embed,
        .embed_grad = cpu_embed_grad,
        .gemm = cpu_gemm,
        .bias = cpu_bias,
        .bias_grad = cpu_bias_grad,
        .search = cpu_search,
        .search_grad = cpu_search_grad,
        .softmax = cpu_softmax,
        .softmax_grad = cpu_softmax_grad,
        .norm = cpu_norm,
        .norm_grad = cpu_norm_grad,
        .rms = cpu_rms,
        .rms_grad = cpu_rms_grad,
        .gelu = cpu_gelu,
        .gelu_grad = cpu_gelu_grad,
        .relu = cpu_relu,
        .relu_grad = cpu_relu_grad,
        .silu_gate = cpu_silu_gate,
        .silu_gate_grad = cpu_silu_gate_grad,
        .add = cpu_add,
        .scale = cpu_scale,
        .dropout = cpu_dropout,
        .cross_entropy = cpu_cross_entropy,
        .column_sums = cpu_column_sums,
        .column_squares = cpu_column_squares,
        .batch_mean = cpu_batch_mean,
        .batch_variance = cpu_batch_variance,
        .batch_running = cpu_batch_running,
        .batch_norm = cpu_batch_norm,
        .batch_norm_sums = cpu_batch_norm_sums,
        .batch_norm_grad = cpu_batch_norm_grad,
        .add_sums = cpu_add_sums,
        .attention = cpu_attention,
        .attention_grad = cpu_attention_grad,
    };
    return &cpu;
}
