"""When something is due for whom, exact to the millisecond. Knows nothing of what is due.

One list a second, sorted when its second comes: until then an entry costs 10 bytes beside its key, and no time.
"""

import heapq
from array import array
from bisect import insort_left
from collections.abc import Callable

Key = int | str
"""A decision's, see `held.key_of`."""
NEVER_MS = 1 << 62
"""Later than any time."""


class Second:
    """What is due within one second that has not come yet, in the order in which it was added."""

    __slots__ = ("keys", "least_offset", "milliseconds")

    def __init__(self) -> None:
        self.milliseconds, self.keys = array("H"), list[Key]()
        self.least_offset = NEVER_MS


class DueDates:
    """Keys by when they are due; those of one millisecond in the order in which they were added."""

    def __init__(self) -> None:
        self.next_ms = NEVER_MS
        """Nothing is due before."""
        self._soon: list[tuple[int, Key]] = []  # of the second that has come, by falling time: the next one is the last
        self._soon_s = -NEVER_MS
        self._later: dict[int, Second] = {}
        self._later_s: list[int] = []  # heap of the keys of _later

    def add(self, due_ms: int, key: Key, offset: int = NEVER_MS) -> None:
        """Remember that `key` is due at `due_ms`; `offset` is for `least_offset`."""
        due_s = due_ms // 1000
        if due_s <= self._soon_s:
            insort_left(self._soon, (due_ms, key), key=_falling)
            self.next_ms = min(self.next_ms, due_ms)
            return
        second = self._later.get(due_s)
        if second is None:
            second = self._later[due_s] = Second()
            heapq.heappush(self._later_s, due_s)
            self.next_ms = min(self.next_ms, due_s * 1000)
        second.milliseconds.append(due_ms - due_s * 1000)
        second.keys.append(key)
        second.least_offset = min(second.least_offset, offset)

    def pop(self, now_ms: int) -> list[Key]:
        """Take out all that is due by `now_ms`, in order."""
        due: list[Key] = []
        soon = self._soon
        while self.next_ms <= now_ms:
            if soon:
                due.append(soon.pop()[1])
            else:
                self._begin_second()
            self.next_ms = soon[-1][0] if soon else self._later_s[0] * 1000 if self._later_s else NEVER_MS
        return due

    def least_offset(self, offset_of: Callable[[Key], int]) -> int:
        """The least offset of all that is due; NEVER_MS without any. Asks for those of the second that has come."""
        soon = [offset_of(key) for _, key in self._soon]
        return min([*soon, *[second.least_offset for second in self._later.values()]], default=NEVER_MS)

    def _begin_second(self) -> None:
        self._soon_s = heapq.heappop(self._later_s)
        second = self._later.pop(self._soon_s)
        rows = sorted(zip(second.milliseconds, range(len(second.keys)), second.keys, strict=True), reverse=True)
        self._soon += [(self._soon_s * 1000 + millisecond, key) for millisecond, _, key in rows]


def _falling(entry: tuple[int, Key]) -> int:
    return -entry[0]
