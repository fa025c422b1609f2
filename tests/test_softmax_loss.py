"""The loss over a whole catalogue is the plain one, value and gradients, whatever the parts it is computed in."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models.softmax_loss import PART, ExtraLogits, softmax_loss


def inputs(seed: int, places: int, rows: int, extras: int) -> tuple[list[torch.Tensor], ExtraLogits, torch.Tensor]:
    """Query, rows, bias and extra values, all with gradient; several extras may stand at one place."""
    torch.manual_seed(seed)
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((places, 8), (rows, 8), (rows,), (extras,))]
    position_X = torch.randint(places, (extras,)).sort().values
    return leaves, ExtraLogits(position_X, torch.randint(rows, (extras,)), leaves[3]), torch.randint(rows, (places,))


def plain(leaves: list[torch.Tensor], extra: ExtraLogits, target_P: torch.Tensor) -> torch.Tensor:
    query, rows, bias, values = leaves
    logits = (query @ rows.T + bias).index_put((extra.position_X, extra.row_X), values, accumulate=True)
    return F.cross_entropy(logits, target_P, reduction="none")


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 30), st.integers(0, 60))
def test_value_and_gradients_are_those_of_cross_entropy(seed: int, places: int, rows: int, extras: int) -> None:
    leaves, extra, target_P = inputs(seed, places, rows, extras)
    loss_P = softmax_loss(*leaves[:3], extra, target_P, torch.float32)
    assert loss_P.detach().numpy() == pytest.approx(plain(leaves, extra, target_P).detach().numpy(), abs=1e-4)
    found = torch.autograd.grad(loss_P.mean(), leaves)
    for one, other in zip(found, torch.autograd.grad(plain(leaves, extra, target_P).mean(), leaves), strict=True):
        assert one.numpy() == pytest.approx(other.numpy(), abs=1e-5)


def test_more_places_than_one_part_holds_are_as_one() -> None:
    leaves, extra, target_P = inputs(1, PART + 300, 20, 500)
    loss_P = softmax_loss(*leaves[:3], extra, target_P, torch.float32)
    assert loss_P.detach().numpy() == pytest.approx(plain(leaves, extra, target_P).detach().numpy(), abs=1e-4)
    (values,) = torch.autograd.grad(loss_P.sum(), [leaves[3]])
    (expected,) = torch.autograd.grad(plain(leaves, extra, target_P).sum(), [leaves[3]])
    assert values.numpy() == pytest.approx(expected.numpy(), abs=1e-4)


def test_half_precision_is_near() -> None:
    leaves, extra, target_P = inputs(2, 50, 20, 10)
    exact, near = (softmax_loss(*leaves[:3], extra, target_P, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert (exact - near).abs().max() < 0.2
    assert (exact - near).abs().max() > 0


def test_no_extras_and_no_places() -> None:
    leaves, _, target_P = inputs(3, 5, 4, 0)
    loss_P = softmax_loss(*leaves[:3], ExtraLogits.none(), target_P, torch.float32)
    expected = F.cross_entropy(leaves[0] @ leaves[1].T + leaves[2], target_P, reduction="none")
    assert loss_P.detach().numpy() == pytest.approx(expected.detach().numpy(), abs=1e-5)
    assert len(softmax_loss(leaves[0][:0], *leaves[1:3], ExtraLogits.none(), target_P[:0], torch.float32)) == 0


def test_places_that_count_differently_are_refused() -> None:
    """The gradients are made before it is known how the losses are used."""
    leaves, extra, target_P = inputs(4, 3, 4, 0)
    weighted = (softmax_loss(*leaves[:3], extra, target_P, torch.float32) * torch.tensor(np.array([1.0, 2.0, 3.0]))).sum()
    with pytest.raises(ValueError, match="every position counts alike"):
        weighted.backward()
