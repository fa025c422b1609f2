"""Variants against worlds: twins, what stands still in whom, runs that are kept, and worlds that somebody brings."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from models.successors import ACT
from recsys.abtest import interval_of
from recsys.catalogue import Catalogue, item_key
from recsys.cli import app
from recsys.config import with_settings
from recsys.features import Lesson
from recsys.live_model import ItemsFeed
from recsys.memory import View
from recsys.policy import GenerativePolicy
from recsys.presets import tiny
from recsys.simulate.battery import Plan, play, played
from recsys.simulate.cascade import Recall
from recsys.simulate.diary import COLUMNS, Record
from recsys.simulate.measures import Records, gap_figures, world_figures
from recsys.simulate.stage import Beginning
from recsys.simulate.understanding import ranked
from recsys.simulate.variants import VARIANTS
from recsys.simulate.worlds import Population, population
from recsys.truth import toy_truth
from recsys.worlds import SimulatedWorld, World, WorldConfig
from streaming.events import Decision
from tests.running import started

MINUTES = 10
FOREIGN = "tests.foreign_world:make_world"


def toy(seed: int, minutes: int) -> World:
    config = WorldConfig(seed=seed, minutes=minutes, decisions_per_minute=40, organic_per_minute=5, slate_size=5, new_items=0.2)
    return SimulatedWorld(toy_truth(), config)


def plan(variants: list[str], seeds: tuple[int, ...] = (0,), world: Population | None = None) -> Plan:
    world = world or Population(name="toy", twin=toy)
    return Plan(population=world, config=tiny(), minutes=MINUTES, seeds=seeds, variants=variants)


def catalogue_of(beginning: Beginning) -> Catalogue:
    catalogue, feed = Catalogue(), ItemsFeed(beginning.items_log, 0)
    feed.read()
    feed.apply_up_to(1 << 60, catalogue)
    return catalogue


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("simulate")


@pytest.fixture(scope="module")
def records(out: Path) -> Records:
    return played(plan(list(VARIANTS)), out)


def test_all_variants_meet_the_same_population(records: Records) -> None:
    first = records["random"][0]
    for name, by_seed in records.items():
        assert by_seed[0].user_ids == first.user_ids, name
        for column in ("minute", "user", "turn", "slots"):
            assert np.array_equal(by_seed[0][column], first[column]), (name, column)


def test_nobody_is_above_the_oracle_and_luck_is_shared(records: Records) -> None:
    for name, by_seed in records.items():
        assert (by_seed[0]["expected"] <= by_seed[0]["best"] + 1e-9).all(), name
    oracle = records["oracle"][0]
    assert np.allclose(oracle["expected"], oracle["best"])
    assert oracle["reward"].sum() > 1.5 * records["random"][0]["reward"].sum()


def test_a_ranking_holds_no_luck(tmp_path: Path) -> None:
    """Users of whom nothing is known are ranked alike to the last place, and each item stands in it once."""
    beginning = Beginning.made(Population(name="toy", twin=toy), tiny(), 0, MINUTES, tmp_path)
    catalogue, artifact = catalogue_of(beginning), beginning.artifact()
    nobody = View(*(np.zeros(0, np.int64) for _ in range(3)))
    with torch.no_grad():  # the last is not as likely as the first by far: at a temperature near 0 its chance is less than a float can say
        artifact.decoder.leaf_bias.copy_(torch.arange(artifact.decoder.capacity, dtype=torch.float32))
    policy = GenerativePolicy(artifact, tiny().drawing)
    first, *others = ranked(policy, catalogue, ["a", "b", "c"], [nobody] * 3, len(catalogue.item_ids))
    assert others == [first, first]
    assert sorted(first) == sorted(artifact.item_ids)


def test_what_stands_still_stands_still(records: Records) -> None:
    """Before anything is learned or remembered, the four of one model are one; then they part."""
    four = [records[name][0]["expected"] for name in ("online", "offline", "memory_only", "weights_only")]
    minute = records["online"][0]["minute"]
    assert all(np.array_equal(one[:3], four[0][:3]) for one in four)
    assert np.array_equal(four[0][minute < 1], four[2][minute < 1])
    assert np.array_equal(four[1][minute < 1], four[3][minute < 1])
    assert not any(np.array_equal(four[0], one) for one in four[1:])
    assert records["online"][0].figures["versions_published"] > MINUTES - 5


def test_learning_is_worth_something(records: Records) -> None:
    late = {name: by_seed[0]["expected"][by_seed[0]["minute"] >= MINUTES - 5].sum() for name, by_seed in records.items()}
    assert late["online"] > late["offline"]
    assert min(late["popular"], late["linucb"]) > late["random"]


def test_a_recall_hands_on_what_its_users_took(out: Path) -> None:
    beginning = Beginning.made(Population(name="toy", twin=toy), tiny(), 0, MINUTES, out / "recall")
    catalogue = catalogue_of(beginning)
    texts = catalogue.texts(range(1, len(catalogue.item_ids) + 1))
    group = {text.item_id: text.title[0] for text in texts}
    nobody = View(*(np.zeros(0, np.int64) for _ in range(3)))
    taken = [View(np.array([item_key(item_id)]), np.array([ACT]), np.array([0])) for item_id in catalogue.item_ids]
    lessons = [
        Lesson(Decision(user_id="u"), view, (other,), (1.0,), (True,), (0.0,), own=False)
        for item_id, view in zip(catalogue.item_ids, taken, strict=True)
        for other in catalogue.item_ids
        if group[other] == group[item_id]
    ]
    recall = Recall(texts, lessons, seed=0)
    found = recall.find(taken[0], catalogue, number=10)
    assert sum(group[item_id] == group[catalogue.item_ids[0]] for item_id in found) >= 8
    assert len(set(recall.find(nobody, catalogue, number=1000))) == len(catalogue.item_ids)


def test_the_same_run_is_made_again_to_the_bit(records: Records, tmp_path: Path) -> None:
    again = played(plan(["online"]), tmp_path)["online"][0]
    for column in COLUMNS:
        assert np.array_equal(again[column], records["online"][0][column], equal_nan=True), column
    assert again.figures["weights_digest"] == records["online"][0].figures["weights_digest"]


def test_a_finished_run_is_kept_and_a_changed_one_made_anew(out: Path, records: Records) -> None:
    path = out / "runs" / f"toy-{MINUTES}-0-random.npz"
    before = path.read_bytes()
    assert np.array_equal(played(plan(["random"]), out)["random"][0]["reward"], records["random"][0]["reward"])
    assert path.read_bytes() == before
    kept = Record.load(path)
    Record(kept.columns, kept.user_ids, dict(kept.figures) | {"behavior_digest": "another"}).save(path)
    played(plan(["random"]), out)
    assert Record.load(path).figures["behavior_digest"] != "another"
    Record({name: kept[name] for name in COLUMNS}, kept.user_ids, kept.figures).save(path)  # as before there were the others
    played(plan(["random"]), out)
    assert Record.load(path).columns.keys() == kept.columns.keys()


@pytest.mark.parametrize("left", [b"", b"random bytes", b"PK\x03\x04 the beginning of one"])
def test_a_kept_run_that_is_damaged_is_made_again(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "run.npz").write_bytes(left)
    assert Record.kept(tmp_path / "run.npz", "behavior_digest", "any") is None


def test_seeds_in_processes_of_their_own_give_the_same(tmp_path: Path) -> None:
    alone = plan(["online", "random"], seeds=(0, 1), world=population(FOREIGN))
    play([alone, replace(alone, seeds=(0,), variants=["random", "popular"])], tmp_path / "both", jobs=2)
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "both" / "runs").iterdir()}
    assert len(made) == 5  # what two plans want is made once
    one, both = played(alone, tmp_path / "one"), played(alone, tmp_path / "both")
    assert made == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "both" / "runs").iterdir()}
    for name, seed in ((name, seed) for name in alone.variants for seed in alone.seeds):
        assert np.array_equal(one[name][seed]["reward"], both[name][seed]["reward"])
        assert one[name][seed].figures.get("weights_digest") == both[name][seed].figures.get("weights_digest")


def test_processes_end_with_the_one_that_began_them(tmp_path: Path) -> None:
    options = ("--world", FOREIGN, "--hours", "10", "--seeds", "2", "--jobs", "2", "--out", str(tmp_path))
    with started("simulate", *options) as original:
        try:
            begun = tmp_path / "state"
            while not begun.exists() or len(list(begun.iterdir())) < 2:
                assert original.returncode is None
                time.sleep(0.1)
            offspring = Path(f"/proc/{original.pid}/task/{original.pid}/children").read_text().split()
            assert len(offspring) >= 2
        finally:
            original.kill()
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in offspring):
        assert time.monotonic() < deadline, "they go on without their parent"
        time.sleep(0.1)


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_figures_of_several_seeds(out: Path, records: Records) -> None:
    both = played(plan(["online", "offline"], seeds=(0, 1)), out)
    assert np.array_equal(both["online"][0]["reward"], records["online"][0]["reward"])
    figures = world_figures(both, MINUTES)
    gaps = [seed["gap"]["mean"] for seed in figures["per_seed"]]
    assert figures["gap"]["mean"] == pytest.approx(np.mean(gaps))
    low, high = figures["gap"]["mean_interval"]
    assert low < figures["gap"]["mean"] < high
    assert len(figures["gap"]["by_minute"]) == MINUTES
    rewards = [seed["variants"]["online"]["reward"] for seed in figures["per_seed"]]
    assert figures["variants"]["online"]["reward"] == pytest.approx(np.mean(rewards))
    assert gap_figures({}, MINUTES) is None
    assert figures["gates"]["minutes_refused"] == {}


def test_intervals_are_those_of_student() -> None:
    low, high = interval_of([1.0, 2.0, 3.0]) or (0.0, 0.0)
    assert (low, high) == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)
    assert interval_of([1.0]) is None


def test_a_foreign_world_works_unchanged(tmp_path: Path) -> None:
    records = played(plan(["online", "random"], world=population(FOREIGN)), tmp_path)
    figures = world_figures(records, MINUTES)
    assert figures["share_of_oracle"] is None
    assert figures["variants"]["random"]["reward"] == pytest.approx(0.5, abs=0.1)
    late = {name: np.nanmean(np.array(variant["reward_by_minute"][-5:], float)) for name, variant in figures["variants"].items()}
    assert late["online"] > late["random"] + 0.1
    with pytest.raises(ValueError, match="does not say what is true"):
        played(plan(["oracle"], world=population(FOREIGN)), tmp_path)


def test_the_command_prints_the_contract(tmp_path: Path) -> None:
    options = {"world": FOREIGN, "hours": "0.1", "preset": "tiny", "variants": "online,offline", "out": str(tmp_path)}
    result = CliRunner().invoke(app, ["simulate", *(word for name, value in options.items() for word in (f"--{name}", value)), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told.keys() >= {"world", "minutes", "decisions", "versions_published", "variants", "gap", "share_of_oracle", "freshness_s"}
    assert told.keys() >= {"books", "weights_digest", "compute_s", "report", "per_seed", "version", "seed", "threads", "seconds"}
    assert told["variants"]["online"].keys() >= {"reward", "decisions", "reward_by_minute"}
    assert told["gap"].keys() >= {"mean", "slope_per_hour", "slope_interval", "by_minute"}
    assert told["books"]["balanced"]
    page = Path(told["report"]).read_text()
    assert "src=" not in page.partition("<script>")[0]
    assert "offline" in page
    assert json.loads((tmp_path / "report.json").read_text())["world"] == FOREIGN


def test_a_world_that_waits_long_for_feedback_begins_with_a_version(tmp_path: Path) -> None:
    """All of its history has closed when it begins; one whose history ends too late says so."""
    delayed = population("delayed")
    config = with_settings(tiny(), [*delayed.settings, "learner.trainer.warm_start.epochs=0"])
    assert config.join.window_ms == 300_000
    beginning = Beginning.made(delayed, config, 0, MINUTES, tmp_path)
    assert len(beginning.artifact().item_ids) == len(delayed.twin(0, MINUTES).catalog())
    too_long = with_settings(config, ["engine.token_lifetime_ms=3600000", "join.window_ms=1200000"])
    with pytest.raises(ValueError, match=r"history must end 1267 s .* before its first turn"):
        Beginning.made(delayed, too_long, 0, MINUTES, tmp_path)


@pytest.mark.parametrize("world", ["nowhere", "tests.foreign_world:nothing", "no.such.module:make"])
def test_a_world_that_is_not_there_is_named(world: str) -> None:
    with pytest.raises(ValueError, match=world.partition(":")[0]):
        population(world)


def test_a_variant_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="guess"):
        plan(["guess"])
