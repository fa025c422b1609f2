"""What a table of decisions is made of, and how many records are taken into it at once: arrays, and functions compiled for them.

Knows keys, kinds and times, nothing of what was decided or said.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streaming.columns import Ints, Records, Words
from streaming.compiled import compiled
from streaming.fields import EXPOSURE, FEEDBACK, FOREIGN, INTERACTION, OTHER, OWN, TICK

OPEN, OPEN_TAUGHT, GONE_LATE, GONE_FOREIGN, GONE_GAP, AWAITED, UNUSED = range(7)
"""States of a slot. AWAITED: spoken of, and not there yet."""
NUM_STATES = UNUSED + 1
NOWHERE = -1
_MIX = np.uint64(0x9E3779B97F4A7C15)


class At(IntEnum):
    """Where in `Arrays.numbers` a number stands."""

    WATERMARK_MS = 0
    USED = 1  # slots that were ever used; all beyond are fresh
    FREE = 2  # of those, how many can be used again
    CLOSING = 3  # entries in a heap, like the next
    FORGETTING = 4
    OPEN = 5
    TAUGHT = 6


class Arrays(NamedTuple):
    """A table. All by slot but `places`, the heaps and `numbers`."""

    places: NDArray[np.int32]
    """Slots, found by key; twice as long as there are slots."""
    keys: Words
    """In halves."""
    due_ms: Ints
    """When it closes if it is open, when it is forgotten if it is gone."""
    state: NDArray[np.int8]
    memory_offset: Ints
    offset: Ints
    free: NDArray[np.int32]
    closing_ms: Ints
    """A heap, four below each, with the slots beside it."""
    closing: NDArray[np.int32]
    forgetting_ms: Ints
    """A heap too; an entry says nothing where its slot is due at another time by now."""
    forgetting: NDArray[np.int32]
    numbers: Ints
    """See At."""


def arrays_of(size: int, numbers: Ints) -> Arrays:
    """For so many slots, a power of two, none of them used."""
    return Arrays(
        places=np.full(2 * size, NOWHERE, np.int32),
        keys=np.empty((size, 2), np.uint64),
        due_ms=np.empty(size, np.int64),
        state=np.full(size, UNUSED, np.int8),
        memory_offset=np.empty(size, np.int64),
        offset=np.empty(size, np.int64),
        free=np.empty(size, np.int32),
        closing_ms=np.empty(size, np.int64),
        closing=np.empty(size, np.int32),
        forgetting_ms=np.empty(size, np.int64),
        forgetting=np.empty(size, np.int32),
        numbers=numbers,
    )


class Step(NamedTuple):
    """How far records were taken."""

    stop: int
    """The first that was not."""
    num_closed: int
    asks: bool
    """Whether that one has to be looked at by itself; else something else comes first."""


@compiled
def take(
    a: Arrays,
    records: Records,
    begin: int,
    spans_ms: tuple[int, int, int],
    slots: NDArray[np.int32],
    closed: NDArray[np.int32],
    counts: Ints,
) -> Step:
    """Take plain records from `begin` on, up to one that isn't, or whose key makes it another case than most.

    `spans_ms`: W + L, D, and the watermark at which to stop.
    Filled: by record the slot of the decision that it opens or is said of, else NOWHERE; slots that closed, in order;
    `counts` by kind, of all and then by the state of a decision that is gone.
    """
    kinds, keys, times_ms, memory_offsets, offsets = records
    open_ms, disorder_ms, stop_ms = spans_ms
    num_closed = 0
    for row in range(begin, len(kinds)):
        kind, time_ms = kinds[row], times_ms[row]
        slots[row] = NOWHERE
        if kind == OTHER:
            return Step(row, num_closed, True)
        if kind not in (TICK, INTERACTION):
            at = _find(a, keys[row, 0], keys[row, 1])
            slot = a.places[at]
            if kind in (EXPOSURE, FEEDBACK):
                if slot < 0 or a.state[slot] == AWAITED or (a.state[slot] > OPEN_TAUGHT and a.due_ms[slot] <= a.numbers[At.WATERMARK_MS]):
                    return Step(row, num_closed, True)
                counts[kind, 0] += 1
                counts[kind, 1 + a.state[slot]] += 1
                if a.state[slot] <= OPEN_TAUGHT:
                    slots[row] = slot
                continue
            closes_ms = time_ms + open_ms
            if slot >= 0 or closes_ms <= a.numbers[At.WATERMARK_MS]:
                return Step(row, num_closed, True)
            slot = _add(a, at, keys[row, 0], keys[row, 1])
            if kind == FOREIGN:
                let_go(a, slot, GONE_FOREIGN, closes_ms + open_ms)
            else:
                open_slot(a, slot, closes_ms, memory_offsets[row], offsets[row], kind == OWN)
                slots[row] = slot
        counts[kind, 0] += 1
        if kind != INTERACTION and time_ms - disorder_ms > a.numbers[At.WATERMARK_MS]:
            num_closed = move(a, time_ms - disorder_ms, open_ms, closed, num_closed)
            if time_ms - disorder_ms >= stop_ms:
                return Step(row + 1, num_closed, False)
    return Step(len(kinds), num_closed, False)


@compiled
def move(a: Arrays, watermark_ms: int, open_ms: int, closed: NDArray[np.int32], num_closed: int) -> int:
    """Move the watermark, and close what is due."""
    a.numbers[At.WATERMARK_MS] = watermark_ms
    while a.numbers[At.CLOSING] and a.closing_ms[0] <= watermark_ms:
        due_ms, slot = a.closing_ms[0], a.closing[0]
        a.numbers[At.CLOSING] -= 1
        _pop(a.closing_ms, a.closing, a.numbers[At.CLOSING])
        a.numbers[At.OPEN] -= 1
        own = a.state[slot] == OPEN
        a.numbers[At.TAUGHT] -= not own
        let_go(a, slot, GONE_LATE if own else GONE_FOREIGN, due_ms + open_ms)
        closed[num_closed] = slot
        num_closed += 1
    return num_closed


@compiled
def forget(a: Arrays) -> None:
    """Let go of what is gone for long enough."""
    watermark_ms = a.numbers[At.WATERMARK_MS]
    while a.numbers[At.FORGETTING] and a.forgetting_ms[0] <= watermark_ms:
        due_ms, slot = a.forgetting_ms[0], a.forgetting[0]
        a.numbers[At.FORGETTING] -= 1
        _pop(a.forgetting_ms, a.forgetting, a.numbers[At.FORGETTING])
        if a.due_ms[slot] == due_ms and GONE_LATE <= a.state[slot] <= GONE_GAP:
            remove(a, slot)


# Slots ------------------------------------------------------------------------------------------------------------------


@compiled
def _find(a: Arrays, high: np.uint64, low: np.uint64) -> int:
    """Where in the index a key stands, or is to stand."""
    last = len(a.places) - 1
    at = _home(high, low, last)
    while a.places[at] >= 0 and (a.keys[a.places[at], 0] != high or a.keys[a.places[at], 1] != low):
        at = (at + 1) & last
    return at


@compiled
def _home(high: np.uint64, low: np.uint64, last: int) -> int:
    return int(np.int64((((high ^ low) * _MIX) >> np.uint64(20)) & np.uint64(last)))


@compiled
def _add(a: Arrays, at: int, high: np.uint64, low: np.uint64) -> int:
    """A slot for a key that has none, whose place in the index that is."""
    if a.numbers[At.FREE]:
        a.numbers[At.FREE] -= 1
        slot = a.free[a.numbers[At.FREE]]
    else:
        slot = int(a.numbers[At.USED])
        a.numbers[At.USED] += 1
    a.places[at] = slot
    a.keys[slot, 0], a.keys[slot, 1] = high, low
    a.state[slot] = UNUSED
    return slot


@compiled
def remove(a: Arrays, slot: int) -> None:
    """Give a slot back. What stands behind its place in the index moves up, so that it is found without it."""
    last = len(a.places) - 1
    hole = _find(a, a.keys[slot, 0], a.keys[slot, 1])
    at = (hole + 1) & last
    while a.places[at] >= 0:
        other = a.places[at]
        home = _home(a.keys[other, 0], a.keys[other, 1], last)
        if (at - home) & last >= (at - hole) & last:
            a.places[hole] = other
            hole = at
        at = (at + 1) & last
    a.places[hole] = NOWHERE
    a.state[slot] = UNUSED
    a.free[a.numbers[At.FREE]] = slot
    a.numbers[At.FREE] += 1


@compiled
def open_slot(a: Arrays, slot: int, closes_ms: int, memory_offset: int, offset: int, own: bool) -> None:
    """Make a slot an open decision's."""
    a.state[slot] = OPEN if own else OPEN_TAUGHT
    a.due_ms[slot], a.memory_offset[slot], a.offset[slot] = closes_ms, memory_offset, offset
    _push(a.closing_ms, a.closing, a.numbers[At.CLOSING], closes_ms, slot)
    a.numbers[At.CLOSING] += 1
    a.numbers[At.OPEN] += 1
    a.numbers[At.TAUGHT] += not own


@compiled
def let_go(a: Arrays, slot: int, state: int, forgotten_ms: int) -> None:
    """Make a slot that of a decision that is gone."""
    a.state[slot], a.due_ms[slot] = state, forgotten_ms
    _push(a.forgetting_ms, a.forgetting, a.numbers[At.FORGETTING], forgotten_ms, slot)
    a.numbers[At.FORGETTING] += 1


# Heaps ------------------------------------------------------------------------------------------------------------------


@compiled
def _push(due_ms: Ints, slots: NDArray[np.int32], num: int, due: int, slot: int) -> None:
    """Put one more into a heap of `num`."""
    at = num
    while at > 0 and due_ms[(at - 1) >> 2] > due:
        above = (at - 1) >> 2
        due_ms[at], slots[at] = due_ms[above], slots[above]
        at = above
    due_ms[at], slots[at] = due, slot


@compiled
def _pop(due_ms: Ints, slots: NDArray[np.int32], num: int) -> None:
    """Take the first out of a heap in which `num` stay."""
    due, slot, at = due_ms[num], slots[num], 0
    while 4 * at + 1 < num:
        least = 4 * at + 1
        for below in range(4 * at + 2, min(4 * at + 5, num)):
            if due_ms[below] < due_ms[least]:
                least = below
        if due_ms[least] >= due:
            break
        due_ms[at], slots[at] = due_ms[least], slots[least]
        at = least
    due_ms[at], slots[at] = due, slot


# By one decision --------------------------------------------------------------------------------------------------------


@compiled
def slot_of(a: Arrays, high: np.uint64, low: np.uint64, adding: bool) -> int:
    """The slot of a key; NOWHERE where it has none and is given none."""
    at = _find(a, high, low)
    return _add(a, at, high, low) if adding and a.places[at] < 0 else int(a.places[at])


@compiled
def rebuild(a: Arrays) -> None:
    """Find a place for each slot in use, where none has one."""
    for slot in range(a.numbers[At.USED]):
        if a.state[slot] != UNUSED:
            a.places[_find(a, a.keys[slot, 0], a.keys[slot, 1])] = slot


@compiled
def fill(a: Arrays, keys: Words, states: Ints, due_ms: Ints, memory_offsets: Ints, offsets: Ints, slots: NDArray[np.int32]) -> None:
    """Open or let go of many decisions that are not known yet, in order; their `slots` are filled in."""
    for row in range(len(states)):
        slot = slot_of(a, keys[row, 0], keys[row, 1], True)
        slots[row] = slot
        if states[row] <= OPEN_TAUGHT:
            open_slot(a, slot, due_ms[row], memory_offsets[row], offsets[row], states[row] == OPEN)
        else:
            let_go(a, slot, states[row], due_ms[row])
