/* Fetch and Bag: reads of committed rows. */
#include "shard_core.h"
#include "shard_device.h"

bool mn_shard_read_ready(const mn_shard *shard, const struct group *group,
                         const mn_request *request)
{
    uint64_t behind = (uint64_t)request->staleness + 1;
    uint64_t least = request->context.step > behind ? request->context.step - behind : 0;
    return group->committed >= least || planted(shard, MN_PLANT_READ_EARLY);
}

/* STEPS.md "Reads". Checked before the payload; whether the call must wait, after it, so that a bad
 * request is refused at once. */
static enum mn_status check_step(const struct group *group, const mn_request *request,
                                 mn_error *error)
{
    if (request->read == MN_READ_LATEST)
        return MN_OK;
    if (request->read != MN_READ_STEP)
        return mn_fail(error, MN_UNSUPPORTED, "read", "%u is unknown", (unsigned)request->read);
    if (request->context.step <= group->committed)
        return mn_fail(error, MN_STEP, "step",
                       "%" PRIu64 " is committed already (now at %" PRIu64 "): its reads are over",
                       request->context.step, group->committed);
    return MN_OK;
}

static bool ready(const mn_shard *shard, const struct target *target, const mn_request *request)
{
    return request->read != MN_READ_STEP || mn_shard_read_ready(shard, target->group, request);
}

/* All that Fetch and Bag have in common before they compute: checks, offsets and (Bag) weights to
 * scratch, and parking. MN_OK with *out_done: parked, or answered by the device. */
static enum mn_status begin_read(mn_shard *shard, mn_call *call, struct target *out_target,
                                 bool *out_done, mn_error *error)
{
    const mn_request *request = &call->request;
    bool bag = request->verb == MN_VERB_BAG;
    struct layout layout;
    enum mn_status status =
        mn_shard_check_target(shard, call, request->read == MN_READ_LATEST, out_target, error);
    if (!status)
        status = check_step(out_target->group, request, error);
    if (!status)
        status = mn_shard_check_layout(shard, request, out_target, &layout, error);
    if (status)
        return status;
    const bool waits = !ready(shard, out_target, request);
    *out_done = waits || shard->device;
    if (shard->device) {
        status = shard->device->read(shard, call, out_target, &layout, !waits, error);
    } else {
        const uint8_t *payload = mn_shard_payload(shard, &request->payload);
        status = mn_shard_offsets(shard, out_target->table, out_target, request->index_encoding,
                                  payload, layout.reads, bag, error);
        if (!status && bag)
            status = mn_shard_weights(shard, request->weight_dtype, payload + layout.indices_bytes,
                                      layout.reads, error);
    }
    if (!status && waits)
        status = mn_shard_park(shard, out_target->group, call, request->payload.bytes, error);
    return status;
}

enum mn_status mn_shard_reserve(mn_call *call, uint64_t bytes, uint8_t **out, mn_error *error)
{
    uint8_t *room = call->reserve(call, bytes);
    if (!room)
        return mn_fail(error, MN_BUSY, "reply_bytes_max",
                       "no room for a reply of %" PRIu64 " bytes", bytes);
    *out = room;
    return MN_OK;
}

static void gather_states(mn_shard *shard, const struct target *target, uint64_t count,
                          uint64_t row_bytes, uint8_t *out_states)
{
    uint64_t offset = 0;
    for (uint32_t i = 0; i < target->plane_count; i++) {
        const mn_tile *plane = &target->table->planes[target->plane_first + i];
        uint64_t bytes = mn_state_row_bytes(&plane->optimizer, plane->columns);
        if (bytes)
            shard->kernels->gather_state(plane, shard->scratch.offsets, count, out_states + offset,
                                         row_bytes);
        offset += bytes;
    }
}

uint64_t mn_shard_states_row_bytes(const struct target *target)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < target->plane_count; i++) {
        const mn_tile *plane = &target->table->planes[target->plane_first + i];
        bytes += mn_state_row_bytes(&plane->optimizer, plane->columns);
    }
    return bytes;
}

enum mn_status mn_shard_fetch(mn_shard *shard, mn_call *call, mn_error *error)
{
    const mn_request *request = &call->request;
    struct target target;
    bool done = false;
    enum mn_status status = begin_read(shard, call, &target, &done, error);
    if (status || done)
        return status;
    uint64_t stride = (uint64_t)target.columns * mn_dtype_bytes(request->value_dtype);
    uint64_t state_stride = request->with_state ? mn_shard_states_row_bytes(&target) : 0;
    uint8_t *out;
    status = mn_shard_reserve(call, request->count * (stride + state_stride), &out, error);
    if (status)
        return status;
    uint64_t column = 0;
    for (uint32_t i = 0; i < target.plane_count; i++) {
        const mn_tile *plane = &target.table->planes[target.plane_first + i];
        shard->kernels->gather(plane, shard->scratch.offsets, request->count, request->value_dtype,
                               out + column * mn_dtype_bytes(request->value_dtype), stride);
        column += plane->columns;
    }
    if (state_stride)
        gather_states(shard, &target, request->count, state_stride, out + request->count * stride);
    return MN_OK;
}

enum mn_status mn_shard_bag(mn_shard *shard, mn_call *call, mn_error *error)
{
    const mn_request *request = &call->request;
    struct target target;
    bool done = false;
    enum mn_status status = begin_read(shard, call, &target, &done, error);
    if (status || done)
        return status;
    uint32_t element = mn_dtype_bytes(request->value_dtype);
    uint64_t stride = (uint64_t)target.columns * element;
    uint8_t *out;
    status = mn_shard_reserve(call, request->count * stride, &out, error);
    if (status)
        return status;
    uint64_t column = 0;
    for (uint32_t i = 0; i < target.plane_count; i++) {
        const mn_tile *plane = &target.table->planes[target.plane_first + i];
        shard->kernels->bag(plane, shard->scratch.offsets, shard->scratch.weights, request->count,
                            request->per_query, request->value_dtype, out + column * element,
                            stride);
        column += plane->columns;
    }
    shard->usage_due = target;
    shard->usage_due_reads = request->count * request->per_query;
    return MN_OK;
}
