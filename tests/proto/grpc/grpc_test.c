/* Server and client adapters together: replies, errors, deadlines, cancellation, shutdown. */
#include "rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <unistd.h>

static enum mn_status ask(rig *server, mn_transport *client, enum mn_verb verb, uint64_t timeout_ms,
                          rig_call *call)
{
    rig_begin(call, client, &server->env, verb, 0, NULL, 0, timeout_ms);
    return rig_wait(call);
}

static void test_answers(void **state)
{
    (void)state;
    rig server;
    rig_call call;
    rig_start(&server, &(rig_options){0});
    mn_transport *client = rig_client(&server, NULL);
    assert_int_equal(ask(&server, client, MN_VERB_STATUS, 5000, &call), MN_OK);
    assert_int_equal(call.reply.step, 42);
    assert_true(call.exchange.bytes_sent > 5 && call.exchange.bytes_received > 5);
    rig_end(&call);
    mn_context context;
    assert_int_equal(rig_last(&server, &context), MN_VERB_STATUS);
    assert_string_equal(context.group, "g");

    static const uint8_t bytes[] = {1, 2, 3, 250};
    rig_begin(&call, client, &server.env, MN_VERB_PUSH, 1, bytes, sizeof bytes, 5000);
    assert_int_equal(rig_wait(&call), MN_OK);
    assert_int_equal(call.reply.step, 256);
    rig_end(&call);
    client->destroy(client);
    rig_stop(&server);
}

/* Every verb finds its method, and its reply its decoder. */
static void test_every_verb(void **state)
{
    (void)state;
    rig server;
    rig_call call;
    rig_start(&server, &(rig_options){0});
    mn_transport *client = rig_client(&server, NULL);
    for (int verb = 0; verb < MN_VERB_COUNT; verb++) {
        enum mn_status wanted = verb == MN_VERB_MOVE   ? MN_UNSUPPORTED
                                : verb == MN_VERB_SEAL ? MN_DEADLINE
                                                       : MN_OK;
        uint64_t timeout_ms = verb == MN_VERB_SEAL ? 100 : 5000;
        assert_int_equal(ask(&server, client, (enum mn_verb)verb, timeout_ms, &call), wanted);
        assert_int_equal(rig_last(&server, NULL), verb);
        rig_end(&call);
    }
    client->destroy(client);
    rig_stop(&server);
}

static void test_large_both_ways(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {1, 22, 4096, 65537, 1 << 20, 3 << 20, (7 << 20) + 13};
    rig server;
    rig_call call;
    rig_start(&server, &(rig_options){0});
    mn_transport *client = rig_client(&server, NULL);
    uint8_t *bytes = malloc(8 << 20);
    for (uint64_t i = 0; i < 8 << 20; i++)
        bytes[i] = rig_byte(i);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        rig_begin(&call, client, &server.env, MN_VERB_FETCH, sizes[i], NULL, 0, 20000);
        assert_int_equal(rig_wait(&call), MN_OK);
        assert_int_equal(call.payload_bytes, sizes[i]);
        assert_memory_equal(call.payload, bytes, sizes[i]);
        rig_end(&call);
        rig_begin(&call, client, &server.env, MN_VERB_BAG, 1, bytes + 1, sizes[i] - 1, 20000);
        assert_int_equal(rig_wait(&call), MN_OK);
        assert_int_equal(call.payload_bytes, sizes[i] - 1);
        if (sizes[i] > 1)
            assert_memory_equal(call.payload, bytes + 1, sizes[i] - 1);
        rig_end(&call);
    }
    free(bytes);
    client->destroy(client);
    mn_grpc_server_stats stats;
    mn_grpc_server_stats_get(server.server, &stats);
    assert_int_equal(stats.calls, 14);
    assert_int_equal(stats.failures, 0);
    assert_int_equal(stats.held, 0);
    assert_true(stats.bytes_sent > 20 << 20 && stats.bytes_received > 10 << 20);
    rig_stop(&server);
}

static void test_typed_errors(void **state)
{
    (void)state;
    rig server;
    rig_call call;
    rig_start(&server, &(rig_options){0});
    mn_transport *client = rig_client(&server, NULL);
    assert_int_equal(ask(&server, client, MN_VERB_MOVE, 5000, &call), MN_UNSUPPORTED);
    assert_int_equal(call.reply.error.status, MN_UNSUPPORTED);
    assert_string_equal(call.reply.error.field, "verb");
    assert_string_equal(call.reply.error.message, "tiles do not move in this version");
    assert_int_equal(call.reply.step, 42);
    assert_int_equal(call.reply.map_epoch, 77);
    rig_end(&call);
    client->destroy(client);
    rig_stop(&server);
}

/* Message limits, on each side and typed: what the sender refuses, what the reply cannot hold, and
 * what the receiver refuses. */
static void test_message_limits(void **state)
{
    (void)state;
    rig server;
    rig_call call;
    uint8_t *bytes = calloc(1, 9 << 20);
    rig_start(&server, &(rig_options){.message_bytes_max = 1 << 20});
    mn_transport *client = rig_client(&server, NULL);
    rig_begin(&call, client, &server.env, MN_VERB_PUSH, 1, bytes, 9 << 20, 5000);
    assert_int_equal(rig_wait(&call), MN_INVALID);
    assert_string_equal(call.reply.error.field, "payload");
    rig_end(&call);
    rig_begin(&call, client, &server.env, MN_VERB_PUSH, 1, bytes, 2 << 20, 5000);
    assert_int_equal(rig_wait(&call), MN_INVALID);
    assert_non_null(strstr(call.reply.error.message, "larger than max"));
    rig_end(&call);
    rig_begin(&call, client, &server.env, MN_VERB_FETCH, 8 << 20, NULL, 0, 5000);
    assert_int_equal(rig_wait(&call), MN_INVALID);
    assert_string_equal(call.reply.error.field, "count");
    rig_end(&call);
    rig_begin(&call, client, &server.env, MN_VERB_PUSH, 1, bytes, 1 << 19, 5000);
    assert_int_equal(rig_wait(&call), MN_OK);
    rig_end(&call);
    free(bytes);
    client->destroy(client);
    rig_stop(&server);
}

/* Neither early nor late; and the core sees no more time than the caller has. */
static void test_deadlines(void **state)
{
    (void)state;
    static const uint64_t timeouts_ms[] = {50, 300, 2000};
    rig server;
    rig_call call;
    rig_start(&server, &(rig_options){0});
    mn_transport *client = rig_client(&server, NULL);
    for (size_t i = 0; i < sizeof timeouts_ms / sizeof timeouts_ms[0]; i++) {
        uint64_t asked_ns = timeouts_ms[i] * 1000000;
        assert_int_equal(ask(&server, client, MN_VERB_SEAL, timeouts_ms[i], &call), MN_DEADLINE);
        assert_true(call.took_ns >= asked_ns / 100 * 95);
        assert_true(call.took_ns <= asked_ns + 500000000);
        rig_end(&call);
        assert_int_equal(ask(&server, client, MN_VERB_REDUCE, timeouts_ms[i], &call), MN_OK);
        assert_in_range(call.reply.step, timeouts_ms[i] / 2, timeouts_ms[i]);
        rig_end(&call);
    }
    client->destroy(client);
    rig_stop(&server);
}

static void test_cancel_reaches_the_core(void **state)
{
    (void)state;
    rig server;
    rig_call call;
    rig_start(&server, &(rig_options){0});
    mn_transport *client = rig_client(&server, NULL);
    rig_begin(&call, client, &server.env, MN_VERB_SEAL, 0, NULL, 0, 30000);
    assert_int_equal(rig_wait_parked(&server, 1), 1);
    client->cancel(client, &call.exchange);
    assert_int_equal(rig_wait(&call), MN_CANCELLED);
    assert_true(call.took_ns < 5000000000);
    assert_int_equal(rig_wait_abandoned(&server, 1), 1);
    rig_end(&call);
    client->destroy(client);
    rig_stop(&server);
}

/* A client that goes away takes its parked calls with it. The raw socket below is no HTTP/2: the
 * server must survive that, too. */
static void test_disconnect(void **state)
{
    (void)state;
    rig server;
    rig_call call;
    rig_start(&server, &(rig_options){0});
    int raw = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)server.port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_int_equal(connect(raw, (struct sockaddr *)&to, sizeof to), 0);
    assert_int_equal(write(raw, "GET / HTTP/1.0\r\n\r\n", 18), 18);
    mn_transport *client = rig_client(&server, NULL);
    rig_begin(&call, client, &server.env, MN_VERB_SEAL, 0, NULL, 0, 300);
    assert_int_equal(rig_wait_parked(&server, 1), 1);
    close(raw);
    assert_int_equal(rig_wait(&call), MN_DEADLINE);
    rig_end(&call);
    client->destroy(client);
    rig_stop(&server);
}

static void test_unreachable_then_back(void **state)
{
    (void)state;
    rig server;
    rig_call call;
    rig_start(&server, &(rig_options){0});
    mn_transport *client = rig_client(&server, NULL);
    assert_int_equal(ask(&server, client, MN_VERB_STATUS, 5000, &call), MN_OK);
    rig_end(&call);
    int port = server.port;
    rig_stop(&server);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(ask(&server, client, MN_VERB_STATUS, 5000, &call), MN_UNAVAILABLE);
        assert_true(call.took_ns < 3000000000);
        assert_true(mn_status_retryable(call.reply.status) && call.reply.error.message[0]);
        rig_end(&call);
    }
    rig_start(&server, &(rig_options){.port = port});
    uint64_t began = server.env.now_ns(server.env.context);
    enum mn_status status;
    do {
        status = ask(&server, client, MN_VERB_STATUS, 5000, &call);
        rig_end(&call);
    } while (status == MN_UNAVAILABLE && server.env.now_ns(server.env.context) - began < 5e9);
    assert_int_equal(status, MN_OK);
    client->destroy(client);
    rig_stop(&server);
}

static void test_many_at_once(void **state)
{
    (void)state;
    enum { CALLS = 500 };
    rig server;
    rig_call *calls = calloc(CALLS, sizeof *calls);
    uint8_t *bytes = malloc(CALLS * 100);
    for (uint64_t i = 0; i < CALLS * 100; i++)
        bytes[i] = rig_byte(i);
    rig_start(&server, &(rig_options){0});
    mn_transport *client = rig_client(&server, NULL);
    for (int i = 0; i < CALLS; i++)
        rig_begin(&calls[i], client, &server.env, i % 2 ? MN_VERB_BAG : MN_VERB_SEAL, 0,
                  i % 2 ? bytes + i : NULL, i % 2 ? 1 + (uint64_t)i * 99 : 0, 30000);
    rig_wait_parked(&server, CALLS / 2);
    rig_call commit;
    assert_int_equal(ask(&server, client, MN_VERB_COMMIT, 30000, &commit), MN_OK);
    rig_end(&commit);
    for (int i = 0; i < CALLS; i++) {
        assert_int_equal(rig_wait(&calls[i]), MN_OK);
        if (i % 2) {
            assert_int_equal(calls[i].payload_bytes, 1 + i * 99);
            assert_memory_equal(calls[i].payload, bytes + i, calls[i].payload_bytes);
        }
        rig_end(&calls[i]);
    }
    free(calls);
    free(bytes);
    client->destroy(client);
    rig_stop(&server);
}

/* Calls held, and bytes of replies not yet sent, are bounded; what is over gets BUSY at once. */
static void test_bounds(void **state)
{
    (void)state;
    rig server;
    rig_call parked[4], call;
    rig_start(&server, &(rig_options){.calls_max = 4});
    mn_transport *client = rig_client(&server, NULL);
    mn_transport *other = rig_client(&server, NULL); /* streams are bounded per connection */
    for (int i = 0; i < 4; i++)
        rig_begin(&parked[i], client, &server.env, MN_VERB_SEAL, 0, NULL, 0, 30000);
    assert_int_equal(rig_wait_parked(&server, 4), 4);
    assert_int_equal(ask(&server, other, MN_VERB_STATUS, 5000, &call), MN_BUSY);
    assert_string_equal(call.reply.error.field, "calls_max");
    rig_end(&call);
    /* Each kind has places of its own: what is parked may wait for one of the others. */
    assert_int_equal(ask(&server, other, MN_VERB_FETCH, 5000, &call), MN_OK);
    rig_end(&call);
    assert_int_equal(ask(&server, client, MN_VERB_BAG_GRAD, 5000, &call), MN_OK);
    rig_end(&call);
    client->cancel(client, &parked[0].exchange);
    assert_int_equal(rig_wait(&parked[0]), MN_CANCELLED);
    rig_wait_abandoned(&server, 1);
    assert_int_equal(ask(&server, other, MN_VERB_COMMIT, 5000, &call), MN_OK);
    rig_end(&call);
    rig_end(&parked[0]);
    for (int i = 1; i < 4; i++) {
        assert_int_equal(rig_wait(&parked[i]), MN_OK);
        rig_end(&parked[i]);
    }
    client->destroy(client);
    other->destroy(other);
    rig_stop(&server);
}

static void test_second_server_is_refused(void **state)
{
    (void)state;
    rig server;
    rig_start(&server, &(rig_options){0});
    mn_grpc_server_options options = {.address = server.address, .env = &server.env};
    mn_grpc_server *second = NULL;
    int port = 0;
    mn_error error = {0};
    assert_int_equal(mn_grpc_server_create(&options, &second, &port, &error), MN_INVALID);
    assert_string_equal(error.field, "core");
    options.handle = (void (*)(void *, mn_call *))abort;
    options.tick = (uint64_t(*)(void *, uint64_t))abort;
    options.abandon = options.handle;
    assert_int_equal(mn_grpc_server_create(&options, &second, &port, &error), MN_UNAVAILABLE);
    assert_string_equal(error.field, "address");
    assert_null(second);
    options.reply_bytes_max = 4096;
    assert_int_equal(mn_grpc_server_create(&options, &second, &port, &error), MN_INVALID);
    assert_string_equal(error.field, "reply_bytes_max");
    options.reply_bytes_max = 0;
    options.message_bytes_max = UINT32_C(1) << 31;
    assert_int_equal(mn_grpc_server_create(&options, &second, &port, &error), MN_INVALID);
    assert_string_equal(error.field, "message_bytes_max");
    options.message_bytes_max = 0;
    options.calls_max = UINT32_C(1) << 30;
    assert_int_equal(mn_grpc_server_create(&options, &second, &port, &error), MN_INVALID);
    assert_string_equal(error.field, "calls_max");
    assert_non_null(strstr(error.message, "1073741824"));
    rig_stop(&server);
}

static void test_stop_with_calls_in_flight(void **state)
{
    (void)state;
    rig server;
    rig_call calls[5];
    rig_start(&server, &(rig_options){0});
    mn_transport *client = rig_client(&server, NULL);
    for (int i = 0; i < 5; i++)
        rig_begin(&calls[i], client, &server.env, MN_VERB_SEAL, 0, NULL, 0, 30000);
    rig_wait_parked(&server, 5);
    uint64_t began = server.env.now_ns(server.env.context);
    rig_stop(&server);
    assert_true(server.env.now_ns(server.env.context) - began < 5000000000);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(rig_wait(&calls[i]), MN_UNAVAILABLE);
        assert_string_equal(calls[i].reply.error.field, "shard");
        assert_non_null(strstr(calls[i].reply.error.message, "shutting down"));
        rig_end(&calls[i]);
    }
    client->destroy(client);
}

static bool admit_token(void *context, const char *peer, const char *authorization,
                        const mn_request *request, mn_error *error)
{
    (void)context;
    assert_non_null(strstr(peer, "127.0.0.1"));
    assert_int_equal(request->context.step, 42);
    if (!strcmp(authorization, "Bearer right"))
        return true;
    (void)mn_fail(error, MN_DENIED, "authorization", "this token does not open the shard");
    return false;
}

static void test_admission(void **state)
{
    (void)state;
    static const char *const tokens[] = {"Bearer right", "Bearer wrong", NULL};
    rig server;
    rig_call call;
    rig_start(&server, &(rig_options){.admit = admit_token});
    for (int i = 0; i < 3; i++) {
        mn_transport *client = rig_client(&server, tokens[i]);
        enum mn_status status = ask(&server, client, MN_VERB_STATUS, 5000, &call);
        assert_int_equal(status, i ? MN_DENIED : MN_OK);
        assert_string_equal(call.reply.error.field, i ? "authorization" : "");
        rig_end(&call);
        client->destroy(client);
    }
    rig_stop(&server);
}

static const char trace[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/* What a client is given arrives with each of its calls, and none without. */
static void test_trace(void **state)
{
    (void)state;
    rig server;
    rig_call call;
    rig_start(&server, &(rig_options){0});
    const char *addresses[] = {server.address};
    mn_grpc_client_options options = {.addresses = addresses, .shards = 1, .env = &server.env};
    const char *const given[] = {trace, NULL};
    for (int i = 0; i < 2; i++) {
        mn_transport *client;
        mn_error error;
        options.authorization = i ? NULL : "Bearer beside";
        options.traceparent = given[i];
        assert_int_equal(mn_grpc_client_create(&options, &client, &error), MN_OK);
        for (int times = 0; times < 2; times++) {
            assert_int_equal(ask(&server, client, MN_VERB_STATUS, 5000, &call), MN_OK);
            rig_end(&call);
            pthread_mutex_lock(&server.lock);
            assert_string_equal(server.last_trace, given[i] ? given[i] : "");
            pthread_mutex_unlock(&server.lock);
        }
        client->destroy(client);
    }
    rig_stop(&server);
}

static void test_traces_refused(void **state)
{
    (void)state;
    static const struct {
        size_t at;
        char put;
    } wrong[] = {{0, 'F'}, {2, '_'}, {10, 'g'}, {35, '0'}, {54, '\0'}, {36, '-'}, {53, 'A'}};
    mn_error error;
    assert_int_equal(mn_traceparent_check("traceparent", trace, &error), MN_OK);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char text[MN_TRACEPARENT_BYTES];
        memcpy(text, trace, sizeof text);
        text[wrong[i].at] = wrong[i].put;
        assert_int_equal(mn_traceparent_check("traceparent", text, &error), MN_INVALID);
        assert_string_equal(error.field, "traceparent");
        assert_non_null(strstr(error.message, text));
    }
    static const char *const bad[] = {"", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                                      "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
                                      "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
                                      "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-011"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(mn_traceparent_check("traceparent", bad[i], &error), MN_INVALID);
}

static void test_client_options(void **state)
{
    (void)state;
    static const char *const bad[] = {"nowhere"};
    mn_env env;
    mn_env_posix(&env, NULL, 3);
    mn_transport *transport = NULL;
    mn_error error = {0};
    mn_grpc_client_options options = {.addresses = bad, .shards = 1, .env = &env};
    assert_int_equal(mn_grpc_client_create(&options, &transport, &error), MN_INVALID);
    assert_string_equal(error.field, "address");
    options.shards = 0;
    assert_int_equal(mn_grpc_client_create(&options, &transport, &error), MN_INVALID);
    assert_string_equal(error.field, "shards");
    assert_null(transport);
    static const char *const good[] = {"127.0.0.1:1"};
    static const char *const tokens[] = {"Bearer new\n", "Bearer t\xc3\xb6ken", "\t", "\x7f"};
    options = (mn_grpc_client_options){.addresses = good, .shards = 1, .env = &env};
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) { /* HTTP has no such values */
        options.authorization = tokens[i];
        assert_int_equal(mn_grpc_client_create(&options, &transport, &error), MN_INVALID);
        assert_string_equal(error.field, "authorization");
        assert_null(strstr(error.message, "Bearer")); /* no secret leaves */
    }
    options.authorization = NULL;
    options.traceparent = "none";
    assert_int_equal(mn_grpc_client_create(&options, &transport, &error), MN_INVALID);
    assert_string_equal(error.field, "traceparent");
    assert_null(transport);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_every_verb),
        cmocka_unit_test(test_large_both_ways),
        cmocka_unit_test(test_typed_errors),
        cmocka_unit_test(test_message_limits),
        cmocka_unit_test(test_deadlines),
        cmocka_unit_test(test_cancel_reaches_the_core),
        cmocka_unit_test(test_disconnect),
        cmocka_unit_test(test_unreachable_then_back),
        cmocka_unit_test(test_many_at_once),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_second_server_is_refused),
        cmocka_unit_test(test_stop_with_calls_in_flight),
        cmocka_unit_test(test_admission),
        cmocka_unit_test(test_trace),
        cmocka_unit_test(test_traces_refused),
        cmocka_unit_test(test_client_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
