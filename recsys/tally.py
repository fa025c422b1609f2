"""What a run measured, from outside: what was shown and taken, minute by minute and variant by variant.

Knows nothing of models or logs: it counts what went over the wire, and asks the world for what is true.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from recsys.worlds import KnownWorld, Turn
from streaming.events import Event
from streaming.proto.recommender_pb2 import RecommendResponse

MINUTE_MS = 60_000
ORACLE_EVERY = 5
"""Every so many decisions are compared with the best slate there was: it costs a look at the whole catalogue."""


@dataclass
class VariantTally:
    """One variant's sums by world minute since the start."""

    decisions: int = 0
    clicks: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    slots: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    new_slots: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    expected: float = 0.0
    best: float = 0.0
    first_shown_ms: dict[str, int] = field(default_factory=dict)

    def reward_by_minute(self, minutes: int) -> list[float]:
        """Clicks per shown slot of each minute; NaN where nothing was shown."""
        return [self.clicks[minute] / self.slots[minute] if self.slots[minute] else float("nan") for minute in range(minutes)]

    def slots_by_minute(self, minutes: int) -> list[float]:
        """Slots shown in each minute."""
        return [float(self.slots[minute]) for minute in range(minutes)]

    def reward(self, since_minute: int = 0) -> float | None:
        """Clicks per shown slot since a minute; None when nothing was shown."""
        slots = sum(count for minute, count in self.slots.items() if minute >= since_minute)
        clicks = sum(count for minute, count in self.clicks.items() if minute >= since_minute)
        return clicks / slots if slots else None


class Tally:
    """Sums of all variants. A click counts for the minute of its decision, when it came within `window_ms` of it."""

    def __init__(self, window_ms: int) -> None:
        self.variants: dict[str, VariantTally] = defaultdict(VariantTally)
        self.start_ms: int | None = None
        self.decisions = 0
        self.arrived_ms: dict[str, int] = {}
        self.learn_s = 0.0
        self.freshness_s: dict[int, list[float]] = {}
        """By world minute of the swap: event appended → in served weights."""
        self.load_s: list[float] = []
        self._window_ms = window_ms
        self._last_served = 0

    def decided(self, turn: Turn, response: RecommendResponse, events: Sequence[Event], world: KnownWorld) -> None:
        """Count one slate and what the world answered to it."""
        if self.start_ms is None:
            self.start_ms = turn.event_time_ms // MINUTE_MS * MINUTE_MS
        minute = (turn.event_time_ms - self.start_ms) // MINUTE_MS
        variant = self.variants[response.variant]
        variant.decisions += 1
        self.decisions += 1
        shown = {slot for event in events for slot in event.exposure.slots}
        clicked = {
            event.feedback.slot
            for event in events
            if event.feedback.kind == "click" and event.event_time_ms <= turn.event_time_ms + self._window_ms
        }
        variant.slots[minute] += len(shown)
        variant.clicks[minute] += len(clicked & shown)
        for slot in shown:
            item_id = response.slots[slot].item_id
            if item_id in self.arrived_ms:
                variant.new_slots[minute] += 1
                variant.first_shown_ms.setdefault(item_id, turn.event_time_ms)
        if self.decisions % ORACLE_EVERY == 0 and turn.request is not None and response.slots:
            self._compare(variant, turn.request.user_id, [slot.item_id for slot in response.slots], world)

    def arrived(self, item_ids: Sequence[str], now_ms: int) -> None:
        """Note items that came during the run."""
        for item_id in item_ids:
            self.arrived_ms.setdefault(item_id, now_ms)

    def served(self, version: int, append_times_ms: Sequence[int], loaded_at_ms: int, load_s: float) -> None:
        """Note that a version answers now, and when the records it was first to learn from were appended."""
        if version <= self._last_served:
            return
        self._last_served = version
        self.load_s.append(load_s)
        minute = (loaded_at_ms - (self.start_ms or loaded_at_ms)) // MINUTE_MS
        self.freshness_s.setdefault(minute, []).extend((loaded_at_ms - time_ms) / 1000 for time_ms in append_times_ms)

    def minutes_to_first_exposure(self, name: str) -> list[float]:
        """For each item that arrived, minutes until this variant first showed it; NaN if it never did."""
        first = self.variants[name].first_shown_ms
        return [(first[item] - time_ms) / MINUTE_MS if item in first else float("nan") for item, time_ms in self.arrived_ms.items()]

    def share_of_oracle(self, name: str) -> float | None:
        """Expected reward of what was shown over that of the best slates (seen items allowed); None before it was measured."""
        variant = self.variants[name]
        return variant.expected / variant.best if variant.best else None

    @staticmethod
    def _compare(variant: VariantTally, user_id: str, item_ids: list[str], world: KnownWorld) -> None:
        places = np.arange(len(item_ids))
        best = world.best_slate(user_id, len(item_ids))
        variant.expected += float(world.expected_reward(user_id, item_ids, places).sum())
        variant.best += float(world.expected_reward(user_id, best, places[: len(best)]).sum())
