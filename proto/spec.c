/* Table specs: checking, defaults, comparison. */
#include "placement.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

bool mn_name_valid(const char *name)
{
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t length = strnlen(name, MN_NAME_BYTES);
    return length > 0 && length < MN_NAME_BYTES && strspn(name, letters) == length;
}

static enum mn_status check_init(const mn_init *init, mn_init *out_init, mn_error *error)
{
    *out_init = (mn_init){.kind = init->kind};
    switch (init->kind) {
    case MN_INIT_ZERO:
        return MN_OK;
    case MN_INIT_CONSTANT:
        out_init->a = init->a;
        return isfinite(init->a) ? MN_OK
                                 : mn_fail(error, MN_INVALID, "init.a",
                                           "a constant must be finite, not %g", (double)init->a);
    case MN_INIT_NORMAL:
        out_init->a = init->a;
        return isfinite(init->a) && init->a >= 0
                   ? MN_OK
                   : mn_fail(error, MN_INVALID, "init.a",
                             "a standard deviation must be finite and not negative, not %g",
                             (double)init->a);
    case MN_INIT_UNIFORM:
        *out_init = *init;
        return isfinite(init->a) && isfinite(init->b - init->a) && init->a <= init->b
                   ? MN_OK
                   : mn_fail(error, MN_INVALID, "init.b", "no uniform range from %g to %g",
                             (double)init->a, (double)init->b);
    }
    return mn_fail(error, MN_INVALID, "init.kind", "unknown value %u", (unsigned)init->kind);
}

static enum mn_status check_adam(const mn_optimizer *optimizer, mn_error *error)
{
    if (!(optimizer->beta1 >= 0 && optimizer->beta1 < 1))
        return mn_fail(error, MN_INVALID, "optimizer.beta1", "must be in [0, 1), not %g",
                       (double)optimizer->beta1);
    if (!(optimizer->beta2 >= 0 && optimizer->beta2 < 1))
        return mn_fail(error, MN_INVALID, "optimizer.beta2", "must be in [0, 1), not %g",
                       (double)optimizer->beta2);
    return MN_OK;
}

static enum mn_status check_adagrad(const mn_optimizer *optimizer, mn_optimizer *out_optimizer,
                                    mn_error *error)
{
    out_optimizer->beta1 = optimizer->beta1;
    if (optimizer->beta1 >= 0 && isfinite(optimizer->beta1))
        return MN_OK;
    return mn_fail(error, MN_INVALID, "optimizer.beta1",
                   "an accumulator must begin at 0 or above, not at %g", (double)optimizer->beta1);
}

/* Constants that the kind does not use become zero, so that they cannot make two specs differ. */
static enum mn_status check_optimizer(const mn_table_spec *spec, mn_optimizer *out_optimizer,
                                      mn_error *error)
{
    const mn_optimizer *optimizer = &spec->optimizer;
    mn_optimizer out = {.kind = optimizer->kind, .eps = optimizer->eps};
    enum mn_status status = MN_OK;
    if (optimizer->state_dtype != MN_F32 && optimizer->state_dtype != MN_BF16)
        return mn_fail(error, MN_INVALID, "optimizer.state_dtype", "must be f32 or bf16, not %s",
                       mn_dtype_name(optimizer->state_dtype));
    switch (optimizer->kind) {
    case MN_OPTIMIZER_NONE:
    case MN_OPTIMIZER_SGD:
        out.eps = 0;
        *out_optimizer = out;
        return MN_OK;
    case MN_OPTIMIZER_ROWWISE_ADAGRAD: /* its state, one number a row, is always f32 */
        if (spec->split != MN_ROWS)
            return mn_fail(error, MN_INVALID, "optimizer.kind",
                           "row-wise Adagrad needs whole rows: split the table by rows");
        out.state_dtype = MN_F32;
        status = check_adagrad(optimizer, &out, error);
        break;
    case MN_OPTIMIZER_ADAGRAD:
        out.state_dtype = optimizer->state_dtype;
        status = check_adagrad(optimizer, &out, error);
        break;
    case MN_OPTIMIZER_ADAM:
    case MN_OPTIMIZER_ADAMW:
        out = *optimizer;
        status = check_adam(optimizer, error);
        break;
    default:
        return mn_fail(error, MN_INVALID, "optimizer.kind", "unknown value %u",
                       (unsigned)optimizer->kind);
    }
    if (!status && !(optimizer->eps > 0 && isfinite(optimizer->eps)))
        status = mn_fail(error, MN_INVALID, "optimizer.eps",
                         "must be positive, not %g: a zero gradient would divide 0 by 0",
                         (double)optimizer->eps);
    if (!status)
        *out_optimizer = out;
    return status;
}

static enum mn_status check_tiles(const mn_table_spec *spec, mn_error *error)
{
    if (spec->split == MN_ROWS) {
        if (spec->tiles <= MN_ROW_BLOCKS_MAX && spec->tiles <= spec->rows &&
            !(spec->tiles & (spec->tiles - 1)))
            return MN_OK;
        return mn_fail(error, MN_INVALID, "tiles",
                       "%u blocks; a power of two is due, at most %u and at most the rows",
                       spec->tiles, (unsigned)MN_ROW_BLOCKS_MAX);
    }
    if (spec->tiles > MN_TILES_MAX)
        return mn_fail(error, MN_INVALID, "tiles", "%u tiles; at most %u are allowed", spec->tiles,
                       (unsigned)MN_TILES_MAX);
    uint32_t columns = mn_tile_columns_of(spec);
    uint32_t tiles = (spec->dim + columns - 1) / columns;
    if (tiles == spec->tiles)
        return MN_OK;
    return mn_fail(error, MN_INVALID, "tiles",
                   "%u columns do not make %u tiles of a multiple of 16 columns; %u would do",
                   spec->dim, spec->tiles, tiles);
}

enum mn_status mn_spec_check(const mn_table_spec *spec, mn_table_spec *out_spec, mn_error *error)
{
    if (!mn_name_valid(spec->name))
        return mn_fail(error, MN_INVALID, "name",
                       "\"%.63s\" is not 1 to 63 of the characters A-Z a-z 0-9 . _ -", spec->name);
    if (!spec->rows || spec->rows > MN_ROWS_MAX)
        return mn_fail(error, MN_INVALID, "rows", "%llu rows; 1 to 2^40 are allowed",
                       (unsigned long long)spec->rows);
    if (!spec->dim || spec->dim > MN_DIM_MAX)
        return mn_fail(error, MN_INVALID, "dim", "%u columns; 1 to %u are allowed", spec->dim,
                       (unsigned)MN_DIM_MAX);
    if (spec->dtype != MN_F32 && spec->dtype != MN_BF16)
        return mn_fail(error, MN_INVALID, "dtype", "must be f32 or bf16, not %s",
                       mn_dtype_name(spec->dtype));
    if (spec->split != MN_COLUMNS && spec->split != MN_ROWS)
        return mn_fail(error, MN_INVALID, "split", "unknown value %u", (unsigned)spec->split);
    mn_table_spec out = {.rows = spec->rows,
                         .dim = spec->dim,
                         .dtype = spec->dtype,
                         .split = spec->split,
                         .tiles = spec->tiles,
                         .seed = spec->seed};
    memcpy(out.name, spec->name, strlen(spec->name));
    if (!out.tiles)
        out.tiles = mn_tiles_default(&out);
    enum mn_status status = check_tiles(&out, error);
    if (!status)
        status = check_init(&spec->init, &out.init, error);
    if (!status)
        status = check_optimizer(spec, &out.optimizer, error);
    if (status)
        return status;
    float *const numbers[] = {&out.init.a, &out.init.b, &out.optimizer.beta1, &out.optimizer.beta2,
                              &out.optimizer.eps};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        *numbers[i] += 0.0f; /* the wire has no -0: it is 0 everywhere */
    *out_spec = out;
    return MN_OK;
}

/* X(member, shape): what two tables of one name must agree in, beside it. */
#define MEMBERS(X)                                                                                 \
    X(rows, WHOLE)                                                                                 \
    X(dim, WHOLE)                                                                                  \
    X(dtype, DTYPE)                                                                                \
    X(split, WHOLE)                                                                                \
    X(tiles, WHOLE)                                                                                \
    X(seed, WHOLE)                                                                                 \
    X(init.kind, WHOLE)                                                                            \
    X(init.a, REAL)                                                                                \
    X(init.b, REAL)                                                                                \
    X(optimizer.kind, WHOLE)                                                                       \
    X(optimizer.beta1, REAL)                                                                       \
    X(optimizer.beta2, REAL)                                                                       \
    X(optimizer.eps, REAL)                                                                         \
    X(optimizer.state_dtype, DTYPE)                                                                \
    X(optimizer.row_correction, WHOLE)

bool mn_spec_equal(const mn_table_spec *a, const mn_table_spec *b, const char **out_field)
{
    const char *field = NULL;
    if (strncmp(a->name, b->name, MN_NAME_BYTES) != 0)
        field = "name";
#define COMPARE(member, shape)                                                                     \
    if (!field && a->member != b->member)                                                          \
        field = #member;
    MEMBERS(COMPARE)
#undef COMPARE
    if (field && out_field)
        *out_field = field;
    return !field;
}

void mn_spec_value(const mn_table_spec *spec, const char *field,
                   char out_value[MN_SPEC_VALUE_BYTES])
{
    (void)snprintf(out_value, MN_SPEC_VALUE_BYTES, "%s", "?");
#define WHOLE(value) "%llu", (unsigned long long)(value)
#define REAL(value)  "%.9g", (double)(value)
#define DTYPE(value) "%s", mn_dtype_name(value)
#define PRINT(member, shape)                                                                       \
    if (!strcmp(field, #member))                                                                   \
        (void)snprintf(out_value, MN_SPEC_VALUE_BYTES, shape(spec->member)); /* it fits */
    MEMBERS(PRINT)
#undef PRINT
}
