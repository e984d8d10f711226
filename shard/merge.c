/* Merging: the staged pieces of a sealed step as sorted contributions, one array per table, made
 * once and used for the norms, for all column tiles, and for the commit. */
#include "shard_core.h"
#include "shard_device.h"

/* ---- Order: (part, rank, position) */

static bool before(const struct piece *a, const struct piece *b)
{
    if (a->part != b->part)
        return a->part < b->part;
    if (a->rank != b->rank)
        return a->rank < b->rank;
    return a->position < b->position;
}

static struct piece *merge_lists(struct piece *a, struct piece *b)
{
    struct piece *first = NULL, **link = &first;
    while (a && b) {
        struct piece **least = before(b, a) ? &b : &a;
        *link = *least;
        link = &(*least)->next_in_table;
        *least = *link;
    }
    *link = a ? a : b;
    return first;
}

/* Bottom-up merge sort of a list: runs[i] holds a sorted run of 2^i pieces. */
static void sort_pieces(struct table_stage *stage)
{
    struct piece *runs[48] = {0};
    for (struct piece *piece = stage->first; piece;) {
        struct piece *run = piece;
        piece = piece->next_in_table;
        run->next_in_table = NULL;
        uint32_t level = 0;
        for (; runs[level]; level++) {
            run = merge_lists(runs[level], run);
            runs[level] = NULL;
        }
        runs[level] = run;
    }
    struct piece *sorted = NULL;
    for (uint32_t level = 0; level < 48; level++)
        sorted = merge_lists(runs[level], sorted);
    stage->first = sorted;
    for (stage->last = sorted; stage->last && stage->last->next_in_table;)
        stage->last = stage->last->next_in_table;
}

/* ---- Contributions */

/* A staged piece's target: every tile that this shard holds of the table. */
static struct target whole(struct group *group, struct table *table)
{
    const mn_geometry *geometry = &table->geometry;
    struct target target = {.group = group, .table = table, .columns = table->columns};
    target.plane_count = table->plane_count;
    target.position_end = geometry->rows;
    if (geometry->split == MN_ROWS) {
        target.position_first = table->position_first;
        target.position_end = table->position_first + table->planes[0].rows;
    }
    return target;
}

/* Appends the piece's contributions; source rows are numbered from stage->sources on. What was
 * checked at arrival decodes now, so a failure would be our own. */
static void expand(mn_shard *shard, const struct target *target, const struct piece *piece,
                   struct table_stage *stage, uint32_t first_source)
{
    const uint64_t *offsets = shard->scratch.offsets;
    const float *weights = shard->scratch.weights;
    bool bag = piece->kind == PIECE_BAG_GRAD;
    enum mn_status status = mn_shard_offsets(shard, target->table, target, piece->index_encoding,
                                             piece->indices, piece->layout.reads, bag, NULL);
    if (!status && bag)
        status =
            mn_shard_weights(shard, piece->weight_dtype, piece->weights, piece->layout.reads, NULL);
    assert(!status);
    uint64_t row_bytes = (uint64_t)target->columns * mn_dtype_bytes(piece->value_dtype);
    for (uint64_t i = 0; i < piece->count; i++)
        stage->source_rows[first_source + i] = piece->rows + i * row_bytes;
    mn_contribution *out = stage->contributions + stage->contribution_count;
    uint64_t read = 0;
    for (uint64_t i = 0; i < piece->count; i++) {
        for (uint32_t j = 0; j < piece->per_query; j++, read++) {
            if (offsets[read] == MN_NO_ROW)
                continue;
            out->offset = offsets[read];
            out->source = first_source + (uint32_t)i;
            out->weight = bag ? weights[read] : 1.0f;
            out++;
        }
    }
    stage->contribution_count = (uint64_t)(out - stage->contributions);
}

static void stage_drop(mn_shard *shard, struct table_stage *stage)
{
    if (shard->device)
        shard->device->unmerge(shard, stage);
    mn_shard_block_give(&shard->pool, stage->contributions, stage->contribution_bytes);
    mn_shard_block_give(&shard->pool, (void *)stage->source_rows, stage->source_bytes);
    stage->contributions = NULL;
    stage->source_rows = NULL;
    stage->contribution_count = 0;
}

static enum mn_status no_memory(const struct step *step, mn_error *error)
{
    return mn_fail(error, MN_NO_MEMORY, "step", "no memory to merge step %" PRIu64, step->number);
}

static enum mn_status stage_merge(mn_shard *shard, struct group *group, const struct step *step,
                                  struct table_stage *stage, mn_error *error)
{
    struct table *table = &group->tables[stage - step->tables];
    if (!planted(shard, MN_PLANT_ARRIVAL_ORDER))
        sort_pieces(stage);
    if (shard->device)
        return shard->device->merge(shard, group, table, stage, error);
    if (!stage->reads)
        return MN_OK;
    uint64_t bytes = stage->reads * sizeof(mn_contribution);
    stage->contribution_bytes = bytes;
    stage->source_bytes = stage->sources * sizeof *stage->source_rows;
    mn_contribution *sort_scratch = mn_shard_block_take(&shard->pool, bytes);
    stage->contributions = mn_shard_block_take(&shard->pool, bytes);
    stage->source_rows = mn_shard_block_take(&shard->pool, stage->source_bytes);
    bool memory = sort_scratch && stage->contributions && stage->source_rows;
    if (memory) {
        struct target target = whole(group, table);
        uint32_t source = 0;
        for (struct piece *piece = stage->first; piece; piece = piece->next_in_table) {
            if (piece->kind == PIECE_STORE)
                continue;
            expand(shard, &target, piece, stage, source);
            source += (uint32_t)piece->count;
        }
        mn_contributions_sort(stage->contributions, sort_scratch, stage->contribution_count,
                              table->planes[0].rows);
    }
    mn_shard_block_give(&shard->pool, sort_scratch, bytes);
    return memory ? MN_OK : no_memory(step, error);
}

void mn_shard_merge_drop(mn_shard *shard, struct step *step)
{
    for (uint32_t i = 0; i < shard->options.tables_max; i++)
        stage_drop(shard, &step->tables[i]);
    mn_shard_block_give(&shard->pool, step->squares, step->square_count * sizeof(double));
    step->squares = NULL;
    step->square_count = 0;
    step->merged = false;
}

/* ---- Norms */

static mn_sources sources_of(const struct table *table, const struct table_stage *stage,
                             const mn_tile *plane)
{
    return (mn_sources){
        .rows = stage->source_rows,
        .dtype = stage->value_dtype,
        .column = plane->first_column - table->planes[0].first_column,
    };
}

/* First contribution at or after `offset`; they are sorted. */
static uint64_t lower_bound(const struct table_stage *stage, uint64_t offset)
{
    uint64_t low = 0, high = stage->contribution_count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (stage->contributions[middle].offset < offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void table_squares(mn_shard *shard, const struct table *table,
                          const struct table_stage *stage, double *out_squares)
{
    bool rows = table->geometry.split == MN_ROWS;
    uint64_t from = 0;
    for (uint32_t i = 0; i < table->tile_count; i++) {
        const mn_tile *plane = &table->planes[rows ? 0 : i];
        mn_sources sources = sources_of(table, stage, plane);
        uint64_t to = stage->contribution_count;
        if (rows)
            to = lower_bound(stage, (i + 1) * table->geometry.rows_per_tile);
        out_squares[i] = 0;
        if (to > from)
            out_squares[i] = shard->kernels->merge_square(
                plane, stage->contributions + from, to - from, &sources, shard->scratch.merge);
        if (rows)
            from = to;
    }
}

/* The table with the least id above `id`. */
static struct table *table_after(mn_shard *shard, struct group *group, uint64_t id)
{
    struct table *next = NULL;
    for (uint32_t i = 0; i < shard->options.tables_max; i++) {
        struct table *table = &group->tables[i];
        if (table->id > id && (!next || table->id < next->id))
            next = table;
    }
    return next;
}

static enum mn_status step_squares(mn_shard *shard, struct group *group, struct step *step,
                                   mn_error *error)
{
    uint64_t count = 0, at = 0;
    enum mn_status status = MN_OK;
    for (uint32_t i = 0; i < shard->options.tables_max; i++)
        count += group->tables[i].id ? group->tables[i].tile_count : 0;
    if (!count)
        return MN_OK;
    step->squares = mn_shard_block_take(&shard->pool, count * sizeof *step->squares);
    if (!step->squares)
        return no_memory(step, error);
    step->square_count = count;
    memset(step->squares, 0, count * sizeof *step->squares);
    for (struct table *table = table_after(shard, group, 0); table && !status;
         table = table_after(shard, group, table->id)) {
        const struct table_stage *stage = &step->tables[table - group->tables];
        if (stage->contribution_count && shard->device)
            status = shard->device->squares(shard, table, stage, step->squares + at, error);
        else if (stage->contribution_count)
            table_squares(shard, table, stage, step->squares + at);
        at += table->tile_count;
    }
    return status;
}

enum mn_status mn_shard_merge(mn_shard *shard, struct group *group, struct step *step,
                              mn_error *error)
{
    enum mn_status status = MN_OK;
    assert(!step->merged);
    step->merged = true;
    for (uint32_t i = 0; !status && i < shard->options.tables_max; i++)
        if (step->tables[i].first)
            status = stage_merge(shard, group, step, &step->tables[i], error);
    if (!status && step->norms)
        status = step_squares(shard, group, step, error);
    if (status)
        mn_shard_merge_drop(shard, step);
    return status;
}

/* ---- Commit */

static void apply_store(mn_shard *shard, struct group *group, struct table *table,
                        const struct piece *piece)
{
    struct target target = whole(group, table);
    enum mn_status status = mn_shard_offsets(shard, table, &target, piece->index_encoding,
                                             piece->indices, piece->count, false, NULL);
    assert(!status); /* checked at arrival */
    uint32_t element = mn_dtype_bytes(piece->value_dtype);
    uint64_t state_stride = piece->layout.states_bytes / piece->count, state = 0, column = 0;
    const struct row_list changed = {shard->scratch.offsets, sizeof(uint64_t), piece->count};
    for (uint32_t i = 0; i < table->plane_count; i++) {
        mn_tile *plane = &table->planes[i];
        mn_shard_keep_rows(shard, group, table, i, &changed);
        mn_shard_mark_rows(group, table, i, &changed);
        const void *states = piece->layout.states_bytes ? piece->states + state : NULL;
        plane->rows_written +=
            shard->kernels->store(plane, shard->scratch.offsets, piece->count, piece->value_dtype,
                                  piece->rows + column * element,
                                  (uint64_t)target.columns * element, states, state_stride);
        column += plane->columns;
        state += mn_state_row_bytes(&plane->optimizer, plane->columns);
    }
}

static void apply_gradients(mn_shard *shard, struct group *group, struct table *table,
                            const struct table_stage *stage, const mn_update *update)
{
    const struct row_list changed = {&stage->contributions->offset, sizeof *stage->contributions,
                                     stage->contribution_count};
    for (uint32_t i = 0; i < table->plane_count; i++) {
        mn_tile *plane = &table->planes[i];
        mn_shard_keep_rows(shard, group, table, i, &changed);
        if (!planted(shard, MN_PLANT_STALE_TILE))
            mn_shard_mark_rows(group, table, i, &changed);
        mn_sources sources = sources_of(table, stage, plane);
        plane->rows_written +=
            shard->kernels->merge_apply(plane, stage->contributions, stage->contribution_count,
                                        &sources, update, shard->scratch.merge);
    }
}

static void apply_table(mn_shard *shard, struct group *group, struct table *table,
                        struct table_stage *stage, const mn_update *update)
{
    if (shard->device) {
        shard->device->apply(shard, group, table, stage, update);
        return;
    }
    for (const struct piece *piece = stage->first; piece; piece = piece->next_in_table)
        if (piece->kind == PIECE_STORE)
            apply_store(shard, group, table, piece);
    if (update)
        apply_gradients(shard, group, table, stage, update);
}

enum mn_status mn_shard_merge_apply(mn_shard *shard, struct group *group, struct step *step,
                                    const mn_proposal *outcome, const float *factors,
                                    mn_error *error)
{
    assert(step->merged);
    for (uint32_t i = 0; i < shard->options.tables_max; i++) {
        struct table_stage *stage = &step->tables[i];
        struct table *table = &group->tables[i];
        if (!stage->first)
            continue;
        int set = mn_shard_proposal_set(outcome, table->id);
        const bool moves = set >= 0 && stage->contribution_count;
        const mn_update update = {
            .learning_rate = moves ? outcome->sets[set].learning_rate : 0,
            .weight_decay = moves ? outcome->sets[set].weight_decay : 0,
            .factor = moves ? factors[set] : 0,
            .step = step->number,
        };
        apply_table(shard, group, table, stage, moves ? &update : NULL);
        mn_shard_table_promote(shard, table);
    }
    return shard->device ? shard->device->state(shard, error) : MN_OK;
}
