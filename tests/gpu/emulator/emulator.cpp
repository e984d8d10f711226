/* Fibers, barriers and the few library calls of emulator.h. */
#include "emulator.h"

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <map>
#include <ucontext.h>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace
{
enum { WARP = 32, THREADS_MAX = 1024, STACK = 256 * 1024 };
enum state { READY, AT_BLOCK, AT_WARP, DONE };

struct fiber {
    ucontext_t context;
    char *stack;
    state at;
    uint3 index;
    uint32_t mask;      /* of the warp barrier it waits at */
    unsigned exchanges; /* so far: their parity picks the buffer */
};

fiber fibers[THREADS_MAX];
uint64_t brought[2][THREADS_MAX];
ucontext_t scheduler;
unsigned current, count;
const std::function<void()> *body;
uint64_t shuffle_state = 1;
/* What sm_80 gives a block; without cudaFuncSetAttribute, and with it. */
const size_t SHARED_UNASKED = 48 << 10, SHARED_MAX = 163 << 10;
alignas(16) char dynamic_shared[SHARED_MAX];
std::map<const void *, size_t> shared_allowed;

[[noreturn]] void die(const char *message)
{
    fprintf(stderr, "emulated CUDA: %s (block %u %u, thread %u)\n", message, blockIdx.x, blockIdx.y,
            current);
    abort();
}

void yield(state at)
{
    const unsigned mine = current;
    fibers[mine].at = at;
    swapcontext(&fibers[mine].context, &scheduler);
    threadIdx = fibers[mine].index;
}

void fiber_main()
{
    threadIdx = fibers[current].index;
    (*body)();
    fibers[current].at = DONE;
    swapcontext(&fibers[current].context, &scheduler);
}

void start(unsigned thread)
{
    fiber &f = fibers[thread];
    if (f.stack == nullptr)
        f.stack = (char *)malloc(STACK);
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack;
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = nullptr;
    makecontext(&f.context, fiber_main, 0);
    f.index.x = thread % blockDim.x;
    f.index.y = thread / blockDim.x % blockDim.y;
    f.index.z = thread / blockDim.x / blockDim.y;
    f.at = READY;
    f.exchanges = 0;
}

/* Runs every ready fiber once, from another one each time and in either direction. */
bool run_ready()
{
    bool any = false;
    shuffle_state = shuffle_state * 6364136223846793005u + 1442695040888963407u;
    const unsigned first = (unsigned)(shuffle_state >> 40) % count;
    const bool backwards = shuffle_state >> 33 & 1;
    for (unsigned i = 0; i < count; i++) {
        const unsigned thread = (first + (backwards ? count - i : i)) % count;
        if (fibers[thread].at != READY)
            continue;
        any = true;
        current = thread;
        swapcontext(&scheduler, &fibers[thread].context);
    }
    return any;
}

/* Frees the warps whose lanes, as their masks name them, have all come. */
bool release_warps()
{
    bool any = false;
    for (unsigned warp = 0; warp < count; warp += WARP) {
        const unsigned lanes = std::min<unsigned>(WARP, count - warp);
        for (unsigned lane = 0; lane < lanes; lane++) {
            const uint32_t mask = fibers[warp + lane].mask;
            bool all = fibers[warp + lane].at == AT_WARP;
            for (unsigned other = 0; all && other < WARP; other++)
                if (mask >> other & 1)
                    all = other < lanes && fibers[warp + other].at == AT_WARP &&
                          fibers[warp + other].mask == mask;
            for (unsigned other = 0; all && other < WARP; other++)
                if (mask >> other & 1)
                    fibers[warp + other].at = READY;
            any |= all;
        }
    }
    return any;
}

bool release_block()
{
    for (unsigned t = 0; t < count; t++)
        if (fibers[t].at != AT_BLOCK)
            return false;
    for (unsigned t = 0; t < count; t++)
        fibers[t].at = READY;
    return true;
}

void run_block()
{
    for (unsigned t = 0; t < count; t++)
        start(t);
    while (run_ready() || release_warps() || release_block())
        ;
    for (current = 0; current < count; current++)
        if (fibers[current].at != DONE)
            die("waits at a barrier that others never reach");
}

float element(const void *array, long long index, cudaDataType_t type)
{
    if (type == CUDA_R_32F)
        return ((const float *)array)[index];
    uint32_t bits = (uint32_t)((const uint16_t *)array)[index] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
} // namespace

void *emulator_dynamic_shared() { return dynamic_shared; }

void emulator_check(bool holds, const char *otherwise)
{
    if (!holds)
        die(otherwise);
}

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute, int value)
{
    if ((size_t)value > SHARED_MAX)
        die("no GPU has so much shared memory");
    shared_allowed[kernel] = (size_t)value;
    return cudaSuccess;
}

void emulator_launch(const cudaLaunchConfig_t &config, const void *kernel,
                     const std::function<void()> &thread)
{
    body = &thread;
    blockDim = config.blockDim, gridDim = config.gridDim;
    count = blockDim.x * blockDim.y * blockDim.z;
    const size_t allowed = std::max(SHARED_UNASKED, shared_allowed[kernel]);
    if (count == 0 || count > THREADS_MAX || gridDim.x == 0 || gridDim.x > 0x7fffffff ||
        gridDim.y == 0 || gridDim.y > 65535 || gridDim.z != 1 || config.dynamicSmemBytes > allowed)
        die("a GPU refuses this launch");
    for (unsigned y = 0; y < gridDim.y; y++)
        for (unsigned x = 0; x < gridDim.x; x++) {
            blockIdx = {x, y, 0};
            memset(dynamic_shared, 0xa5, config.dynamicSmemBytes);
            run_block();
        }
}

void __syncthreads() { yield(AT_BLOCK); }

unsigned emulator_lane() { return current % WARP; }

const uint64_t *emulator_exchange(uint32_t mask, uint64_t mine)
{
    fiber &f = fibers[current];
    if (!(mask >> current % WARP & 1))
        die("a lane outside its own mask");
    uint64_t *buffer = brought[f.exchanges++ & 1];
    buffer[current] = mine;
    f.mask = mask;
    const unsigned warp = current / WARP * WARP;
    yield(AT_WARP);
    return buffer + warp;
}

cudaError_t cudaGetDeviceCount(int *out_count) { return *out_count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int *out_device) { return *out_device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
/* A cache so small that searches take several blocks of tokens; no GPU whose peak is known. */
cudaError_t cudaDeviceGetAttribute(int *out_value, cudaDeviceAttr attribute, int)
{
    *out_value = attribute == cudaDevAttrL2CacheSize ? 65536 : 1;
    return cudaSuccess;
}
cudaError_t cudaMalloc(void **out_memory, size_t bytes)
{
    if (posix_memalign(out_memory, 256, bytes ? bytes : 1) != 0)
        die("no memory");
    memset(*out_memory, 0xa5, bytes);
    return cudaSuccess;
}
cudaError_t cudaFree(void *memory) { return free(memory), cudaSuccess; }
cudaError_t cudaMallocHost(void **out_memory, size_t bytes)
{
    return cudaMalloc(out_memory, bytes);
}
cudaError_t cudaFreeHost(void *memory) { return cudaFree(memory); }
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind)
{
    return memcpy(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t)
{
    return memcpy(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemset(void *memory, int value, size_t bytes)
{
    return memset(memory, value, bytes), cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t)
{
    return cudaMemset(memory, value, bytes);
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }

/* Work is done when it is queued, so that streams are only names. */
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out_stream, unsigned)
{
    *out_stream = (cudaStream_t)malloc(1);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return free(stream), cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }

struct CUevent_st {
    timespec at;
};
cudaError_t cudaEventCreate(cudaEvent_t *out_event)
{
    return *out_event = new CUevent_st(), cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out_event, unsigned)
{
    return cudaEventCreate(out_event);
}
cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t)
{
    clock_gettime(CLOCK_MONOTONIC, &event->at);
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *out_milliseconds, cudaEvent_t begin, cudaEvent_t end)
{
    *out_milliseconds = (float)(end->at.tv_sec - begin->at.tv_sec) * 1e3f +
                        (float)(end->at.tv_nsec - begin->at.tv_nsec) * 1e-6f;
    return cudaSuccess;
}
const char *cudaGetErrorString(cudaError_t) { return "emulated"; }

cublasStatus_t cublasCreate_v2(cublasHandle_t *out_handle)
{
    *out_handle = (cublasHandle_t)malloc(1);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy_v2(cublasHandle_t handle)
{
    return free(handle), CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream_v2(cublasHandle_t, cudaStream_t) { return CUBLAS_STATUS_SUCCESS; }
const char *cublasGetStatusString(cublasStatus_t) { return "emulated"; }

/* Column-major; c = alpha * op(a) op(b) + beta * c, where 0 * c is 0. */
cublasStatus_t cublasGemmEx(cublasHandle_t, cublasOperation_t op_a, cublasOperation_t op_b, int m,
                            int n, int k, const void *alpha, const void *a, cudaDataType_t a_type,
                            int lda, const void *b, cudaDataType_t b_type, int ldb,
                            const void *beta, void *c, cudaDataType_t, int ldc, cublasComputeType_t,
                            cublasGemmAlgo_t)
{
    const float factor = *(const float *)alpha, kept = *(const float *)beta;
    if (lda < (op_a == CUBLAS_OP_N ? m : k) || ldb < (op_b == CUBLAS_OP_N ? k : n) || ldc < m)
        die("cuBLAS refuses this product");
    std::vector<float> row_of_a((size_t)k);
    for (long long row = 0; row < m; row++) {
        for (long long i = 0; i < k; i++)
            row_of_a[(size_t)i] =
                element(a, op_a == CUBLAS_OP_N ? row + i * lda : i + row * lda, a_type);
        for (long long column = 0; column < n; column++) {
            float sum = 0, *to = (float *)c + row + column * ldc;
            for (long long i = 0; i < k; i++)
                sum +=
                    row_of_a[(size_t)i] *
                    element(b, op_b == CUBLAS_OP_N ? i + column * ldb : column + i * ldb, b_type);
            *to = factor * sum + (kept == 0 ? 0 : kept * *to);
        }
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t op_a,
                                          cublasOperation_t op_b, int m, int n, int k,
                                          const void *alpha, const void *a, cudaDataType_t a_type,
                                          int lda, long long stride_a, const void *b,
                                          cudaDataType_t b_type, int ldb, long long stride_b,
                                          const void *beta, void *c, cudaDataType_t c_type, int ldc,
                                          long long stride_c, int batch,
                                          cublasComputeType_t compute, cublasGemmAlgo_t algorithm)
{
    const long long a_bytes = a_type == CUDA_R_32F ? 4 : 2, b_bytes = b_type == CUDA_R_32F ? 4 : 2;
    for (long long t = 0; t < batch; t++)
        (void)cublasGemmEx(handle, op_a, op_b, m, n, k, alpha,
                           (const char *)a + t * stride_a * a_bytes, a_type, lda,
                           (const char *)b + t * stride_b * b_bytes, b_type, ldb, beta,
                           (float *)c + t * stride_c, c_type, ldc, compute, algorithm);
    return CUBLAS_STATUS_SUCCESS;
}
