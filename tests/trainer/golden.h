/* Reads a file of tests/golden: blocks of a line "name count" and count numbers. */
#ifndef MN_TRAINER_GOLDEN_H
#define MN_TRAINER_GOLDEN_H

#include <stdbool.h>
#include <stdint.h>

/* The whole text of tests/golden/NAME.txt, which must begin with "# " and `maker`; to be freed. The
 * test fails when it cannot be read. */
char *golden_open(const char *name, const char *maker);
/* The numbers of a block. Fails the test when it is not there or holds another count. */
void golden_read(const char *text, const char *name, uint64_t count, double *out);
bool golden_has(const char *text, const char *name);

#endif
