/* Causal attention in f32: a warp takes one row (a query, or a key and its value) and looks at 32
 * others at a time, each lane at one; then the lanes hold columns and add up what the others bring.
 * Plain rather than fast: bf16 has the tensor cores. */
#include "attention.h"

static const int COLUMNS = 8; /* of 32 lanes: heads of up to 256 */

/* A warp's row: its token, its head, and its sequence's tokens. */
struct row_place {
    uint32_t token, head, begin, end;
};

DEVICE bool row_of_warp(const attention_work &work, row_place *out)
{
    const uint64_t i = (uint64_t)blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
    if (i >= work.batch.tokens * work.heads)
        return false;
    out->token = (uint32_t)(i / work.heads), out->head = (uint32_t)(i % work.heads);
    const uint32_t sequence = sequence_of(work.batch, out->token);
    out->begin = work.batch.starts[sequence], out->end = work.batch.starts[sequence + 1];
    return true;
}

/* Part 0: the query of a token's head, 1: the key, 2: the value. */
DEVICE const float *part_of(const attention_work &work, uint64_t token, uint32_t head, int part)
{
    return (const float *)work.qkv + (token * 3 + part) * work.width + head * work.dim;
}
DEVICE const float *d_out_of(const attention_work &work, uint64_t token, uint32_t head)
{
    return (const float *)work.d_out + token * work.width + head * work.dim;
}

DEVICE float product(uint32_t dim, const float *a, const float *b)
{
    float sum = 0;
    for (uint32_t c = 0; c < dim; c++)
        sum = sum + a[c] * b[c];
    return sum;
}

/* sums[i] += over the lanes' others in order: weight * column lane + 32 i of the row that begins at
 * `rows`, the next `stride` on. */
DEVICE void add_rows(uint32_t count, float weight, const float *rows, uint64_t stride, uint32_t dim,
                     float (&sums)[COLUMNS])
{
    for (uint32_t other = 0; other < count; other++, rows += stride) {
        const float its = __shfl_sync(ALL_LANES, weight, (int)other);
#pragma unroll
        for (int i = 0; i < COLUMNS; i++)
            if (threadIdx.x % WARP + i * WARP < dim)
                sums[i] = sums[i] + its * rows[threadIdx.x % WARP + i * WARP];
    }
}

DEVICE void put_columns(const attention_work &work, const float (&sums)[COLUMNS], float scale,
                        float *to, uint64_t at)
{
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
        const uint32_t c = threadIdx.x % WARP + i * WARP;
        const float one[1] = {sums[i] * scale};
        if (c < work.dim)
            put_both(one, to, work.narrow, at + c);
    }
}

static __global__ void __launch_bounds__(THREADS) attend(attention_work work)
{
    const uint32_t lane = threadIdx.x % WARP, dim = work.dim;
    const uint64_t stride = 3 * (uint64_t)work.width;
    row_place place;
    if (!row_of_warp(work, &place))
        return;
    const float *query = part_of(work, place.token, place.head, 0);
    float sums[COLUMNS] = {}, most = -INFINITY, total = 0;
    for (uint32_t first = place.begin; first <= place.token; first += WARP) {
        const uint32_t left = place.token + 1 - first, count = left < WARP ? left : WARP;
        float score = -INFINITY;
        if (lane < count)
            score = work.scale * product(dim, query, part_of(work, first + lane, place.head, 1));
        float highest = score > most ? score : most;
#pragma unroll
        for (int w = 16; w; w /= 2) {
            const float other = __shfl_xor_sync(ALL_LANES, highest, w);
            highest = other > highest ? other : highest;
        }
        const float shrink = first == place.begin ? 0 : real_exp(most - highest);
        const float p = lane < count ? real_exp(score - highest) : 0;
        float sum = p;
#pragma unroll
        for (int w = 16; w; w /= 2)
            sum = sum + __shfl_xor_sync(ALL_LANES, sum, w);
        total = total * shrink + sum, most = highest;
#pragma unroll
        for (int i = 0; i < COLUMNS; i++)
            sums[i] = sums[i] * shrink;
        add_rows(count, p, part_of(work, first, place.head, 2), stride, dim, sums);
    }
    put_columns(work, sums, 1 / total, work.out,
                (uint64_t)place.token * work.width + place.head * dim);
    if (lane == 0)
        work.out_log_sums[(uint64_t)place.token * work.heads + place.head] =
            most + (float)log((double)total);
}

/* p and d_score of one (query, key). */
DEVICE void slope_of(const attention_work &work, uint64_t query, uint64_t key, uint32_t head,
                     float *out_p, float *out_d_score)
{
    const uint64_t at = query * work.heads + head;
    const float score =
        work.scale * product(work.dim, part_of(work, query, head, 0), part_of(work, key, head, 1));
    const float slope = product(work.dim, d_out_of(work, query, head), part_of(work, key, head, 2));
    *out_p = real_exp(score - work.log_sums[at]);
    *out_d_score = *out_p * (slope - work.inner[at]);
}

static __global__ void __launch_bounds__(THREADS) queries_grad(attention_work work)
{
    const uint32_t lane = threadIdx.x % WARP;
    const uint64_t stride = 3 * (uint64_t)work.width;
    row_place place;
    if (!row_of_warp(work, &place))
        return;
    float sums[COLUMNS] = {};
    for (uint32_t first = place.begin; first <= place.token; first += WARP) {
        const uint32_t left = place.token + 1 - first, count = left < WARP ? left : WARP;
        float p = 0, d_score = 0;
        if (lane < count)
            slope_of(work, place.token, first + lane, place.head, &p, &d_score);
        add_rows(count, d_score, part_of(work, first, place.head, 1), stride, work.dim, sums);
    }
    put_columns(work, sums, work.scale, work.d_qkv, place.token * stride + place.head * work.dim);
}

static __global__ void __launch_bounds__(THREADS) keys_grad(attention_work work)
{
    const uint32_t lane = threadIdx.x % WARP;
    const uint64_t stride = 3 * (uint64_t)work.width;
    row_place place;
    if (!row_of_warp(work, &place))
        return;
    float d_key[COLUMNS] = {}, d_value[COLUMNS] = {};
    for (uint32_t first = place.token; first < place.end; first += WARP) {
        const uint32_t left = place.end - first, count = left < WARP ? left : WARP;
        float p = 0, d_score = 0;
        if (lane < count)
            slope_of(work, first + lane, place.token, place.head, &p, &d_score);
        add_rows(count, d_score, part_of(work, first, place.head, 0), stride, work.dim, d_key);
        add_rows(count, p, d_out_of(work, first, place.head), work.width, work.dim, d_value);
    }
    const uint64_t at = place.token * stride + place.head * work.dim;
    put_columns(work, d_key, work.scale, work.d_qkv, at + work.width);
    put_columns(work, d_value, 1, work.d_qkv, at + 2 * work.width);
}

static cudaLaunchConfig_t warps_config(const attention_work &work, void *stream)
{
    const uint64_t warps = THREADS / WARP, rows = work.batch.tokens * work.heads;
    cudaLaunchConfig_t config = {};
    config.blockDim = dim3(THREADS);
    config.gridDim = dim3((unsigned)((rows + warps - 1) / warps));
    config.stream = (cudaStream_t)stream;
    return config;
}

cudaError_t mn_attend_f32(const attention_work &work, void *stream)
{
    const cudaLaunchConfig_t config = warps_config(work, stream);
    return cudaLaunchKernelEx(&config, attend, work);
}

cudaError_t mn_attend_grad_f32(const attention_work &work, void *stream)
{
    const cudaLaunchConfig_t config = warps_config(work, stream);
    const cudaError_t result = cudaLaunchKernelEx(&config, queries_grad, work);
    return result == cudaSuccess ? cudaLaunchKernelEx(&config, keys_grad, work) : result;
}
