"""The keys and values of users' memories under one version, kept from request to request: a new row costs one row.

A row depends on the few rows just before it alone, and how old it is enters attention as a bias, so what was computed stays.
Knows users by name only. What it is worth, and from which length on: tests/bench/generate.md.
Shapes: B requests, H heads, d = D / H, L history, N new rows, T places in arrays that grow.
"""

from collections.abc import Sequence

import numpy as np

from models.content import FloatArray
from models.decoder import Context
from models.inference import FrozenDecoder, Memory
from models.trie import IntArray


class Reading:
    """The newest L rows of one user, in arrays that grow; those that are too old are dropped when room is needed."""

    def __init__(self, decoder: FrozenDecoder) -> None:
        self._decoder = decoder
        self._rows_3T = np.zeros((3, 1), np.int64)
        self._keys_HdT, self._values_HTd = self._room(1)
        self._end = 1
        """Behind the newest row. What stands for having nothing to read has the place before the oldest that is still read."""
        self._said_1RD = np.zeros((1, decoder.reach - 1, decoder.width), np.float32)
        """What the newest rows say by themselves: all that the next one needs of them."""
        self._newest_1D = np.zeros((1, decoder.width), np.float32)
        self._put_nothing()

    @property
    def num_rows(self) -> int:
        """How many rows are read."""
        return min(self._end - 1, self._decoder.history)

    def goes_on(self, rows_3L: IntArray) -> int | None:
        """How many of these rows (item, kind, gap; oldest first) are new, given that the others are those read so far; None if not.

        Rows are compared and not counted, so whatever was done to a user's memory, what is read is what is there.
        """
        known_3T = self._rows_3T[:, 1 : self._end]
        if self._end == 1:
            return rows_3L.shape[1]
        (number,), num_known = rows_3L.shape[1:], known_3T.shape[1]
        # what stands before the first of as many as are ever handed over colours no row that is read
        is_cut = number >= self._decoder.rows_read
        for length in (1 + np.flatnonzero((rows_3L == known_3T[:, -1:]).all(0))[::-1]).tolist():
            fits = length == num_known or (is_cut and length < num_known)
            if fits and (rows_3L[:, :length] == known_3T[:, num_known - length :]).all():
                return int(number - length)
        return None

    def read(self, rows_3N: IntArray) -> None:
        """These rows come behind those read so far."""
        decoder, number = self._decoder, rows_3N.shape[1]
        if not number:
            return
        if self._end + number > self._values_HTd.shape[1]:
            self._make_room(number)
        said_1ND = np.concatenate([self._said_1RD, decoder.said(*rows_3N[:, None])], 1)
        row_1ND = decoder.coloured(said_1ND)
        both_NHd = decoder.keys_and_values(row_1ND)[0]
        now = slice(self._end, self._end + number)
        self._rows_3T[:, now] = rows_3N
        self._keys_HdT[:, :, now] = both_NHd[:, : decoder.heads].transpose(1, 2, 0)
        self._values_HTd[:, now] = both_NHd[:, decoder.heads :].transpose(1, 0, 2)
        self._said_1RD, self._newest_1D = said_1ND[:, number:], row_1ND[:, -1]
        self._end += number
        self._put_nothing()

    def memory(self) -> Memory:
        """What `FrozenDecoder.memory` makes of a context of these rows."""
        return _side_by_side([self.views()])

    def views(self) -> Memory:
        """The same, not in C order, and good until the next rows are read."""
        first, bias_HL = self._end - 1 - self.num_rows, self._decoder.recency_bias(self.num_rows)
        keys, values = self._keys_HdT[None, :, :, first : self._end], self._values_HTd[None, :, first : self._end]
        return Memory(keys, values, bias_HL[None], self._newest_1D)

    def _room(self, size: int) -> tuple[FloatArray, FloatArray]:
        heads, depth = self._decoder.heads, self._decoder.width // self._decoder.heads
        return np.empty((heads, depth, size), np.float32), np.empty((heads, size, depth), np.float32)

    def _make_room(self, number: int) -> None:
        first = max(0, self._end - 1 - self._decoder.rows_read)
        old, size = slice(first, self._end), self._end - first
        before = self._rows_3T[:, old], self._keys_HdT[:, :, old], self._values_HTd[:, old]
        self._rows_3T = np.zeros((3, 2 * (size + number)), np.int64)
        self._keys_HdT, self._values_HTd = self._room(2 * (size + number))
        self._rows_3T[:, :size], self._keys_HdT[:, :, :size], self._values_HTd[:, :size] = before
        self._end = size

    def _put_nothing(self) -> None:
        """Over the row that has just become too old, if any."""
        heads, at = self._decoder.heads, self._end - 1 - self.num_rows
        self._keys_HdT[:, :, at], self._values_HTd[:, at] = self._decoder.nothing[:heads], self._decoder.nothing[heads:]


class Readings:
    """The readings of the `most` users who were asked for last."""

    def __init__(self, decoder: FrozenDecoder, most: int) -> None:
        self._decoder, self._most = decoder, most
        self._of_user: dict[str, Reading] = {}
        """Asked for longest ago first."""
        self.num_asked = self.num_gone_on = 0

    def memory(self, users: Sequence[str], context: Context) -> Memory:
        """What `FrozenDecoder.memory` makes of the context of these users (each once), reading only what is new."""
        return _side_by_side([self._read(user, rows_3L) for user, rows_3L in zip(users, _rows(context), strict=True)])

    def _read(self, user: str, rows_3L: IntArray) -> Memory:
        reading = self._of_user.pop(user, None)
        number = reading.goes_on(rows_3L) if reading else None
        self.num_asked += 1
        self.num_gone_on += number is not None
        if reading is None or number is None:
            reading, number = Reading(self._decoder), rows_3L.shape[1]
        reading.read(rows_3L[:, rows_3L.shape[1] - number :])
        self._of_user[user] = reading
        if len(self._of_user) > self._most:
            del self._of_user[next(iter(self._of_user))]
        return reading.views()


def _rows(context: Context) -> list[IntArray]:
    """Item, kind and gap of the rows of each request that are not blank."""
    rows_B3L = np.stack([context.item_BL, context.kind_BL, context.gap_BL], 1)
    first_B = (context.kind_BL > 0).argmax(1) + (context.kind_BL.shape[1] * ~context.kind_BL.any(1))
    return [rows_3L[:, first:] for rows_3L, first in zip(rows_B3L, first_B.tolist(), strict=True)]


def _side_by_side(memories: Sequence[Memory]) -> Memory:
    """One batch of some of one request each, right-aligned; copied, so in C order."""
    _, heads, depth, _ = memories[0].keys.shape
    length = max(memory.bias.shape[2] for memory in memories)
    keys = np.zeros((len(memories), heads, depth, length), np.float32)
    values = np.zeros((len(memories), heads, length, depth), np.float32)
    bias = np.full((len(memories), heads, length), -np.inf, np.float32)
    for at, memory in enumerate(memories):
        places = slice(length - memory.bias.shape[2], length)
        keys[at, :, :, places], values[at, :, places], bias[at, :, places] = memory.keys[0], memory.values[0], memory.bias[0]
    return Memory(keys, values, bias, np.concatenate([memory.newest_BD for memory in memories]))
