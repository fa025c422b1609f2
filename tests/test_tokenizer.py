"""Ids: the same on every run, never two alike, and never moved."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.content import normalize
from models.tokenizer import Tokenizer, TokenizerConfig

EXAMPLES = settings(max_examples=30, deadline=None)

seeds = st.integers(0, 2**32 - 1)
levels_of_ids = st.sampled_from([1, 2, 3, 4])
DIM = 8


def config_of(levels: int, codes: int = 16, seed: int = 0) -> TokenizerConfig:
    return TokenizerConfig(levels=levels, codes=codes, content_dim=DIM, iterations=5, seed=seed)


def random_vectors(seed: int, num_items: int) -> np.ndarray:
    """Unit vectors around a few centres, some of them alike, some with nothing known."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((5, DIM))
    vectors = centres[random.integers(0, 5, num_items)] + random.choice([0, 0.3], (num_items, 1)) * random.standard_normal((num_items, DIM))
    vectors[random.random(num_items) < 0.1] = 0
    return normalize(vectors.astype(np.float32))


def ids_of(tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    return list(map(tuple, tokenizer.ids_NK.tolist()))


@EXAMPLES
@given(seeds, levels_of_ids, st.one_of(st.sampled_from([1, 2, 9]), st.integers(1, 150)))
def test_ids_are_unique_and_suffixes_count_from_zero(seed: int, levels: int, num_items: int) -> None:
    tokenizer = Tokenizer.built(config_of(levels), random_vectors(seed, num_items))
    assert tokenizer.ids_NK.shape == (num_items, levels)
    assert len(set(ids_of(tokenizer))) == num_items
    arrived: dict[tuple[int, ...], int] = {}
    for *prefix, suffix in ids_of(tokenizer):
        assert suffix == arrived.get(tuple(prefix), 0)
        arrived[tuple(prefix)] = suffix + 1
    for level, centroids in enumerate(tokenizer.centroids):
        assert 1 <= len(centroids) <= max(1, min(16, num_items // 8))
        assert tokenizer.ids_NK[:, level].max() < len(centroids)


@EXAMPLES
@given(seeds, levels_of_ids, st.integers(1, 100))
def test_the_same_vectors_give_the_same_bytes(seed: int, levels: int, num_items: int) -> None:
    first, second = (Tokenizer.built(config_of(levels), random_vectors(seed, num_items)) for _ in range(2))
    assert first.ids_NK.tobytes() == second.ids_NK.tobytes()
    assert [centroids.tobytes() for centroids in first.centroids] == [centroids.tobytes() for centroids in second.centroids]


@EXAMPLES
@given(seeds, levels_of_ids, st.integers(1, 100), st.integers(0, 3))
def test_appending_moves_no_id_and_repeats_none(seed: int, levels: int, num_items: int, rounds: int) -> None:
    tokenizer = Tokenizer.built(config_of(levels), random_vectors(seed, num_items))
    for round_ in range(rounds):
        before = tokenizer.ids_NK.copy()
        new = tokenizer.append(random_vectors(seed + round_ + 1, max(1, num_items // 5)))
        assert tokenizer.ids_NK[: len(before)].tobytes() == before.tobytes()
        assert tokenizer.ids_NK[len(before) :].tobytes() == new.tobytes()
        assert len(set(ids_of(tokenizer))) == len(tokenizer.ids_NK)


@EXAMPLES
@given(seeds, levels_of_ids, st.integers(1, 100), st.integers(0, 40))
def test_one_that_was_stored_goes_on_as_one_that_was_not(seed: int, levels: int, num_items: int, num_new: int) -> None:
    """What a learner that is started again does: no suffix is given out twice."""
    tokenizer = Tokenizer.built(config_of(levels), random_vectors(seed, num_items))
    restored = Tokenizer(tokenizer.config, tokenizer.centroids, tokenizer.ids_NK.copy())
    more = random_vectors(seed + 1, num_new)
    assert tokenizer.append(more).tobytes() == restored.append(more).tobytes()
    assert tokenizer.append(more).tobytes() == restored.append(more).tobytes()


def with_suffixes(prefixes: list[tuple[int, ...]], taken: dict[tuple[int, ...], int]) -> list[tuple[int, ...]]:
    """The rule of suffixes, item by item; `taken` counts what each prefix has given out."""
    found = []
    for prefix in prefixes:
        found.append((*prefix, taken.get(prefix, 0)))
        taken[prefix] = taken.get(prefix, 0) + 1
    return found


@EXAMPLES
@given(seeds, levels_of_ids, st.integers(1, 100), st.lists(st.integers(0, 60), max_size=5), st.booleans())
def test_chunks_of_any_sizes_give_the_ids_of_one_append_and_of_the_rule_item_by_item(
    seed: int, levels: int, num_items: int, sizes: list[int], restored: bool
) -> None:
    chunked, at_once = (Tokenizer.built(config_of(levels), random_vectors(seed, num_items)) for _ in range(2))
    more = random_vectors(seed + 1, sum(sizes))
    for size, end in zip(sizes, np.cumsum(sizes), strict=True):
        chunked.append(more[end - size : end])
        if restored:
            chunked = Tokenizer(chunked.config, chunked.centroids, chunked.ids_NK.copy())
    at_once.append(more)
    assert chunked.ids_NK.tobytes() == at_once.ids_NK.tobytes()
    assert ids_of(at_once) == with_suffixes([id_[:-1] for id_ in ids_of(at_once)], {})


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_more_items_than_are_given_codes_at_once(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = random_vectors(1, 130)
    whole = Tokenizer.built(config_of(levels), vectors)
    monkeypatch.setattr("models.tokenizer.BLOCK", 50)
    assert Tokenizer.built(config_of(levels), vectors).ids_NK.tobytes() == whole.ids_NK.tobytes()


def test_clusters_of_many_items_are_built_on_some_of_them_drawn_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = random_vectors(2, 400)
    whole = Tokenizer.built(config_of(3), vectors)
    monkeypatch.setattr("models.tokenizer.POINTS_PER_CODE", 5)
    first, again, other = (Tokenizer.built(config_of(3, seed=seed), vectors) for seed in (0, 0, 1))
    assert first.ids_NK.tobytes() == again.ids_NK.tobytes()
    assert len(set(ids_of(first))) == 400
    assert first.centroids[0].tobytes() not in {whole.centroids[0].tobytes(), other.centroids[0].tobytes()}


def test_a_code_does_not_depend_on_how_many_are_asked_for() -> None:
    """Coarse vectors are as near to one centroid as to another: the distances of many and of few must be computed alike."""
    vectors = normalize(np.random.default_rng(3).standard_normal((20_000, 64)).astype(np.float32).round())
    config = TokenizerConfig(levels=2, content_dim=64)
    many, few = (Tokenizer(config, [vectors[:128]], np.zeros((0, 2), np.int32)) for _ in range(2))
    many.append(vectors)
    for begin in range(0, len(vectors), 7):
        few.append(vectors[begin : begin + 7])
    assert few.ids_NK.tobytes() == many.ids_NK.tobytes()


def test_the_largest_codes_keep_their_items_apart() -> None:
    """Three codes of 16 bits in one number: what is nearest to the last centroid of each level gets the suffix after 4."""
    top = 2**16 - 1
    far = np.full((2**16, DIM), 10, np.float32)
    far[top] = 0
    ids = np.array([[top, top, top, 4], [top, top, 0, 9], [0, top, top, 9], [top, 0, top, 9], [top, top, top, 1]], np.int32)
    tokenizer = Tokenizer(config_of(4, codes=2**16), [far] * 3, ids)
    assert tokenizer.append(np.zeros((2, DIM), np.float32)).tolist() == [[top, top, top, 5], [top, top, top, 6]]


def test_a_suffix_is_not_reused_where_a_gap_is() -> None:
    """Ids of a catalogue in which some suffix is missing: the next one is after the last."""
    tokenizer = Tokenizer(config_of(1), [], np.array([[0], [5], [2]], np.int32))
    assert tokenizer.append(random_vectors(0, 2)).tolist() == [[6], [7]]


@pytest.mark.parametrize("num_items", [1, 2, 9, 100])
def test_one_level_is_plain_item_numbers(num_items: int) -> None:
    tokenizer = Tokenizer.built(config_of(1), random_vectors(num_items, num_items))
    assert tokenizer.ids_NK.tolist() == [[number] for number in range(num_items)]
    assert tokenizer.append(random_vectors(0, 2)).tolist() == [[num_items], [num_items + 1]]


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_items_that_are_alike_share_all_codes_but_the_suffix(levels: int) -> None:
    centres = random_vectors(4, 40)
    tokenizer = Tokenizer.built(config_of(levels), np.concatenate([centres, centres]))
    assert (tokenizer.ids_NK[:40, :-1] == tokenizer.ids_NK[40:, :-1]).all()
    assert len(np.unique(tokenizer.ids_NK[:, 0])) > 1


def test_each_code_is_the_centroid_nearest_to_what_those_before_left_over() -> None:
    random = np.random.default_rng(6)
    vectors, new = (normalize(random.standard_normal((count, DIM)).astype(np.float32)) for count in (200, 30))
    tokenizer = Tokenizer.built(config_of(3), vectors)
    codes = tokenizer.append(new)
    left = new
    for level, centroids in enumerate(tokenizer.centroids):
        distance = ((left[:, None] - centroids[None]) ** 2).sum(-1)
        assert codes[:, level].tolist() == distance.argmin(1).tolist()
        left = normalize(left - centroids[codes[:, level]])
    assert len(np.unique(codes[:, 1])) > 1


def test_another_seed_clusters_otherwise() -> None:
    vectors = normalize(np.random.default_rng(0).standard_normal((200, DIM)).astype(np.float32))
    first, second = (Tokenizer.built(config_of(2, seed=seed), vectors) for seed in (0, 1))
    assert first.ids_NK.tobytes() != second.ids_NK.tobytes()


@pytest.mark.parametrize(("name", "value"), [("levels", 0), ("levels", 5), ("codes", 1), ("content_dim", 4), ("iterations", 0)])
def test_sizes_out_of_range_are_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"tokenizer\.{name} is {value}; it must be \d+\.\.\d+"):
        TokenizerConfig(**{name: value})
