"""The legal ids as a tree in flat arrays, and which of its leaves one request may still be given.

Knows nothing of how probable a leaf is. Item rows are 1..N (0 stands for "no item known to this version").
The children of a node are one contiguous range; the child at place `c` of level `l` is node `c` of level `l + 1`,
so no pointers are kept; the children of the last level are the items. Shapes: B requests, K levels, N items, E excluded, A allowed.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.tokenizer import IdArray

IntArray = npt.NDArray[np.int64]
CountArray = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Trie:
    """CSR by level. `starts[l][n] .. starts[l][n + 1]` are the children of node n of level l."""

    starts: list[IntArray]
    codes: list[IntArray]
    """Code of each child, by level."""
    live: list[CountArray]
    """Leaves under each child that may be generated (not retired), by level."""
    item_of_leaf: IntArray
    """Item row of each child of the last level."""
    path_NK: IntArray
    """Child place of each item row at each level; row 0 is -1. At the last level it is the leaf."""

    @staticmethod
    def built(ids_NK: IdArray, retired_N: npt.NDArray[np.bool_]) -> "Trie":
        """The tree of all ids; row i of `ids_NK` and `retired_N` is item row i + 1. O(N log N)."""
        num_items, levels = ids_NK.shape
        order = np.lexsort(ids_NK.T[::-1])
        sorted_NK, alive = ids_NK[order], (~retired_N[order]).astype(np.int32)
        node = np.zeros(num_items, np.int64)
        num_nodes = 1
        starts, codes, live = [], [], []
        path_NK = np.full((num_items + 1, levels), -1, np.int64)
        for level in range(levels):
            is_first = np.ones(num_items, bool)
            is_first[1:] = (node[1:] != node[:-1]) | (sorted_NK[1:, level] != sorted_NK[:-1, level])
            child = np.cumsum(is_first) - 1
            firsts = np.flatnonzero(is_first)
            starts.append(np.searchsorted(node[firsts], np.arange(num_nodes + 1)))
            codes.append(sorted_NK[firsts, level].astype(np.int64))
            live.append(np.add.reduceat(alive, firsts) if num_items else alive)
            path_NK[order + 1, level] = child
            node, num_nodes = child, len(firsts)
        return Trie(starts=starts, codes=codes, live=live, item_of_leaf=order + 1, path_NK=path_NK)

    @property
    def levels(self) -> int:
        """K."""
        return len(self.starts)

    @property
    def num_items(self) -> int:
        """How many items have an id, the retired ones too."""
        return len(self.item_of_leaf)

    def children(self, node_B: IntArray, level: int) -> tuple[IntArray, npt.NDArray[np.bool_]]:
        """Places of the children of each node, padded to the widest: (B, C) places (clipped) and (B, C) which are real."""
        start_B, end_B = self.starts[level][node_B], self.starts[level][node_B + 1]
        place_BC = start_B[:, None] + np.arange((end_B - start_B).max(initial=0))
        real_BC = place_BC < end_B[:, None]
        np.minimum(place_BC, len(self.codes[level]) - 1, out=place_BC)
        return place_BC, real_BC


@dataclass(frozen=True)
class Legal:
    """Which items each request may be given, as short lists of rows padded with 0.

    Without `allow_BA`: everything alive in the trie but `exclude_BE`. With it, where `limited_B`: `allow_BA` but
    `exclude_BE`. No row stands twice in either list, and every excluded row would be allowed but for that.
    """

    exclude_BE: IntArray
    allow_BA: IntArray | None = None
    limited_B: npt.NDArray[np.bool_] | None = None

    def live_leaves(self, trie: Trie, node_B: IntArray, place_BC: IntArray, real_BC: npt.NDArray[np.bool_], level: int) -> CountArray:
        """How many legal leaves are under each child, (B, C); 0 where there is no such child."""
        count_BC = trie.live[level][place_BC] * real_BC
        start_B = trie.starts[level][node_B]
        if self.allow_BA is not None and self.limited_B is not None:
            allowed_BC = np.zeros_like(count_BC)
            _count_under(trie, self.allow_BA, node_B, start_B, level, 1, allowed_BC)
            count_BC = np.where(self.limited_B[:, None], allowed_BC, count_BC)
        if self.exclude_BE.shape[1]:
            _count_under(trie, self.exclude_BE, node_B, start_B, level, -1, count_BC)
        return count_BC

    def total(self, trie: Trie) -> IntArray:
        """How many legal items each request has, (B,)."""
        whole_B = np.full(len(self.exclude_BE), trie.live[0].sum(), np.int64)
        if self.allow_BA is not None and self.limited_B is not None:
            whole_B = np.where(self.limited_B, (self.allow_BA > 0).sum(1), whole_B)
        return whole_B - (self.exclude_BE > 0).sum(1)


def _count_under(trie: Trie, rows_BE: IntArray, node_B: IntArray, start_B: IntArray, level: int, step: int, count_BC: CountArray) -> None:
    """Add `step` to the child that each of the rows lies under, where it lies under the request's node."""
    inside_BE = rows_BE > 0
    if level > 0:
        inside_BE &= trie.path_NK[rows_BE, level - 1] == node_B[:, None]
    at_B, at_E = inside_BE.nonzero()
    np.add.at(count_BC, (at_B, trie.path_NK[rows_BE[at_B, at_E], level] - start_B[at_B]), step)
