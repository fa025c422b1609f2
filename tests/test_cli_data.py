"""`recsys data tokens` and `recsys data artifact`: the objects they print, on tables and versions made here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from models import artifact as artifacts
from models.artifact import BadArtifact
from recsys.cli import app
from recsys.imports import ImportRefused
from tests.artifacts import item_ids, small_artifact

COMMON = {"version", "seed", "threads", "seconds", "peak_rss_mb"}


def printed(*arguments: str | Path) -> dict[str, Any]:
    """The one object on standard output."""
    result = CliRunner().invoke(app, ["data", *map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    found: dict[str, Any] = json.loads(result.stdout)
    assert set(found) >= COMMON
    for name in set(found) - COMMON:
        assert f"{name}:" in result.stderr
    return found


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """60 items of three genres, embeddings for half of them, and users who meet one genre and an item that no table has."""
    pl.DataFrame(
        {
            "item": range(60),
            "title": [f"film {n}" for n in range(60)],
            "genres": ["abc"[n % 3] + "|all" for n in range(60)],
        }
    ).write_parquet(tmp_path / "items.parquet")
    pl.DataFrame({"item": range(60)}).write_csv(tmp_path / "bare.csv")
    random = np.random.default_rng(0)
    sequences = [[*(random.permutation(20)[:10] * 3 + user % 3).tolist(), 100 + user % 2] for user in range(90)]
    pl.DataFrame({"user": range(90), "items": sequences}).write_parquet(tmp_path / "sequences.parquet")
    emb = random.standard_normal((30, 20)).astype(np.float16)
    np.savez(tmp_path / "emb.npz", ids=np.arange(0, 60, 2), emb=emb)
    return tmp_path


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_tokens_prints_what_the_contract_says(tables: Path, levels: int) -> None:
    found = printed(
        *("tokens", "--items", tables / "items.parquet", "--sequences", tables / "sequences.parquet"),
        *("--embeddings", tables / "emb.npz", "--levels", levels, "--codes", 5, "--seed", 3),
    )
    assert set(found) >= {"levels", "collisions_before", "collisions_after", "neighbour_purity", "ids_unchanged_after_append"}
    assert [set(level) for level in found["levels"]] == [{"codes_used", "entropy_bits"}] * levels
    assert [level["codes_used"] for level in found["levels"][:-1]] == [5] * (levels - 1)
    assert found["collisions_after"] == 0
    assert found["ids_unchanged_after_append"] == 1.0
    assert (found["items"], found["seed"]) == (62, 3)
    assert found["known_by"] == {"embedding": 30, "text": 30, "id": 2}


def test_bare_items_are_told_apart_by_the_sequences(tables: Path) -> None:
    bare = ("tokens", "--items", tables / "bare.csv", "--codes", 3)
    alone, met = printed(*bare), printed(*bare, "--sequences", tables / "sequences.parquet")
    assert alone["known_by"] == {"embedding": 0, "text": 0, "id": 60}
    assert (alone["items"], met["items"]) == (60, 62)
    assert alone["neighbour_purity"] < 0.7
    assert met["neighbour_purity"] > 0.9


def test_the_same_tables_give_the_same_figures(tables: Path) -> None:
    first, again = (printed("tokens", "--items", tables / "items.parquet") for _ in range(2))
    assert {name: first[name] for name in set(first) - COMMON} == {name: again[name] for name in set(again) - COMMON}


def test_artifact_tells_of_a_version_and_refuses_a_damaged_one(tmp_path: Path) -> None:
    directory = tmp_path / "7"
    artifacts.write(small_artifact(item_ids(30), 7), directory)
    found = printed("artifact", directory)
    sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
    assert (found["items"], found["levels"], found["policy_version"]) == (30, 2, 7)
    assert (found["files"], found["size_bytes"], found["seed"]) == (sizes, sum(sizes.values()), None)
    assert 0 < found["verify_s"] < found["seconds"]
    assert 0 < found["load_s"] < found["seconds"]
    (directory / "vocabulary.json").write_text("[]")
    with pytest.raises(BadArtifact, match=r"7: vocabulary\.json has digest"):
        printed("artifact", directory)


def test_a_history_of_the_future_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    table, log = tmp_path / "log.csv", tmp_path / "log.db"
    table.write_text("user_id,item_id,time\na,x,1650582000\nb,y,4102444800\n")
    refused = CliRunner().invoke(app, ["data", "import", str(table), "--log", f"sqlite:///{log}"])
    assert isinstance(refused.exception, ImportRefused)
    assert "user 'b', item 'y': its time is 2100-01-01 00:00:00 UTC, after now" in str(refused.exception)
    assert not log.exists()
