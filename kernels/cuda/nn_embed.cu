/* Embeddings of bytes and of positions. Backward walks the tokens of a byte, or of a position, from
 * the first to the last: the CPU's order, so the CPU's bits. */
#include "nn_device.h"

#include "sequences.h"

template <int V>
static __global__ void __launch_bounds__(THREADS)
    embed(mn_cuda_sequences batch, uint32_t width, const uint8_t *bytes, const float *byte_table,
          const float *position_table, float *x)
{
    const uint32_t c = (blockIdx.y * blockDim.x + threadIdx.x) * V;
    uint64_t t = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; t < batch.tokens && c < width; t += (uint64_t)gridDim.x * blockDim.y) {
        const uint32_t position = (uint32_t)t - batch.starts[sequence_of(batch, (uint32_t)t)];
        float of_byte[V], of_position[V];
        get(byte_table + (uint64_t)bytes[t] * width + c, of_byte);
        get(position_table + (uint64_t)position * width + c, of_position);
#pragma unroll
        for (int e = 0; e < V; e++)
            of_byte[e] = of_byte[e] + of_position[e];
        put(of_byte, x + t * width + c);
    }
}

static const uint64_t EMBED_BLOCKS = 1 << 16;

extern "C" enum mn_status mn_cuda_nn_embed(mn_cuda_nn *nn, const mn_cuda_sequences *batch,
                                           uint32_t width, const uint8_t *bytes,
                                           const float *byte_table, const float *position_table,
                                           float *x, mn_error *error)
{
    const bool four = fours(width, {byte_table, position_table, x});
    const cudaLaunchConfig_t config =
        rows_config(width / (four ? 4 : 1), batch->tokens, EMBED_BLOCKS, nn->stream);
    mn_narrow_forget(nn, x, batch->tokens * width * sizeof *x);
    return launched(cudaLaunchKernelEx(&config, four ? embed<4> : embed<1>, *batch, width, bytes,
                                       byte_table, position_table, x),
                    error);
}

/* A warp per byte and 32 vectors of columns: it looks at the bytes of 32 * SCANNED tokens at a
 * time, and adds the rows of those that are its own, AHEAD asked for before the first is added. */
static const int SCANNED = 8, AHEAD = 8;

template <int V>
static __global__ void __launch_bounds__(WARP)
    embed_bytes_grad(uint64_t tokens, uint32_t width, const uint8_t *bytes, const float *d_x,
                     float *d_byte_table)
{
    const uint32_t lane = threadIdx.x, c = (blockIdx.y * WARP + lane) * V;
    const bool mine = c < width;
    float sum[V] = {}, rows[AHEAD][V];
    float *gradient = d_byte_table + (uint64_t)blockIdx.x * width + c;
    if (mine)
        get(gradient, sum);
    for (uint64_t first = 0; first < tokens; first += WARP * SCANNED) {
        uint32_t found[SCANNED];
#pragma unroll
        for (int s = 0; s < SCANNED; s++) {
            const uint64_t t = first + s * WARP + lane;
            found[s] = __ballot_sync(ALL_LANES, t < tokens && bytes[t] == blockIdx.x);
        }
#pragma unroll
        for (int s = 0; s < SCANNED; s++)
            while (found[s] && mine) {
                const float *base = d_x + (first + s * WARP) * width + c;
                int count = 0;
#pragma unroll
                for (int a = 0; a < AHEAD; a++)
                    if (found[s]) {
                        get(base + (uint64_t)(__ffs((int)found[s]) - 1) * width, rows[a]);
                        found[s] &= found[s] - 1;
                        count++;
                    }
#pragma unroll
                for (int a = 0; a < AHEAD; a++)
                    if (a < count)
#pragma unroll
                        for (int e = 0; e < V; e++)
                            sum[e] = sum[e] + rows[a][e];
            }
    }
    if (mine)
        put(sum, gradient);
}

template <int V>
static __global__ void __launch_bounds__(THREADS)
    embed_positions_grad(mn_cuda_sequences batch, uint32_t width, const float *d_x,
                         float *d_position_table)
{
    const uint32_t c = (blockIdx.y * blockDim.x + threadIdx.x) * V;
    uint64_t p = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    for (; p < batch.longest && c < width; p += (uint64_t)gridDim.x * blockDim.y) {
        float sum[V], row[V];
        get(d_position_table + p * width + c, sum);
#pragma unroll 4
        for (uint32_t s = 0; s < batch.sequences; s++) {
            const uint64_t t = batch.starts[s] + p;
            if (t >= batch.starts[s + 1])
                continue;
            get(d_x + t * width + c, row);
#pragma unroll
            for (int e = 0; e < V; e++)
                sum[e] = sum[e] + row[e];
        }
        put(sum, d_position_table + p * width + c);
    }
}

extern "C" enum mn_status mn_cuda_nn_embed_grad(mn_cuda_nn *nn, const mn_cuda_sequences *batch,
                                                uint32_t width, const uint8_t *bytes,
                                                const float *d_x, float *d_byte_table,
                                                float *d_position_table, mn_error *error)
{
    const bool four = fours(width, {d_x, d_byte_table, d_position_table});
    const uint32_t BYTES = 256, vectors = width / (four ? 4 : 1);
    cudaLaunchConfig_t config = {};
    config.blockDim = dim3(WARP);
    config.gridDim = dim3(BYTES, (vectors + WARP - 1) / WARP);
    config.stream = nn->stream;
    cudaError_t result =
        cudaLaunchKernelEx(&config, four ? embed_bytes_grad<4> : embed_bytes_grad<1>, batch->tokens,
                           width, bytes, d_x, d_byte_table);
    config = rows_config(vectors, batch->longest, EMBED_BLOCKS, nn->stream);
    if (result == cudaSuccess)
        result =
            cudaLaunchKernelEx(&config, four ? embed_positions_grad<4> : embed_positions_grad<1>,
                               *batch, width, d_x, d_position_table);
    return launched(result, error);
}
