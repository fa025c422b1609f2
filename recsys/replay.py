"""A log driven through the joiner and the learner at once, as fast as the machine can: what production would have learned.

Knows nothing of serving. Time is the log's own: a ManualClock stands at its end, and no component asks for more.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.config import Config, behavior_digest
from recsys.learner import Learner
from recsys.saver import Saver
from recsys.trainer import Seeds
from streaming.archive import EVENTS, ITEMS, ArchiveLog
from streaming.clock import ManualClock
from streaming.events import Record, UnreadableRecord, decode
from streaming.log import EventLog
from streaming.quarantine import Mended, repaired


@dataclass(frozen=True)
class Replayed:
    """What a replay did, up to where it stopped. `real_time_factor`: seconds of the log's time by second of this run; None where
    it spans none.
    """

    events: int
    events_per_s: float
    real_time_factor: float | None
    books: dict[str, Any]
    weights_digest: str | None
    versions: int
    seconds: float


def replay(
    config: Config, archive: Path, state_dir: Path, seed: int, save_every: int, until: int | None = None, include: Path | None = None
) -> Replayed:
    """Learn an archive (`events/` and `items/`, as `data import` and `log archive` write it) into an empty state directory.

    `save_every`: versions between two checkpoints and publishes; `until`: the version to stop at; `include`: lines of repaired
    records, which then stand in the place of the broken ones. ValueError when there is no archive.
    """
    mended = repaired(include) if include else {EVENTS: [], ITEMS: []}
    log, items_log = (Mended(ArchiveLog(archive / stream), mended[stream]) for stream in (EVENTS, ITEMS))
    _refuse_silent(log, items_log)
    first_ms, last_ms = _span_ms(log)
    started = time.perf_counter()
    learner = Learner(
        config.learner,
        config.model,
        config.join,
        config.memory,
        Seeds(behavior_digest(config), seed),
        clock=ManualClock(last_ms),
        log=log,
        items_log=items_log,
        state_dir=state_dir,
        saver=Saver(beside=True),
        save_every=save_every,
        last_version=until,
    )
    if learner.policy_version:
        raise ValueError(f"{state_dir} holds version {learner.policy_version} already; a replay needs an empty one")
    learner.catch_up()
    learner.close()
    seconds = time.perf_counter() - started
    events = sum(learner.joiner.next_offset(partition) - begin for partition, begin in enumerate(log.begin_offsets()))
    if learner.is_done:
        last_ms = min(last_ms, learner.joiner.trained_through_ms)
    return Replayed(
        events=events,
        events_per_s=events / seconds,
        real_time_factor=(last_ms - first_ms) / 1000 / seconds if last_ms > first_ms else None,
        books=learner.joiner.books().as_dict(),
        weights_digest=learner.weights_digest(),
        versions=learner.policy_version,
        seconds=seconds,
    )


def _refuse_silent(*logs: EventLog) -> None:
    """ValueError for a stream without any record in one of its partitions: whatever is written ticks them all, or time stands still."""
    for log in logs:
        spans = zip(log.begin_offsets(), log.end_offsets(), strict=True)
        silent = [partition for partition, (begin, end) in enumerate(spans) if begin == end]
        if silent:
            raise ValueError(f"{log.name} has no record of partitions {silent}: time would stand still there")


def _span_ms(log: EventLog) -> tuple[int, int]:
    """Append times of the first and the last record, over all partitions; 0, 0 for an empty log."""
    times = []
    for partition, end in enumerate(log.end_offsets()):
        begin = log.begin_offsets()[partition]
        if end > begin:
            times += [_append_ms(record.value) for record in (*log.read(partition, begin, 1), *log.read(partition, end - 1, 1))]
    return (min(times), max(times)) if times else (0, 0)


def _append_ms(value: bytes) -> int:
    try:
        return decode(value).append_time_ms
    except UnreadableRecord:
        return Record().append_time_ms
