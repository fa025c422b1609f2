"""Items and sequences from the tables of public data sets: what each item is, and which items each user met in which order.

Knows nothing of ids, models or logs. Columns are found by their names, the first of a short list that the table has.
Everything that can't be read is an ImportRefused, which is a ValueError.
"""

import logging
import zipfile
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from models.content import ItemText
from recsys.admission import MAX_EMBEDDING, MAX_EMBEDDING_VALUE
from recsys.imports import ImportRefused
from recsys.tables import ids_of, read_table, refuse_nested, refuse_nulls, tell_of_strangers, times_ms, without_repeats

LOG = logging.getLogger(__name__)

Numbers = npt.NDArray[np.int64]
Values = list[str | tuple[str, ...] | None]
Embeddings = Mapping[str, Sequence[float]]

ITEM_COLUMNS = ("item_id", "item", "itemId", "movieId", "movie_id", "video_id")
USER_COLUMNS = ("user_id", "user", "userId")
TIME_COLUMNS = ("event_time_ms", "time_ms", "time", "timestamp", "event_time", "ts", "datetime", "date")
LIST_COLUMNS = ("items", "item_ids")
TITLE_COLUMNS = ("title", "movie_title")
SEPARATOR = "|"
"""A column of text with this anywhere in it holds several values a cell."""


@dataclass(frozen=True)
class Sequences:
    """`by_user[u]` are places in `items`, in the order in which user u met them."""

    items: list[ItemText]
    by_user: list[Numbers]


def load_items(path: Path, embeddings: Path | None = None) -> list[ItemText]:
    """The items of a table, in its order: id, `title` where there is one, all other columns as attributes.

    A list column, and one of texts like "a | b", gives several values under one key; of a number that is not whole only the power of two
    counts (models/content.py). `embeddings` is an .npz with `ids` (N,) and `emb` (N, any); an item that it lacks, or has zeros for, is
    known by its text, and what it has beyond the items is left out.
    """
    table = read_table(path)
    key = _column(table, ITEM_COLUMNS, "item", path)
    ids = ids_of(table[key], path)
    if ids.is_duplicated().any():
        raise ImportRefused(f"{path}: {key} {ids.filter(ids.is_duplicated())[0]!r} stands in more than one row; an item has one")
    title = next((name for name in TITLE_COLUMNS if name in table.columns), None)
    titles = _titles(table[title]) if title else [""] * table.height
    columns = {name: _values(table[name], path) for name in table.columns if name not in {key, title}}
    given = _embeddings(embeddings, ids) if embeddings else {}
    return [
        ItemText(item_id, title, {name: value for name, values in columns.items() if (value := values[row])}, given.get(item_id, ()))
        for row, (item_id, title) in enumerate(zip(ids.to_list(), titles, strict=True))
    ]


def load_sequences(path: Path, items: Sequence[ItemText] = ()) -> Sequences:
    """The sequences of a table: one row a user with a list of items, or one row an interaction with user, item and maybe time.

    Users come in order of first appearance; interactions go by time, at one time (or without it) by the order of rows.
    An item that `items` lacks is added after them, known by its id only.
    """
    lists = _lists(read_table(path), path)
    flat = ids_of(lists.list.explode(keep_nulls=True, empty_as_null=False), path)
    number_of = {item.item_id: number for number, item in enumerate(items)}
    fresh = [item_id for item_id in flat.unique(maintain_order=True).to_list() if item_id not in number_of]
    if items:
        tell_of_strangers(flat, pl.Series([item.item_id for item in items]), path)
    number_of |= {item_id: number for number, item_id in enumerate(fresh, len(number_of))}
    numbers = flat.replace_strict(number_of, return_dtype=pl.Int64).to_numpy()
    ends = lists.list.len().cum_sum().to_numpy()
    return Sequences([*items, *map(ItemText, fresh)], np.split(numbers, ends[:-1]))


def neighbours(by_user: Sequence[Numbers]) -> Numbers:
    """Pairs of items that a user met one after the other, both ways, (P, 2)."""
    there = [np.stack([one[:-1], one[1:]], 1) for one in by_user]
    there_P2 = np.concatenate([np.zeros((0, 2), np.int64), *there])
    return np.concatenate([there_P2, there_P2[:, ::-1]])


def _lists(table: pl.DataFrame, path: Path) -> pl.Series:
    """One list of item ids a user."""
    listed = next((name for name in LIST_COLUMNS if name in table.columns), None)
    if listed:
        if not isinstance(table.schema[listed], pl.List):
            raise ImportRefused(f"{path}: {listed} holds {table.schema[listed]}; it must hold lists (parquet), or leave it out")
        refuse_nulls(table, [listed], path)
        return table[listed]
    user, item = _column(table, USER_COLUMNS, "user", path), _column(table, ITEM_COLUMNS, "item", path)
    time = next((name for name in TIME_COLUMNS if name in table.columns), None)
    if time:
        table = without_repeats(table, path)
    else:
        others = ", ".join(name for name in table.columns if name not in {user, item}) or "nothing"
        LOG.warning("%s: no column of time (%s): the order of rows counts; not read: %s", path, ", ".join(TIME_COLUMNS), others)
    when = times_ms(table[time], path) if time else pl.int_range(table.height, eager=True)
    rows = pl.DataFrame([ids_of(table[user], path), ids_of(table[item], path), when.alias("when")])
    return rows.group_by(user, maintain_order=True).agg(pl.col(item).sort_by("when", maintain_order=True))[item]


def _column(table: pl.DataFrame, names: Sequence[str], role: str, path: Path) -> str:
    """The first of the names that the table has."""
    for name in names:
        if name in table.columns:
            return name
    raise ImportRefused(f"{path}: no column of the {role}; it must be one of {', '.join(names)}, and there are {', '.join(table.columns)}")


def _titles(cells: pl.Series) -> list[str]:
    """Texts; words in a list are one."""
    texts = cells.cast(pl.List(pl.String)).list.join(" ") if isinstance(cells.dtype, pl.List) else cells.cast(pl.String)
    return texts.fill_null("").to_list()


def _values(cells: pl.Series, path: Path) -> Values:
    """What each cell says: a text, several as a tuple, or nothing."""
    refuse_nested(cells, path)
    if isinstance(cells.dtype, pl.List):
        lists = cells.cast(pl.List(pl.String))
    else:
        texts = cells.cast(pl.String)
        if not texts.str.contains(SEPARATOR, literal=True).any():
            return texts.to_list()
        lists = texts.str.split(SEPARATOR).list.eval(pl.element().str.strip_chars())
    return [None if values is None else tuple(value for value in values if value) for values in lists.to_list()]


def _embeddings(path: Path, ids: pl.Series) -> Embeddings:
    """Embeddings that are not all zeros, by item id, as packed floats."""
    names, emb = _arrays(path)
    if emb.ndim != 2 or names.shape != emb.shape[:1] or not np.issubdtype(emb.dtype, np.floating):
        raise ImportRefused(
            f"{path}: ids has shape {names.shape} and emb {emb.shape} of {emb.dtype}; they must be (N,) and (N, any) floats"
        )
    if emb.shape[1] > MAX_EMBEDDING:
        raise ImportRefused(f"{path}: emb has {emb.shape[1]} values an item; at most {MAX_EMBEDDING}")
    with np.errstate(over="ignore"):
        emb = emb.astype(np.float32)
    broken = np.flatnonzero(~(np.abs(emb) <= MAX_EMBEDDING_VALUE).all(1))
    if len(broken):
        needed = "each value must be a number of at most 1e6 in size"
        raise ImportRefused(f"{path}: emb of {names[broken[0]]!s}: {needed}; {len(broken)} of {len(emb)} rows are not so")
    texts = [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]
    number_of = {name: number for number, name in enumerate(texts)}
    if len(number_of) < len(texts):
        twice = next(name for number, name in enumerate(texts) if number_of[name] != number)
        raise ImportRefused(f"{path}: id {twice!r} stands in more than one row; an item has one")
    known = {item_id: number for item_id in ids.to_list() if (number := number_of.get(item_id)) is not None}
    if not known:
        raise ImportRefused(f"{path}: none of its ids ({', '.join(list(number_of)[:3])}, …) is an item ({', '.join(ids[:3])}, …)")
    return {item_id: array("f", emb[number].tobytes()) for item_id, number in known.items() if emb[number].any()}


def _arrays(path: Path) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.floating]]:
    if not path.is_file():
        raise ImportRefused(f"{path}: no such file")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as named:
            return named["ids"], named["emb"]
    except (ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ImportRefused(f"{path}: it must be an .npz file with the arrays ids and emb, and no objects in them") from error
