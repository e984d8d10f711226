/* Push, BagGrad and Store: pieces staged for an open step (STEPS.md "Changes"). A piece keeps what
 * arrived; it is expanded only when its step is merged. */
#include "move.h"
#include "shard_device.h"

struct step *mn_shard_step_at(mn_shard *shard, struct group *group, uint64_t number)
{
    struct step *step = &group->steps[number % shard->options.open_steps_max];
    if (step->number != number) {
        assert(number > group->committed && step->seal_count == 0);
        assert(step->charged_bytes == 0); /* its commit gave back or moved every charge */
        step->number = number;
    }
    return step;
}

/* ---- Pieces by key */

static struct piece **bucket_of(struct step *step, uint64_t table, uint32_t part, uint32_t rank,
                                uint64_t position)
{
    uint64_t hash = table * UINT64_C(0x9e3779b97f4a7c15) + part;
    hash = (hash ^ hash >> 32) * UINT64_C(0xd6e8feb86659fd93) + rank;
    hash = (hash ^ hash >> 32) * UINT64_C(0xd6e8feb86659fd93) + position;
    hash = (hash ^ hash >> 32) * UINT64_C(0xd6e8feb86659fd93);
    return &step->buckets[hash >> 32 & (PIECE_BUCKETS - 1)];
}

static struct piece *find(struct step *step, const mn_request *request)
{
    uint32_t rank = request->context.rank;
    struct piece *piece = *bucket_of(step, request->table, request->part, rank, request->position);
    while (piece && (piece->table != request->table || piece->part != request->part ||
                     piece->rank != rank || piece->position != request->position))
        piece = piece->next_in_bucket;
    return piece;
}

static uint64_t contribution_charge(const mn_shard *shard, enum piece_kind kind,
                                    const struct layout *layout, uint64_t count)
{
    if (shard->device)
        return layout->reads * DEVICE_READ_BYTES + count * DEVICE_SOURCE_BYTES;
    if (kind == PIECE_STORE)
        return 0;
    return layout->reads * 2 * sizeof(mn_contribution) + count * sizeof(void *);
}

static void append(struct table_stage *stage, struct piece *piece)
{
    piece->next_in_table = NULL;
    *(stage->last ? &stage->last->next_in_table : &stage->first) = piece;
    stage->last = piece;
}

static void insert(struct group *group, struct step *step, struct table_stage *stage,
                   struct piece *piece)
{
    struct piece **bucket =
        bucket_of(step, piece->table, piece->part, piece->rank, piece->position);
    piece->next_in_bucket = *bucket;
    *bucket = piece;
    append(stage, piece);
    if (piece->kind != PIECE_STORE) {
        stage->value_dtype = piece->value_dtype;
        stage->reads += piece->layout.reads;
        stage->sources += piece->count;
    }
    step->seals[piece->rank].pieces++;
    step->charged_bytes += piece->charged_bytes;
    group->change_bytes += piece->charged_bytes;
}

static void free_piece(mn_shard *shard, struct piece *piece)
{
    if (shard->device)
        shard->device->unstage(shard, piece);
    mn_shard_block_give(&shard->pool, piece, piece->block_bytes);
}

static void drop_piece(mn_shard *shard, struct group *group, struct step *step,
                       struct table_stage *stage, struct piece *piece)
{
    struct piece **link = bucket_of(step, piece->table, piece->part, piece->rank, piece->position);
    while (*link != piece)
        link = &(*link)->next_in_bucket;
    *link = piece->next_in_bucket;
    if (piece->kind != PIECE_STORE) {
        stage->reads -= piece->layout.reads;
        stage->sources -= piece->count;
    }
    step->seals[piece->rank].pieces--;
    step->charged_bytes -= piece->charged_bytes;
    group->change_bytes -= piece->charged_bytes;
    if (piece->wanted)
        piece->left = true; /* an image of before has still to write it */
    else
        free_piece(shard, piece);
}

/* Pieces of `rank` (all ranks: UINT32_MAX) that an incarnation below `incarnation` staged. */
static bool drop_pieces(mn_shard *shard, struct group *group, struct step *step, uint32_t rank,
                        uint64_t incarnation)
{
    bool any = false;
    for (uint32_t i = 0; i < shard->options.tables_max; i++) {
        struct table_stage *stage = &step->tables[i];
        struct piece *piece = stage->first;
        stage->first = stage->last = NULL;
        while (piece) {
            struct piece *next = piece->next_in_table;
            if ((rank == UINT32_MAX || piece->rank == rank) && piece->incarnation < incarnation) {
                drop_piece(shard, group, step, stage, piece);
                any = true;
            } else {
                append(stage, piece);
            }
            piece = next;
        }
    }
    return any;
}

static void unseal(struct step *step, struct seal *seal)
{
    step->seal_count -= seal->sealed;
    seal->sealed = seal->discard = false;
    seal->incarnation = 0;
}

void mn_shard_step_drop(mn_shard *shard, struct group *group, struct step *step)
{
    mn_shard_merge_drop(shard, step);
    (void)drop_pieces(shard, group, step, UINT32_MAX, UINT64_MAX); /* whether any were there */
    step->reduce_count = 0;
    for (uint32_t i = 0; i < group->ranks; i++)
        unseal(step, &step->seals[i]);
}

void mn_shard_step_replay(mn_shard *shard, struct group *group, struct step *step, uint32_t rank,
                          uint64_t incarnation)
{
    struct seal *seal = &step->seals[rank];
    bool sealed = seal->sealed && seal->incarnation < incarnation;
    if (drop_pieces(shard, group, step, rank, incarnation) || sealed)
        mn_shard_merge_drop(shard, step);
    if (sealed)
        unseal(step, seal);
}

/* ---- Making a piece */

static enum piece_kind kind_of(enum mn_verb verb)
{
    return verb == MN_VERB_BAG_GRAD ? PIECE_BAG_GRAD
           : verb == MN_VERB_STORE  ? PIECE_STORE
                                    : PIECE_PUSH;
}

/* Where the arrays of a message lie, one after another in its payload. */
struct arrays {
    const uint8_t *indices, *weights, *rows, *states;
};

static struct arrays arrays_at(const uint8_t *bytes, const struct layout *layout)
{
    struct arrays arrays;
    arrays.indices = bytes;
    arrays.weights = arrays.indices + layout->indices_bytes;
    arrays.rows = arrays.weights + layout->weights_bytes;
    arrays.states = arrays.rows + layout->rows_bytes;
    return arrays;
}

/* Whether the arrays are those of the piece, byte by byte; the layouts are alike. */
static bool same_arrays(const struct piece *piece, const struct arrays *arrays)
{
    const struct layout *layout = &piece->layout;
    return !memcmp(piece->indices, arrays->indices, layout->indices_bytes) &&
           !memcmp(piece->weights, arrays->weights, layout->weights_bytes) &&
           !memcmp(piece->rows, arrays->rows, layout->rows_bytes) &&
           !memcmp(piece->states, arrays->states, layout->states_bytes);
}

/* A piece with the payload's arrays copied in behind its header. */
static enum mn_status stage_arrays(mn_shard *shard, const mn_request *request,
                                   const struct layout *layout, struct piece **out_piece,
                                   mn_error *error)
{
    uint64_t header = round_up(sizeof(struct piece), 64);
    uint64_t indices = round_up(layout->indices_bytes, 64);
    uint64_t weights = round_up(layout->weights_bytes, 64);
    uint64_t rows = round_up(layout->rows_bytes, 64);
    uint64_t bytes = header + indices + weights + rows + layout->states_bytes;
    uint8_t *block = mn_shard_block_take(&shard->pool, bytes);
    if (!block)
        return mn_fail(error, MN_NO_MEMORY, "payload", "no memory to stage %" PRIu64 " bytes",
                       request->payload.bytes);
    uint8_t *at = block + header;
    mn_cursor cursor;
    mn_cursor_init(&cursor, &request->payload, 0);
    mn_cursor_read(&cursor, at, layout->indices_bytes);
    mn_cursor_read(&cursor, at + indices, layout->weights_bytes);
    bool read_once = request->verb != MN_VERB_BAG_GRAD; /* that one: once per query and key */
    bool finite = mn_shard_copy_rows(shard, &cursor, request->value_dtype, layout->rows_bytes,
                                     read_once, at + indices + weights);
    mn_cursor_read(&cursor, at + indices + weights + rows, layout->states_bytes);

    struct piece *piece = (struct piece *)block;
    *piece = (struct piece){
        .block_bytes = bytes,
        .indices = at,
        .weights = at + indices,
        .rows = at + indices + weights,
        .states = at + indices + weights + rows,
        .rows_finite = finite,
    };
    *out_piece = piece;
    return MN_OK;
}

/* In no list yet. */
static enum mn_status piece_of(mn_shard *shard, const mn_request *request,
                               const struct layout *layout, struct piece **out_piece,
                               mn_error *error)
{
    enum mn_status status = shard->device
                                ? shard->device->stage(shard, request, layout, out_piece, error)
                                : stage_arrays(shard, request, layout, out_piece, error);
    if (status)
        return status;
    struct piece *piece = *out_piece;
    piece->table = request->table;
    piece->position = request->position;
    piece->incarnation = request->context.incarnation;
    piece->part = request->part;
    piece->rank = request->context.rank;
    piece->kind = kind_of(request->verb);
    piece->count = request->count;
    piece->per_query = request->verb == MN_VERB_BAG_GRAD ? request->per_query : 1;
    piece->index_encoding = request->index_encoding;
    piece->weight_dtype = request->weight_dtype;
    piece->value_dtype = request->value_dtype;
    piece->with_state = request->with_state;
    piece->layout = *layout;
    piece->charged_bytes = mn_shard_block_bytes(piece->block_bytes) + piece->device_bytes +
                           contribution_charge(shard, piece->kind, layout, request->count);
    return MN_OK;
}

static uint64_t charge_of(const mn_shard *shard, const mn_request *request,
                          const struct layout *layout)
{
    const uint64_t arrays = round_up(layout->indices_bytes, 64) +
                            round_up(layout->weights_bytes, 64) + round_up(layout->rows_bytes, 64) +
                            layout->states_bytes;
    const uint64_t header = round_up(sizeof(struct piece), 64);
    const uint64_t bytes = shard->device ? mn_shard_block_bytes(header) + arrays
                                         : mn_shard_block_bytes(header + arrays);
    return bytes + contribution_charge(shard, kind_of(request->verb), layout, request->count);
}

/* Indices to scratch.offsets, and every number finite. */
static enum mn_status check_piece(mn_shard *shard, const mn_request *request,
                                  const struct target *target, const struct layout *layout,
                                  const struct piece *piece, mn_error *error)
{
    bool bag = request->verb == MN_VERB_BAG_GRAD, store = request->verb == MN_VERB_STORE;
    const mn_optimizer *optimizer = &target->table->spec.optimizer;
    enum mn_dtype state_dtype =
        optimizer->kind == MN_OPTIMIZER_ROWWISE_ADAGRAD ? MN_F32 : optimizer->state_dtype;
    enum mn_status status = mn_shard_offsets(shard, target->table, target, request->index_encoding,
                                             piece->indices, layout->reads, bag, error);
    if (!status && bag)
        status = mn_shard_check_finite("weights", request->weight_dtype, piece->weights,
                                       layout->reads, error);
    if (!status && !piece->rows_finite)
        status = mn_shard_check_finite(store ? "rows" : "gradients", request->value_dtype,
                                       piece->rows, request->count * target->columns, error);
    if (!status && layout->states_bytes)
        status = mn_shard_check_finite("states", state_dtype, piece->states,
                                       layout->states_bytes / mn_dtype_bytes(state_dtype), error);
    return status;
}

/* ---- BagGrad's answer: d weight = <output gradient, row>, one array per tile. Offsets are in
 * scratch. */
static enum mn_status answer_bag_grad(mn_shard *shard, mn_call *call, const struct target *target,
                                      const struct layout *layout, const uint8_t *gradients,
                                      mn_error *error)
{
    const mn_request *request = &call->request;
    uint64_t bytes = target->plane_count * layout->reads * sizeof(float);
    uint32_t element = mn_dtype_bytes(request->value_dtype);
    if (shard->recovery)
        return MN_OK; /* nobody waits for it */
    uint8_t *out;
    enum mn_status status = mn_shard_reserve(call, bytes, &out, error);
    if (status)
        return status;
    uint64_t column = 0;
    for (uint32_t i = 0; i < target->plane_count; i++) {
        const mn_tile *plane = &target->table->planes[target->plane_first + i];
        shard->kernels->bag_dot(plane, shard->scratch.offsets, request->count, request->per_query,
                                request->value_dtype, gradients + column * element,
                                (uint64_t)target->columns * element,
                                (float *)out + i * layout->reads);
        column += plane->columns;
    }
    return MN_OK;
}

/* Nobody has looked yet at what a direct call brings (others' callers have): what is wrong with it
 * is said first. */
static enum mn_status check_given(mn_shard *shard, mn_call *call, const struct target *target,
                                  const struct layout *layout, mn_error *error)
{
    struct piece *piece;
    if (!call->request.direct.used)
        return MN_OK;
    enum mn_status status = piece_of(shard, &call->request, layout, &piece, error);
    if (status)
        return status;
    status = shard->device->check(shard, call, target, layout, piece, false, error);
    free_piece(shard, piece);
    return status;
}

/* A piece with this key stands: the same content is acknowledged, anything else refused. A BagGrad
 * that had to wait for its rows comes here when they are committed. */
static enum mn_status repeat(mn_shard *shard, mn_call *call, const struct target *target,
                             const struct layout *layout, const struct piece *piece,
                             mn_error *error)
{
    const mn_request *request = &call->request;
    struct arrays arrays = {0};
    bool bag = request->verb == MN_VERB_BAG_GRAD, alike = true;
    enum mn_status status = MN_OK;
    if (!shard->device)
        arrays = arrays_at(mn_shard_payload(shard, &request->payload), layout);
    bool same =
        piece->kind == kind_of(request->verb) && piece->count == request->count &&
        piece->index_encoding == request->index_encoding &&
        piece->value_dtype == request->value_dtype && piece->with_state == request->with_state &&
        (!bag ||
         (piece->per_query == request->per_query && piece->weight_dtype == request->weight_dtype));
    if (same && shard->device)
        status = shard->device->same(shard, request, piece, &alike, error);
    else if (same)
        alike = same_arrays(piece, &arrays);
    if (status)
        return status;
    if (!same || !alike)
        status = check_given(shard, call, target, layout, error);
    if (status)
        return status;
    if (!same || !alike)
        return mn_fail(error, MN_CONFLICT, "position",
                       "%" PRIu64 " of (table %" PRIu64
                       ", part %u, rank %u) is staged for step %" PRIu64 " with other content",
                       piece->position, piece->table, piece->part, piece->rank,
                       request->context.step);
    if (!bag)
        return MN_OK;
    if (!mn_shard_read_ready(shard, target->group, request))
        return mn_shard_park(shard, target->group, call, request->payload.bytes, error);
    if (shard->device)
        return shard->device->check(shard, call, target, layout, piece, true, error);
    status = mn_shard_offsets(shard, target->table, target, request->index_encoding, arrays.indices,
                              layout->reads, true, error);
    if (status)
        return status;
    return answer_bag_grad(shard, call, target, layout, arrays.rows, error);
}

static enum mn_status check_change(mn_shard *shard, mn_call *call, struct target *out_target,
                                   struct layout *out_layout, mn_error *error)
{
    const mn_request *request = &call->request;
    enum mn_status status = mn_shard_check_target(shard, call, false, out_target, error);
    if (status)
        return status;
    const struct group *group = out_target->group;
    uint64_t first = group->committed + 1, step = request->context.step;
    if (step < first || step - first >= shard->options.open_steps_max)
        return mn_fail(error, MN_STEP, "step",
                       "%" PRIu64 " is not open: %" PRIu64 " to %" PRIu64 " are", step, first,
                       first + shard->options.open_steps_max - 1);
    status = mn_shard_move_waits(shard, group, request->table, step, error);
    if (status)
        return status;
    if (request->verb != MN_VERB_STORE &&
        out_target->table->spec.optimizer.kind == MN_OPTIMIZER_NONE)
        return mn_fail(error, MN_INVALID, "optimizer", "table %s has none: it takes Store only",
                       out_target->table->spec.name);
    return mn_shard_check_layout(shard, request, out_target, out_layout, error);
}

static enum mn_status check_room(mn_shard *shard, const mn_call *call, const struct group *group,
                                 const struct table_stage *stage, const struct layout *layout,
                                 mn_error *error)
{
    const mn_request *request = &call->request;
    uint64_t charge = charge_of(shard, request, layout);
    if (charge > shard->options.change_bytes_max && !shard->recovery)
        return mn_fail(error, MN_INVALID, "payload",
                       "staging it takes %" PRIu64 " bytes, more "
                       "than change_bytes_max (%" PRIu64 ") will ever hold",
                       charge, shard->options.change_bytes_max);
    if (stage->sources && request->verb != MN_VERB_STORE &&
        stage->value_dtype != request->value_dtype)
        return mn_fail(error, MN_CONFLICT, "value_dtype",
                       "%s, but step %" PRIu64 " of table %" PRIu64 " is staged in %s",
                       mn_dtype_name(request->value_dtype), request->context.step, request->table,
                       mn_dtype_name(stage->value_dtype));
    if (stage->sources + request->count > UINT32_MAX)
        return mn_fail(error, MN_BUSY, "count",
                       "step %" PRIu64 " of table %" PRIu64 " holds %" PRIu64 " gradient rows",
                       request->context.step, request->table, stage->sources);
    if (shard->device && stage->reads + layout->reads > UINT32_MAX)
        return mn_fail(error, MN_BUSY, "count",
                       "step %" PRIu64 " of table %" PRIu64 " holds %" PRIu64
                       " reads, all that a device merges",
                       request->context.step, request->table, stage->reads);
    return mn_shard_change_room(shard, group, request->context.step, charge, error);
}

enum mn_status mn_shard_change(mn_shard *shard, mn_call *call, mn_error *error)
{
    const mn_request *request = &call->request;
    bool bag = request->verb == MN_VERB_BAG_GRAD;
    struct target target;
    struct layout layout;
    enum mn_status status = check_change(shard, call, &target, &layout, error);
    if (status)
        return status;
    struct group *group = target.group;
    struct step *step = mn_shard_step_at(shard, group, request->context.step);
    struct table_stage *stage = &step->tables[target.table - group->tables];
    const struct piece *standing = find(step, request);
    if (standing && !planted(shard, MN_PLANT_NO_DEDUP))
        return repeat(shard, call, &target, &layout, standing, error);
    if (step->seals[request->context.rank].sealed)
        return mn_fail(error, MN_STEP, "step",
                       "%" PRIu64 " is sealed by rank %u: nothing more "
                       "joins it",
                       request->context.step, request->context.rank);
    status = check_room(shard, call, group, stage, &layout, error);
    if (status)
        return status;

    struct piece *piece;
    status = piece_of(shard, request, &layout, &piece, error);
    if (status)
        return status;
    bool waits = bag && !mn_shard_read_ready(shard, group, request);
    if (shard->device)
        status = shard->device->check(shard, call, &target, &layout, piece, bag && !waits, error);
    else
        status = check_piece(shard, request, &target, &layout, piece, error);
    if (!status && bag && !waits && !shard->device)
        status = answer_bag_grad(shard, call, &target, &layout, piece->rows, error);
    if (!status)
        status = mn_shard_log_append(shard, group, request, error);
    if (status && planted(shard, MN_PLANT_LOG_LATE))
        status = MN_OK;
    if (status) {
        free_piece(shard, piece);
        return status;
    }
    insert(group, step, stage, piece);
    return waits ? mn_shard_park(shard, group, call, request->payload.bytes, error) : MN_OK;
}
