"""The worlds of the battery by name, and worlds that anyone brings. Knows nothing of variants or of what is measured.

All known ones are cut from one truth, fitted to the real clicks of the packaged sample: the users and videos seen most, with the
real exposures of these videos to these users as history.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module

import numpy as np
import polars as pl

from recsys.click_model import ClickModelConfig
from recsys.datasets import Sample, load_sample
from recsys.imports import Frames, make_frames
from recsys.loop import HISTORY_ENDS_MS
from recsys.truth import SampleTruthConfig, Truth, sample_truth
from recsys.worlds import SimulatedWorld, World, WorldConfig

NUM_USERS, NUM_ITEMS = 400, 500
DAY_MINUTES = 240
"""A world day: tastes, trends and traffic of a day, in four hours."""
CALM = WorldConfig(decisions_per_minute=30, organic_per_minute=4, drift=0.0, new_items=0.0, retired_items=0.0, freshness=0.0)


@dataclass(frozen=True, kw_only=True)
class Population:
    """One world as often as it is needed: `twin` makes it anew, with the same users, items and noise every time."""

    name: str
    twin: Callable[[int, int], World]
    """(seed, minutes) → the world at its beginning."""
    history: Frames | None = None
    """What another recommender showed before, and what came of it."""
    settings: tuple[str, ...] = ()
    """What every variant must be told of this world, as for `--set`."""

    @property
    def file_name(self) -> str:
        """The name as part of a file's name."""
        return self.name.replace(":", "_")


def population(name: str) -> Population:
    """A world by its name, or that of `package.module:function`. ValueError when there is none."""
    if name in WORLDS:
        return WORLDS[name]()
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"--world is {name!r}; it must be one of {', '.join(WORLDS)}, or package.module:function")
    try:
        make = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--world {name}: {error}") from None
    takes = len(inspect.signature(make).parameters)
    return Population(name=name, twin=lambda seed, minutes: make(*(seed, minutes)[:takes]))


def steady() -> Population:
    """Nothing changes."""
    return _known("steady", CALM)


def drift() -> Population:
    """Half of the users come to like something else, half of the way slowly, the rest in two steps; what is in fashion changes too."""
    return _known("drift", replace(CALM, drift=1.0))


WORLDS: dict[str, Callable[[], Population]] = {"steady": steady, "drift": drift}


def _known(name: str, config: WorldConfig) -> Population:
    sample, truth = _fitted()

    def twin(seed: int, minutes: int) -> World:
        return SimulatedWorld(truth, replace(config, seed=seed, minutes=minutes))

    return Population(name=name, twin=twin, history=_history(sample, truth))


@cache
def _fitted() -> tuple[Sample, Truth]:
    """The sample and the truth of its most active users and most shown videos."""
    sample = load_sample()
    truth = sample_truth(sample, SampleTruthConfig(num_users=NUM_USERS), ClickModelConfig())
    shown = dict(sample.log.group_by("item_id").len().iter_rows())
    count = np.array([shown.get(item.item_id, 0) for item in truth.items])
    return sample, truth.part(np.arange(NUM_USERS), np.sort(np.argsort(-count, kind="stable")[:NUM_ITEMS]))


def _history(sample: Sample, truth: Truth) -> Frames:
    """The real exposures of the truth's items to its users before it begins."""
    frames = sample.frames(until_ms=truth.start_ms - HISTORY_ENDS_MS, kinds=("click", "like", "dislike"), history=8)
    known = pl.col("item_id").is_in([item.item_id for item in truth.items])
    theirs = pl.col("user_id").is_in(truth.user_ids)
    return make_frames(frames.interactions.filter(known & theirs), frames.items.filter(known))
