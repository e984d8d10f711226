#!/usr/bin/python3
"""Rounds of seeded faults against real shards and trainers; see `run`."""
import argparse
import random
import signal
import sys
import time

from self_test import self_test
from stage import RANKS, SHARDS, Failure, Stage

LAST_STEPS = 20  # played after the last round


# ---- Faults: each begins, lasts for a while, and ends with nothing in the way

class Fault:
    def __init__(self, stage, dice):
        self.stage = stage
        self.shard, self.rank = dice.randrange(SHARDS), dice.randrange(RANKS)
        self.seconds = dice.uniform(0.02, 0.6)


class KillShard(Fault):
    def begin(self):
        self.stage.shards[self.shard].kill()

    def end(self):
        if self.stage.shards[self.shard].process.poll() is not None:
            self.stage.start_shard(self.shard)

    def __str__(self):
        return f"kill shard {self.shard}"


class StopShard(Fault):
    def begin(self):
        self.seconds *= 3  # beyond the deadline of calls at times
        self.stage.shards[self.shard].signal(signal.SIGSTOP)

    def end(self):
        self.stage.shards[self.shard].signal(signal.SIGCONT)

    def __str__(self):
        return f"stop shard {self.shard}"


class KillTrainer(Fault):
    def begin(self):
        self.stage.trainers[self.rank].kill()

    def end(self):
        if self.stage.trainers[self.rank].process.poll() is not None:
            self.stage.start_trainer(self.rank)

    def __str__(self):
        return f"kill trainer {self.rank}"


class CutLink(Fault):
    def begin(self):
        self.stage.links[self.rank][self.shard].cut()

    def end(self):
        self.stage.links[self.rank][self.shard].mend()

    def __str__(self):
        return f"cut trainer {self.rank} - shard {self.shard}"


class HoldLink(Fault):
    def begin(self):
        self.seconds *= 3
        self.stage.links[self.rank][self.shard].flowing.clear()

    def end(self):
        self.stage.links[self.rank][self.shard].mend()

    def __str__(self):
        return f"hold trainer {self.rank} - shard {self.shard}"


class FillDisk(Fault):
    def begin(self):
        self.stage.fill_disk(self.shard)

    def end(self):
        self.stage.free_disk(self.shard)

    def __str__(self):
        return f"fill disk of shard {self.shard}"


class MoveTiles(Fault):
    """To a neighbour; of the table of rows, since the other's shards have one each. The mover goes
    on after the round, unless it dies here, halfway."""

    def __init__(self, stage, dice):
        super().__init__(stage, dice)
        self.to = self.shard + 1 if self.shard == 0 else self.shard - 1
        if 0 < self.shard < SHARDS - 1 and dice.random() < 0.5:
            self.to = self.shard + 1
        self.dies = dice.random() < 0.3
        self.seconds /= 5 if self.dies else 1

    def begin(self):
        self.mover = self.stage.start_mover("rows", self.shard, self.to)

    def end(self):
        if self.dies:
            self.mover.kill()

    def __str__(self):
        return (f"move a tile from shard {self.shard} to {self.to}"
                f"{', and kill the mover' if self.dies else ''}")


FAULTS = {"kill-shard": KillShard, "stop-shard": StopShard, "kill-trainer": KillTrainer,
          "cut-link": CutLink, "hold-link": HoldLink, "fill-disk": FillDisk,
          "move-tiles": MoveTiles}


def deal(stage, dice, names):
    """For each round one fault, at times two at once; every kind comes once before any again."""
    deck = []
    while True:
        count = 2 if dice.random() < 0.25 else 1
        while len(deck) < count:
            deck += dice.sample(names, len(names))
        yield [FAULTS[deck.pop(0)](stage, dice) for _ in range(count)]


# ---- Rounds

def play_round(stage, faults, number):
    """Seconds until training went on."""
    step = max(stage.step_of(rank) for rank in range(RANKS))
    for fault in faults:
        fault.begin()
    for fault in faults:
        time.sleep(fault.seconds)
        fault.end()
    ended = time.monotonic()
    try:
        stage.wait_for_progress()
    except Failure as failure:
        raise Failure(f"round {number}, {' and '.join(map(str, faults))}, after step {step}: "
                      f"{failure}") from None
    waited = time.monotonic() - ended
    lasted = " and ".join(f"{fault} for {fault.seconds:.2f} s" for fault in faults)
    print(f"round {number}: after step {step}: {lasted}; training went on after {waited:.2f} s",
          flush=True)
    return waited


def undisturbed(programs, seed, last):
    with Stage(programs, seed, linked=False, pause_ms=0) as stage:
        stage.set_last(last)
        return stage.finish()


def play(programs, rounds, seed, names):
    began, dice, counts, waits = time.monotonic(), random.Random(seed), {}, []
    with Stage(programs, seed) as stage:
        if not stage.disks_are_small() and "fill-disk" in names:
            print("fill-disk is skipped: no small disk can be mounted here")
            names = [name for name in names if name != "fill-disk"]
        stage.wait_for_step(2)
        dealt = deal(stage, dice, names)
        for number in range(1, rounds + 1):
            faults = next(dealt)
            time.sleep(dice.uniform(0, 0.4))
            waits.append(play_round(stage, faults, number))
            for fault in faults:
                name = type(fault).__name__
                counts[name] = counts.get(name, 0) + 1
        last = max(stage.step_of(rank) for rank in range(RANKS)) + LAST_STEPS
        stage.set_last(last)
        disturbed, told = stage.finish(), stage.told()
        expected = undisturbed(programs, seed, last)
        if disturbed != expected:
            raise Failure(f"the tables differ: {disturbed}, undisturbed {expected}")
    waits.sort()
    print(f"calls made again, what shards told of logs and images: {told}")
    print(f"{rounds} rounds, {last} steps, tables equal: {counts}, training went on after "
          f"{waits[len(waits) // 2]:.2f} s (median), {waits[-1]:.2f} s (most), "
          f"{time.monotonic() - began:.0f} s, seed {seed}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=",".join(FAULTS))
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("--shard", required=True)
    parser.add_argument("--worker", required=True)
    parser.add_argument("--mneme", required=True)
    flags = parser.parse_args()
    programs = {"shard": flags.shard, "worker": flags.worker, "mneme": flags.mneme}
    names = flags.only.split(",")
    if flags.rounds < 1 or not set(names) <= set(FAULTS):
        parser.error(f"rounds are 1 or more, faults of {', '.join(FAULTS)}")
    try:
        if flags.self_test:
            self_test(programs, undisturbed)
        else:
            play(programs, flags.rounds, flags.seed, names)
    except Failure as failure:
        print(f"FAILED, seed {flags.seed}: {failure}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
