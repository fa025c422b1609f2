"""Records that wait on this machine while their log is away: one bounded file, synced before anybody is answered.

Knows nothing of what the bytes mean or of why a log is away. An entry has a number that is never used again, whatever
became of it; those before the number in the file's head have reached the log.
"""

import fcntl
import logging
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from recsys.durable import sync
from streaming.log import Entry, LogUnavailable

LOG = logging.getLogger(__name__)

HEAD = struct.Struct("<8sQI")
"""Magic, number of the first entry that waits, CRC-32 of both. 20 bytes, in one sector: written whole or not at all."""
FRAME = struct.Struct("<IQII")
"""CRC-32 of all that follows, number, bytes of the key, bytes of the value; then both."""
MAGIC = b"recsys-1"


class SpoolFull(LogUnavailable):
    """No more can be kept here until the log is back."""


class _Frame(NamedTuple):
    """Where an entry that waits lies."""

    start: int
    size: int


class Spool:
    """The file at `path`, made when absent, at most `max_bytes` long; one process at a time (ValueError for a second).

    What a crash left half-written at its end was acknowledged to nobody and is cut off, with a warning.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path, self.max_bytes = path, max_bytes
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._frames: deque[_Frame] = deque()
            self._first, self._end = 0, 0
            self._open()
        except BlockingIOError:
            os.close(self._file)
            raise ValueError(f"{path} is another server's; give each server of a state directory its own --set server.name") from None
        except ValueError:
            os.close(self._file)
            raise

    def __len__(self) -> int:
        """How many entries wait."""
        return len(self._frames)

    @property
    def next_number(self) -> int:
        """The number of the next entry, in the whole life of the file."""
        return self._first + len(self._frames)

    def append(self, entries: Sequence[Entry]) -> None:
        """Keep all entries or none; they survive a crash once this returns. SpoolFull, also when the disk won't take them."""
        frames = [_frame(number, entry) for number, entry in enumerate(entries, self.next_number)]
        written = b"".join(frames)
        if self._end + len(written) > self.max_bytes:
            raise SpoolFull(f"{self.path} holds {len(self)} records, {self._end} bytes; at most {self.max_bytes} bytes are kept")
        with self._whole():
            if os.pwrite(self._file, written, self._end) != len(written):
                raise OSError(f"{self.path}: the disk took a part only")
            os.fsync(self._file)
        for frame in frames:
            self._frames.append(_Frame(self._end, len(frame)))
            self._end += len(frame)

    def first(self, most: int) -> list[Entry]:
        """The oldest entries that wait, at most so many."""
        return [self._entry(frame) for frame in islice(self._frames, most)]

    def drop(self, count: int) -> None:
        """The oldest `count` have reached the log."""
        for _ in range(count):
            self._frames.popleft()
        self._first += count
        self._write_head()
        if not self._frames:
            self._cut(HEAD.size)

    def close(self) -> None:
        """Let another process have the file."""
        os.close(self._file)

    # The file --------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        size = os.fstat(self._file).st_size
        if size == 0:
            self._write_head()
            sync(self.path.parent)
        else:
            self._read_head()
        self._end = HEAD.size
        for number, frame in self._scan(size):
            if number >= self._first:
                self._frames.append(frame)
            self._end = frame.start + frame.size
        if HEAD.size < self._end < size:
            LOG.warning("%s: its last %d bytes are no whole record and are cut off", self.path, size - self._end)
        self._cut(self._end if self._frames else HEAD.size)

    def _scan(self, size: int) -> Iterator[tuple[int, _Frame]]:
        """Whole frames from the start, in order; ends at the first that is not."""
        start = HEAD.size
        while start + FRAME.size <= size:
            head = os.pread(self._file, FRAME.size, start)
            crc, number, key_bytes, value_bytes = FRAME.unpack(head)
            end = start + FRAME.size + key_bytes + value_bytes
            if end > size or zlib.crc32(head[4:] + os.pread(self._file, key_bytes + value_bytes, start + FRAME.size)) != crc:
                return
            yield number, _Frame(start, end - start)
            start = end

    def _entry(self, frame: _Frame) -> Entry:
        whole = os.pread(self._file, frame.size, frame.start)
        key_end = FRAME.size + FRAME.unpack_from(whole)[2]
        return Entry(whole[FRAME.size : key_end], whole[key_end:])

    def _read_head(self) -> None:
        head = os.pread(self._file, HEAD.size, 0)
        if len(head) < HEAD.size or head[:8] != MAGIC or zlib.crc32(head[:16]) != HEAD.unpack(head)[2]:
            raise ValueError(f"{self.path} is no file of waiting records, or is broken; move it away to go on without them")
        self._first = HEAD.unpack(head)[1]

    def _write_head(self) -> None:
        said = MAGIC + self._first.to_bytes(8, "little")
        os.pwrite(self._file, said + zlib.crc32(said).to_bytes(4, "little"), 0)
        os.fsync(self._file)

    def _cut(self, size: int) -> None:
        os.ftruncate(self._file, size)
        os.fsync(self._file)
        self._end = size

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """What fails halfway leaves nothing behind the last whole entry."""
        try:
            yield
        except OSError as error:
            with suppress(OSError):  # else the next one is written over it
                os.ftruncate(self._file, self._end)
            raise SpoolFull(f"{self.path}: {error}") from error


def _frame(number: int, entry: Entry) -> bytes:
    said = FRAME.pack(0, number, len(entry.key), len(entry.value))[4:] + entry.key + entry.value
    return zlib.crc32(said).to_bytes(4, "little") + said
