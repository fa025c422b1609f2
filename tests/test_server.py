"""The server over a real port: codes, limits, health, authentication, hot swap under load, drain, and clients that are not ours."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from recsys.policy import DrawingConfig
from recsys.recommender_pb2_grpc import RecommenderStub
from recsys.server import SERVICE, Server, ServerConfig
from streaming.clock import ManualClock, SystemClock
from streaming.events import Event, Item
from streaming.proto.recommender_pb2 import (
    GetStatusRequest,
    RecommendRequest,
    RecordEventsRequest,
    UpsertItemsRequest,
)
from streaming.sqlite_log import SqliteLog
from tests.artifacts import NOW_MS, VARIANT, item, item_ids, publish
from tests.serving import Live, WatchedPolicy, bench, clicked, refused, serving, wait_for, watched

ROOT = Path(__file__).resolve().parents[1]
GRPCURL = ROOT.parent / "shared" / "tools" / "grpcurl"
TOKEN = "a-token-of-some-length"
INVALID, TOO_MUCH, AWAY = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE
UNKNOWN_CALLER = grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with serving(tmp_path) as found:
        yield found


# The four methods -----------------------------------------------------------------------------------------------------


def test_a_slate_its_click_and_the_next_slate(live: Live) -> None:
    policy = WatchedPolicy()
    live.parts.engine.serve(VARIANT, policy)
    answer = live.ask(slate_size=2, context={"surface": "home"})
    assert [slot.item_id for slot in answer.slots] == ["item0", "item1"]
    recorded = live.stub.RecordEvents(RecordEventsRequest(events=[clicked(answer), Event(event_id="bad"), clicked(answer)]))
    assert (recorded.accepted, [rejection.index for rejection in recorded.rejected]) == (2, [1])
    live.ask()
    assert [len(asked.view.key_L) for asked in policy.asked] == [0, 1]
    upserted = live.stub.UpsertItems(UpsertItemsRequest(items=[item("item99"), item("item5"), item("item7")]))
    assert (upserted.accepted, list(upserted.rejected)) == (3, [])
    assert live.server.stats()["calls"] == {"Recommend OK": 2, "RecordEvents OK": 1, "UpsertItems OK": 1}


def test_the_wire_changes_nothing(live: Live) -> None:
    """What a client receives is what the engine answers."""
    answer = live.ask(request_id="r")
    assert answer == live.parts.engine.recommend(RecommendRequest(user_id="ann", request_id="r"))
    assert len(live.parts.decisions()) == 1


@pytest.mark.parametrize(
    ("request_of", "said"),
    [
        (RecommendRequest, "user_id is empty"),
        (lambda: RecommendRequest(user_id="ann", slate_size=1000), "slate_size is 1000; it must be 1..100, or 0 for the default"),
        (lambda: RecommendRequest(user_id="ann", seen=7), "seen is 7; it must be one of 0, 1, 2"),
        (lambda: RecommendRequest(user_id="ü" * 200), "user_id has 400 bytes; at most 256"),
        (lambda: RecommendRequest(user_id="ann", event_time_ms=-5), "event_time_ms is -5"),
        (lambda: RecommendRequest(user_id="ann", context={"x": "y" * 600_000}), "at most 500000"),
    ],
)
def test_a_bad_request_is_an_invalid_argument(live: Live, request_of: Callable[[], RecommendRequest], said: str) -> None:
    code, details = refused(lambda: live.stub.Recommend(request_of()))
    assert (code, said in details) == (INVALID, True), details
    assert live.server.stats()["calls"] == {"Recommend INVALID_ARGUMENT": 1}


def test_the_wall_clock_is_nobody_elses(tmp_path: Path) -> None:
    clock = SystemClock()
    with serving(tmp_path, bench(clock=clock)) as live:
        code, details = refused(lambda: live.ask(event_time_ms=clock.now_ms()))
        assert (code, "on the wall clock: it must be 0" in details) == (INVALID, True)
        answer = live.ask()
        year_2100 = clicked(answer, event_time_ms=4_102_444_800_000)
        assert "ms after now" in live.stub.RecordEvents(RecordEventsRequest(events=[year_2100])).rejected[0].reason
        assert abs(live.stub.GetStatus(GetStatusRequest()).now_ms - clock.now_ms()) < 10_000


def test_status_says_what_is_served_and_how_fresh(live: Live) -> None:
    before = live.stub.GetStatus(GetStatusRequest())
    assert [(one.variant, one.policy_version, one.loaded_at_ms) for one in before.variants] == [(VARIANT, 0, 0)]
    assert (before.num_items, before.num_users, before.now_ms) == (12, 0, NOW_MS)
    live.ask()
    live.stub.UpsertItems(UpsertItemsRequest(items=[item("item20"), Item(item_id="item1", retired=True), Item(item_id="x", retired=True)]))
    publish(live.state_dir, item_ids(12), 4, now_ms=NOW_MS + 100)
    live.parts.clock.advance_to(NOW_MS + 700)
    live.server.step()
    after = live.stub.GetStatus(GetStatusRequest())
    [status] = after.variants
    assert (status.variant, status.policy_version, status.trained_through_ms) == (VARIANT, 4, 4000)
    assert (status.published_at_ms, status.loaded_at_ms) == (NOW_MS + 100, NOW_MS + 700)
    assert (after.num_items, after.num_users, after.now_ms) == (12, 1, NOW_MS + 700)
    stats = live.server.stats()
    assert (stats["num_items"], stats["num_users"], stats["log_error"]) == (12, 1, "")
    assert 0 < stats["variants"][VARIANT].pop("load_s") < 20
    fields = {"policy_version": 4, "trained_through_ms": 4000, "published_at_ms": NOW_MS + 100, "loaded_at_ms": NOW_MS + 700}
    assert stats["variants"] == {VARIANT: fields | {"refused": "", "kept_share": None}}
    assert json.loads(json.dumps(stats)) == stats


# Time and the log -----------------------------------------------------------------------------------------------------


def test_steps_tick_once_an_interval(tmp_path: Path) -> None:
    parts = bench()
    server = Server(ServerConfig(tick_interval_ms=1000), parts.engine, parts.clock, tmp_path, [VARIANT], DrawingConfig())
    num_ticks = []
    for elapsed_ms in (0, 999, 1000, 1001, 1999, 2000, 10_000):
        parts.clock.advance_to(NOW_MS + elapsed_ms)
        server.step()
        num_ticks.append(parts.log.end_offsets()[0])
    assert num_ticks == [1, 1, 2, 2, 2, 3, 4]


def test_a_clock_that_is_set_back_silences_no_ticks(tmp_path: Path) -> None:
    parts = bench()
    server = Server(ServerConfig(tick_interval_ms=1000), parts.engine, parts.clock, tmp_path, [VARIANT], DrawingConfig())
    server.step()
    for elapsed_ms in (0, 999, 1000):
        server._clock = ManualClock(NOW_MS - 3_600_000 + elapsed_ms)
        server.step()
    assert parts.log.end_offsets()[0] == 3


def test_steps_take_in_what_another_server_appended(tmp_path: Path) -> None:
    here = bench()
    there = bench(num_items=0, log=here.log, items_log=here.items_log)
    with serving(tmp_path, here) as live:
        there.engine.record([watched()])
        there.engine.upsert([item("item40")])
        live.parts.clock.advance_to(NOW_MS + 1000)
        live.server.step()
        assert here.engine.memory.view("ann").key_L.size == 1
        assert live.stub.GetStatus(GetStatusRequest()).num_items == 13


def test_with_the_log_away_calls_are_unavailable_and_the_server_lives(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with (
        closing(SqliteLog(path, "events", 2, timeout_s=0.02)) as log,
        closing(SqliteLog(path, "items", 1, timeout_s=0.02)) as items_log,
        serving(tmp_path / "state", bench(log=log, items_log=items_log)) as live,
    ):
        answer = live.ask()
        send = partial(live.stub.RecordEvents, RecordEventsRequest(events=[clicked(answer)]))
        with SqliteLog(path, "events", 2)._transaction():  # another process that writes for too long
            assert refused(live.ask)[0] == refused(send)[0] == AWAY
            assert str(tmp_path) not in refused(send)[1]
            live.parts.clock.advance_to(NOW_MS + 5000)
            publish(live.state_dir, item_ids(12))
            live.server.step()
            assert "locked" in live.server.stats()["log_error"]
            assert live.stub.GetStatus(GetStatusRequest()).variants[0].policy_version == 1
        live.server.step()
        assert live.server.stats()["log_error"] == ""
        assert (send().accepted, live.ask().policy_version) == (1, 1)


# Limits ---------------------------------------------------------------------------------------------------------------


def test_a_message_over_the_limit_is_refused(live: Live) -> None:
    events = [watched(event_id=f"{number}" * 50) for number in range(1000, 9000)]
    code, _ = refused(lambda: live.stub.RecordEvents(RecordEventsRequest(events=events)))
    assert code == TOO_MUCH
    assert live.parts.events() == []
    assert live.stub.RecordEvents(RecordEventsRequest(events=events[:2000])).accepted == 2000


def test_calls_beyond_the_limit_are_told_so_and_the_others_answered(tmp_path: Path) -> None:
    with serving(tmp_path, max_concurrent=2, max_workers=2) as live:
        policy = held(live)
        calls = [live.stub.Recommend.future(RecommendRequest(user_id=user)) for user in ("ann", "bob")]
        assert policy.entered.acquire(timeout=20)
        wait_for(lambda: refused_at_once(live))
        policy.may_answer.set()
        assert [call.result(timeout=20).policy_version for call in calls] == [3, 3]
        assert live.ask("cem").policy_version == 3


def refused_at_once(live: Live) -> bool:
    """The second of the calls held may not have arrived yet."""
    try:
        live.stub.GetStatus(GetStatusRequest(), timeout=1)
    except grpc.RpcError as error:
        return bool(error.code() == TOO_MUCH)
    return False


def test_a_call_whose_deadline_passed_is_not_worked_on(tmp_path: Path) -> None:
    with serving(tmp_path, max_workers=1) as live:
        policy = held(live)
        first = live.stub.Recommend.future(RecommendRequest(user_id="ann"))
        assert policy.entered.acquire(timeout=20)
        code, _ = refused(lambda: live.stub.Recommend(RecommendRequest(user_id="bob"), timeout=0.1))
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED
        threading.Event().wait(0.5)  # the one worker is taken, so nothing can be asked that comes behind this news
        policy.may_answer.set()
        assert first.result(timeout=20).slots
        live.ask("cem")
        assert [decision.user_id for decision in live.parts.decisions() if decision.user_id == "bob"] == []
        assert len(live.parts.decisions()) == 2


def test_calls_that_wait_for_a_slate_are_answered_together_but_for_those_given_up(tmp_path: Path) -> None:
    with serving(tmp_path, max_workers=8) as live:
        policy = held(live)
        first = live.stub.Recommend.future(RecommendRequest(user_id="ann"))
        assert policy.entered.acquire(timeout=20)
        waiting = [live.stub.Recommend.future(RecommendRequest(user_id=user)) for user in ("bob", "cem", "dot")]
        late = live.stub.Recommend.future(RecommendRequest(user_id="eve"), timeout=0.2)
        bad = live.stub.Recommend.future(RecommendRequest(user_id="fay", slate_size=101))
        assert [bad.code(), late.code()] == [INVALID, grpc.StatusCode.DEADLINE_EXCEEDED]
        live.stub.GetStatus(GetStatusRequest())  # behind the news that eve gave up, on the same connection
        policy.may_answer.set()
        assert all(call.result(timeout=20).slots for call in [first, *waiting])
        assert sorted(decision.user_id for decision in live.parts.decisions()) == ["ann", "bob", "cem", "dot"]


def held(live: Live) -> WatchedPolicy:
    """A policy that answers when told to."""
    policy = WatchedPolicy()
    policy.may_answer.clear()
    live.parts.engine.serve(VARIANT, policy)
    return policy


# Health and drain -----------------------------------------------------------------------------------------------------


def test_health_is_told_by_service(live: Live) -> None:
    serving_status = health_pb2.HealthCheckResponse.SERVING
    assert [live.health(""), live.health(SERVICE)] == [serving_status, serving_status]
    assert SERVICE == "recsys.v1.Recommender"
    assert refused(lambda: live.health("no.such.Service"))[0] == grpc.StatusCode.NOT_FOUND


def test_drain_finishes_what_is_in_flight_and_takes_no_more(tmp_path: Path) -> None:
    with serving(tmp_path, grace_s=20) as live, ThreadPoolExecutor(1) as pool:
        policy = held(live)
        told = health_pb2_grpc.HealthStub(live.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert next(told).status == health_pb2.HealthCheckResponse.SERVING
        in_flight = live.stub.Recommend.future(RecommendRequest(user_id="ann"))
        assert policy.entered.acquire(timeout=20)
        closed = pool.submit(live.server.close)
        assert next(told).status == health_pb2.HealthCheckResponse.NOT_SERVING
        wait_for(lambda: is_away(live))
        assert not in_flight.done()
        told.cancel()
        policy.may_answer.set()
        assert in_flight.result(timeout=20).policy_version == 3
        closed.result(timeout=20)
        assert [decision.user_id for decision in live.parts.decisions()] == ["ann"]


def is_away(live: Live) -> bool:
    with grpc.insecure_channel(f"127.0.0.1:{live.server.port}") as channel:
        try:
            RecommenderStub(channel).GetStatus(GetStatusRequest(), timeout=1)
        except grpc.RpcError as error:
            return bool(error.code() == AWAY)
    return False


def test_a_port_taken_is_an_error(tmp_path: Path) -> None:
    with serving(tmp_path) as live:
        address = f"127.0.0.1:{live.server.port}"
        second = Server(ServerConfig(address=address), live.parts.engine, live.parts.clock, tmp_path, [VARIANT], DrawingConfig())
        with pytest.raises(OSError, match=f"can't listen on {address}"):
            second.start()
        second.close()


# Clients that are not ours --------------------------------------------------------------------------------------------


def grpcurl(*arguments: str, data: str = "{}") -> subprocess.CompletedProcess[str]:
    if not GRPCURL.exists():
        pytest.skip(f"no grpcurl at {GRPCURL}: a client that is not ours can't be tried")
    return subprocess.run(
        [GRPCURL, "-plaintext", "-max-time", "20", "-d", data, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_a_foreign_client_is_served(live: Live) -> None:
    address, proto = f"127.0.0.1:{live.server.port}", ("-proto", "streaming/proto/recommender.proto")
    done = grpcurl(*proto, address, f"{SERVICE}/Recommend", data=json.dumps({"user_id": "ann", "slate_size": 3, "seen": "SEEN_ALLOW"}))
    answer = json.loads(done.stdout)
    assert len(answer["slots"]) == 3
    assert (answer["variant"], answer["degraded"]) == (VARIANT, "DEGRADED_NO_POLICY")
    exposure = {"event_id": "1", "user_id": "ann", "exposure": {"decision_token": answer["decisionToken"], "slots": [0, 2]}}
    done = grpcurl(*proto, address, f"{SERVICE}/RecordEvents", data=json.dumps({"events": [exposure, {}]}))
    assert json.loads(done.stdout) == {"accepted": 1, "rejected": [{"index": 1, "reason": "event_id is empty"}]}
    done = grpcurl(*proto, address, f"{SERVICE}/Recommend", data=json.dumps({"user_id": "ann", "slate_size": 101}))
    assert "InvalidArgument" in done.stderr
    assert "slate_size is 101" in done.stderr


@pytest.mark.parametrize("reflection", [True, False])
def test_methods_are_listed_only_where_asked_for(reflection: bool, tmp_path: Path) -> None:
    with serving(tmp_path, reflection=reflection) as live:
        done = grpcurl(f"127.0.0.1:{live.server.port}", f"{SERVICE}/GetStatus")
        assert (done.returncode == 0) is reflection
        assert ("does not support the reflection API" in done.stderr) is not reflection


def test_the_example_client_of_the_readme_runs(live: Live) -> None:
    program = [sys.executable, "-W", "error", "tests/example_client.py", f"127.0.0.1:{live.server.port}"]
    done = subprocess.run(program, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    lines = done.stdout.splitlines()
    assert lines[0] == "items accepted: 3"
    assert all("log-probability -" in line for line in lines[1:3])
    assert lines[3] == "events accepted: 2"
    assert sorted(event.WhichOneof("body") for event in live.parts.events()) == ["exposure", "feedback"]


# Configuration --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"address": "localhost"}, "server.address is 'localhost'; it must be HOST:PORT"),
        ({"address": ":80"}, "server.address is ':80'"),
        ({"address": "localhost:70000"}, "70000"),
        ({"max_workers": 0}, "server.max_workers is 0; it must be 1..256"),
        ({"max_batch": 0}, "server.max_batch is 0; it must be 1..256"),
        ({"max_concurrent": 0}, "server.max_concurrent is 0"),
        ({"max_message_bytes": 10}, "server.max_message_bytes is 10"),
        ({"tick_interval_ms": 0}, "server.tick_interval_ms is 0"),
        ({"grace_s": -1}, "server.grace_s is -1"),
        ({"request_s": 0}, "server.request_s is 0; it must be 0.01..600"),
        ({"grace_s": float("nan")}, "server.grace_s is nan"),
    ],
)
def test_a_configuration_out_of_range_names_the_value(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServerConfig(**fields)
