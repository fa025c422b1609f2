"""`recsys bench …`: one small function a command. It parses, calls and prints; the work is done beside it."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from recsys.bench.loop import bench_loop
from recsys.loop import sample_scene
from recsys.options import AsJson, Seed, Settings, about, fresh_directory

bench = typer.Typer(help="What it costs and how well it ranks, in figures.", no_args_is_help=True)


@bench.command("loop")
def loop(
    seconds: Annotated[float, typer.Option(min=5, help="How long requests are timed while a learner runs beside.")] = 60,
    seed: Seed = 0,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="Directory of this run; emptied of an earlier run.")] = Path("runs/bench-loop"),
    as_json: AsJson = False,
) -> None:
    """Warm start, Recommend while a learner runs in another process, and from feedback to served weights."""
    fresh_directory(out)
    started = time.perf_counter()
    figures = bench_loop(sample_scene(60, seed), out, seed, seconds, settings or [])
    for name, value in figures.items():
        typer.echo(f"{name}: {value}", err=True)
    print_json(figures, seed, started, as_json=as_json)


def print_json(figures: dict[str, Any], seed: int | None, started: float, *, as_json: bool) -> None:
    """The figures and what every such object has, where it was asked for."""
    if as_json:
        typer.echo(json.dumps(figures | about(seed) | {"seconds": time.perf_counter() - started}))
