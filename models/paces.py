"""What clicks say of items and of content, forgotten at several paces at once; what is expected is what those say that were right of late.

No pace fits all: tastes that move want to be forgotten within the hour, and those that stay want every click that there was. Each pace is a
logistic model of its own with a normal prior, learned by Newton steps with its curvature kept and faded (online Laplace, MacKay
1992; the curvature is that of the bound of Jaakkola and Jordan 2000, so that no step goes too far). Their logits are mixed
by how well each expected what came, discounted (prediction with expert advice, Vovk 1990). Knows nothing of users, policies or the tree.

Shapes: R item rows, P paces, Q shown slots, S dimensions of content that are read.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KEEPS = (0.97, 0.99, 0.997, 0.999)
"""What is kept of what is known from one minute learned to the next."""
REMEMBERED = 0.98
"""What counts of how right the paces were, from one minute learned to the next."""


def curvature(logit_Q: Tensor) -> Tensor:
    """tanh(x / 2) / 2x, ¼ at 0: of the parabola that touches the logistic loss at ±x and is nowhere below it."""
    far_Q = logit_Q.abs().clamp(min=1e-4)
    return (far_Q / 2).tanh() / (2 * far_Q)


class Paces(nn.Module):
    """Of each pace what it knows and how sure it is; nothing at first."""

    keep: Tensor
    weight: Tensor
    """What all users like of content, (P, S)."""
    information: Tensor
    """How much is known of that, (P, S, S)."""
    bias: Tensor
    """What is expected of items beside, (R, P)."""
    known: Tensor
    """How much is known of that, (R, P)."""
    right: Tensor
    """The log-likelihood of what came, discounted, (P,)."""

    def __init__(self, rows: int, said: int) -> None:
        super().__init__()
        paces = len(KEEPS)
        self.register_buffer("keep", torch.tensor(KEEPS), persistent=False)
        self.register_buffer("weight", torch.zeros(paces, said))
        self.register_buffer("information", torch.zeros(paces, said, said))
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
    def correct(self, item_Q: Tensor, content_QS: Tensor, rest_Q: Tensor, earned_Q: Tensor, weight_Q: Tensor, spread: float) -> None:
        """One Newton step of each pace: of what content is liked, then of each item's bias.

        `rest_Q` is what is expected beside both, logits; `spread` the standard deviation of the prior, logits. Δ = Σ error / (1 / spread² +
        all information so far): so a new item's first clicks move it far and a known one's little.
        """
        for pace in range(len(KEEPS)):
            logit_Q = rest_Q + content_QS @ self.weight[pace] + self.bias[item_Q, pace]
            self.right[pace] -= F.binary_cross_entropy_with_logits(logit_Q, earned_Q, weight_Q, reduction="sum")
            error_Q, information_Q = weight_Q * (earned_Q - logit_Q.sigmoid()), weight_Q * curvature(logit_Q)
            # what the items' own parts may explain is not all for content to explain
            share_Q = 1 / (1 + information_Q / (spread**-2 + self.known[item_Q, pace]))
            self.information[pace].addmm_((content_QS * (information_Q * share_Q)[:, None]).T, content_QS)
            precision_SS = self.information[pace].double()
            precision_SS.diagonal().add_(spread**-2)
            step_S = torch.linalg.solve(precision_SS, (content_QS.T @ (error_Q * share_Q)).double()).float()
            self.weight[pace] += step_S
            error_Q = error_Q - information_Q * (content_QS @ step_S)
            self.known[:, pace].index_add_(0, item_Q, information_Q)
            step_R = torch.zeros_like(self.bias[:, pace]).index_add_(0, item_Q, error_Q)
            self.bias[:, pace] += step_R / (spread**-2 + self.known[:, pace])
