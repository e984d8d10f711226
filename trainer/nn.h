/* The operations that the model is made of, each with its backward pass, behind one table: the CPU
 * fills it (nn_cpu.c), and a GPU (nn_cuda.c). Arrays lie in the memory of whoever computes, dense
 * and row-major; [rows][width] unless said. Backward functions add into gradients of parameters,
 * and into d_input unless they say that they work in place.
 *
 * Work is queued in the order of the calls and may be done when they return (CPU) or later (GPU). A
 * call that fails later keeps its failure, and what follows does nothing: the first failure comes
 * back from each call that returns a status, all of which wait. Structs are read during the call.
 * Private to the trainer.
 *
 * Oracles: tests/trainer compiles the CPU's functions in double precision and checks each against
 * central differences; the GPU's are compared with the CPU's. */
#ifndef MN_NN_H
#define MN_NN_H

#include "mn_kernels.h"
#include "mn_trainer.h"

/* ---- Shapes ---- */

/* y = x W, W [in][out]. */
typedef struct mn_linear {
    uint64_t rows;
    uint32_t in, out;
} mn_linear;

typedef struct mn_norm_saved {
    const mn_real *x, *gain, *mean, *inverse;
} mn_norm_saved;

/* RMS norm of runs of `width`: run r uses gain[r % gains]; `target` multiplies the result. */
typedef struct mn_rms {
    uint64_t runs;
    uint32_t width, gains;
    mn_real target;
} mn_rms;

/* Which elements are taken depends on all but `share`, which says how many: in [0, 1). layer and
 * blocks of 4 columns below 2^16. */
typedef struct mn_dropout {
    uint64_t seed, step, first_position; /* of row 0 in the step's batch */
    uint32_t layer;
    float share;
} mn_dropout;

typedef struct mn_batch_norm {
    uint64_t rows;
    uint32_t width;
    const mn_real *x, *mean, *inverse, *gain; /* [rows][width], then [width] each */
} mn_batch_norm;

/* Sequences packed one after the other: sequence s has the tokens from starts[s] up to
 * starts[s + 1]; starts[sequences] is `tokens`. longest: of their lengths. */
typedef struct mn_sequences {
    uint64_t tokens;
    uint32_t sequences, longest;
    const uint32_t *starts; /* an array, like all */
} mn_sequences;

/* qkv [tokens][3 * width]: query, key, value; heads one after the other. */
typedef struct mn_attention {
    uint32_t width, heads;
    mn_sequences batch;
} mn_attention;
typedef struct mn_attention_saved {
    const mn_real *qkv, *log_sums, *out;
} mn_attention_saved;

/* The largest of what a workspace's passes do. */
typedef struct mn_nn_room {
    uint32_t widest; /* of all matrices' rows; tokens are attention.batch.tokens */
    mn_attention attention;
    const mn_search *search; /* NULL: none */
    const void *arrays;      /* the workspace's, one after the other */
    uint64_t array_bytes;
} mn_nn_room;

/* ---- Memory of its own, of one that computes elsewhere ---- */

typedef struct mn_nn_memory {
    /* pinned: in host memory, for copies beside the computation. MN_NO_MEMORY "device". */
    enum mn_status (*create)(const mn_nn *nn, uint64_t bytes, bool pinned, void **out_memory,
                             mn_error *error);
    void (*destroy)(const mn_nn *nn, void *memory, bool pinned); /* NULL is fine */
    /* Copies beside the computation, in their own order. Out: sees all that is queued before it.
     * In: is seen by all that is queued after it, and may overtake what has been queued since the
     * last copy out. */
    void (*copy_out)(const mn_nn *nn, void *out_pinned, const void *from, uint64_t bytes);
    void (*copy_in)(const mn_nn *nn, void *to, const void *pinned, uint64_t bytes);
    /* Until all such copies are done. */
    enum mn_status (*copies_wait)(const mn_nn *nn, mn_error *error);
    /* Where work is queued (a cudaStream_t), for others that work on these arrays; who has written
     * one of a workspace's that way says so before it is used. */
    void *(*stream)(const mn_nn *nn);
    void (*written)(const mn_nn *nn, const void *array, uint64_t bytes);
} mn_nn_memory;

/* ---- The table ---- */

struct mn_nn {
    void *context;
    const mn_nn_memory *memory; /* NULL: arrays are the host's */

    /* Memory that operations use while they run, and lent to them: before a pass, and until the
     * next begins. */
    uint64_t (*scratch_bytes)(const mn_nn *nn, const mn_nn_room *room);
    void (*begin)(const mn_nn *nn, const mn_nn_room *room, void *scratch);

    /* From and to host memory of any kind, which is the caller's again when write returns. */
    void (*write)(const mn_nn *nn, void *to, const void *from_host, uint64_t bytes);
    enum mn_status (*read)(const mn_nn *nn, void *out_host, const void *from, uint64_t bytes,
                           mn_error *error);
    /* Until all that is queued is done. */
    enum mn_status (*wait)(const mn_nn *nn, mn_error *error);
    void (*zero)(const mn_nn *nn, void *to, uint64_t bytes);
    void (*copy)(const mn_nn *nn, void *to, const void *from, uint64_t bytes);

    /* x[t] = byte_table[bytes[t]] + position_table[t's place in its sequence]; bytes [tokens],
     * tables of `width` columns. */
    void (*embed)(const mn_nn *nn, const mn_sequences *batch, uint32_t width, const uint8_t *bytes,
                  const mn_real *byte_table, const mn_real *position_table, mn_real *x);
    void (*embed_grad)(const mn_nn *nn, const mn_sequences *batch, uint32_t width,
                       const uint8_t *bytes, const mn_real *d_x, mn_real *d_byte_table,
                       mn_real *d_position_table);

    /* C[m][n] = alpha * op(A) op(B) + beta * C. */
    void (*gemm)(const mn_nn *nn, bool transpose_a, bool transpose_b, uint64_t m, uint64_t n,
                 uint64_t k, mn_real alpha, const mn_real *a, const mn_real *b, mn_real beta,
                 mn_real *c);
    void (*bias)(const mn_nn *nn, uint64_t rows, uint32_t width, const mn_real *bias, mn_real *x);
    void (*bias_grad)(const mn_nn *nn, uint64_t rows, uint32_t width, const mn_real *d_x,
                      mn_real *d_bias);

    /* As mn_product_search and mn_product_search_grad; scratch is the pass's. */
    enum mn_status (*search)(const mn_nn *nn, const mn_search *search, const mn_real *queries,
                             const mn_real *keys, uint64_t *out_rows, mn_real *out_scores,
                             void *scratch, mn_error *error);
    void (*search_grad)(const mn_nn *nn, const mn_search *search, const mn_real *queries,
                        const mn_real *keys, const uint64_t *rows, const mn_real *score_gradients,
                        mn_real *query_gradients, mn_real *key_gradients);
    /* Softmax over runs of k, in place; d_scores from weights and d_weights. */
    void (*softmax)(const mn_nn *nn, mn_real *scores, uint64_t groups, uint32_t k);
    void (*softmax_grad)(const mn_nn *nn, const mn_real *weights, const mn_real *d_weights,
                         uint64_t groups, uint32_t k, mn_real *out_d_scores);

    /* LayerNorm with gain: out = (x - mean) * inverse * gain, inverse = 1/sqrt(variance + 1e-5);
     * mean and inverse [rows] are kept for backward. */
    void (*norm)(const mn_nn *nn, uint64_t rows, uint32_t width, const mn_real *x,
                 const mn_real *gain, mn_real *out_mean, mn_real *out_inverse, mn_real *out);
    void (*norm_grad)(const mn_nn *nn, uint64_t rows, uint32_t width, const mn_norm_saved *saved,
                      const mn_real *d_out, mn_real *d_gain, mn_real *d_x);
    /* out = x * inverse [* gain] * target, inverse = 1/sqrt(mean(x^2) + 1e-6). gain NULL: 1. */
    void (*rms)(const mn_nn *nn, const mn_rms *rms, const mn_real *x, const mn_real *gain,
                mn_real *out_inverse, mn_real *out);
    /* d_x is assigned when `add` is false. d_gain may be NULL when gain is. */
    void (*rms_grad)(const mn_nn *nn, const mn_rms *rms, const mn_real *x, const mn_real *gain,
                     const mn_real *inverse, const mn_real *d_out, mn_real *d_gain, bool add,
                     mn_real *d_x);

    /* GELU in tanh form: x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)). d is multiplied in place. */
    void (*gelu)(const mn_nn *nn, uint64_t n, const mn_real *x, mn_real *out);
    void (*gelu_grad)(const mn_nn *nn, uint64_t n, const mn_real *x, mn_real *d);
    void (*relu)(const mn_nn *nn, uint64_t n, mn_real *x);
    /* Zeroes d where the ReLU's output is zero. */
    void (*relu_grad)(const mn_nn *nn, uint64_t n, const mn_real *out, mn_real *d);
    /* out = y * silu(a), silu(a) = a * sigmoid(a). Backward assigns d_y and d_a. */
    void (*silu_gate)(const mn_nn *nn, uint64_t n, const mn_real *y, const mn_real *a,
                      mn_real *out);
    void (*silu_gate_grad)(const mn_nn *nn, uint64_t n, const mn_real *y, const mn_real *a,
                           const mn_real *d_out, mn_real *d_y, mn_real *d_a);
    void (*add)(const mn_nn *nn, uint64_t n, const mn_real *a, mn_real *x);
    void (*scale)(const mn_nn *nn, uint64_t n, mn_real factor, mn_real *x);
    /* x [rows][width], in place: 0, or x / (1 - share). The backward pass is the same call. */
    void (*dropout)(const mn_nn *nn, const mn_dropout *dropout, uint64_t rows, uint32_t width,
                    mn_real *x);

    /* Cross entropy over MN_BYTES logits a row, in nats; logits become probability - target (0
     * where the target is MN_NO_TARGET). out_loss is in host memory. */
    enum mn_status (*cross_entropy)(const mn_nn *nn, uint64_t rows, mn_real *logits,
                                    const uint16_t *targets, mn_loss *out_loss, mn_error *error);

    /* Batch norm of each column. Sums over rows are double: of x; of (x - mean)^2. */
    void (*column_sums)(const mn_nn *nn, uint64_t rows, uint32_t width, const mn_real *x,
                        double *out_sums);
    void (*column_squares)(const mn_nn *nn, uint64_t rows, uint32_t width, const mn_real *x,
                           const mn_real *mean, double *out_sums);
    /* Of `count` rows: mean = sums / count; then, from the squares around it, inverse =
     * 1/sqrt(variance + 1e-5), and the running mean and variance, running [2][width], move a tenth
     * of the way to the mean and the unbiased variance. */
    void (*batch_mean)(const mn_nn *nn, uint32_t width, double count, const double *sums,
                       mn_real *out_mean);
    void (*batch_variance)(const mn_nn *nn, uint32_t width, double count, const double *squares,
                           const mn_real *mean, mn_real *out_inverse, mn_real *running);
    /* Mean and inverse of the running ones. */
    void (*batch_running)(const mn_nn *nn, uint32_t width, const mn_real *running,
                          mn_real *out_mean, mn_real *out_inverse);
    /* With n = (x - mean) * inverse: out = n * gain + shift. */
    void (*batch_norm)(const mn_nn *nn, const mn_batch_norm *norm, const mn_real *shift,
                       mn_real *out);
    /* out_sums[c] = sum of d_out; out_sums[width + c] = sum of d_out * n. */
    void (*batch_norm_sums)(const mn_nn *nn, const mn_batch_norm *norm, const mn_real *d_out,
                            double *out_sums);
    /* In place: gain * inverse * (d - mean(d) - n * mean(d * n)); the means are sums / count. */
    void (*batch_norm_grad)(const mn_nn *nn, const mn_batch_norm *norm, double count,
                            const double *sums, mn_real *d);
    /* x[i] += sums[i] */
    void (*add_sums)(const mn_nn *nn, uint32_t n, const double *sums, mn_real *x);

    /* Causal attention over packed sequences; scratch is the pass's. */
    /* out [tokens][width]; out_log_sums [tokens][heads] is kept for backward. */
    void (*attention)(const mn_nn *nn, const mn_attention *attention, const mn_real *qkv,
                      mn_real *out_log_sums, mn_real *out, void *scratch);
    /* d_qkv is assigned. */
    void (*attention_grad)(const mn_nn *nn, const mn_attention *attention,
                           const mn_attention_saved *saved, const mn_real *d_out, mn_real *d_qkv,
                           void *scratch);
};

/* The context of mn_nn_cuda.h behind a GPU's table: its stream is that of the work queued. */
struct mn_cuda_nn *mn_nn_cuda_context(const mn_nn *nn);

/* ---- Made of them ---- */

/* y = x W + beta * y. Backward: d_weights += x^T d_y; d_x = d_y W^T + beta * d_x. */
static inline void mn_nn_linear(const mn_nn *nn, mn_linear shape, const mn_real *x,
                                const mn_real *weights, mn_real beta, mn_real *y)
{
    nn->gemm(nn, false, false, shape.rows, shape.out, shape.in, 1, x, weights, beta, y);
}

static inline void mn_nn_linear_grad(const mn_nn *nn, mn_linear shape, const mn_real *x,
                                     const mn_real *weights, const mn_real *d_y, mn_real *d_weights,
                                     mn_real beta, mn_real *d_x)
{
    nn->gemm(nn, true, false, shape.in, shape.out, shape.rows, 1, x, d_y, 1, d_weights);
    nn->gemm(nn, false, true, shape.rows, shape.in, shape.out, 1, d_y, weights, beta, d_x);
}

#endif
