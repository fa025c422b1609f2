"""The joiner: records of the log in, Examples out, one bucket of event time after another.

Pure: no I/O, no clock, no torch. Event time alone decides, so its state is a function of the records applied, in whatever
pieces they came and however the partitions took turns. It knows nothing of how Examples are trained.
"""

from dataclasses import dataclass
from typing import Literal

from google.protobuf.message import DecodeError

from streaming.books import Books, Ledger, Quarantined
from streaming.events import Decision, Event, Record, Tick, UnreadableRecord, decode
from streaming.joiner_state import ledger_of, ledger_state, partition_of, write_partition
from streaming.partition_join import NEVER_MS, PartitionJoin
from streaming.proto.joiner_pb2 import JoinerState
from streaming.window import MAX_VALUE, Example, JoinConfig

__all__ = ["MAX_VALUE", "Books", "Bucket", "Example", "JoinConfig", "Joiner", "Quarantined"]

STATE_SCHEMA = 1

Kind = Literal["decision", "tick", "exposure", "feedback", "interaction"]


@dataclass(frozen=True, slots=True)
class Bucket:
    """The Examples whose decisions were made in [start_ms, end_ms), by (event time, decision id)."""

    index: int
    start_ms: int
    end_ms: int
    examples: tuple[Example, ...]


class Joiner:
    """Joins the records of `num_partitions` partitions. Apply each partition's records in offset order, each once."""

    def __init__(self, config: JoinConfig, num_partitions: int) -> None:
        if num_partitions < 1:
            raise ValueError(f"num_partitions is {num_partitions}; at least 1")
        self.config = config
        self._ledger = Ledger()
        self._partitions = [PartitionJoin(config, partition, self._ledger) for partition in range(num_partitions)]
        self._trained_through_ms = 0

    # In ---------------------------------------------------------------------------------------------------------------

    def apply(self, partition: int, offset: int, value: bytes) -> None:
        """Take one record. What can't be used is quarantined, never raised; ValueError only for an offset applied before."""
        join = self._partitions[partition]
        if offset < join.next_offset:
            raise ValueError(f"partition {partition}: offset {offset} was applied before; the next is {join.next_offset} or later")
        join.next_offset = offset + 1
        try:
            record = decode(value)
        except UnreadableRecord as error:
            self._ledger.quarantine(Quarantined(partition, offset, "unreadable", str(error)), None)
            return
        match record.WhichOneof("body"):
            case "event":
                self._apply_event(join, offset, record)
            case "decision":
                if self._in_time("decision", join, offset, record.append_time_ms, record.decision):
                    join.add_decision(offset, record.decision)
            case "tick":
                if self._in_time("tick", join, offset, record.append_time_ms, record.tick):
                    join.tick(record.tick.event_time_ms)
            case _:
                pass  # Controls are the learner's, items are the catalogue's

    def mark_stale(self, num_examples: int) -> None:
        """Move that many own Examples from trained to stale: the learner took them and did not train on them."""
        counts = self._ledger.of["decision"]
        if not 0 <= num_examples <= counts["trained"]:
            raise ValueError(f"mark_stale({num_examples}); {counts['trained']} were taken for training")
        counts["trained"] -= num_examples
        counts["stale"] += num_examples

    # Out --------------------------------------------------------------------------------------------------------------

    def take_bucket(self) -> Bucket | None:
        """The oldest bucket that is complete and holds Examples, else None; then `trained_through_ms` passes the empty ones."""
        through_ms = self._complete_through_ms()
        if through_ms <= self._trained_through_ms:
            return None
        for join in self._partitions:
            join.settle()
        bucket_ms = self.config.bucket_ms
        index = min((index for join in self._partitions for index in join.buckets), default=None)
        if index is None or (index + 1) * bucket_ms > through_ms:
            self._trained_through_ms = through_ms
            return None
        examples = [example for join in self._partitions for example in join.buckets.pop(index, ())]
        examples.sort(key=lambda example: (example.decision.event_time_ms, example.decision.decision_id, example.partition))
        num_own = sum(example.own for example in examples)
        self._ledger.of["decision"]["trained"] += num_own
        self._ledger.taught += len(examples) - num_own
        self._trained_through_ms = (index + 1) * bucket_ms
        return Bucket(index, index * bucket_ms, self._trained_through_ms, tuple(examples))

    @property
    def trained_through_ms(self) -> int:
        """All decisions before this time have been handed out by `take_bucket`, or never will be; 0 at the start."""
        return self._trained_through_ms

    @property
    def watermark_ms(self) -> int | None:
        """The least watermark of the partitions; None while one of them has had no Decision or Tick."""
        watermark_ms = min(join.watermark_ms for join in self._partitions)
        return None if watermark_ms == NEVER_MS else watermark_ms

    def next_offset(self, partition: int) -> int:
        """Where to go on reading: one past the last offset applied."""
        return self._partitions[partition].next_offset

    def min_open_memory_offset(self, partition: int) -> int | None:
        """The least `memory_offset` of the decisions of a partition that are open or not yet taken; None without any.

        User memory as of this offset is still needed. A decision that says −1 stands for its own offset.
        """
        join = self._partitions[partition]
        join.settle()
        held = [(opened.decision.memory_offset, opened.offset) for opened in join.open.values()]
        held += [(example.decision.memory_offset, example.offset) for bucket in join.buckets.values() for example in bucket]
        return min((offset if memory_offset < 0 else memory_offset for memory_offset, offset in held), default=None)

    def books(self) -> Books:
        """What became of every record so far. Costs one look at each open decision."""
        for join in self._partitions:
            join.settle()
        opened = [decision for join in self._partitions for decision in join.open.values() if decision.own]
        untaken = [example for join in self._partitions for bucket in join.buckets.values() for example in bucket if example.own]
        waiting = [waiting.event for join in self._partitions for events in join.waiting.values() for waiting in events]
        waiting_feedback = sum(event.HasField("feedback") for event in waiting)
        return self._ledger.read(
            open_decisions=len(opened) + len(untaken),
            open_feedback=waiting_feedback + sum(len(decision.feedback) for decision in opened),
            open_exposures=len(waiting) - waiting_feedback,
        )

    @property
    def quarantined(self) -> list[Quarantined]:
        """The last 1,000 records that could not be used, oldest first; `books().quarantined` counts all of them."""
        return list(self._ledger.quarantined)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """The whole state; the same state gives the same bytes."""
        for join in self._partitions:
            join.settle()
        state = JoinerState(schema=STATE_SCHEMA, trained_through_ms=self._trained_through_ms, ledger=ledger_state(self._ledger))
        for join in self._partitions:
            write_partition(join, state.partitions.add())
        return state.SerializeToString(deterministic=True)

    @staticmethod
    def restore(config: JoinConfig, snapshot: bytes) -> "Joiner":
        """A joiner that goes on where the one of `snapshot` was, if `config` is the same. ValueError when the bytes are no snapshot."""
        try:
            state = JoinerState.FromString(snapshot)
        except DecodeError as error:
            raise ValueError(f"not a snapshot of a joiner: {error}") from error
        if state.schema != STATE_SCHEMA:
            raise ValueError(f"a joiner's snapshot of schema {state.schema}; this program reads {STATE_SCHEMA}")
        joiner = Joiner(config, len(state.partitions))
        joiner._trained_through_ms = state.trained_through_ms
        joiner._ledger = ledger_of(state.ledger)
        joiner._partitions = [partition_of(config, number, part, joiner._ledger) for number, part in enumerate(state.partitions)]
        return joiner

    # ------------------------------------------------------------------------------------------------------------------

    def _apply_event(self, join: PartitionJoin, offset: int, record: Record) -> None:
        event = record.event
        kind = event.WhichOneof("body")
        if kind is None:
            self._ledger.quarantine(Quarantined(join.partition, offset, "event without a body", event.event_id), None)
        elif self._in_time(kind, join, offset, record.append_time_ms, event) and kind != "interaction":
            # Written so that NaN is out of range too.
            if kind == "feedback" and not -MAX_VALUE <= event.feedback.value <= MAX_VALUE:
                self._ledger.quarantine(Quarantined(join.partition, offset, "value out of range", f"{event.feedback.value}"), kind)
            else:
                join.add_event(offset, record.append_time_ms, event)

    def _in_time(self, kind: Kind, join: PartitionJoin, offset: int, append_time_ms: int, body: Decision | Event | Tick) -> bool:
        """Count a record, and quarantine it if its time can't be: one from the future would close all that is open."""
        self._ledger.of[kind]["total"] += 1
        if 0 <= body.event_time_ms <= append_time_ms + self.config.future_ms:
            return True
        reason = "before 1970" if body.event_time_ms < 0 else "from the future"
        detail = f"event time {body.event_time_ms}, appended {append_time_ms}"
        self._ledger.quarantine(Quarantined(join.partition, offset, reason, detail), kind)
        return False

    def _complete_through_ms(self) -> int:
        """The end of the last bucket that nothing can be added to."""
        watermark_ms = self.watermark_ms
        if watermark_ms is None:
            return 0
        return (watermark_ms - self.config.open_ms) // self.config.bucket_ms * self.config.bucket_ms
