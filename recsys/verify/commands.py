"""`recsys verify …`: one small function a command. It parses, calls and prints; the work is done beside it."""

import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from recsys.config import with_settings
from recsys.options import AsJson, Seed, Settings, print_figures
from recsys.presets import tiny
from recsys.verify.crash import process_start_s, verify_crash

OURS = ".verify-crash"
"""What marks a directory as that of a run."""

verify = typer.Typer(help="What the project claims of itself, shown by doing it.", no_args_is_help=True)


@verify.callback()
def _group() -> None:
    """A group even while it has one command."""


@verify.command("crash")
def crash(
    kills: Annotated[int, typer.Option(min=1, max=10_000, help="How often the learner is killed.")] = 100,
    log: Annotated[str, typer.Option(help="sqlite, or kafka: a new topic at --bootstrap.")] = "sqlite",
    bootstrap: Annotated[str, typer.Option(help="HOST:PORT of a Kafka broker.")] = "",
    out: Annotated[Path, typer.Option(help="Directory of this run: new, empty, or of an earlier run, which is removed.")] = Path(
        "runs/verify-crash"
    ),
    seed: Seed = 0,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Kill a learner at random and at every point of its saving and publishing; its weights must be those of one that never was."""
    if log not in {"sqlite", "kafka"}:
        raise ValueError(f"--log is {log!r}; it must be sqlite or kafka")
    if (log == "kafka") != bool(bootstrap):
        raise ValueError("--log kafka needs --bootstrap HOST:PORT, and nothing else does")
    started = time.perf_counter()
    config = with_settings(tiny(), settings or [])
    _make_room(out)
    name = f"recsys-verify-crash-{os.getpid()}-{time.time_ns()}"
    url = f"kafka://{bootstrap}/{name}" if bootstrap else f"sqlite:///{(out / 'events.db').resolve()}"
    found = verify_crash(config, url, out.resolve(), kills, seed)
    print_figures(asdict(found) | {"process_start_s": process_start_s()}, seed, started, as_json=as_json)
    if not found.holds:
        raise SystemExit(1)


def _make_room(out: Path) -> None:
    """Remove what an earlier run left in `out`. ValueError where anything else is there."""
    mine = out / OURS
    if out.exists() and not mine.exists() and any(out.iterdir()):
        raise ValueError(f"--out {out} holds what no `verify crash` left there; name a directory that is new or empty")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    mine.touch()
