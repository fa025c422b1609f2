"""Moves the weights: the warm start over a history, and the steps of one minute. Knows nothing of logs, joins or versions.

All randomness is seeded by the run's seed and the minute, batches are in a given order: the same lessons give the same bytes.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models.device import Device
from models.objective import Batch, ObjectiveConfig, Slots, Terms, objective
from models.surprise import Surprise
from recsys.doubt import earlier
from recsys.features import BatchMaker, Lesson, Shelf, followed
from recsys.footing import Footing, parameters_of
from recsys.gates import Gates, Told, fair_weights
from recsys.guard import GuardConfig, update_refused
from recsys.live_model import LiveModel

LOG = logging.getLogger(__name__)

PART_SLATES, PART_LOGITS = 256, 6 << 20
"""Slates whose states are held at a time, and logits of the children of their walks' nodes: gradients of parts add up, so a large
minute needs no more memory than that. Larger arrays (malloc's 32 MB) would be asked of the system anew for every part.
"""

MINUTE_S = 60
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class WarmStartConfig:
    """How history is learned before the first version."""

    epochs: int = 2
    batch: int = 128
    lr: float = 3e-3
    slots: int = 10
    """Imported exposures that make one training slate, at most."""

    def __post_init__(self) -> None:
        for name, low, high in (("epochs", 0, 1000), ("batch", 1, 65_536), ("slots", 1, 100)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"warm_start.{name} is {getattr(self, name)}; it must be {low}..{high}")
        if not 0 < self.lr <= 1:
            raise ValueError(f"warm_start.lr is {self.lr}; it must be above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How each minute is learned."""

    lr: float = 5e-4
    passes: int = 1
    """Steps on each minute's batch."""
    trunk_share: float = 0.3
    """Step size of what all items share, relative to that of item rows and heads."""
    successors_keep: float = 0.9995
    """What counts of successors keep of their weight from one minute learned to the next."""
    value_spread: float = 0.7
    """Logits by which items are expected to differ in what they earn, beyond what content and context say."""
    user_cap: int = 4
    """Slates that one user counts for in one minute; more share the weight of these."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    device: Device = field(default_factory=Device)

    def __post_init__(self) -> None:
        limits = {"lr": (1e-8, 1), "passes": (1, 100), "trunk_share": (0, 1), "successors_keep": (0, 1), "user_cap": (1, 1_000_000)}
        limits["value_spread"] = (0.01, 10)
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}; it must be {low}..{high}")


@dataclass(frozen=True)
class Seeds:
    """What all draws of a run derive from."""

    behavior_digest: str
    run_seed: int

    def of(self, purpose: str, number: int) -> int:
        """A 63-bit seed for one purpose and minute: SHA-256 of all of it."""
        digest = hashlib.sha256(f"{self.behavior_digest}\0{self.run_seed}\0{purpose}\0{number}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def random(self, purpose: str, number: int) -> np.random.Generator:
        """A generator with that seed."""
        return np.random.Generator(np.random.PCG64(self.of(purpose, number)))


class Updated(NamedTuple):
    """What came of a minute."""

    terms: Terms
    """Before anything moved."""
    refused: str | None
    """Why nothing was learned of it."""
    weights: list[float]
    """Of the fresh slates: below 1 where a user had more than the cap allows."""


class Trainer:
    """Weights and optimizer of one live model, and the gates that a minute must pass."""

    def __init__(self, config: TrainerConfig, model: LiveModel, seeds: Seeds) -> None:
        config.device.require()
        self.config, self.model, self.seeds = config, model, seeds
        self.gates = Gates(config.guard)
        self.optimizer, self._footing = self._new_optimizer(config.lr), Footing()

    def admit(self, changed_rows: Sequence[int]) -> None:
        """Let in what the catalogue has learned."""
        self.model.admit(changed_rows, self.optimizer)

    def grow_like(self, model: LiveModel) -> None:
        """Have the items, ids and content of `model`, which went on from here; what it learned meanwhile is not taken."""
        self.model.grow_like(model, self.optimizer)

    def warm_start(self, lessons: Sequence[Lesson]) -> int:
        """Epochs over the history; how many sequences were learned. The optimizer starts anew after it."""
        config = self.config.warm_start
        random = self.seeds.random("warm_start", 0)
        torch.manual_seed(self.seeds.of("warm_start", 1))
        maker = self._maker(0)
        optimizer, decoder = self._new_optimizer(config.lr), self.model.decoder
        parts = [part for _ in range(config.epochs) for part in _batches(lessons, config.batch, random)]
        decoder.train()
        with self.config.device.visit(decoder):
            for step, part in enumerate(parts):
                if step * 10 // len(parts) != (step - 1) * 10 // len(parts):
                    LOG.info("warm start: %d of %d sequences", sum(map(len, parts[:step])), config.epochs * len(lessons))
                for group in optimizer.param_groups:
                    group["lr"] = config.lr * 0.5 * (1 + np.cos(np.pi * step / len(parts)))
                terms = self._gradient(optimizer, maker.shelf, [maker.batch(part, [self.model.num_rows] * len(part))])
                self._move(optimizer)
                if step * config.epochs < len(parts):  # each exposure is told of once
                    decoder.correct(terms.surprise, self.config.value_spread)
        decoder.eval()
        self.optimizer = self._new_optimizer(self.config.lr)
        self.model.count(*followed(lessons, self.model.vocabulary), 1.0)
        return sum(map(len, parts))

    def update(self, fresh: Sequence[Lesson], replayed: Sequence[Lesson], num_rows: Sequence[int], minute: int) -> Updated:
        """`passes` steps on one batch, if it is believed; a refused minute leaves all weights and counts as they were.

        `num_rows` are the item rows that each lesson's version knew.
        """
        with self.config.device.visit(self.model.decoder, self.optimizer):
            return self._update(fresh, replayed, num_rows, minute)

    def arrays(self) -> Arrays:
        """The optimizer's state, for a checkpoint."""
        state = self.optimizer.state_dict()["state"]
        return {f"{at}.{name}": value.numpy() for at, values in state.items() for name, value in values.items()}

    def load(self, arrays: Arrays, gates: Mapping[str, Any]) -> None:
        """Take the states of optimizer and gates from a checkpoint."""
        self.gates = Gates.of(self.config.guard, gates)
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, array in arrays.items():
            at, _, name = key.partition(".")
            state.setdefault(int(at), {})[name] = torch.from_numpy(array.copy())
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def _update(self, fresh: Sequence[Lesson], replayed: Sequence[Lesson], num_rows: Sequence[int], minute: int) -> Updated:
        chosen, own = [*fresh, *replayed], [lesson for lesson in fresh if lesson.own]
        fair = fair_weights([lesson.decision.user_id for lesson in fresh], self.config.user_cap)
        shelf, parts = self._batches_of(chosen, num_rows, fair + [1.0] * len(replayed))
        terms = self._gradient(self.optimizer, shelf, parts)
        reason = self._refusal(terms, shelf, parts, fresh) if torch.isfinite(terms.loss) else "loss_not_finite"
        if reason is None:
            reason = self._moved(terms, shelf, parts)
        if reason is not None:
            LOG.warning("minute %d: refused: %s", minute, reason)
        else:
            self.model.decoder.paces.fade()
            self.model.decoder.correct(terms.surprise.first(len(fresh)), self.config.value_spread)
            self.model.count(*followed(own, self.model.vocabulary), self.config.successors_keep)
        return Updated(terms, reason, fair)

    def _refusal(self, terms: Terms, shelf: Shelf, parts: Sequence[Batch], fresh: Sequence[Lesson]) -> str | None:
        """What the gates say; after a refused minute, half of it of users as they were before what is in doubt: memory follows a lie."""
        told, minutes = _told(terms.surprise, fresh), self.gates.minutes_in_doubt
        if minutes:
            before = [replace(part, context=earlier(part.context, MINUTE_S * (minutes + 1))) for part in parts]
            told = told.between(_told(self._surprise(shelf, before), fresh))
        return self.gates.refusal(told)

    @torch.no_grad()
    def _surprise(self, shelf: Shelf, parts: Sequence[Batch]) -> Surprise:
        """Of all parts together; nothing is asked of the policy."""
        values = replace(self.config.objective, policy_weight=0.0, likelihood_weight=0.0)
        scored = self.model.scored(shelf, parts, values)
        return reduce(add, (objective(scored, part, values).surprise for part in parts))

    def _batches_of(self, chosen: Sequence[Lesson], num_rows: Sequence[int], weights: Sequence[float]) -> tuple[Shelf, list[Batch]]:
        offsets = [lesson.decision.items_offset for lesson in chosen if lesson.own]
        maker = self._maker(min(offsets, default=self.model.catalogue.next_offset))
        parts = []
        for part in _parts(chosen, maker.shelf.trie.widest):
            parts.append(maker.batch(chosen[part], num_rows[part]))
            parts[-1].weight_B[:] = weights[part]
        return maker.shelf, parts

    def _moved(self, terms: Terms, shelf: Shelf, parts: Sequence[Batch]) -> str | None:
        """All steps, the first by the gradient that is there; why they were taken back, if they were."""
        self._footing.take(self.optimizer)
        self._move(self.optimizer, terms.effective_share)
        for _ in range(self.config.passes - 1):
            again = self._gradient(self.optimizer, shelf, parts)
            self._move(self.optimizer, again.effective_share)
        reason = update_refused(self.config.guard, self._footing.weights, self._footing.change())
        if reason is not None:
            self._footing.go_back()
        return reason

    def _gradient(self, optimizer: torch.optim.Optimizer, shelf: Shelf, parts: Sequence[Batch]) -> Terms:
        """Of all parts together."""
        optimizer.zero_grad(set_to_none=True)
        slots, scored, of_parts = Slots.of(parts), self.model.scored(shelf, parts, self.config.objective), []
        shared = scored.vectors.cut()
        for part in parts:
            part_terms = objective(replace(scored, vectors=shared), part, self.config.objective, slots)
            torch.autograd.backward(part_terms.loss)
            # its graph holds all that was computed, and the shapes of tables that may grow
            of_parts.append(replace(part_terms, loss=part_terms.loss.detach()))
        scored.vectors.take_gradient(shared)
        return reduce(add, of_parts)

    def _move(self, optimizer: torch.optim.Optimizer, effective_share: float | None = None) -> None:
        """One step; with an `effective_share` of the samples (nan: all) at the configured rate times its root."""
        if effective_share is not None:
            root = float(np.sqrt(effective_share)) if np.isfinite(effective_share) else 1.0
            for group, relative in zip(optimizer.param_groups, (1.0, self.config.trunk_share), strict=True):
                group["lr"] = self.config.lr * relative * root
        torch.nn.utils.clip_grad_norm_(parameters_of(optimizer), self.config.guard.max_grad_norm)
        optimizer.step()

    def _maker(self, items_offset: int) -> BatchMaker:
        config = self.model.decoder.config
        return BatchMaker(self.model.catalogue, self.model.shelf(items_offset), config.rows_read, config.features)

    def _new_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """Item rows and heads at full step, what all items share slower."""
        decoder = self.model.decoder
        fast = {id(parameter) for parameter in [*decoder.row_parameters(), *decoder.head_parameters()]}
        groups = [
            {"params": [parameter for parameter in decoder.parameters() if id(parameter) in fast]},
            {"params": [parameter for parameter in decoder.parameters() if id(parameter) not in fast]},
        ]
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)


def _parts(lessons: Sequence[Lesson], children: int) -> list[slice]:
    """All of them in order, so many at a time that they fit; at least one."""
    slots = max(len(lesson.item_ids) for lesson in lessons)
    size = max(1, min(PART_SLATES, PART_LOGITS // (slots * children)))
    return [slice(begin, begin + size) for begin in range(0, len(lessons), size)]


def _batches(lessons: Sequence[Lesson], size: int, random: np.random.Generator, chunk: int = 32) -> list[list[Lesson]]:
    """All lessons once, in random batches of like length: what pads a batch costs as much as what fills it."""
    order = random.permutation(len(lessons))
    batches = []
    for first in range(0, len(order), size * chunk):
        part = sorted(order[first : first + size * chunk].tolist(), key=lambda at: (len(lessons[at].item_ids), len(lessons[at].view.key_L)))
        batches += [[lessons[at] for at in part[begin : begin + size]] for begin in range(0, len(part), size)]
    return [batches[place] for place in random.permutation(len(batches))]


def _told(surprise: Surprise, fresh: Sequence[Lesson]) -> Told:
    """What the minute's own slates tell."""
    own_Q = np.isin(surprise.slate_Q, [place for place, lesson in enumerate(fresh) if lesson.own])
    _, user_B = np.unique([lesson.decision.user_id for lesson in fresh], return_inverse=True)
    columns = (surprise.chances(), surprise.earned_Q, surprise.weight_Q)
    return Told(user_B[surprise.slate_Q[own_Q]], *(column.cpu().numpy()[own_Q].astype(np.float64) for column in columns))
