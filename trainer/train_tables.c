/* Dense parameters and running statistics live in tables like the values: a trainer has no state of
 * its own to lose, and a checkpoint of the group is a checkpoint of the job. */
#include "train.h"

#include <stdlib.h>
#include <string.h>

static const char *const dense_names[3] = {"dense-decayed", "dense-plain", "statistics"};

static enum mn_status dense_open(mn_training *training, int which, mn_error *error)
{
    mn_dense_table *dense = &training->dense[which];
    if (dense->count == 0)
        return MN_OK;
    dense->rows = (dense->count + MN_DENSE_DIM - 1) / MN_DENSE_DIM;
    dense->packed = calloc(dense->rows * MN_DENSE_DIM, sizeof *dense->packed);
    if (!dense->packed)
        return mn_fail(error, MN_NO_MEMORY, "dense", "%llu parameters do not fit into memory",
                       (unsigned long long)dense->count);
    mn_table_spec spec = {.rows = dense->rows,
                          .dim = MN_DENSE_DIM,
                          .dtype = MN_F32,
                          .split = MN_ROWS,
                          .init = mn_init_zero(),
                          .optimizer = mn_adamw(0.9f, 0.95f, 1e-8f)};
    if (which == MN_DENSE_STATISTICS)
        spec.optimizer = (mn_optimizer){.kind = MN_OPTIMIZER_NONE};
    strcpy(spec.name, dense_names[which]);
    return mn_table_open(training->client, &spec, &dense->table, error);
}

enum mn_status mn_training_tables_open(mn_training *training, mn_error *error)
{
    const mn_model *model = training->model;
    for (uint32_t i = 0; i < model->table_count; i++) {
        mn_table_spec spec;
        mn_model_table_spec(model, i, &spec);
        enum mn_status status = mn_table_open(training->client, &spec, &training->values[i], error);
        if (status)
            return status;
    }
    for (uint32_t i = 0; i < model->segment_count; i++) {
        const mn_segment *segment = &model->segments[i];
        training->dense[segment->decays ? MN_DENSE_DECAY : MN_DENSE_PLAIN].count += segment->count;
    }
    training->dense[MN_DENSE_STATISTICS].count = model->statistics_count;

    uint64_t rows = 0;
    for (int i = 0; i < 3; i++) {
        enum mn_status status = dense_open(training, i, error);
        if (status)
            return status;
        if (training->dense[i].rows > rows)
            rows = training->dense[i].rows;
    }
    training->row_numbers = malloc(rows * sizeof *training->row_numbers);
    if (!training->row_numbers)
        return mn_fail(error, MN_NO_MEMORY, "dense", "no memory");
    for (uint64_t i = 0; i < rows; i++)
        training->row_numbers[i] = (uint32_t)i;
    return MN_OK;
}

/* The flat array is cut into the two packed ones, segment by segment; or joined from them. */
static void pack(mn_training *training, const float *flat)
{
    uint64_t at[2] = {0, 0};
    for (uint32_t i = 0; i < training->model->segment_count; i++) {
        const mn_segment *segment = &training->model->segments[i];
        int which = segment->decays ? MN_DENSE_DECAY : MN_DENSE_PLAIN;
        memcpy(training->dense[which].packed + at[which], flat + segment->offset,
               segment->count * sizeof *flat);
        at[which] += segment->count;
    }
}

static void unpack(const mn_training *training, float *flat)
{
    uint64_t at[2] = {0, 0};
    for (uint32_t i = 0; i < training->model->segment_count; i++) {
        const mn_segment *segment = &training->model->segments[i];
        int which = segment->decays ? MN_DENSE_DECAY : MN_DENSE_PLAIN;
        memcpy(flat + segment->offset, training->dense[which].packed + at[which],
               segment->count * sizeof *flat);
        at[which] += segment->count;
    }
}

/* Waits for all of them, also after a failure: their buffers are ours again only then. */
static enum mn_status wait_all(mn_future **futures, int count, mn_error *error)
{
    enum mn_status status = MN_OK;
    for (int i = 0; i < count; i++) {
        enum mn_status one = mn_wait(futures[i], status ? NULL : error);
        if (!status)
            status = one;
    }
    return status;
}

static mn_rows rows_of(const mn_training *training, const mn_dense_table *dense)
{
    return (mn_rows){.count = dense->rows, .indices = mn_u32(training->row_numbers)};
}

enum mn_status mn_training_fetch(mn_training *training, mn_error *error)
{
    mn_future *futures[3];
    int count = 0;
    for (int i = 0; i < 3; i++) {
        mn_dense_table *dense = &training->dense[i];
        if (!dense->table)
            continue;
        mn_rows rows = rows_of(training, dense);
        futures[count++] =
            mn_fetch(dense->table, training->step, &rows, mn_f32(dense->packed), NULL);
    }
    enum mn_status status = wait_all(futures, count, error);
    if (status)
        return status;
    unpack(training, training->host.parameters);
    if (training->host.statistics)
        memcpy(training->host.statistics, training->dense[MN_DENSE_STATISTICS].packed,
               training->dense[MN_DENSE_STATISTICS].count * sizeof(float));
    mn_training_arrays_write(training);
    return MN_OK;
}

static mn_future *store_start(mn_training *training, mn_dense_table *dense)
{
    mn_rows rows = rows_of(training, dense);
    return mn_store(dense->table, training->step, 0, &rows, mn_f32(dense->packed), NULL);
}

static void pack_statistics(mn_training *training)
{
    mn_dense_table *dense = &training->dense[MN_DENSE_STATISTICS];
    memcpy(dense->packed, training->host.statistics, dense->count * sizeof(float));
}

enum mn_status mn_training_push(mn_training *training, mn_error *error)
{
    mn_future *futures[3];
    int count = 0;
    enum mn_status status = mn_training_arrays_read(training, error);
    if (status)
        return status;
    pack(training, training->host.gradients);
    for (int i = 0; i < 2; i++) {
        mn_dense_table *dense = &training->dense[i];
        if (!dense->table)
            continue;
        mn_rows rows = rows_of(training, dense);
        futures[count++] = mn_push(dense->table, training->step, 0, &rows, mn_f32(dense->packed));
    }
    if (training->options->rank == 0 && training->dense[MN_DENSE_STATISTICS].table) {
        pack_statistics(training);
        futures[count++] = store_start(training, &training->dense[MN_DENSE_STATISTICS]);
    }
    return wait_all(futures, count, error);
}

enum mn_status mn_training_initialise(mn_training *training, mn_error *error)
{
    training->step = 1;
    if (training->options->rank == 0) {
        mn_future *futures[3];
        int count = 0;
        mn_model_init_parameters(training->model, training->host.parameters,
                                 training->host.statistics);
        pack(training, training->host.parameters);
        if (training->host.statistics)
            pack_statistics(training);
        for (int i = 0; i < 3; i++)
            if (training->dense[i].table)
                futures[count++] = store_start(training, &training->dense[i]);
        enum mn_status status = wait_all(futures, count, error);
        if (status)
            return status;
    }
    mn_commit_options commit = {0}; /* one set of all tables at rate 0: only stores happen */
    return mn_commit(training->client, training->step, &commit, NULL, error);
}

enum mn_status mn_training_digest(mn_training *training, mn_table *table, uint64_t *out_hash,
                                  mn_error *error)
{
    enum { BATCH = 4096 };
    const mn_table_spec *spec = mn_table_spec_of(table);
    /* State is at most two elements of four bytes per column (Adam). */
    uint64_t row_bytes = (uint64_t)spec->dim * sizeof(float), state_bytes = 2 * row_bytes;
    bool has_state = spec->optimizer.kind == MN_OPTIMIZER_ADAGRAD ||
                     spec->optimizer.kind == MN_OPTIMIZER_ADAM ||
                     spec->optimizer.kind == MN_OPTIMIZER_ADAMW;
    uint8_t *buffer = calloc(BATCH, row_bytes + state_bytes);
    int64_t *numbers = malloc(BATCH * sizeof *numbers);
    enum mn_status status = MN_OK;
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    if (!buffer || !numbers) {
        status = mn_fail(error, MN_NO_MEMORY, "digest", "no memory");
        goto release;
    }
    for (uint64_t first = 0; first < spec->rows && !status; first += BATCH) {
        uint64_t count = spec->rows - first < BATCH ? spec->rows - first : BATCH;
        for (uint64_t i = 0; i < count; i++)
            numbers[i] = (int64_t)(first + i);
        mn_rows rows = {.count = count, .indices = mn_i64(numbers)};
        status = mn_wait(mn_fetch(table, training->step, &rows, mn_f32((float *)buffer),
                                  has_state ? buffer + count * row_bytes : NULL),
                         error);
        uint64_t bytes = count * (row_bytes + (has_state ? state_bytes : 0));
        for (uint64_t i = 0; i < bytes && !status; i++)
            hash = (hash ^ buffer[i]) * UINT64_C(0x100000001b3);
    }
    if (!status)
        *out_hash = hash;
release:
    free(numbers);
    free(buffer);
    return status;
}
