"""`recsys serve` and `recsys learn` as processes on one log, killed and started again: nothing is lost, and nothing is counted twice.

The story of each log is told once, by the fixture `story`; each test reads it. A minute is 1 s here.
"""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from models import artifact as artifacts
from recsys import checkpoint as checkpoints
from recsys import publisher
from recsys.client import Client, Unreachable
from recsys.config import Config, behavior_digest, with_settings
from recsys.durable import numbered
from recsys.experiment import assign
from recsys.learner import Learner
from recsys.presets import tiny
from recsys.processes import METRICS, LearnerProcess, Place, token_key
from recsys.trainer import Seeds
from streaming.address import ITEMS_SUFFIX, open_log
from streaming.clock import ManualClock
from streaming.events import Event, Feedback, Item, Record, decode
from streaming.log import EventLog
from streaming.proto.recommender_pb2 import RecommendRequest, RecommendResponse
from tests.broker import Broker
from tests.runs import finished, started

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

    def logs(self) -> tuple[EventLog, EventLog]:
        return open_log(self.url), open_log(self.url, ITEMS_SUFFIX)

    def learner(self, state_dir: Path) -> Learner:
        """A learner in this process over the log as it is in the end, caught up."""
        config, (log, items_log) = self.config, self.logs()
        seeds = Seeds(behavior_digest(config), 0)
        learner = Learner(
            *(config.learner, config.model, config.join, config.memory, seeds),
            clock=ManualClock(0),
            log=log,
            items_log=items_log,
            state_dir=state_dir,
        )
        learner.catch_up()
        learner.close()
        log.close()
        items_log.close()
        return learner

    def records(self) -> Iterator[Record]:
        log, items_log = self.logs()
        for partition in range(log.num_partitions):
            offset = 0
            while found := log.read(partition, offset):
                yield from (decode(record.value) for record in found)
                offset = found[-1].offset + 1
        log.close()
        items_log.close()


# The story ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sqlite", "kafka"])
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Story:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        url = f"sqlite:///{directory / 'events.db'}"
    else:
        broker: Broker = request.getfixturevalue("broker")
        url = f"kafka://{broker.bootstrap}/processes-{uuid.uuid4().hex}"
    told = Story(url, directory / "state")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    with contextlib.ExitStack() as running:
        _tell(told, Stand(told, address, running))
    return told


class Stand:
    """Starts and ends the processes of a story, and drives traffic while it waits for something."""

    def __init__(self, told: Story, address: str, running: contextlib.ExitStack) -> None:
        self.told, self.address, self._running = told, address, running
        self._unsent: list[Event] = []

    def start(self, command: str, *options: str) -> subprocess.Popen[str]:
        shared = ["--log", self.told.url, "--state", str(self.told.state), "--preset", "tiny"]
        process = started(command, *shared, *options, *(part for setting in SETTINGS for part in ("--set", setting)))
        self._running.callback(_end, process)
        return process

    def serve(self) -> subprocess.Popen[str]:
        return self.start("serve", "--address", self.address)

    def until(self, happened: Callable[[], bool], what: str, *, traffic: bool = True) -> None:
        deadline_s = time.monotonic() + START_S
        while not happened():
            assert time.monotonic() < deadline_s, f"{what} did not come within {START_S:.0f} s"
            if traffic:
                self.turn()
            self.look()
            time.sleep(0.03)

    def turn(self) -> None:
        """One user asks, sees and maybe clicks; what a server did not acknowledge is sent to it again."""
        number = len(self.told.answers)
        request_id = f"request-{number}"
        user_id = _user(request_id)
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

    def look(self) -> None:
        """Note what is published; whatever is, a learner can go on from."""
        for variant in ("online", "offline"):
            published = publisher.current(self.told.state / variant)
            if published is not None:
                self.told.digests.setdefault((variant, published.policy_version), set()).add(published.digest)
        assert self.version() <= max((number for number, _ in numbered(self.told.state / "online" / "checkpoints", "ckpt-")), default=0)


def _tell(told: Story, stand: Stand) -> None:
    server, learner = stand.serve(), stand.start("learn")
    stand.until(stand.answers, "the server", traffic=False)
    stand.client.upsert([_item(number) for number in range(40)])
    stand.until(lambda: stand.version() >= 3, "the third version")

    learner.kill()
    learner.wait()
    killed_at = stand.version()
    stand.client.upsert([_item(40), _item(41), Item(item_id="item-0", retired=True)])
    learner = stand.start("learn")
    stand.until(lambda: stand.version() > killed_at, "a version of the learner's second life")
    stand.until(lambda: stand.version("offline") >= 2, "the frozen variant with the new items")

    before = dict(list(told.answers.items())[-5:])
    server.kill()
    server.wait()
    server, second = stand.serve(), stand.start("learn")
    stand.until(lambda: stand.answers() and second.poll() is not None, "the server's second life", traffic=False)
    told.refused, told.holder = (second.returncode, *second.communicate()), learner.pid
    told.repeated = [(answer, stand.ask(_user(request_id), request_id)) for request_id, answer in before.items()]
    killed_at = stand.version()
    stand.until(lambda: stand.version() >= killed_at + 2, "versions that learned from the server's second life")

    quiet_s = time.monotonic() + 2 * BUCKET_S + 1.5  # until all has closed
    stand.until(lambda: time.monotonic() > quiet_s, "the end", traffic=False)
    for name, process in (("serve", server), ("learn", learner)):
        began_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=STOP_S)
        told.ends[name] = process.returncode, time.monotonic() - began_s, errors


def _user(request_id: str) -> str:
    return USERS[int(request_id.removeprefix("request-")) * 7 % len(USERS)]


def _item(number: int) -> Item:
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


def test_servers_that_start_at_once_sign_with_one_key(tmp_path: Path) -> None:
    """Else each refuses what users do with the slates of the other."""
    for attempt in range(5):
        state = tmp_path / str(attempt)
        with ThreadPoolExecutor(8) as servers:
            keys = set(servers.map(token_key, [state] * 8))
        assert len(keys) == 1
        assert [path.name for path in state.iterdir()] == ["token.key"]
        assert (state / "token.key").stat().st_mode & 0o777 == 0o600


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


# What it must show ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Learner:
    """One that was never interrupted."""
    return story.learner(tmp_path_factory.mktemp("reference"))


def test_killed_processes_end_where_an_uninterrupted_learner_does(story: Story, reference: Learner) -> None:
    saved = checkpoints.restore(story.state / "online" / "checkpoints")
    assert saved is not None
    assert saved.number == reference.policy_version
    assert artifacts.weights_digest(saved.model.decoder) == reference.weights_digest()
    published = publisher.current(story.state / "online")
    assert published is not None
    assert published.policy_version == reference.policy_version
    assert artifacts.weights_digest(publisher.load(published).decoder) == reference.weights_digest()


def test_no_example_is_lost_or_trained_twice(story: Story, reference: Learner, tmp_path: Path) -> None:
    shutil.copytree(story.state, tmp_path / "state")
    books = story.learner(tmp_path / "state").joiner.books().as_dict()
    assert books == reference.joiner.books().as_dict()
    assert books["balanced"]
    own = [record.decision for record in story.records() if record.WhichOneof("body") == "decision" and record.decision.variant == "online"]
    from_policy = [decision for decision in own if decision.policy_version]
    assert len(from_policy) > 50
    assert books["decisions"]["trained"] == len(from_policy)
    assert books["decisions"]["open"] == 0
    clicks = [record.event for record in story.records() if record.event.HasField("feedback")]
    assert books["feedback"]["joined"] == sum(assign(story.config.experiment, click.user_id) == "online" for click in clicks)


def test_versions_go_up_and_none_is_used_twice(story: Story) -> None:
    lines = [json.loads(line) for line in (story.state / "online" / METRICS).read_text().splitlines()]
    versions = [line["policy_version"] for line in lines]
    assert versions == sorted(set(versions))
    assert all(line["books"]["balanced"] for line in lines)
    assert {len(line["lag"]) for line in lines} == {4}
    assert all(lag >= 0 for line in lines for lag in line["lag"])
    assert {seen: digests for seen, digests in story.digests.items() if len(digests) > 1} == {}
    assert len([variant for variant, _ in story.digests if variant == "online"]) >= 6
    answered = [answer.policy_version for answer in story.answers.values() if answer.variant == "online"]
    assert answered == sorted(answered), "the server went back to an older version"


def test_what_was_accepted_is_in_the_log_once(story: Story) -> None:
    logged = Counter(record.event.event_id for record in story.records() if record.WhichOneof("body") == "event")
    assert len(story.accepted) > 100
    assert story.accepted.keys() - logged.keys() == set()
    assert {event_id: count for event_id, count in logged.items() if count > 1} == {}
    decisions = Counter(record.decision.decision_id for record in story.records() if record.WhichOneof("body") == "decision")
    assert set(decisions) >= {answer.decision_id for answer in story.answers.values()}
    assert set(decisions.values()) == {1}


def test_a_request_that_was_answered_gets_the_same_answer_from_a_new_server(story: Story) -> None:
    assert len(story.repeated) == 5
    assert all(before == after for before, after in story.repeated)
    assert {answer.policy_version > 0 for answer, _ in story.repeated} == {True}


def test_sigterm_ends_both_cleanly_and_soon(story: Story) -> None:
    for name, (status, seconds, errors) in story.ends.items():
        print(f"{name}: status {status} after {seconds:.1f} s")
        assert status == 0, errors
        assert seconds < 5, name
        assert "Traceback" not in errors
    assert set(story.ends) == {"serve", "learn"}


def test_a_second_learner_is_refused_in_one_line_that_names_the_first(story: Story) -> None:
    status, output, errors = story.refused
    assert (status, output) == (2, "")
    assert len(errors.splitlines()) == 1
    assert f"process {story.holder}" in errors


def test_the_frozen_variant_follows_the_catalogue_and_learns_nothing(story: Story) -> None:
    numbers = sorted(version for variant, version in story.digests if variant == "offline")
    directory = story.state / "offline" / "versions"
    first, last = (artifacts.read(directory / str(number)) for number in (numbers[0], numbers[-1]))
    assert len(last.item_ids) == 42
    assert last.item_ids[: len(first.item_ids)] == first.item_ids
    assert last.retired_N[0]
    assert not first.retired_N[0]
    assert _moved(first, last) == set()
    online = publisher.current(story.state / "online")
    assert online is not None
    assert len(_moved(first, publisher.load(online))) > 5


def _moved(first: artifacts.Artifact, last: artifacts.Artifact) -> set[str]:
    """The parameters whose values for what the first version knew are others in the last."""
    by_row = {id(parameter) for parameter in first.decoder.row_parameters()}
    later = dict(last.decoder.named_parameters())
    moved = set()
    for name, parameter in first.decoder.named_parameters():
        known = slice(len(first.item_ids) + 1) if id(parameter) in by_row else ...
        if not later[name][known].equal(parameter[known]):
            moved.add(name)
    return moved


def test_a_learner_that_ends_while_it_saves_tells_of_that_version_too(tmp_path: Path) -> None:
    stage = finished(tmp_path / "recorded", 2).stage
    process = LearnerProcess(tiny(), Place(log=stage.log, items_log=stage.items_log, state_dir=tmp_path))
    process.step()
    process.close()  # the save began at the end of the step
    published = publisher.current(process.learner.directory)
    assert published is not None
    last = (process.learner.directory / METRICS).read_text().splitlines()[-1]
    assert json.loads(last)["policy_version"] == published.policy_version
