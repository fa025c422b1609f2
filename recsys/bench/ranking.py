"""Next-item ranking: the split, the metrics and the models that only count. Knows nothing of how others are trained.

Protocol: a user's last item is the test, the last but one the validation, everything before is for training; every item of
the catalogue is ranked; items used before stay in (the published protocol) and, in a second pair of columns, are taken out
for every model alike. Shapes: U users, B of them at a time, R item rows (0 = none), T targets of one user.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

LOG = logging.getLogger(__name__)

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
Scores = Callable[[Sequence[IntArray]], FloatArray]
"""Histories, oldest first → a score of each row as what comes next, (B, R)."""

AT_ONCE = 256


@dataclass(frozen=True)
class Split:
    """Leave one out. `train[u]` are the rows to learn from, `valid[u]` and `test[u]` the two that followed."""

    train: list[IntArray]
    valid: IntArray
    test: IntArray
    num_rows: int

    @staticmethod
    def of(sequences: Sequence[IntArray], num_rows: int) -> "Split":
        """Users with fewer than three items are left out; ValueError when nobody has more."""
        kept = [rows for rows in sequences if len(rows) >= 3]
        if not teaches(kept):
            raise ValueError(f"none of {len(sequences)} sequences has four items or more: nothing to train, validate and test on")
        if len(kept) < len(sequences):
            LOG.warning("%d of %d users have fewer than three items and are left out", len(sequences) - len(kept), len(sequences))
        return Split([rows[:-2] for rows in kept], np.array([rows[-2] for rows in kept]), np.array([rows[-1] for rows in kept]), num_rows)

    @property
    def before_test(self) -> list[IntArray]:
        """What is known when the test item is asked for."""
        return [np.append(rows, row) for rows, row in zip(self.train, self.valid, strict=True)]

    def counts(self) -> IntArray:
        """Events of each row to learn from, (R,)."""
        return np.bincount(np.concatenate(self.train), minlength=self.num_rows)


def teaches(sequences: Sequence[IntArray]) -> bool:
    """Whether something follows something else in anybody's, once the two that validate and test are out."""
    return any(len(rows) > 3 for rows in sequences)


@dataclass(frozen=True)
class Ranks:
    """Place of each user's target, 0 = first, among all rows (`all_U`) and among those not used before (`unseen_U`)."""

    all_U: FloatArray
    unseen_U: FloatArray

    def figures(self) -> dict[str, float]:
        """The columns of a row of the report."""
        return {
            "recall_at_10": recall(self.all_U, 10),
            "ndcg_at_10": ndcg(self.all_U, 10),
            "recall_at_50": recall(self.all_U, 50),
            "recall_at_10_unseen": recall(self.unseen_U, 10),
            "ndcg_at_10_unseen": ndcg(self.unseen_U, 10),
        }


def recall(ranks_U: FloatArray, cut: int) -> float:
    """Share of targets among the first `cut`."""
    return float((ranks_U < cut).mean()) if len(ranks_U) else float("nan")


def ndcg(ranks_U: FloatArray, cut: int) -> float:
    """Mean of 1 / log2(rank + 2) of targets among the first `cut`: with one target the ideal is 1 (Järvelin and Kekäläinen 2002)."""
    return float(np.where(ranks_U < cut, 1 / np.log2(ranks_U + 2), 0).mean()) if len(ranks_U) else float("nan")


def rank(scores: Scores, histories: Sequence[IntArray], targets: IntArray) -> Ranks:
    """Where each target comes. Equal scores share a place: a target behind n better and beside m equal ones has rank n + m / 2.

    A target that was used before stays in the second list, as every model must be able to hit it.
    """
    of_all, of_unseen = [np.zeros(0, np.float32)], [np.zeros(0, np.float32)]
    for first in range(0, len(targets), AT_ONCE):
        part = histories[first : first + AT_ONCE]
        target_B = targets[first : first + AT_ONCE]
        score_BR = scores(part).astype(np.float32, copy=True)
        score_BR[:, 0] = -np.inf
        own_B1 = score_BR[np.arange(len(part)), target_B][:, None]
        of_all.append(_place(score_BR, own_B1))
        for at, rows in enumerate(part):
            score_BR[at, rows] = -np.inf
        score_BR[np.arange(len(part)), target_B] = own_B1[:, 0]
        of_unseen.append(_place(score_BR, own_B1))
    return Ranks(np.concatenate(of_all), np.concatenate(of_unseen))


def _place(score_BR: FloatArray, own_B1: FloatArray) -> FloatArray:
    better_B, level_B = (score_BR > own_B1).sum(1), (score_BR == own_B1).sum(1) - 1
    return (better_B + level_B / 2).astype(np.float32)


def popularity(split: Split) -> Scores:
    """The rows that most events were of."""
    counts_R = split.counts().astype(np.float32)
    return lambda histories: np.tile(counts_R, (len(histories), 1))


def markov(split: Split) -> Scores:
    """First-order chain: how often a row followed the newest one; what never followed comes by its popularity."""
    pairs = np.concatenate([np.stack([rows[:-1], rows[1:]], 1) for rows in split.train])
    shape = (split.num_rows, split.num_rows)
    followed = csr_array((np.ones(len(pairs), np.float32), (pairs[:, 0], pairs[:, 1])), shape=shape)
    counts_R = split.counts() / (split.counts().max() + 1)

    def scores(histories: Sequence[IntArray]) -> FloatArray:
        newest_B = [rows[-1] for rows in histories]
        return np.asarray(followed[newest_B].todense() + counts_R, np.float32)

    return scores


def neighbours(vectors_RC: FloatArray) -> Scores:
    """Content alone: how near a row's vector is to that of the newest row. Needs no events, so it knows new items too."""

    def scores(histories: Sequence[IntArray]) -> FloatArray:
        newest_BC: FloatArray = vectors_RC[[rows[-1] for rows in histories]]
        return newest_BC @ vectors_RC.T

    return scores
