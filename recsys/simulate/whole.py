"""One world, or the whole battery, as the object that `recsys simulate --json` prints. Knows nothing of how anything is shown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys.config import Config
from recsys.simulate import findings
from recsys.simulate.battery import Plan, play, played
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
    plans = {name: _plan(name, config, minutes, seeds, variants)}
    if name == "hostile":
        plans["peaceful"] = _plan("peaceful", config, minutes, seeds, ["online"])
    elif name == "flipped":
        plans |= {
            "lied to": _plan("flipped", config, minutes, seeds, ["online", *LIED_TO]),
            "honest": _plan("steady", config, minutes, seeds, ["online"]),
        }
    found = _records(plans, out, jobs)
    told = _told(name, found[name], minutes)
    if name == "hostile":
        told["hostile"] = {"flood_and_bait": findings.hostile(found[name], found["peaceful"], FLOODERS)}
    elif name == "flipped":
        told["hostile"] = {"label_flip": _label_flip(found["lied to"], found["honest"])}
    return told


def whole_battery(
    config: Config, minutes: int, first_seed: int, most_seeds: int | None, variants: Sequence[str], out: Path, jobs: int = 1
) -> dict[str, Any]:
    """All worlds with all variants, and the runs that only some figures need. `most_seeds` bounds the seeds of each world."""

    def plan(name: str, number: int, only: Sequence[str]) -> Plan:
        return _plan(name, config, minutes, range(first_seed, first_seed + min(number, most_seeds or number)), only)

    plans = {name: plan(name, number, variants) for name, number in BATTERY.items()}
    plans |= {name: plan(name, FEW, ["online"]) for name in ("peaceful", "absence")}
    plans |= {"flipped": plan("flipped", FEW, ["online", *LIED_TO]), "stale": plan("drift", FEW, ["online", *STALE])}
    tuning_seed = first_seed + TUNING_SEED  # its own, so that nothing is chosen by what is reported
    plans["tried"] = _plan("drift", config, TUNING_MINUTES, [tuning_seed], list(_trials().values()))
    found = _records(plans, out, jobs)
    state_dir = out / "state" / "credit"
    beginning = Beginning.made(population("drift"), config, first_seed, min(minutes, CREDIT_MINUTES), state_dir / "beginning")
    return {
        "world": "all",
        "worlds": {name: _told(name, found[name], minutes) for name in BATTERY},
        "adaptation": findings.adaptation(found["crowd"], found["fresh"]),
        "understanding": findings.understanding(found["steady"]),
        "second_try": findings.second_try(found["steady"]),
        "staleness": findings.staleness(found["stale"], {"online": 1} | STALE),
        "credit": credit(beginning, state_dir),
        "hostile": {
            "flood_and_bait": findings.hostile(found["hostile"], found["peaceful"], FLOODERS),
            "label_flip": _label_flip(found["flipped"], found["steady"]),
        },
        "forgetting": findings.forgetting(found["absence"], minutes, AWAY),
        "budget": _budget(found["tried"], tuning_seed),
    }


def _plan(name: str, config: Config, minutes: int, seeds: Sequence[int], variants: Sequence[str]) -> Plan:
    return Plan(population=population(name), config=config, minutes=minutes, seeds=seeds, variants=variants)


def _records(plans: Mapping[str, Plan], out: Path, jobs: int) -> dict[str, Records]:
    """The runs of each plan, by its name; with several jobs those of all plans are made first, whatever comes next."""
    if jobs > 1:
        play(list(plans.values()), out, jobs)
    return {name: played(plan, out) for name, plan in plans.items()}


def _trials() -> dict[tuple[str, str], str]:
    """The variants that try each setting of `variants.TRIED`, and beside them those that have the presets' own."""
    names = {(variant, setting): trial(variant, place) for variant, tried in TRIED.items() for place, setting in enumerate(tried)}
    return names | {(variant, "as it is"): variant for variant in TRIED}


def _budget(records: Records, seed: int) -> list[dict[str, Any]]:
    """What each setting that was tried earned."""
    return [
        {"variant": variant, "setting": setting, "seed": seed, "reward": Curve.of(records[name][seed], TUNING_MINUTES).mean("reward")}
        for (variant, setting), name in sorted(_trials().items())
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
