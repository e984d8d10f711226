#!/usr/bin/python3
"""Moves of tiles that lose their mover, or a shard, before each of their requests in turn, while a
trainer goes on. Each has a group of its own; all are on the same shards at once, since who meets a
dead mover waits ten seconds for it.

usage: moves_test.py SHARD WORKER MNEME MOVER [TEST ...]
"""
import json
import signal
import sys
import time
import unittest

from cluster import Cluster

PROGRAMS = {}
STEPS, SHARDS = 6, 3
GIVE_UP_MS = 2000
PAUSE_MS = 1000  # between steps, so that trainers still play when all movers have come
ROWS = ("rows", 1, 0, 3)  # in three chunks, one a tile, since each has a row written in step 1 or 2
BAGS = ("bags", 0, 1, 1)
BEGIN = {"rows": [(0, 6), (6, 5), (11, 5)], "bags": [(0, 2), (2, 1), (3, 1)]}
MADE = {"rows": [(0, 9), (9, 2), (11, 5)], "bags": [(0, 1), (1, 2), (3, 1)]}
# The mover has been answered all requests before this one; of the first round of HOLD, none may
# have been.
POINTS = [(way, phase, number) for way, phase, numbers in (
    (ROWS, "hold", (1, 2, 3, 4)), (ROWS, "read", (1,)), (ROWS, "write", (1, 2, 3)),
    (ROWS, "take", (1,)), (ROWS, "release", (1,)), (ROWS, "done", (1, 2, 3)),
    (ROWS, "cancel", (1, 2, 3)),
    (BAGS, "hold", (3,)), (BAGS, "write", (1,)), (BAGS, "take", (1,)), (BAGS, "release", (1,)),
    (BAGS, "done", (1, 3))) for number in numbers]


MADE_AT = ("release", "done")


def name_of(point):
    (table, *_), phase, number = point
    return f"{table}-{phase}-{number}"


def ranks_of(name):
    """Where a mover is to give up it waits for a step that lacks its second trainer."""
    return 2 if "cancel" in name else 1


def still(name):
    """A group as large in which nothing moves."""
    return "still-cancel" if "cancel" in name else "still"


class Moves(unittest.TestCase):
    def setUp(self):
        self.cluster = Cluster(PROGRAMS, SHARDS, groups=len(POINTS) + 2)
        self.addCleanup(self.cluster.__exit__)
        self.trainers = {name: [self.train(name, 0)] for name in map(name_of, POINTS)}
        for name in ("still", "still-cancel"):
            self.trainers[name] = [self.train(name, rank, 0) for rank in range(ranks_of(name))]

    def train(self, name, rank, pause_ms=PAUSE_MS):
        return self.cluster.worker(rank, ranks_of(name), STEPS, pause_ms=pause_ms, group=name)

    def told(self, name, *words):
        code, out, err = self.cluster.command("--json", *words, group=name)
        self.assertEqual((code, err), (0, ""), (name, words, out))
        return [json.loads(line) for line in out.splitlines()]

    def wait_for_a_step(self, name):
        """One that is played to its end; or, of two trainers, the first one's part of the first."""
        if ranks_of(name) == 1:
            self.trainers[name][0].wait_for("^step 2$")
            return
        end = time.monotonic() + 30
        while not any(shard["group"] == name and shard["parked"]
                      for shard in self.told(name, "status")):
            self.assertLess(time.monotonic(), end)

    def movers(self):
        """One at each point, where it waits."""
        movers = {}
        for point in POINTS:
            way, phase, number = point
            self.wait_for_a_step(name_of(point))
            movers[name_of(point)] = self.cluster.mover(
                name_of(point), *way, phase, number, GIVE_UP_MS if phase == "cancel" else 30000)
        for point in POINTS:
            mover = movers[name_of(point)]
            self.assertIsNotNone(mover.wait_for(f"^at {point[1]} {point[2]}$"), mover.lines)
        for name, trainers in self.trainers.items():
            trainers += [self.train(name, rank) for rank in range(len(trainers), ranks_of(name))]
        return movers

    def kill(self, *shards):
        for i in shards:
            self.cluster.shards[i].kill()
        for i in shards:
            self.cluster.start_shard(i)

    def held(self, name, table):
        return [(shard["tile_first"], shard["tile_count"])
                for shard in self.told(name, "describe", table)[1:]]

    def written(self, name):
        return {table["name"]: table["rows_written"] for table in self.told(name, "tables")}

    def check_tables(self):
        """All trainers end, with the tables of those whose tiles never moved."""
        ends = {}
        for name, trainers in self.trainers.items():
            for trainer in trainers:
                self.assertEqual(trainer.end(), 0, (name, trainer.lines[-3:]))
            ends[name] = {trainer.lines[-1] for trainer in trainers}
        for name, end in ends.items():
            self.assertEqual(end, ends[still(name)], name)
            self.assertRegex(*end, "^done [0-9a-f]{16}$")
            self.assertEqual(self.written(name), self.written(still(name)), name)
        self.assertNotEqual(ends["still"], ends["still-cancel"])

    def check_places(self, made=MADE_AT):
        for point in POINTS:
            (table, *_), phase, _ = point
            self.assertEqual(self.held(name_of(point), table),
                             (MADE if phase in made else BEGIN)[table], name_of(point))

    def move_again(self):
        """The same tiles, there or back; also past what a mover left at a shard that nobody has
        asked since."""
        for (table, old, new, tiles), phase, number in POINTS:
            name = name_of(((table,), phase, number))
            old, new = (new, old) if phase in MADE_AT else (old, new)
            self.told(name, "move", table, "--from", str(old), "--to", str(new), "--tiles",
                      str(tiles))
            self.assertEqual(self.held(name, table), (BEGIN if phase in MADE_AT else MADE)[table],
                             name)
        self.trainers = {name: [self.train(name, rank) for rank in range(ranks_of(name))]
                         for name in self.trainers}
        self.check_tables()

    def killed_movers(self, *shards):
        for mover in self.movers().values():
            mover.kill()
        self.kill(*shards)
        self.check_tables()
        self.check_places()
        self.move_again()

    def test_killed_movers(self):
        self.killed_movers()

    def test_killed_movers_and_shards(self):
        self.killed_movers(*range(SHARDS))

    def test_killed_shards(self):
        """At either end, one after the other; then the movers go on."""
        movers = self.movers()
        for shard in range(SHARDS):
            self.kill(shard)
        for mover in movers.values():
            mover.signal(signal.SIGUSR1)
        for name, mover in movers.items():
            gives_up = "cancel" in name
            self.assertEqual(mover.end(), 3 if gives_up else 0, (name, mover.lines))
            self.assertRegex(mover.lines[-1],
                             "^failed (DEADLINE|UNAVAILABLE) " if gives_up else r"^moved \d+$")
        self.check_tables()
        self.check_places([phase for _, phase, _ in POINTS if phase != "cancel"])


if __name__ == "__main__":
    PROGRAMS = dict(zip(("shard", "worker", "mneme", "mover"), sys.argv[1:5]))
    del sys.argv[1:5]
    unittest.main(verbosity=2)
