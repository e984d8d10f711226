/* mneme.h's calls with arrays, made with device memory where the service says so: CMake renames the
 * suite's calls to these. What the caller gives is copied to the device in streams that lag behind,
 * so that a shard which does not wait for them reads what is not there; answers come back when the
 * call has been waited for. */
#undef mn_bag
#undef mn_bag_grad
#undef mn_fetch
#undef mn_push
#undef mn_store
#undef mn_wait
#undef mn_wait_until
#undef mn_cancel
#include "device_arrays.h"

#include "device_machine.h"
#include "harness.h"
#include "service.h"

#include <pthread.h>
#include <string.h>

enum { CALLS_MAX = 2048, ARRAYS_MAX = 4, BYTES_MAX = 1 << 26 };

struct call {
    mn_future *future; /* NULL: free */
    void *arrays[ARRAYS_MAX];
    uint32_t count;
    void *host, *out; /* what comes back, and from where */
    size_t out_bytes;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct call calls[CALLS_MAX];
static cudaStream_t streams[2];

static bool on_device(void) { return service_started && service_started->arrays; }

static bool numbers(const mn_array *array, uint64_t n, size_t *out_bytes)
{
    const size_t width = array->dtype == MN_F32 || array->dtype == MN_U32 ? 4
                         : array->dtype == MN_BF16                        ? 2
                                                                          : 8;
    *out_bytes = n * width;
    return array->data && array->memory == MN_MEMORY_HOST && n > 0 && n < BYTES_MAX / width;
}

/* The array in device memory, if it is one that can be; `in`: with its content. */
static mn_array moved(struct call *call, mn_array array, uint64_t n, bool in)
{
    size_t bytes;
    if (!on_device() || !numbers(&array, n, &bytes))
        return array;
    void *memory = NULL;
    assert_true(call->count < ARRAYS_MAX);
    assert_int_equal(cudaMalloc(&memory, bytes), cudaSuccess);
    cudaStream_t stream = streams[call->count % 2];
    call->arrays[call->count++] = memory;
    if (in)
        assert_int_equal(cudaMemcpyAsync(memory, array.data, bytes, cudaMemcpyHostToDevice, stream),
                         cudaSuccess);
    else
        call->host = array.data, call->out = memory, call->out_bytes = bytes;
    array.data = memory;
    array.memory = MN_MEMORY_CUDA;
    array.stream = stream;
    return array;
}

static struct call opened(void)
{
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < 2 && !streams[i]; i++)
        streams[i] = machine_stream();
    pthread_mutex_unlock(&mutex);
    return (struct call){0};
}

static void release(struct call *call)
{
    for (uint32_t i = 0; i < call->count; i++)
        assert_int_equal(cudaFree(call->arrays[i]), cudaSuccess);
    memset(call, 0, sizeof *call);
}

static mn_future *begun(struct call *call, mn_future *future)
{
    if (!future || !call->count) {
        release(call);
        return future;
    }
    pthread_mutex_lock(&mutex);
    struct call *place = calls;
    while (place < calls + CALLS_MAX && place->future)
        place++;
    assert_true(place < calls + CALLS_MAX);
    *place = *call;
    place->future = future;
    pthread_mutex_unlock(&mutex);
    return future;
}

/* Out of the list before it is waited for: another call may then have the same future. */
static struct call taken(const mn_future *future)
{
    struct call call = {0};
    pthread_mutex_lock(&mutex);
    for (struct call *place = calls; future && place < calls + CALLS_MAX; place++) {
        if (place->future != future)
            continue;
        call = *place;
        place->future = NULL;
        break;
    }
    pthread_mutex_unlock(&mutex);
    return call;
}

/* The call is over: its answer comes back, its memory goes. */
static void ended(struct call *call, bool answered)
{
    if (answered && call->out)
        assert_int_equal(cudaMemcpy(call->host, call->out, call->out_bytes, cudaMemcpyDeviceToHost),
                         cudaSuccess);
    for (int i = 0; i < 2 && call->count; i++)
        assert_int_equal(cudaStreamSynchronize(streams[i]), cudaSuccess);
    release(call);
}

static mn_queries moved_queries(struct call *call, const mn_queries *queries)
{
    mn_queries moved_ones = *queries;
    uint64_t reads = queries->queries * queries->per_query;
    moved_ones.indices = moved(call, queries->indices, reads, true);
    moved_ones.weights = moved(call, queries->weights, reads, true);
    return moved_ones;
}

static uint64_t width(const mn_table *table) { return mn_table_spec_of(table)->dim; }

mn_future *device_bag(mn_table *table, uint64_t step, const mn_queries *queries, mn_array out)
{
    struct call call = opened();
    mn_queries given = moved_queries(&call, queries);
    out = moved(&call, out, queries->queries * width(table), false);
    return begun(&call, mn_bag(table, step, &given, out));
}

mn_future *device_bag_grad(mn_table *table, uint64_t step, uint32_t part, const mn_queries *queries,
                           mn_array output_gradients, mn_array weight_gradients)
{
    struct call call = opened();
    mn_queries given = moved_queries(&call, queries);
    output_gradients = moved(&call, output_gradients, queries->queries * width(table), true);
    weight_gradients = moved(&call, weight_gradients, queries->queries * queries->per_query, false);
    return begun(&call, mn_bag_grad(table, step, part, &given, output_gradients, weight_gradients));
}

static mn_rows moved_rows(struct call *call, const mn_rows *rows)
{
    return (mn_rows){rows->count, moved(call, rows->indices, rows->count, true)};
}

/* A bound that keeps count * dim from wrapping. */
static uint64_t elements(const mn_table *table, const mn_rows *rows)
{
    return rows->count < BYTES_MAX ? rows->count * width(table) : BYTES_MAX;
}

mn_future *device_fetch(mn_table *table, uint64_t step, const mn_rows *rows, mn_array out_rows,
                        void *out_state)
{
    struct call call = opened();
    mn_rows given = moved_rows(&call, rows);
    out_rows = moved(&call, out_rows, elements(table, rows), false);
    return begun(&call, mn_fetch(table, step, &given, out_rows, out_state));
}

mn_future *device_push(mn_table *table, uint64_t step, uint32_t part, const mn_rows *rows,
                       mn_array gradients)
{
    struct call call = opened();
    mn_rows given = moved_rows(&call, rows);
    gradients = moved(&call, gradients, elements(table, rows), true);
    return begun(&call, mn_push(table, step, part, &given, gradients));
}

mn_future *device_store(mn_table *table, uint64_t step, uint32_t part, const mn_rows *rows,
                        mn_array values, const void *state)
{
    struct call call = opened();
    mn_rows given = moved_rows(&call, rows);
    values = moved(&call, values, elements(table, rows), true);
    return begun(&call, mn_store(table, step, part, &given, values, state));
}

enum mn_status device_wait(mn_future *future, mn_error *error)
{
    struct call call = taken(future);
    enum mn_status status = mn_wait(future, error);
    ended(&call, status == MN_OK);
    return status;
}

enum mn_status device_wait_until(mn_future *future, uint64_t wait_ms, mn_error *error)
{
    struct call call = taken(future);
    enum mn_status status = mn_wait_until(future, wait_ms, error);
    if (status == MN_TIMEOUT)
        (void)begun(&call, future); /* as it was */
    else
        ended(&call, status == MN_OK);
    return status;
}

void device_cancel(mn_future *future)
{
    struct call call = taken(future);
    mn_cancel(future);
    ended(&call, false);
}
