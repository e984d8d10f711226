#!/usr/bin/env python3
"""A model trained on the dictionary uses its memory: answering every bag with zeros, or from
shuffled rows, raises its loss on text it has not seen by at least 0.05 bits per byte.

usage: ablation.py MNEME-TRAIN [TEXT]
"""
import gzip
import json
import os
import subprocess
import sys
import tempfile

DICTIONARY = "/usr/share/dictd/gcide.dict.dz"
MODEL = ("--width 64 --layers 2 --attention-heads 2 --context 64 --batch-bytes 2048 "
         "--memory-layers 2+ --keys 128 --heads 4 --knn 8 --key-dim 64 --learning-rate 0.003 "
         "--value-learning-rate 0.03 --closing-bytes 65536 --ablate --quiet").split()
LEAST = 0.05


def rises(program, text, steps):
    """How much each ablation raises the loss of a model trained for so many steps."""
    with tempfile.NamedTemporaryFile("r") as metrics:
        subprocess.run([program, "--text", text, "--steps", str(steps), "--metrics-file",
                        metrics.name, *MODEL], check=True)
        events = [json.loads(line) for line in metrics]
    bits = {e["ablation"]: e["bits"] for e in events
            if e["event"] == "evaluation" and e["part"] == "test"}
    print(f"after {steps} steps: {bits}", flush=True)
    return [bits[name] - bits[""] for name in ("zeros", "shuffled")]


def main():
    program = sys.argv[1]
    with tempfile.NamedTemporaryFile() as text:
        name = sys.argv[2] if len(sys.argv) > 2 else text.name
        if name == text.name:
            if not os.path.exists(DICTIONARY):
                sys.exit(f"{DICTIONARY} is missing: install dict-gcide")
            with gzip.open(DICTIONARY) as file:
                text.write(file.read())
            text.flush()
        if not max(rises(program, name, 1)) < LEAST:
            sys.exit("an untrained memory is already missed: this test measures something else")
        if not min(rises(program, name, 250)) >= LEAST:
            sys.exit(f"wanted: rises of at least {LEAST} bits per byte")


if __name__ == "__main__":
    main()
