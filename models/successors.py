"""Which item followed which: counts that know a new item's neighbours after a few events, with no gradient.

Knows nothing of users or times: whoever counts says what followed what, and how much it weighs. Shapes: R item rows (0 = none),
P pairs, B requests, L history, A sources (the newest rows that tell of an act), M successors of one source.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from models.content import FloatArray
from models.trie import CountArray, IntArray

SOURCES = 3
"""A: rows of a memory whose successors are looked up."""
MOST = 64
"""M: successors of one source that a version keeps, the most frequent."""
LAG_WEIGHTS = (1.0, 0.5, 0.25)
"""What counts for an item that followed at once, after one other, after two."""
ACT = 2
"""Kinds of memory rows from here on say that the user did something; the kinds before are blank and shown."""
STRENGTH = 2.0
HALF_FOLLOWED, HALF_FOLLOWING = 8.0, 3.5
"""Counts at which an item is half silent: as a source, of what followed it; as a successor, of what it followed."""


@dataclass(frozen=True)
class Successors:
    """Frozen counts: those of source r stand at `start_R[r] .. start_R[r + 1]`, the most frequent first."""

    start_R: IntArray
    row_P: CountArray
    count_P: FloatArray

    @staticmethod
    def none() -> "Successors":
        """Nothing ever followed anything."""
        return Successors(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))

    def of(self, source_A: IntArray) -> tuple[IntArray, FloatArray]:
        """Successors of each source and their strength log(1 + 2 · count), (..., M); 0 behind the last one."""
        known_A = np.where(source_A + 1 < len(self.start_R), source_A, 0)
        first_A = self.start_R[known_A]
        number_A = np.where(known_A > 0, self.start_R[np.minimum(known_A + 1, len(self.start_R) - 1)] - first_A, 0)
        place_AM = first_A[..., None] + np.arange(number_A.max(initial=0))
        real_AM = place_AM < (first_A + number_A)[..., None]
        place_AM = np.where(real_AM, place_AM, 0)
        if not len(self.row_P):
            return np.zeros(place_AM.shape, np.int64), np.zeros(place_AM.shape, np.float32)
        strength_AM = np.log1p(STRENGTH * self.count_P[place_AM]) * real_AM
        return np.where(real_AM, self.row_P[place_AM], 0).astype(np.int64), strength_AM.astype(np.float32)

    def unfollowed(self, row_A: IntArray | CountArray) -> FloatArray:
        """How little is known of what follows each item, (...): 1 / (1 + count / half); row 0 and rows not known here say nothing: 1."""
        return _at(self._silence[0], row_A)

    def unmet(self, row_A: IntArray | CountArray) -> FloatArray:
        """How little is known of what each item follows, likewise."""
        return _at(self._silence[1], row_A)

    @cached_property
    def _silence(self) -> tuple[FloatArray, FloatArray]:
        """By row, as source and as successor; row 0 is 1, and so is the row behind the last."""
        end_R = np.append(0.0, np.cumsum(self.count_P, dtype=np.float64))
        followed_R = np.diff(end_R[self.start_R], append=end_R[-1:])
        following_R = np.bincount(self.row_P, self.count_P, len(self.start_R)).astype(np.float64)
        return _silence(followed_R, HALF_FOLLOWED), _silence(following_R, HALF_FOLLOWING)


class SuccessorCounts:
    """Counts that grow: pairs in order of (source, successor). A few more cost a copy of all, never a sort of all."""

    def __init__(self, key_P: IntArray | None = None, count_P: FloatArray | None = None) -> None:
        """`key_P` are source · 2³² + successor, ascending, each once."""
        self.key_P = np.zeros(0, np.int64) if key_P is None else key_P
        self.count_P = np.zeros(0, np.float32) if count_P is None else count_P

    def add(self, source_P: IntArray, row_P: IntArray, weight_P: FloatArray) -> None:
        """Count these pairs; rows 0 and pairs of an item with itself are left out."""
        real_P = (source_P > 0) & (row_P > 0) & (source_P != row_P)
        more_P, where_P = np.unique((source_P[real_P].astype(np.int64) << 32) | row_P[real_P], return_inverse=True)
        sum_P = np.bincount(where_P, weight_P[real_P], len(more_P)).astype(np.float32)
        new_P = ~np.isin(more_P, self.key_P, assume_unique=True)
        at_P = self.key_P.searchsorted(more_P[new_P])
        self.key_P, self.count_P = np.insert(self.key_P, at_P, more_P[new_P]), np.insert(self.count_P, at_P, np.float32(0))
        self.count_P[self.key_P.searchsorted(more_P)] += sum_P

    def fade(self, share: float) -> None:
        """Let everything counted so far weigh `share` of what it did; what is hardly left is dropped."""
        self.count_P = (self.count_P * np.float32(share)).astype(np.float32)
        kept_P = self.count_P > 0.01
        self.key_P, self.count_P = self.key_P[kept_P], self.count_P[kept_P]

    def frozen(self, num_rows: int) -> Successors:
        """The counts of rows 0..num_rows - 1, the most frequent MOST of each source; equal ones in order of row."""
        source_P = self.key_P >> 32
        # the bits of positive floats are in order of the floats: one sort of integers that are nearly sorted already
        order_P = np.argsort((source_P << 32) - self.count_P.view(np.int32), kind="stable")
        is_first_P = np.ediff1d(source_P, to_begin=1) > 0
        place_P = np.arange(len(source_P))
        order_P = order_P[place_P - np.maximum.accumulate(place_P * is_first_P) < MOST]
        start_R = np.searchsorted(source_P[order_P], np.arange(num_rows + 1))
        return Successors(start_R, (self.key_P[order_P] & 0xFFFFFFFF).astype(np.int32), self.count_P[order_P])


def sequence_pairs(rows: IntArray) -> tuple[IntArray, IntArray, FloatArray]:
    """All pairs of a sequence, by lag: source, successor, weight."""
    lags = range(1, min(len(LAG_WEIGHTS), len(rows) - 1) + 1)
    if not lags:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    weights = [np.full(len(rows) - lag, LAG_WEIGHTS[lag - 1], np.float32) for lag in lags]
    return np.concatenate([rows[:-lag] for lag in lags]), np.concatenate([rows[lag:] for lag in lags]), np.concatenate(weights)


def _silence(count_R: npt.NDArray[np.float64], half: float) -> FloatArray:
    return (1 / (1 + count_R / half)).astype(np.float32)


def _at(silence_R: FloatArray, row_A: IntArray | CountArray) -> FloatArray:
    """Rows behind the last are as the last, of which nothing is counted."""
    at_A: FloatArray = silence_R[np.minimum(row_A, len(silence_R) - 1)]
    return at_A


def newest_acts(item_BL: IntArray, kind_BL: IntArray) -> IntArray:
    """Places of the newest rows that tell of an act with a known item, newest first, (B, A); -1 where there are fewer."""
    act_BL = (kind_BL >= ACT) & (item_BL > 0)
    newer_BL = act_BL[:, ::-1].cumsum(1)[:, ::-1]  # how many acts from here on
    place_BA = np.full((len(item_BL), SOURCES), -1)
    at_B, at_L = (act_BL & (newer_BL <= SOURCES)).nonzero()
    place_BA[at_B, newer_BL[at_B, at_L] - 1] = at_L
    return place_BA
