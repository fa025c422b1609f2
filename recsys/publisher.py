"""Versions on disk: `<state>/<variant>/versions/<v>` and CURRENT.json, which says which one is served. The one importer of mlflow.

Knows nothing of how a version was made. MLflow is told afterwards, never on the way: its import alone takes seconds.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import artifact as artifacts
from models.artifact import Artifact
from recsys.durable import keep_newest, new_directory, numbered, replace_file, sweep

CURRENT = "CURRENT.json"
VERSIONS_KEPT = 5


@dataclass(frozen=True)
class Published:
    """What CURRENT.json says."""

    policy_version: int
    directory: Path
    digest: str
    published_at_ms: int


def publish(artifact: Artifact, variant_dir: Path, published_at_ms: int, confirm: Callable[[], None] = lambda: None) -> Published:
    """Write the version that `artifact.facts` names, then point CURRENT at it. FileExistsError: a version number is never reused.

    `confirm` raises when this process may not write any more.
    """
    version = int(artifact.facts["policy_version"])
    directory = variant_dir / "versions" / str(version)
    newest = newest_version(variant_dir)
    if version <= newest:
        raise FileExistsError(f"version {version} of {variant_dir.name} is not above {newest}: a number is never used twice")
    sweep(variant_dir)
    with new_directory(directory) as temporary:
        digest = artifacts.write(artifact, temporary)
        confirm()
    confirm()
    point_to(variant_dir, Published(version, directory, digest, published_at_ms))
    keep_newest(variant_dir / "versions", "", VERSIONS_KEPT, never=frozenset({version}))
    return Published(version, directory, digest, published_at_ms)


def point_to(variant_dir: Path, published: Published) -> None:
    """Make this the version that is served."""
    said = {
        "policy_version": published.policy_version,
        "digest": published.digest,
        "published_at_ms": published.published_at_ms,
    }
    replace_file(variant_dir / CURRENT, json.dumps(said, sort_keys=True))


def current(variant_dir: Path) -> Published | None:
    """The version to serve; None when nothing was published. BadArtifact when the pointer is damaged."""
    try:
        said = json.loads((variant_dir / CURRENT).read_text())
        version = int(said["policy_version"])
        return Published(version, variant_dir / "versions" / str(version), str(said["digest"]), int(said["published_at_ms"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise artifacts.BadArtifact(f"{variant_dir.name}: {CURRENT} says nothing that can be read: {error!r}") from None


def is_current(variant_dir: Path, version: int) -> bool:
    """Whether CURRENT names this version or a later one; no where it can't be read: its writer writes it anew."""
    try:
        published = current(variant_dir)
    except artifacts.BadArtifact:
        return False
    return published is not None and published.policy_version >= version


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
