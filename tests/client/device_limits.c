/* What a client with a device refuses; arrays of several memories, and large ones; a device without
 * more memory, and one that fails. */
#include "device_test.h"

#include "harness.h"
#include "mn_kernels_cuda.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

static const struct service_kind on_device = {.shards = 1, .device = 1, .arrays = true};
static const struct service_kind host_arrays = {.shards = 1, .device = 1};

static void *device_copy(const void *from, size_t bytes)
{
    void *memory = NULL;
    assert_int_equal(cudaMalloc(&memory, bytes), cudaSuccess);
    assert_int_equal(cudaMemcpy(memory, from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    return memory;
}

static void refuse_open(const mn_client_options *options, enum mn_status due, const char *field)
{
    mn_client *client = NULL;
    mn_error error = {0};
    assert_int_equal(mn_client_open(options, &client, &error), due);
    assert_string_equal(error.field, field);
    assert_null(client);
}

void limits_have_names(void **state)
{
    struct service service;
    mn_error error;
    mn_table *table;
    mn_client *client;
    (void)state;
    service_start(&service, host_arrays, NULL);
    mn_client_options options = {.target = service.target, .device = 9};
    refuse_open(&options, MN_UNAVAILABLE, "device");
    options.device = 1;
    options.durability = MN_DURABILITY_PROCESS;
    refuse_open(&options, MN_UNSUPPORTED, "durability");
    options.durability = MN_DURABILITY_NONE;
    must(mn_client_open(&options, &client, &error));
    mn_client_close(client);
    options.target = "static:localhost:7700";
    refuse_open(&options, MN_INVALID, "device");

    /* A device's array takes a device, and one shard. */
    for (uint32_t shards = 0; shards < 3; shards += 2) {
        const mn_client_options other = {
            .target = "local:", .local_shards = shards, .device = shards ? 1 : 0};
        const mn_table_spec spec = numbered_spec(0);
        uint32_t index = 0;
        mn_array out = {&index, MN_F32, MN_MEMORY_CUDA, NULL};
        mn_rows rows = {1, mn_u32(&index)};
        must(mn_client_open(&other, &client, &error));
        must(mn_table_open(client, &spec, &table, &error));
        assert_int_equal(mn_wait(mn_fetch(table, 1, &rows, out, NULL), &error), MN_UNSUPPORTED);
        assert_string_equal(error.field, "memory");
        mn_client_close(client);
    }

    /* A folder with logs is a server's, or another client's. */
    options = (mn_client_options){.target = service.target, .durability = MN_DURABILITY_PROCESS};
    must(mn_client_open(&options, &client, &error));
    mn_client_close(client);
    options = (mn_client_options){.target = service.target, .device = 1};
    refuse_open(&options, MN_UNSUPPORTED, "device");
    service_stop(&service);
}

static uint32_t *wrong_index; /* in a device's memory: its content is looked at on the way back */

/* A whole life of a client, on a thread that has chosen no device. */
static void *live(void *context)
{
    const struct service *service = context;
    static struct batch it;
    uint64_t print = 0;
    int device = -1;
    mn_error error;
    mn_client *client;
    mn_table *table;
    const mn_table_spec spec = numbered_spec(5);
    const mn_client_options options = {.target = service->target, .device = 2};
    const mn_rows rows = {1, {wrong_index, MN_U32, MN_MEMORY_CUDA, NULL}};
    must(mn_client_open(&options, &client, &error));
    must(mn_table_open(client, &spec, &table, &error));
    must(try_step(client, table, 1, &it, &print, &error));
    assert_int_equal(mn_wait(mn_fetch(table, 2, &rows, mn_f32(it.out), NULL), &error), MN_INVALID);
    assert_string_equal(error.field, "indices");
    const mn_rows staged = {QUERIES, mn_u32(it.rows)};
    must(mn_wait(mn_push(table, 2, 0, &staged, mn_f32(it.out)), &error));
    mn_client_close(client); /* gives back what is staged */
    mn_cuda_queue queue;
    must(mn_cuda_queue_open(1, &queue, &error));
    must(mn_cuda_read(&queue, it.rows, wrong_index, sizeof *wrong_index, &error));
    mn_cuda_queue_close(&queue);
    assert_int_equal(it.rows[0], ROWS);
    assert_int_equal(cudaGetDevice(&device), cudaSuccess);
    assert_int_equal(device, 0); /* as it was */
    return NULL;
}

/* Where tables lie in the memory of device 1, nothing is made on device 0. */
void other_devices_are_left_alone(void **state)
{
    struct service service;
    pthread_t thread;
    (void)state;
    service_start(&service, host_arrays, NULL);
    wrong_index = device_copy((uint32_t[]){ROWS}, sizeof *wrong_index);
    (void)emulator_contexts(); /* of the tests before */
    assert_int_equal(pthread_create(&thread, NULL, live, &service), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(emulator_contexts(), 1 << 1);
    assert_int_equal(cudaFree(wrong_index), cudaSuccess);
    service_stop(&service);
}

/* ---- Arrays ---- */

/* Every choice of memories for the four arrays of a bag's gradient. */
void arrays_of_any_memory(void **state)
{
    static struct batch it;
    struct service service;
    mn_error error;
    mn_table *table;
    const mn_table_spec spec = numbered_spec(3);
    float expected[QUERIES * READS], got[QUERIES * READS];
    (void)state;
    service_start(&service, host_arrays, NULL);
    mn_client *client = service_open(&service, "g", 0, 1);
    must(mn_table_open(client, &spec, &table, &error));
    batch_fill(&it, 1, MN_F32);
    mn_queries queries = {QUERIES, READS, mn_u32(it.indices), mn_f32(it.weights)};
    must_wait(mn_bag_grad(table, 1, 0, &queries, mn_f32(it.values), mn_f32(expected)));
    for (uint32_t choice = 0; choice < 16; choice++) {
        mn_array arrays[] = {mn_u32(it.indices), mn_f32(it.weights), mn_f32(it.values),
                             mn_f32(got)};
        const size_t bytes[] = {sizeof it.indices, sizeof it.weights, sizeof it.values, sizeof got};
        memset(got, 0, sizeof got);
        for (int i = 0; i < 4; i++)
            if (choice >> i & 1) {
                arrays[i].data = device_copy(arrays[i].data, bytes[i]);
                arrays[i].memory = MN_MEMORY_CUDA;
            } else {
                arrays[i].memory = choice % 3 ? MN_MEMORY_PINNED : MN_MEMORY_HOST;
            }
        mn_queries mixed = {QUERIES, READS, arrays[0], arrays[1]};
        must_wait(mn_bag_grad(table, 1, choice, &mixed, arrays[2], arrays[3]));
        if (choice & 8)
            assert_int_equal(cudaMemcpy(got, arrays[3].data, sizeof got, cudaMemcpyDeviceToHost),
                             cudaSuccess);
        assert_memory_equal(got, expected, sizeof got);
        for (int i = 0; i < 4; i++)
            if (choice >> i & 1)
                assert_int_equal(cudaFree(arrays[i].data), cudaSuccess);
    }
    mn_client_close(client);
    service_stop(&service);
}

/* A call waits for what its arrays' stream was given before it, and for nothing that comes later:
 * not though the shard begins anew with it when its step has come. */
void later_work_is_not_waited_for(void **state)
{
    static struct batch it;
    struct service service;
    mn_error error;
    mn_table *table;
    uint64_t print = 0;
    float got[DIM], expected[DIM];
    const mn_table_spec spec = numbered_spec(0);
    (void)state;
    service_start(&service, host_arrays, NULL);
    mn_client *client = service_open(&service, "g", 0, 1);
    must(mn_table_open(client, &spec, &table, &error));
    cudaStream_t stream = emulator_lazy_stream();
    const uint32_t wanted = 5;
    uint32_t *row = device_copy((uint32_t[]){ROWS}, sizeof *row); /* none, until the copy is made */
    void *later = device_copy(&wanted, sizeof wanted);
    const mn_rows late = {1, {row, MN_U32, MN_MEMORY_CUDA, stream}};
    const mn_rows plain = {1, mn_u32((uint32_t[]){5})};
    assert_int_equal(cudaMemcpyAsync(row, &wanted, sizeof wanted, cudaMemcpyHostToDevice, stream),
                     cudaSuccess);
    mn_future *call = mn_fetch(table, 2, &late, mn_f32(got), NULL);
    assert_int_equal(cudaMemcpyAsync(later, row, 4, cudaMemcpyDeviceToDevice, stream), cudaSuccess);
    must(try_step(client, table, 1, &it, &print, &error));
    must_wait(call);
    assert_int_equal(emulator_waiting(stream), 1);
    must_wait(mn_fetch(table, 2, &plain, mn_f32(expected), NULL));
    assert_memory_equal(got, expected, sizeof got);
    assert_int_equal(cudaStreamDestroy(stream), cudaSuccess);
    assert_int_equal(cudaFree(later), cudaSuccess);
    assert_int_equal(cudaFree(row), cudaSuccess);
    mn_client_close(client);
    service_stop(&service);
}

static void refuse_stream(mn_table *table, uint32_t *row, cudaStream_t stream, enum mn_status due,
                          const char *field)
{
    mn_error error = {0};
    float out[DIM];
    const mn_rows rows = {1, {row, MN_U32, MN_MEMORY_CUDA, stream}};
    assert_int_equal(mn_wait(mn_fetch(table, 1, &rows, mn_f32(out), NULL), &error), due);
    assert_string_equal(error.field, field);
}

/* A stream of another device, or one that a graph is made of, is refused and harms no table; a
 * device that has failed is LOST, though the stream's mark is what shows it. */
void streams_are_refused(void **state)
{
    struct service service;
    mn_error error;
    mn_table *table;
    const mn_table_spec spec = numbered_spec(0);
    (void)state;
    service_start(&service, host_arrays, NULL);
    mn_client *client = service_open(&service, "g", 0, 1);
    must(mn_table_open(client, &spec, &table, &error));
    float out[DIM];
    const uint64_t before = all_of(table, 1);
    uint32_t *row = device_copy((uint32_t[]){5}, sizeof *row);
    cudaStream_t stream = emulator_lazy_stream(), other;
    assert_int_equal(cudaSetDevice(1), cudaSuccess);
    assert_int_equal(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking), cudaSuccess);
    assert_int_equal(cudaSetDevice(0), cudaSuccess);
    refuse_stream(table, row, other, MN_INVALID, "stream");
    emulator_leave_error(cudaErrorMemoryAllocation); /* the caller's own, which he has yet to see */
    const mn_rows good = {1, {row, MN_U32, MN_MEMORY_CUDA, stream}};
    must_wait(mn_fetch(table, 1, &good, mn_f32(out), NULL));
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
    emulator_capture(stream, 1);
    refuse_stream(table, row, stream, MN_INVALID, "stream");
    emulator_capture(stream, 0);
    assert_true(all_of(table, 1) == before);
    emulator_fail_after(0);
    refuse_stream(table, row, stream, MN_LOST, "device");
    emulator_fail_after(UINT64_MAX);
    assert_int_equal(cudaStreamDestroy(stream), cudaSuccess);
    assert_int_equal(cudaStreamDestroy(other), cudaSuccess);
    assert_int_equal(cudaFree(row), cudaSuccess);
    mn_client_close(client);
    service_stop(&service);
}

/* More than a piece holds, there and back. */
void large_calls_are_cut(void **state)
{
    enum { COUNT = 200000, WIDTH = 96 };
    struct service service;
    mn_error error;
    mn_table *table;
    const mn_table_spec spec = {.name = "t", .rows = COUNT, .dim = WIDTH, .optimizer = mn_sgd()};
    uint32_t *rows = malloc(COUNT * sizeof *rows);
    float *values = malloc((size_t)COUNT * WIDTH * sizeof *values);
    (void)state;
    service_start(&service, on_device, NULL);
    mn_client *client = service_open(&service, "g", 0, 1);
    must(mn_table_open(client, &spec, &table, &error));
    for (uint32_t i = 0; i < COUNT; i++) {
        rows[i] = (i * 7) % COUNT;
        for (uint32_t c = 0; c < WIDTH; c++)
            values[(size_t)i * WIDTH + c] = (float)(i + c);
    }
    const mn_client_counters before = mn_client_counted(client);
    mn_rows given = {COUNT, mn_u32(rows)};
    must_wait(mn_push(table, 1, 0, &given, mn_f32(values)));
    assert_int_equal(mn_client_counted(client).exchanges - before.exchanges, 2);
    must(mn_commit(client, 1, &(mn_commit_options){.learning_rate = 1}, NULL, &error));
    memset(values, 0, (size_t)COUNT * WIDTH * sizeof *values);
    must_wait(mn_fetch(table, 2, &given, mn_f32(values), NULL));
    uint64_t wrong = 0;
    for (uint32_t i = 0; i < COUNT; i++)
        for (uint32_t c = 0; c < WIDTH; c++)
            wrong += values[(size_t)i * WIDTH + c] != -(float)(i + c);
    assert_int_equal(wrong, 0);
    mn_client_close(client);
    service_stop(&service);
    free(rows);
    free(values);
}

/* ---- A device without more memory, and one that fails ---- */

/* Each call refuses what it has no memory for, and is made again. When it has ended, nothing reads
 * the caller's arrays any more. */
void memory_ends(void **state)
{
    static struct batch it;
    struct service service;
    mn_error error = {0};
    mn_table *table;
    const mn_table_spec spec = numbered_spec(3);
    uint64_t refused = 0, expected = 0, print = 0;
    (void)state;
    emulator_lazy_streams();
    service_start(&service, host_arrays, NULL);
    for (int pass = 0; pass < 2; pass++) {
        const uint64_t blocks = emulator_blocks();
        mn_client *client = service_open(&service, pass ? "ends" : "does-not", 0, 1);
        must(mn_table_open(client, &spec, &table, &error));
        for (uint64_t takes = 0; pass == 1; takes++) {
            emulator_memory_for(takes);
            enum mn_status status = try_step(client, table, 1, &it, &print, &error);
            emulator_memory_for(UINT64_MAX);
            assert_int_equal(emulator_waiting(NULL), 0);
            if (!status)
                break;
            assert_int_equal(status, MN_NO_MEMORY);
            assert_string_equal(error.field, "device");
            refused++;
        }
        if (pass == 0)
            train(client, table, 1, &print);
        print = all_of(table, 2);
        assert_true(pass == 0 || print == expected);
        expected = print;
        mn_client_close(client);
        assert_int_equal(emulator_blocks(), blocks); /* all of it went back */
    }
    assert_true(refused > 10);
    emulator_memory_for(0); /* nor is a table made by halves */
    mn_client *client = service_open(&service, "none", 0, 1);
    assert_int_equal(mn_table_open(client, &spec, &table, &error), MN_NO_MEMORY);
    emulator_memory_for(UINT64_MAX);
    must(mn_table_open(client, &spec, &table, &error));
    mn_client_close(client);
    service_stop(&service);
}

/* A device that fails is said to be at fault, not the stream that the work was given to. */
void a_device_is_at_fault(void **state)
{
    (void)state;
    mn_error error = {0};
    float *numbers = device_copy((float[]){1, 2}, 2 * sizeof(float));
    emulator_fail_after(0);
    assert_int_equal(mn_cuda_softmax(numbers, 1, 2, NULL, &error), MN_UNAVAILABLE);
    emulator_fail_after(UINT64_MAX);
    assert_string_equal(error.field, "device");
    assert_int_equal(cudaFree(numbers), cudaSuccess);
}

/* After any piece of its work: what was going on is LOST, and so is all that comes. */
void a_device_fails(void **state)
{
    static struct batch it;
    struct service service;
    const mn_table_spec spec = numbered_spec(3);
    uint64_t print = 0, failures = 0;
    enum mn_status status = MN_LOST;
    (void)state;
    service_start(&service, host_arrays, NULL);
    for (uint64_t pieces = 0; status == MN_LOST; pieces++, failures++) {
        mn_error error = {0};
        mn_table *table;
        mn_client *client = service_open(&service, "g", 0, 1);
        must(mn_table_open(client, &spec, &table, &error));
        train(client, table, 1, &print);
        emulator_fail_after(pieces);
        status = try_step(client, table, 2, &it, &print, &error);
        if (status) {
            assert_int_equal(status, MN_LOST);
            assert_string_equal(error.field, "device");
            assert_int_equal(mn_client_step(client), 1); /* the step was not committed */
            assert_int_equal(mn_save(client, "a", 0, NULL, &error), MN_LOST);
            assert_int_equal(mn_discard(client, 2, &error), MN_LOST);
        }
        emulator_fail_after(UINT64_MAX); /* it stays lost: its memory was */
        if (status)
            assert_int_equal(try_step(client, table, 2, &it, &print, &error), MN_LOST);
        mn_client_close(client);
    }
    assert_int_equal(status, MN_OK);
    assert_true(failures > 50);
    service_stop(&service);
}
