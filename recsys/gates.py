"""The gates of what a minute tells, before anything is learned of it. Knows nothing of weights or of logs.

What came is compared with what was expected of it by weights that had not seen it. A minute is believed or refused as a whole, by name;
what one user may weigh in it is bounded before. A world that has really changed is believed after `patience` minutes.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import logit, stdtr

from models.trie import IntArray
from recsys.guard import GuardConfig

Floats = npt.NDArray[np.float64]

CONTRADICTS, RATE = "contradicts_what_was_learned", "rate_out_of_bounds"
FEW_USERS, FEW_MINUTES = 8, 5
"""Users of a minute, and minutes before it, that are too few to refuse anything."""
STILL = 0.3
"""The probability by chance that is enough right after a refused minute: who lied a minute ago must not even lean that way now."""
FAR = 6.0
"""Standard deviations by which a rate is off beyond all luck."""
USUAL_MINUTES = 20
"""The usual rate is the mean of about so many."""


@dataclass(frozen=True)
class Told:
    """What a minute tells, one entry a shown slot: whose it is, by number, what was expected and what was earned, 0..1, and its weight."""

    user_Q: IntArray
    expected_Q: Floats
    earned_Q: Floats
    weight_Q: Floats

    def between(self, other: "Told") -> "Told":
        """The same minute, with expectations halfway to those of `other`."""
        return replace(self, expected_Q=(self.expected_Q + other.expected_Q) / 2)

    @property
    def contradiction(self) -> float:
        """The probability with which chance alone has users contradict so much what was expected of them; 1 where too few say anything.

        Of each user the covariance of what he took with what was expected, and Student's t-test of their mean being below 0. Users,
        not slots: what one of them does hangs together, and the loudest is one observation.
        """
        centred_Q = self.expected_Q - np.average(self.expected_Q, weights=self.weight_Q)
        above_Q = self.earned_Q - np.average(self.earned_Q, weights=self.weight_Q)
        _, user_Q = np.unique(self.user_Q, return_inverse=True)
        agreement_U = np.bincount(user_Q, self.weight_Q * centred_Q * above_Q)
        spread = agreement_U.std(ddof=1) if len(agreement_U) >= FEW_USERS else 0.0
        if not spread:
            return 1.0
        return float(stdtr(len(agreement_U) - 1, agreement_U.mean() / spread * math.sqrt(len(agreement_U))))


class Gates:
    """Remembers what is usual and how often in a row it has refused; both are state of a learner."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._rate, self._num_minutes, self._refused_in_row = 0.0, 0, 0

    @property
    def minutes_in_doubt(self) -> int:
        """How many minutes up to the present one may not be true: 0 where the one before was believed."""
        return self._refused_in_row + 1 if self._refused_in_row else 0

    def refusal(self, told: Told) -> str | None:
        """Why this minute may not be learned, or None. To be asked once a minute: it counts."""
        reason = self._doubt(told) if len(told.user_Q) else None
        if reason is not None and self._refused_in_row < self._config.patience:
            self._refused_in_row += 1
            return reason
        if reason is None:
            self._refused_in_row = 0
        else:
            self._num_minutes = 0  # the world is another one: what was usual is not
        if len(told.user_Q):
            self._get_used_to(told)
        return None

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {"rate": self._rate, "num_minutes": self._num_minutes, "refused_in_row": self._refused_in_row}

    @staticmethod
    def of(config: GuardConfig, state: Mapping[str, Any]) -> "Gates":
        """What `state` said."""
        gates = Gates(config)
        gates._rate, gates._num_minutes, gates._refused_in_row = state["rate"], state["num_minutes"], state["refused_in_row"]
        return gates

    def _doubt(self, told: Told) -> str | None:
        config, enough = self._config, self._config.contradiction
        if enough and self._refused_in_row:
            enough = max(STILL, enough)
        if told.contradiction < enough:
            return CONTRADICTS
        if self._num_minutes < FEW_MINUTES:
            return None
        rate, weight = _rate(told), float(told.weight_Q.sum())
        is_far = abs(rate - self._rate) > FAR * math.sqrt(self._rate * (1 - self._rate) / weight)
        return RATE if is_far and abs(logit(rate) - logit(self._rate)) > math.log(config.max_rate_change) else None

    def _get_used_to(self, told: Told) -> None:
        self._num_minutes += 1
        self._rate += (_rate(told) - self._rate) / min(self._num_minutes, USUAL_MINUTES)


def _rate(told: Told) -> float:
    """Reward per shown slot, with half a slot more of each kind: never 0 or 1."""
    return float(((told.weight_Q * told.earned_Q).sum() + 0.5) / (told.weight_Q.sum() + 1))


def fair_weights(user_ids: Sequence[str], cap: int) -> list[float]:
    """What each slate of a minute weighs: 1, but all slates of a user who has more than `cap` weigh `cap` together."""
    number = Counter(user_ids)
    return [min(1.0, cap / number[user_id]) for user_id in user_ids]
