/* In the place of nn_cuda.c, where CUDA is not built. */
#include "mn_trainer.h"

enum mn_status mn_nn_cuda_open(const mn_nn_cuda_options *options, mn_nn **out_nn, mn_error *error)
{
    (void)options, (void)out_nn;
    return mn_fail(error, MN_UNSUPPORTED, "device",
                   "this program was built without CUDA: take the CPU, or build with MN_CUDA=ON");
}

void mn_nn_cuda_close(mn_nn *nn) { (void)nn; /* there is none */ }
