"""Versions on disk: `<state>/<variant>/versions/<v>` and CURRENT.json, which says which one is served. The one importer of mlflow.

LAST_GOOD.json names the version that was served before it, and is what a rollback goes back to unless told otherwise.
Knows nothing of how a version was made. MLflow is told afterwards, never on the way: its import alone takes seconds.
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from models import artifact as artifacts
from models.artifact import Artifact
from recsys.durable import keep_newest, new_directory, numbered, replace_file, sweep
from streaming.fields import LATEST_MS

CURRENT, LAST_GOOD = "CURRENT.json", "LAST_GOOD.json"
POINTING = "POINTING"
VERSIONS_KEPT = 5
STEP, STEPS_KEPT = 10, 6
"""Beside the newest, every tenth version is kept for an hour of minutes: that far a rollback can go back."""


class Awaited(NamedTuple):
    """A rollback that the learner has not come to."""

    version: int
    offset: int
    """Where its Control stands."""


@dataclass(frozen=True)
class Published:
    """What CURRENT.json says."""

    policy_version: int
    directory: Path
    digest: str
    published_at_ms: int
    rolled_back_from: int = 0
    """No version up to this one is pointed to any more, but for this one of the pointer; 0 when nothing was rolled back."""
    awaited: tuple[Awaited, ...] = ()
    """Rollbacks, in order, that the learner has not followed: until it has, the pointer stays where operators put it."""


def publish(
    artifact: Artifact,
    variant_dir: Path,
    published_at_ms: int,
    confirm: Callable[[], None] = lambda: None,
    never: frozenset[int] = frozenset(),
) -> Published:
    """Write the version that `artifact.facts` names, then point CURRENT at it. FileExistsError: a version number is never reused.

    `confirm` raises when this process may not write any more. `never`: versions that are not deleted, beside those that are `kept`.
    """
    version = int(artifact.facts["policy_version"])
    directory = variant_dir / "versions" / str(version)
    newest = newest_version(variant_dir)
    if version <= newest:
        raise FileExistsError(f"version {version} of {variant_dir.name} is not above {newest}: a number is never used twice")
    with new_directory(directory) as temporary:
        digest = artifacts.write(artifact, temporary)
        confirm()
    with pointing(variant_dir):
        confirm()
        sweep(variant_dir)
        point_to(variant_dir, Published(version, directory, digest, published_at_ms))
        keep_newest(variant_dir / "versions", "", VERSIONS_KEPT, never=never | kept(variant_dir))
    return Published(version, directory, digest, published_at_ms)


@contextmanager
def pointing(variant_dir: Path) -> Iterator[None]:
    """Alone with the pointers of a variant and what they could point to: its learner publishes, and a rollback is another process."""
    with (variant_dir / POINTING).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def point_to(variant_dir: Path, published: Published) -> None:
    """Make this the version that is served, unless an operator's choice is held, and the one served until now the last good one;
    while `pointing`.
    """
    before = _trusted(variant_dir, CURRENT)
    if before is not None and before.awaited:
        return
    if before is not None and before.policy_version < published.policy_version:
        _write(variant_dir / LAST_GOOD, before)
    _write(variant_dir / CURRENT, published)


def roll_back(variant_dir: Path, awaited: Awaited, now_ms: int) -> None:
    """Serve an earlier version again, at once; while `pointing`. BadArtifact when it is not there whole.

    What a learner publishes before it has followed is written, but not served, and nothing it needs for that is deleted.
    """
    before = _trusted(variant_dir, CURRENT)
    _point_back(variant_dir, awaited.version, now_ms, (*(before.awaited if before else ()), awaited))


def follow(variant_dir: Path, asked: int, version: int, now_ms: int) -> None:
    """The learner has come to a rollback to `asked` and gone back to `version`: that is served, unless another rollback is still awaited;
    while `pointing`.
    """
    before = _trusted(variant_dir, CURRENT)
    versions = [one.version for one in before.awaited] if before else []
    first = versions.index(asked) if asked in versions else len(versions)
    left = (*before.awaited[:first], *before.awaited[first + 1 :]) if before else ()
    if before is not None and left:
        _write(variant_dir / CURRENT, replace(before, awaited=left))
    else:
        _point_back(variant_dir, version, now_ms, ())


def give_up(variant_dir: Path, begin_offset: int, end_offset: int) -> tuple[Awaited, ...]:
    """Wait no longer for rollbacks whose Controls stand there, which the learner will never read; while `pointing`. Which these were."""
    before = _trusted(variant_dir, CURRENT)
    lost = tuple(one for one in before.awaited if begin_offset <= one.offset < end_offset) if before else ()
    if before is not None and lost:
        _write(variant_dir / CURRENT, replace(before, awaited=tuple(one for one in before.awaited if one not in lost)))
    return lost


def _point_back(variant_dir: Path, version: int, now_ms: int, awaited: tuple[Awaited, ...]) -> None:
    directory = variant_dir / "versions" / str(version)
    artifacts.verified_manifest(directory)
    digest = artifacts.digest_of((directory / artifacts.MANIFEST).read_bytes())
    published = Published(version, directory, digest, now_ms, newest_version(variant_dir), awaited)
    _write(variant_dir / LAST_GOOD, published)
    _write(variant_dir / CURRENT, published)


def kept(variant_dir: Path) -> frozenset[int]:
    """The versions that are not deleted for their age: what is served or to be gone back to, the last good one, every tenth of an hour."""
    pointers = [found for name in (CURRENT, LAST_GOOD) if (found := _trusted(variant_dir, name)) is not None]
    newest = max((max(found.policy_version, found.rolled_back_from) for found in pointers), default=0)
    steps = range(newest // STEP * STEP, 0, -STEP)[:STEPS_KEPT]
    gone_back_to = [one.version for found in pointers for one in found.awaited]
    return frozenset([found.policy_version for found in pointers] + gone_back_to) | frozenset(steps)


def _write(path: Path, published: Published) -> None:
    said = {
        "policy_version": published.policy_version,
        "digest": published.digest,
        "published_at_ms": published.published_at_ms,
        "rolled_back_from": published.rolled_back_from,
        "awaited": published.awaited,
    }
    replace_file(path, json.dumps(said, sort_keys=True))


def current(variant_dir: Path) -> Published | None:
    """The version to serve; None when nothing was published. BadArtifact when the pointer is damaged."""
    return _read(variant_dir, CURRENT)


def last_good(variant_dir: Path) -> Published | None:
    """The version that was served before the current one; None before there were two, or where the pointer is damaged."""
    return _trusted(variant_dir, LAST_GOOD)


def _trusted(variant_dir: Path, name: str) -> Published | None:
    try:
        return _read(variant_dir, name)
    except artifacts.BadArtifact:
        return None


def _read(variant_dir: Path, name: str) -> Published | None:
    try:
        said = json.loads((variant_dir / name).read_text())
        version, directory = int(said["policy_version"]), variant_dir / "versions" / str(said["policy_version"])
        digest, published_at_ms = str(said["digest"]), int(said["published_at_ms"])
        rolled_back_from, awaited = int(said.get("rolled_back_from", 0)), tuple(Awaited(*map(int, one)) for one in said.get("awaited", ()))
        if not 0 <= published_at_ms <= LATEST_MS:
            raise ValueError(f"published_at_ms is {published_at_ms}; it must be 0..{LATEST_MS}")
        return Published(version, directory, digest, published_at_ms, rolled_back_from, awaited)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise artifacts.BadArtifact(f"{variant_dir.name}: {name} says nothing that can be read: {error!r}") from None


def is_current(variant_dir: Path, version: int) -> bool:
    """Whether CURRENT names this version or a later one, or was moved back from one; no where it can't be read: it is written anew."""
    published = _trusted(variant_dir, CURRENT)
    return published is not None and version <= max(published.policy_version, published.rolled_back_from)


def point_again(artifact: Artifact, variant_dir: Path, now_ms: int) -> None:
    """Point to the version that `artifact` was written as before a crash. FileExistsError when other weights are there under its number."""
    version = int(artifact.facts["policy_version"])
    directory = variant_dir / "versions" / str(version)
    if artifacts.weights_digest(artifacts.read(directory).decoder) != artifacts.weights_digest(artifact.decoder):
        raise FileExistsError(f"{directory} holds other weights than this log makes; no number is used twice: use another --state")
    if not is_current(variant_dir, version):
        digest = artifacts.digest_of((directory / artifacts.MANIFEST).read_bytes())
        with pointing(variant_dir):
            point_to(variant_dir, Published(version, directory, digest, now_ms))


def drop_damaged(variant_dir: Path, version: int) -> bool:
    """Delete a version if its files are not those that were written; whether it did. For who is about to make the very same again."""
    directory = variant_dir / "versions" / str(version)
    try:
        artifacts.verified_manifest(directory)
    except artifacts.BadArtifact:
        shutil.rmtree(directory)
        return True
    return False


def load(published: Published) -> Artifact:
    """Verify and load a published version. BadArtifact when its bytes are not those that were published."""
    text = published.directory / artifacts.MANIFEST
    found = artifacts.digest_of(text.read_bytes()) if text.exists() else "no manifest"
    if found != published.digest:
        raise artifacts.BadArtifact(f"version {published.policy_version}: manifest has digest {found[:12]}, not {published.digest[:12]}")
    return artifacts.read(published.directory)


def served(variant_dir: Path) -> Artifact:
    """What CURRENT points to, verified and loaded. BadArtifact where it points to nothing, or that is damaged."""
    published = current(variant_dir)
    if published is None:
        raise artifacts.BadArtifact(f"{variant_dir.name}: nothing is published")
    return load(published)


def newest_version(variant_dir: Path) -> int:
    """The highest version number used; 0 before the first."""
    versions = numbered(variant_dir / "versions", "")
    return versions[-1][0] if versions else 0


def record_run(store: Path, name: str, parameters: Mapping[str, Any], figures: Mapping[str, float], files: list[Path]) -> str:
    """Record a finished run in MLflow (a SQLite store in `store`): parameters, figures, files. Returns the run's id.

    Takes about 10 s the first time, for MLflow's import and migrations.
    """
    import mlflow  # noqa: PLC0415  seconds to import: only where a run is recorded

    store.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(f"sqlite:///{store / 'mlflow.db'}")
    if mlflow.get_experiment_by_name(name) is None:
        mlflow.create_experiment(name, artifact_location=(store / "mlflow-artifacts").resolve().as_uri())
    mlflow.set_experiment(name)
    with mlflow.start_run() as run:
        mlflow.log_params({key: str(value)[:500] for key, value in parameters.items()})
        mlflow.log_metrics(dict(figures))
        for path in files:
            mlflow.log_artifact(str(path))
    return str(run.info.run_id)


def promote(store: Path, model_name: str, published: Published, run_id: str) -> None:
    """Register the version in MLflow's registry and give it the alias `current` (stages are gone from MLflow)."""
    from mlflow import MlflowClient  # noqa: PLC0415  as above
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    client = MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}", registry_uri=f"sqlite:///{store / 'mlflow.db'}")
    try:
        client.get_registered_model(model_name)
    except MlflowException:
        client.create_registered_model(model_name)
    tags = {"policy_version": str(published.policy_version), "digest": published.digest}
    made = client.create_model_version(model_name, published.directory.resolve().as_uri(), run_id=run_id, tags=tags)
    client.set_registered_model_alias(model_name, "current", made.version)
