"""Saves in a copy of this process, so that what comes next need not wait for the disk. Knows nothing of what is saved.

fork() makes the copy: all memory as of that moment, for the price of the page tables. It dies with the process that it is a copy of,
keeps that one's lock while it lives, and uses nothing that has threads: no log, no server.
"""

import gc
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

from recsys.offspring import bound_to

Figures = Mapping[str, float]


class SaveFailed(OSError):
    """A save did not come to its end; what it had written does not count."""


class Saver:
    """One save at a time: `beside` in a copy, else at once and here (for worlds whose time stands still meanwhile)."""

    def __init__(self, *, beside: bool) -> None:
        self._beside = beside
        self._running: tuple[int, int] | None = None
        """Process and pipe of the copy."""
        self._done: Figures | None = None

    def start(self, save: Callable[[], Figures]) -> None:
        """Begin a save, once the one before has ended and been asked for. What it returns is there when it has finished.

        OSError where the system has no file or process left for a copy.
        """
        if not self._beside:
            self._done = save()
            return
        hear, tell = os.pipe()
        original = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            os.close(hear)
            os.close(tell)
            raise
        if pid == 0:
            _be_copy(save, tell, original)
        os.close(tell)
        self._running = pid, hear

    def finished(self, *, wait: bool = False) -> Figures | None:
        """What the save returned, once; None while it goes on, or where there is none. SaveFailed when it raised or was killed."""
        if self._running is not None:
            pid, hear = self._running
            ended, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
            if not ended:
                return None
            self._running = None
            with os.fdopen(hear) as said:
                text = said.read()
            if status:
                raise SaveFailed(text or f"the process that saves was ended by signal {os.WTERMSIG(status)}")
            self._done = json.loads(text)
        done, self._done = self._done, None
        return done


def _be_copy(save: Callable[[], Figures], tell: int, original: int) -> NoReturn:
    """Save, say how it went, and be gone without any of the exits that the original will make."""
    gc.disable()  # it would touch, and so copy, every object there is
    try:
        if bound_to(original):  # else it was killed before it could be said that this copy dies with it
            os.write(tell, json.dumps(save()).encode())
            os._exit(0)
    finally:
        os.write(tell, f"{sys.exception() or 'alone'}".encode())
        os._exit(1)
