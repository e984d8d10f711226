#!/usr/bin/env python3
"""Writes the golden values that tests/kernels/test_golden.c reads: what PyTorch computes.

usage: python3 -m venv VENV && VENV/bin/pip install torch && VENV/bin/python make_golden.py [FOLDER]

Each file is text: a line "# torch VERSION", then blocks of a line "name count" and count numbers,
floats in the hexadecimal notation of C (exact), whole numbers in decimal. All values are f32; the
seeds are fixed, so that another run differs only where PyTorch itself does.
"""
import os
import sys

import torch

torch.set_num_threads(1)


class File:
    def __init__(self, folder, name):
        self.path = os.path.join(folder, name + ".txt")
        self.lines = [f"# torch {torch.__version__}"]

    def put(self, name, values):
        values = torch.as_tensor(values).detach().reshape(-1)
        if values.is_floating_point():
            texts = [float(v).hex() for v in values.float()]
        else:
            texts = [str(int(v)) for v in values]
        self.lines += [f"{name} {len(texts)}", " ".join(texts)]

    def close(self):
        with open(self.path, "w") as out:
            out.write("\n".join(self.lines) + "\n")


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def optimizers(folder):
    """Rows of a [6][20] table under 4 steps: every row is touched each step, except with SparseAdam
    ("adam"), where step s leaves row s untouched: it is what "lazy" means."""
    made = {
        "sgd": lambda p: torch.optim.SGD([p], lr=0.1, weight_decay=0.01),
        "adagrad": lambda p: torch.optim.Adagrad(
            [p], lr=0.1, eps=1e-6, weight_decay=0.01, initial_accumulator_value=0.125),
        "adam": lambda p: torch.optim.SparseAdam([p], lr=0.1, betas=(0.875, 0.96875), eps=1e-6),
        "adamw": lambda p: torch.optim.AdamW(
            [p], lr=0.1, betas=(0.875, 0.96875), eps=1e-6, weight_decay=0.01),
    }
    for name, make in made.items():
        out = File(folder, "optimizer_" + name)
        table = torch.nn.Parameter(numbers(1, 6, 20))
        out.put("shape", [6, 20, 4])
        out.put("before", table)
        optimizer = make(table)
        for step in range(4):
            gradient = numbers(100 + step, 6, 20)
            if name == "adam":
                rows = [r for r in range(6) if r != step]
                gradient[step] = 0
                table.grad = torch.sparse_coo_tensor([rows], gradient[rows], (6, 20),
                                                     check_invariants=True)
            else:
                table.grad = gradient
            optimizer.step()
            out.put(f"gradient{step}", gradient)
            out.put(f"after{step}", table)
        out.close()


def embedding_bag(folder):
    out = File(folder, "embedding_bag")
    rows, dim, queries, k = 12, 24, 6, 5
    table = numbers(2, rows, dim).requires_grad_()
    weights = numbers(3, queries, k).requires_grad_()
    indices = torch.randint(0, rows, (queries, k), generator=torch.Generator().manual_seed(4))
    bags = torch.nn.functional.embedding_bag(indices, table, mode="sum", per_sample_weights=weights)
    gradient = numbers(5, queries, dim)
    bags.backward(gradient)
    out.put("shape", [rows, dim, queries, k])
    for name, values in (("table", table), ("weights", weights), ("indices", indices), ("bags", bags),
                         ("gradient", gradient), ("table_gradient", table.grad),
                         ("weight_gradient", weights.grad)):
        out.put(name, values)
    out.close()


def product_keys(folder):
    """Two topk and one over the k*k sums, as Lample et al. (2019) write it; with the gradient."""
    out = File(folder, "product_keys")
    tokens, heads, n, half, k = 7, 2, 24, 6, 8
    queries = numbers(6, tokens, heads, 2 * half).requires_grad_()
    keys = numbers(7, heads, 2, n, half).requires_grad_()
    scores = torch.einsum("thsd,hsnd->thsn", queries.reshape(tokens, heads, 2, half), keys)
    best, picked = scores.topk(k, dim=-1)
    sums = (best[:, :, 0, :, None] + best[:, :, 1, None, :]).reshape(tokens, heads, k * k)
    rows = (picked[:, :, 0, :, None] * n + picked[:, :, 1, None, :]).reshape(tokens, heads, k * k)
    top, places = sums.topk(k, dim=-1)
    gradient = numbers(8, tokens, heads, k)
    top.backward(gradient)
    out.put("shape", [tokens, heads, n, half, k])
    for name, values in (("queries", queries), ("keys", keys), ("rows", rows.gather(-1, places)),
                         ("scores", top), ("gradient", gradient), ("query_gradient", queries.grad),
                         ("key_gradient", keys.grad)):
        out.put(name, values)
    out.close()


def softmax(folder):
    out = File(folder, "softmax")
    scores = (numbers(9, 6, 32) * torch.tensor([0.1, 1, 3, 10, 30, 100])[:, None]).requires_grad_()
    weights = torch.softmax(scores, -1)
    gradient = numbers(10, 6, 32)
    weights.backward(gradient)
    out.put("shape", [6, 32])
    for name, values in (("scores", scores), ("weights", weights), ("gradient", gradient),
                         ("score_gradient", scores.grad)):
        out.put(name, values)
    out.close()


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    for make in (optimizers, embedding_bag, product_keys, softmax):
        make(folder)


main()
