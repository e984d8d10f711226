/* What the device files share. Private to them. */
#ifndef MN_SHARD_DEVICE_STATE_H
#define MN_SHARD_DEVICE_STATE_H

#include "mn_kernels_cuda.h"
#include "shard_device.h"

struct device_state {
    mn_cuda_queue queue;
    bool failed;
    mn_error failure; /* the first one */
    mn_error error;   /* of the last function called */
    /* Of the call in hand: */
    uint8_t *block; /* its arrays */
    uint64_t *offsets;
    float *weights;
    uint8_t *answer;
};

/* Where the arrays of a message lie in a block of the device's. */
struct device_arrays {
    uint8_t *indices, *weights, *rows, *states;
};

/* How a table's stage is merged. */
struct device_stage {
    void *block; /* of the device's: the arrays below */
    uint64_t *offsets;
    float *weights;
    uint32_t *numbers;
    const void **rows;
    uint64_t *first_written; /* [planes] */
    double *scratch, *squares;
    void *workspace;
    uint64_t workspace_bytes;
    mn_cuda_plan plan;
    uint64_t *store_offsets; /* of one piece at a time */
    void *store_workspace;
    uint64_t store_workspace_bytes;
    uint64_t *changed; /* the host's, for the rows of one plan */
    uint64_t changed_bytes;
};

/* Keeps the first failure: the device's work of a call is queued one after another, and asked after
 * once. */
void mn_shard_device_note(mn_shard *shard, enum mn_status status);
#define DEVICE_TRY(shard, call) mn_shard_device_note((shard), (call))
/* Waits for what is queued; MN_LOST "device". */
enum mn_status mn_shard_device_wait(mn_shard *shard, mn_error *error);
enum mn_status mn_shard_device_no_memory(const mn_shard *shard, uint64_t bytes, mn_error *error);

/* Indices to plane offsets, as mn_shard_offsets; a bad one sets the queue's *bad. */
void mn_shard_device_offsets(mn_shard *shard, const struct target *target,
                             enum mn_encoding encoding, const uint8_t *indices, uint64_t count,
                             bool skip, uint64_t *out_offsets);

/* device_merge.c */
enum mn_status mn_shard_device_merge(mn_shard *shard, struct group *group, struct table *table,
                                     struct table_stage *stage, mn_error *error);
void mn_shard_device_unmerge(mn_shard *shard, struct table_stage *stage);
enum mn_status mn_shard_device_squares(mn_shard *shard, const struct table *table,
                                       const struct table_stage *stage, double *out_squares,
                                       mn_error *error);
void mn_shard_device_apply(mn_shard *shard, struct group *group, struct table *table,
                           struct table_stage *stage, const mn_update *update);

#endif
