"""The request path without a network: what is answered, and what is in the log and in memory afterwards."""

import math
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from recsys.engine import EngineConfig
from recsys.policy import DrawingConfig, GenerativePolicy
from streaming.events import Decision, Item, decode
from streaming.log import Entry, LogUnavailable, MemoryLog, partition_of
from streaming.proto.recommender_pb2 import Degraded, Seen
from streaming.sqlite_log import SqliteLog
from tests.artifacts import DECODER, item, item_ids, small_artifact
from tests.serving import NOW_MS, VARIANT, WatchedPolicy, ask, bench, clicked, shown, slate, watched

# What is answered ------------------------------------------------------------------------------------------------


def test_cold_start_draws_uniformly_and_says_so() -> None:
    parts = bench(num_items=5)
    answer = ask(parts, slate_size=3)
    assert answer.degraded == Degraded.DEGRADED_NO_POLICY
    assert (answer.policy_version, answer.trained_through_ms, answer.variant) == (0, 0, VARIANT)
    assert [slot.logprob for slot in answer.slots] == pytest.approx([-math.log(5), -math.log(4), -math.log(3)])


def test_cold_start_gives_every_order_of_items_alike() -> None:
    parts = bench(num_items=3)
    seen = Counter(tuple(slate(ask(parts, f"user{n}", slate_size=2))) for n in range(1200))
    assert len(seen) == 6
    assert all(150 < count < 250 for count in seen.values())


@pytest.mark.parametrize(("asked", "got"), [(0, 4), (1, 1), (7, 7), (100, 12)])
def test_slate_size(asked: int, got: int) -> None:
    """0 is the configured default; an item is never twice in a slate, so it ends where the items end."""
    parts = bench(num_items=12, config=EngineConfig(default_slate_size=4))
    answer = ask(parts, slate_size=asked)
    assert len(set(slate(answer))) == len(answer.slots) == got


def test_a_policy_of_few_slots_gives_a_shorter_slate() -> None:
    parts = bench(num_items=12)
    few = small_artifact(item_ids(12), decoder=type(DECODER)(width=8, layers=1, heads=2, history=4, max_slots=3, features=8))
    parts.engine.serve(VARIANT, GenerativePolicy(few, DrawingConfig()))
    assert len(ask(parts, slate_size=9).slots) == 3


def test_candidates_where_and_exclude_meet() -> None:
    parts = bench(num_items=12)
    candidates = ["item0", "item3", "item6", "item1", "item1", "nobody"]
    answer = ask(parts, candidate_item_ids=candidates, where={"genre": "a"}, exclude_item_ids=["item3", "stranger"], slate_size=5)
    assert sorted(slate(answer)) == ["item0", "item6"]
    assert [slot.logprob for slot in answer.slots] == pytest.approx([-math.log(2), 0])


@pytest.mark.parametrize("generative", [False, True])
@pytest.mark.parametrize(
    "wish",
    [
        {"candidate_item_ids": ["item0"], "exclude_item_ids": ["item0"]},
        {"candidate_item_ids": ["item1"], "where": {"genre": "a"}},
        {"candidate_item_ids": ["stranger"]},
        {"where": {"genre": "nothing like it"}},
        {"where": {"no such key": "a"}},
        {"exclude_item_ids": item_ids(12)},
    ],
)
def test_nothing_legal_gives_an_empty_slate(wish: dict[str, object], generative: bool) -> None:
    parts = bench(num_items=12)
    if generative:
        parts.engine.serve(VARIANT, GenerativePolicy(small_artifact(item_ids(12)), DrawingConfig()))
    assert slate(ask(parts, **wish)) == []
    assert len(parts.decisions()) == 1  # it was asked and answered


def test_the_cold_start_knows_items_as_they_come() -> None:
    parts = bench(num_items=0)
    assert slate(ask(parts)) == []
    parts.engine.upsert([item("item1")])
    assert slate(ask(parts)) == ["item1"]
    parts.engine.upsert([item("item2")])
    assert sorted(slate(ask(parts))) == ["item1", "item2"]


def test_what_was_seen_is_left_out_unless_asked_for() -> None:
    parts = bench(num_items=4)
    assert parts.engine.record([watched("item1"), watched("item2", event_id="2")]) == (2, [])
    assert sorted(slate(ask(parts))) == ["item0", "item3"]
    assert sorted(slate(ask(parts, seen=Seen.SEEN_EXCLUDE))) == ["item0", "item3"]
    assert sorted(slate(ask(parts, seen=Seen.SEEN_ALLOW))) == item_ids(4)
    assert [decision.seen_excluded for decision in parts.decisions()] == [True, True, False]
    allowing = bench(num_items=4, config=EngineConfig(exclude_seen=False))
    allowing.engine.record([watched("item1")])
    assert len(ask(allowing).slots) == 4


def test_retired_items_never_come() -> None:
    parts = bench(num_items=4)
    parts.engine.upsert([Item(item_id="item2", retired=True), Item(item_id="new and dead", retired=True)])
    assert sorted(slate(ask(parts))) == ["item0", "item1", "item3"]


def test_an_item_the_version_does_not_know_waits_for_the_next() -> None:
    parts = bench(num_items=6)
    parts.engine.serve(VARIANT, GenerativePolicy(small_artifact(item_ids(4)), DrawingConfig()))
    assert sorted(slate(ask(parts))) == item_ids(4)
    assert slate(ask(parts, candidate_item_ids=["item5"])) == []


def test_the_decision_in_the_log_says_everything() -> None:
    parts = bench(num_items=12)
    parts.engine.record([watched("item11", user_id="someone"), watched("item11", event_id="again")])
    drawing = DrawingConfig(temperature=1.5, floor=0.1, novelty_bonus=0.25, value_weight=0.75)
    parts.engine.serve(VARIANT, GenerativePolicy(small_artifact(item_ids(12), 4), drawing), Degraded.DEGRADED_LAST_GOOD)
    wish = {"exclude_item_ids": ["item0"], "candidate_item_ids": item_ids(9), "where": {"genre": "a"}}
    answer = ask(parts, request_id="r1", slate_size=2, context={"surface": "home"}, event_time_ms=NOW_MS - 5, **wish)
    [decision] = parts.decisions()
    partition = partition_of(b"ann", parts.log.num_partitions)
    expected = {
        "decision_id": answer.decision_id,
        "user_id": "ann",
        "event_time_ms": NOW_MS - 5,
        "variant": VARIANT,
        "policy_version": 4,
        "decision_token": answer.decision_token,
        "item_ids": slate(answer),
        "slot_logprobs": [slot.logprob for slot in answer.slots],
        "memory_offset": parts.log.end_offsets()[partition] - 1,
        "items_offset": 12,
        "request_id": "r1",
        "slate_size": 2,
        "context": {"surface": "home"},
        "exclude_item_ids": ["item0"],
        "candidate_item_ids": item_ids(9),
        "where": {"genre": "a"},
        "seen_excluded": True,
        "way": "slot",
        "temperature": 1.5,
        "floor": 0.1,
        "novelty_bonus": 0.25,
        "value_weight": 0.75,
        "behavior_digest": "digest",
        "seed": decision.seed,
        "degraded": Degraded.DEGRADED_LAST_GOOD,
        "trained_through_ms": 4000,
    }
    assert {field.name for field in Decision.DESCRIPTOR.fields} == expected.keys()
    assert {name: plain(getattr(decision, name)) for name in expected} == expected
    assert decision.seed > 0
    assert answer.degraded == Degraded.DEGRADED_LAST_GOOD
    assert set(slate(answer)) == {"item3", "item6"}
    assert all(-10 < slot.logprob <= 0 for slot in answer.slots)


def plain(value: object) -> object:
    if hasattr(value, "items"):
        return dict(value)
    return value if isinstance(value, str | int | float) else list(value)


def test_the_same_log_gives_the_same_answers() -> None:
    def story() -> list[bytes]:
        parts = bench()
        answers = [ask(parts), ask(parts, request_id="r"), ask(parts, "bob"), ask(parts)]
        return [answer.SerializeToString(deterministic=True) for answer in answers]

    assert story() == story()
    assert len(set(story())) == 4


@pytest.mark.parametrize("name", ["#0", "#1", "0", "="])
def test_a_request_id_is_never_taken_for_an_unnamed_request(name: str) -> None:
    parts = bench()
    ids = [ask(parts).decision_id, ask(parts, request_id=name).decision_id, ask(parts).decision_id]
    assert len(set(ids)) == 3


def test_a_repeated_request_gets_the_same_decision() -> None:
    parts = bench()
    first = ask(parts, request_id="r", slate_size=3)
    parts.clock.advance_to(NOW_MS + 9_000)
    parts.engine.serve(VARIANT, WatchedPolicy())
    assert ask(parts, request_id="r", slate_size=3) == first
    assert len(parts.decisions()) == 1
    assert ask(parts, "bob", request_id="r").decision_id != first.decision_id
    assert ask(parts, request_id="other").policy_version == 3


def test_an_answer_is_not_given_again_once_its_token_is_dead() -> None:
    """However quiet it was meanwhile: its events would be refused."""
    parts = bench()
    first = ask(parts, request_id="r")
    parts.clock.advance_to(NOW_MS + EngineConfig().token_lifetime_ms + 1)
    again = ask(parts, request_id="r")
    assert again.decision_token != first.decision_token
    assert parts.engine.record([clicked(again)]) == (1, [])


def test_variants_have_their_own_policies() -> None:
    parts = bench(variants=(("a", 0.5), ("b", 0.5)))
    parts.engine.serve("a", WatchedPolicy(policy_version=1))
    parts.engine.serve("b", WatchedPolicy(policy_version=2))
    answers = [ask(parts, f"user{n}") for n in range(40)]
    assert {(answer.variant, answer.policy_version) for answer in answers} == {("a", 1), ("b", 2)}
    assert [ask(parts, f"user{n}").variant for n in range(40)] == [answer.variant for answer in answers]


# Several servers, restarts, and a log that is away --------------------------------------------------------------------


def test_a_restart_rebuilds_memory_requests_and_items_from_the_log(tmp_path: Path) -> None:
    with closing(SqliteLog(tmp_path / "log.db", "events", 2)) as log, closing(SqliteLog(tmp_path / "log.db", "items", 1)) as items_log:
        first = bench(log=log, items_log=items_log)
        answers = [ask(first, user, request_id="r") for user in ("ann", "bob")]
        first.engine.record([shown(answers[0], 0, 1), clicked(answers[0], 1), watched(user_id="bob")])
        unnamed = ask(first)
        second = bench(num_items=0, log=log, items_log=items_log)
        for user in ("ann", "bob"):
            before, after = first.engine.memory.view(user), second.engine.memory.view(user)
            assert [before.key_L.tolist(), before.kind_L.tolist()] == [after.key_L.tolist(), after.kind_L.tolist()]
        records = len(second.records())
        assert [ask(second, user, request_id="r") for user in ("ann", "bob")] == answers
        assert second.engine.record([clicked(answers[0], 1)]) == (1, [])
        assert len(second.records()) == records
        assert ask(second).decision_id != unnamed.decision_id
        assert second.engine.catalogue.item_ids == first.engine.catalogue.item_ids


def test_two_servers_share_what_they_append() -> None:
    log, items_log = MemoryLog(2), MemoryLog(1)
    here, there = bench(log=log, items_log=items_log), bench(num_items=0, log=log, items_log=items_log)
    answer = ask(here)
    here.engine.record([clicked(answer)])
    here.engine.upsert([item("item12")])
    assert there.engine.memory.view("ann").key_L.size == 0
    there.engine.catch_up()
    assert there.engine.memory.view("ann").key_L.size == 1
    assert there.engine.catalogue.row_of("item12") == 13
    ask(there)  # appended after what `here` has not read: applied in the log's order
    here.engine.record([clicked(answer, 2, event_id="2")])
    assert here.engine.memory.num_decisions("ann") == 2
    there.engine.upsert([item("item13")])
    here.engine.upsert([item("item14")])
    assert here.engine.catalogue.row_of("item13") == 14


def test_records_that_nobody_can_read_are_passed() -> None:
    log, items_log = MemoryLog(2), MemoryLog(1)
    log.append([Entry(b"ann", b"\xff\xff\xff")])
    items_log.append([Entry(b"", b"\xff\xff\xff")])
    parts = bench(log=log, items_log=items_log, num_items=3)
    assert len(ask(parts).slots) == 3


def test_ticks_reach_every_partition() -> None:
    parts = bench()
    ends = parts.log.end_offsets()
    parts.engine.tick()
    assert parts.log.end_offsets() == [end + 1 for end in ends]
    last = [decode(parts.log.read(partition, end)[0].value) for partition, end in enumerate(ends)]
    assert [record.tick.event_time_ms for record in last] == [NOW_MS, NOW_MS]
    assert parts.engine.catalogue.next_offset == parts.items_log.end_offsets()[0] == 13


def test_nothing_is_acknowledged_while_the_log_is_away(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with closing(SqliteLog(path, "events", 2, timeout_s=0.02)) as log, closing(SqliteLog(path, "items", 1, timeout_s=0.02)) as items_log:
        parts = bench(log=log, items_log=items_log)
        answer = ask(parts)
        with SqliteLog(path, "events", 2)._transaction():  # another process that writes for too long
            for act in (lambda: ask(parts), lambda: parts.engine.record([clicked(answer)]), lambda: parts.engine.upsert([item("item99")])):
                with pytest.raises(LogUnavailable):
                    act()
        assert parts.engine.memory.view("ann").key_L.size == 0
        assert parts.engine.catalogue.row_of("item99") == 0
        parts.engine.tick()
        assert parts.engine.record([clicked(answer)]) == (1, [])
        assert (len(parts.events()), len(parts.decisions())) == (1, 1)


def test_requests_and_events_are_forgotten_after_a_lifetime() -> None:
    parts = bench(config=EngineConfig(token_lifetime_ms=1000))
    first = ask(parts, request_id="r")
    parts.engine.record([watched()])
    parts.clock.advance_to(NOW_MS + 1000)
    assert ask(parts, request_id="r") == first
    parts.engine.record([watched()])
    assert len(parts.events()) == 1
    parts.clock.advance_to(NOW_MS + 1001)
    parts.engine.record([watched("item2", event_id="other")])
    assert ask(parts, request_id="r").decision_token != first.decision_token
    parts.engine.record([watched()])
    assert sorted(event.event_id for event in parts.events()) == ["other", "watch", "watch"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"default_slate_size": 0}, "engine.default_slate_size is 0; it must be 1..100"),
        ({"default_slate_size": 101}, "is 101"),
        ({"token_lifetime_ms": 999}, "engine.token_lifetime_ms is 999"),
    ],
)
def test_a_configuration_out_of_range_names_the_value(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig(**fields)
