"""A server's hold on the log: its records go in, everybody's are applied, and what it knows is a function of them.

Knows nothing of requests, policies or slates. While the log is away Decisions wait in a file, and reach the log before
anything newer of this server. One that was in the log all the same is there twice then, the same bytes: it counts once.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from recsys.catalogue import Catalogue, change_of
from recsys.ledger import Ledger
from recsys.memory import Memory
from recsys.spool import Spool
from streaming.events import Tick, UnreadableRecord, decode, encode
from streaming.log import Entry, EventLog, LogUnavailable, OffsetGone, Position

LOG = logging.getLogger(__name__)

BATCH = 1000
"""Waiting Decisions that are appended at once when the log is back."""


class Journal:
    """Memory, catalogue and ledger as of what was applied. All but `catch_up` and `tick` want `lock` held; these take it in turns.

    It begins with the log away too. Without a `spool` no Decision can be kept while it is. OffsetGone when the log holds no more
    what memory needs next; with `accept_gap` users are known from there on.
    """

    def __init__(
        self,
        log: EventLog,
        items_log: EventLog,
        memory: Memory,
        ledger: Ledger,
        spool: Spool | None = None,
        *,
        accept_gap: bool = False,
    ) -> None:
        self.memory, self.ledger, self.catalogue = memory, ledger, Catalogue()
        self.lock = threading.RLock()
        self._log, self._items_log, self._spool, self._accept_gap = log, items_log, spool, accept_gap
        self._is_away = True
        if spool is not None:
            self._remember(spool.first(len(spool)))
        with suppress(LogUnavailable):
            self.catch_up()

    @property
    def num_partitions(self) -> int:
        """Of the log."""
        return self._log.num_partitions

    @property
    def num_waiting(self) -> int:
        """Decisions that wait for the log."""
        return len(self._spool) if self._spool else 0

    def ordinal(self, user_id: str) -> str:
        """Which Decision of this user comes next here; no two at one server share it, whatever their fate.

        With the log away nobody can say how many there were: those that ever waited here are counted.
        """
        if self._spool is not None and self._is_away:
            return f"~{self._spool.next_number}"
        return f"#{self.memory.num_decisions(user_id)}"

    # The log and its absence -----------------------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Apply all that is in the log now, and append what waits for it. LogUnavailable. In one thread at a time."""
        begins = self._log.begin_offsets()  # here and without the lock, so that nobody else waits for a log that is away
        self._items_log.end_offsets()
        with self.lock:
            for partition, (offset, begin) in enumerate(zip(self.memory.next_offset, begins, strict=True)):
                if offset < begin:
                    self._pass_gap(OffsetGone(self._log.name, partition, offset, begin))
        while True:
            while self._read_piece():
                pass
            with self.lock:
                waiting = self._spool.first(BATCH) if self._spool else []
                if self._spool is None or not waiting:
                    self._is_away = False
                    return
            self._log.append(waiting)
            with self.lock:
                self._spool.drop(len(waiting))

    def _pass_gap(self, gone: OffsetGone) -> None:
        if not self._accept_gap:
            raise gone
        LOG.warning("users are known from there on: %s", gone)
        self.memory.pass_gap(gone.partition, gone.begin_offset)

    def tick(self, now_ms: int) -> None:
        """Tell every partition what time it is, and catch up first when the log was away. LogUnavailable. In one thread at a time."""
        if self._is_away:
            self.catch_up()
        value = encode(Tick(event_time_ms=now_ms), now_ms)
        entries = [Entry(b"", value, partition) for partition in range(self.num_partitions)]
        with self._noticing():
            positions = self._log.append(entries)
            with self.lock:
                self._apply_appended(entries, positions)
        with self.lock:
            self.append_items([value])

    def keep(self, decisions: Sequence[Entry]) -> None:
        """Durable in the log, or in the spool while that is away; LogUnavailable when neither takes them."""
        try:
            self.append(decisions)
        except LogUnavailable:
            if self._spool is None:
                raise
            self._spool.append(decisions)
            self._remember(decisions)

    def append(self, entries: Sequence[Entry]) -> None:
        """Make durable, then apply. LogUnavailable, at once while the log is known to be away."""
        if entries:
            with self._noticing():
                self._apply_appended(entries, self._log.append(entries))

    def append_items(self, values: Sequence[bytes]) -> None:
        """The same in the items stream."""
        if not values:
            return
        with self._noticing():
            for value, position in zip(values, self._items_log.append([Entry(b"", value, 0) for value in values]), strict=True):
                while self.catalogue.next_offset < position.offset and self._read_items():
                    pass
                if position.offset == self.catalogue.next_offset:
                    self._apply_item(position.offset, value)

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """From the first failure on the log is away, until all has been caught up with: nobody waits for it meanwhile."""
        if self._is_away:
            raise LogUnavailable("the log is away")
        try:
            yield
        except LogUnavailable:
            self._is_away = True
            raise

    def _remember(self, decisions: Sequence[Entry]) -> None:
        """So that a repeated request gets the Decision that waits. Memory takes it from the log, at its offset."""
        for entry in decisions:
            self.ledger.remember(decode(entry.value))

    # Reading and applying --------------------------------------------------------------------------------------------

    def _apply_appended(self, entries: Sequence[Entry], positions: Sequence[Position]) -> None:
        """What another server appended in between is applied before, in the log's order."""
        for entry, position in zip(entries, positions, strict=True):
            if position.offset == self.memory.next_offset[position.partition]:
                self._apply(position.partition, position.offset, entry.value)
            else:
                while self._read_some(position.partition):
                    pass

    def _read_piece(self) -> bool:
        """A batch of every partition and of the items; whether there was any. Others get their turn between two of them."""
        with self.lock:
            return any([*map(self._read_some, range(self.num_partitions)), self._read_items()])

    def _read_some(self, partition: int) -> bool:
        records = self._log.read(partition, self.memory.next_offset[partition])
        for record in records:
            self._apply(partition, record.offset, record.value)
        return bool(records)

    def _read_items(self) -> bool:
        records = self._items_log.read(0, self.catalogue.next_offset)
        for record in records:
            self._apply_item(record.offset, record.value)
        return bool(records)

    def _apply(self, partition: int, offset: int, value: bytes) -> None:
        with suppress(UnreadableRecord):  # the joiner quarantines it; memory passes it
            record = decode(value)
            self.memory.apply(partition, offset, record)
            self.ledger.remember(record)
        self.memory.passed(partition, offset, value)

    def _apply_item(self, offset: int, value: bytes) -> None:
        try:
            change = change_of(value)
        except UnreadableRecord:
            change = None
        if change is None:
            self.catalogue.skip(offset)
        else:
            self.catalogue.apply(offset, change)
