/* Backward of causal attention with bf16 factors: probabilities are made again from the rows'
 * log-sums. Queries' gradients and those of keys and values are two kernels: one would need sums of
 * many blocks, whose order nobody could promise. */
#include "attention_tile.h"

/* Scores to probabilities, those not `visible` to 0. */
#define PROBABILITY(visible, score, log_sum) ((visible) ? exp2f(fmaf(score, scale, -(log_sum))) : 0)

/* With p the probabilities: d_query = scale * sum of p * (<d_out, value> - inner) * key. */
template <int D>
static __global__ void __launch_bounds__(TILE_THREADS) queries_grad(attention_work work)
{
    const tile_place place = place_of_block(work);
    const uint32_t first = place.tile * TILE;
    const uint64_t stride = 3 * (uint64_t)work.width, column = place.head * work.dim;
    const float scale = work.scale * LOG2_E;
    if (first >= place.length)
        return;
    const uint16_t *query = (const uint16_t *)work.qkv + place.token * stride + column;
    const uint16_t *d_outs =
        (const uint16_t *)work.d_out + place.token * (uint64_t)work.width + column;
    uint16_t *queries = shared_memory(), *of_out = queries + tile_elements<D>();
    uint16_t *keys = of_out + tile_elements<D>(), *values = keys + tile_elements<D>();
    float d_query[D / 8][4] = {}, log_sum[2], inner[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t row = first + row_of(half);
        const uint64_t at = (uint64_t)(place.token + row) * work.heads + place.head;
        log_sum[half] = row < place.length ? work.log_sums[at] * LOG2_E : 0;
        inner[half] = row < place.length ? work.inner[at] : 0;
    }
    load_tile<D>(query, stride, first, place.length, work.dim, queries);
    load_tile<D>(d_outs, work.width, first, place.length, work.dim, of_out);
    for (uint32_t tile = 0; tile <= place.tile; tile++) {
        float scores[KEY_BLOCKS][4] = {}, slopes[KEY_BLOCKS][4] = {};
        __syncthreads(); /* the tile before has been read */
        load_tile<D>(query + work.width, stride, tile * TILE, place.length, work.dim, keys);
        load_tile<D>(query + 2 * work.width, stride, tile * TILE, place.length, work.dim, values);
        __syncthreads();
        multiply_rows<D>(queries, keys, scores);
        multiply_rows<D>(of_out, values, slopes);
#pragma unroll
        for (int j = 0; j < KEY_BLOCKS; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const bool visible =
                    tile < place.tile || column_of_block(j) + i % 2 <= row_of(i / 2);
                const float p = PROBABILITY(visible, scores[j][i], log_sum[i / 2]);
                scores[j][i] = p * (slopes[j][i] - inner[i / 2]);
            }
        multiply_columns<D>(scores, keys, d_query);
    }
    put_rows<D>(work, place, d_query, work.scale, work.scale, work.d_qkv, stride, column);
}

/* Of the tile's queries: log-sums times log2 e, and inner products. */
DEVICE void load_rows(const attention_work &work, const tile_place &place, uint32_t first,
                      float *log_sums, float *inner)
{
    const uint32_t row = first + threadIdx.x;
    if (threadIdx.x >= TILE)
        return;
    const uint64_t at = (uint64_t)(place.token + row) * work.heads + place.head;
    log_sums[threadIdx.x] = row < place.length ? work.log_sums[at] * LOG2_E : 0;
    inner[threadIdx.x] = row < place.length ? work.inner[at] : 0;
}

/* A block takes 64 keys and walks the queries from them on; products are made with the keys in the
 * rows, so that what a lane holds is what the next product wants.
 * d_value = sum over queries of p * d_out; d_key = scale * sum of p * (...) * query. */
template <int D>
static __global__ void __launch_bounds__(TILE_THREADS) keys_grad(attention_work work)
{
    __shared__ float log_sums[TILE], inner[TILE];
    const tile_place place = place_of_block(work);
    const uint32_t first = place.tile * TILE;
    const uint64_t stride = 3 * (uint64_t)work.width, column = place.head * work.dim;
    const float scale = work.scale * LOG2_E;
    if (first >= place.length)
        return;
    const uint16_t *query = (const uint16_t *)work.qkv + place.token * stride + column;
    const uint16_t *d_outs =
        (const uint16_t *)work.d_out + place.token * (uint64_t)work.width + column;
    uint16_t *queries = shared_memory(), *of_out = queries + tile_elements<D>();
    uint16_t *keys = of_out + tile_elements<D>(), *values = keys + tile_elements<D>();
    float d_key[D / 8][4] = {}, d_value[D / 8][4] = {};
    load_tile<D>(query + work.width, stride, first, place.length, work.dim, keys);
    load_tile<D>(query + 2 * work.width, stride, first, place.length, work.dim, values);
    for (uint32_t from = first; from < place.length; from += TILE) {
        float scores[KEY_BLOCKS][4] = {}, slopes[KEY_BLOCKS][4] = {};
        __syncthreads(); /* the tile before has been read */
        load_tile<D>(query, stride, from, place.length, work.dim, queries);
        load_tile<D>(d_outs, work.width, from, place.length, work.dim, of_out);
        load_rows(work, place, from, log_sums, inner);
        __syncthreads();
        multiply_rows<D>(keys, queries, scores);
#pragma unroll
        for (int j = 0; j < KEY_BLOCKS; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t c = column_of_block(j) + i % 2;
                const bool visible = from + c >= first + row_of(i / 2); /* past the end: zeros */
                scores[j][i] = PROBABILITY(visible, scores[j][i], log_sums[c]);
            }
        multiply_columns<D>(scores, of_out, d_value);
        multiply_rows<D>(values, of_out, slopes);
#pragma unroll
        for (int j = 0; j < KEY_BLOCKS; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                scores[j][i] = scores[j][i] * (slopes[j][i] - inner[column_of_block(j) + i % 2]);
        multiply_columns<D>(scores, queries, d_key);
    }
    put_rows<D>(work, place, d_key, work.scale, work.scale, work.d_qkv, stride,
                work.width + column);
    put_rows<D>(work, place, d_value, 1, 1, work.d_qkv, stride, 2 * work.width + column);
}

template <int D> static cudaError_t queue_both(const attention_work &work, void *stream)
{
    const uint32_t TILES = 4; /* queries, d_out, keys, values */
    const cudaError_t result = queue_tiles<D>(work, queries_grad<D>, TILES, stream);
    return result == cudaSuccess ? queue_tiles<D>(work, keys_grad<D>, TILES, stream) : result;
}

cudaError_t mn_attend_grad_bf16(const attention_work &work, void *stream)
{
    return work.dim <= 32   ? queue_both<32>(work, stream)
           : work.dim <= 64 ? queue_both<64>(work, stream)
                            : queue_both<128>(work, stream);
}
