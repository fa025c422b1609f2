"""What an update minimizes: pure functions of log-probabilities and rewards. Knows nothing of decoders, batches or events.

All take flat tensors (Q,), one entry a shown slot, and return one loss an entry. `logged_Q` is the log-probability with
which the acting policy drew the slot; `advantage_Q` is the reward less a baseline. The ratio is π / π as logged.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PolicyLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(log-probability, logged, advantage, reward) → loss. Twice the advantage and the reward are twice the loss."""

CLIP, EARLY = 0.2, 0.1
"""How far a ratio may be from 1 before `clip` stops it, and how much further `ecpo` lets it go."""


def topr(logprob_Q: Tensor, logged_Q: Tensor, advantage_Q: Tensor, reward_Q: Tensor) -> Tensor:
    """Tapered off-policy REINFORCE (Le Roux et al. 2025, arXiv:2503.14286): gains at full weight, losses at A · min(ratio, 1).

    What the policy no longer does needs no further pushing down, so a stale negative fades; a stale positive does not.
    """
    del reward_Q
    ratio_Q = (logprob_Q.detach() - logged_Q).clamp(max=0).exp()
    weight_Q = torch.where(advantage_Q >= 0, advantage_Q, advantage_Q * ratio_Q)
    return -weight_Q * logprob_Q


def reinforce(logprob_Q: Tensor, logged_Q: Tensor, advantage_Q: Tensor, reward_Q: Tensor) -> Tensor:
    """REINFORCE as if the acting policy were the present one (Williams 1992); `logged_Q` plays no part."""
    del logged_Q, reward_Q
    return -advantage_Q * logprob_Q


def clip(logprob_Q: Tensor, logged_Q: Tensor, advantage_Q: Tensor, reward_Q: Tensor) -> Tensor:
    """The clipped ratio of PPO (Schulman et al. 2017, arXiv:1707.06347) on single slots.

    With the slate as the group it is GRPO (Shao et al. 2024, arXiv:2402.03300) without its division by the group's deviation.
    """
    del reward_Q
    ratio_Q = (logprob_Q - logged_Q).exp()
    return -torch.minimum(ratio_Q * advantage_Q, ratio_Q.clamp(1 - CLIP, 1 + CLIP) * advantage_Q)


def ecpo(logprob_Q: Tensor, logged_Q: Tensor, advantage_Q: Tensor, reward_Q: Tensor) -> Tensor:
    """Early-clipped GRPO (OneRec, arXiv:2506.13695): `clip`, but no ratio is above 1 + CLIP + EARLY: a loss's had no bound."""
    bound_Q = logprob_Q.detach() - math.log(1 + CLIP + EARLY)
    return clip(logprob_Q, torch.maximum(logged_Q, bound_Q), advantage_Q, reward_Q)


def gbpo(logprob_Q: Tensor, logged_Q: Tensor, advantage_Q: Tensor, reward_Q: Tensor) -> Tensor:
    """Gradient-bounded policy optimization (OneRec-V2, arXiv:2508.20900): the ratio to max(logged, π) for gains, to
    max(logged, 1 - π) for losses, so that neither pushes harder than cross-entropy on the slot would.
    """
    del reward_Q
    now_Q = logprob_Q.detach()
    not_Q = torch.log1p(-now_Q.exp())
    bound_Q = torch.maximum(logged_Q, torch.where(advantage_Q >= 0, now_Q, not_Q))
    return -(logprob_Q - bound_Q).exp() * advantage_Q


def sft(logprob_Q: Tensor, logged_Q: Tensor, advantage_Q: Tensor, reward_Q: Tensor) -> Tensor:
    """Supervised: the likelihood of what earned a reward, times the reward. What earned nothing teaches nothing."""
    del logged_Q, advantage_Q
    return -reward_Q.clamp(min=0) * logprob_Q


POLICY_LOSSES: dict[str, PolicyLoss] = {"topr": topr, "gbpo": gbpo, "ecpo": ecpo, "clip": clip, "reinforce": reinforce, "sft": sft}


def leave_one_out(reward_BS: Tensor, shown_BS: Tensor) -> Tensor:
    """The mean reward of the other shown slots of a slate (Kool et al. 2019), (B, S); a slot shown alone gets its own reward.

    Its own reward as baseline means an advantage of zero: one slot alone says nothing of which slot is better.
    """
    count_B1 = shown_BS.sum(1, keepdim=True)
    total_B1 = (reward_BS * shown_BS).sum(1, keepdim=True)
    others_BS = (total_B1 - reward_BS) / (count_B1 - 1).clamp(min=1)
    return torch.where(count_B1 > 1, others_BS, reward_BS)


def value_loss(logit_Q: Tensor, reward_Q: Tensor) -> Tensor:
    """Cross-entropy of q against the reward, cut to 0..1."""
    return F.binary_cross_entropy_with_logits(logit_Q, reward_Q.clamp(0, 1), reduction="none")


@dataclass(frozen=True)
class Ratios:
    """What is kept of the ratios of slots: enough for their effective sample size, and it adds up over parts of a batch."""

    number: int
    total: float
    squares: float

    @staticmethod
    def of(logprob_Q: Tensor, logged_Q: Tensor) -> "Ratios":
        """Of these slots; a ratio counts as e^±20 at most."""
        ratio_Q = (logprob_Q.detach() - logged_Q).clamp(-20, 20).double().exp()
        return Ratios(len(ratio_Q), float(ratio_Q.sum()), float(ratio_Q.square().sum()))

    def __add__(self, other: "Ratios") -> "Ratios":
        return Ratios(self.number + other.number, self.total + other.total, self.squares + other.squares)

    @property
    def effective_share(self) -> float:
        """Effective sample size over their number, 0..1 (Kish 1965): how much the batch still says about this policy; nan of nothing."""
        return self.total**2 / (self.squares * self.number) if self.number else math.nan
