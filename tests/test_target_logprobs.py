"""Log-probabilities of single targets are those of the plain softmax, value and gradients, whatever the parts they are computed in."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.target_logprobs import FEWEST, MOST, PART_LOGITS, Targets, part_size, target_logprobs

Leaves = list[torch.Tensor]


def inputs(seed: int, queries: int, groups: int, rows: int) -> tuple[Leaves, Targets, torch.Tensor]:
    """Queries, rows and bases with gradient; a third of the rows closed, to groups and to queries, but never the target; weights."""
    random = np.random.default_rng(seed)
    group_Q, row_Q = np.sort(random.integers(groups, size=queries)), random.integers(rows, size=queries)
    closed_GN, closed_QN = random.random((groups, rows)) < 0.2, random.random((queries, rows)) < 0.2
    closed_GN[group_Q, row_Q] = closed_QN[np.arange(queries), row_Q] = False
    torch.manual_seed(seed)
    base_GN = torch.randn(groups, rows).masked_fill(torch.from_numpy(closed_GN), -torch.inf)
    leaves = [torch.randn(queries, 8), torch.randn(rows, 8), base_GN]
    targets = Targets(group_Q, row_Q, *closed_QN.nonzero())
    return [leaf.requires_grad_() for leaf in leaves], targets, torch.randn(queries)


def plain(leaves: Leaves, targets: Targets) -> torch.Tensor:
    query, rows, base = leaves
    group_Q, row_Q, query_M, row_M = map(torch.from_numpy, vars(targets).values())
    logits = (query @ rows.T + base[group_Q]).index_put((query_M, row_M), torch.tensor(-torch.inf))
    return logits.log_softmax(1).gather(1, row_Q[:, None])[:, 0]


def check(leaves: Leaves, targets: Targets, weight_Q: torch.Tensor) -> None:
    found, expected = target_logprobs(*leaves, targets), plain(leaves, targets)
    assert found.detach().numpy() == pytest.approx(expected.detach().numpy(), abs=1e-4)
    pairs = zip(*(torch.autograd.grad((weight_Q * logprob_Q).sum(), leaves) for logprob_Q in (found, expected)), strict=True)
    for one, other in pairs:
        assert one.numpy() == pytest.approx(other.numpy(), abs=1e-4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 20), st.integers(1, 40))
def test_value_and_gradients_are_those_of_the_softmax(seed: int, queries: int, groups: int, rows: int) -> None:
    check(*inputs(seed, queries, groups, rows))


def test_more_queries_than_one_part_holds_are_as_one() -> None:
    check(*inputs(1, 2 * MOST + 30, 100, 20))


def test_parts_are_as_large_as_the_cache() -> None:
    assert part_size(7_583) * 7_583 == pytest.approx(PART_LOGITS, rel=0.1)
    assert (part_size(10), part_size(10**7)) == (MOST, FEWEST)


def test_what_is_all_but_impossible_has_a_finite_number() -> None:
    """Its chance is no float32 any more."""
    query, rows, base = torch.tensor([[1.0]]), torch.tensor([[0.0], [-500.0]]), torch.zeros(1, 2)
    targets = Targets(*(np.array(numbers, np.int64) for numbers in ([0], [1], [], [])))
    assert float(target_logprobs(query, rows, base, targets)) == pytest.approx(-500)


def test_no_queries_have_no_numbers_and_no_gradient() -> None:
    leaves, targets, weight_Q = inputs(2, 0, 1, 4)
    found = target_logprobs(*leaves, targets)
    gradients = torch.autograd.grad((weight_Q * found).sum(), leaves)
    assert len(found) == 0
    assert [float(gradient.abs().sum()) for gradient in gradients] == [0, 0, 0]
