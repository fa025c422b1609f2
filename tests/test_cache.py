"""A memory kept from request to request is the memory read anew, whatever has grown, moved, become too old or been taken back."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generate import HISTORY, NUM_KINDS, freed, one_request, random_model

from models.cache import Reading, Readings
from models.decoder import Context
from models.inference import FrozenDecoder, Memory
from recsys import policy as policies
from recsys.catalogue import Catalogue, item_key
from recsys.features import Wish
from recsys.memory import View
from recsys.policy import Asked, DrawingConfig, GenerativePolicy
from tests.artifacts import DECODER, item_ids, small_artifact

ROWS_READ = HISTORY + 3


def random_rows(random: np.random.Generator, number: int) -> np.ndarray:
    """Item, kind and gap of each; few that differ, so that one is easily taken for another."""
    return np.stack([random.integers(0, 3, number), random.integers(1, 3, number), random.integers(0, 2, number)])


def context_of(memories: Sequence[np.ndarray]) -> Context:
    """The newest rows of each as requests have them, right-aligned; one blank row where there are none."""
    rows_B3L = np.zeros((len(memories), 3, max(1, *(min(rows.shape[1], ROWS_READ) for rows in memories))), np.int64)
    for at, rows in enumerate(memories):
        newest = rows[:, -ROWS_READ:]
        rows_B3L[at, :, rows_B3L.shape[2] - newest.shape[1] :] = newest
    return Context(*rows_B3L.transpose(1, 0, 2), np.zeros((len(memories), 1), np.int64))


def states(decoder: FrozenDecoder, memory: Memory, context: Context) -> np.ndarray:
    """Of the first slot, (B, D)."""
    return decoder.state(memory, decoder.slots(memory, 1), decoder.start(memory, context), 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2 * ROWS_READ), min_size=1, max_size=8))
def test_a_kept_memory_is_one_read_anew_and_draws_the_same(seed: int, steps: list[int]) -> None:
    model, random = random_model(seed, levels=2, num_items=20, retired=0), np.random.default_rng(seed)
    decoder, request = model.generator.decoder, freed(one_request(0, model, 4, (1.0, 0.1, 0.0, 0.0)), model)
    readings, rows = Readings(decoder, 2), np.zeros((3, 0), np.int64)
    for number in steps:
        rows = np.concatenate([rows, random_rows(random, number)], 1)
        context = context_of([rows])
        kept, fresh = readings.memory(["ann"], context), decoder.memory(context)
        length = min(rows.shape[1], HISTORY) + 1  # a blank row stands for none
        pairs = (
            (kept.keys, fresh.keys[..., -length:]),
            (kept.values, fresh.values[:, :, -length:]),
            (kept.bias, fresh.bias[..., -length:]),
            (kept.newest_BD, fresh.newest_BD),
        )
        for one, other in pairs if rows.shape[1] else pairs[3:]:
            assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
        slates = [
            model.generator.draw(context, request.legal, request.rule, request.uniform_BSU, request.sizes_B, memory=memory)
            for memory in (kept, None)
        ]
        assert (slates[0].item_BS == slates[1].item_BS).all()
        assert slates[0].logprob_BS == pytest.approx(slates[1].logprob_BS, abs=1e-5)
    assert readings.num_asked == len(steps)
    assert readings.num_gone_on >= sum(number < HISTORY for number in steps[1:])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2 * ROWS_READ), st.integers(0, 2 * ROWS_READ))
def test_what_was_taken_back_is_not_remembered(seed: int, before: int, after: int) -> None:
    """Any rows after any others: those that do not go on from what was read are read anew."""
    model, random = random_model(seed % 5, levels=1, num_items=4, retired=0), np.random.default_rng(seed)
    decoder = model.generator.decoder
    readings = Readings(decoder, 1)
    for number in (before, after):
        context = context_of([random_rows(random, number)])
        found = states(decoder, readings.memory(["ann"], context), context)
        assert found == pytest.approx(states(decoder, decoder.memory(context), context), abs=1e-5)


def test_users_side_by_side_have_what_each_has_alone_and_the_one_asked_for_longest_ago_is_forgotten() -> None:
    model, random = random_model(1, levels=2, num_items=20), np.random.default_rng(1)
    decoder = model.generator.decoder
    readings, users = Readings(decoder, 3), ["ann", "bob", "cem"]
    memories = [random_rows(random, number) for number in (5, 0, 2 * HISTORY)]
    for asked, gone_on in ((users, 0), (users, 3), (["dot"], 3), (users, 3), (users[1:], 5)):
        # dot takes ann's place, ann bob's, bob cem's
        context = context_of(memories[-len(asked) :])
        found = states(decoder, readings.memory(asked, context), context)
        assert found == pytest.approx(states(decoder, decoder.memory(context), context), abs=1e-5)
        assert readings.num_gone_on == gone_on


def test_one_more_row_is_one_row_of_work() -> None:
    """However long the memory is: what is computed is of one row, and all but one in very many leave the arrays where they are."""
    decoder = random_model(0, levels=1, num_items=20).generator.decoder
    reading, random = Reading(decoder), np.random.default_rng(0)
    moved = 0
    for _ in range(20 * ROWS_READ):
        before = reading._values_HTd
        reading.read(random_rows(random, 1))
        moved += reading._values_HTd is not before
    assert reading.num_rows == HISTORY
    assert moved < 40


def test_a_policy_keeps_long_memories_and_draws_what_it_would_without(monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = small_artifact(item_ids(12))
    fresh = GenerativePolicy(artifact, DrawingConfig())
    assert fresh.kept_share is None
    monkeypatch.setattr(policies, "KEPT_FROM", DECODER.history)
    kept, random = GenerativePolicy(artifact, DrawingConfig()), np.random.default_rng(0)
    assert kept.kept_share is None
    keys = random.choice([item_key(item_id) for item_id in item_ids(14)], (2, 60))
    kinds, gaps = (random.integers(low, high, (2, 60)) for low, high in ((1, NUM_KINDS), (0, 16)))
    for end in range(1, 60, 3):
        views = [View(keys[at, :end], kinds[at, :end], gaps[at, :end]) for at in range(2)]
        wish = Wish([], [], {}, False, 0)
        asked = [Asked(f"user {at}", view, {}, 5, wish, seed=end) for at, view in enumerate(views)]
        for one, other in zip(kept.decide(asked, Catalogue()), fresh.decide(asked, Catalogue()), strict=True):
            assert one.item_ids == other.item_ids
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert kept.kept_share == pytest.approx(19 / 20)
