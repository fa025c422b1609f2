"""A batch of records as Kafka stores it, read at once: version 2 of the format, not compressed.

Knows nothing of brokers or of what the records mean. Written out in one loop because it is most of what reading costs:
with a call for each number it would take three times as long.
Layout: https://kafka.apache.org/documentation/#messageformat
"""

from functools import partial
from itertools import repeat

from streaming.log import LogRecord

COUNT_AT, RECORDS_AT = 57, 61
_record = partial(tuple.__new__, LogRecord)


class BrokenBatch(ValueError):
    """Bytes that are no whole batch, whatever their checksum says."""


def unpacked(batch: bytes, partition: int) -> list[LogRecord]:
    """All records of the whole batch, header included; a key or value that is null is empty. BrokenBatch.

    The checksum is the caller's to compare: who fetched the batch knows whether that is wanted.
    """
    first_offset = int.from_bytes(batch[:8])
    offsets, keys, values = [], [], []
    at = RECORDS_AT
    try:
        for _ in range(int.from_bytes(batch[COUNT_AT:RECORDS_AT])):
            coded, at = batch[at], at + 1
            if coded > 127:
                coded, at = _longer(batch, at, coded)
            end = at + (coded >> 1)
            at += 1  # attributes
            while batch[at] > 127:  # time since the batch's first: nobody here reads it
                at += 1
            coded, at = batch[at + 1], at + 2
            if coded > 127:
                coded, at = _longer(batch, at, coded)
            offsets.append(first_offset + (coded >> 1))
            coded, at = batch[at], at + 1
            if coded > 127:
                coded, at = _longer(batch, at, coded)
            stop = at + (0 if coded & 1 else coded >> 1)
            keys.append(batch[at:stop])
            coded, at = batch[stop], stop + 1
            if coded > 127:
                coded, at = _longer(batch, at, coded)
            stop = at + (0 if coded & 1 else coded >> 1)
            values.append(batch[at:stop])
            if stop >= end:
                raise BrokenBatch(f"the record at offset {offsets[-1]} is longer than it says")
            at = end  # beyond the headers of other people's records
    except IndexError:
        at = len(batch) + 1
    if at != len(batch):
        raise BrokenBatch(f"the batch at offset {first_offset} does not end with its last record")
    return list(map(_record, zip(repeat(partition), offsets, keys, values, strict=False)))


def _longer(batch: bytes, at: int, low: int) -> tuple[int, int]:
    """The rest of a number of more than one byte, and where it ends: seven bits a byte, low ones first."""
    number, shift = low & 127, 7
    while (byte := batch[at]) > 127:
        number |= (byte & 127) << shift
        shift += 7
        at += 1
    return number | byte << shift, at + 1
