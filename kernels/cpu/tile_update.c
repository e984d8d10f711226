/* Updates of a tile: contributions, sorted by row, are merged row by row straight into the
 * optimizer. Formulas and their sources: mn_kernels.h §3. */
#include "tile.h"

#include "step.h"

#include <assert.h>

enum {
    AHEAD = 16, /* contributions whose sources are prefetched */
    BATCH = 8,  /* rows merged together; those of the next batch are prefetched meanwhile */
    PIECE =
        128, /* columns merged and applied at a time: a batch of them stays in the first cache */
    INTO_L2 = 2,  /* prefetch: it waits for more lines at once than the first cache */
    IN_FLIGHT = 8 /* vectors summed in registers */
};

/* First contribution after `begin` that belongs to another row. */
INLINE uint64_t run_end(const mn_contribution *contributions, uint64_t begin, uint64_t n)
{
    uint64_t end = begin + 1;
    while (end < n && contributions[end].offset == contributions[begin].offset)
        end++;
    return end;
}

INLINE const char *source_row(const mn_sources *sources, const mn_contribution *contribution,
                              enum mn_dtype dtype)
{
    return (const char *)sources->rows[contribution->source] +
           (size_t)sources->column * element_bytes(dtype);
}

INLINE void merge_run_of(const mn_contribution *contributions, uint64_t begin, uint64_t end,
                         uint64_t n, const mn_sources *sources, uint32_t columns,
                         enum mn_dtype dtype, float *merged)
{
    memset(merged, 0, sizeof *merged * columns);
    for (uint64_t i = begin; i < end; i += 4) {
        const void *rows[4];
        float weights[4];
        uint32_t four = end - i < 4 ? (uint32_t)(end - i) : 4;
        for (uint32_t j = 0; j < four; j++) {
            uint64_t next = i + j + AHEAD < n ? i + j + AHEAD : n - 1;
            const char *ahead = source_row(sources, contributions + next, dtype);
            for (uint32_t b = 0; b < columns * element_bytes(dtype); b += LINE)
                __builtin_prefetch(ahead + b, 0, 3);
            rows[j] = source_row(sources, contributions + i + j, dtype);
            weights[j] = contributions[i + j].weight;
        }
        accumulate_rows(merged, rows, weights, four, columns, dtype);
    }
}

/* merged[c] = the left fold of the contributions begin .. end - 1, one row's, of n. */
static void merge_run(const mn_contribution *contributions, uint64_t begin, uint64_t end,
                      uint64_t n, const mn_sources *sources, uint32_t columns, float *merged)
{
    if (sources->dtype == MN_F32)
        merge_run_of(contributions, begin, end, n, sources, columns, MN_F32, merged);
    else
        merge_run_of(contributions, begin, end, n, sources, columns, MN_BF16, merged);
}

INLINE void prefetch_bytes(const char *from, uint64_t bytes)
{
    for (uint64_t b = 0; b < bytes; b += LINE)
        __builtin_prefetch(from + b, 0, INTO_L2);
}

/* The next rows that have contributions: whole runs. */
typedef struct batch {
    uint64_t begin, end;
    uint32_t rows;
    uint64_t offsets[BATCH];
} batch;

INLINE batch batch_of(const mn_contribution *contributions, uint64_t begin, uint64_t n)
{
    batch b = {.begin = begin};
    uint64_t i = begin;
    for (; i < n && b.rows < BATCH; i++) {
        b.offsets[b.rows] = contributions[i].offset;
        b.rows += i + 1 == n || contributions[i + 1].offset != contributions[i].offset;
    }
    b.end = i;
    return b;
}

/* merged[r][c .. c + vectors * LANES) of each row r of the batch, from column `first` on. Without
 * a branch on the lengths of runs, which cannot be guessed: the sums are stored after every
 * contribution, and emptied where a run begins. Sources to come are prefetched. */
INLINE void merge_vectors(const mn_contribution *contributions, const batch *b, uint64_t n,
                          const mn_sources *sources, enum mn_dtype dtype, uint32_t first,
                          uint32_t c, uint32_t vectors, float merged[BATCH][PIECE])
{
    typedef int32_t vi __attribute__((vector_size(4 * LANES)));
    vf sums[IN_FLIGHT] = {{0}};
    uint32_t r = 0;
    uint64_t last = contributions[b->begin].offset;
    for (uint64_t i = b->begin; i < b->end; i++) {
        const mn_contribution *now = contributions + i, *next = now + (i + AHEAD < n ? AHEAD : 0);
        prefetch_bytes(source_row(sources, next, dtype) +
                           (size_t)(first + c) * element_bytes(dtype),
                       vectors * LANES * element_bytes(dtype));
        const bool begins = now->offset != last;
        const vi keep = (vi){0} + ((int32_t)begins - 1);
        const char *row = source_row(sources, now, dtype);
        r += begins;
        last = now->offset;
        for (uint32_t v = 0; v < vectors; v++) {
            sums[v] = (vf)((vi)sums[v] & keep) +
                      now->weight * load_vector(row, first + c + v * LANES, dtype);
            memcpy(merged[r] + c + v * LANES, &sums[v], sizeof sums[v]);
        }
    }
}

/* merged[r] = the left folds of columns [first, first + count) of the batch's rows. */
INLINE void merge_batch(const mn_contribution *contributions, const batch *b, uint64_t n,
                        const mn_sources *sources, enum mn_dtype dtype, uint32_t first,
                        uint32_t count, float merged[BATCH][PIECE])
{
    uint32_t c = 0;
    for (; c + IN_FLIGHT * LANES <= count; c += IN_FLIGHT * LANES)
        merge_vectors(contributions, b, n, sources, dtype, first, c, IN_FLIGHT, merged);
    for (; c + IN_FLIGHT / 2 * LANES <= count; c += IN_FLIGHT / 2 * LANES)
        merge_vectors(contributions, b, n, sources, dtype, first, c, IN_FLIGHT / 2, merged);
    for (; c + LANES <= count; c += LANES)
        merge_vectors(contributions, b, n, sources, dtype, first, c, 1, merged);
    for (; c < count; c++) {
        uint32_t r = 0;
        merged[0][c] = 0;
        for (uint64_t i = b->begin; i < b->end; i++) {
            if (contributions[i].offset != b->offsets[r])
                merged[++r][c] = 0;
            const char *row = source_row(sources, contributions + i, dtype);
            merged[r][c] = merged[r][c] + contributions[i].weight * element(row, first + c, dtype);
        }
    }
}

/* Adds the squares of `count` columns to a row's sixteen f64 lanes: column c to lane c mod 16. */
INLINE void add_squares(const float *merged, uint32_t count, double lane[SIXTEEN])
{
    enum { WIDE = LANES / 2, VECTORS = SIXTEEN / WIDE };
    vd sums[VECTORS];
    uint32_t c = 0;
    memcpy(sums, lane, sizeof sums);
    for (; c + SIXTEEN <= count; c += SIXTEEN)
        for (uint32_t v = 0; v < VECTORS; v++) {
            vhalf narrow;
            memcpy(&narrow, merged + c + v * WIDE, sizeof narrow);
            sums[v] = lanes_add_square(sums[v], __builtin_convertvector(narrow, vd));
        }
    memcpy(lane, sums, sizeof sums);
    for (; c < count; c++)
        lane[c % SIXTEEN] += (double)merged[c] * (double)merged[c];
}

INLINE double squares_tree(double lane[SIXTEEN])
{
    for (uint32_t w = 8; w; w /= 2)
        for (uint32_t i = 0; i < w; i++)
            lane[i] += lane[i + w];
    return lane[0];
}

INLINE double square_batches(uint32_t columns, const mn_contribution *contributions, uint64_t n,
                             const mn_sources *sources, enum mn_dtype dtype)
{
    _Alignas(LINE) float merged[BATCH][PIECE];
    double total = 0;
    for (uint64_t begin = 0; begin < n;) {
        const batch now = batch_of(contributions, begin, n);
        double lanes[BATCH][SIXTEEN] = {{0}};
        for (uint32_t c = 0; c < columns; c += PIECE) {
            const uint32_t count = least(PIECE, columns - c);
            merge_batch(contributions, &now, n, sources, dtype, c, count, merged);
            for (uint32_t r = 0; r < now.rows; r++)
                add_squares(merged[r], count, lanes[r]);
        }
        for (uint32_t r = 0; r < now.rows; r++)
            total += squares_tree(lanes[r]);
        begin = now.end;
    }
    return total;
}

double ISA(merge_square)(const mn_tile *tile, const mn_contribution *contributions, uint64_t n,
                         const mn_sources *sources, void *scratch)
{
    (void)scratch; /* sums are held in pieces */
    if (sources->dtype == MN_F32)
        return square_batches(tile->columns, contributions, n, sources, MN_F32);
    return square_batches(tile->columns, contributions, n, sources, MN_BF16);
}

/* A row under update: its values and state, and what the noise of its roundings depends on. */
typedef struct row_update {
    mn_tile *tile;
    const mn_update *update;
    uint64_t row;
    uint32_t count;       /* updates of the row, this one included */
    char *values, *state; /* of the row */
    float *merged;        /* all of its gradient: for row-wise Adagrad alone */
} row_update;

/* f32 columns of a stored array: the memory itself, or a widened copy of bf16. */
INLINE float *open_columns(char *from, uint32_t column, uint32_t count, enum mn_dtype dtype,
                           float *buffer)
{
    from += (size_t)column * element_bytes(dtype);
    if (dtype == MN_F32)
        return (float *)from;
    convert_row(from, MN_BF16, count, MN_F32, buffer);
    return buffer;
}

/* Puts a widened copy back, rounded stochastically. */
INLINE void close_columns(const row_update *u, char *to, uint32_t column, uint32_t count,
                          enum mn_dtype dtype, enum mn_purpose purpose, const float *buffer)
{
    if (dtype == MN_F32)
        return;
    uint16_t noise[CHUNK], *out = (uint16_t *)to + column;
    ISA(noise)
    (u->tile->seed, purpose, u->row, u->count, u->tile->first_column + column, count, noise);
    for (uint32_t c = 0; c < count; c++)
        out[c] = bf16_stochastic(buffer[c], noise[c]);
}

static void sgd_columns(const mn_update *update, uint32_t count, const float *restrict merged,
                        float *restrict row)
{
    const mn_update u = *update; /* the compiler cannot see that no row lies in it */
    for (uint32_t c = 0; c < count; c++)
        step_sgd(&u, merged[c], &row[c]);
}

static void adagrad_columns(const mn_update *update, float eps, uint32_t count,
                            const float *restrict merged, float *restrict row, float *restrict sum)
{
    const mn_update u = *update; /* as in sgd_columns */
    for (uint32_t c = 0; c < count; c++)
        step_adagrad(&u, eps, merged[c], &row[c], &sum[c]);
}

/* Where the columns worked on lie in a row to come: its value and both moments. */
typedef struct adam_ahead {
    const char *row, *m, *v;
    uint32_t row_width, state_width; /* bytes of an element */
} adam_ahead;

INLINE void adam_line(const adam_step s, uint32_t count, const float *restrict merged,
                      float *restrict row, float *restrict m, float *restrict v)
{
    for (uint32_t c = 0; c < count; c++)
        step_adam(&s, merged[c], &row[c], &m[c], &v[c]);
}

/* Asks for the row to come line by line, beside the divisions: at once, it would hold them up. */
static void adam_columns(const adam_step *step, const adam_ahead *ahead, uint32_t count,
                         const float *merged, float *row, float *m, float *v)
{
    enum { COLUMNS = LINE / sizeof(float) };
    uint32_t c = 0;
    for (; c < count; c += COLUMNS) {
        __builtin_prefetch(ahead->row + (size_t)c * ahead->row_width, 0, INTO_L2);
        __builtin_prefetch(ahead->m + (size_t)c * ahead->state_width, 0, INTO_L2);
        __builtin_prefetch(ahead->v + (size_t)c * ahead->state_width, 0, INTO_L2);
        if (count - c < COLUMNS)
            break;
        adam_line(*step, COLUMNS, merged + c, row + c, m + c, v + c);
    }
    if (c < count)
        adam_line(*step, count - c, merged + c, row + c, m + c, v + c);
}

/* Row-wise Adagrad: g replaces `merged`, and one sum serves the row. */
static void apply_rowwise(const row_update *u, enum mn_dtype dtype)
{
    const uint32_t columns = u->tile->columns;
    const float eps = u->tile->optimizer.eps;
    const mn_update update = *u->update; /* as in sgd_columns */
    _Alignas(LINE) float buffer[CHUNK], lanes[4][SIXTEEN] = {{0}};
    for (uint32_t c = 0; c < columns; c += CHUNK) {
        uint32_t count = least(CHUNK, columns - c);
        const float *row = open_columns(u->values, c, count, dtype, buffer);
        float *g = u->merged + c;
        for (uint32_t i = 0; i < count; i++)
            g[i] = decayed_gradient(&update, g[i], row[i]);
        dot_rows(g, (const void *[]){g}, 1, count, MN_F32, lanes);
    }
    float sum = *(float *)u->state + lanes_tree(lanes[0]) / (float)columns;
    *(float *)u->state = sum;
    float denominator = __builtin_sqrtf(sum) + eps;
    for (uint32_t c = 0; c < columns; c += CHUNK) {
        uint32_t count = least(CHUNK, columns - c);
        float *row = open_columns(u->values, c, count, dtype, buffer);
        for (uint32_t i = 0; i < count; i++)
            row[i] = row[i] - update.learning_rate * u->merged[c + i] / denominator;
        close_columns(u, u->values, c, count, dtype, MN_PURPOSE_ROUND_VALUE, row);
    }
}

/* The other optimizers, on columns [c, c + count) of a row; merged [count]. */
static void apply_columns(const row_update *u, const adam_step *adam, const adam_ahead *ahead,
                          uint32_t c, uint32_t count, const float *merged)
{
    const mn_optimizer *optimizer = &u->tile->optimizer;
    const enum mn_dtype dtype = u->tile->dtype, state_dtype = optimizer->state_dtype;
    _Alignas(LINE) float row_buffer[PIECE], first_buffer[PIECE], second_buffer[PIECE];
    char *second_state = u->state + (size_t)u->tile->columns * element_bytes(state_dtype);
    float *row = open_columns(u->values, c, count, dtype, row_buffer);
    if (adam) {
        float *m = open_columns(u->state, c, count, state_dtype, first_buffer);
        float *v = open_columns(second_state, c, count, state_dtype, second_buffer);
        adam_columns(adam, ahead, count, merged, row, m, v);
        close_columns(u, u->state, c, count, state_dtype, MN_PURPOSE_ROUND_STATE, m);
        close_columns(u, second_state, c, count, state_dtype, MN_PURPOSE_ROUND_STATE2, v);
    } else if (optimizer->kind == MN_OPTIMIZER_ADAGRAD) {
        float *sum = open_columns(u->state, c, count, state_dtype, first_buffer);
        adagrad_columns(u->update, optimizer->eps, count, merged, row, sum);
        close_columns(u, u->state, c, count, state_dtype, MN_PURPOSE_ROUND_STATE, sum);
    } else {
        sgd_columns(u->update, count, merged, row);
    }
    close_columns(u, u->values, c, count, dtype, MN_PURPOSE_ROUND_VALUE, row);
}

/* Gives a row never written its initial value and state. Returns whether it was such. */
INLINE bool row_begin(mn_tile *tile, uint64_t offset, char *values, char *state)
{
    if (row_written(tile, offset))
        return false;
    ISA(init_row)
    (&tile->init, tile->seed, table_row(tile, offset), tile->first_column, tile->columns,
     tile->dtype, values);
    if (state)
        mn_state_init(&tile->optimizer, tile->columns, state);
    return true;
}

INLINE void row_count(mn_tile *tile, uint64_t offset)
{
    if (tile->updates[offset] != UINT32_MAX)
        tile->updates[offset]++;
}

/* Columns [c, c + count) of the row and of each array of its state. */
INLINE void prefetch_update(const mn_tile *tile, uint64_t offset, uint64_t state_bytes, uint32_t c,
                            uint32_t count)
{
    const uint32_t width = element_bytes(tile->dtype);
    const uint32_t state_width = element_bytes(tile->optimizer.state_dtype);
    const uint64_t array_bytes = (uint64_t)tile->columns * state_width;
    const char *state = (const char *)tile->state + offset * state_bytes;
    __builtin_prefetch(tile->updates + offset, 1, 3);
    prefetch_bytes((const char *)row_values(tile, offset) + (size_t)c * width, count * width);
    for (uint64_t b = 0; b < state_bytes; b += array_bytes)
        prefetch_bytes(state + b + (size_t)c * state_width,
                       state_bytes < array_bytes ? 1 : count * state_width);
}

/* One step of a tile: what is the same for all its rows, and Adam's constants of the last one. */
typedef struct tile_step {
    mn_tile *tile;
    const mn_update *update;
    uint64_t state_bytes;
    bool is_adam;
    adam_step adam;
    uint64_t first_written;
} tile_step;

/* The row, begun and counted when this is its first piece. */
INLINE row_update row_open(tile_step *step, uint64_t offset, bool begins)
{
    mn_tile *tile = step->tile;
    row_update u = {.tile = tile, .update = step->update, .row = table_row(tile, offset)};
    assert(offset < tile->rows);
    u.values = row_values(tile, offset);
    u.state = step->state_bytes ? (char *)tile->state + offset * step->state_bytes : NULL;
    if (begins) {
        step->first_written += row_begin(tile, offset, u.values, u.state);
        row_count(tile, offset);
    }
    u.count = tile->updates[offset];
    uint64_t t = tile->optimizer.row_correction ? u.count : step->update->step;
    if (step->is_adam && step->adam.t != t)
        step->adam = adam_step_of(&tile->optimizer, step->update, t);
    return u;
}

INLINE adam_ahead adam_ahead_of(const tile_step *step, uint64_t offset, uint32_t c)
{
    const mn_tile *tile = step->tile;
    adam_ahead ahead = {.row_width = element_bytes(tile->dtype),
                        .state_width = element_bytes(tile->optimizer.state_dtype)};
    ahead.row = (const char *)row_values(tile, offset) + (size_t)c * ahead.row_width;
    ahead.m = (const char *)tile->state + offset * step->state_bytes + c * ahead.state_width;
    ahead.v = ahead.m + (size_t)tile->columns * ahead.state_width;
    __builtin_prefetch(tile->updates + offset, 1, 3);
    return ahead;
}

INLINE void apply_batches(tile_step *step, const mn_contribution *contributions, uint64_t n,
                          const mn_sources *sources, enum mn_dtype dtype)
{
    const uint32_t columns = step->tile->columns;
    _Alignas(LINE) float merged[BATCH][PIECE];
    batch next = batch_of(contributions, 0, n);
    while (next.rows) {
        const batch now = next;
        next = batch_of(contributions, now.end, n);
        for (uint32_t c = 0; c < columns; c += PIECE) {
            const uint32_t count = least(PIECE, columns - c);
            merge_batch(contributions, &now, n, sources, dtype, c, count, merged);
            for (uint32_t r = 0; r < now.rows; r++) {
                const uint64_t to_come = r < next.rows ? next.offsets[r] : now.offsets[r];
                row_update u = row_open(step, now.offsets[r], c == 0);
                if (step->is_adam) {
                    const adam_ahead ahead = adam_ahead_of(step, to_come, c);
                    apply_columns(&u, &step->adam, &ahead, c, count, merged[r]);
                } else {
                    prefetch_update(step->tile, to_come, step->state_bytes, c, count);
                    apply_columns(&u, NULL, NULL, c, count, merged[r]);
                }
            }
        }
    }
}

/* Row-wise Adagrad needs a row's whole gradient before its first column moves. */
static void apply_rows(tile_step *step, const mn_contribution *contributions, uint64_t n,
                       const mn_sources *sources, float *scratch)
{
    for (uint64_t begin = 0, end; begin < n; begin = end) {
        end = run_end(contributions, begin, n);
        for (uint64_t i = begin + AHEAD; i < end + AHEAD && i < n; i++)
            if (contributions[i].offset != contributions[i - 1].offset)
                prefetch_update(step->tile, contributions[i].offset, step->state_bytes, 0,
                                step->tile->columns);
        row_update u = row_open(step, contributions[begin].offset, true);
        u.merged = scratch;
        merge_run(contributions, begin, end, n, sources, step->tile->columns, u.merged);
        apply_rowwise(&u, step->tile->dtype);
    }
}

uint64_t ISA(merge_apply)(mn_tile *tile, const mn_contribution *contributions, uint64_t n,
                          const mn_sources *sources, const mn_update *update, void *scratch)
{
    const mn_optimizer *optimizer = &tile->optimizer;
    tile_step step = {.tile = tile, .update = update};
    assert(optimizer->kind != MN_OPTIMIZER_NONE);
    step.state_bytes = mn_state_row_bytes(optimizer, tile->columns);
    step.is_adam = optimizer->kind == MN_OPTIMIZER_ADAM || optimizer->kind == MN_OPTIMIZER_ADAMW;
    if (optimizer->kind == MN_OPTIMIZER_ROWWISE_ADAGRAD)
        apply_rows(&step, contributions, n, sources, scratch);
    else if (sources->dtype == MN_F32)
        apply_batches(&step, contributions, n, sources, MN_F32);
    else
        apply_batches(&step, contributions, n, sources, MN_BF16);
    return step.first_written;
}

uint64_t ISA(store)(mn_tile *tile, const uint64_t *offsets, uint64_t n, enum mn_dtype dtype,
                    const void *rows, uint64_t stride_bytes, const void *state,
                    uint64_t state_stride_bytes)
{
    const uint64_t state_bytes = mn_state_row_bytes(&tile->optimizer, tile->columns);
    uint64_t first_written = 0;
    for (uint64_t i = 0; i < n; i++) {
        const uint64_t offset = offsets[i];
        if (offset == MN_NO_ROW)
            continue;
        assert(offset < tile->rows);
        first_written += !row_written(tile, offset);
        row_count(tile, offset);
        convert_row((const char *)rows + i * stride_bytes, dtype, tile->columns, tile->dtype,
                    row_values(tile, offset));
        if (!state_bytes)
            continue; /* there is no array of states */
        char *to = (char *)tile->state + offset * state_bytes;
        if (state)
            memcpy(to, (const char *)state + i * state_stride_bytes, state_bytes);
        else
            mn_state_init(&tile->optimizer, tile->columns, to);
    }
    return first_written;
}
