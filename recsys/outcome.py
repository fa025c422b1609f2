"""A finished or interrupted Loop as figures: what the report and `--json` show. Knows nothing of how they are shown."""

from collections.abc import Mapping, Sequence

import numpy as np

from recsys.abtest import gap_with_slope
from recsys.config import as_json
from recsys.dashboard import Progress, VariantProgress
from recsys.loop import LEARN_MS, Loop
from recsys.report import Books, Freshness, NewItems, Percentiles, RunResult, Timing, VariantResult

ISOLATION = "each user is in one variant; the learning variant learns from its own users' decisions only, the frozen one from none"


def progress_of(loop: Loop, minutes_done: int, elapsed_s: float) -> Progress:
    """The state of a run for the live table."""
    tally, since = loop.tally, minutes_done - 10
    variants = {
        name: VariantProgress(
            reward=variant.reward(),
            reward_last_10_minutes=variant.reward(since),
            policy_version=_version(loop, name),
            served_weights_age_s=_age_s(loop, name),
        )
        for name, variant in sorted(tally.variants.items(), reverse=True)
    }
    online, offline = variants.get("online"), variants.get("offline")
    books = loop.books()
    return Progress(
        world_time_ms=loop.clock.now_ms(),
        minutes_done=minutes_done,
        minutes_total=loop.scene.minutes,
        decisions=tally.decisions,
        elapsed_s=elapsed_s,
        variants=variants,
        gap=_difference(online.reward, offline.reward) if online and offline else None,
        gap_last_10_minutes=_difference(online.reward_last_10_minutes, offline.reward_last_10_minutes) if online and offline else None,
        books_balanced=bool(books["balanced"]),
        refused=books["refused"],
    )


def result_of(loop: Loop, minutes_done: int, elapsed_s: float, facts: Mapping[str, object]) -> RunResult:
    """Everything a run measured; `facts` are what only the caller knows: version, threads, command, peak_rss_mb."""
    tally, stats = loop.tally, loop.learner.stats
    variants = {
        name: VariantResult(
            reward=variant.reward(),
            decisions=variant.decisions,
            reward_by_minute=variant.reward_by_minute(minutes_done),
            slots_by_minute=variant.slots_by_minute(minutes_done),
            policy_version=_version(loop, name),
        )
        for name, variant in sorted(tally.variants.items(), reverse=True)
    }
    online, offline = (tally.variants[name] for name in ("online", "offline"))
    gap = gap_with_slope(
        online.reward_by_minute(minutes_done),
        offline.reward_by_minute(minutes_done),
        online.slots_by_minute(minutes_done),
        offline.slots_by_minute(minutes_done),
    )
    parts = {
        "deciding": sum(loop.client.recommend_ms) / 1000,
        "recording": loop.client.record_s,
        "learning": tally.learn_s,
        "loading": sum(tally.load_s),
    }
    books = loop.books()
    return RunResult(
        version=str(facts["version"]),
        world=loop.scene.name,
        seed=loop.seed,
        minutes=minutes_done,
        minutes_planned=loop.scene.minutes,
        decisions=tally.decisions,
        versions_published=loop.learner.policy_version,
        variants=variants,
        reward_unit="clicks",
        gap=gap,
        share_of_oracle=tally.share_of_oracle("online"),
        freshness=_freshness(loop, minutes_done),
        timing=Timing(
            num_updates=stats.num_updates,
            num_swaps=len(tally.load_s),
            update_s=Percentiles.of(stats.update_s),
            publish_s=Percentiles.of(np.add(stats.publish_s, stats.save_s)),
            load_s=Percentiles.of(tally.load_s),
            recommend_ms=Percentiles.of(loop.client.recommend_ms),
        ),
        books=Books(
            decisions=_counts(books["decisions"]),
            refused=books["refused"],
            feedback=_counts(books["feedback"]),
            balanced=books["balanced"],
        ),
        new_items=_new_items(loop, minutes_done),
        isolation=ISOLATION,
        weights_digest=loop.learner.weights_digest(),
        compute_s=sum(parts.values()),
        compute_parts_s=parts,
        seconds=elapsed_s,
        threads=int(str(facts["threads"])),
        peak_rss_mb=float(str(facts["peak_rss_mb"])),
        configuration=as_json(loop.config),
        command=str(facts["command"]),
    )


def _counts(book: Mapping[str, int]) -> dict[str, int]:
    """What became of them; their total is the sum."""
    return {name: count for name, count in book.items() if name != "total"}


def _freshness(loop: Loop, minutes: int) -> Freshness:
    tally, join, stats = loop.tally, loop.config.join, loop.learner.stats
    ages_s = [age_s for ages in tally.freshness_s.values() for age_s in ages]
    waited_s = (join.open_ms + join.disorder_ms) / 1000
    compute_s = [sum(parts) for parts in zip(stats.update_s, list(stats.save_s)[1:], list(stats.publish_s)[1:], tally.load_s, strict=False)]
    return Freshness(
        total_s=Percentiles.of(ages_s),
        window_s=_always(join.window_ms / 1000),
        lateness_s=_always(join.lateness_ms / 1000),
        disorder_s=_always(join.disorder_ms / 1000),
        tick_s=_always(LEARN_MS / 1000),
        bucket_wait_s=Percentiles.of([max(0.0, age_s - waited_s) for age_s in ages_s]),
        compute_s=Percentiles.of(compute_s),
        by_minute=[
            float(np.median(tally.freshness_s[minute])) if tally.freshness_s.get(minute) else float("nan") for minute in range(minutes)
        ],
    )


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else float("nan")


def _always(value_s: float) -> Percentiles:
    return Percentiles(p50=value_s, p99=value_s)


def _new_items(loop: Loop, minutes: int) -> dict[str, NewItems]:
    tally = loop.tally
    if not tally.arrived_ms:
        return {}
    return {
        name: NewItems(
            minutes_to_first_exposure=tally.minutes_to_first_exposure(name),
            share_by_minute=_shares(variant.new_slots, variant.slots, minutes),
        )
        for name, variant in sorted(tally.variants.items(), reverse=True)
    }


def _shares(some: Mapping[int, int], all_of: Mapping[int, int], minutes: int) -> Sequence[float]:
    return [some.get(minute, 0) / all_of[minute] if all_of.get(minute) else float("nan") for minute in range(minutes)]


def _version(loop: Loop, name: str) -> int | None:
    served = loop.server.stats()["variants"].get(name)
    return int(served["policy_version"]) if served else None


def _age_s(loop: Loop, name: str) -> float | None:
    served = loop.server.stats()["variants"].get(name)
    return (loop.clock.now_ms() - int(served["trained_through_ms"])) / 1000 if served and served["trained_through_ms"] else None


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
