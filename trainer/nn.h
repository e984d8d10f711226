/* The operations that the model is made of, each with its backward pass. Arrays are dense and
 * row-major; [rows][width] unless said. Backward functions add into gradients of parameters, and
 * into d_input unless they say that they work in place. Private to the trainer. */
#ifndef MN_NN_H
#define MN_NN_H

#include "mn_kernels.h"
#include "mn_trainer.h"

/* Functions of hot loops, compiled for three instruction sets, chosen when the program starts. */
#define MN_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))

/* ---- Through the kernels (nn_kernels.c; the double build of the tests has its own) ---- */

/* C[m][n] = alpha * op(A) op(B) + beta * C. */
void mn_nn_gemm(bool transpose_a, bool transpose_b, uint64_t m, uint64_t n, uint64_t k,
                mn_real alpha, const mn_real *a, const mn_real *b, mn_real beta, mn_real *c);
/* As mn_product_search and mn_product_search_grad. */
uint64_t mn_nn_search_bytes(const mn_search *search);
enum mn_status mn_nn_search(const mn_search *search, const mn_real *queries, const mn_real *keys,
                            uint64_t *out_rows, mn_real *out_scores, void *scratch,
                            mn_error *error);
void mn_nn_search_grad(const mn_search *search, const mn_real *queries, const mn_real *keys,
                       const uint64_t *rows, const mn_real *score_gradients,
                       mn_real *query_gradients, mn_real *key_gradients);
/* Softmax over runs of k, in place; d_scores from weights and d_weights. */
void mn_nn_softmax(mn_real *scores, uint64_t groups, uint32_t k);
void mn_nn_softmax_grad(const mn_real *weights, const mn_real *d_weights, uint64_t groups,
                        uint32_t k, mn_real *out_d_scores);

/* ---- Element by element, and along a row (nn_ops.c) ---- */

/* y = x W, W [in][out]; beta 0 or 1 (adds to y). Backward: d_weights += x^T d_y; d_x = d_y W^T +
 * beta * d_x. */
typedef struct mn_linear {
    uint64_t rows;
    uint32_t in, out;
} mn_linear;
void mn_nn_linear(mn_linear shape, const mn_real *x, const mn_real *weights, mn_real beta,
                  mn_real *y);
void mn_nn_linear_grad(mn_linear shape, const mn_real *x, const mn_real *weights,
                       const mn_real *d_y, mn_real *d_weights, mn_real beta, mn_real *d_x);
void mn_nn_bias(uint64_t rows, uint32_t width, const mn_real *bias, mn_real *x);
void mn_nn_bias_grad(uint64_t rows, uint32_t width, const mn_real *d_x, mn_real *d_bias);

/* LayerNorm with gain: out = (x - mean) * inverse * gain, inverse = 1/sqrt(variance + 1e-5); mean
 * and inverse [rows] are kept for backward. */
void mn_nn_norm(uint64_t rows, uint32_t width, const mn_real *x, const mn_real *gain,
                mn_real *out_mean, mn_real *out_inverse, mn_real *out);
typedef struct mn_norm_saved {
    const mn_real *x, *gain, *mean, *inverse;
} mn_norm_saved;
void mn_nn_norm_grad(uint64_t rows, uint32_t width, const mn_norm_saved *saved,
                     const mn_real *d_out, mn_real *d_gain, mn_real *d_x);

/* RMS norm of runs of `width`: out = x * inverse [* gain], inverse = 1/sqrt(mean(x^2) + 1e-6).
 * Run r uses gain[r % gains]; NULL: 1. `target` multiplies the result. */
typedef struct mn_rms {
    uint64_t runs;
    uint32_t width, gains;
    mn_real target;
} mn_rms;
void mn_nn_rms(const mn_rms *rms, const mn_real *x, const mn_real *gain, mn_real *out_inverse,
               mn_real *out);
/* d_x is assigned when `add` is false. d_gain may be NULL when gain is. */
void mn_nn_rms_grad(const mn_rms *rms, const mn_real *x, const mn_real *gain,
                    const mn_real *inverse, const mn_real *d_out, mn_real *d_gain, bool add,
                    mn_real *d_x);

/* GELU in tanh form: x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)). d is multiplied in place. */
void mn_nn_gelu(uint64_t n, const mn_real *x, mn_real *out);
void mn_nn_gelu_grad(uint64_t n, const mn_real *x, mn_real *d);
void mn_nn_relu(uint64_t n, mn_real *x);
/* Zeroes d where the ReLU's output is zero. */
void mn_nn_relu_grad(uint64_t n, const mn_real *out, mn_real *d);
/* out = y * silu(a), silu(a) = a * sigmoid(a). Backward assigns d_y and d_a. */
void mn_nn_silu_gate(uint64_t n, const mn_real *y, const mn_real *a, mn_real *out);
void mn_nn_silu_gate_grad(uint64_t n, const mn_real *y, const mn_real *a, const mn_real *d_out,
                          mn_real *d_y, mn_real *d_a);
void mn_nn_add(uint64_t n, const mn_real *a, mn_real *x);

/* Cross entropy over MN_BYTES logits a row, in nats; logits become probability - target (0 where
 * the target is MN_NO_TARGET). */
void mn_nn_cross_entropy(uint64_t rows, mn_real *logits, const uint16_t *targets,
                         mn_loss *out_loss);

/* ---- Dropout (nn_dropout.c) ---- */

/* Which elements are taken depends on all but `share`, which says how many: in [0, 1). layer and
 * blocks of 4 columns below 2^16. */
typedef struct mn_dropout {
    uint64_t seed, step, first_position; /* of row 0 in the step's batch */
    uint32_t layer;
    float share;
} mn_dropout;
/* x [rows][width], in place: 0, or x / (1 - share). The backward pass is the same call. */
void mn_nn_dropout(const mn_dropout *dropout, uint64_t rows, uint32_t width, mn_real *x);

/* ---- Batch norm of each column (nn_batch_norm.c) ---- */

/* out[c] = sum over rows of x[row][c]; of (x[row][c] - mean[c])^2. */
void mn_nn_column_sums(uint64_t rows, uint32_t width, const mn_real *x, double *out_sums);
void mn_nn_column_squares(uint64_t rows, uint32_t width, const mn_real *x, const mn_real *mean,
                          double *out_sums);
typedef struct mn_batch_norm {
    uint64_t rows;
    uint32_t width;
    const mn_real *x, *mean, *inverse, *gain; /* [rows][width], then [width] each */
} mn_batch_norm;
/* With n = (x - mean) * inverse: out = n * gain + shift. */
void mn_nn_batch_norm(const mn_batch_norm *norm, const mn_real *shift, mn_real *out);
/* out_sums[c] = sum of d_out; out_sums[width + c] = sum of d_out * n. */
void mn_nn_batch_norm_sums(const mn_batch_norm *norm, const mn_real *d_out, double *out_sums);
/* In place: gain * inverse * (d - mean(d) - n * mean(d * n)); the means are sums / count. */
void mn_nn_batch_norm_grad(const mn_batch_norm *norm, double count, const double *sums, mn_real *d);

/* ---- Causal attention over packed sequences (attention.c) ---- */

/* qkv [tokens][3 * width] (query, key, value; heads one after the other); sequence s has
 * lengths[s] tokens, or `length` when lengths is NULL. */
typedef struct mn_attention {
    uint32_t width, heads, sequences, length;
    const uint32_t *lengths;
} mn_attention;
uint64_t mn_attention_scratch_bytes(uint32_t width, uint32_t heads, uint32_t length_max);
/* out [tokens][width]; out_log_sums [tokens][heads] is kept for backward. */
void mn_attention_forward(const mn_attention *attention, const mn_real *qkv, mn_real *out_log_sums,
                          mn_real *out, void *scratch);
typedef struct mn_attention_saved {
    const mn_real *qkv, *log_sums, *out;
} mn_attention_saved;
/* d_qkv is assigned. */
void mn_attention_backward(const mn_attention *attention, const mn_attention_saved *saved,
                           const mn_real *d_out, mn_real *d_qkv, void *scratch);

#endif
