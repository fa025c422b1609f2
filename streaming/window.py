"""One decision while its attribution window is open, and the Example it closes into. Knows nothing of watermarks, logs or books."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from streaming.proto.records_pb2 import Decision
from streaming.rewards import RewardRule, rule_named

MAX_VALUE = 1e12
"""The largest magnitude a feedback value can have; what is beyond it, or no number, is quarantined."""
_ONE_YEAR_MS = 366 * 24 * 3600 * 1000
NOT_SHOWN_MS = 1 << 63  # later than any append time


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinConfig:
    """How rewards are joined to decisions. ValueError names a value out of range."""

    variant: str
    """The learner's own: only its decisions earn rewards."""
    reward: str = "click"
    """See `rewards.rule_named`."""
    window_ms: int = 60_000
    """W: feedback counts up to this long after its decision."""
    lateness_ms: int = 5_000
    """L: how much longer the joiner waits for it to arrive."""
    disorder_ms: int = 2_000
    """D: how far out of order the records of one partition can be."""
    bucket_ms: int = 60_000
    """M: the event time that one training bucket spans."""
    future_ms: int = 60_000
    """δ: how far a record's event time can be ahead of its append time."""
    teach_imported: bool = False
    """Whether decisions of somebody else's recommender become Examples too (never own ones)."""

    def __post_init__(self) -> None:
        if not self.variant:
            raise ValueError("variant is empty; the joiner must know whose decisions are its own")
        lowest = {"window_ms": 1, "lateness_ms": 0, "disorder_ms": 0, "bucket_ms": 1, "future_ms": 0}
        for name, least in lowest.items():
            if not least <= getattr(self, name) <= _ONE_YEAR_MS:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between {least} and {_ONE_YEAR_MS} (a year)")
        rule_named(self.reward)

    @property
    def open_ms(self) -> int:
        """W + L: how far the watermark passes a decision before it closes."""
        return self.window_ms + self.lateness_ms


@dataclass(frozen=True, slots=True)
class Example:
    """A Decision whose window closed, with the slots shown (in order, from 0) and, aligned with them, rewards and feedback."""

    decision: Decision
    partition: int
    offset: int
    """Where the decision stands in the log."""
    shown: tuple[int, ...]
    rewards: tuple[float, ...]
    feedback: tuple[tuple[tuple[str, float], ...], ...]
    """Per shown slot (kind, value), by kind; each kind once."""
    own: bool
    """False: imported, it teaches context, likelihood and value but is no choice of this variant."""
    append_times_ms: tuple[int, ...]
    """When the records that made it were appended, rising: the first to show each slot (equal times once), and each joined feedback."""


class Said(NamedTuple):
    """One feedback on one slot. Its natural order decides which of several counts: the smallest (event time, event id)."""

    event_time_ms: int
    event_id: str
    slot: int
    kind: str
    value: float
    append_time_ms: int


class Verdict(NamedTuple):
    """What became of the feedback on one decision, in numbers of Feedback events."""

    joined: list[Said]
    num_duplicate: int
    num_unexposed: int


@dataclass(slots=True, eq=False)
class OpenDecision:
    """What is known of one decision so far. Feedback is only kept: what counts is decided at the end, whatever came first."""

    decision: Decision
    offset: int
    own: bool
    closes_ms: int
    """Its event time + W + L: when the watermark is there, it closes."""
    shown: dict[int, int] = field(default_factory=dict)
    """Slot → append time of the earliest record that showed it."""
    feedback: list[Said] = field(default_factory=list)

    def fits(self, decision_token: str, user_id: str, slots: Sequence[int]) -> bool:
        """Whether an event can speak of this decision: same token, same user, slots inside the slate."""
        decision = self.decision
        return (
            decision_token == decision.decision_token and user_id == decision.user_id and (not slots or max(slots) < len(decision.item_ids))
        )

    def show(self, slots: Sequence[int], append_time_ms: int) -> int:
        """Mark slots as shown; the number of slots that were not shown before."""
        shown, before = self.shown, len(self.shown)
        for slot in slots:
            if append_time_ms < shown.get(slot, NOT_SHOWN_MS):
                shown[slot] = append_time_ms
        return len(shown) - before

    def verdict(self) -> Verdict:
        """Which feedback counts: each event id once, each (slot, kind) once, and only on slots that were shown."""
        joined: list[Said] = []
        seen: set[str | tuple[int, str]] = set()
        num_duplicate = num_unexposed = 0
        for said in sorted(self.feedback):
            keys = (said.event_id, (said.slot, said.kind))
            if not seen.isdisjoint(keys):
                num_duplicate += 1
                continue
            seen.update(keys)
            if said.slot in self.shown:
                joined.append(said)
            else:
                num_unexposed += 1
        return Verdict(joined, num_duplicate, num_unexposed)

    def example(self, joined: Sequence[Said], partition: int, rule: RewardRule) -> Example:
        """The Example that `joined` and the slots shown make; `rule` sees the feedback of one slot at a time."""
        by_slot: dict[int, dict[str, float]] = {}  # most slots get no feedback and are not in it
        for said in joined:
            by_slot.setdefault(said.slot, {})[said.kind] = said.value
        shown = tuple(sorted(self.shown))
        times = [*set(self.shown.values()), *[said.append_time_ms for said in joined]]
        return Example(
            decision=self.decision,
            partition=partition,
            offset=self.offset,
            shown=shown,
            rewards=tuple([rule(by_slot[slot]) if slot in by_slot else rule.default for slot in shown]),
            feedback=tuple([tuple(sorted(by_slot[slot].items())) if slot in by_slot else () for slot in shown]),
            own=self.own,
            append_times_ms=tuple(sorted(times)),
        )
