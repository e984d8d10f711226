/* Operations along rows: LayerNorm, RMS norm, cross entropy. A team of threads holds a row in
 * registers, so that it is read once; sums go by lane and then by a tree over the team. */
#include "nn_device.h"

static const uint32_t HELD = 8; /* vectors of a row that a thread holds */
static const uint64_t ROW_BLOCKS = 1 << 16;

/* Vectors of V columns c(i) = (i * team + x) * V of a row, zero beyond its width. */
template <int V> struct held_row {
    float v[HELD][V];
};

template <int V> DEVICE uint32_t column_at(uint32_t i)
{
    return (i * blockDim.x + threadIdx.x) * V;
}

template <int V> DEVICE void hold(const float *row, uint32_t width, held_row<V> *out)
{
#pragma unroll
    for (uint32_t i = 0; i < HELD; i++) {
        const uint32_t c = column_at<V>(i);
#pragma unroll
        for (int e = 0; e < V; e++)
            out->v[i][e] = 0;
        if (c < width)
            get(row + c, out->v[i]);
    }
}

/* The team's sum, in all of its threads: a tree over each warp, then its warps in order. */
DEVICE float team_sum(float mine)
{
    __shared__ float of_warps[THREADS / WARP];
#pragma unroll
    for (int w = 16; w; w /= 2)
        mine = mine + __shfl_xor_sync(ALL_LANES, mine, w);
    if (blockDim.x == WARP)
        return mine;
    if (threadIdx.x % WARP == 0)
        of_warps[threadIdx.x / WARP] = mine;
    __syncthreads();
    mine = 0;
    for (uint32_t w = 0; w < blockDim.x / WARP; w++)
        mine = mine + of_warps[w];
    __syncthreads();
    return mine;
}

/* Blocks of one team for wide rows, of several warps with a row each otherwise. */
static enum mn_status rows_launch(const mn_cuda_nn *nn, uint64_t rows, uint32_t width, uint32_t V,
                                  cudaLaunchConfig_t *out_config, mn_error *error)
{
    const uint64_t team = rounded_up((width + HELD * V - 1) / (HELD * V), WARP);
    if (width == 0 || team > THREADS)
        return mn_fail(error, MN_INVALID, "width", "%u columns: 1 to %u", width,
                       THREADS * HELD * V);
    const uint32_t y = team > WARP ? 1 : THREADS / WARP;
    const uint64_t blocks = (rows + y - 1) / y;
    cudaLaunchConfig_t config = {};
    config.blockDim = dim3((unsigned)team, y);
    config.gridDim = dim3((unsigned)(blocks < ROW_BLOCKS ? blocks : ROW_BLOCKS));
    config.stream = nn->stream;
    *out_config = config;
    return MN_OK;
}

/* Whole teams go on together, also past the last row, where they hold zeros. */
DEVICE uint64_t first_row(void) { return (uint64_t)blockIdx.x * blockDim.y; }
DEVICE uint64_t rows_at_a_time(void) { return (uint64_t)gridDim.x * blockDim.y; }

/* ---- LayerNorm ---- */

template <int V>
static __global__ void __launch_bounds__(THREADS)
    norm_rows(uint64_t rows, uint32_t width, const float *x, const float *gain, float *out_mean,
              float *out_inverse, float *out, uint16_t *narrow)
{
    for (uint64_t first = first_row(); first < rows; first += rows_at_a_time()) {
        const uint64_t row = first + threadIdx.y;
        const uint32_t mine = row < rows ? width : 0;
        held_row<V> h;
        float sum = 0, square = 0;
        hold(x + row * width, mine, &h);
#pragma unroll
        for (uint32_t i = 0; i < HELD; i++)
#pragma unroll
            for (int e = 0; e < V; e++)
                sum = sum + h.v[i][e];
        const float mean = team_sum(sum) / (float)width;
#pragma unroll
        for (uint32_t i = 0; i < HELD; i++)
#pragma unroll
            for (int e = 0; e < V; e++) {
                const float centred = h.v[i][e] - mean;
                square = square + (column_at<V>(i) < width ? centred * centred : 0);
            }
        const float variance = team_sum(square) / (float)width;
        const float inverse = (float)(1.0 / sqrt((double)variance + 1e-5));
#pragma unroll
        for (uint32_t i = 0; i < HELD; i++) {
            const uint32_t c = column_at<V>(i);
            float g[V];
            if (c >= mine)
                continue;
            get(gain + c, g);
#pragma unroll
            for (int e = 0; e < V; e++)
                g[e] = (h.v[i][e] - mean) * inverse * g[e];
            put_both(g, out, narrow, row * width + c);
        }
        if (mine && threadIdx.x == 0)
            out_mean[row] = mean, out_inverse[row] = inverse;
    }
}

extern "C" enum mn_status mn_cuda_nn_norm(mn_cuda_nn *nn, uint64_t rows, uint32_t width,
                                          const float *x, const float *gain, float *out_mean,
                                          float *out_inverse, float *out, mn_error *error)
{
    const bool four = fours(width, {x, gain, out});
    cudaLaunchConfig_t config;
    const enum mn_status status = rows_launch(nn, rows, width, four ? 4 : 1, &config, error);
    if (status || rows == 0)
        return status;
    uint16_t *narrow = mn_narrow_beside(nn, out, rows * width);
    return launched(cudaLaunchKernelEx(&config, four ? norm_rows<4> : norm_rows<1>, rows, width, x,
                                       gain, out_mean, out_inverse, out, narrow),
                    error);
}

/* With n = (x - mean) * inverse and e = d_out * gain:
 * d_x += inverse * (e - mean(e) - n * mean(e * n)). */
template <int V>
static __global__ void __launch_bounds__(THREADS)
    norm_rows_grad(uint64_t rows, uint32_t width, mn_cuda_norm_saved saved, const float *d_out,
                   float *d_x, uint16_t *narrow)
{
    for (uint64_t first = first_row(); first < rows; first += rows_at_a_time()) {
        const uint64_t row = first + threadIdx.y;
        const uint32_t mine = row < rows ? width : 0;
        const float mean = mine ? saved.mean[row] : 0, inverse = mine ? saved.inverse[row] : 0;
        held_row<V> n, d;
        float sum = 0, product = 0;
        hold(saved.x + row * width, mine, &n);
        hold(d_out + row * width, mine, &d);
#pragma unroll
        for (uint32_t i = 0; i < HELD; i++) {
            const uint32_t c = column_at<V>(i);
            float g[V] = {};
            if (c < mine)
                get(saved.gain + c, g);
#pragma unroll
            for (int e = 0; e < V; e++) {
                n.v[i][e] = (n.v[i][e] - mean) * inverse;
                d.v[i][e] = d.v[i][e] * g[e];
                sum = sum + d.v[i][e];
                product = product + d.v[i][e] * n.v[i][e];
            }
        }
        const float e_mean = team_sum(sum) / (float)width;
        const float e_n_mean = team_sum(product) / (float)width;
#pragma unroll
        for (uint32_t i = 0; i < HELD; i++) {
            const uint32_t c = column_at<V>(i);
            float before[V];
            if (c >= mine)
                continue;
            get(d_x + row * width + c, before);
#pragma unroll
            for (int e = 0; e < V; e++)
                before[e] = before[e] + inverse * (d.v[i][e] - e_mean - n.v[i][e] * e_n_mean);
            put_both(before, d_x, narrow, row * width + c);
        }
    }
}

/* nn_columns.cu */
enum mn_status mn_norm_gain_grad(mn_cuda_nn *nn, uint64_t rows, uint32_t width,
                                 const mn_cuda_norm_saved *saved, const float *d_out, float *d_gain,
                                 mn_error *error);
enum mn_status mn_rms_gain_grad(mn_cuda_nn *nn, const mn_cuda_rms *rms, const float *x,
                                const float *inverse, const float *d_out, float *d_gain,
                                mn_error *error);

extern "C" enum mn_status mn_cuda_nn_norm_grad(mn_cuda_nn *nn, uint64_t rows, uint32_t width,
                                               const mn_cuda_norm_saved *saved, const float *d_out,
                                               float *d_gain, float *d_x, mn_error *error)
{
    const bool four = fours(width, {saved->x, saved->gain, d_out, d_x});
    cudaLaunchConfig_t config;
    enum mn_status status = rows_launch(nn, rows, width, four ? 4 : 1, &config, error);
    if (status || rows == 0)
        return status;
    status = mn_norm_gain_grad(nn, rows, width, saved, d_out, d_gain, error);
    if (status)
        return status;
    uint16_t *narrow = mn_narrow_beside(nn, d_x, rows * width);
    return launched(cudaLaunchKernelEx(&config, four ? norm_rows_grad<4> : norm_rows_grad<1>, rows,
                                       width, *saved, d_out, d_x, narrow),
                    error);
}

/* ---- RMS norm ---- */

template <int V>
static __global__ void __launch_bounds__(THREADS)
    rms_rows(mn_cuda_rms rms, const float *x, const float *gain, float *out_inverse, float *out,
             uint16_t *narrow)
{
    const uint32_t width = rms.width;
    for (uint64_t first = first_row(); first < rms.runs; first += rows_at_a_time()) {
        const uint64_t run = first + threadIdx.y;
        const uint32_t mine = run < rms.runs ? width : 0;
        const float *run_gain = gain ? gain + run % rms.gains * width : NULL;
        held_row<V> h;
        float square = 0;
        hold(x + run * width, mine, &h);
#pragma unroll
        for (uint32_t i = 0; i < HELD; i++)
#pragma unroll
            for (int e = 0; e < V; e++)
                square = square + h.v[i][e] * h.v[i][e];
        const float inverse = (float)(1.0 / sqrt((double)team_sum(square) / width + 1e-6));
#pragma unroll
        for (uint32_t i = 0; i < HELD; i++) {
            const uint32_t c = column_at<V>(i);
            float g[V];
            if (c >= mine)
                continue;
#pragma unroll
            for (int e = 0; e < V; e++)
                g[e] = 1;
            if (run_gain)
                get(run_gain + c, g);
#pragma unroll
            for (int e = 0; e < V; e++)
                g[e] = h.v[i][e] * inverse * g[e] * rms.target;
            put_both(g, out, narrow, run * width + c);
        }
        if (mine && threadIdx.x == 0)
            out_inverse[run] = inverse;
    }
}

extern "C" enum mn_status mn_cuda_nn_rms(mn_cuda_nn *nn, const mn_cuda_rms *rms, const float *x,
                                         const float *gain, float *out_inverse, float *out,
                                         mn_error *error)
{
    const bool four = fours(rms->width, {x, gain, out});
    cudaLaunchConfig_t config;
    const enum mn_status status =
        rows_launch(nn, rms->runs, rms->width, four ? 4 : 1, &config, error);
    if (status || rms->runs == 0)
        return status;
    uint16_t *narrow = mn_narrow_beside(nn, out, rms->runs * rms->width);
    return launched(cudaLaunchKernelEx(&config, four ? rms_rows<4> : rms_rows<1>, *rms, x, gain,
                                       out_inverse, out, narrow),
                    error);
}

/* With n = x * inverse and e = d_out * gain * target: d_x = inverse * (e - n * mean(e * n)). */
template <int V>
static __global__ void __launch_bounds__(THREADS)
    rms_rows_grad(mn_cuda_rms rms, const float *x, const float *gain, const float *inverses,
                  const float *d_out, bool add, float *d_x, uint16_t *narrow)
{
    const uint32_t width = rms.width;
    for (uint64_t first = first_row(); first < rms.runs; first += rows_at_a_time()) {
        const uint64_t run = first + threadIdx.y;
        const uint32_t mine = run < rms.runs ? width : 0;
        const float *run_gain = gain ? gain + run % rms.gains * width : NULL;
        const float inverse = mine ? inverses[run] : 0;
        held_row<V> h, d;
        float product = 0;
        hold(x + run * width, mine, &h);
        hold(d_out + run * width, mine, &d);
#pragma unroll
        for (uint32_t i = 0; i < HELD; i++) {
            float g[V];
#pragma unroll
            for (int e = 0; e < V; e++)
                g[e] = 1;
            if (run_gain && column_at<V>(i) < mine)
                get(run_gain + column_at<V>(i), g);
#pragma unroll
            for (int e = 0; e < V; e++) {
                d.v[i][e] = d.v[i][e] * g[e];
                product = product + d.v[i][e] * h.v[i][e];
            }
        }
        const float e_n_mean = team_sum(product) * rms.target * inverse / (float)width;
#pragma unroll
        for (uint32_t i = 0; i < HELD; i++) {
            const uint32_t c = column_at<V>(i);
            float before[V] = {};
            if (c >= mine)
                continue;
            if (add)
                get(d_x + run * width + c, before);
#pragma unroll
            for (int e = 0; e < V; e++) {
                const float slope = d.v[i][e] * rms.target - h.v[i][e] * inverse * e_n_mean;
                before[e] = add ? before[e] + inverse * slope : inverse * slope;
            }
            put_both(before, d_x, narrow, run * width + c);
        }
    }
}

extern "C" enum mn_status mn_cuda_nn_rms_grad(mn_cuda_nn *nn, const mn_cuda_rms *rms,
                                              const float *x, const float *gain,
                                              const float *inverse, const float *d_out,
                                              float *d_gain, bool add, float *d_x, mn_error *error)
{
    const bool four = fours(rms->width, {x, gain, d_out, d_x});
    cudaLaunchConfig_t config;
    enum mn_status status = rows_launch(nn, rms->runs, rms->width, four ? 4 : 1, &config, error);
    if (status || rms->runs == 0)
        return status;
    if (gain) /* first: d_x may be d_out */
        status = mn_rms_gain_grad(nn, rms, x, inverse, d_out, d_gain, error);
    if (status)
        return status;
    uint16_t *narrow = mn_narrow_beside(nn, d_x, rms->runs * rms->width);
    return launched(cudaLaunchKernelEx(&config, four ? rms_rows_grad<4> : rms_rows_grad<1>, *rms, x,
                                       gain, inverse, d_out, add, d_x, narrow),
                    error);
}

/* ---- Cross entropy: a warp a row of 256 logits ---- */

static const uint32_t LOGITS = 256, PER_LANE = LOGITS / WARP, LOSS_WARPS = THREADS / WARP;

/* The likeliest byte: of equals the first. */
DEVICE void likeliest(const float (&logits)[PER_LANE], float *out_highest, uint32_t *out_byte)
{
    float highest = logits[0];
    uint32_t byte = threadIdx.x;
#pragma unroll
    for (uint32_t i = 1; i < PER_LANE; i++)
        if (logits[i] > highest)
            highest = logits[i], byte = i * WARP + threadIdx.x;
#pragma unroll
    for (int w = 16; w; w /= 2) {
        const float other = __shfl_xor_sync(ALL_LANES, highest, w);
        const uint32_t its_byte = __shfl_xor_sync(ALL_LANES, byte, w);
        if (other > highest || (other == highest && its_byte < byte))
            highest = other, byte = its_byte;
    }
    *out_highest = highest, *out_byte = byte;
}

/* nn_ops.c's row_sum: sixteen lanes, columns ascending, then the lanes in order. */
DEVICE float logits_sum(const float (&x)[PER_LANE])
{
    float lane = 0, total = 0;
#pragma unroll
    for (uint32_t i = 0; i < PER_LANE; i++) {
        lane = lane + x[i];
        lane = lane + __shfl_xor_sync(ALL_LANES, x[i], SIXTEEN);
    }
    for (uint32_t l = 0; l < SIXTEEN; l++)
        total = total + __shfl_sync(ALL_LANES, lane, (int)l);
    return total;
}

static __global__ void __launch_bounds__(THREADS)
    cross_entropy(uint64_t rows, float *logits, const uint16_t *targets, mn_cuda_loss *out_losses)
{
    __shared__ mn_cuda_loss of_warps[LOSS_WARPS];
    mn_cuda_loss loss = {0, 0, 0};
    uint64_t row = (uint64_t)blockIdx.x * LOSS_WARPS + threadIdx.y;
    for (; row < rows; row += (uint64_t)gridDim.x * LOSS_WARPS) {
        const uint32_t target = targets[row];
        float *mine = logits + row * LOGITS + threadIdx.x, x[PER_LANE], highest, of_target = 0;
        uint32_t byte;
#pragma unroll
        for (uint32_t i = 0; i < PER_LANE; i++) {
            x[i] = target < LOGITS ? mine[i * WARP] : 0;
            of_target = i == target / WARP ? x[i] : of_target;
        }
        likeliest(x, &highest, &byte);
        of_target = __shfl_sync(ALL_LANES, of_target, (int)(target % WARP));
#pragma unroll
        for (uint32_t i = 0; i < PER_LANE; i++)
            x[i] = real_exp(x[i] - highest);
        const float sum = logits_sum(x), inverse = 1 / sum;
#pragma unroll
        for (uint32_t i = 0; i < PER_LANE; i++) {
            x[i] = x[i] * inverse;
            if (i * WARP + threadIdx.x == target)
                x[i] = x[i] - 1;
            mine[i * WARP] = target < LOGITS ? x[i] : 0;
        }
        if (target < LOGITS) {
            loss.nats = loss.nats + (log((double)sum) - (double)(of_target - highest));
            loss.targets++;
            loss.correct += byte == target;
        }
    }
    if (threadIdx.x == 0)
        of_warps[threadIdx.y] = loss;
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0) {
        for (uint32_t w = 1; w < LOSS_WARPS; w++) {
            loss.nats = loss.nats + of_warps[w].nats;
            loss.targets += of_warps[w].targets, loss.correct += of_warps[w].correct;
        }
        out_losses[blockIdx.x] = loss;
    }
}

static __global__ void add_losses(uint32_t n, const mn_cuda_loss *losses, mn_cuda_loss *out_loss)
{
    mn_cuda_loss loss = {0, 0, 0};
#pragma unroll 8
    for (uint32_t i = 0; i < n; i++) {
        loss.nats = loss.nats + losses[i].nats;
        loss.targets += losses[i].targets, loss.correct += losses[i].correct;
    }
    *out_loss = loss;
}

/* Blocks depend on the rows alone, and so does the order of the sum. */
extern "C" enum mn_status mn_cuda_nn_cross_entropy(mn_cuda_nn *nn, uint64_t rows, float *logits,
                                                   const uint16_t *targets, mn_cuda_loss *out_loss,
                                                   mn_error *error)
{
    const uint64_t BLOCKS_MAX = 256;
    uint64_t blocks = (rows + LOSS_WARPS - 1) / LOSS_WARPS, used = 0;
    void *losses = NULL;
    blocks = blocks < 1 ? 1 : blocks < BLOCKS_MAX ? blocks : BLOCKS_MAX;
    const enum mn_status status =
        scratch_at(nn, blocks * sizeof(mn_cuda_loss), &used, &losses, error);
    if (status)
        return status;
    mn_narrow_forget(nn, logits, rows * LOGITS * sizeof *logits);
    cudaLaunchConfig_t config = {};
    config.blockDim = dim3(WARP, LOSS_WARPS);
    config.gridDim = dim3((unsigned)blocks);
    config.stream = nn->stream;
    cudaError_t result =
        cudaLaunchKernelEx(&config, cross_entropy, rows, logits, targets, (mn_cuda_loss *)losses);
    config.blockDim = config.gridDim = dim3(1);
    if (result == cudaSuccess)
        result = cudaLaunchKernelEx(&config, add_losses, (uint32_t)blocks,
                                    (const mn_cuda_loss *)losses, (mn_cuda_loss *)nn->number);
    if (result == cudaSuccess)
        result = cudaMemcpyAsync(nn->pinned, nn->number, sizeof *out_loss, cudaMemcpyDeviceToHost,
                                 nn->stream);
    if (result == cudaSuccess)
        result = cudaStreamSynchronize(nn->stream);
    const enum mn_status done = launched(result, error);
    if (done == MN_OK)
        *out_loss = *(const mn_cuda_loss *)nn->pinned;
    return done;
}
