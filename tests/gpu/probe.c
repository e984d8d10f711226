/* Says which GPU there is: its compute capability, then its name. Exit 1 where there is none. */
#include <cuda_runtime_api.h>
#include <stdio.h>

int main(void)
{
    int devices = 0, major = 0, minor = 0;
    struct cudaDeviceProp properties;
    cudaError_t result = cudaGetDeviceCount(&devices);
    if (result == cudaSuccess && devices > 0)
        result = cudaGetDeviceProperties(&properties, 0);
    if (result != cudaSuccess || devices == 0) {
        fprintf(stderr, "%s\n", cudaGetErrorString(result));
        return 1;
    }
    (void)cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    (void)cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
    printf("%d%d %s\n", major, minor, properties.name);
    return 0;
}
