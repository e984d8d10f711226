/* The model's search, and its gradient: every pick moves a query towards its key, and a key
 * towards its queries. Picks are sorted by key, as reads are by row (merge.cu); a key that all
 * queries pick would keep one team busy for long, so the sorted picks are cut into stretches of
 * equal length, and what a key has in several of them is added up afterwards. */
#include "nn_device.h"

static const uint32_t STRETCH = 512;
static const int AHEAD = 8; /* picks asked for before the first is added */
static const uint64_t SEARCH_BLOCKS = 1 << 16;

extern "C" uint64_t mn_cuda_nn_search_bytes(const mn_cuda_nn *nn, const mn_search *search)
{
    const uint64_t sides = search->heads * 2, half = search->half;
    return rounded_up(mn_cuda_search_bytes(search, nn->cuda.cache_bytes), 256) +
           (nn->bf16 ? rounded_up(search->tokens * sides * half * 2, 256) +
                           rounded_up(sides * search->n * half * 2, 256)
                     : 0);
}

extern "C" enum mn_status mn_cuda_nn_search(mn_cuda_nn *nn, const mn_search *search,
                                            const float *queries, const float *keys,
                                            uint64_t *out_rows, float *out_scores, mn_error *error)
{
    const uint64_t sides = search->heads * 2, half = search->half;
    uint64_t used = 0;
    const void *narrow_queries = NULL, *narrow_keys = NULL;
    void *workspace = NULL;
    enum mn_status status =
        mn_narrow_factor(nn, queries, search->tokens * sides * half, &used, &narrow_queries, error);
    if (status == MN_OK)
        status = mn_narrow_factor(nn, keys, sides * search->n * half, &used, &narrow_keys, error);
    if (status == MN_OK)
        status = scratch_at(nn, mn_cuda_search_bytes(search, nn->cuda.cache_bytes), &used,
                            &workspace, error);
    if (status)
        return status;
    mn_narrow_forget(nn, out_scores, search->tokens * search->heads * search->k * sizeof(float));
    status =
        mn_cuda_search(&nn->cuda, search, nn->bf16 ? MN_BF16 : MN_F32, narrow_queries, narrow_keys,
                       out_rows, out_scores, nn->number, workspace, nn->stream, error);
    if (status == MN_OK)
        status = mn_cuda_memory_read(nn, nn->pinned, nn->number, sizeof *nn->number, error);
    if (status || *nn->pinned == UINT64_MAX)
        return status;
    return mn_fail(error, MN_INVALID, "scores", "a score of token %llu, head %llu is not a number",
                   (unsigned long long)(*nn->pinned / search->heads),
                   (unsigned long long)(*nn->pinned % search->heads));
}

/* ---- Backward ---- */

/* Picks as reads: pick (token, head, side, j) of row (head * 2 + side) * n + key, with its score's
 * gradient as the weight of the query [token][head][side]. */
struct grad_layout {
    uint64_t picks, rows, stretches, plan_bytes, bytes;
};

static enum mn_status grad_layout_of(const mn_search *search, grad_layout *out, mn_error *error)
{
    grad_layout layout = {};
    layout.picks = search->tokens * search->heads * 2 * search->k;
    layout.rows = (uint64_t)search->heads * 2 * search->n;
    layout.stretches = (layout.picks + STRETCH - 1) / STRETCH;
    const enum mn_status status =
        mn_cuda_plan_bytes(layout.picks, layout.rows, &layout.plan_bytes, error);
    layout.bytes = rounded_up(layout.picks * sizeof(uint64_t), 256) +
                   rounded_up(layout.picks * sizeof(float), 256) +
                   rounded_up(layout.plan_bytes, 256) +
                   layout.stretches * 2 * search->half * sizeof(float);
    if (status == MN_OK)
        *out = layout;
    return status;
}

extern "C" enum mn_status mn_cuda_nn_search_grad_bytes(const mn_search *search, uint64_t *out_bytes,
                                                       mn_error *error)
{
    grad_layout layout;
    const enum mn_status status = grad_layout_of(search, &layout, error);
    if (status == MN_OK)
        *out_bytes = layout.bytes;
    return status;
}

/* One (token, head, j) at a time. */
struct listing {
    const uint64_t *rows;
    const float *score_gradients;
    uint64_t *offsets;
    float *weights;
    uint32_t heads, n, k;
    template <int V> MEMBER void at(uint64_t i) const
    {
        const uint64_t query = i / k, first = query * 2 * k + i % k;
        const uint64_t row = rows[i], key = row / n, head = query % heads;
        offsets[first] = head * 2 * n + key;
        offsets[first + k] = (head * 2 + 1) * n + (row - key * n);
        weights[first] = weights[first + k] = score_gradients[i];
    }
};

/* query_gradients[i] += the sum over j of weight * key, in order of j: the CPU's bits. */
template <int V>
static __global__ void __launch_bounds__(THREADS)
    move_queries(const uint64_t *offsets, const float *weights, uint64_t queries, uint32_t k,
                 uint32_t half, const float *keys, float *query_gradients)
{
    const uint32_t c = (blockIdx.y * blockDim.x + threadIdx.x) * V;
    uint64_t q = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; q < queries && c < half; q += (uint64_t)gridDim.x * blockDim.y) {
        float sum[V];
        get(query_gradients + q * half + c, sum);
        for (uint32_t j = 0; j < k; j += AHEAD) {
            float key[AHEAD][V], weight[AHEAD];
#pragma unroll
            for (int a = 0; a < AHEAD; a++)
                if (j + a < k) {
                    weight[a] = weights[q * k + j + a];
                    get(keys + offsets[q * k + j + a] * half + c, key[a]);
                }
#pragma unroll
            for (int a = 0; a < AHEAD; a++)
                if (j + a < k)
#pragma unroll
                    for (int e = 0; e < V; e++)
                        sum[e] = sum[e] + weight[a] * key[a][e];
        }
        put(sum, query_gradients + q * half + c);
    }
}

/* What a stretch knows of its ends, and where its sums go. */
struct key_sums {
    mn_cuda_plan plan;
    const float *weights, *queries;
    float *key_gradients, *partials; /* [stretches][2][half]: of its first key, and of its last */
    uint32_t k, half;
};

/* A key whose picks lie in one stretch is done at once, from what its gradient was; a part of a
 * key's picks goes to the stretch's partials. */
template <int V> struct key_run {
    float sum[V];
    uint64_t row;
    float *to;
};

template <int V>
DEVICE void begin_run(const key_sums &s, uint64_t stretch, uint64_t at, uint64_t row, uint64_t last,
                      bool cut_before, bool cut_after, uint32_t c, key_run<V> *out)
{
    const bool first = at == stretch * STRETCH;
    const bool part = (first && cut_before) || (row == last && cut_after);
    out->row = row;
    out->to = part ? s.partials + (stretch * 2 + !first) * s.half + c
                   : s.key_gradients + row * s.half + c;
#pragma unroll
    for (int e = 0; e < V; e++)
        out->sum[e] = 0;
    if (!part)
        get(out->to, out->sum);
}

template <int V> static __global__ void __launch_bounds__(THREADS) sum_stretches(key_sums s)
{
    const uint32_t c = (blockIdx.y * blockDim.x + threadIdx.x) * V;
    const uint64_t picks = s.plan.reads, stretches = (picks + STRETCH - 1) / STRETCH;
    uint64_t stretch = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; stretch < stretches && c < s.half; stretch += (uint64_t)gridDim.x * blockDim.y) {
        const uint64_t first = stretch * STRETCH;
        const uint64_t end = first + STRETCH < picks ? first + STRETCH : picks;
        const uint64_t *sorted = s.plan.sorted, last = sorted[end - 1];
        const bool cut_before = first > 0 && sorted[first - 1] == sorted[first];
        const bool cut_after = end < picks && sorted[end] == last;
        key_run<V> run;
        begin_run(s, stretch, first, sorted[first], last, cut_before, cut_after, c, &run);
        for (uint64_t i = first; i < end; i += AHEAD) {
            float query[AHEAD][V], weight[AHEAD];
            uint64_t rows[AHEAD];
#pragma unroll
            for (int a = 0; a < AHEAD; a++)
                if (i + a < end) {
                    const uint32_t pick = s.plan.order[i + a];
                    rows[a] = sorted[i + a], weight[a] = s.weights[pick];
                    get(s.queries + (uint64_t)(pick / s.k) * s.half + c, query[a]);
                }
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                if (i + a >= end)
                    continue;
                if (rows[a] != run.row) {
                    put(run.sum, run.to);
                    begin_run(s, stretch, i + a, rows[a], last, cut_before, cut_after, c, &run);
                }
#pragma unroll
                for (int e = 0; e < V; e++)
                    run.sum[e] = run.sum[e] + weight[a] * query[a][e];
            }
        }
        put(run.sum, run.to);
    }
}

template <int V> static __global__ void __launch_bounds__(THREADS) add_stretches(key_sums s)
{
    const uint32_t c = (blockIdx.y * blockDim.x + threadIdx.x) * V, runs = *s.plan.runs;
    uint64_t r = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; r < runs && c < s.half; r += (uint64_t)gridDim.x * blockDim.y) {
        const uint64_t begin = s.plan.starts[r], end = s.plan.starts[r + 1];
        const uint64_t first = begin / STRETCH, last = (end - 1) / STRETCH;
        if (first == last)
            continue;
        float sum[V], next[V];
        float *gradient = s.key_gradients + s.plan.sorted[begin] * s.half + c;
        get(s.partials + (first * 2 + (begin % STRETCH != 0)) * s.half + c, sum);
#pragma unroll 4
        for (uint64_t stretch = first + 1; stretch <= last; stretch++) {
            get(s.partials + stretch * 2 * s.half + c, next);
#pragma unroll
            for (int e = 0; e < V; e++)
                sum[e] = sum[e] + next[e];
        }
        get(gradient, next);
#pragma unroll
        for (int e = 0; e < V; e++)
            next[e] = next[e] + sum[e];
        put(next, gradient);
    }
}

static enum mn_status queue_keys(mn_cuda_nn *nn, const key_sums &sums, uint64_t stretches,
                                 uint64_t rows, bool four, mn_error *error)
{
    const uint32_t vectors = sums.half / (four ? 4 : 1);
    cudaLaunchConfig_t config = rows_config(vectors, stretches, SEARCH_BLOCKS, nn->stream);
    cudaError_t result =
        cudaLaunchKernelEx(&config, four ? sum_stretches<4> : sum_stretches<1>, sums);
    config = rows_config(vectors, rows, SEARCH_BLOCKS, nn->stream);
    if (result == cudaSuccess)
        result = cudaLaunchKernelEx(&config, four ? add_stretches<4> : add_stretches<1>, sums);
    return launched(result, error);
}

extern "C" enum mn_status mn_cuda_nn_search_grad(mn_cuda_nn *nn, const mn_search *search,
                                                 const float *queries, const float *keys,
                                                 const uint64_t *rows, const float *score_gradients,
                                                 float *query_gradients, float *key_gradients,
                                                 mn_error *error)
{
    const uint32_t k = search->k, half = search->half;
    const uint64_t n = search->tokens * search->heads;
    uint64_t used = 0;
    void *offsets = NULL, *weights = NULL, *workspace = NULL, *partials = NULL;
    grad_layout layout;
    enum mn_status status = grad_layout_of(search, &layout, error);
    if (status == MN_OK)
        status = scratch_at(nn, layout.picks * sizeof(uint64_t), &used, &offsets, error);
    if (status == MN_OK)
        status = scratch_at(nn, layout.picks * sizeof(float), &used, &weights, error);
    if (status == MN_OK)
        status = scratch_at(nn, layout.plan_bytes, &used, &workspace, error);
    if (status == MN_OK)
        status =
            scratch_at(nn, layout.stretches * 2 * half * sizeof(float), &used, &partials, error);
    if (status)
        return status;
    const bool four = fours(half, {queries, keys, query_gradients, key_gradients});
    const listing op = {
        rows, score_gradients, (uint64_t *)offsets, (float *)weights, search->heads, search->n, k};
    key_sums sums = {};
    sums.weights = (const float *)weights, sums.queries = queries;
    sums.key_gradients = key_gradients, sums.partials = (float *)partials;
    sums.k = k, sums.half = half;
    mn_narrow_forget(nn, query_gradients, n * 2 * half * sizeof(float));
    mn_narrow_forget(nn, key_gradients, layout.rows * half * sizeof(float));
    status = queue_each(nn, op, n * k, false, error);
    if (status == MN_OK)
        status = mn_cuda_plan_reads((const uint64_t *)offsets, layout.picks, layout.rows, workspace,
                                    layout.plan_bytes, &sums.plan, nn->stream, error);
    if (status)
        return status;
    const cudaLaunchConfig_t config =
        rows_config(half / (four ? 4 : 1), n * 2, SEARCH_BLOCKS, nn->stream);
    status = launched(cudaLaunchKernelEx(&config, four ? move_queries<4> : move_queries<1>,
                                         (const uint64_t *)offsets, (const float *)weights, n * 2,
                                         k, half, keys, query_gradients),
                      error);
    return status ? status : queue_keys(nn, sums, layout.stretches, layout.rows, four, error);
}
