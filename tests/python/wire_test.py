#!/usr/bin/env python3
"""What a foreign gRPC client may do to a shard: odd bytes, odd methods, impatience, no token."""
import os
import socket
import struct
import subprocess
import tempfile
import time
import unittest

import grpc

import mneme_pb2 as pb
from shard_process import Caller, Failure, Shard, parked, sealing_client


def varint(value):
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7f | 0x80]), value >> 7
    return out + bytes([value])


def field_bytes(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def field_number(number, value):
    return varint(number << 3) + varint(value)


class Wire(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.shard = Shard()
        cls.caller = Caller(cls.shard.address)
        cls.caller.join(1)
        cls.table = cls.caller.call("CreateTable", ranks=1, spec=pb.TableSpec(
            name="t", rows=50, dim=64, init=pb.Init(kind=pb.INIT_UNIFORM, a=-1, b=1))).table

    @classmethod
    def tearDownClass(cls):
        cls.caller.channel.close()
        cls.shard.__exit__(None, None, None)

    def fails(self, status, field, verb, data, code=None, **keywords):
        with self.assertRaises(Failure) as caught:
            self.caller.raw(verb, data, **keywords)
        failure = caught.exception
        self.assertEqual((failure.status, failure.detail and failure.detail.field), (status, field),
                         failure.text)
        if code:
            self.assertEqual(failure.code, code)
        self.alive()
        return failure

    def alive(self):
        self.assertEqual(self.caller.call("Status").shards, 1)

    def fetch_fields(self, rows=(3, 9)):
        """A Fetch as a list of encoded fields."""
        context = self.caller.context().SerializeToString()
        return [field_bytes(1, context), field_number(2, self.table), field_number(4, 1),
                field_number(5, len(rows)), field_number(10, pb.READ_LATEST),
                field_bytes(15, struct.pack(f"<{len(rows)}I", *rows))]

    def test_fields_in_any_order(self):
        plain = self.caller.raw("Fetch", b"".join(self.fetch_fields()))
        self.assertEqual(len(pb.FetchReply.FromString(plain).payload), 2 * 64 * 4)
        backwards = self.caller.raw("Fetch", b"".join(reversed(self.fetch_fields())))
        self.assertEqual(backwards, plain)
        unknown = [field_number(900, 7), field_bytes(901, b"x" * 300), varint(902 << 3 | 5) + b"abcd",
                   varint(903 << 3 | 1) + b"abcdefgh"]
        odd = unknown[:2] + self.fetch_fields()[3:] + unknown[2:] + self.fetch_fields()[:3]
        self.assertEqual(self.caller.raw("Fetch", b"".join(odd)), plain)
        twice = [field_bytes(15, b"other bytes")] + self.fetch_fields()  # the last one counts
        self.assertEqual(self.caller.raw("Fetch", b"".join(twice)), plain)

    def test_bad_bytes(self):
        message = b"".join(self.fetch_fields())
        for cut in range(len(message) - 1, 0, -1):
            with self.assertRaises(Failure) as caught:
                self.caller.raw("Fetch", message[:cut])
            self.assertIsNotNone(caught.exception.status, cut)
        self.fails("UNSUPPORTED", "version", "Fetch", b"")
        self.fails("INVALID", "value_dtype", "Fetch", message + field_number(8, 1 << 20),
                   code=grpc.StatusCode.INVALID_ARGUMENT)
        short = self.fetch_fields()
        short[3] = field_number(5, 3)
        self.fails("INVALID", "payload", "Fetch", b"".join(short))
        self.fails("INVALID", "indices", "Fetch", b"".join(self.fetch_fields((3, 50))))

    def test_unknown_methods_end_at_once(self):
        began = time.monotonic()
        for method in ("Explode", "/mneme.v2.Memory/Fetch", "/x.Y/Z",
                       "/grpc.health.v1.Health/List"):
            self.fails("UNSUPPORTED", "method", method, b"", timeout=30,
                       code=grpc.StatusCode.UNIMPLEMENTED)
        self.assertLess(time.monotonic() - began, 5)

    def test_message_limits(self):
        context = self.caller.context().SerializeToString()
        with self.assertRaises(Failure) as caught:
            self.caller.raw("Push", field_bytes(1, context) + field_bytes(15, bytes(9 << 20)))
        self.assertEqual(caught.exception.code, grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.fails("CORRUPT", "message", "Push", field_bytes(1, context) * 3000)
        rows = self.fetch_fields(tuple(range(50)) * 700)
        self.fails("INVALID", "count", "Fetch", b"".join(rows))  # 8.5 MiB of answer

    def test_compressed_messages_are_refused(self):
        with self.assertRaises(Failure) as caught:
            self.caller.raw("Status", b"".join(self.fetch_fields()[:1]) + b"\0" * 5000,
                            compression=grpc.Compression.Gzip)
        self.assertIn(caught.exception.code,
                      (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL))
        self.alive()

    def test_deadlines(self):
        seal = dict(step=1, pieces=0, proposal=pb.Proposal(sets=[pb.CommitSet()]))
        two = [Caller(self.shard.address, group="two", rank=rank) for rank in range(2)]
        for rank in two:
            rank.join(2)
        for timeout, grpc_timeout in ((0.4, 30), (30, 0.4)):
            began = time.monotonic()
            with self.assertRaises(Failure) as caught:
                two[0].call("Seal", timeout=timeout, grpc_timeout=grpc_timeout, **seal)
            took = time.monotonic() - began
            self.assertEqual(caught.exception.code, grpc.StatusCode.DEADLINE_EXCEEDED)
            # The shard answers an eighth of the time early, so that its word, which names the
            # rank that is missing, still arrives; whichever of the two times is the shorter.
            self.assertGreaterEqual(took, 0.4 * 0.875)
            self.assertLess(took, 2)
            self.assertEqual(caught.exception.status, "DEADLINE")
            self.assertIn("1", caught.exception.detail.message)
        # Cancelled calls leave the shard: nothing is parked for them any more.
        calls = [two[1].begin("Fetch", step=9) for _ in range(3)]
        for call in calls:
            call.cancel()
        two[1].call("Seal", **seal)  # both sealed now: the first attempts' seal stood
        for rank in two:
            rank.channel.close()

    def test_killed_client_leaves_nothing_parked(self):
        client = sealing_client(self.shard, timeout=60)
        self.wait_parked("gone", 1)
        client.kill()
        client.wait(20)
        client.stdout.close()
        self.wait_parked("gone", 0)

    def wait_parked(self, group, wanted):
        until = time.monotonic() + 20
        while parked(self.shard, group) != wanted and time.monotonic() < until:
            time.sleep(0.05)
        self.assertEqual(parked(self.shard, group), wanted)

    def test_sockets_that_speak_something_else(self):
        host, port = self.shard.address.split(":")
        for data in (b"GET / HTTP/1.0\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64,
                     b"\0" * 1000, b""):
            with socket.create_connection((host, int(port))) as raw:
                raw.sendall(data)
        self.alive()

    def test_token(self):
        with Shard("--token", "secret") as shard:
            for token, status in ((None, "DENIED"), ("Bearer wrong", "DENIED"),
                                  ("secret", "DENIED"), ("Bearer secrets", "DENIED"),
                                  ("Bearer secret", None)):
                metadata = (("authorization", token),) if token else ()
                caller = Caller(shard.address, metadata=metadata)
                try:
                    caller.join(1)
                    self.assertIsNone(status, token)
                except Failure as failure:
                    self.assertEqual((failure.status, failure.detail.field),
                                     (status, "authorization"))
                    self.assertEqual(failure.code, grpc.StatusCode.PERMISSION_DENIED)
                caller.channel.close()

    def test_trace_in_the_log(self):
        trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        longer = "01-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-00"
        given = {"plain": trace, "later": longer + "-more", "bad": "00-nonsense", "none": None,
                 "long": trace + "-more", "digits": longer + "0"}
        with tempfile.TemporaryFile("w+") as log:
            with Shard("--log-level", "info", log=log) as shard:
                for group, value in given.items():
                    metadata = (("traceparent", value),) if value else ()
                    caller = Caller(shard.address, group=group, metadata=metadata)
                    caller.join(1)
                    caller.channel.close()
            log.seek(0)
            lines = [line for line in log if "join" in line]
        said = {group: [line for line in lines if f"group={group} " in line] for group in given}
        self.assertTrue(all(said.values()), lines)
        for group in given:
            wanted = {"plain": trace, "later": longer}.get(group)
            for line in said[group]:
                self.assertEqual(line.count(f"traceparent={wanted} "), 1 if wanted else 0, line)
                self.assertEqual("traceparent" in line, wanted is not None, line)

    def test_second_server_on_one_port(self):
        second = subprocess.run([os.environ["MNEME_SHARD"], "--listen", self.shard.address],
                                capture_output=True, text=True, timeout=20)
        self.assertEqual(second.returncode, 1)
        self.assertIn(self.shard.address, second.stderr)

    def test_bad_flags(self):
        for flags, words in ((["--shard", "2", "--shards", "2"], "--shard"),
                             (["--read-budget", "12 potatoes"], "--read-budget"),
                             (["--reply-budget", "1MiB"], "--reply-budget"),
                             (["--listen", "nowhere"], "--listen"), (["--calls-max", "-1"],
                                                                     "--calls-max"),
                             (["--receive-budget", "1MiB"], "--receive-budget"),
                             (["--groups-max", "65"], "--groups-max"),
                             (["--tables-max", "0"], "--tables-max"),
                             (["--table-budget", "all"], "--table-budget"),
                             (["--saves-kept", "9"], "--saves-kept"),
                             (["--nonsense"], "--nonsense"), (["extra"], "extra")):
            run = subprocess.run([os.environ["MNEME_SHARD"], *flags], capture_output=True,
                                 text=True, timeout=20)
            self.assertEqual((run.returncode, run.stdout), (2, ""), flags)
            self.assertIn(words, run.stderr)
        helped = subprocess.run([os.environ["MNEME_SHARD"], "--help"], capture_output=True,
                                text=True, timeout=20)
        self.assertEqual((helped.returncode, helped.stderr), (0, ""))
        self.assertIn("--change-budget", helped.stdout)

    def test_stop_answers_those_who_wait(self):
        with Shard() as shard:
            caller = Caller(shard.address, group="two")
            caller.join(2)
            seal = caller.begin("Seal", step=1, timeout=60,
                                proposal=pb.Proposal(sets=[pb.CommitSet()]))
            caller.call("Status")  # so that the seal has arrived, too
            began = time.monotonic()
            self.assertEqual(shard.stop(), 0)
            self.assertEqual(seal.exception().code(), grpc.StatusCode.UNAVAILABLE)
            self.assertLess(time.monotonic() - began, 5)
            caller.channel.close()


if __name__ == "__main__":
    unittest.main()
