"""Calls that wait for one another are made together, and each gets what is its own."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from recsys.batches import Batches
from tests.serving import wait_for


class Held:
    """Work that squares, keeps what it was asked, and waits to be let go; asked for a negative number it fails."""

    def __init__(self, most: int) -> None:
        self.calls: list[list[int]] = []
        self.may_answer = threading.Event()
        self.batches = Batches(self._work, most)

    def _work(self, asked: Sequence[int]) -> list[int]:
        self.calls.append(list(asked))
        assert self.may_answer.wait(20)
        if min(asked) < 0:
            raise ValueError(f"{min(asked)} is negative")
        return [number * number for number in asked]

    def ask(self, pool: ThreadPoolExecutor, number: int) -> Future[int]:
        """Returns once it waits: the first in the work, the others behind it."""
        before = len(self.calls), self._num_open()
        future = pool.submit(self.batches.answer, number)
        wait_for(lambda: (len(self.calls), self._num_open()) != before)
        return future

    def _num_open(self) -> int:
        batch = self.batches._open
        return len(batch.asked) if batch else 0


def test_a_call_alone_is_made_at_once() -> None:
    held = Held(most=8)
    held.may_answer.set()
    assert [held.batches.answer(number) for number in (2, 3)] == [4, 9]
    assert held.calls == [[2], [3]]


def test_those_who_come_meanwhile_share_the_next_calls() -> None:
    held = Held(most=3)
    with ThreadPoolExecutor(8) as pool:
        answers = [held.ask(pool, number) for number in range(6)]
        held.may_answer.set()
        assert [answer.result(timeout=20) for answer in answers] == [number * number for number in range(6)]
    assert held.calls[0] == [0]
    assert sorted(held.calls[1:]) == [[1, 2, 3], [4, 5]]


def test_a_batch_that_fails_fails_for_each_of_it_and_the_next_is_made() -> None:
    held = Held(most=3)
    with ThreadPoolExecutor(8) as pool:
        answers = [held.ask(pool, number) for number in (0, 1, -2, 3, 4)]
        held.may_answer.set()
        for failed in answers[1:4]:
            with pytest.raises(ValueError, match="-2 is negative"):
                failed.result(timeout=20)
        assert [answers[0].result(timeout=20), answers[4].result(timeout=20), held.batches.answer(5)] == [0, 16, 25]


def test_a_crowd_gets_each_its_own() -> None:
    batches = Batches(lambda asked: [-number for number in asked], 4)
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(batches.answer, range(2000))) == [-number for number in range(2000)]
