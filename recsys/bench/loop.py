"""What the loop costs, measured on the real processes: a server and a learner beside each other, a client in front of them.

Knows nothing of their insides: it reads clocks, GetStatus and what the learner writes down. The windows are short here, so
that the learner has work every few seconds; what depends on their length is given without it.
"""

import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from recsys.client import Client, Unreachable
from recsys.loop import Scene, write_history
from recsys.processes import METRICS
from streaming.address import ITEMS_SUFFIX, open_log
from streaming.events import Event
from streaming.proto.recommender_pb2 import RecommendRequest

LOG = logging.getLogger(__name__)

WINDOW_MS, LATENESS_MS, BUCKET_MS = 4_000, 1_000, 5_000
REQUESTS_PER_S = 30.0
START_S = 300.0


def bench_loop(scene: Scene, out: Path, seed: int, seconds: float, settings: Sequence[str]) -> dict[str, Any]:
    """The keys of `recsys bench loop --json`. `rest_s` is the age of served weights beyond W + L and the minute: all else there is.

    Starts `recsys learn` and `recsys serve` on one SQLite log in `out`; TimeoutError when they do not come up.
    """
    assert scene.history is not None
    url, port = f"sqlite:///{(out / 'events.db').resolve()}", _free_port()
    write_history(scene.history, scene.world.catalog(), open_log(url), open_log(url, ITEMS_SUFFIX))
    windows = {"join.window_ms": WINDOW_MS, "join.lateness_ms": LATENESS_MS, "join.bucket_ms": BUCKET_MS}
    shared = ["--log", url, "--state", str(out / "state"), "--seed", str(seed)]
    for setting in [*settings, *(f"{name}={value}" for name, value in windows.items())]:
        shared += ["--set", setting]
    with _process("learn", shared):
        _wait_for((out / "state" / "online" / "CURRENT.json").exists, "the first version")
        with _process("serve", [*shared, "--address", f"127.0.0.1:{port}"]), Client(f"127.0.0.1:{port}") as client:
            _wait_for(lambda: _answers(client), "the server")
            rest_s, load_s = _drive(client, scene, seconds)
    lines = [json.loads(line) for line in (out / "state" / "online" / METRICS).read_text().splitlines()]
    updates = [line for line in lines if line["update_s"] is not None]
    warm = lines[0]
    return {
        "warm_start_sequences_per_s": warm["warm_start_sequences"] / warm["warm_start_s"],
        "warm_start_s": warm["warm_start_s"],
        "recommend_ms": _quantiles(client.recommend_ms),
        "recommends": len(client.recommend_ms),
        "updates": len(updates),
        "update_s": _median([line["update_s"] for line in updates]),
        "publish_s": _median([line["save_s"] + line["publish_s"] for line in updates]),
        "load_s": _median(load_s),
        "rest_s": _quantiles(rest_s),
    }


def _drive(client: Client, scene: Scene, seconds: float) -> tuple[list[float], list[float]]:
    """Ask and answer at a steady rate; by version served: seconds since its last W + L ended, and since it was published."""
    rest_s: list[float] = []
    load_s: list[float] = []
    seen = 0
    end_s = time.monotonic() + seconds
    next_s = time.monotonic()
    while (now_s := time.monotonic()) < end_s:
        if now_s < next_s:
            time.sleep(next_s - now_s)
        next_s += 1 / REQUESTS_PER_S
        turn = scene.world.next_turn()
        if turn is None or turn.request is None:
            continue
        response = client.recommend(RecommendRequest(user_id=turn.request.user_id, context=turn.request.context, slate_size=10))
        client.record([_now(event) for event in scene.world.respond(response)])
        status = next(variant for variant in client.status().variants if variant.variant == "online")
        if status.policy_version > max(seen, 1):
            rest_s.append((status.loaded_at_ms - status.trained_through_ms - WINDOW_MS - LATENESS_MS) / 1000)
            load_s.append((status.loaded_at_ms - status.published_at_ms) / 1000)
            seen = status.policy_version
    return rest_s, load_s


def _now(event: Event) -> Event:
    """The event at the server's own time: a world's time means nothing on the wall clock."""
    event.event_time_ms = 0
    return event


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
        return any(variant.policy_version for variant in client.status().variants)
    except Unreachable:
        return False


def _wait_for(happened: Any, what: str) -> None:
    deadline_s = time.monotonic() + START_S
    while not happened():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what} did not come within {START_S:.0f} s")
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if len(values) else None


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    p50, p99 = np.percentile(values, [50, 99]).tolist() if len(values) else (None, None)
    return {"p50": p50, "p99": p99}
