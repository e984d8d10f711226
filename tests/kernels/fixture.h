/* Tiles, random inputs and a naive double-precision oracle for the kernel tests. */
#ifndef MN_TESTS_KERNELS_FIXTURE_H
#define MN_TESTS_KERNELS_FIXTURE_H

#include "mn_kernels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { ISAS = 3, ODD_COLUMNS = 6 };
static const uint32_t odd_columns[ODD_COLUMNS] = {1, 15, 16, 17, 100, 384};

/* xorshift64*: the tests' own numbers, the same on every run. */
uint64_t fixture_random(uint64_t *state);
float fixture_uniform(uint64_t *state); /* [-1, 1) */
float fixture_integer(uint64_t *state); /* -8 .. 8: sums and products stay exact */

enum { FIXTURE_OPTIMIZERS = 6 };
mn_optimizer fixture_optimizer(int i); /* every kind, and Adam's row correction */

typedef struct fixture_options {
    uint64_t rows;
    uint32_t columns, first_column;
    enum mn_dtype dtype;
    mn_optimizer optimizer;
    mn_init init;
    bool integers; /* small integers instead of random values */
    bool all_written;
} fixture_options;

/* A tile in memory of its own: every third row never written unless all are; state positive. */
mn_tile fixture_tile(const fixture_options *options);
mn_tile fixture_copy(const mn_tile *tile);
/* Columns [first, first + columns) of a whole tile, as a tile of its own. */
mn_tile fixture_cut(const mn_tile *tile, uint32_t first, uint32_t columns);
void fixture_free(mn_tile *tile);
bool fixture_equal(const mn_tile *a, const mn_tile *b);

/* A buffer at `misalign` bytes past a 64-byte boundary, guarded on both sides. */
typedef struct buffer {
    char *memory, *data;
    size_t bytes;
} buffer;
buffer buffer_of(size_t bytes, size_t misalign);
bool buffer_intact(const buffer *b); /* nothing was written around it */
void buffer_free(buffer *b);

/* ---- The oracle: obvious loops in double precision. */

float oracle_bf16_widen(uint16_t bits);
uint16_t oracle_bf16_nearest(float value);
float oracle_load(const void *array, uint64_t index, enum mn_dtype dtype);
/* The initial value in double precision, before rounding to the table's dtype. */
double oracle_init(const mn_init *init, uint64_t seed, uint64_t row, uint32_t column);
uint64_t oracle_table_row(const mn_tile *tile, uint64_t offset);
/* Value at (offset, c) of the tile, initial ones included. */
double oracle_value(const mn_tile *tile, uint64_t offset, uint32_t c);
bool oracle_close(double got, double expected, double tolerance); /* false on NaN */

/* One optimizer step of a row: g is the merged gradient before the factor; all arrays [columns];
 * state2 may be NULL, and state has one element for row-wise Adagrad. t: the step that corrects. */
void oracle_step(const mn_optimizer *optimizer, const mn_update *update, uint64_t t,
                 uint32_t columns, const double *g, double *row, double *state, double *state2);

#endif
