/* Numeric functions over the caller's buffers. Two implementations of the same rules: kernels/cpu
 * (plain C, AVX2, AVX-512: one source compiled three times, equal by memcmp) and kernels/cuda
 * (mn_kernels_cuda.h). No function here allocates, blocks, or keeps a pointer.
 *
 * Bits: only + - * / sqrt and integer operations, multiply and add rounded separately, no libm.
 * Reductions along a row use 16 lanes (column c of the tile in lane c mod 16, columns ascending,
 * from +0), then the fixed tree for (w = 8; w; w /= 2) for (i < w) lane[i] += lane[i + w]. Callers'
 * buffers may have any alignment unless said; row buffers are fastest at 64 bytes. A tile's arrays
 * are aligned to their elements; scratch to 64 bytes. Outputs never alias inputs. */
#ifndef MN_KERNELS_H
#define MN_KERNELS_H

#include "mneme_types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* An offset that another shard holds: skipped, weight gradient +0. */
#define MN_NO_ROW UINT64_MAX
/* The largest k of a selection. */
#define MN_SELECT_MAX 128u

/* ---- 1. Random numbers: Philox4x32-10 (Salmon et al., SC'11) ----
 * Counter = (row low, row high, column block, update count); key = (seed low ^ purpose, seed high).
 * A block of 4 words serves 4 columns of an initial value (column c: block c/4, word c%4) or 8
 * columns of stochastic rounding (column c: block c/8, half-word c%8, low half first), c absolute
 * in the table: so nothing depends on the tiling. */
enum mn_purpose {
    MN_PURPOSE_INIT = 0x1a17,
    MN_PURPOSE_ROUND_VALUE = 0x2b28,
    MN_PURPOSE_ROUND_STATE = 0x3c39,
    MN_PURPOSE_ROUND_STATE2 = 0x4d4a
};
void mn_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out_words[4]);

/* ---- 2. A tile, as kernels see it ---- */

/* Dense arrays of one tile. A row with updates[offset] == 0 has never been written: its value is
 * the initialiser's (a pure function) and its optimizer state the initial one; reading never
 * writes. state is row-major: Adam(W) [rows][2][columns] (m then v); Adagrad [rows][columns];
 * row-wise Adagrad [rows] f32; SGD and none: NULL. */
typedef struct mn_tile {
    void *values; /* [rows][columns] dtype */
    void *state;
    uint32_t *updates; /* [rows] changes so far; saturates at UINT32_MAX */
    uint64_t rows;
    uint32_t columns, first_column;
    enum mn_dtype dtype; /* MN_F32 or MN_BF16 */
    mn_optimizer optimizer;
    mn_init init;
    uint64_t seed;
    uint64_t table_rows, row_base, row_inverse; /* table row = row_inverse * (row_base + offset) mod
                                                   table_rows; columns: 0, 1 */
    uint64_t rows_written; /* rows with updates > 0; == rows lets reads skip the test */
} mn_tile;

/* State elements per row (2*columns, columns, 1, 0), and bytes per row of state (row-wise Adagrad
 * is always f32). */
uint32_t mn_state_elements(const mn_optimizer *optimizer, uint32_t columns);
uint64_t mn_state_row_bytes(const mn_optimizer *optimizer, uint32_t columns);

/* ---- 3. Updates ---- */

/* One contribution to a row's gradient: weight * source row. Bag gradients: weight = the read's,
 * source = the query's output gradient. Pushes: weight 1. */
typedef struct mn_contribution {
    uint64_t offset;
    uint32_t source; /* into mn_sources.rows */
    float weight;
} mn_contribution;

/* Gradient rows as staged: rows[source] points at the row's first column of the shard; the tile's
 * columns begin `column` further. */
typedef struct mn_sources {
    const void *const *rows;
    enum mn_dtype dtype; /* MN_F32 or MN_BF16 */
    uint32_t column;
} mn_sources;

/* One step's constants. g = factor * merged gradient (f32, left fold from +0 over the
 * contributions in sorted order). wd means weight_decay, lr learning_rate, b1 and b2 the betas.
 *   SGD               g += wd*row; row -= lr*g
 *   Adagrad           (Duchi et al. 2011; torch.optim.Adagrad)
 *                     g += wd*row; s += g*g; row -= lr*g/(sqrt(s)+eps)
 *   row-wise Adagrad  g += wd*row; s += mean(g*g) over the row (16 lanes and tree, then /columns);
 *                     row -= lr*g/(sqrt(s)+eps)
 *   Adam              (torch.optim.SparseAdam)
 *                     g += wd*row; m += (1-b1)*(g-m); v += (1-b2)*(g*g-v);
 *                     row -= (lr*sqrt(1-b2^t)/(1-b1^t)) * m/(sqrt(v)+eps)
 *   AdamW             (torch.optim.AdamW) row *= 1-lr*wd; m, v as Adam;
 *                     row -= (lr/(1-b1^t)) * m/(sqrt(v)*(1/sqrt(1-b2^t))+eps)
 * t = step, or the row's own count + 1 with row_correction. Factors of t alone are
 * computed in f64 (powers by repeated squaring) and rounded once to f32. */
typedef struct mn_update {
    float learning_rate, weight_decay, factor;
    uint64_t step; /* the group's, from 1 */
} mn_update;

/* ---- 4. The table of functions ---- */

enum mn_isa { MN_ISA_PLAIN = 0, MN_ISA_AVX2 = 1, MN_ISA_AVX512 = 2 };

typedef struct mn_kernels {
    enum mn_isa isa;

    /* Initial values of columns [first_column, first_column + columns) of `row`, rounded to dtype
     * (nearest even for bf16). Normal: Box-Muller on (word 2i, word 2i+1) of a block, log/sin/cos
     * by polynomials of our own (|error| < 1e-6). */
    void (*init_row)(const mn_init *init, uint64_t seed, uint64_t row, uint32_t first_column,
                     uint32_t columns, enum mn_dtype dtype, void *out_row);

    /* out[i] = row offsets[i], i < n, as out_dtype, out_stride_bytes apart. bf16 -> f32 is exact;
     * f32 -> bf16 nearest even. MN_NO_ROW leaves its place untouched, here and for the state. */
    void (*gather)(const mn_tile *tile, const uint64_t *offsets, uint64_t n,
                   enum mn_dtype out_dtype, void *out_rows, uint64_t out_stride_bytes);
    /* Likewise the state of the rows, in the table's state dtype. */
    void (*gather_state)(const mn_tile *tile, const uint64_t *offsets, uint64_t n, void *out_state,
                         uint64_t out_stride_bytes);

    /* out[q][c] = sum over j < k, ascending from +0, of weights[q*k+j] * row(offsets[q*k+j])[c];
     * f32, then out_dtype. */
    void (*bag)(const mn_tile *tile, const uint64_t *offsets, const float *weights,
                uint64_t queries, uint32_t k, enum mn_dtype out_dtype, void *out_bags,
                uint64_t out_stride_bytes);

    /* out[q*k+j] = <gradients[q], row(offsets[q*k+j])> over the tile's columns (16 lanes and tree);
     * +0 for MN_NO_ROW. */
    void (*bag_dot)(const mn_tile *tile, const uint64_t *offsets, uint64_t queries, uint32_t k,
                    enum mn_dtype gradient_dtype, const void *gradients,
                    uint64_t gradient_stride_bytes, float *out_dots);

    /* Sum over the tile, rows ascending, of the f64 squares of the merged gradient (per row 16 f64
     * lanes and tree, over f32 merged values, before any factor). contributions: sorted
     * (mn_contributions_sort). scratch: mn_merge_scratch_bytes. */
    double (*merge_square)(const mn_tile *tile, const mn_contribution *contributions, uint64_t n,
                           const mn_sources *sources, void *scratch);

    /* Merges and applies the optimizer row by row; updates[offset] += 1 once a row; returns rows
     * first written now (the caller adds them to tile->rows_written). Values and state in bf16 are
     * rounded stochastically, with the row's update count after this one. */
    uint64_t (*merge_apply)(mn_tile *tile, const mn_contribution *contributions, uint64_t n,
                            const mn_sources *sources, const mn_update *update, void *scratch);

    /* Assigns rows, rounded to nearest (and state, or the initial state when NULL); later i wins;
     * updates += 1 each. MN_NO_ROW is skipped. Returns rows first written. */
    uint64_t (*store)(mn_tile *tile, const uint64_t *offsets, uint64_t n, enum mn_dtype dtype,
                      const void *rows, uint64_t stride_bytes, const void *state,
                      uint64_t state_stride_bytes);

    /* Copies `bytes` of f32 or bf16 elements past the caches, to be read much later; out is aligned
     * to 64 bytes. False if any is a NaN or an infinity. */
    bool (*stage)(const void *in, uint64_t bytes, enum mn_dtype dtype, void *out);

    /* Product-key selection (Lample et al. 2019 §3.2). scores1, scores2 [n] f32: the k best sums,
     * best first: sub-scores by (score desc, key asc), sums by (rounded f32 sum desc, rank a asc,
     * rank b asc); the pair of ranks (a, b) is behind (a+1)(b+1) - 1 others, so it can be among
     * the k best only if (a+1)(b+1) <= k.
     * -0 counts as +0. out_rows[i] = key1*n + key2. Returns false (nothing promised about out) on
     * NaN. k <= 128, k <= n*n. scratch: mn_select_scratch_bytes(n, k). */
    bool (*select)(const float *scores1, const float *scores2, uint32_t n, uint32_t k,
                   uint64_t *out_rows, float *out_scores, void *scratch);

    /* In place over each of `groups` runs of k: softmax (maximum subtracted; exp by our polynomial;
     * sum left to right). */
    void (*softmax)(float *scores, uint64_t groups, uint32_t k);
    /* ds[i] = w[i] * (dw[i] - sum_j w[j]*dw[j]) over each run of k. */
    void (*softmax_grad)(const float *weights, const float *weight_gradients, uint64_t groups,
                         uint32_t k, float *out_score_gradients);
} mn_kernels;

/* The best this CPU runs (MN_ISA_AVX512 at most), or exactly `isa`; NULL when the CPU cannot.
 * Static, never freed. */
const mn_kernels *mn_kernels_best(void);
const mn_kernels *mn_kernels_for(enum mn_isa isa);

uint64_t mn_merge_scratch_bytes(uint32_t columns);
uint64_t mn_select_scratch_bytes(uint32_t n, uint32_t k);

/* Stable sort by offset (LSD radix over the bits that rows needs). scratch [n]. The result is in
 * `contributions`. */
void mn_contributions_sort(mn_contribution *contributions, mn_contribution *scratch, uint64_t n,
                           uint64_t rows);

/* ---- 5. Matrix products and search (OpenBLAS inside kernels/cpu/blas_openblas.c) ---- */

/* C[m][n] = alpha * op(A) op(B) + beta * C, row-major, leading dimensions in elements. Single call
 * into sgemm. */
void mn_gemm(bool transpose_a, bool transpose_b, uint32_t m, uint32_t n, uint32_t k, float alpha,
             const float *a, uint32_t lda, const float *b, uint32_t ldb, float beta, float *c,
             uint32_t ldc);
void mn_gemm_threads(uint32_t threads);

/* Exact product-key search. queries [tokens][heads][2*half] f32; keys [heads][2][n][half] f32; per
 * (token, head) the k best rows and their scores (q1.K1 + q2.K2): out_rows, out_scores
 * [tokens][heads][k]. Blocks of tokens are scored into the second cache, by products of our own
 * against keys packed once a call (mn_gemm when tokens are few), and then selected. scratch:
 * mn_search_scratch_bytes, 64-byte aligned. MN_INVALID "n"/"k"/"scores" (NaN: names token, head).
 */
typedef struct mn_search {
    uint64_t tokens;
    uint32_t heads, n, half, k;
} mn_search;
uint64_t mn_search_scratch_bytes(const mn_search *search);
enum mn_status mn_product_search(const mn_search *search, const float *queries, const float *keys,
                                 uint64_t *out_rows, float *out_scores, void *scratch,
                                 mn_error *error);
/* Gradients of the selected scores (Lample et al. 2019 §3.1): dq1 += ds*K1[i1], dK1[i1] += ds*q1,
 * same for half 2. Adds into both outputs, each element's terms in (token, j) order. rows and
 * score_gradients [tokens][heads][k]. */
void mn_product_search_grad(const mn_search *search, const float *queries, const float *keys,
                            const uint64_t *rows, const float *score_gradients,
                            float *query_gradients, float *key_gradients);
/* The same for heads [first_head, first_head + head_count) alone: arrays whole, only these heads'
 * gradients read and written. So threads share a search by heads; mn_product_search by tokens. */
void mn_product_search_grad_heads(const mn_search *search, uint32_t first_head, uint32_t head_count,
                                  const float *queries, const float *keys, const uint64_t *rows,
                                  const float *score_gradients, float *query_gradients,
                                  float *key_gradients);

/* ---- 6. CUDA: mn_kernels_cuda.h ---- */

/* ---- 7. Frozen tables (cpu/frozen.c): rows that nobody writes, one process, few queries ---- */

/* Rows of a file: [count], row_bytes apart, 64-byte aligned. MN_I8: `columns` signed bytes, zeros
 * to the next multiple of 4, the row's scale f32; an element is scale * byte, rounded to f32. */
typedef struct mn_frozen_rows {
    const void *rows;
    uint64_t row_bytes; /* mn_frozen_row_bytes */
    uint32_t columns;
    enum mn_dtype dtype; /* MN_F32, MN_BF16, MN_I8 */
} mn_frozen_rows;

uint64_t mn_frozen_row_bytes(enum mn_dtype dtype, uint32_t columns);
/* out_row [mn_frozen_row_bytes(MN_I8, columns)]: scale = max |row| / 127, bytes = row / scale to
 * the nearest, even at ties, so that no element is off by more than half the scale (and its own
 * rounding). False for NaN and infinities. */
bool mn_frozen_quantise(const float *row, uint32_t columns, void *out_row);

/* gather and bag as in mn_kernels, with the same order of additions; every offset is below count.
 * matrix_vector: out[i] = <matrix row i, vector> (16 lanes and tree) + bias[i]; bias may be NULL.
 * The same bits from every instruction set. */
typedef struct mn_frozen_kernels {
    void (*gather)(const mn_frozen_rows *table, const uint64_t *offsets, uint64_t n,
                   enum mn_dtype out_dtype, void *out_rows, uint64_t out_stride_bytes);
    void (*bag)(const mn_frozen_rows *table, const uint64_t *offsets, const float *weights,
                uint64_t queries, uint32_t k, enum mn_dtype out_dtype, void *out_bags,
                uint64_t out_stride_bytes);
    void (*matrix_vector)(const float *matrix, uint32_t rows, uint32_t columns, const float *vector,
                          const float *bias, float *out);
} mn_frozen_kernels;
const mn_frozen_kernels *mn_frozen_kernels_best(void);
const mn_frozen_kernels *mn_frozen_kernels_for(enum mn_isa isa); /* NULL when the CPU cannot */

#ifdef __cplusplus
}
#endif
#endif
