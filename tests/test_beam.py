"""A slate drawn at once is what its numbers say: each slot's share, the pairs of slots, and the weights that κ gives."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_generate import (
    EXAMPLES,
    LEVELS,
    RULES,
    Model,
    Requests,
    freed,
    many_times,
    one_request,
    random_model,
    random_requests,
    rescored,
    scores,
    share_fits,
    still_legal,
)

from models.generate import Slates


def chances(model: Model, request: Requests) -> np.ndarray:
    """π of every row in the first slot, from the other side, (R,)."""
    legal = still_legal(request, np.zeros((1, 1), np.int64), 0, 0)
    nothing = np.zeros(len(legal), np.int64)
    chance_R = np.zeros(len(model.alive_R))
    chance_R[legal] = scores(model, request, np.zeros((1, 1), np.int64), nothing, nothing, legal).exp().detach().numpy()
    return chance_R


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("levels", LEVELS)
def test_the_first_slot_is_drawn_as_often_as_slot_by_slot(levels: int, rule: tuple[float, float, float, float]) -> None:
    """17,000 draws of three slots, about 200,000 over all depths and rules."""
    model = random_model(levels, levels, num_items=14, codes=3)
    request = one_request(levels, model, 3, rule)
    slates = many_times(request, 17_000, 0, seed=levels).drawn_by(model.generator, "beam")
    chance_R = chances(model, request)
    assert np.exp(slates.logprob_BS[:, 0]) == pytest.approx(chance_R[slates.item_BS[:, 0]], abs=1e-5)
    assert share_fits(np.bincount(slates.item_BS[:, 0], minlength=15)[chance_R > 0], chance_R[chance_R > 0])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("levels", LEVELS)
def test_two_slots_are_drawn_as_often_as_their_sum_says(levels: int, rule: tuple[float, float, float, float]) -> None:
    """All pairs of five items: without replacement from the first slot's chances, p(a) p(b) / (1 - p(a))."""
    model = random_model(20 + levels, levels, num_items=5, codes=2, retired=0)
    request = freed(one_request(0, model, 2, rule), model)
    slates = many_times(request, 17_000, 0, seed=levels).drawn_by(model.generator, "beam")
    pairs, first, count = np.unique(slates.item_BS, axis=0, return_index=True, return_counts=True)
    chance_R = chances(model, request)
    expected = chance_R[pairs[:, 0]] * chance_R[pairs[:, 1]] / (1 - chance_R[pairs[:, 0]])
    assert np.exp(slates.logprob_BS[first].sum(1)) == pytest.approx(expected, abs=1e-5)
    assert expected.sum() > 0.99
    assert share_fits(count, expected)


@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize("levels", LEVELS)
def test_weights_by_kappa_estimate_sums_over_the_catalogue_without_bias(levels: int, floor: float) -> None:
    """Σ f(a) / P(a passes κ) over the drawn items has the mean Σ f(a) over all legal ones (Horvitz and Thompson; Kool et al. 2019)."""
    model = random_model(30 + levels, levels, num_items=12, codes=3, retired=0)
    request = freed(one_request(0, model, 4, (1.0, floor, 0.5, 0.0)), model)
    slates = many_times(request, 40_000, 0, seed=levels).drawn_by(model.generator, "beam")
    assert slates.kappa_B is not None
    chance_R = chances(model, request)
    assert chance_R.sum() == pytest.approx(1, abs=1e-5)
    chance_BS = chance_R[slates.item_BS]
    passes_BS = -np.expm1(-chance_BS * np.exp(-slates.kappa_B[:, None]))
    for value_R in (chance_R * np.arange(13), np.minimum(chance_R, 0.05)):  # an expectation, and a sum that few items carry
        estimate_B = (value_R[slates.item_BS] / passes_BS).sum(1)
        error = (estimate_B.mean() - value_R.sum()) / (estimate_B.std() / np.sqrt(len(estimate_B)))
        assert abs(error) < 4.5


def test_where_all_is_drawn_nothing_is_held_back() -> None:
    model = random_model(3, levels=2, num_items=4, retired=0)
    request = freed(one_request(0, model, 6, (1.0, 0.1, 0.0, 0.0)), model)
    slates = request.drawn_by(model.generator, "beam")
    assert slates.kappa_B is not None
    assert slates.kappa_B.tolist() == [-np.inf]
    assert sorted(slates.item_BS[0].tolist()) == [0, 0, 1, 2, 3, 4]
    assert slates.logprob_BS[0, 3:] == pytest.approx(np.zeros(3), abs=1e-6)


@EXAMPLES
@given(st.integers(0, 2**32 - 1), st.sampled_from(LEVELS), st.integers(1, 40))
def test_a_shorter_slate_is_the_beginning_of_a_longer_one(seed: int, levels: int, num_items: int) -> None:
    """Whatever others in the batch asked for; κ is the clock of the next one."""
    model = random_model(seed, levels, num_items)
    requests = random_requests(seed, model, batch=6, slots=6)
    longest = replace(requests, sizes_B=np.full(6, 6)).drawn_by(model.generator, "beam")
    drawn = requests.drawn_by(model.generator, "beam")
    for at, size in enumerate(requests.sizes_B):
        assert drawn.item_BS[at, :size].tolist() == longest.item_BS[at, :size].tolist()
        assert not drawn.item_BS[at, size:].any()
        assert drawn.logprob_BS[at, :size] == pytest.approx(longest.logprob_BS[at, :size], abs=1e-6)
    assert drawn.kappa_B is not None
    assert longest.kappa_B is not None
    assert (drawn.kappa_B >= longest.kappa_B).all()


def test_the_numbers_hold_where_one_item_has_nearly_all() -> None:
    """A sharp distribution without a floor: what is left after the first slots is far below what 1 - Σ p can tell from 0."""
    model = random_model(8, levels=3, num_items=30, retired=0)
    requests = random_requests(8, model, batch=50, slots=8)
    rule = replace(requests.rule, temperature_B=np.full(50, 0.05, np.float32), floor_B=np.zeros(50, np.float32))
    requests = replace(requests, rule=rule)
    slates: Slates = requests.drawn_by(model.generator, "beam")
    assert (np.exp(slates.logprob_BS[:, 0]) == 1).any()  # to the last digit of a float32
    assert slates.logprob_BS == pytest.approx(rescored(model, requests, slates.item_BS, "beam"), abs=1e-3)
