"""What clicks say of items and content: that steps end where a logistic regression does, and that the right pace is believed."""

import pytest
import torch
import torch.nn.functional as F

from models.paces import KEEPS, Paces, curvature

SPREAD = 0.7


def random_batch(seed: int, size: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(1, 9, (size,), generator=random), F.normalize(torch.randn(size, 8, generator=random))


def again(paces: Paces, item_Q: torch.Tensor, content_QS: torch.Tensor, click_Q: torch.Tensor, times: int) -> None:
    """Tell the same again and again, each time as if for the first."""
    for _ in range(times):
        paces.information.zero_()
        paces.known.zero_()
        paces.correct(item_Q, content_QS, torch.zeros(len(item_Q)), click_Q, torch.ones(len(item_Q)), SPREAD)


def test_curvature_is_that_of_a_parabola_above_the_loss() -> None:
    """It touches the logistic loss at the logit and is nowhere below it."""
    at, there = torch.linspace(-6, 6, 241, dtype=torch.float64), torch.tensor(1.3, dtype=torch.float64)
    parabola = F.softplus(there) + there.sigmoid() * (at - there) + 0.5 * curvature(there) * (at - there) ** 2
    assert float((parabola - F.softplus(at)).min()) > -1e-9
    assert float(curvature(torch.tensor(0.0))) == pytest.approx(0.25)


def test_repeated_steps_predict_the_clicks_there_were() -> None:
    """Of items clicked four times of five and once of five: the mode; all paces alike, as nothing fades."""
    paces, (item_Q, content_QS) = Paces(16, 8), random_batch(0)
    again(paces, item_Q, 0 * content_QS, torch.where(item_Q > 4, 0.8, 0.2), 30)
    assert paces.bias[1:5, 0].sigmoid().tolist() == pytest.approx([0.2] * 4, abs=1e-3)
    assert paces.bias[5:9, 0].sigmoid().tolist() == pytest.approx([0.8] * 4, abs=1e-3)
    assert torch.equal(paces.bias[:, 0], paces.bias[:, -1])
    assert not paces.bias[[0, *range(9, 16)]].any()


def test_the_first_clicks_of_an_item_move_it_far_and_the_later_ones_little() -> None:
    paces, moves = Paces(4, 8), []
    for _ in range(20):
        before = float(paces.bias[1, 0])
        paces.correct(torch.tensor([1]), torch.zeros(1, 8), torch.zeros(1), torch.ones(1), torch.ones(1), SPREAD)
        moves.append(float(paces.bias[1, 0]) - before)
    assert moves[0] > 2 * moves[5] > 2 * moves[19] > 0
    paces.evict(torch.tensor([1]))
    assert not paces.bias[1].any()
    assert not paces.known[1].any()


def test_content_tells_of_items_that_were_never_shown() -> None:
    paces, (item_Q, content_QS) = Paces(16, 8), random_batch(1)
    liked_Q = (3 * content_QS[:, 0]).sigmoid()
    for _ in range(20):
        paces.correct(item_Q, content_QS, torch.zeros(400), liked_Q, torch.ones(400), SPREAD)
    _, unseen_QS = random_batch(2)
    found_Q = unseen_QS @ paces.weight[-1]
    assert float(torch.corrcoef(torch.stack([found_Q, unseen_QS[:, 0]]))[0, 1]) > 0.9


def test_what_the_items_may_explain_is_not_all_for_content() -> None:
    """Where items are well known, the same surprise moves content further."""
    moves = []
    for known in (0.0, 1000.0):
        paces, (item_Q, content_QS) = Paces(16, 8), random_batch(3)
        paces.known.fill_(known)
        paces.correct(item_Q, content_QS, torch.zeros(400), (content_QS[:, 0] > 0).float(), torch.ones(400), SPREAD)
        moves.append(float(paces.weight[0].norm()))
    assert moves[1] > moves[0] > 0


@pytest.mark.parametrize("moves_every", [60, 10_000])
def test_the_pace_that_fits_the_world_is_believed(moves_every: int) -> None:
    """An item whose worth turns round every hour wants to be forgotten; one whose worth stays does not."""
    random, paces = torch.Generator().manual_seed(4), Paces(4, 8)
    for minute in range(600):
        chance = 0.9 if minute // moves_every % 2 == 0 else 0.1
        click_Q = (torch.rand(30, generator=random) < chance).float()
        paces.fade()
        paces.correct(torch.ones(30, dtype=torch.int64), torch.zeros(30, 8), torch.zeros(30), click_Q, torch.ones(30), SPREAD)
    share_P = paces.shares()
    assert float(share_P.sum()) == pytest.approx(1)
    assert tuple(sorted(KEEPS)) == KEEPS
    assert (float(share_P[0]) > 0.9) == (moves_every == 60)


def test_growing_keeps_what_is_known() -> None:
    paces, (item_Q, content_QS) = Paces(16, 8), random_batch(5)
    again(paces, item_Q, content_QS, (item_Q > 4).float(), 1)
    before = paces.bias.clone()
    paces.grow(32)
    assert torch.equal(paces.bias[:16], before)
    assert not paces.bias[16:].any()
    assert paces.known.shape == (32, len(KEEPS))
