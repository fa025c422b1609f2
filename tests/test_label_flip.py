"""Ten minutes in which the reverse of what was done is told: refused by name, or undone by hand, in a real run of a toy world."""

from functools import partial
from pathlib import Path

import pytest

from recsys.config import with_settings
from recsys.gates import CONTRADICTS
from recsys.presets import tiny
from recsys.simulate.diary import Record
from recsys.simulate.run import Run
from recsys.simulate.stage import Beginning, Stage
from recsys.simulate.variants import UNGUARDED, Learning, RolledBack
from recsys.simulate.worlds import Population
from recsys.truth import toy_truth
from recsys.worlds import SimulatedWorld, World, WorldConfig

FIRST, LIES, MINUTES = 12, 5, 26


def toy(seed: int, minutes: int, lies: int) -> World:
    config = WorldConfig(seed=seed, minutes=minutes, decisions_per_minute=40, slate_size=5, drift=0, flipped_from=FIRST, flipped_minutes=lies)
    return SimulatedWorld(toy_truth(), config)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    directory = tmp_path_factory.mktemp("flip")
    found = {}
    for lies in (0, LIES):
        beginning = Beginning.made(Population(name="toy", twin=partial(toy, lies=lies)), tiny(), 0, MINUTES, directory / f"beginning {lies}")
        variants = {"told the truth": Learning} if not lies else {"guarded": Learning, "unguarded": Learning, "rolled back": _rolled_back}
        for name, make in variants.items():
            settings = () if make is Learning and name != "unguarded" else UNGUARDED
            stage = Stage(beginning, "online", with_settings(beginning.config, settings), directory / name)
            found[name] = Run(stage, make(stage)).play()
    return found


def _rolled_back(stage: Stage) -> Learning:
    return RolledBack(stage, since_minute=FIRST, seen_minute=FIRST + LIES + 2)


def share(run: Record, first: int, last: int) -> float:
    rows = (run["minute"] >= first) & (run["minute"] < last)
    return float(run["expected"][rows].sum() / run["best"][rows].sum())


def test_all_of_a_lie_is_refused_and_nothing_else(runs: dict[str, Record]) -> None:
    assert runs["guarded"].figures["refused"] == [(minute, CONTRADICTS) for minute in range(FIRST, FIRST + LIES)]
    assert runs["told the truth"].figures["refused"] == []
    assert runs["unguarded"].figures["refused"] == []


def test_a_refused_lie_is_in_the_books_by_name(runs: dict[str, Record]) -> None:
    books = runs["guarded"].figures["books"]
    assert books["balanced"]
    assert books["decisions"]["refused"] == books["refused"][CONTRADICTS] > 10 * LIES


def test_what_is_refused_costs_little_and_what_is_learned_much(runs: dict[str, Record], capsys: pytest.CaptureFixture[str]) -> None:
    while_it_matters = FIRST + 2, FIRST + LIES + 2
    shares = {name: share(run, *while_it_matters) for name, run in runs.items()}
    with capsys.disabled():
        print(shares, {name: share(run, FIRST + LIES + 3, MINUTES) for name, run in runs.items()}, {name: run.figures["seconds"] for name, run in runs.items()})
    assert shares["guarded"] > 0.95 * shares["told the truth"]
    assert shares["unguarded"] < 0.9 * shares["told the truth"]


def test_going_back_brings_back_what_slipped_through(runs: dict[str, Record]) -> None:
    afterwards = FIRST + LIES + 3, FIRST + LIES + 6
    assert share(runs["rolled back"], *afterwards) > share(runs["unguarded"], *afterwards)
    books = runs["rolled back"].figures["books"]
    assert books["balanced"]
    assert books["decisions"]["quarantined"] > 10 * LIES
