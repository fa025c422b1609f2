"""What is logged is what was drawn with: on random tries, under random weights, whatever the request rules out."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from models import generate
from models.decoder import Context, Decoder, DecoderConfig
from models.generate import WAYS, Generator, Slates
from models.inference import FrozenDecoder, LeafVectors
from models.scoring import Scored, inner_contents
from models.successors import SuccessorCounts, Successors
from models.trie import Legal, Trie
from models.walk import Asked, Rule

NUM_KINDS, FEATURES, HISTORY, MAX_SLOTS = 6, 16, 8, 20
LEVELS = [1, 2, 3, 4]
EXAMPLES = settings(max_examples=40, deadline=None, derandomize=True)

NOTHING = np.zeros(0, np.int64)

NONE = Successors.none()

seeds = st.integers(0, 2**32 - 1)
ways = st.sampled_from(WAYS)


# Random models and requests -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    decoder: Decoder
    trie: Trie
    novelty_R: np.ndarray
    alive_R: np.ndarray
    successors: Successors = NONE

    @property
    def generator(self) -> Generator:
        return Generator(self.frozen, self.trie, self.novelty_R, self.successors)

    @property
    def frozen(self) -> FrozenDecoder:
        return FrozenDecoder(self.decoder, LeafVectors.of(self.decoder, self.trie))

    @property
    def scored(self) -> Scored:
        vectors = self.decoder.vectors(np.arange(len(self.alive_R)))
        return Scored(self.decoder, vectors, self.trie, inner_contents(self.decoder, self.trie), self.novelty_R, self.successors)


def random_ids(random: np.random.Generator, num_items: int, levels: int, codes: int) -> np.ndarray:
    """Ids as a tokenizer gives them: any prefixes, and as suffix the place among those of one prefix."""
    ids_NK = np.zeros((num_items, levels), np.int32)
    ids_NK[:, :-1] = random.integers(0, codes, (num_items, levels - 1))
    used: dict[tuple[int, ...], int] = {}
    for row, prefix in enumerate(map(tuple, ids_NK[:, :-1].tolist())):
        ids_NK[row, -1] = used[prefix] = used.get(prefix, -1) + 1
    return ids_NK


def random_decoder(random: np.random.Generator, num_items: int, levels: int, codes: int, dropout: float = 0.0) -> Decoder:
    """Every weight random, and the logits far from even but not so far that rare items are never drawn."""
    torch.manual_seed(int(random.integers(2**32)))
    config = DecoderConfig(width=16, layers=2, heads=2, history=HISTORY, max_slots=MAX_SLOTS, gaps=16, features=FEATURES, dropout=dropout)
    content_RC = torch.cat([torch.zeros(1, 8), torch.nn.functional.normalize(torch.randn(num_items, 8))])
    centroids = [0.2 * torch.randn(codes, 8).numpy() for _ in range(levels - 1)]
    decoder = Decoder(config, centroids=centroids, content_RC=content_RC, num_kinds=NUM_KINDS)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        silence = decoder.silence
        for weights in (decoder.repeat, decoder.follow, decoder.match, silence.repeat, silence.follow, silence.match, silence.loud):
            weights.mul_(0.1)
        decoder.log_scale.copy_(torch.rand(levels) + 0.5)
        decoder.kind.weight[0] = decoder.feature.weight[0] = 0  # a padded entry says nothing
    return decoder.eval()


def random_model(seed: int, levels: int, num_items: int, *, codes: int = 3, retired: float = 0.2) -> Model:
    random = np.random.default_rng(seed)
    retired_N = random.random(num_items) < retired
    novelty_R = random.random(num_items + 1, np.float32)
    decoder = random_decoder(random, num_items, levels, codes)
    model = model_with(decoder, random_ids(random, num_items, levels, codes), retired_N, novelty_R)
    return replace(model, successors=random_successors(random, num_items))


def random_successors(random: np.random.Generator, num_items: int) -> Successors:
    """Some items follow others, up to twice as often as one can count on a hand."""
    counts = SuccessorCounts()
    counts.add(*random.integers(0, num_items + 1, (2, 2 * num_items)), random.uniform(0, 10, 2 * num_items).astype(np.float32))
    return counts.frozen(num_items + 1)


def model_with(decoder: Decoder, ids_NK: np.ndarray, retired_N: np.ndarray | None = None, novelty_R: np.ndarray | None = None) -> Model:
    """A model of these parts; nothing retired and all as novel unless said otherwise."""
    retired_N = np.zeros(len(ids_NK), bool) if retired_N is None else retired_N
    novelty_R = np.ones(len(ids_NK) + 1, np.float32) if novelty_R is None else novelty_R
    return Model(decoder, Trie.built(ids_NK, retired_N), novelty_R, np.concatenate([[False], ~retired_N]))


def random_context(random: np.random.Generator, batch: int, num_items: int) -> Context:
    """Histories of all lengths, none among them, and items that the version does not know."""
    length_B = random.integers(0, HISTORY + 1, batch)
    real_BL = np.arange(HISTORY)[::-1] < length_B[:, None]
    return Context(
        item_BL=random.integers(0, num_items + 1, (batch, HISTORY)) * real_BL,
        kind_BL=random.integers(1, NUM_KINDS, (batch, HISTORY)) * real_BL,
        gap_BL=random.integers(0, 16, (batch, HISTORY)) * real_BL,
        feature_BX=random.integers(0, FEATURES, (batch, 3)),
    )


def random_legal(
    random: np.random.Generator, batch: int, trie: Trie, alive_R: np.ndarray, *, limited: float = 0.4
) -> tuple[Legal, np.ndarray]:
    """What requests rule out, and by brute force which rows each may be given, (B, R)."""
    legal_BR, excluded, allowed = np.zeros((batch, len(alive_R)), bool), [], []
    limited_B = random.random(batch) < limited
    for at in range(batch):
        wanted_R = alive_R & (random.random(len(alive_R)) < random.random()) if limited_B[at] else alive_R
        out_R = alive_R & (random.random(len(alive_R)) < 0.5 * random.random())
        legal_BR[at] = wanted_R & ~out_R
        excluded.append(trie.live_leaves(np.flatnonzero(out_R)))
        allowed.append(trie.live_leaves(np.flatnonzero(wanted_R)) if limited_B[at] else None)
    return Legal.of(trie, excluded, allowed), legal_BR


def random_rule(random: np.random.Generator, batch: int) -> Rule:
    return Rule(
        temperature_B=random.choice([0.3, 1.0, 2.5], batch).astype(np.float32),
        floor_B=random.choice([0.0, 0.02, 0.5], batch).astype(np.float32),
        bonus_B=random.choice([0.0, 1.5], batch).astype(np.float32),
        value_B=random.choice([0.0, 2.0], batch).astype(np.float32),
    )


@dataclass(frozen=True)
class Requests:
    """A batch of requests; `legal_BR` says by brute force what each may be given."""

    context: Context
    legal: Legal
    legal_BR: np.ndarray
    rule: Rule
    uniform_BSU: np.ndarray
    sizes_B: np.ndarray

    def of(self, at: list[int], extra_padding: int = 0) -> "Requests":
        """Some of the requests, alone, with other padding."""
        pad = ((0, 0), (0, extra_padding))
        context, places = self.context, np.array(at)
        return Requests(
            Context(context.item_BL[at], context.kind_BL[at], context.gap_BL[at], np.pad(context.feature_BX[at], pad)),
            self.legal.at(places),
            self.legal_BR[at],
            self.rule.at(places),
            self.uniform_BSU[at],
            self.sizes_B[at],
        )

    def drawn_by(self, generator: Generator, way: str = "slot") -> Slates:
        return generator.draw(self.context, self.legal, self.rule, self.uniform_BSU, self.sizes_B, way=way)


def random_requests(seed: int | list[int], model: Model, batch: int, slots: int, *, limited: float = 0.4) -> Requests:
    random = np.random.default_rng([*np.atleast_1d(seed), 1])
    legal, legal_BR = random_legal(random, batch, model.trie, model.alive_R, limited=limited)
    return Requests(
        context=random_context(random, batch, len(model.alive_R) - 1),
        legal=legal,
        legal_BR=legal_BR,
        rule=random_rule(random, batch),
        uniform_BSU=random.random((batch, slots, model.trie.levels + 1), dtype=np.float32),
        sizes_B=random.integers(0, slots + 1, batch),
    )


def one_request(seed: int, model: Model, slots: int, rule: tuple[float, float, float, float]) -> Requests:
    """One request for a whole slate, with a limited choice for odd seeds."""
    requests = random_requests(seed, model, 1, slots, limited=seed % 2)
    return replace(requests, sizes_B=np.array([slots]), rule=Rule(*(np.array([value], np.float32) for value in rule)))


def freed(request: Requests, model: Model) -> Requests:
    """The request with all that is alive legal."""
    return replace(request, legal=Legal.of(model.trie, [NOTHING], [None]), legal_BR=model.alive_R[None])


def many_times(request: Requests, times: int, slots_given: int, seed: int) -> Requests:
    """The same request over and over: the first slots drawn with the same numbers, the others with numbers of their own."""
    many = without_blanks(request).of([0] * times)
    fresh_BSU = np.random.default_rng([seed, 2]).random(many.uniform_BSU.shape, dtype=np.float32)
    fresh_BSU[:, :slots_given] = request.uniform_BSU[:, :slots_given]
    return replace(many, uniform_BSU=fresh_BSU)


# The same number from the other side ----------------------------------------------------------------------------------


def rescored(model: Model, requests: Requests, item_BS: np.ndarray, way: str = "slot") -> np.ndarray:
    """Log π of every drawn slot by torch, (B, S); 0 where nothing was drawn."""
    at_B, at_S = item_BS.nonzero()
    out_BS = np.zeros(item_BS.shape, np.float32)
    out_BS[at_B, at_S] = scores(model, requests, item_BS, at_B, at_S, item_BS[at_B, at_S], way).detach().numpy()
    return out_BS


def scores(
    model: Model, requests: Requests, item_BS: np.ndarray, at_B: np.ndarray, at_S: np.ndarray, item_Q: np.ndarray, way: str = "slot"
) -> torch.Tensor:
    """Log π of `item_Q` in slot `at_S` of slate `at_B`, after the slots before it."""
    scored, slots_QS = model.scored, np.arange(item_BS.shape[1])
    state_BSD = scored.decoder.states(scored.vectors, requests.context, torch.from_numpy(item_BS))
    before_QS = np.where(slots_QS < at_S[:, None], item_BS[at_B], 0)
    asked_Q = Asked.of(requests.legal, requests.rule, scored.remembered(requests.context)).at(at_B)
    if way == "beam":
        up_to_QS = np.where(slots_QS == at_S[:, None], item_Q[:, None], before_QS)
        return scored.beam_logprobs(state_BSD[at_B, 0], asked_Q, up_to_QS)[np.arange(len(at_B)), at_S]
    return scored.logprobs(state_BSD[at_B, at_S], asked_Q.without(model.trie.leaf_of_item[before_QS]), item_Q)


def still_legal(requests: Requests, item_BS: np.ndarray, at: int, slot: int) -> np.ndarray:
    """Rows that slot `slot` of request `at` may still be given, after the slots before it."""
    return np.setdiff1d(np.flatnonzero(requests.legal_BR[at]), item_BS[at, :slot])


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_a_batch_in_parts_draws_what_it_draws_whole(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Plain ids, of which a large batch is drawn a few requests at a time."""
    model = random_model(7, 1, 60, codes=1)
    requests = random_requests(7, model, batch=7, slots=5)
    whole = requests.drawn_by(model.generator, "slot")
    monkeypatch.setattr(generate, "PART_WEIGHTS", at_once * 60)
    parts = requests.drawn_by(model.generator, "slot")
    assert (whole.item_BS == parts.item_BS).all()
    assert whole.item_BS.any()
    assert parts.logprob_BS == pytest.approx(whole.logprob_BS, abs=1e-5)


# Probabilities --------------------------------------------------------------------------------------------------------


@EXAMPLES
@given(seeds, st.sampled_from(LEVELS), st.integers(1, 30), st.integers(1, 5), ways)
def test_the_scores_of_all_still_legal_items_sum_to_one(seed: int, levels: int, num_items: int, codes: int, way: str) -> None:
    model = random_model(seed, levels, num_items, codes=codes)
    requests = random_requests(seed, model, batch=4, slots=5)
    item_BS = requests.drawn_by(model.generator, way).item_BS
    drawn = [(at, slot) for at, slot in zip(*item_BS.nonzero(), strict=True)]
    choices = [still_legal(requests, item_BS, at, slot) for at, slot in drawn]
    sizes = [len(choice) for choice in choices]
    if drawn:
        at_Q, slot_Q = (np.repeat(column, sizes) for column in np.array(drawn).T)
        with torch.no_grad():
            probability_Q = scores(model, requests, item_BS, at_Q, slot_Q, np.concatenate(choices), way).exp().numpy()
        sums = np.add.reduceat(probability_Q, np.cumsum([0, *sizes[:-1]]))
        assert sums == pytest.approx(np.ones(len(drawn)), abs=1e-5)
        assert (probability_Q >= 0).all()


@EXAMPLES
@given(seeds, st.sampled_from(LEVELS), st.integers(1, 90), st.integers(1, 5))
def test_all_items_at_once_score_what_each_of_them_scores(seed: int, levels: int, num_items: int, codes: int) -> None:
    model, batch = random_model(seed, levels, num_items, codes=codes, retired=0.0), 3
    requests = random_requests(seed, model, batch, slots=1)
    rule = replace(requests.rule, floor_B=np.zeros(batch, np.float32))
    requests = replace(requests, rule=rule, legal=Legal.of(model.trie, [NOTHING] * batch, [None] * batch))
    scored = model.scored
    at_Q, item_Q = np.repeat(np.arange(batch), num_items), np.tile(model.trie.item_of_leaf, batch).astype(np.int64)
    with torch.no_grad():
        state_BD = scored.decoder.first_states(scored.vectors, requests.context)
        all_BF = scored.all_logprobs(state_BD, Asked.of(requests.legal, rule, scored.remembered(requests.context)))
        each_Q = scores(model, requests, np.zeros((batch, 1), np.int64), at_Q, np.zeros_like(at_Q), item_Q)
    assert all_BF.numpy() == pytest.approx(each_Q.numpy().reshape(batch, -1), abs=1e-4)


RULES = [(1.0, 0.0, 0.0, 0.0), (0.7, 0.3, 0.0, 1.0), (1.5, 0.05, 1.0, 3.0)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("levels", LEVELS)
def test_what_is_reported_sums_to_one_and_is_how_often_it_is_drawn(levels: int, rule: tuple[float, float, float, float]) -> None:
    """17,000 draws of one slot, after none and after two slots that are held: each legal item's share is what was said of it.

    About 200,000 of each kind over all depths and rules.
    """
    model = random_model(levels, levels, num_items=14, codes=3)
    for given_slots in (0, 2):
        request = one_request(levels, model, given_slots + 1, rule)
        many = many_times(request, 17_000, given_slots, seed=10 * levels + given_slots)
        slates = many.drawn_by(model.generator)
        item_T, logprob_T = slates.item_BS[:, given_slots], slates.logprob_BS[:, given_slots]
        legal = still_legal(many, slates.item_BS, 0, given_slots)
        found, first, count = np.unique(item_T, return_index=True, return_counts=True)
        assert set(found) <= set(legal)
        reported = np.exp(logprob_T[first])
        assert np.exp(logprob_T) == pytest.approx(reported[np.searchsorted(found, item_T)], abs=1e-5)
        at_Q = np.zeros(len(legal), np.int64)
        with torch.no_grad():
            probability = scores(model, request, slates.item_BS[:1], at_Q, at_Q + given_slots, legal).exp().numpy()
        assert reported == pytest.approx(probability[np.isin(legal, found)], abs=1e-5)
        assert reported.sum() + probability[~np.isin(legal, found)].sum() == pytest.approx(1, abs=1e-5)
        assert share_fits(count, reported)


def share_fits(count: np.ndarray, probability: np.ndarray) -> bool:
    """χ² of counts against probabilities; what is expected fewer than 5 times goes together with what was never drawn."""
    expected = probability.astype(float) * count.sum()
    usual = expected >= 5
    rest = [count[~usual].sum(), count.sum() - expected[usual].sum()]
    if rest[1] < 5:
        observed, expected = count[usual], expected[usual]
    else:
        observed, expected = np.append(count[usual], rest[0]), np.append(expected[usual], rest[1])
    return len(observed) < 2 or bool(chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4)


def test_whole_slates_are_drawn_as_often_as_the_sum_of_their_slots_says() -> None:
    model = random_model(3, levels=2, num_items=6, retired=0)
    request = freed(one_request(0, model, 2, (1.0, 0.1, 0.5, 0.0)), model)
    slates = many_times(request, 40_000, 0, seed=5).drawn_by(model.generator)
    _, first, count = np.unique(slates.item_BS, axis=0, return_index=True, return_counts=True)
    probability = np.exp(slates.logprob_BS[first].sum(1))
    assert len(probability) == 30
    assert probability.sum() == pytest.approx(1, abs=1e-5)
    assert share_fits(count, probability)


@pytest.mark.parametrize("levels", LEVELS)
def test_the_floor_alone_is_even_over_the_legal_items(levels: int) -> None:
    model = random_model(levels, levels, num_items=14)
    request = one_request(levels, model, 1, (1.0, 0.999, 0.0, 0.0))
    slates = many_times(request, 20_000, 0, seed=levels).drawn_by(model.generator)
    legal, count = still_legal(request, slates.item_BS, 0, 0), np.bincount(slates.item_BS[:, 0], minlength=15)
    assert np.exp(slates.logprob_BS) == pytest.approx(1 / len(legal), abs=0.001)
    assert share_fits(count[legal], np.full(len(legal), 1 / len(legal)))


@pytest.mark.parametrize("levels", LEVELS)
def test_temperature_floor_and_bonus_do_to_the_leaves_what_they_say(levels: int) -> None:
    """One node of leaves (all prefixes alike), by hand: softmax((logit + bonus · novelty) / temperature), and the floor."""
    model = random_model(7, levels, num_items=6, codes=1, retired=0)
    request = freed(one_request(0, model, 1, (1.0, 0.0, 0.0, 0.0)), model)
    rows = np.flatnonzero(request.legal_BR[0])
    item_BS, at_Q = np.zeros((1, 1), np.int64), np.zeros(len(rows), np.int64)

    def probabilities(*rule: float) -> np.ndarray:
        ruled = replace(request, rule=Rule(*(np.array([value], np.float32) for value in rule)))
        with torch.no_grad():
            return scores(model, ruled, item_BS, at_Q, at_Q, rows).exp().numpy()

    plain = np.log(probabilities(1.0, 0.0, 0.0, 0.0))
    weight = np.exp((plain + 1.5 * model.novelty_R[rows]) / 0.5)
    assert probabilities(0.5, 0.0, 1.5, 0.0) == pytest.approx(weight / weight.sum(), abs=1e-5)
    assert probabilities(0.5, 0.25, 1.5, 0.0) == pytest.approx(0.75 * weight / weight.sum() + 0.25 / len(rows), abs=1e-5)


@pytest.mark.parametrize("levels", LEVELS)
def test_what_is_expected_moves_the_odds_of_each_item_and_no_choice_moves_what_is_expected(levels: int) -> None:
    """One node of leaves, by hand: softmax(logit + weight · value); and no gradient of a log-probability reaches the value head."""
    model = random_model(9, levels, num_items=6, codes=1, retired=0)
    request = freed(one_request(0, model, 1, (1.0, 0.0, 0.0, 0.0)), model)
    rows, decoder = np.flatnonzero(request.legal_BR[0]), model.decoder
    item_BS, at_Q = np.zeros((1, 1), np.int64), np.zeros(len(rows), np.int64)
    plain = scores(model, request, item_BS, at_Q, at_Q, rows).detach().numpy()
    state_BSD = decoder.states(model.scored.vectors, request.context, torch.from_numpy(item_BS))
    state_QD, record = state_BSD[:, 0].expand(len(rows), -1), model.scored.record(request.context, at_Q, rows)
    fit_Q = decoder.fit(state_QD, model.scored.vectors.leaves(torch.from_numpy(rows)))
    learned_Q = decoder.value_logits(fit_Q, state_QD, record, torch.from_numpy(rows))
    value = (learned_Q + (decoder.value_trust - 1) * fit_Q).detach().numpy()  # what is believed of it
    weight = np.exp(plain + 2 * value)
    ruled = replace(request, rule=replace(request.rule, value_B=np.full(1, 2, np.float32)))
    found = scores(model, ruled, item_BS, at_Q, at_Q, rows)
    assert found.exp().detach().numpy() == pytest.approx(weight / weight.sum(), abs=1e-5)
    assert np.ptp(value) > 0.5
    found[0].backward()
    assert all(p.grad is None for name, p in decoder.named_parameters() if name.startswith(("value", "code_value", "affinity")))


# One number, wherever it is computed ----------------------------------------------------------------------------------


@settings(EXAMPLES, max_examples=20)
@given(seeds, st.sampled_from(LEVELS), st.integers(1, 60), ways)
def test_the_logged_number_is_the_score_whatever_the_batch(seed: int, levels: int, num_items: int, way: str) -> None:
    model, generator = (made := random_model(seed, levels, num_items)), made.generator
    requests = random_requests(seed, model, batch=32, slots=6)
    together = requests.drawn_by(generator, way)
    assert together.logprob_BS == pytest.approx(rescored(model, requests, together.item_BS, way), abs=1e-4)
    for at in range(0, 32, 8):
        alone = requests.of([at], extra_padding=at % 3)
        logged = together.logprob_BS[[at]]
        assert logged == pytest.approx(rescored(model, without_blanks(alone), together.item_BS[[at]], way), abs=1e-4)
        again = alone.drawn_by(generator, way)
        if (again.item_BS == together.item_BS[[at]]).all():
            assert again.logprob_BS == pytest.approx(logged, abs=1e-4)
        else:  # a number that fell within rounding of a limit between two items
            assert closest_limit_is_near(model, alone, again, together.item_BS[[at]])


def without_blanks(alone: Requests) -> Requests:
    """One request with no more columns of history than it has rows."""
    context = alone.context
    first = int((context.kind_BL[0] > 0).argmax()) if context.kind_BL.any() else HISTORY - 1
    columns = (column[:, first:] for column in (context.item_BL, context.kind_BL, context.gap_BL))
    return replace(alone, context=Context(*columns, context.feature_BX))


def closest_limit_is_near(model: Model, alone: Requests, again: Slates, item_BS: np.ndarray) -> bool:
    """Whether a nudge of 1e-5 in the numbers drawn with also changes the slate."""
    nudged = [np.clip(alone.uniform_BSU + nudge, 0, 1 - 1e-7).astype(np.float32) for nudge in (-1e-5, 1e-5)]
    slates = [replace(alone, uniform_BSU=uniform).drawn_by(model.generator).item_BS for uniform in nudged]
    return bool((slates[0] != slates[1]).any()) and again.item_BS.shape == item_BS.shape


@EXAMPLES
@given(seeds, st.sampled_from(LEVELS), st.integers(1, 20))
def test_the_frozen_decoder_has_the_states_of_the_decoder(seed: int, levels: int, num_items: int) -> None:
    model = random_model(seed, levels, num_items)
    random = np.random.default_rng(seed)
    context, slate_BS = random_context(random, 5, num_items), random.integers(0, num_items + 1, (5, 7))
    with torch.no_grad():
        expected = model.decoder.states(model.scored.vectors, context, torch.from_numpy(slate_BS)).numpy()
    assert frozen_states(model, context, slate_BS) == pytest.approx(expected, abs=1e-5)


def frozen_states(model: Model, context: Context, slate_BS: np.ndarray) -> np.ndarray:
    frozen = model.frozen
    memory, slots, states = frozen.memory(context), frozen.slots(frozen.memory(context), slate_BS.shape[1]), []
    for slot in range(slate_BS.shape[1]):
        before_B = model.trie.leaf_of_item[slate_BS[:, slot - 1]] if slot else None
        x_BD = frozen.slot_input(frozen.start(memory, context), slot, before_B)
        states.append(frozen.state(memory, slots, x_BD, slot))
    return np.stack(states, 1)


def test_the_number_depends_on_context_slots_before_and_features() -> None:
    """What would make the tests above empty: states that are all alike."""
    model = random_model(1, levels=2, num_items=20)
    random = np.random.default_rng(1)
    context, slate_BS = random_context(random, 6, 20), random.integers(1, 21, (6, 3))
    state_BSD = frozen_states(model, context, slate_BS)
    other = replace(context, feature_BX=np.zeros_like(context.feature_BX))
    assert np.abs(state_BSD - frozen_states(model, other, slate_BS)).max() > 0.1
    other = replace(context, item_BL=np.roll(context.item_BL, 1, 1))
    assert np.abs(state_BSD - frozen_states(model, other, slate_BS)).max() > 0.1
    assert np.abs(state_BSD - frozen_states(model, context, slate_BS[:, ::-1]))[:, 1:].max() > 0.1


# What may be drawn ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("levels", LEVELS)
def test_nothing_illegal_retired_excluded_or_repeated_in_a_million_slots(levels: int, way: str) -> None:
    """125,000 slots a depth and way."""
    model = random_model(levels, levels, num_items=70, codes=4)
    num_slots = 0
    for part in range(5):
        requests = replace(random_requests([levels, part], model, batch=2500, slots=10), sizes_B=np.full(2500, 10))
        slates = requests.drawn_by(model.generator, way)
        num_slots += slates.item_BS.size
        assert lawful(slates, requests)
    assert num_slots == 125_000


@EXAMPLES
@given(seeds, st.sampled_from(LEVELS), st.integers(0, 12), st.floats(0, 1), ways)
def test_slates_are_as_long_as_asked_or_as_there_are_legal_items(seed: int, levels: int, num_items: int, retired: float, way: str) -> None:
    """Small catalogues, sizes of all kinds in one batch, nothing legal in some."""
    model = random_model(seed, levels, num_items, retired=retired)
    requests = random_requests(seed, model, batch=9, slots=6)
    assert lawful(requests.drawn_by(model.generator, way), requests)


def lawful(slates: Slates, requests: Requests) -> bool:
    """Asserts all that holds of any slates: legal, different items, as many as asked or as there are, then rows 0 at log-probability 0."""
    item_BS, logprob_BS = slates.item_BS, slates.logprob_BS
    expected_B = np.minimum(requests.sizes_B, requests.legal_BR.sum(1))
    assert ((item_BS > 0) == (np.arange(item_BS.shape[1]) < expected_B[:, None])).all()
    at_B, at_S = item_BS.nonzero()
    assert requests.legal_BR[at_B, item_BS[at_B, at_S]].all()
    sorted_BS = np.sort(item_BS, 1)
    assert not ((sorted_BS[:, 1:] == sorted_BS[:, :-1]) & (sorted_BS[:, 1:] > 0)).any()
    assert np.isfinite(logprob_BS).all()
    assert (logprob_BS[item_BS == 0] == 0).all()
    assert (logprob_BS <= 1e-6).all()
    return True


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize("levels", LEVELS)
def test_a_catalogue_of_one_item_is_certain(levels: int, floor: float, way: str) -> None:
    model = random_model(1, levels, num_items=1, retired=0)
    request = freed(one_request(0, model, 3, (1.0, floor, 1.0, 0.0)), model)
    slates = request.drawn_by(model.generator, way)
    assert slates.item_BS.tolist() == [[1, 0, 0]]
    assert slates.logprob_BS == pytest.approx(np.zeros((1, 3)), abs=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("limited", [True, False])
@pytest.mark.parametrize("levels", LEVELS)
def test_nothing_legal_is_an_empty_slate(levels: int, limited: bool, way: str) -> None:
    model = random_model(2, levels, num_items=5, retired=0)
    legal = Legal.of(model.trie, [NOTHING if limited else np.arange(5)], [NOTHING if limited else None])
    request = replace(one_request(0, model, 3, (1.0, 0.1, 1.0, 0.0)), legal=legal)
    slates = request.drawn_by(model.generator, way)
    assert not slates.item_BS.any()
    assert not slates.logprob_BS.any()


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(np.float32(1), np.float32(0))])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("levels", LEVELS)
def test_the_ends_of_the_unit_interval_draw_legal_items_too(levels: int, uniform: float, way: str) -> None:
    model = random_model(levels, levels, num_items=40)
    requests = random_requests(4, model, batch=50, slots=6)
    requests = replace(requests, uniform_BSU=np.full(requests.uniform_BSU.shape, uniform, np.float32))
    assert lawful(requests.drawn_by(model.generator, way), requests)


@pytest.mark.parametrize("temperature", [0.01, 100.0])
def test_extreme_temperatures_leave_every_number_finite(temperature: float) -> None:
    """A beam is held to its numbers where it can be: chances below 1e-300 count as that."""
    model = random_model(5, levels=2, num_items=40)
    requests = random_requests(5, model, batch=50, slots=6)
    requests = replace(requests, rule=replace(requests.rule, temperature_B=np.full(50, temperature, np.float32)))
    slates = requests.drawn_by(model.generator)
    assert lawful(slates, requests)
    assert slates.logprob_BS == pytest.approx(rescored(model, requests, slates.item_BS), abs=2e-3)
    slates = requests.drawn_by(model.generator, "beam")
    assert lawful(slates, requests)
    if temperature > 1:
        assert slates.logprob_BS == pytest.approx(rescored(model, requests, slates.item_BS, "beam"), abs=1e-4)


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("levels", LEVELS)
def test_the_gradient_of_scores_is_finite_and_reaches_all_that_is_asked(levels: int, temperature: float, way: str) -> None:
    model = random_model(levels, levels, num_items=30)
    requests = random_requests(6, model, batch=20, slots=5)
    requests = replace(requests, rule=replace(requests.rule, temperature_B=np.full(20, temperature, np.float32)))
    item_BS = requests.drawn_by(model.generator, way).item_BS
    at_B, at_S = item_BS.nonzero()
    scores(model, requests, item_BS, at_B, at_S, item_BS[at_B, at_S], way).sum().backward()
    unread = ("value", "code_value", "affinity", "silence", *(["from_slot"] if way == "beam" else []))  # a beam sees no slot before
    gradients = {name: p.grad for name, p in model.decoder.named_parameters() if not name.startswith(unread)}
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients.values())
    if temperature == 1:
        assert all(gradient is not None and bool(gradient.any()) for gradient in gradients.values())


@pytest.mark.parametrize("levels", LEVELS)
def test_nothing_to_score_has_no_scores(levels: int) -> None:
    model = random_model(levels, levels, num_items=5)
    requests = random_requests(0, model, batch=2, slots=3)
    for way in WAYS:
        assert scores(model, requests, np.zeros((2, 3), np.int64), NOTHING, NOTHING, NOTHING, way).shape == (0,)
