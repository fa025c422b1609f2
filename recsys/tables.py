"""Tables in CSV, TSV, parquet and RecBole's atomic files; errors name the file and the column. Knows nothing of what they hold."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from recsys.imports import ImportRefused

_ATOMIC = {"token": pl.String(), "float": pl.Float64(), "token_seq": pl.List(pl.String), "float_seq": pl.List(pl.Float64)}
"""The types that a column of an atomic file can have."""

LATEST = 1e19
"""Nanoseconds until the year 2286."""


def times_ms(times: pl.Series, path: Path) -> pl.Series:
    """UTC milliseconds. ImportRefused names the first time that can't be read."""
    if isinstance(times.dtype, pl.Date | pl.Datetime):
        return times.cast(pl.Datetime("ms")).dt.epoch("ms")
    if not (times.dtype.is_numeric() or times.dtype == pl.String):
        raise ImportRefused(f"{path}: {times.name} holds {times.dtype}; it must hold numbers, texts in ISO 8601, dates or dates with times")
    numbers = times.cast(pl.Float64, strict=False)
    if times.dtype == pl.String and numbers.null_count() == times.len():
        return pl.Series([_iso_ms(text, path, times.name) for text in times], dtype=pl.Int64)
    bad = times.filter(~(numbers.is_finite() & (numbers >= 0) & (numbers < LATEST)).fill_null(value=False))
    if bad.len():
        wrong = "which is no time" if times.dtype != pl.String else "beside numbers; all must be numbers, or all ISO 8601"
        raise ImportRefused(f"{path}: {times.name} holds {bad[0]!r}, {wrong}; {bad.len()} of {times.len()} are not")
    largest = float(numbers.to_numpy().max())
    # Until the year 5138 seconds are below 1e11, and milliseconds above it since 1973; so too micro- and nanoseconds.
    per_ms = next((unit for unit, limit in ((0.001, 1e11), (1.0, 1e14), (1e3, 1e17)) if largest < limit), 1e6)
    return (numbers / per_ms).round().cast(pl.Int64)


def _iso_ms(text: str, path: Path, column: str) -> int:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise ImportRefused(f"{path}: {column} holds {text!r}, which is no time; a number or ISO 8601 is needed") from error
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


def read_table(path: Path) -> pl.DataFrame:
    """A CSV, TSV, parquet or atomic file (.inter, .item, .user of RecBole) with at least one row."""
    if not path.is_file():
        raise ImportRefused(f"{path}: no such file; {path.parent} holds {_listing(path.parent)}")
    try:
        match path.suffix:
            case ".parquet":
                table = pl.read_parquet(path)
            case ".csv" | ".tsv":
                table = pl.read_csv(path, separator="\t" if path.suffix == ".tsv" else ",", infer_schema_length=10_000)
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
