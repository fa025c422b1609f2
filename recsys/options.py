"""What several commands share: options, the directory of a run, what every `--json` object says. Knows nothing of what commands do."""

import json
import math
import os
import resource
import shutil
import signal
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from streaming.address import open_log
from streaming.log import EventLog

Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="All randomness derives from it.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one setting: learner.trainer.lr=1e-3.")]

LogUrl = Annotated[str, typer.Option("--log", help="sqlite:///PATH, kafka://HOST:PORT/TOPIC or memory:")]
State = Annotated[Path, typer.Option(help="Directory of versions and checkpoints.")]
AcceptGap = Annotated[bool, typer.Option("--accept-gap", help="Go on where the log does when retention has deleted what comes next.")]
Partitions = Annotated[int, typer.Option(min=1, max=1024, help="Partitions of a new log.")]

RUN_FOLDERS = ("state", "mlflow-artifacts")
RUN_FILES = ("events.db", "events.db-wal", "events.db-shm", "report.html", "report.json", "mlflow.db")
RUN_MARK = "RUN"
LONGEST_LIST = 12
"""A longer one is for programs to read, not for people."""


def opened(
    url: str, suffix: str = "", partitions: int = 4, timeout_s: float = 10, *, lasting: bool = True, existing: bool = False
) -> EventLog:
    """The log at `url`, with the RECSYS_KAFKA_* settings of the environment.

    ValueError where it must be `lasting` and is this process's memory; where it must be `existing` nothing is made (see `open_log`).
    """
    if lasting and url == "memory:":
        raise ValueError("--log memory: would be gone when this ends; name a file or a topic")
    security = {name.removeprefix("RECSYS_KAFKA_").lower(): value for name, value in os.environ.items() if name.startswith("RECSYS_KAFKA_")}
    return open_log(url, suffix, partitions, kafka_security=security or None, timeout_s=timeout_s, existing=existing)


def stop_on_signals() -> threading.Event:
    """Set at SIGTERM and SIGINT, so that a component is never left in the middle of a step; a second Ctrl-C ends it at once."""
    stop = threading.Event()

    def ask(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, ask)
    return stop


def about(seed: int | None) -> dict[str, Any]:
    """The keys that every `--json` object has, but for `seconds`; the seed is None where nothing is drawn."""
    return {"version": version("recsys"), "seed": seed, "threads": torch.get_num_threads(), "peak_rss_mb": peak_rss_mb()}


def peak_rss_mb() -> float:
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fresh_directory(out: Path) -> Path:
    """The state directory of a new run in `out`; removes what an earlier run of ours left there, and nothing else.

    FileExistsError where such things are there and no run of ours has said that it made them: `serve` and `learn` name theirs alike.
    """
    there = [name for name in (*RUN_FOLDERS, *RUN_FILES) if (out / name).exists()]
    if there and not (out / RUN_MARK).exists():
        raise FileExistsError(f"{out} holds {', '.join(there)}, and no {RUN_MARK}, which a run leaves: give another --out, or remove them")
    for name in RUN_FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    for name in RUN_FILES:
        (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / RUN_MARK).write_text("A run writes here; the next one removes what it leaves.\n")
    return out / "state"


def print_figures(figures: dict[str, Any], seed: int | None, started: float, *, as_json: bool) -> None:
    """Figures for a person on standard error, and all of them with what every such object has as JSON where it was asked for."""
    for name, value in figures.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            typer.echo(f"{name}:", err=True)
            for row in value:
                typer.echo("  " + "  ".join(f"{key} {_short(figure)}" for key, figure in row.items()), err=True)
        elif name != "config":
            typer.echo(f"{name}: {_short(value)}", err=True)
    if as_json:
        said = figures | about(seed) | {"seconds": time.perf_counter() - started}
        typer.echo(json.dumps(_measured(said), allow_nan=False))


def _measured(figure: Any) -> Any:
    """With None where a number is none: what was not measured."""
    if isinstance(figure, dict):
        return {name: _measured(value) for name, value in figure.items()}
    if isinstance(figure, list | tuple):
        return [_measured(value) for value in figure]
    return None if isinstance(figure, float) and not math.isfinite(figure) else figure


def _short(figure: Any) -> str:
    """As a person reads it; of a long series, how long it is."""
    if isinstance(figure, dict):
        return "{" + ", ".join(f"{key} {_short(value)}" for key, value in figure.items()) + "}"
    if isinstance(figure, list):
        return f"[{len(figure)} numbers]" if len(figure) > LONGEST_LIST else "[" + ", ".join(map(_short, figure)) + "]"
    return f"{figure:.4g}" if isinstance(figure, float) else str(figure)
