"""Next-item training: at every place of a sequence, the item that follows. The warm start of a decoder, and of its rivals in a ranking.

Knows nothing of events, rewards or metrics, and of a model only what `NextItemModel` says. Sequences longer than a model reads are cut
into overlapping windows, so that each item is a target once, with at least half a window before it.
Shapes: W windows, B of them at a time, L rows read, R item rows (0 = none).
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.content import FloatArray
from models.trie import IntArray

LOG = logging.getLogger(__name__)

WEIGHING_LR = 0.02


class NextItemModel(Protocol):
    """What a trainer needs of a model."""

    @property
    def module(self) -> nn.Module:
        """Its weights."""

    @property
    def history(self) -> int:
        """L: how many of the newest items it reads."""

    def loss(self, item_BL: IntArray, target_BL: IntArray) -> Tensor:
        """Mean loss over all places whose target is not 0. `item_BL` is right-aligned, 0 in front of shorter ones."""

    def weighing_loss(self, item_BL: IntArray, target_B: IntArray) -> Tensor:
        """Mean loss, maybe a weighted one, of what follows the newest items, with all that counts and likeness add.

        It has gradient to `weighing` alone.
        """

    def weighing(self) -> Sequence[nn.Parameter]:
        """The few numbers that weigh what was learned against what is only counted or alike; none where there is only one source."""

    def scores(self, item_BL: IntArray) -> FloatArray:
        """A score of every row as what follows the newest item, (B, R)."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How long and how fast. The step size is constant after its rise; what is kept is a running mean of the weights."""

    lr: float = 2e-3
    batch: int = 128
    max_epochs: int = 100
    max_steps: int = 2_000
    """It stops behind the epoch in which it gets here."""
    patience: int = 500
    """Steps without a better validation after which it stops."""
    weight_decay: float = 0.0
    mean_decay: float = 0.998
    """Of the running mean, per step (Polyak and Juditsky 1992): it does what a falling step size does, without knowing the end."""
    rise_steps: int = 200
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        limits = {
            "batch": (1, 65_536),
            "max_epochs": (1, 10_000),
            "max_steps": (1, 10**9),
            "patience": (1, 10**9),
            "mean_decay": (0, 0.999999),
            "lr": (1e-7, 1),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"fit.{name} is {getattr(self, name)}; it must be {low}..{high}")


@dataclass(frozen=True)
class Fitted:
    """What a fit took."""

    epochs: int
    best_epoch: int
    best: float
    seconds: float
    sequences_per_s: float


def fit(model: NextItemModel, sequences: Sequence[IntArray], config: FitConfig, seed: int, validate: Callable[[], float]) -> Fitted:
    """Train until `validate`, asked after each epoch, has long not risen; the model is left with the weights at which it was highest."""
    started = time.perf_counter()
    random = np.random.Generator(np.random.PCG64(seed))
    torch.manual_seed(seed)
    windows = Windows.of(sequences, model.history)
    module = model.module
    weights = list(module.parameters())
    mean = [weight.detach().clone() for weight in weights]
    optimizer = optimizer_of(module, config)
    best, best_epoch, best_number, kept, trained_s, number, epoch = -math.inf, 0, 0, mean, 0.0, 0, 0
    for epoch in range(1, config.max_epochs + 1):
        begun = time.perf_counter()
        module.train()
        total = 0.0
        for item_BL, target_BL in windows.batches(config.batch, random):
            number += 1
            total += learn(model, optimizer, config, number, item_BL, target_BL)
            with torch.no_grad():
                torch._foreach_lerp_(mean, [weight.detach() for weight in weights], 1 - min(config.mean_decay, number / (number + 9)))
        module.eval()
        trained_s += time.perf_counter() - begun
        present = [weight.detach().clone() for weight in weights]
        _take(weights, mean)
        reached = validate()
        LOG.info("epoch %d: loss %.3f, validation %.4f, %.0f s", epoch, total * config.batch / len(windows.item_WL), reached, trained_s)
        if reached > best:
            best, best_epoch, best_number, kept = reached, epoch, number, [weight.clone() for weight in mean]
        if number >= config.max_steps or number - best_number >= config.patience:
            break
        _take(weights, present)
    _take(weights, kept)
    return Fitted(epoch, best_epoch, best, time.perf_counter() - started, epoch * len(sequences) / trained_s)


def weigh(model: NextItemModel, histories: Sequence[IntArray], targets: IntArray, seed: int, *, epochs: int = 2, batch: int = 256) -> float:
    """Learn how much each source of the model is worth on targets that none of them has seen (stacking: Wolpert 1992).

    On what a model was trained on, counts and memorised items always look better than they are. Returns the mean loss of the last
    epoch, in nats; nan where there is nothing to weigh.
    """
    weights = model.weighing()
    if not weights:
        return math.nan
    random = np.random.Generator(np.random.PCG64(seed))
    optimizer = torch.optim.Adam(weights, lr=WEIGHING_LR, betas=(0.9, 0.98))
    parts = [part for _ in range(epochs) for part in np.array_split(random.permutation(len(targets)), -(-len(targets) // batch))]
    losses = []
    with _alone(weights, model.module):
        for step, part in enumerate(parts):
            for group in optimizer.param_groups:
                group["lr"] = WEIGHING_LR * 0.5 * (1 + math.cos(math.pi * step / len(parts)))
            loss = model.weighing_loss(right_aligned([histories[at] for at in part], model.history), targets[part])
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(len(part) * float(loss.detach()))
    return sum(losses[-(len(parts) // epochs) :]) / len(targets)


@contextmanager
def _alone(weights: Sequence[nn.Parameter], module: nn.Module) -> Iterator[None]:
    """Inside, these alone of a module's weights have gradients, whether they are learned elsewhere or not: others cost nothing."""
    before = [(weight, weight.requires_grad) for weight in module.parameters()]
    for weight, _ in before:
        weight.requires_grad_(any(weight is one for one in weights))
    try:
        yield
    finally:
        for weight, learned in before:
            weight.requires_grad_(learned)


@dataclass(frozen=True)
class Windows:
    """Sequences as rows of one array: what is read, (W, L), and what follows each place, (W, L), 0 where nothing is to be learned."""

    item_WL: IntArray
    target_WL: IntArray

    @staticmethod
    def of(sequences: Sequence[IntArray], length: int) -> "Windows":
        """Cut sequences into windows of `length`, each but the first of a sequence half overlapping the one before."""
        stride = max(1, length // 2)
        cuts = [(rows, first) for rows in sequences for first in _firsts(len(rows) - 1, length, stride)]
        item_WL, target_WL = np.zeros((len(cuts), length), np.int64), np.zeros((len(cuts), length), np.int64)
        for at, (rows, first) in enumerate(cuts):
            end = min(first + length, len(rows) - 1)
            new = end - first - (min(length - stride, end - first) if first else 0)
            item_WL[at, length - (end - first) :] = rows[first:end]
            target_WL[at, length - new :] = rows[end - new + 1 : end + 1]
        return Windows(item_WL, target_WL)

    def batches(self, size: int, random: np.random.Generator, chunk: int = 32) -> Iterator[tuple[IntArray, IntArray]]:
        """All windows once, in random batches of like length: what pads a batch costs as much as what fills it."""
        length_W = (self.item_WL > 0).sum(1)
        order = random.permutation(len(length_W))
        parts: list[npt.NDArray[np.int64]] = []
        for first in range(0, len(order), size * chunk):
            like = order[first : first + size * chunk]
            like = like[np.argsort(length_W[like], kind="stable")]
            parts += [like[begin : begin + size] for begin in range(0, len(like), size)]
        for place in random.permutation(len(parts)):
            part = parts[place]
            width = int(length_W[part].max())
            yield self.item_WL[part, -width:], self.target_WL[part, -width:]


def right_aligned(histories: Sequence[IntArray], length: int) -> IntArray:
    """The newest `length` items of each history, 0 in front of shorter ones, (B, L)."""
    width = max(1, min(length, max(map(len, histories), default=1)))
    item_BL = np.zeros((len(histories), width), np.int64)
    for at, rows in enumerate(histories):
        newest = rows[-width:]
        item_BL[at, width - len(newest) :] = newest
    return item_BL


def _firsts(places: int, length: int, stride: int) -> range:
    """Where the windows of a sequence with so many places begin; none where nothing follows anything."""
    return range(0, max(1, places - length + stride), stride) if places > 0 else range(0)


def optimizer_of(module: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """A new one for all weights."""
    return torch.optim.AdamW(module.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay, foreach=True)


def learn(
    model: NextItemModel, optimizer: torch.optim.Optimizer, config: FitConfig, step: int, item_BL: IntArray, target_BL: IntArray
) -> float:
    """One step, the `step`-th; the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = config.lr * min(1.0, step / config.rise_steps)
    loss = model.loss(item_BL, target_BL)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.module.parameters(), config.max_grad_norm)
    optimizer.step()
    return float(loss.detach())


def _take(weights: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        torch._foreach_copy_(list(weights), list(values))
