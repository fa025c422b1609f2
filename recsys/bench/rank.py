"""How well the decoder ranks what comes next, beside what a team would use instead, from the same run and the same split.

Knows nothing of files or of how a model is made inside. Shapes: U users, B of them at a time, R item rows (0 = none), C content
dimensions.
"""

import gc
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.content import ContentRule, FloatArray, ItemText, first_vectors
from models.decoder import Decoder, DecoderConfig
from models.device import Device
from models.next_item import FitConfig, NextItemModel, fit, right_aligned, weigh
from models.next_item_decoder import NUM_KINDS, NextItemDecoder, settle
from models.sasrec import Sasrec, SasrecConfig
from models.successors import SuccessorCounts, Successors, sequence_pairs
from models.tokenizer import Tokenizer, TokenizerConfig
from models.trie import IntArray
from recsys.bench.ranking import Scores, Split, markov, ndcg, neighbours, popularity, rank, recall
from recsys.sequences import neighbours as pairs_of

LOG = logging.getLogger(__name__)

VALIDATED = 5_000
"""Users whose validation item is ranked after each epoch, at most, drawn by the seed."""
WEIGHED = 25_000
"""Users on whose validation items a trained model is weighed, at most."""
COLD_EVENTS = 5
AUTO = "auto"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class RankConfig:
    """The models and how they are trained: one preset for every data set, the end of training found on the validation items."""

    decoder: DecoderConfig = field(
        default_factory=lambda: DecoderConfig(width=128, history=50, dropout=0.5, row_dropout=0.5, max_slots=10, features=2)
    )
    levels: int = 1
    codes: int = 128
    content_dim: int = 192
    fit: FitConfig = field(default_factory=FitConfig)
    sasrec: SasrecConfig = field(default_factory=SasrecConfig)
    dtype: str = AUTO
    """Of the products over the whole catalogue while training; auto: bfloat16 where the device has instructions for it, else float32."""
    device: Device = field(default_factory=Device)
    """Where training is; what is reported of a trained model is computed on the CPU."""
    held_out: float = 0.05
    """Share of the items that the cold test keeps out of training altogether."""

    def __post_init__(self) -> None:
        if self.dtype not in (AUTO, *DTYPES):
            raise ValueError(f"dtype is {self.dtype!r}; it must be one of {', '.join((AUTO, *DTYPES))}")
        for name, low, high in (("levels", 1, 4), ("codes", 2, 65_536), ("content_dim", 8, 4096), ("held_out", 0, 0.5)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {low}..{high}")

    @property
    def product_dtype(self) -> torch.dtype:
        """What `dtype` is on this machine."""
        if self.dtype != AUTO:
            return DTYPES[self.dtype]
        return torch.bfloat16 if self.device.has_bfloat16() else torch.float32


@dataclass(frozen=True)
class Task:
    """A catalogue with its content, and the split of its sequences. Row r is item r - 1."""

    split: Split
    content_RC: FloatArray

    @staticmethod
    def of(items: Sequence[ItemText], sequences: Sequence[IntArray], config: RankConfig, seed: int) -> "Task":
        """Item numbers become rows. What nobody knows anything of is known by who it occurs with in the training part."""
        split = Split.of([numbers + 1 for numbers in sequences], len(items) + 1)
        pairs = pairs_of([rows - 1 for rows in split.train])
        vectors_NC = first_vectors(ContentRule.fitted(items, config.content_dim), items, pairs, seed)
        return Task(split, np.concatenate([np.zeros((1, config.content_dim), np.float32), vectors_NC]))

    def successors(self) -> Successors:
        """What followed what in the training part."""
        counts = SuccessorCounts()
        pairs = [sequence_pairs(rows) for rows in self.split.train]
        counts.add(*(np.concatenate(part) for part in zip(*pairs, strict=True)))
        return counts.frozen(self.split.num_rows)


Maker = Callable[["Task", int], NextItemModel]
"""What is known before training, and a seed → a model that has learned nothing yet."""


def decoder_maker(config: RankConfig, kind: type[Decoder] = Decoder) -> Maker:
    """Our decoder, or one with another trunk, over ids of `config.levels` levels."""

    def made(task: Task, seed: int) -> NextItemDecoder:
        vectors_NC = task.content_RC[1:]
        sizes = TokenizerConfig(levels=config.levels, codes=config.codes, content_dim=vectors_NC.shape[1], seed=seed)
        tokenizer = Tokenizer.built(sizes, vectors_NC)
        torch.manual_seed(seed)
        decoder = kind(config.decoder, centroids=tokenizer.centroids, content_RC=torch.from_numpy(task.content_RC), num_kinds=NUM_KINDS)
        return NextItemDecoder.of(decoder, tokenizer, task.successors(), config.product_dtype)

    return made


def sasrec_maker(config: RankConfig) -> Maker:
    """The rival, as published."""

    def made(task: Task, seed: int) -> Sasrec:
        torch.manual_seed(seed)
        return Sasrec(config.sasrec, task.split.num_rows, config.product_dtype)

    return made


def trained(maker: Maker, task: Task, config: RankConfig, seed: int) -> tuple[NextItemModel, dict[str, float]]:
    """A model of this kind, trained to its best epoch on the validation items and weighed on them; and what it took."""
    forget_peak()
    begun = time.perf_counter()
    model, split = maker(task, seed), task.split
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(split.valid))
    histories, targets = [split.train[user] for user in order[:VALIDATED]], split.valid[order[:VALIDATED]]

    def validate() -> float:
        return ndcg(rank(scores_of(model), histories, targets).all_U, 10)

    def weighed() -> float:
        return weigh(model, [split.train[user] for user in order[:WEIGHED]], split.valid[order[:WEIGHED]], seed)

    with config.device.visit(model.module):
        fitted = fit(model, split.train, config.fit, seed, validate)
        took = {"epochs": float(fitted.best_epoch)}
        if isinstance(model, NextItemDecoder):
            took["kappa"] = settle(model, split.counts(), weighed)
        weighed()
    took |= {"fit_s": time.perf_counter() - begun, "peak_rss_mb": peak_since_mb()}
    return model, took | {"valid_ndcg_at_10": fitted.best, "sequences_per_s": fitted.sequences_per_s}


def scores_of(model: NextItemModel) -> Scores:
    """What a model says of what comes after histories."""
    return lambda histories: model.scores(right_aligned(histories, model.history))


def bench_rank(
    items: Sequence[ItemText], sequences: Sequence[IntArray], makers: Mapping[str, Maker], config: RankConfig, seeds: Sequence[int]
) -> dict[str, Any]:
    """Rows of all models and seeds, and their hits on rare targets: the keys `rows` and `cold` of `recsys bench rank --json`."""
    rows: list[dict[str, Any]] = []
    cold: list[dict[str, Any]] = []
    task = Task.of(items, sequences, config, seeds[0])
    rare_U = task.split.counts()[task.split.test] <= COLD_EVENTS

    def report(model: str, seed: int, scores: Scores, took: dict[str, float]) -> None:
        ranks = rank(scores, task.split.before_test, task.split.test)
        rows.append({"model": model, "seed": seed} | ranks.figures() | took)
        cold.append(hits(model, seed, COLD_EVENTS, ranks.all_U[rare_U]))
        LOG.info("%s", rows[-1])

    for name, count in COUNTING.items():
        forget_peak()
        begun = time.perf_counter()
        scores = count(task)
        report(name, seeds[0], scores, {"fit_s": time.perf_counter() - begun, "peak_rss_mb": peak_since_mb()})
    for seed in seeds:
        for name, maker in makers.items():
            model, took = trained(maker, task, config, seed)
            report(name, seed, scores_of(model), took)
    used = asdict(config) | {"dtype": str(config.product_dtype).removeprefix("torch.")}
    return {"rows": rows, "cold": cold, "targets": len(task.split.test), "items": len(items), "config": used}


COUNTING: dict[str, Callable[[Task], Scores]] = {
    "popularity": lambda task: popularity(task.split),
    "markov": lambda task: markov(task.split),
    "content": lambda task: neighbours(task.content_RC),
}
"""What needs no training by steps."""


def hits(model: str, seed: int, events_at_most: int, ranks_U: FloatArray) -> dict[str, Any]:
    """A row of `cold`: targets of so few training events."""
    found = {"recall_at_10": recall(ranks_U, 10), "recall_at_50": recall(ranks_U, 50), "targets": len(ranks_U)}
    return {"model": model, "seed": seed, "events_at_most": events_at_most} | found


def forget_peak() -> None:
    """Begin to measure the most memory held anew (Linux: what /proc/self/clear_refs is for)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def peak_since_mb() -> float:
    """The most memory held since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
