"""All runs of some worlds, seeds and variants, each kept as it finishes, so that what was stopped goes on where it was.

Knows nothing of what variants do or of how figures are made of runs.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recsys.config import Config, behavior_digest, with_settings
from recsys.simulate.diary import Record
from recsys.simulate.measures import Records
from recsys.simulate.run import Run
from recsys.simulate.stage import Beginning, Stage
from recsys.simulate.variants import RECIPES
from recsys.simulate.worlds import Population

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


def played(plan: Plan, out: Path) -> Records:
    """The runs of a plan: those kept in `out` by an earlier call, and the others, made now."""
    population, config = plan.population, with_settings(plan.config, plan.population.settings)
    records: dict[str, dict[int, Record]] = {name: {} for name in plan.variants}
    for seed in plan.seeds:
        beginning: Beginning | None = None
        state_dir = out / "state" / f"{population.file_name}-{seed}"
        for name in plan.variants:
            path = out / "runs" / f"{population.file_name}-{plan.minutes}-{seed}-{name}.npz"
            record = Record.kept(path, "behavior_digest", behavior_digest(config))
            if record is None:
                beginning = beginning or Beginning.made(population, config, seed, plan.minutes, state_dir / "beginning")
                record = _run(beginning, name, state_dir)
                record.save(path)
            records[name][seed] = record
        shutil.rmtree(state_dir, ignore_errors=True)
    return records


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
