"""Retention has passed where somebody was: he stops and names the gap, or goes on behind it in the open, and a replay does the same."""

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaAdminClient, TopicPartition
from test_recovery import Life
from typer.testing import CliRunner

from recsys.controls import ACCEPT_GAP, AcceptedGap, Controls, foreseen
from recsys.log_commands import log as commands
from recsys.loop import Loop
from recsys.replay import replay
from streaming.archive import EVENTS, GAPS, ITEMS, STREAM_FILE, ArchiveLog, write_archive
from streaming.events import Control, encode
from streaming.gaps import Gap, Gapped
from streaming.joiner import Asked, JoinConfig, Joiner
from streaming.kafka_log import KafkaLog
from streaming.log import Entry, EventLog, LogRecord, MemoryLog, OffsetGone, batches
from streaming.sqlite_log import SqliteLog
from tests.broker import Broker
from tests.joins import CONFIG, Bench, L, M, T, W, decision, fingerprint, said, shown, tick
from tests.running import recsys
from tests.runs import finished, only_object

MINUTES, BEFORE = 8, 3
"""World minutes; the version at which the learner rests while the log forgets."""


# A log with gaps ------------------------------------------------------------------------------------------------------


def numbers(count: int) -> MemoryLog:
    log = MemoryLog(2)
    log.append([Entry(b"", b"%d" % n, n % 2) for n in range(2 * count)])
    return log


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 8)), max_size=4), st.integers(1, 9))
def test_nothing_in_a_gap_is_read_and_nothing_else_is_missing(spans: list[tuple[int, int]], most: int) -> None:
    gaps = [Gap(0, begin, begin + length) for begin, length in spans]
    log, told = Gapped(numbers(20), gaps), list[OffsetGone]()
    offset, read = 0, list[int]()
    while offset < 20:
        try:
            records = log.read(0, offset, most)
        except OffsetGone as gone:
            told.append(gone)
            offset = gone.begin_offset
        else:
            assert 0 < len(records) <= most
            read += [record.offset for record in records]
            offset = read[-1] + 1
    missing = {offset for gap in gaps for offset in range(gap.begin, gap.end)}
    assert read == [offset for offset in range(20) if offset not in missing]
    assert all(log.is_known(gone) for gone in told)
    assert {offset for gone in told for offset in range(gone.offset, gone.begin_offset)} >= missing - {*range(20, 99)}
    assert [record.offset for record in log.read(1, 0, 99)] == [*range(20)]


def test_more_than_is_known_is_not_known() -> None:
    log = Gapped(numbers(20), [Gap(0, 5, 9)])
    assert log.is_known(OffsetGone("", 0, 5, 9))
    assert log.is_known(OffsetGone("", 0, 6, 9))
    assert not any(log.is_known(OffsetGone("", *gone)) for gone in ((0, 4, 9), (0, 5, 10), (1, 5, 9)))


def test_what_is_gone_is_named() -> None:
    said = str(OffsetGone("kafka://host:1/topic", 2, 50, 170))
    assert said == "kafka://host:1/topic, partition 2: offset 50 is gone; 120 records later it goes on at 170"


# The join -------------------------------------------------------------------------------------------------------------


def test_what_is_open_where_a_gap_begins_is_given_up() -> None:
    """And so is what still comes for it; what was closed before, and what is decided behind it, stays."""
    bench = Bench().put(decision("closed"), shown(0, name="closed"), said(0, name="closed"), decision("open", T + W + L))
    bench.put(shown(1, name="open", t=T + W + L), said(1, name="open", t=T + W + L, event_id="c"), said(0, name="nobody", t=T + W + L))
    bench.put(tick(T + W + L + 200), tick(T + W + L + 201))
    bench.joiner.pass_gap(0, bench.joiner.next_offset(0) + 10)
    assert bench.joiner.books().balanced
    t = T + W + L + 300
    bench.put(said(0, name="open", t=t, event_id="late"), shown(0, name="lost", t=t), decision("after", t), shown(2, name="after", t=t))
    examples = bench.end()
    assert [(example.decision_id, example.shown) for example in examples] == [("closed", (0,)), ("after", (2,))]
    assert bench.fates("decisions") == {"trained": 2, "gap": 1}
    assert bench.fates("exposures") == {"joined": 2, "gap": 1, "orphan": 1, "slots_shown": 2}
    assert bench.fates() == {"joined": 1, "gap": 2, "orphan": 1}
    assert bench.joiner.books().never_read == 10


def test_an_imported_decision_in_a_gap_was_foreign_and_stays_so() -> None:
    config = JoinConfig(variant="a", window_ms=W, lateness_ms=L, bucket_ms=M, teach_imported=True)
    bench = Bench(config).put(decision(variant="imported"), shown(0), said(0))
    bench.joiner.pass_gap(0, 50)
    bench.put(said(1, event_id="later"))
    assert bench.end() == []
    assert bench.fates("decisions") == {"foreign": 1}
    assert bench.fates() == {"foreign": 2}


def test_a_gap_can_not_lead_back() -> None:
    bench = Bench().put(decision())
    with pytest.raises(ValueError, match="offset 0 was applied before; the next is 1 or later"):
        bench.joiner.pass_gap(0, 0)


@given(st.lists(st.integers(0, 11), max_size=40), st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_the_books_balance_around_a_gap_and_a_snapshot_knows_of_it(kinds: list[int], first: int, second: int, saved: bool) -> None:
    """The records of a gap of a stream are skipped: what its decisions that are whole come to is as without the gap."""
    bodies = [body for at, kind in enumerate(kinds) for body in told(at, kind)]
    begin, end = sorted((min(first, len(bodies)), min(second, len(bodies))))
    whole, gapped = Bench(watch=False), Bench()
    whole.put(*bodies)
    gapped.put(*bodies[:begin])
    gapped.joiner.pass_gap(0, end)
    if saved:
        gapped.joiner = Joiner.restore(CONFIG, gapped.joiner.snapshot())
    gapped.put(*bodies[end:])
    told_whole, told_gapped = ({example.decision_id: fingerprint(example) for example in bench.end()} for bench in (whole, gapped))
    assert gapped.joiner.books().never_read == end - begin
    assert gapped.joiner.books().decisions["total"] <= whole.joiner.books().decisions["total"]
    inside = {f"d{at}" for at in range(len(kinds)) if begin < 3 * at + 3 and 3 * at < end}
    assert all(told_gapped[name] == told_whole[name] for name in told_gapped.keys() - inside)
    assert told_gapped.keys() <= told_whole.keys()


def told(at: int, kind: int) -> list[object]:
    """Three records that speak of one decision, or pass the time."""
    name, t = f"d{at}", T + at * 100
    body = said(kind % 3, name=name, t=t, event_id=f"c{at}") if kind % 2 else shown(1, name=name, t=t, event_id=f"t{at}")
    return [decision(name, t), shown(kind % 3, name=name, t=t, event_id=f"s{at}"), body if kind < 10 else tick(t + kind * 100)]


# A learner ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    return finished(tmp_path_factory.mktemp("recorded"), MINUTES)


Drop = Callable[[list[int]], None]


@pytest.fixture(params=["sqlite", "kafka"])
def forgetful(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[EventLog, Drop]]:
    """A log, and what makes it forget."""
    if request.param == "sqlite":
        with closing(SqliteLog(tmp_path / "events.db")) as log:
            yield log, log.drop_before
        return
    broker: Broker = request.getfixturevalue("broker")
    topic = f"gap-{uuid.uuid4().hex}"
    with (
        closing(KafkaLog(broker.bootstrap, topic)) as log,
        closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin,
    ):
        yield log, lambda offsets: admin.delete_records({TopicPartition(topic, at): offset for at, offset in enumerate(offsets)})


def test_a_learner_stops_for_a_gap_or_goes_on_in_the_open_and_a_replay_does_the_same(
    forgetful: tuple[EventLog, Drop], recorded: Loop, tmp_path: Path
) -> None:
    log, drop = forgetful
    life = Life(recorded, tmp_path / "state", log)
    life.live(lambda: life.learner.policy_version == BEFORE)
    life.learner.close()
    archived(life, tmp_path / "archive")
    archived(life, tmp_path / "late archive")
    life.feed_minutes(2)
    archived(life, tmp_path / "archive")
    wanted = [life.learner.joiner.next_offset(partition) for partition in range(4)]
    begins = [wanted[0] + 7, wanted[1], wanted[2] + 40, wanted[3] - 1]
    drop(begins)
    for _ in range(2):  # to start again does not help
        life.learner = life.new()
        with pytest.raises(OffsetGone) as gone:
            life.learner.catch_up()
        assert str(gone.value) == f"{log.name}, partition 0: offset {wanted[0]} is gone; 7 records later it goes on at {begins[0]}"
        life.learner.close()
    life.learner = life.new(accept_gap=True)
    life.learner.step()
    life.learner.close()  # killed before anything was saved: what was accepted is in the log
    life.learner = life.new()
    life.learner.catch_up()
    books = life.learner.joiner.books()
    life.learner.close()
    assert books.balanced
    assert books.never_read == 47
    assert books.decisions["gap"] > 0
    assert foreseen(log, "online").gaps == [Gap(0, wanted[0], begins[0]), Gap(2, wanted[2], begins[2])]
    archived(life, tmp_path / "archive")
    archived(life, tmp_path / "late archive", accept_gap=True)  # one that came too late as well
    for name in ("archive", "late archive"):
        done = replay(recorded.config, tmp_path / name, tmp_path / f"{name} replayed", 0, 60)
        assert (done.weights_digest, done.books) == (life.learner.weights_digest(), books.as_dict())
        assert done.versions == life.learner.policy_version


def archived(life: Life, directory: Path, *, accept_gap: bool = False) -> None:
    write_archive(life.log, directory / EVENTS, accept_gap=accept_gap)
    write_archive(life.items_log, directory / ITEMS, accept_gap=accept_gap)


class Deleted(MemoryLog):
    """Of what it holds, retention has deleted all before `begin`: with Kafka that may be everything."""

    begin = 0

    def begin_offsets(self) -> list[int]:
        return [self.begin]

    def read(self, partition: int, offset: int, max_records: int = 10_000) -> list[LogRecord]:
        if offset < self.begin:
            raise OffsetGone(self.name, partition, offset, self.begin)
        return super().read(partition, offset, max_records)


def test_a_gap_behind_which_nothing_stands_yet_is_noted_once(tmp_path: Path) -> None:
    log = Deleted(1)
    log.append([Entry(b"", b"%d" % n) for n in range(10)])
    write_archive(log, tmp_path)
    log.append([Entry(b"", b"gone")] * 4)
    log.begin = 14
    with pytest.raises(OffsetGone):
        write_archive(log, tmp_path)
    noted = [write_archive(log, tmp_path, accept_gap=accept_gap) for accept_gap in (True, True, False)]
    assert noted == [0, 0, 0]
    assert json.loads((tmp_path / STREAM_FILE).read_text())[GAPS] == [[0, 10, 14]]
    log.append([Entry(b"", b"new")])
    assert write_archive(log, tmp_path) == 1
    gone: list[OffsetGone] = []
    assert [record.offset for batch in batches(ArchiveLog(tmp_path), gone.append) for record in batch] == [*range(10), 14]
    assert [(one.offset, one.begin_offset) for one in gone] == [(10, 14)]


def test_what_another_variant_accepted_is_nothing_to_this_one() -> None:
    log = MemoryLog(1)
    for variant in ("a", "b"):
        log.append([Entry(b"", encode(AcceptedGap(variant, Gap(0, 3, 9)).control(T), T), 0)])
    log.append([Entry(b"", encode(Control(kind=ACCEPT_GAP, arguments={"variant": "b", "gap": "[0]"}), T), 0)])
    assert foreseen(log, "b").gaps == [Gap(0, 3, 9)]
    assert foreseen(log, "b", offset=2).gaps == foreseen(log, "c").gaps == []
    Controls(JoinConfig(variant="b"), "").take([Asked(0, 2, 0, Control(kind=ACCEPT_GAP))])  # told of, and left aside


def test_the_command_stops_with_a_line_that_names_the_gap(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'events.db'}"
    with closing(SqliteLog(tmp_path / "events.db")) as log, closing(SqliteLog(tmp_path / "events.db", "events.items", 1)):
        log.append([Entry(b"", encode(tick(T + n), T + n), 1) for n in range(9)])
        log.drop_before([0, 5, 0, 0])
    done = recsys("learn", "--log", url, "--state", str(tmp_path / "state"), "--preset", "tiny")
    assert done.returncode == 1
    named = f"recsys: {tmp_path / 'events.db'}, topic events, partition 1: offset 0 is gone; 5 records later it goes on at 5."
    assert named in done.stderr
    assert "--accept-gap" in done.stderr


# An archive, and a look -----------------------------------------------------------------------------------------------


def test_an_archive_stops_for_a_gap_or_says_where_it_has_one(tmp_path: Path) -> None:
    with closing(SqliteLog(tmp_path / "log.db", num_partitions=2)) as log:
        log.append([Entry(b"", b"%d" % n, n % 2) for n in range(20)])
        write_archive(log, tmp_path / "archive")
        log.append([Entry(b"", b"%d" % n, n % 2) for n in range(20)])
        log.drop_before([14, 8])
        with pytest.raises(OffsetGone, match=r"partition 0: offset 10 is gone; 4 records later it goes on at 14"):
            write_archive(log, tmp_path / "archive")
        assert write_archive(log, tmp_path / "archive", accept_gap=True) == 16
        assert write_archive(log, tmp_path / "archive") == 0
    archive = ArchiveLog(tmp_path / "archive")
    assert [record.offset for record in archive.read(0, 0, 99)] == [*range(10)]
    with pytest.raises(OffsetGone, match=r"archive, partition 0: offset 10 is gone; 4 records later it goes on at 14"):
        archive.read(0, 10)
    gone: list[OffsetGone] = []
    offsets = sorted((record.partition, record.offset) for batch in batches(archive, gone.append) for record in batch)
    assert offsets == [*((0, at) for at in [*range(10), *range(14, 20)]), *((1, at) for at in range(20))]
    assert [one.offset for one in gone] == [10]


def test_a_look_passes_gaps_as_the_learner_did(tmp_path: Path) -> None:
    """In the books of an archive that holds everything, and in those of one that does not."""
    log = SqliteLog(tmp_path / "log.db", num_partitions=1)
    bodies = [decision("a"), shown(0, name="a"), said(0, name="a"), decision("b", T + 1), shown(0, name="b", t=T + 1)]
    log.append([Entry(b"u", encode(body, T)) for body in bodies])
    log.append([Entry(b"", encode(AcceptedGap("a", Gap(0, 2, 5)).control(T), T)), Entry(b"", encode(tick(T + 9 * W), T + 9 * W))])
    SqliteLog(tmp_path / "log.db", "events.items", 1).close()
    options = ["inspect", "--log", f"sqlite:///{tmp_path / 'log.db'}", "--partitions", "1", "--json", "--set"]
    accepted, other = (only_object(CliRunner().invoke(commands, [*options, f"join.variant={name}"]).stdout) for name in ("a", "b"))
    assert accepted["gaps"] == [{"partition": 0, "begin": 2, "end": 5}]
    assert accepted["books"]["never_read"] == 3
    assert accepted["books"]["decisions"]["gap"] == 1
    assert other["gaps"] == []
    assert other["books"]["never_read"] == 0
    log.close()
