"""The decisions of a partition by key, those that are open and those that were: when each is due, and what speaks of which.

Knows keys, kinds and times, nothing of what was decided or said. In arrays, because in compiled code they cost a tenth of the
time of Python's objects, and less than half of their memory.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streaming.columns import Ints, Records, Words
from streaming.due_dates import NEVER_MS, Key
from streaming.slots import (
    AWAITED,
    GONE_FOREIGN,
    GONE_GAP,
    NOWHERE,
    OPEN,
    OPEN_TAUGHT,
    At,
    Step,
    arrays_of,
    fill,
    forget,
    let_go,
    move,
    open_slot,
    rebuild,
    remove,
    slot_of,
    take,
)

_FEWEST = 1024


class Known(NamedTuple):
    """A decision as a table knows it."""

    key: Key
    state: int
    due_ms: int
    memory_offset: int = 0
    offset: int = 0


class Offsets(NamedTuple):
    """Of decisions."""

    memory: Ints
    """As of which each needs user memory."""
    own: Ints
    """Where each stands in the log."""


class Table:
    """The decisions of one partition. A slot is a decision's from when it opens until it is forgotten, which only `forget` does."""

    def __init__(self, open_ms: int, disorder_ms: int) -> None:
        self._open_ms, self._disorder_ms = open_ms, disorder_ms
        self._arrays = arrays_of(_FEWEST, np.zeros(len(At), np.int64))
        self._arrays.numbers[At.WATERMARK_MS] = -NEVER_MS

    # Many at once ---------------------------------------------------------------------------------------------------------

    def take(self, records: Records, begin: int, stop_ms: int, counts: Ints) -> tuple[Step, NDArray[np.int32], NDArray[np.int32]]:
        """See `take`: how far it came, the slots by record and what closed."""
        num = len(records.kinds)
        self.reserve(num - begin)
        slots = np.empty(num, np.int32)
        closed = np.empty(self.num_open + num, np.int32)
        step = take(self._arrays, records, begin, (self._open_ms, self._disorder_ms, stop_ms), slots, closed, counts)
        return step, slots, closed[: step.num_closed]

    def fill(self, known: Sequence[Known]) -> list[int]:
        """Know many that it does not yet; their slots."""
        if not known:
            return []
        self.reserve(len(known))
        keys, *numbers = zip(*known, strict=True)
        halves = np.frombuffer(b"".join([key.to_bytes(16) for key in keys]), ">u8").astype(np.uint64).reshape(-1, 2)
        states, due_ms, memory_offsets, offsets = (np.array(column, np.int64) for column in numbers)
        slots = np.empty(len(known), np.int32)
        fill(self._arrays, halves, states, due_ms, memory_offsets, offsets, slots)
        return slots.tolist()

    def move(self, watermark_ms: int) -> NDArray[np.int32]:
        """Move the watermark on, and close what is due; its slots, in order."""
        closed = np.empty(self.num_open, np.int32)
        return closed[: move(self._arrays, watermark_ms, self._open_ms, closed, 0)]

    def states(self, slots: NDArray[np.int32]) -> NDArray[np.int8]:
        """What the decisions of slots are."""
        return self._arrays.state[slots]

    def forget(self) -> None:
        """Give back the slots of what has been gone for as long as it was open."""
        forget(self._arrays)

    def reserve(self, num: int) -> None:
        """Make room for so many more."""
        a = self._arrays
        used, free, forgetting, num_open = (int(a.numbers[at]) for at in (At.USED, At.FREE, At.FORGETTING, At.OPEN))
        size = len(a.due_ms)
        wanted = max(used - free + num, forgetting + num_open + num)
        if wanted <= size:
            return
        while size < wanted:
            size *= 2
        grown = arrays_of(size, a.numbers)
        for name in a._fields[1:-1]:
            old = getattr(a, name)
            getattr(grown, name)[: len(old)] = old
        self._arrays = grown
        rebuild(grown)

    # One ------------------------------------------------------------------------------------------------------------------

    def find(self, key: Key) -> int:
        """The slot of a key, or NOWHERE."""
        return slot_of(self._arrays, *_halves(key), False)

    def state(self, slot: int) -> int:
        """What the decision of a slot is."""
        return int(self._arrays.state[slot])

    def due_ms(self, slot: int) -> int:
        """When it closes if it is open, when it is forgotten if it is gone."""
        return int(self._arrays.due_ms[slot])

    def open(self, key: Key, closes_ms: int, memory_offset: int, offset: int, *, own: bool) -> int:
        """Keep a decision open; its slot."""
        slot = self._slot(key)
        open_slot(self._arrays, slot, closes_ms, memory_offset, offset, own)
        return slot

    def let_go(self, key: Key, state: int, forgotten_ms: int) -> None:
        """Remember what became of a decision that is not open."""
        let_go(self._arrays, self._slot(key), state, forgotten_ms)

    def wait_for(self, key: Key) -> None:
        """Remember that something speaks of a decision that is not there yet."""
        self._arrays.state[self._slot(key)] = AWAITED

    def wait_no_longer(self, key: Key) -> None:
        """Forget that again."""
        slot = self.find(key)
        if slot != NOWHERE and self.state(slot) == AWAITED:
            remove(self._arrays, slot)

    def _slot(self, key: Key) -> int:
        self.reserve(1)
        return slot_of(self._arrays, *_halves(key), True)

    # All --------------------------------------------------------------------------------------------------------------------

    @property
    def watermark_ms(self) -> int:
        """−NEVER_MS at first."""
        return int(self._arrays.numbers[At.WATERMARK_MS])

    @watermark_ms.setter
    def watermark_ms(self, watermark_ms: int) -> None:
        self._arrays.numbers[At.WATERMARK_MS] = watermark_ms

    @property
    def num_open(self) -> int:
        """Open decisions."""
        return int(self._arrays.numbers[At.OPEN])

    @property
    def num_taught(self) -> int:
        """Open decisions that are not own."""
        return int(self._arrays.numbers[At.TAUGHT])

    @property
    def size(self) -> int:
        """All slots are less."""
        return len(self._arrays.due_ms)

    def least_memory_offset(self) -> int:
        """Of the open ones; NEVER_MS without any."""
        a = self._arrays
        state = a.state[: a.numbers[At.USED]]
        return int(np.min(a.memory_offset[: len(state)], where=state <= OPEN_TAUGHT, initial=NEVER_MS))

    def open_slots(self) -> list[int]:
        """Slots of the open ones, by offset."""
        a = self._arrays
        slots = np.flatnonzero(a.state[: a.numbers[At.USED]] <= OPEN_TAUGHT)
        return slots[np.argsort(a.offset[slots])].tolist()

    def give_up(self) -> list[int]:
        """Close all that is open as what nobody knows the end of; its slots, by offset."""
        a, slots = self._arrays, self.open_slots()
        for slot in slots:
            let_go(a, slot, GONE_GAP if a.state[slot] == OPEN else GONE_FOREIGN, int(a.due_ms[slot]) + self._open_ms)
        a.numbers[[At.CLOSING, At.OPEN, At.TAUGHT]] = 0
        return slots

    def offsets(self, slots: Sequence[int] | NDArray[np.int32]) -> Offsets:
        """Of decisions that are open, or closed with the last record."""
        return Offsets(self._arrays.memory_offset[slots], self._arrays.offset[slots])

    def gone(self, state: int) -> tuple[Words, Ints]:
        """Keys of what is gone like that, and when each is forgotten; by that time, then by key."""
        a = self._arrays
        slots = np.flatnonzero(a.state[: a.numbers[At.USED]] == state)
        slots = slots[np.lexsort((a.keys[slots, 1], a.keys[slots, 0], a.due_ms[slots]))]
        return a.keys[slots], a.due_ms[slots]


def _halves(key: Key) -> tuple[np.uint64, np.uint64]:
    return np.uint64(key >> 64), np.uint64(key & 0xFFFFFFFFFFFFFFFF)
