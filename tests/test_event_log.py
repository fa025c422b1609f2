"""One battery for every EventLog: what a learner and a server may rely on, whichever log is configured."""

import resource
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from streaming.address import open_log
from streaming.kafka_log import KafkaLog
from streaming.log import MAX_RECORD_BYTES, Entry, EventLog, LogRecord, LogUnavailable, MemoryLog, OffsetGone, partition_of
from streaming.sqlite_log import SqliteLog
from tests.broker import Broker

WRITER = """
import sys
from streaming.address import open_log
from streaming.log import Entry
url, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
log = open_log(url)
for start in range(0, count, 5):
    log.append([Entry(f"user-{n % 7}".encode(), f"{name} {n}".encode()) for n in range(start, start + 5)])
log.close()
"""

Opener = Callable[..., EventLog]
T = TypeVar("T")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/log.db"


@pytest.fixture
def kafka_url(broker: Broker) -> str:
    return f"kafka://{broker.bootstrap}/test-{uuid.uuid4().hex}"


@pytest.fixture(params=["memory", "sqlite", "kafka"])
def url(request: pytest.FixtureRequest) -> str:
    return "memory:" if request.param == "memory" else str(request.getfixturevalue(f"{request.param}_url"))


# A MemoryLog ends with its process and is seen by no other: nothing to reopen and nobody to share it with.
@pytest.fixture(params=["sqlite", "kafka"])
def durable_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def opener() -> Iterator[Opener]:
    """Opens logs and closes them after the test."""
    opened: list[EventLog] = []

    def open_one(url: str, topic_suffix: str = "", num_partitions: int = 4, *, existing: bool = False) -> EventLog:
        opened.append(open_log(url, topic_suffix, num_partitions, existing=existing))
        return opened[-1]

    yield open_one
    for log in opened:
        log.close()


@pytest.fixture
def log(url: str, opener: Opener) -> EventLog:
    return opener(url)


def read_all(log: EventLog, partition: int, max_records: int = 10_000) -> list[LogRecord]:
    records: list[LogRecord] = []
    while batch := log.read(partition, records[-1].offset + 1 if records else log.begin_offsets()[partition], max_records):
        records += batch
    return records


def values(log: EventLog, partition: int) -> list[bytes]:
    return [record.value for record in read_all(log, partition)]


def entries(count: int) -> list[Entry]:
    return [Entry(f"user-{n % 5}".encode(), f"value {n}".encode()) for n in range(count)]


def test_empty_topic(log: EventLog) -> None:
    assert log.num_partitions == 4
    assert log.begin_offsets() == log.end_offsets() == [0, 0, 0, 0]
    assert [log.read(partition, 0) for partition in range(4)] == [[], [], [], []]
    assert log.read(0, 17) == []
    assert log.append([]) == []


def test_positions_say_where_the_record_is_read(log: EventLog) -> None:
    written = entries(50)
    positions = log.append(written[:30]) + log.append(written[30:])
    for entry, (partition, offset) in zip(written, positions, strict=True):
        assert log.read(partition, offset, 1) == [LogRecord(partition, offset, entry.key, entry.value)]


def test_a_key_stays_in_its_partition_and_in_order(log: EventLog) -> None:
    written = entries(200)
    for start in range(0, 200, 7):
        log.append(written[start : start + 7])
    by_key = defaultdict(list)
    for partition in range(4):
        for record in read_all(log, partition):
            assert partition == partition_of(record.key, 4)
            by_key[record.key].append(record.value)
    assert by_key == {key: [entry.value for entry in written if entry.key == key] for key in {entry.key for entry in written}}


def test_offsets_start_at_zero_and_rise_by_one(log: EventLog) -> None:
    log.append([Entry(b"", b"%d" % n, partition=n % 2) for n in range(20)])
    assert [[record.offset for record in read_all(log, partition)] for partition in range(4)] == [[*range(10)], [*range(10)], [], []]
    assert log.end_offsets() == [10, 10, 0, 0]
    assert log.begin_offsets() == [0, 0, 0, 0]


def test_read_begins_at_the_offset_and_is_bounded(log: EventLog) -> None:
    log.append([Entry(b"", b"%d" % n, partition=2) for n in range(25)])
    assert [record.value for record in log.read(2, 20)] == [b"20", b"21", b"22", b"23", b"24"]
    assert [record.value for record in log.read(2, 3, 2)] == [b"3", b"4"]
    assert [record.value for record in log.read(2, 0, 2)] == [b"0", b"1"]
    assert len(read_all(log, 2, max_records=4)) == 25
    assert log.read(2, 25) == log.read(2, 1000) == []


def test_reads_of_the_partitions_may_be_mixed(log: EventLog) -> None:
    log.append([Entry(b"", b"%d" % n, partition=n % 4) for n in range(400)])
    seen: list[list[int]] = [[], [], [], []]
    for _ in range(40):
        for partition in (3, 0, 2, 1):
            seen[partition] += [int(record.value) for record in log.read(partition, len(seen[partition]), 3)]
    assert seen == [[*range(partition, 400, 4)] for partition in range(4)]


def test_what_was_appended_is_read_at_once(log: EventLog) -> None:
    for n in range(50):
        ((partition, offset),) = log.append([Entry(b"%d" % (n % 3), b"%d" % n)])
        assert [record.value for record in log.read(partition, offset)] == [b"%d" % n]


def test_any_bytes_come_back(log: EventLog) -> None:
    written = [Entry(b"", b""), Entry(b"\x00\xff", bytes(range(256))), Entry("käse".encode(), b"\x00")]
    for entry, (partition, offset) in zip(written, log.append(written), strict=True):
        assert log.read(partition, offset, 1) == [LogRecord(partition, offset, entry.key, entry.value)]


def test_largest_record(log: EventLog) -> None:
    largest = bytes(range(250)) * (MAX_RECORD_BYTES // 250)
    log.append([Entry(b"", b"before", 0), *[Entry(b"k", largest, 0)] * 4, Entry(b"", b"after", 0)])
    assert values(log, 0) == [b"before", *[largest] * 4, b"after"]


def test_larger_record_is_refused_with_its_whole_batch(log: EventLog) -> None:
    with pytest.raises(ValueError, match="1000001 bytes"):
        log.append([Entry(b"", b"small"), Entry(b"", bytes(MAX_RECORD_BYTES + 1))])
    with pytest.raises(ValueError, match=r"partition 4; this topic has 0\.\.3"):
        log.append([Entry(b"", b"small"), Entry(b"", b"", partition=4)])
    assert log.end_offsets() == [0, 0, 0, 0]


def test_number_of_partitions(url: str, opener: Opener) -> None:
    wide = opener(url, num_partitions=12)
    wide.append([Entry(b"", b"%d" % n, partition=n % 12) for n in range(120)])
    assert wide.end_offsets() == [10] * 12
    assert [values(wide, partition)[0] for partition in range(12)] == [b"%d" % n for n in range(12)]
    with pytest.raises(ValueError, match="num_partitions is 0"):
        opener(url, num_partitions=0)


def test_the_items_stream_is_another_topic(url: str, opener: Opener) -> None:
    events, items = opener(url), opener(url, ".items")
    events.append([Entry(b"u", b"event")])
    items.append([Entry(b"i", b"item")])
    assert (items.num_partitions, items.end_offsets()) == (1, [1])
    assert values(items, 0) == [b"item"]
    assert values(events, partition_of(b"u", 4)) == [b"event"]


def test_threads(log: EventLog) -> None:
    seen: list[LogRecord] = []
    done = threading.Event()

    def write(name: int) -> None:
        for n in range(40):
            log.append([Entry(b"", b"%d %d" % (name, n), partition=1)])

    def follow() -> None:
        while not done.is_set() or len(seen) < log.end_offsets()[1]:
            seen.extend(log.read(1, len(seen)))

    writers, reader = [threading.Thread(target=write, args=(name,)) for name in range(4)], threading.Thread(target=follow)
    for thread in (*writers, reader):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert [record.offset for record in seen] == [*range(160)]
    assert_each_writers_order(seen, [f"{name}" for name in range(4)], 40)


def assert_each_writers_order(records: list[LogRecord], names: list[str], count: int) -> None:
    by_name = defaultdict(list)
    for record in records:
        name, n = record.value.decode().split()
        by_name[name].append(int(n))
    assert by_name == {name: [*range(count)] for name in names}


def test_processes(durable_url: str, opener: Opener) -> None:
    """Three at once, and the first of them to come makes the file or the topic."""
    names = ["a", "b", "c"]
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, durable_url, name, "200"]) for name in names]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    log = opener(durable_url)
    records = [record for partition in range(4) for record in read_all(log, partition)]
    assert sum(log.end_offsets()) == len(records) == 600
    for before, after in pairwise(records):
        assert after.offset == (before.offset + 1 if after.partition == before.partition else 0)
    by_key = {(name, n % 7): [] for name in names for n in range(7)}
    for record in records:
        name, n = record.value.decode().split()
        by_key[name, int(n) % 7].append(int(n))
    assert by_key == {(name, key): [*range(key, 200, 7)] for name, key in by_key}


def test_reopened(durable_url: str, opener: Opener) -> None:
    with closing(open_log(durable_url)) as first:
        positions = first.append(entries(20))
    second = opener(durable_url)
    assert sum(second.end_offsets()) == 20
    assert [second.read(*position, 1)[0].value for position in positions] == [entry.value for entry in entries(20)]
    second.append([Entry(b"user-0", b"more")])
    assert values(second, partition_of(b"user-0", 4))[-1] == b"more"


def test_reopened_with_another_number_of_partitions(durable_url: str, opener: Opener) -> None:
    opener(durable_url).end_offsets()
    with pytest.raises(ValueError, match="has 4 partitions and was opened with 8"):
        opener(durable_url, num_partitions=8).end_offsets()


def test_what_must_be_there_is_not_made(durable_url: str, opener: Opener) -> None:
    for _ in range(2):
        with pytest.raises((FileNotFoundError, ValueError), match="there is no such log"):
            opener(durable_url, existing=True).end_offsets()
    opener(durable_url).append([Entry(b"a", b"b")])
    assert sum(opener(durable_url, existing=True).end_offsets()) == 1
    with pytest.raises((FileNotFoundError, ValueError), match="there is no such log"):
        opener(durable_url, ".items", existing=True).end_offsets()


def test_a_file_of_another_program_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE users (name)")
    before = path.read_bytes()
    with pytest.raises(FileNotFoundError, match="there is no such log"):
        SqliteLog(path, existing=True)
    assert path.read_bytes() == before


def test_memory_log_refuses_no_partitions() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        MemoryLog(0)


def test_sqlite_dropped_records(tmp_path: Path) -> None:
    with closing(SqliteLog(tmp_path / "log.db", num_partitions=2)) as log:
        log.append([Entry(b"", b"%d" % n, partition=0) for n in range(10)])
        log.drop_before([4, 0])
        assert log.begin_offsets() == [4, 0]
        assert [record.offset for record in log.read(0, 4)] == [4, 5, 6, 7, 8, 9]
        with pytest.raises(OffsetGone) as gone:
            log.read(0, 3)
        assert (gone.value.partition, gone.value.offset, gone.value.begin_offset) == (0, 3, 4)
        log.drop_before([99, 99])
        assert (log.begin_offsets(), log.end_offsets()) == ([9, 0], [10, 0])


def test_sqlite_locked_by_another_writer(tmp_path: Path) -> None:
    with closing(SqliteLog(tmp_path / "log.db", timeout_s=0.1)) as log:
        log.append([Entry(b"", b"kept", 0)])
        with closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(LogUnavailable, match="locked"):
                log.append([Entry(b"", b"refused", 0)])
            assert values(log, 0) == [b"kept"]
            other.execute("ROLLBACK")
        log.append([Entry(b"", b"accepted", 0)])
        assert values(log, 0) == [b"kept", b"accepted"]


def test_sqlite_opened_while_another_makes_it(tmp_path: Path) -> None:
    """It waits for the one that was first; SQLite itself would not, when what is asked for is the write-ahead log."""
    with closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LogUnavailable, match="locked"):
            SqliteLog(tmp_path / "log.db", timeout_s=0.1)
        first = threading.Timer(0.3, other.execute, ["COMMIT"])
        first.start()
        with closing(SqliteLog(tmp_path / "log.db")) as log:
            first.join()
            log.append([Entry(b"", b"kept", 0)])
            assert values(log, 0) == [b"kept"]


@pytest.mark.parametrize("deleted", ["log.db*", "log.db-wal"])
def test_sqlite_file_that_is_deleted_or_replaced_while_in_use(tmp_path: Path, deleted: str) -> None:
    """Nothing is accepted that would be gone with the process."""
    path = tmp_path / "log.db"
    with closing(SqliteLog(path)) as log:
        log.append([Entry(b"", b"kept", 0)])
        for part in tmp_path.glob(deleted):
            part.unlink()
        for replaced in (False, True) if deleted == "log.db*" else (False,):
            if replaced:
                SqliteLog(path).close()
            for call in (lambda: log.append([Entry(b"", b"lost", 0)]), lambda: log.read(0, 0), log.end_offsets):
                with pytest.raises(LogUnavailable, match=r"log\.db: the file was deleted, moved or replaced while in use"):
                    call()


def test_sqlite_disk_full(tmp_path: Path) -> None:
    """The limit on a file's size stands for a full disk: the write itself fails, halfway through the batch."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(SqliteLog(tmp_path / "log.db")) as log:
        log.append([Entry(b"", b"kept", 0)])
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        try:
            with pytest.raises(LogUnavailable, match=r"log\.db: .*(full|I/O)"):
                log.append([Entry(b"", bytes(50_000), partition) for partition in range(4)] * 3)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert log.end_offsets() == [1, 0, 0, 0]
        log.append([Entry(b"", b"accepted", 0)])
        assert values(log, 0) == [b"kept", b"accepted"]


def test_sqlite_that_is_no_database_or_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a database, and long enough to be seen as one that is broken " * 20)
    with pytest.raises(LogUnavailable, match="not a database"):
        SqliteLog(tmp_path / "file")
    with pytest.raises(LogUnavailable, match="file"):
        SqliteLog(tmp_path / "file" / "log.db")


def test_sqlite_batch_that_fails_in_its_middle(tmp_path: Path) -> None:
    """The second row is refused by the database itself; the first goes with it."""
    with closing(SqliteLog(tmp_path / "log.db")) as log:
        with closing(sqlite3.connect(tmp_path / "log.db")) as other:
            other.execute("CREATE TRIGGER refuse BEFORE INSERT ON records WHEN new.value = x'ff' BEGIN SELECT raise(ABORT, 'refused'); END")
        with pytest.raises(LogUnavailable, match="refused"):
            log.append([Entry(b"", b"first", 0), Entry(b"", b"\xff", 0)])
        assert log.end_offsets() == [0, 0, 0, 0]


def test_kafka_that_is_not_there() -> None:
    before = threading.active_count()
    started_s = time.monotonic()
    log = KafkaLog("127.0.0.1:1", "topic", timeout_s=0.5)
    for call in (log.end_offsets, lambda: log.append([Entry(b"", b"")])):
        with pytest.raises(LogUnavailable, match=r"kafka://127\.0\.0\.1:1/topic"):
            call()
    assert time.monotonic() - started_s < 3
    assert threading.active_count() == before


def test_kafka_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match=r"unknown Kafka security settings \['ssl_cafilee'\]"):
        KafkaLog("127.0.0.1:1", "topic", security={"ssl_cafilee": "x"})
    with pytest.raises(ValueError, match="ssl_cafile: no file '/nowhere'"):
        KafkaLog("127.0.0.1:1", "topic", security={"ssl_cafile": "/nowhere"})
    with pytest.raises(ValueError, match="ssl_check_hostname is 'maybe'; true or false"):
        KafkaLog("127.0.0.1:1", "topic", security={"ssl_check_hostname": "maybe"})
    with pytest.raises(ValueError, match="security_protocol is 'TLS'; one of PLAINTEXT, SSL"):
        KafkaLog("127.0.0.1:1", "topic", security={"security_protocol": "TLS"})
    with pytest.raises(ValueError, match="timeout_s is 0"):
        KafkaLog("127.0.0.1:1", "topic", timeout_s=0)


def test_kafka_dropped_records(broker: Broker) -> None:
    topic = f"test-{uuid.uuid4().hex}"
    with closing(KafkaLog(broker.bootstrap, topic, 2)) as log:
        log.append([Entry(b"", b"%d" % n, partition=0) for n in range(10)])
        with closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
            admin.delete_records({TopicPartition(topic, 0): 4})
        assert log.begin_offsets() == [4, 0]
        assert [record.offset for record in log.read(0, 4)] == [4, 5, 6, 7, 8, 9]
        with pytest.raises(OffsetGone) as gone:
            log.read(0, 3)
        assert (gone.value.partition, gone.value.offset, gone.value.begin_offset) == (0, 3, 4)
        assert log.read(0, 8)[0].value == b"8"


def test_kafka_offsets_without_records(broker: Broker) -> None:
    """Another program's transactions leave marks that take offsets and are no records."""
    topic = f"test-{uuid.uuid4().hex}"
    with closing(KafkaLog(broker.bootstrap, topic, 1)) as log:
        log.end_offsets()  # makes the topic
        producer = KafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=topic)
        producer.init_transactions()
        for n in range(3):
            producer.begin_transaction()
            producer.send(topic, b"%d" % n, partition=0)
            producer.commit_transaction()
        producer.close()
        assert [(record.offset, record.value) for record in log.read(0, 0)] == [(0, b"0"), (2, b"1"), (4, b"2")]
        assert log.end_offsets() == [6]
        assert log.read(0, 5) == []


def test_kafka_killed_and_started_again(broker: Broker) -> None:
    if broker.node is None:
        pytest.skip("this broker isn't ours to kill")
    with closing(KafkaLog(broker.bootstrap, f"test-{uuid.uuid4().hex}", timeout_s=1)) as log:
        log.append([Entry(b"", b"%d" % n, 0) for n in range(100)])
        broker.node.kill()
        try:
            lost = [Entry(b"", b"lost", 1)]
            for call in (lambda: log.append(lost), lambda: log.append(lost), lambda: log.read(0, 100), log.end_offsets):
                started_s = time.monotonic()
                with pytest.raises(LogUnavailable):
                    call()
                assert time.monotonic() - started_s < 4
        finally:
            assert broker.node.start() == broker.bootstrap
        patiently(lambda: log.append([Entry(b"", b"after", 0)]))
        kept = patiently(lambda: values(log, 0))
        assert kept[:100] == [b"%d" % n for n in range(100)]
        assert set(kept[100:]) == {b"after"}  # more than once when an answer of the broker came too late


def patiently(call: Callable[[], T], limit_s: float = 30) -> T:
    deadline_s = time.monotonic() + limit_s
    while True:
        try:
            return call()
        except LogUnavailable:
            assert time.monotonic() < deadline_s
