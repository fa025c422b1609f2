"""Users as they were before the minutes in doubt: which rows go, and that the rest stands where it would have stood then."""

import numpy as np

from models.decoder import Context
from recsys.doubt import earlier

FEATURES = np.zeros((1, 1), np.int64)


def context(items: list[int], gaps: list[int]) -> Context:
    kinds = [int(item > 0) for item in items]
    return Context(*(np.array([row]) for row in (items, kinds, gaps)), FEATURES)


def test_the_rows_of_the_last_minutes_are_gone() -> None:
    """Gaps of 2^7 - 1 = 127 s and 2^3 - 1 = 7 s: the two newest rows are of the last minute, the next is 134 s older."""
    found = earlier(context([0, 1, 2, 3, 4], [0, 0, 7, 7, 3]), 60)
    assert found.item_BL.tolist() == [[0, 0, 0, 1, 2]]
    assert found.kind_BL.tolist() == [[0, 0, 0, 1, 1]]
    assert found.gap_BL.tolist() == [[0, 0, 0, 0, 7]]


def test_all_rows_may_go_and_no_seconds_take_none() -> None:
    rows = context([1, 2, 3], [0, 2, 2])
    assert not earlier(rows, 3600).kind_BL.any()
    assert earlier(rows, 0).item_BL.tolist() == rows.item_BL.tolist()
    assert earlier(context([0, 0], [0, 0]), 60).item_BL.tolist() == [[0, 0]]
