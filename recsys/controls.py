"""What operators ask of a learner, as Control records in the log: read in order, each due at one minute of the log's own time.

Knows nothing of weights. A Control stands in partition 0; it is due after the last minute that the watermark of that partition,
as of the Control's offset, could complete. So when it takes effect depends on the log alone: a replay does what production did.
"""

import json
import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from streaming.events import Control, UnreadableRecord, decode
from streaming.joiner import Asked, Example, JoinConfig
from streaming.log import EventLog

LOG = logging.getLogger(__name__)

CONTROL_PARTITION = 0
ROLLBACK = "rollback"


class Span(NamedTuple):
    """Records of one partition, `begin` included, `end` not."""

    partition: int
    begin: int
    end: int


@dataclass(frozen=True)
class Rollback:
    """Back to what was learned in a version, and nothing is learned from decisions of these spans."""

    version: int
    spans: tuple[Span, ...]

    def control(self, event_time_ms: int) -> Control:
        """As a record."""
        arguments = {"version": str(self.version), "spans": json.dumps(self.spans)}
        return Control(kind=ROLLBACK, event_time_ms=event_time_ms, arguments=arguments)

    @staticmethod
    def of(control: Control) -> "Rollback":
        """What a record says. ValueError when it says something else."""
        try:
            spans = tuple(Span(*map(int, span)) for span in json.loads(control.arguments["spans"]))
            return Rollback(int(control.arguments["version"]), spans)
        except (ValueError, TypeError) as error:
            raise ValueError(f"a rollback that can't be read: {error!r}") from None


@dataclass(frozen=True)
class Due:
    """A rollback that comes before `minute` is learned."""

    minute: int
    rollback: Rollback


class Controls:
    """What was asked for and is not yet due, and which records teach nothing any more."""

    def __init__(self, config: JoinConfig) -> None:
        self._config = config
        self._waiting: deque[Due] = deque()
        self._void: list[Span] = []

    def take(self, asked: Iterable[Asked]) -> None:
        """Read on. What can't be obeyed is told of and left aside."""
        for one in asked:
            if one.partition != CONTROL_PARTITION:
                LOG.warning("a Control at partition %d, offset %d: only those of partition %d are obeyed", *one[:2], CONTROL_PARTITION)
            elif one.control.kind == ROLLBACK:
                minute = max(0, (one.watermark_ms - self._config.open_ms) // self._config.bucket_ms)
                try:
                    self._waiting.append(Due(minute, Rollback.of(one.control)))
                except ValueError as error:
                    LOG.warning("the Control at offset %d is left aside: %s", one.offset, error)

    def next_due(self, minute: int) -> Due | None:
        """Take out the next that comes before `minute` is learned."""
        return self._waiting.popleft() if self._waiting and self._waiting[0].minute <= minute else None

    def avoid(self, spans: Iterable[Span]) -> None:
        """Nothing is learned from decisions of these records any more."""
        self._void += spans

    def is_void(self, example: Example) -> bool:
        """Whether it may not be learned."""
        return any(span.partition == example.partition and span.begin <= example.offset < span.end for span in self._void)

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        waiting = [[due.minute, due.rollback.version, due.rollback.spans] for due in self._waiting]
        return {"waiting": waiting, "void": self._void}

    @staticmethod
    def of(config: JoinConfig, state: Mapping[str, Any]) -> "Controls":
        """What `state` said."""
        controls = Controls(config)
        controls._waiting.extend(Due(minute, Rollback(version, _spans(spans))) for minute, version, spans in state["waiting"])
        controls._void += _spans(state["void"])
        return controls


def versions_gone_back_to(log: EventLog, offset: int) -> frozenset[int]:
    """The versions that rollbacks from `offset` on name: who reads on needs their checkpoints."""
    versions, offset = set(), max(offset, log.begin_offsets()[CONTROL_PARTITION])
    while records := log.read(CONTROL_PARTITION, offset):
        offset = records[-1].offset + 1
        for record in records:
            try:
                control = decode(record.value).control
                if control.kind == ROLLBACK:
                    versions.add(Rollback.of(control).version)
            except (UnreadableRecord, ValueError):
                continue  # told of when it is read
    return frozenset(versions)


def _spans(said: Iterable[Sequence[int]]) -> tuple[Span, ...]:
    return tuple(Span(*span) for span in said)
