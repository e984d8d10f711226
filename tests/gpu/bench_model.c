/* A step of the language model on one GPU, without a memory and with one whose table lies in the
 * same GPU: forward, backward, dense Adam, and the memory's bag, dots, merge and Adam. What the
 * memory adds is held against its parts: its query products, search, rows read twice, rows updated,
 * each at the rate that this run measured. */
#include "bench.h"

#include "mn_nn_cuda.h"
#include "nn.h"

#include <time.h>

enum { STEPS = 12, STEPS_FIRST = 3 };

/* Rows in GPU memory with an optimizer, and the reads of a step merged into them. */
typedef struct rows_work {
    mn_tile tile;
    void *workspace;
    uint64_t workspace_bytes, *first_written;
    mn_cuda_plan plan;
} rows_work;

typedef struct model_work {
    mn_model model;
    mn_nn *nn;
    void *stream;
    mn_workspace *workspace;
    void *workspace_host, *workspace_arrays;
    float *parameters, *gradients, *statistics;
    rows_work dense, values;
    mn_update update;
    table table; /* of the values */
    mn_pass pass;
    mn_memory_access access;
    mn_loss loss;
    enum mn_status status; /* of the access: the first that failed */
    mn_error error;
} model_work;

static void rows_init(rows_work *rows, const mn_tile *tile, uint64_t reads)
{
    mn_error error;
    const uint64_t state_bytes = tile->rows * mn_state_row_bytes(&tile->optimizer, tile->columns);
    *rows = (rows_work){.tile = *tile};
    check(mn_cuda_plan_bytes(reads, tile->rows, &rows->workspace_bytes, &error), &error, "plan");
    rows->workspace = device(rows->workspace_bytes);
    rows->first_written = device(sizeof *rows->first_written);
    rows->tile.state = device(state_bytes);
    rows->tile.updates = device(tile->rows * sizeof(uint32_t));
    rows->tile.rows_written = tile->rows;
    check_cuda(cudaMemset(rows->first_written, 0, sizeof *rows->first_written), "cudaMemset");
    check_cuda(cudaMemset(rows->tile.state, 0, state_bytes), "cudaMemset");
    check_cuda(cudaMemset(rows->tile.updates, 1, tile->rows * sizeof(uint32_t)), "cudaMemset");
}

static void rows_free(rows_work *rows)
{
    cudaFree(rows->workspace);
    cudaFree(rows->first_written);
    cudaFree(rows->tile.state);
    cudaFree(rows->tile.updates);
}

/* ---- The memory's table, as the model reaches it */

static void kept(model_work *work, enum mn_status status)
{
    if (work->status == MN_OK)
        work->status = status;
}

static void *bag_start(void *context, const mn_memory_reads *reads, mn_real *out_bags)
{
    model_work *work = context;
    const uint32_t columns = work->values.tile.columns;
    kept(work, mn_cuda_bag(&work->values.tile, reads->rows, reads->weights, reads->queries,
                           reads->per_query, MN_F32, out_bags, columns * sizeof(float),
                           work->stream, &work->error));
    return NULL;
}

/* The rows are updated at once: nothing reads them before the next step. */
static void *bag_grad_start(void *context, const mn_memory_reads *reads,
                            const mn_real *output_gradients, mn_real *out_weight_gradients)
{
    model_work *work = context;
    rows_work *values = &work->values;
    const uint64_t stride = values->tile.columns * sizeof(float);
    const mn_cuda_sources sources = {.gradients = output_gradients,
                                     .stride_bytes = stride,
                                     .weights = reads->weights,
                                     .dtype = MN_F32,
                                     .per_gradient = reads->per_query};
    kept(work, mn_cuda_bag_dot(&values->tile, reads->rows, reads->queries, reads->per_query, MN_F32,
                               output_gradients, stride, out_weight_gradients, work->stream,
                               &work->error));
    kept(work, mn_cuda_plan_reads(reads->rows, reads->queries * reads->per_query, values->tile.rows,
                                  values->workspace, values->workspace_bytes, &values->plan,
                                  work->stream, &work->error));
    if (work->status == MN_OK)
        kept(work, mn_cuda_merge_apply(&values->tile, &values->plan, &sources, &work->update,
                                       values->first_written, work->stream, &work->error));
    return NULL;
}

static enum mn_status access_wait(void *context, void *ticket, mn_error *error)
{
    const model_work *work = context;
    (void)ticket;
    if (work->status && error)
        *error = work->error;
    return work->status;
}

/* ---- A model and its step */

static mn_model_options options_of(bool memory)
{
    mn_model_options options = {.width = 1024,
                                .layers = 12,
                                .attention_heads = 16,
                                .context = 512,
                                .seed = SEED,
                                .placement_count = memory,
                                .placements = {{.layer = 6, .beside = true}}};
    options.memory = (mn_memory_options){
        .keys = 1024, .heads = 4, .knn = 32, .key_dim = 256, .value_dtype = MN_BF16};
    if (quick) {
        options.width = 32, options.layers = 2, options.attention_heads = 2;
        options.context = 20, options.placements[0].layer = 1;
        options.memory.keys = 16, options.memory.knn = 4, options.memory.key_dim = 8;
    }
    return options;
}

static uint32_t sequences_of(void) { return quick ? 3 : 64; }

static void *array_of(const model_work *work, uint64_t bytes)
{
    void *memory = NULL;
    mn_error error;
    check(work->nn->memory->create(work->nn, bytes ? bytes : 1, false, &memory, &error), &error,
          "memory");
    return memory;
}

static void workspace_init(model_work *work, uint64_t tokens)
{
    const mn_workspace_options options = {&work->model, work->nn, tokens, sequences_of()};
    uint64_t host_bytes, array_bytes;
    mn_workspace_measure(&options, &host_bytes, &array_bytes);
    work->workspace_host = aligned_alloc(64, (host_bytes + 63) / 64 * 64);
    work->workspace_arrays = array_of(work, array_bytes);
    if (work->workspace_host == NULL)
        die("no memory for a workspace");
    work->workspace = mn_workspace_place(&options, work->workspace_host, work->workspace_arrays);
}

/* Parameters as rows of one table, all of which every step touches. */
static void dense_init(model_work *work)
{
    const uint64_t count = work->model.parameter_count;
    uint32_t columns = 1024;
    mn_error error;
    while (count % columns)
        columns /= 2;
    const uint64_t rows = count / columns;
    mn_tile tile = tile_of(rows, columns, MN_F32);
    tile.values = work->parameters;
    tile.optimizer = mn_adam(0.9f, 0.999f, 1e-8f);
    rows_init(&work->dense, &tile, rows);
    uint64_t *all = host(rows * sizeof *all);
    for (uint64_t r = 0; r < rows; r++)
        all[r] = r;
    uint64_t *offsets = on_device(all, rows * sizeof *all);
    check(mn_cuda_plan_reads(offsets, rows, rows, work->dense.workspace,
                             work->dense.workspace_bytes, &work->dense.plan, NULL, &error),
          &error, "plan");
    check_cuda(cudaDeviceSynchronize(), "plan");
    cudaFree(offsets);
    free(all);
}

static void parameters_init(model_work *work)
{
    const uint64_t bytes = work->model.parameter_count * sizeof(float);
    const uint64_t statistics_bytes = work->model.statistics_count * sizeof(float);
    float *parameters = host(bytes), *statistics = host(statistics_bytes + 1);
    mn_model_init_parameters(&work->model, parameters, statistics);
    work->parameters = array_of(work, bytes), work->gradients = array_of(work, bytes);
    work->statistics = array_of(work, statistics_bytes);
    work->nn->write(work->nn, work->parameters, parameters, bytes);
    work->nn->write(work->nn, work->statistics, statistics, statistics_bytes);
    free(parameters);
    free(statistics);
}

static void pass_init(model_work *work, uint64_t tokens)
{
    uint64_t random = 21;
    uint8_t *bytes = host(tokens);
    uint16_t *targets = host(tokens * sizeof *targets);
    for (uint64_t t = 0; t < tokens; t++)
        bytes[t] = (uint8_t)(next_random(&random) >> 56);
    for (uint64_t t = 0; t < tokens; t++)
        targets[t] = bytes[(t + 1) % tokens];
    work->pass = (mn_pass){.sequences = sequences_of(),
                           .length = work->model.options.context,
                           .tokens = bytes,
                           .targets = targets,
                           .training = true};
}

static void values_init(model_work *work, uint64_t tokens)
{
    const mn_memory_options *of = &work->model.options.memory;
    mn_tile shape = tile_of((uint64_t)of->keys * of->keys, of->value_dim, of->value_dtype);
    shape.init = mn_init_normal(of->value_deviation), shape.optimizer = of->value_optimizer;
    table_init(&work->table, &shape, 1, 1);
    shape.values = work->table.gpu.values;
    rows_init(&work->values, &shape, tokens * of->heads * of->knn);
}

static void model_init(model_work *work, bool memory)
{
    const mn_model_options options = options_of(memory);
    const mn_nn_cuda_options cuda = {.bf16_products = true};
    const uint64_t tokens = (uint64_t)sequences_of() * options.context;
    mn_error error;
    *work = (model_work){.update = {.learning_rate = 1e-4f, .factor = 1}};
    check(mn_model_init(&options, &work->model, &error), &error, "model");
    check(mn_nn_cuda_open(&cuda, &work->nn, &error), &error, "open");
    work->stream = mn_cuda_nn_stream(mn_nn_cuda_context(work->nn));
    workspace_init(work, tokens);
    parameters_init(work);
    dense_init(work);
    pass_init(work, tokens);
    work->access = (mn_memory_access){.context = work,
                                      .bag_start = bag_start,
                                      .bag_grad_start = bag_grad_start,
                                      .wait = access_wait};
    if (memory)
        values_init(work, tokens);
    check_cuda(cudaDeviceSynchronize(), "init"); /* the model's stream waits for no other */
}

static void model_free(model_work *work)
{
    void *arrays[] = {work->parameters, work->gradients, work->statistics, work->workspace_arrays};
    for (int i = 0; i < 4; i++)
        work->nn->memory->destroy(work->nn, arrays[i], false);
    rows_free(&work->dense);
    rows_free(&work->values);
    if (work->model.options.placement_count)
        table_free(&work->table);
    mn_nn_cuda_close(work->nn);
    free(work->workspace_host);
    free((void *)work->pass.tokens);
    free((void *)work->pass.targets);
}

static void step(model_work *work)
{
    const mn_tile *dense = &work->dense.tile;
    const mn_cuda_sources sources = {.gradients = work->gradients,
                                     .stride_bytes = dense->columns * sizeof(float),
                                     .dtype = MN_F32,
                                     .per_gradient = 1};
    const double scale = 1 / ((double)work->pass.sequences * work->pass.length);
    mn_error error;
    work->update.step++;
    work->nn->zero(work->nn, work->gradients, work->model.parameter_count * sizeof(float));
    check(mn_model_forward(work->workspace, work->parameters, work->statistics, &work->pass,
                           &work->access, &work->loss, &error),
          &error, "forward");
    check(mn_model_backward(work->workspace, work->parameters, &work->pass, scale, &work->access,
                            work->gradients, &error),
          &error, "backward");
    check(mn_cuda_merge_apply(dense, &work->dense.plan, &sources, &work->update,
                              work->dense.first_written, work->stream, &error),
          &error, "merge_apply");
}

static double seconds_now(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now); /* a clock that is always there */
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static int shorter_first(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

/* Median seconds of a step, from an idle GPU to an idle GPU. */
static double timed_steps(model_work *work)
{
    double seconds[STEPS], first_loss = 0;
    const int steps = quick ? 3 : STEPS;
    mn_error error;
    for (int i = -STEPS_FIRST; i < steps; i++) {
        const double begin = seconds_now();
        step(work);
        check(work->nn->wait(work->nn, &error), &error, "step");
        if (i >= 0)
            seconds[i] = seconds_now() - begin;
        if (i == -STEPS_FIRST)
            first_loss = work->loss.nats;
    }
    if (!(work->loss.nats < first_loss)) /* the same batch each time */
        die("the model learns nothing: %g nats, then %g", first_loss, work->loss.nats);
    qsort(seconds, (size_t)steps, sizeof *seconds, shorter_first);
    return seconds[steps / 2];
}

/* ---- What a GPU could do */

typedef struct product_work {
    mn_cuda cuda;
    int m, n, k;
    void *a, *b, *c;
} product_work;

static void do_product(void *context)
{
    const product_work *p = context;
    const float one = 1, zero = 0;
    if (cublasGemmEx(p->cuda.blas, CUBLAS_OP_N, CUBLAS_OP_N, p->n, p->m, p->k, &one, p->b,
                     CUDA_R_16BF, p->n, p->a, CUDA_R_16BF, p->k, &zero, p->c, CUDA_R_32F, p->n,
                     CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS)
        die("cuBLAS refused the product");
}

/* Operations a second of the query network's product. */
static double product_rate(const mn_model_options *options, uint64_t tokens)
{
    product_work p = {.m = (int)tokens,
                      .n = (int)(options->memory.heads * options->memory.key_dim),
                      .k = (int)options->width};
    mn_error error;
    check(mn_cuda_open(&p.cuda, &error), &error, "open");
    p.a = device((uint64_t)p.m * (uint64_t)p.k * 2),
    p.b = device((uint64_t)p.k * (uint64_t)p.n * 2);
    p.c = device((uint64_t)p.m * (uint64_t)p.n * 4);
    check_cuda(cudaMemset(p.a, 0x3c, (uint64_t)p.m * (uint64_t)p.k * 2), "cudaMemset");
    check_cuda(cudaMemset(p.b, 0x3c, (uint64_t)p.k * (uint64_t)p.n * 2), "cudaMemset");
    const double seconds = timed(do_product, &p);
    cudaFree(p.a);
    cudaFree(p.b);
    cudaFree(p.c);
    mn_cuda_close(&p.cuda);
    return 2.0 * p.m * p.n * p.k / seconds;
}

/* bf16 operations a second on the tensor cores, without sparsity, as the data sheets have it (A100:
 * 312e12 with 108 multiprocessors; H100 SXM, H200: 989e12 with 132). Others: 0, it is not known. */
static double peak_rate(void)
{
    int gpu = 0, count = 0, major = 0;
    check_cuda(cudaGetDevice(&gpu), "device");
    check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, gpu), "attribute");
    check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, gpu), "attribute");
    return count * (major == 8 ? 312e12 / 108 : major == 9 ? 989e12 / 132 : 0);
}

/* Of a step without a memory: forward once, backward twice; two a multiply-add. Attention's two
 * products see half of the context on average. */
static double step_operations(const mn_model *model, uint64_t tokens)
{
    const mn_model_options *options = &model->options;
    const double attention =
        (double)options->layers * options->width * ((double)options->context + 1);
    return 3 * 2 * (double)tokens * ((double)mn_model_token_work(model) + attention);
}

/* Seconds that the memory's parts take at the rates of this run; their sum is the bound. Gradients
 * of the bags count once, rows that are updated once read and once written with their state. */
static double memory_bound(const model_work *work, uint64_t tokens, double search_seconds)
{
    const mn_memory_options *memory = &work->model.options.memory;
    const mn_tile *tile = &work->values.tile;
    const double row = (double)tile->columns * mn_dtype_bytes(tile->dtype);
    const double state = (double)mn_state_row_bytes(&tile->optimizer, tile->columns);
    const double reads = (double)tokens * memory->heads * memory->knn;
    const double operations =
        3 * 2 * (double)tokens * work->model.options.width * memory->heads * memory->key_dim;
    uint32_t touched;
    from_device(work->values.plan.runs, &touched, sizeof touched);
    const double product = operations / product_rate(&work->model.options, tokens);
    const double rows = 2 * reads * row / copy_rate;
    const double update =
        ((double)tokens * tile->columns * sizeof(float) + (double)touched * 2 * (row + state)) /
        copy_rate;
    printf("{\"bench\": \"model-memory\", \"case\": \"the parts of its bound; %u rows updated\", "
           "\"query product\": %.6g, \"search\": %.6g, \"rows read\": %.6g, \"update\": %.6g, "
           "\"unit\": \"s\"}\n",
           touched, product, search_seconds, rows, update);
    return product + search_seconds + rows + update;
}

void bench_model(double search_seconds)
{
    const char *name = "d 1024, 12 layers, 32768 bytes a step in 64 sequences, bf16; memory of "
                       "1M x 1024 bf16, 4 x 32, beside layer 6's FFN";
    const char *said = quick ? "a small one, to see that it runs" : name;
    model_work work;
    model_init(&work, false);
    const uint64_t tokens = (uint64_t)work.pass.sequences * work.pass.length;
    const double without = timed_steps(&work), peak = peak_rate();
    const double share = peak > 0 ? step_operations(&work.model, tokens) / without / peak : 0;
    model_free(&work);
    printf("{\"bench\": \"model\", \"case\": \"%s: the step without a memory\", \"value\": %.6g, "
           "\"unit\": \"s\", \"share of peak\": %.3f}\n",
           said, without, share);
    model_init(&work, true);
    const double with = timed_steps(&work), bound = memory_bound(&work, tokens, search_seconds);
    model_free(&work);
    line("model-memory", name, with - without, "bound", bound, 0.5, 0.5);
    printf("{\"bench\": \"model\", \"case\": \"%s: the step with the memory\", \"value\": %.6g, "
           "\"unit\": \"s\", ",
           said, with);
    if (share >= 0.3)
        printf("\"against\": \"the step without\", \"ratio\": %.3f}\n", without / with);
    else
        printf("\"ratio\": null, \"note\": \"the step without a memory is below 0.3 of peak\"}\n");
}
