"""One look through a whole log: the books of its join, how late feedback comes, what was put into quarantine, where it stands.

Knows nothing of learners: the join is that of a learner which reads the log from its first record. Changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streaming.archive import EVENTS, ITEMS
from streaming.books import MAX_QUARANTINED, Books, Quarantined
from streaming.events import IMPORTED, Record, UnreadableRecord, decision_id_of, decode
from streaming.gaps import Gap
from streaming.joiner import JoinConfig, Joiner
from streaming.log import EventLog, OffsetGone, batches

QUANTILES = {"p50": 0.5, "p90": 0.9, "p98": 0.98, "p99": 0.99}


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `inspected` found."""

    books: Books
    delays_ms: npt.NDArray[np.int64]
    """Of each feedback on a decision that was not imported: how long after it."""
    window_ms: int
    gaps: Sequence[Gap]
    """What is gone between the first record and the last, or was when this variant's learner came there."""
    quarantined: Mapping[str, list[Quarantined]]
    """The newest `MAX_QUARANTINED` of each stream, by its name; the books count all of the events."""
    begin_offsets: list[int]
    """Where the look began."""
    end_offsets: list[int]
    behind_ms: int | None
    """The newest append time less the watermark; None before there is one."""

    def figures(self) -> dict[str, Any]:
        """As JSON; what no feedback was there for is None."""
        delays_s = self.delays_ms / 1000
        known = len(delays_s) > 0
        return {
            "books": self.books.as_dict(),
            "delay_s": {name: float(np.quantile(delays_s, share)) if known else None for name, share in QUANTILES.items()},
            "share_inside_window": float((self.delays_ms <= self.window_ms).mean()) if known else None,
            "quarantined": dict(self.books.quarantined),
            "quarantined_items": len(self.quarantined[ITEMS]),
            "gaps": [gap._asdict() for gap in self.gaps],
            "begin_offsets": self.begin_offsets,
            "end_offsets": self.end_offsets,
            "watermark_behind_s": None if self.behind_ms is None else self.behind_ms / 1000,
        }


def inspected(log: EventLog, items_log: EventLog, config: JoinConfig, since_ms: int | None = None) -> Inspection:
    """Join the log from the first record it holds, or from what was appended `since_ms`, to its present end.

    What speaks of a decision from before the first record is an orphan here.
    """
    begins = log.begin_offsets() if since_ms is None else offsets_since(log, since_ms)
    joiner, delays, gaps = Joiner(config, log.num_partitions), _Delays(), list[Gap]()

    def pass_gap(gone: OffsetGone) -> None:
        gaps.append(Gap(gone.partition, gone.offset, gone.begin_offset))
        joiner.pass_gap(gone.partition, gone.begin_offset)

    newest_ms = 0
    for records in batches(log, pass_gap, begins):
        joiner.apply(records[0].partition, records)
        said = [found for record in records if (found := _readable(record.value)) is not None]
        delays.take(said)
        newest_ms = max(newest_ms, max((record.append_time_ms for record in said), default=0))
        while joiner.take_bucket() is not None:
            pass
    watermark_ms = joiner.watermark_ms
    return Inspection(
        books=joiner.books(),
        delays_ms=np.array(delays.found_ms, np.int64),
        window_ms=config.window_ms,
        gaps=gaps,
        quarantined={EVENTS: joiner.quarantined, ITEMS: _unreadable(items_log)},
        begin_offsets=begins,
        end_offsets=log.end_offsets(),
        behind_ms=None if watermark_ms is None else newest_ms - watermark_ms,
    )


def offsets_since(log: EventLog, time_ms: int) -> list[int]:
    """By partition the offset of the first record appended at `time_ms` or later by what it says itself; the end where there is none.

    Found by bisection, as if append times rose: clocks of servers may differ. What a broker says of time means nothing to a world.
    """
    spans = zip(log.begin_offsets(), log.end_offsets(), strict=True)
    return [_since(log, partition, *span, time_ms) for partition, span in enumerate(spans)]


def _since(log: EventLog, partition: int, begin: int, end: int, time_ms: int) -> int:
    while begin < end:
        middle = (begin + end) // 2
        found = _appended(log, partition, middle)
        if found is None or found[0] >= end or found[1] >= time_ms:
            end = middle
        else:
            begin = found[0] + 1
    return begin


def _appended(log: EventLog, partition: int, offset: int) -> tuple[int, int] | None:
    """Where the first record from `offset` on stands that can be read, and when it was appended."""
    try:
        while records := log.read(partition, offset, 10):
            for record in records:
                if (said := _readable(record.value)) is not None:
                    return record.offset, said.append_time_ms
            offset = records[-1].offset + 1
    except OffsetGone as gone:
        return _appended(log, partition, gone.begin_offset)
    return None


class _Delays:
    """How long after its decision each feedback came, by the times that events name; no window cuts it short."""

    def __init__(self) -> None:
        self.found_ms: list[int] = []
        self._decided_ms: dict[str, int] = {}

    def take(self, records: list[Record]) -> None:
        for record in records:
            if record.HasField("decision") and record.decision.variant != IMPORTED:
                self._decided_ms[record.decision.decision_id] = record.decision.event_time_ms
            elif record.HasField("event") and record.event.HasField("feedback"):
                decided_ms = self._decided_ms.get(decision_id_of(record.event.feedback.decision_token))
                if decided_ms is not None:
                    self.found_ms.append(record.event.event_time_ms - decided_ms)


def _unreadable(items_log: EventLog) -> list[Quarantined]:
    found = []
    for records in batches(items_log):
        for record in records:
            try:
                decode(record.value)
            except UnreadableRecord as error:
                found.append(Quarantined(record.partition, record.offset, "unreadable", str(error), 0))
    return found[-MAX_QUARANTINED:]


def _readable(value: bytes) -> Record | None:
    try:
        return decode(value)
    except UnreadableRecord:
        return None
