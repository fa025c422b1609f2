"""Where the items of a request's memory stand in the tree, so that what happened before can move the odds of it, and of its like.

The logit of a child gets, for each memory row, a learned number by level, kind of row and age: where the row's item lies under
the child (`Decoder.repeat`: positive where people come back, negative where they never do); where an item that followed the
row's item before does, times how often it did (`Decoder.follow`); and times the cosine of the row's content and the child's
(`Decoder.match`). Where little is known of what follows the row's item, others come to these (models/silence.py). Knows nothing of
those numbers.

Shapes: B requests, L history, A sources and M successors of each, J = L + A M hints, Q walks, K levels.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from models.content import FloatArray
from models.decoder import AGES, Context
from models.encounters import row_shares
from models.successors import Successors, newest_acts
from models.trie import IntArray, Trie

Number = TypeVar("Number", np.int64, np.float32)

REPEAT, FOLLOW = 0, 1
"""What a hint is: that an item was there, or that it followed one that was."""


@dataclass(frozen=True)
class Hits:
    """Pairs of a walk and a hint of its request that lies under one of the children asked about."""

    walk_H: IntArray
    child_H: IntArray
    """Counted from the first child of the walk's node."""
    request_H: IntArray
    hint_H: IntArray


@dataclass(frozen=True)
class Remembered:
    """The hints of each request: the child that each lies under at every level (-1: an item not known here), what, kind and age."""

    item_BL: IntArray
    """The rows' own items; 0 where a row is blank or its item is not known here."""
    kind_BL: IntArray
    age_L: IntArray
    child_KBJ: list[IntArray]
    what_J: IntArray
    kind_BJ: IntArray
    """Of the row that a hint comes from."""
    age_BJ: IntArray
    strength_BJ: FloatArray
    unfollowed_BJ: FloatArray
    """Silence, as a source, of the item of the row that a hint comes from."""
    unfollowed_B: FloatArray
    """That of the newest act's item; 0 where there is none."""

    @staticmethod
    def of(context: Context, trie: Trie, successors: Successors) -> "Remembered":
        """Looked up once per request; a blank row is under nothing."""
        known_BL = (context.kind_BL > 0) & (context.item_BL <= trie.num_items)
        item_BL, kind_BL = np.where(known_BL, context.item_BL, 0), context.kind_BL
        batch, length = item_BL.shape
        age_L = age_buckets(length)
        source_BA = newest_acts(item_BL, kind_BL)
        at_B1 = np.arange(batch)[:, None]
        source_BA = np.where(source_BA < 0, length, source_BA)  # a column of nothing behind the rows
        unfollowed_BL = successors.unfollowed(item_BL)
        unfollowed_BA = _with_nothing(unfollowed_BL)[at_B1, source_BA]
        row_BAM, strength_BAM = successors.of(_with_nothing(item_BL)[at_B1, source_BA])
        most = row_BAM.shape[2]
        kind_BA, age_BA = _with_nothing(kind_BL)[at_B1, source_BA], np.append(age_L, 0)[source_BA]
        item_BJ = np.concatenate([item_BL, row_BAM.reshape(batch, -1)], 1)
        leaf_BJ = trie.leaf_of_item[np.where(item_BJ <= trie.num_items, item_BJ, 0)]
        return Remembered(
            item_BL,
            kind_BL,
            age_L,
            [trie.child_over(leaf_BJ, level) for level in range(trie.levels)],
            np.repeat([REPEAT, FOLLOW], [length, item_BJ.shape[1] - length]),
            np.concatenate([kind_BL, kind_BA.repeat(most, 1)], 1),
            np.concatenate([np.broadcast_to(age_L, item_BL.shape), age_BA.repeat(most, 1)], 1),
            np.concatenate([np.ones(item_BL.shape, np.float32), strength_BAM.reshape(batch, -1)], 1),
            np.concatenate([unfollowed_BL, unfollowed_BA.repeat(most, 1)], 1),
            unfollowed_BA[:, 0],
        )

    @cached_property
    def met_rows(self) -> FloatArray:
        """What each hint's row counts for in what is said of its own item (`row_shares`), (B, J); 0 for what followed one."""
        share_BJ = np.zeros(self.kind_BJ.shape, np.float32)
        share_BJ[:, : self.item_BL.shape[1]] = row_shares(self.item_BL, self.kind_BL)
        return share_BJ

    @property
    def unfollowed_rows(self) -> FloatArray:
        """Of the rows themselves, (B, L)."""
        return self.unfollowed_BJ[:, : self.item_BL.shape[1]]

    def without_content(self) -> "Remembered":
        """The same hints, no likeness of content to anything, and nothing made of silence."""
        nothing_BJ, nothing_B = np.zeros_like(self.unfollowed_BJ), np.zeros_like(self.unfollowed_B)
        return replace(self, item_BL=np.zeros_like(self.item_BL), unfollowed_BJ=nothing_BJ, unfollowed_B=nothing_B)

    def hits(self, level: int, of_Q: IntArray, node_Q: IntArray, start_Q: IntArray) -> Hits:
        """What lies under the children of each walk's node, behind the root; `start_Q`: the place of the first, one each or one for all."""
        walk_H, hint_H = (self.child_KBJ[level - 1][of_Q] == node_Q[:, None]).nonzero()
        child_H = self.child_KBJ[level][of_Q[walk_H], hint_H]
        return Hits(walk_H, child_H - np.broadcast_to(start_Q, len(of_Q))[walk_H], of_Q[walk_H], hint_H)

    def hits_anywhere(self, level: int, of_Q: IntArray) -> Hits:
        """What lies under any child of a level; of level 0, those of the root."""
        child_QJ = self.child_KBJ[level][of_Q]
        walk_H, hint_H = (child_QJ >= 0).nonzero()
        return Hits(walk_H, child_QJ[walk_H, hint_H], of_Q[walk_H], hint_H)

    def numbers(self, hits: Hits) -> tuple[tuple[IntArray, IntArray, IntArray], FloatArray, FloatArray]:
        """Where a hit's weight stands in (what, kind, age), how often it counts, and the silence of what it comes from."""
        at_H = hits.request_H, hits.hint_H
        where = self.what_J[hits.hint_H], self.kind_BJ[at_H], self.age_BJ[at_H]
        return where, self.strength_BJ[at_H], self.unfollowed_BJ[at_H]


def _with_nothing(rows_BL: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """With a column of zeros behind the rows."""
    padded_BL = np.zeros((len(rows_BL), rows_BL.shape[1] + 1), rows_BL.dtype)
    padded_BL[:, :-1] = rows_BL
    return padded_BL


def age_buckets(length: int) -> IntArray:
    """Bucket of each of the newest `length` rows of a memory, oldest first: round(2 log2(1 + how many are newer)), at most 15, (L,)."""
    return np.minimum(np.round(2 * np.log2(np.arange(length, 0, -1))), AGES - 1).astype(np.int64)
