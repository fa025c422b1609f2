"""Versions under a running server: swapped between two answers, refused when damaged, rolled back."""

import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from models.artifact import MANIFEST, Artifact
from models.decoder import Decoder
from models.trie import Trie
from recsys import publisher
from recsys.hot_swap import RETRY_REFUSED_MS
from streaming.proto.recommender_pb2 import Degraded, GetStatusRequest, RecommendResponse
from tests.artifacts import DECODER, NOW_MS, VARIANT, item_ids, publish, small_artifact
from tests.serving import bench, serving


def test_what_is_published_answers_from_the_start_and_after_each_step(tmp_path: Path) -> None:
    publish(tmp_path, item_ids(12), 1)
    with serving(tmp_path) as live:
        first = live.ask()
        assert (first.policy_version, first.trained_through_ms, first.degraded) == (1, 1000, Degraded.DEGRADED_NONE)
        publish(tmp_path, item_ids(12), 2)
        assert live.ask().policy_version == 1
        live.server.step()
        assert live.ask().policy_version == 2


def test_versions_swapped_under_load_never_mix(tmp_path: Path) -> None:
    """Version v knows the items 4v..4v+3 only, so a slate tells which weights and which vocabulary made it."""
    num_versions, asked = 6, count()
    publish(tmp_path, item_ids(4, first=4), 1)
    with serving(tmp_path, bench(num_items=4 * num_versions + 4)) as live:
        stop = threading.Event()

        def crowd() -> list[RecommendResponse]:
            answers = []
            while not stop.is_set():
                answers.append(live.ask(f"user{next(asked)}", slate_size=3))
            return answers

        with ThreadPoolExecutor(4) as pool:
            users = [pool.submit(crowd) for _ in range(4)]
            for version in range(2, num_versions + 1):
                stop.wait(0.1)
                publish(tmp_path, item_ids(4, first=4 * version), version)
                live.server.step()
            stop.wait(0.1)
            stop.set()
            answers = [answer for user in users for answer in user.result()]
        logged = {decision.decision_id: decision for decision in live.parts.decisions()}
    assert {answer.policy_version for answer in answers} == set(range(1, num_versions + 1))
    for answer in answers:
        version = answer.policy_version
        assert answer.trained_through_ms == 1000 * version
        assert len(answer.slots) == 3
        assert {slot.item_id for slot in answer.slots} <= set(item_ids(4, first=4 * version))
        assert logged[answer.decision_id].policy_version == version
        assert logged[answer.decision_id].decision_token == answer.decision_token
    assert len(logged) == len(answers)


def flip_byte(directory: Path, name: str = "weights.safetensors") -> None:
    data = bytearray((directory / name).read_bytes())
    data[-1] ^= 1
    (directory / name).write_bytes(data)


def other_index(directory: Path) -> None:
    shutil.copy(directory.parent / "1" / "items.safetensors", directory / "items.safetensors")


def other_version(directory: Path) -> None:
    """The whole of version 1 in the place of version 2: every digest in it is right."""
    shutil.rmtree(directory)
    shutil.copytree(directory.parent / "1", directory)


def truncate(directory: Path) -> None:
    (directory / "weights.safetensors").write_bytes((directory / "weights.safetensors").read_bytes()[:1000])


DAMAGES = {
    "a flipped byte": (flip_byte, "weights.safetensors has digest"),
    "a flipped byte in the vocabulary": (lambda directory: flip_byte(directory, "vocabulary.json"), "vocabulary.json has digest"),
    "a flipped byte in the manifest": (lambda directory: flip_byte(directory, MANIFEST), "manifest has digest"),
    "half written": (lambda directory: (directory / MANIFEST).unlink(), "no manifest"),
    "a file missing": (lambda directory: (directory / "items.safetensors").unlink(), "items.safetensors is missing"),
    "torn": (truncate, "weights.safetensors has digest"),
    "the index of another version": (other_index, "items.safetensors has digest"),
    "another version": (other_version, "manifest has digest"),
    "the directory missing": (shutil.rmtree, "no manifest"),
    "a pointer of zeros": (lambda directory: (directory.parents[1] / "CURRENT.json").write_bytes(bytes(40)), "CURRENT.json"),
    "half a pointer": (lambda directory: (directory.parents[1] / "CURRENT.json").write_text('{"policy_version": 2}'), "digest"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_version_is_refused_and_the_one_before_goes_on(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damage, reason = DAMAGES[name]
    publish(tmp_path, item_ids(12), 1)
    with serving(tmp_path) as live:
        damage(publish(tmp_path, item_ids(10), 2).directory)
        for _ in range(2):  # tried once, told of once
            live.server.step()
        (told,) = [record.getMessage() for record in caplog.records if record.name == "recsys.hot_swap"]
        assert re.search(rf"^{VARIANT}: a version is refused, version 1 serves on: .*{re.escape(reason)}", told)
        answer = live.ask()
        assert (answer.policy_version, answer.degraded) == (1, Degraded.DEGRADED_LAST_GOOD)
        assert reason in live.server.stats()["variants"][VARIANT]["refused"]
        publish(tmp_path, item_ids(12), 3)
        live.server.step()
        answer = live.ask()
        assert (answer.policy_version, answer.degraded) == (3, Degraded.DEGRADED_NONE)
        assert live.server.stats()["variants"][VARIANT]["refused"] == ""


def test_a_damaged_version_at_the_start_leaves_the_cold_start(tmp_path: Path) -> None:
    flip_byte(publish(tmp_path, item_ids(12), 1).directory)
    with serving(tmp_path) as live:
        answer = live.ask()
        assert (answer.policy_version, answer.degraded) == (0, Degraded.DEGRADED_NO_POLICY)
        assert live.stub.GetStatus(GetStatusRequest()).variants[0].policy_version == 0


def test_a_refused_version_is_tried_again_only_after_a_while(tmp_path: Path) -> None:
    published = publish(tmp_path, item_ids(12), 1)
    good = (published.directory / "weights.safetensors").read_bytes()
    flip_byte(published.directory)
    with serving(tmp_path) as live:
        (published.directory / "weights.safetensors").write_bytes(good)
        live.parts.clock.advance_to(NOW_MS + RETRY_REFUSED_MS - 1)
        live.server.step()
        assert live.ask().policy_version == 0
        live.parts.clock.advance_to(NOW_MS + RETRY_REFUSED_MS)
        live.server.step()
        assert live.ask().policy_version == 1


@pytest.mark.parametrize(
    ("tensor", "value", "reason"),
    [("kind.weight", float("nan"), "kind.weight holds what is not a number"), ("blocks.0.outward.weight", 3e38, "the golden request got")],
)
def test_weights_that_are_no_good_are_refused(tensor: str, value: float, reason: str, tmp_path: Path) -> None:
    publish(tmp_path, item_ids(12), 1)
    with serving(tmp_path) as live:
        bad = small_artifact(item_ids(12), 2)
        bad.decoder.state_dict()[tensor][-1] = value
        publisher.publish(bad, tmp_path / VARIANT, NOW_MS)
        live.server.step()
        assert (live.ask().policy_version, live.ask().degraded) == (1, Degraded.DEGRADED_LAST_GOOD)
        assert reason in live.server.stats()["variants"][VARIANT]["refused"]


def retired_but_in_the_tree() -> Artifact:
    good = small_artifact(item_ids(12), 2, retired=["item3", "item4"])
    return replace(good, trie=Trie.built(good.tokenizer.ids_NK, np.zeros(12, bool)))


def of_fewer_kinds() -> Artifact:
    """Trained where fewer kinds of events were told apart than this server does."""
    good = small_artifact(item_ids(12), 2)
    decoder = Decoder(DECODER, centroids=good.decoder.centroids, content_RC=good.decoder.content_RC, num_kinds=3)
    return replace(good, decoder=decoder.eval())


@pytest.mark.parametrize(
    ("made", "reason"), [(retired_but_in_the_tree, "not of its catalogue"), (of_fewer_kinds, "the golden requests failed: index")]
)
def test_versions_that_fail_golden_requests_are_refused(made: Callable[[], Artifact], reason: str, tmp_path: Path) -> None:
    publish(tmp_path, item_ids(12), 1)
    with serving(tmp_path) as live:
        publisher.publish(made(), tmp_path / VARIANT, NOW_MS)
        live.server.step()
        assert (live.ask().policy_version, live.ask().degraded) == (1, Degraded.DEGRADED_LAST_GOOD)
        assert reason in live.server.stats()["variants"][VARIANT]["refused"]


@pytest.mark.parametrize("num_items", [1, 5, 200])
def test_versions_small_and_large_pass_the_golden_requests(num_items: int, tmp_path: Path) -> None:
    retired = item_ids(num_items)[::2]
    publisher.publish(small_artifact(item_ids(num_items), 1, retired=retired), tmp_path / VARIANT, NOW_MS)
    with serving(tmp_path, bench(num_items=num_items)) as live:
        assert live.server.stats()["variants"][VARIANT]["refused"] == ""
        assert live.ask().policy_version == 1


def test_a_version_that_calls_itself_otherwise_is_refused(tmp_path: Path) -> None:
    published = publish(tmp_path, item_ids(12), 1)
    moved = tmp_path / VARIANT / "versions" / "2"
    shutil.copytree(published.directory, moved)
    publisher.point_to(tmp_path / VARIANT, publisher.Published(2, moved, published.digest, NOW_MS))
    with serving(tmp_path) as live:
        assert "version 2 calls itself 1" in live.server.stats()["variants"][VARIANT]["refused"]


def test_a_version_rolled_back_is_answered_by_the_one_before_and_marked(tmp_path: Path) -> None:
    first = publish(tmp_path, item_ids(12), 1)
    publish(tmp_path, item_ids(12), 2)
    with serving(tmp_path) as live:
        assert live.ask().policy_version == 2
        publisher.point_to(tmp_path / VARIANT, first)
        live.server.step()
        assert (live.ask().policy_version, live.ask().degraded) == (1, Degraded.DEGRADED_LAST_GOOD)
        publish(tmp_path, item_ids(12), 3)
        live.server.step()
        assert (live.ask().policy_version, live.ask().degraded) == (3, Degraded.DEGRADED_NONE)
