#!/usr/bin/python3
"""The operator's command against two real shards: output for people and for programs, exit codes.

usage: cli_test.py SHARD WORKER MNEME
"""
import json
import os
import pty
import re
import select
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "process"))
from cluster import Cluster  # noqa: E402: the folder is known only now

PROGRAMS = {}
STEPS = 3


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def drawn_on(terminal):
    """Until the other end has closed, which a terminal tells as an error."""
    drawn = b""
    try:
        while True:
            drawn += os.read(terminal, 4096)
    except OSError:
        os.close(terminal)
    return drawn.decode()


class Command(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(PROGRAMS, 2).__enter__()
        assert cls.cluster.worker(0, 1, STEPS).end() == 0

    @classmethod
    def tearDownClass(cls):
        cls.cluster.__exit__()

    def run_well(self, *words):
        code, out, err = self.cluster.command(*words)
        self.assertEqual((code, err), (0, ""), out)
        return out

    def run_badly(self, expected, *words):
        code, out, err = self.cluster.command(*words)
        self.assertEqual(code, expected, out + err)
        return out + err

    def test_status(self):
        rows = self.run_well("status").splitlines()
        self.assertEqual(len(rows), 3)
        self.assertRegex(rows[0], "^shard  group +step  ranks")
        self.assertRegex(rows[2], r"^ +1  process +3 +1 +2 ")
        shards = lines(self.run_well("--json", "status"))
        self.assertEqual([s["shard"] for s in shards], [0, 1])
        for shard in shards:
            self.assertEqual((shard["group"], shard["step"], shard["ranks"]), ("process", STEPS, 1))
            self.assertEqual(shard["read_bytes_max"], 256 << 20)

    def test_tables(self):
        tables = {t["name"]: t for t in lines(self.run_well("tables", "--json"))}
        self.assertEqual(set(tables), {"bags", "rows"})
        self.assertEqual((tables["bags"]["split"], tables["rows"]["split"]), ("columns", "rows"))
        self.assertEqual(tables["rows"]["optimizer"], "adagrad")
        self.assertTrue(0 < tables["rows"]["rows_written"] <= 96)
        self.assertTrue(0 < tables["bags"]["rows_written"] <= 96)
        self.assertRegex(self.run_well("tables"), r"(?m)^bags .* KiB$")

    def test_describe(self):
        spec, *shards = lines(self.run_well("--json", "describe", "bags"))
        self.assertEqual((spec["rows"], spec["dim"], spec["seed"]), (96, 128, 1))
        self.assertEqual(spec["optimizer"]["kind"], "adamw")
        self.assertAlmostEqual(spec["optimizer"]["beta2"], 0.95, places=6)
        self.assertEqual([(s["tile_first"], s["tile_count"]) for s in shards], [(0, 2), (2, 2)])
        self.assertRegex(self.run_well("describe", "rows"), "split +by rows, 16 tiles")
        self.assertIn("NOT_FOUND", self.run_badly(1, "describe", "nothing"))

    def test_how_rows_are_read(self):
        usage = lines(self.run_well("--json", "describe", "bags"))[0]["usage"]
        self.assertEqual(usage["rows"], 96)
        self.assertGreater(usage["reads"], 0)
        self.assertTrue(0 < usage["used_percent"] <= 100 and usage["kl_weight"] > 0)
        self.assertTrue(usage["top50"] <= usage["top90"] <= usage["top99"] <= 96)
        self.assertRegex(self.run_well("describe", "bags"),
                         r"reads +%d: %.2f %% of rows used" % (usage["reads"],
                                                               usage["used_percent"]))

    def test_fetch(self):
        rows = lines(self.run_well("--json", "fetch", "bags", "5", "7-9"))
        self.assertEqual([r["row"] for r in rows], [5, 7, 8, 9])
        for row in rows:
            self.assertEqual((row["step"], len(row["values"])), (STEPS, 128))
        shown = self.run_well("fetch", "bags", "5")
        first = float(shown.split()[4])
        self.assertAlmostEqual(first, rows[0]["values"][0], places=4)
        self.assertNotEqual(rows[1]["values"], rows[2]["values"])

    def test_bad_fetch(self):
        out = self.run_badly(1, "--json", "fetch", "bags", "96")
        self.assertEqual(json.loads(out)["error"], "INVALID")
        self.assertIn("96", json.loads(out)["message"])
        self.assertIn("neither a row", self.run_badly(2, "fetch", "bags", "9-7"))
        self.assertIn("neither a row", self.run_badly(2, "fetch", "bags", "0-9999"))
        self.assertIn("NOT_FOUND", self.run_badly(1, "fetch", "nothing", "0"))

    def test_save_and_load(self):
        before = self.run_well("--json", "fetch", "rows", "0-95")
        self.run_well("save", "cli-test")
        self.assertEqual(lines(self.run_well("--json", "load", "cli-test"))[0]["step"], STEPS)
        self.assertEqual(self.run_well("--json", "fetch", "rows", "0-95"), before)
        epochs = {s["map_epoch"] for s in lines(self.run_well("--json", "status"))}
        self.assertEqual(len(epochs), 1)
        self.assertGreater(epochs.pop(), 1)
        self.assertRegex(self.run_badly(1, "load", "missing"), "NOT_FOUND|STORAGE")
        self.assertRegex(self.run_badly(1, "load", "cli-test", "--step", str(STEPS + 1)),
                         f"NOT_FOUND.*is of step {STEPS}, not of step {STEPS + 1}")
        self.run_well("load", "cli-test", "--step", str(STEPS))
        self.run_badly(2, "load", "cli-test", "--step", "0")
        self.assertIn("INVALID", self.run_badly(1, "save", "../outside"))

    def test_move(self):
        rows = [self.run_well("--json", "fetch", name, "0-95") for name in ("bags", "rows")]
        self.assertEqual(self.run_well("move", "rows", "--from", "0", "--to", "1", "--tiles", "3"),
                         f"moved 3 tiles of rows from shard 0 to shard 1 after step {STEPS}\n")
        told = lines(self.run_well("--json", "move", "bags", "--from", "1", "--to", "0"))[-1]
        self.assertEqual(told, {"moved": "bags", "tiles": 1, "from": 1, "to": 0, "step": STEPS})
        for name, held in (("rows", [(0, 5), (5, 11)]), ("bags", [(0, 3), (3, 1)])):
            spec, *shards = lines(self.run_well("--json", "describe", name))
            self.assertGreater(spec["moved"], 0)
            self.assertEqual([(s["tile_first"], s["tile_count"]) for s in shards], held)
            self.assertRegex(self.run_well("describe", name), r"tiles, moved since they were made\n")
        self.assertEqual([self.run_well("--json", "fetch", name, "0-95")
                          for name in ("bags", "rows")], rows)
        for table, old, new, said in (
                ("bags", 1, 0, 'INVALID: tiles: 1 cannot go: shard 1 holds 1 of the tiles of "bags"'),
                ("bags", 1, 3, "INVALID: to: 3 is not one of the 2 shards"),
                ("bags", 1, 1, "INVALID: to: 1 is not a neighbour of shard 1"),
                ("bags", 2, 1, "INVALID: from: 2 is not one of the 2 shards"),
                ("none", 1, 0, 'NOT_FOUND: table: shard 0: "none" is no table of group process')):
            self.assertIn(said, self.run_badly(1, "move", table, "--from", str(old), "--to",
                                               str(new)))
        for words in (["--to", "1"], ["--from", "0", "--to", "x"], ["--from", "0", "--to"],
                      ["--from", "0", "--to", "1", "--tiles", "0"]):
            self.assertIn("mneme --help", self.run_badly(2, "move", "bags", *words), words)
        self.run_well("move", "rows", "--from", "1", "--to", "0", "--tiles", "3")
        self.run_well("move", "bags", "--from", "0", "--to", "1")

    def start(self, *words, stderr=subprocess.PIPE, group="process"):
        return subprocess.Popen([PROGRAMS["mneme"], "--target", self.cluster.target(), "--group",
                                 group, *words], stdout=subprocess.PIPE, stderr=stderr, text=True)

    def test_progress(self):
        saving = self.start("--json", "save", "slowly", "--rate", "0.02")
        told = [json.loads(saving.stdout.readline())]
        self.assertEqual(told[0]["saving"], "slowly")
        self.assertLess(told[0]["bytes"], told[0]["bytes_due"])
        for shard in lines(self.run_well("--json", "status")):
            self.assertEqual((shard["files"], shard["files_path"], shard["files_step"]),
                             ("save", "slowly", STEPS))
            self.assertTrue(0 < shard["files_bytes"] < shard["files_bytes_due"])
        self.assertRegex(self.run_well("status"), r"(?m)^shard 1 saves to slowly, step %d: "
                         r"[\d.]+ K?i?B of [\d.]+ KiB \(\d+ %%\), \d+ s$" % STEPS)
        out, err = saving.communicate(timeout=60)
        told += lines(out)
        self.assertEqual((saving.returncode, err, told[-1]), (0, "", {"saved": "slowly",
                                                                     "step": STEPS}))
        done = [line["bytes"] for line in told[:-1]]
        self.assertEqual(done, sorted(done))
        self.assertGreater(done[-1], done[0])
        self.assertNotIn("files", lines(self.run_well("--json", "status"))[0])

    def test_progress_in_a_log_and_on_a_terminal(self):
        saving = self.start("save", "log", "--rate", "0.02")
        out, err = saving.communicate(timeout=60)
        self.assertEqual((saving.returncode, out.split()[0]), (0, "saved"))
        self.assertRegex(err, r"^mneme: saving to log: [\d.]+ K?i?B of [\d.]+ KiB \(\d+ %\), "
                              r"[\d.]+ K?i?B/s, \d+ s left\n")
        self.assertNotIn("\r", err)
        ours, theirs = pty.openpty()
        saving = self.start("save", "terminal", "--rate", "0.02", stderr=theirs)
        os.close(theirs)
        drawn = os.read(ours, 4096).decode()
        self.assertRegex(drawn, r"^\r\[#*\.*\] [\d.]+ K?i?B of [\d.]+ KiB \(\d+ %\)")
        saving.communicate(timeout=60)
        self.assertEqual(saving.returncode, 0)
        os.close(ours)

    def test_progress_of_a_move(self):
        """Three at once, each in a group of its own, whose rows take their time to the new shard;
        and one that waits for a step that its other trainer has not begun."""
        waits = self.cluster.worker(0, 2, 1, group="waits")
        for group in ("json", "log", "terminal"):
            self.assertEqual(self.cluster.worker(0, 1, STEPS, group=group).end(), 0)
        link = self.cluster.proxy(1)
        link.large_s = 2
        self.addCleanup(self.cluster.remove_proxy, 1)
        move = ("move", "rows", "--from", "0", "--to", "1", "--tiles", "4")
        ours, theirs = pty.openpty()
        waiting = self.start("--json", *move, group="waits")
        self.addCleanup(waiting.kill)
        told = self.start("--json", *move, group="json")
        log = self.start(*move, group="log")
        terminal = self.start(*move, group="terminal", stderr=theirs)
        os.close(theirs)
        drawn = drawn_on(ours)
        self.assertEqual(terminal.communicate(timeout=60)[0].split()[0], "moved")
        self.assertRegex(drawn, r"\r\[#+\.+\] \d+ of 24 rows \(\d+ %\)\x1b\[K")
        self.assertTrue(drawn.endswith("\r\x1b[K"), drawn)
        out, err = log.communicate(timeout=60)
        self.assertEqual((log.returncode, out.split()[0]), (0, "moved"))
        self.assertRegex(err, r"^(mneme: moving rows: \d+ of 24 rows \(\d+ %\)\n)+$")
        out, err = told.communicate(timeout=60)
        *told, moved = lines(out)
        self.assertEqual((err, moved), ("", {"moved": "rows", "tiles": 4, "from": 0, "to": 1,
                                             "step": STEPS}))
        self.assertEqual({(line["moving"], line["rows_due"]) for line in told}, {("rows", 24)})
        rows = [line["rows"] for line in told]
        self.assertEqual(rows, sorted(rows))
        self.assertTrue(0 < rows[0] < rows[-1] <= 24, rows)
        self.assertTrue(select.select([waiting.stdout], [], [], 0)[0], "it says nothing")
        self.assertEqual(json.loads(waiting.stdout.readline()),
                         {"moving": "rows", "rows": 0, "rows_due": 0})
        self.assertIsNone(waiting.poll())
        link.large_s = 0
        self.assertEqual([self.cluster.worker(1, 2, 1, group="waits").end(), waits.end()], [0, 0])
        out, err = waiting.communicate(timeout=60)
        self.assertEqual((err, lines(out)[-1]["step"]), ("", 1))

    def test_freeze(self):
        self.run_well("save", "to-freeze")
        saved = os.path.join(self.cluster.folder, "data", "to-freeze")
        out = os.path.join(self.cluster.folder, "data", "frozen")
        self.assertIn("froze step %d" % STEPS, self.run_well("freeze", saved, out))
        self.assertEqual(sorted(os.listdir(out)),
                         ["bags.frozen", "manifest.frozen", "rows.frozen"])
        self.assertIn("CONFLICT", self.run_badly(1, "freeze", saved, out))
        small = os.path.join(self.cluster.folder, "data", "small")
        told = self.run_well("--json", "freeze", saved, small, "bags", "--dtype", "int8")
        self.assertEqual(json.loads(told), {"frozen": small, "step": STEPS})
        sizes = [[os.path.getsize(os.path.join(folder, name + ".frozen"))
                  for name in ("bags", "rows")] for folder in (out, small)]
        self.assertLess(sizes[1][0], sizes[0][0])
        self.assertEqual(sizes[1][1], sizes[0][1])
        self.assertIn("NOT_FOUND", self.run_badly(1, "freeze", saved, small + "2", "x",
                                                  "--dtype", "int8"))
        self.assertIn("NOT_FOUND", self.run_badly(1, "freeze", saved + "-missing", out))
        self.assertIn("int8", self.run_badly(2, "freeze", saved, out, "--dtype", "int4"))

    def test_usage(self):
        for words in ([], ["frob"], ["fetch", "bags"], ["save"], ["status", "x"], ["--group"],
                      ["--frob", "status"], ["--deadline", "soon", "status"]):
            self.assertIn("mneme --help", self.run_badly(2, *words), words)
        self.assertIn("INVALID", self.run_badly(1, "--target", "nonsense", "tables"))
        text = self.run_badly(1, "--token", "t" * 9000, "tables")  # is not cut
        self.assertRegex(text, "authorization.*bytes are more than 4095")
        self.assertRegex(self.run_badly(1, "--token", "t\n", "tables"), "authorization.*0x0a")
        text = self.run_well("--help")
        for word in ("status", "tables", "describe", "fetch", "save", "load", "move", "freeze", "--json"):
            self.assertIn(word, text)
        self.assertTrue(all(len(line) <= 100 for line in text.splitlines()))
        self.assertRegex(self.run_well("--version"), r"^mneme \d+\.\d+\.\d+$")

    def test_nobody_there(self):
        done = subprocess.run([PROGRAMS["mneme"], "--target", "static:127.0.0.1:1", "--deadline",
                               "1", "--json", "status"], capture_output=True, text=True, timeout=30)
        self.assertEqual(done.returncode, 1)
        self.assertTrue(re.search("UNAVAILABLE|DEADLINE", json.loads(done.stdout)["error"]))
        self.assertTrue(json.loads(done.stdout)["retryable"])


if __name__ == "__main__":
    PROGRAMS = dict(zip(("shard", "worker", "mneme"), sys.argv[1:4]))
    del sys.argv[1:4]
    unittest.main(verbosity=2)
