"""The form between users and contents: whom it counts, that its steps end where a logistic regression does, and what they leave alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.affinity import LOUDNESS, Affinity, row_weights

SHOWN, CLICK = 1, 2
SPREAD = 0.7


def test_what_was_taken_and_what_was_left_by_hand() -> None:
    """A blank, an item shown and left, one shown and clicked, one unknown here, one shown and clicked later, and one left."""
    item_BL = np.array([[0, 5, 6, 6, 0, 7, 7, 8]])
    kind_BL = np.array([[0, SHOWN, SHOWN, CLICK, SHOWN, SHOWN, CLICK, SHOWN]])
    [took_L, left_L] = row_weights(item_BL, kind_BL)[0] / LOUDNESS
    assert took_L.tolist() == [0, 0, 0, 0.5, 0, 0, 0.5, 0]
    assert left_L.tolist() == [0, 0.5, 0, 0, 0, 0, 0, 0.5]
    assert not row_weights(np.zeros((1, 4), np.int64), np.zeros((1, 4), np.int64)).any()


def random_batch(seed: int, size: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    standing_QZ = F.pad(torch.randn(size, 16, generator=random), (1, 0), value=1.0)
    return standing_QZ, F.normalize(torch.randn(size, 24, generator=random))


def test_steps_end_at_the_mode_of_a_logistic_regression() -> None:
    """Told of the same clicks again and again, each time as if for the first: where the gradient of the log posterior is 0."""
    affinity, (standing_QZ, content_QC) = Affinity(24), random_batch(0)
    click_Q = (torch.arange(400) % 3 == 0).float()
    for _ in range(8):
        affinity.information.zero_()
        chance_Q = affinity(standing_QZ, content_QC).sigmoid()
        error_Q, information_Q = click_Q - chance_Q, chance_Q * (1 - chance_Q)
        start = affinity.weight.clone()
        affinity.correct(standing_QZ, content_QC, error_Q, information_Q, torch.zeros(400), SPREAD)
        # the prior is round 0: the step that the posterior asks for is shorter by what the present weights weigh
        pull = torch.linalg.solve(affinity.information + SPREAD**-2 * torch.eye(affinity.information.shape[0]), start.flatten()) / SPREAD**2
        affinity.weight -= pull.view_as(start)
    pair_QP = (standing_QZ[:, :, None] * content_QC[:, None, :16]).flatten(1)
    slope_P = pair_QP.T @ (click_Q - affinity(standing_QZ, content_QC).sigmoid()) - affinity.weight.flatten() / SPREAD**2
    assert float(slope_P.abs().max()) < 1e-3


def test_it_learns_for_items_that_were_never_shown() -> None:
    """Whoever took one side of content likes it: after 400 clicks that holds for contents that nobody saw."""
    affinity, (standing_QZ, content_QC) = Affinity(24), random_batch(1)
    standing_QZ[:, 2:] *= 0.1
    liked_Q = (3 * standing_QZ[:, 1] * content_QC[:, 0]).sigmoid()
    for _ in range(20):
        chance_Q = affinity(standing_QZ, content_QC).sigmoid()
        affinity.correct(standing_QZ, content_QC, liked_Q - chance_Q, chance_Q * (1 - chance_Q), torch.zeros(400), SPREAD)
    unseen_QZ, unseen_QC = random_batch(2)
    found_Q, true_Q = affinity(unseen_QZ, unseen_QC), 3 * unseen_QZ[:, 1] * unseen_QC[:, 0]
    assert float(torch.corrcoef(torch.stack([found_Q, true_Q]))[0, 1]) > 0.9


def test_what_items_may_explain_is_not_all_its_own() -> None:
    """The more there is to learn of the items themselves, the less a minute moves what all share; it tells by how much it did."""
    moves = []
    for doubt in (0.0, 1.0, 100.0):
        affinity, (standing_QZ, content_QC) = Affinity(24), random_batch(3)
        before_Q = affinity(standing_QZ, content_QC)
        moved_Q = affinity.correct(
            standing_QZ, content_QC, torch.full((400,), 0.3), torch.full((400,), 0.2), torch.full((400,), doubt), SPREAD
        )
        assert moved_Q.tolist() == pytest.approx((affinity(standing_QZ, content_QC) - before_Q).tolist(), abs=1e-5)
        moves.append(float(moved_Q.abs().mean()))
    assert moves[0] > moves[1] > moves[2] > 0


def test_short_contents_are_read_whole() -> None:
    affinity = Affinity(8)
    standing_BZ = affinity.standing(np.array([[1, 1]]), np.array([[SHOWN, CLICK]]), torch.ones(1, 2, 8))
    assert standing_BZ.tolist() == [[1.0, *[LOUDNESS] * 8, *[0.0] * 8]]
    assert affinity(standing_BZ, torch.ones(1, 8)).tolist() == [0.0]
    assert affinity.suited(np.array([[1, 1]]), np.array([[SHOWN, CLICK]]), torch.ones(1, 2, 8)).shape == (1, 8)
