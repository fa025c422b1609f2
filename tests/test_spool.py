"""The file of waiting records: what was kept comes back in order, whatever ended the process that kept it."""

import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.spool import HEAD, Spool, SpoolFull
from streaming.log import Entry

LIMIT = 10**6
A, B, C = (Entry(name, name * 3) for name in (b"a", b"bb", b""))


@contextmanager
def spool(path: Path, max_bytes: int = LIMIT) -> Iterator[Spool]:
    with closing(Spool(path, max_bytes)) as found:
        yield found


def kept(path: Path) -> list[Entry]:
    with spool(path) as found:
        return found.first(10**9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=99)), max_size=4), st.integers(1, 5), st.none())))
def test_what_was_kept_and_not_dropped_is_there_in_order(tmp_path_factory: pytest.TempPathFactory, steps: list) -> None:
    """Lists are kept, numbers dropped, None is a new life of the process."""
    path = tmp_path_factory.mktemp("spool") / "s"
    waiting, number, found = [], 0, Spool(path, LIMIT)
    for step in steps:
        if isinstance(step, list):
            entries = [Entry(*one) for one in step]
            found.append(entries)
            waiting, number = waiting + entries, number + len(entries)
        elif step is None:
            found.close()
            found = Spool(path, LIMIT)
        else:
            count = min(step, len(waiting))
            found.drop(count)
            del waiting[:count]
        assert found.first(LIMIT) == waiting
        assert found.first(2) == waiting[:2]
        assert (len(found), found.next_number) == (len(waiting), number)
    found.close()


def test_the_file_is_short_again_when_all_has_gone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with spool(path) as found:
        found.append([A, B])
        found.drop(1)
        assert path.stat().st_size > HEAD.size
        found.drop(1)
        assert path.stat().st_size == HEAD.size
        found.append([C])
    assert kept(path) == [C]


@pytest.mark.parametrize("lost", [1, 10, 25])
def test_what_a_crash_left_half_written_is_cut_off(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "s"
    with spool(path) as found:
        found.append([A, B])
        found.append([C])
    whole = path.read_bytes()
    with spool(path) as found:
        found.append([Entry(b"key", b"a longer value than any before")])
    path.write_bytes(path.read_bytes()[:-lost])
    assert kept(path) == [A, B, C]
    assert path.read_bytes() == whole


def test_a_flipped_bit_ends_it_there(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with spool(path) as found:
        found.append([A, B])
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    assert kept(path) == [A]


@pytest.mark.parametrize("head", [b"short", bytes(HEAD.size), b"recsys-1" + bytes(HEAD.size - 8)])
def test_another_file_is_refused_and_left_alone(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "s"
    path.write_bytes(head)
    with pytest.raises(ValueError, match="no file of waiting records, or is broken"):
        Spool(path, LIMIT)
    assert path.read_bytes() == head


def test_past_the_limit_nothing_of_a_batch_is_kept(tmp_path: Path) -> None:
    with spool(tmp_path / "s", max_bytes=100) as found:
        found.append([A])
        with pytest.raises(SpoolFull, match="holds 1 records, 44 bytes; at most 100 bytes are kept"):
            found.append([B, Entry(b"", bytes(30))])
        found.append([B])
        assert found.first(9) == [A, B]


def test_a_full_disk_is_a_full_spool(tmp_path: Path) -> None:
    """The limit on a file's size stands for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with spool(tmp_path / "s") as found:
        found.append([A])
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(SpoolFull):
                found.append([Entry(b"", bytes(2000))])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        found.append([B])
    assert kept(tmp_path / "s") == [A, B]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with spool(tmp_path / "s"), pytest.raises(ValueError, match=r"is another server's; give each .* --set server\.name"):
        Spool(tmp_path / "s", LIMIT)
    assert kept(tmp_path / "s") == []
