/* What the GPU's benches share (bench.h). */
#include "bench.h"

#include <stdarg.h>

enum { ROUNDS = 15, WARM_UP = 3 };

const char *torch_times;
bool quick;
double copy_rate;

_Noreturn void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

void check_cuda(cudaError_t result, const char *what)
{
    if (result != cudaSuccess)
        die("%s: %s", what, cudaGetErrorString(result));
}

void check(enum mn_status status, const mn_error *error, const char *what)
{
    if (status)
        die("%s: %s: %s", what, error->field, error->message);
}

void *device(uint64_t bytes)
{
    void *memory;
    check_cuda(cudaMalloc(&memory, bytes), "cudaMalloc");
    return memory;
}

void *on_device(const void *from, uint64_t bytes)
{
    void *memory = device(bytes);
    check_cuda(cudaMemcpy(memory, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    return memory;
}

void from_device(const void *from, void *out, uint64_t bytes)
{
    check_cuda(cudaDeviceSynchronize(), "kernels");
    check_cuda(cudaMemcpy(out, from, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
}

void *host(uint64_t bytes)
{
    void *memory = malloc(bytes);
    if (memory == NULL)
        die("no memory for %llu bytes", (unsigned long long)bytes);
    return memory;
}

uint64_t next_random(uint64_t *state) /* splitmix64 */
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

float random_float(uint64_t *state) /* [-1, 1) */
{
    return (float)(int32_t)(next_random(state) >> 40) * 0x1p-23f - 1;
}

static int by_value(const void *a, const void *b)
{
    const float *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

/* Median seconds of work(context), by events around it. */
double timed(void (*work)(void *), void *context)
{
    float milliseconds[ROUNDS];
    const int rounds = quick ? 3 : ROUNDS;
    cudaEvent_t begin, end;
    check_cuda(cudaEventCreate(&begin), "cudaEventCreate");
    check_cuda(cudaEventCreate(&end), "cudaEventCreate");
    for (int round = -WARM_UP; round < rounds; round++) {
        check_cuda(cudaEventRecord(begin, NULL), "cudaEventRecord");
        work(context);
        check_cuda(cudaEventRecord(end, NULL), "cudaEventRecord");
        check_cuda(cudaEventSynchronize(end), "kernels");
        if (round >= 0)
            check_cuda(cudaEventElapsedTime(&milliseconds[round], begin, end), "elapsed");
    }
    qsort(milliseconds, (size_t)rounds, sizeof *milliseconds, by_value);
    (void)cudaEventDestroy(begin);
    (void)cudaEventDestroy(end);
    return (double)milliseconds[rounds / 2] * 1e-3;
}

void line(const char *bench, const char *name, double seconds, const char *against,
          double peer_seconds, double least, double goal)
{
    printf("{\"bench\": \"%s\", \"case\": \"%s\", \"value\": %.6g, \"unit\": \"s\", \"against\": "
           "\"%s\", ",
           bench, quick ? "a small one, to see that it runs" : name, seconds, against);
    if (peer_seconds > 0)
        printf("\"ratio\": %.3f, ", peer_seconds / seconds);
    else
        printf("\"ratio\": null, \"note\": \"%s is not installed\", ", against);
    printf("\"least\": %g, \"goal\": %g}\n", least, goal);
    fflush(stdout);
}

/* Seconds that torch took for the case, in this same run; 0 when it is not there. */
double torch_seconds(const char *name)
{
    char got[64];
    double seconds = 0, found = 0;
    FILE *file = torch_times ? fopen(torch_times, "r") : NULL;
    while (file && fscanf(file, "%63s %lf", got, &seconds) == 2)
        if (strcmp(got, name) == 0)
            found = seconds;
    if (file)
        fclose(file);
    return found;
}

/* ---- Tables */

mn_tile tile_of(uint64_t rows, uint32_t columns, enum mn_dtype dtype)
{
    return (mn_tile){.rows = rows,
                     .columns = columns,
                     .dtype = dtype,
                     .init = mn_init_normal(1),
                     .seed = SEED,
                     .table_rows = rows,
                     .row_inverse = 1};
}

void table_init(table *t, const mn_tile *shape, uint32_t queries, uint32_t k)
{
    mn_error error;
    uint64_t random = 1;
    const uint64_t rows = shape->rows, row_bytes = shape->columns * mn_dtype_bytes(shape->dtype);
    *t = (table){.gpu = *shape, .cpu = *shape, .offsets_count = (uint64_t)queries * k};
    t->cpu.updates = calloc(rows, sizeof *t->cpu.updates);
    t->gpu.values = device(rows * row_bytes);
    t->gpu.updates = device(rows * sizeof *t->gpu.updates);
    t->gpu.rows_written = rows;
    check_cuda(cudaMemset(t->gpu.updates, 1, rows * sizeof *t->gpu.updates), "cudaMemset");
    uint64_t *all = host(rows * sizeof *all);
    for (uint64_t r = 0; r < rows; r++)
        all[r] = r;
    uint64_t *gpu_all = on_device(all, rows * sizeof *all);
    check(mn_cuda_init_rows(&shape->init, SEED, gpu_all, rows, 0, shape->columns, shape->dtype,
                            t->gpu.values, row_bytes, NULL, &error),
          &error, "init_rows");
    t->offsets = host(t->offsets_count * sizeof *t->offsets);
    t->weights = host(t->offsets_count * sizeof *t->weights);
    for (uint64_t i = 0; i < t->offsets_count; i++) {
        t->offsets[i] = next_random(&random) % rows;
        t->weights[i] = random_float(&random);
    }
    t->gpu_offsets = on_device(t->offsets, t->offsets_count * sizeof *t->offsets);
    t->gpu_weights = on_device(t->weights, t->offsets_count * sizeof *t->weights);
    check_cuda(cudaDeviceSynchronize(), "init_rows");
    cudaFree(gpu_all);
    free(all);
}

void table_free(table *t)
{
    void *all[] = {t->gpu.values, t->gpu.updates, t->gpu_offsets, t->gpu_weights};
    for (int i = 0; i < 4; i++)
        cudaFree(all[i]);
    free(t->cpu.updates);
    free(t->offsets);
    free(t->weights);
}
