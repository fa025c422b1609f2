"""What an update minimizes, against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.losses import POLICY_LOSSES, clip, effective_share, leave_one_out, reinforce, topr, value_loss

LOG2 = math.log(2)


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
    loss_Q = topr(logprob_Q, logged_Q, advantage_Q)
    assert loss_Q.tolist() == pytest.approx([0.8 * 2 * LOG2, -0.2 * 3 * LOG2, -0.4 * LOG2, 0.0])
    # the ratio is a weight and has no gradient of its own
    assert gradient(loss_Q, logprob_Q) == pytest.approx([-0.8, 0.2, 0.4, 0.0])


def test_reinforce_by_hand() -> None:
    logprob_Q = numbers(-1.0, -2.0)
    loss_Q = reinforce(logprob_Q, numbers(-9.0, 9.0), torch.tensor([0.5, -0.25]))
    assert loss_Q.tolist() == pytest.approx([0.5, -0.5])
    assert gradient(loss_Q, logprob_Q) == pytest.approx([-0.5, 0.25])


def test_clip_by_hand() -> None:
    """Ratios 2, 2, 1/2, 1/2 against 0.8..1.2: no gradient where the ratio is already past the limit in the wanted direction."""
    logprob_Q = numbers(*[LOG2, LOG2, -LOG2, -LOG2])
    loss_Q = clip(logprob_Q, torch.zeros(4, dtype=torch.float64), torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64))
    assert loss_Q.tolist() == pytest.approx([-1.2, 2.0, -0.5, 0.8])
    assert gradient(loss_Q, logprob_Q) == pytest.approx([0.0, 2.0, -0.5, 0.0])


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_on_policy_all_rules_have_the_gradient_of_reinforce(name: str) -> None:
    advantage_Q = torch.tensor([0.7, -0.3, 0.0], dtype=torch.float64)
    logprob_Q = numbers(-1.0, -2.0, -0.5)
    assert gradient(POLICY_LOSSES[name](logprob_Q, logprob_Q.detach(), advantage_Q), logprob_Q) == pytest.approx([-0.7, 0.3, 0.0])


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_extreme_ratios_leave_finite_losses(name: str) -> None:
    logprob_Q, logged_Q = numbers(-40.0, -1e-6, -60.0), torch.tensor([-1e-6, -40.0, -60.0], dtype=torch.float64)
    for sign in (1.0, -1.0):
        loss_Q = POLICY_LOSSES[name](logprob_Q, logged_Q, torch.full((3,), sign, dtype=torch.float64))
        assert loss_Q.isfinite().all()
        assert np.isfinite(gradient(loss_Q, logprob_Q)).all()


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
        return float(effective_share(logprob_Q, logged_Q))

    assert share((0, 0), (math.log(3), 0)) == pytest.approx(0.8)
    assert share((-1, -1), (-2, -2)) == pytest.approx(1)
    assert share((0, 0), (-90, 0)) == pytest.approx(0.5)
    assert math.isfinite(share((0, -1e4), (-1e4, 0)))
