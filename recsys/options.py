"""What several commands share: options, the directory of a run, what every `--json` object says. Knows nothing of what commands do."""

import json
import resource
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

Seed = Annotated[int, typer.Option(min=0, help="All randomness derives from it.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one setting: learner.trainer.lr=1e-3.")]


def about(seed: int | None) -> dict[str, Any]:
    """The keys that every `--json` object has, but for `seconds`; the seed is None where nothing is drawn."""
    return {"version": version("recsys"), "seed": seed, "threads": torch.get_num_threads(), "peak_rss_mb": peak_rss_mb()}


def peak_rss_mb() -> float:
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fresh_directory(out: Path) -> Path:
    """The state directory of a new run in `out`; removes what an earlier run of ours left there, and nothing else."""
    for name in ("state", "mlflow-artifacts"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("events.db", "events.db-wal", "events.db-shm", "report.html", "report.json", "mlflow.db"):
        (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    return out / "state"


def print_figures(figures: dict[str, Any], seed: int | None, started: float, *, as_json: bool) -> None:
    """Figures for a person on standard error, and all of them with what every such object has as JSON where it was asked for."""
    for name, value in figures.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            typer.echo(f"{name}:", err=True)
            for row in value:
                typer.echo("  " + "  ".join(f"{key} {_short(figure)}" for key, figure in row.items()), err=True)
        elif name != "config":
            typer.echo(f"{name}: {value}", err=True)
    if as_json:
        typer.echo(json.dumps(figures | about(seed) | {"seconds": time.perf_counter() - started}))


def _short(figure: Any) -> str:
    return f"{figure:.4g}" if isinstance(figure, float) else str(figure)
