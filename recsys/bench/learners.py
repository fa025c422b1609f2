"""The learner rules against each other: in the worlds of `recsys simulate`, served fresh and stale, each at its best step size.

Knows nothing of what a rule is. All runs of a world and seed begin with the same log and weights and meet the same population,
so their rewards are paired. Tuning is alike: each rule gets the same step sizes in the first world, at the first staleness, on as many
seeds as are reported and none of them, and keeps its best.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.losses import POLICY_LOSSES
from recsys.config import Config, behavior_digest, with_settings
from recsys.simulate.diary import Record
from recsys.simulate.run import Run
from recsys.simulate.stage import Beginning, Stage
from recsys.simulate.variants import Learning
from recsys.simulate.worlds import WORLDS, population

LOG = logging.getLogger(__name__)

STEP_SIZES = (5e-4, 1e-3, 2e-3, 4e-3)
TUNED_FROM = 1000
"""Seeds that are tuned on lie so far behind those that are reported: on one seed, luck chooses."""
NONE = "none"
"""No policy's gradient at all: rewards reach the choice by what they make expected alone."""
LEARNERS = (NONE, *POLICY_LOSSES)


@dataclass(frozen=True, kw_only=True)
class Tournament:
    """Who plays where, and how long."""

    config: Config
    learners: Sequence[str] = LEARNERS
    worlds: Sequence[str] = ("drift", "noisy")
    staleness_minutes: Sequence[int] = (1, 10)
    seeds: Sequence[int] = (0, 1, 2)
    minutes: int = 60
    step_sizes: Sequence[float] = STEP_SIZES

    def __post_init__(self) -> None:
        unknown = [name for name in self.learners if name not in LEARNERS]
        if unknown:
            raise ValueError(f"--learners names {unknown[0]!r}; it must be of {', '.join(LEARNERS)}")
        for world in self.worlds:
            if world not in WORLDS and ":" not in world:
                raise ValueError(f"--worlds names {world!r}; it must be of {', '.join(WORLDS)}, or package.module:function")
        for minutes in self.staleness_minutes:
            if minutes < 1:
                raise ValueError(f"--staleness names {minutes}; a version answers for a minute at least")


@dataclass(frozen=True, kw_only=True)
class Match:
    """One run: a rule at a step size, each version answering for so many minutes."""

    learner: str
    step_size: float
    staleness_minutes: int

    @property
    def settings(self) -> list[str]:
        """What it changes in the configuration."""
        objective = "learner.trainer.objective"
        rule = [f"{objective}.policy={self.learner}", f"{objective}.policy_weight=1.0"] if self.learner != NONE else []
        return [*rule, f"learner.trainer.lr={self.step_size}"]


def bench_learners(plan: Tournament, out: Path) -> dict[str, Any]:
    """The keys of `recsys bench learners --json`. Finished runs are kept in `out` and not made again."""
    best = _tuned(plan, out)
    rows = []
    for world in plan.worlds:
        for seed in plan.seeds:
            arena = Arena(plan, world, seed, out)
            for minutes in plan.staleness_minutes:
                for learner in plan.learners:
                    match = Match(learner=learner, step_size=best[learner], staleness_minutes=minutes)
                    rows.append(
                        {"learner": learner, "world": world, "staleness_minutes": minutes, "seed": seed, "reward": arena.reward(match)}
                    )
    return {"rows": rows, "table": table(rows), "step_sizes": best, "tried": list(plan.step_sizes), "minutes": plan.minutes}


def _tuned(plan: Tournament, out: Path) -> dict[str, float]:
    """The step size with which each rule earned most, over all seeds that are tuned on."""
    earned = {(learner, size): 0.0 for learner in plan.learners for size in plan.step_sizes}
    for seed in plan.seeds:
        arena = Arena(plan, plan.worlds[0], seed + TUNED_FROM, out)
        for learner, size in earned:
            earned[learner, size] += arena.reward(Match(learner=learner, step_size=size, staleness_minutes=plan.staleness_minutes[0]))
    return {learner: max(plan.step_sizes, key=lambda size: earned[learner, size]) for learner in plan.learners}


class Arena:
    """One world and seed: the beginning is made once, and only if there is something to run."""

    def __init__(self, plan: Tournament, world: str, seed: int, out: Path) -> None:
        self._plan, self._world, self._seed, self._out = plan, population(world), seed, out
        self._config = with_settings(plan.config, self._world.settings)
        self._beginning: Beginning | None = None

    def reward(self, match: Match) -> float:
        """Mean reward of a shown slot."""
        config = with_settings(self._config, match.settings)
        name = f"{self._world.file_name}-{self._plan.minutes}-{self._seed}-{match.learner}-{match.step_size:g}-{match.staleness_minutes}"
        path = self._out / "runs" / f"{name}.npz"
        record = Record.kept(path, "match_digest", behavior_digest(config))
        if record is None:
            record = self._played(match, config)
            record.save(path)
        reward = float(record["reward"].sum() / record["slots"].sum())
        LOG.info("%s: %.4f per shown slot, %.0f s", name, reward, record.figures["seconds"])
        return reward

    def _played(self, match: Match, config: Config) -> Record:
        if self._beginning is None:
            state = self._out / "state" / "beginning"
            self._beginning = Beginning.made(self._world, self._config, self._seed, self._plan.minutes, state)
        stage = Stage(self._beginning, "online", config, self._out / "state" / "online")
        record = Run(stage, Learning(stage, match.staleness_minutes)).play()
        return Record(record.columns, record.user_ids, dict(record.figures) | {"match_digest": behavior_digest(config)})


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over seeds, and the mean difference to the first learner, seed by seed, with twice its standard error."""
    found = []
    for world, minutes in dict.fromkeys((row["world"], row["staleness_minutes"]) for row in rows):
        cell = [row for row in rows if (row["world"], row["staleness_minutes"]) == (world, minutes)]
        by_learner = {learner: {row["seed"]: row["reward"] for row in cell if row["learner"] == learner} for learner in _names(cell)}
        first = next(iter(by_learner.values()))
        for learner, by_seed in by_learner.items():
            difference = np.array([reward - first[seed] for seed, reward in by_seed.items()])
            error = 2 * float(difference.std(ddof=1)) / np.sqrt(len(difference)) if len(difference) > 1 else None
            found.append(
                {
                    "world": world,
                    "staleness_minutes": minutes,
                    "learner": learner,
                    "reward": float(np.mean(list(by_seed.values()))),
                    "to_first": float(difference.mean()),
                    "two_errors": error,
                }
            )
    return found


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["learner"] for row in rows))
