"""A learner that is killed anywhere goes on as if nothing had been: same weights, same books, same versions.

A kill is what it leaves on disk, so it is made here by hand: the learner is dropped, and its directory is as the crash left it.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from models import artifact as artifacts
from recsys import checkpoint as checkpoints
from recsys import publisher
from recsys.checkpoint import FILES, StateBusy
from recsys.config import behavior_digest
from recsys.durable import numbered
from recsys.keeper import Keeper
from recsys.learner import Learner
from recsys.loop import Loop
from recsys.publisher import Published
from recsys.trainer import Seeds
from streaming.clock import ManualClock
from streaming.events import Item, ItemChange, Tick, decode, encode
from streaming.log import Entry, EventLog, MemoryLog
from streaming.sqlite_log import SqliteLog
from tests.runs import finished, learned

MINUTES = 8
LAST_STEP = 10**15


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """A run whose log is learned again here; its own learner was never interrupted."""
    return finished(tmp_path_factory.mktemp("recorded"), MINUTES)


@dataclass
class Life:
    """A log that grows as the recorded one did, and a learner on it that can be dropped at any moment."""

    source: Loop
    state_dir: Path
    log: EventLog = field(default_factory=lambda: MemoryLog(4))
    items_log: EventLog = field(default_factory=lambda: MemoryLog(1))

    def __post_init__(self) -> None:
        stage = self.source.stage
        self._records = sorted(
            (decode(record.value).append_time_ms, into is self.items_log, record.partition, record.offset, record.key, record.value)
            for log, into in ((stage.log, self.log), (stage.items_log, self.items_log))
            for partition in range(log.num_partitions)
            for record in log.read(partition, 0, 10**9)
        )
        self._num_fed = 0
        self.learner = self.new()

    @property
    def end_ms(self) -> int:
        return self._records[-1][0]

    def new(self, seed: int = 0, *, accept_gap: bool = False) -> Learner:
        config = self.source.config
        return Learner(
            *(config.learner, config.model, config.join, config.memory, Seeds(behavior_digest(config), seed)),
            clock=ManualClock(0),
            log=self.log,
            items_log=self.items_log,
            state_dir=self.state_dir,
            accept_gap=accept_gap,
        )

    def live(self, until: Callable[[], bool] = lambda: False, until_ms: int = LAST_STEP) -> None:
        """Second by second, until something holds or the log ends."""
        while self._num_fed < len(self._records) and not until():
            now_ms = self._records[self._num_fed][0] // 1000 * 1000 + 1000
            if now_ms > until_ms:
                return
            self.feed(now_ms)
            self.learner.step()

    def feed(self, until_ms: int) -> None:
        """The log goes on until then, without the learner."""
        while self._num_fed < len(self._records) and self._records[self._num_fed][0] < until_ms:
            _, is_items, partition, _, key, value = self._records[self._num_fed]
            (self.items_log if is_items else self.log).append([Entry(key, value, partition)])
            self._num_fed += 1

    def feed_minutes(self, minutes: int) -> int:
        """The same for so long; the time it is then."""
        until_ms: int = self._records[self._num_fed][0] + minutes * 60_000
        self.feed(until_ms)
        return until_ms

    def restart(self) -> None:
        self.learner.close()  # what the system does for a process that is gone: only the lock is let go
        self.learner = self.new()

    def ends_like(self, other: Learner) -> None:
        """Live on to the end; then all is as if nothing had been."""
        self.live()
        self.learner.catch_up()
        assert self.learner.weights_digest() == other.weights_digest()
        assert self.learner.policy_version == other.policy_version
        assert self.learner.joiner.books() == other.joiner.books()
        directory = self.state_dir / "online"
        published = publisher.current(directory)
        assert published is not None
        assert published.policy_version == other.policy_version == publisher.newest_version(directory)
        assert artifacts.weights_digest(publisher.load(published).decoder) == other.weights_digest()
        assert numbered(directory / "checkpoints", "ckpt-")[-1][0] == other.policy_version
        assert list(directory.rglob(".tmp-*")) == []


@pytest.fixture
def life(recorded: Loop, tmp_path: Path) -> Iterator[Life]:
    life = Life(recorded, tmp_path)
    yield life
    life.learner.close()


# Kills ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_kills_at_random_moments_change_nothing(recorded: Loop, life: Life, seed: int) -> None:
    start_ms = recorded.scene.start_ms
    moments = np.sort(np.random.default_rng(seed).integers(start_ms, life.end_ms, 12))
    for moment in moments.tolist():
        life.live(until_ms=moment)
        life.restart()
    assert recorded.learner.policy_version > 5
    life.ends_like(recorded.learner)


def test_a_kill_after_every_version_changes_nothing(recorded: Loop, life: Life) -> None:
    for version in range(1, recorded.learner.policy_version):
        life.live(lambda version=version: life.learner.policy_version >= version)
        life.restart()
    life.ends_like(recorded.learner)


def _saved_but_not_published(directory: Path, version: int) -> None:
    shutil.rmtree(directory / "versions" / str(version))


def _published_but_not_pointed_to(directory: Path, version: int) -> None:
    """CURRENT.json is the one before: nothing else to do."""


def _half_saved(directory: Path, version: int) -> None:
    _saved_but_not_published(directory, version)
    (directory / "checkpoints" / f"ckpt-{version}").rename(directory / "checkpoints" / f".tmp-ckpt-{version}-1")


def _half_published(directory: Path, version: int) -> None:
    (directory / "versions" / str(version)).rename(directory / "versions" / f".tmp-{version}-1")


@pytest.mark.parametrize("crash", [_saved_but_not_published, _published_but_not_pointed_to, _half_saved, _half_published])
def test_a_crash_at_each_point_of_save_and_publish_changes_nothing(recorded: Loop, life: Life, crash: Callable[[Path, int], None]) -> None:
    directory = life.state_dir / "online"
    life.live(lambda: life.learner.policy_version == 3)
    before = (directory / publisher.CURRENT).read_text()
    life.live(lambda: life.learner.policy_version == 4)
    (directory / publisher.CURRENT).write_text(before)
    crash(directory, 4)
    life.restart()
    life.ends_like(recorded.learner)


def test_what_can_not_be_saved_is_not_published(life: Life) -> None:
    life.live(lambda: life.learner.policy_version == 3)
    shutil.rmtree(life.state_dir / "online" / "checkpoints")
    (life.state_dir / "online" / "checkpoints").write_text("in the way")
    with pytest.raises(OSError, match="checkpoints"):
        life.live()
    published = publisher.current(life.state_dir / "online")
    assert published is not None
    assert published.policy_version == 3


def test_the_head_of_the_log_is_not_needed_again(recorded: Loop, tmp_path: Path) -> None:
    """Retention drops all that was read before the restart: memory is in the checkpoint, and its views are the same bytes."""
    log = SqliteLog(tmp_path / "events.db")
    life = Life(recorded, tmp_path / "state", log, SqliteLog(tmp_path / "items.db", num_partitions=1))
    life.live(lambda: life.learner.policy_version == 5)
    before = life.learner.memory
    log.drop_before(log.end_offsets())
    assert all(log.begin_offsets())
    life.restart()
    assert life.learner.policy_version == 5
    assert life.learner.memory.next_offset == before.next_offset
    assert life.learner.memory.num_users == before.num_users > 20
    for name, array in life.learner.memory.arrays().items():
        assert array.tobytes() == before.arrays()[name].tobytes(), name
    life.ends_like(recorded.learner)
    life.learner.close()


# Damage ---------------------------------------------------------------------------------------------------------------


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x20
    path.write_bytes(data)


def _gone(path: Path) -> None:
    path.unlink()


def _without_keys(path: Path) -> None:
    path.write_text("{}")


def _a_list(path: Path) -> None:
    path.write_text("[1]")


CHECKPOINT = [*FILES, "MANIFEST.json", "model/weights.safetensors", "model/vocabulary.json"]


def test_damage_of_any_file_is_seen(life: Life, tmp_path: Path) -> None:
    life.live(lambda: life.learner.policy_version == 4)
    for name in CHECKPOINT:
        for damage in (_truncated, _flipped, _gone, _without_keys, _a_list):
            directory = tmp_path / f"{damage.__name__} {name.replace('/', ' ')}"
            shutil.copytree(life.state_dir / "online" / "checkpoints", directory)
            damage(directory / "ckpt-4" / name)
            saved = checkpoints.restore(directory)
            assert saved is not None
            assert saved.number == 3, directory.name


@pytest.mark.parametrize("name", ["joiner.pb", "MANIFEST.json"])
def test_a_damaged_checkpoint_is_passed_over(recorded: Loop, life: Life, name: str) -> None:
    """Its version is made again, and is the same: it was published, maybe served."""
    life.live(lambda: life.learner.policy_version == 4)
    _truncated(life.state_dir / "online" / "checkpoints" / "ckpt-4" / name)
    life.restart()
    assert life.learner.policy_version == 3
    life.ends_like(recorded.learner)


def test_without_any_whole_checkpoint_all_is_learned_again(recorded: Loop, life: Life) -> None:
    life.live(lambda: life.learner.policy_version == 4)
    for _, path in numbered(life.state_dir / "online" / "checkpoints", "ckpt-"):
        _truncated(path / "joiner.pb")
    life.restart()
    assert life.learner.policy_version == 0
    life.ends_like(recorded.learner)


def test_a_version_number_never_names_two_things(recorded: Loop, life: Life, tmp_path: Path) -> None:
    """The state of another seed whose checkpoints are gone: its versions are not overwritten."""
    life.live(lambda: life.learner.policy_version == 3)
    life.learner.close()
    shutil.rmtree(life.state_dir / "online" / "checkpoints")
    life.learner = life.new(seed=1)
    with pytest.raises(FileExistsError, match="no number is used twice"):
        life.learner.step()


def test_a_damaged_version_whose_checkpoint_is_damaged_too_is_made_again(recorded: Loop, life: Life) -> None:
    directory = life.state_dir / "online"
    life.live(lambda: life.learner.policy_version == 4)
    before = (directory / publisher.CURRENT).read_text()
    _truncated(directory / "checkpoints" / "ckpt-4" / "joiner.pb")
    _flipped(directory / "versions" / "4" / "weights.safetensors")
    life.restart()
    life.live(lambda: life.learner.policy_version == 4)
    assert json.loads((directory / publisher.CURRENT).read_text())["digest"] == json.loads(before)["digest"]
    assert publisher.load(Published(4, directory / "versions" / "4", json.loads(before)["digest"], 0)).facts["policy_version"] == 4
    life.ends_like(recorded.learner)


def test_a_damaged_pointer_is_written_anew(recorded: Loop, life: Life) -> None:
    life.live(lambda: life.learner.policy_version == 4)
    _truncated(life.state_dir / "online" / publisher.CURRENT)
    life.restart()
    published = publisher.current(life.state_dir / "online")
    assert published is not None
    assert published.policy_version == 4
    life.ends_like(recorded.learner)


# Refusals -------------------------------------------------------------------------------------------------------------


def test_two_learners_can_not_share_a_state(life: Life) -> None:
    with pytest.raises(StateBusy, match=r"is written by process \d+"):
        life.new()


def test_a_state_is_not_used_with_another_seed_or_log(life: Life) -> None:
    life.live(lambda: life.learner.policy_version == 2)
    life.learner.close()
    with pytest.raises(ValueError, match="another configuration or seed"):
        life.new(seed=1)
    log, life.log = life.log, MemoryLog(4)
    with pytest.raises(ValueError, match=r"online has read partition 0 up to \d+; memory: ends at 0: is it another log\?"):
        life.new()
    for partition in range(4):  # as long, and longer, but for one record the same
        records = log.read(partition, 0)
        last = records[-1].value if partition < 3 else encode(Tick(event_time_ms=1), 1)
        life.log.append([Entry(b"", value, partition) for value in [*(record.value for record in records[:-1]), last, last]])
    offset = life.log.end_offsets()[3] - 2
    with pytest.raises(
        ValueError, match=rf"partition 3, offset {offset} of memory: is not the record that .*online has read: is it another log\?"
    ):
        life.new()


@pytest.mark.parametrize("said", [b"        58q4                    3\n", b"\xff 3", b"7"])
def test_a_damaged_lock_is_named(life: Life, said: bytes) -> None:
    life.learner.close()
    lock = life.state_dir / "online" / "LOCK"
    lock.write_bytes(said)
    with pytest.raises(ValueError, match=r"LOCK holds .* and not two numbers"):
        life.new()
    lock.unlink()
    life.learner = life.new()


@pytest.mark.parametrize("lost", ["deleted", "taken"])
def test_who_lost_the_lock_writes_nothing_more(life: Life, lost: str) -> None:
    """The file is gone, or the file system let go of it: a second learner starts, and the first one can neither save nor publish."""
    directory = life.state_dir / "online"
    life.live(lambda: life.learner.policy_version == 3)
    if lost == "deleted":
        (directory / "LOCK").unlink()
    else:
        (directory / "LOCK").rename(directory / "elsewhere")
        (directory / "LOCK").write_bytes((directory / "elsewhere").read_bytes())
    second = life.new()
    with pytest.raises(StateBusy, match=r"was taken over by process \d+"):
        life.live()
    assert publisher.newest_version(directory) == numbered(directory / "checkpoints", "ckpt-")[-1][0] == 3
    second.close()


# However it was read --------------------------------------------------------------------------------------------------


def test_memory_is_the_same_however_much_is_read_at_once(tmp_path: Path) -> None:
    """Few rows are kept by user, so that what a Decision saw is long gone when a whole log is read at once."""
    loop = finished(tmp_path / "live", 5, settings=["memory.rows=8"])
    at_once = learned(loop.config, loop.stage.log, loop.stage.items_log, tmp_path / "at once")
    assert at_once == loop.learner.weights_digest()


# The frozen variant ---------------------------------------------------------------------------------------------------


@dataclass
class Frozen:
    """Lives of a keeper, one after the other, beside an items stream that grows."""

    source: Loop
    state_dir: Path

    def __post_init__(self) -> None:
        self.items_log = MemoryLog(1)
        self.items_log.append([Entry(b"", record.value, 0) for record in self.source.stage.items_log.read(0, 0, 10**9)])
        published = publisher.current(self.source.learner.directory)
        assert published is not None
        self._start = publisher.load(published)

    def step(self) -> int:
        """What one life makes."""
        join = self.source.config.join
        return Keeper("frozen", lambda: self._start, join, clock=ManualClock(0), items_log=self.items_log, state_dir=self.state_dir).step()

    def grow(self, item_id: str, now_ms: int) -> None:
        change = ItemChange(event_time_ms=now_ms, item=Item(item_id=item_id, title="a late one", attributes={"group": "a"}))
        self.items_log.append([Entry(b"", encode(change, now_ms), 0), Entry(b"", encode(Tick(event_time_ms=2 * now_ms), 2 * now_ms), 0)])

    def current(self) -> Published:
        found = publisher.current(self.state_dir / "frozen")
        assert found is not None
        return found

    def damage(self) -> int:
        """Of the version that is served, one byte; its number."""
        path = self.current().directory / "weights.safetensors"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        return self.current().policy_version


def test_a_keeper_goes_on_from_the_version_before_a_damaged_one(recorded: Loop, tmp_path: Path) -> None:
    frozen = Frozen(recorded, tmp_path)
    frozen.step()
    frozen.grow("late", 10**13)
    frozen.step()
    damaged = frozen.damage()
    frozen.step()
    assert frozen.current().policy_version == damaged + 1
    assert "late" in publisher.load(frozen.current()).item_ids
    before = publisher.last_good(tmp_path / "frozen")
    assert before is not None
    frozen.damage()
    with pytest.raises(artifacts.BadArtifact):  # and so is the one before
        frozen.step()


def test_a_keeper_killed_before_its_pointer_moved_goes_on_with_a_new_number(recorded: Loop, tmp_path: Path) -> None:
    frozen = Frozen(recorded, tmp_path)
    frozen.step()
    before = (tmp_path / "frozen" / publisher.CURRENT).read_text()
    frozen.grow("late", 10**13)
    num_made = frozen.step()
    (tmp_path / "frozen" / publisher.CURRENT).write_text(before)
    assert frozen.step() == num_made > 0
    assert frozen.current().policy_version == json.loads(before)["policy_version"] + 2 * num_made
    assert "late" in publisher.load(frozen.current()).item_ids
