/* Causal attention over packed sequences: what its kernels share. */
#ifndef MN_CUDA_ATTENTION_H
#define MN_CUDA_ATTENTION_H

#include "sequences.h"

/* Passed by value. qkv and d_out: f32, or bf16 copies. */
struct attention_work {
    mn_cuda_sequences batch;
    uint32_t width, heads, dim, tiles; /* tiles: of TILE tokens, of the longest sequence */
    float scale;                       /* of the scores */
    const void *qkv, *d_out;
    const float *log_sums, *inner; /* [tokens][heads]; inner: <d_out, out> */
    float *out_log_sums, *out, *d_qkv;
    uint16_t *narrow; /* beside out, or d_qkv */
};

/* nn_attention_f32.cu, any width; nn_attention.cu's own are for bf16. */
cudaError_t mn_attend_f32(const attention_work &work, void *stream);
cudaError_t mn_attend_grad_f32(const attention_work &work, void *stream);
/* nn_attention_grad.cu */
cudaError_t mn_attend_grad_bf16(const attention_work &work, void *stream);

#endif
