/* The client core against a scripted transport: every retry, deadline and cancel path of a data
 * call, keys that stay, windows, torn reads, sums in shard order. */
#include "fake.h"
#include "harness.h"

#include <string.h>

static const mn_table_spec columns = {
    .name = "t", .rows = 100, .dim = 128, .optimizer = {MN_OPTIMIZER_SGD, 0, 0, 0, MN_F32, false}};

static uint32_t indices[4] = {1, 2, 3, 4};
static float weights[4] = {1, 1, 1, 1}, answers[4 * 128], values[4 * 128];

static mn_table *world(fake *it, uint32_t shards)
{
    fake_joined(it, shards, NULL);
    return fake_table(it, &columns);
}

/* A bag of four queries with one read each. */
static void bag(fake *it, fake_call *call, mn_table *table, uint64_t step, uint64_t deadline_ms)
{
    fake_call_init(it, call, MN_OP_BAG, deadline_ms);
    call->operation.table = table;
    call->operation.step = step;
    call->operation.count = 4;
    call->operation.per_query = 1;
    call->operation.indices = mn_u32(indices);
    call->operation.weights = mn_f32(weights);
    call->operation.outputs = mn_f32(answers);
}

static void send_bag(fake *it, fake_call *call, mn_table *table, uint64_t step,
                     uint64_t deadline_ms)
{
    bag(it, call, table, step, deadline_ms);
    fake_submit(it, call);
}

static void push(fake *it, fake_call *call, mn_table *table, uint64_t step, uint32_t part)
{
    fake_call_init(it, call, MN_OP_PUSH, 1000);
    call->operation.table = table;
    call->operation.step = step;
    call->operation.part = part;
    call->operation.count = 4;
    call->operation.indices = mn_u32(indices);
    call->operation.values = mn_f32(values);
}

static void creation_survives_every_allocation(void **state)
{
    (void)state;
    mn_core_options options = fake_options();
    for (int64_t allowed = 0;; allowed++) {
        fake it;
        mn_error error = {0};
        fake_init(&it, 3);
        it.allocations_left = allowed;
        enum mn_status status = mn_core_create(&options, &it.env, &it.transport, &it.core, &error);
        if (status == MN_OK) {
            assert_true(allowed > 1); /* some did fail */
            fake_destroy(&it);
            return;
        }
        assert_int_equal(status, MN_NO_MEMORY);
        assert_null(it.core);
        assert_int_equal(it.alive, 0);
    }
}

static void options_are_checked(void **state)
{
    (void)state;
    struct {
        mn_core_options options;
        const char *field;
    } cases[6];
    for (int i = 0; i < 6; i++)
        cases[i].options = fake_options();
    cases[0].options.group[0] = ' ', cases[0].field = "group";
    cases[1].options.ranks = 0, cases[1].field = "ranks";
    cases[2].options.rank = 1, cases[2].field = "rank";
    cases[3].options.operations_max = 0, cases[3].field = "operations_max";
    cases[4].options.exchanges_max = 0, cases[4].field = "exchanges_max";
    cases[5].options.chunk_bytes = MN_CHUNK_BYTES + 1, cases[5].field = "chunk_bytes";
    for (int i = 0; i < 6; i++) {
        fake it;
        mn_error error = {0};
        fake_init(&it, 1);
        assert_int_equal(
            mn_core_create(&cases[i].options, &it.env, &it.transport, &it.core, &error),
            MN_INVALID);
        assert_string_equal(error.field, cases[i].field);
    }
}

/* Any allocation of a call may fail: it ends with NO_MEMORY, and nothing leaks. */
static void calls_survive_every_allocation(void **state)
{
    (void)state;
    mn_table_spec spec = columns;
    spec.split = MN_ROWS;
    for (int64_t allowed = 0; allowed < 4; allowed++) {
        fake it;
        fake_call call;
        fake_joined(&it, 2, NULL);
        mn_table *table = fake_table(&it, &spec);
        push(&it, &call, table, 5, 0); /* routes rows: two arrays */
        it.allocations_left = allowed;
        fake_submit(&it, &call);
        if (allowed < 2)
            fake_expect_end(&call, MN_NO_MEMORY, "count");
        it.allocations_left = -1;
        fake_answer_all(&it, MN_VERB_PUSH, 4);
        assert_int_equal(call.done, 1);
        fake_destroy(&it);
    }
}

static void a_retry_keeps_its_key(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    mn_table *table = world(&it, 1);
    push(&it, &call, table, 5, 2);
    fake_submit(&it, &call);
    uint8_t id[16];
    uint64_t waited = 0;
    for (int i = 0; i < 5; i++) {
        mn_exchange *exchange = fake_take(&it, MN_VERB_PUSH, 0);
        const mn_request *request = &exchange->request;
        if (i == 0)
            memcpy(id, request->context.request_id, sizeof id);
        assert_memory_equal(request->context.request_id, id, sizeof id);
        assert_true(request->position == 0 && request->part == 2 && request->count == 4);
        assert_int_equal(request->payload.bytes, sizeof indices + sizeof values);
        assert_true(request->context.remaining_ms < 1000 - waited);
        assert_true(request->context.remaining_ms > (1000 - waited) / 2);
        fake_refuse(&it, exchange, i % 2 ? MN_BUSY : MN_UNAVAILABLE, "shard");
        assert_int_equal(call.done, 0);
        uint64_t first_ms = 4u << i; /* half the back-off: never before it */
        fake_pass(&it, first_ms - 1);
        assert_int_equal(fake_open(&it, MN_VERB_PUSH), 0);
        fake_pass(&it, 2 * first_ms + 2); /* at most one and a half */
        waited += 3 * first_ms + 1;
    }
    fake_answer_all(&it, MN_VERB_PUSH, 4);
    fake_expect_end(&call, MN_OK, NULL);
    assert_int_equal(mn_core_counters(it.core).retries, 5);
    fake_destroy(&it);
}

/* The planted bug shows that the check above can fail. */
static void a_planted_retry_changes_its_key(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    mn_core_options options = fake_options();
    options.plants = MN_CORE_PLANT_NEW_KEY;
    fake_joined(&it, 1, &options);
    push(&it, &call, fake_table(&it, &columns), 5, 2);
    fake_submit(&it, &call);
    fake_refuse(&it, fake_take(&it, MN_VERB_PUSH, 0), MN_BUSY, "budget");
    fake_pass(&it, 20);
    assert_true(fake_take(&it, MN_VERB_PUSH, 0)->request.position != 0);
    fake_answer_all(&it, MN_VERB_PUSH, 4);
    fake_destroy(&it);
}

static void retries_end_with_the_deadline(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    mn_table *table = world(&it, 1);
    send_bag(&it, &call, table, 5, 100);
    for (int i = 0; i < 200 && !call.done; i++) {
        if (fake_open(&it, MN_VERB_BAG))
            fake_refuse(&it, fake_take(&it, MN_VERB_BAG, 0), MN_BUSY, "read_budget");
        fake_pass(&it, 1);
    }
    fake_expect_end(&call, MN_BUSY, "read_budget"); /* says more than that time ran out */
    assert_non_null(strstr(call.operation.error.message, "shard 0"));
    fake_destroy(&it);
}

static void silence_ends_with_the_deadline(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    mn_table *table = world(&it, 2);
    send_bag(&it, &call, table, 5, 100);
    fake_pass(&it, 99);
    assert_int_equal(call.done, 0);
    fake_pass(&it, 1);
    mn_exchange *exchange = fake_take(&it, MN_VERB_BAG, 1);
    assert_true(fake_cancelled(&it, exchange));
    assert_int_equal(call.done, 0); /* its exchanges still have its memory */
    fake_refuse(&it, fake_take(&it, MN_VERB_BAG, 0), MN_CANCELLED, "call");
    assert_int_equal(call.done, 0);
    fake_refuse(&it, exchange, MN_CANCELLED, "call");
    fake_expect_end(&call, MN_DEADLINE, "deadline");
    fake_destroy(&it);
}

static void a_shards_deadline_is_the_answer(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    mn_table *table = world(&it, 1);
    send_bag(&it, &call, table, 5, 1000);
    fake_refuse(&it, fake_take(&it, MN_VERB_BAG, 0), MN_DEADLINE, "step"); /* far too early */
    assert_int_equal(call.done, 0);
    fake_pass(&it, 950);
    fake_refuse(&it, fake_take(&it, MN_VERB_BAG, 0), MN_DEADLINE, "step");
    fake_expect_end(&call, MN_DEADLINE, "step");
    fake_destroy(&it);
}

static void epochs(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    mn_table *table = world(&it, 1);
    send_bag(&it, &call, table, 5, 1000);
    mn_exchange *exchange = fake_take(&it, MN_VERB_BAG, 0);
    assert_int_equal(exchange->request.context.map_epoch, FAKE_EPOCH);
    fake_refuse(&it, exchange, MN_EPOCH, "map_epoch"); /* 0: it has not loaded yet */
    assert_int_equal(call.done, 0);
    fake_pass(&it, 20);
    exchange = fake_take(&it, MN_VERB_BAG, 0);
    exchange->reply.map_epoch =
        2 * FAKE_EPOCH; /* restored under this client: only Join may go on */
    fake_refuse(&it, exchange, MN_EPOCH, "map_epoch");
    fake_expect_end(&call, MN_EPOCH, "map_epoch");
    fake_destroy(&it);
}

/* What is not of a restore will not be loaded: another life of the group stands there. */
static void an_epoch_of_no_restore(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    fake_joined(&it, 1, NULL);
    fake_call_init(&it, &call, MN_OP_JOIN, 1000);
    fake_submit(&it, &call);
    mn_exchange *exchange = fake_take(&it, MN_VERB_JOIN, 0);
    exchange->reply.incarnation = 4;
    exchange->reply.map_epoch = 20;
    fake_answer(&it, exchange);
    fake_answer(&it, fake_take(&it, MN_VERB_JOIN, 0)); /* FENCE */
    exchange = fake_take(&it, MN_VERB_JOIN, 0);        /* REPLAY */
    exchange->reply.map_epoch = 10;
    fake_refuse(&it, exchange, MN_EPOCH, "map_epoch");
    fake_expect_end(&call, MN_EPOCH, "map_epoch");
    fake_destroy(&it);
}

static void a_refusal_ends_the_call(void **state)
{
    (void)state;
    static const enum mn_status statuses[] = {MN_LOST,     MN_FENCED,  MN_INVALID, MN_STEP,
                                              MN_CONFLICT, MN_CORRUPT, MN_DENIED,  MN_UNSUPPORTED};
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++) {
        fake it;
        fake_call call;
        mn_table *table = world(&it, 2);
        send_bag(&it, &call, table, 5, 1000);
        fake_refuse(&it, fake_take(&it, MN_VERB_BAG, 1), statuses[i], "some");
        assert_int_equal(call.done, 0);
        mn_exchange *other = fake_take(&it, MN_VERB_BAG, 0);
        assert_true(fake_cancelled(&it, other));
        fake_answer_bytes(&it, other, answers, sizeof answers / 2); /* answered all the same */
        fake_expect_end(&call, statuses[i], "some");
        assert_non_null(strstr(call.operation.error.message, "shard 1"));
        fake_destroy(&it);
    }
}

static void a_call_can_be_cancelled(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    mn_table *table = world(&it, 1);
    send_bag(&it, &call, table, 5, 1000);
    mn_core_cancel(it.core, &call.operation);
    assert_int_equal(call.done, 0);
    fake_refuse(&it, fake_take(&it, MN_VERB_BAG, 0), MN_CANCELLED, "call");
    fake_expect_end(&call, MN_CANCELLED, "call");
    mn_core_cancel(it.core, &call.operation); /* ended: ignored */

    send_bag(&it, &call, table, 5, 1000);
    fake_refuse(&it, fake_take(&it, MN_VERB_BAG, 0), MN_BUSY, "read_budget");
    mn_core_cancel(it.core, &call.operation); /* between two tries: nothing to wait for */
    fake_expect_end(&call, MN_CANCELLED, "call");
    fake_pass(&it, 100);
    assert_int_equal(fake_open(&it, MN_VERB_BAG), 0);
    fake_destroy(&it);
}

static void a_short_answer_is_corrupt(void **state)
{
    (void)state;
    fake it;
    fake_call call;
    mn_table *table = world(&it, 1);
    send_bag(&it, &call, table, 5, 1000);
    fake_answer_bytes(&it, fake_take(&it, MN_VERB_BAG, 0), answers, sizeof answers - 4);
    fake_expect_end(&call, MN_CORRUPT, "payload");
    fake_destroy(&it);
}

/* Two slots: calls of a later step may take one of them, the oldest open step the other. */
static void later_steps_leave_a_place(void **state)
{
    (void)state;
    fake it;
    fake_call late[3], urgent, newest;
    mn_table *table = world(&it, 1);
    for (int i = 0; i < 3; i++) {
        send_bag(&it, &late[i], table, 6, 1000);
    }
    assert_int_equal(fake_open(&it, MN_VERB_BAG), 1);
    send_bag(&it, &urgent, table, 5, 1000);
    assert_int_equal(fake_open(&it, MN_VERB_BAG), 2);
    send_bag(&it, &newest, table, MN_LATEST, 1000);
    assert_int_equal(fake_open(&it, MN_VERB_BAG), 2); /* full */
    for (uint32_t i = 0; i < it.started_count; i++) {
        mn_exchange *exchange = it.started[i].exchange;
        if (exchange && exchange->request.context.step == 5)
            fake_answer_bytes(&it, exchange, answers, sizeof answers);
    }
    fake_expect_end(&urgent, MN_OK, NULL);
    assert_int_equal(fake_open(&it, MN_VERB_BAG), 2); /* LATEST took the place, no later one */
    assert_int_equal(it.started[it.started_count - 1].exchange->request.read, MN_READ_LATEST);
    for (uint32_t i = 0; i < it.started_count; i++)
        if (it.started[i].exchange)
            fake_answer_bytes(&it, it.started[i].exchange, answers, sizeof answers);
    assert_int_equal(late[2].done + newest.done, 2);
    fake_destroy(&it);
}

static void no_more_than_operations_max(void **state)
{
    (void)state;
    fake it;
    fake_call calls[9];
    mn_table *table = world(&it, 1);
    for (int i = 0; i < 9; i++)
        bag(&it, &calls[i], table, 6, 10);
    for (int i = 0; i < 8; i++)
        fake_submit(&it, &calls[i]);
    assert_int_equal(mn_core_submit(it.core, &calls[8].operation), MN_BUSY);
    fake_pass(&it, 10);
    fake_refuse(&it, fake_take(&it, MN_VERB_BAG, 0), MN_CANCELLED, "call");
    for (int i = 0; i < 8; i++)
        fake_expect_end(&calls[i], MN_DEADLINE, "deadline"); /* also those never sent */
    fake_destroy(&it);
}

static void torn_reads_are_repeated(void **state)
{
    (void)state;
    for (int planted = 0; planted < 2; planted++) {
        fake it;
        fake_call call;
        mn_core_options options = fake_options();
        options.plants = planted ? MN_CORE_PLANT_NO_TORN : 0;
        fake_joined(&it, 2, &options);
        mn_table *table = fake_table(&it, &columns);
        send_bag(&it, &call, table, MN_LATEST, 500);
        for (int i = 0; i < 500 && !call.done; i++) {
            for (uint32_t shard = 0; fake_open(&it, MN_VERB_BAG) && shard < 2; shard++) {
                mn_exchange *exchange = fake_take(&it, MN_VERB_BAG, shard);
                exchange->reply.step = 4 + shard;
                fake_answer_bytes(&it, exchange, answers, sizeof answers / 2);
            }
            if (!planted)
                fake_pass(&it, 1);
        }
        if (planted)
            fake_expect_end(&call, MN_OK, NULL);
        else
            fake_expect_end(&call, MN_TORN, "step");
        send_bag(&it, &call, table, MN_LATEST, 500);
        for (uint32_t shard = 0; shard < 2; shard++) {
            mn_exchange *exchange = fake_take(&it, MN_VERB_BAG, shard);
            exchange->reply.step = 7;
            fake_answer_bytes(&it, exchange, answers, sizeof answers / 2);
        }
        fake_expect_end(&call, MN_OK, NULL);
        assert_int_equal(call.operation.answered_step, 7);
        fake_destroy(&it);
    }
}

/* Whatever order the answers come in, tiles add from +0 in their own order: f32 sums that another
 * order would round differently. */
static void sums_go_in_shard_order(void **state)
{
    static const uint32_t orders[][3] = {{0, 1, 2}, {2, 1, 0}, {1, 2, 0}, {2, 0, 1}};
    (void)state;
    mn_table_spec spec = columns;
    spec.dim = 192; /* three tiles */
    for (size_t order = 0; order < sizeof orders / sizeof *orders; order++) {
        fake it;
        fake_call call;
        fake_joined(&it, 3, NULL);
        static float gradients[4 * 192];
        float dots[3][4] = {{1e8f, -0.0f, 1, 1}, {1, -0.0f, 2, 1e8f}, {-1e8f, -0.0f, 3, -1e8f}};
        float sums[4] = {7, 7, 7, 7}, due[4] = {0, 0, 6, 0};
        bag(&it, &call, fake_table(&it, &spec), 5, 1000);
        call.operation.kind = MN_OP_BAG_GRAD;
        call.operation.values = mn_f32(gradients);
        call.operation.outputs = mn_f32(sums);
        fake_submit(&it, &call);
        for (int i = 0; i < 3; i++) {
            uint32_t shard = orders[order][i];
            fake_answer_bytes(&it, fake_take(&it, MN_VERB_BAG_GRAD, shard), dots[shard],
                              sizeof dots[shard]);
        }
        fake_expect_end(&call, MN_OK, NULL);
        assert_memory_equal(sums, due, sizeof sums); /* +0, also where all tiles say -0 */
        fake_destroy(&it);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(creation_survives_every_allocation),
        cmocka_unit_test(options_are_checked),
        cmocka_unit_test(calls_survive_every_allocation),
        cmocka_unit_test(a_retry_keeps_its_key),
        cmocka_unit_test(a_planted_retry_changes_its_key),
        cmocka_unit_test(retries_end_with_the_deadline),
        cmocka_unit_test(silence_ends_with_the_deadline),
        cmocka_unit_test(a_shards_deadline_is_the_answer),
        cmocka_unit_test(epochs),
        cmocka_unit_test(an_epoch_of_no_restore),
        cmocka_unit_test(a_refusal_ends_the_call),
        cmocka_unit_test(a_call_can_be_cancelled),
        cmocka_unit_test(a_short_answer_is_corrupt),
        cmocka_unit_test(later_steps_leave_a_place),
        cmocka_unit_test(no_more_than_operations_max),
        cmocka_unit_test(torn_reads_are_repeated),
        cmocka_unit_test(sums_go_in_shard_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
