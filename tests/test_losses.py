"""What an update minimizes, against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.losses import CLIP, EARLY, POLICY_LOSSES, Ratios, clip, ecpo, gbpo, leave_one_out, reinforce, sft, topr, value_loss

LOG2 = math.log(2)
NO_REWARD = torch.zeros(4, dtype=torch.float64)
CHANCES = st.lists(st.floats(1e-6, 1 - 1e-6), min_size=4, max_size=4)
SIGNED = st.lists(st.floats(-1, 1), min_size=4, max_size=4)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def gradient(loss_Q: Tensor, logprob_Q: Tensor) -> list[float]:
    (found,) = torch.autograd.grad(loss_Q.sum(), logprob_Q)
    return found.tolist()


def test_topr_by_hand() -> None:
    """π = 1/4, 1/8, 1/2, 1/2 where 1/2, 1/4, 1/4, 1/2 was logged: ratios 1/2, 1/2, 2 (cut to 1), 1."""
    logprob_Q = numbers(-2 * LOG2, -3 * LOG2, -LOG2, -LOG2)
    logged_Q = numbers(-LOG2, -2 * LOG2, -2 * LOG2, -LOG2).detach()
    advantage_Q = torch.tensor([0.8, -0.4, -0.4, 0.0], dtype=torch.float64)
    loss_Q = topr(logprob_Q, logged_Q, advantage_Q, NO_REWARD)
    assert loss_Q.tolist() == pytest.approx([0.8 * 2 * LOG2, -0.2 * 3 * LOG2, -0.4 * LOG2, 0.0])
    # the ratio is a weight and has no gradient of its own
    assert gradient(loss_Q, logprob_Q) == pytest.approx([-0.8, 0.2, 0.4, 0.0])


def test_reinforce_by_hand() -> None:
    logprob_Q = numbers(-1.0, -2.0)
    loss_Q = reinforce(logprob_Q, numbers(-9.0, 9.0), torch.tensor([0.5, -0.25]), NO_REWARD)
    assert loss_Q.tolist() == pytest.approx([0.5, -0.5])
    assert gradient(loss_Q, logprob_Q) == pytest.approx([-0.5, 0.25])


def test_clip_by_hand() -> None:
    """Ratios 2, 2, 1/2, 1/2 against 0.8..1.2: no gradient where the ratio is already past the limit in the wanted direction."""
    logprob_Q = numbers(*[LOG2, LOG2, -LOG2, -LOG2])
    advantage_Q = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    loss_Q = clip(logprob_Q, torch.zeros(4, dtype=torch.float64), advantage_Q, NO_REWARD)
    assert loss_Q.tolist() == pytest.approx([-1.2, 2.0, -0.5, 0.8])
    assert gradient(loss_Q, logprob_Q) == pytest.approx([0.0, 2.0, -0.5, 0.0])


def test_ecpo_by_hand() -> None:
    """The same ratios: as `clip`, but that of the loss which was 2 is 1.3."""
    logprob_Q = numbers(*[LOG2, LOG2, -LOG2, -LOG2])
    advantage_Q = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    loss_Q = ecpo(logprob_Q, torch.zeros(4, dtype=torch.float64), advantage_Q, NO_REWARD)
    assert loss_Q.tolist() == pytest.approx([-1.2, 1.3, -0.5, 0.8])
    assert gradient(loss_Q, logprob_Q) == pytest.approx([0.0, 1.3, -0.5, 0.0])


def test_gbpo_by_hand() -> None:
    """π = 1/2 where 1/4 was logged, 1/4 where 1/2 was, each as gain and as loss: bounded by π, by logged, by 1 - π twice."""
    logprob_Q = numbers(-LOG2, -2 * LOG2, -LOG2, -2 * LOG2)
    logged_Q = numbers(-2 * LOG2, -LOG2, -2 * LOG2, -LOG2).detach()
    loss_Q = gbpo(logprob_Q, logged_Q, torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64), NO_REWARD)
    assert loss_Q.tolist() == pytest.approx([-1, -0.5, 1, 1 / 3])
    assert gradient(loss_Q, logprob_Q) == pytest.approx([-1, -0.5, 1, 1 / 3])


def test_sft_learns_what_was_rewarded_whatever_the_baseline() -> None:
    logprob_Q = numbers(-1.0, -2.0, -3.0, -4.0)
    loss_Q = sft(logprob_Q, NO_REWARD, NO_REWARD - 1, torch.tensor([1.0, 0.0, 2.0, -1.0]))
    assert loss_Q.tolist() == pytest.approx([1, 0, 6, 0])
    assert gradient(loss_Q, logprob_Q) == pytest.approx([-1, 0, -2, 0])


@settings(max_examples=60, deadline=None)
@given(CHANCES, SIGNED)
def test_on_policy_the_ratio_rules_have_the_gradient_of_reinforce(chance: list[float], advantage: list[float]) -> None:
    """And with the reward for an advantage `sft` does; `gbpo` for gains alone: it holds back losses on purpose."""
    advantage_Q, logprob_Q = torch.tensor(advantage, dtype=torch.float64), numbers(*np.log(chance))
    logged_Q, expected = logprob_Q.detach(), [-value for value in advantage]
    for name in ("topr", "ecpo", "clip", "reinforce"):
        assert gradient(POLICY_LOSSES[name](logprob_Q, logged_Q, advantage_Q, NO_REWARD), logprob_Q) == pytest.approx(expected)
    gains_Q = advantage_Q.abs()
    for name in ("sft", "gbpo"):
        assert gradient(POLICY_LOSSES[name](logprob_Q, logged_Q, gains_Q, gains_Q), logprob_Q) == pytest.approx((-gains_Q).tolist())


@settings(max_examples=60, deadline=None)
@given(CHANCES, CHANCES, SIGNED)
def test_what_pushes_a_slot_is_bounded(chance: list[float], logged: list[float], advantage: list[float]) -> None:
    """However far the acting policy was: a gain by A (`clip`, `ecpo`: 1.2 A), a loss by A, 1.3 A or A π / (1 - π)."""
    advantage_Q, logprob_Q = torch.tensor(advantage, dtype=torch.float64), numbers(*np.log(chance))
    gains, odds = np.maximum(advantage, 0), np.array(chance) / (1 - np.array(chance))
    losses = np.maximum(-np.array(advantage), 0)
    bounds = {"topr": (gains, losses), "ecpo": ((1 + CLIP) * gains, (1 + CLIP + EARLY) * losses), "gbpo": (gains, odds * losses)}
    for name, (up, down) in bounds.items():
        loss_Q = POLICY_LOSSES[name](logprob_Q, torch.tensor(np.log(logged)), advantage_Q, NO_REWARD)
        push = -np.array(gradient(loss_Q, logprob_Q))
        assert (push <= up * (1 + 1e-9)).all()
        assert (push >= -down * (1 + 1e-9)).all()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(POLICY_LOSSES)), CHANCES, CHANCES, SIGNED, SIGNED)
def test_no_rule_pushes_against_the_advantage_and_twice_as_much_is_twice_the_loss(
    name: str, chance: list[float], logged: list[float], advantage: list[float], reward: list[float]
) -> None:
    logprob_Q, logged_Q = numbers(*np.log(chance)), torch.tensor(np.log(logged))
    advantage_Q, reward_Q = torch.tensor(advantage, dtype=torch.float64), torch.tensor(reward, dtype=torch.float64)
    loss_Q = POLICY_LOSSES[name](logprob_Q, logged_Q, advantage_Q, reward_Q)
    said_Q = reward_Q if name == "sft" else advantage_Q
    assert (np.array(gradient(loss_Q, logprob_Q)) * said_Q.numpy() <= 0).all()
    twice_Q = POLICY_LOSSES[name](logprob_Q, logged_Q, 2 * advantage_Q, 2 * reward_Q)
    assert twice_Q.tolist() == pytest.approx((2 * loss_Q).tolist())


@pytest.mark.parametrize("name", ["clip", "reinforce", "sft"])
def test_gradients_of_rules_whose_weights_are_constants_or_the_loss_itself_agree_with_finite_differences(name: str) -> None:
    advantage_Q, logged_Q = torch.tensor([0.7, -0.3, 0.2, -0.9], dtype=torch.float64), numbers(-1.05, -2.1, -0.45, -0.9).detach()
    logprob_Q = numbers(-1.0, -2.0, -0.5, -1.0)

    def loss(logprob_Q: Tensor) -> Tensor:
        return POLICY_LOSSES[name](logprob_Q, logged_Q, advantage_Q, advantage_Q)

    assert torch.autograd.gradcheck(loss, (logprob_Q,))


@pytest.mark.parametrize("name", ["topr", "gbpo", "ecpo"])
def test_other_rules_hold_their_weight_still(name: str) -> None:
    """Theirs is a constant made of what π was: the gradient is that of the loss with the weight of the point itself."""
    advantage_Q, logged_Q = torch.tensor([0.7, -0.3, 0.2, -0.9], dtype=torch.float64), numbers(-1.05, -2.1, -0.45, -0.4).detach()
    logprob_Q = numbers(-1.0, -2.0, -0.5, -1.0)
    found = gradient(POLICY_LOSSES[name](logprob_Q, logged_Q, advantage_Q, NO_REWARD), logprob_Q)
    ratio = (logprob_Q.detach() - logged_Q).exp().numpy()
    chance = logprob_Q.detach().exp().numpy()
    gain = advantage_Q.numpy() >= 0
    weight = {
        "topr": np.where(gain, 1, np.minimum(ratio, 1)),
        "gbpo": chance / np.maximum(logged_Q.exp().numpy(), np.where(gain, chance, 1 - chance)),
        "ecpo": np.where(gain, ratio * (ratio <= 1 + CLIP), np.where(ratio < 1 - CLIP, 0, np.minimum(ratio, 1 + CLIP + EARLY))),
    }[name]
    assert found == pytest.approx((-weight * advantage_Q.numpy()).tolist())


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_extreme_ratios_leave_finite_losses(name: str) -> None:
    logprob_Q, logged_Q = numbers(-40.0, -1e-6, -60.0), torch.tensor([-1e-6, -40.0, -60.0], dtype=torch.float64)
    for sign in (1.0, -1.0):
        signs_Q = torch.full((3,), sign, dtype=torch.float64)
        loss_Q = POLICY_LOSSES[name](logprob_Q, logged_Q, signs_Q, signs_Q)
        assert loss_Q.isfinite().all()
        assert np.isfinite(gradient(loss_Q, logprob_Q)).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 6))
def test_advantages_over_the_others_sum_to_nothing(seed: int, batch: int, slots: int) -> None:
    random = np.random.default_rng(seed)
    reward_BS = torch.from_numpy(random.random((batch, slots)))
    shown_BS = torch.from_numpy((random.random((batch, slots)) < 0.6).astype(np.float64))
    advantage_BS = (reward_BS - leave_one_out(reward_BS, shown_BS)) * shown_BS
    assert advantage_BS.sum(1).tolist() == pytest.approx([0] * batch, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 6))
def test_leave_one_out_is_the_mean_of_the_others(seed: int, batch: int, slots: int) -> None:
    random = np.random.default_rng(seed)
    reward_BS, shown_BS = random.random((batch, slots)), random.random((batch, slots)) < 0.6
    found_BS = leave_one_out(torch.from_numpy(reward_BS), torch.from_numpy(shown_BS).double()).numpy()
    for at, slot in zip(*shown_BS.nonzero(), strict=True):
        others = [reward_BS[at, other] for other in np.flatnonzero(shown_BS[at]) if other != slot]
        assert found_BS[at, slot] == pytest.approx(np.mean(others) if others else reward_BS[at, slot])


def test_value_loss_is_cross_entropy_with_the_reward_cut() -> None:
    logit_Q = numbers(0.0, math.log(3), 0.0, 0.0)
    loss_Q = value_loss(logit_Q, torch.tensor([1.0, 1.0, 7.0, -3.0], dtype=torch.float64))
    assert loss_Q.tolist() == pytest.approx([LOG2, math.log(4 / 3), LOG2, LOG2])
    assert gradient(loss_Q, logit_Q) == pytest.approx([-0.5, -0.25, -0.5, 0.5])


def test_effective_share_by_hand() -> None:
    """Ratios 1 and 3: 16 / (10 · 2)."""

    def share(*pairs: tuple[float, float]) -> float:
        logprob_Q, logged_Q = (numbers(*column).detach() for column in zip(*pairs, strict=True))
        return Ratios.of(logprob_Q, logged_Q).effective_share

    assert share((0, 0), (math.log(3), 0)) == pytest.approx(0.8)
    assert share((-1, -1), (-2, -2)) == pytest.approx(1)
    assert share((0, 0), (-90, 0)) == pytest.approx(0.5)
    assert math.isfinite(share((0, -1e4), (-1e4, 0)))
