/* Merged gradients, row by row straight into the optimizer: a merged row lives in registers only.
 * A row's count is read by all its threads and raised by a kernel of its own, afterwards. */
#include "merge.h"
#include "step.h"

/* One step of a tile; passed by value. */
struct tile_step {
    mn_optimizer optimizer;
    mn_update update;
    adam_step adam; /* of the group's step */
};

/* A row under update: what its initial values and the noise of its roundings depend on. */
struct row_update {
    uint64_t offset, row;
    uint32_t count; /* updates, this one included */
    bool written;
};

DEVICE row_update row_update_of(const device_tile &tile, uint64_t offset)
{
    const uint32_t before = tile.updates[offset];
    row_update u;
    u.offset = offset;
    u.row = table_row(tile, offset);
    u.count = before == UINT32_MAX ? before : before + 1;
    u.written = tile.all_written || before != 0;
    return u;
}

/* Random half-words of V columns from c on: V is 1, or 8 from a multiple of 8. */
template <int V>
DEVICE void noise_of(const device_tile &tile, const row_update &u, enum mn_purpose purpose,
                     uint32_t c, uint16_t (&out_halves)[V])
{
    const uint32_t column = tile.first_column + c;
    const uint32_t counter[4] = {(uint32_t)u.row, (uint32_t)(u.row >> 32), column / 8, u.count};
    const uint32_t key[2] = {(uint32_t)tile.seed ^ (uint32_t)purpose, (uint32_t)(tile.seed >> 32)};
    uint32_t words[4];
    philox(counter, key, words);
    if constexpr (V == 1) {
        const uint32_t pair = column % 8 / 2;
        const uint32_t low = pair % 2 ? words[1] : words[0], high = pair % 2 ? words[3] : words[2];
        const uint32_t word = pair < 2 ? low : high;
        out_halves[0] = (uint16_t)(column % 2 ? word >> 16 : word);
    } else {
#pragma unroll
        for (int e = 0; e < V; e++)
            out_halves[e] = (uint16_t)(e % 2 ? words[e / 2] >> 16 : words[e / 2]);
    }
}

/* f32 is stored as it is, bf16 rounded stochastically. */
template <int V>
DEVICE void put_rounded(const device_tile &, const row_update &, enum mn_purpose, uint32_t,
                        const float (&values)[V], float *to)
{
    put(values, to);
}
template <int V>
DEVICE void put_rounded(const device_tile &tile, const row_update &u, enum mn_purpose purpose,
                        uint32_t c, const float (&values)[V], uint16_t *to)
{
    columns<uint16_t, V> out;
    uint16_t noise[V];
    noise_of<V>(tile, u, purpose, c, noise);
#pragma unroll
    for (int e = 0; e < V; e++)
        set_column_bits(&out, e, bf16_stochastic(values[e], noise[e]));
    store_columns(out, to);
}

/* V elements of a state array, or their initial value for a row never written. */
template <typename S, int V>
DEVICE void state_columns(const row_update &u, float initial, const S *from, float (&out)[V])
{
    columns<S, V> in;
    if (u.written)
        in = load_columns<S, V>(from);
#pragma unroll
    for (int e = 0; e < V; e++) {
        if (!u.written)
            set_column(&in, e, initial);
        out[e] = column_of(in, e);
    }
}

/* Every optimizer but row-wise Adagrad: columns are independent. */
template <typename T, typename S, typename G, int V>
static __global__ void __launch_bounds__(THREADS, V == 8 ? 2 : 3)
    apply(device_tile tile, mn_cuda_plan plan, device_sources sources, tile_step step)
{
    const uint32_t c = (blockIdx.y * blockDim.x + threadIdx.x) * V, runs = *plan.runs;
    const enum mn_optimizer_kind kind = step.optimizer.kind;
    const bool adagrad = kind == MN_OPTIMIZER_ADAGRAD, sgd = kind == MN_OPTIMIZER_SGD;
    uint64_t r = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; r < runs && c < tile.columns; r += (uint64_t)gridDim.x * blockDim.y) {
        const row_update u = row_update_of(tile, plan.sorted[plan.starts[r]]);
        T *values = (T *)tile.values + u.offset * tile.columns + c;
        const uint64_t arrays = adagrad ? 1 : 2;
        S *first = sgd ? NULL : (S *)tile.state + u.offset * tile.columns * arrays + c;
        S *second = sgd ? NULL : first + tile.columns;
        float merged[V], row[V], m[V] = {}, v[V] = {};
        const columns<T, V> before = tile_columns<T, V>(tile, u.offset, u.written, c);
        if (!sgd)
            state_columns<S, V>(u, adagrad ? step.optimizer.beta1 : 0, first, m);
        if (!sgd && !adagrad)
            state_columns<S, V>(u, 0, second, v);
        fold_run<G, V>(plan, sources, r, c, merged);
        const adam_step adam = step.optimizer.row_correction && !sgd && !adagrad
                                   ? adam_step_of(&step.optimizer, &step.update, u.count)
                                   : step.adam;
#pragma unroll
        for (int e = 0; e < V; e++) {
            row[e] = column_of(before, e);
            if (sgd)
                step_sgd(&step.update, merged[e], &row[e]);
            else if (adagrad)
                step_adagrad(&step.update, step.optimizer.eps, merged[e], &row[e], &m[e]);
            else
                step_adam(&adam, merged[e], &row[e], &m[e], &v[e]);
        }
        if (!sgd)
            put_rounded<V>(tile, u, MN_PURPOSE_ROUND_STATE, c, m, first);
        if (!sgd && !adagrad)
            put_rounded<V>(tile, u, MN_PURPOSE_ROUND_STATE2, c, v, second);
        put_rounded<V>(tile, u, MN_PURPOSE_ROUND_VALUE, c, row, values);
    }
}

/* Row-wise Adagrad: a row's team folds its gradient twice, for the mean of its squares and for the
 * step; its first thread keeps the row's sum. */
template <typename T, typename G, int V>
static __global__ void __launch_bounds__(THREADS)
    apply_rowwise(device_tile tile, mn_cuda_plan plan, device_sources sources, tile_step step)
{
    const uint32_t teams = THREADS * V / SIXTEEN, team = threadIdx.x * V / SIXTEEN;
    const uint32_t lane = threadIdx.x * V % SIXTEEN, runs = *plan.runs;
    uint64_t begin = (uint64_t)blockIdx.x * teams;
    for (; begin < runs; begin += (uint64_t)gridDim.x * teams) {
        const uint64_t r = begin + team;
        const bool mine = r < runs;
        row_update u = {};
        float lanes[V] = {}, g[V], sum = 0;
        if (mine)
            u = row_update_of(tile, plan.sorted[plan.starts[r]]);
        T *values = (T *)tile.values + u.offset * tile.columns;
        for (uint32_t c = lane; mine && c < tile.columns; c += SIXTEEN) {
            const columns<T, V> row = tile_columns<T, V>(tile, u.offset, u.written, c);
            fold_run<G, V>(plan, sources, r, c, g);
#pragma unroll
            for (int e = 0; e < V; e++) {
                g[e] = decayed_gradient(&step.update, g[e], column_of(row, e));
                lanes[e] = lanes[e] + g[e] * g[e];
            }
        }
        const float square = lanes_tree(lanes);
        if (mine && lane == 0) {
            float *state = (float *)tile.state + u.offset;
            sum = (u.written ? *state : step.optimizer.beta1) + square / (float)tile.columns;
            *state = sum;
        }
        sum = __shfl_sync(ALL_LANES, sum, (int)(threadIdx.x % WARP - lane / V));
        const float denominator = sqrtf(sum) + step.optimizer.eps;
        for (uint32_t c = lane; mine && c < tile.columns; c += SIXTEEN) {
            const columns<T, V> before = tile_columns<T, V>(tile, u.offset, u.written, c);
            fold_run<G, V>(plan, sources, r, c, g); /* again: a row is too wide to keep */
#pragma unroll
            for (int e = 0; e < V; e++) {
                const float row = column_of(before, e);
                g[e] = decayed_gradient(&step.update, g[e], row);
                g[e] = row - step.update.learning_rate * g[e] / denominator;
            }
            put_rounded<V>(tile, u, MN_PURPOSE_ROUND_VALUE, c, g, values + c);
        }
    }
}

typedef void apply_kernel(device_tile, mn_cuda_plan, device_sources, tile_step);

template <typename T, typename S, int V> static apply_kernel *apply_of(bool narrow)
{
    return narrow ? apply<T, S, uint16_t, V> : apply<T, S, float, V>;
}

/* bf16 elements are rounded eight at a time, as one Philox block serves them. */
static apply_kernel *apply_for(bool bf16, bool state_bf16, bool narrow, uint32_t V)
{
    if (!bf16 && !state_bf16)
        return V == 1 ? apply_of<float, float, 1>(narrow) : apply_of<float, float, 4>(narrow);
    if (!bf16)
        return V == 1 ? apply_of<float, uint16_t, 1>(narrow) : apply_of<float, uint16_t, 8>(narrow);
    if (!state_bf16)
        return V == 1 ? apply_of<uint16_t, float, 1>(narrow) : apply_of<uint16_t, float, 8>(narrow);
    return V == 1 ? apply_of<uint16_t, uint16_t, 1>(narrow)
                  : apply_of<uint16_t, uint16_t, 8>(narrow);
}

template <typename T, int V> static apply_kernel *rowwise_of(bool narrow)
{
    return narrow ? apply_rowwise<T, uint16_t, V> : apply_rowwise<T, float, V>;
}

/* Columns to a vector: as wide as the types want where shape and place allow it, else 1. */
static uint32_t update_vector(const mn_tile *tile, const mn_cuda_sources *sources, bool rowwise)
{
    const bool state_bf16 = !rowwise && tile->optimizer.state_dtype == MN_BF16;
    const uint32_t V = tile->dtype == MN_BF16 || state_bf16 ? 8 : 4;
    const bool fits = tile->columns % V == 0 && tile->first_column % V == 0 &&
                      (uintptr_t)tile->values % 16 == 0 &&
                      (rowwise || (uintptr_t)tile->state % 16 == 0);
    return fits ? source_vector(sources, V) : 1;
}

extern "C" enum mn_status mn_cuda_merge_apply(const mn_tile *tile, const mn_cuda_plan *plan,
                                              const mn_cuda_sources *sources,
                                              const mn_update *update, uint64_t *out_first_written,
                                              void *stream, mn_error *error)
{
    const bool rowwise = tile->optimizer.kind == MN_OPTIMIZER_ROWWISE_ADAGRAD;
    const bool bf16 = tile->dtype == MN_BF16, narrow = sources->dtype == MN_BF16;
    const uint32_t V = update_vector(tile, sources, rowwise);
    if (tile->optimizer.kind == MN_OPTIMIZER_NONE || plan->rows != tile->rows)
        return mn_fail(error, MN_INVALID, "tile", "it has no optimizer, or not the plan's rows");
    tile_step step = {};
    step.optimizer = tile->optimizer, step.update = *update;
    step.adam = adam_step_of(&tile->optimizer, update, update->step);
    cudaLaunchConfig_t config = runs_config(plan, sources, tile->columns / V, V, stream);
    apply_kernel *kernel = apply_for(bf16, tile->optimizer.state_dtype == MN_BF16, narrow, V);
    if (rowwise) {
        config = teams_config(V, plan->reads, RUN_BLOCKS, stream);
        kernel = bf16 ? V == 1 ? rowwise_of<uint16_t, 1>(narrow) : rowwise_of<uint16_t, 8>(narrow)
                 : V == 1 ? rowwise_of<float, 1>(narrow)
                          : rowwise_of<float, 4>(narrow);
    }
    const device_tile device = device_tile_of(tile);
    cudaError_t result =
        cudaLaunchKernelEx(&config, kernel, device, *plan, device_sources_of(sources), step);
    if (result == cudaSuccess)
        result = launch_count<false>(device, plan, out_first_written, stream);
    return launched(result, error);
}
