/* What the GPU's benches share: one JSON line a figure, ratio > 1 means Mneme is better (or nearer
 * to a bound, which is 1). Nothing else goes to standard output. */
#ifndef MN_TESTS_GPU_BENCH_H
#define MN_TESTS_GPU_BENCH_H

#include "mn_kernels_cuda.h"

#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEED = 7 };

extern const char *torch_times; /* "case seconds" lines; NULL: PyTorch is not installed */
extern bool quick;
extern double copy_rate; /* bytes read and written a second */

_Noreturn void die(const char *format, ...);
void check_cuda(cudaError_t result, const char *what);
void check(enum mn_status status, const mn_error *error, const char *what);

void *device(uint64_t bytes);
void *on_device(const void *from, uint64_t bytes);
void from_device(const void *from, void *out, uint64_t bytes);
void *host(uint64_t bytes);
uint64_t next_random(uint64_t *state);
float random_float(uint64_t *state); /* [-1, 1) */

/* Median seconds of work(context), by events around it. */
double timed(void (*work)(void *), void *context);
/* Seconds that torch took for the case, in this same run; 0 when it is not there. */
double torch_seconds(const char *name);
void line(const char *bench, const char *name, double seconds, const char *against,
          double peer_seconds, double least, double goal);

/* Every row written, with the values it was born with, so that plain C knows them without holding
 * them. */
typedef struct table {
    mn_tile gpu, cpu; /* cpu: no row written, no memory for values */
    uint64_t offsets_count, *offsets, *gpu_offsets;
    float *weights, *gpu_weights;
} table;
mn_tile tile_of(uint64_t rows, uint32_t columns, enum mn_dtype dtype);
void table_init(table *t, const mn_tile *shape, uint32_t queries, uint32_t k);
void table_free(table *t);

/* bench_model.c: a language model's step without a memory and with one; search_seconds: of 32,768
 * tokens as its memory searches. */
void bench_model(double search_seconds);

#endif
