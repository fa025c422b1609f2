"""The items, as the items stream tells of them: rows in order of first appearance, attributes and retirement as of any offset.

Knows nothing of users or policies. Row numbers start at 1 and are the same in every process, because they are a function
of the stream; row 0 stands for an item that is not known.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce

import numpy as np
import numpy.typing as npt

from models.content import ItemText
from models.trie import common
from streaming.events import Item, ItemChange, decode

Rows = npt.NDArray[np.int64]


def item_key(item_id: str) -> int:
    """A 64-bit name for an item that does not depend on any catalogue (BLAKE2b); never 0."""
    return int.from_bytes(hashlib.blake2b(item_id.encode(), digest_size=8).digest(), "little", signed=True) or 1


class Vocabulary:
    """Item ids of rows 1..N, and the way back, for many keys at once."""

    def __init__(self, item_ids: Sequence[str]) -> None:
        self.item_ids = item_ids
        self.row_of = {item_id: row for row, item_id in enumerate(item_ids, 1)}
        keys = np.fromiter(map(item_key, item_ids), np.int64, len(item_ids))
        self._order = np.argsort(keys)
        self._sorted = keys[self._order]
        if len(keys) > 1 and (self._sorted[1:] == self._sorted[:-1]).any():
            at = int(self._order[np.flatnonzero(self._sorted[1:] == self._sorted[:-1])[0]])
            raise ValueError(f"item {item_ids[at]!r} has the same key as another item; one of the two must be renamed")

    @property
    def num_rows(self) -> int:
        """N + 1."""
        return len(self.item_ids) + 1

    def rows(self, keys: Rows) -> Rows:
        """Rows of item keys; 0 for those not known here."""
        if not len(self._sorted):
            return np.zeros(keys.shape, np.int64)
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[at] == keys, self._order[at] + 1, 0)

    def known_rows(self, item_ids: Iterable[str]) -> Rows:
        """Rows of those ids that are known here."""
        return np.array([row for row in map(self.row_of.get, item_ids) if row is not None], np.int64)


class _Rows:
    """Item rows in an array that grows behind its end; a view of it stays what it is."""

    def __init__(self) -> None:
        self._rows: Rows = np.zeros(4, np.int64)
        self._size = 0
        self._pending: dict[int, bool] = {}

    def append(self, row: int) -> None:
        """A row behind all others."""
        if self._size == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros(len(self._rows) + 4, np.int64)])
        self._rows[self._size] = row
        self._size += 1

    def put(self, row: int, *, present: bool) -> None:
        """A row of ascending ones comes or goes; many such changes are made at once, at the next look."""
        self._pending[row] = present

    def view(self) -> Rows:
        """The rows now."""
        if self._pending:
            changed = np.array(list(self._pending), np.int64)
            present = np.fromiter(self._pending.values(), bool, len(changed))
            self._rows = np.union1d(np.setdiff1d(self._rows[: self._size], changed, assume_unique=True), changed[present])
            self._size = len(self._rows)
            self._pending = {}
        return self._rows[: self._size]


class Catalogue:
    """Applies the items stream in offset order."""

    def __init__(self) -> None:
        self.item_ids: list[str] = []
        self.next_offset = 0
        self._row_of: dict[str, int] = {}
        self._items: list[ItemText] = []
        self._attributes: list[list[tuple[int, Mapping[str, str]]]] = []
        """By item, what its attributes became at which offset; the last is in force."""
        self._first_offset: list[int] = []
        self._retired_offsets: list[int] = []
        self._retired_rows = _Rows()
        """In order of retirement, beside the offsets of it."""
        self._is_retired: set[int] = set()
        self._changed_offsets: list[int] = []
        self._changed_rows: list[int] = []
        """Of which items the attributes changed, and when."""
        self._index: dict[tuple[str, str], _Rows] = {}

    def apply(self, offset: int, change: ItemChange) -> int:
        """Take one change at its offset; the row it speaks of. A retired item stays retired."""
        item = change.item
        self.next_offset = offset + 1
        row = self._row_of.get(item.item_id)
        if row is None:
            row = self._add(item, offset)
        else:
            self._change(row, item, offset)
        if item.retired and row not in self._is_retired:
            self._is_retired.add(row)
            self._retired_rows.append(row)
            self._retired_offsets.append(offset)
        return row

    def skip(self, offset: int) -> None:
        """Pass a record of the stream that changes no item (a tick)."""
        self.next_offset = offset + 1

    def row_of(self, item_id: str) -> int:
        """Its row; 0 if not known."""
        return self._row_of.get(item_id, 0)

    def texts(self, rows: Iterable[int]) -> list[ItemText]:
        """What is known of the items of these rows now."""
        return [self._items[row - 1] for row in rows]

    def num_rows(self, items_offset: int) -> int:
        """Rows, row 0 included, of the stream before `items_offset`."""
        return bisect_left(self._first_offset, items_offset) + 1

    def retired_rows(self, items_offset: int) -> Rows:
        """Rows retired before `items_offset`, in order of retirement."""
        return self._retired_rows.view()[: bisect_left(self._retired_offsets, items_offset)]

    def has_changed_since(self, items_offset: int) -> bool:
        """Whether attributes of an item that was there before are others now than just before `items_offset`."""
        return bool(self._changed_offsets) and self._changed_offsets[-1] >= items_offset

    def rows_with(self, pair: tuple[str, str]) -> Rows:
        """Rows of the items that have this attribute value now, ascending: a view, longer at the next look if more have come."""
        return self._index[pair].view() if pair in self._index else np.zeros(0, np.int64)

    def matching_rows(self, where: Mapping[str, str], items_offset: int) -> Rows:
        """Rows of items that had all these attribute values as of `items_offset`, ascending."""
        lists = sorted(map(self.rows_with, where.items()), key=len)
        rows = reduce(common, lists) if lists else np.arange(1, len(self.item_ids) + 1)
        changed = set(self._changed_rows[bisect_left(self._changed_offsets, items_offset) :])
        if changed:
            had = [row for row in changed if where.items() <= self._as_of(row, items_offset).items()]
            rows = np.union1d(np.setdiff1d(rows, list(changed), assume_unique=True), np.array(had, np.int64))
        return rows[: rows.searchsorted(self.num_rows(items_offset))]

    def _as_of(self, row: int, items_offset: int) -> Mapping[str, str]:
        known = [attributes for offset, attributes in self._attributes[row - 1] if offset < items_offset]
        return known[-1] if known else {}

    def _add(self, item: Item, offset: int) -> int:
        self.item_ids.append(item.item_id)
        row = self._row_of[item.item_id] = len(self.item_ids)
        attributes = dict(item.attributes)
        self._items.append(_text(item))
        self._attributes.append([(offset, attributes)])
        self._first_offset.append(offset)
        for pair in attributes.items():
            self._index.setdefault(pair, _Rows()).append(row)
        return row

    def _change(self, row: int, item: Item, offset: int) -> None:
        self._items[row - 1] = _text(item)
        before, attributes = self._attributes[row - 1][-1][1], dict(item.attributes)
        if before == attributes:
            return
        self._attributes[row - 1].append((offset, attributes))
        self._changed_offsets.append(offset)
        self._changed_rows.append(row)
        for pair in before.items() - attributes.items():
            self._index[pair].put(row, present=False)
        for pair in attributes.items() - before.items():
            self._index.setdefault(pair, _Rows()).put(row, present=True)


def change_of(value: bytes) -> ItemChange | None:
    """The change in a record of the items stream; None for a tick. UnreadableRecord for broken bytes."""
    record = decode(value)
    return record.item if record.WhichOneof("body") == "item" else None


def _text(item: Item) -> ItemText:
    return ItemText(item.item_id, item.title, dict(item.attributes), tuple(item.embedding))
