"""The embedded log: durable, in one SQLite file, for several threads and several processes of one machine.

Knows nothing of what the bytes mean. A commit is an fsync of the write-ahead log (0.3 ms on a common disk), so what
`append` returned survives a power cut. Network file systems can't hold it: SQLite's WAL needs shared memory.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from streaming.log import Entry, LogRecord, LogUnavailable, OffsetGone, Position, place

# WITHOUT ROWID: the table is its own index, so that a read is one descent and then neighbours.
SCHEMA = """
CREATE TABLE IF NOT EXISTS topics (
    topic_id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, num_partitions INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS records (
    topic_id INTEGER NOT NULL, partition INTEGER NOT NULL, "offset" INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (topic_id, partition, "offset")
) WITHOUT ROWID;
"""
READ = (
    'SELECT partition, "offset", key, value FROM records WHERE topic_id = ? AND partition = ? AND "offset" >= ? ORDER BY "offset" LIMIT ?'
)
INSERT = "INSERT INTO records VALUES (?, ?, ?, ?, ?)"
# min and max of a key's last column are one descent each; the newest record is never dropped, so max never goes back.
BEGIN_OFFSET = 'SELECT coalesce(min("offset"), 0) FROM records WHERE topic_id = ? AND partition = ?'
END_OFFSET = 'SELECT coalesce(max("offset") + 1, 0) FROM records WHERE topic_id = ? AND partition = ?'
DROP = 'DELETE FROM records WHERE topic_id = ? AND partition = ? AND "offset" < ?'


class SqliteLog:
    """One topic in the file at `path`, made with its folders when absent; a file may hold several topics.

    `timeout_s` is how long a call waits for another process's write before LogUnavailable. With `existing` nothing is made:
    FileNotFoundError when there is no such topic. ValueError when the topic exists with another number of partitions.
    """

    def __init__(
        self, path: str | Path, topic: str = "events", num_partitions: int = 4, *, timeout_s: float = 10.0, existing: bool = False
    ) -> None:
        if num_partitions < 1:
            raise ValueError(f"num_partitions is {num_partitions}; at least 1")
        self.num_partitions = num_partitions
        self.name = f"{path}, topic {topic}"
        self._path = Path(path)
        # One connection each for writing and reading: a reader of the last snapshot never waits for an fsync.
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()
        self._files: list[tuple[int, int] | None] = []
        if existing and not self._is_there(topic):
            raise FileNotFoundError(f"{self.name}: there is no such log")
        with contextlib.ExitStack() as undo, self._unavailable():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = undo.enter_context(contextlib.closing(self._connect(timeout_s)))
            self._keep_a_write_ahead_log(timeout_s)
            self._topic_id = self._open_topic(topic)
            self._files = self._files_at_path()  # both are there by now, for as long as somebody has them open
            self._reader = undo.enter_context(contextlib.closing(self._connect(timeout_s)))
            self._close = undo.pop_all().close

    def append(self, entries: Sequence[Entry]) -> list[Position]:
        """See EventLog. All entries or none of them are kept."""
        places = [place(entry, self.num_partitions) for entry in entries]
        if not entries:
            return []
        with self._transaction() as connection:
            ends = {partition: self._scalar(connection, END_OFFSET, partition) for partition in set(places)}
            rows, positions = [], []
            for entry, partition in zip(entries, places, strict=True):
                offset = ends[partition]
                ends[partition] = offset + 1
                rows.append((self._topic_id, partition, offset, entry.key, entry.value))
                positions.append(Position(partition, offset))
            connection.executemany(INSERT, rows)
        return positions

    def read(self, partition: int, offset: int, max_records: int = 10_000) -> list[LogRecord]:
        """See EventLog."""
        with self._unavailable(), self._read_lock:
            self._refuse_another_file()
            rows = self._reader.execute(READ, (self._topic_id, partition, offset, max_records)).fetchall()
        records = [LogRecord._make(row) for row in rows]
        # Offsets have no gaps here, so a first record other than the one asked for means that those before it were dropped.
        if records and records[0].offset != offset:
            raise OffsetGone(self.name, partition, offset, records[0].offset)
        return records

    def begin_offsets(self) -> list[int]:
        """See EventLog."""
        return self._offsets(BEGIN_OFFSET)

    def end_offsets(self) -> list[int]:
        """See EventLog."""
        return self._offsets(END_OFFSET)

    def drop_before(self, offsets: Sequence[int]) -> None:
        """Forget the records before these offsets, by partition; the newest record of each stays. The file's room is used again."""
        with self._transaction() as connection:
            for partition, offset in enumerate(offsets):
                newest = self._scalar(connection, END_OFFSET, partition) - 1
                connection.execute(DROP, (self._topic_id, partition, min(offset, newest)))

    def close(self) -> None:
        """See EventLog."""
        with self._write_lock, self._read_lock:
            self._close()

    def _connect(self, timeout_s: float) -> sqlite3.Connection:
        # Autocommit: transactions are begun by hand. The locks above make sharing between threads safe.
        connection = sqlite3.connect(self._path, timeout=timeout_s, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _is_there(self, topic: str) -> bool:
        if not self._path.exists():
            return False
        with self._unavailable(), contextlib.closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            has_topics = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'topics'").fetchone()
            return bool(has_topics and connection.execute("SELECT 1 FROM topics WHERE name = ?", (topic,)).fetchone())

    def _keep_a_write_ahead_log(self, timeout_s: float) -> None:
        # Processes that open a new file at once: SQLite tells all but one that it is locked, without waiting as it does for a write.
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._writer.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    def _files_at_path(self) -> list[tuple[int, int] | None]:
        """Which files are there: the log and what was written ahead of it, which is part of the log until it is copied there."""
        found: list[tuple[int, int] | None] = []
        for path in (self._path, f"{self._path}-wal"):
            try:
                status = os.stat(path)
                found.append((status.st_dev, status.st_ino))
            except FileNotFoundError:
                found.append(None)
        return found

    def _refuse_another_file(self) -> None:
        """OSError when the open files are not those at the path: what they are given would be gone with their last user."""
        if self._files and self._files_at_path() != self._files:
            raise OSError("the file was deleted, moved or replaced while in use: start again")

    def _open_topic(self, name: str) -> int:
        with self._transaction() as connection:
            for statement in SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute("INSERT OR IGNORE INTO topics (name, num_partitions) VALUES (?, ?)", (name, self.num_partitions))
            topic_id, stored = connection.execute("SELECT topic_id, num_partitions FROM topics WHERE name = ?", (name,)).fetchone()
        if stored != self.num_partitions:
            raise ValueError(f"{self._path}: topic {name!r} has {stored} partitions and was opened with {self.num_partitions}")
        return int(topic_id)

    def _offsets(self, query: str) -> list[int]:
        with self._unavailable(), self._read_lock:
            self._refuse_another_file()
            return [self._scalar(self._reader, query, partition) for partition in range(self.num_partitions)]

    def _scalar(self, connection: sqlite3.Connection, query: str, partition: int) -> int:
        return int(connection.execute(query, (self._topic_id, partition)).fetchone()[0])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The file's one write transaction: committed at the end, undone by any error."""
        with self._unavailable(), self._write_lock:
            # IMMEDIATE takes the write lock at once, so that the end offsets read inside can't be another writer's too.
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                self._refuse_another_file()
                yield self._writer
                self._writer.execute("COMMIT")
            finally:
                # After a failure; a full disk has undone it already.
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    @contextlib.contextmanager
    def _unavailable(self) -> Iterator[None]:
        """Locked for too long, disk full, read-only, unreadable, no such folder: LogUnavailable."""
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            raise LogUnavailable(f"{self._path}: {error}") from error
