"""What happens to `recsys serve` and `recsys learn` as processes on one log: who starts and ends them, the traffic, and what was seen.

A minute is 1 s here. Knows nothing of what must be shown of it.
"""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from models.artifact import VOCABULARY
from recsys import publisher
from recsys.client import Client, Unreachable
from recsys.config import Config, with_settings
from recsys.durable import numbered
from recsys.learner import Learner
from recsys.presets import tiny
from streaming.address import ITEMS_SUFFIX, open_log
from streaming.events import Event, Feedback, Item, Record, decode
from streaming.log import EventLog
from streaming.proto.recommender_pb2 import RecommendRequest, RecommendResponse
from tests.running import Running, started
from tests.runs import caught_up

BUCKET_S = 1.0
SETTINGS = [
    "join.window_ms=600",
    "join.lateness_ms=200",
    "join.disorder_ms=100",
    f"join.bucket_ms={round(1000 * BUCKET_S)}",
    "server.tick_interval_ms=100",
    "server.grace_s=1",
]
USERS = [f"user-{number}" for number in range(30)]
START_S = 90.0
"""Processes start while others work, on few cores."""
STOP_S = 15.0


@dataclass
class Story:
    """What was done with the two processes, and what was seen of it."""

    url: str
    state: Path
    answers: dict[str, RecommendResponse] = field(default_factory=dict)
    """By request id, in order."""
    accepted: Counter[str] = field(default_factory=Counter)
    """How often each event id was acknowledged."""
    repeated: list[tuple[RecommendResponse, RecommendResponse]] = field(default_factory=list)
    """Answers to one request id before the server was killed, and after."""
    digests: dict[tuple[str, int], set[str]] = field(default_factory=dict)
    """What each version was seen to be."""
    refused: tuple[int, str, str] = (0, "", "")
    """Status, output and errors of a second learner, and the first one's process."""
    holder: int = 0
    ends: dict[str, tuple[int, float, str]] = field(default_factory=dict)
    """By process: exit status after SIGTERM, seconds that took, errors."""

    @property
    def config(self) -> Config:
        return with_settings(tiny(), SETTINGS)

    def policy_answers(self) -> int:
        """How many slates a learned policy made."""
        return sum(answer.variant == "online" and answer.policy_version > 0 for answer in self.answers.values())

    def last_answers(self) -> dict[str, RecommendResponse]:
        return dict(list(self.answers.items())[-5:])

    def logs(self) -> tuple[EventLog, EventLog]:
        return open_log(self.url), open_log(self.url, ITEMS_SUFFIX)

    def learner(self, state_dir: Path) -> Learner:
        """A learner in this process over the log as it is in the end, caught up."""
        log, items_log = self.logs()
        learner = caught_up(self.config, log, items_log, state_dir)
        log.close()
        items_log.close()
        return learner

    def records(self) -> Iterator[Record]:
        return (record for _, record in self.placed())

    def placed(self) -> Iterator[tuple[int, Record]]:
        """Partitions and records, partition after partition."""
        log, items_log = self.logs()
        for partition in range(log.num_partitions):
            offset = 0
            while found := log.read(partition, offset):
                yield from ((partition, decode(record.value)) for record in found)
                offset = found[-1].offset + 1
        log.close()
        items_log.close()


class Stand:
    """Starts and ends the processes of a story, and drives traffic while it waits for something."""

    def __init__(self, told: Story, address: str, running: contextlib.ExitStack) -> None:
        self.told, self.address, self._running = told, address, running
        self._unsent: list[Event] = []

    def start(self, command: str, *options: str) -> Running:
        shared = ["--log", self.told.url, "--state", str(self.told.state), "--preset", "tiny"]
        process = started(command, *shared, *options, *(part for setting in SETTINGS for part in ("--set", setting)))
        self._running.callback(_end, process)
        return process

    def serve(self) -> Running:
        return self.start("serve", "--address", self.address)

    def until(self, happened: Callable[[], bool], what: str, *, traffic: bool = True) -> None:
        deadline_s = time.monotonic() + START_S
        while not happened():
            assert time.monotonic() < deadline_s, f"{what} did not come within {START_S:.0f} s"
            if traffic:
                self.turn()
            self.look()
            time.sleep(0.03)
        self.look()

    def turn(self) -> None:
        """One user asks, sees and maybe clicks; what a server did not acknowledge is sent to it again."""
        number = len(self.told.answers)
        request_id = f"request-{number}"
        user_id = user_of(request_id)
        with contextlib.suppress(Unreachable):
            if not self._unsent:
                answer = self.ask(user_id, request_id)
                self.told.answers[request_id] = answer
                self._unsent = _reaction(answer, user_id, number)
            self.client.record(self._unsent)
            self.told.accepted.update(event.event_id for event in self._unsent)
            self._unsent = []

    def ask(self, user_id: str, request_id: str) -> RecommendResponse:
        return self.client.recommend(RecommendRequest(user_id=user_id, request_id=request_id))

    def answers(self) -> bool:
        """Whether the server is there; asked over a new connection, an old one waits longer each time before it tries again."""
        with contextlib.suppress(Unreachable), contextlib.ExitStack() as trial:
            self.client = trial.enter_context(Client(self.address))
            self.client.status()
            self._running.push(trial.pop_all())
            return True
        return False

    def version(self, variant: str = "online") -> int:
        published = publisher.current(self.told.state / variant)
        return published.policy_version if published else 0

    def items(self, variant: str) -> int:
        """How many the published version knows."""
        published = publisher.current(self.told.state / variant)
        return len(json.loads((published.directory / VOCABULARY).read_text())) if published else 0

    def look(self) -> None:
        """Note what is published; whatever is, a learner can go on from."""
        for variant in ("online", "offline"):
            published = publisher.current(self.told.state / variant)
            if published is not None:
                self.told.digests.setdefault((variant, published.policy_version), set()).add(published.digest)
        assert self.version() <= max((number for number, _ in numbered(self.told.state / "online" / "checkpoints", "ckpt-")), default=0)


def user_of(request_id: str) -> str:
    return USERS[int(request_id.removeprefix("request-")) * 7 % len(USERS)]


def item_of(number: int) -> Item:
    return Item(item_id=f"item-{number}", title=f"{'ab'[number % 2]} {number}", attributes={"group": "ab"[number % 2]})


def _reaction(answer: RecommendResponse, user_id: str, number: int) -> list[Event]:
    """All slots are shown; some are clicked, by what they are and by chance."""
    shown = Event(event_id=f"shown-{number}", user_id=user_id)
    shown.exposure.decision_token = answer.decision_token
    shown.exposure.slots.extend(range(len(answer.slots)))
    events = [shown] if answer.slots else []
    for slot, said in enumerate(answer.slots):
        if int(said.item_id.removeprefix("item-")) % 2 == len(user_id) % 2 and (number + slot) % 3:
            feedback = Feedback(decision_token=answer.decision_token, slot=slot, kind="click", value=1)
            events.append(Event(event_id=f"click-{number}-{slot}", user_id=user_id, feedback=feedback))
    return events


def _end(process: Running) -> None:
    process.kill()
    process.communicate()
