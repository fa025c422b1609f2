"""What followed what: counts that can be made in any order, frozen to the most frequent, and found again by a memory."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.successors import ACT, LAG_WEIGHTS, MOST, SOURCES, SuccessorCounts, Successors, newest_acts, sequence_pairs

pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 4)), max_size=40)


def counted(some: list[tuple[int, int, int]], chunks: int = 1) -> SuccessorCounts:
    counts = SuccessorCounts()
    for part in np.array_split(np.array(some, np.int64).reshape(-1, 3), chunks):
        counts.add(part[:, 0], part[:, 1], part[:, 2].astype(np.float32))
    return counts


@settings(max_examples=60, deadline=None, derandomize=True)
@given(pairs, st.integers(1, 5))
def test_counts_are_sums_and_do_not_depend_on_how_they_came(some: list[tuple[int, int, int]], chunks: int) -> None:
    expected: Counter[tuple[int, int]] = Counter()
    for source, row, weight in some:
        if source and row and source != row:
            expected[source, row] += weight
    found = counted(some, chunks)
    keys = [(int(key) >> 32, int(key) & 0xFFFFFFFF) for key in found.key_P]
    assert dict(zip(keys, found.count_P.tolist(), strict=True)) == expected
    assert keys == sorted(keys)
    frozen = found.frozen(7)
    for source in range(7):
        rows, strength = frozen.of(np.array([source]))
        there = {int(row): float(value) for row, value in zip(rows[0], strength[0], strict=True) if row}
        assert there == pytest.approx({row: np.log1p(2 * weight) for (origin, row), weight in expected.items() if origin == source})


def test_the_most_frequent_are_kept_and_come_first() -> None:
    counts = SuccessorCounts()
    rows = np.arange(2, MOST + 12)
    counts.add(np.ones(len(rows), np.int64), rows, rows.astype(np.float32))
    kept, strength = counts.frozen(200).of(np.array([[1]]))
    assert kept[0, 0].tolist() == rows[::-1][:MOST].tolist()
    assert (np.diff(strength[0, 0]) < 0).all()


def test_what_fades_away_is_gone() -> None:
    counts = counted([(1, 2, 4), (1, 3, 1)])
    counts.fade(0.5)
    assert counts.count_P.tolist() == [2, 0.5]
    counts.fade(0.015)
    assert counts.key_P.tolist() == [(1 << 32) | 2]


def test_unknown_sources_have_none() -> None:
    frozen = counted([(1, 2, 1)]).frozen(3)
    for source in (0, 2, 3, 99):
        assert not frozen.of(np.array([source]))[1].any()
    assert Successors.none().of(np.array([[1, 2]]))[0].shape == (1, 2, 0)


def test_pairs_of_a_sequence_weigh_less_the_further_apart_they_are() -> None:
    source_P, row_P, weight_P = sequence_pairs(np.array([5, 6, 7, 8, 9]))
    assert sorted(zip(source_P.tolist(), row_P.tolist(), weight_P.tolist(), strict=True)) == sorted(
        (5 + at, 5 + at + lag, LAG_WEIGHTS[lag - 1]) for lag in (1, 2, 3) for at in range(5 - lag)
    )
    assert all(len(part) == 0 for part in sequence_pairs(np.array([5])))


def test_the_newest_acts_are_found_and_nothing_else() -> None:
    item_BL = np.array([[1, 2, 3, 4, 5, 6], [0, 0, 7, 0, 8, 9]])
    kind_BL = np.array([[ACT, ACT, 1, ACT, ACT + 1, 1], [0, 0, 1, ACT, ACT, 1]])
    assert newest_acts(item_BL, kind_BL).tolist() == [[4, 3, 1], [4, -1, -1]]
    assert SOURCES == 3
