"""Pieces of bytes laid end to end, and texts taken out of such a whole, many at a time. Knows nothing of what they say."""

from collections.abc import Sequence

import numpy as np

from streaming.columns import Bytes, Ints
from streaming.compiled import compiled

_NEVER_IN_UTF8 = 0xFF


def laid_out(pieces: Sequence[bytes]) -> tuple[bytes, Ints]:
    """Pieces end to end, and where each of them ends."""
    return b"".join(pieces), np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)))


def texts(text: Bytes, begins: Ints, lengths: Ints) -> list[str]:
    """Texts that are in order in a longer one."""
    if not len(begins):
        return []
    pieces = np.empty(lengths.sum() + len(begins), np.uint8)
    is_ascii = _gather(text, begins, lengths, pieces)
    found = pieces[:-1].tobytes().decode("latin-1").split(chr(_NEVER_IN_UTF8))  # in latin-1 every byte is a letter
    return found if is_ascii else [one if one.isascii() else one.encode("latin-1").decode() for one in found]


@compiled
def _gather(text: Bytes, begins: Ints, lengths: Ints, out: Bytes) -> bool:
    """Copy pieces, a byte behind each; whether all of them are ASCII."""
    bits, to = np.uint8(0), 0
    for row in range(len(begins)):
        begin, length = begins[row], lengths[row]
        for place in range(length):
            bits |= text[begin + place]
            out[to + place] = text[begin + place]
        to += length
        out[to] = _NEVER_IN_UTF8
        to += 1
    return bool(bits < 0x80)
