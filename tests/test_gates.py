"""The gates of what a minute tells: what they refuse, what they let pass, and that a world which has changed is believed."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.gates import CONTRADICTS, FEW_MINUTES, RATE, Gates, Told, fair_weights
from recsys.guard import GuardConfig
from tests.runs import finished

USERS, SLOTS = 30, 8
SILENT = Told(np.zeros(0, np.int64), np.zeros(0), np.zeros(0), np.zeros(0))


def told(seed: int, *, rate: float = 0.35, flipped: bool = False, sense: float = 1.0, users: int = USERS) -> Told:
    """A minute of which `sense` of what is expected is true."""
    random = np.random.default_rng(seed)
    user_Q = np.repeat(np.arange(users), SLOTS)
    logit_Q = np.log(rate / (1 - rate)) + random.normal(0, 0.7, users * SLOTS)
    expected_Q = 1 / (1 + np.exp(-logit_Q))
    true_Q = sense * expected_Q + (1 - sense) * rate
    earned_Q = (random.random(len(true_Q)) < true_Q) != flipped
    return Told(user_Q, expected_Q, earned_Q.astype(float), np.ones(len(true_Q)))


def used_to(gates: Gates, rate: float = 0.35) -> Gates:
    assert [gates.refusal(told(seed, rate=rate)) for seed in range(10)] == [None] * 10
    return gates


def test_ten_minutes_of_reversed_labels_are_refused_and_the_next_is_believed() -> None:
    for start in range(0, 2000, 100):
        gates = used_to(Gates(GuardConfig()))
        refused = [gates.refusal(told(start + seed, flipped=True)) for seed in range(10, 20)]
        assert refused == [CONTRADICTS] * 10
        assert gates.refusal(told(start + 20)) is None


@pytest.mark.parametrize(("sense", "most"), [(0.0, 10), (0.3, 1), (1.0, 0)])
def test_what_is_merely_wrong_is_learned(sense: float, most: int) -> None:
    """Tastes that have moved make expectations worthless, not the reverse of the truth: of 500 minutes chance takes one in a hundred."""
    gates = used_to(Gates(GuardConfig()))
    refused = [gates.refusal(told(seed, sense=sense)) for seed in range(10, 510)]
    assert sum(reason is not None for reason in refused) <= most


@given(seed=st.integers(0, 10**6), flooders=st.integers(1, 2))
def test_few_who_contradict_loudly_are_not_everybody(seed: int, flooders: int) -> None:
    minute = told(seed)
    loud_Q = minute.user_Q < flooders
    earned_Q = np.where(loud_Q, minute.expected_Q < np.median(minute.expected_Q), minute.earned_Q)
    loud = Told(minute.user_Q, minute.expected_Q, earned_Q.astype(float), np.where(loud_Q, 4.0, 1.0))
    assert loud.contradiction > GuardConfig().contradiction


def test_feedback_that_stops_is_not_taken_for_dislike() -> None:
    gates = used_to(Gates(GuardConfig()))
    minute = told(11)
    none = Told(minute.user_Q, minute.expected_Q, np.zeros(len(minute.user_Q)), minute.weight_Q)
    everything = Told(minute.user_Q, minute.expected_Q, np.ones(len(minute.user_Q)), minute.weight_Q)
    assert gates.refusal(none) == RATE
    assert gates.refusal(everything) == RATE
    assert gates.refusal(told(12)) is None


def test_few_clicks_are_no_reason() -> None:
    """At one click in fifty a minute without any is luck."""
    gates = used_to(Gates(GuardConfig()), rate=0.02)
    assert [gates.refusal(told(seed, rate=rate)) for seed in range(10, 60) for rate in (0.005, 0.05)] == [None] * 100


@pytest.mark.parametrize("change", [{"flipped": True}, {"rate": 0.01}])
def test_a_world_that_has_changed_is_believed_after_a_while(change: dict[str, float]) -> None:
    """Nobody has learned of it meanwhile; once it is believed it stays so, however long it takes to be learned."""
    config = GuardConfig(patience=4)
    gates = used_to(Gates(config))
    refused = [gates.refusal(told(seed, **change)) is not None for seed in range(10, 40)]  # type: ignore[arg-type]
    assert refused == [True] * config.patience + [False] * 26
    assert [gates.refusal(told(seed, rate=change.get("rate", 0.35))) for seed in range(40, 50)] == [None] * 10
    assert gates.refusal(told(50, rate=change.get("rate", 0.35), flipped=True)) is not None, "and then it looks again"


def test_gates_turned_off_refuse_nothing() -> None:
    gates = used_to(Gates(GuardConfig(contradiction=0, max_rate_change=1e9)))
    assert [gates.refusal(told(seed, flipped=True)) for seed in range(10, 20)] == [None] * 10


def test_nothing_told_and_too_little_told_is_no_reason() -> None:
    gates = Gates(GuardConfig())
    assert [gates.refusal(SILENT) for _ in range(FEW_MINUTES + 1)] == [None] * (FEW_MINUTES + 1)
    assert gates.refusal(told(0, flipped=True, users=5)) is None
    assert gates.refusal(Told(np.zeros(9, np.int64), np.full(9, 0.5), np.ones(9), np.ones(9))) is None


@given(st.lists(st.booleans(), max_size=12), st.integers(0, 11))
def test_gates_go_on_where_they_were(flips: list[bool], at: int) -> None:
    gates, kept = Gates(GuardConfig(patience=3)), Gates(GuardConfig(patience=3))
    for place, flipped in enumerate(flips):
        if place == at:
            kept = Gates.of(GuardConfig(patience=3), json.loads(json.dumps(kept.state())))
        minute = told(place, flipped=flipped)
        assert gates.refusal(minute) == kept.refusal(minute)
        assert gates.state() == kept.state()


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 5))
def test_no_user_weighs_more_than_the_cap(users: list[str], cap: int) -> None:
    weights = fair_weights(users, cap)
    for user in "abc":
        assert sum(weight for weight, of in zip(weights, users, strict=True) if of == user) == pytest.approx(min(cap, users.count(user)))


@pytest.mark.parametrize("setting", [{"contradiction": 0.6}, {"max_rate_change": 1.0}, {"patience": -1}])
def test_bounds_out_of_range_are_named(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"guard\.{next(iter(setting))}"):
        GuardConfig(**setting)  # type: ignore[arg-type]


def test_minutes_in_doubt_are_those_refused_and_the_present_one() -> None:
    """None while all is believed; then one more with each refusal, until a minute is believed again."""
    gates = used_to(Gates(GuardConfig()))
    found = []
    for _ in range(3):
        found.append(gates.minutes_in_doubt)
        assert gates.refusal(told(51, flipped=True)) == CONTRADICTS
    assert [*found, gates.minutes_in_doubt] == [0, 2, 3, 4]
    assert gates.refusal(told(52)) is None
    assert gates.minutes_in_doubt == 0


def test_who_has_more_than_the_cap_has_no_more_when_it_is_replayed(tmp_path: Path) -> None:
    """What was learned once at a small weight would else come back at a whole one, minute after minute."""
    minutes = 6
    loops = {cap: finished(tmp_path / str(cap), minutes, settings=[f"learner.trainer.user_cap={cap}"]) for cap in (1, 1_000)}
    kept = {cap: Counter(lesson.decision.user_id for lesson in loop.learner._reservoir._lessons) for cap, loop in loops.items()}
    assert kept[1_000].total() == loops[1_000].learner.joiner.books().decisions["trained"]
    loud = [user for user, _ in kept[1_000].most_common(5)]
    assert sum(kept[1_000][user] for user in loud) > 2 * minutes * len(loud)
    assert sum(kept[1][user] for user in loud) < 1.2 * minutes * len(loud)  # each weighs one a minute
