import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from streaming.address import open_log
from streaming.log import Entry, LogUnavailable, MemoryLog
from streaming.sqlite_log import SqliteLog


def test_memory_is_new_each_time() -> None:
    first, second = open_log("memory:", num_partitions=2), open_log("memory:")
    first.append([Entry(b"", b"", 0)])
    assert isinstance(first, MemoryLog)
    assert (first.num_partitions, second.num_partitions) == (2, 4)
    assert second.end_offsets() == [0, 0, 0, 0]


def test_three_slashes_are_relative_and_four_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(open_log("sqlite:///runs/log.db")) as relative, closing(open_log(f"sqlite:///{tmp_path}/runs/log.db")) as absolute:
        assert isinstance(relative, SqliteLog)
        relative.append([Entry(b"", b"the same file", 3)])
        assert absolute.read(3, 0)[0].value == b"the same file"


def test_items_have_one_partition_beside_the_events(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/log.db"
    with closing(open_log(url, num_partitions=8)) as events, closing(open_log(url, ".items", num_partitions=8)) as items:
        assert (events.num_partitions, items.num_partitions) == (8, 1)
    with closing(SqliteLog(tmp_path / "log.db", "events", 8)), closing(SqliteLog(tmp_path / "log.db", "events.items", 1)):
        pass


NOT_FILES = ["", "memory", "memory://", "log.db", "sqlite:log.db", "sqlite://log.db", "sqlite:///", "file:///log.db"]
NOT_TOPICS = ["kafka:topic", "kafka://", "kafka://host:9092", "kafka://host:9092/", "kafka:///topic", "kafka://host:9092/a/b"]


@pytest.mark.parametrize("url", [*NOT_FILES, *NOT_TOPICS])
def test_other_addresses_are_refused_by_name(url: str) -> None:
    with pytest.raises(ValueError, match=r"no log at .*sqlite:///PATH .*kafka://HOST:PORT/TOPIC, memory:") as refused:
        open_log(url)
    assert repr(url) in str(refused.value)


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LogUnavailable, match="file"):
        open_log(f"sqlite:///{tmp_path}/file/log.db")


def test_kafka_settings_reach_the_kafka_log() -> None:
    with pytest.raises(ValueError, match="unknown Kafka security settings"):
        open_log("kafka://127.0.0.1:1/topic", kafka_security={"no_such_setting": ""})


def test_without_kafka_its_client_is_not_imported(tmp_path: Path) -> None:
    program = (
        f"import sys; from streaming.address import open_log; open_log('sqlite:///{tmp_path}/log.db'); sys.exit('kafka' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
