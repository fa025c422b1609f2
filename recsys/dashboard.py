"""The live page: what a running loop has done so far, on standard error.

A table that redraws itself on a terminal; one plain line every few world minutes where there is none (CI, a pipe).
Standard output belongs to `--json`. Knows nothing of how the figures come about.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

UNKNOWN = "–"
REDRAW_EVERY_S = 0.1
"""Wall seconds: a redraw costs milliseconds, which a loop of many small turns would feel."""


@dataclass(frozen=True, kw_only=True)
class VariantProgress:
    """One variant so far. Rewards are means per shown slot; None before anything was shown."""

    reward: float | None
    reward_last_10_minutes: float | None
    policy_version: int | None = None
    """Of the weights it serves now; None before its first version."""
    served_weights_age_s: float | None = None
    """Seconds since the newest event inside the served weights; None for weights that saw none."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The state of a run at one moment."""

    world_time_ms: int
    """UTC milliseconds of the world's clock."""
    minutes_done: float
    minutes_total: float
    decisions: int
    elapsed_s: float
    """Wall seconds since the start."""
    variants: Mapping[str, VariantProgress] = field(default_factory=dict)
    gap: float | None = None
    """Online − offline, mean over the whole run."""
    gap_last_10_minutes: float | None = None
    books_balanced: bool | None = None
    """None before the first check."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """Decisions that gates would not have learned, by why."""

    @property
    def decisions_per_s(self) -> float | None:
        """Decisions per wall second since the start; None before any time has passed."""
        return self.decisions / self.elapsed_s if self.elapsed_s > 0 else None

    @property
    def remaining_s(self) -> float | None:
        """Wall seconds to go at the speed so far; None before the first world minute."""
        if self.minutes_done <= 0:
            return None
        return self.elapsed_s / self.minutes_done * max(self.minutes_total - self.minutes_done, 0)


class LiveTable:
    """Shows Progress while the `with` block runs; leaving it, by Ctrl-C too, shows the last one and restores the terminal."""

    def __init__(self, console: Console | None = None, *, minutes_per_line: float = 10) -> None:
        """`console`: standard error by default. `minutes_per_line`: world minutes between two lines off a terminal; above 0."""
        if not minutes_per_line > 0:
            raise ValueError(f"minutes_per_line is {minutes_per_line}; more than 0 world minutes")
        self._console = console or Console(stderr=True)
        # FORCE_COLOR makes rich take a CI log for a terminal, so the stream itself is asked too
        is_terminal = self._console.is_interactive and self._console.file.isatty()
        # stdout is left alone: it is where --json goes, even from inside the block
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False) if is_terminal else None
        self._minutes_per_line = minutes_per_line
        self._newest: Progress | None = None
        self._shown: Progress | None = None

    def __enter__(self) -> Self:
        """Take over the bottom of the terminal, if it is one."""
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Show what came last and give the terminal back."""
        if self._newest is not None and self._newest is not self._shown:
            self._show(self._newest)
        if self._live:
            self._live.stop()

    def update(self, progress: Progress) -> None:
        """Take note of `progress`; cheap unless it is time to show it."""
        self._newest = progress
        if self._is_due(progress):
            self._show(progress)

    def _is_due(self, progress: Progress) -> bool:
        if self._shown is None:
            return True
        if self._live:
            return progress.elapsed_s - self._shown.elapsed_s >= REDRAW_EVERY_S
        return progress.minutes_done // self._minutes_per_line > self._shown.minutes_done // self._minutes_per_line

    def _show(self, progress: Progress) -> None:
        self._shown = progress
        if self._live:
            self._live.update(_page(progress), refresh=True)
        else:
            self._console.out(_line(progress), highlight=False)


def _line(progress: Progress) -> str:
    """One plain line: for logs, so that a run without a terminal is not silent."""
    parts = [f"minute {progress.minutes_done:g}/{progress.minutes_total:g}", f"{progress.decisions} decisions"]
    parts += [f"{name} {_reward(variant.reward)}" for name, variant in progress.variants.items()]
    parts += [f"gap {_signed(progress.gap)} (last 10 min {_signed(progress.gap_last_10_minutes)})"]
    ages = {name: variant for name, variant in progress.variants.items() if variant.served_weights_age_s is not None}
    parts += [f"{name} v{variant.policy_version}, {_duration(variant.served_weights_age_s)} old" for name, variant in ages.items()]
    parts += [
        f"books {_books(progress.books_balanced)}",
        *_refused(progress),
        f"{_rate(progress)} decisions/s",
        _duration(progress.elapsed_s),
    ]
    return " · ".join(parts)


def _page(progress: Progress) -> RenderableType:
    """The live page."""
    head = Table.grid(padding=(0, 2), expand=True)
    head.add_column(no_wrap=True)
    head.add_column(ratio=1)
    head.add_column(no_wrap=True, justify="right")
    head.add_row(
        Text(f"minute {progress.minutes_done:.0f} of {progress.minutes_total:.0f}", style="bold"),
        ProgressBar(total=max(progress.minutes_total, 1e-9), completed=progress.minutes_done),
        f"{_duration(progress.elapsed_s)} gone, {_duration(progress.remaining_s)} to go",
    )
    world_time = datetime.fromtimestamp(progress.world_time_ms / 1000, UTC)
    title = f"recsys loop · {world_time:%Y-%m-%d %H:%M:%S} UTC in the world"
    return Panel(Group(head, Text(), _variants(progress.variants), Text(), _facts(progress)), title=title, title_align="left")


def _variants(variants: Mapping[str, VariantProgress]) -> Table:
    table = Table(box=None, expand=True, header_style="dim", pad_edge=False)
    table.add_column("variant")
    for column in ("reward, last 10 min", "whole run", "policy version", "its newest event"):
        table.add_column(column, justify="right")
    for name, variant in variants.items():
        age_s = variant.served_weights_age_s
        table.add_row(
            Text(name, style="bold"),
            _reward(variant.reward_last_10_minutes),
            _reward(variant.reward),
            UNKNOWN if variant.policy_version is None else str(variant.policy_version),
            UNKNOWN if age_s is None else f"{_duration(age_s)} ago",
        )
    return table


def _facts(progress: Progress) -> Text:
    facts = Text()
    facts.append("gap ", style="dim").append(_signed(progress.gap), style=_colour_of(progress.gap))
    facts.append(" (last 10 min ", style="dim").append(
        _signed(progress.gap_last_10_minutes), style=_colour_of(progress.gap_last_10_minutes)
    )
    facts.append(")   books ", style="dim")
    facts.append(_books(progress.books_balanced), style="bold red" if progress.books_balanced is False else "")
    for refused in _refused(progress):
        facts.append(f"   {refused}", style="yellow")
    facts.append("   decisions ", style="dim").append(f"{progress.decisions:,}")
    facts.append(f" ({_rate(progress)}/s)", style="dim")
    return facts


def _colour_of(gap: float | None) -> str:
    if gap is None or gap == 0:
        return ""
    return "green" if gap > 0 else "red"


def _reward(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:+.3f}"


def _books(balanced: bool | None) -> str:
    if balanced is None:
        return UNKNOWN
    return "balanced" if balanced else "NOT BALANCED"


def _refused(progress: Progress) -> list[str]:
    return [f"refused {count}: {reason}" for reason, count in progress.refused.items()]


def _rate(progress: Progress) -> str:
    return UNKNOWN if progress.decisions_per_s is None else f"{progress.decisions_per_s:.0f}"


def _duration(seconds: float | None) -> str:
    """`8 s`, `2:05` (minutes), `1:02:05` (hours)."""
    if seconds is None:
        return UNKNOWN
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"
