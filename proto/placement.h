/* Private to proto/: how placement.c reads a spec's `tiles`, for the check in spec.c. */
#ifndef MN_PLACEMENT_H
#define MN_PLACEMENT_H

#include "mn_proto.h"

/* Of a spec whose rows, dim, dtype and split are valid: the number of tiles when none is given. */
uint32_t mn_tiles_default(const mn_table_spec *spec);
/* Of a columns table with `tiles` set: columns of each tile but the last, a multiple of 16 (or more
 * than `dim`). */
uint32_t mn_tile_columns_of(const mn_table_spec *spec);

#endif
