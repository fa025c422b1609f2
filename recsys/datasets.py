"""Public logs in their official file formats → the common form of `imports`. Knows no log, no model and no policy.

Nothing that sums up the time after an event is ever read: KuaiRand's `*_cnt` and `*_duration` columns are averages of the
whole month and would tell the future.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import polars as pl

from recsys.imports import ITEMS, MINUTE_MS, PAIRS, WATCH, Frames, ImportRefused, make_frames
from recsys.tables import (
    all_files,
    columns_of,
    ids_of,
    numbers_of,
    one_file,
    read_split,
    read_table,
    refuse_nested,
    refuse_nulls,
    tell_of_strangers,
    times_ms,
    without_repeats,
)
from streaming.joiner import MAX_VALUE

CLICK_DELAY_CAP_MS = 50_000
"""KuaiRand tells no click time. We take time_ms + play_time_ms, at most this: an assumption; it must lie in the 60 s window."""
GOOD_RATING = 4.0
"""A rating of this or more counts as a click, as is customary for MovieLens."""
SAMPLE_SHARE = 0.35
MIN_EXPOSURES = 5
WARM_START_DAYS = 10
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

_KUAIRAND_LOG = ["user_id", "video_id", "time_ms", "is_click", "is_like", "is_hate", "long_view", "play_time_ms", "duration_ms", "tab"]
_KUAIRAND_ITEMS = ["video_id", "author_id", "video_type", "upload_type", "music_type", "video_duration", "tag"]
_ML100K_GENRES = [
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
]
_DURATION_BOUNDS_S = [15.0, 30.0, 60.0, 120.0, 240.0]
_DURATION_NAMES = ["0-15s", "15-30s", "30-60s", "60-120s", "120-240s", "240s-"]


@dataclass(frozen=True, kw_only=True)
class TableColumns:
    """Which column of a table says what; None where the table has none.

    `time` is UTC: numbers in s, ms, µs or ns (told by their size, one unit for all), dates like 20240115, or ISO 8601. Without `shown`
    every row is organic, unless there is `click`: then every row is an exposure and `click` says whether it was clicked. `kind` and
    `value` name a feedback; without `kind` an organic row is a "watch", without `value` it counts 1.
    """

    user: str
    item: str
    time: str
    kind: str | None = None
    value: str | None = None
    shown: str | None = None
    click: str | None = None
    context: tuple[str, ...] = ()

    def named(self) -> list[str]:
        """The columns that must be there."""
        optional = (self.kind, self.value, self.shown, self.click)
        return list(dict.fromkeys([self.user, self.item, self.time, *(name for name in optional if name), *self.context]))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The log that ships with the project: exposures of KuaiRand-Pure with real clicks, of whole users, in time order.

    `log`: user_id, item_id, event_time_ms, click, like, long_view, play_time_ms, duration_ms, tab. `history`: user_id,
    last_time_ms and item_ids, the at most 50 videos before the log, oldest first. `items`: schema imports.ITEMS.
    """

    log: pl.DataFrame
    history: pl.DataFrame
    items: pl.DataFrame

    @property
    def warm_start_until_ms(self) -> int:
        """The end of the first 10 days, on the hour: what lies before may warm a model up, and worlds begin here."""
        return int(self.log["event_time_ms"][0]) // HOUR_MS * HOUR_MS + WARM_START_DAYS * DAY_MS

    def frames(self, until_ms: int | None = None, *, kinds: Sequence[str] | None = None, history: int = 0) -> Frames:
        """The exposures before `until_ms` (all without it) in the common form, with the feedback `kinds` (all without them).

        Before them, as organic Interactions, the last `history` videos of each user: their order is known and their times are
        not, so they stand in the minute before the log.
        """
        log = self.log if until_ms is None else self.log.filter(pl.col("event_time_ms") < until_ms)
        shown = _video_interactions(log.with_columns(hate=pl.lit(0)))
        if kinds is not None:
            shown = shown.with_columns(pl.col("feedback").list.filter(pl.element().struct.field("kind").is_in(list(kinds))))
        first_ms = int(self.log["event_time_ms"][0])
        return make_frames(pl.concat([_watched(self.history, history, first_ms), shown]), self.items)


def load_kuairand(directory: Path, *, history: int = 0) -> Frames:
    """KuaiRand-Pure, -1K or -27K as published (`log_standard_*.csv`, `video_features_basic_*.csv`), or the same as parquet.

    Exact repeats (5,460 in -Pure) are dropped. Feedback: click, like, long_view, dislike, play_ms; context: tab. Before the log, as
    organic Interactions, the last `history` videos of each of its users out of `history_*.parquet`: long_view where it was one, else watch.
    ImportRefused names a missing file or column and what is there.
    """
    raw, videos = _read_kuairand(directory)
    log = _kuairand_log(raw)
    shown, first_ms = _video_interactions(log), int(log["event_time_ms"][0])
    if history:
        before = _read_history(directory, "long_watch_seq").join(log, on="user_id", how="semi", maintain_order="left")
        before = before.filter(pl.col("last_time_ms") < first_ms)
        shown = pl.concat([_watched(before, history, first_ms, long="long_watch_seq"), shown])
    return make_frames(shown, _video_items(videos))


def _watched(history: pl.DataFrame, count: int, first_ms: int, long: str | None = None) -> pl.DataFrame:
    """The last `count` of `item_ids` of each user as organic rows of the minute before the log; those in `long` as long views."""
    is_long = pl.col("item_id").is_in(pl.col(long)) if long else pl.lit(value=False)
    watched = history.with_columns(item_id=pl.col("item_ids").list.tail(count)).explode("item_id").filter(pl.col("item_id").is_not_null())
    return watched.select(
        "user_id",
        "item_id",
        event_time_ms=first_ms - MINUTE_MS + pl.int_range(pl.len()).over("user_id"),
        shown=pl.lit(value=False),
        feedback=_feedback(_entry("long_view", pl.lit(1.0), when=is_long), _entry(WATCH, pl.lit(1.0), when=~is_long)),
        context=pl.lit([], dtype=PAIRS),
    )


def _read_history(directory: Path, *more: str) -> pl.DataFrame:
    """user_id, last_time_ms, item_ids (oldest first) and the lists `more` of what users watched before the log."""
    path = one_file(directory, ["history_*.parquet"])
    history = columns_of(read_table(path), ["user_id", "last_time_ms", "watch_seq", *more], path).rename({"watch_seq": "item_ids"})
    return history.with_columns(pl.col("user_id").cast(pl.String), pl.col("item_ids", *more).cast(pl.List(pl.String)))


def load_movielens(directory: Path) -> Frames:
    """MovieLens of any size: `ratings.csv`, `ratings.dat` (1M, 10M), `u.data` (100K) or `ratings.parquet`, and the movies beside it.

    A rating is what a user did on his own: feedback "rating" with its value and, from 4 on, a "click".
    """
    ratings, movies = _read_movielens(directory)
    rating = pl.col("rating")
    interactions = ratings.unique(maintain_order=True).select(
        "user_id",
        "item_id",
        event_time_ms=pl.col("time_ms"),
        shown=pl.lit(value=False),
        feedback=_feedback(_entry("rating", rating, when=pl.lit(value=True)), _entry("click", pl.lit(1.0), when=rating >= GOOD_RATING)),
        context=pl.lit([], dtype=PAIRS),
    )
    return make_frames(interactions, movies)


def load_table(path: Path, columns: TableColumns, items: Path | None = None) -> Frames:
    """Any CSV or parquet file with one row per event. `items`, if given, has the item column, maybe `title`, and attributes.

    Rows that repeat another in all columns are dropped; those of one user, item and time that tell of several kinds are one exposure.
    ImportRefused names a missing column and those there, and the first time or value that can't be read.
    """
    table = columns_of(without_repeats(read_table(path), path), columns.named(), path)
    flags = {name: _flags(table[name], path) for name in filter(None, (columns.shown, columns.click))}
    shown = pl.lit(flags[columns.shown]) if columns.shown else pl.lit(columns.click is not None)
    value = pl.lit(numbers_of(table[columns.value], path, least=-MAX_VALUE, most=MAX_VALUE)) if columns.value else pl.lit(1.0)
    kind = pl.col(columns.kind).cast(pl.String) if columns.kind else pl.lit("value" if columns.value else "watch")
    if columns.click and columns.kind and (table[columns.kind].cast(pl.String) == "click").any():
        raise ImportRefused(f"{path}: {columns.kind} holds 'click' beside the column {columns.click} of clicks; one of them must say it")
    entries = [_entry("click", pl.lit(1.0), when=pl.lit(flags[columns.click]))] if columns.click else []
    if columns.kind or columns.value or not columns.click:
        # An exposure with nothing said about it earned nothing: "watch" is only for what a user came to on his own.
        entries.append(_entry(kind, value, when=pl.lit(value=True) if columns.kind or columns.value else ~shown))
    interactions = table.select(
        user_id=ids_of(table[columns.user], path),
        item_id=ids_of(table[columns.item], path),
        event_time_ms=times_ms(table[columns.time], path),
        shown=shown,
        feedback=_feedback(*entries),
        context=_pairs({name: pl.col(name) for name in columns.context}),
        kind=kind,
    )
    known = _table_items(items, columns.item)
    if items:
        tell_of_strangers(interactions["item_id"], known["item_id"], path)
    return make_frames(_one_row_an_exposure(interactions) if columns.kind else interactions, known)


def _one_row_an_exposure(interactions: pl.DataFrame) -> pl.DataFrame:
    """Rows of one item that a user was shown at one time and that tell of different kinds of feedback are one: it was shown once."""
    by = ["user_id", "item_id", "event_time_ms", "shown"]
    numbered = interactions.with_columns(repeat=pl.int_range(pl.len()).over(*by, "kind"))
    feedback, context = pl.col("feedback").explode(keep_nulls=False, empty_as_null=False), pl.col("context").first()
    together = numbered.filter("shown").group_by(*by, "repeat", maintain_order=True).agg(feedback, context)
    return pl.concat([together, numbered.filter(~pl.col("shown"))], how="diagonal")


def load_sample() -> Sample:
    """The sample that ships with the package (`recsys/sample/`: see its README for source, licence and changes)."""
    with resources.as_file(resources.files("recsys") / "sample") as directory:
        log, history, items = (read_table(directory / f"{name}.parquet") for name in ("log", "history", "items"))
    ids = [pl.col("user_id", "item_id").cast(pl.String)]
    return Sample(
        log=log.with_columns(ids),
        history=history.with_columns(pl.col("user_id").cast(pl.String), pl.col("item_ids").cast(pl.List(pl.String))),
        items=_video_items(items),
    )


def make_sample(kuairand_dir: Path, out_dir: Path) -> None:
    """Write `log`, `history` and `items` (parquet) of the packaged sample from the KuaiRand-Pure files in `kuairand_dir`.

    Whole users with 5 exposures or more are kept where SHA-256 of the user id falls in the first 35 % of its range.
    """
    raw, videos = _read_kuairand(kuairand_dir)
    log = _kuairand_log(raw).drop("hate")
    active = log.group_by("user_id").len().filter(pl.col("len") >= MIN_EXPOSURES)["user_id"]
    users = pl.DataFrame({"user_id": [user for user in active.sort() if _hash_share(user) < SAMPLE_SHARE]})
    history = _read_history(kuairand_dir).with_columns(pl.col("item_ids").cast(pl.List(pl.Int16)))
    narrow = [
        pl.col("user_id", "item_id", "play_time_ms", "duration_ms").cast(pl.Int32),
        pl.col("click", "like", "long_view", "tab").cast(pl.Int8),
    ]
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, frame in {
        "log": log.join(users, on="user_id", how="semi", maintain_order="left").with_columns(narrow),
        "history": history.join(users, on="user_id", how="semi").cast({"user_id": pl.Int32}),
        "items": columns_of(videos, _KUAIRAND_ITEMS, kuairand_dir).sort("video_id"),
    }.items():
        frame.write_parquet(out_dir / f"{name}.parquet", compression="zstd", compression_level=19, statistics=False)


def _read_kuairand(directory: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    logs = all_files(directory, ["log_standard_*.csv", "log_standard_*.parquet"])
    video_files = all_files(directory, ["video_features_basic_*.csv", "videos.parquet"])
    # Repeats are exact in all columns; the ones we read alone would make 418 rows of -Pure look repeated that are not.
    log = pl.concat([_kuairand_rows(read_table(path).unique(maintain_order=True), path) for path in logs])
    numbers = pl.Schema({"video_id": pl.Int64(), "author_id": pl.Int64(), "music_type": pl.Float64(), "video_duration": pl.Float64()})
    tables = [columns_of(read_table(path), _KUAIRAND_ITEMS, path).cast(numbers, strict=False) for path in video_files]
    for table, path in zip(tables, video_files, strict=True):
        refuse_nulls(table, ["video_id"], path)
    videos = pl.concat(tables, how="vertical_relaxed")
    return log, videos.unique("video_id", keep="first", maintain_order=True)


def _kuairand_rows(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """The columns read, as numbers; nothing may be empty."""
    log = columns_of(table, _KUAIRAND_LOG, path)
    refuse_nulls(log, _KUAIRAND_LOG, path)
    flags = [_flags(log[name], path).cast(pl.Int64) for name in ("is_click", "is_like", "is_hate", "long_view")]
    amounts = [
        numbers_of(log[name], path, least=-1e12, most=1e12).cast(pl.Int64).alias(name) for name in ("play_time_ms", "duration_ms", "tab")
    ]
    ids = [ids_of(log[name], path) for name in ("user_id", "video_id")]
    return pl.DataFrame([*ids, times_ms(log["time_ms"], path).alias("time_ms"), *flags, *amounts]).select(_KUAIRAND_LOG)


def _kuairand_log(raw: pl.DataFrame) -> pl.DataFrame:
    return (
        raw.rename({"video_id": "item_id", "time_ms": "event_time_ms"})
        .rename({"is_click": "click", "is_like": "like", "is_hate": "hate"})
        .with_columns(pl.col("user_id", "item_id").cast(pl.String))
        .sort("event_time_ms", maintain_order=True)
    )


def _video_interactions(log: pl.DataFrame) -> pl.DataFrame:
    play_ms = pl.col("play_time_ms").clip(lower_bound=0)
    delay_ms = play_ms.clip(upper_bound=CLICK_DELAY_CAP_MS)
    one = pl.lit(1.0)
    kinds = {"click": "click", "like": "like", "long_view": "long_view", "dislike": "hate"}
    entries = [_entry(kind, one, when=pl.col(column) > 0, delay_ms=delay_ms) for kind, column in kinds.items()]
    return log.select(
        "user_id",
        "item_id",
        "event_time_ms",
        shown=pl.lit(value=True),
        feedback=_feedback(*entries, _entry("play_ms", play_ms, when=play_ms > 0, delay_ms=delay_ms)),
        context=_pairs({"tab": pl.col("tab")}),
    )


def _video_items(videos: pl.DataFrame) -> pl.DataFrame:
    tags = pl.col("tag").cast(pl.String).str.split(",")
    attributes = {f"tag{i + 1}": tags.list.get(i, null_on_oob=True) for i in range(3)}
    attributes |= {name: pl.col(name) for name in ("author_id", "video_type", "upload_type")}
    attributes["music_type"] = pl.col("music_type").cast(pl.Int64)
    passed = pl.sum_horizontal(pl.col("video_duration") > bound_s * 1000 for bound_s in _DURATION_BOUNDS_S)
    named = passed.replace_strict(range(len(_DURATION_NAMES)), _DURATION_NAMES, return_dtype=pl.String)
    attributes["duration"] = pl.when(pl.col("video_duration").is_not_null()).then(named)
    return videos.select(item_id=pl.col("video_id").cast(pl.String), title=pl.lit(""), attributes=_pairs(attributes))


def _hash_share(text: str) -> float:
    """Where the SHA-256 of `text` lies in its range, 0..1."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2.0**64


def _read_movielens(directory: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(user_id, item_id, rating, time_ms) and items, from whichever of the published formats is there."""
    path = one_file(directory, ["ratings.csv", "ratings.dat", "u.data", "ratings.parquet"])
    names = ["userId", "movieId", "rating", "timestamp"]
    if path.suffix in {".dat", ".data"}:
        ratings = read_split(path, "::" if path.suffix == ".dat" else "\t", names)
    else:
        ratings = columns_of(read_table(path), names, path)
    rating = numbers_of(ratings["rating"], path, most=1e3)
    refuse_nulls(ratings, names, path)
    read = pl.DataFrame({"user_id": ids_of(ratings["userId"], path), "item_id": ids_of(ratings["movieId"], path), "rating": rating})
    return read.with_columns(time_ms=times_ms(ratings["timestamp"], path)), _movies(directory, path)


def _movies(directory: Path, ratings: Path) -> pl.DataFrame:
    if ratings.name == "u.data":
        flags = read_split(one_file(directory, ["u.item"]), "|", ["movieId", "title", "released", "video", "url", *_ML100K_GENRES])
        named = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in _ML100K_GENRES]
        movies = flags.select("movieId", "title", genres=pl.concat_list(named).list.drop_nulls())
    else:
        path = one_file(directory, ["movies" + ratings.suffix])
        names = ["movieId", "title", "genres"]
        table = read_split(path, "::", names) if path.suffix == ".dat" else columns_of(read_table(path), names, path)
        movies = table.with_columns(pl.col("genres").replace("(no genres listed)", None).str.split("|"))
    attributes = {f"genre{i + 1}": pl.col("genres").list.get(i, null_on_oob=True) for i in range(3)}
    attributes["year"] = pl.col("title").str.extract(r"\((\d{4})\)\s*$")
    return movies.select(item_id=pl.col("movieId").cast(pl.String), title=pl.col("title").fill_null(""), attributes=_pairs(attributes))


def _table_items(path: Path | None, item_column: str) -> pl.DataFrame:
    if path is None:
        return pl.DataFrame(schema=ITEMS)
    table = columns_of(read_table(path), [item_column], path, keep_others=True)
    attributes: dict[str, pl.Expr] = {}
    for name in table.columns:
        if name not in {item_column, "title"}:
            values = _values_of(table[name], path)
            if twice := attributes.keys() & values.keys():
                raise ImportRefused(f"{path}: {min(twice)!r} is said by {name} and by another column; one of them needs another name")
            attributes |= values
    title = pl.lit("")
    if "title" in table.columns:
        refuse_nested(table["title"], path)
        words = pl.col("title").cast(pl.List(pl.String)).list.join(" ")
        title = (words if isinstance(table.schema["title"], pl.List) else pl.col("title").cast(pl.String)).fill_null("")
    return table.select(item_id=ids_of(table[item_column], path), title=title, attributes=_pairs(attributes))


def _values_of(cells: pl.Series, path: Path) -> dict[str, pl.Expr]:
    """A column as attributes; that of a list is one by place, as `genre1`, `genre2`."""
    refuse_nested(cells, path)
    if not isinstance(cells.dtype, pl.List):
        return {cells.name: pl.col(cells.name)}
    longest = max(cells.list.len().drop_nulls().to_list(), default=0)
    return {f"{cells.name}{place + 1}": pl.col(cells.name).list.get(place, null_on_oob=True) for place in range(longest)}


def _entry(kind: str | pl.Expr, value: pl.Expr, *, when: pl.Expr, delay_ms: pl.Expr | None = None) -> pl.Expr:
    """One feedback where `when` holds, null elsewhere."""
    name = pl.lit(kind) if isinstance(kind, str) else kind
    delay = pl.lit(0) if delay_ms is None else delay_ms
    return pl.when(when).then(pl.struct(kind=name, value=value.cast(pl.Float64), delay_ms=delay.cast(pl.Int64)))


def _feedback(*entries: pl.Expr) -> pl.Expr:
    return pl.concat_list(entries).list.drop_nulls()


def _pairs(columns: Mapping[str, pl.Expr]) -> pl.Expr:
    """The columns that are not null, as key and value."""
    if not columns:
        return pl.lit([], dtype=PAIRS)
    present = [pl.when(value.is_not_null()).then(pl.struct(key=pl.lit(key), value=value.cast(pl.String))) for key, value in columns.items()]
    return pl.concat_list(present).list.drop_nulls()


def _flags(cells: pl.Series, path: Path) -> pl.Series:
    """0 and 1, or false and true, as booleans. ImportRefused names the first cell that says neither, or nothing."""
    said = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
    flags = cells.cast(pl.String).str.to_lowercase().replace_strict(said, default=None, return_dtype=pl.Boolean)
    if flags.null_count():
        raise ImportRefused(f"{path}: {cells.name} holds {cells.filter(flags.is_null())[0]!r}; 0 or 1, true or false is needed")
    return flags
