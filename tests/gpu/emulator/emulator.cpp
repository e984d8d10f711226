/* Fibers and barriers, and the few calls of cuBLAS; memory and streams: memory.cpp. */
#include "emulator.h"

#include <cstdio>
#include <cstdlib>
#include <map>

#if !defined(__x86_64__)
#error "the switch between fibers is written for x86-64"
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

/* Keeps the registers that a call must keep on the stack, leaves the stack's end in *from, and goes
 * on where `to` was left: a hundred times as fast as swapcontext, which asks the kernel twice. */
extern "C" void emulator_switch(void **from, void *to);
asm(".text\n.globl emulator_switch\n.type emulator_switch,@function\nemulator_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size emulator_switch,.-emulator_switch\n");

namespace
{
enum { WARP = 32, THREADS_MAX = 1024, STACK = 256 * 1024 };
enum state { READY, AT_BLOCK, AT_WARP, DONE };

struct fiber {
    char *stack;
    void *top; /* where it goes on */
    state at;
    uint3 index;
    uint32_t mask;      /* of the warp barrier it waits at */
    unsigned exchanges; /* so far: their parity picks the buffer */
};

fiber fibers[THREADS_MAX];
uint64_t brought[2][THREADS_MAX];
void *scheduler;
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
    emulator_switch(&fibers[mine].top, scheduler);
    threadIdx = fibers[mine].index;
}

/* A fiber serves one thread after another. */
void fiber_main()
{
    for (;;) {
        threadIdx = fibers[current].index;
        (*body)();
        yield(DONE);
    }
}

void start(unsigned thread)
{
    enum { REGISTERS = 6 };
    fiber &f = fibers[thread];
    if (f.stack == nullptr) {
        f.stack = (char *)malloc(STACK);
        void **top = (void **)((uintptr_t)(f.stack + STACK) / 16 * 16) - 2;
        *top = (void *)fiber_main; /* as if it had been called from nowhere */
        top[1] = nullptr;
        f.top = memset(top - REGISTERS, 0, REGISTERS * sizeof *top);
    }
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
        emulator_switch(&scheduler, fibers[thread].top);
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

struct cublasContext {
    cudaStream_t stream;
};
cublasStatus_t cublasCreate_v2(cublasHandle_t *out_handle)
{
    return *out_handle = new cublasContext(), CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy_v2(cublasHandle_t handle)
{
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream)
{
    return handle->stream = stream, CUBLAS_STATUS_SUCCESS;
}
const char *cublasGetStatusString(cublasStatus_t) { return "emulated"; }

/* Column-major; c = alpha * op(a) op(b) + beta * c, where 0 * c is 0. */
cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                            int m, int n, int k, const void *alpha, const void *a,
                            cudaDataType_t a_type, int lda, const void *b, cudaDataType_t b_type,
                            int ldb, const void *beta, void *c, cudaDataType_t, int ldc,
                            cublasComputeType_t, cublasGemmAlgo_t)
{
    emulator_work work(handle->stream);
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
