"""Keeps a frozen variant: its learned weights stay what they were, its items follow the catalogue. Knows nothing of rewards.

A new item gets its id and its content vector, a retired one leaves; nothing that was learned moves. So an offline arm
is judged by what it learned, not by what it can't name.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from models.artifact import Artifact, BadArtifact
from recsys import publisher
from recsys.catalogue import Catalogue
from recsys.live_model import ItemsFeed, LiveModel
from streaming.clock import Clock
from streaming.joiner import JoinConfig
from streaming.log import EventLog

LOG = logging.getLogger(__name__)


class Keeper:
    """A Component. Starts from a version that a learner made, or goes on from its own newest."""

    def __init__(
        self, variant: str, start: Callable[[], Artifact], join: JoinConfig, *, clock: Clock, items_log: EventLog, state_dir: Path
    ) -> None:
        """`start` is asked for where there is none of its own."""
        self.variant, self.clock, self._join = variant, clock, join
        self.directory = state_dir / variant
        self._feed = ItemsFeed(items_log, join.disorder_ms)
        self._feed.read()
        own = self._newest()
        artifact = own or start()
        self._facts = dict(artifact.facts) | {"variant": variant}
        catalogue = Catalogue()
        self._feed.apply_up_to(int(artifact.facts["items_offset"]), catalogue)
        self._model = LiveModel.of(artifact, catalogue)
        if own is None:
            self._facts["policy_version"] = self._free_version(self.policy_version)
            self._publish()

    @property
    def policy_version(self) -> int:
        """The version published last."""
        return int(self._facts["policy_version"])

    def step(self) -> int:
        """Publish a version for each minute that changed the catalogue; how many."""
        self._feed.read()
        published = 0
        while (change_ms := self._feed.next_change_ms) is not None:
            bucket_ms, open_ms = self._join.bucket_ms, self._join.open_ms
            minute = max(0, (change_ms - open_ms) // bucket_ms)
            cut_ms = (minute + 1) * bucket_ms + open_ms
            if cut_ms > self._feed.watermark_ms:
                break
            rows = self._feed.apply_before(cut_ms, self._model.catalogue)
            self._model.admit(rows)
            self._facts["policy_version"] = self._free_version(self.policy_version + 1)
            self._publish()
            published += 1
        return published

    def close(self) -> None:
        """Nothing is held."""

    def _newest(self) -> Artifact | None:
        """What is served of this variant, or the version before where that is damaged; BadArtifact where both are."""
        try:
            current = publisher.current(self.directory)
            return publisher.load(current) if current else None
        except BadArtifact as error:
            before = publisher.last_good(self.directory)
            if before is None:
                raise
            LOG.warning("%s; %s goes on from version %d", error, self.variant, before.policy_version)
            return publisher.load(before)

    def _free_version(self, wished: int) -> int:
        """The number wished for, or the next that was never used: a crash may have come between a version and its pointer."""
        return max(wished, publisher.newest_version(self.directory) + 1)

    def _publish(self) -> None:
        facts = self._facts | {"items_offset": self._model.catalogue.next_offset}
        publisher.publish(self._model.artifact(facts), self.directory, self.clock.now_ms())
