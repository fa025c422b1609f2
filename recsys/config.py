"""One configuration for every process: behaviour only, hashed and stamped on versions and Decisions.

Knows nothing of placement (addresses, paths, secrets): those come from flags and RECSYS_* variables and are never hashed.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

from recsys.engine import EngineConfig
from recsys.experiment import ExperimentConfig
from recsys.learner_config import LearnerConfig
from recsys.live_model import ModelConfig
from recsys.memory import MemoryConfig
from recsys.policy import DrawingConfig
from recsys.server import ServerConfig
from streaming.joiner import JoinConfig

Settled = TypeVar("Settled")


class BadSetting(ValueError):
    """A --set that names nothing, or a value that does not fit."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """All of the behaviour. `join.variant` is the variant that learns; the others of the experiment stay frozen."""

    model: ModelConfig = field(default_factory=ModelConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    join: JoinConfig = field(default_factory=lambda: JoinConfig(variant="online", teach_imported=True))
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    drawing: DrawingConfig = field(default_factory=DrawingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    server: ServerConfig = field(default_factory=ServerConfig)

    def __post_init__(self) -> None:
        needed_ms = self.join.open_ms + self.join.disorder_ms
        if self.engine.token_lifetime_ms < needed_ms:
            raise ValueError(f"engine.token_lifetime_ms is {self.engine.token_lifetime_ms}; it must be {needed_ms} (W + L + D) or more")
        if self.engine.future_ms > self.join.future_ms:
            raise ValueError(
                f"engine.future_ms is {self.engine.future_ms}; it must be join.future_ms, {self.join.future_ms}, at most: "
                "what is accepted must be of use to the learner"
            )
        if self.engine.default_slate_size > self.model.decoder.max_slots:
            raise ValueError(
                f"engine.default_slate_size is {self.engine.default_slate_size}; the decoder has {self.model.decoder.max_slots} slots"
            )


def as_json(config: Config) -> str:
    """The configuration as JSON text, keys sorted."""
    return json.dumps(asdict(config), sort_keys=True, indent=2)


def behavior_digest(config: Config) -> str:
    """The first 16 hex digits of the SHA-256 of everything but the server's sizes and timings."""
    said = asdict(config)
    del said["server"]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def with_settings(config: Settled, settings: Sequence[str]) -> Settled:
    """The configuration after each `path.to.field=value` (JSON, or a bare word). BadSetting names what does not fit."""
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise BadSetting(f"--set {setting!r}; it must be like learner.trainer.lr=3e-4")
        config = _with(config, path.split("."), path, text)
    return config


def _with(owner: Any, names: list[str], path: str, text: str) -> Any:
    known = [one.name for one in fields(owner)]
    name = names[0]
    if name not in known:
        raise BadSetting(f"--set {path}: there is no {name!r}; there are {', '.join(known)}")
    present = getattr(owner, name)
    if len(names) > 1:
        if not is_dataclass(present):
            raise BadSetting(f"--set {path}: {name} has no parts")
        return replace(owner, **{name: _with(present, names[1:], path, text)})
    try:
        return replace(owner, **{name: _value(present, text, path)})
    except BadSetting:
        raise
    except ValueError as error:
        raise BadSetting(f"--set {path}={text}: {error}") from None


def _value(present: Any, text: str, path: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if isinstance(present, tuple) and isinstance(value, list):
        return tuple(tuple(part) if isinstance(part, list) else part for part in value)
    if isinstance(present, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(present):
        raise BadSetting(f"--set {path}={text}: it must be of type {type(present).__name__}, like {present!r}")
    return value
