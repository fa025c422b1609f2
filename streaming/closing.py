"""What decisions come to when they close: the Examples they make, and a count of what was said of them.

Knows nothing of watermarks, books or where events come from. One decision is read by protobuf; of many, those that are as
protobuf writes them are read as columns, which comes to the same in a fraction of the time.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from itertools import chain, islice

import numpy as np

from streaming.books import Tally
from streaming.columns import COUNTED, DECISION_COLUMNS, EVENT_COLUMNS, EXPOSURE, FORGED, ODD, SIMPLE, SPOKEN_OF, Ints, Of, read_closed
from streaming.held import Told, decision_in, parts
from streaming.plain import KINDS
from streaming.proto.joiner_pb2 import Held
from streaming.rewards import RewardRule
from streaming.window import NOTHING_SAID, Example, Heard, KindsAndValues, Said, Shown, earned, heard

_example = partial(tuple.__new__, Example)

Kept = tuple[Example, int]
"""An Example, and as of which offset it needs user memory."""


class Closing:
    """How the decisions of a partition close."""

    def __init__(self, partition: int, window_ms: int, rule: RewardRule) -> None:
        self.partition, self.window_ms, self.rule = partition, window_ms, rule
        self._earned = lru_cache(maxsize=4096)(partial(_earned, rule))

    def few(self, all_told: Sequence[Told], tally: Tally, *, own: bool) -> list[Kept]:
        """Close decisions, whatever they look like; no Example where nothing was shown. `own`: not imported."""
        return [kept for told in all_told for kept in self._one(told, tally, own=own)]

    def _one(self, told: Told, tally: Tally, *, own: bool) -> list[Kept]:
        parsed = Held.FromString(b"".join(parts(told)))
        decision = parsed.decision.decision
        said = heard(decision, parsed.events, decision.event_time_ms + self.window_ms)
        decided = decision_in(told), decision.event_time_ms, decision.decision_id, parsed.offset
        return self._kept(decided, parsed.memory_offset, said, tally, own=own)

    def many(self, told: Sequence[Told], tally: Tally, *, own: bool) -> list[Kept]:
        """What `few` says, sooner."""
        read = _Columns(told, self.window_ms)
        kept = self._simple(read, tally, own=own)
        spoken_of = read.rows(SPOKEN_OF)
        others = read.decided(spoken_of), read.memory_offsets(spoken_of), read.heard(spoken_of)
        for decided, memory_offset, said in zip(*others, strict=True):
            kept += self._kept(decided, memory_offset, said, tally, own=own)
        for row in read.rows(ODD).tolist():
            kept += self._one(told[row], tally, own=own)
        return kept

    def _simple(self, read: "_Columns", tally: Tally, *, own: bool) -> list[Kept]:
        """What those come to that were shown once, and one thing said of them at most: nearly all."""
        rows = read.rows(SIMPLE)
        partition, earned_by = self.partition, self._earned
        examples: list[Example] = []
        add, said, num_joined = examples.append, read.said(rows), 0
        for (held, time_ms, decision_id, offset), marks, shown_ms, has_said in zip(read.decided(rows), *read.shown(rows), strict=True):
            if not has_said:
                slots, rewards, feedback = earned_by(marks, None)
                add(_example((held, time_ms, decision_id, partition, offset, own, slots, rewards, feedback, (shown_ms,))))
                continue
            said_ms, *what = next(said)
            slots, rewards, feedback = earned_by(marks, tuple(what))
            times_ms: tuple[int, ...] = (shown_ms,)
            if what[0] in slots:
                num_joined += 1
                times_ms = (shown_ms, said_ms) if shown_ms <= said_ms else (said_ms, shown_ms)
            add(_example((held, time_ms, decision_id, partition, offset, own, slots, rewards, feedback, times_ms)))
        num_said = read.num_said(rows)
        tally.exposures += len(examples)
        tally.slots_marked += read.num_marked(rows)
        tally.slots_shown += sum([len(example.shown) for example in examples])
        tally.feedback += num_said
        tally.joined += num_joined
        tally.unexposed += num_said - num_joined
        return list(zip(examples, read.memory_offsets(rows), strict=True))

    def _kept(self, decided: "_Decided", memory_offset: int, said: Heard, tally: Tally, *, own: bool) -> list[Kept]:
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
        held, event_time_ms, decision_id, offset = decided
        at = held, event_time_ms, decision_id, self.partition, offset, own
        return [(_example((*at, *earned(shown, verdict.joined, self.rule))), memory_offset)]


_Decided = tuple[bytes, int, str, int]
"""Of one decision what an Example says: as held, event time, id and offset."""
_Earned = tuple[tuple[int, ...], tuple[float, ...], tuple[KindsAndValues, ...]]


def _earned(rule: RewardRule, marks: str, said: tuple[int, str, float] | None) -> _Earned:
    """Slots, rewards and feedback of an Example of one exposure and no more than one feedback: slot, kind and value."""
    feedback = [] if said is None else [Said(0, "", *said, 0)]
    slots = tuple(sorted(set(map(ord, marks))))
    return earned(Shown(slots, ()), [one for one in feedback if one.slot in slots], rule)[:3]


class _Columns:
    """Decisions that close, with what was said of them, as columns."""

    def __init__(self, told: Sequence[Told], window_ms: int) -> None:
        lists = [[one] if isinstance(one, bytes) else one for one in told]
        pieces = list(chain.from_iterable(lists))
        self._held, text = [one[0] for one in lists], b"".join(pieces)
        self._text = text.decode("latin-1")  # in which every byte is a letter
        self._counts = np.fromiter(map(len, lists), np.int64, len(lists)) - 1
        ends = np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)))
        self._decisions = np.empty((len(lists), DECISION_COLUMNS), np.int64)
        self._events = np.empty((len(pieces) - len(lists), EVENT_COLUMNS), np.int64)
        read_closed(np.frombuffer(text, np.uint8), ends, self._counts, window_ms, self._decisions, self._events)

    def rows(self, needs: int) -> Ints:
        """Decisions that need such a reading."""
        return np.flatnonzero(self._decisions[:, Of.NEEDS] == needs)

    def decided(self, rows: Ints) -> Iterator[_Decided]:
        """What is known of the decisions of some rows."""
        of, text = self._decisions[rows], self._text
        ids = [text[at : at + length] for at, length in of[:, [Of.ID, Of.ID_LENGTH]].tolist()]
        return zip([self._held[row] for row in rows.tolist()], of[:, Of.TIME_MS].tolist(), ids, of[:, Of.OFFSET].tolist(), strict=True)

    def memory_offsets(self, rows: Ints) -> list[int]:
        """As of which offset each needs user memory."""
        return self._decisions[rows, Of.MEMORY_OFFSET].tolist()

    # Of those that are simple ---------------------------------------------------------------------------------------------

    def shown(self, rows: Ints) -> tuple[list[str], list[int], list[bool]]:
        """Slots and append times of their exposures, and whether feedback stands behind them."""
        of = self._events[self._decisions[rows, Of.FIRST_EVENT]]
        return self._texts(of, Of.SLOTS, Of.NUM_MARKS), of[:, Of.APPEND_MS].tolist(), (self._counts[rows] == 2).tolist()

    def said(self, rows: Ints) -> Iterator[tuple[int, int, str, float]]:
        """Append time, slot, kind and value of the feedback on those that have some."""
        of = self._events[self._decisions[rows[self._counts[rows] == 2], Of.FIRST_EVENT] + 1]
        kinds = self._texts(of, Of.SAID, Of.SAID_LENGTH)
        return zip(of[:, Of.APPEND_MS].tolist(), of[:, Of.LAST_SLOT].tolist(), kinds, _values(of), strict=True)

    def num_marked(self, rows: Ints) -> int:
        """Slots that were shown, as often as they were."""
        return int(self._events[self._decisions[rows, Of.FIRST_EVENT], Of.NUM_MARKS].sum())

    def num_said(self, rows: Ints) -> int:
        """Feedback on them."""
        return int((self._counts[rows] == 2).sum())

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
        text = self._text
        return [text[at : at + size] for at, size in of[:, [begin, length]].tolist()]


def _values(of: Ints) -> list[float]:
    return of[:, Of.VALUE].copy().view(np.float64).tolist()
