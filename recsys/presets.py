"""Whole configurations, by name: the same code at different sizes. Knows nothing of where they run."""

from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from models.decoder import DecoderConfig
from models.objective import ObjectiveConfig
from models.tokenizer import TokenizerConfig
from recsys.config import Config, with_settings
from recsys.engine import EngineConfig
from recsys.learner_config import LearnerConfig
from recsys.live_model import ModelConfig
from recsys.policy import DrawingConfig
from recsys.trainer import TrainerConfig, WarmStartConfig
from streaming.joiner import JoinConfig


def standard() -> Config:
    """Plain ids, two layers of 64: what two cores serve in milliseconds and learn in about a second a minute, up to some 10⁴ items.

    For more items, `--set model.tokenizer.levels=2` (tests/bench/rank.md and generate.md say from where on).
    """
    return Config(model=ModelConfig(tokenizer=TokenizerConfig(levels=1)))


def tiny() -> Config:
    """The same code at toy size, for tests and worlds of a few dozen items. Here the policy's gradient chooses, hardly what is expected."""
    return Config(
        model=ModelConfig(
            tokenizer=TokenizerConfig(codes=8, content_dim=16), decoder=DecoderConfig(width=16, layers=1, heads=2, history=32)
        ),
        learner=LearnerConfig(
            replay_share=0.6,
            reservoir=2048,
            trainer=TrainerConfig(
                lr=0.01,
                passes=4,
                objective=ObjectiveConfig(policy_weight=1.0),
                warm_start=WarmStartConfig(epochs=2, batch=32),
            ),
        ),
        drawing=DrawingConfig(temperature=1.0, floor=0.02, value_weight=1.0, novelty_bonus=0.5),
        engine=EngineConfig(default_slate_size=5, exclude_seen=False),
    )


def small() -> Config:
    """Between the two: what a battery of runs affords. One layer of 32, plain ids, users who may be shown again what they were shown."""
    return Config(
        model=ModelConfig(
            tokenizer=TokenizerConfig(levels=1, content_dim=32), decoder=DecoderConfig(width=32, layers=1, heads=2, history=64)
        ),
        join=JoinConfig(variant="online", teach_imported=True, lateness_ms=10_000),
        engine=EngineConfig(exclude_seen=False),
    )


PRESETS: dict[str, Callable[[], Config]] = {"standard": standard, "small": small, "tiny": tiny}

Preset = Annotated[str, typer.Option(help=f"A whole configuration: {', '.join(PRESETS)}.")]


def configured(preset: str, settings: Sequence[str] | None) -> Config:
    """A whole configuration after each `--set`. ValueError names what does not fit."""
    if preset not in PRESETS:
        raise ValueError(f"--preset is {preset!r}; it must be one of {', '.join(PRESETS)}")
    return with_settings(PRESETS[preset](), settings or [])


def acting(preset: str, settings: Sequence[str] | None) -> Config:
    """The same of what answers requests: ValueError also where the variant that learns is none of those that answer."""
    config = configured(preset, settings)
    variants = [name for name, _ in config.experiment.variants]
    if config.join.variant not in variants:
        raise ValueError(f"join.variant is {config.join.variant!r}; it must be one of experiment.variants: {', '.join(variants)}")
    return config
