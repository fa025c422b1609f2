"""Where the items of a request's memory stand in the tree, so that what happened before can move the odds of it happening again.

The logit of a child gets the sum, over the memory rows whose item lies under it, of a learned number by level, kind of row and
age (`Decoder.repeat`): positive where people come back, negative where they never do. Knows nothing of those numbers.

Shapes: B requests, L history, Q walks, K levels.
"""

from dataclasses import dataclass

import numpy as np

from models.decoder import Context, age_buckets
from models.trie import IntArray, Trie


@dataclass(frozen=True)
class Hits:
    """Pairs of a walk and a memory row of its request that lies under one of the children asked about."""

    walk_H: IntArray
    child_H: IntArray
    """Counted from the first child of the walk's node."""
    request_H: IntArray
    row_H: IntArray


@dataclass(frozen=True)
class Remembered:
    """The rows of each request's memory: the child that each lies under at every level (-1: an item not known here), kind, age."""

    child_KBL: list[IntArray]
    kind_BL: IntArray
    age_L: IntArray

    @staticmethod
    def of(context: Context, trie: Trie) -> "Remembered":
        """Looked up once per request; a blank row is under nothing."""
        known_BL = (context.kind_BL > 0) & (context.item_BL <= trie.num_items)
        leaf_BL = trie.leaf_of_item[np.where(known_BL, context.item_BL, 0)]
        child_KBL = [trie.child_over(leaf_BL, level) for level in range(trie.levels)]
        return Remembered(child_KBL, context.kind_BL, age_buckets(leaf_BL.shape[1]))

    def hits(self, level: int, of_Q: IntArray, node_Q: IntArray, start_Q: IntArray) -> Hits:
        """What lies under the children of each walk's node; `start_Q` is the place of the first of them."""
        child_QL = self.child_KBL[level][of_Q]
        under_QL = child_QL >= 0 if level == 0 else self.child_KBL[level - 1][of_Q] == node_Q[:, None]
        walk_H, row_H = under_QL.nonzero()
        return Hits(walk_H, child_QL[walk_H, row_H] - start_Q[walk_H], of_Q[walk_H], row_H)
