/* Memory, copies, streams and events of emulator.h. Work is done at once, but what a lazy stream is
 * given waits in it. */
#include "emulator.h"

#include "context.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <map>
#include <set>
#include <sys/mman.h>
#include <utility>

struct CUstream_st {
    int device;
    bool lazy, captured;
    uint64_t done; /* of its work */
    std::vector<std::function<void()>> waiting;
};
struct CUevent_st {
    int device;
    timespec at;
    cudaStream_t stream; /* that it was recorded in */
    uint64_t work;       /* that the stream had been given by then */
};

namespace
{
const size_t ARENA = size_t(8) << 30, ALIGNMENT = 256, PAGE = 4096;
const int DEVICES = 2;

std::recursive_mutex mutex;
std::map<uintptr_t, size_t> blocks; /* of the arena */
std::map<uintptr_t, size_t> shared; /* managed and pinned memory */
std::set<cudaStream_t> streams;
char *arena;            /* guarded: where device memory lies; else NULL */
size_t opened, touched; /* of the arena, from its beginning: may be touched; was */
uint64_t pieces_left = UINT64_MAX, blocks_left = UINT64_MAX, blocks_taken;
bool lazy_streams;
const cudaError_t cudaErrorEccUncorrectable = cudaError_t(214);
thread_local int chosen;              /* the thread's device, unless contexts are pushed: */
thread_local std::vector<int> pushed; /* their devices */
std::atomic<uint32_t> contexts;       /* a bit for each device that has one */

int current_device() { return pushed.empty() ? chosen : pushed.back(); }

/* Whatever works on a device makes a context on it. */
int worked_on()
{
    const int device = current_device();
    contexts |= 1u << device;
    return device;
}

[[noreturn]] void die(const char *message)
{
    fprintf(stderr, "emulated CUDA: %s\n", message);
    abort();
}

void protect(size_t from, size_t to, int how)
{
    if (to > from && mprotect(arena + from, to - from, how) != 0)
        die("mprotect failed");
}

/* How far blocks reach. */
size_t arena_used()
{
    if (blocks.empty())
        return 0;
    const auto last = blocks.rbegin();
    return (last->first + last->second - (uintptr_t)arena + PAGE - 1) / PAGE * PAGE;
}

void open_arena()
{
    const size_t used = arena != nullptr ? arena_used() : 0;
    if (used > opened) {
        protect(opened, used, PROT_READ | PROT_WRITE);
        opened = used;
        touched = std::max(touched, used);
    }
}

/* Before the host goes on after a wait. What is over goes back: closing pages takes time. */
void close_arena()
{
    const size_t used = arena != nullptr ? arena_used() : 0;
    protect(0, opened, PROT_NONE);
    opened = 0;
    if (touched > used)
        (void)madvise(arena + used, touched - used, MADV_DONTNEED); /* a wish */
    touched = used;
}

bool within(const std::map<uintptr_t, size_t> &ranges, uintptr_t address)
{
    auto after = ranges.upper_bound(address);
    return after != ranges.begin() && address <= (--after)->first + after->second;
}

bool in_arena(uintptr_t address)
{
    return arena != nullptr && address >= (uintptr_t)arena && address < (uintptr_t)arena + ARENA;
}

/* Does the stream's work up to that many pieces in all. */
void flush(cudaStream_t stream, uint64_t upto = UINT64_MAX)
{
    while (stream != nullptr && stream->done < upto && !stream->waiting.empty()) {
        const std::function<void()> work = stream->waiting.front();
        stream->waiting.erase(stream->waiting.begin());
        stream->done++;
        work();
    }
}

/* The first gap that is large enough. */
void *arena_take(size_t bytes)
{
    uintptr_t at = (uintptr_t)arena;
    const size_t rounded = (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
    for (const auto &block : blocks) {
        if (block.first - at >= rounded)
            break;
        at = block.first + block.second;
    }
    if (at + rounded > (uintptr_t)arena + ARENA)
        die("no memory");
    blocks[at] = rounded;
    open_arena();
    return (void *)at;
}

void *device_take(size_t bytes)
{
    emulator_work work(nullptr);
    void *memory = nullptr;
    blocks_taken++;
    if (arena != nullptr)
        memory = arena_take(bytes);
    else if (posix_memalign(&memory, ALIGNMENT, bytes ? bytes : 1) != 0)
        die("no memory");
    return memset(memory, 0xa5, bytes);
}

/* Managed and pinned memory: ordinary, but known. */
void *shared_take(size_t bytes)
{
    emulator_work work(nullptr);
    void *memory = nullptr;
    if (posix_memalign(&memory, ALIGNMENT, bytes ? bytes : 1) != 0)
        die("no memory");
    shared[(uintptr_t)memory] = bytes;
    return memset(memory, 0xa5, bytes);
}

void give(void *memory)
{
    emulator_work work(nullptr);
    if (memory == nullptr)
        return;
    const bool device = shared.erase((uintptr_t)memory) == 0;
    blocks_taken -= device;
    if (blocks.erase((uintptr_t)memory) != 0)
        return;
    if (device && arena != nullptr)
        die("memory is given back that was not taken");
    free(memory);
}

/* Whether there is memory for one more block. */
bool counted()
{
    emulator_work work(nullptr);
    if (blocks_left == 0)
        return false;
    blocks_left -= blocks_left != UINT64_MAX;
    return true;
}

void check_side(const void *memory, bool device)
{
    const uintptr_t address = (uintptr_t)memory;
    if (arena != nullptr && in_arena(address) != device && !within(shared, address))
        die(device ? "host memory is given as the device's"
                   : "device memory is given as the host's");
}
} // namespace

emulator_work::emulator_work(cudaStream_t stream) : lock(mutex)
{
    (void)worked_on();
    open_arena();
    if (stream != nullptr)
        flush(stream);
}

void emulator_guard()
{
    void *memory =
        mmap(nullptr, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        die("no memory");
    arena = (char *)memory;
}

void emulator_fail_after(uint64_t pieces)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    pieces_left = pieces;
}

void emulator_memory_for(uint64_t more)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    blocks_left = more;
}

uint64_t emulator_blocks() { return blocks_taken; }

uint64_t emulator_waiting(cudaStream_t stream)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    uint64_t waiting = 0;
    for (const cudaStream_t one : streams)
        waiting += stream == nullptr || one == stream ? one->waiting.size() : 0;
    return waiting;
}

/* Counts a piece of work. */
cudaError_t emulator_state()
{
    if (pieces_left == 0)
        return cudaErrorEccUncorrectable;
    pieces_left -= pieces_left != UINT64_MAX;
    return cudaSuccess;
}

/* Words that look like addresses of this process are ones: they must be the device's. */
void emulator_check_argument(const void *argument, size_t bytes)
{
    if (arena == nullptr)
        return;
    for (size_t at = 0; at + sizeof(uintptr_t) <= bytes; at += sizeof(uintptr_t)) {
        uintptr_t word;
        memcpy(&word, (const char *)argument + at, sizeof word);
        if (word >= UINT64_C(0x550000000000) && word < UINT64_C(0x800000000000) &&
            !in_arena(word) && !within(shared, word))
            die("a launch is given host memory");
    }
}

uint32_t emulator_contexts() { return contexts.exchange(0); }

/* To a kernel, on the current device. */
cudaError_t emulator_stream_state(cudaStream_t stream)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    return stream == nullptr || stream->device == worked_on() ? cudaSuccess
                                                              : cudaErrorInvalidResourceHandle;
}

cudaError_t context_retain(uint32_t device, void **out_context)
{
    contexts |= 1u << device;
    return *out_context = (void *)(uintptr_t)(device + 1), cudaSuccess;
}
bool context_push(void *context)
{
    if (context != nullptr)
        pushed.push_back((int)(uintptr_t)context - 1);
    return context != nullptr;
}
void context_pop() { pushed.pop_back(); }

cudaError_t cudaGetDeviceCount(int *out_count) { return *out_count = DEVICES, cudaSuccess; }
cudaError_t cudaGetDevice(int *out_device) { return *out_device = current_device(), cudaSuccess; }
/* As from CUDA 12 on: it makes a context. */
cudaError_t cudaSetDevice(int device)
{
    if (device < 0 || device >= DEVICES)
        return cudaErrorInvalidDevice;
    (pushed.empty() ? chosen : pushed.back()) = device;
    return (void)worked_on(), cudaSuccess;
}
/* A cache so small that searches take several blocks of tokens; whatever else is there; no GPU whose
 * peak is known. */
cudaError_t cudaDeviceGetAttribute(int *out_value, cudaDeviceAttr attribute, int)
{
    *out_value = 1;
    if (attribute == cudaDevAttrL2CacheSize)
        *out_value = 65536;
    else if (attribute == cudaDevAttrComputeCapabilityMajor)
        *out_value = 9;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **out_memory, size_t bytes)
{
    if (!counted())
        return cudaErrorMemoryAllocation;
    return *out_memory = device_take(bytes), cudaSuccess;
}
cudaError_t cudaFree(void *memory) { return give(memory), cudaSuccess; }
cudaError_t cudaMallocAsync(void **out_memory, size_t bytes, cudaStream_t)
{
    return cudaMalloc(out_memory, bytes);
}
cudaError_t cudaFreeAsync(void *memory, cudaStream_t stream)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    if (stream == nullptr || stream->waiting.empty())
        return cudaFree(memory);
    stream->waiting.push_back([=] { give(memory); }); /* after what is to be done with it */
    return cudaSuccess;
}
cudaError_t cudaMallocManaged(void **out_memory, size_t bytes, unsigned)
{
    if (!counted())
        return cudaErrorMemoryAllocation;
    return *out_memory = shared_take(bytes), cudaSuccess;
}
cudaError_t cudaMemAdvise(const void *memory, size_t, cudaMemoryAdvise, cudaMemLocation)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    if (!within(shared, (uintptr_t)memory))
        die("advice about memory that is not managed");
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **out_memory, size_t bytes, unsigned)
{
    return *out_memory = shared_take(bytes), cudaSuccess;
}
cudaError_t cudaMallocHost(void **out_memory, size_t bytes)
{
    return cudaHostAlloc(out_memory, bytes, cudaHostAllocDefault);
}
cudaError_t cudaFreeHost(void *memory) { return give(memory), cudaSuccess; }
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *out_pool, int)
{
    return *out_pool = nullptr, cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *) { return cudaSuccess; }

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    std::unique_lock<std::recursive_mutex> guard(mutex);
    (void)worked_on();
    if (emulator_state() != cudaSuccess)
        return cudaErrorEccUncorrectable;
    if (kind != cudaMemcpyDefault) {
        check_side(to, kind != cudaMemcpyDeviceToHost);
        check_side(from, kind != cudaMemcpyHostToDevice);
    }
    if (stream != nullptr && stream->lazy) {
        stream->waiting.push_back([=] {
            emulator_work work(nullptr);
            memcpy(to, from, bytes);
        });
        return cudaSuccess;
    }
    emulator_work work(stream);
    return memcpy(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    const cudaError_t result = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
    std::lock_guard<std::recursive_mutex> guard(mutex);
    close_arena();
    return result;
}
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream)
{
    std::unique_lock<std::recursive_mutex> guard(mutex);
    if (emulator_state() != cudaSuccess)
        return cudaErrorEccUncorrectable;
    check_side(memory, true);
    emulator_work work(stream);
    return memset(memory, value, bytes), cudaSuccess;
}
cudaError_t cudaMemset(void *memory, int value, size_t bytes)
{
    return cudaMemsetAsync(memory, value, bytes, nullptr);
}

cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
/* Of the thread; what goes wrong here leaves none. */
static thread_local cudaError_t last_error;
void emulator_leave_error(cudaError_t error) { last_error = error; }
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

static cudaStream_t stream_new(bool lazy)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    return *streams.insert(new CUstream_st{worked_on(), lazy, false, 0, {}}).first;
}
cudaStream_t emulator_lazy_stream() { return stream_new(true); }
void emulator_lazy_streams() { lazy_streams = true; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out_stream, unsigned)
{
    return *out_stream = stream_new(lazy_streams), cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    emulator_work work(stream);
    close_arena();
    return pieces_left == 0 ? cudaErrorEccUncorrectable : cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    emulator_work work(stream);
    streams.erase(stream);
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t event, unsigned)
{
    emulator_work work(nullptr);
    flush(event->stream, event->work);
    return cudaSuccess;
}
void emulator_capture(cudaStream_t stream, int captured) { stream->captured = captured != 0; }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *out_status)
{
    const bool captured = stream != nullptr && stream->captured;
    *out_status = captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *out_event)
{
    return *out_event = new CUevent_st{worked_on(), {}, nullptr, 0}, cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out_event, unsigned)
{
    return cudaEventCreate(out_event);
}
cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    (void)worked_on();
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    if ((stream == nullptr ? worked_on() : stream->device) != event->device)
        return cudaErrorInvalidResourceHandle;
    emulator_work work(nullptr);
    if (pieces_left == 0)
        return cudaErrorEccUncorrectable;
    clock_gettime(CLOCK_MONOTONIC, &event->at);
    event->stream = stream;
    event->work = stream == nullptr ? 0 : stream->done + stream->waiting.size();
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    return cudaStreamWaitEvent(nullptr, event, 0);
}
cudaError_t cudaEventElapsedTime(float *out_milliseconds, cudaEvent_t begin, cudaEvent_t end)
{
    *out_milliseconds = (float)(end->at.tv_sec - begin->at.tv_sec) * 1e3f +
                        (float)(end->at.tv_nsec - begin->at.tv_nsec) * 1e-6f;
    return cudaSuccess;
}
const char *cudaGetErrorString(cudaError_t) { return "emulated"; }
