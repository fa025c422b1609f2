"""When something is due for whom, exact to the millisecond. Knows nothing of what is due.

One list a second, sorted when its second comes: until then an entry costs 10 bytes beside its key, and no time.
"""

import heapq
from array import array
from bisect import bisect_left
from operator import neg

Key = int
"""A decision's, see `held.key_of`."""
NEVER_MS = 1 << 62
"""Later than any time."""


class Second:
    """What is due within one second that has not come yet, in the order in which it was added."""

    __slots__ = ("keys", "milliseconds")

    def __init__(self) -> None:
        self.milliseconds, self.keys = array("H"), list[Key]()


class DueDates:
    """Keys by when they are due; those of one millisecond in the order in which they were added."""

    def __init__(self) -> None:
        self.next_ms = NEVER_MS
        """Nothing is due before."""
        self._soon_ms: list[int] = []  # of the second that has come, falling: the next one is the last
        self._soon: list[Key] = []  # whose they are
        self._soon_s = -NEVER_MS
        self._later: dict[int, Second] = {}
        self._later_s: list[int] = []  # heap of the keys of _later

    def add(self, due_ms: int, key: Key) -> None:
        """Remember that `key` is due at `due_ms`."""
        due_s = due_ms // 1000
        second = self._later.get(due_s)
        if second is None:
            if due_s <= self._soon_s:
                self._add_soon(due_ms, key)
                return
            second = self._later[due_s] = Second()
            heapq.heappush(self._later_s, due_s)
            self.next_ms = min(self.next_ms, due_s * 1000)
        second.milliseconds.append(due_ms - due_s * 1000)
        second.keys.append(key)

    def pop(self, now_ms: int) -> list[Key]:
        """Take out all that is due by `now_ms`, in order."""
        due: list[Key] = []
        while self.next_ms <= now_ms:
            if not self._soon:
                self._begin_second()
            soon_ms, soon = self._soon_ms, self._soon
            while soon_ms and soon_ms[-1] <= now_ms:
                soon_ms.pop()
                due.append(soon.pop())
            self.next_ms = soon_ms[-1] if soon_ms else self._later_s[0] * 1000 if self._later_s else NEVER_MS
        return due

    def _add_soon(self, due_ms: int, key: Key) -> None:
        at = bisect_left(self._soon_ms, -due_ms, key=neg)
        self._soon_ms.insert(at, due_ms)
        self._soon.insert(at, key)
        self.next_ms = min(self.next_ms, due_ms)

    def _begin_second(self) -> None:
        self._soon_s = heapq.heappop(self._later_s)
        second = self._later.pop(self._soon_s)
        milliseconds, keys, begin_ms = second.milliseconds.tolist(), second.keys, self._soon_s * 1000
        # Backwards and falling, so that those of one millisecond stay backwards too.
        order = sorted(range(len(keys) - 1, -1, -1), key=milliseconds.__getitem__, reverse=True)
        self._soon_ms = [begin_ms + milliseconds[at] for at in order]
        self._soon = [keys[at] for at in order]
