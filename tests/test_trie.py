"""The tree in flat arrays against a dictionary from each id to its item."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generate import LEVELS, as_rows, random_ids, random_legal

from models.trie import Legal, Trie

EXAMPLES = settings(max_examples=60, deadline=None)

seeds = st.integers(0, 2**32 - 1)
levels_of_ids = st.sampled_from(LEVELS)
Ids = list[tuple[int, ...]]


def random_tree(seed: int, levels: int, num_items: int) -> tuple[Ids, np.ndarray, Trie]:
    random = np.random.default_rng(seed)
    ids_NK, retired_N = random_ids(random, num_items, levels, 3), random.random(num_items) < 0.3
    return list(map(tuple, ids_NK.tolist())), np.concatenate([[False], ~retired_N]), Trie.built(ids_NK, retired_N)


def nodes(ids: Ids, trie: Trie, level: int) -> list[tuple[int, ...]]:
    """The prefixes of a level in order: node n of the level is the n-th of them."""
    assert level <= trie.levels
    return sorted({id_[:level] for id_ in ids})


def beneath(ids: Ids, prefix: tuple[int, ...]) -> list[int]:
    """Rows of the items whose id begins with `prefix`."""
    return [row for row, id_ in enumerate(ids, 1) if id_[: len(prefix)] == prefix]


@EXAMPLES
@given(seeds, levels_of_ids, st.integers(0, 40))
def test_children_codes_leaves_and_paths_are_those_of_the_ids(seed: int, levels: int, num_items: int) -> None:
    ids, alive_R, trie = random_tree(seed, levels, num_items)
    assert (trie.levels, trie.num_items) == (levels, num_items)
    assert [ids[row - 1] for row in trie.item_of_leaf] == sorted(ids)
    for level in range(levels):
        parents, children = (nodes(ids, trie, level) if level else [()]), nodes(ids, trie, level + 1)
        assert len(trie.starts[level]) == len(parents) + 1
        for node, prefix in enumerate(parents):
            places = range(trie.starts[level][node], trie.starts[level][node + 1])
            assert [children[place] for place in places] == [child for child in children if child[:level] == prefix]
        assert trie.codes[level].tolist() == [child[-1] for child in children]
        assert trie.live[level].tolist() == [int(alive_R[beneath(ids, child)].sum()) for child in children]
        assert trie.path_NK[:, level].tolist() == [-1] + [children.index(id_[: level + 1]) for id_ in ids]


@EXAMPLES
@given(seeds, levels_of_ids, st.integers(1, 40))
def test_children_of_several_nodes_are_padded_to_the_widest(seed: int, levels: int, num_items: int) -> None:
    ids, _, trie = random_tree(seed, levels, num_items)
    for level in range(levels):
        parents, children = (nodes(ids, trie, level) if level else [()]), nodes(ids, trie, level + 1)
        place_BC, real_BC = trie.children(np.arange(len(parents)), level)
        for prefix, places, real in zip(parents, place_BC, real_BC, strict=True):
            assert [children[place] for place in places[real]] == [child for child in children if child[:level] == prefix]
            assert 0 <= places.min() <= places.max() < len(children)
        assert real_BC.any(0).all()


@EXAMPLES
@given(seeds, levels_of_ids, st.integers(1, 40))
def test_live_leaves_are_the_legal_items_under_each_child(seed: int, levels: int, num_items: int) -> None:
    ids, alive_R, trie = random_tree(seed, levels, num_items)
    random = np.random.default_rng([seed, 1])
    legal, legal_BR = random_legal(random, 6, alive_R)
    assert legal.total(trie).tolist() == legal_BR.sum(1).tolist()
    for level in range(levels):
        children = nodes(ids, trie, level + 1)
        node_B = random.integers(0, len(trie.starts[level]) - 1, 6)
        place_BC, real_BC = trie.children(node_B, level)
        count_BC = legal.live_leaves(trie, node_B, place_BC, real_BC, level)
        for at in range(6):
            expected = [int(legal_BR[at, beneath(ids, children[place])].sum()) for place in place_BC[at, real_BC[at]]]
            assert count_BC[at, real_BC[at]].tolist() == expected
            assert not count_BC[at, ~real_BC[at]].any()


def test_without_a_limit_all_that_is_alive_is_legal() -> None:
    _, alive_R, trie = random_tree(3, 2, 20)
    before = [live.copy() for live in trie.live]
    dead_and_alive = Legal(as_rows([np.zeros(0, np.int64), np.flatnonzero(alive_R)[:2]]))
    assert dead_and_alive.total(trie).tolist() == [alive_R.sum(), alive_R.sum() - 2]
    place_BC, real_BC = trie.children(np.zeros(2, np.int64), 0)
    count_BC = dead_and_alive.live_leaves(trie, np.zeros(2, np.int64), place_BC, real_BC, 0)
    assert count_BC.sum(1).tolist() == [alive_R.sum(), alive_R.sum() - 2]
    assert all((old == new).all() for old, new in zip(before, trie.live, strict=True))


@pytest.mark.parametrize("levels", LEVELS)
def test_appended_items_move_no_leaf_relative_to_another(levels: int) -> None:
    """Grown by a fifth: the old items stand in the old order, under the same codes."""
    ids_NK = random_ids(np.random.default_rng(levels), 50, levels, 3)
    small, grown = (Trie.built(ids_NK[:count], np.zeros(count, bool)) for count in (40, 50))
    assert [row for row in grown.item_of_leaf if row <= 40] == small.item_of_leaf.tolist()
    for level in range(levels):
        assert (grown.codes[level][grown.path_NK[1:41, level]] == small.codes[level][small.path_NK[1:41, level]]).all()
