"""What was expected of shown slots, and what came. Knows nothing of how either came about.

Shapes: Q shown slots, Z numbers of a user, K row kinds.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.trie import IntArray


@dataclass(frozen=True)
class Surprise:
    """What the value head expected before the step, and what came, 0..1; one entry a shown slot."""

    num_slates: int
    slate_Q: IntArray
    item_Q: Tensor
    standing_QZ: Tensor
    """See `Affinity.standing`."""
    met_QK: Tensor
    """See models/encounters.py."""
    fit_Q: Tensor
    """See `Decoder.fit`."""
    logit_Q: Tensor
    """What was expected, as a logit."""
    earned_Q: Tensor
    weight_Q: Tensor

    def __add__(self, other: "Surprise") -> "Surprise":
        """That of two parts of a batch, one after the other."""
        slate_Q = np.concatenate([self.slate_Q, self.num_slates + other.slate_Q])
        pairs = zip(self._columns(), other._columns(), strict=True)
        return Surprise(self.num_slates + other.num_slates, slate_Q, *(torch.cat(pair) for pair in pairs))

    def chances(self) -> Tensor:
        """What was expected, (Q,), 0..1."""
        return self.logit_Q.sigmoid()

    def first(self, slates: int) -> "Surprise":
        """That of the first `slates` slates."""
        kept_Q = self.slate_Q < slates
        return Surprise(slates, self.slate_Q[kept_Q], *(column[torch.as_tensor(kept_Q)] for column in self._columns()))

    def _columns(self) -> tuple[Tensor, ...]:
        return self.item_Q, self.standing_QZ, self.met_QK, self.fit_Q, self.logit_Q, self.earned_Q, self.weight_Q
