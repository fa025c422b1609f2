"""Records that could not be used: a learner stops for too many, and goes on when somebody settled them; repaired ones count again."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from test_recovery import Life

from models.artifact import read, weights_digest
from recsys.config import with_settings
from recsys.loop import Loop
from recsys.quarantine_gate import FEW, TooMuchQuarantined
from recsys.replay import replay
from streaming.archive import EVENTS, ITEMS, write_archive
from streaming.books import REUSED
from streaming.events import decode, encode
from streaming.inspection import inspected
from streaming.log import Entry, EventLog, LogRecord, LogUnavailable, MemoryLog, batches
from streaming.quarantine import ACCEPT, Kept, fetched, naming, requeue, write_lines
from tests.joins import CONFIG, T, W, decision, said, shown, tick
from tests.runs import finished, learned

BROKEN = b"\xff not a record"
MINUTES, MINUTE_MS = 6, 60_000


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    return finished(tmp_path_factory.mktemp("recorded"), MINUTES)


@pytest.fixture
def life(recorded: Loop, tmp_path: Path) -> Iterator[Life]:
    life = Life(recorded, tmp_path / "state")
    life.live(lambda: life.learner.policy_version == 2)
    yield life
    life.learner.close()


# A bound --------------------------------------------------------------------------------------------------------------


def broken(life: Life, count: int) -> list[tuple[int, int]]:
    return [(place.partition, place.offset) for place in life.log.append([Entry(f"{n}".encode(), BROKEN) for n in range(count)])]


def test_a_few_are_no_reason_to_stop(life: Life) -> None:
    broken(life, FEW - 1)
    life.live()
    assert life.learner.policy_version > 2


def test_too_many_stop_the_learner_until_somebody_settles_them(life: Life, recorded: Loop, tmp_path: Path) -> None:
    places = broken(life, 20)
    with pytest.raises(TooMuchQuarantined, match=r"20 of \d+ records could not be used \(unreadable\), more than 1.0%"):
        life.live()
    version = life.learner.policy_version
    life.restart()
    with pytest.raises(TooMuchQuarantined):
        life.live()
    assert life.learner.policy_version == version
    life.log.append([Entry(b"", naming(ACCEPT, places[FEW - 1 :], 0), 0)])  # a few are left
    life.restart()
    life.live()
    life.learner.catch_up()
    assert life.learner.policy_version > version
    assert learned(recorded.config, life.log, life.items_log, tmp_path / "again") == life.learner.weights_digest()


def test_a_minute_of_which_nothing_could_be_used_stops_it_too(life: Life) -> None:
    """A server that is newer than its learner: what the gate counts must not be what could be used."""
    from_ms = (life._records[life._num_fed][0] // MINUTE_MS + 1) * MINUTE_MS
    for *where, value in life._records[life._num_fed :]:
        if where[0] >= from_ms and not where[1] and decode(value).WhichOneof("body") in {"decision", "event"}:
            life._records.remove((*where, value))
            if where[0] >= from_ms + 2_000:  # when the tick of the minute has come, so that it is theirs
                life._records.append((*where, BROKEN))
    life._records.sort(key=lambda record: record[:4])
    with pytest.raises(TooMuchQuarantined, match=r"(\d+) of \1 records could not be used \(unreadable\)"):
        life.live()


def test_a_request_that_two_servers_answered_is_no_reason_to_stop(life: Life) -> None:
    """A client that waited too long asks another server, which has not read of the first answer yet."""
    asked = [(*where, decode(value)) for *where, value in life._records[life._num_fed :] if not where[1]]
    for *where, record in [one for one in asked if one[-1].decision.variant == "online"][:20]:
        record.decision.decision_token += "x"
        life._records.append((*where, encode(record.decision, where[0])))
    life._records.sort(key=lambda record: record[:4])
    life.live()
    life.learner.catch_up()
    assert life.learner.joiner.books().quarantined == {REUSED: 20}
    assert life.learner.policy_version > 2


def test_a_log_that_goes_away_while_it_is_looked_for_who_settled_it_stops_the_learner(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """The minute is taken out of the joiner by then: to go on as after any other outage would lose it."""
    broken(life, 20)

    def away() -> list[int]:
        raise LogUnavailable("it is away")

    monkeypatch.setattr(life.log, "begin_offsets", away)  # what is asked for first
    with pytest.raises(TooMuchQuarantined, match="20 of"):
        life.live()


def test_repaired_records_settle_it_too(life: Life) -> None:
    places = broken(life, 20)
    requeue([LogRecord(*place, b"0", encode(tick(0), 0)) for place in places], life.log, life._records[life._num_fed][0])
    life.live()
    assert life.learner.policy_version > 2


def test_the_bound_is_off_only_where_somebody_says_so(life: Life, recorded: Loop, tmp_path: Path) -> None:
    broken(life, 50)
    with pytest.raises(TooMuchQuarantined):
        life.live()
    off = with_settings(recorded.config, ["learner.max_quarantined=1.0"])
    assert learned(off, life.log, life.items_log, tmp_path / "off")
    with pytest.raises(ValueError, match=r"learner.max_quarantined is 1.5; it must be 0..1"):
        with_settings(off, ["learner.max_quarantined=1.5"])


# Repaired -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("closed", "fate"), [(False, "joined"), (True, "late")])
def test_what_is_put_back_counts_while_its_window_is_open(*, closed: bool, fate: str) -> None:
    log = MemoryLog(1)
    values = [encode(decision(), T), encode(shown(0), T), BROKEN]
    values += [encode(tick(T + 2 * W), T + 2 * W)] if closed else []
    log.append([Entry(b"u", value) for value in values])
    requeue([LogRecord(0, 2, b"u", encode(said(), T))], log, T + 6 * W)
    log.append([Entry(b"u", encode(tick(T + 9 * W), T + 9 * W))])
    books = inspected(log, MemoryLog(1), CONFIG).books
    assert books.feedback["total"] == books.feedback[fate] == 1
    assert books.quarantined == {"unreadable": 1}
    assert books.balanced


def test_a_replay_that_includes_what_was_repaired_learns_as_if_it_had_been_right(recorded: Loop, tmp_path: Path) -> None:
    log = recorded.stage.log
    clicks = [record for batch in batches(log) for record in batch if b"click" in record.value][:40]
    whole = archived(log, recorded, tmp_path / "whole")
    bad = archived(with_broken(log, clicks), recorded, tmp_path / "bad")
    (tmp_path / "lines").write_text(write_lines(Kept(EVENTS, *record[:2], "", "", record.key, record.value) for record in clicks))
    config = with_settings(recorded.config, ["learner.max_quarantined=1.0"])
    right, wrong = (replay(config, archive, tmp_path / f"{archive.name}-state", 0, 60) for archive in (whole, bad))
    mended = replay(config, bad, tmp_path / "mended-state", 0, 60, include=tmp_path / "lines")
    assert (mended.weights_digest, mended.books) == (right.weights_digest, right.books)
    assert wrong.weights_digest != right.weights_digest
    assert wrong.books["quarantined"] == {"unreadable": len(clicks)}


def test_a_replay_until_a_version_has_its_weights(recorded: Loop, tmp_path: Path) -> None:
    version = recorded.learner.policy_version - 1
    archive = archived(recorded.stage.log, recorded, tmp_path / "archive")
    early, done = (replay(recorded.config, archive, tmp_path / str(until), 0, 60, until=until) for until in (version - 2, version))
    assert done.versions == version
    assert done.real_time_factor
    assert early.real_time_factor
    # a version a minute: what lies behind the last one was not replayed
    assert done.real_time_factor * done.seconds - early.real_time_factor * early.seconds == pytest.approx(2 * 60)
    assert done.weights_digest == weights_digest(read(recorded.learner.directory / "versions" / str(version)).decoder)


@pytest.mark.parametrize("stream", [EVENTS, ITEMS])
def test_a_replay_without_a_partition_says_so(recorded: Loop, tmp_path: Path, stream: str) -> None:
    """Time would stand still there, and nothing be learned."""
    archive = archived(recorded.stage.log, recorded, tmp_path / "archive")
    for path in (archive / stream).glob("p00000-*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"has no record of partitions \[0\]"):
        replay(recorded.config, archive, tmp_path / "state", 0, 60)


def test_the_bytes_are_found_where_the_record_stands(life: Life) -> None:
    places = broken(life, 2)
    listed = inspected(life.log, life.items_log, life.source.config.join).quarantined[EVENTS]
    assert [(one.partition, one.offset, one.value) for one in fetched(EVENTS, listed, life.log)] == [(*place, BROKEN) for place in places]


def with_broken(log: EventLog, records: list[LogRecord]) -> MemoryLog:
    other, places = MemoryLog(log.num_partitions), {record[:2] for record in records}
    for batch in batches(log):
        other.append([Entry(at.key, BROKEN if at[:2] in places else at.value, at.partition) for at in batch])
    return other


def archived(log: EventLog, recorded: Loop, directory: Path) -> Path:
    write_archive(log, directory / EVENTS)
    write_archive(recorded.stage.items_log, directory / ITEMS)
    return directory
