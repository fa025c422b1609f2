"""What decisions come to when they close: the Examples they make, and a count of what was said of them.

Knows nothing of watermarks, books or where events come from. One decision is read by protobuf; of many, those that are as
protobuf writes them are read as columns, which comes to the same in a fraction of the time.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import chain, islice, repeat

import numpy as np

from streaming.books import Tally
from streaming.columns import Ints, read_closed
from streaming.events import Record
from streaming.fields import ANSWERED, COUNTED, DECISION_COLUMNS, EVENT_COLUMNS, EXPOSURE, FORGED, ODD, SILENT, SPOKEN_OF, Of
from streaming.held import Told, decision_in, events_in
from streaming.pieces import laid_out, texts
from streaming.plain import KINDS
from streaming.rewards import RewardRule
from streaming.table import Offsets
from streaming.window import NOTHING_SAID, Example, Heard, KindsAndValues, Said, Shown, earned, heard

_example = partial(tuple.__new__, Example)

_Decided = tuple[bytes, int, str, int, int]
"""Of one decision what an Example says: its record, event time, id, offset and memory offset."""
_Earned = tuple[tuple[int, ...], tuple[float, ...], tuple[KindsAndValues, ...]]
"""Slots, rewards and feedback of an Example."""


class Closed:
    """Decisions that closed and are still to be decided."""

    def __init__(self) -> None:
        self._told: list[Told] = []
        self._offsets: list[Offsets] = []

    def add(self, told: Sequence[Told], offsets: Offsets) -> None:
        """Some more, behind the others."""
        self._told += told
        self._offsets.append(offsets)

    def taken(self, at_once: int) -> Iterator[tuple[list[Told], Offsets]]:
        """All of them, so many at a time; none stays."""
        told, columns = self._told, [np.concatenate(column) for column in zip(*self._offsets, strict=True)]
        self._told, self._offsets = [], []
        for begin in range(0, len(told), at_once):
            some = slice(begin, begin + at_once)
            yield told[some], Offsets(*(column[some] for column in columns))


class Closing:
    """How the decisions of a partition close."""

    def __init__(self, partition: int, window_ms: int, rule: RewardRule) -> None:
        self.partition, self.window_ms, self.rule = partition, window_ms, rule
        self._earned = lru_cache(maxsize=4096)(partial(_earned, rule))

    def few(self, all_told: Sequence[Told], offsets: Offsets, tally: Tally, *, own: bool) -> list[Example]:
        """Close decisions, whatever they look like; no Example where nothing was shown. `own`: not imported."""
        places = zip(all_told, offsets.own.tolist(), offsets.memory.tolist(), strict=True)
        return [example for told, *place in places for example in self._one(told, place, tally, own=own)]

    def _one(self, told: Told, place: Iterable[int], tally: Tally, *, own: bool) -> list[Example]:
        record = decision_in(told)
        decision = Record.FromString(record).decision
        said = heard(decision, map(Record.FromString, events_in(told)), decision.event_time_ms + self.window_ms)
        offset, memory_offset = place
        return self._kept((record, decision.event_time_ms, decision.decision_id, offset, memory_offset), said, tally, own=own)

    def many(self, told: Sequence[Told], offsets: Offsets, tally: Tally, *, own: bool) -> list[Example]:
        """What `few` says, sooner."""
        read = _Columns(told, offsets, self.window_ms)
        kept = [*self._silent(read, tally, own=own), *self._answered(read, tally, own=own)]
        rows = read.rows(SPOKEN_OF)
        for decided, said in zip(zip(*read.decided(rows), strict=True), read.heard(rows), strict=True):
            kept += self._kept(decided, said, tally, own=own)
        odd = read.rows(ODD)
        return kept + self.few([told[row] for row in odd.tolist()], Offsets(offsets.memory[odd], offsets.own[odd]), tally, own=own)

    def _silent(self, read: "_Columns", tally: Tally, *, own: bool) -> Iterator[Example]:
        """Those that were shown once, and nothing was said: most."""
        rows = read.rows(SILENT)
        marks, shown_ms = read.shown(rows)
        earned_by = {slots: self._earned(slots, None) for slots in set(marks)}
        all_earned = list(map(earned_by.__getitem__, marks))
        return self._made(read, rows, marks, all_earned, zip(shown_ms, strict=True), tally, own=own)

    def _answered(self, read: "_Columns", tally: Tally, *, own: bool) -> Iterator[Example]:
        """Those that were shown once, and then one thing was said: nearly all others."""
        rows = read.rows(ANSWERED)
        (marks, shown_ms), (said, said_ms) = read.shown(rows), read.said(rows)
        all_earned = list(map(self._earned, marks, said))
        joined = [slot in slots for (slot, _, _), (slots, _, _) in zip(said, all_earned, strict=True)]
        all_times = zip(joined, shown_ms, said_ms, strict=True)
        times_ms = [((one, other) if one <= other else (other, one)) if joins else (one,) for joins, one, other in all_times]
        tally.feedback += len(joined)
        tally.joined += sum(joined)
        tally.unexposed += len(joined) - sum(joined)
        return self._made(read, rows, marks, all_earned, times_ms, tally, own=own)

    def _made(
        self,
        read: "_Columns",
        rows: Ints,
        marks: Sequence[str],
        all_earned: Sequence[_Earned],
        times_ms: Iterable[tuple[int, ...]],
        tally: Tally,
        *,
        own: bool,
    ) -> Iterator[Example]:
        """Examples of decisions that were shown once."""
        if not all_earned:
            return iter(())
        slots, rewards, feedback = zip(*all_earned, strict=True)
        tally.exposures += len(marks)
        tally.slots_marked += sum(map(len, marks))
        tally.slots_shown += sum(map(len, slots))
        records, decided_ms, ids, offsets, memory_offsets = read.decided(rows)
        where = records, decided_ms, ids, repeat(self.partition), offsets, memory_offsets, repeat(own)
        return map(_example, zip(*where, slots, rewards, feedback, times_ms, strict=False))

    def _kept(self, decided: _Decided, said: Heard, tally: Tally, *, own: bool) -> list[Example]:
        shown = said.shown()
        verdict = said.verdict(shown.slots) if said.said else NOTHING_SAID
        tally.decisions_unexposed += not shown.slots
        tally.exposures += len(said.marks)
        tally.slots_marked += sum([len(slots) for slots, _ in said.marks])
        tally.slots_shown += len(shown.slots)
        tally.feedback += len(said.said)
        tally.joined += len(verdict.joined)
        tally.duplicate += verdict.num_duplicate
        tally.unexposed += verdict.num_unexposed
        tally.misfits.update(said.misfits)
        if not shown.slots:
            return []
        record, event_time_ms, decision_id, offset, memory_offset = decided
        at = record, event_time_ms, decision_id, self.partition, offset, memory_offset, own
        return [_example((*at, *earned(shown, verdict.joined, self.rule)))]


def _earned(rule: RewardRule, marks: str, said: tuple[int, str, float] | None) -> _Earned:
    """What one exposure comes to, and no more than one feedback: slot, kind and value."""
    feedback = [] if said is None else [Said(0, "", *said, 0)]
    slots = tuple(sorted(set(map(ord, marks))))
    return earned(Shown(slots, ()), [one for one in feedback if one.slot in slots], rule)[:3]


class _Columns:
    """Decisions that close, with what was said of them, as columns."""

    def __init__(self, told: Sequence[Told], offsets: Offsets, window_ms: int) -> None:
        lists = [[one] if isinstance(one, bytes) else one for one in told]
        pieces = list(chain.from_iterable(lists))
        self._records, self._offsets = [one[0] for one in lists], offsets
        text, ends = laid_out(pieces)
        self._text = np.frombuffer(text, np.uint8)
        self._counts = np.fromiter(map(len, lists), np.int64, len(lists)) - 1
        self._decisions = np.empty((len(lists), DECISION_COLUMNS), np.int64)
        self._events = np.empty((len(pieces) - len(lists), EVENT_COLUMNS), np.int64)
        read_closed(self._text, ends, self._counts, window_ms, self._decisions, self._events)

    def rows(self, needs: int) -> Ints:
        """Decisions that need such a reading."""
        return np.flatnonzero(self._decisions[:, Of.NEEDS] == needs)

    def decided(self, rows: Ints) -> tuple[list[bytes], list[int], list[str], list[int], list[int]]:
        """Of decisions the records, event times, ids, offsets and memory offsets."""
        of = self._decisions[rows]
        records, ids = [self._records[row] for row in rows.tolist()], self._texts(of, Of.ID, Of.ID_LENGTH)
        return records, of[:, Of.TIME_MS].tolist(), ids, self._offsets.own[rows].tolist(), self._offsets.memory[rows].tolist()

    # Of those that were shown once ----------------------------------------------------------------------------------------

    def shown(self, rows: Ints) -> tuple[list[str], list[int]]:
        """Slots of the exposures, and when they were appended."""
        of = self._events[self._decisions[rows, Of.FIRST_EVENT]]
        return self._texts(of, Of.SLOTS, Of.NUM_MARKS), of[:, Of.APPEND_MS].tolist()

    def said(self, rows: Ints) -> tuple[list[tuple[int, str, float]], list[int]]:
        """Slot, kind and value of the feedback behind the exposures, and when it was appended."""
        of = self._events[self._decisions[rows, Of.FIRST_EVENT] + 1]
        what = zip(of[:, Of.LAST_SLOT].tolist(), self._texts(of, Of.SAID, Of.SAID_LENGTH), _values(of), strict=True)
        return list(what), of[:, Of.APPEND_MS].tolist()

    # Of the others --------------------------------------------------------------------------------------------------------

    def heard(self, rows: Ints) -> Iterator[Heard]:
        """What was said of decisions; their rows rise."""
        chosen = np.zeros(len(self._decisions), np.bool_)
        chosen[rows] = True
        said = self._all_said(self._events[np.repeat(chosen, self._counts)])
        for count in self._counts[rows].tolist():
            marks, all_said, misfits = out = Heard([], [], [])
            for fate, kind, slots, one in islice(said, count):
                if fate != COUNTED:
                    misfits.append((KINDS[kind], "forged" if fate == FORGED else "late"))
                elif kind == EXPOSURE:
                    marks.append((list(map(ord, slots)), one.append_time_ms))
                else:
                    all_said.append(one)
            yield out

    def _all_said(self, of: Ints) -> Iterator[tuple[int, int, str, Said]]:
        """Of events: fate, kind, slots, and itself as feedback."""
        ids, kinds = self._texts(of, Of.ID, Of.ID_LENGTH), self._texts(of, Of.SAID, Of.SAID_LENGTH)
        said = map(Said, of[:, Of.TIME_MS].tolist(), ids, of[:, Of.LAST_SLOT].tolist(), kinds, _values(of), of[:, Of.APPEND_MS].tolist())
        return zip(of[:, Of.FATE].tolist(), of[:, Of.KIND].tolist(), self._texts(of, Of.SLOTS, Of.NUM_MARKS), said, strict=True)

    def _texts(self, of: Ints, begin: Of, length: Of) -> list[str]:
        return texts(self._text, of[:, begin], of[:, length])


def _values(of: Ints) -> list[float]:
    return of[:, Of.VALUE].copy().view(np.float64).tolist()
