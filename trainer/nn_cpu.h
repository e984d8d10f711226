/* The CPU's functions behind nn.h's table, over host memory: each as the member of its name there,
 * done when it returns. Private to the trainer. */
#ifndef MN_NN_CPU_H
#define MN_NN_CPU_H

#include "nn.h"

/* Functions of hot loops, compiled for three instruction sets, chosen when the program starts. */
#define MN_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))

/* ---- Through the kernels (nn_kernels.c; the double build of the tests has its own) ---- */

void mn_nn_gemm(bool transpose_a, bool transpose_b, uint64_t m, uint64_t n, uint64_t k,
                mn_real alpha, const mn_real *a, const mn_real *b, mn_real beta, mn_real *c);
uint64_t mn_nn_search_bytes(const mn_search *search);
enum mn_status mn_nn_search(const mn_search *search, const mn_real *queries, const mn_real *keys,
                            uint64_t *out_rows, mn_real *out_scores, void *scratch,
                            mn_error *error);
void mn_nn_search_grad(const mn_search *search, const mn_real *queries, const mn_real *keys,
                       const uint64_t *rows, const mn_real *score_gradients,
                       mn_real *query_gradients, mn_real *key_gradients);
void mn_nn_softmax(mn_real *scores, uint64_t groups, uint32_t k);
void mn_nn_softmax_grad(const mn_real *weights, const mn_real *d_weights, uint64_t groups,
                        uint32_t k, mn_real *out_d_scores);

/* ---- Element by element, and along a row (nn_ops.c) ---- */

void mn_nn_embed(const mn_sequences *batch, uint32_t width, const uint8_t *bytes,
                 const mn_real *byte_table, const mn_real *position_table, mn_real *x);
void mn_nn_embed_grad(const mn_sequences *batch, uint32_t width, const uint8_t *bytes,
                      const mn_real *d_x, mn_real *d_byte_table, mn_real *d_position_table);
void mn_nn_bias(uint64_t rows, uint32_t width, const mn_real *bias, mn_real *x);
void mn_nn_bias_grad(uint64_t rows, uint32_t width, const mn_real *d_x, mn_real *d_bias);
void mn_nn_norm(uint64_t rows, uint32_t width, const mn_real *x, const mn_real *gain,
                mn_real *out_mean, mn_real *out_inverse, mn_real *out);
void mn_nn_norm_grad(uint64_t rows, uint32_t width, const mn_norm_saved *saved,
                     const mn_real *d_out, mn_real *d_gain, mn_real *d_x);
void mn_nn_rms(const mn_rms *rms, const mn_real *x, const mn_real *gain, mn_real *out_inverse,
               mn_real *out);
void mn_nn_rms_grad(const mn_rms *rms, const mn_real *x, const mn_real *gain,
                    const mn_real *inverse, const mn_real *d_out, mn_real *d_gain, bool add,
                    mn_real *d_x);
void mn_nn_gelu(uint64_t n, const mn_real *x, mn_real *out);
void mn_nn_gelu_grad(uint64_t n, const mn_real *x, mn_real *d);
void mn_nn_relu(uint64_t n, mn_real *x);
void mn_nn_relu_grad(uint64_t n, const mn_real *out, mn_real *d);
void mn_nn_silu_gate(uint64_t n, const mn_real *y, const mn_real *a, mn_real *out);
void mn_nn_silu_gate_grad(uint64_t n, const mn_real *y, const mn_real *a, const mn_real *d_out,
                          mn_real *d_y, mn_real *d_a);
void mn_nn_add(uint64_t n, const mn_real *a, mn_real *x);
void mn_nn_scale(uint64_t n, mn_real factor, mn_real *x);
void mn_nn_cross_entropy(uint64_t rows, mn_real *logits, const uint16_t *targets,
                         mn_loss *out_loss);

/* ---- Dropout (nn_dropout.c) ---- */

void mn_nn_dropout(const mn_dropout *dropout, uint64_t rows, uint32_t width, mn_real *x);

/* ---- Batch norm of each column (nn_batch_norm.c) ---- */

void mn_nn_column_sums(uint64_t rows, uint32_t width, const mn_real *x, double *out_sums);
void mn_nn_column_squares(uint64_t rows, uint32_t width, const mn_real *x, const mn_real *mean,
                          double *out_sums);
void mn_nn_batch_mean(uint32_t width, double count, const double *sums, mn_real *out_mean);
void mn_nn_batch_variance(uint32_t width, double count, const double *squares, const mn_real *mean,
                          mn_real *out_inverse, mn_real *running);
void mn_nn_batch_running(uint32_t width, const mn_real *running, mn_real *out_mean,
                         mn_real *out_inverse);
void mn_nn_batch_norm(const mn_batch_norm *norm, const mn_real *shift, mn_real *out);
void mn_nn_batch_norm_sums(const mn_batch_norm *norm, const mn_real *d_out, double *out_sums);
void mn_nn_batch_norm_grad(const mn_batch_norm *norm, double count, const double *sums, mn_real *d);
void mn_nn_add_sums(uint32_t n, const double *sums, mn_real *x);

/* ---- Causal attention over packed sequences (attention.c) ---- */

uint64_t mn_attention_scratch_bytes(uint32_t width, uint32_t heads, uint32_t length_max);
void mn_attention_forward(const mn_attention *attention, const mn_real *qkv, mn_real *out_log_sums,
                          mn_real *out, void *scratch);
void mn_attention_backward(const mn_attention *attention, const mn_attention_saved *saved,
                           const mn_real *d_out, mn_real *d_qkv, void *scratch);

#endif
