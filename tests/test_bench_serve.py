"""The load of `bench serve` against a server of ours: what it counts is what happened."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from recsys.bench.pair import Pair
from recsys.bench.serve import Crowd, Watch, at_once, hold, steadily
from recsys.client import Client
from streaming.proto.recommender_pb2 import RecommendRequest, RecommendResponse
from tests.artifacts import item_ids, publish
from tests.serving import Live, bench, serving

NUM_ITEMS = 300


class Loaded:
    """A server with a version, a crowd in front of it and somebody who watches."""

    def __init__(self, live: Live, client: Client) -> None:
        self.live = live
        requests = [RecommendRequest(user_id=f"user{number}", slate_size=10) for number in range(100)]
        self.crowd = Crowd(client, [RecommendRequest(user_id="bad", slate_size=101), *requests], 4)
        self.watch = Watch(Pair(f"127.0.0.1:{live.server.port}", live.state_dir), client, seed=0, shown_share=0.5)


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Loaded]:
    publish(tmp_path, item_ids(NUM_ITEMS), 1)
    with serving(tmp_path, bench(num_items=NUM_ITEMS)) as live, Client(f"127.0.0.1:{live.server.port}") as client:
        yield Loaded(live, client)


def test_answers_swaps_and_events_are_what_the_server_has(load: Loaded) -> None:
    answers = hold(load.crowd, load.watch, at_once(0.3))
    publish(load.live.state_dir, item_ids(NUM_ITEMS), 2)
    load.live.server.step()
    answers += hold(load.crowd, load.watch, steadily(400, 0.3, seed=0))
    parts = load.live.parts
    decisions, events = parts.decisions(), parts.events()
    failed = [answer for answer in answers if answer.failure]
    assert len(answers) - len(failed) == len(decisions) > 50
    assert {(answer.user_id, answer.response, answer.failure[:27]) for answer in failed} == {("bad", None, "INVALID_ARGUMENT: slate_siz")}
    assert {decision.policy_version for decision in decisions} == {1, 2}
    assert (load.watch.num_mixed, load.watch.num_versions, len(load.watch.swaps)) == (0, 2, 1)
    shown = sum(event.WhichOneof("body") == "exposure" for event in events)
    assert 0 < len(events) - shown < shown < len(decisions)
    assert parts.engine.catalogue.row_of("brought 19") == NUM_ITEMS + 20


def test_requests_are_due_at_the_rate_asked_for() -> None:
    due_s = list(steadily(1000, 2, seed=0))
    assert 1800 < len(due_s) < 2200
    assert due_s == sorted(due_s)
    assert due_s[-1] - due_s[0] < 2


def test_slates_that_mix_versions_are_told(load: Loaded) -> None:
    good = load.live.ask(slate_size=10)
    stranger, fresher, shorter, twice = (RecommendResponse.FromString(good.SerializeToString()) for _ in range(4))
    stranger.slots[3].item_id = "brought 1"
    fresher.trained_through_ms += 1
    del shorter.slots[9]
    twice.slots[1].item_id = twice.slots[0].item_id
    version = load.watch.version(good)
    assert [version.may_have_made(one) for one in (good, stranger, fresher, shorter, twice)] == [True, False, False, False, False]
