"""There whole or not at all, whatever happened half-way."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recsys.durable import keep_newest, new_directory, numbered, replace_file, sweep

DIES = """
import os, signal, sys
from pathlib import Path
from recsys.durable import new_directory, replace_file
home = Path(sys.argv[1])
with new_directory(home / "3") as temporary:
    (temporary / "part").write_text("half of it")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def make(directory: Path, *entries: str) -> None:
    for entry in entries:
        (directory / entry).mkdir(parents=True)
        (directory / entry / "file").write_text(entry)


def test_a_new_directory_is_there_with_all_its_files(tmp_path: Path) -> None:
    with new_directory(tmp_path / "deep" / "er" / "7") as temporary:
        (temporary / "a").write_text("one")
        (temporary / "b").write_bytes(b"two")
        assert not (tmp_path / "deep" / "er" / "7").exists()
    assert names(tmp_path / "deep" / "er") == ["7"]
    assert (tmp_path / "deep" / "er" / "7" / "a").read_text() == "one"


def test_an_error_half_way_leaves_no_directory_and_the_next_try_starts_empty(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_directory(tmp_path / "7") as temporary:
        (temporary / "old").write_text("half") and (temporary / "not there").read_text()
    assert names(tmp_path) == []
    with new_directory(tmp_path / "7") as temporary:
        assert names(temporary) == []
        (temporary / "new").write_text("whole")
    assert names(tmp_path) == ["7"]
    assert names(tmp_path / "7") == ["new"]


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path: Path) -> None:
    make(tmp_path, "1", "2")
    died = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert [number for number, _ in numbered(tmp_path, "")] == [1, 2]
    assert len(names(tmp_path)) == 3
    with new_directory(tmp_path / "4"):
        pass
    assert names(tmp_path) == ["1", "2", "4"]


def test_what_a_crash_left_is_swept(tmp_path: Path) -> None:
    make(tmp_path, "1", ".tmp-2-99")
    (tmp_path / ".tmp-CURRENT.json-99").write_text("half")
    sweep(tmp_path)
    sweep(tmp_path / "nowhere")
    assert names(tmp_path) == ["1"]


def test_what_exists_is_not_written_over(tmp_path: Path) -> None:
    make(tmp_path, "7")
    with pytest.raises(OSError, match="not empty"), new_directory(tmp_path / "7") as temporary:
        (temporary / "other").write_text("other")
    assert names(tmp_path / "7") == ["file"]


def test_a_replaced_file_holds_the_new_text_and_nothing_is_left_over(tmp_path: Path) -> None:
    replace_file(tmp_path / "CURRENT.json", "one, and longer")
    replace_file(tmp_path / "CURRENT.json", "two")
    assert (tmp_path / "CURRENT.json").read_text() == "two"
    assert names(tmp_path) == ["CURRENT.json"]


def test_a_part_of_a_file_left_by_a_crash_is_not_read(tmp_path: Path) -> None:
    replace_file(tmp_path / "CURRENT.json", "whole")
    (tmp_path / f".tmp-CURRENT.json-{os.getpid()}").write_text("ha")
    assert (tmp_path / "CURRENT.json").read_text() == "whole"
    replace_file(tmp_path / "CURRENT.json", "new")
    assert (tmp_path / "CURRENT.json").read_text() == "new"
    assert names(tmp_path) == ["CURRENT.json"]


def test_entries_are_in_order_of_number_and_others_are_not_counted(tmp_path: Path) -> None:
    make(tmp_path, "ckpt-2", "ckpt-10", "ckpt-1", "ckpt-x", "7", ".tmp-ckpt-3-99")
    assert [number for number, _ in numbered(tmp_path, "ckpt-")] == [1, 2, 10]
    assert numbered(tmp_path / "nowhere", "ckpt-") == []


def test_the_newest_are_kept_and_those_that_must_not_go(tmp_path: Path) -> None:
    make(tmp_path, *(f"ckpt-{number}" for number in (1, 2, 3, 9, 10, 11)), "other-1")
    keep_newest(tmp_path, "ckpt-", 2, never=frozenset({2}))
    assert names(tmp_path) == ["ckpt-10", "ckpt-11", "ckpt-2", "other-1"]
    keep_newest(tmp_path, "ckpt-", 5)
    assert names(tmp_path) == ["ckpt-10", "ckpt-11", "ckpt-2", "other-1"]
