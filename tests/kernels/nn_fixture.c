#include "nn_fixture.h"

enum { HOST_MAX = 128 };
static void *host_arrays[HOST_MAX];
static int host_count;
static uint64_t random_state = 17;

mn_cuda_nn *nn_open(bool bf16_products, uint64_t scratch_bytes)
{
    mn_cuda_nn *nn = NULL;
    const mn_cuda_nn_options options = {.bf16_products = bf16_products};
    QUEUED(mn_cuda_nn_create, &options, &nn);
    void *scratch = gpu_new(scratch_bytes);
    assert_int_equal(cudaMemset(scratch, 0xff, scratch_bytes), cudaSuccess); /* no numbers */
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    mn_cuda_nn_lend(nn, scratch, scratch_bytes);
    return nn;
}

void nn_close(mn_cuda_nn *nn)
{
    mn_cuda_nn_destroy(nn);
    gpu_free();
    while (host_count)
        free(host_arrays[--host_count]);
}

void *nn_host(uint64_t bytes)
{
    assert_true(host_count < HOST_MAX);
    void *memory = calloc(1, bytes ? bytes : 1);
    assert_non_null(memory);
    return host_arrays[host_count++] = memory;
}

both both_from(const float *host, uint64_t n)
{
    both array = {nn_host(n * sizeof *host), NULL, n};
    memcpy(array.host, host, n * sizeof *host);
    array.gpu = gpu_copy(host, n * sizeof *host);
    return array;
}

static both filled(uint64_t n, float (*next)(uint64_t *))
{
    both array = {nn_host(n * sizeof *array.host), NULL, n};
    for (uint64_t i = 0; i < n; i++)
        array.host[i] = next(&random_state);
    array.gpu = gpu_copy(array.host, n * sizeof *array.host);
    return array;
}

both both_uniform(uint64_t n) { return filled(n, fixture_uniform); }
both both_integer(uint64_t n) { return filled(n, fixture_integer); }

both both_shifted(uint64_t n)
{
    both array = filled(n + 1, fixture_uniform);
    return (both){array.host + 1, array.gpu + 1, n};
}

static float *fetched(mn_cuda_nn *nn, const both *array)
{
    float *got = malloc((array->n ? array->n : 1) * sizeof *got);
    assert_non_null(got);
    QUEUED(mn_cuda_memory_read, nn, got, array->gpu, array->n * sizeof *got);
    return got;
}

void nn_equal(mn_cuda_nn *nn, const both *array)
{
    float *got = fetched(nn, array);
    const uint64_t bytes = array->n * sizeof *got;
    for (uint64_t i = 0; i < array->n; i++)
        if (memcmp(got + i, array->host + i, sizeof *got) != 0)
            fail_msg("element %llu is %.9g, not %.9g", (unsigned long long)i, (double)got[i],
                     (double)array->host[i]);
    ((uint8_t *)got)[bytes / 2] ^= 1;
    assert_true(memcmp(got, array->host, bytes) != 0);
    free(got);
}

void nn_again(mn_cuda_nn *nn, both *array)
{
    QUEUED(mn_cuda_memory_read, nn, array->host, array->gpu, array->n * sizeof(float));
    QUEUED(mn_cuda_memory_zero, nn, array->gpu, array->n * sizeof(float));
}

static bool within(const float *got, const float *expected, const double *bounds, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - (double)expected[i]) <= bounds[i]))
            return false;
    return true;
}

void nn_near(mn_cuda_nn *nn, const both *array, const double *bounds)
{
    float *got = fetched(nn, array);
    for (uint64_t i = 0; i < array->n; i++)
        if (!within(got + i, array->host + i, bounds + i, 1))
            fail_msg("element %llu is %.9g, not %.9g within %.3g", (unsigned long long)i,
                     (double)got[i], (double)array->host[i], bounds[i]);
    const uint64_t middle = array->n / 2;
    got[middle] += (float)(3 * bounds[middle] + 1e-30);
    assert_false(within(got, array->host, bounds, array->n));
    got[middle] = NAN;
    assert_false(within(got, array->host, bounds, array->n));
    free(got);
}
