"""What must come out of the whole loop: it learns, from its own decisions only, the same each time, and loses nothing."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from models import artifact as artifacts
from models.generate import novelty
from models.objective import shown_logprobs
from models.scoring import Scored, inner_contents
from recsys import publisher
from recsys.catalogue import Vocabulary
from recsys.config import with_settings
from recsys.experiment import assign
from recsys.features import BatchMaker, Lesson, Shelf
from recsys.loop import Loop
from recsys.memory import Memory
from recsys.options import fresh_directory
from recsys.presets import tiny
from streaming.events import Decision, Event, Feedback, Interaction, Item, decode, encode
from streaming.log import Entry, LogRecord, MemoryLog, partition_of
from streaming.proto.recommender_pb2 import RecommendRequest, RecommendResponse
from tests.runs import THREE_WAY, finished, learned, toy_loop

LONG_MINUTES, SHORT_MINUTES = 40, 6


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    return finished(tmp_path_factory.mktemp("long"), LONG_MINUTES, settings=[THREE_WAY])


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    return finished(tmp_path_factory.mktemp("short"), SHORT_MINUTES)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Loop, Iterator[int]]]:
    """A loop that stands at the end of its fourth minute and can go on."""
    loop = toy_loop(tmp_path, 12)
    minutes = loop.minutes()
    while next(minutes) < 4:
        pass
    yield loop, minutes
    loop.close()


# It learns ------------------------------------------------------------------------------------------------------------


def test_online_beats_random_by_a_wide_margin_and_offline_after_the_drift(long_run: Loop) -> None:
    """The drift is at half time; the last quarter is after it, and after what was learned of it."""
    since = LONG_MINUTES * 3 // 4
    rewards = {name: long_run.tally.variants[name].reward(since) or 0.0 for name in ("online", "offline", "random")}
    print(f"clicks per shown slot in minutes {since}..{LONG_MINUTES}: " + ", ".join(f"{k} {v:.3f}" for k, v in rewards.items()))
    assert rewards["online"] > 1.5 * rewards["random"]
    assert rewards["online"] > 1.2 * rewards["offline"]


def test_books_balance_and_every_minute_was_published(long_run: Loop) -> None:
    books = long_run.books()
    assert books["balanced"]
    assert books["decisions"]["trained"] > 1000
    assert long_run.learner.policy_version >= LONG_MINUTES - 4
    assert long_run.learner.stats.num_refused == 0


def test_a_refused_minute_leaves_neither_weights_nor_counts(tmp_path: Path) -> None:
    refused = finished(tmp_path, SHORT_MINUTES, settings=["learner.trainer.guard.max_change=1e-9"])
    last = publisher.current(refused.learner.directory)
    assert last is not None
    versions = [artifacts.read(last.directory.parent / str(last.policy_version - back)) for back in (4, 0)]
    assert refused.learner.stats.num_refused == refused.learner.stats.num_updates > 2
    first, final = ({id(rows) for rows in version.decoder.row_parameters()} for version in versions)  # these grow with the catalogue
    before, after = (list(version.decoder.parameters()) for version in versions)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True) if id(old) not in first and id(new) not in final)
    assert len(versions[1].followed.key_P) == 0
    assert {reason for _, reason in refused.learner.stats.refusals} == {"change_too_large"}
    books = refused.books()
    assert books["balanced"]
    assert books["decisions"]["trained"] == 0
    assert books["decisions"]["refused"] == books["refused"]["change_too_large"] > 0


def test_freshness_is_what_the_windows_say(long_run: Loop) -> None:
    """W + L + D is waited for in any case, then at most a minute and a tick more."""
    ages_s = [age for ages in long_run.tally.freshness_s.values() for age in ages]
    join = long_run.config.join
    waited_s = (join.window_ms + join.lateness_ms + join.disorder_ms) / 1000
    assert min(ages_s) > waited_s - join.window_ms / 1000  # a click can be appended a whole window after its decision
    assert max(ages_s) < waited_s + join.bucket_ms / 1000 + 2


def test_one_seed_gives_equal_weights_and_another_seed_does_not(short_run: Loop, tmp_path: Path) -> None:
    again = finished(tmp_path / "again", SHORT_MINUTES)
    other = finished(tmp_path / "other", SHORT_MINUTES, seed=1)
    digest = short_run.learner.weights_digest()
    assert digest == again.learner.weights_digest()
    assert digest != other.learner.weights_digest()
    assert short_run.tally.variants["online"].clicks == again.tally.variants["online"].clicks


# From its own decisions only ------------------------------------------------------------------------------------------


def test_a_learner_makes_the_same_weights_of_the_log(short_run: Loop, tmp_path: Path) -> None:
    """Polled at once instead of second by second; and the log alone is enough."""
    assert learned(short_run.config, short_run.stage.log, short_run.stage.items_log, tmp_path) == short_run.learner.weights_digest()


def test_what_is_not_its_own_leaves_the_weights_as_they_are(short_run: Loop, tmp_path: Path) -> None:
    """Forged and orphan feedback, other variants' feedback, and organic events of users without trainable decisions."""
    enriched = _with_noise(short_run.stage.log, _noise(short_run))
    assert sum(enriched.end_offsets()) > 1.3 * sum(short_run.stage.log.end_offsets())
    assert learned(short_run.config, enriched, short_run.stage.items_log, tmp_path) == short_run.learner.weights_digest()


def test_its_own_feedback_does_change_the_weights(short_run: Loop, tmp_path: Path) -> None:
    """The test above can fail: one true click more, and the weights are others."""
    enriched = _with_noise(short_run.stage.log, lambda record: _true_click(record, variant="online"))
    assert learned(short_run.config, enriched, short_run.stage.items_log, tmp_path) != short_run.learner.weights_digest()


# At once, and soon ----------------------------------------------------------------------------------------------------


def test_a_click_changes_the_next_slate_before_any_update(running: tuple[Loop, Iterator[int]]) -> None:
    """The same slate would be drawn with other probabilities now; and the next answer is there within 50 ms."""
    loop, _ = running
    waits_ms = []
    learning = [user for user in (f"clicker-{n}" for n in range(40)) if assign(loop.config.experiment, user) == "online"]
    for user_id in learning[:10]:
        before = loop.client.recommend(_request(user_id, "a"))
        version = before.policy_version
        loop.client.record(_shown_and_clicked(before, user_id, loop.clock.now_ms()))
        started = time.perf_counter()
        after = loop.client.recommend(_request(user_id, "b"))
        waits_ms.append(1000 * (time.perf_counter() - started))
        assert after.policy_version == version
        moved = np.abs(np.array(_logprobs_now(loop, before)) - np.array([slot.logprob for slot in before.slots]))
        assert moved.max() > 1e-4, "the click is not in the context of the next answer"
    print(f"acknowledged click → next slate: median {np.median(waits_ms):.1f} ms, worst {max(waits_ms):.1f} ms")
    assert np.median(waits_ms) < 50


def test_a_new_item_is_generated_within_two_publishes(running: tuple[Loop, Iterator[int]]) -> None:
    loop, minutes = running
    loop.client.upsert([Item(item_id="brand-new", title="a 99", attributes={"group": "a"})])
    before = loop.learner.policy_version
    assert not loop.client.recommend(_only("brand-new", "u1")).slots, "no version knows it yet"
    while loop.learner.policy_version < before + 2:
        next(minutes)
    slots = loop.client.recommend(_only("brand-new", "u2")).slots
    assert [slot.item_id for slot in slots] == ["brand-new"]
    assert slots[0].logprob == pytest.approx(0, abs=1e-5)


def test_a_retired_item_is_gone_at_once(running: tuple[Loop, Iterator[int]]) -> None:
    loop, _ = running
    assert loop.client.recommend(_only("item-07", "u1")).slots
    loop.client.upsert([Item(item_id="item-07", retired=True)])
    assert not loop.client.recommend(_only("item-07", "u2")).slots


def test_the_logged_number_can_be_computed_again(running: tuple[Loop, Iterator[int]]) -> None:
    """From the version and the Decision, memory as of its offset: within 1e-4."""
    loop, _ = running
    decisions = [d for d in _decisions(loop.stage.log) if d.variant == "online" and d.policy_version == loop.learner.policy_version]
    assert len(decisions) > 20
    for decision in decisions:
        assert np.allclose(_recomputed(loop, decision), decision.slot_logprobs, atol=1e-4)


def test_settings_are_stamped_on_decisions(short_run: Loop) -> None:
    digests = {decision.behavior_digest for decision in _decisions(short_run.stage.log)}
    assert digests == {short_run.engine.identity.behavior_digest}
    changed = with_settings(tiny(), ["drawing.floor=0.1"])
    assert changed != tiny()


# Helpers --------------------------------------------------------------------------------------------------------------


def _request(user_id: str, request_id: str) -> RecommendRequest:
    return RecommendRequest(user_id=user_id, slate_size=5, request_id=request_id)


def _only(item_id: str, user_id: str) -> RecommendRequest:
    return RecommendRequest(user_id=user_id, candidate_item_ids=[item_id])


def _shown_and_clicked(response: RecommendResponse, user_id: str, now_ms: int) -> list[Event]:
    shown = Event(event_id=f"{response.decision_id}-shown", user_id=user_id, event_time_ms=now_ms)
    shown.exposure.decision_token = response.decision_token
    shown.exposure.slots.extend(range(len(response.slots)))
    clicked = Event(event_id=f"{response.decision_id}-clicked", user_id=user_id, event_time_ms=now_ms)
    clicked.feedback.CopyFrom(Feedback(decision_token=response.decision_token, slot=0, kind="click", value=1))
    return [shown, clicked]


def _decisions(log: MemoryLog) -> list[Decision]:
    records = [decode(record.value) for partition in range(log.num_partitions) for record in log.read(partition, 0, 10**9)]
    return [record.decision for record in records if record.WhichOneof("body") == "decision"]


def _recomputed(loop: Loop, decision: Decision, before_offset: int | None = None) -> list[float]:
    """log π of the Decision's slots from the newest version's own files and the log."""
    published = publisher.current(loop.learner.directory)
    assert published is not None
    artifact = publisher.load(published)
    memory = Memory(loop.config.memory, loop.stage.log.num_partitions)
    partition = partition_of(decision.user_id.encode(), loop.stage.log.num_partitions)
    for record in loop.stage.log.read(partition, 0, 10**9):
        memory.apply(partition, record.offset, decode(record.value))
    view = memory.view(decision.user_id, decision.memory_offset if before_offset is None else before_offset)
    size = len(decision.item_ids)
    lesson = Lesson(decision, view, tuple(decision.item_ids), (0.0,) * size, (True,) * size, tuple(decision.slot_logprobs), True)
    shelf = Shelf(Vocabulary(artifact.item_ids), np.concatenate([[False], ~artifact.retired_N]), artifact.trie)
    config = artifact.decoder.config
    batch = BatchMaker(loop.engine.catalogue, shelf, config.rows_read, config.features).batch([lesson], [shelf.vocabulary.num_rows])
    with torch.no_grad():
        num_rows, decoder = shelf.vocabulary.num_rows, artifact.decoder
        successors = artifact.followed.frozen(num_rows)
        contents = inner_contents(decoder, shelf.trie)
        scored = Scored(decoder, decoder.vectors(np.arange(num_rows)), shelf.trie, contents, novelty(decoder, num_rows), successors)
        states = artifact.decoder.states(scored.vectors, batch.context, torch.from_numpy(batch.slate_BS))
        return shown_logprobs(scored, batch, states, batch.shown_BS).tolist()


def _logprobs_now(loop: Loop, response: RecommendResponse) -> list[float]:
    """What the same slate would be drawn with now, after all that is in the log."""
    decision = next(d for d in _decisions(loop.stage.log) if d.decision_id == response.decision_id)
    return _recomputed(loop, decision, before_offset=10**12)


def _with_noise(log: MemoryLog, noise: Callable[[LogRecord], list[Event]]) -> MemoryLog:
    """The log with further records behind some of its own, memory offsets moved along with what they point at."""
    enriched = MemoryLog(log.num_partitions)
    for partition in range(log.num_partitions):
        moved: list[int] = []
        for record in log.read(partition, 0, 10**9):
            value = record.value
            said = decode(value)
            if said.WhichOneof("body") == "decision":
                offset = said.decision.memory_offset
                said.decision.memory_offset = moved[offset] if offset < len(moved) else enriched.end_offsets()[partition]
                value = encode(said.decision, said.append_time_ms)
            moved.append(enriched.end_offsets()[partition])
            enriched.append([Entry(record.key, value, partition)])
            for event in noise(record):
                enriched.append([Entry(event.user_id.encode(), encode(event, said.append_time_ms), partition)])
    return enriched


def _noise(loop: Loop) -> Callable[[LogRecord], list[Event]]:
    """For every Decision: a forged click, a click from elsewhere, an orphan, and a stranger's organic event."""

    def noise(record: LogRecord) -> list[Event]:
        said = decode(record.value)
        if said.WhichOneof("body") != "decision":
            return []
        decision = said.decision
        name, now_ms = decision.decision_id, decision.event_time_ms
        forged = Feedback(decision_token=decision.decision_token[:-1] + "x", slot=0, kind="click", value=1)
        stranger = Feedback(decision_token=decision.decision_token, slot=0, kind="click", value=1)
        orphan = Feedback(decision_token="0" * 32 + ".1.online.5.x.y", slot=0, kind="click", value=1)
        events = [
            Event(event_id=f"forged-{name}", user_id=decision.user_id, event_time_ms=now_ms, feedback=forged),
            Event(event_id=f"stranger-{name}", user_id="a stranger", event_time_ms=now_ms, feedback=stranger),
            Event(event_id=f"orphan-{name}", user_id=decision.user_id, event_time_ms=now_ms, feedback=orphan),
            Event(
                event_id=f"organic-{name}",
                user_id="nobody's user",
                event_time_ms=now_ms,
                interaction=Interaction(item_id="item-01", kind="click", value=1),
            ),
        ]
        return events + (_true_click(record, variant="offline") if decision.variant == "offline" else [])

    return noise


def _true_click(record: LogRecord, variant: str) -> list[Event]:
    """A click, with exposure, on the last slot of a variant's Decision, as the user could have made it."""
    said = decode(record.value)
    decision = said.decision
    if said.WhichOneof("body") != "decision" or decision.variant != variant or not decision.item_ids:
        return []
    slot = len(decision.item_ids) - 1
    shown = Event(event_id=f"more-shown-{decision.decision_id}", user_id=decision.user_id, event_time_ms=decision.event_time_ms + 1)
    shown.exposure.decision_token = decision.decision_token
    shown.exposure.slots.append(slot)
    clicked = Event(event_id=f"more-clicked-{decision.decision_id}", user_id=decision.user_id, event_time_ms=decision.event_time_ms + 2)
    clicked.feedback.CopyFrom(Feedback(decision_token=decision.decision_token, slot=slot, kind="click", value=1))
    return [shown, clicked]


def test_a_run_removes_what_a_run_left_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    state_dir = fresh_directory(out)
    state_dir.mkdir()
    (out / "events.db").write_text("a log of ours")
    (out / "mine").write_text("theirs")
    assert fresh_directory(out) == state_dir
    assert sorted(path.name for path in out.iterdir()) == ["RUN", "mine"]
    for name in ("events.db", "state"):
        theirs = tmp_path / f"with {name}"
        (theirs / name).mkdir(parents=True)
        with pytest.raises(FileExistsError, match=f"holds {name}, and no RUN, which a run leaves: give another --out"):
            fresh_directory(theirs)
        assert (theirs / name).exists()
