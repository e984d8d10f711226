/* A product-key memory layer: query network, search, gate, bag, and back. Split in halves, so that
 * the bag and the weights' gradients travel while the feed-forward network computes. Private to the
 * trainer. */
#ifndef MN_MEMORY_LAYER_H
#define MN_MEMORY_LAYER_H

#include "workspace.h"

/* input [tokens][width] -> the workspace's linear and query of `memory`; batch norm as the pass
 * says. */
enum mn_status mn_query_forward(const mn_run *run, uint32_t memory, const mn_real *input);
/* workspace d_query (destroyed) -> parameter gradients, d_input +=. */
enum mn_status mn_query_backward(const mn_run *run, uint32_t memory, const mn_real *input,
                                 mn_real *d_input);

/* Selects rows, starts the bag. After MN_OK the finish must be called, even if something else
 * failed meanwhile. */
enum mn_status mn_memory_forward_start(const mn_run *run, uint32_t memory, const mn_real *input);
/* x [tokens][width] += the layer's output. */
enum mn_status mn_memory_forward_finish(const mn_run *run, uint32_t memory, mn_real *x);

/* d_out [tokens][width], unchanged until the finish. Starts the weights' gradients, and computes
 * what does not need them: d_input +=. */
void mn_memory_backward_start(const mn_run *run, uint32_t memory, const mn_real *input,
                              const mn_real *d_out, mn_real *d_input);
enum mn_status mn_memory_backward_finish(const mn_run *run, uint32_t memory, const mn_real *input,
                                         mn_real *d_input);

/* The layer that holds a memory. */
const mn_layer_offsets *mn_memory_offsets(const mn_model *model, uint32_t memory);

#endif
