/* What the device tests run on: tests/gpu/emulator (machine_emulated.c), or a GPU (machine_gpu.c).
 */
#ifndef DEVICE_MACHINE_H
#define DEVICE_MACHINE_H

#include <cuda_runtime_api.h>

/* Before anything else. Ends the program with 77, which ctest counts as skipped, where there is no
 * device. */
void machine_start(void);
/* A stream whose copies come late: on a GPU, when they come. */
cudaStream_t machine_stream(void);

#endif
