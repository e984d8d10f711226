#!/usr/bin/python3
"""Real processes under kill -9, SIGSTOP and restart: every call ends by its deadline with a typed
error, nobody hangs, no row silently starts anew, and the tables end as if nothing had happened.

usage: process_test.py SHARD WORKER MNEME [TEST ...]
"""
import json
import signal
import sys
import time
import unittest

from cluster import Cluster

PROGRAMS = {}
STEPS, RANKS, SHARDS = 12, 2, 3
HASHES = {}


def finish(workers):
    """Both ends are well, and both saw the same tables: their hash."""
    hashes = []
    for worker in workers:
        code = worker.end()
        assert code == 0, f"exit {code}: {worker.lines[-3:]}"
        hashes.append(worker.lines[-1])
    assert len(set(hashes)) == 1 and hashes[0].startswith("done "), hashes
    return hashes[0]


def undisturbed():
    """What the tables are when nothing happens; by another number of shards, so that this shows
    too."""
    if "hash" not in HASHES:
        with Cluster(PROGRAMS, 1) as cluster:
            HASHES["hash"] = finish([cluster.worker(r, RANKS, STEPS) for r in range(RANKS)])
    return HASHES["hash"]


class Processes(unittest.TestCase):
    def start(self, cluster, **options):
        options.setdefault("pause_ms", 50)
        return [cluster.worker(r, RANKS, STEPS, **options) for r in range(RANKS)]

    def test_shards_do_not_change_bits(self):
        with Cluster(PROGRAMS, SHARDS) as cluster:
            self.assertEqual(finish(self.start(cluster)), undisturbed())

    def test_hash_tells_tables_apart(self):
        with Cluster(PROGRAMS, 1) as cluster:
            other = finish([cluster.worker(r, RANKS, STEPS - 1) for r in range(RANKS)])
            self.assertNotEqual(other, undisturbed())

    def test_killed_worker_comes_back(self):
        with Cluster(PROGRAMS, SHARDS) as cluster:
            workers = self.start(cluster)
            for step in (3, 6, 9):
                workers[0].wait_for(f"^step {step}$")
                workers[1].kill()
                workers[1] = cluster.worker(1, RANKS, STEPS, pause_ms=50)
            self.assertEqual(finish(workers), undisturbed())

    def test_all_workers_killed_at_once(self):
        with Cluster(PROGRAMS, SHARDS) as cluster:
            workers = self.start(cluster, pause_ms=0)
            workers[0].wait_for("^step 5$")
            for worker in workers:
                worker.kill()
            self.assertEqual(finish(self.start(cluster)), undisturbed())

    def test_paused_worker_is_fenced(self):
        with Cluster(PROGRAMS, SHARDS) as cluster:
            workers = self.start(cluster)
            workers[0].wait_for("^step 4$")
            ghost = workers[1]
            ghost.signal(signal.SIGSTOP)
            workers[1] = cluster.worker(1, RANKS, STEPS, pause_ms=50)
            workers[1].wait_for("^joined")
            ghost.signal(signal.SIGCONT)
            self.assertEqual(ghost.end(), 3)
            self.assertRegex(ghost.lines[-1], "^failed [a-z_]+ FENCED incarnation")
            self.assertEqual(finish(workers), undisturbed())

    def test_paused_shard(self):
        with Cluster(PROGRAMS, SHARDS) as cluster:
            workers = self.start(cluster, deadline_ms=1000)
            workers[0].wait_for("^step 4$")
            cluster.shards[1].signal(signal.SIGSTOP)
            for worker in workers:
                line = worker.wait_for("^retry")
                self.assertRegex(line, "(DEADLINE|UNAVAILABLE)$")
            time.sleep(1)
            cluster.shards[1].signal(signal.SIGCONT)
            self.assertEqual(finish(workers), undisturbed())

    def test_partition_heals(self):
        with Cluster(PROGRAMS, SHARDS) as cluster:
            proxy = cluster.proxy(1)
            workers = self.start(cluster, deadline_ms=1000)
            workers[0].wait_for("^step 3$")
            proxy.flowing.clear()
            for worker in workers:
                self.assertRegex(worker.wait_for("^retry"), "(DEADLINE|UNAVAILABLE)$")
            proxy.flowing.set()
            self.assertEqual(finish(workers), undisturbed())

    def test_lost_connections(self):
        with Cluster(PROGRAMS, SHARDS) as cluster:
            proxies = [cluster.proxy(i) for i in range(SHARDS)]
            workers = self.start(cluster, pause_ms=20)
            for i in range(12):
                workers[0].wait_for(f"^step {i}$" if i else "^joined")
                proxies[i % SHARDS].hang_up()
            self.assertEqual(finish(workers), undisturbed())

    def test_killed_shard_is_unavailable(self):
        with Cluster(PROGRAMS, SHARDS) as cluster:
            workers = self.start(cluster, deadline_ms=1000, patience_s=6)
            workers[0].wait_for("^step 3$")
            cluster.shards[2].kill()
            for worker in workers:
                self.assertEqual(worker.end(), 3)
                self.assertRegex(worker.lines[-1], "^failed [a-z_]+ (UNAVAILABLE|DEADLINE) ")
            code, out, err = cluster.command("status")
            self.assertEqual(code, 1)
            self.assertRegex(err, "UNAVAILABLE: shard 2|DEADLINE: shard 2")
            self.assertRegex(out, r"(?m)^ +0  process")

    def test_restarted_shard_is_lost_until_loaded(self):
        with Cluster(PROGRAMS, SHARDS, "none") as cluster:
            workers = self.start(cluster)
            workers[0].wait_for("^step 4$")
            code, out, err = cluster.command("save", "snap")
            self.assertEqual((code, err), (0, ""), out)
            workers[0].wait_for("^step 8$")
            cluster.shards[1].kill()
            cluster.start_shard(1)
            for worker in workers:
                self.assertEqual(worker.end(), 3)
            self.assertTrue(any(" LOST " in worker.lines[-1] for worker in workers),
                            [worker.lines[-1] for worker in workers])
            successor = cluster.worker(0, RANKS, STEPS)
            self.assertEqual(successor.end(), 3)
            self.assertRegex(successor.lines[-1], "^failed open LOST ")
            code, out, _ = cluster.command("--json", "fetch", "bags", "0-95")
            self.assertEqual(code, 1)
            self.assertNotIn("values", out)
            code, out, _ = cluster.command("--json", "load", "snap")
            self.assertEqual(code, 0, out)
            self.assertGreaterEqual(json.loads(out)["step"], 4)
            self.assertEqual(finish(self.start(cluster)), undisturbed())

    def test_restarted_home_shard_is_lost(self):
        with Cluster(PROGRAMS, SHARDS, "none") as cluster:
            workers = self.start(cluster)
            workers[0].wait_for("^step 4$")
            cluster.shards[0].kill()
            cluster.start_shard(0)
            for worker in workers:
                self.assertEqual(worker.end(), 3)
                self.assertRegex(worker.lines[-1], " (LOST|UNAVAILABLE) ")
            successor = cluster.worker(1, RANKS, STEPS)
            self.assertEqual(successor.end(), 3)
            self.assertRegex(successor.lines[-1], "^failed open LOST ")

    def kill_shards_while_training(self, durability):
        with Cluster(PROGRAMS, SHARDS, durability) as cluster:
            workers = self.start(cluster)
            for step, victim in ((2, 1), (4, 0), (6, 2), (8, 1)):
                workers[0].wait_for(f"^step {step}$")
                cluster.shards[victim].kill()
                cluster.start_shard(victim)
            self.assertEqual(finish(workers), undisturbed())

    def test_killed_shards_come_back(self):
        self.kill_shards_while_training("process")

    def test_killed_shards_come_back_synced(self):
        self.kill_shards_while_training("sync")

    def test_all_shards_and_workers_killed(self):
        with Cluster(PROGRAMS, SHARDS) as cluster:
            workers = self.start(cluster, pause_ms=0)
            workers[0].wait_for("^step 5$")
            for child in cluster.shards + workers:
                child.kill()
            for i in range(SHARDS):
                cluster.start_shard(i)
            self.assertEqual(finish(self.start(cluster)), undisturbed())

    def test_load_on_other_shards(self):
        with Cluster(PROGRAMS, SHARDS) as cluster:
            workers = [cluster.worker(r, RANKS, 6) for r in range(RANKS)]
            finish(workers)
            self.assertEqual(cluster.command("save", "moved")[0], 0)
            for child in cluster.shards:
                child.kill()
            cluster.count = 2
            cluster.ports, cluster.shards = cluster.ports[:2], cluster.shards[:2]
            for i in range(2):
                self.assertRegex(cluster.refused_shard(i), "data: @[012]-of-3 holds a log of group "
                                 f"process, but this is shard {i} of 2")
                cluster.start_shard(i, "--ignore-other-logs")
            code, out, err = cluster.command("load", "moved")
            self.assertEqual((code, err), (0, ""), out)
            self.assertEqual(finish(self.start(cluster)), undisturbed())
            cluster.shards[1].kill()
            cluster.start_shard(1)  # its own log goes on where the other map's ended

    def test_second_shard_on_a_folder(self):
        with Cluster(PROGRAMS, 1) as cluster:
            first = cluster.shards[0]
            self.assertRegex(cluster.refused_shard(0, "--listen", "127.0.0.1:0"),
                             f"lock: @0-of-1/lock below .* is held by process {first.process.pid} ")
            first.kill()
            cluster.start_shard(0)


if __name__ == "__main__":
    PROGRAMS = dict(zip(("shard", "worker", "mneme"), sys.argv[1:4]))
    del sys.argv[1:4]
    unittest.main(verbosity=2)
