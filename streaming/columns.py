"""The fields of many records at once, as arrays: to parse records one by one and ask for their fields takes ten times as long.

Knows protobuf's encoding (https://protobuf.dev/programming-guides/encoding/) and the layout of our messages, nothing of joins.
Only plain records are read: those whose fields stand in order, each once, as protobuf writes them, and none that is not known
here. Of such a record a parser would say the same; any other is left to one.

What reads a field takes where it begins and gives where the next one does: −1 behind what is not plain.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streaming.compiled import compiled
from streaming.fields import (
    ALL_COLUMNS,
    ANSWERED,
    COUNTED,
    DECISION_COLUMNS,
    EVENT_COLUMNS,
    EXPOSURE,
    FEEDBACK,
    FOREIGN,
    FORGED,
    ID_LENGTH,
    INTERACTION,
    LATE,
    LATEST_MS,
    MAX_VALUE,
    ODD,
    OTHER,
    OWN,
    SILENT,
    SPOKEN_OF,
    TAUGHT,
    TICK,
    Of,
)

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

_ALL_BUT_SIGN = (1 << 63) - 1
_MOST = int(np.float64(MAX_VALUE).view(np.int64))
_MINUS_ZERO = -(1 << 63)  # is 0 for whoever compares, and not for whoever writes it down


class Records(NamedTuple):
    """Records as columns. Of those of kind OTHER the others say nothing."""

    kinds: NDArray[np.int8]
    keys: Words
    """Of the decision that each is or speaks of, in halves."""
    times_ms: Ints
    memory_offsets: Ints
    """As of which offset decisions need user memory."""
    offsets: Ints


@compiled
def read_all(text: Bytes, ends: Ints, own: Bytes, taught: Bytes, future_ms: int, out: Records) -> None:
    """Read the records that end at `ends` into `out`, whose `offsets` are there already.

    `own` and `taught`: variants; decisions of all others are FOREIGN. Not plain is also an id that is no 32 hexadecimal digits, a
    time before 1970 or later than `future_ms` after the record was appended, and a value that is no number or beyond MAX_VALUE.
    """
    begin = 0
    one = np.zeros(ALL_COLUMNS, np.int64)
    for row in range(len(ends)):
        end = ends[row]
        kind = _record(text, begin, end, one, False)
        begin = end
        if kind in (EXPOSURE, FEEDBACK):
            at, length = one[Of.TOKEN], one[Of.TOKEN_LENGTH]
            has_id = length == ID_LENGTH or (length > ID_LENGTH and text[at + ID_LENGTH] == ord("."))
            says_much = kind == FEEDBACK and (one[Of.VALUE] & _ALL_BUT_SIGN) > _MOST  # of doubles and of NaN this is true as of their bits
            if says_much or not (has_id and _number(text, at, out.keys[row])):
                kind = OTHER
        elif kind == OWN:
            if one[Of.ID_LENGTH] != ID_LENGTH or not _number(text, one[Of.ID], out.keys[row]):
                kind = OTHER
            elif not _same(text, one[Of.VARIANT], one[Of.VARIANT_LENGTH], own, 0, len(own)):
                kind = TAUGHT if _same(text, one[Of.VARIANT], one[Of.VARIANT_LENGTH], taught, 0, len(taught)) else FOREIGN
            out.memory_offsets[row] = one[Of.MEMORY_OFFSET] if one[Of.MEMORY_OFFSET] >= 0 else out.offsets[row]
        if not 0 <= one[Of.TIME_MS] <= min(one[Of.APPEND_MS] + future_ms, LATEST_MS):
            kind = OTHER
        out.kinds[row] = kind
        out.times_ms[row] = one[Of.TIME_MS]


@compiled
def read_closed(text: Bytes, ends: Ints, counts: Ints, window_ms: int, decisions: Ints, events: Ints) -> None:
    """Read the records of decisions, each followed by those of what was said of it.

    `ends` of all of these pieces, `counts` of the events by decision; `decisions` and `events` by row and column.
    """
    begin = piece = first = 0
    one, event = np.zeros(ALL_COLUMNS, np.int64), np.zeros(ALL_COLUMNS, np.int64)
    for row in range(len(counts)):
        end = ends[piece]
        needs = SPOKEN_OF if _record(text, begin, end, one, True) == OWN else ODD
        for number in range(counts[row]):
            begin, end = end, ends[piece + 1 + number]
            kind = _record(text, begin, end, event, True)
            if kind not in (EXPOSURE, FEEDBACK):
                needs = ODD
            if needs == SPOKEN_OF:
                event[Of.KIND] = kind
                event[Of.FATE] = _fate(text, one, event, window_ms)
                events[first + number] = event[:EVENT_COLUMNS]
        if needs == SPOKEN_OF:
            needs = _needs(events[first : first + counts[row]])
        one[Of.NEEDS], one[Of.FIRST_EVENT] = needs, first
        decisions[row] = one[:DECISION_COLUMNS]
        begin = end
        piece += 1 + counts[row]
        first += counts[row]


@compiled
def _fate(text: Bytes, decision: Ints, event: Ints, window_ms: int) -> int:
    fits = (
        event[Of.LAST_SLOT] < decision[Of.NUM_SLOTS]
        and _same(text, event[Of.USER], event[Of.USER_LENGTH], text, decision[Of.USER], decision[Of.USER_LENGTH])
        and _same(text, event[Of.TOKEN], event[Of.TOKEN_LENGTH], text, decision[Of.TOKEN], decision[Of.TOKEN_LENGTH])
    )
    if not fits:
        return FORGED
    return LATE if event[Of.TIME_MS] > decision[Of.TIME_MS] + window_ms else COUNTED


@compiled
def _needs(events: Ints) -> int:
    if len(events) == 0 or events[0, Of.KIND] != EXPOSURE or events[0, Of.FATE] != COUNTED or events[0, Of.NUM_MARKS] == 0:
        return SPOKEN_OF
    if len(events) == 1:
        return SILENT
    answered = len(events) == 2 and events[1, Of.KIND] == FEEDBACK and events[1, Of.FATE] == COUNTED
    return ANSWERED if answered else SPOKEN_OF


# Messages. Each fills one row and says whether, or as what, it could. ---------------------------------------------------


@compiled
def _record(text: Bytes, begin: int, end: int, one: Ints, known: bool) -> int:
    """Its kind; whose a decision is, is not looked at. `known`: that it was read before, so that its texts are UTF-8."""
    at = _tag(text, _tag(text, begin, end, 0x08), end, 1)  # the schema
    one[Of.APPEND_MS], at = _varint(text, _tag(text, at, end, 0x10), end)
    tag, at = _rest(text, at, end)
    if tag == 0x1A:
        return OWN if _decision(text, at, end, one, known) else OTHER
    if tag == 0x22:
        return _event(text, at, end, one, known)
    if tag == 0x2A:
        one[Of.TIME_MS], at = _varint(text, _tag(text, at, end, 0x08), end)
        return TICK if at == end else OTHER
    return OTHER


@compiled
def _event(text: Bytes, at: int, end: int, one: Ints, known: bool) -> int:
    one[Of.ID], one[Of.ID_LENGTH], at = _text(text, _tag(text, at, end, 0x0A), end, known)
    one[Of.USER], one[Of.USER_LENGTH], at = _text(text, _tag(text, at, end, 0x12), end, known)
    one[Of.TIME_MS], at = _varint(text, _tag(text, at, end, 0x18), end)
    tag, at = _rest(text, at, end)
    if tag == 0x32:
        return INTERACTION if _is_interaction(text, at, end, known) else OTHER
    one[Of.TOKEN], one[Of.TOKEN_LENGTH], at = _text(text, _tag(text, at, end, 0x0A), end, known)
    if tag == 0x22:
        return EXPOSURE if _exposure(text, at, end, one, known) else OTHER
    if tag == 0x2A:
        return FEEDBACK if _feedback(text, at, end, one, known) else OTHER
    return OTHER


@compiled
def _exposure(text: Bytes, at: int, end: int, one: Ints, known: bool) -> bool:
    """What stands behind its token."""
    one[Of.SLOTS] = one[Of.SAID] = at
    one[Of.NUM_MARKS] = one[Of.SAID_LENGTH] = one[Of.VALUE] = 0
    one[Of.LAST_SLOT] = -1
    if 0 <= at < end:
        one[Of.SLOTS], one[Of.NUM_MARKS], at = _text(text, _tag(text, at, end, 0x12), end, known)
        for place in range(one[Of.NUM_MARKS]):
            one[Of.LAST_SLOT] = max(one[Of.LAST_SLOT], np.int64(text[one[Of.SLOTS] + place]))
    return at == end and one[Of.LAST_SLOT] < 0x80  # of a byte each


@compiled
def _feedback(text: Bytes, at: int, end: int, one: Ints, known: bool) -> bool:
    """What stands behind its token; what is 0 or empty is left out."""
    one[Of.SLOTS] = one[Of.SAID] = at
    one[Of.NUM_MARKS] = one[Of.SAID_LENGTH] = one[Of.VALUE] = 0
    one[Of.LAST_SLOT] = 0
    if at >= 0 and at < end and text[at] == 0x10:
        one[Of.LAST_SLOT], at = _varint(text, at + 1, end)
        if one[Of.LAST_SLOT] >= 1 << 32 or one[Of.LAST_SLOT] < 0:
            return False
    if at >= 0 and at < end and text[at] == 0x1A:
        one[Of.SAID], one[Of.SAID_LENGTH], at = _text(text, at + 1, end, known)
    if at >= 0 and at + 9 == end and text[at] == 0x21:
        one[Of.VALUE] = _fixed(text, at + 1)
        at = end
    return at == end and one[Of.VALUE] != _MINUS_ZERO


# By number of a Decision's field: - none, t text, v varint, d double, p doubles, m map. Those of _REPEATED can come again.
_FORMS = np.frombuffer(b"-ttvtvttpvvtvmttmvtdddtvvvd", np.uint8)
_REPEATED = np.isin(np.arange(len(_FORMS)), (7, 13, 14, 15, 16))


@compiled
def _decision(text: Bytes, at: int, end: int, one: Ints, known: bool) -> bool:  # noqa: PLR0912 - one loop over all fields
    one[Of.ID_LENGTH] = one[Of.USER_LENGTH] = one[Of.TIME_MS] = one[Of.TOKEN_LENGTH] = one[Of.VARIANT_LENGTH] = 0
    one[Of.NUM_SLOTS] = one[Of.MEMORY_OFFSET] = 0
    before = 0
    while 0 <= at < end:
        tag, at = _varint(text, at, end)
        field = tag >> 3
        if at < 0 or field >= len(_FORMS) or field < before or (field == before and not _REPEATED[field]):
            return False
        before = field
        form = _FORMS[field]
        if form == ord("v"):
            number, at = _varint(text, at, end) if tag & 7 == 0 else (0, -1)
            if field == 3:
                one[Of.TIME_MS] = number
            elif field == 9:
                one[Of.MEMORY_OFFSET] = number
        elif form == ord("d"):
            at = at + 8 if tag & 7 == 1 else -1
        elif tag & 7 != 2:
            return False
        elif form == ord("t"):
            begin, length, at = _text(text, at, end, known)
            if field == 1:
                one[Of.ID], one[Of.ID_LENGTH] = begin, length
            elif field == 2:
                one[Of.USER], one[Of.USER_LENGTH] = begin, length
            elif field == 4:
                one[Of.VARIANT], one[Of.VARIANT_LENGTH] = begin, length
            elif field == 6:
                one[Of.TOKEN], one[Of.TOKEN_LENGTH] = begin, length
            elif field == 7:
                one[Of.NUM_SLOTS] += 1
        else:
            length, at = _varint(text, at, end)
            if at < 0 or length < 0 or length > end - at:
                return False
            if length % 8 if form == ord("p") else _behind_texts(text, at, at + length, known) != at + length:
                return False
            at += length
    return at == end


@compiled
def _is_interaction(text: Bytes, at: int, end: int, known: bool) -> bool:
    """Whether this is two texts and a double, or less."""
    at = _behind_texts(text, at, end, known)
    return at == end or (at + 9 == end and text[at] == 0x19)


@compiled
def _behind_texts(text: Bytes, at: int, end: int, known: bool) -> int:
    """What is behind the texts that fields 1 and 2 are, where they are there."""
    for tag in (0x0A, 0x12):
        if 0 <= at < end and text[at] == tag:
            _, _, at = _text(text, at + 1, end, known)
    return at


# Fields -----------------------------------------------------------------------------------------------------------------


@compiled
def _tag(text: Bytes, at: int, end: int, tag: int) -> int:
    return at + 1 if 0 <= at < end and text[at] == tag else -1


@compiled
def _rest(text: Bytes, at: int, end: int) -> tuple[int, int]:
    """The tag of a field that is all there still is, and where what it holds begins; 0 where it isn't all, or there is none."""
    if not 0 <= at < end:
        return 0, -1
    length, begin = _varint(text, at + 1, end)
    return (int(np.int64(text[at])), begin) if begin >= 0 and begin + length == end else (0, -1)


@compiled
def _varint(text: Bytes, at: int, end: int) -> tuple[int, int]:
    number = np.uint64(0)
    shift = np.uint64(0)
    while 0 <= at < end and shift < 64:
        byte = np.uint64(text[at])
        number |= (byte & np.uint64(0x7F)) << shift
        shift += np.uint64(7)
        at += 1
        if byte < 0x80:
            return int(np.int64(number)), at
    return 0, -1


@compiled
def _text(text: Bytes, at: int, end: int, known: bool) -> tuple[int, int, int]:
    """Where a text begins, its length, and what is behind it; to see that it is UTF-8 takes as long as all else."""
    length, at = _varint(text, at, end)
    if at < 0 or length < 0 or length > end - at:
        return 0, 0, -1
    if known:
        return at, length, at + length
    bits = np.uint8(0)
    for place in range(at, at + length):
        bits |= text[place]
    return at, length, at + length if bits < 0x80 or _is_utf8(text, at, at + length) else -1


@compiled
def _is_utf8(text: Bytes, at: int, end: int) -> bool:
    """Whether this is UTF-8 (RFC 3629), in which alone protobuf takes texts."""
    while at < end:
        lead, more = np.int64(text[at]), 0
        if lead >= 0x80:
            more = 1 if lead < 0xE0 else 2 if lead < 0xF0 else 3
            if not 0xC2 <= lead <= 0xF4 or at + more >= end:
                return False
            code = lead & (0x3F >> more)
            for place in range(at + 1, at + 1 + more):
                if text[place] & 0xC0 != 0x80:
                    return False
                code = code << 6 | np.int64(text[place] & 0x3F)
            if code < (0x80, 0x800, 0x10000)[more - 1] or code > 0x10FFFF or 0xD800 <= code < 0xE000:
                return False
        at += 1 + more
    return True


@compiled
def _fixed(text: Bytes, at: int) -> int:
    """A number of eight bytes."""
    number = np.uint64(0)
    for place in range(8):
        number |= np.uint64(text[at + place]) << np.uint64(8 * place)
    return int(np.int64(number))


@compiled
def _same(one: Bytes, at: int, length: int, other: Bytes, begin: int, other_length: int) -> bool:
    if length != other_length:
        return False
    differing = np.uint8(0)
    for place in range(length):  # to the end, so that many bytes are compared at once
        differing |= one[at + place] ^ other[begin + place]
    return differing == 0


# The digits of bytes, 0xFF of what is none.
_DIGITS = np.array([b"0123456789abcdef".find(byte) & 0xFF for byte in range(256)], np.uint8)


@compiled
def _number(text: Bytes, at: int, halves: Words) -> bool:
    """Whether 32 lower-case hexadecimal digits begin there, and the number that they are."""
    bits = np.uint8(0)
    for half in range(2):
        number = np.uint64(0)
        for place in range(at + 16 * half, at + 16 * half + 16):
            digit = _DIGITS[text[place]]  # looked up, for a branch would be guessed wrong every other time
            bits |= digit
            number = number << np.uint64(4) | np.uint64(digit)
        halves[half] = number
    return bool(bits < 0x10)
