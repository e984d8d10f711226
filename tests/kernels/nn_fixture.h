/* A context of mn_nn_cuda.h, arrays on both sides, and comparators for sums that are made in
 * another order. */
#ifndef MN_TESTS_KERNELS_NN_FIXTURE_H
#define MN_TESTS_KERNELS_NN_FIXTURE_H

#include "cuda_fixture.h"
#include "mn_nn_cuda.h"
#include "nn_cpu.h"

#define UNIT 0x1p-24 /* half the distance of f32 numbers around 1 */

/* Opened with scratch of its own; nn_close also frees the arrays. */
mn_cuda_nn *nn_open(bool bf16_products, uint64_t scratch_bytes);
void nn_close(mn_cuda_nn *nn);

/* The same numbers in host memory and in the GPU's; freed by nn_close. */
typedef struct both {
    float *host, *gpu;
    uint64_t n;
} both;
both both_uniform(uint64_t n); /* [-1, 1) */
both both_integer(uint64_t n); /* -8 .. 8 */
both both_shifted(uint64_t n); /* [-1, 1), where no vector of four begins */
both both_from(const float *host, uint64_t n);
void *nn_host(uint64_t bytes); /* zeroed; freed by nn_close */

/* Waits; the GPU's array is the host's, to the bit. Ends the test unless the comparator sees a
 * changed bit. */
void nn_equal(mn_cuda_nn *nn, const both *array);
/* Waits; |GPU - host| <= bounds[i] for every i, and not for a NaN. Ends the test unless the
 * comparator sees an element off by three times its bound. */
void nn_near(mn_cuda_nn *nn, const both *array, const double *bounds);
/* Waits; what the GPU's array holds becomes the host's, and the GPU's zero: nn_equal then tells
 * whether a second run has the same bits. */
void nn_again(mn_cuda_nn *nn, both *array);

/* A call that succeeds: QUEUED(mn_cuda_nn_add, nn, n, a, x). */
#define QUEUED(function, ...)                                                                      \
    do {                                                                                           \
        mn_error nn_error = {MN_OK, "", ""};                                                       \
        if (function(__VA_ARGS__, &nn_error) != MN_OK)                                             \
            fail_msg("%s: %s", nn_error.field, nn_error.message);                                  \
    } while (0)
/* One that is refused, with this field's name. */
#define REFUSED(name, function, ...)                                                               \
    do {                                                                                           \
        mn_error nn_error = {MN_OK, "", ""};                                                       \
        assert_int_equal(function(__VA_ARGS__, &nn_error), MN_INVALID);                            \
        assert_string_equal(nn_error.field, name);                                                 \
    } while (0)

#endif
