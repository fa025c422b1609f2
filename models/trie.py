"""The legal ids as a tree in flat arrays, and which of its leaves each request may still be given.

Knows nothing of how probable a leaf is. Item rows are 1..N (0 stands for "no item known to this version"); leaves are
0..N-1, the items in order of their ids, so whatever lies under a node is one range of leaves. The children of a node are one
range too: the child at place `c` of level `l` is node `c` of level `l + 1`, and the children of the last level are the
leaves. No pointers and no paths are kept: the node above a leaf is found by search. So an item costs three int32.

Shapes: B requests, Q walks down the tree (each for one request), K levels, N items, C children, X = C + 1 bounds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from models.content import FloatArray
from models.tokenizer import IdArray

IntArray = npt.NDArray[np.int64]
CountArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True)
class Children:
    """The children of Q nodes of one level. Of one node they are a slice; of several they are padded to the widest."""

    start_Q: IntArray
    end_Q: IntArray
    place_QC: IntArray | None
    """Place of each child, the last one repeated behind it; None for one node."""
    bound_QX: IntArray | CountArray
    """The first leaf under each child, and the leaf behind the last one; no leaf lies under a padded child."""

    def of(self, array_P: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """What stands at the children's places in an array in order of place, (Q, C)."""
        if self.place_QC is None:
            return array_P[None, self.start_Q[0] : self.end_Q[0]]
        return array_P[self.place_QC]


@dataclass(frozen=True)
class Trie:
    """CSR by level. `starts[l][n] .. starts[l][n + 1]` are the places of the children of node n of level l."""

    first_leaf: list[CountArray]
    """By level, the first leaf under each node, and N at the end."""
    starts: list[CountArray]
    """The last level's are its first leaves."""
    codes: list[CountArray]
    """Code of each child, by inner level. The last code of an id is a place in order of arrival: nothing needs it."""
    item_of_leaf: CountArray
    leaf_of_item: CountArray
    """By item row; -1 for row 0."""
    alive_before: CountArray
    """How many leaves before each one may be generated (are not retired), (N + 1,)."""

    @staticmethod
    def built(ids_NK: IdArray, retired_N: BoolArray) -> "Trie":
        """The tree of all ids; row i of `ids_NK` and `retired_N` is item row i + 1. Rows of one prefix are in order of suffix.

        One stable sort of the packed prefixes: seconds for 10⁷ items.
        """
        num_items, levels = ids_NK.shape
        sizes = ids_NK[:, :-1].max(0, initial=0).astype(np.int64) + 1
        key_N = np.zeros(num_items, np.int64)
        for level, size in enumerate(sizes):
            key_N *= size
            key_N += ids_NK[:, level]
        # two bytes at most, where they do, are sorted by counting
        key_N = key_N.astype(np.min_scalar_type(int(sizes.prod()) - 1))
        order_N = np.argsort(key_N, kind="stable")
        sorted_N = key_N[order_N].astype(np.int64)
        keys = [sorted_N // sizes[level:].prod() for level in range(1, levels)]
        first_leaf = [np.array([0, num_items], np.int32), *map(_firsts, keys)]
        codes = [(key[first[:-1]] % size).astype(np.int32) for key, first, size in zip(keys, first_leaf[1:], sizes, strict=True)]
        return Trie._of(first_leaf, codes, (order_N + 1).astype(np.int32), np.cumsum(~retired_N[order_N], dtype=np.int32))

    @staticmethod
    def _of(first_leaf: list[CountArray], codes: list[CountArray], item_of_leaf: CountArray, alive_N: CountArray) -> "Trie":
        leaf_of_item = np.full(len(item_of_leaf) + 1, -1, np.int32)
        leaf_of_item[item_of_leaf] = np.arange(len(item_of_leaf), dtype=np.int32)
        starts = [np.searchsorted(below, above).astype(np.int32) for above, below in pairwise(first_leaf)]
        alive_before = np.concatenate([np.zeros(1, np.int32), alive_N])
        return Trie(first_leaf, [*starts, first_leaf[-1]], codes, item_of_leaf, leaf_of_item, alive_before)

    def tensors(self) -> dict[str, CountArray]:
        """What it can be made of again without sorting."""
        arrays = {"item_of_leaf": self.item_of_leaf, "alive": self.alive_before[1:]}
        arrays |= {f"first_leaf.{level}": first for level, first in enumerate(self.first_leaf)}
        return arrays | {f"codes.{level}": codes for level, codes in enumerate(self.codes)}

    @staticmethod
    def of_tensors(arrays: Mapping[str, CountArray], levels: int) -> "Trie":
        """The tree of K levels that `tensors` was taken from."""
        first_leaf = [arrays[f"first_leaf.{level}"] for level in range(levels)]
        codes = [arrays[f"codes.{level}"] for level in range(levels - 1)]
        return Trie._of(first_leaf, codes, arrays["item_of_leaf"], arrays["alive"])

    def is_of(self, ids_NK: IdArray) -> bool:
        """Whether its leaves are these ids, each in its place."""
        if len(self.item_of_leaf) != len(ids_NK) or len(self.leaf_of_item) != len(ids_NK) + 1:
            return False
        sorted_NK = ids_NK[self.item_of_leaf - 1]
        below = zip(self.codes, self.first_leaf[1:], strict=True)
        return all(np.array_equal(np.repeat(codes, np.diff(first)), sorted_NK[:, level]) for level, (codes, first) in enumerate(below))

    @property
    def levels(self) -> int:
        """K."""
        return len(self.starts)

    @property
    def num_items(self) -> int:
        """How many items have an id, the retired ones too."""
        return len(self.item_of_leaf)

    @cached_property
    def widest(self) -> int:
        """The most children that a node has."""
        return max(int(np.diff(start_N).max(initial=0)) for start_N in self.starts)

    @cached_property
    def num_bytes(self) -> int:
        """What its arrays take."""
        arrays = [*self.first_leaf, *self.starts[:-1], *self.codes, self.item_of_leaf, self.leaf_of_item, self.alive_before]
        return sum(array.nbytes for array in arrays)

    def children(self, node_Q: IntArray, level: int) -> Children:
        """The children of nodes of a level."""
        starts, last = self.starts[level], level + 1 == self.levels
        if len(node_Q) == 1:
            start, end = starts[node_Q[0] : node_Q[0] + 2].tolist()
            bound_X = np.arange(start, end + 1) if last else self.first_leaf[level + 1][start : end + 1]
            return Children(np.array([start]), np.array([end]), None, bound_X[None])
        start_Q, end_Q = starts[node_Q].astype(np.int64), starts[node_Q + 1].astype(np.int64)
        at_QX = np.minimum(start_Q[:, None] + np.arange((end_Q - start_Q).max(initial=0) + 1), end_Q[:, None])
        place_QC = np.minimum(at_QX[:, :-1], end_Q[:, None] - 1)
        return Children(start_Q, end_Q, place_QC, at_QX if last else self.first_leaf[level + 1][at_QX])

    def contents(self, centroids: Sequence[FloatArray], leaf_FC: FloatArray) -> list[FloatArray]:
        """The content that each child of each inner level stands for, in order of place, (P, C), whatever comes to lie under it.

        Of a first code it is the centroid (V, C). Deeper, half of what its codes make and half of the item that came first: the deeper,
        the fewer items there are, and the less do centroids that all branches share say of one. What codes make are their centroids put
        together as residual k-means took them apart (models/tokenizer.py): each times the length of what those before it leave over,
        which of unit vectors around their mean m is √(1 - |m|²) (root mean square).
        """
        made_NC, left_N1, contents = np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32), list[FloatArray]()
        for level, centroid_VC in enumerate(centroids):
            start_N, mean_PC = self.starts[level], centroid_VC[self.codes[level]]
            over_P = np.arange(len(start_N) - 1).repeat(np.diff(start_N))
            made_NC = made_NC[over_P] + left_N1[over_P] * mean_PC
            left_N1 = left_N1[over_P] * np.sqrt(np.maximum(1 - np.vecdot(mean_PC, mean_PC), 0))[:, None]
            contents.append((made_NC + leaf_FC[self._first_come(level)]) / np.float32(2) if level else made_NC)
        return contents

    def _first_come(self, level: int) -> CountArray:
        """The leaf under each child of an inner level whose item came first, (P,)."""
        return self.leaf_of_item[np.minimum.reduceat(self.item_of_leaf, self.first_leaf[level + 1][:-1])]

    def child_over(self, leaf_A: IntArray | CountArray, level: int) -> IntArray:
        """Place of the child of a level that each leaf lies under; -1 for leaf -1. Any shape."""
        if level + 1 == self.levels:
            return leaf_A.astype(np.int64)
        return np.searchsorted(self.first_leaf[level + 1], leaf_A.astype(np.int32), side="right") - 1

    def siblings(self, rows: IntArray) -> IntArray:
        """Rows of all items that have the last node above them in common with one of these, those themselves included; any order."""
        leaf_F = self.leaf_of_item[rows[(rows > 0) & (rows <= self.num_items)]]
        node_G = np.unique(self.child_over(leaf_F, self.levels - 2)) if self.levels > 1 else np.zeros(min(1, len(leaf_F)), np.int64)
        first_G, end_G = (self.starts[-1][node_G + after].astype(np.int64) for after in (0, 1))
        return self.item_of_leaf[spans(first_G, end_G - first_G)].astype(np.int64)

    def live_leaves(self, rows: IntArray) -> IntArray:
        """The leaves of those of these item rows that are known here and not retired: ascending, each once."""
        leaf_F = self.leaf_of_item[rows[(rows > 0) & (rows <= self.num_items)]].astype(np.int64)
        return np.unique(leaf_F[self.alive_before[leaf_F + 1] > self.alive_before[leaf_F]])


def spans(first_G: IntArray, size_G: IntArray) -> IntArray:
    """The numbers first .. first + size - 1 of each, one behind the other."""
    end_G = np.cumsum(size_G)
    return np.repeat(first_G - end_G + size_G, size_G) + np.arange(end_G[-1] if len(end_G) else 0)


def _firsts(key_N: IntArray) -> CountArray:
    """Where each run of equal keys begins, and the end of all."""
    is_first_N = np.ones(len(key_N) + 1, bool)
    is_first_N[1:-1] = key_N[1:] != key_N[:-1]
    return np.flatnonzero(is_first_N).astype(np.int32)


@dataclass(frozen=True)
class Marks:
    """Leaves of several groups in one sorted array of group · stride + leaf: a range of leaves is counted by two searches."""

    key_M: IntArray
    stride: int

    @staticmethod
    def of(leaves: Sequence[IntArray], stride: int) -> "Marks":
        """The leaves of each group, ascending; those of a single group are not copied."""
        if len(leaves) == 1:
            return Marks(leaves[0], stride)
        return Marks(np.concatenate([np.zeros(0, np.int64), *(leaf_F + group * stride for group, leaf_F in enumerate(leaves))]), stride)

    def add_to(self, count_QC: CountArray, sign: int, group_Q: IntArray, bound_QX: IntArray | CountArray) -> None:
        """Add how many marks of the walk's group lie between each two bounds, times `sign`; one row of bounds stands for all walks."""
        if not len(self.key_M) or bound_QX.shape[1] < 2:
            return
        key_Q1 = (group_Q * self.stride)[:, None]
        first_Q, end_Q = self.key_M.searchsorted(bound_QX[:, :: bound_QX.shape[1] - 1] + key_Q1).T
        number_Q = end_Q - first_Q
        if len(group_Q) == 1:
            if number_Q[0]:
                before_X = self.key_M[first_Q[0] : end_Q[0]].searchsorted(bound_QX[0] + key_Q1[0])
                count_QC[0] += sign * (before_X[1:] - before_X[:-1])
        elif number_Q.sum() < count_QC.size:  # fewer marks to be found among bounds than bounds among marks
            walk_M = np.repeat(np.arange(len(group_Q)), number_Q)
            leaf_M = self.key_M[spans(first_Q, number_Q)] - key_Q1[walk_M, 0]
            row_M = np.minimum(walk_M, len(bound_QX) - 1)
            key_X = (bound_QX + (np.arange(len(bound_QX)) * self.stride)[:, None]).ravel()
            at_M = key_X.searchsorted(leaf_M + row_M * self.stride, side="right") - 1
            np.add.at(count_QC, (walk_M, at_M - row_M * bound_QX.shape[1]), sign)
        else:
            before_QX = self.key_M.searchsorted(bound_QX + key_Q1)
            count_QC += sign * (before_QX[:, 1:] - before_QX[:, :-1])


@dataclass(frozen=True)
class Legal:
    """Which leaves each walk may end in: all that is alive, or a limited list, without what is excluded or already chosen.

    No count depends on how many items there are or how many a list holds, but for the logarithm of it.
    """

    trie: Trie
    of_Q: IntArray
    """The request of each walk."""
    limited_B: BoolArray
    allow: Marks
    """By request; nothing for a request that is not limited."""
    exclude: Marks
    """By request."""
    chosen: Marks
    """By walk."""

    @staticmethod
    def of(trie: Trie, exclude: Sequence[IntArray], allow: Sequence[IntArray | None]) -> "Legal":
        """One walk a request: `exclude` of all that is alive, or of `allow` where that is given.

        Leaves are alive, ascending, each once in its list.
        """
        stride = trie.num_items + 1
        # what is not in the list to begin with can't be taken out of it
        out = [leaf_F if list_F is None else common(leaf_F, list_F) for leaf_F, list_F in zip(exclude, allow, strict=True)]
        nothing = np.zeros(0, np.int64)
        return Legal(
            trie,
            np.arange(len(out)),
            np.array([list_F is not None for list_F in allow], bool),
            Marks.of([nothing if list_F is None else list_F for list_F in allow], stride),
            Marks.of(out, stride),
            Marks(nothing, stride),
        )

    def at(self, at_Q: IntArray) -> "Legal":
        """Other walks for the same requests, before anything was chosen; `at_Q` says which of the present walks each is like."""
        assert not len(self.chosen.key_M)
        return replace(self, of_Q=self.of_Q[at_Q])

    def unchosen(self) -> "Legal":
        """The same walks before anything was chosen."""
        return replace(self, chosen=Marks(np.zeros(0, np.int64), self.chosen.stride))

    def closed(self, count_GC: CountArray, group_Q: IntArray) -> tuple[IntArray, IntArray]:
        """Pairs of a walk and a child of the root under which it has chosen all: walks (ascending) and children.

        `count_GC` says how many legal leaves there were, before anything was chosen, for the walks of each group.
        """
        walk_M, leaf_M = np.divmod(self.chosen.key_M, self.chosen.stride)
        key_M, number_M = np.unique(walk_M * count_GC.shape[1] + self.trie.child_over(leaf_M, 0), return_counts=True)
        walk_M, child_M = np.divmod(key_M, count_GC.shape[1])
        all_M = number_M >= count_GC[group_Q[walk_M], child_M]
        return walk_M[all_M], child_M[all_M]

    def without(self, leaf_QS: IntArray) -> "Legal":
        """Without these legal leaves of each walk, too; -1 stands for none."""
        key_QS = leaf_QS + (np.arange(len(leaf_QS)) * self.chosen.stride)[:, None]
        key_M = np.concatenate([self.chosen.key_M, key_QS[leaf_QS >= 0]])
        key_M.sort()
        return Legal(self.trie, self.of_Q, self.limited_B, self.allow, self.exclude, Marks(key_M, self.chosen.stride))

    def count(self, bound_QX: IntArray | CountArray) -> CountArray:
        """How many legal leaves lie between each two bounds of each walk, (Q, C); one row of bounds stands for all walks."""
        shared = len(bound_QX) == 1  # then walks differ by their request, and by what each has chosen
        group_W = np.arange(len(self.limited_B)) if shared else self.of_Q
        before_WX = self.trie.alive_before[bound_QX]
        count_WC = (before_WX[:, 1:] - before_WX[:, :-1]).repeat(len(group_W) if shared else 1, 0)
        if len(self.allow.key_M) or self.limited_B.any():
            count_WC[self.limited_B[group_W]] = 0
            self.allow.add_to(count_WC, 1, group_W, bound_QX)
        self.exclude.add_to(count_WC, -1, group_W, bound_QX)
        count_QC = count_WC[self.of_Q] if shared else count_WC
        self.chosen.add_to(count_QC, -1, np.arange(len(count_QC)), bound_QX)
        return count_QC

    def total(self) -> IntArray:
        """How many legal leaves each walk has, (Q,)."""
        return self.count(np.array([[0, self.trie.num_items]]))[:, 0].astype(np.int64)


def common(few_F: IntArray, many_F: IntArray) -> IntArray:
    """What stands in both of two ascending lists: a search for each of the first in the second."""
    if not len(many_F):
        return few_F[:0]
    at_F = np.minimum(many_F.searchsorted(few_F), len(many_F) - 1)
    return few_F[many_F[at_F] == few_F]
