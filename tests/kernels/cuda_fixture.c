#include "cuda_fixture.h"

enum { ARRAYS_MAX = 64 };
static void *arrays[ARRAYS_MAX];
static int array_count;

void gpu_need(void)
{
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
        skip();
}

void *gpu_new(size_t bytes)
{
    void *memory = NULL;
    assert_true(array_count < ARRAYS_MAX);
    assert_int_equal(cudaMalloc(&memory, bytes), cudaSuccess);
    assert_int_equal(cudaMemset(memory, 0xa5, bytes), cudaSuccess);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess); /* other streams do not wait */
    return arrays[array_count++] = memory;
}

void *gpu_copy(const void *from, size_t bytes)
{
    void *memory = gpu_new(bytes);
    assert_int_equal(cudaMemcpy(memory, from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    return memory;
}

void gpu_free(void)
{
    while (array_count)
        assert_int_equal(cudaFree(arrays[--array_count]), cudaSuccess);
}

void gpu_read(const void *gpu, void *out, size_t bytes)
{
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    assert_int_equal(cudaMemcpy(out, gpu, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
}

bool gpu_equal(const void *gpu, const void *expected, size_t bytes)
{
    if (bytes == 0) /* no state: no array */
        return true;
    char *got = malloc(bytes);
    assert_non_null(got);
    gpu_read(gpu, got, bytes);
    bool equal = memcmp(got, expected, bytes) == 0;
    free(got);
    return equal;
}

static void *shifted(const void *from, size_t bytes, size_t shift)
{
    char *memory = (char *)gpu_new(bytes + shift) + shift;
    assert_int_equal(cudaMemcpy(memory, from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    return memory;
}

static size_t value_bytes(const mn_tile *tile)
{
    return tile->rows * tile->columns * mn_dtype_bytes(tile->dtype);
}

static size_t state_bytes(const mn_tile *tile)
{
    return tile->rows * mn_state_row_bytes(&tile->optimizer, tile->columns);
}

mn_tile gpu_tile(const mn_tile *tile, size_t shift)
{
    mn_tile gpu = *tile;
    gpu.values = shifted(tile->values, value_bytes(tile), shift);
    gpu.state = tile->state ? shifted(tile->state, state_bytes(tile), shift) : NULL;
    gpu.updates = gpu_copy(tile->updates, tile->rows * sizeof *tile->updates);
    return gpu;
}

bool gpu_tile_equal(const mn_tile *gpu, const mn_tile *expected)
{
    return gpu_equal(gpu->values, expected->values, value_bytes(expected)) &&
           gpu_equal(gpu->state, expected->state, state_bytes(expected)) &&
           gpu_equal(gpu->updates, expected->updates, expected->rows * sizeof *expected->updates);
}
