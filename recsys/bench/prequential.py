"""Predict, then learn: the exposures of a real log in order of time, each known only after its delay. Knows no slates of our own.

Every row of the log is what somebody else's recommender showed; it goes through the real import, joiner and memory, and the real
trainer learns the value term of the real objective, block by block of `every` minutes. A block is scored with what had been
learned when it began: blocks whose windows (W + L + D) had closed by then. Feedback comes time_ms + play_time_ms, at most 50 s, after
the exposure: KuaiRand tells no click time, so that is an assumption. Shapes: Q shown slots.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from models.content import FloatArray
from models.objective import ObjectiveConfig, objective
from models.trie import IntArray
from recsys.bench.rates import RATES, RateModel, Shown
from recsys.catalogue import Catalogue
from recsys.config import Config, behavior_digest
from recsys.datasets import load_kuairand
from recsys.features import BatchMaker, Lesson, lessons
from recsys.imports import Frames, import_logs
from recsys.live_model import ItemsFeed, LiveModel
from recsys.memory import Memory, View
from recsys.trainer import Seeds, Trainer
from streaming.joiner import Joiner
from streaming.log import MemoryLog

LOG = logging.getLogger(__name__)

MINUTE_MS, DAY_MINUTES, HOUR_MS = 60_000, 1440, 3_600_000
SETTINGS = (
    *("learner.trainer.objective.likelihood_weight=0", "learner.trainer.objective.value_weight=1"),
    *("learner.trainer.lr=2e-3", "learner.trainer.user_cap=1000000", "learner.trainer.warm_start.epochs=1"),
)
"""The value term alone, in larger steps: before the first day there is nothing to start from."""
WINDOW_MS = HOUR_MS
"""What one user was shown within this is ranked against itself for NDCG, by what was known when he was shown the first of it.

Ranked as each exposure came, who has learned of the ones before loses: of a window in which something was clicked and something was
not, a click makes all that comes after look likelier and in truth less likely. On KuaiRand that is .013 (models/EXPERIMENTS.md).
"""


@dataclass(frozen=True, kw_only=True)
class PrequentialConfig:
    """What is read and how often is learned."""

    days: int = 14
    every: int = 10
    """Minutes of a block."""
    first_days: int = 1
    """Days after which the frozen copy stands still; the daily retrain has nothing before the first night."""
    history: int = 20
    """Videos of each user before the log, the newest; 0 for none."""
    daily: bool = True
    still_users: bool = False
    """Also what memory is worth: the same with users remembered as of the end of the first days."""

    def __post_init__(self) -> None:
        for name, low, high in (("days", 1, 1000), ("every", 1, DAY_MINUTES), ("first_days", 1, 1000), ("history", 0, 50)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"prequential {name} is {getattr(self, name)}; it must be {low}..{high}")
        if DAY_MINUTES % self.every:
            raise ValueError(f"prequential every is {self.every}; a day of {DAY_MINUTES} minutes must be a multiple of it")


@dataclass(frozen=True)
class Block:
    """The exposures of one block, as lessons and as columns."""

    number: int
    lessons: list[Lesson]
    shown: Shown
    still: list[Lesson] = field(default_factory=list)
    """The lessons, read with users as they were at the end of the first days; empty where nobody asks for it."""


@dataclass(frozen=True)
class Stream:
    """A whole log, block by block; what users and items were when each was shown is in its lessons."""

    blocks: list[Block]
    windows: Mapping[int, Block]
    """By number of a block, all of the windows that begin in it, each read with the memory of its first exposure."""
    catalogue: Catalogue
    lag: int
    """A block is known to those that score the one so many later."""
    per_day: int


Predicted = dict[str, list[FloatArray]]
"""By contestant, chances block by block."""


class Contestant(Protocol):
    """Whoever predicts. Learns each block once, in order, and not before it is known."""

    def chances(self, block: Block) -> FloatArray:
        """Of a click on each shown slot, (Q,), 0..1."""

    def learn(self, block: Block) -> None:
        """Take the labels of one block."""

    def day_begins(self, day: int) -> None:
        """All blocks known now were taken."""


class OnlineValue:
    """The value head of a live model, learning every block; `still`: with users who are remembered as of the first days."""

    def __init__(self, config: Config, catalogue: Catalogue, seed: int, *, still: bool = False) -> None:
        self.still = still
        seeds = Seeds(behavior_digest(config), seed)
        model = LiveModel.built(config.model, catalogue, config.memory, seeds.of("weights", 0), np.zeros((0, 2), np.int64))
        model.decoder.eval()
        self.model, self.trainer = model, Trainer(config.learner.trainer, model, seeds)

    def chances(self, block: Block) -> FloatArray:
        """See Contestant."""
        return chances(self.model, self._lessons(block))

    def learn(self, block: Block) -> None:
        """See Contestant."""
        self.trainer.update(self._lessons(block), [], [self.model.num_rows] * len(block.lessons), block.number)

    def day_begins(self, day: int) -> None:
        """See Contestant."""

    def _lessons(self, block: Block) -> list[Lesson]:
        return block.still if self.still else block.lessons


class FrozenValue:
    """`online` as it was after the first days; `still`: its users too."""

    def __init__(self, online: OnlineValue, first_days: int, *, still: bool = False) -> None:
        self._online, self._first_days, self._still = online, first_days, still
        self._model = online.model

    def chances(self, block: Block) -> FloatArray:
        """See Contestant."""
        return chances(self._model, block.still if self._still else block.lessons)

    def learn(self, block: Block) -> None:
        """See Contestant."""

    def day_begins(self, day: int) -> None:
        """See Contestant."""
        if day == self._first_days:
            self._model = copy.deepcopy(self._online.model)


class DailyValue:
    """Made anew every night and trained on all there is; the warm start of production."""

    def __init__(self, config: Config, catalogue: Catalogue, seed: int) -> None:
        self._made_of = config, catalogue, seed
        self._value, self._known = OnlineValue(*self._made_of), list[Lesson]()

    def chances(self, block: Block) -> FloatArray:
        """See Contestant."""
        return self._value.chances(block)

    def learn(self, block: Block) -> None:
        """See Contestant."""
        self._known += block.lessons

    def day_begins(self, day: int) -> None:
        """See Contestant."""
        if self._known:
            self._value = OnlineValue(*self._made_of)
            self._value.trainer.warm_start(self._known)


class RateContestant:
    """One of the online rates."""

    def __init__(self, model: RateModel) -> None:
        self._model = model

    def chances(self, block: Block) -> FloatArray:
        """See Contestant."""
        return self._model.chances(block.shown)

    def learn(self, block: Block) -> None:
        """See Contestant."""
        self._model.learn(block.shown)

    def day_begins(self, day: int) -> None:
        """See Contestant."""


@torch.no_grad()
def chances(model: LiveModel, given: Sequence[Lesson]) -> FloatArray:
    """The values of the shown slots of some lessons, (Q,), each read with the memory of its own time."""
    config, shelf = model.decoder.config, model.shelf(model.catalogue.next_offset)
    batch = BatchMaker(model.catalogue, shelf, config.rows_read, config.features).batch(given, [model.num_rows] * len(given))
    value_alone = ObjectiveConfig(policy_weight=0, likelihood_weight=0)
    chance_Q: FloatArray = objective(model.scored(shelf, [batch], value_alone), batch, value_alone).surprise.chances().numpy()
    return chance_Q


def bench_prequential(data: Path, config: Config, plan: PrequentialConfig, seed: int) -> dict[str, Any]:
    """The keys of `recsys bench prequential --json`."""
    stream = read_stream(load_kuairand(data, history=plan.history), config, plan)
    online = OnlineValue(config, stream.catalogue, seed)
    contestants: dict[str, Contestant] = {"online": online, "offline": FrozenValue(online, plan.first_days)}
    if plan.daily:
        contestants["daily"] = DailyValue(config, stream.catalogue, seed)
    if plan.still_users:
        contestants["weights_only"] = OnlineValue(config, stream.catalogue, seed, still=True)
        contestants["all_still"] = FrozenValue(online, plan.first_days, still=True)
    contestants |= {name: RateContestant(RateModel(sources)) for name, sources in RATES.items()}
    return figures(stream, *predicted(stream, contestants), plan)


def read_stream(frames: Frames, config: Config, plan: PrequentialConfig) -> Stream:
    """Import, join and remember a log, as production does."""
    shown = frames.interactions.filter("shown")
    first_ms = int(shown["event_time_ms"][0])
    begin = first_ms // MINUTE_MS // plan.every
    until_ms = (begin + plan.days * DAY_MINUTES // plan.every) * plan.every * MINUTE_MS
    log, items_log = import_logs(replace(frames, interactions=frames.interactions.filter(pl.col("event_time_ms") < until_ms)), 1)
    catalogue, feed = Catalogue(), ItemsFeed(items_log, config.join.disorder_ms)
    feed.read()
    feed.apply_before(1 << 62, catalogue)
    still_ms = (begin * plan.every + plan.first_days * DAY_MINUTES) * MINUTE_MS if plan.still_users else None
    per_block: dict[int, tuple[list[Lesson], list[Lesson]]] = {}
    for minute, *found in _joined(log, config, still_ms):
        for of_block, of_minute in zip(per_block.setdefault(minute // plan.every - begin, ([], [])), found, strict=True):
            of_block.extend(of_minute)
    closes_ms = config.join.open_ms + config.join.disorder_ms
    lag = 1 + -(-closes_ms // (plan.every * MINUTE_MS))
    numbers = {user_id: at for at, user_id in enumerate(frames.interactions["user_id"].unique(maintain_order=True))}

    def made(parts: Mapping[int, tuple[list[Lesson], list[Lesson]]]) -> list[Block]:
        return [Block(number, part, _shown(part, catalogue, numbers), still) for number, (part, still) in sorted(parts.items())]

    windows = {window.number: window for window in made(_windows(per_block))}
    return Stream(made(per_block), windows, catalogue, lag, DAY_MINUTES // plan.every)


def _joined(log: MemoryLog, config: Config, still_ms: int | None) -> list[tuple[int, list[Lesson], list[Lesson]]]:
    """Minutes and what was shown in them, with the memory of each user as of the exposure; and again as of `still_ms` at the latest."""
    joiner, memories = Joiner(config.join, 1), [Memory(config.memory, 1)]
    if still_ms is not None:
        memories.append(Memory(replace(config.memory, until_ms=still_ms), 1))
    for one in memories:
        one.keep_from[0] = 0  # views of all times are asked for at the end
    offset, minutes = 0, []
    while records := log.read(0, offset):
        joiner.apply(0, records)
        for one in memories:
            one.read(records)
        offset = records[-1].offset + 1
        while (bucket := joiner.take_bucket()) is not None:
            live, *still = [lessons(bucket.examples, one) for one in memories]
            minutes.append((bucket.start_ms // MINUTE_MS, live, still[0] if still else []))
    return minutes


def _windows(per_block: Mapping[int, tuple[list[Lesson], list[Lesson]]]) -> dict[int, tuple[list[Lesson], list[Lesson]]]:
    """The same lessons, each in the block of the first of its window and with the memory of that one."""
    found: dict[int, tuple[list[Lesson], list[Lesson]]] = {}
    for place in (0, 1):
        first: dict[tuple[str, int], tuple[int, View]] = {}
        for number, parts in sorted(per_block.items()):
            for lesson in parts[place]:
                key = lesson.decision.user_id, lesson.decision.event_time_ms // WINDOW_MS
                begun, view = first.setdefault(key, (number, lesson.view))
                found.setdefault(begun, ([], []))[place].append(replace(lesson, view=view))
    return found


def _shown(part: Sequence[Lesson], catalogue: Catalogue, numbers: Mapping[str, int]) -> Shown:
    rows = [
        (
            numbers[lesson.decision.user_id],
            catalogue.row_of(item_id),
            lesson.decision.context.get("tab", ""),
            lesson.decision.event_time_ms,
            reward,
        )
        for lesson in part
        for item_id, reward in zip(lesson.item_ids, lesson.rewards, strict=True)
    ]
    user, item, tab, time_ms, click = zip(*rows, strict=True)
    return Shown(np.array(user), np.array(item), np.array([int(one or 0) for one in tab]), np.array(time_ms), np.array(click, np.float32))


def predicted(stream: Stream, contestants: Mapping[str, Contestant]) -> tuple[Predicted, Predicted]:
    """What each said of each block before it knew it, and of each window before it knew its first block."""
    found, ordered = ({name: list[FloatArray]() for name in contestants} for _ in range(2))
    known, day = 0, -1
    for block in stream.blocks:
        ready = known
        while stream.blocks[ready].number <= block.number - stream.lag:
            ready += 1
        for name, one in contestants.items():
            for old in stream.blocks[known:ready]:
                one.learn(old)
            for new_day in range(day + 1, block.number // stream.per_day + 1):
                one.day_begins(new_day)
            found[name].append(one.chances(block))
            if block.number in stream.windows:
                ordered[name].append(one.chances(stream.windows[block.number]))
        known = ready
        if block.number // stream.per_day > day:
            day = block.number // stream.per_day
            LOG.info("prequential: day %d", day)
    return found, ordered


def figures(stream: Stream, said: Predicted, ordered: Predicted, plan: PrequentialConfig) -> dict[str, Any]:
    """Log-loss, AUC and NDCG of each, in all; by day; and, without NDCG, by block."""
    day_Q = np.concatenate([np.full(len(block.shown.click), block.number // stream.per_day) for block in stream.blocks])
    shown, inside = (Shown.of([block.shown for block in blocks]) for blocks in (stream.blocks, stream.windows.values()))
    window_Q = inside.user.astype(np.int64) * (1 << 32) + inside.time_ms // WINDOW_MS
    found = {name: np.concatenate(chances) for name, chances in said.items()}
    rows, by_day = [], []
    for name, chance_Q in found.items():
        loss_Q = log_loss(chance_Q, shown.click)
        ndcg = window_ndcg(np.concatenate(ordered[name]), inside.click, window_Q)
        rows.append({"model": name, "log_loss": float(loss_Q.mean()), "auc": auc(chance_Q, shown.click), "ndcg": ndcg})
        for day in np.unique(day_Q).tolist():
            of_day = day_Q == day
            by_day.append(
                {"day": day, "model": name, "log_loss": float(loss_Q[of_day].mean()), "auc": auc(chance_Q[of_day], shown.click[of_day])}
            )
    loss = {name: {row["day"]: row["log_loss"] for row in by_day if row["model"] == name} for name in ("online", "offline")}
    gap = [{"day": day, "log_loss": loss["offline"][day] - loss["online"][day]} for day in loss["online"]]
    told = {"exposures": len(day_Q), "every_minutes": plan.every, "by_block": by_block(stream, found)}
    return {"rows": rows, "by_day": by_day, "gap_to_offline": gap} | told


def by_block(stream: Stream, found: Mapping[str, FloatArray]) -> dict[str, Any]:
    """The minute that each block begins with, its exposures, and log-loss and AUC (None of nothing but clicks, or of none) by model."""
    ends = np.cumsum([len(block.shown.click) for block in stream.blocks])[:-1]
    click = [block.shown.click for block in stream.blocks]
    parts = {name: np.split(chance_Q, ends) for name, chance_Q in found.items()}
    return {
        "minute": [block.number * DAY_MINUTES // stream.per_day for block in stream.blocks],
        "exposures": [len(click_Q) for click_Q in click],
        "log_loss": {name: [float(log_loss(*both).mean()) for both in zip(part, click, strict=True)] for name, part in parts.items()},
        "auc": {name: [auc(*both) for both in zip(part, click, strict=True)] for name, part in parts.items()},
    }


def log_loss(chance_Q: FloatArray, click_Q: FloatArray) -> npt.NDArray[np.float64]:
    """Cross-entropy of each, nats; chances are kept 1e-6 away from 0 and 1."""
    chance = np.clip(chance_Q.astype(np.float64), 1e-6, 1 - 1e-6)
    loss: npt.NDArray[np.float64] = -np.log(np.where(click_Q > 0, chance, 1 - chance))
    return loss


def auc(chance_Q: FloatArray, click_Q: FloatArray) -> float | None:
    """The share of (clicked, not clicked) pairs in the right order, a tie counts half; None where there is no pair."""
    positive = click_Q > 0
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return None
    _, at, count = np.unique(chance_Q, return_inverse=True, return_counts=True)
    rank_Q = (np.cumsum(count) - (count - 1) / 2)[at]
    return float((rank_Q[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def window_ndcg(chance_Q: FloatArray, click_Q: FloatArray, window_Q: IntArray) -> float | None:
    """Mean NDCG of the order by chance inside each window that holds a click and something not clicked; ties in the order shown."""
    order_Q = np.lexsort((np.arange(len(window_Q)), -chance_Q, window_Q))
    _, first, count = np.unique(window_Q[order_Q], return_index=True, return_counts=True)
    place_Q = np.arange(len(window_Q)) - np.repeat(first, count)
    gain_Q, clicked_Q = 1 / np.log2(place_Q + 2), click_Q[order_Q] > 0
    clicks, found = np.add.reduceat(clicked_Q.astype(np.int64), first), np.add.reduceat(gain_Q * clicked_Q, first)
    mixed = (clicks > 0) & (clicks < count)
    if not mixed.any():
        return None
    ideal = np.cumsum(1 / np.log2(np.arange(int(count.max())) + 2))
    return float((found[mixed] / ideal[clicks[mixed] - 1]).mean())
