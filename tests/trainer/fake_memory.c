#include "fake_memory.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

double test_uniform(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (double)((z ^ z >> 31) >> 11) * 0x1p-52 - 1;
}

void test_fill(uint64_t *state, double scale, uint64_t n, mn_real *out)
{
    for (uint64_t i = 0; i < n; i++)
        out[i] = (mn_real)(scale * test_uniform(state));
}

double test_difference(uint64_t n, const double *value, const double *exact)
{
    double apart = 0, norm = 0;
    for (uint64_t i = 0; i < n; i++) {
        apart += (value[i] - exact[i]) * (value[i] - exact[i]);
        norm += exact[i] * exact[i];
    }
    return sqrt(apart / norm);
}

static void *start(fake_memory *memory, const mn_memory_reads *reads,
                   const mn_real *output_gradients, mn_real *out, uint64_t out_count)
{
    uint32_t i = 0;
    while (memory->jobs[i].open)
        i++;
    assert(i < FAKE_JOBS_MAX && reads->table < memory->tables);
    memory->jobs[i] = (fake_job){true, *reads, output_gradients, out};
    memory->open++;
    for (uint64_t j = 0; j < out_count; j++)
        out[j] = (mn_real)NAN;
    return &memory->jobs[i];
}

static void *bag_start(void *context, const mn_memory_reads *reads, mn_real *out_bags)
{
    fake_memory *memory = context;
    return start(memory, reads, NULL, out_bags, reads->queries * memory->dim);
}

static void *bag_grad_start(void *context, const mn_memory_reads *reads,
                            const mn_real *output_gradients, mn_real *out_weight_gradients)
{
    fake_memory *memory = context;
    memory->parts_seen |= 1u << reads->part;
    return start(memory, reads, output_gradients, out_weight_gradients,
                 reads->queries * reads->per_query);
}

static void answer(fake_memory *memory, const fake_job *job)
{
    uint64_t dim = memory->dim;
    uint64_t table = job->reads.table * memory->rows * dim;
    for (uint64_t q = 0; q < job->reads.queries; q++) {
        if (!job->output_gradients)
            for (uint64_t c = 0; c < dim; c++)
                job->out[q * dim + c] = 0;
        for (uint32_t j = 0; j < job->reads.per_query; j++) {
            uint64_t read = q * job->reads.per_query + j;
            assert(job->reads.rows[read] < memory->rows);
            uint64_t first = table + job->reads.rows[read] * dim;
            const mn_real *row = memory->values + first, *g = job->output_gradients + q * dim;
            mn_real weight = job->reads.weights[read], dot = 0;
            for (uint64_t c = 0; c < dim; c++) {
                if (!job->output_gradients) {
                    job->out[q * dim + c] += weight * row[c];
                } else {
                    dot += g[c] * row[c];
                    memory->gradients[first + c] += weight * g[c];
                }
            }
            if (job->output_gradients)
                job->out[read] = dot;
        }
    }
}

static enum mn_status wait(void *context, void *ticket, mn_error *error)
{
    fake_memory *memory = context;
    fake_job *job = ticket;
    assert(job->open);
    job->open = false;
    memory->open--;
    if (++memory->calls == memory->fail_at)
        return mn_fail(error, MN_UNAVAILABLE, "wait", "call %u was to fail", memory->calls);
    answer(memory, job);
    return MN_OK;
}

static uint64_t now_ns(void *context) { return ++((fake_memory *)context)->now; }

static void selected(void *context, uint32_t memory_number, const mn_memory_reads *reads)
{
    fake_memory *memory = context;
    for (uint64_t i = 0; i < reads->queries * reads->per_query; i++)
        memory->selected_hash =
            (memory->selected_hash ^ (reads->rows[i] + memory_number)) * UINT64_C(0x100000001b3);
}

void fake_memory_init(fake_memory *memory, const mn_model *model)
{
    uint64_t rows = (uint64_t)model->options.memory.keys * model->options.memory.keys;
    uint64_t count = rows * model->options.memory.value_dim * model->table_count;
    *memory = (fake_memory){.tables = model->table_count,
                            .dim = model->options.memory.value_dim,
                            .rows = rows,
                            .values = calloc(count + 1, sizeof(mn_real)),
                            .gradients = calloc(count + 1, sizeof(mn_real))};
    assert(memory->values && memory->gradients);
}

void fake_memory_deinit(fake_memory *memory)
{
    free(memory->values);
    free(memory->gradients);
}

mn_memory_access fake_memory_access(fake_memory *memory)
{
    mn_memory_access access = {.context = memory,
                               .bag_start = bag_start,
                               .bag_grad_start = bag_grad_start,
                               .wait = wait,
                               .now_ns = now_ns,
                               .selected = selected};
    return access;
}
