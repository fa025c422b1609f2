"""Whether so many of a minute's records could be used that the rest may be learned. Knows nothing of weights.

Where much can't be used, a producer is broken or newer than this program, and what is left is no fair sample of what users did.
"""

from collections.abc import Collection

from recsys.controls import CONTROL_PARTITION, Controls, settled_later
from streaming.books import REUSED, Quarantined
from streaming.joiner import JoinConfig, Joiner
from streaming.log import EventLog, LogUnavailable
from streaming.quarantine import Place

FEW = 3
"""Records in quarantine that are no reason to stop, whatever their share."""


class TooMuchQuarantined(Exception):
    """Too many of the records of a minute could not be used to learn the rest; somebody must look at them first."""


class QuarantineGate:
    """Stops a learner where more than the share `most` of a minute's records are in quarantine."""

    def __init__(self, most: float, join: JoinConfig, log: EventLog) -> None:
        self._most, self._join, self._log = most, join, log

    def check(self, minutes: range, used: int, joiner: Joiner, controls: Controls) -> None:
        """TooMuchQuarantined when too much of one of these minutes is there, and nobody has settled it, further on in the log either.

        To a minute belongs what came while its decisions were made; `used`: records of each minute that could be used. A decision that two
        servers made of one request, because a client asked again, is no reason: the first counts.
        """
        stop = self._refused(minutes, used, joiner, controls.settled)
        if stop is None:
            return
        try:
            settled = settled_later(self._log, joiner.next_offset(CONTROL_PARTITION))
        except LogUnavailable:
            raise stop from None  # the minute is taken out of the joiner: this process can't ask again later
        if (stop := self._refused(minutes, used, joiner, controls.settled | settled)) is not None:
            raise stop

    def _refused(self, minutes: range, used: int, joiner: Joiner, settled: Collection[Place]) -> TooMuchQuarantined | None:
        unused: dict[int, list[Quarantined]] = {}
        for one in joiner.quarantined:
            minute = (one.watermark_ms + self._join.disorder_ms) // self._join.bucket_ms
            if minute in minutes and one.reason != REUSED and (one.partition, one.offset) not in settled:
                unused.setdefault(minute, []).append(one)
        for minute, of in sorted(unused.items()):
            if len(of) >= FEW and len(of) > self._most * (len(of) + used):
                reasons = ", ".join(sorted({one.reason for one in of}))
                return TooMuchQuarantined(
                    f"minute {minute}: {len(of)} of {len(of) + used} records could not be used ({reasons}), more than {self._most:.1%}; "
                    "nothing was learned of it. `recsys log quarantine` lists them: --requeue FILE puts repaired ones back, "
                    "--accept does without"
                )
        return None
