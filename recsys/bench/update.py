"""What one minute's update costs: time and memory by decisions, catalogue and history, and where the time goes.

The lessons are made up, their sizes are those of a preset. Knows nothing of logs, joins or how well anything is learned.
"""

import cProfile
import pstats
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.successors import ACT
from recsys.bench.rank import forget_peak, peak_since_mb
from recsys.catalogue import Catalogue, item_key
from recsys.config import Config, behavior_digest
from recsys.features import Lesson
from recsys.live_model import LiveModel
from recsys.memory import View
from recsys.trainer import Seeds, Trainer
from streaming.events import Decision, Item, ItemChange

PAIRS = 20
"""Successors counted of each item before the update."""
WORDS = 500


@dataclass(frozen=True, kw_only=True)
class Minute:
    """One minute's work: so many own slates of `slots` items, read with so many memory rows."""

    decisions: int = 1_000
    catalogue: int = 7_583
    """As many items as the packaged sample has."""
    history: int = 64
    slots: int = 10


GROWTH = [
    Minute(decisions=10),
    Minute(decisions=150),
    *(Minute(catalogue=items) for items in (1_000, 7_583, 30_000)),
    *(Minute(history=rows) for rows in (8, 256)),
    Minute(decisions=10_000),
]
"""Each of the three grows while the other two stay."""


def bench_update(config: Config, minutes: Sequence[Minute], seed: int) -> dict[str, Any]:
    """The keys of `recsys bench update --json`: `update_rows`, and the profile of the last minute.

    `cpu_s` is the processor's time: what `update_s` would be on a machine without other work.
    """
    rows = []
    for minute in minutes:
        trainer, lessons = prepared(config, minute, seed)
        forget_peak()
        begun, begun_cpu = time.perf_counter(), time.process_time()
        learned(trainer, config, lessons)
        took = {"update_s": time.perf_counter() - begun, "cpu_s": time.process_time() - begun_cpu}
        rows.append(vars(minute) | took | {"peak_rss_mb": peak_since_mb()})
    trainer, lessons = prepared(config, minutes[-1], seed)
    with cProfile.Profile(time.process_time) as watched:
        learned(trainer, config, lessons)
    return {"update_rows": rows, "profile": _profile(watched)}


def prepared(config: Config, minute: Minute, seed: int) -> tuple[Trainer, list[Lesson]]:
    """An untrained model over a made-up catalogue, and what a minute gives it to learn."""
    random = np.random.default_rng(seed)
    decoder = replace(config.model.decoder, history=max(config.model.decoder.history, minute.history))
    catalogue = Catalogue()
    words = random.integers(0, WORDS, (minute.catalogue, 3)).tolist()
    for number, title in enumerate(words):
        item = Item(item_id=f"i{number}", title=" ".join(f"w{word}" for word in title))
        catalogue.apply(number, ItemChange(event_time_ms=1, item=item))
    model_config, nobody = replace(config.model, decoder=decoder), np.zeros((0, 2), np.int64)
    model = LiveModel.built(model_config, catalogue, config.memory, seed, nobody)
    model.decoder.eval()
    pairs = random.integers(1, minute.catalogue + 1, (2, PAIRS * minute.catalogue))
    model.count(pairs[0], pairs[1], np.ones(pairs.shape[1], np.float32), 1.0)
    trainer = Trainer(config.learner.trainer, model, Seeds(behavior_digest(config), seed))
    return trainer, [_lesson(minute, number, random) for number in range(minute.decisions)]


def learned(trainer: Trainer, config: Config, lessons: Sequence[Lesson]) -> None:
    """One update on these and on as many of the reservoir as the learner would draw."""
    share = config.learner.replay_share
    replayed = lessons[: min(config.learner.reservoir, round(len(lessons) * share / (1 - share)))]
    trainer.update(lessons, replayed, [trainer.model.num_rows] * (len(lessons) + len(replayed)), 0)


def _lesson(minute: Minute, number: int, random: np.random.Generator) -> Lesson:
    item_ids = tuple(f"i{item}" for item in random.permutation(minute.catalogue)[: minute.slots].tolist())
    history = random.integers(0, minute.catalogue, minute.history).tolist()
    kind_L, gap_L = random.integers(1, ACT + 3, minute.history), random.integers(0, 10, minute.history)
    view = View(np.array([item_key(f"i{item}") for item in history], np.int64), kind_L, gap_L)
    decision = Decision(
        decision_id=f"d{number}",
        user_id=f"u{number}",
        item_ids=item_ids,
        policy_version=1,
        context={"hour": str(number % 24)},
        items_offset=minute.catalogue,
        way="slot",
        temperature=1.0,
        floor=0.02,
        novelty_bonus=0.1,
        seen_excluded=True,
    )
    rewards = tuple((random.random(len(item_ids)) < 0.2).astype(float).tolist())
    logged = (-float(np.log(minute.catalogue)),) * len(item_ids)
    return Lesson(decision, view, item_ids, rewards, (True,) * len(item_ids), logged, own=True)


def _profile(watched: cProfile.Profile) -> list[dict[str, Any]]:
    """The functions that take most of the processor's time themselves, with their shares of it."""
    own_s = {name: row[2] for name, row in pstats.Stats(watched).stats.items()}  # type: ignore[attr-defined]
    most = sorted(own_s, key=lambda name: -own_s[name])[:12]
    return [{"function": f"{name[0].rpartition('/')[2]}:{name[2]}", "share": own_s[name] / sum(own_s.values())} for name in most]
