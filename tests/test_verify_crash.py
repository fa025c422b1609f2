"""`recsys verify crash`, as a user runs it, in its short form; and that it can see what it looks for."""

import dataclasses
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from recsys import checkpoint
from recsys.checkpoint import Checkpoint
from recsys.config import Config
from recsys.presets import tiny
from recsys.processes import Place
from recsys.verify.commands import crash
from recsys.verify.crash import ALONE, WRITES, Verified, verify_crash
from recsys.verify.faults import POINTS
from recsys.verify.journal import Learned, in_weights
from recsys.verify.lives import learn
from tests.running import apart, recsys
from tests.runs import only_object

KILLS = 10


def sabotaged(names: tuple[str, ...], out: Path) -> Verified:
    """What is found of a learner that saves some things as they were at the save before. For a process of its own, because it forks."""

    def save(directory: Path, saved: Checkpoint, *others: Any) -> None:  # in a copy of the learner, which knows of no save before
        before = checkpoint.restore(directory) or saved
        real(directory, dataclasses.replace(saved, **{name: getattr(before, name) for name in names}), *others)

    def work(config: Config, place: Place, stop: threading.Event) -> None:
        checkpoint.save = save
        shutil.rmtree(place.state_dir / "online" / "versions", ignore_errors=True)  # by its versions a learner sees it itself
        (place.state_dir / "online" / "CURRENT.json").unlink(missing_ok=True)
        learn(config, place, stop)

    real = checkpoint.save
    return verify_crash(tiny(), f"sqlite:///{out / 'events.db'}", out, 2, 0, work)


@pytest.mark.parametrize("log", ["sqlite", "kafka"])
def test_a_learner_killed_ten_times_ends_as_one_that_never_was(request: pytest.FixtureRequest, tmp_path: Path, log: str) -> None:
    """Half of the named points on each log: 100 kills come to every one several times. On Kafka no small disk can be had."""
    options, environment = [], {}
    if log == "kafka":
        options = ["--log", "kafka", "--bootstrap", request.getfixturevalue("broker").bootstrap, "--seed", "1"]
        environment = {"PATH": ""}  # there is no `mount`
    done = recsys("verify", "crash", "--kills", str(KILLS), "--out", str(tmp_path), "--json", *options, **environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = only_object(done.stdout)
    assert (found["log"], found["kills"], found["identical"]) == (log, KILLS, True), found["differing"]
    assert (found["trained_twice"], found["lost"], found["unreadable"]) == (0, 0, 0)
    struck = Counter(found["faults"])
    assert struck["full disk"] == 1
    assert log == "sqlite" or found["disk"] == "RLIMIT_FSIZE"
    assert struck["any moment"] == 4
    assert len(struck.keys() & {*POINTS, *WRITES, *ALONE}) == 6
    assert sum(count for name, count in struck.items() if name.startswith(("torn", "flipped"))) == 4
    assert found["examples"] > 100
    assert 0 < found["recovery_s"]["p50"] <= found["recovery_s"]["max"]


def test_what_is_saved_too_early_or_too_late_is_seen(tmp_path: Path) -> None:
    old_weights = apart(sabotaged, ("model", "arrays"), tmp_path / "weights")
    old_offsets = apart(sabotaged, ("joiner",), tmp_path / "offsets")
    assert old_weights.lost > 0
    assert old_weights.trained_twice == 0
    assert old_offsets.trained_twice > 0
    assert old_offsets.lost == 0
    assert not any(found.holds or found.identical for found in (old_weights, old_offsets))


def test_only_what_led_to_the_weights_is_counted() -> None:
    def learned(before: str, after: str, *ids: str) -> Learned:
        return Learned(0.0, before, after, list(ids))

    chain = [learned("a", "b", "1", "2"), learned("b", "c", "3"), learned("c", "d", "2")]
    assert in_weights([*chain, learned("c", "x", "4")], "d") == Counter({"1": 1, "2": 2, "3": 1})
    assert in_weights([*chain, *chain], "c") == Counter({"1": 1, "2": 1, "3": 1})
    assert in_weights(chain, "elsewhere") == Counter()


def test_what_no_run_left_there_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds what no `verify crash` left there"):
        crash(out=tmp_path)
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"log": "files"}, "--log is 'files'; it must be sqlite or kafka"),
        ({"log": "kafka"}, "--log kafka needs --bootstrap"),
        ({"bootstrap": "127.0.0.1:1"}, "--log kafka needs --bootstrap"),
    ],
)
def test_bad_options_are_refused(options: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        crash(**options)
