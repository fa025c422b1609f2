"""Log-probabilities of one target each among rows that all queries are asked about, with gradient: all logits are held once.

Knows nothing of trees, items or users: queries, rows, and what is added to all logits of a group of queries. Held as separate
operations, reading and writing so many logits costs several times what the matrix products do. Here a few queries at a time go
through product and softmax while their logits are in the cache; what is kept is their chances, and the gradient needs two more
products of those (the scheme of fused linear cross-entropy: Hsu et al. 2024, arXiv:2410.10989; with a weight of its own for each
query, which is not known before the loss is). Shapes: Q queries, G groups of them, N rows, D width, M closed pairs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.trie import IntArray

PART_LOGITS, FEWEST, MOST = 1 << 19, 32, 256
"""Logits that are in the cache at a time, and bounds of how many queries they are of."""


@dataclass(frozen=True)
class Targets:
    """What is asked of each query."""

    group_Q: IntArray
    """Ascending: a group's queries stand together."""
    row_Q: IntArray
    """The target."""
    query_M: IntArray
    """Ascending."""
    row_M: IntArray
    """A row that this query may not have, beside those that its group may not."""

    def parts(self, num_rows: int) -> Iterator[tuple[slice, slice, slice]]:
        """A few queries at a time: they, their groups, and what is closed to them."""
        size, end = part_size(num_rows), len(self.row_Q)
        for first in range(0, end, size):
            now = slice(first, min(first + size, end))
            closed = slice(*self.query_M.searchsorted([now.start, now.stop]).tolist())
            yield now, slice(int(self.group_Q[now.start]), int(self.group_Q[now.stop - 1]) + 1), closed


def part_size(num_rows: int) -> int:
    """How many queries are looked at together."""
    return min(max(PART_LOGITS // max(num_rows, 1), FEWEST), MOST)


def target_logprobs(query_QD: Tensor, row_ND: Tensor, base_GN: Tensor, targets: Targets) -> Tensor:
    """The target's log-probability by softmax(query · rows + base of its group), (Q,); -inf in `base_GN` closes a row to a group.

    Each query needs a row that is open to it.
    """
    apply: Callable[..., Tensor] = _TargetLogprobs.apply
    return apply(query_QD.float(), row_ND.float(), base_GN.float(), targets)


class _TargetLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_QD: Tensor, row_ND: Tensor, base_GN: Tensor, targets: Targets) -> Tensor:
        logprob_Q, chance_QN = query_QD.new_empty(len(query_QD)), query_QD.new_empty(len(query_QD), len(row_ND))
        held_PN = query_QD.new_empty(min(part_size(len(row_ND)), len(query_QD)), len(row_ND))
        group_Q, row_Q, query_M, row_M = map(torch.as_tensor, vars(targets).values())
        for now, _, closed in targets.parts(len(row_ND)):
            logits_PN, chance_PN = held_PN[: now.stop - now.start], chance_QN[now]
            torch.index_select(base_GN, 0, group_Q[now], out=logits_PN)
            logits_PN.addmm_(query_QD[now], row_ND.T)
            logits_PN[query_M[closed] - now.start, row_M[closed]] = -torch.inf
            torch.softmax(logits_PN, 1, out=chance_PN)
            # the likeliest row's chance is 1 / Σ exp(logit - its logit), and never too small for a number
            target_P = logits_PN.gather(1, row_Q[now, None])[:, 0]
            logprob_Q[now] = target_P - logits_PN.amax(1) + chance_PN.amax(1).log()
        ctx.targets, ctx.num_groups = targets, len(base_GN)
        ctx.save_for_backward(query_QD, row_ND, chance_QN, group_Q, row_Q)
        return logprob_Q

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """For every row, d log p(target) / d logit is 1 at the target, less the row's chance."""
        query_QD, row_ND, chance_QN, group_Q, row_Q = ctx.saved_tensors
        weight_Q = grads[0]
        weighted_QD = weight_Q[:, None] * query_QD
        query_grad_QD = weight_Q[:, None] * row_ND[row_Q]
        row_grad_ND = torch.zeros_like(row_ND).index_add_(0, row_Q, weighted_QD)
        base_grad_GN = row_ND.new_zeros(ctx.num_groups, len(row_ND))
        base_grad_GN.index_put_((group_Q, row_Q), weight_Q, accumulate=True)
        number_G = torch.arange(ctx.num_groups, device=row_ND.device)[:, None]
        for now, groups, _ in ctx.targets.parts(len(row_ND)):
            chance_PN = chance_QN[now]
            query_grad_QD[now] -= weight_Q[now, None] * (chance_PN @ row_ND)
            row_grad_ND.addmm_(chance_PN.T, weighted_QD[now], alpha=-1)
            base_grad_GN[groups].addmm_((group_Q[now] == number_G[groups]) * weight_Q[now], chance_PN, alpha=-1)
        return query_grad_QD, row_grad_ND, base_grad_GN, None
