"""A real mneme-shard, and a plain gRPC caller of it: nothing here but grpcio and protobuf."""
import os
import signal
import subprocess
import sys
import tempfile
import time

import grpc

import mneme_pb2 as pb

SERVICE = "/mneme.v1.Memory/"
MESSAGE_BYTES = [("grpc.max_receive_message_length", 8 << 20), ("grpc.max_send_message_length", -1)]


class Shard:
    """One server process; `with Shard(...) as shard` stops it and checks that it ends well."""

    def __init__(self, *flags, listen="127.0.0.1:0", log=None):
        self.folder = tempfile.TemporaryDirectory()
        self.data = os.path.join(self.folder.name, "data")
        os.mkdir(self.data)
        port_file = os.path.join(self.folder.name, "port")
        self.process = subprocess.Popen(
            [os.environ["MNEME_SHARD"], "--listen", listen, "--port-file", port_file,
             "--data", self.data, "--log-level", "warning", *flags], stderr=log)
        began = time.monotonic()
        while not os.path.exists(port_file):
            if self.process.poll() is not None or time.monotonic() - began > 20:
                raise RuntimeError("mneme-shard did not start")
            time.sleep(0.01)
        with open(port_file) as file:
            self.address = "127.0.0.1:" + file.read().strip()

    def stop(self):
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        status = self.process.poll()
        if status is None:
            status = self.stop()
        self.folder.cleanup()
        if kind is None and status != 0:
            raise AssertionError(f"mneme-shard ended with {status}")


class Failure(Exception):
    """A call that failed: gRPC's code and text, and the typed error beside it (None without)."""

    def __init__(self, error):
        super().__init__(f"{error.code()}: {error.details()}")
        self.code, self.text, self.detail = error.code(), error.details(), None
        for key, value in error.trailing_metadata() or ():
            if key == "mneme-error-bin":
                self.detail = pb.ErrorDetail.FromString(value)

    @property
    def status(self):
        return pb.StatusCode.Name(self.detail.status) if self.detail else None


class Caller:
    """One rank of a group at one shard."""

    def __init__(self, address, group="g", rank=0, metadata=()):
        self.channel = grpc.insecure_channel(address, options=MESSAGE_BYTES)
        self.group, self.rank, self.metadata = group, rank, metadata
        self.incarnation, self.map_epoch = 0, 0

    def context(self, step=0, timeout=10.0):
        return pb.Context(version=1, group=self.group, map_epoch=self.map_epoch, step=step,
                          rank=self.rank, incarnation=self.incarnation, request_id=os.urandom(16),
                          remaining_ms=max(1, int(timeout * 1000)))

    def raw(self, verb, data, timeout=10.0, **keywords):
        """Sends bytes as they are to any method; the reply's bytes."""
        method = verb if verb.startswith("/") else SERVICE + verb
        call = self.channel.unary_unary(method, None, None)
        try:
            return call(data, timeout=timeout, metadata=self.metadata, **keywords)
        except grpc.RpcError as error:
            raise Failure(error) from None

    def request(self, verb, step=0, timeout=10.0, **fields):
        return getattr(pb, verb + "Request")(context=self.context(step, timeout), **fields)

    def call(self, verb, step=0, timeout=10.0, grpc_timeout=None, **fields):
        data = self.request(verb, step, timeout, **fields).SerializeToString()
        reply = self.raw(verb, data, timeout=grpc_timeout or timeout + 5)
        return getattr(pb, verb + "Reply").FromString(reply)

    def begin(self, verb, step=0, timeout=10.0, **fields):
        """A future: result() gives the reply or raises grpc.RpcError."""
        kind = getattr(pb, verb + "Request")
        call = self.channel.unary_unary(SERVICE + verb, kind.SerializeToString,
                                        getattr(pb, verb + "Reply").FromString)
        return call.future(self.request(verb, step, timeout, **fields), timeout=timeout + 5,
                           metadata=self.metadata)

    def join(self, ranks):
        """Both phases at one shard, as a trainer does it."""
        self.incarnation = self.map_epoch = 0
        reply = self.call("Join", ranks=ranks, phase=pb.JOIN_ASSIGN)
        self.incarnation, self.map_epoch = reply.incarnation, reply.map_epoch
        return self.call("Join", ranks=ranks, phase=pb.JOIN_FENCE)


def parked(shard, group):
    """How many calls of the group wait at the shard; 0 while the group is not there."""
    caller = Caller(shard.address, group=group)
    try:
        return sum(g.parked for g in caller.call("Status").groups if g.name == group)
    except Failure as failure:
        if failure.status != "NOT_FOUND":
            raise
        return 0
    finally:
        caller.channel.close()


def sealing_client(shard, timeout):
    """A process of its own that waits in Seal, in group "gone", for a rank that never comes."""
    script = ("import sys, mneme_pb2 as pb; from shard_process import Caller\n"
              "caller = Caller(sys.argv[1], group='gone'); caller.join(2)\n"
              "call = caller.begin('Seal', step=1, timeout=float(sys.argv[2]),"
              " proposal=pb.Proposal(sets=[pb.CommitSet()]))\n"
              "print('sealing', flush=True); call.result()\n")
    client = subprocess.Popen([sys.executable, "-c", script, shard.address, str(timeout)],
                              stdout=subprocess.PIPE, text=True,
                              cwd=os.path.dirname(os.path.abspath(__file__)))
    if client.stdout.readline() != "sealing\n":
        raise RuntimeError("the client did not come as far as Seal")
    return client
