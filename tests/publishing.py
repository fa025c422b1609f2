"""Publishing killed at each of its operations on files, one after another. For a process of its own, because it forks."""

import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from recsys import publisher
from tests.artifacts import item_ids, publish, small_artifact

OPERATIONS = {"open", "os.mkdir", "os.rename", "shutil.rmtree", "os.remove", "os.rmdir"}


def killed_at(number: int, state_dir: Path) -> bool:
    """Publish version 6 in a fork that is killed before the operation of that number; whether there was one."""
    pid = os.fork()
    if pid == 0:
        seen = 0

        def hear(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            if event in OPERATIONS and str(arguments[0]).startswith(str(state_dir)):
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hear)
        publish(state_dir, item_ids(8), 6)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@dataclass(frozen=True)
class Left:
    """What a kill left, if there was one: the current version, the newest, and what is there after the next publish."""

    killed: bool
    current: int
    newest: int
    entries: list[str]


def killed_everywhere(directory: Path) -> list[Left]:
    """What is left by a kill at each operation; the last one was not killed."""
    whole = directory / "whole"
    for version in range(1, 6):
        publish(whole, item_ids(8), version)
    left, number, was_killed = [], 0, True
    while was_killed:
        number += 1
        state_dir = directory / str(number)
        shutil.copytree(whole, state_dir)
        was_killed = killed_at(number, state_dir)
        current = publisher.current(state_dir / "online")
        assert current is not None
        loaded = int(publisher.load(current).facts["policy_version"])
        newest = publisher.newest_version(state_dir / "online")
        publisher.publish(small_artifact(item_ids(8), newest + 1), state_dir / "online", 0)
        entries = sorted(path.name for path in (state_dir / "online").rglob("*") if path.is_dir() or path.name.startswith(".tmp"))
        left.append(Left(was_killed, loaded, newest, entries))
    return left
