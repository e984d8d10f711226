/* The server of a bare gRPC C core echo: the floor of what a unary call over this library costs.
 * One completion queue, one thread. */
#include "peers.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { METHOD_CALLS = 4, MESSAGE_MAX = 16 << 20 };

typedef struct echo_call {
    grpc_call *call;
    grpc_byte_buffer *request, *reply;
    grpc_metadata_array metadata;
    gpr_timespec deadline;
    int cancelled;
    bool answering;
} echo_call;

typedef struct echo_server {
    grpc_server *server;
    grpc_completion_queue *queue;
    void *method;
    grpc_slice payload;
} echo_server;

static void expect(echo_server *server, echo_call *call)
{
    memset(call, 0, sizeof *call);
    grpc_metadata_array_init(&call->metadata);
    if (grpc_server_request_registered_call(server->server, server->method, &call->call,
                                            &call->deadline, &call->metadata, &call->request,
                                            server->queue, server->queue, call) != GRPC_CALL_OK)
        bench_die("echo: request_registered_call");
}

static void answer(echo_server *server, echo_call *call)
{
    grpc_slice payload = grpc_slice_ref(server->payload);
    call->reply = grpc_raw_byte_buffer_create(&payload, 1);
    grpc_slice_unref(payload);
    grpc_op operations[4] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = call->reply},
        {.op = GRPC_OP_SEND_STATUS_FROM_SERVER},
        {.op = GRPC_OP_RECV_CLOSE_ON_SERVER,
         .data.recv_close_on_server.cancelled = &call->cancelled}};
    call->answering = true;
    if (grpc_call_start_batch(call->call, operations, 4, call, NULL) != GRPC_CALL_OK)
        bench_die("echo: start_batch");
}

int peer_echo_main(int argc, char **argv)
{
    const char *port_file = NULL;
    size_t reply_bytes = 1;
    for (int i = 0; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--reply-bytes") == 0)
            reply_bytes = strtoull(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--port-file") == 0)
            port_file = argv[i + 1];
    }
    grpc_init();
    echo_server server = {.payload = grpc_slice_malloc(reply_bytes)};
    memset(GRPC_SLICE_START_PTR(server.payload), 1, reply_bytes);
    grpc_arg limit = {
        GRPC_ARG_INTEGER, (char *)GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, {.integer = MESSAGE_MAX}};
    server.server = grpc_server_create(&(grpc_channel_args){1, &limit}, NULL);
    server.queue = grpc_completion_queue_create_for_next(NULL);
    grpc_server_register_completion_queue(server.server, server.queue, NULL);
    server.method = grpc_server_register_method(server.server, "/echo/Echo", NULL,
                                                GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER, 0);
    grpc_server_credentials *plain = grpc_insecure_server_credentials_create();
    int port = grpc_server_add_http2_port(server.server, "127.0.0.1:0", plain);
    grpc_server_credentials_release(plain);
    grpc_server_start(server.server);
    FILE *file = port_file ? fopen(port_file, "w") : NULL;
    if (!port || !file || fprintf(file, "%d\n", port) < 0 || fclose(file))
        bench_die("echo: cannot listen or write the port file");
    echo_call calls[METHOD_CALLS];
    for (int i = 0; i < METHOD_CALLS; i++)
        expect(&server, &calls[i]);
    for (;;) { /* until the bench kills it */
        grpc_event event =
            grpc_completion_queue_next(server.queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        echo_call *call = event.tag;
        if (event.type != GRPC_OP_COMPLETE || !call)
            continue;
        if (!call->answering) {
            answer(&server, call);
            continue;
        }
        grpc_byte_buffer_destroy(call->request);
        grpc_byte_buffer_destroy(call->reply);
        grpc_metadata_array_destroy(&call->metadata);
        grpc_call_unref(call->call);
        expect(&server, call);
    }
}
