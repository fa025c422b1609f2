import io
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

from streaming.archive import COLUMNS, EVENTS, STREAM_FILE, ArchiveLog, write_archive
from streaming.events import Control, Decision, Event, Exposure, Feedback, Interaction, Item, ItemChange, Tick, encode
from streaming.log import Entry, EventLog, LogRecord, MemoryLog, OffsetGone
from streaming.sqlite_log import SqliteLog

BODIES = {
    "decision": Decision(decision_id="d", user_id="ann", event_time_ms=10),
    "exposure": Event(event_id="1", user_id="ann", event_time_ms=20, exposure=Exposure(slots=[0, 1])),
    "feedback": Event(event_id="2", user_id="bob", event_time_ms=30, feedback=Feedback(kind="click", value=1)),
    "interaction": Event(event_id="3", user_id="bob", event_time_ms=40, interaction=Interaction(item_id="i")),
    "event": Event(event_id="4", user_id="bob", event_time_ms=45),
    "tick": Tick(event_time_ms=50),
    "control": Control(kind="rollback", event_time_ms=60),
    "item": ItemChange(event_time_ms=70, item=Item(item_id="i")),
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / EVENTS


def filled(count: int, num_partitions: int = 4) -> MemoryLog:
    log = MemoryLog(num_partitions)
    log.append([Entry(f"user-{n % 9}".encode(), encode(Tick(event_time_ms=n), n + 1)) for n in range(count)])
    return log


def everything(log: EventLog, max_records: int = 10_000) -> list[list[LogRecord]]:
    streams: list[list[LogRecord]] = []
    for partition, begin_offset in enumerate(log.begin_offsets()):
        records: list[LogRecord] = []
        while batch := log.read(partition, records[-1].offset + 1 if records else begin_offset, max_records):
            assert len(batch) <= max_records
            records += batch
        streams.append(records)
    return streams


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.parquet"))


@pytest.mark.parametrize("max_segment_records", [1, 7, 100, 100_000])
@pytest.mark.parametrize("max_records", [1, 5, 10_000])
def test_what_is_read_back_is_what_was_written(directory: Path, max_segment_records: int, max_records: int) -> None:
    log = filled(60)
    assert write_archive(log, directory, max_segment_records=max_segment_records) == 60
    archive = ArchiveLog(directory)
    assert archive.num_partitions == 4
    assert everything(archive, max_records) == everything(log)
    assert (archive.begin_offsets(), archive.end_offsets()) == (log.begin_offsets(), log.end_offsets())
    for partition, end_offset in enumerate(log.end_offsets()):
        for offset in range(end_offset + 2):
            assert archive.read(partition, offset, 3) == log.read(partition, offset, 3)


def test_columns_can_be_read_by_anyone(directory: Path) -> None:
    log = MemoryLog(1)
    log.append([Entry(b"key", encode(body, 99)) for body in BODIES.values()])
    write_archive(log, directory)
    frame = pl.read_parquet(segments(directory)[0])
    assert dict(frame.schema) == COLUMNS
    assert frame["kind"].to_list() == list(BODIES)
    assert frame["offset"].to_list() == list(range(8))
    assert frame["append_time_ms"].to_list() == [99] * 8
    assert frame["event_time_ms"].to_list() == [10, 20, 30, 40, 45, 50, 60, 70]
    assert frame["user_id"].to_list() == ["ann", "ann", "bob", "bob", "bob", None, None, None]
    assert frame["key"].to_list() == ["key"] * 8


def test_bytes_that_mean_nothing_are_kept(directory: Path) -> None:
    log = MemoryLog(1)
    log.append([Entry(b"\xff\x00", b"\xff not a record"), Entry(b"", b""), Entry(b"k", bytes(range(256)) * 3906)])
    write_archive(log, directory)
    assert everything(ArchiveLog(directory)) == everything(log)
    frame = pl.read_parquet(segments(directory)[0])
    assert frame["kind"].to_list() == ["unreadable"] * 3
    assert frame["key"].to_list() == [None, "", "k"]


def test_writing_goes_on_where_it_stopped(directory: Path) -> None:
    log = filled(30)
    assert write_archive(log, directory, until=[3, 0, 2, 1], max_segment_records=2) == 6
    assert ArchiveLog(directory).end_offsets() == [3, 0, 2, 1]
    assert write_archive(log, directory, max_segment_records=4) == 24
    assert write_archive(log, directory) == 0
    log.append([Entry(b"", b"more", 2)])
    assert write_archive(log, directory) == 1
    assert everything(ArchiveLog(directory)) == everything(log)


def test_a_writer_that_is_killed_leaves_whole_segments(tmp_path: Path, directory: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", num_partitions=1)
    log.append([Entry(b"", b"%d" % n, 0) for n in range(3000)])
    program = (
        "import sys; from pathlib import Path; from streaming.archive import write_archive; from streaming.sqlite_log import SqliteLog\n"
        "write_archive(SqliteLog(sys.argv[1], num_partitions=1), Path(sys.argv[2]), max_segment_records=5)"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "log.db"), str(directory)])
    while len(segments(directory)) < 20:
        assert writer.poll() is None
        time.sleep(0.001)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    (directory / "left-behind.parquet.tmp").write_bytes(b"torn")
    num_kept = sum(ArchiveLog(directory).end_offsets())
    assert 100 <= num_kept < 3000
    assert write_archive(log, directory) == 3000 - num_kept
    assert everything(ArchiveLog(directory)) == everything(log)
    assert not list(directory.glob("*.tmp"))
    log.close()


def test_an_empty_log_and_an_empty_partition(directory: Path) -> None:
    assert write_archive(MemoryLog(3), directory) == 0
    archive = ArchiveLog(directory)
    assert (archive.num_partitions, archive.end_offsets()) == (3, [0, 0, 0])
    assert archive.read(1, 0) == archive.read(1, 5) == []


def test_a_log_that_begins_late(tmp_path: Path, directory: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", num_partitions=1)
    log.append([Entry(b"", b"%d" % n, 0) for n in range(10)])
    log.drop_before([6])
    write_archive(log, directory)
    archive = ArchiveLog(directory)
    assert (archive.begin_offsets(), archive.end_offsets()) == ([6], [10])
    with pytest.raises(OffsetGone):
        archive.read(0, 5)
    log.append([Entry(b"", b"%d" % n, 0) for n in range(10)])
    log.drop_before([12])
    with pytest.raises(OffsetGone, match="offset 10 is gone; 2 records later it goes on at 12"):
        write_archive(log, directory)
    log.close()


def test_refusals(directory: Path) -> None:
    with pytest.raises(ValueError, match="holds no archived stream"):
        ArchiveLog(directory)
    write_archive(filled(20), directory)
    with pytest.raises(ValueError, match="has 4 partitions and the log 2"):
        write_archive(MemoryLog(2), directory)
    with pytest.raises(ValueError, match="max_segment_records is 0"):
        write_archive(MemoryLog(4), directory, max_segment_records=0)
    with pytest.raises(io.UnsupportedOperation, match="only be read"):
        ArchiveLog(directory).append([Entry(b"", b"")])


def test_writers_of_one_stream_wait_for_each_other(directory: Path) -> None:
    log = filled(20)
    with ThreadPoolExecutor(4) as pool:
        written = [pool.submit(write_archive, log, directory, max_segment_records=5) for _ in range(12)]
        for _ in range(6):
            log.append([Entry(b"%d" % n, encode(Tick(event_time_ms=1), 1)) for n in range(30)])
    assert sum(one.result() for one in written) + write_archive(log, directory) == sum(log.end_offsets())
    archive = ArchiveLog(directory)
    assert [archive.read(partition, 0) for partition in range(4)] == [log.read(partition, 0) for partition in range(4)]


def test_two_writers_are_noticed(directory: Path) -> None:
    write_archive(filled(20, 1), directory)
    (segment,) = segments(directory)
    segment.with_name(segment.name.replace("0000000000-", "0000000003-", 1)).write_bytes(segment.read_bytes())
    with pytest.raises(ValueError, match="overlaps"):
        ArchiveLog(directory)


def test_a_segment_that_is_missing_is_noticed(directory: Path) -> None:
    write_archive(filled(60), directory, max_segment_records=5)
    partition_0 = [path for path in segments(directory) if path.name.startswith("p00000")]
    partition_0[1].unlink()
    with pytest.raises(ValueError, match=f"between {partition_0[0].name} and {partition_0[2].name} a segment is missing"):
        ArchiveLog(directory)


class Jumping(MemoryLog):
    """Offsets that no record has, as Kafka's are where a transaction ended."""

    def read(self, partition: int, offset: int, max_records: int = 10_000) -> list[LogRecord]:
        return [record for record in super().read(partition, offset, 2 * max_records) if record.offset % 7][:max_records]


@pytest.mark.parametrize("max_segment_records", [3, 10, 1000])
def test_offsets_may_jump_between_segments_and_within(directory: Path, max_segment_records: int) -> None:
    log = Jumping(1)
    for _ in range(3):
        log.append([Entry(b"", encode(Tick(event_time_ms=n), n)) for n in range(20)])
        write_archive(log, directory, max_segment_records=max_segment_records)
    assert [record.offset for record in everything(ArchiveLog(directory))[0]] == [n for n in range(60) if n % 7]


def test_the_archive_of_one_log_is_none_of_another(directory: Path) -> None:
    """Whatever is appended to it would stand behind records that were never before it."""
    write_archive(filled(60), directory)
    with pytest.raises(ValueError, match=r"holds partition 0 up to \d+; memory: ends at \d+: another log\?"):
        write_archive(filled(8), directory)
    other = MemoryLog(4)
    other.append([Entry(f"user-{n % 9}".encode(), encode(Tick(event_time_ms=n), 7)) for n in range(90)])
    with pytest.raises(ValueError, match=r"another record at partition 0, offset \d+, than memory:: another log\?"):
        write_archive(other, directory)
    assert write_archive(filled(90), directory) == 30


@pytest.mark.parametrize("said", ["", "{}", '{"num_partitions": "x"}', '"x"', '{"num_partitions": 1}'])
def test_a_stream_file_that_says_nothing_is_named(directory: Path, said: str) -> None:
    write_archive(filled(60), directory)
    (directory / STREAM_FILE).write_text(said)
    with pytest.raises(ValueError, match=STREAM_FILE):
        ArchiveLog(directory)


def test_a_broken_segment_is_named(directory: Path) -> None:
    write_archive(filled(60), directory)
    segments(directory)[0].write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=f"{segments(directory)[0].name} is no whole segment"):
        everything(ArchiveLog(directory))


@pytest.mark.parametrize("kept", [pl.col("offset") < pl.col("offset").max(), pl.col("offset") > pl.col("offset").min(), pl.lit(False)])
def test_a_segment_without_its_first_or_last_record_is_named(directory: Path, kept: pl.Expr) -> None:
    write_archive(filled(60), directory)
    path = segments(directory)[0]
    pl.read_parquet(path).filter(kept).write_parquet(path)
    with pytest.raises(ValueError, match=f"{path.name} is no whole segment: it holds offsets"):
        everything(ArchiveLog(directory))


@pytest.mark.parametrize("log", [filled(60), Jumping(4)])
def test_a_segment_that_lost_records_on_its_way_or_has_them_twice_or_in_disorder_is_named(directory: Path, log: MemoryLog) -> None:
    if isinstance(log, Jumping):
        log.append([Entry(f"user-{n % 9}".encode(), encode(Tick(event_time_ms=n), n + 1)) for n in range(60)])
    write_archive(log, directory)
    path = segments(directory)[0]
    whole = pl.read_parquet(path)
    rows = whole.with_row_index()["index"].to_list()
    for told in (rows[:3] + rows[4:], rows[:3] + rows[2:3] + rows[4:], [*rows[:4], *rows[3:]], [rows[0], rows[2], rows[1], *rows[3:]]):
        whole[told].write_parquet(path)
        with pytest.raises(ValueError, match=rf"{path.name} is no whole segment: it holds {len(told)} records where {len(rows)} were"):
            everything(ArchiveLog(directory))


def test_a_segment_under_the_name_of_another_is_named(directory: Path) -> None:
    write_archive(filled(60), directory)
    first, *_, last = segments(directory)
    first.write_bytes(last.read_bytes())
    with pytest.raises(ValueError, match=f"{first.name} is no whole segment: it holds offsets"):
        everything(ArchiveLog(directory))


def test_other_files_are_left_alone(directory: Path) -> None:
    write_archive(filled(5), directory)
    (directory / "notes.txt").write_text("whose are these?")
    (directory / "other.parquet").write_bytes(b"")
    assert sum(ArchiveLog(directory).end_offsets()) == 5
    assert (directory / STREAM_FILE).exists()
