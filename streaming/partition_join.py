"""The join within one partition: its watermark, its open decisions, and the buckets of Examples they close into.

Knows nothing of bytes, other partitions or training. Every rule compares a time with the watermark, so when the sweeping
(`settle`) is done changes nothing but memory: the state is a pure function of the records so far.
"""

from typing import Literal, NamedTuple

from streaming.books import Ledger, Quarantined
from streaming.events import IMPORTED, Decision, Event, Exposure, Feedback, decision_id_of
from streaming.rewards import rule_named
from streaming.window import Example, JoinConfig, OpenDecision, Said

NEVER_MS = -(1 << 62)
"""The watermark of a partition without Decisions or Ticks."""
Speaking = Literal["exposure", "feedback"]
"""The kinds of event that speak of a decision."""


class Gone(NamedTuple):
    """A decision that is not open (closed, late or foreign), kept so that what still speaks of it gets its `fate`."""

    forgotten_ms: int
    fate: str


class Waiting(NamedTuple):
    """An event whose decision has not come yet."""

    offset: int
    append_time_ms: int
    event: Event


class DueDates:
    """Decision ids by the second in which something is due for them: cheaper than a heap, as exact as its user."""

    def __init__(self) -> None:
        self._by_second: dict[int, list[str]] = {}

    def add(self, due_ms: int, decision_id: str) -> None:
        """Remember that something is due at `due_ms`."""
        self._by_second.setdefault(due_ms // 1000, []).append(decision_id)

    def pop(self, now_ms: int) -> list[str]:
        """Take out all due by the end of the second of `now_ms`; who finds one not yet due adds it again."""
        now_s = now_ms // 1000
        seconds = sorted(second for second in self._by_second if second <= now_s)
        return [decision_id for second in seconds for decision_id in self._by_second.pop(second)]


class PartitionJoin:
    """The state of the join in one partition. Records must come in offset order."""

    def __init__(self, config: JoinConfig, partition: int, ledger: Ledger) -> None:
        self.config, self.partition, self.ledger = config, partition, ledger
        self.next_offset = 0
        self.watermark_ms = NEVER_MS
        self.open: dict[str, OpenDecision] = {}
        self.gone: dict[str, Gone] = {}
        self.waiting: dict[str, list[Waiting]] = {}
        self.buckets: dict[int, list[Example]] = {}
        self._rule = rule_named(config.reward)
        self._closing, self._forgetting, self._orphaning = DueDates(), DueDates(), DueDates()
        self._settled_ms = NEVER_MS

    def tick(self, event_time_ms: int) -> None:
        """Move the watermark: nothing more than D older than this is still to come."""
        watermark_ms = event_time_ms - self.config.disorder_ms
        if watermark_ms > self.watermark_ms:
            self.watermark_ms = watermark_ms
            if watermark_ms // 1000 > self._settled_ms // 1000:
                self.settle()

    def add_decision(self, offset: int, decision: Decision) -> None:
        """Open a decision, or count it as what else it is; then the events that waited for it."""
        decision_id = decision.decision_id
        if not decision_id or self._find(decision_id) is not None:
            reason = "decision_id reused" if decision_id else "decision without an id"
            self.ledger.quarantine(Quarantined(self.partition, offset, reason, decision_id), "decision")
        else:
            if decision_id in self.waiting:
                self._orphan(decision_id)
            self._admit(offset, decision)
            for waiting in self.waiting.pop(decision_id, ()):
                self.add_event(*waiting)
        # Only now: what waited did so until the watermark passed it without its decision.
        self.tick(decision.event_time_ms)

    def add_event(self, offset: int, append_time_ms: int, event: Event) -> None:
        """Join one Exposure or Feedback to its decision, let it wait for it, or count it as what else it is."""
        kind, spoken = _spoken(event)
        decision_id = decision_id_of(spoken.decision_token)
        found = self._find(decision_id)
        if isinstance(found, OpenDecision):
            self._join(found, kind, spoken, append_time_ms, event)
        elif found is not None:
            self.ledger.of[kind][found] += 1
        elif self._orphan_ms(event) <= self.watermark_ms:
            self.ledger.of[kind]["orphan"] += 1
        else:
            self.wait(Waiting(offset, append_time_ms, event))

    def settle(self) -> None:
        """Close, forget and orphan all that the watermark has passed."""
        now_ms = self.watermark_ms
        if now_ms == self._settled_ms:
            return
        self._settled_ms = now_ms
        for decision_id in self._closing.pop(now_ms):
            if self.open[decision_id].closes_ms <= now_ms:
                self._close(self.open.pop(decision_id))
            else:
                self._closing.add(self.open[decision_id].closes_ms, decision_id)
        for decision_id in self._forgetting.pop(now_ms):
            gone = self.gone.get(decision_id)
            if gone is not None and gone.forgotten_ms <= now_ms:
                del self.gone[decision_id]
            elif gone is not None:
                self._forgetting.add(gone.forgotten_ms, decision_id)
        for decision_id in self._orphaning.pop(now_ms):
            self._orphan(decision_id)

    def hold(self, opened: OpenDecision) -> None:
        """Keep a decision open until the watermark has passed it by W + L."""
        self.open[opened.decision.decision_id] = opened
        self._closing.add(opened.closes_ms, opened.decision.decision_id)

    def remember(self, decision_id: str, gone: Gone) -> None:
        """Keep what became of a decision until the watermark has passed it by 2 (W + L)."""
        self.gone[decision_id] = gone
        self._forgetting.add(gone.forgotten_ms, decision_id)

    def keep(self, example: Example) -> None:
        """Put an Example into the bucket of its decision's event time."""
        self.buckets.setdefault(example.decision.event_time_ms // self.config.bucket_ms, []).append(example)

    def wait(self, waiting: Waiting) -> None:
        """Keep an event until its decision comes or the watermark has passed it by D."""
        decision_id = decision_id_of(_spoken(waiting.event)[1].decision_token)
        self.waiting.setdefault(decision_id, []).append(waiting)
        self._orphaning.add(self._orphan_ms(waiting.event), decision_id)

    def _find(self, decision_id: str) -> OpenDecision | str | None:
        """The decision if it is open, its fate if it is remembered, None if nothing is known of it."""
        found = self.open.get(decision_id)
        if found is not None:
            if self.watermark_ms < found.closes_ms:
                return found
            self.settle()
        gone = self.gone.get(decision_id)
        return gone.fate if gone is not None and self.watermark_ms < gone.forgotten_ms else None

    def _admit(self, offset: int, decision: Decision) -> None:
        own = decision.variant == self.config.variant
        taught = self.config.teach_imported and decision.variant == IMPORTED
        opened = OpenDecision(decision, offset, own, decision.event_time_ms + self.config.open_ms)
        late = opened.closes_ms <= self.watermark_ms
        if not own:
            self.ledger.of["decision"]["foreign"] += 1
        elif late:
            self.ledger.of["decision"]["late"] += 1
        if late or not (own or taught):
            self._let_go(opened)
        else:
            self.hold(opened)

    def _join(self, opened: OpenDecision, kind: Speaking, spoken: Exposure | Feedback, append_time_ms: int, event: Event) -> None:
        """Count one event on an open decision at once, but feedback on an own one: that is decided when it closes."""
        fate = self._take(opened, spoken, append_time_ms, event)
        if not opened.own:
            self.ledger.of[kind]["foreign"] += 1
        elif fate is not None:
            self.ledger.of[kind][fate] += 1

    def _take(self, opened: OpenDecision, spoken: Exposure | Feedback, append_time_ms: int, event: Event) -> str | None:
        """Add one event to an open decision if it fits; its fate, None while that is open."""
        slots = tuple(spoken.slots) if isinstance(spoken, Exposure) else (spoken.slot,)
        if not opened.fits(spoken.decision_token, event.user_id, slots):
            return "forged"
        if event.event_time_ms > opened.closes_ms - self.config.lateness_ms:  # beyond its own event time + W
            return "late"
        if isinstance(spoken, Feedback):
            said = Said(event.event_time_ms, event.event_id, spoken.slot, spoken.kind, spoken.value, append_time_ms)
            opened.feedback.append(said)
            return None
        num_new = opened.show(slots, append_time_ms)
        self.ledger.slots_shown += num_new
        self.ledger.slots_repeated += len(slots) - num_new
        return "joined"

    def _close(self, opened: OpenDecision) -> None:
        verdict = opened.verdict()
        if opened.own:
            counts = self.ledger.of["feedback"]
            counts["joined"] += len(verdict.joined)
            counts["duplicate"] += verdict.num_duplicate
            counts["unexposed"] += verdict.num_unexposed
            self.ledger.of["decision"]["unexposed"] += not opened.shown
        if opened.shown:
            self.keep(opened.example(verdict.joined, self.partition, self._rule))
        self._let_go(opened)

    def _let_go(self, opened: OpenDecision) -> None:
        forgotten_ms = opened.closes_ms + self.config.open_ms
        if forgotten_ms > self.watermark_ms:
            self.remember(opened.decision.decision_id, Gone(forgotten_ms, "late" if opened.own else "foreign"))

    def _orphan(self, decision_id: str) -> None:
        """Give up on the events whose time to wait is over; the others have a due date of their own or get one."""
        events = self.waiting.pop(decision_id, [])
        still = [waiting for waiting in events if self._orphan_ms(waiting.event) > self.watermark_ms]
        for _, _, event in events:
            if self._orphan_ms(event) <= self.watermark_ms:
                self.ledger.of[_spoken(event)[0]]["orphan"] += 1
        if still:
            self.waiting[decision_id] = still
            self._orphaning.add(min(self._orphan_ms(waiting.event) for waiting in still), decision_id)

    def _orphan_ms(self, event: Event) -> int:
        return event.event_time_ms + self.config.disorder_ms


def _spoken(event: Event) -> tuple[Speaking, Exposure | Feedback]:
    """What speaks of a decision in this event, and which kind it is."""
    if event.HasField("feedback"):
        return "feedback", event.feedback
    return "exposure", event.exposure
