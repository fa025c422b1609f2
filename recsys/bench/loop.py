"""What the loop costs, measured on the real processes: a server and a learner beside each other, a client in front of them.

Knows nothing of their insides: it reads clocks, GetStatus and what the learner writes down. The windows are short here, so
that the learner has work every few seconds; what depends on their length is given without it.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recsys.bench.pair import running
from recsys.client import Client
from recsys.loop import Scene
from streaming.events import Event
from streaming.proto.recommender_pb2 import RecommendRequest

WINDOW_MS, LATENESS_MS, BUCKET_MS = 4_000, 1_000, 5_000
REQUESTS_PER_S = 30.0


def bench_loop(scene: Scene, out: Path, seed: int, seconds: float, settings: Sequence[str]) -> dict[str, Any]:
    """The keys of `recsys bench loop --json`. `rest_s` is the age of served weights beyond W + L and the minute: all else there is.

    Starts `recsys learn` and `recsys serve` in `out`; TimeoutError when they do not come up.
    """
    windows = {"join.window_ms": WINDOW_MS, "join.lateness_ms": LATENESS_MS, "join.bucket_ms": BUCKET_MS}
    every = [*settings, *(f"{name}={value}" for name, value in windows.items())]
    with running(scene, out, seed, every) as pair, Client(pair.address) as client:
        rest_s, load_s = _drive(client, scene, seconds)
    lines = pair.learned()
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


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if len(values) else None


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    p50, p99 = np.percentile(values, [50, 99]).tolist() if len(values) else (None, None)
    return {"p50": p50, "p99": p99}
