#include "fixture.h"

uint64_t fixture_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * UINT64_C(2685821657736338717);
}

float fixture_uniform(uint64_t *state)
{
    return (float)((int32_t)(fixture_random(state) >> 32) >> 8) * 0x1p-23f;
}

float fixture_integer(uint64_t *state) { return (float)(int)(fixture_random(state) % 17) - 8; }

static void store_element(void *array, uint64_t index, enum mn_dtype dtype, float value)
{
    if (dtype == MN_F32)
        ((float *)array)[index] = value;
    else
        ((uint16_t *)array)[index] = oracle_bf16_nearest(value);
}

static size_t value_bytes(const mn_tile *tile)
{
    return tile->rows * tile->columns * mn_dtype_bytes(tile->dtype);
}

static size_t state_bytes(const mn_tile *tile)
{
    return tile->rows * mn_state_row_bytes(&tile->optimizer, tile->columns);
}

static void allocate(mn_tile *tile)
{
    tile->values = calloc(1, value_bytes(tile));
    tile->state = state_bytes(tile) ? calloc(1, state_bytes(tile)) : NULL;
    tile->updates = calloc(tile->rows, sizeof *tile->updates);
    assert_true(tile->values && tile->updates);
}

static enum mn_dtype state_dtype(const mn_tile *tile)
{
    return tile->optimizer.kind == MN_OPTIMIZER_ROWWISE_ADAGRAD ? MN_F32
                                                                : tile->optimizer.state_dtype;
}

mn_optimizer fixture_optimizer(int i)
{
    mn_optimizer all[FIXTURE_OPTIMIZERS] = {mn_sgd(),
                                            mn_adagrad(1e-6f),
                                            mn_rowwise_adagrad(1e-6f),
                                            mn_adam(0.9f, 0.99f, 1e-6f),
                                            mn_adamw(0.9f, 0.95f, 1e-6f),
                                            mn_adamw(0.9f, 0.95f, 1e-6f)};
    all[1].beta1 = all[2].beta1 = 0.123f; /* the accumulator's initial value, not exact in bf16 */
    all[5].row_correction = true;
    return all[i];
}

mn_tile fixture_tile(const fixture_options *o)
{
    mn_tile tile = {.rows = o->rows,
                    .columns = o->columns,
                    .first_column = o->first_column,
                    .dtype = o->dtype,
                    .optimizer = o->optimizer,
                    .init = o->init,
                    .seed = UINT64_C(0x0123456789abcdef),
                    .table_rows = o->rows,
                    .row_inverse = 1};
    uint64_t random = 7 + o->columns;
    allocate(&tile);
    uint32_t elements = mn_state_elements(&o->optimizer, o->columns);
    for (uint64_t r = 0; r < o->rows; r++) {
        if (r % 3 == 2 && !o->all_written)
            continue;
        tile.updates[r] = 1 + (uint32_t)(r % 5);
        tile.rows_written++;
        for (uint32_t c = 0; c < o->columns; c++)
            store_element(tile.values, r * o->columns + c, o->dtype,
                          o->integers ? fixture_integer(&random) : fixture_uniform(&random));
        for (uint32_t s = 0; s < elements; s++)
            store_element(tile.state, r * elements + s, state_dtype(&tile),
                          fabsf(fixture_uniform(&random)) * 0.25f);
    }
    return tile;
}

mn_tile fixture_copy(const mn_tile *tile)
{
    mn_tile copy = *tile;
    allocate(&copy);
    memcpy(copy.values, tile->values, value_bytes(tile));
    if (copy.state)
        memcpy(copy.state, tile->state, state_bytes(tile));
    memcpy(copy.updates, tile->updates, tile->rows * sizeof *tile->updates);
    return copy;
}

mn_tile fixture_cut(const mn_tile *tile, uint32_t first, uint32_t columns)
{
    mn_tile cut = *tile;
    cut.columns = columns;
    cut.first_column = tile->first_column + first;
    allocate(&cut);
    memcpy(cut.updates, tile->updates, tile->rows * sizeof *tile->updates);
    size_t bytes = mn_dtype_bytes(tile->dtype), state = mn_dtype_bytes(state_dtype(tile));
    uint32_t arrays = mn_state_elements(&tile->optimizer, columns) / columns;
    for (uint64_t r = 0; r < tile->rows; r++) {
        memcpy((char *)cut.values + r * columns * bytes,
               (char *)tile->values + (r * tile->columns + first) * bytes, columns * bytes);
        for (uint32_t a = 0; a < arrays; a++)
            memcpy((char *)cut.state + (r * arrays + a) * columns * state,
                   (char *)tile->state + ((r * arrays + a) * tile->columns + first) * state,
                   columns * state);
    }
    return cut;
}

void fixture_free(mn_tile *tile)
{
    free(tile->values);
    free(tile->state);
    free(tile->updates);
}

bool fixture_equal(const mn_tile *a, const mn_tile *b)
{
    return memcmp(a->values, b->values, value_bytes(a)) == 0 &&
           (a->state == NULL || memcmp(a->state, b->state, state_bytes(a)) == 0) &&
           memcmp(a->updates, b->updates, a->rows * sizeof *a->updates) == 0;
}

enum { GUARD = 64 };

buffer buffer_of(size_t bytes, size_t misalign)
{
    buffer b = {.bytes = bytes};
    b.memory = aligned_alloc(64, (bytes + misalign + 2 * GUARD + 63) / 64 * 64);
    assert_non_null(b.memory);
    memset(b.memory, 0x5a, bytes + misalign + 2 * GUARD);
    b.data = b.memory + GUARD + misalign;
    return b;
}

bool buffer_intact(const buffer *b)
{
    for (size_t i = 1; i <= GUARD; i++)
        if (b->data[-(ptrdiff_t)i] != 0x5a || b->data[b->bytes + i - 1] != 0x5a)
            return false;
    return true;
}

void buffer_free(buffer *b) { free(b->memory); }

float oracle_bf16_widen(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* The nearer of the two neighbours; of equally near ones, that with an even mantissa. */
uint16_t oracle_bf16_nearest(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t down = (uint16_t)(bits >> 16);
    if (isnan(value))
        return down | 0x40;
    uint32_t rest = bits & 0xffff;
    return (uint16_t)(down + (rest > 0x8000 || (rest == 0x8000 && (down & 1))));
}

float oracle_load(const void *array, uint64_t index, enum mn_dtype dtype)
{
    float value;
    uint16_t narrow;
    if (dtype == MN_F32) {
        memcpy(&value, (const char *)array + 4 * index, sizeof value);
        return value;
    }
    memcpy(&narrow, (const char *)array + 2 * index, sizeof narrow);
    return oracle_bf16_widen(narrow);
}

double oracle_init(const mn_init *init, uint64_t seed, uint64_t row, uint32_t column)
{
    if (init->kind == MN_INIT_ZERO)
        return 0;
    if (init->kind == MN_INIT_CONSTANT)
        return init->a;
    uint32_t counter[4] = {(uint32_t)row, (uint32_t)(row >> 32), column / 4, 0}, words[4];
    uint32_t key[2] = {(uint32_t)seed ^ MN_PURPOSE_INIT, (uint32_t)(seed >> 32)};
    mn_philox(counter, key, words);
    if (init->kind == MN_INIT_UNIFORM)
        return init->a + ((double)init->b - init->a) * (words[column % 4] >> 8) / 0x1p24;
    const uint32_t *pair = words + column % 4 / 2 * 2;
    double radius = sqrt(-2 * log(((pair[0] >> 8) + 1) / 0x1p24));
    double angle = 2 * acos(-1) * (pair[1] / 0x1p32);
    return init->a * radius * (column % 2 ? sin(angle) : cos(angle));
}

uint64_t oracle_table_row(const mn_tile *tile, uint64_t offset)
{
    unsigned __int128 place = tile->row_base + offset;
    return (uint64_t)(place * tile->row_inverse % tile->table_rows);
}

double oracle_value(const mn_tile *tile, uint64_t offset, uint32_t c)
{
    if (tile->updates[offset])
        return oracle_load(tile->values, offset * tile->columns + c, tile->dtype);
    double value = oracle_init(&tile->init, tile->seed, oracle_table_row(tile, offset),
                               tile->first_column + c);
    return tile->dtype == MN_F32 ? value : oracle_bf16_widen(oracle_bf16_nearest((float)value));
}

bool oracle_close(double got, double expected, double tolerance)
{
    return fabs(got - expected) <= tolerance;
}

static void oracle_adam(const mn_optimizer *o, const mn_update *u, uint64_t t, uint32_t columns,
                        const double *merged, double *row, double *m, double *v)
{
    double b1 = o->beta1, b2 = o->beta2, lr = u->learning_rate, wd = u->weight_decay;
    for (uint32_t c = 0; c < columns; c++) {
        double g = u->factor * merged[c];
        if (o->kind == MN_OPTIMIZER_ADAMW)
            row[c] *= 1 - lr * wd;
        else
            g += wd * row[c];
        m[c] = b1 * m[c] + (1 - b1) * g;
        v[c] = b2 * v[c] + (1 - b2) * g * g;
        double root = sqrt(1 - pow(b2, (double)t)), rest = 1 - pow(b1, (double)t);
        if (o->kind == MN_OPTIMIZER_ADAMW)
            row[c] -= lr / rest * m[c] / (sqrt(v[c]) / root + o->eps);
        else
            row[c] -= lr * root / rest * m[c] / (sqrt(v[c]) + o->eps);
    }
}

void oracle_step(const mn_optimizer *o, const mn_update *u, uint64_t t, uint32_t columns,
                 const double *merged, double *row, double *state, double *state2)
{
    double mean = 0;
    if (o->kind == MN_OPTIMIZER_ADAM || o->kind == MN_OPTIMIZER_ADAMW) {
        oracle_adam(o, u, t, columns, merged, row, state, state2);
        return;
    }
    for (uint32_t c = 0; c < columns; c++) {
        double g = u->factor * merged[c] + u->weight_decay * row[c];
        mean += g * g / columns;
    }
    if (o->kind == MN_OPTIMIZER_ROWWISE_ADAGRAD)
        state[0] += mean;
    for (uint32_t c = 0; c < columns; c++) {
        double g = u->factor * merged[c] + u->weight_decay * row[c];
        if (o->kind == MN_OPTIMIZER_ADAGRAD)
            state[c] += g * g;
        double sum = o->kind == MN_OPTIMIZER_ADAGRAD ? state[c] : state ? state[0] : 0;
        row[c] -= o->kind == MN_OPTIMIZER_SGD ? u->learning_rate * g
                                              : u->learning_rate * g / (sqrt(sum) + o->eps);
    }
}
