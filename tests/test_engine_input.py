"""What the request path refuses and why, and what it keeps of a batch that is partly bad."""

import math
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from recsys.admission import BadRequest
from recsys.engine import EngineConfig
from recsys.memory import SHOWN, MemoryConfig
from recsys.tokens import TokenMint
from streaming.clock import SystemClock
from streaming.events import Event, Feedback, Interaction, Item, decode
from streaming.proto.recommender_pb2 import RecommendRequest, RecommendResponse
from streaming.sqlite_log import SqliteLog
from tests.artifacts import item
from tests.serving import KEY, NOW_MS, VARIANT, WatchedPolicy, ask, bench, clicked, shown, slate, watched

YEAR_2100_MS = 4_102_444_800_000
INF, NAN = math.inf, math.nan


def with_unknown_field(message: bytes) -> bytes:
    """The bytes of a message, then field 1000 with a text that no contract knows."""
    return message + b"\xc2\x3e\x04junk"


# Recommend -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"user_id": ""}, "user_id is empty"),
        ({"user_id": "u" * 257}, "user_id has 257 bytes; at most 256"),
        ({"user_id": "ü" * 129}, "user_id has 258 bytes"),
        ({"user_id": "ann\0bob"}, "user_id holds a NUL character"),
        ({"request_id": "r" * 257}, "request_id has 257 bytes"),
        ({"slate_size": 101}, "slate_size is 101; it must be 1..100"),
        ({"slate_size": 1000}, "slate_size is 1000"),
        ({"slate_size": 2**32 - 1}, "slate_size is 4294967295"),
        ({"seen": 7}, "seen is 7; it must be one of 0, 1, 2"),
        ({"seen": -1}, "seen is -1"),
        ({"event_time_ms": -1}, "event_time_ms is -1"),
        ({"event_time_ms": YEAR_2100_MS}, f"event_time_ms is {YEAR_2100_MS}"),
        ({"event_time_ms": NOW_MS + 60_001}, "60000 ms after now"),
        ({"event_time_ms": 2**63 - 1}, "event_time_ms is 9223372036854775807"),
        ({"exclude_item_ids": [""]}, "an entry of exclude_item_ids is empty"),
        ({"candidate_item_ids": ["x" * 300]}, "an entry of candidate_item_ids has 300 bytes"),
        ({"candidate_item_ids": ["x"] * 10_001}, "candidate_item_ids has 10001 entries"),
        ({"exclude_item_ids": ["x"] * 10_001}, "exclude_item_ids has 10001 entries"),
        ({"context": {"": "x"}}, "a key of context is empty"),
        ({"where": {"": "x"}}, "a key of where is empty"),
        ({"where": {"k" * 257: "x"}}, "a key of where has 257 bytes"),
        ({"context": {"page": "x" * 600_000}}, "at most 500000"),
    ],
)
def test_a_bad_request_is_refused_and_leaves_nothing(fields: dict[str, object], reason: str) -> None:
    parts = bench()
    with pytest.raises(BadRequest, match=re.escape(reason)):
        parts.engine.recommend(RecommendRequest(**({"user_id": "ann"} | fields)))
    assert parts.records() == []


def test_the_largest_good_request_fits_the_log() -> None:
    parts = bench()
    names = ["x" * 240 + f"{number:06}" for number in range(1990)]
    assert len(ask(parts, "u" * 256, request_id="r" * 256, exclude_item_ids=names, slate_size=100).slots) == 12


def test_only_a_server_off_the_wall_clock_takes_a_request_time() -> None:
    now_ms = SystemClock().now_ms()
    wall = bench(clock=SystemClock())
    with pytest.raises(BadRequest, match="this server is on the wall clock: it must be 0"):
        ask(wall, event_time_ms=now_ms)
    assert ask(wall).decision_id
    assert wall.decisions()[0].event_time_ms >= now_ms
    assert ask(bench(), event_time_ms=NOW_MS - 86_400_000).decision_id


def test_an_unknown_field_is_left_aside() -> None:
    """A newer client may say more than this server knows; it is answered, and what isn't known is not kept."""
    parts = bench()
    request = RecommendRequest.FromString(with_unknown_field(RecommendRequest(user_id="ann").SerializeToString()))
    assert parts.engine.recommend(request).slots
    event = Event.FromString(with_unknown_field(watched().SerializeToString()))
    assert parts.engine.record([event]) == (1, [])
    changed = Item.FromString(with_unknown_field(item("item1").SerializeToString()))
    assert parts.engine.upsert([changed]) == (1, [])
    values = [
        record.value for log, partitions in ((parts.log, 2), (parts.items_log, 1)) for p in range(partitions) for record in log.read(p, 0)
    ]
    assert len(values) == 15
    assert not any(b"junk" in value for value in values)


# RecordEvents ---------------------------------------------------------------------------------------------------------


def test_a_click_is_in_the_memory_that_the_next_request_sees() -> None:
    parts, policy = bench(), WatchedPolicy()
    parts.engine.serve(VARIANT, policy)
    answer = ask(parts)
    assert parts.engine.record([shown(answer, 0, 1), clicked(answer, 1)]) == (2, [])
    ask(parts)
    before, after = [asked.view for asked in policy.asked]
    assert before.key_L.size == 0
    kinds = [SHOWN, SHOWN, MemoryConfig().kind_of(Feedback(kind="click"))]
    assert after.kind_L.tolist() == kinds
    assert after.key_L[2] == after.key_L[1] != after.key_L[0]


@pytest.mark.parametrize("times", ["in one call", "across calls", "across a restart"])
def test_the_same_event_twice_is_one_record(times: str, tmp_path: Path) -> None:
    with closing(SqliteLog(tmp_path / "log.db", "events", 2)) as log, closing(SqliteLog(tmp_path / "log.db", "items", 1)) as items_log:
        parts = bench(log=log, items_log=items_log)
        answer = ask(parts)
        calls = [[clicked(answer), clicked(answer)]] if times == "in one call" else [[clicked(answer)], [clicked(answer)]]
        for call in calls:
            assert parts.engine.record(call) == (len(call), [])
            if times == "across a restart":
                parts = bench(num_items=0, log=log, items_log=items_log)
        assert len(parts.events()) == 1
        assert parts.engine.memory.view("ann").key_L.size == 1


def forged(token: str) -> str:
    said, _, signature = token.rpartition(".")
    return f"{said}.{signature[:-1]}{'0' if signature[-1] != '0' else '1'}"


def longer(token: str) -> str:
    """More slots than the slate had."""
    parts = token.split(".")
    return ".".join([*parts[:3], "99", *parts[4:]])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (forged, "was not made for this user here, or was changed"),
        (longer, "was changed"),
        (lambda token: "", "was changed"),
        (lambda token: "....", "was changed"),
        (lambda token: token + "é", "was changed"),
        (lambda token: token.upper(), "was changed"),
        (lambda token: f" {token}", "was changed"),
        (lambda token: "x" * 200_000, "was changed"),
    ],
)
def test_a_token_that_was_not_made_here_is_refused(change: Callable[[str], str], reason: str) -> None:
    parts = bench()
    answer = ask(parts)
    answer.decision_token = change(answer.decision_token)
    accepted, rejected = parts.engine.record([clicked(answer), shown(answer, 0)])
    assert (accepted, [rejection.index for rejection in rejected]) == (0, [0, 1])
    assert all(reason in rejection.reason for rejection in rejected)
    assert parts.events() == []


def test_a_token_of_another_user_key_or_time_is_refused() -> None:
    parts = bench()
    answer = ask(parts)
    [another] = parts.engine.record([clicked(answer, user_id="bob")])[1]
    assert "was not made for this user" in another.reason
    strange = ask(bench(key=b"another key of 16"))
    [strange_key] = parts.engine.record([clicked(strange)])[1]
    assert "was not made for this user here" in strange_key.reason
    parts.clock.advance_to(NOW_MS + EngineConfig().token_lifetime_ms)
    assert parts.engine.record([clicked(answer)]) == (1, [])
    parts.clock.advance_to(NOW_MS + EngineConfig().token_lifetime_ms + 1)
    [over] = parts.engine.record([clicked(answer, 1, event_id="late")])[1]
    assert over.reason == "decision_token expired 1 ms ago"


def test_keys_rotate() -> None:
    answer = ask(bench(key=b"an old key of 16"))
    claims = TokenMint([KEY, b"an old key of 16"], 1000).check(answer.decision_token, "ann", NOW_MS)
    assert (claims.decision_id, claims.variant, claims.num_slots) == (answer.decision_id, VARIANT, 10)


def bad_events(answer: RecommendResponse) -> list[tuple[Event, str]]:
    click = clicked(answer)
    no_kind = Event(event_id="e", user_id="ann", feedback=Feedback(decision_token=answer.decision_token, slot=0, value=1))
    return [
        (Event(), "event_id is empty"),
        (Event(event_id="e"), "user_id is empty"),
        (Event(event_id="e", user_id="ann"), "the event has no body"),
        (Event(event_id="e" * 257, user_id="ann"), "event_id has 257 bytes"),
        (watched(user_id="u" * 100_000), "user_id has 100000 bytes"),
        (no_kind, "feedback.kind is empty"),
        (clicked(answer, slot=10), "slot 10 is outside the slate; it has slots 0..9"),
        (clicked(answer, slot=2**32 - 1), "slot 4294967295 is outside"),
        (shown(answer), "exposure.slots is empty"),
        (shown(answer, 0, 10), "slot 10 is outside"),
        (shown(answer, *([0] * 11)), "exposure.slots has 11 entries; the slate has 10 slots"),
        (shown(answer, *([0] * 100_000)), "exposure.slots has 100000 entries"),
        *((clicked(answer, value=value), "feedback.value is") for value in (NAN, INF, -INF, 1e300, -1.0001e12)),
        *((watched(value=value), "interaction.value is") for value in (NAN, INF, -INF, 1e300)),
        (watched("stranger"), "interaction.item_id 'stranger' is not in the catalogue"),
        (watched(""), "interaction.item_id '' is not in the catalogue"),
        (watched("x" * 100_000), "is not in the catalogue"),
        (watched(event_time_ms=-1), "event_time_ms is -1"),
        (watched(event_time_ms=YEAR_2100_MS), f"event_time_ms is {YEAR_2100_MS}"),
        (clicked(answer, event_time_ms=NOW_MS + 60_001), "up to 60000 ms after now"),
        (Event(event_id="e", user_id="ann", interaction=Interaction(item_id="item1")), "interaction.kind is empty"),
        (Event(event_id="e", user_id="bob", feedback=click.feedback), "was not made for this user"),
    ]


def test_bad_events_are_named_and_the_good_ones_kept() -> None:
    parts = bench()
    answer = ask(parts)
    bad = bad_events(answer)
    good = [shown(answer, 0), clicked(answer, 0, value=-1e12), watched(event_time_ms=1)]
    accepted, rejected = parts.engine.record([good[0], *(event for event, _ in bad), *good[1:]])
    assert accepted == 3
    assert [rejection.index for rejection in rejected] == list(range(1, len(bad) + 1))
    wrong = {reason: got.reason for (_, reason), got in zip(bad, rejected, strict=True) if reason not in got.reason}
    assert wrong == {}
    assert all(len(rejection.reason) < 300 for rejection in rejected)
    assert sorted(event.event_id for event in parts.events()) == ["click", "shown", "watch"]


def test_an_event_without_a_time_happened_now() -> None:
    parts = bench()
    parts.engine.record([watched()])
    assert [event.event_time_ms for event in parts.events()] == [NOW_MS]


def test_feedback_on_an_empty_slate_is_refused() -> None:
    parts = bench(num_items=0)
    [rejection] = parts.engine.record([clicked(ask(parts))])[1]
    assert rejection.reason == "the slate has no slots"


def test_too_many_at_once() -> None:
    parts = bench()
    with pytest.raises(BadRequest, match="events has 10001 entries"):
        parts.engine.record([Event()] * 10_001)
    with pytest.raises(BadRequest, match="items has 10001 entries"):
        parts.engine.upsert([Item()] * 10_001)
    assert parts.engine.record([]) == (0, [])
    assert parts.engine.upsert([]) == (0, [])


# UpsertItems ----------------------------------------------------------------------------------------------------------


def test_bad_items_are_named_and_the_good_ones_kept() -> None:
    bad = [
        (Item(title="nameless"), "item_id is empty"),
        (Item(item_id="x" * 257), "item_id has 257 bytes"),
        (Item(item_id="nul\0"), "item_id holds a NUL"),
        (Item(item_id="x", attributes={"": "v"}), "attributes has an empty key"),
        (Item(item_id="x", title="t" * 10_001), "title and attributes have 10001 bytes"),
        (Item(item_id="x", attributes={"k": "v" * 10_000}), "title and attributes have 10001 bytes"),
        (Item(item_id="x", embedding=[0.0, 0.0]), "embedding is all zeros"),
        (Item(item_id="x", embedding=[1.0, NAN]), "embedding holds nan"),
        (Item(item_id="x", embedding=[INF]), "embedding holds inf"),
        (Item(item_id="x", embedding=[-INF]), "embedding holds -inf"),
        (Item(item_id="x", embedding=[2e6]), "embedding holds 2000000"),
        (Item(item_id="x", embedding=[1.0] * 4097), "embedding has 4097 values"),
    ]
    good = [
        Item(item_id="bare"),
        Item(item_id="empty value", attributes={"genre": ""}),
        Item(item_id="embedded", embedding=[0.0, -3.0]),
        Item(item_id="Ω" * 128, title="long id"),
    ]
    parts = bench(num_items=0)
    accepted, rejected = parts.engine.upsert([*good[:2], *(item for item, _ in bad), *good[2:]])
    assert accepted == 4
    assert [rejection.index for rejection in rejected] == list(range(2, len(bad) + 2))
    wrong = {reason: got.reason for (_, reason), got in zip(bad, rejected, strict=True) if reason not in got.reason}
    assert wrong == {}
    assert sorted(slate(ask(parts))) == sorted(item.item_id for item in good)
    assert slate(ask(parts, where={"genre": ""})) == ["empty value"]


def test_changed_attributes_count_at_once() -> None:
    parts = bench(num_items=3)
    parts.engine.upsert([Item(item_id="item0", attributes={"genre": "new"})])
    assert slate(ask(parts, where={"genre": "new"})) == ["item0"]
    assert slate(ask(parts, where={"genre": "a"})) == []
    change = decode(parts.items_log.read(0, 3)[0].value).item
    assert (change.event_time_ms, change.item.item_id) == (NOW_MS, "item0")
