"""What was learned of bad records is undone: the pointer at once, the learner from the log, and a replay does the same."""

import copy
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from test_recovery import Life
from typer.testing import CliRunner

from models.artifact import BadArtifact, read, weights_digest
from recsys import publisher
from recsys.config import with_settings
from recsys.controls import ROLLBACK, Controls, Rollback, Span
from recsys.durable import numbered
from recsys.log_commands import rollback
from recsys.loop import Loop, Scene, Stage, toy_scene
from recsys.presets import tiny
from recsys.publisher import VERSIONS_KEPT
from recsys.replay import replay
from recsys.rollback import RolledBack, roll_back
from recsys.truth import TOY_START_MS, toy_truth
from recsys.verify.faults import POINTS, at_point
from recsys.worlds import SimulatedWorld, WorldConfig
from streaming.archive import EVENTS, ITEMS, write_archive
from streaming.events import Control, Record, Tick, decode, encode
from streaming.joiner import Asked, JoinConfig
from streaming.log import Entry, EventLog, MemoryLog, batches
from streaming.quarantine import Kept, Mended, write_lines
from streaming.sqlite_log import SqliteLog
from tests.artifacts import item_ids, small_artifact
from tests.runs import learned, only_object

BROKEN = b"\xff"
MINUTES, GOOD, BAD = 8, 2, 4
"""World minutes; the last version before the poison; the version at which somebody sees it."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """No items come or go: what comes while minutes are undone is let in at another moment than without them."""
    config = WorldConfig(minutes=MINUTES, decisions_per_minute=60.0, organic_per_minute=5.0, slate_size=5, new_items=0, retired_items=0)
    scene = Scene(name="toy", world=SimulatedWorld(toy_truth(), config), start_ms=TOY_START_MS, minutes=MINUTES)
    return run_to_end(scene, tmp_path_factory.mktemp("recorded"))


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """A run in which items come and go."""
    return run_to_end(toy_scene(MINUTES, 0), tmp_path_factory.mktemp("growing"))


def run_to_end(scene: Scene, state_dir: Path) -> Loop:
    loop = Loop(tiny(), scene, Stage(log=MemoryLog(4), items_log=MemoryLog(1), state_dir=state_dir), 0)
    for _ in loop.minutes():
        pass
    loop.close()
    return loop


@pytest.fixture
def life(recorded: Loop, tmp_path: Path) -> Iterator[Life]:
    """A learner at the version before the poison."""
    yield from _lived(recorded, tmp_path)


@pytest.fixture
def growing_life(growing: Loop, tmp_path: Path) -> Iterator[Life]:
    yield from _lived(growing, tmp_path)


def _lived(source: Loop, tmp_path: Path) -> Iterator[Life]:
    life = Life(source, tmp_path / "state")
    life.live(lambda: life.learner.policy_version == GOOD)
    yield life
    life.learner.close()


def poison(life: Life) -> None:
    """All clicks still to come are none, until `cure`."""
    for at in range(life._num_fed, len(life._records)):
        *where, value = life._records[at]
        record = decode(value)
        if record.HasField("event") and record.event.HasField("feedback"):
            record.event.feedback.value = 0
            life._records[at] = (*where, encode(record.event, record.append_time_ms))


def cure(life: Life, recorded: Loop) -> None:
    clean = Life(recorded, life.state_dir.parent / "unused")
    clean.learner.close()
    life._records[life._num_fed :] = clean._records[life._num_fed :]


def undone(life: Life, recorded: Loop) -> RolledBack:
    """Poisoned minutes are learned, somebody sees it, and goes back."""
    poison(life)
    life.live(lambda: life.learner.policy_version == BAD)
    cure(life, recorded)
    return roll_back(life.log, life.state_dir / "online", GOOD, life._records[life._num_fed][0])


def to_the_end(life: Life) -> None:
    life.live()
    life.learner.catch_up()


def changed(log: EventLog, change: Callable[[Record, int, int], Record | Tick]) -> MemoryLog:
    """The log with records changed in their places: all offsets stay."""
    other = MemoryLog(log.num_partitions)
    for batch in batches(log):
        for at in batch:
            record = decode(at.value)
            said = change(record, at.partition, at.offset)
            value = encode(said, 0) if isinstance(said, Tick) else said.SerializeToString(deterministic=True)
            other.append([Entry(at.key, value, at.partition)])
    return other


def without_poison(log: EventLog, done: RolledBack, learned_through_ms: int) -> MemoryLog:
    """No Control, and the decisions of the spans that the good version had not learned are another variant's."""

    def change(record: Record, partition: int, offset: int) -> Record | Tick:
        if record.HasField("control"):
            return Tick(event_time_ms=0)
        inside = any(span.partition == partition and span.begin <= offset < span.end for span in done.spans)
        if inside and record.decision.event_time_ms >= learned_through_ms:
            record.decision.variant = "another"
        return record

    return changed(log, change)


def archived(life: Life, directory: Path) -> Path:
    write_archive(life.log, directory / EVENTS)
    write_archive(life.items_log, directory / ITEMS)
    return directory


# One rollback ---------------------------------------------------------------------------------------------------------


def test_the_pointer_goes_back_at_once_and_the_next_number_is_new(life: Life, recorded: Loop) -> None:
    directory = life.state_dir / "online"
    undone(life, recorded)
    for _ in range(2):  # before and after the learner has read of it
        current, last_good = publisher.current(directory), publisher.last_good(directory)
        assert current is not None
        assert current == replace(last_good, published_at_ms=current.published_at_ms)
        assert (current.policy_version, current.rolled_back_from) == (GOOD, BAD)
        life.learner.step()
    assert life.learner.stats.num_rollbacks == 1
    digest = publisher.load(current).facts["policy_version"], life.learner.weights_digest()
    assert digest == (GOOD, _digest_of_version(directory, GOOD))
    life.live(lambda: life.learner.policy_version > BAD)
    current = _current(life)
    assert (current.policy_version, current.rolled_back_from) == (BAD + 1, 0)


def test_what_follows_is_what_would_have_been_learned_without_the_poison(life: Life, recorded: Loop, tmp_path: Path) -> None:
    """Bit-equal to a learner of the same log in which the undone decisions are another variant's: memory and ticks still apply."""
    learned_through_ms = publisher.load(_current(life)).facts["trained_through_ms"]
    done = undone(life, recorded)
    to_the_end(life)
    assert life.learner.policy_version > BAD
    clean = without_poison(life.log, done, learned_through_ms)
    assert learned(recorded.config, clean, life.items_log, tmp_path / "clean") == life.learner.weights_digest()
    poisoned = changed(life.log, without_controls)
    assert learned(recorded.config, poisoned, life.items_log, tmp_path / "poisoned") != life.learner.weights_digest()
    books = life.learner.joiner.books()
    assert books.balanced
    assert books.decisions["quarantined"] > 0


@pytest.mark.parametrize("save_every", [1, 60])
def test_a_replay_of_the_archive_does_the_same(growing_life: Life, growing: Loop, tmp_path: Path, save_every: int) -> None:
    life = growing_life
    undone(life, growing)
    to_the_end(life)
    done = replay(growing.config, archived(life, tmp_path / "archive"), tmp_path / "replayed", 0, save_every)
    assert done.weights_digest == life.learner.weights_digest()
    assert done.versions == life.learner.policy_version
    assert done.books == life.learner.joiner.books().as_dict()


def test_a_replay_with_repaired_records_goes_back_to_the_same_minute(recorded: Loop, tmp_path: Path) -> None:
    """It learns a minute that was lost, so it has the versions behind that by other numbers."""
    source = copy.copy(recorded)
    source.config = with_settings(recorded.config, ["learner.max_quarantined=1"])
    life = Life(source, tmp_path / "state")
    made_ms = [decode(value).decision.event_time_ms // 60_000 for *_, value in life._records if decode(value).HasField("decision")]
    lost = min(made_ms) + 2
    for at, (*where, value) in enumerate(life._records):
        if decode(value).decision.event_time_ms // 60_000 == lost:
            life._records[at] = (*where, BROKEN + value)
    life.live(lambda: life.learner.policy_version == BAD)
    made = publisher.load(_current(life)).facts["trained_through_ms"]
    assert made > (lost + 1) * 60_000
    poison(life)
    life.live(lambda: life.learner.policy_version == BAD + 2)
    cure(life, recorded)
    done = roll_back(life.log, life.state_dir / "online", BAD, life._records[life._num_fed][0])
    to_the_end(life)
    life.learner.close()
    broken = [record for batch in batches(life.log) for record in batch if record.value.startswith(BROKEN)]
    mended = [record._replace(value=record.value.removeprefix(BROKEN)) for record in broken]
    (tmp_path / "mended").write_text(write_lines(Kept(EVENTS, *record[:2], "", "", *record[2:]) for record in mended))
    archive = archived(life, tmp_path / "archive")
    whole = MemoryLog(4)
    for batch in batches(Mended(life.log, mended)):
        whole.append([Entry(record.key, record.value, record.partition) for record in batch])
    clean = learned(source.config, without_poison(whole, done, made), life.items_log, tmp_path / "clean")
    for save_every in (1, 60):
        again = replay(source.config, archive, tmp_path / f"{save_every}", 0, save_every, include=tmp_path / "mended")
        assert again.versions > life.learner.policy_version
        assert again.weights_digest == clean


@pytest.mark.parametrize("steps", [0, 1])
def test_a_kill_around_a_rollback_changes_nothing(life: Life, recorded: Loop, tmp_path: Path, steps: int) -> None:
    """Before the learner has read of it, and after it went back but before the next version was saved."""
    undone(life, recorded)
    for _ in range(steps):
        life.learner.step()
    life.restart()
    assert _current(life).policy_version == GOOD, "a restart does not serve the poison again"
    life.live(lambda: life.learner.policy_version == BAD + 1)
    life.restart()
    to_the_end(life)
    assert learned(recorded.config, life.log, life.items_log, tmp_path / "again") == life.learner.weights_digest()


def test_a_version_made_while_somebody_goes_back_is_undone_too(life: Life, recorded: Loop) -> None:
    """It was learned before the learner read of the rollback, and published over the pointer."""
    directory = life.state_dir / "online"
    undone(life, recorded)
    made = publisher.current(directory)
    assert made is not None
    version_5 = replace(made, policy_version=BAD, directory=directory / "versions" / str(BAD), rolled_back_from=0)
    publisher.point_to(directory, version_5)
    life.learner.step()
    assert _current(life).policy_version == GOOD


def test_a_learner_that_is_behind_serves_nothing_and_loses_nothing_until_it_follows(life: Life, recorded: Loop, tmp_path: Path) -> None:
    """It makes several versions more before it reads of the rollback: they would take the pointer, and the checkpoint to go back to."""
    directory = life.state_dir / "online"
    life.live(lambda: life.learner.policy_version == GOOD + 1)
    behind = life.feed_minutes(3)
    roll_back(life.log, directory, GOOD, behind)
    while not life.learner.stats.num_rollbacks:
        assert _current(life).policy_version == GOOD
        life.learner.step()
    made = publisher.newest_version(directory)
    assert made >= GOOD + 1 + 3  # as many as checkpoints are kept
    assert (_current(life).policy_version, _current(life).awaited) == (GOOD, ())
    to_the_end(life)
    assert _current(life).policy_version == life.learner.policy_version > made
    assert learned(recorded.config, life.log, life.items_log, tmp_path / "again") == life.learner.weights_digest()


def test_a_rollback_that_can_not_be_is_none_at_all(life: Life) -> None:
    """Neither in the log nor in the pointer."""
    directory = life.state_dir / "online"
    before, ends = _current(life), life.log.end_offsets()
    with pytest.raises(ValueError, match=r"ends at 0: is it another log\?"):
        roll_back(MemoryLog(4), directory, GOOD, 0)
    (directory / "versions" / str(GOOD) / "manifest.json").unlink()
    with pytest.raises(BadArtifact, match="no manifest"):
        roll_back(life.log, directory, GOOD, 0)
    assert (_current(life), life.log.end_offsets()) == (before, ends)


def test_two_rollbacks_in_a_row(life: Life, recorded: Loop, tmp_path: Path) -> None:
    undone(life, recorded)
    life.live(lambda: life.learner.policy_version == BAD + 1)
    roll_back(life.log, life.state_dir / "online", GOOD, life._records[life._num_fed][0])
    to_the_end(life)
    assert life.learner.stats.num_rollbacks == 2
    assert life.learner.joiner.books().balanced
    assert learned(recorded.config, life.log, life.items_log, tmp_path / "again") == life.learner.weights_digest()


def test_a_version_that_was_undone_is_not_gone_back_to(life: Life, recorded: Loop, tmp_path: Path) -> None:
    """The command refuses it, before and after the learner has followed; a learner that is told so in the log goes back to what is left."""
    directory = life.state_dir / "online"
    done = undone(life, recorded)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"version {BAD} was undone by a rollback to version {GOOD}; what can .* above {BAD}"):
            roll_back(life.log, directory, BAD, 0)
        life.live(lambda: life.learner.policy_version == BAD + 1)
    life.log.append([Entry(b"", encode(Rollback(BAD, done.spans).control(1), life._records[life._num_fed][0]), 0)])
    to_the_end(life)
    assert life.learner.stats.num_rollbacks == 2
    assert life.learner.joiner.books().balanced
    assert learned(recorded.config, life.log, life.items_log, tmp_path / "again") == life.learner.weights_digest()
    answer = replay(recorded.config, archived(life, tmp_path / "archive"), tmp_path / "replayed", 0, 60)
    assert answer.weights_digest == life.learner.weights_digest()


def test_a_version_that_was_undone_is_refused_before_that_is_saved(life: Life, recorded: Loop) -> None:
    """The learner has followed, and makes its next version in a minute."""
    undone(life, recorded)
    life.live(lambda: life.learner.stats.num_rollbacks == 1)
    assert (life.learner.policy_version, _current(life).awaited) == (BAD, ())
    with pytest.raises(ValueError, match=rf"version {BAD} was undone by a rollback to version {GOOD}"):
        roll_back(life.log, life.state_dir / "online", BAD, 0)


def test_of_two_rollbacks_that_are_not_yet_followed_both_have_what_they_go_back_to(life: Life, recorded: Loop, tmp_path: Path) -> None:
    """A learner that is far behind comes to the first when its checkpoint would long be deleted; the last one's version is served."""
    directory = life.state_dir / "online"
    life.live(lambda: life.learner.policy_version == GOOD + 1)
    behind = life.feed_minutes(3)
    roll_back(life.log, directory, GOOD, behind)
    roll_back(life.log, directory, GOOD - 1, behind)
    while life.learner.stats.num_rollbacks < 2:
        assert _current(life).policy_version == GOOD - 1
        life.learner.step()
    assert (_current(life).policy_version, _current(life).awaited) == (GOOD - 1, ())
    to_the_end(life)
    assert learned(recorded.config, life.log, life.items_log, tmp_path / "again") == life.learner.weights_digest()


def test_a_learner_of_another_configuration_learns_nothing_of_what_was_undone(life: Life, recorded: Loop, tmp_path: Path) -> None:
    """It has no version of that number to go back to: other minutes, other versions. Another variant's rollback is none of its own."""
    done = undone(life, recorded)
    to_the_end(life)
    clean = without_poison(life.log, done, learned_through_ms=1)
    for setting in ("join.bucket_ms=30000", "join.bucket_ms=240000", "join.window_ms=30000"):
        config = with_settings(recorded.config, [setting])
        place = tmp_path / setting
        digest = learned(config, life.log, life.items_log, place / "rolled back")
        assert digest == learned(config, clean, life.items_log, place / "clean")
        assert digest == replay(config, archived(life, place), place / "replayed", 0, 60).weights_digest
    theirs = changed(life.log, lambda record, *_: of_variant(record, "another"))
    assert learned(recorded.config, theirs, life.items_log, tmp_path / "theirs") == learned(
        recorded.config, changed(life.log, without_controls), life.items_log, tmp_path / "none"
    )


def of_variant(record: Record, variant: str) -> Record:
    """Its rollback, if it is one, is another variant's."""
    if record.HasField("control"):
        record.control.arguments["variant"] = variant
    return record


def without_controls(record: Record, partition: int, offset: int) -> Record | Tick:
    return Tick(event_time_ms=0) if record.HasField("control") else record


def test_a_rollback_that_the_learner_never_reads_of_is_told_of_and_holds_nobody_up(
    recorded: Loop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its Control was deleted for its age before a learner that had stopped came there."""
    log = SqliteLog(tmp_path / "log.db")
    life = Life(recorded, tmp_path / "state", log)
    life.live(lambda: life.learner.policy_version == GOOD + 1)
    life.learner.close()
    roll_back(log, life.state_dir / "online", GOOD, 0)
    control = log.end_offsets()[0] - 1
    life.feed_minutes(2)
    log.drop_before([end - 5 for end in log.end_offsets()])
    life.learner = life.new(accept_gap=True)
    to_the_end(life)
    assert life.learner.stats.num_rollbacks == 0
    assert _current(life).policy_version == life.learner.policy_version > GOOD + 1
    assert f"the rollback to version {GOOD} is not followed: its Control at offset {control} is gone" in caplog.text
    life.learner.close()
    log.close()


def test_a_rollback_is_not_written_into_another_log(life: Life) -> None:
    """It would hold the pointer for ever, of a learner that never reads of it."""
    directory = life.state_dir / "online"
    before = _current(life)
    for other, said in (
        (MemoryLog(8), "has read a log of 4 partitions; memory: has 8"),
        (changed(life.log, lambda record, *_: Tick(event_time_ms=1)), "is not the record that version 2 has read: is it another log"),
    ):
        with pytest.raises(ValueError, match=said):
            roll_back(other, directory, GOOD, 0)
    assert _current(life) == before


def test_a_version_that_is_gone_can_not_be_gone_back_to(life: Life, recorded: Loop) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint of version 99 .* kept are "):
        roll_back(life.log, life.state_dir / "online", 99, 0)
    with pytest.raises(ValueError, match="nobody holds no versions"):
        roll_back(life.log, life.state_dir / "nobody", None, 0)
    assert _current(life).policy_version == GOOD
    assert roll_back(life.log, life.state_dir / "online", None, 0).version == GOOD - 1


# Beside a learner -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", [r"open \.tmp-LAST_GOOD\.json-\d+", POINTS["before the pointer is replaced"]])
def test_who_publishes_meanwhile_takes_nothing_from_a_rollback(life: Life, point: str) -> None:
    """Neither the pointer's file that is only half there, nor the version that it will name."""
    directory, is_there, may_go_on = life.state_dir / "online", threading.Event(), threading.Event()

    def pause() -> None:
        is_there.set()
        may_go_on.wait(1)

    with ThreadPoolExecutor(1) as beside:
        at_point(directory, point, pause)
        done = beside.submit(roll_back, life.log, directory, GOOD, 0)
        assert is_there.wait(30)
        for number in range(GOOD + 1, GOOD + 1 + VERSIONS_KEPT):
            publisher.publish(small_artifact(item_ids(8), number), directory, 0)
        may_go_on.set()
        assert done.result().version == GOOD
    publisher.load(_current(life))


def test_a_checkpoint_gone_back_to_while_the_next_is_saved_stays(life: Life) -> None:
    """Its age would have it deleted with this save, and the learner would find it gone."""
    directory = life.state_dir / "online"
    life.live(lambda: life.learner.policy_version == BAD)
    version = numbered(directory / "checkpoints", "ckpt-")[0][0]
    at_point(directory, POINTS["within save"], lambda: roll_back(life.log, directory, version, 0))
    life.live(lambda: life.learner.policy_version > BAD)
    assert life.learner.policy_version == BAD + 1
    life.live(lambda: life.learner.stats.num_rollbacks == 1)
    assert life.learner.stats.num_rollbacks == 1


# Controls -------------------------------------------------------------------------------------------------------------


def test_controls_wait_for_their_minute_and_outlive_a_restart() -> None:
    config = JoinConfig(variant="a", window_ms=1000, lateness_ms=0, disorder_ms=0, bucket_ms=1000)
    rollback = Rollback(3, (Span(0, 4, 9), Span(1, 0, 2)))
    controls = Controls(config, "")
    controls.take([Asked(0, 5, 7_500, rollback.control(1))])
    assert controls.next_due(5) is None
    controls = Controls.of(config, "", json.loads(json.dumps(controls.state())))
    due = controls.next_due(6)
    assert due is not None
    assert (due.minute, due.rollback) == (6, rollback)
    assert controls.next_due(100) is None


@pytest.mark.parametrize(
    "asked",
    [
        Asked(1, 5, 7_500, Rollback(3, ()).control(1)),
        Asked(0, 5, 7_500, Control(kind=ROLLBACK)),
        Asked(0, 5, 7_500, Control(kind=ROLLBACK, arguments={"version": "x", "spans": "[]"})),
        Asked(0, 5, 7_500, Control(kind=ROLLBACK, arguments={"version": "1", "spans": "[[1]]"})),
        Asked(0, 5, 7_500, Control(kind="something else")),
    ],
)
def test_what_can_not_be_obeyed_is_left_aside(asked: Asked) -> None:
    controls = Controls(JoinConfig(variant="a"), "")
    controls.take([asked])
    assert controls.next_due(10**9) is None


def _current(life: Life) -> publisher.Published:
    current = publisher.current(life.state_dir / "online")
    assert current is not None
    return current


def _digest_of_version(directory: Path, version: int) -> str:
    return weights_digest(read(directory / "versions" / str(version)).decoder)


def test_the_command_says_to_which_version_it_went(recorded: Loop, tmp_path: Path) -> None:
    life = Life(recorded, tmp_path / "state", log=SqliteLog(tmp_path / "log.db"))
    life.live(lambda: life.learner.policy_version == BAD)
    life.learner.close()
    life.log.close()
    command = typer.Typer()
    command.command()(rollback)
    arguments = [
        "--log",
        f"sqlite:///{tmp_path / 'log.db'}",
        "--state",
        str(life.state_dir),
        "--to",
        str(GOOD),
        "--preset",
        "tiny",
        "--json",
    ]
    said = only_object(CliRunner().invoke(command, arguments, catch_exceptions=False).stdout)
    assert (said["to_version"], said["from_version"], said["version"]) == (GOOD, BAD, version("recsys"))
