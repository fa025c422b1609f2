"""The durable, ordered record of everything: one topic of partitions, appended to and read by offset.

Knows nothing of what the bytes mean. `EventLog` is the interface; `MemoryLog` is its smallest real implementation
(one process, lost with it). `sqlite_log` is the embedded default and `kafka_log` the one for production.
"""

import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

MAX_RECORD_BYTES = 1_000_000


class Entry(NamedTuple):
    """What is appended. `partition` is given only by those who must reach a certain one (ticks); else the key decides."""

    key: bytes
    value: bytes
    partition: int | None = None


class Position(NamedTuple):
    """Where a record stands."""

    partition: int
    offset: int


class LogRecord(NamedTuple):
    """A record as read: offsets rise within a partition, not always by one."""

    partition: int
    offset: int
    key: bytes
    value: bytes


class LogUnavailable(Exception):
    """The log can't be reached or can't keep what it was given now; nothing of the batch may be taken as durable."""


class LogChanged(ValueError):
    """The topic has another number of partitions than it was opened with: keys would be written and looked for where they are not."""


class OffsetGone(Exception):
    """The offset asked for is not held any more (retention); the next one that is held is `begin_offset`."""

    def __init__(self, log: str, partition: int, offset: int, begin_offset: int) -> None:
        num_gone = begin_offset - offset
        super().__init__(f"{log}, partition {partition}: offset {offset} is gone; {num_gone} records later it goes on at {begin_offset}")
        self.partition, self.offset, self.begin_offset = partition, offset, begin_offset


class EventLog(Protocol):
    """One topic. Order holds within a partition; a key stays in one partition. Safe to call from several threads."""

    @property
    def name(self) -> str:
        """What people know it by."""

    @property
    def num_partitions(self) -> int:
        """How many partitions the topic has; fixed for the life of the object."""

    def append(self, entries: Sequence[Entry]) -> list[Position]:
        """Write all entries in order and return once they are durable. LogUnavailable if not; ValueError over 1,000,000 bytes."""

    def read(self, partition: int, offset: int, max_records: int = 10_000) -> list[LogRecord]:
        """Records from `offset` on, in order; empty at the end. OffsetGone when retention has passed it. Never waits."""

    def begin_offsets(self) -> list[int]:
        """The first offset still held, by partition."""

    def end_offsets(self) -> list[int]:
        """The offset the next record will get, by partition."""

    def close(self) -> None:
        """Release what is held; further calls are undefined."""


def partition_of(key: bytes, num_partitions: int) -> int:
    """CRC-32 of the key modulo the partitions: what librdkafka calls its consistent partitioner."""
    return zlib.crc32(key) % num_partitions


def place(entry: Entry, num_partitions: int) -> int:
    """The partition an entry belongs to. ValueError names a partition out of range or a value over the limit."""
    if len(entry.value) > MAX_RECORD_BYTES:
        raise ValueError(f"a record of {len(entry.value)} bytes; at most {MAX_RECORD_BYTES} are kept")
    if entry.partition is None:
        return partition_of(entry.key, num_partitions)
    if not 0 <= entry.partition < num_partitions:
        raise ValueError(f"partition {entry.partition}; this topic has 0..{num_partitions - 1}")
    return entry.partition


def batches(
    log: EventLog, pass_gap: Callable[[OffsetGone], None] = lambda gone: None, begins: Sequence[int] | None = None
) -> Iterator[list[LogRecord]]:
    """All that the log holds now, its partitions in turn, a batch of each; `pass_gap` is told of what is gone in between.

    `begins`: the first offset wanted, by partition; by default all.
    """
    ends, next_offsets = log.end_offsets(), dict(enumerate(log.begin_offsets() if begins is None else begins))
    while next_offsets:
        for partition, offset in list(next_offsets.items()):
            try:
                records = [record for record in log.read(partition, offset) if record.offset < ends[partition]]
            except OffsetGone as gone:
                pass_gap(gone)
                next_offsets[partition] = gone.begin_offset
                continue
            if records:
                next_offsets[partition] = records[-1].offset + 1
                yield records
            else:
                del next_offsets[partition]


class MemoryLog:
    """A log in this process's memory: for tests, worlds and benchmarks."""

    name = "memory:"

    def __init__(self, num_partitions: int = 4) -> None:
        if num_partitions < 1:
            raise ValueError(f"num_partitions is {num_partitions}; at least 1")
        self.num_partitions = num_partitions
        self._records: list[list[LogRecord]] = [[] for _ in range(num_partitions)]
        self._lock = threading.Lock()

    def append(self, entries: Sequence[Entry]) -> list[Position]:
        """See EventLog."""
        places = [place(entry, self.num_partitions) for entry in entries]
        positions = []
        with self._lock:
            for entry, partition in zip(entries, places, strict=True):
                records = self._records[partition]
                records.append(LogRecord(partition, len(records), entry.key, entry.value))
                positions.append(Position(partition, len(records) - 1))
        return positions

    def read(self, partition: int, offset: int, max_records: int = 10_000) -> list[LogRecord]:
        """See EventLog."""
        return self._records[partition][offset : offset + max_records]

    def begin_offsets(self) -> list[int]:
        """See EventLog."""
        return [0] * self.num_partitions

    def end_offsets(self) -> list[int]:
        """See EventLog."""
        return [len(records) for records in self._records]

    def close(self) -> None:
        """See EventLog."""
