/* The CUDA half of mn_kernels.h (library mn_kernels_cuda, built with MN_CUDA=ON; sm_80 and newer).
 * A mn_tile's arrays, and every pointer called a device array here, lie in GPU memory, aligned to
 * their elements (16 bytes are fastest); structs lie in host memory. Work is queued on `stream` (a
 * cudaStream_t; NULL: the default one) and the call returns; device arrays are the call's until the
 * stream has run it. Nothing here allocates, but mn_cuda_open and section 5.
 *
 * Bits: as kernels/cpu, but for the sums of mn_cuda_search's matrix product. Without a driver or a
 * GPU every call that needs one says MN_UNAVAILABLE "device", and so it does where the device, or
 * cuBLAS, refuses the work. MN_UNAVAILABLE "stream": it is none of the current device, or a graph
 * is made of it. */
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
/* gather_state; out and stride aligned to the state's elements. */
enum mn_status mn_cuda_gather_state(const mn_tile *tile, const uint64_t *offsets, uint64_t n,
                                    void *out_state, uint64_t out_stride_bytes, void *stream,
                                    mn_error *error);
/* out[i] = arrays[0][i] + arrays[1][i] + ... from +0, the arrays [n] one after another. */
enum mn_status mn_cuda_add_arrays(const float *arrays, uint32_t count, uint64_t n, float *out,
                                  void *stream, mn_error *error);

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
 * whose first column for the tile is `column`. Bags: per_gradient = k; pushes: 1. Or, where the
 * gradients lie in several arrays: the one at rows[numbers[i]], each aligned to 16 bytes or as
 * stride_bytes is, if that is less. */
typedef struct mn_cuda_sources {
    const void *gradients; /* f32 or bf16; NULL with rows */
    uint64_t stride_bytes;
    const float *weights;
    enum mn_dtype dtype;
    uint32_t column, per_gradient;
    const void *const *rows; /* device array of device arrays, or NULL */
    const uint32_t *numbers; /* [reads] */
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
/* Likewise of each block of rows_per_block rows: out_squares [blocks]. */
enum mn_status mn_cuda_merge_squares(const mn_cuda_plan *plan, const mn_cuda_sources *sources,
                                     uint32_t columns, uint64_t rows_per_block, uint32_t blocks,
                                     double *scratch, double *out_squares, void *stream,
                                     mn_error *error);
/* merge_apply. Adds the rows first written now to *out_first_written, a device number: the caller
 * adds it to tile->rows_written when it has looked (until then, reads look at the counts). */
enum mn_status mn_cuda_merge_apply(const mn_tile *tile, const mn_cuda_plan *plan,
                                   const mn_cuda_sources *sources, const mn_update *update,
                                   uint64_t *out_first_written, void *stream, mn_error *error);

/* store, of the plan's reads: rows and state as there, aligned to their elements, state NULL for
 * the initial one. *out_first_written as in mn_cuda_merge_apply. */
enum mn_status mn_cuda_store(const mn_tile *tile, const mn_cuda_plan *plan, enum mn_dtype dtype,
                             const void *rows, uint64_t stride_bytes, const void *state,
                             uint64_t state_stride_bytes, uint64_t *out_first_written, void *stream,
                             mn_error *error);

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

/* ---- 4. Requests: their arrays checked, and brought into the form that reads and merges take ----
 * What is wrong sets *bad, a number that the device can write to (mn_cuda_queue has one), to 1. */

/* How a table's rows lie in a tile: row r at position multiplier * r mod rows, and at offset
 * position - base where first <= position < end. Other rows have no offset: bad, unless `skip`. */
typedef struct mn_cuda_places {
    uint64_t rows, multiplier, base, first, end; /* columns tables: multiplier 1, base 0 */
    bool skip;
} mn_cuda_places;

/* Indices of `bits` bits each, one after another from the lowest bit on (32: u32, 64: i64; at most
 * 57 else). An index of `rows` or above is bad. No offset: MN_NO_ROW. */
enum mn_status mn_cuda_offsets(const mn_cuda_places *places, uint32_t bits, const void *indices,
                               uint64_t n, uint64_t *out_offsets, uint32_t *bad, void *stream,
                               mn_error *error);
/* f32 or bf16 to f32; NaN and infinities are bad. out NULL: only looks. */
enum mn_status mn_cuda_weights(enum mn_dtype dtype, const void *in, uint64_t n, float *out,
                               uint32_t *bad, void *stream, mn_error *error);
/* A byte that differs is bad. */
enum mn_status mn_cuda_compare(const void *a, const void *b, uint64_t bytes, uint32_t *bad,
                               void *stream, mn_error *error);
/* Names the sources of per_source * count reads: out_numbers[i] = first + i / per_source,
 * out_rows[j] = rows + j * stride_bytes; out_ones, NULL or a weight of 1 for each read. */
enum mn_status mn_cuda_number_sources(const void *rows, uint64_t stride_bytes, uint64_t count,
                                      uint32_t per_source, uint32_t first, uint32_t *out_numbers,
                                      const void **out_rows, float *out_ones, void *stream,
                                      mn_error *error);

/* ---- 5. Memory, copies, order ---- */

/* A stream of its own on one device; one thread at a time, but where any is allowed. mn_cuda_take,
 * zero, copy and queue_wait make that device the calling thread's, for the kernels queued after
 * them; the others leave the thread its own. No other device is touched. MN_UNAVAILABLE "device":
 * the device failed. */
typedef struct mn_cuda_queue {
    void *context, *stream;
    uint32_t device;
    uint32_t *bad; /* [1] in host memory that the device reads and writes */
} mn_cuda_queue;

/* MN_UNAVAILABLE "device": no driver, or no such device; MN_UNSUPPORTED "device": the host cannot
 * look at managed memory while the device works. */
enum mn_status mn_cuda_queue_open(uint32_t device, mn_cuda_queue *out_queue, mn_error *error);
void mn_cuda_queue_close(mn_cuda_queue *queue); /* zeroed is fine */
/* What `stream` (a cudaStream_t of the same device) has been given until now; any thread.
 * MN_INVALID "stream": it is none of this device, or a graph is made of it; MN_NO_MEMORY "device".
 */
enum mn_status mn_cuda_mark(const mn_cuda_queue *queue, void *stream, void **out_mark,
                            mn_error *error);
void mn_cuda_unmark(const mn_cuda_queue *queue, void *mark); /* any thread */
/* What is queued from now on comes after what the mark's stream had been given. */
enum mn_status mn_cuda_queue_follow(const mn_cuda_queue *queue, void *mark, mn_error *error);
/* Blocks until all that is queued is done. */
enum mn_status mn_cuda_queue_wait(const mn_cuda_queue *queue, mn_error *error);

/* Managed memory that wants to be in the device's; pages take no memory until they are touched.
 * The host may touch them while the queue is idle. Its content is any; NULL: there is none. */
void *mn_cuda_reserve(const mn_cuda_queue *queue, uint64_t bytes);
void mn_cuda_unreserve(const mn_cuda_queue *queue, void *memory);
/* Device memory in the queue's order, aligned to 256 bytes; NULL: there is none. */
void *mn_cuda_take(const mn_cuda_queue *queue, uint64_t bytes);
void mn_cuda_give(const mn_cuda_queue *queue, void *memory); /* NULL is ignored */
enum mn_status mn_cuda_zero(const mn_cuda_queue *queue, void *memory, uint64_t bytes,
                            mn_error *error);
/* From and to any memory. */
enum mn_status mn_cuda_copy(const mn_cuda_queue *queue, void *to, const void *from, uint64_t bytes,
                            mn_error *error);
/* Any memory to the host's, outside the queue, after all that its device was given by the default
 * stream: blocks; any thread. */
enum mn_status mn_cuda_read(const mn_cuda_queue *queue, void *to, const void *from, uint64_t bytes,
                            mn_error *error);

#ifdef __cplusplus
}
#endif
#endif
