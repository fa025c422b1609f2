"""`recsys simulate`: it parses, calls and prints; the work is done beside it."""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from recsys.options import AsJson, Seed, Settings, about
from recsys.presets import Preset, configured
from recsys.simulate.battery import Plan, played
from recsys.simulate.measures import world_figures
from recsys.simulate.variants import VARIANTS
from recsys.simulate.worlds import WORLDS, population

MEASURED = ("adaptation", "understanding", "second_try", "staleness", "credit", "hostile", "forgetting")


def simulate(
    world: Annotated[str, typer.Option(help=f"{', '.join(WORLDS)}, all, or package.module:function.")] = "drift",
    hours: Annotated[float, typer.Option(min=0.05, max=10_000, help="World hours; a world day is four.")] = 8,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="How many seeds, from --seed on.")] = 1,
    variants: Annotated[str, typer.Option(help=f"Of {', '.join(VARIANTS)}.")] = ",".join(VARIANTS),
    seed: Seed = 0,
    preset: Preset = "small",
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="Where finished runs are kept; they are not made again.")] = Path("runs/simulate"),
    as_json: AsJson = False,
) -> None:
    """Variants against the same world, each with its own log, state and twin population."""
    started = time.perf_counter()
    config = configured(preset, settings)
    names = list(WORLDS) if world == "all" else [world]
    minutes = round(hours * 60)
    found: dict[str, Any] = {}
    for name in names:
        plan = Plan(
            population=population(name), config=config, minutes=minutes, seeds=range(seed, seed + seeds), variants=variants.split(",")
        )
        found[name] = {"world": name} | world_figures(played(plan, out), minutes) | dict.fromkeys(MEASURED)
        _tell(found[name])
    figures: dict[str, Any] = {"world": "all", "worlds": found} if world == "all" else found[world]
    if as_json:
        typer.echo(json.dumps(figures | {"report": None} | about(seed) | {"seconds": time.perf_counter() - started}))


def _tell(figures: dict[str, Any]) -> None:
    """One world as a table on standard error."""
    typer.echo(f"{figures['world']}, {figures['minutes']} minutes, {len(figures['per_seed'])} seeds", err=True)
    for name, variant in sorted(figures["variants"].items(), key=lambda named: -(named[1]["reward"] or 0)):
        shares = [variant["share_of_oracle"], variant["share_of_oracle_last_quarter"]]
        told = "".join("" if share is None else f"  {share:.3f}" for share in shares)
        typer.echo(f"  {name:13} {variant['reward']:.4f} per shown slot; of the oracle, in all and in the last quarter:{told}", err=True)
    gap = figures["gap"]
    if gap is not None:
        typer.echo(f"  gap {gap['mean']:+.4f}, slope per hour {gap['slope_per_hour']} {gap['slope_interval']}", err=True)
