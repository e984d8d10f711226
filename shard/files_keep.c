/* One cut while training goes on: before a commit changes rows that a snapshot has not come to,
 * they go into their tile's file as they are, and their turn is over. So the saved state is that of
 * one step, no commit waits for the save to end, and what it takes in memory is a bit a row. */
#include "files.h"

/* ---- Beginning and end */

static uint64_t tiles_held(const mn_shard *shard, const struct files_job *job)
{
    uint64_t tiles = 0;
    for (uint32_t i = 0; i < shard->options.tables_max; i++)
        tiles += job->group->tables[i].id ? job->group->tables[i].tile_count : 0;
    return tiles;
}

enum mn_status mn_shard_save_begin(mn_shard *shard, struct files_job *job, mn_error *error)
{
    const mn_env *env = &shard->env;
    uint32_t first = 0;
    job->save_count = tiles_held(shard, job) + 1; /* none is no reason to have no array */
    job->saves = env->allocate(env->context, job->save_count * sizeof *job->saves);
    if (!job->saves)
        return mn_fail(error, MN_NO_MEMORY, "path", "no memory to save %" PRIu64 " tiles",
                       job->save_count - 1);
    for (uint32_t i = 0; i < shard->options.tables_max; i++) {
        const struct table *table = &job->group->tables[i];
        job->first_save[i] = table->id ? first : NO_SAVE;
        first += table->id ? table->tile_count : 0;
    }
    mn_shard_save_states(shard, job);
    return MN_OK;
}

void mn_shard_saves_deinit(mn_shard *shard, struct files_job *job)
{
    const mn_env *env = &shard->env;
    for (uint64_t i = 0; job->saves && i < job->save_count; i++) {
        struct tile_save *save = &job->saves[i];
        mn_shard_writer_abort(&save->writer);
        if (save->kept)
            env->unreserve(env->context, save->kept, save->kept_bytes);
    }
    env->release(env->context, job->saves, job->save_count * sizeof *job->saves);
    job->saves = NULL;
}

/* ---- Keeping */

/* Rows of one tile, near each other, on their way into its file. */
struct window {
    struct tile_save *save; /* NULL: none is open */
    uint64_t first;
    uint32_t rows, written;
    uint32_t low, high; /* written ones lie in [low, high) */
};

static enum mn_status flush(mn_shard *shard, struct files_job *job, struct window *window,
                            mn_error *error)
{
    struct tile_save *save = window->save;
    uint8_t *bitmap = job->keeper.buffer;
    window->save = NULL;
    if (!save || !window->written)
        return MN_OK;
    uint32_t skipped = window->low / 8 * 8, rows = window->high - skipped;
    memmove(bitmap, bitmap + skipped / 8, (rows + 7) / 8);
    return mn_shard_save_chunk(shard, job, save, &job->keeper, window->first + skipped, rows,
                               window->written, error);
}

static enum mn_status open_window(mn_shard *shard, struct files_job *job, struct tile_save *save,
                                  uint64_t row, struct window *out_window, mn_error *error)
{
    const mn_env *env = &shard->env;
    const struct tile_transfer *keeper = &job->keeper;
    const uint64_t max = keeper->head.chunk_rows_max, first = row / max * max;
    if (!save->kept) {
        save->kept_bytes = keeper->rows / 8 + 1;
        save->kept = env->reserve(env->context, save->kept_bytes);
    }
    if (!save->kept)
        return mn_fail(error, MN_NO_MEMORY, "path",
                       "no memory for a bit for each of %" PRIu64 " rows", keeper->rows);
    *out_window = (struct window){.save = save, .first = first, .low = UINT32_MAX};
    out_window->rows = (uint32_t)(keeper->rows - first < max ? keeper->rows - first : max);
    memset(keeper->buffer, 0, (out_window->rows + 7) / 8);
    return MN_OK;
}

static void put(struct window *window, uint8_t *bitmap, uint32_t place)
{
    bitmap[place / 8] |= (uint8_t)(1u << place % 8);
    window->written++;
    if (place < window->low)
        window->low = place;
    if (place >= window->high)
        window->high = place + 1;
}

static enum mn_status keep_rows(mn_shard *shard, struct files_job *job, struct table *table,
                                uint32_t plane, const struct row_list *list, mn_error *error)
{
    const bool split = table->geometry.split == MN_ROWS;
    struct tile_transfer *keeper = &job->keeper;
    struct tile_save *saves = &job->saves[job->first_save[table - job->group->tables]];
    struct window window = {0};
    enum mn_status status = MN_OK;
    keeper->active = false;
    for (uint64_t i = 0; i < list->count && !status; i++) {
        uint64_t offset = *(const uint64_t *)((const char *)list->offsets + i * list->stride_bytes);
        if (offset == MN_NO_ROW)
            continue;
        uint64_t rows_per_tile = table->geometry.rows_per_tile;
        uint32_t tile = split ? (uint32_t)(offset / rows_per_tile) : plane;
        uint64_t row = split ? offset % rows_per_tile : offset;
        struct tile_save *save = &saves[tile];
        if (save->finished || row < save->next_row ||
            (save->kept && save->kept[row / 8] >> row % 8 & 1))
            continue;
        bool same = window.save == save && row >= window.first && row - window.first < window.rows;
        if (!same)
            status = flush(shard, job, &window, error);
        if (!status && (!keeper->active || keeper->tile != table->tile_first + tile))
            status = mn_shard_transfer_start(shard, keeper, job->group->name, table,
                                             table->tile_first + tile,
                                             mn_shard_save_step(job, save), error);
        if (!status)
            status = mn_shard_save_look(shard, job, save, keeper, error);
        if (!status && save->finished)
            continue;
        if (!status && !same)
            status = open_window(shard, job, save, row, &window, error);
        if (status)
            return status;
        if (keeper->plane->updates[keeper->row_first + row])
            put(&window, keeper->buffer, (uint32_t)(row - window.first));
        save->kept[row / 8] |= (uint8_t)(1u << row % 8);
    }
    return status ? status : flush(shard, job, &window, error);
}

static void keep_for(mn_shard *shard, struct files_job *job, struct table *table, uint32_t plane,
                     const struct row_list *list, enum mn_plant plant)
{
    const struct group *group = job->group;
    if (job->trouble.status || group->committed < job->step)
        return;
    enum mn_status status = MN_OK;
    if (!job->saves)
        status = mn_shard_save_begin(shard, job, &job->trouble);
    if (!status && job->first_save[table - group->tables] != NO_SAVE && !planted(shard, plant))
        status = keep_rows(shard, job, table, plane, list, &job->trouble);
    job->trouble.status = status;
}

void mn_shard_keep_rows(mn_shard *shard, struct group *group, struct table *table, uint32_t plane,
                        const struct row_list *list)
{
    struct files_job *job = shard->job;
    if (job && job->group == group && job->run == mn_shard_save_tiles)
        keep_for(shard, job, table, plane, list, MN_PLANT_NO_KEEP);
    if (shard->image && shard->image->job.group == group)
        keep_for(shard, &shard->image->job, table, plane, list, MN_PLANT_IMAGE_NO_KEEP);
}
