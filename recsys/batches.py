"""Calls that wait for one another are made together: the first of those who wait makes the call for all of them.

Knows nothing of what is asked. It has no thread of its own and never waits for company: a call that comes alone is made at once.
"""

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Batches(Generic[Asked, Answer]):
    """One call of `work`, an answer for each that is asked, is made at a time; those who come meanwhile share the next ones."""

    def __init__(self, work: Callable[[Sequence[Asked]], Sequence[Answer]], most: int) -> None:
        """At most `most` are asked in one call."""
        self._work, self._most = work, most
        self._door, self._turn = threading.Lock(), threading.Lock()
        self._open: _Batch[Asked, Answer] | None = None

    def answer(self, asked: Asked) -> Answer:
        """The answer to this one; whatever its batch raises, each of the batch gets."""
        with self._door:
            if is_first := self._open is None:
                self._open = _Batch()
            batch: _Batch[Asked, Answer] = self._open
            place = len(batch.asked)
            batch.asked.append(asked)
            if place + 1 == self._most:
                self._open = None
        if is_first:
            with self._turn:
                self._close(batch)
                with batch:
                    batch.answers = self._work(batch.asked)
        batch.is_done.wait()
        if batch.error is not None:
            raise batch.error
        return batch.answers[place]

    def _close(self, batch: "_Batch[Asked, Answer]") -> None:
        with self._door:
            if self._open is batch:
                self._open = None


class _Batch(Generic[Asked, Answer]):
    """What is asked together. As a context it is done at the end, with answers or with what was raised."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answers: Sequence[Answer] = ()
        self.error: BaseException | None = None
        self.is_done = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.error = error
        self.is_done.set()
