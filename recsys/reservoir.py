"""A bounded sample of lessons, the recent ones likelier, to be learned again beside the new ones. Knows nothing of weights.

Biased reservoir sampling (Aggarwal 2006): each new lesson takes the place of a random one, so the probability of being in it
falls exponentially with the number of lessons that came after. An even sample holds a policy to tastes that have moved on
(models/EXPERIMENTS.md). Its draws are seeded by the caller, minute by minute, so that the same log keeps the same lessons.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from recsys.blobs import Arrays, joined, sizes, split
from recsys.features import Lesson
from recsys.memory import View
from streaming.events import Decision


class Reservoir:
    """At most `capacity` lessons."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._lessons: list[Lesson] = []

    def __len__(self) -> int:
        return len(self._lessons)

    def offer(self, lessons: Sequence[Lesson], random: np.random.Generator) -> None:
        """Let each lesson in."""
        if not self.capacity:
            return
        for lesson in lessons:
            if len(self._lessons) < self.capacity:
                self._lessons.append(lesson)
            else:
                self._lessons[int(random.integers(self.capacity))] = lesson

    def draw(self, count: int, random: np.random.Generator) -> list[Lesson]:
        """Up to `count` different lessons."""
        chosen = random.permutation(len(self._lessons))[:count]
        return [self._lessons[place] for place in chosen]

    def arrays(self) -> Arrays:
        """All of it as arrays, for a checkpoint."""
        decisions = [lesson.decision.SerializeToString(deterministic=True) for lesson in self._lessons]
        items = ["\0".join(lesson.item_ids).encode() for lesson in self._lessons]
        return {
            **joined("decision", decisions),
            **joined("item", items),
            "view": np.concatenate([np.zeros((3, 0), np.int64), *(np.stack(_columns(lesson.view)) for lesson in self._lessons)], 1),
            "view_sizes": sizes(lesson.view.key_L for lesson in self._lessons),
            "slots": np.array([slot for lesson in self._lessons for slot in _slots(lesson)], np.float64).reshape(-1, 3),
            "num_slots": sizes(lesson.item_ids for lesson in self._lessons),
            "own": np.array([lesson.own for lesson in self._lessons], bool),
        }

    @staticmethod
    def of(capacity: int, arrays: Arrays) -> "Reservoir":
        """What `arrays` said."""
        reservoir = Reservoir(capacity)
        views = np.split(arrays["view"], np.cumsum(arrays["view_sizes"])[:-1], 1)
        slots = np.split(arrays["slots"], np.cumsum(arrays["num_slots"])[:-1])
        decisions, items = split("decision", arrays), split("item", arrays)
        for at, own in enumerate(arrays["own"].tolist()):
            rewards, shown, logged = slots[at].T.tolist()
            reservoir._lessons.append(
                Lesson(
                    decision=Decision.FromString(decisions[at]),
                    view=View(*np.ascontiguousarray(views[at])),
                    item_ids=tuple(items[at].decode().split("\0")),
                    rewards=tuple(rewards),
                    shown=tuple(bool(x) for x in shown),
                    logged=tuple(logged),
                    own=own,
                )
            )
        return reservoir


def _columns(view: View) -> tuple[npt.NDArray[np.int64], ...]:
    return view.key_L, view.kind_L, view.gap_L


def _slots(lesson: Lesson) -> list[tuple[float, float, float]]:
    return [(reward, float(shown), logged) for reward, shown, logged in zip(lesson.rewards, lesson.shown, lesson.logged, strict=True)]
