"""The gates: what must hold before an update counts and before a version is published. Knows nothing of how weights are made.

Each refusal has a name, so that a report can say what was refused and why.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Bounds of the gates."""

    max_grad_norm: float = 1.0
    max_change: float = 0.2
    """Largest ‖Δθ‖ / ‖θ‖ of one minute's update."""

    def __post_init__(self) -> None:
        if not 0 < self.max_grad_norm <= 1e6:
            raise ValueError(f"guard.max_grad_norm is {self.max_grad_norm}; it must be above 0 and at most 1e6")
        if not 0 < self.max_change <= 10:
            raise ValueError(f"guard.max_change is {self.max_change}; it must be above 0 and at most 10")


def update_refused(config: GuardConfig, loss: float, before: list[Tensor], after: list[Tensor]) -> str | None:
    """Why an update may not count, or None: `loss_not_finite`, `weights_not_finite`, `change_too_large`."""
    if not math.isfinite(loss):
        return "loss_not_finite"
    change = torch.nn.utils.get_total_norm(torch._foreach_sub(after, before))
    size = torch.nn.utils.get_total_norm(before)
    if not torch.isfinite(change):
        return "weights_not_finite"
    if change > config.max_change * size:
        return "change_too_large"
    return None
