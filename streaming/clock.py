"""Where the time comes from. Knows nothing of what is timed.

Every component takes a Clock and asks nobody else, so a whole system runs on world time by turning one by hand.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """UTC in milliseconds, and a way to wait for it."""

    @property
    def is_wall(self) -> bool:
        """Whether this is the wall clock: then nobody outside may name another time."""

    def now_ms(self) -> int:
        """The time now, UTC milliseconds."""

    def sleep(self, seconds: float) -> None:
        """Return when `seconds` of this clock's time have passed."""


class SystemClock:
    """The wall clock of this machine."""

    is_wall = True

    def now_ms(self) -> int:
        """The time now, UTC milliseconds."""
        return time.time_ns() // 1_000_000

    def sleep(self, seconds: float) -> None:
        """Block for `seconds` of wall time."""
        time.sleep(seconds)


class ManualClock:
    """A clock that moves only when told to, and never backwards."""

    is_wall = False

    def __init__(self, now_ms: int) -> None:
        if now_ms < 0:
            raise ValueError(f"now_ms is {now_ms}; it must be 0 or more (UTC milliseconds)")
        self._now_ms = now_ms

    def now_ms(self) -> int:
        """The time it was last set to, UTC milliseconds."""
        return self._now_ms

    def advance_to(self, now_ms: int) -> None:
        """Move to `now_ms`; an earlier time than now raises ValueError."""
        if now_ms < self._now_ms:
            raise ValueError(f"advance_to({now_ms}) would turn the clock back; it shows {self._now_ms}")
        self._now_ms = now_ms

    def sleep(self, seconds: float) -> None:
        """Advance by `seconds` at once."""
        self._now_ms += round(seconds * 1000)
