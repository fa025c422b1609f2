"""What a user's own rows say of the very item that is asked about: that he met it before, and what he made of it.

Content cannot tell an item that was passed by from its like; this can, and what it is worth is learned with models/affinity.py, by
models/paces.py. Knows nothing of content, policies or of how it is learned.

Shapes: B requests, L history, Q shown slots, K row kinds.
"""

import numpy as np
import torch
from torch import Tensor

from models.content import FloatArray
from models.trie import IntArray

LOUDNESS = 2.0
"""What is learned of this has the prior of what is learned of contents: the louder, the sooner is it believed, and so is a lie."""
FEW = 1.0
"""Rows of no kind that stand beside those of an item: one row says less of it than five of the same kind."""


def own_items(item_BL: IntArray) -> IntArray:
    """A number for each user's item: the same item of two users has two, (B, L)."""
    number_BL: IntArray = item_BL + np.arange(len(item_BL))[:, None] * (item_BL.max(initial=0) + 1)
    return number_BL


def row_shares(item_BL: IntArray, kind_BL: IntArray) -> FloatArray:
    """What each row of a memory counts for in what is said of its own item, (B, L): loudness / (n + few) of the n rows of that item."""
    is_row_BL = (kind_BL > 0) & (item_BL > 0)
    _, group_N, count_G = np.unique(own_items(item_BL)[is_row_BL], return_inverse=True, return_counts=True)
    share_BL = np.zeros(item_BL.shape, np.float32)
    share_BL[is_row_BL] = LOUDNESS / (count_G[group_N] + FEW)
    return share_BL


def met(item_BL: IntArray, kind_BL: IntArray, at_Q: IntArray, item_Q: IntArray, num_kinds: int) -> Tensor:
    """How the users of requests `at_Q` met these items, (Q, K): the shares of the rows of each kind."""
    share_BL = row_shares(item_BL, kind_BL)
    hit_Q, hit_L = ((item_BL[at_Q] == item_Q[:, None]) & (share_BL[at_Q] > 0)).nonzero()
    hit_B = at_Q[hit_Q]
    met_QK = np.zeros((len(at_Q), num_kinds), np.float32)
    np.add.at(met_QK, (hit_Q, kind_BL[hit_B, hit_L]), share_BL[hit_B, hit_L])
    return torch.as_tensor(met_QK)
