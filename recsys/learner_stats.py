"""What a learner did since its process started: for reports, never for decisions. Knows nothing of how it is done."""

from collections import deque
from dataclasses import dataclass, field

STATS_KEPT = 2_000
"""Versions of which the figures are remembered."""


@dataclass
class LearnerStats:
    """Counts and seconds."""

    num_updates: int = 0
    num_refused: int = 0
    refusals: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=STATS_KEPT))
    """Minutes of which nothing was learned, and why."""
    num_capped: int = 0
    """Slates that weighed less because one user had so many in a minute."""
    num_rollbacks: int = 0
    update_s: deque[float] = field(default_factory=lambda: deque(maxlen=STATS_KEPT))
    save_s: deque[float] = field(default_factory=lambda: deque(maxlen=STATS_KEPT))
    blocked_s: deque[float] = field(default_factory=lambda: deque(maxlen=STATS_KEPT))
    """For how long learning stood still for a save."""
    publish_s: deque[float] = field(default_factory=lambda: deque(maxlen=STATS_KEPT))
    warm_start_s: float = 0.0
    warm_start_sequences: int = 0
    trained_append_ms: dict[int, list[int]] = field(default_factory=dict)
    """By version, when the records that it was first to learn from were appended."""

    def updated(self, minute: int, refused: str | None, num_capped: int) -> None:
        """Count one minute."""
        self.num_updates += 1
        self.num_capped += num_capped
        if refused is not None:
            self.num_refused += 1
            self.refusals.append((minute, refused))
