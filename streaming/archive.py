"""A log as parquet files: written in order, read back in order, and readable by anyone with a parquet reader.

Knows nothing of joins or models. An archive directory holds one stream a folder, `events/` and `items/`; a stream is
`STREAM.json` and its segments, each a run of one partition's records. `value` holds the record's own bytes, so that
what is read back is what was written; the columns beside it are for people and for SQL.
"""

import bisect
import contextlib
import fcntl
import io
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from streaming.events import Record, UnreadableRecord, decode
from streaming.gaps import Gap, Gapped
from streaming.log import Entry, EventLog, LogRecord, OffsetGone, Position

EVENTS, ITEMS = "events", "items"
"""The folders of an archive directory."""

COLUMNS = {
    "partition": pl.Int32,
    "offset": pl.Int64,
    "key": pl.String,  # null where the key isn't UTF-8: then key_bytes has it
    "key_bytes": pl.Binary,
    "append_time_ms": pl.Int64,  # null, as are the next three, for an unreadable value
    "event_time_ms": pl.Int64,
    "kind": pl.String,  # decision, exposure, feedback, interaction, tick, control, item; unreadable
    "user_id": pl.String,
    "value": pl.Binary,
}
STREAM_FILE = "STREAM.json"
GAPS, EMPTY = "gaps", "empty"
"""What it knows of offsets that no segment has: gone before they were read, or never used in a log whose offsets jump."""
SEGMENT_NAME = re.compile(r"p(\d{5})-(\d{20})-(\d{20})\.parquet")
READ_RECORDS = 10_000


class Segment(NamedTuple):
    """One file: the records of a partition from `first_offset` to `last_offset`, both included."""

    partition: int
    first_offset: int
    last_offset: int
    path: Path


def write_archive(
    log: EventLog,
    directory: Path,
    *,
    until: Sequence[int] | None = None,
    max_segment_records: int = 100_000,
    accept_gap: bool = False,
) -> int:
    """Append to the stream in `directory` what `log` has beyond it; the number of records written.

    Stops at the offsets `until`, by partition: by default the log's end when called. It may be stopped at any moment
    and called again: a segment is there whole or not at all. Writers of one stream wait for each other. OffsetGone when the log no longer
    holds what comes next; with `accept_gap` the stream says so, and goes on behind it. ValueError for a log with another
    number of partitions, or that is not the one the stream was written from.
    """
    if max_segment_records < 1:
        raise ValueError(f"max_segment_records is {max_segment_records}; at least 1")
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory):
        _open_stream(directory, log.num_partitions)
        return _write_on(log, directory, until, max_segment_records, accept_gap=accept_gap)


def _write_on(log: EventLog, directory: Path, until: Sequence[int] | None, max_segment_records: int, *, accept_gap: bool) -> int:
    ends = {segment.partition: segment.last_offset + 1 for segment in _segments(directory)}
    passed = {(gap.partition, gap.begin): gap.end for gap in _noted(directory, GAPS)}
    num_written = 0
    begin_offsets = log.begin_offsets()
    _refuse_another_log(directory, log)
    for partition, until_offset in enumerate(log.end_offsets() if until is None else until):
        begin_offset = ends.get(partition, begin_offsets[partition])
        while (partition, begin_offset) in passed:
            begin_offset = passed[partition, begin_offset]
        if accept_gap and begin_offset < begin_offsets[partition]:
            _note(directory, GAPS, [Gap(partition, begin_offset, begin_offsets[partition])])
            begin_offset = begin_offsets[partition]
        for records in _runs(log, partition, begin_offset, until_offset, max_segment_records):
            if jumps := _jumps(records, begin_offset):
                _note(directory, EMPTY, jumps)
            _write_segment(directory, records)
            num_written += len(records)
            begin_offset = records[-1].offset + 1
    return num_written


class Archiver:
    """A component that keeps the streams of a log in the folders of one directory, by name."""

    def __init__(self, streams: Mapping[str, EventLog], directory: Path, *, accept_gap: bool = False) -> None:
        self._streams, self._directory, self._accept_gap = streams, directory, accept_gap
        self.num_written = dict.fromkeys(streams, 0)

    def step(self) -> None:
        """Write what has come since."""
        for name, log in self._streams.items():
            self.num_written[name] += write_archive(log, self._directory / name, accept_gap=self._accept_gap)

    def close(self) -> None:
        """Nothing is held: what was written is there."""


class ArchiveLog(Gapped):
    """The stream in `directory` as a read-only EventLog, as it stood when opened.

    ValueError when there is no stream, its segments overlap or one is missing. Holds the last segment read of each partition in memory.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(_Segments(directory), _noted(directory, GAPS))


class _Segments:
    """What `ArchiveLog` says, blind to gaps."""

    def __init__(self, directory: Path) -> None:
        self.name, self.num_partitions = str(directory), _num_partitions(directory)
        self._segments: list[list[Segment]] = [[] for _ in range(self.num_partitions)]
        self._empty = _noted(directory, EMPTY)
        known = {(gap.partition, gap.end): gap.begin for gap in (*self._empty, *_noted(directory, GAPS))}
        for segment in _segments(directory):
            before = self._segments[segment.partition]
            if before and segment.first_offset <= before[-1].last_offset:
                raise ValueError(f"{segment.path} overlaps {before[-1].path.name}: the stream had two writers")
            begin = segment.first_offset
            while (segment.partition, begin) in known:
                begin = known[segment.partition, begin]
            if before and begin > before[-1].last_offset + 1:
                raise ValueError(f"{directory}: between {before[-1].path.name} and {segment.path.name} a segment is missing")
            before.append(segment)
        self._loaded: dict[int, tuple[Segment, pl.DataFrame]] = {}
        self._lock = threading.Lock()

    def append(self, entries: Sequence[Entry]) -> list[Position]:
        """An archive is written by `write_archive` only: io.UnsupportedOperation."""
        raise io.UnsupportedOperation("an archive can only be read")

    def read(self, partition: int, offset: int, max_records: int = 10_000) -> list[LogRecord]:
        """See EventLog."""
        segments = self._segments[partition]
        if segments and offset < segments[0].first_offset:
            raise OffsetGone(self.name, partition, offset, segments[0].first_offset)
        records: list[LogRecord] = []
        start = bisect.bisect_left(segments, offset, key=lambda segment: segment.last_offset)
        for segment in segments[start:]:
            if len(records) >= max_records:
                break
            frame = self._frame(segment)
            first_row = frame["offset"].search_sorted(offset, side="left")
            records += _records(frame.slice(first_row, max_records - len(records)))
        return records

    def begin_offsets(self) -> list[int]:
        """See EventLog."""
        return [segments[0].first_offset if segments else 0 for segments in self._segments]

    def end_offsets(self) -> list[int]:
        """See EventLog."""
        return [segments[-1].last_offset + 1 if segments else 0 for segments in self._segments]

    def close(self) -> None:
        """See EventLog."""
        self._loaded.clear()

    def _frame(self, segment: Segment) -> pl.DataFrame:
        with self._lock:
            loaded = self._loaded.get(segment.partition)
            if loaded is None or loaded[0] != segment:
                loaded = self._loaded[segment.partition] = segment, _frame_of(segment, self._empty)
            return loaded[1]


def _records(frame: pl.DataFrame) -> Iterator[LogRecord]:
    for partition, offset, key, key_bytes, value in frame.iter_rows():
        yield LogRecord(partition, offset, key_bytes if key is None else key.encode(), value)


def _runs(log: EventLog, partition: int, offset: int, until_offset: int, max_records: int) -> Iterator[list[LogRecord]]:
    """The partition's records of offset..until_offset, in lists of `max_records` but for the last."""
    run: list[LogRecord] = []
    while offset < until_offset:
        batch = log.read(partition, offset, min(max_records - len(run), READ_RECORDS))
        kept = [record for record in batch if record.offset < until_offset]
        run += kept
        if len(kept) < len(batch) or not batch:
            break
        offset = batch[-1].offset + 1
        if len(run) == max_records:
            yield run
            run = []
    if run:
        yield run


def _jumps(records: Sequence[LogRecord], begin_offset: int) -> list[Gap]:
    """Offsets from `begin_offset` on that no record has, up to the last."""
    if records[-1].offset - begin_offset + 1 == len(records):
        return []
    offsets = [begin_offset - 1, *(record.offset for record in records)]
    return [Gap(records[0].partition, before + 1, offset) for before, offset in pairwise(offsets) if offset > before + 1]


def _refuse_another_log(directory: Path, log: EventLog) -> None:
    """What the archive holds last of each partition must be in the log, if that still holds it."""
    begin_offsets, end_offsets = log.begin_offsets(), log.end_offsets()
    for segment in {segment.partition: segment for segment in _segments(directory)}.values():
        partition, last = segment.partition, segment.last_offset
        if end_offsets[partition] <= last:
            there = f"{log.name} ends at {end_offsets[partition]}"
            raise ValueError(f"{directory} holds partition {partition} up to {last}; {there}: another log?")
        if last >= begin_offsets[partition]:
            kept = list(_records(_frame_of(segment, _noted(directory, EMPTY)).tail(1)))
            if log.read(partition, last, 1) != kept:
                raise ValueError(f"{directory} has another record at partition {partition}, offset {last}, than {log.name}: another log?")


def _frame_of(segment: Segment, empty: Sequence[Gap]) -> pl.DataFrame:
    """The records of a segment, all that it was written with; `empty`: offsets of the stream that no record ever had."""
    partition, first, last, path = segment
    try:
        frame = pl.read_parquet(path, columns=["partition", "offset", "key", "key_bytes", "value"])
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path} is no whole segment: {str(error).splitlines()[0]}") from None
    held = frame.select(pl.col("partition").unique().implode(), first=pl.col("offset").min(), last=pl.col("offset").max()).row(0)
    if held != ([partition], first, last):
        raise ValueError(f"{path} is no whole segment: it holds offsets {held[1]} to {held[2]} of partition {held[0]}")
    jumped = sum(gap.end - gap.begin for gap in empty if gap.partition == partition and first < gap.begin and gap.end <= last)
    written = last - first + 1 - jumped
    if not frame.height == frame["offset"].n_unique() == written or not frame["offset"].is_sorted():
        raise ValueError(f"{path} is no whole segment: it holds {frame.height} records where {written} were written, each behind the last")
    return frame


def _write_segment(directory: Path, records: Sequence[LogRecord]) -> None:
    partition, first_offset, last_offset = records[0].partition, records[0].offset, records[-1].offset
    frame = pl.DataFrame([_row(record) for record in records], schema=COLUMNS, orient="row")
    with _replacing(directory / f"p{partition:05}-{first_offset:020}-{last_offset:020}.parquet") as file:
        frame.write_parquet(file, compression="zstd")


def _row(record: LogRecord) -> tuple[object, ...]:
    try:
        key, key_bytes = record.key.decode(), None
    except UnicodeDecodeError:
        key, key_bytes = None, record.key
    try:
        decoded = decode(record.value)
    except UnreadableRecord:
        described: tuple[object, ...] = (None, None, "unreadable", None)
    else:
        described = (decoded.append_time_ms, *_described(decoded))
    return (record.partition, record.offset, key, key_bytes, *described, record.value)


def _described(record: Record) -> tuple[int, str, str | None]:
    """Event time, kind and user of a record."""
    match record.WhichOneof("body"):
        case "decision":
            return record.decision.event_time_ms, "decision", record.decision.user_id
        case "event":
            return record.event.event_time_ms, record.event.WhichOneof("body") or "event", record.event.user_id
        case "tick":
            return record.tick.event_time_ms, "tick", None
        case "control":
            return record.control.event_time_ms, "control", None
        case _:
            return record.item.event_time_ms, "item", None


def _segments(directory: Path) -> list[Segment]:
    """In the order of partition and offset, which is that of the names."""
    matches = [match for path in sorted(directory.iterdir()) if (match := SEGMENT_NAME.fullmatch(path.name))]
    return [Segment(int(match[1]), int(match[2]), int(match[3]), directory / match[0]) for match in matches]


def _num_partitions(directory: Path) -> int:
    return int(_stream(directory)["num_partitions"])


def _noted(directory: Path, name: str) -> list[Gap]:
    return [Gap(*gap) for gap in _stream(directory).get(name, ())]


def _note(directory: Path, name: str, gaps: Sequence[Gap]) -> None:
    _write_stream(directory, _stream(directory) | {name: [*_noted(directory, name), *gaps]})


def _stream(directory: Path) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads((directory / STREAM_FILE).read_text())
        if int(said["num_partitions"]) > max((segment.partition for segment in _segments(directory)), default=0):
            return said
    except FileNotFoundError:
        raise ValueError(f"{directory} holds no archived stream: it has no {STREAM_FILE}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{directory / STREAM_FILE} says nothing that can be read: {error!r}") from None
    raise ValueError(f"{directory / STREAM_FILE} says {said['num_partitions']} partitions; there are segments of more")


def _write_stream(directory: Path, said: dict[str, Any]) -> None:
    with _replacing(directory / STREAM_FILE) as file:
        file.write(json.dumps(said).encode())


def _open_stream(directory: Path, num_partitions: int) -> None:
    for left_behind in directory.glob("*.tmp"):
        left_behind.unlink()
    if not (directory / STREAM_FILE).exists():
        _write_stream(directory, {"num_partitions": num_partitions})
    stored = _num_partitions(directory)
    if stored != num_partitions:
        raise ValueError(f"{directory} has {stored} partitions and the log {num_partitions}")


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """While nobody else is here; what a process held is free when it ends."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[io.BufferedWriter]:
    """A file that appears under its name whole and durable, or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
