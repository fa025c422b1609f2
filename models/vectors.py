"""What all requests share under one set of weights: the vectors of items and codes. Knows nothing of requests.

Shapes: N item rows, A any shape, D width, V codes of an inner level.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Vectors:
    """What all requests share under one set of weights: computed once per training step, of the item rows that it speaks of."""

    row_N: Tensor
    """Ascending, each once."""
    item_ND: Tensor
    """As input: what a row of memory or a chosen slot says."""
    leaf_ND: Tensor
    """As output: unit vectors."""
    code_VD: list[Tensor]
    """As output, by inner level: unit vectors."""

    def cut(self) -> "Vectors":
        """The same numbers, where gradients gather: so that parts of a batch, one after the other, go back through them only once."""
        item_ND, leaf_ND, *code_VD = (tensor.detach().requires_grad_() for tensor in self._all())
        return Vectors(self.row_N, item_ND, leaf_ND, code_VD)

    def take_gradient(self, cut: "Vectors") -> None:
        """Hand back what has gathered at `cut`."""
        reached = [(tensor, end.grad) for tensor, end in zip(self._all(), cut._all(), strict=True) if end.grad is not None]
        torch.autograd.backward([tensor for tensor, _ in reached], [grad for _, grad in reached])

    def _all(self) -> list[Tensor]:
        return [self.item_ND, self.leaf_ND, *self.code_VD]

    def items(self, row_A: Tensor) -> Tensor:
        """What rows say as input, (..., D). They must be among `row_N`."""
        return F.embedding(torch.searchsorted(self.row_N, row_A.contiguous()), self.item_ND)

    def leaves(self, row_A: Tensor) -> Tensor:
        """As output, (..., D)."""
        return F.embedding(torch.searchsorted(self.row_N, row_A.contiguous()), self.leaf_ND)
