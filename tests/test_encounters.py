"""What a user's own rows say of the item that is asked about."""

import numpy as np
import pytest

from models.encounters import FEW, LOUDNESS, met, row_shares

SHOWN, CLICK = 1, 2
ITEM_BL = np.array([[0, 5, 6, 5, 0, 5], [0, 0, 0, 0, 0, 5]])
KIND_BL = np.array([[0, SHOWN, SHOWN, CLICK, SHOWN, SHOWN], [0, 0, 0, 0, 0, SHOWN]])


def test_rows_of_an_item_share_what_is_said_of_it() -> None:
    """A blank row and one of an item not known here say nothing; another user's rows of the same item do not count."""
    several, one = LOUDNESS / (3 + FEW), LOUDNESS / (1 + FEW)
    assert row_shares(ITEM_BL, KIND_BL) == pytest.approx(np.array([[0, several, one, several, 0, several], [0, 0, 0, 0, 0, one]]))
    assert not row_shares(np.zeros((1, 3), np.int64), np.zeros((1, 3), np.int64)).any()
    assert row_shares(np.zeros((2, 0), np.int64), np.zeros((2, 0), np.int64)).shape == (2, 0)


def test_an_item_is_met_by_kind_of_row() -> None:
    """Shown twice and clicked once; shown once, by another user; never met; and an item not known here, which nobody meets."""
    found = met(ITEM_BL, KIND_BL, np.array([0, 1, 1, 0]), np.array([5, 5, 6, 0]), num_kinds=4).numpy() / LOUDNESS
    assert found == pytest.approx(np.array([[0, 2 / (3 + FEW), 1 / (3 + FEW), 0], [0, 1 / (1 + FEW), 0, 0], [0] * 4, [0] * 4]))
