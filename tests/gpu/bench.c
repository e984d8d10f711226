/* The CUDA kernels, and a model made of them, against what the GPU gives (bench.h).
 * usage: bench [--quick] [TORCH-TIMES]     the file: "case seconds" lines of peer_torch.py */
#include "bench.h"

/* ---- Copy bandwidth */

typedef struct copy_work {
    void *from, *to;
    uint64_t bytes;
} copy_work;

static void do_copy(void *context)
{
    const copy_work *copy = context;
    check_cuda(cudaMemcpyAsync(copy->to, copy->from, copy->bytes, cudaMemcpyDeviceToDevice, NULL),
               "copy");
}

static void bench_copy(void)
{
    copy_work copy = {.bytes = quick ? 1 << 20 : UINT64_C(4) << 30};
    copy.from = device(copy.bytes), copy.to = device(copy.bytes);
    check_cuda(cudaMemset(copy.from, 0x5a, copy.bytes), "cudaMemset");
    const double seconds = timed(do_copy, &copy);
    copy_rate = 2 * (double)copy.bytes / seconds;
    printf("{\"bench\": \"copy\", \"case\": \"%llu MiB, bytes read and written\", \"value\": %.6g, "
           "\"unit\": \"B/s\"}\n",
           (unsigned long long)copy.bytes >> 20, copy_rate);
    cudaFree(copy.from);
    cudaFree(copy.to);
}

/* ---- bag */

typedef struct bag_work {
    table table;
    uint32_t queries, k;
    void *bags;
} bag_work;

static void do_bag(void *context)
{
    bag_work *b = context;
    mn_error error;
    const enum mn_dtype dtype = b->table.gpu.dtype;
    check(mn_cuda_bag(&b->table.gpu, b->table.gpu_offsets, b->table.gpu_weights, b->queries, b->k,
                      dtype, b->bags, b->table.gpu.columns * mn_dtype_bytes(dtype), NULL, &error),
          &error, "bag");
}

static void bag_case(uint64_t rows, uint32_t dim, enum mn_dtype dtype, uint32_t queries, uint32_t k,
                     const char *name, const char *torch_name)
{
    bag_work b = {.queries = queries, .k = k};
    const mn_tile shape = tile_of(rows, dim, dtype);
    const uint64_t row_bytes = dim * mn_dtype_bytes(dtype);
    table_init(&b.table, &shape, queries, k);
    b.bags = device(queries * row_bytes);
    const double seconds = timed(do_bag, &b);
    char *expected = host(row_bytes), *got = host(row_bytes);
    for (uint32_t q = 0; q < queries; q += queries / 8) {
        mn_kernels_best()->bag(&b.table.cpu, b.table.offsets + (uint64_t)q * k,
                               b.table.weights + (uint64_t)q * k, 1, k, dtype, expected, row_bytes);
        from_device((char *)b.bags + q * row_bytes, got, row_bytes);
        if (memcmp(got, expected, row_bytes) != 0)
            die("bag %s: query %u has other bits than plain C", name, q);
    }
    const double bytes = (double)(queries * row_bytes) * (k + 1);
    line("bag", name, seconds, "copy", bytes / copy_rate, 0.85, 0.95);
    line("bag", name, seconds, "torch", torch_seconds(torch_name), 0, 0);
    free(expected);
    free(got);
    cudaFree(b.bags);
    table_free(&b.table);
}

static void bench_bag(void)
{
    const uint64_t rows = quick ? 1000 : 1 << 20;
    bag_case(rows, quick ? 64 : 4096, MN_BF16, quick ? 16 : 4096, 32,
             "4096 x 32 of 1M x 4096 bf16, uniform", "bag-4096");
    bag_case(rows, quick ? 32 : 384, MN_F32, quick ? 16 : 4096, 128,
             "4096 x 128 of 1M x 384 f32, uniform", "bag-384");
}

/* ---- bag-grad */

typedef struct grad_work {
    table table;
    uint32_t queries, k;
    float *gradients, *dots, *merged;
    uint64_t *merged_rows, workspace_bytes;
    void *workspace;
    mn_cuda_plan plan;
} grad_work;

static void do_grad(void *context)
{
    grad_work *g = context;
    mn_error error;
    const uint32_t columns = g->table.gpu.columns;
    const mn_cuda_sources sources = {.gradients = g->gradients,
                                     .stride_bytes = columns * sizeof(float),
                                     .weights = g->table.gpu_weights,
                                     .dtype = MN_F32,
                                     .per_gradient = g->k};
    check(mn_cuda_bag_dot(&g->table.gpu, g->table.gpu_offsets, g->queries, g->k, MN_F32,
                          g->gradients, columns * sizeof(float), g->dots, NULL, &error),
          &error, "bag_dot");
    check(mn_cuda_plan_reads(g->table.gpu_offsets, g->table.offsets_count, g->table.gpu.rows,
                             g->workspace, g->workspace_bytes, &g->plan, NULL, &error),
          &error, "plan_reads");
    check(mn_cuda_merge_rows(&g->plan, &sources, columns, g->merged, g->merged_rows, NULL, &error),
          &error, "merge_rows");
}

/* The whole order, and sampled merged rows and dots, against plain C. Returns distinct rows. */
static uint64_t check_grad(const grad_work *g, const float *gradients)
{
    const uint64_t reads = g->table.offsets_count;
    const uint32_t columns = g->table.gpu.columns;
    mn_contribution *list = host(reads * sizeof *list), *scratch = host(reads * sizeof *scratch);
    uint32_t *order = host(reads * sizeof *order), runs;
    float *expected = host(columns * sizeof(float)), *got = host(columns * sizeof(float));
    for (uint64_t i = 0; i < reads; i++)
        list[i] = (mn_contribution){g->table.offsets[i], (uint32_t)i, g->table.weights[i]};
    mn_contributions_sort(list, scratch, reads, g->table.gpu.rows);
    from_device(g->plan.order, order, reads * sizeof *order);
    from_device(g->plan.runs, &runs, sizeof runs);
    for (uint64_t i = 0, run = 0, end; i < reads; i = end, run++) {
        for (end = i; end < reads && list[end].offset == list[i].offset; end++)
            if (order[end] != list[end].source)
                die("bag-grad: read %llu of the order differs", (unsigned long long)end);
        if (run % 4096 != 0)
            continue;
        memset(expected, 0, columns * sizeof(float));
        for (uint64_t j = i; j < end; j++)
            for (uint32_t c = 0; c < columns; c++) {
                volatile float product =
                    list[j].weight * gradients[(uint64_t)(list[j].source / g->k) * columns + c];
                expected[c] = expected[c] + product;
            }
        from_device(g->merged + run * columns, got, columns * sizeof(float));
        if (memcmp(got, expected, columns * sizeof(float)) != 0)
            die("bag-grad: merged row %llu differs", (unsigned long long)run);
    }
    mn_kernels_best()->bag_dot(&g->table.cpu, g->table.offsets, 1, g->k, MN_F32, gradients,
                               columns * sizeof(float), expected);
    from_device(g->dots, got, g->k * sizeof(float));
    if (memcmp(got, expected, g->k * sizeof(float)) != 0)
        die("bag-grad: dots differ");
    free(list);
    free(scratch);
    free(order);
    free(expected);
    free(got);
    return runs;
}

static void bench_bag_grad(void)
{
    const char *name = "4096 x 128 of 1M x 384 f32, values and scores";
    const uint32_t dim = quick ? 160 : 384;
    grad_work g = {.queries = quick ? 16 : 4096, .k = 128};
    const mn_tile shape = tile_of(quick ? 1000 : 1 << 20, dim, MN_F32);
    const uint64_t reads = (uint64_t)g.queries * g.k, row_bytes = dim * sizeof(float);
    uint64_t random = 4;
    mn_error error;
    table_init(&g.table, &shape, g.queries, g.k);
    float *gradients = host(g.queries * row_bytes);
    for (uint64_t i = 0; i < (uint64_t)g.queries * dim; i++)
        gradients[i] = random_float(&random);
    g.gradients = on_device(gradients, g.queries * row_bytes);
    g.dots = device(reads * sizeof(float));
    g.merged = device(reads * row_bytes);
    g.merged_rows = device(reads * sizeof(uint64_t));
    check(mn_cuda_plan_bytes(reads, shape.rows, &g.workspace_bytes, &error), &error, "plan_bytes");
    g.workspace = device(g.workspace_bytes);
    const double seconds = timed(do_grad, &g);
    const uint64_t distinct = check_grad(&g, gradients);
    const double bytes = (double)row_bytes * (double)(reads + g.queries + distinct);
    line("bag-grad", name, seconds, "bound", bytes / copy_rate, 0.6, 0.85);
    line("bag-grad", name, seconds, "torch", torch_seconds("bag-grad-384"), 0, 0);
    void *all[] = {g.gradients, g.dots, g.merged, g.merged_rows, g.workspace};
    for (int i = 0; i < 5; i++)
        cudaFree(all[i]);
    free(gradients);
    table_free(&g.table);
}

/* ---- search */

typedef struct search_work {
    mn_cuda cuda;
    mn_search search;
    void *queries, *keys, *workspace;
    uint64_t *rows, *bad;
    float *scores, *all_scores;
} search_work;

static void do_search(void *context)
{
    search_work *s = context;
    mn_error error;
    check(mn_cuda_search(&s->cuda, &s->search, MN_BF16, s->queries, s->keys, s->rows, s->scores,
                         s->bad, s->workspace, NULL, &error),
          &error, "search");
}

/* The products alone, every score written to device memory. */
static void do_products(void *context)
{
    const search_work *s = context;
    const int n = (int)s->search.n, half = (int)s->search.half, sides = (int)s->search.heads * 2;
    const float one = 1, zero = 0;
    if (cublasGemmStridedBatchedEx(
            s->cuda.blas, CUBLAS_OP_T, CUBLAS_OP_N, n, (int)s->search.tokens, half, &one, s->keys,
            CUDA_R_16BF, half, (long long)n * half, s->queries, CUDA_R_16BF, sides * half, half,
            &zero, s->all_scores, CUDA_R_32F, sides * n, n, sides, CUBLAS_COMPUTE_32F,
            CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS)
        die("cuBLAS refused the products");
}

static uint16_t *random_bf16(uint64_t count, uint64_t random)
{
    uint16_t *bits = host(count * sizeof *bits);
    for (uint64_t i = 0; i < count; i++) {
        const float value = random_float(&random);
        uint32_t wide;
        memcpy(&wide, &value, sizeof wide);
        bits[i] = (uint16_t)(wide >> 16);
    }
    return bits;
}

static float widened(uint16_t bits)
{
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* The best pick of some queries has the score that its keys give. */
static void check_search(const search_work *s, const uint16_t *queries, const uint16_t *keys)
{
    const mn_search *c = &s->search;
    uint64_t bad, row;
    float score;
    from_device(s->bad, &bad, sizeof bad);
    if (bad != UINT64_MAX)
        die("search: query %llu is said to have no numbers", (unsigned long long)bad);
    for (uint64_t q = 0; q < c->tokens * c->heads; q += c->tokens * c->heads / 16 + 1) {
        double exact = 0, size = 0;
        from_device(s->rows + q * c->k, &row, sizeof row);
        from_device(s->scores + q * c->k, &score, sizeof score);
        const uint64_t key[2] = {row / c->n, row % c->n};
        for (uint32_t i = 0; i < 2 * c->half; i++) {
            const uint64_t side = q % c->heads * 2 + i / c->half;
            const double term =
                (double)widened(queries[q * 2 * c->half + i]) *
                (double)widened(keys[(side * c->n + key[i / c->half]) * c->half + i % c->half]);
            exact += term, size += fabs(term);
        }
        if (!(fabs((double)score - exact) <= size * c->half * 0x1p-23))
            die("search: query %llu: score %g, not %g", (unsigned long long)q, (double)score,
                exact);
    }
}

/* Returns its seconds. */
static double bench_search(void)
{
    const char *name = "32768 tokens, 4 heads, n 1024, half 128, k 32, bf16";
    search_work s = {.search = {32768, 4, 1024, 128, 32}};
    mn_error error;
    if (quick)
        s.search = (mn_search){70, 2, 64, 16, 32};
    const mn_search *c = &s.search;
    const uint64_t queries = c->tokens * c->heads, picks = queries * c->k;
    const uint64_t query_elements = queries * 2 * c->half;
    const uint64_t key_elements = (uint64_t)c->heads * 2 * c->n * c->half;
    const uint64_t score_bytes = queries * 2 * c->n * sizeof(float);
    uint16_t *query = random_bf16(query_elements, 2), *key = random_bf16(key_elements, 3);
    check(mn_cuda_open(&s.cuda, &error), &error, "open");
    s.queries = on_device(query, query_elements * sizeof *query);
    s.keys = on_device(key, key_elements * sizeof *key);
    s.rows = device(picks * sizeof(uint64_t)), s.scores = device(picks * sizeof(float));
    s.bad = device(sizeof(uint64_t)), s.all_scores = device(score_bytes);
    s.workspace = device(mn_cuda_search_bytes(c, s.cuda.cache_bytes));
    const double seconds = timed(do_search, &s), products = timed(do_products, &s);
    check_search(&s, query, key);
    line("search", name, seconds, "gemm+pass", products + (double)score_bytes / copy_rate, 1, 1);
    line("search", name, seconds, "torch", torch_seconds("search"), 8, 8);
    void *all[] = {s.queries, s.keys, s.rows, s.scores, s.bad, s.all_scores, s.workspace};
    for (int i = 0; i < 7; i++)
        cudaFree(all[i]);
    mn_cuda_close(&s.cuda);
    free(query);
    free(key);
    return seconds;
}

/* ---- adamw */

typedef struct adamw_work {
    table table;
    float *gradients;
    mn_cuda_plan plan;
    uint64_t *first_written;
} adamw_work;

static void do_adamw(void *context)
{
    adamw_work *a = context;
    mn_error error;
    const mn_cuda_sources sources = {.gradients = a->gradients,
                                     .stride_bytes = a->table.gpu.columns * sizeof(float),
                                     .dtype = MN_F32,
                                     .per_gradient = 1};
    const mn_update update = {
        .learning_rate = 1e-3f, .weight_decay = 0.1f, .factor = 1, .step = 1000};
    check(mn_cuda_merge_apply(&a->table.gpu, &a->plan, &sources, &update, a->first_written, NULL,
                              &error),
          &error, "merge_apply");
}

/* Each row with the same chance, as many as are due, ascending. Returns their number. */
static uint64_t touched_rows(uint64_t rows, uint64_t due, uint64_t *out_offsets)
{
    uint64_t random = 17, count = 0;
    for (uint64_t row = 0; row < rows && count < due; row++)
        if (next_random(&random) % (rows - row) < due - count)
            out_offsets[count++] = row;
    return count;
}

static void bench_adamw(void)
{
    const uint32_t dim = quick ? 64 : 1024;
    const uint64_t rows = quick ? 1000 : 1 << 20, due = rows * 22 / 100;
    const char *name = "1M x 1024 f32, 22% of rows touched";
    adamw_work a = {.gradients = NULL};
    mn_tile shape = tile_of(rows, dim, MN_F32);
    mn_error error;
    uint64_t bytes, random = 5;
    shape.optimizer = mn_adamw(0.9f, 0.999f, 1e-8f);
    table_init(&a.table, &shape, 1, (uint32_t)due);
    a.table.gpu.state = device(rows * dim * 2 * sizeof(float));
    check_cuda(cudaMemset(a.table.gpu.state, 0, rows * dim * 2 * sizeof(float)), "cudaMemset");
    touched_rows(rows, due, a.table.offsets);
    uint64_t *offsets = on_device(a.table.offsets, due * sizeof *offsets);
    float *gradients = host(due * dim * sizeof(float));
    for (uint64_t i = 0; i < due * dim; i++)
        gradients[i] = random_float(&random) * 1e-3f;
    a.gradients = on_device(gradients, due * dim * sizeof(float));
    a.first_written = device(sizeof(uint64_t));
    check(mn_cuda_plan_bytes(due, rows, &bytes, &error), &error, "plan_bytes");
    void *workspace = device(bytes);
    check(mn_cuda_plan_reads(offsets, due, rows, workspace, bytes, &a.plan, NULL, &error), &error,
          "plan_reads");
    const double seconds = timed(do_adamw, &a);
    float before, after;
    mn_kernels_best()->init_row(&shape.init, SEED, a.table.offsets[due - 1], 0, 1, MN_F32, &before);
    from_device((float *)a.table.gpu.values + a.table.offsets[due - 1] * dim, &after, sizeof after);
    if (before == after)
        die("adamw left the last row as it was");
    /* Read: gradient, value, both moments; written: the last three. */
    line("adamw", name, seconds, "copy", (double)(due * dim * 7 * sizeof(float)) / copy_rate, 0, 0);
    line("adamw", name, seconds, "torch", torch_seconds("adamw"), 3.5, 3.5);
    void *all[] = {a.gradients, a.first_written, workspace, offsets, a.table.gpu.state};
    for (int i = 0; i < 5; i++)
        cudaFree(all[i]);
    free(gradients);
    table_free(&a.table);
}

int main(int count, char **arguments)
{
    for (int i = 1; i < count; i++)
        if (strcmp(arguments[i], "--quick") == 0)
            quick = true;
        else
            torch_times = arguments[i];
    bench_copy();
    bench_bag();
    bench_bag_grad();
    const double search_seconds = bench_search();
    bench_adamw();
    bench_model(search_seconds);
    return 0;
}
