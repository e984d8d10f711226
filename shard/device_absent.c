/* A build without CUDA. */
#include "shard_device.h"

enum mn_status mn_shard_device_open(mn_shard *shard, uint32_t number, mn_error *error)
{
    (void)shard; /* stays as it is */
    return mn_fail(error, MN_UNSUPPORTED, "device",
                   "CUDA device %u, but this build has no CUDA: it takes one with MN_CUDA=ON "
                   "(cmake --preset cuda)",
                   number);
}
