"""Serving and learning as processes of their own: the same components, each driven by one small loop on the wall clock.

Knows nothing of what the components do in a step. The one place that catches whatever a component raises: it says so and
goes on where the cause can pass, and stops with a clean state where it can't.
"""

import json
import logging
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Protocol

from recsys import publisher
from recsys.config import Config, behavior_digest
from recsys.durable import sync
from recsys.engine import Engine, Identity
from recsys.keeper import Keeper
from recsys.learner import Learner
from recsys.saver import Saver
from recsys.server import Access, Server
from recsys.snapshots import Snapshots
from recsys.spool import Spool
from recsys.tokens import TokenMint
from recsys.trainer import Seeds
from streaming.clock import Clock, SystemClock
from streaming.log import EventLog, LogUnavailable

LOG = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
LATE_LOOK_MS = 60_000
"""So often somebody looks whether decisions came too late to be joined."""


class Component(Protocol):
    """What a process drives."""

    def step(self) -> object:
        """Do what there is to do now."""

    def close(self) -> None:
        """Finish and let go."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a process runs: its logs, its state, its secrets. Never part of the behaviour."""

    log: EventLog
    items_log: EventLog
    state_dir: Path
    seed: int = 0
    access: Access = field(default_factory=Access)
    token_keys: Sequence[bytes] = ()
    accept_gap: bool = False
    """Whether to go on where the log does when it does not hold any more what comes next."""


def run(components: Sequence[Component], stop: threading.Event, interval_s: float) -> None:
    """Step all components every `interval_s` until `stop` is set, then close them, last first. A log that is away is waited for."""
    away = False
    try:
        while not stop.is_set():
            try:
                for component in components:
                    component.step()
                away = False
            except LogUnavailable as error:
                if not away:
                    LOG.warning("the log is away, waiting for it: %s", error)
                away = True
            stop.wait(interval_s)
    finally:
        for component in reversed(components):
            component.close()


def server_of(config: Config, place: Place) -> tuple[Server, Snapshots]:
    """A server over the place's log, not yet listening, and what keeps for its next life what it knows."""
    clock = SystemClock()
    snapshots = Snapshots(place.state_dir / "snapshots", config.engine, config.memory, place.log, clock)
    engine = Engine(
        config.engine,
        config.memory,
        config.experiment,
        Identity(place.seed, behavior_digest(config), config.server.name),
        clock=clock,
        log=place.log,
        items_log=place.items_log,
        mint=TokenMint(place.token_keys or [token_key(place.state_dir)], config.engine.token_lifetime_ms),
        spool=Spool(place.state_dir / f"waiting-{config.server.name or 'decisions'}.spool", config.server.spool_max_bytes),
        known=snapshots.newest(),
        accept_gap=place.accept_gap,
    )
    snapshots.follow(engine)
    names = [name for name, _ in config.experiment.variants]
    return Server(config.server, engine, clock, place.state_dir, names, config.drawing, place.access), snapshots


class LearnerProcess:
    """A Component: the learner, and a keeper for each other variant once there is a version to keep."""

    def __init__(self, config: Config, place: Place, clock: Clock | None = None) -> None:
        self._config, self._place, self._clock = config, place, clock or SystemClock()
        self._learner: Learner | None = None
        self._said = 0
        """The newest version that `_say` told of, or that an earlier life saved."""
        self._keepers: dict[str, Keeper] = {}
        self._num_late, self._looked_at_ms = 0, self._clock.now_ms()

    @property
    def learner(self) -> Learner:
        """Made when first asked for: it reads the log, and the log may be away for a while."""
        if self._learner is None:
            config, place = self._config, self._place
            self._learner = Learner(
                config.learner,
                config.model,
                config.join,
                config.memory,
                Seeds(behavior_digest(config), place.seed),
                clock=self._clock,
                log=place.log,
                items_log=place.items_log,
                state_dir=place.state_dir,
                saver=Saver(beside=True),
                accept_gap=place.accept_gap,
            )
            self._said, self._num_late = self._learner.versions.newest_saved, self._learner.joiner.books().decisions["late"]
            LOG.info("learning into %s, from version %d on", place.state_dir, self._learner.policy_version)
        return self._learner

    def step(self) -> None:
        """Learn what is complete; let the frozen variants follow the catalogue."""
        self.learner.step()
        self._say()
        self._tell_of_late()
        for name, _ in self._config.experiment.variants:
            if name != self._config.join.variant:
                self._keep(name)

    def close(self) -> None:
        """Let another process write to the state; all that counts is in the last checkpoint, which is waited for and told of."""
        if self._learner is not None:
            self._learner.close()
            with suppress(LogUnavailable):  # then nobody knows how far behind this was, and closing is no place to wait
                self._say()

    def _say(self) -> None:
        """Tell of the newest version, once it is saved: a line for people and one in `metrics.jsonl` for programs."""
        newest = self.learner.versions.newest_saved
        if newest <= self._said:
            return
        stats, joiner = self.learner.stats, self.learner.joiner
        books = joiner.books()
        said = {
            "policy_version": newest,
            "published_at_ms": self._clock.now_ms(),
            "update_s": stats.update_s[-1] if stats.update_s else None,
            "save_s": stats.save_s[-1],
            "publish_s": stats.publish_s[-1],
            "blocked_s": stats.blocked_s[-1],
            "warm_start_s": stats.warm_start_s,
            "warm_start_sequences": stats.warm_start_sequences,
            "refused": stats.num_refused,
            "capped": stats.num_capped,
            "lag": [end - joiner.next_offset(partition) for partition, end in enumerate(self._place.log.end_offsets())],
            "books": books.as_dict(),
        }
        with (self.learner.directory / METRICS).open("a") as file:
            file.write(json.dumps(said) + "\n")
        LOG.info("version %d, decisions %s", newest, _short(books.decisions))
        self._said = newest

    def _tell_of_late(self) -> None:
        """That nothing is learned any more may have no other sign: one server whose clock is ahead takes the time of the log along."""
        now_ms = self._clock.now_ms()
        if 0 <= now_ms - self._looked_at_ms < LATE_LOOK_MS:
            return
        joiner, before = self.learner.joiner, self._num_late
        self._num_late, self._looked_at_ms = joiner.books().decisions["late"], now_ms
        if self._num_late > before and joiner.watermark_ms is not None:
            ahead_s = (joiner.watermark_ms - now_ms) / 1000
            LOG.warning(
                "decisions that came too late to be learned: %d; the time of the log is %.0f s %s this clock: is a server's clock wrong?",
                self._num_late - before,
                abs(ahead_s),
                "ahead of" if ahead_s > 0 else "behind",
            )

    def _keep(self, name: str) -> None:
        if name not in self._keepers:
            learned = self.learner.directory
            if not (learned / publisher.CURRENT).exists():
                return
            self._keepers[name] = Keeper(
                name,
                lambda: publisher.served(learned),
                self._config.join,
                clock=self._clock,
                items_log=self._place.items_log,
                state_dir=self._place.state_dir,
            )
        self._keepers[name].step()


def token_key(state_dir: Path) -> bytes:
    """The signing key of this state directory, made on first use; servers that share events must share it."""
    path = state_dir / "token.key"
    if not path.exists():
        state_dir.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=state_dir, prefix=".tmp-token-") as made:  # for no other user's eyes from the beginning
            made.write(secrets.token_hex(32))
            made.flush()
            sync(Path(made.name))
            with suppress(FileExistsError):  # another server was first, and its key is the one
                os.link(made.name, path)
        sync(state_dir)
    return signing_key(path.read_text(), str(path))


def signing_key(text: str, where: str) -> bytes:
    """A key as hexadecimal digits say it. ValueError names `where` they are not, and never what they are."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ValueError(f"{where} holds no key: hexadecimal digits are needed, two a byte") from None


def _short(counts: Mapping[str, int]) -> str:
    return " ".join(f"{name}={count}" for name, count in counts.items() if count)
