"""What the users of a simulated world like, and how that moves. Knows no turns, no slates and no events.

Appeal is a logit: base + tab + user + item + trend of the item's group + taste(user) · factor(item). Tastes move from where
they start towards `later_tastes`, slowly and in steps; the trends of groups rise and fall. Progress runs from 0 to 1 over a run.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from recsys.click_model import (
    ClickModel,
    ClickModelConfig,
    Clicks,
    Floats,
    Ints,
    SampleFrames,
    clicks_of,
    fit_click_model,
    indices,
    sigmoid,
)
from streaming.events import Item

TOY_START_MS = 1_640_995_200_000
"""2022-01-01, when toy worlds begin."""
LIKE_SHARE = 0.06
"""Of the clicks; KuaiRand: 1.7 % of exposures against 45 % of clicks."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Everything that decides whether a user would click, as logits; rows as in `user_ids` and `items`."""

    start_ms: int
    user_ids: tuple[str, ...]
    items: tuple[Item, ...]
    tabs: tuple[str, ...]
    activity: Floats
    """The share of requests that each user makes."""
    tab_shares: Floats
    """Users × tabs: where a user's requests come from."""
    base: float
    tab_bias: Floats
    user_bias: Floats
    item_bias: Floats
    tastes: Floats
    later_tastes: Floats
    factors: Floats
    group: Ints
    """The trend group of each item."""
    swing: Floats
    """By group: the height of its trend."""
    phase: Floats
    """By group: where in its wave it starts, 0..1."""
    slow: float
    """Share of the way to `later_tastes` that is walked evenly over the run."""
    steps: tuple[tuple[float, float], ...]
    """(progress, share of the way) of the sudden moves."""

    def __post_init__(self) -> None:
        total = self.slow + sum(share for _, share in self.steps)
        if not 0 <= total <= 1 + 1e-9:
            raise ValueError(f"slow and steps add up to {total}; 0..1")
        users, items = len(self.user_ids), len(self.items)
        sizes = {"tastes": (users, len(self.tastes)), "item_bias": (items, len(self.item_bias)), "factors": (items, len(self.factors))}
        for name, (wanted, found) in sizes.items():
            if wanted != found:
                raise ValueError(f"{name} has {found} rows; there are {wanted}")

    def part(self, users: Ints, items: Ints) -> "Truth":
        """The same of some of its users and items, in the order given."""
        of_users = ("activity", "tab_shares", "user_bias", "tastes", "later_tastes")
        rows = {name: getattr(self, name)[users] for name in of_users}
        rows |= {name: getattr(self, name)[items] for name in ("item_bias", "factors", "group")}
        rows["activity"] = rows["activity"] / rows["activity"].sum()
        return replace(self, user_ids=tuple(self.user_ids[u] for u in users), items=tuple(self.items[i] for i in items), **rows)

    def tastes_at(self, progress: float, drift: float) -> Floats:
        """Users × factors after `progress` of the run; `drift` (0..1) is the share of the moves that is made."""
        walked = drift * (self.slow * progress + sum(share for when, share in self.steps if progress >= when))
        return self.tastes + walked * (self.later_tastes - self.tastes)

    def item_logits_at(self, progress: float, drift: float) -> Floats:
        """What each item adds for everybody: its bias and the trend of its group, which is 0 at the start.

        Half a wave, so that nothing comes back in the run: after a whole one who stood still would be right again.
        """
        wave = np.sin(np.pi * (progress + 2 * self.phase)) - np.sin(2 * np.pi * self.phase)
        return np.asarray(self.item_bias + drift * (self.swing * wave)[self.group])


@dataclass(frozen=True, kw_only=True)
class SampleTruthConfig:
    """How a fitted model is made into a truth.

    The fit shrinks what it can't be sure of and knows only what a recommender chose to show, so its spread and level are too
    tame for a catalogue seen at random: both are set here. Directions stay as fitted.
    """

    num_users: int = 1500
    taste_std: float = 1.0
    """Logits, over users and items: what is a matter of taste."""
    item_std: float = 0.6
    """Logits: what everybody likes more or less."""
    mean_click: float = 0.2
    """The probability of a click on an item drawn at random, at the start."""
    trend_std: float = 0.6
    """Logits: the height of the groups' trends."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_users < 2:
            raise ValueError(f"num_users is {self.num_users}; at least 2")
        for name in ("taste_std", "item_std", "trend_std"):
            if not 0 <= getattr(self, name) <= 5:
                raise ValueError(f"{name} is {getattr(self, name)}; 0..5 logits")
        if not 0.01 <= self.mean_click <= 0.9:
            raise ValueError(f"mean_click is {self.mean_click}; 0.01..0.9")


def sample_truth(sample: SampleFrames, config: SampleTruthConfig, fit: ClickModelConfig) -> Truth:
    """The truth of the packaged sample's most active users and whole catalogue, fitted to its real clicks (about 3 s)."""
    clicks = clicks_of(sample)
    model = fit_click_model(clicks, fit)
    rows = np.bincount(clicks.user, minlength=len(clicks.user_ids))
    users = np.sort(np.argsort(-rows, kind="stable")[: config.num_users])
    activity = rows[users] / rows[users].sum()
    tab_shares = _tab_shares(clicks, users)
    tastes, factors, item_bias = _spread(model, users, config)
    tab_bias, user_bias = np.clip(model.tab_bias, -2.0, 2.0), model.user_bias[users]
    rng = np.random.default_rng([config.seed, 1])
    group = _groups(sample)
    swing = np.where(rng.random(group.max() + 1) < 0.5, rng.normal(0, config.trend_std, group.max() + 1), 0.0)
    known = tastes @ factors.T + item_bias + (user_bias + tab_shares @ tab_bias)[:, None]
    return Truth(
        start_ms=sample.warm_start_until_ms,
        user_ids=tuple(clicks.user_ids[user] for user in users),
        items=_items(sample),
        tabs=tuple(clicks.tabs),
        activity=activity,
        tab_shares=tab_shares,
        base=_base(known, activity, config.mean_click),
        tab_bias=tab_bias,
        user_bias=user_bias,
        item_bias=item_bias,
        tastes=tastes,
        later_tastes=_moved(tastes, rng),
        factors=factors,
        group=group,
        swing=swing,
        phase=rng.random(swing.size),
        slow=0.5,
        steps=((1 / 3, 0.25), (2 / 3, 0.25)),
    )


def answered(log: pl.DataFrame, truth: Truth, seed: int = 0) -> pl.DataFrame:
    """The exposures of `log` (columns as in `SampleFrames.log`) with the clicks and likes that users of this truth make, at its start.

    A history that its own users contradict teaches whoever learns from it the wrong tastes: a team's log comes from the users it serves.
    Rows of users, items or tabs that the truth doesn't have are left out.
    """
    known = {"user_id": truth.user_ids, "item_id": [item.item_id for item in truth.items], "tab": truth.tabs}
    rows = log.filter(pl.col(name).cast(pl.String).is_in(keys) for name, keys in known.items())
    user, item, tab = (indices(rows[name].cast(pl.String), {key: i for i, key in enumerate(keys)}) for name, keys in known.items())
    taste = np.einsum("nr,nr->n", truth.tastes[user], truth.factors[item])
    logit = truth.base + truth.user_bias[user] + truth.tab_bias[tab] + truth.item_bias[item] + taste
    click, like = np.random.default_rng([seed, 4]).random((2, len(rows)))
    clicked = click < sigmoid(logit)
    answers = {"click": clicked, "like": clicked & (like < LIKE_SHARE)}
    return rows.with_columns(pl.Series(name, did).cast(log[name].dtype) for name, did in answers.items())


def toy_truth(num_users: int = 40, num_items: int = 60, num_groups: int = 4, seed: int = 0) -> Truth:
    """Items in groups, each user in love with one group (click about .6, else .1); half of the users flip to the next at half time."""
    rng = np.random.default_rng([seed, 2])
    group = np.arange(num_items) % num_groups
    loved = np.arange(num_users) % num_groups
    # Every other user of each group, so that no group is abandoned as a whole.
    flips = np.arange(num_users) // num_groups % 2 == 0
    names = [chr(ord("a") + g) for g in range(num_groups)]
    items = [Item(item_id=f"item-{i:02d}", title=f"{names[g]} {i}", attributes={"group": names[g]}) for i, g in enumerate(group)]
    one_hot, strength = np.eye(num_groups), 2.6
    return Truth(
        start_ms=TOY_START_MS,
        user_ids=tuple(f"user-{u:02d}" for u in range(num_users)),
        items=tuple(items),
        tabs=("0",),
        activity=np.full(num_users, 1 / num_users),
        tab_shares=np.ones((num_users, 1)),
        base=-2.2,
        tab_bias=np.zeros(1),
        user_bias=np.zeros(num_users),
        item_bias=rng.normal(0, 0.3, num_items),
        tastes=strength * one_hot[loved],
        later_tastes=strength * one_hot[(loved + flips) % num_groups],
        factors=one_hot[group],
        group=group,
        swing=np.zeros(num_groups),
        phase=np.zeros(num_groups),
        slow=0.0,
        steps=((0.5, 1.0),),
    )


def hash_share(text: str) -> float:
    """Where the SHA-256 of `text` lies in its range, 0..1: a choice by id that no order or seed changes."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2.0**64


def _tab_shares(clicks: Clicks, users: Ints) -> Floats:
    counts = np.zeros((len(clicks.user_ids), len(clicks.tabs)))
    np.add.at(counts, (clicks.user, clicks.tab), 1.0)
    return np.asarray(counts[users] / counts[users].sum(axis=1, keepdims=True))


def _spread(model: ClickModel, users: Ints, config: SampleTruthConfig) -> tuple[Floats, Floats, Floats]:
    """Tastes, factors and item biases with the spread that `config` asks for.

    What the mean user likes is not taste but popularity, so it moves into the item bias.
    """
    tastes, factors = model.tastes[users], model.factors - model.factors.mean(axis=0)
    item_bias = model.item_bias + model.factors @ tastes.mean(axis=0)
    tastes = tastes - tastes.mean(axis=0)
    std = np.sqrt(np.einsum("ij,ij->", tastes.T @ tastes, factors.T @ factors) / (len(tastes) * len(factors)))
    item_bias -= item_bias.mean()
    return tastes * (config.taste_std / std), factors, item_bias * (config.item_std / item_bias.std())


def _base(logits: Floats, activity: Floats, mean_click: float) -> float:
    """The base with which a random request and a random item give `mean_click`, by bisection; every fifth user is enough."""
    low, high = -20.0, 20.0
    some, weight = logits[::5], activity[::5] / activity[::5].sum()
    for _ in range(30):
        middle = (low + high) / 2
        if weight @ sigmoid(some + middle).mean(axis=1) < mean_click:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _moved(tastes: Floats, rng: np.random.Generator, num_clusters: int = 8) -> Floats:
    """Half of the users get another cluster's mean taste, as strongly as they felt before; the others keep theirs."""
    centres = tastes[rng.choice(len(tastes), num_clusters, replace=False)]
    for _ in range(10):
        own = _nearest(tastes, centres)
        centres = np.stack([tastes[own == c].mean(axis=0) if (own == c).any() else centres[c] for c in range(num_clusters)])
    other = (_nearest(tastes, centres) + rng.integers(1, num_clusters, len(tastes))) % num_clusters
    strength = np.linalg.norm(tastes, axis=1) / np.linalg.norm(centres[other], axis=1)
    return np.where((rng.random(len(tastes)) < 0.5)[:, None], centres[other] * strength[:, None], tastes)


def _nearest(points: Floats, centres: Floats) -> Ints:
    return np.asarray(((points[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1))


def _items(sample: SampleFrames) -> tuple[Item, ...]:
    rows = sample.items.select("item_id", "title", "attributes").iter_rows()
    return tuple(Item(item_id=i, title=t, attributes={pair["key"]: pair["value"] for pair in pairs}) for i, t, pairs in rows)


def _groups(sample: SampleFrames) -> Ints:
    """Items by their first attribute (KuaiRand: the first tag), which is what trends."""
    first = [pairs[0]["value"] if pairs else "" for pairs in sample.items["attributes"].to_list()]
    return np.unique(np.array(first), return_inverse=True)[1].astype(np.int64)
