"""What the server stands: requests a second at saturation, then how fast it answers at a share of that while versions are swapped.

Knows nothing of the server's insides: it asks over gRPC from many threads, reads GetStatus, and holds every slate to the files of
the version it names. A learner runs beside in a process of its own and publishes every minute, with new items in each version.
"""

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from models.artifact import VOCABULARY, verified_manifest
from recsys.bench.pair import Pair, running
from recsys.client import Client, Unreachable
from recsys.loop import Scene
from streaming.events import Event, Exposure, Feedback, Item
from streaming.proto.recommender_pb2 import GetStatusResponse, RecommendRequest, RecommendResponse

SETTINGS = ("join.window_ms=4000", "join.lateness_ms=1000")
"""A short window, so that the learner has work from the first minute on."""
USERS_ASKED = 3_000
SLATE = 10
CLICK_SHARE = 0.1
ITEMS_A_MINUTE = 20
LOOK_S, NEAR_SWAP_S, MINUTE_S = 0.25, 1.0, 60.0


@dataclass(frozen=True, kw_only=True)
class ServeBench:
    """How hard and how long."""

    clients: int = 32
    """Threads that ask."""
    saturate_s: float = 240
    """The second half is counted: by then the learner beside learns as much a minute as is answered."""
    hold_s: float = 300
    share: float = 0.8
    """Of the requests a second at saturation, while held."""
    shown_share: float = 1.0
    """Of the slates are looked at by their user, who clicks one in ten."""


@dataclass(frozen=True)
class Answer:
    """What came of one request: when it was due, how long after that the answer was there, and the answer or why there is none."""

    user_id: str
    due_s: float
    ms: float
    response: RecommendResponse | None
    failure: str = ""


def bench_serve(scene: Scene, out: Path, seed: int, config: ServeBench, settings: Sequence[str]) -> dict[str, Any]:
    """The keys of `recsys bench serve --json`. TimeoutError when server and learner do not come up."""
    requests = _requests(scene)
    with running(scene, out, seed, [*settings, *SETTINGS]) as pair, Client(pair.address) as client:
        crowd, watch = Crowd(client, requests, config.clients), Watch(pair, client, seed, config.shown_share)
        counts_from_s = time.monotonic() + config.saturate_s / 2
        saturated = hold(crowd, watch, at_once(config.saturate_s))
        full_rps = sum(answer.due_s >= counts_from_s for answer in saturated) / (config.saturate_s / 2)
        watch.swaps.clear()
        held = hold(crowd, watch, steadily(config.share * full_rps, config.hold_s, seed))
        learned = pair.learned()
    near_swap = [answer for answer in held if any(abs(answer.due_s - swap.at_s) <= NEAR_SWAP_S for swap in watch.swaps)]
    failures = Counter(answer.failure for answer in [*saturated, *held] if answer.failure)
    return {
        "saturation_rps": full_rps,
        "rps": len(held) / config.hold_s,
        "requests": len(held),
        "ms": _quantiles(held),
        "near_swap_ms": _quantiles(near_swap),
        "failed": failures.total(),
        "failures": dict(failures),
        "mixed_versions": watch.num_mixed,
        "swaps": len(watch.swaps),
        "load_s": float(np.median([swap.load_s for swap in watch.swaps])) if watch.swaps else None,
        "versions": watch.num_versions,
        "items_added": watch.num_items,
        "update_s": [line["update_s"] for line in learned if line["update_s"] is not None],
        "clients": config.clients,
        "share": config.share,
    }


def _requests(scene: Scene) -> list[RecommendRequest]:
    found: list[RecommendRequest] = []
    while len(found) < USERS_ASKED and (turn := scene.world.next_turn()) is not None:
        if turn.request is not None:
            found.append(RecommendRequest(user_id=turn.request.user_id, context=turn.request.context, slate_size=SLATE))
    return found


def at_once(seconds: float) -> Iterator[float]:
    """A request is due as soon as somebody can ask it."""
    end_s = time.monotonic() + seconds
    while (now_s := time.monotonic()) < end_s:
        yield now_s


def steadily(rps: float, seconds: float, seed: int) -> Iterator[float]:
    """A request is due whether or not anybody is free to ask it: a Poisson process."""
    random = np.random.default_rng(seed)
    start_s = due_s = time.monotonic()
    while (due_s := due_s + random.exponential(1 / rps)) < start_s + seconds:
        yield due_s


def hold(crowd: "Crowd", watch: "Watch", due: Iterator[float]) -> list[Answer]:
    """All answers to requests that come when they are due, each looked at as it comes."""
    answers: list[Answer] = []
    with ThreadPoolExecutor(crowd.clients) as pool:
        asking = [pool.submit(crowd.ask, due) for _ in range(crowd.clients)]
        while not all(one.done() for one in asking):
            time.sleep(LOOK_S)
            answers += watch.look(crowd)
        for one in asking:
            one.result()
    return answers + watch.look(crowd)


class Crowd:
    """Threads that ask for one user after the other."""

    def __init__(self, client: Client, requests: Sequence[RecommendRequest], clients: int) -> None:
        self.clients, self.answers = clients, deque[Answer]()
        self._client, self._requests, self._lock = client, cycle(requests), threading.Lock()

    def ask(self, due: Iterator[float]) -> None:
        """What one of them does, until nothing is due any more."""
        while True:
            with self._lock:
                due_s, request = next(due, None), next(self._requests)
            if due_s is None:
                return
            time.sleep(max(0.0, due_s - time.monotonic()))
            response, failure = None, ""
            try:
                response = self._client.recommend(request)
            except Unreachable as error:
                failure = str(error)
            self.answers.append(Answer(request.user_id, due_s, 1000 * (time.monotonic() - due_s), response, failure))


@dataclass(frozen=True)
class Swap:
    """When a version began to answer, and how long after it was published."""

    at_s: float
    load_s: float


@dataclass
class Watch:
    """Checks each answer against its version, lets its user look and click, brings new items, and notes the swaps."""

    pair: Pair
    client: Client
    seed: int
    shown_share: float
    swaps: list[Swap] = field(default_factory=list)
    num_mixed: int = 0
    num_items: int = 0

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)
        self._serves = {one.variant: one.policy_version for one in self.client.status().variants}
        self._versions: dict[tuple[str, int], Version] = {}
        self._items_due_s = time.monotonic()

    @property
    def num_versions(self) -> int:
        """How many versions answered, of all variants."""
        return len(self._versions)

    def look(self, crowd: Crowd) -> list[Answer]:
        """Take the answers that have come."""
        taken = [crowd.answers.popleft() for _ in range(len(crowd.answers))]
        answered = [(answer.user_id, answer.response) for answer in taken if answer.response is not None]
        self.num_mixed += sum(not self.version(response).may_have_made(response) for _, response in answered)
        looking = [one for one in answered if self._random.random() < self.shown_share]
        events = [event for user_id, response in looking for event in self._events(user_id, response)]
        if events:
            self.client.record(events)
        self._bring_items()
        self._note_swaps(self.client.status())
        return taken

    def version(self, response: RecommendResponse) -> "Version":
        """What the version that a response names says of itself, read once."""
        name = response.variant, response.policy_version
        if name not in self._versions:
            self._versions[name] = Version.read(self.pair.state_dir / response.variant / "versions" / str(response.policy_version))
        return self._versions[name]

    def _events(self, user_id: str, response: RecommendResponse) -> list[Event]:
        token, name = response.decision_token, response.decision_id
        shown = Exposure(decision_token=token, slots=range(len(response.slots)))
        events = [Event(event_id=f"{name} shown", user_id=user_id, exposure=shown)]
        if response.slots and self._random.random() < CLICK_SHARE:
            slot = int(self._random.integers(len(response.slots)))
            clicked = Feedback(decision_token=token, slot=slot, kind="click", value=1)
            events.append(Event(event_id=f"{name} clicked", user_id=user_id, feedback=clicked))
        return events

    def _bring_items(self) -> None:
        if time.monotonic() < self._items_due_s:
            return
        self._items_due_s += MINUTE_S
        numbers = range(self.num_items, self.num_items + ITEMS_A_MINUTE)
        self.client.upsert([Item(item_id=f"brought {number}", title=f"Brought by number {number}") for number in numbers])
        self.num_items += ITEMS_A_MINUTE

    def _note_swaps(self, status: GetStatusResponse) -> None:
        since_boot_s = time.time() - time.monotonic()
        for one in status.variants:
            if one.policy_version != self._serves[one.variant]:
                self._serves[one.variant] = one.policy_version
                self.swaps.append(Swap(one.loaded_at_ms / 1000 - since_boot_s, (one.loaded_at_ms - one.published_at_ms) / 1000))


@dataclass(frozen=True)
class Version:
    """What a published version says of itself."""

    item_ids: frozenset[str]
    trained_through_ms: int

    @staticmethod
    def read(directory: Path) -> "Version":
        """From its files."""
        item_ids = json.loads((directory / VOCABULARY).read_text())
        return Version(frozenset(item_ids), int(verified_manifest(directory)["facts"]["trained_through_ms"]))

    def may_have_made(self, response: RecommendResponse) -> bool:
        """Whether a slate is whole, of this version's catalogue, each item once, and as fresh as the version."""
        slate = {slot.item_id for slot in response.slots}
        is_whole = len(response.slots) == len(slate) == SLATE
        return is_whole and slate <= self.item_ids and response.trained_through_ms == self.trained_through_ms


def _quantiles(answers: Sequence[Answer]) -> dict[str, float | None]:
    times_ms = [answer.ms for answer in answers if answer.response is not None]
    p50, p99 = np.percentile(times_ms, [50, 99]).tolist() if times_ms else (None, None)
    return {"p50": p50, "p99": p99}
