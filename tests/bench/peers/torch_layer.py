"""The product-key layer's training step in PyTorch, in one process: one line of seconds for each line read.

usage: torch_layer.py dense|sparse    (dense gradients with fused AdamW, or EmbeddingBag(sparse=True) with SparseAdam)
"""
import sys
import time

import torch

TOKENS, HEADS, KNN, KEYS, HALF, DIM, THREADS = 4096, 4, 32, 512, 64, 512, 2


def search(queries, keys):
    """Two sub-key products, two top-k, k*k sums, top-k, as the paper's reference has it."""
    q = queries.view(TOKENS, HEADS, 2, HALF)
    s1 = torch.einsum("thd,hnd->thn", q[:, :, 0], keys[:, 0])
    s2 = torch.einsum("thd,hnd->thn", q[:, :, 1], keys[:, 1])
    s1, i1 = s1.topk(KNN, dim=-1)
    s2, i2 = s2.topk(KNN, dim=-1)
    sums = (s1[..., :, None] + s2[..., None, :]).flatten(-2)
    rows = (i1[..., :, None] * KEYS + i2[..., None, :]).flatten(-2)
    scores, best = sums.topk(KNN, dim=-1)
    return scores, rows.gather(-1, best)


def main(mode):
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    sparse = mode == "sparse"
    keys = ((torch.rand(HEADS, 2, KEYS, HALF) * 2 - 1) * 0.125).requires_grad_()
    values = torch.nn.EmbeddingBag(KEYS * KEYS, DIM, mode="sum", sparse=sparse)
    if sparse:
        optimizer = torch.optim.SparseAdam(list(values.parameters()), lr=1e-3)
    else:
        optimizer = torch.optim.AdamW(values.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    gradient = (torch.rand(TOKENS, DIM) * 2 - 1) * 1e-3
    for _ in sys.stdin:
        queries = (torch.rand(TOKENS, HEADS, 2 * HALF) * 2 - 1).requires_grad_()
        keys.grad = None
        optimizer.zero_grad(set_to_none=True)
        start = time.perf_counter()
        scores, rows = search(queries, keys)
        weights = torch.softmax(scores, dim=-1)
        bags = values(rows.view(TOKENS, -1), per_sample_weights=weights.view(TOKENS, -1))
        bags.backward(gradient)
        optimizer.step()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
