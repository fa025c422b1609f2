"""What each walk's query makes of the children of its node, with gradient: a product of two matrices for each node that walks stand at.

Knows nothing of trees or models: rows to ask, rows to be asked, and which of them belong to which walk. To gather the children of each
walk into one array costs many times the products themselves, forward and back; here the children of a node are one slice.
Shapes: B requests, Q walks, N nodes of a level, G of them at which walks stand, P places (the children of all nodes, one node after
another), C children, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.trie import CountArray, IntArray, spans

NODES_AT_ONCE = 32
"""Nodes whose queries are made together."""


@dataclass(frozen=True)
class Nodes:
    """Walks by node. Those of node g are `order_Q[walk_G[g] .. walk_G[g + 1]]`; its children, places `place_G[g] .. place_G[g + 1]`."""

    order_Q: IntArray
    walk_G: IntArray
    place_G: IntArray

    @staticmethod
    def of(node_Q: IntArray, starts: CountArray) -> "tuple[Nodes, IntArray]":
        """The nodes at which walks stand, each once; and where their children stand in `starts`' order, (P,)."""
        node_G, of_Q, number_G = np.unique(node_Q, return_inverse=True, return_counts=True)
        first_G = starts[node_G].astype(np.int64)
        size_G = starts[node_G + 1] - first_G
        nodes = Nodes(np.argsort(of_Q, kind="stable"), _ends(number_G), _ends(size_G))
        return nodes, spans(first_G, size_G)

    def slices(self) -> list[tuple[slice, slice]]:
        """Of each node: its walks in order, its children's places."""
        walks, places = ([slice(*pair) for pair in pairwise(ends.tolist())] for ends in (self.walk_G, self.place_G))
        return list(zip(walks, places, strict=True))


def node_products(query_QD: Tensor, child_PD: Tensor, nodes: Nodes) -> Tensor:
    """Query · child for the children of each walk's node, (Q, C); 0 behind the last child."""
    fit_QC: Tensor = _NodeProducts.apply(query_QD, child_PD, nodes)  # type: ignore[no-untyped-call]
    return fit_QC


def level_products(query_of: Callable[[IntArray], Tensor], child_PD: Tensor, starts: CountArray) -> Tensor:
    """The same for all nodes of a level, each asked once a request, (B, P): one product for a few nodes of as many children.

    `query_of` makes the queries of some nodes, (B, N, D), when they are needed: those of a whole level are more than a cache holds.
    """
    parts, place_P, size_N = [], [], np.diff(starts)
    for size in np.unique(size_N):
        alike_N = np.flatnonzero(size_N == size)
        for node_N in np.split(alike_N, range(NODES_AT_ONCE, len(alike_N), NODES_AT_ONCE)):
            place_NC = starts[node_N, None] + np.arange(size)
            fit_BNC = torch.einsum("bnd,ncd->bnc", query_of(node_N), child_PD[torch.as_tensor(place_NC)])
            parts.append(fit_BNC.flatten(1))
            place_P.append(place_NC.ravel())
    return torch.cat(parts, 1)[:, torch.as_tensor(np.argsort(np.concatenate(place_P)))]


class _NodeProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_QD: Tensor, child_PD: Tensor, nodes: Nodes) -> Tensor:
        order_Q = torch.as_tensor(nodes.order_Q)
        sorted_QD = query_QD[order_Q]
        fit_QC = query_QD.new_zeros(len(query_QD), int(np.diff(nodes.place_G).max(initial=0)))
        for walks, places in nodes.slices():
            torch.mm(sorted_QD[walks], child_PD[places].T, out=fit_QC[walks, : places.stop - places.start])
        ctx.nodes = nodes
        ctx.save_for_backward(sorted_QD, child_PD, order_Q)
        return torch.empty_like(fit_QC).index_copy_(0, order_Q, fit_QC)

    @staticmethod
    def backward(ctx: Any, grad_QC: Tensor) -> tuple[Tensor, Tensor | None, None]:
        sorted_QD, child_PD, order_Q = ctx.saved_tensors
        sorted_QC = grad_QC[order_Q]
        query_QD, grad_PD = torch.empty_like(sorted_QD), torch.empty_like(child_PD) if ctx.needs_input_grad[1] else None
        for walks, places in ctx.nodes.slices():
            fit_QC = sorted_QC[walks, : places.stop - places.start]
            torch.mm(fit_QC, child_PD[places], out=query_QD[walks])
            if grad_PD is not None:
                torch.mm(fit_QC.T, sorted_QD[walks], out=grad_PD[places])
        return torch.empty_like(query_QD).index_copy_(0, order_Q, query_QD), grad_PD, None


def _ends(size_G: IntArray) -> IntArray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(size_G, dtype=np.int64)])
