"""How an item's content suits what a user took and what he left: the part of what is expected that all clicks teach at once.

A bilinear form between a few numbers of the user's memory and the leading dimensions of the item's content, whose weights are
found by models/paces.py. A change of fashion or of a group's taste shows in it within minutes, for items that were never shown too.
Knows nothing of policies, of the tree, of who asks or of how it is learned.

Shapes: B requests, L history, Q shown slots, Z numbers of a user, S dimensions of content that are read.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.content import FloatArray
from models.encounters import own_items
from models.successors import ACT
from models.trie import IntArray

TOLD, SAID = 8, 16
"""Dimensions of content, the leading ones, in which a user's items are averaged, and in which an item is asked."""
LOUDNESS = 5.0
"""A mean of unit vectors is short; the prior holds for numbers of about 1."""
FEW = 5.0
"""Rows that say nothing, which stand beside those of a user: a mean of one row says less than one of twenty."""


def row_weights(item_BL: IntArray, kind_BL: IntArray, against: Sequence[int]) -> FloatArray:
    """What each row of a memory counts for in the mean of what was taken, and of what was shown or disliked and not taken, (B, 2, L).

    `against` are the row kinds that speak against an item: whoever clicked and then disliked did not take it.
    """
    is_row_BL = (kind_BL > 0) & (item_BL > 0)
    key_BL = own_items(item_BL)
    took_BL, against_BL = is_row_BL & (kind_BL >= ACT), np.logical_or.reduce([is_row_BL & (kind_BL == kind) for kind in against])
    if np.any(against_BL):
        took_BL &= ~np.isin(key_BL, key_BL[against_BL])
    left_BL = is_row_BL & ~np.isin(key_BL, key_BL[took_BL])
    rows_B2L = np.stack([took_BL, left_BL], 1)
    weight_B2L: FloatArray = rows_B2L * np.float32(LOUDNESS) / (rows_B2L.sum(2, keepdims=True) + FEW).astype(np.float32)
    return weight_B2L


class Affinity(nn.Module):
    """The form's weights, 0 at first. `against`: see `row_weights`."""

    def __init__(self, content_dim: int, against: Sequence[int] = ()) -> None:
        super().__init__()
        self.against = tuple(against)
        self.told, self.said = min(TOLD, content_dim), min(SAID, content_dim)
        self.weight = nn.Parameter(torch.zeros(1 + 2 * self.told, self.said), requires_grad=False)

    def standing(self, item_BL: IntArray, kind_BL: IntArray, content_BLC: Tensor) -> Tensor:
        """A user's numbers, (B, Z): 1, and the mean contents of what he took and of what he left."""
        mean_B2T = torch.as_tensor(row_weights(item_BL, kind_BL, self.against)) @ content_BLC[..., : self.told]
        return F.pad(mean_B2T.flatten(1), (1, 0), value=1.0)

    def suited(self, item_BL: IntArray, kind_BL: IntArray, content_BLC: Tensor) -> Tensor:
        """The leading content that a user's numbers ask for, (B, S); what an item gets is its inner product with it."""
        return self.standing(item_BL, kind_BL, content_BLC) @ self.weight

    def forward(self, standing_QZ: Tensor, content_QC: Tensor) -> Tensor:
        """What is expected of contents beside all else, logits, (Q,)."""
        suits_Q: Tensor = (standing_QZ @ self.weight * content_QC[:, : self.said]).sum(-1)
        return suits_Q

    def pairs(self, standing_QZ: Tensor, content_QC: Tensor) -> Tensor:
        """All products of a user's and an item's numbers, (Q, Z S): what the weights, as one row, weigh."""
        return (standing_QZ[:, :, None] * content_QC[:, None, : self.said]).flatten(1)
