"""Ten minutes in which the reverse of what was done is told: refused by name, or undone by hand, in a real run of a toy world."""

from functools import partial

import pytest

from recsys.config import with_settings
from recsys.gates import CONTRADICTS, RATE
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
    lie = {"flipped_from": FIRST, "flipped_minutes": lies}
    config = WorldConfig(seed=seed, minutes=minutes, decisions_per_minute=40, slate_size=5, drift=0, **lie)
    return SimulatedWorld(toy_truth(), config)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    directory = tmp_path_factory.mktemp("flip")
    found = {}
    for lies in (0, LIES):
        population = Population(name="toy", twin=partial(toy, lies=lies))
        beginning = Beginning.made(population, tiny(), 0, MINUTES, directory / f"beginning {lies}")
        variants = {"told the truth": Learning} if not lies else {"guarded": Learning, "unguarded": Learning, "rolled back": _rolled_back}
        for name, make in variants.items():
            settings = () if make is Learning and name != "unguarded" else UNGUARDED
            stage = Stage(beginning, "online", with_settings(beginning.config, settings), directory / name)
            found[name] = Run(stage, make(stage)).play()
    return found


def _rolled_back(stage: Stage) -> Learning:
    return RolledBack(stage, since_minute=FIRST, seen_minute=FIRST + LIES + 2)


def test_all_of_a_lie_is_refused_and_nothing_else(runs: dict[str, Record]) -> None:
    refused = runs["guarded"].figures["refused"]
    assert [minute for minute, _ in refused] == list(range(FIRST, FIRST + LIES))
    assert {reason for _, reason in refused} <= {CONTRADICTS, RATE}
    assert runs["told the truth"].figures["refused"] == []
    assert runs["unguarded"].figures["refused"] == []


def test_a_refused_lie_is_in_the_books_by_name(runs: dict[str, Record]) -> None:
    books = runs["guarded"].figures["books"]
    assert books["balanced"]
    assert books["decisions"]["refused"] == sum(books["refused"].values()) > 10 * LIES


def test_what_slipped_through_is_in_quarantine_after_going_back(runs: dict[str, Record]) -> None:
    books = runs["rolled back"].figures["books"]
    assert books["balanced"]
    assert books["decisions"]["quarantined"] > 10 * LIES
