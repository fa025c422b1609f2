"""How users of simulated worlds behave: who is there, who floods, what is bait, and how late or by accident a click comes."""

from collections.abc import Iterator

import numpy as np

from recsys.audience import baits_of, flooders_of
from recsys.truth import toy_truth
from recsys.worlds import SimulatedWorld, Turn, WorldConfig
from streaming.events import Event
from streaming.proto.recommender_pb2 import RecommendResponse, Slot

MINUTES = 32


def world(**settings: float) -> SimulatedWorld:
    sizes = {"minutes": MINUTES, "decisions_per_minute": 40, "organic_per_minute": 0, "slate_size": 5, "new_items": 0, "retired_items": 0}
    return SimulatedWorld(toy_truth(), WorldConfig(**(sizes | {"drift": 0, "lost": 0, "ignored": 0} | settings)))  # type: ignore[arg-type]


def played(one: SimulatedWorld, item_ids: list[str] | None = None) -> Iterator[tuple[int, Turn, list[str], list[Event]]]:
    """Every turn with a request, its minute, its slate (by default five drawn at random) and what came of it."""
    random = np.random.default_rng(0)
    known = [item.item_id for item in one.catalog()]
    while (turn := one.next_turn()) is not None:
        if turn.request is not None:
            slate = item_ids or [str(item_id) for item_id in random.choice(known, 5, replace=False)]
            name = turn.request.request_id
            answer = RecommendResponse(decision_id=name, decision_token=f"{name}.x", slots=[Slot(item_id=item_id) for item_id in slate])
            yield (turn.event_time_ms - toy_truth().start_ms) // 60_000, turn, slate, list(one.respond(answer))


def said(events: list[Event], kind: str) -> set[int]:
    return {event.feedback.slot for event in events if event.feedback.kind == kind}


def test_newcomers_come_one_after_another_and_leave() -> None:
    seen: dict[str, list[int]] = {}
    one = world(new_users=0.6, visit_minutes=8)
    residents = set(one.users())
    for minute, turn, _, _ in played(one):
        assert turn.request is not None
        seen.setdefault(turn.request.user_id, []).append(minute)
    newcomers = {user: minutes for user, minutes in seen.items() if user not in residents}
    assert len(newcomers) > 10
    assert all(minutes[-1] - minutes[0] <= 8 for minutes in newcomers.values())
    assert len({minutes[0] // 8 for minutes in newcomers.values()}) == 4
    assert any(minutes[-1] - minutes[0] > 20 for user, minutes in seen.items() if user in residents)


def test_who_is_away_comes_back() -> None:
    minutes: dict[str, set[int]] = {}
    for minute, turn, _, _ in played(world(away=0.5)):
        assert turn.request is not None
        minutes.setdefault(turn.request.user_id, set()).add(minute)
    away = [seen for seen in minutes.values() if not seen & set(range(MINUTES // 8, MINUTES * 7 // 8))]
    assert 10 < len(away) < 30
    assert any(min(seen) < MINUTES // 8 and max(seen) >= MINUTES * 7 // 8 for seen in away)


def test_flooders_click_one_item_and_the_others_notice_nothing() -> None:
    users = toy_truth().user_ids
    flooders = {user for user, floods in zip(users, flooders_of(users, 0.1), strict=True) if floods}
    clicked: dict[bool, set[str]] = {True: set(), False: set()}
    calm = {
        turn.request.request_id: said(events, "click") for _, turn, _, events in played(world(), ["item-01", "item-02"]) if turn.request
    }
    for _, turn, slate, events in played(world(flooders=0.1), ["item-01", "item-02"]):
        assert turn.request is not None
        floods = turn.request.user_id in flooders
        clicked[floods] |= {slate[slot] for slot in said(events, "click")}
        if not floods:
            assert said(events, "click") == calm[turn.request.request_id]
    for _, turn, slate, events in played(world(flooders=0.1, floods_per_minute=40)):
        assert turn.request is not None
        if turn.request.user_id in flooders:
            clicked[True] |= {slate[slot] for slot in said(events, "click")}
    assert flooders
    assert len(clicked[True]) == 1


def test_bait_is_clicked_and_disliked_and_never_best() -> None:
    items = toy_truth().items
    baits = [item.item_id for item, bait in zip(items, baits_of(items, 0.2), strict=True) if bait]
    one = world(bait=0.2, dislike_cost=2)
    clicks = dislikes = shown = 0
    for _, turn, _, events in played(one, baits[:5]):
        assert turn.request is not None
        assert not set(one.best_slate(turn.request.user_id, 5)) & set(baits)
        shown += sum(len(event.exposure.slots) for event in events)
        clicks += len(said(events, "click"))
        dislikes += len(said(events, "dislike") & said(events, "click"))
    assert 0.6 < clicks / shown < 0.75
    assert 0.85 < dislikes / clicks < 0.95
    assert (one.expected_reward("user-00", baits, 0) < 0).all()


def test_clicks_can_be_slow_and_come_by_accident() -> None:
    slow = [
        event.event_time_ms - turn.event_time_ms
        for _, turn, _, events in played(world(slowest_s=240, late=0))
        for event in events
        if event.feedback.kind == "click"
    ]
    assert 200_000 < max(slow) < 243_000
    assert np.median(slow) < 90_000
    accidents = sum(len(said(events, "click")) for _, _, _, events in played(world(accidents=0.2), ["nothing"] * 5))
    assert accidents > 300
    assert not any(said(events, "click") for _, _, _, events in played(world(), ["nothing"] * 5))


def test_two_at_once_are_answered_in_any_order() -> None:
    def clicks(*, late: bool) -> dict[str, set[int]]:
        one, waiting, found = world(), [], {}
        while (turn := one.next_turn()) is not None:
            if turn.request is not None:
                waiting.append(turn.request.request_id)
            if not late or turn.request is None:
                for name in reversed(waiting):
                    answer = RecommendResponse(decision_id=name, decision_token=f"{name}.x", slots=[Slot(item_id="item-03")])
                    found[name] = said(list(one.respond_to(name, answer)), "click")
                waiting.clear()
        return found

    assert clicks(late=True) == clicks(late=False)
