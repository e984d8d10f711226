/* Table specs, field by field: what is refused by name, what defaults become, what makes two specs
 * differ. */
#include "proto_test.h"

#include <math.h>

static mn_table_spec valid(void)
{
    mn_table_spec spec = {.name = "layer4",
                          .rows = 1000,
                          .dim = 200,
                          .dtype = MN_BF16,
                          .split = MN_ROWS,
                          .tiles = 8,
                          .seed = 7,
                          .init = mn_init_uniform(-1, 1),
                          .optimizer = mn_adamw(0.9f, 0.95f, 1e-8f)};
    return spec;
}

static void refused(const mn_table_spec *spec, const char *field)
{
    mn_error error = {0};
    mn_table_spec out, before;
    memset(&out, 0x5a, sizeof out);
    before = out;
    assert_int_equal(mn_spec_check(spec, &out, &error), MN_INVALID);
    assert_string_equal(error.field, field);
    assert_true(error.message[0] != 0);
    assert_memory_equal(&out, &before, sizeof out);
}

static mn_table_spec effective(const mn_table_spec *spec)
{
    mn_table_spec out;
    mn_error error = {0};
    assert_int_equal(mn_spec_check(spec, &out, &error), MN_OK);
    return out;
}

#define REFUSE(member, value, field)                                                               \
    do {                                                                                           \
        mn_table_spec wrong = valid();                                                             \
        wrong.member = value;                                                                      \
        refused(&wrong, field);                                                                    \
    } while (0)

static void each_field_is_checked(void **state)
{
    (void)state;
    mn_table_spec spec = valid();
    (void)effective(&spec);
    REFUSE(name[0], 0, "name");
    REFUSE(name[1], '/', "name");
    spec = valid();
    memset(spec.name, 'a', sizeof spec.name);
    refused(&spec, "name");
    REFUSE(rows, 0, "rows");
    REFUSE(rows, MN_ROWS_MAX + 1, "rows");
    REFUSE(dim, 0, "dim");
    REFUSE(dim, MN_DIM_MAX + 1, "dim");
    REFUSE(dtype, MN_I8, "dtype");
    REFUSE(dtype, (enum mn_dtype)99, "dtype");
    REFUSE(split, (enum mn_split)2, "split");
    REFUSE(tiles, 3, "tiles");
    REFUSE(tiles, 1024, "tiles"); /* more than rows */
    REFUSE(tiles, UINT32_MAX, "tiles");
    REFUSE(init.kind, (enum mn_init_kind)4, "init.kind");
    REFUSE(init.a, NAN, "init.b");
    REFUSE(init.a, 2, "init.b");
    REFUSE(init.b, INFINITY, "init.b");
    REFUSE(optimizer.kind, (enum mn_optimizer_kind)6, "optimizer.kind");
    REFUSE(optimizer.beta1, 1, "optimizer.beta1");
    REFUSE(optimizer.beta1, -0.1f, "optimizer.beta1");
    REFUSE(optimizer.beta2, 1, "optimizer.beta2");
    REFUSE(optimizer.beta2, NAN, "optimizer.beta2");
    REFUSE(optimizer.eps, 0, "optimizer.eps");
    REFUSE(optimizer.eps, NAN, "optimizer.eps");
    REFUSE(optimizer.state_dtype, MN_F64, "optimizer.state_dtype");
    REFUSE(init, mn_init_constant(NAN), "init.a");
    REFUSE(init, mn_init_normal(-1), "init.a");
    REFUSE(init, mn_init_normal(INFINITY), "init.a");
    REFUSE(init, mn_init_uniform(-3e38f, 3e38f), "init.b"); /* the width overflows */
    REFUSE(optimizer, mn_adagrad(-1), "optimizer.eps");
    REFUSE(optimizer, mn_optimizer_of(MN_OPTIMIZER_ADAGRAD, -1, 0, 1), "optimizer.beta1");
}

static void split_limits(void **state)
{
    (void)state;
    mn_table_spec spec = valid();
    spec.optimizer = mn_rowwise_adagrad(1e-8f);
    (void)effective(&spec);
    spec.split = MN_COLUMNS; /* a row's one number cannot live in several tiles */
    spec.tiles = 0;
    refused(&spec, "optimizer.kind");
    spec.optimizer = mn_sgd();
    (void)effective(&spec);
    spec.dim = 200, spec.tiles = 13; /* 16 columns each */
    assert_int_equal(effective(&spec).tiles, 13);
    spec.tiles = 12; /* 32 columns each make 7 */
    refused(&spec, "tiles");
    spec.tiles = 14;
    refused(&spec, "tiles");
    spec.dim = MN_DIM_MAX, spec.tiles = MN_TILES_MAX + 1;
    refused(&spec, "tiles");
}

static void defaults_are_filled(void **state)
{
    (void)state;
    mn_table_spec spec = {.name = "t", .rows = 5, .dim = 300};
    mn_table_spec out = effective(&spec);
    assert_int_equal(out.tiles, 5); /* 64 columns of f32 */
    spec.tiles = 5;
    const char *field = NULL;
    mn_table_spec named = effective(&spec);
    assert_true(mn_spec_equal(&out, &named, &field)); /* the default by its number */
    assert_null(field);
    mn_table_spec again = effective(&out);
    assert_true(mn_spec_equal(&again, &out, NULL));
    spec.init = (mn_init){MN_INIT_CONSTANT, 1, NAN}; /* what the kind does not use is dropped */
    spec.optimizer = (mn_optimizer){MN_OPTIMIZER_SGD, 1, 2, 3, MN_BF16, true};
    out = effective(&spec);
    assert_true(out.init.a == 1 && out.init.b == 0);
    spec.init = mn_init_constant(1);
    spec.optimizer = mn_sgd();
    named = effective(&spec);
    assert_true(mn_spec_equal(&out, &named, NULL));
    spec.init = mn_init_constant(-0.0f); /* which the wire does not carry */
    assert_false(signbit(effective(&spec).init.a));
    spec.init = mn_init_uniform(-0.0f, 1);
    assert_false(signbit(effective(&spec).init.a));
}

static void every_field_makes_a_difference(void **state)
{
    (void)state;
    const mn_table_spec a = valid();
    mn_table_spec b = a;
    char value[2][MN_SPEC_VALUE_BYTES];
    const char *field = NULL;
    assert_true(mn_spec_equal(&a, &b, &field));
    assert_null(field);
#define DIFFER(member)                                                                             \
    b = a;                                                                                         \
    b.member = 0;                                                                                  \
    assert_false(mn_spec_equal(&a, &b, &field));                                                   \
    assert_string_equal(field, #member);                                                           \
    mn_spec_value(&a, field, value[0]);                                                            \
    mn_spec_value(&b, field, value[1]);                                                            \
    assert_true(strcmp(value[0], value[1]) && value[0][0] != '?' && value[1][0] != '?');           \
    assert_false(mn_spec_equal(&a, &b, NULL));
    DIFFER(rows)
    DIFFER(dim)
    DIFFER(dtype)
    DIFFER(split)
    DIFFER(tiles)
    DIFFER(seed)
    DIFFER(init.kind)
    DIFFER(init.a)
    DIFFER(init.b)
    DIFFER(optimizer.kind)
    DIFFER(optimizer.beta1)
    DIFFER(optimizer.beta2)
    DIFFER(optimizer.eps)
    b = a;
    b.optimizer.state_dtype = MN_BF16;
    assert_false(mn_spec_equal(&a, &b, &field));
    assert_string_equal(field, "optimizer.state_dtype");
    b = a;
    b.optimizer.row_correction = true;
    assert_false(mn_spec_equal(&a, &b, &field));
    assert_string_equal(field, "optimizer.row_correction");
    mn_spec_value(&b, field, value[0]);
    assert_string_equal(value[0], "1");
    b.seed = UINT64_MAX;
    b.optimizer.beta2 = -1.17549435e-38f;
    mn_spec_value(&b, "seed", value[0]);
    assert_string_equal(value[0], "18446744073709551615"); /* none is longer */
    mn_spec_value(&b, "optimizer.beta2", value[0]);
    assert_string_equal(value[0], "-1.17549435e-38");
    mn_spec_value(&b, "dtype", value[0]);
    assert_string_equal(value[0], mn_dtype_name(b.dtype));
    mn_spec_value(&b, "no such field", value[0]);
    assert_string_equal(value[0], "?");
    b = a;
    b.name[5] = 'x';
    assert_false(mn_spec_equal(&a, &b, &field));
    assert_string_equal(field, "name");
}

/* As it stands in files, field by field. */
static void a_spec_in_a_file(void **state)
{
    (void)state;
    const mn_table_spec spec = {
        .name = "layer4",
        .rows = UINT64_C(0x100000002),
        .dim = 200,
        .dtype = MN_BF16,
        .split = MN_ROWS,
        .tiles = 8,
        .seed = UINT64_C(0x300000004),
        .init = mn_init_uniform(-2, 4),
        .optimizer = {MN_OPTIMIZER_ADAMW, 0.5f, 0.75f, 0.125f, MN_BF16, true}};
    const uint32_t words[] = {2,          1,          200,        1,          1,          8,
                              4,          3,          3,          0xc0000000, 0x40800000, 5,
                              0x3f000000, 0x3f400000, 0x3e000000, 1,          1};
    uint8_t bytes[MN_FILE_BYTES_SPEC], due[MN_FILE_BYTES_SPEC] = "layer4";
    mn_table_spec read;
    const char *field;
    memcpy(due + MN_NAME_BYTES, words, sizeof words);
    assert_ptr_equal(mn_file_put_SPEC(bytes, &spec), bytes + sizeof bytes);
    assert_memory_equal(bytes, due, sizeof due);
    assert_ptr_equal(mn_file_get_SPEC(due, &read), due + sizeof due);
    assert_true(mn_spec_equal(&read, &spec, &field));
}

static void names(void **state)
{
    (void)state;
    char longest[MN_NAME_BYTES + 1] = {0};
    memset(longest, 'z', MN_NAME_BYTES - 1);
    assert_true(mn_name_valid("a") && mn_name_valid("Run-7_b.2") && mn_name_valid(longest));
    longest[MN_NAME_BYTES - 1] = 'z';
    assert_false(mn_name_valid(longest));
    static const char *const wrong[] = {"", "a b", "a/b", "\xc3\xa9", "a\n", "a:b"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        assert_false(mn_name_valid(wrong[i]));
}

static void statuses(void **state)
{
    (void)state;
    assert_string_equal(mn_status_name(MN_MOVED), "MOVED");
    assert_string_equal(mn_status_name((enum mn_status)MN_STATUS_COUNT), "UNKNOWN");
    assert_non_null(mn_status_sentence((enum mn_status) - 1));
    assert_true(mn_status_retryable(MN_BUSY) && !mn_status_retryable(MN_INVALID));
    assert_int_equal(mn_dtype_bytes((enum mn_dtype)6), 0);
    assert_string_equal(mn_dtype_name(MN_BF16), "bf16");
    mn_error error = {0};
    char text[400];
    memset(text, 'x', sizeof text - 1), text[399] = 0;
    assert_int_equal(mn_fail(&error, MN_BUSY, text, "%s", text), MN_BUSY); /* cut, terminated */
    assert_int_equal(strlen(error.field), sizeof error.field - 1);
    assert_int_equal(strlen(error.message), sizeof error.message - 1);
    assert_int_equal(mn_fail(NULL, MN_LOST, "a", "b"), MN_LOST);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_field_is_checked),
        cmocka_unit_test(split_limits),
        cmocka_unit_test(defaults_are_filled),
        cmocka_unit_test(every_field_makes_a_difference),
        cmocka_unit_test(a_spec_in_a_file),
        cmocka_unit_test(names),
        cmocka_unit_test(statuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
