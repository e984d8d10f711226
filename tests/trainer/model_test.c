/* Options, layout, initial values, evaluation and failures of the model, in the programs' build. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model_case.h"
#include "nn_math.h"

static void test_placements(void **state)
{
    (void)state;
    mn_placement placements[MN_LAYERS_MAX];
    uint32_t count = 7;
    assert_int_equal(mn_placements_parse("2,5+,64", placements, &count, NULL), MN_OK);
    assert_int_equal(count, 3);
    assert_true(placements[0].layer == 2 && !placements[0].beside);
    assert_true(placements[1].layer == 5 && placements[1].beside);
    assert_true(placements[2].layer == 64 && !placements[2].beside);
    assert_int_equal(mn_placements_parse("", placements, &count, NULL), MN_OK);
    assert_int_equal(count, 0);
    const char *wrong[] = {"0",
                           "65",
                           "3,3",
                           "3,2",
                           "3,",
                           ",3",
                           "+",
                           "3 ",
                           "a",
                           "3++",
                           "-1",
                           "3,,4",
                           "99999999999999999999"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        mn_error error = {0};
        count = 7;
        assert_int_equal(mn_placements_parse(wrong[i], placements, &count, &error), MN_INVALID);
        assert_string_equal(error.field, "memory-layers");
        assert_non_null(strstr(error.message, wrong[i]));
        assert_int_equal(count, 7);
    }
}

typedef struct bad_option {
    const char *field;
    mn_model_options options;
} bad_option;

#define ONE_MEMORY .placement_count = 1, .placements = {{2, true}}

static void test_wrong_options_are_named(void **state)
{
    (void)state;
    static const bad_option cases[] = {
        {"width", {.width = 1 << 20}},
        {"layers", {.layers = 65}},
        {"attention-heads", {.width = 10, .attention_heads = 4}},
        {"memory-layers", {.placement_count = 1, .placements = {{5, true}}}},
        {"memory-layers", {.placement_count = 2, .placements = {{2, true}, {2, true}}}},
        {"key-dim", {ONE_MEMORY, .memory = {.key_dim = 7}}},
        {"knn", {ONE_MEMORY, .memory = {.knn = 129}}},
        {"knn", {ONE_MEMORY, .memory = {.keys = 3, .knn = 10}}},
        {"value-dim", {ONE_MEMORY, .memory = {.value_dim = 64}}},
        {"heads * knn", {ONE_MEMORY, .memory = {.heads = 64, .knn = 65}}},
        {"heads * key-dim", {ONE_MEMORY, .memory = {.heads = 512, .key_dim = 256, .knn = 1}}},
        {"temperature", {ONE_MEMORY, .memory = {.temperature = -1}}},
        {"gate", {ONE_MEMORY, .memory = {.gate = (enum mn_gate)9}}},
        {"key-init", {ONE_MEMORY, .memory = {.key_init = (enum mn_key_init)3}}},
        {"value-dropout", {ONE_MEMORY, .memory = {.value_dropout = 1}}},
        {"value-dropout", {ONE_MEMORY, .memory = {.value_dropout = NAN}}},
        {"query-hidden", {ONE_MEMORY, .memory = {.query_hidden = {8, 2000000}}}},
        {"query-hidden",
         {ONE_MEMORY, .memory = {.query_hidden = {40000}, .query_norm_hidden = true}}},
        {"query-norm-hidden",
         {ONE_MEMORY, .memory = {.query_norm = MN_QUERY_RMS, .query_norm_hidden = true}}},
    };
    static mn_model model;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mn_error error = {0};
        assert_int_equal(mn_model_init(&cases[i].options, &model, &error), MN_INVALID);
        assert_string_equal(error.field, cases[i].field);
    }
    mn_model_options no_memory = {.memory = {.key_dim = 7}}; /* nobody reads it */
    assert_int_equal(mn_model_init(&no_memory, &model, NULL), MN_OK);
}

static void test_defaults_are_the_papers(void **state)
{
    (void)state;
    static mn_model model;
    mn_model_options options = {ONE_MEMORY};
    assert_int_equal(mn_model_init(&options, &model, NULL), MN_OK);
    const mn_memory_options *memory = &model.options.memory;
    assert_true(memory->keys == 512 && memory->heads == 4 && memory->knn == 32);
    assert_true(memory->key_dim == 256 && memory->query_norm == MN_QUERY_BATCH);
    mn_table_spec spec;
    mn_model_table_spec(&model, 0, &spec);
    assert_string_equal(spec.name, "values2");
    assert_true(spec.rows == 262144 && spec.dim == 128 && spec.split == MN_COLUMNS);
    assert_true(spec.init.kind == MN_INIT_NORMAL && fabsf(spec.init.a - 0.0883883f) < 1e-6f);
    assert_int_equal(spec.optimizer.kind, MN_OPTIMIZER_ADAM);
}

static void test_segments_cover_all(void **state)
{
    (void)state;
    static mn_model model;
    mn_model_options options = {.placement_count = 2, .placements = {{1, true}, {3, false}}};
    options.memory = (mn_memory_options){.swiglu = true, .shared = true, .query_hidden = {16, 24}};
    assert_int_equal(mn_model_init(&options, &model, NULL), MN_OK);
    assert_int_equal(model.table_count, 1);
    uint64_t end = 0;
    for (uint32_t s = 0; s < model.segment_count; s++) {
        assert_int_equal(model.segments[s].offset, end);
        end += model.segments[s].count;
        for (uint32_t other = 0; other < s; other++)
            assert_string_not_equal(model.segments[s].name, model.segments[other].name);
        assert_null(strstr(model.segments[s].name, "layer3.ffn")); /* the memory is instead */
    }
    assert_int_equal(end, model.parameter_count);
}

static const mn_segment *segment_named(const mn_model *model, const char *name)
{
    for (uint32_t s = 0; s < model->segment_count; s++)
        if (strcmp(model->segments[s].name, name) == 0)
            return &model->segments[s];
    fail_msg("no segment %s", name);
    return NULL;
}

static void test_initial_values(void **state)
{
    (void)state;
    static mn_model model;
    mn_model_options options = {.placement_count = 1, .placements = {{4, true}}, .seed = 11};
    options.memory = (mn_memory_options){.keys = 64, .key_dim = 128};
    assert_int_equal(mn_model_init(&options, &model, NULL), MN_OK);
    float *a = calloc(model.parameter_count, sizeof *a),
          *b = calloc(model.parameter_count, sizeof *b);
    float *statistics = calloc(model.statistics_count, sizeof *statistics);
    mn_model_init_parameters(&model, a, statistics);
    mn_model_init_parameters(&model, b, statistics);
    assert_memory_equal(a, b, model.parameter_count * sizeof *a);
    const mn_segment *keys = segment_named(&model, "layer4.memory.keys");
    double square = 0, highest = 0;
    for (uint64_t i = 0; i < keys->count; i++) {
        square += (double)a[keys->offset + i] * (double)a[keys->offset + i];
        highest = fmax(highest, fabs((double)a[keys->offset + i]));
    }
    assert_true(highest <= 0.125 && highest > 0.1249); /* 1/sqrt(64) */
    assert_true(fabs(square / (double)keys->count - 0.125 * 0.125 / 3) < 1e-4);
    assert_false(keys->decays);
    assert_true(segment_named(&model, "layer1.ffn.up")->decays);
    uint64_t half = model.statistics_count / 2;
    assert_int_equal(half, 4 * 128);
    assert_true(statistics[half - 1] == 0 && statistics[half] == 1);
    model.options.seed = 12;
    mn_model_init_parameters(&model, b, statistics);
    assert_memory_not_equal(a + keys->offset, b + keys->offset, keys->count * sizeof *a);
    free(a);
    free(b);
    free(statistics);
}

/* Evaluation: the last position's logits give the loss that forward reports there, do not depend on
 * what comes later, and the statistics stay. */
static void test_next_agrees_with_forward(void **state)
{
    (void)state;
    mn_model_options options = {ONE_MEMORY};
    model_case c;
    model_case_init(&c, &options, 21);
    (void)model_case_forward(&c); /* statistics move away from 0 and 1 */
    float *kept = calloc(c.model.statistics_count, sizeof *kept);
    memcpy(kept, c.statistics, c.model.statistics_count * sizeof *kept);
    uint16_t only[5] = {MN_NO_TARGET, MN_NO_TARGET, 65, MN_NO_TARGET, MN_NO_TARGET};
    mn_pass pass = {.sequences = 1, .length = 5, .tokens = c.tokens, .targets = only};
    mn_loss loss;
    assert_int_equal(
        mn_model_forward(c.workspace, c.parameters, c.statistics, &pass, &c.access, &loss, NULL),
        MN_OK);
    float logits[MN_BYTES];
    pass.length = 3; /* a prefix */
    assert_int_equal(
        mn_model_next(c.workspace, c.parameters, c.statistics, &pass, &c.access, logits, NULL),
        MN_OK);
    double sum = 0;
    for (int i = 0; i < MN_BYTES; i++)
        sum += exp((double)logits[i]);
    assert_int_equal(loss.targets, 1);
    assert_true(fabs(log(sum) - (double)logits[65] - loss.nats) < 1e-5);
    assert_memory_equal(kept, c.statistics, c.model.statistics_count * sizeof *kept);
    free(kept);
    model_case_deinit(&c);
}

/* The plain model's parameters from those of the same name; its segment `silenced` is 0. */
static void copy_segments(const model_case *from, model_case *to, const char *silenced)
{
    for (uint32_t i = 0; i < to->model.segment_count; i++) {
        const mn_segment *wanted = &to->model.segments[i];
        float *at = to->parameters + wanted->offset;
        for (uint32_t j = 0; j < from->model.segment_count; j++)
            if (!strcmp(from->model.segments[j].name, wanted->name))
                memcpy(at, from->parameters + from->model.segments[j].offset,
                       wanted->count * sizeof *at);
        if (!strcmp(wanted->name, silenced))
            memset(at, 0, wanted->count * sizeof *at);
    }
}

/* "1,2+": the first memory stands instead of its feed-forward network, the second beside it. With
 * values of 0 that is the model without memories whose first network says nothing. */
static void test_instead_and_beside(void **state)
{
    (void)state;
    mn_model_options options = {0}, plain = {0};
    assert_int_equal(
        mn_placements_parse("1,2+", options.placements, &options.placement_count, NULL), MN_OK);
    model_case c, p;
    model_case_init(&c, &options, 24);
    model_case_init(&p, &plain, 24);
    memcpy(p.tokens, c.tokens, sizeof p.tokens);
    memcpy(p.targets, c.targets, sizeof p.targets);
    copy_segments(&c, &p, "layer1.ffn.down");
    double full = model_case_forward(&c), without = model_case_forward(&p);
    assert_true(fabs(full - without) > 1e-3); /* values matter */
    memset(c.memory.values, 0,
           c.memory.tables * c.memory.rows * c.memory.dim * sizeof *c.memory.values);
    assert_true(fabs(model_case_forward(&c) - without) < 1e-6);
    copy_segments(&c, &p, "layer2.ffn.down");
    assert_true(fabs(model_case_forward(&c) - model_case_forward(&p)) > 1e-3);
    model_case_deinit(&p);
    model_case_deinit(&c);
}

/* After the first training pass: running = 0.9 * (0, 1) + 0.1 * (mean, unbiased variance). */
static void test_running_statistics_move(void **state)
{
    (void)state;
    mn_model_options options = {ONE_MEMORY};
    model_case c;
    model_case_init(&c, &options, 22);
    (void)model_case_forward(&c);
    uint64_t half = c.model.statistics_count / 2;
    for (uint64_t i = 0; i < half; i++) {
        assert_true(c.statistics[i] != 0);
        assert_true(c.statistics[half + i] > 0.9f);
    }
    model_case_deinit(&c);
}

static void test_failures_leave_nothing_open(void **state)
{
    (void)state;
    mn_model_options options = {.placement_count = 2, .placements = {{1, true}, {2, false}}};
    options.memory.swiglu = true;
    model_case c;
    model_case_init(&c, &options, 23);
    for (uint32_t fail_at = 1; fail_at <= 4; fail_at++) {
        mn_error error = {0};
        mn_loss loss = {.nats = -1};
        c.memory.calls = 0;
        c.memory.fail_at = fail_at;
        enum mn_status status = mn_model_forward(c.workspace, c.parameters, c.statistics, &c.pass,
                                                 &c.access, &loss, &error);
        assert_int_equal(status, fail_at <= 2 ? MN_UNAVAILABLE : MN_OK);
        assert_true(fail_at > 2 || loss.nats == -1);
        assert_int_equal(c.memory.open, 0);
        if (status == MN_OK)
            assert_int_equal(mn_model_backward(c.workspace, c.parameters, &c.pass, 1, &c.access,
                                               c.gradients, &error),
                             MN_UNAVAILABLE);
        assert_string_equal(error.field, "wait");
        assert_int_equal(c.memory.open, 0);
    }
    c.memory.fail_at = 0;
    c.parameters[segment_named(&c.model, "layer1.memory.query.shift")->offset] = NAN;
    mn_error error = {0};
    mn_loss loss;
    assert_int_equal(mn_model_forward(c.workspace, c.parameters, c.statistics, &c.pass, &c.access,
                                      &loss, &error),
                     MN_INVALID);
    assert_string_equal(error.field, "scores");
    assert_int_equal(c.memory.open, 0);
    model_case_deinit(&c);
}

static void test_parts_and_phases(void **state)
{
    (void)state;
    mn_model_options options = {.placement_count = 2, .placements = {{1, true}, {2, true}}};
    options.memory.shared = true;
    model_case c;
    model_case_init(&c, &options, 24);
    c.pass.part = 3;
    (void)model_case_step(&c);
    assert_int_equal(c.memory.parts_seen, 1 << 6 | 1 << 7);
    const mn_phases *phases = mn_workspace_phases(c.workspace);
    uint64_t sum = phases->dense_ns + phases->search_ns + phases->bag_wait_ns +
                   phases->gradient_wait_ns + phases->reduce_ns;
    assert_true(phases->search_ns && phases->bag_wait_ns && phases->gradient_wait_ns);
    assert_int_equal(sum, c.memory.now - 2); /* two passes, each from its first look to its last */
    model_case_deinit(&c);
}

static void test_work_of_a_token(void **state)
{
    (void)state;
    static mn_model model;
    mn_model_options options = {.width = 128, .layers = 4};
    assert_int_equal(mn_model_init(&options, &model, NULL), MN_OK);
    assert_int_equal(mn_model_token_work(&model), 4 * 12 * 128 * 128 + 256 * 128);
    options.placement_count = 1;
    options.placements[0] = (mn_placement){3, true};
    options.memory = (mn_memory_options){.keys = 256, .knn = 16, .key_dim = 128};
    assert_int_equal(mn_model_init(&options, &model, NULL), MN_OK);
    assert_int_equal(mn_model_token_work(&model),
                     4 * 12 * 128 * 128 + 256 * 128 + 128 * 512 + 512 * 256 + 64 * 128);
}

static void test_exp_is_accurate(void **state)
{
    (void)state;
    double worst = 0;
    for (float x = -60; x <= 60; x += 0.0037f)
        worst = fmax(worst, fabs((double)real_exp(x) / exp((double)x) - 1));
    assert_true(worst < 3e-7 && worst > 1e-8);
    assert_true(real_exp(0) == 1 && real_exp(-60.01f) == 0 && real_exp(1000) == real_exp(60));
    assert_true(isnan(real_exp(NAN)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_placements),
        cmocka_unit_test(test_wrong_options_are_named),
        cmocka_unit_test(test_defaults_are_the_papers),
        cmocka_unit_test(test_segments_cover_all),
        cmocka_unit_test(test_initial_values),
        cmocka_unit_test(test_next_agrees_with_forward),
        cmocka_unit_test(test_instead_and_beside),
        cmocka_unit_test(test_running_statistics_move),
        cmocka_unit_test(test_failures_leave_nothing_open),
        cmocka_unit_test(test_parts_and_phases),
        cmocka_unit_test(test_work_of_a_token),
        cmocka_unit_test(test_exp_is_accurate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
