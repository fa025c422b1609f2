"""A learner and a server as they are run, two processes over one SQLite log that begins with a scene's history.

Knows nothing of what is measured on them: it starts them, says where they listen and what the learner wrote down, and ends them.
"""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.client import Client, Unreachable
from recsys.loop import Scene, write_history
from recsys.processes import METRICS
from streaming.address import ITEMS_SUFFIX, open_log

START_S = 300.0


@dataclass(frozen=True)
class Pair:
    """Where the server listens, and the state directory that both use."""

    address: str
    state_dir: Path

    def learned(self) -> list[dict[str, Any]]:
        """What the learner said of each version, the first one's warm start included."""
        return [json.loads(line) for line in (self.state_dir / "online" / METRICS).read_text().splitlines()]


@contextmanager
def running(scene: Scene, out: Path, seed: int, settings: Sequence[str]) -> Iterator[Pair]:
    """Both, once the server answers with a version of each variant; ended at the end. TimeoutError when they do not come up."""
    assert scene.history is not None
    url, port = f"sqlite:///{(out / 'events.db').resolve()}", _free_port()
    write_history(scene.history, scene.world.catalog(), open_log(url), open_log(url, ITEMS_SUFFIX))
    pair = Pair(f"127.0.0.1:{port}", out / "state")
    shared = ["--log", url, "--state", str(pair.state_dir), "--seed", str(seed)]
    for setting in settings:
        shared += ["--set", setting]
    with _process("learn", shared):
        _wait_for((pair.state_dir / "online" / "CURRENT.json").exists, "the first version")
        with _process("serve", [*shared, "--address", pair.address]), Client(pair.address) as client:
            _wait_for(lambda: _answers(client), "the server")
            yield pair


@contextmanager
def _process(command: str, arguments: Sequence[str]) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "recsys", command, *arguments])
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def _answers(client: Client) -> bool:
    try:
        return all(variant.policy_version for variant in client.status().variants)
    except Unreachable:
        return False


def _wait_for(happened: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + START_S
    while not happened():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what} did not come within {START_S:.0f} s")
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
