/* What computes, the CPU or a GPU, and the arrays in its memory. On the CPU they are those that the
 * tables are read into and written from; for a GPU these are pinned, and copied. */
#include "train.h"

#include <stdlib.h>

#include "nn.h"

static uint64_t tokens_of(const mn_training *training)
{
    return (uint64_t)training->sequences * training->context;
}

/* ---- Memory ---- */

static void *host_create(uint64_t bytes, enum mn_status *status, mn_error *error)
{
    enum { ALIGNMENT = 64 };
    void *memory = aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    if (!memory)
        *status = mn_fail(error, MN_NO_MEMORY, "batch-bytes",
                          "%llu MiB do not fit into memory: take a smaller model or batch",
                          (unsigned long long)(bytes >> 20));
    return memory;
}

/* Where memory comes from, until something fails. pinned: in host memory, for a GPU's copies. */
typedef struct source {
    const mn_nn *nn;
    bool pinned;
    enum mn_status status;
    mn_error *error;
} source;

static void *take(source *from, uint64_t bytes)
{
    void *memory = NULL;
    if (from->status || bytes == 0)
        return NULL;
    if (from->nn->memory)
        from->status =
            from->nn->memory->create(from->nn, bytes, from->pinned, &memory, from->error);
    else
        memory = host_create(bytes, &from->status, from->error);
    return memory;
}

static void give_back(const mn_nn *nn, bool pinned, void *memory)
{
    if (nn && nn->memory)
        nn->memory->destroy(nn, memory, pinned);
    else
        free(memory);
}

/* ---- Arrays ---- */

static mn_dense_arrays dense_create(const mn_model *model, source *from)
{
    return (mn_dense_arrays){
        .parameters = take(from, model->parameter_count * sizeof(float)),
        .gradients = take(from, model->parameter_count * sizeof(float)),
        .statistics = take(from, model->statistics_count * sizeof(float)),
    };
}

static void dense_destroy(const mn_nn *nn, bool pinned, const mn_dense_arrays *arrays)
{
    give_back(nn, pinned, arrays->statistics);
    give_back(nn, pinned, arrays->gradients);
    give_back(nn, pinned, arrays->parameters);
}

static mn_transit transit_create(const mn_training *training, source *from)
{
    const mn_memory_options *memory = &training->model->options.memory;
    uint64_t reads = tokens_of(training) * memory->heads * memory->knn;
    uint64_t answers = training->near ? 0 : tokens_of(training);
    return (mn_transit){
        .rows = take(from, reads * sizeof(uint64_t)),
        .weights = take(from, reads * sizeof(float)),
        .weight_gradients = take(from, answers * memory->heads * memory->knn * sizeof(float)),
        .vectors = take(from, answers * memory->value_dim * sizeof(float)),
    };
}

static void transit_destroy(const mn_nn *nn, const mn_transit *transit)
{
    give_back(nn, true, transit->vectors);
    give_back(nn, true, transit->weight_gradients);
    give_back(nn, true, transit->weights);
    give_back(nn, true, transit->rows);
}

static void workspace_create(mn_training *training, source *from)
{
    const mn_workspace_options options = {training->model, training->nn, tokens_of(training),
                                          training->sequences};
    uint64_t host, arrays;
    if (from->status)
        return;
    mn_workspace_measure(&options, &host, &arrays);
    training->workspace_memory = host_create(host, &from->status, from->error);
    training->workspace_arrays = take(from, arrays);
    if (!from->status)
        training->workspace =
            mn_workspace_place(&options, training->workspace_memory, training->workspace_arrays);
}

/* ---- The device ---- */

static enum mn_status gpu_open(mn_training *training, mn_error *error)
{
    const mn_train_options *options = training->options;
    const mn_nn_cuda_options cuda = {.gpu = options->gpu,
                                     .bf16_products = options->products == MN_PRODUCTS_BF16};
    enum mn_status status = mn_nn_cuda_open(&cuda, &training->gpu, error);
    if (status)
        return status;
    training->nn = training->gpu;
    training->near = options->values_in == MN_VALUES_IN_DEVICE;
    return MN_OK;
}

enum mn_status mn_training_device_open(mn_training *training, mn_error *error)
{
    training->nn = mn_nn_cpu();
    enum mn_status status = MN_OK;
    if (training->options->device == MN_DEVICE_CUDA)
        status = gpu_open(training, error);
    source arrays = {.nn = training->nn, .status = status, .error = error};
    workspace_create(training, &arrays);
    training->arrays = dense_create(training->model, &arrays);
    if (!training->gpu) {
        training->host = training->arrays;
        return arrays.status;
    }
    source pinned = {.nn = training->nn, .pinned = true, .status = arrays.status, .error = error};
    training->host = dense_create(training->model, &pinned);
    for (uint32_t i = 0; i < training->model->options.placement_count; i++)
        training->transits[i] = transit_create(training, &pinned);
    return pinned.status;
}

void mn_training_device_close(mn_training *training)
{
    const mn_nn *nn = training->nn;
    if (training->gpu) {
        (void)nn->memory->copies_wait(nn, NULL); /* whatever has failed: it is over */
        for (uint32_t i = 0; i < MN_LAYERS_MAX; i++)
            transit_destroy(nn, &training->transits[i]);
        dense_destroy(nn, true, &training->host);
    }
    dense_destroy(nn, false, &training->arrays);
    give_back(nn, false, training->workspace_arrays);
    free(training->workspace_memory);
    mn_nn_cuda_close(training->gpu);
}

void mn_training_arrays_write(const mn_training *training)
{
    const mn_nn *nn = training->nn;
    const mn_model *model = training->model;
    if (!training->gpu)
        return;
    nn->write(nn, training->arrays.parameters, training->host.parameters,
              model->parameter_count * sizeof(float));
    if (model->statistics_count)
        nn->write(nn, training->arrays.statistics, training->host.statistics,
                  model->statistics_count * sizeof(float));
}

enum mn_status mn_training_arrays_read(const mn_training *training, mn_error *error)
{
    const mn_nn *nn = training->nn;
    const mn_model *model = training->model;
    if (!training->gpu)
        return MN_OK;
    enum mn_status status = nn->read(nn, training->host.gradients, training->arrays.gradients,
                                     model->parameter_count * sizeof(float), error);
    if (!status && model->statistics_count)
        status = nn->read(nn, training->host.statistics, training->arrays.statistics,
                          model->statistics_count * sizeof(float), error);
    return status;
}
