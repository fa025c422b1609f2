"""An open decision as it is held in memory: pieces of a `Held` message (joiner.proto), and the message as they make it.

Knows nothing of watermarks or of what counts. Bytes, because a million parsed messages would cost ten times their memory
and the garbage collector's time; records as they came, because to append to a message would copy it with each of them.
"""

import struct
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from streaming.columns import Ints
from streaming.due_dates import Key

HEAD = struct.Struct("<BqBq")
"""What all begins with: fields 1 and 2, sfixed64; tag 0x09 and memory_offset, tag 0x11 and offset."""
_HEADS = np.dtype([("memory_tag", "u1"), ("memory_offset", "<i8"), ("tag", "u1"), ("offset", "<i8")])
_DIGITS = frozenset("0123456789abcdef")
Told = bytes | list[bytes]
"""An open decision: the fields of its message up to the decision; with the records of what was said of it behind, where there are."""


def key_of(decision_id: str) -> Key:
    """What a decision is found by, 128 bits: those that its id is where that is 32 hexadecimal digits, else a digest of it."""
    if len(decision_id) == 32 and _DIGITS.issuperset(decision_id):
        return int(decision_id, 16)
    return int.from_bytes(blake2b(decision_id.encode(), digest_size=16).digest())


def held(memory_offset: int, offset: int, decision: bytes) -> bytes:
    """A decision just opened, by the bytes of its record."""
    return HEAD.pack(0x09, memory_offset, 0x11, offset) + _frame(_DECISION_FRAMES, len(decision)) + decision


def all_held(memory_offsets: Ints, offsets: Ints, decisions: Sequence[bytes]) -> list[bytes]:
    """See `held`, of many."""
    heads = np.empty(len(decisions), _HEADS)
    heads["memory_tag"], heads["memory_offset"], heads["tag"], heads["offset"] = 0x09, memory_offsets, 0x11, offsets
    text = heads.tobytes()
    starts = [text[at : at + HEAD.size] for at in range(0, len(text), HEAD.size)]
    return [start + _frame(_DECISION_FRAMES, len(decision)) + decision for start, decision in zip(starts, decisions, strict=True)]


def with_event(told: Told, event: bytes) -> Told:
    """What is held of a decision with one more event, by the bytes of its record."""
    if isinstance(told, bytes):
        return [told, event]
    told.append(event)
    return told


def parts(told: Told) -> list[bytes]:
    """The pieces of its message."""
    if isinstance(told, bytes):
        return [told]
    decision, *events = told
    return [decision, *[_frame(_EVENT_FRAMES, len(event)) + event for event in events]]


def told_of(message: bytes) -> Told:
    """What a message was made of."""
    end = _end_of_field(message, HEAD.size)
    if end == len(message):
        return message
    told = [message[:end]]
    while end < len(message):
        begin, end = _begin_of_field(message, end), _end_of_field(message, end)
        told.append(message[begin:end])
    return told


def decision_in(told: Told) -> bytes:
    """The decision without what was said of it."""
    return told if isinstance(told, bytes) else told[0]


def is_copy(told: Told, decision: bytes) -> bool:
    """Whether the decision's record is these bytes."""
    return decision_in(told)[HEAD.size :] == _frame(_DECISION_FRAMES, len(decision)) + decision


def _frame(frames: tuple[bytes, ...], length: int) -> bytes:
    """What stands before a field of `length` bytes."""
    return frames[length] if length < len(frames) else frames[0][:1] + _varint(length)


def _begin_of_field(message: bytes, at: int) -> int:
    at += 1
    while message[at] > 0x7F:
        at += 1
    return at + 1


def _end_of_field(message: bytes, at: int) -> int:
    begin = _begin_of_field(message, at)
    return begin + sum([(byte & 0x7F) << 7 * place for place, byte in enumerate(message[at + 1 : begin])])


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_DECISION_FRAMES, _EVENT_FRAMES = (tuple(bytes([tag]) + _varint(length) for length in range(2048)) for tag in (0x1A, 0x22))
"""What stands before fields 3 and 4, by length, of nearly all lengths that there are."""
