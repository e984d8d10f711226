/* Reads of a frozen table, and the selection of its rows by product keys: on the caller's thread,
 * without an allocation; a block of indices at a time lies on its stack. */
#include "check.h"
#include "frozen.h"

#include <inttypes.h>
#include <string.h>

enum { BLOCK = MN_PER_QUERY_MAX };

static const uint64_t reads_max = UINT64_C(1) << 40;

/* ---- What is open ---- */

uint64_t mn_frozen_step(const mn_frozen *frozen) { return frozen->step; }

const mn_frozen_table *mn_frozen_at(const mn_frozen *frozen, uint32_t number)
{
    return number < frozen->table_count ? &frozen->tables[number] : NULL;
}

enum mn_status mn_frozen_find(const mn_frozen *frozen, const char *name,
                              const mn_frozen_table **out_table, mn_error *error)
{
    for (uint32_t i = 0; i < frozen->table_count; i++) {
        if (strcmp(frozen->tables[i].spec.name, name) == 0) {
            *out_table = &frozen->tables[i];
            return MN_OK;
        }
    }
    return mn_fail(error, MN_NOT_FOUND, "table", "the frozen group has no table \"%.63s\"", name);
}

const mn_table_spec *mn_frozen_spec(const mn_frozen_table *table) { return &table->spec; }

enum mn_dtype mn_frozen_dtype(const mn_frozen_table *table) { return table->rows.dtype; }

/* ---- Rows and bags ---- */

static void take_indices(const mn_array *indices, uint64_t first, uint64_t n, uint64_t *out)
{
    for (uint64_t i = 0; i < n; i++)
        out[i] = indices->dtype == MN_U32 ? ((const uint32_t *)indices->data)[first + i]
                                          : (uint64_t)((const int64_t *)indices->data)[first + i];
}

static void take_weights(const mn_array *weights, uint64_t first, uint64_t n, float *out)
{
    for (uint64_t i = 0; i < n; i++)
        out[i] = weights->dtype == MN_F32
                     ? ((const float *)weights->data)[first + i]
                     : mn_bf16_to_f32(((const uint16_t *)weights->data)[first + i]);
}

static uint8_t *row_of(const mn_frozen_table *table, const mn_array *out, uint64_t row,
                       uint64_t *out_stride_bytes)
{
    *out_stride_bytes = (uint64_t)table->spec.dim * mn_dtype_bytes(out->dtype);
    return (uint8_t *)out->data + row * *out_stride_bytes;
}

enum mn_status mn_frozen_bag(const mn_frozen_table *table, const mn_queries *queries, mn_array out,
                             mn_error *error)
{
    const uint32_t k = queries->per_query;
    if (k == 0 || k > MN_PER_QUERY_MAX)
        return mn_fail(error, MN_INVALID, "per_query", "%u is not between 1 and %d", k,
                       MN_PER_QUERY_MAX);
    if (queries->queries > reads_max / k)
        return mn_fail(error, MN_INVALID, "queries", "%" PRIu64 " in one call are too many",
                       queries->queries);
    if (queries->queries == 0)
        return MN_OK;
    const uint64_t reads = queries->queries * k;
    enum mn_status status = mn_check_indices(&queries->indices, reads, &table->spec, error);
    if (!status)
        status = mn_check_floats("weights", &queries->weights, reads, error);
    if (!status)
        status = mn_check_array("out", &out, MN_F32, MN_BF16, error);
    if (status)
        return status;
    uint64_t offsets[BLOCK], stride_bytes;
    float weights[BLOCK];
    const uint64_t block = BLOCK / k; /* at least 1 */
    for (uint64_t q = 0; q < queries->queries; q += block) {
        uint64_t count = queries->queries - q < block ? queries->queries - q : block;
        uint8_t *to = row_of(table, &out, q, &stride_bytes);
        take_indices(&queries->indices, q * k, count * k, offsets);
        take_weights(&queries->weights, q * k, count * k, weights);
        table->kernels->bag(&table->rows, offsets, weights, count, k, out.dtype, to, stride_bytes);
    }
    return MN_OK;
}

enum mn_status mn_frozen_fetch(const mn_frozen_table *table, const mn_rows *rows, mn_array out_rows,
                               mn_error *error)
{
    if (rows->count > reads_max)
        return mn_fail(error, MN_INVALID, "count", "%" PRIu64 " in one call are too many",
                       rows->count);
    if (rows->count == 0)
        return MN_OK;
    enum mn_status status = mn_check_indices(&rows->indices, rows->count, &table->spec, error);
    if (!status)
        status = mn_check_array("out_rows", &out_rows, MN_F32, MN_BF16, error);
    if (status)
        return status;
    uint64_t offsets[BLOCK], stride_bytes;
    for (uint64_t i = 0; i < rows->count; i += BLOCK) {
        uint64_t count = rows->count - i < BLOCK ? rows->count - i : BLOCK;
        uint8_t *to = row_of(table, &out_rows, i, &stride_bytes);
        take_indices(&rows->indices, i, count, offsets);
        table->kernels->gather(&table->rows, offsets, count, out_rows.dtype, to, stride_bytes);
    }
    return MN_OK;
}

/* ---- Selection: query product, two matrix-vector products per head, best sums, gate ---- */

static uint64_t up_to_line(uint64_t bytes) { return (bytes + 63) / 64 * 64; }

static uint64_t query_bytes(const mn_product_keys *keys)
{
    return up_to_line((uint64_t)keys->heads * 2 * keys->half * sizeof(float));
}

static uint64_t scores_bytes(const mn_product_keys *keys)
{
    return up_to_line((uint64_t)keys->n * sizeof(float));
}

static enum mn_status check_keys(const mn_product_keys *keys, mn_error *error)
{
    const uint32_t largest = 1 << 20; /* n*n is at most MN_ROWS_MAX */
    if (keys->n == 0 || keys->n > largest)
        return mn_fail(error, MN_INVALID, "n", "%u is not between 1 and %u", keys->n, largest);
    if (keys->half == 0 || keys->half > MN_DIM_MAX)
        return mn_fail(error, MN_INVALID, "half", "%u is not between 1 and %d", keys->half,
                       MN_DIM_MAX);
    if (keys->per_head == 0 || keys->per_head > MN_SELECT_MAX ||
        keys->per_head > (uint64_t)keys->n * keys->n)
        return mn_fail(error, MN_INVALID, "per_head",
                       "%u is not between 1 and the lesser of %u and n*n", keys->per_head,
                       MN_SELECT_MAX);
    if (keys->heads == 0 || keys->heads > MN_PER_QUERY_MAX / keys->per_head)
        return mn_fail(error, MN_INVALID, "heads", "%u heads of %u rows are not between 1 and %d",
                       keys->heads, keys->per_head, MN_PER_QUERY_MAX);
    if (keys->query_weights && (keys->width == 0 || keys->width > MN_DIM_MAX))
        return mn_fail(error, MN_INVALID, "width", "%u is not between 1 and %d", keys->width,
                       MN_DIM_MAX);
    if (!keys->sub_keys)
        return mn_fail(error, MN_INVALID, "sub_keys", "there are none");
    return MN_OK;
}

uint64_t mn_product_scratch_bytes(const mn_product_keys *keys)
{
    if (check_keys(keys, NULL))
        return 0;
    return query_bytes(keys) + 2 * scores_bytes(keys) +
           mn_select_scratch_bytes(keys->n, keys->per_head);
}

enum mn_status mn_product_select(const mn_product_keys *keys, const float *input, void *scratch,
                                 int64_t *out_rows, float *out_weights, mn_error *error)
{
    enum mn_status status = check_keys(keys, error);
    if (status)
        return status;
    if ((uintptr_t)scratch % 64)
        return mn_fail(error, MN_INVALID, "scratch", "it is not aligned to 64 bytes");
    const mn_kernels *kernels = mn_kernels_best();
    const mn_frozen_kernels *frozen = mn_frozen_kernels_best();
    const uint32_t half = keys->half, n = keys->n, k = keys->per_head;
    const float *query = input;
    float *made = scratch, *scores1 = made + query_bytes(keys) / sizeof(float);
    float *scores2 = scores1 + scores_bytes(keys) / sizeof(float);
    float *rest = scores2 + scores_bytes(keys) / sizeof(float);
    if (keys->query_weights) {
        frozen->matrix_vector(keys->query_weights, keys->heads * 2 * half, keys->width, input,
                              keys->query_bias, made);
        query = made;
    }
    for (uint32_t h = 0; h < keys->heads; h++) {
        const float *key = keys->sub_keys + (uint64_t)h * 2 * n * half;
        frozen->matrix_vector(key, n, half, query + (uint64_t)h * 2 * half, NULL, scores1);
        frozen->matrix_vector(key + (uint64_t)n * half, n, half,
                              query + ((uint64_t)h * 2 + 1) * half, NULL, scores2);
        if (!kernels->select(scores1, scores2, n, k, (uint64_t *)out_rows + (uint64_t)h * k,
                             out_weights + (uint64_t)h * k, rest))
            return mn_fail(error, MN_INVALID, "scores", "a score of head %u is not a number", h);
    }
    if (!keys->relu)
        kernels->softmax(out_weights, keys->heads, k);
    for (uint64_t i = 0; i < (uint64_t)keys->heads * k && keys->relu; i++)
        out_weights[i] = out_weights[i] > 0 ? out_weights[i] : 0;
    return MN_OK;
}
