/* nn.h's table as a GPU fills it, by mn_nn_cuda.h: arrays are in its memory, work is queued on its
 * stream. No vendor's type is seen here. */
#include <stdlib.h>

#include "mn_nn_cuda.h"
#include "nn.h"

typedef struct gpu {
    mn_nn nn;
    mn_cuda_nn *cuda;
    bool bf16_products;
    const void *arrays, *scratch; /* of the pass that began last */
    enum mn_status status;        /* the first failure; all that comes after it does nothing */
    mn_error error;
} gpu;

enum { ALIGNMENT = 256 }; /* of the scratch */

static gpu *gpu_of(const mn_nn *nn) { return nn->context; }

static enum mn_status told(const gpu *g, mn_error *error)
{
    if (g->status != MN_OK && error)
        *error = g->error;
    return g->status;
}

#define QUEUE(nn, function, ...)                                                                   \
    do {                                                                                           \
        gpu *g = gpu_of(nn);                                                                       \
        if (g->status == MN_OK)                                                                    \
            g->status = function(g->cuda, __VA_ARGS__, &g->error);                                 \
    } while (0)

/* ---- Scratch ---- */

static uint64_t rounded(uint64_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }
static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

static mn_cuda_sequences packed_of(const mn_sequences *batch)
{
    return (mn_cuda_sequences){batch->tokens, batch->sequences, batch->longest, batch->starts};
}

static mn_cuda_attention attention_of(const mn_attention *attention)
{
    return (mn_cuda_attention){packed_of(&attention->batch), attention->width, attention->heads};
}

/* What every operation of a pass has room in. Batch norm's backward pass has two sums a column. */
static uint64_t operation_bytes(gpu *g, const mn_nn_room *room)
{
    const mn_cuda_attention attention = attention_of(&room->attention);
    uint64_t tokens = room->attention.batch.tokens, widest = room->widest, grad_bytes = 0;
    uint64_t bytes = mn_cuda_nn_rows_bytes(tokens, 2 * room->widest);
    bytes = larger(bytes, mn_cuda_nn_gemm_bytes(g->cuda, tokens, widest, widest));
    bytes = larger(bytes, mn_cuda_nn_gemm_bytes(g->cuda, widest, tokens, widest));
    bytes = larger(bytes, mn_cuda_nn_gemm_bytes(g->cuda, widest, widest, tokens));
    bytes = larger(bytes, mn_cuda_nn_attention_bytes(&attention));
    if (room->search) {
        bytes = larger(bytes, mn_cuda_nn_search_bytes(g->cuda, room->search));
        if (g->status == MN_OK)
            g->status = mn_cuda_nn_search_grad_bytes(room->search, &grad_bytes, &g->error);
    }
    return rounded(larger(bytes, grad_bytes));
}

/* Behind the operations' scratch: the arrays' copies in bf16, where factors are rounded to it. */
static uint64_t cuda_scratch_bytes(const mn_nn *nn, const mn_nn_room *room)
{
    gpu *g = gpu_of(nn);
    uint64_t narrow = g->bf16_products ? rounded(room->array_bytes / 2) : 0;
    return ALIGNMENT + operation_bytes(g, room) + narrow;
}

static void cuda_begin(const mn_nn *nn, const mn_nn_room *room, void *scratch)
{
    gpu *g = gpu_of(nn);
    if (g->arrays == room->arrays && g->scratch == scratch)
        return; /* what was rounded stays so */
    uint64_t bytes = operation_bytes(g, room);
    uint8_t *lent = (uint8_t *)scratch + (ALIGNMENT - (uintptr_t)scratch % ALIGNMENT) % ALIGNMENT;
    mn_cuda_nn_lend(g->cuda, lent, bytes);
    if (g->bf16_products)
        mn_cuda_nn_lend_narrow(g->cuda, room->arrays, room->array_bytes, lent + bytes);
    g->arrays = room->arrays;
    g->scratch = scratch;
}

/* ---- Memory ---- */

static enum mn_status cuda_create(const mn_nn *nn, uint64_t bytes, bool pinned, void **out_memory,
                                  mn_error *error)
{
    (void)nn; /* the current GPU */
    return pinned ? mn_cuda_pinned_create(bytes, out_memory, error)
                  : mn_cuda_memory_create(bytes, out_memory, error);
}

/* The next memory may have the same address: nothing may be believed of it. */
static void cuda_destroy(const mn_nn *nn, void *memory, bool pinned)
{
    gpu *g = gpu_of(nn);
    if (pinned) {
        mn_cuda_pinned_destroy(memory);
        return;
    }
    if (g->arrays) {
        mn_cuda_nn_lend_narrow(g->cuda, NULL, 0, NULL);
        mn_cuda_nn_lend(g->cuda, NULL, 0);
        g->arrays = g->scratch = NULL;
    }
    mn_cuda_memory_destroy(memory);
}

static void cuda_copy_out(const mn_nn *nn, void *out_pinned, const void *from, uint64_t bytes)
{
    QUEUE(nn, mn_cuda_memory_copy_out, out_pinned, from, bytes);
}

static void cuda_copy_in(const mn_nn *nn, void *to, const void *pinned, uint64_t bytes)
{
    QUEUE(nn, mn_cuda_memory_copy_in, to, pinned, bytes);
}

static enum mn_status cuda_copies_wait(const mn_nn *nn, mn_error *error)
{
    gpu *g = gpu_of(nn);
    if (g->status == MN_OK)
        g->status = mn_cuda_memory_wait_copies(g->cuda, &g->error);
    return told(g, error);
}

static void *cuda_stream(const mn_nn *nn) { return mn_cuda_nn_stream(gpu_of(nn)->cuda); }

static void cuda_written(const mn_nn *nn, const void *array, uint64_t bytes)
{
    mn_cuda_nn_written(gpu_of(nn)->cuda, array, bytes);
}

static void cuda_write(const mn_nn *nn, void *to, const void *from_host, uint64_t bytes)
{
    QUEUE(nn, mn_cuda_memory_write, to, from_host, bytes);
}

static enum mn_status cuda_read(const mn_nn *nn, void *out_host, const void *from, uint64_t bytes,
                                mn_error *error)
{
    QUEUE(nn, mn_cuda_memory_read, out_host, from, bytes);
    return told(gpu_of(nn), error);
}

static enum mn_status cuda_wait(const mn_nn *nn, mn_error *error)
{
    gpu *g = gpu_of(nn);
    if (g->status == MN_OK)
        g->status = mn_cuda_memory_wait(g->cuda, &g->error);
    return told(g, error);
}

static void cuda_zero(const mn_nn *nn, void *to, uint64_t bytes)
{
    QUEUE(nn, mn_cuda_memory_zero, to, bytes);
}

static void cuda_copy(const mn_nn *nn, void *to, const void *from, uint64_t bytes)
{
    QUEUE(nn, mn_cuda_memory_copy, to, from, bytes);
}

/* ---- Operations ---- */

static mn_cuda_batch_norm shape_of(const mn_batch_norm *norm)
{
    return (mn_cuda_batch_norm){norm->rows, norm->width,   norm->x,
                                norm->mean, norm->inverse, norm->gain};
}

/* A score that is not a number is told now and once: the GPU itself has not failed. */
static enum mn_status cuda_search(const mn_nn *nn, const mn_search *search, const mn_real *queries,
                                  const mn_real *keys, uint64_t *out_rows, mn_real *out_scores,
                                  void *scratch, mn_error *error)
{
    (void)scratch; /* lent at the beginning */
    gpu *g = gpu_of(nn);
    if (g->status != MN_OK)
        return told(g, error);
    mn_error cause;
    enum mn_status status =
        mn_cuda_nn_search(g->cuda, search, queries, keys, out_rows, out_scores, &cause);
    if (status != MN_OK && status != MN_INVALID) {
        g->status = status;
        g->error = cause;
    }
    if (status != MN_OK && error)
        *error = cause;
    return status;
}

static enum mn_status cuda_cross_entropy(const mn_nn *nn, uint64_t rows, mn_real *logits,
                                         const uint16_t *targets, mn_loss *out_loss,
                                         mn_error *error)
{
    mn_cuda_loss loss;
    QUEUE(nn, mn_cuda_nn_cross_entropy, rows, logits, targets, &loss);
    enum mn_status status = told(gpu_of(nn), error);
    if (status == MN_OK)
        *out_loss = (mn_loss){loss.nats, loss.targets, loss.correct};
    return status;
}

static void cuda_embed(const mn_nn *nn, const mn_sequences *batch, uint32_t width,
                       const uint8_t *bytes, const mn_real *byte_table,
                       const mn_real *position_table, mn_real *x)
{
    const mn_cuda_sequences packed = packed_of(batch);
    QUEUE(nn, mn_cuda_nn_embed, &packed, width, bytes, byte_table, position_table, x);
}

static void cuda_embed_grad(const mn_nn *nn, const mn_sequences *batch, uint32_t width,
                            const uint8_t *bytes, const mn_real *d_x, mn_real *d_byte_table,
                            mn_real *d_position_table)
{
    const mn_cuda_sequences packed = packed_of(batch);
    QUEUE(nn, mn_cuda_nn_embed_grad, &packed, width, bytes, d_x, d_byte_table, d_position_table);
}

static void cuda_gemm(const mn_nn *nn, bool transpose_a, bool transpose_b, uint64_t m, uint64_t n,
                      uint64_t k, mn_real alpha, const mn_real *a, const mn_real *b, mn_real beta,
                      mn_real *c)
{
    QUEUE(nn, mn_cuda_nn_gemm, transpose_a, transpose_b, m, n, k, alpha, a, b, beta, c);
}

static void cuda_bias(const mn_nn *nn, uint64_t rows, uint32_t width, const mn_real *bias,
                      mn_real *x)
{
    QUEUE(nn, mn_cuda_nn_bias, rows, width, bias, x);
}

static void cuda_bias_grad(const mn_nn *nn, uint64_t rows, uint32_t width, const mn_real *d_x,
                           mn_real *d_bias)
{
    QUEUE(nn, mn_cuda_nn_bias_grad, rows, width, d_x, d_bias);
}

static void cuda_search_grad(const mn_nn *nn, const mn_search *search, const mn_real *queries,
                             const mn_real *keys, const uint64_t *rows,
                             const mn_real *score_gradients, mn_real *query_gradients,
                             mn_real *key_gradients)
{
    QUEUE(nn, mn_cuda_nn_search_grad, search, queries, keys, rows, score_gradients, query_gradients,
          key_gradients);
}

static void cuda_softmax(const mn_nn *nn, mn_real *scores, uint64_t groups, uint32_t k)
{
    QUEUE(nn, mn_cuda_nn_softmax, scores, groups, k);
}

static void cuda_softmax_grad(const mn_nn *nn, const mn_real *weights, const mn_real *d_weights,
                              uint64_t groups, uint32_t k, mn_real *out_d_scores)
{
    QUEUE(nn, mn_cuda_nn_softmax_grad, weights, d_weights, groups, k, out_d_scores);
}

static void cuda_norm(const mn_nn *nn, uint64_t rows, uint32_t width, const mn_real *x,
                      const mn_real *gain, mn_real *out_mean, mn_real *out_inverse, mn_real *out)
{
    QUEUE(nn, mn_cuda_nn_norm, rows, width, x, gain, out_mean, out_inverse, out);
}

static void cuda_norm_grad(const mn_nn *nn, uint64_t rows, uint32_t width,
                           const mn_norm_saved *saved, const mn_real *d_out, mn_real *d_gain,
                           mn_real *d_x)
{
    const mn_cuda_norm_saved kept = {saved->x, saved->gain, saved->mean, saved->inverse};
    QUEUE(nn, mn_cuda_nn_norm_grad, rows, width, &kept, d_out, d_gain, d_x);
}

static void cuda_rms(const mn_nn *nn, const mn_rms *rms, const mn_real *x, const mn_real *gain,
                     mn_real *out_inverse, mn_real *out)
{
    const mn_cuda_rms shape = {rms->runs, rms->width, rms->gains, rms->target};
    QUEUE(nn, mn_cuda_nn_rms, &shape, x, gain, out_inverse, out);
}

static void cuda_rms_grad(const mn_nn *nn, const mn_rms *rms, const mn_real *x, const mn_real *gain,
                          const mn_real *inverse, const mn_real *d_out, mn_real *d_gain, bool add,
                          mn_real *d_x)
{
    const mn_cuda_rms shape = {rms->runs, rms->width, rms->gains, rms->target};
    QUEUE(nn, mn_cuda_nn_rms_grad, &shape, x, gain, inverse, d_out, d_gain, add, d_x);
}

static void cuda_gelu(const mn_nn *nn, uint64_t n, const mn_real *x, mn_real *out)
{
    QUEUE(nn, mn_cuda_nn_gelu, n, x, out);
}

static void cuda_gelu_grad(const mn_nn *nn, uint64_t n, const mn_real *x, mn_real *d)
{
    QUEUE(nn, mn_cuda_nn_gelu_grad, n, x, d);
}

static void cuda_relu(const mn_nn *nn, uint64_t n, mn_real *x) { QUEUE(nn, mn_cuda_nn_relu, n, x); }

static void cuda_relu_grad(const mn_nn *nn, uint64_t n, const mn_real *out, mn_real *d)
{
    QUEUE(nn, mn_cuda_nn_relu_grad, n, out, d);
}

static void cuda_silu_gate(const mn_nn *nn, uint64_t n, const mn_real *y, const mn_real *a,
                           mn_real *out)
{
    QUEUE(nn, mn_cuda_nn_silu_gate, n, y, a, out);
}

static void cuda_silu_gate_grad(const mn_nn *nn, uint64_t n, const mn_real *y, const mn_real *a,
                                const mn_real *d_out, mn_real *d_y, mn_real *d_a)
{
    QUEUE(nn, mn_cuda_nn_silu_gate_grad, n, y, a, d_out, d_y, d_a);
}

static void cuda_add(const mn_nn *nn, uint64_t n, const mn_real *a, mn_real *x)
{
    QUEUE(nn, mn_cuda_nn_add, n, a, x);
}

static void cuda_scale(const mn_nn *nn, uint64_t n, mn_real factor, mn_real *x)
{
    QUEUE(nn, mn_cuda_nn_scale, n, factor, x);
}

static void cuda_dropout(const mn_nn *nn, const mn_dropout *dropout, uint64_t rows, uint32_t width,
                         mn_real *x)
{
    const mn_cuda_dropout taken = {dropout->seed, dropout->step, dropout->first_position,
                                   dropout->layer, dropout->share};
    QUEUE(nn, mn_cuda_nn_dropout, &taken, rows, width, x);
}

static void cuda_column_sums(const mn_nn *nn, uint64_t rows, uint32_t width, const mn_real *x,
                             double *out_sums)
{
    QUEUE(nn, mn_cuda_nn_column_sums, rows, width, x, out_sums);
}

static void cuda_column_squares(const mn_nn *nn, uint64_t rows, uint32_t width, const mn_real *x,
                                const mn_real *mean, double *out_sums)
{
    QUEUE(nn, mn_cuda_nn_column_squares, rows, width, x, mean, out_sums);
}

static void cuda_batch_mean(const mn_nn *nn, uint32_t width, double count, const double *sums,
                            mn_real *out_mean)
{
    QUEUE(nn, mn_cuda_nn_batch_mean, width, count, sums, out_mean);
}

static void cuda_batch_variance(const mn_nn *nn, uint32_t width, double count,
                                const double *squares, const mn_real *mean, mn_real *out_inverse,
                                mn_real *running)
{
    QUEUE(nn, mn_cuda_nn_batch_variance, width, count, squares, mean, out_inverse, running);
}

static void cuda_batch_running(const mn_nn *nn, uint32_t width, const mn_real *running,
                               mn_real *out_mean, mn_real *out_inverse)
{
    QUEUE(nn, mn_cuda_nn_batch_running, width, running, out_mean, out_inverse);
}

static void cuda_batch_norm(const mn_nn *nn, const mn_batch_norm *norm, const mn_real *shift,
                            mn_real *out)
{
    const mn_cuda_batch_norm shape = shape_of(norm);
    QUEUE(nn, mn_cuda_nn_batch_norm, &shape, shift, out);
}

static void cuda_batch_norm_sums(const mn_nn *nn, const mn_batch_norm *norm, const mn_real *d_out,
                                 double *out_sums)
{
    const mn_cuda_batch_norm shape = shape_of(norm);
    QUEUE(nn, mn_cuda_nn_batch_norm_sums, &shape, d_out, out_sums);
}

static void cuda_batch_norm_grad(const mn_nn *nn, const mn_batch_norm *norm, double count,
                                 const double *sums, mn_real *d)
{
    const mn_cuda_batch_norm shape = shape_of(norm);
    QUEUE(nn, mn_cuda_nn_batch_norm_grad, &shape, count, sums, d);
}

static void cuda_add_sums(const mn_nn *nn, uint32_t n, const double *sums, mn_real *x)
{
    QUEUE(nn, mn_cuda_nn_add_sums, n, sums, x);
}

static void cuda_attention(const mn_nn *nn, const mn_attention *attention, const mn_real *qkv,
                           mn_real *out_log_sums, mn_real *out, void *scratch)
{
    (void)scratch; /* lent at the beginning */
    const mn_cuda_attention shape = attention_of(attention);
    QUEUE(nn, mn_cuda_nn_attention, &shape, qkv, out_log_sums, out);
}

static void cuda_attention_grad(const mn_nn *nn, const mn_attention *attention,
                                const mn_attention_saved *saved, const mn_real *d_out,
                                mn_real *d_qkv, void *scratch)
{
    (void)scratch; /* lent at the beginning */
    const mn_cuda_attention shape = attention_of(attention);
    const mn_cuda_attention_saved kept = {saved->qkv, saved->log_sums, saved->out};
    QUEUE(nn, mn_cuda_nn_attention_grad, &shape, &kept, d_out, d_qkv);
}

/* ---- The table ---- */

static const mn_nn_memory memory = {
    .create = cuda_create,
    .destroy = cuda_destroy,
    .copy_out = cuda_copy_out,
    .copy_in = cuda_copy_in,
    .copies_wait = cuda_copies_wait,
    .stream = cuda_stream,
    .written = cuda_written,
};

static const mn_nn operations = {
    .memory = &memory,
    .scratch_bytes = cuda_scratch_bytes,
    .begin = cuda_begin,
    .write = cuda_write,
    .read = cuda_read,
    .wait = cuda_wait,
    .zero = cuda_zero,
    .copy = cuda_copy,
    .embed = cuda_embed,
    .embed_grad = cuda_embed_grad,
    .gemm = cuda_gemm,
    .bias = cuda_bias,
    .bias_grad = cuda_bias_grad,
    .search = cuda_search,
    .search_grad = cuda_search_grad,
    .softmax = cuda_softmax,
    .softmax_grad = cuda_softmax_grad,
    .norm = cuda_norm,
    .norm_grad = cuda_norm_grad,
    .rms = cuda_rms,
    .rms_grad = cuda_rms_grad,
    .gelu = cuda_gelu,
    .gelu_grad = cuda_gelu_grad,
    .relu = cuda_relu,
    .relu_grad = cuda_relu_grad,
    .silu_gate = cuda_silu_gate,
    .silu_gate_grad = cuda_silu_gate_grad,
    .add = cuda_add,
    .scale = cuda_scale,
    .dropout = cuda_dropout,
    .cross_entropy = cuda_cross_entropy,
    .column_sums = cuda_column_sums,
    .column_squares = cuda_column_squares,
    .batch_mean = cuda_batch_mean,
    .batch_variance = cuda_batch_variance,
    .batch_running = cuda_batch_running,
    .batch_norm = cuda_batch_norm,
    .batch_norm_sums = cuda_batch_norm_sums,
    .batch_norm_grad = cuda_batch_norm_grad,
    .add_sums = cuda_add_sums,
    .attention = cuda_attention,
    .attention_grad = cuda_attention_grad,
};

enum mn_status mn_nn_cuda_open(const mn_nn_cuda_options *options, mn_nn **out_nn, mn_error *error)
{
    const mn_cuda_nn_options wanted = {.device = options->gpu,
                                       .bf16_products = options->bf16_products};
    gpu *g = calloc(1, sizeof *g);
    if (!g)
        return mn_fail(error, MN_NO_MEMORY, "device", "no memory");
    enum mn_status status = mn_cuda_nn_create(&wanted, &g->cuda, error);
    if (status != MN_OK) {
        free(g);
        return status;
    }
    g->bf16_products = options->bf16_products;
    g->nn = operations;
    g->nn.context = g;
    *out_nn = &g->nn;
    return MN_OK;
}

struct mn_cuda_nn *mn_nn_cuda_context(const mn_nn *nn) { return gpu_of(nn)->cuda; }

void mn_nn_cuda_close(mn_nn *nn)
{
    if (!nn)
        return;
    gpu *g = gpu_of(nn);
    mn_cuda_nn_destroy(g->cuda);
    free(g);
}
