"""The joiner: records of the log in, Examples out, one bucket of event time after another.

Pure: no I/O, no clock, no torch. Event time alone decides, so its state is a function of the records applied, in whatever
pieces they came and however the partitions took turns. It knows nothing of how Examples are trained.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

from streaming.books import Books, Ledger, Quarantined
from streaming.due_dates import NEVER_MS
from streaming.fields import MAX_VALUE
from streaming.joiner_state import read_snapshot, snapshot_parts
from streaming.log import LogRecord
from streaming.partition_join import Asked, PartitionJoin
from streaming.window import Example, JoinConfig

__all__ = ["MAX_VALUE", "Asked", "Books", "Bucket", "Example", "JoinConfig", "Joiner", "Quarantined"]


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

    def apply(self, partition: int, records: Sequence[LogRecord]) -> None:
        """Take these records of a partition. What can't be used is quarantined; ValueError only for an offset applied before."""
        self._partitions[partition].apply(records)

    def pass_gap(self, partition: int, offset: int) -> None:
        """Go on at `offset`, because what stood before it can't be read any more. ValueError for an offset applied before.

        What is open there is given up, see `Books`: to take it for seen and not clicked would teach what nobody knows.
        """
        self._partitions[partition].pass_gap(offset)

    def take_controls(self) -> list[Asked]:
        """The Controls that came since the last call, for who obeys them; they are no part of a snapshot."""
        return [asked for join in self._partitions for asked in join.take_controls()]

    def withdraw(self, num_examples: int, fate: Literal["stale", "refused", "quarantined"]) -> None:
        """Move that many own Examples from trained to another fate: the learner took them and has not learned them, or no longer."""
        counts = self._ledger.of["decision"]
        if not 0 <= num_examples <= counts["trained"]:
            raise ValueError(f"withdraw({num_examples}); {counts['trained']} were taken for training")
        counts["trained"] -= num_examples
        counts[fate] += num_examples

    def refuse(self, num_examples: int, reason: str) -> None:
        """Withdraw own Examples of which a gate would not have the learner learn; counted by why as well."""
        self.withdraw(num_examples, "refused")
        refused = self._ledger.refused
        refused[reason] = refused.get(reason, 0) + num_examples

    # Out --------------------------------------------------------------------------------------------------------------

    def take_bucket(self) -> Bucket | None:
        """The oldest bucket that is complete and holds Examples, else None; then `trained_through_ms` passes the empty ones."""
        through_ms = self._complete_through_ms()
        if through_ms <= self._trained_through_ms:
            return None
        bucket_ms = self.config.bucket_ms
        index = min((index for join in self._partitions for index in join.buckets), default=None)
        if index is None or (index + 1) * bucket_ms > through_ms:
            self._trained_through_ms = through_ms
            return None
        taken = [join.buckets.pop(index) for join in self._partitions if index in join.buckets]
        examples = [example for bucket in taken for example in bucket.examples]
        examples.sort(key=attrgetter("event_time_ms", "decision_id", "partition"))
        num_own = sum(bucket.num_own for bucket in taken)
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
        return None if watermark_ms == -NEVER_MS else watermark_ms

    def next_offset(self, partition: int) -> int:
        """Where to go on reading: one past the last offset applied."""
        return self._partitions[partition].next_offset

    def min_open_memory_offset(self, partition: int) -> int | None:
        """The least `memory_offset` of the decisions of a partition that are open or not yet taken; None without any.

        User memory as of this offset is still needed. A decision that says −1 stands for its own offset.
        """
        return self._partitions[partition].least_memory_offset()

    def books(self) -> Books:
        """What became of every record so far."""
        joins = self._partitions
        waiting = Counter(waiting.kind for join in joins for events in join.waiting.values() for waiting in events)
        num_untaken = sum(bucket.num_own for join in joins for bucket in join.buckets.values())
        return self._ledger.read(
            open_decisions=num_untaken + sum(join.table.num_open - join.table.num_taught for join in joins),
            open_feedback=waiting["feedback"] + sum(join.num_held["feedback"] for join in joins),
            open_exposures=waiting["exposure"] + sum(join.num_held["exposure"] for join in joins),
        )

    @property
    def quarantined(self) -> list[Quarantined]:
        """The last `MAX_QUARANTINED` records that could not be used, oldest first; `books().quarantined` counts all of them."""
        return list(self._ledger.quarantined)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """The whole state; the same state gives the same bytes."""
        return b"".join(self.snapshot_parts())

    def snapshot_parts(self) -> list[bytes]:
        """The snapshot in pieces, which is quickly done: another thread can write them while this one goes on."""
        return snapshot_parts(self._partitions, self._ledger, self._trained_through_ms)

    @staticmethod
    def restore(config: JoinConfig, snapshot: bytes) -> "Joiner":
        """A joiner that goes on where the one of `snapshot` was, if `config` is the same. ValueError when the bytes are no snapshot."""
        joins, ledger, trained_through_ms = read_snapshot(config, snapshot)
        joiner = Joiner(config, len(joins))
        joiner._partitions, joiner._ledger, joiner._trained_through_ms = joins, ledger, trained_through_ms
        return joiner

    def _complete_through_ms(self) -> int:
        """The end of the last bucket that nothing can be added to."""
        watermark_ms = self.watermark_ms
        if watermark_ms is None:
            return 0
        return (watermark_ms - self.config.open_ms) // self.config.bucket_ms * self.config.bucket_ms
