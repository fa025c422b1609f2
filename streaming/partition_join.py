"""The join within one partition: its watermark, its open decisions, and the buckets of Examples they close into.

Knows nothing of other partitions or training. Every rule compares a time with the watermark, and all that is due is done
as soon as the watermark moves: the state is a pure function of the records so far.
"""

from collections.abc import Sequence
from itertools import compress
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streaming.books import REUSED, Ledger, Quarantined, Tally
from streaming.closing import Closed, Closing
from streaming.columns import Ints, Records
from streaming.due_dates import NEVER_MS, DueDates, Key
from streaming.events import IMPORTED, Control, Decision, Event, Record, UnreadableRecord, decision_id_of, kind_and_record
from streaming.fields import EXPOSURE, FEEDBACK, FOREIGN, LATEST_MS, MAX_VALUE, OTHER, OWN, TAUGHT
from streaming.held import Told, decision_in, events_in, key_of, with_event
from streaming.log import LogRecord
from streaming.plain import KINDS, plain
from streaming.rewards import rule_named
from streaming.slots import AWAITED, GONE_FOREIGN, GONE_GAP, GONE_LATE, NOWHERE, NUM_STATES, OPEN, OPEN_TAUGHT
from streaming.table import Known, Table
from streaming.window import Example, JoinConfig

MANY = 2048
"""Records are taken, and decisions decided, by so many at a time: what is made of more does not stay in the processor's cache."""
FEW = 4
"""Up to so many are taken one by one: arrays would cost more than they save."""
FATES = {GONE_LATE: "late", GONE_FOREIGN: "foreign", GONE_GAP: "gap"}
"""What still speaks of a decision that is gone gets in the books."""


_EVENT_TIME_MS, _MEMORY_OFFSET, _OWN = (itemgetter(Example._fields.index(name)) for name in ("event_time_ms", "memory_offset", "own"))
_OFFSET, _VALUE = (itemgetter(LogRecord._fields.index(name)) for name in ("offset", "value"))


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

    def add(self, examples: Sequence[Example]) -> None:
        """Keep more."""
        self.examples += examples
        self.num_own += sum(map(_OWN, examples))
        self.least_memory_offset = min(self.least_memory_offset, *map(_MEMORY_OFFSET, examples))


class PartitionJoin:
    """The state of the join in one partition. Records must come in offset order."""

    def __init__(self, config: JoinConfig, partition: int, ledger: Ledger) -> None:
        self.config, self.partition, self.ledger = config, partition, ledger
        self.next_offset = 0
        self.table = Table(config.open_ms, config.disorder_ms)
        """Which decisions are open, and what still speaks of one that is gone gets."""
        self.told: list[Told] = []
        """Of the open ones what is held, by slot of the table."""
        self.num_held = {"exposure": 0, "feedback": 0}
        """Events on open decisions, by kind."""
        self.waiting: dict[Key, list[Waiting]] = {}
        self.buckets: dict[int, Bucket] = {}
        self._orphaning = DueDates()
        self._closed = {True: Closed(), False: Closed()}
        """Own or not; all of one poll are decided at once."""
        self._controls: list[Asked] = []
        self._closing = Closing(partition, config.window_ms, rule_named(config.reward))

    @property
    def watermark_ms(self) -> int:
        """Nothing more than D older than this is still to come; −NEVER_MS at first."""
        return self.table.watermark_ms

    # Records ----------------------------------------------------------------------------------------------------------

    def apply(self, records: Sequence[LogRecord]) -> None:
        """Take these records. ValueError for an offset applied before; then none of them is taken."""
        if not records:
            return
        offsets, values = np.fromiter(map(_OFFSET, records), np.int64, len(records)), list(map(_VALUE, records))
        self._check(offsets)
        for begin in range(0, len(values), MANY):
            some = slice(begin, begin + MANY)
            if len(values) - begin > FEW:
                self._apply_all(offsets[some], values[some])
            else:
                for offset, value in zip(offsets[some].tolist(), values[some], strict=True):
                    self._apply(offset, value)
            self.next_offset = int(offsets[some][-1]) + 1
        self._decide()
        self.table.forget()

    def pass_gap(self, offset: int) -> None:
        """Go on at `offset`, and give up all that is open. ValueError for an offset applied before."""
        self._check(np.array([offset]))
        self.ledger.never_read += offset - self.next_offset
        self.next_offset = offset
        for slot in self.table.give_up():
            self._give_up(self.told[slot], own=self.table.state(slot) == GONE_GAP)
            self.told[slot] = b""
        self.table.forget()

    def _apply_all(self, offsets: Ints, values: Sequence[bytes]) -> None:
        """Take records as their columns say, and what is not plain or another case than most by itself, in its turn."""
        read, counts, begin = plain(offsets, values, self.config), np.zeros((len(KINDS), 1 + NUM_STATES), np.int64), 0
        while begin < len(values):
            step, slots, closed = self.table.take(read, begin, self._orphaning.next_ms, counts)
            self._hold_all(values, read, begin, slots[begin : step.stop])
            self._close(closed)
            self._orphan()
            begin = step.stop
            if step.asks:
                self._apply(int(offsets[begin]), values[begin])
                begin += 1
        self._count_taken(counts)

    def _hold_all(self, values: Sequence[bytes], read: Records, begin: int, slots: NDArray[np.int32]) -> None:
        """Keep decisions that opened, and what was said of open ones."""
        told, kinds = self._told(), read.kinds[begin : begin + len(slots)]
        opened = np.flatnonzero((kinds >= OWN) & (slots != NOWHERE))
        for row, slot in zip((begin + opened).tolist(), slots[opened].tolist(), strict=True):
            told[slot] = values[row]
        spoken = np.flatnonzero((kinds <= FEEDBACK) & (slots != NOWHERE))
        for row, slot in zip((begin + spoken).tolist(), slots[spoken].tolist(), strict=True):
            so_far = told[slot]
            if isinstance(so_far, bytes):
                told[slot] = [so_far, values[row]]
            else:
                so_far.append(values[row])

    def _told(self) -> list[Told]:
        """`told` with room for all slots."""
        self.told += [b""] * (self.table.size - len(self.told))
        return self.told

    def _count_taken(self, counts: Ints) -> None:
        for kind, name in enumerate(KINDS):
            if kind != OTHER:
                total, *by_state = counts[kind].tolist()
                self.ledger.of[name]["total"] += total
                if kind in (EXPOSURE, FEEDBACK):
                    self.num_held[name] += by_state[OPEN] + by_state[OPEN_TAUGHT]
                    for state, fate in FATES.items():
                        self.ledger.of[name][fate] += by_state[state]
                elif kind in (TAUGHT, FOREIGN):
                    self.ledger.of[name]["foreign"] += total

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

    def _check(self, offsets: Ints) -> None:
        if offsets[0] >= self.next_offset and (len(offsets) == 1 or (offsets[1:] > offsets[:-1]).all()):
            return
        least = np.concatenate([[self.next_offset], offsets[:-1] + 1])
        at = np.argmax(offsets < least)
        raise ValueError(f"partition {self.partition}: offset {offsets[at]} was applied before; the next is {least[at]} or later")

    def _apply_decision(self, offset: int, record: Record, value: bytes) -> None:
        decision = record.decision
        event_time_ms = decision.event_time_ms
        if self._in_time("decision", offset, record.append_time_ms, event_time_ms):
            decision_id = decision.decision_id
            if decision_id:
                self._add(key_of(decision_id), offset, record, value)
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
        if 0 <= event_time_ms <= min(append_time_ms + self.config.future_ms, LATEST_MS):
            return True
        reason = "before 1970" if event_time_ms < 0 else "from the future"
        self._quarantine(offset, reason, f"event time {event_time_ms}, appended {append_time_ms}", kind)
        return False

    def _quarantine(self, offset: int, reason: str, detail: str, kind: str | None) -> None:
        self.ledger.quarantine(Quarantined(self.partition, offset, reason, detail, self.watermark_ms), kind)

    # Decisions and events ---------------------------------------------------------------------------------------------

    def _add(self, key: Key, offset: int, record: Record, value: bytes) -> None:
        """Open a decision, or count it as what else it is; then the events that waited for it."""
        decision, known = record.decision, self._known(key)
        variant, closes_ms = decision.variant, decision.event_time_ms + self.config.open_ms
        own, late = variant == self.config.variant, closes_ms <= self.watermark_ms
        if known is not None:
            self._add_again(known, offset, decision, value)
            return
        if late or not own:
            self.ledger.of["decision"]["late" if own else "foreign"] += 1
        if late or not (own or (self.config.teach_imported and variant == IMPORTED)):
            self._let_go(key, GONE_LATE if own else GONE_FOREIGN, closes_ms + self.config.open_ms)
        else:
            memory_offset = decision.memory_offset if decision.memory_offset >= 0 else offset
            slot = self.table.open(key, closes_ms, memory_offset, offset, own=own)
            self._told()[slot] = value
        self.table.wait_no_longer(key)
        for waiting in self.waiting.pop(key, ()):
            self._add_said(key, waiting)

    def _add_again(self, slot: int, offset: int, decision: Decision, value: bytes) -> None:
        """A decision whose id is known: a copy, or somebody else's use of it. Of one that is gone only its time is left to tell by."""
        if self.table.state(slot) <= OPEN_TAUGHT:
            copy = decision_in(self.told[slot]) == value
        else:
            copy = self.table.due_ms(slot) == decision.event_time_ms + 2 * self.config.open_ms
        if copy:
            self.ledger.copies += 1
            self.ledger.of["decision"]["total"] -= 1
        else:
            self._quarantine(offset, REUSED, decision.decision_id, "decision")

    def _add_event(self, offset: int, kind: str, event: Event, decision_token: str, value: bytes) -> None:
        """Give one exposure or feedback to its decision. It is decided when that closes, or at once when there is none to wait for."""
        expires_ms = event.event_time_ms + self.config.disorder_ms
        self._add_said(key_of(decision_id_of(decision_token)), Waiting(offset, expires_ms, kind, value))

    def _add_said(self, key: Key, waiting: Waiting) -> None:
        kind, slot = waiting.kind, self._known(key)
        if slot is None:
            if waiting.expires_ms <= self.watermark_ms:
                self.ledger.of[kind]["orphan"] += 1
            else:
                self.wait(key, waiting)
        elif (state := self.table.state(slot)) <= OPEN_TAUGHT:
            self.told[slot] = with_event(self.told[slot], waiting.record)
            self.num_held[kind] += 1
        else:
            self.ledger.of[kind][FATES[state]] += 1

    def _known(self, key: Key) -> int | None:
        """The slot of a decision that is open, or that is gone and not for long enough to be forgotten."""
        slot = self.table.find(key)
        if slot == NOWHERE or (state := self.table.state(slot)) == AWAITED:
            return None
        return slot if state <= OPEN_TAUGHT or self.table.due_ms(slot) > self.watermark_ms else None

    # State ------------------------------------------------------------------------------------------------------------

    def know(self, opened: Sequence[Known], told: Sequence[Told], gone: Sequence[Known]) -> None:
        """Begin with decisions that are open, what is held of each, and those that are gone."""
        slots, held_by_slot = self.table.fill([*opened, *gone]), self._told()
        for slot, one in zip(slots, told, strict=False):
            held_by_slot[slot] = one

    def wait(self, key: Key, waiting: Waiting) -> None:
        """Keep an event until its decision comes or the watermark has passed it by D."""
        self.table.wait_for(key)
        self.waiting.setdefault(key, []).append(waiting)
        self._orphaning.add(waiting.expires_ms, key)

    def keep(self, examples: Sequence[Example]) -> None:
        """Put Examples into the buckets of their decisions' event times."""
        bucket_ms = self.config.bucket_ms
        indexes = [time_ms // bucket_ms for time_ms in map(_EVENT_TIME_MS, examples)]
        for index in sorted(set(indexes)):
            self.buckets.setdefault(index, Bucket()).add(list(compress(examples, map(index.__eq__, indexes))))

    def least_memory_offset(self) -> int | None:
        """As of which offset user memory is still needed, by decisions that are open or not yet taken; None without any."""
        least = min([self.table.least_memory_offset(), *[bucket.least_memory_offset for bucket in self.buckets.values()]])
        return None if least == NEVER_MS else least

    # Time -------------------------------------------------------------------------------------------------------------

    def _move(self, event_time_ms: int) -> None:
        """Move the watermark: nothing more than D older than this is still to come. Then do what is due."""
        watermark_ms = event_time_ms - self.config.disorder_ms
        if watermark_ms > self.watermark_ms:
            self._close(self.table.move(watermark_ms))
            self._orphan()

    def _close(self, slots: NDArray[np.int32]) -> None:
        """Put aside what closed. What it comes to is decided at the end of the poll."""
        own = self.table.states(slots) == GONE_LATE
        told = self.told
        for mine, closed in self._closed.items():
            some = slots[own == mine]
            if len(some):
                closed.add([told[slot] for slot in some.tolist()], self.table.offsets(some))
        for slot in slots.tolist():
            told[slot] = b""

    def _decide(self) -> None:
        """What the decisions come to that closed in this poll."""
        for own, closed in self._closed.items():
            for told, offsets in closed.taken(MANY):
                tally = Tally()
                close = self._closing.many if len(told) > FEW else self._closing.few
                self.keep(close(told, offsets, tally, own=own))
                self.ledger.close(tally, own=own)
                for kind, num in tally.num_told().items():
                    self.num_held[kind] -= num

    def _give_up(self, told: Told, *, own: bool) -> None:
        """Write an open decision into the books of which nobody will know what became of it."""
        fate = "gap" if own else "foreign"
        if own:
            self.ledger.of["decision"][fate] += 1
        for record in map(Record.FromString, events_in(told)):
            kind = "exposure" if record.event.HasField("exposure") else "feedback"
            self.num_held[kind] -= 1
            self.ledger.of[kind][fate] += 1

    def _let_go(self, key: Key, state: int, forgotten_ms: int) -> None:
        if forgotten_ms > self.watermark_ms:
            self.table.let_go(key, state, forgotten_ms)

    def _orphan(self) -> None:
        """Give up on the events whose time to wait is over."""
        watermark_ms = self.watermark_ms
        if watermark_ms < self._orphaning.next_ms:
            return
        for key in self._orphaning.pop(watermark_ms):
            events = self.waiting.pop(key, ())
            still = [waiting for waiting in events if waiting.expires_ms > watermark_ms]
            for waiting in events:
                if waiting.expires_ms <= watermark_ms:
                    self.ledger.of[waiting.kind]["orphan"] += 1
            if still:
                self.waiting[key] = still
            else:
                self.table.wait_no_longer(key)
