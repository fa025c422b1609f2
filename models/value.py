"""How much a request earns, whatever the item: the part of the value head that reads what the user did, in counts.

Counts say at the first event what attention would have to learn to count. It is the same for all items of a slot, so it moves no
choice, only what is expected. Knows nothing of policies, items or training.

Shapes: B requests, L history, Q any set of (request, slot) pairs, D width, K row kinds.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.trie import IntArray

SHRINK = 2.0
"""Rows of no kind that stand beside those of a user, so that one click is no rate of one."""


def counted(kind_BL: IntArray, num_kinds: int) -> Tensor:
    """How often the context holds each kind of row: as a share, and as log(1 + count), (B, 2 K); blank rows (kind 0) do not count."""
    count_BK = F.one_hot(torch.as_tensor(kind_BL), num_kinds).sum(1).float()
    count_BK[:, 0] = 0
    return torch.cat([count_BK / (count_BK.sum(1, keepdim=True) + SHRINK), count_BK.log1p()], 1)


@dataclass(frozen=True)
class Record:
    """What memories say of shown slots in numbers: what the value head reads beside the state."""

    counts_QK: Tensor
    """See `counted`."""
    standing_QZ: Tensor
    """See `Affinity.standing`."""
    met_QK: Tensor
    """See models/encounters.py."""


class ValueLevel(nn.Module):
    """Hidden units see state and record together: what a count means depends on the request. It begins as 0: an even chance."""

    def __init__(self, width: int, num_kinds: int) -> None:
        super().__init__()
        self.inward = nn.Linear(width + 2 * num_kinds, 2 * width)
        self.outward = nn.Linear(2 * width, 1)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def forward(self, state_QD: Tensor, record_QK: Tensor) -> Tensor:
        """Logits, (Q,)."""
        level_Q: Tensor = self.outward(F.relu(self.inward(torch.cat([state_QD, record_QK], 1))))[:, 0]
        return level_Q
