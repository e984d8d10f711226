/* kernel-bag, kernel-bag-grad, adamw: the kernels alone, one thread, rows that were written,
 * against what memory gives and against PyTorch on one thread. */
#include "mn_kernels.h"
#include "peers/peers.h"

#include <string.h>

enum { QUERIES = 4096, READS = 128, ALL_READS = QUERIES * READS, LINE = 64, TOGETHER = 4 };

/* gather-read: how many reads ahead are prefetched, into which cache, and whether four rows are
 * read line by line beside each other, so that four pages are awaited at once. */
typedef struct gathering {
    uint64_t ahead;
    bool into_l2, together;
} gathering;

typedef struct kernel_context {
    mn_tile tile;
    uint64_t *offsets;
    float *weights, *bags, *gradients, *dots;
    mn_contribution *contributions, *scratch;
    const void **sources;
    void *merge_scratch;
    uint64_t count; /* contributions */
    gathering gathering;
    uint8_t *from, *to; /* memcpy */
    uint64_t copy_bytes;
    double norm; /* what the last round computed: results are looked at */
} kernel_context;

static float random_float(uint64_t *seed) { return (float)(bench_random(seed) >> 40) * 0x1p-24f; }

/* An f32 tile of a table that is all written: column c of row r is bench_value(r, c). */
static mn_tile tile_of(uint64_t rows, uint32_t dim, mn_optimizer optimizer)
{
    mn_tile tile = {.rows = rows,
                    .columns = dim,
                    .table_rows = rows,
                    .row_inverse = 1,
                    .rows_written = rows,
                    .optimizer = optimizer};
    uint64_t state_bytes = rows * mn_state_row_bytes(&optimizer, dim);
    tile.values = bench_huge(rows * dim * sizeof(float));
    tile.updates = bench_huge(rows * sizeof *tile.updates);
    if (state_bytes)
        memset(tile.state = bench_huge(state_bytes), 0, state_bytes);
    for (uint64_t row = 0; row < rows; row++) {
        tile.updates[row] = 1;
        for (uint32_t c = 0; c < dim; c++)
            ((float *)tile.values)[row * dim + c] = bench_value(row, c);
    }
    return tile;
}

static void reads_of(kernel_context *context)
{
    uint64_t seed = 11;
    const uint32_t dim = context->tile.columns;
    context->offsets = bench_huge(ALL_READS * sizeof *context->offsets);
    context->weights = bench_huge(ALL_READS * sizeof *context->weights);
    context->bags = bench_huge((uint64_t)QUERIES * dim * sizeof(float));
    for (uint32_t i = 0; i < ALL_READS; i++) {
        context->offsets[i] = bench_random(&seed) % context->tile.rows;
        context->weights[i] = 1.0f / READS; /* exact, as the values are: so are the sums */
    }
}

/* ---- gather-read */

/* The same rows in the same order, one load for each cache line, nothing written. Of the rows
 * `ahead`, a line is asked for beside each line loaded: faster than whole rows at once. */
static inline uint64_t gather_lines(const kernel_context *context, uint64_t ahead, uint64_t i,
                                    uint32_t together, bool into_l2)
{
    const uint64_t row_bytes = context->tile.columns * sizeof(float), *offsets = context->offsets;
    const char *values = context->tile.values, *rows[TOGETHER], *next[TOGETHER];
    uint64_t sum = 0;
    for (uint32_t j = 0; j < together; j++) {
        uint64_t later = i + j + ahead < ALL_READS ? i + j + ahead : i + j;
        rows[j] = values + offsets[i + j] * row_bytes;
        next[j] = values + offsets[later] * row_bytes;
    }
    for (uint64_t b = 0; b < row_bytes; b += LINE)
        for (uint32_t j = 0; j < together; j++) {
            if (into_l2)
                __builtin_prefetch(next[j] + b, 0, 2);
            else
                __builtin_prefetch(next[j] + b, 0, 3);
            sum += *(const uint32_t *)(rows[j] + b);
        }
    return sum;
}

static double gather_read(const kernel_context *context, const gathering *how)
{
    uint64_t sum = 0;
    double start = bench_now();
    if (how->together && how->into_l2)
        for (uint64_t i = 0; i < ALL_READS; i += TOGETHER)
            sum += gather_lines(context, how->ahead, i, TOGETHER, true);
    else if (how->together)
        for (uint64_t i = 0; i < ALL_READS; i += TOGETHER)
            sum += gather_lines(context, how->ahead, i, TOGETHER, false);
    else if (how->into_l2)
        for (uint64_t i = 0; i < ALL_READS; i++)
            sum += gather_lines(context, how->ahead, i, 1, true);
    else
        for (uint64_t i = 0; i < ALL_READS; i++)
            sum += gather_lines(context, how->ahead, i, 1, false);
    double seconds = bench_now() - start;
    if (sum == 0)
        bench_die("gather-read read nothing");
    return seconds;
}

/* Round 0 finds the best way, the others use it. */
static double round_gather_read(void *opaque, uint64_t round)
{
    kernel_context *context = opaque;
    const uint64_t row_bytes = context->tile.columns * sizeof(float);
    double best = 1e9;
    for (uint32_t bytes = 4096; round == 0 && bytes <= 65536; bytes *= 2) {
        for (int way = 0; way < 4; way++) {
            gathering how = {bytes / row_bytes + 1, way & 1, way & 2};
            double seconds = gather_read(context, &how);
            if (seconds < best) {
                best = seconds;
                context->gathering = how;
            }
        }
    }
    return gather_read(context, &context->gathering);
}

/* ---- kernel-bag */

static double round_bag(void *opaque, uint64_t round)
{
    kernel_context *context = opaque;
    const uint32_t dim = context->tile.columns, query = (uint32_t)(round * 997 % QUERIES);
    double start = bench_now();
    mn_kernels_best()->bag(&context->tile, context->offsets, context->weights, QUERIES, READS,
                           MN_F32, context->bags, dim * sizeof(float));
    double seconds = bench_now() - start;
    for (uint32_t c = 0; c < dim; c++) {
        float expected = 0;
        for (uint32_t j = 0; j < READS; j++)
            expected += bench_value(context->offsets[query * READS + j], c) / READS;
        if (context->bags[query * dim + c] != expected)
            bench_die("bag of query %u, column %u: %g, not %g", query, c,
                      (double)context->bags[query * dim + c], (double)expected);
    }
    return seconds;
}

static void kernel_bag_case(uint64_t rows, uint32_t dim, const char *name, const char *torch_mode)
{
    kernel_context context = {.tile = tile_of(rows, dim, mn_sgd())};
    peer_torch torch;
    reads_of(&context);
    bool has = peer_torch_start(&torch, "torch_kernels.py", torch_mode);
    bench_case bag = {.bench = "kernel-bag",
                      .name = name,
                      .unit = "B/s",
                      .work = (double)ALL_READS * dim * sizeof(float),
                      .mneme = {"mneme", round_bag, &context, 0, 0},
                      .peers = {{"gather-read", round_gather_read, &context, 0.85, 0.95},
                                {"torch", has ? peer_torch_round : NULL, &torch, 1.5, 2}},
                      .peer_count = 2};
    bench_run(&bag);
    peer_torch_stop(&torch);
}

void bench_kernel_bag(void)
{
    kernel_bag_case(UINT64_C(1) << 20, 384, "dim=384 queries=4096 reads=128 rows=1048576",
                    "bag-384");
    kernel_bag_case(UINT64_C(1) << 18, 1024, "dim=1024 queries=4096 reads=128 rows=262144",
                    "bag-1024");
}

/* ---- kernel-bag-grad */

/* Scores: a dot product for every read. Values: the reads sorted by row, and the gradient of every
 * row merged, from which its norm is taken, as a commit that clips does. */
static double round_bag_grad(void *opaque, uint64_t round)
{
    kernel_context *context = opaque;
    const mn_kernels *kernels = mn_kernels_best();
    const uint32_t dim = context->tile.columns, read = (uint32_t)(round * 99991 % ALL_READS);
    mn_sources sources = {context->sources, MN_F32, 0};
    double start = bench_now();
    kernels->bag_dot(&context->tile, context->offsets, QUERIES, READS, MN_F32, context->gradients,
                     dim * sizeof(float), context->dots);
    for (uint32_t i = 0; i < ALL_READS; i++)
        context->contributions[i] =
            (mn_contribution){context->offsets[i], i / READS, context->weights[i]};
    mn_contributions_sort(context->contributions, context->scratch, ALL_READS, context->tile.rows);
    context->norm = kernels->merge_square(&context->tile, context->contributions, ALL_READS,
                                          &sources, context->merge_scratch);
    double seconds = bench_now() - start, expected = 0, most = 0;
    for (uint32_t c = 0; c < dim; c++) {
        double term = (double)context->gradients[read / READS * dim + c] *
                      (double)bench_value(context->offsets[read], c);
        expected += term, most += term < 0 ? -term : term;
    }
    double error = (double)context->dots[read] - expected;
    if (!(error < 1e-5 * most && -error < 1e-5 * most) || !(context->norm > 0))
        bench_die("score gradient of read %u: %g, not %g", read, (double)context->dots[read],
                  expected);
    return seconds;
}

void bench_kernel_bag_grad(void)
{
    const uint32_t dim = 384;
    uint64_t seed = 5;
    kernel_context context = {.tile = tile_of(UINT64_C(1) << 20, dim, mn_sgd())};
    peer_torch torch[2];
    reads_of(&context);
    context.gradients = bench_huge((uint64_t)QUERIES * dim * sizeof(float));
    context.dots = bench_huge(ALL_READS * sizeof(float));
    context.contributions = bench_huge(ALL_READS * sizeof *context.contributions);
    context.scratch = bench_huge(ALL_READS * sizeof *context.scratch);
    context.sources = bench_huge(QUERIES * sizeof *context.sources);
    context.merge_scratch = bench_huge(mn_merge_scratch_bytes(dim));
    for (uint32_t i = 0; i < QUERIES * dim; i++)
        context.gradients[i] = random_float(&seed) - 0.5f;
    for (uint32_t i = 0; i < QUERIES; i++)
        context.sources[i] = context.gradients + (uint64_t)i * dim;
    bool dense = peer_torch_start(&torch[0], "torch_kernels.py", "bag-grad-dense");
    bool sparse = peer_torch_start(&torch[1], "torch_kernels.py", "bag-grad-sparse");
    bench_case grad = {
        .bench = "kernel-bag-grad",
        .name = "dim=384 queries=4096 reads=128 rows=1048576 values and scores",
        .unit = "B/s",
        .work = (double)ALL_READS * dim * sizeof(float),
        .mneme = {"mneme", round_bag_grad, &context, 0, 0},
        .peers = {{"gather-read", round_gather_read, &context, 0.5, 0.7},
                  {"torch-dense", dense ? peer_torch_round : NULL, &torch[0], 4, 8},
                  {"torch-sparse", sparse ? peer_torch_round : NULL, &torch[1], 4, 8}},
        .peer_count = 3};
    bench_run(&grad);
    peer_torch_stop(&torch[0]);
    peer_torch_stop(&torch[1]);
}

/* ---- adamw */

enum { ADAMW_ROWS = 512 * 512, ADAMW_DIM = 512, ADAMW_TOUCHED = ADAMW_ROWS * 22 / 100 };

static double round_adamw(void *opaque, uint64_t round)
{
    kernel_context *context = opaque;
    mn_sources sources = {context->sources, MN_F32, 0};
    mn_update update = {.learning_rate = 1e-3f, .weight_decay = 0.1f, .factor = 1};
    update.step = round + 1;
    const uint64_t row = context->contributions[round * 31 % context->count].offset;
    const float *value = (const float *)context->tile.values + row * ADAMW_DIM, before = *value;
    double start = bench_now();
    (void)mn_kernels_best()->merge_apply(&context->tile, context->contributions, context->count,
                                         &sources, &update, context->merge_scratch);
    double seconds = bench_now() - start;
    if (*value == before)
        bench_die("adamw left row %llu as it was", (unsigned long long)row);
    return seconds;
}

static double round_memcpy(void *opaque, uint64_t round)
{
    kernel_context *context = opaque;
    double start = bench_now();
    memcpy(context->to, context->from, context->copy_bytes);
    double seconds = bench_now() - start;
    if (context->to[round * 4097 % context->copy_bytes] != 1)
        bench_die("memcpy copied nothing");
    return seconds;
}

void bench_adamw(void)
{
    kernel_context context = {.tile =
                                  tile_of(ADAMW_ROWS, ADAMW_DIM, mn_adamw(0.9f, 0.999f, 1e-8f))};
    const uint64_t row_bytes = ADAMW_DIM * sizeof(float);
    uint64_t seed = 17;
    peer_torch torch;
    float *gradients = bench_huge(ADAMW_TOUCHED * row_bytes);
    context.contributions = bench_huge(ADAMW_TOUCHED * sizeof *context.contributions);
    context.sources = bench_huge(ADAMW_TOUCHED * sizeof *context.sources);
    context.merge_scratch = bench_huge(mn_merge_scratch_bytes(ADAMW_DIM));
    for (uint64_t i = 0; i < ADAMW_TOUCHED * ADAMW_DIM; i++)
        gradients[i] = random_float(&seed) * 1e-3f + 1e-4f;
    for (uint64_t row = 0; row < ADAMW_ROWS && context.count < ADAMW_TOUCHED; row++) {
        if (bench_random(&seed) % (ADAMW_ROWS - row) >= ADAMW_TOUCHED - context.count)
            continue; /* each row with the same chance, as many as are due */
        context.sources[context.count] = gradients + context.count * ADAMW_DIM;
        context.contributions[context.count] = (mn_contribution){row, (uint32_t)context.count, 1};
        context.count++;
    }
    /* Read: gradient, value and both moments; written: the last three. */
    const uint64_t moved_bytes = context.count * row_bytes * (4 + 3);
    context.copy_bytes = moved_bytes / 2;
    context.from = bench_huge(context.copy_bytes);
    context.to = bench_huge(context.copy_bytes);
    bool has = peer_torch_start(&torch, "torch_kernels.py", "adamw");
    bench_case adamw = {.bench = "adamw",
                        .name = "rows=262144 dim=512, 22% of rows touched",
                        .unit = "B/s",
                        .work = (double)moved_bytes,
                        .mneme = {"mneme", round_adamw, &context, 0, 0},
                        .peers = {{"memcpy", round_memcpy, &context, 0.6, 0.8},
                                  {"torch", has ? peer_torch_round : NULL, &torch, 5, 8}},
                        .peer_count = 2};
    bench_run(&adamw);
    peer_torch_stop(&torch);
}
