"""What the runs of a battery say about learning: how fast users and items become known, what staleness, floods and absence cost.

Records in, figures out; None where the runs that a figure needs were not made. Knows nothing of how runs are made.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recsys.abtest import interval_of
from recsys.audience import flooders_of
from recsys.simulate.diary import Array, Record
from recsys.simulate.measures import Records, gates
from recsys.truth import hash_share

TURNS = ((0, 0), (1, 1), (2, 2), (3, 5), (6, 10), (11, 20), (21, 50))
"""Turns that a user had before, and exposures that an item had: from, to."""
HALF_OF = ("online", "offline", "memory_only", "weights_only")
"""The variants that tell memory and weights apart."""
SETTLED_MINUTES = 60
"""An item is no longer new after so long."""


def adaptation(crowd: Records, fresh: Records) -> dict[str, Any] | None:
    """Share of the oracle by the turns a newcomer had before; of new items how soon they are shown, and reward by the exposures that each
    had before; by variant.
    """
    users = {name: _newcomers(list(crowd[name].values())) for name in HALF_OF if crowd.get(name)}
    lives = {name: list(fresh[name].values()) for name in HALF_OF if fresh.get(name)}
    items = {name: _new_items(runs) | {"reward_by_exposures": _by_exposures(runs)} for name, runs in lives.items()}
    return {"users": users or None, "items": items or None} if users or items else None


def second_try(records: Records) -> dict[str, Any] | None:
    """How much of a slate the same user's next one repeats, weights frozen, by variant.

    In the run, after he took something of it and after nothing, of those whose weights stand still (`offline` doesn't know what he
    did: what it repeats is repeated by chance); and as the weights were last looked at, had he passed all of it by or disliked all of
    it (`understanding.second_tries`), by the turns he had had too: the less is known of him, the more a slate says.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in HALF_OF:
        runs = list(records.get(name, {}).values())
        if runs and name in ("memory_only", "offline"):
            repeated, before = (np.concatenate([run[column] for run in runs]) for column in ("repeated", "before"))
            known = np.isfinite(repeated)
            found[name] = {
                "after_nothing": _mean(repeated[known & (before <= 0)]),
                "after_a_reward": _mean(repeated[known & (before > 0)]),
            }
        tries = [pair for run in runs for pair in run.figures.get("second_tries", [])]
        if tries and name in ("online", "memory_only"):
            turns, *answers = np.array(tries).T
            asked = dict(zip(("had_he_passed_all_by", "had_he_disliked_all"), answers, strict=True))
            found[name] = found.get(name, {}) | {what: _mean(repeated) for what, repeated in asked.items()}
            found[name] |= {f"{what}_by_turns": _by_number(turns, repeated, TURNS[1:]) for what, repeated in asked.items()}
    return found or None


def understanding(records: Records) -> dict[str, dict[str, float | None]] | None:
    """NDCG of the whole catalogue ranked for users, by the turns they had had, by variant (see `understanding.understood`)."""
    found = {}
    for name in HALF_OF:
        told = [pair for run in records.get(name, {}).values() for pair in run.figures.get("understanding", [])]
        if told:
            turns, ndcg = np.array(told).T
            found[name] = _by_number(turns, ndcg, TURNS[1:])
    return found or None


def staleness(records: Records, minutes_of: Mapping[str, int]) -> list[dict[str, Any]] | None:
    """Regret per shown slot, best − expected, by how many minutes each version answered."""
    rows = []
    for name, minutes in sorted(minutes_of.items(), key=lambda named: named[1]):
        regrets = [_per_slot(run, "best") - _per_slot(run, "expected") for run in records.get(name, {}).values()]
        if regrets:
            rows.append({"minutes": minutes, "regret": float(np.mean(regrets)), "interval": interval_of(regrets)})
    return rows if len(rows) > 1 else None


def hostile(attacked: Records, peaceful: Records, flooders: float) -> dict[str, Any] | None:
    """What floods and bait cost everybody else: the share of the oracle that `online` earns of them, with and without."""
    seeds = sorted(attacked.get("online", {}).keys() & peaceful.get("online", {}).keys())
    if not seeds:
        return None
    shares = [(_honest_share(attacked["online"][seed], flooders), _honest_share(peaceful["online"][seed], flooders)) for seed in seeds]
    return {
        "share_of_oracle": float(np.mean([share for share, _ in shares])),
        "share_of_oracle_in_peace": float(np.mean([share for _, share in shares])),
        "cost": float(np.mean([1 - share / calm for share, calm in shares])),
        "gates": gates(attacked["online"]),
    }


def label_flip(lied_to: Records, honest: Records, first: int, minutes: int) -> dict[str, dict[str, Any]] | None:
    """What `minutes` of reversed feedback from `first` on cost, by variant, against `online` in the same world that tells the truth.

    How many of those minutes were learned; the share of the oracle lost in the quarter of an hour from the first on, when an operator
    may go back, and in the quarter and the hour after that.
    """
    found = {}
    for name, by_seed in lied_to.items():
        pairs = [(run, honest["online"][seed]) for seed, run in by_seed.items() if seed in honest.get("online", {})]
        if pairs and "refused" in pairs[0][0].figures:
            refused = [{minute for minute, _ in run.figures["refused"] if first <= minute < first + minutes} for run, _ in pairs]
            found[name] = {
                "minutes_learned": float(np.mean([minutes - len(of_run) for of_run in refused])),
                "cost_meanwhile": _cost(pairs, first, first + 15),
                "cost_in_the_quarter_after": _cost(pairs, first + 15, first + 30),
                "cost_in_the_hour_after": _cost(pairs, first + 15, first + 75),
            }
    return found or None


def _cost(pairs: Sequence[tuple[Record, Record]], first: int, last: int) -> float:
    """Share of what the second of each pair earns, of the oracle's, that the first does not."""
    return float(np.mean([1 - _share(one, _when(one, first, last)) / _share(other, _when(other, first, last)) for one, other in pairs]))


def forgetting(records: Records, minutes: int, away: float) -> dict[str, Any] | None:
    """Share of the oracle of who is away from an eighth of the run to its seventh: before, and in the half hour after; and the others."""
    runs = list(records.get("online", {}).values())
    if not runs:
        return None
    gone, back = minutes // 8, minutes * 7 // 8
    found: dict[str, Any] = {}
    for name, first, last, is_away in (
        ("before", gone // 2, gone, True),
        ("on_return", back, back + 30, True),
        ("others_then", back, back + 30, False),
    ):
        found[name] = float(np.mean([_share(run, _when(run, first, last) & (_away(run, away) == is_away)) for run in runs]))
    return found | {"change": found["on_return"] / found["before"] - 1}


def _newcomers(runs: list[Record]) -> dict[str, float | None]:
    """By turns before: users who were not there in the first minutes."""
    found = {}
    for first, last in TURNS:
        chosen = [(run, _is_newcomer(run) & (run["turn"] >= first) & (run["turn"] <= last)) for run in runs]
        best = sum(float(run["best"][rows].sum()) for run, rows in chosen)
        expected = sum(float(run["expected"][rows].sum()) for run, rows in chosen)
        found[_named(first, last)] = expected / best if best else None
    return found


def _is_newcomer(run: Record) -> Array:
    """By decision: whether its user was first seen after the first eighth of the run."""
    first_seen = np.full(len(run.user_ids), np.inf)
    np.minimum.at(first_seen, run["user"].astype(np.int64), run["minute"])
    return np.asarray(first_seen[run["user"].astype(np.int64)] > run["minute"].max() / 8)


def _new_items(runs: list[Record]) -> dict[str, Any]:
    """Exposures of new items by their age, and when half of the settled rate was reached."""
    ages = np.concatenate([run["shown_minute"] - run["arrived_minute"] for run in runs])
    lives = np.concatenate([run["minute"].max() - run["arrived_minute"][np.isnan(run["shown_minute"])] for run in runs])
    if not lives.size:
        return {"arrived": 0, "rate_by_age": [], "settled_rate": None, "minutes_to_half": None}
    horizon = int(lives.max()) + 1
    shown = np.bincount(ages[np.isfinite(ages)].astype(np.int64), minlength=horizon)[:horizon]
    observed = (lives[:, None] >= np.arange(horizon)).sum(0)
    rate = shown / np.maximum(observed, 1)
    late = slice(SETTLED_MINUTES, max(SETTLED_MINUTES + 1, horizon))
    settled = float(shown[late].sum() / observed[late].sum()) if observed[late].sum() else None
    smooth = np.convolve(rate, np.ones(3) / 3, "same")
    reached = np.flatnonzero(smooth[1:] >= settled / 2) if settled else np.zeros(0, np.int64)
    return {
        "arrived": int(lives.size),
        "rate_by_age": rate[:SETTLED_MINUTES].tolist(),
        "settled_rate": settled,
        "minutes_to_half": int(reached[0]) + 1 if reached.size else None,
    }


def _by_exposures(runs: list[Record]) -> dict[str, float | None]:
    """What exposures of new items were expected to earn, by those that the item had had before."""
    before, earned = [], []
    for run in runs:
        shown = np.flatnonzero(np.isfinite(run["shown_minute"]))
        shown = shown[np.argsort(run["arrival"][shown], kind="stable")]  # of one item in order of time
        item = run["arrival"][shown]
        before.append(np.arange(len(item)) - np.searchsorted(item, item))
        earned.append(run["expected_reward"][shown])
    return _by_number(np.concatenate(before), np.concatenate(earned), TURNS)


def _honest_share(run: Record, flooders: float) -> float:
    return _share(run, ~flooders_of(run.user_ids, flooders)[run["user"].astype(np.int64)])


def _away(run: Record, share: float) -> Array:
    """By decision: whether its user is one of those who go away."""
    away = np.array([hash_share(f"away {user_id}") < share for user_id in run.user_ids], bool)
    return np.asarray(away[run["user"].astype(np.int64)])


def _when(run: Record, first: int, last: int) -> Array:
    return np.asarray((run["minute"] >= first) & (run["minute"] < last))


def _share(run: Record, rows: Array) -> float:
    return float(run["expected"][rows].sum() / run["best"][rows].sum())


def _per_slot(run: Record, name: str) -> float:
    return float(run[name].sum() / run["slots"].sum())


def _mean(values: Array) -> float | None:
    return float(values.mean()) if values.size else None


def _by_number(number: Array, values: Array, spans: Sequence[tuple[int, int]]) -> dict[str, float | None]:
    """Means of values, by the turns that their users, or the exposures that their items, had had."""
    return {_named(first, last): _mean(values[(number >= first) & (number <= last)]) for first, last in spans}


def _named(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
