"""A server's next life begins with what its last one knew: the same views, the same answers, and only a tail of the log."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from recsys.durable import numbered
from recsys.engine import Engine, EngineConfig, Identity
from recsys.experiment import ExperimentConfig
from recsys.ledger import Ledger
from recsys.memory import Memory, MemoryConfig
from recsys.snapshots import ARRAYS, EVERY_MS, MANIFEST, SNAPSHOTS_KEPT, Snapshots
from recsys.tokens import TokenMint
from streaming.clock import ManualClock
from streaming.events import Tick, encode
from streaming.log import Entry, MemoryLog
from streaming.sqlite_log import SqliteLog
from tests.artifacts import NOW_MS, VARIANT
from tests.serving import KEY, Bench, WatchedPolicy, ask, bench, clicked, shown, watched

USERS = [f"user{number}" for number in range(20)]


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Bench]:
    log, items_log = SqliteLog(tmp_path / "events.db", num_partitions=2), SqliteLog(tmp_path / "items.db", num_partitions=1)
    found = bench(log=log, items_log=items_log)
    found.engine.serve(VARIANT, WatchedPolicy())
    yield found
    log.close()
    items_log.close()


def use(parts: Bench, first: int = 0) -> None:
    """Each user asks, sees, clicks and watches."""
    for number, user_id in enumerate(USERS, first):
        answer = ask(parts, user_id, request_id=f"request{number}")
        events = [
            shown(answer, 0, 1, event_id=f"shown{number}", user_id=user_id),
            clicked(answer, event_id=f"click{number}", user_id=user_id),
        ]
        parts.engine.record([*events, watched(event_id=f"watch{number}", user_id=user_id)])


def snapshots(directory: Path, parts: Bench, memory: MemoryConfig | None = None) -> Snapshots:
    return Snapshots(directory, parts.engine.config, memory or MemoryConfig(), parts.log, parts.clock)


def keep(directory: Path, parts: Bench) -> None:
    """One life of what keeps snapshots, until one more is there."""
    kept, before = snapshots(directory, parts), numbered(directory, "snap-")
    kept.follow(parts.engine)
    kept.step()
    assert numbered(directory, "snap-") == before, "the first minute is not over"
    assert isinstance(parts.clock, ManualClock)
    parts.clock.advance_to(parts.clock.now_ms() + EVERY_MS)
    kept.step()
    kept.close()
    assert numbered(directory, "snap-")[-1:] != before[-1:]


def newest(directory: Path, parts: Bench, memory: MemoryConfig | None = None) -> tuple[Memory, Ledger] | None:
    kept = snapshots(directory, parts, memory)
    found = kept.newest()
    kept.close()
    return found


def next_life(directory: Path, parts: Bench) -> Engine:
    engine = Engine(
        *(EngineConfig(), MemoryConfig(), ExperimentConfig(variants=((VARIANT, 1.0),)), Identity(run_seed=7, behavior_digest="digest")),
        clock=parts.clock,
        log=parts.log,
        items_log=parts.items_log,
        mint=TokenMint([KEY], EngineConfig().token_lifetime_ms),
        known=newest(directory, parts),
    )
    engine.serve(VARIANT, WatchedPolicy())
    return engine


def test_after_retention_dropped_the_head_a_new_server_knows_what_the_old_one_did(tmp_path: Path, parts: Bench) -> None:
    use(parts)
    keep(tmp_path / "kept", parts)
    assert isinstance(parts.log, SqliteLog)
    parts.log.drop_before(parts.log.end_offsets())
    use(parts, first=len(USERS))
    again = Bench(next_life(tmp_path / "kept", parts), parts.log, parts.items_log, parts.clock)
    assert again.engine.memory.next_offset == parts.engine.memory.next_offset == parts.log.end_offsets()
    for user_id in USERS:
        before, after = parts.engine.memory.view(user_id), again.engine.memory.view(user_id)
        assert [column.tobytes() for column in (before.key_L, before.kind_L, before.gap_L)] == [
            column.tobytes() for column in (after.key_L, after.kind_L, after.gap_L)
        ]
        assert len(after.key_L) == 8
        assert again.engine.memory.num_decisions(user_id) == 2
    ends = parts.log.end_offsets()
    for number, user_id in enumerate(USERS):
        assert ask(again, user_id, request_id=f"request{number}") == ask(parts, user_id, request_id=f"request{number}")
        again.engine.record([watched(event_id=f"watch{number}", user_id=user_id)])
    assert parts.log.end_offsets() == ends, "what was answered and taken before is not answered or taken again"


def test_the_newest_are_kept_and_a_damaged_one_is_passed_over(tmp_path: Path, parts: Bench) -> None:
    for life in range(3):
        use(parts, first=life * len(USERS))
        keep(tmp_path / "kept", parts)
    found = numbered(tmp_path / "kept", "snap-")
    assert [number for number, _ in found] == [2, 3]
    assert len(found) == SNAPSHOTS_KEPT
    whole = next_life(tmp_path / "kept", parts)
    data = bytearray((found[-1][1] / ARRAYS).read_bytes())
    data[len(data) // 2] ^= 1
    (found[-1][1] / ARRAYS).write_bytes(data)
    found_before = newest(tmp_path / "kept", parts)
    assert found_before is not None
    assert sum(found_before[0].next_offset) < sum(whole.memory.next_offset)
    (found[0][1] / MANIFEST).write_text("{}")
    assert newest(tmp_path / "kept", parts) is None
    assert next_life(tmp_path / "kept", parts).memory.next_offset == whole.memory.next_offset, "read from its beginning"


def test_a_snapshot_of_another_log_is_passed_over(tmp_path: Path, parts: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Of one that ends before, and of one that is longer."""
    use(parts)
    keep(tmp_path / "kept", parts)
    other = replace(parts, log=MemoryLog(parts.log.num_partitions))
    assert newest(tmp_path / "kept", other) is None
    for partition, end in enumerate(parts.log.end_offsets()):
        other.log.append([Entry(b"", encode(Tick(event_time_ms=NOW_MS), NOW_MS), partition)] * (end + 1))
    assert newest(tmp_path / "kept", other) is None
    assert "ends at 0: is it another log?" in caplog.text
    assert "of memory: is not the record that it has read: is it another log?" in caplog.text


def test_where_no_snapshot_can_be_begun_it_is_one_less(
    tmp_path: Path, parts: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> tuple[int, int]:
        raise OSError("Too many open files")

    use(parts)
    kept = snapshots(tmp_path / "kept", parts)
    kept.follow(parts.engine)
    assert isinstance(parts.clock, ManualClock)
    parts.clock.advance_to(parts.clock.now_ms() + EVERY_MS)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pipe", refuse)
        kept.step()
    kept.close()
    assert "no snapshot could be kept: Too many open files" in caplog.text
    assert numbered(tmp_path / "kept", "snap-") == []
    keep(tmp_path / "kept", parts)
    assert newest(tmp_path / "kept", parts) is not None


def test_a_snapshot_of_another_configuration_or_log_is_passed_over(tmp_path: Path, parts: Bench) -> None:
    use(parts)
    keep(tmp_path / "kept", parts)
    assert newest(tmp_path / "kept", parts) is not None
    assert newest(tmp_path / "kept", parts, MemoryConfig(rows=7)) is None
    assert newest(tmp_path / "kept", bench()) is None


def test_one_of_two_servers_writes_and_both_read(tmp_path: Path, parts: Bench) -> None:
    use(parts)
    keep(tmp_path / "kept", parts)
    first = snapshots(tmp_path / "kept", parts)
    second = snapshots(tmp_path / "kept", parts)
    assert second.newest() is not None
    second.follow(parts.engine)
    assert isinstance(parts.clock, ManualClock)
    parts.clock.advance_to(NOW_MS + 10 * EVERY_MS)
    second.step()
    second.close()
    first.close()
    assert len(numbered(tmp_path / "kept", "snap-")) == 1
