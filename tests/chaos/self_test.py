"""The rounds' own check, seen to fail: what a shard has forgotten ends the run with a loud, typed
status, never with tables, wrong ones least of all."""
import glob
import os
import re

from stage import PATIENCE_S, Failure, Stage

FORGOT_AT = 20  # a step
WAITS_S = 8  # of standing still
LOUD = re.compile(r"^trainer-\d ended with 3: .*failed [a-z_]+ (LOST|STEP) "
                  r"|^shard-\d ended with 1: .*is (damaged at|missing)")
# Records cut off at the end look like a kill amid a write to their shard, which no kill does to one
# that was acknowledged. A change for a step far ahead is refused, so is a seal that counts what is
# gone; a read waits for steps that will not come again, to its deadline.
WAITS = re.compile(LOUD.pattern + r"|^trainer-\d ended with 3: .* INCOMPLETE pieces"
                   r"|^training stands still: .*'retry [a-z_]+ DEADLINE'")


def log_of(stage, i):
    """The newest: an image may have replaced what was before it."""
    logs = glob.glob(os.path.join(stage.disk(i), "**", "*.log"), recursive=True)
    if not logs:
        raise Failure(f"shard {i} has no log")
    return max(logs, key=lambda path: int(path.rsplit("-", 1)[1][:-len(".log")]))


def forget(stage, i):
    """Nothing: without durability there is no log."""


def remove(stage, i):
    os.remove(log_of(stage, i))


def flip(stage, i):
    """One bit, in the middle."""
    with open(log_of(stage, i), "r+b") as file:
        middle = os.path.getsize(file.name) // 2
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(middle)
        file.write(bytes([byte ^ 1]))


def halve(stage, i):
    path = log_of(stage, i)
    os.truncate(path, os.path.getsize(path) // 2)


# name, durability, victim (0 is the home shard), damage while it is dead, what is then said
CASES = [("no durability", "none", 1, forget, LOUD),
         ("no durability, home shard", "none", 0, forget, LOUD),
         ("log removed", "process", 1, remove, WAITS),
         ("log removed, home shard", "process", 0, remove, WAITS),
         ("a bit of the log flipped", "process", 2, flip, LOUD),
         ("half of the log gone", "process", 3, halve, WAITS),
         ("half of the log gone, home shard", "process", 0, halve, WAITS)]


def last_words(programs, durability, victim, damage, patience_s):
    """What stands in the way of the run: it must not go on."""
    with Stage(programs, 1, durability, pause_ms=0) as stage:
        stage.wait_for_step(FORGOT_AT)
        stage.shards[victim].kill()
        damage(stage, victim)
        stage.start_shard(victim)
        try:
            stage.wait_for_step(FORGOT_AT * 1000, patience_s)
        except Failure as failure:
            return str(failure)
        raise Failure("training went on")


def self_test(programs, undisturbed):
    tables = [undisturbed(programs, seed, last) for seed, last in ((1, 9), (1, 10), (2, 9))]
    if len({words.split()[-1] for words in tables}) != len(tables):
        raise Failure(f"other steps, the same tables: {tables}")
    print("other steps and other seeds leave other tables")
    for name, durability, victim, damage, expected in CASES:
        try:
            patience_s = WAITS_S if expected is WAITS else PATIENCE_S
            words = last_words(programs, durability, victim, damage, patience_s)
        except Failure as failure:
            raise Failure(f"{name}: {failure}") from None
        if not expected.search(words):
            raise Failure(f"{name}: not loud: {words}")
        print(f"{name}: {words}", flush=True)
    print(f"{len(CASES)} losses, and no run went on")
