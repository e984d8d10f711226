/* What the caller gave, checked before anything is sent: every MN_INVALID names field and value.
 * Rows given are the exception: the shards look at every number anyway, as it arrives, and a look
 * at all of them here would take as long as reading them twice. */
#include "check.h"
#include "client_private.h"

#include <inttypes.h>
#include <math.h>

enum { BLOCK = 4096 }; /* elements looked at before the verdict is */

static const uint64_t elements_max = UINT64_C(1) << 40;

enum mn_status mn_check_array(const char *field, const mn_array *array, enum mn_dtype one,
                              enum mn_dtype other, mn_error *error)
{
    if (one == other && array->dtype != one)
        return mn_fail(error, MN_INVALID, field, "dtype %s is not %s", mn_dtype_name(array->dtype),
                       mn_dtype_name(one));
    if (array->dtype != one && array->dtype != other)
        return mn_fail(error, MN_INVALID, field, "dtype %s is neither %s nor %s",
                       mn_dtype_name(array->dtype), mn_dtype_name(one), mn_dtype_name(other));
    if (array->memory == MN_MEMORY_CUDA)
        return mn_fail(error, MN_UNSUPPORTED, "memory",
                       "%s lies in CUDA memory, which takes a client of local: with a device "
                       "and one shard",
                       field);
    if (array->memory != MN_MEMORY_HOST && array->memory != MN_MEMORY_PINNED)
        return mn_fail(error, MN_INVALID, "memory", "%s has memory kind %d, which is none", field,
                       (int)array->memory);
    if (!array->data)
        return mn_fail(error, MN_INVALID, field, "the array has no data");
    return MN_OK;
}

/* Position of the first index that is not below `rows`; n when all are. */
static uint64_t first_outside(const mn_array *indices, uint64_t n, uint64_t rows)
{
    for (uint64_t begin = 0; begin < n; begin += BLOCK) {
        uint64_t end = begin + BLOCK < n ? begin + BLOCK : n;
        uint64_t bad = 0;
        if (indices->dtype == MN_U32) {
            const uint32_t *values = indices->data;
            for (uint64_t i = begin; i < end; i++)
                bad |= values[i] >= rows;
            for (uint64_t i = begin; bad && i < end; i++)
                if (values[i] >= rows)
                    return i;
        } else {
            const int64_t *values = indices->data; /* negative ones are huge when unsigned */
            for (uint64_t i = begin; i < end; i++)
                bad |= (uint64_t)values[i] >= rows;
            for (uint64_t i = begin; bad && i < end; i++)
                if ((uint64_t)values[i] >= rows)
                    return i;
        }
    }
    return n;
}

enum mn_status mn_check_indices(const mn_array *indices, uint64_t n, const mn_table_spec *spec,
                                mn_error *error)
{
    enum mn_status status = mn_check_array("indices", indices, MN_U32, MN_I64, error);
    if (status)
        return status;
    uint64_t at = first_outside(indices, n, spec->rows);
    if (at == n)
        return MN_OK;
    int64_t value = indices->dtype == MN_U32 ? (int64_t)((const uint32_t *)indices->data)[at]
                                             : ((const int64_t *)indices->data)[at];
    return mn_fail(error, MN_INVALID, "indices",
                   "index %" PRId64 " at position %" PRIu64 " is not one of the %" PRIu64
                   " rows of \"%s\"",
                   value, at, spec->rows, spec->name);
}

/* Position of the first NaN or infinity (all exponent bits set); n when there is none. */
static uint64_t first_not_finite(const mn_array *array, uint64_t n)
{
    for (uint64_t begin = 0; begin < n; begin += BLOCK) {
        uint64_t end = begin + BLOCK < n ? begin + BLOCK : n;
        uint32_t bad = 0;
        if (array->dtype == MN_F32) {
            const uint32_t *bits = array->data;
            for (uint64_t i = begin; i < end; i++)
                bad |= (bits[i] & 0x7f800000u) == 0x7f800000u;
            for (uint64_t i = begin; bad && i < end; i++)
                if ((bits[i] & 0x7f800000u) == 0x7f800000u)
                    return i;
        } else {
            const uint16_t *bits = array->data;
            for (uint64_t i = begin; i < end; i++)
                bad |= (bits[i] & 0x7f80u) == 0x7f80u;
            for (uint64_t i = begin; bad && i < end; i++)
                if ((bits[i] & 0x7f80u) == 0x7f80u)
                    return i;
        }
    }
    return n;
}

enum mn_status mn_check_floats(const char *field, const mn_array *array, uint64_t n,
                               mn_error *error)
{
    enum mn_status status = mn_check_array(field, array, MN_F32, MN_BF16, error);
    if (status)
        return status;
    uint64_t at = first_not_finite(array, n);
    if (at == n)
        return MN_OK;
    double value = array->dtype == MN_F32
                       ? (double)((const float *)array->data)[at]
                       : (double)mn_bf16_to_f32(((const uint16_t *)array->data)[at]);
    return mn_fail(error, MN_INVALID, field, "%f at position %" PRIu64 " is not finite", value, at);
}

static enum mn_status check_counts(const mn_operation *operation, mn_error *error)
{
    bool bags = operation->kind == MN_OP_BAG || operation->kind == MN_OP_BAG_GRAD;
    const mn_table_spec *spec = &operation->table->spec;
    if (bags && (operation->per_query == 0 || operation->per_query > MN_PER_QUERY_MAX))
        return mn_fail(error, MN_INVALID, "per_query", "%u is not between 1 and %d",
                       operation->per_query, MN_PER_QUERY_MAX);
    uint64_t width = spec->dim > operation->per_query ? spec->dim : operation->per_query;
    if (operation->count > elements_max / width || operation->count >= UINT32_MAX)
        return mn_fail(error, MN_INVALID, bags ? "queries" : "count",
                       "%" PRIu64 " in one call are too many", operation->count);
    if (operation->kind != MN_OP_FETCH && operation->kind != MN_OP_BAG && operation->step == 0)
        return mn_fail(error, MN_STEP, "step", "0: steps are numbered from 1");
    return MN_OK;
}

static const char *rows_field(const mn_operation *operation)
{
    return operation->kind == MN_OP_PUSH ? "gradients" : "values";
}

/* An array of any memory that the call may have. */
static enum mn_status check_array(const mn_task *task, const char *field, const mn_array *array,
                                  enum mn_dtype one, enum mn_dtype other, mn_error *error)
{
    mn_array seen = *array;
    if (task->data.direct && seen.memory == MN_MEMORY_CUDA)
        seen.memory = MN_MEMORY_HOST;
    return mn_check_array(field, &seen, one, other, error);
}

/* Numbers in a device's memory are looked at by the shard. */
static enum mn_status check_floats(const mn_task *task, const char *field, const mn_array *array,
                                   uint64_t n, mn_error *error)
{
    if (array->memory == MN_MEMORY_CUDA)
        return check_array(task, field, array, MN_F32, MN_BF16, error);
    return mn_check_floats(field, array, n, error);
}

static enum mn_status check_indices(const mn_task *task, uint64_t reads, mn_error *error)
{
    const mn_operation *operation = task->operation;
    if (operation->indices.memory == MN_MEMORY_CUDA)
        return check_array(task, "indices", &operation->indices, MN_U32, MN_I64, error);
    return mn_check_indices(&operation->indices, reads, &operation->table->spec, error);
}

static enum mn_status check_kind(const mn_task *task, uint64_t reads, uint64_t elements,
                                 mn_error *error)
{
    const mn_operation *operation = task->operation;
    enum mn_status status = MN_OK;
    switch (operation->kind) {
    case MN_OP_FETCH:
        return check_array(task, "out_rows", &operation->outputs, MN_F32, MN_BF16, error);
    case MN_OP_BAG:
        status = check_floats(task, "weights", &operation->weights, reads, error);
        return status ? status
                      : check_array(task, "out", &operation->outputs, MN_F32, MN_BF16, error);
    case MN_OP_BAG_GRAD:
        status = check_floats(task, "weights", &operation->weights, reads, error);
        if (!status)
            status = check_floats(task, "output_gradients", &operation->values, elements, error);
        return status ? status
                      : check_array(task, "weight_gradients", &operation->outputs, MN_F32, MN_F32,
                                    error);
    default:
        return check_array(task, rows_field(operation), &operation->values, MN_F32, MN_BF16, error);
    }
}

/* ---- What only the shard has looked at */

/* The array in host memory, a copy where it is a device's; its data is NULL without memory. */
static mn_array host_array(mn_task *task, const mn_array *array, uint64_t bytes)
{
    mn_transport *transport = task->core->transport;
    mn_array host = *array;
    if (array->memory != MN_MEMORY_CUDA)
        return host;
    host.memory = MN_MEMORY_HOST;
    host.data = mn_core_allocate(task->core, bytes);
    if (host.data && transport->read_memory(transport, host.data, array->data, bytes, NULL)) {
        mn_core_release(task->core, host.data, bytes);
        host.data = NULL;
    }
    return host;
}

static void host_release(mn_task *task, const mn_array *array, const mn_array *host, uint64_t bytes)
{
    if (array->memory == MN_MEMORY_CUDA)
        mn_core_release(task->core, host->data, bytes);
}

static enum mn_status explain_floats(mn_task *task, const char *field, const mn_array *array,
                                     uint64_t n)
{
    const uint64_t bytes = n * mn_dtype_bytes(array->dtype);
    const mn_array host = host_array(task, array, bytes);
    enum mn_status status = MN_OK;
    if (host.data)
        status = mn_check_floats(field, &host, n, &task->error);
    host_release(task, array, &host, bytes);
    return status;
}

static enum mn_status explain_indices(mn_task *task, uint64_t n)
{
    const mn_array *array = &task->operation->indices;
    const uint64_t bytes = n * mn_dtype_bytes(array->dtype);
    const mn_array host = host_array(task, array, bytes);
    enum mn_status status = MN_OK;
    if (host.data)
        status = mn_check_indices(&host, n, &task->operation->table->spec, &task->error);
    host_release(task, array, &host, bytes);
    return status;
}

void mn_explain(mn_task *task)
{
    const mn_operation *operation = task->operation;
    const uint64_t reads = operation->count * task->data.reads;
    const uint64_t elements = operation->count * operation->table->spec.dim;
    const bool rows = operation->kind == MN_OP_PUSH || operation->kind == MN_OP_STORE;
    const bool grads = operation->kind == MN_OP_BAG_GRAD;
    enum mn_status status = MN_OK; /* the error is left as it is if all is well here */
    if (task->error.status != MN_INVALID)
        return;
    if (operation->indices.memory == MN_MEMORY_CUDA)
        status = explain_indices(task, reads);
    if (!status && (grads || operation->kind == MN_OP_BAG) &&
        operation->weights.memory == MN_MEMORY_CUDA)
        status = explain_floats(task, "weights", &operation->weights, reads);
    if (!status && grads && operation->values.memory == MN_MEMORY_CUDA)
        status = explain_floats(task, "output_gradients", &operation->values, elements);
    if (!status && rows)
        (void)explain_floats(task, rows_field(operation), &operation->values, elements);
}

enum mn_status mn_check_data(const mn_task *task, mn_error *error)
{
    const mn_operation *operation = task->operation;
    const mn_table *table = operation->table;
    enum mn_status status = check_counts(operation, error);
    if (status || operation->count == 0)
        return status;
    uint64_t reads = operation->count * task->data.reads;
    bool gradients = operation->kind == MN_OP_PUSH || operation->kind == MN_OP_BAG_GRAD;
    if (gradients && table->spec.optimizer.kind == MN_OPTIMIZER_NONE)
        return mn_fail(error, MN_INVALID, "optimizer",
                       "table \"%s\" has no optimizer: it takes mn_store only", table->spec.name);
    if ((operation->state_in || operation->state_out) && table->state_row_bytes == 0)
        return mn_fail(error, MN_INVALID, "state", "rows of \"%s\" have no optimizer state",
                       table->spec.name);
    status = check_indices(task, reads, error);
    return status ? status : check_kind(task, reads, operation->count * table->spec.dim, error);
}

static enum mn_status check_rate(const char *field, float value, mn_error *error)
{
    if (isfinite(value) && value >= 0)
        return MN_OK;
    return mn_fail(error, MN_INVALID, field, "%f is not a finite number of at least 0",
                   (double)value);
}

enum mn_status mn_check_proposal(const mn_proposal *proposal, mn_error *error)
{
    if (proposal->discard)
        return MN_OK;
    if (proposal->set_count == 0 || proposal->set_count > MN_COMMIT_SETS_MAX)
        return mn_fail(error, MN_INVALID, "sets", "%u sets are not between 1 and %d",
                       proposal->set_count, MN_COMMIT_SETS_MAX);
    for (uint32_t i = 0; i < proposal->set_count; i++) {
        const mn_commit_set *set = &proposal->sets[i];
        enum mn_status status = check_rate("learning_rate", set->learning_rate, error);
        if (!status)
            status = check_rate("weight_decay", set->weight_decay, error);
        if (!status)
            status = check_rate("scale", set->scale, error);
        if (!status)
            status = check_rate("clip_norm", set->clip_norm, error);
        if (status)
            return status;
        if (set->table_count > MN_COMMIT_TABLES_MAX ||
            (set->table_count == 0 && proposal->set_count > 1))
            return mn_fail(error, MN_INVALID, "tables",
                           "set %u names %u tables; between 1 and %d are allowed, none only when "
                           "it is the one set",
                           i, set->table_count, MN_COMMIT_TABLES_MAX);
        for (uint32_t t = 1; t < set->table_count; t++)
            if (set->tables[t] <= set->tables[t - 1])
                return mn_fail(error, MN_INVALID, "tables",
                               "table ids of set %u are not ascending: %" PRIu64 " after %" PRIu64,
                               i, set->tables[t], set->tables[t - 1]);
    }
    return MN_OK;
}
