"""A server whose log is away: it answers, loses nothing, takes nothing it can't keep, and says what waits."""

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
import pytest
from kafka import KafkaAdminClient

from recsys.memory import Memory, MemoryConfig
from recsys.spool import Spool, SpoolFull
from streaming.events import Decision, Tick, decode, encode
from streaming.joiner import JoinConfig, Joiner
from streaming.kafka_log import KafkaLog
from streaming.log import Entry, EventLog, LogChanged, LogUnavailable, OffsetGone, partition_of
from streaming.proto.recommender_pb2 import RecordEventsRequest
from streaming.sqlite_log import SqliteLog
from tests.artifacts import NOW_MS, VARIANT, item, item_ids, publish
from tests.broker import Broker, Node
from tests.serving import Bench, WatchedPolicy, ask, bench, clicked, refused, serving, shown, wait_for, watched

LIMIT = 10**6
AWAY = grpc.StatusCode.UNAVAILABLE


@dataclass
class Place:
    """A log that can be taken away, and a spool beside it."""

    directory: Path
    log: EventLog
    items_log: EventLog
    away: Callable[[], object]
    running: ExitStack = field(default_factory=ExitStack)

    def engine(self, name: str = "s", max_bytes: int = LIMIT, **fields: object) -> Bench:
        spool = self.running.enter_context(closing(Spool(self.directory / name, max_bytes)))
        return bench(log=self.log, items_log=self.items_log, spool=spool, **fields)


def sqlite_place(directory: Path) -> Place:
    path = directory / "log.db"
    logs = SqliteLog(path, "events", 2, timeout_s=0.02), SqliteLog(path, "items", 1, timeout_s=0.02)
    return Place(directory, *logs, SqliteLog(path, "events", 2)._transaction)  # away: another process writes for too long


def kafka_place(directory: Path, broker: Broker) -> Place:
    if broker.node is None:
        pytest.skip("this broker isn't ours to kill")
    topic = f"outage-{uuid.uuid4().hex}"
    logs = (KafkaLog(broker.bootstrap, topic + suffix, count, timeout_s=1) for suffix, count in (("", 2), (".items", 1)))
    return Place(directory, *logs, lambda: killed(broker.node))


@contextmanager
def killed(node: Node) -> Iterator[None]:
    node.kill()
    try:
        yield
    finally:
        node.start()


@pytest.fixture(params=["sqlite", "kafka"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    found = sqlite_place(tmp_path) if request.param == "sqlite" else kafka_place(tmp_path, request.getfixturevalue("broker"))
    with found.running, closing(found.log), closing(found.items_log):
        yield found


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Place]:
    with (found := sqlite_place(tmp_path)).running, closing(found.log), closing(found.items_log):
        yield found


def back(parts: Bench) -> None:
    """Tick until the log has answered."""
    deadline_s = time.monotonic() + 30
    while True:
        try:
            return parts.engine.tick()
        except LogUnavailable:
            assert time.monotonic() < deadline_s


def unique(decisions: list[Decision]) -> list[Decision]:
    """In order; exact copies once."""
    found = {decision.SerializeToString(deterministic=True): decision for decision in decisions}
    assert len({decision.decision_id for decision in found.values()}) == len(found)
    return list(found.values())


def test_decisions_wait_and_come_before_all_that_is_newer(place: Place) -> None:
    parts, policy = place.engine(), WatchedPolicy()
    back(parts)
    parts.engine.serve(VARIANT, policy)
    first = ask(parts)
    parts.engine.record([shown(first, 0, 1), clicked(first)])
    with place.away():
        answers = [ask(parts), ask(parts), ask(parts, request_id="r"), ask(parts, "bob")]
        assert ask(parts, request_id="r") == answers[2]
        for act in (lambda: parts.engine.record([watched()]), lambda: parts.engine.upsert([item("item99")]), parts.engine.tick):
            with pytest.raises(LogUnavailable):
                act()
        assert parts.engine.num_spooled == 4
        assert len({answer.decision_id for answer in [first, *answers]}) == 5
    back(parts)
    assert parts.engine.num_spooled == 0
    answers += [ask(parts), ask(parts, request_id="r")]
    assert answers[-1] == answers[2]
    parts.engine.record([shown(answers[0], 2, event_id="2"), clicked(answers[0], 2, event_id="3")])
    logged = {user: [one for one in unique(parts.decisions()) if one.user_id == user] for user in ("ann", "bob")}
    said = [first, *answers[:3], answers[4]]
    assert [one.decision_id for one in logged["ann"]] == [answer.decision_id for answer in said]
    assert [one.decision_id for one in logged["bob"]] == [answers[3].decision_id]
    assert parts.engine.memory.num_decisions("ann") == 5
    assert parts.engine.memory.view("ann").key_L.size == 5
    assert_as_of([*logged["ann"][:4], *logged["bob"], logged["ann"][4]], policy, place.log)
    assert_joined(place.log, 6)


def assert_as_of(decisions: list[Decision], policy: WatchedPolicy, log: EventLog) -> None:
    """What the policy saw is what the log says was in memory at `memory_offset`."""
    memory = Memory(MemoryConfig(), log.num_partitions)
    memory.keep_from = [0] * log.num_partitions
    for partition in range(log.num_partitions):
        for record in log.read(partition, 0):
            memory.apply(partition, record.offset, decode(record.value))
    for decision, asked in zip(decisions, policy.asked, strict=True):
        assert memory.view(decision.user_id, decision.memory_offset).key_L.tolist() == asked.view.key_L.tolist()


def assert_joined(log: EventLog, count: int) -> None:
    """Each decision opens once, whatever was written twice, and none is late."""
    joiner = Joiner(JoinConfig(variant=VARIANT), log.num_partitions)
    for partition in range(log.num_partitions):
        joiner.apply(partition, log.read(partition, 0))
    books = joiner.books()
    assert books.balanced
    assert (books.decisions["open"], books.decisions["late"]) == (count, 0)


def test_a_new_life_of_the_server_goes_on_with_what_waited(local: Place) -> None:
    parts = local.engine()
    with local.away():
        before = [ask(parts, request_id="r"), ask(parts)]
        local.running.close()
        again = local.engine(num_items=0)
        assert again.engine.num_spooled == 2
        assert ask(again, request_id="r") == before[0]
        after = [ask(again), ask(again, "bob")]
        with pytest.raises(LogUnavailable):
            again.engine.record([watched()])
    again.engine.tick()
    assert {one.decision_id for one in again.decisions()} == {one.decision_id for one in before + after}
    assert len(again.decisions()) == 4
    third = local.engine("another", num_items=0)
    assert ask(third).decision_id not in {one.decision_id for one in before + after}


def test_killed_after_the_append_it_appends_copies_that_count_once(local: Place) -> None:
    parts = local.engine()
    with local.away():
        answers = [ask(parts), ask(parts)]
    shutil.copy(local.directory / "s", local.directory / "before")
    parts.engine.tick()
    again = local.engine("before", num_items=0)
    assert again.engine.num_spooled == 0  # the log was there at its start
    assert len(again.decisions()) == 4
    assert len(unique(again.decisions())) == again.engine.memory.num_decisions("ann") == 2
    again.engine.record([shown(answers[0], 0)])
    assert again.engine.memory.view("ann").key_L.size == 1
    assert_joined(local.log, 2)


def test_past_the_limit_it_says_so(tmp_path: Path, local: Place) -> None:
    with serving(tmp_path / "state", local.engine(max_bytes=1000)) as live:
        answer = live.ask()
        with local.away():
            live.ask(request_id="r")
            spooled = live.server.stats()["spooled"]
            assert spooled > 0
            for _ in range(9):
                try:
                    live.ask()
                except grpc.RpcError:
                    break
            assert refused(live.ask) == (AWAY, "the event log can't be reached and no more decisions can wait for it")
            assert live.ask(request_id="r").slots  # was answered before
            code, details = refused(lambda: live.stub.RecordEvents(RecordEventsRequest(events=[clicked(answer)])))
            assert (code, details) == (AWAY, "the event log can't be reached now; send it again later")
            live.parts.clock.advance_to(NOW_MS + 1000)
            live.server.step()
            assert live.server.stats()["log_error"]
        live.server.step()
        stats = live.server.stats()
        assert (stats["log_error"], stats["spooled"]) == ("", 0)
        assert live.stub.RecordEvents(RecordEventsRequest(events=[clicked(answer)])).accepted == 1
        assert live.ask().slots


def test_without_a_spool_nothing_is_answered(local: Place) -> None:
    parts = bench(log=local.log, items_log=local.items_log)
    with local.away():
        for _ in range(2):
            with pytest.raises(LogUnavailable) as caught:
                ask(parts)
            assert not isinstance(caught.value, SpoolFull)
    parts.engine.tick()
    assert ask(parts).slots


def test_a_broker_down_at_start_is_waited_for_while_versions_answer(tmp_path: Path, broker: Broker) -> None:
    place = kafka_place(tmp_path, broker)
    publish(tmp_path / "state", item_ids(12))
    with place.running, closing(place.log), closing(place.items_log), ExitStack() as stack:
        with place.away():
            live = stack.enter_context(serving(tmp_path / "state", place.engine(num_items=0)))
            answers = [live.ask(), live.ask(), live.ask(request_id="r")]
            assert [answer.policy_version for answer in answers] == [1, 1, 1]
            assert all(answer.slots for answer in answers)
            assert refused(lambda: live.stub.RecordEvents(RecordEventsRequest(events=[shown(answers[0], 0)])))[0] == AWAY
            assert live.server.stats()["spooled"] == 3
        deadline_s = time.monotonic() + 30
        while live.server.stats()["log_error"]:
            live.server.step()
            assert time.monotonic() < deadline_s
        assert live.stub.RecordEvents(RecordEventsRequest(events=[shown(answers[0], 0)])).accepted == 1
        assert {one.decision_id for one in live.parts.decisions()} == {one.decision_id for one in answers}
        assert_joined(place.log, 3)


def changed(log: EventLog) -> bool:
    try:
        log.append([Entry(b"", encode(Tick(event_time_ms=NOW_MS), NOW_MS), 0)])
    except LogChanged:
        return True
    return False


def test_calls_of_a_topic_that_grew_are_told_to_ask_another_server(broker: Broker, tmp_path: Path) -> None:
    """Its keys are elsewhere from now on; the server's next step says so and is its last."""
    topic = f"grown-{uuid.uuid4().hex}"
    logs = [KafkaLog(broker.bootstrap, topic + suffix, count) for suffix, count in (("", 2), (".items", 1))]
    publish(tmp_path, item_ids(4))
    with closing(logs[0]), closing(logs[1]), serving(tmp_path, bench(log=logs[0], items_log=logs[1])) as live:
        live.server.step()
        answer = live.ask()
        with closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
            admin.create_partitions({topic: 3})
        record = partial(live.stub.RecordEvents, RecordEventsRequest(events=[shown(answer, 0)]))
        wait_for(lambda: changed(logs[0]))
        assert refused(live.ask) == refused(record) == (AWAY, "the event log is not what it was; this server is about to stop, ask another")
        with pytest.raises(LogChanged, match="has 3 partitions and was opened with 2"):
            live.parts.engine.tick()


@pytest.mark.parametrize("name", ["", "b"])
def test_servers_with_names_of_their_own_never_share_an_id(name: str) -> None:
    here = bench()
    there = bench(log=here.log, items_log=here.items_log, num_items=0, name=name)
    assert (ask(here).decision_id == ask(there).decision_id) is (name == "")


def test_a_server_begins_where_the_log_does_if_somebody_said_so(local: Place) -> None:
    """Retention has passed its start: it does not know the users as learners do that read all of it."""
    old = local.engine()
    for _ in range(3):
        ask(old)
    partition = partition_of(b"ann", 2)
    local.log.drop_before([local.log.end_offsets()[partition] - 1] * 2)
    with pytest.raises(OffsetGone, match=r"topic events, partition \d: offset 0 is gone; \d+ records later"):
        local.engine("another", num_items=0)
    new = local.engine("a third", num_items=0, accept_gap=True)
    assert new.engine.memory.num_decisions("ann") == 1
    assert new.engine.record([watched()]) == (1, [])
    assert new.engine.memory.view("ann").key_L.size == 1
