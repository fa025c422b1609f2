"""Rare items lean on their neighbours: a new one begins where they are, a known one stays, one like no other leans on nobody."""

import pytest
import torch
from test_next_item import NUM_ITEMS, decoder_model, shaken

from models.decoder import Decoder
from models.neighbours import NEIGHBOURS, RESERVE, SHARPNESS, Neighbours


def learned(decoder: Decoder) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in decoder.row_parameters()]


def rows(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


def times(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32)


@pytest.mark.parametrize("met", [0.0, 2.0, 1e9])
def test_an_item_keeps_what_it_has_earned_and_takes_the_rest_from_its_neighbours(met: float) -> None:
    decoder, kappa = shaken(decoder_model()).decoder, 3.0
    before, row = learned(decoder), 7
    cosine_R = decoder.content_RC[: NUM_ITEMS + 1] @ decoder.content_RC[row]
    cosine_R[0] = cosine_R[row] = -1
    nearest = cosine_R.argsort(descending=True)[:NEIGHBOURS]
    weight = cosine_R[nearest].clamp(min=0) ** SHARPNESS
    Neighbours.of(decoder, rows(row), NUM_ITEMS + 1).lean(decoder, times(met), kappa)
    for old, new in zip(before, learned(decoder), strict=True):
        mean = sum(w * old[at] for w, at in zip(weight, nearest, strict=True)) / (weight.sum() + RESERVE)
        expected = (met * old[row] + kappa * mean) / (met + kappa)
        assert new[row].numpy() == pytest.approx(expected.numpy(), abs=1e-5)
        new[row] = old[row]
        assert torch.equal(old, new)


def test_nobody_leans_where_kappa_is_nothing() -> None:
    decoder = shaken(decoder_model()).decoder
    before = learned(decoder)
    Neighbours.of(decoder, torch.arange(1, NUM_ITEMS + 1), NUM_ITEMS + 1).lean(decoder, torch.zeros(NUM_ITEMS), 0.0)
    assert all(torch.equal(old, new) for old, new in zip(before, learned(decoder), strict=True))


def test_an_item_like_no_other_is_known_by_its_content_alone() -> None:
    decoder = shaken(decoder_model()).decoder
    with torch.no_grad():
        decoder.content_RC[7] = -decoder.content_RC[1 : NUM_ITEMS + 1].sum(0)
        decoder.content_RC[1:7], decoder.content_RC[8 : NUM_ITEMS + 1] = 0, 0
    Neighbours.of(decoder, rows(7), NUM_ITEMS + 1).lean(decoder, times(0), 1.0)
    assert all(not parameter[7].any() for parameter in learned(decoder))


def test_neighbours_are_taken_as_they_were_whatever_leans_at_the_same_time() -> None:
    together, alone = (shaken(decoder_model()).decoder for _ in range(2))
    everybody = torch.arange(1, NUM_ITEMS + 1)
    Neighbours.of(together, everybody, NUM_ITEMS + 1).lean(together, torch.ones(NUM_ITEMS), 2.0)
    Neighbours.of(alone, rows(4), NUM_ITEMS + 1).lean(alone, times(1), 2.0)
    for one, other in zip(learned(together), learned(alone), strict=True):
        assert one[4].numpy() == pytest.approx(other[4].numpy(), abs=1e-6)
