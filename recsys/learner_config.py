"""What each minute of the log is learned with. Knows nothing of how it is done."""

from dataclasses import dataclass, field

from recsys.trainer import TrainerConfig


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """What each minute learns from."""

    replay_share: float = 0.5
    """Share of a batch that was learned before, drawn from the reservoir; own choices only, like every live target."""
    reservoir: int = 1024
    max_lag: int = 60
    """Decisions of versions older than this many are counted as stale and dropped."""
    max_quarantined: float = 0.01
    """Largest share of a minute's records in quarantine with which the rest is learned; 1 turns the bound off."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        limits = {"replay_share": (0, 0.9), "reservoir": (0, 10_000_000), "max_lag": (1, 1_000_000), "max_quarantined": (0, 1)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"learner.{name} is {getattr(self, name)}; it must be {low}..{high}")
