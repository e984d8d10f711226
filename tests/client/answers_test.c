/* Answers that are one byte, one element or one table too short or too long: the call ends CORRUPT,
 * names the field and the number, and what the caller gave it to fill is untouched. */
#include "fake.h"
#include "harness.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { DIM = 32, COUNT = 4 };

static const mn_table_spec columns = {
    .name = "t",
    .rows = 100,
    .dim = DIM,
    .optimizer = {MN_OPTIMIZER_ADAGRAD, 0, 0, 1e-6f, MN_F32, false}};
static uint32_t indices[COUNT] = {1, 2, 3, 4};
static float weights[COUNT] = {1, 1, 1, 1}, values[COUNT * DIM], outputs[COUNT * DIM];
static float states[COUNT * DIM];
static double sums[COUNT];
static uint64_t counters[2 * COUNT];
static const uint8_t answer[8192];

/* A call of this kind, and the bytes that its answer has. */
static uint64_t call_of(fake *it, fake_call *call, enum mn_operation_kind kind, bool state,
                        mn_table *table)
{
    mn_operation *operation = &call->operation;
    fake_call_init(it, call, kind, 1000);
    operation->table = table;
    operation->step = 5;
    operation->count = COUNT;
    operation->per_query = kind == MN_OP_BAG || kind == MN_OP_BAG_GRAD ? 1 : 0;
    operation->indices = mn_u32(indices);
    operation->weights = mn_f32(weights);
    operation->values = mn_f32(values);
    operation->outputs = mn_f32(outputs);
    operation->state_out = state ? states : NULL;
    operation->reduce_values = sums;
    if (kind == MN_OP_REDUCE)
        strcpy(operation->name, "loss");
    if (kind == MN_OP_USAGE)
        operation->outputs.data = counters;
    switch (kind) {
    case MN_OP_FETCH:
        return (uint64_t)COUNT * DIM * (state ? 8 : 4);
    case MN_OP_BAG:
        return (uint64_t)COUNT * DIM * 4;
    case MN_OP_BAG_GRAD:
        return (uint64_t)COUNT * 4;
    case MN_OP_REDUCE:
        return sizeof sums;
    case MN_OP_USAGE:
        return sizeof counters;
    default:
        return 0; /* an acknowledgement */
    }
}

static void ends(const fake_call *call, const char *field, uint64_t number)
{
    char text[24];
    (void)snprintf(text, sizeof text, "%" PRIu64, number);
    assert_int_equal(call->done, 1);
    assert_int_equal(call->operation.status, MN_CORRUPT);
    assert_string_equal(call->operation.error.field, field);
    if (!strstr(call->operation.error.message, text))
        fail_msg("\"%s\" does not say %s", call->operation.error.message, text);
}

static bool untouched(void)
{
    static const float none[COUNT * DIM];
    return !memcmp(outputs, none, sizeof outputs) && !memcmp(states, none, sizeof states) &&
           !memcmp(sums, none, sizeof sums) && !memcmp(counters, none, sizeof counters);
}

static void payloads_of_any_other_length(void **state)
{
    (void)state;
    static const struct {
        enum mn_operation_kind kind;
        enum mn_verb verb;
        bool state;
    } cases[] = {
        {MN_OP_FETCH, MN_VERB_FETCH, false},   {MN_OP_FETCH, MN_VERB_FETCH, true},
        {MN_OP_BAG, MN_VERB_BAG, false},       {MN_OP_BAG_GRAD, MN_VERB_BAG_GRAD, false},
        {MN_OP_REDUCE, MN_VERB_REDUCE, false}, {MN_OP_USAGE, MN_VERB_DESCRIBE, false},
        {MN_OP_PUSH, MN_VERB_PUSH, false},     {MN_OP_STORE, MN_VERB_STORE, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static const int64_t wrong[] = {-4, -1, 1, 4, INT64_MIN};
        for (size_t n = 0; n < sizeof wrong / sizeof *wrong; n++) {
            fake it;
            fake_call call;
            fake_joined(&it, 1, NULL);
            mn_table *table = fake_table(&it, &columns);
            uint64_t due = call_of(&it, &call, cases[i].kind, cases[i].state, table);
            uint64_t bytes = wrong[n] == INT64_MIN ? 0 : due + (uint64_t)wrong[n];
            fake_submit(&it, &call);
            mn_table_info info = {.table = 9, .spec = columns, .counters = COUNT};
            mn_exchange *exchange = fake_take(&it, cases[i].verb, 0);
            exchange->reply.step = 4;
            exchange->reply.tables = &info;
            exchange->reply.table_count = cases[i].verb == MN_VERB_DESCRIBE;
            if (bytes == due || bytes > sizeof answer) { /* an acknowledgement is never shorter */
                fake_answer(&it, exchange);
                assert_int_equal(call.operation.status, MN_OK);
            } else {
                fake_answer_bytes(&it, exchange, answer, bytes);
                ends(&call, "payload", bytes);
                assert_true(untouched());
            }
            fake_destroy(&it);
        }
    }
}

static void describe_tells_of_one_table(void **state)
{
    (void)state;
    for (uint32_t tables = 0; tables < 4; tables += 2) {
        fake it;
        fake_call call;
        mn_table_info infos[2] = {{.table = 9, .spec = columns}, {.table = 10, .spec = columns}};
        fake_joined(&it, 1, NULL);
        fake_call_init(&it, &call, MN_OP_TABLE_FIND, 1000);
        strcpy(call.operation.spec.name, "t");
        fake_submit(&it, &call);
        mn_exchange *exchange = fake_take(&it, MN_VERB_DESCRIBE, 0);
        exchange->reply.tables = infos;
        exchange->reply.table_count = tables;
        fake_answer(&it, exchange);
        ends(&call, "tables", tables);
        fake_destroy(&it);
    }
}

static void ids_are_given(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    fake_joined(&it, 1, NULL);
    fake_call_init(&it, &call, MN_OP_TABLE_OPEN, 1000);
    call.operation.spec = columns;
    fake_submit(&it, &call);
    fake_answer(&it, fake_take(&it, MN_VERB_CREATE_TABLE, 0));
    ends(&call, "table", 0);
    fake_destroy(&it);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(payloads_of_any_other_length),
        cmocka_unit_test(describe_tells_of_one_table),
        cmocka_unit_test(ids_are_given),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
