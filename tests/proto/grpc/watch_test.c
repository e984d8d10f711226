/* grpc.health.v1.Health/Watch as a gRPC client hears it: the state at once and after each change,
 * for as long as it listens; a bound on how many listen; an end when the server stops. */
#include "rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>

enum { SERVING = 1, NOT_SERVING = 2, SERVICE_UNKNOWN = 3, ENDED = -1, WATCHES_MAX = 64 };
enum { TAG_STARTED = 1, TAG_MESSAGE, TAG_STATUS };

typedef struct watch {
    grpc_completion_queue *queue;
    grpc_channel *channel;
    grpc_call *call;
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *message;
    grpc_status_code status;
    grpc_slice details;
    bool over;
} watch;

static void batch(watch *it, const grpc_op *ops, size_t count, intptr_t tag)
{
    assert_int_equal(grpc_call_start_batch(it->call, ops, count, (void *)tag, NULL), GRPC_CALL_OK);
}

/* Handles events until that one. */
static void await(watch *it, intptr_t tag)
{
    for (intptr_t seen = 0; seen != tag;) {
        grpc_event event = grpc_completion_queue_next(
            it->queue,
            gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_seconds(30, GPR_TIMESPAN)),
            NULL);
        assert_int_equal(event.type, GRPC_OP_COMPLETE);
        seen = (intptr_t)event.tag;
        it->over = it->over || seen == TAG_STATUS;
    }
}

static void start(watch *it, const rig *server, const char *service)
{
    char request[64];
    size_t bytes = strlen(service) ? strlen(service) + 2 : 0;
    (void)snprintf(request, sizeof request, "\x0a%c%s", (char)strlen(service), service);
    memset(it, 0, sizeof *it);
    grpc_channel_credentials *plain = grpc_insecure_credentials_create();
    it->queue = grpc_completion_queue_create_for_next(NULL);
    it->channel = grpc_channel_create(server->address, plain, NULL);
    grpc_channel_credentials_release(plain);
    it->call =
        grpc_channel_create_call(it->channel, NULL, GRPC_PROPAGATE_DEFAULTS, it->queue,
                                 grpc_slice_from_static_string("/grpc.health.v1.Health/Watch"),
                                 NULL, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    grpc_slice slice = grpc_slice_from_copied_buffer(request, bytes);
    grpc_byte_buffer *sent = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_op ops[4], status;
    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    ops[1].data.send_message.send_message = sent;
    ops[2].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    ops[3].op = GRPC_OP_RECV_INITIAL_METADATA;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &it->initial;
    batch(it, ops, 4, TAG_STARTED);
    memset(&status, 0, sizeof status);
    status.op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    status.data.recv_status_on_client.trailing_metadata = &it->trailing;
    status.data.recv_status_on_client.status = &it->status;
    status.data.recv_status_on_client.status_details = &it->details;
    batch(it, &status, 1, TAG_STATUS);
    await(it, TAG_STARTED);
    grpc_byte_buffer_destroy(sent);
    grpc_slice_unref(slice);
}

static int next(watch *it)
{
    grpc_op op;
    grpc_byte_buffer_reader reader;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_MESSAGE;
    op.data.recv_message.recv_message = &it->message;
    batch(it, &op, 1, TAG_MESSAGE);
    await(it, TAG_MESSAGE);
    if (!it->message)
        return ENDED;
    assert_true(grpc_byte_buffer_reader_init(&reader, it->message));
    grpc_slice all = grpc_byte_buffer_reader_readall(&reader);
    assert_int_equal(GRPC_SLICE_LENGTH(all), 2);
    assert_int_equal(GRPC_SLICE_START_PTR(all)[0], 0x08); /* field 1, a varint */
    int state = GRPC_SLICE_START_PTR(all)[1];
    grpc_slice_unref(all);
    grpc_byte_buffer_reader_destroy(&reader);
    grpc_byte_buffer_destroy(it->message);
    return state;
}

/* The status with which it ends; cancels it when the server has not ended it. */
static grpc_status_code end(watch *it, bool cancel)
{
    if (cancel)
        (void)grpc_call_cancel(it->call, NULL); /* it ends at all events */
    if (!it->over)
        await(it, TAG_STATUS);
    grpc_metadata_array_destroy(&it->initial);
    grpc_metadata_array_destroy(&it->trailing);
    grpc_slice_unref(it->details);
    grpc_call_unref(it->call);
    grpc_channel_destroy(it->channel);
    grpc_completion_queue_shutdown(it->queue);
    while (grpc_completion_queue_next(it->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
           GRPC_QUEUE_SHUTDOWN)
        ;
    grpc_completion_queue_destroy(it->queue);
    return it->status;
}

static void changes_are_told(void **state)
{
    (void)state;
    rig server;
    watch all, ours, other;
    rig_start(&server, &(rig_options){0});
    start(&all, &server, "");
    start(&ours, &server, MN_SERVICE);
    start(&other, &server, "no.such.Service");
    assert_int_equal(next(&all), SERVING);
    assert_int_equal(next(&ours), SERVING);
    assert_int_equal(next(&other), SERVICE_UNKNOWN);
    for (int i = 0; i < 3; i++) {
        mn_grpc_server_set_healthy(server.server, i % 2);
        assert_int_equal(next(&all), i % 2 ? SERVING : NOT_SERVING);
        assert_int_equal(next(&ours), i % 2 ? SERVING : NOT_SERVING);
    }
    assert_int_equal(end(&ours, true), GRPC_STATUS_CANCELLED);
    mn_grpc_server_set_healthy(server.server, true);
    assert_int_equal(next(&all), SERVING); /* one less listens */
    rig_stop(&server);
    assert_int_equal(next(&all), ENDED);
    assert_int_equal(end(&all, false), GRPC_STATUS_UNAVAILABLE);
    assert_int_equal(next(&other), ENDED); /* it was told nothing more */
    assert_int_equal(end(&other, false), GRPC_STATUS_UNAVAILABLE);
}

/* Those that watch take no place of a call's, and are bounded by themselves. */
static void watches_are_bounded(void **state)
{
    (void)state;
    static watch watches[WATCHES_MAX + 1];
    rig server;
    rig_start(&server, &(rig_options){.calls_max = 1});
    for (int i = 0; i < WATCHES_MAX; i++) {
        start(&watches[i], &server, "");
        assert_int_equal(next(&watches[i]), SERVING);
    }
    start(&watches[WATCHES_MAX], &server, "");
    assert_int_equal(next(&watches[WATCHES_MAX]), ENDED);
    assert_int_equal(end(&watches[WATCHES_MAX], false), GRPC_STATUS_RESOURCE_EXHAUSTED);
    mn_transport *client = rig_client(&server, NULL);
    rig_call call;
    rig_begin(&call, client, &server.env, MN_VERB_STATUS, 0, NULL, 0, 10000);
    assert_int_equal(rig_wait(&call), MN_OK);
    rig_end(&call);
    client->destroy(client);
    for (int i = 0; i < WATCHES_MAX; i++)
        assert_int_equal(end(&watches[i], true), GRPC_STATUS_CANCELLED);
    for (int state_seen = ENDED; state_seen == ENDED;) { /* the server hears of it in its time */
        start(&watches[0], &server, "");
        state_seen = next(&watches[0]);
        (void)end(&watches[0], true);
    }
    rig_stop(&server);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(changes_are_told),
        cmocka_unit_test(watches_are_bounded),
    };
    grpc_init();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    grpc_shutdown();
    return failed;
}
