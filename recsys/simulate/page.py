"""What `recsys simulate` found, as one page that works without a network and one JSON file. Knows nothing of how runs are made."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from recsys.durable import replace_file


def write_page(figures: Mapping[str, Any], worlds: Mapping[str, Any], command: str, configuration: str, directory: Path) -> Path:
    """Write `report.json` and `report.html` into `directory`; the path of the page. `worlds` are figures of single worlds by name."""
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / "report.json", json.dumps(figures, indent=1, allow_nan=False) + "\n")
    skeleton = Template(resources.files("recsys.simulate").joinpath("page.html").read_text(encoding="utf-8"))
    loop_page = resources.files("recsys").joinpath("page.html").read_text(encoding="utf-8")
    curves = {name: {"variants": told["variants"], "gap": told["gap"]} for name, told in worlds.items()}
    page = skeleton.substitute(
        title=escape(", ".join(worlds)),
        style=loop_page.partition("<style>")[2].partition("</style>")[0],
        headline=escape(_headline(worlds)),
        worlds="".join(_world(name, told) for name, told in worlds.items()),
        findings="".join(_finding(name, figures[name]) for name in FINDINGS if figures.get(name)),
        command=escape(command),
        configuration=escape(configuration),
        numbers=json.dumps(curves, allow_nan=False).replace("<", "\\u003c"),
        plotly=get_plotlyjs(),
    )
    replace_file(directory / "report.html", page)
    return directory / "report.html"


FINDINGS: Mapping[str, tuple[str, str]] = {
    "adaptation": (
        "Adaptation",
        "Share of the oracle by the turns a newcomer had before; how soon new items are shown, and their reward by exposures before.",
    ),
    "understanding": ("Understanding", "NDCG of the whole catalogue ranked for users, by the turns they had had."),
    "second_try": (
        "Second try",
        "Share of a slate that the same user’s next one repeats, weights frozen; in the run, and had he wanted none of it.",
    ),
    "staleness": ("Staleness", "Regret per shown slot by how many minutes each version answers."),
    "credit": ("Credit", "Weights from a log, and from the same log with others’ decisions, forged and orphan feedback in it."),
    "hostile": (
        "Hostile",
        "What floods and bait cost everybody else, and what ten minutes of reversed feedback cost, by variant; what the gates refused.",
    ),
    "forgetting": ("Forgetting", "Share of the oracle of users who were away for three quarters of the run."),
    "budget": ("Tuning budget", "Settings that were tried, of ours and of the rivals."),
}


def _headline(worlds: Mapping[str, Any]) -> str:
    parts = []
    for name, told in worlds.items():
        rewards = {variant: of["reward"] for variant, of in told["variants"].items() if variant != "oracle" and of["reward"] is not None}
        if rewards:
            best = max(rewards, key=lambda variant: float(rewards[variant]))
            parts.append(f"{name}: {best} earns most, {rewards[best]:.3f} per shown slot")
    return "; ".join(parts) + "."


def _world(name: str, told: Mapping[str, Any]) -> str:
    rows = sorted(told["variants"].items(), key=lambda named: -(named[1]["reward"] or 0))
    head = ["variant", "reward per shown slot", "of the oracle", "in the last quarter", "decisions"]
    cells = [[variant, of["reward"], of["share_of_oracle"], of["share_of_oracle_last_quarter"], of["decisions"]] for variant, of in rows]
    gap = told["gap"]
    mean, slope, interval = (_text(gap and gap[name]) for name in ("mean", "slope_per_hour", "slope_interval"))
    growth = f"Gap {mean}, slope per hour over the last three quarters {slope}, 95 % {interval}."
    return (
        f'<div class="grid"><section><h2>{escape(name)}</h2><p>{len(told["per_seed"])} seeds, {told["minutes"]} world minutes.</p>'
        f'<div class="plot" id="reward-{escape(name)}"></div></section>'
        f'<section><h2>{escape(name)}: the gap</h2><p>{escape(growth)}</p><div class="plot" id="gap-{escape(name)}"></div></section></div>'
        f'<section class="wide">{_table(head, cells)}</section>'
    )


def _finding(name: str, found: Any) -> str:
    title, what = FINDINGS[name]
    return f'<section class="wide"><h2>{escape(title)}</h2><p>{escape(what)}</p>{_tables(found)}</section>'


def _tables(found: Any, title: str = "") -> str:
    """Nested figures as tables: rows that say the same things become one table."""
    if isinstance(found, list):
        return _table(list(found[0]), [list(row.values()) for row in found])
    flat = {name: value for name, value in found.items() if not isinstance(value, Mapping)}
    nested = {name: value for name, value in found.items() if isinstance(value, Mapping)}
    text = f"<h2 class=second>{escape(title)}</h2>" if title else ""
    if nested and all(not isinstance(value, Mapping) for inner in nested.values() for value in inner.values()):
        names = list(dict.fromkeys(name for inner in nested.values() for name in inner))
        text += _table(["", *names], [[row, *(inner.get(name) for name in names)] for row, inner in nested.items()])
    else:
        text += "".join(_tables(inner, name) for name, inner in nested.items())
    return text + (_table([], [[name, value] for name, value in flat.items()]) if flat else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    names = "".join(f"<th>{escape(str(name))}</th>" for name in head)
    cells = "".join(f"<tr>{''.join(f'<td>{escape(_text(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{names}</tr></thead><tbody>{cells}</tbody></table></div>"


def _text(cell: Any) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    if isinstance(cell, list | tuple):
        return ", ".join(_text(part) for part in cell[:10]) + (", …" if len(cell) > 10 else "")
    return str(cell)
