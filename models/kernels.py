"""What every slot of a slate goes through, in machine code: attention to memory and slots so far, and the draw of a child.

Calls of numpy on so little would cost more than what they compute; large products stay with it. Knows nothing of weights, trees or
requests. As in streaming/compiled.py, which models/ does not know, functions call only those of their own file.

Shapes: B requests, D width, H heads, d = D / H, L memory rows, S slots, C children, E = 6 D and M = 4 D as in `models.decoder.Block`.
"""

from collections.abc import Callable
from functools import cache
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit

from models.content import FloatArray
from models.trie import BoolArray, CountArray, IntArray

Function = TypeVar("Function", bound=Callable[..., object])
LEAST = 1e-300
"""A sum of chances below this counts as this."""


def compiled(function: Function) -> Function:
    """The function, compiled when it is first called, and kept on disk where that can be. It holds the interpreter's lock: it is short."""
    try:
        return cast(Function, njit(cache=True, error_model="numpy")(function))
    except RuntimeError:  # nothing can be written
        return cast(Function, njit(error_model="numpy")(function))


@cache
def load() -> None:
    """Have all of it compiled, or read from disk, now and not while somebody waits for an answer."""
    one, rows = np.zeros((1, 6), np.float32), np.zeros((1, 1, 1, 1), np.float32)
    attend(one, rows, rows, rows[0], rows, rows, 0, one)
    drawn(one, one.astype(np.int32), one[0, :1], one[0, :1] > 0)


@compiled
def attend(
    inner_BE: FloatArray,
    keys_BHdL: FloatArray,
    values_BHLd: FloatArray,
    bias_BHL: FloatArray,
    own_keys_BHSd: FloatArray,
    own_values_BHSd: FloatArray,
    slot: int,
    mixed_BM: FloatArray,
) -> None:
    """Fill `mixed_BM`: attention to the memory, attention to the slots up to `slot`, whose key and value are kept, and the squared ReLU.

    `inner_BE` are queries for both, the slot's key and value, and what the ReLU takes. All arrays are in C order.
    """
    batch, heads, depth, length = keys_BHdL.shape
    width = heads * depth
    score = np.empty(max(length, slot + 1), np.float32)
    for at in range(batch):
        inner, mixed = inner_BE[at], mixed_BM[at]
        for head in range(heads):
            first = head * depth
            for row in range(length):
                score[row] = bias_BHL[at, head, row]
            for one in range(depth):
                asked = inner[first + one]
                for row in range(length):
                    score[row] += asked * keys_BHdL[at, head, one, row]
            _read(score, length, values_BHLd[at, head], mixed[first : first + depth])
            for one in range(depth):
                own_keys_BHSd[at, head, slot, one] = inner[2 * width + first + one]
                own_values_BHSd[at, head, slot, one] = inner[3 * width + first + one]
            for before in range(slot + 1):
                total = np.float32(0)
                for one in range(depth):
                    total += inner[width + first + one] * own_keys_BHSd[at, head, before, one]
                score[before] = total
            _read(score, slot + 1, own_values_BHSd[at, head], mixed[width + first : width + first + depth])
        for one in range(2 * width):
            above = max(inner[4 * width + one], np.float32(0))
            mixed[2 * width + one] = above * above


@compiled
def _read(score_L: FloatArray, length: int, values_Ld: FloatArray, read_d: FloatArray) -> None:
    """The mean of the first `length` values, weighted by the softmax of their scores, of which at least one is above -inf."""
    largest = score_L[0]
    for row in range(length):
        largest = max(largest, score_L[row])
    read_d[:] = 0
    total = np.float32(0)
    for row in range(length):
        weight = np.exp(score_L[row] - largest)
        total += weight
        for one in range(len(read_d)):
            read_d[one] += weight * values_Ld[row, one]
    for one in range(len(read_d)):
        read_d[one] /= total


@compiled
def drawn(
    logits_BC: FloatArray, count_BC: CountArray, uniform_B: FloatArray, evenly_B: BoolArray
) -> tuple[IntArray, npt.NDArray[np.float64]]:
    """A child for each request, where the running sum passes uniform × total, (B,), and its chance by the softmax of the logits.

    Only children with a count above 0 are drawn: by their chances, or by their counts where `evenly_B` says so. Any, of chance 0, where
    there is none.
    """
    batch, children = logits_BC.shape
    at_B, chance_B, sum_C = np.empty(batch, np.int64), np.empty(batch, np.float64), np.empty(children, np.float64)
    for at in range(batch):
        logits, counts = logits_BC[at], count_BC[at]
        largest = np.float32(-3e38)
        for child in range(children):
            if counts[child] > 0:
                largest = max(largest, logits[child])
        total, number = 0.0, 0.0
        for child in range(children):
            if counts[child] > 0:
                total += np.exp(logits[child] - largest)
            number += counts[child]
            sum_C[child] = number if evenly_B[at] else total
        place = min(np.searchsorted(sum_C, uniform_B[at] * sum_C[-1], side="right"), children - 1)
        at_B[at], chance_B[at] = place, 0.0
        if counts[place] > 0:
            chance_B[at] = np.exp(logits[place] - largest) / max(total, LEAST)
    return at_B, chance_B
