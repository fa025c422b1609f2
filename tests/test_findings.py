"""What runs say of learning, from records made by hand; and credit, from a real run."""

from pathlib import Path

import numpy as np
import pytest

from recsys.audience import flooders_of
from recsys.presets import tiny
from recsys.simulate import findings
from recsys.simulate.credit import credit
from recsys.simulate.diary import ARRIVALS, COLUMNS, Record
from recsys.simulate.stage import Beginning
from recsys.simulate.worlds import Population
from recsys.truth import hash_share, toy_truth
from recsys.worlds import SimulatedWorld, World, WorldConfig

NUMBER = 480


def record(columns: dict[str, object], user_ids: list[str] | None = None, **figures: object) -> Record:
    """A decision a minute of ten slots, half as good as it could be, but for what is said."""
    filled = {name: np.zeros(NUMBER) for name in COLUMNS} | {name: np.zeros(0) for name in ARRIVALS}
    filled |= {"minute": np.arange(NUMBER), "slots": np.full(NUMBER, 10.0), "expected": np.full(NUMBER, 2.5), "best": np.full(NUMBER, 5.0)}
    return Record(filled | {name: np.asarray(value, float) for name, value in columns.items()}, user_ids or ["u"], figures)


def test_newcomers_are_told_by_their_turns_and_residents_left_out() -> None:
    user = np.repeat([0, 1, 2, 3], NUMBER // 4)
    turn = np.tile(np.arange(NUMBER // 4), 4)
    expected = np.where(turn == 0, 1.0, 4.0)
    crowd = {"online": {0: record({"user": user, "turn": turn, "expected": expected}, ["a", "b", "c", "d"])}}
    found = findings.adaptation(crowd, {})
    assert found is not None
    assert found["items"] is None
    assert found["users"]["online"]["0"] == pytest.approx(0.2)
    assert found["users"]["online"]["6-10"] == pytest.approx(0.8)
    assert findings.adaptation({}, {}) is None


def test_new_items_reach_half_of_their_rate() -> None:
    arrived = np.concatenate([[0.0], np.zeros(474)])
    shown = np.concatenate([[np.nan], np.arange(474) + 6.0])
    life = {"arrival": np.zeros(475), "arrived_minute": arrived, "shown_minute": shown, "expected_reward": shown}
    found = findings.adaptation({}, {"online": {0: record(life)}})
    assert found is not None
    online = found["items"]["online"]
    assert online["arrived"] == 1
    assert 0.9 < online["settled_rate"] <= 1
    assert 5 <= online["minutes_to_half"] <= 6


def test_new_items_are_told_by_the_exposures_that_each_had() -> None:
    """Two items shown in turn, and one that never is: the first earns 1, 2, 3, the second 10, 20, 30."""
    life = {
        "arrival": [0, 1, 2, 0, 1, 0, 1, 0, 1],
        "arrived_minute": [0, 0, 5, 0, 0, 0, 0, 0, 0],
        "shown_minute": [np.nan, np.nan, np.nan, 1, 1, 2, 2, 2, 3],
        "expected_reward": [np.nan, np.nan, np.nan, 1, 10, 2, 20, 3, 30],
    }
    found = findings.adaptation({}, {"online": {0: record(life), 1: record(life)}})
    assert found is not None
    rewards = found["items"]["online"]["reward_by_exposures"]
    assert (rewards["0"], rewards["1"], rewards["2"], rewards["3-5"]) == (5.5, 11.0, 16.5, None)


def test_a_second_try_counts_what_is_repeated() -> None:
    before = np.where(np.arange(NUMBER) % 2 == 0, 0.0, 2.0)
    before[0] = np.nan
    repeated = np.where(before > 0, 0.8, 0.2)
    repeated[0] = np.nan
    alone, whole = record({"before": before, "repeated": repeated}), record({}, second_tries=[(1, 0.5, 0.2), (4, 0.7, 0.0)])
    found = findings.second_try({"memory_only": {0: alone}, "online": {0: whole}})
    assert found is not None
    assert found["memory_only"] == {"after_nothing": pytest.approx(0.2), "after_a_reward": pytest.approx(0.8)}
    passed_by, disliked = (found["online"].pop(f"{what}_by_turns") for what in ("had_he_passed_all_by", "had_he_disliked_all"))
    assert found["online"] == {"had_he_passed_all_by": pytest.approx(0.6), "had_he_disliked_all": pytest.approx(0.1)}
    assert (passed_by["1"], passed_by["2"], passed_by["3-5"], disliked["3-5"]) == (0.5, None, 0.7, 0.0)
    assert findings.second_try({"online": {0: record({})}}) is None


def test_staleness_is_regret_by_minutes() -> None:
    runs = {"online": {0: record({})}, "stale_5": {0: record({"expected": np.full(NUMBER, 2.0)})}}
    rows = findings.staleness(runs, {"stale_5": 5, "online": 1})
    assert rows is not None
    assert [row["minutes"] for row in rows] == [1, 5]
    assert [row["regret"] for row in rows] == pytest.approx([0.25, 0.3])
    assert findings.staleness({"online": runs["online"]}, {"online": 1}) is None


def test_floods_are_judged_by_what_others_lose() -> None:
    users = [f"u{number}" for number in range(200)]
    floods = flooders_of(users, 0.1)
    user = np.arange(NUMBER) % 200
    attacked = record(
        {"user": user, "expected": np.where(floods[user], 0.0, 2.4)}, users, refused=[(3, "contradicts"), (9, "contradicts")], capped=7
    )
    peaceful = record({"user": user}, users, refused=[], capped=0)
    found = findings.hostile({"online": {0: attacked}}, {"online": {0: peaceful}}, 0.1)
    assert found is not None
    assert found["cost"] == pytest.approx(0.04)
    assert found["gates"] == {"minutes_refused": {"contradicts": 2}, "slates_capped": 7}


def test_a_lie_costs_by_what_was_learned_of_it() -> None:
    minute = np.arange(NUMBER)
    lied = (minute >= 60) & (minute < 75)
    open_ = record({"expected": np.where(lied, 1.25, 2.5)}, refused=[])
    guarded = record({}, refused=[(at, "contradicts") for at in (3, *range(60, 69))])
    found = findings.label_flip(
        {"online": {0: guarded}, "unguarded": {0: open_}, "random": {0: record({})}}, {"online": {0: record({})}}, 60, 10
    )
    assert found is not None
    assert found.keys() == {"online", "unguarded"}
    assert [found[name]["minutes_learned"] for name in found] == [1, 10]
    assert [found[name]["cost_meanwhile"] for name in found] == pytest.approx([0, 0.5])
    assert found["unguarded"]["cost_in_the_hour_after"] == pytest.approx(0)


def test_forgetting_compares_before_with_return() -> None:
    users = [f"u{number}" for number in range(50)]
    away = np.array([hash_share(f"away {user}") < 0.3 for user in users])
    user = np.arange(NUMBER) % 50
    expected = np.where(away[user] & (np.arange(NUMBER) >= 420), 2.0, 2.5)
    found = findings.forgetting({"online": {0: record({"user": user, "expected": expected}, users)}}, NUMBER, 0.3)
    assert found is not None
    assert found["change"] == pytest.approx(-0.2)
    assert found["others_then"] == pytest.approx(0.5)


def test_understanding_is_by_turns() -> None:
    found = findings.understanding({"online": {0: record({}, understanding=[(1, 0.4), (2, 0.5), (7, 0.9), (8, 0.7)])}})
    assert found is not None
    assert found["online"]["1"] == pytest.approx(0.4)
    assert found["online"]["6-10"] == pytest.approx(0.8)
    assert found["online"]["21-50"] is None


def test_only_own_choices_earn_credit(tmp_path: Path) -> None:
    def toy(seed: int, minutes: int) -> World:
        return SimulatedWorld(toy_truth(), WorldConfig(seed=seed, minutes=minutes, decisions_per_minute=30, slate_size=5))

    beginning = Beginning.made(Population(name="toy", twin=toy), tiny(), 0, 4, tmp_path / "beginning")
    found = credit(beginning, tmp_path)
    assert found["records_enriched"] > 10 * found["records"]
    assert found["weights_identical"], found["digests"]
