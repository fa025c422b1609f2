"""An open decision as it is held in memory: the bytes of a `Held` message (joiner.proto), which events are appended to.

Knows nothing of watermarks or of what counts. Bytes, because a million small objects would cost ten times their memory
and the garbage collector's time; protobuf, because a message of it grows by appending and is read in one call.
"""

import struct

from streaming.due_dates import Key

_HEAD = struct.Struct("<BqBq")
"""Fields 1 and 2, sfixed64: tag 0x09 and memory_offset, tag 0x11 and offset."""
_LONG = 4096
"""From this size on, what is held grows in place: a flood of events on one decision must not be copied with each of them."""


def key_of(decision_id: str) -> Key:
    """What a decision is found by: a number where its id is 32 hexadecimal digits, which is a third of the memory."""
    if len(decision_id) == 32:
        try:
            return int(decision_id, 16)
        except ValueError:
            pass
    return decision_id


def held(memory_offset: int, offset: int, decision: bytes) -> bytes:
    """A decision just opened, by the bytes of its record."""
    return _HEAD.pack(0x09, memory_offset, 0x11, offset) + _frame(_DECISION_FRAMES, len(decision)) + decision


def with_event(open_decision: bytes | bytearray, event: bytes) -> bytes | bytearray:
    """The decision with one more event, by the bytes of its record."""
    if len(open_decision) > _LONG and isinstance(open_decision, bytes):
        open_decision = bytearray(open_decision)
    open_decision += _frame(_EVENT_FRAMES, len(event)) + event
    return open_decision


def is_copy(open_decision: bytes | bytearray, decision: bytes) -> bool:
    """Whether the decision's record is these bytes."""
    return open_decision.startswith(_frame(_DECISION_FRAMES, len(decision)) + decision, _HEAD.size)


def offsets_of(open_decision: bytes | bytearray) -> tuple[int, int]:
    """As of which offset user memory is needed for it, and where it stands in the log."""
    _, memory_offset, _, offset = _HEAD.unpack_from(open_decision)
    return memory_offset, offset


def _frame(frames: tuple[bytes, ...], length: int) -> bytes:
    """What stands before a field of `length` bytes."""
    return frames[length] if length < len(frames) else frames[0][:1] + _varint(length)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_DECISION_FRAMES, _EVENT_FRAMES = (tuple(bytes([tag]) + _varint(length) for length in range(2048)) for tag in (0x1A, 0x22))
"""What stands before fields 3 and 4, by length, of nearly all lengths that there are."""
