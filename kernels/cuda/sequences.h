/* Sequences packed one after the other. */
#ifndef MN_CUDA_SEQUENCES_H
#define MN_CUDA_SEQUENCES_H

#include "nn_device.h"

/* The sequence that token t lies in, by bisection. */
DEVICE uint32_t sequence_of(const mn_cuda_sequences &batch, uint32_t t)
{
    uint32_t low = 0, high = batch.sequences - 1;
    while (low < high) {
        const uint32_t middle = (low + high + 1) / 2;
        if (batch.starts[middle] <= t)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

#endif
