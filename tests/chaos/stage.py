"""What the chaos rounds play on: shards with a disk each, trainers, and a link from every trainer
to every shard that can be cut. Links nothing of Mneme's."""
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "process"))
from cluster import Child, Proxy  # noqa: E402

SHARDS, RANKS, DEADLINE_MS = 4, 2, 1000
DISK_MIB = 512
PATIENCE_S = 60  # training that stands still for so long, with nothing in its way, hangs


class Failure(Exception):
    """The run showed something that it must not."""


def quiet_ports(count):
    """Free ports that no outgoing connection is given while their shard is dead."""
    ports = []
    while len(ports) < count:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


class Link(Proxy):
    """A proxy that outlives its shard, and can refuse connections."""

    refuses = False

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            self._join(near)

    def _join(self, near):
        try:
            if self.refuses:
                raise ConnectionRefusedError
            far = socket.create_connection(("127.0.0.1", self.port))
        except OSError:
            near.close()
            return
        self.pairs.append((near, far))
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def cut(self):
        self.refuses = True
        self.hang_up()

    def mend(self):
        self.refuses = False
        self.flowing.set()


class Stage:
    """SHARDS shards, each behind a link per trainer. Without `linked`: one shard, nothing
    between, no disk."""

    def __init__(self, programs, seed, durability="process", linked=True, pause_ms=5):
        self.programs, self.seed, self.durability = programs, seed, durability
        self.linked, self.pause_ms = linked, pause_ms
        self.folder = tempfile.mkdtemp(prefix="mneme-chaos-")
        self.last_file = os.path.join(self.folder, "last")
        self.history = []  # of (name, child), also those that were killed
        count = SHARDS if linked else 1
        self.ports = quiet_ports(count)
        self.links = [[Link(port) for port in self.ports] for _ in range(RANKS)] if linked else []
        self.mounted = []
        self.shards, self.trainers = [None] * count, [None] * RANKS
        self.movers = []

    def __enter__(self):
        for i in range(len(self.shards)):
            os.makedirs(self.disk(i))
            if self.linked:
                self._mount(self.disk(i))
            self.start_shard(i)
        for rank in range(RANKS):
            self.start_trainer(rank)
        return self

    def __exit__(self, kind, *_):
        """After a failure the folder stays."""
        for child in self.shards + self.trainers + self.movers:
            if child:
                child.kill()
        for link in sum(self.links, []):
            link.close()
        if kind is not None:
            self._keep()
        for path in self.mounted:
            subprocess.run(["umount", path], check=False, stderr=subprocess.DEVNULL)
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    # ---- Disks

    def disk(self, i):
        return os.path.join(self.folder, f"disk{i}")

    def _mount(self, path):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", path],
                              check=False, stderr=subprocess.DEVNULL)
        if done.returncode == 0:
            self.mounted.append(path)

    def disks_are_small(self):
        return len(self.mounted) == len(self.shards)

    def fill_disk(self, i):
        with open(os.path.join(self.disk(i), "filler"), "ab", buffering=0) as filler:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while filler.write(bytes(size)) == size:
                        pass
                except OSError:
                    pass

    def free_disk(self, i):
        if os.path.exists(os.path.join(self.disk(i), "filler")):
            os.remove(os.path.join(self.disk(i), "filler"))

    # ---- Processes

    def start_shard(self, i):
        disk = ["--data", self.disk(i), "--durability", self.durability, "--log-cut-bytes",
                "64KiB"] if self.linked else []
        self.shards[i] = Child([self.programs["shard"], "--listen", f"127.0.0.1:{self.ports[i]}",
                                "--shard", str(i), "--shards", str(len(self.shards)),
                                "--usage-budget", "1MiB"] + disk)
        self.history.append((f"shard-{i}", self.shards[i]))

    def target(self, rank):
        if self.linked:
            return "static:" + ",".join(link.address() for link in self.links[rank])
        return "static:" + ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def start_trainer(self, rank):
        self.trainers[rank] = Child([self.programs["worker"], self.target(rank), str(rank),
                                     str(RANKS), str(self.seed), self.last_file,
                                     str(DEADLINE_MS), str(self.pause_ms)])
        self.history.append((f"trainer-{rank}", self.trainers[rank]))

    def start_mover(self, table, old, new):
        """Past the links, whose faults are the trainers'."""
        target = "static:" + ",".join(f"127.0.0.1:{port}" for port in self.ports)
        self.movers.append(Child([self.programs["mneme"], "--target", target, "--group", "chaos",
                                  "--deadline", "20", "move", table, "--from", str(old), "--to",
                                  str(new)]))
        self.history.append(("mover", self.movers[-1]))
        return self.movers[-1]

    # ---- Progress

    def step_of(self, rank):
        """The last step that the trainer told of; -1 before it has joined."""
        for line in reversed(self.trainers[rank].lines):
            match = re.match(r"(?:step|joined) (\d+)$", line)
            if match:
                return int(match.group(1))
        return -1

    def check_alive(self):
        for name, child in self.history:
            if child not in self.shards + self.trainers or child.process.poll() is None:
                continue
            child.reader.join()
            raise Failure(f"{name} ended with {child.process.returncode}: {child.lines[-3:]}")

    def wait_for_step(self, step, patience_s=PATIENCE_S):
        end = time.monotonic() + patience_s
        while min(self.step_of(rank) for rank in range(RANKS)) < step:
            self.check_alive()
            if time.monotonic() > end:
                raise Failure(f"training stands still: {[t.lines[-3:] for t in self.trainers]}")
            time.sleep(0.005)

    def wait_for_progress(self):
        """Two steps: the first may have been nearly done."""
        self.wait_for_step(max(self.step_of(rank) for rank in range(RANKS)) + 2)

    def set_last(self, step):
        with open(self.last_file + ".new", "w", encoding="ascii") as file:
            file.write(f"{step}\n")
        os.rename(self.last_file + ".new", self.last_file)

    def finish(self):
        """What both trainers say of the tables in the end."""
        ends = set()
        for child in self.trainers:
            try:
                code = child.end(PATIENCE_S * 10)
            except AssertionError as error:
                raise Failure(str(error)) from None
            if code:
                raise Failure(f"a trainer ended with {code}: {child.lines[-3:]}")
            ends.add(child.lines[-1])
        if len(ends) != 1:
            raise Failure(f"the trainers see different tables: {ends}")
        return ends.pop()

    def told(self):
        """How often a trainer made a call again, by status, and a shard told of its log, by event:
        so it shows that the faults were felt."""
        counts = {}
        for _, child in self.history:
            for line in child.lines:
                match = re.match(r"retry \S+ (\w+)$", line) or re.match(
                    r"(moved) \d", line) or re.search(
                    r"event=(log_\w+|image\w*|tidy) ", line)
                if match:
                    counts[match.group(1)] = counts.get(match.group(1), 0) + 1
        return counts

    def _keep(self):
        """What a failing run leaves behind, for whoever looks into it."""
        for number, (name, child) in enumerate(self.history):
            with open(os.path.join(self.folder, f"{number:03}-{name}.log"), "w",
                      encoding="utf-8") as file:
                file.writelines(line + "\n" for line in child.lines)
        for i in range(len(self.shards)):
            if self.disk(i) in self.mounted:
                shutil.copytree(self.disk(i), os.path.join(self.folder, f"kept-disk{i}"),
                                ignore=shutil.ignore_patterns("filler"))
        print(f"what every process said, and the disks: {self.folder}")
