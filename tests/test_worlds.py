import hashlib
from collections import Counter
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from recsys.click_model import ClickModelConfig, held_out, sigmoid
from recsys.datasets import Sample, load_sample
from recsys.truth import SampleTruthConfig, Truth, answered, hash_share, sample_truth, toy_truth
from recsys.worlds import KnownWorld, SimulatedWorld, Turn, WorldConfig, toy_world
from streaming.events import Event
from streaming.proto.recommender_pb2 import RecommendResponse, Slot

MINUTE_MS = 60_000
TOY = WorldConfig(minutes=20, decisions_per_minute=40.0, organic_per_minute=5.0, slate_size=5)


@pytest.fixture(scope="module")
def sample() -> Sample:
    return load_sample()


@pytest.fixture(scope="module")
def truth(sample: Sample) -> Truth:
    return sample_truth(sample, SampleTruthConfig(), ClickModelConfig())


def decision(number: int, item_ids: list[str]) -> RecommendResponse:
    return RecommendResponse(decision_id=f"d{number}", decision_token=f"d{number}.t", slots=[Slot(item_id=item_id) for item_id in item_ids])


def play(
    world: KnownWorld, choose: Callable[[KnownWorld, Turn], list[str]]
) -> tuple[list[tuple[Turn, list[Event]]], list[tuple[int, float]]]:
    """(turn, answer) of every turn, and (time, mean expected reward) of every slate."""
    turns: list[tuple[Turn, list[Event]]] = []
    rewards: list[tuple[int, float]] = []
    while (turn := world.next_turn()) is not None:
        events: list[Event] = []
        if turn.request is not None:
            slate = choose(world, turn)
            rewards.append((turn.event_time_ms, float(world.expected_reward(turn.request.user_id, slate, np.arange(len(slate))).mean())))
            events = list(world.respond(decision(len(turns), slate)))
        turns.append((turn, events))
    return turns, rewards


def best(world: KnownWorld, turn: Turn) -> list[str]:
    assert turn.request is not None
    return world.best_slate(turn.request.user_id, turn.request.slate_size)


def random_choice(world: KnownWorld, seed: int = 0) -> Callable[[KnownWorld, Turn], list[str]]:
    rng, item_ids = np.random.default_rng(seed), [item.item_id for item in world.catalog()]
    return lambda _world, turn: rng.choice(item_ids, turn.request.slate_size if turn.request else 0, replace=False).tolist()


def digest_of(turns: list[tuple[Turn, list[Event]]]) -> str:
    whole = hashlib.sha256()
    for turn, events in turns:
        requests = [turn.request] if turn.request else []
        for message in [*turn.organic, *requests, *events]:
            whole.update(message.SerializeToString(deterministic=True))
    return whole.hexdigest()


def clicked(events: list[Event]) -> set[int]:
    return {event.feedback.slot for event in events if event.feedback.kind == "click"}


class TestClickModel:
    def test_beats_constant_and_rates_on_held_out_days(self, sample: Sample) -> None:
        figures = held_out(sample, ClickModelConfig())
        assert figures["model"].log_loss < figures["rates"].log_loss - 0.02 < figures["constant"].log_loss - 0.05
        assert figures["model"].auc > figures["rates"].auc + 0.02
        assert figures["model"].auc > 0.73

    def test_refuses_what_cannot_be_fitted(self) -> None:
        with pytest.raises(ValueError, match=r"rank is 0; 1\.\.64"):
            ClickModelConfig(rank=0)


class TestToyWorld:
    def test_same_seed_same_events(self) -> None:
        runs = [play(world, best)[0] for world in (toy_world(), toy_world(), toy_world(WorldConfig(**{**vars(TOY), "seed": 1})))]
        assert digest_of(runs[0]) == digest_of(runs[1]) != digest_of(runs[2])

    def test_traffic_does_not_depend_on_answers(self) -> None:
        first, second = toy_world(), toy_world()
        one, two = play(first, best)[0], play(second, random_choice(second))[0]
        assert [turn for turn, _ in one] == [turn for turn, _ in two]

    def test_same_item_at_the_same_turn_gets_the_same_click(self) -> None:
        config = WorldConfig(**{**vars(TOY), "position_bias": 0.0, "lost": 0.0, "attention": 1.0, "ignored": 0.0})
        there, back = SimulatedWorld(toy_truth(), config), SimulatedWorld(toy_truth(), config)
        size = TOY.slate_size
        forward, backward = play(there, best)[0], play(back, lambda world, turn: best(world, turn)[::-1])[0]
        for (_, one), (_, two) in zip(forward, backward, strict=True):
            assert clicked(one) == {size - 1 - slot for slot in clicked(two)}
        assert sum(len(clicked(events)) for _, events in forward) > 500

    def test_clicks_come_as_often_as_expected(self) -> None:
        config = WorldConfig(**{**vars(TOY), "minutes": 60, "lost": 0.0, "attention": 1.0, "ignored": 0.0})
        world = SimulatedWorld(toy_truth(), config)
        turns, rewards = play(world, random_choice(world))
        expected = np.array([reward for _, reward in rewards])
        clicks = sum(len(clicked(events)) for _, events in turns) / (len(rewards) * TOY.slate_size)
        assert clicks == pytest.approx(expected.mean(), abs=4 * 0.5 / np.sqrt(len(rewards) * TOY.slate_size))

    def test_half_of_the_users_change_at_half_time(self) -> None:
        world = toy_world()
        at_start: dict[str, list[str]] = {}
        _, rewards = play(world, lambda w, turn: at_start.setdefault(turn.request.user_id if turn.request else "", best(w, turn)))
        half_ms = toy_truth().start_ms + 10 * MINUTE_MS
        before = np.mean([reward for time_ms, reward in rewards if time_ms < half_ms])
        after = np.mean([reward for time_ms, reward in rewards if time_ms >= half_ms])
        assert after < 0.75 * before
        changed = np.any(toy_truth().tastes != toy_truth().later_tastes, axis=1)
        assert changed.sum() == 20

    def test_without_drift_nothing_moves(self) -> None:
        world = SimulatedWorld(toy_truth(), WorldConfig(**{**vars(TOY), "drift": 0.0, "new_items": 0.0, "retired_items": 0.0}))
        user, items = toy_truth().user_ids[0], [item.item_id for item in world.catalog()]
        first = world.expected_reward(user, items, 0)
        play(world, best)
        assert np.array_equal(world.expected_reward(user, items, 0), first)

    def test_best_slate_is_the_best(self) -> None:
        world = toy_world()
        world.next_turn()
        items = [item.item_id for item in world.catalog()]
        by_reward = sorted(items, key=lambda item_id: -world.expected_reward("user-03", [item_id], 0)[0])
        assert world.best_slate("user-03", 7) == by_reward[:7]
        assert world.best_slate("user-03", 5, exclude_item_ids=by_reward[:2]) == by_reward[2:7]
        assert len(world.best_slate("user-03", 1000)) == len(items)

    def test_a_decision_answers_one_request(self) -> None:
        world = toy_world()
        with pytest.raises(ValueError, match="answers nothing"):
            world.respond(decision(0, ["item-01"]))
        while (turn := world.next_turn()) is not None and turn.request is None:
            pass
        world.respond(decision(0, []))
        with pytest.raises(ValueError, match="answers nothing"):
            world.respond(decision(0, ["item-01"]))

    def test_unknown_items_get_no_click(self) -> None:
        world = SimulatedWorld(toy_truth(), WorldConfig(**{**vars(TOY), "minutes": 5}))
        turns, rewards = play(world, lambda _world, _turn: ["nobody", "knows"])
        assert not any(clicked(events) for _, events in turns)
        assert all(reward == 0 for _, reward in rewards)

    def test_ends(self) -> None:
        world = toy_world()
        turns, _ = play(world, best)
        assert world.next_turn() is None
        assert turns[-1][0].event_time_ms == toy_truth().start_ms + 20 * MINUTE_MS - 1

    @pytest.mark.parametrize(
        ("changed", "message"),
        [({"drift": 1.5}, "drift is 1.5; 0..1"), ({"minutes": 0}, "minutes is 0; 1.."), ({"lost": -0.1}, "lost is -0.1; 0..1")],
    )
    def test_refuses_what_makes_no_world(self, changed: dict[str, float], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            WorldConfig(**{**vars(TOY), **changed})


class TestSampleWorld:
    def test_oracle_popular_and_random_slates_differ(self, sample: Sample, truth: Truth) -> None:
        config = WorldConfig(minutes=5, drift=0.0)
        everything = [item.item_id for item in truth.items]
        here = {item.item_id for item in SimulatedWorld(truth, config).catalog()}
        world = SimulatedWorld(truth, config)
        liking = sum(
            share * world.expected_reward(user, everything, 0)
            for user, share in list(zip(truth.user_ids, truth.activity, strict=True))[::10]
        )
        popular = [everything[i] for i in np.argsort(-liking) if everything[i] in here][:10]
        policies = {"random": random_choice(world), "popular": lambda _world, _turn: popular, "oracle": best}
        reward = {name: np.mean([r for _, r in play(SimulatedWorld(truth, config), policy)[1]]) for name, policy in policies.items()}
        assert 0.13 < reward["random"] < 0.23
        assert reward["popular"] > 1.7 * reward["random"]
        assert reward["oracle"] > 1.3 * reward["popular"]

    def test_what_was_best_at_the_start_gets_worse(self, truth: Truth) -> None:
        config = WorldConfig(minutes=12)
        start = SimulatedWorld(truth, config)
        frozen = {user_id: start.best_slate(user_id, 10) for user_id in truth.user_ids}
        old = np.array([r for _, r in play(SimulatedWorld(truth, config), lambda _w, t: frozen[t.request.user_id if t.request else ""])[1]])
        new = np.array([r for _, r in play(SimulatedWorld(truth, config), best)[1]])
        third = old.size // 3
        assert (new - old)[:third].mean() < 0.08
        assert (new - old)[-third:].mean() > 0.12

    def test_events_are_as_described(self, truth: Truth) -> None:
        turns, _ = play(SimulatedWorld(truth, WorldConfig(minutes=10)), best)
        asked = [(turn, events) for turn, events in turns if turn.request is not None]
        shown = [list(event.exposure.slots) for _, events in asked for event in events if event.HasField("exposure")]
        assert all(slots == list(range(len(slots))) for slots in shown)
        assert {1, 10} <= {len(slots) for slots in shown}
        assert 0.02 < 1 - len(shown) / len(asked) < 0.06
        delays_ms = np.array([e.event_time_ms - t.event_time_ms for t, es in asked for e in es if e.feedback.kind == "click"])
        assert 0.98 <= np.mean(delays_ms <= 60_000) < 1
        assert delays_ms.min() >= 1300
        for turn, events in asked:
            assert [event.event_time_ms for event in events] == sorted(event.event_time_ms for event in events)
            assert all(event.user_id == turn.request.user_id for event in events if turn.request)
        kinds = Counter(event.feedback.kind for _, events in asked for event in events if event.HasField("feedback"))
        assert 0.04 < kinds["like"] / kinds["click"] < 0.08
        ids = [event.event_id for turn, events in turns for event in [*turn.organic, *events]]
        assert len(ids) == len(set(ids))

    def test_requests_are_as_described(self, truth: Truth) -> None:
        turns, _ = play(SimulatedWorld(truth, WorldConfig(minutes=10)), best)
        times_ms = [turn.event_time_ms for turn, _ in turns]
        assert times_ms == sorted(times_ms)
        assert times_ms[0] >= truth.start_ms
        requests = [turn.request for turn, _ in turns if turn.request is not None]
        assert 1550 < len(requests) < 1850
        assert len({request.request_id for request in requests}) == len(requests)
        assert {request.slate_size for request in requests} == {10}
        tabs = Counter(request.context["tab"] for request in requests)
        assert tabs.most_common(1)[0][0] == "1"
        assert len(tabs) > 3
        organic = [event for turn, _ in turns for event in turn.organic]
        assert 150 < len(organic) < 260
        assert {event.interaction.kind for event in organic} == {"watch"}

    def test_a_tenth_of_the_catalogue_arrives_later(self, truth: Truth) -> None:
        config = WorldConfig(minutes=10, retired_items=0.02)
        world = SimulatedWorld(truth, config)
        start = {item.item_id for item in world.catalog()}
        assert start == {item.item_id for item in truth.items if hash_share(item.item_id) >= 0.1}
        arrived: set[str] = set()
        retired: set[str] = set()
        shown: set[str] = set()
        while (turn := world.next_turn()) is not None:
            for time_ms, item in world.upserts():
                assert time_ms <= turn.event_time_ms
                (retired if item.retired else arrived).add(item.item_id)
            if turn.request is not None:
                slate = best(world, turn)
                assert set(slate) <= (start | arrived) - retired
                shown |= set(slate)
        assert arrived == {item.item_id for item in truth.items} - start
        assert retired < start
        assert 0.01 < len(retired) / len(start) < 0.03
        assert shown & arrived

    def test_a_new_item_has_no_reward_before_it_arrives(self, truth: Truth) -> None:
        world = SimulatedWorld(truth, WorldConfig(minutes=2))
        new = next(item.item_id for item in truth.items if hash_share(item.item_id) < 0.1)
        user = truth.user_ids[0]
        assert world.expected_reward(user, [new], 0)[0] == 0
        while world.next_turn() is not None:
            pass
        assert world.expected_reward(user, [new], 0)[0] > 0

    def test_nothing_comes_back_within_a_run(self, truth: Truth) -> None:
        """Else who stood still would be right again at the end, and no gap could widen."""
        start = truth.item_logits_at(0.0, 1.0)
        away = [np.linalg.norm(truth.item_logits_at(progress, 1.0) - start) for progress in np.linspace(0, 1, 13)]
        assert away[0] == 0
        assert np.all(np.diff(away) > 0)
        away = [np.linalg.norm(truth.tastes_at(progress, 1.0) - truth.tastes) for progress in np.linspace(0, 1, 13)]
        assert np.all(np.diff(away) > 0)

    def test_the_truth_is_the_same_each_time(self, sample: Sample) -> None:
        one, two = (sample_truth(sample, SampleTruthConfig(num_users=100), ClickModelConfig(iterations=10)) for _ in range(2))
        for name in ("tastes", "later_tastes", "factors", "item_bias", "user_bias", "swing", "phase"):
            assert np.array_equal(getattr(one, name), getattr(two, name)), name
        assert one.start_ms == sample.warm_start_until_ms


def test_a_history_is_answered_by_the_users_of_its_world(sample: Sample, truth: Truth) -> None:
    """Exposures stay; clicks are as likely as the truth says, and no more like the real ones than that."""
    log = answered(sample.log, truth)
    known = sample.log.filter(pl.col("user_id").is_in(truth.user_ids))
    assert log.drop("click", "like").equals(known.drop("click", "like"))
    assert log.schema == sample.log.schema
    user, item = (
        [keys.index(key) for key in log[name]] for name, keys in (("user_id", list(truth.user_ids)), ("item_id", item_ids(truth)))
    )
    tab = [truth.tabs.index(str(name)) for name in log["tab"]]
    taste = (truth.tastes[user] * truth.factors[item]).sum(1)
    chance = sigmoid(truth.base + truth.user_bias[user] + truth.tab_bias[tab] + truth.item_bias[item] + taste)
    clicked = log["click"].to_numpy()
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1.0)):
        within = (low <= chance) & (chance < high)
        error = np.sqrt((chance[within] * (1 - chance[within])).sum())
        assert within.sum() > 500
        assert abs(clicked[within].sum() - chance[within].sum()) < 4 * error
    assert answered(sample.log, truth)["click"].equals(log["click"])
    assert not answered(sample.log, truth, seed=1)["click"].equals(log["click"])
    assert (log["click"] >= log["like"]).all()


def item_ids(truth: Truth) -> list[str]:
    return [item.item_id for item in truth.items]
