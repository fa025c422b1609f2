"""Records that could not be used, with their bytes, as lines that people can read, repair and hand back. Knows nothing of joins.

A line is JSON: where the record stands (stream, partition, offset: its identity), why it was refused, its key and value as
base64, and under `record` what the value says, where it says anything. To repair it, change `record`, or take `record` out and
change `value`.
"""

import base64
import binascii
import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from streaming.books import Quarantined
from streaming.events import Record, UnreadableRecord, decode
from streaming.log import EventLog, LogRecord


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


def repaired(path: Path) -> list[LogRecord]:
    """The records that the lines of a file say, each where the broken one stood. ValueError names a line that says none."""
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip():
            try:
                found.append(_repaired(json.loads(line)))
            except (ValueError, KeyError, TypeError, json_format.ParseError) as error:
                raise ValueError(f"{path}, line {number}: {error!r}") from None
    return found


def _repaired(said: Mapping[str, Any]) -> LogRecord:
    if "record" in said:
        value = json_format.ParseDict(said["record"], Record()).SerializeToString(deterministic=True)
    else:
        value = _bytes(said["value"])
    decode(value)
    return LogRecord(int(said["partition"]), int(said["offset"]), _bytes(said["key"]), value)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error
