#!/usr/bin/env python3
"""Every verb of the protocol, called with plain protobuf messages and checked by plain arithmetic.
Values are small integers and halves, so that f32 sums are exact in any order."""
import struct
import unittest

import health_pb2 as health
import mneme_pb2 as pb
from shard_process import Caller, Failure, Shard

ROWS, DIM, RATE = 1000, 128, 0.5
RESTORED = 1 << 32  # one restore more, in a map epoch


def u32(*values):
    return struct.pack(f"<{len(values)}I", *values)


def f32(values):
    return struct.pack(f"<{len(values)}f", *values)


def floats(data):
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def doubles(data):
    return list(struct.unpack(f"<{len(data) // 8}d", data))


def row_of(seed):
    """A row of small integers, different for each seed."""
    return [float((seed * 7 + column * 3) % 11 - 5) for column in range(DIM)]


def spec(name="values", **changes):
    fields = dict(name=name, rows=ROWS, dim=DIM, seed=3,
                  init=pb.Init(kind=pb.INIT_CONSTANT, a=0.5),
                  optimizer=pb.Optimizer(kind=pb.OPTIMIZER_SGD))
    fields.update(changes)
    return pb.TableSpec(**fields)


class Verbs(unittest.TestCase):
    """Two ranks train one table of two column tiles through one shard; `model` is what the table
    must be."""

    def setUp(self):
        self.shard = Shard()
        self.ranks = [Caller(self.shard.address, rank=rank) for rank in range(2)]
        self.model = {}

    def tearDown(self):
        for rank in self.ranks:
            rank.channel.close()
        self.shard.__exit__(None, None, None)

    def value(self, row):
        return self.model.get(row, [0.5] * DIM)

    def tiles(self, **fields):
        return dict(table=self.table, tile_first=0, tile_count=2, **fields)

    def fetch(self, rows, step=0, read=pb.READ_LATEST, caller=None):
        reply = (caller or self.ranks[0]).call(
            "Fetch", step=step, read=read, count=len(rows), payload=u32(*rows), **self.tiles())
        flat = floats(reply.payload)
        return [flat[i * DIM:(i + 1) * DIM] for i in range(len(rows))], reply.step

    def finish(self, step, pieces, norms=False):
        """Both ranks seal and commit; the squared norms."""
        proposal = pb.Proposal(sets=[pb.CommitSet(learning_rate=RATE)])
        seals = [rank.begin("Seal", step=step, pieces=pieces[rank.rank], norms=norms,
                            proposal=proposal) for rank in self.ranks]
        replies = [seal.result() for seal in seals]
        self.assertEqual(replies[0].incarnation_sum, sum(r.incarnation for r in self.ranks))
        self.assertEqual(replies[0], replies[1])
        for rank in self.ranks:
            reply = rank.call("Commit", step=step, proposal=proposal, factors=[1.0],
                              incarnation_sum=replies[0].incarnation_sum)
            self.assertEqual(reply.step, step)
        return doubles(replies[0].payload)

    def begin(self):
        for rank in self.ranks:
            self.assertEqual(rank.join(2).ranks, 2)
        reply = self.ranks[0].call("CreateTable", ranks=2, spec=spec())
        self.table = reply.table
        self.assertNotEqual(self.table, 0)

    def test_admin(self):
        self.begin()
        first = self.ranks[0]
        again = first.call("CreateTable", ranks=2, spec=spec())
        self.assertEqual(again.table, self.table)
        with self.assertRaises(Failure) as caught:
            first.call("CreateTable", ranks=2, spec=spec(dim=64))
        self.assertEqual((caught.exception.status, caught.exception.detail.field),
                         ("CONFLICT", "dim"))
        other = first.call("CreateTable", ranks=2, spec=spec("others", rows=7)).table
        for table in (first.call("Describe", table=self.table).tables[0],
                      first.call("Describe", table_name="values").tables[0]):
            self.assertEqual((table.table, table.spec.name, table.spec.rows, table.spec.dim),
                             (self.table, "values", ROWS, DIM))
            self.assertEqual((table.spec.tiles, table.tile_count, table.rows_written), (2, 2, 0))
        listed = {table.spec.name: table.table for table in first.call("List").tables}
        self.assertEqual(listed, {"values": self.table, "others": other})
        status = first.call("Status")
        self.assertEqual((status.shards, status.shard), (1, 0))
        self.assertEqual([(g.name, g.ranks, g.tables) for g in status.groups], [("g", 2, 2)])
        self.assertEqual(first.call("Map").shards, 1)
        self.assertEqual(first.call("Drop", table=other).table, other)
        self.assertEqual([t.spec.name for t in first.call("List").tables], ["values"])
        with self.assertRaises(Failure) as caught:
            first.call("Describe", table=other)
        self.assertEqual(caught.exception.status, "NOT_FOUND")
        place = dict(table=self.table, tile_first=0, tile_count=1, move_phase=pb.MOVE_HOLD)
        reply = first.call("Move", **place)  # move 0 is none: what stands here, and what has ended
        self.assertEqual((reply.move, reply.move_last, reply.move_step, reply.step), (0, 0, 0, 0))
        with self.assertRaises(Failure) as caught:  # there is one shard
            first.call("Move", move=1, move_from=0, move_to=1, **place)
        self.assertEqual((caught.exception.status, caught.exception.detail.field),
                         ("INVALID", "move_to"))

    def store_and_push(self):
        """Step 1: rank 0 stores three rows; both ranks push to rows 7 and 8 afterwards."""
        stored = {row: row_of(row) for row in (7, 8, 999)}
        self.ranks[0].call("Store", step=1, part=0, position=0, count=3, **self.tiles(
            payload=u32(*stored) + f32(sum(stored.values(), []))))
        pushes = {0: {7: row_of(20), 1: row_of(21)}, 1: {7: row_of(30), 8: row_of(31)}}
        for rank, rows in pushes.items():
            for _ in range(2):  # the second is a repeat: acknowledged, not staged again
                self.ranks[rank].call("Push", step=1, part=1, position=0, count=2, **self.tiles(
                    payload=u32(*rows) + f32(sum(rows.values(), []))))
        self.finish(1, {0: 2, 1: 1})
        self.model.update(stored)
        for rank in (0, 1):
            for row, gradient in pushes[rank].items():
                self.model[row] = [v - RATE * g for v, g in zip(self.value(row), gradient)]

    def bag(self):
        """Step 2: bags, their gradients, squared norms, another commit."""
        queries = [[(7, 2.0), (8, -1.0)], [(999, 0.5), (5, 4.0)], [(7, 1.0), (7, 3.0)]]
        outputs = [row_of(40 + q) for q in range(3)]
        indices = u32(*(row for query in queries for row, _ in query))
        weights = f32([weight for query in queries for _, weight in query])
        shape = dict(count=3, per_query=2, read=pb.READ_STEP)
        reply = self.ranks[1].call("Bag", step=2, **shape, **self.tiles(payload=indices + weights))
        wanted = [sum(weight * self.value(row)[column] for row, weight in query)
                  for query in queries for column in range(DIM)]
        self.assertEqual(floats(reply.payload), wanted)
        reply = self.ranks[1].call("BagGrad", step=2, part=0, position=0, **shape, **self.tiles(
            payload=indices + weights + f32(sum(outputs, []))))
        half = DIM // 2
        wanted = [sum(outputs[q][c] * self.value(row)[c] for c in range(half * tile, half * tile + half))
                  for tile in range(2) for q, query in enumerate(queries) for row, _ in query]
        self.assertEqual(floats(reply.payload), wanted)
        merged = {}
        for query, output in zip(queries, outputs):
            for row, weight in query:
                old = merged.get(row, [0.0] * DIM)
                merged[row] = [a + weight * b for a, b in zip(old, output)]
        norms = self.finish(2, {0: 0, 1: 1}, norms=True)
        self.assertEqual(norms, [sum(g * g for row in merged.values() for g in row[t:t + half])
                                 for t in (0, half)])
        for row, gradient in merged.items():
            self.model[row] = [v - RATE * g for v, g in zip(self.value(row), gradient)]

    def check_table(self):
        rows = [7, 8, 999, 1, 5, 0, 500]
        values, _ = self.fetch(rows)
        for row, value in zip(rows, values):
            self.assertEqual(value, self.value(row), row)

    def test_training(self):
        self.begin()
        self.check_table()
        self.store_and_push()
        self.check_table()
        self.bag()
        self.check_table()
        _, step = self.fetch([1], step=3, read=pb.READ_STEP)
        self.assertEqual(step, 2)
        described = self.ranks[0].call("Describe", table=self.table).tables[0]
        self.assertEqual(described.rows_written, 5)

    def test_discard(self):
        self.begin()
        self.ranks[0].call("Push", step=1, count=1, **self.tiles(payload=u32(3) + f32(row_of(1))))
        drop = pb.Proposal(discard=True)
        keep = pb.Proposal(sets=[pb.CommitSet(learning_rate=RATE)])
        seals = [self.ranks[0].begin("Seal", step=1, pieces=1, proposal=keep),
                 self.ranks[1].begin("Seal", step=1, pieces=0, proposal=drop)]
        outcome = seals[0].result()
        self.assertEqual(seals[1].result(), outcome)
        self.assertEqual(outcome.proposal, drop)
        self.ranks[0].call("Commit", step=1, proposal=drop,
                           incarnation_sum=outcome.incarnation_sum)
        self.check_table()

    def test_reduce(self):
        self.begin()
        parts = [[1.0, 2.5, -3.0], [10.0, 0.25, 4.0]]
        calls = [rank.begin("Reduce", step=1, name="norm",
                            payload=struct.pack("<3d", *parts[rank.rank])) for rank in self.ranks]
        for call in calls:
            self.assertEqual(doubles(call.result().payload), [11.0, 2.75, 1.0])

    def test_snapshot_and_restore(self):
        self.begin()
        self.store_and_push()
        first = self.ranks[0]
        written = first.call("Snapshot", step=1, phase=pb.FILES_WRITE, path="saved/one")
        self.assertGreater(written.file_bytes, 0)
        first.call("Snapshot", step=1, phase=pb.FILES_MANIFEST, path="saved/one")
        self.bag()  # moves the table on; Restore takes it back
        checked = first.call("Restore", phase=pb.FILES_CHECK, path="saved/one")
        self.assertEqual((checked.step, checked.ranks), (1, 2))
        self.assertEqual([t.spec.name for t in checked.tables], ["values"])
        old_epoch, first.map_epoch = first.map_epoch, first.map_epoch + RESTORED
        loaded = first.call("Restore", phase=pb.FILES_LOAD, path="saved/one")
        self.assertGreater(loaded.file_bytes, 0)
        self.model = {}
        stored = {row: row_of(row) for row in (7, 8, 999)}
        self.model.update(stored)
        for row, gradient in ((7, row_of(20)), (1, row_of(21)), (7, row_of(30)), (8, row_of(31))):
            self.model[row] = [v - RATE * g for v, g in zip(self.value(row), gradient)]
        for rank in self.ranks:  # nobody from before the restore may go on
            with self.assertRaises(Failure):
                rank.call("Push", step=2, count=1, **self.tiles(payload=u32(3) + f32(row_of(1))))
            rank.join(2)
        self.assertEqual([rank.map_epoch for rank in self.ranks], [old_epoch + RESTORED] * 2)
        self.check_table()
        self.bag()
        self.check_table()
        first.map_epoch = old_epoch
        with self.assertRaises(Failure) as caught:
            self.fetch([7])
        self.assertEqual(caught.exception.status, "EPOCH")
        self.assertEqual(caught.exception.detail.map_epoch, old_epoch + RESTORED)

    def test_health(self):
        for service in ("", "mneme.v1.Memory"):
            data = health.HealthCheckRequest(service=service).SerializeToString()
            reply = self.ranks[0].raw("/grpc.health.v1.Health/Check", data)
            self.assertEqual(health.HealthCheckResponse.FromString(reply).status,
                             health.HealthCheckResponse.SERVING)
        data = health.HealthCheckRequest(service="mneme.v1.Nothing").SerializeToString()
        with self.assertRaises(Failure) as caught:
            self.ranks[0].raw("/grpc.health.v1.Health/Check", data)
        self.assertEqual(caught.exception.code.name, "NOT_FOUND")


class Moves(unittest.TestCase):
    """Tiles of a table go from one shard to the other, phase by phase."""

    def test_move(self):
        tile, rows, wide, number = DIM // 2, list(range(0, ROWS, 7)), 2 * DIM, 77
        with Shard("--shard", "0", "--shards", "2") as first, \
                Shard("--shard", "1", "--shards", "2") as second:
            old, new = self.callers = Caller(first.address), Caller(second.address)
            old.join(1)
            new.incarnation, new.map_epoch = old.incarnation, old.map_epoch
            new.call("Join", ranks=1, phase=pb.JOIN_FENCE)
            table = old.call("CreateTable", ranks=1, spec=spec(dim=wide)).table
            new.call("CreateTable", ranks=1, table=table, spec=spec(dim=wide))
            self.assertEqual(self.held(table), [(0, 2, 0), (2, 2, 0)])
            values = [[float(row + column % 5) for column in range(wide)] for row in rows]
            for shard, caller in enumerate(self.callers):
                mine = [row[shard * DIM:shard * DIM + DIM] for row in values]
                caller.call("Store", step=1, table=table, tile_first=2 * shard, tile_count=2,
                            count=len(rows), payload=u32(*rows) + f32(sum(mine, [])))
            self.commit(1, pieces=1)

            move = dict(table=table, tile_first=1, tile_count=1, move=number, move_from=0,
                        move_to=1)
            steps = [caller.call("Move", move_phase=pb.MOVE_HOLD, **move).move_step
                     for caller in self.callers]
            for caller in self.callers:
                reply = caller.call("Move", step=max(steps), move_phase=pb.MOVE_HOLD, **move)
                self.assertEqual((reply.move, reply.move_step), (number, max(steps)))
            push = dict(step=2, table=table, count=1, payload=u32(7) + f32([1.0] * DIM))
            with self.assertRaises(Failure) as caught:  # changes wait meanwhile
                old.call("Push", tile_first=0, tile_count=2, **push)
            self.assertEqual((caught.exception.status, caught.exception.detail.field),
                             ("BUSY", "move"))
            position, ended = 0, 0
            while True:
                chunk = old.call("Move", move_phase=pb.MOVE_READ, position=position, **move)
                if chunk.payload:
                    new.call("Move", move_phase=pb.MOVE_WRITE, position=ended,
                             payload=chunk.payload, **move)
                    ended = chunk.move_position
                position = chunk.move_position
                if position == chunk.move_rows:
                    break
            self.assertEqual(position, ROWS)
            self.assertGreater(ended, rows[-1])
            self.assertTrue(new.call("Move", move_phase=pb.MOVE_TAKE, count=ended,
                                     **move).move_taken)
            old.call("Move", move_phase=pb.MOVE_RELEASE, **move)
            new.call("Move", move_phase=pb.MOVE_DONE, **move)

            self.assertEqual(self.held(table), [(0, 1, number), (1, 3, number)])
            reply = new.call("Fetch", read=pb.READ_LATEST, table=table, tile_first=1, tile_count=3,
                             count=len(rows), payload=u32(*rows))
            self.assertEqual(floats(reply.payload), sum((row[tile:] for row in values), []))
            for first_tile, count, field in ((2, 2, "tile_count"), (1, 3, "moved")):  # of before
                push["payload"] = u32(7) + f32([1.0] * count * tile)
                with self.assertRaises(Failure) as caught:
                    new.call("Push", tile_first=first_tile, tile_count=count, **push)
                self.assertEqual((caught.exception.status, caught.exception.detail.field),
                                 ("MOVED", field))
            new.call("Push", tile_first=1, tile_count=3, moved=number, **push)
            push["payload"] = u32(7) + f32([1.0] * tile)
            old.call("Push", tile_first=0, tile_count=1, moved=number, **push)
            self.commit(2, pieces=1)
            reply = new.call("Fetch", read=pb.READ_LATEST, table=table, tile_first=1, tile_count=3,
                             count=1, payload=u32(7))
            self.assertEqual(floats(reply.payload), [v - RATE for v in values[1][tile:]])
            for caller in self.callers:
                caller.channel.close()

    def held(self, table):
        told = [caller.call("Describe", table=table).tables[0] for caller in self.callers]
        return [(t.tile_first, t.tile_count, t.moved) for t in told]

    def commit(self, step, pieces):
        proposal = pb.Proposal(sets=[pb.CommitSet(learning_rate=RATE)])
        seals = [caller.call("Seal", step=step, pieces=pieces, proposal=proposal)
                 for caller in self.callers]
        for caller in self.callers:
            caller.call("Commit", step=step, proposal=proposal, factors=[1.0],
                        incarnation_sum=seals[0].incarnation_sum)


if __name__ == "__main__":
    unittest.main()
