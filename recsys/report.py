"""What a run of the loop measured, as JSON for programs and one self-contained HTML page for people.

Knows nothing of how a run is made: it gets numbers and writes files. The page asks no other machine for anything.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, Self

import numpy as np
from plotly.offline import get_plotlyjs

from recsys.abtest import Gap, Interval, smoothed

Cell = str | float | None
UNKNOWN = "–"


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Median and 99th percentile of something; None when it was not measured."""

    p50: float | None = None
    p99: float | None = None

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Of the finite numbers in `values`; both None when there is none."""
        finite = [value for value in values if np.isfinite(value)]
        if not finite:
            return cls()
        p50, p99 = np.percentile(finite, [50, 99])
        return cls(p50=float(p50), p99=float(p99))


@dataclass(frozen=True, kw_only=True)
class VariantResult:
    """One variant of the run."""

    reward: float | None
    """Mean reward per shown slot over the whole run; None when nothing was shown."""
    decisions: int
    reward_by_minute: Sequence[float] = ()
    """NaN in a minute without shown slots."""
    slots_by_minute: Sequence[float] = ()
    """Slots really shown."""
    policy_version: int | None = None
    """The version it served last."""


@dataclass(frozen=True, kw_only=True)
class Freshness:
    """Seconds from the append of an event to the swap that serves weights trained on it, and what they are made of (world time)."""

    total_s: Percentiles = Percentiles()
    window_s: Percentiles = Percentiles()
    """W: the attribution window that must close."""
    lateness_s: Percentiles = Percentiles()
    """L: how long late feedback is waited for."""
    disorder_s: Percentiles = Percentiles()
    """D: how far the watermark stays behind the newest Decision or Tick."""
    tick_s: Percentiles = Percentiles()
    """Until a tick moved the watermark far enough."""
    bucket_wait_s: Percentiles = Percentiles()
    """Until the minute bucket of the event was full."""
    compute_s: Percentiles = Percentiles()
    """Wall seconds of update + publish + load: beside the total on a world clock, which stands still meanwhile."""
    by_minute: Sequence[float] = ()
    """Median of the total over the events that reached the served weights in each minute; NaN where none did."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How often the weights moved and what it cost in wall time."""

    num_updates: int | None = None
    num_swaps: int | None = None
    update_s: Percentiles = Percentiles()
    publish_s: Percentiles = Percentiles()
    load_s: Percentiles = Percentiles()
    recommend_ms: Percentiles = Percentiles()


@dataclass(frozen=True, kw_only=True)
class Books:
    """Where every Decision and every Feedback went, and what was refused, by why; balanced when nothing is missing."""

    decisions: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    feedback: Mapping[str, int] = field(default_factory=dict)
    balanced: bool = True


@dataclass(frozen=True, kw_only=True)
class NewItems:
    """How one variant treated the items that arrived during the run."""

    minutes_to_first_exposure: Sequence[float] = ()
    """One number per new item, from its arrival; NaN for an item never shown."""
    share_by_minute: Sequence[float] = ()
    """Of the shown slots, those with an item that arrived during the run; NaN where nothing was shown."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Everything a run of the loop measured. A run of no minutes is one too: then most fields keep their defaults."""

    version: str
    """Of the program."""
    world: str
    seed: int
    minutes: int
    """World minutes done."""
    minutes_planned: int | None = None
    """More than `minutes` when the run was stopped early."""
    decisions: int
    versions_published: int
    variants: Mapping[str, VariantResult]
    reward_unit: str = "reward"
    """What the reward counts, in the plural, for sentences: `clicks`."""
    gap: Gap = field(default_factory=Gap)
    """`online` − `offline`."""
    share_of_oracle: float | None = None
    """Mean reward of `online` over the expected reward of the oracle in the same contexts."""
    freshness: Freshness = Freshness()
    timing: Timing = Timing()
    books: Books = field(default_factory=Books)
    new_items: Mapping[str, NewItems] = field(default_factory=dict)
    """By variant; empty when no item arrived."""
    isolation: str | None = None
    """Which learner learns from whom, in words."""
    weights_digest: str | None = None
    compute_s: float | None = None
    """Wall seconds of deciding, joining, updating and publishing together."""
    compute_parts_s: Mapping[str, float] = field(default_factory=dict)
    seconds: float
    """Wall seconds of the whole run."""
    threads: int
    peak_rss_mb: float | None = None
    configuration: str | None = None
    command: str | None = None
    """Run it again with this."""


def to_json(result: RunResult, report: Path | None = None) -> dict[str, Any]:
    """The object that `recsys loop --json` prints; its keys are a contract. `report`: where the page was written.

    What was not measured is None, never 0; a number that is not finite becomes None too.
    """
    numbers = _members(result)
    numbers["variants"] = {name: _variant_json(variant) for name, variant in result.variants.items()}
    numbers["freshness_s"] = _freshness_json(numbers.pop("freshness"))
    numbers["new_items"] = {name: _new_items_json(items) for name, items in result.new_items.items()} or None
    numbers["report"] = None if report is None else str(report)
    return {name: _plain(value) for name, value in numbers.items()}


def write_report(result: RunResult, directory: Path) -> Path:
    """Write `report.json` and `report.html` (whole or not at all) into `directory`, made if missing; the path of the page."""
    directory.mkdir(parents=True, exist_ok=True)
    page = directory / "report.html"
    numbers = to_json(result, page)
    _write(directory / "report.json", json.dumps(numbers, indent=2, allow_nan=False) + "\n")
    _write(page, _page(result, numbers))
    return page


def headline(result: RunResult) -> str:
    """What the run says, in plain sentences, no surer than its intervals."""
    after = f"After {_minutes(result.minutes, 'world ')}"
    online, offline = (_reward(result, name) for name in ("online", "offline"))
    if online is None or offline is None or result.gap.mean is None:
        return f"{after} there is nothing to compare yet: a gap needs both variants to have shown slots."
    earned = (
        f"{after} the learning variant earns {_number(online)} {result.reward_unit} per shown slot, "
        f"the frozen twin {_number(offline)}: a gap of {_signed(result.gap.mean)}"
    )
    return f"{earned}{_doubt(result.gap.mean_interval)}. {_growth(result.gap)}"


def _reward(result: RunResult, name: str) -> float | None:
    reward = result.variants[name].reward if name in result.variants else None
    return reward if reward is not None and math.isfinite(reward) else None


def _doubt(interval: Interval | None) -> str:
    if interval is None:
        return ""
    no_lead = ", which includes zero, so it may be no gap at all" if interval[0] <= 0 <= interval[1] else ""
    return f" (95 % interval {_span(interval)}{no_lead})"


def _growth(gap: Gap) -> str:
    if gap.slope_per_hour is None or gap.slope_interval is None:
        return "Too few minutes have both variants to say whether it grows."
    interval = _span(gap.slope_interval)
    if gap.slope_interval[0] <= 0 <= gap.slope_interval[1]:
        slope = f"its slope is {_signed(gap.slope_per_hour)} per hour, and the 95 % interval {interval} includes zero"
        return f"Whether it grows can’t be told from this run: {slope}."
    rising, behind = gap.slope_per_hour > 0, gap.mean_interval is not None and gap.mean_interval[1] < 0
    moves = f"The frozen twin’s lead {'shrinks' if rising else 'grows'}" if behind else f"It {'grows' if rising else 'falls'}"
    return f"{moves} by {_fine(abs(gap.slope_per_hour))} per hour (95 % interval of the slope {interval})."


def _variant_json(variant: VariantResult) -> dict[str, Any]:
    slots = variant.slots_by_minute if len(variant.slots_by_minute) else np.ones(len(variant.reward_by_minute))
    return _members(variant) | {"smoothed_by_minute": smoothed(variant.reward_by_minute, slots)}


def _freshness_json(freshness: Freshness) -> dict[str, Any]:
    parts = _members(freshness)
    total, by_minute, compute = (parts.pop(name) for name in ("total_s", "by_minute", "compute_s"))
    return {"p50": total.p50, "p99": total.p99, "by_minute": by_minute, "compute": compute, "parts": parts}


def _new_items_json(items: NewItems) -> dict[str, Any]:
    shown = [minutes for minutes in items.minutes_to_first_exposure if math.isfinite(minutes)]
    counts = {"arrived": len(items.minutes_to_first_exposure), "shown": len(shown)}
    return counts | {"minutes_to_first_exposure": Percentiles.of(shown), "share_by_minute": items.share_by_minute}


def _members(dataclass_object: Any) -> dict[str, Any]:
    """Not `dataclasses.asdict`: its deep copy breaks on a Counter and on a read-only mapping."""
    return {member.name: getattr(dataclass_object, member.name) for member in fields(dataclass_object)}


def _plain(value: Any) -> Any:
    """The same with nothing but what JSON knows: NaN and infinities are None, numpy numbers Python's."""
    if is_dataclass(value):
        return _plain(_members(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _write(path: Path, text: str) -> None:
    """By rename, so that a second Ctrl-C leaves the file before or the file after, never half of one."""
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _page(result: RunResult, numbers: dict[str, Any]) -> str:
    """The HTML: `page.html` with words and tables filled in, the numbers its plots draw, and plotly itself."""
    skeleton = Template(resources.files("recsys").joinpath("page.html").read_text(encoding="utf-8"))
    return skeleton.substitute(
        title=escape(f"{result.world}, {_minutes(result.minutes, '')}, seed {result.seed}"),
        headline=escape(headline(result)),
        notices="".join(f'<p class="notice">{escape(notice)}</p>' for notice in _notices(result)),
        tiles=_tiles(result),
        variants=_variants_table(result.variants),
        new_items=_new_items_table(numbers["new_items"] or {}),
        freshness=_freshness_table(result.freshness),
        timing=_timing_table(result.timing),
        balanced="balanced" if result.books.balanced else "NOT balanced",
        decisions=_books_table("Decisions", result.books.decisions),
        feedback=_books_table("Feedback", result.books.feedback),
        run=_run_table(result),
        configuration=escape(result.configuration or "not recorded"),
        command=escape(result.command or "not recorded"),
        numbers=json.dumps(numbers, allow_nan=False).replace("<", "\\u003c"),  # a name with </script> in it must not end the script
        plotly=get_plotlyjs(),
    )


def _notices(result: RunResult) -> list[str]:
    """What a reader must know before believing anything else."""
    notices = [f"{count} decisions were not learned from, refused for {reason}." for reason, count in result.books.refused.items()]
    if result.minutes_planned is not None and result.minutes < result.minutes_planned:
        notices.append(f"Stopped early: {result.minutes} of {result.minutes_planned} world minutes were run.")
    if not result.books.balanced:
        notices.append("The books do not balance: some decisions or feedback are unaccounted for, so do not trust the figures below.")
    return notices


def _tiles(result: RunResult) -> str:
    gap, freshness = result.gap, result.freshness.total_s
    tiles = [
        ("online", _number(_reward(result, "online")), f"{result.reward_unit} per shown slot"),
        ("offline", _number(_reward(result, "offline")), f"{result.reward_unit} per shown slot"),
        ("gap", _signed(gap.mean), _span(gap.mean_interval)),
        ("gap growth per hour", _signed(gap.slope_per_hour), _span(gap.slope_interval)),
        ("freshness, s", _text(freshness.p50), f"p99 {_text(freshness.p99)}"),
        ("share of the oracle", _number(result.share_of_oracle), "online ÷ oracle"),
    ]
    return "".join(
        f"<div class=tile><span>{escape(name)}</span><strong>{escape(value)}</strong><small>{escape(beside)}</small></div>"
        for name, value, beside in tiles
    )


def _variants_table(variants: Mapping[str, VariantResult]) -> str:
    rows: list[list[Cell]] = [
        [name, _number(v.reward), v.decisions, float(np.nansum(v.slots_by_minute)), v.policy_version] for name, v in variants.items()
    ]
    return _table(["variant", "reward per slot", "decisions", "shown slots", "last version"], rows)


def _new_items_table(new_items: Mapping[str, Any]) -> str:
    rows = [[name, items["arrived"], items["shown"], *items["minutes_to_first_exposure"].values()] for name, items in new_items.items()]
    return _table(["variant", "arrived", "shown", "minutes to first exposure, p50", "p99"], rows)


def _freshness_table(freshness: Freshness) -> str:
    parts = {
        "W, attribution window": freshness.window_s,
        "L, allowed lateness": freshness.lateness_s,
        "D, allowed disorder": freshness.disorder_s,
        "next tick": freshness.tick_s,
        "rest of the minute bucket": freshness.bucket_wait_s,
        "total": freshness.total_s,
        "beside it: compute, wall time": freshness.compute_s,
    }
    return _table(["part, seconds", "p50", "p99"], [[name, part.p50, part.p99] for name, part in parts.items()])


def _timing_table(timing: Timing) -> str:
    steps = {
        "answer a request, ms": timing.recommend_ms,
        "update, s": timing.update_s,
        "publish, s": timing.publish_s,
        "load, s": timing.load_s,
    }
    rows: list[list[Cell]] = [[name, step.p50, step.p99] for name, step in steps.items()]
    return _table(["step", "p50", "p99"], [*rows, ["updates done", timing.num_updates, ""], ["swaps done", timing.num_swaps, ""]])


def _books_table(title: str, accounts: Mapping[str, int]) -> str:
    rows: list[list[Cell]] = [[name, count] for name, count in accounts.items()]
    return _table([title, "count"], [*rows, ["total", sum(accounts.values())]] if rows else [])


def _run_table(result: RunResult) -> str:
    parts = ", ".join(f"{name} {_text(seconds)}" for name, seconds in result.compute_parts_s.items())
    rows: list[list[Cell]] = [
        ["world", result.world],
        ["seed", str(result.seed)],
        ["world minutes", result.minutes],
        ["versions published", result.versions_published],
        ["learns from", result.isolation],
        ["weights digest", result.weights_digest],
        ["compute, s", _text(result.compute_s) + (f" ({parts})" if parts else "")],
        ["whole run, s", result.seconds],
        ["threads", result.threads],
        ["largest memory, MB", result.peak_rss_mb],
        ["program version", result.version],
    ]
    return _table([], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table; a line of words where there are no rows."""
    if not rows:
        return "<p class=nothing>Not measured in this run.</p>"
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    cells = "".join(f"<tr>{''.join(f'<td>{escape(_text(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{names}</tr></thead><tbody>{cells}</tbody></table></div>"


def _text(cell: Cell) -> str:
    """Words as they are; counts, and what is 100 or more, whole; other numbers with three significant digits."""
    if isinstance(cell, str):
        return cell
    if cell is None or not math.isfinite(cell):
        return UNKNOWN
    return f"{cell:,.0f}" if isinstance(cell, int) or abs(cell) >= 100 else f"{cell:.3g}"


def _number(value: float | None) -> str:
    """A reward: three decimals, four for small ones."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return _fine(value) if abs(value) < 0.1 else f"{value:.3f}".replace("-", "−")


def _fine(value: float) -> str:
    """Four decimals and a true minus sign: differences of rewards are small."""
    return f"{value:.4f}".replace("-", "−")


def _signed(value: float | None) -> str:
    return UNKNOWN if value is None else f"{'+' if value >= 0 else ''}{_fine(value)}"


def _span(interval: Interval | None) -> str:
    return "" if interval is None else f"{_signed(interval[0])} to {_signed(interval[1])}"


def _minutes(number: int, what: str) -> str:
    return f"{number} {what}minute{'' if number == 1 else 's'}"
