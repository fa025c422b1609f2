"""Requests answered together are those answered one after the other: the same slates, numbers, ids and order of each user."""

from collections import defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.admission import BadRequest
from recsys.policy import DrawingConfig, GenerativePolicy
from streaming.events import Decision
from streaming.log import Entry, MemoryLog, Position
from streaming.proto.recommender_pb2 import RecommendRequest
from tests.artifacts import VARIANT, item_ids, small_artifact
from tests.serving import Bench, WatchedPolicy, bench, clicked, shown, watched

NUM_ITEMS = 12
VERSIONS = {"a": small_artifact(item_ids(NUM_ITEMS), 1), "b": small_artifact(item_ids(NUM_ITEMS - 2), 2)}

wishes = st.fixed_dictionaries(
    {},
    optional={
        "slate_size": st.integers(1, 12),
        "context": st.dictionaries(st.sampled_from(["surface", "hour"]), st.sampled_from(["x", "y"])),
        "exclude_item_ids": st.lists(st.sampled_from(item_ids(NUM_ITEMS)), max_size=3),
        "candidate_item_ids": st.lists(st.sampled_from([*item_ids(NUM_ITEMS), "stranger"]), min_size=1, max_size=6),
        "where": st.sampled_from([{"genre": "a"}, {"genre": "nothing like it"}]),
        "seen": st.sampled_from([0, 1, 2]),
    },
)
requests = st.builds(
    lambda user_id, request_id, wish: RecommendRequest(user_id=user_id, request_id=request_id, **wish),
    st.sampled_from(["ann", "bob", "cem", "dot", "eve"]),
    st.sampled_from(["", "", "r", "s"]),
    wishes,
)


def served(way: str) -> Bench:
    """Two variants, a version each, and users who have seen different things."""
    parts = bench(num_items=NUM_ITEMS, variants=(("a", 0.5), ("b", 0.5)))
    for variant, artifact in VERSIONS.items():
        parts.engine.serve(variant, GenerativePolicy(artifact, DrawingConfig(way=way)))
    parts.engine.record([watched(f"item{n}", event_id=f"{n}", user_id=user) for n, user in enumerate(["ann", "ann", "ann", "bob", "cem"])])
    return parts


def by_user(decisions: Sequence[Decision]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for decision in decisions:
        found[decision.user_id].append(decision.decision_id)
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(requests, min_size=1, max_size=12), st.sampled_from(["slot", "beam"]))
def test_together_is_one_after_the_other(asked: list[RecommendRequest], way: str) -> None:
    together, alone = served(way), served(way)
    answers = together.engine.recommend_many(asked)
    expected = [alone.engine.recommend(request) for request in asked]
    for answer, other in zip(answers, expected, strict=True):
        assert [slot.logprob for slot in answer.slots] == pytest.approx([slot.logprob for slot in other.slots], abs=1e-4)
        for slot in [*answer.slots, *other.slots]:
            slot.ClearField("logprob")
        assert answer == other
    assert by_user(together.decisions()) == by_user(alone.decisions())


def test_what_came_between_is_seen_by_the_next_batch_only() -> None:
    parts, policy = bench(), WatchedPolicy()
    parts.engine.serve(VARIANT, policy)
    pair = [RecommendRequest(user_id="ann"), RecommendRequest(user_id="bob")]
    answer = parts.engine.recommend_many(pair)[0]
    parts.engine.record([shown(answer, 0, 1), clicked(answer, 1)])
    parts.engine.recommend_many(pair)
    assert [len(asked.view.key_L) for asked in policy.asked] == [0, 0, 3, 0]
    first, later = (decision.memory_offset for decision in parts.decisions() if decision.user_id == "ann")
    assert later > first + 2


class CountingLog(MemoryLog):
    """Keeps how many entries each append had."""

    def __init__(self) -> None:
        super().__init__(2)
        self.appends: list[int] = []

    def append(self, entries: Sequence[Entry]) -> list[Position]:
        self.appends.append(len(entries))
        return super().append(entries)


def test_users_are_appended_together_and_one_user_in_turn() -> None:
    parts = bench(log=(log := CountingLog()))
    users = ["ann", "bob", "ann", "cem", "ann", "bob"]
    answers = parts.engine.recommend_many([RecommendRequest(user_id=user) for user in users])
    assert log.appends == [3, 2, 1]
    assert len({answer.decision_id for answer in answers}) == len(users)
    assert parts.engine.memory.num_decisions("ann") == 3


def test_a_request_twice_in_a_batch_is_decided_once() -> None:
    parts = bench()
    same = RecommendRequest(user_id="ann", request_id="r")
    answers = parts.engine.recommend_many([same, RecommendRequest(user_id="bob", request_id="r"), same])
    assert answers[0] == answers[2] != answers[1]
    assert len(parts.decisions()) == 2


def test_a_bad_request_stops_its_batch_before_anything_is_decided() -> None:
    parts = bench()
    with pytest.raises(BadRequest, match="slate_size is 101"):
        parts.engine.recommend_many([RecommendRequest(user_id="ann"), RecommendRequest(user_id="bob", slate_size=101)])
    with pytest.raises(BadRequest, match="slate_size is 101"):
        parts.engine.check(RecommendRequest(user_id="bob", slate_size=101))
    assert parts.decisions() == []
    assert parts.engine.recommend_many([]) == []
