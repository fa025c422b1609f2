"""Tables of items and of who met what: read whatever the columns are called, and refused by name when they can't be."""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.content import ItemText
from recsys.sequences import load_items, load_sequences, neighbours

EMB = np.array([[1, 2, 3], [0, 0, 0], [4, 5, 6]], np.float16)


def parquet(path: Path, **columns: Any) -> Path:
    pl.DataFrame(columns).write_parquet(path)
    return path


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


# Items ----------------------------------------------------------------------------------------------------------------


def test_an_item_is_its_id_its_title_and_all_other_columns(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "items.parquet",
        item=[7, 3],
        title=["Alien", None],
        price=[1.5, None],
        new=[True, False],
        attr=[[173, 1], []],
        genres=["horror | sci-fi|", "crime"],
    )
    assert load_items(path) == [
        ItemText("7", "Alien", {"price": "1.5", "new": "true", "attr": ("173", "1"), "genres": ("horror", "sci-fi")}),
        ItemText("3", "", {"new": "false", "genres": ("crime",)}),
    ]


def test_atomic_files_of_recbole_say_their_types_in_the_header(tmp_path: Path) -> None:
    items, met = tmp_path / "m.item", tmp_path / "m.inter"
    items.write_text('item_id:token\tmovie_title:token_seq\tyear:float\tclass:token_seq\n07\tToy "Story"\t1995\tfor Children\n1\t\t\tx\n')
    met.write_text("user_id:token\titem_id:token\ttimestamp:float\nu\t1\t20\nu\t07\t10\n")
    known = load_items(items)
    assert known[0] == ItemText("07", 'Toy "Story"', {"year": "1995.0", "class": ("for", "Children")})
    assert known[1] == ItemText("1", "", {"class": ("x",)})
    assert [one.tolist() for one in load_sequences(met, known).by_user] == [[0, 1]]
    items.write_text("item_id:token\ttitle:words\n1\tx\n")
    with pytest.raises(ValueError, match=r"'title:words' is no name:type with a type of token, float, token_seq, float_seq"):
        load_items(items)


@pytest.mark.parametrize("name", ["item", "item_id", "movieId", "video_id"])
def test_a_csv_reads_like_a_parquet_file_whatever_its_id_is_called(tmp_path: Path, name: str) -> None:
    table = pl.DataFrame({"year": [1979, 1995], name: ["a", "b"]})
    table.write_csv(tmp_path / "items.csv")
    table.write_parquet(tmp_path / "items.parquet")
    found = load_items(tmp_path / "items.csv")
    assert found == load_items(tmp_path / "items.parquet") == [ItemText("a", "", {"year": "1979"}), ItemText("b", "", {"year": "1995"})]


def test_an_embedding_of_zeros_and_one_that_is_lacking_are_none(tmp_path: Path) -> None:
    items = parquet(tmp_path / "items.parquet", item_id=["30", "20", "10", "40"], title=list("abcd"))
    found = load_items(items, npz(tmp_path / "e.npz", ids=np.array([10, 20, 99]), emb=EMB))
    assert [list(item.embedding) for item in found] == [[], [], [1, 2, 3], []]
    assert [bool(item.embedding) for item in found] == [False, False, True, False]
    assert [item.title for item in found] == list("abcd")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"movie": [1]}, "no column of the item; it must be one of item_id, item, .* there are movie"),
        ({"item": [1, None]}, "item is empty in 1 of 2 rows"),
        ({"item": [5, 6, 5]}, "item '5' stands in more than one row"),
        ({"item": [1], "raw": [b"x"]}, "raw holds Binary; it must hold texts, numbers"),
        ({"item": [1], "deep": [[[1]]]}, r"deep holds List\(List\(Int64\)\)"),
        ({"item": [1], "pair": [{"a": 1}]}, "pair holds Struct"),
    ],
)
def test_items_that_can_not_be_read_are_named(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_items(parquet(tmp_path / "items.parquet", **columns))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ids": np.arange(3)}, "must be an .npz file with the arrays ids and emb"),
        ({"ids": np.array([1, None], object), "emb": EMB[:2]}, "must be an .npz file .* no objects"),
        ({"ids": np.arange(2), "emb": EMB}, r"ids has shape \(2,\) and emb \(3, 3\)"),
        ({"ids": np.arange(3), "emb": EMB[:, 0]}, r"ids has shape \(3,\) and emb \(3,\)"),
        ({"ids": np.arange(3), "emb": EMB.astype(int)}, "of int64; they must be"),
        (
            {"ids": np.arange(3), "emb": np.where(EMB == 5, np.nan, EMB)},
            "emb of 2: each value must .* 1 of 3 rows",
        ),
        (
            {"ids": np.arange(3), "emb": np.where(EMB == 5, 2e6, EMB.astype(np.float32))},
            "emb of 2: each value must .* 1 of 3 rows",
        ),
        ({"ids": np.array([1, 2, 1]), "emb": EMB}, "id '1' stands in more than one row"),
        ({"ids": np.arange(3), "emb": np.ones((3, 4097), np.float16)}, "emb has 4097 values an item; at most 4096"),
        ({"ids": np.array(["x", "y", "z"]), "emb": EMB}, r"none of its ids \(x, y, z, …\) is an item \(1, …\)"),
    ],
)
def test_embeddings_that_can_not_be_read_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    items = parquet(tmp_path / "items.parquet", item=[1])
    with pytest.raises(ValueError, match=message):
        load_items(items, npz(tmp_path / "e.npz", **arrays))


def test_what_is_no_npz_is_named(tmp_path: Path) -> None:
    items = parquet(tmp_path / "items.parquet", item=[1])
    np.save(tmp_path / "e.npy", EMB)
    (tmp_path / "empty.npz").touch()
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    for name in ("e.npy", "empty.npz", "broken.npz", "items.parquet"):
        with pytest.raises(ValueError, match=rf"{name}: it must be an \.npz file"):
            load_items(items, tmp_path / name)
    with pytest.raises(ValueError, match=r"gone\.npz: no such file"):
        load_items(items, tmp_path / "gone.npz")


# Sequences ------------------------------------------------------------------------------------------------------------


def test_lists_of_items_are_places_among_the_items(tmp_path: Path) -> None:
    path = parquet(tmp_path / "s.parquet", user=["u", "v", "w"], items=[[2, 9, 2], [], [8, 1]])
    found = load_sequences(path, [ItemText("1", "one"), ItemText("2", "two")])
    assert found.items == [ItemText("1", "one"), ItemText("2", "two"), ItemText("9"), ItemText("8")]
    assert [one.tolist() for one in found.by_user] == [[1, 2, 1], [], [3, 0]]


@pytest.mark.parametrize(
    "times",
    [
        {"timestamp": [30, 20, 10, 20]},
        {"time": ["2024-01-03", "2024-01-02", "2024-01-01", "2024-01-02"]},
        {"event_time_ms": [datetime(2024, 1, day) for day in (3, 2, 1, 2)]},
    ],
)
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_interactions_go_by_time_and_at_one_time_by_row(tmp_path: Path, times: dict[str, Any], form: str) -> None:
    table = pl.DataFrame({"userId": [5, 4, 4, 4], "movieId": ["a", "b", "c", "a"], "rating": [1, 2, 3, 4], **times})
    path = tmp_path / f"s.{form}"
    table.write_csv(path) if form == "csv" else table.write_parquet(path)
    found = load_sequences(path)
    ids = [[found.items[number].item_id for number in one] for one in found.by_user]
    assert ids == [["a"], ["c", "b", "a"]]
    assert sorted(item.item_id for item in found.items) == ["a", "b", "c"]


def test_interactions_without_a_time_stand_in_their_order(tmp_path: Path) -> None:
    found = load_sequences(parquet(tmp_path / "s.parquet", user=[1, 2, 1, 1], item=[9, 9, 5, 7]), [ItemText("7")])
    assert [item.item_id for item in found.items] == ["7", "9", "5"]
    assert [one.tolist() for one in found.by_user] == [[1, 2, 0], [1]]


def test_what_is_not_read_and_what_is_not_known_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = parquet(tmp_path / "s.parquet", user=[1, 1, 1], item=[9.0, 5.0, 7.0], clock=[3, 1, 2])
    found = load_sequences(path, [ItemText("7")])
    assert [found.items[number].item_id for number in found.by_user[0]] == ["9", "5", "7"]
    assert "the order of rows counts; not read: clock" in caplog.text
    assert "2 of 3 items are not among those given, like 9" in caplog.text
    with pytest.raises(ValueError, match=r"none of its 3 items \(9, 5, 7, …\) is among the 1 given \(x, …\)"):
        load_sequences(path, [ItemText("x")])


def test_a_row_that_repeats_another_counts_once_where_there_are_times(tmp_path: Path) -> None:
    columns = {"user": [1, 1, 1], "item": [9, 9, 5]}
    assert load_sequences(parquet(tmp_path / "s.parquet", **columns)).by_user[0].tolist() == [0, 0, 1]
    assert load_sequences(parquet(tmp_path / "s.parquet", **columns, ts=[1, 1, 2])).by_user[0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"who": [1], "item": [1]}, "no column of the user; it must be one of user_id, user, userId, and there are who, item"),
        ({"user": [1], "what": [1]}, "no column of the item"),
        ({"user": [1, None], "item": [1, 2]}, "user is empty in 1 of 2 rows"),
        ({"user": [1], "item": [1], "time": ["soon"]}, "time holds 'soon', which is no time"),
        ({"user": [1, 2], "item": [1, 2], "time": [datetime(2024, 1, 1), None]}, "time is empty in 1 of 2 rows"),
        ({"user": [1, 2], "item": [1, 2], "time": ["2024-01-01", None]}, "time is empty in 1 of 2 rows"),
        ({"user": [1, 2], "item": ["", "x"]}, "item is empty in 1 of 2 rows"),
        ({"user": [1], "items": ["1 2"]}, "items holds String; it must hold lists"),
        ({"user": [1, 2], "items": [[1], None]}, "items is empty in 1 of 2 rows"),
        ({"user": [1], "items": [[1, None]]}, "items is empty in 1 of 2"),
    ],
)
def test_sequences_that_can_not_be_read_are_named(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_sequences(parquet(tmp_path / "s.parquet", **columns))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), max_size=5), max_size=5))
def test_neighbours_are_who_stood_beside_whom_both_ways(by_user: list[list[int]]) -> None:
    there = [(one[at], one[at + 1]) for one in by_user for at in range(len(one) - 1)]
    pairs = neighbours([np.array(one, np.int64) for one in by_user])
    assert list(map(tuple, pairs.tolist())) == there + [(b, a) for a, b in there]
