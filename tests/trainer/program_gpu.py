#!/usr/bin/env python3
"""The real mneme-train on a GPU, or on the emulated one: a tiny model trained for three steps has the
losses, norms, evaluations and reads of the CPU's run, within rounding, whatever the memory; the same
bytes with tables in the GPU's memory; two ranks against servers are within rounding too. With --absent: a program whose GPU or CUDA is missing says so.

usage: program_gpu.py MNEME-TRAIN MNEME-SHARD       exit status 77: there is no GPU
       program_gpu.py --absent MNEME-TRAIN STATUS
"""
import json
import os
import subprocess
import sys
import tempfile

import program_bits

STEPS = 3
MODEL = ("--width 16 --layers 2 --attention-heads 2 --context 16 --batch-bytes 64 --keys 8 --heads 2 "
         "--knn 4 --key-dim 8 --eval-every 3 --eval-bytes 32 --closing-bytes 32 --deadline 60 --digest --quiet "
         f"--steps {STEPS}").split()
VARIANTS = {"beside, batch norm": "--memory-layers 2+ --value-clip 0.05 --query-hidden 12 "
                                  "--query-norm-hidden --generate 3",
            "shared, gated, dropout": "--memory-layers 1,2+ --shared-values --swiglu --value-dim 32 "
                                      "--query-norm rms --value-dropout 0.2 --ablate",
            "no memory": "--memory-layers none --tied"}
# The model's gradients agree to 2^-20 (gpu_model_test.c). Adam divides a gradient by its own size:
# one near zero may turn, which moves its parameter by two learning rates of 1e-3 at most; few do.
LOSS = 1e-4
LOSS_BF16 = 3e-2  # 2^-9 a factor


def fail(message):
    sys.exit(f"program_gpu: {message}")


def run(program, text, metrics, *flags):
    done = subprocess.run([program, "--text", text, "--metrics-file", metrics, *MODEL, *flags],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=200, check=False)
    if done.returncode:
        fail(f"{flags} gave {done.returncode}: {done.stderr.decode()}")
    with open(metrics, encoding="utf-8") as file:
        return [json.loads(line) for line in file][1:]  # without the options


def figures(events, names):
    return [(e["event"], name, value) for e in events for name in names if name in e
            for value in (e[name] if isinstance(e[name], list) else [e[name]])]


def apart(ours, theirs, names):
    """The largest difference of figures of these names, relative to 1 or the figure."""
    a, b = figures(ours, names), figures(theirs, names)
    if [x[:2] for x in a] != [x[:2] for x in b] or not a:
        fail(f"other events: {a}\n{b}")
    return max(abs(x[2] - y[2]) / max(1, abs(y[2])) for x, y in zip(a, b))


def compare(program, text, folder):
    for name, flags in VARIANTS.items():
        cpu, gpu, narrow, other = (
            run(program, text, f"{folder}/metrics", *flags.split(), *more.split())
            for more in ("", "--device cuda", "--device cuda --products bf16", "--seed 2"))
        worst = apart(cpu, gpu, ("bits", "norms"))
        if not worst < LOSS:
            fail(f"{name}: apart by {worst}:\n{cpu}\n{gpu}")
        if "none" not in flags and apart(cpu, gpu, ("reads", "used", "kl-count")) > 1e-9:
            fail(f"{name}: rows were read otherwise:\n{cpu}\n{gpu}")
        for more in ("--device cpu", "--device cuda", "--device cuda --products bf16"):
            near = run(program, text, f"{folder}/metrics", *flags.split(), *more.split(),
                       "--values-in", "device")
            wanted = narrow if "bf16" in more else gpu if "cuda" in more else cpu
            if near != wanted:
                fail(f"{name}: {more} has other figures with tables on the GPU:\n{wanted}\n{near}")
        worst_bf16 = apart(cpu, narrow, ("bits",))
        if not worst < worst_bf16 < LOSS_BF16:
            fail(f"{name}: with bf16 apart by {worst_bf16}")
        if apart(cpu, other, ("bits",)) < LOSS:
            fail(f"{name}: another seed has the same losses: the comparison says nothing")
        print(f"{name}: a GPU's run within {worst:.1e}, with bf16 products {worst_bf16:.1e}",
              flush=True)


def two_ranks(program, text, folder):
    flags = VARIANTS["beside, batch norm"].split()
    one = run(program, text, f"{folder}/metrics", *flags)
    with program_bits.servers(2, f"{folder}/ranks") as target:
        common = [program, "--text", text, "--target", target, "--device", "cuda", "--ranks", "2",
                  *MODEL, *flags]
        started = [subprocess.Popen([*common, "--rank", str(rank), "--metrics-file",
                                     f"{folder}/rank-{rank}"], stdout=subprocess.DEVNULL)
                   for rank in range(2)]
        for process in started:
            if process.wait(timeout=200):
                fail(f"a rank gave {process.returncode}")
    with open(f"{folder}/rank-0", encoding="utf-8") as file:
        both = [json.loads(line) for line in file][1:]
    names = ("bits", "norms")
    steps, steps_of_one = ([e for e in events if e["event"] == "step"] for events in (both, one))
    worst = apart(steps_of_one, steps, names)
    if len(steps) != STEPS or not worst < LOSS:
        fail(f"two ranks apart by {worst}:\n{steps_of_one}\n{steps}")
    print(f"two ranks, two servers: within {worst:.1e} of one CPU's", flush=True)


def absent(program, status):
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES="")
    done = subprocess.run([program, "--task", "recall", "--device", "cuda"], env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, check=False)
    if done.returncode != 1 or f"{status} [device]" not in done.stderr.decode():
        fail(f"without a GPU: {done.returncode}: {done.stderr.decode()}")
    print(f"without a GPU: {done.stderr.decode().strip()}")


def main():
    if sys.argv[1] == "--absent":
        absent(*sys.argv[2:4])
        return
    program = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        program_bits.write_text(f"{folder}/text")
        asked = subprocess.run([program, "--text", f"{folder}/text", *MODEL, "--memory-layers", "none",
                                "--steps", "0", "--device", "cuda"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, timeout=200, check=False)
        if asked.returncode == 1 and b"UNAVAILABLE [device]" in asked.stderr:
            print(asked.stderr.decode(), "nothing was compared")
            sys.exit(77)
        compare(program, f"{folder}/text", folder)
        two_ranks(program, f"{folder}/text", folder)


if __name__ == "__main__":
    main()
