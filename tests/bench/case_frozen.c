/* frozen: one token's read of a memory layer from a mapped table, on one thread: query product,
 * search, softmax, bag. Against its bound: the matrices at the bandwidth of reading so many warm
 * bytes in a row, the rows at the bandwidth of gathering from the whole table, and 5 us. */
#include "bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    DIM = 1024,
    KEYS = 1024, /* sub-keys of a half: 2^20 rows, 2 GiB in bf16 */
    KEYS_QUICK = 256,
    HEADS = 4,
    PER_HEAD = 32,
    HALF = 128,
    QUERY = HEADS * 2 * HALF,
    READS = HEADS * PER_HEAD,
    TOKENS = 200, /* of a round; its cost is their median */
    GATHERED = 32768,
    AHEAD = 8 /* rows; 4 to 32 were tried */
};

typedef struct frozen_context {
    mn_product_keys keys;
    const mn_frozen_table *table;
    uint64_t rows, row_bytes, matrix_bytes;
    char *matrices;       /* weights, then keys: both are read once a token */
    const char *gathered; /* as large as the table, on 2 MiB pages */
    float *input;
    void *scratch;
    volatile uint64_t sink; /* keeps reads that nobody needs */
} frozen_context;

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double random_unit(uint64_t *state)
{
    return (double)(bench_random(state) >> 11) * 0x1p-53 - 0.5;
}

/* The median of TOKENS reads of new random inputs, in seconds. */
static double read_round(void *opaque, uint64_t round)
{
    frozen_context *context = opaque;
    double seconds[TOKENS];
    uint64_t seed = round * 977 + 5;
    mn_error error;
    for (uint32_t token = 0; token < TOKENS; token++) {
        int64_t rows[READS];
        float weights[READS], out[DIM];
        const mn_queries queries = {1, READS, mn_i64(rows), mn_f32(weights)};
        for (uint32_t c = 0; c < DIM; c++)
            context->input[c] = (float)random_unit(&seed);
        double start = bench_now();
        enum mn_status status = mn_product_select(&context->keys, context->input, context->scratch,
                                                  rows, weights, &error);
        if (!status)
            status = mn_frozen_bag(context->table, &queries, mn_f32(out), &error);
        seconds[token] = bench_now() - start;
        bench_check(status, &error, "frozen read");
        if (!isfinite(out[token]))
            bench_die("frozen: column %u is not a number", token);
    }
    qsort(seconds, TOKENS, sizeof *seconds, ascending);
    return seconds[TOKENS / 2];
}

/* Seconds to read the matrices' bytes in a row, warm, asking `ahead` bytes ahead. */
static double read_matrices(frozen_context *context, uint64_t ahead)
{
    enum { TIMES = 21, LINES = 4, LINE = 64 };
    double seconds[TIMES];
    for (uint32_t i = 0; i < TIMES; i++) {
        uint64_t sums[LINES] = {0}; /* each cache line loaded once */
        double start = bench_now();
        for (uint64_t at = 0; at < context->matrix_bytes; at += LINES * LINE) {
            for (uint32_t line = 0; line < LINES; line++) {
                __builtin_prefetch(context->matrices + at + line * LINE + ahead, 0, 3);
                sums[line] += *(const uint64_t *)(context->matrices + at + line * LINE);
            }
        }
        seconds[i] = bench_now() - start;
        context->sink += sums[0] + sums[1] + sums[2] + sums[3];
    }
    qsort(seconds, TIMES, sizeof *seconds, ascending);
    return seconds[TIMES / 2];
}

/* The best of some distances. */
static double read_matrices_best(frozen_context *context)
{
    double best = read_matrices(context, 0);
    for (uint64_t ahead = 1024; ahead <= 16384; ahead *= 2) {
        double seconds = read_matrices(context, ahead);
        best = seconds < best ? seconds : best;
    }
    return best;
}

/* Seconds per row, each cache line of random rows loaded once. */
static double gather_row(frozen_context *context, uint64_t round)
{
    static uint64_t offsets[GATHERED + AHEAD];
    uint64_t seed = round + 17, sum = 0;
    for (uint32_t i = 0; i < GATHERED + AHEAD; i++)
        offsets[i] = bench_random(&seed) % context->rows * context->row_bytes;
    double start = bench_now();
    for (uint32_t i = 0; i < GATHERED; i++) {
        const char *next = context->gathered + offsets[i + AHEAD];
        const char *row = context->gathered + offsets[i];
        for (uint64_t b = 0; b < context->row_bytes; b += 64)
            __builtin_prefetch(next + b, 0, 2);
        for (uint64_t b = 0; b < context->row_bytes; b += 64)
            sum += *(const uint64_t *)(row + b);
    }
    double seconds = bench_now() - start;
    context->sink += sum;
    return seconds / GATHERED;
}

static double bound_round(void *opaque, uint64_t round)
{
    frozen_context *context = opaque;
    return read_matrices_best(context) + READS * gather_row(context, round) + 5e-6;
}

static void frozen_case(const char *folder, uint64_t n, double least, double goal)
{
    frozen_context context = {.rows = n * n};
    mn_frozen *frozen;
    mn_error error;
    char name[96];
    uint64_t seed = 3;
    bench_check(mn_open_frozen(folder, NULL, &frozen, &error), &error, "open");
    bench_check(mn_frozen_find(frozen, "values", &context.table, &error), &error, "find");
    bool bytes = mn_frozen_dtype(context.table) == MN_I8;
    context.row_bytes = bytes ? DIM + 64 : 2 * DIM; /* the scale has a line to itself */
    uint64_t weights = (uint64_t)QUERY * DIM, keys = HEADS * 2 * n * HALF;
    context.matrix_bytes = (weights + keys) * sizeof(float);
    context.matrices = bench_huge(context.matrix_bytes);
    float *floats = (float *)(void *)context.matrices;
    for (uint64_t i = 0; i < weights + keys; i++)
        floats[i] = (float)random_unit(&seed);
    context.keys = (mn_product_keys){.heads = HEADS,
                                     .n = (uint32_t)n,
                                     .half = HALF,
                                     .per_head = PER_HEAD,
                                     .sub_keys = floats + weights,
                                     .width = DIM,
                                     .query_weights = floats};
    context.input = bench_huge(DIM * sizeof *context.input);
    context.scratch = bench_huge(mn_product_scratch_bytes(&context.keys));
    context.gathered = bench_huge(context.rows * context.row_bytes);
    (void)snprintf(name, sizeof name, "batch=1 dim=%d n=%u reads=%dx%d rows=%s", DIM, (unsigned)n,
                   HEADS, PER_HEAD, mn_dtype_name(mn_frozen_dtype(context.table)));
    bench_case read = {.bench = "frozen",
                       .name = name,
                       .unit = "s",
                       .mneme = {"mneme", read_round, &context, 0, 0},
                       .peers = {{"bound", bound_round, &context, least, goal}},
                       .peer_count = 1};
    bench_run(&read);
    mn_close_frozen(frozen);
}

void bench_frozen(void)
{
    char folder[] = "/tmp/mneme-bench-frozen-XXXXXX", command[128];
    char as_stored[64], int8[64];
    const uint64_t n = bench_quick ? KEYS_QUICK : KEYS;
    const mn_table_spec spec = {.name = "values",
                                .rows = n * n,
                                .dim = DIM,
                                .dtype = MN_BF16,
                                .init = mn_init_normal(0.03f)};
    const mn_client_options options = {.target = "local:"};
    const mn_freeze_options bytes = {.convert = true, .dtype = MN_I8};
    mn_client *client;
    mn_table *table;
    mn_error error;
    if (!mkdtemp(folder))
        bench_die("no folder in /tmp");
    (void)snprintf(as_stored, sizeof as_stored, "%s/bf16", folder);
    (void)snprintf(int8, sizeof int8, "%s/int8", folder);
    bench_check(mn_client_open(&options, &client, &error), &error, "client");
    bench_check(mn_table_open(client, &spec, &table, &error), &error, "table");
    bench_check(mn_freeze(client, as_stored, NULL, &error), &error, "freeze");
    bench_check(mn_freeze(client, int8, &bytes, &error), &error, "freeze");
    mn_client_close(client);
    frozen_case(as_stored, n, 0.5, 0.7);
    frozen_case(int8, n, 0, 0);
    (void)snprintf(command, sizeof command, "rm -r '%s'", folder);
    if (system(command))
        bench_die("%s stays", folder);
}
