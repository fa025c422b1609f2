"""The ranking benchmark by hand: the split, places and metrics, the models that count, slates, and the command as a user calls it."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.bench.ranking import Split, markov, ndcg, neighbours, popularity, rank, recall
from recsys.bench.unseen import slate_ndcg
from recsys.cli import main


def split_of(*sequences: list[int], num_rows: int = 8) -> Split:
    return Split.of([np.array(rows) for rows in sequences], num_rows)


def test_the_last_item_is_the_test_and_the_last_but_one_the_validation() -> None:
    split = split_of([1, 2, 3, 4], [5, 6], [2, 3, 4])
    assert [rows.tolist() for rows in split.train] == [[1, 2], [2]]
    assert (split.valid.tolist(), split.test.tolist()) == ([3, 3], [4, 4])
    assert [rows.tolist() for rows in split.before_test] == [[1, 2, 3], [2, 3]]
    assert split.counts().tolist() == [0, 1, 2, 0, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="none of 1 sequences has four items or more"):
        split_of([1, 2])


def test_places_with_ties_and_without_what_was_seen() -> None:
    scores = np.array([[9.0, 5, 4, 4, 4, 3, 2, 1]], np.float32)  # row 0 is nobody

    def places(target: int, history: list[int]) -> tuple[float, float]:
        found = rank(lambda _: scores, [np.array(history)], np.array([target]))
        return float(found.all_U[0]), float(found.unseen_U[0])

    assert places(1, [7]) == (0, 0)
    assert places(3, [1]) == (2, 1)  # one better and two beside it; the better one was seen
    assert places(5, [1, 2, 5]) == (4, 2)  # seen itself, and still to be found
    assert scores[0, 0] == 9


def test_metrics() -> None:
    ranks = np.array([0, 1, 9, 10, 60], np.float32)
    assert recall(ranks, 10) == pytest.approx(3 / 5)
    assert recall(ranks, 50) == pytest.approx(4 / 5)
    assert ndcg(ranks, 10) == pytest.approx((1 + 1 / np.log2(3) + 1 / np.log2(11)) / 5)


def test_models_that_count() -> None:
    split = split_of([1, 2, 1, 3, 7, 7], [2, 1, 7, 7], [4, 4, 7])
    histories = [np.array([2]), np.array([1]), np.array([6])]
    assert popularity(split)(histories).tolist() == [split.counts().tolist()] * 3
    followed = markov(split)(histories)
    assert followed[0].argmax() == 1
    assert followed[1, [2, 3]] == pytest.approx(1 + split.counts()[[2, 3]] / 4)
    assert followed[2].argmax() == 1  # nothing followed 6: the most popular
    vectors = np.eye(8, dtype=np.float32)
    vectors[5] = vectors[2]
    assert neighbours(vectors)(histories)[0].tolist() == [0, 0, 1, 0, 0, 1, 0, 0]


def test_slates_are_held_against_the_best_there_could_be() -> None:
    targets = np.array([[1, 2], [3, 3]])
    assert slate_ndcg(np.array([[2, 1, 9], [3, 8, 9]]), targets) == pytest.approx([1, 1])
    assert slate_ndcg(np.array([[9, 1, 8], [8, 9, 1]]), targets) == pytest.approx([(1 / np.log2(3)) / (1 + 1 / np.log2(3)), 0])


def test_the_command_prints_what_programs_rely_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Users who go round a ring of items: every learner beats popularity, and nothing in a slate comes twice."""
    random = np.random.default_rng(0)
    users = [((random.integers(40) + np.arange(12)) % 40).tolist() for _ in range(150)]
    pl.DataFrame({"user": range(150), "items": users}).write_parquet(tmp_path / "s.parquet")
    pl.DataFrame({"item": range(40), "title": [f"tale {n // 4} part {n}" for n in range(40)]}).write_parquet(tmp_path / "i.parquet")
    small = ["decoder.width=16", "decoder.heads=2", "sasrec.width=16", "sasrec.heads=2", "content_dim=8", "fit.lr=0.01", "fit.max_epochs=8"]
    small += ["fit.mean_decay=0.9", "fit.rise_steps=5", "held_out=0.1", "decoder.dropout=0.1", "decoder.row_dropout=0.1", "dtype=float32"]
    arguments = [
        "bench",
        "rank",
        "--sequences",
        str(tmp_path / "s.parquet"),
        "--items",
        str(tmp_path / "i.parquet"),
        "--seeds",
        "1",
        "--json",
    ]
    arguments += ["--models", "decoder,sasrec,sasrec-trunk", "--levels", "2,1"]
    monkeypatch.setattr("sys.argv", ["recsys", *arguments, *(part for setting in small for part in ("--set", setting))])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    said = json.loads(capsys.readouterr().out)
    rows = {row["model"]: row for row in said["rows"]}
    assert rows.keys() == {"popularity", "markov", "content", "decoder K=1", "decoder K=2", "sasrec", "sasrec-trunk"}
    columns = {"recall_at_10", "ndcg_at_10", "recall_at_50", "recall_at_10_unseen", "ndcg_at_10_unseen", "fit_s", "peak_rss_mb", "seed"}
    assert all(columns <= row.keys() and row["peak_rss_mb"] > 0 for row in rows.values())
    for name in ("decoder K=1", "decoder K=2", "sasrec-trunk"):
        assert rows[name]["ndcg_at_10"] > 2 * rows["popularity"]["ndcg_at_10"]
    assert {row["events_at_most"] for row in said["cold"]} == {0, 5}
    assert all(row.keys() >= {"model", "recall_at_10", "recall_at_50", "targets"} for row in said["cold"])
    assert [row["repeats"] for row in said["slates"]] == [0, 0]
    own, other = said["slates"]
    assert (own["model"], other["model"]) == ("autoregressive", "independent")
    assert own["lead"] == pytest.approx(own["ndcg_at_10"] - other["ndcg_at_10"])
    assert own["lead_interval"][0] <= own["lead"] <= own["lead_interval"][1]
    assert said["config"]["levels"] == 2  # the first: also of what was held out, and of slates
    assert said["file"] == str(tmp_path / "s.parquet")
    assert {"version", "seed", "threads", "seconds", "peak_rss_mb"} <= said.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "random"], "--protocol is 'random'; it must be leave-one-out"),
        (["--models", "decoder,magic"], "--models has 'magic'; it must be of decoder, sasrec, sasrec-trunk"),
        (["--set", "dtype=int8"], "dtype is 'int8'; it must be one of auto, float32, bfloat16"),
        (["--levels", "9"], "levels is 9; it must be 1..4"),
    ],
)
def test_what_can_not_be_is_named(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pl.DataFrame({"user": [1], "items": [[1, 2, 3]]}).write_parquet(tmp_path / "s.parquet")
    monkeypatch.setattr("sys.argv", ["recsys", "bench", "rank", "--sequences", str(tmp_path / "s.parquet"), *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("length", "settings", "slates"), [(7, [], None), (7, ["held_out=0"], None), (20, ["held_out=0.01"], 2)])
def test_what_there_are_no_targets_for_is_null(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    length: int,
    settings: list[str],
    slates: int | None,
) -> None:
    """Nobody has enough for a slate, nothing is held out, no item is rare."""
    random = np.random.default_rng(0)
    users = random.integers(9, size=(40, length)).tolist()
    pl.DataFrame({"user": range(40), "items": users}).write_parquet(tmp_path / "s.parquet")
    small = ["decoder.width=16", "decoder.heads=2", "content_dim=8", "fit.max_steps=4", "dtype=float32", *settings]
    arguments = ["bench", "rank", "--sequences", str(tmp_path / "s.parquet"), "--seeds", "1", "--models", "decoder", "--json"]
    monkeypatch.setattr("sys.argv", ["recsys", *arguments, *(part for setting in small for part in ("--set", setting))])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (said["slates"] and len(said["slates"])) == slates
    assert {row["recall_at_10"] for row in said["cold"] if row["targets"] == 0} == {None}
