/* The operations of a language model on a GPU (library mn_kernels_cuda; sm_80 and newer): what
 * trainer/nn.h does on a CPU, with its order of arguments and its meaning. Numbers are f32 in
 * device memory unless said; arrays are dense, row-major and aligned to their elements (16 bytes,
 * and widths that are multiples of 4, are fastest). Work is queued on the context's stream; only
 * functions that say so block. No vendor's type is seen here.
 *
 * Bits: element by element those of trainer/nn.h's loops; sums along a row or over rows run in a
 * fixed tree of their own, so that two runs have the same bits: no floating-point number is added
 * atomically, and cuBLAS repeats itself on the same GPU. A sum of n terms is off by at most n *
 * 2^-24 times the sum of their magnitudes.
 *
 * Status: MN_UNAVAILABLE "device" without a driver or a GPU, and when a launch or a product was
 * refused; MN_NO_MEMORY "bytes"; MN_INVALID names the argument. */
#ifndef MN_NN_CUDA_H
#define MN_NN_CUDA_H

#include "mn_kernels_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- 1. The context: one device, one thread at a time ---- */

typedef struct mn_cuda_nn mn_cuda_nn;

typedef struct mn_cuda_nn_options {
    uint32_t device;    /* number of the GPU */
    bool bf16_products; /* factors of matrix products, of the search and of attention are rounded to
                           bf16 (nearest even), sums are f32; else all is f32 */
} mn_cuda_nn_options;

/* Makes the device current and opens cuBLAS, a stream for work, one for copies beside it, and their
 * events. Allocates what it owns; everything else is lent. */
enum mn_status mn_cuda_nn_create(const mn_cuda_nn_options *options, mn_cuda_nn **out_nn,
                                 mn_error *error);
/* After the work that is queued. NULL is fine. */
void mn_cuda_nn_destroy(mn_cuda_nn *nn);
void *mn_cuda_nn_stream(const mn_cuda_nn *nn); /* where the work is queued */

/* Device memory that operations use between their launches: lent until the next call or destroy,
 * aligned to 256 bytes. One block serves all: the largest of what the functions named *_bytes below
 * say. An operation that finds less answers MN_INVALID "scratch". */
void mn_cuda_nn_lend(mn_cuda_nn *nn, void *scratch, uint64_t bytes);
/* Lends bf16 memory [bytes / 4] to stand beside f32 memory `arena` [bytes]: operations whose output
 * in the arena will be a factor of a product round it while they hold it, and a factor is rounded
 * once however many products it has. Saves most of the memory traffic of products in bf16; nothing
 * else changes, to the bit. Attention's arrays are aligned to 32 bytes there. The arena is written
 * by this header's functions only, or `written` says what else did. NULL ends it. */
void mn_cuda_nn_lend_narrow(mn_cuda_nn *nn, const void *arena, uint64_t bytes, void *narrow);
void mn_cuda_nn_written(mn_cuda_nn *nn, const void *array, uint64_t bytes);

/* ---- 2. Memory and copies ---- */

enum mn_status mn_cuda_memory_create(uint64_t bytes, void **out_memory, mn_error *error);
void mn_cuda_memory_destroy(void *memory); /* NULL is fine; waits for the device */
/* Host memory that copies reach without a detour. */
enum mn_status mn_cuda_pinned_create(uint64_t bytes, void **out_memory, mn_error *error);
void mn_cuda_pinned_destroy(void *memory);
/* to: device, from: host memory of any kind, free again on return. Blocks. */
enum mn_status mn_cuda_memory_write(mn_cuda_nn *nn, void *to, const void *from, uint64_t bytes,
                                    mn_error *error);
/* to: host. Blocks until it is there. */
enum mn_status mn_cuda_memory_read(mn_cuda_nn *nn, void *to, const void *from, uint64_t bytes,
                                   mn_error *error);
enum mn_status mn_cuda_memory_zero(mn_cuda_nn *nn, void *memory, uint64_t bytes, mn_error *error);
enum mn_status mn_cuda_memory_copy(mn_cuda_nn *nn, void *to, const void *from, uint64_t bytes,
                                   mn_error *error); /* within the device */
/* Beside the work, on the stream for copies. out: after the work queued so far, device to pinned.
 * in: pinned to device, after copies queued earlier; what is queued from now on comes after it. */
enum mn_status mn_cuda_memory_copy_out(mn_cuda_nn *nn, void *to, const void *from, uint64_t bytes,
                                       mn_error *error);
enum mn_status mn_cuda_memory_copy_in(mn_cuda_nn *nn, void *to, const void *from, uint64_t bytes,
                                      mn_error *error);
/* Block until the copies, or all work, have been done; and tell what failed since. */
enum mn_status mn_cuda_memory_wait_copies(mn_cuda_nn *nn, mn_error *error);
enum mn_status mn_cuda_memory_wait(mn_cuda_nn *nn, mn_error *error);

/* Marks in the work, for times. */
enum mn_status mn_cuda_event_create(void **out_event, mn_error *error);
void mn_cuda_event_destroy(void *event);
enum mn_status mn_cuda_event_record(mn_cuda_nn *nn, void *event, mn_error *error);
/* Blocks until the later one has been reached. */
enum mn_status mn_cuda_event_seconds(void *earlier, void *later, double *out_seconds,
                                     mn_error *error);

/* ---- 3. Products (cuBLAS) ---- */

/* C[m][n] = alpha * op(A) op(B) + beta * C. Scratch: mn_cuda_nn_gemm_bytes. */
enum mn_status mn_cuda_nn_gemm(mn_cuda_nn *nn, bool transpose_a, bool transpose_b, uint64_t m,
                               uint64_t n, uint64_t k, float alpha, const float *a, const float *b,
                               float beta, float *c, mn_error *error);
uint64_t mn_cuda_nn_gemm_bytes(const mn_cuda_nn *nn, uint64_t m, uint64_t n, uint64_t k);

/* ---- 4. Element by element, and along a row ---- */

enum mn_status mn_cuda_nn_scale(mn_cuda_nn *nn, uint64_t n, float factor, float *x,
                                mn_error *error);
enum mn_status mn_cuda_nn_add(mn_cuda_nn *nn, uint64_t n, const float *a, float *x,
                              mn_error *error);
enum mn_status mn_cuda_nn_bias(mn_cuda_nn *nn, uint64_t rows, uint32_t width, const float *bias,
                               float *x, mn_error *error);
/* Functions that sum over rows: every block of `chunk` rows from the first to the last, then the
 * blocks; chunk is rows / 256 rounded up, at
 * least 64. Scratch: mn_cuda_nn_rows_bytes. */
uint64_t mn_cuda_nn_rows_bytes(uint64_t rows, uint32_t width);
enum mn_status mn_cuda_nn_bias_grad(mn_cuda_nn *nn, uint64_t rows, uint32_t width, const float *d_x,
                                    float *d_bias, mn_error *error);

/* Norms: rows of up to 8192 columns; of 2048 where whole vectors of 4 do not fit. */
enum mn_status mn_cuda_nn_norm(mn_cuda_nn *nn, uint64_t rows, uint32_t width, const float *x,
                               const float *gain, float *out_mean, float *out_inverse, float *out,
                               mn_error *error);
typedef struct mn_cuda_norm_saved {
    const float *x, *gain, *mean, *inverse;
} mn_cuda_norm_saved;
/* Adds to d_gain and d_x; sums over rows. */
enum mn_status mn_cuda_nn_norm_grad(mn_cuda_nn *nn, uint64_t rows, uint32_t width,
                                    const mn_cuda_norm_saved *saved, const float *d_out,
                                    float *d_gain, float *d_x, mn_error *error);

typedef struct mn_cuda_rms {
    uint64_t runs;
    uint32_t width, gains;
    float target;
} mn_cuda_rms;
enum mn_status mn_cuda_nn_rms(mn_cuda_nn *nn, const mn_cuda_rms *rms, const float *x,
                              const float *gain, float *out_inverse, float *out, mn_error *error);
/* d_x may be d_out. runs is a multiple of gains. With a gain, sums over rows: runs / gains rows of
 * gains * width. */
enum mn_status mn_cuda_nn_rms_grad(mn_cuda_nn *nn, const mn_cuda_rms *rms, const float *x,
                                   const float *gain, const float *inverse, const float *d_out,
                                   float *d_gain, bool add, float *d_x, mn_error *error);

enum mn_status mn_cuda_nn_gelu(mn_cuda_nn *nn, uint64_t n, const float *x, float *out,
                               mn_error *error);
enum mn_status mn_cuda_nn_gelu_grad(mn_cuda_nn *nn, uint64_t n, const float *x, float *d,
                                    mn_error *error);
enum mn_status mn_cuda_nn_relu(mn_cuda_nn *nn, uint64_t n, float *x, mn_error *error);
enum mn_status mn_cuda_nn_relu_grad(mn_cuda_nn *nn, uint64_t n, const float *out, float *d,
                                    mn_error *error);
enum mn_status mn_cuda_nn_silu_gate(mn_cuda_nn *nn, uint64_t n, const float *y, const float *a,
                                    float *out, mn_error *error);
enum mn_status mn_cuda_nn_silu_gate_grad(mn_cuda_nn *nn, uint64_t n, const float *y, const float *a,
                                         const float *d_out, float *d_y, float *d_a,
                                         mn_error *error);
/* mn_cuda_softmax and its gradient, on the context's stream. */
enum mn_status mn_cuda_nn_softmax(mn_cuda_nn *nn, float *scores, uint64_t groups, uint32_t k,
                                  mn_error *error);
enum mn_status mn_cuda_nn_softmax_grad(mn_cuda_nn *nn, const float *weights, const float *d_weights,
                                       uint64_t groups, uint32_t k, float *out_d_scores,
                                       mn_error *error);

/* 256 logits a row; targets [rows] in device memory, 256 and above: none. The probabilities have
 * the CPU's bits. *out_loss, in host memory: blocks. Scratch: mn_cuda_nn_rows_bytes(rows, 256). */
typedef struct mn_cuda_loss {
    double nats;
    uint64_t targets, correct;
} mn_cuda_loss;
enum mn_status mn_cuda_nn_cross_entropy(mn_cuda_nn *nn, uint64_t rows, float *logits,
                                        const uint16_t *targets, mn_cuda_loss *out_loss,
                                        mn_error *error);

typedef struct mn_cuda_dropout {
    uint64_t seed, step, first_position;
    uint32_t layer;
    float share;
} mn_cuda_dropout;
enum mn_status mn_cuda_nn_dropout(mn_cuda_nn *nn, const mn_cuda_dropout *dropout, uint64_t rows,
                                  uint32_t width, float *x, mn_error *error);

/* ---- 5. Sequences, packed one after the other ---- */

/* starts [sequences + 1], u32 in device memory: sequence s has the tokens from starts[s] up to
 * starts[s + 1]; the last is `tokens`. longest: of their lengths. */
typedef struct mn_cuda_sequences {
    uint64_t tokens;
    uint32_t sequences, longest;
    const uint32_t *starts;
} mn_cuda_sequences;

/* x[t] = byte_table[bytes[t]] + position_table[t's place in its sequence]; bytes [tokens] u8 in
 * device memory, tables of `width` columns. Backward adds, tokens ascending: the CPU's bits. */
enum mn_status mn_cuda_nn_embed(mn_cuda_nn *nn, const mn_cuda_sequences *batch, uint32_t width,
                                const uint8_t *bytes, const float *byte_table,
                                const float *position_table, float *x, mn_error *error);
enum mn_status mn_cuda_nn_embed_grad(mn_cuda_nn *nn, const mn_cuda_sequences *batch, uint32_t width,
                                     const uint8_t *bytes, const float *d_x, float *d_byte_table,
                                     float *d_position_table, mn_error *error);

/* As mn_attention_forward and _backward: qkv [tokens][3 * width], log_sums [tokens][heads]. A head
 * has up to 256 columns, with bf16 products up to 128 and a multiple of 8 (else f32 serves); then
 * out and d_qkv are aligned to 8 bytes. Scratch: mn_cuda_nn_attention_bytes. d_qkv is assigned. */
typedef struct mn_cuda_attention {
    mn_cuda_sequences batch;
    uint32_t width, heads;
} mn_cuda_attention;
uint64_t mn_cuda_nn_attention_bytes(const mn_cuda_attention *attention);
enum mn_status mn_cuda_nn_attention(mn_cuda_nn *nn, const mn_cuda_attention *attention,
                                    const float *qkv, float *out_log_sums, float *out,
                                    mn_error *error);
typedef struct mn_cuda_attention_saved {
    const float *qkv, *log_sums, *out;
} mn_cuda_attention_saved;
enum mn_status mn_cuda_nn_attention_grad(mn_cuda_nn *nn, const mn_cuda_attention *attention,
                                         const mn_cuda_attention_saved *saved, const float *d_out,
                                         float *d_qkv, mn_error *error);

/* ---- 6. Batch norm of each column; `sums` are f64 in device memory ---- */

/* Sums over rows in f64. */
enum mn_status mn_cuda_nn_column_sums(mn_cuda_nn *nn, uint64_t rows, uint32_t width, const float *x,
                                      double *out_sums, mn_error *error);
enum mn_status mn_cuda_nn_column_squares(mn_cuda_nn *nn, uint64_t rows, uint32_t width,
                                         const float *x, const float *mean, double *out_sums,
                                         mn_error *error);
/* mean[c] = sums[c] / count. */
enum mn_status mn_cuda_nn_batch_mean(mn_cuda_nn *nn, uint32_t width, double count,
                                     const double *sums, float *out_mean, mn_error *error);
/* sums: of squares around the mean. inverse[c] = 1 / sqrt(sums[c] / count + 1e-5); running mean
 * [width] and unbiased variance [width] after it move by a tenth of the way. */
enum mn_status mn_cuda_nn_batch_variance(mn_cuda_nn *nn, uint32_t width, double count,
                                         const double *sums, const float *mean, float *out_inverse,
                                         float *running, mn_error *error);
/* mean and inverse from the running statistics. */
enum mn_status mn_cuda_nn_batch_running(mn_cuda_nn *nn, uint32_t width, const float *running,
                                        float *out_mean, float *out_inverse, mn_error *error);
typedef struct mn_cuda_batch_norm {
    uint64_t rows;
    uint32_t width;
    const float *x, *mean, *inverse, *gain;
} mn_cuda_batch_norm;
enum mn_status mn_cuda_nn_batch_norm(mn_cuda_nn *nn, const mn_cuda_batch_norm *norm,
                                     const float *shift, float *out, mn_error *error);
/* out_sums [2 * width]; sums over rows of 2 * width columns. */
enum mn_status mn_cuda_nn_batch_norm_sums(mn_cuda_nn *nn, const mn_cuda_batch_norm *norm,
                                          const float *d_out, double *out_sums, mn_error *error);
enum mn_status mn_cuda_nn_batch_norm_grad(mn_cuda_nn *nn, const mn_cuda_batch_norm *norm,
                                          double count, const double *sums, float *d,
                                          mn_error *error);
/* x[i] += sums[i], rounded to f32 first. */
enum mn_status mn_cuda_nn_add_sums(mn_cuda_nn *nn, uint32_t n, const double *sums, float *x,
                                   mn_error *error);

/* ---- 7. Search ---- */

/* As mn_product_search; blocks, and names token and head of a NaN: MN_INVALID "scores". Scratch:
 * mn_cuda_nn_search_bytes. */
enum mn_status mn_cuda_nn_search(mn_cuda_nn *nn, const mn_search *search, const float *queries,
                                 const float *keys, uint64_t *out_rows, float *out_scores,
                                 mn_error *error);
uint64_t mn_cuda_nn_search_bytes(const mn_cuda_nn *nn, const mn_search *search);
/* As mn_product_search_grad, in f32 whatever the products. Query gradients have the CPU's bits; so
 * has a key's gradient if its picks lie in one stretch of 512 of all picks sorted by key, else its
 * stretches are added up one by one and then to what was there. Scratch:
 * mn_cuda_nn_search_grad_bytes. tokens * heads * k * 2 < 2^32. */
enum mn_status mn_cuda_nn_search_grad(mn_cuda_nn *nn, const mn_search *search, const float *queries,
                                      const float *keys, const uint64_t *rows,
                                      const float *score_gradients, float *query_gradients,
                                      float *key_gradients, mn_error *error);
enum mn_status mn_cuda_nn_search_grad_bytes(const mn_search *search, uint64_t *out_bytes,
                                            mn_error *error);

#ifdef __cplusplus
}
#endif
#endif
