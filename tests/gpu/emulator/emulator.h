/* CUDA on a CPU, as far as our kernels use it: every thread of a block is a fiber, blocks run one
 * after another, and device memory is ordinary memory, so that address sanitizers watch it. Fibers
 * run in an order that differs from barrier to barrier: what only works in the order of a machine
 * shows. Ends the program at a barrier that not all threads reach, and at a launch that a GPU would
 * refuse. Any number of threads may call; their work runs one after another. Stands in for
 * cuda_runtime.h, cublas_v2.h and cub/cub.cuh. */
#ifndef MN_TESTS_GPU_EMULATOR_H
#define MN_TESTS_GPU_EMULATOR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum cudaError {
    cudaSuccess = 0,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureWrongThread = 908
} cudaError_t;
enum cudaMemcpyKind {
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaMemcpyDefault = 4
};
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrConcurrentManagedAccess = 89,
    cudaDevAttrMemoryPoolsSupported = 115
};
typedef enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone = 0,
    cudaStreamCaptureStatusActive = 1
} cudaStreamCaptureStatus;
enum cudaMemoryAdvise { cudaMemAdviseSetPreferredLocation = 3 };
enum cudaMemLocationType { cudaMemLocationTypeDevice = 1 };
struct cudaMemLocation {
    enum cudaMemLocationType type;
    int id;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4 };
enum {
    cudaStreamNonBlocking = 1,
    cudaEventDisableTiming = 2,
    cudaHostAllocDefault = 0,
    cudaMemAttachGlobal = 1
};
typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;
typedef struct CUmemPoolHandle_st *cudaMemPool_t;

cudaError_t cudaGetDeviceCount(int *out_count);
cudaError_t cudaGetDevice(int *out_device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int *out_value, enum cudaDeviceAttr attribute, int device);
cudaError_t cudaMalloc(void **out_memory, size_t bytes);
cudaError_t cudaMallocManaged(void **out_memory, size_t bytes, unsigned flags);
cudaError_t cudaMemAdvise(const void *memory, size_t bytes, enum cudaMemoryAdvise advice,
                          struct cudaMemLocation location);
cudaError_t cudaFree(void *memory);
cudaError_t cudaMallocHost(void **out_memory, size_t bytes);
cudaError_t cudaMallocAsync(void **out_memory, size_t bytes, cudaStream_t stream);
cudaError_t cudaFreeAsync(void *memory, cudaStream_t stream);
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *out_pool, int device);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute,
                                    void *value);
cudaError_t cudaHostAlloc(void **out_memory, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void *memory);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out_stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *out_status);
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemset(void *memory, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaGetLastError(void);
cudaError_t cudaEventCreate(cudaEvent_t *out_event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out_event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *out_milliseconds, cudaEvent_t begin, cudaEvent_t end);
const char *cudaGetErrorString(cudaError_t error);

/* From now on a host that touches device memory, but managed, after it has waited for a stream or a
 * copy, ends with SIGSEGV; and a launch or a copy that is given memory of the other side ends the
 * program. */
void emulator_guard(void);
void emulator_leave_error(cudaError_t error); /* as a call of this thread that failed */
/* Which of the two devices have a context, a bit for each; forgets them. */
uint32_t emulator_contexts(void);
/* A stream whose copies and fills run only when something waits for them, as on a GPU that is
 * behind. */
cudaStream_t emulator_lazy_stream(void);
void emulator_capture(cudaStream_t stream, int captured); /* a graph is made of it */
void emulator_lazy_streams(void);                         /* every stream made from now on is one */
uint64_t emulator_waiting(cudaStream_t stream); /* pieces of work that do; NULL: in all of them */
/* There is memory for so many more blocks, managed ones too. UINT64_MAX: for any number. */
void emulator_memory_for(uint64_t blocks);
uint64_t emulator_blocks(void); /* of device memory, taken and not given back */
/* After so many more pieces of work the device fails, and stays so. UINT64_MAX: never. */
void emulator_fail_after(uint64_t pieces);

typedef struct cublasContext *cublasHandle_t;
typedef enum { CUBLAS_STATUS_SUCCESS = 0 } cublasStatus_t;
typedef enum { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 } cublasOperation_t;
typedef enum { CUDA_R_32F = 0, CUDA_R_16BF = 14 } cudaDataType_t;
typedef enum { CUBLAS_COMPUTE_32F = 68 } cublasComputeType_t;
typedef enum { CUBLAS_GEMM_DEFAULT = -1 } cublasGemmAlgo_t;

cublasStatus_t cublasCreate_v2(cublasHandle_t *out_handle);
cublasStatus_t cublasDestroy_v2(cublasHandle_t handle);
cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream);
const char *cublasGetStatusString(cublasStatus_t status);
/* Column-major, as cuBLAS has it. */
cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t op_a,
                                          cublasOperation_t op_b, int m, int n, int k,
                                          const void *alpha, const void *a, cudaDataType_t a_type,
                                          int lda, long long stride_a, const void *b,
                                          cudaDataType_t b_type, int ldb, long long stride_b,
                                          const void *beta, void *c, cudaDataType_t c_type, int ldc,
                                          long long stride_c, int batch,
                                          cublasComputeType_t compute, cublasGemmAlgo_t algorithm);
cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                            int m, int n, int k, const void *alpha, const void *a,
                            cudaDataType_t a_type, int lda, const void *b, cudaDataType_t b_type,
                            int ldb, const void *beta, void *c, cudaDataType_t c_type, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t algorithm);

#ifdef __cplusplus
}

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <mutex>
#include <numeric>
#include <type_traits>
#include <typeinfo>
#include <vector>

#define cublasCreate    cublasCreate_v2
#define cublasDestroy   cublasDestroy_v2
#define cublasSetStream cublasSetStream_v2

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define __noinline__    __attribute__((noinline))
#define __shared__      static /* blocks run one after another */
#define __launch_bounds__(...)

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    void *attrs;
    unsigned numAttrs;
};

/* While one lives, this thread is the device, and the others wait. */
struct emulator_work {
    explicit emulator_work(cudaStream_t stream);
    emulator_work(const emulator_work &) = delete;
    std::unique_lock<std::recursive_mutex> lock;
};
cudaError_t emulator_state(); /* of the device: cudaSuccess, or how it failed */
cudaError_t emulator_stream_state(cudaStream_t stream);
void emulator_check_argument(const void *argument, size_t bytes);
/* Pointers, and the structures of kernels/cuda that hold some: of others, padding may look so. */
template <typename T> void emulator_check_pointers(const T &argument)
{
    const bool holds = strstr(typeid(T).name(), "device_") || strstr(typeid(T).name(), "plan");
    if (std::is_pointer<T>::value || (std::is_class<T>::value && holds))
        emulator_check_argument(&argument, sizeof argument);
}
void emulator_launch(const cudaLaunchConfig_t &config, const void *kernel,
                     const std::function<void()> &thread);
/* Ends the program where something does not hold on a GPU either. */
void emulator_check(bool holds, const char *otherwise);
void *emulator_dynamic_shared();

/* More than every kernel gets unasked. */
cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value);

template <typename... Expected, typename... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(Expected...),
                               Given &&...given)
{
    emulator_work work(config->stream);
    if (emulator_stream_state(config->stream) != cudaSuccess)
        return emulator_stream_state(config->stream);
    if (emulator_state() != cudaSuccess)
        return emulator_state();
    [&](Expected... arguments) {
        (emulator_check_pointers(arguments), ...);
        emulator_launch(*config, (const void *)kernel, [&] { kernel(arguments...); });
    }(std::forward<Given>(given)...);
    return cudaSuccess;
}

void __syncthreads();
/* What each lane of the warp named in `mask` brought, by lane; all of them must come. */
const uint64_t *emulator_exchange(uint32_t mask, uint64_t mine);
unsigned emulator_lane();

static inline void __syncwarp(uint32_t mask = 0xffffffff) { (void)emulator_exchange(mask, 0); }

template <typename T> T __shfl_sync(uint32_t mask, T mine, int lane)
{
    uint64_t bits = 0;
    memcpy(&bits, &mine, sizeof mine);
    memcpy(&mine, &emulator_exchange(mask, bits)[lane & 31], sizeof mine);
    return mine;
}
template <typename T> T __shfl_xor_sync(uint32_t mask, T mine, int lane_mask)
{
    return __shfl_sync(mask, mine, (int)emulator_lane() ^ lane_mask);
}

static inline uint32_t __ballot_sync(uint32_t mask, int predicate)
{
    const uint64_t *all = emulator_exchange(mask, predicate != 0);
    uint32_t bits = 0;
    for (int lane = 0; lane < 32; lane++)
        bits |= (mask >> lane & 1 && all[lane]) ? 1u << lane : 0;
    return bits;
}
static inline int __any_sync(uint32_t mask, int predicate)
{
    return __ballot_sync(mask, predicate) != 0;
}
static inline int __reduce_max_sync(uint32_t mask, int value)
{
    const uint64_t *all = emulator_exchange(mask, (uint32_t)value);
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1)
            value = std::max(value, (int)(uint32_t)all[lane]);
    return value;
}
static inline int __reduce_min_sync(uint32_t mask, int value)
{
    const uint64_t *all = emulator_exchange(mask, (uint32_t)value);
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1)
            value = std::min(value, (int)(uint32_t)all[lane]);
    return value;
}

static inline int __popc(uint32_t bits) { return __builtin_popcount(bits); }
static inline int __ffs(int bits) { return __builtin_ffs(bits); }
static inline uint64_t __umul64hi(uint64_t a, uint64_t b)
{
    return (uint64_t)((unsigned __int128)a * b >> 64);
}
static inline unsigned long long atomicAdd(unsigned long long *to, unsigned long long value)
{
    unsigned long long before = *to;
    *to += value;
    return before;
}
static inline unsigned long long atomicMin(unsigned long long *to, unsigned long long value)
{
    unsigned long long before = *to;
    *to = std::min(before, value);
    return before;
}

namespace cub
{
struct DeviceRadixSort {
    /* Stable, by bits [begin, end) of the keys. */
    template <typename Key, typename Value>
    static cudaError_t SortPairs(void *temporary, size_t &bytes, const Key *keys, Key *out_keys,
                                 const Value *values, Value *out_values, int64_t n, int begin,
                                 int end, cudaStream_t stream)
    {
        bytes = 1;
        if (temporary == nullptr)
            return cudaSuccess;
        emulator_work work(stream);
        const Key mask = (end == sizeof(Key) * 8 ? 0 : Key(1) << end) - (Key(1) << begin);
        std::vector<int64_t> order(n);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(),
                         [&](int64_t a, int64_t b) { return (keys[a] & mask) < (keys[b] & mask); });
        for (int64_t i = 0; i < n; i++)
            out_keys[i] = keys[order[i]], out_values[i] = values[order[i]];
        return cudaSuccess;
    }
};

struct DeviceSelect {
    template <typename Value, typename Count>
    static cudaError_t Flagged(void *temporary, size_t &bytes, const Value *in,
                               const uint8_t *flags, Value *out, Count *out_count, int64_t n,
                               cudaStream_t stream)
    {
        bytes = 1;
        if (temporary == nullptr)
            return cudaSuccess;
        emulator_work work(stream);
        *out_count = 0;
        for (int64_t i = 0; i < n; i++)
            if (flags[i])
                out[(*out_count)++] = in[i];
        return cudaSuccess;
    }
};
} // namespace cub

#endif
#endif
