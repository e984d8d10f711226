/* The client of the bare gRPC echo, a process of its own: gRPC's threads of another client would
 * share its polling. Driven over its standard input: "CALLS SHARE READ\n" makes that many calls,
 * each to every server at once, and answers the seconds at that quantile; with READ 1 each call is
 * followed by a read of new rows of a table of its own, as its servers would have read them. */
#include "peers.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MESSAGE_MAX = 16 << 20, CALLS_MAX = 4096, LINE_FLOATS = 16, LINE = 64, AHEAD_BYTES = 8192 };

typedef struct row_line {
    _Alignas(64) uint64_t words[8];
} row_line;

typedef struct echo_client {
    grpc_channel *channels[BENCH_SHARDS_MAX];
    uint32_t count;
    grpc_completion_queue *queue;
    grpc_slice payload;
    row_line *table; /* [rows][lines] */
    uint64_t rows, lines, reads;
    uint32_t *indices;
} echo_client;

typedef struct echo_exchange {
    grpc_call *call;
    grpc_byte_buffer *request, *reply;
    grpc_metadata_array initial, trailing;
    grpc_status_code status;
    grpc_slice details;
} echo_exchange;

static void begin(echo_client *client, uint32_t server, echo_exchange *exchange)
{
    grpc_slice payload = grpc_slice_ref(client->payload);
    memset(exchange, 0, sizeof *exchange);
    grpc_metadata_array_init(&exchange->initial);
    grpc_metadata_array_init(&exchange->trailing);
    exchange->request = grpc_raw_byte_buffer_create(&payload, 1);
    grpc_slice_unref(payload);
    exchange->call = grpc_channel_create_call(
        client->channels[server], NULL, GRPC_PROPAGATE_DEFAULTS, client->queue,
        grpc_slice_from_static_string("/echo/Echo"), NULL,
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_seconds(60, GPR_TIMESPAN)), NULL);
    grpc_op operations[6] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = exchange->request},
        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
        {.op = GRPC_OP_RECV_INITIAL_METADATA,
         .data.recv_initial_metadata.recv_initial_metadata = &exchange->initial},
        {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &exchange->reply},
        {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
         .data.recv_status_on_client = {.trailing_metadata = &exchange->trailing,
                                        .status = &exchange->status,
                                        .status_details = &exchange->details}}};
    if (grpc_call_start_batch(exchange->call, operations, 6, exchange, NULL) != GRPC_CALL_OK)
        bench_die("echo: start_batch");
}

static void end(echo_exchange *exchange)
{
    if (exchange->status != GRPC_STATUS_OK || !exchange->reply)
        bench_die("echo: status %d", (int)exchange->status);
    grpc_byte_buffer_destroy(exchange->request);
    grpc_byte_buffer_destroy(exchange->reply);
    grpc_metadata_array_destroy(&exchange->initial);
    grpc_metadata_array_destroy(&exchange->trailing);
    grpc_slice_unref(exchange->details);
    grpc_call_unref(exchange->call);
}

static void call_all(echo_client *client)
{
    echo_exchange exchanges[BENCH_SHARDS_MAX];
    for (uint32_t i = 0; i < client->count; i++)
        begin(client, i, &exchanges[i]);
    for (uint32_t left = client->count; left; left--) {
        grpc_event event =
            grpc_completion_queue_next(client->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        end(event.tag);
    }
}

/* Reads the rows as fast as we know how, each line once and the rows to come asked for beside it,
 * into the cache that waits for more of them at once (tile_read.c), and keeps but a sum. */
static inline uint64_t read_into(const echo_client *client, bool into_l1)
{
    const uint64_t ahead = 1 + AHEAD_BYTES * (into_l1 ? 1 : 3) / (client->lines * LINE);
    uint64_t sum = 0;
    for (uint64_t i = 0; i < client->reads; i++) {
        uint64_t later = i + ahead < client->reads ? i + ahead : i;
        const row_line *next = client->table + client->indices[later] * client->lines;
        const row_line *row = client->table + client->indices[i] * client->lines;
        for (uint64_t at = 0; at < client->lines; at++) {
            if (into_l1)
                __builtin_prefetch(next + at, 0, 3);
            else
                __builtin_prefetch(next + at, 0, 2);
            sum += row[at].words[0];
        }
    }
    return sum;
}

static uint64_t read_rows(const echo_client *client)
{
    return __builtin_cpu_is("amd") ? read_into(client, true) : read_into(client, false);
}

static double run(echo_client *client, uint32_t calls, double share, bool with_read)
{
    static double seconds[CALLS_MAX];
    static volatile uint64_t sum;
    static uint64_t seed;
    for (uint32_t call = 0; call < calls; call++) {
        for (uint64_t i = 0; i < client->reads; i++)
            client->indices[i] = (uint32_t)(bench_random(&seed) % client->rows);
        double start = bench_now();
        call_all(client);
        if (with_read)
            sum = read_rows(client);
        seconds[call] = bench_now() - start;
    }
    (void)sum;
    return bench_at_share(seconds, calls, share);
}

static void open_channels(echo_client *client, int count, char **ports)
{
    char address[32];
    grpc_arg limits[2] = {
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, {.integer = MESSAGE_MAX}},
        {GRPC_ARG_INTEGER, (char *)GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, {.integer = 1}}};
    for (int i = 0; i < count && i < BENCH_SHARDS_MAX; i++) {
        (void)snprintf(address, sizeof address, "127.0.0.1:%s", ports[i]);
        grpc_channel_credentials *plain = grpc_insecure_credentials_create();
        client->channels[client->count++] =
            grpc_channel_create(address, plain, &(grpc_channel_args){2, limits});
        grpc_channel_credentials_release(plain);
    }
}

/* arguments: REQUEST-BYTES ROWS COLUMNS READS PORT... */
int peer_echo_client_main(int argc, char **argv)
{
    echo_client client = {0};
    char line[128];
    if (argc < 5)
        bench_die("echo-client: too few arguments");
    size_t request_bytes = strtoull(argv[0], NULL, 10);
    client.rows = strtoull(argv[1], NULL, 10);
    client.lines = strtoull(argv[2], NULL, 10) / LINE_FLOATS;
    client.reads = strtoull(argv[3], NULL, 10);
    client.table = bench_huge(client.rows * client.lines * sizeof *client.table);
    client.indices = bench_huge(client.reads * sizeof *client.indices);
    grpc_init();
    client.queue = grpc_completion_queue_create_for_next(NULL);
    client.payload = grpc_slice_malloc(request_bytes);
    memset(GRPC_SLICE_START_PTR(client.payload), 1, request_bytes);
    open_channels(&client, argc - 4, argv + 4);
    while (fgets(line, sizeof line, stdin)) { /* until the bench kills it */
        char *next = line;
        uint32_t calls = (uint32_t)strtoul(next, &next, 10);
        double share = strtod(next, &next);
        bool with_read = strtoul(next, &next, 10) != 0;
        if (!calls || calls > CALLS_MAX)
            bench_die("echo-client: not a request: %s", line);
        (void)printf("%.9g\n", run(&client, calls, share, with_read));
        (void)fflush(stdout);
    }
    return 0;
}
