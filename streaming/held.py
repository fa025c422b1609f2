"""An open decision as it is held in memory, and the message of a snapshot that says it (`Held`, joiner.proto).

Knows nothing of watermarks or of what counts. Records as they were logged, because a million parsed messages would cost ten
times their memory and the garbage collector's time.
"""

import struct
from hashlib import blake2b

from streaming.due_dates import Key

HEAD = struct.Struct("<BqBq")
"""What a message begins with: fields 1 and 2, sfixed64; tag 0x09 and memory_offset, tag 0x11 and offset."""
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


def message_of(told: Told, memory_offset: int, offset: int) -> list[bytes]:
    """The pieces of the message."""
    decision = decision_in(told)
    head = HEAD.pack(0x09, memory_offset, 0x11, offset) + _frame(_DECISION_FRAMES, len(decision))
    return [head, decision, *[_frame(_EVENT_FRAMES, len(event)) + event for event in events_in(told)]]


def told_of(message: bytes) -> Told:
    """What a message was made of."""
    told, end = [], HEAD.size
    while end < len(message):
        begin, end = _field(message, end)
        told.append(message[begin:end])
    return told if len(told) > 1 else told[0]


def _frame(frames: tuple[bytes, ...], length: int) -> bytes:
    """What stands before a field of `length` bytes."""
    return frames[length] if length < len(frames) else frames[0][:1] + _varint(length)


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


_DECISION_FRAMES, _EVENT_FRAMES = (tuple(bytes([tag]) + _varint(length) for length in range(2048)) for tag in (0x1A, 0x22))
"""What stands before fields 3 and 4, by length, of nearly all lengths that there are."""
