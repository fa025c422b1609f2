"""Directories and files that are there whole or not at all, even after a crash. Knows nothing of what is in them.

Write into a temporary sibling, sync every file and the directory, rename, sync the parent: the order of RELIABILITY.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """A temporary directory to fill; on leaving without an error it becomes `final` (which must not exist) in one rename.

    Its parent has one writer: what an earlier life of that one left behind goes first.
    """
    temporary = final.parent / f".tmp-{final.name}-{os.getpid()}"
    sweep(final.parent)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in sorted(temporary.iterdir()):
            sync(path)
        sync(temporary)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after an error: a disk may be full of it
    sync(final.parent)


def replace_file(path: Path, text: str) -> None:
    """The file holds `text` after this, or what it held before; never a part."""
    temporary = path.parent / f".tmp-{path.name}-{os.getpid()}"
    temporary.write_text(text)
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Fsync a file or a directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def numbered(directory: Path, prefix: str) -> list[tuple[int, Path]]:
    """Entries named `<prefix><number>`, by number."""
    found = [(path.name.removeprefix(prefix), path) for path in directory.glob(f"{prefix}*")] if directory.is_dir() else []
    return sorted((int(number), path) for number, path in found if number.isdigit())


def keep_newest(directory: Path, prefix: str, num_kept: int, *, never: frozenset[int] = frozenset()) -> None:
    """Delete all numbered entries but the newest `num_kept` and those in `never`."""
    for number, path in numbered(directory, prefix)[:-num_kept]:
        if number not in never:
            shutil.rmtree(path)


def sweep(directory: Path) -> None:
    """Delete the temporaries that a crash left in `directory`, which has one writer."""
    for left in directory.glob(".tmp-*"):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()
