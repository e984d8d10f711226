/* Data operations: fetch, bag, bag-grad, push, store. Cut into pieces of at most
 * MN_CHUNK_AIM_BYTES both ways, routed to the shards that hold the columns or rows, answers put
 * where the caller wants them. */
#include "client_private.h"

#include <assert.h>
#include <string.h>

enum {
    DIRECT_BYTES = 64 << 20
}; /* of a direct call's pieces, about: a device wants much at once */

static bool is_change(const mn_operation *operation)
{
    return operation->kind == MN_OP_PUSH || operation->kind == MN_OP_STORE ||
           operation->kind == MN_OP_BAG_GRAD;
}

static bool has_weights(const mn_operation *operation)
{
    return operation->kind == MN_OP_BAG || operation->kind == MN_OP_BAG_GRAD;
}

/* One dtype for what travels: partial bags are f32, so that only their sum is rounded. */
static enum mn_dtype wire_dtype(const mn_task *task)
{
    const mn_operation *operation = task->operation;
    if (is_change(operation))
        return operation->values.dtype;
    return task->data.added ? MN_F32 : operation->outputs.dtype;
}

static uint64_t chunks_of(const mn_data *data, uint64_t units)
{
    return (units + data->chunk_units - 1) / data->chunk_units;
}

/* ---- Planning ---- */

static uint32_t index_bits(enum mn_encoding encoding, uint64_t rows)
{
    if (encoding == MN_INDEX_PACKED)
        return mn_index_bits(rows);
    return encoding == MN_INDEX_U32 ? 32 : 64;
}

/* Each row goes to the shard that holds it, not each unit to every shard. */
static bool routed(const mn_task *task)
{
    const mn_table *table = task->operation->table;
    return table->spec.split == MN_ROWS && !has_weights(task->operation) && table->holders > 1;
}

/* As many units as fit a request, and their answer, at the shard with the widest share; and no more
 * than make pieces of even size, where every shard gets all units. */
static uint64_t chunk_units(const mn_task *task, uint64_t chunk_bytes)
{
    const mn_operation *operation = task->operation;
    const mn_table *table = operation->table;
    bool partial = operation->kind == MN_OP_BAG && table->spec.split == MN_ROWS;
    uint64_t most_sent = 1, most_answered = 1;
    for (uint32_t shard = 0; shard < table->holders; shard++) {
        const mn_share *share = &table->shares[shard];
        uint64_t dtype = partial                ? MN_F32
                         : is_change(operation) ? operation->values.dtype
                                                : operation->outputs.dtype;
        uint64_t values = (uint64_t)share->columns * mn_dtype_bytes((enum mn_dtype)dtype) * 8;
        uint64_t state = operation->state_in || operation->state_out ? share->state_bytes * 8 : 0;
        uint64_t sent =
            (uint64_t)task->data.reads * index_bits(task->data.encoding, table->spec.rows);
        uint64_t answered = 0;
        if (has_weights(operation))
            sent += (uint64_t)task->data.reads * mn_dtype_bytes(operation->weights.dtype) * 8;
        if (is_change(operation))
            sent += values + state;
        else
            answered = values + state;
        if (operation->kind == MN_OP_BAG_GRAD)
            answered = (table->spec.split == MN_COLUMNS ? share->tile_count : UINT64_C(1)) *
                       task->data.reads * 32;
        most_sent = sent > most_sent ? sent : most_sent;
        most_answered = answered > most_answered ? answered : most_answered;
    }
    uint64_t fit = (chunk_bytes - 8) * 8 / most_sent; /* 8: a last byte of indices */
    if (fit > chunk_bytes * 8 / most_answered)
        fit = chunk_bytes * 8 / most_answered;
    if (fit == 0)
        return 1; /* fits: the widest row with its state has 768 KiB */
    if (routed(task))
        return fit;
    uint64_t pieces = (task->data.units + fit - 1) / fit;
    return pieces ? (task->data.units + pieces - 1) / pieces : fit;
}

/* Groups the rows by the shard that holds them, each group in the caller's order. */
static enum mn_status route_rows(mn_task *task)
{
    mn_core *core = task->core;
    const mn_operation *operation = task->operation;
    const mn_geometry *geometry = &operation->table->geometry;
    mn_data *data = &task->data;
    uint64_t owner_bytes = data->units * sizeof(uint16_t);
    uint16_t *owners = mn_core_allocate(core, owner_bytes);
    data->order = mn_core_allocate(core, data->units * sizeof *data->order);
    if (!owners || !data->order) {
        mn_core_release(core, owners, owner_bytes);
        return mn_fail(&task->error, MN_NO_MEMORY, "count", "no memory to route %llu rows",
                       (unsigned long long)data->units);
    }
    for (uint64_t i = 0; i < data->units; i++) {
        uint64_t row = operation->indices.dtype == MN_U32
                           ? ((const uint32_t *)operation->indices.data)[i]
                           : (uint64_t)((const int64_t *)operation->indices.data)[i];
        uint32_t tile;
        uint64_t offset;
        mn_row_locate(geometry, row, &tile, &offset);
        owners[i] = (uint16_t)mn_table_shard(operation->table, tile);
        task->lanes[owners[i]].units++;
    }
    uint64_t first = 0;
    for (uint32_t shard = 0; shard < core->shards; shard++) {
        task->lanes[shard].first = first;
        first += task->lanes[shard].units;
        task->lanes[shard].units = 0;
    }
    for (uint64_t i = 0; i < data->units; i++) {
        mn_lane *lane = &task->lanes[owners[i]];
        data->order[lane->first + lane->units++] = (uint32_t)i;
    }
    mn_core_release(core, owners, owner_bytes);
    return MN_OK;
}

/* What is summed over shards needs to know which shards have been added to each chunk. */
static enum mn_status plan_sums(mn_task *task)
{
    const mn_operation *operation = task->operation;
    const mn_table *table = operation->table;
    mn_data *data = &task->data;
    bool partial =
        operation->kind == MN_OP_BAG && table->spec.split == MN_ROWS && table->holders > 1;
    if (data->direct || (operation->kind != MN_OP_BAG_GRAD && !partial))
        return MN_OK;
    data->added = mn_core_allocate(task->core, chunks_of(data, data->units) * sizeof *data->added);
    if (!data->added)
        goto no_memory;
    if (operation->outputs.dtype == MN_F32)
        return MN_OK;
    data->sums = mn_core_allocate(task->core, data->units * table->spec.dim * sizeof *data->sums);
    if (data->sums)
        return MN_OK;
no_memory:
    return mn_fail(&task->error, MN_NO_MEMORY, "queries", "no memory to sum %llu queries",
                   (unsigned long long)data->units);
}

/* Marks what the arrays' streams were given before the call: here, on the caller's thread. */
static enum mn_status mark_streams(mn_task *task)
{
    mn_transport *transport = task->core->transport;
    const mn_operation *operation = task->operation;
    const mn_array *const arrays[MN_MARKS_MAX] = {&operation->indices, &operation->weights,
                                                  &operation->values, &operation->outputs};
    mn_data *data = &task->data;
    enum mn_status status = MN_OK;
    for (uint32_t i = 0; i < MN_MARKS_MAX && !status; i++) {
        bool marked = arrays[i]->memory != MN_MEMORY_CUDA;
        for (uint32_t j = 0; j < i && !marked; j++)
            marked = arrays[j]->memory == MN_MEMORY_CUDA && arrays[j]->stream == arrays[i]->stream;
        if (marked)
            continue;
        status = transport->mark(transport, arrays[i]->stream, &data->marks[data->mark_count],
                                 &task->error);
        data->mark_count += !status;
    }
    return status;
}

static enum mn_status plan(mn_task *task)
{
    mn_core *core = task->core;
    const mn_operation *operation = task->operation;
    mn_table *table = operation->table;
    mn_data *data = &task->data;
    mn_table_follow(table);
    data->moved = table->moved;
    data->map_epoch = table->map_epoch;
    enum mn_encoding plain = operation->indices.dtype == MN_U32 ? MN_INDEX_U32 : MN_INDEX_I64;
    data->encoding = core->options.packed ? MN_INDEX_PACKED : plain;
    data->chunk_units = chunk_units(task, data->direct ? DIRECT_BYTES : core->options.chunk_bytes);
    memset(task->lanes, 0, core->shards * sizeof *task->lanes);
    if (routed(task))
        return route_rows(task);
    for (uint32_t shard = 0; shard < table->holders; shard++)
        task->lanes[shard].units = data->units;
    return plan_sums(task);
}

/* ---- Requests ---- */

static mn_units piece_units(const mn_task *task, const mn_lane *lane, uint64_t piece)
{
    uint64_t at = piece * task->data.chunk_units, left = lane->units - at;
    mn_units units = {task->data.order, lane->first + at,
                      left < task->data.chunk_units ? left : task->data.chunk_units};
    return units;
}

/* Whether the rows of a piece go out from the caller's memory, which is the call's until it ends. A
 * span costs more than copying a short row. */
static bool may_lend(const mn_table *table, const mn_share *share, uint64_t width,
                     const mn_units *units)
{
    uint64_t bytes = share->columns * width;
    bool whole = share->columns == table->spec.dim && !units->order;
    return (whole ? units->count * bytes : bytes) >= MN_SPAN_BYTES_MIN;
}

static uint64_t put_states(const mn_operation *operation, const mn_share *share,
                           const mn_units *units, uint8_t *out)
{
    if (!operation->state_in)
        return 0;
    return mn_put_rows(out, operation->state_in, operation->table->state_row_bytes,
                       share->state_first, share->state_bytes, units);
}

/* The rows stay where they are; the spans, and the states, take their place in the buffer. */
static void lend_payload(mn_task *task, mn_lane *lane, mn_slot *slot, const mn_units *units,
                         uint64_t head_bytes)
{
    const mn_operation *operation = task->operation;
    const mn_table *table = operation->table;
    const mn_share *share = &table->shares[lane->shard];
    uint64_t width = mn_dtype_bytes(operation->values.dtype);
    mn_span *spans = (mn_span *)(slot->buffer + (head_bytes + 15) / 16 * 16);
    spans[0] = (mn_span){slot->buffer, head_bytes};
    uint32_t count = 1 + mn_lend_rows(spans + 1, operation->values.data, table->spec.dim * width,
                                      share->column_first * width, share->columns * width, units);
    uint8_t *states = (uint8_t *)(spans + count + 1);
    uint64_t state_bytes = put_states(operation, share, units, states);
    if (state_bytes)
        spans[count++] = (mn_span){states, state_bytes};
    assert(states + state_bytes <= slot->buffer + MN_CHUNK_BYTES);
    mn_fill_spans(slot, spans, count);
}

/* Indices, weights, rows, states, one after another. */
static void fill_payload(mn_task *task, mn_lane *lane, mn_slot *slot, const mn_units *units)
{
    const mn_operation *operation = task->operation;
    const mn_table *table = operation->table;
    const mn_share *share = &table->shares[lane->shard];
    uint8_t *next = slot->buffer;
    next += mn_put_indices(next, &operation->indices, task->data.encoding, table->spec.rows,
                           task->data.reads, units);
    if (has_weights(operation)) {
        uint64_t bytes = (uint64_t)task->data.reads * mn_dtype_bytes(operation->weights.dtype);
        next += mn_put_rows(next, operation->weights.data, bytes, 0, bytes, units);
    }
    if (is_change(operation)) {
        uint64_t width = mn_dtype_bytes(operation->values.dtype);
        if (may_lend(table, share, width, units)) {
            lend_payload(task, lane, slot, units, (uint64_t)(next - slot->buffer));
            return;
        }
        next += mn_put_rows(next, operation->values.data, table->spec.dim * width,
                            share->column_first * width, share->columns * width, units);
    }
    next += put_states(operation, share, units, next);
    assert(next - slot->buffer <= MN_CHUNK_BYTES);
    mn_fill_payload(slot, slot->buffer, (uint64_t)(next - slot->buffer));
}

static mn_span span_of(const void *array, const mn_units *units, uint64_t unit_bytes)
{
    return (mn_span){(const uint8_t *)array + units->first * unit_bytes, units->count * unit_bytes};
}

/* The caller's arrays as they are: each piece is a run of every one. */
static void lend_arrays(mn_task *task, mn_slot *slot, const mn_units *units)
{
    const mn_operation *operation = task->operation;
    const mn_table *table = operation->table;
    const uint64_t reads = task->data.reads, dim = table->spec.dim;
    mn_direct *direct = &slot->exchange.request.direct;
    mn_span *spans = (mn_span *)slot->buffer;
    uint32_t count = 0;
    direct->used = true;
    direct->mark_count = task->data.mark_count;
    memcpy(direct->marks, task->data.marks, sizeof direct->marks);
    spans[count++] =
        span_of(operation->indices.data, units, reads * mn_dtype_bytes(operation->indices.dtype));
    if (has_weights(operation))
        spans[count++] = span_of(operation->weights.data, units,
                                 reads * mn_dtype_bytes(operation->weights.dtype));
    if (is_change(operation))
        spans[count++] =
            span_of(operation->values.data, units, dim * mn_dtype_bytes(operation->values.dtype));
    if (operation->state_in)
        spans[count++] = span_of(operation->state_in, units, table->state_row_bytes);
    mn_fill_spans(slot, spans, count);
    if (!operation->outputs.data)
        return;
    const uint64_t width = operation->kind == MN_OP_BAG_GRAD ? reads : dim;
    const uint64_t out_bytes = width * mn_dtype_bytes(operation->outputs.dtype);
    direct->out = (uint8_t *)operation->outputs.data + units->first * out_bytes;
    direct->out_on_device = operation->outputs.memory == MN_MEMORY_CUDA;
    if (operation->state_out)
        direct->out_state = (uint8_t *)operation->state_out + units->first * table->state_row_bytes;
}

static void fill_data(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    const mn_operation *operation = task->operation;
    const mn_table *table = operation->table;
    const mn_share *share = &table->shares[lane->shard];
    mn_request *request = &slot->exchange.request;
    mn_units units = piece_units(task, lane, slot->piece);
    bool latest = operation->step == MN_LATEST;
    request->context.step = latest ? 0 : operation->step;
    request->table = table->id;
    request->tile_first = share->tile_first;
    request->tile_count = share->tile_count;
    request->moved = is_change(operation) ? task->data.moved : 0;
    request->part = operation->part;
    request->position = slot->piece;
    request->count = units.count;
    request->per_query = has_weights(operation) ? operation->per_query : 0;
    request->index_encoding = task->data.encoding;
    request->weight_dtype = has_weights(operation) ? operation->weights.dtype : MN_F32;
    request->value_dtype = wire_dtype(task);
    request->with_state = operation->state_in || operation->state_out;
    request->read = latest ? MN_READ_LATEST : MN_READ_STEP;
    request->staleness = task->core->options.staleness;
    if (task->data.direct)
        lend_arrays(task, slot, &units);
    else
        fill_payload(task, lane, slot, &units);
}

/* ---- Answers ---- */

static uint64_t answer_bytes(const mn_task *task, const mn_lane *lane, const mn_units *units)
{
    const mn_operation *operation = task->operation;
    const mn_share *share = &operation->table->shares[lane->shard];
    bool arrays = operation->table->spec.split == MN_COLUMNS && !task->data.direct;
    uint64_t row_bytes = (uint64_t)share->columns * mn_dtype_bytes(wire_dtype(task));
    switch (operation->kind) {
    case MN_OP_FETCH:
        return units->count * (row_bytes + (operation->state_out ? share->state_bytes : 0));
    case MN_OP_BAG:
        return units->count * row_bytes;
    case MN_OP_BAG_GRAD:
        return units->count * task->data.reads * sizeof(float) * (arrays ? share->tile_count : 1);
    default:
        return 0;
    }
}

static void scatter(mn_task *task, const mn_lane *lane, const mn_payload *payload,
                    const mn_units *units)
{
    mn_operation *operation = task->operation;
    const mn_table *table = operation->table;
    const mn_share *share = &table->shares[lane->shard];
    uint64_t width = mn_dtype_bytes(operation->outputs.dtype);
    mn_cursor cursor;
    mn_cursor_init(&cursor, payload, 0);
    mn_take_rows(&cursor, operation->outputs.data, table->spec.dim * width,
                 share->column_first * width, share->columns * width, units);
    if (operation->state_out)
        mn_take_rows(&cursor, operation->state_out, table->state_row_bytes, share->state_first,
                     share->state_bytes, units);
}

/* Adds one shard's answer to its chunk: weight gradients tile by tile, or partial bags. */
static void add(mn_task *task, const mn_lane *lane, uint64_t piece, const mn_payload *payload)
{
    mn_operation *operation = task->operation;
    const mn_table *table = operation->table;
    mn_data *data = &task->data;
    bool dots = operation->kind == MN_OP_BAG_GRAD;
    mn_units units = piece_units(task, lane, piece);
    uint64_t width = dots ? data->reads : table->spec.dim, n = units.count * width;
    uint32_t arrays =
        dots && table->spec.split == MN_COLUMNS ? table->shares[lane->shard].tile_count : 1;
    float *sums = data->sums ? data->sums : operation->outputs.data;
    sums += units.first * width;
    mn_cursor cursor;
    mn_cursor_init(&cursor, payload, 0);
    if (lane->shard == 0)
        memset(sums, 0, n * sizeof *sums);
    for (uint32_t array = 0; array < arrays; array++)
        mn_add_f32(&cursor, n, sums);
    data->added[piece] = lane->shard + 1;
    if (data->sums && data->added[piece] == table->holders)
        mn_round_bf16(sums, n, (uint16_t *)operation->outputs.data + units.first * width);
}

/* The answer of `shard` to this piece, if it came before its turn. */
static mn_slot *held_slot(mn_task *task, uint32_t shard, uint64_t piece)
{
    mn_window *window = mn_core_window(task->core, shard, mn_verb_kind_of(task->phase->verb));
    for (uint32_t i = 0; i < window->slots_used; i++) {
        mn_slot *slot = &window->slots[i];
        if (slot->state == MN_SLOT_HELD && slot->lane == &task->lanes[shard] &&
            slot->piece == piece)
            return slot;
    }
    return NULL;
}

/* Answers are added in shard order. One that is early stays in its slot, whose request is no longer
 * needed: so the memory is the windows', and the first shard's slots always come free. */
static void add_in_order(mn_task *task, mn_lane *lane, mn_slot *slot, const mn_payload *payload)
{
    uint64_t piece = slot->piece;
    if (task->data.added[piece] != lane->shard) {
        mn_cursor cursor;
        mn_cursor_init(&cursor, payload, 0);
        mn_cursor_read(&cursor, slot->buffer, payload->bytes);
        slot->held_bytes = payload->bytes;
        slot->state = MN_SLOT_HELD;
        return;
    }
    add(task, lane, piece, payload);
    for (uint32_t shard = lane->shard + 1; shard < task->operation->table->holders; shard++) {
        mn_slot *held = held_slot(task, shard, piece);
        if (!held)
            return;
        mn_span span = {held->buffer, held->held_bytes};
        mn_payload early = {&span, 1, held->held_bytes};
        add(task, &task->lanes[shard], piece, &early);
        mn_slot_finish(held);
    }
}

static enum mn_status answered_data(mn_task *task, mn_lane *lane, mn_slot *slot)
{
    mn_operation *operation = task->operation;
    const mn_reply *reply = &slot->exchange.reply;
    mn_units units = piece_units(task, lane, slot->piece);
    uint64_t expected = answer_bytes(task, lane, &units);
    if (task->data.map_epoch != operation->table->map_epoch)
        return mn_fail(&task->error, MN_EPOCH, "map_epoch",
                       "the group was loaded anew since this call of epoch %llu began",
                       (unsigned long long)task->data.map_epoch);
    if (reply->payload.bytes != expected)
        return mn_fail(&task->error, MN_CORRUPT, "payload",
                       "shard %u answered %llu bytes where %llu were due", lane->shard,
                       (unsigned long long)reply->payload.bytes, (unsigned long long)expected);
    if (task->step_shown == UINT64_MAX)
        task->step_shown = reply->step;
    else if (task->step_shown != reply->step)
        task->torn = true;
    if (reply->step < task->step_shown)
        task->step_shown = reply->step;
    if (task->data.direct)
        return MN_OK; /* it is where it belongs */
    if (task->data.added)
        add_in_order(task, lane, slot, &reply->payload);
    else if (!is_change(operation))
        scatter(task, lane, &reply->payload, &units);
    return MN_OK;
}

static void start_data(mn_task *task);

/* The parts of a LATEST read must all show one step. */
static void complete_data(mn_task *task)
{
    mn_operation *operation = task->operation;
    bool torn = task->torn && operation->step == MN_LATEST;
    if (!torn || (task->core->options.plants & MN_CORE_PLANT_NO_TORN)) {
        operation->answered_step = task->step_shown;
        mn_task_done(task);
        return;
    }
    mn_error why;
    (void)mn_fail(&why, MN_TORN, "step", "the shards kept answering from different steps");
    if (task->data.added)
        memset(task->data.added, 0,
               chunks_of(&task->data, task->data.units) * sizeof *task->data.added);
    task->torn = false;
    task->step_shown = UINT64_MAX;
    mn_task_pause(task, start_data, &why);
}

static const mn_phase data_phases[] = {
    [MN_OP_FETCH] = {MN_VERB_FETCH, fill_data, answered_data, NULL, complete_data},
    [MN_OP_BAG] = {MN_VERB_BAG, fill_data, answered_data, NULL, complete_data},
    [MN_OP_BAG_GRAD] = {MN_VERB_BAG_GRAD, fill_data, answered_data, NULL, complete_data},
    [MN_OP_PUSH] = {MN_VERB_PUSH, fill_data, answered_data, NULL, complete_data},
    [MN_OP_STORE] = {MN_VERB_STORE, fill_data, answered_data, NULL, complete_data},
};

static void open_lanes(mn_task *task)
{
    mn_phase_begin(task, &data_phases[task->operation->kind]);
    for (uint32_t shard = 0; shard < task->operation->table->holders; shard++)
        mn_lane_open(task, shard, chunks_of(&task->data, task->lanes[shard].units));
}

static void start_data(mn_task *task)
{
    open_lanes(task);
    mn_phase_go(task);
}

/* Cuts the call for the tiles as the table's shares have them, and sends it. */
static void cut(mn_task *task)
{
    enum mn_status status = plan(task);
    if (!status) {
        open_lanes(task);
        if (is_change(task->operation))
            status = mn_steps_claim(task);
    }
    if (status)
        mn_task_end(task, status);
    else
        mn_phase_go(task);
}

static void release_plan(mn_task *task)
{
    mn_core *core = task->core;
    mn_data *data = &task->data;
    if (data->order)
        mn_core_release(core, data->order, data->units * sizeof *data->order);
    if (data->added)
        mn_core_release(core, data->added, chunks_of(data, data->units) * sizeof *data->added);
    if (data->sums)
        mn_core_release(core, data->sums,
                        data->units * task->operation->table->spec.dim * sizeof *data->sums);
    data->order = data->added = NULL;
    data->sums = NULL;
}

/* From the start: of what was answered for other tiles nothing counts. */
static void cut_again(mn_task *task)
{
    release_plan(task);
    task->torn = false;
    task->step_shown = UINT64_MAX;
    cut(task);
}

/* Not at once: the core may be in the midst of its tasks. */
static void cut_soon(mn_task *task)
{
    task->resume = cut_again;
    task->resume_ns = 0;
    mn_core_wake_at(task->core, 0);
}

void mn_data_recut(mn_table *table)
{
    for (mn_task *task = table->core->alive_first; task; task = task->next) {
        enum mn_operation_kind kind = task->operation->kind;
        bool data = kind >= MN_OP_FETCH && kind <= MN_OP_STORE;
        if (!data || task->operation->table != table || task->phase != &data_phases[kind] ||
            task->ending || task->restart)
            continue;
        if (task->resume_ns == UINT64_MAX)
            task->restart = cut_soon; /* no window sends more of it when others make room */
        else
            task->resume = cut_again; /* it had been answered from different steps */
    }
    for (mn_task *task = table->core->alive_first; task; task = task->next)
        if (task->restart == cut_soon)
            mn_task_restart(task, cut_soon);
}

void mn_begin_data(mn_task *task)
{
    const mn_operation *operation = task->operation;
    task->moved = cut_again;
    task->data.units = operation->count;
    task->data.reads = has_weights(operation) ? operation->per_query : 1;
    task->data.direct = task->core->transport->read_memory && task->core->shards == 1;
    enum mn_status status = mn_check_data(task, &task->error);
    if (status || operation->count == 0) {
        mn_task_end(task, status);
        return;
    }
    status = mark_streams(task);
    if (status)
        mn_task_end(task, status);
    else
        cut(task);
}

void mn_end_data(mn_task *task)
{
    mn_core *core = task->core;
    mn_steps_settle(task);
    for (uint32_t i = 0; i < task->data.mark_count; i++)
        core->transport->unmark(core->transport, task->data.marks[i]);
    if (task->data.chunk_units) /* what the caller gave had passed */
        mn_explain(task);
    release_plan(task);
}
