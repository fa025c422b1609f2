"""One decision, what was said of it inside its attribution window, and the Example it makes. Knows nothing of watermarks or books."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import itemgetter
from typing import NamedTuple

from streaming.events import Decision, Exposure, Record
from streaming.rewards import RewardRule, rule_named

_ONE_YEAR_MS = 366 * 24 * 3600 * 1000


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
        if not self.variant.replace("_", "").isalnum():
            raise ValueError(f"variant is {self.variant!r}; the joiner must know whose decisions are its own: letters, digits and _")
        lowest = {"window_ms": 1, "lateness_ms": 0, "disorder_ms": 0, "bucket_ms": 1, "future_ms": 0}
        for name, least in lowest.items():
            if not least <= getattr(self, name) <= _ONE_YEAR_MS:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between {least} and {_ONE_YEAR_MS} (a year)")
        rule_named(self.reward)

    @property
    def open_ms(self) -> int:
        """W + L: how far the watermark passes a decision before it closes."""
        return self.window_ms + self.lateness_ms


KindsAndValues = tuple[tuple[str, float], ...]


NO_FEEDBACK: KindsAndValues = ()
Earned = tuple[tuple[int, ...], tuple[float, ...], tuple[KindsAndValues, ...], tuple[int, ...]]
"""The last four fields of an Example."""


class Joined(NamedTuple):
    """The fields of an Example; rewards and feedback are aligned with the slots shown."""

    record: bytes
    """The decision's, as logged."""
    event_time_ms: int
    decision_id: str
    partition: int
    offset: int
    """Where the decision stands in the log."""
    memory_offset: int
    """As of which offset of its partition it needs user memory."""
    own: bool
    """False: imported, it teaches context, likelihood and value but is no choice of this variant."""
    shown: tuple[int, ...]
    """Rising, from 0."""
    rewards: tuple[float, ...]
    feedback: tuple[KindsAndValues, ...]
    """(kind, value) by kind; each kind once."""
    append_times_ms: tuple[int, ...]
    """When the records that made it were appended, rising: the first to show each slot (equal times once), and each joined feedback."""


class Example(Joined):
    """A Decision whose window closed. Its message, five times the size of its bytes, is there from when it is first asked for."""

    @cached_property
    def decision(self) -> Decision:
        """What was decided."""
        return Record.FromString(self.record).decision


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


NOTHING_SAID = Verdict([], 0, 0)


class Shown(NamedTuple):
    """What was shown of one decision."""

    slots: tuple[int, ...]
    """Rising."""
    times_ms: tuple[int, ...]
    """When the first record to show each slot was appended; rising, equal ones once."""


class Heard(NamedTuple):
    """What was said of one decision. What counts is decided when all of it is there, whatever came first."""

    marks: list[tuple[list[int], int]]
    """Slots that one exposure showed, and its append time."""
    said: list[Said]
    misfits: list[tuple[str, str]]
    """Kind and fate of what does not fit the decision (token, user, slots) or comes after its window."""

    def shown(self) -> Shown:
        """What the exposures come to."""
        if len(self.marks) == 1:  # of most decisions, and a dictionary of its slots would cost more than all that is here
            ((slots, append_time_ms),) = self.marks
            return Shown(_rising(tuple(slots)), (append_time_ms,))
        times_ms: dict[int, int] = {}
        for slots, append_time_ms in sorted(self.marks, key=itemgetter(1), reverse=True):
            times_ms |= dict.fromkeys(slots, append_time_ms)
        return Shown(_rising(tuple(times_ms)), tuple(sorted(set(times_ms.values()))))

    def verdict(self, shown: Sequence[int]) -> Verdict:
        """Which feedback counts: each event id once, each (slot, kind) once, and only on slots that were shown."""
        joined: list[Said] = []
        seen: set[str | tuple[int, str]] = set()
        num_duplicate = num_unexposed = 0
        for said in sorted(self.said):
            keys = (said.event_id, (said.slot, said.kind))
            if not seen.isdisjoint(keys):
                num_duplicate += 1
                continue
            seen.update(keys)
            if said.slot in shown:
                joined.append(said)
            else:
                num_unexposed += 1
        return Verdict(joined, num_duplicate, num_unexposed)


def heard(decision: Decision, records: Iterable[Record], ends_ms: int) -> Heard:
    """What these exposures and feedback say of a decision whose window ends then."""
    marks, all_said, misfits = out = Heard([], [], [])
    token, user_id, num_slots = decision.decision_token, decision.user_id, len(decision.item_ids)
    for record in records:
        event = record.event
        shows = event.HasField("exposure")
        spoken = event.exposure if shows else event.feedback
        slots = spoken.slots[:] if isinstance(spoken, Exposure) else [spoken.slot]
        if spoken.decision_token != token or event.user_id != user_id or (slots and max(slots) >= num_slots):
            misfits.append(("exposure" if shows else "feedback", "forged"))
        elif event.event_time_ms > ends_ms:
            misfits.append(("exposure" if shows else "feedback", "late"))
        elif isinstance(spoken, Exposure):
            marks.append((slots, record.append_time_ms))
        else:
            said = Said(event.event_time_ms, event.event_id, spoken.slot, spoken.kind, spoken.value, record.append_time_ms)
            all_said.append(said)
    return out


def earned(shown: Shown, joined: Sequence[Said], rule: RewardRule) -> Earned:
    """What the slots shown make of what was `joined`; `rule` sees the feedback of one slot at a time."""
    slots, times_ms = shown
    if not joined:  # of most decisions there is nothing
        return slots, (rule.default,) * len(slots), (NO_FEEDBACK,) * len(slots), times_ms
    rewards, feedback = [rule.default] * len(slots), [NO_FEEDBACK] * len(slots)
    by_slot: dict[int, dict[str, float]] = {}
    for said in joined:
        by_slot.setdefault(said.slot, {})[said.kind] = said.value
    for slot, kinds in by_slot.items():
        at = slots.index(slot)
        rewards[at], feedback[at] = rule(kinds), tuple(sorted(kinds.items()))
    return slots, tuple(rewards), tuple(feedback), tuple(sorted([*times_ms, *[said.append_time_ms for said in joined]]))


@lru_cache(maxsize=1024)
def _rising(slots: tuple[int, ...]) -> tuple[int, ...]:
    """Each once. Most slates are shown whole, and then all Examples have the same tuple."""
    return tuple(sorted(set(slots)))
