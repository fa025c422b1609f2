"""What clicks say of items and features: that steps end where a logistic regression does, and that the right pace is believed."""

import pytest
import torch
import torch.nn.functional as F

from models.paces import CALM, KEEPS, Paces, solved

SPREAD = 0.7


def random_batch(seed: int, size: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(1, 9, (size,), generator=random), F.normalize(torch.randn(size, 8, generator=random))


def test_items_end_at_the_mode_of_a_logistic_model_with_a_normal_prior() -> None:
    """Told of the same clicks again and again, each time as if for the first: where the gradient of the log posterior is 0."""
    paces, (item_Q, x_QF) = Paces(16, torch.zeros(8)), random_batch(0)
    click_Q = torch.where(item_Q > 4, 0.8, 0.2)
    for _ in range(30):
        paces.known.zero_()
        before_RP = paces.bias.clone()
        paces.correct(item_Q, 0 * x_QF, torch.zeros(400), click_Q, torch.ones(400), SPREAD)
        # the prior is round 0: the step that the posterior asks for is shorter by what the present bias weighs
        paces.bias -= before_RP / SPREAD**2 / (paces.known + SPREAD**-2)
    for bias_R in paces.bias.T:
        slope_R = torch.zeros(16).index_add_(0, item_Q, click_Q - bias_R[item_Q].sigmoid()) - bias_R / SPREAD**2
        assert float(slope_R.abs().max()) < 1e-4
    assert not paces.bias[[0, *range(9, 16)]].any()


def test_features_end_at_the_mode_too() -> None:
    """The same where all is known of the items, so that the features have to explain what comes."""
    paces, (item_Q, x_QF) = Paces(16, torch.zeros(8)), random_batch(0)
    paces.known.fill_(1e9)
    click_Q = (torch.arange(400) % 3 == 0).float()
    for _ in range(10):
        paces.information.zero_()
        before_PF = paces.weight.clone()
        paces.correct(item_Q, x_QF, torch.zeros(400), click_Q, torch.ones(400), SPREAD)
        precision_PFF = paces.information + (CALM * SPREAD) ** -2 * torch.eye(8)
        paces.weight -= torch.linalg.solve(precision_PFF, before_PF / (CALM * SPREAD) ** 2)
    slope_PF = (click_Q - (paces.weight @ x_QF.T).sigmoid()) @ x_QF - paces.weight / (CALM * SPREAD) ** 2
    assert float(slope_PF.abs().max()) < 1e-3


def test_the_first_clicks_of_an_item_move_it_far_and_the_later_ones_little() -> None:
    paces, moves = Paces(4, torch.zeros(8)), []
    for _ in range(20):
        before = float(paces.bias[1, 0])
        paces.correct(torch.tensor([1]), torch.zeros(1, 8), torch.zeros(1), torch.ones(1), torch.ones(1), SPREAD)
        moves.append(float(paces.bias[1, 0]) - before)
    assert moves[0] == pytest.approx(0.5 / (SPREAD**-2 + 0.25))
    assert moves[0] > 2 * moves[5] > 2 * moves[19] > 0
    paces.evict(torch.tensor([1]))
    assert not paces.bias[1].any()
    assert not paces.known[1].any()


def test_features_tell_of_what_was_never_shown() -> None:
    paces, (item_Q, x_QF) = Paces(16, torch.zeros(8)), random_batch(1)
    liked_Q = (3 * x_QF[:, 0]).sigmoid()
    for _ in range(20):
        paces.correct(item_Q, x_QF, torch.zeros(400), liked_Q, torch.ones(400), SPREAD)
    _, unseen_QF = random_batch(2)
    found_Q = unseen_QF @ paces.weight[-1]
    assert float(torch.corrcoef(torch.stack([found_Q, unseen_QF[:, 0]]))[0, 1]) > 0.9


def test_what_the_items_may_explain_is_not_all_for_the_features() -> None:
    """Where items are well known, the same surprise moves the features' weights further."""
    moves = []
    for known in (0.0, 1000.0):
        paces, (item_Q, x_QF) = Paces(16, torch.zeros(8)), random_batch(3)
        paces.known.fill_(known)
        paces.correct(item_Q, x_QF, torch.zeros(400), (x_QF[:, 0] > 0).float(), torch.ones(400), SPREAD)
        moves.append(float(paces.weight[0].norm()))
    assert moves[1] > moves[0] > 0


@pytest.mark.parametrize("moves_every", [60, 10_000])
def test_the_pace_that_fits_the_world_is_believed(moves_every: int) -> None:
    """An item whose worth turns round every hour wants to be forgotten; one whose worth stays does not."""
    random, paces = torch.Generator().manual_seed(4), Paces(4, torch.zeros(8))
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
    paces, (item_Q, x_QF) = Paces(16, torch.zeros(8)), random_batch(5)
    paces.correct(item_Q, x_QF, torch.zeros(400), (item_Q > 4).float(), torch.ones(400), SPREAD)
    before = paces.bias.clone()
    paces.grow(32)
    assert torch.equal(paces.bias[:16], before)
    assert not paces.bias[16:].any()
    assert paces.known.shape == (32, len(KEEPS))


@pytest.mark.parametrize("lowest", [1.0, -0.01])
def test_equations_are_solved_even_where_rounding_left_an_eigenvalue_below_zero(lowest: float) -> None:
    random = torch.Generator().manual_seed(0)
    axes_PFF, _ = torch.linalg.qr(torch.randn(3, 9, 9, generator=random, dtype=torch.float64))
    sizes_PF = torch.logspace(0, 3, 9, dtype=torch.float64).repeat(3, 1)
    sizes_PF[1, 0] = lowest
    wanted_PF = torch.randn(3, 9, generator=random, dtype=torch.float64)
    matrix_PFF = axes_PFF * sizes_PF[:, None] @ axes_PFF.mT
    found_PF = solved(matrix_PFF, (matrix_PFF @ wanted_PF[..., None])[..., 0])
    assert (found_PF - wanted_PF).abs().max() < 1e-9
