"""All runs of some worlds, seeds and variants, each kept as it finishes, so that what was stopped goes on where it was.

Knows nothing of what variants do or of how figures are made of runs.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from recsys.config import Config, behavior_digest, with_settings
from recsys.simulate.diary import Record
from recsys.simulate.measures import Records
from recsys.simulate.run import Run
from recsys.simulate.stage import Beginning, Stage
from recsys.simulate.variants import RECIPES
from recsys.simulate.worlds import Population, population

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be run in one world. `jobs` above 1: so many seeds at a time, each in a process that knows the world by its name."""

    population: Population
    config: Config
    minutes: int
    seeds: Sequence[int]
    variants: Sequence[str]
    jobs: int = 1

    def __post_init__(self) -> None:
        unknown = [name for name in self.variants if name not in RECIPES]
        if unknown:
            raise ValueError(f"--variants names {unknown[0]!r}; it must be of {', '.join(RECIPES)}")


def played(plan: Plan, out: Path) -> Records:
    """The runs of a plan: those kept in `out` by an earlier call, and the others, made now."""
    world, config = plan.population, with_settings(plan.config, plan.population.settings)
    digest = behavior_digest(config)
    paths = {
        (name, seed): out / "runs" / f"{world.file_name}-{plan.minutes}-{seed}-{name}.npz" for name in plan.variants for seed in plan.seeds
    }
    kept = _kept(paths, digest)
    missing = sorted({seed for (_, seed), record in kept.items() if record is None})
    if plan.jobs > 1 and len(missing) > 1:
        _make(plan, missing, out)
        kept = _kept(paths, digest)
    records: dict[str, dict[int, Record]] = {name: {} for name in plan.variants}
    for seed in plan.seeds:
        beginning: Beginning | None = None
        state_dir = out / "state" / f"{world.file_name}-{seed}"
        for name in plan.variants:
            record = kept[name, seed]
            if record is None:
                beginning = beginning or Beginning.made(world, config, seed, plan.minutes, state_dir / "beginning")
                record = _run(beginning, name, state_dir)
                record.save(paths[name, seed])
            records[name][seed] = record
        shutil.rmtree(state_dir, ignore_errors=True)
    return records


def _kept(paths: Mapping[tuple[str, int], Path], digest: str) -> dict[tuple[str, int], Record | None]:
    """What an earlier call kept of each run, if it was made with this configuration."""
    return {run: Record.kept(path, "behavior_digest", digest) for run, path in paths.items()}


def _make(plan: Plan, seeds: Sequence[int], out: Path) -> None:
    """The runs of these seeds, kept in `out`, `plan.jobs` of them at a time."""
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(plan.jobs, get_context("spawn"), torch.set_num_threads, (threads,)) as others:
        made = [others.submit(_made, plan.population.name, plan.config, plan.minutes, seed, plan.variants, out) for seed in seeds]
        for future in made:
            future.result()


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
