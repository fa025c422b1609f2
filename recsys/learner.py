"""The learner: every minute of the log becomes one update of the weights, one checkpoint and one published version.

Knows nothing of requests or of who serves. Its state is a function of the records it has read: read → join → update →
check → save → publish, each minute (bucket) in order of event time, all randomness seeded by run seed and minute.
A minute's version holds the catalogue changes before (minute + 1) · M + W + L, which is when it can be trained: so a new
item is in the second publish after its arrival at the latest.
"""

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.artifact import weights_digest
from models.objective import ObjectiveConfig, Terms, objective
from models.trie import Trie
from recsys import checkpoint as checkpoints
from recsys import publisher
from recsys.catalogue import Catalogue
from recsys.checkpoint import Checkpoint, StateLock
from recsys.features import BatchMaker, Lesson, imported_lessons, lessons
from recsys.guard import GuardConfig, update_refused
from recsys.live_model import ItemsFeed, LiveModel, ModelConfig
from recsys.memory import Memory, MemoryConfig
from recsys.publisher import Published
from recsys.reservoir import Reservoir
from streaming.clock import Clock
from streaming.events import UnreadableRecord, decode
from streaming.joiner import Bucket, Example, JoinConfig, Joiner
from streaming.log import EventLog

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WarmStartConfig:
    """How history is learned before the first version."""

    epochs: int = 3
    batch: int = 128
    lr: float = 3e-3
    slots: int = 10
    """Imported exposures that make one training slate, at most."""

    def __post_init__(self) -> None:
        if not 0 <= self.epochs <= 1000:
            raise ValueError(f"warm_start.epochs is {self.epochs}; it must be 0..1000")
        if not 1 <= self.batch <= 65_536:
            raise ValueError(f"warm_start.batch is {self.batch}; it must be 1..65536")


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """How each minute is learned."""

    lr: float = 2e-3
    passes: int = 2
    """Steps on each minute's batch."""
    trunk_share: float = 0.3
    """Step size of what all items share, relative to that of item rows and heads."""
    replay_share: float = 0.25
    reservoir: int = 1024
    max_lag: int = 60
    """Decisions of versions older than this many are counted as stale and dropped."""
    user_cap: int = 4
    """Slates that one user counts for in one minute; more share the weight of these."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        limits = {"lr": (1e-8, 1), "passes": (1, 100), "trunk_share": (0, 1), "replay_share": (0, 0.9), "reservoir": (0, 10_000_000)}
        for name, (low, high) in (limits | {"max_lag": (1, 1_000_000), "user_cap": (1, 1_000_000)}).items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"learner.{name} is {getattr(self, name)}; it must be {low}..{high}")


@dataclass(frozen=True)
class Seeds:
    """What all draws of a run derive from."""

    behavior_digest: str
    run_seed: int

    def of(self, purpose: str, number: int) -> int:
        """A 63-bit seed for one purpose and minute: SHA-256 of all of it."""
        digest = hashlib.sha256(f"{self.behavior_digest}\0{self.run_seed}\0{purpose}\0{number}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1


@dataclass
class LearnerStats:
    """What happened since this process started; for reports, never for decisions."""

    num_updates: int = 0
    num_refused: int = 0
    num_replayed: int = 0
    update_s: list[float] = field(default_factory=list)
    save_s: list[float] = field(default_factory=list)
    publish_s: list[float] = field(default_factory=list)
    read_s: float = 0.0
    warm_start_s: float = 0.0
    warm_start_sequences: int = 0
    trained_append_ms: dict[int, list[int]] = field(default_factory=dict)
    """By version, when the records that it was first to learn from were appended."""
    terms: list[Terms] = field(default_factory=list)


class Learner:
    """A Component. One process writes to one state directory (`StateBusy` otherwise)."""

    def __init__(
        self,
        config: LearnerConfig,
        model: ModelConfig,
        join: JoinConfig,
        memory: MemoryConfig,
        seeds: Seeds,
        *,
        clock: Clock,
        log: EventLog,
        items_log: EventLog,
        state_dir: Path,
    ) -> None:
        self.config, self.join, self.seeds, self.clock = config, join, seeds, clock
        self._model_config, self._memory_config, self._log, self._items_log = model, memory, log, items_log
        self.directory = state_dir / join.variant
        self._lock = StateLock(self.directory)
        self.stats = LearnerStats()
        self.joiner = Joiner(join, log.num_partitions)
        self.memory = Memory(memory, log.num_partitions)
        self.catalogue = Catalogue()
        self.feed = ItemsFeed(items_log, join.disorder_ms)
        self.model: LiveModel | None = None
        self.policy_version = 0
        self._next_minute = 0
        self._history: list[Example] = []
        self._reservoir = Reservoir(config.reservoir)
        self._rows_of_version: dict[int, int] = {}
        self._optimizer: torch.optim.Optimizer | None = None
        self._restore()

    # The loop --------------------------------------------------------------------------------------------------------

    def step(self) -> int:
        """Read what is there and learn every minute that is complete; how many versions were published."""
        before = self.policy_version
        self._read()
        watermark_ms = self.joiner.watermark_ms
        if watermark_ms is None or self.feed.watermark_ms < watermark_ms:
            return 0  # the items of a minute must be known before it is learned
        while (bucket := self.joiner.take_bucket()) is not None:
            self._pass_quiet_minutes(bucket.index)
            self._learn(bucket)
        self._pass_quiet_minutes(self.joiner.trained_through_ms // self.join.bucket_ms)
        return self.policy_version - before

    def weights_digest(self) -> str | None:
        """SHA-256 of the weights as they are; None before there are any."""
        return weights_digest(self.model.decoder) if self.model else None

    def close(self) -> None:
        """Let another process write to the state."""
        self._lock.release()

    def _read(self) -> None:
        started = time.perf_counter()
        for partition in range(self._log.num_partitions):
            while records := self._log.read(partition, self.joiner.next_offset(partition)):
                for record in records:
                    self.joiner.apply(partition, record.offset, record.value)
                    self._remember(partition, record.offset, record.value)
            self.memory.keep_from[partition] = self._oldest_needed(partition)
        self.feed.read()
        self.stats.read_s += time.perf_counter() - started

    def _remember(self, partition: int, offset: int, value: bytes) -> None:
        try:
            self.memory.apply(partition, offset, decode(value))
        except UnreadableRecord:  # the joiner has put it into quarantine
            self.memory.next_offset[partition] = offset + 1

    def _oldest_needed(self, partition: int) -> int | None:
        """The oldest offset as of which memory may still be read: of decisions not yet learned."""
        open_offset = self.joiner.min_open_memory_offset(partition)
        waiting = [_as_of(example) for example in self._history if example.partition == partition]
        return min((offset for offset in [open_offset, *waiting] if offset is not None), default=None)

    # One minute ------------------------------------------------------------------------------------------------------

    def _pass_quiet_minutes(self, end_minute: int) -> None:
        """Minutes without Examples make a version only if the catalogue changed, or if they end the history."""
        while self._next_minute < end_minute:
            until_ms = self.feed.warm_start_until_ms
            if self.model is None and until_ms is not None:
                start_minute = -(-until_ms // self.join.bucket_ms)
                if start_minute > end_minute:
                    break
                self._begin(max(self._next_minute, start_minute))
                continue
            change_ms = self.feed.next_change_ms
            if change_ms is None:
                break
            # the first minute whose cut is after the change
            minute = max(self._next_minute, (change_ms - self.join.open_ms) // self.join.bucket_ms)
            if minute >= end_minute:
                break
            if self._admit(minute):
                self._finish(minute, [])
            self._next_minute = minute + 1
        self._next_minute = max(self._next_minute, end_minute)

    def _learn(self, bucket: Bucket) -> None:
        until_ms = self.feed.warm_start_until_ms
        if self.model is None and until_ms is not None and bucket.start_ms < until_ms:
            self._history += bucket.examples
            self._next_minute = bucket.index + 1
            return
        if self.model is None and until_ms is not None:
            self._begin(bucket.index)
        self._admit(bucket.index)
        if self.model is None:
            self.joiner.mark_stale(sum(example.own for example in bucket.examples))
            return
        started = time.perf_counter()
        self._update(bucket)
        self.stats.update_s.append(time.perf_counter() - started)
        self._finish(bucket.index, [when for example in bucket.examples if example.own for when in example.append_times_ms])
        self._next_minute = bucket.index + 1

    def _admit(self, minute: int) -> bool:
        """Let in the catalogue changes before the minute's cut; whether there were any."""
        cut_ms = (minute + 1) * self.join.bucket_ms + self.join.open_ms
        rows = self.feed.apply_before(cut_ms, self.catalogue)
        if not rows:
            return False
        if self.model is None:
            if self.feed.warm_start_until_ms is None:
                self._build()
        else:
            self.model.admit(rows, self._optimizer)
        return self.model is not None

    def _update(self, bucket: Bucket) -> None:
        """Steps on the minute's Examples and a share of earlier ones; refused as a whole when a gate says so."""
        assert self.model is not None
        assert self._optimizer is not None
        random = np.random.Generator(np.random.PCG64(self.seeds.of("update", bucket.index)))
        torch.manual_seed(self.seeds.of("torch", bucket.index))
        fresh = self._lessons(bucket.examples)
        num_replayed = round(len(fresh) * self.config.replay_share / (1 - self.config.replay_share))
        chosen = fresh + self._reservoir.draw(num_replayed, random)
        self.stats.num_replayed += len(chosen) - len(fresh)
        if chosen:
            before = [parameter.detach().clone() for parameter in self.model.decoder.parameters()]
            terms = self._steps(chosen, _fair_weights(fresh, len(chosen), self.config.user_cap))
            after = [parameter.detach() for parameter in self.model.decoder.parameters()]
            reason = update_refused(self.config.guard, float(terms.loss.detach()), before, after)
            if reason is not None:
                LOG.warning("minute %d: update refused: %s", bucket.index, reason)
                self.stats.num_refused += 1
                with torch.no_grad():
                    for parameter, old in zip(self.model.decoder.parameters(), before, strict=True):
                        parameter.copy_(old)
            self.stats.num_updates += 1
            self.stats.terms.append(terms)
        for lesson in fresh:
            rows = [self.model.vocabulary.row_of.get(item, 0) for item, shown in zip(lesson.item_ids, lesson.shown, strict=True) if shown]
            if lesson.own:
                np.add.at(self.model.exposures_R, rows, 1)
        self._reservoir.offer(fresh, random)

    def _lessons(self, examples: Sequence[Example]) -> list[Lesson]:
        """Own Examples that are recent enough, then imported ones; the others are counted as stale."""
        own = [example for example in examples if example.own]
        recent = [example for example in own if self.policy_version - example.decision.policy_version <= self.config.max_lag]
        self.joiner.mark_stale(len(own) - len(recent))
        imported = [example for example in examples if not example.own]
        drawn = [example for example in recent if example.decision.policy_version > 0]
        return lessons(drawn, self.memory) + imported_lessons(imported, self.memory, slots=self.config.warm_start.slots)

    def _steps(self, chosen: Sequence[Lesson], weights: Sequence[float]) -> Terms:
        """`passes` optimizer steps on one batch; the terms of the first, taken before anything moved."""
        assert self.model is not None
        assert self._optimizer is not None
        model, decoder = self.model, self.model.decoder.eval()
        shelf = model.shelf(min((lesson.decision.items_offset for lesson in chosen if lesson.own), default=self.catalogue.next_offset))
        trie = Trie.built(model.tokenizer.ids_NK, ~shelf.alive_R[1:])
        maker = BatchMaker(self.catalogue, shelf, decoder.config.history, decoder.config.features)
        num_rows = [self._rows_of_version.get(lesson.decision.policy_version, model.num_rows) for lesson in chosen]
        batch = maker.batch(chosen, num_rows)
        batch.weight_B[:] = weights
        first: Terms | None = None
        for _ in range(self.config.passes):
            terms = objective(model.scored(trie), batch, self.config.objective)
            first = first or terms
            share = np.sqrt(terms.effective_share) if np.isfinite(terms.effective_share) else 1.0
            for group, relative in zip(self._optimizer.param_groups, (1.0, self.config.trunk_share), strict=True):
                group["lr"] = self.config.lr * relative * float(share)
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(terms.loss)
            torch.nn.utils.clip_grad_norm_(decoder.parameters(), self.config.guard.max_grad_norm)
            self._optimizer.step()
        assert first is not None
        return first

    def _finish(self, minute: int, append_times_ms: list[int]) -> None:
        """Save, then publish: a version that is served can always be continued from."""
        assert self.model is not None
        self.policy_version += 1
        self.stats.trained_append_ms[self.policy_version] = append_times_ms
        self._rows_of_version[self.policy_version] = self.model.num_rows
        self._rows_of_version.pop(self.policy_version - 2 * self.config.max_lag, None)
        self._next_minute = minute + 1
        through_ms = (minute + 1) * self.join.bucket_ms
        started = time.perf_counter()
        self._save()
        saved = time.perf_counter()
        self._publish(through_ms)
        self.stats.save_s.append(saved - started)
        self.stats.publish_s.append(time.perf_counter() - saved)

    def _publish(self, through_ms: int) -> Published:
        assert self.model is not None
        facts = {
            "policy_version": self.policy_version,
            "trained_through_ms": through_ms,
            "items_offset": self.catalogue.next_offset,
            "behavior_digest": self.seeds.behavior_digest,
            "variant": self.join.variant,
        }
        return publisher.publish(self.model.artifact(facts), self.directory, self.clock.now_ms())

    # The beginning ---------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        """New ids and untrained weights over the catalogue as it is; nothing yet when it is empty."""
        if not self.catalogue.item_ids:
            return
        seed = self.seeds.of("weights", 0)
        self.model = LiveModel.built(self._model_config, self.catalogue, self._memory_config.num_kinds, seed)
        self._optimizer = self._new_optimizer(self.config.lr)

    def _begin(self, minute: int) -> None:
        """The first version: ids for the catalogue, and weights that have learned all of the history."""
        self.feed.apply_before((minute + 1) * self.join.bucket_ms + self.join.open_ms, self.catalogue)
        self._build()
        if self.model is None:
            raise ValueError("a warm start needs items: the items stream holds none before its end")
        started = time.perf_counter()
        for _ in self._warm_start():
            pass
        self.stats.warm_start_s = time.perf_counter() - started
        self._optimizer = self._new_optimizer(self.config.lr)
        self._history = []
        self._finish(minute - 1, [])

    def _warm_start(self) -> Iterator[float]:
        """Epochs over the history in seeded order; yields the loss of each batch."""
        assert self.model is not None
        config, model = self.config.warm_start, self.model
        chosen = imported_lessons(self._history, self.memory, slots=config.slots)
        random = np.random.Generator(np.random.PCG64(self.seeds.of("warm_start", 0)))
        torch.manual_seed(self.seeds.of("warm_start", 1))
        shelf = model.shelf(0)
        trie = Trie.built(model.tokenizer.ids_NK, ~shelf.alive_R[1:])
        maker = BatchMaker(self.catalogue, shelf, model.decoder.config.history, model.decoder.config.features)
        optimizer = self._new_optimizer(config.lr)
        num_steps = config.epochs * -(-len(chosen) // config.batch)
        for step in range(num_steps):
            at = step * config.batch % max(len(chosen), 1)
            if step % -(-len(chosen) // config.batch) == 0:
                order, at = random.permutation(len(chosen)), 0
                LOG.info("warm start: epoch %d of %d, %d sequences", 1 + step * config.batch // len(chosen), config.epochs, len(chosen))
            else:
                at = step % -(-len(chosen) // config.batch) * config.batch
            part = [chosen[place] for place in order[at : at + config.batch]]
            for group in optimizer.param_groups:
                group["lr"] = config.lr * 0.5 * (1 + np.cos(np.pi * step / num_steps))
            model.decoder.train()
            terms = objective(model.scored(trie), maker.batch(part, [model.num_rows] * len(part)), self.config.objective)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(terms.loss)
            torch.nn.utils.clip_grad_norm_(model.decoder.parameters(), self.config.guard.max_grad_norm)
            optimizer.step()
            self.stats.warm_start_sequences += len(part)
            yield float(terms.loss.detach())
        model.decoder.eval()
        self._reservoir.offer(chosen, random)

    def _new_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """Item rows and heads at full step, what all items share slower."""
        assert self.model is not None
        decoder = self.model.decoder
        fast = {id(parameter) for parameter in [*decoder.row_parameters(), *decoder.head_parameters()]}
        groups = [
            {"params": [parameter for parameter in decoder.parameters() if id(parameter) in fast]},
            {"params": [parameter for parameter in decoder.parameters() if id(parameter) not in fast]},
        ]
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), weight_decay=0.0, foreach=True)

    # State -----------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        assert self.model is not None
        assert self._optimizer is not None
        state = {
            "policy_version": self.policy_version,
            "next_minute": self._next_minute,
            "rows_of_version": self._rows_of_version,
            "behavior_digest": self.seeds.behavior_digest,
            "run_seed": self.seeds.run_seed,
            "items_offset": self.catalogue.next_offset,
        }
        arrays = {f"reservoir.{name}": array for name, array in self._reservoir.arrays().items()}
        arrays |= _optimizer_arrays(self._optimizer)
        model = self.model.artifact({})
        checkpoints.save(self.directory / "checkpoints", Checkpoint(self.policy_version, state, self.joiner.snapshot(), arrays, model))

    def _restore(self) -> None:
        """Go on from the newest whole checkpoint: its offsets, and memory and catalogue read again up to them."""
        saved = checkpoints.restore(self.directory / "checkpoints")
        if saved is None:
            return
        state: dict[str, Any] = dict(saved.state)
        if state["behavior_digest"] != self.seeds.behavior_digest or state["run_seed"] != self.seeds.run_seed:
            raise ValueError(f"{self.directory} was made with another configuration or seed; use another --state")
        self.joiner = Joiner.restore(self.join, saved.joiner)
        self.policy_version, self._next_minute = state["policy_version"], state["next_minute"]
        self._rows_of_version = {int(version): rows for version, rows in state["rows_of_version"].items()}
        self._reread(state["items_offset"])
        assert saved.model is not None
        self.model = LiveModel.of(saved.model, self.catalogue)
        self._optimizer = self._new_optimizer(self.config.lr)
        _load_optimizer(self._optimizer, saved.arrays)
        prefix = "reservoir."
        arrays = {name.removeprefix(prefix): array for name, array in saved.arrays.items() if name.startswith(prefix)}
        self._reservoir = Reservoir.of(self.config.reservoir, arrays)
        published = publisher.current(self.directory)
        if published is None or published.policy_version < self.policy_version:
            self._publish(self._next_minute * self.join.bucket_ms)  # killed between saving and publishing

    def _reread(self, items_offset: int) -> None:
        for partition in range(self._log.num_partitions):
            self.memory.keep_from[partition] = self._oldest_needed(partition)
            end = self.joiner.next_offset(partition)
            while self.memory.next_offset[partition] < end:
                for record in self._log.read(partition, self.memory.next_offset[partition]):
                    if record.offset < end:
                        self._remember(partition, record.offset, record.value)
                    else:
                        self.memory.next_offset[partition] = end
        self.feed.read()
        self.feed.apply_up_to(items_offset, self.catalogue)


def _as_of(example: Example) -> int:
    return example.offset if example.decision.memory_offset < 0 else example.decision.memory_offset


def _fair_weights(fresh: Sequence[Lesson], num_lessons: int, user_cap: int) -> list[float]:
    """1 each, but a user with more than `user_cap` slates in this minute counts as `user_cap` in all; replayed ones 1."""
    count: dict[str, int] = {}
    for lesson in fresh:
        count[lesson.decision.user_id] = count.get(lesson.decision.user_id, 0) + 1
    weights = [min(1.0, user_cap / count[lesson.decision.user_id]) for lesson in fresh]
    return weights + [1.0] * (num_lessons - len(fresh))


def _optimizer_arrays(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{at}.{name}": value.numpy() for at, values in state.items() for name, value in values.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, arrays: checkpoints.Arrays) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, array in arrays.items():
        prefix, _, rest = key.partition(".")
        if prefix == "optimizer":
            at, _, name = rest.partition(".")
            state.setdefault(int(at), {})[name] = torch.from_numpy(array.copy())
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
