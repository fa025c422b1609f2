"""What memory adds to logits, by hand: what was in a user's memory before is likelier or rarer by what was learned of its kind and age."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_generate import (
    LEVELS,
    Model,
    Requests,
    freed,
    one_request,
    random_ids,
    random_model,
    scores,
)

from models.decoder import Context
from models.remembered import age_buckets
from models.successors import SuccessorCounts, Successors
from models.trie import Trie
from models.walk import Rule


def test_ages_are_counted_from_the_newest_row() -> None:
    assert age_buckets(9).tolist() == [6, 6, 6, 5, 5, 4, 3, 2, 0]
    assert age_buckets(0).tolist() == []
    assert age_buckets(4096).max() == 15


def probabilities(model: Model, request: Requests) -> np.ndarray:
    """π of every item in the first slot, (N,)."""
    rows = np.arange(1, len(model.alive_R))
    at_Q, item_BS = np.zeros(len(rows), np.int64), np.zeros((1, 1), np.int64)
    with torch.no_grad():
        return scores(model, request, item_BS, at_Q, at_Q, rows).exp().numpy()


def followed(model: Model, row: int) -> float:
    """How often anything followed an item."""
    counts = model.successors
    return float(counts.count_P[counts.start_R[row] : counts.start_R[row + 1]].sum())


@pytest.mark.parametrize("levels", LEVELS)
def test_every_level_is_moved_by_what_lies_under_each_child(levels: int) -> None:
    """From the probabilities without repeats, those with them: each child's odds times exp(sum / temperature), level by level."""
    num_items, temperature = 12, 0.7
    ids_NK = random_ids(np.random.default_rng(levels), num_items, levels, 2)
    model = replace(random_model(levels, levels, num_items, codes=2, retired=0), trie=Trie.built(ids_NK, np.zeros(num_items, bool)))
    ids = list(map(tuple, ids_NK.tolist()))
    item_L, kind_L = np.array([3, 0, 5, 3, 7, 3, 12, 12]), np.array([0, 2, 4, 1, 5, 2, 3, 3])  # a blank row, one not known, two alike
    columns = (item_L[None], kind_L[None], np.zeros((1, 8), np.int64), np.zeros((1, 1), np.int64))
    rule = Rule(*(np.array([value], np.float32) for value in (temperature, 0.0, 0.0, 0.0)))
    request = replace(freed(one_request(0, model, 1, (1, 0, 0, 0.0)), model), context=Context(*columns), rule=rule)
    learned = [model.decoder.repeat, model.decoder.silence.repeat]
    repeat, silent = (weights.detach().clone() for weights in learned)
    with torch.no_grad():
        for weights in learned:
            weights.zero_()
        before = probabilities(model, request)
        for weights, values in zip(learned, (repeat, silent), strict=True):
            weights.copy_(values)

    def under(prefix: tuple[int, ...]) -> list[int]:
        return [place for place, id_ in enumerate(ids) if id_[: len(prefix)] == prefix]

    moved: dict[tuple[int, ...], float] = defaultdict(float)
    for item, kind, age in zip(item_L, kind_L, age_buckets(8), strict=True):
        if item and kind:
            for level in range(levels):
                number = repeat[level, kind, age] + silent[level, kind, age] / (1 + followed(model, item) / 8)
                moved[ids[item - 1][: level + 1]] += 10 * float(number)
    expected = np.ones(num_items)
    for level in range(levels):
        for parent in {id_[:level] for id_ in ids}:
            children = sorted({id_[: level + 1] for id_ in ids if id_[:level] == parent})
            odds = [before[under(child)].sum() * np.exp(moved[child] / temperature) for child in children]
            for child, weight in zip(children, odds, strict=True):
                expected[under(child)] *= weight / sum(odds)
    assert probabilities(model, request) == pytest.approx(expected, abs=1e-5)
    assert np.abs(expected - before).max() > 0.005


def test_before_anything_is_learned_of_it_nothing_changes() -> None:
    decoder = random_model(1, levels=2, num_items=5).decoder
    fresh = type(decoder)(decoder.config, centroids=decoder.centroids, content_RC=decoder.content_RC, num_kinds=decoder.num_kinds)
    assert fresh.repeat.shape == (2, decoder.num_kinds, 16)
    assert not fresh.repeat.any()
    for weights in (fresh.repeat, fresh.follow, fresh.match):
        assert any(parameter is weights for parameter in fresh.head_parameters())


@pytest.mark.parametrize("levels", [1, 2])
def test_successors_and_likeness_add_what_the_counts_and_contents_say(levels: int) -> None:
    """From the probabilities without them, those with them: level by level, each child's odds times exp(all that is added)."""
    num_items = 9
    ids_NK = random_ids(np.random.default_rng(5), num_items, levels, 2)
    model = replace(random_model(3, levels, num_items, codes=2, retired=0), trie=Trie.built(ids_NK, np.zeros(num_items, bool)))
    item_L, kind_L = np.array([4, 2, 0, 6, 2]), np.array([2, 1, 0, 3, 2])
    columns = (item_L[None], kind_L[None], np.zeros((1, 5), np.int64), np.zeros((1, 1), np.int64))
    rule = Rule(*(np.array([value], np.float32) for value in (1.0, 0.0, 0.0, 0.0)))
    request = replace(freed(one_request(0, model, 1, (1, 0, 0, 0.0)), model), context=Context(*columns), rule=rule)
    decoder, content_NC = model.decoder, model.decoder.content_RC.numpy()[1 : num_items + 1]
    learned = [decoder.follow, decoder.match, decoder.silence.match, decoder.silence.follow]
    follow, match, silent, silent_follow = (10 * weights.detach().numpy().copy() for weights in learned)
    with torch.no_grad():
        for weights in learned:
            weights.zero_()
        before = probabilities(model, request)
        for weights, values in zip(learned, (follow, match, silent, silent_follow), strict=True):
            weights.copy_(torch.from_numpy(values / 10))
    ids, ages = list(map(tuple, ids_NK.tolist())), age_buckets(5)
    sources = [at for at in (4, 3, 0) if item_L[at]]  # the newest three that tell of an act

    def following(row: int) -> float:
        return float(model.successors.count_P[model.successors.row_P == row].sum())

    def content(prefix: tuple[int, ...]) -> np.ndarray:
        """Of one item its own, of a first code its centroid; else half of what codes make, half of the item that came first."""
        first = content_NC[[id_[: len(prefix)] for id_ in ids].index(prefix)]
        return first if len(prefix) == levels else made(prefix) if len(prefix) == 1 else (made(prefix) + first) / 2

    def made(prefix: tuple[int, ...]) -> np.ndarray:
        """What the centroids of the codes make, each as long as what those before it leave over."""
        left = [np.sqrt(max(1 - (of[code] ** 2).sum(), 0)) for of, code in zip(decoder.centroids, prefix[:-1], strict=False)]
        made_of = np.prod(left) * decoder.centroids[len(prefix) - 1][prefix[-1]]
        return made_of + (made(prefix[:-1]) if prefix[1:] else 0)

    def added(prefix: tuple[int, ...]) -> float:
        level, under = len(prefix) - 1, [place for place, id_ in enumerate(ids) if id_[: len(prefix)] == prefix]
        total = 0.0
        for at in range(5):
            if kind_L[at]:
                weight = match[level, kind_L[at], ages[at]] + silent[level, kind_L[at], ages[at]] / (1 + followed(model, item_L[at]) / 8)
                total += weight * float(content(prefix) @ content_NC[item_L[at] - 1])
        if level + 1 == levels:  # one item is under it
            total *= 1 + 10 * decoder.silence.loud.item() / (1 + following(under[0] + 1) / 3.5)
        for at in sources:
            rows, strengths = model.successors.of(np.array([item_L[at]]))
            there = [strength for row, strength in zip(rows[0], strengths[0], strict=True) if row and row - 1 in under]
            weight = follow[level, kind_L[at], ages[at]] + silent_follow[level, kind_L[at], ages[at]] / (
                1 + followed(model, item_L[at]) / 8
            )
            total += weight * float(sum(there))
        return total

    expected = np.ones(num_items)
    for level in range(levels):
        for parent in {id_[:level] for id_ in ids}:
            children = sorted({id_[: level + 1] for id_ in ids if id_[:level] == parent})
            under = [[place for place, id_ in enumerate(ids) if id_[: level + 1] == child] for child in children]
            odds = [before[places].sum() * np.exp(added(child)) for places, child in zip(under, children, strict=True)]
            for places, weight in zip(under, odds, strict=True):
                expected[places] *= weight / sum(odds)
    assert probabilities(model, request) == pytest.approx(expected, abs=1e-5)
    assert np.abs(expected - before).max() > 0.005


def test_a_state_says_less_where_little_is_known_of_what_follows_the_newest_act() -> None:
    """Softmax of the state's logits times exp(soft · silence); silence is 1 of what nothing ever followed, 0 without an act."""
    model = random_model(4, 1, 9, retired=0)
    decoder, unfollowed = model.decoder, int(np.flatnonzero(np.diff(model.successors.start_R)[1:] == 0)[0]) + 1
    with torch.no_grad():
        for weights in (decoder.repeat, decoder.follow, decoder.match, *decoder.silence.parameters(), decoder.leaf_bias):
            weights.zero_()
    for item, kind, silence in ((unfollowed, 2, 1.0), (unfollowed, 1, 0.0)):
        columns = (np.array([[item]]), np.array([[kind]]), np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64))
        rule = Rule(*(np.array([value], np.float32) for value in (1.0, 0.0, 0.0, 0.0)))
        request = replace(freed(one_request(0, model, 1, (1, 0, 0, 0.0)), model), context=Context(*columns), rule=rule)
        with torch.no_grad():
            decoder.silence.soft.fill_(0)
            expected = probabilities(model, request) ** np.exp(-0.7 * silence)
            decoder.silence.soft.fill_(-0.7)
        assert probabilities(model, request) == pytest.approx(expected / expected.sum(), abs=1e-5)


def test_silence_is_what_was_not_counted() -> None:
    counts = SuccessorCounts()
    counts.add(np.array([1, 1, 2]), np.array([2, 3, 3]), np.array([5.0, 3.0, 4.0], np.float32))
    frozen = counts.frozen(5)
    rows = np.array([[0, 1, 2], [3, 4, 9]])  # nothing, and two rows of which nothing was counted as sources
    assert frozen.unfollowed(rows) == pytest.approx(np.array([[1, 1 / 2, 2 / 3], [1, 1, 1]]))
    assert frozen.unmet(rows) == pytest.approx(np.array([[1, 1, 3.5 / 8.5], [1 / 3, 1, 1]]))
    assert Successors.none().unfollowed(rows).tolist() == np.ones((2, 3)).tolist()
