"""The main job: a world, a gRPC server, a learner and a frozen twin in one process on the world's time, minute by minute.

Every request and every event goes through gRPC and the log; the components are those of production, interleaved on a
ManualClock. Knows nothing of how the world or the model works, nor of how the figures are shown.
"""

import heapq
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recsys import publisher
from recsys.click_model import ClickModelConfig
from recsys.client import Client
from recsys.config import Config, behavior_digest
from recsys.datasets import Sample, load_sample
from recsys.engine import Engine, Identity
from recsys.imports import Frames, import_logs, items_of
from recsys.keeper import Keeper
from recsys.learner import Learner
from recsys.server import Server
from recsys.tally import Tally
from recsys.tokens import TokenMint
from recsys.trainer import Seeds
from recsys.truth import TOY_START_MS, SampleTruthConfig, Truth, answered, sample_truth, toy_truth
from recsys.worlds import KnownWorld, SimulatedWorld, Turn, WorldConfig
from streaming.clock import ManualClock
from streaming.events import Control, Event, Item, ItemChange, Tick, encode
from streaming.log import Entry, EventLog

LOG = logging.getLogger(__name__)

TICK_MS, LEARN_MS, MINUTE_MS = 1_000, 2_000, 60_000
"""How often, in the world's time, the server ticks and the learner looks into the log."""
HISTORY_ENDS_MS = 5 * MINUTE_MS
"""So long before a world begins its history ends: all of it has closed by then."""


class LogNotEmpty(ValueError):
    """The loop makes its own history, so it needs a log that holds none."""


def refuse_records(*logs: EventLog) -> None:
    """LogNotEmpty where any of these holds a record."""
    if num_records := sum(sum(log.end_offsets()) for log in logs):
        raise LogNotEmpty(f"the log holds {num_records} records; the loop needs an empty one")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a run is about: a world, when it begins, and the history that the model may start from."""

    name: str
    world: KnownWorld
    start_ms: int
    minutes: int
    history: Frames | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Where a run happens."""

    log: EventLog
    items_log: EventLog
    state_dir: Path


class Loop:
    """One run. `minutes()` drives it; figures are in `tally`, `learner.stats` and `server.stats()`."""

    def __init__(self, config: Config, scene: Scene, stage: Stage, seed: int) -> None:
        self.config, self.scene, self.stage, self.seed = config, scene, stage, seed
        refuse_records(stage.log, stage.items_log)
        self.clock = ManualClock(scene.start_ms)
        self.tally = Tally(window_ms=config.join.window_ms)
        self._pending: list[tuple[int, int, Event]] = []
        self._num_pending = 0
        self._open = ExitStack()
        self._begin()

    def _begin(self) -> None:
        config, stage, clock = self.config, self.stage, self.clock
        digest = behavior_digest(config)
        names = [name for name, _ in config.experiment.variants]
        if self.scene.history is not None:
            write_history(self.scene.history, self.scene.world.catalog(), stage.log, stage.items_log)
            LOG.info("history is in the log: %d records", sum(stage.log.end_offsets()))
        self.learner = Learner(
            config.learner,
            config.model,
            config.join,
            config.memory,
            Seeds(digest, self.seed),
            clock=clock,
            log=stage.log,
            items_log=stage.items_log,
            state_dir=stage.state_dir,
        )
        self._open.callback(self.learner.close)
        self.learner.catch_up()
        first = publisher.current(self.learner.directory)
        start = publisher.load(first) if first else None
        frozen = [name for name in names if name not in {config.join.variant, "random"}]
        self.keepers = [
            Keeper(name, lambda: start, config.join, clock=clock, items_log=stage.items_log, state_dir=stage.state_dir)
            for name in frozen
            if start is not None
        ]
        mint = TokenMint([f"loop {self.seed}".encode().ljust(32, b"\0")], config.engine.token_lifetime_ms)
        self.engine = Engine(
            config.engine,
            config.memory,
            config.experiment,
            Identity(self.seed, digest),
            clock=clock,
            log=stage.log,
            items_log=stage.items_log,
            mint=mint,
        )
        self.server = Server(config.server, self.engine, clock, stage.state_dir, names, config.drawing)
        port = self.server.start()
        self._open.callback(self.server.close)
        self.client = self._open.enter_context(Client(f"127.0.0.1:{port}"))
        if self.scene.history is None:
            self.client.upsert(self.scene.world.catalog())
        LOG.info("gRPC on 127.0.0.1:%d serves version %d", port, self.learner.policy_version)

    def minutes(self) -> Iterator[int]:
        """Run to the end of the world; yields after each world minute, so that it can be watched, or left."""
        minute = 0
        turn = self.scene.world.next_turn()
        while minute < self.scene.minutes:
            end_ms = self.scene.start_ms + (minute + 1) * MINUTE_MS
            while turn is not None and turn.event_time_ms < end_ms:
                self._advance(turn.event_time_ms)
                self._play(turn)
                turn = self.scene.world.next_turn()
            self._advance(end_ms)
            minute += 1
            yield minute

    def close(self) -> None:
        """Stop the server and let go of the state."""
        self._open.close()

    def _play(self, turn: Turn) -> None:
        items = [item for _, item in self.scene.world.upserts()]
        if items:
            self.client.upsert(items)
            self.tally.arrived([item.item_id for item in items if not item.retired], self.clock.now_ms())
        if turn.organic:
            self.client.record(turn.organic)
        if turn.request is not None:
            if self._waits_for(turn.request.user_id, turn.event_time_ms):
                self._deliver(turn.event_time_ms)
            response = self.client.recommend(turn.request)
            events = self.scene.world.respond(response)
            self.tally.decided(turn, response, events, self.scene.world)
            for event in events:
                self._num_pending += 1
                heapq.heappush(self._pending, (event.event_time_ms, self._num_pending, event))

    def _advance(self, until_ms: int) -> None:
        """Second by second: what is due reaches the server, the server ticks, the learner learns what is complete."""
        while (next_ms := (self.clock.now_ms() // TICK_MS + 1) * TICK_MS) <= until_ms:
            self.clock.advance_to(next_ms)
            self._deliver(next_ms)
            self.server.step()
            if next_ms % LEARN_MS == 0:
                self._learn()
        self.clock.advance_to(until_ms)

    def _learn(self) -> None:
        """Learn what is complete, and serve it at once."""
        started = time.perf_counter()
        published = self.learner.step()
        self.tally.learn_s += time.perf_counter() - started
        for keeper in self.keepers:
            published += keeper.step()
        if published:
            self.server.step()
            self._note_freshness()

    def _waits_for(self, user_id: str, now_ms: int) -> bool:
        """Whether an event of this user is due: it must be there before his next request; the others can wait for the second to end."""
        return any(due_ms <= now_ms and event.user_id == user_id for due_ms, _, event in self._pending)

    def _deliver(self, now_ms: int) -> None:
        due = []
        while self._pending and self._pending[0][0] <= now_ms:
            due.append(heapq.heappop(self._pending)[2])
        if due:
            self.client.record(due)

    def _note_freshness(self) -> None:
        version = self.learner.policy_version
        served = self.server.stats()["variants"][self.config.join.variant]
        if served and served["policy_version"] == version:
            self.tally.served(version, self.learner.stats.trained_append_ms.get(version, []), int(served["loaded_at_ms"]), served["load_s"])

    def books(self) -> Mapping[str, Any]:
        """The learner's books now."""
        return self.learner.joiner.books().as_dict()


def sample_scene(minutes: int, seed: int) -> Scene:
    """The packaged sample: its users, videos and clicks as a world; its first ten days, as these users answer, as history."""
    sample = load_sample()
    truth = sample_truth(sample, SampleTruthConfig(), ClickModelConfig())
    world = SimulatedWorld(truth, WorldConfig(seed=seed, minutes=minutes))
    return Scene(name="sample", world=world, start_ms=truth.start_ms, minutes=minutes, history=sample_history(sample, truth))


def sample_history(sample: Sample, truth: Truth, ends_ms: int = HISTORY_ENDS_MS) -> Frames:
    """The real exposures up to `ends_ms` before a world of this truth begins, as its users answer them (`recsys.truth.answered`)."""
    theirs = replace(sample, log=answered(sample.log, truth))
    return theirs.frames(until_ms=truth.start_ms - ends_ms, kinds=("click", "like", "dislike"), history=8)


def toy_scene(minutes: int, seed: int) -> Scene:
    """40 users, 60 items in 4 groups, no history: everything is learned in the run, and half of the users flip at half time."""
    config = WorldConfig(seed=seed, minutes=minutes, decisions_per_minute=100.0, organic_per_minute=5.0, slate_size=5)
    return Scene(name="toy", world=SimulatedWorld(toy_truth(), config), start_ms=TOY_START_MS, minutes=minutes)


SCENES: dict[str, Callable[[int, int], Scene]] = {"sample": sample_scene, "toy": toy_scene}


def write_history(history: Frames, catalogue: Sequence[Item] | None, log: EventLog, items_log: EventLog, now_ms: int | None = None) -> None:
    """Put a catalogue (None: the history's own) and what was logged before into an empty log, said to be there to start from.

    `now_ms`: the log goes on from then by itself; else time in it stands minutes behind the history, where all of that is closed.
    LogNotEmpty when the log holds records.
    """
    if any(log.end_offsets()) or any(items_log.end_offsets()):
        held = f"the log holds {sum(log.end_offsets())} records and {sum(items_log.end_offsets())} of items"
        raise LogNotEmpty(f"{held}; history goes into an empty one only, so one that was broken off must begin anew with a new log")
    events, _ = import_logs(history, log.num_partitions, now_ms)
    first_ms, last_ms = history.interactions["event_time_ms"][0], history.interactions["event_time_ms"][-1]
    control = Control(kind="warm_start", event_time_ms=first_ms, arguments={"until_ms": str((last_ms // MINUTE_MS + 1) * MINUTE_MS)})
    values = [encode(control, first_ms)]
    values += [encode(ItemChange(event_time_ms=first_ms, item=item), first_ms) for item in catalogue or items_of(history.items)]
    ends_ms = last_ms + HISTORY_ENDS_MS
    values.append(encode(Tick(event_time_ms=ends_ms if now_ms is None else min(ends_ms, now_ms)), last_ms))
    for partition in range(events.num_partitions):
        records = events.read(partition, 0, events.end_offsets()[partition])
        log.append([Entry(record.key, record.value, partition) for record in records])
    # last, and at once: a history that was broken off is none to start from
    items_log.append([Entry(b"", value, 0) for value in values])
