"""What all requests share under one set of weights: the vectors of items. Knows nothing of requests.

Shapes: N item rows, A any shape, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.trie import IntArray

PART_ROWS = 2048
"""Rows that are looked at together, while they are in the cache."""
SHORTEST = 1e-12
"""What a vector is divided by, at least."""


@dataclass(frozen=True)
class Vectors:
    """What all requests share under one set of weights: computed once per training step, of the item rows that it speaks of."""

    row_N: Tensor
    """Ascending, each once."""
    item_ND: Tensor
    """As input: what a row of memory or a chosen slot says."""
    leaf_ND: Tensor
    """As output: unit vectors."""

    def cut(self) -> "Vectors":
        """The same numbers, where gradients gather: so that parts of a batch, one after the other, go back through them only once."""
        return Vectors(self.row_N, *(tensor.detach().requires_grad_() for tensor in self._both()))

    def take_gradient(self, cut: "Vectors") -> None:
        """Hand back what has gathered at `cut`."""
        reached = [(tensor, end.grad) for tensor, end in zip(self._both(), cut._both(), strict=True) if end.grad is not None]
        torch.autograd.backward([tensor for tensor, _ in reached], [grad for _, grad in reached])

    def _both(self) -> list[Tensor]:
        return [self.item_ND, self.leaf_ND]

    def items(self, row_A: Tensor) -> Tensor:
        """What rows say as input, (..., D). They must be among `row_N`."""
        return F.embedding(torch.searchsorted(self.row_N, row_A.contiguous()), self.item_ND)

    def leaves(self, row_A: Tensor | slice) -> Tensor:
        """As output, (..., D); those of a slice are not copied."""
        if isinstance(row_A, slice):
            first = int(torch.searchsorted(self.row_N, row_A.start))
            return self.leaf_ND[first : first + row_A.stop - row_A.start]
        return F.embedding(torch.searchsorted(self.row_N, row_A.contiguous()), self.leaf_ND)


def run_of(row_A: IntArray) -> Tensor | slice:
    """Rows to index by: as a slice, which copies nothing, where each follows the one before."""
    is_run = len(row_A) > 0 and bool((np.diff(row_A) == 1).all())
    return slice(int(row_A[0]), int(row_A[-1]) + 1) if is_run else torch.as_tensor(row_A)


def item_vectors(learned_ND: Tensor, weight_DC: Tensor, content_NC: Tensor) -> tuple[Tensor, Tensor]:
    """What items say as input, learned + weight · content, and as output, the same at length 1, (N, D) each, with gradient.

    As separate operations, each would read and write the vectors of the whole catalogue, and memory is slower than all their sums.
    """
    apply: Callable[..., tuple[Tensor, Tensor]] = _ItemVectors.apply
    return apply(learned_ND, weight_DC, content_NC)


class _ItemVectors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, learned_ND: Tensor, weight_DC: Tensor, content_NC: Tensor) -> tuple[Tensor, Tensor]:
        item_ND, leaf_ND, length_N1 = torch.empty_like(learned_ND), torch.empty_like(learned_ND), learned_ND.new_empty(len(learned_ND), 1)
        for now in _parts(len(learned_ND)):
            torch.addmm(learned_ND[now], content_NC[now], weight_DC.T, out=item_ND[now])
            length_N1[now] = torch.linalg.vector_norm(item_ND[now], dim=1, keepdim=True).clamp_min_(SHORTEST)
            torch.div(item_ND[now], length_N1[now], out=leaf_ND[now])
        ctx.save_for_backward(leaf_ND, length_N1, content_NC)
        return item_ND, leaf_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """Of a vector at length 1 only what is across it counts, divided by its length."""
        (to_item_ND, to_leaf_ND), (leaf_ND, length_N1, content_NC) = grads, ctx.saved_tensors
        grad_ND = torch.empty_like(leaf_ND)
        for now in _parts(len(leaf_ND)):
            along_P1 = (to_leaf_ND[now] * leaf_ND[now]).sum(1, keepdim=True)
            torch.addcmul(to_leaf_ND[now], leaf_ND[now], along_P1, value=-1, out=grad_ND[now])
            grad_ND[now].div_(length_N1[now]).add_(to_item_ND[now])
        return grad_ND, grad_ND.T @ content_NC, None


def _parts(rows: int) -> list[slice]:
    return [slice(first, min(first + PART_ROWS, rows)) for first in range(0, rows, PART_ROWS)]
