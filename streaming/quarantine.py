"""Records that could not be used, with their bytes, as lines that people can read, repair and hand back. Knows nothing of joins.

A line is JSON: where the record stands (stream, partition, offset: its identity), why it was refused, its key and value as
base64, and under `record` what the value says, where it says anything. To repair it, change `record`, or take `record` out and
change `value`.
"""

import base64
import binascii
import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from streaming.archive import EVENTS, ITEMS
from streaming.books import Quarantined
from streaming.events import Control, Record, UnreadableRecord, decode, encode
from streaming.log import Entry, EventLog, LogRecord, Position

REQUEUE, ACCEPT = "requeue", "accept_quarantine"
"""Kinds of Control that name records of quarantine: repaired and put back, or to be lived without."""

Place = tuple[int, int]
"""Partition and offset of a record."""


@dataclass(frozen=True, order=True)
class Kept:
    """One record that could not be used: where it stands, why, and what it is made of."""

    stream: str
    partition: int
    offset: int
    reason: str
    detail: str
    key: bytes
    value: bytes

    @staticmethod
    def of(stream: str, quarantined: Quarantined, record: LogRecord) -> "Kept":
        """What became of `record`."""
        return Kept(stream, quarantined.partition, quarantined.offset, quarantined.reason, quarantined.detail, record.key, record.value)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        said: dict[str, Any] = vars(self) | {"key": _text(self.key), "value": _text(self.value)}
        with contextlib.suppress(UnreadableRecord):
            said["record"] = json_format.MessageToDict(decode(self.value), preserving_proto_field_name=True)
        return said


def fetched(stream: str, quarantined: Iterable[Quarantined], log: EventLog) -> list[Kept]:
    """These records with their bytes, from the log; those it no longer holds are left out."""
    begin_offsets = log.begin_offsets()
    found = []
    for one in quarantined:
        if one.offset >= begin_offsets[one.partition]:
            records = log.read(one.partition, one.offset, 1)
            found += [Kept.of(stream, one, record) for record in records if record.offset == one.offset]
    return found


def write_lines(kept: Iterable[Kept]) -> str:
    """A line each, in order of where they stand."""
    return "".join(json.dumps(one.as_dict(), sort_keys=True) + "\n" for one in sorted(kept))


def repaired(path: Path) -> dict[str, list[LogRecord]]:
    """By stream the records that the lines of a file say, each where the broken one stood. ValueError names a line that says none."""
    found: dict[str, list[LogRecord]] = {EVENTS: [], ITEMS: []}
    for number, line in enumerate(path.read_text().split("\n"), 1):
        if line.strip():
            try:
                said = json.loads(line)
                found[said["stream"]].append(_repaired(said))
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError, json_format.ParseError) as error:
                raise ValueError(f"{path}, line {number}: {error!r}") from None
    return found


def naming(kind: str, places: Iterable[Place], now_ms: int) -> bytes:
    """A Control of that kind about these records of the events, as it stands in the log."""
    arguments = {"records": json.dumps(sorted(places))}
    return encode(Control(kind=kind, event_time_ms=now_ms, arguments=arguments), now_ms)


def named(control: Control) -> frozenset[Place]:
    """What `naming` was given. ValueError when the Control says something else."""
    try:
        return frozenset((int(partition), int(offset)) for partition, offset in json.loads(control.arguments["records"]))
    except (ValueError, TypeError) as error:
        raise ValueError(f"a {control.kind} that names no records: {error!r}") from None


def refuse_foreign_place(log: EventLog, partition: int, offset: int) -> None:
    """ValueError for a place where the log holds no record."""
    if not 0 <= partition < log.num_partitions:
        raise ValueError(f"a repaired record of partition {partition}; {log.name} has 0..{log.num_partitions - 1}")
    begin, end = log.begin_offsets()[partition], log.end_offsets()[partition]
    if not begin <= offset < end:
        raise ValueError(f"a repaired record of partition {partition}, offset {offset}; {log.name} holds {begin}..{end - 1}")


def requeue(records: Sequence[LogRecord], log: EventLog, now_ms: int) -> list[Position]:
    """Append repaired records, each to the partition where the broken one stands, behind a Control that names those.

    They count while their window is open; later they are for `recsys replay --include`.
    """
    control = naming(REQUEUE, ((record.partition, record.offset) for record in records), now_ms)
    again = [Entry(record.key, _appended(record.value, now_ms), record.partition) for record in records]
    return log.append([Entry(b"", control, 0), *again])


class Mended:
    """A log to read, in which repaired records stand in the place of the broken ones. ValueError for a place that it does not hold."""

    def __init__(self, log: EventLog, records: Iterable[LogRecord]) -> None:
        self._log, self.name, self.num_partitions = log, log.name, log.num_partitions
        self._repaired = {(record.partition, record.offset): record for record in records}
        for partition, offset in self._repaired:
            refuse_foreign_place(log, partition, offset)
        self.append, self.close = log.append, log.close
        self.begin_offsets, self.end_offsets = log.begin_offsets, log.end_offsets

    def read(self, partition: int, offset: int, max_records: int = 10_000) -> list[LogRecord]:
        """See EventLog."""
        records = self._log.read(partition, offset, max_records)
        return [self._repaired.get((record.partition, record.offset), record) for record in records]


def _appended(value: bytes, now_ms: int) -> bytes:
    record = decode(value)
    record.append_time_ms = now_ms
    return record.SerializeToString(deterministic=True)


def _repaired(said: Mapping[str, Any]) -> LogRecord:
    if "record" in said:
        value = json_format.ParseDict(said["record"], Record()).SerializeToString(deterministic=True)
    else:
        value = _bytes(said["value"])
    decode(value)
    return LogRecord(index(said["partition"]), index(said["offset"]), _bytes(said["key"]), value)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error
