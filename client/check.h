/* The looks at a caller's arrays that live and frozen tables share (check.c). Private to the
 * folder. */
#ifndef MN_CHECK_H
#define MN_CHECK_H

#include "mneme.h"

/* One of two dtypes, in memory that this build reads. MN_INVALID or MN_UNSUPPORTED names `field`.
 */
enum mn_status mn_check_array(const char *field, const mn_array *array, enum mn_dtype one,
                              enum mn_dtype other, mn_error *error);
/* n indices, each a row of the table. */
enum mn_status mn_check_indices(const mn_array *indices, uint64_t n, const mn_table_spec *spec,
                                mn_error *error);
/* n finite numbers, f32 or bf16. */
enum mn_status mn_check_floats(const char *field, const mn_array *array, uint64_t n,
                               mn_error *error);

#endif
