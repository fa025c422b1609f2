"""LinUCB on the same features: one ridge regression an item, on what its user did before. Knows nothing of worlds or runs.

Disjoint LinUCB (Li et al. 2010, arXiv:1003.0146, algorithm 1), the slate being the items with the highest upper bounds.
"""

from collections.abc import Sequence

import numpy as np

from models.content import ContentRule, FloatArray
from recsys.catalogue import Catalogue, Vocabulary
from recsys.features import lessons
from recsys.memory import Memory, View
from recsys.policy import Asked, Choice, DrawingConfig, PlainItems
from recsys.simulate.baselines import best_of, taken
from streaming.joiner import Example

CONTENT_DIM = 16
DIM = CONTENT_DIM + 1


class LinUcb:
    """A Learnable. A user is 1 and the mean content of the newest items he acted on."""

    policy_version = 0
    trained_through_ms = 0

    def __init__(self, alpha: float = 0.3) -> None:
        """`alpha`: standard errors that the bound stands above the estimate."""
        self.drawing = DrawingConfig()
        self._alpha = alpha
        self._items = PlainItems()
        self._vocabulary = Vocabulary([])
        self._content: ContentRule | None = None
        self._content_RC = np.zeros((1, CONTENT_DIM), np.float32)
        self._precision_RXX = np.zeros((1, DIM, DIM))
        self._covariance_RXX = np.zeros((1, DIM, DIM))
        self._reward_RX = np.zeros((1, DIM))
        self._weight_RX = np.zeros((1, DIM))

    def learn(self, taught: Sequence[Example], memory: Memory) -> None:
        """See Learnable: own slots, each for its item."""
        own = [example for example in taught if example.own]
        changed: set[int] = set()
        for example, lesson in zip(own, lessons(own, memory), strict=True):
            user_X = self._user(lesson.view)
            for slot, reward in zip(example.shown, example.rewards, strict=True):
                row = self._vocabulary.row_of[example.decision.item_ids[slot]]
                self._precision_RXX[row] += np.outer(user_X, user_X)
                self._reward_RX[row] += reward * user_X
                changed.add(row)
        rows = sorted(changed)
        self._covariance_RXX[rows] = np.linalg.inv(self._precision_RXX[rows])
        self._weight_RX[rows] = np.einsum("rxy,ry->rx", self._covariance_RXX[rows], self._reward_RX[rows])

    def decide(self, asked: Sequence[Asked], catalogue: Catalogue) -> list[Choice]:
        """See Policy."""
        if len(catalogue.item_ids) != self._vocabulary.num_rows - 1:
            self._grow(catalogue)
        return [self._highest(one, catalogue) for one in asked]

    def _highest(self, asked: Asked, catalogue: Catalogue) -> Choice:
        rows, user_X = self._items.rows(asked, catalogue), self._user(asked.view)
        spread_R = np.sqrt(np.maximum(self._covariance_RXX @ user_X @ user_X, 0))
        bound_R = self._weight_RX @ user_X + self._alpha * spread_R
        return best_of([catalogue.item_ids[row - 1] for row in rows], bound_R[rows].astype(np.float32), asked)

    def _user(self, view: View) -> FloatArray:
        acted_C = self._content_RC[taken(view, self._vocabulary)]
        mean_C = acted_C.mean(0) if len(acted_C) else np.zeros(CONTENT_DIM, np.float32)
        return np.append(mean_C, np.float32(1))

    def _grow(self, catalogue: Catalogue) -> None:
        """New items begin with a ridge of one and nothing learned."""
        known, total = self._vocabulary.num_rows, len(catalogue.item_ids) + 1
        texts = catalogue.texts(range(known, total))
        self._content = self._content or ContentRule.fitted(texts, CONTENT_DIM)
        self._content_RC = np.concatenate([self._content_RC, self._content.vectors(texts)])
        ridge_RXX = np.tile(np.eye(DIM), (total - known, 1, 1))
        self._precision_RXX = np.concatenate([self._precision_RXX, ridge_RXX])
        self._covariance_RXX = np.concatenate([self._covariance_RXX, ridge_RXX])
        self._reward_RX, self._weight_RX = (np.pad(one, ((0, total - known), (0, 0))) for one in (self._reward_RX, self._weight_RX))
        self._vocabulary = Vocabulary(list(catalogue.item_ids))
