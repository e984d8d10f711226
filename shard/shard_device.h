/* Tables in the memory of a CUDA device: what the core does otherwise for them. All tables of a
 * shard are so, or none. device.c and device_merge.c where CUDA is built, else device_absent.c.
 * Private to the folder.
 *
 * A plane's arrays lie in managed memory: files are written from it and read into it by the host,
 * as any other. A piece's arrays, and what a call needs meanwhile, lie in the device's own. Work is
 * queued on a stream of the shard's, and every function below that answers, or lets the host look
 * at rows, waits for it. What comes from the device (a NaN, an index too large) is found there; the
 * words for it are the host's, which then looks at the same arrays.
 *
 * A device that fails has lost its tables: from then on every call is MN_LOST "device". */
#ifndef MN_SHARD_DEVICE_H
#define MN_SHARD_DEVICE_H

#include "shard_core.h"

struct device {
    void (*close)(mn_shard *shard);
    enum mn_status (*state)(const mn_shard *shard, mn_error *error);

    /* mn_shard_read_memory. */
    enum mn_status (*read_memory)(const mn_shard *shard, void *to, const void *from, uint64_t bytes,
                                  mn_error *error);

    /* mn_shard_mark, mn_shard_unmark. */
    enum mn_status (*mark)(const mn_shard *shard, void *stream, void **out_mark, mn_error *error);
    void (*unmark)(const mn_shard *shard, void *mark);

    /* A plane's array. Zeroed: the host may look at once. NULL: there is no memory. */
    void *(*reserve)(mn_shard *shard, uint64_t bytes, bool zeroed);
    void (*unreserve)(mn_shard *shard, void *memory);

    /* Fetch and Bag, whose target and layout are checked: indices and weights looked at, and
     * answered unless the call is to wait. */
    enum mn_status (*read)(mn_shard *shard, mn_call *call, const struct target *target,
                           const struct layout *layout, bool answer, mn_error *error);

    /* A piece without its key: the header, and the arrays in the device's memory. */
    enum mn_status (*stage)(mn_shard *shard, const mn_request *request, const struct layout *layout,
                            struct piece **out_piece, mn_error *error);
    void (*unstage)(mn_shard *shard, struct piece *piece); /* its arrays alone */
    /* Looks at every index and number of the piece; BagGrad is answered if `answer`. */
    enum mn_status (*check)(mn_shard *shard, mn_call *call, const struct target *target,
                            const struct layout *layout, const struct piece *piece, bool answer,
                            mn_error *error);
    /* Whether the request's arrays are the piece's, byte by byte. */
    enum mn_status (*same)(mn_shard *shard, const mn_request *request, const struct piece *piece,
                           bool *out_same, mn_error *error);

    /* Contributions of the table's sorted pieces; all that its commit will need. */
    enum mn_status (*merge)(mn_shard *shard, struct group *group, struct table *table,
                            struct table_stage *stage, mn_error *error);
    void (*unmerge)(mn_shard *shard, struct table_stage *stage);
    /* out_squares [tiles held]. */
    enum mn_status (*squares)(mn_shard *shard, const struct table *table,
                              const struct table_stage *stage, double *out_squares,
                              mn_error *error);
    /* The table's stores and, with an update, its gradients. Failure is the device's. */
    void (*apply)(mn_shard *shard, struct group *group, struct table *table,
                  struct table_stage *stage, const mn_update *update);
};

/* About what merging takes of the device, for each read and each source row. */
enum { DEVICE_READ_BYTES = 64, DEVICE_SOURCE_BYTES = 8 };

/* Sets shard->device. MN_UNSUPPORTED "device": this build has no CUDA; MN_UNAVAILABLE "device". */
enum mn_status mn_shard_device_open(mn_shard *shard, uint32_t number, mn_error *error);

#endif
