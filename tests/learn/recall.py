#!/usr/bin/env python3
"""10,000 fixed random 4-byte keys and their random 4-byte values: with a memory of 65,536 rows a
one-layer model of width 64 gets at least 99 % of the value bytes right; without it, after as many
steps at the better of two rates, less than half. Random values can only be stored, not inferred:
this measures capacity.

usage: recall.py MNEME-TRAIN
"""
import json
import subprocess
import sys
import tempfile

COMMON = ("--task recall --pairs 10000 --width 64 --layers 1 --steps 200 --batch-bytes 4096 "
          "--closing-bytes 0 --quiet").split()
MEMORY = ("--memory-layers 1+ --keys 256 --heads 4 --knn 16 --key-dim 128 --learning-rate 0.003 "
          "--value-learning-rate 0.03").split()


def right(program, *flags):
    """Per cent of all value bytes that the trained model guesses."""
    with tempfile.NamedTemporaryFile("r") as metrics:
        subprocess.run([program, "--metrics-file", metrics.name, *COMMON, *flags], check=True)
        last = [e for e in map(json.loads, metrics) if e["event"] == "evaluation"][-1]
    assert last["bytes"] == 4 * 10000, last
    return last["correct"]


def main():
    program = sys.argv[1]
    with_memory = right(program, *MEMORY)
    without = max(right(program, "--memory-layers", "none", "--learning-rate", rate)
                  for rate in ("0.003", "0.01"))
    print(f"value bytes right: {with_memory:.2f} % with the memory, {without:.2f} % without")
    if not (with_memory >= 99 and without < 50):
        sys.exit("wanted: at least 99 % with, less than 50 % without")


if __name__ == "__main__":
    main()
