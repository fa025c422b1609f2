"""Click rates counted online, by tab, item, user and time: what a prediction of clicks has to be better than. Knows nothing of models.

Shapes: Q shown slots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from models.content import FloatArray
from models.trie import IntArray

SHRINK = {"tab": 20.0, "item": 40.0, "user": 12.0}
"""Exposures at the rate of the tab (of all, for the tab) that stand before those counted; chosen on the whole log, in their favour."""
RATES: Mapping[str, tuple[str, ...]] = {
    "constant": (),
    "tab": ("tab",),
    "tab_item_user": ("tab", "item", "user"),
    "popular_last_60_minutes": ("recent",),
}
RECENT_MS = 3_600_000


@dataclass(frozen=True)
class Shown:
    """Exposures as columns, (Q,), in order of time."""

    user: IntArray
    item: IntArray
    tab: IntArray
    time_ms: IntArray
    click: FloatArray

    @staticmethod
    def of(parts: Sequence["Shown"]) -> "Shown":
        """One after the other."""
        return Shown(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Shown)))


class RateModel:
    """log-odds of the tab, plus how far those of item and user, each shrunk to the tab's rate, are from it.

    "recent" is the item's rate in the last hour that is known, shrunk to that of all.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        self._sources = sources
        self._clicks: dict[str, FloatArray] = {}
        self._shown: dict[str, FloatArray] = {}
        self._total = np.array([0.5, 1.0])
        self._last: list[Shown] = []

    def learn(self, shown: Shown) -> None:
        """Count one more block."""
        self._total += [shown.click.sum(), len(shown.click)]
        if "recent" in self._sources:
            self._last = [part for part in self._last if part.time_ms[-1] >= shown.time_ms[-1] - RECENT_MS] + [shown]
        for name in self._sources:
            if name != "recent":
                self._count(name, getattr(shown, name), shown.click)

    def chances(self, shown: Shown) -> FloatArray:
        """Of a click, (Q,)."""
        rate = np.full(len(shown.click), self._total[0] / self._total[1])
        if "recent" in self._sources and self._last:
            last = Shown.of(self._last)
            clicks, count = (np.bincount(last.item, weight, int(shown.item.max()) + 1) for weight in (last.click, np.ones(len(last.click))))
            return ((clicks[shown.item] + SHRINK["item"] * rate) / (count[shown.item] + SHRINK["item"])).astype(np.float32)
        if "tab" in self._sources:
            rate = self._shrunk("tab", shown.tab, rate)
        odds = sum((_logit(self._shrunk(name, getattr(shown, name), rate)) - _logit(rate) for name in self._sources[1:]), _logit(rate))
        chance: FloatArray = (1 / (1 + np.exp(-odds))).astype(np.float32)
        return chance

    def _count(self, name: str, key_Q: IntArray, click_Q: FloatArray) -> None:
        size = max(int(key_Q.max()) + 1, len(self._shown.get(name, ())))
        for counts, weight_Q in ((self._clicks, click_Q), (self._shown, np.ones(len(key_Q), np.float32))):
            counts[name] = np.bincount(key_Q, weight_Q, size) + np.pad(counts.get(name, np.zeros(0)), (0, size - len(counts.get(name, ()))))

    def _shrunk(self, name: str, key_Q: IntArray, rate_Q: FloatArray) -> FloatArray:
        counts = self._shown.get(name, np.zeros(1))
        known_Q = np.minimum(key_Q, len(counts) - 1)
        there_Q = key_Q < len(counts)
        clicks_Q = np.where(there_Q, self._clicks.get(name, np.zeros(1))[known_Q], 0)
        shown_Q = np.where(there_Q, counts[known_Q], 0)
        shrunk: FloatArray = (clicks_Q + SHRINK[name] * rate_Q) / (shown_Q + SHRINK[name])
        return shrunk


def _logit(rate_Q: FloatArray) -> FloatArray:
    odds: FloatArray = np.log(rate_Q / (1 - rate_Q))
    return odds
