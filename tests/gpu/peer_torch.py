#!/usr/bin/env python3
"""PyTorch's times for the cases of bench.c: "case seconds" lines. Exit 2: no torch, no GPU."""
import statistics
import sys

try:
    import torch
except ImportError:
    print("torch is not installed", file=sys.stderr)
    sys.exit(2)
if not torch.cuda.is_available():
    print("torch sees no GPU", file=sys.stderr)
    sys.exit(2)

ROWS = 1 << 20


def timed(work, rounds=15):
    times = []
    for number in range(-3, rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        if number >= 0:
            times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def reads(queries, k):
    return (torch.randint(ROWS, (queries, k), device="cuda"), torch.rand(queries, k, device="cuda"))


def bag(dim, k, dtype, name):
    table = torch.randn(ROWS, dim, device="cuda", dtype=dtype)
    rows, weights = reads(4096, k)
    weights = weights.to(dtype)
    return name, timed(lambda: torch.nn.functional.embedding_bag(
        rows, table, mode="sum", per_sample_weights=weights))


def bag_grad():
    """The backward alone, sparse: the dense one writes the whole table."""
    table = torch.randn(ROWS, 384, device="cuda", requires_grad=True)
    rows, weights = reads(4096, 128)
    weights.requires_grad_()
    out = torch.nn.functional.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)
    gradient = torch.randn_like(out)

    def work():
        torch.autograd.grad(out, (table, weights), gradient, retain_graph=True)
    return "bag-grad-384", timed(work)


def search(tokens=32768, heads=4, n=1024, half=128, k=32):
    queries = torch.randn(tokens, heads, 2, half, device="cuda", dtype=torch.bfloat16)
    keys = torch.randn(heads, 2, n, half, device="cuda", dtype=torch.bfloat16)

    def work():
        scores = torch.einsum("thsd,hsnd->thsn", queries, keys)
        best, index = scores.float().topk(k, dim=-1)
        sums = (best[:, :, 0, :, None] + best[:, :, 1, None, :]).flatten(2)
        picked, pairs = sums.topk(k, dim=-1)
        rows = (index[:, :, 0].gather(-1, pairs // k) * n + index[:, :, 1].gather(-1, pairs % k))
        return rows, torch.softmax(picked, dim=-1)
    return "search", timed(work)


def adamw():
    table = torch.nn.Parameter(torch.randn(ROWS, 1024, device="cuda"))
    table.grad = torch.randn_like(table)
    step = torch.optim.AdamW([table], lr=1e-3, weight_decay=0.1, fused=True)
    return "adamw", timed(step.step)


CASES = [lambda: bag(4096, 32, torch.bfloat16, "bag-4096"),
         lambda: bag(384, 128, torch.float32, "bag-384"), bag_grad, search, adamw]
for case in CASES:
    try:
        print("%s %.9f" % case(), flush=True)
    except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
        print(f"torch: {error}", file=sys.stderr)
    torch.cuda.empty_cache()
