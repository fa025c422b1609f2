"""One training step's loss: a batch of shown slates, each with the context its policy saw, through decoder and losses.

Knows nothing of where the batch came from. Own slates teach the policy (rewards of its own choices); imported ones teach
the likelihood of what was taken and never enter the policy term; both teach the value head.
Shapes: B slates, S slots, Q shown slots, A of them of which a term asks what the policy says.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.content import FloatArray
from models.decoder import Context
from models.losses import POLICY_LOSSES, Ratios, leave_one_out, value_loss
from models.scoring import Scored
from models.surprise import Surprise
from models.trie import BoolArray, IntArray, Legal
from models.value import Record
from models.walk import Asked, Rule


@dataclass(frozen=True)
class Batch:
    """Slates of one update. A slot without a known item has row 0 and is not shown."""

    context: Context
    slate_BS: IntArray
    shown_BS: BoolArray
    reward_BS: FloatArray
    logged_BS: FloatArray
    """Log-probabilities as drawn, nats; 0 where the choice was not ours."""
    own_B: BoolArray
    beam_B: BoolArray
    """Drawn as a beam, all slots at once, and not one slot after another; always own."""
    weight_B: FloatArray
    legal: Legal
    """What each request ruled out, one walk a slate."""
    rule: Rule


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Weights of the terms."""

    policy: str = "topr"
    """The rule of the policy term: one of models.losses.POLICY_LOSSES."""
    policy_weight: float = 0.0
    """With 0 rewards reach the choice by what they make expected alone: π ∝ prior · exp(q / β) is what maximizes E[q] − β KL(π ‖ prior)
    (Peters et al. 2010; Abdolmaleki et al. 2018), which a gradient of sampled choices only approaches, with noise (models/EXPERIMENTS.md).
    """
    value_weight: float = 0.5
    likelihood_weight: float = 1.0
    value_blend: float = 0.5
    """Share of the value head in the baseline; the rest is the mean of the other shown slots."""

    def __post_init__(self) -> None:
        if self.policy not in POLICY_LOSSES:
            raise ValueError(f"objective.policy is {self.policy!r}; it must be one of {', '.join(POLICY_LOSSES)}")
        for name in ("policy_weight", "value_weight", "likelihood_weight"):
            if not 0 <= getattr(self, name) <= 1000:
                raise ValueError(f"objective.{name} is {getattr(self, name)}; it must be 0..1000")
        if not 0 <= self.value_blend <= 1:
            raise ValueError(f"objective.value_blend is {self.value_blend}; it must be 0..1")


@dataclass(frozen=True)
class Slots:
    """How many shown slots teach what, at least 1 each: the value head, the policy, the likelihood."""

    value: int
    policy: int
    likelihood: int

    @staticmethod
    def of(batches: Sequence[Batch]) -> "Slots":
        """Of all these together."""
        own = sum(int(batch.shown_BS[batch.own_B].sum()) for batch in batches)
        taken = sum(int((batch.shown_BS & (batch.reward_BS > 0))[~batch.own_B].sum()) for batch in batches)
        return Slots(*(max(1, number) for number in (sum(int(batch.shown_BS.sum()) for batch in batches), own, taken)))


@dataclass(frozen=True)
class Terms:
    """The loss and what it is made of, means over shown slots; those of parts of a batch add up to those of the whole."""

    loss: Tensor
    policy: float
    value: float
    likelihood: float
    ratios: Ratios
    surprise: Surprise

    def __add__(self, other: "Terms") -> "Terms":
        return Terms(
            self.loss + other.loss,
            self.policy + other.policy,
            self.value + other.value,
            self.likelihood + other.likelihood,
            self.ratios + other.ratios,
            self.surprise + other.surprise,
        )

    @property
    def effective_share(self) -> float:
        """See `Ratios`; nan where no own slot was shown."""
        return self.ratios.effective_share


def objective(scored: Scored, batch: Batch, config: ObjectiveConfig, slots: Slots | None = None) -> Terms:
    """The loss of a batch, with gradient. Sums are divided by the number of shown slots of their kind: those of this batch, or `slots`
    where it is a part of a larger one.
    """
    slots = slots or Slots.of([batch])
    state_BSD = scored.decoder.states(scored.vectors, batch.context, torch.as_tensor(batch.slate_BS))
    at_B, at_S = batch.shown_BS.nonzero()
    item_Q, state_QD = batch.slate_BS[at_B, at_S], state_BSD[torch.as_tensor(at_B), torch.as_tensor(at_S)]
    reward_Q, weight_Q = torch.as_tensor(batch.reward_BS[at_B, at_S]), torch.as_tensor(batch.weight_B[at_B])

    record = scored.record(batch.context, at_B, item_Q)
    fit_Q = scored.decoder.fit(state_QD, scored.vectors.leaves(torch.as_tensor(item_Q)))
    value_Q, *code_values = shown_values(scored, fit_Q, state_QD, record, item_Q)
    # of the items, then of the codes that they lie under
    value, *under = [(weight_Q * value_loss(logit_Q, reward_Q)).sum() / slots.value for logit_Q in (value_Q, *code_values)]
    loss = config.value_weight * (value + sum(under))
    with torch.no_grad():  # what gradients make of a state is learned as if all of it were believed, and believed as far as it proved right
        believed_Q = value_Q + (scored.decoder.value_trust - 1) * fit_Q
    columns = fit_Q.detach(), believed_Q, reward_Q.clamp(0, 1), weight_Q
    surprise = Surprise(len(batch.own_B), at_B, torch.as_tensor(item_Q), record.standing_QZ, record.met_QK, *columns)
    asked_BS = asked_slots(batch, config)
    if not asked_BS.any():
        return Terms(loss, 0.0, float(value.detach()), 0.0, Ratios(0, 0.0, 0.0), surprise)
    asked_Q, own_A = (torch.as_tensor(mask_BS[of_BS]) for mask_BS, of_BS in ((asked_BS, batch.shown_BS), (_own(batch), asked_BS)))
    logprob_A, reward_A, weight_A = shown_logprobs(scored, batch, state_BSD, asked_BS), reward_Q[asked_Q], weight_Q[asked_Q]
    logged_A = torch.as_tensor(batch.logged_BS[asked_BS])
    others_BS = leave_one_out(torch.as_tensor(batch.reward_BS), torch.as_tensor(batch.shown_BS).float())
    baseline_A = (1 - config.value_blend) * others_BS[torch.as_tensor(asked_BS)] + config.value_blend * surprise.chances()[asked_Q]
    advantage_A = reward_A - baseline_A
    loss_A = POLICY_LOSSES[config.policy](logprob_A[own_A], logged_A[own_A], advantage_A[own_A], reward_A[own_A])
    policy = (weight_A[own_A] * loss_A).sum() / slots.policy
    likelihood = -(weight_A * logprob_A)[~own_A].sum() / slots.likelihood
    loss = loss + config.policy_weight * policy + config.likelihood_weight * likelihood
    ratios = Ratios.of(logprob_A[own_A], logged_A[own_A])
    return Terms(loss, float(policy.detach()), float(value.detach()), float(likelihood.detach()), ratios, surprise)


def _own(batch: Batch) -> BoolArray:
    return batch.shown_BS & batch.own_B[:, None]


def asked_slots(batch: Batch, config: ObjectiveConfig) -> BoolArray:
    """The shown slots of which a term asks what the policy says: our own, and of the others what was taken, (B, S)."""
    taken_BS = batch.shown_BS & ~batch.own_B[:, None] & (batch.reward_BS > 0)
    return _own(batch) & bool(config.policy_weight) | taken_BS & bool(config.likelihood_weight)


def shown_values(scored: Scored, fit_Q: Tensor, state_QD: Tensor, record: Record, item_Q: IntArray) -> list[Tensor]:
    """What shown slots are expected to earn, as logits with gradient: (Q,) of the items, then of the codes of each inner level.

    `fit_Q`: see `Decoder.fit`; `record` is what the memory behind each of them says in numbers.
    """
    decoder, above = scored.decoder, enumerate(scored.above(item_Q))
    return [
        decoder.value_logits(fit_Q, state_QD, record, torch.as_tensor(item_Q)),
        *(decoder.code_value_logits(vector_QD, state_QD, record, code_Q, level) for level, (code_Q, vector_QD) in above),
    ]


def shown_logprobs(scored: Scored, batch: Batch, state_BSD: Tensor, asked_BS: BoolArray) -> Tensor:
    """Log π of some of the shown slots, in order, (A,), with gradient: each by the way in which its slate was drawn."""
    at_B, at_S = asked_BS.nonzero()
    asked = Asked.of(batch.legal, batch.rule, scored.remembered(batch.context))
    is_beam_B = batch.beam_B & asked_BS.any(1)
    beams = np.flatnonzero(is_beam_B)
    slot_A = ~batch.beam_B[at_B]
    slot_B, slot_S = at_B[slot_A], at_S[slot_A]
    # in our own slates the items of the slots before are not legal again
    before_QS = (np.arange(batch.slate_BS.shape[1]) < slot_S[:, None]) & batch.own_B[slot_B][:, None]
    leaf_QS = np.where(before_QS, scored.trie.leaf_of_item[batch.slate_BS[slot_B]], -1)
    state_QD = state_BSD[torch.as_tensor(slot_B), torch.as_tensor(slot_S)]
    slot = scored.logprobs(state_QD, asked.at(slot_B).without(leaf_QS), batch.slate_BS[slot_B, slot_S])
    beam_BS = scored.beam_logprobs(state_BSD[torch.as_tensor(beams), 0], asked.at(beams), batch.slate_BS[beams])
    row_B = np.cumsum(is_beam_B) - 1
    beam = beam_BS[torch.as_tensor(row_B[at_B[~slot_A]]), torch.as_tensor(at_S[~slot_A])]
    return torch.cat([slot, beam])[torch.as_tensor(np.argsort(np.argsort(~slot_A, kind="stable")))]
