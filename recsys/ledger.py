"""Which requests were answered and which events were taken, for as long as a token lives. Knows nothing of what they say."""

from collections import OrderedDict

import numpy as np

from recsys.blobs import Arrays, decoded, encoded, joined, split
from streaming.events import Decision, Record


class Ledger:
    """A function of the log: fed with every record, in order of appending."""

    def __init__(self, lifetime_ms: int) -> None:
        self._lifetime_ms = lifetime_ms
        self._decisions: OrderedDict[tuple[str, str], tuple[int, Decision]] = OrderedDict()
        self._events: OrderedDict[str, int] = OrderedDict()

    def remember(self, record: Record) -> None:
        """Take one record; what is older than a lifetime before it is forgotten."""
        time_ms = record.append_time_ms
        body = record.WhichOneof("body")
        if body == "decision" and record.decision.request_id:
            self._decisions[record.decision.user_id, record.decision.request_id] = (time_ms, record.decision)
        elif body == "event":
            self._events[record.event.event_id] = time_ms
        else:
            return
        oldest_ms = time_ms - self._lifetime_ms
        while self._events and next(iter(self._events.values())) < oldest_ms:
            self._events.popitem(last=False)
        while self._decisions and next(iter(self._decisions.values()))[0] < oldest_ms:
            self._decisions.popitem(last=False)

    def arrays(self) -> Arrays:
        """All of it as arrays, for a snapshot."""
        answered = list(self._decisions.values())
        return {
            **joined("decision", [decision.SerializeToString(deterministic=True) for _, decision in answered]),
            "decision_ms": np.array([time_ms for time_ms, _ in answered], np.int64),
            **joined("event", encoded(self._events)),
            "event_ms": np.array(list(self._events.values()), np.int64),
        }

    @staticmethod
    def of(lifetime_ms: int, arrays: Arrays) -> "Ledger":
        """What `arrays` said."""
        ledger = Ledger(lifetime_ms)
        for data, time_ms in zip(split("decision", arrays), arrays["decision_ms"].tolist(), strict=True):
            decision = Decision.FromString(data)
            ledger._decisions[decision.user_id, decision.request_id] = (time_ms, decision)
        ledger._events.update(zip(decoded(split("event", arrays)), arrays["event_ms"].tolist(), strict=True))
        return ledger

    def decision(self, user_id: str, request_id: str, now_ms: int) -> Decision | None:
        """The Decision that answered this request before, if its token lives."""
        found = self._decisions.get((user_id, request_id)) if request_id else None
        return found[1] if found and found[0] >= now_ms - self._lifetime_ms else None

    def has_event(self, event_id: str) -> bool:
        """Whether an event of this id was taken before."""
        return event_id in self._events
