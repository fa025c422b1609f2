"""The gate that looks at how far an update moved the weights."""

import math

import pytest
import torch

from recsys.guard import GuardConfig, update_refused


@pytest.mark.parametrize(
    ("change", "reason"),
    [(0.0, None), (0.19, None), (0.21, "change_too_large"), (math.nan, "weights_not_finite"), (math.inf, "weights_not_finite")],
)
def test_what_moved_too_far_or_is_no_number_is_refused(change: float, reason: str | None) -> None:
    before = torch.full((100,), 3.0)
    moved = torch.zeros(100)
    moved[7] = change * before.norm()
    assert update_refused(GuardConfig(max_change=0.2), before, moved) == reason
