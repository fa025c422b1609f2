"""The keys and values of one user's memory under one version, kept from request to request: a new row costs one row.

A row depends on the few rows just before it alone, and how old it is enters attention as a bias, so what was computed stays.
Serving does not keep any: what it would save is a small part of a slate (tests/bench/generate.md).
Shapes: H heads, d = D / H, L history.
"""

import numpy as np

from models.content import FloatArray
from models.inference import FrozenDecoder, Memory


class MemoryCache:
    """The newest L rows, in arrays that grow; those that are too old are dropped when room is needed, so an append is O(1) on average."""

    def __init__(self, decoder: FrozenDecoder) -> None:
        self._decoder = decoder
        self._keys_HdT, self._values_HTd = self._room(16)
        self._end = 1
        """Behind the newest row. What stands for having nothing to read has the place before the oldest that is still read."""
        self._said_1RD = np.zeros((1, decoder.reach, decoder.width), np.float32)
        """What the newest rows say by themselves: all that the next one needs of them."""
        self._newest_1D = np.zeros((1, decoder.width), np.float32)
        self._put_nothing(0)

    @property
    def num_rows(self) -> int:
        """How many rows are read."""
        return min(self._end - 1, self._decoder.history)

    def append(self, item: int, kind: int, gap: int) -> None:
        """One more row of memory: item row (0 if not known), kind (never 0, blank) and bucket of the gap before it."""
        decoder = self._decoder
        if self._end == self._values_HTd.shape[1]:
            self._make_room()
        self._said_1RD[:, :-1] = self._said_1RD[:, 1:]
        self._said_1RD[:, -1:] = decoder.said(*(np.array([[value]]) for value in (item, kind, gap)))
        row_11D = decoder.coloured(self._said_1RD)
        self._newest_1D = row_11D[:, 0]
        both = decoder.keys_and_values(row_11D)[0, 0]
        self._keys_HdT[:, :, self._end], self._values_HTd[:, self._end] = both[: decoder.heads], both[decoder.heads :]
        self._end += 1
        self._put_nothing(self._end - 1 - self.num_rows)  # over the row that has just become too old, if any

    def memory(self) -> Memory:
        """What `FrozenDecoder.memory` makes of a context of these rows; views, good until the next append."""
        first, length = self._end - 1 - self.num_rows, self.num_rows
        bias_HL = self._decoder.recency_bias(length)
        keys, values = self._keys_HdT[None, :, :, first : self._end], self._values_HTd[None, :, first : self._end]
        return Memory(keys, values, bias_HL[None], self._newest_1D)

    def _room(self, size: int) -> tuple[FloatArray, FloatArray]:
        heads, depth = self._decoder.heads, self._decoder.width // self._decoder.heads
        return np.empty((heads, depth, size), np.float32), np.empty((heads, size, depth), np.float32)

    def _make_room(self) -> None:
        first = self._end - 1 - self.num_rows
        size = self._end - first
        keys, values = self._room(2 * size)
        keys[:, :, :size], values[:, :size] = self._keys_HdT[:, :, first : self._end], self._values_HTd[:, first : self._end]
        self._keys_HdT, self._values_HTd, self._end = keys, values, size

    def _put_nothing(self, at: int) -> None:
        heads = self._decoder.heads
        self._keys_HdT[:, :, at], self._values_HTd[:, at] = self._decoder.nothing[:heads], self._decoder.nothing[heads:]
