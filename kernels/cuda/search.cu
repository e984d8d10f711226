/* Product-key search (Lample et al. 2019, arXiv 1907.05242, §3.2): cuBLAS multiplies a block of
 * queries by the keys into scores that stay in the second cache; then a warp selects for each
 * query, as kernels/cpu/select.c does: a threshold that k scores reach and not many more, those
 * that reach it, ranked by counting; first in both lists, then among the sums that can win. */
#include "device.h"

#include <cublas_v2.h>

static const uint32_t SELECT_THREADS = 128, SELECT_WARPS = SELECT_THREADS / WARP;
static const uint64_t SELECT_BLOCKS = 4096;

/* Pairs with (a+1)(b+1) <= k, for k of 16, 32, 64, 128. */
template <int G> struct pairs_max;
template <> struct pairs_max<1> {
    static const uint32_t COUNT = 50;
};
template <> struct pairs_max<2> {
    static const uint32_t COUNT = 119;
};
template <> struct pairs_max<4> {
    static const uint32_t COUNT = 280;
};
template <> struct pairs_max<8> {
    static const uint32_t COUNT = 645;
};

/* A warp's working place for k <= 16 * G. */
template <int G> struct select_place {
    static const uint32_t K = 16 * G, KEPT = 4 * K, PAIRS = pairs_max<G>::COUNT;
    float kept_scores[KEPT], best_scores[3][K], sums[PAIRS]; /* best: of list 1, list 2, the sums */
    uint32_t kept_indices[KEPT], best_indices[3][K];
};

/* Pairs (a, b) that can be among the k best, by (a asc, b asc). */
template <int G> struct select_pairs {
    uint8_t first[pairs_max<G>::COUNT], second[pairs_max<G>::COUNT];
    uint32_t count;
};

/* Integers in the order of the scores; -0 counts as +0. */
DEVICE int order_of(float score)
{
    const int bits = (int)bits_of(score + 0.0f);
    return bits ^ ((bits >> 31) & INT32_MAX);
}

DEVICE float score_of(int order)
{
    return float_of((uint32_t)(order ^ ((order >> 31) & INT32_MAX)));
}

/* How many bits below this lane's are set. */
DEVICE uint32_t lanes_before(uint32_t bits)
{
    return (uint32_t)__popc(bits & ((1u << threadIdx.x % WARP) - 1));
}

/* How many of the 32 * G maxima reach `edge`. */
template <int G> DEVICE uint32_t count_reaching(const int (&maxima)[G], int edge)
{
    uint32_t count = 0;
#pragma unroll
    for (int g = 0; g < G; g++)
        count += (uint32_t)__popc(__ballot_sync(ALL_LANES, maxima[g] >= edge));
    return count;
}

/* A score that at least k of the n reach, and mostly not many more: about the k-th best of the
 * maxima of 32 * G groups, bisected. False on NaN. */
template <int G>
DEVICE bool threshold_of(const float *scores, uint32_t n, uint32_t k, int *out_edge)
{
    const int STEPS = 20;
    float most[G];
    int maxima[G];
    bool nan = false;
#pragma unroll
    for (int g = 0; g < G; g++)
        most[g] = -INFINITY;
    for (uint32_t first = threadIdx.x % WARP; first < n; first += WARP * G)
#pragma unroll
        for (int g = 0; g < G; g++)
            if (first + g * WARP < n) {
                const float score = scores[first + g * WARP];
                nan |= score != score;
                most[g] = fmaxf(most[g], score);
            }
    if (__any_sync(ALL_LANES, nan))
        return false;
    int low = INT32_MAX, high = INT32_MIN;
#pragma unroll
    for (int g = 0; g < G; g++) {
        maxima[g] = order_of(most[g]);
        low = maxima[g] < low ? maxima[g] : low, high = maxima[g] > high ? maxima[g] : high;
    }
    low = __reduce_min_sync(ALL_LANES, low); /* all reach it */
    high = __reduce_max_sync(ALL_LANES, high);
    for (int step = 0; step < STEPS && low < high; step++) {
        const int middle = (int)(((int64_t)low + high + 1) >> 1);
        const uint32_t count = count_reaching<G>(maxima, middle);
        if (count >= k)
            low = middle;
        else
            high = middle - 1;
        if (count == k)
            break;
    }
    *out_edge = low;
    return true;
}

/* Keeps, in their order, the scores that reach `edge`; of those equal to it, when ties count, only
 * the first `equals`. Those past `room` are only counted. Returns their number. */
template <bool TIES>
DEVICE uint32_t keep_scores(const float *scores, uint32_t n, int edge, uint32_t equals,
                            uint32_t room, float *out_scores, uint32_t *out_indices)
{
    const float least = score_of(edge);
    uint32_t count = 0, equal = 0;
    for (uint32_t first = 0; first < n; first += WARP) {
        const uint32_t i = first + threadIdx.x % WARP;
        const float score = i < n ? scores[i] : -INFINITY;
        bool keeps = i < n && score >= least;
        if (TIES) {
            const uint32_t ties = __ballot_sync(ALL_LANES, i < n && score == least);
            keeps = keeps && (score > least || equal + lanes_before(ties) < equals);
            equal += (uint32_t)__popc(ties);
        }
        const uint32_t kept = __ballot_sync(ALL_LANES, keeps), at = count + lanes_before(kept);
        if (keeps && at < room)
            out_scores[at] = score, out_indices[at] = i;
        count += (uint32_t)__popc(kept);
    }
    return count;
}

/* Scores that reach `edge`. */
DEVICE uint32_t count_scores(const float *scores, uint32_t n, int edge)
{
    uint32_t count = 0;
    for (uint32_t first = 0; first < n; first += WARP) {
        const uint32_t i = first + threadIdx.x % WARP;
        count += (uint32_t)__popc(__ballot_sync(ALL_LANES, i < n && order_of(scores[i]) >= edge));
    }
    return count;
}

/* The k-th best score exactly: where very many are equal, or nearly. */
DEVICE int exact_edge(const float *scores, uint32_t n, uint32_t k)
{
    int64_t low = INT32_MIN, high = INT32_MAX;
    while (low < high) {
        const int64_t middle = (low + high + 1) >> 1;
        if (count_scores(scores, n, (int)middle) >= k)
            low = middle;
        else
            high = middle - 1;
    }
    return (int)low;
}

/* Sorts what was kept by counting, for each, those that come before it; writes the k first. */
DEVICE void rank_kept(const float *scores, const uint32_t *indices, uint32_t count, uint32_t k,
                      float *out_scores, uint32_t *out_indices)
{
    for (uint32_t i = threadIdx.x % WARP; i < count; i += WARP) {
        const float mine = scores[i];
        uint32_t before = 0;
        for (uint32_t j = 0; j < count; j++) { /* all lanes read the same one */
            const float other = scores[j];
            before += other > mine || (other == mine && j < i);
        }
        if (before < k)
            out_scores[before] = mine, out_indices[before] = indices[i];
    }
}

/* The k best of n scores, best first, equal ones by index, by a whole warp. False on NaN. */
template <int G>
DEVICE bool best_of(const float *scores, uint32_t n, uint32_t k, select_place<G> *place,
                    uint32_t list)
{
    int edge;
    if (!threshold_of<G>(scores, n, k, &edge))
        return false;
    uint32_t count = keep_scores<false>(scores, n, edge, 0, place->KEPT, place->kept_scores,
                                        place->kept_indices);
    if (count > place->KEPT) {
        edge = exact_edge(scores, n, k);
        const uint32_t better = edge == INT32_MAX ? 0 : count_scores(scores, n, edge + 1);
        __syncwarp();
        count = keep_scores<true>(scores, n, edge, k - better, place->KEPT, place->kept_scores,
                                  place->kept_indices);
    }
    __syncwarp();
    rank_kept(place->kept_scores, place->kept_indices, count, k, place->best_scores[list],
              place->best_indices[list]);
    __syncwarp();
    return true;
}

/* By one thread per a; the table is the same for every query. */
template <int G> DEVICE void make_pairs(uint32_t n, uint32_t k, select_pairs<G> *out)
{
    const uint32_t listed = n < k ? n : k;
    for (uint32_t a = threadIdx.x; a < listed; a += SELECT_THREADS) {
        uint32_t start = 0, length = 0;
        for (uint32_t before = 0; before <= a; before++) {
            start += length;
            length = k / (before + 1) < listed ? k / (before + 1) : listed;
        }
        for (uint32_t b = 0; b < length; b++)
            out->first[start + b] = (uint8_t)a, out->second[start + b] = (uint8_t)b;
        if (a == listed - 1)
            out->count = start + length;
    }
}

/* lists [queries][2][n]. A warp takes a query at a time. */
template <int G>
static __global__ void __launch_bounds__(SELECT_THREADS)
    select_best(const float *lists, uint64_t queries, uint64_t first_query, uint32_t n, uint32_t k,
                uint64_t *out_rows, float *out_scores, unsigned long long *out_bad)
{
    __shared__ select_place<G> places[SELECT_WARPS];
    __shared__ select_pairs<G> pairs;
    select_place<G> *place = places + threadIdx.x / WARP;
    const uint32_t listed = n < k ? n : k, lane = threadIdx.x % WARP;
    make_pairs<G>(n, k, &pairs);
    __syncthreads();
    uint64_t q = (uint64_t)blockIdx.x * SELECT_WARPS + threadIdx.x / WARP;
    for (; q < queries; q += (uint64_t)gridDim.x * SELECT_WARPS) {
        const float *list = lists + q * 2 * n;
        if (!best_of<G>(list, n, listed, place, 0) || !best_of<G>(list + n, n, listed, place, 1)) {
            if (lane == 0)
                (void)atomicMin(out_bad, first_query + q);
            continue;
        }
        for (uint32_t p = lane; p < pairs.count; p += WARP)
            place->sums[p] =
                place->best_scores[0][pairs.first[p]] + place->best_scores[1][pairs.second[p]];
        __syncwarp();
        if (!best_of<G>(place->sums, pairs.count, k, place, 2)) {
            if (lane == 0)
                (void)atomicMin(out_bad, first_query + q);
            continue;
        }
        for (uint32_t i = lane; i < k; i += WARP) {
            const uint32_t pair = place->best_indices[2][i];
            out_rows[(first_query + q) * k + i] =
                (uint64_t)place->best_indices[0][pairs.first[pair]] * n +
                place->best_indices[1][pairs.second[pair]];
            out_scores[(first_query + q) * k + i] = place->best_scores[2][i] + 0.0f;
        }
        __syncwarp(); /* read before the next query overwrites it */
    }
}

static enum mn_status check_select(uint32_t n, uint32_t k, mn_error *error)
{
    if (n == 0)
        return mn_fail(error, MN_INVALID, "n", "n is 0, must be at least 1");
    if (k == 0 || k > MN_SELECT_MAX || k > (uint64_t)n * n)
        return mn_fail(error, MN_INVALID, "k", "k is %u, must be 1 to the lesser of %u and n*n", k,
                       MN_SELECT_MAX);
    return MN_OK;
}

static cudaError_t queue_select(const float *lists, uint64_t queries, uint64_t first_query,
                                uint32_t n, uint32_t k, uint64_t *out_rows, float *out_scores,
                                uint64_t *out_bad, void *stream)
{
    cudaLaunchConfig_t config = {};
    const uint64_t blocks = (queries + SELECT_WARPS - 1) / SELECT_WARPS;
    config.blockDim = dim3(SELECT_THREADS);
    config.gridDim = dim3((unsigned)(blocks < SELECT_BLOCKS ? blocks : SELECT_BLOCKS));
    config.stream = (cudaStream_t)stream;
    auto kernel = k <= 16   ? select_best<1>
                  : k <= 32 ? select_best<2>
                  : k <= 64 ? select_best<4>
                            : select_best<8>;
    return cudaLaunchKernelEx(&config, kernel, lists, queries, first_query, n, k, out_rows,
                              out_scores, (unsigned long long *)out_bad);
}

extern "C" enum mn_status mn_cuda_select(const float *lists, uint64_t queries, uint32_t n,
                                         uint32_t k, uint64_t *out_rows, float *out_scores,
                                         uint64_t *out_bad, void *stream, mn_error *error)
{
    const enum mn_status status = check_select(n, k, error);
    if (status || queries == 0)
        return status;
    cudaError_t result = cudaMemsetAsync(out_bad, 0xff, sizeof *out_bad, (cudaStream_t)stream);
    if (result == cudaSuccess)
        result = queue_select(lists, queries, 0, n, k, out_rows, out_scores, out_bad, stream);
    return launched(result, error);
}

extern "C" enum mn_status mn_cuda_open(mn_cuda *out_cuda, mn_error *error)
{
    int devices = 0, device = 0, cache = 0;
    cublasHandle_t blas = NULL;
    cudaError_t result = cudaGetDeviceCount(&devices);
    if (result == cudaSuccess && devices == 0)
        result = cudaErrorNoDevice;
    if (result == cudaSuccess)
        result = cudaGetDevice(&device);
    if (result == cudaSuccess)
        result = cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, device);
    const enum mn_status status = launched(result, error);
    if (status)
        return status;
    const cublasStatus_t opened = cublasCreate(&blas);
    if (opened != CUBLAS_STATUS_SUCCESS)
        return mn_fail(error, MN_UNAVAILABLE, "device", "cuBLAS refused: %s",
                       cublasGetStatusString(opened));
    out_cuda->blas = blas, out_cuda->cache_bytes = (uint64_t)cache;
    return MN_OK;
}

extern "C" void mn_cuda_close(mn_cuda *cuda)
{
    if (cuda && cuda->blas)
        (void)cublasDestroy((cublasHandle_t)cuda->blas); /* at the end: nobody to tell */
    if (cuda)
        cuda->blas = NULL;
}

extern "C" uint64_t mn_cuda_search_block(const mn_search *search, uint64_t cache_bytes)
{
    const uint64_t LEAST = 64, MOST = 1 << 20; /* cuBLAS counts in int */
    const uint64_t token_bytes = (uint64_t)search->heads * 2 * search->n * sizeof(float);
    uint64_t tokens = token_bytes ? cache_bytes / 2 / token_bytes : LEAST;
    tokens = tokens < LEAST ? LEAST : tokens > MOST ? MOST : tokens;
    return tokens < search->tokens ? tokens : search->tokens;
}

extern "C" uint64_t mn_cuda_search_bytes(const mn_search *search, uint64_t cache_bytes)
{
    return mn_cuda_search_block(search, cache_bytes) * search->heads * 2 * search->n *
           sizeof(float);
}

/* scores [count][heads][2][n] of tokens from `first` on. Row-major matrices are their transposes to
 * cuBLAS: it makes scores^T = keys * queries^T, one product per head and half. */
static cublasStatus_t queue_product(const mn_cuda *cuda, const mn_search *search, bool bf16,
                                    const void *queries, const void *keys, uint64_t first,
                                    uint64_t count, float *scores)
{
    const int n = (int)search->n, half = (int)search->half, sides = (int)search->heads * 2;
    const cudaDataType_t type = bf16 ? CUDA_R_16BF : CUDA_R_32F;
    const float one = 1, zero = 0;
    const char *query = (const char *)queries + first * sides * half * (bf16 ? 2 : 4);
    return cublasGemmStridedBatchedEx((cublasHandle_t)cuda->blas, CUBLAS_OP_T, CUBLAS_OP_N, n,
                                      (int)count, half, &one, keys, type, half, (long long)n * half,
                                      query, type, sides * half, half, &zero, scores, CUDA_R_32F,
                                      sides * n, n, sides, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}

extern "C" enum mn_status mn_cuda_search(const mn_cuda *cuda, const mn_search *search,
                                         enum mn_dtype dtype, const void *queries, const void *keys,
                                         uint64_t *out_rows, float *out_scores, uint64_t *out_bad,
                                         void *workspace, void *stream, mn_error *error)
{
    const uint32_t heads = search->heads, n = search->n, k = search->k;
    const enum mn_status status = check_select(n, k, error);
    if (status)
        return status;
    if (heads == 0 || search->half == 0 ||
        (uint64_t)heads * 2 * (n > search->half ? n : search->half) > INT32_MAX)
        return mn_fail(error, MN_INVALID, "heads",
                       "heads %u, n %u, half %u: 1 or more, and heads * 2 of n or half below 2^31",
                       heads, n, search->half);
    cublasStatus_t product = cublasSetStream((cublasHandle_t)cuda->blas, (cudaStream_t)stream);
    cudaError_t result = cudaMemsetAsync(out_bad, 0xff, sizeof *out_bad, (cudaStream_t)stream);
    const uint64_t block = mn_cuda_search_block(search, cuda->cache_bytes);
    float *scores = (float *)workspace;
    for (uint64_t t = 0; t < search->tokens && result == cudaSuccess; t += block) {
        const uint64_t count = search->tokens - t < block ? search->tokens - t : block;
        if (product == CUBLAS_STATUS_SUCCESS)
            product =
                queue_product(cuda, search, dtype == MN_BF16, queries, keys, t, count, scores);
        if (product != CUBLAS_STATUS_SUCCESS)
            return mn_fail(error, MN_UNAVAILABLE, "device", "cuBLAS refused: %s",
                           cublasGetStatusString(product));
        result = queue_select(scores, count * heads, t * heads, n, k, out_rows, out_scores, out_bad,
                              stream);
    }
    return launched(result, error);
}
