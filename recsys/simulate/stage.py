"""What all variants of one world and seed begin with: the same log, the same model that has learned its history.

Knows nothing of what variants do from there.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.artifact import Artifact
from recsys import publisher
from recsys.config import Config, behavior_digest
from recsys.features import Lesson, imported_lessons
from recsys.imports import CLOSING_MINUTES
from recsys.learner import Learner
from recsys.loop import HISTORY_ENDS_MS, MINUTE_MS, write_history
from recsys.memory import Memory, MemoryConfig
from recsys.simulate.worlds import Population
from recsys.trainer import Seeds
from recsys.worlds import World
from streaming.clock import Clock, ManualClock
from streaming.events import Item, ItemChange, Tick, encode
from streaming.joiner import Example, Joiner
from streaming.log import Entry, EventLog, MemoryLog

NEVER = 1 << 60
"""Versions between two checkpoints where nothing is ever continued."""


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """One world and seed at the start. Its logs and its directory are read only: a variant goes on from copies."""

    population: Population
    config: Config
    seed: int
    start_ms: int
    minutes: int
    log: MemoryLog
    items_log: MemoryLog
    directory: Path

    @staticmethod
    def made(population: Population, config: Config, seed: int, minutes: int, directory: Path) -> "Beginning":
        """Write the history and let a learner learn it, into `directory`.

        ValueError for a world without a first turn, or whose history has not closed by then.
        """
        world = population.twin(seed, minutes)
        catalogue = world.catalog()
        first = world.next_turn()
        if first is None:
            raise ValueError(f"world {population.name} ends before its first turn")
        start_ms = first.event_time_ms // MINUTE_MS * MINUTE_MS
        log, items_log = MemoryLog(1), MemoryLog(1)
        waits_ms = config.join.open_ms + config.join.disorder_ms + config.join.bucket_ms
        if population.history is not None:
            write_history(population.history, catalogue, log, items_log)
            if waits_ms > CLOSING_MINUTES * MINUTE_MS:
                _tell_time(start_ms, log, items_log)  # whoever waits longer than the history's own ticks go on
        else:
            _write_catalogue(catalogue, start_ms, log, items_log)
        beginning = Beginning(
            population=population,
            config=config,
            seed=seed,
            start_ms=start_ms,
            minutes=minutes,
            log=log,
            items_log=items_log,
            directory=directory,
        )
        shutil.rmtree(directory, ignore_errors=True)
        learner = beginning.learner(config, ManualClock(start_ms), log, items_log, directory)
        learner.catch_up()
        learner.close()
        if publisher.current(directory / config.join.variant) is None:
            waits_s = waits_ms // 1000
            raise ValueError(f"world {population.name}: its history must end {waits_s} s (W + L + D + M) before its first turn, or sooner")
        return beginning

    @property
    def seeds(self) -> Seeds:
        """Of all variants alike, so that they differ in what they do and in nothing drawn."""
        return Seeds(behavior_digest(self.config), self.seed)

    def history(self) -> list[Lesson]:
        """What the log held at the start, each slate read with the memory before it."""
        joiner, memory = Joiner(self.config.join, self.log.num_partitions), Memory(self.config.memory, self.log.num_partitions)
        memory.keep_from = [0] * self.log.num_partitions
        for partition, end in enumerate(self.log.end_offsets()):
            records = self.log.read(partition, 0, end)
            joiner.apply(partition, records)
            memory.read(records)
        examples: list[Example] = []
        while (bucket := joiner.take_bucket()) is not None:
            examples += bucket.examples
        return imported_lessons(examples, memory, slots=self.config.learner.trainer.warm_start.slots)

    def artifact(self) -> Artifact:
        """The version at the start, read anew."""
        published = publisher.current(self.directory / self.config.join.variant)
        assert published is not None
        return publisher.load(published)

    def learner(
        self, config: Config, clock: Clock, log: EventLog, items_log: EventLog, state_dir: Path, save_every: int = NEVER
    ) -> Learner:
        """A learner with the seeds of this beginning."""
        return Learner(
            config.learner,
            config.model,
            config.join,
            config.memory,
            self.seeds,
            clock=clock,
            log=log,
            items_log=items_log,
            state_dir=state_dir,
            save_every=save_every,
        )


class Stage:
    """One variant's own copies of a beginning: world, log, state and clock."""

    def __init__(self, beginning: Beginning, variant: str, config: Config, directory: Path, *, live_memory: bool = True) -> None:
        """`config` may differ from the beginning's; `directory` is emptied. Without `live_memory` users stay remembered as at the start."""
        self.beginning, self.variant, self.directory = beginning, variant, directory
        until_ms = 0 if live_memory else beginning.start_ms
        self.config = replace(
            config,
            join=replace(config.join, variant=variant),
            memory=replace(config.memory, until_ms=until_ms),
        )
        self.clock = ManualClock(beginning.start_ms)
        self.log, self.items_log = _copy(beginning.log), _copy(beginning.items_log)
        self.world: World = beginning.population.twin(beginning.seed, beginning.minutes)
        shutil.rmtree(directory, ignore_errors=True)

    @property
    def memory(self) -> MemoryConfig:
        """What server and learner remember."""
        return self.config.memory

    def learner(self, save_every: int = NEVER) -> Learner:
        """A learner that goes on from the beginning."""
        shutil.copytree(self.beginning.directory / self.beginning.config.join.variant, self.directory / self.variant)
        return self.beginning.learner(self.config, self.clock, self.log, self.items_log, self.directory, save_every)


def _copy(log: MemoryLog) -> MemoryLog:
    copy = MemoryLog(log.num_partitions)
    for partition, end in enumerate(log.end_offsets()):
        copy.append([Entry(record.key, record.value, partition) for record in log.read(partition, 0, end)])
    return copy


def _write_catalogue(catalogue: Sequence[Item], start_ms: int, log: EventLog, items_log: EventLog) -> None:
    """Items without a history: there before the start, and the time told, so that a first version is made of them."""
    before_ms = start_ms - HISTORY_ENDS_MS
    changes = [Entry(b"", encode(ItemChange(event_time_ms=before_ms, item=item), before_ms), 0) for item in catalogue]
    items_log.append(changes)
    _tell_time(start_ms, log, items_log)


def _tell_time(time_ms: int, *logs: EventLog) -> None:
    tick = encode(Tick(event_time_ms=time_ms), time_ms)
    for log in logs:
        log.append([Entry(b"", tick, partition) for partition in range(log.num_partitions)])
