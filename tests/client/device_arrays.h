/* Stand-ins for mneme.h's calls with arrays (device_arrays.c). */
#ifndef DEVICE_ARRAYS_H
#define DEVICE_ARRAYS_H

#include "mneme.h"

mn_future *device_bag(mn_table *table, uint64_t step, const mn_queries *queries, mn_array out);
mn_future *device_bag_grad(mn_table *table, uint64_t step, uint32_t part, const mn_queries *queries,
                           mn_array output_gradients, mn_array weight_gradients);
mn_future *device_fetch(mn_table *table, uint64_t step, const mn_rows *rows, mn_array out_rows,
                        void *out_state);
mn_future *device_push(mn_table *table, uint64_t step, uint32_t part, const mn_rows *rows,
                       mn_array gradients);
mn_future *device_store(mn_table *table, uint64_t step, uint32_t part, const mn_rows *rows,
                        mn_array values, const void *state);
enum mn_status device_wait(mn_future *future, mn_error *error);
enum mn_status device_wait_until(mn_future *future, uint64_t wait_ms, mn_error *error);
void device_cancel(mn_future *future);

#endif
