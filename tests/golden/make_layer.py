#!/usr/bin/env python3
"""Writes the golden values of the memory layer that tests/trainer reads: the whole layer, forward and
backward, as PyTorch computes it in f64 (layer.txt), and numpy's Mersenne Twister with the keys that
XLM makes of it (mt19937.txt).

usage: python3 -m venv VENV && VENV/bin/pip install torch numpy && VENV/bin/python make_layer.py [FOLDER]

Text: a line "# torch VERSION" or "# numpy VERSION", then blocks of a line "name count" and count
numbers. Inputs are multiples of 2^-7, so that their decimals are exact.
"""
import itertools
import os
import sys

import numpy
import torch
import torch.nn.functional as F

TOKENS, WIDTH, HIDDEN, HEADS, KEYS, KEY_DIM, KNN, VALUE_DIM = 7, 6, 5, 2, 4, 6, 3, 5
HALF, QUERY, TEMPERATURE = KEY_DIM // 2, HEADS * KEY_DIM, 0.5


class File:
    def __init__(self, folder, name, head):
        self.path, self.lines = os.path.join(folder, name + ".txt"), ["# " + head]

    def put(self, name, values):
        values = values.detach().reshape(-1).tolist() if torch.is_tensor(values) else list(values)
        texts = [f"{v:.10g}" if isinstance(v, float) else str(v) for v in values]
        self.lines += [f"{name} {len(texts)}", " ".join(texts)]

    def close(self):
        with open(self.path, "w", encoding="ascii") as out:
            out.write("\n".join(self.lines) + "\n")


def numbers(seed, *shape):
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((drawn * 128).round() / 128).requires_grad_()


def parameters(norm, gated):
    """Those of one case, by the names of the model's segments."""
    made = {"x": numbers(1, TOKENS, WIDTH), "keys": numbers(2, HEADS, 2, KEYS, HALF),
            "values": numbers(3, KEYS * KEYS, VALUE_DIM if gated else WIDTH)}
    made["query0"] = numbers(4, WIDTH, HIDDEN if gated else QUERY)
    if gated:
        made |= {"query0.bias": numbers(5, HIDDEN), "query1": numbers(6, HIDDEN, QUERY),
                 "gate": numbers(7, WIDTH, VALUE_DIM), "projection": numbers(8, VALUE_DIM, WIDTH)}
    if norm not in ("batch", "every"):
        made["query1.bias" if gated else "query0.bias"] = numbers(9, QUERY)
    if norm != "none":
        made["query.gain"] = numbers(10, QUERY)
    if norm in ("batch", "every"):
        made["query.shift"] = numbers(11, QUERY)
    if norm == "every":
        del made["query0.bias"]
        made |= {"query0.gain": numbers(13, HIDDEN), "query0.shift": numbers(14, HIDDEN)}
    return made


def queries(p, norm, batch_norms):
    """norm "every": XLM's query.py, batch norm after each linear, before its ReLU."""
    hidden = p["x"]
    if norm == "every":
        hidden = torch.relu(batch_norms["query0"](hidden @ p["query0"]))
        return batch_norms["query"](hidden @ p["query1"])
    if "query1" in p:
        hidden = torch.relu(hidden @ p["query0"] + p["query0.bias"])
        q = hidden @ p["query1"]
    else:
        q = hidden @ p["query0"]
    if norm == "batch":
        return batch_norms["query"](q)
    q = q + p["query1.bias" if "query1" in p else "query0.bias"]
    if norm == "rms":
        q = F.rms_norm(q.reshape(TOKENS, HEADS, KEY_DIM), (KEY_DIM,), eps=1e-6)
        q = q.reshape(TOKENS, QUERY) * p["query.gain"]
    return q


def layer(p, norm, gate, batch_norms):
    """Two topk and one over the sums (Lample et al. 2019), one bag over all heads, the SwiLU gate of
    Memory+ (Berges et al. 2024) where there is one."""
    q = queries(p, norm, batch_norms).reshape(TOKENS, HEADS, 2, HALF)
    keys = p["keys"]
    if norm == "rms":
        keys = F.rms_norm(keys, (HALF,), eps=1e-6) / HALF ** 0.5
    best, picked = torch.einsum("thsd,hsnd->thsn", q, keys).topk(KNN, dim=-1)
    sums = (best[:, :, 0, :, None] + best[:, :, 1, None, :]).flatten(2)
    rows = (picked[:, :, 0, :, None] * KEYS + picked[:, :, 1, None, :]).flatten(2)
    scores, places = sums.topk(KNN, dim=-1)
    scores = scores / TEMPERATURE
    weights = torch.softmax(scores, -1) if gate == "softmax" else torch.relu(scores)
    bag = F.embedding_bag(rows.gather(-1, places).flatten(1), p["values"], mode="sum",
                          per_sample_weights=weights.flatten(1))
    if "gate" in p:
        return (bag * F.silu(p["x"] @ p["gate"])) @ p["projection"]
    return bag


def layers(folder):
    out = File(folder, "layer", f"torch {torch.__version__}")
    out.put("shape", [TOKENS, WIDTH, HIDDEN, HEADS, KEYS, KEY_DIM, KNN, VALUE_DIM])
    for norm, gate, gated in itertools.product(("batch", "none", "rms", "every"),
                                               ("softmax", "relu"), (False, True)):
        if norm == "every" and not gated:
            continue  # there is no hidden layer
        case = f"{norm}.{gate}.{'swiglu' if gated else 'plain'}"
        p = parameters(norm, gated)
        batch_norms = {}
        for place in [name[:-len(".shift")] for name in p if name.endswith(".shift")]:
            module = torch.nn.BatchNorm1d(len(p[place + ".gain"]), dtype=torch.float64)
            module.weight = torch.nn.Parameter(p[place + ".gain"])
            module.bias = torch.nn.Parameter(p[place + ".shift"])
            p[place + ".gain"], p[place + ".shift"] = module.weight, module.bias
            batch_norms[place] = module
        answer = layer(p, norm, gate, batch_norms)
        answer.backward(numbers(12, TOKENS, WIDTH).detach())
        out.put(f"{case}.out", answer)
        for name, values in p.items():
            out.put(f"{case}.{name}", values)
            out.put(f"{case}.{name}.gradient", values.grad)
        for place, module in batch_norms.items():
            out.put(f"{case}.{place}.mean", module.running_mean)
            out.put(f"{case}.{place}.variance", module.running_var)
            module.eval()
        if batch_norms:
            out.put(f"{case}.evaluated", layer(p, norm, gate, batch_norms))
    out.put("d_out", numbers(12, TOKENS, WIDTH))
    out.close()


def mersenne_twister(folder):
    """Words and doubles, beyond the first refill of 624 words; keys of 2 heads, n = 5, half = 3, seed
    2 * head + half, as xlm/model/memory/memory.py asks for them, exact in f32."""
    out = File(folder, "mt19937", f"numpy {numpy.__version__}")
    for seed in (0, 5489, 2 ** 32 - 1):
        words = numpy.random.RandomState(seed).randint(0, 2 ** 32, 1300, dtype=numpy.uint64)
        out.put(f"words.{seed}", [int(w) for w in words[[0, 1, 2, 622, 623, 624, 625, 1299]]])
    out.lines += ["doubles 8", " ".join(v.hex() for v in numpy.random.RandomState(7).random_sample(8))]
    keys = []
    for head, half in itertools.product(range(2), range(2)):
        bound = 1 / 3 ** 0.5
        drawn = numpy.random.RandomState(2 * head + half).uniform(-bound, bound, (5, 3))
        keys += [float(v).hex() for v in drawn.astype(numpy.float32).reshape(-1)]
    out.lines += [f"keys {len(keys)}", " ".join(keys)]
    out.close()


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    layers(folder)
    mersenne_twister(folder)


main()
