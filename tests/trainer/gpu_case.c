#include "gpu_case.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static void *create(const mn_nn *nn, uint64_t bytes, bool pinned)
{
    void *memory = NULL;
    enum mn_status status = nn->memory->create(nn, bytes ? bytes : 1, pinned, &memory, NULL);
    assert(status == MN_OK);
    return memory;
}

static void destroy(const mn_nn *nn, void *memory, bool pinned)
{
    nn->memory->destroy(nn, memory, pinned);
}

/* ---- The values ---- */

static gpu_ticket *ticket_open(gpu_case *g, const mn_memory_reads *reads, mn_real *out,
                               bool gradient)
{
    uint32_t memory = reads->part % g->of->model.options.placement_count;
    gpu_ticket *ticket = &g->tickets[memory];
    assert(!ticket->open);
    ticket->open = true;
    ticket->gradient = gradient;
    ticket->memory = memory;
    ticket->out = out;
    ticket->reads = *reads;
    ticket->reads.rows = ticket->rows;
    ticket->reads.weights = ticket->weights;
    return ticket;
}

static uint64_t reads_of(const gpu_ticket *ticket)
{
    return ticket->reads.queries * ticket->reads.per_query;
}

static uint64_t vector_bytes(const gpu_case *g, const gpu_ticket *ticket)
{
    return ticket->reads.queries * g->of->memory.dim * sizeof(mn_real);
}

static void *bag_start(void *context, const mn_memory_reads *reads, mn_real *out_bags)
{
    gpu_case *g = context;
    const mn_nn *nn = g->nn;
    gpu_ticket *ticket = ticket_open(g, reads, out_bags, false);
    uint64_t count = reads_of(ticket);
    nn->memory->copy_out(nn, ticket->rows, reads->rows, count * sizeof *reads->rows);
    nn->memory->copy_out(nn, ticket->weights, reads->weights, count * sizeof *reads->weights);
    return ticket;
}

static void *bag_grad_start(void *context, const mn_memory_reads *reads,
                            const mn_real *output_gradients, mn_real *out_weight_gradients)
{
    gpu_case *g = context;
    gpu_ticket *ticket = ticket_open(g, reads, out_weight_gradients, true);
    g->nn->memory->copy_out(g->nn, ticket->vectors, output_gradients, vector_bytes(g, ticket));
    return ticket;
}

static enum mn_status ticket_wait(void *context, void *of_start, mn_error *error)
{
    gpu_case *g = context;
    const mn_nn *nn = g->nn;
    gpu_ticket *ticket = of_start;
    void *memory = g->inner.context;
    assert(ticket->open);
    ticket->open = false;
    enum mn_status status = nn->memory->copies_wait(nn, error);
    if (status != MN_OK)
        return status;
    if (!ticket->gradient)
        g->inner.selected(memory, ticket->memory, &ticket->reads);
    void *job = ticket->gradient ? g->inner.bag_grad_start(memory, &ticket->reads, ticket->vectors,
                                                           ticket->weight_gradients)
                                 : g->inner.bag_start(memory, &ticket->reads, ticket->vectors);
    status = g->inner.wait(memory, job, error);
    if (status != MN_OK)
        return status;
    if (ticket->gradient)
        nn->memory->copy_in(nn, ticket->out, ticket->weight_gradients,
                            reads_of(ticket) * sizeof(mn_real));
    else
        nn->memory->copy_in(nn, ticket->out, ticket->vectors, vector_bytes(g, ticket));
    return MN_OK;
}

static void ticket_init(gpu_case *g, gpu_ticket *ticket)
{
    const mn_memory_options *options = &g->of->model.options.memory;
    uint64_t reads = (uint64_t)CASE_TOKENS_MAX * options->heads * options->knn;
    ticket->rows = create(g->nn, reads * sizeof *ticket->rows, true);
    ticket->weights = create(g->nn, reads * sizeof(mn_real), true);
    ticket->weight_gradients = create(g->nn, reads * sizeof(mn_real), true);
    ticket->vectors =
        create(g->nn, (uint64_t)CASE_TOKENS_MAX * options->value_dim * sizeof(mn_real), true);
}

/* ---- The case ---- */

void gpu_case_init(gpu_case *g, model_case *of, const mn_nn *nn)
{
    memset(g, 0, sizeof *g);
    g->of = of;
    g->nn = nn;
    const mn_workspace_options options = {&of->model, nn, CASE_TOKENS_MAX, CASE_SEQUENCES_MAX};
    uint64_t host, arrays;
    mn_workspace_measure(&options, &host, &arrays);
    g->host_memory = aligned_alloc(64, host);
    assert(g->host_memory);
    g->array_memory = create(nn, arrays, false);
    g->workspace = mn_workspace_place(&options, g->host_memory, g->array_memory);
    g->parameters = create(nn, of->model.parameter_count * sizeof(mn_real), false);
    g->gradients = create(nn, of->model.parameter_count * sizeof(mn_real), false);
    g->statistics = create(nn, of->model.statistics_count * sizeof(mn_real), false);
    for (uint32_t i = 0; i < of->model.options.placement_count; i++)
        ticket_init(g, &g->tickets[i]);
    g->inner = fake_memory_access(&of->memory);
    g->access = (mn_memory_access){.context = g,
                                   .bag_start = bag_start,
                                   .bag_grad_start = bag_grad_start,
                                   .wait = ticket_wait};
}

void gpu_case_deinit(gpu_case *g)
{
    const mn_nn *nn = g->nn;
    for (uint32_t i = 0; i < g->of->model.options.placement_count; i++) {
        destroy(nn, g->tickets[i].rows, true);
        destroy(nn, g->tickets[i].weights, true);
        destroy(nn, g->tickets[i].weight_gradients, true);
        destroy(nn, g->tickets[i].vectors, true);
    }
    destroy(nn, g->statistics, false);
    destroy(nn, g->gradients, false);
    destroy(nn, g->parameters, false);
    destroy(nn, g->array_memory, false);
    free(g->host_memory);
}

enum mn_status gpu_case_forward(gpu_case *g, mn_loss *out_loss, mn_error *error)
{
    const model_case *c = g->of;
    const mn_nn *nn = g->nn;
    nn->write(nn, g->parameters, c->parameters, c->model.parameter_count * sizeof(mn_real));
    if (c->model.statistics_count)
        nn->write(nn, g->statistics, c->statistics_before,
                  c->model.statistics_count * sizeof(mn_real));
    g->of->memory.selected_hash = 0;
    return mn_model_forward(g->workspace, g->parameters, g->statistics, &c->pass, &g->access,
                            out_loss, error);
}

enum mn_status gpu_case_backward(gpu_case *g, mn_real *out_gradients, mn_real *out_statistics,
                                 mn_error *error)
{
    model_case *c = g->of;
    const mn_nn *nn = g->nn;
    uint64_t parameters = c->model.parameter_count * sizeof(mn_real);
    uint64_t values = c->memory.tables * c->memory.rows * c->memory.dim;
    memset(c->memory.gradients, 0, values * sizeof(mn_real));
    nn->zero(nn, g->gradients, parameters);
    enum mn_status status = mn_model_backward(g->workspace, g->parameters, &c->pass, c->scale,
                                              &g->access, g->gradients, error);
    if (status == MN_OK)
        status = nn->read(nn, out_gradients, g->gradients, parameters, error);
    if (status == MN_OK && c->model.statistics_count)
        status = nn->read(nn, out_statistics, g->statistics,
                          c->model.statistics_count * sizeof(mn_real), error);
    return status;
}
