"""How the users of a simulated world behave, and what a user does with a slate: from probabilities of a click to events.

Knows nothing of what users like, of when they come, or of who made the slate.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.click_model import Floats, Ints
from recsys.truth import LIKE_SHARE, hash_share
from streaming.events import Event, Exposure, Feedback, Item
from streaming.proto.recommender_pb2 import RecommendResponse

_DISLIKED_BELOW, _DISLIKE_SHARE = 0.05, 0.05
"""Somebody shown what he has less than this probability to click says so this often."""


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
    """Share of the clicks that come a minute or two later than they would."""
    slowest_s: float = 40.0
    """A click comes up to this long after its slate was shown; most come much sooner."""
    accidents: float = 0.0
    """The probability that a shown slot is clicked whatever it holds."""
    new_users: float = 0.0
    """Share of the users who come during the run, one after another, and stay for `visit_minutes`; chosen by hash of the id."""
    visit_minutes: float = 60.0
    away: float = 0.0
    """Share of the users who don't ask from an eighth of the run to its seventh; chosen by hash of the id."""
    flooders: float = 0.0
    """Share of the users who ask all the time and click one item, the same for all of them, and nothing else; chosen by hash of the id."""
    floods_per_minute: float = 10.0
    """Requests that all flooders make together beside what users ask."""
    bait: float = 0.0
    """Share of the items, chosen by hash of the author (of the id where there is none), that nearly everybody clicks and then dislikes."""
    dislike_cost: float = 0.0
    """Clicks that a dislike takes back in what is expected; the reward rule must say the same."""
    flipped_from: int = 0
    flipped_minutes: int = 0
    """For so many minutes from that one on what is told is the reverse of what was done: what is taken for clicked was not, and was."""

    def __post_init__(self) -> None:
        _check_range(self, ("drift", "new_items", "retired_items", "attention", "ignored", "lost", "late", "accidents"), 0.0, 1.0)
        _check_range(self, ("new_users", "away", "flooders", "bait"), 0.0, 1.0)
        _check_range(self, ("position_bias", "freshness", "dislike_cost"), 0.0, 5.0)
        _check_range(self, ("minutes", "slate_size", "decisions_per_minute", "slowest_s", "visit_minutes"), 1, 1_000_000)
        _check_range(self, ("seed", "organic_per_minute", "floods_per_minute", "flipped_from", "flipped_minutes"), 0, 2**32)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The request that waits for its slate: the user's `turn`-th."""

    turn: int
    user: int
    user_id: str
    event_time_ms: int


def answer(decision: RecommendResponse, asked: Asked, items: Ints, probability: Floats, regret: Floats, config: WorldConfig) -> list[Event]:
    """What the user sees and does, in time order: shown after 0.3–2 s, clicked 1–40 s later or, rarely, after the window.

    `probability` and `regret` of each slot: that it is clicked, and that a click is followed by a dislike.
    """
    key = int.from_bytes(hashlib.sha256(f"{config.seed}|{asked.user}|{asked.turn}".encode()).digest()[:8])
    # The place of an item that doesn't exist stands for the slate as a whole.
    ignored, looked, shown_after, shown_lost = _uniform(key, np.array([-2]), 4)[:, 0]
    if ignored < config.ignored:
        return []
    depth = (
        1 + int(np.log(max(looked, 1e-12)) / np.log(config.attention))
        if 0 < config.attention < 1
        else 1 + int(config.attention) * items.size
    )
    click, click_after, late, like, react_after, dislike, click_lost, react_lost, accident = _uniform(key, items, 9)
    shown_ms = asked.event_time_ms + int(300 + 1700 * shown_after)
    exposed = np.arange(items.size) < depth
    clicked = exposed & ((click < probability) | (accident < config.accidents))
    delay_ms = 1000 + 1000 * (config.slowest_s - 1) * click_after**2 + np.where(late < config.late, 60_000 + 60_000 * react_after, 0)
    click_ms = shown_ms + delay_ms.astype(np.int64)
    react_ms = (1000 + 7000 * react_after).astype(np.int64)
    disliked = exposed & ~clicked & (probability < _DISLIKED_BELOW) & (dislike < _DISLIKE_SHARE)
    regretted = clicked & (dislike < regret)
    slots = np.flatnonzero(exposed).tolist()
    told: list[tuple[int, Exposure | Feedback]] = []
    if shown_lost >= config.lost:
        told.append((shown_ms, Exposure(decision_token=decision.decision_token, slots=slots)))
    for kind, did, time_ms, lost in (
        ("click", clicked, click_ms, click_lost),
        ("like", clicked & ~regretted & (like < LIKE_SHARE), click_ms + react_ms, react_lost),
        ("dislike", regretted, click_ms + react_ms, react_lost),
        ("dislike", disliked, shown_ms + react_ms, react_lost),
    ):
        for slot in np.flatnonzero(did & (lost >= config.lost)).tolist():
            told.append((int(time_ms[slot]), Feedback(decision_token=decision.decision_token, slot=slot, kind=kind, value=1.0)))
    return [_event(decision, asked.user_id, time_ms, body) for time_ms, body in sorted(told, key=_time_of)]


def flooders_of(user_ids: Sequence[str], share: float) -> NDArray[np.bool_]:
    """Which users flood."""
    return np.array([hash_share(f"flood {user_id}") < share for user_id in user_ids], bool)


def baits_of(items: Sequence[Item], share: float) -> NDArray[np.bool_]:
    """Which items are bait: all of a publisher, or none."""
    return np.array([hash_share(f"bait {item.attributes.get('author_id', item.item_id)}") < share for item in items], bool)


def _time_of(told: tuple[int, Exposure | Feedback]) -> int:
    return told[0]


def _event(decision: RecommendResponse, user_id: str, time_ms: int, body: Exposure | Feedback) -> Event:
    if isinstance(body, Exposure):
        return Event(event_id=event_id(decision.decision_id, "exposure"), user_id=user_id, event_time_ms=time_ms, exposure=body)
    named = event_id(decision.decision_id, body.kind, body.slot)
    return Event(event_id=named, user_id=user_id, event_time_ms=time_ms, feedback=body)


def event_id(*parts: object) -> str:
    """An id that depends on these parts only."""
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:32]


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
