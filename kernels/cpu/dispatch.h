/* The tables with their private part, for search.c. */
#ifndef MN_KERNELS_DISPATCH_H
#define MN_KERNELS_DISPATCH_H

#include "isa.h"

const mn_isa_table *mn_isa_table_best(void);
const mn_isa_table *mn_isa_table_for(enum mn_isa isa); /* NULL when the CPU cannot */

#endif
