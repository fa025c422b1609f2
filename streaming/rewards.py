"""Reward rules: what one shown slot earned, from the feedback on it. Knows nothing of decisions, windows or logs.

A rule is pure, named by a text (`rule_named`), and versioned: whoever changes what a rule computes raises its version.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

MAX_WEIGHT = 1e6
FORMS = "click | weighted:<kind>=<weight>[,<kind>=<weight>...]"


class RewardRule(Protocol):
    """Makes a reward of the feedback on one shown slot (kind → value); `default` when there was none."""

    @property
    def name(self) -> str:
        """The text that `rule_named` makes this rule of."""

    @property
    def version(self) -> int:
        """Rises when the same feedback comes to earn something else."""

    @property
    def default(self) -> float:
        """The reward of a slot that was shown and got no feedback."""

    def __call__(self, feedback: Mapping[str, float]) -> float:
        """The reward; finite when the values are."""


@dataclass(frozen=True, slots=True)
class Click:
    """1 for a click with a value above 0, else 0."""

    version: ClassVar[int] = 1
    default: float = 0.0

    @property
    def name(self) -> str:
        """See RewardRule."""
        return "click"

    def __call__(self, feedback: Mapping[str, float]) -> float:
        """See RewardRule."""
        if not feedback:
            return self.default
        return 1.0 if feedback.get("click", 0.0) > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Weighted:
    """The sum of weight × value over the kinds it names; other kinds earn nothing."""

    version: ClassVar[int] = 1
    weights: tuple[tuple[str, float], ...]  # sorted by kind: a sum of floats depends on its order
    default: float = 0.0

    def __post_init__(self) -> None:
        kinds = [kind for kind, _ in self.weights]
        if not kinds or "" in kinds or kinds != sorted(set(kinds)):
            raise ValueError(f"kinds are {kinds}; one or more, not empty, each once and sorted")
        for kind, weight in self.weights:
            if not abs(weight) <= MAX_WEIGHT:  # false for NaN too
                raise ValueError(f"the weight of {kind!r} is {weight}; it must be between {-MAX_WEIGHT:g} and {MAX_WEIGHT:g}")

    @property
    def name(self) -> str:
        """See RewardRule."""
        return "weighted:" + ",".join(f"{kind}={weight!r}" for kind, weight in self.weights)

    def __call__(self, feedback: Mapping[str, float]) -> float:
        """See RewardRule."""
        if not feedback:
            return self.default
        return sum((weight * feedback[kind] for kind, weight in self.weights if kind in feedback), start=0.0)


def rule_named(text: str) -> RewardRule:
    """The rule that `text` names, as in "click" or "weighted:click=1,like=2,dislike=-1". ValueError names what is wrong."""
    if text == "click":
        return Click()
    name, _, rest = text.partition(":")
    if name != "weighted":
        raise ValueError(f"reward rule {text!r}; allowed: {FORMS}")
    try:
        return Weighted(tuple(sorted(_weight(part) for part in rest.split(","))))
    except ValueError as error:
        raise ValueError(f"reward rule {text!r}: {error}; allowed: {FORMS}") from error


def _weight(part: str) -> tuple[str, float]:
    kind, equals, number = part.partition("=")
    if not equals:
        raise ValueError(f"{part!r} has no weight")
    weight = float(number)
    if not math.isfinite(weight):
        raise ValueError(f"{part!r} is not finite")
    return kind.strip(), weight
