"""Tables in CSV, TSV, parquet and RecBole's atomic files; errors name the file and the column. Knows nothing of what they hold."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from recsys.imports import ImportRefused

LOG = logging.getLogger(__name__)

_ATOMIC = {"token": pl.String(), "float": pl.Float64(), "token_seq": pl.List(pl.String), "float_seq": pl.List(pl.Float64)}
"""The types that a column of an atomic file can have."""

LATEST = 1e19
"""Nanoseconds until the year 2286."""
UNITS = (("seconds", 0.001, 1e11), ("milliseconds", 1.0, 1e14), ("microseconds", 1e3, 1e17), ("nanoseconds", 1e6, LATEST))
"""What numbers up to a limit are, and how many make a millisecond. Until the year 5138 seconds are below 1e11, and milliseconds above it
since 1973; so too micro- and nanoseconds.
"""
EXACT_FLOATS = 2.0**53


def ids_of(cells: pl.Series, path: Path) -> pl.Series:
    """Ids as texts, those of floats that are all whole as integers: so a column is written that once had a gap. ImportRefused where one is
    empty or no number.
    """
    refuse_nulls(cells.to_frame(), [cells.name], path)
    if cells.dtype.is_float():
        if not cells.is_finite().all():
            bad = cells.filter(~cells.is_finite())
            raise ImportRefused(f"{path}: {cells.name} holds {bad[0]}, which is no id; {bad.len()} of {cells.len()} are not")
        if (cells == cells.round()).all() and (cells.abs() < EXACT_FLOATS).all():
            cells = cells.cast(pl.Int64)
    texts = cells.cast(pl.String)
    if (texts == "").any():
        raise ImportRefused(f"{path}: {cells.name} is empty in {(texts == '').sum()} of {cells.len()} rows")
    return texts


def times_ms(times: pl.Series, path: Path) -> pl.Series:
    """UTC milliseconds. ImportRefused names the first time that can't be read."""
    refuse_nulls(times.to_frame(), [times.name], path)
    if isinstance(times.dtype, pl.Date | pl.Datetime):
        return times.cast(pl.Datetime("ms")).dt.epoch("ms")
    if not (times.dtype.is_numeric() or times.dtype == pl.String):
        raise ImportRefused(f"{path}: {times.name} holds {times.dtype}; it must hold numbers, texts in ISO 8601, dates or dates with times")
    numbers = times.cast(pl.Float64, strict=False)
    if times.dtype == pl.String and numbers.null_count() == times.len():
        return pl.Series([_iso_ms(text, path, times.name) for text in times], dtype=pl.Int64)
    bad_N = (~(numbers.is_finite() & (numbers >= 0) & (numbers < LATEST)).fill_null(value=False)).arg_true()
    if bad_N.len():
        first = bad_N[0]
        wrong = "beside numbers; all must be numbers, or all ISO 8601" if numbers[first] is None else "which is no time"
        raise ImportRefused(f"{path}: {times.name} holds {times[first]!r}, {wrong}; {bad_N.len()} of {times.len()} are not")
    if (dates := _dates_in(numbers)) is not None:
        LOG.warning("%s: %s holds %s: read as dates, like %s", path, times.name, times[0], dates[0])
        return times_ms(dates, path)
    unit_N = np.searchsorted([limit for *_, limit in UNITS], numbers.to_numpy(), side="right")
    unit, per_ms, _ = UNITS[unit_N[0]]
    if (other_N := np.flatnonzero(unit_N != unit_N[0])).size:
        held = f"{times[0]}, which is {unit}, and {times[int(other_N[0])]}, which is {UNITS[unit_N[other_N[0]]][0]}"
        raise ImportRefused(f"{path}: {times.name} holds {held}; all must be in one unit")
    return (numbers / per_ms).round().cast(pl.Int64)


def _dates_in(numbers: pl.Series) -> pl.Series | None:
    """Numbers that are all dates, like 20240115, as such: as seconds they would all be of 1970 to 1973."""
    if not numbers.is_between(1000_01_01, 9999_12_31).all() or not (numbers == numbers.round()).all():
        return None
    dates = numbers.cast(pl.Int64).cast(pl.String).str.to_date("%Y%m%d", strict=False)
    return None if dates.null_count() else dates


def _iso_ms(text: str, path: Path, column: str) -> int:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise ImportRefused(f"{path}: {column} holds {text!r}, which is no time; a number or ISO 8601 is needed") from error
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


def read_table(path: Path) -> pl.DataFrame:
    """A CSV, TSV, parquet or atomic file (.inter, .item, .user of RecBole) with at least one row. All that CSV and TSV hold is text."""
    if not path.is_file():
        raise ImportRefused(f"{path}: no such file; {path.parent} holds {_listing(path.parent)}")
    try:
        match path.suffix:
            case ".parquet":
                table = pl.read_parquet(path)
            case ".csv" | ".tsv":
                # as text: a number is not what an id like 007 or a version like 1.10 is
                table = pl.read_csv(path, separator="\t" if path.suffix == ".tsv" else ",", infer_schema=False)
            case ".inter" | ".item" | ".user":
                table = _atomic(path)
            case _:
                raise ImportRefused(f"{path}: {path.suffix!r} is none of .csv, .tsv, .parquet, .inter, .item, .user")
    except pl.exceptions.PolarsError as error:
        raise ImportRefused(f"{path}: {str(error).splitlines()[0]}") from error
    if table.is_empty():
        raise ImportRefused(f"{path}: no rows")
    return table


def _atomic(path: Path) -> pl.DataFrame:
    """Tab-separated columns named `name:type`; a `_seq` type parts its values by spaces (RecBole 1.2, "Atomic files")."""
    table = pl.read_csv(path, separator="\t", infer_schema=False, quote_char=None)
    columns = []
    for column in table.columns:
        name, _, kind = column.rpartition(":")
        form = _ATOMIC.get(kind)
        if form is None or not name:
            raise ImportRefused(f"{path}: column {column!r} is no name:type with a type of {', '.join(_ATOMIC)}")
        cells = pl.col(column).str.split(" ") if isinstance(form, pl.List) else pl.col(column)
        columns.append(cells.cast(form).alias(name))
    return table.select(columns)


def read_split(path: Path, separator: str, names: Sequence[str]) -> pl.DataFrame:
    """A file without header whose fields `separator` parts, as MovieLens publishes it (Latin-1). Polars splits on single bytes only."""
    lines = [line for line in path.read_text(encoding="latin-1").split("\n") if line]
    if not lines:
        raise ImportRefused(f"{path}: no rows")
    fields = pl.Series("line", lines).str.split(separator)
    wrong = (fields.list.len() != len(names)).arg_true()
    if wrong.len():
        raise ImportRefused(f"{path}: line {wrong[0] + 1} has not the {len(names)} fields {list(names)}: {lines[wrong[0]]!r}")
    return fields.list.to_struct(fields=list(names)).struct.unnest()


def columns_of(table: pl.DataFrame, names: Sequence[str], path: Path, *, keep_others: bool = False) -> pl.DataFrame:
    """These columns, or all when `keep_others`; ImportRefused names the first that is missing and those there are."""
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise ImportRefused(f"{path}: no column {missing[0]!r}; there are {', '.join(table.columns)}")
    return table if keep_others else table.select(names)


def refuse_nulls(table: pl.DataFrame, names: Sequence[str], path: Path) -> None:
    """ImportRefused when one of the columns has empty cells."""
    for name in names:
        if table[name].null_count():
            raise ImportRefused(f"{path}: {name} is empty in {table[name].null_count()} of {table.height} rows")


def without_repeats(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Rows that repeat another in every column are left out, and it is said how many."""
    kept = table.unique(maintain_order=True)
    if kept.height < table.height:
        LOG.warning("%s: %d of %d rows repeat another in every column and are left out", path, table.height - kept.height, table.height)
    return kept


def numbers_of(cells: pl.Series, path: Path, *, most: float, least: float = 0.0) -> pl.Series:
    """Numbers of these bounds. ImportRefused names the first that is none."""
    refuse_nulls(cells.to_frame(), [cells.name], path)
    numbers = cells.cast(pl.Float64, strict=False)
    bad = cells.filter(~numbers.is_between(least, most).fill_null(value=False))
    if bad.len():
        raise ImportRefused(f"{path}: {cells.name} holds {bad[0]!r}; a number of {least:g} to {most:g} is needed; {bad.len()} are none")
    return numbers


def tell_of_strangers(met: pl.Series, known: pl.Series, path: Path) -> None:
    """Warn of items met that no table of items knows; ImportRefused where it knows none of them."""
    met = met.unique(maintain_order=True)
    strangers = met.filter(~met.is_in(known.implode()))
    if strangers.len() == met.len():
        ids = f"({', '.join(met[:3])}, …)", f"({', '.join(known[:3])}, …)"
        raise ImportRefused(f"{path}: none of its {met.len()} items {ids[0]} is among the {known.len()} given {ids[1]}")
    if strangers.len():
        what = "%s: %d of %d items are not among those given, like %s: known by their id alone"
        LOG.warning(what, path, strangers.len(), met.len(), strangers[0])


def refuse_nested(cells: pl.Series, path: Path) -> None:
    """ImportRefused for a column that holds neither values nor lists of them."""
    inner = cells.dtype.inner if isinstance(cells.dtype, pl.List) else cells.dtype
    if inner is None or inner.is_nested() or inner in {pl.Binary, pl.Object}:
        raise ImportRefused(f"{path}: {cells.name} holds {cells.dtype}; it must hold texts, numbers, booleans, times or lists of them")


def all_files(directory: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of the first pattern that has any, in `directory` or its `data/` (as the archives unpack), by name."""
    for pattern in patterns:
        found = sorted([*directory.glob(pattern), *directory.glob(f"data/{pattern}")])
        if found:
            return found
    raise ImportRefused(f"{directory}: none of {', '.join(patterns)}; it holds {_listing(directory)}")


def one_file(directory: Path, patterns: Sequence[str]) -> Path:
    """The first of `all_files`."""
    return all_files(directory, patterns)[0]


def _listing(directory: Path) -> str:
    if not directory.is_dir():
        return "nothing: no such directory"
    return ", ".join(sorted(path.name for path in directory.iterdir())[:20]) or "nothing"
