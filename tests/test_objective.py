"""One step's loss: what teaches and what must not, and that it teaches."""

from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from test_generate import (
    NOTHING,
    Model,
    model_with,
    random_context,
    random_decoder,
    random_ids,
    random_legal,
    random_model,
    random_rule,
)

from models.decoder import Context
from models.generate import WAYS
from models.losses import leave_one_out, topr
from models.objective import Batch, ObjectiveConfig, Slots, Terms, objective
from models.surprise import Surprise
from models.trie import Legal
from models.walk import Asked, Rule

NUM_ITEMS, BATCH, SLOTS = 25, 12, 5
POLICY = ObjectiveConfig(policy_weight=1, value_weight=0, likelihood_weight=0, value_blend=0)
VALUE = ObjectiveConfig(policy_weight=0, likelihood_weight=0)
LIKELIHOOD = ObjectiveConfig(policy_weight=0, value_weight=0)
Gradients = dict[str, torch.Tensor]


def random_batch(seed: int, model: Model, *, own: float = 0.5, stale: float = 0.3, beam: float = 0.4) -> Batch:
    """Slates drawn by the model, some slots shown; logged with numbers that are a little off, as of an older version."""
    random = np.random.default_rng(seed)
    legal, _ = random_legal(random, BATCH, model.trie, model.alive_R, limited=0.3)
    context, rule = random_context(random, BATCH, NUM_ITEMS), random_rule(random, BATCH)
    uniform_BSU = random.random((BATCH, SLOTS, model.trie.levels + 1), dtype=np.float32)
    own_B = np.random.default_rng([seed, 2]).random(BATCH) < own
    beam_B = own_B & (np.random.default_rng([seed, 3]).random(BATCH) < beam)
    slot, beams = (model.generator.draw(context, legal, rule, uniform_BSU, np.full(BATCH, SLOTS), way=way) for way in WAYS)
    item_BS, logprob_BS = (
        np.where(beam_B[:, None], *pair) for pair in ((beams.item_BS, slot.item_BS), (beams.logprob_BS, slot.logprob_BS))
    )
    shown_BS = (item_BS > 0) & (random.random((BATCH, SLOTS)) < 0.7)
    return Batch(
        context=context,
        slate_BS=item_BS,
        shown_BS=shown_BS,
        reward_BS=((random.random((BATCH, SLOTS)) < 0.4) & shown_BS).astype(np.float32),
        logged_BS=logprob_BS + stale * random.standard_normal((BATCH, SLOTS)).astype(np.float32),
        own_B=own_B,
        beam_B=beam_B,
        weight_B=random.choice([0.5, 1.0], BATCH).astype(np.float32),
        legal=legal,
        rule=rule,
    )


def learned(model: Model, batch: Batch, config: ObjectiveConfig) -> tuple[Terms, Gradients]:
    """The terms and the gradient of every weight."""
    model.decoder.zero_grad(set_to_none=True)
    terms = objective(model.scored, batch, config)
    torch.autograd.backward(terms.loss)
    named = model.decoder.named_parameters()
    return terms, {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named}


def same(first: Gradients, second: Gradients) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def close(first: Gradients, second: Gradients) -> bool:
    return all(torch.allclose(first[name], second[name], atol=1e-6, rtol=1e-4) for name in first)


def size(gradients: Gradients) -> float:
    return sum(float(gradient.abs().sum()) for gradient in gradients.values())


def only(batch: Batch, kept_B: np.ndarray) -> Batch:
    """The slates of a batch for which `kept_B` is true."""
    context = batch.context
    columns = (context.item_BL, context.kind_BL, context.gap_BL, context.feature_BX)
    names = ("slate_BS", "shown_BS", "reward_BS", "logged_BS", "own_B", "beam_B", "weight_B")
    return replace(
        batch,
        context=Context(*(column[kept_B] for column in columns)),
        rule=batch.rule.at(np.flatnonzero(kept_B)),
        legal=batch.legal.at(np.flatnonzero(kept_B)),
        **{name: getattr(batch, name)[kept_B] for name in names},
    )


@pytest.fixture(params=[1, 3])
def model(request: pytest.FixtureRequest) -> Model:
    return random_model(5, request.param, NUM_ITEMS)


# What teaches what ----------------------------------------------------------------------------------------------------


def test_imported_slates_never_enter_the_policy_term(model: Model) -> None:
    batch = replace(random_batch(1, model), own_B=np.zeros(BATCH, bool))
    _, without = learned(model, batch, ObjectiveConfig(policy_weight=0))
    terms, gradients = learned(model, batch, ObjectiveConfig(policy_weight=1000))
    assert same(without, gradients)
    assert size(gradients) > 0
    assert terms.policy == 0
    assert np.isnan(terms.effective_share)


def test_imported_slates_beside_own_ones_change_no_policy_gradient(model: Model) -> None:
    batch = random_batch(2, model)
    assert 0 < batch.own_B.sum() < BATCH
    _, mixed = learned(model, batch, POLICY)
    _, own = learned(model, only(batch, batch.own_B), POLICY)
    assert size(own) > 0
    assert close(mixed, own)


def test_own_slates_never_enter_the_likelihood(model: Model) -> None:
    batch = random_batch(3, model)
    terms, mixed = learned(model, batch, LIKELIHOOD)
    _, imported = learned(model, only(batch, ~batch.own_B), LIKELIHOOD)
    assert size(imported) > 0
    assert close(mixed, imported)
    own, none = learned(model, replace(batch, own_B=np.ones(BATCH, bool)), LIKELIHOOD)
    assert (own.likelihood, size(none)) == (0, 0)
    assert terms.likelihood > 0


def test_the_policy_term_does_not_move_its_own_baseline(model: Model) -> None:
    _, gradients = learned(model, random_batch(10, model), replace(POLICY, value_blend=1))
    assert size(gradients) > 0
    assert size({name: gradient for name, gradient in gradients.items() if name.startswith("value")}) == 0


@pytest.mark.parametrize("config", [POLICY, VALUE, LIKELIHOOD, ObjectiveConfig(policy_weight=1)])
def test_what_was_not_shown_teaches_nothing(model: Model, config: ObjectiveConfig) -> None:
    """Rewards, logged numbers and, at the end of a slate, items of slots not shown can be anything."""
    batch = random_batch(4, model)
    last_shown_B = np.where(batch.shown_BS, np.arange(SLOTS), -1).max(1)
    after_BS = np.arange(SLOTS) > last_shown_B[:, None]
    assert after_BS.any()
    assert (~batch.shown_BS & ~after_BS).any()
    other = replace(
        batch,
        reward_BS=np.where(batch.shown_BS, batch.reward_BS, 0.75).astype(np.float32),
        logged_BS=np.where(batch.shown_BS, batch.logged_BS, -30).astype(np.float32),
        slate_BS=np.where(after_BS, np.where(batch.beam_B[:, None], 0, 7), batch.slate_BS),  # a beam holds no item twice
    )
    assert close(learned(model, batch, config)[1], learned(model, other, config)[1])


def test_a_batch_in_which_nothing_was_shown_has_no_gradient(model: Model) -> None:
    batch = replace(random_batch(6, model), shown_BS=np.zeros((BATCH, SLOTS), bool))
    terms, gradients = learned(model, batch, ObjectiveConfig(policy_weight=1))
    assert float(terms.loss.detach()) == 0
    assert size(gradients) == 0


def test_a_weight_of_nothing_takes_a_slate_out(model: Model) -> None:
    batch = random_batch(7, model, own=1.0)
    half_B = np.arange(BATCH) % 2 == 0
    _, weighed = learned(model, replace(batch, weight_B=half_B.astype(np.float32)), POLICY)
    _, alone = learned(model, replace(only(batch, half_B), weight_B=np.ones(half_B.sum(), np.float32)), POLICY)
    share = batch.shown_BS[half_B].sum() / batch.shown_BS.sum()
    assert close(weighed, {name: gradient * share for name, gradient in alone.items()})


# The numbers ----------------------------------------------------------------------------------------------------------


def test_the_loss_is_what_its_parts_say(model: Model) -> None:
    """Each part taken apart: TOPR over own shown slots with the blended baseline, cross-entropy over all, likelihood of what was taken."""
    batch, config = random_batch(8, model), ObjectiveConfig(policy_weight=2, value_weight=0.5, likelihood_weight=3, value_blend=0.25)
    scored = model.scored
    with torch.no_grad():
        terms = objective(scored, batch, config)
        state_BSD = scored.decoder.states(scored.vectors, batch.context, torch.from_numpy(batch.slate_BS))
        policy, value, codes, likelihood = [], [], [], []
        for at, slot in zip(*batch.shown_BS.nonzero(), strict=True):
            item, own, weight = batch.slate_BS[at, slot : slot + 1], batch.own_B[at], float(batch.weight_B[at])
            before = batch.slate_BS[[at], :slot] if own else np.zeros((1, 0), np.int64)
            asked = Asked.of(batch.legal, batch.rule, scored.remembered(batch.context)).at(np.array([at]))
            state_QD = state_BSD[[at], slot]
            if batch.beam_B[at]:
                logprob = scored.beam_logprobs(state_BSD[[at], 0], asked, batch.slate_BS[[at]])[:, slot]
            else:
                logprob = scored.logprobs(state_QD, asked.without(model.trie.leaf_of_item[before]), item)
            record = scored.record(batch.context, np.array([at]), item)
            fit_Q = scored.decoder.fit(state_QD, scored.vectors.leaves(torch.from_numpy(item)))
            learned_Q = scored.decoder.value_logits(fit_Q, state_QD, record, torch.from_numpy(item))
            q, believed = (float(logit_Q.sigmoid()) for logit_Q in (learned_Q, learned_Q + (scored.decoder.value_trust - 1) * fit_Q))
            reward = float(batch.reward_BS[at, slot])
            value.append(-weight * np.log(q if reward else 1 - q))
            for level, (code_Q, vector_QD) in enumerate(scored.above(item)):
                under = float(scored.decoder.code_value_logits(vector_QD, state_QD, record, code_Q, level).sigmoid())
                codes.append(-weight * np.log(under if reward else 1 - under))
            if own:
                rewards, shown = (torch.from_numpy(column[[at]]) for column in (batch.reward_BS, batch.shown_BS))
                baseline = 0.75 * float(leave_one_out(rewards, shown.float())[0, slot]) + 0.25 * believed
                advantage, logged = torch.tensor([reward - baseline]), torch.from_numpy(batch.logged_BS[at, slot : slot + 1])
                policy.append(weight * float(topr(logprob, logged, advantage, torch.tensor([reward]))))
            elif reward > 0:
                likelihood.append(-weight * float(logprob))
    assert terms.policy == pytest.approx(np.mean(policy), abs=1e-5)
    assert terms.value == pytest.approx(np.mean(value), abs=1e-5)
    assert terms.likelihood == pytest.approx(np.mean(likelihood), abs=1e-5)
    values = (np.sum(value) + np.sum(codes)) / len(value)
    assert float(terms.loss) == pytest.approx(2 * np.mean(policy) + 0.5 * values + 3 * np.mean(likelihood), abs=1e-4)


@pytest.mark.parametrize("parts", [2, 5])
def test_parts_of_a_batch_add_up_to_the_whole(model: Model, parts: int) -> None:
    """Loss, terms and gradients: what is learned does not depend on how many slates are held at a time."""
    batch = random_batch(9, model)
    whole, gradients = learned(model, batch, ObjectiveConfig(policy_weight=1))
    model.decoder.zero_grad(set_to_none=True)
    terms = []
    for kept in np.array_split(np.arange(BATCH), parts):
        part = only(batch, np.isin(np.arange(BATCH), kept))
        terms.append(objective(model.scored, part, ObjectiveConfig(policy_weight=1), Slots.of([batch])))
        torch.autograd.backward(terms[-1].loss)
    total = reduce(add, terms)
    for name in ("policy", "value", "likelihood", "effective_share"):
        assert getattr(total, name) == pytest.approx(getattr(whole, name), rel=1e-4, abs=1e-6)
    assert float(total.loss.detach()) == pytest.approx(float(whole.loss.detach()), rel=1e-4)
    named = model.decoder.named_parameters()
    assert close(gradients, {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named})


def test_numbers_just_logged_have_an_effective_share_of_one(model: Model) -> None:
    batch = random_batch(9, model, own=1.0, stale=0.0)
    assert learned(model, batch, ObjectiveConfig(policy_weight=1))[0].effective_share == pytest.approx(1, abs=1e-5)
    batch = random_batch(9, model, own=1.0, stale=2.0)
    assert learned(model, batch, ObjectiveConfig(policy_weight=1))[0].effective_share < 0.7


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("policy", "nonsense", "objective.policy is 'nonsense'; it must be one of topr, "),
        ("value_weight", -1, "objective.value_weight is -1; it must be 0..1000"),
        ("value_blend", 1.5, r"objective.value_blend is 1.5; it must be 0..1$"),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**{name: value})


# That it teaches ------------------------------------------------------------------------------------------------------


def chance_of(model: Model, item: int) -> float:
    """The probability of an item in the first slot, for a user of whom nothing is known."""
    nobody = Context(*(np.zeros((1, 1), np.int64) for _ in range(4)))
    scored = model.scored
    with torch.no_grad():
        state_BSD = scored.decoder.states(scored.vectors, nobody, torch.zeros((1, 1), dtype=torch.int64))
        rule = Rule(np.ones(1, np.float32), *(np.zeros(1, np.float32) for _ in range(3)))
        asked = Asked.of(Legal.of(model.trie, [NOTHING], [None]), rule, scored.remembered(nobody))
        return float(scored.logprobs(state_BSD[:, 0], asked, np.array([item])).exp())


def bandit_batch(model: Model, random: np.random.Generator, rewarded: int, *, own: bool, way: str) -> Batch:
    """Slates of the model itself, all shown; only one item earns a reward."""
    nobody = Context(*(np.zeros((16, 1), np.int64) for _ in range(4)))
    rule = Rule(np.ones(16, np.float32), np.full(16, 0.05, np.float32), *(np.zeros(16, np.float32) for _ in range(2)))
    legal = Legal.of(model.trie, [NOTHING] * 16, [None] * 16)
    uniform_BSU = random.random((16, 3, model.trie.levels + 1), dtype=np.float32)
    slates = model.generator.draw(nobody, legal, rule, uniform_BSU, np.full(16, 3), way=way)
    return Batch(
        context=nobody,
        slate_BS=slates.item_BS,
        shown_BS=slates.item_BS > 0,
        reward_BS=(slates.item_BS == rewarded).astype(np.float32),
        logged_BS=slates.logprob_BS,
        own_B=np.full(16, own),
        beam_B=np.full(16, own and way == "beam"),
        weight_B=np.ones(16, np.float32),
        legal=legal,
        rule=rule,
    )


@pytest.mark.parametrize(("own", "way"), [(True, "slot"), (True, "beam"), (False, "slot")])
@pytest.mark.parametrize("levels", [1, 2])
def test_a_hundred_steps_find_the_rewarded_item(levels: int, own: bool, way: str) -> None:
    random = np.random.default_rng(levels)
    model = model_with(random_decoder(random, 8, levels, 2), random_ids(random, 8, levels, 2))
    rewarded = min(range(1, 9), key=lambda item: chance_of(model, item))
    assert chance_of(model, rewarded) < 1 / 8
    optimizer = torch.optim.Adam(model.decoder.parameters(), lr=1e-2)
    for _ in range(120):
        terms = objective(model.scored, bandit_batch(model, random, rewarded, own=own, way=way), ObjectiveConfig(policy_weight=1))
        optimizer.zero_grad()
        torch.autograd.backward(terms.loss)
        optimizer.step()
    assert chance_of(model, rewarded) > 0.6


# What was wrong about an item ------------------------------------------------------------------------------------------


def test_what_was_wrong_about_an_item_moves_it_and_no_other_until_it_is_evicted() -> None:
    """One item taken twice: more is expected of it, it is less novel, and nothing was learned of the others."""
    decoder = random_model(3, levels=1, num_items=4).decoder
    decoder.value_bias.data.zero_()
    nobody_QZ = torch.zeros(2, len(decoder.affinity.weight))  # so that all is the item's own
    unmet_QK = torch.zeros(2, decoder.num_kinds)
    nothing_Q, all_Q = torch.zeros(2), torch.ones(2)
    seen = Surprise(1, np.zeros(2, np.int64), torch.tensor([1, 1]), nobody_QZ, unmet_QK, nothing_Q, nothing_Q, all_Q, all_Q)
    decoder.correct(seen, 0.5)
    assert float(decoder.value_bias[1]) == pytest.approx(1.0 / (4 + 0.5))
    assert float(decoder.value_information[1]) == pytest.approx(0.5)
    assert not decoder.value_bias[[0, 2, 3, 4]].any()
    decoder.evict(torch.tensor([1]))
    assert not decoder.value_bias[1]
    assert not decoder.value_information[1]
    assert not decoder.paces.bias[1].any()


def test_what_gradients_make_of_states_is_believed_as_far_as_it_proves_right() -> None:
    """Even clicks of what they call likely and unlikely: not at all; as likely as they say: as it was."""
    random = np.random.default_rng(0)
    for truth in (0.0, 1.0):
        decoder = random_model(3, levels=1, num_items=4).decoder
        for nothing in (decoder.value_bias, decoder.affinity.weight, decoder.value_met):
            nothing.data.zero_()
        decoder.value_trust.data.fill_(1)
        for _ in range(20):
            fit_Q = torch.as_tensor(random.normal(0, 1, 400), dtype=torch.float32)
            nobody_QZ, unmet_QK = torch.zeros(400, len(decoder.affinity.weight)), torch.zeros(400, decoder.num_kinds)
            item_Q, expected_Q = torch.as_tensor(random.integers(1, 5, 400)), decoder.value_trust * fit_Q
            columns = nobody_QZ, unmet_QK, fit_Q, expected_Q, (truth * fit_Q).sigmoid(), torch.ones(400)
            decoder.correct(Surprise(400, np.arange(400), item_Q, *columns), 0.5)
        assert float(decoder.value_trust) == pytest.approx(truth, abs=0.05)


def test_what_is_expected_beside_counts_as_expected() -> None:
    """Whoever was told what came to be told has nothing to learn, whichever part of the value head knew it."""
    decoder = random_model(3, levels=1, num_items=4).decoder
    before, weight_ZS, met_K = decoder.value_bias.clone(), decoder.affinity.weight.clone(), decoder.value_met.clone()
    standing_QZ, met_QK = torch.randn(2, len(decoder.affinity.weight)), torch.rand(2, decoder.num_kinds)
    logit_Q = torch.tensor([1.5, -0.5])
    decoder.paces.bias[:] = before[:, None]
    decoder.value_trust.data.fill_(0.4)
    decoder.paces.weight[:] = torch.cat([weight_ZS.flatten(), met_K, torch.tensor([0.4])])
    columns = standing_QZ, met_QK, torch.randn(2), logit_Q, logit_Q.sigmoid(), torch.ones(2)
    seen = Surprise(1, np.zeros(2, np.int64), torch.tensor([1, 2]), *columns)
    decoder.correct(seen, 0.5)
    assert torch.allclose(decoder.value_bias, before, atol=1e-5)
    assert torch.allclose(decoder.affinity.weight, weight_ZS, atol=1e-5)
    assert torch.allclose(decoder.value_met, met_K, atol=1e-5)
    assert float(decoder.value_trust) == pytest.approx(0.4, abs=1e-5)
