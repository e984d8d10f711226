"""Shards and workers as real processes, for the process tests. Links nothing of Mneme's: it starts
the programs, kills, pauses and restarts them, and reads what they print."""
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

LARGE = 2048  # bytes: a chunk of rows, not a message without any
PATIENCE_S = 90  # a child that says nothing for so long hangs


class Child:
    """A process whose lines can be waited for."""

    def __init__(self, arguments):
        self.lines, self.arrived = [], queue.Queue()
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        text=True)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            self.arrived.put(self.lines[-1])
        self.arrived.put(None)

    def wait_for(self, pattern, patience=PATIENCE_S):
        """The first line from here on that matches; None when the process ends without one."""
        end = time.monotonic() + patience
        while True:
            try:
                line = self.arrived.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line like {pattern!r}; last: {self.lines[-5:]}") from None
            if line is None:
                self.arrived.put(None)
                return None
            if re.search(pattern, line):
                return line

    def end(self, patience=PATIENCE_S):
        try:
            code = self.process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it hangs; last lines: {self.lines[-5:]}") from None
        self.reader.join()
        self.process.stdout.close()
        return code

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdout.close()


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Proxy:
    """Stands before a shard and carries its bytes, until told to hold them back or to hang up."""

    large_s = 0  # what more than LARGE bytes at once take

    def __init__(self, port):
        self.port, self.pairs = port, []
        self.flowing = threading.Event()
        self.flowing.set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    def address(self):
        return f"127.0.0.1:{self.listener.getsockname()[1]}"

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.port))
            except OSError:
                return
            self.pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source, sink):
        try:
            while True:
                data = source.recv(65536)
                self.flowing.wait()
                if not data:
                    break
                if len(data) > LARGE:
                    time.sleep(self.large_s)
                sink.sendall(data)
        except OSError:
            pass
        self._cut(source, sink)
        source.close()

    @staticmethod
    def _cut(*sockets):
        for s in sockets:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def hang_up(self):
        pairs, self.pairs = self.pairs, []
        for pair in pairs:
            self._cut(*pair)

    def close(self):
        self._cut(self.listener)
        self.listener.close()
        self.flowing.set()
        self.hang_up()


class Cluster:
    def __init__(self, programs, shards, durability="process", groups=16):
        self.programs, self.count, self.proxies = programs, shards, {}
        self.durability, self.groups = durability, groups
        self.folder = tempfile.mkdtemp(prefix="mneme-process-")
        os.mkdir(os.path.join(self.folder, "data"))
        self.ports, self.shards, self.workers = free_ports(shards), [None] * shards, []
        for i in range(shards):
            self.start_shard(i)

    def target(self):
        addresses = [self.proxies[i].address() if i in self.proxies else f"127.0.0.1:{port}"
                     for i, port in enumerate(self.ports)]
        return "static:" + ",".join(addresses)

    def proxy(self, i):
        """Workers started from here on reach shard i through it."""
        self.proxies[i] = Proxy(self.ports[i])
        return self.proxies[i]

    def remove_proxy(self, i):
        self.proxies.pop(i).close()

    def shard_words(self, i, *more):
        return [self.programs["shard"], "--listen", f"127.0.0.1:{self.ports[i]}", "--shard", str(i),
                "--shards", str(self.count), "--data", os.path.join(self.folder, "data"),
                "--durability", self.durability, "--port-file",
                os.path.join(self.folder, f"port{i}"), "--usage-budget", "1MiB",
                "--log-cut-bytes", "64KiB", "--groups-max", str(self.groups), *more]

    def refused_shard(self, i, *more):
        """What a server that must not start says; its exit status is 1."""
        done = subprocess.run(self.shard_words(i, *more), capture_output=True, text=True,
                              timeout=30)
        assert done.returncode == 1, (done.returncode, done.stderr)
        return done.stderr

    def start_shard(self, i, *more):
        port_file = os.path.join(self.folder, f"port{i}")
        if os.path.exists(port_file):
            os.remove(port_file)
        self.shards[i] = Child(self.shard_words(i, *more))
        end = time.monotonic() + 30
        while not os.path.exists(port_file):
            assert time.monotonic() < end, f"shard {i} does not serve: {self.shards[i].lines}"
            time.sleep(0.02)

    def worker(self, rank, ranks, steps, deadline_ms=5000, pause_ms=0, patience_s=60,
               group="process"):
        return self._join(["worker", self.target(), group, rank, ranks, steps, deadline_ms,
                           pause_ms, patience_s * 1000])

    def mover(self, group, table, old, new, tiles, phase, number, deadline_ms):
        """It says "at PHASE NUMBER" before that request of the move, and waits there."""
        return self._join(["mover", self.target(), group, table, old, new, tiles, phase, number,
                           deadline_ms])

    def _join(self, words):
        child = Child([self.programs[words[0]]] + [str(word) for word in words[1:]])
        self.workers.append(child)
        return child

    def command(self, *words, group="process"):
        """mneme's exit status, standard output and standard error."""
        done = subprocess.run([self.programs["mneme"], "--target", self.target(), "--group",
                               group, *words], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in self.workers + self.shards:
            child.kill()
        for proxy in self.proxies.values():
            proxy.close()
        shutil.rmtree(self.folder, ignore_errors=True)
