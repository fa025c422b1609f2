"""The tournament of learner rules: paired runs, tuned alike, kept."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from recsys.bench.learners import STEP_SIZES, Tournament, bench_learners, table
from recsys.cli import app
from recsys.presets import tiny

FOREIGN = "tests.foreign_world:make_world"


def test_the_command_prints_the_contract_and_goes_on_where_it_was(tmp_path: Path) -> None:
    arguments = ["bench", "learners", "--worlds", FOREIGN, "--learners", "topr,sft", "--staleness", "1", "--seeds", "1"]
    arguments += ["--minutes", "4", "--preset", "tiny", "--out", str(tmp_path), "--json"]
    first, again = (json.loads(CliRunner().invoke(app, arguments).stdout) for _ in range(2))
    assert [set(row) for row in first["rows"]] == 2 * [{"learner", "world", "staleness_minutes", "seed", "reward"}]
    assert first["rows"] == again["rows"]
    # each rule with each step size, and the best on the seed that counts
    assert len(list((tmp_path / "runs").glob("*.npz"))) == 2 * (len(STEP_SIZES) + 1)
    assert set(first["step_sizes"]) == {"topr", "sft"}


def test_a_kept_run_of_another_configuration_is_made_again(tmp_path: Path) -> None:
    once = Tournament(config=tiny(), learners=["topr"], worlds=[FOREIGN], staleness_minutes=[1], seeds=[0], minutes=3, step_sizes=[1e-3])
    bench_learners(once, tmp_path)
    before = {kept: kept.stat().st_mtime_ns for kept in (tmp_path / "runs").glob("*.npz")}
    assert {kept.name.split("-")[2] for kept in before} == {"0", "1000"}
    bench_learners(once, tmp_path)
    assert {kept: kept.stat().st_mtime_ns for kept in before} == before


def test_differences_are_paired_by_seed() -> None:
    def row(learner: str, seed: int, reward: float) -> dict[str, object]:
        return {"learner": learner, "world": "w", "staleness_minutes": 1, "seed": seed, "reward": reward}

    rows = [row("topr", 0, 0.2), row("topr", 1, 0.6), row("sft", 0, 0.1), row("sft", 1, 0.4)]
    first, second = table(rows)
    assert first["to_first"] == 0
    assert second["reward"] == pytest.approx(0.25)
    assert second["to_first"] == pytest.approx(-0.15)
    assert second["two_errors"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"worlds": ["drift", "nowhere"]}, "--worlds names 'nowhere'"),
        ({"staleness_minutes": [1, 0]}, "--staleness names 0"),
        ({"learners": ["luck"]}, "--learners names 'luck'; it must be of none"),
    ],
)
def test_what_can_not_be_played_is_refused_before_anything_is(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Tournament(config=tiny(), **wrong)
