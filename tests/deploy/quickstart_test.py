#!/usr/bin/python3
"""deploy/quickstart as a new user meets it, with a small model: every item of its closing table, the
commands that it ends with, what is left when it is interrupted, and what it says of wrong flags.

usage: quickstart_test.py QUICKSTART BUILD
"""
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

QUICKSTART, BUILD = sys.argv[1:3]
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(QUICKSTART)))
MODEL = ("--width 32 --layers 2 --attention-heads 2 --context 32 --batch-bytes 512 --memory-layers 2+ "
         "--keys 16 --heads 2 --knn 4 --key-dim 16 --closing-bytes 2048").split()
NUMBER = r" +-?[\d.,]+"
# What the closing table has to say, in its order.
TABLE = [
    r"test: [\d,]+ bytes held out, after 6 steps",
    f"  bits per byte{NUMBER}", f"  gzip -9{NUMBER}", f"  xz -9{NUMBER}",
    r"  memory answered by zeros +[+-][\d.]+", r"  memory rows shuffled +[+-][\d.]+",
    r"memory values2: 256 rows x 32 f32", f"  reads counted{NUMBER}",
    rf"  rows used{NUMBER} % +\(uniform reads: [\d.]+ %\)",
    rf"  KL by count{NUMBER} +\(uniform reads: [\d.]+\)",
    r"milliseconds a step", f"  dense{NUMBER}", f"  search{NUMBER}", f"  waiting for bags{NUMBER}",
    f"  waiting for gradients{NUMBER}", f"  commit{NUMBER}",
    r"megabytes a step on the wire", rf"  memory: all the rest{NUMBER} +\(raw rows .*: [\d.]+",
    r"200 bytes written by the model",
    r"The same model without a memory", r"bits per byte: [\d.]+ with the memory, [\d.]+ without",
    r"Try next:", r"  deploy/quickstart --compare", r"  \S+/mneme-train ", r"  tests/run",
]


def missing(table, lines):
    """The first pattern that no line matches behind the line of the one before; None: all do."""
    at = 0
    for pattern in table:
        while at < len(lines) and not re.match(pattern, lines[at]):
            at += 1
        if at == len(lines):
            return pattern
    return None


class Quickstart(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.out = f"{self.folder.name}/out"
        random.seed(4)
        with open(f"{self.folder.name}/a text", "w", encoding="ascii") as file:
            while file.tell() < 200000:
                file.write("".join(random.choices("etaoin shrdlu", k=7)) + random.choice("\n "))

    def start(self, *words):
        """All its paths are the caller's, who stands elsewhere."""
        path, build = (os.path.relpath(it, self.folder.name) for it in (QUICKSTART, BUILD))
        process = subprocess.Popen([path, *words], cwd=self.folder.name, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   start_new_session=True,
                                   env=dict(os.environ, MN_BUILD=build, MN_OUT="out"))
        self.addCleanup(self.end, process)
        return process

    @staticmethod
    def end(process):
        """Whatever of it is left: a test has failed."""
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.stdout.close()
        process.wait()

    def run_it(self, *words):
        process = self.start(*words)
        said = process.communicate(timeout=120)[0]
        return process.returncode, said

    def training(self, *words):
        """Trains for longer than the test takes; its four servers are up."""
        process = self.start("--text", "a text", "--steps", "1000000", *words, "--", *MODEL)
        for line in process.stdout:
            if line.startswith("model "):
                return process
        self.fail(f"it ended: {process.wait()}")

    def check_stopped(self):
        for i in range(4):
            with open(f"{self.out}/shard-{i}.port", encoding="ascii") as file, \
                    socket.socket() as probe:
                self.assertNotEqual(probe.connect_ex(("127.0.0.1", int(file.read()))), 0, i)

    def test_all_that_it_shows(self):
        for _ in range(2):  # it is safe to run again
            code, said = self.run_it("--text", "a text", "--steps", "06", "--compare", "--", *MODEL)
            self.assertEqual(code, 0, said)
            self.check_stopped()
            lines = said.splitlines()
            self.assertIsNone(missing(TABLE, lines), said)
        for word in ("  gzip", "  commit", "Try next:"):  # the check can fail
            at = next(i for i, line in enumerate(lines) if line.startswith(word))
            self.assertIsNotNone(missing(TABLE, lines[:at] + lines[at + 1:]))
        self.go_on(said)

    def go_on(self, said):
        """The command that it ends with trains on from where the servers were."""
        command = re.search(r"^  (\S+/mneme-train .*\\\n.*)$", said, re.MULTILINE).group(1)
        self.assertIn("--steps 506 ", command)
        done = subprocess.run(command.replace("--steps 506 ", "--steps 8 "), shell=True, cwd=ROOT,
                              capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("after 8 steps", done.stdout)

    def test_interrupted(self):
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)):
            process = self.training()
            if number == signal.SIGINT:  # as a terminal does, to all of them
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            began = time.monotonic()
            process.communicate(timeout=60)
            self.assertEqual(process.returncode, status)
            self.assertLess(time.monotonic() - began, 20)
            self.check_stopped()

    def test_two_at_once(self):
        first = self.training()
        code, said = self.run_it("--text", "a text", "--steps", "6", "--", *MODEL)
        self.assertEqual((code, said), (1, f"{self.out} is in use by another deploy/quickstart\n"))
        self.assertIsNone(first.poll())
        first.terminate()
        first.communicate(timeout=60)

    def test_flags(self):
        code, said = self.run_it("--help")
        self.assertEqual(code, 0)
        for word in ("usage: deploy/quickstart", "--steps N", "--text FILE", "--compare", "MN_OUT="):
            self.assertIn(word, said)
        for words, says in ((["--steps", "six"], "--steps six is no number"),
                            (["--steps"], "--steps needs a value"),
                            (["--text", "gone"], "--text .*/gone is no file"),
                            (["--text", "."], "--text .* is no file"), (["six"], "six is no flag")):
            code, said = self.run_it(*words)
            self.assertEqual(code, 2)
            self.assertRegex(said, says)
        code, said = self.run_it("--text", "a text", "--steps", "6", "--", "--knn", "5000")
        self.assertEqual(code, 2, said)
        self.assertIn("INVALID [knn] --knn 5000", said)
        self.check_stopped()


if __name__ == "__main__":
    del sys.argv[1:3]
    unittest.main(verbosity=2)
