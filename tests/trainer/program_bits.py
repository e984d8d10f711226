#!/usr/bin/env python3
"""The real mneme-train and mneme-shard: a tiny model trained for eight steps gives the same losses,
norms, evaluations and tables, byte for byte, inside one process and over 1, 2, 3 and 5 servers;
resumed from the checkpoint named too, on another number of servers; two ranks come within rounding.

usage: program_bits.py MNEME-TRAIN MNEME-SHARD
"""
import contextlib
import glob
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

TRAIN, SHARD = sys.argv[1:3]
STEPS, SAVE = 8, 4
MODEL = ("--width 32 --layers 2 --attention-heads 2 --context 32 --batch-bytes 512 --keys 32 "
         "--heads 2 --knn 8 --key-dim 16 --eval-every 4 --eval-bytes 512 --closing-bytes 1024 "
         "--deadline 30 --ablate --digest --quiet").split()
VARIANTS = {"beside": "--memory-layers 2+ --value-clip 0.05 --query-hidden 24 --query-norm-hidden",
            "bf16, shared, gated": "--memory-layers 1,2+ --shared-values --swiglu --value-dim 128 "
                                   "--value-dtype bf16 --query-norm rms --query-hidden 24,20 "
                                   "--key-init xlm --value-dropout 0.2"}


def fail(message):
    sys.exit(f"program_bits: {message}")


def write_text(path):
    """200 kB of made-up words."""
    random.seed(4)
    words = ["".join(random.choices("etaoinshrdlu", k=random.randint(2, 7))) for _ in range(400)]
    with open(path, "w", encoding="ascii") as file:
        while file.tell() < 200000:
            file.write(random.choice(words) + random.choice(["\n", " ", " ", " "]))


@contextlib.contextmanager
def servers(count, folder):
    """`count` servers on ports of their own; gives the target that names them."""
    os.makedirs(f"{folder}/data", exist_ok=True)
    started, ports = [], []
    try:
        for i in range(count):
            ports.append(f"{folder}/port-{i}")
            if os.path.exists(ports[i]):
                os.remove(ports[i])
            started.append(subprocess.Popen(
                [SHARD, "--listen", "127.0.0.1:0", "--shard", str(i), "--shards", str(count),
                 "--data", f"{folder}/data", "--port-file", ports[i], "--log-level", "warning",
                 "--ignore-other-logs"]))  # of another count: what was saved is loaded
        addresses = []
        for process, port in zip(started, ports):
            give_up = time.monotonic() + 20
            while not (os.path.exists(port) and open(port, encoding="ascii").read().strip()):
                if process.poll() is not None or time.monotonic() > give_up:
                    fail("a server did not start")
                time.sleep(0.02)
            addresses.append("127.0.0.1:" + open(port, encoding="ascii").read().strip())
        yield "static:" + ",".join(addresses)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(timeout=20)


class Runs:
    """Starts mneme-train and reads what it wrote."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0
        self.text = f"{folder}/text"
        write_text(self.text)

    def start(self, target, *flags, stderr=None):
        self.count += 1
        metrics = f"{self.folder}/metrics-{self.count}"
        process = subprocess.Popen([TRAIN, "--text", self.text, "--target", target, "--steps",
                                    str(STEPS), "--metrics-file", metrics, *MODEL, *flags],
                                   stderr=stderr)
        return process, metrics

    def run(self, target, *flags):
        process, metrics = self.start(target, *flags)
        if process.wait(timeout=120) != 0:
            fail(f"mneme-train {target} {flags} gave {process.returncode}")
        with open(metrics, "rb") as file:
            return file.read()


def must_equal(name, wanted, got):
    if wanted != got:
        for a, b in zip(wanted.splitlines(), got.splitlines()):
            if a != b:
                fail(f"{name}: differs first at\n  {a.decode()}\n  {b.decode()}")
        fail(f"{name}: one has {len(wanted)} bytes, the other {len(got)}")
    print(f"{name}: the same bytes", flush=True)


def after(metrics, step):
    """The lines of later steps: what a run resumed at `step` must write."""
    out = []
    for line in metrics.splitlines():
        event = json.loads(line)
        if event["event"] in ("usage", "digest") or event.get("step", 0) > step:
            out.append(line)
    return b"\n".join(out)


def same_bits(runs, name, flags):
    wanted = runs.run("local:", *flags)
    must_equal(f"{name}: local:, again", wanted, runs.run("local:", *flags))
    must_equal(f"{name}: local:, three shards", wanted,
               runs.run("local:", "--local-shards", "3", *flags))
    for count in (1, 2, 3, 5):
        with servers(count, f"{runs.folder}/servers-{count}") as target:
            must_equal(f"{name}: {count} servers", wanted,
                       runs.run(target, "--group", name.split(",")[0], *flags))
    return wanted


def resumes(runs, wanted, flags):
    local = f"local:{runs.folder}/local"
    saved = ["--save", "checkpoints", "--save-every", str(SAVE)]
    resume = ["--resume", f"checkpoints/step-{SAVE}"]
    must_equal("saving on the way", wanted, runs.run(local, *saved, *flags))
    must_equal("resumed, local:", after(wanted, SAVE), runs.run(local, *resume, *flags)[:-1])
    with servers(3, f"{runs.folder}/saved") as target:
        must_equal("saving, 3 servers", wanted, runs.run(target, *saved, *flags))
    with servers(2, f"{runs.folder}/saved") as target:
        must_equal("resumed, 2 servers", after(wanted, SAVE),
                   runs.run(target, *resume, *flags)[:-1])
    for where in (local, None):
        refuses_others(runs, where, flags)


def refuses_others(runs, target, flags):
    """A checkpoint that is missing, damaged or another step's is refused by its name, never another
    taken in its place; the one that was named goes on."""
    if target is None:
        with servers(3, f"{runs.folder}/saved") as servers_target:
            refuses_others(runs, servers_target, flags)
        return
    data = target[6:] if target.startswith("local:") else f"{runs.folder}/saved/data"
    checkpoints = f"{data}/checkpoints"
    shutil.copytree(f"{checkpoints}/step-{STEPS}", f"{checkpoints}/step-6")
    shutil.copytree(f"{checkpoints}/step-{SAVE}", f"{checkpoints}/damaged")
    tile = sorted(glob.glob(f"{checkpoints}/damaged/*.tile"))[0]
    with open(tile, "r+b") as file:
        file.seek(os.path.getsize(tile) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    shutil.copytree(f"{checkpoints}/step-{SAVE}", f"{checkpoints}/incomplete")
    gone = sorted(glob.glob(f"{checkpoints}/incomplete/*.tile"))[-1]
    os.remove(gone)
    for name, words in (("step-7", "NOT_FOUND"), ("step-6", "is of step 9, not of step 7"),
                        ("damaged", os.path.basename(tile)),
                        ("incomplete", os.path.basename(gone))):
        process, _ = runs.start(target, "--resume", f"checkpoints/{name}", *flags,
                                stderr=subprocess.PIPE)
        said = process.communicate(timeout=120)[1].decode()
        if process.returncode != 1 or words not in said or f"checkpoints/{name}" not in said:
            fail(f"--resume {name} gave {process.returncode}: {said}")
    for name in ("step-6", "damaged", "incomplete"):
        shutil.rmtree(f"{checkpoints}/{name}")
    runs.run(target, "--resume", f"checkpoints/step-{STEPS}", *flags)
    print("missing, damaged, incomplete and wrong checkpoints: refused by name", flush=True)


def events(metrics, kind):
    return [e for e in map(json.loads, metrics.splitlines()) if e["event"] == kind]


def losses(metrics):
    return [e["bits"] for e in events(metrics, "step")]


def two_ranks(runs, name, wanted, flags):
    with servers(2, f"{runs.folder}/ranks-{name}") as target:
        started = [runs.start(target, "--ranks", "2", "--rank", str(rank), *flags)
                   for rank in range(2)]
        for process, _ in started:
            if process.wait(timeout=120) != 0:
                fail(f"a rank gave {process.returncode}")
    with open(started[0][1], "rb") as file:
        metrics = file.read()
    got = losses(metrics)
    apart = max(abs(a - b) for a, b in zip(losses(wanted), got))
    if len(got) != STEPS or not apart < 1e-3:
        fail(f"two ranks: {got}\none rank: {losses(wanted)}")
    # Clipping goes by the gradients merged over ranks, where rows are read by both.
    norms, one = [[e["norms"][2] for e in events(m, "step")] for m in (metrics, wanted)]
    if not max(one) > 0.06 or any(not abs(a / b - 1) < 1e-4 for a, b in zip(norms, one)):
        fail(f"values' norms of two ranks: {norms}\none rank: {one}")
    # Reads are summed over ranks before anything is computed from them.
    for kind in ("usage", "usage-layer", "usage-head", "train-usage"):
        for ours, theirs in zip(events(metrics, kind), events(wanted, kind), strict=True):
            if ours["reads"] != theirs["reads"] or \
               not abs(ours["kl-count"] - theirs["kl-count"]) < 1e-2:
                fail(f"usage of two ranks: {ours}\none rank: {theirs}")
    print(f"two ranks, {name}: losses within {apart:.2g} bits of one rank's", flush=True)


def main():
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(folder)
        wanted = {name: same_bits(runs, name, flags.split()) for name, flags in VARIANTS.items()}
        flags = VARIANTS["beside"].split()
        resumes(runs, wanted["beside"], flags)
        two_ranks(runs, "plain", wanted["beside"], flags)
        flags_dropout = flags + ["--value-dropout", "0.4"]
        dropped = runs.run("local:", *flags_dropout)
        two_ranks(runs, "dropout", dropped, flags_dropout)
        if max(abs(a - b) for a, b in zip(losses(dropped), losses(wanted["beside"]))) < 1e-2:
            fail("dropout changes nothing: its comparison says nothing")
        # The comparison can fail: another seed, and a bf16 table, give other bytes.
        if losses(runs.run("local:", "--seed", "2", *flags)) == losses(wanted["beside"]):
            fail("another seed gave the same losses")
        if wanted["beside"].splitlines()[-1] == wanted["bf16, shared, gated"].splitlines()[-1]:
            fail("another table gave the same digest")


if __name__ == "__main__":
    main()
