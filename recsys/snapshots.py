"""What a server knows of its log, kept on disk once a minute, so that a restart reads a tail of the log and not the whole.

Knows nothing of requests. A snapshot is memory and ledger as of the offsets in it; one that is damaged, or of another configuration
or log, is passed over: then the one before, then the log from its beginning. It is written in a copy of the process.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load

from models import artifact as artifacts
from recsys.blobs import Arrays, below, under
from recsys.checkpoint import StateBusy, StateLock
from recsys.durable import keep_newest, new_directory, numbered
from recsys.engine import Engine, EngineConfig
from recsys.ledger import Ledger
from recsys.memory import Memory, MemoryConfig, refuse_another
from recsys.saver import Figures, Saver
from streaming.clock import Clock
from streaming.log import EventLog, LogUnavailable

LOG = logging.getLogger(__name__)

SCHEMA = 1
SNAPSHOTS_KEPT = 2
EVERY_MS = 60_000
ARRAYS, MANIFEST = "arrays.safetensors", "MANIFEST.json"


class Snapshots:
    """A Component. Servers that share a state directory share its snapshots too; the first one there writes them."""

    def __init__(self, directory: Path, engine: EngineConfig, memory: MemoryConfig, log: EventLog, clock: Clock) -> None:
        self._directory, self._log, self._clock = directory, log, clock
        self._engine_config, self._memory_config = engine, memory
        self._facts = {
            "schema": SCHEMA,
            "num_partitions": log.num_partitions,
            "memory": json.loads(json.dumps(asdict(memory))),
            "token_lifetime_ms": engine.token_lifetime_ms,
        }
        self._engine: Engine | None = None
        self._saver = Saver(beside=True)
        self._is_saving = False
        self._next_ms = 0
        try:
            self._lock: StateLock | None = StateLock(directory)
        except StateBusy:
            self._lock = None

    def newest(self) -> tuple[Memory, Ledger] | None:
        """What the newest snapshot that fits holds; None where there is none. A log that is away can't contradict it."""
        for _, path in reversed(numbered(self._directory, "snap-")):
            try:
                arrays = _verified(path, self._facts)
                remembered = below("memory", arrays)
                memory = Memory.of(self._memory_config, remembered)
                ledger = Ledger.of(self._engine_config.token_lifetime_ms, below("ledger", arrays))
                with suppress(LogUnavailable):
                    refuse_another(self._log, remembered, "it")
                return memory, ledger
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                LOG.warning("%s is passed over: %s", path, error)
        return None

    def follow(self, engine: Engine) -> None:
        """Keep what this engine knows, from a minute on."""
        self._engine, self._next_ms = engine, self._clock.now_ms() + EVERY_MS

    def step(self) -> None:
        """Begin a snapshot when a minute has passed and the one before is there."""
        if self._engine is None or self._lock is None:
            return
        self._note_saved()
        if not self._is_saving and self._clock.now_ms() >= self._next_ms:
            self._next_ms = self._clock.now_ms() + EVERY_MS
            with self._one_less():
                self._engine.with_known(lambda memory, ledger: self._saver.start(lambda: self._write(memory, ledger)))
                self._is_saving = True

    def close(self) -> None:
        """Let another server write them, when the one on its way is there."""
        self._note_saved(wait=True)
        if self._lock is not None:
            self._lock.release()

    def _note_saved(self, *, wait: bool = False) -> None:
        with self._one_less():
            self._is_saving = self._is_saving and self._saver.finished(wait=wait) is None

    @contextmanager
    def _one_less(self) -> Iterator[None]:
        """A snapshot that could not be kept is one less; the log is still there."""
        try:
            yield
        except OSError as error:
            self._is_saving = False
            LOG.warning("no snapshot could be kept: %s", error)

    def _write(self, memory: Memory, ledger: Ledger) -> Figures:
        started = time.perf_counter()
        numbers = [number for number, _ in numbered(self._directory, "snap-")]
        with new_directory(self._directory / f"snap-{max(numbers, default=0) + 1}") as temporary:
            artifacts.save_arrays(under("memory", memory.arrays()) | under("ledger", ledger.arrays()), temporary / ARRAYS)
            digest = artifacts.digest_of((temporary / ARRAYS).read_bytes())
            (temporary / MANIFEST).write_text(json.dumps({"digest": digest, "facts": self._facts}))
        keep_newest(self._directory, "snap-", SNAPSHOTS_KEPT)
        return {"seconds": time.perf_counter() - started}


def _verified(path: Path, facts: Mapping[str, Any]) -> Arrays:
    """The arrays of a snapshot. ValueError when they are not what was written, or of another configuration."""
    manifest, data = json.loads((path / MANIFEST).read_text()), (path / ARRAYS).read_bytes()
    if manifest["facts"] != facts:
        raise ValueError(f"it was made with {manifest['facts']}, not {facts}")
    if artifacts.digest_of(data) != manifest["digest"]:
        raise ValueError(f"{ARRAYS} is not what was written")
    arrays: Arrays = load(data)
    return arrays
