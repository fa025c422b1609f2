"""Vectors of items: the numbers and gradients of the separate operations, for any number of rows."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.vectors import PART_ROWS, item_vectors, run_of


@pytest.mark.parametrize("rows", [1, PART_ROWS, 2 * PART_ROWS + 3])
def test_item_vectors_are_those_of_the_separate_operations(rows: int) -> None:
    """Row 0 says nothing, and at length 0 stays so."""
    random = torch.Generator().manual_seed(rows)
    learned_ND, content_NC = (torch.randn(rows, 6, generator=random), torch.randn(rows, 5, generator=random))
    learned_ND[0] = content_NC[0] = 0
    weight_DC, *wanted = (torch.randn(size, generator=random) for size in ((6, 5), (rows, 6), (rows, 6)))
    wanted[1][0] = 0
    found = []
    for together in (True, False):
        given = [tensor.clone().requires_grad_() for tensor in (learned_ND, weight_DC)]
        separate_ND = given[0] + F.linear(content_NC, given[1])
        item_ND, leaf_ND = item_vectors(given[0], given[1], content_NC) if together else (separate_ND, F.normalize(separate_ND, dim=1))
        torch.autograd.backward([item_ND, leaf_ND], wanted)
        found.append([item_ND.detach(), leaf_ND.detach(), *(tensor.grad for tensor in given)])
    for one, other in zip(*found, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "is_run"), [([3, 4, 5], True), ([7], True), ([3, 5, 6], False), ([5, 4, 3], False), ([2, 2], False), ([], False)]
)
def test_rows_that_follow_each_other_are_a_slice(rows: list[int], is_run: bool) -> None:
    found = run_of(np.array(rows, np.int64))
    assert isinstance(found, slice) == is_run
    assert torch.arange(9)[found].tolist() == rows
