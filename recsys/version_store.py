"""One variant's checkpoints and versions on disk, in the order in which they may appear: saved, then published.

Knows nothing of how a version was learned.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from models.artifact import Artifact
from recsys import checkpoint as checkpoints
from recsys import publisher
from recsys.checkpoint import Checkpoint, StateLock
from recsys.learner_stats import LearnerStats
from recsys.saver import Figures, Saver
from streaming.clock import Clock

LOG = logging.getLogger(__name__)


class VersionStore:
    """The one writer of `directory`; StateBusy when there is another."""

    def __init__(self, directory: Path, saver: Saver, clock: Clock, stats: LearnerStats) -> None:
        self.directory, self._saver, self._clock, self._stats = directory, saver, clock, stats
        self.newest_saved = 0
        """The newest version that is saved and published, as far as is known here."""
        self._lock = StateLock(directory)

    def save(self, checkpoint: Callable[[], Checkpoint], version: Callable[[], Artifact], never: frozenset[int]) -> None:
        """Save, then publish, beside what comes next: a version that is served can always be continued from.

        `never`: versions that are not deleted for their age.
        """
        started = time.perf_counter()
        self.note_saved(wait=True)
        self._saver.start(lambda: self._write(checkpoint(), version(), never))
        self._stats.blocked_s.append(time.perf_counter() - started)
        self.note_saved()

    def note_saved(self, *, wait: bool = False) -> None:
        """Take note of a save that has ended. SaveFailed: then there is nothing to go on from but the checkpoint before."""
        if done := self._saver.finished(wait=wait):
            self.newest_saved = int(done["version"])
            self._stats.save_s.append(done["save_s"])
            self._stats.publish_s.append(done["publish_s"])

    def publish(self, artifact: Artifact, never: frozenset[int]) -> None:
        """Write the version and point to it. One that was there before a crash is not written again: the same log made the same weights."""
        version, newest, now_ms = int(artifact.facts["policy_version"]), publisher.newest_version(self.directory), self._clock.now_ms()
        if version > newest or (version == newest and publisher.drop_damaged(self.directory, newest)):
            publisher.publish(artifact, self.directory, now_ms, self._lock.confirm, never)
        elif version == newest:
            publisher.point_again(artifact, self.directory, now_ms)

    def follow(self, asked: int, version: int, newest: int) -> None:
        """Point to `version`, as a rollback to `asked` asks for, unless there is one above `newest`: made after it, before a crash."""
        if publisher.newest_version(self.directory) <= newest:
            with publisher.pointing(self.directory):
                publisher.follow(self.directory, asked, version, self._clock.now_ms())

    def give_up(self, begin_offset: int, end_offset: int) -> None:
        """Tell of the rollbacks whose Controls stand in a gap, and wait for them no longer."""
        with publisher.pointing(self.directory):
            lost = publisher.give_up(self.directory, begin_offset, end_offset)
        for one in lost:
            LOG.warning("the rollback to version %d is not followed: its Control at offset %d is gone; ask for it again", *one)

    def close(self) -> None:
        """Let another process write here, when what is being saved is there."""
        try:
            self.note_saved(wait=True)
        finally:
            self._lock.release()

    def _write(self, checkpoint: Checkpoint, artifact: Artifact, never: frozenset[int]) -> Figures:
        started = time.perf_counter()
        checkpoints.save(self.directory / "checkpoints", checkpoint, self._lock.confirm)
        with publisher.pointing(self.directory):
            checkpoints.drop_old(self.directory / "checkpoints", never | publisher.kept(self.directory))
        saved = time.perf_counter()
        self.publish(artifact, never)
        return {"version": checkpoint.number, "save_s": saved - started, "publish_s": time.perf_counter() - saved}
