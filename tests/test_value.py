"""The level of the value head: what it counts of the context, that it starts even, and learns what counts alone can tell."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.value import SHRINK, ValueLevel, counted

KINDS = 4


def test_a_record_by_hand() -> None:
    """Two shown, one of them clicked, and a blank; then nobody."""
    found = counted(np.array([[0, 1, 1, 2], [0, 0, 0, 0]]), KINDS)
    shares = [0, 2 / (3 + SHRINK), 1 / (3 + SHRINK), 0]
    assert found.tolist()[0] == pytest.approx([*shares, 0, math.log(3), math.log(2), 0])
    assert found.tolist()[1] == [0] * (2 * KINDS)


def test_blank_rows_change_no_record() -> None:
    kinds_BL = np.random.default_rng(0).integers(1, KINDS, (5, 6))
    assert torch.equal(counted(np.pad(kinds_BL, ((0, 0), (3, 0))), KINDS), counted(kinds_BL, KINDS))


def test_at_first_everything_is_as_likely_as_not() -> None:
    level = ValueLevel(8, KINDS)
    assert level(torch.randn(5, 8), counted(np.ones((5, 3), np.int64), KINDS)).tolist() == [0] * 5


def test_it_learns_that_who_clicked_will_click() -> None:
    """All states alike: only the record tells two users apart."""
    torch.manual_seed(0)
    level, state_QD = ValueLevel(8, KINDS), torch.ones(2, 8)
    record_QK = counted(np.array([[1, 2, 1, 2, 1, 2], [1, 1, 1, 1, 1, 1]]), KINDS)
    optimizer = torch.optim.Adam(level.parameters(), lr=0.02)
    for _ in range(60):
        loss = F.binary_cross_entropy_with_logits(level(state_QD, record_QK), torch.tensor([0.8, 0.1]))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert level(state_QD, record_QK).sigmoid().tolist() == pytest.approx([0.8, 0.1], abs=0.05)
