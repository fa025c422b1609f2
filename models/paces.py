"""What clicks say of items and of how users and content meet, forgotten at several paces at once; those right of late are believed.

No pace fits all: tastes that move want to be forgotten within the hour, and those that stay want every click that there was. Each pace is
a logistic regression of its own with a normal prior, learned by Newton steps with its curvature kept and faded (online Laplace,
MacKay 1992). Their logits are mixed by how well each expected what came, discounted (prediction with expert advice, Vovk 1990).
Knows nothing of users, policies or the tree.

Shapes: R item rows, P paces, Q shown slots, F features of a shown slot.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg.lapack import dposv
from torch import Tensor, nn

KEEPS = (0.97, 0.99, 0.997, 0.9997)
"""What is kept of what is known from one minute learned to the next."""
REMEMBERED = 0.98
"""What counts of how right the paces were, from one minute learned to the next."""
CALM = 0.5
"""The spread of the prior of the features' weights, where that of items is 1: with 1 they fit noise (models/EXPERIMENTS.md)."""


class Paces(nn.Module):
    """Of each pace what it knows and how sure it is; at first, that the weights of the features are `prior_F`."""

    keep: Tensor
    weight: Tensor
    """Of the features, (P, F)."""
    information: Tensor
    """How much is known of them: Σ p (1 - p) x xᵀ over what was shown, faded, (P, F, F)."""
    bias: Tensor
    """What is expected of items beside, logits, (R, P)."""
    known: Tensor
    """How much is known of that: Σ p (1 - p), faded, (R, P)."""
    right: Tensor
    """The log-likelihood of what came, discounted, (P,)."""

    def __init__(self, rows: int, prior_F: Tensor) -> None:
        super().__init__()
        paces, features = len(KEEPS), len(prior_F)
        self.register_buffer("keep", torch.tensor(KEEPS), persistent=False)
        self.register_buffer("weight", prior_F.repeat(paces, 1))
        self.register_buffer("information", torch.zeros(paces, features, features))
        self.register_buffer("bias", torch.zeros(rows, paces))
        self.register_buffer("known", torch.zeros(rows, paces))
        self.register_buffer("right", torch.zeros(paces))

    def grow(self, rows: int) -> None:
        """Make room for so many item rows."""
        more = rows - len(self.bias)
        self.bias, self.known = (F.pad(table_RP, (0, 0, 0, more)) for table_RP in (self.bias, self.known))

    def evict(self, rows_N: Tensor) -> None:
        """Forget what is known of these items."""
        self.bias[rows_N] = 0
        self.known[rows_N] = 0

    def fade(self) -> None:
        """Be less sure of everything, each pace at its own rate; what was found stays."""
        self.information *= self.keep[:, None, None]
        self.known *= self.keep
        self.right *= REMEMBERED

    def shares(self) -> Tensor:
        """What each pace counts for, (P,)."""
        return self.right.softmax(0)

    @torch.no_grad()
    def correct(self, item_Q: Tensor, x_QF: Tensor, rest_Q: Tensor, earned_Q: Tensor, weight_Q: Tensor, spread: float) -> None:
        """One Newton step of each pace: of the features' weights, then of each item's bias.

        `rest_Q` is what is expected beside both, logits; `spread` the standard deviation of the prior of items, logits. Δ = Σ error /
        (1 / spread² + all information so far): so a new item's first clicks move it far and a known one's little. The curvature is that
        of the mixture, the same for all paces: it is the costly part.
        """
        share_P = self.shares()
        logit_QP = rest_Q[:, None] + x_QF @ self.weight.T + self.bias[item_Q]
        chance_Q = (logit_QP @ share_P).sigmoid()
        information_Q = weight_Q * chance_Q * (1 - chance_Q)
        loss_QP = F.binary_cross_entropy_with_logits(logit_QP, earned_Q[:, None].expand_as(logit_QP), reduction="none")
        self.right -= weight_Q @ loss_QP
        error_QP = weight_Q[:, None] * (earned_Q[:, None] - logit_QP.sigmoid())
        # what the items' own parts may explain is not all for the features to explain
        doubt_Q = 1 / (spread**-2 + self.known[item_Q] @ share_P)
        explained_Q = 1 / (1 + information_Q * doubt_Q)
        self.information += (x_QF * (information_Q * explained_Q)[:, None]).T @ x_QF
        precision_PFF = self.information.double()
        precision_PFF.diagonal(dim1=1, dim2=2).add_((CALM * spread) ** -2)
        slope_PF = (error_QP * explained_Q[:, None]).T @ x_QF
        step_PF = solved(precision_PFF, slope_PF.double()).float()
        self.weight += step_PF
        error_QP = error_QP - information_Q[:, None] * (x_QF @ step_PF.T)
        self.known.index_add_(0, item_Q, information_Q[:, None].expand_as(error_QP))
        step_RP = torch.zeros_like(self.bias).index_add_(0, item_Q, error_QP)
        self.bias += step_RP / (spread**-2 + self.known)


def solved(matrix_PFF: Tensor, right_PF: Tensor) -> Tensor:
    """Solve `matrix` · x = `right` for each pace, x as (P, F), the matrices symmetric: by Cholesky, in half the time that LU takes.

    LU is for one that rounding left with an eigenvalue below zero: that step is still sensible, and no reason to stop. By scipy, for
    torch's own takes half as long again: it clears what LAPACK leaves in the other half of each factor.
    """
    found = []
    for matrix_FF, right_F in zip(matrix_PFF.cpu().numpy(), right_PF.cpu().numpy(), strict=True):
        _, x_F, failed = dposv(matrix_FF.T, right_F)  # the same matrix, in the order that LAPACK wants
        found.append(np.linalg.solve(matrix_FF, right_F) if failed else x_F)
    return torch.as_tensor(np.stack(found))
