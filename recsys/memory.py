"""What is known of each user as of an offset: one row an event, never changed, in the order of the log.

Knows nothing of weights, rewards or training. Server, learner and replay run this same code over the same records, so a
policy's context can be rebuilt exactly from the log (`Decision.memory_offset`). Events whose token is not that of a
Decision of the same user earlier in the log leave no row.
"""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt

from recsys.blobs import Arrays, decoded, encoded, joined, sizes, split
from recsys.catalogue import item_key
from streaming.events import Decision, Event, Feedback, Interaction, Record, UnreadableRecord, decision_id_of, decode
from streaming.log import EventLog, LogRecord, OffsetGone

BLANK, SHOWN = 0, 1
GAP_BUCKETS = 16
UNKNOWN = -1

_ROW = np.dtype([("key", np.int64), ("kind", np.int64), ("gap", np.int64), ("offset", np.int64), ("event", np.int64)])

_NARROW = {"key": np.int64, "kind": np.int16, "gap": np.int8, "offset": np.int64, "event": np.int64}
"""What a row's columns are in a snapshot."""

RowArray = npt.NDArray[np.void]


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """What memory keeps. `kinds` are the feedback and interaction kinds that are told apart; all others are one kind."""

    rows: int = 128
    """Newest rows by user: these items count as seen."""
    decisions_s: int = 600
    """How long a Decision's slate is kept for the events that speak of it."""
    kinds: tuple[str, ...] = ("click", "like", "long_view", "dislike", "purchase", "watch", "rating")
    against: tuple[str, ...] = ("dislike",)
    """Those that speak against an item, if they are told apart; all others say that it was taken."""
    until_ms: int = 0
    """Events from this time on leave no row: what is remembered stands still. 0: never; only to tell what memory is worth."""

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= 100_000:
            raise ValueError(f"memory.rows is {self.rows}; it must be 1..100000")
        if not 1 <= self.decisions_s <= 86_400:
            raise ValueError(f"memory.decisions_s is {self.decisions_s}; it must be 1..86400")
        for name in ("kinds", "against"):
            if not all(isinstance(kind, str) and kind for kind in getattr(self, name)):
                raise ValueError(f"memory.{name} are {getattr(self, name)}; they must be texts")
        if self.until_ms < 0:
            raise ValueError(f"memory.until_ms is {self.until_ms}; it must be 0 (never) or a time, UTC milliseconds")

    @property
    def num_kinds(self) -> int:
        """Row kinds: blank, shown, then feedback and interactions each by kind and one for the rest."""
        return 2 + 2 * (len(self.kinds) + 1)

    @property
    def against_kinds(self) -> list[int]:
        """Row kinds that speak against their item."""
        places = [place for place, kind in enumerate(self.kinds) if kind in self.against]
        return [2 + first + place for first in (0, len(self.kinds) + 1) for place in places]

    def kind_of(self, body: Feedback | Interaction) -> int:
        """The row kind of an event."""
        place = self.kinds.index(body.kind) if body.kind in self.kinds else len(self.kinds)
        return 2 + place + (0 if isinstance(body, Feedback) else len(self.kinds) + 1)


@dataclass(frozen=True, slots=True)
class View:
    """A user's rows as of an offset, oldest first: item keys, kinds, and buckets of the time since the row before."""

    key_L: npt.NDArray[np.int64]
    kind_L: npt.NDArray[np.int64]
    gap_L: npt.NDArray[np.int64]


@dataclass(slots=True)
class _Slate:
    token: str
    event_time_ms: int
    keys: list[int]
    shown: set[int] = field(default_factory=set)
    said: set[tuple[int, str]] = field(default_factory=set)


@dataclass(slots=True)
class _User:
    partition: int
    rows: RowArray
    num_rows: int = 0
    last_ms: int = 0
    num_decisions: int = 0
    slates: dict[str, _Slate] = field(default_factory=dict)


class Memory:
    """All users, by partition. Apply each partition's records in offset order, each once."""

    def __init__(self, config: MemoryConfig, num_partitions: int) -> None:
        self.config = config
        self.next_offset = [0] * num_partitions
        self.keep_from: list[int | None] = [None] * num_partitions
        """The oldest offset that a view may still be asked for, by partition; None: only the newest."""
        self._users: dict[str, _User] = {}
        self._last = [UNKNOWN] * num_partitions

    @property
    def num_users(self) -> int:
        """Users with a row or an open slate."""
        return len(self._users)

    def apply(self, partition: int, offset: int, record: Record) -> None:
        """Take one record at its offset. What says nothing of a user only moves the offset."""
        self.next_offset[partition] = offset + 1
        body = record.WhichOneof("body")
        if body == "decision":
            self._remember(partition, record.decision)
        elif body == "event":
            self._apply_event(partition, offset, record.event)

    def read(self, records: Sequence[LogRecord]) -> None:
        """Take records as they stand in the log; those that can't be read are passed: the joiner has them in quarantine."""
        for partition, offset, _, value in records:
            with suppress(UnreadableRecord):
                self.apply(partition, offset, decode(value))
        for partition, offset, _, value in records[-1:]:
            self.passed(partition, offset, value)

    def passed(self, partition: int, offset: int, value: bytes) -> None:
        """The record at `offset`, whose bytes are `value`, is behind."""
        self.next_offset[partition], self._last[partition] = offset + 1, zlib.crc32(value)

    def pass_gap(self, partition: int, offset: int) -> None:
        """Go on at `offset`: what was before it is gone."""
        self.next_offset[partition], self._last[partition] = offset, UNKNOWN

    def num_decisions(self, user_id: str) -> int:
        """How many Decisions of this user were applied; a copy of one that is still known counts once."""
        user = self._users.get(user_id)
        return user.num_decisions if user else 0

    def view(self, user_id: str, before_offset: int | None = None) -> View:
        """The newest `config.rows` rows, of records before `before_offset` if given."""
        user = self._users.get(user_id)
        if user is None:
            return View(*(np.zeros(0, np.int64) for _ in range(3)))
        end = user.num_rows
        if before_offset is not None:
            end = int(np.searchsorted(user.rows["offset"][:end], before_offset))
        rows = user.rows[max(0, end - self.config.rows) : end]
        return View(rows["key"].copy(), rows["kind"].copy(), rows["gap"].copy())

    def arrays(self) -> Arrays:
        """All that views may still ask for, given `keep_from`, as arrays for a snapshot; the same records give the same bytes."""
        users = sorted(self._users.items())
        slates = [(key, slate) for _, user in users for key, slate in user.slates.items()]
        said = [one for _, slate in slates for one in sorted(slate.said)]
        parts = [self._rows_kept(user, self.keep_from[user.partition]) for _, user in users]
        rows = np.concatenate([np.zeros(0, _ROW), *parts], dtype=_ROW)
        return {
            "next_offset": np.array(self.next_offset, np.int64),
            "last": np.array(self._last, np.int64),
            **joined("user", encoded(user_id for user_id, _ in users)),
            "user": np.array([(user.partition, user.last_ms, user.num_decisions, len(user.slates)) for _, user in users], np.int64),
            "num_rows": sizes(parts),
            **{name: np.ascontiguousarray(rows[name]).astype(kind) for name, kind in _NARROW.items()},
            **joined("slate", encoded(key for key, _ in slates)),
            **joined("token", encoded(slate.token for _, slate in slates)),
            "slate_ms": np.array([slate.event_time_ms for _, slate in slates], np.int64),
            "slate_keys": np.array([key for _, slate in slates for key in slate.keys], np.int64),
            "num_keys": sizes(slate.keys for _, slate in slates),
            "shown": np.array([slot for _, slate in slates for slot in sorted(slate.shown)], np.int64),
            "num_shown": sizes(slate.shown for _, slate in slates),
            "said_slot": np.array([slot for slot, _ in said], np.int64),
            **joined("said", encoded(kind for _, kind in said)),
            "num_said": sizes(slate.said for _, slate in slates),
        }

    @staticmethod
    def of(config: MemoryConfig, arrays: Arrays) -> "Memory":
        """The memory that `arrays` were made of; its views as of offsets that were kept are the same."""
        next_offset = arrays["next_offset"].tolist()
        memory = Memory(config, len(next_offset))
        memory.next_offset = next_offset
        if "last" in arrays:  # since schema 5 was first written
            memory._last = arrays["last"].tolist()
        rows = np.zeros(len(arrays["key"]), _ROW)
        for name in _NARROW:
            rows[name] = arrays[name]
        slates = _slates_of(arrays)
        ends = np.cumsum(arrays["num_rows"]).tolist()
        for user_id, said, num_rows, end in zip(
            decoded(split("user", arrays)), arrays["user"].tolist(), arrays["num_rows"].tolist(), ends, strict=True
        ):
            partition, last_ms, num_decisions, num_slates = said
            kept = rows[end - num_rows : end] if num_rows else np.zeros(min(16, 2 * config.rows), _ROW)
            memory._users[user_id] = _User(partition, kept, num_rows, last_ms, num_decisions, dict(islice(slates, num_slates)))
        return memory

    def _remember(self, partition: int, decision: Decision) -> None:
        user = self._user(partition, decision.user_id)
        oldest_ms = decision.event_time_ms - 1000 * self.config.decisions_s
        for decision_id in [key for key, slate in user.slates.items() if slate.event_time_ms < oldest_ms]:
            del user.slates[decision_id]
        if decision.decision_id not in user.slates:
            user.num_decisions += 1
            keys = [item_key(item_id) for item_id in decision.item_ids]
            user.slates[decision.decision_id] = _Slate(decision.decision_token, decision.event_time_ms, keys)

    def _apply_event(self, partition: int, offset: int, event: Event) -> None:
        match event.WhichOneof("body"):
            case "exposure":
                slate = self._slate(event.user_id, event.exposure.decision_token)
                if slate is not None:
                    new = [slot for slot in dict.fromkeys(event.exposure.slots) if slot < len(slate.keys) and slot not in slate.shown]
                    slate.shown.update(new)
                    self._append(partition, offset, event, [slate.keys[slot] for slot in new], SHOWN)
            case "feedback":
                feedback = event.feedback
                slate = self._slate(event.user_id, feedback.decision_token)
                said = (feedback.slot, feedback.kind)
                if slate is not None and feedback.slot < len(slate.keys) and said not in slate.said:
                    slate.said.add(said)
                    self._append(partition, offset, event, [slate.keys[feedback.slot]], self.config.kind_of(feedback))
            case "interaction":
                if not self._has_row_of(event):
                    key = item_key(event.interaction.item_id)
                    self._append(partition, offset, event, [key], self.config.kind_of(event.interaction))

    def _has_row_of(self, event: Event) -> bool:
        """Whether one of the newest rows is this event's: only these are in every memory, whatever it may have dropped."""
        user = self._users.get(event.user_id)
        if user is None:
            return False
        newest = user.rows["event"][max(0, user.num_rows - self.config.rows) : user.num_rows]
        return _event_key(event.event_id) in newest

    def _slate(self, user_id: str, token: str) -> _Slate | None:
        user = self._users.get(user_id)
        slate = user.slates.get(decision_id_of(token)) if user else None
        return slate if slate is not None and slate.token == token else None

    def _user(self, partition: int, user_id: str) -> _User:
        user = self._users.get(user_id)
        if user is None:
            user = self._users[user_id] = _User(partition, np.zeros(min(16, 2 * self.config.rows), _ROW))
        return user

    def _append(self, partition: int, offset: int, event: Event, keys: Sequence[int], kind: int) -> None:
        if not keys or 0 < self.config.until_ms <= event.event_time_ms:
            return
        user = self._user(partition, event.user_id)
        self._make_room(user, len(keys))
        gap_s = max(0, event.event_time_ms - user.last_ms) / 1000 if user.last_ms else 0.0
        named = _event_key(event.event_id) if kind != SHOWN else 0
        for key in keys:
            bucket = min(int(np.log2(1 + gap_s)), GAP_BUCKETS - 1)
            user.rows[user.num_rows] = (key, kind, bucket, offset, named)
            user.num_rows += 1
            gap_s = 0.0
        user.last_ms = max(user.last_ms, event.event_time_ms)

    def _make_room(self, user: _User, num_new: int) -> None:
        """Drop rows that no view can ask for any more; grow while there are none."""
        if user.num_rows + num_new <= len(user.rows):
            return
        kept = self._rows_kept(user, self.keep_from[user.partition])
        size = len(user.rows)
        while size < 2 * (len(kept) + num_new):
            size *= 2
        rows = np.zeros(size, _ROW)
        rows[: len(kept)] = kept
        user.rows, user.num_rows = rows, len(kept)

    def _rows_kept(self, user: _User, keep_from: int | None) -> RowArray:
        """The rows that a view as of `keep_from` or later can hold; None: as of now."""
        end = user.num_rows
        if keep_from is not None and end > self.config.rows:
            end = int(np.searchsorted(user.rows["offset"][:end], keep_from))
        return user.rows[max(0, end - self.config.rows) : user.num_rows]


def refuse_another(log: EventLog, arrays: Arrays, reader: str) -> None:
    """ValueError when `log` is not the one that was read by whose memory these are: it ends before, or the last record that was read
    is another one there. `reader` is who that was, for the message.
    """
    next_offsets, ends = arrays["next_offset"].tolist(), log.end_offsets()
    if len(next_offsets) != len(ends):
        raise ValueError(f"{reader} has read a log of {len(next_offsets)} partitions; {log.name} has {len(ends)}: is it another log?")
    last_read = arrays.get("last", np.full(len(ends), UNKNOWN)).tolist()
    for partition, (offset, end, last) in enumerate(zip(next_offsets, ends, last_read, strict=True)):
        if offset > end:
            raise ValueError(f"{reader} has read partition {partition} up to {offset}; {log.name} ends at {end}: is it another log?")
        with suppress(OffsetGone):  # then nobody can tell
            for record in log.read(partition, offset - 1, 1) if last != UNKNOWN else ():
                if record.offset == offset - 1 and zlib.crc32(record.value) != last:
                    where = f"partition {partition}, offset {offset - 1} of {log.name}"
                    raise ValueError(f"{where} is not the record that {reader} has read: is it another log?")


def _slates_of(arrays: Arrays) -> Iterator[tuple[str, _Slate]]:
    """The slates of all users, one after the other."""
    keys, shown = iter(arrays["slate_keys"].tolist()), iter(arrays["shown"].tolist())
    said = zip(arrays["said_slot"].tolist(), decoded(split("said", arrays)), strict=True)
    counts = (arrays[name].tolist() for name in ("slate_ms", "num_keys", "num_shown", "num_said"))
    for decision_id, token, time_ms, num_keys, num_shown, num_said in zip(
        decoded(split("slate", arrays)), decoded(split("token", arrays)), *counts, strict=True
    ):
        slate = _Slate(token, time_ms, list(islice(keys, num_keys)), set(islice(shown, num_shown)), set(islice(said, num_said)))
        yield decision_id, slate


def _event_key(event_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(event_id.encode(), digest_size=8).digest(), "little", signed=True)
