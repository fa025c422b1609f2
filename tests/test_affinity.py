"""The form between users and contents: whom it counts, and what it makes of them."""

import numpy as np
import pytest
import torch

from models.affinity import FEW, LOUDNESS, Affinity, row_weights

SHOWN, CLICK, DISLIKE = 1, 2, 5


def test_what_was_taken_and_what_was_left_by_hand() -> None:
    """A blank, an item shown and left, one shown and clicked, one unknown here, one shown and clicked later, and one left."""
    item_BL = np.array([[0, 5, 6, 6, 0, 7, 7, 8]])
    kind_BL = np.array([[0, SHOWN, SHOWN, CLICK, SHOWN, SHOWN, CLICK, SHOWN]])
    [took_L, left_L] = row_weights(item_BL, kind_BL, ())[0] * (2 + FEW) / LOUDNESS
    assert took_L.tolist() == pytest.approx([0, 0, 0, 1, 0, 0, 1, 0])
    assert left_L.tolist() == pytest.approx([0, 1, 0, 0, 0, 0, 0, 1])
    assert not row_weights(np.zeros((1, 4), np.int64), np.zeros((1, 4), np.int64), ()).any()


def test_a_dislike_speaks_against_its_item_whatever_was_clicked() -> None:
    """Clicked and then disliked, disliked unseen, clicked; another user's dislike of the same item changes nothing."""
    item_BL = np.array([[5, 5, 5, 6, 7, 7], [0, 0, 0, 0, 7, 7]])
    kind_BL = np.array([[SHOWN, CLICK, DISLIKE, DISLIKE, SHOWN, CLICK], [0, 0, 0, 0, SHOWN, DISLIKE]])
    [took_L, left_L], [nothing_L, disliked_L] = row_weights(item_BL, kind_BL, [DISLIKE]) / LOUDNESS
    assert took_L.tolist() == pytest.approx([0, 0, 0, 0, 0, 1 / (1 + FEW)])
    assert left_L.tolist() == pytest.approx([*[1 / (4 + FEW)] * 4, 0, 0])
    assert not nothing_L.any()
    assert disliked_L.tolist() == pytest.approx([0, 0, 0, 0, *[1 / (2 + FEW)] * 2])


def test_pairs_weigh_as_the_form_does() -> None:
    random = torch.Generator().manual_seed(0)
    affinity, standing_QZ, content_QC = Affinity(24), torch.randn(5, 17, generator=random), torch.randn(5, 24, generator=random)
    affinity.weight.copy_(torch.randn(17, 16, generator=random))
    assert torch.allclose(affinity.pairs(standing_QZ, content_QC) @ affinity.weight.flatten(), affinity(standing_QZ, content_QC), atol=1e-4)


def test_short_contents_are_read_whole() -> None:
    affinity = Affinity(8)
    standing_BZ = affinity.standing(np.array([[1, 1]]), np.array([[SHOWN, CLICK]]), torch.ones(1, 2, 8))
    assert standing_BZ.tolist()[0] == pytest.approx([1.0, *[LOUDNESS / (1 + FEW)] * 8, *[0.0] * 8])
    assert affinity(standing_BZ, torch.ones(1, 8)).tolist() == [0.0]
    assert affinity.suited(np.array([[1, 1]]), np.array([[SHOWN, CLICK]]), torch.ones(1, 2, 8)).shape == (1, 8)
