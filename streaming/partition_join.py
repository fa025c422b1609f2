"""The join within one partition: its watermark, its open decisions, and the buckets of Examples they close into.

Knows nothing of other partitions or training. Every rule compares a time with the watermark, and all that is due is done
as soon as the watermark moves: the state is a pure function of the records so far.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from streaming.books import REUSED, Ledger, Quarantined
from streaming.due_dates import NEVER_MS, DueDates, Key
from streaming.events import IMPORTED, Control, Decision, Event, Record, UnreadableRecord, decision_id_of, kind_and_record
from streaming.held import held, is_copy, key_of, offsets_of, with_event
from streaming.log import LogRecord
from streaming.proto.joiner_pb2 import Held
from streaming.rewards import rule_named
from streaming.window import MAX_VALUE, NOTHING_SAID, Example, Heard, JoinConfig, Verdict, earned, heard

_example = partial(tuple.__new__, Example)


class Waiting(NamedTuple):
    """An event whose decision has not come yet, with the bytes of its record."""

    offset: int
    expires_ms: int
    kind: str
    record: bytes


class Asked(NamedTuple):
    """A Control of the log, where it stands, and the watermark of its partition there."""

    partition: int
    offset: int
    watermark_ms: int
    control: Control


class Bucket:
    """The Examples of one span of event time that nobody took yet."""

    __slots__ = ("examples", "least_memory_offset", "num_own")

    def __init__(self) -> None:
        self.examples: list[Example] = []
        self.num_own = 0
        self.least_memory_offset = NEVER_MS

    def add(self, closed: Example, memory_offset: int) -> None:
        """Keep one more; `memory_offset`: as of which it needs user memory."""
        self.examples.append(closed)
        self.num_own += closed.own
        self.least_memory_offset = min(self.least_memory_offset, memory_offset)


def memory_needed(decision: Decision, offset: int) -> int:
    """As of which offset a decision needs user memory. One that says −1 stands for its own offset."""
    memory_offset = decision.memory_offset
    return offset if memory_offset < 0 else memory_offset


class PartitionJoin:
    """The state of the join in one partition. Records must come in offset order."""

    def __init__(self, config: JoinConfig, partition: int, ledger: Ledger) -> None:
        self.config, self.partition, self.ledger = config, partition, ledger
        self.next_offset = 0
        self.watermark_ms = -NEVER_MS
        self.open: dict[Key, bytes | bytearray] = {}
        """What `held` makes of each, by offset of the decision."""
        self.taught: set[Key] = set()
        """Which of them are not own."""
        self.num_held = {"exposure": 0, "feedback": 0}
        """Events on open decisions, by kind."""
        self.gone: dict[str, dict[Key, int]] = {"late": {}, "foreign": {}, "gap": {}}
        """What still speaks of a decision that is not open gets this fate, until the watermark is at that time.

        Those whose time has come are there until the end of the poll.
        """
        self.waiting: dict[Key, list[Waiting]] = {}
        self.buckets: dict[int, Bucket] = {}
        self._closing, self._orphaning = DueDates(), DueDates()
        self._forgetting = {fate: DueDates() for fate in self.gone}
        self._controls: list[Asked] = []
        self._rule = rule_named(config.reward)
        # Asked for with every record.
        self._variant, self._open_ms, self._future_ms = config.variant, config.open_ms, config.future_ms

    # Records ----------------------------------------------------------------------------------------------------------

    def apply(self, records: Sequence[LogRecord]) -> None:
        """Take these records. ValueError for an offset applied before."""
        try:
            for _, offset, _, value in records:
                if offset < self.next_offset:
                    self._check(offset)
                self.next_offset = offset + 1
                self._apply(offset, value)
        finally:
            self._forget()

    def pass_gap(self, offset: int) -> None:
        """Go on at `offset`, and give up all that is open. ValueError for an offset applied before."""
        self._check(offset)
        self.ledger.never_read += offset - self.next_offset
        self.next_offset = offset
        open_decisions, self.open, self._closing = self.open, {}, DueDates()
        for key, open_decision in open_decisions.items():
            self._give_up(key, Held.FromString(bytes(open_decision)))

    def _apply(self, offset: int, value: bytes) -> None:
        try:
            kind, record = kind_and_record(value)
        except UnreadableRecord as error:
            self._quarantine(offset, "unreadable", str(error), None)
            return
        if kind == "event":
            self._apply_event(offset, record, value)
        elif kind == "decision":
            self._apply_decision(offset, record, value)
        elif kind == "tick" and self._in_time("tick", offset, record.append_time_ms, record.tick.event_time_ms):
            self._move(record.tick.event_time_ms)
        elif kind == "control":
            self._controls.append(Asked(self.partition, offset, self.watermark_ms, record.control))
        # else: items are the catalogue's

    def take_controls(self) -> list[Asked]:
        """The Controls that came since the last call."""
        taken, self._controls = self._controls, []
        return taken

    def _check(self, offset: int) -> None:
        if offset < self.next_offset:
            raise ValueError(f"partition {self.partition}: offset {offset} was applied before; the next is {self.next_offset} or later")

    def _apply_decision(self, offset: int, record: Record, value: bytes) -> None:
        decision = record.decision
        event_time_ms = decision.event_time_ms
        if self._in_time("decision", offset, record.append_time_ms, event_time_ms):
            decision_id = decision.decision_id
            key = key_of(decision_id)
            if key in self.open or self._fate_of(key):
                self._add_again(key, offset, decision, value)
            elif decision_id:
                self._add_decision(key, offset, decision, event_time_ms, value)
            else:
                self._quarantine(offset, "decision without an id", "", "decision")
            # Only now: what waited did so until the watermark passed it without its decision.
            self._move(event_time_ms)

    def _apply_event(self, offset: int, record: Record, value: bytes) -> None:
        event = record.event
        kind = event.WhichOneof("body")
        if kind is None:
            self._quarantine(offset, "event without a body", event.event_id, None)
        elif self._in_time(kind, offset, record.append_time_ms, event.event_time_ms):
            if kind == "exposure":
                self._add_event(offset, kind, event, event.exposure.decision_token, value)
            elif kind == "feedback":
                feedback = event.feedback
                # Written so that NaN is out of range too.
                if not -MAX_VALUE <= feedback.value <= MAX_VALUE:
                    self._quarantine(offset, "value out of range", f"{feedback.value}", kind)
                else:
                    self._add_event(offset, kind, event, feedback.decision_token, value)

    def _in_time(self, kind: str, offset: int, append_time_ms: int, event_time_ms: int) -> bool:
        """Count a record, and quarantine it if its time can't be: one from the future would close all that is open."""
        self.ledger.of[kind]["total"] += 1
        if 0 <= event_time_ms <= append_time_ms + self._future_ms:
            return True
        reason = "before 1970" if event_time_ms < 0 else "from the future"
        self._quarantine(offset, reason, f"event time {event_time_ms}, appended {append_time_ms}", kind)
        return False

    def _quarantine(self, offset: int, reason: str, detail: str, kind: str | None) -> None:
        self.ledger.quarantine(Quarantined(self.partition, offset, reason, detail, self.watermark_ms), kind)

    # Decisions and events ---------------------------------------------------------------------------------------------

    def _add_decision(self, key: Key, offset: int, decision: Decision, event_time_ms: int, value: bytes) -> None:
        """Open a decision, or count it as what else it is; then the events that waited for it."""
        variant = decision.variant
        own, closes_ms = variant == self._variant, event_time_ms + self._open_ms
        late = closes_ms <= self.watermark_ms
        fate = "late" if own else "foreign"
        if late or not own:
            self.ledger.of["decision"][fate] += 1
        if late or not (own or (self.config.teach_imported and variant == IMPORTED)):
            self._let_go(key, closes_ms, fate)
        else:
            memory_offset = memory_needed(decision, offset)
            self.hold(key, held(memory_offset, offset, value), closes_ms, memory_offset, own=own)
        if key in self.waiting:
            for waiting in self.waiting.pop(key):
                self._add_said(key, waiting)

    def _add_again(self, key: Key, offset: int, decision: Decision, value: bytes) -> None:
        """A decision whose id is known: a copy, or somebody else's use of it. Of one that is gone only its time is left to tell by."""
        open_decision = self.open.get(key)
        if open_decision is not None:
            copy = is_copy(open_decision, value)
        else:
            copy = self.gone[self._fate_of(key)][key] == decision.event_time_ms + 2 * self._open_ms
        if copy:
            self.ledger.copies += 1
            self.ledger.of["decision"]["total"] -= 1
        else:
            self._quarantine(offset, REUSED, decision.decision_id, "decision")

    def _add_event(self, offset: int, kind: str, event: Event, decision_token: str, value: bytes) -> None:
        """Give one exposure or feedback to its decision. It is decided when that closes, or at once when there is none to wait for."""
        key = key_of(decision_id_of(decision_token))
        open_decision = self.open.get(key)
        if open_decision is not None:
            self.open[key] = with_event(open_decision, value)
            self.num_held[kind] += 1
        else:
            self._add_said(key, Waiting(offset, event.event_time_ms + self.config.disorder_ms, kind, value))

    def _add_said(self, key: Key, waiting: Waiting) -> None:
        """What became of an event whose decision was not there when it came."""
        kind = waiting.kind
        if key in self.open:
            self.open[key] = with_event(self.open[key], waiting.record)
            self.num_held[kind] += 1
        elif fate := self._fate_of(key):
            self.ledger.of[kind][fate] += 1
        elif waiting.expires_ms <= self.watermark_ms:
            self.ledger.of[kind]["orphan"] += 1
        else:
            self.wait(key, waiting)

    def _fate_of(self, key: Key) -> str:
        """What still speaks of a decision that is not open any more gets; empty where none is remembered."""
        for fate, known in self.gone.items():
            if key in known and known[key] > self.watermark_ms:
                return fate
        return ""

    # State ------------------------------------------------------------------------------------------------------------

    def hold(self, key: Key, open_decision: bytes | bytearray, closes_ms: int, memory_offset: int, *, own: bool) -> None:
        """Keep a decision open until the watermark is at `closes_ms`, W + L beyond it."""
        self.open[key] = open_decision
        self._closing.add(closes_ms, key, memory_offset)
        if not own:
            self.taught.add(key)

    def remember(self, key: Key, forgotten_ms: int, fate: str) -> None:
        """Keep what became of a decision until the watermark is at `forgotten_ms`, 2 (W + L) beyond it."""
        gone = self.gone[fate]
        gone.pop(key, None)  # one that was to be forgotten by now: they stand in the order in which they became so
        gone[key] = forgotten_ms
        self._forgetting[fate].add(forgotten_ms, key)

    def wait(self, key: Key, waiting: Waiting) -> None:
        """Keep an event until its decision comes or the watermark has passed it by D."""
        self.waiting.setdefault(key, []).append(waiting)
        self._orphaning.add(waiting.expires_ms, key)

    def keep(self, closed: Example, memory_offset: int) -> None:
        """Put an Example into the bucket of its decision's event time; `memory_offset`: as of which it needs user memory."""
        index = closed.event_time_ms // self.config.bucket_ms
        bucket = self.buckets.get(index)
        if bucket is None:
            bucket = self.buckets[index] = Bucket()
        bucket.add(closed, memory_offset)

    def least_memory_offset(self) -> int | None:
        """As of which offset user memory is still needed, by decisions that are open or not yet taken; None without any."""
        least = self._closing.least_offset(lambda key: offsets_of(self.open[key])[0])
        least = min([least, *[bucket.least_memory_offset for bucket in self.buckets.values()]])
        return None if least == NEVER_MS else least

    # Time -------------------------------------------------------------------------------------------------------------

    def _move(self, event_time_ms: int) -> None:
        """Move the watermark: nothing more than D older than this is still to come. Then do what is due."""
        watermark_ms = event_time_ms - self.config.disorder_ms
        if watermark_ms <= self.watermark_ms:
            return
        self.watermark_ms = watermark_ms
        if watermark_ms >= self._closing.next_ms:
            for key in self._closing.pop(watermark_ms):
                self._close(key)
        if watermark_ms >= self._orphaning.next_ms:
            for key in self._orphaning.pop(watermark_ms):
                self._orphan(key)

    def _forget(self) -> None:
        """Drop what is remembered for no longer."""
        for fate, gone in self.gone.items():
            for key in self._forgetting[fate].pop(self.watermark_ms):
                if gone.get(key, NEVER_MS) <= self.watermark_ms:
                    del gone[key]

    def _close(self, key: Key) -> None:
        """Decide what an open decision and its events come to."""
        open_decision = bytes(self.open.pop(key))
        own = key not in self.taught
        if not own:
            self.taught.remove(key)
        closed = Held.FromString(open_decision)
        decision, (memory_offset, offset) = closed.decision.decision, offsets_of(open_decision)
        event_time_ms = decision.event_time_ms
        said = heard(decision, closed.events, event_time_ms + self.config.window_ms)
        shown = said.shown()
        verdict = said.verdict(shown.slots) if said.said else NOTHING_SAID
        self._count(said, verdict, len(shown.slots), own=own)
        if shown.slots:
            at = open_decision, event_time_ms, decision.decision_id, self.partition, offset
            self.keep(_example((*at, own, *earned(shown, verdict.joined, self._rule))), memory_offset)
        self._let_go(key, event_time_ms + self._open_ms, "late" if own else "foreign")

    def _count(self, said: Heard, verdict: Verdict, num_shown: int, *, own: bool) -> None:
        """Write a closed decision into the books."""
        ledger, num_marks, num_said = self.ledger, len(said.marks), len(said.said)
        self.num_held["exposure"] -= num_marks
        self.num_held["feedback"] -= num_said
        ledger.slots_shown += num_shown
        ledger.slots_repeated += sum([len(slots) for slots, _ in said.marks]) - num_shown
        for kind, fate in said.misfits:
            self.num_held[kind] -= 1
            ledger.of[kind][fate if own else "foreign"] += 1
        ledger.of["exposure"]["joined" if own else "foreign"] += num_marks
        if not own:
            ledger.of["feedback"]["foreign"] += num_said
            return
        if num_said:
            counts = ledger.of["feedback"]
            counts["joined"] += len(verdict.joined)
            counts["duplicate"] += verdict.num_duplicate
            counts["unexposed"] += verdict.num_unexposed
        if not num_shown:
            ledger.of["decision"]["unexposed"] += 1

    def _give_up(self, key: Key, given_up: Held) -> None:
        """Write an open decision into the books of which nobody will know what became of it."""
        decision = given_up.decision.decision
        own = decision.variant == self._variant
        fate = "gap" if own else "foreign"
        if own:
            self.ledger.of["decision"][fate] += 1
        else:
            self.taught.remove(key)
        for record in given_up.events:
            kind = "exposure" if record.event.HasField("exposure") else "feedback"
            self.num_held[kind] -= 1
            self.ledger.of[kind][fate] += 1
        self._let_go(key, decision.event_time_ms + self._open_ms, fate)

    def _let_go(self, key: Key, closes_ms: int, fate: str) -> None:
        forgotten_ms = closes_ms + self._open_ms
        if forgotten_ms > self.watermark_ms:
            self.remember(key, forgotten_ms, fate)

    def _orphan(self, key: Key) -> None:
        """Give up on the events whose time to wait is over."""
        events = self.waiting.pop(key, ())
        still = [waiting for waiting in events if waiting.expires_ms > self.watermark_ms]
        for waiting in events:
            if waiting.expires_ms <= self.watermark_ms:
                self.ledger.of[waiting.kind]["orphan"] += 1
        if still:
            self.waiting[key] = still
