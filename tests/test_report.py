import json
import math
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from recsys.abtest import Gap, gap_with_slope
from recsys.report import (
    Books,
    Freshness,
    NewItems,
    Percentiles,
    RunResult,
    Timing,
    VariantResult,
    headline,
    to_json,
    write_report,
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MOST_BYTES = 6_000_000


def made_up_run(minutes: int = 120, *, growth_per_hour: float = 0.02) -> RunResult:
    """Realistic numbers that nobody measured."""
    rng = np.random.default_rng(5)
    hours = np.arange(minutes) / 60
    slots = rng.integers(150, 260, size=(2, minutes))
    truth = np.stack([0.27 + growth_per_hour * hours, np.full(minutes, 0.268)]) + 0.012 * np.sin(hours * 5)
    rewards = rng.binomial(slots, truth) / slots
    if minutes > 60:
        slots[:, 50], rewards[:, 50] = 0, np.nan
    variants = {
        name: VariantResult(
            reward=float(np.nansum(rewards[row] * slots[row]) / slots[row].sum()) if minutes else None,
            decisions=int(slots[row].sum() // 5),
            reward_by_minute=rewards[row].tolist(),
            slots_by_minute=slots[row].tolist(),
            policy_version=minutes if name == "online" else 1,
        )
        for row, name in enumerate(("online", "offline"))
    }
    age = rng.normal(128, 5, size=minutes).clip(100)
    return RunResult(
        version="0.1.0",
        world="drifting",
        seed=7,
        minutes=minutes,
        minutes_planned=120,
        decisions=sum(variant.decisions for variant in variants.values()),
        versions_published=minutes,
        variants=variants,
        reward_unit="clicks",
        gap=gap_with_slope(rewards[0], rewards[1], slots[0], slots[1]),
        share_of_oracle=0.62 if minutes else None,
        freshness=Freshness(
            total_s=Percentiles.of(age),
            window_s=Percentiles(p50=60, p99=60),
            lateness_s=Percentiles(p50=5, p99=5),
            disorder_s=Percentiles(p50=2, p99=2),
            tick_s=Percentiles(p50=0.5, p99=1),
            bucket_wait_s=Percentiles(p50=30.2, p99=59.4),
            compute_s=Percentiles(p50=0.83, p99=1.4),
            by_minute=age.tolist(),
        ),
        timing=Timing(
            num_updates=minutes,
            num_swaps=minutes,
            update_s=Percentiles(p50=0.62, p99=1.1),
            publish_s=Percentiles(p50=0.11, p99=0.2),
            load_s=Percentiles(p50=0.09, p99=0.13),
            recommend_ms=Percentiles(p50=3.1, p99=9.8),
        ),
        books=Books(
            decisions={"trained": 4000, "unexposed": 120, "late": 3, "foreign": 4400, "stale": 0, "quarantined": 0, "open": 210},
            feedback={"joined": 3100, "unexposed": 11, "duplicate": 40, "late": 61, "orphan": 2, "foreign": 3000, "forged": 0, "open": 55},
        ),
        new_items={
            "online": NewItems(minutes_to_first_exposure=[1.5, 2.0, 7.0, math.nan], share_by_minute=(0.002 * np.arange(minutes)).tolist()),
            "offline": NewItems(minutes_to_first_exposure=[9.0, 30.0, math.nan, math.nan], share_by_minute=[0.01] * minutes),
        },
        isolation="each variant learns from its own traffic",
        weights_digest="sha256:8f14e45fceea167a5a36dedd4bea2543",
        compute_s=141.0,
        compute_parts_s={"deciding": 40.0, "joining": 9.0, "updating": 75.0, "publishing": 17.0},
        seconds=203.0,
        threads=1,
        peak_rss_mb=912.0,
        configuration="world.users = 400\nlearner.lr = 0.0003\nlearner.note = '</script><script>alert(1)</script>'",
        command="recsys loop --preset tiny --minutes 120 --seed 7",
    )


EMPTY = RunResult(
    version="0.1.0",
    world="tiny",
    seed=0,
    minutes=0,
    minutes_planned=120,
    decisions=0,
    versions_published=0,
    variants={},
    seconds=0.4,
    threads=1,
)


class References(HTMLParser):
    """Every place of a page that could make a browser load something."""

    LOADING = frozenset({"src", "href", "srcset", "data", "poster", "action", "formaction", "background", "manifest", "ping", "xlink:href"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in self.LOADING and tag != "a"]


CONTRACT: dict[str, type | tuple[type, ...]] = {
    "version": str,
    "seed": int,
    "threads": int,
    "seconds": float,
    "peak_rss_mb": float,
    "world": str,
    "minutes": int,
    "decisions": int,
    "versions_published": int,
    "variants": dict,
    "gap": dict,
    "share_of_oracle": float,
    "freshness_s": dict,
    "books": dict,
    "weights_digest": str,
    "compute_s": float,
    "report": str,
}
NULLABLE = {"peak_rss_mb", "share_of_oracle", "weights_digest", "compute_s"}


def test_the_contract_is_kept(tmp_path: Path) -> None:
    page = write_report(made_up_run(), tmp_path)
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert {key for key, kind in CONTRACT.items() if not isinstance(numbers[key], kind)} == set()
    for variant in numbers["variants"].values():
        assert isinstance(variant["reward"], float)
        assert isinstance(variant["decisions"], int)
        assert len(variant["reward_by_minute"]) == 120
    gap = numbers["gap"]
    assert isinstance(gap["mean"], float)
    assert isinstance(gap["slope_per_hour"], float)
    assert gap["slope_interval"][0] < gap["slope_per_hour"] < gap["slope_interval"][1]
    assert len(gap["by_minute"]) == 120
    assert numbers["freshness_s"]["p50"] < numbers["freshness_s"]["p99"]
    assert numbers["books"]["balanced"] is True
    assert numbers["books"]["decisions"]["trained"] == 4000
    assert numbers["books"]["feedback"]["joined"] == 3100
    assert numbers["report"] == str(page)


def test_what_was_not_measured_is_null_and_never_0() -> None:
    numbers = to_json(EMPTY)
    assert set(CONTRACT) <= set(numbers)
    assert all(numbers[key] is None for key in NULLABLE | {"report", "new_items"})
    assert numbers["gap"]["slope_interval"] is None
    assert numbers["freshness_s"]["p50"] is None
    assert numbers["timing"]["num_updates"] is None


def test_nan_becomes_null_at_any_depth() -> None:
    numbers = to_json(replace(made_up_run(), share_of_oracle=math.inf, gap=Gap(mean=math.nan, by_minute=[math.nan, 0.5])))
    assert numbers["variants"]["online"]["reward_by_minute"][50] is None
    assert numbers["gap"]["mean"] is None
    assert numbers["gap"]["by_minute"] == [None, 0.5]
    assert numbers["share_of_oracle"] is None
    json.dumps(numbers, allow_nan=False)


def test_counters_and_numpy_numbers_are_welcome(tmp_path: Path) -> None:
    books = Books(decisions=Counter({"trained": np.int64(3)}), feedback=MappingProxyType({"joined": 1}))  # type: ignore[dict-item]
    variants = {"online": VariantResult(reward=float(np.float64(0.5)), decisions=3, reward_by_minute=np.array([0.5]))}  # type: ignore[arg-type]
    write_report(replace(EMPTY, books=books, variants=variants), tmp_path)
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert numbers["books"]["decisions"] == {"trained": 3}
    assert numbers["variants"]["online"]["smoothed_by_minute"] == [0.5]


@pytest.mark.parametrize("minutes", [0, 1, 2, 3, 4, 12])
def test_a_run_stopped_early_has_a_report_that_says_so(minutes: int, tmp_path: Path) -> None:
    page = write_report(made_up_run(minutes), tmp_path).read_text()
    assert f"Stopped early: {minutes} of 120 world minutes" in page
    assert "nan" not in shown_text(page).lower()


def test_a_finished_run_has_no_notice_and_broken_books_have_one(tmp_path: Path) -> None:
    assert 'class="notice"' not in without(write_report(made_up_run(), tmp_path).read_text(), "noscript")
    broken = replace(made_up_run(), books=replace(made_up_run().books, balanced=False))
    assert "The books do not balance" in write_report(broken, tmp_path).read_text()
    refused = replace(made_up_run(), books=replace(made_up_run().books, refused={"a_gate": 31}))
    assert "31 decisions were not learned from, refused for a_gate" in write_report(refused, tmp_path).read_text()


def test_the_headline_says_it_in_words() -> None:
    said = headline(made_up_run())
    assert said.startswith(
        "After 120 world minutes the learning variant earns 0.290 clicks per shown slot, the frozen twin 0.276: a gap of +0.0137"
    )
    assert re.search(r"It grows by 0\.\d+ per hour \(95 % interval of the slope \+0\.\d+ to \+0\.\d+\)\.$", said)


def test_the_headline_is_honest_about_an_interval_with_zero_in_it() -> None:
    said = headline(made_up_run(growth_per_hour=0.0))
    assert "which includes zero, so it may be no gap at all" in said
    assert "Whether it grows can’t be told from this run" in said
    assert "It grows" not in said


def test_the_headline_names_a_frozen_twin_that_is_ahead() -> None:
    assert "The frozen twin’s lead grows by" in headline(made_up_run(growth_per_hour=-0.03))


@pytest.mark.parametrize("reward", [None, math.nan])
def test_without_both_variants_there_is_nothing_to_compare(reward: float | None) -> None:
    alone = {"online": VariantResult(reward=0.3, decisions=1), "offline": VariantResult(reward=reward, decisions=0)}
    assert "nothing to compare yet" in headline(replace(EMPTY, minutes=1, variants=alone))
    assert headline(replace(EMPTY, minutes=1)).startswith("After 1 world minute there")


def test_the_page_asks_no_other_machine_for_anything(tmp_path: Path) -> None:
    page = write_report(made_up_run(), tmp_path).read_text()
    assert [reference for reference in References(page).found if not reference.startswith(("data:", "#"))] == []
    ours = page.replace(get_plotlyjs(), "")
    assert len(ours) < 100_000
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest|import\(", ours)
    assert "default-src 'none'" in ours  # what plotly could load for maps is forbidden too


def test_the_page_is_small_enough_to_mail(tmp_path: Path) -> None:
    assert write_report(made_up_run(), tmp_path).stat().st_size < MOST_BYTES


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script>"
    variants = {bad: VariantResult(reward=0.1, decisions=1)}
    page = write_report(replace(made_up_run(), world=bad, command=bad, variants=variants), tmp_path).read_text()
    assert "<script>alert" not in page


def test_the_same_result_is_the_same_page_and_nothing_else_is_left_behind(tmp_path: Path) -> None:
    first = write_report(made_up_run(), tmp_path / "deep" / "down").read_bytes()
    assert write_report(made_up_run(), tmp_path / "deep" / "down").read_bytes() == first
    assert {path.name for path in (tmp_path / "deep" / "down").iterdir()} == {"report.html", "report.json"}


def test_percentiles_of_nothing_are_none() -> None:
    assert Percentiles.of([math.nan]) == Percentiles(p50=None, p99=None)
    assert Percentiles.of([1.0, 3.0]).p50 == 2.0


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")
class TestInABrowser:
    def test_every_plot_draws_and_nothing_is_fetched(self, tmp_path: Path) -> None:
        dom, complaints = rendered(write_report(made_up_run(), tmp_path), tmp_path)
        assert complaints == []
        assert traces(dom, "plot-reward") == 4  # faint and strong, of two variants
        assert traces(dom, "plot-gap") == 4  # two edges of the band, points, line
        assert traces(dom, "plot-new-items") == 2
        assert traces(dom, "plot-freshness") == 1
        assert dom.count('class="trace bars"') == 5

    def test_an_empty_run_says_so_where_the_plots_would_be(self, tmp_path: Path) -> None:
        dom, complaints = rendered(write_report(EMPTY, tmp_path), tmp_path)
        assert complaints == []
        assert "main-svg" not in dom
        for words in ("No slot was shown.", "No minute has both variants.", "No item arrived during the run."):
            assert f">{words}</div>" in dom

    def test_a_page_that_did_ask_would_be_refused_and_noticed(self, tmp_path: Path) -> None:
        """The check of the two tests above can fail."""
        page = write_report(EMPTY, tmp_path)
        page.write_text(page.read_text().replace("</main>", '<img src="http://example.invalid/x.png"></main>'))
        _, complaints = rendered(page, tmp_path)
        assert any("Content Security Policy" in complaint for complaint in complaints)


def rendered(page: Path, tmp_path: Path) -> tuple[str, list[str]]:
    """The page's DOM after its scripts ran, without these; and what its console complained of: any attempt to load is refused there."""
    assert CHROMIUM
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=10000"]
    command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return without(done.stdout, "script"), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def traces(dom: str, plot: str) -> int:
    """How many scatter traces the plot with this id has drawn."""
    return dom.split(f'id="{plot}"', 1)[1].split("</section>", 1)[0].split('id="plot-', 1)[0].count('class="trace scatter')


def without(page: str, tag: str) -> str:
    return re.sub(rf"<{tag}\b.*?</{tag}>", "", page, flags=re.DOTALL)


def shown_text(page: str) -> str:
    """The words of a page: no scripts, styles or tags."""
    return re.sub(r"<[^>]+>", " ", without(without(page, "script"), "style"))
