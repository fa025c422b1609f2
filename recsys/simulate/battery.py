"""All runs of some worlds, seeds and variants, each kept as it finishes, so that what was stopped goes on where it was.

Knows nothing of what variants do or of how figures are made of runs.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from models.threads import one_thread
from recsys.config import Config, behavior_digest, with_settings
from recsys.offspring import bound_to
from recsys.simulate.diary import Record
from recsys.simulate.measures import Records
from recsys.simulate.run import Run
from recsys.simulate.stage import Beginning, Stage
from recsys.simulate.variants import RECIPES
from recsys.simulate.worlds import Population, population

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be run in one world."""

    population: Population
    config: Config
    minutes: int
    seeds: Sequence[int]
    variants: Sequence[str]

    def __post_init__(self) -> None:
        unknown = [name for name in self.variants if name not in RECIPES]
        if unknown:
            raise ValueError(f"--variants names {unknown[0]!r}; it must be of {', '.join(RECIPES)}")


def play(plans: Sequence[Plan], out: Path, jobs: int) -> None:
    """Make what `out` does not keep yet of these plans: a world and seed at a time in each of `jobs` processes.

    They know a world by its name, and end with this process, however it ends.
    """
    wanted: dict[tuple[str, int, int], Plan] = {}
    for plan in plans:
        for seed in plan.seeds:
            run = (plan.population.name, plan.minutes, seed)
            before = wanted[run].variants if run in wanted else ()
            wanted[run] = replace(plan, seeds=(seed,), variants=list(dict.fromkeys([*before, *plan.variants])))
    missing = [plan for plan in wanted.values() if None in _kept(plan, out).values()]
    with ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (os.getpid(),)) as processes:
        made = [
            processes.submit(_made, plan.population.name, plan.config, plan.minutes, plan.seeds[0], plan.variants, out) for plan in missing
        ]
        for future in made:
            future.result()


def played(plan: Plan, out: Path) -> Records:
    """The runs of a plan: those kept in `out` by an earlier call, and the others, made now."""
    kept = _kept(plan, out)
    records: dict[str, dict[int, Record]] = {name: {} for name in plan.variants}
    for seed in plan.seeds:
        beginning: Beginning | None = None
        state_dir = out / "state" / f"{plan.population.file_name}-{seed}"
        for name in plan.variants:
            record = kept[name, seed]
            if record is None:
                beginning = beginning or Beginning.made(plan.population, _config(plan), seed, plan.minutes, state_dir / "beginning")
                record = _run(beginning, name, state_dir)
                record.save(_path(plan, name, seed, out))
            records[name][seed] = record
        shutil.rmtree(state_dir, ignore_errors=True)
    return records


def _config(plan: Plan) -> Config:
    return with_settings(plan.config, plan.population.settings)


def _path(plan: Plan, name: str, seed: int, out: Path) -> Path:
    return out / "runs" / f"{plan.population.file_name}-{plan.minutes}-{seed}-{name}.npz"


def _kept(plan: Plan, out: Path) -> dict[tuple[str, int], Record | None]:
    """What an earlier call kept of each run, if it was made with this configuration."""
    digest = behavior_digest(_config(plan))
    runs = [(name, seed) for name in plan.variants for seed in plan.seeds]
    return {(name, seed): Record.kept(_path(plan, name, seed, out), "behavior_digest", digest) for name, seed in runs}


def _begin(original: int) -> None:
    """Of a process that makes runs: else it would wait for work for ever once its original is killed."""
    one_thread()
    if not bound_to(original):
        os._exit(1)


def _made(world: str, config: Config, minutes: int, seed: int, variants: Sequence[str], out: Path) -> None:
    played(Plan(population=population(world), config=config, minutes=minutes, seeds=(seed,), variants=variants), out)


def _run(beginning: Beginning, name: str, state_dir: Path) -> Record:
    recipe = RECIPES[name]
    stage = Stage(beginning, name, with_settings(beginning.config, recipe.settings), state_dir / name, live_memory=recipe.live_memory)
    record = Run(stage, recipe.make(stage)).play()
    slots, reward, expected, best = (float(record[column].sum()) for column in ("slots", "reward", "expected", "best"))
    LOG.info(
        "%s seed %d %s: %.4f per shown slot, %.3f of the oracle, %.0f s",
        beginning.population.name,
        beginning.seed,
        name,
        reward / max(slots, 1),
        expected / best if best else float("nan"),
        record.figures["seconds"],
    )
    return record
