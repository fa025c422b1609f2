"""`recsys simulate`: it parses, calls and prints; the work is done beside it."""

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from recsys.config import as_json as config_json
from recsys.options import AsJson, Seed, Settings, about
from recsys.presets import Preset, configured
from recsys.simulate.page import write_page
from recsys.simulate.variants import STALE, VARIANTS
from recsys.simulate.whole import one_world, whole_battery
from recsys.simulate.worlds import WORLDS


def simulate(
    world: Annotated[str, typer.Option(help=f"{', '.join(WORLDS)}, all, or package.module:function.")] = "drift",
    hours: Annotated[float, typer.Option(min=0.05, max=10_000, help="World hours; a world day is four.")] = 8,
    seeds: Annotated[int | None, typer.Option(min=1, max=1000, help="How many, from --seed on; else 1, and 3 or 5 for `all`.")] = None,
    variants: Annotated[str, typer.Option(help=f"Of {', '.join([*VARIANTS, *STALE])}.")] = ",".join(VARIANTS),
    seed: Seed = 0,
    preset: Preset = "small",
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="Where finished runs are kept; they are not made again.")] = Path("runs/simulate"),
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Seeds that run at a time, each in a process of about 1 GB.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Variants against the same world, each with its own log, state and twin population."""
    started = time.perf_counter()
    config = configured(preset, settings)
    minutes, names = round(hours * 60), variants.split(",")
    if world == "all":
        figures = whole_battery(config, minutes, seed, seeds, names, out, jobs)
    else:
        figures = one_world(world, config, minutes, range(seed, seed + (seeds or 1)), names, out, jobs)
    worlds = figures.get("worlds", {world: figures})
    for told in worlds.values():
        _tell(told)
    figures |= about(seed) | {"seconds": time.perf_counter() - started, "report": str(out / "report.html")}
    page = write_page(figures, worlds, shlex.join(["recsys", *sys.argv[1:]]), config_json(config), out)
    typer.echo(f"report: {page}", err=True)
    if as_json:
        typer.echo(json.dumps(figures))


def _tell(figures: dict[str, Any]) -> None:
    """One world as a table on standard error."""
    typer.echo(f"{figures['world']}, {figures['minutes']} minutes, {len(figures['per_seed'])} seeds", err=True)
    for name, variant in sorted(figures["variants"].items(), key=lambda named: -(named[1]["reward"] or 0)):
        shares = [variant["share_of_oracle"], variant["share_of_oracle_last_quarter"]]
        told = "".join("" if share is None else f"  {share:.3f}" for share in shares)
        typer.echo(f"  {name:13} {variant['reward']:.4f} per shown slot; of the oracle, in all and in the last quarter:{told}", err=True)
    if figures["gates"] is not None:
        typer.echo(
            f"  refused minutes {figures['gates']['minutes_refused'] or 'none'}, slates capped {figures['gates']['slates_capped']}",
            err=True,
        )
    gap = figures["gap"]
    if gap is not None:
        typer.echo(f"  gap {gap['mean']:+.4f}, slope per hour {gap['slope_per_hour']} {gap['slope_interval']}", err=True)
