"""The command line as users and programs meet it: exit status, one object on standard output, all else on standard error."""

import json
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys import publisher
from recsys.checkpoint import StateLock
from recsys.client import Client
from recsys.config import as_json, with_settings
from recsys.options import print_figures
from recsys.presets import tiny
from streaming.proto.recommender_pb2 import Degraded, RecommendRequest
from tests.broker import Broker
from tests.running import Running, recsys, started
from tests.runs import ROOT, only_object

TOY = ("loop", "--world", "toy", "--preset", "tiny", "--minutes", "4", "--no-mlflow", "--json")
MOVIELENS = ROOT.parent / "shared" / "data" / "ml_latest_small"
UNREACHABLE = ("learn", "--log", "kafka://127.0.0.1:1/nobody")


@pytest.fixture(scope="module", autouse=True)
def unreachable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """It waits for its broker while the other tests run."""
    process = started(*UNREACHABLE, "--state", str(tmp_path_factory.mktemp("unreachable") / "state"))
    yield process
    process.kill()
    process.communicate()


# recsys loop ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    done = recsys(*TOY, "--out", str(tmp_path_factory.mktemp("toy")))
    assert done.returncode == 0, done.stderr
    return only_object(done.stdout)


def test_help_names_every_command() -> None:
    done = subprocess.run([sys.executable, "-m", "recsys", "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert [name for name in ("loop", "serve", "learn", "replay", "data", "bench") if name not in done.stdout] == []
    assert done.stderr == ""


def test_version_is_that_of_the_package() -> None:
    done = recsys("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{version('recsys')}\n", "")


def test_a_loop_prints_what_the_contract_says(toy: dict[str, Any]) -> None:
    assert set(toy) >= {"version", "seed", "threads", "seconds", "peak_rss_mb", "world", "minutes", "decisions", "versions_published"}
    assert set(toy) >= {"variants", "gap", "share_of_oracle", "freshness_s", "books", "weights_digest", "compute_s", "report"}
    assert (toy["world"], toy["minutes"], toy["seed"], toy["threads"]) == ("toy", 4, 0, 1)
    assert 200 < toy["decisions"] < 600
    assert toy["versions_published"] == 4
    assert set(toy["variants"]) == {"online", "offline"}
    for variant in toy["variants"].values():
        assert set(variant) >= {"reward", "decisions", "reward_by_minute"}
        assert 0 < variant["reward"] < 1
        assert len(variant["reward_by_minute"]) == 4
    assert sum(variant["decisions"] for variant in toy["variants"].values()) == toy["decisions"]
    assert set(toy["gap"]) >= {"mean", "slope_per_hour", "slope_interval", "by_minute"}
    assert len(toy["gap"]["slope_interval"]) == 2
    assert 60 < toy["freshness_s"]["p50"] <= toy["freshness_s"]["p99"] < 140
    assert toy["books"]["balanced"] is True
    assert sum(toy["books"]["decisions"].values()) == toy["decisions"]
    assert 0 < toy["share_of_oracle"] < 1
    assert 0 < toy["compute_s"] < toy["seconds"]
    assert 100 < toy["peak_rss_mb"] < 3000
    assert len(toy["weights_digest"]) == 64


def test_a_loop_leaves_its_report(toy: dict[str, Any]) -> None:
    page = Path(toy["report"])
    assert page.name == "report.html"
    assert "<html" in page.read_text()[:200]
    said = json.loads((page.parent / "report.json").read_text())
    assert said["weights_digest"] == toy["weights_digest"]


@pytest.mark.parametrize("log", ["memory:", "kafka"])
def test_one_seed_gives_the_same_run_on_every_log(toy: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest, log: str) -> None:
    url = log
    if log == "kafka":
        broker: Broker = request.getfixturevalue("broker")
        url = f"kafka://{broker.bootstrap}/cli-{uuid.uuid4().hex}"
    done = recsys(*TOY, "--out", tmp_path / "out", "--log", url)
    assert done.returncode == 0, done.stderr
    found = only_object(done.stdout)
    for name in ("weights_digest", "variants", "gap", "books", "freshness_s", "decisions"):
        now, before = found[name], toy[name]
        if name == "freshness_s":
            now, before = ({key: value[key] for key in ("p50", "p99")} for value in (found[name], toy[name]))  # type: ignore[index]
        assert now == before, name


def test_ctrl_c_stops_a_loop_and_it_reports(tmp_path: Path) -> None:
    process = started(*TOY, "--minutes", "4000", "--log", "memory:", "--out", tmp_path)
    assert any(line.startswith("minute 1/4000") for line in process.error_lines())
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    found: dict[str, Any] = only_object(output)
    assert 1 <= found["minutes"] < 100
    assert f"stopped after {found['minutes']} of 4000 world minutes" in " ".join(errors.split())
    assert str(found["minutes"]) in (tmp_path / "report.html").read_text()
    assert found["minutes_planned"] == 4000
    assert found["books"]["balanced"]


def test_print_config_prints_it_and_does_nothing_else(tmp_path: Path) -> None:
    options = ("--preset", "tiny", "--set", "learner.trainer.lr=1e-3", "--set", "join.window_ms=30000", "--print-config")
    for command in (("loop", "--out", tmp_path / "out"), ("learn", "--log", f"sqlite:///{tmp_path}/log.db", "--state", tmp_path / "state")):
        done = recsys(*command, *options)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip() == as_json(with_settings(tiny(), ["learner.trainer.lr=1e-3", "join.window_ms=30000"]))
    assert list(tmp_path.iterdir()) == []


# Wrong usage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("loop", "--preset", "huge"), "--preset is 'huge'; it must be one of standard, small, tiny"),
        (("loop", "--set", "learner.size=3"), "there is no 'size'"),
        (("loop", "--set", "learner.trainer.lr.low=3"), "lr has no parts"),
        (("loop", "--set", "learner"), "it must be like"),
        (("loop", "--set", "learner.trainer.lr=fast"), "it must be of type float"),
        (("loop", "--set", "join.window_ms=1.5"), "it must be of type int"),
        (("loop", "--set", "learner.trainer.lr=-1"), "lr is -1"),
        (("loop", "--set", 'experiment.variants=[["a",0.5]]'), "their sum 1"),
        (("loop", "--world", "mars"), "--world is 'mars'; it must be one of sample, toy"),
        (("loop", "--minutes", "0"), "--minutes"),
        (("loop", "--minute", "5"), "No such option"),
        (("loop", "--world", "toy", "--log", "redis://here"), "no log at 'redis://here'"),
        (("learn", "--log", "sqlite://"), "Missing option '--state'"),
        (("replay", "--archive", "/nowhere"), "/nowhere"),
        (("data", "import", "/nowhere", "--archive", "x", "--format", "kuairand"), "/nowhere"),
        (("data", "tokens", "--items", "/nowhere.csv"), "/nowhere.csv: no such file"),
        (("data", "tokens", "--items", "/nowhere.csv", "--levels", "5"), "tokenizer.levels is 5; it must be 1..4"),
        (("data", "artifact", "/nowhere/7"), "7: no manifest.json: it was never finished"),
        (("data", "import", "/nowhere.csv"), "one of --archive DIR and --log URL"),
        (("data", "import", "/nowhere.csv", "--archive", "x", "--format", "xml"), "kuairand, movielens, table"),
        (("fly",), "No such command 'fly'"),
        (("bench", "learners", "--staleness", "x"), "--staleness is 'x'"),
        (("data", "tokens", "--items", "x", "--seed", "3000000000"), "--seed"),
        (("loop", "--set", "experiment.variants=[1]"), "they must be pairs of a name and a share"),
        (("loop", "--set", "join.variant=../up"), "variant is '../up'"),
        (("loop", "--set", 'experiment.variants=[["a",1.0]]'), "join.variant is 'online'; it must be one of experiment.variants: a"),
        (("loop", "--set", "memory.kinds=[1]"), "memory.kinds are (1,); they must be texts"),
        (("loop", "--set", "engine.future_ms=-1"), "engine.future_ms is -1; it must be 0..86400000"),
        (("loop", "--set", "engine.future_ms=3600000"), "engine.future_ms is 3600000; it must be join.future_ms, 60000, at most"),
        (("loop", "--set", "model.tokenizer.seed=99999999999"), "tokenizer.seed is 99999999999; it must be 0..2147483647"),
        (("bench", "train", "--rectools-python", "/nowhere"), "'/nowhere' does not exist"),
        (("simulate", "--world", "os:sep"), "--world os:sep"),
        (("simulate", "--world", "os:replace"), "--world os:replace takes 4 arguments"),
        (("serve", "--log", "memory:", "--state", "x"), "--log memory: would be gone"),
        (("log", "inspect", "--log", "sqlite:////nowhere/log.db"), "/nowhere/log.db, topic events: there is no such log"),
        (("serve", "--log", "memory:", "--state", "x", "--address", "here"), "must be HOST:PORT"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    out = ("--out", str(tmp_path)) if arguments[0] == "loop" else ()
    done = recsys(*arguments, *out)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("recsys: ")]
    assert len(errors) == 1, done.stderr
    assert said in errors[0]
    assert "Traceback" not in done.stderr


def test_a_wrong_world_leaves_the_last_run_alone(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("an earlier one")
    assert recsys("loop", "--world", "mars", "--out", tmp_path).returncode == 2
    assert (tmp_path / "report.html").exists()


def test_a_log_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    """And what an earlier run left is there still."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    assert recsys(*TOY, "--minutes", "1", "--out", tmp_path / "out", "--log", url).returncode == 0
    again = recsys(*TOY, "--minutes", "1", "--out", tmp_path / "out", "--log", url)
    assert (again.returncode, again.stdout) == (2, "")
    assert "records; the loop needs an empty one" in again.stderr.splitlines()[-1]
    assert (tmp_path / "out" / "report.html").exists()
    lock = StateLock(tmp_path / "out" / "state" / "online")
    busy = recsys(*TOY, "--minutes", "1", "--out", tmp_path / "out")
    lock.release()
    assert busy.returncode == 2
    assert "is written by process" in busy.stderr.splitlines()[-1]
    assert (tmp_path / "out" / "report.html").exists()


def test_a_log_that_can_not_be_written_is_status_1(tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    done = recsys(*TOY, "--out", tmp_path / "out", "--log", f"sqlite:///{tmp_path / 'a file' / 'log.db'}")
    assert (done.returncode, done.stdout) == (1, "")
    assert "a file" in done.stderr.splitlines()[-1]


# MLflow ---------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")
def test_a_run_is_in_mlflow_with_its_figures_and_its_version(tmp_path: Path) -> None:
    done = recsys("loop", "--world", "toy", "--preset", "tiny", "--minutes", "2", "--json", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = only_object(done.stdout)
    from mlflow import MlflowClient  # noqa: PLC0415  seconds to import

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}", registry_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("recsys-loop")
    (recorded,) = client.search_runs([experiment.experiment_id])
    assert recorded.info.status == "FINISHED"
    assert recorded.data.params["weights_digest"] == found["weights_digest"]
    assert recorded.data.params["seed"] == "0"
    assert recorded.data.metrics["decisions"] == found["decisions"]
    assert recorded.data.metrics["reward_online"] == pytest.approx(found["variants"]["online"]["reward"])
    assert {file.path for file in client.list_artifacts(recorded.info.run_id)} >= {"report.html", "report.json"}
    model = client.get_model_version_by_alias("recsys-online", "current")
    published = publisher.current(tmp_path / "state" / "online")
    assert published is not None
    assert model.run_id == recorded.info.run_id
    assert model.tags == {"policy_version": str(published.policy_version), "digest": published.digest}


# Other people's logs --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kuairand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of the packaged sample under the names and in the columns that KuaiRand is published with; `csv` and `parquet`."""
    sample = ROOT / "recsys" / "sample"
    log = pl.read_parquet(sample / "log.parquet").head(60).with_columns(is_hate=pl.lit(0))
    names = {"item_id": "video_id", "event_time_ms": "time_ms", "click": "is_click", "like": "is_like"}
    log = log.rename(names)
    items = pl.read_parquet(sample / "items.parquet").join(log, on="video_id", how="semi")
    directory = tmp_path_factory.mktemp("kuairand")
    for form in ("csv", "parquet"):
        (directory / form).mkdir()
    log.write_csv(directory / "csv" / "log_standard_4_08_to_4_21_pure.csv")
    items.write_csv(directory / "csv" / "video_features_basic_pure.csv")
    log.write_parquet(directory / "parquet" / "log_standard_4_08_to_4_21_pure.parquet")
    items.write_parquet(directory / "parquet" / "videos.parquet")
    return directory


def _replayed(archive: Path, state: Path) -> tuple[dict[str, Any], str]:
    done = recsys("replay", "--archive", archive, "--state", state, "--preset", "tiny", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = only_object(done.stdout)
    assert set(found) >= {"events", "events_per_s", "real_time_factor", "books", "weights_digest"}
    assert set(found) >= {"version", "seed", "threads", "seconds", "peak_rss_mb"}
    assert found["books"]["balanced"] is True
    return found, done.stderr


def test_an_imported_log_teaches_and_is_never_ones_own(kuairand: Path, tmp_path: Path) -> None:
    """From CSV and from parquet the same; and the same twice."""
    digests = set()
    for form in ("csv", "parquet"):
        done = recsys("data", "import", kuairand / form, "--format", "kuairand", "--archive", tmp_path / form)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        found, _ = _replayed(tmp_path / form, tmp_path / f"{form}-state")
        decisions = found["books"]["decisions"]
        assert decisions["foreign"] == decisions["total"] > 50
        assert decisions["trained"] == 0
        assert found["books"]["taught"] == decisions["total"]
        assert found["versions"] > 20
        digests.add(found["weights_digest"])
    assert len(digests) == 1
    untaught = recsys(
        *("replay", "--archive", tmp_path / "csv", "--state", tmp_path / "untaught", "--preset", "tiny"),
        *("--set", "join.teach_imported=false", "--json"),
    )
    assert only_object(untaught.stdout)["weights_digest"] not in digests
    again = recsys("replay", "--archive", tmp_path / "csv", "--state", tmp_path / "csv-state", "--preset", "tiny")
    assert again.returncode == 2
    assert "a replay needs an empty one" in again.stderr
    onto = recsys("data", "import", kuairand / "csv", "--format", "kuairand", "--archive", tmp_path / "csv")
    assert onto.returncode == 2
    assert "is not empty" in onto.stderr


def test_what_nobody_showed_is_context_and_the_user_is_told(tmp_path: Path) -> None:
    """MovieLens spans 20 years and knows of no exposures."""
    if not MOVIELENS.is_dir():
        pytest.skip(f"no {MOVIELENS}")
    pl.read_parquet(MOVIELENS / "ratings.parquet").gather_every(50).write_parquet(tmp_path / "ratings.parquet")
    shutil.copy(MOVIELENS / "movies.parquet", tmp_path)
    done = recsys("data", "import", tmp_path, "--format", "movielens", "--archive", tmp_path / "archive")
    assert done.returncode == 0, done.stderr
    assert "nothing to learn from" in done.stderr
    found, errors = _replayed(tmp_path / "archive", tmp_path / "state")
    assert "nothing was learned" in " ".join(errors.split())
    assert found["books"]["interactions"] > 2_000
    assert found["books"]["decisions"]["total"] == 0
    assert found["seconds"] < 30


def test_a_table_needs_only_the_names_of_its_columns(tmp_path: Path) -> None:
    rows = [f"u{n % 20},i{n % 7},{1_700_000_000 + 20 * n},{int(n % 7 == n % 20 % 3)}" for n in range(60)]
    (tmp_path / "clicks.csv").write_text("\n".join(["who,what,ts,clicked", *rows]))
    (tmp_path / "items.csv").write_text("\n".join(["what,title,genre", *(f"i{n},Title {n},{'ab'[n % 2]}" for n in range(7))]))
    columns = ("--user", "who", "--item", "what", "--time", "ts", "--click", "clicked", "--items", tmp_path / "items.csv")
    done = recsys("data", "import", tmp_path / "clicks.csv", *columns, "--archive", tmp_path / "archive")
    assert done.returncode == 0, done.stderr
    found, _ = _replayed(tmp_path / "archive", tmp_path / "state")
    assert found["books"]["decisions"]["foreign"] == 60
    assert found["books"]["taught"] == 60
    wrong = recsys("data", "import", tmp_path / "clicks.csv", "--archive", tmp_path / "other")
    assert wrong.returncode == 2
    assert "no column 'user_id'; there are who, what, ts, clicked" in wrong.stderr


def test_an_imported_log_warms_a_learner_up_and_a_server_serves_it(kuairand: Path, tmp_path: Path) -> None:
    url, state = f"sqlite:///{tmp_path / 'log.db'}", tmp_path / "state"
    done = recsys("data", "import", kuairand / "csv", "--format", "kuairand", "--log", url)
    assert done.returncode == 0, done.stderr
    onto = recsys("data", "import", kuairand / "csv", "--format", "kuairand", "--log", url)
    assert onto.returncode == 2
    assert "history goes into an empty one only" in onto.stderr
    shared = ("--log", url, "--state", str(state), "--preset", "tiny")
    learner, server = started("learn", *shared), started("serve", *shared, "--address", "127.0.0.1:0")
    try:
        port = next(line for line in server.error_lines() if "serving on" in line).split("127.0.0.1:")[1].split(";")[0]
        with Client(f"127.0.0.1:{port}") as client:
            deadline_s = time.monotonic() + 60
            while {variant.policy_version for variant in client.status().variants} != {1}:
                assert time.monotonic() < deadline_s
                time.sleep(0.1)
            answer = client.recommend(RecommendRequest(user_id="somebody", slate_size=3))
            assert answer.policy_version == 1
            assert answer.degraded == Degraded.DEGRADED_NONE
            assert len(answer.slots) == 3
    finally:
        for process in (learner, server):
            process.send_signal(signal.SIGTERM)
        ends = [(process.communicate(timeout=30), process.returncode) for process in (learner, server)]
    assert [status for _, status in ends] == [0, 0]
    said = json.loads((state / "online" / "metrics.jsonl").read_text().splitlines()[0])
    assert said["warm_start_sequences"] > 10


# Last, because it waits -----------------------------------------------------------------------------------------------


def test_a_broker_that_is_not_there_is_waited_for_and_named(unreachable: Running) -> None:
    assert any("the log is away" in line for line in unreachable.error_lines())
    unreachable.send_signal(signal.SIGTERM)
    output, errors = unreachable.communicate(timeout=60)
    assert (unreachable.returncode, output) == (0, "")
    assert "kafka://127.0.0.1:1/nobody" in "".join(errors.split())
    assert "Traceback" not in errors


def test_people_are_told_how_long_a_series_is_and_programs_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"by_block": {"minute": list(range(100)), "interval": [0.25, 0.123456]}, "rows": [{"model": "online", "by_day": [1.0] * 14}]}
    print_figures(figures, 0, 0.0, as_json=True)
    out, err = capsys.readouterr()
    assert err == "by_block: {minute [100 numbers], interval [0.25, 0.1235]}\nrows:\n  model online  by_day [14 numbers]\n"
    assert json.loads(out)["by_block"]["minute"] == list(range(100))
