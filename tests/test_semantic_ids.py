"""The figures of ids, against the same counted by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.content import ItemText, normalize
from models.tokenizer import Tokenizer, TokenizerConfig
from recsys.semantic_ids import id_figures, known_by, neighbour_purity, sharing

NOBODY = np.zeros((0, 2), np.int64)


def catalogue(num_items: int) -> list[ItemText]:
    """Items of four genres."""
    return [ItemText(f"i{n}", f"film {n}", {"genre": f"g{n % 4}", "mood": (f"m{n % 4}", "any")}) for n in range(num_items)]


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("num_items", [1, 2, 9, 100])
def test_figures_of_a_catalogue(levels: int, num_items: int) -> None:
    found = id_figures(catalogue(num_items), NOBODY, TokenizerConfig(levels=levels, codes=8))
    assert len(found["levels"]) == levels
    for level in found["levels"][:-1]:
        assert 1 <= level["codes_used"] <= 8
        assert 0 <= level["entropy_bits"] <= np.log2(level["codes_used"]) + 1e-9
    assert found["collisions_after"] == 0
    assert 0 <= found["collisions_before"] <= num_items
    assert found["ids_unchanged_after_append"] == (1 if num_items > 1 else None)
    assert (found["neighbour_purity"] is None) == (num_items == 1)
    if levels == 1:
        assert found["levels"] == [{"codes_used": num_items, "entropy_bits": pytest.approx(np.log2(num_items))}]
        assert found["collisions_before"] == (num_items if num_items > 1 else 0)


def test_the_same_seed_gives_the_same_figures() -> None:
    items = catalogue(60)
    first, again = (id_figures(items, NOBODY, TokenizerConfig(levels=3, codes=8, seed=5)) for _ in range(2))
    assert first == again


def test_a_tokenizer_that_moved_an_id_would_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the first id to move at every append, 1 of the first 80 would not be where it was."""
    honest = Tokenizer.append

    def moving(self: Tokenizer, vectors_NC: np.ndarray) -> np.ndarray:
        ids_NK = honest(self, vectors_NC)
        self.ids_NK[0, -1] += 1_000
        return ids_NK

    monkeypatch.setattr(Tokenizer, "append", moving)
    assert id_figures(catalogue(100), NOBODY, TokenizerConfig())["ids_unchanged_after_append"] == pytest.approx(1 - 1 / 80)


def test_items_that_only_company_tells_apart_share_codes_with_their_company() -> None:
    """Two circles of ten bare items: with pairs the first code is the circle, without it is chance."""
    items = [ItemText(f"i{n}") for n in range(20)]
    pairs = np.array([(a, b) for a in range(20) for b in range(20) if a != b and a // 10 == b // 10])
    config = TokenizerConfig(codes=2)
    assert id_figures(items, pairs, config)["neighbour_purity"] > 0.85
    assert id_figures(items, NOBODY, config)["neighbour_purity"] < 0.75


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 40))
def test_purity_is_the_share_of_the_ten_nearest_others_with_the_same_code(seed: int, num_items: int) -> None:
    random = np.random.default_rng(seed)
    vectors = normalize(random.standard_normal((num_items, 8)).astype(np.float32))
    codes = random.integers(0, 3, num_items).astype(np.int32)
    shares = []
    for item in range(num_items):
        others = sorted(set(range(num_items)) - {item}, key=lambda other: -float(vectors[item] @ vectors[other]))[:10]
        shares.append(np.mean([codes[other] == codes[item] for other in others]))
    assert neighbour_purity(vectors, codes, seed) == pytest.approx(np.mean(shares))


def test_purity_of_many_items_is_taken_in_parts_and_over_some(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    vectors = normalize(random.standard_normal((300, 8)).astype(np.float32))
    codes = (vectors[:, 0] > 0).astype(np.int32)
    whole = neighbour_purity(vectors, codes, 0)
    monkeypatch.setattr("recsys.semantic_ids.SIMILARITIES_AT_ONCE", 1_000)
    assert neighbour_purity(vectors, codes, 0) == pytest.approx(whole)
    monkeypatch.setattr("recsys.semantic_ids.ITEMS_ASKED", 150)
    assert neighbour_purity(vectors, codes, 0) == pytest.approx(whole, abs=0.1)
    assert neighbour_purity(vectors, codes, 0) != neighbour_purity(vectors, codes, 1)


@pytest.mark.parametrize(
    ("codes", "number"),
    [([[1, 2], [1, 2], [1, 3]], 2), ([[1], [1], [1]], 3), ([[1], [2]], 0), (np.zeros((3, 0)), 3), (np.zeros((1, 0)), 0)],
)
def test_sharing_counts_every_item_that_is_not_alone(codes: list[list[int]], number: int) -> None:
    assert sharing(np.array(codes, np.int32)) == number


def test_items_are_known_by_the_first_thing_they_have() -> None:
    items = [ItemText("a", "x", embedding=(1.0,)), ItemText("b", "x"), ItemText("c", "", {"k": "v"}), ItemText("d")]
    assert known_by(items) == {"embedding": 1, "text": 2, "id": 1}
