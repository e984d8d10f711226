/* A world for the client core alone. */
#include "fake.h"

#include "harness.h"

#include <stdlib.h>
#include <string.h>

static uint64_t fake_now(void *context) { return ((fake *)context)->now_ns; }

static uint64_t fake_random(void *context) { return ++((fake *)context)->randoms; }

static void *fake_allocate(void *context, size_t bytes)
{
    fake *it = context;
    if (it->allocations_left == 0)
        return NULL;
    it->allocations_left--;
    it->alive++;
    return calloc(1, bytes);
}

static void fake_release(void *context, void *memory, size_t bytes)
{
    (void)bytes;
    if (!memory)
        return;
    ((fake *)context)->alive--;
    free(memory);
}

static void *fake_reserve(void *context, uint64_t bytes) { return fake_allocate(context, bytes); }

static void fake_unreserve(void *context, void *memory, uint64_t bytes)
{
    fake_release(context, memory, bytes);
}

static void fake_start_exchange(mn_transport *transport, uint32_t shard, mn_exchange *exchange)
{
    fake *it = (fake *)transport;
    assert_true(shard < transport->shards);
    assert_true(it->started_count < FAKE_STARTED_MAX);
    it->started[it->started_count++] = (fake_start){shard, exchange, false};
}

static void fake_cancel(mn_transport *transport, mn_exchange *exchange)
{
    fake *it = (fake *)transport;
    for (uint32_t i = 0; i < it->started_count; i++)
        if (it->started[i].exchange == exchange)
            it->started[i].cancelled = true;
}

void fake_init(fake *it, uint32_t shards)
{
    memset(it, 0, sizeof *it);
    it->transport =
        (mn_transport){.shards = shards, .start = fake_start_exchange, .cancel = fake_cancel};
    it->env = (mn_env){.context = it,
                       .now_ns = fake_now,
                       .random = fake_random,
                       .allocate = fake_allocate,
                       .release = fake_release,
                       .reserve = fake_reserve,
                       .unreserve = fake_unreserve};
    it->now_ns = 1000000000;
    it->allocations_left = -1;
}

mn_core_options fake_options(void)
{
    mn_core_options options = {
        .group = "g", .ranks = 1, .operations_max = 8, .exchanges_max = 2, .back_off_ms = 8};
    return options;
}

void fake_create(fake *it, const mn_core_options *options)
{
    mn_error error;
    assert_int_equal(mn_core_create(options, &it->env, &it->transport, &it->core, &error), MN_OK);
}

void fake_destroy(fake *it)
{
    for (uint32_t i = 0; i < it->started_count; i++)
        assert_null(it->started[i].exchange);
    mn_core_destroy(it->core);
    assert_int_equal(it->alive, 0);
}

mn_exchange *fake_take(fake *it, enum mn_verb verb, uint32_t shard)
{
    mn_exchange *found = NULL;
    for (uint32_t i = 0; i < it->started_count; i++) {
        fake_start *start = &it->started[i];
        if (start->exchange && start->shard == shard && start->exchange->request.verb == verb) {
            assert_null(found);
            found = start->exchange;
        }
    }
    if (!found)
        fail_msg("no %s at shard %u", mn_verb_name(verb), shard);
    return found;
}

bool fake_cancelled(const fake *it, const mn_exchange *exchange)
{
    for (uint32_t i = 0; i < it->started_count; i++)
        if (it->started[i].exchange == exchange)
            return it->started[i].cancelled;
    return false;
}

uint32_t fake_open(const fake *it, enum mn_verb verb)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < it->started_count; i++)
        count += it->started[i].exchange && it->started[i].exchange->request.verb == verb;
    return count;
}

void fake_answer(fake *it, mn_exchange *exchange)
{
    for (uint32_t i = 0; i < it->started_count; i++)
        if (it->started[i].exchange == exchange)
            it->started[i].exchange = NULL;
    exchange->done(exchange);
}

void fake_answer_bytes(fake *it, mn_exchange *exchange, const void *bytes, uint64_t count)
{
    mn_span span = {bytes, count};
    exchange->reply.payload = (mn_payload){&span, 1, count};
    fake_answer(it, exchange);
}

void fake_refuse(fake *it, mn_exchange *exchange, enum mn_status status, const char *field)
{
    exchange->reply.status = mn_fail(&exchange->reply.error, status, field, "as the test says");
    fake_answer(it, exchange);
}

void fake_answer_all(fake *it, enum mn_verb verb, uint64_t step)
{
    for (uint32_t i = 0, count = it->started_count; i < count; i++) {
        mn_exchange *exchange = it->started[i].exchange;
        if (!exchange || exchange->request.verb != verb)
            continue;
        exchange->reply.step = step;
        exchange->reply.map_epoch = FAKE_EPOCH;
        fake_answer(it, exchange);
    }
}

void fake_pass(fake *it, uint64_t ms)
{
    it->now_ns += ms * 1000000;
    (void)mn_core_tick(it->core, it->now_ns);
}

static void count_done(mn_operation *operation) { ((fake_call *)operation->owner)->done++; }

void fake_call_init(const fake *it, fake_call *call, enum mn_operation_kind kind,
                    uint64_t deadline_ms)
{
    memset(call, 0, sizeof *call);
    call->operation.kind = kind;
    call->operation.deadline_ns = it->now_ns + deadline_ms * 1000000;
    call->operation.done = count_done;
    call->operation.owner = call;
}

void fake_submit(fake *it, fake_call *call)
{
    assert_int_equal(mn_core_submit(it->core, &call->operation), MN_OK);
    assert_int_equal(call->done, 0); /* never inside submit */
    if (mn_core_due(it->core) == 0)
        (void)mn_core_tick(it->core, it->now_ns);
}

void fake_expect_end(const fake_call *call, enum mn_status status, const char *field)
{
    assert_int_equal(call->done, 1);
    assert_int_equal(call->operation.status, status);
    if (field)
        assert_string_equal(call->operation.error.field, field);
}

void fake_join(fake *it)
{
    fake_call call;
    fake_call_init(it, &call, MN_OP_JOIN, 1000);
    fake_submit(it, &call);
    mn_exchange *assign = fake_take(it, MN_VERB_JOIN, 0);
    assert_int_equal(assign->request.join, MN_JOIN_ASSIGN);
    assign->reply.incarnation = 3;
    assign->reply.map_epoch = FAKE_EPOCH;
    assign->reply.step = 4;
    fake_answer(it, assign);
    fake_answer_all(it, MN_VERB_JOIN, 4); /* FENCE */
    fake_answer_all(it, MN_VERB_JOIN, 4); /* REPLAY */
    fake_expect_end(&call, MN_OK, NULL);
    assert_int_equal(mn_core_step(it->core), 4);
    assert_int_equal(mn_core_incarnation(it->core), 3);
}

void fake_joined(fake *it, uint32_t shards, const mn_core_options *options)
{
    const mn_core_options defaults = fake_options();
    fake_init(it, shards);
    fake_create(it, options ? options : &defaults);
    fake_join(it);
}

mn_table *fake_table(fake *it, const mn_table_spec *spec)
{
    fake_call call;
    fake_call_init(it, &call, MN_OP_TABLE_OPEN, 1000);
    call.operation.spec = *spec;
    fake_submit(it, &call);
    for (uint32_t shard = 0; shard < it->transport.shards; shard++) {
        mn_exchange *create = fake_take(it, MN_VERB_CREATE_TABLE, shard);
        assert_int_equal(create->request.table, shard ? 9 : 0);
        create->reply.table = 9;
        fake_answer(it, create);
        if (shard == 0)
            continue;
        if (shard + 1 < it->transport.shards)
            assert_int_equal(call.done, 0);
    }
    fake_expect_end(&call, MN_OK, NULL);
    return call.operation.table;
}
