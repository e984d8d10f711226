/* Arrays and tiles in GPU memory: of a GPU, or of tests/gpu/emulator. */
#ifndef MN_TESTS_KERNELS_CUDA_FIXTURE_H
#define MN_TESTS_KERNELS_CUDA_FIXTURE_H

#include "fixture.h"
#include "mn_kernels_cuda.h"

#include <cuda_runtime_api.h>

/* Everything allocated since the last gpu_free. */
void *gpu_copy(const void *from, size_t bytes);
void *gpu_new(size_t bytes); /* poisoned */
void gpu_free(void);
/* Waits for the GPU; expected and got are equal. */
bool gpu_equal(const void *gpu, const void *expected, size_t bytes);
void gpu_read(const void *gpu, void *out, size_t bytes);

/* The tile with its arrays in GPU memory, `shift` bytes past an aligned address. */
mn_tile gpu_tile(const mn_tile *tile, size_t shift);
/* Values, state and counts are those of the tile in host memory. */
bool gpu_tile_equal(const mn_tile *gpu, const mn_tile *expected);

/* Skips the test, visibly, where no GPU is. */
void gpu_need(void);

#endif
