#!/usr/bin/python3
"""A real mneme-shard under callers that mean it ill, or know no better: whatever they ask for is
bounded by a named maximum and refused with a typed status, the server's memory stays below a bound
that its flags add up to, and when they stop it serves as before.

The negative tests of other systems' failures (each is named by its behaviour) are here, too, where
no other test has them.
"""
import signal
import socket
import struct
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

import grpc

import mneme_pb2 as pb
from shard_process import Caller, Failure, Shard, parked, sealing_client

MIB = 1 << 20
# What the flags below let it take, and what the program and gRPC take besides.
BUDGETS = {"--read-budget": 4, "--change-budget": 32, "--reply-budget": 16, "--usage-budget": 1,
           "--table-budget": 64, "--receive-budget": 64}
OWN_MIB = 160
BOUND_MIB = sum(BUDGETS.values()) + OWN_MIB
ROWS, DIM = 1000, 256
CONNECTIONS_MAX = 100


def flags(**more):
    words = [word for flag, mib in BUDGETS.items() for word in (flag, f"{mib}MiB")]
    return words + ["--groups-max", "4", "--tables-max", "3", "--calls-max", "32",
                    "--connections-max", str(CONNECTIONS_MAX)]


def u32(*values):
    return struct.pack(f"<{len(values)}I", *values)


def tell(done):
    """The typed status of a future, or of a call that was made."""
    try:
        done()
        return "OK", ""
    except Failure as failure:
        return failure.status, failure.detail.field if failure.detail else failure.text
    except grpc.RpcError as error:
        for key, value in error.trailing_metadata() or ():
            if key == "mneme-error-bin":
                detail = pb.ErrorDetail.FromString(value)
                return pb.StatusCode.Name(detail.status), detail.field
        return None, f"{error.code()} {error.details()}"


class SlowReader:
    """Speaks HTTP/2 by hand, and leaves no room for a byte of an answer."""

    def __init__(self, address):
        host, port = address.split(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self.send(4, 0, 0, struct.pack(">HI", 4, 0))  # SETTINGS: the initial window is 0
        self.stream = 1

    def send(self, kind, mark, stream, data):
        self.socket.sendall(struct.pack(">I", len(data))[1:] + bytes([kind, mark]) +
                            struct.pack(">I", stream) + data)

    def ask(self, verb, message):
        def literal(name, value):
            return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        headers = (literal(":method", "POST") + literal(":scheme", "http") +
                   literal(":path", "/mneme.v1.Memory/" + verb) + literal(":authority", "mneme") +
                   literal("content-type", "application/grpc") + literal("te", "trailers"))
        self.send(1, 4, self.stream, headers)
        data = b"\0" + struct.pack(">I", len(message)) + message
        for at in range(0, len(data), 16384):
            self.send(0, at + 16384 >= len(data), self.stream, data[at:at + 16384])
        self.stream += 2


class Hostile(unittest.TestCase):
    def setUp(self):
        self.shard = Shard(*flags())
        self.good = Caller(self.shard.address, group="good")
        self.good.join(1)
        self.table = self.good.call("CreateTable", ranks=1, spec=pb.TableSpec(
            name="t", rows=ROWS, dim=DIM, init=pb.Init(kind=pb.INIT_UNIFORM, a=-1, b=1),
            optimizer=pb.Optimizer(kind=pb.OPTIMIZER_SGD))).table
        self.step = 0

    def tearDown(self):
        self.good.channel.close()
        self.shard.__exit__(None, None, None)

    def peak_mib(self):
        with open(f"/proc/{self.shard.process.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) >> 10

    def serves(self):
        """Within bounds, and a whole step goes through, as ever."""
        self.assertLess(self.peak_mib(), BOUND_MIB)
        self.step += 1
        spans = {"table": self.table, "tile_first": 0, "tile_count": self.tiles()}
        self.good.call("Push", step=self.step, count=1, payload=u32(5) + bytes(4 * DIM), **spans)
        keep = pb.Proposal(sets=[pb.CommitSet(learning_rate=0.1)])
        seal = self.good.call("Seal", step=self.step, pieces=1, proposal=keep)
        self.good.call("Commit", step=self.step, proposal=keep, factors=[1.0],
                       incarnation_sum=seal.incarnation_sum)
        reply = self.good.call("Fetch", count=2, read=pb.READ_LATEST, payload=u32(5, 6), **spans)
        self.assertEqual((reply.step, len(reply.payload)), (self.step, 8 * DIM))

    def tiles(self):
        return self.good.call("Describe", table=self.table).tables[0].tile_count

    def spans(self):
        return {"table": self.table, "tile_first": 0, "tile_count": self.tiles()}

    def test_groups_tables_and_rows(self):
        told = []
        for i in range(8):
            caller = Caller(self.shard.address, group=f"other{i}")
            told.append(tell(lambda: caller.join(1)))
            caller.channel.close()
        self.assertEqual(told, [("OK", "")] * 3 + [("BUSY", "groups_max")] * 5)
        told = [tell(lambda i=i: self.good.call("CreateTable", ranks=1, spec=pb.TableSpec(
            name=f"more{i}", rows=10, dim=16))) for i in range(4)]
        self.assertEqual(told, [("OK", "")] * 2 + [("BUSY", "tables_max")] * 2)
        self.good.call("Drop", table_name="more0")
        for rows, dim in ((1 << 40, 65536), (1 << 30, 16), (400000, 64)):
            told = tell(lambda: self.good.call("CreateTable", ranks=1, spec=pb.TableSpec(
                name="huge", rows=rows, dim=dim)))
            self.assertIn(told, (("INVALID", "rows"), ("BUSY", "table_bytes_max")))
        self.serves()

    def test_messages(self):
        """Many callers push as much as a message holds: the change budget says when it is enough,
        and the oldest step can still be sealed."""
        spans = self.spans()
        rows = 7 * MIB // (4 * DIM + 4)
        payload = u32(*[i % ROWS for i in range(rows)]) + bytes(4 * DIM * rows)

        def push(i):
            caller = Caller(self.shard.address, group="good")
            caller.incarnation, caller.map_epoch = self.good.incarnation, self.good.map_epoch
            told = tell(lambda: caller.call("Push", step=2, part=i, count=rows, payload=payload,
                                            timeout=30, **spans))
            caller.channel.close()
            return told
        with ThreadPoolExecutor(16) as pool:
            told = set(pool.map(push, range(64)))
        self.assertEqual(told, {("OK", ""), ("BUSY", "change_bytes_max")})
        self.serves()

    def test_requests_in_flight(self):
        """Reads of a step to come wait; more than may be held hear BUSY; other kinds do not."""
        spans = self.spans()
        waiting = [self.good.begin("Fetch", step=2, count=4, timeout=60, payload=u32(1, 2, 3, 4),
                                   **spans) for _ in range(300)]
        big = [self.good.begin("Fetch", step=2, count=ROWS, timeout=60,
                               payload=u32(*range(ROWS)), **spans) for _ in range(100)]
        calls, until = waiting + big, time.monotonic() + 20
        while sum(call.done() for call in calls) < len(calls) - 32 and time.monotonic() < until:
            time.sleep(0.05)
        refused = [tell(call.result) for call in calls if call.done()]
        self.assertEqual(len(refused), len(calls) - 32)
        self.assertEqual(set(refused), {("BUSY", "calls_max")})
        held = [call for call in calls if not call.done()]
        self.serves()  # its step is what they wait for
        self.assertEqual({tell(call.result) for call in held}, {("OK", "")})

    def test_slow_readers(self):
        """One that asks for more than the reply budget holds and reads nothing: others hear BUSY
        until its calls' own time is up, then they are served, though it is still connected."""
        spans = self.spans()
        reader = SlowReader(self.shard.address)
        fetch = self.good.request("Fetch", count=ROWS * 7, read=pb.READ_LATEST, timeout=4,
                                  payload=u32(*[i % ROWS for i in range(ROWS * 7)]), **spans)
        for _ in range(8):
            reader.ask("Fetch", fetch.SerializeToString())
        told, began = [], time.monotonic()
        while told[-2:] != [("BUSY", "reply_bytes_max"), ("OK", "")]:
            self.assertLess(time.monotonic(), began + 20, told[-1:])
            told.append(tell(lambda: self.good.call("Fetch", count=ROWS, read=pb.READ_LATEST,
                                                    payload=u32(*range(ROWS)), **spans)))
            time.sleep(0.1)
        self.assertEqual(set(told), {("OK", ""), ("BUSY", "reply_bytes_max")})
        self.assertGreater(time.monotonic() - began, 3)
        self.serves()
        reader.socket.close()

    def test_half_open_peers(self):
        """A caller that is stopped, or whose host is gone, takes no part in HTTP/2 any more: its
        connection ends by our pings, and what it waited for is dropped, whatever its deadline."""
        client = sealing_client(self.shard, timeout=600)
        while parked(self.shard, "gone") == 0:
            time.sleep(0.05)
        client.send_signal(signal.SIGSTOP)
        until = time.monotonic() + 40
        while parked(self.shard, "gone") and time.monotonic() < until:
            time.sleep(0.5)
        self.assertEqual(parked(self.shard, "gone"), 0)
        client.kill()
        client.wait(20)
        client.stdout.close()
        self.serves()

    def test_a_bad_row_shifts_no_gradient(self):
        """A row that is none, amid a push: elsewhere it was passed over without its gradient, and
        all later rows of the push got their neighbours'. Here nothing of the push is taken."""
        spans = self.spans()
        rows = [struct.pack(f"<{DIM}f", *[float(i)] * DIM) for i in (1, 2, 4)]
        push = dict(step=1, **spans)
        told = tell(lambda: self.good.call("Push", count=3, payload=u32(5, ROWS, 7) +
                                           b"".join(rows), **push))
        self.assertEqual(told, ("INVALID", "indices"))
        before = self.row_values(5, 7)
        self.good.call("Push", count=2, payload=u32(5, 7) + rows[0] + rows[2], **push)
        keep = pb.Proposal(sets=[pb.CommitSet(learning_rate=0.5)])
        seal = self.good.call("Seal", step=1, pieces=1, proposal=keep)
        self.good.call("Commit", step=1, proposal=keep, factors=[1.0],
                       incarnation_sum=seal.incarnation_sum)
        after = self.row_values(5, 7)
        for i, gradient in ((0, 1.0), (1, 4.0)):
            wanted = struct.unpack("<f", struct.pack("<f", before[i] - 0.5 * gradient))[0]
            self.assertEqual(after[i], wanted)

    def row_values(self, *rows):
        """The first column of each."""
        reply = self.good.call("Fetch", count=len(rows), read=pb.READ_LATEST, payload=u32(*rows),
                               **self.spans())
        return [struct.unpack_from("<f", reply.payload, i * 4 * DIM)[0] for i in range(len(rows))]

    def test_a_lookup_in_vain_has_no_rows(self):
        """A lookup whose time is up: elsewhere it was answered with rows of the default value. Here
        it fails, typed, and nothing that could be taken for a row comes with it."""
        with self.assertRaises(Failure) as caught:
            self.good.call("Fetch", step=3, count=1, timeout=0.3, payload=u32(5), **self.spans())
        self.assertEqual(caught.exception.status, "DEADLINE")
        self.assertIn("0", caught.exception.detail.message)  # the rank that it waited for

    def test_connections(self):
        """Hundreds of connections, silent, half-open, and of other protocols: within a second no
        more stand than --connections-max, and those that stood before are among them."""
        host, port = self.shard.address.split(":")
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"

        def connect(says):
            s = socket.create_connection((host, int(port)))
            s.sendall(says)
            return s

        def stand():
            found = 0
            for table in ("tcp", "tcp6"):
                with open(f"/proc/{self.shard.process.pid}/net/{table}", encoding="ascii") as lines:
                    rows = [line.split() for line in list(lines)[1:]]
                found += sum(row[1].endswith(f":{int(port):04X}") and row[3] == "01" for row in rows)
            return found

        def is_over(s):
            s.settimeout(0.1)
            try:
                while s.recv(4096):
                    pass
                return True
            except socket.timeout:
                return False
            except ConnectionError:
                return True

        early = connect(preface)
        time.sleep(1.2)
        sockets = [connect((b"", preface, preface + b"\0\0\1", b"GET / HTTP/1.0\r\n")[i % 4])
                   for i in range(600)]
        self.serves()
        time.sleep(1.2)
        self.assertLessEqual(stand(), CONNECTIONS_MAX)
        self.assertGreater(stand(), CONNECTIONS_MAX // 2)
        self.assertFalse(is_over(early))
        self.assertGreater(sum(is_over(s) for s in sockets), 600 - CONNECTIONS_MAX - 1)
        self.serves()
        for s in sockets + [early]:
            s.close()
        self.serves()
        time.sleep(1.2)
        late = Caller(self.shard.address, group="good")
        self.assertEqual(tell(lambda: late.call("Map")), ("OK", ""))
        late.channel.close()


if __name__ == "__main__":
    unittest.main()
