"""Steps that are taken back: afterwards it is as if they had never been taken."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from models.embeddings import grow_rows
from recsys.footing import Footing, parameters_of


def started() -> tuple[torch.optim.Optimizer, torch.Generator]:
    """Three weights, the last of which gets no gradient before the fourth step."""
    random = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=random)) for shape in ((5, 3), (), (4,))]
    groups = [{"params": weights[:2]}, {"params": weights[2:], "lr": 0.01}]
    return torch.optim.AdamW(groups, lr=0.1, weight_decay=0.0, fused=True), random


def step(optimizer: torch.optim.Optimizer, random: torch.Generator, number: int) -> None:
    for parameter in parameters_of(optimizer):
        gradient = torch.randn(parameter.shape, generator=random)
        parameter.grad = None if number < 4 and parameter.shape == (4,) else gradient
    optimizer.step()


def state(optimizer: torch.optim.Optimizer) -> dict[str, bytes]:
    kept = {f"{at}.{name}": value for at, values in optimizer.state_dict()["state"].items() for name, value in values.items()}
    weights = {f"{at}": parameter.detach() for at, parameter in enumerate(parameters_of(optimizer))}
    return {name: value.numpy().tobytes() for name, value in (kept | weights).items()}


@pytest.mark.parametrize("before", [0, 1, 3, 5])
def test_what_is_taken_back_was_never_done(before: int) -> None:
    """Before the first step, where nothing is kept; before a weight's first; and after all have had theirs."""
    optimizer, random = started()
    footing = Footing()
    for number in range(before):
        footing.take(optimizer)
        step(optimizer, random, number)
    was, where = deepcopy(state(optimizer)), random.get_state()
    weights = torch.cat([parameter.detach().flatten() for parameter in parameters_of(optimizer)])
    footing.take(optimizer)
    for number in (before, before + 1):
        step(optimizer, random, number)
    moved = torch.cat([parameter.detach().flatten() for parameter in parameters_of(optimizer)]) - weights
    assert torch.equal(footing.weights, weights)
    assert torch.equal(footing.change(), moved)
    assert moved.abs().max() > 0.01
    assert state(optimizer).keys() >= was.keys()
    footing.go_back()
    assert state(optimizer) == was

    other, its_random = started()  # which never tried
    for number in range(before):
        step(other, its_random, number)
    random.set_state(where)
    for number in range(before, before + 3):
        step(optimizer, random, number)
        step(other, its_random, number)
    assert state(optimizer) == state(other)


def test_tables_may_grow_between_two_minutes() -> None:
    optimizer, random = started()
    footing = Footing()
    for number in range(5):
        footing.take(optimizer)
        step(optimizer, random, number)
    table = parameters_of(optimizer)[0]
    grow_rows(table, 8, optimizer)
    was = state(optimizer)
    footing.take(optimizer)
    step(optimizer, random, 5)
    assert len(footing.change()) == 8 * 3 + 1 + 4
    assert np.frombuffer(was["0"], np.float32).size == 24
    footing.go_back()
    assert state(optimizer) == was
