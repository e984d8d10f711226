/* Memory for tables and requests, copies, and the order of their work: CUDA's runtime, behind
 * mn_kernels_cuda.h §5. */
#include "context.h"
#include "device.h"

/* While one lives, the queue's device is the calling thread's, whatever is its own. */
struct device_scope {
    bool pushed; /* if not, what follows says what is wrong */
    explicit device_scope(const mn_cuda_queue *queue) : pushed(context_push(queue->context)) {}
    device_scope(const device_scope &) = delete;
    ~device_scope()
    {
        if (pushed)
            context_pop();
    }
};

/* Our own error is taken, so that it blames no later call; the thread's, which may be the caller's,
 * is left to him. */
static enum mn_status told(cudaError_t result, mn_error *error)
{
    if (result == cudaSuccess)
        return MN_OK;
    (void)cudaGetLastError(); /* it is `result` */
    return mn_fail(error, MN_UNAVAILABLE, "device", "CUDA refused: %s", cudaGetErrorString(result));
}

/* CUDA 12 names the place by a number, CUDA 13 by a structure. A wish: it may be refused. */
template <typename Place>
static void advise_near(cudaError_t (*advise)(const void *, size_t, enum cudaMemoryAdvise, Place),
                        void *memory, uint64_t bytes, uint32_t device)
{
    Place place = {};
    if constexpr (sizeof(Place) == sizeof(int))
        place = (int)device;
    else
        place.type = cudaMemLocationTypeDevice, place.id = (int)device;
    (void)told(advise(memory, bytes, cudaMemAdviseSetPreferredLocation, place), NULL);
}

/* 0: the device has it not, or does not say. */
static int attribute_of(uint32_t device, cudaDeviceAttr attribute)
{
    int value = 0;
    return told(cudaDeviceGetAttribute(&value, attribute, (int)device), NULL) ? 0 : value;
}

static enum mn_status check_device(uint32_t device, mn_error *error)
{
    int count = 0;
    const enum mn_status status = told(cudaGetDeviceCount(&count), error);
    if (status)
        return status;
    if (device >= (uint32_t)count)
        return mn_fail(error, MN_UNAVAILABLE, "device", "there is no CUDA device %u among %d",
                       device, count);
    const int major = attribute_of(device, cudaDevAttrComputeCapabilityMajor);
    if (major < 8)
        return mn_fail(error, MN_UNSUPPORTED, "device",
                       "CUDA device %u is of compute capability %d; 8 (Ampere) is the least",
                       device, major);
    if (!attribute_of(device, cudaDevAttrConcurrentManagedAccess) ||
        !attribute_of(device, cudaDevAttrMemoryPoolsSupported))
        return mn_fail(error, MN_UNSUPPORTED, "device",
                       "CUDA device %u has no concurrent managed memory or no memory pools",
                       device);
    return MN_OK;
}

/* Memory given back stays with the process: a step takes what the one before gave. */
static cudaError_t keep_pool(uint32_t device)
{
    cudaMemPool_t pool;
    uint64_t threshold = UINT64_MAX;
    cudaError_t result = cudaDeviceGetDefaultMemPool(&pool, (int)device);
    if (result == cudaSuccess)
        result = cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold);
    return result;
}

static enum mn_status open_all(mn_cuda_queue *queue, mn_error *error)
{
    const device_scope scope(queue);
    cudaError_t result = keep_pool(queue->device);
    if (result == cudaSuccess)
        result = cudaStreamCreateWithFlags((cudaStream_t *)&queue->stream, cudaStreamNonBlocking);
    if (result == cudaSuccess)
        result = cudaHostAlloc((void **)&queue->bad, sizeof *queue->bad, cudaHostAllocDefault);
    if (result == cudaSuccess)
        *queue->bad = 0;
    return told(result, error);
}

extern "C" enum mn_status mn_cuda_queue_open(uint32_t device, mn_cuda_queue *out_queue,
                                             mn_error *error)
{
    mn_cuda_queue queue = {};
    enum mn_status status = check_device(device, error);
    if (status)
        return status;
    queue.device = device;
    status = told(context_retain(device, &queue.context), error);
    if (!status)
        status = open_all(&queue, error);
    if (status)
        mn_cuda_queue_close(&queue);
    else
        *out_queue = queue;
    return status;
}

static void close_all(const mn_cuda_queue *queue)
{
    const device_scope scope(queue);
    if (queue->stream)
        (void)told(cudaStreamSynchronize((cudaStream_t)queue->stream),
                   NULL); /* come of it what may */
    if (queue->stream)
        (void)told(cudaStreamDestroy((cudaStream_t)queue->stream), NULL);
    if (queue->bad)
        (void)told(cudaFreeHost(queue->bad), NULL);
}

extern "C" void mn_cuda_queue_close(mn_cuda_queue *queue)
{
    if (!queue || !queue->context)
        return;
    close_all(queue);
    *queue = {};
}

/* An event of its own for each call: CUDA has a pool of them. */
static cudaError_t make_mark(cudaStream_t stream, cudaEvent_t *event)
{
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    cudaError_t result = cudaStreamIsCapturing(stream, &capture);
    if (result == cudaSuccess && capture != cudaStreamCaptureStatusNone)
        result = cudaErrorStreamCaptureUnsupported;
    if (result == cudaSuccess)
        result = cudaEventCreateWithFlags(event, cudaEventDisableTiming);
    if (result == cudaSuccess)
        result = cudaEventRecord(*event, stream);
    return result;
}

extern "C" enum mn_status mn_cuda_mark(const mn_cuda_queue *queue, void *stream, void **out_mark,
                                       mn_error *error)
{
    const device_scope scope(queue);
    cudaEvent_t event = NULL;
    const cudaError_t result = make_mark((cudaStream_t)stream, &event);
    const enum mn_status status = told(result, error);
    if (status == MN_OK) {
        *out_mark = event;
        return MN_OK;
    }
    if (event)
        (void)told(cudaEventDestroy(event), NULL); /* nobody knows of it */
    if (stream_at_fault(result))
        return mn_fail(error, MN_INVALID, "stream",
                       "it is none of CUDA device %u, or a graph is made of it: %s", queue->device,
                       cudaGetErrorString(result));
    if (result == cudaErrorMemoryAllocation)
        return mn_fail(error, MN_NO_MEMORY, "device", "CUDA device %u has no memory for an event",
                       queue->device);
    return status;
}

extern "C" void mn_cuda_unmark(const mn_cuda_queue *queue, void *mark)
{
    const device_scope scope(queue);
    (void)told(cudaEventDestroy((cudaEvent_t)mark), NULL); /* as unreserve */
}

extern "C" enum mn_status mn_cuda_queue_follow(const mn_cuda_queue *queue, void *mark,
                                               mn_error *error)
{
    const device_scope scope(queue);
    return told(cudaStreamWaitEvent((cudaStream_t)queue->stream, (cudaEvent_t)mark, 0), error);
}

extern "C" enum mn_status mn_cuda_queue_wait(const mn_cuda_queue *queue, mn_error *error)
{
    (void)cudaSetDevice((int)queue->device); /* its work is queued by this thread */
    return told(cudaStreamSynchronize((cudaStream_t)queue->stream), error);
}

extern "C" void *mn_cuda_reserve(const mn_cuda_queue *queue, uint64_t bytes)
{
    const device_scope scope(queue);
    void *memory = NULL;
    if (told(cudaMallocManaged(&memory, bytes, cudaMemAttachGlobal), NULL))
        return NULL;
    advise_near(cudaMemAdvise, memory, bytes, queue->device);
    return memory;
}

extern "C" void mn_cuda_unreserve(const mn_cuda_queue *queue, void *memory)
{
    const device_scope scope(queue);
    (void)told(cudaFree(memory), NULL); /* a device that failed has lost it anyway */
}

extern "C" void *mn_cuda_take(const mn_cuda_queue *queue, uint64_t bytes)
{
    void *memory = NULL;
    (void)cudaSetDevice((int)queue->device); /* as in wait */
    if (told(cudaMallocAsync(&memory, bytes, (cudaStream_t)queue->stream), NULL))
        return NULL;
    return memory;
}

extern "C" void mn_cuda_give(const mn_cuda_queue *queue, void *memory)
{
    const device_scope scope(queue);
    if (memory)
        (void)told(cudaFreeAsync(memory, (cudaStream_t)queue->stream), NULL); /* as unreserve */
}

extern "C" enum mn_status mn_cuda_zero(const mn_cuda_queue *queue, void *memory, uint64_t bytes,
                                       mn_error *error)
{
    (void)cudaSetDevice((int)queue->device); /* as in wait */
    return told(cudaMemsetAsync(memory, 0, bytes, (cudaStream_t)queue->stream), error);
}

extern "C" enum mn_status mn_cuda_copy(const mn_cuda_queue *queue, void *to, const void *from,
                                       uint64_t bytes, mn_error *error)
{
    (void)cudaSetDevice((int)queue->device); /* as in wait */
    if (bytes == 0)
        return MN_OK;
    return told(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, (cudaStream_t)queue->stream),
                error);
}

extern "C" enum mn_status mn_cuda_read(const mn_cuda_queue *queue, void *to, const void *from,
                                       uint64_t bytes, mn_error *error)
{
    const device_scope scope(queue);
    return told(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), error);
}
