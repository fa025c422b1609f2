"""`recsys serve` and `recsys learn` as processes on one log, killed and started again: nothing is lost, and nothing is counted twice.

The story of each log is told once, by the fixture `story`; each test reads it. A minute is 1 s here.
"""

import contextlib
import json
import shutil
import signal
import socket
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from models import artifact as artifacts
from recsys import checkpoint as checkpoints
from recsys import publisher
from recsys.experiment import assign
from recsys.learner import Learner
from recsys.presets import tiny
from recsys.processes import LATE_LOOK_MS, METRICS, LearnerProcess, Place, token_key
from streaming.clock import ManualClock
from streaming.events import Decision, Item, decision_id_of, encode
from streaming.log import Entry, MemoryLog
from tests.broker import Broker
from tests.joins import T, decision, tick
from tests.runs import finished
from tests.story import BUCKET_S, STOP_S, Stand, Story, item_of, user_of


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


def _tell(told: Story, stand: Stand) -> None:
    server, learner = stand.serve(), stand.start("learn")
    stand.until(stand.answers, "the server", traffic=False)
    stand.client.upsert([item_of(number) for number in range(40)])
    stand.until(lambda: stand.version() >= 3 and stand.items("offline") == 40, "the third version, and the frozen variant")

    learner.kill()
    learner.wait()
    killed_at = stand.version()
    stand.client.upsert([item_of(40), item_of(41), Item(item_id="item-0", retired=True)])
    learner = stand.start("learn")
    stand.until(lambda: stand.version() > killed_at, "a version of the learner's second life")
    stand.until(lambda: stand.items("offline") == 42, "the frozen variant with the new items")

    stand.until(lambda: all(answer.policy_version > 0 for answer in told.last_answers().values()), "five slates of published versions")
    before = told.last_answers()
    server.kill()
    server.wait()
    server, second = stand.serve(), stand.start("learn")
    stand.until(lambda: stand.answers() and second.returncode is not None, "the server's second life", traffic=False)
    told.refused, told.holder = (second.returncode, *second.communicate()), learner.pid
    told.repeated = [(answer, stand.ask(user_of(request_id), request_id)) for request_id, answer in before.items()]
    killed_at = stand.version()
    stand.until(lambda: stand.version() >= killed_at + 2, "versions that learned from the server's second life")
    stand.until(lambda: told.policy_answers() > 100, "slates of the learned policy")

    quiet_s = time.monotonic() + 2 * BUCKET_S + 1.5  # until all has closed
    stand.until(lambda: time.monotonic() > quiet_s, "the end", traffic=False)
    for name, process in (("serve", server), ("learn", learner)):
        began_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=STOP_S)
        told.ends[name] = process.returncode, time.monotonic() - began_s, errors


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


def in_time(story: Story) -> tuple[set[str], int]:
    """What the log says must be learned: the own decisions of a policy that were shown in time, and how many own clicks came in time.

    Where processes wait for a processor some come late, for the window is .6 s.
    """
    join, decided = story.config.join, dict[str, Decision]()
    trained, joined, now_ms = set[str](), 0, Counter[int]()
    for partition, record in story.placed():
        event, said = record.event, record.event.exposure if record.event.HasField("exposure") else record.event.feedback
        if record.HasField("event") and assign(story.config.experiment, event.user_id) == join.variant:
            decision = decided[decision_id_of(said.decision_token)]
            ends_ms = decision.event_time_ms + join.window_ms
            if event.event_time_ms > ends_ms or now_ms[partition] >= ends_ms + join.lateness_ms + join.disorder_ms:
                continue
            if event.HasField("feedback"):
                joined += 1
            elif decision.policy_version:
                trained.add(decision.decision_id)
        elif record.HasField("decision"):
            decided[record.decision.decision_id] = record.decision
        now_ms[partition] = max(now_ms[partition], record.decision.event_time_ms, record.tick.event_time_ms)
    return trained, joined


def test_no_example_is_lost_or_trained_twice(story: Story, reference: Learner, tmp_path: Path) -> None:
    shutil.copytree(story.state, tmp_path / "state")
    books = story.learner(tmp_path / "state").joiner.books().as_dict()
    assert books == reference.joiner.books().as_dict()
    assert books["balanced"]
    trained, joined = in_time(story)
    assert len(trained) > 50
    assert books["decisions"]["trained"] == len(trained)
    assert books["decisions"]["open"] == 0
    assert books["feedback"]["joined"] == joined


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


def test_a_server_whose_clock_is_ahead_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One tick is enough: all decisions until the others' clocks are there come too late. Said once a minute, while they come."""
    clock, log, items_log = ManualClock(T), MemoryLog(1), MemoryLog(1)
    process = LearnerProcess(tiny(), Place(log=log, items_log=items_log, state_dir=tmp_path), clock)
    for minute in range(4):
        ahead_ms = 3_600_000 if minute == 1 else 0
        log.append([Entry(b"", encode(tick(clock.now_ms() + ahead_ms), clock.now_ms() + ahead_ms), 0)])
        if minute < 3:
            log.append([Entry(b"ann", encode(decision(f"{minute}", clock.now_ms(), variant="online"), clock.now_ms()))])
        clock.advance_to(clock.now_ms() + LATE_LOOK_MS)
        process.step()
    process.close()
    told = [record.getMessage() for record in caplog.records if record.name == "recsys.processes" and record.levelname == "WARNING"]
    begun = "decisions that came too late to be learned: 1; the time of the log is"
    assert told == [f"{begun} {ahead} s ahead of this clock: is a server's clock wrong?" for ahead in (3538, 3478)]


def test_servers_that_start_at_once_sign_with_one_key(tmp_path: Path) -> None:
    """Else each refuses what users do with the slates of the other."""
    for attempt in range(5):
        state = tmp_path / str(attempt)
        with ThreadPoolExecutor(8) as servers:
            keys = set(servers.map(token_key, [state] * 8))
        assert len(keys) == 1
        assert [path.name for path in state.iterdir()] == ["token.key"]
        assert (state / "token.key").stat().st_mode & 0o777 == 0o600
