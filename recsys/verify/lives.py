"""Lives of one learner: forked, left alone or killed, and what each has written in its journal.

Knows nothing of what kills it or of how it should end. A life is a process group, so that what it forks dies with it.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path

from models import artifact as artifacts
from recsys import publisher
from recsys.checkpoint import StateLock
from recsys.config import Config
from recsys.processes import LearnerProcess, Place, run
from recsys.verify import journal
from recsys.verify.stream import FORK, PARTITIONS
from streaming.address import ITEMS_SUFFIX, open_log

LOG = logging.getLogger(__name__)

PATIENCE_S = 120.0
POLL_S = 0.005

Work = Callable[[Config, Place, threading.Event], None]


class LifeFailed(RuntimeError):
    """A life did not end, or not as it was meant to."""


def learn(config: Config, place: Place, stop: threading.Event) -> None:
    """What `recsys learn` does."""
    run([LearnerProcess(config, place)], stop, interval_s=0.01)


class Lives:
    """One after another over the log at `url`, with the state in `state_dir` and the journals beside it."""

    def __init__(self, config: Config, url: str, state_dir: Path, seed: int, work: Work = learn) -> None:
        self.directory = state_dir / config.join.variant
        """Of the variant that learns."""
        self.journals: list[Path] = []
        self._arguments = config, url, state_dir, seed, work
        self._journal_dir = state_dir.parent / f"{state_dir.name}-journals"
        self._journal_dir.mkdir(parents=True)

    def begin(self, blow: Callable[[], None] | None = None) -> ForkProcess:
        """A new life; `blow` is called in it before anything else."""
        self.journals.append(self._journal_dir / f"{len(self.journals)}.jsonl")
        life = FORK.Process(target=_live, args=(*self._arguments, self.journals[-1], blow))
        life.start()
        return life

    def end(self, life: ForkProcess, sign: signal.Signals | None = None) -> int:
        """Wait for a life to end, after sending it a signal if one is given; its exit status."""
        assert life.pid is not None
        if sign is not None and life.is_alive():
            os.kill(life.pid, sign)
        life.join(PATIENCE_S)
        if life.exitcode is None:
            os.killpg(life.pid, signal.SIGKILL)
            raise LifeFailed(f"life {len(self.journals)} went on for {PATIENCE_S:.0f} s and did not come to its end")
        StateLock(self.directory).release()  # there is nothing left of it, not even a copy that saves
        return life.exitcode

    def live_until(self, through_ms: int) -> None:
        """A whole life: until what is current has learned all before `through_ms`, then SIGTERM. LifeFailed when it ends otherwise."""
        life = self.begin()
        deadline_s = time.monotonic() + PATIENCE_S
        while life.is_alive() and self.trained_through_ms() < through_ms and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
        status = self.end(life, signal.SIGTERM)
        if status or self.trained_through_ms() < through_ms:
            raise LifeFailed(f"life {len(self.journals)} of {self.directory} ended with status {status} before all was learned")

    def trained_through_ms(self) -> int:
        """Of the version that is current; −1 before the first."""
        published = publisher.current(self.directory)
        if published is None:
            return -1
        try:
            return int(json.loads((published.directory / artifacts.MANIFEST).read_text())["facts"]["trained_through_ms"])
        except (FileNotFoundError, ValueError):  # a newer one took its place, or it was damaged on purpose
            return -1

    def first_update_s(self) -> float | None:
        """When the last life made its first update; None if it made none."""
        updates = journal.read(self.journals[-1])
        return updates[0].at_s if updates else None


def _live(config: Config, url: str, state_dir: Path, seed: int, work: Work, journal_path: Path, blow: Callable[[], None] | None) -> None:
    os.setpgrp()
    logging.disable(logging.WARNING)
    journal.keep(journal_path)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if blow is not None:
        blow()
    try:
        log, items_log = open_log(url, num_partitions=PARTITIONS), open_log(url, ITEMS_SUFFIX)
        work(config, Place(log=log, items_log=items_log, state_dir=state_dir, seed=seed), stop)
    except OSError as error:  # as the command does
        LOG.error("%s", error)
        sys.exit(1)
