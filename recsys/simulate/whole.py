"""One world, or the whole battery, as the object that `recsys simulate --json` prints. Knows nothing of how anything is shown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recsys.config import Config
from recsys.simulate import findings
from recsys.simulate.battery import Plan, played
from recsys.simulate.credit import credit
from recsys.simulate.measures import Curve, Records, world_figures
from recsys.simulate.stage import Beginning
from recsys.simulate.variants import LIED_TO, STALE, TRIED, trial
from recsys.simulate.worlds import AWAY, BATTERY, FLIPPED_FROM, FLIPPED_MINUTES, FLOODERS, population

CREDIT_MINUTES = 30
TUNING_MINUTES, TUNING_SEED = 120, 1000
FEW = 3
"""Seeds of what only `online` is run for."""
MEASURED = ("adaptation", "understanding", "second_try", "staleness", "credit", "hostile", "forgetting")


def one_world(
    name: str, config: Config, minutes: int, seeds: Sequence[int], variants: Sequence[str], out: Path, jobs: int = 1
) -> dict[str, Any]:
    """What came out in one world, and what it says of learning; null for what this world can't tell."""

    def records(world: str, only: Sequence[str]) -> Records:
        return played(Plan(population=population(world), config=config, minutes=minutes, seeds=seeds, variants=only, jobs=jobs), out)

    told = _told(name, found := records(name, variants), minutes)
    if name == "hostile":
        told["hostile"] = {"flood_and_bait": findings.hostile(found, records("peaceful", ["online"]), FLOODERS)}
    elif name == "flipped":
        told["hostile"] = {"label_flip": _label_flip(records("flipped", ["online", *LIED_TO]), records("steady", ["online"]))}
    return told


def whole_battery(
    config: Config, minutes: int, first_seed: int, most_seeds: int | None, variants: Sequence[str], out: Path, jobs: int = 1
) -> dict[str, Any]:
    """All worlds with all variants, and the runs that only some figures need. `most_seeds` bounds the seeds of each world."""

    def records(name: str, number: int, only: Sequence[str]) -> Records:
        seeds = range(first_seed, first_seed + min(number, most_seeds or number))
        return played(Plan(population=population(name), config=config, minutes=minutes, seeds=seeds, variants=only, jobs=jobs), out)

    found = {name: records(name, number, variants) for name, number in BATTERY.items()}
    stale = records("drift", FEW, ["online", *STALE])
    peaceful, absence = records("peaceful", FEW, ["online"]), records("absence", FEW, ["online"])
    flipped = records("flipped", FEW, ["online", *LIED_TO])
    state_dir = out / "state" / "credit"
    beginning = Beginning.made(population("drift"), config, first_seed, min(minutes, CREDIT_MINUTES), state_dir / "beginning")
    return {
        "world": "all",
        "worlds": {name: _told(name, of, minutes) for name, of in found.items()},
        "adaptation": findings.adaptation(found["crowd"], found["fresh"]),
        "understanding": findings.understanding(found["steady"]),
        "second_try": findings.second_try(found["steady"]),
        "staleness": findings.staleness(stale, {"online": 1} | STALE),
        "credit": credit(beginning, state_dir),
        "hostile": {
            "flood_and_bait": findings.hostile(found["hostile"], peaceful, FLOODERS),
            "label_flip": _label_flip(flipped, found["steady"]),
        },
        "forgetting": findings.forgetting(absence, minutes, AWAY),
        "budget": tuning(config, first_seed, out),
    }


def tuning(config: Config, first_seed: int, out: Path) -> list[dict[str, Any]]:
    """What each setting of `variants.TRIED` earned, in `drift` for two hours, with a seed of its own; the presets' own settings beside."""
    seed = first_seed + TUNING_SEED
    names = {(variant, setting): trial(variant, place) for variant, tried in TRIED.items() for place, setting in enumerate(tried)}
    names |= {(variant, "as it is"): variant for variant in TRIED}
    plan = Plan(population=population("drift"), config=config, minutes=TUNING_MINUTES, seeds=(seed,), variants=list(names.values()))
    records = played(plan, out)
    return [
        {"variant": variant, "setting": setting, "seed": seed, "reward": Curve.of(records[name][seed], TUNING_MINUTES).mean("reward")}
        for (variant, setting), name in sorted(names.items())
    ]


def _label_flip(lied_to: Records, honest: Records) -> dict[str, Any] | None:
    return findings.label_flip(lied_to, honest, FLIPPED_FROM, FLIPPED_MINUTES)


def _told(name: str, records: Records, minutes: int) -> dict[str, Any]:
    return {
        "world": name,
        **world_figures(records, minutes),
        **dict.fromkeys(MEASURED),
        "adaptation": findings.adaptation(records if name == "crowd" else {}, records if name == "fresh" else {}),
        "understanding": findings.understanding(records),
        "second_try": findings.second_try(records),
        "staleness": findings.staleness(records, {"online": 1} | STALE),
        "forgetting": findings.forgetting(records, minutes, AWAY) if name == "absence" else None,
    }
