import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.rewards import MAX_WEIGHT, Click, Weighted, rule_named


@pytest.mark.parametrize(
    ("feedback", "reward"),
    [({}, 0.0), ({"click": 1.0}, 1.0), ({"click": 0.5}, 1.0), ({"click": 0.0}, 0.0), ({"click": -1.0}, 0.0), ({"like": 1.0}, 0.0)],
)
def test_a_click_is_a_click_with_a_value_above_zero(feedback, reward):
    assert rule_named("click")(feedback) == reward


@pytest.mark.parametrize(
    ("feedback", "reward"),
    [({}, 0.0), ({"click": 1.0}, 1.0), ({"like": 3.0, "click": 1.0}, 7.0), ({"dislike": 1.0}, -1.0), ({"purchase": 9.0}, 0.0)],
)
def test_weighted_sums_weight_times_value_over_the_kinds_it_names(feedback, reward):
    assert rule_named("weighted:click=1,like=2,dislike=-1")(feedback) == reward


def test_the_default_is_only_for_slots_without_feedback():
    assert Click(default=0.25)({}) == 0.25
    assert Click(default=0.25)({"like": 1.0}) == 0.0
    assert Weighted((("click", 1.0),), default=-0.5)({}) == -0.5
    assert Weighted((("click", 1.0),), default=-0.5)({"like": 1.0}) == 0.0


@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(-1e6, 1e6), min_size=1), st.randoms(use_true_random=False))
def test_a_rule_is_what_its_name_says_and_ignores_the_order_of_feedback(weights, rng):
    rule = Weighted(tuple(sorted(weights.items())))
    kinds = list(weights)
    rng.shuffle(kinds)
    text = "weighted:" + ",".join(f"{kind}={weights[kind]!r}" for kind in kinds)
    assert rule_named(text) == rule_named(rule.name) == rule
    feedback = {kind: weights[kind] / 3 for kind in kinds}
    assert rule(feedback) == rule(dict(sorted(feedback.items(), reverse=True)))
    assert math.isclose(rule(feedback), math.fsum(w * w / 3 for w in weights.values()), rel_tol=1e-9)


@pytest.mark.parametrize(
    "text",
    ["", "clicks", "click:1", "weighted", "weighted:"]
    + [f"weighted:{weights}" for weights in ("a", "a=one", "=1", "a=1,a=2", "a=nan", "a=inf", f"a={MAX_WEIGHT * 1.01}")],
)
def test_an_unknown_rule_is_refused_by_name_with_what_is_allowed(text):
    with pytest.raises(ValueError, match=r"allowed: click \| weighted:") as raised:
        rule_named(text)
    assert repr(text) in str(raised.value)


def test_rules_have_a_name_and_a_version():
    assert [(rule.name, rule.version) for rule in (rule_named("click"), rule_named("weighted:b=2,a=1"))] == [
        ("click", 1),
        ("weighted:a=1.0,b=2.0", 1),
    ]
