"""Environments that answer slates, in their own time: what a world must do, and worlds whose truth is known.

Knows nothing of policies, models or logs: requests come out, slates go in, events come out.
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.audience import Asked, WorldConfig, answer, baits_of, event_id, flooders_of
from recsys.click_model import ClickModelConfig, Floats, Ints, SampleFrames, sigmoid
from recsys.truth import SampleTruthConfig, Truth, hash_share, sample_truth, toy_truth
from streaming.events import Event, Interaction, Item
from streaming.proto.recommender_pb2 import RecommendRequest, RecommendResponse

__all__ = ["KnownWorld", "SimulatedWorld", "Turn", "World", "WorldConfig", "sample_world", "toy_world"]

MINUTE_MS = 60_000
_ORGANIC_KIND = "watch"
BAIT_CLICKED, BAIT_REGRET = 0.7, 0.9
"""Click bait is clicked so often, and a click on it so often disliked."""
_CHOICES = 20
"""So many items come a user's way for each that he watches on his own."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What happens next: the organic Interactions since the last turn and, nearly always, one request."""

    event_time_ms: int
    organic: tuple[Event, ...] = ()
    request: RecommendRequest | None = None


class World(Protocol):
    """An environment that asks for slates and answers them. Time is its own; the run is deterministic given its seed."""

    def catalog(self) -> Sequence[Item]:
        """The items there are at the start."""

    def next_turn(self) -> Turn | None:
        """The next turn, in time order; None when the world has ended."""

    def respond(self, decision: RecommendResponse) -> Sequence[Event]:
        """Exposure and Feedback on the slate for the last turn's request, each with its own event_time_ms, in time order."""


@runtime_checkable
class KnownWorld(World, Protocol):
    """A world that knows what is true of it, so that regret is exact. All of it is as of the last turn. It can wait for answers."""

    def respond_to(self, request_id: str, decision: RecommendResponse) -> Sequence[Event]:
        """`respond` for the request of an earlier turn, of the same minute as the last one and answered once."""

    def upserts(self) -> Sequence[tuple[int, Item]]:
        """(event_time_ms, Item) of what arrived or retired up to the last turn; each is told once."""

    def expected_reward(self, user_id: str, item_ids: Sequence[str], slot: ArrayLike) -> Floats:
        """The probability that the user clicks each item, were it exposed in `slot` (one for all, or one each)."""

    def best_slate(self, user_id: str, slate_size: int, exclude_item_ids: Collection[str] = ()) -> list[str]:
        """The slate with the highest expected reward for this user."""


class SimulatedWorld:
    """A KnownWorld of a Truth.

    Traffic doesn't depend on what is answered, and what happens with an item depends on (seed, user, the user's turn, item) and
    nothing else drawn: two variants that show a user the same item at the same turn get the same click, so their difference is theirs.
    """

    def __init__(self, truth: Truth, config: WorldConfig) -> None:
        self._truth, self._config = truth, config
        self._user_index = {user_id: i for i, user_id in enumerate(truth.user_ids)}
        self._item_index = {item.item_id: i for i, item in enumerate(truth.items)}
        self._item_ids = [item.item_id for item in truth.items]
        self._arrives_ms, self._retires_ms = self._schedule()
        self._changes = self._sorted_changes()
        self._tab = truth.tab_shares.argmax(axis=1)
        self._stays_min = self._visits()
        self._away = np.array([hash_share(f"away {user_id}") < config.away for user_id in truth.user_ids], bool)
        self._flooders = flooders_of(truth.user_ids, config.flooders)
        self._baits = baits_of(truth.items, config.bait)
        there = self._arrives_ms <= truth.start_ms
        self._flooded = int(np.argmax(there * [hash_share(f"flooded {item_id}") for item_id in self._item_ids]))
        self._cumulative_activity = np.cumsum(truth.activity)
        self._cumulative_tabs = np.cumsum(truth.tab_shares, axis=1)
        self._now_ms = truth.start_ms
        self._minute = 0
        self._turns_of_user = np.zeros(len(truth.user_ids), np.int64)
        self._turns: deque[tuple[Turn, int, int]] = deque()
        self._asked: dict[str, Asked] = {}
        """By request id, the turns of this minute that wait for their slates."""
        self._last_request = ""
        self._move_to(0)

    def catalog(self) -> list[Item]:
        """The items there are at the start."""
        return [item for item, arrives_ms in zip(self._truth.items, self._arrives_ms, strict=True) if arrives_ms <= self._truth.start_ms]

    def users(self) -> list[str]:
        """The users there are at the start."""
        return [self._truth.user_ids[user] for user in np.flatnonzero(self._is_here(0))]

    def next_turn(self) -> Turn | None:
        """See World. Every minute ends with a turn without a request, so that time goes on where nobody asks."""
        if not self._turns:
            if self._minute == self._config.minutes:
                return None
            self._move_to(self._minute)
            self._asked.clear()
            self._turns.extend(self._turns_of_minute(self._minute))
            self._minute += 1
        turn, user, tab = self._turns.popleft()
        self._now_ms = turn.event_time_ms
        self._last_request = turn.request.request_id if turn.request is not None else ""
        if turn.request is not None:
            asked = Asked(turn=int(self._turns_of_user[user]), user=user, user_id=turn.request.user_id, event_time_ms=turn.event_time_ms)
            self._asked[turn.request.request_id] = asked
            self._turns_of_user[user] += 1
            self._tab[user] = tab
        return turn

    def respond(self, decision: RecommendResponse) -> list[Event]:
        """See World. ValueError when the last turn had no request or was answered; an item the world doesn't have gets no click."""
        return self.respond_to(self._last_request, decision)

    def respond_to(self, request_id: str, decision: RecommendResponse) -> list[Event]:
        """See KnownWorld. ValueError for a request of another minute, or one that was answered."""
        asked = self._asked.pop(request_id, None)
        if asked is None:
            raise ValueError(f"decision {decision.decision_id!r} answers nothing: no request {request_id!r} of this minute waits")
        items = np.array([self._item_index.get(slot.item_id, -1) for slot in decision.slots], dtype=np.int64)
        if items.size == 0:
            return []
        probability = self._click_probability(asked.user, items, np.arange(items.size))
        if 0 <= self._minute - 1 - self._config.flipped_from < self._config.flipped_minutes:
            probability = 1 - probability
        regret = np.where((items >= 0) & self._baits[items], BAIT_REGRET, 0.0)
        return answer(decision, asked, items, probability, regret, self._config)

    def upserts(self) -> list[tuple[int, Item]]:
        """See KnownWorld."""
        due = []
        while self._changes and self._changes[0][0] <= self._now_ms:
            time_ms, index, retired = self._changes.popleft()
            item = Item()
            item.CopyFrom(self._truth.items[index])
            item.retired = retired
            due.append((time_ms, item))
        return due

    def expected_reward(self, user_id: str, item_ids: Sequence[str], slot: ArrayLike) -> Floats:
        """See KnownWorld; on the tab where the user was last. KeyError for a user the world doesn't have; unknown items get 0."""
        items = np.array([self._item_index.get(item_id, -1) for item_id in item_ids], dtype=np.int64)
        worth = np.where((items >= 0) & self._baits[items], 1 - BAIT_REGRET * self._config.dislike_cost, 1.0)
        return self._click_probability(self._user_index[user_id], items, np.asarray(slot)) * worth

    def best_slate(self, user_id: str, slate_size: int, exclude_item_ids: Collection[str] = ()) -> list[str]:
        """See KnownWorld. KeyError for a user the world doesn't have."""
        appeal = self._truth.factors @ self._tastes[self._user_index[user_id]] + self._item_logits
        logits = np.where(self._alive() & ~self._baits, appeal, -np.inf)
        logits[[self._item_index[item_id] for item_id in exclude_item_ids if item_id in self._item_index]] = -np.inf
        size = min(slate_size, int(np.isfinite(logits).sum()))
        best = np.argpartition(-logits, size - 1)[:size] if size else np.zeros(0, dtype=np.int64)
        return [self._item_ids[i] for i in best[np.argsort(-logits[best], kind="stable")]]

    def _schedule(self) -> tuple[Ints, Ints]:
        """When each item arrives and retires, UTC ms; those of the start arrive at the start, most retire never."""
        config, start_ms, number = self._config, self._truth.start_ms, len(self._truth.items)
        rng = np.random.default_rng([config.seed, 1])
        span_ms = config.minutes * MINUTE_MS
        is_new = np.array([hash_share(item_id) < config.new_items for item_id in self._item_ids])
        when_ms = start_ms + 1 + (rng.random(number) * 0.9 * span_ms).astype(np.int64)
        retires = ~is_new & (rng.random(number) < config.retired_items)
        return np.where(is_new, when_ms, start_ms), np.where(retires, when_ms, np.iinfo(np.int64).max)

    def _sorted_changes(self) -> deque[tuple[int, int, bool]]:
        """(time, item, retired) of what changes in the catalogue, by time."""
        start_ms, never_ms = self._truth.start_ms, np.iinfo(np.int64).max
        arrivals = [(int(time_ms), i, False) for i, time_ms in enumerate(self._arrives_ms) if time_ms > start_ms]
        retirements = [(int(time_ms), i, True) for i, time_ms in enumerate(self._retires_ms) if time_ms < never_ms]
        return deque(sorted(arrivals + retirements))

    def _move_to(self, minute: int) -> None:
        """Let tastes, trends and freshness be those of this minute."""
        config, truth = self._config, self._truth
        progress = minute / config.minutes
        age_min = (truth.start_ms + minute * MINUTE_MS - self._arrives_ms) / MINUTE_MS
        fresh = np.where(self._arrives_ms > truth.start_ms, config.freshness * np.exp(-np.maximum(age_min, 0) / 30), 0.0)
        self._cumulative_activity = np.cumsum(truth.activity * self._is_here(minute))
        self._tastes = truth.tastes_at(progress, config.drift)
        self._item_logits = truth.item_logits_at(progress, config.drift) + fresh

    def _visits(self) -> Floats:
        """When each user comes and goes, world minutes, (users, 2); most worlds' users are there from first to last."""
        config, user_ids = self._config, self._truth.user_ids
        is_new = np.array([hash_share(f"new {user_id}") < config.new_users for user_id in user_ids], bool)
        first = np.random.default_rng([config.seed, 3]).random(len(user_ids)) * config.minutes
        stays = np.stack([first, first + config.visit_minutes], axis=1)
        return np.where(is_new[:, None], stays, [-1.0, np.inf])

    def _is_here(self, minute: int) -> NDArray[np.bool_]:
        """Who may ask in this minute."""
        progress = minute / self._config.minutes
        away = self._away & (1 / 8 <= progress < 7 / 8)
        return (self._stays_min[:, 0] <= minute) & (minute < self._stays_min[:, 1]) & ~away

    def _alive(self) -> NDArray[np.bool_]:
        return (self._arrives_ms <= self._now_ms) & (self._now_ms < self._retires_ms)

    def _click_probability(self, user: int, items: Ints, slots: Ints) -> Floats:
        truth = self._truth
        base = truth.base + truth.user_bias[user] + truth.tab_bias[self._tab[user]]
        probability = sigmoid(base + self._item_logits[items] + truth.factors[items] @ self._tastes[user])
        probability = np.where(self._baits[items], BAIT_CLICKED, probability)
        if self._flooders[user]:
            probability = np.where(items == self._flooded, 1.0, 0.0)
        there = (items >= 0) & (self._arrives_ms[items] <= self._now_ms) & (self._now_ms < self._retires_ms[items])
        return np.asarray(np.where(there, probability, 0.0) * (slots + 1.0) ** -self._config.position_bias)

    def _turns_of_minute(self, minute: int) -> list[tuple[Turn, int, int]]:
        """(turn, user, tab) of one minute; the last has no request."""
        config, truth = self._config, self._truth
        rng = np.random.default_rng([config.seed, 2, minute])
        begin_ms = truth.start_ms + minute * MINUTE_MS
        times_ms = begin_ms + np.sort(rng.integers(0, MINUTE_MS - 1, rng.poisson(config.decisions_per_minute)))
        users = self._draw_users(rng, times_ms.size)
        tabs = (self._cumulative_tabs[users] < rng.random(times_ms.size)[:, None]).sum(axis=1).clip(max=len(truth.tabs) - 1)
        organic = deque(self._organic_of_minute(rng, begin_ms))
        names = [str(place) for place in range(times_ms.size)]
        asked = list(zip(times_ms.tolist(), names, users.tolist(), tabs.tolist(), strict=True))
        turns = []
        for time_ms, name, user, tab in sorted([*asked, *self._floods_of_minute(minute, begin_ms)]):
            request = RecommendRequest(
                user_id=truth.user_ids[user],
                slate_size=config.slate_size,
                request_id=f"{config.seed}-{minute}-{name}",
                context={"tab": truth.tabs[tab]},
                event_time_ms=time_ms,
            )
            turns.append((Turn(event_time_ms=time_ms, organic=_taken_until(organic, time_ms), request=request), user, tab))
        end_ms = begin_ms + MINUTE_MS - 1
        turns.append((Turn(event_time_ms=end_ms, organic=_taken_until(organic, end_ms)), -1, -1))
        return turns

    def _floods_of_minute(self, minute: int, begin_ms: int) -> list[tuple[int, str, int, int]]:
        """(time, name, user, tab) of what flooders ask beside their share of the rest."""
        flooders = np.flatnonzero(self._flooders)
        if not flooders.size:
            return []
        rng = np.random.default_rng([self._config.seed, 4, minute])
        times_ms = begin_ms + rng.integers(0, MINUTE_MS - 1, rng.poisson(self._config.floods_per_minute))
        return [(int(time_ms), f"f{place}", int(rng.choice(flooders)), 0) for place, time_ms in enumerate(times_ms)]

    def _draw_users(self, rng: np.random.Generator, number: int) -> Ints:
        drawn = np.searchsorted(self._cumulative_activity, rng.random(number) * self._cumulative_activity[-1], side="right")
        return np.asarray(drawn.clip(max=len(self._truth.user_ids) - 1), dtype=np.int64)

    def _organic_of_minute(self, rng: np.random.Generator, begin_ms: int) -> list[Event]:
        """What users watch outside any slate: the best for them of some items that come their way."""
        number = int(rng.poisson(self._config.organic_per_minute))
        times_ms = begin_ms + np.sort(rng.integers(0, MINUTE_MS - 1, number))
        users = self._draw_users(rng, number)
        offered = rng.choice(np.flatnonzero(self._alive()), (number, _CHOICES))
        logits = self._item_logits[offered] + np.einsum("nr,ncr->nc", self._tastes[users], self._truth.factors[offered])
        chosen = offered[np.arange(number), (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)]
        return [
            Event(
                event_id=event_id("organic", self._config.seed, time_ms, place),
                user_id=self._truth.user_ids[user],
                event_time_ms=time_ms,
                interaction=Interaction(item_id=self._item_ids[item], kind=_ORGANIC_KIND, value=1.0),
            )
            for place, (time_ms, user, item) in enumerate(zip(times_ms.tolist(), users.tolist(), chosen.tolist(), strict=True))
        ]


def sample_world(
    sample: SampleFrames, config: WorldConfig | None = None, truth: SampleTruthConfig | None = None, fit: ClickModelConfig | None = None
) -> SimulatedWorld:
    """A world of the packaged sample's users and videos. For several worlds alike, fit `sample_truth` once and build them of it."""
    return SimulatedWorld(sample_truth(sample, truth or SampleTruthConfig(), fit or ClickModelConfig()), config or WorldConfig())


def toy_world(config: WorldConfig | None = None) -> SimulatedWorld:
    """40 users and 60 items in 4 groups for 20 minutes: small enough for tests, and half of the users change at half time."""
    return SimulatedWorld(toy_truth(), config or WorldConfig(minutes=20, decisions_per_minute=40.0, organic_per_minute=5.0, slate_size=5))


def _taken_until(events: deque[Event], time_ms: int) -> tuple[Event, ...]:
    taken = []
    while events and events[0].event_time_ms <= time_ms:
        taken.append(events.popleft())
    return tuple(taken)
