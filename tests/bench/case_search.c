/* search: exact product-key search on one thread, against its matrix products alone, against
 * PyTorch, and against itself with half as many keys (a quarter of the rows). */
#include "mn_kernels.h"
#include "peers/peers.h"

enum { TOKENS = 4096, HEADS = 4, KEYS = 1024, HALF = 128, KNN = 32 };
enum { QUERY = HEADS * 2 * HALF, BLOCK = 128 /* tokens of our own blocking, as in search.c */ };

typedef struct search_context {
    mn_search search;
    float *queries, *keys, *scores, *products;
    uint64_t *rows;
    void *scratch;
} search_context;

static search_context prepare(uint32_t n)
{
    search_context c = {.search = {TOKENS, HEADS, n, HALF, KNN}};
    uint64_t seed = n;
    c.queries = bench_huge(TOKENS * QUERY * sizeof(float));
    c.keys = bench_huge((uint64_t)HEADS * 2 * n * HALF * sizeof(float));
    c.scores = bench_huge(TOKENS * HEADS * KNN * sizeof(float));
    c.rows = bench_huge(TOKENS * HEADS * KNN * sizeof *c.rows);
    c.products = bench_huge((uint64_t)TOKENS * n * sizeof(float));
    c.scratch = bench_huge(mn_search_scratch_bytes(&c.search));
    for (uint32_t i = 0; i < TOKENS * QUERY; i++)
        c.queries[i] = (float)(bench_random(&seed) >> 40) * 0x1p-23f - 1;
    for (uint32_t i = 0; i < HEADS * 2 * n * HALF; i++)
        c.keys[i] = ((float)(bench_random(&seed) >> 40) * 0x1p-23f - 1) * 0.125f;
    return c;
}

/* The best score is at least that of the row asked for, which is one of all. */
static void check(const search_context *c, uint64_t token)
{
    const uint32_t n = c->search.n;
    for (uint32_t h = 0; h < HEADS; h++) {
        const float *query = c->queries + (token * HEADS + h) * 2 * HALF;
        const uint64_t row = c->rows[(token * HEADS + h) * KNN];
        float best = -1e30f, got = 0;
        for (uint32_t half = 0; half < 2; half++) {
            float most = -1e30f;
            for (uint32_t key = 0; key < n; key++) {
                float score = 0;
                for (uint32_t i = 0; i < HALF; i++)
                    score += query[half * HALF + i] *
                             c->keys[((uint64_t)(h * 2 + half) * n + key) * HALF + i];
                most = score > most ? score : most;
                got += key == (half ? row % n : row / n) ? score : 0;
            }
            best = half ? best + most : most;
        }
        if (!(got > best - 1e-4f))
            bench_die("search: token %llu, head %u: %g is not the best, %g is",
                      (unsigned long long)token, h, (double)got, (double)best);
    }
}

static double round_search(void *opaque, uint64_t round)
{
    search_context *c = opaque;
    mn_error error;
    double start = bench_now();
    bench_check(
        mn_product_search(&c->search, c->queries, c->keys, c->rows, c->scores, c->scratch, &error),
        &error, "search");
    mn_kernels_best()->softmax(c->scores, TOKENS * HEADS, KNN);
    double seconds = bench_now() - start;
    check(c, round * 97 % TOKENS);
    return seconds;
}

/* Every head's two products, `block` tokens at a time. */
static double products(const search_context *c, uint32_t block)
{
    const uint32_t n = c->search.n;
    double start = bench_now();
    for (uint32_t t = 0; t < TOKENS; t += block)
        for (uint32_t h = 0; h < HEADS * 2; h++)
            mn_gemm(false, true, block, n, HALF, 1,
                    c->queries + (uint64_t)t * QUERY + (uint64_t)h * HALF, QUERY,
                    c->keys + (uint64_t)h * n * HALF, HALF, 0, c->products, n);
    return bench_now() - start;
}

static double round_sgemm(void *opaque, uint64_t round)
{
    (void)round;
    double whole = products(opaque, TOKENS), blocked = products(opaque, BLOCK);
    return whole < blocked ? whole : blocked;
}

void bench_search(void)
{
    peer_torch torch;
    search_context at_n = prepare(KEYS), at_2n = prepare(2 * KEYS);
    mn_gemm_threads(1);
    bool has = peer_torch_start(&torch, "torch_kernels.py", "search");
    bench_case search = {.bench = "search",
                         .name = "n=1024 tokens=4096 heads=4 half=128 knn=32",
                         .unit = "tokens/s",
                         .work = TOKENS,
                         .mneme = {"mneme", round_search, &at_n, 0, 0},
                         .peers = {{"sgemm", round_sgemm, &at_n, 0.75, 0.9},
                                   {"torch", has ? peer_torch_round : NULL, &torch, 4, 6}},
                         .peer_count = 2};
    bench_run(&search);
    peer_torch_stop(&torch);
    bench_case growth = {.bench = "search",
                         .name = "growth n=2048 tokens=4096 heads=4 half=128 knn=32",
                         .unit = "tokens/s",
                         .work = TOKENS,
                         .mneme = {"mneme", round_search, &at_2n, 0, 0},
                         .peers = {{"rows*4", round_search, &at_n, 0.45, 0.48}},
                         .peer_count = 1};
    bench_run(&growth);
}
