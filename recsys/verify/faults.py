"""Ways to end a learner's life: at a named point, in the middle of a write, with a file that is damaged, on a full disk.

Knows nothing of what the files mean. The points are operations on files that Python announces by itself (PEP 578), so the
product holds no code for them.
"""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

POINTS = {
    "before save": r"os\.mkdir checkpoints/\.tmp-ckpt-[\d-]+",
    "within save": r"open checkpoints/\.tmp-ckpt-[\d-]+/joiner\.pb",
    "before the manifest of a checkpoint": r"open checkpoints/\.tmp-ckpt-[\d-]+/MANIFEST\.json",
    "before the rename of a checkpoint": r"os\.rename checkpoints/\.tmp-ckpt-[\d-]+",
    "after the rename of a checkpoint": r"open checkpoints",
    "before old checkpoints go": r"shutil\.rmtree checkpoints/ckpt-\d+",
    "between save and publish": r"os\.mkdir versions/\.tmp-[\d-]+",
    "within publish": r"open versions/\.tmp-[\d-]+/vocabulary\.json",
    "before the manifest of a version": r"open versions/\.tmp-[\d-]+/manifest\.json",
    "before the rename of a version": r"os\.rename versions/\.tmp-[\d-]+",
    "after the rename of a version": r"open versions",
    "before the pointer is written": r"open \.tmp-CURRENT\.json-\d+",
    "before the pointer is replaced": r"os\.rename \.tmp-CURRENT\.json-\d+",
    "after the pointer is replaced": r"open \.",
    "before old versions go": r"shutil\.rmtree versions/\d+",
}
"""Name → what Python announces just before, and which path below the variant's directory it is about."""
SAVING, PUBLISHING = POINTS["before save"], POINTS["between save and publish"]


def at_point(directory: Path, pattern: str, strike: Callable[[], None]) -> None:
    """Strike when this process first comes to that point of its work in `directory`."""
    prefix, wanted, struck = f"{directory.resolve()}{os.sep}", re.compile(pattern), False

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal struck
        if struck or event not in {"open", "os.mkdir", "os.rename", "shutil.rmtree"} or not isinstance(arguments[0], str | os.PathLike):
            return
        path = os.path.join(os.path.abspath(arguments[0]), "")
        if path.startswith(prefix) and wanted.fullmatch(f"{event} {path.removeprefix(prefix).rstrip(os.sep) or '.'}"):
            struck = True
            strike()

    sys.addaudithook(hear)


def die() -> None:
    """End this process and all that it forked, as SIGKILL does: nothing is cleaned up."""
    os.killpg(0, signal.SIGKILL)


def die_alone() -> None:
    """End this process, and nothing that forked it."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_writing(num_bytes: int) -> None:
    """End this process in the middle of a write: at the first file that would be longer than `num_bytes`."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def fail_writing(num_bytes: int) -> None:
    """Let every write fail that would make a file longer than `num_bytes`: where no small disk can be had, this is a full one."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def tear(path: Path, random: np.random.Generator) -> None:
    """Cut a file short."""
    os.truncate(path, int(random.integers(path.stat().st_size)))


def flip(path: Path, random: np.random.Generator) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
    path.write_bytes(data)


def any_file(directory: Path, random: np.random.Generator) -> Path:
    """One of the files below a directory that hold anything."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)
    return files[int(random.integers(len(files)))]


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[bool]:
    """Make `directory` a file system of that size while it lasts; False when this user may not: then it is a plain directory."""
    directory.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(directory)]
    is_made = shutil.which("mount") is not None and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    try:
        yield is_made
    finally:
        if is_made:
            subprocess.run(["umount", str(directory)], check=True)


@contextmanager
def filled(directory: Path, bytes_left: int) -> Iterator[None]:
    """A disk with no more than `bytes_left` bytes free, while it lasts."""
    free = os.statvfs(directory)
    ballast = directory / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - bytes_left))
    try:
        yield
    finally:
        ballast.unlink()
