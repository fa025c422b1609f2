"""The tree in flat arrays against a dictionary from each id to its item."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generate import LEVELS, NOTHING, random_ids, random_legal

from models.content import normalize
from models.tokenizer import Tokenizer, TokenizerConfig
from models.trie import Legal, Trie, common

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
        if level + 1 < levels:
            assert trie.codes[level].tolist() == [child[-1] for child in children]
            leaves = [sorted(ids).index(min(ids[row - 1] for row in beneath(ids, child))) for child in children]
            assert trie.first_leaf[level + 1].tolist() == [*leaves, num_items]
        assert trie.child_over(trie.leaf_of_item, level).tolist() == [-1] + [children.index(id_[: level + 1]) for id_ in ids]
    alive_F = alive_R[trie.item_of_leaf]
    assert trie.alive_before.tolist() == [int(alive_F[:leaf].sum()) for leaf in range(num_items + 1)]
    assert trie.live_leaves(np.array([3, 1, 1, 0, 99])).tolist() == [
        leaf for leaf, row in enumerate(trie.item_of_leaf) if row in {1, 3} and alive_R[row]
    ]


@EXAMPLES
@given(seeds, levels_of_ids, st.integers(1, 40))
def test_children_of_several_nodes_are_padded_to_the_widest(seed: int, levels: int, num_items: int) -> None:
    ids, _, trie = random_tree(seed, levels, num_items)
    for level in range(levels):
        parents, children = (nodes(ids, trie, level) if level else [()]), nodes(ids, trie, level + 1)
        found = trie.children(np.arange(len(parents)), level)
        place_BC, size_B = found.of(np.arange(len(children))), found.end_Q - found.start_Q
        for prefix, places, size in zip(parents, place_BC, size_B, strict=True):
            assert [children[place] for place in places[:size]] == [child for child in children if child[:level] == prefix]
            assert 0 <= places.min() <= places.max() < len(children)
        assert place_BC.shape == (len(parents), size_B.max())
        num_leaves_BC = np.diff(found.bound_QX)
        for at in range(len(parents)):
            assert num_leaves_BC[at, : size_B[at]].tolist() == [len(beneath(ids, children[place])) for place in place_BC[at, : size_B[at]]]
            assert not num_leaves_BC[at, size_B[at] :].any()


@EXAMPLES
@given(seeds, levels_of_ids, st.integers(1, 40))
def test_what_is_counted_is_the_legal_items_under_each_child(seed: int, levels: int, num_items: int) -> None:
    """With lists and without, before and after some leaves of each walk were chosen, walks in any order."""
    ids, alive_R, trie = random_tree(seed, levels, num_items)
    random = np.random.default_rng([seed, 1])
    legal, legal_BR = random_legal(random, 6, trie, alive_R)
    of_Q = random.integers(0, 6, 8)
    legal, legal_QR = legal.at(of_Q), legal_BR[of_Q]
    for _ in range(3):
        assert legal.total().tolist() == legal_QR.sum(1).tolist()
        for level in range(levels):
            children = nodes(ids, trie, level + 1)
            found = trie.children(random.integers(0, len(trie.starts[level]) - 1, 8), level)
            place_QC, count_QC = found.of(np.arange(len(children))), legal.count(found.bound_QX)
            for at, size in enumerate(found.end_Q - found.start_Q):
                expected = [int(legal_QR[at, beneath(ids, children[place])].sum()) for place in place_QC[at, :size]]
                assert count_QC[at, :size].tolist() == expected
                assert not count_QC[at, size:].any()
        chosen = [random.permutation(np.flatnonzero(legal_R)) for legal_R in legal_QR]
        chosen_Q2 = np.array([[*rows[:2], 0, 0][:2] for rows in chosen])
        legal = legal.without(trie.leaf_of_item[chosen_Q2])
        legal_QR = legal_QR & (np.arange(num_items + 1) != chosen_Q2[:, :1]) & (np.arange(num_items + 1) != chosen_Q2[:, 1:])


def test_without_a_limit_all_that_is_alive_is_legal() -> None:
    _, alive_R, trie = random_tree(3, 2, 20)
    legal = Legal.of(trie, [NOTHING, trie.live_leaves(np.flatnonzero(alive_R)[:2])], [None, None])
    assert legal.total().tolist() == [alive_R.sum(), alive_R.sum() - 2]
    children = trie.children(np.zeros(1, np.int64), 0)
    assert legal.count(children.bound_QX).sum(1).tolist() == [alive_R.sum(), alive_R.sum() - 2]


@EXAMPLES
@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)))
def test_what_is_common_stands_in_both_lists(first: set[int], second: set[int]) -> None:
    lists = [np.array(sorted(numbers), np.int64) for numbers in (first, second)]
    assert common(*lists).tolist() == sorted(first & second)


@EXAMPLES
@given(seeds, levels_of_ids, st.integers(0, 40))
def test_a_tree_of_its_arrays_is_the_same_tree(seed: int, levels: int, num_items: int) -> None:
    _, _, trie = random_tree(seed, levels, num_items)
    again = Trie.of_tensors(trie.tensors(), levels)
    for name in ("first_leaf", "starts", "codes"):
        assert [array.tobytes() for array in getattr(trie, name)] == [array.tobytes() for array in getattr(again, name)]
    for name in ("item_of_leaf", "leaf_of_item", "alive_before"):
        assert getattr(trie, name).tobytes() == getattr(again, name).tobytes()


def test_an_item_costs_at_most_16_bytes() -> None:
    ids_NK = np.random.default_rng(0).integers(0, 8, (200_000, 3)).astype(np.int32)
    assert Trie.built(ids_NK, np.zeros(200_000, bool)).num_bytes <= 16 * 200_000


@pytest.mark.parametrize("levels", LEVELS)
def test_appended_items_move_no_leaf_relative_to_another(levels: int) -> None:
    """Grown by a fifth: the old items stand in the old order, under the same codes."""
    ids_NK = random_ids(np.random.default_rng(levels), 50, levels, 3)
    small, grown = (Trie.built(ids_NK[:count], np.zeros(count, bool)) for count in (40, 50))
    assert [row for row in grown.item_of_leaf if row <= 40] == small.item_of_leaf.tolist()
    for level in range(levels - 1):
        there, here = (tree.codes[level][tree.child_over(tree.leaf_of_item[1:41], level)] for tree in (grown, small))
        assert (there == here).all()


def test_what_a_node_stands_for_is_near_what_lies_under_it_and_stays_when_items_come() -> None:
    """Centroids of k-means are means: of one level exactly those of what it was built on; deeper ones nearer than their parents'."""
    random = np.random.default_rng(7)
    groups = random.standard_normal((6, 1, 8)) + 0.6 * random.standard_normal((6, 5, 8))
    vectors_NC = normalize((groups[:, :, None] + 0.3 * random.standard_normal((6, 5, 30, 8))).reshape(-1, 8).astype(np.float32))
    tokenizer = Tokenizer.built(TokenizerConfig(levels=3, codes=6, content_dim=8, iterations=100), vectors_NC)
    trie = Trie.built(tokenizer.ids_NK, np.zeros(len(vectors_NC), bool))
    sorted_NC = vectors_NC[trie.item_of_leaf - 1]
    contents = trie.contents(tokenizer.centroids, sorted_NC)
    means = [np.add.reduceat(sorted_NC, first[:-1]) / np.diff(first)[:, None] for first in trie.first_leaf[1:]]
    assert contents[0] == pytest.approx(means[0], abs=1e-5)
    far, near = ((mean_PC - means[1]) ** 2 for mean_PC in (contents[0][trie.child_over(trie.first_leaf[2][:-1], 0)], contents[1]))
    assert near.sum() < 0.5 * far.sum()
    vectors_NC = np.concatenate([vectors_NC, normalize(random.standard_normal((100, 8)).astype(np.float32))])
    tokenizer.append(vectors_NC[-100:])
    grown = Trie.built(tokenizer.ids_NK, np.zeros(len(tokenizer.ids_NK), bool))
    for level, content_PC in enumerate(grown.contents(tokenizer.centroids, vectors_NC[grown.item_of_leaf - 1])):
        place_P = grown.child_over(grown.leaf_of_item[trie.item_of_leaf[trie.first_leaf[level + 1][:-1]]], level)
        assert np.array_equal(content_PC[place_P], contents[level])


@pytest.mark.parametrize("levels", LEVELS)
def test_siblings_are_all_under_the_last_node_above_and_nobody_has_none(levels: int) -> None:
    ids_NK = random_ids(np.random.default_rng(levels), 30, levels, 3)
    trie = Trie.built(ids_NK, np.zeros(30, bool))
    for rows in ([], [0], [7], [3, 0, 20, 3]):
        found = trie.siblings(np.array(rows, np.int64))
        prefixes = {tuple(ids_NK[row - 1, :-1]) for row in rows if row}
        assert sorted(found) == [row for row in range(1, 31) if tuple(ids_NK[row - 1, :-1]) in prefixes]
