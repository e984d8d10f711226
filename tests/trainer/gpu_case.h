/* A model_case computed a second time by a GPU: its parameters, values and text, in arrays of the
 * GPU's memory. The values stay in this process: what the model reads goes to them and back by
 * copies, as in the training program. */
#ifndef MN_GPU_CASE_H
#define MN_GPU_CASE_H

#include "model_case.h"
#include "nn.h"

typedef struct gpu_ticket {
    bool open, gradient;
    mn_memory_reads reads; /* in host memory */
    uint32_t memory;
    mn_real *out; /* the GPU's */
    uint64_t *rows;
    mn_real *weights, *weight_gradients, *vectors;
} gpu_ticket;

typedef struct gpu_case {
    model_case *of; /* its pass and memory are used, its arrays are left alone */
    const mn_nn *nn;
    mn_workspace *workspace;
    void *host_memory, *array_memory;
    mn_real *parameters, *gradients, *statistics;
    gpu_ticket tickets[MN_LAYERS_MAX];
    mn_memory_access access, inner; /* inner: the fake memory's own */
} gpu_case;

void gpu_case_init(gpu_case *g, model_case *of, const mn_nn *nn);
void gpu_case_deinit(gpu_case *g);
/* Parameters and statistics as the case has them; forward. */
enum mn_status gpu_case_forward(gpu_case *g, mn_loss *out_loss, mn_error *error);
/* After it: backward, of->memory.gradients from zero; out_gradients [parameter_count] and
 * out_statistics [statistics_count] in host memory. */
enum mn_status gpu_case_backward(gpu_case *g, mn_real *out_gradients, mn_real *out_statistics,
                                 mn_error *error);

#endif
