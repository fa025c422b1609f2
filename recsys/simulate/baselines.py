"""What others do instead of a decoder: policies of counts, learning from the same Examples at the same minutes.

Knows nothing of worlds. None of them draws, so their slates have no propensity: each logged probability is 1.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from models.content import FloatArray
from models.successors import ACT
from recsys.catalogue import Catalogue, Rows, Vocabulary
from recsys.memory import Memory, MemoryConfig, View
from recsys.policy import Asked, Choice, DrawingConfig, PlainItems, Policy
from recsys.simulate.stage import Stage
from streaming.joiner import Example, Joiner
from streaming.proto.recommender_pb2 import RecommendRequest

ACTS_READ = 20
"""Users are told by so many items that they took, the newest."""
PRIOR_SLOTS = 20.0
"""So many shown slots at the mean rate are added to what is known of each item."""


class Learnable(Policy, Protocol):
    """A policy that is taught."""

    def learn(self, taught: Sequence[Example], memory: Memory) -> None:
        """Take the Examples of one minute, own ones and imported ones; `memory` is as of the end of the log and of each of them."""


class Pupil:
    """A Variant: reads the log through the join that the decoder's learner reads it through, and teaches one policy."""

    def __init__(self, stage: Stage, policy: Learnable) -> None:
        self._log, self._policy = stage.log, policy
        self._joiner = Joiner(stage.config.join, stage.log.num_partitions)
        self._memory = Memory(stage.config.memory, stage.log.num_partitions)
        self._serves = False

    def step(self) -> Policy | None:
        """See Variant."""
        for partition in range(self._log.num_partitions):
            self._memory.keep_from[partition] = self._joiner.min_open_memory_offset(partition)
            while records := self._log.read(partition, self._joiner.next_offset(partition)):
                self._joiner.apply(partition, records)
                self._memory.read(records)
        while (bucket := self._joiner.take_bucket()) is not None:
            self._policy.learn(bucket.examples, self._memory)
        first, self._serves = not self._serves, True
        return self._policy if first else None

    def asks(self, request: RecommendRequest) -> RecommendRequest:
        """See Variant."""
        return request

    def figures(self) -> Mapping[str, Any]:
        """See Variant."""
        return {"books": self._joiner.books().as_dict()}

    def close(self) -> None:
        """See Variant."""


class Popular:
    """The items with the highest rate of reward in the last minutes, the same for everybody; their rate in the history is the prior."""

    policy_version = 0
    trained_through_ms = 0

    def __init__(self, minutes: int = 60) -> None:
        self.drawing = DrawingConfig()
        self._minutes, self._items = minutes, PlainItems()
        self._before, self._recent = _Rates(), _Rates()
        self._by_minute: deque[Sequence[Example]] = deque()

    def learn(self, taught: Sequence[Example], memory: Memory) -> None:
        """See Learnable."""
        del memory
        own = [example for example in taught if example.own]
        self._before.add([example for example in taught if not example.own], 1)
        self._recent.add(own, 1)
        self._by_minute.append(own)
        if len(self._by_minute) > self._minutes:
            self._recent.add(self._by_minute.popleft(), -1)

    def decide(self, asked: Sequence[Asked], catalogue: Catalogue) -> list[Choice]:
        """See Policy."""
        return [self._best(one, catalogue) for one in asked]

    def _best(self, asked: Asked, catalogue: Catalogue) -> Choice:
        rows = self._items.rows(asked, catalogue)
        item_ids = [catalogue.item_ids[row - 1] for row in rows]
        rates = self._recent.shrunk(item_ids, self._before.shrunk(item_ids, self._before.mean()))
        return best_of(item_ids, rates, asked)


class _Rates:
    """Shown slots and rewards by item."""

    def __init__(self) -> None:
        self._shown: dict[str, float] = {}
        self._reward: dict[str, float] = {}

    def add(self, taught: Sequence[Example], sign: int) -> None:
        """Count them, or take them back."""
        for example in taught:
            for slot, reward in zip(example.shown, example.rewards, strict=True):
                item_id = example.decision.item_ids[slot]
                self._shown[item_id] = self._shown.get(item_id, 0.0) + sign
                self._reward[item_id] = self._reward.get(item_id, 0.0) + sign * reward

    def mean(self) -> float:
        """Reward per shown slot over all items."""
        return sum(self._reward.values()) / max(sum(self._shown.values()), 1.0)

    def shrunk(self, item_ids: Sequence[str], prior: float | FloatArray) -> FloatArray:
        """Reward per shown slot of each item, as if it had been shown PRIOR_SLOTS times more at the prior rate."""
        shown = np.array([self._shown.get(item_id, 0.0) for item_id in item_ids])
        reward = np.array([self._reward.get(item_id, 0.0) for item_id in item_ids])
        return np.asarray((reward + PRIOR_SLOTS * prior) / (shown + PRIOR_SLOTS), np.float32)


def taken(view: View, vocabulary: Vocabulary) -> Rows:
    """Rows of the newest items that a user did something with, dislikes apart; worlds have the row kinds of a plain MemoryConfig."""
    rows = vocabulary.rows(view.key_L[(view.kind_L >= ACT) & ~np.isin(view.kind_L, MemoryConfig().against_kinds)])
    return rows[rows > 0][-ACTS_READ:]


def best_of(item_ids: Sequence[str], scores: FloatArray, asked: Asked) -> Choice:
    """The items with the highest scores, ties in an order of the request's own."""
    shuffled = np.random.Generator(np.random.Philox(asked.seed)).permutation(len(item_ids))
    chosen = shuffled[np.argsort(-scores[shuffled], kind="stable")[: asked.slate_size]]
    return Choice([item_ids[at] for at in chosen.tolist()], [0.0] * len(chosen))
