#!/usr/bin/python3
"""Moves of tiles that lose their mover, or a shard, before each of their requests in turn, while a
trainer goes on. Each has a group of its own; all are on the same shards at once, since who meets a
dead mover waits ten seconds for it.

usage: moves_test.py SHARD WORKER MNEME MOVER [TEST ...]
"""
import json
import signal
import sys
import unittest

from cluster import Cluster

PROGRAMS = {}
STEPS, SHARDS, STILL = 6, 3, "still"
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
    (BAGS, "hold", (3,)), (BAGS, "write", (1,)), (BAGS, "take", (1,)), (BAGS, "release", (1,)),
    (BAGS, "done", (1, 3))) for number in numbers]


def name_of(point):
    (table, *_), phase, number = point
    return f"{table}-{phase}-{number}"


class Moves(unittest.TestCase):
    def setUp(self):
        self.cluster = Cluster(PROGRAMS, SHARDS, groups=len(POINTS) + 1)
        self.addCleanup(self.cluster.__exit__)
        self.trainers = {name: self.train(name, PAUSE_MS) for name in map(name_of, POINTS)}
        self.trainers[STILL] = self.train(STILL, 0)

    def train(self, name, pause_ms):
        return self.cluster.worker(0, 1, STEPS, pause_ms=pause_ms, group=name)

    def told(self, name, *words):
        code, out, err = self.cluster.command("--json", *words, group=name)
        self.assertEqual((code, err), (0, ""), (name, words, out))
        return [json.loads(line) for line in out.splitlines()]

    def movers(self):
        """One at each point, where it waits."""
        movers = {}
        for point in POINTS:
            way, phase, number = point
            self.trainers[name_of(point)].wait_for("^step 2$")
            movers[name_of(point)] = self.cluster.mover(name_of(point), *way, phase, number)
        for point in POINTS:
            mover = movers[name_of(point)]
            self.assertIsNotNone(mover.wait_for(f"^at {point[1]} {point[2]}$"), mover.lines)
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
        """All trainers end, with the tables of the one whose tiles never moved."""
        ends = {}
        for name, trainer in self.trainers.items():
            self.assertEqual(trainer.end(), 0, (name, trainer.lines[-3:]))
            ends[name] = trainer.lines[-1]
        self.assertEqual(set(ends.values()), {ends[STILL]}, ends)
        self.assertRegex(ends[STILL], "^done [0-9a-f]{16}$")
        for name in self.trainers:
            self.assertEqual(self.written(name), self.written(STILL), name)

    def check_places(self, made):
        for point in POINTS:
            (table, *_), phase, _ = point
            self.assertEqual(self.held(name_of(point), table),
                             (MADE if phase in made else BEGIN)[table], name_of(point))

    def move_again(self, made):
        """The same tiles, there or back; also past what a mover left at a shard that nobody has
        asked since."""
        for (table, old, new, tiles), phase, number in POINTS:
            name = name_of(((table,), phase, number))
            old, new = (new, old) if phase in made else (old, new)
            self.told(name, "move", table, "--from", str(old), "--to", str(new), "--tiles",
                      str(tiles))
            self.assertEqual(self.held(name, table), (BEGIN if phase in made else MADE)[table], name)
        self.trainers = {name: self.train(name, 0) for name in self.trainers}
        self.check_tables()

    def killed_movers(self, *shards):
        for mover in self.movers().values():
            mover.kill()
        self.kill(*shards)
        self.check_tables()
        made = ("release", "done")
        self.check_places(made)
        self.move_again(made)

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
            self.assertEqual(mover.end(), 0, (name, mover.lines))
            self.assertRegex(mover.lines[-1], r"^moved \d+$")
        self.check_tables()
        self.check_places([phase for _, phase, _ in POINTS])


if __name__ == "__main__":
    PROGRAMS = dict(zip(("shard", "worker", "mneme", "mover"), sys.argv[1:5]))
    del sys.argv[1:5]
    unittest.main(verbosity=2)
