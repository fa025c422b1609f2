"""Environments that answer slates, in their own time: what a world must do, and worlds whose truth is known.

Knows nothing of policies, models or logs: requests come out, slates go in, events come out.
"""

import hashlib
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.click_model import ClickModelConfig, Floats, Ints, SampleFrames, sigmoid
from recsys.truth import SampleTruthConfig, Truth, hash_share, sample_truth, toy_truth
from streaming.events import Event, Exposure, Feedback, Interaction, Item
from streaming.proto.recommender_pb2 import RecommendRequest, RecommendResponse

MINUTE_MS = 60_000
_ORGANIC_KIND = "watch"
_CHOICES = 20
"""So many items come a user's way for each that he watches on his own."""
_LIKE_SHARE = 0.06
"""Of the clicks; KuaiRand: 1.7 % of exposures against 45 % of clicks."""
_DISLIKED_BELOW, _DISLIKE_SHARE = 0.05, 0.05
"""Somebody shown what he has less than this probability to click says so this often."""


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


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """How a simulated world behaves; the truth says what its users like."""

    seed: int = 0
    minutes: int = 180
    decisions_per_minute: float = 170.0
    slate_size: int = 10
    organic_per_minute: float = 20.0
    drift: float = 1.0
    """0 = tastes and trends stand still, 1 = they move all the way."""
    new_items: float = 0.1
    """Share of the catalogue that arrives during the run, chosen by hash of the id."""
    retired_items: float = 0.01
    freshness: float = 0.5
    """Logits that a new item gains on arrival; they fade with a mean life of 30 minutes."""
    position_bias: float = 0.1
    """A click in slot k (from 0) is (k + 1)^-position_bias times as likely as in the first."""
    attention: float = 0.94
    """The probability of looking one slot further."""
    ignored: float = 0.03
    """Share of the slates of which nothing is exposed."""
    lost: float = 0.01
    """Share of the events that never arrive."""
    late: float = 0.01
    """Share of the clicks that come after the attribution window of 60 s."""

    def __post_init__(self) -> None:
        _check_range(self, ("drift", "new_items", "retired_items", "attention", "ignored", "lost", "late"), 0.0, 1.0)
        _check_range(self, ("position_bias", "freshness"), 0.0, 5.0)
        _check_range(self, ("minutes", "slate_size", "decisions_per_minute"), 1, 1_000_000)
        _check_range(self, ("seed", "organic_per_minute"), 0, 2**32)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The request that waits for its slate: the user's `turn`-th."""

    turn: int
    user: int
    event_time_ms: int


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
        self._cumulative_activity = np.cumsum(truth.activity)
        self._cumulative_tabs = np.cumsum(truth.tab_shares, axis=1)
        self._now_ms = truth.start_ms
        self._minute = 0
        self._turns_of_user = np.zeros(len(truth.user_ids), np.int64)
        self._turns: deque[tuple[Turn, int, int]] = deque()
        self._asked: dict[str, _Asked] = {}
        """By request id, the turns of this minute that wait for their slates."""
        self._last_request = ""
        self._move_to(0)

    def catalog(self) -> list[Item]:
        """The items there are at the start."""
        return [item for item, arrives_ms in zip(self._truth.items, self._arrives_ms, strict=True) if arrives_ms <= self._truth.start_ms]

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
            asked = _Asked(turn=int(self._turns_of_user[user]), user=user, event_time_ms=turn.event_time_ms)
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
        return _answer(decision, asked, items, self._click_probability(asked.user, items, np.arange(items.size)), self._config, self._truth)

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
        return self._click_probability(self._user_index[user_id], items, np.asarray(slot))

    def best_slate(self, user_id: str, slate_size: int, exclude_item_ids: Collection[str] = ()) -> list[str]:
        """See KnownWorld. KeyError for a user the world doesn't have."""
        logits = np.where(self._alive(), self._truth.factors @ self._tastes[self._user_index[user_id]] + self._item_logits, -np.inf)
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
        self._tastes = truth.tastes_at(progress, config.drift)
        self._item_logits = truth.item_logits_at(progress, config.drift) + fresh

    def _alive(self) -> NDArray[np.bool_]:
        return (self._arrives_ms <= self._now_ms) & (self._now_ms < self._retires_ms)

    def _click_probability(self, user: int, items: Ints, slots: Ints) -> Floats:
        truth = self._truth
        base = truth.base + truth.user_bias[user] + truth.tab_bias[self._tab[user]]
        probability = sigmoid(base + self._item_logits[items] + truth.factors[items] @ self._tastes[user])
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
        turns = []
        for place, (time_ms, user, tab) in enumerate(zip(times_ms.tolist(), users.tolist(), tabs.tolist(), strict=True)):
            request = RecommendRequest(
                user_id=truth.user_ids[user],
                slate_size=config.slate_size,
                request_id=f"{config.seed}-{minute}-{place}",
                context={"tab": truth.tabs[tab]},
                event_time_ms=time_ms,
            )
            turns.append((Turn(event_time_ms=time_ms, organic=_taken_until(organic, time_ms), request=request), user, tab))
        end_ms = begin_ms + MINUTE_MS - 1
        turns.append((Turn(event_time_ms=end_ms, organic=_taken_until(organic, end_ms)), -1, -1))
        return turns

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
                event_id=_event_id("organic", self._config.seed, time_ms, place),
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


def _answer(decision: RecommendResponse, asked: _Asked, items: Ints, probability: Floats, config: WorldConfig, truth: Truth) -> list[Event]:
    """What the user sees and does, in time order: shown after 0.3–2 s, clicked 1–40 s later or, rarely, after the window."""
    key = int.from_bytes(hashlib.sha256(f"{config.seed}|{asked.user}|{asked.turn}".encode()).digest()[:8])
    # The place of an item that doesn't exist stands for the slate as a whole.
    ignored, looked, shown_after, shown_lost = _uniform(key, np.array([len(truth.items)]), 4)[:, 0]
    if ignored < config.ignored:
        return []
    depth = (
        1 + int(np.log(max(looked, 1e-12)) / np.log(config.attention))
        if 0 < config.attention < 1
        else 1 + int(config.attention) * items.size
    )
    click, click_after, late, like, react_after, dislike, click_lost, react_lost = _uniform(key, items, 8)
    shown_ms = asked.event_time_ms + int(300 + 1700 * shown_after)
    exposed = np.arange(items.size) < depth
    clicked = exposed & (click < probability)
    click_ms = shown_ms + (1000 + 39_000 * click_after**2 + np.where(late < config.late, 60_000 + 60_000 * react_after, 0)).astype(np.int64)
    react_ms = (1000 + 7000 * react_after).astype(np.int64)
    disliked = exposed & ~clicked & (probability < _DISLIKED_BELOW) & (dislike < _DISLIKE_SHARE)
    slots = np.flatnonzero(exposed).tolist()
    told: list[tuple[int, Exposure | Feedback]] = []
    if shown_lost >= config.lost:
        told.append((shown_ms, Exposure(decision_token=decision.decision_token, slots=slots)))
    for kind, did, time_ms, lost in (
        ("click", clicked, click_ms, click_lost),
        ("like", clicked & (like < _LIKE_SHARE), click_ms + react_ms, react_lost),
        ("dislike", disliked, shown_ms + react_ms, react_lost),
    ):
        for slot in np.flatnonzero(did & (lost >= config.lost)).tolist():
            told.append((int(time_ms[slot]), Feedback(decision_token=decision.decision_token, slot=slot, kind=kind, value=1.0)))
    return [_event(decision, truth.user_ids[asked.user], time_ms, body) for time_ms, body in sorted(told, key=_time_of)]


def _time_of(told: tuple[int, Exposure | Feedback]) -> int:
    return told[0]


def _event(decision: RecommendResponse, user_id: str, time_ms: int, body: Exposure | Feedback) -> Event:
    if isinstance(body, Exposure):
        return Event(event_id=_event_id(decision.decision_id, "exposure"), user_id=user_id, event_time_ms=time_ms, exposure=body)
    event_id = _event_id(decision.decision_id, body.kind, body.slot)
    return Event(event_id=event_id, user_id=user_id, event_time_ms=time_ms, feedback=body)


def _event_id(*parts: object) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:32]


def _taken_until(events: deque[Event], time_ms: int) -> tuple[Event, ...]:
    taken = []
    while events and events[0].event_time_ms <= time_ms:
        taken.append(events.popleft())
    return tuple(taken)


def _uniform(key: int, items: Ints, number: int) -> Floats:
    """`number` × items draws in [0, 1) that depend on key and item only: the finaliser of SplitMix64 (Steele et al. 2014)."""
    steps = np.arange(1, number + 1, dtype=np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15)
    # An item can be -1 (unknown); as unsigned it is just another number.
    mixed = (items.astype(np.uint64) * np.uint64(0xD1342543DE82EF95) ^ np.uint64(key)) + steps
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53)


def _check_range(config: WorldConfig, names: Sequence[str], low: float, high: float) -> None:
    for name in names:
        if not low <= getattr(config, name) <= high:
            raise ValueError(f"{name} is {getattr(config, name)}; {low:g}..{high:g}")
