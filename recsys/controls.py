"""What operators ask of a learner, as Control records in the log: read in order, each due at one minute of the log's own time.

Knows nothing of weights. A Control stands in partition 0; it is due after the last minute that the watermark of that partition,
as of the Control's offset, could complete. So when it takes effect depends on the log alone: a replay does what production did.
"""

import contextlib
import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from streaming.events import Control, UnreadableRecord, decode, encode
from streaming.gaps import Gap
from streaming.joiner import Asked, Example, JoinConfig
from streaming.log import Entry, EventLog, OffsetGone
from streaming.quarantine import ACCEPT, REQUEUE, Place, named

LOG = logging.getLogger(__name__)

CONTROL_PARTITION = 0
ROLLBACK = "rollback"
ACCEPT_GAP = "accept_gap"


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
    variant: str = ""
    """Whose version; empty in records of before there was a word of it: the reader's own. So is `behavior_digest`."""
    behavior_digest: str = ""
    """Of the configuration that made the version: to learners of another one its number says nothing."""
    through_ms: int = 0
    """What the version was trained through: who learned a minute more, of repaired records, has it by another number. 0: it is not said."""

    def control(self, event_time_ms: int) -> Control:
        """As a record."""
        arguments = {
            "version": str(self.version),
            "spans": json.dumps(self.spans),
            "variant": self.variant,
            "behavior_digest": self.behavior_digest,
            "through_ms": str(self.through_ms),
        }
        return Control(kind=ROLLBACK, event_time_ms=event_time_ms, arguments=arguments)

    @staticmethod
    def of(control: Control) -> "Rollback":
        """What a record says. ValueError when it says something else."""
        try:
            said = control.arguments
            spans = tuple(Span(*map(int, span)) for span in json.loads(said["spans"]))
            whose = said.get("variant", ""), said.get("behavior_digest", "")
            return Rollback(int(said["version"]), spans, *whose, int(said.get("through_ms", "0")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"a rollback that can't be read: {error!r}") from None

    def is_for(self, variant: str) -> bool:
        """Whether learners of this variant obey it."""
        return self.variant in ("", variant)

    def is_numbered_by(self, behavior_digest: str) -> bool:
        """Whether its version is one that learners of this configuration made, or will have made."""
        return self.behavior_digest in ("", behavior_digest)


@dataclass(frozen=True)
class AcceptedGap:
    """The learner of `variant` goes on without the records of `gap`, which the log did not hold any more when it came there."""

    variant: str
    gap: Gap

    def control(self, event_time_ms: int) -> Control:
        """As a record."""
        return Control(kind=ACCEPT_GAP, event_time_ms=event_time_ms, arguments={"variant": self.variant, "gap": json.dumps(self.gap)})

    @staticmethod
    def of(control: Control) -> "AcceptedGap":
        """What a record says. ValueError when it says something else."""
        try:
            return AcceptedGap(control.arguments["variant"], Gap(*map(int, json.loads(control.arguments["gap"]))))
        except (ValueError, TypeError) as error:
            raise ValueError(f"an accepted gap that can't be read: {error!r}") from None


@dataclass(frozen=True)
class Due:
    """A rollback that comes before `minute` is learned."""

    minute: int
    rollback: Rollback


class Undoing(NamedTuple):
    """A rollback that was followed: what was learned behind `version`, in versions up to `newest`, is none of the learner's any more."""

    version: int
    newest: int


def undoing(version: int, undone: Iterable[Undoing]) -> Undoing | None:
    """The first that undid a version; None for one that stands."""
    return next((one for one in undone if one.version < version <= one.newest), None)


def undone_of(state: Mapping[str, Any]) -> list[Undoing]:
    """What the state of Controls says was undone; older ones say nothing of it."""
    return [Undoing(version, newest) for version, newest in state.get("undone", ())]


class Controls:
    """What was asked for and is not yet due, and which records teach nothing any more."""

    def __init__(self, config: JoinConfig, behavior_digest: str) -> None:
        self._config, self._behavior_digest = config, behavior_digest
        self._waiting: deque[Due] = deque()
        self._void: list[Span] = []
        self._undone: list[Undoing] = []
        self.settled: set[Place] = set()
        """Records of quarantine that somebody repaired or will live without; in force from when they are read."""

    def take(self, asked: Iterable[Asked]) -> None:
        """Read on. What can't be obeyed is told of and left aside."""
        for one in asked:
            if one.partition != CONTROL_PARTITION:
                LOG.warning("a Control at partition %d, offset %d: only those of partition %d are obeyed", *one[:2], CONTROL_PARTITION)
            else:
                try:
                    self._take(one)
                except ValueError as error:
                    LOG.warning("the Control at offset %d is left aside: %s", one.offset, error)

    def next_due(self, minute: int) -> Due | None:
        """Take out the next that comes before `minute` is learned."""
        return self._waiting.popleft() if self._waiting and self._waiting[0].minute <= minute else None

    def avoid(self, spans: Iterable[Span]) -> None:
        """Nothing is learned from decisions of these records any more."""
        self._void += [span for span in spans if span not in self._void]

    def undo(self, version: int, newest: int) -> None:
        """What was learned behind `version`, in versions up to `newest`, is undone."""
        self._undone.append(Undoing(version, newest))

    def standing(self, version: int) -> int:
        """The version itself, or what is left of it where it was undone: the one gone back to then."""
        while (by := undoing(version, self._undone)) is not None:
            LOG.warning("version %d was undone: what is left of it is version %d", version, by.version)
            version = by.version
        return version

    def is_void(self, example: Example) -> bool:
        """Whether it may not be learned."""
        return any(span.partition == example.partition and span.begin <= example.offset < span.end for span in self._void)

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        waiting = [[due.minute, due.rollback.version, due.rollback.spans, due.rollback.through_ms] for due in self._waiting]
        return {"waiting": waiting, "void": self._void, "undone": self._undone, "settled": sorted(self.settled)}

    @staticmethod
    def of(config: JoinConfig, behavior_digest: str, state: Mapping[str, Any]) -> "Controls":
        """What `state` said."""
        controls = Controls(config, behavior_digest)
        for minute, version, spans, *through_ms in state["waiting"]:  # which older states do not say
            controls._waiting.append(Due(minute, Rollback(version, _spans(spans), through_ms=sum(through_ms))))
        controls._void += _spans(state["void"])
        controls._undone += undone_of(state)
        controls.settled |= {(partition, offset) for partition, offset in state["settled"]}
        return controls

    def _take(self, asked: Asked) -> None:
        if asked.control.kind == ROLLBACK:
            minute = max(0, (asked.watermark_ms - self._config.open_ms) // self._config.bucket_ms)
            rollback = Rollback.of(asked.control)
            if not rollback.is_for(self._config.variant):
                return
            if rollback.is_numbered_by(self._behavior_digest):
                self._waiting.append(Due(minute, rollback))
            else:
                LOG.info("a rollback to version %d of another configuration: nothing is learned of its records", rollback.version)
                self.avoid(rollback.spans)
        elif asked.control.kind in (REQUEUE, ACCEPT):
            self.settled |= named(asked.control)
        elif asked.control.kind == ACCEPT_GAP:
            AcceptedGap.of(asked.control)  # known since the start


@dataclass
class Foreseen:
    """What Controls further on in the log say that must be known before they are come to."""

    versions: set[int] = field(default_factory=set)
    """That rollbacks go back to: who reads on needs their checkpoints."""
    through_ms: dict[int, int] = field(default_factory=dict)
    """Which version is trained through what these were: the one said, until one is made."""
    spans: list[Span] = field(default_factory=list)
    """That rollbacks of other configurations voided: who has no such version to go back to must not learn them at all."""
    gaps: list[Gap] = field(default_factory=list)
    """That the learner of this variant passed."""

    def made(self, version: int, through_ms: int) -> None:
        """A version was made: it may be one that a rollback goes back to."""
        if through_ms in self.through_ms:
            self.through_ms[through_ms] = version
            self.versions.add(version)

    def version(self, rollback: Rollback) -> int:
        """The reader's own number of the version that is gone back to."""
        return self.through_ms.get(rollback.through_ms, rollback.version)


def foreseen(log: EventLog, variant: str, behavior_digest: str = "", offset: int = 0) -> Foreseen:
    """What the Controls from `offset` on say to a learner; those that can't be read are told of when they are come to."""
    found = Foreseen()
    for control in _controls(log, offset):
        with contextlib.suppress(ValueError):
            if control.kind == ROLLBACK and (rollback := Rollback.of(control)).is_for(variant):
                if rollback.is_numbered_by(behavior_digest):
                    found.versions.add(rollback.version)
                    found.through_ms |= {rollback.through_ms: rollback.version} if rollback.through_ms else {}
                else:
                    found.spans += rollback.spans
            elif control.kind == ACCEPT_GAP and (accepted := AcceptedGap.of(control)).variant == variant:
                found.gaps.append(accepted.gap)
    return found


def accept_gap(log: EventLog, variant: str, gone: OffsetGone, now_ms: int) -> None:
    """Write down that a learner goes on behind what is gone, so that every replay does."""
    accepted = AcceptedGap(variant, Gap(gone.partition, gone.offset, gone.begin_offset))
    log.append([Entry(b"", encode(accepted.control(now_ms), now_ms), CONTROL_PARTITION)])


def settled_later(log: EventLog, offset: int) -> frozenset[Place]:
    """Records of quarantine that Controls from `offset` on settle: who stopped for them can go on."""
    found: set[Place] = set()
    for control in _controls(log, offset):
        if control.kind in (REQUEUE, ACCEPT):
            with contextlib.suppress(ValueError):
                found |= named(control)
    return frozenset(found)


def _controls(log: EventLog, offset: int) -> Iterator[Control]:
    offset = max(offset, log.begin_offsets()[CONTROL_PARTITION])
    while True:
        try:
            records = log.read(CONTROL_PARTITION, offset)
        except OffsetGone as gone:  # in its middle too: of an archive that went on behind a gap
            offset = gone.begin_offset
            continue
        if not records:
            return
        offset = records[-1].offset + 1
        for record in records:
            with contextlib.suppress(UnreadableRecord):
                decoded = decode(record.value)
                if decoded.HasField("control"):
                    yield decoded.control


def _spans(said: Iterable[Sequence[int]]) -> tuple[Span, ...]:
    return tuple(Span(*span) for span in said)
