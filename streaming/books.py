"""The books of a join: what became of every record, so that nothing is dropped in silence. Knows nothing of why.

A `Ledger` is written while records come in; `Books` is one reading of it, with what is open counted from what is really held,
so that `balanced` says something.
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_QUARANTINED = 20_000
"""Records in quarantine that are known one by one: what the gate of a minute sees, and what can be accepted or repaired."""
MAX_DETAIL = 200
REUSED = "decision_id reused"
"""Why a Decision is in quarantine whose id another one has that came before it."""

_SHARED = ("late", "foreign", "quarantined")
_FATES = {
    "decision": ("trained", "unexposed", "stale", "refused", "gap", *_SHARED),
    "feedback": ("joined", "unexposed", "duplicate", "orphan", "forged", "gap", *_SHARED),
    "exposure": ("joined", "orphan", "forged", "gap", *_SHARED),
    "interaction": ("quarantined",),
    "tick": ("quarantined",),
}


class Quarantined(NamedTuple):
    """A record that could not be used. `reason` is one of few, `detail` says what exactly was wrong with this one."""

    partition: int
    offset: int
    reason: str
    detail: str
    watermark_ms: int
    """Of its partition when it came: it may say no time of its own that can be believed."""


@dataclass(slots=True)
class Tally:
    """Counts of what was said of decisions, for the books."""

    decisions_unexposed: int = 0
    exposures: int = 0
    slots_marked: int = 0
    slots_shown: int = 0
    feedback: int = 0
    joined: int = 0
    duplicate: int = 0
    unexposed: int = 0
    misfits: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By kind and fate, of what is in none of the others."""

    def num_told(self) -> Counter[str]:
        """How many events these are, by kind."""
        told = Counter(exposure=self.exposures, feedback=self.feedback)
        for (kind, _), num in self.misfits.items():
            told[kind] += num
        return told


class Ledger:
    """Counts by kind of record and by fate, running. `of[kind]["total"]` counts every record of the kind, whatever became of it."""

    def __init__(self) -> None:
        self.of: dict[str, dict[str, int]] = {kind: dict.fromkeys(("total", *fates), 0) for kind, fates in _FATES.items()}
        self.slots_shown = 0
        self.slots_repeated = 0
        self.taught = 0
        self.copies = 0
        self.never_read = 0
        self.refused: dict[str, int] = {}
        self.reasons: dict[str, int] = {}
        self.quarantined: deque[Quarantined] = deque(maxlen=MAX_QUARANTINED)

    def quarantine(self, record: Quarantined, kind: str | None) -> None:
        """Write down a record that could not be used; `kind` None when nobody can say what it was."""
        if kind is not None:
            self.of[kind]["quarantined"] += 1
        self.reasons[record.reason] = self.reasons.get(record.reason, 0) + 1
        self.quarantined.append(record._replace(detail=record.detail[:MAX_DETAIL]))

    def close(self, tally: Tally, *, own: bool) -> None:
        """Write down what decisions came to that closed; `own`: of this variant."""
        self.slots_shown += tally.slots_shown
        self.slots_repeated += tally.slots_marked - tally.slots_shown
        for (kind, fate), num in tally.misfits.items():
            self.of[kind][fate if own else "foreign"] += num
        self.of["exposure"]["joined" if own else "foreign"] += tally.exposures
        counts = self.of["feedback"]
        if own:
            counts["joined"] += tally.joined
            counts["duplicate"] += tally.duplicate
            counts["unexposed"] += tally.unexposed
            self.of["decision"]["unexposed"] += tally.decisions_unexposed
        else:
            counts["foreign"] += tally.feedback

    def read(self, open_decisions: int, open_feedback: int, open_exposures: int) -> "Books":
        """The books now, given what is held and not yet decided."""
        return Books(
            decisions={**self.of["decision"], "open": open_decisions},
            feedback={**self.of["feedback"], "open": open_feedback},
            exposures={**self.of["exposure"], "open": open_exposures},
            slots_shown=self.slots_shown,
            slots_repeated=self.slots_repeated,
            interactions=self.of["interaction"]["total"],
            taught=self.taught,
            copies=self.copies,
            never_read=self.never_read,
            refused=dict(self.refused),
            quarantined=dict(self.reasons),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """What became of every Decision, Feedback and Exposure; each mapping has "total", the fates, and "open" (not yet decided).

    Beside the balance: `slots_shown` and `slots_repeated` (marks of a slot that was shown already), of taught decisions too;
    `interactions`; `taught` (imported decisions made into Examples, all of them also `foreign`); `copies` (Decisions that a
    producer appended again: no decisions of their own, so not in their total); `never_read` (offsets in gaps of the log, whatever
    stood there); `refused`, decisions of minutes that no gate let pass, and `quarantined` (any record, also the unreadable), both by
    reason. `gap`: was open where such a gap begins, or spoke of what was: nobody knows what else was said of it.
    """

    decisions: Mapping[str, int]
    feedback: Mapping[str, int]
    exposures: Mapping[str, int]
    slots_shown: int
    slots_repeated: int
    interactions: int
    taught: int
    copies: int
    never_read: int
    refused: Mapping[str, int]
    quarantined: Mapping[str, int]

    @property
    def balanced(self) -> bool:
        """Whether every Decision, Feedback and Exposure has exactly one fate."""
        return all(2 * counts["total"] == sum(counts.values()) for counts in (self.decisions, self.feedback, self.exposures))

    def as_dict(self) -> dict[str, object]:
        """For the dashboard and for JSON."""
        return {
            "decisions": dict(self.decisions),
            "feedback": dict(self.feedback),
            "exposures": {**self.exposures, "slots_shown": self.slots_shown, "slots_repeated": self.slots_repeated},
            "interactions": self.interactions,
            "taught": self.taught,
            "copies": self.copies,
            "never_read": self.never_read,
            "refused": dict(self.refused),
            "quarantined": dict(self.quarantined),
            "balanced": self.balanced,
        }
