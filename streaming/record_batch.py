"""A batch of records as Kafka stores it, read at once: version 2 of the format, not compressed.

Knows nothing of brokers or of what the records mean. Compiled, because it is most of what reading costs.
Layout: https://kafka.apache.org/documentation/#messageformat
"""

from functools import partial
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from streaming.compiled import compiled
from streaming.log import LogRecord

COUNT_AT, RECORDS_AT = 57, 61
_record = partial(tuple.__new__, LogRecord)


class BrokenBatch(ValueError):
    """Bytes that are no whole batch, whatever their checksum says."""


def unpacked(batch: bytes, partition: int) -> list[LogRecord]:
    """All records of the whole batch, header included; a key or value that is null is empty. BrokenBatch.

    The checksum is the caller's to compare: who fetched the batch knows whether that is wanted.
    """
    first_offset, num = int.from_bytes(batch[:8]), int.from_bytes(batch[COUNT_AT:RECORDS_AT])
    if num > len(batch):
        raise BrokenBatch(f"the batch at offset {first_offset} of {len(batch)} bytes says that it holds {num} records")
    places = np.empty((num, 5), np.int64)
    if not _found(np.frombuffer(batch, np.uint8), places):
        raise BrokenBatch(f"the batch at offset {first_offset} does not end with its last record, or one does not where it says")
    places[:, 0] += first_offset
    offsets, key_at, key_end, value_at, value_end = places.T.tolist()
    keys = [batch[at:end] for at, end in zip(key_at, key_end, strict=True)]
    values = [batch[at:end] for at, end in zip(value_at, value_end, strict=True)]
    return list(map(_record, zip(repeat(partition), offsets, keys, values, strict=False)))


@compiled
def _found(batch: NDArray[np.uint8], places: NDArray[np.int64]) -> bool:
    """Fill in of each record its offset from the first, and where its key and its value begin and end."""
    at = RECORDS_AT
    for row in range(len(places)):
        length, at = _number(batch, at)
        if at < 0 or not 0 < length <= len(batch) - at:
            return False
        end = at + length
        _, at = _number(batch, at + 1)  # its attributes, then the time since the batch's first, which nobody here reads
        places[row, 0], at = _number(batch, at)
        for column in (1, 3):
            length, at = _number(batch, at)
            if at < 0 or length > end - at:
                return False
            places[row, column], at = at, at + max(length, 0)  # of null it is −1
            places[row, column + 1] = at
        if at >= end:
            return False
        at = end  # beyond the headers of other people's records
    return at == len(batch)


@compiled
def _number(batch: NDArray[np.uint8], at: int) -> tuple[int, int]:
    """A number of seven bits a byte, low ones first, odd ones below zero; and what is behind it, −1 where nothing can be."""
    number = np.uint64(0)
    shift = np.uint64(0)
    while 0 <= at < len(batch) and shift < 64:
        byte = np.uint64(batch[at])
        number |= (byte & np.uint64(127)) << shift
        shift += np.uint64(7)
        at += 1
        if byte < 128:
            return int(np.int64(number >> np.uint64(1)) ^ -np.int64(number & np.uint64(1))), at
    return 0, -1
