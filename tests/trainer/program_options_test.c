/* mneme-train's flags: defaults, every refusal by name, the record of options, the schedule. */
#include "train.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum { ARGUMENTS_MAX = 16 };

/* Parses "mneme-train" and the words of `line`, which it cuts up. */
static enum mn_status parse(char *line, mn_train_options *out_options, bool *out_help,
                            mn_error *error)
{
    char *arguments[ARGUMENTS_MAX + 1] = {(char[]){"mneme-train"}};
    int count = 1;
    for (char *word = strtok(line, " "); word && count < ARGUMENTS_MAX; word = strtok(NULL, " "))
        arguments[count++] = word;
    return mn_train_options_parse(count, arguments, out_options, out_help, error);
}

static void defaults_are_the_paper_s(void **state)
{
    (void)state;
    char line[] = "--text book";
    mn_train_options options;
    mn_error error;
    bool help;
    assert_int_equal(parse(line, &options, &help, &error), MN_OK);
    assert_false(help);
    assert_string_equal(options.text, "book");
    assert_int_equal(options.keys, 512);
    assert_int_equal(options.heads, 4);
    assert_int_equal(options.knn, 32);
    assert_int_equal(options.key_dim, 256);
    assert_int_equal(options.batch_bytes, 2048);
    mn_model_options model;
    assert_int_equal(mn_train_options_model(&options, &model, &error), MN_OK);
    assert_int_equal(model.placement_count, 1);
    assert_int_equal(model.placements[0].layer, 3);
    assert_true(model.placements[0].beside);
    assert_int_equal(model.memory.query_norm, MN_QUERY_BATCH);
    assert_int_equal(model.memory.query_hidden[0], 0);
    assert_int_equal(model.memory.key_init, MN_KEYS_UNIFORM);
    assert_true(model.memory.value_dropout == 0);
}

static void words_and_numbers_arrive(void **state)
{
    (void)state;
    char line[] = "--text book --gate relu --query-norm rms --value-dtype bf16 --swiglu --seed 12 "
                  "--learning-rate 2e-4 --memory-layers none";
    mn_train_options options;
    mn_error error;
    bool help;
    assert_int_equal(parse(line, &options, &help, &error), MN_OK);
    mn_model_options model;
    assert_int_equal(mn_train_options_model(&options, &model, &error), MN_OK);
    assert_int_equal(model.placement_count, 0);
    assert_int_equal(model.memory.gate, MN_GATE_RELU);
    assert_int_equal(model.memory.query_norm, MN_QUERY_RMS);
    assert_int_equal(model.memory.value_dtype, MN_BF16);
    assert_true(model.memory.swiglu);
    assert_int_equal(model.seed, 12);
    assert_true(options.learning_rate == 2e-4f);
}

static void the_layer_s_options_arrive(void **state)
{
    (void)state;
    char line[] = "--text book --query-hidden 512,256 --key-init xlm --value-dropout 0.25";
    mn_train_options options;
    mn_error error;
    bool help;
    assert_int_equal(parse(line, &options, &help, &error), MN_OK);
    mn_model_options model;
    assert_int_equal(mn_train_options_model(&options, &model, &error), MN_OK);
    const uint32_t wanted[MN_QUERY_HIDDEN_MAX] = {512, 256, 0};
    assert_memory_equal(model.memory.query_hidden, wanted, sizeof wanted);
    assert_int_equal(model.memory.key_init, MN_KEYS_XLM);
    assert_true(model.memory.value_dropout == 0.25f);

    static const char *const wrong[] = {"",    "0",    "512,",       "5x",       ",5",
                                        "5,0", "-512", "4294967296", "5, 6",     "1,2,3,4",
                                        " 5",  "5,,6", "none,5",     "512 none", "+5"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        mn_model_options untouched = {.width = 77};
        options.query_hidden = wrong[i];
        assert_int_equal(mn_train_options_model(&options, &untouched, &error), MN_INVALID);
        assert_string_equal(error.field, "query-hidden");
        assert_int_equal(untouched.width, 77);
    }
}

static void wrong_flags_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *line, *field, *says;
    } cases[] = {
        {"--widht 3", "flags", "--widht"},
        {"--text book --width", "flags", "--width needs a value"},
        {"--text book --width 3.5", "width", "whole number"},
        {"--text book --width -1", "width", "from 1"},
        {"--text book --heads 129", "heads", "to 128"},
        {"--text book --learning-rate nan", "learning-rate", "nan"},
        {"--text book --seed 1x", "seed", "1x"},
        {"--text book --gate tanh", "gate", "softmax|relu"},
        {"--text book --gate soft", "gate", "softmax|relu"},
        {"--text book --key-init gauss", "key-init", "uniform|xlm|meta"},
        {"--text book --value-dropout 1", "value-dropout", "0.999"},
        {"--text book more", "flags", "more"},
        {"--steps 5", "text", "--text FILE is missing"},
        {"--text book --batch-bytes 2000", "batch-bytes", "2000"},
        {"--text book --ranks 3", "batch-bytes", "--ranks 3"},
        {"--text book --ranks 2 --rank 2", "rank", "0 to 1"},
        {"--text book --save-every 5", "save", "--save DIR"},
        {"--text book --device gpu", "device", "cpu|cuda"},
        {"--text book --products bf16", "products", "--device cuda"},
        {"--text book --values-in device --local-shards 2", "values-in", "one shard"},
        {"--text book --values-in device --target static:a:1", "values-in", "local:"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char line[128];
        strcpy(line, cases[i].line);
        mn_train_options options = {.width = 77};
        mn_error error;
        bool help = false;
        assert_int_equal(parse(line, &options, &help, &error), MN_INVALID);
        assert_string_equal(error.field, cases[i].field);
        assert_non_null(strstr(error.message, cases[i].says));
        assert_int_equal(options.width, 77); /* untouched */
    }
}

static void help_names_every_flag_asked_for(void **state)
{
    (void)state;
    char line[] = "--width 3 --help", text[16384] = {0};
    mn_train_options options;
    mn_error error;
    bool help = false;
    assert_int_equal(parse(line, &options, &help, &error), MN_OK);
    assert_true(help);
    FILE *out = fmemopen(text, sizeof text, "w");
    mn_train_options_help(out);
    fclose(out);
    assert_non_null(strstr(text, "--value-learning-rate"));
    assert_non_null(strstr(text, "adam|adamw|adagrad|sgd"));
}

static void the_record_holds_what_shapes_results(void **state)
{
    (void)state;
    char line[] = "--text book --keys 64 --target local:x --tied", text[8192] = {0};
    mn_train_options options;
    mn_error error;
    bool help;
    assert_int_equal(parse(line, &options, &help, &error), MN_OK);
    FILE *out = fmemopen(text, sizeof text, "w");
    mn_train_options_write(&options, out);
    fclose(out);
    assert_non_null(strstr(text, "\"keys\":64"));
    assert_non_null(strstr(text, "\"gate\":\"softmax\""));
    assert_null(strstr(text, "local:x")); /* results do not depend on where the tables are */

    memset(text, 0, sizeof text);
    out = fmemopen(text, sizeof text, "w");
    mn_train_options_command(&options, out);
    fclose(out);
    assert_non_null(strstr(text, "--keys 64"));
    assert_non_null(strstr(text, "--tied"));
    assert_non_null(strstr(text, "local:x"));
    assert_null(strstr(text, "--heads")); /* at its default */
}

static void rates_rise_then_fall_to_a_tenth(void **state)
{
    (void)state;
    const mn_train_options options = {.steps = 100, .warm_up = 10};
    assert_true(mn_train_rate(&options, 1, 2) == 0.2f);
    assert_true(mn_train_rate(&options, 10, 2) == 2);
    for (uint64_t step = 11; step <= 100; step++)
        assert_true(mn_train_rate(&options, step, 2) < mn_train_rate(&options, step - 1, 2));
    assert_true(fabsf(mn_train_rate(&options, 55, 2) - 1.1f) <
                1e-6f); /* half way: (1 + 0.1) / 2 of 2 */
    assert_true(mn_train_rate(&options, 100, 2) == 0.2f);
    assert_true(mn_train_rate(&options, 1000, 2) == 0.2f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_the_paper_s),
        cmocka_unit_test(words_and_numbers_arrive),
        cmocka_unit_test(the_layer_s_options_arrive),
        cmocka_unit_test(wrong_flags_are_named),
        cmocka_unit_test(help_names_every_flag_asked_for),
        cmocka_unit_test(the_record_holds_what_shapes_results),
        cmocka_unit_test(rates_rise_then_fall_to_a_tenth),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
