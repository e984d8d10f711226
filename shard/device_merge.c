/* Merges in a CUDA device's memory: a step's reads of a table in one array, in the order (part,
 * rank, position), sorted by row once, and worked on plane by plane (shard_device.h). */
#include "device_state.h"

#include "files.h"

enum { ALIGNMENT = 256 };

/* ---- Memory: all that a commit will need, taken when the step is sealed */

static uint64_t place(uint64_t *end, uint64_t bytes)
{
    uint64_t at = *end;
    *end = round_up(at + bytes, ALIGNMENT);
    return at;
}

static uint64_t most_stored(const struct table_stage *stage)
{
    uint64_t most = 0;
    for (const struct piece *piece = stage->first; piece; piece = piece->next_in_table)
        if (piece->kind == PIECE_STORE && piece->count > most)
            most = piece->count;
    return most;
}

static uint64_t plan_bytes(mn_shard *shard, uint64_t reads, uint64_t rows)
{
    struct device_state *state = shard->device_state;
    uint64_t bytes = 0;
    if (reads)
        DEVICE_TRY(shard, mn_cuda_plan_bytes(reads, rows, &bytes, &state->error));
    return bytes;
}

static enum mn_status take_block(mn_shard *shard, const struct table *table,
                                 const struct table_stage *stage, struct device_stage *merged,
                                 mn_error *error)
{
    const uint64_t rows = table->planes[0].rows, reads = stage->reads;
    const uint64_t stored = most_stored(stage), runs = reads < rows ? reads : rows;
    uint64_t bytes = 0;
    merged->workspace_bytes = plan_bytes(shard, reads, rows);
    merged->store_workspace_bytes = plan_bytes(shard, stored, rows);
    const uint64_t offsets = place(&bytes, reads * sizeof *merged->offsets);
    const uint64_t weights = place(&bytes, reads * sizeof *merged->weights);
    const uint64_t numbers = place(&bytes, reads * sizeof *merged->numbers);
    const uint64_t sources = place(&bytes, stage->sources * sizeof *merged->rows);
    const uint64_t counts = place(&bytes, table->plane_count * sizeof *merged->first_written);
    const uint64_t scratch = place(&bytes, runs * sizeof *merged->scratch);
    const uint64_t squares = place(&bytes, table->tile_count * sizeof *merged->squares);
    const uint64_t workspace = place(&bytes, merged->workspace_bytes);
    const uint64_t store_offsets = place(&bytes, stored * sizeof *merged->store_offsets);
    const uint64_t store_workspace = place(&bytes, merged->store_workspace_bytes);
    uint8_t *block = merged->block = mn_cuda_take(&shard->device_state->queue, bytes);
    merged->changed_bytes = (reads > stored ? reads : stored) * sizeof *merged->changed;
    merged->changed = mn_shard_block_take(&shard->pool, merged->changed_bytes);
    if (!block)
        return mn_shard_device_no_memory(shard, bytes, error);
    if (!merged->changed)
        return mn_fail(error, MN_NO_MEMORY, "step", "no memory for the rows that change");
    merged->offsets = (uint64_t *)(block + offsets);
    merged->weights = (float *)(block + weights);
    merged->numbers = (uint32_t *)(block + numbers);
    merged->rows = (const void **)(block + sources);
    merged->first_written = (uint64_t *)(block + counts);
    merged->scratch = (double *)(block + scratch);
    merged->squares = (double *)(block + squares);
    merged->workspace = block + workspace;
    merged->store_offsets = (uint64_t *)(block + store_offsets);
    merged->store_workspace = block + store_workspace;
    return MN_OK;
}

void mn_shard_device_unmerge(mn_shard *shard, struct table_stage *stage)
{
    struct device_stage *merged = stage->device;
    if (!merged)
        return;
    mn_cuda_give(&shard->device_state->queue, merged->block);
    mn_shard_block_give(&shard->pool, merged->changed, merged->changed_bytes);
    mn_shard_block_give(&shard->pool, merged, sizeof *merged);
    stage->device = NULL;
}

/* ---- Contributions */

/* A staged piece's target: every tile that this shard holds of the table. */
static struct target whole(struct group *group, struct table *table)
{
    struct target target = {.group = group, .table = table, .columns = table->columns};
    target.plane_count = table->plane_count;
    target.position_first = table->position_first;
    target.position_end = table->position_first + table->planes[0].rows;
    return target;
}

static uint64_t row_bytes(const struct table *table, enum mn_dtype dtype)
{
    return (uint64_t)table->columns * mn_dtype_bytes(dtype);
}

/* The piece's reads, from `read` on, and its source rows, numbered from `source` on. What was
 * checked at arrival is not bad now. */
static void expand(mn_shard *shard, const struct target *target, const struct piece *piece,
                   const struct device_stage *merged, uint64_t read, uint64_t source)
{
    struct device_state *state = shard->device_state;
    const bool bag = piece->kind == PIECE_BAG_GRAD;
    mn_shard_device_offsets(shard, target, piece->index_encoding, piece->indices,
                            piece->layout.reads, bag, merged->offsets + read);
    if (bag)
        DEVICE_TRY(shard, mn_cuda_weights(piece->weight_dtype, piece->weights, piece->layout.reads,
                                          merged->weights + read, state->queue.bad,
                                          state->queue.stream, &state->error));
    DEVICE_TRY(shard, mn_cuda_number_sources(
                          piece->rows, row_bytes(target->table, piece->value_dtype), piece->count,
                          piece->per_query, (uint32_t)source, merged->numbers + read,
                          merged->rows + source, bag ? NULL : merged->weights + read,
                          state->queue.stream, &state->error));
}

enum mn_status mn_shard_device_merge(mn_shard *shard, struct group *group, struct table *table,
                                     struct table_stage *stage, mn_error *error)
{
    struct device_state *state = shard->device_state;
    const struct target target = whole(group, table);
    uint64_t read = 0, source = 0;
    struct device_stage *merged = mn_shard_block_take(&shard->pool, sizeof *merged);
    if (!merged)
        return mn_fail(error, MN_NO_MEMORY, "step", "no memory to merge it");
    memset(merged, 0, sizeof *merged);
    stage->device = merged;
    enum mn_status status = take_block(shard, table, stage, merged, error);
    if (status)
        return status;
    for (const struct piece *piece = stage->first; piece; piece = piece->next_in_table) {
        if (piece->kind == PIECE_STORE)
            continue;
        expand(shard, &target, piece, merged, read, source);
        read += piece->layout.reads;
        source += piece->count;
    }
    if (read)
        DEVICE_TRY(shard, mn_cuda_plan_reads(merged->offsets, read, table->planes[0].rows,
                                             merged->workspace, merged->workspace_bytes,
                                             &merged->plan, state->queue.stream, &state->error));
    stage->contribution_count = read;
    return mn_shard_device_wait(shard, error);
}

static mn_cuda_sources sources_of(const struct table *table, const struct table_stage *stage,
                                  const mn_tile *plane)
{
    return (mn_cuda_sources){
        .stride_bytes = row_bytes(table, stage->value_dtype),
        .weights = stage->device->weights,
        .dtype = stage->value_dtype,
        .column = plane->first_column - table->planes[0].first_column,
        .rows = stage->device->rows,
        .numbers = stage->device->numbers,
    };
}

enum mn_status mn_shard_device_squares(mn_shard *shard, const struct table *table,
                                       const struct table_stage *stage, double *out_squares,
                                       mn_error *error)
{
    struct device_state *state = shard->device_state;
    const struct device_stage *merged = stage->device;
    const bool split = table->geometry.split == MN_ROWS;
    for (uint32_t i = 0; i < table->plane_count; i++) {
        const mn_tile *plane = &table->planes[i];
        const mn_cuda_sources sources = sources_of(table, stage, plane);
        const uint64_t rows = split ? table->geometry.rows_per_tile : plane->rows;
        DEVICE_TRY(shard,
                   mn_cuda_merge_squares(&merged->plan, &sources, plane->columns, rows,
                                         split ? table->tile_count : 1, merged->scratch,
                                         merged->squares + i, state->queue.stream, &state->error));
    }
    DEVICE_TRY(shard, mn_cuda_copy(&state->queue, out_squares, merged->squares,
                                   table->tile_count * sizeof *out_squares, &state->error));
    return mn_shard_device_wait(shard, error);
}

/* ---- Commit */

/* Rows about to change, for those who must know before. Tiles of columns need no list for it, a
 * save needs one. */
static void tell_changed(mn_shard *shard, struct group *group, struct table *table,
                         struct device_stage *merged, const uint64_t *offsets, uint64_t count,
                         bool sorted)
{
    struct device_state *state = shard->device_state;
    struct row_list list = {merged->changed, sizeof *merged->changed, 0};
    if (table->geometry.split == MN_ROWS || shard->job || shard->image) {
        DEVICE_TRY(shard, mn_cuda_copy(&state->queue, merged->changed, offsets,
                                       count * sizeof *offsets, &state->error));
        if (mn_shard_device_wait(shard, NULL))
            return;
        list.count = count;
        while (sorted && list.count && merged->changed[list.count - 1] >= table->planes[0].rows)
            list.count--; /* reads of other shards' rows come last */
    }
    for (uint32_t i = 0; i < table->plane_count; i++) {
        mn_shard_keep_rows(shard, group, table, i, &list);
        mn_shard_mark_rows(group, table, i, &list);
    }
}

static void apply_store(mn_shard *shard, struct group *group, struct table *table,
                        struct device_stage *merged, const struct piece *piece)
{
    struct device_state *state = shard->device_state;
    const struct target target = whole(group, table);
    const uint64_t element = mn_dtype_bytes(piece->value_dtype);
    const uint64_t state_stride = piece->layout.states_bytes / piece->count;
    uint64_t column = 0, skipped = 0;
    mn_cuda_plan plan;
    mn_shard_device_offsets(shard, &target, piece->index_encoding, piece->indices, piece->count,
                            false, merged->store_offsets);
    enum mn_status status = mn_cuda_plan_reads(
        merged->store_offsets, piece->count, table->planes[0].rows, merged->store_workspace,
        merged->store_workspace_bytes, &plan, state->queue.stream, &state->error);
    mn_shard_device_note(shard, status);
    if (status)
        return;
    tell_changed(shard, group, table, merged, merged->store_offsets, piece->count, false);
    for (uint32_t i = 0; i < table->plane_count; i++) {
        const mn_tile *plane = &table->planes[i];
        const uint8_t *states = piece->layout.states_bytes ? piece->states + skipped : NULL;
        DEVICE_TRY(shard,
                   mn_cuda_store(plane, &plan, piece->value_dtype, piece->rows + column * element,
                                 row_bytes(table, piece->value_dtype), states, state_stride,
                                 merged->first_written + i, state->queue.stream, &state->error));
        column += plane->columns;
        skipped += mn_state_row_bytes(&plane->optimizer, plane->columns);
    }
}

static void apply_gradients(mn_shard *shard, struct group *group, struct table *table,
                            const struct table_stage *stage, const mn_update *update)
{
    struct device_state *state = shard->device_state;
    struct device_stage *merged = stage->device;
    tell_changed(shard, group, table, merged, merged->plan.sorted, merged->plan.reads, true);
    for (uint32_t i = 0; i < table->plane_count; i++) {
        const mn_cuda_sources sources = sources_of(table, stage, &table->planes[i]);
        DEVICE_TRY(shard, mn_cuda_merge_apply(&table->planes[i], &merged->plan, &sources, update,
                                              merged->first_written + i, state->queue.stream,
                                              &state->error));
    }
}

void mn_shard_device_apply(mn_shard *shard, struct group *group, struct table *table,
                           struct table_stage *stage, const mn_update *update)
{
    struct device_state *state = shard->device_state;
    struct device_stage *merged = stage->device;
    const uint64_t bytes = table->plane_count * sizeof *merged->first_written;
    uint64_t *first_written = shard->scratch.offsets; /* the host's; no call is in hand */
    assert(table->plane_count <= shard->scratch.reads_max);
    DEVICE_TRY(shard, mn_cuda_zero(&state->queue, merged->first_written, bytes, &state->error));
    for (const struct piece *piece = stage->first; piece; piece = piece->next_in_table)
        if (piece->kind == PIECE_STORE)
            apply_store(shard, group, table, merged, piece);
    if (update)
        apply_gradients(shard, group, table, stage, update);
    DEVICE_TRY(shard, mn_cuda_copy(&state->queue, first_written, merged->first_written, bytes,
                                   &state->error));
    if (mn_shard_device_wait(shard, NULL))
        return;
    for (uint32_t i = 0; i < table->plane_count; i++)
        table->planes[i].rows_written += first_written[i];
}
