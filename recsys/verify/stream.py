"""A world's recorded stream, told to a log minute by minute. Knows nothing of who reads it, or of crashes.

The world is lived through once, in a process of its own: its gRPC threads are not to be there where learners are forked.
"""

import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from recsys.config import Config
from recsys.loop import Loop, Scene, Stage
from recsys.truth import TOY_START_MS, toy_truth
from recsys.worlds import SimulatedWorld, WorldConfig
from streaming.address import ITEMS_SUFFIX, open_log
from streaming.events import decode
from streaming.joiner import JoinConfig, Joiner
from streaming.log import Entry, EventLog, LogRecord, MemoryLog

DECISIONS_PER_MINUTE = 30.0
PARTITIONS = 4
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Recording:
    """A stream that ends, in every partition, with the tick that completes its last minute: who has learned that has read all."""

    events: Sequence[LogRecord]
    items: Sequence[LogRecord]
    complete_ms: Sequence[int]
    """When each minute is complete."""
    taught_ids: frozenset[str]
    """Decisions to learn from, each once: the learner's own, shown, made by a policy."""


def record(config: Config, minutes: int, seed: int) -> Recording:
    """Live through the toy world, so long that `minutes` minutes of it can be learned."""
    join = config.join
    closing_ms = join.open_ms + join.disorder_ms
    lived = minutes - (-closing_ms // join.bucket_ms)
    world = WorldConfig(seed=seed, minutes=lived, decisions_per_minute=DECISIONS_PER_MINUTE, organic_per_minute=5.0, slate_size=5)
    scene = Scene(name="toy", world=SimulatedWorld(toy_truth(), world), start_ms=TOY_START_MS, minutes=lived)
    complete_ms = [TOY_START_MS + minute * join.bucket_ms + closing_ms for minute in range(1, minutes + 1)]
    with tempfile.TemporaryDirectory() as scratch:
        stage = Stage(log=MemoryLog(PARTITIONS), items_log=MemoryLog(1), state_dir=Path(scratch))
        loop = Loop(config, scene, stage, seed)
        for _ in loop.minutes():
            pass
        loop.close()
    events = [found for partition in range(PARTITIONS) for found in _until_tick(stage.log, partition, complete_ms[-1])]
    return Recording(events, _until_tick(stage.items_log, 0, complete_ms[-1]), complete_ms, _taught(join, events))


def _until_tick(log: EventLog, partition: int, tick_ms: int) -> list[LogRecord]:
    """The partition's records up to and with the tick of that time."""
    found = log.read(partition, 0, log.end_offsets()[partition])
    ends = [at for at, one in enumerate(found, 1) if decode(one.value).tick.event_time_ms == tick_ms]
    return found[: ends[0]]


def _taught(join: JoinConfig, events: Sequence[LogRecord]) -> frozenset[str]:
    joiner = Joiner(join, PARTITIONS)
    for partition in range(PARTITIONS):
        joiner.apply(partition, [found for found in events if found.partition == partition])
    taught: set[str] = set()
    while (bucket := joiner.take_bucket()) is not None:
        taught |= {example.decision.decision_id for example in bucket.examples if example.own and example.decision.policy_version}
    return frozenset(taught)


class Teller:
    """The process that recorded a stream and tells it to the log."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.taught_ids: frozenset[str] = pipe.recv()

    def tell(self) -> int:
        """Write the records that complete one more minute; the end of that minute, once they are in the log."""
        self._pipe.send(None)
        return int(self._pipe.recv())


@contextmanager
def telling(config: Config, url: str, minutes: int, seed: int) -> Iterator[Teller]:
    """Record a stream and tell it to the empty log at `url`."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=_tell, args=(ours, theirs, config, url, minutes, seed))
    process.start()
    theirs.close()  # so that its end is seen here
    try:
        yield Teller(ours)
    finally:
        ours.close()
        process.join()


def _tell(others: Connection, pipe: Connection, config: Config, url: str, minutes: int, seed: int) -> None:
    others.close()  # a copy of it here would keep its end from being seen
    recording = record(config, minutes, seed)
    log, items_log = open_log(url, num_partitions=PARTITIONS), open_log(url, ITEMS_SUFFIX)
    pipe.send(recording.taught_ids)
    told_ms = 0
    for minute, complete_ms in enumerate(recording.complete_ms, 1):
        try:
            pipe.recv()
        except EOFError:  # whoever listened is gone
            break
        for into, stream in ((items_log, recording.items), (log, recording.events)):
            due = [one for one in stream if told_ms < decode(one.value).append_time_ms <= complete_ms]
            into.append([Entry(one.key, one.value, one.partition) for one in due])
        told_ms = complete_ms
        pipe.send(TOY_START_MS + minute * config.join.bucket_ms)
    log.close()
    items_log.close()
