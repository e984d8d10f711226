/* A device's context made current for a while on a thread that has another, or none (CUDA driver
 * API, "Primary Context Management"). The runtime can only choose a device anew, and that makes a
 * context, some hundreds of MB, on device 0 for a thread that had chosen none. The driver's library
 * is asked for at run time, so that a program starts without one. tests/gpu/emulator has the same
 * names for a CPU. */
#ifndef MN_CUDA_CONTEXT_H
#define MN_CUDA_CONTEXT_H

#include <cuda.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

struct context_functions {
    CUresult (*retain)(CUcontext *out_context, CUdevice device);
    CUresult (*push)(CUcontext context);
    CUresult (*pop)(CUcontext *out_context);
};

/* NULL: there is no driver that has them all. */
static inline const context_functions *context_driver(void)
{
    static const context_functions functions = [] {
        void *library = dlopen("libcuda.so.1", RTLD_NOW);
        context_functions found = {};
        if (library == NULL)
            return found;
        found.retain = (decltype(found.retain))dlsym(library, "cuDevicePrimaryCtxRetain");
        found.push = (decltype(found.push))dlsym(library, "cuCtxPushCurrent_v2");
        found.pop = (decltype(found.pop))dlsym(library, "cuCtxPopCurrent_v2");
        return found;
    }();
    const bool all = functions.retain && functions.push && functions.pop;
    return all ? &functions : NULL;
}

/* The context that the runtime has on the device, made if there is none; it stays as long as the
 * process, as what the runtime makes does. After a function of the runtime, which has opened the
 * driver; the errors of both have the same numbers. */
static inline cudaError_t context_retain(uint32_t device, void **out_context)
{
    const context_functions *driver = context_driver();
    if (driver == NULL)
        return cudaErrorInsufficientDriver;
    return (cudaError_t)driver->retain((CUcontext *)out_context, (CUdevice)device);
}

/* Whether the context is current now, and to be popped. */
static inline bool context_push(void *context)
{
    return context != NULL && context_driver()->push((CUcontext)context) == CUDA_SUCCESS;
}

static inline void context_pop(void)
{
    CUcontext context;
    (void)context_driver()->pop(&context); /* it was pushed */
}

#endif
