"""The gates: what must hold before an update counts and before a version is published. Knows nothing of how weights are made.

Each refusal has a name, so that a report can say what was refused and why.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Bounds of the gates."""

    max_grad_norm: float = 1.0
    max_change: float = 0.2
    """Largest ‖Δθ‖ / ‖θ‖ of one minute's update."""
    contradiction: float = 0.01
    """A minute is refused in which users take what was expected to earn least, more than chance does with this probability; 0: never."""
    max_rate_change: float = 6.0
    """Times that the odds of a reward may be those of the minutes before, up or down."""
    patience: int = 15
    """Minutes refused in a row for what they tell; what is told for longer is believed: the world has changed."""

    def __post_init__(self) -> None:
        if not 0 <= self.contradiction <= 0.5:
            raise ValueError(f"guard.contradiction is {self.contradiction}; it must be 0..0.5")
        if not 1 < self.max_rate_change <= 1e9:
            raise ValueError(f"guard.max_rate_change is {self.max_rate_change}; it must be above 1 and at most 1e9")
        if not 0 <= self.patience <= 1_000_000:
            raise ValueError(f"guard.patience is {self.patience}; it must be 0..1000000")
        if not 0 < self.max_grad_norm <= 1e6:
            raise ValueError(f"guard.max_grad_norm is {self.max_grad_norm}; it must be above 0 and at most 1e6")
        if not 0 < self.max_change <= 10:
            raise ValueError(f"guard.max_change is {self.max_change}; it must be above 0 and at most 10")


def update_refused(config: GuardConfig, weights: Tensor, change: Tensor) -> str | None:
    """Why an update may not count, given all weights before it and their change, or None: `weights_not_finite`, `change_too_large`."""
    moved, size = change.norm(), weights.norm()
    if not torch.isfinite(moved):
        return "weights_not_finite"
    if moved > config.max_change * size:
        return "change_too_large"
    return None
