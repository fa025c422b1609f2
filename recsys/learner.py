"""The learner: every minute of the log becomes one update of the weights, one checkpoint and one published version.

Knows nothing of requests or of who serves. Its state is a function of the records it has read: read → join → update →
check → save → publish, each minute (bucket) in order of event time.
A minute's version holds the catalogue changes before (minute + 1) · M + W + L, which is when it can be trained: so a new
item is in the second publish after its arrival at the latest.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from models.artifact import Artifact, weights_digest
from recsys import checkpoint as checkpoints
from recsys import publisher
from recsys.blobs import below, under
from recsys.catalogue import Catalogue
from recsys.checkpoint import Checkpoint
from recsys.controls import CONTROL_PARTITION, Controls, Rollback, accept_gap, foreseen
from recsys.features import Lesson, imported_lessons, lessons, neighbours
from recsys.learner_config import LearnerConfig
from recsys.learner_stats import STATS_KEPT, LearnerStats
from recsys.live_model import ItemsFeed, LiveModel, ModelConfig
from recsys.memory import Memory, MemoryConfig, refuse_another
from recsys.quarantine_gate import QuarantineGate
from recsys.reservoir import Reservoir
from recsys.saver import Saver
from recsys.trainer import Seeds, Trainer
from recsys.version_store import VersionStore
from streaming.clock import Clock
from streaming.gaps import Gapped
from streaming.joiner import Bucket, Example, JoinConfig, Joiner
from streaming.log import EventLog, OffsetGone

LOG = logging.getLogger(__name__)

STATE_SCHEMA = 5
READ_RECORDS = 1_000
"""Records of a partition that are read at once: what is read ahead waits in the joiner, in memory and in every checkpoint."""


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
        saver: Saver | None = None,
        save_every: int = 1,
        last_version: int | None = None,
        accept_gap: bool = False,
    ) -> None:
        """Without a `saver` all waits for the disk: a version is there when the step that made it has ended.

        `accept_gap`: what the log no longer holds when it is come to is passed, and a Control says so; else OffsetGone stops it.
        For a replay, which nobody serves: `save_every`, versions between two checkpoints and publishes; `last_version` of all.
        """
        config.trainer.device.require()
        self.config, self.join, self.seeds, self.clock = config, join, seeds, clock
        self._model_config, self._memory_config, self._accept_gap = model, memory, accept_gap
        self._save_every, self._last_version = save_every, last_version
        self.directory = state_dir / join.variant
        self.stats = LearnerStats()
        self.versions = VersionStore(self.directory, saver or Saver(beside=False), clock, self.stats)
        self.joiner = Joiner(join, log.num_partitions)
        self.controls = Controls(join, seeds.behavior_digest)
        self.memory = Memory(memory, log.num_partitions)
        self.catalogue = Catalogue()
        self.feed = ItemsFeed(items_log, join.disorder_ms)
        self._trainer: Trainer | None = None
        self.policy_version = 0
        self._next_minute = 0
        self._history: list[Example] = []
        self._history_from: dict[int, int] = {}
        """By partition, the oldest offset as of which the history needs memory."""
        self._reservoir = Reservoir(config.reservoir)
        self._rows_of_version: dict[int, int] = {}
        self._num_learned = 0
        """Own Examples in the weights."""
        with ExitStack() as undo:
            undo.callback(self.versions.close)
            self._restore(log)
            undo.pop_all()

    # The loop --------------------------------------------------------------------------------------------------------

    def step(self) -> int:
        """Read on and learn every minute that is complete; how many versions were made. Reads a bounded part of a long log."""
        before = self.policy_version
        self.versions.note_saved()
        self._read()
        watermark_ms = self.joiner.watermark_ms
        if watermark_ms is None or self.feed.watermark_ms < watermark_ms:
            return 0  # the items of a minute must be known before it is learned
        while not self.is_done and (bucket := self.joiner.take_bucket()) is not None:
            self._pass_until(bucket.index)
            if not self.is_done:
                self._learn(bucket)
        self._pass_until(self.joiner.trained_through_ms // self.join.bucket_ms)
        return self.policy_version - before

    def catch_up(self) -> None:
        """Step until the log's present end, and save what was made since the last checkpoint."""
        ends = self._log.end_offsets()
        self.step()
        while not self.is_done and any(self.joiner.next_offset(partition) < end for partition, end in enumerate(ends)):
            self.step()
        if self._trainer is not None and self.policy_version % self._save_every:
            self._save(self._trainer)
        self.versions.note_saved(wait=True)

    @property
    def is_done(self) -> bool:
        """Whether the last version to learn is there."""
        return self.policy_version == self._last_version

    def weights_digest(self) -> str | None:
        """SHA-256 of the weights as they are; None before there are any."""
        return weights_digest(self._trainer.model.decoder) if self._trainer else None

    def version(self) -> Artifact | None:
        """The newest version, published or not, for who serves in this process; shares memory with the weights that go on learning."""
        return self._version(self._trainer) if self._trainer else None

    def close(self) -> None:
        """Let another process write to the state, when what is being saved is there."""
        self.versions.close()

    def _read(self) -> None:
        self._let_go()
        for partition in range(self._log.num_partitions):
            try:
                records = self._log.read(partition, self.joiner.next_offset(partition), READ_RECORDS)
            except OffsetGone as gone:
                self._pass_gap(gone)
                continue
            self.joiner.apply(partition, records)
            self.memory.read(records)
        self.controls.take(self.joiner.take_controls())
        self.feed.read()

    def _pass_gap(self, gone: OffsetGone) -> None:
        """Go on behind what the log no longer holds, if somebody said so, now or before."""
        if not self._log.is_known(gone):
            if not self._accept_gap:
                raise gone
            accept_gap(self._log, self.join.variant, gone, self.clock.now_ms())
        LOG.warning("going on without what is gone: %s", gone)
        self.joiner.pass_gap(gone.partition, gone.begin_offset)
        self.memory.pass_gap(gone.partition, gone.begin_offset)
        if gone.partition == CONTROL_PARTITION:
            self.versions.give_up(gone.offset, gone.begin_offset)

    def _let_go(self) -> None:
        """Memory needs no rows that only older views would hold."""
        self.memory.keep_from = [self._oldest_needed(partition) for partition in range(self._log.num_partitions)]

    def _oldest_needed(self, partition: int) -> int:
        """The oldest offset as of which memory may be asked for: by decisions not yet learned, or not yet read."""
        offsets = [self.joiner.min_open_memory_offset(partition), self._history_from.get(partition), self.joiner.next_offset(partition)]
        return min(offset for offset in offsets if offset is not None)

    # One minute ------------------------------------------------------------------------------------------------------

    def _pass_until(self, minute: int) -> None:
        """Obey what operators asked for before `minute` is learned, each in its place among the quiet minutes."""
        while not self.is_done and (due := self.controls.next_due(minute)) is not None:
            self._pass_quiet_minutes(due.minute)
            self._roll_back(due.rollback)
        self._pass_quiet_minutes(minute)

    def _pass_quiet_minutes(self, end_minute: int) -> None:
        """Minutes without Examples make a version only if the catalogue changed, or if they end the history."""
        if self._trainer is not None and self._next_minute < end_minute:
            self._quarantine_gate.check(range(self._next_minute, end_minute), 0, self.joiner, self.controls)
        while self._next_minute < end_minute and not self.is_done:
            until_ms = self.feed.warm_start_until_ms
            if self._trainer is None and until_ms is not None:
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
            if self._admit(minute) and self._trainer is not None:
                self._finish(self._trainer, minute, [])
            self._next_minute = minute + 1
        self._next_minute = max(self._next_minute, end_minute)

    def _learn(self, bucket: Bucket) -> None:
        until_ms = self.feed.warm_start_until_ms
        if self._trainer is None and until_ms is not None and bucket.start_ms < until_ms:
            self._history += bucket.examples
            for example in bucket.examples:
                needed = example.memory_offset
                self._history_from[example.partition] = min(needed, self._history_from.get(example.partition, needed))
            self._next_minute = bucket.index + 1
            return
        if self._trainer is None and until_ms is not None:
            self._begin(bucket.index)
        used = sum(1 + len(example.append_times_ms) for example in bucket.examples if example.own)
        self._quarantine_gate.check(range(bucket.index, bucket.index + 1), used, self.joiner, self.controls)
        self._admit(bucket.index)
        if self._trainer is None:
            self.joiner.withdraw(sum(example.own for example in bucket.examples), "stale")
            return
        started = time.perf_counter()
        append_times_ms = self._update(self._trainer, bucket)
        self.stats.update_s.append(time.perf_counter() - started)
        self._finish(self._trainer, bucket.index, append_times_ms)
        self._next_minute = bucket.index + 1

    def _admit(self, minute: int) -> bool:
        """Let in the catalogue changes before the minute's cut; whether there were any."""
        cut_ms = (minute + 1) * self.join.bucket_ms + self.join.open_ms
        rows = self.feed.apply_before(cut_ms, self.catalogue)
        if not rows:
            return False
        if self._trainer is not None:
            self._trainer.admit(rows)
        elif self.feed.warm_start_until_ms is None:
            self._build()
        return self._trainer is not None

    def _update(self, trainer: Trainer, bucket: Bucket) -> list[int]:
        """Learn the minute's Examples and a share of earlier ones; when the records of what was learned as new were appended."""
        random = self.seeds.random("update", bucket.index)
        fresh = self._lessons(bucket.examples)
        if not fresh:
            return []
        replayed = self._reservoir.draw(round(len(fresh) * self.config.replay_share / (1 - self.config.replay_share)), random)
        rows = [self._rows_of_version.get(lesson.decision.policy_version, trainer.model.num_rows) for lesson in [*fresh, *replayed]]
        _, refused, weights = trainer.update(fresh, replayed, rows, bucket.index)
        self.stats.updated(bucket.index, refused, sum(weight < 1 for weight in weights))
        own = [lesson for lesson in fresh if lesson.own]
        if refused is not None:
            self.joiner.refuse(len(own), refused)
            return []
        self._num_learned += len(own)
        # as likely as it weighs: who has more than the cap allows now must not have it when it is replayed
        chosen = [lesson for lesson, weight in zip(fresh, weights, strict=True) if weight == 1 or random.random() < weight]
        self._reservoir.offer([lesson for lesson in chosen if lesson.own], random)
        return [when for example in bucket.examples if example.own for when in example.append_times_ms]

    def _lessons(self, examples: Sequence[Example]) -> list[Lesson]:
        """Own Examples that are recent enough, then imported ones; what answered before the first version counts as stale too."""
        clean = [example for example in examples if not self.controls.is_void(example)]
        own = [example for example in clean if example.own]
        self.joiner.withdraw(sum(example.own for example in examples) - len(own), "quarantined")
        oldest = max(1, self.policy_version - self.config.max_lag)
        recent = [example for example in own if example.decision.policy_version >= oldest]
        self.joiner.withdraw(len(own) - len(recent), "stale")
        imported = [example for example in clean if not example.own]
        return lessons(recent, self.memory) + imported_lessons(imported, self.memory, slots=self.config.trainer.warm_start.slots)

    def _finish(self, trainer: Trainer, minute: int, append_times_ms: list[int]) -> None:
        """Save, then publish: a version that is served can always be continued from."""
        self.policy_version += 1
        self.stats.trained_append_ms[self.policy_version] = append_times_ms
        self._rows_of_version[self.policy_version] = trainer.model.num_rows
        self.stats.trained_append_ms.pop(self.policy_version - STATS_KEPT, None)
        self._rows_of_version.pop(self.policy_version - 2 * self.config.max_lag, None)
        self._next_minute = minute + 1
        self._ahead.made(self.policy_version, self._next_minute * self.join.bucket_ms)
        if self.policy_version % self._save_every == 0 or self.policy_version in self._ahead.versions:
            self._save(trainer)

    def _version(self, trainer: Trainer) -> Artifact:
        facts = {
            "policy_version": self.policy_version,
            "trained_through_ms": self._next_minute * self.join.bucket_ms,
            "items_offset": self.catalogue.next_offset,
            "behavior_digest": self.seeds.behavior_digest,
            "variant": self.join.variant,
        }
        return trainer.model.artifact(facts)

    # The beginning ---------------------------------------------------------------------------------------------------

    def _build(self, history: Sequence[Lesson] = ()) -> None:
        """New ids and untrained weights over the catalogue as it is; nothing yet while it is empty."""
        if self.catalogue.item_ids:
            pairs = neighbours(history, {item_id: row for row, item_id in enumerate(self.catalogue.item_ids, 1)})
            seed = self.seeds.of("weights", 0)
            model = LiveModel.built(self._model_config, self.catalogue, self._memory_config, seed, pairs)
            model.decoder.eval()  # dropout is for the warm start only, and a model comes back from a checkpoint so
            self._trainer = Trainer(self.config.trainer, model, self.seeds)

    def _begin(self, minute: int) -> None:
        """The first version: ids for the catalogue, and weights that have learned all of the history."""
        self.feed.apply_before((minute + 1) * self.join.bucket_ms + self.join.open_ms, self.catalogue)
        history = imported_lessons(self._history, self.memory, slots=self.config.trainer.warm_start.slots)
        self._build(history)
        if self._trainer is None:
            raise ValueError("a warm start needs items: the items stream holds none before the end of the history")
        started = time.perf_counter()
        self.stats.warm_start_sequences = self._trainer.warm_start(history)
        self.stats.warm_start_s = time.perf_counter() - started
        self._history, self._history_from = [], {}
        self._finish(self._trainer, minute - 1, [])

    # State -----------------------------------------------------------------------------------------------------------

    def _save(self, trainer: Trainer) -> None:
        self._let_go()
        self.versions.save(lambda: self._checkpoint(trainer), lambda: self._version(trainer), frozenset(self._ahead.versions))

    def _checkpoint(self, trainer: Trainer) -> Checkpoint:
        state = {
            "schema": STATE_SCHEMA,
            "policy_version": self.policy_version,
            "next_minute": self._next_minute,
            "rows_of_version": self._rows_of_version,
            "behavior_digest": self.seeds.behavior_digest,
            "run_seed": self.seeds.run_seed,
            "items_offset": self.catalogue.next_offset,
            "controls": self.controls.state(),
            "gates": trainer.gates.state(),
            "num_learned": self._num_learned,
            "not_learned_from": [self._oldest_needed(partition) for partition in range(self._log.num_partitions)],
        }
        arrays = under("reservoir", self._reservoir.arrays()) | under("optimizer", trainer.arrays()) | under("memory", self.memory.arrays())
        return Checkpoint(self.policy_version, state, self.joiner.snapshot(), arrays, trainer.model.artifact({}))

    def _restore(self, log: EventLog) -> None:
        """Go on from the newest whole checkpoint, where its offsets are; only the catalogue is read again."""
        saved = checkpoints.restore(self.directory / "checkpoints")
        if saved is not None:
            self._refuse_other_state(saved.state)
            self.joiner = Joiner.restore(self.join, saved.joiner)
        ahead = foreseen(log, self.join.variant, self.seeds.behavior_digest, self.joiner.next_offset(CONTROL_PARTITION))
        self._ahead, self._log = ahead, Gapped(log, ahead.gaps)
        self._quarantine_gate = QuarantineGate(self.config.max_quarantined, self.join, self._log)
        if saved is None:
            self.controls.avoid(ahead.spans)
            return
        state = saved.state
        refuse_another(self._log, remembered := below("memory", saved.arrays), str(self.directory))
        self.memory = Memory.of(self._memory_config, remembered)
        self.policy_version, self._next_minute = state["policy_version"], state["next_minute"]
        self._num_learned = state["num_learned"]
        self.versions.newest_saved = self.policy_version
        self._rows_of_version = {int(version): rows for version, rows in state["rows_of_version"].items()}
        self.controls = Controls.of(self.join, self.seeds.behavior_digest, state["controls"])
        self.controls.avoid(ahead.spans)
        self.feed.read()
        self.feed.apply_up_to(state["items_offset"], self.catalogue)
        self._trainer = self._learned(saved)
        if not publisher.is_current(self.directory, self.policy_version):
            self.versions.publish(self._version(self._trainer), frozenset(self._ahead.versions))  # killed between saving and publishing

    def _refuse_other_state(self, state: Mapping[str, Any]) -> None:
        if state.get("schema") != STATE_SCHEMA:
            raise ValueError(f"{self.directory} has a state of schema {state.get('schema')}; this program reads {STATE_SCHEMA}")
        if state["behavior_digest"] != self.seeds.behavior_digest or state["run_seed"] != self.seeds.run_seed:
            raise ValueError(f"{self.directory} was made with another configuration or seed; use another --state")

    def _learned(self, saved: Checkpoint) -> Trainer:
        """Take the lessons of a checkpoint; its weights and optimizer."""
        trainer = Trainer(self.config.trainer, LiveModel.of(saved.model, self.catalogue), self.seeds)
        trainer.load(below("optimizer", saved.arrays), saved.state["gates"])
        self._reservoir = Reservoir.of(self.config.reservoir, below("reservoir", saved.arrays))
        return trainer

    def _roll_back(self, rollback: Rollback) -> None:
        """Have learned what the version had, and nothing since; joins, memory and items stay, and the next number is a new one."""
        self.versions.note_saved(wait=True)
        version = self.controls.standing(self._ahead.version(rollback))
        saved = checkpoints.load(self.directory / "checkpoints", version)
        self.joiner.withdraw(self._num_learned - saved.state["num_learned"], "quarantined")
        self._num_learned = saved.state["num_learned"]
        self.controls.avoid(rollback.spans)
        self.controls.undo(version, self.policy_version)
        before, self._trainer = self._trainer, self._learned(saved)
        assert before is not None, "a version was made"
        self._trainer.grow_like(before.model)
        self.versions.follow(rollback.version, version, self.policy_version)
        self.stats.num_rollbacks += 1
        LOG.warning("version %d: rolled back to what was learned in version %d", self.policy_version, version)
