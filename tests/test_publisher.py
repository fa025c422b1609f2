"""Versions on disk: each number once, CURRENT always at a whole one, the newest kept."""

import json
from pathlib import Path

import pytest
from test_artifact import flip, random_artifact

from models.artifact import BadArtifact, weights_digest
from recsys.publisher import CURRENT, VERSIONS_KEPT, Published, current, load, newest_version, point_to, promote, publish, record_run
from tests.publishing import killed_everywhere
from tests.running import apart


def published(directory: Path, *versions: int) -> list[Published]:
    return [publish(random_artifact(version, version=version), directory, 1000 * version) for version in versions]


def kept(directory: Path) -> list[str]:
    return sorted((path.name for path in (directory / "versions").iterdir()), key=lambda name: (len(name), name))


def test_before_the_first_version_there_is_none(tmp_path: Path) -> None:
    assert current(tmp_path / "online") is None
    assert newest_version(tmp_path / "online") == 0


def test_what_is_published_is_current_and_loads(tmp_path: Path) -> None:
    first, second = published(tmp_path / "online", 1, 2)
    assert current(tmp_path / "online") == second
    assert (second.policy_version, second.published_at_ms) == (2, 2000)
    for version in (first, second):
        artifact = load(version)
        assert artifact.facts["policy_version"] == version.policy_version
        assert weights_digest(artifact.decoder) == weights_digest(random_artifact(version.policy_version).decoder)


def test_a_number_is_not_published_twice(tmp_path: Path) -> None:
    published(tmp_path / "online", 1)
    before = current(tmp_path / "online")
    with pytest.raises(FileExistsError, match="version 1 of online is not above 1: a number is never used twice"):
        published(tmp_path / "online", 1)
    assert current(tmp_path / "online") == before
    published(tmp_path / "offline", 1)


def test_a_number_is_not_published_again_after_its_directory_is_gone(tmp_path: Path) -> None:
    published(tmp_path / "online", *range(1, VERSIONS_KEPT + 2))
    assert "1" not in kept(tmp_path / "online")
    with pytest.raises(FileExistsError, match="a number is never used twice"):
        published(tmp_path / "online", 1)


def test_the_newest_versions_are_kept(tmp_path: Path) -> None:
    published(tmp_path / "online", *range(1, VERSIONS_KEPT + 4))
    assert kept(tmp_path / "online") == [str(version) for version in range(4, VERSIONS_KEPT + 4)]
    assert newest_version(tmp_path / "online") == VERSIONS_KEPT + 3


def test_after_a_rollback_the_older_version_is_served_until_the_next(tmp_path: Path) -> None:
    versions = published(tmp_path / "online", 1, 2, 3)
    point_to(tmp_path / "online", versions[0])
    assert current(tmp_path / "online") == versions[0]
    assert load(versions[0]).facts["policy_version"] == 1
    assert newest_version(tmp_path / "online") == 3
    (fourth,) = published(tmp_path / "online", 4)
    assert current(tmp_path / "online") == fourth


def test_a_crash_while_a_version_is_written_leaves_the_one_before(tmp_path: Path) -> None:
    (before,) = published(tmp_path / "online", 1)
    left = tmp_path / "online" / "versions" / ".tmp-2-99999"
    left.mkdir()
    (left / "weights.safetensors").write_bytes(b"half")
    assert current(tmp_path / "online") == before
    assert newest_version(tmp_path / "online") == 1
    published(tmp_path / "online", 2)
    assert kept(tmp_path / "online") == ["1", "2"]


def test_a_crash_between_a_version_and_current_leaves_the_one_before(tmp_path: Path) -> None:
    first, second = published(tmp_path / "online", 1, 2)
    point_to(tmp_path / "online", first)
    assert current(tmp_path / "online") == first
    assert newest_version(tmp_path / "online") == 2
    with pytest.raises(FileExistsError):
        published(tmp_path / "online", 2)
    point_to(tmp_path / "online", second)
    assert current(tmp_path / "online") == second


@pytest.mark.parametrize("name", ["manifest.json", "weights.safetensors", "items.safetensors", "vocabulary.json"])
def test_a_changed_byte_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    (version,) = published(tmp_path / "online", 1)
    flip(version.directory / name, (version.directory / name).stat().st_size // 2)
    with pytest.raises(BadArtifact, match=r"version 1: manifest has digest|1: \S+ has digest"):
        load(version)


def test_a_manifest_that_still_reads_but_is_another_is_refused(tmp_path: Path) -> None:
    (version,) = published(tmp_path / "online", 1)
    manifest = json.loads((version.directory / "manifest.json").read_text())
    manifest["facts"]["trained_through_ms"] += 1
    (version.directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadArtifact, match=rf"version 1: manifest has digest [0-9a-f]{{12}}, not {version.digest[:12]}"):
        load(version)


def test_a_version_that_is_gone_is_refused(tmp_path: Path) -> None:
    (version,) = published(tmp_path / "online", 1)
    (version.directory / "manifest.json").unlink()
    with pytest.raises(BadArtifact, match="version 1: manifest has digest no manifest"):
        load(version)


def test_current_is_one_small_json(tmp_path: Path) -> None:
    (version,) = published(tmp_path / "online", 1)
    said = json.loads((tmp_path / "online" / CURRENT).read_text())
    assert said == {"policy_version": 1, "digest": version.digest, "published_at_ms": 1000, "rolled_back_from": 0, "awaited": []}


@pytest.mark.parametrize("when", ["1e999", "-1", str(1 << 54), "NaN"])
def test_a_pointer_with_a_time_that_is_none_is_refused(tmp_path: Path, when: str) -> None:
    published(tmp_path / "online", 1)
    path = tmp_path / "online" / CURRENT
    path.write_text(path.read_text().replace("1000", when))
    with pytest.raises(BadArtifact, match=r"CURRENT\.json says nothing that can be read"):
        current(tmp_path / "online")


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")
def test_a_run_and_its_version_are_in_mlflow(tmp_path: Path) -> None:
    (version,) = published(tmp_path / "online", 1)
    (tmp_path / "report.html").write_text("<p>fine</p>")
    run_id = record_run(tmp_path / "store", "loop", {"preset": "tiny", "long": "x" * 900}, {"ctr": 0.25}, [tmp_path / "report.html"])
    promote(tmp_path / "store", "online", version, run_id)
    promote(tmp_path / "store", "online", version, run_id)

    from mlflow import MlflowClient  # noqa: PLC0415  seconds to import

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"preset": "tiny", "long": "x" * 500}
    assert run.data.metrics == {"ctr": 0.25}
    assert [file.path for file in client.list_artifacts(run_id)] == ["report.html"]
    registered = client.get_model_version_by_alias("online", "current")
    assert (int(registered.version), registered.run_id) == (2, run_id)
    assert registered.tags == {"policy_version": "1", "digest": version.digest}


def test_every_kill_of_a_publisher_leaves_a_version_that_loads(tmp_path: Path) -> None:
    *kills, last = apart(killed_everywhere, tmp_path)
    assert len(kills) > 10
    assert all(kill.killed for kill in kills)
    assert {(kill.current, kill.newest) for kill in kills} == {(5, 5), (5, 6), (6, 6)}
    assert (last.killed, last.current, last.newest) == (False, 6, 6)
    for kill in [*kills, last]:  # whatever was left, the next publish goes on and clears it away
        assert kill.entries == sorted(["versions", *(str(kill.newest + 1 - age) for age in range(VERSIONS_KEPT))])
