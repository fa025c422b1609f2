"""Events as the model reads them: the same numbers when a slate is drawn and when it is learned."""

import zlib
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_catalogue import catalogue_of, random_stream
from test_generate import FEATURES, NUM_KINDS, random_decoder, random_ids
from test_memory import decided, did, memory_of, random_log

from models.artifact import Artifact
from models.content import ContentRule
from models.decoder import DecoderConfig
from models.generate import WAYS, novelty
from models.objective import ObjectiveConfig, objective
from models.scoring import Scored, inner_contents
from models.successors import SuccessorCounts, Successors
from models.tokenizer import Tokenizer, TokenizerConfig
from models.trie import Trie
from recsys.catalogue import Catalogue, Vocabulary, item_key
from recsys.features import (
    BatchMaker,
    Lesson,
    Shelf,
    Wish,
    contexts,
    feature_buckets,
    imported_lessons,
    legal_of,
    lessons,
    neighbours,
    padded,
    ruling,
)
from recsys.live_model import LiveModel, ModelConfig
from recsys.memory import Memory, MemoryConfig, View
from recsys.policy import Asked, DrawingConfig, GenerativePolicy
from streaming.events import Decision, Item, ItemChange, encode
from streaming.joiner import Example

EXAMPLES = settings(max_examples=80, deadline=None)
NOBODY = View(*(np.zeros(0, np.int64) for _ in range(3)))

seeds = st.integers(0, 2**32 - 1)


def view_of(*item_ids: str) -> View:
    keys = np.array([item_key(item_id) for item_id in item_ids], np.int64)
    return View(keys, np.ones(len(keys), np.int64), np.arange(len(keys)))


def example_of(decision: Decision, shown: tuple[int, ...], rewards: tuple[float, ...], *, offset: int = 5, own: bool = True) -> Example:
    needed = decision.memory_offset if decision.memory_offset >= 0 else offset
    where = (encode(decision, 0), decision.event_time_ms, decision.decision_id, 0, offset, needed)
    return Example(*where, own, shown, rewards, ((),) * len(shown), ())


def shelf_of(item_ids: list[str], alive_R: np.ndarray, ids_NK: np.ndarray | None = None) -> Shelf:
    """A shelf of these items under these ids, or under random ones."""
    if ids_NK is None:
        ids_NK = random_ids(np.random.default_rng(len(item_ids)), len(item_ids), 2, 3)
    return Shelf(Vocabulary(item_ids), alive_R, Trie.built(ids_NK[: len(item_ids)], ~alive_R[1:]))


# What may be generated ------------------------------------------------------------------------------------------------


def random_wish(random: np.random.Generator, item_ids: list[str], items_offset: int) -> Wish:
    """Some items of the catalogue and some that nobody knows, in each list; or no list."""

    def some() -> list[str]:
        return random.choice([*item_ids, "nobody's", "unknown"], random.integers(0, 5)).tolist() if random.random() < 0.6 else []

    where = {key: str(random.integers(2)) for key in "ab" if random.random() < 0.4}
    return Wish(some(), some(), where, bool(random.random() < 0.5), items_offset)


@EXAMPLES
@given(seeds, st.integers(1, 30))
def test_a_ruling_is_what_sets_say(seed: int, length: int) -> None:
    """Exclusions, candidates, attributes, seen items, newer rows and retired ones, in every mixture."""
    random = np.random.default_rng(seed)
    stream = random_stream(seed, length)
    catalogue = catalogue_of(stream)
    item_ids = catalogue.item_ids
    size = int(random.integers(1, len(item_ids) + 1))  # of the tree, which may be behind the catalogue
    alive_R = np.concatenate([[False], random.random(size) < 0.85])
    num_rows = int(random.integers(1, size + 2))  # that the version knew
    items_offset = int(random.integers(0, stream[-1][0] + 2))
    wish = random_wish(random, item_ids, items_offset)
    view = view_of(*random.choice([*item_ids, "unknown"], random.integers(0, 4)))

    row_of = {item_id: row for row, item_id in enumerate(item_ids, 1)}
    legal = {row for row in range(1, num_rows) if alive_R[row]} - set(catalogue.retired_rows(items_offset).tolist())
    legal -= {row_of.get(item_id) for item_id in wish.exclude_item_ids}
    if wish.seen_excluded:
        legal -= {row for item_id, row in row_of.items() if item_key(item_id) in view.key_L}
    if wish.candidate_item_ids:
        legal &= {row_of.get(item_id) for item_id in wish.candidate_item_ids}
    if wish.where:
        legal &= set(catalogue.matching_rows(wish.where, items_offset).tolist())

    shelf = shelf_of(item_ids[:size], alive_R)
    for _ in range(2):  # the second time with what the shelf has kept
        ruled = ruling(wish, view, catalogue, shelf, num_rows)
        allow = shelf.trie.live_leaves(np.arange(size + 1)) if ruled.allow is None else ruled.allow
        assert set(shelf.trie.item_of_leaf[np.setdiff1d(allow, ruled.exclude)].tolist()) == legal
        assert (ruled.allow is None) == (not wish.candidate_item_ids and not wish.where)
        # what Legal asks of its lists: ascending, every leaf once, and none that would not be legal anyway
        for leaf_F in (ruled.exclude, allow):
            assert (np.diff(leaf_F) > 0).all()
            assert alive_R[shelf.trie.item_of_leaf[leaf_F]].all()
        assert legal_of([ruled], shelf.trie).total().tolist() == [len(legal)]


@EXAMPLES
@given(seeds, st.integers(5, 40))
def test_what_a_shelf_keeps_of_a_filter_follows_the_catalogue(seed: int, length: int) -> None:
    """Items come, change and retire between requests to one version, which knows only some of them."""
    random = np.random.default_rng(seed)
    stream = random_stream(seed, length)
    item_ids = list(dict.fromkeys(item.item_id for _, item in stream))
    size = int(random.integers(1, len(item_ids) + 1))
    shelf = shelf_of(item_ids[:size], np.arange(size + 1) > 0)
    catalogue = Catalogue()
    for offset, item in stream:
        catalogue.apply(offset, ItemChange(item=item))
        for where in ({"a": "0"}, {"a": "1", "b": "0"}):
            ruled = ruling(Wish([], [], where, False, offset + 1), NOBODY, catalogue, shelf, size + 1)
            assert ruled.allow is not None
            found = shelf.trie.item_of_leaf[np.setdiff1d(ruled.allow, ruled.exclude)]
            gone = catalogue.retired_rows(offset + 1)
            expected = np.setdiff1d(catalogue.matching_rows(where, offset + 1), gone)
            assert sorted(found) == expected[expected <= size].tolist()


def test_candidates_that_nobody_knows_leave_nothing() -> None:
    catalogue = catalogue_of(random_stream(1, 9))
    size = len(catalogue.item_ids)
    shelf = shelf_of(catalogue.item_ids, np.array([False] + [True] * size))
    for wish in (Wish([], ["unknown"], {}, False, 99), Wish([], [], {"a": "unknown"}, False, 99)):
        ruled = ruling(wish, NOBODY, catalogue, shelf, size + 1)
        assert ruled.allow is not None
        assert ruled.allow.tolist() == []


def test_a_decision_records_its_wish() -> None:
    decision = Decision(exclude_item_ids=["a"], candidate_item_ids=["b", "c"], where={"lang": "en"}, seen_excluded=True, items_offset=7)
    wish = Wish.of(decision)
    assert (list(wish.exclude_item_ids), list(wish.candidate_item_ids), dict(wish.where)) == (["a"], ["b", "c"], {"lang": "en"})
    assert (wish.seen_excluded, wish.items_offset) == (True, 7)


# Contexts -------------------------------------------------------------------------------------------------------------


def test_the_newest_rows_stand_last_and_unknown_items_are_row_0() -> None:
    vocabulary = Vocabulary(["a", "b", "c"])
    views = [view_of("a", "b", "unknown", "c"), NOBODY, view_of("b")]
    context = contexts(views, [{}, {}, {}], vocabulary, 3, FEATURES)
    assert context.item_BL.tolist() == [[2, 0, 3], [0, 0, 0], [0, 0, 2]]
    assert context.kind_BL.tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 1]]
    assert context.gap_BL.tolist() == [[1, 2, 3], [0, 0, 0], [0, 0, 0]]
    assert context.feature_BX.shape == (3, 0)
    assert contexts([NOBODY], [{}], vocabulary, 3, FEATURES).item_BL.tolist() == [[0]]
    assert contexts([], [], vocabulary, 3, FEATURES).item_BL.shape == (0, 1)


def test_request_entries_are_buckets_in_order_of_key() -> None:
    buckets = feature_buckets({"surface": "home", "device": "tv"}, 512)
    assert buckets == [1 + zlib.crc32(b"device=tv") % 511, 1 + zlib.crc32(b"surface=home") % 511]
    assert len(feature_buckets({str(n): "x" for n in range(20)}, 512)) == 8
    assert feature_buckets({}, 512) == []


@pytest.mark.parametrize("num_buckets", [2, 3, 512])
def test_buckets_fit_the_table_and_leave_0_to_padding(num_buckets: int) -> None:
    assert DecoderConfig(features=num_buckets).features == num_buckets
    buckets = [feature_buckets({"key": str(n)}, num_buckets)[0] for n in range(200)]
    assert 1 <= min(buckets) <= max(buckets) < num_buckets
    assert len(set(buckets)) > (num_buckets - 1) // 5


def test_a_table_without_room_for_a_bucket_is_refused() -> None:
    with pytest.raises(ValueError, match=r"decoder.features is 1; it must be 2\.\."):
        DecoderConfig(features=1)


def test_padding_stands_behind() -> None:
    assert padded([np.array([1, 2]), np.array([], np.int64), np.array([3])]).tolist() == [[1, 2], [0, 0], [3, 0]]
    assert padded([]).shape == (0, 0)


# Lessons --------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(2, 40))
def test_a_lesson_has_the_memory_that_its_policy_saw(seed: int, length: int) -> None:
    """Records come between the reading of memory and the append of the decision, and after it."""
    log = random_log(seed, length)
    memory = memory_of(log)
    for at, (offset, record) in enumerate(log):
        if record.HasField("decision"):
            decision = Decision()
            decision.CopyFrom(record.decision)
            seen = np.random.default_rng(seed + at).integers(0, at + 1)
            decision.memory_offset = log[seen][0]
            (lesson,) = lessons([example_of(decision, (0,), (1.0,), offset=offset, own=False)], memory)
            expected = memory_of(log[:seen]).view(decision.user_id)
            assert [c.tobytes() for c in columns(lesson.view)] == [c.tobytes() for c in columns(expected)]
            decision.memory_offset = -1
            (lesson,) = lessons([example_of(decision, (0,), (1.0,), offset=offset, own=False)], memory)
            expected = memory_of(log[:at]).view(decision.user_id)
            assert [c.tobytes() for c in columns(lesson.view)] == [c.tobytes() for c in columns(expected)]


def columns(view: View) -> tuple[np.ndarray, ...]:
    return view.key_L, view.kind_L, view.gap_L


def test_rewards_stand_at_their_slots() -> None:
    decision = decided(slots=4).decision
    decision.slot_logprobs.extend([-1.0, -2.0, -3.0, -4.0])
    (lesson,) = lessons([example_of(decision, (1, 3), (0.5, 1.0))], memory_of([]))
    assert lesson.rewards == (0, 0.5, 0, 1.0)
    assert lesson.shown == (False, True, False, True)
    assert lesson.logged == (-1, -2, -3, -4)
    assert lesson.own


def test_imported_examples_of_one_session_are_one_slate() -> None:
    """Up to `slots` items and half an hour, by user, with the memory before the first; what is not ours has no logged number."""
    t = 1_700_000_000_000
    minutes = {"a": 0, "b": 10, "c": 29, "d": 31, "e": 32, "f": 33, "g": 34}
    examples = []
    for offset, (name, minute) in enumerate(minutes.items(), 1):
        decision = replace_time(decided(name, slots=1).decision, t + 60_000 * minute)
        examples.append(example_of(decision, (0,), (float(offset),), offset=offset, own=False))
    other = replace_time(decided("o", user="v", slots=1).decision, t)
    memory = memory_of([(0, did("x")), (3, did("y", event_id="j"))])
    made = imported_lessons([*examples, example_of(other, (0,), (0.0,), offset=8, own=False)], memory, slots=3)
    assert [lesson.item_ids for lesson in made] == [("a.0", "b.0", "c.0"), ("d.0", "e.0", "f.0"), ("g.0",), ("o.0",)]
    assert made[0].rewards == (1, 2, 3)
    assert made[0].logged == (0, 0, 0)
    assert [len(lesson.view.key_L) for lesson in made] == [1, 2, 2, 0]


def test_what_was_shown_at_one_time_is_cut_into_slates() -> None:
    """A log whose times are dates has hundreds of items at once; a model has room for so many slots and no more."""
    decision = decided("day", slots=8).decision
    many = example_of(decision, tuple(range(8)), tuple(map(float, range(8))), own=False)
    made = imported_lessons([many], memory_of([]), slots=3)
    assert [lesson.rewards for lesson in made] == [(0, 1, 2), (3, 4, 5), (6, 7)]
    assert sum((lesson.item_ids for lesson in made), ()) == tuple(decision.item_ids)
    assert [(len(lesson.shown), len(lesson.logged)) for lesson in made] == [(3, 3), (3, 3), (2, 2)]


def replace_time(decision: Decision, t: int) -> Decision:
    decision.event_time_ms, decision.memory_offset = t, -1
    return decision


# One number in serving and in learning --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """A version, the catalogue it is served with, and one that has gone on since."""

    artifact: Artifact
    then: Catalogue
    now: Catalogue
    items_offset: int

    @property
    def tokenizer_then(self) -> Tokenizer:
        grown = self.artifact.tokenizer
        return Tokenizer(grown.config, [], grown.ids_NK[: len(self.artifact.item_ids)])


def served(seed: int, levels: int) -> Served:
    random = np.random.default_rng(seed)
    stream = random_stream(seed, 60, num_items=40)
    now = catalogue_of(stream)
    items_offset = stream[40][0]
    then = catalogue_of([entry for entry in stream if entry[0] < items_offset])
    ids_NK = random_ids(random, len(now.item_ids), levels, 3)
    size = len(then.item_ids)
    retired_N = np.zeros(size, bool)
    retired_N[then.retired_rows(items_offset) - 1] = True
    artifact = Artifact(
        decoder=random_decoder(random, len(now.item_ids), levels, 3),
        tokenizer=Tokenizer(TokenizerConfig(levels=levels), [], ids_NK),
        content=ContentRule.fitted([], 8),
        item_ids=tuple(then.item_ids),
        retired_N=retired_N,
        trie=Trie.built(ids_NK[:size], retired_N),
        followed=SuccessorCounts(),
        facts={"policy_version": 3, "trained_through_ms": 0},
    )
    with torch.no_grad():  # a value head that expects nothing: then the advantage is the reward
        artifact.decoder.value_level.outward.bias.fill_(-1e4)
    return Served(artifact, then, now, items_offset)


def decide(case: Served, memory: Memory, seed: int, drawing: DrawingConfig) -> tuple[Decision, View]:
    """A slate drawn by the version that knew the first items only, recorded as the engine records it."""
    random = np.random.default_rng(seed)
    version = replace(case.artifact, tokenizer=case.tokenizer_then)
    wish = random_wish(random, case.then.item_ids, case.items_offset)
    view, context = memory.view("u"), {"surface": str(random.integers(3))}
    choice = GenerativePolicy(version, drawing).decide([Asked("u", view, context, 4, wish, seed)], case.then)[0]
    decision = Decision(
        decision_id=f"z{seed}",
        user_id="u",
        item_ids=choice.item_ids,
        slot_logprobs=choice.logprobs,
        memory_offset=memory.next_offset[0],
        items_offset=case.items_offset,
        context=context,
        exclude_item_ids=wish.exclude_item_ids,
        candidate_item_ids=wish.candidate_item_ids,
        where=wish.where,
        seen_excluded=wish.seen_excluded,
        way=drawing.way,
        temperature=drawing.temperature,
        floor=drawing.floor,
        novelty_bonus=drawing.novelty_bonus,
        value_weight=drawing.value_weight,
    )
    return decision, view


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_a_learner_that_knows_more_recomputes_the_logged_number(seed: int, levels: int, way: str) -> None:
    """More events of the user, more items in the tree, other attributes and retirements since: the number is the same."""
    case = served(seed, levels)
    log = random_log(seed, 30)
    met = np.random.default_rng(seed).choice(case.then.item_ids, 6).tolist()
    log += [(log[-1][0] + number, did(item_id, event_id=f"met{number}")) for number, item_id in enumerate(met, 1)]
    memory = memory_of(log, MemoryConfig(rows=12, kinds=("click",)))
    assert memory.config.num_kinds == NUM_KINDS
    drawing = DrawingConfig(way=way, temperature=0.8, floor=0.1, novelty_bonus=0.7, value_weight=1.5)
    made = [decide(case, memory, 100 * seed + number, drawing) for number in range(8)]
    for number in range(20):
        memory.apply(0, log[-1][0] + 1 + number, did(case.then.item_ids[0], event_id=f"later{number}"))
    examples = [example_of(decision, tuple(range(len(decision.item_ids))), (1.0,) * len(decision.item_ids)) for decision, _ in made]
    learned = lessons(examples, memory)
    for (_, view), lesson in zip(made, learned, strict=True):
        assert [c.tobytes() for c in columns(view)] == [c.tobytes() for c in columns(lesson.view)]

    alive_R = np.concatenate([[False], np.ones(len(case.now.item_ids), bool)])
    alive_R[case.then.retired_rows(case.items_offset)] = False
    shelf = shelf_of(case.now.item_ids, alive_R, case.artifact.tokenizer.ids_NK)
    maker = BatchMaker(case.now, shelf, case.artifact.decoder.config.rows_read, FEATURES)
    batch = maker.batch(learned, [len(case.artifact.item_ids) + 1] * len(learned))
    assert batch.shown_BS.sum() == sum(len(decision.item_ids) for decision, _ in made) > 8
    decoder = case.artifact.decoder
    contents = inner_contents(decoder, shelf.trie)
    scored = Scored(
        decoder, decoder.vectors(np.arange(len(alive_R))), shelf.trie, contents, novelty(decoder, len(alive_R)), Successors.none()
    )
    assert ((batch.context.item_BL > 0) & (batch.context.item_BL <= len(case.artifact.item_ids))).any(1).all()
    found = recomputed(scored, maker, learned, len(case.artifact.item_ids) + 1)
    assert found == pytest.approx(batch.logged_BS[batch.shown_BS], abs=1e-4)


def recomputed(scored: Scored, maker: BatchMaker, learned: list[Lesson], num_rows: int) -> np.ndarray:
    """log π of every drawn slot as an update sees it: the loss of REINFORCE, one slot at a time, at an advantage of one."""
    config = ObjectiveConfig(policy="reinforce", policy_weight=1, value_weight=0, likelihood_weight=0, value_blend=1)
    out = []
    for lesson in learned:
        for slot in range(len(lesson.item_ids)):
            only = tuple(at == slot for at in range(len(lesson.item_ids)))
            batch = maker.batch([replace(lesson, shown=only, rewards=tuple(map(float, only)))], [num_rows])
            with torch.no_grad():
                out.append(-objective(scored, batch, config).policy)
    return np.array(out)


# Neighbours -----------------------------------------------------------------------------------------------------------


def test_items_that_only_the_history_tells_apart_get_ids_by_their_neighbours() -> None:
    """Two groups of items without text that users never mix: with one cluster each, their first codes part them."""
    catalogue = Catalogue()
    for number in range(32):
        catalogue.apply(number, ItemChange(item=Item(item_id=f"bare{number}")))
    random = np.random.default_rng(0)
    met = [_met([f"bare{2 * n + group}" for n in random.permutation(16)[:8]]) for _ in range(100) for group in (0, 1)]
    pairs = neighbours(met, {item_id: row for row, item_id in enumerate(catalogue.item_ids, 1)})
    assert len(pairs) == 200 * 7 * 2
    config = ModelConfig(tokenizer=TokenizerConfig(codes=2, content_dim=64))
    model = LiveModel.built(config, catalogue, MemoryConfig(), seed=0, neighbours_P2=pairs)
    first = model.tokenizer.ids_NK[:, 0]
    assert len(set(first[0::2])) == len(set(first[1::2])) == 1
    assert first[0] != first[1]


def _met(item_ids: list[str]) -> Lesson:
    size = len(item_ids)
    return Lesson(Decision(), NOBODY, tuple(item_ids), (1.0,) * size, (True,) * size, (0.0,) * size, False)
