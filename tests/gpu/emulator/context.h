/* kernels/cuda/sm/context.h for emulated devices. */
#ifndef MN_CUDA_CONTEXT_H
#define MN_CUDA_CONTEXT_H

#include "emulator.h"

cudaError_t context_retain(uint32_t device, void **out_context);
bool context_push(void *context);
void context_pop(void);

#endif
