/* The context of mn_nn_cuda.h, and memory, copies and events. */
#include "nn_device.h"

#include <new>

static const uint64_t NUMBERS = 8;

static enum mn_status allocated(cudaError_t result, uint64_t bytes, mn_error *error)
{
    if (result != cudaErrorMemoryAllocation)
        return launched(result, error);
    (void)cudaGetLastError(); /* told here */
    return mn_fail(error, MN_NO_MEMORY, "bytes", "no room for %llu bytes",
                   (unsigned long long)bytes);
}

/* All that is open so far is closed: what was never opened is NULL. */
extern "C" void mn_cuda_nn_destroy(mn_cuda_nn *nn)
{
    if (nn == NULL)
        return;
    if (nn->stream)
        (void)cudaStreamSynchronize(nn->stream); /* at the end: nobody to tell, here and below */
    if (nn->copies)
        (void)cudaStreamSynchronize(nn->copies);
    mn_cuda_close(&nn->cuda);
    (void)cudaFree(nn->number);
    (void)cudaFreeHost(nn->pinned);
    if (nn->worked)
        (void)cudaEventDestroy(nn->worked);
    if (nn->copied)
        (void)cudaEventDestroy(nn->copied);
    if (nn->copies)
        (void)cudaStreamDestroy(nn->copies);
    if (nn->stream)
        (void)cudaStreamDestroy(nn->stream);
    delete nn;
}

static enum mn_status open_all(mn_cuda_nn *nn, mn_error *error)
{
    cudaError_t result = cudaStreamCreateWithFlags(&nn->stream, cudaStreamNonBlocking);
    if (result == cudaSuccess)
        result = cudaStreamCreateWithFlags(&nn->copies, cudaStreamNonBlocking);
    if (result == cudaSuccess)
        result = cudaEventCreateWithFlags(&nn->worked, cudaEventDisableTiming);
    if (result == cudaSuccess)
        result = cudaEventCreateWithFlags(&nn->copied, cudaEventDisableTiming);
    if (result == cudaSuccess)
        result = cudaMalloc((void **)&nn->number, NUMBERS * sizeof *nn->number);
    if (result == cudaSuccess)
        result = cudaMallocHost((void **)&nn->pinned, NUMBERS * sizeof *nn->pinned);
    const enum mn_status status = allocated(result, NUMBERS * sizeof *nn->number, error);
    if (status)
        return status;
    return product_queued(cublasSetStream((cublasHandle_t)nn->cuda.blas, nn->stream), error);
}

extern "C" enum mn_status mn_cuda_nn_create(const mn_cuda_nn_options *options, mn_cuda_nn **out_nn,
                                            mn_error *error)
{
    enum mn_status status = launched(cudaSetDevice((int)options->device), error);
    if (status)
        return status;
    mn_cuda_nn *nn = new (std::nothrow) mn_cuda_nn();
    if (nn == NULL)
        return mn_fail(error, MN_NO_MEMORY, "bytes", "no room for a context");
    nn->bf16 = options->bf16_products;
    status = mn_cuda_open(&nn->cuda, error);
    if (status == MN_OK)
        status = open_all(nn, error);
    if (status)
        mn_cuda_nn_destroy(nn);
    else
        *out_nn = nn;
    return status;
}

extern "C" void *mn_cuda_nn_stream(const mn_cuda_nn *nn) { return nn->stream; }

extern "C" void mn_cuda_nn_lend(mn_cuda_nn *nn, void *scratch, uint64_t bytes)
{
    nn->scratch = (char *)scratch, nn->scratch_bytes = bytes;
}

/* ---- Memory ---- */

extern "C" enum mn_status mn_cuda_memory_create(uint64_t bytes, void **out_memory, mn_error *error)
{
    void *memory = NULL;
    const enum mn_status status = allocated(cudaMalloc(&memory, bytes), bytes, error);
    if (status == MN_OK)
        *out_memory = memory;
    return status;
}

extern "C" void mn_cuda_memory_destroy(void *memory)
{
    (void)cudaFree(memory); /* nobody to tell */
}

extern "C" enum mn_status mn_cuda_pinned_create(uint64_t bytes, void **out_memory, mn_error *error)
{
    void *memory = NULL;
    const enum mn_status status = allocated(cudaMallocHost(&memory, bytes), bytes, error);
    if (status == MN_OK)
        *out_memory = memory;
    return status;
}

extern "C" void mn_cuda_pinned_destroy(void *memory)
{
    (void)cudaFreeHost(memory); /* nobody to tell */
}

/* ---- Copies ---- */

/* Pinned memory, too, is free again on return: the copy has been made. */
extern "C" enum mn_status mn_cuda_memory_write(mn_cuda_nn *nn, void *to, const void *from,
                                               uint64_t bytes, mn_error *error)
{
    mn_narrow_forget(nn, to, bytes);
    cudaError_t result = cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, nn->stream);
    if (result == cudaSuccess)
        result = cudaStreamSynchronize(nn->stream);
    return launched(result, error);
}

extern "C" enum mn_status mn_cuda_memory_read(mn_cuda_nn *nn, void *to, const void *from,
                                              uint64_t bytes, mn_error *error)
{
    cudaError_t result = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, nn->stream);
    if (result == cudaSuccess)
        result = cudaStreamSynchronize(nn->stream);
    return launched(result, error);
}

extern "C" enum mn_status mn_cuda_memory_zero(mn_cuda_nn *nn, void *memory, uint64_t bytes,
                                              mn_error *error)
{
    mn_narrow_forget(nn, memory, bytes);
    return launched(cudaMemsetAsync(memory, 0, bytes, nn->stream), error);
}

extern "C" enum mn_status mn_cuda_memory_copy(mn_cuda_nn *nn, void *to, const void *from,
                                              uint64_t bytes, mn_error *error)
{
    mn_narrow_forget(nn, to, bytes);
    return launched(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, nn->stream), error);
}

extern "C" enum mn_status mn_cuda_memory_copy_out(mn_cuda_nn *nn, void *to, const void *from,
                                                  uint64_t bytes, mn_error *error)
{
    cudaError_t result = cudaEventRecord(nn->worked, nn->stream);
    if (result == cudaSuccess)
        result = cudaStreamWaitEvent(nn->copies, nn->worked, 0);
    if (result == cudaSuccess)
        result = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, nn->copies);
    return launched(result, error);
}

extern "C" enum mn_status mn_cuda_memory_copy_in(mn_cuda_nn *nn, void *to, const void *from,
                                                 uint64_t bytes, mn_error *error)
{
    mn_narrow_forget(nn, to, bytes);
    cudaError_t result = cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, nn->copies);
    if (result == cudaSuccess)
        result = cudaEventRecord(nn->copied, nn->copies);
    if (result == cudaSuccess)
        result = cudaStreamWaitEvent(nn->stream, nn->copied, 0);
    return launched(result, error);
}

extern "C" enum mn_status mn_cuda_memory_wait_copies(mn_cuda_nn *nn, mn_error *error)
{
    return launched(cudaStreamSynchronize(nn->copies), error);
}

extern "C" enum mn_status mn_cuda_memory_wait(mn_cuda_nn *nn, mn_error *error)
{
    return launched(cudaStreamSynchronize(nn->stream), error);
}

/* ---- Events ---- */

extern "C" enum mn_status mn_cuda_event_create(void **out_event, mn_error *error)
{
    cudaEvent_t event = NULL;
    const enum mn_status status = launched(cudaEventCreate(&event), error);
    if (status == MN_OK)
        *out_event = event;
    return status;
}

extern "C" void mn_cuda_event_destroy(void *event)
{
    if (event)
        (void)cudaEventDestroy((cudaEvent_t)event); /* nobody to tell */
}

extern "C" enum mn_status mn_cuda_event_record(mn_cuda_nn *nn, void *event, mn_error *error)
{
    return launched(cudaEventRecord((cudaEvent_t)event, nn->stream), error);
}

extern "C" enum mn_status mn_cuda_event_seconds(void *earlier, void *later, double *out_seconds,
                                                mn_error *error)
{
    float milliseconds = 0;
    cudaError_t result = cudaEventSynchronize((cudaEvent_t)later);
    if (result == cudaSuccess)
        result = cudaEventElapsedTime(&milliseconds, (cudaEvent_t)earlier, (cudaEvent_t)later);
    const enum mn_status status = launched(result, error);
    if (status == MN_OK)
        *out_seconds = (double)milliseconds * 1e-3;
    return status;
}
