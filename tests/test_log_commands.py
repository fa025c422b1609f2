"""What people do with a log: look into it, keep it as parquet, and see what could not be used."""

import base64
import json
import re
import signal
import time
import uuid
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from recsys.log_commands import log as commands
from streaming.address import ITEMS_SUFFIX, open_log
from streaming.archive import EVENTS, ITEMS, ArchiveLog
from streaming.events import Item, ItemChange, decode, encode
from streaming.gaps import Gap, Gapped
from streaming.inspection import inspected, offsets_since
from streaming.log import Entry, EventLog, LogRecord, MemoryLog, batches
from streaming.quarantine import fetched, repaired, write_lines
from streaming.sqlite_log import SqliteLog
from tests.joins import CONFIG, L, T, W, decision, said, shown, tick
from tests.running import started
from tests.runs import only_object

BROKEN = b"\xff not a record"
HOUR_MS = 3_600_000
TOO_LARGE = {"schema": 1, "item": {"item": {"item_id": "a", "title": "t" * 1_000_000}}}


def filled(log: EventLog, delays_ms: list[int]) -> EventLog:
    """A decision each with a click so long after it, then ticks that close them, and one record that nobody can read."""
    for at, delay_ms in enumerate(delays_ms):
        user, name, t = f"u{at}", f"d{at}", T + at
        bodies = [decision(name, t, user=user), shown(0, name=name, t=t, user=user, event_id=f"s{at}")]
        bodies.append(said(name=name, t=t + delay_ms, user=user, event_id=f"c{at}"))
        log.append([Entry(user.encode(), encode(body, t + delay_ms)) for body in bodies])
    log.append([Entry(b"u0", BROKEN)])
    log.append([Entry(b"", encode(tick(T + 10 * W), T + 10 * W), partition) for partition in range(log.num_partitions)])
    return log


def items(log: EventLog) -> EventLog:
    log.append([Entry(b"", encode(ItemChange(event_time_ms=T, item=Item(item_id="a")), T), 0), Entry(b"", BROKEN, 0)])
    return log


def everything(log: EventLog) -> list[LogRecord]:
    return sorted(record for batch in batches(log) for record in batch)


def test_the_look_finds_books_delays_and_quarantine() -> None:
    delays_ms = [*range(0, W, 10), W, W + 1, W + L + 1]
    found = inspected(filled(MemoryLog(3), delays_ms), items(MemoryLog(1)), CONFIG)
    assert sorted(found.delays_ms.tolist()) == delays_ms
    figures = found.figures()
    assert found.books.balanced
    assert figures["books"]["decisions"]["trained"] == len(delays_ms)
    assert figures["books"]["feedback"]["late"] == 2
    assert figures["share_inside_window"] == pytest.approx(1 - 2 / len(delays_ms))
    assert figures["delay_s"]["p98"] == pytest.approx(np.quantile(delays_ms, 0.98) / 1000)
    assert figures["quarantined"] == {"unreadable": 1}
    assert [len(found.quarantined[name]) for name in (EVENTS, ITEMS)] == [1, 1]
    assert sum(figures["end_offsets"]) == 3 * len(delays_ms) + 1 + 3


def test_an_empty_log_has_no_figures_rather_than_zeros() -> None:
    figures = inspected(MemoryLog(2), MemoryLog(1), CONFIG).figures()
    assert figures["delay_s"] == dict.fromkeys(("p50", "p90", "p98", "p99"))
    assert figures["share_inside_window"] is None
    assert figures["books"]["balanced"]


def test_batches_are_all_of_a_log_and_no_more() -> None:
    log = MemoryLog(3)
    log.append([Entry(f"{n}".encode(), b"v") for n in range(25_000)])
    seen = 0
    for batch in batches(log):
        seen += len(batch)
        log.append([Entry(b"later", b"v")])
    assert seen == 25_000


appended = st.lists(st.one_of(st.none(), st.integers(0, 9)), max_size=25)


@given(appended, st.integers(-1, 10), st.sampled_from([(), (Gap(0, 3, 7),), (Gap(0, 0, 2), Gap(0, 20, 25))]))
def test_a_moment_is_found_between_records_that_cannot_be_read_and_gaps(times: list[int | None], since: int, gaps: tuple[Gap, ...]) -> None:
    known = iter(sorted(time for time in times if time is not None))
    log = MemoryLog(1)
    log.append([Entry(b"", BROKEN if time is None else encode(tick(T), T + next(known))) for time in times])
    (found,) = offsets_since(Gapped(log, gaps), T + since)
    readable = [(at, decode(record.value).append_time_ms) for at, record in enumerate(log.read(0, 0, 99)) if record.value != BROKEN]
    held = [(at, ms - T) for at, ms in readable if not any(gap.begin <= at < gap.end for gap in gaps)]
    assert all(ms >= since for at, ms in held if at >= found)
    assert all(ms < since for at, ms in held if at < found)


@pytest.mark.parametrize("form", ["sqlite", "kafka"])
def test_a_look_at_what_was_appended_since(request: pytest.FixtureRequest, tmp_path: Path, form: str) -> None:
    """By the time of the world, which is years from the broker's."""
    bootstrap = request.getfixturevalue("broker").bootstrap if form == "kafka" else ""
    url = f"kafka://{bootstrap}/since-{uuid.uuid4().hex}" if bootstrap else f"sqlite:///{tmp_path / 'log.db'}"
    with closing(open_log(url)) as log, closing(open_log(url, ITEMS_SUFFIX)) as items_log:
        items_log.end_offsets()  # makes the topic
        for minute in range(60):
            now_ms = minute * 60_000
            log.append([Entry(b"", encode(tick(now_ms), now_ms), partition) for partition in range(4)])
    options = ["inspect", "--log", url, "--json", "--since"]
    for since, first in (
        ("1970-01-01T00:20", 20),
        ("1970-01-01T00:19:59.999Z", 20),
        ("1970-01-01T01:20:00.001+01:00", 21),
        ("1990-01-01", 60),
    ):
        assert only_object(CliRunner().invoke(commands, [*options, since]).stdout)["begin_offsets"] == [first] * 4
    assert "--since is 'noon'" in str(CliRunner().invoke(commands, [*options, "noon"]).exception)


def test_lines_can_be_repaired_and_say_where_they_stood(tmp_path: Path) -> None:
    log = filled(MemoryLog(2), [1])
    far = encode(said(t=T + HOUR_MS), T)
    log.append([Entry(b"u0", far)])
    kept = fetched(EVENTS, inspected(log, MemoryLog(1), CONFIG).quarantined[EVENTS], log)
    assert [one.reason for one in sorted(kept)] == ["unreadable", "from the future"]
    path = tmp_path / "lines"
    path.write_text(write_lines(kept))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert base64.b64decode(lines[0]["value"]) == BROKEN
    assert "record" not in lines[0]
    lines[0]["value"] = base64.b64encode(far).decode()
    lines[1]["record"]["event"]["event_time_ms"] = str(T)
    path.write_text("\n".join(map(json.dumps, lines)))
    found = repaired(path)
    first, second = found[EVENTS]
    assert not found[ITEMS]
    assert (first.partition, first.offset, first.key, first.value) == (lines[0]["partition"], lines[0]["offset"], b"u0", far)
    assert second.value == encode(said(t=T), T)


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[]",
        '{"stream": "events", "partition": 0, "offset": 1, "key": "", "value": "/w=="}',
        '{"stream": "events", "record": {"no": 1}}',
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "lines"
    path.write_text("\n" + line)
    with pytest.raises(ValueError, match="line 2"):
        repaired(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"partition": 7}, r"a repaired record of partition 7; .* has 0\.\.3"),
        ({"offset": 99}, r"a repaired record of partition 0, offset 99"),
        ({"stream": "items", "partition": 0, "offset": 0}, "is none of the items"),
        ({"stream": "items", "partition": 0, "offset": 0, "record": TOO_LARGE}, r"a record of 10000\d\d bytes; at most 1000000 are kept"),
    ],
)
def test_what_can_not_be_put_back_whole_is_not_put_back_at_all(tmp_path: Path, change: dict[str, object], said: str) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    events, changes = filled(SqliteLog(tmp_path / "log.db"), [5]), items(SqliteLog(tmp_path / "log.db", "events.items", 1))
    before = events.end_offsets(), changes.end_offsets()
    value = base64.b64encode(encode(tick(T), T)).decode()
    good = {"stream": "events", "partition": 0, "offset": 0, "key": "", "value": value}
    lines = tmp_path / "lines"
    lines.write_text("\n".join(json.dumps(line) for line in (good, good | change)))
    done = CliRunner().invoke(commands, ["quarantine", "--log", url, "--requeue", str(lines)])
    assert isinstance(done.exception, ValueError)
    assert re.search(said, str(done.exception))
    assert (events.end_offsets(), changes.end_offsets()) == before


def test_the_commands_print_what_the_contract_says(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    events, changes = filled(SqliteLog(tmp_path / "log.db"), [5, 500]), items(SqliteLog(tmp_path / "log.db", "events.items", 1))
    run = CliRunner().invoke
    found = only_object(run(commands, ["inspect", "--log", url, "--set", "join.variant=a", "--json"]).stdout)
    assert set(found) >= {"books", "delay_s", "share_inside_window", "quarantined", "version", "seed", "threads", "seconds", "peak_rss_mb"}
    assert found["quarantined"] == {"unreadable": 1}
    listed = only_object(run(commands, ["quarantine", "--log", url, "--export", str(tmp_path / "lines"), "--json"]).stdout)
    assert [(one["stream"], base64.b64decode(one["value"])) for one in listed["quarantined"]] == [(EVENTS, BROKEN), (ITEMS, BROKEN)]
    assert len((tmp_path / "lines").read_text().splitlines()) == 2
    out = tmp_path / "archive"
    for expected in (sum(events.end_offsets()), 0):
        written = only_object(run(commands, ["archive", "--log", url, "--out", str(out), "--json"]).stdout)["written"]
        assert written[EVENTS] == expected
    assert everything(ArchiveLog(out / EVENTS)) == everything(events)
    assert everything(ArchiveLog(out / ITEMS)) == everything(changes)
    same = only_object(run(commands, ["inspect", "--archive", str(out), "--set", "join.variant=a", "--json"]).stdout)
    assert same["books"] == found["books"]
    assert isinstance(run(commands, ["inspect"]).exception, ValueError)


def test_following_writes_what_comes_and_stops_cleanly(tmp_path: Path) -> None:
    log = filled(SqliteLog(tmp_path / "log.db"), [5])
    SqliteLog(tmp_path / "log.db", "events.items", 1).close()
    out = tmp_path / "archive"
    process = started(
        "log", "archive", "--log", f"sqlite:///{tmp_path / 'log.db'}", "--out", str(out), "--follow", "--every", "0.1", "--json"
    )
    deadline_s = time.monotonic() + 60
    for _ in range(2):
        log.append([Entry(b"u0", encode(said(t=T), T))])
        while time.monotonic() < deadline_s and not (out.exists() and _archived(out) == sum(log.end_offsets())):
            time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert only_object(output)["written"][EVENTS] == sum(log.end_offsets())
    assert everything(ArchiveLog(out / EVENTS)) == everything(log)


def _archived(out: Path) -> int:
    return sum(ArchiveLog(out / EVENTS).end_offsets()) if (out / EVENTS / "STREAM.json").exists() else 0
