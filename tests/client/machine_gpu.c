#include "device_machine.h"

#include "harness.h"

#include <stdio.h>
#include <stdlib.h>

void machine_start(void)
{
    int devices = 0;
    const cudaError_t result = cudaGetDeviceCount(&devices);
    if (result == cudaSuccess && devices > 0)
        return;
    printf("skipped: no CUDA device (%s)\n", cudaGetErrorString(result));
    exit(77);
}

cudaStream_t machine_stream(void)
{
    cudaStream_t stream = NULL;
    assert_int_equal(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    return stream;
}
