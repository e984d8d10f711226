/* A table in this process behind mn_memory_access. Answers come when they are waited for, from the
 * buffers as they are then, and outputs hold NaN until then: so a model that reads too early or
 * changes a lent buffer is found. */
#ifndef MN_FAKE_MEMORY_H
#define MN_FAKE_MEMORY_H

#include "mn_trainer.h"

/* Uniform in [-1, 1): splitmix64. */
double test_uniform(uint64_t *state);
void test_fill(uint64_t *state, double scale, uint64_t n, mn_real *out);
/* 2-norm of the difference, relative to that of `exact`. */
double test_difference(uint64_t n, const double *value, const double *exact);

enum { FAKE_JOBS_MAX = 4 };

typedef struct fake_job {
    bool open;
    mn_memory_reads reads;
    const mn_real *output_gradients; /* NULL: a bag */
    mn_real *out;
} fake_job;

typedef struct fake_memory {
    uint32_t tables, dim;
    uint64_t rows;
    mn_real *values, *gradients; /* [tables][rows][dim] */
    fake_job jobs[FAKE_JOBS_MAX];
    uint64_t selected_hash;  /* of all rows selected since it was zeroed */
    uint32_t calls, fail_at; /* wait number fail_at answers MN_UNAVAILABLE; 0: none */
    uint32_t open;
    uint32_t parts_seen; /* bit p: a bag gradient of part p */
    uint64_t now;
} fake_memory;

void fake_memory_init(fake_memory *memory, const mn_model *model);
void fake_memory_deinit(fake_memory *memory);
mn_memory_access fake_memory_access(fake_memory *memory);

#endif
