"""The worlds of the battery by name, and worlds that anyone brings. Knows nothing of variants or of what is measured.

All known ones are cut from one truth, fitted to the real clicks of the packaged sample: the users and videos seen most, with the
real exposures of these videos to these users as history, and what these users would have made of them.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import polars as pl

from recsys.click_model import ClickModelConfig
from recsys.datasets import Sample, load_sample
from recsys.imports import Frames, make_frames
from recsys.loop import HISTORY_ENDS_MS, sample_history
from recsys.truth import SampleTruthConfig, Truth, sample_truth
from recsys.worlds import SimulatedWorld, World, WorldConfig

NUM_USERS, NUM_ITEMS = 400, 500
MOST_USERS = 1500
FLOODERS, AWAY = 0.01, 0.3
"""Shares of the users who flood in `hostile`, and who go away in `absence`."""
FLIPPED_FROM, FLIPPED_MINUTES = 60, 10
"""The minute with which `flipped` begins to lie, and for how many."""
DISLIKES_COUNT = ("join.reward=weighted:click=1,dislike=-2",)
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
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # where somebody's own module is, whose program is elsewhere
    try:
        make = getattr(import_module(module), function)
        takes = len(inspect.signature(make).parameters)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"--world {name}: {error}") from None
    if takes > 2:
        raise ValueError(f"--world {name} takes {takes} arguments; a world is made of (seed), (seed, minutes) or of nothing")
    return Population(name=name, twin=lambda seed, minutes: make(*(seed, minutes)[:takes]))


def steady() -> Population:
    """Nothing changes."""
    return _known("steady", CALM)


def drift() -> Population:
    """Half of the users come to like something else, half of the way slowly, the rest in two steps; what is in fashion changes too."""
    return _known("drift", replace(CALM, drift=1.0))


def fresh() -> Population:
    """A fifth of the catalogue arrives during the run, another fifth leaves."""
    return _known("fresh", replace(CALM, new_items=0.2, retired_items=0.25, freshness=0.5))


def crowd() -> Population:
    """New users all the time: five of six come for an hour each."""
    return _known("crowd", replace(CALM, new_users=0.85), num_users=1500)


def delayed() -> Population:
    """Clicks come up to four minutes after their slate, a tenth of all that is told is lost; everybody waits five minutes for them."""
    return _known(
        "delayed", replace(CALM, slowest_s=240, lost=0.1), settings=("join.window_ms=300000",), history_ends_ms=2 * HISTORY_ENDS_MS
    )


def noisy() -> Population:
    """One slot in fifty is clicked, the upper ones far more, and some by accident."""
    return _known("noisy", replace(CALM, position_bias=0.5, accidents=0.004), less_likely=2.6)


def hostile() -> Population:
    """One user in a hundred floods one item with clicks; the items of some publishers are clicked and then disliked."""
    return _known("hostile", replace(CALM, dislike_cost=2.0, flooders=FLOODERS, bait=0.03), settings=DISLIKES_COUNT)


def peaceful() -> Population:
    """The world `hostile` without what is hostile in it: bait and flooders are items and users like others."""
    return _known("peaceful", replace(CALM, dislike_cost=2.0), settings=DISLIKES_COUNT)


def flipped() -> Population:
    """After an hour, what is told of ten minutes is the reverse of what was done."""
    return _known("flipped", replace(CALM, flipped_from=FLIPPED_FROM, flipped_minutes=FLIPPED_MINUTES))


def absence() -> Population:
    """Three users of ten stay away for six of eight hours and come back."""
    return _known("absence", replace(CALM, away=AWAY))


WORLDS: dict[str, Callable[[], Population]] = {
    make.__name__: make for make in (steady, drift, fresh, crowd, delayed, noisy, hostile, peaceful, flipped, absence)
}
BATTERY: Mapping[str, int] = {"drift": 5, "steady": 5, "fresh": 5, "crowd": 5, "delayed": 3, "noisy": 3, "hostile": 3}
"""The worlds that every variant is run in, and with how many seeds."""


def _known(
    name: str,
    config: WorldConfig,
    settings: tuple[str, ...] = (),
    num_users: int = NUM_USERS,
    less_likely: float = 0.0,
    history_ends_ms: int = HISTORY_ENDS_MS,
) -> Population:
    """`less_likely`: logits that every click is less likely by; `history_ends_ms`: before the world begins, when all has closed."""
    sample, whole = _fitted()
    truth = replace(whole, base=whole.base - less_likely).part(np.arange(num_users), np.arange(NUM_ITEMS))

    def twin(seed: int, minutes: int) -> World:
        return SimulatedWorld(truth, replace(config, seed=seed, minutes=minutes))

    return Population(name=name, twin=twin, history=_history(sample, truth, config, history_ends_ms), settings=settings)


@cache
def _fitted() -> tuple[Sample, Truth]:
    """The sample and the truth of its users, the most active first, and its videos, the most shown first."""
    sample = load_sample()
    truth = sample_truth(sample, SampleTruthConfig(num_users=MOST_USERS), ClickModelConfig())
    shown = dict(sample.log.group_by("item_id").len().iter_rows())
    count = np.array([shown.get(item.item_id, 0) for item in truth.items])
    users, items = np.argsort(-truth.activity, kind="stable"), np.argsort(-count, kind="stable")
    return sample, truth.part(users, items[:NUM_ITEMS])


def _history(sample: Sample, truth: Truth, config: WorldConfig, ends_ms: int) -> Frames:
    """Of `sample_history` what is of the world's items at its start, and of its users then."""
    world, frames = SimulatedWorld(truth, config), sample_history(sample, truth, ends_ms)
    known = pl.col("item_id").is_in([item.item_id for item in world.catalog()])
    theirs = pl.col("user_id").is_in(world.users())
    return make_frames(frames.interactions.filter(known & theirs), frames.items.filter(known))
