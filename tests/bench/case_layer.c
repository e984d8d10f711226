/* layer-step: a whole product-key layer's training step (search, softmax, bag, the backward of
 * each, the table's AdamW), against the same layer in PyTorch in one process, on as many
 * threads. */
#include "mn_kernels.h"
#include "peers/peers.h"

#include <pthread.h>
#include <string.h>

enum { TOKENS = 4096, HEADS = 4, KNN = 32, KEYS = 512, HALF = 64, DIM = 512, THREADS = 2 };
enum { READS = HEADS * KNN, ALL_READS = TOKENS * READS };

typedef struct layer_context {
    mn_client *client;
    mn_table *table;
    float *queries, *keys, *scores, *bags, *gradients, *weight_gradients, *score_gradients;
    float *query_gradients, *key_gradients;
    uint64_t *rows;
    uint32_t *indices;
    void *scratch[THREADS];
} layer_context;

static const mn_search search = {TOKENS, HEADS, KEYS, HALF, KNN};

/* What a thread does between the calls of the client: its share of the tokens, or of the heads. */
typedef struct share {
    layer_context *layer;
    uint32_t thread;
    pthread_t id;
} share;

static void *search_share(void *opaque)
{
    const share *mine = opaque;
    const layer_context *layer = mine->layer;
    const mn_search part = {TOKENS / THREADS, HEADS, KEYS, HALF, KNN};
    const size_t first = mine->thread * part.tokens, reads = part.tokens * READS;
    uint64_t *rows = layer->rows + first * READS;
    float *scores = layer->scores + first * READS;
    mn_error error;
    bench_check(mn_product_search(&part, layer->queries + first * HEADS * 2 * HALF, layer->keys,
                                  rows, scores, layer->scratch[mine->thread], &error),
                &error, "search");
    mn_kernels_best()->softmax(scores, part.tokens * HEADS, KNN);
    for (size_t i = 0; i < reads; i++)
        layer->indices[first * READS + i] = (uint32_t)rows[i];
    return NULL;
}

/* The gradients of a head's keys are sums over all tokens: heads are shared out, not tokens. */
static void *search_grad_share(void *opaque)
{
    const share *mine = opaque;
    const layer_context *layer = mine->layer;
    const uint32_t heads = HEADS / THREADS, keys = 2 * KEYS * HALF * heads;
    memset(layer->key_gradients + mine->thread * keys, 0, keys * sizeof(float));
    mn_product_search_grad_heads(&search, mine->thread * heads, heads, layer->queries, layer->keys,
                                 layer->rows, layer->score_gradients, layer->query_gradients,
                                 layer->key_gradients);
    return NULL;
}

static void *softmax_grad_share(void *opaque)
{
    const share *mine = opaque;
    const layer_context *layer = mine->layer;
    const size_t groups = TOKENS * HEADS / THREADS, first = mine->thread * groups * KNN;
    const size_t queries = TOKENS * HEADS * 2 * HALF / THREADS;
    mn_kernels_best()->softmax_grad(layer->scores + first, layer->weight_gradients + first, groups,
                                    KNN, layer->score_gradients + first);
    memset(layer->query_gradients + mine->thread * queries, 0, queries * sizeof(float));
    return NULL;
}

static void on_threads(layer_context *layer, void *(*work)(void *))
{
    share shares[THREADS];
    for (uint32_t thread = 0; thread < THREADS; thread++) {
        shares[thread] = (share){.layer = layer, .thread = thread};
        if (thread && pthread_create(&shares[thread].id, NULL, work, &shares[thread]))
            bench_die("no thread");
    }
    (void)work(&shares[0]);
    for (uint32_t thread = 1; thread < THREADS; thread++)
        (void)pthread_join(shares[thread].id, NULL); /* fails only for a thread that is none */
}

static double round_mneme(void *opaque, uint64_t round)
{
    layer_context *layer = opaque;
    mn_error error;
    uint64_t step = mn_client_step(layer->client) + 1, seed = round;
    for (uint32_t i = 0; i < TOKENS * HEADS * 2 * HALF; i++)
        layer->queries[i] = (float)(bench_random(&seed) >> 40) * 0x1p-23f - 1;
    double start = bench_now();
    on_threads(layer, search_share);
    mn_queries reads = {TOKENS, READS, mn_u32(layer->indices), mn_f32(layer->scores)};
    mn_future *bags = mn_bag(layer->table, step, &reads, mn_f32(layer->bags));
    bench_check(mn_wait(bags, &error), &error, "bag");
    mn_future *grads = mn_bag_grad(layer->table, step, 0, &reads, mn_f32(layer->gradients),
                                   mn_f32(layer->weight_gradients));
    bench_check(mn_wait(grads, &error), &error, "bag-grad");
    on_threads(layer, softmax_grad_share);
    on_threads(layer, search_grad_share);
    mn_commit_options commit = {.learning_rate = 1e-3f, .weight_decay = 0.1f};
    bench_check(mn_commit(layer->client, step, &commit, NULL, &error), &error, "commit");
    return bench_now() - start;
}

static void *floats(uint64_t count) { return bench_huge(count * sizeof(float)); }

static void layer_prepare(layer_context *layer)
{
    uint64_t seed = 3;
    layer->queries = floats(TOKENS * HEADS * 2 * HALF);
    layer->query_gradients = floats(TOKENS * HEADS * 2 * HALF);
    layer->keys = floats(HEADS * 2 * KEYS * HALF);
    layer->key_gradients = floats(HEADS * 2 * KEYS * HALF);
    layer->scores = floats(ALL_READS);
    layer->weight_gradients = floats(ALL_READS);
    layer->score_gradients = floats(ALL_READS);
    layer->bags = floats(TOKENS * DIM);
    layer->gradients = floats(TOKENS * DIM);
    layer->rows = bench_huge(ALL_READS * sizeof *layer->rows);
    layer->indices = bench_huge(ALL_READS * sizeof *layer->indices);
    for (uint32_t thread = 0; thread < THREADS; thread++)
        layer->scratch[thread] = bench_huge(mn_search_scratch_bytes(&search));
    for (uint32_t i = 0; i < HEADS * 2 * KEYS * HALF; i++)
        layer->keys[i] = ((float)(bench_random(&seed) >> 40) * 0x1p-23f - 1) * 0.125f;
    for (uint32_t i = 0; i < TOKENS * DIM; i++)
        layer->gradients[i] = ((float)(bench_random(&seed) >> 40) * 0x1p-23f - 1) * 1e-3f;
    mn_gemm_threads(1); /* in each of ours */
}

static const mn_table_spec values = {
    .name = "values",
    .rows = KEYS * KEYS,
    .dim = DIM,
    .tiles = 4,
    .optimizer = {MN_OPTIMIZER_ADAMW, 0.9f, 0.999f, 1e-8f, MN_F32, false}};

static void run_case(layer_context *layer, const char *name, double least, peer_torch torch[2],
                     const bool has[2])
{
    bench_case step = {
        .bench = "layer-step",
        .name = name,
        .unit = "tokens/s",
        .work = TOKENS,
        .mneme = {"mneme", round_mneme, layer, 0, 0},
        .peers = {{"torch-dense", has[0] ? peer_torch_round : NULL, &torch[0], least, 0},
                  {"torch-sparse", has[1] ? peer_torch_round : NULL, &torch[1], least, 0}},
        .peer_count = 2};
    bench_run(&step);
}

void bench_layer_step(void)
{
    layer_context layer = {0};
    peer_torch torch[2];
    mn_error error;
    bool has[2] = {peer_torch_start(&torch[0], "torch_layer.py", "dense"),
                   peer_torch_start(&torch[1], "torch_layer.py", "sparse")};
    layer_prepare(&layer);
    mn_client_options local = {.target = "local:", .local_shards = THREADS};
    bench_check(mn_client_open(&local, &layer.client, &error), &error, "open");
    layer.table = bench_table(layer.client, &values);
    run_case(&layer, "local tokens=4096 heads=4 knn=32 keys=512 dim=512 adamw threads=2", 3, torch,
             has);
    mn_client_close(layer.client);

    bench_service service;
    bench_service_start(&service, 4);
    layer.client = service.client;
    layer.table = bench_table(layer.client, &values);
    run_case(&layer, "shards=4 tokens=4096 heads=4 knn=32 keys=512 dim=512 adamw", 1, torch, has);
    bench_service_stop(&service);
    for (int i = 0; i < 2; i++)
        peer_torch_stop(&torch[i]);
}
