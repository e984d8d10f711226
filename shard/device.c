/* Tables in a CUDA device's memory: planes, reads, pieces (shard_device.h). */
#include "device_state.h"

enum { ALIGNMENT = 256 };

/* ---- Failure */

void mn_shard_device_note(mn_shard *shard, enum mn_status status)
{
    struct device_state *state = shard->device_state;
    if (!status || state->failed)
        return;
    state->failed = true;
    state->failure = state->error;
}

static enum mn_status lost(const mn_shard *shard, const mn_error *failure, mn_error *error)
{
    return mn_fail(error, MN_LOST, "device",
                   "CUDA device %u failed, and its tables are lost (%.100s): open the client anew "
                   "and load a saved group",
                   shard->device_state->queue.device, failure->message);
}

static enum mn_status state_of(const mn_shard *shard, mn_error *error)
{
    const struct device_state *state = shard->device_state;
    return state->failed ? lost(shard, &state->failure, error) : MN_OK;
}

enum mn_status mn_shard_device_wait(mn_shard *shard, mn_error *error)
{
    struct device_state *state = shard->device_state;
    DEVICE_TRY(shard, mn_cuda_queue_wait(&state->queue, &state->error));
    return state_of(shard, error);
}

enum mn_status mn_shard_device_no_memory(const mn_shard *shard, uint64_t bytes, mn_error *error)
{
    return mn_fail(error, MN_NO_MEMORY, "device",
                   "CUDA device %u has no memory for %" PRIu64 " bytes",
                   shard->device_state->queue.device, bytes);
}

/* ---- Life */

static void close_device(mn_shard *shard)
{
    struct device_state *state = shard->device_state;
    mn_cuda_queue_close(&state->queue);
    shard->env.release(shard->env.context, state, sizeof *state);
    shard->device_state = NULL;
    shard->device = NULL;
}

/* ---- Planes */

static void *reserve(mn_shard *shard, uint64_t bytes, bool zeroed)
{
    struct device_state *state = shard->device_state;
    void *memory = mn_cuda_reserve(&state->queue, bytes);
    if (!memory || !zeroed)
        return memory;
    DEVICE_TRY(shard, mn_cuda_zero(&state->queue, memory, bytes, &state->error));
    if (!mn_shard_device_wait(shard, NULL))
        return memory;
    mn_cuda_unreserve(&state->queue, memory);
    return NULL;
}

static void unreserve(mn_shard *shard, void *memory)
{
    mn_cuda_unreserve(&shard->device_state->queue, memory);
}

static enum mn_status read_memory(const mn_shard *shard, void *to, const void *from, uint64_t bytes,
                                  mn_error *error)
{
    return mn_cuda_read(&shard->device_state->queue, to, from, bytes, error);
}

/* Nothing of the state but the queue's device is looked at: the caller's thread is any. */
static enum mn_status mark(const mn_shard *shard, void *stream, void **out_mark, mn_error *error)
{
    mn_error failure;
    enum mn_status status = mn_cuda_mark(&shard->device_state->queue, stream, out_mark, &failure);
    if (status == MN_UNAVAILABLE) /* the shard will find out, too */
        return lost(shard, &failure, error);
    if (status && error)
        *error = failure;
    return status;
}

static void unmark(const mn_shard *shard, void *made)
{
    mn_cuda_unmark(&shard->device_state->queue, made);
}

/* ---- A call's arrays */

/* Before anything is queued for a call: what its arrays wait for comes first. */
static enum mn_status begin(mn_shard *shard, const mn_request *request, mn_error *error)
{
    struct device_state *state = shard->device_state;
    if (request->payload.bytes > shard->scratch.payload_bytes_max)
        return mn_fail(error, MN_INVALID, "payload", "%" PRIu64 " bytes are more than %" PRIu64,
                       request->payload.bytes, shard->scratch.payload_bytes_max);
    for (uint32_t i = 0; i < request->direct.mark_count; i++)
        DEVICE_TRY(shard,
                   mn_cuda_queue_follow(&state->queue, request->direct.marks[i], &state->error));
    *state->queue.bad = 0;
    return MN_OK;
}

/* The end of a call. One that failed may have left copies of the caller's arrays queued: they are
 * his again with the answer. */
static void finish(mn_shard *shard, enum mn_status status)
{
    struct device_state *state = shard->device_state;
    if (status)
        (void)mn_shard_device_wait(shard, NULL); /* the call has its own failure to tell */
    mn_cuda_give(&state->queue, state->block);
    mn_cuda_give(&state->queue, state->offsets);
    mn_cuda_give(&state->queue, state->weights);
    mn_cuda_give(&state->queue, state->answer);
    state->block = state->answer = NULL;
    state->offsets = NULL;
    state->weights = NULL;
}

static uint64_t arrays_bytes(const struct layout *layout)
{
    return round_up(layout->indices_bytes, ALIGNMENT) + round_up(layout->weights_bytes, ALIGNMENT) +
           round_up(layout->rows_bytes, ALIGNMENT) + round_up(layout->states_bytes, ALIGNMENT);
}

static struct device_arrays arrays_in(uint8_t *block, const struct layout *layout)
{
    struct device_arrays arrays;
    arrays.indices = block;
    arrays.weights = arrays.indices + round_up(layout->indices_bytes, ALIGNMENT);
    arrays.rows = arrays.weights + round_up(layout->weights_bytes, ALIGNMENT);
    arrays.states = arrays.rows + round_up(layout->rows_bytes, ALIGNMENT);
    return arrays;
}

/* The next bytes of the payload, wherever its spans lie. */
static void copy_in(mn_shard *shard, mn_cursor *cursor, uint64_t bytes, uint8_t *to)
{
    struct device_state *state = shard->device_state;
    for (uint64_t at = 0, count; at < bytes; at += count) {
        const uint8_t *from = NULL;
        count = mn_cursor_peek(cursor, &from);
        count = count < bytes - at ? count : bytes - at;
        DEVICE_TRY(shard, mn_cuda_copy(&state->queue, to + at, from, count, &state->error));
        mn_cursor_skip(cursor, count);
    }
}

/* The payload's arrays in a block of the device's. */
static enum mn_status take_arrays(mn_shard *shard, const mn_request *request,
                                  const struct layout *layout, uint8_t **out_block, mn_error *error)
{
    const uint64_t bytes = arrays_bytes(layout);
    uint8_t *block = mn_cuda_take(&shard->device_state->queue, bytes);
    if (!block)
        return mn_shard_device_no_memory(shard, bytes, error);
    const struct device_arrays arrays = arrays_in(block, layout);
    mn_cursor cursor;
    mn_cursor_init(&cursor, &request->payload, 0);
    copy_in(shard, &cursor, layout->indices_bytes, arrays.indices);
    copy_in(shard, &cursor, layout->weights_bytes, arrays.weights);
    copy_in(shard, &cursor, layout->rows_bytes, arrays.rows);
    copy_in(shard, &cursor, layout->states_bytes, arrays.states);
    *out_block = block;
    return MN_OK;
}

void mn_shard_device_offsets(mn_shard *shard, const struct target *target,
                             enum mn_encoding encoding, const uint8_t *indices, uint64_t count,
                             bool skip, uint64_t *out_offsets)
{
    struct device_state *state = shard->device_state;
    const mn_geometry *geometry = &target->table->geometry;
    mn_cuda_places places = {
        .rows = geometry->rows, .multiplier = 1, .end = geometry->rows, .skip = skip};
    if (geometry->split == MN_ROWS)
        places = (mn_cuda_places){.rows = geometry->rows,
                                  .multiplier = geometry->multiplier,
                                  .base = target->table->position_first,
                                  .first = target->position_first,
                                  .end = target->position_end,
                                  .skip = skip};
    uint32_t bits = encoding == MN_INDEX_U32   ? 32
                    : encoding == MN_INDEX_I64 ? 64
                                               : mn_index_bits(geometry->rows);
    DEVICE_TRY(shard, mn_cuda_offsets(&places, bits, indices, count, out_offsets, state->queue.bad,
                                      state->queue.stream, &state->error));
}

static void look_at(mn_shard *shard, enum mn_dtype dtype, const uint8_t *numbers, uint64_t bytes)
{
    struct device_state *state = shard->device_state;
    DEVICE_TRY(shard, mn_cuda_weights(dtype, numbers, bytes / mn_dtype_bytes(dtype), NULL,
                                      state->queue.bad, state->queue.stream, &state->error));
}

/* ---- What is wrong, in the host's words */

static enum mn_status fetch_back(mn_shard *shard, const uint8_t *from, uint64_t bytes,
                                 mn_error *error)
{
    struct device_state *state = shard->device_state;
    DEVICE_TRY(shard,
               mn_cuda_copy(&state->queue, shard->scratch.payload, from, bytes, &state->error));
    return mn_shard_device_wait(shard, error);
}

static enum mn_status explain_numbers(mn_shard *shard, const char *field, enum mn_dtype dtype,
                                      const uint8_t *from, uint64_t bytes, mn_error *error)
{
    enum mn_status status = bytes ? fetch_back(shard, from, bytes, error) : MN_OK;
    if (status || !bytes)
        return status;
    return mn_shard_check_finite(field, dtype, shard->scratch.payload,
                                 bytes / mn_dtype_bytes(dtype), error);
}

static enum mn_dtype state_dtype(const struct target *target)
{
    const mn_optimizer *optimizer = &target->table->spec.optimizer;
    return optimizer->kind == MN_OPTIMIZER_ROWWISE_ADAGRAD ? MN_F32 : optimizer->state_dtype;
}

/* In the order in which the host looks. */
static enum mn_status explain(mn_shard *shard, const mn_request *request,
                              const struct target *target, const struct layout *layout,
                              const struct device_arrays *arrays, bool skip, mn_error *error)
{
    const char *rows = request->verb == MN_VERB_STORE ? "rows" : "gradients";
    enum mn_status status = fetch_back(shard, arrays->indices, layout->indices_bytes, error);
    if (!status)
        status = mn_shard_offsets(shard, target->table, target, request->index_encoding,
                                  shard->scratch.payload, layout->reads, skip, error);
    if (!status)
        status = explain_numbers(shard, "weights", request->weight_dtype, arrays->weights,
                                 layout->weights_bytes, error);
    if (!status)
        status = explain_numbers(shard, rows, request->value_dtype, arrays->rows,
                                 layout->rows_bytes, error);
    if (!status)
        status = explain_numbers(shard, "states", state_dtype(target), arrays->states,
                                 layout->states_bytes, error);
    assert(status); /* the device saw something, and the host looked at the same */
    return status;
}

/* ---- Answers */

/* Where an answer of `bytes` is made: right where the caller wants it, if that is the device's
 * memory, else in a block, from which it goes to the caller's array or the reply. */
static enum mn_status open_answer(mn_shard *shard, const mn_request *request, uint64_t bytes,
                                  uint8_t **out_answer, mn_error *error)
{
    struct device_state *state = shard->device_state;
    if (request->direct.used && request->direct.out_on_device) {
        *out_answer = request->direct.out;
        return MN_OK;
    }
    *out_answer = state->answer = mn_cuda_take(&state->queue, bytes);
    return state->answer ? MN_OK : mn_shard_device_no_memory(shard, bytes, error);
}

/* Where an answer of `bytes` belongs; the reply of a direct call says its size alone. */
static enum mn_status answer_place(mn_call *call, uint64_t bytes, uint8_t **out_to, mn_error *error)
{
    if (!call->request.direct.used)
        return mn_shard_reserve(call, bytes, out_to, error);
    *out_to = call->request.direct.out;
    return MN_OK;
}

/* What is at `answer` on its way to the caller. */
static enum mn_status send_answer(mn_shard *shard, mn_call *call, const uint8_t *answer,
                                  uint64_t bytes, mn_error *error)
{
    struct device_state *state = shard->device_state;
    const mn_direct *direct = &call->request.direct;
    uint8_t *to;
    enum mn_status status = answer_place(call, bytes, &to, error);
    if (status)
        return status;
    if (to != answer)
        DEVICE_TRY(shard, mn_cuda_copy(&state->queue, to, answer, bytes, &state->error));
    if (direct->used)
        call->reply.payload = (mn_payload){.bytes = bytes};
    return MN_OK;
}

/* ---- Fetch and Bag */

static enum mn_status answer_bag(mn_shard *shard, mn_call *call, const struct target *target,
                                 mn_error *error)
{
    struct device_state *state = shard->device_state;
    const mn_request *request = &call->request;
    const uint64_t element = mn_dtype_bytes(request->value_dtype);
    const uint64_t stride = target->columns * element;
    uint64_t column = 0;
    uint8_t *answer;
    enum mn_status status = open_answer(shard, request, request->count * stride, &answer, error);
    for (uint32_t i = 0; !status && i < target->plane_count; i++) {
        const mn_tile *plane = &target->table->planes[target->plane_first + i];
        DEVICE_TRY(shard,
                   mn_cuda_bag(plane, state->offsets, state->weights, request->count,
                               request->per_query, request->value_dtype, answer + column * element,
                               stride, state->queue.stream, &state->error));
        column += plane->columns;
    }
    return status ? status : send_answer(shard, call, answer, request->count * stride, error);
}

static void gather_states(mn_shard *shard, const struct target *target, uint64_t count,
                          uint64_t row_bytes, uint8_t *out_states)
{
    struct device_state *state = shard->device_state;
    uint64_t offset = 0;
    for (uint32_t i = 0; i < target->plane_count; i++) {
        const mn_tile *plane = &target->table->planes[target->plane_first + i];
        DEVICE_TRY(shard, mn_cuda_gather_state(plane, state->offsets, count, out_states + offset,
                                               row_bytes, state->queue.stream, &state->error));
        offset += mn_state_row_bytes(&plane->optimizer, plane->columns);
    }
}

/* Rows, then states at a place that suits their kind: they go into the reply one behind the other,
 * or into the caller's two arrays. */
static enum mn_status answer_fetch(mn_shard *shard, mn_call *call, const struct target *target,
                                   mn_error *error)
{
    struct device_state *state = shard->device_state;
    const mn_request *request = &call->request;
    const mn_direct *direct = &request->direct;
    const uint64_t element = mn_dtype_bytes(request->value_dtype);
    const uint64_t stride = target->columns * element, rows = request->count * stride;
    const uint64_t state_stride = request->with_state ? mn_shard_states_row_bytes(target) : 0;
    uint64_t column = 0;
    const uint64_t states = request->count * state_stride, states_at = round_up(rows, ALIGNMENT);
    uint8_t *answer = state->answer = mn_cuda_take(&state->queue, states_at + states);
    if (!answer)
        return mn_shard_device_no_memory(shard, states_at + states, error);
    for (uint32_t i = 0; i < target->plane_count; i++) {
        const mn_tile *plane = &target->table->planes[target->plane_first + i];
        DEVICE_TRY(shard, mn_cuda_gather(plane, state->offsets, request->count,
                                         request->value_dtype, answer + column * element, stride,
                                         state->queue.stream, &state->error));
        column += plane->columns;
    }
    if (state_stride)
        gather_states(shard, target, request->count, state_stride, answer + states_at);
    uint8_t *to;
    enum mn_status status = answer_place(call, rows + states, &to, error);
    if (status)
        return status;
    DEVICE_TRY(shard, mn_cuda_copy(&state->queue, to, answer, rows, &state->error));
    if (states)
        DEVICE_TRY(shard, mn_cuda_copy(&state->queue, direct->used ? direct->out_state : to + rows,
                                       answer + states_at, states, &state->error));
    if (direct->used)
        call->reply.payload = (mn_payload){.bytes = rows + states};
    return MN_OK;
}

/* Counting is the host's: it gets what was read. */
static enum mn_status count_usage(mn_shard *shard, const struct target *target, uint64_t reads,
                                  mn_error *error)
{
    struct device_state *state = shard->device_state;
    if (!target->table->counters)
        return MN_OK;
    DEVICE_TRY(shard, mn_cuda_copy(&state->queue, shard->scratch.offsets, state->offsets,
                                   reads * sizeof *state->offsets, &state->error));
    DEVICE_TRY(shard, mn_cuda_copy(&state->queue, shard->scratch.weights, state->weights,
                                   reads * sizeof *state->weights, &state->error));
    shard->usage_due = *target;
    shard->usage_due_reads = reads;
    return mn_shard_device_wait(shard, error);
}

static enum mn_status read_rows(mn_shard *shard, mn_call *call, const struct target *target,
                                const struct layout *layout, bool answer, mn_error *error)
{
    struct device_state *state = shard->device_state;
    const mn_request *request = &call->request;
    const bool bag = request->verb == MN_VERB_BAG;
    enum mn_status status = take_arrays(shard, request, layout, &state->block, error);
    if (status)
        return status;
    const struct device_arrays arrays = arrays_in(state->block, layout);
    state->offsets = mn_cuda_take(&state->queue, layout->reads * sizeof *state->offsets);
    state->weights = mn_cuda_take(&state->queue, layout->reads * sizeof *state->weights);
    if (!state->offsets || !state->weights)
        return mn_shard_device_no_memory(shard, layout->reads * sizeof *state->offsets, error);
    mn_shard_device_offsets(shard, target, request->index_encoding, arrays.indices, layout->reads,
                            bag, state->offsets);
    if (bag)
        DEVICE_TRY(shard, mn_cuda_weights(request->weight_dtype, arrays.weights, layout->reads,
                                          state->weights, state->queue.bad, state->queue.stream,
                                          &state->error));
    if (answer)
        status =
            bag ? answer_bag(shard, call, target, error) : answer_fetch(shard, call, target, error);
    enum mn_status waited = mn_shard_device_wait(shard, status ? NULL : error);
    if (!status)
        status = waited;
    if (!status && *state->queue.bad)
        status = explain(shard, request, target, layout, &arrays, bag, error);
    if (!status && answer && bag)
        status = count_usage(shard, target, layout->reads, error);
    return status;
}

static enum mn_status read_all(mn_shard *shard, mn_call *call, const struct target *target,
                               const struct layout *layout, bool answer, mn_error *error)
{
    enum mn_status status = begin(shard, &call->request, error);
    if (!status)
        status = read_rows(shard, call, target, layout, answer, error);
    finish(shard, status);
    return status;
}

/* ---- Pieces */

static enum mn_status stage(mn_shard *shard, const mn_request *request, const struct layout *layout,
                            struct piece **out_piece, mn_error *error)
{
    struct piece *piece = mn_shard_block_take(&shard->pool, sizeof *piece);
    uint8_t *block = NULL;
    enum mn_status status =
        piece ? begin(shard, request, error)
              : mn_fail(error, MN_NO_MEMORY, "payload", "no memory to stage a piece");
    if (!status)
        status = take_arrays(shard, request, layout, &block, error);
    if (status) {
        mn_shard_block_give(&shard->pool, piece, sizeof *piece);
        return status;
    }
    const struct device_arrays arrays = arrays_in(block, layout);
    *piece = (struct piece){
        .device_block = block,
        .device_bytes = arrays_bytes(layout),
        .block_bytes = sizeof *piece,
        .indices = arrays.indices,
        .weights = arrays.weights,
        .rows = arrays.rows,
        .states = arrays.states,
    };
    *out_piece = piece;
    return MN_OK;
}

static void unstage(mn_shard *shard, struct piece *piece)
{
    mn_cuda_give(&shard->device_state->queue, piece->device_block);
}

static enum mn_status answer_bag_grad(mn_shard *shard, mn_call *call, const struct target *target,
                                      const struct layout *layout, const uint8_t *gradients,
                                      mn_error *error)
{
    struct device_state *state = shard->device_state;
    const mn_request *request = &call->request;
    const bool direct = request->direct.used;
    const uint64_t element = mn_dtype_bytes(request->value_dtype);
    const uint64_t one = layout->reads * sizeof(float), all = target->plane_count * one;
    uint64_t column = 0;
    uint8_t *sums = NULL;
    float *dots = mn_cuda_take(&state->queue, all);
    if (!dots)
        return mn_shard_device_no_memory(shard, all, error);
    for (uint32_t i = 0; i < target->plane_count; i++) {
        const mn_tile *plane = &target->table->planes[target->plane_first + i];
        DEVICE_TRY(shard, mn_cuda_bag_dot(plane, state->offsets, request->count, request->per_query,
                                          request->value_dtype, gradients + column * element,
                                          target->columns * element, dots + i * layout->reads,
                                          state->queue.stream, &state->error));
        column += plane->columns;
    }
    enum mn_status status = direct ? open_answer(shard, request, one, &sums, error) : MN_OK;
    if (!status && direct)
        DEVICE_TRY(shard, mn_cuda_add_arrays(dots, target->plane_count, layout->reads,
                                             (float *)sums, state->queue.stream, &state->error));
    if (!status)
        status =
            send_answer(shard, call, direct ? sums : (uint8_t *)dots, direct ? one : all, error);
    mn_cuda_give(&state->queue, dots);
    return status;
}

static enum mn_status check_rows(mn_shard *shard, mn_call *call, const struct target *target,
                                 const struct layout *layout, const struct piece *piece,
                                 bool answer, mn_error *error)
{
    struct device_state *state = shard->device_state;
    const mn_request *request = &call->request;
    const bool bag = request->verb == MN_VERB_BAG_GRAD;
    const struct device_arrays arrays = arrays_in(piece->device_block, layout);
    enum mn_status status = MN_OK;
    state->offsets = mn_cuda_take(&state->queue, layout->reads * sizeof *state->offsets);
    if (!state->offsets)
        return mn_shard_device_no_memory(shard, layout->reads * sizeof *state->offsets, error);
    mn_shard_device_offsets(shard, target, request->index_encoding, arrays.indices, layout->reads,
                            bag, state->offsets);
    if (bag)
        look_at(shard, request->weight_dtype, arrays.weights, layout->weights_bytes);
    look_at(shard, request->value_dtype, arrays.rows, layout->rows_bytes);
    if (layout->states_bytes)
        look_at(shard, state_dtype(target), arrays.states, layout->states_bytes);
    if (answer)
        status = answer_bag_grad(shard, call, target, layout, arrays.rows, error);
    enum mn_status waited = mn_shard_device_wait(shard, status ? NULL : error);
    if (!status)
        status = waited;
    if (!status && *state->queue.bad)
        status = explain(shard, request, target, layout, &arrays, bag, error);
    return status;
}

static enum mn_status check(mn_shard *shard, mn_call *call, const struct target *target,
                            const struct layout *layout, const struct piece *piece, bool answer,
                            mn_error *error)
{
    enum mn_status status = begin(shard, &call->request, error);
    if (!status)
        status = check_rows(shard, call, target, layout, piece, answer, error);
    finish(shard, status);
    return status;
}

static enum mn_status same(mn_shard *shard, const mn_request *request, const struct piece *piece,
                           bool *out_same, mn_error *error)
{
    struct device_state *state = shard->device_state;
    enum mn_status status = begin(shard, request, error);
    if (!status)
        status = take_arrays(shard, request, &piece->layout, &state->block, error);
    if (!status) {
        const struct layout *layout = &piece->layout;
        const struct device_arrays arrays = arrays_in(state->block, layout);
        const uint8_t *const given[] = {arrays.indices, arrays.weights, arrays.rows, arrays.states};
        const uint8_t *const staged[] = {piece->indices, piece->weights, piece->rows,
                                         piece->states};
        const uint64_t bytes[] = {layout->indices_bytes, layout->weights_bytes, layout->rows_bytes,
                                  layout->states_bytes};
        for (int i = 0; i < 4; i++)
            DEVICE_TRY(shard, mn_cuda_compare(given[i], staged[i], bytes[i], state->queue.bad,
                                              state->queue.stream, &state->error));
        status = mn_shard_device_wait(shard, error);
    }
    if (!status)
        *out_same = !*state->queue.bad;
    finish(shard, status);
    return status;
}

static const struct device functions = {
    .close = close_device,
    .state = state_of,
    .read_memory = read_memory,
    .mark = mark,
    .unmark = unmark,
    .reserve = reserve,
    .unreserve = unreserve,
    .read = read_all,
    .stage = stage,
    .unstage = unstage,
    .check = check,
    .same = same,
    .merge = mn_shard_device_merge,
    .unmerge = mn_shard_device_unmerge,
    .squares = mn_shard_device_squares,
    .apply = mn_shard_device_apply,
};

enum mn_status mn_shard_device_open(mn_shard *shard, uint32_t number, mn_error *error)
{
    struct device_state *state = shard->env.allocate(shard->env.context, sizeof *state);
    if (!state)
        return mn_fail(error, MN_NO_MEMORY, "device", "no memory for its state");
    enum mn_status status = mn_cuda_queue_open(number, &state->queue, error);
    if (status) {
        shard->env.release(shard->env.context, state, sizeof *state);
        return status;
    }
    shard->device_state = state;
    shard->device = &functions;
    return MN_OK;
}
