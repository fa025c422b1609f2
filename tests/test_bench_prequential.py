"""Predict, then learn: what is known when, and the figures against ones worked out by hand."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score
from typer.testing import CliRunner

from models.content import FloatArray
from recsys.bench.prequential import (
    WINDOW_MS,
    Block,
    PrequentialConfig,
    Stream,
    auc,
    log_loss,
    predicted,
    read_stream,
    window_ndcg,
)
from recsys.bench.rates import RATES, SHRINK, RateModel, Shown
from recsys.catalogue import Catalogue
from recsys.cli import app
from recsys.datasets import load_kuairand
from recsys.presets import tiny

MINUTE_MS, DAY_MS = 60_000, 86_400_000
BEGIN_MS = 19_000 * DAY_MS


def write_kuairand(directory: Path, days: int = 2, per_day: int = 120) -> None:
    """Videos 0..9, of which the even ones are clicked; six users, of whom two never click; what they watched before."""
    random = np.random.default_rng(0)
    size = days * per_day
    time_ms = BEGIN_MS + np.sort(random.integers(0, days * DAY_MS, size))
    user, video = random.integers(0, 6, size), random.integers(0, 10, size)
    click = ((video % 2 == 0) & (user < 4)).astype(int)
    zero = np.zeros(size, int)
    log = {"user_id": user, "video_id": video, "time_ms": time_ms, "is_click": click, "is_like": zero, "is_hate": zero}
    log |= {"long_view": click, "play_time_ms": click * 9_000, "duration_ms": zero + 10_000, "tab": zero + 1}
    pl.DataFrame(log).write_parquet(directory / "log_standard_x.parquet")
    videos = {"video_id": np.arange(10), "author_id": np.arange(10) % 3, "video_type": ["NORMAL"] * 10, "upload_type": ["Web"] * 10}
    videos |= {"music_type": np.ones(10), "video_duration": np.full(10, 9_000.0), "tag": ["1,2"] * 10}
    pl.DataFrame(videos).write_parquet(directory / "videos.parquet")
    history = {"user_id": np.arange(7), "last_time_ms": [BEGIN_MS - DAY_MS] * 6 + [BEGIN_MS + DAY_MS], "watch_seq": [[1, 2, 3]] * 7}
    pl.DataFrame(history | {"long_watch_seq": [[3]] * 7}).write_parquet(directory / "history_x.parquet")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("kuairand")
    write_kuairand(directory)
    return directory


def test_the_command_prints_the_contract_and_learning_beats_standing_still(data: Path) -> None:
    arguments = ["bench", "prequential", "--data", str(data), "--days", "2", "--every", "60", "--preset", "tiny", "--json", "--still-users"]
    result = CliRunner().invoke(app, [*arguments, "--set", "learner.trainer.warm_start.epochs=20"])
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    rows = {row["model"]: row for row in figures["rows"]}
    assert set(rows) == {"online", "offline", "daily", "weights_only", "all_still", *RATES}
    assert all(set(row) == {"model", "log_loss", "auc", "ndcg"} for row in rows.values())
    assert {(row["day"], row["model"]) for row in figures["by_day"]} == {(day, name) for day in (0, 1) for name in rows}
    loss = {(row["day"], row["model"]): row["log_loss"] for row in figures["by_day"]}
    blocks = figures["by_block"]
    assert sum(blocks["exposures"]) == figures["exposures"]
    assert all(np.diff(blocks["minute"]) > 0)
    for name, row in rows.items():
        assert np.average(blocks["log_loss"][name], weights=blocks["exposures"]) == pytest.approx(row["log_loss"])
        assert all(value is None or 0 <= value <= 1 for value in blocks["auc"][name])
    assert loss[0, "online"] == loss[0, "offline"]
    assert loss[1, "online"] < loss[1, "offline"]
    for still, live in (("weights_only", "online"), ("all_still", "offline")):  # users stand still from the second day on
        assert loss[0, still] == loss[0, live]
        assert loss[1, still] != loss[1, live]
    assert rows["online"]["auc"] > rows["constant"]["auc"]
    assert rows["constant"]["log_loss"] > rows["tab_item_user"]["log_loss"]


def test_what_was_watched_before_stands_before_the_log_and_nobody_else(data: Path) -> None:
    watched = load_kuairand(data, history=2).interactions.filter(~pl.col("shown"))
    first_ms = load_kuairand(data).interactions["event_time_ms"][0]
    assert sorted(watched["user_id"].unique()) == [str(user) for user in range(6)]  # user 6 has no exposure
    assert watched["event_time_ms"].max() < first_ms
    kinds = watched.select("item_id", kind=pl.col("feedback").list.first().struct.field("kind")).unique().sort("item_id").rows()
    assert kinds == [("2", "watch"), ("3", "long_view")]


def test_a_stream_holds_each_exposure_once_with_the_memory_of_its_time(data: Path) -> None:
    stream = read_stream(load_kuairand(data), tiny(), PrequentialConfig(days=1, every=10))
    frames = load_kuairand(data).interactions.filter(pl.col("event_time_ms") < BEGIN_MS + DAY_MS)
    assert sum(len(block.shown.click) for block in stream.blocks) == frames.height
    assert stream.lag == 2
    seen: dict[str, int] = {}
    for block in stream.blocks:
        for lesson in block.lessons:
            rows = lesson.view.kind_L
            assert (rows == 1).sum() == seen.get(lesson.decision.user_id, 0)  # all that was shown before, and not itself
            seen[lesson.decision.user_id] = seen.get(lesson.decision.user_id, 0) + len(lesson.item_ids)


def test_a_window_is_read_as_of_its_first_exposure(data: Path) -> None:
    stream = read_stream(load_kuairand(data), tiny(), PrequentialConfig(days=1, every=10))
    assert sum(len(window.shown.click) for window in stream.windows.values()) == sum(len(block.shown.click) for block in stream.blocks)
    first = {}
    for block in stream.blocks:
        for lesson in block.lessons:
            first.setdefault(
                (lesson.decision.user_id, lesson.decision.event_time_ms // WINDOW_MS), (block.number, lesson.view.kind_L.tolist())
            )
    for number, window in stream.windows.items():
        for lesson in window.lessons:
            key = lesson.decision.user_id, lesson.decision.event_time_ms // WINDOW_MS
            assert (number, lesson.view.kind_L.tolist()) == first[key]
    assert any(len(lesson.view.kind_L) for window in stream.windows.values() for lesson in window.lessons)


class Watcher:
    """Writes down what it was told, when."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def chances(self, block: Block) -> FloatArray:
        self.heard.append(("predict", block.number))
        return np.full(len(block.shown.click), 0.5, np.float32)

    def learn(self, block: Block) -> None:
        self.heard.append(("learn", block.number))

    def day_begins(self, day: int) -> None:
        self.heard.append(("day", day))


def test_nothing_is_learned_before_its_window_has_closed() -> None:
    numbers = [0, 1, 2, 3, 5, 9, 10, 14]
    stream = Stream([Block(number, [], shown([0])) for number in numbers], {}, Catalogue(), lag=3, per_day=5)
    watcher = Watcher()
    predicted(stream, {"it": watcher})
    assert [at for what, at in watcher.heard if what == "predict"] == numbers
    learned = [at for what, at in watcher.heard if what == "learn"]
    assert learned == [0, 1, 2, 3, 5, 9, 10][: len(learned)]
    known: list[int] = []
    for what, at in watcher.heard:
        if what == "learn":
            known.append(at)
        elif what == "predict":
            assert known == [number for number in numbers if number <= at - 3]
    assert [at for what, at in watcher.heard if what == "day"] == [0, 1, 2]


def test_log_loss_auc_and_ndcg_agree_with_scikit_learn() -> None:
    random = np.random.default_rng(0)
    chance_Q, click_Q = random.integers(1, 10, 200) / np.float32(10), (random.random(200) < 0.3).astype(np.float32)
    assert auc(chance_Q, click_Q) == pytest.approx(roc_auc_score(click_Q, chance_Q))
    assert auc(chance_Q, np.ones(200, np.float32)) is None
    assert log_loss(np.array([0.25, 0.25, 1.0]), np.array([1, 0, 0])).tolist() == pytest.approx(
        [-math.log(0.25), -math.log(0.75), -math.log(1e-6)]
    )
    window_Q, chance_Q = random.integers(0, 40, 200), random.random(200).astype(np.float32)
    mixed = [window_Q == window for window in range(40) if 0 < click_Q[window_Q == window].mean() < 1]
    expected = np.mean([ndcg_score([click_Q[at]], [chance_Q[at]]) for at in mixed])
    assert window_ndcg(chance_Q, click_Q, window_Q) == pytest.approx(expected)
    assert window_ndcg(chance_Q, np.zeros(200, np.float32), window_Q) is None


def shown(item: Sequence[int], click: Sequence[int] = (0,), time_ms: int = 0) -> Shown:
    item_Q = np.array(item)
    return Shown(item_Q * 0, item_Q, item_Q * 0, item_Q * 0 + time_ms, np.array(click, np.float32))


def test_rates_by_hand() -> None:
    constant, tab, recent = (RateModel(RATES[name]) for name in ("constant", "tab", "popular_last_60_minutes"))
    for model in (constant, tab, recent):
        model.learn(shown([3, 3, 4], [1, 1, 0], 1_000))
    rate = 2.5 / 4
    assert constant.chances(shown([3])).tolist() == pytest.approx([rate])
    assert tab.chances(shown([3])).tolist() == pytest.approx([(2 + SHRINK["tab"] * rate) / (3 + SHRINK["tab"])])
    shrunk = [(2 + SHRINK["item"] * rate) / (2 + SHRINK["item"]), SHRINK["item"] * rate / (1 + SHRINK["item"]), rate]
    assert recent.chances(shown([3, 4, 9], [0, 0, 0])).tolist() == pytest.approx(shrunk)
    recent.learn(shown([9], [0], 2 * 3_600_000))
    rate = 2.5 / 5
    assert recent.chances(shown([3])).tolist() == pytest.approx([rate])  # an hour ago is forgotten


@pytest.mark.parametrize(("name", "value"), [("days", 0), ("every", 7), ("history", 51)])
def test_plans_out_of_range_are_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        PrequentialConfig(**{name: value})
