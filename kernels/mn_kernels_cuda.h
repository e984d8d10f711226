/* The CUDA half of mn_kernels.h (library mn_kernels_cuda, built with MN_CUDA=ON; sm_80 and newer).
 * A mn_tile's arrays, and every pointer called a device array here, lie in GPU memory, aligned to
 * their elements (16 bytes are fastest); structs lie in host memory. Work is queued on `stream` (a
 * cudaStream_t; NULL: the default one) and the call returns; device arrays are the call's until the
 * stream has run it. Nothing here allocates, but mn_cuda_open.
 *
 * Bits: as kernels/cpu, but for the sums of mn_cuda_search's matrix product. Without a driver or a
 * GPU every call that needs one says MN_UNAVAILABLE "device". MN_UNAVAILABLE "stream": the launch
 * was refused. */
#ifndef MN_KERNELS_CUDA_H
#define MN_KERNELS_CUDA_H

#include "mn_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- 1. Reads: init_row of many rows, gather, bag and bag_dot of mn_kernels ---- */

enum mn_status mn_cuda_init_rows(const mn_init *init, uint64_t seed, const uint64_t *rows,
                                 uint64_t n, uint32_t first_column, uint32_t columns,
                                 enum mn_dtype dtype, void *out_rows, uint64_t out_stride_bytes,
                                 void *stream, mn_error *error);
enum mn_status mn_cuda_gather(const mn_tile *tile, const uint64_t *offsets, uint64_t n,
                              enum mn_dtype out_dtype, void *out_rows, uint64_t out_stride_bytes,
                              void *stream, mn_error *error);
enum mn_status mn_cuda_bag(const mn_tile *tile, const uint64_t *offsets, const float *weights,
                           uint64_t queries, uint32_t k, enum mn_dtype out_dtype, void *out_bags,
                           uint64_t out_stride_bytes, void *stream, mn_error *error);
enum mn_status mn_cuda_bag_dot(const mn_tile *tile, const uint64_t *offsets, uint64_t queries,
                               uint32_t k, enum mn_dtype gradient_dtype, const void *gradients,
                               uint64_t gradient_stride_bytes, float *out_dots, void *stream,
                               mn_error *error);

/* ---- 2. Merges: the reads of a step sorted by row, then worked on row by row ---- */

/* Reads sorted by row, stably, so that equal rows keep the order given. Device arrays inside the
 * caller's workspace, which must stay. */
typedef struct mn_cuda_plan {
    uint64_t reads, rows;
    uint64_t *sorted; /* [reads] offsets, ascending; `rows` for reads without a row */
    uint32_t *order;  /* [reads] number of the read */
    uint32_t *starts; /* [runs + 1] where each row's run begins in them */
    uint32_t *runs;   /* [1] rows that have reads */
} mn_cuda_plan;

/* O(reads) bytes, no table-sized buffer; 1 <= reads < 2^32. */
enum mn_status mn_cuda_plan_bytes(uint64_t reads, uint64_t rows, uint64_t *out_bytes,
                                  mn_error *error);
/* offsets [reads], in the order in which a row's contributions add: (part, rank, position). Offsets
 * of `rows` and above, MN_NO_ROW among them, are skipped. workspace: aligned to 256 bytes. */
enum mn_status mn_cuda_plan_reads(const uint64_t *offsets, uint64_t reads, uint64_t rows,
                                  void *workspace, uint64_t workspace_bytes, mn_cuda_plan *out_plan,
                                  void *stream, mn_error *error);

/* What read i adds to its row's gradient: weights[i] (NULL: 1) times gradient i / per_gradient,
 * whose first column for the tile is `column`. Bags: per_gradient = k; pushes: 1. */
typedef struct mn_cuda_sources {
    const void *gradients; /* f32 or bf16 */
    uint64_t stride_bytes;
    const float *weights;
    enum mn_dtype dtype;
    uint32_t column, per_gradient;
} mn_cuda_sources;

/* out_merged [runs][columns] f32: the merged gradients; out_offsets [runs]: their rows, ascending.
 * Both hold the lesser of reads and rows at most. */
enum mn_status mn_cuda_merge_rows(const mn_cuda_plan *plan, const mn_cuda_sources *sources,
                                  uint32_t columns, float *out_merged, uint64_t *out_offsets,
                                  void *stream, mn_error *error);
/* merge_square; scratch [the lesser of reads and rows] f64. The rows' squares are added one after
 * another, as the promised order wants: some 5 ns a row. */
enum mn_status mn_cuda_merge_square(const mn_cuda_plan *plan, const mn_cuda_sources *sources,
                                    uint32_t columns, double *scratch, double *out_square,
                                    void *stream, mn_error *error);
/* merge_apply. Adds the rows first written now to *out_first_written, a device number: the caller
 * adds it to tile->rows_written when it has looked (until then, reads look at the counts). */
enum mn_status mn_cuda_merge_apply(const mn_tile *tile, const mn_cuda_plan *plan,
                                   const mn_cuda_sources *sources, const mn_update *update,
                                   uint64_t *out_first_written, void *stream, mn_error *error);

/* ---- 3. Search ---- */

/* A cuBLAS handle on the current device; one thread at a time. */
typedef struct mn_cuda {
    void *blas;
    uint64_t cache_bytes; /* the device's second cache */
} mn_cuda;
enum mn_status mn_cuda_open(mn_cuda *out_cuda, mn_error *error);
void mn_cuda_close(mn_cuda *cuda); /* zeroed is fine */

/* Tokens searched at a time, whose scores stay in half the second cache; what they need. */
uint64_t mn_cuda_search_block(const mn_search *search, uint64_t cache_bytes);
uint64_t mn_cuda_search_bytes(const mn_search *search, uint64_t cache_bytes);

/* mn_product_search; queries and keys f32, or both bf16 (sums in f32: a sub-score s = sum of q*k
 * over half terms is off by at most half * 2^-23 * sum |q*k|). *out_bad, a device number: the first
 * token * heads + head that has a score that is not a number, else UINT64_MAX. */
enum mn_status mn_cuda_search(const mn_cuda *cuda, const mn_search *search, enum mn_dtype dtype,
                              const void *queries, const void *keys, uint64_t *out_rows,
                              float *out_scores, uint64_t *out_bad, void *workspace, void *stream,
                              mn_error *error);
/* mn_kernels' select over given scores: lists [queries][2][n]. */
enum mn_status mn_cuda_select(const float *lists, uint64_t queries, uint32_t n, uint32_t k,
                              uint64_t *out_rows, float *out_scores, uint64_t *out_bad,
                              void *stream, mn_error *error);
/* softmax and softmax_grad of mn_kernels. */
enum mn_status mn_cuda_softmax(float *scores, uint64_t groups, uint32_t k, void *stream,
                               mn_error *error);
enum mn_status mn_cuda_softmax_grad(const float *weights, const float *weight_gradients,
                                    uint64_t groups, uint32_t k, float *out_score_gradients,
                                    void *stream, mn_error *error);

#ifdef __cplusplus
}
#endif
#endif
