/* Causal attention with bf16 factors (Dao 2023, arXiv 2307.08691): a block takes 64 queries of a
 * head and walks the keys up to them, 64 at a time, so that scores never leave the registers: they
 * are divided by the sum of their exponentials at the end, and what was added is scaled down where
 * a later tile has a higher score. Per head of 64 columns and pair of tiles the tensor cores do 1.0
 * MFLOP on 16 KiB read from the second cache. With scores in memory (batched products), 12 layers
 * of 32,768 tokens in sequences of 512 would write 1.1 GB of scores a layer, and read or write that
 * ten times over, forward and backward: some 100 GB, 25 ms of an H200. */
#include "attention_tile.h"

/* Zeroes what follows the own position, in the tile of the diagonal. */
DEVICE void mask_scores(float (&scores)[KEY_BLOCKS][4])
{
#pragma unroll
    for (int j = 0; j < KEY_BLOCKS; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (column_of_block(j) + i % 2 > row_of(i / 2))
                scores[j][i] = -INFINITY;
}

/* A number of one row from the four lanes that share it. */
DEVICE float row_highest(float mine)
{
    mine = fmaxf(mine, __shfl_xor_sync(ALL_LANES, mine, 1));
    return fmaxf(mine, __shfl_xor_sync(ALL_LANES, mine, 2));
}
DEVICE float row_sum(float mine)
{
    mine = mine + __shfl_xor_sync(ALL_LANES, mine, 1);
    return mine + __shfl_xor_sync(ALL_LANES, mine, 2);
}

/* What two rows of a lane know so far: the highest score times log2 e, and the sum of the lane's
 * own exponentials. */
struct row_state {
    float highest[2], sum[2];
};

/* Scores to exponentials; out_shrink: what was added so far is worth that much now. */
DEVICE void soften(float scale, float (&scores)[KEY_BLOCKS][4], row_state *rows,
                   float (&out_shrink)[2])
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float highest = -INFINITY, sum = 0;
#pragma unroll
        for (int j = 0; j < KEY_BLOCKS; j++)
            highest = fmaxf(highest, fmaxf(scores[j][2 * half], scores[j][2 * half + 1]));
        highest = fmaxf(rows->highest[half], row_highest(highest) * scale);
        out_shrink[half] = exp2f(rows->highest[half] - highest);
#pragma unroll
        for (int j = 0; j < KEY_BLOCKS; j++)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                scores[j][i] = exp2f(fmaf(scores[j][i], scale, -highest));
                sum = sum + scores[j][i];
            }
        rows->sum[half] = rows->sum[half] * out_shrink[half] + sum;
        rows->highest[half] = highest;
    }
}

template <int D> static __global__ void __launch_bounds__(TILE_THREADS) attend(attention_work work)
{
    const tile_place place = place_of_block(work);
    const uint32_t first = place.tile * TILE;
    const uint64_t stride = 3 * (uint64_t)work.width;
    if (first >= place.length)
        return;
    const uint16_t *query =
        (const uint16_t *)work.qkv + place.token * stride + place.head * work.dim;
    uint16_t *queries = shared_memory(), *keys = queries + tile_elements<D>();
    uint16_t *values = keys + tile_elements<D>();
    float out[D / 8][4] = {};
    row_state rows = {{-INFINITY, -INFINITY}, {0, 0}};
    load_tile<D>(query, stride, first, place.length, work.dim, queries);
    for (uint32_t tile = 0; tile <= place.tile; tile++) {
        float scores[KEY_BLOCKS][4] = {}, shrink[2];
        __syncthreads(); /* the tile before has been read */
        load_tile<D>(query + work.width, stride, tile * TILE, place.length, work.dim, keys);
        load_tile<D>(query + 2 * work.width, stride, tile * TILE, place.length, work.dim, values);
        __syncthreads();
        multiply_rows<D>(queries, keys, scores);
        if (tile == place.tile)
            mask_scores(scores);
        soften(work.scale * LOG2_E, scores, &rows, shrink);
#pragma unroll
        for (int j = 0; j < D / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                out[j][i] = out[j][i] * shrink[i / 2];
        multiply_columns<D>(scores, values, out);
    }
    rows.sum[0] = row_sum(rows.sum[0]), rows.sum[1] = row_sum(rows.sum[1]);
    put_rows<D>(work, place, out, 1 / rows.sum[0], 1 / rows.sum[1], work.out, work.width,
                place.head * work.dim);
#pragma unroll
    for (int half = 0; half < 2; half++)
        if (threadIdx.x % 4 == 0 && first + row_of(half) < place.length)
            work.out_log_sums[(uint64_t)(place.token + first + row_of(half)) * work.heads +
                              place.head] = rows.highest[half] * LN_2 + logf(rows.sum[half]);
}

static cudaError_t attend_bf16(const attention_work &work, void *stream)
{
    const uint32_t TILES = 3; /* queries, keys, values */
    return work.dim <= 32   ? queue_tiles<32>(work, attend<32>, TILES, stream)
           : work.dim <= 64 ? queue_tiles<64>(work, attend<64>, TILES, stream)
                            : queue_tiles<128>(work, attend<128>, TILES, stream);
}

/* ---- <d_out, out> of every token and head, a warp each ---- */

static __global__ void __launch_bounds__(THREADS)
    inner_products(uint64_t pairs, uint32_t dim, const float *d_out, const float *out,
                   float *out_inner)
{
    const uint32_t lane = threadIdx.x % WARP, warps = THREADS / WARP;
    uint64_t i = (uint64_t)blockIdx.x * warps + threadIdx.x / WARP;
    for (; i < pairs; i += (uint64_t)gridDim.x * warps) {
        float sum = 0;
        for (uint32_t c = lane; c < dim; c += WARP)
            sum = sum + d_out[i * dim + c] * out[i * dim + c];
#pragma unroll
        for (int w = 16; w; w /= 2)
            sum = sum + __shfl_xor_sync(ALL_LANES, sum, w);
        if (lane == 0)
            out_inner[i] = sum;
    }
}

/* ---- Calls ---- */

extern "C" uint64_t mn_cuda_nn_attention_bytes(const mn_cuda_attention *attention)
{
    const uint64_t tokens = attention->batch.tokens, width = attention->width;
    return rounded_up(tokens * 3 * width * 2, 256) + rounded_up(tokens * width * 2, 256) +
           rounded_up(tokens * attention->heads * sizeof(float), 256);
}

static enum mn_status work_of(const mn_cuda_attention *attention, attention_work *out,
                              mn_error *error)
{
    const uint32_t DIM_MAX = 256, heads = attention->heads;
    const uint32_t dim = heads ? attention->width / heads : 0;
    const mn_cuda_sequences *batch = &attention->batch;
    attention_work work = {};
    if (dim == 0 || dim > DIM_MAX || dim * heads != attention->width)
        return mn_fail(error, MN_INVALID, "heads", "%u heads of %u columns: each 1 to %u of them",
                       heads, attention->width, DIM_MAX);
    work.batch = *batch, work.width = attention->width, work.heads = heads, work.dim = dim;
    work.tiles = (uint32_t)rounded_up(batch->longest, 64) / 64;
    if (batch->tokens == 0 || batch->tokens > INT32_MAX || batch->sequences == 0 ||
        (uint64_t)work.tiles * heads * batch->sequences > INT32_MAX || work.tiles == 0)
        return mn_fail(error, MN_INVALID, "batch",
                       "%llu tokens in %u sequences: at least one, and less than 2^31 tiles",
                       (unsigned long long)batch->tokens, batch->sequences);
    work.scale = (float)(1 / sqrt((double)dim));
    *out = work;
    return MN_OK;
}

/* Tensor cores take heads of whole vectors of eight columns. */
static bool narrow_heads(const mn_cuda_nn *nn, const attention_work &work)
{
    return nn->bf16 && work.dim % 8 == 0 && work.dim <= 128;
}

/* A lane of theirs writes two columns at once (put_rows). */
static enum mn_status check_pairs(const char *field, const float *out, mn_error *error)
{
    if ((uintptr_t)out % (2 * sizeof *out) == 0)
        return MN_OK;
    return mn_fail(error, MN_INVALID, field, "%p is not aligned to 8 bytes, as bf16 wants it",
                   (const void *)out);
}

extern "C" enum mn_status mn_cuda_nn_attention(mn_cuda_nn *nn, const mn_cuda_attention *attention,
                                               const float *qkv, float *out_log_sums, float *out,
                                               mn_error *error)
{
    uint64_t used = 0;
    attention_work work;
    enum mn_status status = work_of(attention, &work, error);
    if (status)
        return status;
    const uint64_t elements = work.batch.tokens * work.width;
    const bool narrow = narrow_heads(nn, work);
    work.qkv = qkv, work.out_log_sums = out_log_sums, work.out = out;
    if (narrow)
        status = check_pairs("out", out, error);
    if (status == MN_OK && narrow)
        status = mn_narrow_factor(nn, qkv, 3 * elements, &used, &work.qkv, error);
    if (status)
        return status;
    if (narrow && (uintptr_t)work.qkv % 16)
        return mn_fail(error, MN_INVALID, "qkv", "it is not aligned to 32 bytes in the arena");
    work.narrow = mn_narrow_beside(nn, out, elements);
    return launched(narrow ? attend_bf16(work, nn->stream) : mn_attend_f32(work, nn->stream),
                    error);
}

extern "C" enum mn_status mn_cuda_nn_attention_grad(mn_cuda_nn *nn,
                                                    const mn_cuda_attention *attention,
                                                    const mn_cuda_attention_saved *saved,
                                                    const float *d_out, float *d_qkv,
                                                    mn_error *error)
{
    uint64_t used = 0;
    attention_work work;
    void *inner = NULL;
    enum mn_status status = work_of(attention, &work, error);
    if (status)
        return status;
    const uint64_t elements = work.batch.tokens * work.width;
    const uint64_t pairs = work.batch.tokens * work.heads;
    const bool narrow = narrow_heads(nn, work);
    work.qkv = saved->qkv, work.d_out = d_out, work.log_sums = saved->log_sums, work.d_qkv = d_qkv;
    if (narrow)
        status = check_pairs("d_qkv", d_qkv, error);
    if (status == MN_OK && narrow)
        status = mn_narrow_factor(nn, saved->qkv, 3 * elements, &used, &work.qkv, error);
    if (status == MN_OK && narrow)
        status = mn_narrow_factor(nn, d_out, elements, &used, &work.d_out, error);
    if (status == MN_OK)
        status = scratch_at(nn, pairs * sizeof(float), &used, &inner, error);
    if (status)
        return status;
    if (narrow && ((uintptr_t)work.qkv | (uintptr_t)work.d_out) % 16)
        return mn_fail(error, MN_INVALID, "qkv",
                       "it or d_out is not aligned to 32 bytes in the arena");
    const cudaLaunchConfig_t config =
        rows_config(THREADS, pairs / (THREADS / WARP) + 1, UINT64_C(1) << 16, nn->stream);
    const cudaError_t result = cudaLaunchKernelEx(&config, inner_products, pairs, work.dim, d_out,
                                                  saved->out, (float *)inner);
    status = launched(result, error);
    if (status)
        return status;
    work.inner = (const float *)inner;
    work.narrow = mn_narrow_beside(nn, d_qkv, 3 * elements);
    return launched(narrow ? mn_attend_grad_bf16(work, nn->stream)
                           : mn_attend_grad_f32(work, nn->stream),
                    error);
}
