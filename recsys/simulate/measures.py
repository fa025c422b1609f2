"""Records of runs in, figures out: rewards, the gap and its slope, the share of the oracle. Knows nothing of how they were made."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys.abtest import Gap, gap_with_slope, interval_of
from recsys.simulate.diary import Array, Record

Records = Mapping[str, Mapping[int, Record]]
"""By variant and seed."""


@dataclass(frozen=True)
class Curve:
    """One variant with one seed, by world minute: shown slots, and per shown slot (NaN without any) the reward, expected and best."""

    slots: Array
    reward: Array
    expected: Array
    best: Array

    @staticmethod
    def of(record: Record, minutes: int) -> "Curve":
        """The minutes of a record."""
        slots = record.by_minute("slots", minutes)
        per_slot = [
            np.divide(record.by_minute(name, minutes), slots, out=np.full(minutes, np.nan), where=slots > 0)
            for name in ("reward", "expected", "best")
        ]
        return Curve(slots, *per_slot)

    def mean(self, name: str, since: int = 0) -> float | None:
        """Per shown slot since a minute; None when nothing was shown or it is not known."""
        weights, values = self.slots[since:], getattr(self, name)[since:]
        known = (weights > 0) & np.isfinite(values)
        return float(np.average(values[known], weights=weights[known])) if known.any() else None

    def share(self, since: int = 0) -> float | None:
        """Expected reward over that of the best slates; None where the world doesn't tell."""
        expected, best = self.mean("expected", since), self.mean("best", since)
        return expected / best if expected is not None and best else None

    def best_known(self) -> Array:
        """Expected rewards where the world tells them, which have no luck in them; else rewards."""
        return self.expected if np.isfinite(self.expected).any() else self.reward


def world_figures(records: Records, minutes: int) -> dict[str, Any]:
    """What came out in one world: the object that `recsys simulate --json` prints, but for what only the caller knows."""
    curves = {name: {seed: Curve.of(record, minutes) for seed, record in by_seed.items()} for name, by_seed in records.items()}
    online = records.get("online", {})
    return {
        "minutes": minutes,
        "decisions": sum(len(record["minute"]) for by_seed in records.values() for record in by_seed.values()),
        "versions_published": _first(online, "versions_published"),
        "variants": {name: _variant(by_seed, records[name], minutes) for name, by_seed in curves.items()},
        "gap": gap_figures(curves, minutes),
        "share_of_oracle": _mean([curve.share() for curve in curves.get("online", {}).values()]),
        "freshness_s": _freshness(online),
        "books": _first(online, "books"),
        "gates": gates(online),
        "weights_digest": _first(online, "weights_digest"),
        "compute_s": sum(sum(record.figures["compute_parts_s"].values()) for by_seed in records.values() for record in by_seed.values()),
        "per_seed": [_seed(curves, records, seed, minutes) for seed in sorted({seed for by_seed in curves.values() for seed in by_seed})],
    }


def gates(runs: Mapping[int, Record]) -> dict[str, Any] | None:
    """Minutes that gates refused, by why, and slates that weighed less for who made them, over all seeds."""
    told = [run.figures for run in runs.values()]
    refused = Counter(reason for figures in told for _, reason in figures["refused"])
    return {"minutes_refused": dict(refused), "slates_capped": sum(figures["capped"] for figures in told)} if told else None


def gap_figures(curves: Mapping[str, Mapping[int, Curve]], minutes: int, other: str = "offline") -> dict[str, Any] | None:
    """Online − another variant. The slope is that of the last three quarters; its interval is over seeds, with one seed within the run."""
    online, against = curves.get("online", {}), curves.get(other, {})
    seeds = sorted(online.keys() & against.keys())
    if not seeds:
        return None
    gaps = [gap_of(online[seed], against[seed]) for seed in seeds]
    late = [gap_of(online[seed], against[seed], minutes // 4) for seed in seeds]
    slopes = [gap.slope_per_hour for gap in late if gap.slope_per_hour is not None]
    one = len(seeds) == 1
    return {
        "mean": _mean([gap.mean for gap in gaps]),
        "mean_interval": gaps[0].mean_interval if one else interval_of([gap.mean for gap in gaps if gap.mean is not None]),
        "slope_per_hour": _mean(slopes),
        "slope_interval": late[0].slope_interval if one else interval_of(slopes),
        "by_minute": _mean_curve([gap.by_minute for gap in gaps]),
    }


def gap_of(online: Curve, other: Curve, since: int = 0) -> Gap:
    """Between two twins from a minute on."""
    return gap_with_slope(online.best_known()[since:], other.best_known()[since:], online.slots[since:], other.slots[since:])


def _variant(by_seed: Mapping[int, Curve], records: Mapping[int, Record], minutes: int) -> dict[str, Any]:
    curves = list(by_seed.values())
    return {
        "reward": _mean([curve.mean("reward") for curve in curves]),
        "decisions": sum(len(record["minute"]) for record in records.values()),
        "reward_by_minute": _mean_curve([curve.reward for curve in curves]),
        "expected_by_minute": _mean_curve([curve.expected for curve in curves]),
        "share_of_oracle": _mean([curve.share() for curve in curves]),
        "share_of_oracle_last_quarter": _mean([curve.share(minutes - minutes // 4) for curve in curves]),
    }


def _seed(curves: Mapping[str, Mapping[int, Curve]], records: Records, seed: int, minutes: int) -> dict[str, Any]:
    there = {name: by_seed[seed] for name, by_seed in curves.items() if seed in by_seed}
    gap = gap_figures({name: {seed: curve} for name, curve in there.items()}, minutes)
    if gap is not None:
        del gap["by_minute"]
    return {
        "seed": seed,
        "variants": {
            name: {
                "reward": curve.mean("reward"),
                "decisions": len(records[name][seed]["minute"]),
                "share_of_oracle": curve.share(),
                "share_of_oracle_last_quarter": curve.share(minutes - minutes // 4),
                "seconds": records[name][seed].figures["seconds"],
            }
            for name, curve in there.items()
        },
        "gap": gap,
        "weights_digest": _first({seed: records["online"][seed]} if seed in records.get("online", {}) else {}, "weights_digest"),
    }


def _freshness(online: Mapping[int, Record]) -> dict[str, float | None]:
    ages_s = [age_s for record in online.values() for age_s in record.figures["freshness_s"]]
    p50, p99 = np.percentile(ages_s, [50, 99]).tolist() if ages_s else (None, None)
    return {"p50": p50, "p99": p99}


def _first(records: Mapping[int, Record], name: str) -> Any:
    """What the run with the first seed said."""
    return records[min(records)].figures.get(name) if records else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _mean_curve(curves: Sequence[Sequence[float] | Array]) -> list[float | None]:
    """The mean over seeds by minute; None where no seed has a value."""
    stacked = np.array(curves, np.float64)
    known = np.isfinite(stacked)
    total = np.where(known, stacked, 0.0).sum(0)
    return [float(value / count) if count else None for value, count in zip(total, known.sum(0), strict=True)]
