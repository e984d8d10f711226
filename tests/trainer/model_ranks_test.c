/* P ranks that share a batch of B sequences, evenly or not, compute what one rank computes with B:
 * batch norm runs over the tokens of all ranks, and dropout goes by positions in the batch. Each
 * rank is a thread; reduce adds in rank order once all have come. */
#include <assert.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fake_memory.h"

enum { SEQUENCES = 4, LENGTH = 6, TOKENS = SEQUENCES * LENGTH, RANKS_MAX = 4, REDUCE_MAX = 64 };

typedef struct meeting {
    uint32_t ranks;
    const uint32_t *sequences; /* [ranks], SEQUENCES in all */
    pthread_barrier_t all;
    double values[RANKS_MAX][REDUCE_MAX];
    char names[RANKS_MAX][MN_NAME_BYTES];
} meeting;

typedef struct rank {
    uint32_t number;
    meeting *meeting;
    const mn_model *model;
    const mn_real *parameters;
    fake_memory memory;
    mn_memory_access access;
    mn_real *gradients, *statistics;
    mn_loss loss;
    enum mn_status status;
} rank;

/* fake_memory's functions get the rank as context: it begins no struct of theirs. */
static fake_memory *memory_of(void *context) { return &((rank *)context)->memory; }
static mn_memory_access inner_of(void *context) { return fake_memory_access(memory_of(context)); }
static void *bag_start(void *context, const mn_memory_reads *reads, mn_real *out)
{
    return inner_of(context).bag_start(memory_of(context), reads, out);
}
static void *bag_grad_start(void *context, const mn_memory_reads *reads, const mn_real *gradients,
                            mn_real *out)
{
    return inner_of(context).bag_grad_start(memory_of(context), reads, gradients, out);
}
static enum mn_status wait(void *context, void *ticket, mn_error *error)
{
    return inner_of(context).wait(memory_of(context), ticket, error);
}
static enum mn_status reduce(void *context, const char *name, double *values, uint32_t count,
                             mn_error *error)
{
    rank *r = context;
    meeting *m = r->meeting;
    assert(count <= REDUCE_MAX && strlen(name) <= 40);
    memcpy(m->values[r->number], values, count * sizeof *values);
    strcpy(m->names[r->number], name);
    (void)pthread_barrier_wait(&m->all);
    memset(values, 0, count * sizeof *values);
    bool same = true;
    for (uint32_t i = 0; i < m->ranks; i++) {
        same = same && strcmp(m->names[i], name) == 0;
        for (uint32_t j = 0; j < count; j++)
            values[j] += m->values[i][j];
    }
    (void)pthread_barrier_wait(&m->all);
    return same ? MN_OK : mn_fail(error, MN_CONFLICT, "name", "%s on rank %u", name, r->number);
}

static uint8_t tokens[TOKENS];
static uint16_t targets[TOKENS];

static void *run_rank(void *argument)
{
    rank *r = argument;
    uint32_t sequences = r->meeting->sequences[r->number], first = 0;
    for (uint32_t before = 0; before < r->number; before++)
        first += r->meeting->sequences[before] * LENGTH;
    uint64_t bytes = mn_workspace_bytes(r->model, TOKENS, SEQUENCES);
    void *room = aligned_alloc(64, bytes);
    mn_workspace *workspace = mn_workspace_init(r->model, TOKENS, SEQUENCES, room);
    mn_pass pass = {.sequences = sequences,
                    .length = LENGTH,
                    .tokens = tokens + first,
                    .targets = targets + first,
                    .step = 9,
                    .first_position = first,
                    .training = true};
    r->status = mn_model_forward(workspace, r->parameters, r->statistics, &pass, &r->access,
                                 &r->loss, NULL);
    if (r->status == MN_OK)
        r->status = mn_model_backward(workspace, r->parameters, &pass, 1.0 / TOKENS, &r->access,
                                      r->gradients, NULL);
    free(room);
    return NULL;
}

typedef struct outcome {
    uint64_t gradient_count, value_count, statistics_count;
    double *gradients, *values, *statistics, nats; /* gradients and values: summed over ranks */
    bool same_statistics;
} outcome;

static void collect(rank *ranks, uint32_t count, outcome *out)
{
    out->same_statistics = true;
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(ranks[i].status, MN_OK);
        for (uint64_t j = 0; j < out->gradient_count; j++)
            out->gradients[j] += (double)ranks[i].gradients[j];
        for (uint64_t j = 0; j < out->value_count; j++)
            out->values[j] += (double)ranks[i].memory.gradients[j];
        for (uint64_t j = 0; j < out->statistics_count; j++)
            out->statistics[j] = (double)ranks[i].statistics[j];
        out->nats += ranks[i].loss.nats;
        out->same_statistics =
            out->same_statistics && memcmp(ranks[i].statistics, ranks[0].statistics,
                                           out->statistics_count * sizeof(mn_real)) == 0;
    }
    for (uint32_t i = 0; i < count; i++) {
        free(ranks[i].gradients);
        free(ranks[i].statistics);
        fake_memory_deinit(&ranks[i].memory);
    }
}

/* Sequences of each rank, the first 0 ends them. */
typedef uint32_t split[RANKS_MAX + 1];

static outcome run(const mn_model *model, const split sequences, bool synchronised)
{
    uint32_t count = 0;
    while (sequences[count])
        count++;
    meeting m = {.ranks = count, .sequences = sequences};
    rank ranks[RANKS_MAX] = {0};
    pthread_t threads[RANKS_MAX];
    mn_real *parameters = calloc(model->parameter_count, sizeof *parameters);
    uint64_t rows = (uint64_t)model->options.memory.keys * model->options.memory.keys;
    outcome out = {.gradient_count = model->parameter_count,
                   .value_count = rows * model->options.memory.value_dim,
                   .statistics_count = model->statistics_count};
    out.gradients = calloc(out.gradient_count, sizeof(double));
    out.values = calloc(out.value_count, sizeof(double));
    out.statistics = calloc(out.statistics_count, sizeof(double));
    assert_int_equal(pthread_barrier_init(&m.all, NULL, count), 0);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t random = 17;
        ranks[i] = (rank){.number = i, .meeting = &m, .model = model, .parameters = parameters};
        fake_memory_init(&ranks[i].memory, model);
        test_fill(&random, 1, out.value_count, ranks[i].memory.values);
        ranks[i].access = (mn_memory_access){.context = &ranks[i],
                                             .bag_start = bag_start,
                                             .bag_grad_start = bag_grad_start,
                                             .wait = wait,
                                             .reduce = synchronised ? reduce : NULL};
        ranks[i].gradients = calloc(model->parameter_count, sizeof(mn_real));
        ranks[i].statistics = calloc(model->statistics_count, sizeof(mn_real));
        mn_model_init_parameters(model, parameters, ranks[i].statistics);
    }
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, run_rank, &ranks[i]), 0);
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    (void)pthread_barrier_destroy(&m.all);
    collect(ranks, count, &out);
    free(parameters);
    return out;
}

static void release(outcome *out)
{
    free(out->gradients);
    free(out->values);
    free(out->statistics);
}

static void setup_model(enum mn_query_norm norm, float dropout, mn_model *out_model)
{
    mn_model_options options = {.width = 8,
                                .layers = 2,
                                .attention_heads = 2,
                                .context = LENGTH,
                                .seed = 3,
                                .placement_count = 1,
                                .placements = {{1, true}}};
    options.memory =
        (mn_memory_options){.keys = 8,
                            .heads = 2,
                            .knn = 4,
                            .key_dim = 8,
                            .query_norm = norm,
                            .query_hidden = {12},
                            .query_norm_hidden = norm == MN_QUERY_BATCH && !(dropout > 0),
                            .value_dropout = dropout,
                            .value_deviation = 1};
    assert_int_equal(mn_model_init(&options, out_model, NULL), MN_OK);
    uint64_t random = 99;
    for (int i = 0; i < TOKENS; i++) {
        tokens[i] = (uint8_t)(128 + 100 * test_uniform(&random));
        targets[i] = (uint16_t)(128 + 100 * test_uniform(&random));
    }
}

#define TOLERANCE 1e-5

static const split alone = {SEQUENCES};
static const split splits[] = {{2, 2}, {1, 3}, {3, 1}, {1, 2, 1}, {2, 1, 1}, {1, 1, 1, 1}};

static bool agree(const outcome *one, const outcome *many)
{
    return fabs(many->nats - one->nats) <= TOLERANCE * one->nats &&
           test_difference(one->gradient_count, many->gradients, one->gradients) <= TOLERANCE &&
           test_difference(one->value_count, many->values, one->values) <= TOLERANCE &&
           (one->statistics_count == 0 || test_difference(one->statistics_count, many->statistics,
                                                          one->statistics) <= TOLERANCE) &&
           many->same_statistics;
}

static void test_ranks_add_up_to_one(void **state)
{
    (void)state;
    static mn_model model;
    for (int norm = MN_QUERY_BATCH; norm <= MN_QUERY_RMS; norm++)
        for (int dropout = 0; dropout <= 1; dropout++) {
            setup_model((enum mn_query_norm)norm, 0.3f * (float)dropout, &model);
            outcome one = run(&model, alone, true);
            for (size_t i = 0; i < sizeof splits / sizeof *splits; i++) {
                outcome many = run(&model, splits[i], true);
                if (!agree(&one, &many))
                    fail_msg("norm %d, dropout %d, split %zu", norm, dropout, i);
                release(&many);
            }
            release(&one);
        }
}

/* Each rank with the statistics of its own slice trains another model: the comparison says so. */
static void test_unsynchronised_ranks_do_not(void **state)
{
    (void)state;
    static mn_model model;
    setup_model(MN_QUERY_BATCH, 0, &model);
    outcome one = run(&model, alone, false), two = run(&model, splits[0], false);
    assert_false(agree(&one, &two));
    assert_false(test_difference(one.gradient_count, two.gradients, one.gradients) <= TOLERANCE);
    assert_false(test_difference(one.statistics_count, two.statistics, one.statistics) <=
                 TOLERANCE);
    assert_false(two.same_statistics);
    release(&one);
    release(&two);
}

static enum mn_status refuse(void *context, const char *name, double *values, uint32_t count,
                             mn_error *error)
{
    (void)context, (void)values, (void)count;
    return mn_fail(error, MN_CONFLICT, "name", "%s was asked for", name);
}

/* Running statistics only: no sum over ranks, nothing moves; training asks at once. */
static void test_evaluation_asks_nobody(void **state)
{
    (void)state;
    static mn_model model;
    setup_model(MN_QUERY_BATCH, 0.3f, &model);
    mn_real *parameters = calloc(model.parameter_count, sizeof *parameters);
    mn_real *statistics = calloc(2 * model.statistics_count, sizeof *statistics);
    mn_model_init_parameters(&model, parameters, statistics);
    memcpy(statistics + model.statistics_count, statistics,
           model.statistics_count * sizeof *statistics);
    fake_memory memory;
    fake_memory_init(&memory, &model);
    mn_memory_access access = fake_memory_access(&memory);
    access.reduce = refuse;
    void *room = aligned_alloc(64, mn_workspace_bytes(&model, TOKENS, SEQUENCES));
    mn_workspace *workspace = mn_workspace_init(&model, TOKENS, SEQUENCES, room);
    mn_pass pass = {.sequences = SEQUENCES, .length = LENGTH, .tokens = tokens, .targets = targets};
    mn_loss loss, again;
    assert_int_equal(
        mn_model_forward(workspace, parameters, statistics, &pass, &access, &loss, NULL), MN_OK);
    pass.step = 1; /* nor dropout */
    assert_int_equal(
        mn_model_forward(workspace, parameters, statistics, &pass, &access, &again, NULL), MN_OK);
    assert_true(loss.nats == again.nats);
    assert_memory_equal(statistics, statistics + model.statistics_count,
                        model.statistics_count * sizeof *statistics);
    pass.training = true;
    assert_int_equal(
        mn_model_forward(workspace, parameters, statistics, &pass, &access, &loss, NULL),
        MN_CONFLICT);
    free(room);
    fake_memory_deinit(&memory);
    free(statistics);
    free(parameters);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranks_add_up_to_one),
        cmocka_unit_test(test_unsynchronised_ranks_do_not),
        cmocka_unit_test(test_evaluation_asks_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
