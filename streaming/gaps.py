"""Parts of a log that are gone for its reader, also where somebody else still holds them. Knows nothing of how they came to be gone."""

from collections.abc import Iterable
from typing import NamedTuple

from streaming.log import EventLog, LogRecord, OffsetGone


class Gap(NamedTuple):
    """Offsets of one partition, `begin` included, `end` not."""

    partition: int
    begin: int
    end: int


class Gapped:
    """A log to read, in which `gaps` are gone: where one begins, OffsetGone says where it goes on."""

    def __init__(self, log: EventLog, gaps: Iterable[Gap]) -> None:
        self._log, self.name, self.num_partitions = log, log.name, log.num_partitions
        self._gaps = sorted(gaps)
        self.append, self.close = log.append, log.close
        self.begin_offsets, self.end_offsets = log.begin_offsets, log.end_offsets

    def read(self, partition: int, offset: int, max_records: int = 10_000) -> list[LogRecord]:
        """See EventLog. Nothing is read across a gap."""
        ahead = [gap for gap in self._gaps if gap.partition == partition and offset < gap.end]
        if ahead and ahead[0].begin <= offset:
            raise OffsetGone(self.name, partition, offset, ahead[0].end)
        records = self._log.read(partition, offset, max_records)
        if ahead and records and ahead[0].begin <= records[-1].offset:
            records = [record for record in records if record.offset < ahead[0].begin]
            if not records:
                raise OffsetGone(self.name, *ahead[0])
        return records

    def is_known(self, gone: OffsetGone) -> bool:
        """Whether what is gone is all of `gaps`."""
        return any(gap.partition == gone.partition and gap.begin <= gone.offset and gone.begin_offset <= gap.end for gap in self._gaps)
