"""A learner's whole state in one directory with one rename: it is there with every file intact, or it is not there.

Knows nothing of what a learner does with it. The offsets are part of it, so a restart goes on exactly where it was.
"""

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from safetensors.numpy import load_file

from models import artifact as artifacts
from models.artifact import Artifact
from recsys.durable import keep_newest, new_directory, numbered, sync

LOG = logging.getLogger(__name__)

CHECKPOINTS_KEPT = 3
BUSY_S = 1.0
"""A copy that saves for a learner holds its lock too, and is gone a moment after it."""
FILES = ("state.json", "joiner.pb", "arrays.safetensors", "model/manifest.json")
"""What a manifest vouches for; the model's own manifest does so for its files."""

Arrays = Mapping[str, npt.NDArray[Any]]


class StateBusy(Exception):
    """Another process writes to this state directory."""


@dataclass(frozen=True)
class Checkpoint:
    """What is saved. `state` is JSON; `joiner` the joiner's snapshot; `arrays` optimizer and reservoir."""

    number: int
    state: Mapping[str, Any]
    joiner: bytes
    arrays: Arrays
    model: Artifact


class StateLock:
    """The one writer of a state directory: held while the process lives.

    A lock can be lost without its holder knowing: the file was deleted, the file system let go of it. So each holder has an epoch,
    one above the last one's, and confirms that it is still the last before each thing that it writes appears.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "LOCK"
        self._path.touch()
        self._file = self._path.open("r+b", buffering=0)
        deadline_s = time.monotonic() + BUSY_S
        while not self._is_taken():
            if time.monotonic() > deadline_s:
                self._file.close()
                raise StateBusy(f"{directory} is written by process {self._holder()[0]}; stop it first, or use another --state")
            time.sleep(0.01)
        try:
            self.holder = os.getpid(), self._holder()[1] + 1
        except ValueError:
            self._file.close()
            raise
        self._file.write(b"%10d %20d\n" % self.holder)  # of one length: no kill leaves a part of it

    def confirm(self) -> None:
        """StateBusy when another process may write to this directory by now."""
        is_there = self._path.exists() and os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        if not is_there or self._holder() != self.holder:
            raise StateBusy(f"{self._path.parent} was taken over by process {self._holder()[0]}; nothing of this one is written any more")

    def release(self) -> None:
        """Let others write."""
        self._file.close()

    def _is_taken(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _holder(self) -> tuple[int, int]:
        """Process and epoch of who holds it, or did last; zeros when nobody has."""
        said = self._path.read_bytes().split() if self._path.exists() else []
        if not said:
            return 0, 0
        try:
            process, epoch = map(int, said)
        except ValueError:
            raise ValueError(f"{self._path} holds {said}, and not two numbers; nobody writes to it, so it may be deleted") from None
        return process, epoch


def save(directory: Path, checkpoint: Checkpoint, confirm: Callable[[], None]) -> None:
    """Write `ckpt-<number>`. One of this number that is there was passed over by `restore`.

    `confirm` raises when this process may not write any more. OSError when the disk doesn't take it.
    """
    final = directory / f"ckpt-{checkpoint.number}"
    if final.exists():
        shutil.rmtree(final)
    with new_directory(final) as temporary:
        (temporary / "state.json").write_text(json.dumps(checkpoint.state, sort_keys=True))
        (temporary / "joiner.pb").write_bytes(checkpoint.joiner)
        artifacts.save_arrays(checkpoint.arrays, temporary / "arrays.safetensors")
        artifacts.write(checkpoint.model, temporary / "model")
        for path in (temporary / "model").iterdir():
            sync(path)
        digests = {name: artifacts.digest_of((temporary / name).read_bytes()) for name in FILES}
        (temporary / "MANIFEST.json").write_text(json.dumps({"files": digests}))
        confirm()


def drop_old(directory: Path, never: frozenset[int]) -> None:
    """Delete all but the newest three and those in `never`."""
    keep_newest(directory, "ckpt-", CHECKPOINTS_KEPT, never=never)


def restore(directory: Path) -> Checkpoint | None:
    """The newest checkpoint whose every file verifies; None when there is none."""
    for number, path in reversed(numbered(directory, "ckpt-")):
        try:
            return _load(number, path)
        except (artifacts.BadArtifact, OSError, ValueError) as error:
            LOG.warning("%s is passed over: %s", path, error)  # torn or flipped: the one before it is whole
    return None


def load(directory: Path, number: int) -> Checkpoint:
    """The checkpoint of one version. ValueError when it is not there or not whole."""
    path = directory / f"ckpt-{number}"
    try:
        return _load(number, path)
    except (artifacts.BadArtifact, OSError, ValueError) as error:
        kept = ", ".join(str(found) for found, _ in numbered(directory, "ckpt-")) or "none"
        raise ValueError(f"there is no checkpoint of version {number} to go back to ({error}); kept are {kept}") from None


def newest_state(directory: Path) -> Mapping[str, Any]:
    """What the newest checkpoint says of the learner; empty where there is none, or it is damaged."""
    for _, path in numbered(directory, "ckpt-")[-1:]:
        with suppress(OSError, ValueError):
            said: Mapping[str, Any] = json.loads((path / "state.json").read_text())
            return said
    return {}


def _load(number: int, path: Path) -> Checkpoint:
    manifest = json.loads((path / "MANIFEST.json").read_text())
    try:
        digests = {name: manifest["files"][name] for name in FILES}
    except (KeyError, TypeError) as error:
        raise artifacts.BadArtifact(f"the manifest does not name all files: {error!r}") from None
    for name, digest in digests.items():
        if artifacts.digest_of((path / name).read_bytes()) != digest:
            raise artifacts.BadArtifact(f"{name} is not what was written")
    return Checkpoint(
        number=number,
        state=json.loads((path / "state.json").read_text()),
        joiner=(path / "joiner.pb").read_bytes(),
        arrays=load_file(path / "arrays.safetensors"),
        model=artifacts.read(path / "model"),
    )
