"""The records of a poll, read as columns. Whatever is not plain is left to who reads records one by one.

Knows what makes a second look at a record needless, nothing of what is open or of time that passes.
"""

from collections.abc import Sequence

import numpy as np

from streaming.columns import Bytes, Ints, Records, read_all
from streaming.events import IMPORTED
from streaming.pieces import laid_out
from streaming.window import JoinConfig

KINDS = ("", "exposure", "feedback", "interaction", "tick", "decision", "decision", "decision")
"""What kinds of records are called in the books, by number."""


def plain(offsets: Ints, values: Sequence[bytes], config: JoinConfig) -> Records:
    """Read records. Those that can't be in time, or say too much, are not plain."""
    num = len(values)
    read = Records(
        kinds=np.empty(num, np.int8),
        keys=np.empty((num, 2), np.uint64),
        times_ms=np.empty(num, np.int64),
        memory_offsets=np.empty(num, np.int64),
        offsets=offsets,
    )
    text, ends = laid_out(values)
    own, taught = config.variant.encode(), IMPORTED.encode() if config.teach_imported else b""
    read_all(_bytes(text), ends, _bytes(own), _bytes(taught), config.future_ms, read)
    return read


def _bytes(text: bytes) -> Bytes:
    return np.frombuffer(text, np.uint8)
