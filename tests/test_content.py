"""The vector of an item: from what is known of it, the same a year later and on any machine."""

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from models.content import (
    ContentRule,
    ItemText,
    cooccurrence_vectors,
    first_vectors,
    normalize,
    projected,
    text_vectors,
    token_vector,
    tokens_of,
)

DIM = 32


def texts(count: int) -> list[ItemText]:
    return [ItemText(f"i{n}", title=f"Film number {n} of {n % 7}", attributes={"genre": f"g{n % 3}"}) for n in range(count)]


def given(count: int, length: int) -> list[ItemText]:
    random = np.random.default_rng(length)
    return [ItemText(f"e{length}.{n}", embedding=random.standard_normal(length).tolist()) for n in range(count)]


def likeness(rule: ContentRule, first: ItemText, second: ItemText) -> float:
    vectors = rule.vectors([first, second])
    return float(vectors[0] @ vectors[1])


def lengths(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors, axis=1)


def test_vectors_have_length_one_and_do_not_depend_on_who_else_is_asked_for() -> None:
    items = texts(20) + given(5, 16) + given(5, DIM) + given(5, 100)
    rule = ContentRule.fitted(items, DIM)
    vectors = rule.vectors(items)
    assert vectors.shape == (35, DIM)
    assert vectors.dtype == np.float32
    assert lengths(vectors) == pytest.approx(np.ones(35), abs=1e-5)
    backwards = rule.vectors(items[::-1])[::-1]
    assert backwards == pytest.approx(vectors, abs=1e-6)
    for at in (0, 20, 25, 30):
        assert rule.vectors([items[at]])[0] == pytest.approx(vectors[at], abs=1e-6)


def test_the_same_items_give_the_same_bytes() -> None:
    items = texts(10) + given(3, 16)
    assert ContentRule.fitted(items, DIM).vectors(items).tobytes() == ContentRule.fitted(items, DIM).vectors(items).tobytes()


def test_word_directions_are_what_they_were() -> None:
    """Pinned: another direction for a word would make every published id and weight mean something else."""
    assert token_vector("drama", 16).astype(int).tolist() == [1, 1, 1, 1, -1, -1, -1, 1] + [1] * 8
    wide = token_vector("drama", 1030)
    assert len(wide) == 1030
    assert set(wide) == {-1, 1}
    assert (wide[:16] == token_vector("drama", 16)).all()
    assert abs(float(wide @ token_vector("comedy", 1030))) < 150


@pytest.mark.parametrize(
    ("item", "tokens"),
    [
        (ItemText("a", "The Big-Sleep (1946)"), ["the", "big", "sleep", "1946"]),
        (ItemText("a", "Été", {"lang": "fr", "by": "X"}), ["été", "by=X", "lang=fr"]),
        (ItemText("a", "", {"lang": ""}), ["item_id=a"]),
        (ItemText("a", "", {"tag": ("b", "", "a"), "by": "X"}), ["by=X", "tag=b", "tag=a"]),
        (ItemText("a", "", {"tag": ()}), ["item_id=a"]),
        (ItemText("a", "—"), ["item_id=a"]),
        (ItemText("a", "", {"p": ("19.99", "16.01", "-.3", "1e-05", "1.51e1")}), ["p=2^4", "p=2^4", "p=-2^-2", "p=2^-17", "p=2^3"]),
        (ItemText("a", "", {"p": ("7", "7.0", "1.5e3", "2.5e999", "1e-999")}), ["p=7", "p=7.0", "p=1.5e3", "p=2.5e999", "p=1e-999"]),
        (ItemText("a", "", {"p": ("1.2.3", "1,5", "nan", "v1.5", "١.٥")}), ["p=1.2.3", "p=1,5", "p=nan", "p=v1.5", "p=2^0"]),
    ],
)
def test_tokens(item: ItemText, tokens: list[str]) -> None:
    assert tokens_of(item) == tokens


def test_what_shares_words_is_alike_and_what_does_not_is_not() -> None:
    items = [ItemText("a", "red running shoe"), ItemText("b", "blue running shoe"), ItemText("c", "garden hose")]
    rule = ContentRule.fitted([], 256)
    assert likeness(rule, items[0], items[1]) == pytest.approx(2 / 3, abs=0.15)
    assert likeness(rule, items[0], items[2]) == pytest.approx(0, abs=0.2)


def test_what_all_items_share_says_nothing() -> None:
    items = [ItemText(f"i{n}", f"the same words every time {n}") for n in range(40)]
    vectors = ContentRule.fitted(items, 256).vectors(items)
    assert abs(vectors @ vectors.T - np.eye(40)).mean() < 0.1


def test_items_of_which_nothing_is_known_have_vectors_of_their_own() -> None:
    unknown = [ItemText(f"i{n}") for n in range(3)]
    rule = ContentRule.fitted(texts(20), 256)
    vectors = rule.vectors(unknown)
    assert lengths(vectors) == pytest.approx(np.ones(3), abs=1e-5)
    assert (vectors[0] != vectors[1]).any()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_small_catalogues_have_a_rule(count: int) -> None:
    items = texts(count) + given(count, 16)
    rule = ContentRule.fitted(items, DIM)
    assert rule.vectors(items).shape == (2 * count, DIM)
    assert np.isfinite(rule.vectors(items + texts(5) + given(5, 3))).all()
    if count == 1:
        assert lengths(rule.vectors(items)) == pytest.approx(np.ones(2), abs=1e-5)


def test_items_all_alike_have_finite_vectors() -> None:
    items = [ItemText(f"i{n}", "same") for n in range(4)] + [ItemText(f"e{n}", embedding=[1.0, 2.0]) for n in range(4)]
    assert np.isfinite(ContentRule.fitted(items, DIM).vectors(items)).all()


def test_an_embedding_goes_before_text_and_its_length_does_not_matter() -> None:
    rule = ContentRule.fitted([], DIM)
    embedding = tuple(np.random.default_rng(1).standard_normal(100).tolist())
    with_title = ItemText("a", "some title", embedding=embedding)
    assert likeness(rule, with_title, ItemText("b", "another", embedding=embedding)) == pytest.approx(1, abs=1e-5)
    scaled = ItemText("c", embedding=[3 * x for x in embedding])
    assert likeness(rule, with_title, scaled) == pytest.approx(1, abs=1e-5)


def test_projection_keeps_angles_and_leaves_what_fits() -> None:
    random = np.random.default_rng(0)
    pair = normalize(random.standard_normal((2, 600)).astype(np.float32) + 0.5)
    small = normalize(projected(pair, 256))
    assert float(small[0] @ small[1]) == pytest.approx(float(pair[0] @ pair[1]), abs=0.2)
    assert projected(small, 256) is small


def test_a_row_of_zeros_stays_zero() -> None:
    assert normalize(np.array([[0, 0], [3, 4]], np.float32)).tolist() == [[0, 0], [pytest.approx(0.6), pytest.approx(0.8)]]


def test_text_vectors_are_sums_of_word_directions() -> None:
    vectors = text_vectors([ItemText("a", "red red shoe")], 64)
    assert vectors[0].tolist() == (2 * token_vector("red", 64) + token_vector("shoe", 64)).tolist()


def summed(items: list[ItemText], dim: int) -> np.ndarray:
    """The rule of text vectors, word by word."""
    rows = [np.sum([token_vector(token, dim) for token in tokens_of(item)], axis=0) for item in items]
    return np.array(rows, np.float32).reshape(-1, dim)


@settings(max_examples=30, deadline=None)
@drawn(st.lists(st.lists(st.sampled_from(["red", "shoe", "a", "é", "7"]), max_size=6), max_size=8), st.sampled_from([8, 600]))
def test_vectors_of_many_texts_are_the_sums_of_each(titles: list[list[str]], dim: int) -> None:
    items = [ItemText(f"i{n}", " ".join(words), {"tag": tuple(words[:2])}) for n, words in enumerate(titles)]
    vectors = text_vectors(items, dim)
    assert vectors.dtype == np.float32
    assert vectors.tobytes() == summed(items, dim).tobytes()


def test_an_item_of_which_nothing_is_known_is_as_those_it_occurs_with_say() -> None:
    """0 and 1 are bare and met the same two; 2 and 3 have titles; 4 is bare and met nobody."""
    items = [ItemText("0"), ItemText("1"), ItemText("2", "red shoe"), ItemText("3", "garden hose"), ItemText("4")]
    there = np.array([(0, 2), (0, 3), (1, 2), (1, 3)])
    content = ContentRule.fitted(items, 64)
    alone = content.vectors(items)
    vectors = first_vectors(content, items, np.concatenate([there, there[:, ::-1]]), seed=0)
    assert float(vectors[0] @ vectors[1]) == pytest.approx(1, abs=1e-5)
    assert vectors[2:].tobytes() == alone[2:].tobytes()
    assert first_vectors(content, items, there[:0], seed=0).tobytes() == alone.tobytes()


def test_items_with_the_same_neighbours_are_alike() -> None:
    """0 and 1 occur beside 2 and 3; 4 occurs beside 5."""
    pairs = [(a, b) for a in (0, 1) for b in (2, 3)] + [(4, 5)]
    both_orders = np.array(pairs + [(b, a) for a, b in pairs])
    vectors = normalize(cooccurrence_vectors(both_orders, num_items=7, dim=256, seed=1))
    assert float(vectors[0] @ vectors[1]) > 0.9
    assert abs(float(vectors[0] @ vectors[4])) < 0.3
    assert not vectors[6].any()
