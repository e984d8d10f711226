"""What the kernel benches compare with in PyTorch, on one thread: one line of seconds for each line read.

usage: torch_kernels.py search|bag-384|bag-1024|bag-grad-dense|bag-grad-sparse|adamw
"""
import mmap
import sys
import time

import torch

TOKENS, READS = 4096, 128
HEADS, KEYS, HALF, KNN = 4, 1024, 128, 32
ADAMW_ROWS, ADAMW_DIM = 512 * 512, 512


def weight_on_huge_pages(rows, dim):
    memory = mmap.mmap(-1, rows * dim * 4 + (2 << 20))
    memory.madvise(mmap.MADV_HUGEPAGE)
    weight = torch.frombuffer(memory, dtype=torch.float32)[: rows * dim].view(rows, dim)
    return weight.fill_(0.5)


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def search():
    """Two matmuls, two top-k, k*k sums, top-k, softmax: the paper's reference."""
    keys = (torch.rand(HEADS, 2, KEYS, HALF) * 2 - 1) * 0.125
    queries = torch.rand(TOKENS, HEADS, 2, HALF) * 2 - 1

    def step():
        s1 = torch.einsum("thd,hnd->thn", queries[:, :, 0], keys[:, 0])
        s2 = torch.einsum("thd,hnd->thn", queries[:, :, 1], keys[:, 1])
        s1, i1 = s1.topk(KNN, dim=-1)
        s2, i2 = s2.topk(KNN, dim=-1)
        sums = (s1[..., :, None] + s2[..., None, :]).flatten(-2)
        scores, best = sums.topk(KNN, dim=-1)
        rows = (i1[..., :, None] * KEYS + i2[..., None, :]).flatten(-2).gather(-1, best)
        return rows, torch.softmax(scores, dim=-1)

    return lambda: timed(step)


def bag_inputs(rows):
    return torch.randint(rows, (TOKENS, READS)), torch.rand(TOKENS, READS)


def bag(rows, dim):
    weight = weight_on_huge_pages(rows, dim)
    indices, scores = bag_inputs(rows)
    return lambda: timed(
        lambda: torch.nn.functional.embedding_bag(indices, weight, per_sample_weights=scores, mode="sum")
    )


def bag_grad(rows, dim, sparse):
    weight = weight_on_huge_pages(rows, dim).requires_grad_()
    indices, scores = bag_inputs(rows)
    scores.requires_grad_()
    gradient = torch.rand(TOKENS, dim) - 0.5

    def step():
        weight.grad = scores.grad = None
        bags = torch.nn.functional.embedding_bag(
            indices, weight, per_sample_weights=scores, mode="sum", sparse=sparse
        )
        return timed(lambda: bags.backward(gradient))

    return step


def adamw():
    weight = weight_on_huge_pages(ADAMW_ROWS, ADAMW_DIM).requires_grad_()
    weight.grad = torch.full_like(weight, 1e-3)
    optimizer = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.1, fused=True)
    return lambda: timed(optimizer.step)


def main(mode):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    step = {
        "search": search,
        "bag-384": lambda: bag(1 << 20, 384),
        "bag-1024": lambda: bag(1 << 18, 1024),
        "bag-grad-dense": lambda: bag_grad(1 << 20, 384, False),
        "bag-grad-sparse": lambda: bag_grad(1 << 20, 384, True),
        "adamw": adamw,
    }[mode]()
    for _ in sys.stdin:
        print(step(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
