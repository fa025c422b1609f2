"""An open decision as it is held in memory, and the message of a snapshot that says it (`Held`, joiner.proto).

Knows nothing of watermarks or of what counts. Records as they were logged, because a million parsed messages would cost ten
times their memory and the garbage collector's time.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from streaming.columns import Ints
from streaming.due_dates import Key

_HEAD = np.dtype([("tag_1", "u1"), ("memory_offset", "<i8"), ("tag_2", "u1"), ("offset", "<i8"), ("tag_3", "u1"), ("length", "u1", 4)])
"""What a message begins with: fields 1 and 2, sfixed64, and what stands before field 3, whose length always takes four bytes."""
_DIGITS = frozenset("0123456789abcdef")
Told = bytes | list[bytes]
"""The record of an open decision; with the records of what was said of it behind, where there are."""


def key_of(decision_id: str) -> Key:
    """What a decision is found by, 128 bits: those that its id is where that is 32 hexadecimal digits, else a digest of it."""
    if len(decision_id) == 32 and _DIGITS.issuperset(decision_id):
        return int(decision_id, 16)
    return int.from_bytes(blake2b(decision_id.encode(), digest_size=16).digest())


def with_event(told: Told, event: bytes) -> Told:
    """What is held of a decision with one more event, by the bytes of its record."""
    if isinstance(told, bytes):
        return [told, event]
    told.append(event)
    return told


def decision_in(told: Told) -> bytes:
    """The decision's record."""
    return told if isinstance(told, bytes) else told[0]


def events_in(told: Told) -> list[bytes]:
    """The records of what was said of it."""
    return [] if isinstance(told, bytes) else told[1:]


def messages_of(all_told: Sequence[Told], memory_offsets: Ints, offsets: Ints) -> tuple[list[bytes], list[int]]:
    """The pieces of their messages, and how long each message is."""
    heads = np.empty(len(all_told), _HEAD)
    heads["tag_1"], heads["tag_2"], heads["tag_3"] = 0x09, 0x11, 0x1A
    heads["memory_offset"], heads["offset"] = memory_offsets, offsets
    lengths = np.fromiter(map(len, map(decision_in, all_told)), np.int64, len(all_told))
    heads["length"] = lengths[:, None] >> (0, 7, 14, 21) & 0x7F | (0x80, 0x80, 0x80, 0)
    text, size = heads.tobytes(), _HEAD.itemsize
    pieces, sizes = list[bytes](), (lengths + size).tolist()
    for number, told in enumerate(all_told):
        pieces.append(text[number * size : (number + 1) * size])
        if isinstance(told, bytes):
            pieces.append(told)
        else:
            said = [_frame(len(event)) + event for event in told[1:]]
            pieces += [told[0], *said]
            sizes[number] += sum(map(len, said))
    return pieces, sizes


def told_of(message: bytes) -> Told:
    """What a message was made of."""
    told, end = [], _HEAD.itemsize - 5  # from tag_3 on, all is records
    while end < len(message):
        begin, end = _field(message, end)
        told.append(message[begin:end])
    return told if len(told) > 1 else told[0]


def _frame(length: int) -> bytes:
    """What stands before an event of `length` bytes."""
    return _FRAMES[length] if length < len(_FRAMES) else b"\x22" + _varint(length)


def _field(message: bytes, at: int) -> tuple[int, int]:
    """Where what a field holds begins and ends."""
    begin = at + 2
    while message[begin - 1] > 0x7F:
        begin += 1
    return begin, begin + sum([(byte & 0x7F) << 7 * place for place, byte in enumerate(message[at + 1 : begin])])


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_FRAMES = tuple(b"\x22" + _varint(length) for length in range(2048))
"""By length, of nearly all lengths that there are."""
